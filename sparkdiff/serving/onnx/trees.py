"""Trees as one TreeEnsemble node in double, which outputs each tree's leaf, and a table of the leaves' contributions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparkdiff.jvm.nodes import Array, Nodes
from sparkdiff.serving.onnx.graph import GraphWriter, Value, as_array
from sparkdiff.serving.onnx.stages import Nulls, class_of, first_largest, output_columns, writes
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import ProbabilisticClassifier
from sparkdiff.stages.trees import (
    ClassifyingTrees,
    DecisionTreeClassification,
    DecisionTreeRegression,
    GBTClassification,
    GBTRegression,
    RandomForestClassification,
    RandomForestRegression,
)

AT_MOST, MEMBER = 0, 6
"""Modes of a node: x <= split, and x in a set."""


def leaves_of(g: GraphWriter, m: Trees, x: Value) -> Value:
    """Index of the leaf that each row reaches in each tree, (n, T); leaves are numbered across all trees."""
    h, nodes = g.onnx.helper, m.written_nodes()
    inner, owner = ~nodes.leaf, nodes.roots()
    first = nodes.offsets[:-1]
    alone = first[nodes.leaf[first]]  # trees of one leaf: preceded by a node with that leaf on both sides
    place = np.where(inner, np.cumsum(inner) - 1, np.cumsum(nodes.leaf) - 1)
    place_of_alone = int(inner.sum()) + np.arange(len(alone))
    members, turned, empty = sets_of(nodes)
    sides = [(nodes.leftChild + owner)[inner], (nodes.rightChild + owner)[inner]]
    sides = [np.where(turned[inner], b, a) for a, b in (sides, sides[::-1])]
    sides = [np.concatenate([side, alone]) for side in sides]
    member = nodes.categorical & ~empty
    mode = np.concatenate([np.where(member[inner], MEMBER, AT_MOST), np.zeros(len(alone))])
    split = np.where(nodes.continuous, first_values(nodes), np.where(empty, np.nan, 0.0))  # nothing is at most NaN
    split = np.concatenate([split[inner], np.zeros(len(alone))])
    feature = np.concatenate([nodes.featureIndex[inner], np.zeros(len(alone), np.int64)])
    roots = place[first].copy()
    roots[nodes.leaf[first]] = place_of_alone
    tree = np.repeat(np.arange(nodes.trees), np.diff(nodes.offsets))[nodes.leaf]
    settings: dict[str, Any] = {
        "tree_roots": roots,
        "nodes_featureids": feature,
        "nodes_truenodeids": place[sides[0]],
        "nodes_trueleafs": nodes.leaf[sides[0]],
        "nodes_falsenodeids": place[sides[1]],
        "nodes_falseleafs": nodes.leaf[sides[1]],
        "leaf_targetids": tree,
    }
    return g.node(
        "TreeEnsemble",
        [x],
        nodes.trees,
        domain="ai.onnx.ml",
        n_targets=nodes.trees,
        aggregate_function=1,
        post_transform=0,
        nodes_splits=g.tensor("", split.astype(np.float64)),
        nodes_modes=h.make_tensor("", g.onnx.TensorProto.UINT8, [len(mode)], mode.astype(np.uint8).tolist()),
        leaf_weights=g.tensor("", np.arange(len(tree), dtype=np.float64)),
        **({"membership_values": g.tensor("", members)} if len(members) else {}),
        **{name: np.asarray(value).astype(np.int64).tolist() for name, value in settings.items()},
    )


def first_values(nodes: Nodes) -> Array:
    """First of the split values of each node, (N,): the threshold of a node with a continuous split."""
    values = np.append(nodes.values, 0.0)
    return values[np.minimum(nodes.starts, len(values) - 1)]


def sets_of(nodes: Nodes) -> tuple[Array, Array, Array]:
    """Category sets of the nodes with categorical splits.

    A value that is no category goes right if at most half of the categories go left, else left (stages/routing.py,
    Subsets). So that such a value takes this way in ONNX, where it is in no set, the set written is the set of
    categories that go the other way.

    Returns:
        The sets, each ended by NaN; flags (N,) of the nodes whose written set goes right; and flags (N,) of the nodes
        with empty sets, which onnxruntime doesn't accept.
    """
    turned, empty, members = np.zeros(len(nodes), bool), np.zeros(len(nodes), bool), []
    for i in np.flatnonzero(nodes.categorical):
        left, size = nodes.values[nodes.starts[i] : nodes.ends[i]], int(nodes.numCategories[i])
        turned[i] = len(left) > size // 2
        written = np.setdiff1d(np.arange(size), left) if turned[i] else np.sort(left)
        empty[i] = not len(written)
        members += [] if empty[i] else [*written, np.nan]
    return np.array(members, np.float64), turned, empty


def total_of(g: GraphWriter, m: Trees, leaves: Value) -> Value:
    """Sums over all trees of the leaves' contributions, (n, 1) or (n, k), added from the first tree to the last, as in
    Spark.
    """
    table = as_array(m.table())
    held = table[:, None] if table.ndim == 1 else table
    trees, k = m.nodes.trees, held.shape[1]
    parts = g.node("Gather", [g.constant(held), leaves.to("int64")], k, axis=0)  # (n, T, k)
    sums = g.node("CumSum", [parts, g.constant(np.int64(1))], k)
    return g.node("Gather", [sums, g.constant(np.int64(trees - 1))], k, axis=1)


def normalised(g: GraphWriter, weights: Value) -> Value:
    total = weights.sum()
    return weights / g.where(total.equals(0.0), 1.0, total)


def scores(g: GraphWriter, m: ClassifyingTrees, total: Value) -> tuple[Value, Value]:
    """rawPrediction and probability, (n, k) each."""
    if not isinstance(m, GBTClassification):
        return total, normalised(g, total)
    half, zero = total / 2.0, 1.0 / (total.exp() + 1.0)
    return g.beside([-half, half]), g.beside([zero, 1.0 - zero])


def leaf_column(m: Trees, leaves: Value) -> Value:
    return leaves - as_array(m.first).astype(np.float64)


@writes(GBTRegression, RandomForestRegression, DecisionTreeRegression)
def tree_regression(g: GraphWriter, m: Any, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    leaves = leaves_of(g, m, xs[0])
    total = total_of(g, m, leaves)
    total = total / float(m.nodes.trees) if isinstance(m, RandomForestRegression) else total
    out = {"predictionCol": total, "leafCol": leaf_column(m, leaves)}
    if "varianceCol" in m.shown:
        out["varianceCol"] = leaves.gather_from(m.variances(), 1)
    return output_columns(m, *(out.get(name, total) for name in m.SHOWN))


@writes(GBTClassification, RandomForestClassification, DecisionTreeClassification)
def tree_classification(g: GraphWriter, m: Any, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    leaves = leaves_of(g, m, xs[0])
    raw, probability = scores(g, m, total_of(g, m, leaves))
    return output_columns(m, raw, probability, label(g, m, raw, probability), leaf_column(m, leaves))


def label(g: GraphWriter, m: ProbabilisticClassifier, raw: Value, probability: Value) -> Value:
    bare = isinstance(m, DecisionTreeClassification) and {"rawPredictionCol", "probabilityCol"}.isdisjoint(m.shown)
    return first_largest(g, raw) if bare else class_of(g, m, raw, probability)


def votes_for_one(g: GraphWriter, m: ClassifyingTrees, x: Value) -> Value:
    """rawPrediction of class 1 of a tree classifier, (n, 1)."""
    raw, _ = scores(g, m, total_of(g, m, leaves_of(g, m, x)))
    return raw.column(1)
