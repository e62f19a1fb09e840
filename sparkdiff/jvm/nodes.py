"""The nodes of decision trees as arrays, in the form of Spark's constructors and saved models."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparkdiff.errors import InputError

Array = np.ndarray[Any, Any]
SCALARS = {
    "prediction": np.float64,
    "impurity": np.float64,
    "gain": np.float64,
    "rawCount": np.int64,
    "leftChild": np.int32,
    "rightChild": np.int32,
}

DEEPEST = 1000
"""Largest depth of a tree: far beyond that of trees of MLlib, and read without a long wait."""


@dataclasses.dataclass(frozen=True)
class Nodes:
    """All N nodes of T trees, tree after tree, in pre-order: a left child follows its parent.

    Fields with Spark's names have Spark's meaning. A leaf has featureIndex, leftChild and rightChild -1 and no values.
    An inner node of a continuous feature has one value, its threshold (x <= threshold goes left); an inner node of a
    categorical feature (numCategories >= 0) has the categories that go left.

    Source: org.apache.spark.ml.tree.DecisionTreeModelReadWrite.NodeData and SplitData.

    Attributes:
        offsets: (T + 1,) int64, start of each tree's nodes.
        prediction, impurity, gain: (N,) float64.
        impurityStats: (N, s) float64; s classes, or (count, sum, sum of squares) of a regression.
        rawCount: (N,) int64 training rows.
        leftChild, rightChild: (N,) int32, counted from the tree's first node.
        featureIndex, numCategories: (N,) int32; numCategories is -1 for nodes without categories.
        values: (V,) float64, concatenated `leftCategoriesOrThreshold` of all nodes.
        ends: (N,) int64, end of each node's part of `values`.
    """

    offsets: Array
    prediction: Array
    impurity: Array
    gain: Array
    impurityStats: Array
    rawCount: Array
    leftChild: Array
    rightChild: Array
    featureIndex: Array
    numCategories: Array
    values: Array
    ends: Array

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def trees(self) -> int:
        return len(self.offsets) - 1

    @property
    def leaf(self) -> Array:
        """Mask of the leaves, (N,) bool."""
        return np.asarray(self.leftChild < 0)

    @property
    def starts(self) -> Array:
        """Start of each node's part of `values`, (N,) int64."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    @property
    def continuous(self) -> Array:
        """Mask of the inner nodes with a threshold, which is `values[starts]`; (N,) bool."""
        return np.asarray(~self.leaf & (self.numCategories < 0))

    def roots(self) -> Array:
        """Index of the root of each node's tree, from which `leftChild` and `rightChild` are counted; (N,) int64."""
        return np.repeat(self.offsets[:-1], np.diff(self.offsets))

    @property
    def categorical(self) -> Array:
        """Mask of the inner nodes with a set of categories, (N,) bool."""
        return np.asarray(~self.leaf & (self.numCategories >= 0))

    def depth(self) -> Array:
        """Depth of each node, (N,) int64; 0 at the roots.

        Raises:
            InputError: a tree is deeper than DEEPEST.
        """
        depth = np.full(len(self), -1, np.int64)
        level, at = 0, self.offsets[:-1]
        root = self.roots()
        while len(at):
            if level > DEEPEST:
                raise InputError(f"a tree has more than {DEEPEST:,} levels, and MLlib grows at most 30")
            depth[at] = level
            inner = at[~self.leaf[at]]
            level, at = (
                level + 1,
                np.concatenate([root[inner] + side[inner] for side in (self.leftChild, self.rightChild)]),
            )
        return depth

    def __deepcopy__(self, memo: Any) -> "Nodes":
        return self  # nodes are never changed

    def replace(self, **fields: Array) -> "Nodes":
        return dataclasses.replace(self, **fields)

    @staticmethod
    def of(trees: Iterable[Sequence[Mapping[str, Any]]]) -> "Nodes":
        """Nodes from Spark's records, a list per tree in the order of their `id`."""
        trees = list(trees)
        records = [node for tree in trees for node in tree]
        splits = [node["split"] for node in records]
        values = [split["leftCategoriesOrThreshold"] for split in splits]
        return Nodes(
            offsets=np.cumsum([0, *map(len, trees)]),
            impurityStats=np.array([node["impurityStats"] for node in records], np.float64),
            featureIndex=np.array([split["featureIndex"] for split in splits], np.int32),
            numCategories=np.array([split["numCategories"] for split in splits], np.int32),
            values=np.array([v for part in values for v in part], np.float64),
            ends=np.cumsum([len(part) for part in values]).astype(np.int64),
            **{name: np.array([node[name] for node in records], kind) for name, kind in SCALARS.items()},
        )

    def records(self) -> list[list[dict[str, Any]]]:
        """Spark's records of each tree; NaN and infinite values are text, because JSON has no numbers for them."""
        columns = {name: _json_list(getattr(self, name)) for name in SCALARS}
        stats, values = [_json_list(row) for row in self.impurityStats], _json_list(self.values)
        feature, categories = self.featureIndex.tolist(), self.numCategories.tolist()
        starts, ends = self.starts.tolist(), self.ends.tolist()
        return [
            [
                {
                    "id": j - first,
                    **{name: column[j] for name, column in columns.items()},
                    "impurityStats": stats[j],
                    "split": {
                        "featureIndex": feature[j],
                        "leftCategoriesOrThreshold": values[starts[j] : ends[j]],
                        "numCategories": categories[j],
                    },
                }
                for j in range(first, last)
            ]
            for first, last in itertools.pairwise(self.offsets.tolist())
        ]

    @staticmethod
    def join(parts: "Sequence[Nodes]") -> "Nodes":
        """Trees of all parts, one after the other."""
        joined = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Nodes)
            if field.name not in ("offsets", "ends")
        }
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        lengths = np.concatenate([part.ends - part.starts for part in parts])
        return Nodes(offsets=np.cumsum([0, *sizes]), ends=np.cumsum(lengths), **joined)

    def check(self, numFeatures: int, name: str) -> None:
        """Raise InputError if these are not valid trees on vectors of `numFeatures` entries. With invalid trees Spark
        would fail on rows, or the search for a leaf would never end.

        Args:
            name: name of the model, for the message.
        """
        n, own = len(self), np.diff(self.offsets)
        if (
            self.offsets[0] != 0
            or ((own < 1) | (own > n)).any()
            or own.sum() != n  # before np.repeat
            or {a.shape for k, a in vars(self).items() if k not in ("offsets", "impurityStats", "values")} != {(n,)}
            or self.impurityStats.shape[:1] != (n,)
        ):
            raise InputError(f"{name}: its arrays are not those of {len(own)} trees with {n} nodes")
        inner = ~self.leaf
        number, sizes = np.arange(n) - self.roots(), np.repeat(own, own)
        children = np.concatenate([(self.roots() + side)[inner] for side in (self.leftChild, self.rightChild)])
        wrong = {
            "feature does not exist": inner & ((self.featureIndex < 0) | (self.featureIndex >= numFeatures)),
            "left child is not the next node": inner & (self.leftChild != number + 1),
            "right child is not a later node": inner & ((self.rightChild <= number + 1) | (self.rightChild >= sizes)),
            "place is not below one node": np.bincount(children.clip(0, n - 1), minlength=n) != (number > 0),
        }
        for what, nodes in wrong.items():
            if nodes.any():
                j = int(np.flatnonzero(nodes)[0])
                tree = int(np.searchsorted(self.offsets, j, side="right")) - 1
                raise InputError(
                    f"{name}: node {number[j]} of tree {tree} splits feature {self.featureIndex[j]} of {numFeatures}: its {what}"
                )


def _json_list(array: Array) -> list[Any]:
    values = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [v if math.isfinite(v) else "NaN" if v != v else "Infinity" if v > 0 else "-Infinity" for v in values]
    return list(values)
