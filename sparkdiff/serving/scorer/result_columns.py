"""Conversion of computed columns to Python objects and to Arrow."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyspark.ml.linalg import SparseVector
from torch import Tensor

from sparkdiff.pipeline.column_tensors import WIDE, to_arrow
from sparkdiff.serving.scorer.text.base import as_objects
from sparkdiff.tensors.rows import SparseRows


def result_objects(column: Any, null: Tensor | None, kind: str) -> list[Any]:
    """A computed column as Python objects: numbers, numpy arrays (d,), sparse vectors, text."""
    if isinstance(column, list):
        return column
    if isinstance(column, SparseRows):
        ends = itertools.pairwise(column.offsets.tolist())
        indices, stored = column.indices.numpy(), column.values.numpy()
        return [
            stored[a:b] if b - a == column.width else SparseVector(column.width, indices[a:b], stored[a:b])
            for a, b in ends
        ]
    if column.ndim == 2:
        return list(column.numpy())
    return as_objects(column, null, "double" if kind == "float" else kind)


def result_arrow(column: Any, null: Tensor | None, kind: str) -> pa.Array:
    """A computed column as Arrow: numbers, lists of doubles, Spark's own form of wide sparse vectors, text."""
    if isinstance(column, list):
        return pa.array(column, arrow_type(kind))
    if isinstance(column, SparseRows):
        if column.width > WIDE:
            return to_arrow(column)
        column = column.to_dense()
    if column.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1).numpy()), column.shape[1])
    array = pa.array(column.numpy(), mask=None if null is None else null.numpy())
    return array.cast(arrow_type(kind), safe=kind != "bigint")


def arrow_type(kind: str) -> pa.DataType:
    """Arrow type of a computed column that is no vector, given the column's type in Spark."""
    known = {
        "int": pa.int32(),
        "bigint": pa.int64(),
        "float": pa.float32(),
        "string": pa.string(),
        "array<string>": pa.list_(pa.string()),
    }
    return known.get(kind, pa.float64())


def concatenation(parts: Sequence[pa.Array]) -> pa.Array:
    """Concatenation of the parts of a computed column; dense parts get Spark's own form if other parts are sparse."""
    if len({part.type for part in parts}) > 1:
        parts = [_spark_form(part) if pa.types.is_fixed_size_list(part.type) else part for part in parts]
    return pa.concat_arrays(parts)


def _spark_form(part: pa.Array) -> pa.Array:
    flat = np.array(part.flatten(), dtype=np.float64)
    return to_arrow(torch.from_numpy(flat).view(len(part), part.type.list_size))
