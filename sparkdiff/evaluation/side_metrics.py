"""Metrics of two pipelines on the same rows that people ask for beside the one that decides; they decide nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

RANKED_ROWS = 1_000_000
"""Rows whose scores are kept for the area under the ROC curve; it is that of the first rows where there are more."""
TINY = 1e-15
"""Least probability of a logarithm, as in Spark's MulticlassClassificationEvaluator."""

Shown = tuple[Tensor, Tensor, Tensor | None]
"""Score (n,), prediction (n,) and probabilities (n, k) of some rows."""


class SideMetrics:
    """Sums for the metrics of two pipelines, batch by batch.

    A regression has rmse, mae and r2; a classifier accuracy, with probabilities logLoss and brier (the sum over classes of the
    squared errors, Brier 1950), with two classes areaUnderROC. All are weighted. A clustering has none.
    """

    def __init__(self, classes: int, *, labelled: bool):
        self.classes, self.labelled = classes, labelled
        self.weight = 0.0
        self.labels = torch.zeros(2, dtype=torch.float64)  # weight * (label, label ** 2)
        self.sums: list[dict[str, float]] = [{}, {}]
        self.ranked: list[list[Tensor]] = [[], []]
        self.truth: list[Tensor] = []
        self.kept = 0

    def add(self, label: Tensor, weight: Tensor, shown: Sequence[Shown]) -> None:
        """The rows of a batch: label (n,), weight (n,), and what each of the two pipelines shows for them."""
        if not self.labelled:
            return
        self.weight += float(weight.sum())
        self.labels += torch.stack([weight @ label, weight @ label**2])
        for sums, (score, prediction, probability) in zip(self.sums, shown, strict=True):
            errors = self._errors(label, score, prediction, probability)
            for name, values in errors.items():
                sums[name] = sums.get(name, 0.0) + float(weight @ values)
        if self.classes == 2 and (room := RANKED_ROWS - self.kept) > 0:
            self.kept += min(room, len(label))
            self.truth.append(torch.stack([label[:room] == 1, weight[:room]], 1))
            for ranked, (score, _, _) in zip(self.ranked, shown, strict=True):
                ranked.append(score[:room])

    def _errors(
        self, label: Tensor, score: Tensor, prediction: Tensor, probability: Tensor | None
    ) -> dict[str, Tensor]:
        if not self.classes:
            return {"squared": (label - score) ** 2, "mae": (label - score).abs()}
        found = {"accuracy": (prediction == label).double()}
        if probability is not None:
            own = probability.gather(1, label.long()[:, None])[:, 0]
            found["logLoss"] = -own.clamp_min(TINY).log()
            found["brier"] = (probability**2).sum(1) - 2 * own + 1
        return found

    def values(self) -> dict[str, dict[str, float]]:
        """{metric: {"before", "after"}}; what is not finite or not defined is left out."""
        if not self.weight:
            return {}
        sides = [self._of(sums, ranked) for sums, ranked in zip(self.sums, self.ranked, strict=True)]
        return {
            name: {"before": sides[0][name], "after": sides[1][name]}
            for name in sides[0]
            if all(name in side and abs(side[name]) < float("inf") for side in sides)
        }

    def _of(self, sums: dict[str, float], ranked: list[Tensor]) -> dict[str, float]:
        means = {name: value / self.weight for name, value in sums.items()}
        if not self.classes:
            squared = means.pop("squared")
            mean, square = (self.labels / self.weight).tolist()
            spread = square - mean**2
            means |= {"rmse": squared**0.5, **({"r2": 1 - squared / spread} if spread > 1e-12 * square else {})}
        if ranked and (area := area_under_roc(torch.cat(ranked), *torch.cat(self.truth).unbind(1))) is not None:
            means["areaUnderROC"] = area
        return means


def area_under_roc(score: Tensor, positive: Tensor, weight: Tensor) -> float | None:
    """The probability that a positive row scores higher than a negative one, ties counted by half (Mann and Whitney 1947).

    Args:
        score, positive (1 or 0), weight: (n,).

    Returns:
        None where a class has no row.
    """
    order = score.argsort()
    score, up, down = score[order], (positive * weight)[order].double(), ((1 - positive) * weight)[order].double()
    _, group = score.unique_consecutive(return_inverse=True)
    size = int(group[-1]) + 1
    ups, downs = (torch.zeros(size, dtype=torch.float64).index_add_(0, group, v) for v in (up, down))
    below = downs.cumsum(0) - downs / 2
    total = float(ups.sum() * downs.sum())
    return float((ups * below).sum()) / total if total else None
