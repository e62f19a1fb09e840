"""Trees of any library as arrays, and their conversion to Spark's nodes such that every double, even NaN, reaches the
same leaf.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from sparkdiff.errors import InputError
from sparkdiff.jvm.nodes import Array, Nodes

GROWTH = 20
"""Largest factor by which the splits that are added for NaN may enlarge a model."""
LARGEST_CATEGORY = 65_535
"""Largest category that is accepted; it is limited because Spark lists the categories of a split one by one."""


@dataclasses.dataclass(frozen=True)
class TreeArrays:
    """All nodes of T trees, one tree after the other; each tree starts with its root, and its other nodes have any
    order.

    Attributes:
        offsets: (T + 1,) int, index of the first node of each tree, and the number of nodes.
        left, right: (N,) int, indices of the children, relative to the tree's root; -1 at leaves.
        feature: (N,) int, the feature that a node splits.
        threshold: (N,) float64, the largest double that goes left.
        nanLeft: (N,) bool, whether NaN goes left.
        value: (N,) float64, the node's prediction.
        impurity, gain: (N,) float64; featureImportances are sums of gain times count.
        count: (N,) float64, number of training rows, or the sum of their weights.
        stats: (N, classes) float64, class weights of a classification tree; None for a regression.
        sets: by node, for each categorical split: a list of categories, and True if these go left and all other values
            right, False if these go right and all others left.
    """

    offsets: Array
    left: Array
    right: Array
    feature: Array
    threshold: Array
    nanLeft: Array
    value: Array
    impurity: Array
    gain: Array
    count: Array
    stats: Array | None = None
    sets: dict[int, tuple[Array, bool]] = dataclasses.field(default_factory=dict)

    @property
    def trees(self) -> int:
        return len(self.offsets) - 1

    @staticmethod
    def constant(value: float) -> "TreeArrays":
        """A tree with one leaf."""
        zero, one = np.zeros(1), np.full(1, -1)
        return TreeArrays(np.array([0, 1]), one, one, one, zero, zero > 0, np.full(1, value), zero, zero, zero)

    @staticmethod
    def join(parts: "Sequence[TreeArrays]") -> "TreeArrays":
        """The trees of all parts as one TreeArrays; either all parts or none must have stats."""
        firsts = np.cumsum([0, *(len(part.left) for part in parts)]).tolist()
        fields = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(TreeArrays)
            if field.name not in ("offsets", "sets") and getattr(parts[0], field.name) is not None
        }
        offsets = [first + part.offsets[:-1] for first, part in zip(firsts, parts, strict=False)]
        sets = {first + j: each for first, part in zip(firsts, parts, strict=False) for j, each in part.sets.items()}
        return TreeArrays(offsets=np.concatenate([*offsets, firsts[-1:]]), sets=sets, **fields)

    def without_missing(self) -> "TreeArrays":
        """The same trees for rows without NaN: `nanLeft` is set to the side to which Spark sends NaN, so that no split
        is added.
        """
        nanLeft = np.zeros(len(self.left), bool)
        for node, (_, setLeft) in self.sets.items():
            nanLeft[node] = not setLeft
        return dataclasses.replace(self, nanLeft=nanLeft)

    def nodes(self) -> Nodes:
        """The trees as Spark's nodes, in Spark's order.

        Spark sends NaN right at every threshold; at a categorical split, it sends NaN to the same side as all values
        that are not listed. If the library sends NaN to the other side, a split at infinity, which sends only NaN
        right, is inserted in front of the split, with a copy of the subtree to which the library sends NaN. Each path
        has at most one such split per feature. Copies and inserted splits have gain 0, so that featureImportances are
        the library's.

        Raises:
            InputError: the inserted splits would make the trees more than 20 times as large; or a category is not a
                whole number in 0..65535.
        """
        grown = self._with_nan_splits()
        source, ask, copy = grown.source, grown.ask, grown.copy
        inner = grown.leftChild >= 0
        categorical = np.isin(source, np.fromiter(self.sets, np.int64, len(self.sets))) & inner & ~ask
        values = np.where(ask, np.inf, self.threshold[source])
        lists, numCategories = {}, np.full(len(source), -1, np.int32)
        for j in np.flatnonzero(categorical):
            lists[int(j)], numCategories[j] = self._categories(int(source[j]))
        lengths = inner.astype(np.int64)
        for j, listed in lists.items():
            lengths[j] = len(listed)
        ends = np.cumsum(lengths)
        flat = np.repeat(values, lengths)
        for j, listed in lists.items():
            flat[ends[j] - len(listed) : ends[j]] = listed
        count, value = self.count[source], self.value[source]
        stats = self.stats[source] if self.stats is not None else _moments(count, value, self.impurity[source])
        return Nodes(
            offsets=grown.offsets,
            prediction=value,
            impurity=self.impurity[source],
            gain=np.where(ask | copy | ~inner, 0.0, self.gain[source]),
            impurityStats=stats,
            rawCount=np.where(copy, 0, np.rint(count)).astype(np.int64),
            leftChild=grown.leftChild,
            rightChild=grown.rightChild,
            featureIndex=np.where(inner, self.feature[source], -1).astype(np.int32),
            numCategories=numCategories,
            values=flat,
            ends=ends,
        )

    def _categories(self, node: int) -> tuple[Array, int]:
        """The categories that go left in Spark, and the number of categories that Spark is to assume.

        org.apache.spark.ml.tree.CategoricalSplit stores the smaller side as a set (the left one, if both are equal) and
        sends all other values to the other side, whether they are categories or not. So the number of categories is
        chosen such that the listed side is the smaller one, which Spark stores.
        """
        found, left = self.sets[node]
        found = np.sort(found)
        if (found != np.floor(found)).any() or (found < 0).any() or (found > LARGEST_CATEGORY).any():
            wrong = found[(found != np.floor(found)) | (found < 0) | (found > LARGEST_CATEGORY)][0]
            raise InputError(
                f"feature {self.feature[node]}: {wrong} is a category, but categories in Spark are whole "
                f"numbers in 0..{LARGEST_CATEGORY}; encode the categories as numbers (StringIndexer in Spark, "
                "OrdinalEncoder in scikit-learn) and train again"
            )
        last = int(found.max(initial=0)) + 1
        if left:
            return found, max(2 * len(found), last, 2)
        number = max(2 * len(found) + 1, last)
        return np.setdiff1d(np.arange(number), found).astype(np.float64), number

    def _with_nan_splits(self) -> "_NanSplitTrees":
        """The trees with the splits for NaN inserted; built level by level, all trees at once."""
        base = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        inner = self.left >= 0
        left, right = np.where(inner, base + self.left, -1), np.where(inner, base + self.right, -1)
        threshold = inner.copy()
        threshold[list(self.sets)] = False
        wants = inner & (self.nanLeft != self.without_missing().nanLeft)
        rank, ranks = self._ranks(base, wants)
        wants, known = wants & (rank >= 0), rank >= 0
        item = self.offsets[:-1].astype(np.int64)
        present, absent = np.zeros((self.trees, ranks), bool), np.zeros((self.trees, ranks), bool)
        levels: list[tuple[Array, ...]] = []
        total = 0
        while len(item):
            rows = np.arange(len(item))
            while (
                skip := inner[item] & known[item] & absent[rows, rank[item]]
            ).any():  # known to be NaN: no split needed
                item = np.where(skip, np.where(self.nanLeft[item], left[item], right[item]), item)
            split = np.flatnonzero(inner[item])
            ask = wants[item] & ~present[rows, rank[item]]
            first = total + len(item)
            children = np.full((2, len(item)), -1)
            children[:, split] = first + np.arange(2 * len(split)).reshape(2, -1)
            levels.append((item, ask, absent.any(1), *children))
            total = first
            if total > GROWTH * len(self.left):
                raise InputError(
                    f"keeping the path of NaN would make the trees more than {GROWTH} times as large "
                    f"({len(self.left)} nodes now); if your rows have no NaN, set missing='absent'"
                )
            asked, source = ask[split], item[split]
            seen, unseen = present[split], absent[split]
            at, lanes = rank[source], np.arange(len(split))
            seenLeft, unseenRight = seen.copy(), unseen.copy()
            now = known[source] & (asked | threshold[source])  # x <= threshold, or x <= infinity: x isn't NaN
            seenLeft[lanes[now], at[now]] = True
            unseenRight[lanes[asked], at[asked]] = True
            side = np.where(self.nanLeft[source], left[source], right[source])
            item = np.concatenate([np.where(asked, source, left[source]), np.where(asked, side, right[source])])
            present, absent = np.concatenate([seenLeft, seen]), np.concatenate([unseen, unseenRight])
        return _NanSplitTrees.of(levels, self.trees)

    def _ranks(self, base: Array, wants: Array) -> tuple[Array, int]:
        """Number each tree's features that need splits for NaN, from 0.

        Returns:
            (N,) int, the number of each node's feature, -1 if the feature needs no such splits or the node is a leaf; and
            the largest count of numbers in a tree, at least 1.
        """
        width = int(self.feature.max(initial=0)) + 1
        key = base * width + np.maximum(self.feature, 0)
        asked = np.unique(key[wants])
        if not len(asked):
            return np.full(len(base), -1), 1
        _, begin, inverse = np.unique(asked // width, return_index=True, return_inverse=True)
        number = np.arange(len(asked)) - begin[inverse]
        at = np.minimum(np.searchsorted(asked, key), len(asked) - 1)
        return np.where((asked[at] == key) & (self.left >= 0), number[at], -1), int(number.max()) + 1


@dataclasses.dataclass(frozen=True)
class _NanSplitTrees:
    """The M nodes of trees with inserted splits for NaN, in Spark's order.

    Attributes:
        source: the node of TreeArrays from which each node was made.
        ask: whether a node is an inserted split for NaN.
        copy: whether a node is in a copied subtree that only NaN reaches.
        leftChild, rightChild: children, counted from the first node of the tree; -1 at leaves.
        offsets: index of the first node of each tree, and M.
    """

    source: Array
    ask: Array
    copy: Array
    leftChild: Array
    rightChild: Array
    offsets: Array

    @staticmethod
    def of(levels: list[tuple[Array, ...]], trees: int) -> "_NanSplitTrees":
        """The trees of these levels, whose nodes name their children by their number, counted level by level."""
        source, ask, copy, left, right = (np.concatenate(column) for column in zip(*levels, strict=True))
        edges = np.cumsum([0, *(len(level[0]) for level in levels)])
        size, place = np.ones(len(source), np.int64), np.zeros(len(source), np.int64)
        for first, last in zip(edges[-2::-1], edges[:0:-1], strict=True):
            has = first + np.flatnonzero(left[first:last] >= 0)
            size[has] += size[left[has]] + size[right[has]]
        offsets = np.cumsum([0, *size[:trees]])
        place[:trees] = offsets[:-1]
        for first, last in itertools.pairwise(edges.tolist()):
            has = first + np.flatnonzero(left[first:last] >= 0)
            place[left[has]] = place[has] + 1
            place[right[has]] = place[has] + 1 + size[left[has]]
        order, roots = np.argsort(place), np.repeat(offsets[:-1], np.diff(offsets))
        leftChild, rightChild = (
            np.where(side[order] >= 0, place[side[order]] - roots, -1).astype(np.int32) for side in (left, right)
        )
        return _NanSplitTrees(source[order], ask[order], copy[order], leftChild, rightChild, offsets)


def _moments(count: Array, value: Array, impurity: Array) -> Array:
    """Count, sum and sum of squares (N, 3) of rows with this count, mean and variance."""
    return np.stack([count, count * value, count * (value**2 + impurity)], 1)


def rounding_to(limit: Array) -> Array:
    """(n,) float32 -> (n,) float64: the largest double that rounds to at most this number (IEEE 754, half to even)."""
    limit = np.asarray(limit, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        above = np.nextafter(limit, np.float32(np.inf))
        low, high = limit.astype(np.float64), above.astype(np.float64)
        step = 2.0**104  # from the largest float32 to the next power of two, which would be infinity
        high = np.where(np.isposinf(high), np.float64(np.finfo(np.float32).max) + step, high)
        low = np.where(np.isneginf(low), np.float64(np.finfo(np.float32).min) - step, low)
        middle = low + (high - low) / 2
        middle = np.where(middle.astype(np.float32) <= limit, middle, np.nextafter(middle, -np.inf))
    return np.where(np.isposinf(limit), np.inf, middle)


def below(threshold: Array) -> Array:
    """(n,) float64 -> (n,) float32: the largest float32 that is at most this number."""
    with np.errstate(over="ignore"):
        near = np.asarray(threshold, np.float64).astype(np.float32)
        return np.where(near.astype(np.float64) > threshold, np.nextafter(near, np.float32(-np.inf)), near)
