"""Vectors without entries, as a selector writes that keeps no feature, and the predictors that can be fitted on them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import FMClassifier
from pyspark.ml.feature import VarianceThresholdSelector, VectorIndexer
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import FMRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import SparkSession

from sparkdiff import Scorer, export, verify
from tests.support.scoring import differences

PREDICTORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LinearRegression": (LinearRegression, {}),
    "GeneralizedLinearRegression": (GeneralizedLinearRegression, {}),
    "FMRegressor": (FMRegressor, {"factorSize": 2, "maxIter": 1}),
    "FMClassifier": (FMClassifier, {"factorSize": 2, "maxIter": 1}),
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_outputs_are_those_of_spark(spark: SparkSession, tmp_path: Path, name: str) -> None:
    rows = [(Vectors.dense(float(i), 1.0), float(i % 2)) for i in range(8)]
    df = spark.createDataFrame(rows, ["v", "label"]).coalesce(1)
    head, params = PREDICTORS[name]
    selector = VarianceThresholdSelector(featuresCol="v", outputCol="none", varianceThreshold=1e9)
    model = Pipeline(stages=[selector, head(featuresCol="none", **params)]).fit(df)
    theirs = [row.asDict() for row in model.transform(df).collect()]
    assert theirs[0]["none"].size == 0
    assert verify(model, df).ok
    assert not differences(Scorer(model, schema=df.schema), model, df)
    export(model, str(tmp_path / "m.onnx"), schema=df)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    given = {"v": np.array([row[0].toArray() for row in rows])}
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))
    for column in {"prediction", "probability", "rawPrediction"} & {*theirs[0]}:
        ours, expected = found[column].reshape(len(rows), -1), [np.atleast_1d(row[column]) for row in theirs]
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_a_vector_indexer_of_no_features(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.createDataFrame([(Vectors.dense(float(i), 1.0),) for i in range(4)], ["v"]).coalesce(1)
    selector = VarianceThresholdSelector(featuresCol="v", outputCol="none", varianceThreshold=1e9)
    model = Pipeline(stages=[selector, VectorIndexer(inputCol="none", outputCol="indexed")]).fit(df)
    assert model.transform(df).first()["indexed"].size == 0
    export(model, str(tmp_path / "m.onnx"), schema=df)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    [found] = session.run(["indexed"], {"v": np.ones((4, 2))})
    assert found.shape == (4, 0)
