"""Metrics that a search computes itself, against Spark's evaluators on the same columns."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    ClusteringEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.objectives.metric import influence
from sparkdiff.objectives.metrics import MULTICLASS
from sparkdiff.tuning.evaluator_metrics import judge_of

Columns = dict[str, torch.Tensor]
ROWS = 300


@pytest.fixture(scope="module")
def columns() -> Columns:
    """Scores with ties, three classes of which one is rarely right, weights with zeros."""
    random = np.random.default_rng(0)
    score = random.integers(-9, 9, ROWS) / 4
    kind = random.integers(0, 3, ROWS)
    probability = random.dirichlet([0.3, 0.5, 0.2], ROWS)
    probability[0] = [1.0, 0.0, 0.0]
    columns = {
        "label": (random.random(ROWS) < 1 / (1 + np.exp(-score))).astype(float),
        "weight": random.integers(0, 3, ROWS) / 2,
        "raw": np.stack([-score, score], 1),
        "kind": kind.astype(float),
        "probability": probability,
        "class": np.where(random.random(ROWS) < 0.6, kind, 1).astype(float),
        "y": random.normal(size=ROWS),
        "prediction": random.normal(size=ROWS),
    }
    return {name: torch.from_numpy(column) for name, column in columns.items()}


@pytest.fixture(scope="module")
def scored(spark: SparkSession, columns: Columns) -> DataFrame:
    lists = [
        [Vectors.dense(row) for row in column.tolist()] if column.ndim == 2 else column.tolist()
        for column in columns.values()
    ]
    data = spark.createDataFrame([*zip(*lists, strict=True)], [*columns]).coalesce(1).cache()
    data.count()
    return data


def by_class(name: str, **given: Any) -> MulticlassClassificationEvaluator:
    return MulticlassClassificationEvaluator(labelCol="kind", predictionCol="class", metricName=name, **given)  # type: ignore[arg-type]


def of_numbers(name: str, **given: Any) -> RegressionEvaluator:
    return RegressionEvaluator(labelCol="y", metricName=name, **given)  # type: ignore[arg-type]


def of_two(name: str, **given: Any) -> BinaryClassificationEvaluator:
    return BinaryClassificationEvaluator(rawPredictionCol="raw", metricName=name, **given)  # type: ignore[arg-type]


def test_they_are_sparks(scored: DataFrame, columns: Columns) -> None:
    weighted = {"weightCol": "weight"}
    evaluators = [
        of_two("areaUnderROC", numBins=0, **weighted),
        of_two("areaUnderPR"),
        *(of_numbers(name, **weighted) for name in ("rmse", "mse", "mae", "r2", "var")),
        of_numbers("r2", throughOrigin=True),
        *(by_class(name, beta=2.0, metricLabel=2.0, **weighted) for name in MULTICLASS),
        by_class("logLoss", eps=1e-3, **weighted),
    ]
    for evaluator in evaluators:
        judge = judge_of(evaluator)
        assert judge is not None
        weight = columns[judge.weight] if judge.weight else torch.ones(ROWS, dtype=torch.float64)
        mine = judge.value(columns[judge.column], columns[judge.label], weight)
        assert mine == pytest.approx(evaluator.evaluate(scored), abs=1e-12), evaluator.getMetricName()
        assert judge.metric is not None
        metric, used = judge.metric(3), weight > 0
        read, label, weight = (x[used] for x in (columns[judge.column], columns[judge.label], weight))
        read = read if metric.column is None else metric.column(read)
        rows = influence(metric, read, label, weight) if metric.rows is None else metric.rows(read, label, weight)
        assert float((weight * rows).sum() / weight.sum()) == pytest.approx(mine, abs=1e-9), evaluator.getMetricName()


def test_neighbouring_scores_are_joined_as_in_spark(scored: DataFrame, columns: Columns) -> None:
    """Spark sorts them into two partitions here, cut somewhere, and joins each one's; ours is what one partition gives."""
    raw, label = columns["raw"], columns["label"]
    distinct, place = raw[:, 1].unique(return_inverse=True)
    above, one = len(distinct) - 1 - place, torch.ones(ROWS, dtype=torch.float64)
    exact = judge_of(of_two("areaUnderROC", numBins=0))
    for bins in (4, 9):
        judge = judge_of(of_two("areaUnderROC", numBins=bins))
        assert exact is not None and judge is not None
        size = len(distinct) // bins
        cuts = []
        for cut in range(len(distinct)):
            joined = torch.where(above < cut, above // size, cut + (above - cut) // size)
            cuts.append(exact.value(-joined.double()[:, None] * torch.tensor([-1.0, 1.0]).double(), label, one))
        assert judge.value(raw, label, one) == pytest.approx(cuts[0], abs=1e-12)
        theirs = of_two("areaUnderROC", numBins=bins).evaluate(scored)
        assert min(abs(theirs - value) for value in cuts) < 1e-12


def test_what_spark_has_to_say(columns: Columns) -> None:
    one = torch.ones(ROWS, dtype=torch.float64)
    raw, label, kind, found = (columns[name] for name in ("raw", "label", "kind", "class"))

    def value(evaluator: Any, *given: torch.Tensor) -> float:
        judge = judge_of(evaluator)
        assert judge is not None
        return judge.value(*given)

    distinct = len(raw[:, 1].unique())
    assert math.isfinite(value(of_two("areaUnderROC", numBins=distinct), raw, label, one))
    assert math.isnan(value(of_two("areaUnderROC", numBins=distinct // 2), raw, label, 0 * one))
    assert math.isfinite(value(of_two("areaUnderROC", numBins=0), raw, label, one))
    for wrong in (torch.nan, torch.inf):
        assert math.isnan(value(of_two("areaUnderROC"), raw.index_fill(0, torch.tensor([3]), wrong), label, one))
    assert math.isnan(value(of_two("areaUnderROC"), raw, label, -one))
    assert math.isnan(value(of_two("areaUnderROC"), raw, torch.zeros_like(label), one))
    assert math.isnan(value(by_class("f1"), found, kind - 0.5, one))
    assert math.isnan(value(by_class("precisionByLabel", metricLabel=5.0), found, kind, one))
    assert math.isnan(value(by_class("logLoss"), columns["probability"], kind + 1, one))
    assert judge_of(ClusteringEvaluator()) is None


def test_equal_rows_tie_whatever_their_last_bit(columns: Columns) -> None:
    judge = judge_of(of_two("areaUnderROC"))
    assert judge is not None
    raw, label, one = columns["raw"], columns["label"], torch.ones(ROWS, dtype=torch.float64)
    shaken = raw * (1 + 1e-15 * torch.arange(ROWS)[:, None] % 3)
    assert judge.value(shaken, label, one) == judge.value(raw, label, one)
