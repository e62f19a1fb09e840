"""Arms (ways to improve a pipeline, which compete) and their results: candidates (pipelines that could ship), with the recipe by
which each was made and its figures on the exploring rows."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import VALIDATION
from sparkdiff.improvement.arm_context import ArmContext, Measurement, is_cost_allowed
from sparkdiff.improvement.budget import Limit
from sparkdiff.report import share_of
from sparkdiff.store.identity import identity
from sparkdiff.training.recipes import Recipe

ROUNDING = 1e-9
"""Relative difference of losses up to which two pipelines count as equal: rounding errors of sums may be as large."""


NAME = 40
"""Largest number of characters of a candidate's name in a table."""


@dataclasses.dataclass(frozen=True)
class CandidateRecipe:
    """Recipe by which a candidate can be made again from other rows. It contains nothing that is fitted to rows.

    Attributes:
        arm: name of the arm whose `make` is the first step.
        settings: settings of the first step, as JSON values.
        recipe, epochs: recipe and number of epochs of the second step, in which all stages are trained together; None and 0 if
            there is no second step.
    """

    arm: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None
    epochs: int = 0

    @property
    def key(self) -> str:
        """A short hash of the fields, which is the same after a round trip through JSON."""
        return identity(json.loads(json.dumps(dataclasses.asdict(self))))[:16]

    @staticmethod
    def of(told: Mapping[str, Any]) -> "CandidateRecipe":
        """Recipe from the result of `asdict`."""
        return CandidateRecipe(**{**told, "recipe": told["recipe"] and Recipe(**told["recipe"])})


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pipeline that could ship.

    Attributes:
        arm, name: the arm that made the candidate, and the candidate's readable name in a table.
        found: its figures on the exploring rows; `found.model` is the pipeline.
        making: recipe by which it can be made again from other rows.
        changes: text that names the added or deleted stages; empty if it has the original's stages.
        exact: True if its outputs equal those of the pipeline from which it was made, except for rounding.
        value: metric, as a loss, on the exploring rows to be expected of another training like this one. It is set if
            the metric in `found` is the best of many epochs, and therefore too optimistic; else None.
        seconds: estimated seconds to make and measure the candidate again.
    """

    arm: str
    name: str
    found: Measurement
    making: CandidateRecipe
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
        number: number of the step, from 0.
        hope: further gain that the arm expects from its next step, as a share of the original's metric.
        says: a short report.
        trains: True if the next step trains the weights of this step's result. Its expected gain is added to `hope`:
            about as much as training the original gained.
        seconds: duration of the step.
        ended: end of the step, in seconds after the beginning of the improvement.
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
) -> Step:
    """A step without a candidate.

    Args:
        ended: "failed" or "stopped" if the arm can't continue after this step; else empty.
        late: True if the step ended because its time was over.
    """
    return Step(arm, number, (), hope, says, trains, learned={"late": late} | ({ended: True} if ended else {}))


def differs(context: ArmContext, found: Measurement) -> bool:
    """True if a pipeline's validation losses differ from those of the context's model by more than rounding."""
    before = context.start.scores[VALIDATION].blocks
    apart = (before - found.scores[VALIDATION].blocks).abs().sum()
    return bool(apart > ROUNDING * before.abs().sum())


def share(context: ArmContext, candidate: Candidate) -> float:
    """Gain of a candidate on the exploring rows, as a share of the original's metric there; 0 if it is only rounding."""
    if not differs(context, candidate.found):
        return 0.0
    before = context.start.scores[VALIDATION].mean
    after = candidate.found.scores[VALIDATION].mean if candidate.value is None else candidate.value
    return share_of(before - after, before)


def candidates_of(steps: Sequence[Step]) -> list[Candidate]:
    """All candidates, in the order in which they were found."""
    return [candidate for step in steps for candidate in step.candidates]


def best_of(context: ArmContext, steps: Sequence[Step], seconds: float = math.inf) -> Candidate | None:
    """The candidate with the largest gain among those that `maxServingCost` allows; None if no candidate gains.

    Args:
        seconds: largest time to make and measure the candidate again.
    """
    found = [c for c in candidates_of(steps) if is_cost_allowed(context, c.found.cost) and c.seconds <= seconds]
    best = max(found, key=lambda c: share(context, c), default=None)
    return best if best is not None and share(context, best) > 0 else None


def shortened(names: str, most: int = NAME) -> str:
    """Shorten a list of names (separated by commas) to the first names that fit in a line, and the number of further names."""
    each = names.split(", ")
    shown = each[:1]
    while len(", ".join(each[: len(shown) + 1])) <= most and len(shown) < len(each):
        shown = each[: len(shown) + 1]
    more = len(each) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to improve a pipeline.

    Attributes:
        name: a key of `improvement_options.ARMS`.
        steps: number of steps.
        share: share of the budget, relative to the shares of the other arms.
        refusal: context -> the reason why the arm can't be tried on this context; empty if it can be tried.
        run: (context, number of the step, limit, all earlier steps of all arms) -> the result of the step.
        make: (context, settings of a `CandidateRecipe`) -> the pipeline, made again from the training rows of the context.
        fits: shortest time of the first step, as a multiple of the time to fit and measure the pipeline.
        repeats: True if making its candidate again takes about as long as the step that found it.
        alone: True for the only arm of a run; then an error or Ctrl-C in a step ends the run.
    """

    name: str
    steps: int
    share: float
    refusal: Callable[[ArmContext], str]
    run: Callable[[ArmContext, int, Limit, Sequence[Step]], Step]
    make: Callable[[ArmContext, Mapping[str, Any]], Any]
    fits: float = 0.0
    repeats: bool = False
    alone: bool = False
