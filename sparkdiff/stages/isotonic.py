"""IsotonicRegression: a rising or falling curve of one feature, linear between boundaries."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.jvm import mllib
from sparkdiff.stages.base import FeatureStats, LabelStats, parameter, register, tensor
from sparkdiff.stages.constraints import Constraint, OrderedValues
from sparkdiff.stages.predictor import LeastSquares
from sparkdiff.tensors.rows import Nulls, Rows, SparseRows, on_gpu

EDGES = 1000
"""Largest number of rows with the feature at a boundary on which parity with Spark is checked."""


class RisingValues(OrderedValues):
    """Entries that ascend along the last axis, even if rounding would swap neighbours."""

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        return super().value(start, move).cummax(-1).values


class FallingValues(RisingValues):
    """Entries that descend along the last axis, even if rounding would swap neighbours."""

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        return -super().value(-start, move)

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        return super().move_between(-start, -value)


@register("pyspark.ml.regression.IsotonicRegressionModel")
class IsotonicRegression(LeastSquares):
    """prediction = y1 + (y2 - y1) (x - x1) / (x2 - x1) between two boundaries, and the outer predictions beyond them.

    Of a vector only the entry at featureIndex is read. At a boundary the prediction is that of the boundary (of several
    equal boundaries, the one that java.util.Arrays.binarySearch finds), and the derivative is the mean of the slopes on
    its two sides. NaN is above all numbers; null stays null.

    Source: org.apache.spark.mllib.regression.IsotonicRegressionModel.predict.
    """

    weights = ("boundaries", "predictions", "isotonic")
    refusals = ("no boundaries",)
    takes_nulls = True
    writes_null = True

    def __init__(self, boundaries: Tensor, predictions: Tensor, isotonic: bool, index: int, uid: str):
        super().__init__()
        self.register_buffer("boundaries", boundaries, persistent=False)  # (m,) ascending
        self.predictions = parameter(predictions)  # (m,)
        self.isotonic, self.index, self.uid = isotonic, index, uid
        self.register_buffer(
            "met", torch.from_numpy(_binary_search_index(boundaries.numpy())), persistent=False
        )  # (m,) int64

    boundaries: Tensor
    met: Tensor

    @classmethod
    def from_spark(cls, stage: Any) -> "IsotonicRegression":
        # A Param of the stage has this, too, but a user could set it on the fitted model.
        predictions = tensor(stage.predictions)
        rises = bool((predictions.diff() > 0).any())
        falls = bool((predictions.diff() < 0).any())
        isotonic = rises or (stage.getIsotonic() and not falls)
        return cls(tensor(stage.boundaries), predictions, isotonic, stage.getFeatureIndex(), stage.uid)

    @classmethod
    def refuses(cls, stage: Any) -> str | None:
        return None if len(stage.boundaries) else "it has no boundaries, so Spark cannot predict with it either"

    def forward(self, x: Rows, nulls: Nulls | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.columns(self.margin(x, nulls))

    def margin(self, x: Rows, nulls: Nulls | None = None) -> Tensor:  # type: ignore[override]  # (n,) or (n, d) -> (n,)
        found = self._curve(self._feature(x))
        null = nulls[0] if nulls else None
        return found if null is None else torch.where(null, torch.nan, found)

    def _curve(self, x: Tensor) -> Tensor:
        b, y, last = self.boundaries, self.predictions, len(self.boundaries) - 1
        value = x.detach().contiguous()
        at = torch.searchsorted(
            b, value
        )  # the first boundary that isn't below; in Java -0.0 is below 0.0, NaN above all
        past = (b[at.clamp_max(last)] == value) & b[at.clamp_max(last)].signbit() & ~value.signbit()
        at = torch.where(past, torch.searchsorted(b, value, right=True), at)
        at = torch.where(value.isnan(), last + 1, at)
        above, below = at.clamp_max(last), (at - 1).clamp_min(0)
        inside = (at > 0) & (at <= last)
        on = (b[above] == value) & (b[above].signbit() == value.signbit())
        between = inside & ~on
        width = torch.where(between, b[above] - b[below], 1.0)
        step = torch.where(between, x - b[below], 0.0)
        curve = y[below] + (y[above] - y[below]) * step / width
        end = torch.where(at == 0, y[0], y[last])
        level = y[self.met[above]]
        if torch.is_grad_enabled() and x.requires_grad:
            level = level + torch.where(on, self._slope(above) * (x - x.detach()), 0.0)
        return torch.where(on, level, torch.where(inside, curve, end))

    def _feature(self, x: Rows) -> Tensor:
        if isinstance(x, SparseRows):
            here = x.indices == self.index
            if on_gpu(here):  # without waiting for the number of entries
                return x.values.new_zeros(len(x)).index_add(0, x.rows(), torch.where(here, x.values, 0.0))
            return x.values.new_zeros(len(x)).index_add(0, x.rows()[here], x.values[here])
        return x[:, self.index] if x.ndim == 2 else x

    def _slope(self, at: Tensor) -> Tensor:
        """Mean of the slopes on both sides of these boundaries (n,)."""
        width = self.boundaries.diff()
        slope = self.predictions.detach().diff() / torch.where(width > 0, width, torch.inf)
        flat = slope.new_zeros(1)
        return (torch.cat([flat, slope])[at] + torch.cat([slope, flat])[at]) / 2

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        unit = torch.ones_like(self.predictions)  # the steps move by factors
        unit[0] = self.margin_unit(y)
        return {"predictions": unit}

    def constraints(self) -> dict[str, Constraint]:
        return {"predictions": RisingValues() if self.isotonic else FallingValues()}

    def critical_rows(self, row: Tensor) -> Tensor:
        """At most EDGES variants of `row`, (1,) or (1, d), with the feature at a boundary."""
        places = self.boundaries[:: -(-len(self.boundaries) // EDGES)]
        if row.ndim == 1:
            return places.clone()
        rows = row.repeat(len(places), 1)
        rows[:, self.index] = places
        return rows

    def check_domain(self, uid: str) -> None:
        super().check_domain(uid)
        steps = self.predictions.diff() if self.isotonic else -self.predictions.diff()
        if bool((steps < 0).any()):
            i = int((steps < 0).nonzero()[0])
            a, b = self.predictions[i].item(), self.predictions[i + 1].item()
            way = "rise" if self.isotonic else "fall"
            raise InputError(
                f"{uid}: predictions must {way} between boundaries, but {a!r} comes before {b!r}; sort them "
                "before writing back"
            )

    def to_spark(self, stage: Any) -> Any:
        # In Java 0.0 is above -0.0.
        return mllib.isotonic(stage, self.weight("boundaries"), self.weight("predictions") + 0.0, self.isotonic)


def _binary_search_index(boundaries: np.ndarray) -> np.ndarray:
    """Index that java.util.Arrays.binarySearch finds for the value of each boundary, (m,)."""
    out = np.arange(len(boundaries))
    for value in np.unique(boundaries[1:][boundaries[1:] == boundaries[:-1]]):
        low, high = 0, len(boundaries) - 1
        while boundaries[(low + high) // 2] != value:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if boundaries[middle] < value else (low, middle - 1)
        out[boundaries == value] = (low + high) // 2
    return out
