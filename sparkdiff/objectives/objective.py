"""`Objective`: a loss bound to a predictor, and how training minimises it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparkdiff.objectives.derivatives import Derivative
from sparkdiff.stages.predictor import Predictor

Rows = Callable[[Tensor, Tensor, Tensor], Tensor]
Batch = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Bound:
    """A loss or a metric bound to a predictor.

    Attributes:
        name: the name in reports.
        rows: (margin, label (n,), weight (n,)) -> per row (n,), unweighted, each row's from this row alone; None if the value
            is not a mean over rows.
        floor: below this mean the loss continues as its tangent parabola; None if the mean is always positive.
        power: for a deviance, the power of the mean in the variance; None for other losses.
        elementwise: whether `rows` treats every row independently, so that rows of several candidates can be concatenated.
    """

    name: str
    rows: Rows | None = None
    floor: float | None = field(default=None, kw_only=True)
    power: float | None = field(default=None, kw_only=True)
    elementwise: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class Objective(Bound):
    """A loss bound to a predictor. Smaller is better. Training minimises scale * (mean of `rows` by weight + `batch`).

    Attributes:
        batch: (margin, label (n,), weight (n,), groups) -> loss of the batch (), weighted; the rows are those of all
            processes, and groups holds the codes (n,) int64 of the columns that a penalty names. This or `rows` may be None.
        scale: factor that removes the unit of the label; used in training, not in reports.
        calibrated: whether its minimum keeps probabilities calibrated; losses of decisions and ranks do not.
        exact: `rows` with its derivative in closed form, where there is one.
    """

    scale: float = 1.0
    batch: Batch | None = None
    calibrated: bool = True
    exact: Derivative | None = None


def zero_margin(head: Predictor, n: int) -> Tensor:
    """Margins of n rows, all 0, of the predictor's shape, (n,) or (n, k), where its parameters are."""
    device = next((p.device for p in (*head.parameters(), *head.buffers())), None)
    return torch.zeros((n, head.margins) if head.wide else n, dtype=torch.float64, device=device)
