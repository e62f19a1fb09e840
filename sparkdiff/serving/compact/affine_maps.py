"""Affine maps of stages from their input vector to their output vector; and the stages that can absorb the map of a stage
in front of them, and then read its input in place of its output.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparkdiff import jvm
from sparkdiff.jvm import trees
from sparkdiff.jvm.coefficients import intercepts_of, matrix_of, stored_of, with_coefficients
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.stages.affine import Affine, Factors
from sparkdiff.stages.base import REGISTRY, class_name
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.inputs import Field, FieldReader, StaysInSparkError
from sparkdiff.stages.linear import LinearMargin, LogisticRegression
from sparkdiff.stages.perceptron import MultilayerPerceptron
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


TOLERANCE = 1e-9
"""Largest error of a margin that folding may add by rounding, relative to the margin's usual size."""
ROUNDING = 2.0**-53
"""Largest relative rounding error of one operation on doubles."""
STAGE = 2000
"""Fixed cost of running one stage, in multiplications that take as long: a microsecond or two
(`benchmarks/serving_costs.py`).
"""


@dataclasses.dataclass(frozen=True)
class LinearAbsorber:
    """A stage that computes matrix @ x + intercepts: margins, the first layer of a network, or the products of a PCA.

    Attributes:
        stage: the fitted stage.
        matrix: (m, d).
        intercepts: (m,); None if the stage has none.
        stored: (m, d) bool, True for the matrix entries that Spark multiplies; None if Spark always multiplies all.
        constants: (m,) constants that folded stages add to the intercepts.
        checks_width: True if the stage refuses vectors of another width in Spark.
    """

    stage: Any
    matrix: Array
    intercepts: Array | None
    stored: Array | None
    constants: Array | float = 0.0
    checks_width = True

    @property
    def width(self) -> int:
        """Number of features that the stage reads."""
        return int(self.matrix.shape[1])

    def absorb(self, change: Map, start: int, width_in: int | None) -> "LinearAbsorber":
        """The stage changed so that it reads the input of the map `change` in place of the features that the map
        writes.

        Args:
            start: index of the first of these features; they are [start, start + change.width_out).
            width_in: width of the map's input; None if unknown. A map without a width_out keeps the width.

        Raises:
            RefusedError: the outputs would not be the same, `width_in` is unknown, or the changed stage would take longer.
        """
        if width_in is None:
            raise RefusedError("the width of its input is unknown: pass the schema of the data (schema=df.schema)")
        block = slice(start, start + (width_in if change.width_out is None else change.width_out))
        part = self.matrix[:, block]
        self._check_cost(change, part.shape[1], width_in)
        new, constants = change.slopes(part, width_in)
        self._check_numbers(change, part, new)
        stored = self._stored_mask(change, block, width_in)
        if isinstance(change, ElementwiseMap) and change.at_zero.any():
            self._check_shift(change, part)
        matrix = np.concatenate([self.matrix[:, : block.start], new, self.matrix[:, block.stop :]], 1)
        return dataclasses.replace(self, matrix=matrix, stored=stored, constants=self.constants + constants)

    def _check_cost(self, change: Map, width_out: int, width_in: int) -> None:
        """Raise RefusedError if one wide matrix product would take longer than the map followed by the narrow product."""
        m = len(self.matrix)
        if width_in > width_out and not isinstance(change, SelectionMap):
            before, after = width_in * width_out + width_out * m, width_in * m
            if after > before + STAGE:
                raise RefusedError(f"{after:,} products a row would take the place of {before:,}")

    def _check_numbers(self, change: Map, part: Array, new: Array) -> None:
        small = (np.abs(new) < 2.0**-960) & (new != 0)
        if not np.isfinite(new).all() or small.any():
            raise RefusedError("the products of its factors and the coefficients leave the range of doubles")
        if isinstance(change, ElementwiseMap) and ((new == 0) & (part != 0) & (change.factor != 0)).any():
            raise RefusedError("the products of its factors and the coefficients leave the range of doubles")

    def _stored_mask(self, change: Map, block: slice, width_in: int) -> Array | None:
        """Entries of the new matrix that are multiplied, (m, d) bool; None if all are."""
        was = np.ones(self.matrix.shape, np.bool_) if self.stored is None else self.stored
        met = was[:, block]
        if isinstance(change, ElementwiseMap) and (met & change.fixed).any():
            j = int(np.flatnonzero((met & change.fixed).any(0))[0])
            raise RefusedError(
                f"entry {j} was constant when it was fitted: it makes one number of every input, also of an infinite one, which "
                "no coefficient does"
            )
        new = change.reaches(met, width_in)
        if self.stored is None and not new.all():
            raise RefusedError("it leaves out entries, and a product with every entry would let their NaN in")
        if self.stored is None:
            return None
        return np.concatenate([was[:, : block.start], new, was[:, block.stop :]], 1)

    def _check_shift(self, change: ElementwiseMap, part: Array) -> None:
        """Raise RefusedError if the stage has no intercepts, or if the map's shifts are so large that rounding could change
        the margin by more than TOLERANCE.

        After folding, the intercept contains the shifts' constants, which cancel against equally large products. The
        error of a sum of n products is at most n * ROUNDING * (sum of their absolute values). For a typical row, this
        sum consists of the outputs' own products and, twice, of the constants: once in the products and once in the
        intercept.
        """
        if self.intercepts is None:
            raise RefusedError("it moves zero, and the products of a PCA have no constant that could do so")
        sizes = np.abs(part)
        moved, usual = sizes @ np.abs(change.at_zero), sizes @ change.size + np.abs(self.intercepts)
        error = (self.width + 4) * ROUNDING * 2 * moved
        if (error > TOLERANCE * usual).any():
            worst = np.max(moved / np.maximum(usual, np.finfo(float).tiny))
            raise RefusedError(
                f"its shifts are up to {worst:.0e} times what its outputs vary by: folded, rounding could change the margin by "
                f"more than {TOLERANCE:g} of its size"
            )

    def changed_stage(self) -> Any:
        """The changed stage, with the same class, uid and Params."""
        if self.intercepts is None:
            weights = {"pc": self.matrix.T.copy(), "explainedVariance": self.stage.explainedVariance.toArray()}
            return jvm.rebuild(self.stage, weights)
        intercepts = np.asarray(self.intercepts + self.constants)
        if isinstance(self.stage, _Layers):
            return self.stage.with_first_layer(self.matrix, intercepts)
        return with_coefficients(self.stage, self.matrix, intercepts, self.stored)


@dataclasses.dataclass(frozen=True)
class _Layers:
    """A multilayer perceptron whose first layer changes."""

    stage: Any
    module: MultilayerPerceptron

    def with_first_layer(self, matrix: Array, bias: Array) -> Any:
        rest = [p.detach().numpy() for i in range(1, self.module.depth) for p in self.module.layer(i)]
        weights = np.concatenate([p.ravel("F") for p in (matrix, bias, *rest)])
        stage, layers = self.stage, list(self.stage.getOrDefault("layers"))
        if layers[0] != matrix.shape[1]:
            stage = stage.copy({stage.getParam("layers"): [matrix.shape[1], *layers[1:]]})
        return jvm.rebuild(stage, {"weights": weights})


@dataclasses.dataclass(frozen=True)
class Forest:
    """Tree model; a map changes its thresholds or its feature indices. It has the same interface as LinearAbsorber."""

    stage: Any
    nodes: Nodes
    width: int
    checks_width = False

    def absorb(self, change: Map, start: int, width_in: int | None) -> "Forest":
        if isinstance(change, ElementwiseMap):
            return dataclasses.replace(self, nodes=self._nodes_for_input(change, start))
        if isinstance(change, SelectionMap):
            return self._renumbered(change.places, start, width_in)
        raise RefusedError("a tree compares single features, and it mixes them")

    def _nodes_for_input(self, change: ElementwiseMap, start: int) -> Nodes:
        """Nodes with thresholds on the map's inputs that send every row to the same side as before, bit for bit."""
        feature = self.nodes.featureIndex - start
        inside = ~self.nodes.leaf & (feature >= 0) & (feature < len(change.factor))
        if (inside & self.nodes.categorical).any():
            raise RefusedError("a tree splits one of its entries by categories")
        at = np.flatnonzero(inside)
        entry = feature[at]
        wrong = ~(change.factor[entry] > 0) | change.fixed[entry] | ~np.isfinite(change.factor[entry])
        if wrong.any():
            raise RefusedError(
                f"a tree splits its entry {entry[wrong][0]}, which it multiplies by {change.factor[entry[wrong][0]]:g}: "
                "no threshold on the input decides likewise"
            )
        values = self.nodes.values.copy()
        places = self.nodes.starts[at]
        values[places] = last_left(change.shift[entry], change.factor[entry], change.plus[entry], values[places])
        return self.nodes.replace(values=values)

    def _renumbered(self, places: Array, start: int, width_in: int | None) -> "Forest":
        feature, stop = self.nodes.featureIndex.copy(), start + len(places)
        if width_in is None and self.width > stop:
            raise RefusedError("the width of its input is unknown: pass the schema of the data (schema=df.schema)")
        needed = int(places.max(initial=-1)) + 1
        wide = needed if width_in is None else width_in
        inside, behind = (feature >= start) & (feature < stop), feature >= stop
        feature[behind] += wide - len(places)
        feature[inside] = start + places[self.nodes.featureIndex[inside] - start]
        return dataclasses.replace(
            self, nodes=self.nodes.replace(featureIndex=feature), width=self.width + wide - len(places)
        )

    def changed_stage(self) -> Any:
        return trees.rebuild(self.stage, self.nodes, numFeatures=self.width)


Absorber = LinearAbsorber | Forest
"""A stage that absorbs the map of a stage in front of it."""


def last_left(shift: Array, factor: Array, plus: Array, threshold: Array) -> Array:
    """Largest double x with (x - shift) * factor + plus <= threshold in double arithmetic, for each entry; all (t,).

    Rounding is monotone: with a factor above 0, exactly the inputs up to x pass. Found by bisection over all doubles.
    """
    low, high = (np.full(len(threshold), order(np.array(end))) for end in (-np.inf, np.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        while (low < high).any():
            middle = (low >> 1) + (high >> 1) + ((low | high) & 1)  # rounded up; the sum itself could overflow
            passes = (double(middle) - shift) * factor + plus <= threshold
            low, high = np.where(passes, middle, low), np.where(passes, high, middle - 1)
    return np.where(np.isnan(threshold), threshold, double(low))


def order(x: Array) -> Array:
    """Rank of doubles among all doubles, int64: a larger double has a larger rank; -0.0 and 0.0 have rank 0."""
    bits = np.asarray(x + 0.0, np.float64).view(np.int64)
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits)


def double(rank: Array) -> Array:
    """Double with this rank."""
    return np.where(rank < 0, np.int64(-(2**63)) - rank, rank).view(np.float64)


def absorber_of(stage: Any) -> Absorber:
    """Absorber of a fitted stage.

    Raises:
        RefusedError: the stage cannot absorb any map.
    """
    cls = REGISTRY.get(class_name(stage))
    if cls is None or cls.refuses(stage) is not None:
        raise RefusedError(f"{stage.uid} ({type(stage).__name__}) cannot absorb it")
    if issubclass(cls, (LinearMargin, LogisticRegression)):
        return LinearAbsorber(stage, matrix_of(stage), intercepts_of(stage), stored_of(stage))
    if issubclass(cls, PCA):
        return LinearAbsorber(stage, np.asarray(stage.pc.toArray()).T, None, None)
    if issubclass(cls, MultilayerPerceptron):
        module = cls.from_spark(stage)
        matrix, bias = (p.detach().numpy() for p in module.layer(0))
        return LinearAbsorber(_Layers(stage, module), matrix, bias, None)
    if issubclass(cls, Trees):
        return Forest(stage, trees.read(stage), int(stage.numFeatures))
    raise RefusedError(f"{stage.uid} ({type(stage).__name__}) cannot absorb it")
