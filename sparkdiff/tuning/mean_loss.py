"""Losses of sparkdiff for which Spark has no Evaluator, measured on the output columns of a plain pipeline."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    Evaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.param import Param, Params
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.formulas import brier, half_deviance, hinge, log_loss, of_label, pinball
from sparkdiff.objectives.losses import PARAMS as LOSS_PARAMS, cost_matrix, number
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import BINARY, MULTICLASS, REGRESSION
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.column_tensors import fetch_columns

DEVIANCES = ("poisson", "gamma", "tweedie")
OF_PROBABILITIES = ("logLoss", "focal", "brier")
CLASS_WEIGHTED = ("logLoss", "focal", "hinge")
"""Losses that, as a metric, are multiplied by `classWeights` if the training loss itself is the metric."""
Loss = Callable[[Tensor, Tensor], Tensor]


class MeanLoss(Evaluator):
    """The weighted mean of a loss over rows; smaller is better, NaN if a row has no prediction.

    Args:
        name: the loss, which decides what `column` has to hold: the mean for poisson, gamma, tweedie, poissonDeviance,
            huber and quantile; the probability of class 1, or of each class, for logLoss, focal and brier; margins of
            two classes, of which the last entry is used, for hinge; the predicted class for expectedCost.
        column: an output column of the pipeline.
        params: power, delta, tau, gamma, costs; classWeights, a factor per class for the loss of its rows; and floor, a
            mean below which a deviance continues as a parabola.
    """

    metricName: Param[Any] = Param(Params._dummy(), "metricName", "the loss")  # type: ignore[no-untyped-call]
    column: Param[Any] = Param(Params._dummy(), "column", "the column that it is computed of")  # type: ignore[no-untyped-call]
    labelCol: Param[Any] = Param(Params._dummy(), "labelCol", "the label")  # type: ignore[no-untyped-call]
    weightCol: Param[Any] = Param(Params._dummy(), "weightCol", "the weight; empty: 1")  # type: ignore[no-untyped-call]
    lossParams: Param[Any] = Param(Params._dummy(), "lossParams", "parameters of the loss")  # type: ignore[no-untyped-call]

    def __init__(
        self, name: str, column: str, labelCol: str, weightCol: str = "", params: Mapping[str, Any] | None = None
    ):
        super().__init__()
        given = {k: v if k in ("costs", "classWeights") else float(v) for k, v in (params or {}).items()}
        _loss(name, given)  # refuses missing parameters
        self._set(metricName=name, column=column, labelCol=labelCol, weightCol=weightCol, lossParams=given)

    def isLargerBetter(self) -> bool:
        return False

    def getMetricName(self) -> str:
        return str(self.getOrDefault("metricName"))

    def value(self, found: Tensor, y: Tensor, w: Tensor) -> float:
        """The weighted mean loss of the column's values (n,) or (n, k), given label (n,) and weight (n,)."""
        kept = w > 0
        return float((w[kept] * self.rows(found[kept], y[kept])).sum() / w[kept].sum())

    def rows(self, found: Tensor, y: Tensor) -> Tensor:
        """The loss of each row, (n,)."""
        params = self.getOrDefault("lossParams")
        loss = _loss(self.getOrDefault("metricName"), params)(found, y)
        weights = params.get("classWeights")
        return loss if weights is None else loss * torch.tensor(weights, dtype=torch.float64)[y.long()]

    def _evaluate(self, dataset: DataFrame) -> float:
        weight = col_by_name(self.getOrDefault("weightCol")) if self.getOrDefault("weightCol") else F.lit(1.0)
        read = [
            col_by_name(self.getOrDefault("column")),
            col_by_name(self.getOrDefault("labelCol")).cast("double"),
            weight.cast("double"),
        ]
        names = ["found", "label", "weight"]
        rows = dataset.select(*(c.alias(name) for c, name in zip(read, names, strict=True)))
        columns = fetch_columns(rows, names)
        return self.value(*columns) if columns else float("nan")


def _loss(name: str, params: Mapping[str, Any]) -> Loss:
    """The loss of each row as a function (values, label (n,)) -> (n,); values (n,) or (n, k) are means, probabilities,
    margins or classes.
    """
    match name:
        case "poisson" | "gamma" | "tweedie" | "poissonDeviance":
            known = {"gamma": 2.0}.get(name, 1.0)
            power = number(name, params, "power", ">= 1", lambda v: v >= 1) if name == "tweedie" else known
            times = 2.0 if name == "poissonDeviance" else 1.0
            return lambda mu, y: times * half_deviance(mu, y, power, params.get("floor"))
        case "huber":
            delta = number(name, params, "delta", "> 0", lambda v: v > 0)
            return lambda mu, y: torch.nn.functional.huber_loss(mu, y, reduction="none", delta=delta)
        case "quantile":
            tau = number(name, params, "tau", "in (0, 1)", lambda v: 0 < v < 1)
            return lambda mu, y: pinball(mu, y, tau)
        case "logLoss":
            return _log_loss
        case "hinge":
            return lambda margin, y: hinge(margin[:, -1] if margin.ndim == 2 else margin, y)
        case "focal":
            gamma = number(name, params, "gamma", ">= 0", lambda v: v >= 0)
            return lambda p, y: _focal(p if p.ndim == 2 else torch.stack([1 - p, p], 1), y, gamma)
        case "brier":
            return brier
        case "expectedCost":
            given = params.get("costs")
            costs = cost_matrix(given, len(given) if isinstance(given, (list, tuple)) else 2, f"metric={name!r}")
            return lambda found, y: torch.where(found.isnan(), torch.nan, costs[y.long(), found.nan_to_num().long()])
    shown = (*REGRESSION, *BINARY, *OF_PROBABILITIES, "accuracy", "expectedCost", *DEVIANCES, "poissonDeviance")
    raise InputError(
        f"metric={name!r} can't be computed of the columns that a pipeline writes: set metric to one of "
        f"{', '.join((*shown, 'huber', 'quantile', 'hinge'))}"
    )


def _log_loss(p: Tensor, y: Tensor) -> Tensor:
    return log_loss(p, y) if p.ndim == 1 else -of_label(p, y).log()


def _focal(p: Tensor, y: Tensor, gamma: float) -> Tensor:
    """Focal loss of probabilities; see `formulas.focal`, which takes margins."""
    own = torch.nn.functional.one_hot(y.long(), p.shape[1]).bool()
    return -(torch.where(own, 0.0, p).sum(1) ** gamma) * of_label(p, y).log()


def evaluator_of(
    metric: Metric, head: Any, *, labelCol: str, weightCol: str | None = None, params: Mapping[str, Any] | None = None
) -> Any:
    """An Evaluator that computes a metric of sparkdiff on the output of pipelines whose last stage is like `head`:
    Spark's own Evaluator, if Spark has this metric.

    Args:
        metric: the metric, bound to sparkdiff's translation of `head` to torch.
        head: the fitted predictor; its Params name the output columns.
        params: parameters of the metric: beta, metricLabel, delta, tau, power, gamma, costs, classWeights.

    Raises:
        InputError: the metric can't be computed from the columns that the predictor writes.
    """
    name: Any = metric.name
    defaults = {k: v for k, v in LOSS_PARAMS.get(name, {}).items() if v is not None}
    given = {**defaults, **(params or {})}
    weighted = given.pop("classWeights", None)
    weighted = weighted if name in CLASS_WEIGHTED else None
    label: dict[str, Any] = {"labelCol": labelCol, **({"weightCol": weightCol} if weightCol else {})}
    votes = head.hasParam("rawPredictionCol")
    prediction = head.getOrDefault("predictionCol")
    if name in BINARY:
        column = head.getOrDefault("rawPredictionCol") if votes else prediction
        return BinaryClassificationEvaluator(metricName=name, rawPredictionCol=column, numBins=0, **label)
    if name in MULTICLASS:
        known: dict[str, Any] = {k: float(v) for k, v in given.items() if k in ("beta", "metricLabel")}
        return MulticlassClassificationEvaluator(metricName=name, predictionCol=prediction, **label, **known)
    if name == "logLoss" and head.hasParam("probabilityCol") and weighted is None:
        return MulticlassClassificationEvaluator(
            metricName=name, predictionCol=prediction, probabilityCol=head.getOrDefault("probabilityCol"), **label
        )
    if name in REGRESSION or name in ("squared", "absolute"):
        plain: Any = {"squared": "mse", "absolute": "mae"}.get(name, name)
        return RegressionEvaluator(metricName=plain, predictionCol=prediction, **label)
    if name == "hinge" and votes and getattr(head, "numClasses", 2) > 2:
        raise InputError(
            "metric='hinge' of more than two classes can't be computed of rawPrediction: set metric to accuracy"
        )
    floor = {} if metric.floor is None else {"floor": metric.floor}
    power = {} if metric.power is None else {"power": metric.power}
    by_class = {} if weighted is None else {"classWeights": weighted}
    column = head.getOrDefault("rawPredictionCol") if votes and name != "expectedCost" else prediction
    if name in OF_PROBABILITIES and votes:
        if not head.hasParam("probabilityCol"):
            raise InputError(f"metric={name!r} needs probabilities, which {type(head).__name__} doesn't write")
        column = head.getOrDefault("probabilityCol")
    return MeanLoss(name, column, labelCol, weightCol or "", {**given, **power, **floor, **by_class})
