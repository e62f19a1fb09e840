"""Fine-tuning of the predictors that are neither linear regressions nor trees, by their own losses, from end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    FMClassifier,
    GBTClassifier,
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    NaiveBayes,
    OneVsRest,
)  # fmt: skip
from pyspark.ml.feature import PCA, MinMaxScaler, SQLTransformer, StandardScaler, VectorAssembler
from pyspark.ml.regression import AFTSurvivalRegression, FMRegressor, IsotonicRegression, LinearRegression
from pyspark.sql import DataFrame, functions as F
from small_data import NUMBERS, pipeline, sides, tune

import sparkdiff

pytestmark = pytest.mark.once  # what is Spark's in it the laws check on every version

Array = np.ndarray[Any, Any]


def scaler() -> StandardScaler:
    return StandardScaler(inputCol="raw", outputCol="scaled", withMean=True)


def pca(k: int) -> PCA:
    return PCA(inputCol="scaled", outputCol="x", k=k)


def scaled_to_x() -> StandardScaler:
    return StandardScaler(inputCol="raw", outputCol="x", withMean=True)


def log_loss(y: Array, p: Array) -> Array:
    return -np.log(p[np.arange(len(y)), y.astype(int)])


def against_the_rest(y: Array, raw: Array) -> Array:
    return np.logaddexp(0, np.where(y[:, None] == np.arange(raw.shape[1]), -raw, raw)).sum(1)


Case = tuple[list[Callable[[], Any]], Callable[[], Any], str, Callable[[Array, Array], Array], str]
CASES: dict[str, Case] = {
    "support vectors": (
        [scaler, lambda: pca(2)], lambda: LinearSVC(featuresCol="x", labelCol="rain", maxIter=3, regParam=0.3), "rawPrediction",
        lambda y, raw: np.maximum(0, 1 - (2 * y - 1) * raw[:, 1]), "hinge",
    ),
    "perceptron": (
        [scaled_to_x],
        lambda: MultilayerPerceptronClassifier(featuresCol="x", labelCol="kind", layers=[4, 3, 3], maxIter=4, seed=1),
        "probability", log_loss, "logLoss",
    ),
    "factorization machine": (
        [scaled_to_x], lambda: FMRegressor(featuresCol="x", labelCol="riders", factorSize=2, maxIter=20, seed=1), "prediction",
        lambda y, m: (y - m) ** 2, "squared",
    ),
    "factorization machine of classes": (
        [scaled_to_x], lambda: FMClassifier(featuresCol="x", labelCol="rain", factorSize=2, maxIter=20, seed=1), "probability",
        log_loss, "logLoss",
    ),
    "gaussian Bayes": (
        [scaler, lambda: pca(3)], lambda: NaiveBayes(featuresCol="x", labelCol="kind", modelType="gaussian"), "probability",
        log_loss, "logLoss",
    ),
    "multinomial Bayes": (
        [lambda: MinMaxScaler(inputCol="raw", outputCol="x")], lambda: NaiveBayes(featuresCol="x", labelCol="kind"),
        "probability", log_loss, "logLoss",
    ),
    "isotonic": (
        [scaler, lambda: pca(1)], lambda: IsotonicRegression(featuresCol="x", labelCol="delay"), "prediction",
        lambda y, m: (y - m) ** 2, "squared",
    ),
    "one against the rest": (
        [scaler, lambda: pca(2)],
        lambda: OneVsRest(featuresCol="x", labelCol="kind", classifier=LogisticRegression(regParam=0.3)), "rawPrediction",
        against_the_rest, "oneVsRest",
    ),
    "one against the rest of trees": (
        [], lambda: OneVsRest(featuresCol="x", labelCol="kind", classifier=GBTClassifier(maxIter=2, maxDepth=2, seed=1)),
        "rawPrediction", lambda y, raw: against_the_rest(y, 2 * raw), "oneVsRest",
    ),
}  # fmt: skip


def measured(
    model: PipelineModel, rows: DataFrame, label: str, column: str, loss: Callable[[Array, Array], Array]
) -> float:
    found = model.transform(rows).select(column, label).collect()
    shown = np.array([np.asarray(r[column].toArray() if hasattr(r[column], "toArray") else r[column]) for r in found])
    return float(loss(np.array([r[label] for r in found]), shown).mean())


SLOW = ("factorization machine of classes", "multinomial Bayes")
MARKS = {**dict.fromkeys(SLOW, pytest.mark.slow), "one against the rest of trees": pytest.mark.nightly}


@pytest.mark.parametrize("case", [pytest.param(c, marks=MARKS.get(c, ())) for c in CASES])
def test_tuned_saved_and_loaded(df: DataFrame, shared: Path, tmp_path: Path, case: str) -> None:
    before, head, column, loss, name = CASES[case]
    model = pipeline(df, head(), *(make() for make in before))
    label = model.stages[-1].getLabelCol()
    found = tune(model, df, shared, guard=1.0)  # what training moved is to be seen
    assert found.summary.decision == "tuned", found.summary.reason
    assert found.summary.metric == name
    held, rows = found.summary.metrics["validation"], sides(df)["validation"]
    assert held is not None
    assert held["before"] == pytest.approx(measured(model, rows, label, column, loss), rel=1e-9)
    assert held["after"] == pytest.approx(measured(found.pipelineModel, rows, label, column, loss), rel=1e-9)
    assert held["after"] < held["before"]
    moved = {key.partition("_")[0] for key in found.summary.stages}
    upstream = {"StandardScaler", "PCA"} & {type(make()).__name__ for make in before}
    assert moved >= (upstream - {"PCA"} if case == "isotonic" else upstream)
    found.pipelineModel.write().overwrite().save(str(tmp_path / "tuned"))
    again = PipelineModel.load(str(tmp_path / "tuned"))
    one, other = (m.transform(rows).select("prediction").toPandas().to_numpy() for m in (found.pipelineModel, again))
    assert np.array_equal(one, other)
    assert sparkdiff.verify(again, rows).ok
    assert [s.uid for s in again.stages] == [s.uid for s in model.stages]


@pytest.fixture(scope="module")
def times(df: DataFrame) -> DataFrame:
    """Waits, of which those beyond 9 weren't seen to their end."""
    return df.withColumns({"t": F.least("wait", F.lit(9.0)), "seen": (F.col("wait") < 9).cast("double")})


def survival(df: DataFrame, **params: Any) -> PipelineModel:
    head = AFTSurvivalRegression(featuresCol="x", labelCol="t", censorCol="seen", quantilesCol="quantiles", maxIter=2)
    return pipeline(df, head._set(**params), scaler(), pca(2))


def test_survival_with_censoring(times: DataFrame, shared: Path) -> None:
    model = survival(times)
    plan = sparkdiff.plan(model)
    assert "seen" in plan.cacheCols
    assert all("seen" not in s.inputCols for s in plan.stages)
    found = tune(model, times, shared)
    assert found.summary.decision == "tuned", found.summary
    assert found.summary.metric == "weibull"

    def loss(model: PipelineModel, rows: DataFrame) -> float:
        shown = model.transform(rows).select("prediction", "t", "seen").toPandas()
        scale = model.stages[-1].scale
        e = (np.log(shown["t"]) - np.log(shown["prediction"])) / scale
        return float((shown["seen"] * (np.log(scale) - e) + np.exp(e)).mean())

    held, rows = found.summary.metrics["validation"], sides(times)["validation"]
    assert held is not None
    assert held["before"] == pytest.approx(loss(model, rows), rel=1e-9)
    assert held["after"] == pytest.approx(loss(found.pipelineModel, rows), rel=1e-9)
    assert held["after"] < held["before"]
    assert found.pipelineModel.stages[-1].scale != model.stages[-1].scale
    assert any(key.endswith("pc") for key in found.summary.stages)
    assert sparkdiff.verify(found.pipelineModel, rows.drop("seen", "t")).ok  # scoring needs neither
    network = sparkdiff.translate(found.pipelineModel)
    assert "seen" not in network.inputCols


def test_a_censor_that_is_missing_or_none(times: DataFrame, shared: Path) -> None:
    model = survival(times)
    with pytest.raises(sparkdiff.InputError, match=r"the loss of AFT\w+ reads column 'seen', which is not in the data"):
        tune(model, times.drop("seen"), shared)
    for value, shown in (("0.5", "0.5"), ("null", "nan")):
        broken = times.withColumn("seen", F.expr(f"if(number % 7 = 0, {value}, seen)"))
        with pytest.raises(sparkdiff.InputError, match=rf"censorCol='seen' holds {shown}, but must be 1"):
            tune(model, broken, shared)
    with pytest.raises(sparkdiff.InputError, match=r"label column 't' holds 0\.0, but weibull .* needs times > 0"):
        tune(model, times.withColumn("t", F.expr("if(number = 5, 0.0, t)")), shared)
    with pytest.raises(sparkdiff.InputError, match=r"censorCol='seen' holds 0 in all [\d,]+ train rows .* no event"):
        tune(model, times.withColumn("seen", F.lit(0.0)), shared)


def test_a_censor_made_by_a_stage_is_had_from_the_cache(df: DataFrame, shared: Path) -> None:
    seen = SQLTransformer(statement="SELECT *, CAST(wait < 9 AS double) AS seen FROM __THIS__")
    head = AFTSurvivalRegression(featuresCol="x", labelCol="wait", censorCol="seen", maxIter=2)
    model = Pipeline(stages=[seen, VectorAssembler(inputCols=NUMBERS, outputCol="x"), head]).fit(df)
    found = tune(model, df, shared, guard=1.0)
    assert found.summary.decision == "tuned"


# Predictors that feed predictors --------------------------------------------------------------------------------------


def stacked(df: DataFrame, first: Any, column: str, head: Any) -> PipelineModel:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="raw"),
        StandardScaler(inputCol="raw", outputCol="scaled", withMean=True),
        first,
        VectorAssembler(inputCols=[column, "scaled"], outputCol="x"),
        head,
    ]
    return Pipeline(stages=stages).fit(df)


STACKS: dict[str, tuple[Callable[[], Any], str, bool]] = {
    "probability": (lambda: LogisticRegression(featuresCol="scaled", labelCol="rain", regParam=0.5), "p", True),
    "rawPrediction": (lambda: LinearSVC(featuresCol="scaled", labelCol="rain", maxIter=3), "r", True),
    "raw of several": (
        lambda: OneVsRest(featuresCol="scaled", labelCol="kind", classifier=LogisticRegression(regParam=0.5)),
        "rawPrediction", True,
    ),
    "regression": (lambda: FMRegressor(featuresCol="scaled", labelCol="wait", factorSize=2, maxIter=5, seed=1), "l", True),
    "curve": (lambda: IsotonicRegression(featuresCol="scaled", labelCol="wait", featureIndex=2), "l", True),
    "times": (lambda: AFTSurvivalRegression(featuresCol="scaled", labelCol="wait", censorCol="one", maxIter=3), "l", True),
    "bayes": (lambda: NaiveBayes(featuresCol="scaled", labelCol="kind", modelType="gaussian"), "p", True),
    "perceptron": (
        lambda: MultilayerPerceptronClassifier(featuresCol="scaled", labelCol="kind", layers=[4, 2, 3], maxIter=3, seed=1), "p",
        True,
    ),
    "a class": (lambda: LinearSVC(featuresCol="scaled", labelCol="rain", maxIter=3), "l", False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", STACKS)
def test_gradients_reach_a_predictor_in_front(df: DataFrame, shared: Path, case: str) -> None:
    make, column, flows = STACKS[case]
    first = make()
    for letter, param in (("r", "rawPredictionCol"), ("p", "probabilityCol"), ("l", "predictionCol")):
        if first.hasParam(param) and (param != "rawPredictionCol" or column != "rawPrediction"):
            first._set(**{param: letter})
    head = LinearRegression(featuresCol="x", labelCol="riders", regParam=1.0)
    data = df.withColumn("one", F.lit(1.0))
    model = stacked(data, first, column, head)
    trainable = {s.stageClass: s.trainable for s in sparkdiff.plan(model).stages}
    assert trainable[type(model.stages[2]).__name__] is flows
    if case not in ("probability", "raw of several", "times", "a class"):
        assert sparkdiff.verify(model, data.limit(200)).ok
        return
    found = tune(model, data, shared, guard=1.0)
    assert found.summary.decision == "tuned"
    moved = {name.partition("_")[0] for name in found.summary.stages}
    assert (model.stages[2].uid.partition("_")[0] in moved) is flows
    assert sparkdiff.verify(found.pipelineModel, data.limit(200)).ok
