"""Trees and one-hot encoders in numpy, for few rows: torch's overhead per operation would exceed the computation."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.serving.scorer.schedule import NOWHERE, Schedule, Step, TorchStep, Values
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.stages.trees import RandomForestClassification
from sparkdiff.tensors.rows import SPARSE_FROM, Rows

PAIRS = 4096
"""Largest product of rows and trees for which numpy is faster than torch."""
Array = np.ndarray[Any, Any]


class NumpyTrees:
    """Leaves of rows and sums of the leaves' values: the same decisions as `stages.routing.Router`."""

    def __init__(self, module: Trees):
        nodes = module.nodes
        leaf, number = nodes.leaf, np.arange(len(nodes))
        children = [np.where(leaf, number, child + nodes.roots()) for child in (nodes.rightChild, nodes.leftChild)]
        self.child = np.stack(children, 1).reshape(-1)  # (2 N,): a leaf leads to itself
        self.feature = np.maximum(nodes.featureIndex, 0).astype(np.intp)  # (N,)
        self.threshold = np.full(len(nodes), np.inf)
        self.threshold[nodes.continuous] = module.thresholds.detach().numpy()
        categorical = ~leaf & (nodes.numCategories >= 0)
        self.subset = np.where(categorical, np.cumsum(categorical) - 1, -1)  # (N,) among the sets of categories
        self.sets = bool(categorical.any())
        subsets = module.router.subsets
        self.begins, self.sizes, self.flags = (t.numpy() for t in (subsets.begins, subsets.sizes, subsets.flags))
        self.roots, self.depth = nodes.offsets[:-1].astype(np.intp), int(nodes.depth().max())
        self.number = np.cumsum(leaf) - 1  # (N,) the number of a leaf
        self.table = module.table().detach().numpy()  # (L,) or (L, k)
        self.module, self.trees = module, nodes.trees
        self.shows_leaves = not {"leafCol", "varianceCol"}.isdisjoint(module.shown)

    def leaves(self, x: Array) -> Array:
        """Leaf numbers of rows, (n, d) -> (n, T)."""
        n, width = x.shape
        flat, node = x.reshape(-1), np.tile(self.roots, n)
        first = np.repeat(np.arange(n) * width, self.trees)
        for _ in range(self.depth):
            value = flat[first + self.feature[node]]
            left = value <= self.threshold[node]
            if self.sets:
                self._correct(left, self.subset[node], value)
            node = self.child[2 * node + left]
        return self.number[node].reshape(n, self.trees)

    def _correct(self, left: Array, subset: Array, value: Array) -> None:
        """Overwrite `left` (p,) for the nodes that split by a set of categories: True if the row goes left there."""
        where = np.flatnonzero(subset >= 0)
        subset, value = subset[where], value[where]
        size = self.sizes[subset]
        category = np.where((value >= 0) & (value < size) & (value == np.floor(value)), value, size)
        left[where] = self.flags[self.begins[subset] + category.astype(np.intp)]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        leaves = self.leaves(x.numpy())
        total = torch.from_numpy(np.asarray(self.table[leaves].sum(1)))
        return self.module.shows(total, torch.from_numpy(leaves) if self.shows_leaves else None)


@dataclass(frozen=True)
class TreesStep(TorchStep):
    """A step with trees: many rows with torch, few with numpy."""

    few: NumpyTrees = field(kw_only=True)

    def run(self, values: Values) -> None:
        x: Rows = values[self.reads[0]]
        few = isinstance(x, Tensor) and x.ndim == 2 and len(x) * self.few.trees <= PAIRS
        if not few and not isinstance(self.few.module, RandomForestClassification):
            super().run(values)
            return
        if self.wanted:
            self.check(x)
        outputs = self.few(x) if few and isinstance(x, Tensor) else forest_outputs(self.few.module, x)
        for i, column in zip(self.writes, outputs, strict=True):
            values[i] = column


def forest_outputs(module: Trees, x: Rows) -> tuple[Tensor, ...]:
    """Outputs of a forest for many rows. Votes are added tree by tree, as in Spark, because rounding can decide ties."""
    leaves, table = module.route(x), module.table()
    total = table.new_zeros(len(leaves), table.shape[1])
    for leaf in leaves.unbind(1):
        total += table.index_select(0, leaf)
    return module.shows(total, leaves)


@dataclass(frozen=True)
class OneHotStep(TorchStep):
    """A step with a one-hot encoder: many rows with torch, a single one with Python."""

    encoder: OneHotEncoder = field(kw_only=True)

    def run(self, values: Values) -> None:
        nulls, encoder = self.nulls or (), self.encoder
        for read, null, name, size, write in zip(
            self.reads, nulls, encoder.names, encoder.sizes, self.writes, strict=True
        ):
            row = self.row(values[read], None if null == NOWHERE else values[null], size, name)
            if row is None:  # several rows, a wide block, or a refused index or null
                super().run(values)
                return
            values[write] = torch.from_numpy(row)

    def row(self, x: Any, null: Any, size: int, name: str) -> Array | None:
        """One-hot vector (1, width) of a single row, as numpy; None if torch has to compute it."""
        encoder = self.encoder
        width = size + encoder.keep - encoder.drop_last
        if type(x) is not Tensor or x.shape != ONE or width >= SPARSE_FROM:
            return None
        value = x.item()
        if null is not None and null.item():
            return None if name in encoder.refusing else np.full((1, width), np.nan)
        valid = 0 <= value < size
        if not valid and not encoder.keep:
            return None
        out, index = np.zeros((1, width)), int(value) if valid else size
        if index < width:
            out[0, index] = 1.0
        return out


ONE = torch.Size([1])


def fast(step: Step) -> Step:
    """The step, with a fast path for few rows if its stage has one."""
    if not isinstance(step, TorchStep):
        return step
    if isinstance(step.module, Trees):
        return TreesStep(**vars(step), few=NumpyTrees(step.module))
    return (
        OneHotStep(**vars(step), encoder=step.module)
        if type(step.module) is OneHotEncoder and step.module.exact_beyond > 0
        else step
    )


def steps(schedule: Schedule) -> tuple[Step, ...]:
    """The steps of a schedule, each replaced by a version with a fast path for few rows if there is one."""
    return tuple(map(fast, schedule.steps))
