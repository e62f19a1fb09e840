"""Reader of LightGBM's trees from the text form of its models, whose 17 digits restore every double exactly."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparkdiff.errors import InputError
from sparkdiff.importers.tree_ensembles import (
    GAMMA,
    IDENTITY,
    LOGIT,
    POISSON,
    BoostedTrees,
    classes_of,
    is_booster,
    tweedie,
)
from sparkdiff.importers.trees import TreeArrays
from sparkdiff.jvm.nodes import Array

IDENTITIES = (
    "regression",
    "regression_l1",
    "huber",
    "fair",
    "quantile",
    "mape",
    "lambdarank",
    "rank_xendcg",
)
LINKS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(IDENTITIES, IDENTITY),
    "poisson": POISSON,
    "gamma": GAMMA,
    "cross_entropy": LOGIT,
    "binary": LOGIT,
}
CLASSES = ("binary", "multiclass", "cross_entropy")
"""Objectives of classifiers; cross_entropy counts only if the model is an LGBMClassifier."""
KNOWN = (*LINKS, "tweedie", "multiclass")
ZERO = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold: values of features up to this absolute value count as 0."""
CATEGORICAL, DEFAULT_LEFT = 1, 2
NO_MISSING, ZERO_MISSING, NAN_MISSING = 0, 1, 2


def read(model: Any, *, whole: bool) -> BoostedTrees:
    """The trees of a Booster or a fitted LGBM estimator that its `predict` sums, i.e. up to the best iteration, if
    known.

    Args:
        whole: whether categorical features of the rows are whole numbers.

    Raises:
        InputError: `model` is no such model, or MLlib cannot express it.
    """
    booster = model if is_booster(model, "lightgbm", "LGBM", "model_to_string") else model.booster_
    text = booster.model_to_string()
    about = _fields(_sections(text)[0])
    name, _, options = about.get("objective", "").partition(" ")
    if name not in KNOWN or "sqrt" in options.split():
        raise InputError(
            f"LightGBM's objective {about.get('objective', 'of your own')!r} has no known link in MLlib; known "
            f"objectives: {', '.join(KNOWN)}"
        )
    trees = trees_of(text, whole=whole)
    outputs = int(about["num_tree_per_iteration"])
    weights = np.full(len(trees), outputs / len(trees) if "average_output" in about else 1.0)
    of_classes = CLASSES if hasattr(model, "classes_") else CLASSES[:2]
    if name == "binary":  # p = sigmoid(sigmoid * margin)
        weights = weights * float(dict(o.split(":") for o in options.split())["sigmoid"])
    return BoostedTrees(
        trees=trees,
        treeWeights=weights,
        output=np.arange(len(trees)) % outputs,
        base=np.zeros(outputs),
        numFeatures=int(about["max_feature_idx"]) + 1,
        link=_link(name, text),
        classes=classes_of(model, booster, int(about["num_class"]), name, known=of_classes),
    )


def trees_of(text: str, *, whole: bool) -> list[TreeArrays]:
    """The trees in the text form of a Booster with any objective, in the order of iterations: k trees each if it has k
    margins.

    Raises:
        InputError: MLlib cannot express a tree.
    """
    return [_tree(_fields(section), whole=whole) for section in _sections(text)[1:]]


def _sections(text: str) -> list[str]:
    """The sections of a saved Booster's text: first its header, then one per tree."""
    return re.split(r"\nTree=\d+\n", text.split("\nend of trees", 1)[0])


def _link(name: str, text: str) -> Mapping[str, Any]:
    if name != "tweedie":
        return LINKS.get(name, IDENTITY)
    power = re.search(r"^\[tweedie_variance_power: (.*)\]$", text, re.MULTILINE)
    return tweedie(float(power[1]) if power else 1.5)


def _fields(section: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in section.splitlines())


def _numbers(fields: Mapping[str, str], name: str, kind: Any = np.float64) -> Array:
    return np.array(fields.get(name, "").split(), kind)


def _tree(fields: Mapping[str, str], *, whole: bool) -> TreeArrays:
    """The arrays of one tree: its inner nodes, beginning with the root, then its leaves."""
    if fields.get("is_linear", "0") == "1":
        raise InputError("LightGBM's linear_tree has a regression in each leaf, but a leaf in Spark has one value")
    leaves = _numbers(fields, "leaf_value")
    inner, zeros = len(leaves) - 1, np.zeros(len(leaves))
    if not inner:
        return TreeArrays.constant(float(leaves[0]))
    kind = _numbers(fields, "decision_type", np.int64)
    threshold, missing = _numbers(fields, "threshold"), kind >> 2 & 3
    feature = _numbers(fields, "split_feature", np.int64)
    categorical, left = kind & CATEGORICAL != 0, kind & DEFAULT_LEFT != 0
    if categorical.any() and not whole:
        raise InputError(
            f"feature {feature[categorical][0]} is categorical: LightGBM treats 3.7 as category 3, Spark does "
            "not; if this feature holds only whole numbers, set categories='whole'"
        )
    zero = threshold >= 0
    bad = ~categorical & (missing == ZERO_MISSING) & (left != zero)
    if bad.any():
        raise InputError(
            f"feature {feature[bad][0]}: with zero_as_missing a split sends zeros to another side than the numbers just above "
            "and below zero, and a split in Spark cannot do this; train with zero_as_missing=false"
        )
    # LightGBM treats all of [-ZERO, ZERO] as 0, and NaN as 0 unless the feature has missing values.
    near = ~categorical & (np.abs(threshold) <= ZERO)
    threshold = np.where(near, np.where(zero, ZERO, np.nextafter(-ZERO, -np.inf)), threshold)
    nanLeft = ~categorical & np.where(missing == NO_MISSING, zero, left)
    bounds, words = _numbers(fields, "cat_boundaries", np.int64), _numbers(fields, "cat_threshold", np.uint32)
    sets = {}
    for j in np.flatnonzero(categorical).tolist():
        each = int(threshold[j])  # index of the node's list of categories
        bits = np.unpackbits(words[bounds[each] : bounds[each + 1]].astype("<u4").view(np.uint8), bitorder="little")
        sets[j] = (np.flatnonzero(bits).astype(np.float64), True)
    count = np.concatenate([_numbers(fields, "internal_count"), _numbers(fields, "leaf_count")])
    gain = np.concatenate([_numbers(fields, "split_gain"), zeros]) / np.maximum(count, 1)
    children = [np.concatenate([_numbers(fields, f"{side}_child", np.int64), zeros - 1]) for side in ("left", "right")]
    for child in children:  # ~leaf
        child[:inner] = np.where(child[:inner] < 0, inner + ~child[:inner].astype(np.int64), child[:inner])
    return TreeArrays(
        offsets=np.array([0, 2 * inner + 1]),
        left=children[0].astype(np.int64),
        right=children[1].astype(np.int64),
        feature=np.concatenate([feature, zeros.astype(np.int64) - 1]),
        threshold=np.concatenate([threshold, zeros]),
        nanLeft=np.concatenate([nanLeft, zeros > 0]),
        value=np.concatenate([_numbers(fields, "internal_value"), leaves]),
        impurity=np.zeros(2 * inner + 1),
        gain=np.maximum(gain, 0),
        count=count,
        sets=sets,
    )
