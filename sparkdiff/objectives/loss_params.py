"""Checks of the parameters of losses and metrics: numbers with a rule, and matrices of costs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError


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
