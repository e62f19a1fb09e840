"""Sums that are so large that the outputs are what their last digits leave: they are made in Spark's order."""

from pathlib import Path

import numpy as np
import onnxruntime
from pyspark.ml.classification import NaiveBayes
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from sparkdiff import Scorer, export, verify
from tests.support.scoring import differences


def test_a_variance_next_to_nothing(spark: SparkSession, tmp_path: Path) -> None:
    """A column that was constant in training has a variance of 1e-9 times the largest, and another value is far off."""
    some = np.random.default_rng(0)
    x = some.normal(size=(400, 7))
    x[:200, 2] = 7.0
    seen = [(Vectors.dense(row), float(i % 2)) for i, row in enumerate(x[:200])]
    model = NaiveBayes(modelType="gaussian").fit(spark.createDataFrame(seen, ["features", "label"]))
    df = spark.createDataFrame([(Vectors.dense(row),) for row in x], ["features"]).coalesce(1)
    theirs = model.transform(df).toPandas()
    assert theirs["rawPrediction"].map(lambda raw: raw.toArray().min()).min() < -1e9
    parity = verify(model, df)
    assert parity.ok, parity
    assert not differences(Scorer(model, schema=df.schema), model, df)
    export(model, str(tmp_path / "m.onnx"), schema=df)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    [found] = session.run(["probability"], {"features": x})
    np.testing.assert_allclose(found, np.stack(theirs["probability"]), rtol=1e-9, atol=1e-12)
