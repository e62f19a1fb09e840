"""Stages with any weights and Params, and rows that find the corners of arithmetic."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyspark.ml.feature import OneHotEncoder
from pyspark.ml.linalg import SparseVector, Vectors
from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.testing import check_stages

Fitted = Callable[[str], Any]
"""The fixture `fitted`: a fitted stage by the name of its estimator."""
Features = Callable[[int], DataFrame]
"""The fixture `features`: rows by the width of their vectors."""
AT_ONCE = 12
"""Stages that are drawn at once."""
IN_A_JOB = 6
"""Stages per Spark job: a job costs as much as four stages do, and a stage the more the more of them are in its job."""
COLUMNS = ("mixed", "dense", "sparse")
"""How the rows of `features(width)` are stored."""
ORDINARY = (0.0, -0.0, 1.0, -1.0, 0.5, -2.25, 3.7, 1e-3, 40.0, -40.0)
EXTREME = (np.nan, np.inf, -np.inf, 5e-324, 1e-308, 710.0, -745.5, 1e5, 1e300, -1e300)


def built(base: Any, weights: dict[str, Any], **params: Any) -> Any:
    """`base` with these weights and Params; a Param None stays as it is."""
    stage = jvm.rebuild(base, weights)
    return stage.copy({stage.getParam(name): value for name, value in params.items() if value is not None})


def check(stages: Sequence[Any], df: DataFrame) -> None:
    for first in range(0, len(stages), IN_A_JOB):
        check_stages(stages[first : first + IN_A_JOB], df)


def adversarial(width: int) -> list[np.ndarray]:
    """Rows of ordinary numbers; then each extreme in the first and last place, one to a row; then several not finite.

    Two huge numbers in a row could cancel, and what is left would depend on the order of summation: no side is right then.
    """
    random = np.random.default_rng(width)
    rows = [random.choice(ORDINARY, width) for _ in range(8)]
    rows += [random.normal(size=width) * 10.0**k for k in (-3, 0, 1) for _ in range(4)]
    for value in EXTREME if width else ():
        for place in {0, width - 1}:
            rows.append(random.choice(ORDINARY, width))
            rows[-1][place] = value
    rows += [np.zeros(width), np.full(width, np.nan), np.full(width, np.inf)]
    rows += [random.choice([np.inf, -np.inf, 0.0], width) for _ in range(3)]
    return rows


def sparse(values: np.ndarray) -> SparseVector:
    stored = np.flatnonzero(values)  # NaN is stored
    return Vectors.sparse(len(values), stored, values[stored])


def one_hot(df: DataFrame, levels: Sequence[int], **params: Any) -> Any:
    """A fitted OneHotEncoder; sizes come from the columns' attributes, so that fitting runs no job."""
    names = [f"i{k}" for k in range(len(levels))]
    attributes = [{"ml_attr": {"type": "nominal", "num_vals": n}} for n in levels]
    seen = df.select(*(F.lit(0.0).alias(c, metadata=a) for c, a in zip(names, attributes, strict=True)))
    return OneHotEncoder(inputCols=names, outputCols=[f"{c} hot" for c in names], **params).fit(seen)


def with_features(base: Any, *selected: int, **params: Any) -> Any:
    """A fitted selector that has selected these."""
    java = jvm.session().sparkContext._gateway.new_array(jvm.session().sparkContext._gateway.jvm.int, len(selected))
    for i, feature in enumerate(selected):
        java[i] = feature
    kind = getattr(jvm.session().sparkContext._jvm.org.apache.spark.ml.feature, type(base).__name__)
    stage = type(base)._from_java(kind("selector", java))
    return stage.copy({stage.getParam(name): value for name, value in {"outputCol": "picked", **params}.items()})
