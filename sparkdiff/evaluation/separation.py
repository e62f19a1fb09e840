"""Measures of separation: of the classes by one feature (a leak), and of training and validation rows by all features
(drift).

A slot is one entry of a vector column, or a scalar column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.objectives.lbfgs import LBFGS
from sparkdiff.stages.linear import product
from sparkdiff.tensors.rows import Rows, SparseRows, matrix, rows_at, width

LEAST = 30
"""Smallest number of rows of a class, of the rest, or of rows that differ from a feature's median, for a finding."""
STEPS = 30  # of L-BFGS
RIDGE = 1e-2
FARTHEST = 5.0  # standard deviations at which a standardised feature is clipped, so that outliers don't dominate it


def midranks(x: Tensor) -> Tensor:
    """Ranks from 1 in each column; ties share their mean rank. (n, d) -> (n, d)"""
    columns = x.T.contiguous()
    ordered = columns.sort(1).values
    return (torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True) + 1).T.double() / 2


def auc(x: Tensor, y: Tensor, classes: int) -> Tensor:
    """Area under the ROC curve of each column for each class against the rest (Mann-Whitney). (n, d), (n,) -> (d, classes)

    NaN for a class with no rows or with all rows.
    """
    member = torch.nn.functional.one_hot(y.long(), classes).to(x.dtype)
    n = member.sum(0)
    return (midranks(x).T @ member - n * (n + 1) / 2) / (n * (len(x) - n))


def leaks_class(x: Rows, y: Tensor, classes: int, bound: float) -> list[tuple[int, int, float]]:
    """(slot, class, AUC or 1 - AUC if larger) of the features that alone separate a class from the rest, i.e. above
    `bound`.
    """
    counts = torch.bincount(y.long(), minlength=classes)
    counted = (counts >= LEAST) & (len(y) - counts >= LEAST)
    slots = torch.arange(width(x))
    if isinstance(x, SparseRows):
        columns, x = x.compact()
        # With the shares p and q of entries that aren't 0 in the class and outside, the AUC is at most 1 - (1-p)(1-q)/2.
        stored = x.values != 0
        cell = x.indices[stored] * classes + y.long()[x.rows()[stored]]
        filled = torch.zeros(x.width * classes, dtype=torch.int64).index_add_(0, cell, torch.ones_like(cell))
        filled = filled.view(x.width, classes)
        outside = (filled.sum(1, keepdim=True) - filled) / (len(y) - counts).clamp_min(1)
        both_zero = (1 - filled / counts.clamp_min(1)) * (1 - outside)
        slots = ((both_zero <= 2 * (1 - bound)) & counted).any(1).nonzero()[:, 0]
        slots, dense = columns[slots], x.select(slots).to_dense()
    else:
        dense = matrix(x)
    area = torch.where(counted, auc(dense, y, classes), 0.5)
    strength = torch.maximum(area, 1 - area)
    found = (strength > bound).nonzero().tolist()
    return [(int(slots[j]), k, float(strength[j, k])) for j, k in found]


def leaks_number(x: Rows, y: Tensor, bound: float) -> list[tuple[int, str, float]]:
    """(slot, "Pearson" or "Spearman", correlation) of the features whose correlation with the label exceeds `bound` in
    absolute value.

    In a sparse column, only slots that are non-zero in most rows are considered.
    """
    if isinstance(x, SparseRows):
        columns, x = x.compact()
        filled = torch.bincount(x.indices[x.values != 0], minlength=x.width)
        slots = (filled > len(y) // 2).nonzero()[:, 0]
        slots, dense = columns[slots], x.select(slots).to_dense()
    else:
        dense = matrix(x)
        slots = torch.arange(dense.shape[1])
    if not len(slots) or len(y) < LEAST:
        return []
    varied = (dense != dense.median(0).values).sum(0) >= LEAST
    out = []
    for name, a, b in (("Pearson", dense, y[:, None]), ("Spearman", midranks(dense), midranks(y[:, None]))):
        a, b = (
            z / z.abs().amax(0) for z in (a - a.mean(0), b - b.mean(0))
        )  # scaled, so that squares neither overflow nor underflow
        r = (a * b).sum(0) / (a.square().sum(0) * b.square().sum()).sqrt()
        out += [(int(slots[j]), name, float(r[j])) for j in ((r.abs() > bound) & varied).nonzero()[:, 0].tolist()]
    return out


@dataclass(frozen=True)
class Drift:
    """Ability of a linear classifier to separate validation rows from training rows.

    Attributes:
        auc: area under the classifier's ROC curve on rows on which it was not fitted; 0.5 if they cannot be separated.
        error: the standard error of `auc`, by clusters of rows.
        shares: for each column (w,), how much each slot contributes to the difference between the mean margins of
            validation and training rows, as shares that sum to 1 over all columns.
        shifts: for each column (w,), validation mean minus training mean of each slot, in standard deviations.
    """

    auc: float
    error: float
    shares: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]


def drift(columns: Sequence[Rows], held: Tensor, cluster: Tensor) -> Drift:
    """Measure how well a classifier separates validation rows from training rows.

    The classifier is a logistic regression with a small ridge on the standardised columns, cross-fitted: the clusters
    are divided into two halves, and each half is scored by the classifier fitted on the other half. In sparse columns,
    only slots that are nonzero in at least LEAST rows are used, such as a few thousand of 2^18 hashed words. The
    standard error is that of the Mann-Whitney statistic with clustered rows (Obuchowski 1997, Biometrics 53:567).

    Args:
        columns: scalars (n,), vectors (n, d) or sparse rows.
        held: (n,) True for validation rows.
        cluster: (n,) int64, the cluster of each row; rows of a cluster are dependent and stay in the same half.
    """
    filled = [_frequent_slots(x) for x in columns]
    scaled = [
        _standardised(x.select(slots) if isinstance(x, SparseRows) else x)
        for x, slots in zip(columns, filled, strict=True)
    ]
    shift = [_mean(x, held) - _mean(x, ~held) for x in scaled]
    _, number = cluster.unique(return_inverse=True)

    def fit_and_score(own: Tensor, other: Tensor) -> tuple[list[Tensor], float, float]:
        """Weights fitted on the rows `own`; their AUC on the rows `other`, and its standard error."""
        weights = _fit([rows_at(x, own) for x in scaled], held[own])
        margin = _margin([rows_at(x, other) for x in scaled], weights)
        area, variance = auc_with_variance(margin, held[other], number[other])
        return weights, area, math.sqrt(variance)

    even, odd = (number % 2 == 0).nonzero()[:, 0], (number % 2 == 1).nonzero()[:, 0]
    (first, area, error), (second, other_area, other_error) = fit_and_score(even, odd), fit_and_score(odd, even)
    contribution = [(a + b) * s for a, b, s in zip(first, second, shift, strict=True)]
    total = sum(float(c.sum()) for c in contribution)
    shares, shifts = (
        tuple(c.new_zeros(width(x)).index_put((slots,), c) for c, slots, x in zip(of, filled, columns, strict=True))
        for of in ([c / (total or 1.0) for c in contribution], shift)
    )
    # Both areas depend on the product of the halves' shifts, so their errors are treated as fully correlated.
    return Drift((area + other_area) / 2, (error + other_error) / 2, shares, shifts)


def _frequent_slots(x: Rows) -> Tensor:
    """The slots (c,) that are nonzero in at least LEAST sparse rows; all slots of dense rows."""
    if not isinstance(x, SparseRows):
        return torch.arange(width(x))
    return (torch.bincount(x.indices[x.values != 0], minlength=x.width) >= LEAST).nonzero()[:, 0]


def auc_with_variance(margin: Tensor, positive: Tensor, cluster: Tensor) -> tuple[float, float]:
    """AUC of a margin (n,), and its variance if rows of the same cluster (n,) are dependent; (0.5, 0) if a side has no
    rows.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return 0.5, 0.0
    # A row's placement: the share of the other side's rows that it ranks correctly against.
    overall = midranks(margin[:, None])[:, 0]
    placement = torch.empty_like(margin)
    placement[positive] = (overall[positive] - midranks(margin[positive][:, None])[:, 0]) / n
    placement[~positive] = 1 - (overall[~positive] - midranks(margin[~positive][:, None])[:, 0]) / m
    area = float(placement[positive].mean())
    part = (placement - area) / torch.where(positive, m, n)
    _, number = cluster.unique(return_inverse=True)
    k = int(number.max()) + 1
    sums = torch.zeros(k, dtype=margin.dtype).index_add_(0, number, part)
    return area, float(sums.square().sum()) * k / max(k - 1, 1)


def _standardised(x: Rows) -> Rows:
    """Columns minus their mean, divided by their standard deviation, and clipped at FARTHEST; sparse columns are not
    centered, and are divided by the root mean square of their stored values.
    """
    if isinstance(x, SparseRows):
        stored = torch.bincount(x.indices, minlength=x.width)
        square = torch.zeros(x.width, dtype=x.values.dtype).index_add_(0, x.indices, x.values.square())
        scale = (square / stored.clamp_min(1)).sqrt()
        values = x.values / torch.where(scale > 0, scale, 1.0)[x.indices]
        return x.with_values(values.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST))
    x = matrix(x)
    center, spread = x.mean(0), x.std(0)
    return ((x - center) / torch.where(spread > 0, spread, 1.0)).nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)


def _mean(x: Rows, rows: Tensor) -> Tensor:
    if isinstance(x, SparseRows):
        x = x.take(rows.nonzero()[:, 0])
        return torch.zeros(x.width, dtype=x.values.dtype).index_add_(0, x.indices, x.values) / max(len(x), 1)
    return x[rows].mean(0)


def _margin(columns: Sequence[Rows], weights: Sequence[Tensor]) -> Tensor:
    return torch.stack([product(x, w) for x, w in zip(columns, weights, strict=True)]).sum(0)


def _fit(columns: Sequence[Rows], held: Tensor) -> list[Tensor]:
    """Coefficients of the logistic regression of `held` on the columns. Rows are weighted so that validation and training
    rows have the same total weight.

    The intercept is left out, because it does not affect the AUC.
    """
    weights = [torch.zeros(width(x), dtype=torch.float64, requires_grad=True) for x in columns]
    intercept = torch.zeros((), dtype=torch.float64, requires_grad=True)
    sign = held.to(torch.float64) * 2 - 1
    share = torch.where(held, 0.5 / held.sum().clamp_min(1), 0.5 / (~held).sum().clamp_min(1))
    optimizer = LBFGS([*weights, intercept], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        margin = _margin(columns, weights) + intercept
        value = (torch.nn.functional.softplus(-sign * margin) * share).sum()
        value = value + RIDGE / 2 * sum((w.square().sum() for w in weights), torch.zeros((), dtype=torch.float64))
        value.backward()
        return value

    optimizer.step(loss)
    return [w.detach() for w in weights]
