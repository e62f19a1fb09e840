"""Fine-tuning of the predictors that are neither linear regressions nor trees, by their own losses, from end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    FMClassifier,
    GBTClassifier,
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    NaiveBayes,
    OneVsRest,
)
from pyspark.ml.feature import PCA, MinMaxScaler, SQLTransformer, StandardScaler, VectorAssembler
from pyspark.ml.regression import AFTSurvivalRegression, FMRegressor, IsotonicRegression, LinearRegression
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import FineTunerModel
from tests.support.small_data import NUMBERS, pipeline, sides, tune

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
        [scaler, lambda: pca(2)],
        lambda: LinearSVC(featuresCol="x", labelCol="rain", maxIter=3, regParam=0.3),
        "rawPrediction",
        lambda y, raw: np.maximum(0, 1 - (2 * y - 1) * raw[:, 1]),
        "hinge",
    ),
    "perceptron": (
        [scaled_to_x],
        lambda: MultilayerPerceptronClassifier(featuresCol="x", labelCol="kind", layers=[4, 3, 3], maxIter=4, seed=1),
        "probability",
        log_loss,
        "logLoss",
    ),
    "factorization machine": (
        [scaled_to_x],
        lambda: FMRegressor(featuresCol="x", labelCol="riders", factorSize=2, maxIter=5, seed=1),
        "prediction",
        lambda y, m: (y - m) ** 2,
        "squared",
    ),
    "factorization machine of classes": (
        [scaled_to_x],
        lambda: FMClassifier(featuresCol="x", labelCol="rain", factorSize=2, maxIter=20, seed=1),
        "probability",
        log_loss,
        "logLoss",
    ),
    "gaussian Bayes": (
        [scaler, lambda: pca(3)],
        lambda: NaiveBayes(featuresCol="x", labelCol="kind", modelType="gaussian"),
        "probability",
        log_loss,
        "logLoss",
    ),
    "multinomial Bayes": (
        [lambda: MinMaxScaler(inputCol="raw", outputCol="x")],
        lambda: NaiveBayes(featuresCol="x", labelCol="kind"),
        "probability",
        log_loss,
        "logLoss",
    ),
    "isotonic": (
        [scaler, lambda: pca(1)],
        lambda: IsotonicRegression(featuresCol="x", labelCol="delay"),
        "prediction",
        lambda y, m: (y - m) ** 2,
        "squared",
    ),
    "one against the rest": (
        [scaler, lambda: pca(2)],
        lambda: OneVsRest(featuresCol="x", labelCol="kind", classifier=LogisticRegression(regParam=0.3, maxIter=2)),
        "rawPrediction",
        against_the_rest,
        "oneVsRest",
    ),
    "one against the rest of trees": (
        [],
        lambda: OneVsRest(featuresCol="x", labelCol="kind", classifier=GBTClassifier(maxIter=2, maxDepth=2, seed=1)),
        "rawPrediction",
        lambda y, raw: against_the_rest(y, 2 * raw),
        "oneVsRest",
    ),
}


def measured(
    model: PipelineModel, rows: DataFrame, label: str, column: str, loss: Callable[[Array, Array], Array]
) -> float:
    found = model.transform(rows).select(column, label).collect()
    shown = np.array([np.asarray(r[column].toArray() if hasattr(r[column], "toArray") else r[column]) for r in found])
    return float(loss(np.array([r[label] for r in found]), shown).mean())


MARKS = dict.fromkeys(("one against the rest of trees", "factorization machine of classes"), pytest.mark.nightly)
"""Others of their kind are tried on each commit."""
Tuned = tuple[PipelineModel, FineTunerModel]


@pytest.fixture(scope="module")
def tuned(df: DataFrame, shared: Path) -> Callable[[str], Tuned]:
    """The pipeline of a case and its fine-tuning, each made once."""
    made: dict[str, Tuned] = {}

    def of(case: str) -> Tuned:
        if case not in made:
            before, head, *_ = CASES[case]
            rows = df.withColumn("delay", F.col("delay") + 1) if case == "isotonic" else df  # or it is at its optimum
            model = pipeline(rows, head(), *(make() for make in before))
            made[case] = model, tune(model, df, shared, guard=1.0)  # what training moved is to be seen
        return made[case]

    return of


@pytest.fixture(scope="module")
def held_out(df: DataFrame) -> DataFrame:
    """The rows that decide."""
    return sides(df)["validation"].coalesce(1).cache()


@pytest.mark.nightly
@pytest.mark.parametrize("case", [pytest.param(c, marks=MARKS.get(c, ())) for c in CASES])
def test_tuned(held_out: DataFrame, tuned: Callable[[str], Tuned], case: str) -> None:
    before, _, column, loss, name = CASES[case]
    model, found = tuned(case)
    label = model.stages[-1].getLabelCol()
    assert found.summary.decision == "tuned", found.summary.reason
    assert found.summary.metric == name
    held, rows = found.summary.metrics["validation"], held_out
    assert held is not None
    assert held["before"] == pytest.approx(measured(model, rows, label, column, loss), rel=1e-9)
    assert held["after"] == pytest.approx(measured(found.pipelineModel, rows, label, column, loss), rel=1e-9)
    assert held["after"] < held["before"]
    assert found.summary.parity["after"]["ok"]
    moved = {key.partition("_")[0] for key in found.summary.stages}
    upstream = {"StandardScaler", "PCA"} & {type(make()).__name__ for make in before}
    assert moved >= (upstream - {"PCA"} if case == "isotonic" else upstream)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "cases",
    [[c for c in CASES if c not in MARKS], pytest.param([*MARKS], marks=pytest.mark.nightly)],
    ids=["all", "rest"],
)
def test_saved_and_loaded(held_out: DataFrame, tuned: Callable[[str], Tuned], tmp_path: Path, cases: list[str]) -> None:
    """The tuned predictors, saved as the stages of one pipeline that nobody transforms with."""
    heads = [tuned(case)[1].pipelineModel.stages[-1] for case in cases]
    PipelineModel(heads).write().save(str(tmp_path / "heads"))
    loaded = PipelineModel.load(str(tmp_path / "heads")).stages
    assert [(type(s), s.uid) for s in loaded] == [(type(s), s.uid) for s in heads]
    rows = held_out.limit(50)
    for case, again in zip(cases, loaded, strict=True):
        model, found = tuned(case)
        assert [s.uid for s in found.pipelineModel.stages] == [s.uid for s in model.stages]
        whole = PipelineModel([*found.pipelineModel.stages[:-1], again])
        one, other = (sparkdiff.translate(m).state_dict() for m in (found.pipelineModel, whole))
        assert one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items()), case
        made = [c for c in ("rawPrediction", "probability", "prediction") if again.hasParam(f"{c}Col")]
        one, other = (m.transform(rows).select(*made).collect() for m in (found.pipelineModel, whole))
        assert one == other, case


@pytest.fixture(scope="module")
def times(df: DataFrame) -> DataFrame:
    """Waits, of which those beyond 9 weren't seen to their end."""
    return df.withColumns({"t": F.least("wait", F.lit(9.0)), "seen": (F.col("wait") < 9).cast("double")})


def survival(df: DataFrame, **params: Any) -> PipelineModel:
    head = AFTSurvivalRegression(featuresCol="x", labelCol="t", censorCol="seen", quantilesCol="quantiles", maxIter=2)
    return pipeline(df, head._set(**params), scaler(), pca(2))


@pytest.mark.nightly
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
    broken = times.withColumn("seen", F.expr("if(number % 7 = 0, null, seen)"))
    with pytest.raises(sparkdiff.InputError, match="censorCol='seen' holds nan, but must be 1"):
        tune(model, broken, shared)
    with pytest.raises(sparkdiff.InputError, match=r"censorCol='seen' holds 0 in all [\d,]+ train rows .* no event"):
        tune(model, times.withColumn("seen", F.lit(0.0)), shared)


def test_a_censor_made_by_a_stage_is_had_from_the_cache(df: DataFrame, shared: Path) -> None:
    seen = SQLTransformer(statement="SELECT *, CAST(wait < 9 AS double) AS seen FROM __THIS__")
    head = AFTSurvivalRegression(featuresCol="x", labelCol="wait", censorCol="seen", maxIter=2)
    model = Pipeline(stages=[seen, VectorAssembler(inputCols=NUMBERS, outputCol="x"), head]).fit(df)
    found = tune(model, df, shared, guard=1.0)
    assert found.summary.decision == "tuned"


# Predictors that feed predictors --------------------------------------------------------------------------------------


FRONT: dict[str, tuple[Callable[[], Any], str]] = {
    "probability": (
        lambda: LogisticRegression(featuresCol="scaled", labelCol="rain", regParam=0.5, maxIter=1),
        "probability",
    ),
    "rawPrediction": (lambda: LinearSVC(featuresCol="scaled", labelCol="rain", maxIter=1), "rawPrediction"),
    "raw of several": (
        lambda: OneVsRest(
            featuresCol="scaled", labelCol="kind", classifier=LogisticRegression(regParam=0.5, maxIter=1)
        ),
        "rawPrediction",
    ),
    "regression": (
        lambda: FMRegressor(featuresCol="scaled", labelCol="wait", factorSize=2, maxIter=2, seed=1),
        "prediction",
    ),
    "curve": (lambda: IsotonicRegression(featuresCol="scaled", labelCol="wait", featureIndex=2), "prediction"),
    "times": (
        lambda: AFTSurvivalRegression(featuresCol="scaled", labelCol="wait", censorCol="one", maxIter=1),
        "prediction",
    ),
    "bayes": (lambda: NaiveBayes(featuresCol="scaled", labelCol="kind", modelType="gaussian"), "probability"),
    "perceptron": (
        lambda: MultilayerPerceptronClassifier(
            featuresCol="scaled", labelCol="kind", layers=[4, 2, 3], maxIter=1, seed=1
        ),
        "probability",
    ),
    "a class": (lambda: LinearSVC(featuresCol="scaled", labelCol="rain", maxIter=1), "prediction"),
}
"""A predictor, and the column of its output that the last predictor reads."""


@pytest.mark.nightly
@pytest.mark.slow
def test_gradients_reach_predictors_in_front(df: DataFrame, shared: Path) -> None:
    """All of them at once in front of one regression, which has a reason to change each; a class passes no gradient."""
    front, read = {}, []
    for i, (case, (make, column)) in enumerate(FRONT.items()):
        front[case] = make()
        for name in ("rawPrediction", "probability", "prediction"):
            if front[case].hasParam(f"{name}Col") and (case, name) != ("raw of several", "rawPrediction"):
                front[case]._set(**{f"{name}Col": f"{name}{i}"})
        read.append(column if case == "raw of several" else f"{column}{i}")  # PySpark fits that one without its name
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="raw"),
        scaler(),
        *front.values(),
        VectorAssembler(inputCols=[*read, "scaled"], outputCol="x"),
        LinearRegression(
            featuresCol="x", labelCol="riders", regParam=100.0
        ),  # far from the optimum: training gains anywhere
    ]
    data = df.withColumn("one", F.lit(1.0))
    model = Pipeline(stages=stages).fit(data)
    fitted = dict(zip(front, model.stages[2:], strict=False))
    trainable = {s.uid: s.trainable for s in sparkdiff.plan(model).stages}
    assert {case: trainable[s.uid] for case, s in fitted.items()} == {case: case != "a class" for case in FRONT}
    found = tune(model, data, shared, guard=1.0, maxEpochs=1)
    assert found.summary.decision == "tuned"
    moved = {name.partition(".")[0] for name in found.summary.stages}
    assert {case: s.uid in moved for case, s in fitted.items()} == {case: case != "a class" for case in FRONT}
    assert {side: told["ok"] for side, told in found.summary.parity.items()} == {"before": True, "after": True}
