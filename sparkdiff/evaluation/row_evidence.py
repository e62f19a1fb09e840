"""Evidence for warnings about rows: of separation, i.e. of the classes by one feature (a leak), and of training and validation
rows by all features (drift); of values far from all others of their column, such as a number that stands for a missing
value; and of validation rows that also occur in training, if there are more than chance explains.

A slot is one entry of a vector column, or a scalar column.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tensors.light_torch import LBFGS
from sparkdiff.tensors.rows import Rows, SparseRows, matrix, product, rows_at, width

FAR, NEXT = 30.0, 5.0  # an isolated outlier: multiples of the others' root mean square, and of the next value
FARTHEST = 1000.0  # an outlier whatever its neighbours are: a multiple of the others' root mean square


class Spread:
    """The value farthest from the usual value, and the spread of the other values, for each slot of a column on one
    split.

    A slot is an entry of a vector column, or a scalar column.

    The mean square distance of the other values excludes every occurrence of the farthest value, so that a sentinel
    value does not enlarge the spread with which it is compared.

    Args:
        usual: (w,) the usual value of each slot, such as its median.
    """

    def __init__(self, usual: Tensor) -> None:
        self.usual = usual  # (w,)
        self.far, self.next, self.square = (torch.zeros_like(usual) for _ in range(3))
        self.count, self.others = (torch.zeros(len(usual), dtype=torch.int32) for _ in range(2))
        self.above = torch.zeros(
            len(usual), dtype=torch.bool
        )  # whether the farthest value is larger than the usual one

    def add(self, x: Rows) -> None:
        """Add a batch (n, w). Non-finite values count as the usual value, because where they matter, the loss rejects
        them.
        """
        at: Tensor | slice = slice(None)  # slots with values to add
        if isinstance(x, SparseRows):
            at, x = x.compact()
            usual, w, i = self.usual[at], x.width, x.indices
            away = (x.values - usual[i]).abs().nan_to_num(0.0, 0.0)
            zeros = torch.zeros(w, dtype=away.dtype)
            far = zeros.scatter_reduce(0, i, away, "amax")
            top = away == far[i]
            rest = torch.where(top, 0.0, away)
            count = torch.bincount(i[top], minlength=w)
            above = torch.zeros(w, dtype=torch.bool).index_put((i[top],), x.values[top] > usual[i[top]])
            following = zeros.scatter_reduce(0, i, rest, "amax")
            square, others = zeros.index_add(0, i, rest.square()), torch.bincount(i[rest > 0], minlength=w)
        else:
            away = (x - self.usual).abs().nan_to_num(0.0, 0.0)
            far, row = away.max(0)
            top = away == far
            rest = away.masked_fill(top, 0.0)
            count, above = top.sum(0), x.gather(0, row[None])[0] > self.usual
            following, square, others = rest.amax(0), rest.square().sum(0), (rest > 0).sum(0)
        before, counted, count, others = self.far[at], self.count[at], count.int(), others.int()
        equal, farther = far == before, far > before
        beaten = torch.where(farther, before, far).masked_fill(equal, 0.0)
        number = torch.where(farther, counted, count).masked_fill(beaten == 0, 0)
        self.square[at] += square + number * beaten.square()
        self.others[at] += others + number
        self.next[at] = torch.maximum(torch.maximum(self.next[at], following), beaten)
        self.count[at] = torch.where(equal, counted + count, torch.where(farther, count, counted))
        self.above[at] = torch.where(farther, above, self.above[at])
        self.far[at] = torch.maximum(before, far)

    def farthest(self, slot: int) -> float:
        """The farthest value of a slot."""
        return float(self.usual[slot] + (self.far[slot] if self.above[slot] else -self.far[slot]))

    def support(self) -> Tensor:
        """Number of rows that differ from the usual value, (w,)."""
        return self.others + torch.where(self.far > 0, self.count, 0)


def farness(split: str, spreads: Mapping[str, Spread]) -> Tensor:
    """Ratio of two distances from the usual value: of a split's farthest value, and of the other values, (w,); 0 if not
    extreme.

    The distance of the other values is the root mean square over the other training rows that differ from the usual
    value. If there are fewer than five such rows (rare levels, constant columns), that distance is taken to be at least
    1 and at least the absolute usual value.
    """
    own, base = spreads[split], spreads.get("train", spreads[split])
    # If the training rows' farthest value is nearer than this split's, it is one of the other values, too.
    nearer = (base.far < own.far) & (base.far > 0)
    square = base.square + torch.where(nearer, base.count * base.far.square(), 0.0)
    others = base.others + torch.where(nearer, base.count, 0)
    scale = (square / others.clamp_min(1)).sqrt()
    scale = torch.where(others >= 5, scale, torch.maximum(scale, own.usual.abs().clamp_min(1.0)))
    following = torch.zeros_like(scale)
    for s in spreads.values():
        following = torch.maximum(
            following, torch.where(s.far < own.far, s.far, torch.where(s.next < own.far, s.next, 0.0))
        )
    z = own.far / scale
    return torch.where((z > FARTHEST) | ((z > FAR) & (own.far > NEXT * following)), z, 0.0)


LEAST = 30
"""Smallest number of rows of a class, of the rest, or of rows that differ from a feature's median, for a finding."""
STEPS = 30  # of L-BFGS
RIDGE = 1e-2
CLIPPED_AT = 5.0  # standard deviations at which a standardised feature is clipped, so that outliers don't dominate it


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
    """Columns minus their mean, divided by their standard deviation, and clipped at CLIPPED_AT; sparse columns are not
    centered, and are divided by the root mean square of their stored values.
    """
    if isinstance(x, SparseRows):
        stored = torch.bincount(x.indices, minlength=x.width)
        square = torch.zeros(x.width, dtype=x.values.dtype).index_add_(0, x.indices, x.values.square())
        scale = (square / stored.clamp_min(1)).sqrt()
        values = x.values / torch.where(scale > 0, scale, 1.0)[x.indices]
        return x.with_values(values.nan_to_num(0.0).clamp(-CLIPPED_AT, CLIPPED_AT))
    x = matrix(x)
    center, spread = x.mean(0), x.std(0)
    return ((x - center) / torch.where(spread > 0, spread, 1.0)).nan_to_num(0.0).clamp(-CLIPPED_AT, CLIPPED_AT)


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


MOST_HASHES = 1 << 22  # kept at most; from more rows, a sample chosen by hash
OVERLAP_ERRORS = 4.0  # standard errors above chance


@dataclass(frozen=True)
class Overlap:
    """Number and share of the validation rows that occur in training, and a text that compares them with chance."""

    rows: int
    share: float
    chance: str


class RowHashes:
    """64-bit hashes of rows, from the label and the columns that the network reads; for many rows, a sample of the
    hashes.
    """

    def __init__(self, rows: int):
        self.mask = (1 << max(0, math.ceil(math.log2(max(rows, 1) / MOST_HASHES)))) - 1 if rows > MOST_HASHES else 0
        self.hashes: dict[str, list[Tensor]] = {"train": [], "validation": []}

    def add(self, split: str, columns: Sequence[Rows], y: Tensor) -> None:
        """Add rows: their columns, always in the same order, and their labels (n,)."""
        total = _mixed(_bits(y))
        for number, column in enumerate(columns):
            total = _mixed(total + _row_hash(column, number + 1))
        self.hashes[split].append(total[total & self.mask == 0])

    def overlap(self) -> Overlap | None:
        """The overlap, if more validation rows have a duplicate in training than chance explains; else None.

        By chance, a validation row has a duplicate in training as often as a training row has a duplicate among the
        other training rows (Good 1953; variance: Esty 1983). A second test detects a table that was loaded twice, in
        which too many values occur exactly twice. For independent draws, however few distinct values there are, the
        expected numbers f_m of values that occur m times obey f_m^2 <= (m + 1) / m * f_(m-1) * f_(m+1), because the
        counts are a mixture of Poisson counts (Cauchy-Schwarz).
        """
        if not all(self.hashes.values()):
            return None
        train, held = (torch.cat(hashes) for hashes in self.hashes.values())
        n, m = len(train), len(held)
        if not n or not m:
            return None
        values, counts = train.unique(return_counts=True)
        both = int(torch.isin(held, values).sum())
        single, double = int((counts == 1).sum()), int((counts == 2).sum())
        expected = m * (1 - single / n)
        variance = expected * single / n + 1 + m * m * (single * (1 - single / n) + 2 * double) / n**2
        surplus = both > expected + OVERLAP_ERRORS * math.sqrt(variance)
        if not surplus and not (both >= max(5, m / 100) and unnatural(torch.cat([train, held]))):
            return None
        times = self.mask + 1
        chance = (
            f"chance would explain {round(expected * times):,}"
            if surplus
            else "more rows occur twice than chance explains"
        )
        return Overlap(both * times, both / m, chance)


def unnatural(hashes: Tensor) -> bool:
    """True if values repeat in proportions that independent draws do not show; see `RowHashes.overlap`."""
    _, counts = hashes.unique(return_counts=True)
    f = [0, *(int((counts == k).sum()) for k in range(1, 6))]

    def high(count: int) -> float:  # upper bound of the expected count, given the observed one
        return count + 3 * math.sqrt(count) + 5

    return any(
        f[k] - 3 * math.sqrt(f[k]) > math.sqrt((k + 1) / k * high(f[k - 1]) * high(f[k + 1])) for k in range(2, 5)
    )


def _bits(x: Tensor) -> Tensor:
    x = torch.where(x.isnan(), torch.nan, x) + 0.0  # one NaN, and no -0.0
    return x.contiguous().view(torch.int64)


def _mixed(h: Tensor) -> Tensor:
    """A bijection that scatters 64-bit integers (the finaliser of MurmurHash3, with arithmetic shifts)."""
    h = (h ^ (h >> 33)) * -49064778989728563
    h = (h ^ (h >> 33)) * -4265267296055464877
    return h ^ (h >> 33)


def _row_hash(x: Rows, salt: int) -> Tensor:
    """A hash of each row of a column, (n,) int64; stored zeros of a sparse row equal zeros that are not stored."""
    if isinstance(x, SparseRows):
        stored = x.values != 0
        at = _mixed(x.indices[stored] + (salt << 32))
        entries = _mixed(_bits(x.values[stored]) + at)
        return torch.zeros(len(x), dtype=torch.int64).index_add_(0, x.rows()[stored], entries)
    columns = matrix(x).to(torch.float64)  # flags are booleans
    at = _mixed(torch.arange(columns.shape[1]) + (salt << 32))
    return _mixed(_bits(columns) + at).sum(1)
