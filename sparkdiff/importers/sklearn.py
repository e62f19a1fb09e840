"""Reader of scikit-learn's trees from fitted estimators: from `tree_` of each tree, or the predictors of histogram
boosting.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparkdiff.errors import InputError
from sparkdiff.importers.tree_ensembles import GAMMA, IDENTITY, POISSON, AveragedTrees, BoostedTrees
from sparkdiff.importers.trees import TreeArrays, below, rounding_to
from sparkdiff.jvm.nodes import Array

IMPURITIES = {"gini": "gini", "entropy": "entropy", "log_loss": "entropy"}
HIST_LINKS: Mapping[str, Mapping[str, Any]] = {
    "squared_error": IDENTITY,
    "absolute_error": IDENTITY,
    "quantile": IDENTITY,
    "poisson": POISSON,
    "gamma": GAMMA,
}


def read(model: Any) -> BoostedTrees | AveragedTrees:
    """The trees of a fitted estimator of exactly one of the classes in READERS (a subclass may predict differently).

    Raises:
        InputError: the model has another class, is not fitted, has several outputs, or has no equivalent in MLlib.
    """
    kind = type(model)
    reader = READERS.get(kind.__name__) if kind.__module__.startswith("sklearn.") else None
    if reader is None:
        raise InputError(f"from_sklearn reads {', '.join(READERS)}; got {kind.__module__}.{kind.__qualname__}")
    if not hasattr(model, "n_features_in_"):
        raise InputError(f"{kind.__name__} isn't fitted: call fit first")
    if not hasattr(model, "__sklearn_tags__"):
        raise InputError("from_sklearn needs scikit-learn 1.6 or newer: load the model there, or train it again")
    if getattr(model, "n_outputs_", 1) != 1:
        raise InputError(
            f"{kind.__name__} has {model.n_outputs_} outputs, but trees in Spark have one: train one model per output"
        )
    return reader(model)


def _averaged_trees(model: Any) -> AveragedTrees:
    nan = bool(model.__sklearn_tags__().input_tags.allow_nan)
    classes, forest = getattr(model, "classes_", None), hasattr(model, "estimators_")
    members = model.estimators_ if forest else [model]
    trees = [_tree(member.tree_, nan=nan, classes=classes is not None) for member in members]
    return AveragedTrees(trees, model.n_features_in_, forest, IMPURITIES.get(model.criterion, "variance"), classes)


def _tree(tree: Any, *, nan: bool, classes: bool) -> TreeArrays:
    """The arrays of one tree.

    scikit-learn rounds x to float32 and goes left if float32(x) <= threshold (sklearn.tree._tree.Tree); the arrays have
    the equivalent threshold for doubles.

    Args:
        nan: whether the estimator accepts NaN.
        classes: whether it is a classifier.
    """
    inner = tree.children_left >= 0
    threshold = np.where(inner, rounding_to(below(np.where(inner, tree.threshold, 0.0))), 0.0)
    weight = tree.weighted_n_node_samples
    children = [np.where(inner, child, 0) for child in (tree.children_left, tree.children_right)]
    lost = sum(weight[child] * tree.impurity[child] for child in children)
    value = tree.value[:, 0, :]
    return TreeArrays(
        offsets=np.array([0, tree.node_count]),
        left=tree.children_left,
        right=tree.children_right,
        feature=tree.feature,
        threshold=threshold,
        nanLeft=tree.missing_go_to_left.astype(bool) & nan & inner,
        value=value.argmax(1).astype(np.float64) if classes else value[:, 0],
        impurity=tree.impurity,
        gain=np.where(inner, tree.impurity - lost / weight, 0.0),
        count=weight,
        stats=_weights(value, weight) if classes else None,
    )


def _weights(value: Array, weight: Array) -> Array:
    """Total weight of the training rows of each class in each node, (N, classes), from the class shares and the nodes'
    weights.

    If all weights of a node are whole numbers up to rounding, they are rounded, so that their quotients are exactly the
    shares.
    """
    weights = value * weight[:, None]
    whole = np.rint(weights)
    exact = np.isclose(weights, whole, rtol=1e-15, atol=0).all(1, keepdims=True)
    return np.where(exact, whole, weights)


def _gradient_boosting(model: Any) -> BoostedTrees:
    """The trees of a GradientBoosting model, which rounds x as in `_tree`. scikit-learn rejects NaN in this model, so
    NaN may take Spark's path.

    One difference remains: for two classes and a margin of exactly 0, scikit-learn predicts the second class, Spark the
    first.
    """
    if model.init_ != "zero" and type(model.init_).__name__ not in ("DummyRegressor", "DummyClassifier"):
        raise InputError(
            f"{type(model).__name__}: init is {type(model.init_).__name__}, a separate model, which trees "
            "cannot contain; train with init=None or 'zero'"
        )
    if getattr(model.init_, "strategy", None) == "stratified":
        raise InputError(
            f"{type(model).__name__}: init is DummyClassifier(strategy='stratified'), which draws a class for each row, and "
            "trees start from the same value for all; train with init=None or 'zero'"
        )
    classes = getattr(model, "classes_", None)
    base = np.asarray(model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32)), np.float64)[0]
    rounds, outputs = model.estimators_.shape
    trees = [_tree(member.tree_, nan=False, classes=False) for member in model.estimators_.ravel()]
    # The exponential loss has p = sigmoid(2 * margin).
    scale = 2.0 if model.loss == "exponential" else 1.0
    return BoostedTrees(
        trees=trees,
        treeWeights=np.full(len(trees), scale * model.learning_rate),
        output=np.tile(np.arange(outputs), rounds),
        base=scale * base,
        numFeatures=model.n_features_in_,
        classes=classes,
    )


def _hist(model: Any) -> BoostedTrees:
    """The trees of a HistGradientBoosting model, in which a row goes left if x <= num_threshold, where x is not rounded
    (sklearn.ensemble._hist_gradient_boosting._predictor).
    """
    classes = getattr(model, "classes_", None)
    loss = model.loss
    if classes is None and (not isinstance(loss, str) or loss not in HIST_LINKS):
        raise InputError(
            f"{type(model).__name__}: loss={loss!r} has no known link; known losses: {', '.join(HIST_LINKS)}"
        )
    columns, categories = _hist_columns(model)
    rounds, outputs = model._predictors, model.n_trees_per_iteration_
    trees = [_hist_tree(predictor, columns, categories) for each in rounds for predictor in each]
    return BoostedTrees(
        trees=trees,
        treeWeights=np.ones(len(trees)),
        output=np.tile(np.arange(outputs), len(rounds)),
        base=np.asarray(model._baseline_prediction, np.float64).reshape(-1),
        numFeatures=model.n_features_in_,
        link=IDENTITY if classes is not None else HIST_LINKS[loss],
        classes=classes,
    )


def _hist_columns(model: Any) -> tuple[Array, dict[int, Array]]:
    """The input feature for each feature index in the trees, which number categorical features first; and the
    categories of the categorical features, by this index.
    """
    if model.is_categorical_ is None:
        return np.arange(model.n_features_in_), {}
    nominal = np.flatnonzero(model.is_categorical_)
    columns = np.concatenate([nominal, np.flatnonzero(~model.is_categorical_)])
    found = model._preprocessor.named_transformers_["encoder"].categories_
    for column, categories in zip(nominal, found, strict=True):
        if categories.dtype.kind not in "iufb":
            some = ", ".join(map(repr, categories[:3].tolist()))
            raise InputError(
                f"{type(model).__name__}: feature {column} has the categories {some}...; a vector holds only "
                "numbers: encode the categories as numbers (OrdinalEncoder in scikit-learn, StringIndexer in "
                "Spark) and train again"
            )
    return columns, dict(enumerate(np.asarray(categories, np.float64) for categories in found))


def _hist_tree(predictor: Any, columns: Array, categories: dict[int, Array]) -> TreeArrays:
    nodes = predictor.nodes
    inner = nodes["is_leaf"] == 0
    left, right = (np.where(inner, nodes[side].astype(np.int64), -1) for side in ("left", "right"))
    nanLeft = (nodes["missing_go_to_left"] != 0) & inner
    sets = {}
    for j in np.flatnonzero(inner & (nodes["is_categorical"] != 0)).tolist():
        # Bit i is set if category i goes left; a value that is no category counts as missing.
        known = categories[int(nodes["feature_idx"][j])]
        bits = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][j]]
        goes = np.unpackbits(bits.astype("<u4").view(np.uint8), bitorder="little")[: len(known)] != 0
        listed = ~goes if nanLeft[j] else goes
        sets[j] = (known[listed & ~np.isnan(known)], not nanLeft[j])
    count = nodes["count"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        gain = np.where(inner & (nodes["gain"] > 0), nodes["gain"] / np.maximum(count, 1), 0.0)
    return TreeArrays(
        offsets=np.array([0, len(nodes)]),
        left=left,
        right=right,
        feature=np.where(inner, columns[np.where(inner, nodes["feature_idx"], 0)], -1),
        threshold=np.where(inner, nodes["num_threshold"], 0.0),
        nanLeft=nanLeft,
        value=nodes["value"],
        impurity=np.zeros(len(nodes)),
        gain=gain,
        count=count,
        sets=sets,
    )


READERS: Mapping[str, Callable[[Any], BoostedTrees | AveragedTrees]] = {
    "DecisionTreeRegressor": _averaged_trees,
    "DecisionTreeClassifier": _averaged_trees,
    "ExtraTreeRegressor": _averaged_trees,
    "ExtraTreeClassifier": _averaged_trees,
    "RandomForestRegressor": _averaged_trees,
    "RandomForestClassifier": _averaged_trees,
    "ExtraTreesRegressor": _averaged_trees,
    "ExtraTreesClassifier": _averaged_trees,
    "GradientBoostingRegressor": _gradient_boosting,
    "GradientBoostingClassifier": _gradient_boosting,
    "HistGradientBoostingRegressor": _hist,
    "HistGradientBoostingClassifier": _hist,
}
