"""The parameters that a step changes: all (`DenseUpdates`), or those of the active columns (`LazyUpdates`, as in
torch's SparseAdam).

A training run uses one of the two classes from start to end. Each holds the parameters that the current step changes,
as a `ParameterMatrix`; the candidates' vectors (u, moments, averages: (K, p) each) are passed in by name.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network, fixed_versions, routed_versions
from sparkdiff.tensors.light_torch import dot
from sparkdiff.tensors.rows import Rows, SparseRows
from sparkdiff.tensors.team import Team
from sparkdiff.training.active_columns import ActiveColumns
from sparkdiff.training.affine import AffineMargin, AffineNetwork
from sparkdiff.training.parameters import (
    NaturalUnits,
    ParameterMatrix,
    named_parameters,
    parameter_vector,
    trainable_parameters,
)
from sparkdiff.training.recipes import Recipe, by_newton

Values = Mapping[Version, Rows]
Vectors = Mapping[str, Tensor]
MarginInputs = Callable[[Values], tuple[AffineMargin | None, Values]]
"""Function of some rows that returns the slopes with which their margins are computed, and their inputs."""


class DenseUpdates:
    """Updates in which every step changes all parameters.

    The parameters of a stage have the same layout in the matrix as in a network, so an affine network reads the memory
    as (K, *shape), and without an affine form the candidates' own networks read it as (*shape). If the dtype of the
    rows differs from that of the parameters, these networks have parameters of their own, in the dtype of the rows.

    Args:
        rows: the network in the dtype of the rows; None if that is the network itself.
    """

    _numbers: dict[tuple[int, ...], Tensor]
    narrow: tuple[Tensor, Tensor] | None  # parameters and gradients in the dtype of the rows, if it is narrower

    def __init__(
        self,
        network: Network,
        recipes: Sequence[Recipe],
        units: NaturalUnits,
        affine: AffineNetwork | None,
        rows: Network | None = None,
    ):
        self.network, self.recipes, self.units, self.affine, self.rows = network, recipes, units, affine, rows
        self.start, self._numbers = parameter_vector(network), {}
        count, newton = len(recipes), len(by_newton(recipes))
        parts = [part for part, _ in trainable_parameters(network)]
        self.matrix = ParameterMatrix(named_parameters(network), parts, self.start, units, count, newton)
        self.projects = any(network.module(i).has_bounds() for i in network.positions)
        self.settles = any(m.settles() for m in network.trees().values())
        whole = (self.matrix.flat, self.matrix.gradient)
        self.clones = self._clones(network, *whole) if self.projects or (affine is None and rows is None) else []
        self.narrow = None
        self.of_rows = self.clones
        if rows is not None and affine is None:
            first = next(p for _, p in trainable_parameters(rows))
            self.narrow = self.matrix.flat.to(first.dtype), torch.zeros_like(self.matrix.gradient, dtype=first.dtype)
            self.of_rows = self._clones(rows, *self.narrow)

    def for_candidates(self, recipes: Sequence[Recipe]) -> "DenseUpdates":
        return DenseUpdates(self.network, recipes, self.units, self.affine, self.rows)

    def _clones(self, network: Network, flat: Tensor, gradient: Tensor) -> list[Network]:
        """Networks whose trainable parameters are those of the candidates, in the memory of these matrices (K, p)."""
        clones = [network.clone() for _ in self.recipes]
        for k, clone in enumerate(clones):
            for part, p in trainable_parameters(clone):
                p.data, p.grad = part.of(flat[k]), part.of(gradient[k])
        return clones

    def numbers(self, rows: Sequence[int]) -> Tensor:
        """The indices of some candidates, cached on their device: a list would be copied there at every step."""
        if (key := tuple(rows)) not in self._numbers:
            self._numbers[key] = torch.tensor(key, device=self.start.device)
        return self._numbers[key]

    def choose(self, vectors: Vectors, batches: Sequence[Values], team: Team) -> None:
        """Choose the parameters that the steps on a group of batches change; call it before these steps."""

    def store(self, vectors: Vectors) -> None:
        """Write what the steps since `choose` have changed into the candidates' vectors."""

    def finish(self, vectors: Vectors) -> None:
        """Store the changes after the last step of an epoch, see `store`."""

    def current(self, vectors: Vectors) -> Vectors:
        """The candidates' vectors, at the entries that the parameter matrix holds."""
        return vectors

    def at(self, matrix: Tensor | None) -> Tensor | None:
        """The given matrix (K, p), at the entries that the parameter matrix holds."""
        return matrix

    def add_gradient(self, total: Tensor) -> None:
        total += self.matrix.gradient

    def reads(self) -> set[Version]:
        """The versions (columns as a stage writes them) from which the margins can be computed, and those that the loss
        reads.
        """
        graph, network = self.network.graph, self.rows or self.network
        beside = {*graph.head.lossReads, *network.flags}
        if self.affine is not None:
            return self.affine.reads | beside
        return {*fixed_versions(network), *routed_versions(network), *graph.head.margin_reads} | beside

    def inputs(self, values: Values) -> dict[Version, SparseRows]:
        """The sparse inputs with columns renumbered for this network; none if it reads all columns."""
        return {}

    def load(self, u: Tensor) -> None:
        """Set the parameters to those at u, after a step; adjust u where a parameter is put back within bounds."""
        self.matrix.load(u)
        self._project(u)
        self._narrow()

    def _narrow(self) -> None:
        if self.narrow is not None:
            self.narrow[0].copy_(self.matrix.flat)

    def _project(self, u: Tensor) -> None:
        if not self.projects:
            return
        before = self.matrix.flat.clone()
        for clone in self.clones:
            for i in clone.positions:
                clone.module(i).project_()
        moved = (self.matrix.flat != before) & (self.units.unit != 0)  # these continue from their projected values
        u.copy_(torch.where(moved, (self.matrix.flat - self.start) / self.units.unit, u))

    def load_all(self, u: Tensor) -> None:
        """Set the parameters as `load` does, after a once-an-epoch step, which changes all parameters."""
        self.load(u)

    def slopes(self) -> AffineMargin | None:
        return self.affine.slopes(self.matrix.parameters, len(self.recipes)) if self.affine else None

    def margins(self, rows: list[int], slopes: AffineMargin | None, values: Values) -> Tensor:
        """Margins (k, n) or (k, n, classes) of these candidates, with an autograd graph if the network isn't affine."""
        if self.affine is None or slopes is None:
            return torch.stack([self.of_rows[k].margin(dict(values)) for k in rows]).to(self.start.dtype)
        if len(rows) < len(self.recipes):
            at = self.numbers(rows)
            slopes = AffineMargin({v: s[at] for v, s in slopes.of.items()}, slopes.constant[at], slopes.tape)
        return self.affine.margins(slopes, values)

    def backward(self, margin: Tensor, gradient: Tensor) -> None:
        """Add the gradients with respect to the parameters, given that with respect to the margins, which have an
        autograd graph.
        """
        if self.narrow is not None:
            self.narrow[1].zero_()
        dot(margin, gradient).backward()  # into the clones' gradients, which lie in the matrix
        if self.narrow is not None:
            self.matrix.gradient += self.narrow[1]

    def back(self, slopes: AffineMargin, gradients: dict[Version, Tensor], constant: Tensor) -> None:
        """Add the gradients with respect to the parameters, given those with respect to slopes and constants."""
        assert self.affine is not None
        self.affine.back(slopes, gradients, constant, self.matrix.gradients)

    def prepare_measurement(self, vectors: Vectors) -> MarginInputs:
        """Prepare to measure the candidates, with their averages over steps if there are any, and with settled trees;
        return a function of rows that gives what their margins are computed from.
        """
        if "average" in vectors:
            self.matrix.load(vectors["average"])
            self._narrow()
        for module in (m for c in self.clones for m in c.trees().values()) if self.settles else ():
            module.settle_()
        slopes = self.slopes()
        return lambda values: (slopes, values)

    def parameters(self, vectors: Vectors) -> Callable[[int], Tensor]:
        """Function that copies the parameters (p,) with which the k-th candidate was measured; call `parameters` after
        the measurement.
        """
        flat = self.matrix.flat.clone()
        if "average" in vectors or self.settles:
            self.matrix.load(vectors["u"])
            self._narrow()
        return lambda k: flat[k].clone()


class LazyUpdates(DenseUpdates):
    """Updates of the parameters of active columns only; all other parameters, moments and averages stay unchanged."""

    def __init__(self, active: ActiveColumns, recipes: Sequence[Recipe]):
        self.active, self.network, self.recipes = active, active.network, recipes
        self.start, self.units, self.projects = active.start, active.units, False
        self._current: Vectors = {}
        self._numbers, self.narrow, self.rows = {}, None, None
        self._choose(active.none())

    def for_candidates(self, recipes: Sequence[Recipe]) -> "LazyUpdates":
        return LazyUpdates(self.active, recipes)

    def _choose(self, columns: Mapping[Version, Tensor]) -> None:
        self.columns = columns
        self.matrix, self.entries, self.affine = self.active.matrix(columns, len(self.recipes))
        # Positions of the entries of all candidates in (K, p), flattened row by row: indexing columns is slower.
        rows = torch.arange(len(self.recipes), device=self.entries.device)
        self.places = (self.entries + len(self.start) * rows[:, None]).view(-1)

    def _active_entries(self, matrix: Tensor) -> Tensor:  # (K, p) -> (K, m)
        return matrix.view(-1).index_select(0, self.places).view(len(self.recipes), -1)

    def choose(self, vectors: Vectors, batches: Sequence[Values], team: Team) -> None:
        self.finish(vectors)
        self._choose(self.active.columns(batches, team))
        self._current = {name: self._active_entries(matrix) for name, matrix in vectors.items()}
        self.matrix.load(self._current["u"])

    def store(self, vectors: Vectors) -> None:
        for name, matrix in self._current.items():
            vectors[name].view(-1).index_copy_(0, self.places, matrix.view(-1))

    def finish(self, vectors: Vectors) -> None:
        self.store(vectors)
        self._current = {}

    def current(self, vectors: Vectors) -> Vectors:
        return self._current

    def at(self, matrix: Tensor | None) -> Tensor | None:
        return matrix if matrix is None or matrix.shape[1] == 1 else matrix.index_select(1, self.entries)

    def add_gradient(self, total: Tensor) -> None:
        total.index_add_(1, self.entries, self.matrix.changing(self.matrix.gradient))

    def inputs(self, values: Values) -> dict[Version, SparseRows]:
        return self.active.rows(values, self.columns)

    def load_all(self, u: Tensor) -> None:
        """Do nothing: `choose` computes the parameters of the next group of batches from u."""

    def prepare_measurement(self, vectors: Vectors) -> MarginInputs:
        def of(values: Values) -> tuple[AffineMargin | None, Values]:
            self._choose(self.active.columns([values]))
            self.matrix.load(self._active_entries(vectors.get("average", vectors["u"])))
            return self.slopes(), {**values, **self.inputs(values)}

        return of

    def parameters(self, vectors: Vectors) -> Callable[[int], Tensor]:
        return lambda k: self.active.parameters(vectors.get("average", vectors["u"])[k])
