"""Stages that fill missing values: Imputer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.jvm import encoders as spark
from sparkdiff.stages.base import SUPPORT, FeatureStats, LabelStats, deviation, parameter, register, tensor
from sparkdiff.stages.inputs import Field, FieldReader, StaysInSparkError
from sparkdiff.tensors.rows import Nulls

WHOLE = ("tinyint", "smallint", "int", "bigint")


@register("pyspark.ml.feature.ImputerModel")
class Imputer(FieldReader):
    """The surrogate where a number is null or equals missingValue (NaN equals NaN), else the number.

    An output has the type of its input: in an integer column a surrogate loses its fraction and does not train; in a
    float column it loses precision.

    Source: org.apache.spark.ml.feature.ImputerModel.transform.
    """

    undecided = "hold doubles"
    refusals = ("columns of other types than integers and floating-point numbers",)

    def __init__(self, surrogates: Tensor, missing: float, kinds: Sequence[str]):
        super().__init__()
        self.whole, self.floats = [k in WHOLE for k in kinds], [k == "float" for k in kinds]
        self.surrogates = parameter(surrogates, not all(self.whole))  # (c,), one per column
        self.missing, self.takes_nulls = missing, not math.isnan(missing)

    @classmethod
    def from_spark(cls, stage: Any) -> "Imputer":
        return cls.from_fields(stage, [None for _ in cls.inputs(stage)])

    @classmethod
    def from_fields(cls, stage: Any, fields: Sequence[Field | None]) -> "Imputer":
        columns, kinds = cls.inputs(stage), ["double" if f is None else f.kind for f in fields]
        for column, kind in zip(columns, kinds, strict=True):
            if kind not in (*WHOLE, "float", "double"):
                raise StaysInSparkError(
                    f"column {column!r} is {kind}: Spark rounds surrogates to this type, which torch does not have"
                )
        return cls(tensor(spark.surrogates(stage, columns)), stage.getMissingValue(), kinds)

    def fill_values(self) -> list[Tensor]:
        """Replacement of missing values per column, ()."""
        parts = zip(self.surrogates.unbind(), self.whole, self.floats, strict=True)
        return [s.trunc() if whole else s.float().to(s.dtype) if narrow else s for s, whole, narrow in parts]

    def forward(self, *columns: Tensor, nulls: Nulls | None = None) -> tuple[Tensor, ...]:  # (n,) each
        absent = self.absent(columns, nulls)
        return tuple(torch.where(a, s, x) for a, s, x in zip(absent, self.fill_values(), columns, strict=True))

    def absent(self, columns: tuple[Tensor, ...], nulls: Nulls | None) -> list[Tensor]:
        """Masks of the rows (n,) that are filled, per column."""
        if not self.takes_nulls:
            return [x.isnan() for x in columns]
        flags = nulls or [None] * len(columns)
        return [
            x == self.missing if n is None else (x == self.missing) | n for x, n in zip(columns, flags, strict=True)
        ]

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        return tuple((self.missing, 0.0) for _ in self.surrogates)

    def training_sums(self, *columns: Tensor, nulls: Nulls | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Number of filled rows, and number, sum and sum of squares of the others, per column."""
        filled = torch.stack(self.absent(columns, nulls))  # (c, n)
        there = torch.stack(columns).masked_fill(filled, 0.0)
        there = torch.where(there.isfinite(), there, 0.0)
        return {
            "filled": filled.sum(1),
            "there": (~filled).sum(1),
            "sum": there.sum(1),
            "square": (there * there).sum(1),
        }

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Units: the standard deviation of the column for each surrogate; 0 for an integer column."""
        moves = ~torch.tensor(self.whole)
        return {"surrogates": deviation(x.sums["there"], x.sums["sum"], x.sums["square"]) * moves}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"surrogates": x.sums["filled"] >= SUPPORT}

    def to_spark(self, stage: Any) -> Any:
        return spark.with_surrogates(stage, dict(zip(type(self).inputs(stage), self.surrogates.tolist(), strict=True)))
