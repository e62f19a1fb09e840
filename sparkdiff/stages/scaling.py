"""Scalers: StandardScaler, MinMaxScaler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.sparse import SparseRows
from sparkdiff.stages.base import (
    FeatureStats,
    LabelStats,
    NotSparseError,
    Parameters,
    Pulled,
    Rows,
    StageModule,
    dense,
    parameter,
    register,
    tensor,
)


@register("pyspark.ml.feature.StandardScalerModel")
class StandardScaler(StageModule):
    """y = (x - mean) * (1 / std), and x * 0 where std = 0, by the reciprocal as in Spark (x / std differs in the last bit)."""

    weights = ("std", "mean")
    feature_axis = {"std": 0, "mean": 0}
    positive = frozenset({"std"})
    moves: Tensor

    def __init__(self, std: Tensor, mean: Tensor, with_std: bool, with_mean: bool):
        super().__init__()
        self.std = parameter(std, with_std)  # (d,)
        self.mean = parameter(mean, with_mean)  # (d,)
        self.register_buffer("moves", std != 0)  # (d,) constant columns stay 0, always
        self.with_std, self.with_mean, self.all_move = with_std, with_mean, bool(self.moves.all())

    @classmethod
    def from_spark(cls, stage: Any) -> StandardScaler:
        return cls(tensor(stage.std), tensor(stage.mean), stage.getWithStd(), stage.getWithMean())

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d); sparse stays sparse without mean
        if not self.with_std:
            return dense(x) - self.mean if self.with_mean else x
        factor = self.factor(self.std)
        if isinstance(x, SparseRows) and not self.with_mean:
            return x.with_values(x.values * factor[x.indices])
        return (dense(x) - self.mean) * factor if self.with_mean else dense(x) * factor

    def factor(self, std: Tensor) -> Tensor:
        if self.all_move:
            return std.reciprocal()
        return torch.where(self.moves, 1 / torch.where(self.moves, std, 1.0), 0.0)  # no NaN gradient at std = 0

    def pull(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> Pulled:
        # The slope in a constant column is 0, which keeps NaN and inf NaN, as in `forward`.
        factor = self.factor(p["std"])[..., None] if self.with_std else torch.ones(1, 1, dtype=torch.float64)
        mean = p["mean"][..., None]  # (K, d, 1)
        pulled = slope * factor if self.with_std else slope

        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> Tensor:
            gradient = gradients[0]
            if self.with_mean:
                gradient = gradient - mean * constant
                if "mean" in room:
                    room["mean"].sub_((pulled * constant).sum(-1))
            if "std" in room:
                room["std"].sub_((gradient * pulled * factor).sum(-1))
            return gradient * factor

        return Pulled([pulled], -(mean.mT @ pulled) if self.with_mean else 0.0, back)

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[StageModule, Tensor | None]:
        [reached] = columns
        if self.with_mean or reached is None:
            raise NotSparseError("a column of 0 isn't 0 when it is centred")
        if self.all_move:
            return self, reached
        return self.with_buffers(moves=self.moves.index_select(0, reached)), reached

    def counts(self) -> dict[str, Tensor]:
        return {"std": self.moves, "mean": self.moves} if self.with_std else {"std": torch.zeros_like(self.moves)}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"mean": torch.where(self.moves, self.std.detach(), 1.0)}


@register("pyspark.ml.feature.MinMaxScalerModel")
class MinMaxScaler(StageModule):
    """y = (x - originalMin) * ((max - min) / range) + min; a constant column (range 0) gives (min + max) / 2; NaN stays NaN."""

    weights = ("originalMin", "originalMax")
    feature_axis = {"originalMin": 0, "originalMax": 0}
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
    def from_spark(cls, stage: Any) -> MinMaxScaler:
        return cls(tensor(stage.originalMin), tensor(stage.originalMax), stage.getMin(), stage.getMax())

    def forward(self, x: Rows) -> Tensor:  # (n, d) -> (n, d)
        x = dense(x)
        factor = (self.high - self.low) / torch.where(self.moves, self.originalMax - self.originalMin, 1.0)
        constant = torch.where(x.isnan(), x, (self.low + self.high) / 2)
        return torch.where(self.moves, (x - self.originalMin) * factor + self.low, constant)

    def pull(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> Pulled:
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

        return Pulled([slope * factor], at_zero.mT @ slope, back)

    def counts(self) -> dict[str, Tensor]:
        return {"originalMin": self.moves, "originalMax": self.moves}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        unit = torch.where(self.moves, self.range, 1.0)
        return {"originalMin": unit, "originalMax": unit}

    @torch.no_grad()
    def project_(self) -> None:
        # A range of a thousandth of the fitted one would stretch the column a thousandfold: nearer to 0 it isn't scaling.
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
