"""Metrics of Spark's evaluators, computed on tensors where the result is exactly Spark's; else NaN, which means that
Spark must compute the metric.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from torch import Tensor

from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import BINARY, of_predictions
from sparkdiff.tuning.mean_loss import MeanLoss

BY_RECALL = ("f1", "weightedRecall", "weightedTruePositiveRate", "weightedFMeasure")
"""Metrics that contain the recall of each class."""
CLASSIFIERS = (BinaryClassificationEvaluator, MulticlassClassificationEvaluator)
Value = Callable[[Tensor, Tensor, Tensor], float]
MetricOf = Callable[[int], Metric]
"""Function of the number of classes that returns the metric of the column that the evaluator reads, (n,) or (n, k)."""


@dataclass(frozen=True)
class Judge:
    """An evaluator that is computed on tensors, without Spark.

    Attributes:
        label, weight: names of the label and weight columns that the evaluator reads; "" for no weight.
        column: the model's output column that the evaluator reads.
        value: function of `column` (n,) or (n, k), label (n,) and weight (n,) that returns the metric; NaN if Spark has
            to compute it.
        metric: the same metric as a `Metric`, which also has a value, or an influence, of each row; None for an
            evaluator that isn't computed on tensors.
    """

    label: str
    weight: str
    column: str
    value: Value
    metric: MetricOf | None = None


def judge_of(evaluator: Any) -> Judge | None:
    """The computation of an evaluator on tensors; None if Spark has to compute its metric."""
    if not isinstance(evaluator, (MeanLoss, RegressionEvaluator, *CLASSIFIERS)):
        return None  # a user's own evaluator may have no Params
    get = evaluator.getOrDefault
    name = get("metricName")
    if isinstance(evaluator, MeanLoss):
        mean = Metric(name, rows=lambda found, y, _w: evaluator.rows(found, y))
        return Judge(get("labelCol"), get("weightCol"), get("column"), evaluator.value, lambda _classes: mean)
    by_class = type(evaluator) is MulticlassClassificationEvaluator
    if type(evaluator) is BinaryClassificationEvaluator:
        column, metric = get("rawPredictionCol"), _area(name)
    elif type(evaluator) is RegressionEvaluator:
        column, metric = get("predictionCol"), _regression(name, get("throughOrigin"))
    elif by_class and name == "logLoss":
        column, metric = get("probabilityCol"), _log_loss(get("eps"))
    elif by_class and float(get("metricLabel")).is_integer():
        column, metric = get("predictionCol"), _classes(name, get("metricLabel"), get("beta"))
    else:
        return None
    weight = get("weightCol") if evaluator.isDefined("weightCol") else ""
    if name in BINARY:
        # In Spark a row of weight 0 adds a point to the precision-recall curve, and its score counts for the bins.
        points = get("numBins") > 0 or name == "areaUnderPR"
        value = _finite(_binary(name, get("numBins")), zeros=not points)
    else:
        value = _finite(_value_function(metric, classes=by_class and name != "logLoss"), by_recall=name in BY_RECALL)
    return Judge(get("labelCol"), weight or "", column, value, metric)


def _finite(value: Value, *, zeros: bool = True, by_recall: bool = False) -> Value:
    """A function that returns NaN if Spark may treat some of the rows specially or refuse them, else `value`'s metric.

    Args:
        zeros: whether rows of weight 0 have no effect on Spark's metric, so that they may be dropped.
        by_recall: whether Spark divides by the weight of each class, and so by 0 if all rows of a class have weight 0.
    """

    def of(found: Tensor, y: Tensor, w: Tensor) -> float:
        kept = w > 0
        usable = all(bool(part.isfinite().all()) for part in (found, y, w)) and bool((w >= 0).all())
        usable = usable and (zeros or bool(kept.all())) and (not by_recall or bool(torch.isin(y, y[kept]).all()))
        return value(found[kept], y[kept], w[kept]) if usable and bool(kept.any()) else math.nan

    return of


def _of_class_1(score: Tensor) -> Tensor:
    return score[:, 1] if score.ndim == 2 else score


def _area(name: str) -> MetricOf:
    return lambda _classes: Metric(name, larger=True, column=_of_class_1, value=BINARY[name], ranks=True)


def _binary(metric: str, bins: int) -> Value:
    def of(found: Tensor, y: Tensor, w: Tensor) -> float:
        if found.ndim == 2 and found.shape[1] != 2:
            return math.nan
        score = _of_class_1(found)
        # Equal rows have equal scores in Spark; a product of matrices may round them differently.
        share, power = torch.frexp(score)
        own = torch.ldexp(torch.round(share * 2.0**40), power)
        score = torch.round(score * (2.0**40 / max(float(score.abs().max()), 1e-300)))
        if len(score.unique()) != len(own.unique()):
            return math.nan  # some scores are so small relative to the largest that ties among them are uncertain
        if bins:
            score = _binned(score, bins)
        return float(BINARY[metric](score, y, w))

    return of


def _binned(score: Tensor, bins: int) -> Tensor:
    """Scores in which neighbours are made equal, as Spark joins them into bins if there are at least 2 * `bins`
    distinct scores.

    This matches Spark on rows in one partition. With several partitions Spark bins each partition separately, from a
    random start, so Spark's value varies between runs.
    Source: org.apache.spark.mllib.evaluation.BinaryClassificationMetrics.
    """
    distinct, place = score.unique(return_inverse=True)
    size = len(distinct) // bins
    return score if size < 2 else -((len(distinct) - 1 - place) // size).to(score.dtype)


def _value_function(of: MetricOf, *, classes: bool = False) -> Value:
    """A function that returns the metric of all rows; NaN if `classes` and a label or prediction is no class."""

    def value(found: Tensor, y: Tensor, w: Tensor) -> float:
        if classes and not (_classes_of(y) and _classes_of(found)):
            return math.nan
        metric = of(1 + int(max(y.max(), found.max()))) if classes else of(0)
        if metric.value is not None:
            return float(metric.value(found, y, w))
        assert metric.rows is not None
        return float((w * metric.rows(found, y, w)).sum() / w.sum())

    return value


def _regression(name: str, origin: bool) -> MetricOf:
    """The metric `name` of a regression. Source: org.apache.spark.mllib.evaluation.RegressionMetrics."""
    return lambda _classes: of_predictions(name, {"throughOrigin": origin})


def _log_loss(eps: float) -> MetricOf:
    """Log-loss of probabilities. Source: org.apache.spark.mllib.evaluation.MulticlassMetrics.logLoss."""

    def rows(probability: Tensor, y: Tensor, _w: Tensor) -> Tensor:
        if probability.ndim != 2 or not _classes_of(y) or not bool((y < probability.shape[1]).all()):
            return torch.full_like(y, torch.nan)
        own = probability.gather(1, y.long()[:, None])[:, 0]
        return torch.where(own < eps, -math.log(eps), torch.where(own > 1 - eps, -math.log1p(-eps), -own.log()))

    return lambda _classes: Metric("logLoss", rows=rows)


def _classes(name: str, label: float, beta: float) -> MetricOf:
    """The metric `name` of predicted classes. Source: org.apache.spark.mllib.evaluation.MulticlassMetrics."""
    given = {"beta": 1.0 if name == "f1" else beta, "metricLabel": label}  # Spark's f1 does not read beta
    return lambda classes: of_predictions(name, given, max(classes, int(label) + 1))


def _classes_of(values: Tensor) -> bool:
    """True if all values are classes: whole numbers from 0 on (below 2**20)."""
    return values.ndim == 1 and bool(((values >= 0) & (values == values.floor()) & (values < 2**20)).all())
