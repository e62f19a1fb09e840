"""The figures that the guard decides on: block sums of gains by candidate and epoch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor


class LedgerTrial(NamedTuple):
    """One column of a ledger: a candidate after an epoch (1 or later)."""

    candidate: int
    epoch: int


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


def diverged(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For each diverged candidate, the row of the history in which it diverged: its last row, if a figure of it is not finite;
    else its first epoch, if the training loss is more than twice the original's there, and in the next epoch, too, if there is
    one. Steps that are too long lead anywhere, so that the second loss may be smaller than the first.

    The training loss of the original is known (`trainLoss` of epoch 0) for candidates that gained nothing.
    """
    before = {row["candidate"]: row["trainLoss"] for row in history if not row["epoch"]}

    def small(row: Mapping[str, Any]) -> bool:
        original = before.get(row["candidate"], math.nan)
        return not row["trainLoss"] - original > abs(original)

    recovered = {row["candidate"] for row in history if row["epoch"] == 2 and small(row)}
    lost = [row for row in history if row["epoch"] == 1 and row["candidate"] not in recovered and not small(row)]
    broken = [
        row
        for row in history
        if row["epoch"] and not (math.isfinite(row["trainLoss"]) and math.isfinite(row["validationMetric"]))
    ]
    return list({row["candidate"]: row for row in (*lost, *broken)}.values())
