"""The Arrow reader: reads the files of a cache with pyarrow, including sparse columns."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import Batch, BatchColumn
from sparkdiff.tensors.rows import SparseRows, offsets_of


def read(paths: Sequence[Path], columns: Sequence[BatchColumn]) -> Generator[Batch]:
    """Yield one batch per file, in the order of `paths`; no file stays open between two batches."""
    for path in paths:
        yield _batch(path, columns)


def entries(path: Path, field: str) -> int:
    """Upper limit for the number of entries of a file's list column `field`, from the footer, which counts one entry
    for an empty list.
    """
    footer = pq.read_metadata(str(path))
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    leaves = [g.column(j) for g in groups for j in range(g.num_columns)]
    return sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] == field)


def _batch(path: Path, columns: Sequence[BatchColumn]) -> Batch:
    with pq.ParquetFile(str(path)) as file:
        rest = [c for c in columns if c.kind != "sparse"]
        # Sparse columns in one thread: per thread, Arrow's allocator keeps as much freed memory as the column takes.
        table = file.read(columns=[c.name for c in rest]) if rest else None
        return {
            c.name: column_of(file.read(columns=list(c.fields), use_threads=False) if c.kind == "sparse" else table, c)
            for c in columns
        }


def column_of(table: pa.Table, column: BatchColumn) -> Tensor | SparseRows:
    """A column of a batch, from a table with the columns of the files."""
    if column.kind == "sparse":
        return _sparse(table, column)
    if column.kind == "scalar":
        return _own(table[column.name])
    values, lengths = _lists(table[column.name])
    if len(wrong := lengths[lengths != column.width]):
        raise ValueError(
            f"a list of {wrong[0]} entries in column {column.name!r}, but the manifest says {column.width}"
        )
    return values.reshape(len(lengths), column.width)


def _sparse(table: pa.Table, column: BatchColumn) -> SparseRows:
    (indices, lengths), (values, numbers) = (_lists(table[field]) for field in column.fields)
    if not np.array_equal(lengths, numbers):
        raise ValueError(f"indices and values of column {column.name!r} have different lengths")
    if indices.dtype != torch.int32 or (len(indices) and not 0 <= indices.min() <= indices.max() < column.width):
        raise ValueError(f"indices of column {column.name!r} are not all int32 from 0 to {column.width - 1}")
    return SparseRows(indices, values, offsets_of(torch.tensor(lengths)), column.width)


def _lists(column: pa.ChunkedArray) -> tuple[Tensor, npt.NDArray[np.number[Any]]]:
    """The entries of all lists, concatenated, and the lengths of the lists (n,). The length of a null is NaN, so that
    it differs from every expected length.
    """
    return _own(pc.list_flatten(column)), pc.list_value_length(column).to_numpy()


def _own(values: pa.ChunkedArray) -> Tensor:
    """The values as a tensor that may be written to: a copy if Arrow's memory is read-only. Nulls of doubles become
    NaN.
    """
    return torch.from_numpy(np.require(values.to_numpy(), requirements="W"))
