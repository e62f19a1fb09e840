"""Fits of pipelines that end in boosted trees: Spark fits the stages before, and the trees grow in this process."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyspark.ml import Estimator, Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.regression import GBTRegressor
from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import NumericType

from sparkdiff import jvm
from sparkdiff.jvm import trees
from sparkdiff.jvm.nodes import Array
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.column_tensors import fetch_columns
from sparkdiff.stages.inputs import slots_of, values_of
from sparkdiff.tuning.solvers.boosted_trees import BoostingParams, boost

MOST = 2**26
"""Largest number of feature values times trees for which trees grow in this process; beyond it Spark is about as fast."""
DEEPEST = 10
"""Largest maxDepth for which trees grow in this process, because its memory grows with the nodes of a level."""


def grows_here(estimator: Any) -> bool:
    """True if a pipeline or stage is last fitted by boosted trees whose settings this module supports."""
    stages = _stages(estimator)
    stage: Any = stages[_last_fit(stages)] if stages else None
    return type(stage) in (GBTRegressor, GBTClassifier) and bool(
        jvm.has_constructors()
        and stage.getSubsamplingRate() == 1
        and stage.getFeatureSubsetStrategy() == "all"
        and not stage.isSet("validationIndicatorCol")
        and stage.getMaxDepth() <= DEEPEST
    )


def fit(estimator: Any, rows: DataFrame) -> Any:
    """Fit a pipeline or stage for which `grows_here` is True, like `estimator.fit(rows)`.

    The trees grow in this process, unless there is too much to read (see `MOST`), or Spark would refuse a value or treat it
    specially: then Spark fits them.
    """
    stages = _stages(estimator)
    last = _last_fit(stages)
    above: Any = Pipeline(stages=stages[:last]).fit(rows)
    ready = above.transform(rows)
    grown = _fit_here(stages[last], ready)
    model = stages[last].fit(ready) if grown is None else grown
    return PipelineModel([*above.stages, model, *stages[last + 1 :]]) if type(estimator) is Pipeline else model


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


def _fit_here(stage: Any, rows: DataFrame) -> Any | None:
    """Grow the trees of a stage; None if the rows are too many, or if Spark would refuse them or treat them specially."""
    weighted = stage.isSet("weightCol") and stage.getWeightCol() != ""
    names = [stage.getFeaturesCol(), stage.getLabelCol(), *([stage.getWeightCol()] if weighted else [])]
    kinds = {field.name: field.dataType for field in rows.schema.fields}
    numbers = all(isinstance(kinds.get(name), NumericType) for name in names[1:])
    levels = _levels(rows, names[0]) if isinstance(kinds.get(names[0]), VectorUDT) and numbers else None
    if levels is None or rows.count() * len(levels) * stage.getMaxIter() > MOST:
        return None
    features, *casts = map(col_by_name, names)
    read = {
        "x": features,
        "label": casts[0].cast("double"),
        "weight": casts[1].cast("double") if weighted else F.lit(1.0),
    }
    found = fetch_columns(rows.select(*(c.alias(name) for name, c in read.items())), [*read])
    if not found or found[0].shape[1:] != (len(levels),):
        return None
    x, label, weight = (column.numpy() for column in found)
    if _is_special(stage, x, levels, label, weight):
        return None
    order = np.lexsort([*x.T, weight, label])  # the last bits of sums depend on it, and Spark's order on the moment
    params = BoostingParams(
        stage.getLossType(),
        stage.getMaxIter(),
        stage.getStepSize(),
        stage.getMaxDepth(),
        stage.getMaxBins(),
        stage.getMinInstancesPerNode(),
        stage.getMinWeightFractionPerNode(),
        stage.getMinInfoGain(),
    )
    nodes, treeWeights = boost(x[order], levels, label[order], weight[order], params)
    return trees.model_with_nodes(stage, nodes, len(levels), treeWeights=treeWeights)


def _is_special(stage: Any, x: Array, levels: Sequence[int], label: Array, weight: Array) -> bool:
    """True if Spark refuses one of these values, or leaves rows out."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (weight * label * label).sum()  # a sum that overflows decides nothing
    finite = all(np.isfinite(values).all() for values in (x, label, weight, squares))
    classes = isinstance(stage, GBTClassifier)
    if not finite or (weight <= 0).any() or (classes and not np.isin(label, (0, 1)).all()):
        return True
    if max(levels) > min(stage.getMaxBins(), len(label)):
        return True
    nominal = [(x[:, j], k) for j, k in enumerate(levels) if k]
    return any((values != np.floor(values)).any() or values.min() < 0 or values.max() >= k for values, k in nominal)
