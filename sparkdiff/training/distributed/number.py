"""How many processes train where numProcesses='auto': as many as end the training soonest, the time to start them included.

Every step of several processes is a sum over them, which on slow networks and on busy machines takes longer than the step. So
nothing is assumed: a step is timed in this process and, where several could save more than it takes to start them, in several.
What the clock decided is kept in the run's folder, which a resumed run reads: it trains in as many processes as before.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from sparkdiff.errors import InputError
from sparkdiff.store.run_folder import FolderNote

AUTO = "auto"
STARTING = 15.0
"""Seconds that starting several processes takes: each imports torch, and they find each other."""
WORTH = 1.1
"""How many times as long one process must take for several to be chosen."""


@dataclass(frozen=True)
class ProcessNumber(FolderNote):
    """
    Attributes:
        number: of processes.
        why: in a sentence.
        milliseconds: of a step, by the number of processes that were timed.
    """

    FILE = "processes.json"

    number: int
    why: str
    milliseconds: dict[str, float]


def most(shards: int, slots: int | None) -> int:
    """How many processes may be tried: more than the virtual shards would share rows.

    Args:
        slots: tasks that Spark runs at a time; None for the cores of this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(shards, cores if slots is None else slots)


def choose(
    limit: int, steps: int, seconds: float, alone: Callable[[], float], together: Callable[[int], float]
) -> ProcessNumber:  # fmt: skip
    """The number of processes for a training.

    Args:
        limit: see `most`.
        steps: of the whole training, at most.
        seconds: that it may take.
        alone: seconds of a step in this process.
        together: seconds of a step in so many processes, infinite where that can't be timed; it starts them, and raises
            InputError where they can't run.
    """
    if limit < 2:
        return ProcessNumber(1, "there is one core, or one slot of Spark's", {})
    one = alone()
    total, known = min(one * steps, seconds), {"1": round(1000 * one, 4)}
    if not total * (1 - 1 / limit) > STARTING:
        why = f"training takes at most {_told(total)} in one process, and starting {limit} about {_told(STARTING)}"
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


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else "a second"
