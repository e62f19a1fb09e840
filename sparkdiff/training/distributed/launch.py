"""Start and monitoring of a training run in this process or in several, with restarts after the loss of a process."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparkdiff import jvm
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.manifest import Manifest
from sparkdiff.report import RemainingTime, advance, change
from sparkdiff.store import files
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.tensors.device import gpus, place
from sparkdiff.tensors.team import ALONE
from sparkdiff.training.distributed import choice
from sparkdiff.training.distributed.attempt import Attempt, OnEpoch, RemoteAttempt, TrainingError
from sparkdiff.training.distributed.preflight import check_cluster, gives_gpus
from sparkdiff.training.distributed.remote import CACHE, DriverConnections, check_limit
from sparkdiff.training.distributed.shipping import equip
from sparkdiff.training.distributed.worker import ROOM, SECONDS, Assignment, Checkpoints, seconds_per_step, work
from sparkdiff.training.training_run import ShortOfMemoryError, Training

ATTEMPTS = 3
Say = Callable[[str], None]


class EpochForwarder:
    """Forwarder of a history's rows: each row once and in order, whichever process or attempt sends it."""

    def __init__(self, on_epoch: OnEpoch):
        self.on_epoch, self.told = on_epoch, 0

    def __call__(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> None:
        """Forward new rows; `rows` are numbered from `first` on. Rows after a gap are skipped until they come again."""
        while first <= self.told < first + len(rows):
            self.told += 1
            self.on_epoch(rows[self.told - 1 - first])


def run(
    assignment: Assignment, stream: Stream, folder: CheckpointFolder, say: Say, on_epoch: OnEpoch = lambda _row: None
) -> tuple[Training, list[str]]:
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
    training, epochs = _resume_training(assignment, folder), EpochForwarder(on_epoch)
    epochs(training.history)
    if training.ended:
        say("this run was already finished; its result is returned")
        return training, []
    if assignment.options.numProcesses == choice.AUTO:
        assignment = _choose_process_number(assignment, stream, folder, say)
    if assignment.options.processes > 1:
        return _in_processes(assignment, folder, say, epochs)
    saves, shown = Checkpoints(folder.state, assignment.options.timeout, folder.check), 0
    forecast, told = TrainingProgress(assignment), ""

    def say_device(text: str) -> None:
        nonlocal told
        told = f"; {text}"
        say(text)

    def on_step(training: Training) -> None:
        nonlocal shown
        saves(training)
        if training.epoch > shown:
            shown = training.epoch
            epochs(training.history)
            text = forecast.line(shown, training.best.metric, len(training.active), ended=training.ended)
            say(text + told if training.ended else text)  # a log has no line of its own for the device

    work(assignment, training, stream, ALONE, on_step, folder=folder.path, say=say_device)
    return training, []


def _choose_process_number(assignment: Assignment, stream: Stream, folder: CheckpointFolder, say: Say) -> Assignment:
    """The assignment with the number of processes that numProcesses='auto' chooses, or chose when this run began (fewer if
    there is only room for fewer).
    """
    o = assignment.options
    chosen = choice.ProcessNumber.read(folder.path)
    limit = choice.most(stream.manifest.virtualShards, _slots(o.localMode))
    if chosen is not None and chosen.number > limit:  # the run continues on another machine or cluster
        chosen = replace(
            chosen, number=max(limit, 1), why=f"there is room for no more, but it began in {chosen.number}"
        )
    if chosen is None:
        if o.device != "cpu" and gpus():
            chosen = choice.ProcessNumber(1, "there is a GPU, which trains in one process", {})
        else:
            steps = stream.steps("train", o.batchSize) * (assignment.epochs or o.maxEpochs)
            cpu = place("cpu", o.precision)
            chosen = choice.choose(
                limit,
                steps,
                math.inf if o.maxSeconds is None else o.maxSeconds,
                lambda: seconds_per_step(assignment, stream.on(cpu), ALONE, cpu),
                lambda n: _together(assignment, folder, n),
            )
        chosen.write(folder.path)
    say(f"numProcesses='auto' takes {chosen.number}: {chosen.why}")
    return replace(assignment, options=replace(o, numProcesses=chosen.number))


def _slots(localMode: str) -> int | None:
    """Number of processes that can run at a time on the executors; None if this machine starts them."""
    if on_this_machine(localMode):
        return None
    spark = jvm.session()
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":  # Spark then refuses barrier stages
        return 1
    return jvm.slots(spark) or 1


def _together(assignment: Assignment, folder: CheckpointFolder, processes: int) -> float:
    """Seconds of a step in `processes` processes, which are started to find out; infinite if they failed or were lost.

    Raises:
        InputError: so many processes can't run here.
    """
    o = replace(assignment.options, numProcesses=processes)
    attempt = _attempt(replace(assignment, options=o, timing=True), folder, gpus=False)
    attempt.run(lambda _line: None)
    try:
        return float(json.loads((attempt.here / SECONDS).read_text()))
    except (OSError, ValueError):
        with contextlib.suppress(TrainingError):
            attempt.raise_failure()
        return math.inf


def _resume_training(assignment: Assignment, folder: CheckpointFolder) -> Training:
    training = assignment.training()
    if (state := files.load(folder.state)) is not None:
        training.load(state)
    return training


class TrainingProgress:
    """Progress lines of a training run: epochs, quality so far, and the time left at the pace so far."""

    def __init__(self, assignment: Assignment, clock: Callable[[], float] = time.monotonic):
        self.original, self.metric = assignment.original, assignment.metric
        self.rows = "validation" if assignment.epochs is None else "training"
        self.last = assignment.epochs or assignment.options.maxEpochs
        self.limit, self.clock, self.pace = assignment.options.maxSeconds, clock, RemainingTime(clock)
        self.begun: float | None = None  # time of the first line

    def line(self, epoch: int, best: float, active: int, *, ended: bool = False) -> str:
        """A line about the progress.

        Args:
            epoch: the epoch that trains, from 1 on; after the end, one more than were trained.
            best: the chosen metric so far; smaller is better.
            active: number of candidates that still train.
        """
        figures = f"{change(self.metric, self.original.value, self.original.sign * best)} on {self.rows} rows"
        if ended:
            return f"{epoch - 1} of at most {self.last} epochs: {figures}"
        count = f"{active} candidate{'s' * (active != 1)} left"
        return advance("epoch", epoch, self.last, figures, count, seconds=self._seconds_left(epoch), about="at most")

    def _seconds_left(self, epoch: int) -> float | None:
        self.begun = self.clock() if self.begun is None else self.begun
        left = self.pace.seconds_left(epoch, self.last + 1)
        if left is None or self.limit is None:
            return left
        return min(left, max(self.limit - (self.clock() - self.begun), 0.0))


# Several processes ----------------------------------------------------------------------------------------------------


def _in_processes(
    assignment: Assignment, folder: CheckpointFolder, say: Say, epochs: EpochForwarder
) -> tuple[Training, list[str]]:
    spark, o = jvm.session(), assignment.options
    local = on_this_machine(o.localMode)
    by_spark = gives_gpus(spark, o.device, o.processes, local)
    if local and o.device == "cuda":
        place(o.device, o.precision)  # else each process would report that there is no GPU
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
        training = _resume_training(assignment, folder)
        epochs(training.history)
        if training.ended:
            return training, lost
        if short := attempt.failure_message(ShortOfMemoryError):
            assigned = replace(assigned, less=assigned.less + 1)
            say(f"{short}; all processes go on from the last checkpoint with less there")
            continue
        if untimed := attempt.failure_message(choice.TimingError):
            choice.DeviceNote().write(folder.path)
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
    """True if the option `localMode` makes this process start the training processes; else they are tasks of Spark."""
    if localMode != "auto":
        return localMode == "true"
    master = jvm.session().conf.get("spark.master", "") or ""
    return master == "local" or master.startswith("local[")  # local-cluster is not


def _attempt(assignment: Assignment, folder: CheckpointFolder, *, gpus: bool) -> "Attempt":
    """An attempt that is ready to start: its files are written, and the cluster is checked.

    Args:
        gpus: whether Spark gives each process a GPU.

    Raises:
        InputError: see `check_cluster`.
    """
    spark, o = jvm.session(), assignment.options
    local = on_this_machine(o.localMode)
    remote = not local and jvm.stores.url_of(assignment.cache) is not None
    if remote:
        manifest = Manifest.load(assignment.cache)
        needed = check_limit(manifest, o.processes, o.localCacheLimit, assignment.cache)
    with files.room("the files that start the processes", folder.path, ROOM):
        here = folder.attempt()
        cache = CACHE if remote else assignment.cache
        sent = replace(assignment, network=assignment.network.without_spark(), cache=cache)
        equip(here, sent, o.loss, "sparkdiff.training.distributed.worker")
        if folder.lease is not None:
            folder.lease.pass_on(here)
    if not local:
        own = ("petastorm",) if assignment.backend == "petastorm" else ()
        device = o.device if gpus else "cpu"
        named = check_cluster(spark, o.processes, None if remote else here, ("torch", "numpy", "pandas", *own), device)
        gpus = gpus and named
    if remote:
        return RemoteAttempt(
            spark, DriverConnections(folder, here, assignment.cache), manifest, needed, o.timeout, gpus
        )
    return Attempt(spark, here, o.processes, local, o.timeout, gpus)
