"""Losses: functions of the outputs of Spark's predictor, with weights, sums and penalties."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.derivatives import Derivative, derivative
from sparkdiff.objectives.formulas import (
    between_groups,
    calibration_error,
    focal,
    half_deviance,
    hinge,
    mean_cost,
    pairwise_logistic,
    pinball,
    probabilities,
)
from sparkdiff.options import callable_name
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.trainable import LabelStats
from sparkdiff.tensors.rows import on_gpu

REGRESSION = ("squared", "absolute", "huber", "quantile", "poisson", "gamma", "tweedie")
CLASSIFICATION = ("logLoss", "hinge", "focal", "cost", "auc", "mmce")
OF_PROBABILITIES = ("logLoss", "focal", "mmce")
OWN = ("weibull", "oneVsRest")
"""Losses that belong to one predictor only."""
UNLABELLED = ("inertia", "logLikelihood")
"""Losses of clusters, without a label."""
NAMES = ("auto", *REGRESSION, *CLASSIFICATION, *OWN, *UNLABELLED)
"""What the option `loss` takes."""
LARGEST = 1e70
"""Largest absolute label, and the inverse of the smallest: the fourth power of a label must be a double."""
BATCH = ("auc", "mmce")
"""Losses of a whole batch, which are not sums over rows."""
PARAMS: dict[str, dict[str, Any]] = {
    "huber": {"delta": None},
    "quantile": {"tau": 0.5},
    "tweedie": {"power": 1.5},
    "focal": {"gamma": 2.0},
    "cost": {"costs": None},
}

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
    """

    name: str
    rows: Rows | None = None
    floor: float | None = field(default=None, kw_only=True)
    power: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Objective(Bound):
    """A loss bound to a predictor. Smaller is better. Training minimises scale * (mean of `rows` by weight + `batch`).

    Attributes:
        batch: (margin, label (n,), weight (n,), groups) -> loss of the batch (), weighted; the rows are those of all
            processes, and groups holds the codes (n,) int64 of the columns that a penalty names. This or `rows` may be None.
        scale: factor that removes the unit of the label; used in training, not in reports.
        calibrated: whether its minimum keeps probabilities calibrated; losses of decisions and ranks do not.
        elementwise: whether `rows` treats every row independently, so that rows of several candidates can be
            concatenated.
        exact: `rows` with its derivative in closed form, where there is one.
    """

    scale: float = 1.0
    batch: Batch | None = None
    calibrated: bool = True
    elementwise: bool = True
    exact: Derivative | None = None


def resolve(
    loss: str | Callable[..., Tensor] | Mapping[str, float],
    params: Mapping[str, Any],
    head: Predictor,
    columns: tuple[str, ...],
    y: LabelStats,
) -> Objective:
    """The objective of a loss name, of a callable, or of a weighted sum {name: weight}, for a predictor.

    In a sum each loss counts in its own scale (squared in variances of the label, absolute, quantile and penalties in
    standard deviations, cost in the largest difference of two decisions), so that weights do not depend on the unit
    of the label. Formulas: docs/objectives.md. A callable that returns a 0-dim tensor is an objective of the whole
    batch.

    Args:
        params: parameters of the losses; in a sum each goes to the loss that has it. classWeights goes to every loss
            of rows.
        columns: the output columns of the predictor, which a callable gets by name.
        y: the training labels, for scales and balanced class weights.

    Raises:
        InputError: the loss would change what the predictor's outputs mean, or a parameter is missing, unknown or wrong.
    """
    if head.decides_only and (callable(loss) or loss not in ("cost", {"cost": 1.0})):
        raise InputError(
            f"loss={callable_name(loss) if callable(loss) else loss!r} does not depend on the threshold, which "
            "trains only on the cost of decisions: set loss='cost' and lossParams={'costs': ...}, or leave the "
            "threshold out of unfreeze"
        )
    if callable(loss):
        if params:
            raise InputError(
                f"lossParams {sorted(params)} are unknown to {callable_name(loss)}: put them into the function"
            )
        return _called(loss, head, columns, y)
    own, fitted = head.own_loss()
    weights: dict[str, float] = {}
    for name, weight in ({loss: 1.0} if isinstance(loss, str) else loss).items():
        name = own if name == "auto" else name
        if name in weights:
            raise InputError(f"loss={dict(loss)!r} names {name!r} twice: 'auto' is the same loss")  # type: ignore[arg-type]
        weights[name] = weight
    known = {name: set(PARAMS.get(name, {})) for name in weights}
    by_class = [n for n in weights if head.classes and n in (*CLASSIFICATION, "oneVsRest") and n not in BATCH]
    takes = set[str]().union(*known.values(), {"classWeights"} if by_class else ())
    if unknown := set(params) - takes:
        of = " + ".join(map(repr, weights))
        raise InputError(
            f"lossParams {sorted(unknown)} are unknown to the loss {of}; it takes {sorted(takes) or 'none'}"
        )
    parts = []
    for name in weights:
        defaults = PARAMS.get(name, {}) | (fitted if name == own else {})
        part = _component(name, defaults | {k: v for k, v in params.items() if k in known[name]}, head, y)
        if "classWeights" in params and name in by_class:
            part = _class_weighted(part, params["classWeights"], head.classes, y)
        parts.append(part)
    return parts[0] if isinstance(loss, str) else _sum(parts, list(weights.values()))


def _called(loss: Callable[..., Tensor], head: Predictor, columns: tuple[str, ...], y: LabelStats) -> Objective:
    name = callable_name(loss)

    def value(margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        out = _returned(loss, head, columns, margin, label, weight)
        if not isinstance(out, Tensor):
            raise InputError(f"the loss {name} returned {out!r}; it must return a torch tensor with one value per row")
        if not out.is_floating_point():
            raise InputError(
                f"the loss {name} returned a tensor of {out.dtype}; its values must be real numbers, as torch.float64"
            )
        if margin.requires_grad and not out.requires_grad:
            raise InputError(
                f"no gradient passes through the loss {name}: compute it with torch, without detach, numpy or "
                "the predicted class"
            )
        return out.to(torch.float64)

    def rows(margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        out = value(margin, label, weight)
        if out.shape != label.shape:
            raise InputError(
                f"the loss {name} returned shape {tuple(out.shape)}; it must be one unweighted value per row, "
                f"{tuple(label.shape)}, or one value for the whole batch, (), also for a batch without rows"
            )
        return out

    def batch(margin: Tensor, label: Tensor, weight: Tensor, groups: Mapping[str, Tensor]) -> Tensor:
        out = value(margin, label, weight)
        if out.ndim:
            raise InputError(
                f"the loss {name} returned shape {tuple(out.shape)}, but () before; always return the same kind"
            )
        return out

    return (
        Objective(name, batch=batch)
        if _is_of_batch(loss, head, columns, y)
        else Objective(name, rows, elementwise=False)
    )


def _returned(
    loss: Callable[..., Any], head: Predictor, columns: tuple[str, ...], margin: Tensor, label: Tensor, weight: Tensor
) -> Any:
    """What a callable returns for these rows.

    Raises:
        InputError: it changed what it was given in place, which other candidates and epochs are given too; or it computes on
            the CPU while its inputs lie on a GPU.
    """
    outputs = dict(zip(columns, head.columns(margin), strict=True))
    given = (*outputs.items(), ("label", label), ("weight", weight))
    before = [x._version for _, x in given]
    try:
        out = loss(outputs, label, weight)
    except (RuntimeError, TypeError) as e:
        if not on_gpu(margin) or not any(said in str(e) for said in ("on the same device", "to numpy")):
            raise
        raise InputError(
            f"the loss {callable_name(loss)} can't compute on {margin.device} ({str(e).splitlines()[0]}): make tensors where its "
            "inputs are, as label.new_tensor(...), without numpy; or set device='cpu'"
        ) from e
    if changed := [name for (name, x), version in zip(given, before, strict=True) if x._version != version]:
        raise InputError(
            f"the loss {callable_name(loss)} changes {', '.join(map(repr, changed))} in place: use functions that return "
            "a new tensor, for example y.log1p() instead of y.log1p_()"
        )
    return out


@torch.no_grad()
def _is_of_batch(loss: Callable[..., Tensor], head: Predictor, columns: tuple[str, ...], y: LabelStats) -> bool:
    """Whether a callable returns one value for all rows: called with no rows, or with two rows if it fails with
    none.

    Raises:
        InputError: it changes what it is given in place.
    """
    for n in (0, 2):
        margin = zero_margin(head, n)
        label = torch.tensor([y.low, y.high], dtype=torch.float64, device=margin.device)[:n]
        try:
            out = _returned(loss, head, columns, margin, label, torch.ones_like(label))
        except InputError:
            raise
        except Exception:  # whatever it is, it will show on real rows, with these named
            continue
        return isinstance(out, Tensor) and out.ndim == 0
    return False


def zero_margin(head: Predictor, n: int) -> Tensor:
    """Margins of n rows, all 0, of the predictor's shape, (n,) or (n, k), where its parameters are."""
    device = next((p.device for p in (*head.parameters(), *head.buffers())), None)
    return torch.zeros((n, head.margins) if head.wide else n, dtype=torch.float64, device=device)


class DeviceCopies:
    """A tensor of settings, such as costs: its numbers where the rows are. Each device gets a copy when it first asks."""

    def __init__(self, value: Tensor):
        self.value, self.copies = value, {value.device: value}

    def beside(self, x: Tensor) -> Tensor:
        if x.device not in self.copies:
            self.copies[x.device] = self.value.to(x.device, non_blocking=True)
        return self.copies[x.device]


def _sum(parts: Sequence[Objective], weights: Sequence[float]) -> Objective:
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


def penalised(
    objective: Objective,
    penalties: Mapping[str, Mapping[str, float]],
    head: Predictor,
    y: LabelStats,
    groupCols: Sequence[str],
) -> Objective:
    """The objective with the parity gaps of `penalties` added; metrics never see them.

    A column's term is strength * the variance between its groups' weighted mean predictions: the sum over pairs of groups
    of their shares times their squared gap. Predictions are probabilities, means of a regression in standard deviations
    of the label.

    Args:
        groupCols: the columns whose codes training has.

    Raises:
        InputError: a column is none of these.
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
        # Training multiplies all of it by the scale, which is the loss's, not the penalty's.
        factor = unit / objective.scale
        terms = [strength * factor * between_groups(shown, groups[c], weight) for c, strength in gaps.items()]
        if before is not None:
            terms.append(before(margin, label, weight, groups))
        return torch.stack(terms).sum()

    return replace(objective, batch=batch)


def check_label(bound: Bound, head: Predictor, y: LabelStats, column: str, fractional: float | None = None) -> None:
    """Raise InputError if a label is outside the domain of the loss, the metric or the classes of the predictor.

    Args:
        fractional: a label that is not a whole number, if there is one.
    """
    power = bound.power

    def refuse(value: float, rule: str) -> None:
        raise InputError(
            f"label column {column!r} holds {value!r}, but {bound.name} on {type(head).__name__} needs {rule}"
        )

    if head.classes or bound.name in ("areaUnderROC", "areaUnderPR"):
        last = max(head.classes, 2) - 1
        rule = f"class indices 0 to {last}{_indexed(column, y, last, fractional)}"
        if y.low < 0 or y.high > last:
            refuse(y.low if y.low < 0 else y.high, rule)
        if fractional is not None:
            refuse(fractional, rule)
    elif bound.name == "weibull" and y.low <= 0:
        refuse(y.low, "times > 0; drop such rows")
    elif bound.name in ("logLoss", "brier") and (y.low < 0 or y.high > 1):
        refuse(y.low if y.low < 0 else y.high, f"labels from 0 to 1{_indexed(column, y, 1, fractional)}")
    elif power is not None and power < 2 and y.low < 0:
        refuse(y.low, "labels >= 0; drop such rows or choose another loss")
    elif power is not None and power >= 2 and y.low <= 0:
        refuse(y.low, "labels > 0; drop such rows or choose another loss")
    largest = max(abs(y.low), abs(y.high))
    if largest > LARGEST or 0 < largest < 1 / LARGEST:
        raise InputError(
            f"label column {column!r} has values from {y.low!r} to {y.high!r}, for which squared losses "
            "overflow or underflow; clean the column, or scale it and fit the pipeline again"
        )


def _indexed(column: str, y: LabelStats, last: int, fractional: float | None) -> str:
    """A hint how to convert the labels to class indices 0 to `last`."""
    if fractional is not None:
        return "; drop such rows"
    if (y.low, y.high) == (1, last + 1):
        return f": the labels seem to start at 1, so use {column} - 1, or index them with a StringIndexer"
    if (y.low, y.high, last) == (-1, 1, 1):
        return f": the labels seem to be -1 and 1, so use ({column} + 1) / 2, or index them with a StringIndexer"
    return ": index the labels with a StringIndexer, or drop such rows"


def one_label(split: str, y: Mapping[str, Any], column: str, *, ranks: bool = False) -> str | None:
    """The problem of a split in which all rows have the same label: always predicting it is best.

    Args:
        y: the label statistics of the split in the manifest of the cache.
        ranks: whether the rows are pairs of users and items, where often only chosen pairs are kept.
    """
    if not y["rows"] or y["low"] != y["high"]:
        return None
    pairs = " (for implicit feedback: pairs that were not chosen, with 0)" if ranks else ""
    return (
        f"label column {column!r} holds {y['low']!r} in all {y['rows']:,} {split} rows of weight > 0, so "
        f"always predicting it would be best: add rows with other labels{pairs}, or change the split"
    )


def no_event(split: str, y: Mapping[str, Any]) -> str | None:
    """The problem of a split without any event: the longest prediction is best."""
    for column, (_, high) in y.get("beside", {}).items():
        if high == 0:
            return (
                f"censorCol={column!r} holds 0 in all {y['rows']:,} {split} rows of weight > 0, so no event "
                "was observed and the longest prediction would be best: add rows with 1, or change the split"
            )
    return None


# One loss each --------------------------------------------------------------------------------------------------------


def _component(name: str, params: Mapping[str, Any], head: Predictor, y: LabelStats) -> Objective:
    if not head.labelled or name in UNLABELLED:
        return _unlabelled(name, head)
    own = head.own_loss()[0]
    if name in OWN and name != own:
        raise InputError(f"loss={name!r} is not a loss of {type(head).__name__}; its own loss is {own!r}")
    if name in OWN:
        return Objective(name, head.own_rows)
    if own == "weibull":
        raise InputError(
            f"loss={name!r} on {type(head).__name__} would treat censored labels as events, and would change "
            "the meaning of `prediction`, the scale of a Weibull distribution; use 'weibull', or a function of "
            "its outputs"
        )
    if name in OF_PROBABILITIES and head.classes and not head.probable:
        usable = dict.fromkeys((own, "hinge", "cost", *(("auc",) if head.classes == 2 else ())))
        raise InputError(
            f"loss={name!r} needs probabilities, which {type(head).__name__} doesn't output; use one of {', '.join(usable)}"
        )
    if name == "logLoss":
        return Objective(name, _log_loss(head), exact=derivative(name, None, head))
    if (head.classes or head.binomial) and (name in REGRESSION or not head.classes):
        raise InputError(
            f"loss={name!r} on {type(head).__name__} would change the meaning of its probabilities; use "
            "'logLoss', or a function of its outputs"
        )
    if name in REGRESSION:
        return _regression(name, params, head, y)
    if name == "auc" and head.ranks:
        return Objective(name, batch=lambda m, y, w, groups: pairwise_logistic(head.mean(m), y, w), calibrated=False)
    if not head.classes:
        raise InputError(
            f"loss={name!r} needs classes, which {type(head).__name__} doesn't predict; use one of {', '.join(REGRESSION)}"
        )
    return _classification(name, params, head)


def _unlabelled(name: str, head: Predictor) -> Objective:
    own = head.own_loss()[0]
    if head.labelled:
        raise InputError(
            f"loss={name!r} is a loss of clusters, but {type(head).__name__} predicts a label; use {own!r}"
        )
    if name != own:
        raise InputError(
            f"loss={name!r} on {type(head).__name__}: its clusters have no label; use {own!r}, or a function "
            "of its outputs"
        )
    return Objective(name, lambda m, y, w: head.cost(m), 1 / head.loss_unit())


def index(y: Tensor, classes: int) -> Tensor:
    """Labels as class indices (n,) int64. A row with weight 0 may have any label; it gets a class and does not
    count.
    """
    return y.nan_to_num().clamp(0, classes - 1).long()


def _log_loss(head: Predictor) -> Rows:
    if head.wide:
        return lambda margin, y, w: F.cross_entropy(margin, index(y, margin.shape[1]), reduction="none")
    if head.classes or head.margin_link == "logit":
        return lambda margin, y, w: F.softplus(margin) - y * margin
    if head.binomial:

        def rows(margin: Tensor, y: Tensor, w: Tensor) -> Tensor:
            p = head.mean(margin)
            return -torch.special.xlogy(y, p) - torch.special.xlogy(1 - y, 1 - p)

        return rows
    raise InputError(
        f"loss='logLoss' needs probabilities, which {type(head).__name__} doesn't output; use one of {', '.join(REGRESSION)}"
    )


def _regression(name: str, params: Mapping[str, Any], head: Predictor, y: LabelStats) -> Objective:
    spread = y.std or 1.0
    if name == "squared":
        exact = derivative(name, None, head)
        return Objective(name, lambda m, y, w: (head.mean(m) - y) ** 2, 1 / spread**2, exact=exact)
    if name == "absolute":
        return Objective(name, lambda m, y, w: (head.mean(m) - y).abs(), 1 / spread)
    if name == "huber":
        delta = number(name, params, "delta", "> 0", lambda v: v > 0)
        return Objective(
            name, lambda m, y, w: F.huber_loss(head.mean(m), y, reduction="none", delta=delta), 1 / spread**2
        )
    if name == "quantile":
        tau = number(name, params, "tau", "in (0, 1)", lambda v: 0 < v < 1)
        return Objective(name, lambda m, y, w: pinball(head.mean(m), y, tau), 1 / spread)
    power = {"poisson": 1.0, "gamma": 2.0}.get(name) or number(name, params, "power", ">= 1", lambda v: v >= 1)
    floor = None if head.positive_mean else 1e-3 * (y.mean if y.mean > 0 else 1.0)
    exact = derivative(name, power, head) if floor is None else None
    return Objective(
        name, lambda m, y, w: half_deviance(head.mean(m), y, power, floor), floor=floor, power=power, exact=exact
    )


def _classification(name: str, params: Mapping[str, Any], head: Predictor) -> Objective:
    k = head.classes
    if name == "hinge":
        return Objective(
            name, lambda m, y, w: hinge(head.class_scores(m), index(y, k)), calibrated=not head.probable,
            exact=derivative(name, None, head),
        )  # fmt: skip
    if name == "focal":
        gamma = number(name, params, "gamma", ">= 0", lambda v: v >= 0)
        return Objective(name, lambda m, y, w: focal(m, index(y, k), gamma), calibrated=gamma == 0)
    if name == "cost":
        costs = cost_matrix(params.get("costs"), k, "loss='cost'")
        spread = float((costs.amax(1) - costs.amin(1)).max())
        if spread == 0:
            raise InputError(f"loss='cost' learns nothing from costs={costs.tolist()}: each row is constant")
        if not bool(head.decision_margin(zero_margin(head, 1)).isfinite().all()):
            raise InputError(
                "loss='cost' cannot train with a threshold of 0 or 1, because all rows get the same decision"
            )
        at = DeviceCopies(costs)
        return Objective(
            name, lambda m, y, w: mean_cost(head.decision_margin(m), index(y, k), at.beside(m)), 1 / spread,
            calibrated=not head.probable,
        )  # fmt: skip
    if name == "auc":
        if k != 2:
            raise InputError(f"loss='auc' ranks two classes, but {type(head).__name__} predicts {k}; use 'logLoss'")
        return Objective(
            name, batch=lambda m, y, w, groups: pairwise_logistic(rank_score(head.class_scores(m)), y, w),
            calibrated=not head.probable,
        )  # fmt: skip
    return Objective(name, batch=lambda m, y, w, groups: calibration_error(m, index(y, k), w))


def rank_score(scores: Tensor) -> Tensor:
    """The score that ranks rows of two classes, (n,): the log-odds of class 1, for one margin and for a softmax."""
    return scores if scores.ndim == 1 else scores[:, 1] - scores[:, 0]


def number(name: str, params: Mapping[str, Any], param: str, rule: str, good: Callable[[float], bool]) -> float:
    """A parameter that is a number.

    Raises:
        InputError: it is not a number, or it breaks the rule.
    """
    value = params.get(param)
    if not isinstance(value, (int, float)) or not good(value):
        raise InputError(f"loss={name!r} needs lossParams={{{param!r}: {rule}}}. Got {value!r} instead")
    return float(value)


def cost_matrix(value: Any, classes: int, of: str) -> Tensor:
    """Costs (k, k) of deciding for the column's class where the row's is true.

    Raises:
        InputError: it is missing, has another shape, or contains a negative cost.
    """
    rule = f"{of} needs costs, a list of {classes} rows (true class) of {classes} numbers >= 0 (decision)"
    try:
        costs = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        costs = torch.empty(0)
    if tuple(costs.shape) != (classes, classes):
        raise InputError(f"{rule}. Got {value!r} instead")
    if not bool((costs >= 0).all()):
        raise InputError(
            f"{rule}. Got {float(costs.min())!r} among them; add a constant to the row so that all its costs are >= 0"
        )
    return costs


def _class_weighted(part: Objective, given: Any, classes: int, y: LabelStats) -> Objective:
    """The objective with each row's loss multiplied by its label's class weight."""
    if given == "balanced":
        counts = torch.zeros(classes, dtype=torch.float64)
        counts[: len(y.classes)] = y.classes[:classes].to(torch.float64)
        if bool((counts == 0).any()):
            missing = int((counts == 0).nonzero()[0])
            raise InputError(
                f"classWeights='balanced' has no weight for class {missing}, because no training row has this "
                "class; set a list of weights"
            )
        weights = counts.sum() / (classes * counts)
    else:
        if not isinstance(given, (list, tuple)) or len(given) != classes or not all(
            isinstance(v, (int, float)) and v >= 0 for v in given
        ):  # fmt: skip
            raise InputError(
                f"classWeights must be 'balanced' or a list of {classes} numbers >= 0, one per class index. Got {given!r} instead"
            )
        weights = torch.tensor(given, dtype=torch.float64)
        if not bool(weights.max() > 0):
            raise InputError("all classWeights are 0, so no row would count")
    own = part.rows
    assert own is not None
    even, at = bool((weights == weights[0]).all()), DeviceCopies(weights)
    return replace(
        part,
        rows=lambda m, y, w: at.beside(m)[index(y, classes)] * own(m, y, w),
        calibrated=part.calibrated and even,
        exact=None,
    )
