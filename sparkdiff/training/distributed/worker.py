"""One process of a training run: reads its assignment, trains with the other processes, and writes its result to files.

It runs without a Spark session, under any launcher that sets torchrun's variables: TorchDistributor, or torchrun itself
on the `start.py` of an attempt's folder. It reports only by files of that folder, because nothing else survives a
crash: `rank-K.json` (its identity, and in the end its error), `rank-K.stack` (its stack when it stalled) and, from the
first process, `progress.jsonl`. Checkpoints and the result go into the checkpoint folder above.
"""

import contextlib
import ctypes
import faulthandler
import functools
import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import SparkdiffError, WriteError
from sparkdiff.evaluation.scores import Score
from sparkdiff.evaluation.split_batches import Data, rows_at_once
from sparkdiff.machine import line_files
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import LabelStats
from sparkdiff.store import files
from sparkdiff.store.lease import check_passed_on
from sparkdiff.tensors.device import Place, module_of, place
from sparkdiff.tensors.team import LostProcessError, Team, tells_of_another
from sparkdiff.training import local_steps
from sparkdiff.training.distributed import choice
from sparkdiff.training.loop import train
from sparkdiff.training.monotone import MonotonePenalty
from sparkdiff.training.preparation import Start, resolve_objectives
from sparkdiff.training.training_run import Training

ROOM = "free some space, or set checkpointDir to a folder on a disk with more space"
SECONDS = "seconds.json"
"""File with the seconds of a step of all processes, written by an attempt that only times one."""
PROGRESS = 0.5
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Assignment:
    """Everything that a process needs for training, derived from the pipeline, the options and the rows."""

    network: Network
    cache: Path  # a relative path is in the folder of the attempt
    backend: str
    inMemory: bool
    columns: Mapping[Version, str]
    label: LabelStats
    original: Score
    start: Start
    options: Options
    metric: str  # name for display
    monotone: MonotonePenalty | None
    less: int = 0  # see `Training.reduce`
    epochs: int | None = None  # see `Results`
    timing: bool = False  # only time a step

    def training(self) -> Training:
        start = self.start
        return Training(
            self.network,
            start.recipes,
            self.options,
            start.units,
            self.original,
            start.stats,
            self.monotone,
            self.epochs,
        )


def work(
    assignment: Assignment,
    training: Training,
    stream: Stream,
    team: Team,
    on_step: Callable[[Training], None],
    tick: Callable[[], None] = lambda: None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> None:
    """Train to the end, as one process of a team.

    Args:
        folder: folder of the run, which stores the choice of the device; None to store nothing.
        say: called with a line about the device, if there is something to report.
    """
    at = functools.cache(functools.partial(stream.on, resident=not assignment.less))

    def time_step(place: Place, team: Team) -> float:
        with _current(place):
            return seconds_per_step(assignment, at(place), team, place, tick)

    here, team = choice.choose_place(assignment.options, team, folder, time_step, say)
    with _current(here):
        try:
            _train_at(here, assignment, training, at(here), team, on_step, tick)
        finally:
            at(here).leave()


def _current(place: Place) -> contextlib.AbstractContextManager[None]:
    """Context in which the place's GPU is the current one: else torch would allocate memory on the first GPU, too."""
    return contextlib.nullcontext() if place.on_cpu else module_of(place.device).device(place.device)  # type: ignore[no-any-return]


def _train_at(
    place: Place,
    a: Assignment,
    training: Training,
    stream: Stream,
    team: Team,
    on_step: Callable[[Training], None],
    tick: Callable[[], None],
) -> None:
    """Train at a place, with the batches of the stream there, until the training has ended or `on_step` raises."""
    training.move(place)
    if a.less and not place.on_cpu:
        training.reduce(a.less)
    objective, metric = resolve_objectives(a.options, training.here.network, a.label)
    if a.options.localSteps > 1 and team.world > 1:
        local_steps.check(a.options, a.start.recipes, objective, place)
    data = Data(stream, a.columns, team, tick, rows=rows_at_once(a.network, stream))
    train(training, data, objective, metric, on_step)


def seconds_per_step(
    a: Assignment, stream: Stream, team: Team, place: Place, tick: Callable[[], None] = lambda: None
) -> float:
    """Seconds of a step of this training at a place, measured by a separate training that ends after some steps.

    Args:
        stream: the rows at that place; the stream's memory there is released afterwards.
    """
    with _current(place):
        try:
            with torch.random.fork_rng(devices=[]):  # a user's loss may draw random numbers
                return _time_steps(a, stream, team, place, tick)
        finally:
            stream.leave()


def _time_steps(a: Assignment, stream: Stream, team: Team, place: Place, tick: Callable[[], None]) -> float:
    # The clock ends this training, not maxSeconds.
    training = replace(a, network=a.network.clone(), options=replace(a.options, maxSeconds=None)).training()
    clock = choice.StepTimer(place, stream.steps("train", a.options.batchSize), a.options.maxEpochs)

    def on_step(training: Training) -> None:
        tick()
        clock(training)

    with contextlib.suppress(choice.TimingDone):
        _train_at(place, a, training, stream, team, on_step, tick)
    return clock.seconds_per_step() * training.parts


class Checkpoints:
    """Regular saves of a training run, at least every tenth of the timeout, and at the end.

    If a checkpoint cannot be written, training continues, unless it is the final state that the driver waits for.

    Args:
        check: raises if the folder now belongs to another process.
        awaited: whether the driver reads the result of the training from the file.
    """

    def __init__(self, path: Path, timeout: float, check: Callable[[], None] = lambda: None, *, awaited: bool = False):
        self.path, self.every, self.last = path, min(30.0, timeout / 10), time.monotonic()
        self.check, self.awaited = check, awaited

    def __call__(self, training: Training) -> None:
        if training.ended or (training.is_whole and time.monotonic() - self.last > self.every):
            self.check()
            state = training.state()
            try:
                with files.room("a checkpoint", self.path, ROOM, lambda: f"about {files.size(state):,} bytes"):
                    files.save(self.path, state)
            except (WriteError, OSError) as e:
                if training.ended and self.awaited:
                    raise
                known = f"a checkpoint cannot be written to {self.path}: {getattr(e, 'strerror', None) or e}"
                why = e if isinstance(e, WriteError) else known
                training.unsaved = (
                    training.unsaved or f"{why}. Training continued without it; a crash would have lost more"
                )
            self.last = time.monotonic()


def main(folder: str) -> None:
    """Main function of every process of an attempt; `folder` is the folder of the attempt."""
    here, rank, world = Path(folder), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    me: dict[str, Any] = {
        "rank": rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "parents": parents(),
        "sparkdiff": __file__,
        "python": sys.executable,
    }
    _write(here, rank, me)
    die_with_parents(me["parents"])

    @contextlib.contextmanager
    def report_failures() -> Iterator[None]:
        try:
            yield
        except BaseException as e:
            if "error" not in me:
                lost, text = tells_of_another(e), traceback.format_exc()
                ours = isinstance(e, SparkdiffError)
                me.update(
                    error=type(e).__name__, message=str(e), ours=ours, lost=lost, traceback=text, time=time.time()
                )
                _write(here, rank, me)
            raise SystemExit(1) from e

    with report_failures():
        # Written by the driver into a folder that only its user may write to.
        assignment: Assignment = pickle.loads((here / "assignment.pickle").read_bytes())
        with (here / f"rank-{rank}.stack").open("w") as stack, _group(assignment.options.timeout), report_failures():
            # Reported before the group is left, as leaving may wait for processes that wait for this one.
            _train(assignment, here, Team(rank, world), Watchdog(assignment.options.timeout, stack))


def _train(assignment: Assignment, here: Path, team: Team, watchdog: "Watchdog") -> None:
    training = assignment.training()
    said: list[str] = []  # sent to the driver with the next line
    state = here.parent / "state.pt"
    if (saved := files.load(state)) is not None:
        training.load(saved)
    saves, last = Checkpoints(state, assignment.options.timeout, lambda: check_passed_on(here), awaited=True), 0.0
    told = 0  # rows of the history that were reported

    def on_step(training: Training) -> None:
        nonlocal last, told
        watchdog()
        if team.rank:
            return
        saves(training)
        if training.ended or time.monotonic() - last > PROGRESS:
            last = time.monotonic()
            line = {
                "epoch": training.epoch,
                "step": training.step,
                "best": training.best.metric,
                "left": len(training.active),
                "ended": training.ended,
            }
            _tell(here / "progress.jsonl", line | {"first": told, "rows": training.history[told:], "said": said[:]})
            told = len(training.history)
            said.clear()

    watchdog()
    a = assignment
    kept = a.options.localCacheLimit is None
    with Stream(here / a.cache, backend=a.backend, inMemory=a.inMemory, seed=a.options.seed, decoded=kept) as stream:
        if a.timing:
            cpu = place("cpu", a.options.precision)
            seconds = seconds_per_step(a, stream.on(cpu), team, cpu, watchdog)
            if team.rank == 0:
                files.write_bytes(here / SECONDS, json.dumps(seconds).encode())
                _tell(here / "progress.jsonl", {"ended": True})
        else:
            work(assignment, training, stream, team, on_step, watchdog, here.parent, said.append)
    watchdog.rest()


def _tell(path: Path, line: dict[str, Any]) -> None:
    """Append a line; on a full disk, at least update the file's time as a sign of life."""
    try:
        line_files.add(path, **line)
    except OSError:
        with contextlib.suppress(OSError):
            os.utime(path)


class Watchdog:
    """Watchdog that writes this process's stack and ends the process if it isn't called for about `timeout` seconds."""

    def __init__(self, timeout: float, stack: Any):
        self.timeout, self.stack, self.armed = timeout, stack, 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.armed > self.timeout / 10:  # arming starts a thread, which costs much beside a small step
            self.armed = now
            faulthandler.dump_traceback_later(1.1 * self.timeout, exit=True, file=self.stack)

    def rest(self) -> None:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _group(timeout: float) -> Iterator[None]:
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    except RuntimeError as e:
        raise LostProcessError(f"the processes did not find each other: {str(e).splitlines()[0]}") from e
    try:
        yield
        with contextlib.suppress(RuntimeError):  # the work is saved; a process that has already left is no loss
            dist.barrier()
    finally:
        dist.destroy_process_group()  # gloo may abort at exit otherwise


def _write(folder: Path, rank: int, content: dict[str, Any]) -> None:
    files.write_bytes(folder / f"rank-{rank}.json", json.dumps(content).encode())


def parents() -> list[int]:
    """This process's parent and, if /proc has it, the parent's parent: torchrun, and what started it."""
    parent = os.getppid()
    try:
        # The command, in brackets, may itself contain blanks and brackets.
        return [parent, int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])]
    except (OSError, ValueError, IndexError):
        return [parent]


def die_with_parents(known: list[int]) -> None:
    """End this process when one of these parents ends: an orphan would keep its pipe, its memory and a core."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            # PR_SET_PDEATHSIG: the kernel does it even if this process is stopped.
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)

    def watch() -> None:
        while parents()[: len(known)] == known:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
