"""Stages that fill gaps: Imputer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparkdiff.jvm import encoders as spark
from sparkdiff.stages.base import (
    SUPPORT,
    FeatureStats,
    LabelStats,
    Nulls,
    StageModule,
    parameter,
    register,
    tensor,
)


@register("pyspark.ml.feature.ImputerModel")
class Imputer(StageModule):
    """The surrogate where a number is null or equals missingValue (NaN equals NaN), else the number.

    Source: org.apache.spark.ml.feature.ImputerModel.transform.
    """

    def __init__(self, surrogates: Tensor, missing: float):
        super().__init__()
        self.surrogates = parameter(surrogates)  # (c,), one per column
        self.missing, self.tells_null = missing, not math.isnan(missing)

    @classmethod
    def from_spark(cls, stage: Any) -> Imputer:
        surrogates = spark.surrogates(stage, cls.inputs(stage))
        return cls(tensor(surrogates), stage.getMissingValue())

    def forward(self, *columns: Tensor, nulls: Nulls | None = None) -> tuple[Tensor, ...]:  # (n,) each
        absent = self.absent(columns, nulls)
        return tuple(torch.where(a, s, x) for a, s, x in zip(absent, self.surrogates.unbind(), columns, strict=True))

    def absent(self, columns: tuple[Tensor, ...], nulls: Nulls | None) -> list[Tensor]:
        """Per column which rows (n,) are filled."""
        if not self.tells_null:
            return [x.isnan() for x in columns]
        told = nulls or [None] * len(columns)
        return [x == self.missing if n is None else (x == self.missing) | n for x, n in zip(columns, told, strict=True)]

    def edges(self) -> tuple[tuple[float, ...], ...]:
        return tuple((self.missing, 0.0) for _ in self.surrogates)

    def tally(self, *columns: Tensor, nulls: Nulls | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Per column: the rows that are filled, and of the others their number, sum and sum of squares."""
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
        """A surrogate's unit is the standard deviation of what its column holds."""
        n = x.sums["there"].clamp_min(1)
        mean = x.sums["sum"] / n
        spread = (x.sums["square"] / n - mean * mean).clamp_min(0).sqrt()
        return {"surrogates": torch.where(spread > 0, spread, 1.0)}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"surrogates": x.sums["filled"] >= SUPPORT}

    def to_spark(self, stage: Any) -> Any:
        return spark.with_surrogates(stage, dict(zip(type(self).inputs(stage), self.surrogates.tolist(), strict=True)))
