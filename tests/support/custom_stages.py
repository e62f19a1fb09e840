"""Stages that aren't Spark's, as users and other libraries write them."""

from typing import Any

from pyspark.ml import Model, Transformer, UnaryTransformer
from pyspark.ml.param.shared import HasFeaturesCol, HasInputCol, HasOutputCol, HasPredictionCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import DataType, DoubleType


class Clipped(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[type-arg]
    """A user's own: plain Python, with the usual Params, which don't tell that it drops rows."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        source = self.getOrDefault("inputCol")
        return dataset.where(F.col(source) > -2).withColumn(
            self.getOrDefault("outputCol"), F.least(F.col(source), F.lit(1.0))
        )


class Squared(UnaryTransformer, DefaultParamsReadable, DefaultParamsWritable):
    """A user's own that can do nothing but compute its output column."""

    def createTransformFunc(self) -> Any:
        return lambda x: x * x

    def outputDataType(self) -> DataType:
        return DoubleType()

    def validateInputType(self, inputType: DataType) -> None:
        pass


class BoosterModel(Model, HasFeaturesCol, HasPredictionCol):  # type: ignore[type-arg]
    """As libraries of boosted trees have them."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn(self.getOrDefault("predictionCol"), F.lit(0.5))


class OnTheGpu(BoosterModel):
    """As libraries for GPUs have them: `cpu()` gives Spark's own model."""

    def cpu(self) -> Any:
        raise AssertionError("asked")
