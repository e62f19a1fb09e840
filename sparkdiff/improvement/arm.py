"""What an arm is: a way to a better pipeline, in steps of rising cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Step
from sparkdiff.improvement.ground import Ground


@dataclass(frozen=True)
class Arm:
    """A way to a better pipeline.

    Attributes:
        name: a key of `settings.ARMS`.
        steps: how many there are.
        share: of the budget, relative to the others.
        refused: why it can't be tried on this ground; empty if it can.
        run: (ground, number of the step, limit, all steps of all arms before) -> the step.
        make: (ground, settings of a `Making`) -> the pipeline, fitted to the training rows of the ground.
        fits: how many times as long as fitting and measuring the pipeline a first step takes, at least.
        alone: whether it is all that is tried, so that an error or Ctrl-C in its step ends the run.
    """

    name: str
    steps: int
    share: float
    refused: Callable[[Ground], str]
    run: Callable[[Ground, int, Limit, Sequence[Step]], Step]
    make: Callable[[Ground, Mapping[str, Any]], Any]
    fits: float = 0.0
    alone: bool = False
