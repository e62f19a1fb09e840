"""Reader of XGBoost's trees from the JSON form of its models, whose numbers restore XGBoost's float32 values exactly."""

import json
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
from sparkdiff.importers.trees import TreeArrays, rounding_to
from sparkdiff.jvm.nodes import Array

IDENTITIES = (
    "reg:squarederror",
    "reg:squaredlogerror",
    "reg:pseudohubererror",
    "reg:absoluteerror",
    "reg:quantileerror",
    "reg:expectileerror",
    "rank:ndcg",
    "rank:map",
    "rank:pairwise",
)
LINKS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(IDENTITIES, IDENTITY),
    "count:poisson": POISSON,
    "reg:gamma": GAMMA,
    "reg:logistic": LOGIT,
    "binary:logistic": LOGIT,
}
CLASSES = ("binary:logistic", "multi:softprob", "multi:softmax", "reg:logistic")
"""Objectives of classifiers; reg:logistic counts only if the model is an XGBClassifier."""
KNOWN = (*LINKS, "reg:tweedie", "multi:softprob", "multi:softmax")


def read(model: Any, *, whole: bool) -> BoostedTrees:
    """The trees that a model's `predict` sums: for an XGB estimator up to the best iteration, if known; for a Booster
    all trees.

    Args:
        whole: whether categorical features of the rows are whole numbers.

    Raises:
        InputError: `model` is no such model, or MLlib cannot express it.
    """
    booster, last = model, None
    if not is_booster(model, "xgboost", "XGB", "save_raw"):
        if model.missing is not None and not np.isnan(model.missing):
            raise InputError(
                f"{type(model).__name__}: missing={model.missing}, but a value other than NaN cannot be "
                "missing in Spark's trees; replace it by NaN and train again"
            )
        booster = model.get_booster()
        last = booster.attr("best_iteration")
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    name, about = learner["objective"]["name"], learner["learner_model_param"]
    if name not in KNOWN:
        raise InputError(f"XGBoost's objective {name} has no known link in MLlib; known objectives: {', '.join(KNOWN)}")
    if int(about.get("num_target", 1)) > 1:
        raise InputError(
            f"the model has {about['num_target']} targets, but trees in Spark have one: train one model per target"
        )
    gradient = learner["gradient_booster"]
    if gradient["name"] not in ("gbtree", "dart"):
        raise InputError(f"booster={gradient['name']} has no trees: train with gbtree or dart")
    weights = np.array(gradient.get("weight_drop", []))
    ensemble = gradient.get("gbtree", gradient)["model"]
    if any(int(tree["tree_param"]["size_leaf_vector"]) > 1 for tree in ensemble["trees"]):
        raise InputError(
            "multi_strategy='multi_output_tree' has a value per class in each leaf, but a leaf in Spark has one value; "
            "train with multi_strategy='one_output_per_tree'"
        )
    count = len(ensemble["trees"]) if last is None else ensemble["iteration_indptr"][int(last) + 1]
    outputs = max(1, int(about["num_class"]))
    base = np.array(json.loads(about["base_score"]), np.float64).reshape(-1)
    if LINKS.get(name) is LOGIT:
        base = np.log(base / (1 - base))
    elif LINKS.get(name, POISSON) is not IDENTITY and not name.startswith("multi:"):
        base = np.log(base)
    of_classes = CLASSES if hasattr(model, "classes_") else [c for c in CLASSES if not c.startswith("reg:")]
    return BoostedTrees(
        trees=[_tree(tree, whole=whole) for tree in ensemble["trees"][:count]],
        treeWeights=weights[:count] if len(weights) else np.ones(count),
        output=np.array(ensemble["tree_info"][:count], np.int64),
        base=np.broadcast_to(base, (outputs,)),
        numFeatures=int(about["num_feature"]),
        link=_link(name, learner["objective"]),
        classes=classes_of(model, booster, outputs, name, known=of_classes),
    )


def _link(name: str, objective: Mapping[str, Any]) -> Mapping[str, Any]:
    if name == "reg:tweedie":
        return tweedie(float(objective["tweedie_regression_param"]["tweedie_variance_power"]))
    return LINKS.get(name, IDENTITY)


def _tree(tree: Mapping[str, Any], *, whole: bool) -> TreeArrays:
    """The arrays of one tree.

    XGBoost rounds x to float32 and goes left if float32(x) < split_conditions; the arrays have the equivalent threshold
    for doubles. In a categorical split, the listed categories go right.
    """
    left, right = np.array(tree["left_children"], np.int64), np.array(tree["right_children"], np.int64)
    inner = left >= 0
    condition = np.array(tree["split_conditions"], np.float64).astype(np.float32)
    threshold = rounding_to(np.nextafter(condition, np.float32(-np.inf)))
    feature = np.where(inner, np.array(tree["split_indices"], np.int64), -1)
    sets: dict[int, tuple[Array, bool]] = {}
    listed = np.array(tree["categories"], np.float64)
    for j, start, size in zip(
        tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
    ):
        if not whole:
            raise InputError(
                f"feature {feature[j]} is categorical: XGBoost treats 3.7 as category 3, Spark does not; if "
                "this feature holds only whole numbers, set categories='whole'"
            )
        sets[j] = (listed[start : start + size], False)
    weight = np.array(tree["sum_hessian"])
    return TreeArrays(
        offsets=np.array([0, len(left)]),
        left=left,
        right=right,
        feature=feature,
        threshold=np.where(inner, threshold, 0.0),
        nanLeft=(np.array(tree["default_left"]) != 0) & inner,
        value=np.where(inner, np.array(tree["base_weights"]), condition.astype(np.float64)),
        impurity=np.zeros(len(left)),
        gain=np.where(inner, np.maximum(np.array(tree["loss_changes"]), 0) / np.maximum(weight, 1e-300), 0.0),
        count=weight,
        sets=sets,
    )
