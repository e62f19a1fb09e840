"""Stages that are affine in their inputs: all candidates then share their computation."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from sparkdiff.stages.base import StageModule, parameter
from sparkdiff.tensors.rows import Rows, scaled

Stage = TypeVar("Stage", bound=StageModule)
Parameters = Mapping[str, Tensor]
"""Parameters of a stage by name; those that train have a leading dimension of K candidates where it says so."""


class NotAffineError(Exception):
    """A stage isn't affine in its inputs; never leaves the package."""


class NotSparseError(Exception):
    """A stage's output depends on columns that are 0; never leaves the package."""


class AffineForm(NamedTuple):
    """What Affine.affine_form returns, with its derivative: autograd would take several times as long over such small tensors.

    Attributes:
        slopes: per input (K, d_in, m).
        constant: what adds to the functions' constants, (K, 1, m).
        back: (gradients of `slopes` (K, d_in, m) each, gradient of the constants (K, 1, m), room (K, *shape) by name for the
            gradients of the parameters that train, to add to) -> gradient of `slope`.
    """

    slopes: list[Tensor]
    constant: Tensor | float
    back: Callable[[list[Tensor], Tensor, Parameters], Tensor | None]


class Affine(StageModule):
    """A stage that is affine in its inputs. Its candidates share their computation; those of others are evaluated one by one."""

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        """Affine functions of this stage's output as functions of its inputs, for K candidates at once.

        Args:
            p: this stage's parameters, those that train with a leading dimension of K candidates.
            slope: (K, d_out, m) slopes of m functions; K may be missing where no candidate differs. A predictor makes the
                functions (its margins) and gets an empty tensor.
            widths: of the inputs.

        Raises:
            NotAffineError: with these settings the stage isn't affine.
        """
        raise NotImplementedError

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> "tuple[Affine, Tensor | None]":
        """This stage, for `affine_form`, on some columns of its inputs, and the columns left of its output; None means all.

        It lets a batch of wide sparse rows train the parameters of the columns alone that it has entries in: those of
        `feature_axis` are cut down likewise.

        Args:
            columns: per input (c,), ascending.
            widths: of the inputs.

        Raises:
            NotSparseError: columns of 0 count too.
        """
        raise NotSparseError(type(self).__name__)


class MatrixProduct(Affine):
    """An affine stage each of whose outputs adds up its inputs, so that columns of 0 add nothing."""

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        return self, None


class Columnwise(Affine):
    """An affine stage with one input. Each output column depends on the same input column alone, and is 0 where that is."""

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        return self, columns[0]


class Unchanged(Columnwise):
    """A stage whose output is its input."""

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        return AffineForm([slope], 0.0, lambda gradients, constant, room: gradients[0])


class Factors(Columnwise):
    """y = x * factors (d,), which are the one weight of the subclass; sparse stays sparse."""

    def __init__(self, factors: Tensor):
        super().__init__()
        self.register_parameter(self.weights[0], parameter(factors))

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        return scaled(x, getattr(self, self.weights[0]))

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        [name] = self.weights
        factor = p[name][..., None]  # (K, d, 1)

        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> Tensor:
            if name in room:
                room[name].add_((gradients[0] * slope).sum(-1))
            return gradients[0] * factor

        return AffineForm([slope * factor], 0.0, back)


def with_buffers(stage: Stage, **buffers: Tensor) -> Stage:
    """The stage with other buffers of these names; everything else is shared."""
    other = copy.copy(stage)
    other._buffers = {**stage._buffers, **buffers}
    return other
