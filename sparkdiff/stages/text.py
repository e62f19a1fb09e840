"""Stages that weight words: IDF."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparkdiff.jvm import mllib
from sparkdiff.rows import Rows, scaled
from sparkdiff.stages.affine import AffineForm, Columnwise, Parameters, affine_form_by_column
from sparkdiff.stages.base import parameter, register, tensor
from sparkdiff.stages.constraints import Constraint, Positive


@register("pyspark.ml.feature.IDFModel")
class IDF(Columnwise):
    """y = x * idf; sparse stays sparse. `docFreq` and `numDocs` are written back as they were fitted.

    Each idf trains as a factor of itself: what is 0, as for words in fewer than minDocFreq documents, stays 0.

    Source: org.apache.spark.mllib.feature.IDFModel.transformDense and transformSparse.
    """

    weights = ("idf",)
    feature_axis = {"idf": 0}

    def __init__(self, idf: Tensor):
        super().__init__()
        self.idf = parameter(idf)  # (d,)

    @classmethod
    def from_spark(cls, stage: Any) -> "IDF":
        return cls(tensor(stage.idf))

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        return scaled(x, self.idf)

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        return affine_form_by_column("idf", p, slope)

    def constraints(self) -> dict[str, Constraint]:
        return {"idf": Positive()}

    def to_spark(self, stage: Any) -> Any:
        return mllib.idf(stage, self.weight("idf"))
