"""Routing of rows through all trees of an ensemble at the same time: hard splits, exact, level by level, in float64.

The upper levels of the trees, as long as at least a quarter of a level's places are inner nodes, are stored completely:
the nodes of a level lie side by side, tree by tree, and the places of a node's children follow from its own place. Below
these levels, only rows that have not reached a leaf go on, from node to node, so that missing nodes cost neither memory
nor work: a chain of depth 30 costs its 61 nodes. On a GPU all rows go on until the depth of the deepest tree, because the
number of rows that have not reached a leaf is known only after waiting for the GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparkdiff.jvm.nodes import Array, Nodes
from sparkdiff.tensors.rows import SparseRows, on_gpu, width

PAIRS = 65_536
"""Largest number of pairs (row, tree) that are processed at a time; with so few, the data of a level stay in the processor's
cache.
"""
CELLS = 4_000_000
"""Largest number of values that are copied at a time when columns are gathered or sparse rows are made dense."""
NONE = 2**31 - 1
"""Marker of a value that is no category."""
GPU_PAIRS, GPU_CELLS = 1 << 24, 1 << 26
"""PAIRS and CELLS on a GPU, which is fast with large tensors: about half a GiB each."""


@dataclass
class Splits:
    """The splits at S places of nodes. A place without a decision (a leaf or a missing node) has column 0."""

    column: Tensor  # (S,) int32 index into the gathered columns
    source: Tensor  # (S,) int32 index into the thresholds, one past their end for a place without one
    begin: Tensor | None  # (S,) int32 index into the flags of categories, 0 for a place without any; None if all are
    size: Tensor | None  # (S,) int32, number of categories
    threshold: Tensor | None = None  # (S,) float64, from `source`; NaN for a place without one


@dataclass
class Subsets:
    """The categorical splits of K nodes. Each has one flag per category, True if the category goes left, and a last
    flag for all other values.

    Source: org.apache.spark.ml.tree.CategoricalSplit, which stores only the smaller of two sets: the categories within
    [0, numCategories) that go left, and those that go right. So a value outside [0, numCategories) goes right if at
    most numCategories / 2 categories (integer division) go left, else left.
    """

    begins: Tensor  # (K,) int32 into flags
    sizes: Tensor  # (K,) int32: numCategories
    flags: Tensor  # (1 + sum of sizes + K,) bool, the first one False

    @staticmethod
    def of(nodes: Nodes, categorical: Array) -> "Subsets":
        """Subsets of the nodes `categorical` (K,).

        Raises:
            OverflowError: an int32 cannot index all flags.
        """
        sizes = nodes.numCategories[categorical].astype(np.int64)
        starts, ends = nodes.starts[categorical], nodes.ends[categorical]
        begins = np.cumsum(sizes + 1) - sizes
        flags = np.zeros(int((sizes + 1).sum()) + 1, bool)
        if len(flags) > NONE:
            raise OverflowError(f"the categorical splits have {len(flags):,} categories together, at most {NONE:,} fit")
        given = ends - starts
        flags[begins + sizes] = given > sizes // 2
        entries = np.arange(given.sum()) + np.repeat(starts - np.cumsum(given) + given, given)
        flags[np.repeat(begins, given) + nodes.values[entries].astype(np.int64)] = True
        return Subsets(torch.from_numpy(begins).int(), torch.from_numpy(sizes).int(), torch.from_numpy(flags))

    def goes_left(self, begin: Tensor, size: Tensor, category: Tensor) -> Tensor:
        """True where `category` (p,) goes left, given the begin and size of its set (p,); always False for begin 0,
        which stands for a value without a set.
        """
        return self.flags.index_select(0, torch.minimum(category, size).add_(begin))


def categories(x: Tensor) -> Tensor:
    """Category of each value, int32; NONE for a value that is no category."""
    some = (x >= 0) & (x < NONE) & (x == x.floor())  # NaN is no category: all its comparisons are false
    return torch.where(some, x, 0).int().masked_fill_(~some, NONE)


class LevelBuffers:
    """Buffers for one level of n pairs (row, tree). They are reused, because new memory pages from the system take more
    time than the computation.
    """

    def __init__(self, n: int, device: torch.device):
        def memory(dtype: torch.dtype) -> Tensor:
            return torch.empty(n, dtype=dtype, device=device)

        self.index, self.place = memory(torch.int32), memory(torch.int32)
        self.value, self.threshold = memory(torch.float64), memory(torch.float64)
        self.left = memory(torch.bool)

    def first(self, n: int) -> "LevelBuffers":
        """Views of the first n entries of these buffers."""
        out = object.__new__(LevelBuffers)
        out.__dict__ = {name: memory[:n] for name, memory in vars(self).items()}
        return out


class Router:
    """Lookup of the leaf of each tree that a row falls into. Leaves are numbered over all trees, tree by tree, within a
    tree from left to right.

    x <= threshold goes left, in float64; NaN goes right, also where the threshold is infinite; -0.0 is 0. Each call
    passes the thresholds, because they may be trained; results derived from them are kept until they change.

    Attributes:
        trees, leaves: T and L, over all trees.
    """

    def __init__(self, nodes: Nodes):
        inner, roots = ~nodes.leaf, nodes.roots()
        left, right = nodes.leftChild + roots, nodes.rightChild + roots
        self.trees, self.leaves = nodes.trees, int(nodes.leaf.sum())
        self.inner = len(nodes) - self.leaves
        number = np.where(inner, np.cumsum(inner) - 1, self.inner + np.cumsum(~inner) - 1).astype(np.int32)

        used = np.unique(nodes.featureIndex[inner]).astype(np.int64)
        self.width = int(used[-1]) + 1 if len(used) else 0  # least number of columns of a row
        # If the trees use most of the first columns, dense rows are read without a copy.
        self.prefix = self.width <= 2 * len(used)
        columns = np.arange(self.width) if self.prefix else used
        self.columns = torch.from_numpy(columns)  # (u,) that are read

        continuous, categorical = nodes.continuous, inner & (nodes.numCategories >= 0)
        source = np.where(continuous, np.cumsum(continuous) - 1, continuous.sum()).astype(np.int32)
        column = np.where(inner, np.searchsorted(columns, nodes.featureIndex), 0).astype(np.int32)
        self.subsets = Subsets.of(nodes, np.flatnonzero(categorical))
        begin, size = np.zeros((2, len(nodes)), np.int32)
        begin[categorical], size[categorical] = self.subsets.begins.numpy(), self.subsets.sizes.numpy()

        def splits(places: Array) -> Splits:
            sets = (begin, size) if categorical[places].any() else ()
            at = [torch.from_numpy(numbers[places]) for numbers in (column, source, *sets)]
            return Splits(*at, *(None,) * (4 - len(at)))

        # A node's left child has the odd place, so `x <= threshold` is the last bit of the place on the next level.
        places = nodes.offsets[:-1]
        self.levels: list[Splits] = []  # of T * 2^l places each, while a quarter of them are inner nodes
        while inner[places].any() and len(places) <= 4 * inner[places].sum():
            self.levels.append(splits(places))
            children = [np.where(inner[places], right[places], places), np.where(inner[places], left[places], places)]
            places = np.stack(children, 1).reshape(-1)
        self.entry = torch.from_numpy(number[places])  # (T * 2^l,) the nodes below the levels: inner nodes, then leaves
        self.below: Splits | None = None  # of all inner nodes
        if inner[places].any():
            self.below = splits(np.flatnonzero(inner))
            self.children = torch.from_numpy(np.stack([number[right[inner]], number[left[inner]]], 1).reshape(-1))
        self.deepest = max(0, int(nodes.depth().max()) - len(self.levels))  # steps from there to the last leaf
        self.seen: Tensor | None = None

    @torch.no_grad()
    def leaf(self, x: Tensor | SparseRows, thresholds: Tensor) -> Tensor:
        """Number of the leaf in each tree, int32.

        Args:
            x: (n, d) float64.
            thresholds: (C,) float64 of the nodes with a continuous split, in their order in Nodes.

        Returns:
            (n, T).
        """
        self._load(thresholds)
        out = torch.empty(len(x), self.trees, dtype=torch.int32, device=x.device)
        room = self._room(x)
        for begin, part in self._parts(x):
            out[begin : begin + len(part)] = self._finish(part, self._places(part, room)).t()
        return out

    def total(self, x: Tensor | SparseRows, thresholds: Tensor, table: Tensor) -> Tensor:
        """Sum over trees of the leaf's row of a table; derivatives go to the table.

        Args:
            x, thresholds: as in `leaf`.
            table: (L,) or (L, k).

        Returns:
            (n,) or (n, k).
        """
        self._load(thresholds)
        # If all nodes are in the levels, a table by place makes the leaf's number unnecessary.
        by_place = None if self.below else table.index_select(0, self.entry - self.inner)
        out, room = [table.new_empty(0, *table.shape[1:])], self._room(x)
        for _, part in self._parts(x):
            with torch.no_grad():
                at = self._places(part, room)
                if by_place is None:
                    at = self._finish(part, at)
            if by_place is None:
                chosen = table.index_select(0, at.view(-1))
            else:  # autograd keeps the index, and the next part needs its memory
                chosen = by_place.index_select(0, at.view(-1).clone() if by_place.requires_grad else at.view(-1))
            out.append(chosen.view(self.trees, len(part), *table.shape[1:]).sum(0))
        return torch.cat(out)

    def _load(self, thresholds: Tensor) -> None:
        thresholds = thresholds.detach()
        if not on_gpu(thresholds):  # without waiting for a GPU
            if self.seen is not None and torch.equal(self.seen, thresholds):
                return
            self.seen = thresholds.clone()
        padded = torch.cat([thresholds, thresholds.new_full((1,), torch.nan)])
        for splits in [*self.levels, *([self.below] if self.below else [])]:
            splits.threshold = padded.index_select(0, splits.source)

    def _rows(self, x: Tensor | SparseRows) -> int:
        """Number of rows at a time."""
        pairs, cells = (GPU_PAIRS, GPU_CELLS) if x.device.type != "cpu" else (PAIRS, CELLS)
        limit = cells // max(1, len(self.columns))
        if self.prefix and not isinstance(x, SparseRows):
            # An int32 must be able to index every value of the part; on a GPU its columns are copied.
            limit = GPU_CELLS // max(1, self.width) if on_gpu(x) else (2**31 - 1) // max(1, x.shape[1])
        return max(1, min(pairs // self.trees, limit, len(x)))

    def _room(self, x: Tensor | SparseRows) -> LevelBuffers:
        """Memory in which a part of the rows is routed, after a check that the rows are wide enough.

        Raises:
            IndexError: the rows are narrower than the trees need; without the error, values of the next row would be
                read.
        """
        if len(x) and width(x) < self.width:
            raise IndexError(f"the trees need {self.width} entries per row, got {width(x)}")
        return LevelBuffers(self._rows(x) * self.trees, x.device)

    def _parts(self, x: Tensor | SparseRows) -> Iterator[tuple[int, Tensor]]:
        """Yield, for each part of the rows, the number of its first row and its values in the columns that the trees
        read, (m, u).
        For dense rows some other columns may be included.
        """
        rows = self._rows(x)
        for begin in range(0, len(x), rows):
            if isinstance(x, SparseRows):
                yield begin, self._dense(x, begin, min(begin + rows, len(x)))
            else:
                part = x[begin : begin + rows].detach()
                if not self.prefix:
                    yield begin, part.index_select(1, self.columns)
                else:
                    yield begin, part[:, : self.width] if on_gpu(x) else part.contiguous()

    def _dense(self, x: SparseRows, begin: int, end: int) -> Tensor:
        """The columns that are read, for the rows from `begin` to `end`, (m, u)."""
        offsets = x.offsets[begin : end + 1]
        entries = slice(None) if end - begin == len(x) else slice(int(offsets[0]), int(offsets[-1]))
        part = SparseRows(x.indices[entries], x.values[entries].detach(), offsets - offsets[0], x.width)
        return part.dense_columns(self.columns)

    def _places(self, x: Tensor, room: LevelBuffers) -> Tensor:
        """Place below the levels of each row in each tree, (T, m) int32, from the columns that are read (m, u)."""
        shape = (self.trees, len(x))
        room = room.first(self.trees * len(x))
        flat, row, step = self._flat(x)
        value, left, place = room.value.view(shape), room.left.view(shape), room.place.view(shape)
        place.copy_(torch.arange(self.trees, dtype=torch.int32, device=x.device)[:, None])
        # Categories are computed once for all values if the values are fewer than the pairs that look them up.
        category = categories(flat) if len(self.subsets.sizes) and len(flat) <= len(room.place) else None
        for number, splits in enumerate(self.levels):
            assert splits.threshold is not None
            if number:
                torch.index_select(_times(splits.column, step), 0, room.place, out=room.index)
                room.index.view(shape).add_(row)
                torch.index_select(flat, 0, room.index, out=room.value)
                torch.index_select(splits.threshold, 0, room.place, out=room.threshold)
                torch.le(room.value, room.threshold, out=room.left)
            else:  # all rows of a tree start at the same split
                columns = flat.view(x.shape[1], len(x)) if on_gpu(x) else x.t()
                torch.index_select(columns, 0, splits.column, out=value)
                torch.le(value, splits.threshold[:, None], out=left)
            if splits.begin is not None and splits.size is not None:
                if not number:
                    torch.add(_times(splits.column, step)[:, None], row, out=room.index.view(shape))
                begin, size = splits.begin.index_select(0, room.place), splits.size.index_select(0, room.place)
                found = categories(room.value) if category is None else category.index_select(0, room.index)
                room.left.logical_or_(self.subsets.goes_left(begin, size, found))
            torch.add(left, place, alpha=2, out=place)
        return place

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Flattened values of rows (m, u), the position of each row's first value (m,) int32, and the distance between
        two neighbouring values of a row.
        """
        m, u = x.shape
        row = torch.arange(m, dtype=torch.int32, device=x.device)
        # On a GPU column by column: neighbouring threads have neighbouring rows, and most of them read the same column.
        return (x.t().reshape(-1), row, m) if on_gpu(x) else (x.view(-1), row * u, 1)

    def _finish(self, x: Tensor, at: Tensor) -> Tensor:
        """Number of the leaf of each row in each tree, (T, m) int32, given the places below the levels."""
        out = self.entry.index_select(0, at.view(-1))
        if self.below is not None:
            self._descend(x, out)
        return out.sub_(self.inner).view(at.shape)

    def _descend(self, x: Tensor, nodes: Tensor) -> None:
        """Move `nodes` (T * m,) from inner nodes down to leaves."""
        flat, row, step = self._flat(x)
        row = row.repeat(self.trees)
        if on_gpu(x):
            for _ in range(self.deepest):
                node = nodes.clamp_max(self.inner - 1)
                nodes.copy_(torch.where(nodes < self.inner, self._child(flat, node, row, step), nodes))
            return
        pair = (nodes < self.inner).nonzero().view(-1)
        node, row = nodes.index_select(0, pair), row.index_select(0, pair)
        while len(pair):
            node = self._child(flat, node, row, step)
            nodes.index_copy_(0, pair, node)
            under_way = (node < self.inner).nonzero().view(-1)
            if len(under_way) < len(pair):
                pair, node, row = (t.index_select(0, under_way) for t in (pair, node, row))

    def _child(self, flat: Tensor, node: Tensor, row: Tensor, step: int) -> Tensor:
        """Child nodes to which inner nodes (p,) send the rows whose values begin at `row` (p,), `step` apart."""
        splits = self.below
        assert splits is not None and splits.threshold is not None
        value = flat.index_select(0, _times(splits.column.index_select(0, node), step).add_(row))
        left = value <= splits.threshold.index_select(0, node)
        if splits.begin is not None and splits.size is not None:
            begin, size = splits.begin.index_select(0, node), splits.size.index_select(0, node)
            left.logical_or_(self.subsets.goes_left(begin, size, categories(value)))
        return self.children.index_select(0, torch.add(left, node, alpha=2))


def _times(column: Tensor, step: int) -> Tensor:
    return column if step == 1 else column * step
