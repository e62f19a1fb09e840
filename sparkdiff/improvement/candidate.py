"""An arm and what it brings: pipelines that could ship, how each was made, and its figures on the rows that explore."""

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
"""Share of the original's loss below which two pipelines differ by the order of additions only."""


NAME = 40
"""Characters of a candidate's name in a table."""


@dataclasses.dataclass(frozen=True)
class Making:
    """The way in which a candidate is made from rows: all that a person could have written down before.

    Attributes:
        arm: whose `make` is the first step.
        settings: of this step, in values that JSON can hold.
        recipe, epochs: of the training of all stages together that follows; None and 0 where none does.
    """

    arm: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None
    epochs: int = 0

    @property
    def key(self) -> str:
        """A short hash, the same once JSON has held it."""
        return identity(json.loads(json.dumps(self.asdict())))[:16]

    def asdict(self) -> dict[str, Any]:
        """In values that JSON can hold."""
        return dataclasses.asdict(self)

    @staticmethod
    def of(told: Mapping[str, Any]) -> "Making":
        """The way that `asdict` has told."""
        return Making(**{**told, "recipe": told["recipe"] and Recipe(**told["recipe"])})


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pipeline that could ship.

    Attributes:
        arm, name: where it comes from, and what it is, in words for a table.
        found: its figures; `found.model` is the pipeline.
        making: how it is made from other rows.
        changes: what was added or deleted, in words; empty where it has the original's stages.
        exact: whether it has the outputs of the pipeline that it was made of, but for rounding.
        value: the metric as a loss that another training like this one may have on the rows that explore, where that of `found`
            is the best of many epochs.
        seconds: about what making and measuring it takes.
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
        hope: the share of the original's metric that a next step may still gain beside it, as the arm expects.
        says: how it went, in a few words.
        trains: whether a next step trains what was found, which may gain about what training gained on the original.
        seconds: that it took.
        ended: seconds after the begin of the improvement.
        learned: what else the summary tells of it, in values that JSON can hold.
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
        ended: "failed" or "stopped" where the arm cannot go on.
        late: the step's time was over.
    """
    return Step(arm, number, (), hope, says, trains, learned={"late": late} | ({ended: True} if ended else {}))


def differs(ground: Ground, found: Measurement) -> bool:
    """Whether a pipeline's losses differ from those of the ground's model by more than another order of additions."""
    before = ground.start.scores[VALIDATION].blocks
    apart = (before - found.scores[VALIDATION].blocks).abs().sum()
    return bool(apart > ROUNDING * before.abs().sum())


def share(ground: Ground, candidate: Candidate) -> float:
    """The gain of a candidate on the rows that explore, as a share of the metric there; 0 where they differ by rounding only."""
    if not differs(ground, candidate.found):
        return 0.0
    before = ground.start.scores[VALIDATION].mean
    after = candidate.found.scores[VALIDATION].mean if candidate.value is None else candidate.value
    return share_of(before - after, before)


def candidates_of(steps: Sequence[Step]) -> list[Candidate]:
    """All candidates, in the order in which they were found."""
    return [candidate for step in steps for candidate in step.candidates]


def best_of(ground: Ground, steps: Sequence[Step]) -> Candidate | None:
    """The candidate with the largest gain, of those that are not too costly to serve; None where none gains."""
    found = [c for c in candidates_of(steps) if allowed(ground, c.found.cost)]
    best = max(found, key=lambda c: share(ground, c), default=None)
    return best if best is not None and share(ground, best) > 0 else None


def shortened(names: str, most: int = NAME) -> str:
    """The first of some names, separated by commas, that fit in a line of a table, and how many more there are."""
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
