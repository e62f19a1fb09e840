"""Clusters fine-tuned: by their own loss, without a label, and in front of a classifier."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import GaussianMixture, KMeans
from pyspark.ml.feature import OneHotEncoder, StandardScaler
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from torch import Tensor

import sparkdiff
from sparkdiff.objectives.losses import NAMES as LOSSES
from sparkdiff.stages import clustering
from sparkdiff.stages.predictor import Predictor
from tests.support.small_data import sides, tune

CENTERS = np.array([[1.0, 0.0, 0.0], [5.0, 0.0, 1.0], [0.0, 6.0, 3.0]])


@pytest.fixture(scope="module")
def points(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Three clouds; the label is 1 in the second."""
    random = np.random.default_rng(0)
    which = random.integers(0, 3, 1200)
    x = CENTERS[which] + random.normal(size=(1200, 3))
    path = f"file://{tmp_path_factory.mktemp('points')}/points.parquet"
    rows = [(Vectors.dense(v), float(k == 1), 1.0 + float(k)) for v, k in zip(x, which, strict=True)]
    spark.createDataFrame(rows, ["features", "label", "weight"]).coalesce(1).write.parquet(path)
    return spark.read.parquet(path).cache()


HEADS: dict[str, Callable[[], Any]] = {
    "euclidean": lambda: KMeans(k=3, seed=1, maxIter=1, featuresCol="x"),
    "cosine": lambda: KMeans(k=3, seed=1, maxIter=1, featuresCol="x", distanceMeasure="cosine"),
    "mixture": lambda: GaussianMixture(k=3, seed=1, maxIter=2, featuresCol="x"),
}


@pytest.fixture(scope="module")
def underfitted(points: DataFrame) -> dict[str, PipelineModel]:
    """Each kind of clusters behind a scaler, fitted on 30 rows."""
    few = points.limit(30).cache()
    scaler = StandardScaler(inputCol="features", outputCol="x")
    return {name: Pipeline(stages=[scaler, head()]).fit(few) for name, head in HEADS.items()}


def loss(model: PipelineModel, df: DataFrame, weighted: bool = False) -> float:
    """By numpy, from what Spark predicts."""
    head = model.stages[-1]
    shown = model.transform(df).select("x", "prediction", "weight").collect()
    x, w = np.array([r[0].toArray() for r in shown]), np.array([r[2] if weighted else 1.0 for r in shown])
    if hasattr(head, "clusterCenters"):
        own = np.array(head.clusterCenters())[[int(r[1]) for r in shown]]
        cosine = head.getDistanceMeasure() == "cosine"
        size = np.linalg.norm(x, axis=1) * np.linalg.norm(own, axis=1)
        cost = 1 - (x * own).sum(1) / size if cosine else ((x - own) ** 2).sum(1)
        return float((w * cost).sum() / w.sum())
    total = np.zeros(len(x))
    for share, g in zip(head.weights, head.gaussians, strict=True):
        off, cov = x - g.mean.toArray(), g.cov.toArray()
        quadratic = (off @ np.linalg.inv(cov) * off).sum(1)
        total += 2.0**-52 + share * np.exp(-0.5 * quadratic) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(cov))
    return float(-(w * np.log(total)).sum() / w.sum())


@pytest.mark.parametrize("kind", list(HEADS))
def test_by_their_own_loss(points: DataFrame, underfitted: dict[str, PipelineModel], shared: Path, kind: str) -> None:
    model = underfitted[kind]
    plan = sparkdiff.plan(model)
    assert [s.trainable for s in plan.stages] == [False, True]
    assert plan.stages[0].reason.startswith("only a loss with a label can train it")
    found = tune(model, points, shared, weightCol="weight", learningRate=0.03, guard=1.0, maxEpochs=6)
    summary = found.summary
    assert summary.decision == "tuned", summary.reason
    assert summary.metric == {"mixture": "logLikelihood"}.get(kind, "inertia")
    held = sides(points)["validation"]
    metrics = summary.metrics["validation"]
    assert metrics["before"] == pytest.approx(loss(model, held, weighted=True), rel=1e-9)
    assert metrics["after"] == pytest.approx(loss(found.pipelineModel, held, weighted=True), rel=1e-9)
    assert metrics["after"] < metrics["before"]
    assert found.pipelineModel.stages[0] is model.stages[0]
    if kind == "cosine":
        assert np.linalg.norm(found.pipelineModel.stages[1].clusterCenters(), axis=1) == pytest.approx(1, abs=1e-12)
    assert summary.parity["after"]["ok"]
    assert not any("label" in w for w in summary.warnings)


def test_the_number_is_sparks_own(points: DataFrame) -> None:
    """Of a fit on all rows, Spark tells its loss."""
    means = KMeans(k=3, seed=1).fit(points)
    mixture = GaussianMixture(k=2, seed=1, maxIter=3, tol=0.0).fit(points)
    rows = points.count()
    for model, theirs in ((means, means.summary.trainingCost), (mixture, None)):
        network = sparkdiff.translate(model)
        x = torch.tensor(np.array([r[0].toArray() for r in points.select("features").collect()]))
        head: Predictor = network.module(0)  # type: ignore[assignment]
        ours = float(head.cost(head.margin(x)).sum().detach())
        if theirs is not None:
            assert ours == pytest.approx(theirs, rel=1e-9)
        else:
            # Spark tells that of the step before the last: one more step from these weights tells theirs.
            again = GaussianMixture(k=2, seed=1, maxIter=4, tol=0.0).fit(points)
            assert -ours == pytest.approx(again.summary.logLikelihood, rel=1e-9)
    assert rows == 1200


def test_an_unseen_reason_to_train_a_scaler(
    points: DataFrame, underfitted: dict[str, PipelineModel], shared: Path
) -> None:
    """With a label and a loss of one's own of the probabilities, what feeds the mixture trains too."""

    def likely(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
        return (outputs["probability"][:, 1] - label) ** 2

    model = underfitted["mixture"]
    found = tune(model, points, shared, loss=likely, labelCol="label", maxEpochs=2, guard=1.0)
    assert {name.split(".")[0] for name in found.summary.stages} == {s.uid for s in model.stages}


@pytest.mark.nightly
def test_in_front_of_a_classifier(points: DataFrame, shared: Path) -> None:
    few = points.limit(40).cache()
    mixed = Pipeline(
        stages=[
            GaussianMixture(k=3, seed=1, maxIter=2, predictionCol="cluster", probabilityCol="shares"),
            LogisticRegression(featuresCol="shares", regParam=0.1),
        ]
    ).fit(few)
    assert [s.trainable for s in sparkdiff.plan(mixed).stages] == [True, True]
    found = tune(mixed, points, shared, learningRate=0.03, maxEpochs=8)
    assert found.summary.decision == "tuned", found.summary.reason
    moved = {name.split(".")[1] for name in found.summary.stages}
    assert {"mixture", "mus", "sigmas", "coefficientMatrix"} <= moved
    covariances = np.array([g.cov.toArray() for g in found.pipelineModel.stages[0].gaussians])
    assert (np.linalg.eigvalsh(covariances) > 0).all()
    assert sum(found.pipelineModel.stages[0].weights) == pytest.approx(1, abs=1e-12)
    assert found.summary.parity["after"]["ok"]

    whole = Pipeline(
        stages=[
            KMeans(k=3, seed=1, predictionCol="cluster"),
            OneHotEncoder(inputCols=["cluster"], outputCols=["slots"]),
            LogisticRegression(featuresCol="slots", maxIter=1),
        ]
    ).fit(few)
    plan = sparkdiff.plan(whole)
    assert [s.trainable for s in plan.stages] == [False, False, True]
    assert plan.stages[0].reason == "no differentiable path to the loss: its output is an index"


def test_what_makes_no_sense_is_refused(points: DataFrame, underfitted: dict[str, PipelineModel], shared: Path) -> None:
    model = underfitted["euclidean"]
    with pytest.raises(sparkdiff.InputError, match="does not use labelCol='label'"):
        tune(model, points, shared, labelCol="label")
    with pytest.raises(
        sparkdiff.InputError, match="loss='logLoss' on KMeans: its clusters have no label; use 'inertia'"
    ):
        tune(model, points, shared, loss="logLoss")
    with pytest.raises(sparkdiff.InputError, match="metric='accuracy' needs a label"):
        tune(model, points, shared, metric="accuracy")
    with pytest.raises(sparkdiff.InputError, match="but a loss of your own needs one; set labelCol"):
        tune(model, points, shared, loss=lambda outputs, label, weight: label)
    assert {"inertia", "logLikelihood"} <= set(LOSSES)
    few = points.limit(40)
    classifier = LogisticRegression(maxIter=1).fit(few)
    with pytest.raises(
        sparkdiff.InputError, match="loss='inertia' is a loss of clusters, but LogisticRegression predicts a label"
    ):
        tune(classifier, points, shared, loss="inertia")


def test_a_mixture_with_nan_stays_in_spark() -> None:
    broken = SimpleNamespace(gaussians=[SimpleNamespace(cov=np.array([[1.0, np.nan], [np.nan, 1.0]]))])
    assert clustering.GaussianMixture.refuses(broken) == "the covariance of its cluster 0 holds infinite values or NaN"


@pytest.mark.nightly
def test_a_mixture_that_rounding_decides_stays_in_spark(spark: SparkSession) -> None:
    """Spark's own outputs would be other ones if its features stood in another order; variances of many sizes are no reason."""
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 2)) + 4 * (random.random(400) < 0.5)[:, None]
    for made, translated in (
        (x.sum(1) + 1e-5 * random.normal(size=400), False),
        (x.sum(1), True),  # the variance that rounding leaves counts as 0, in Spark too
        (1e-6 * random.normal(size=400), True),
    ):
        df = spark.createDataFrame([(Vectors.dense(v),) for v in np.c_[x, made]], ["features"])
        mixture = GaussianMixture(k=2, maxIter=5, seed=1).fit(df)
        [stage] = sparkdiff.plan(mixture).stages
        assert (stage.role == "translated") == translated
        if translated:
            assert sparkdiff.verify(mixture, df).ok
        else:
            assert "whose features nearly depend on one another: the least of their variances" in stage.reason
