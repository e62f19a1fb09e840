"""A column of a batch: a dense tensor, or sparse rows as (indices, values, offsets), the form that torch's
embedding_bag takes.

torch's CSR layout lacks most operations and their gradients, so inside the network a sparse batch has this form and
becomes `torch.sparse_csr` only at the network's border.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SparseRows:
    """n sparse rows of the same width; inside a row the indices are distinct and ascending, as in Spark's SparseVector."""

    indices: Tensor  # (nnz,) int64; int32 in a table that rows are taken from
    values: Tensor  # (nnz,) floating
    offsets: Tensor  # (n + 1,) int64, offsets[0] == 0, offsets[-1] == nnz
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Tensor:
        """Stored entries per row, (n,)."""
        return self.offsets.diff()

    def rows(self) -> Tensor:
        """The row number of every stored entry, (nnz,)."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths())

    def take(self, order: Tensor) -> "SparseRows":
        """The rows `order` (m,), in that order."""
        starts = self.offsets.index_select(0, order)
        lengths = self.offsets.index_select(0, order + 1) - starts
        offsets = offsets_of(lengths)
        entries = torch.repeat_interleave(starts - offsets[:-1], lengths)
        entries += torch.arange(len(entries))
        indices, values = self.indices.index_select(0, entries).long(), self.values.index_select(0, entries)
        return SparseRows(indices, values, offsets, self.width)

    def select(self, columns: Tensor) -> "SparseRows":
        """The columns `columns` (k,), distinct, in that order."""
        place = torch.full((self.width,), -1, dtype=torch.int64)
        place[columns] = torch.arange(len(columns))
        to = place[self.indices]
        kept = to >= 0
        rows, to, values = self.rows()[kept], to[kept], self.values[kept]
        if bool((columns.diff() < 0).any()):
            order = torch.argsort(rows * len(columns) + to)
            to, values = to[order], values[order]
        return SparseRows(to, values, offsets_of(torch.bincount(rows, minlength=len(self))), len(columns))

    def compact(self) -> "tuple[Tensor, SparseRows]":
        """The columns (c,), ascending, in which any row has an entry, and the rows restricted to these columns."""
        there = np.zeros(self.width, dtype=bool)
        there[self.indices.numpy()] = True
        columns = torch.from_numpy(np.flatnonzero(there))
        place = torch.empty(self.width, dtype=torch.int64)
        place[columns] = torch.arange(len(columns))
        return columns, SparseRows(place[self.indices], self.values, self.offsets, len(columns))

    def with_values(self, values: Tensor) -> "SparseRows":
        return SparseRows(self.indices, values, self.offsets, self.width)

    def with_nan(self, which: Tensor) -> "SparseRows":
        """The same rows; rows for which `which` (n,) is True become NaN in every entry."""
        lengths = torch.where(which, self.width, self.lengths())
        offsets = offsets_of(lengths)
        filled = which.repeat_interleave(lengths)
        kept = ~which.repeat_interleave(self.lengths())
        indices = torch.arange(len(filled)) - offsets[:-1].repeat_interleave(lengths)
        indices[~filled] = self.indices[kept]
        values = self.values.new_full((len(filled),), torch.nan).masked_scatter(~filled, self.values[kept])
        return SparseRows(indices, values, offsets, self.width)

    def matmul(self, matrix: Tensor) -> Tensor:
        """(n, d) @ (d, k) -> (n, k), with gradients to the matrix and to the values."""
        if not len(self.indices):
            return matrix.new_zeros(len(self), matrix.shape[1]) + 0.0 * matrix.sum()
        return F.embedding_bag(
            self.indices, matrix, self.offsets, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )

    def to_dense(self) -> Tensor:
        """(n, d) strided."""
        return self.values.new_zeros(len(self), self.width).index_put((self.rows(), self.indices), self.values)

    def to_csr(self) -> Tensor:
        """(n, d) torch.sparse_csr."""
        with warnings.catch_warnings():
            # Once per process torch says that CSR is in beta and that nobody checks the indices.
            warnings.filterwarnings("ignore", "Sparse", UserWarning)
            return torch.sparse_csr_tensor(self.offsets, self.indices, self.values, (len(self), self.width))

    @staticmethod
    def from_csr(x: Tensor) -> "SparseRows":
        return SparseRows(x.col_indices().long(), x.values(), x.crow_indices().long(), x.shape[1])

    @staticmethod
    def cat(batches: "list[SparseRows]") -> "SparseRows":
        """Concatenate batches of the same width."""
        indices, values = torch.cat([b.indices for b in batches]), torch.cat([b.values for b in batches])
        return SparseRows(indices, values, offsets_of(torch.cat([b.lengths() for b in batches])), batches[0].width)


Rows = Tensor | SparseRows


def offsets_of(lengths: Tensor) -> Tensor:
    """Where each row's entries begin, given how many it has (n,), and where the last one's end, (n + 1,) int64."""
    return F.pad(lengths.cumsum(0), (1, 0))


def as_sparse(x: Rows) -> SparseRows:
    """The rows of a column that is known to be sparse."""
    assert isinstance(x, SparseRows)
    return x


def dense(x: Rows) -> Tensor:
    return x.to_dense() if isinstance(x, SparseRows) else x


def width(x: Rows) -> int:
    """Entries per row; 1 for a scalar (n,)."""
    return x.width if isinstance(x, SparseRows) else x.shape[1] if x.ndim == 2 else 1


def matrix(x: Tensor) -> Tensor:
    """A scalar (n,) as (n, 1)."""
    return x[:, None] if x.ndim == 1 else x


def scaled(x: Rows, factor: Tensor) -> Rows:
    """Each feature multiplied by its factor (d,); sparse rows stay sparse."""
    return x.with_values(x.values * factor[x.indices]) if isinstance(x, SparseRows) else x * factor


def taken(x: Rows, rows: Tensor) -> Rows:
    """The rows with these indices (m,)."""
    return x.take(rows) if isinstance(x, SparseRows) else x.index_select(0, rows)


def below(parts: Sequence[Rows]) -> Rows:
    """Concatenate rows; the result is strided if one part is strided."""
    sparse = [p for p in parts if isinstance(p, SparseRows)]
    return SparseRows.cat(sparse) if len(sparse) == len(parts) else torch.cat([dense(p) for p in parts])


Nulls = Sequence[Tensor | None]
"""Per input column which rows (n,) bool are null; None where none is, or nobody can tell."""
