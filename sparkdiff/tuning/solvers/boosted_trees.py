"""Gradient-boosted trees grown as Spark grows them, on rows in memory.

Spark runs several jobs for each level of each tree, which on ten thousand rows takes ten times as long as the sums that they
compute. Here the same sums choose the same splits, unless two splits are equally good up to rounding. There is one difference:
where Spark draws rows to choose candidate thresholds (more than 10,000 rows and the square of maxBins), all rows are used.

Source: GradientBoostedTrees.boost, RandomForest.findSplits and binsToBestSplit in org.apache.spark.ml.tree.impl, and
org.apache.spark.mllib.tree.loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparkdiff.jvm.nodes import Array, Nodes

EPSILON = float(np.finfo(np.float64).eps)
"""Impurity below which Spark splits a node no further."""


@dataclass(frozen=True)
class BoostingParams:
    """Params of a GBTRegressor or GBTClassifier, under Spark's names.

    Attributes:
        loss: "squared", "absolute" or "logistic".
    """

    loss: str
    maxIter: int
    stepSize: float
    maxDepth: int
    maxBins: int
    minInstancesPerNode: int
    minWeightFractionPerNode: float
    minInfoGain: float


@dataclass(frozen=True)
class _Feature:
    """A feature whose values are replaced by the numbers of their bins.

    Attributes:
        bins: (n,), the bin of each row.
        number: number of bins.
        thresholds: the largest value of each bin but the last; None for a category, whose values are the bins.
    """

    bins: Array
    number: int
    thresholds: Array | None


def thresholds_of(values: Array, weights: Array, maxBins: int) -> Array:
    """Candidate thresholds of a number: means of neighbouring values, at most maxBins - 1, at about equal distances in weight."""
    distinct, at = np.unique(values + 0.0, return_inverse=True)
    middles = (distinct[:-1] + distinct[1:]) / 2
    if len(middles) < maxBins:
        return np.asarray(middles)
    counts = np.cumsum(np.bincount(at, weights))
    halves, stride = (counts[:-1] + counts[1:]) / 2, weights.sum() / maxBins
    # A value ends a bin if the weight up to it is nearer to the goal than the weight up to the next value.
    chosen, goal = list[int](), stride
    while (i := max(chosen[-1] + 1 if chosen else 0, int(np.searchsorted(halves, goal, "right")))) < len(halves):
        chosen.append(i)
        goal += stride
    return np.asarray(middles[chosen])


def _feature(values: Array, weights: Array, levels: int, maxBins: int) -> _Feature:
    if levels > 1:
        return _Feature(values.astype(np.int64), levels, None)
    thresholds = thresholds_of(values, weights, maxBins) if levels == 0 else np.zeros(0)
    return _Feature(np.searchsorted(thresholds, values), len(thresholds) + 1, thresholds)


def _impurity(stats: Array) -> Array:
    """Variance of the targets, from sums (..., 4) of weights, weighted targets and weighted squares, and numbers of rows."""
    count, total, squares = stats[..., 0], stats[..., 1], stats[..., 2]
    some = np.where(count == 0, 1.0, count)
    return np.where(count == 0, 0.0, (squares - total * total / some) / some)


def _mean(stats: Array) -> Array:
    count = stats[..., 0]
    return np.where(count == 0, 0.0, stats[..., 1] / np.where(count == 0, 1.0, count))


@dataclass
class _Node:
    """A node of a growing tree.

    Attributes:
        stats: (4,), see `_impurity`.
        refused: True if no split was allowed; Spark then forgets the node's impurity.
        split: the feature, and its threshold or the categories that go left; None for a leaf.
    """

    stats: Array
    gain: float = -1.0
    refused: bool = False
    split: tuple[int, float | list[float]] | None = None
    children: list["_Node"] = field(default_factory=list)


def _best_splits(
    feature: _Feature, stats: Array, parents: Array, params: BoostingParams, least: float
) -> tuple[Any, ...]:
    """The best split of each node by one feature.

    Args:
        stats: (m, bins, 4), sums of each node's rows by bin.
        parents: (m,), impurity of each node.
        least: smallest weight of a child.

    Returns:
        The gain (m,), minus infinity if no split is allowed; the position (m,) of the last bin that goes left; the order
        (m, bins) of the bins; and the sums of the left and of the right child, (m, 4) each.
    """
    nodes = np.arange(len(stats))
    order = np.broadcast_to(np.arange(feature.number), stats.shape[:2])
    if feature.thresholds is None:
        means = np.where(stats[..., 0] == 0, np.finfo(np.float64).max, _mean(stats))
        order = np.argsort(means, axis=1, kind="stable")
        stats = np.take_along_axis(stats, order[..., None], axis=1)
    sums = np.cumsum(stats, axis=1)
    left, right = sums[:, :-1], sums[:, -1:] - sums[:, :-1]
    total = left[..., 0] + right[..., 0]
    parts = [x[..., 0] / total * _impurity(x) for x in (left, right)]
    gains = parents[:, None] - parts[0] - parts[1]
    few = [(x[..., 3] < params.minInstancesPerNode) | (x[..., 0] < least) for x in (left, right)]
    gains = np.where(few[0] | few[1] | (gains < params.minInfoGain), -np.inf, gains)
    at = gains.argmax(axis=1)
    return gains[nodes, at], at, order, left[nodes, at], right[nodes, at]


def _grow(features: Sequence[_Feature], target: Array, weights: Array, params: BoostingParams) -> tuple[_Node, Array]:
    """Grow one tree; return its root, and its prediction for each row."""
    values = [weights, weights * target, weights * target * target, np.ones_like(weights)]
    least = params.minWeightFractionPerNode * weights.sum()
    root = _Node(np.array([v.sum() for v in values]))
    level, place = [root], np.zeros(len(target), np.int64)  # each row's node of the level, -1 if that is final
    found = np.full(len(target), _mean(root.stats))
    for _ in range(params.maxDepth):
        rows = np.flatnonzero(place >= 0)
        if not level or not len(rows):
            break
        parents, m = _impurity(np.array([node.stats for node in level])), len(level)
        own, mine = place[rows], [v[rows] for v in values]
        best = np.full(m, -np.inf)
        chosen: list[Any] = [None] * m
        for j, feature in enumerate(features):
            if feature.number < 2:
                continue
            keys, size = own * feature.number + feature.bins[rows], m * feature.number
            stats = np.stack([np.bincount(keys, v, size) for v in mine], axis=1).reshape(m, feature.number, 4)
            gains, at, order, left, right = _best_splits(feature, stats, parents, params, least)
            for i in np.flatnonzero(gains > best):
                best[i], chosen[i] = gains[i], (j, order[i, : at[i] + 1], left[i], right[i])
        for i in np.flatnonzero(np.isinf(best)):
            level[i].refused = True
        below: list[_Node] = []
        places = np.full(len(target), -1, np.int64)
        by_node, ends = rows[np.argsort(own, kind="stable")], np.cumsum(np.bincount(own, minlength=m))
        for i in np.flatnonzero(best > 0):
            j, first, *sums = chosen[i]
            node, feature = level[i], features[j]
            node.gain, node.children = float(best[i]), [_Node(s) for s in sums]
            limit = float(feature.thresholds[first[-1]]) if feature.thresholds is not None else None
            node.split = j, limit if limit is not None else first.astype(float).tolist()
            here = by_node[ends[i - 1] if i else 0 : ends[i]]
            goes = np.isin(feature.bins[here], first) if limit is None else feature.bins[here] <= first[-1]
            for child, part in zip(node.children, (here[goes], here[~goes]), strict=True):
                found[part] = _mean(child.stats)
                if not abs(_impurity(child.stats)) < EPSILON:
                    places[part] = len(below)
                    below.append(child)
        level, place = below, places
    return root, found


def _records(node: _Node, levels: Sequence[int], out: list[dict[str, Any]]) -> float | None:
    """Append Spark's records of a node and of all nodes below; return the prediction if it is a leaf.

    Like Spark, two leaves with the same prediction become one.
    """
    own, prediction = len(out), float(_mean(node.stats))
    record: dict[str, Any] = {
        "prediction": prediction,
        "impurity": -1.0 if node.refused else float(_impurity(node.stats)),
        "gain": -1.0,
        "impurityStats": node.stats[:3],
        "rawCount": int(node.stats[3]),
        "leftChild": -1,
        "rightChild": -1,
        "split": {"featureIndex": -1, "leftCategoriesOrThreshold": [], "numCategories": -1},
    }
    out.append(record)
    if node.split is None:
        return prediction
    leaves, starts = [], []
    for child in node.children:
        starts.append(len(out))
        leaves.append(_records(child, levels, out))
    if leaves[0] is not None and leaves[0] == leaves[1]:
        del out[own + 1 :]
        record["prediction"] = leaves[0]
        return leaves[0]
    j, limit = node.split
    sides = [limit] if isinstance(limit, float) else limit
    record |= {
        "gain": node.gain,
        "leftChild": starts[0],
        "rightChild": starts[1],
        "split": {
            "featureIndex": j,
            "leftCategoriesOrThreshold": sides,
            "numCategories": -1 if isinstance(limit, float) else levels[j],
        },
    }
    return None


def pseudo_residuals(loss: str) -> Callable[[Array, Array], Array]:
    """Function (label, prediction) -> the negative gradient of Spark's loss, which the next tree is fitted to."""
    if loss == "squared":
        return lambda y, p: 2.0 * (y - p)
    if loss == "absolute":
        return lambda y, p: np.where(y - p < 0, -1.0, 1.0)
    return lambda y, p: 4.0 * y / (1.0 + np.exp(2.0 * y * p))


def boost(
    features: Array, levels: Sequence[int], label: Array, weights: Array, params: BoostingParams
) -> tuple[Nodes, Array]:
    """Fit boosted trees.

    Args:
        features: (n, d).
        levels: number of values of each feature; 0 for a number, as in the metadata of the vectors.
        label: (n,); for "logistic" 0 and 1.
        weights: (n,), positive.

    Returns:
        The trees, and their weights (T,).
    """
    most = min(params.maxBins, len(label))
    binned = [_feature(features[:, j], weights, k, most) for j, k in enumerate(levels)]
    label = 2 * label - 1 if params.loss == "logistic" else label
    residuals = pseudo_residuals(params.loss)
    treeWeights = np.array([1.0] + [params.stepSize] * (params.maxIter - 1))
    records: list[list[dict[str, Any]]] = []
    target, prediction = label, np.zeros(len(label))
    for weight in treeWeights:
        root, found = _grow(binned, target, weights, params)
        records.append([])
        _records(root, levels, records[-1])
        prediction = prediction + found * weight
        with np.errstate(over="ignore"):
            target = residuals(label, prediction)
    return Nodes.of(records), treeWeights
