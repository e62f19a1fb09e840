"""Stages that weight words: IDF."""

from typing import Any

from sparkdiff.jvm import mllib
from sparkdiff.stages.affine import Factors
from sparkdiff.stages.base import register, tensor
from sparkdiff.stages.constraints import Constraint, Positive


@register("pyspark.ml.feature.IDFModel")
class IDF(Factors):
    """y = x * idf; sparse stays sparse. `docFreq` and `numDocs` are written back as they were fitted.

    Each idf trains as a factor of itself: what is 0, as for words in fewer than minDocFreq documents, stays 0.

    Source: org.apache.spark.mllib.feature.IDFModel.transformDense and transformSparse.
    """

    weights = ("idf",)
    feature_axis = {"idf": 0}

    @classmethod
    def from_spark(cls, stage: Any) -> "IDF":
        return cls(tensor(stage.idf))

    def constraints(self) -> dict[str, Constraint]:
        return {"idf": Positive()}

    def to_spark(self, stage: Any) -> Any:
        return mllib.idf(stage, self.weight("idf"))
