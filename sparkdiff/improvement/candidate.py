"""What an arm brings: candidates that could ship, and the gains of all that it measured on validation rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.splits import VALIDATION
from sparkdiff.evaluation.ledger import Ledger, LedgerTrial
from sparkdiff.improvement.ground import Ground, Measurement, allowed
from sparkdiff.report.shares import share_of

ROUNDING = 1e-9
"""Share of the original's loss below which two pipelines differ by the order of additions only."""


NAME = 40
"""Characters of a candidate's name in a table."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pipeline that could ship.

    Attributes:
        arm, name: where it comes from, and what it is, in words for a table.
        found: its figures; `found.model` is the pipeline.
        column: of its validation gains, among those of the arm's step.
        changes: what was added or deleted, in words; empty where it has the original's stages.
        exact: whether it has the outputs of the pipeline that it was made of, but for rounding.
    """

    arm: str
    name: str
    found: Measurement
    column: int
    changes: str = ""
    exact: bool = False

    @property
    def model(self) -> Any:
        return self.found.model


@dataclasses.dataclass(frozen=True)
class Step:
    """The result of one step of an arm.

    Attributes:
        gains: (C, B) block sums of w * (loss of the original - loss) of everything that was measured on validation rows.
        hope: the share of the original's metric that a next step may still gain beside it, as the arm expects.
        says: how it went, in a few words.
        trains: whether a next step trains what was found, which may gain about what training gained on the original.
        seconds: that it took.
        ended: seconds after the begin of the improvement.
        learned: what else the summary tells of it, in values that JSON can hold.
    """

    arm: str
    number: int
    gains: Tensor
    trials: Sequence[LedgerTrial]
    candidates: tuple[Candidate, ...]
    hope: float
    says: str
    trains: bool = False
    seconds: float = 0.0
    ended: float = 0.0
    learned: dict[str, Any] = dataclasses.field(default_factory=dict)


def nothing(
    ground: Ground, arm: str, number: int, says: str, hope: float = 0.0, *, ended: str = "", trains: bool = False,
    late: bool = False,
) -> Step:  # fmt: skip
    """A step without a candidate, that measured nothing on validation rows.

    Args:
        ended: "failed" or "stopped" where the arm cannot go on.
        late: the step's time was over.
    """
    none = torch.zeros((0, len(ground.start.scores[VALIDATION].weights)), dtype=torch.float64)
    return Step(
        arm, number, none, (), (), hope, says, trains, learned={"late": late} | ({ended: True} if ended else {})
    )


def one_column(ground: Ground, found: Measurement) -> Tensor:
    """(1, B) the gains of a pipeline over the original; zeros where they differ by rounding only."""
    return rounded(ground, (ground.start.scores[VALIDATION].blocks - found.scores[VALIDATION].blocks)[None])


def rounded(ground: Ground, gains: Tensor) -> Tensor:
    """Gains (C, B) without columns that are nothing but another order of additions."""
    least = ROUNDING * float(ground.start.scores[VALIDATION].blocks.abs().sum())
    return torch.where(gains.abs().sum(1, keepdim=True) <= least, 0.0, gains)


def whole_ledger(ground: Ground, steps: Sequence[Step]) -> tuple[Ledger, dict[int, Candidate]]:
    """All that was measured, and the candidates by their column."""
    weights = ground.start.scores[VALIDATION].weights
    gains = [torch.zeros((0, len(weights)), dtype=torch.float64)]
    trials, candidates, first = list[LedgerTrial](), dict[int, Candidate](), 0
    for step in steps:
        gains.append(step.gains)
        trials += [t._replace(arm=f"{step.arm} {t.arm}".strip()) for t in step.trials]
        candidates |= {first + c.column: c for c in step.candidates}
        first += len(step.gains)
    whole = torch.cat(gains)
    best = max(candidates, key=lambda k: float(whole[k].sum()), default=-1)
    return Ledger(whole, weights, trials, best if best >= 0 and float(whole[best].sum()) > 0 else -1), candidates


def share(ground: Ground, candidate: Candidate) -> float:
    """The gain of a candidate on validation rows as a share of the original's metric; 0 where they differ by rounding only."""
    if not bool(one_column(ground, candidate.found).any()):
        return 0.0
    before, after = ground.start.scores[VALIDATION], candidate.found.scores[VALIDATION]
    return share_of(before.mean - after.mean, before.mean)


def best_of(ground: Ground, steps: Sequence[Step]) -> Candidate | None:
    """The candidate with the largest gain, of those that are not too costly to serve; None where none gains."""
    found = [c for step in steps for c in step.candidates if allowed(ground, c.found.cost)]
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
