"""`Metric`: a metric bound to a predictor, and the influence of each row on a metric that is not a mean over rows.

Such a metric is a function T of the rows' weights w that does not change when all weights are multiplied by the same
number. Its influence psi_i = T + W * dT/dw_i (W the sum of w), the infinitesimal jackknife of Jaeckel (1972), turns it
into a mean: the weighted mean of psi is T, and to first order the sampling error of T is that of this mean. So the
guard tests sums of psi over blocks like those of a loss. For the area under the ROC curve, psi is DeLong's (1988)
placements; for rmse it is the delta method.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.objectives.objective import Bound

Columns = Callable[[Tensor], Tensor]
Value = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Denominators:
    """The rows in the denominators of a metric of predicted classes, for each class that it uses.

    Attributes:
        classes: the classes.
        rows: (prediction (n,), label (n,), class) -> (n,) bool, the rows in the denominator of the class.
        words: a description of these rows that ends before the number of the class.
        by_label: whether a wrong row in the denominator has the class as its label rather than as its prediction.
        shares: whether the classes' values are weighted by the classes' shares of the labels.
    """

    classes: tuple[int, ...]
    rows: Callable[[Tensor, Tensor, int], Tensor]
    words: str
    by_label: bool = False
    shares: bool = False

    def wrong_rows(self, number: int) -> tuple[Tensor, Tensor]:
        """The prediction and the label of one wrongly predicted row for each denominator, (classes,), with `number`
        classes in all.
        """
        own = torch.tensor(self.classes, dtype=torch.float64)
        other = (own + 1) % number
        return (other, own) if self.by_label else (own, other)


@dataclass(frozen=True)
class Metric(Bound):
    """A metric bound to a predictor.

    Attributes:
        larger: whether larger is better.
        column: margin -> (n,) or (n, c), the numbers per row that `value` needs.
        value: (column, label (n,), weight (n,)) -> (), differentiable in the weights, NaN if undefined.
        needs: the condition on the rows under which the metric is defined.
        ranks: whether rows of class 1 are compared with rows of class 0, so that both classes need enough rows.
        denominators: set if the metric divides by numbers of rows of classes.
    """

    larger: bool = False
    column: Columns | None = None
    value: Value | None = None
    needs: str = ""
    ranks: bool = False
    denominators: Denominators | None = None

    @property
    def direction(self) -> str:
        return "larger" if self.larger else "smaller"

    @property
    def sign(self) -> float:
        """The factor that turns the metric into a loss."""
        return -1.0 if self.larger else 1.0


def influence(metric: Metric, column: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """The influence psi (n,) for a metric that is not a mean over rows; sum(weight * psi) / sum(weight) is its value.

    All weights must be > 0, or >= 0 for a metric that neither ranks nor counts rows. All NaN if the metric is undefined
    or a prediction is not finite.
    """
    assert metric.value is not None
    if not len(column) or not bool(column.isfinite().all()):
        return torch.full_like(weight, torch.nan)
    with torch.enable_grad():
        w = weight.detach().clone().requires_grad_()
        value = metric.value(column.detach(), label, w)
        slope = torch.autograd.grad(value, w)[0] if value.requires_grad else torch.zeros_like(w)
    # The second term is 0 except for rounding, and for Spark's r2, which changes slightly when all weights are multiplied.
    slope = weight.sum() * slope - (weight * slope).sum()
    return value.detach() + slope
