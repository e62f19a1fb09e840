"""Metrics of two pipelines on the same rows that people ask for beside the one that decides; they decide nothing."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import without_params
from sparkdiff.stages.predictor import Predictor

RANKED_ROWS = 1_000_000
"""Rows whose scores are kept for the area under the ROC curve; it is that of the first rows where there are more."""
OF_REGRESSIONS, OF_CLASSIFIERS = ("mse", "mae"), ("accuracy", "logLoss", "brier", "areaUnderROC")


class SideMetrics:
    """Sums for the metrics of two pipelines, batch by batch. Each equals the metric that the option `metric` names.

    A regression has rmse, mae and r2; a classifier accuracy, with probabilities logLoss and brier, with two classes
    areaUnderROC. All are weighted. A clustering has none.
    """

    def __init__(self, *heads: Predictor):
        self.metrics = [_metrics(head) for head in heads]
        self.totals = torch.zeros(4, dtype=torch.float64)  # weight * (1, weight, label, label ** 2)
        self.sums: list[dict[str, float]] = [{} for _ in heads]
        self.ranked: list[list[Tensor]] = [[] for _ in heads]
        self.truth: list[Tensor] = []
        self.room = RANKED_ROWS

    def add(self, label: Tensor, weight: Tensor, margins: Sequence[Tensor]) -> None:
        """The rows of a batch: label (n,), weight (n,) > 0, and the margin of each of the two pipelines."""
        self.totals += torch.stack([torch.ones_like(label), weight, label, label**2]) @ weight
        for metrics, sums, ranked, margin in zip(self.metrics, self.sums, self.ranked, margins, strict=True):
            for name, metric in metrics.items():
                if metric.rows is not None:
                    sums[name] = sums.get(name, 0.0) + float(weight @ metric.rows(margin, label, weight))
                elif metric.column is not None:
                    ranked.append(metric.column(margin[: self.room]))
        self.truth.append(torch.stack([label, weight], 1)[: self.room])
        self.room = max(self.room - len(label), 0)

    def values(self) -> dict[str, dict[str, float]]:
        """{metric: {"before", "after"}}; what is not finite or not defined is left out."""
        if not self.totals[0]:
            return {}
        before, after = (self._of(*side) for side in zip(self.metrics, self.sums, self.ranked, strict=True))
        return {
            name: {"before": before[name], "after": after[name]}
            for name in before
            if all(name in side and abs(side[name]) < float("inf") for side in (before, after))
        }

    def _of(self, metrics: dict[str, Metric], sums: dict[str, float], ranked: list[Tensor]) -> dict[str, float]:
        weight = float(self.totals[0])
        _, own, mean, square = (self.totals / weight).tolist()
        means = {name: value / weight for name, value in sums.items()}
        if "mse" in means:
            squared = means.pop("mse")
            means["rmse"] = squared**0.5
            spread = (square - mean**2) * (weight - 1) / (weight - own)  # as Spark's r2
            means |= {"r2": 1 - squared / spread} if spread > 1e-12 * square else {}
        if ranked and (value := metrics["areaUnderROC"].value) is not None:
            means["areaUnderROC"] = float(value(torch.cat(ranked), *torch.cat(self.truth).unbind(1)))
        return means


def _metrics(head: Predictor) -> dict[str, Metric]:
    """The metrics that the predictor has."""
    found = dict[str, Metric]()
    for name in OF_CLASSIFIERS if head.classes else OF_REGRESSIONS:
        with suppress(InputError):
            found[name] = without_params(name, head)
    return found
