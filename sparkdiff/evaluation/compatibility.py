"""The change of the predictions as users see it, for reports: changed labels, shift of the scores, calibration, and
metrics other than the one that the guard tests.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.evaluation.row_margins import MarginModel
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import without_params
from sparkdiff.stages.base import columns_of
from sparkdiff.stages.predictor import Predictor

RANKED_ROWS = 1_000_000
"""Largest number of rows whose scores are kept for the area under the ROC curve; with more rows, it is computed on the
first ones.
"""
OF_REGRESSIONS, OF_CLASSIFIERS = ("mse", "mae"), ("accuracy", "logLoss", "brier", "areaUnderROC")
EDGE_ROWS = 65_536
"""Number of rows for the bins of the scores. The rows of a shard are in the order of their hash, so the first ones
are a sample.
"""
BINS = 10
CHANGES = 30
"""Number of bins of the histogram of changes."""
TAIL = 0.005
"""Fraction of the changes that lie beyond each end of the histogram of changes."""
SHOWN = ("predictionCol", "probabilityCol", "rawPredictionCol")
MOVED = 0.1
"""The prediction of a regression counts as changed if it moves by more than this fraction of its old value."""


@dataclass(frozen=True)
class Compatibility:
    """The predictions of two networks on the same rows. Shares and the PSI count rows, means are weighted.

    The score is a regression's prediction, for two classes the probability of class 1, for more classes the largest
    probability (for a classifier without probabilities: its raw prediction).

    Attributes:
        rows: number of rows of weight > 0.
        changed: fraction of rows whose predicted label changes, at the model's threshold(s); for a regression, fraction
            of rows whose prediction changes by more than a tenth of its old value.
        labels: whether `changed` counts labels.
        psi: population stability index of the scores, in bins at the deciles of the original's scores. Values below 0.1
            are usually called stable, above 0.25 shifted. Half a row is added to each bin, so that empty bins give
            finite values.
        correlation: correlation of the two scores; None if one is constant.
        calibration: {"measure", "before", "after"}: a classifier's expected calibration error over ten bins of equal
            width (Naeini et al. 2015; with several classes that of the predicted one, Guo et al. 2017), a regression's
            mean prediction divided by the mean label. None without probabilities, or if the labels' mean is 0.
        bins: per decile of the original's score {"rows", "label", "before", "after"}, the last three weighted means: a
            reliability table; None with more than two classes.
        changes: {"edges", "counts", "outside" (number of larger changes)}: a histogram of new score - old score over the
            first rows, at most 65,536. None if no score changes.
        others: {metric: {"before", "after"}}: metrics that do not decide, see `SideMetrics`.
    """

    rows: int
    changed: float
    labels: bool
    psi: float
    correlation: float | None
    calibration: dict[str, Any] | None
    bins: list[dict[str, Any]] | None
    changes: dict[str, Any] | None = None
    others: dict[str, dict[str, float]] = field(default_factory=dict)


@torch.no_grad()
def compare(old: MarginModel, new: MarginModel, data: Data, split: str) -> Compatibility:
    """Compare the predictions of both networks on the rows of weight > 0 of a split, in one pass over all rows and
    one over the first.
    """
    edges, changes = _edges(old, data, split), _Changes()
    others = SideMetrics(old.head, new.head)
    counts = torch.zeros((2, len(edges) + 1), dtype=torch.int64)
    sums = torch.zeros((len(edges) + 1, 4), dtype=torch.float64)  # weight, weight * (label, old score, new score)
    wrong = torch.zeros((2, BINS), dtype=torch.float64)  # weight * (probability - outcome)
    rows = changed = 0
    mean, spread = torch.zeros(2, dtype=torch.float64), torch.zeros((2, 2), dtype=torch.float64)
    classes, probable = old.head.classes, False
    for batch, label, weight, _ in data.batches(split):
        used = weight > 0
        label, weight = label[used], weight[used]
        if not len(label):
            continue
        shown = [_batch_outputs(n, data, batch, used) for n in (old, new)]
        scores = torch.stack([s.score for s in shown])  # (2, n)
        one, other = (s.prediction for s in shown)
        changes.add(scores[1] - scores[0])
        others.add(label, weight, [s.margin for s in shown])
        differs = one != other if classes else (other - one).abs() > MOVED * one.abs()
        rows, changed = rows + len(label), changed + int(differs.sum())
        bins = torch.bucketize(scores, edges)
        for k in (0, 1):
            counts[k] += torch.bincount(bins[k], minlength=len(edges) + 1)
        sums.index_add_(0, bins[0], torch.stack([torch.ones_like(weight), label, *scores], 1) * weight[:, None])
        here = scores.mean(1)
        delta, apart = here - mean, scores - here[:, None]
        mean = mean + delta * len(label) / rows
        spread += apart @ apart.T + delta[:, None] * delta * (len(label) * (rows - len(label)) / rows)
        for k, s in enumerate(shown):
            if s.probability is not None:
                probable = True
                p, came = s.probability[:, 1], label == 1
                if classes > 2:
                    p, top = s.probability.max(1)
                    came = top == label
                wrong[k].index_add_(0, (p * BINS).long().clamp_max(BINS - 1), (p - came.double()) * weight)
    return Compatibility(
        rows,
        changed / rows,
        bool(classes),
        _psi(counts),
        _correlation(spread),
        _calibration(classes, probable, wrong, sums),
        _table(counts[0], sums) if classes <= 2 else None,
        changes.histogram(),
        others.values(),
    )


def mean(parts: Sequence[Compatibility], weights: Sequence[float]) -> Compatibility:
    """Mean of results on disjoint sets of rows, weighted by their numbers of rows; only `others` is weighted by
    `weights`, as metrics are. `bins` and `changes` are left out, because each set has its own bins.
    """
    sizes = [c.rows for c in parts]
    rows = sum(sizes)

    def average(values: Sequence[float | None], sizes: Sequence[float] = sizes) -> float | None:
        known = [(n, v) for n, v in zip(sizes, values, strict=True) if v is not None]
        return sum(n * v for n, v in known) / sum(n for n, _ in known) if known else None

    known = [c.calibration for c in parts]
    calibration = next((c for c in known if c is not None), None)
    if calibration is not None:
        sides = {k: average([None if c is None else c[k] for c in known]) for k in ("before", "after")}
        calibration = {"measure": calibration["measure"], **sides}
    changed, psi = (sum(c.rows * getattr(c, name) for c in parts) / rows for name in ("changed", "psi"))
    others = {
        name: {k: average([c.others[name][k] for c in parts], weights) or 0.0 for k in ("before", "after")}
        for name in parts[0].others
        if all(name in c.others for c in parts)
    }
    return Compatibility(
        rows, changed, parts[0].labels, psi, average([c.correlation for c in parts]), calibration, None, None, others
    )


@dataclass(frozen=True)
class _BatchOutputs:
    """The margin and Spark's output columns of some rows."""

    margin: Tensor  # (n,) or (n, k)
    score: Tensor  # (n,)
    prediction: Tensor  # (n,)
    probability: Tensor | None  # (n, k)


def _batch_outputs(network: MarginModel, data: Data, batch: Any, used: Tensor) -> _BatchOutputs:
    head, vertex = network.head, network.graph.head
    margin = network.margin(data.values(batch))[used]
    if not head.classes:
        prediction = head.mean(margin)
        return _BatchOutputs(margin, prediction, prediction, None)
    columns = dict(zip(vertex.outputs, head.columns(margin), strict=True))
    label, probability, raw = (columns.get(next(iter(columns_of(vertex.stage, (p,))), "")) for p in SHOWN)
    sure = raw if probability is None else probability
    if sure is None:
        assert label is not None  # a predictor that shows no column writes nothing, and isn't trained
        return _BatchOutputs(margin, label, label, None)
    return _BatchOutputs(
        margin,
        sure[:, 1] if head.classes == 2 else sure.amax(1),
        sure.argmax(1).to(sure.dtype) if label is None else label,
        probability if head.labelled else None,
    )


class _Changes:
    """Changes of the scores of the first rows, for their histogram."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def add(self, change: Tensor) -> None:
        """Keep these changes (n,), as long as no more than EDGE_ROWS are kept in all."""
        if room := EDGE_ROWS - sum(map(len, self.kept)):
            self.kept.append(change[:room])

    def histogram(self) -> dict[str, Any] | None:
        values = torch.cat(self.kept) if self.kept else torch.empty(0)
        values = values[values.isfinite()].double()
        if not len(values) or not values.any():
            return None
        low, high = torch.quantile(values, torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)).tolist()
        if low == high:
            low, high = float(values.min()), float(values.max())
        if low == high or not math.isfinite((high - low) / CHANGES):
            return None
        edges = torch.linspace(low, high, CHANGES + 1, dtype=torch.float64)
        inside = values[(values >= low) & (values <= high)]
        counts = torch.bincount(torch.bucketize(inside, edges[1:-1]), minlength=CHANGES)
        return {"edges": edges.tolist(), "counts": counts.tolist(), "outside": len(values) - len(inside)}


def _edges(network: MarginModel, data: Data, split: str) -> Tensor:
    """Distinct inner deciles of the scores of the first rows, (at most 9,)."""
    first: list[Tensor] = []
    for batch, _, weight, _ in itertools.takewhile(lambda _: sum(map(len, first)) < EDGE_ROWS, data.batches(split)):
        first.append(_batch_outputs(network, data, batch, weight > 0).score)
    shares = torch.arange(1, BINS, dtype=torch.float64) / BINS
    return torch.quantile(torch.cat(first), shares, interpolation="lower").unique()


def _psi(counts: Tensor) -> float:
    filled = counts.double() + 0.5
    shares = filled / filled.sum(1, keepdim=True)
    return float(((shares[1] - shares[0]) * (shares[1] / shares[0]).log()).sum())


def _correlation(spread: Tensor) -> float | None:
    size = float(spread.diagonal().prod().sqrt())
    return min(float(spread[0, 1]) / size, 1.0) if size > 0 else None


def _calibration(classes: int, probable: bool, wrong: Tensor, sums: Tensor) -> dict[str, Any] | None:
    weight, label, *scores = sums.sum(0).tolist()
    if classes:
        measure, values = "expectedCalibrationError", (wrong.abs().sum(1) / weight).tolist()
    else:
        measure, values = "meanPrediction / meanLabel", [s / label if label else 0.0 for s in scores]
    if not (probable if classes else label):
        return None
    return {"measure": measure, "before": values[0], "after": values[1]}


def _table(counts: Tensor, sums: Tensor) -> list[dict[str, Any]]:
    return [
        {"rows": int(n), **dict(zip(("label", "before", "after"), (row[1:] / row[0]).tolist(), strict=True))}
        for n, row in zip(counts, sums, strict=True)
        if n
    ]


class SideMetrics:
    """Running sums for further metrics of two pipelines, batch by batch. Each metric equals the metric of this name in
    the option `metric`.

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
        """Add the rows of a batch: label (n,), weight (n,) > 0, and the margin of each of the two pipelines."""
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
        """The metrics, {metric: {"before", "after"}}, without those that are not finite or not defined."""
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
            spread = (square - mean**2) * (weight - 1) / (weight - own)  # like Spark's r2
            means |= {"r2": 1 - squared / spread} if spread > 1e-12 * square else {}
        if ranked and (value := metrics["areaUnderROC"].value) is not None:
            means["areaUnderROC"] = float(value(torch.cat(ranked), *torch.cat(self.truth).unbind(1)))
        return means


def _metrics(head: Predictor) -> dict[str, Metric]:
    """Those of OF_CLASSIFIERS or OF_REGRESSIONS that are defined for the predictor, by name."""
    found = dict[str, Metric]()
    for name in OF_CLASSIFIERS if head.classes else OF_REGRESSIONS:
        with suppress(InputError):
            found[name] = without_params(name, head)
    return found
