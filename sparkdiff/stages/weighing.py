"""Stages that multiply the entries of a row: Normalizer, ElementwiseProduct, IDF."""

import math
from typing import Any

import torch
from torch import Tensor

from sparkdiff.jvm import mllib
from sparkdiff.stages.affine import Factors
from sparkdiff.stages.base import FeatureStats, LabelStats, StageModule, register, tensor
from sparkdiff.stages.constraints import PositiveValues
from sparkdiff.tensors.rows import ORDINARY, Rows, SparseRows


@register("pyspark.ml.feature.Normalizer")
class Normalizer(StageModule):
    """y = x / norm_p(x), p from 1 to infinity; a row of norm 0 stays unchanged. The infinity norm ignores NaN, as in
    Spark.

    Source: org.apache.spark.mllib.feature.Normalizer, Vectors.norm.
    """

    tells_zeros = ORDINARY

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    @classmethod
    def from_spark(cls, stage: Any) -> "Normalizer":
        return cls(float(stage.getP()))

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        norm = self.norm(x)
        if isinstance(x, SparseRows):
            return x.with_values(x.values / norm[x.rows()])
        return x / norm[:, None]

    def norm(self, x: Rows) -> Tensor:
        """Norm of each row, (n,); 1 if it is 0."""
        if math.isinf(self.p):
            norm = largest(x)
            return torch.where(norm == 0, 1.0, norm)
        size = (x.values if isinstance(x, SparseRows) else x).abs()
        # Powers of many numbers exceed float32's range.
        powers = size if self.p == 1 else size * size if self.p == 2 else size.to(torch.float64) ** self.p
        rows = powers.new_zeros(len(x)).index_add(0, x.rows(), powers) if isinstance(x, SparseRows) else powers.sum(1)
        total = torch.where(rows == 0, 1.0, rows)  # before the root, whose derivative at 0 is infinite
        return total if self.p == 1 else total.sqrt() if self.p == 2 else (total ** (1 / self.p)).to(size.dtype)


def largest(x: Rows) -> Tensor:
    """Largest absolute value of each row, (n,); 0 without entries; NaN is smaller than anything."""
    size = (x.values if isinstance(x, SparseRows) else x).abs()
    size = torch.where(size.isnan(), 0.0, size)
    if isinstance(x, SparseRows):
        return size.new_zeros(len(x)).scatter_reduce(0, x.rows(), size, "amax")
    return torch.cat([size, size.new_zeros(len(x), 1)], 1).amax(1)


@register("pyspark.ml.feature.ElementwiseProduct")
class ElementwiseProduct(Factors):
    """y = x * scalingVec; sparse stays sparse. The weights are a Param of the stage.

    Source: org.apache.spark.mllib.feature.ElementwiseProduct.
    """

    weights = ("scalingVec",)
    weight_params = ("scalingVec",)
    feature_axis = {"scalingVec": 0}
    refusals = ("a scalingVec with infinite values or NaN",)

    scalingVec: Tensor

    @classmethod
    def refuses(cls, stage: Any) -> str | None:
        if not bool(tensor(stage.getScalingVec()).isfinite().all()):
            return (
                "scalingVec holds infinite values or NaN, and Spark's product with 0 depends on how the vector is "
                "stored"
            )
        return super().refuses(stage)

    @classmethod
    def from_spark(cls, stage: Any) -> "ElementwiseProduct":
        return cls(tensor(stage.getScalingVec()))

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        # Relative to each weight; a weight of 0 moves like the others on average.
        size = self.scalingVec.detach().abs()
        usual = size.sum() / (size > 0).sum().clamp_min(1)
        return {"scalingVec": torch.where(size > 0, size, usual if usual > 0 else 1.0)}


@register("pyspark.ml.feature.IDFModel")
class IDF(Factors):
    """y = x * idf; sparse stays sparse. `docFreq` and `numDocs` are written back as they were fitted.

    Training multiplies each idf by a positive factor, so an idf of 0 (a word in fewer than minDocFreq documents) stays
    0.

    Source: org.apache.spark.mllib.feature.IDFModel.transformDense and transformSparse.
    """

    weights = ("idf",)
    feature_axis = {"idf": 0}
    domains = {"idf": PositiveValues()}

    def to_spark(self, stage: Any) -> Any:
        return mllib.idf(stage, self.weight("idf"))
