"""Stages that are affine in their inputs: all candidates then share their computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sparkdiff.stages.trainable import Parameters


class NotAffineError(Exception):
    """A stage isn't affine in its inputs; never leaves the package."""


class NotSparseError(Exception):
    """A stage's output depends on columns that are 0; never leaves the package."""


class AffineForm(NamedTuple):
    """What StageModule.pull returns, with its derivative: autograd would take several times as long over such small tensors.

    Attributes:
        slopes: per input (K, d_in, m).
        constant: what adds to the functions' constants, (K, 1, m).
        back: (gradients of `slopes` (K, d_in, m) each, gradient of the constants (K, 1, m), room (K, *shape) by name for the
            gradients of the parameters that train, to add to) -> gradient of `slope`.
    """

    slopes: list[Tensor]
    constant: Tensor | float
    back: Callable[[list[Tensor], Tensor, Parameters], Tensor | None]


def affine_form_by_column(name: str, p: Parameters, slope: Tensor) -> AffineForm:
    """`affine_form` of x * factor, the factors (d,) being the parameter of this name."""
    factor = p[name][..., None]  # (K, d, 1)

    def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> Tensor:
        if name in room:
            room[name].add_((gradients[0] * slope).sum(-1))
        return gradients[0] * factor

    return AffineForm([slope * factor], 0.0, back)
