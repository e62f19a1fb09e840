"""A fit beside a stage that reads what would train: its output stays bit for bit, or a warning lists what changes."""

from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import PCA, BucketedRandomProjectionLSH, StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame

from tests.support.small_data import NUMBERS, tune


@pytest.fixture(scope="module")
def hashed(df: DataFrame) -> PipelineModel:
    """PCA → LSH beside PCA → LinearRegression."""
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled"),
            PCA(inputCol="scaled", outputCol="components", k=2),
            BucketedRandomProjectionLSH(inputCol="components", outputCol="hashes", bucketLength=0.1, seed=1),
            LinearRegression(featuresCol="components", labelCol="riders"),
        ]
    ).fit(df)


def changed(one: PipelineModel, other: PipelineModel, df: DataFrame) -> set[str]:
    before, after = (m.transform(df.limit(200)).toPandas() for m in (one, other))
    return {c for c in before if before[c].tolist() != after[c].tolist()}


def test_by_default_and_on_request(hashed: PipelineModel, df: DataFrame, shared: Path) -> None:
    loose: dict[str, Any] = {"loss": "absolute", "guard": 1.0, "maxEpochs": 2}
    plain = tune(hashed, df, shared, **loose)
    assert plain.summary.decision == "tuned"
    assert changed(hashed, plain.pipelineModel, df) == {"prediction"}
    assert not any("outside the loss" in w for w in plain.summary.warnings)

    asked = tune(hashed, df, shared, unfreeze=["PCAModel.pc"], **loose)
    assert asked.summary.decision == "tuned"
    assert changed(hashed, asked.pipelineModel, df) == {"prediction", "components", "hashes"}
    (warning,) = (w for w in asked.summary.warnings if "outside the loss" in w)
    lsh, pca = hashed.stages[3].uid, hashed.stages[2].uid
    assert warning == f"columns outside the loss also change: hashes; {lsh} reads the output of {pca}"
