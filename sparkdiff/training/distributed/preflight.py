"""Checks before training whether a cluster can run it, and reports in one line what is missing."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.errors import InputError

SLOTS = 20.0
"""Seconds to wait for enough slots: executors register some seconds after the session has started, or after one was lost."""


def check_cluster(spark: SparkSession, processes: int, folder: Path, modules: Sequence[str]) -> None:
    """Check that a cluster can run that many tasks at the same time with these modules, and sees `folder`.

    Raises:
        InputError: what is missing, where, and the solution.
    """
    master = spark.conf.get("spark.master", "")
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise InputError(
            "spark.dynamicAllocation.enabled=true: Spark then refuses barrier stages, which several processes "
            "need; submit with --conf spark.dynamicAllocation.enabled=false, or set localMode=true or "
            "numProcesses=1"
        )
    _check_slots(spark, processes, str(master))
    for found in _probed(spark, processes, folder, list(modules)):
        where = f"{found['python']} on {found['host']}"
        if found["lacks"]:
            raise InputError(
                f"the executors' Python ({where}) lacks {', '.join(found['lacks'])}: install it there, or set "
                "PYSPARK_PYTHON (spark.pyspark.python) to an interpreter that has it on every executor"
            )
        if not found["sees"]:
            raise InputError(
                f"the run's folder {folder} can't be read on {found['host']}: set cacheDir (and checkpointDir) "
                "to a folder in which the driver and all executors see the same files"
            )


def _check_slots(spark: SparkSession, processes: int, master: str) -> None:
    end = time.monotonic() + SLOTS
    while (slots := jvm.slots(spark)) is not None and slots < processes:
        if time.monotonic() > end:
            raise InputError(
                f"numProcesses={processes}, but {master} can run {slots} tasks at once: add executors or "
                "cores, or use fewer processes"
            )
        time.sleep(0.5)


def _probed(spark: SparkSession, processes: int, folder: Path, modules: list[str]) -> list[dict[str, Any]]:
    """The findings of one task per process on its executor."""
    seen = str(folder / "start.py")

    # Nested, so that it goes by value: the executors needn't know our package.
    def probe(batches: Iterable[Any]) -> Iterable[Any]:
        import importlib.util
        import json
        import os
        import socket
        import sys

        import pyarrow

        for _ in batches:
            pass
        found = {
            "host": socket.gethostname(), "python": sys.executable, "sees": os.access(seen, os.R_OK),
            "lacks": [m for m in modules if importlib.util.find_spec(m) is None],
        }  # fmt: skip
        yield pyarrow.RecordBatch.from_arrays([pyarrow.array([json.dumps(found)])], ["found"])

    try:
        tasks = spark.range(0, processes, 1, processes)
        rows = tasks.mapInArrow(probe, "found string", barrier=True).collect()
    except jvm.SparkError as e:
        raise InputError(
            f"the executors can't run Python ({jvm.cause(e)}): set PYSPARK_PYTHON (spark.pyspark.python) to an interpreter that "
            "every executor has, with torch, pyarrow and pandas, of the driver's Python version"
        ) from e
    return [json.loads(row["found"]) for row in rows]
