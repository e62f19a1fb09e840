"""What training minimises and what validation measures: per-row losses as functions of what Spark's predictor outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.options import callable_name
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, Predictor

REGRESSION = ("squared", "absolute", "huber", "quantile", "poisson", "gamma", "tweedie")
PARAMS: dict[str, dict[str, float | None]] = {
    "huber": {"delta": None},
    "quantile": {"tau": 0.5},
    "tweedie": {"power": 1.5},
}


@dataclass(frozen=True)
class Objective:
    """A per-row loss bound to a predictor. Smaller is better.

    Attributes:
        name: as the report shows it.
        rows: (margin, label (n,), weight (n,)) -> loss per row (n,), unweighted.
        scale: factor that makes the loss free of the label's unit; training uses it, reports don't.
        floor: means below it are charged by the loss's tangent parabola at it; None where the mean is positive anyway.
        power: of a deviance, the power of the mean that the variance is; None for other losses.
        elementwise: whether `rows` sees every row by itself, so that rows of several candidates can stand below each other.
    """

    name: str
    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    scale: float = 1.0
    floor: float | None = None
    power: float | None = None
    elementwise: bool = True


def resolve(
    loss: str | Callable[..., Tensor],
    params: Mapping[str, float],
    head: Predictor,
    columns: tuple[str, ...],
    y: LabelStats,
) -> Objective:
    """The objective of a loss name (or callable) for a predictor whose output columns are `columns`.

    Squared is (y - mean)^2, absolute |y - mean|, quantile the pinball loss, poisson, gamma and tweedie half the unit
    deviance (McCullagh & Nelder 1989, ch. 2.3), logLoss -log p of the label.

    Raises:
        InputError: the loss would change what the predictor's outputs mean, or a parameter is missing or unknown.
    """
    if callable(loss):
        if params:
            raise InputError(
                f"lossParams {sorted(params)} mean nothing to {callable_name(loss)}: put them into the callable"
            )

        def rows(margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
            out = loss(dict(zip(columns, head.columns(margin), strict=True)), label, weight)
            if not isinstance(out, Tensor):
                raise InputError(
                    f"the loss {callable_name(loss)} returned {out!r}; it must be a torch tensor, one value per row"
                )
            if margin.requires_grad and not out.requires_grad:
                raise InputError(
                    f"no gradient passes through the loss {callable_name(loss)}: it must compute with torch, without detach, "
                    "numpy or the predicted class"
                )
            if out.shape != label.shape:
                raise InputError(
                    f"the loss {callable_name(loss)} returned shape {tuple(out.shape)}; it must be one value per row, "
                    f"{tuple(label.shape)}, unweighted"
                )
            return out

        return Objective(callable_name(loss), rows, elementwise=False)
    name, own = head.own_loss()
    if loss not in ("auto", name):
        name, own = loss, {}
    known = PARAMS.get(name, {})
    unknown = set(params) - set(known)
    if unknown:
        raise InputError(
            f"lossParams {sorted(unknown)} mean nothing to the loss {name!r}; it takes {sorted(known) or 'none'}"
        )
    values: dict[str, float | None] = {**known, **own, **params}
    if name == "logLoss":
        return Objective(name, _log_loss(head))
    if head.classes or (isinstance(head, GeneralizedLinearRegression) and head.family == "binomial"):
        raise InputError(
            f"loss={name!r} on {type(head).__name__} would turn its probabilities into something else; use 'logLoss', or a "
            "callable of its outputs"
        )
    return _regression(name, values, head, y)


def check_label(
    objective: Objective, head: Predictor, y: LabelStats, column: str, fractional: float | None = None
) -> None:
    """Raise InputError where the labels lie outside of what the loss or the predictor's classes allow.

    Args:
        fractional: a label that is no whole number, where there is one.
    """
    power = objective.power

    def refuse(value: float, rule: str) -> None:
        raise InputError(
            f"label column {column!r} holds {value!r}, but {objective.name} on {type(head).__name__} needs {rule}"
        )

    if head.classes:
        rule = f"class indices 0 to {head.classes - 1}"
        if y.low < 0 or y.high > head.classes - 1:
            refuse(y.low if y.low < 0 else y.high, rule)
        if fractional is not None:
            refuse(fractional, rule)
    elif objective.name == "logLoss" and (y.low < 0 or y.high > 1):
        refuse(y.low if y.low < 0 else y.high, "labels from 0 to 1")
    elif power is not None and power < 2 and y.low < 0:
        refuse(y.low, "labels >= 0; drop such rows or choose another loss")
    elif power is not None and power >= 2 and y.low <= 0:
        refuse(y.low, "labels > 0; drop such rows or choose another loss")


def _log_loss(head: Predictor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if head.classes and getattr(head, "isMultinomial", False):
        return lambda margin, y, w: F.cross_entropy(margin, y.long(), reduction="none")
    if head.classes or (
        isinstance(head, GeneralizedLinearRegression) and (head.family, head.link) == ("binomial", "logit")
    ):
        return lambda margin, y, w: F.softplus(margin) - y * margin
    if isinstance(head, GeneralizedLinearRegression) and head.family == "binomial":

        def rows(margin: Tensor, y: Tensor, w: Tensor) -> Tensor:
            p = head.mean(margin)
            return -torch.special.xlogy(y, p) - torch.special.xlogy(1 - y, 1 - p)

        return rows
    raise InputError(
        f"loss='logLoss' needs probabilities, which {type(head).__name__} doesn't output; use one of {', '.join(REGRESSION)}"
    )


def _regression(name: str, params: Mapping[str, float | None], head: Predictor, y: LabelStats) -> Objective:
    spread = y.std or 1.0
    if name == "squared":
        return Objective(name, lambda m, y, w: (head.mean(m) - y) ** 2, 1 / spread**2)
    if name == "absolute":
        return Objective(name, lambda m, y, w: (head.mean(m) - y).abs(), 1 / spread)
    if name == "huber":
        delta = params["delta"]
        if delta is None or delta <= 0:
            raise InputError(
                f"loss='huber' needs lossParams={{'delta': > 0}}, in the label's unit. Got {delta!r} instead"
            )
        return Objective(
            name, lambda m, y, w: F.huber_loss(head.mean(m), y, reduction="none", delta=delta), 1 / spread**2
        )
    if name == "quantile":
        tau = params["tau"]
        if tau is None or not 0 < tau < 1:
            raise InputError(f"loss='quantile' needs lossParams={{'tau': in (0, 1)}}. Got {tau!r} instead")

        def pinball(margin: Tensor, y: Tensor, w: Tensor) -> Tensor:
            miss = y - head.mean(margin)
            return torch.maximum(tau * miss, (tau - 1) * miss)

        return Objective(name, pinball, 1 / spread)
    power = {"poisson": 1.0, "gamma": 2.0}.get(name, params.get("power"))
    if power is None or (name == "tweedie" and power < 1):
        raise InputError(f"loss='tweedie' needs lossParams={{'power': >= 1}}. Got {power!r} instead")
    floor = None if head.positive_mean else 1e-3 * (y.mean if y.mean > 0 else 1.0)
    return Objective(name, lambda m, y, w: half_deviance(head.mean(m), y, power, floor), floor=floor, power=power)


def half_deviance(mu: Tensor, y: Tensor, power: float, floor: float | None = None) -> Tensor:
    """Half the unit deviance of the Tweedie family with variance mu^power; 1 is Poisson, 2 gamma. (n,), (n,) -> (n,)

    Below `floor` it goes on as a parabola with the same value and slope there, steep enough never to reward a mean <= 0.
    """
    at = mu if floor is None else mu.clamp_min(floor)
    if power == 1:
        d = torch.special.xlogy(y, y) - torch.special.xlogy(y, at) - (y - at)
    elif power == 2:
        d = torch.log(at / y) + (y - at) / at
    else:
        left = y ** (2 - power) / ((1 - power) * (2 - power))
        d = left - y * at ** (1 - power) / (1 - power) + at ** (2 - power) / (2 - power)
    if floor is None:
        return d
    slope = (floor - y) * floor**-power
    curvature = torch.maximum(power * y * floor ** (-power - 1) + (1 - power) * floor**-power, slope.abs() / floor)
    below = (mu - floor).clamp_max(0)
    return d + slope * below + curvature / 2 * below**2


def means(head: Predictor, margin: Tensor) -> Tensor | None:
    """The predicted means where the head is a regression."""
    return head.mean(margin) if isinstance(head, (LinearRegression, GeneralizedLinearRegression)) else None
