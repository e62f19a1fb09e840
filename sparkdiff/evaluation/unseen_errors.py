"""A test whether a gain would outlast one more row that the new pipeline predicts wrongly.

The log-loss of a row has no bound: a row on which a classifier is confident and wrong costs as much as hundreds of rows
on which it is confident and right gain. If classes are almost separable, such rows are so rare that a few hundred
validation rows may contain none. Then all rows gain a little, more steadily than chance could explain, and a test of
these gains accepts what further rows refute: no method that sees only these gains can detect this (Bahadur and Savage
1956). But the confidence of the pipeline can be seen.

An event that n rows don't show may still have a probability of about 1 / n: by Laplace's rule of succession 1 / (n +
2), by the rule of three (Hanley and Lippman-Hand 1983) up to 3 / n at a confidence of 95%. So one row with a wrong
prediction is added to the n rows that were seen. The new pipeline is assumed to be as confident of this wrong
prediction as of its prediction on any seen row, except the most confident 2.5%. The gain of the n rows must be larger
than the cost of the added row. A change that makes predictions no more confident costs nothing, and among many rows one
row matters little. The adjusted empirical likelihood of Chen, Variyath and Abraham (2008) also adds a row for the
unseen tail.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.evaluation.row_margins import MarginModel
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.evaluation.units import Costs, high
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import DECISIONS


@dataclass(frozen=True)
class UnseenErrorCost:
    """The cost of one more row that is predicted wrongly, or of one more group, and the gain on the rows that were
    seen.

    Attributes:
        gain: sum over all rows of weight * (loss of the original - loss).
        cost: increase of weight * loss over the original's for the added row or group.
    """

    gain: float
    cost: float

    @property
    def undoes(self) -> bool:
        """True if the cost is at least the gain."""
        return self.cost >= self.gain


def unseen(gain: float, costs: Tensor, training: Costs | None) -> UnseenErrorCost | None:
    """The cost of one more unit compared with a gain; None if no row could be wrong and `training` has no groups.

    Args:
        gain: sum over all rows, as in `UnseenErrorCost`.
        costs: (n,) cost that each row would have if it had another label, from the function `costs`.
        training: costs of training units. If these units are groups, the added unit costs at least as much as the group
            that only 2.5% of the groups exceed.
    """
    found = [high(costs)] if len(costs) else []
    found += [high(training.each)] if training is not None and training.kind == "groups" else []
    return UnseenErrorCost(gain, max(found)) if found else None


@torch.no_grad()
def costs(old: MarginModel, new: MarginModel, data: Data, split: str, metric: Metric) -> Tensor:
    """Increase of weight * loss from the old network to the new one if each row had a wrong label, (n,).

    The wrong label is, among those that the new network doesn't predict, the one whose score has fallen most; for the
    log-loss it is the most expensive one. Only for rows of weight > 0; empty for a regression, for clusters, and for a
    metric that is no mean over rows.
    """
    parts = [torch.empty(0, dtype=torch.float64)]
    before, after = metric.of(old.head), metric.of(new.head)
    if metric.rows is not None and new.head.classes and new.head.labelled:
        for batch, _, weight, _ in data.batches(split):
            values, used = data.values(batch), weight > 0
            first, second = (network.margin(dict(values)) for network in (old, new))
            label = wrong_label(
                *(
                    head.decision_margin(margin) if metric.name in DECISIONS else head.class_scores(margin)
                    for head, margin in ((old.head, first), (new.head, second))
                )
            )
            lost = after.by_row(second, label, weight) - before.by_row(first, label, weight)
            known = lost.nan_to_num(nan=0.0)  # if both are infinite, neither is worse
            parts.append((metric.sign * known * weight)[used].to("cpu", torch.float64))
    return torch.cat(parts)


def wrong_label(old: Tensor, new: Tensor) -> Tensor:
    """The label, among those that the new scores don't predict, whose score fell most from the old to the new scores;
    (n,) or (n, k) -> (n,) float64.
    """
    if new.ndim == 1:
        return (new <= 0).double()
    fallen = (old - new).scatter(1, new.argmax(1, keepdim=True), -math.inf)
    return fallen.argmax(1).double()
