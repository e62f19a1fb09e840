"""Stages that are affine in their inputs, for which the computation of all candidates (copies of the parameters that
are trained side by side) is shared.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from sparkdiff.stages.base import StageModule, parameter
from sparkdiff.tensors.rows import Rows, scaled

Stage = TypeVar("Stage", bound=StageModule)
Parameters = Mapping[str, Tensor]
"""Parameters of a stage by name; where stated, those that train have a leading dimension of K candidates."""


class NotAffineError(Exception):
    """A stage that isn't affine in its inputs; never leaves the package."""


class NotSparseError(Exception):
    """A stage whose output depends on columns that are 0; never leaves the package."""


class AffineForm(NamedTuple):
    """The result of Affine.affine_form: slopes and constants of m functions, and a hand-written derivative, because
    autograd would take several times as long for such small tensors.

    Attributes:
        slopes: slopes of the functions in each input, (K, d_in, m).
        constant: number to add to the functions' constants, (K, 1, m).
        back: derivative of this result: (gradients with respect to each of `slopes` (K, d_in, m), gradient with respect
            to the constants (K, 1, m), tensors (K, *shape) by name to which `back` adds the gradients of the parameters
            that train) -> gradient with respect to the argument `slope`.
    """

    slopes: list[Tensor]
    constant: Tensor | float
    back: Callable[[list[Tensor], Tensor, Parameters], Tensor | None]


class Affine(StageModule):
    """A stage that is affine in its inputs. Its candidates share their computation; those of other stages are
    evaluated one by one.
    """

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        """Rewrite affine functions of this stage's output as affine functions of its inputs, for K candidates at once.

        Args:
            p: this stage's parameters; those that train have a leading dimension of K candidates.
            slope: (K, d_out, m) slopes of m functions; without K if all candidates have the same slopes. A predictor
                defines the functions itself (they are its margins) and gets an empty tensor.
            widths: widths of the inputs.

        Raises:
            NotAffineError: with these settings the stage isn't affine.
        """
        raise NotImplementedError

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> "tuple[Affine, Tensor | None]":
        """This stage restricted to some columns of its inputs, for `affine_form`, and the columns of its output that
        remain; None means all columns.

        A batch of wide sparse rows then trains only the parameters of the columns in which it has entries: parameters
        in `feature_axis` are restricted to these columns, too.

        Args:
            columns: per input (c,), ascending.
            widths: widths of the inputs.

        Raises:
            NotSparseError: columns of 0 affect the output.
        """
        raise NotSparseError(type(self).__name__)


class MatrixProduct(Affine):
    """An affine stage whose outputs are weighted sums of its inputs plus a constant, so that columns of 0 add nothing.

    A stage whose coefficients Spark may store sparsely has a buffer `unstored`: None, or (k, d) bool.
    """

    def unstored_mask(self) -> Tensor | None:
        """Mask (k, d) of the coefficients that Spark doesn't store, and never multiplies; None if it stores all.

        An unstored coefficient counts as stored as soon as training changes it from 0.
        """
        unstored = self._buffers.get("unstored")
        return None if unstored is None else unstored & (getattr(self, self.weights[0]) == 0)

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        return self, None


class Columnwise(Affine):
    """An affine stage with one input. Each output column depends only on the same input column, and is 0 where the
    input is 0.
    """

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        return self, columns[0]


class Identity(Columnwise):
    """A stage whose output is its input."""

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        return AffineForm([slope], 0.0, lambda gradients, _constant, _room: gradients[0])


class Factors(Columnwise):
    """y = x * factors (d,), which are the only weight of the subclass; sparse stays sparse."""

    def __init__(self, factors: Tensor):
        super().__init__()
        self.register_parameter(self.weights[0], parameter(factors))

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        return scaled(x, getattr(self, self.weights[0]))

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        [name] = self.weights
        factor = p[name][..., None]  # (K, d, 1)

        def back(gradients: list[Tensor], _constant: Tensor, room: Parameters) -> Tensor:
            if name in room:
                room[name].add_((gradients[0] * slope).sum(-1))
            return gradients[0] * factor

        return AffineForm([slope * factor], 0.0, back)


def with_buffers(stage: Stage, **buffers: Tensor) -> Stage:
    """A copy of the stage with these buffers in place of its own; it shares everything else with the stage."""
    other = copy.copy(stage)
    other._buffers = {**stage._buffers, **buffers}
    return other
