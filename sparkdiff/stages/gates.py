"""Gradients through hard splits, by straight-through estimation at every node.

In the forward pass a row goes to one child of each node, as in Spark. The backward pass treats the row as if it went
right with probability sigmoid((x - threshold) / tau), so a threshold, or an earlier stage, learns the result of the
other child. Source: Bengio, Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons",
2013.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.jvm.nodes import Nodes
from sparkdiff.stages.routing import Subsets, categories
from sparkdiff.tensors.rows import Rows, SparseRows, on_gpu

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
