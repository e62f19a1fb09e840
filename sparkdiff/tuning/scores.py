"""Metrics of Spark's evaluators on tensors, where they are Spark's exactly; NaN where Spark has to say."""

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
"""Metrics with the recall of each class in them."""
CLASSIFIERS = (BinaryClassificationEvaluator, MulticlassClassificationEvaluator)
Value = Callable[[Tensor, Tensor, Tensor], float]


@dataclass(frozen=True)
class Judge:
    """An evaluator that is computed here.

    Attributes:
        label, weight: its columns of the rows; no weight: "".
        column: the column of the model's that it reads.
        value: (that column (n,) or (n, k), label (n,), weight (n,)) -> the metric; NaN where Spark has to compute it.
    """

    label: str
    weight: str
    column: str
    value: Value


def judge_of(evaluator: Any) -> Judge | None:
    """How an evaluator is computed here; None if Spark has to compute it."""
    if not isinstance(evaluator, (MeanLoss, RegressionEvaluator, *CLASSIFIERS)):
        return None  # what of one's own may have no Params
    get = evaluator.getOrDefault
    if isinstance(evaluator, MeanLoss):
        return Judge(get("labelCol"), get("weightCol"), get("column"), evaluator.value)
    if type(evaluator) is BinaryClassificationEvaluator:
        column, value = get("rawPredictionCol"), _binary(get("metricName"), get("numBins"))
    elif type(evaluator) is RegressionEvaluator:
        column, value = get("predictionCol"), _regression(get("metricName"), get("throughOrigin"))
    elif type(evaluator) is MulticlassClassificationEvaluator:
        losses = get("metricName") == "logLoss"
        column = get("probabilityCol" if losses else "predictionCol")
        value = _log_loss(get("eps")) if losses else _classes(get("metricName"), get("metricLabel"), get("beta"))
    else:
        return None
    weight = get("weightCol") if evaluator.isDefined("weightCol") else ""
    # In Spark a row of weight 0 is a point of the curve of precision, and a score among those that bins are made of.
    points = type(evaluator) is BinaryClassificationEvaluator and (
        get("numBins") > 0 or get("metricName") == "areaUnderPR"
    )
    found = _finite(value, zeros=not points)
    if type(evaluator) is MulticlassClassificationEvaluator and get("metricName") in BY_RECALL:
        found = _of_weighted_classes(found)
    return Judge(get("labelCol"), weight or "", column, found)


def _of_weighted_classes(value: Value) -> Value:
    """NaN where a class has rows of weight 0 only: Spark divides by its weight."""

    def of(found: Tensor, y: Tensor, w: Tensor) -> float:
        return value(found, y, w) if bool(torch.isin(y[w == 0], y[w > 0]).all()) else math.nan

    return of


def _finite(value: Value, *, zeros: bool) -> Value:
    """NaN for rows that Spark may treat or refuse in its own way.

    Args:
        zeros: whether rows of weight 0 count nowhere.
    """

    def of(found: Tensor, y: Tensor, w: Tensor) -> float:
        usable = all(bool(part.isfinite().all()) for part in (found, y, w)) and bool((w >= 0).all())
        kept = w > 0
        usable = usable and (zeros or bool(kept.all()))
        return value(found[kept], y[kept], w[kept]) if usable and bool(kept.any()) else math.nan

    return of


def _binary(metric: str, bins: int) -> Value:
    def of(found: Tensor, y: Tensor, w: Tensor) -> float:
        if found.ndim == 2 and found.shape[1] != 2:
            return math.nan
        score = found[:, 1] if found.ndim == 2 else found
        # Equal rows have equal scores in Spark; a product of matrices may round them differently.
        share, power = torch.frexp(score)
        own = torch.ldexp(torch.round(share * 2.0**40), power)
        score = torch.round(score * (2.0**40 / max(float(score.abs().max()), 1e-300)))
        if len(score.unique()) != len(own.unique()):
            return math.nan  # beside the largest one, others are too small to tell whether they are equal
        if bins:
            score = _joined(score, bins)
        return float(BINARY[metric](score, y, w))

    return of


def _joined(score: Tensor, bins: int) -> Tensor:
    """Equal numbers for neighbouring scores that Spark joins, where there are many.

    As on rows in one partition; on several ones each is cut anew, at a random place: Spark's own value then changes from run to
    run. Source: org.apache.spark.mllib.evaluation.BinaryClassificationMetrics.
    """
    distinct, place = score.unique(return_inverse=True)
    size = len(distinct) // bins
    return score if size < 2 else -((len(distinct) - 1 - place) // size).to(score.dtype)


def _value(metric: Metric, found: Tensor, y: Tensor, w: Tensor) -> float:
    if metric.value is not None:
        return float(metric.value(found, y, w))
    assert metric.rows is not None
    return float((w * metric.rows(found, y, w)).sum() / w.sum())


def _regression(metric: str, origin: bool) -> Value:
    """Source: org.apache.spark.mllib.evaluation.RegressionMetrics."""
    bound = of_predictions(metric, {"throughOrigin": origin})
    return lambda found, y, w: _value(bound, found, y, w)


def _log_loss(eps: float) -> Value:
    """Source: org.apache.spark.mllib.evaluation.MulticlassMetrics.logLoss."""

    def of(probability: Tensor, y: Tensor, w: Tensor) -> float:
        if probability.ndim != 2 or not _classes_of(y) or y.max() >= probability.shape[1]:
            return math.nan
        own = probability.gather(1, y.long()[:, None])[:, 0]
        loss = torch.where(own < eps, -math.log(eps), torch.where(own > 1 - eps, -math.log1p(-eps), -own.log()))
        return float((w * loss).sum() / w.sum())

    return of


def _classes(metric: str, label: float, beta: float) -> Value:
    """Source: org.apache.spark.mllib.evaluation.MulticlassMetrics."""
    given = {"beta": 1.0 if metric == "f1" else beta, "metricLabel": label}

    def of(found: Tensor, y: Tensor, w: Tensor) -> float:
        if not _classes_of(y) or not _classes_of(found) or label != int(label):
            return math.nan
        classes = max(int(y.max()), int(found.max()), int(label)) + 1
        return _value(of_predictions(metric, given, classes), found, y, w)

    return of


def _classes_of(values: Tensor) -> bool:
    """Whether all are classes: whole numbers from 0 on."""
    return values.ndim == 1 and bool(((values >= 0) & (values == values.floor()) & (values < 2**20)).all())
