"""The metrics that the option `metric` can name: means over rows, such as those of losses, and the metrics of Spark's
evaluators.

A metric equals Spark's evaluator of that name (RegressionEvaluator, BinaryClassificationEvaluator with numBins=0,
MulticlassClassificationEvaluator) on the predictions that Spark would write, without the rows of weight 0.

To add a metric:

1. If it is a mean over rows, return a `Metric` with `rows`. If not, return one with `column` and `value`: a differentiable
   function of the weights, from which the influence of each row follows.
2. Add its name to `REGRESSION`, `BINARY` or `MULTICLASS`, or to `NAMES` if it fits in none of them; add its parameters to
   `PARAMS`. Set `larger` if larger is better, and `needs` to what the rows must contain.
3. In `tests/unit/objectives/test_metrics.py`, which checks its influence, add its formula or another library's to `references`.
   `tests/api/evaluation/test_evaluators.py` compares with Spark's evaluators what these compute too.
4. If it is not a mean over rows, add it to `OF_METRICS` in benchmarks/guard_size.py, and run that with --metrics: the guard
   must keep its size.
5. Describe it in docs/objectives.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.formulas import brier, index, probabilities, rank_score
from sparkdiff.objectives.losses import (
    BATCH,
    NAMES as LOSSES,
    PARAMS as LOSS_PARAMS,
    UNLABELLED,
    cost_matrix,
    resolve as resolve_loss,
)
from sparkdiff.objectives.metric import Denominators, Metric, Value
from sparkdiff.objectives.objective import Objective, Rows
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.device import DeviceCopies
from sparkdiff.tensors.rows import running_sum

DEFAULTS = {"auc": "areaUnderROC", "cost": "expectedCost"}
"""Losses whose default metric is not the loss itself, with this metric: auc is a smooth bound of 1 - areaUnderROC, and
cost a smooth form of expectedCost.
"""
PARAMS: dict[str, dict[str, Any]] = {
    **{name: dict.fromkeys(params) for name, params in LOSS_PARAMS.items()},
    "expectedCost": {"costs": None},
    "weightedFMeasure": {"beta": 1.0},
    "fMeasureByLabel": {"beta": 1.0, "metricLabel": 0.0},
    **{
        f"{name}ByLabel": {"metricLabel": 0.0}
        for name in ("truePositiveRate", "falsePositiveRate", "precision", "recall")
    },
}
"""Parameters of the metrics with Spark's defaults; None for a parameter that is taken from the loss."""


def resolve(options: Options, objective: Objective, head: Predictor, columns: tuple[str, ...], y: LabelStats) -> Metric:
    """The metric that the options name; by default that of the objective: its mean over rows.

    By default, the loss auc is measured as areaUnderROC, and cost as expectedCost. A parameter that is missing in
    metricParams is taken from lossParams, except classWeights, because a named metric weights rows only by weightCol.

    Raises:
        InputError: the predictor lacks something that the metric needs, a parameter is missing or unknown, or the
            objective is not a mean over rows and no metric is named.
    """
    name = options.metric or DEFAULTS.get(objective.name)
    if (head.decides_only or options.tune == "threshold") and name not in DECISIONS:
        raise InputError(
            f"metric={name or objective.name!r} does not depend on decisions, and a threshold changes only decisions: set metric "
            f"to one of {', '.join(DECISIONS)}"
        )
    if name is None:
        if objective.rows is None or objective.batch is not None:
            raise InputError(
                f"the loss {objective.name} is not a mean over rows, so it cannot be tested row by row: set "
                "metric to the metric that shall improve"
            )
        if options.metricParams:
            raise InputError(
                f"metricParams {sorted(options.metricParams)} have no metric: set metric, or use lossParams"
            )
        return _of(objective)
    takes = PARAMS.get(name, {})
    if unknown := set(options.metricParams) - set(takes):
        raise InputError(
            f"metricParams {sorted(unknown)} are unknown to the metric {name!r}; it takes {sorted(takes) or 'none'}"
        )
    given = {k: v for k, v in {**options.lossParams, **options.metricParams}.items() if k in takes}
    found = _metric_by_name(name, given, head, columns, y)
    return replace(
        found, bind=(lambda h: _classes(name, {**PARAMS.get(name, {}), **given}, h)) if name in DECISIONS else None
    )


def without_params(name: str, head: Predictor) -> Metric:
    """The metric of this name, with no parameters.

    Raises:
        InputError: the predictor lacks something that the metric needs.
    """
    return _metric_by_name(name, {}, head, (), LabelStats(0.0, 1.0, 0.0, 1.0, torch.empty(0, dtype=torch.int64)))


def _of(objective: Objective) -> Metric:
    return Metric(
        objective.name,
        rows=objective.rows,
        floor=objective.floor,
        power=objective.power,
        elementwise=objective.elementwise,
    )


def _metric_by_name(
    name: str, params: Mapping[str, Any], head: Predictor, columns: tuple[str, ...], y: LabelStats
) -> Metric:
    if not head.labelled and name not in UNLABELLED:
        raise InputError(
            f"metric={name!r} needs a label, but {type(head).__name__} was fitted without one; use "
            f"{head.own_loss()[0]!r}"
        )
    if name in REGRESSION:
        if head.classes:
            usable = ("logLoss", *(BINARY if head.classes == 2 else ()), *MULTICLASS)
            raise InputError(
                f"metric={name!r} measures numbers, but {type(head).__name__} predicts classes; use one of {', '.join(usable)}"
            )
        return REGRESSION[name](name, head)
    if name == "poissonDeviance":
        half = _of(_loss("poisson", {}, head, columns, y))
        assert half.rows is not None
        rows = half.rows
        return replace(half, name=name, rows=lambda m, y, w: 2 * rows(m, y, w))
    if name in BINARY:
        probability = not head.classes and (head.own_loss()[0] == "logLoss" or head.ranks)
        if not probability and head.classes != 2:
            found = f"{head.classes} classes" if head.classes else "numbers"
            raise InputError(f"metric={name!r} needs two classes, but {type(head).__name__} predicts {found}")
        return Metric(
            name,
            larger=True,
            column=head.mean if probability else lambda margin: rank_score(head.class_scores(margin)),
            value=BINARY[name],
            needs="rows of both classes",
            ranks=True,
        )
    if name == "brier":
        return Metric(name, rows=_brier(head))
    if name in MULTICLASS or name == "expectedCost":
        if not head.classes:
            raise InputError(
                f"metric={name!r} needs classes, which {type(head).__name__} doesn't predict; use one of {', '.join(REGRESSION)}"
            )
        return _classes(name, {**PARAMS.get(name, {}), **params}, head)
    return replace(_of(_loss(name, params, head, columns, y)), name=name)


@dataclass(frozen=True)
class _Predictions:
    """A stand-in for a predictor, for predictions (n,) that are already known: its margin is the prediction."""

    classes: int

    def mean(self, margin: Tensor) -> Tensor:
        return margin

    decision = mean


def of_predictions(name: str, params: Mapping[str, Any], classes: int = 0) -> Metric:
    """A metric of REGRESSION or MULTICLASS on predictions (n,) of any model.

    Args:
        params: as in PARAMS; r2 also takes throughOrigin, whether squares of labels are taken around 0.
        classes: number of classes, for a metric of MULTICLASS.
    """
    head: Any = _Predictions(classes)
    if name in REGRESSION:
        metric = REGRESSION[name](name, head)
        return replace(metric, value=_r2_through_origin) if name == "r2" and params.get("throughOrigin") else metric
    return _classes(name, {**PARAMS.get(name, {}), **params}, head)


def _loss(name: str, params: Mapping[str, Any], head: Predictor, columns: tuple[str, ...], y: LabelStats) -> Objective:
    try:
        return resolve_loss(name, params, head, columns, y)
    except InputError as e:
        raise InputError(f"metric={name!r}: {e}") from e


# Regression -----------------------------------------------------------------------------------------------------------


def _rmse(prediction: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return ((w * (prediction - y) ** 2).sum() / w.sum()).clamp_min(1e-300).sqrt()


def _r2(prediction: Tensor, y: Tensor, w: Tensor) -> Tensor:
    total = w.sum()
    mean = (w * y).sum() / total
    # Spark's RegressionMetrics.SStot: the unbiased variance for reliability weights, times W - 1.
    around = (w * (y - mean) ** 2).sum() / (total - (w * w).sum() / total) * (total - 1)
    return 1 - (w * (prediction - y) ** 2).sum() / torch.where(around > 0, around, torch.nan)


def _r2_through_origin(prediction: Tensor, y: Tensor, w: Tensor) -> Tensor:
    squares = (w * y**2).sum()
    return 1 - (w * (prediction - y) ** 2).sum() / torch.where(squares > 0, squares, torch.nan)


def _explained_variance(prediction: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (w * (prediction - (w * y).sum() / w.sum()) ** 2).sum() / w.sum()


REGRESSION: dict[str, Callable[[str, Predictor], Metric]] = {
    "rmse": lambda name, head: Metric(name, column=head.mean, value=_rmse),
    "mse": lambda name, head: Metric(name, rows=lambda m, y, _w: (head.mean(m) - y) ** 2),
    "mae": lambda name, head: Metric(name, rows=lambda m, y, _w: (head.mean(m) - y).abs()),
    "r2": lambda name, head: Metric(
        name, larger=True, column=head.mean, value=_r2, needs="labels that differ and weights that sum to more than 1"
    ),
    "var": lambda name, head: Metric(name, larger=True, column=head.mean, value=_explained_variance),
}


# Two classes ----------------------------------------------------------------------------------------------------------


def _thresholds(score: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Total weight of the rows of class 1, and of class 0, at each distinct score, in descending order of the
    scores.
    """
    order = score.argsort(descending=True)
    levels, code = score[order].unique_consecutive(return_inverse=True)
    empty = w.new_zeros(len(levels))
    w, up = w[order], y[order] > 0.5
    return empty.index_add(0, code, w * up), empty.index_add(0, code, w * ~up)


def area_under_roc(score: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Weighted probability that a row of class 1 has a larger score than a row of class 0; ties count half; NaN if a
    class is missing.
    """
    up, down = _thresholds(score, y, w)
    pairs = up.sum() * down.sum()
    area = (down * (running_sum(up) - up / 2)).sum()
    return area / torch.where(pairs > 0, pairs, torch.nan)


def area_under_pr(score: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Area under the precision-recall curve, as in Spark; NaN without class 1.

    It is the sum of trapezoids between all distinct scores. The curve begins at recall 0 with the precision of the
    largest score.
    """
    up, down = _thresholds(score, y, w)
    found, all_ = running_sum(up), up.sum()
    precision = found / (found + running_sum(down))
    before = torch.cat([precision[:1], precision[:-1]])
    return (up * (precision + before)).sum() / 2 / torch.where(all_ > 0, all_, torch.nan)


BINARY: dict[str, Value] = {"areaUnderROC": area_under_roc, "areaUnderPR": area_under_pr}


def _brier(head: Predictor) -> Rows:
    if not head.classes and head.own_loss()[0] == "logLoss":
        return lambda m, y, _w: brier(head.mean(m), y)
    if not head.classes or not head.probable:
        raise InputError(f"metric='brier' measures probabilities, which {type(head).__name__} doesn't output")
    return lambda m, y, _w: brier(probabilities(m), index(y, head.classes))


# Classes --------------------------------------------------------------------------------------------------------------


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """Quotient one / other; 0 where it is 0 / 0."""
    return torch.where(other > 0, one / torch.where(other > 0, other, 1.0), 0.0)


@dataclass(frozen=True)
class Counts:
    """Weighted counts per class, (k,), as in Spark's MulticlassMetrics: of rows whose label and prediction are the
    class (`hits`), whose label is the class, and whose prediction is the class.
    """

    hits: Tensor  # label and prediction
    label: Tensor
    prediction: Tensor

    @staticmethod
    def of(prediction: Tensor, y: Tensor, w: Tensor, classes: int) -> "Counts":
        label, found = index(y, classes), prediction.long()
        empty = w.new_zeros(classes)
        return Counts(
            empty.index_add(0, label, w * (label == found)), empty.index_add(0, label, w), empty.index_add(0, found, w)
        )

    def recall(self, beta: float) -> Tensor:
        return _ratio(self.hits, self.label)

    def precision(self, beta: float) -> Tensor:
        return _ratio(self.hits, self.prediction)

    def f_measure(self, beta: float) -> Tensor:
        p, r = self.precision(beta), self.recall(beta)
        return _ratio((1 + beta**2) * p * r, beta**2 * p + r)

    def false_positive_rate(self, beta: float) -> Tensor:
        others = self.label.sum() - self.label  # NaN if no row has another class, as in Spark
        return (self.prediction - self.hits) / torch.where(others > 0, others, torch.nan)


OF_LABEL = Denominators((), lambda _p, y, k: y == k, "of class", by_label=True)
BY_CLASS: dict[str, tuple[Callable[[Counts, float], Tensor], Denominators]] = {
    "truePositiveRate": (Counts.recall, OF_LABEL),
    "falsePositiveRate": (
        Counts.false_positive_rate,
        Denominators((), lambda _p, y, k: y != k, "of other classes than"),
    ),
    "precision": (Counts.precision, Denominators((), lambda p, _y, k: p == k, "predicted as class")),
    "recall": (Counts.recall, OF_LABEL),
    "fMeasure": (
        Counts.f_measure,
        Denominators((), lambda p, y, k: (p == k) | (y == k), "of, or predicted as, class"),
    ),
}
"""Formula of each metric of a class, and the rows that it divides by; the classes are those of the metric that uses it."""
MULTICLASS = (
    *("f1", "accuracy", "hammingLoss", "weightedPrecision", "weightedRecall", "weightedTruePositiveRate"),
    *("weightedFalsePositiveRate", "weightedFMeasure", "truePositiveRateByLabel", "falsePositiveRateByLabel"),
    *("precisionByLabel", "recallByLabel", "fMeasureByLabel"),
)
DECISIONS = ("expectedCost", *MULTICLASS)
"""Metrics of the predicted classes alone."""
NAMES = (
    *(name for name in LOSSES if name not in ("auto", *BATCH)),
    *(*REGRESSION, *BINARY, *MULTICLASS, "poissonDeviance", "expectedCost", "brier"),
)
"""Values of the option `metric`: losses that are means over rows, metrics with the names of Spark's evaluators, and other
means over rows.
"""


def _classes(name: str, params: Mapping[str, Any], head: Predictor) -> Metric:
    k = head.classes

    def decision(margin: Tensor) -> Tensor:
        broken = margin.isnan() if margin.ndim == 1 else margin.isnan().any(1)  # Spark would predict a class
        return torch.where(broken, torch.nan, head.decision(margin))

    def hit(margin: Tensor, y: Tensor) -> Tensor:
        found = decision(margin)
        return torch.where(found.isnan(), torch.nan, (found == y).to(found.dtype))

    if name == "accuracy":
        return Metric(name, larger=True, rows=lambda m, y, _w: hit(m, y))
    if name == "hammingLoss":
        return Metric(name, rows=lambda m, y, _w: 1 - hit(m, y))
    if name == "expectedCost":
        costs = DeviceCopies(cost_matrix(params["costs"], k, f"metric={name!r}"))

        def cost(margin: Tensor, y: Tensor, _w: Tensor) -> Tensor:
            found = decision(margin)
            return torch.where(found.isnan(), torch.nan, costs.beside(margin)[index(y, k), index(found, k)])

        return Metric(name, rows=cost)
    beta, label = params.get("beta", 1.0), params.get("metricLabel", 0.0)
    if not isinstance(beta, (int, float)) or not beta > 0:
        raise InputError(f"metric={name!r} needs metricParams={{'beta': > 0}}. Got {beta!r} instead")
    if label not in range(k):
        raise InputError(f"metric={name!r} needs metricParams={{'metricLabel': 0 to {k - 1}}}. Got {label!r} instead")
    if name.endswith("ByLabel"):
        one = int(label)
        by_class, divisor = BY_CLASS[name.removesuffix("ByLabel")]

        def of_label(prediction: Tensor, y: Tensor, w: Tensor) -> Tensor:
            counts = Counts.of(prediction, y, w, k)
            return torch.where(counts.label[one] > 0, by_class(counts, beta)[one], torch.nan)

        needs = f"rows of class {one}" + (" and of others" if name.startswith("false") else "")
        return Metric(
            name,
            larger=not name.startswith("false"),
            column=decision,
            value=of_label,
            needs=needs,
            denominators=replace(divisor, classes=(one,)),
        )
    kind = {"f1": "weightedFMeasure"}.get(name, name).removeprefix("weighted")
    kind = kind[0].lower() + kind[1:]
    of_class, divisor = BY_CLASS[kind]

    def weighted_mean(prediction: Tensor, y: Tensor, w: Tensor) -> Tensor:
        counts = Counts.of(prediction, y, w, k)
        by_class = torch.where(counts.label > 0, of_class(counts, beta), 0.0)
        return (counts.label * by_class).sum() / w.sum()

    larger = name != "weightedFalsePositiveRate"
    return Metric(
        name,
        larger=larger,
        column=decision,
        value=weighted_mean,
        needs="" if larger else "rows of several classes",
        denominators=replace(divisor, classes=tuple(range(k)), shares=True),
    )
