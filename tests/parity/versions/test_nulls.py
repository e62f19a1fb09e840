"""Null and NaN: some rows hold one and some the other, in batches of their own, in verify and in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import Binarizer, Bucketizer, Imputer, OneHotEncoder, VectorAssembler
from pyspark.ml.regression import (
    DecisionTreeRegressor,
    GeneralizedLinearRegression,
    IsotonicRegression,
    LinearRegression,
)
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff.data import cache as caches
from sparkdiff.data.fingerprint import Request
from sparkdiff.data.splits import Source
from sparkdiff.data.stream.batches import Stream
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.jvm import sessions
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import null_of
from tests.support.readable_uids import named

SPLITS = [-np.inf, 0.0, 1.5, np.inf]


@pytest.fixture(scope="module")
def gaps(spark: SparkSession) -> DataFrame:
    """Three files: numbers, numbers and NaN, numbers and null. `i` is an index of 0 and 1."""
    random = np.random.default_rng(3)
    columns = "x double, y double, i double, label double"

    def rows(nothing: Any) -> DataFrame:
        some = [(*map(float, random.normal(size=2)), float(n % 2), float(random.normal())) for n in range(40)]
        return spark.createDataFrame(
            [(nothing if n % 3 == 0 else x, y, i, label) for n, (x, y, i, label) in enumerate(some)], columns
        ).coalesce(1)

    return rows(0.5).union(rows(float("nan"))).union(rows(None)).cache()


def kept(*columns: str, to: str = "v") -> VectorAssembler:
    return named(f"assembler_{to}", VectorAssembler, inputCols=list(columns), outputCol=to, handleInvalid="keep")


def bucketizer(column: str, to: str) -> Bucketizer:
    return named(to, Bucketizer, splits=SPLITS, inputCol=column, outputCol=to, handleInvalid="keep")


def test_verify_tells_null_from_nan_in_every_batch(gaps: DataFrame) -> None:
    whole = gaps.where("x IS NOT NULL AND NOT isnan(x)")
    features, only_y = kept("x", "y"), kept("y", to="only_y")
    imputer = Imputer(inputCols=["x", "y"], outputCols=["fx", "fy"])
    other = Imputer(inputCols=["x"], outputCols=["ffx"], missingValue=0.5)
    glr = GeneralizedLinearRegression(featuresCol="only_y", offsetCol="x", predictionCol="p", linkPredictionCol="link")
    tree = DecisionTreeRegressor(featuresCol="v", maxDepth=3, predictionCol="leaf")
    bins = bucketizer("x", "bin")
    stages = [
        imputer.fit(whole),
        other.fit(whole),
        features,
        kept("fx", "y", to="filled"),
        bins,
        OneHotEncoder(inputCol="bin", outputCol="hot", handleInvalid="keep").fit(bins.transform(whole)),
        Binarizer(threshold=0.5, inputCol="x", outputCol="above"),
        IsotonicRegression(featuresCol="x", predictionCol="curve").fit(whole),
        tree.fit(features.transform(whole)),
        only_y,
        glr.fit(only_y.transform(whole)),
        bucketizer("p", "bin of p"),
    ]
    parity = sparkdiff.verify(PipelineModel(stages), gaps)
    assert parity.ok, parity.maxRelDiff
    assert (parity.rows, parity.labelDisagreements, len(parity.maxRelDiff)) == (120, 0, 12)


def test_verify_tells_null_in_the_first_rows_and_in_all(gaps: DataFrame) -> None:
    """An encoder that refuses other indices takes null there, too; Spark's vectors that are all null have no width."""
    encoder = OneHotEncoder(inputCol="i", outputCol="hot").fit(gaps)
    model = PipelineModel([encoder, kept("hot", "y")])
    null = gaps.limit(2).withColumn("i", F.lit(None).cast("double"))
    for rows in (null, null.union(gaps.limit(1)).coalesce(1)):
        assert sparkdiff.verify(model, rows).ok


@pytest.mark.skipif(sessions.VERSION < (4, 0), reason="stages of Spark 3.5 don't find the fields of structs")
def test_the_cache_tells_null_from_nan(gaps: DataFrame, tmp_path: Path) -> None:
    """Of the field of a struct, too, which may be null where the schema says that the field is not."""
    filled = gaps.select(
        F.when(F.col("x").isNotNull(), F.struct(F.coalesce("x", F.lit(0.0)).alias("x"))).alias("s"), "label"
    )
    assert not filled.schema["s"].dataType["x"].nullable  # type: ignore[index]
    bins, features = bucketizer("s.x", "bin"), kept("bin")
    last = LinearRegression(featuresCol="v").fit(features.transform(bins.transform(filled)).where("s IS NOT NULL"))
    options = Options.of({"cacheDir": str(tmp_path), "unfreeze": ["bin.splits"]})
    task = prepare(PipelineModel([bins, features, last]), options)
    cache = caches.open_cache(Request(task.cut, [Source(filled)], options, task.labelCol, task.weightCol))
    [x] = task.cut.columns
    flag = cache.columns(task.cut)[null_of(x.version)]
    with Stream(cache.folder, backend="arrow") as stream:
        batches = [b for split in cache.splits for b in stream.batches(split, batchSize=1000)]
    assert sum(int(b[flag].sum()) for b in batches) == gaps.where("x IS NULL").count()  # type: ignore[union-attr]
