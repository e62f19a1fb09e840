"""Score tests: estimated reduction of the loss by an effect of one column, or of two columns together, in one pass over the rows.

One Newton step from zero lowers the loss of a cell (the rows with one value, or one pair of values) by half of (sum of
slopes)^2 / (sum of curvatures); slopes and curvatures are the first and second derivatives of the rows' losses. Under
the hypothesis of no effect, twice this reduction is distributed like the dispersion of the rows times a chi-square
variable. A score is the distance of the reduction from its mean under this hypothesis, in standard deviations.
Source: Rao, "Large sample tests of statistical hypotheses", 1948.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.parts.coding import Coding
from sparkdiff.growth.row_tensors import Split

ENOUGH = 100_000
"""Largest number of rows that a test uses; of a larger split, it uses only every second, third, ... row."""
Scored = TypeVar("Scored", bound=tuple[Any, ...])
ROUNDS = 20
"""Number of rounds of alternating fits of the main effects of two columns."""


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of the rows' losses with respect to their k margins.

    Attributes:
        pull: (k, n) weight * (-first derivative).
        curve: (k, n) weight * second derivative (curvature).
        dispersion: variance of the first derivative divided by the mean curvature; 1 if the likelihood is correctly specified.
        least: mean curvature of a row; it is added to the curvature of each cell.
    """

    pull: Tensor
    curve: Tensor
    dispersion: float
    least: float


def rows_of(split: Split) -> Split:
    """The split, or a sample of its rows if it has more than `ENOUGH` rows; a sample has no valid features."""
    step = -(-len(split) // ENOUGH)
    if step <= 1:
        return split
    which = torch.arange(0, len(split), step)
    features = split.features[:0] if isinstance(split.features, Tensor) else split.features
    return Split(features, *(t[which] for t in (split.values, split.label, split.weight, split.block, split.margin)))


def derivatives(split: Split, criterion: Criterion) -> Derivatives:
    slope, curve = criterion.slopes(split.margin, split)
    width = 1 if slope.ndim == 1 else slope.shape[1]
    used = split.weight > 0
    pull, bend = (torch.where(used, t.reshape(-1, width).T * split.weight, 0.0).contiguous() for t in (-slope, curve))
    total = float(bend.sum())
    dispersion = float(pull.square().sum()) / total if total > 0 else 1.0
    return Derivatives(pull, bend, dispersion or 1.0, total / max(width * int(used.sum()), 1))


def of_column(index: Tensor, width: int, d: Derivatives) -> float:
    """Score of the effects of a one-hot block, in addition to an intercept.

    Args:
        index: (n,) index of the entry that is 1.
        width: width of the block.
    """
    pull, curve, there = _cells(index, width, d)
    damped = curve + d.least * there
    found = (pull.square() / damped).nan_to_num(0.0).sum() - (pull.sum(1).square() / curve.sum(1)).sum()
    return _z_score(float(found), (int(there.sum()) - 1) * len(pull), _shrinkage_factor(curve, damped), d)


def of_pair(first: Tensor, second: Tensor, widths: tuple[int, int], d: Derivatives) -> float:
    """Score of the interaction of two one-hot blocks, in addition to the main effects of both.

    Args:
        first, second: (n,) index of the entry that is 1 in each block.
        widths: widths of the blocks.
    """
    pull, bare, there = (t.view(-1, *widths) for t in _cells(first * widths[1] + second, math.prod(widths), d))
    curve = bare + d.least * there
    own, other = pull.new_zeros(len(pull), widths[0], 1), pull.new_zeros(len(pull), 1, widths[1])
    rows, columns = curve.sum(2, keepdim=True), curve.sum(1, keepdim=True)
    for _ in range(ROUNDS):
        own = ((pull - curve * other).sum(2, keepdim=True) / rows).nan_to_num(0.0)
        other = ((pull - curve * own).sum(1, keepdim=True) / columns).nan_to_num(0.0)
    left = pull - curve * (own + other)
    found = float((left.square() / curve).nan_to_num(0.0).sum())
    free = int(there.sum()) - int(there.any(2).sum()) - int(there.any(1).sum()) + 1
    return _z_score(found, free * len(pull), _shrinkage_factor(bare, curve), d)


def pairs(coded: list[Coding], split: Split, criterion: Criterion, most: int) -> list[tuple[float, Coding, Coding]]:
    """All pairs of columns with different names and at most `most` cells, with their scores; largest score first.

    If a column is available both as a number and as a category, each pair uses the form with the larger score.
    """
    d = derivatives(split, criterion)
    index = {c: c.index(split) for c in coded}
    found = [
        (of_pair(index[a], index[b], (a.width, b.width), d), a, b)
        for a, b in combinations(coded, 2)
        if a.column.name != b.column.name and a.width * b.width <= most
    ]
    return _once(found, lambda of: frozenset((of[1].column.name, of[2].column.name)))


def columns(coded: list[Coding], split: Split, criterion: Criterion) -> list[tuple[float, Coding]]:
    """All columns with their scores, largest score first. If a column is available both as a number and as a category, only the
    form with the larger score is listed.
    """
    d = derivatives(split, criterion)
    found = [(of_column(c.index(split), c.width, d), c) for c in coded]
    return _once(found, lambda of: of[1].column.name)


def _once(found: Sequence[Scored], name: Callable[[Scored], Hashable]) -> list[Scored]:
    """Entries in descending order of score; of entries with the same name, only the first."""
    first: dict[Hashable, Scored] = {}
    for one in sorted(found, key=lambda of: -of[0]):
        first.setdefault(name(one), one)
    return [*first.values()]


def _cells(index: Tensor, width: int, d: Derivatives) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of pull and curvature in each cell, (k, width) each; and True for each cell with rows, (1, width)."""
    pull, curve = (torch.stack([torch.bincount(index, row, width) for row in t]) for t in (d.pull, d.curve))
    return pull, curve, (torch.bincount(index, minlength=width) > 0)[None]


def _shrinkage_factor(curve: Tensor, damped: Tensor) -> float:
    """Mean factor by which the cells' reductions of the loss shrink when `Derivatives.least` is added to their curvature."""
    return float((curve / damped)[damped > 0].mean())


def _z_score(found: float, free: int, kept: float, d: Derivatives) -> float:
    """Score: standard deviations of `found` above its mean under no effect; -inf without degrees of freedom.

    Args:
        found: twice the reduction of the loss.
        free: degrees of freedom.
        kept: factor by which `found` is shrunk, see `_shrinkage_factor`.
    """
    if free <= 0:
        return -math.inf
    return (found / (d.dispersion * kept) - free) / math.sqrt(2 * free)
