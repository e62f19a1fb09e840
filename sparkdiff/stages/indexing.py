"""Stages for categories: VectorIndexer replaces feature values by their indices, OneHotEncoder makes one-hot blocks."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.jvm import encoders as spark
from sparkdiff.stages.base import StageModule, each_column, register
from sparkdiff.tensors.rows import (
    NEVER,
    SPARSE_FROM,
    Nulls,
    Rows,
    SparseRows,
    dense,
    known_any,
    offsets_of,
    on_gpu,
    width,
)


@register("pyspark.ml.feature.VectorIndexerModel")
class VectorIndexer(StageModule):
    """Values of categorical features become indices; other features do not change.

    An unknown value raises an error with handleInvalid='error' and becomes one additional index with 'keep'. An entry
    that a sparse row does not store stays 0 even if 0 is not a category, as in Spark.

    Source: org.apache.spark.ml.feature.VectorIndexerModel.transformFunc.
    """

    first: Tensor
    values: Tensor
    numbers: Tensor
    unknown: Tensor

    def __init__(self, uid: str, size: int, maps: Mapping[int, Mapping[float, int]], keep: bool):
        super().__init__()
        self.uid, self.size, self.keep = uid, size, keep
        # Spark lists NaN among the categories, but never finds it.
        known = {j: sorted((v, k) for v, k in categories.items() if v == v) for j, categories in maps.items()}
        counts = torch.tensor([0, *(len(known.get(j, ())) for j in range(size))])
        self.most = int(counts.max())
        entries = [entry for j in sorted(known) for entry in known[j]]
        entries.append((math.nan, 0))  # equals no value; without any category there would be nothing to compare with
        # The categories of feature j are the entries first[j] to first[j + 1], ascending by value.
        self.register_buffer("first", counts.cumsum(0))  # (d + 1,)
        self.register_buffer("values", torch.tensor([v for v, _ in entries], dtype=torch.float64))  # (c + 1,)
        self.register_buffer("numbers", torch.tensor([k for _, k in entries], dtype=torch.float64))  # (c + 1,)
        # The index of an unknown value; -1 for a feature that is not categorical. It is 0 if Spark fitted no category,
        # as it does for a feature with only 0.0 and -0.0.
        unknown = [len(maps[j]) if j in maps else -1 for j in range(size)]
        self.register_buffer("unknown", torch.tensor(unknown, dtype=torch.float64))  # (d,)
        self.tells_zeros = -1.0 if any(categories.get(0.0) != 0 for categories in maps.values()) else NEVER
        self.differentiable = len(maps) < size  # type: ignore[misc]  # through the other features

    @classmethod
    def from_spark(cls, stage: Any) -> "VectorIndexer":
        return cls(stage.uid, stage.numFeatures, spark.category_maps(stage), stage.getHandleInvalid() == "keep")

    def nominal_features(self) -> Tensor:
        return (self.unknown >= 0).nonzero()[:, 0]

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        if len(x) and width(x) != self.size:
            raise InputError(
                f"{self.uid}: its input has {width(x)} entries per row, but it was fitted on {self.size}; pass "
                "vectors of that length"
            )
        if isinstance(x, SparseRows):
            out = x.with_values(self.index_values(x.values, x.indices))
            # Dense again if no later stage depends on the storage: the form must not change from batch to batch.
            return dense(out) if self.tells_zeros < self.exact_beyond == NEVER and self.size < SPARSE_FROM else out
        features = torch.arange(self.size, device=x.device).expand(len(x), -1)
        return self.index_values(x.reshape(-1), features.reshape(-1)).view_as(x)

    def index_values(self, x: Tensor, feature: Tensor) -> Tensor:
        """Values x (m,) of these features (m,), with the index of the category in place of each value of a categorical
        feature.
        """
        begin, end, unknown = self.first[feature], self.first[feature + 1], self.unknown[feature]
        nominal = unknown >= 0
        if on_gpu(x):  # for all values, to avoid waiting for the number of categorical ones
            at, known = self.binary_search(x.detach(), begin, end)
            return torch.where(nominal, torch.where(known, self.numbers[at], unknown), x)
        x_nominal, low, high = x[nominal].detach(), begin[nominal], end[nominal]
        at, known = self.binary_search(x_nominal, low, high)
        if not self.keep and not bool(known.all()):
            k = int((~known).nonzero()[0])
            raise InputError(
                f"{self.uid}: feature {int(feature[nominal][k])} holds {x_nominal[k].item()!r}, which is not "
                "one of its categories; set handleInvalid to 'keep', or clean the column"
            )
        number = torch.where(known, self.numbers[at], unknown[nominal])
        return x.masked_scatter(nominal, number)

    def binary_search(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Binary search: for each x, the place of the first category from `low` to `high` that isn't less than x, and
        whether that category equals x; all (m,).
        """
        some, last = low < high, (high - 1).clamp_min(0)
        for _ in range(self.most.bit_length()):
            middle = (low + high) // 2
            less = (low < high) & (self.values[torch.minimum(middle, last)] < x)
            low, high = torch.where(less, middle + 1, low), torch.where(less, high, middle)
        at = torch.minimum(low, last)
        return at, some & (self.values[at] == x)


@register("pyspark.ml.feature.OneHotEncoderModel")
class OneHotEncoder(StageModule):
    """Index -> one-hot block. handleInvalid='keep' has an extra last slot for invalid indices; dropLast drops the last
    slot.

    Null stays null, which is NaN in every slot; without the column `"<name> is null"` NaN is an invalid index. The
    only stage of Spark that accepts a null vector is an assembler with handleInvalid='keep'. `refusing` maps the name
    of an input to the uid of a later stage that refuses a null vector.
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
