"""Tests whether the tuned network is worse than the original on slices (validation rows with one value of a `guardCols`
column) or on reference rows (further rows that the user passed, on which the metric must not get worse).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data import blocks
from sparkdiff.data.stream.manifest import BatchColumn
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.row_margins import MarginModel
from sparkdiff.evaluation.split_batches import Data, scalar
from sparkdiff.evaluation.units import Kind, units_of
from sparkdiff.objectives.metric import Metric, influence


@dataclass(frozen=True)
class Change:
    """The metric of both networks on a set of rows, and evidence whether it got worse.

    Attributes:
        column, value: column and value of the slice; both None if the set is a whole split. The value of a slice of
            nulls is None, too.
        rows: number of rows of weight > 0.
        units: the effective number, given the weights, of units that the metric counts: rows, or blocks of groups or of
            time (with many groups, several share a block); see `sparkdiff.evaluation.units`.
        before, after: the metric, None without rows or if it is undefined on them (for example the area under the ROC
            curve with one class).
        gain: improvement of the metric, in its units; larger is better.
        error: standard error of the gain, computed from the blocks; None with fewer than two blocks.
        p: p-value of the null hypothesis that the metric doesn't get worse, adjusted for the number of sets; None if
            the metric is undefined or the units are too few for a test, 0 if the metric was finite and no longer is.
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
        return "the reference rows" if self.column is None else f"{self.column} = {value_text(self.value)}"


def value_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def changes(
    old: MarginModel,
    new: MarginModel,
    data: Data,
    split: str,
    metric: Metric,
    columns: Sequence[BatchColumn],
    *,
    unit: Kind,
    level: float,
    joined: int = 1,
    seed: int = 0,
) -> list[Change]:
    """Changes of the metric on every slice by these columns, or on the whole split if there are no columns; one pass.

    Args:
        unit: "rows", "groups" or "blocks" (of time): the kind of unit that the guard counts.
        level, joined: see `guard.worsening`.
    """
    return changes_from_sums(
        sums(old, new, data, split, metric, columns, unit=unit), level=level, joined=joined, seed=seed
    )


@torch.no_grad()
def sums(
    old: MarginModel,
    new: MarginModel,
    data: Data,
    split: str,
    metric: Metric,
    columns: Sequence[BatchColumn],
    *,
    unit: Kind,
) -> "SliceSums":
    """Sums of both networks' metric per slice by these columns and per block of the guard (a set of rows whose sum
    counts as one independent observation); one pass.

    The split may be larger than memory; for a metric that is no mean over rows, the numbers that it needs of each row
    are kept.
    """
    sets: list[tuple[str | None, Any]] = [(c.column, value) for c in columns for value in c.values] or [(None, None)]
    starts = [sum(len(c.values) for c in columns[:k]) for k in range(len(columns))]
    found = _Sums(len(sets))
    kept: list[tuple[Tensor, ...]] = []
    pipelines = [(network, metric.of(network.head)) for network in (old, new)]
    for batch, label, weight, block in data.batches(split):
        values = data.values(batch)
        own = [bound.by_row(network.margin(dict(values)), label, weight) for network, bound in pipelines]
        codes = [start + scalar(batch, c.name) for start, c in zip(starts, columns, strict=True)]
        places = torch.stack(codes) if codes else torch.zeros((1, len(label)), dtype=torch.int64)
        if metric.rows is None:
            used = weight > 0
            kept.append(tuple(x[used] for x in (*own, label, weight, block, places.T)))
            continue
        first, second = (metric.sign * each * weight for each in own)
        for place in places:
            found.add(place, first, first - second, weight, block)
    units = found.units(unit)
    if kept:
        one, other, label, weight, block, places = (torch.cat(parts) for parts in zip(*kept, strict=True))
        for k in range(len(sets)):
            rows = (places == k).any(1)
            y, w, where = label[rows], weight[rows], block[rows]
            pair = [column[rows] for column in (one, other)]
            first, second = (metric.sign * w * influence(metric, column, y, w) for column in pair)
            found.add(torch.full_like(where, k), first, first - second, w, where)
            units[k] = round(units_of(metric, pair, (y, y), w, None if unit == "rows" else where, unit).number)
    return SliceSums(tuple(sets), found.loss, found.gains, found.weights, found.rows.sum(1), units, metric.sign)


def changes_from_sums(
    of: "SliceSums", *, level: float, joined: int = 1, dependence: float = 1.0, seed: int = 0
) -> list[Change]:
    """Change on each slice, with its p-value. Slices with fewer than guard.MIN_UNITS units aren't tested, and p-values
    are not adjusted for them.

    Args:
        level, joined, dependence: see `guard.worsening`.
    """
    defined, finite = of.loss.isfinite().all(1), of.gains.isfinite().all(1)
    looked_at = defined & finite & (of.units >= guard.MIN_UNITS)
    p = guard.worsening(of.gains[looked_at], level=level, joined=joined, dependence=dependence, seed=seed)
    adjusted = dict(zip(looked_at.nonzero()[:, 0].tolist(), p.tolist(), strict=True))
    adjusted |= dict.fromkeys((defined & ~finite).nonzero()[:, 0].tolist(), 0.0)
    return [
        _change(
            *name, int(of.rows[i]), int(of.units[i]), of.loss[i], of.gains[i], of.weights[i], adjusted.get(i), of.sign
        )
        for i, name in enumerate(of.sets)
    ]


@dataclass(frozen=True)
class SliceSums:
    """Sums of a metric per slice, and per block of the guard.

    Attributes:
        sets: column and value of each of the S slices.
        loss, gains, weights: (S, B) sums of weight * loss of the old network, of weight * gain, and of the weights.
        rows, units: (S,) numbers of rows and units of weight > 0, see `Change`.
        sign: sign of the metric, -1 if larger is better.
    """

    sets: tuple[tuple[str | None, Any], ...]
    loss: Tensor
    gains: Tensor
    weights: Tensor
    rows: Tensor
    units: Tensor
    sign: float

    def __add__(self, other: "SliceSums") -> "SliceSums":
        """Sums over the rows of both, which must not share a row or a unit."""
        names = ("loss", "gains", "weights", "rows", "units")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    def scaled(self, factor: float) -> "SliceSums":
        """The sums that weights multiplied by this factor would give."""
        return replace(self, loss=factor * self.loss, gains=factor * self.gains, weights=factor * self.weights)


class _Sums:
    """Sums per slice and block, (slices, B)."""

    def __init__(self, sets: int):
        size = (sets, blocks.MAX_BLOCKS)
        self.loss, self.gains, self.weights, self.squares = (torch.zeros(size, dtype=torch.float64) for _ in range(4))
        self.rows = torch.zeros(size, dtype=torch.int64)

    def add(self, place: Tensor, loss: Tensor, gain: Tensor, weight: Tensor, block: Tensor) -> None:
        at = place * blocks.MAX_BLOCKS + block
        for sums, x in (
            (self.loss, loss),
            (self.gains, gain),
            (self.weights, weight),
            (self.squares, weight.square()),
            (self.rows, (weight > 0).long()),
        ):
            sums.view(-1).index_add_(0, at, x)

    def units(self, unit: str) -> Tensor:
        """Effective number of rows or blocks, (slices,)."""
        squares = (self.squares if unit == "rows" else self.weights.square()).sum(1)
        return (self.weights.sum(1).square() / squares.clamp_min(1e-300)).round().long()


def _change(
    column: str | None,
    value: Any,
    rows: int,
    units: int,
    loss: Tensor,
    gains: Tensor,
    weights: Tensor,
    p: float | None,
    sign: float,
) -> Change:
    if not rows or not bool(loss.isfinite().all()):
        return Change(column, value, rows, units, None, None, None, None, None)
    total, used = float(weights.sum()), int((weights > 0).sum())
    before, gain = float(loss.sum()) / total, float(gains.sum()) / total
    error = float((gains - gain * weights).norm()) * math.sqrt(used / (used - 1)) / total if used > 1 else None
    return Change(column, value, rows, units, sign * before, sign * (before - gain), gain, error, p)
