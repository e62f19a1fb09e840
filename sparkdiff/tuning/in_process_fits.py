"""Fits of pipelines whose last fitted stage this process fits as Spark would: Spark fits the stages before.

Spark runs a job for each level of each tree, or for each step of an optimization, which on some thousand rows takes far
longer than the sums that the job computes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyspark.ml import Estimator, Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.regression import GBTRegressor
from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm import trees
from sparkdiff.jvm.java_objects import schema_after
from sparkdiff.jvm.nodes import Array
from sparkdiff.pipeline.column_names import casefolding, col_by_name
from sparkdiff.pipeline.column_tensors import fetch_columns
from sparkdiff.pipeline.schema import width_in
from sparkdiff.stages.inputs import slots_of, values_of
from sparkdiff.tuning.cached_rows import InputColumns, cannot_read, classes_told
from sparkdiff.tuning.solvers.boosted_trees import EPSILON, BoostingParams, boost
from sparkdiff.tuning.solvers.logistic_steps import LogisticParams, depends_on_order, fit_logistic

MOST_VALUES = 2**24
"""Largest number of feature values that are read into this process."""
MOST_WORK = 2**26
"""Largest number of rows times features times trees of depth 5 for which trees grow in this process; beyond it Spark is about as
fast.
"""
OVERHEAD = 2_000
"""Number of rows that take as long as all else that is done for a feature at each level of a tree."""
MOST_PRODUCTS = 2**31
"""Largest number of products of feature values and coefficients in all steps of a logistic regression."""
DEEPEST = 12
"""Largest maxDepth for which trees grow in this process, because all their nodes are sent to Spark."""
MOST_BINS = 2**23
"""Largest number of bins of a feature over all nodes of a level."""
MOST_MEMORY = 10_240
"""Largest maxMemoryInMB that Spark accepts."""
BOUNDS = tuple(f"{side}BoundsOn{what}" for side in ("lower", "upper") for what in ("Coefficients", "Intercepts"))
LARGEST = 1e300
"""Magnitude beyond which sums of values, or of their squares, may overflow."""


def can_fit(estimator: Any) -> bool:
    """True if the last fitted stage of a pipeline, or a single stage, is of a kind and has settings that `fit` supports."""
    stages = _stages(estimator)
    stage: Any = stages[_last_fit(stages)] if stages else None
    if not jvm.has_constructors() or type(stage) not in (LogisticRegression, GBTRegressor, GBTClassifier):
        return False
    if stage.getMaxIter() < 1:
        return False
    if type(stage) is LogisticRegression:
        return not any(map(stage.isSet, BOUNDS))
    return bool(
        stage.getSubsamplingRate() == 1
        and stage.getMaxDepth() <= DEEPEST
        and stage.getFeatureSubsetStrategy() == "all"
        and not stage.isSet("validationIndicatorCol")
        and stage.getMaxMemoryInMB() <= MOST_MEMORY
        and 2 ** stage.getMaxDepth() * stage.getMaxBins() <= MOST_BINS
    )


def fit(estimator: Any, rows: DataFrame) -> tuple[Any, bool]:
    """Fit a pipeline or stage for which `can_fit` is True, like `estimator.fit(rows)`.

    Spark fits the last stage, too, if there is too much to read or to compute, or if Spark would refuse a value or treat it
    specially.

    Returns:
        The model; and True if its last stage was fitted in this process.
    """
    stages = _stages(estimator)
    last = _last_fit(stages)
    above: Any = Pipeline(stages=stages[:last]).fit(rows)
    ready = above.transform(rows)
    stage = stages[last]
    schema_after(stage, ready.schema, casefolding())  # raises Spark's error if Spark refuses the columns
    ours = None
    if stage.getFeaturesCol() in ready.columns:  # Spark may find it by another case
        ours = (_fit_logistic if isinstance(stage, LogisticRegression) else _fit_trees)(stage, ready)
    model = stage.fit(ready) if ours is None else ours
    whole = PipelineModel([*above.stages, model, *stages[last + 1 :]]) if type(estimator) is Pipeline else model
    return whole, ours is not None


def _stages(estimator: Any) -> list[Any]:
    return [*estimator.getStages()] if type(estimator) is Pipeline else [estimator]


def _last_fit(stages: Sequence[Any]) -> int:
    """Place of the last stage that is fitted, -1 if there is none."""
    return max((i for i, stage in enumerate(stages) if isinstance(stage, Estimator)), default=-1)


def _levels(rows: DataFrame, features: str) -> list[int] | None:
    """Number of values of each entry of the vectors, 0 for a number; None if the metadata don't tell their width or a number."""
    attributes = (rows.schema[features].metadata or {}).get("ml_attr") or {}
    slots = slots_of(attributes)
    kinds = [slots.get(j, ("numeric", {})) for j in range(int(attributes.get("num_attrs", 0)))]
    levels = [{"binary": 2, "nominal": values_of(told)}.get(kind, 0) for kind, told in kinds]
    known = all(kind != "nominal" or count for (kind, _), count in zip(kinds, levels, strict=True))
    return levels if levels and known else None


def _fetch(stage: Any, rows: DataFrame, n: int, width: int) -> tuple[Array, Array, Array] | None:
    """The features (n, width), the labels and the weights of the rows, in an order that doesn't depend on Spark's; None if a
    column is missing or of a type that isn't supported, or if the rows or their vectors are not as many and as wide as told.
    """
    weight = stage.getWeightCol() if stage.isSet("weightCol") else ""
    reads = InputColumns(stage.getFeaturesCol(), stage.getLabelCol(), weight, "")
    if cannot_read(rows.schema, reads):
        return None
    read = {
        "x": col_by_name(reads.features),
        "label": col_by_name(reads.label).cast("double"),
        "weight": col_by_name(weight).cast("double") if weight else F.lit(1.0),
    }
    try:
        found = fetch_columns(rows.select(*(c.alias(name) for name, c in read.items())), [*read])
    except InputError:  # vectors of different widths
        return None
    if not found or found[0].shape != (n, width):
        return None
    x, label, weights = (column.numpy() for column in found)
    order = np.lexsort([*x.T, weights, label])  # the last bits of sums depend on it
    return x[order], label[order], weights[order]


def _fit_trees(stage: Any, rows: DataFrame) -> Any | None:
    """Grow the trees of a stage; None if Spark has to fit them (see `fit`)."""
    levels = _levels(rows, stage.getFeaturesCol())
    if levels is None:
        return None
    n, levelsOfTrees = rows.count(), (stage.getMaxDepth() + 1) * stage.getMaxIter()
    if n * len(levels) > MOST_VALUES or (n + OVERHEAD) * len(levels) * levelsOfTrees / 6 > MOST_WORK:
        return None
    found = _fetch(stage, rows, n, len(levels))
    if found is None or _is_special(*found) or _are_special_to_trees(stage, levels, *found):
        return None
    x, label, weight = found
    params = BoostingParams(
        stage.getLossType().lower(),
        stage.getMaxIter(),
        stage.getStepSize(),
        stage.getMaxDepth(),
        stage.getMaxBins(),
        stage.getMinInstancesPerNode(),
        stage.getMinWeightFractionPerNode(),
        stage.getMinInfoGain(),
    )
    nodes, treeWeights = boost(x, levels, label, weight, params)
    return trees.model_with_nodes(stage, nodes, len(levels), treeWeights=treeWeights)


def _fit_logistic(stage: Any, rows: DataFrame) -> Any | None:
    """Fit a LogisticRegression; None if Spark has to do so (see `fit`)."""
    width, n = width_in(rows.schema[stage.getFeaturesCol()]), rows.count()
    if not width or n * width > MOST_VALUES:
        return None
    found = _fetch(stage, rows, n, width)
    if found is None or _is_special(*found):
        return None
    x, label, weight = found
    if np.abs(x).max() > math.sqrt(LARGEST) or depends_on_order(x, weight):
        return None
    if (label != np.floor(label)).any() or label.min() < 0 or len(np.unique(label)) < 2:
        return None
    seen = int(label.max()) + 1
    classes = classes_told(rows.schema, stage.getLabelCol()) or seen
    family = stage.getFamily().lower()
    if classes < seen or (family == "binomial" and classes > 2) or _has_other_thresholds(stage, classes):
        return None
    several = family == "multinomial" or classes > 2
    if n * width * (classes if several else 1) * stage.getMaxIter() > MOST_PRODUCTS:
        return None
    params = LogisticParams(
        stage.getMaxIter(),
        stage.getRegParam(),
        stage.getElasticNetParam(),
        stage.getTol(),
        stage.getFitIntercept(),
        stage.getStandardization(),
    )
    fitted = fit_logistic(x, label, weight, classes, several, params)
    weights = {
        "coefficientMatrix": fitted.coefficients,
        "interceptVector": fitted.intercepts,
        "numClasses": classes,
        "isMultinomial": several,
    }
    return jvm.model_with_weights(stage, weights, {"numFeatures": width})


def _is_special(x: Array, label: Array, weight: Array) -> bool:
    """True if Spark refuses one of these values or leaves rows out, or if sums may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = [np.abs(x).max(), (weight * label * label).sum(), weight.sum()]
    return not all(size < LARGEST for size in sizes) or bool((weight <= 0).any())  # NaN isn't smaller


def _are_special_to_trees(stage: Any, levels: Sequence[int], x: Array, label: Array, weight: Array) -> bool:
    """True if Spark's trees refuse one of these values, or compute with them something that depends on rounding."""
    if isinstance(stage, GBTClassifier) and (_has_other_thresholds(stage, 2) or not np.isin(label, (0, 1)).all()):
        return True
    if max(levels) > min(stage.getMaxBins(), len(label)) or _is_zero_uncertain(x, weight):
        return True
    nominal = [(x[:, j], k) for j, k in enumerate(levels) if k]
    return any((values != np.floor(values)).any() or values.min() < 0 or values.max() >= k for values, k in nominal)


def _has_other_thresholds(stage: Any, classes: int) -> bool:
    """True if a classifier has thresholds, but not as many as there are classes, so that Spark refuses it."""
    return stage.isDefined("thresholds") and len(stage.getThresholds()) != classes


def _is_zero_uncertain(x: Array, weight: Array) -> bool:
    """True if rounding decides whether a feature has the value 0 for Spark.

    To choose candidate thresholds, Spark takes the weight of the zeros as what the other values leave of the total, and
    ignores it up to a tolerance (RandomForest.findSplitsForContinuousFeature).
    """
    n, total = len(weight), weight.sum()
    if (weight == np.floor(weight)).all() and total < 1 / EPSILON:
        return False  # no sum is rounded
    zeros = weight @ (x == 0)
    tolerance = EPSILON * n * n
    return bool(EPSILON * total * np.sqrt(n) > tolerance / 4 or ((zeros > 0) & (zeros < 2 * tolerance)).any())
