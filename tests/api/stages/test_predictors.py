"""Fine-tuning of every kind of predictor that this version trains, for its own loss and for others."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import MinMaxScaler, StandardScaler, VectorAssembler
from pyspark.ml.linalg import DenseMatrix, DenseVector
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff import plan
from tests.support.small_data import NUMBERS, half_deviance, pinball, pipeline, predictions, sides, tune, weights

# Kinds of predictors --------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_without_intercept_it_stays_0(df: DataFrame, shared: Path) -> None:
    """Of each kind of model, three of them in front of the fourth."""
    common: dict[str, Any] = {"featuresCol": "x", "fitIntercept": False, "maxIter": 5}
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="x"),
        LinearRegression(labelCol="riders", regParam=30.0, predictionCol="a", **common),
        LogisticRegression(
            labelCol="rain", regParam=0.5, predictionCol="b", probabilityCol="pb", rawPredictionCol="rb", **common
        ),
        LogisticRegression(
            labelCol="kind", regParam=0.5, predictionCol="c", probabilityCol="pc", rawPredictionCol="rc", **common
        ),
        VectorAssembler(inputCols=["x", "a", "pb", "pc"], outputCol="all"),
        GeneralizedLinearRegression(
            labelCol="riders", family="poisson", regParam=1.0, **common | {"featuresCol": "all"}
        ),
    ]
    found = tune(Pipeline(stages=stages).fit(df), df, shared, guard=1.0)  # whatever training moved is to be seen
    assert found.summary.decision == "tuned"
    moved = {name.partition(".")[0] for name in found.summary.stages}
    assert moved == {s.uid for s in found.pipelineModel.stages if not isinstance(s, VectorAssembler)}
    intercepts = [v for k, v in weights(found.pipelineModel).items() if "intercept" in k]
    assert len(intercepts) >= 4
    assert all((v == 0).all() for v in intercepts)


BOUNDS: dict[str, dict[str, Any]] = {
    "binomial": {
        "labelCol": "rain",
        "lowerBoundsOnCoefficients": DenseMatrix(1, 4, [-0.1, -0.1, 0.0, -0.1]),
        "upperBoundsOnCoefficients": DenseMatrix(1, 4, [0.1, 0.1, 0.4, 0.1]),
        "lowerBoundsOnIntercepts": DenseVector([-0.5]),
        "upperBoundsOnIntercepts": DenseVector([-0.02]),
    },
    "multinomial": {
        "labelCol": "kind",
        "family": "multinomial",
        "lowerBoundsOnCoefficients": DenseMatrix(3, 4, [-0.5] * 12),
        "upperBoundsOnCoefficients": DenseMatrix(3, 4, [0.5] * 12),
        "lowerBoundsOnIntercepts": DenseVector([0.0] * 3),
        "upperBoundsOnIntercepts": DenseVector([0.01, 0.5, 0.5]),
    },
}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", list(BOUNDS))
def test_bounds_hold_after_training(df: DataFrame, shared: Path, kind: str) -> None:
    head = LogisticRegression(featuresCol="x", maxIter=0, **BOUNDS[kind])
    fitted = pipeline(df, head)
    found = tune(fitted, df, shared, learningRate=0.05, loss="logLoss")
    assert found.summary.decision == "tuned"
    new = found.pipelineModel.stages[-1]
    bound = {name: np.asarray(v.toArray()) for name, v in BOUNDS[kind].items() if "Bounds" in name}
    at_bound = 0
    for weight, of in (
        (new.coefficientMatrix.toArray(), "Coefficients"),
        (new.interceptVector.toArray(), "Intercepts"),
    ):
        low, high = bound[f"lowerBoundsOn{of}"], bound[f"upperBoundsOn{of}"]
        assert (weight >= low).all()
        assert (weight <= high).all()
        at_bound += int((weight == low).sum() + (weight == high).sum())
    assert at_bound >= 1  # the bounds were felt
    assert new.getOrDefault("lowerBoundsOnCoefficients") == BOUNDS[kind]["lowerBoundsOnCoefficients"]


def test_a_min_max_scaler_trains(df: DataFrame, shared: Path) -> None:
    constant = df.withColumn("noise", F.lit(2.0))  # nothing to scale
    scaler = MinMaxScaler(inputCol="raw", outputCol="x", min=-1.0, max=2.0)
    head = GeneralizedLinearRegression(featuresCol="x", labelCol="riders", family="poisson", regParam=1.0)
    fitted = pipeline(constant, head, scaler)
    found = tune(fitted, constant, shared)
    assert found.summary.decision == "tuned"
    before, after = fitted.stages[1], found.pipelineModel.stages[1]
    for name in ("originalMin", "originalMax"):
        a, b = getattr(before, name).toArray(), getattr(after, name).toArray()
        assert (a[:3] != b[:3]).all()
        assert a[3] == b[3] == 2.0
    assert (after.originalMax.toArray()[:3] > after.originalMin.toArray()[:3]).all()
    assert (after.getMin(), after.getMax()) == (-1.0, 2.0)


def test_multinomial_with_two_classes(df: DataFrame, shared: Path) -> None:
    head = LogisticRegression(featuresCol="x", labelCol="rain", family="multinomial", regParam=0.5)
    fitted = pipeline(df, head)
    found = tune(fitted, df, shared)
    assert found.summary.decision == "tuned"
    new = found.pipelineModel.stages[-1]
    assert new.coefficientMatrix.numRows == 2
    rows = sides(df)["validation"]
    out = found.transform(rows).select("probability", "rain").collect()
    loss = np.mean([-np.log(r.probability[int(r.rain)]) for r in out])
    held = found.summary.metrics["validation"]
    assert held is not None
    assert held["after"] == pytest.approx(loss, rel=1e-9)


GLMS: dict[str, tuple[dict[str, Any], str, Callable[[Any, Any], Any]]] = {
    "gaussian log": (
        {"labelCol": "wait", "family": "gaussian", "link": "log", "regParam": 0.5},
        "squared",
        lambda y, m: (y - m) ** 2,
    ),
    "binomial cloglog": (
        {"labelCol": "rain", "family": "binomial", "link": "cloglog", "regParam": 1.0},
        "logLoss",
        lambda y, m: -np.log(np.where(y > 0, m, 1 - m)),
    ),
    "poisson identity": (
        {"labelCol": "riders", "family": "poisson", "link": "identity", "regParam": 1.0, "maxIter": 3},
        "poisson",
        half_deviance,
    ),
    "gamma inverse": (
        {"labelCol": "delay", "family": "gamma", "regParam": 1.0},
        "gamma",
        lambda y, m: np.log(m / y) + (y - m) / m,
    ),
    "tweedie": (
        {"labelCol": "riders", "family": "tweedie", "variancePower": 1.5, "linkPower": 0.0, "regParam": 1.0},
        "tweedie",
        lambda y, m: 4 * np.sqrt(y) * -1 + 2 * y / np.sqrt(m) + 2 * np.sqrt(m),
    ),
}


@pytest.mark.parametrize("kind", list(GLMS))
def test_generalized_linear_regressions(df: DataFrame, shared: Path, kind: str) -> None:
    params, name, loss = GLMS[kind]
    fitted = pipeline(df, GeneralizedLinearRegression(featuresCol="x", **params))
    found = tune(fitted, df, shared, maxEpochs=3)
    s = found.summary
    assert s.metric == name
    assert list(s.history["epoch"]) == [0, 1, 2, 3]
    assert np.isfinite(s.history["validationMetric"]).all()
    assert np.isfinite(s.history["trainLoss"][1:]).all()
    assert s.history["validationMetric"].min() < s.history["validationMetric"][0]
    mu, y = predictions(fitted, sides(df)["validation"], params["labelCol"]).T
    if kind != "poisson identity" or (mu > 1e-3 * y.mean()).all():
        held = s.metrics["validation"]
        assert held is not None
        assert held["before"] == pytest.approx(loss(y, mu).mean(), rel=1e-9)
    assert s.parity["before"]["ok"]


def test_an_offset_stays_where_it_was(df: DataFrame, shared: Path) -> None:
    head = GeneralizedLinearRegression(
        featuresCol="x",
        labelCol="riders",
        family="poisson",
        offsetCol="exposure",
        regParam=1.0,
        linkPredictionCol="eta",
    )
    fitted = pipeline(df, head)
    found = tune(fitted, df, shared)
    assert found.summary.decision == "tuned"
    new = found.pipelineModel.stages[-1]
    assert new.getOffsetCol() == "exposure"
    row = found.transform(df).select("x", "exposure", "eta", "prediction").first()
    eta = float(np.dot(row.x.toArray(), new.coefficients.toArray()) + new.intercept + row.exposure)
    assert row.eta == pytest.approx(eta, rel=1e-12)
    shifted = df.withColumn("exposure", F.col("exposure") + 1)
    ratio = predictions(found, shifted)[:, 0] / predictions(found, df)[:, 0]
    np.testing.assert_allclose(ratio, math.e, rtol=1e-9)


# Losses ---------------------------------------------------------------------------------------------------------------


def test_a_loss_of_ones_own(df: DataFrame, shared: Path) -> None:
    fitted = pipeline(df, LinearRegression(featuresCol="x", labelCol="riders"))
    found = tune(fitted, df, shared, loss=pinball, maxEpochs=10)
    named = tune(fitted, df, shared, loss="quantile", lossParams={"tau": 0.9}, maxEpochs=10)
    assert found.summary.metric == found.summary.options["loss"] == "tests.support.small_data:pinball"
    assert found.summary.decision == named.summary.decision == "tuned"
    assert found.summary.metrics["validation"]["before"] == pytest.approx(named.summary.metrics["validation"]["before"])
    rows = sides(df)["validation"]
    for model, low, high in ((fitted, 0.0, 0.75), (named, 0.75, 0.97)):
        predicted, y = predictions(model, rows, "riders").T
        assert low < (y <= predicted).mean() < high  # coverage


def test_the_metric_may_differ_from_the_loss(df: DataFrame, shared: Path) -> None:
    fitted = pipeline(df, LinearRegression(featuresCol="x", labelCol="riders", regParam=5.0))
    found = tune(fitted, df, shared, loss="absolute", metric="squared")
    assert found.summary.metric == "squared"
    predicted, y = predictions(found, sides(df)["validation"], "riders").T
    assert found.summary.metrics["validation"]["after"] == pytest.approx(((y - predicted) ** 2).mean())


@pytest.mark.nightly
def test_freeze_target_and_rates_of_single_stages(df: DataFrame, shared: Path) -> None:
    head = GeneralizedLinearRegression(featuresCol="x", labelCol="riders", family="poisson", regParam=1.0)
    model = pipeline(df, head, StandardScaler(inputCol="raw", outputCol="x", withMean=True))
    scaler, glm = (type(s).__name__ for s in model.stages[1:])

    def moved(**options: Any) -> set[str]:
        found = tune(model, df, shared, maxEpochs=2, **options)
        assert found.summary.decision == "tuned"
        new, uids = weights(found.pipelineModel), {s.uid: type(s).__name__ for s in model.stages}
        return {uids[k.partition(".")[0]] for k, v in weights(model).items() if not np.array_equal(v, new[k])}

    assert moved() == {scaler, glm}
    assert moved(freeze=["x"]) == {glm}
    assert moved(freeze=[model.stages[2]]) == {scaler}
    # what trains, the plan says before; a fit follows it
    assert [s.stageClass for s in plan(model, freeze=[scaler]).stages if s.trainable] == [glm]
    assert [s.stageClass for s in plan(model, target="prediction").stages if s.trainable] == [glm]
    assert moved(learningRates={"x": 0.0, glm: 0.02}) == {glm}
