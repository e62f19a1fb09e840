"""Metrics are those that Spark's evaluators find on Spark's own predictions: with weights, ties, thresholds, a class missing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff import InputError
from sparkdiff.data.stream.batches import Stream
from sparkdiff.evaluation import paired_rows
from sparkdiff.evaluation.scores import score
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.objectives.metrics import NAMES as METRICS
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import LabelStats
from sparkdiff.training.preparation import resolve_objectives
from tests.support.small_data import NUMBERS, cached, sides, tune, unfitted

REGRESSION = ("rmse", "mse", "r2", "mae", "var")
BINARY = ("areaUnderROC", "areaUnderPR")
MULTICLASS = (
    *("f1", "accuracy", "weightedPrecision", "weightedRecall", "weightedTruePositiveRate", "weightedFalsePositiveRate"),
    *("weightedFMeasure", "truePositiveRateByLabel", "falsePositiveRateByLabel", "precisionByLabel", "recallByLabel"),
    *("fMeasureByLabel", "logLoss", "hammingLoss"),
)
pytestmark = pytest.mark.slow  # the formulas: the evaluators of a later Spark have the same
Measure = Callable[..., float]


def fitted(head: Any, df: DataFrame, *columns: str) -> PipelineModel:
    return Pipeline(
        stages=[VectorAssembler(inputCols=columns or NUMBERS, outputCol="x"), head.setFeaturesCol("x")]
    ).fit(df)


def measuring(
    model: PipelineModel, df: DataFrame, folder: Path, weight: str | None, label: str | None = None
) -> Measure:
    """A function that gives a pipeline's metric on its cached validation rows."""
    given = {k: v for k, v in (("weightCol", weight), ("labelCol", label)) if v}
    cache = cached(model, df, folder, **given)
    task = prepare(model, Options.of({"cacheDir": str(folder), **given}))
    network, s = Network(task.cut.graph, task.cut.live), cache.manifest["stats"]["train"]
    stats = LabelStats(s["mean"], s["std"], s["low"], s["high"], torch.tensor(s["classes"], dtype=torch.int64))
    data = Data(Stream(cache.folder, backend="arrow", inMemory=True, seed=0), cache.columns(task.cut))

    def measure(name: str, **params: float) -> float:
        metric = resolve_objectives(Options.of({"metric": name, "metricParams": params}), network, stats)[1]
        found = score(network, data, "validation", metric)
        rows = paired_rows.read(network, network, data, "validation", metric, "rows")
        assert float(rows.original.sum()) == pytest.approx(float(found.blocks.sum()), rel=1e-9)
        return found.value

    return measure


def served(model: PipelineModel, rows: DataFrame) -> DataFrame:
    """The validation rows with predictions, in one task as they are few."""
    return model.transform(sides(rows)["validation"]).coalesce(1).cache()


def network_of(model: PipelineModel) -> Network:
    task = prepare(model, Options())
    return Network(task.cut.graph, task.cut.live)


ANY_LABEL = LabelStats(0.5, 0.5, 0.0, 1.0, torch.tensor([1, 1]))


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> DataFrame:
    return df.withColumns({"coarse": F.round("wind"), "two": F.least("kind", F.lit(1.0))})


def test_every_name_is_spark_s_or_ours(df: DataFrame) -> None:
    ours = {"poissonDeviance", "expectedCost", "brier"}
    losses = {"squared", "absolute", "huber", "quantile", "poisson", "gamma", "tweedie", "hinge", "focal", "cost"}
    own = {"weibull", "oneVsRest", "inertia", "logLikelihood"}  # of a predictor that has no other
    assert set(METRICS) == {*REGRESSION, *BINARY, *MULTICLASS, *ours, *losses, *own}


POISSON = partial(GeneralizedLinearRegression, family="poisson")


@pytest.mark.parametrize(("head", "weight"), [(LinearRegression, None), (POISSON, "weight")], ids=["linear", "poisson"])
def test_regression_evaluator(rows: DataFrame, shared: Path, head: Any, weight: str | None) -> None:
    model = fitted(head(labelCol="riders"), rows)
    measure, held = measuring(model, rows, shared, weight), served(model, rows)
    for name in REGRESSION:
        evaluator = RegressionEvaluator(labelCol="riders", metricName=name)
        evaluator = evaluator.setWeightCol(weight) if weight else evaluator
        assert measure(name) == pytest.approx(evaluator.evaluate(held), rel=1e-9), name


@pytest.mark.parametrize(
    ("columns", "weight"),
    [(NUMBERS, None), pytest.param(["coarse"], None, marks=pytest.mark.nightly), (["coarse"], "weight")],
    ids=["few ties", "ties", "weights"],
)
def test_binary_evaluator(rows: DataFrame, shared: Path, columns: list[str], weight: str | None) -> None:
    model = fitted(LogisticRegression(labelCol="rain", maxIter=3), rows, *columns)
    measure, held = measuring(model, rows, shared, weight), served(model, rows)
    for name in BINARY:
        evaluator = BinaryClassificationEvaluator(labelCol="rain", metricName=name, numBins=0)
        evaluator = evaluator.setWeightCol(weight) if weight else evaluator
        assert measure(name) == pytest.approx(evaluator.evaluate(held), rel=1e-9), name


def test_binary_evaluator_on_probabilities(rows: DataFrame, shared: Path) -> None:
    """Of a softmax of two classes Spark's rawPrediction ranks by one margin alone; of a binomial regression there is none."""
    softmax = LogisticRegression(labelCol="rain", family="multinomial", elasticNetParam=1.0, regParam=0.01)
    for head, column in (
        (softmax, "probability"),
        (GeneralizedLinearRegression(labelCol="rain", family="binomial"), "prediction"),
    ):
        model = fitted(head, rows)
        measure, held = measuring(model, rows, shared, None), served(model, rows)
        for name in BINARY:
            evaluator = BinaryClassificationEvaluator(
                labelCol="rain", rawPredictionCol=column, metricName=name, numBins=0
            )
            assert measure(name) == pytest.approx(evaluator.evaluate(held), rel=1e-9), (name, column)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("three classes", None),
        pytest.param("three classes", "weight", marks=pytest.mark.nightly),
        ("one missing, one never predicted", "weight"),
        pytest.param("thresholds", "weight", marks=pytest.mark.nightly),
    ],
)
def test_multiclass_evaluator(rows: DataFrame, shared: Path, kind: str, weight: str | None) -> None:
    label = "two" if kind.startswith("one missing") else "kind"
    head = LogisticRegression(labelCol="kind", maxIter=2)
    if kind == "thresholds":
        head = LogisticRegression(labelCol="rain", threshold=0.2)
        label = "rain"
    model = fitted(head, rows)
    if kind.endswith("never predicted"):
        model.stages[-1].setThresholds([0.3, 1e9, 0.3])
    measure, held = measuring(model, rows, shared, weight, label), served(model, rows)
    for name in MULTICLASS:
        evaluator = MulticlassClassificationEvaluator(labelCol=label, metricName=name, metricLabel=1.0, beta=2.0)
        evaluator = evaluator.setWeightCol(weight) if weight else evaluator
        params = {"metricLabel": 1.0} if name.endswith("ByLabel") else {}
        params |= {"beta": 2.0} if "FMeasure" in name or name.startswith("fMeasure") else {}
        assert measure(name, **params) == pytest.approx(evaluator.evaluate(held), rel=1e-9, abs=1e-12), name


def test_directions(rows: DataFrame, shared: Path) -> None:
    for head, names, evaluator in (
        (LinearRegression(labelCol="riders"), REGRESSION, RegressionEvaluator()),
        (LogisticRegression(labelCol="rain"), BINARY, BinaryClassificationEvaluator()),
        (LogisticRegression(labelCol="rain"), MULTICLASS, MulticlassClassificationEvaluator()),
    ):
        network = network_of(fitted(head, rows))
        for name in names:
            evaluator.setMetricName(name)
            metric = resolve_objectives(Options.of({"metric": name}), network, ANY_LABEL)[1]
            assert metric.larger is evaluator.isLargerBetter(), name
            assert metric.needs.startswith(NEEDS.get(name, metric.needs)), name


NEEDS = {
    "areaUnderROC": "rows of both classes",
    "weightedFalsePositiveRate": "rows of several classes",
    "r2": "labels that differ",
}


def test_a_metric_that_is_undefined_on_the_rows(df: DataFrame, folder: Path) -> None:
    model = fitted(LogisticRegression(labelCol="rain"), df)
    sentence = f"metric='areaUnderROC' is undefined on the reference rows: it needs {NEEDS['areaUnderROC']}"
    with pytest.raises(InputError, match=sentence):
        tune(model, df, folder, metric="areaUnderROC", referenceData=df.withColumn("rain", F.lit(1.0)))


def test_a_fit_by_a_metric_that_is_no_mean_over_rows(df: DataFrame, shared: Path) -> None:
    """What the summary says before and after is what Spark's evaluator says of the pipelines that it is about."""
    head = LogisticRegression(featuresCol="components", labelCol="rain", weightCol="weight")
    model = unfitted("rain", 3, head).fit(df)
    evaluator = BinaryClassificationEvaluator(labelCol="rain", numBins=0, weightCol="weight")
    found = tune(model, df, shared, loss="auc", learningRate=0.05, guard=1.0)
    s, held = found.summary, sides(df)["validation"]
    figures = s.metrics["validation"]
    assert figures is not None
    assert (s.decision, s.metric, s.metricDirection) == ("tuned", "areaUnderROC", "larger")
    for when, one in (("before", model), ("after", found.pipelineModel)):
        assert figures[when] == pytest.approx(evaluator.evaluate(one.transform(held)), rel=1e-9)
    assert figures["after"] > figures["before"]
    assert s.gain == pytest.approx(figures["after"] / figures["before"] - 1, rel=1e-9)
    assert "areaUnderROC (larger is better)" in str(s)
    assert s.history[s.history.epoch == 0].validationMetric.tolist() == pytest.approx([figures["before"]])
