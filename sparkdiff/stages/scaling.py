"""Scalers fitted to each feature: StandardScaler, RobustScaler, MaxAbsScaler, MinMaxScaler."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.affine import Affine, AffineForm, NotSparseError, Parameters, with_buffers
from sparkdiff.stages.base import FeatureStats, LabelStats, parameter, register, tensor
from sparkdiff.tensors.rows import Rows, dense, scaled


def at_columns(scaler: Any, columns: Tensor | None) -> Affine:
    """A scaler restricted to some of its columns (c,), or to all."""
    return scaler if columns is None else with_buffers(scaler, moves=scaler.moves.index_select(0, columns))  # type: ignore[no-any-return]


class Standardizer(Affine):
    """y = (x - shift) * (1 / divisor), and (x - shift) * 0 where the divisor is 0. Like Spark it multiplies by the
    reciprocal, because x / divisor differs in the last bit.

    A subclass gives the names of the divisor and the shift in `weights`, and the Param that turns on the shift in
    `shifts_by`. Without the shift, sparse rows stay sparse.

    Source: org.apache.spark.ml.feature.StandardScalerModel.getTransformFunc.
    """

    shifts_by: ClassVar[str]
    moves: Tensor

    def __init__(self, divisor: Tensor, shift: Tensor, divides: bool, shifts: bool):
        super().__init__()
        self.register_parameter(self.weights[0], parameter(divisor, divides))  # (d,)
        self.register_parameter(self.weights[1], parameter(shift, shifts))  # (d,)
        self.register_buffer("moves", divisor != 0)  # (d,) constant columns always stay 0
        self.divides, self.shifts, self.all_move = divides, shifts, bool(self.moves.all())
        self.makes_dense = f"{self.shifts_by}=True" if shifts else ""

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        divisor, shift = (getattr(self, name) for name in self.weights)
        x = dense(x) - shift if self.shifts else x
        return scaled(x, self.factor(divisor)) if self.divides else x

    def factor(self, divisor: Tensor) -> Tensor:
        if self.all_move:
            return divisor.reciprocal()
        return torch.where(self.moves, 1 / torch.where(self.moves, divisor, 1.0), 0.0)  # no NaN gradient at 0

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        # The slope in a constant column is 0, so that NaN and inf give NaN, as in `forward`.
        divisor, shift = self.weights
        factor = self.factor(p[divisor])[..., None] if self.divides else p[shift].new_ones(1, 1)
        middle = p[shift][..., None]  # (K, d, 1)
        pulled = slope * factor if self.divides else slope

        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> Tensor:
            gradient = gradients[0]
            if self.shifts:
                gradient = gradient - middle * constant
                if shift in room:
                    room[shift].sub_((pulled * constant).sum(-1))
            if divisor in room:
                room[divisor].sub_((gradient * pulled * factor).sum(-1))
            return gradient * factor

        return AffineForm([pulled], -(middle.mT @ pulled) if self.shifts else 0.0, back)

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        if self.shifts:
            raise NotSparseError("centring changes zeros")
        return at_columns(self, columns[0]), columns[0]

    def entry_mask(self) -> dict[str, Tensor]:
        divisor, shift = self.weights
        return {divisor: self.moves, shift: self.moves} if self.divides else {divisor: torch.zeros_like(self.moves)}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        divisor, shift = self.weights
        return {shift: torch.where(self.moves, getattr(self, divisor).detach(), 1.0)}


@register("pyspark.ml.feature.StandardScalerModel")
class StandardScaler(Standardizer):
    """y = (x - mean) * (1 / std), each of the two on request; x * 0 where std = 0."""

    weights = ("std", "mean")
    shifts_by = "withMean"
    feature_axis = {"std": 0, "mean": 0}
    positive = frozenset({"std"})

    @classmethod
    def from_spark(cls, stage: Any) -> "StandardScaler":
        return cls(tensor(stage.std), tensor(stage.mean), stage.getWithStd(), stage.getWithMean())


@register("pyspark.ml.feature.RobustScalerModel")
class RobustScaler(Standardizer):
    """y = (x - median) * (1 / range), each of the two on request; x * 0 where range = 0."""

    weights = ("range", "median")
    shifts_by = "withCentering"
    feature_axis = {"range": 0, "median": 0}
    positive = frozenset({"range"})

    @classmethod
    def from_spark(cls, stage: Any) -> "RobustScaler":
        return cls(tensor(stage.range), tensor(stage.median), stage.getWithScaling(), stage.getWithCentering())


@register("pyspark.ml.feature.MaxAbsScalerModel")
class MaxAbsScaler(Affine):
    """y = x * (1 / maxAbs), and x where maxAbs = 0; sparse stays sparse.

    Source: org.apache.spark.ml.feature.MaxAbsScalerModel.transform.
    """

    weights = ("maxAbs",)
    feature_axis = {"maxAbs": 0}
    positive = frozenset({"maxAbs"})
    moves: Tensor

    def __init__(self, maxAbs: Tensor):
        super().__init__()
        self.maxAbs = parameter(maxAbs)  # (d,)
        self.register_buffer("moves", maxAbs != 0)  # (d,)

    def factor(self, maxAbs: Tensor) -> Tensor:
        return torch.where(self.moves, maxAbs, 1.0).reciprocal()

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        return scaled(x, self.factor(self.maxAbs))

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        factor = self.factor(p["maxAbs"])[..., None]  # (K, d, 1)
        pulled = slope * factor

        def back(gradients: list[Tensor], _constant: Tensor, room: Parameters) -> Tensor:
            if "maxAbs" in room:
                room["maxAbs"].sub_((gradients[0] * pulled * factor).sum(-1) * self.moves)
            return gradients[0] * factor

        return AffineForm([pulled], 0.0, back)

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        return at_columns(self, columns[0]), columns[0]

    def entry_mask(self) -> dict[str, Tensor]:
        return {"maxAbs": self.moves}


@register("pyspark.ml.feature.MinMaxScalerModel")
class MinMaxScaler(Affine):
    """y = (x - originalMin) * ((max - min) / range) + min; a constant column (range 0) gives (min + max) / 2; NaN stays NaN."""

    weights = ("originalMin", "originalMax")
    feature_axis = {"originalMin": 0, "originalMax": 0}
    makes_dense = "scaling changes zeros"
    storage = "compressed"
    range: Tensor
    moves: Tensor

    def __init__(self, originalMin: Tensor, originalMax: Tensor, low: float, high: float):
        super().__init__()
        self.originalMin = parameter(originalMin)  # (d,)
        self.originalMax = parameter(originalMax)  # (d,)
        self.register_buffer("range", originalMax - originalMin)  # (d,) as fitted
        # A constant column stays constant, and so does one whose range is too large for a factor above 0.
        self.register_buffer("moves", (self.range != 0) & ((high - low) / self.range != 0))  # (d,)
        self.low, self.high = low, high

    @classmethod
    def from_spark(cls, stage: Any) -> "MinMaxScaler":
        return cls(tensor(stage.originalMin), tensor(stage.originalMax), stage.getMin(), stage.getMax())

    def forward(self, x: Rows) -> Tensor:  # (n, d) -> (n, d)
        x = dense(x)
        factor = (self.high - self.low) / torch.where(self.moves, self.originalMax - self.originalMin, 1.0)
        constant = torch.where(x.isnan(), x, (self.low + self.high) / 2)
        return torch.where(self.moves, (x - self.originalMin) * factor + self.low, constant)

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        low, moves = p["originalMin"][..., None], self.moves[:, None]  # (K, d, 1)
        range = torch.where(moves, p["originalMax"][..., None] - low, 1.0)
        factor = torch.where(moves, (self.high - self.low) / range, 0.0)
        at_zero = torch.where(moves, self.low - low * factor, (self.low + self.high) / 2)

        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> Tensor:
            by_constant = slope * constant
            steeper = (gradients[0] * slope - low * by_constant).sum(-1) * (factor / range)[..., 0]
            if "originalMin" in room:
                room["originalMin"].add_(steeper - (factor * by_constant).sum(-1))
            if "originalMax" in room:
                room["originalMax"].sub_(steeper)
            return gradients[0] * factor + at_zero * constant

        return AffineForm([slope * factor], at_zero.mT @ slope, back)

    def entry_mask(self) -> dict[str, Tensor]:
        return {"originalMin": self.moves, "originalMax": self.moves}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        unit = torch.where(self.moves, self.range, 1.0)
        return {"originalMin": unit, "originalMax": unit}

    @torch.no_grad()
    def project_(self) -> None:
        # A thousandth of the fitted range stretches the column a thousandfold: below that it is no longer scaling.
        next_double = self.originalMin.nextafter(torch.full_like(self.originalMin, torch.inf))
        least = torch.maximum(self.originalMin + 1e-3 * self.range, next_double)
        least = torch.where(self.moves, least, self.originalMax)
        self.originalMax.copy_(torch.maximum(self.originalMax, least))

    def check_domain(self, uid: str) -> None:
        super().check_domain(uid)
        wrong = self.moves & (self.originalMax <= self.originalMin)
        if bool(wrong.any()):
            j = int(wrong.nonzero()[0])
            low, high = self.originalMin[j].item(), self.originalMax[j].item()
            raise InputError(f"{uid}: originalMax must stay > originalMin, but entry {j} is {high!r} <= {low!r}")
