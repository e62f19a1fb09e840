"""`precision="float32"` through the public interface: nearly the same result, which says how near, and no trees."""

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import DecisionTreeClassifier, LogisticRegression
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.sql import DataFrame

from sparkdiff import InputError
from tests.support.small_data import NUMBERS, tune


@pytest.fixture(scope="module")
def assembled() -> list[VectorAssembler | StandardScaler]:
    return [
        VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="features"),
    ]


def test_a_logistic_regression_in_float32(
    df: DataFrame, assembled: list[StandardScaler], tmp_path_factory: pytest.TempPathFactory
) -> None:
    regression = LogisticRegression(labelCol="rain", regParam=0.3)  # which leaves something to gain
    model, folder = Pipeline(stages=[*assembled, regression]).fit(df), tmp_path_factory.mktemp("caches")
    double, single = (
        tune(model, df, folder, labelCol="rain", maxEpochs=8, precision=p) for p in ("float64", "float32")
    )
    assert single.summary.decision == double.summary.decision == "tuned"
    for one, other in zip(single.pipelineModel.stages[1:], double.pipelineModel.stages[1:], strict=True):
        name = "std" if isinstance(one, type(model.stages[1])) else "coefficients"
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)
    assert single.summary.gain == pytest.approx(double.summary.gain, abs=1e-4)
    assert single.summary.records != double.summary.records  # it makes a difference
    found = single.summary.parity["float32"]
    assert found["rows"] > 200
    assert 0 < found["maxRelDiff"]["margin"] < 1e-5
    assert (single.summary.device, single.summary.precision, double.summary.precision) == ("cpu", "float32", "float64")
    assert "trained on cpu in float32" in str(single.summary)
    assert "float32" not in double.summary.parity
    assert single.summary.parity["after"]["ok"]  # Spark has the weights that training found, in float64


def test_what_decides_is_measured_in_float64(
    df: DataFrame, assembled: list[StandardScaler], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A metric by ranks moves by far more than a millionth where rounding swaps two rows."""
    model = Pipeline(stages=[*assembled, LogisticRegression(labelCol="rain", regParam=0.3)]).fit(df)
    tuned = tune(
        model,
        df,
        tmp_path_factory.mktemp("caches"),
        labelCol="rain",
        maxEpochs=3,
        precision="float32",
        metric="areaUnderROC",
        guard=1.0,
    )
    before, after = (tuned.summary.metrics["validation"][k] for k in ("before", "after"))
    assert tuned.summary.gain == pytest.approx((after - before) / before, abs=1e-12)
    shown = max(row["validationMetric"] for row in tuned.summary.records)
    assert shown == pytest.approx(after, rel=1e-4)  # of float32 rows


def test_trees_are_refused_before_anything_is_cached(
    df: DataFrame, assembled: list[StandardScaler], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = Pipeline(stages=[*assembled, DecisionTreeClassifier(labelCol="rain", maxDepth=2)]).fit(df)
    folder = tmp_path_factory.mktemp("caches")
    with pytest.raises(InputError, match=f"precision='float32', but {model.stages[-1].uid} compares"):
        tune(model, df, folder, labelCol="rain", precision="float32")
    assert not list(folder.iterdir())
