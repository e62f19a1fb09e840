"""Spark's daemon of Python workers for the tests: what workers import is there before it forks them.

Spark ends its workers when a job fails, and each new one imports torch again. Besides, it has them find PySpark in a zip and in a
jar, whose directories PySpark lets Python read again at every task (0.1 s): the installed package is the same, without that.
A test's other Python, which may lack torch, gets Spark's usual workers.
"""

import gc
import importlib
import os
import sys

OWN = sys.executable == os.environ.get("PYSPARK_PYTHON")  # that of the tests, of which the JVM was told when it started
if OWN:
    sys.path[:] = [path for path in sys.path if not path.endswith((".zip", ".jar"))]
    sys.path_importer_cache.clear()
    for name in ("pyspark.ml.linalg", "torch", "sparkdiff.estimators"):
        importlib.import_module(name)

from pyspark.daemon import manager  # noqa: E402

if __name__ == "__main__":
    if OWN:
        gc.freeze()  # a worker collects garbage after each task: not among what was there before
    manager()
