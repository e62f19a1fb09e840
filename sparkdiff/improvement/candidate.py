"""Arms and their results: pipelines that could ship, how each was made, and its figures on the exploring rows."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import VALIDATION
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.ground import Ground, Measurement, allowed
from sparkdiff.report import share_of
from sparkdiff.store.identity import identity
from sparkdiff.training.recipes import Recipe

ROUNDING = 1e-9
"""Share of the original's loss below which two pipelines differ only by the order of additions."""


NAME = 40
"""Largest number of characters of a candidate's name in a table."""


@dataclasses.dataclass(frozen=True)
class Making:
    """Recipe by which a candidate is made from rows: everything that a person could have written down before.

    Attributes:
        arm: the arm whose `make` is the first step.
        settings: the settings of this step, as JSON values.
        recipe, epochs: those of the training of all stages together that follows; None and 0 if none does.
    """

    arm: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None
    epochs: int = 0

    @property
    def key(self) -> str:
        """A short hash that survives a round trip through JSON."""
        return identity(json.loads(json.dumps(self.asdict())))[:16]

    def asdict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def of(told: Mapping[str, Any]) -> "Making":
        """The inverse of `asdict`."""
        return Making(**{**told, "recipe": told["recipe"] and Recipe(**told["recipe"])})


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pipeline that could ship.

    Attributes:
        arm, name: the arm that made it, and its readable name in a table.
        found: its figures; `found.model` is the pipeline.
        making: how it is made from other rows.
        changes: text on what was added or deleted; empty if it has the original's stages.
        exact: True if its outputs equal those of the pipeline that it was made of, except for rounding.
        value: expected metric, as a loss, of another training like this one on the exploring rows, if that of `found` is the best
            of many epochs.
        seconds: estimated seconds of making and measuring it.
    """

    arm: str
    name: str
    found: Measurement
    making: Making
    changes: str = ""
    exact: bool = False
    value: float | None = None
    seconds: float = 0.0

    @property
    def model(self) -> Any:
        return self.found.model


@dataclasses.dataclass(frozen=True)
class Step:
    """The result of one step of an arm.

    Attributes:
        hope: further gain that the arm expects from a next step, as a share of the original's metric.
        says: a short report.
        trains: True if a next step trains the result, which may gain about as much as training gained on the original.
        seconds: its duration.
        ended: its end, in seconds after the beginning of the improvement.
        learned: further facts for the summary, as JSON values.
    """

    arm: str
    number: int
    candidates: tuple[Candidate, ...]
    hope: float
    says: str
    trains: bool = False
    seconds: float = 0.0
    ended: float = 0.0
    learned: dict[str, Any] = dataclasses.field(default_factory=dict)


def nothing(
    arm: str, number: int, says: str, hope: float = 0.0, *, ended: str = "", trains: bool = False, late: bool = False
) -> Step:  # fmt: skip
    """A step without a candidate.

    Args:
        ended: "failed" or "stopped" if the arm cannot continue.
        late: True if the step's time was over.
    """
    return Step(arm, number, (), hope, says, trains, learned={"late": late} | ({ended: True} if ended else {}))


def differs(ground: Ground, found: Measurement) -> bool:
    """True if a pipeline's losses differ from those of the ground's model by more than rounding."""
    before = ground.start.scores[VALIDATION].blocks
    apart = (before - found.scores[VALIDATION].blocks).abs().sum()
    return bool(apart > ROUNDING * before.abs().sum())


def share(ground: Ground, candidate: Candidate) -> float:
    """Gain of a candidate on the exploring rows, as a share of the metric there; 0 if losses differ only by rounding."""
    if not differs(ground, candidate.found):
        return 0.0
    before = ground.start.scores[VALIDATION].mean
    after = candidate.found.scores[VALIDATION].mean if candidate.value is None else candidate.value
    return share_of(before - after, before)


def candidates_of(steps: Sequence[Step]) -> list[Candidate]:
    """All candidates, in the order in which they were found."""
    return [candidate for step in steps for candidate in step.candidates]


def best_of(ground: Ground, steps: Sequence[Step]) -> Candidate | None:
    """The candidate with the largest gain among those that are not too costly to serve; None if none gains."""
    found = [c for c in candidates_of(steps) if allowed(ground, c.found.cost)]
    best = max(found, key=lambda c: share(ground, c), default=None)
    return best if best is not None and share(ground, best) > 0 else None


def shortened(names: str, most: int = NAME) -> str:
    """The first names (separated by commas) that fit in a line of a table, and the number of the others."""
    each = names.split(", ")
    shown = each[:1]
    while len(", ".join(each[: len(shown) + 1])) <= most and len(shown) < len(each):
        shown = each[: len(shown) + 1]
    more = len(each) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to a better pipeline.

    Attributes:
        name: a key of `settings.ARMS`.
        steps: its number of steps.
        share: its share of the budget, relative to the other arms.
        refused: ground -> the reason why it can't be tried there; empty if it can.
        run: (ground, number of the step, limit, all earlier steps of all arms) -> the step.
        make: (ground, settings of a `Making`) -> the pipeline, fitted to the training rows of the ground.
        fits: shortest time of a first step, as a multiple of the time of fitting and measuring the pipeline.
        alone: True if it is the only arm, so that an error or Ctrl-C in its step ends the run.
    """

    name: str
    steps: int
    share: float
    refused: Callable[[Ground], str]
    run: Callable[[Ground, int, Limit, Sequence[Step]], Step]
    make: Callable[[Ground, Mapping[str, Any]], Any]
    fits: float = 0.0
    alone: bool = False
