"""Spark's daemon of Python workers for the tests: what workers import is there before it forks them.

Spark ends its workers when a job fails, and each new one imports torch again. Besides, it has them find PySpark in a zip and in a
jar, whose directories PySpark lets Python read again at every task (0.1 s): the installed package is the same, without that.
"""

import gc
import sys

sys.path[:] = [path for path in sys.path if not path.endswith((".zip", ".jar"))]
sys.path_importer_cache.clear()

import pyspark.ml.linalg  # noqa: E402, F401
import torch  # noqa: E402, F401
from pyspark.daemon import manager  # noqa: E402

import sparkdiff.estimators  # noqa: E402, F401

if __name__ == "__main__":
    gc.freeze()  # a worker collects garbage after each task: not among what was there before
    manager()
