"""Detection of validation rows that also occur in training, by 64-bit hashes, if there are more than chance explains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tensors.rows import Rows, SparseRows, matrix

MOST_HASHES = 1 << 22  # kept at most; from more rows, a sample chosen by hash
ERRORS = 4.0  # standard errors above chance


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
        surplus = both > expected + ERRORS * math.sqrt(variance)
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
