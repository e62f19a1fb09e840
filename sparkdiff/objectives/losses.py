"""The losses of the option `loss`: functions of the outputs of Spark's predictor, either named (then with a scale) or
written by users.

To add a loss:

1. Write the formula per row as a branch of `_regression` or `_classification`, on `head.mean(margin)` or
   `head.class_scores(margin)`, with a `scale`, so that the loss does not depend on the unit of the label. If the derivative
   has a closed form, add it to `derivative`, and pass it as `exact`.
2. Add its name to `REGRESSION` or `CLASSIFICATION`; the option `loss`, its error messages and metrics take the name from there.
3. Add its parameters and their defaults to `PARAMS`, and check them with `number`.
4. In `tests/unit/objectives/test_losses.py` add its parameters, its scale, wrong parameters, and the values that another library
   computes. Every loss is a metric too: add its parameters and its reference to `test_metrics.py`.
5. Describe the formula and its unit in docs/objectives.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.objectives.formulas import (
    calibration_error,
    focal,
    half_deviance,
    hinge,
    index,
    log_loss,
    mean_cost,
    pairwise_logistic,
    pinball,
    rank_score,
)
from sparkdiff.objectives.objective import Derivative, Objective, Rows, class_weighted, weighted_sum, zero_margin
from sparkdiff.options import callable_name
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.device import DeviceCopies
from sparkdiff.tensors.rows import on_gpu

REGRESSION = ("squared", "absolute", "huber", "quantile", "poisson", "gamma", "tweedie")
CLASSIFICATION = ("logLoss", "hinge", "focal", "cost", "auc", "mmce")
OF_PROBABILITIES = ("logLoss", "focal", "mmce")
OWN = ("weibull", "oneVsRest")
"""Losses that exist only for the one predictor whose own loss they are."""
UNLABELLED = ("inertia", "logLikelihood")
"""Losses of clusterings, which need no label."""
NAMES = ("auto", *REGRESSION, *CLASSIFICATION, *OWN, *UNLABELLED)
"""Values of the option `loss`."""
BATCH = ("auc", "mmce")
"""Losses of a whole batch, which are not sums over rows."""
PARAMS: dict[str, dict[str, Any]] = {
    "huber": {"delta": None},
    "quantile": {"tau": 0.5},
    "tweedie": {"power": 1.5},
    "focal": {"gamma": 2.0},
    "cost": {"costs": None},
}


def resolve(
    loss: str | Callable[..., Tensor] | Mapping[str, float],
    params: Mapping[str, Any],
    head: Predictor,
    columns: tuple[str, ...],
    y: LabelStats,
) -> Objective:
    """The objective of a loss name, of a callable, or of a weighted sum {name: weight}, for a predictor.

    In a sum, each loss is measured in its own scale: squared and huber in variances of the label, absolute and quantile
    in its standard deviations, cost in the largest difference between two decisions, so that the weights do not depend
    on the unit of the label; deviances count unchanged. Formulas: docs/objectives.md. A callable that returns a 0-dim
    tensor is an objective of the whole batch.

    Args:
        params: parameters of the losses; in a sum, each is passed to the loss that has it, and classWeights to every
            loss of classes that is a mean over rows.
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
        return function_objective(loss, head, columns, y)
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
            part = class_weighted(part, params["classWeights"], head.classes, y)
        parts.append(part)
    return parts[0] if isinstance(loss, str) else weighted_sum(parts, list(weights.values()))


# Parameters -----------------------------------------------------------------------------------------------------------


def number(name: str, params: Mapping[str, Any], param: str, rule: str, good: Callable[[float], bool]) -> float:
    """Value of the parameter `param` of a loss, which must be a number for which `good` is True; `rule` describes this
    in the message.

    Raises:
        InputError: it is not a number, or `good` is False for it.
    """
    value = params.get(param)
    if not isinstance(value, (int, float)) or not good(value):
        raise InputError(f"loss={name!r} needs lossParams={{{param!r}: {rule}}}. Got {value!r} instead")
    return float(value)


def cost_matrix(value: Any, classes: int, of: str) -> Tensor:
    """Matrix of costs (k, k): the entry in row i and column j is the cost of predicting class j if class i is true.

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


# One loss each --------------------------------------------------------------------------------------------------------


def _component(name: str, params: Mapping[str, Any], head: Predictor, y: LabelStats) -> Objective:
    if not head.labelled or name in UNLABELLED:
        return _cluster_loss(name, head)
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
        return Objective(name, batch=lambda m, y, w, _groups: pairwise_logistic(head.mean(m), y, w), calibrated=False)
    if not head.classes:
        raise InputError(
            f"loss={name!r} needs classes, which {type(head).__name__} doesn't predict; use one of {', '.join(REGRESSION)}"
        )
    return _classification(name, params, head)


def _cluster_loss(name: str, head: Predictor) -> Objective:
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
    return Objective(name, lambda m, _y, _w: head.cost(m), 1 / head.loss_unit())


def _log_loss(head: Predictor) -> Rows:
    if head.wide:
        return lambda margin, y, _w: F.cross_entropy(margin, index(y, margin.shape[1]), reduction="none")
    if head.classes or head.margin_link == "logit":
        return lambda margin, y, _w: F.softplus(margin) - y * margin
    if head.binomial:
        return lambda margin, y, _w: log_loss(head.mean(margin), y)
    raise InputError(
        f"loss='logLoss' needs probabilities, which {type(head).__name__} doesn't output; use one of {', '.join(REGRESSION)}"
    )


def _regression(name: str, params: Mapping[str, Any], head: Predictor, y: LabelStats) -> Objective:
    spread = y.std or 1.0
    if name == "squared":
        exact = derivative(name, None, head)
        return Objective(name, lambda m, y, _w: (head.mean(m) - y) ** 2, 1 / spread**2, exact=exact)
    if name == "absolute":
        return Objective(name, lambda m, y, _w: (head.mean(m) - y).abs(), 1 / spread)
    if name == "huber":
        delta = number(name, params, "delta", "> 0", lambda v: v > 0)
        return Objective(
            name, lambda m, y, _w: F.huber_loss(head.mean(m), y, reduction="none", delta=delta), 1 / spread**2
        )
    if name == "quantile":
        tau = number(name, params, "tau", "in (0, 1)", lambda v: 0 < v < 1)
        return Objective(name, lambda m, y, _w: pinball(head.mean(m), y, tau), 1 / spread)
    power = {"poisson": 1.0, "gamma": 2.0}.get(name) or number(name, params, "power", ">= 1", lambda v: v >= 1)
    floor = None if head.positive_mean else 1e-3 * (y.mean if y.mean > 0 else 1.0)
    exact = derivative(name, power, head) if floor is None else None
    return Objective(
        name, lambda m, y, _w: half_deviance(head.mean(m), y, power, floor), floor=floor, power=power, exact=exact
    )


def _classification(name: str, params: Mapping[str, Any], head: Predictor) -> Objective:
    k = head.classes
    if name == "hinge":
        return Objective(
            name,
            lambda m, y, _w: hinge(head.class_scores(m), index(y, k)),
            calibrated=not head.probable,
            exact=derivative(name, None, head),
        )
    if name == "focal":
        gamma = number(name, params, "gamma", ">= 0", lambda v: v >= 0)
        return Objective(name, lambda m, y, _w: focal(m, index(y, k), gamma), calibrated=gamma == 0)
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
            name,
            lambda m, y, _w: mean_cost(head.decision_margin(m), index(y, k), at.beside(m)),
            1 / spread,
            calibrated=not head.probable,
        )
    if name == "auc":
        if k != 2:
            raise InputError(f"loss='auc' ranks two classes, but {type(head).__name__} predicts {k}; use 'logLoss'")
        return Objective(
            name,
            batch=lambda m, y, w, _groups: pairwise_logistic(rank_score(head.class_scores(m)), y, w),
            calibrated=not head.probable,
        )
    return Objective(name, batch=lambda m, y, w, _groups: calibration_error(m, index(y, k), w))


# Closed forms ---------------------------------------------------------------------------------------------------------
# On the small tensors of a step, autograd's bookkeeping takes several times as long as the arithmetic.


def derivative(name: str, power: float | None, head: Predictor) -> Derivative | None:
    """The closed form of a loss on a predictor, given the name of the loss and, for a deviance, the power of the mean
    in the variance; None if there is none.
    """
    link = head.margin_link
    if name == "squared" and link == "identity":
        return _squared_error
    if power is not None and link == "log":
        return {1.0: _poisson, 2.0: _gamma}.get(power)
    if name == "hinge" and head.classes == 2 and not head.wide:
        return _hinge
    if name == "logLoss":
        return {"logit": _sigmoid, "softmax": _softmax}.get(link)
    return None


def _squared_error(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    residual = margin - y
    return residual * residual, 2 * residual


# Half the unit deviances at the mean exp(margin). Spark also keeps the mean away from 0 and infinity, by constants that
# are far beyond any finite loss.


def _poisson(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    mean = margin.exp()
    return mean - y * margin + (torch.special.xlogy(y, y) - y), mean - y


def _gamma(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    ratio = y * torch.exp(-margin)
    return ratio - 1 + margin - y.log(), 1 - ratio


def _sigmoid(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(margin) - y * margin, torch.sigmoid(margin) - y


def _hinge(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    sign = 2 * y - 1
    loss = (1 - sign * margin).clamp_min(0)
    return loss, torch.where(sign * margin <= 1, -sign, 0.0)


def _softmax(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    log = torch.log_softmax(margin, 2)
    if on_gpu(margin):  # where gather and scatter_add_ are faster on the CPU, see `formulas.of_label`
        own = y[:, None] == torch.arange(margin.shape[2], dtype=y.dtype, device=y.device)
        return -torch.where(own, log, 0.0).sum(2), log.exp() - own.to(log.dtype)
    place = y.long().expand(len(margin), -1)[:, :, None]
    loss = -log.gather(2, place)[:, :, 0]
    return loss, log.exp_().scatter_add_(2, place, torch.full_like(place, -1, dtype=log.dtype))


# Functions of users ---------------------------------------------------------------------------------------------------


def function_objective(
    loss: Callable[..., Tensor], head: Predictor, columns: tuple[str, ...], y: LabelStats
) -> Objective:
    """The objective of a user's function loss(outputs, label, weight), which returns one value per row, or one value
    for a whole batch.

    Args:
        columns: the output columns of the predictor, which the function gets by name.
    """
    name = callable_name(loss)

    def value(margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        out = _call_loss(loss, head, columns, margin, label, weight)
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

    def batch(margin: Tensor, label: Tensor, weight: Tensor, _groups: Mapping[str, Tensor]) -> Tensor:
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


class OutputColumns(dict[str, Tensor]):
    """The output columns of a predictor by name, as a user's loss function gets them."""

    def __missing__(self, name: str) -> Tensor:
        raise InputError(
            f"the loss reads outputs[{name!r}], which the predictor doesn't write. {did_you_mean(name, self)}"
        )


def _call_loss(
    loss: Callable[..., Any], head: Predictor, columns: tuple[str, ...], margin: Tensor, label: Tensor, weight: Tensor
) -> Any:
    """The result of a user's loss function for these rows.

    Raises:
        InputError: the function changed its arguments in place, although other candidates and epochs also use them; or
            it computes on the CPU while its arguments are on a GPU.
    """
    outputs = OutputColumns(zip(columns, head.columns(margin), strict=True))
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
    """True if a user's loss function returns one value for all rows, not one per row. It is called without rows or, if
    that fails, with two rows.

    Raises:
        InputError: the function changes its arguments in place.
    """
    for n in (0, 2):
        margin = zero_margin(head, n)
        label = torch.tensor([y.low, y.high], dtype=torch.float64, device=margin.device)[:n]
        try:
            out = _call_loss(loss, head, columns, margin, label, torch.ones_like(label))
        except InputError:
            raise
        except Exception:  # any error will be raised again on real rows
            continue
        return isinstance(out, Tensor) and out.ndim == 0
    return False
