"""Starts a training in this process or in several, monitors it, and restarts it after the loss of a process.

TorchDistributor runs `start.py` of an attempt's folder, which all machines see: it puts our own code (zipped beside it) on the
path and calls `rank.main`. Nothing is pickled through Spark, and nothing is believed but files: TorchDistributor can take a
failed training for a success, and reports a failed one without its traceback.
"""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.data.stream import Manifest, Stream
from sparkdiff.errors import FullDiskError, InputError, SparkdiffError
from sparkdiff.jvm import stores
from sparkdiff.report import RemainingTime, advance, change
from sparkdiff.store import files
from sparkdiff.store.run_folder import RunFolder
from sparkdiff.tensors.device import gpus, place
from sparkdiff.tensors.team import ALONE
from sparkdiff.training.distributed import number
from sparkdiff.training.distributed.choice import Note, TimingError
from sparkdiff.training.distributed.preflight import check_cluster, gives_gpus
from sparkdiff.training.distributed.remote import CACHE, Post, check_limit, train as train_remotely
from sparkdiff.training.distributed.shipping import equip
from sparkdiff.training.distributed.worker import ROOM, SECONDS, Assignment, Checkpoints, seconds_per_step, work
from sparkdiff.training.loop import ShortOfMemoryError, Training

ATTEMPTS = 3
START = 300.0
"""Seconds until the processes must have begun to train: on a loaded machine torch alone takes many to be imported."""
GRACE = 5.0
"""Seconds that the others have to end by themselves once a process has failed; six times as long once all is done."""
Say = Callable[[str], None]
OnEpoch = Callable[[Mapping[str, Any]], None]


class TrainingError(SparkdiffError):
    """Training failed in one of its processes; the message contains the traceback. The command exits with code 1."""


class Epochs:
    """Passes each row of a history on once and in order, from whichever process or attempt it comes."""

    def __init__(self, on_epoch: OnEpoch):
        self.on_epoch, self.told = on_epoch, 0

    def __call__(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> None:
        """Rows from number `first` on; rows after a gap are passed on when they come again."""
        while first <= self.told < first + len(rows):
            self.told += 1
            self.on_epoch(rows[self.told - 1 - first])


def run(
    assignment: Assignment, stream: Stream, folder: RunFolder, say: Say, on_epoch: OnEpoch = lambda row: None
) -> tuple[Training, list[str]]:  # fmt: skip
    """Train to the end, from the beginning or from the newest checkpoint; if the folder has the final state, return
    it.

    Args:
        say: called with a line about the progress.
        on_epoch: called with each row of the history.

    Returns:
        The training, and one sentence for every restart after lost processes.

    Raises:
        InputError: the cluster cannot run that many processes, or the loss cannot be used.
        TrainingError: a process failed, or processes were lost too often.
    """
    training, epochs = _resumed(assignment, folder), Epochs(on_epoch)
    epochs(training.history)
    if training.ended:
        say("this run was already finished; its result is returned")
        return training, []
    if assignment.options.numProcesses == number.AUTO:
        assignment = _numbered(assignment, stream, folder, say)
    if assignment.options.processes > 1:
        return _in_processes(assignment, folder, say, epochs)
    saves, shown = Checkpoints(folder.state, assignment.options.timeout, folder.check), 0
    forecast = TrainingProgress(assignment)

    def on_step(training: Training) -> None:
        nonlocal shown
        saves(training)
        if training.epoch > shown:
            shown = training.epoch
            epochs(training.history)
            say(forecast.line(shown, training.chosen.metric, len(training.active), ended=training.ended))

    work(assignment, training, stream, ALONE, on_step, folder=folder.path, say=say)
    return training, []


def _numbered(assignment: Assignment, stream: Stream, folder: RunFolder, say: Say) -> Assignment:
    """The assignment with the number of processes that `auto` takes, or took when this run began."""
    o = assignment.options
    chosen = number.ProcessNumber.read(folder.path)
    limit = number.most(stream.manifest.virtualShards, _slots(o.localMode))
    if chosen is not None and chosen.number > limit:  # it goes on elsewhere
        chosen = replace(
            chosen, number=max(limit, 1), why=f"there is room for no more, but it began in {chosen.number}"
        )
    if chosen is None:
        if o.device != "cpu" and gpus():
            chosen = number.ProcessNumber(1, "there is a GPU, which trains in one process", {})
        else:
            steps = stream.steps("train", o.batchSize) * (assignment.epochs or o.maxEpochs)
            cpu = place("cpu", o.precision)
            chosen = number.choose(
                limit, steps, math.inf if o.maxSeconds is None else o.maxSeconds,
                lambda: seconds_per_step(assignment, stream.on(cpu), ALONE, cpu), lambda n: _together(assignment, folder, n),
            )  # fmt: skip
        chosen.write(folder.path)
    say(f"numProcesses='auto' takes {chosen.number}: {chosen.why}")
    return replace(assignment, options=replace(o, numProcesses=chosen.number))


def _slots(localMode: str) -> int | None:
    """How many processes can run at a time on the executors; None where this machine starts them."""
    if on_this_machine(localMode):
        return None
    spark = jvm.session()
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":  # which refuses barrier stages
        return 1
    return jvm.slots(spark) or 1


def _together(assignment: Assignment, folder: RunFolder, processes: int) -> float:
    """Seconds of a step in so many processes, which are started to find out; infinite if they were lost.

    Raises:
        InputError: they can't run here.
    """
    o = replace(assignment.options, numProcesses=processes)
    attempt = _attempt(replace(assignment, options=o, timing=True), folder, gpus=False)
    attempt.run(lambda line: None)
    try:
        return float(json.loads((attempt.here / SECONDS).read_text()))
    except (OSError, ValueError):
        with contextlib.suppress(TrainingError):
            attempt.raise_failure()
        return math.inf


def _resumed(assignment: Assignment, folder: RunFolder) -> Training:
    training = assignment.training()
    if (state := files.load(folder.state)) is not None:
        training.load(state)
    return training


class TrainingProgress:
    """Lines about a training: how far it is, how good, and how long it may still take at the pace so far."""

    def __init__(self, assignment: Assignment, clock: Callable[[], float] = time.monotonic):
        self.original, self.metric = assignment.original, assignment.metric
        self.rows = "validation" if assignment.epochs is None else "training"
        self.last = assignment.epochs or assignment.options.maxEpochs
        self.limit, self.clock, self.pace = assignment.options.maxSeconds, clock, RemainingTime(clock)
        self.begun: float | None = None  # when the first line was told

    def line(self, epoch: int, best: float, active: int, *, ended: bool = False) -> str:
        """How far it is.

        Args:
            epoch: the one that trains, from 1 on; after the end, one more than were trained.
            best: the chosen metric so far, where smaller is better.
            active: candidates that still train.
        """
        figures = f"{change(self.metric, self.original.value, self.original.sign * best)} on {self.rows} rows"
        if ended:
            return f"{epoch - 1} of at most {self.last} epochs: {figures}"
        count = f"{active} candidate{'s' * (active != 1)} left"
        return advance("epoch", epoch, self.last, figures, count, seconds=self._left(epoch), about="at most")

    def _left(self, epoch: int) -> float | None:
        self.begun = self.clock() if self.begun is None else self.begun
        left = self.pace.left(epoch, self.last + 1)
        if left is None or self.limit is None:
            return left
        return min(left, max(self.limit - (self.clock() - self.begun), 0.0))


# Several processes ----------------------------------------------------------------------------------------------------


def _in_processes(assignment: Assignment, folder: RunFolder, say: Say, epochs: Epochs) -> tuple[Training, list[str]]:
    spark, o = jvm.session(), assignment.options
    local = on_this_machine(o.localMode)
    by_spark = gives_gpus(spark, o.device, o.processes, local)
    if local and o.device == "cuda":
        place(o.device, o.precision)  # else each process would tell that there is no GPU
    lost: list[str] = []
    assigned, forecast = assignment, TrainingProgress(assignment)
    while True:
        attempt = _attempt(assigned, folder, gpus=by_spark)
        by_spark = attempt.gpus

        def on_line(line: Mapping[str, Any]) -> None:
            epochs(line["rows"], line["first"])
            for text in line["said"]:
                say(text)
            say(forecast.line(line["epoch"], line["best"], line["left"], ended=line["ended"]))

        attempt.run(on_line)
        training = _resumed(assignment, folder)
        epochs(training.history)
        if training.ended:
            return training, lost
        if short := attempt.told(ShortOfMemoryError):
            assigned = replace(assigned, less=assigned.less + 1)
            say(f"{short}; all processes go on from the last checkpoint with less there")
            continue
        if untimed := attempt.told(TimingError):
            Note().write(folder.path)
            assigned = replace(assigned, options=replace(o, device="cpu"))
            say(f"device='auto' takes cpu: {untimed}")
            continue
        attempt.raise_failure()
        lost.append(attempt.loss())
        if len(lost) == ATTEMPTS:
            raise TrainingError(
                f"training was lost {ATTEMPTS} times: {'; '.join(lost)}. Its last state is kept: "
                f"runId={folder.runId!r} continues from there"
            )
        say(f"{lost[-1]}; continuing from the last checkpoint")


def on_this_machine(localMode: str) -> bool:
    """Whether processes are started by this one, by the option; else they are tasks of Spark."""
    if localMode != "auto":
        return localMode == "true"
    master = jvm.session().conf.get("spark.master", "") or ""
    return master == "local" or master.startswith("local[")  # local-cluster is not


def _equip(here: Path, assignment: Assignment) -> None:
    """Write the files that the processes need to the folder of an attempt."""
    sent = replace(assignment, network=assignment.network.without_spark())
    equip(here, sent, sent.options.loss, "sparkdiff.training.distributed.worker")


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


def _attempt(assignment: Assignment, folder: RunFolder, *, gpus: bool) -> "Attempt":
    """An attempt that can be started: its files are written, and the cluster was looked at.

    Args:
        gpus: whether Spark gives each process a GPU.

    Raises:
        InputError: see `check_cluster`.
    """
    spark, o = jvm.session(), assignment.options
    local = on_this_machine(o.localMode)
    remote = not local and stores.url_of(assignment.cache) is not None
    if remote:
        manifest = Manifest.load(assignment.cache)
        needed = check_limit(manifest, o.processes, o.localCacheLimit, assignment.cache)
    with files.room("the files that start the processes", folder.path, ROOM):
        here = folder.attempt()
        _equip(here, replace(assignment, cache=CACHE) if remote else assignment)
        if folder.lease is not None:
            folder.lease.pass_on(here)
    if not local:
        own = ("petastorm",) if assignment.backend == "petastorm" else ()
        device = o.device if gpus else "cpu"
        named = check_cluster(spark, o.processes, None if remote else here, ("torch", "numpy", "pandas", *own), device)
        gpus = gpus and named
    if remote:
        return RemoteAttempt(spark, Post(folder, here, assignment.cache), manifest, needed, o.timeout, gpus)
    return Attempt(spark, here, o.processes, local, o.timeout, gpus)


class Attempt:
    """One start of all processes, until they end or are stopped.

    Args:
        gpus: show each process the GPU that Spark gives it.
    """

    def __init__(
        self, spark: SparkSession, here: Path, processes: int, local: bool, timeout: float, gpus: bool = False
    ):  # fmt: skip
        self.spark, self.here, self.processes, self.local, self.timeout = spark, here, processes, local, timeout
        self.gpus = gpus
        logger = logging.getLogger("TorchDistributor")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # else it writes its progress to stderr
        self.distributor = TorchDistributor(num_processes=processes, local_mode=local, use_gpu=gpus)
        self.tag = f"sparkdiff-{uuid.uuid4().hex}"
        self.error: BaseException | None = None
        self.stalled = False
        self.read = 0  # characters of the progress

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
        """What changes while something happens before the first progress."""
        return None

    def _watch(self, thread: threading.Thread, on_line: OnEpoch) -> None:
        heard, seen, budget, over = time.monotonic(), (0, 0), START, False
        progress, signs = self.here / "progress.jsonl", self._signs()
        while thread.is_alive() and time.monotonic() - heard <= budget:
            thread.join(0.2)
            lines = []
            if (sign := self._signs()) != signs:
                heard, signs = time.monotonic(), sign
            with contextlib.suppress(FileNotFoundError):  # not there yet
                state = progress.stat()
                if (now := (state.st_size, state.st_mtime_ns)) != seen:
                    heard, seen = time.monotonic(), now
                    budget = self.timeout + max(self.timeout / 2, GRACE)
                    lines = self._lines(progress.read_text())
            for line in lines:
                on_line(line)
                over = line["ended"]
                budget = 6 * GRACE if over else budget
            if not over and any("error" in r for r in self.ranks()):
                heard, budget, over = time.monotonic(), GRACE, True
        self.stalled = thread.is_alive() and not over

    def _lines(self, text: str) -> list[dict[str, Any]]:
        """The new lines of the progress. On a full disk a line may be incomplete; it is then left out."""
        new = text[self.read : text.rfind("\n") + 1]
        self.read += len(new)
        lines = []
        for line in new.splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

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
        """The reports of the processes about themselves."""
        return [json.loads(p.read_text()) for p in sorted(self.here.glob("rank-*.json"))]

    def told(self, error: type[SparkdiffError]) -> str:
        """The message of a process that failed by this error; empty if none did."""
        return next((r["message"] for r in self.ranks() if r.get("error") == error.__name__ and r["ours"]), "")

    def raise_failure(self) -> None:
        """Raise the exception of the process that failed first, if a process failed.

        Raises:
            InputError, FullDiskError, TrainingError: with that process's message or traceback.
        """
        failed = (r for r in self.ranks() if "error" in r and not r["lost"])
        first = min(failed, key=lambda r: r["time"], default=None)
        if first is None:
            return
        for own in (InputError, FullDiskError):
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
    """An attempt whose processes see none of the driver's files."""

    def __init__(
        self, spark: SparkSession, post: Post, manifest: Manifest, needed: list[int], timeout: float, gpus: bool
    ):  # fmt: skip
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
        """Spark takes as long as it takes until it starts all tasks at once; then each file that comes is a sign."""
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
