"""`Objective`: a loss bound to a predictor, in the form that training minimises; and objectives made from others:
weighted sums, losses weighted by class, and penalties on gaps between groups.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.formulas import between_groups, index, probabilities
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.device import DeviceCopies

Rows = Callable[[Tensor, Tensor, Tensor], Tensor]
Batch = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
Derivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(margin (K, n) or (K, n, k), label (n,)) -> loss (K, n) and its derivative with respect to the margin, shaped like
the margin; for K candidates.
"""


@dataclass(frozen=True)
class LossOrMetric:
    """A loss or a metric bound to a predictor.

    Attributes:
        name: the name in reports.
        rows: (margin, label (n,), weight (n,)) -> (n,), the unweighted value of each row, from this row alone; None if the
            metric or loss is not a mean over rows.
        floor: for a deviance, the predicted mean below which it continues as a parabola (see `half_deviance`); None if the
            mean is always positive, and for other losses.
        power: for a deviance, the power of the mean in the variance; None for other losses.
        elementwise: whether `rows` treats every row independently, so that the rows of several candidates can be
            concatenated and passed in one call.
    """

    name: str
    rows: Rows | None = None
    floor: float | None = field(default=None, kw_only=True)
    power: float | None = field(default=None, kw_only=True)
    elementwise: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class Objective(LossOrMetric):
    """A loss bound to a predictor. Smaller is better. Training minimises scale * (weighted mean of `rows` + `batch`).

    Attributes:
        batch: (margin, label (n,), weight (n,), groups) -> (), the weighted loss of a whole batch; the rows are those
            of all processes, and groups holds the group codes (n,) int64 of the columns that a penalty names. `batch`
            or `rows` may be None.
        scale: factor that removes the unit of the label; used in training, not in reports.
        calibrated: False if minimising the loss makes the predictor's probabilities uncalibrated, as losses of decisions
            and ranks do.
        exact: computes `rows` and their derivative in closed form; None if there is no closed form.
    """

    scale: float = 1.0
    batch: Batch | None = None
    calibrated: bool = True
    exact: Derivative | None = None


def zero_margin(head: Predictor, n: int) -> Tensor:
    """Margins of n rows, all 0, in the predictor's shape, (n,) or (n, k), and on the device of its parameters."""
    device = next((p.device for p in (*head.parameters(), *head.buffers())), None)
    return torch.zeros((n, head.margins) if head.wide else n, dtype=torch.float64, device=device)


def weighted_sum(parts: Sequence[Objective], weights: Sequence[float]) -> Objective:
    """The sum of these objectives, each multiplied by its scale and its weight."""
    factors = [w * p.scale for p, w in zip(parts, weights, strict=True)]
    by_row = [(p.rows, f) for p, f in zip(parts, factors, strict=True) if p.rows is not None]
    by_batch = [(p.batch, f) for p, f in zip(parts, factors, strict=True) if p.batch is not None]

    def rows(margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([f * part(margin, label, weight) for part, f in by_row]).sum(0)

    def batch(margin: Tensor, label: Tensor, weight: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([f * part(margin, label, weight, groups) for part, f in by_batch]).sum()

    return Objective(
        " + ".join(f"{w:g} {p.name}" for p, w in zip(parts, weights, strict=True)),
        rows if by_row else None,
        floor=max((p.floor for p in parts if p.floor is not None), default=None),
        power=max((p.power for p in parts if p.power is not None), default=None),
        batch=batch if by_batch else None,
        calibrated=all(p.calibrated for p in parts),
    )


def with_penalties(
    objective: Objective,
    penalties: Mapping[str, Mapping[str, float]],
    head: Predictor,
    y: LabelStats,
    groupCols: Sequence[str],
) -> Objective:
    """The objective plus the penalties `parityGap` on gaps between groups; metrics never include penalties.

    The penalty of a column is strength * the variance between its groups' weighted mean predictions, which is the sum
    over pairs of groups of the product of their shares times their squared gap. Predictions are probabilities or, for a
    regression, means in standard deviations of the label.

    Args:
        groupCols: the columns whose group codes are available in training.

    Raises:
        InputError: a column is not one of these, or the predictor outputs classes without probabilities.
    """
    gaps = penalties.get("parityGap", {})
    if unknown := sorted(set(gaps) - set(groupCols)):
        raise InputError(
            f"penalties.parityGap names {unknown}, but only the columns of guardCols are kept, "
            f"{sorted(groupCols)}: add them to guardCols"
        )
    if not gaps:
        return objective
    if head.classes and not head.probable:
        raise InputError(
            f"penalties.parityGap compares probabilities, which {type(head).__name__} doesn't output; leave it out"
        )
    unit = 1.0 if head.classes or head.binomial else 1 / (y.std or 1.0) ** 2
    before = objective.batch

    def batch(margin: Tensor, label: Tensor, weight: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
        if head.classes:
            shown = probabilities(margin)
            shown = shown[:, 1] if head.classes == 2 else shown
        else:
            shown = head.mean(margin)
        # Divide by the scale, with which training multiplies the sum: it belongs to the loss, not to the penalty.
        factor = unit / objective.scale
        terms = [strength * factor * between_groups(shown, groups[c], weight) for c, strength in gaps.items()]
        if before is not None:
            terms.append(before(margin, label, weight, groups))
        return torch.stack(terms).sum()

    return replace(objective, batch=batch)


def class_weights(given: Any, classes: int, y: LabelStats) -> Tensor:
    """A weight per class, (classes,).

    Raises:
        InputError: `given` is neither "balanced" nor a list of `classes` numbers >= 0, no row would count, or it is
            "balanced" and a class has no training row.
    """
    if given == "balanced":
        counts = torch.zeros(classes, dtype=torch.float64)
        counts[: len(y.classes)] = y.classes[:classes].to(torch.float64)
        if bool((counts == 0).any()):
            missing = int((counts == 0).nonzero()[0])
            raise InputError(
                f"classWeights='balanced' has no weight for class {missing}, because no training row has this "
                "class; set a list of weights"
            )
        return counts.sum() / (classes * counts)
    if (
        not isinstance(given, (list, tuple))
        or len(given) != classes
        or not all(isinstance(v, (int, float)) and v >= 0 for v in given)
    ):
        raise InputError(
            f"classWeights must be 'balanced' or a list of {classes} numbers >= 0, one per class index. Got {given!r} instead"
        )
    weights = torch.tensor(given, dtype=torch.float64)
    if not bool(weights.max() > 0):
        raise InputError("all classWeights are 0, so no row would count")
    return weights


def class_weighted(part: Objective, given: Any, classes: int, y: LabelStats) -> Objective:
    """The objective with each row's loss multiplied by the weight of its label's class."""
    weights = class_weights(given, classes, y)
    own = part.rows
    assert own is not None
    even, at = bool((weights == weights[0]).all()), DeviceCopies(weights)
    return replace(
        part,
        rows=lambda m, y, w: at.beside(m)[index(y, classes)] * own(m, y, w),
        calibrated=part.calibrated and even,
        exact=None,
    )
