"""A test whether Spark grew the trees of a fitted stage with the stage's Params, or whether they come from elsewhere.

Trees that were imported from another library have Params that did not grow them. Trees that Spark grows have some
properties that follow from the Params; if one is missing, growing again with these Params would give other trees.
Trees of scikit-learn may have all of these properties, because the Params then have their depth and number.
"""

from typing import Any

import numpy as np

from sparkdiff.jvm import trees
from sparkdiff.jvm.nodes import Nodes


def is_trees(stage: Any) -> bool:
    """True if a fitted stage is a tree or an ensemble of trees."""
    return bool(stage.hasParam("maxBins") and stage.hasParam("maxDepth"))


def why_not_grown(stage: Any) -> str:
    """Reason why Spark can't have grown these trees with the Params of a fitted stage; empty if it can."""
    nodes = trees.read(stage)
    boosted, inner = trees.is_boosted(stage), ~nodes.leaf
    if boosted and (why := _why_not_boosted(stage, nodes)):
        return why
    if trees.is_ensemble(stage) and not boosted and nodes.trees != stage.getOrDefault("numTrees"):
        return f"it has {nodes.trees} trees, but numTrees={stage.getOrDefault('numTrees')}"
    if (deepest := int(nodes.depth().max())) > stage.getOrDefault("maxDepth"):
        return f"a tree has depth {deepest}, but maxDepth={stage.getOrDefault('maxDepth')}"
    if inner.any() and float(nodes.gain[inner].min()) <= 0:
        return "a tree has a split that gains nothing, which Spark does not make"
    if (most := _most_thresholds(nodes, together=not boosted)) >= stage.getOrDefault("maxBins"):
        return f"a feature is split at {most} places, but maxBins={stage.getOrDefault('maxBins')}"
    return ""


def _why_not_boosted(stage: Any, nodes: Nodes) -> str:
    """Reason why Spark can't have grown this boosted ensemble; empty if it can. The first tree has weight 1, all
    others the step size.

    Source: org.apache.spark.ml.tree.impl.GradientBoostedTrees.
    """
    weights, step = np.asarray(stage.treeWeights, np.float64), stage.getOrDefault("stepSize")
    if len(weights) > stage.getOrDefault("maxIter"):
        return f"it has {len(weights)} trees, but maxIter={stage.getOrDefault('maxIter')}"
    if not np.allclose(weights, [1.0, *[step] * (len(weights) - 1)], rtol=1e-12, atol=0):
        return f"its trees don't have the weights 1, {step:g}, {step:g}, ... of stepSize={step:g}"
    sizes = np.diff(nodes.offsets)
    return "its first tree is a constant, but not the others" if sizes[0] == 1 < sizes.max() else ""


def _most_thresholds(nodes: Nodes, *, together: bool) -> int:
    """Largest number of thresholds of one feature, in all trees `together` or in each tree; in Spark it is at most
    maxBins - 1.
    """
    at = nodes.continuous
    tree = np.repeat(np.arange(nodes.trees), np.diff(nodes.offsets))[at] * (not together)
    place = np.stack([tree, nodes.featureIndex[at], nodes.values[nodes.starts[at]]])
    distinct = np.unique(place, axis=1)
    _, counts = np.unique(distinct[:2], axis=1, return_counts=True)
    return int(counts.max(initial=0))
