"""A task of a barrier stage on a machine that doesn't see the driver's files, and the training process that it starts.

Spark passes the task the files of the cache that its process reads. They lie on the executor's local disk, in a folder
that the task deletes when it ends; if the task is killed, a later task or the end of the executor deletes it. Everything
else comes from the driver through a connection that a secret opens, and the files that the process writes return
through it. This module is sent by value: the executors don't have our package until the driver has sent it, so the
module imports none of it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import BarrierTaskContext

PAUSE = 0.1
"""Seconds between two checks for output of the process."""
FOLDER = re.compile(r"sparkdiff-rows-(\d+)-.*", re.ASCII)
"""The name of a task's folder, which contains the id of the task's process."""
BACK = re.compile(r"state\.pt|device\.json|attempt/(rank-\d+\.(json|stack)|progress\.jsonl|seconds\.json)", re.ASCII)
"""Files that are sent back, by their paths in the checkpoint folder."""
ADDED = ".jsonl"
"""Suffix of files to which lines are appended: only their new part is sent back."""


def run(batches: Iterable[pa.RecordBatch], facts: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    """Train as one of `facts["world"]` processes, with the rows that arrive as files: their paths and contents.

    Args:
        facts: facts about the attempt, see `remote.train`.
    """
    context: Any = BarrierTaskContext.get()
    rank = context.partitionId()
    with Client((facts["host"], facts["port"]), authkey=facts["secret"]) as driver, _folder() as folder:
        send(driver, {"rank": rank})
        attempt = folder / "attempt"
        try:
            receive_files(driver, folder)
            _keep(batches, attempt / "cache", facts, rank, lambda: send(driver, {"alive": True}))
        except Exception as e:
            send(driver, {"name": f"attempt/rank-{rank}.json"}, json.dumps(_error_report(e, rank)).encode())
            context.allGather("")  # the others start, and notice it
        else:
            addresses = context.allGather(_address(context) if rank == 0 else "-")
            if all(addresses):
                _train(driver, folder, _environment(context, facts, rank, addresses[0]))
    yield pa.RecordBatch.from_arrays([pa.array([rank])], ["rank"])


def _error_report(error: Exception, rank: int) -> dict[str, Any]:
    """The report of an error that occurred before the process began, in the form of a process's own report."""
    full = isinstance(error, _FullError)
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "parents": [],
        "time": time.time(),
        "ours": full,
        "error": "FullDiskError" if full else type(error).__name__,
        "message": str(error),
        "lost": False,
        "traceback": "".join(traceback.format_exception(error)),
    }


class _FullError(Exception):
    """Lack of disk space for the rows."""


# The rows --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder on the executor's disk with most free space, and remove it at the end. Also remove the folders of
    killed tasks.
    """
    # The folders that Spark's own Python uses for its files; they belong to this executor alone.
    own = [place for place in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if place and os.access(place, os.W_OK)]
    for old in (old for place in own for old in Path(place).glob("sparkdiff-rows-*")):
        if (named := FOLDER.fullmatch(old.name)) and not _lives(int(named[1])):
            shutil.rmtree(old, ignore_errors=True)
    given = own or os.environ.get("SPARK_EXECUTOR_DIRS", "").split(os.pathsep)
    places = [place for place in given if place and os.access(place, os.W_OK)] or [tempfile.gettempdir()]
    place = max(places, key=lambda place: shutil.disk_usage(place).free)
    folder = tempfile.mkdtemp(prefix=f"sparkdiff-rows-{os.getpid()}-", dir=place)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def _keep(batches: Iterable[pa.RecordBatch], cache: Path, facts: Mapping[str, Any], rank: int, alive: Any) -> None:
    """Write the files that come from Spark, each checked against the manifest.

    Raises:
        _FullError: there is not enough disk space.
        ValueError: a file is damaged or did not arrive.
    """
    wanted, needed = facts["files"], facts["needed"][rank]
    there = shutil.disk_usage(cache.parent).free
    full = (
        f"process {rank} keeps {needed:,} bytes of cached rows in {cache.parent} on {socket.gethostname()}, and {there:,} are "
        "free: give the executors more local disk (spark.local.dir), or use more processes"
    )
    if needed > there:
        raise _FullError(full)
    left = {name for name, ranks in facts["ranks"].items() if rank in ranks}
    for batch in batches:
        for path, content in zip(batch.column("path").to_pylist(), batch.column("content"), strict=True):
            name = facts["root"] + path.rpartition(f"/{facts['root']}")[2]
            if name not in left:
                continue
            data = content.as_buffer()
            if hashlib.sha256(data).hexdigest() != wanted[name]:
                raise ValueError(
                    f"the file {path} of the cache is not what was written: delete the cache and run again"
                )
            try:
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                (cache / name).write_bytes(data)
            except OSError as e:
                raise _FullError(f"{full} ({e.strerror})") from e
            left.discard(name)
            alive()
    if left:
        raise ValueError(
            f"{len(left)} files of the cache did not arrive, such as {min(left)}: delete the cache and run again"
        )


# The process -----------------------------------------------------------------------------------------------------------


def _address(context: Any) -> str:
    """Address and port at which the processes meet: on the machine of the first one."""
    with Listener(("", 0)) as free:
        port = free.address[1]
    return f"{context.getTaskInfos()[0].address.rpartition(':')[0] or context.getTaskInfos()[0].address} {port}"


def _environment(context: Any, facts: Mapping[str, Any], rank: int, address: str) -> dict[str, str]:
    """Environment variables as torchrun sets them, and the GPUs that Spark gave to this task."""
    host, port = address.split()
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(facts["world"]),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    if facts["gpus"]:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(context.resources()["gpu"].addresses)
    return environment


def _train(driver: Connection, folder: Path, environment: dict[str, str]) -> None:
    """Run the training process and send the driver what it writes, until it ends or the driver disconnects."""
    sent = dict(_states(folder))  # the files that have just been received
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, str(folder / "attempt" / "start.py")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        while process.poll() is None:
            send_back(driver, folder, sent)
            if driver.poll(PAUSE):  # the driver sends nothing more, so it has disconnected
                return
        send_back(driver, folder, sent)
    finally:
        process.kill()
        process.wait()


def send_back(driver: Connection, folder: Path, sent: dict[str, tuple[int, int]]) -> None:
    """Send the files that have changed since the last call; `sent` holds each file's time and size at that call."""
    for name, now in _states(folder):
        if now == sent.get(name):
            continue
        added = name.endswith(ADDED)
        first = sent[name][1] if name in sent and added else 0
        try:
            with (folder / name).open("rb") as file:
                file.seek(first)
                content = file.read()
        except FileNotFoundError:  # it is being replaced
            continue
        sent[name] = now[0], first + len(content) if added else now[1]
        send(driver, {"name": name, "add": added}, content)


def _states(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Time and size of each file to send back."""
    for path in [*folder.glob("*.*"), *folder.glob("attempt/*.*")]:
        if BACK.fullmatch(name := path.relative_to(folder).as_posix()):
            try:
                state = path.stat()
            except FileNotFoundError:  # it is being replaced
                continue
            yield name, (state.st_mtime_ns, state.st_size)


# The connection --------------------------------------------------------------------------------------------------------


def send(connection: Connection, head: Mapping[str, Any], content: bytes | memoryview = b"") -> None:
    """Send a message: a head that describes it, and bytes. Nothing is pickled."""
    connection.send_bytes(json.dumps(head).encode())
    connection.send_bytes(content)


def receive(connection: Connection) -> tuple[dict[str, Any], bytes]:
    """Receive the next message.

    Raises:
        EOFError: the other side has disconnected.
    """
    return json.loads(connection.recv_bytes()), connection.recv_bytes()


def receive_files(driver: Connection, folder: Path) -> None:
    """Receive the files that the process needs to start, and write them to `folder`."""
    while "name" in (message := receive(driver))[0]:
        path = folder / message[0]["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message[1])
