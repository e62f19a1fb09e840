"""IsotonicRegressionModel, which spark.ml builds around a model of spark.mllib."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import Vectors
from pyspark.ml.wrapper import JavaParams

from sparkdiff import jvm


def rebuild(stage: Any, boundaries: np.ndarray, predictions: np.ndarray, isotonic: bool) -> Any:
    """A new fitted stage like `stage` with these boundaries and predictions (m,)."""
    if not jvm.has_constructors():
        return jvm.rebuild(
            stage, {"boundaries": boundaries.tolist(), "predictions": predictions.tolist(), "isotonic": isotonic}
        )
    old = stage.copy()
    context: Any = jvm.session().sparkContext
    java, scala = old._java_obj, context._jvm.org.apache.spark
    both = (_py2java(context, Vectors.dense(values)).toArray() for values in (boundaries, predictions))
    inner = scala.mllib.regression.IsotonicRegressionModel(*both, isotonic)
    new = scala.ml.regression.IsotonicRegressionModel(java.uid(), inner)
    java.copyValues(new, scala.ml.param.ParamMap.empty())
    return old._copyValues(JavaParams._from_java(new)._resetUid(stage.uid))
