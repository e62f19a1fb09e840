"""Checks, before training, that a cluster can run it; they report in one line what is missing."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.errors import InputError

SLOTS = 20.0
"""Seconds to wait for enough slots: executors register some seconds after the session has started, or after one was lost."""
DRIVER, EXECUTOR, TASK = (f"spark.{part}.resource.gpu.amount" for part in ("driver", "executor", "task"))
SCRIPT = "spark.executor.resource.gpu.discoveryScript"
# torch is imported in a separate process: the executor's Python goes on to serve other tasks.
LOOK = "import torch; print(torch.__version__, int(torch.backends.cuda.is_built()), torch.cuda.device_count())"


def gives_gpus(spark: SparkSession, device: str, processes: int, local: bool) -> bool:
    """True if Spark is to give each process a GPU of its own.

    If not, the processes on the driver's machine share the GPUs that torch sees round-robin, and tasks on executors use
    none.

    Raises:
        InputError: the option `device` asks for GPUs of the cluster, and Spark's settings give none to a process; or
            the driver has fewer GPUs than processes.
    """
    if device == "cpu":
        return False
    master, given = str(spark.conf.get("spark.master", "")), str(spark.conf.get(DRIVER, ""))
    asked, way_out = device.startswith("cuda"), "or set device='cpu'"
    if local:
        owned = int(given) if asked and given.isdigit() else 0
        if 0 < owned < processes:  # TorchDistributor would start fewer processes, with a warning only
            raise InputError(
                f"numProcesses={processes}, but {DRIVER}={given}: set numProcesses={given}, give the driver more GPUs, {way_out}"
            )
        return owned > 0
    if master == "local" or master.startswith("local["):
        if asked:
            raise InputError(
                f"device={device!r} with localMode='false', but the master {master} gives no GPU to a task: set "
                f"localMode='true', whose processes see the GPUs of this machine, {way_out}"
            )
        return False
    amounts = {name: str(spark.conf.get(name, "")) for name in (EXECUTOR, TASK)}
    if missing := [name for name, amount in amounts.items() if amount in ("", "0")]:
        if asked:
            raise InputError(
                f"device={device!r}, but Spark gives no GPU to the processes, as {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set: submit with --conf {EXECUTOR}=1 --conf {TASK}=1 and "
                f"--conf {SCRIPT}=<script that lists an executor's GPUs>, {way_out}"
            )
        return False
    if amounts[TASK] != "1":
        if asked:
            raise InputError(
                f"device={device!r}, but {TASK}={amounts[TASK]}: a process trains on one GPU, so set it to 1, {way_out}"
            )
        return False
    return True


def check_cluster(
    spark: SparkSession, processes: int, folder: Path | None, modules: Sequence[str], device: str = "cpu"
) -> bool:
    """Check that a cluster can run that many tasks at the same time with these modules, and sees `folder`.

    Args:
        folder: the attempt's folder, which the tasks must see; None if its files are sent to them.
        device: the option `device`, if Spark gives each process a GPU; else "cpu".

    Returns:
        True if TorchDistributor can show each process the GPU that Spark gives it.

    Raises:
        InputError: something is missing. The message says what, where, and how to fix it.
    """
    gpu = device.startswith("cuda")
    master = spark.conf.get("spark.master", "")
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise InputError(
            "spark.dynamicAllocation.enabled=true: Spark then refuses barrier stages, which several processes "
            "need; submit with --conf spark.dynamicAllocation.enabled=false, or set localMode=true or "
            "numProcesses=1"
        )
    _check_slots(spark, processes, str(master), " with a GPU each" if gpu else "")
    every = _probe_executors(spark, processes, folder, list(modules), LOOK if gpu else "")
    for found in every:
        where = f"{found['python']} on {found['host']}"
        if found["lacks"]:
            raise InputError(
                f"the executors' Python ({where}) lacks {', '.join(found['lacks'])}: install it there, or set "
                "PYSPARK_PYTHON (spark.pyspark.python) to an interpreter that has it on every executor"
            )
        if not found["sees"]:
            raise InputError(
                f"the checkpoint folder {folder} can't be read on {found['host']}: set cacheDir (and checkpointDir) "
                "to a folder in which the driver and all executors see the same files, or cacheDir to one on a file system that "
                "Spark knows (hdfs://..., s3a://...)"
            )
        if gpu and (why := _why_no_gpu(found)):
            raise InputError(f"device={device!r}, but {why}; or set device='cpu'")
    return all(_has_numbered_gpus(found) for found in every)


def _has_numbered_gpus(found: Mapping[str, Any]) -> bool:
    """True if TorchDistributor accepts the names of a task's GPUs, which must be numbers without leading zeros."""
    return bool(found["given"]) and all(re.fullmatch(r"0|[1-9]\d*", given) for given in found["given"])


def _why_no_gpu(found: Mapping[str, Any]) -> str:
    """The reason why a task has no GPU, and the solution, as part of a sentence; empty if it has one."""
    where, given, shown = found["host"], found["given"], found["shown"]
    if not given:
        return f"Spark gave no GPU to a task on {where}: let {SCRIPT} name a script that lists the GPUs of an executor"
    if not _has_numbered_gpus(found):
        return f"Spark's GPUs on {where} are {', '.join(given)}: let {SCRIPT} name a script that lists them by number (0, 1, ...)"
    if "," in (shown or ""):
        return (
            f"CUDA_VISIBLE_DEVICES={shown!r} is set for the executors on {where}, which hides from a process which GPU is its "
            "own: unset it there"
        )
    if not found["look"]:
        return f"torch can't be imported on {where} ({found['failed']}): repair its installation"
    version, built, gpus = found["look"]
    if built == "0":
        return (
            f"torch {version} on {where} was built without CUDA: install a build with it on every executor "
            "(https://pytorch.org/get-started)"
        )
    if gpus == "0" and shown == "":
        return (
            f"CUDA_VISIBLE_DEVICES is empty on {where}, as TorchDistributor leaves it after a training without GPUs: start a new "
            "session, or set spark.python.worker.reuse=false"
        )
    if gpus == "0":
        return f"torch finds no NVIDIA driver or no GPU on {where}: `nvidia-smi` there tells what is missing"
    return ""


def _check_slots(spark: SparkSession, processes: int, master: str, each: str) -> None:
    end = time.monotonic() + SLOTS
    while (slots := jvm.slots(spark)) is not None and slots < processes:
        if time.monotonic() > end:
            raise InputError(
                f"numProcesses={processes}, but {master} can run {slots} tasks at once{each}: add executors or "
                f"{'GPUs' if each else 'cores'}, or use fewer processes"
            )
        time.sleep(0.5)


def _probe_executors(
    spark: SparkSession, processes: int, folder: Path | None, modules: list[str], look: str
) -> list[dict[str, Any]]:
    """The findings of one task per process, on the executor that runs it.

    Args:
        look: Python code whose printed words are part of the findings; empty for none.
    """
    seen = "" if folder is None else str(folder / "start.py")

    # Nested, so that it is pickled by value: the executors needn't have our package.
    def probe(batches: Iterable[Any]) -> Iterable[Any]:
        import importlib.util
        import json
        import os
        import socket
        import subprocess
        import sys

        import pyarrow
        from pyspark import BarrierTaskContext

        for _ in batches:
            pass
        gpus = BarrierTaskContext.get().resources().get("gpu")
        found = {
            "host": socket.gethostname(),
            "python": sys.executable,
            "sees": not seen or os.access(seen, os.R_OK),
            "lacks": [m for m in modules if importlib.util.find_spec(m) is None],
            "given": list(gpus.addresses) if gpus else [],
            "shown": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        if look and not found["lacks"]:
            done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
            found |= {"look": done.stdout.split(), "failed": done.stderr.strip().rpartition("\n")[2]}
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
