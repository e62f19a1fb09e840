"""What it costs to serve a stage: microseconds of one core per row, by its class and size.

`benchmarks/serving_costs.py` measures the table by Spark's own `transform`. It decides how much growth may add, so that the
decision is the same on every machine and whatever else runs there; a stopwatch tells what a pipeline really takes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.pipeline.nesting import flatten

Steps = Sequence[tuple[str, float]]
"""Stages one after another: (class, entries as `COSTS` counts them)."""
Filled = Mapping[str, float]
"""Column of vectors -> how many entries of a row are not zero."""
Entries = Callable[[Any, Filled], float]
NOTHING: Filled = {}

COSTS: Mapping[str, tuple[float, float]] = {
    "VectorAssembler": (1.65, 0.11),
    "VectorSizeHint": (0.13, 0.0),
    "Interaction": (3.01, 0.11),
    "ElementwiseProduct": (0.96, 0.007),
    "StandardScalerModel": (0.91, 0.0033),
    "MinMaxScalerModel": (0.92, 0.013),
    "MaxAbsScalerModel": (0.89, 0.0035),
    "RobustScalerModel": (0.86, 0.0045),
    "StringIndexerModel": (0.02, 0.26),
    "OneHotEncoderModel": (0.07, 0.9),
    "Bucketizer": (0.0, 0.095),
    "IsotonicRegressionModel": (0.03, 0.0071),
    "PCAModel": (1.6, 0.0095),
    "LinearRegressionModel": (0.38, 0.015),
    "GeneralizedLinearRegressionModel": (0.48, 0.013),
    "LogisticRegressionModel": (1.44, 0.012),
    "MultilayerPerceptronClassificationModel": (1.9, 0.00098),
    "GaussianMixtureModel": (5.08, 0.0094),
    "DecisionTreeRegressionModel": (0.16, 0.035),
    "DecisionTreeClassificationModel": (0.16, 0.035),
    "RandomForestRegressionModel": (1.29, 0.019),
    "RandomForestClassificationModel": (1.29, 0.019),
    "GBTRegressionModel": (0.43, 0.018),
    "GBTClassificationModel": (0.43, 0.018),
}
"""Class of the fitted stage -> (fixed, per entry). What an entry is, by class:

- VectorAssembler: a number that is assembled, and an entry that is not zero of a vector;
- Interaction: a product that is not zero;
- VectorSizeHint, MinMaxScalerModel, scalers that centre: an entry of the vector;
- other scalers, ElementwiseProduct: an entry that is not zero;
- StringIndexerModel, OneHotEncoderModel, Bucketizer: a column;
- IsotonicRegressionModel: a step of the search among n boundaries, log2(n) of them;
- PCAModel, linear and logistic models: a coefficient of an entry that is not zero;
- MultilayerPerceptronClassificationModel: a weight;
- GaussianMixtureModel: an entry of a covariance;
- trees: a node on the way of a row, which are log2(nodes + 1) in a tree whose branches are about as long. Those of regressions
  were measured; those of classifications count the same.
"""
DEFAULT = (2.0, 0.0)
"""Of a class that isn't in the table: about what it takes to read a vector and write another one."""


def of(kind: str, entries: float) -> float:
    """Microseconds per row of a stage of this class (`type(stage).__name__`) and as many entries as `COSTS` counts."""
    fixed, each = COSTS.get(kind, DEFAULT)
    return fixed + each * entries


def of_steps(steps: Steps) -> float:
    """Microseconds per row of stages one after another."""
    return sum(of(kind, entries) for kind, entries in steps)


def of_stage(stage: Any, filled: Filled = NOTHING) -> float:
    """Microseconds per row of a fitted stage, see `entries_of`; of one that only drops or moves columns, none."""
    if jvm.selection_of(stage) is not None:
        return 0.0
    return of(type(stage).__name__, entries_of(stage, filled))


def of_model(model: Any, filled: Filled = NOTHING) -> float:
    """Microseconds per row of all leaf stages of a fitted pipeline.

    Args:
        filled: of columns that it is given.

    Raises:
        InputError: a stage is not fitted; names it.
    """
    known, total = dict(filled), 0.0
    for _, stage in flatten(model):
        total += of_stage(stage, known)
        known |= filled_by(stage, known)
    return total


def filled_by_model(model: Any) -> dict[str, float]:
    """How many entries of a row are not zero in the columns that a fitted pipeline writes, as far as its stages tell."""
    known: dict[str, float] = {}
    for _, stage in flatten(model):
        known |= filled_by(stage, known)
    return known


def entries_of(stage: Any, filled: Filled = NOTHING) -> float:
    """The entries of a fitted stage; 0 for a class that isn't in the table.

    Args:
        filled: a column that isn't in it counts as one number where it is assembled, and as all entries of the stage elsewhere.
    """
    read = ENTRIES.get(type(stage).__name__)
    return float(read(stage, filled)) if read is not None else 0.0


def filled_by(stage: Any, filled: Filled) -> dict[str, float]:
    """Of the columns of vectors that a fitted stage writes, how many entries of a row are not zero.

    Not of a class of which this is not known, such as those that hash words.
    """
    match type(stage).__name__:
        case "OneHotEncoderModel":
            return dict.fromkeys(stage.getOutputCols() if stage.isSet("outputCols") else [stage.getOutputCol()], 1.0)
        case "MultilayerPerceptronClassificationModel":
            return {stage.getRawPredictionCol(): float(stage.getLayers()[-1])}
        case "PCAModel":
            return {stage.getOutputCol(): float(stage.pc.numCols)}
        case "VectorSizeHint":
            return {stage.getInputCol(): filled.get(stage.getInputCol(), float(stage.getSize()))}
        case kind if kind in SAME_SHAPE:
            return {stage.getOutputCol(): entries_of(stage, filled)}
    return {}


def lookups(trees: int, nodes: int) -> float:
    """The nodes on a row's way through this many trees with this many nodes in all."""
    return trees * math.log2(nodes / trees + 1)


def steps_among(boundaries: int) -> float:
    """The steps of a search among the boundaries of an IsotonicRegressionModel."""
    return math.log2(max(boundaries, 2))


def _columns(stage: Any, filled: Filled) -> int:
    return len(stage.getInputCols()) if stage.isSet("inputCols") else 1


def _scaled(size: Callable[[Any], int], centres: str = "") -> Entries:
    """Of a scaler of vectors of this size; one that centres makes them dense."""

    def entries(stage: Any, filled: Filled) -> float:
        dense = centres and stage.getOrDefault(centres)
        return size(stage) if dense else filled.get(stage.getInputCol(), float(size(stage)))

    return entries


def _tree(stage: Any, filled: Filled) -> float:
    return lookups(1, stage.numNodes)


def _ensemble(stage: Any, filled: Filled) -> float:
    return lookups(stage.getNumTrees, stage.totalNumNodes)


def _coefficients(stage: Any, filled: Filled) -> float:
    return filled.get(stage.getFeaturesCol(), float(stage.numFeatures))


ENTRIES: Mapping[str, Entries] = {
    "VectorAssembler": lambda stage, filled: sum(filled.get(column, 1.0) for column in stage.getInputCols()),
    "Interaction": lambda stage, filled: math.prod(filled.get(column, 1.0) for column in stage.getInputCols()),
    "VectorSizeHint": lambda stage, filled: stage.getSize(),
    "ElementwiseProduct": _scaled(lambda stage: stage.getScalingVec().size),
    "StandardScalerModel": _scaled(lambda stage: stage.std.size, "withMean"),
    "MinMaxScalerModel": lambda stage, filled: stage.originalMin.size,
    "MaxAbsScalerModel": _scaled(lambda stage: stage.maxAbs.size),
    "RobustScalerModel": _scaled(lambda stage: stage.range.size, "withCentering"),
    "StringIndexerModel": _columns,
    "OneHotEncoderModel": _columns,
    "Bucketizer": _columns,
    "IsotonicRegressionModel": lambda stage, filled: steps_among(stage.boundaries.size),
    "PCAModel": lambda stage, filled: filled.get(stage.getInputCol(), float(stage.pc.numRows)) * stage.pc.numCols,
    "LinearRegressionModel": _coefficients,
    "GeneralizedLinearRegressionModel": _coefficients,
    "LogisticRegressionModel": lambda stage, filled: stage.coefficientMatrix.numRows * _coefficients(stage, filled),
    "MultilayerPerceptronClassificationModel": lambda stage, filled: stage.weights.size,
    "GaussianMixtureModel": lambda stage, filled: len(stage.weights) * stage.gaussiansDF.first()["mean"].size ** 2,
    "DecisionTreeRegressionModel": _tree,
    "DecisionTreeClassificationModel": _tree,
    "RandomForestRegressionModel": _ensemble,
    "RandomForestClassificationModel": _ensemble,
    "GBTRegressionModel": _ensemble,
    "GBTClassificationModel": _ensemble,
}
SAME_SHAPE = frozenset(
    {"VectorAssembler", "Interaction", "ElementwiseProduct", "StandardScalerModel", "MinMaxScalerModel", "MaxAbsScalerModel",
     "RobustScalerModel"}
)  # fmt: skip
"""Classes that write as many entries as they count."""
