"""Families and links of GeneralizedLinearRegression, with Spark's limits on means."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparkdiff.objectives.formulas import half_deviance

TINY = 1e-16
LARGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class LinkFunction:
    of_mean: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    """The derivative of `of_mean` with respect to the mean."""
    mean: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    links: tuple[str, ...]
    """The canonical link first."""
    variance: Callable[[Tensor], Tensor]
    bounds: tuple[float, float]
    """Smallest and largest mean."""
    labels: Callable[[float, float], bool]
    """True if the family allows labels between these two numbers."""
    start: Callable[[Tensor, Tensor], Tensor]
    """The rows' means from which the iterations start, from labels and weights."""
    half_deviance: Callable[[Tensor, Tensor], Tensor]
    """Half the deviance of each row, from means and labels."""


def _binomial(mean: Tensor, y: Tensor) -> Tensor:
    entropy = torch.special.xlogy(y, y) + torch.special.xlogy(1 - y, 1 - y)
    return entropy - torch.special.xlogy(y, mean) - torch.special.xlogy(1 - y, 1 - mean)


LINKS = {
    "identity": LinkFunction(lambda m: m, torch.ones_like, lambda e: e),
    "log": LinkFunction(torch.log, torch.reciprocal, torch.exp),
    "inverse": LinkFunction(torch.reciprocal, lambda m: -1 / m.square(), torch.reciprocal),
    "sqrt": LinkFunction(torch.sqrt, lambda m: 0.5 / m.sqrt(), torch.square),
    "logit": LinkFunction(torch.logit, lambda m: 1 / (m * (1 - m)), torch.sigmoid),
    "probit": LinkFunction(
        torch.special.ndtri,
        lambda m: (2 * torch.pi) ** 0.5 * (0.5 * torch.special.ndtri(m).square()).exp(),
        torch.special.ndtr,
    ),
    "cloglog": LinkFunction(
        lambda m: (-torch.log1p(-m)).log(), lambda m: 1 / ((m - 1) * torch.log1p(-m)), lambda e: -torch.expm1(-e.exp())
    ),
}
FAMILIES = {
    "gaussian": Family(
        ("identity", "log", "inverse"),
        torch.ones_like,
        (-LARGEST, LARGEST),
        lambda _a, _b: True,
        lambda y, _w: y,
        lambda m, y: 0.5 * (m - y).square(),
    ),
    "binomial": Family(
        ("logit", "probit", "cloglog"),
        lambda m: m * (1 - m),
        (TINY, 1 - TINY),
        lambda a, b: a >= 0 and b <= 1,
        lambda y, w: (w * y + 0.5) / (w + 1),
        _binomial,
    ),
    "poisson": Family(
        ("log", "identity", "sqrt"),
        lambda m: m,
        (TINY, LARGEST),
        lambda a, _b: a >= 0,
        lambda y, _w: y.clamp_min(0.1),
        partial(half_deviance, power=1),
    ),
    "gamma": Family(
        ("inverse", "identity", "log"),
        torch.square,
        (TINY, LARGEST),
        lambda a, _b: a > 0,
        lambda y, _w: y,
        partial(half_deviance, power=2),
    ),
}
