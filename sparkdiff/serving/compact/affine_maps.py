"""Affine maps of stages from their input vector to their output vector, in a form that a later stage can absorb."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparkdiff.stages.affine import Affine, Factors
from sparkdiff.stages.base import REGISTRY, class_name
from sparkdiff.stages.inputs import Field, FieldReader, StaysInSparkError
from sparkdiff.stages.projection import DCT, PCA
from sparkdiff.stages.scaling import MaxAbsScaler, MinMaxScaler, Standardizer
from sparkdiff.stages.selecting import Selection

Array = np.ndarray[Any, Any]


class RefusedError(Exception):
    """Two stages do not fold; the message is the reason. Never leaves the package."""


@dataclasses.dataclass(frozen=True)
class Map:
    """The affine map of a stage from vectors (d_in,) to vectors (d_out,).

    Attributes:
        module: the torch module of the stage.
        width_in, width_out: d_in and d_out; None if the stage does not determine it.
    """

    module: Affine
    width_in: int | None
    width_out: int | None

    def slopes(self, matrix: Array, width_in: int) -> tuple[Array, Array]:
        """Rewrite m linear functions of the map's output as functions of its input.

        Args:
            matrix: (m, d_out), the functions of the output.

        Returns:
            The functions of the input, (m, d_in), and their constants, (m,).
        """
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            form = self.module.affine_form(parameters, torch.from_numpy(matrix.T.copy()), [width_in])
        constant = form.constant[0].numpy() if isinstance(form.constant, torch.Tensor) else np.zeros(len(matrix))
        return form.slopes[0].numpy().T.copy(), constant

    def reaches(self, stored: Array, width_in: int) -> Array:
        """Flags of the inputs on which each of m functions depends, (m, d_in): a NaN in such an input makes the
        function NaN.

        Args:
            stored: (m, d_out) bool, True for the outputs of the map that each function multiplies.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ElementwiseMap(Map):
    """An elementwise map: (x - shift) * factor + plus, rounded after each operation in this order, as Spark does.

    Attributes:
        shift, factor, plus: (d,); where a stage has none, 0, 1 and 0, which change no bit of a number other than -0.0.
        fixed: (d,) bool, True for entries whose output is the same number for every input except NaN.
        size: (d,) typical absolute value of an output: 1 standard deviation, or the end of its range.
    """

    shift: Array
    factor: Array
    plus: Array
    fixed: Array
    size: Array

    def reaches(self, stored: Array, width_in: int) -> Array:
        return stored

    @property
    def at_zero(self) -> Array:
        """Output for a row of zeros, (d,)."""
        return np.asarray((0.0 - self.shift) * self.factor + self.plus)


@dataclasses.dataclass(frozen=True)
class MatrixMap(Map):
    """A map whose outputs are sums over all entries: x @ matrix."""

    def reaches(self, stored: Array, width_in: int) -> Array:
        return np.broadcast_to(stored.any(1, keepdims=True), (len(stored), width_in))


@dataclasses.dataclass(frozen=True)
class SelectionMap(Map):
    """Selection of the entries with the indices `places` (d_out,); the other entries are not read."""

    places: Array

    def reaches(self, stored: Array, width_in: int) -> Array:
        out = np.zeros((len(stored), width_in), np.bool_)
        out[:, self.places] = stored
        return out


def map_of(stage: Any, fields: Sequence[Field | None] = (None,)) -> Map:
    """Map of a fitted stage.

    Args:
        fields: known fields of its input, for stages that select entries by their names.

    Raises:
        RefusedError: the stage is not affine, or the indices of the names that it selects are unknown.
    """
    cls = REGISTRY.get(class_name(stage))
    if cls is None or not issubclass(cls, (Standardizer, MaxAbsScaler, MinMaxScaler, Factors, PCA, DCT, Selection)):
        raise RefusedError("it is not an affine function of one vector")
    if (why := cls.refuses(stage)) is not None:
        raise RefusedError(why)
    if issubclass(cls, FieldReader) and cls.wants_fields(stage):
        try:
            return of_module(cls.from_fields(stage, fields))
        except StaysInSparkError as e:
            raise RefusedError(str(e)) from e
    return of_module(cls.from_spark(stage))


def of_module(module: Any) -> Map:
    """Map of a stage's module of one of the classes that `map_of` accepts."""
    if isinstance(module, Selection):
        return SelectionMap(module, None, len(module.indices), module.indices.numpy())
    if isinstance(module, PCA):
        return MatrixMap(module, *module.pc.shape)
    if isinstance(module, DCT):
        return MatrixMap(module, None, None)
    return _entries(module)


@torch.no_grad()
def _entries(module: Any) -> ElementwiseMap:
    d = module.fitted_width()
    zero, one, none = np.zeros(d), np.ones(d), np.zeros(d, np.bool_)
    if isinstance(module, Standardizer):
        divisor, shift = (module.weight(name) for name in module.weights)
        factor = module.factor(torch.from_numpy(divisor)).numpy() if module.divides else one
        size = one if module.divides else divisor
        return ElementwiseMap(module, d, d, shift if module.shifts else zero, factor, zero, none, size)
    if isinstance(module, MinMaxScaler):
        low, moves = module.weight("originalMin"), module.moves.numpy()
        span = np.where(moves, module.weight("originalMax") - low, 1.0)
        factor = np.where(moves, (module.high - module.low) / span, 0.0)
        size = np.full(d, max(abs(module.low), abs(module.high)))
        return ElementwiseMap(module, d, d, low, factor, np.full(d, module.low), ~moves, size)
    if isinstance(module, MaxAbsScaler):
        return ElementwiseMap(module, d, d, zero, module.factor(module.maxAbs).numpy(), zero, none, one)
    return ElementwiseMap(module, d, d, zero, module.weight(module.weights[0]), zero, none, one)
