"""Sums over the rows that each fold trains on: weights, means, standard deviations, which columns are constant."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sparkdiff.tuning.solvers.problem import Chunk, Chunks, Solution


@dataclass(frozen=True)
class Moments:
    """What a first pass over the rows tells; index f stands for the rows that fold f trains on, all but its own."""

    weight: Tensor
    """Sum of the weights: (folds,)"""
    squares: Tensor
    """Sum of their squares: (folds,)"""
    low: Tensor
    high: Tensor
    """Smallest and largest value of each column where the weight isn't 0: (folds, d)"""
    labels: Tensor
    """Smallest and largest label likewise: (folds, 2)"""
    classes: Tensor
    """Sum of the weights of each label 0, 1, ...: (folds, classes); empty without classes."""
    centre: Tensor
    scale: Tensor
    """Mean and standard deviation of each column over all rows, 1 for a constant column: (d,). Only to compute well."""
    label_centre: Tensor
    label_scale: Tensor
    rows: int

    @property
    def usable(self) -> bool:
        """Whether all rows are finite, and no weight is negative."""
        sums = (self.weight, self.low, self.high, self.labels, self.centre, self.scale, self.label_scale)
        return all(bool(torch.isfinite(s).all()) for s in sums) and bool((self.weight > 0).all())

    @property
    def constant(self) -> Tensor:
        """Columns with a single value: (folds, d)."""
        return self.low == self.high

    @property
    def unbiased(self) -> Tensor:
        """By how much Spark's Summarizer multiplies the population's variance: (folds,)."""
        return self.weight / (self.weight - self.squares / self.weight).clamp_min(torch.finfo(torch.float64).tiny)


def moments(chunks: Chunks, folds: int, classes: int = 0) -> Moments:
    groups = folds + 1  # the last one: rows that every fold trains on
    sums: list[Tensor] = []
    low = high = origin = torch.empty(0)
    total = 0
    for chunk in chunks():
        if len(chunk.label) == 0:
            continue
        x, y, w = chunk.x, chunk.label, chunk.weight
        # One where a row is held out of this fold, the last column for rows of none: (n, folds + 1).
        member = functional.one_hot(torch.where(chunk.fold < 0, folds, chunk.fold), groups).to(torch.float64)
        if not sums:
            origin = torch.cat([x.mean(0), y.mean().reshape(1)])
            low = torch.full((groups, x.shape[1] + 1), torch.inf, dtype=torch.float64)
            high = -low
        both = torch.cat([x, y[:, None]], 1)
        moved = both - origin
        own = member * w[:, None]
        known = classes > 0 and bool(((y >= 0) & (y < classes) & (y == y.floor())).all())
        counts = (
            own.T @ functional.one_hot(y.long(), classes).to(x.dtype)
            if known
            else own.new_full((groups, classes), torch.nan)
        )
        new = [own.sum(0), own.T @ w, own.T @ moved, own.T @ moved.square(), counts]
        if bool((w < 0).any()):
            new[0] = new[0] * torch.nan
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        total += len(y)
        for group in range(groups):
            rows = (member[:, group] > 0) & (w != 0)
            if bool(rows.any()):
                low[group] = torch.minimum(low[group], both[rows].amin(0))
                high[group] = torch.maximum(high[group], both[rows].amax(0))
    weight, squares, first, second, counts = sums
    mean = first.sum(0) / weight.sum()
    deviation = (second.sum(0) / weight.sum() - mean.square()).clamp_min(0).sqrt()
    reach = high.amax(0) - low.amin(0)
    deviation = torch.maximum(deviation, 1e-6 * reach)  # where the first rows are far off, squares lose their digits
    deviation = torch.where(reach == 0, 1.0, deviation)
    centre = torch.where(reach == 0, low.amin(0), mean + origin)
    others = [[g for g in range(groups) if g != f] for f in range(folds)]
    least = torch.stack([low[o].amin(0) for o in others])
    most = torch.stack([high[o].amax(0) for o in others])
    return Moments(
        weight=left_out(weight),
        squares=left_out(squares),
        low=least[:, :-1],
        high=most[:, :-1],
        labels=torch.stack([least[:, -1], most[:, -1]], 1),
        classes=left_out(counts),
        centre=centre[:-1],
        scale=deviation[:-1],
        label_centre=centre[-1],
        label_scale=deviation[-1],
        rows=total,
    )


def failed(found: Moments, sets: int = 1) -> Solution:
    """What stands for a model that could not be solved; `sets` are the rows of its matrix of coefficients."""
    nothing = torch.full((sets, len(found.centre)), torch.nan, dtype=torch.float64)
    return Solution(
        nothing[0] if sets == 1 else nothing, nothing[0, 0] if sets == 1 else nothing[:, 0], torch.nan, False
    )


def left_out(sums: Tensor) -> Tensor:
    """(folds + 1, ...) sums of the groups -> (folds, ...) sums over all groups but one's own."""
    return torch.stack([sums[[g for g in range(len(sums)) if g != f]].sum(0) for f in range(len(sums) - 1)])


def gram(chunks: Chunks, folds: range, found: Moments) -> Iterator[tuple[int, Tensor]]:
    """For each of these folds the weighted sums of products of the columns, the label and one, each moved and scaled:
    (d + 2, d + 2), over the rows that it trains on.
    """
    size = len(found.centre) + 2
    sums = torch.zeros(len(folds) + 1, size, size, dtype=torch.float64)  # the last one: rows that all of them train on
    for chunk in chunks():
        z = augmented(chunk, found)
        for place, group in enumerate([*folds, None]):
            rows = (chunk.fold < folds.start) | (chunk.fold >= folds.stop) if group is None else chunk.fold == group
            own = z[rows]
            sums[place].addmm_((own * chunk.weight[rows, None]).T, own)
    for place, fold in enumerate(folds):
        total = torch.zeros(size, size, dtype=torch.float64)
        for other in range(len(sums)):
            if other != place:
                total += sums[other]
        yield fold, total


def augmented(chunk: Chunk, found: Moments) -> Tensor:
    x = (chunk.x - found.centre) / found.scale
    y = (chunk.label - found.label_centre) / found.label_scale
    return torch.cat([x, y[:, None], torch.ones_like(y)[:, None]], 1)
