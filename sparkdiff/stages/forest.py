"""The common part of all tree stages: rows to leaves by hard splits, leaves to outputs, training, writing back.

Gradients pass through hard splits by straight-through estimation at every node. In the forward pass a row goes to one
child of each node, as in Spark. The backward pass treats the row as if it went right with probability
sigmoid((x - threshold) / tau), so a threshold, or an earlier stage, learns the result of the other child. Source:
Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from sparkdiff.jvm import trees as spark
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.stages.base import SUPPORT, FeatureStats, LabelStats, deviation, parameter, tensor
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.routing import Router, Subsets, categories
from sparkdiff.tensors.device import copy_to
from sparkdiff.tensors.rows import Rows, SparseRows, on_gpu

MANY = 20
"""Number of trees above which the unit of a leaf shrinks with the number of trees, so that one step of all trees
together keeps its size.
"""
STEADY = 0.3
"""Unit of a threshold in standard deviations of its feature; with 3, thresholds on the bike sharing data moved away
from their leaves.
"""
EDGES = 1000
"""Largest number of rows, each with a feature exactly at a split, on which parity with Spark is checked."""


class Trees(Predictor):
    """prediction = sum over trees of share * leaf, where a row goes left at a node if x[feature] <= threshold; NaN goes right.

    The leaves train; thresholds and tree weights train on request. Thresholds and earlier stages learn by
    straight-through estimation, always with hard splits in the forward pass.

    Source: org.apache.spark.ml.tree.{Node, ContinuousSplit, CategoricalSplit, TreeEnsembleModel}.
    """

    tree: Tensor
    first: Tensor
    feature: Tensor
    tau: Tensor
    SHOWN: ClassVar[tuple[str, ...]] = ("predictionCol", "leafCol")
    label_cols: ClassVar[tuple[str, ...]] = ("leafCol",)
    optional = frozenset({"thresholds", "treeWeights"})
    LEAF: ClassVar[str] = "prediction"
    """The field of a node that holds the parameters of a leaf."""

    def __init__(self, nodes: Nodes, treeWeights: Tensor | None, shown: tuple[str, ...], uid: str):
        super().__init__()
        self.nodes, self.shown, self.uid = nodes, shown, uid
        self.leaves = parameter(tensor(getattr(nodes, self.LEAF)[nodes.leaf]))  # (L,), or (L, k) for k classes
        self.thresholds = parameter(self.fitted_thresholds(), False)  # (C,)
        if treeWeights is not None:
            self.treeWeights = parameter(treeWeights, False)  # (T,)
        number = np.repeat(np.arange(nodes.trees), np.diff(nodes.offsets))
        self.register_buffer("tree", torch.from_numpy(number[nodes.leaf]), persistent=False)  # (L,) each leaf's tree
        self.register_buffer("first", torch.searchsorted(self.tree, torch.arange(nodes.trees)), persistent=False)
        self.register_buffer("feature", torch.from_numpy(nodes.featureIndex[nodes.continuous]).long(), persistent=False)
        self.register_buffer("tau", _spreads(self.thresholds.detach(), self.feature), persistent=False)  # (C,)
        self.router = Router(nodes)
        self._gates: Gates | None = None
        self.values: dict[int, Tensor] = {}

    @classmethod
    def from_spark(cls, stage: Any) -> Self:
        weights = tensor(stage.treeWeights) if cls.boosted else None
        return cls(spark.read(stage), weights, cls.shown_by(stage), stage.uid)

    def check(self) -> None:
        """Raise an error if the arrays, which may come from a file, are no trees, or do not match these trees."""
        self.nodes.check(self.router.width, self.uid)
        leaves, trees = getattr(self.nodes, self.LEAF)[self.nodes.leaf].shape, self.nodes.trees
        own = (
            self.leaves.shape,
            self.tree.shape,
            self.treeWeights.shape if self.boosted else (trees,),
            self.router.trees,
        )
        if own != (leaves, leaves[:1], (trees,), trees) or type(self.factor) is not float:
            raise ValueError(f"{self.uid} has {trees} trees with leaves {leaves}, and arrays of others: {own}")

    # Rows to leaves, leaves to outputs ------------------------------------------------------------------------------

    def route(self, x: Rows) -> Tensor:
        """Number of each row's leaf in each tree, (n, T) int32, counted over all trees."""
        return self.router.leaf(x, self.thresholds)

    def share(self) -> Tensor:
        """Factor with which each tree's leaf enters the sum over the trees, (T,)."""
        return self.treeWeights * self.factor if self.boosted else self.leaves.new_ones(self.nodes.trees)

    def table(self) -> Tensor:
        """Contribution of each leaf to the sum over the trees, (L,) or (L, k)."""
        return self.leaves * self.share()[self.tree]

    def margin_from_sums(self, total: Tensor) -> Tensor:
        """Margin, given the sums over all trees (n,) or (n, k) of the leaves' `table`."""
        return total

    def total(self, x: Rows) -> Tensor:
        table = self.table()
        if not (torch.is_grad_enabled() and (self.thresholds.requires_grad or _wants_gradient(x))):
            return (
                self.leaf_sums(self.route(x)) if table.requires_grad else self.router.total(x, self.thresholds, table)
            )
        if self._gates is None:
            self._gates = Gates(self.nodes) if not on_gpu(table) else copy_to(Gates(self.nodes), table.device)
        rows = self._gates.read(x)
        wide = table if table.ndim == 2 else table[:, None]
        parts = []
        for part in rows.split(self._gates.rows_at_once(wide.shape[1])):
            goes = self._gates.goes(part, self.thresholds)
            parts.append(StraightThrough.apply(part, self.thresholds, wide, self.tau, goes, self._gates))
        total = torch.cat(parts) if parts else wide.new_zeros(0, wide.shape[1])
        return total if table.ndim == 2 else total[:, 0]

    def leaf_sums(self, leaves: Tensor) -> Tensor:
        """Sums of the table's entries of these leaves, (n, T) -> (n,) or (n, k)."""
        table = self.table()
        return table.index_select(0, leaves.reshape(-1)).view(*leaves.shape, *table.shape[1:]).sum(1)

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]
        return self.margin_from_sums(self.total(x))

    def forward(self, x: Rows) -> tuple[Tensor, ...]:  # type: ignore[override]
        leaves = self.route(x) if "leafCol" in self.shown or "varianceCol" in self.shown else None
        if leaves is None or (torch.is_grad_enabled() and (self.thresholds.requires_grad or _wants_gradient(x))):
            return self.shows(self.total(x), leaves)
        return self.routed_outputs(leaves)

    def routed_outputs(self, leaves: Tensor) -> tuple[Tensor, ...]:
        """Outputs of rows that fall into these leaves (n, T)."""
        return self.shows(self.leaf_sums(leaves), leaves)

    def shows(self, total: Tensor, leaves: Tensor | None) -> tuple[Tensor, ...]:
        """Output columns, given the sums over all trees and, if needed, the leaves (n, T)."""
        raise NotImplementedError

    def leaf_column(self, leaves: Tensor) -> Tensor:
        """Numbers of the leaves counted within each tree, given their numbers counted over all trees (n, T). Returns
        (n,) for a stage of a single tree, else (n, T).
        """
        own = (leaves - self.first).to(torch.float64)
        return own[:, 0] if self.single else own

    single: ClassVar[bool] = False
    """Whether the stage is one tree, not an ensemble."""
    boosted: ClassVar[bool] = False
    """Whether the trees have weights."""
    factor: ClassVar[float] = 1.0
    """Factor of a tree's weight in the margin."""

    # Training -------------------------------------------------------------------------------------------------------

    @property
    def routes_fixed(self) -> bool:
        """True if no parameter that trains changes where a row goes."""
        return not self.thresholds.requires_grad

    def observe(self, x: FeatureStats, values: Mapping[int, Tensor]) -> None:
        spread = x.std[self.feature]
        self.tau, self.values = torch.where(spread > 0, SHARPNESS * spread, self.tau), dict(values)

    def settles(self) -> bool:
        """True if `settle_` has anything to do."""
        return not self.routes_fixed and bool(self.values)

    @torch.no_grad()
    def settle_(self) -> None:
        """Move each threshold to the middle between the two training values that it separates, or back to its fitted
        value if it still separates the same two values as when it was fitted; one beyond all values stays.
        """
        for feature, values in self.values.items():
            at = self.feature == feature
            now, was = self.thresholds[at], self.fitted_thresholds().to(at.device)[at]
            above, before = (torch.searchsorted(values, t, right=True) for t in (now, was))
            middle = (values[(above - 1).clamp_min(0)] + values[above.clamp_max(len(values) - 1)]) / 2
            outside = (above == 0) | (above == len(values))
            self.thresholds[at] = torch.where(above == before, was, torch.where(outside, now, middle))

    def fitted_thresholds(self) -> Tensor:
        return tensor(self.nodes.values[self.nodes.starts[self.nodes.continuous]])

    def critical_rows(self, row: Tensor) -> Tensor:
        """At most EDGES variants of `row` (1, d) with one feature at a threshold, at a category, or outside the
        categories.
        """
        nodes = self.nodes
        at = [*zip(nodes.featureIndex[nodes.continuous].tolist(), self.thresholds.tolist(), strict=True)]
        for j in np.flatnonzero(nodes.categorical):
            at += [
                (int(nodes.featureIndex[j]), float(v)) for v in (0, nodes.numCategories[j] - 1, nodes.numCategories[j])
            ]
        at = list(dict.fromkeys(at))
        at = at[:: -(-len(at) // EDGES) or 1]
        rows = row.repeat(len(at), 1)
        features, values = (
            torch.tensor([f for f, _ in at]).long(),
            torch.tensor([v for _, v in at], dtype=torch.float64),
        )
        rows[torch.arange(len(at)), features] = values
        return rows

    def nominal_features(self) -> Tensor:
        """Indices (q,) of the features that are categories, to which no noise can be added."""
        return torch.from_numpy(np.unique(self.nodes.featureIndex[self.nodes.categorical])).long()

    def leaf_unit(self, y: LabelStats) -> Tensor | float:
        """Unit of a leaf times its tree's `share`, up to MANY trees: one unit then changes the margin by about the margin's
        own unit. Broadcastable to `leaves`.
        """
        return self.margin_unit(y)

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        share = self.share().detach().abs()
        own = torch.where(share > 0, 1 / share, 0.0)[self.tree] * min(1.0, MANY / self.nodes.trees)
        unit = own.view(-1, *[1] * (self.leaves.ndim - 1)) * self.leaf_unit(y)
        out = {"leaves": unit, "thresholds": STEADY * x.std[self.feature]}
        if hasattr(self, "treeWeights"):
            out["treeWeights"] = self.treeWeights.detach().abs().max().clamp_min(1e-300)
        return out

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        assert x.leaves is not None
        reached = (x.leaves >= SUPPORT).view(-1, *[1] * (self.leaves.ndim - 1)).expand_as(self.leaves)
        return {"leaves": reached, "thresholds": (x.support >= SUPPORT)[self.feature]}

    # Back to Spark --------------------------------------------------------------------------------------------------

    def written_nodes(self) -> Nodes:
        """Nodes with this module's thresholds and leaves."""
        nodes, values = self.nodes, self.nodes.values.copy()
        values[nodes.starts[nodes.continuous]] = self.weight("thresholds")
        held = getattr(nodes, self.LEAF).copy()
        held[nodes.leaf] = self.weight("leaves")
        return nodes.replace(values=values, **{self.LEAF: held})

    def to_spark(self, stage: Any) -> Any:
        weights = self.weight("treeWeights") if hasattr(self, "treeWeights") else None
        return spark.rebuild(stage, self.written_nodes(), weights)


def _wants_gradient(x: Rows) -> bool:
    return (x.values if isinstance(x, SparseRows) else x).requires_grad


def _spreads(thresholds: Tensor, feature: Tensor) -> Tensor:
    """Temperature tau of each threshold (C,) until `observe` is called: SHARPNESS times the standard deviation of all
    thresholds of its feature, which counts as 1 if they are equal; 1 if this is not finite.
    """
    size = int(feature.max()) + 1 if len(feature) else 0
    count, total, square = (
        torch.zeros(size, dtype=torch.float64).index_add_(0, feature, v)
        for v in (torch.ones_like(thresholds), thresholds, thresholds**2)
    )
    return SHARPNESS * deviation(count, total, square)[feature].nan_to_num(1.0, 1.0, 1.0)


SHARPNESS = 0.3
"""Temperature tau of the sigmoid, in standard deviations of the feature."""
ENTRIES = 1 << 24
"""Largest number of entries of one array (128 MiB of doubles)."""
GPU_ENTRIES = 1 << 26
"""Largest number of entries on a GPU, where small arrays take as long as large ones."""


class Gates:
    """The nodes of an ensemble ordered by depth, for passes from the leaves up and from the roots down."""

    def __init__(self, nodes: Nodes):
        depth = nodes.depth()
        order = np.argsort(depth, kind="stable")  # level by level
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        root = nodes.roots()

        def children(side: np.ndarray[Any, Any]) -> Tensor:
            return torch.from_numpy(place[np.where(nodes.leaf, 0, side + root)][order])

        self.left, self.right = children(nodes.leftChild), children(nodes.rightChild)
        self.bounds = np.searchsorted(depth[order], np.arange(depth.max() + 2)).tolist()
        leaf = nodes.leaf[order]
        self.inner = [torch.from_numpy(a + np.flatnonzero(~leaf[a:b])) for a, b in self._levels()]
        self.leaves = torch.from_numpy(place[np.flatnonzero(nodes.leaf)])  # (L,) place of each leaf
        self.roots = torch.from_numpy(place[nodes.offsets[:-1]])
        self.continuous = torch.from_numpy(
            place[np.flatnonzero(nodes.continuous)]
        )  # (C,), in the order of the thresholds
        self.columns = torch.from_numpy(
            np.unique(nodes.featureIndex[~nodes.leaf]).astype(np.int64)
        )  # (u,) that are read

        def column(which: np.ndarray[Any, Any]) -> Tensor:
            return torch.searchsorted(self.columns, torch.from_numpy(nodes.featureIndex[which].astype(np.int64)))

        self.feature = column(nodes.continuous)  # (C,) positions in `columns`
        self.categorical = torch.from_numpy(place[np.flatnonzero(nodes.categorical)])
        self.category = column(nodes.categorical)
        self.subsets = Subsets.of(nodes, np.flatnonzero(nodes.categorical))
        self.size = len(nodes)

    def _levels(self) -> list[tuple[int, int]]:
        return list(zip(self.bounds[:-1], self.bounds[1:], strict=True))

    def rows_at_once(self, width: int) -> int:
        return max(1, (GPU_ENTRIES if on_gpu(self.roots) else ENTRIES) // (self.size * width))

    def read(self, x: Rows) -> Tensor:
        """Columns that the trees read, (n, u), with derivatives; sparse rows are never made dense."""
        return x.dense_columns(self.columns) if isinstance(x, SparseRows) else x.index_select(1, self.columns)

    def goes(self, x: Tensor, thresholds: Tensor) -> Tensor:
        """Mask (N, n) bool, True where a row goes right at a node (at a threshold, NaN does), from the read columns
        (n, u) and thresholds (C,).
        """
        out = torch.zeros(self.size, len(x), dtype=torch.bool, device=x.device)
        columns = x.detach().T
        out[self.continuous] = ~(columns[self.feature] <= thresholds.detach()[:, None])
        if len(self.categorical):
            value = columns[self.category]
            begin, size = (
                t[:, None].expand(value.shape).reshape(-1) for t in (self.subsets.begins, self.subsets.sizes)
            )
            left = self.subsets.goes_left(begin, size, categories(value).view(-1)).view(value.shape)
            out[self.categorical] = ~left
        return out

    def subtrees(self, goes: Tensor, table: Tensor) -> Tensor:
        """Output of every subtree: goes (N, n) bool whether a row goes right, table (L, k) -> (N, n, k)."""
        value = table.new_empty(self.size, goes.shape[1], table.shape[1])
        value[self.leaves] = table[:, None].expand(-1, goes.shape[1], -1)
        for inner in reversed(self.inner):
            right = goes[inner][..., None]
            value[inner] = torch.where(right, value[self.right[inner]], value[self.left[inner]])
        return value

    def reach_mask(self, goes: Tensor) -> Tensor:
        """Mask (N, n) bool, True where a row reaches a node."""
        on = torch.zeros_like(goes)
        on.index_fill_(0, self.roots, True)  # not `on[roots] = True`, which would wait for a GPU
        for inner in self.inner:
            right = goes[inner]
            on[self.right[inner]] = on[inner] & right
            on[self.left[inner]] = on[inner] & ~right
        return on


class StraightThrough(torch.autograd.Function):
    """Sums over all trees of the table entries of each row's leaf, from the columns that the trees read x (n, u),
    thresholds (C,) and table (L, k) -> (n, k); with straight-through derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, thresholds: Tensor, table: Tensor, tau: Tensor, goes: Tensor, gates: Gates
    ) -> Tensor:
        """Sum, for each row, the table entries of its leaves over all trees.

        Args:
            tau: (C,).
            goes: (N, n) bool, whether a row goes right at the node, for all nodes.
        """
        ctx.gates = gates
        ctx.save_for_backward(x, thresholds, table, tau, goes)
        return gates.subtrees(goes, table)[gates.roots].sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, thresholds, table, tau, goes = ctx.saved_tensors
        gates: Gates = ctx.gates
        on = gates.reach_mask(goes)
        to_table = on[gates.leaves].to(gradient.dtype) @ gradient
        to_x = to_thresholds = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            value, at = gates.subtrees(goes, table), gates.continuous
            apart = ((value[gates.right[at]] - value[gates.left[at]]) * gradient).sum(2)  # (C, n)
            soft = torch.sigmoid((x.T[gates.feature] - thresholds[:, None]) / tau[:, None])
            slope = torch.where(on[at], apart * soft * (1 - soft) / tau[:, None], 0.0).nan_to_num(0.0, 0.0, 0.0)
            to_thresholds = -slope.sum(1)
            to_x = torch.zeros_like(x.T).index_add_(0, gates.feature, slope).T
        return to_x, to_thresholds, to_table, None, None, None
