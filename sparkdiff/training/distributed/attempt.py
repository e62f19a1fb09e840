"""One start of all processes of a training run. This module watches the processes until they end, fail or stall, and
reports why they were lost.

TorchDistributor runs `start.py` of an attempt's folder, which all machines see: it puts our own code (zipped beside it)
on the path and calls `worker.main`. Nothing is pickled through Spark, and only files are trusted: TorchDistributor can
mistake a failed training for a success, and reports a failed one without its traceback.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.data.stream.manifest import Manifest
from sparkdiff.errors import FullDiskError, InputError, SparkdiffError, WriteError
from sparkdiff.machine.line_files import LineReader
from sparkdiff.training.distributed.remote import DriverConnections, train as train_remotely

START = 300.0
"""Seconds within which the processes must begin to train: on a loaded machine, importing torch alone takes many."""
GRACE = 5.0
"""Seconds within which the other processes should end after one has failed. After training has finished, all processes
have six times as long."""
OnEpoch = Callable[[Mapping[str, Any]], None]


class TrainingError(SparkdiffError):
    """Failure of training in one of its processes (the message has the traceback), or by repeated loss of processes. The
    command exits with code 1.
    """


def _command(pid: int) -> str:
    """A process's command line."""
    if Path("/proc/self").exists():
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout  # macOS


@contextlib.contextmanager
def _threads(processes: int) -> Iterator[None]:
    """Divide the cores of this machine among the processes that inherit the environment, unless it already sets a
    number.
    """
    name = "OMP_NUM_THREADS"
    given = os.environ.get(name)
    os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // processes)))
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(name, None)


class Attempt:
    """One start of all processes, until they end or are stopped.

    Args:
        gpus: whether to show each process the GPU that Spark gives it.
    """

    def __init__(
        self, spark: SparkSession, here: Path, processes: int, local: bool, timeout: float, gpus: bool = False
    ):
        self.spark, self.here, self.processes, self.local, self.timeout = spark, here, processes, local, timeout
        self.gpus = gpus
        logger = logging.getLogger("TorchDistributor")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # else it writes its progress to stderr
        self.distributor = TorchDistributor(num_processes=processes, local_mode=local, use_gpu=gpus)
        self.tag = f"sparkdiff-{uuid.uuid4().hex}"
        self.error: BaseException | None = None
        self.stalled = False
        self.progress = LineReader(here / "progress.jsonl")

    def run(self, on_line: OnEpoch) -> None:
        """Start the processes and wait until they end, fail or stall. No process stays alive."""
        thread = threading.Thread(target=self._start, daemon=True)
        thread.start()
        try:
            self._watch(thread, on_line)
        finally:
            self._stop(thread)

    def _start(self) -> None:
        try:
            with jvm.cancellable(self.spark, self.tag), _threads(self.processes if self.local else 1):
                self._distribute()
        except BaseException as e:
            self.error = e

    def _distribute(self) -> None:
        """Run the processes until they have ended."""
        self.distributor.run(str(self.here / "start.py"))

    def _signs(self) -> Any:
        """A value that changes as long as processes show signs of life before the first line of progress."""
        return None

    def _watch(self, thread: threading.Thread, on_line: OnEpoch) -> None:
        heard, seen, budget, over = time.monotonic(), (0, 0), START, False
        signs = self._signs()
        while thread.is_alive() and time.monotonic() - heard <= budget:
            thread.join(0.2)
            lines = []
            if (sign := self._signs()) != signs:
                heard, signs = time.monotonic(), sign
            with contextlib.suppress(FileNotFoundError):  # not there yet
                state = self.progress.path.stat()
                if (now := (state.st_size, state.st_mtime_ns)) != seen:
                    heard, seen = time.monotonic(), now
                    budget = self.timeout + max(self.timeout / 2, GRACE)
                    lines = self.progress.new()
            for line in lines:
                on_line(line)
                over = line["ended"]
                budget = 6 * GRACE if over else budget
            if not over and any("error" in r for r in self.ranks()):
                heard, budget, over = time.monotonic(), GRACE, True
        self.stalled = thread.is_alive() and not over

    def _stop(self, thread: threading.Thread) -> None:
        """Stop the Spark job and every process on this machine."""
        if thread.is_alive() and not self.local:
            with contextlib.suppress(Exception):
                jvm.cancel(self.spark, self.tag)
        for rank in self.ranks():
            if rank["host"] == socket.gethostname():
                for pid in (rank["pid"], *rank["parents"]):
                    self._kill(pid)
        thread.join(GRACE)

    def _kill(self, pid: int) -> None:
        """Kill a process if it still belongs to this attempt; its id may have been reused."""
        with contextlib.suppress(OSError):
            if str(self.here / "start.py") in _command(pid):
                os.kill(pid, signal.SIGKILL)

    def ranks(self) -> list[dict[str, Any]]:
        """The reports that the processes wrote about themselves."""
        return [json.loads(p.read_text()) for p in sorted(self.here.glob("rank-*.json"))]

    def failure_message(self, error: type[SparkdiffError]) -> str:
        """The message of a process that failed with this error; empty if none did."""
        return next((r["message"] for r in self.ranks() if r.get("error") == error.__name__ and r["ours"]), "")

    def raise_failure(self) -> None:
        """Raise the exception of the process that failed first, if any failed.

        Raises:
            InputError, FullDiskError, WriteError: as in the process; with its message.
            TrainingError: the process failed with another error. The message contains its traceback.
        """
        failed = (r for r in self.ranks() if "error" in r and not r["lost"])
        first = min(failed, key=lambda r: r["time"], default=None)
        if first is None:
            return
        for own in (InputError, FullDiskError, WriteError):
            if first["ours"] and first["error"] == own.__name__:
                raise own(first["message"])
        raise TrainingError(
            f"process {first['rank']} of {self.processes} (on {first['host']}) failed:\n{first['traceback'].rstrip()}"
        )

    def loss(self) -> str:
        """The reason why the attempt was lost, in one line."""
        stacks = [p for p in sorted(self.here.glob("rank-*.stack")) if p.stat().st_size]
        if stacks:
            where = next((s.strip() for s in stacks[0].read_text().splitlines() if s.strip().startswith("File")), "")
            return f"{stacks[0].stem} made no progress for {self.timeout:g} s at {where}"
        ranks = self.ranks()
        silent = [str(r["rank"]) for r in ranks if "error" not in r]
        if self.stalled:
            return f"no progress within {self.timeout if ranks else START:g} s"
        if len(ranks) < self.processes:
            why = f" ({jvm.cause(self.error)})" if self.error is not None else ""
            return f"only {len(ranks)} of {self.processes} processes started{why}"
        if silent:
            return f"process {', '.join(silent)} of {self.processes} died without a message (killed, or out of memory?)"
        first = min(ranks, key=lambda r: r["time"])
        return f"the processes lost each other: {first['message']}"


class RemoteAttempt(Attempt):
    """An attempt whose processes don't see the driver's files."""

    def __init__(
        self,
        spark: SparkSession,
        post: DriverConnections,
        manifest: Manifest,
        needed: list[int],
        timeout: float,
        gpus: bool,
    ):
        super().__init__(spark, post.here, len(needed), False, timeout)
        self.post, self.manifest, self.needed, self.gpus = (
            post,
            manifest,
            needed,
            gpus,
        )

    def _distribute(self) -> None:
        train_remotely(self.spark, self.post, self.manifest, self.processes, self.needed, gpus=self.gpus)

    def _signs(self) -> Any:
        """The time, until a process connects (Spark may wait long for slots); then the number of messages."""
        return self.post.signs if self.post.joined else time.monotonic()

    def _stop(self, thread: threading.Thread) -> None:
        try:
            super()._stop(thread)
        finally:
            self.post.close(GRACE if self.error or thread.is_alive() else START)

    def raise_failure(self) -> None:
        super().raise_failure()
        if self.post.failed is not None:
            raise self.post.failed
