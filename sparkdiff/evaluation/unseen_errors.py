"""Whether a gain would outlast one more row that the new pipeline predicts wrongly.

The log-loss of a row has no bound: a classifier that is sure and wrong pays for hundreds of rows on which it is sure and right.
Where classes are all but separable, such rows are so rare that a few hundred validation rows may hold none of them. Then all
rows gain a little, as steadily as no chance could explain, and a test of these gains accepts what further rows refute: no
method that sees only these gains can tell (Bahadur and Savage 1956). What can be seen is how sure the pipeline is.

An event that n rows don't show may still have a probability of about 1 / n: by Laplace's rule of succession it has 1 / (n + 2),
by the rule of three (Hanley and Lippman-Hand 1983) up to 3 / n at a confidence of 95%. So one row is added to the n that were
seen, of which the new pipeline is as sure as of any but the surest 2.5%, and which has another label. The gain of the n rows
must be larger than what this row costs. A change that makes predictions no surer costs nothing, and among many rows one is
little. The adjusted empirical likelihood of Chen, Variyath and Abraham (2008) adds a row, too, for the tail that isn't seen.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.evaluation.data import Data
from sparkdiff.evaluation.recorded import Predicts
from sparkdiff.evaluation.units import Costs, high
from sparkdiff.objectives.metric import Metric


@dataclass(frozen=True)
class Unseen:
    """One more row that is predicted wrongly, or one more group, against the gain of those that were seen.

    Attributes:
        gain: of all rows together, weight * loss.
        cost: by how much weight * loss of the row or group is larger than the original's.
    """

    gain: float
    cost: float

    @property
    def undoes(self) -> bool:
        """Whether nothing is left of the gain."""
        return self.cost >= self.gain


def unseen(gain: float, costs: Tensor, training: Costs | None) -> Unseen | None:
    """One more unit beside a gain; None where no row could be wrong.

    Args:
        gain: of all rows together.
        costs: (n,) of each row, were its label another one.
        training: what training units cost. Of groups, one is added that is as bad as the worst of these.
    """
    found = [high(costs)] if len(costs) else []
    found += [high(training.each)] if training is not None and training.kind == "groups" else []
    return Unseen(gain, max(found)) if found else None


@torch.no_grad()
def costs(old: Predicts, new: Predicts, data: Data, split: str, metric: Metric) -> Tensor:
    """By how much weight * loss of the new network would be larger than the old one's, were the label of a row wrong, (n,).

    The label is the one whose score has fallen most, but not the one that the new network predicts: for the log-loss the
    most expensive one. Of the rows of weight > 0; none of a regression, of clusters, or of a metric that is no mean over rows.
    """
    parts = [torch.empty(0, dtype=torch.float64)]
    if metric.rows is not None and new.head.classes and new.head.labelled:
        for batch, _, weight, _ in data.batches(split):
            values, used = data.values(batch), weight > 0
            first, second = (network.margin(dict(values)) for network in (old, new))
            label = wrong_label(old.head.class_scores(first), new.head.class_scores(second))
            lost = metric.rows(second, label, weight) - metric.rows(first, label, weight)
            known = lost.nan_to_num(nan=0.0)  # where both are infinite neither is worse
            parts.append((metric.sign * known * weight)[used].to("cpu", torch.float64))
    return torch.cat(parts)


def wrong_label(old: Tensor, new: Tensor) -> Tensor:
    """The label that is not predicted by the new scores and lost most against the old ones: (n,) or (n, k) -> (n,) float64."""
    if new.ndim == 1:
        return (new <= 0).double()
    fallen = (old - new).scatter(1, new.argmax(1, keepdim=True), -math.inf)
    return fallen.argmax(1).double()
