"""Comparing what a Scorer computes with Spark's own transform, row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vector
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError, Scorer
from sparkdiff.jvm import SparkError

ORDER = "__order"


def origin(spark: SparkSession) -> dict[str, Any]:
    """What a file tells of where it was made."""
    java = "java_method('java.lang.System', 'getProperty', 'java.version') AS javaVersion"
    told: dict[str, Any] = spark.sql(f"SELECT {java}, current_timezone() AS timeZone").head().asDict()  # type: ignore[union-attr]
    return told | {"sparkVersion": spark.version}


def plain(value: Any) -> Any:
    return value.toArray() if isinstance(value, Vector) else value


def same(ours: Any, theirs: Any, tolerance: float) -> bool:
    """Whether two values of a column agree: numbers and vectors within the tolerance, all else exactly."""
    ours, theirs = plain(ours), plain(theirs)
    if isinstance(theirs, (str, list)) or theirs is None or ours is None:
        is_nan = isinstance(ours, np.ndarray) and np.isnan(ours).all()  # a vector that is null, as of a one-hot encoder
        return bool(is_nan) if theirs is None and ours is not None else bool(ours == theirs)
    if isinstance(theirs, int):
        return type(ours) is int and ours == theirs
    a, b = np.atleast_1d(np.asarray(ours, float)), np.atleast_1d(np.asarray(theirs, float))
    if a.shape != b.shape:
        return False
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= tolerance * np.maximum(1.0, np.abs(b))
    return bool((near | (a == b) | (np.isnan(a) & np.isnan(b))).all())


def in_spark(model: Any, df: DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """What Spark computes, in the order of the rows."""
    return list(kept_by_spark(model, df, columns).values())


def kept_by_spark(model: Any, df: DataFrame, columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    """What Spark computes of the rows that it does not drop, by their place."""
    numbered = df.coalesce(1).withColumn(ORDER, F.monotonically_increasing_id())
    found = model.transform(numbered).select(ORDER, *("`" + c.replace("`", "``") + "`" for c in columns))
    rows = sorted(found.collect(), key=lambda row: row[0])
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}


def differences(scorer: Scorer, model: Any, df: DataFrame, tolerance: float = 1e-9) -> list[str]:
    """What differs between Spark and the scorer, asked for all rows and for each of the first rows alone; rows that Spark drops
    must be refused.
    """
    every = [row.asDict(recursive=True) for row in df.coalesce(1).collect()]
    kept = kept_by_spark(model, df, scorer.outputCols)
    answered = [row for i, row in enumerate(every) if i not in kept and not refuses(scorer, row)]
    rows, theirs = [every[i] for i in kept], list(kept.values())
    asked = [("together", scorer.predict(rows), theirs), ("alone", [scorer.predict(r) for r in rows[:20]], theirs[:20])]
    return [f"Spark drops {row}" for row in answered] + [
        f"{how}: {name} of row {i} {rows[i]}: {ours[name]!r}, and Spark's is {spark[name]!r}"
        for how, found, wished in asked
        for i, (ours, spark) in enumerate(zip(found, wished, strict=True))
        for name in spark
        if not same(ours[name], spark[name], tolerance)
    ]


def fails(model: Any, df: DataFrame, columns: Sequence[str]) -> bool:
    """Whether Spark fails on these rows."""
    try:
        in_spark(model, df, columns)
    except SparkError:
        return True
    return False


def refuses(scorer: Scorer, row: dict[str, Any]) -> bool:
    try:
        scorer.predict(row)
    except InputError:
        return True
    return False
