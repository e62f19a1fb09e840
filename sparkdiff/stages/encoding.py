"""Stages that turn categories into numbers: OneHotEncoder."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.base import StageModule, each_column, register
from sparkdiff.tensors.rows import SPARSE_FROM, Nulls, Rows, SparseRows, known_any, offsets_of, on_gpu


@register("pyspark.ml.feature.OneHotEncoderModel")
class OneHotEncoder(StageModule):
    """Index -> one-hot block. handleInvalid='keep' has an extra last slot for invalid indices; dropLast drops the last slot.

    Null stays null, which is NaN in every slot; without the column `"<name> is null"` NaN is an invalid index. No stage of Spark
    but an assembler with handleInvalid='keep' takes a vector that is null: `refusing` has the uid of one that reads it, by input.
    """

    expands = True
    differentiable = False
    own_attributes = True
    storage = "sparse"
    takes_nulls = True
    refusing: Mapping[str, str] = MappingProxyType({})

    def __init__(self, uid: str, names: tuple[str, ...], sizes: tuple[int, ...], keep: bool, drop_last: bool):
        super().__init__()
        self.uid, self.names, self.sizes, self.keep, self.drop_last = uid, names, sizes, keep, drop_last

    @classmethod
    def from_spark(cls, stage: Any) -> "OneHotEncoder":
        sizes = tuple(int(s) for s in stage.categorySizes)
        return cls(stage.uid, cls.inputs(stage), sizes, stage.getHandleInvalid() == "keep", stage.getDropLast())

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(float(k) for k in range(-self.keep, min(size, 100) + self.keep)) for size in self.sizes)

    def forward(
        self, *columns: Tensor, nulls: Nulls | None = None
    ) -> Rows | tuple[Rows, ...]:  # each (n,) -> (n, size)
        return each_column(self.encode, columns, nulls, self.sizes, self.names)

    def encode(self, x: Tensor, null: Tensor | None, size: int, name: str) -> Rows:
        if null is None or not (on_gpu(null) or bool(null.any())):
            return self.hot(x, size, name)
        if name in self.refusing and known_any(null):
            raise InputError(
                f"{self.uid}: column {name!r} holds null, so that its vector is null, which {self.refusing[name]} refuses: fill "
                "the column, or assemble the vector with handleInvalid='keep'"
            )
        out = self.hot(torch.where(null, 0.0, x), size, name)
        return out.with_nan(null) if isinstance(out, SparseRows) else torch.where(null[:, None], torch.nan, out)

    def hot(self, x: Tensor, size: int, name: str) -> Rows:
        valid = (x >= 0) & (x < size)  # NaN is invalid
        if not self.keep and known_any(~valid):
            raise InputError(
                f"{self.uid}: column {name!r} holds the index {x[~valid][0].item()!r}, but the categories are 0 to {size - 1}; "
                "set handleInvalid to 'keep', or clean the column"
            )
        index = torch.where(valid, x, size).long()
        width = size + self.keep - self.drop_last
        if width < SPARSE_FROM:
            return F.one_hot(index, size + 1)[:, :width].to(x.dtype)
        stored = index < width
        index = index[stored]
        return SparseRows(index, torch.ones_like(index, dtype=x.dtype), offsets_of(stored), width)
