"""Rows with many columns, in memory: sparse rows stay sparse, as columns are centred only within computations."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tensors.rows import Rows, SparseRows, below, extremes, offsets_of, product, rows_at, sparse_where
from sparkdiff.tuning.solvers.problem import CACHE


@dataclass(frozen=True)
class RowsInMemory:
    """All rows, or a part of them, in memory."""

    x: Rows
    """(n, d)"""
    label: Tensor
    weight: Tensor
    fold: Tensor


@dataclass(frozen=True)
class WideRows:
    """All rows, with each column divided by its scale; if sparse, without columns in which no row stores a number."""

    x: Rows
    """(n, d)"""
    turned: Rows
    """The transpose (d, n)"""
    columns: Tensor
    """Indices of these columns among all columns: (d,)"""
    width: int
    centre: Tensor
    """The centre that is subtracted from the scaled columns, zero without an intercept: (d,)"""
    scale: Tensor
    label: Tensor
    own: Tensor
    """A row's share of the weight of each fold's training rows, zero if the fold holds it out: (n, folds)"""
    variance: Tensor
    """The population's variance of each scaled column over the rows that a fold trains on: (d, folds)"""
    constant: Tensor
    """True for a column with a single value in a fold's training rows: (d, folds) bool"""
    lost: Tensor
    """True if some column has a single value, other than 0, in a fold's training rows: (folds,) bool"""
    bessel_correction: Tensor
    """Factor by which Spark's Summarizer multiplies the population's variance: (folds,)"""

    def margins(self, at: Tensor) -> Tensor:
        """Margins (n, k) from parameters (d + 1, k), the last one the intercept."""
        b = at[:-1].contiguous()
        return product(self.x, b) + (at[-1] - self.centre @ b)

    def sums(self, left: Tensor) -> Tensor:
        """Sums of `left` (n, k), multiplied by the columns and by one: (d + 1, k)."""
        total = left.sum(0, keepdim=True)
        return torch.cat([product(self.turned, left) - self.centre[:, None] * total, total])


def gather(parts: Iterable[RowsInMemory]) -> RowsInMemory:
    """All parts joined; sparse if at least one part is sparse."""
    found = [*parts]
    x, label, weight, fold = ([getattr(p, name) for p in found] for name in ("x", "label", "weight", "fold"))
    if any(isinstance(rows, SparseRows) for rows in x):
        x = [rows if isinstance(rows, SparseRows) else sparse_where(rows, rows != 0) for rows in x]
    return RowsInMemory(below(x), torch.cat(label), torch.cat(weight), torch.cat(fold))


def wide_rows(whole: RowsInMemory, folds: int, *, intercept: bool) -> WideRows:
    x, width = whole.x, whole.x.shape[1] if isinstance(whole.x, Tensor) else whole.x.width
    columns = torch.arange(width)
    if isinstance(x, SparseRows):
        columns, x = x.compact()
    own = whole.weight[:, None] * (whole.fold[:, None] != torch.arange(folds))
    weight, squares = own.sum(0), own.square().sum(0)
    own = own / weight
    n, d = len(whole.label), len(columns)
    even = torch.full((n, 1), 1 / n, dtype=torch.float64)
    mean = transposed_product(x, even)[:, 0]
    deviation = spread(x, even, mean)[:, 0].sqrt()
    scale = deviation if intercept else torch.hypot(deviation, mean)
    scale = torch.where(scale > 1e-12 * mean.abs(), scale, torch.where(mean != 0, mean.abs(), 1.0))
    middle = mean / scale
    x = x.with_values(x.values / scale[x.indices]) if isinstance(x, SparseRows) else x / scale
    constant = torch.stack([single(x, own[:, f] > 0) for f in range(folds)], 1)
    turned = turn(x)
    return WideRows(
        x=x,
        turned=turned,
        columns=columns,
        width=width,
        centre=middle if intercept else torch.zeros(d, dtype=torch.float64),
        scale=scale,
        label=whole.label,
        own=own,
        variance=spread(x, own, middle),
        constant=constant,
        lost=(constant & (product(turned, own) != 0)).any(0),
        bessel_correction=weight / (weight - squares / weight).clamp_min(1e-300),
    )


def turn(x: Rows) -> Rows:
    if not isinstance(x, SparseRows):
        return x.T
    order = torch.argsort(x.indices, stable=True)
    offsets = offsets_of(torch.bincount(x.indices, minlength=x.width))
    return SparseRows(x.rows()[order], x.values[order], offsets, len(x))


def transposed_product(x: Rows, left: Tensor) -> Tensor:
    """Product of the transpose of x (n, d) and `left` (n, k): (d, k), for small k."""
    if not isinstance(x, SparseRows):
        return x.T @ left
    return left.new_zeros(x.width, left.shape[1]).index_add_(0, x.indices, x.values[:, None] * left[x.rows()])


def spread(x: Rows, shares: Tensor, near: Tensor) -> Tensor:
    """Variances (d, k) of the columns with these shares of the rows (n, k); `near` is close to the columns' means, so
    that no digits are lost.
    """
    if isinstance(x, SparseRows):
        moved = x.values - near[x.indices]
        stored = transposed_product(x.with_values(torch.ones_like(moved)), shares)
        off = 1 - stored  # rows where the number is zero
        first = transposed_product(x.with_values(moved), shares) - off * near[:, None]
        second = transposed_product(x.with_values(moved.square()), shares) + off * near.square()[:, None]
    else:
        first, second = (shares.new_zeros(len(near), shares.shape[1]) for _ in range(2))
        size = max(CACHE // len(near), 64)
        for part, share in zip(x.split(size), shares.split(size), strict=True):
            moved = part - near
            first += moved.T @ share
            second += moved.square_().T @ share
    return (second - first.square()).clamp_min(0)


def single(x: Rows, rows: Tensor) -> Tensor:
    """True for columns with one value in these rows: (d,) bool."""
    low, high = extremes(rows_at(x, rows.nonzero()[:, 0]))
    return low == high
