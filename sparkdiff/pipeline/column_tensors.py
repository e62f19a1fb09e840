"""Spark's columns as tensors and back, through Parquet files in Spark's layout of vectors; never row by row."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import ArrayType, DoubleType, StringType, StructField, StructType

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.stages.base import NULL
from sparkdiff.tensors.rows import NEVER, Rows, SparseRows, beyond, dense, offsets_of

VECTOR = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)

PIECE = 65536
"""Number of rows that `fetch_columns` reads at a time."""
WIDE = 1024
"""Smallest width of vectors for which a batch with some dense rows stays sparse if few entries are stored."""


def physical(field: StructField, column: Column) -> Column:
    """A column as plain types: vectors as Spark stores them, arrays as doubles, scalars as double."""
    if isinstance(field.dataType, VectorUDT):
        return F.unwrap_udt(column)
    return column.cast("array<double>" if isinstance(field.dataType, ArrayType) else "double")


def into_structs(df: DataFrame, names: Sequence[str]) -> DataFrame:
    """The rows with the columns of these names, `struct.field`, moved into structs."""
    tree: dict[str, Any] = {}
    for name in names:
        place = tree
        *path, last = name.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = name

    def of(place: Any) -> Column:
        if isinstance(place, str):
            return col_by_name(place)
        return F.struct(*(of(inner).alias(part) for part, inner in place.items()))

    return (
        df.withColumns({part: of(place) for part, place in tree.items()}).drop(*map(col_by_name, names)) if tree else df
    )


def write_plain(df: DataFrame, names: Sequence[str], folder: Path) -> None:
    """Write these columns of a DataFrame to Parquet, in plain types, under the names v0, v1, ..."""
    fields = {f.name: f for f in df.schema.fields}
    df.select(*(physical(fields[n], F.col(n)).alias(f"v{i}") for i, n in enumerate(names))).write.parquet(
        jvm.stores.address(folder)  # not as_uri(): Spark treats %20 as part of the name
    )
    jvm.stores.take(folder)


def read_plain(folder: Path, rows: int, exact: float = NEVER) -> Iterator[dict[str, Rows]]:
    """Yield the columns written by `write_plain`, at most `rows` rows at a time, and the null flags of scalars.

    The flags exist even without nulls: the meaning of a NaN must not depend on the other rows of its batch.

    Args:
        exact: as in `from_arrow`.
    """
    for path in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            # In one thread: per thread, Arrow's allocator keeps as much freed memory as a batch takes.
            for batch in file.iter_batches(rows, use_threads=False):
                columns: dict[str, Rows] = {}
                for name in batch.schema.names:
                    column = batch.column(name)
                    columns[name] = from_arrow(column, exact=exact)
                    if is_scalar(columns[name]):
                        columns[name + NULL] = torch.from_numpy(np.array(column.is_null()))
                yield columns


def fetch_columns(df: DataFrame, names: Sequence[str]) -> list[torch.Tensor]:
    """Fetch each of these columns as one dense tensor of all rows, with one job; an empty list without rows.

    Raises:
        InputError: the vectors or arrays of a column differ in size.
    """
    with jvm.temporary(".rows-", jvm.scratch_folder()) as folder:
        write_plain(df, names, folder / "rows")
        parts = [*read_plain(folder / "rows", PIECE)]
    found = [[dense(part[f"v{i}"]) for part in parts] for i in range(len(names))]
    for name, pieces in zip(names, found, strict=True):
        if len(sizes := {piece.shape[1:] for piece in pieces}) > 1:
            raise InputError(
                f"column {name!r} holds vectors of {' and of '.join(str(s[0]) for s in sorted(sizes))} entries"
            )
    return [torch.cat(pieces) for pieces in found] if parts else []


def from_arrow(column: pa.Array, width: int = 0, exact: float = NEVER) -> Rows:
    """A column as a tensor: (n,) for numbers, (n, d) for lists; for vectors (n, d), but SparseRows if every row is
    sparse, or if the vectors are wide and few entries are stored.

    Args:
        width: number of entries of the NaN rows, if all vectors are null.
        exact: if a number is NaN or larger in magnitude than this, each vector keeps its form, dense or sparse: if some
            are sparse, the result is SparseRows, in which the dense vectors store all entries. NEVER: no such number.
    """
    if pa.types.is_struct(column.type):
        return _vectors(column, width, exact)
    if pa.types.is_list(column.type):
        lengths = np.asarray(column.value_lengths().fill_null(-1))
        longest = int(lengths.max(initial=0))
        if len(lengths) and lengths.min() != longest:
            raise InputError("an array column holds nulls or arrays of unequal length")
        return _numbers(column.flatten()).view(len(column), longest)
    return _numbers(column)


def _numbers(column: pa.Array) -> torch.Tensor:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())  # Arrow's cast to double does not give the nearest double
    if not pa.types.is_float16(column.type):  # Arrow does not cast these
        column = column.cast(pa.float64(), safe=False)  # large integers are rounded, as in Spark
    return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64))


def _vectors(column: pa.StructArray, told: int, exact: float) -> Rows:
    kind, size, indices, values = (pa.StructArray.field(column, i) for i in range(4))
    n = len(column)
    lengths = np.asarray(values.value_lengths().fill_null(0))
    sparse = np.asarray(kind.fill_null(0)) == 0
    null = np.asarray(column.is_null())
    widths = np.where(sparse, np.asarray(size.fill_null(0)), lengths)[~null]
    width = int(widths.max()) if len(widths) else told
    if len(widths) and widths.min() != width:
        raise InputError(f"a vector column holds vectors of {widths.min()} and of {width} entries")
    flat, offsets = _numbers(values.flatten()), offsets_of(torch.from_numpy(lengths.astype(np.int64)))
    # A dense row's indices are 0 .. width-1, a null row is NaN throughout.
    index = np.arange(len(flat)) - np.repeat(offsets[:-1].numpy(), lengths)
    index[np.repeat(sparse, lengths)] = np.asarray(indices.flatten())
    rows = SparseRows(torch.from_numpy(index), flat, offsets, width)
    rows = rows.with_nan(torch.from_numpy(null)) if null.any() else rows
    every, some = bool((sparse | null).all()), bool(sparse[~null].any())
    few = width >= WIDE and len(rows.values) < n * width // 4
    return rows if few or (some and (every or beyond(rows, exact))) else rows.to_dense()


def to_arrow(column: Rows, null: torch.Tensor | None = None) -> pa.Array:
    """A tensor as a column that Spark reads back as a number or vector; `null` (n,) marks the numbers that are null."""
    if isinstance(column, SparseRows):
        n = len(column)
        offsets = pa.array(column.offsets.numpy().astype(np.int32))
        indices = pa.ListArray.from_arrays(offsets, pa.array(column.indices.numpy().astype(np.int32)))
        values = pa.ListArray.from_arrays(offsets, pa.array(column.values.numpy()))
        sizes = pa.array(np.full(n, column.width, dtype=np.int32))
        return pa.StructArray.from_arrays(
            [pa.array(np.zeros(n, dtype=np.int8)), sizes, indices, values], fields=list(VECTOR)
        )
    if column.ndim == 1:
        return pa.array(column.numpy(), mask=None if null is None else null.numpy())
    n, width = column.shape
    offsets = pa.array(np.arange(0, n * width + 1, width, dtype=np.int32) if width else np.zeros(n + 1, dtype=np.int32))
    values = pa.ListArray.from_arrays(offsets, pa.array(column.contiguous().view(-1).numpy()))
    none = [pa.nulls(n, pa.int32()), pa.nulls(n, pa.list_(pa.int32()))]
    return pa.StructArray.from_arrays([pa.array(np.ones(n, dtype=np.int8)), *none, values], fields=list(VECTOR))


def write_columns(
    columns: Mapping[str, Rows],
    path: Path,
    nulls: Mapping[str, torch.Tensor] | None = None,
    words: Mapping[str, pa.Array] | None = None,
) -> None:
    """Write tensors, and lists of words, as one Parquet file that `schema_of` describes to Spark; `nulls` has the null
    flags of scalars.
    """
    arrays = {name: to_arrow(c, (nulls or {}).get(name)) for name, c in columns.items()}
    pq.write_table(pa.table({**arrays, **(words or {})}), path)


def is_scalar(column: Rows) -> bool:
    return isinstance(column, torch.Tensor) and column.ndim == 1


def schema_of(
    columns: Mapping[str, Rows], metadata: Mapping[str, dict[str, Any]], words: Iterable[str] = ()
) -> StructType:
    """Spark's schema for `write_columns`: vectors with their attributes, numbers as double."""
    return StructType(
        [
            StructField(name, DoubleType() if is_scalar(c) else VectorUDT(), True, metadata.get(name) or {})
            for name, c in columns.items()
        ]
        + [StructField(name, ArrayType(StringType())) for name in words]
    )
