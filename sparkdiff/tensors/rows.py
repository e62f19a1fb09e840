"""A column of a batch: a dense tensor, or sparse rows as (indices, values, offsets), the form that torch's
embedding_bag takes.

torch's CSR layout lacks most operations and their gradients. So inside the network a sparse column is a `SparseRows`,
and it becomes `torch.sparse_csr` only where the network meets the user's code. Dense tensors are also called strided
here.
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
    """n sparse rows of the same width; within a row the indices are distinct and ascending, as in Spark's SparseVector."""

    indices: Tensor  # (nnz,) int64; int32 in a table from which rows are only taken
    values: Tensor  # (nnz,) floating
    offsets: Tensor  # (n + 1,) int64, offsets[0] == 0, offsets[-1] == nnz
    width: int

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Tensor:
        """Number of stored entries per row, (n,)."""
        return self.offsets.diff()

    def rows(self) -> Tensor:
        """The row number of every stored entry, (nnz,)."""
        number = torch.arange(len(self), device=self.device)
        return torch.repeat_interleave(number, self.lengths(), output_size=len(self.indices))

    def take(self, order: Tensor, stored: int | None = None) -> "SparseRows":
        """The rows `order` (m,), in that order.

        Args:
            stored: number of entries that these rows store, if known; otherwise the CPU has to wait for a GPU to count
                them.
        """
        starts = self.offsets.index_select(0, order)
        lengths = self.offsets.index_select(0, order + 1) - starts
        offsets = offsets_of(lengths)
        entries = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=stored)
        entries += torch.arange(len(entries), device=entries.device)
        indices, values = self.indices.index_select(0, entries).long(), self.values.index_select(0, entries)
        return SparseRows(indices, values, offsets, self.width)

    def select(self, columns: Tensor) -> "SparseRows":
        """These columns (k,), which must be distinct, in the given order."""
        place = columns.new_full((self.width,), -1)
        place[columns] = torch.arange(len(columns), device=columns.device)
        to = place[self.indices]
        kept = to >= 0
        rows, to, values = self.rows()[kept], to[kept], self.values[kept]
        if bool((columns.diff() < 0).any()):
            order = torch.argsort(rows * len(columns) + to)
            to, values = to[order], values[order]
        return SparseRows(to, values, offsets_of(torch.bincount(rows, minlength=len(self))), len(columns))

    def dense_columns(self, columns: Tensor) -> Tensor:
        """These columns (k,), which must be ascending, as a dense tensor (n, k) through which gradients reach the
        values. The other columns are never made dense.
        """
        number = len(columns)
        if not number:
            return self.values.new_zeros(len(self), 0)
        at = torch.searchsorted(columns, self.indices).clamp_max_(number - 1)
        there = columns.index_select(0, at) == self.indices
        if on_gpu(self.values):  # the other entries go into an extra column, as counting them would wait for the GPU
            wide = self.values.new_zeros(len(self), number + 1)
            return wide.index_put_((self.rows(), torch.where(there, at, number)), self.values)[:, :-1]
        read = there.nonzero()[:, 0]
        out = self.values.new_zeros(len(self) * number)
        place = (self.rows() * number + at).index_select(0, read)
        return out.index_put_((place,), self.values.index_select(0, read)).view(len(self), number)

    def compact(self) -> "tuple[Tensor, SparseRows]":
        """The columns (c,), ascending, in which any row has an entry, and the rows restricted to these columns."""
        if not on_gpu(self.indices):
            there = np.zeros(self.width, dtype=bool)
            there[self.indices.numpy()] = True
            columns = torch.from_numpy(np.flatnonzero(there))
        else:
            reached = torch.zeros(self.width, dtype=torch.bool, device=self.device)
            columns = reached.index_fill_(0, self.indices, True).nonzero()[:, 0]
        place = columns.new_empty(self.width)
        place[columns] = torch.arange(len(columns), device=self.device)
        return columns, SparseRows(place[self.indices], self.values, self.offsets, len(columns))

    def with_values(self, values: Tensor) -> "SparseRows":
        return SparseRows(self.indices, values, self.offsets, self.width)

    def with_nan(self, which: Tensor) -> "SparseRows":
        """The same rows, except that rows for which `which` (n,) is True become NaN in every entry."""
        return self.with_whole(which, self.values.new_full((self.width * int(which.sum()),), torch.nan))

    def with_whole(self, which: Tensor, new: Tensor) -> "SparseRows":
        """The same rows, except that rows for which `which` (n,) is True are replaced, and store all their entries.

        Args:
            new: the entries of the replaced rows, one row after the other.
        """
        lengths = torch.where(which, self.width, self.lengths())
        offsets = offsets_of(lengths)
        whole = which.repeat_interleave(lengths)
        kept = ~which.repeat_interleave(self.lengths())
        indices = torch.arange(len(whole), device=self.device) - offsets[:-1].repeat_interleave(lengths)
        indices[~whole] = self.indices[kept]
        values = self.values.new_zeros(len(whole)).masked_scatter(~whole, self.values[kept])
        return SparseRows(indices, values.masked_scatter(whole, new), offsets, self.width)

    def matmul(self, matrix: Tensor) -> Tensor:
        """(n, d) @ (d, k) -> (n, k), differentiable with respect to the matrix and the values."""
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
            # Once per process, torch warns that CSR is in beta and that the indices are not checked.
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


def tensors_of(x: Rows) -> list[Tensor]:
    """The tensors that hold a column: the indices, values and offsets of sparse rows, or the dense tensor."""
    return [x.indices, x.values, x.offsets] if isinstance(x, SparseRows) else [x]


def offsets_of(lengths: Tensor) -> Tensor:
    """Offsets (n + 1,) int64 of the first entry of each row, and of the end of the last row, from entries per row (n,)."""
    return F.pad(lengths.cumsum(0), (1, 0))


def on_gpu(x: Tensor) -> bool:
    """True if the tensor is not on the CPU; then the CPU has to wait for the device to read a number of it, or to
    compute a shape that depends on numbers.
    """
    return x.device.type != "cpu"


SPARSE_FROM = 1024
"""Width from which a one-hot vector is passed as sparse rows: wider dense vectors take more memory, and narrower sparse
ones take more time.
"""
ORDINARY, NEVER = 1e30, float("inf")
"""Absolute value up to which products of a few numbers are finite; and the absolute value that stands for no limit."""


def beyond(x: Rows, size: float) -> bool:
    """True if any number is NaN or larger than `size` in absolute value, or if `size` is negative.

    False for size=NEVER, and on a GPU, because reading a result would wait for the GPU.
    """
    numbers = x.values if isinstance(x, SparseRows) else x
    return size < NEVER and not on_gpu(numbers) and (size < 0 or not bool((numbers.abs() <= size).all()))


def stored_as(x: Rows, storage: str) -> Rows:
    """A column with the entries that Spark stores: all entries of its dense vectors, only the nonzeros of its sparse
    ones.

    Args:
        storage: "compressed" if each of Spark's vectors has the smaller form; "sparse" if all are sparse; "" if they are
            dense for a dense `x` and sparse for a sparse one.
    """
    if isinstance(x, SparseRows):
        nonzero = torch.bincount(x.rows()[x.values != 0], minlength=len(x))
        return with_stored_zeros(x, is_dense(nonzero, x.width) & (storage == "compressed"))
    return x if x.ndim == 1 or bool((stored := is_stored(x, storage)).all()) else sparse_where(x, stored)


def is_stored(x: Tensor, storage: str) -> Tensor:
    """Mask of the entries of strided rows (n, d) that Spark stores."""
    stored = x != 0 if storage else torch.ones_like(x, dtype=torch.bool)  # so NaN is stored
    return stored | is_dense(stored.sum(1), x.shape[1])[:, None] if storage == "compressed" else stored


def is_dense(entries: Tensor, width: int) -> Tensor:
    """Mask of the rows that Spark stores dense if it chooses the smaller form, from the rows' numbers of nonzero
    entries (n,).

    Source: org.apache.spark.ml.linalg.Vector.compressed.
    """
    return 1.5 * (entries + 1.0) >= width


def sparse_where(x: Tensor, stored: Tensor) -> SparseRows:
    """Strided rows (n, d) as sparse rows with the entries for which `stored` (n, d) is True."""
    return SparseRows(stored.nonzero()[:, 1], x[stored], offsets_of(stored.sum(1)), x.shape[1])


def with_stored_zeros(x: SparseRows, whole: Tensor) -> SparseRows:
    """The same rows, except that rows for which `whole` (n,) is True store all their zeros, and the other rows none."""
    kept = x.values != 0
    lengths = torch.bincount(x.rows()[kept], minlength=len(x))
    bare = SparseRows(x.indices[kept], x.values[kept], offsets_of(lengths), x.width)
    return bare.with_whole(whole, x.take(whole.nonzero()[:, 0]).to_dense().flatten())


def without_zeros(x: Rows, of: Rows) -> Rows:
    """Rows `x`, computed from rows `of`, such that a row stores all its zeros if the row of `of` stores all entries,
    else none.

    `x` is returned unchanged unless both are SparseRows.
    """
    return (
        with_stored_zeros(x, of.lengths() == of.width)
        if isinstance(x, SparseRows) and isinstance(of, SparseRows)
        else x
    )


BLOCK = 256
"""Largest number of values that `running_sum` adds by one matrix product."""


def running_sum(x: Tensor) -> Tensor:
    """The running sum x.cumsum(-1) of finite numbers.

    On a GPU it is computed by matrix products, because torch's own kernel adds in an order that varies between runs.
    """
    if not on_gpu(x):
        return x.cumsum(-1)
    n = x.shape[-1]
    if n <= BLOCK:
        return x @ x.new_ones(n, n).triu()
    within = running_sum(F.pad(x, (0, -n % BLOCK)).unflatten(-1, (-1, BLOCK)))
    before = F.pad(running_sum(within[..., -1])[..., :-1], (1, 0))
    return (within + before[..., None]).flatten(-2)[..., :n]


def sum_in_order(x: Tensor) -> Tensor:  # (n, d) -> (n,)
    """The sum of each row, added column by column as in Spark; on a GPU torch's own sum, whose order may differ."""
    return x.sum(1) if on_gpu(x) or not x.shape[1] else x.cumsum(1)[:, -1]


def known_any(wrong: Tensor) -> bool:
    """True if any entry is True; on a GPU always False.

    The check can be skipped on a GPU, which the CPU would have to wait for, because the CPU has already processed the
    same rows for statistics.
    """
    return not on_gpu(wrong) and bool(wrong.any())


def as_sparse(x: Rows) -> SparseRows:
    """The rows of a column that is known to be sparse."""
    assert isinstance(x, SparseRows)
    return x


def dense(x: Rows) -> Tensor:
    return x.to_dense() if isinstance(x, SparseRows) else x


def width(x: Rows) -> int:
    """Number of entries per row; 1 for a scalar (n,)."""
    return x.width if isinstance(x, SparseRows) else x.shape[1] if x.ndim == 2 else 1


def shape(x: Rows | Sequence[object]) -> tuple[int, ...]:
    """The shape of a column of numbers, of sparse rows, or of objects."""
    if isinstance(x, SparseRows):
        return len(x), x.width
    return tuple(x.shape) if isinstance(x, Tensor) else (len(x),)


def matrix(x: Tensor) -> Tensor:
    """A scalar (n,) as (n, 1)."""
    return x[:, None] if x.ndim == 1 else x


def scaled(x: Rows, factor: Tensor) -> Rows:
    """Each feature multiplied by its factor (d,); sparse rows stay sparse."""
    return x.with_values(x.values * factor[x.indices]) if isinstance(x, SparseRows) else x * factor


def squared(x: Rows) -> Rows:
    """Each entry multiplied by itself; sparse rows stay sparse."""
    return x.with_values(x.values * x.values) if isinstance(x, SparseRows) else x * x


def rows_at(x: Rows, rows: Tensor) -> Rows:
    """The rows with these indices (m,)."""
    return x.take(rows) if isinstance(x, SparseRows) else x.index_select(0, rows)


def product(x: Rows, weight: Tensor) -> Tensor:
    """The product (n, d), (d,) -> (n,) or (n, d), (d, k) -> (n, k)."""
    if isinstance(x, SparseRows):
        return x.matmul(weight[:, None])[:, 0] if weight.ndim == 1 else x.matmul(weight)
    return x @ weight


def extremes(x: Rows) -> tuple[Tensor, Tensor]:
    """Smallest and largest number of each column, (d,), including zeros that are not stored."""
    if not isinstance(x, SparseRows):
        return x.amin(0), x.amax(0)
    zero = torch.bincount(x.indices, minlength=x.width) < len(x)  # not stored somewhere
    least = torch.where(zero, 0.0, torch.inf).to(x.dtype).scatter_reduce(0, x.indices, x.values, "amin")
    most = torch.where(zero, 0.0, -torch.inf).to(x.dtype).scatter_reduce(0, x.indices, x.values, "amax")
    return least, most


def below(parts: Sequence[Rows]) -> Rows:
    """Concatenate batches of rows; the result is dense if at least one part is dense."""
    sparse = [p for p in parts if isinstance(p, SparseRows)]
    return SparseRows.cat(sparse) if len(sparse) == len(parts) else torch.cat([dense(p) for p in parts])


Nulls = Sequence[Tensor | None]
"""For each input column, a mask (n,) bool of the rows that are null; None if no row is null, or if it is unknown."""
