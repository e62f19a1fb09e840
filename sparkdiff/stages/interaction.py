"""Products of every entry of one column with every entry of the others: Interaction."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.base import register
from sparkdiff.stages.inputs import UNDECIDED, Field, FieldReader, StaysInSparkError, values_of
from sparkdiff.tensors.rows import (
    ORDINARY,
    SPARSE_FROM,
    Nulls,
    Rows,
    SparseRows,
    as_sparse,
    beyond,
    dense,
    is_stored,
    known_any,
    offsets_of,
    on_gpu,
    sparse_where,
    stored_as,
    width,
)


@register("pyspark.ml.feature.Interaction")
class Interaction(FieldReader):
    """All products of one entry from each input column; the index of the first column varies slowest, and a scalar is a
    column of one entry.

    A nominal scalar with more than one value is first turned into a one-hot block. An entry that Spark does not store
    gives no product, whatever the other factor: 0 * NaN is NaN for an entry of a dense vector, and 0 for one that a
    sparse vector does not store. Null is refused.

    Source: org.apache.spark.ml.feature.{Interaction, FeatureEncoder}.
    """

    refusals = (
        "columns without metadata",
        "vectors of categories",
        "nominal columns without a number of values",
    )
    expands = True
    storage = "compressed"
    takes_nulls = True

    def __init__(self, uid: str, names: tuple[str, ...], values: tuple[int, ...], storage: tuple[str, ...]):
        super().__init__()
        self.uid, self.names = uid, names
        self.values = values  # number of values of a nominal scalar; 1 for a number, or a vector of numbers
        self.storage_of = storage

    @classmethod
    def from_spark(cls, stage: Any) -> "Interaction":
        """Module for columns that hold no categories."""
        names = cls.inputs(stage)
        return cls(stage.uid, names, (1,) * len(names), ("",) * len(names))

    @classmethod
    def from_fields(cls, stage: Any, fields: Sequence[Field | None]) -> "Interaction":
        names, values, storage = cls.inputs(stage), [], []
        for name, field in zip(names, fields, strict=True):
            if field is None:
                raise StaysInSparkError(f"the categories of column {name!r} are {UNDECIDED}")
            values.append(_categories(name, field))
            storage.append(field.storage)
        return cls(stage.uid, names, tuple(values), tuple(storage))

    def tells_zeros_beyond(self, place: int) -> float:
        # A zero is multiplied by numbers of other columns, so its storage matters although it is small.
        return ORDINARY if self.storage_of[place] else -1.0

    def forward(
        self, *columns: Rows, nulls: Nulls | None = None
    ) -> Rows:  # scalars (n,) and vectors (n, d_i) -> (n, product of d_i)
        for name, null in zip(self.names, nulls or (None,) * len(columns), strict=True):
            if null is not None and known_any(null):
                raise InputError(
                    f"{self.uid}: column {name!r} holds null, which Spark refuses: fill it, or leave the row out"
                )
        sizes = [max(width(c), k) for c, k in zip(columns, self.values, strict=True)]
        finite = not any(beyond(c, ORDINARY) for c in columns)
        sparse = any(isinstance(c, SparseRows) for c in columns)
        if sparse or (math.prod(sizes) >= SPARSE_FROM and max(self.values) > 1):
            # With finite numbers, zeros may be left out.
            storage = ["sparse" if s == "compressed" and finite else s for s in self.storage_of]
            parts = [self._as_sparse_rows(*of) for of in zip(columns, self.names, self.values, storage, strict=True)]
            return reduce(lambda fast, slow: _row_products(slow, fast), reversed(parts))
        strided = [
            self._as_matrix(dense(c), name, k) for c, name, k in zip(columns, self.names, self.values, strict=True)
        ]
        product = reduce(lambda fast, slow: (slow[:, :, None] * fast[:, None, :]).flatten(1), reversed(strided))
        if finite and not on_gpu(product):
            return product
        storage = ["sparse" if k > 1 else s for k, s in zip(self.values, self.storage_of, strict=True)]
        counts = reversed([*map(is_stored, strided, storage)])
        stored = reduce(lambda fast, slow: (slow[:, :, None] & fast[:, None, :]).flatten(1), counts)
        known = reduce(torch.logical_and, [x.isfinite().all() for x in strided])  # without waiting for a GPU
        return torch.where(stored | known, product, 0.0)

    def _index(self, x: Tensor, name: str, values: int) -> Tensor:
        valid = (x >= 0) & (x < values) & (x == x.floor())  # NaN is invalid
        if known_any(~valid):
            raise InputError(
                f"{self.uid}: column {name!r} holds {x[~valid][0].item()!r}, but its categories are 0 to {values - 1}; "
                "clean the column, or index it again"
            )
        return x.long()

    def _as_matrix(self, column: Tensor, name: str, values: int) -> Tensor:  # (n,) or (n, d) -> (n, d or values)
        if values > 1:
            return torch.nn.functional.one_hot(self._index(column, name, values), values).to(column.dtype)
        return column[:, None] if column.ndim == 1 else column

    def _as_sparse_rows(self, column: Rows, name: str, values: int, storage: str) -> SparseRows:
        """The column as sparse rows with the entries that Spark stores, given its `storage`; only these form products."""
        if isinstance(column, Tensor) and column.ndim == 1:
            index = self._index(column, name, values) if values > 1 else torch.zeros_like(column, dtype=torch.int64)
            value = torch.ones_like(column) if values > 1 else column
            return SparseRows(index, value, torch.arange(len(column) + 1, device=column.device), values)
        if isinstance(column, Tensor):
            return sparse_where(column, is_stored(column, storage))
        return as_sparse(stored_as(column, storage)) if storage == "compressed" else column


def _categories(name: str, field: Field) -> int:
    """Number of one-hot columns of a scalar; 1 for a number or a vector.

    Raises:
        StaysInSparkError: Spark itself refuses the column, or encodes it in a way that depends on its storage.
    """
    attributes = field.attributes or {}
    if not field.vector:
        if attributes.get("type") != "nominal":
            return 1
        if "num_vals" not in attributes and "vals" not in attributes:
            raise StaysInSparkError(
                f"column {name!r} is nominal without a number of values, and Spark refuses it: set the number "
                "in the metadata"
            )
        return max(1, values_of(attributes))
    nominal = [a for a in (attributes.get("attrs") or {}).get("nominal", ()) if values_of(a) != 1]
    if nominal:
        raise StaysInSparkError(
            f"vector {name!r} holds categories, which Spark encodes differently in dense and in sparse rows; "
            "give Interaction the index columns instead"
        )
    return 1


def _row_products(slow: SparseRows, fast: SparseRows) -> SparseRows:
    """Products of every stored entry of `slow` with every stored entry of `fast`, row by row; `fast`'s index varies
    fastest.
    """
    many, few = slow.lengths(), fast.lengths()
    offsets = offsets_of(many * few)
    row = torch.repeat_interleave(torch.arange(len(slow), device=slow.device), many * few)
    place = torch.arange(len(row), device=row.device) - offsets[row]
    i = slow.offsets[row] + place // few[row]
    j = fast.offsets[row] + place % few[row]
    index = slow.indices[i] * fast.width + fast.indices[j]
    return SparseRows(index, slow.values[i] * fast.values[j], offsets, slow.width * fast.width)
