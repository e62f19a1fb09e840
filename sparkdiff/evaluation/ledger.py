"""The figures that the guard decides on: block sums of gains by candidate and epoch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

FAR = 0.01
"""Share of the original's validation metric beyond which a candidate's first epoch may have diverged."""


class LedgerTrial(NamedTuple):
    """One column of a ledger: a candidate after an epoch (1 or later), in one arm of an experiment."""

    candidate: int
    epoch: int
    arm: str = ""


@dataclass(frozen=True)
class Ledger:
    """Block sums of everything that was tried, wherever the rows were measured.

    Attributes:
        gains: (C, B) per column the block sums of w * (loss of the original - loss).
        weights: (B,) block sums of w.
        trials: what each of the C columns is.
        chosen: the column with the largest mean gain, the first of those that gain the same; -1 where none gains.
    """

    gains: Tensor
    weights: Tensor
    trials: Sequence[LedgerTrial]
    chosen: int

    def over(self, shift: Tensor) -> "Ledger":
        """The ledger of gains over another pipeline than the original, whose losses (B,) are larger by `shift`."""
        gains = self.gains + shift
        gained = self.chosen >= 0 and float(gains[self.chosen].sum()) > 0
        return replace(self, gains=gains, chosen=self.chosen if gained else -1)

    def measured_again(self, gains: Tensor) -> "Ledger":
        """The ledger with other block sums (B,) for the chosen column, where it was first measured on rounded rows."""
        if self.chosen < 0:
            return self
        every = self.gains.clone()
        every[self.chosen] = gains
        return replace(self, gains=every)


def candidate_count(history: Sequence[Mapping[str, Any]]) -> int:
    """The number of candidates in a history of one row per epoch and candidate."""
    return len({row["candidate"] for row in history})


def far_off(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first epochs of candidates that went on, whose validation metric is far from the original's."""
    before = {row["candidate"]: row["validationMetric"] for row in history if not row["epoch"]}
    went_on = {row["candidate"] for row in history if row["epoch"] == 2}
    first = [row for row in history if row["epoch"] == 1 and row["candidate"] in went_on]
    return [
        row for row in first if not math.isclose(row["validationMetric"], before[row["candidate"]], rel_tol=FAR)
    ]  # fmt: skip


def diverged(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For each diverged candidate, the row of the history in which it diverged: its last row, if a figure of it is not finite;
    else its first epoch, if the training loss is more than twice the original's there, and in the next epoch, too. Steps that are
    too long lead anywhere, so that the second loss may be smaller than the first.
    """
    before = {row["candidate"]: row["trainLoss"] for row in history if not row["epoch"]}

    def large(row: Mapping[str, Any]) -> bool:
        original = before[row["candidate"]]
        return bool(row["trainLoss"] - original > abs(original))

    second = {row["candidate"] for row in history if row["epoch"] == 2 and large(row)}
    lost = [row for row in history if row["epoch"] == 1 and row["candidate"] in second and large(row)]
    broken = [
        row
        for row in history
        if row["epoch"] and not (math.isfinite(row["trainLoss"]) and math.isfinite(row["validationMetric"]))
    ]
    return list({row["candidate"]: row for row in (*lost, *broken)}.values())
