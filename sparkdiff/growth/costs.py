"""What it costs to serve a stage: microseconds of one core per row, by its class and size.

`benchmarks/serving_costs.py` measures the table by Spark's own `transform`. It decides how much growth may add, so that the
decision is the same on every machine and whatever else runs there; a stopwatch tells what a pipeline really takes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from sparkdiff.pipeline.nesting import flatten

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
- VectorSizeHint, scalers, ElementwiseProduct: an entry of the vector;
- StringIndexerModel, OneHotEncoderModel, Bucketizer: a column;
- IsotonicRegressionModel: a step of the search among n boundaries, log2(n) of them;
- PCAModel, linear and logistic models: a coefficient;
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


def of_stage(stage: Any) -> float:
    """Microseconds per row of a fitted stage.

    Its size is read from the stage alone, without rows: an assembled column counts as one entry (a number, or a one-hot
    vector), and an interaction as one product.
    """
    return of(type(stage).__name__, entries_of(stage))


def of_model(model: Any) -> float:
    """Microseconds per row of all leaf stages of a fitted pipeline.

    Raises:
        InputError: a stage is not fitted; names it.
    """
    return sum(of_stage(stage) for _, stage in flatten(model))


def entries_of(stage: Any) -> float:
    """The entries of a fitted stage; 0 for a class that isn't in the table."""
    read = ENTRIES.get(type(stage).__name__)
    return float(read(stage)) if read is not None else 0.0


def lookups(trees: int, nodes: int) -> float:
    """The nodes on a row's way through this many trees with this many nodes in all."""
    return trees * math.log2(nodes / trees + 1)


def _columns(stage: Any) -> int:
    return len(stage.getInputCols()) if stage.isSet("inputCols") else 1


def _covariances(stage: Any) -> int:
    return len(stage.weights) * int(stage.gaussiansDF.first()["mean"].size) ** 2


def _ensemble(stage: Any) -> float:
    return lookups(stage.getNumTrees, stage.totalNumNodes)


def _coefficients(stage: Any) -> int:
    return int(stage.numFeatures)


def _logistic(stage: Any) -> int:
    return int(stage.coefficientMatrix.numRows * stage.coefficientMatrix.numCols)


ENTRIES: Mapping[str, Callable[[Any], float]] = {
    "VectorAssembler": _columns,
    "Interaction": lambda stage: 1,
    "VectorSizeHint": lambda stage: stage.getSize(),
    "ElementwiseProduct": lambda stage: stage.getScalingVec().size,
    "StandardScalerModel": lambda stage: stage.std.size,
    "MinMaxScalerModel": lambda stage: stage.originalMin.size,
    "MaxAbsScalerModel": lambda stage: stage.maxAbs.size,
    "RobustScalerModel": lambda stage: stage.range.size,
    "StringIndexerModel": _columns,
    "OneHotEncoderModel": _columns,
    "Bucketizer": _columns,
    "IsotonicRegressionModel": lambda stage: math.log2(max(stage.boundaries.size, 2)),
    "PCAModel": lambda stage: stage.pc.numRows * stage.pc.numCols,
    "LinearRegressionModel": _coefficients,
    "GeneralizedLinearRegressionModel": _coefficients,
    "LogisticRegressionModel": _logistic,
    "MultilayerPerceptronClassificationModel": lambda stage: stage.weights.size,
    "GaussianMixtureModel": _covariances,
    "DecisionTreeRegressionModel": lambda stage: lookups(1, stage.numNodes),
    "DecisionTreeClassificationModel": lambda stage: lookups(1, stage.numNodes),
    "RandomForestRegressionModel": _ensemble,
    "RandomForestClassificationModel": _ensemble,
    "GBTRegressionModel": _ensemble,
    "GBTClassificationModel": _ensemble,
}
