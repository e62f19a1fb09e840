"""Choice of the device and of the number of processes of a training run.

The device is the one that the options name or, with `auto`, the faster one. With numProcesses='auto', the number is the
one with which training ends soonest, including the time to start the processes. All processes use the same kind of
device.

A step of several processes includes a sum over them, which on slow networks and busy machines takes longer than the
rest of the step. So nothing is assumed: a step is timed in this process and, if several processes could save more time
than starting them takes, in several. The timings and choices, and the device's name for the summary, are stored in the
run's folder. A resumed run, or another run of the same name, reads them instead of timing again: it trains on the same
kind of device, in as many processes as before, unless there are no longer any GPUs, or not as many slots.
"""

import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.options import Options
from sparkdiff.store.checkpoint_folder import FolderNote
from sparkdiff.tensors.device import Place, gpus, module_of, place
from sparkdiff.tensors.team import Team, tells_of_another
from sparkdiff.training.training_run import Training

WARM, TIMED = 8, 32
"""Numbers of untimed steps at a place (which load and compile), and of timed steps; fewer if training is short."""


class TimingError(SparkdiffError):
    """Failure of training on this process's GPU while steps were timed. The other processes wait for this one, so all
    must restart on the CPU.
    """


@dataclass(frozen=True)
class DeviceNote(FolderNote):
    """The device choice stored in the checkpoint folder; a run that found no GPU stores none.

    Attributes:
        device: `cpu` or `cuda`.
        trainedOn: the device as the summary names it.
        millisecondsPerStep: by kind of device; empty if nothing was timed.
    """

    FILE = "device.json"

    device: str = "cpu"
    trainedOn: str = "cpu"
    millisecondsPerStep: Mapping[str, float] = field(default_factory=dict)


def choose_place(
    options: Options,
    team: Team,
    folder: Path | None,
    time_step: Callable[[Place, Team], float],
    say: Callable[[str], None],
) -> tuple[Place, Team]:
    """The place where this process trains, of the same kind in all processes, and the team with the process group for
    its sums.

    Args:
        folder: folder of the run; None to store nothing.
        time_step: function that returns the seconds of a step of this training at a place.
        say: called with a line if there was a choice.

    Raises:
        InputError: the options name a device that torch doesn't see.
        TimingError: training failed on this process's GPU, and there are several processes.
    """
    local = int(os.environ.get("LOCAL_RANK", "0")) if team.world > 1 else 0
    note = None if folder is None else DeviceNote.read(folder)
    kinds = [options.device] if options.device != "auto" else _device_kinds(team, note)
    places = [place(kind, options.precision, local) for kind in kinds]
    if not all(p.on_cpu for p in places):
        team = _join_gpu_group(team, next(p for p in places if not p.on_cpu), options.timeout, say)
    best, milliseconds = places[0], {} if note is None or options.device != "auto" else note.millisecondsPerStep
    if len(places) > 1:
        seconds, failed = _seconds(places, time_step, team)
        best = places[0] if failed else places[seconds.index(min(seconds))]
        milliseconds = {} if failed else {_kind(p): round(1000 * s, 4) for p, s in zip(places, seconds, strict=True)}
        took = [f"{1000 * s:.3g} ms on {p.name}" for p, s in zip(places, seconds, strict=True) if p != best]
        why = failed or f"a step takes {1000 * min(seconds):.3g} ms there, {', '.join(took)}"
        say(f"device='auto' takes {display_name(best)}: {why}")
    if folder is not None and team.rank == 0 and (note is not None or len(places) > 1 or not best.on_cpu):
        if min(milliseconds, key=lambda kind: milliseconds[kind], default="") != _kind(best):
            milliseconds = {}  # the faster device is gone: if it returns, it is timed again
        DeviceNote(_kind(best), display_name(best, team.world), milliseconds).write(folder)
    return best, team


def _kind(at: Place) -> str:
    return "cpu" if at.on_cpu else "cuda"


def _device_kinds(team: Team, note: DeviceNote | None) -> list[str]:
    """The kinds of device to choose from, the same in all processes: the CPU if one process sees no GPU; else the kind
    that is known to be faster; if neither is known to be, CPU and GPU.
    """
    known = note.device if note is not None and note.millisecondsPerStep and team.rank == 0 else ""
    votes = torch.tensor([gpus() > 0, known == "cpu", known == "cuda"], dtype=torch.float64)
    team.sum_(votes)
    see, cpu, cuda = votes.tolist()
    if see < team.world or cpu:
        return ["cpu"]
    return ["cuda"] if cuda else ["cpu", "cuda"]


def _seconds(places: Sequence[Place], time_step: Callable[[Place, Team], float], team: Team) -> tuple[list[float], str]:
    """Seconds of a step at each place, averaged over all processes; and the reason to ignore these times, or ""."""
    seconds, failed = torch.full((len(places),), math.inf, dtype=torch.float64), ""
    for i, p in enumerate(places):
        try:
            seconds[i] = time_step(p, team)
        except (InputError, RuntimeError) as e:
            if p.on_cpu or tells_of_another(e):
                raise
            failed = f"training on {p.name} failed ({(str(e).splitlines() or [type(e).__name__])[0]})"
            if team.world > 1:  # the others wait in the middle of a step
                raise TimingError(f"process {team.rank}: {failed}") from e
    team.sum_(seconds)
    found = (seconds / team.world).tolist()
    return found, failed or ("" if math.isfinite(sum(found)) else "training ends before a step could be timed")


def display_name(at: Place, world: int = 1) -> str:
    """The name of a place for people."""
    if at.on_cpu:
        return "cpu"
    name = getattr(module_of(at.device), "get_device_name", str)(at.device)
    one = f"{at.name} ({name})"
    return one if world == 1 else f"{world} processes, the first on {one}"


def _join_gpu_group(team: Team, at: Place, timeout: float, say: Callable[[str], None]) -> Team:
    """The team with torch's group for sums on GPUs, if every process has a GPU of its own."""
    if team.world == 1:
        return team
    import torch.distributed as dist  # only here, as in Team

    every: list[Any] = [None] * team.world
    unnamed = socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES"), at.name  # by old versions of torch
    properties = getattr(module_of(at.device), "get_device_properties", lambda _device: None)(at.device)
    dist.all_gather_object(every, str(getattr(properties, "uuid", unnamed)))
    shared = f"{team.world} processes share {len(set(every))} GPUs" if len(set(every)) < team.world else ""
    if shared or not dist.is_nccl_available():  # NCCL refuses two processes on one GPU
        why = shared or f"torch {torch.__version__} was built without NCCL"
        say(f"{why}: sums of the processes go over the CPU, which takes longer")
        return team
    torch.cuda.set_device(at.device)
    return replace(team, gpus=dist.new_group(backend="nccl", timeout=timedelta(seconds=timeout)))


# Timing ---------------------------------------------------------------------------------------------------------------


class TimingDone(Exception):
    """The signal that the steps to time are done."""


class StepTimer:
    """Timer of the steps of a training run that is started only to be timed: `train` calls it after each step.

    Args:
        steps: number of steps in an epoch.
    """

    def __init__(self, at: Place, steps: int, epochs: int):
        self.at, self.steps = at, steps
        self.warm = min(WARM, steps * epochs // 4)
        self.last = self.warm + max(1, min(TIMED, steps * epochs // 20))
        self.first, self.now, self.since = 0, 0, self._read()

    def _read(self) -> float:
        """Seconds on the clock, once all work that was started at the place is done."""
        module_of(self.at.device).synchronize(self.at.device)
        return time.perf_counter()

    def __call__(self, training: Training) -> None:
        before, self.now = self.now, (training.epoch - 1) * self.steps + training.step
        if self.now <= self.warm or self.now < before:  # it went back: to other candidates, or with less memory
            self.first, self.since = self.now, self._read()
        if self.now >= self.last:
            raise TimingDone

    def seconds_per_step(self) -> float:
        """Seconds per step; infinite if training ended before a step was timed."""
        done = self.now - self.first
        return (self._read() - self.since) / done if done > 0 else math.inf


AUTO = "auto"
STARTING = 15.0
"""Seconds needed to start several processes: each imports torch, and they connect to each other."""
WORTH = 1.1
"""Factor by which training in one process must be slower than in several for several to be chosen."""


@dataclass(frozen=True)
class ProcessNumber(FolderNote):
    """The number of processes of a training run, stored in the checkpoint folder.

    Attributes:
        number: number of processes.
        why: the reason for this number, as a sentence.
        milliseconds: milliseconds of a step, by each number of processes that was timed.
    """

    FILE = "processes.json"

    number: int
    why: str
    milliseconds: dict[str, float]


def most(shards: int, slots: int | None) -> int:
    """Largest number of processes to try: as many as can run at a time, but no more than there are virtual shards, as
    they would share the rows of one.

    Args:
        slots: number of tasks that Spark runs at a time; None for the cores of this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(shards, cores if slots is None else slots)


def choose(
    limit: int, steps: int, seconds: float, alone: Callable[[], float], together: Callable[[int], float]
) -> ProcessNumber:
    """Choose the number of processes for a training run.

    Args:
        limit: see `most`.
        steps: number of steps of the whole training, at most.
        seconds: time limit of the training.
        alone: function that returns the seconds of a step in this process.
        together: function that returns the seconds of a step in a given number of processes, infinite if that can't be
            timed; it starts them, and raises InputError if they can't run.
    """
    if limit < 2:
        return ProcessNumber(1, "there is one core, or one slot of Spark's", {})
    one = alone()
    total, known = min(one * steps, seconds), {"1": round(1000 * one, 4)}
    if not total * (1 - 1 / limit) > STARTING:
        start = f"starting {limit} about {_seconds_text(STARTING)}"
        why = f"training takes at most {_seconds_text(total)} in one process, and {start}"
        return ProcessNumber(1, why, known)
    try:
        several = together(limit)
    except InputError as e:
        return ProcessNumber(1, f"{limit} processes can't train here: {e}", known)
    if not math.isfinite(several):
        return ProcessNumber(1, f"training ends before a step of {limit} processes could be timed", known)
    known[str(limit)] = round(1000 * several, 4)
    figures = f"a step takes {1000 * one:.3g} ms in one process, and {1000 * several:.3g} ms in {limit}, with the sum over them"
    if several * steps + STARTING < one * steps / WORTH:
        return ProcessNumber(limit, figures, known)
    return ProcessNumber(1, figures, known)


def _seconds_text(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else "a second"
