"""Where the tuned network is worse: slices of the validation rows, and rows of the past, each tested for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparkdiff import guard
from sparkdiff.losses import Objective
from sparkdiff.measure import Data, scalar
from sparkdiff.network import Network
from sparkdiff.stream import Column


@dataclass(frozen=True)
class Change:
    """The metric on a set of rows, and whether it got worse.

    Attributes:
        column, value: the slice; None and None where the set is a whole split. Null has the value None too.
        rows: of weight > 0.
        units: rows, or blocks of groups or of time that hold such rows (of many groups some share a block).
        before, after: the metric, None without rows.
        gain: before - after; error: its standard error, by block; None with fewer than two blocks.
        p: of a loss like this without a true one, adjusted for the number of sets; None where the units are too few to tell.
    """

    column: str | None
    value: Any
    rows: int
    units: int
    before: float | None
    after: float | None
    gain: float | None
    error: float | None
    p: float | None

    @property
    def name(self) -> str:
        return "the reference rows" if self.column is None else f"{self.column} = {_shown(self.value)}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@torch.no_grad()
def changes(
    old: Network, new: Network, data: Data, split: str, metric: Objective, columns: Sequence[Column], *,
    unit: str, level: float, joined: int = 1, seed: int = 0,
) -> list[Change]:  # fmt: skip
    """The metric of both networks on every slice by these columns, or on the whole split where there are none; one pass.

    Kept are sums per slice and block of the guard, so that the split may be larger than memory.

    Args:
        unit: "rows", "groups" or "blocks": what was dealt into blocks.
        level, joined: see `guard.worsening`. Slices of fewer than guard.MIN_UNITS units aren't tested and don't count.
    """
    sets: list[tuple[str | None, Any]] = [(c.column, value) for c in columns for value in c.values] or [(None, None)]
    size = (len(sets), guard.MAX_BLOCKS)
    loss, gains, weights = (torch.zeros(size, dtype=torch.float64) for _ in range(3))
    rows = torch.zeros(size, dtype=torch.int64)
    for batch, label, weight, block in data.batches(split):
        first, second = (metric.rows(n.margin(data.values(batch)), label, weight) for n in (old, new))
        first, second = (torch.where(weight > 0, x, 0.0) * weight for x in (first, second))
        start = 0
        for codes, values in [(scalar(batch, c.name), len(c.values)) for c in columns] or [
            (torch.zeros_like(block), 1)
        ]:
            at = (start + codes) * guard.MAX_BLOCKS + block
            for sums, x in ((loss, first), (gains, first - second), (weights, weight), (rows, (weight > 0).long())):
                sums.view(-1).index_add_(0, at, x)
            start += values
    counted = rows.sum(1)
    units = counted if unit == "rows" else (rows > 0).sum(1)
    tested = units >= guard.MIN_UNITS
    p = guard.worsening(gains[tested], level=level, joined=joined, seed=seed)
    adjusted = dict(zip(tested.nonzero()[:, 0].tolist(), p.tolist(), strict=True))
    return [
        _change(*sets[i], int(counted[i]), int(units[i]), loss[i], gains[i], weights[i], adjusted.get(i))
        for i in range(len(sets))
    ]


def _change(
    column: str | None, value: Any, rows: int, units: int, loss: Tensor, gains: Tensor, weights: Tensor, p: float | None
) -> Change:
    if not rows:
        return Change(column, value, 0, 0, None, None, None, None, None)
    total, used = float(weights.sum()), int((weights > 0).sum())
    before, gain = float(loss.sum()) / total, float(gains.sum()) / total
    error = float((gains - gain * weights).norm()) * math.sqrt(used / (used - 1)) / total if used > 1 else None
    return Change(column, value, rows, units, before, before - gain, gain, error, p)
