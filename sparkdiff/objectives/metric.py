"""`Metric`: a metric bound to a predictor, and the influence of each row on a metric that is not a mean over rows.

Such a metric is a function T of the rows' weights w that does not change if all weights are multiplied by the same
number. The influence of row i, psi_i = T + W * dT/dw_i (W is the sum of w; the infinitesimal jackknife of Jaeckel
1972), turns the metric into a mean: the weighted mean of psi is T, and to first order the sampling error of T is that
of this mean. So the guard (the test on held-out rows) can test sums of psi over blocks of rows like sums of a loss. For
the area under the ROC curve, psi is DeLong's (1988) placements; for rmse, it is the delta method.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.objectives.objective import LossOrMetric
from sparkdiff.stages.predictor import Predictor

Columns = Callable[[Tensor], Tensor]
Value = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Denominators:
    """The rows in the denominators of a metric such as precision, for each class that it uses.

    Attributes:
        classes: the classes.
        rows: (prediction (n,), label (n,), class) -> (n,) bool, the rows in the denominator of the class.
        words: a description of these rows, which the number of the class completes ("predicted as class").
        by_label: whether the rows of `wrong_rows` have the class as their label; otherwise they have it as their prediction.
        shares: whether the metric is a sum over the classes, weighted by their shares of the labels.
    """

    classes: tuple[int, ...]
    rows: Callable[[Tensor, Tensor, int], Tensor]
    words: str
    by_label: bool = False
    shares: bool = False

    def wrong_rows(self, number: int) -> tuple[Tensor, Tensor]:
        """Predictions and labels, (classes,) each, of one wrongly predicted row in each denominator; `number` is the
        number of all classes.
        """
        own = torch.tensor(self.classes, dtype=torch.float64)
        other = (own + 1) % number
        return (other, own) if self.by_label else (own, other)


@dataclass(frozen=True)
class Metric(LossOrMetric):
    """A metric bound to a predictor.

    Attributes:
        larger: whether larger is better.
        column: margin -> (n,) or (n, c), the numbers per row that `value` needs.
        value: (column, label (n,), weight (n,)) -> (), differentiable in the weights, NaN if undefined.
        needs: the condition on the rows under which the metric is defined.
        ranks: whether the metric compares rows of class 1 with rows of class 0, so that both classes need enough rows.
        denominators: the rows that the metric divides by, for a metric of classes such as precision; else None.
        bind: predictor -> this metric, bound to that predictor; None if it does not depend on decisions.
    """

    larger: bool = False
    column: Columns | None = None
    value: Value | None = None
    needs: str = ""
    ranks: bool = False
    denominators: Denominators | None = None
    bind: "Callable[[Predictor], Metric] | None" = None

    def of(self, head: Predictor) -> "Metric":
        """This metric, bound to the predictor of another pipeline, which may decide at other thresholds."""
        return self if self.bind is None else self.bind(head)

    def by_row(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """A number for each row, (n,) or (n, c): its metric, 0 for a row of weight 0; or its input to `value`."""
        if self.rows is None:
            return self.column(margin)  # type: ignore[misc]  # a metric has one of the two
        return torch.where(weight > 0, self.rows(margin, label, weight), 0.0)

    @property
    def direction(self) -> str:
        return "larger" if self.larger else "smaller"

    @property
    def sign(self) -> float:
        """The factor that turns the metric into a loss."""
        return -1.0 if self.larger else 1.0


def influence(metric: Metric, column: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """The influence psi (n,) of each row on a metric that is not a mean over rows; sum(weight * psi) / sum(weight) is
    the metric's value.

    All weights must be > 0; for a metric without `ranks` and `denominators` they may be 0. All entries are NaN if the
    metric is undefined or a prediction is not finite.
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
