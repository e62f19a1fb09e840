"""Conversion of tree ensembles of other libraries to fitted MLlib models, including the link function from margin to
mean.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.classification import (
    DecisionTreeClassifier,
    GBTClassifier,
    LogisticRegression,
    RandomForestClassifier,
)
from pyspark.ml.feature import IndexToString, VectorAssembler
from pyspark.ml.regression import (
    DecisionTreeRegressor,
    GBTRegressor,
    GeneralizedLinearRegression,
    RandomForestRegressor,
)

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.importers.trees import TreeArrays
from sparkdiff.jvm import trees as java_trees
from sparkdiff.jvm.nodes import Array, Nodes

IDENTITY: Mapping[str, Any] = {}
POISSON = {"family": "poisson", "link": "log"}
GAMMA = {"family": "gamma", "link": "log"}
LOGIT = {"family": "binomial", "link": "logit"}


def tweedie(variancePower: float) -> dict[str, Any]:
    return {"family": "tweedie", "variancePower": variancePower, "linkPower": 0.0}


def is_booster(model: Any, library: str, prefix: str, method: str) -> bool:
    """True if a model of `library` is a Booster; False if it is a fitted estimator with the interface of scikit-learn.

    Args:
        library: "lightgbm" or "xgboost".
        prefix: prefix of the estimators' names, for messages.
        method: name of a method that only Boosters have.

    Raises:
        InputError: the model is neither.
    """
    kind, booster = type(model), hasattr(model, method)
    if not kind.__module__.startswith(f"{library}.") or not (booster or hasattr(model, "__sklearn_is_fitted__")):
        raise InputError(
            f"from_{library} reads a Booster or a fitted {prefix} estimator; got {kind.__module__}.{kind.__qualname__}"
        )
    if not booster and not model.__sklearn_is_fitted__():
        raise InputError(f"{kind.__name__} isn't fitted: call fit first")
    return booster


def classes_of(model: Any, booster: Any, margins: int, objective: str, *, known: Sequence[str]) -> list[Any] | None:
    """The classes of a classifier of LightGBM or XGBoost; the indices of the classes for a Booster with an objective
    for classes; None for a regressor (which predicts a number, possibly the probability of the second of two classes).

    Args:
        margins: number of margins.
        known: the objectives for classes.

    Raises:
        InputError: the model is a regressor with several margins, or a classifier with an objective for numbers.
    """
    if objective not in known:
        if hasattr(model, "classes_"):
            raise InputError(
                f"{type(model).__name__} with objective={objective!r} predicts the second class where its number is over 0.5, "
                f"which no classifier in Spark does: train with objective={known[0]!r}, or import its Booster, whose number "
                "Spark predicts"
            )
        return None
    if model is booster or hasattr(model, "classes_"):
        return list(getattr(model, "classes_", range(max(2, margins))))
    if margins > 1:
        raise InputError(
            f"{type(model).__name__} with objective={objective!r} has {margins} classes, but a regression in Spark "
            "predicts one number: train a classifier, or import the Booster"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the input and output columns of the MLlib model, and whether rows can have NaN (see `from_sklearn`)."""

    featuresCol: str
    predictionCol: str
    probabilityCol: str
    rawPredictionCol: str
    predictedLabelCol: str | None
    missing: str

    def __post_init__(self) -> None:
        if self.missing not in ("keep", "absent"):
            raise InputError(
                f"missing must be 'keep' (NaN goes where the library sends it) or 'absent' (no row has NaN), got {self.missing!r}"
            )

    def nodes(self, trees: Sequence[TreeArrays]) -> Nodes:
        joined = TreeArrays.join(trees)
        return (joined.without_missing() if self.missing == "absent" else joined).nodes()


@dataclasses.dataclass(frozen=True)
class BoostedTrees:
    """A weighted sum of trees: margin k of a row = base[k] + sum over t with output[t] = k of treeWeights[t] *
    trees[t](row).

    Attributes:
        trees: the T trees.
        treeWeights: (T,).
        output: (T,) int, the margin to which each tree contributes.
        base: (K,), the constant of each margin.
        link: Params of a GeneralizedLinearRegression that maps the margin to the mean; empty if the margin is the
            prediction; ignored for a classifier.
        classes: the classes of a classifier: two if K = 1, with p = sigmoid(margin); else K, with p = softmax(margins).
            None for a regressor.
    """

    trees: Sequence[TreeArrays]
    treeWeights: Array
    output: Array
    base: Array
    numFeatures: int
    link: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: Sequence[Any] | None = None

    def model(self, columns: Columns) -> Any:
        """A GBT model if that can express the ensemble; else a pipeline of one GBT model per margin, a VectorAssembler,
        and a linear model for the link.
        """
        if self.classes is None and not self.link:
            return self._regression(0, columns, columns.predictionCol, float(self.base[0]))
        if self.classes is None:
            estimator = GeneralizedLinearRegression(predictionCol=columns.predictionCol, **self.link)
            weights = {"coefficients": np.ones(1), "intercept": float(self.base[0])}
            return self._margin_pipeline(columns, jvm.model_with_weights(self._of_margins(estimator), weights))
        if len(self.base) == 1:
            return with_class_names(self._classification(columns), self.classes, columns)
        k = len(self.base)
        softmax = LogisticRegression(family="multinomial", **_classifier(columns))
        weights = {"coefficientMatrix": np.eye(k), "interceptVector": self.base, "numClasses": k, "isMultinomial": True}
        last = jvm.model_with_weights(self._of_margins(softmax), weights, {"numFeatures": k})
        return with_class_names(self._margin_pipeline(columns, last), self.classes, columns)

    @staticmethod
    def _of_margins(estimator: Any) -> Any:
        return estimator.setFeaturesCol(f"{estimator.uid}__margins")

    def _margin_pipeline(self, columns: Columns, last: Any) -> PipelineModel:
        margins = [f"{last.uid}__margin{i}" for i in range(len(self.base))]
        assembler = VectorAssembler(inputCols=margins, outputCol=last.getFeaturesCol(), handleInvalid="keep")
        trees = [self._regression(i, columns, margin, 0.0) for i, margin in enumerate(margins)]
        return PipelineModel([*trees, assembler, last])

    def _regression(self, output: int, columns: Columns, predictionCol: str, base: float) -> Any:
        nodes, weights = self._with_base(output, base, columns)
        estimator = GBTRegressor(featuresCol=columns.featuresCol, predictionCol=predictionCol)
        return sum_of_trees(estimator, nodes, weights, self.numFeatures)

    def _classification(self, columns: Columns) -> Any:
        """A GBTClassificationModel; the weights are halved because Spark's probability is sigmoid(2 * margin)."""
        nodes, weights = self._with_base(0, float(self.base[0]), columns)
        estimator = GBTClassifier(featuresCol=columns.featuresCol, maxDepth=depth(nodes), maxIter=nodes.trees)
        for setting, value in _classifier(columns).items():
            estimator.set(estimator.getParam(setting), value)  # __init__ doesn't take them all
        return java_trees.model_with_nodes(estimator, nodes, self.numFeatures, treeWeights=weights / 2)

    def _with_base(self, output: int, base: float, columns: Columns) -> tuple[Nodes, Array]:
        """The nodes and the weights of the trees of one margin; the constant `base`, if it is not 0 or there are no trees,
        becomes a first tree with one leaf.
        """
        which = np.flatnonzero(self.output == output).tolist()
        first = [] if base == 0 and which else [TreeArrays.constant(base)]
        weights = np.concatenate([np.ones(len(first)), self.treeWeights[which]])
        return columns.nodes([*first, *(self.trees[t] for t in which)]), weights


@dataclasses.dataclass(frozen=True)
class AveragedTrees:
    """A mean of trees: of their values or, for a classifier, of their class shares (from `stats` of the leaves).

    Attributes:
        trees: the T trees.
        forest: False for a model of a single tree, which becomes a DecisionTree model.
        impurity: Spark's name of the impurity measure with which a classifier's trees were grown.
    """

    trees: Sequence[TreeArrays]
    numFeatures: int
    forest: bool
    impurity: str = "variance"
    classes: Sequence[Any] | None = None

    def model(self, columns: Columns) -> Any:
        nodes = columns.nodes(self.trees)
        params: dict[str, Any] = {"maxDepth": depth(nodes), "featuresCol": columns.featuresCol}
        if self.forest:
            params["numTrees"] = nodes.trees
        if self.classes is None:
            regressor: Any = RandomForestRegressor if self.forest else DecisionTreeRegressor
            return java_trees.model_with_nodes(
                regressor(predictionCol=columns.predictionCol, **params), nodes, self.numFeatures
            )
        classifier: Any = RandomForestClassifier if self.forest else DecisionTreeClassifier
        estimator = classifier(impurity=self.impurity, **_classifier(columns), **params)
        model = java_trees.model_with_nodes(estimator, nodes, self.numFeatures, numClasses=len(self.classes))
        return with_class_names(model, self.classes, columns)


def sum_of_trees(estimator: Any, nodes: Nodes, weights: Array, numFeatures: int) -> Any:
    """A GBTRegressionModel whose prediction is the sum of weights * trees."""
    estimator.setMaxDepth(depth(nodes)).setMaxIter(nodes.trees)
    return java_trees.model_with_nodes(estimator, nodes, numFeatures, treeWeights=weights)


def _classifier(columns: Columns) -> dict[str, Any]:
    return {name: getattr(columns, name) for name in ("predictionCol", "probabilityCol", "rawPredictionCol")}


def with_class_names(model: Any, classes: Sequence[Any], columns: Columns) -> Any:
    """The classifier, followed by an IndexToString if a column for the classes is requested: Spark predicts indices, 0
    to k - 1.

    Raises:
        InputError: the classes differ from their indices, and `predictedLabelCol` is not set.
    """
    names = [str(c.item() if isinstance(c, np.generic) else c) for c in classes]
    if columns.predictedLabelCol is None:
        if names in ([str(i) for i in range(len(names))], [f"{i}.0" for i in range(len(names))]):
            return model
        if list(classes) == [False, True]:
            return model
        raise InputError(
            f"the classes are {', '.join(names[:10])}, but Spark predicts their indices, 0 to "
            f"{len(names) - 1}; name a column for the classes: predictedLabelCol='...'"
        )
    text = IndexToString(inputCol=columns.predictionCol, outputCol=columns.predictedLabelCol, labels=names)
    return PipelineModel([*(model.stages if isinstance(model, PipelineModel) else [model]), text])


def depth(nodes: Nodes) -> int:
    """Depth of the deepest tree, at most 30, the largest value of Spark's Param maxDepth."""
    return min(int(nodes.depth().max()), 30)
