"""Linear projections: PCA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.sparse import SparseRows
from sparkdiff.stages.base import (
    FeatureStats,
    LabelStats,
    Parameters,
    Pulled,
    Rows,
    StageModule,
    parameter,
    register,
    tensor,
)


@register("pyspark.ml.feature.PCAModel")
class PCA(StageModule):
    """y = x @ pc, without centring, as Spark does. `explainedVariance` is written back as it was fitted."""

    weights = ("pc", "explainedVariance")
    feature_axis = {"pc": 0}

    def __init__(self, pc: Tensor, explainedVariance: Tensor):
        super().__init__()
        self.pc = parameter(pc)  # (d, k)
        self.register_buffer("explainedVariance", explainedVariance)  # (k,)

    @classmethod
    def from_spark(cls, stage: Any) -> PCA:
        return cls(tensor(stage.pc), tensor(stage.explainedVariance))

    def forward(self, x: Rows) -> Tensor:  # (n, d) -> (n, k)
        return x.matmul(self.pc) if isinstance(x, SparseRows) else x @ self.pc

    def pull(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> Pulled:
        pc = p["pc"]

        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> Tensor:
            if "pc" in room:
                room["pc"].add_(gradients[0] @ slope.mT)
            return pc.mT @ gradients[0]

        return Pulled([pc @ slope], 0.0, back)

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[StageModule, Tensor | None]:
        return self, None

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        # Rotations act on x in its own scale: one unit turns a component by one standard deviation of a column.
        spread = torch.where(x.std > 0, x.std, 1.0)
        out = ((x.std[:, None] * self.pc.detach()) ** 2).sum(0).sqrt().clamp_min(1e-12)  # (k,) of uncorrelated columns
        return {"pc": (out / out.mean())[None, :] * (spread.mean() / spread)[:, None]}
