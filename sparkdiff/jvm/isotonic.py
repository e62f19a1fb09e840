"""IsotonicRegressionModel, which spark.ml builds around a model of spark.mllib."""

from typing import Any

import numpy as np
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import Vectors

from sparkdiff.jvm import rebuilding, sessions


def rebuild(stage: Any, boundaries: np.ndarray, predictions: np.ndarray, isotonic: bool) -> Any:
    """A new fitted stage like `stage` with these boundaries and predictions (m,)."""

    def inner(packages: Any, java: Any) -> Any:
        context: Any = sessions.session().sparkContext
        both = (_py2java(context, Vectors.dense(values)).toArray() for values in (boundaries, predictions))
        return packages.org.apache.spark.mllib.regression.IsotonicRegressionModel(*both, isotonic)

    lists = {"boundaries": boundaries.tolist(), "predictions": predictions.tolist(), "isotonic": isotonic}
    return rebuilding.rebuild_around(stage, lists, inner)
