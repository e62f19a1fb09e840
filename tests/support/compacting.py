"""Comparing the columns of a pipeline with those of what `compact` makes of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vector
from pyspark.sql import DataFrame

TOLERANCE = 1e-9


def values(model: Any, rows: DataFrame, columns: Sequence[str]) -> list[list[Any]]:
    """Per column the values of all rows, vectors as arrays."""
    found = model.transform(rows).select(*("`" + c.replace("`", "``") + "`" for c in columns)).collect()
    return [[row[i].toArray() if isinstance(row[i], Vector) else row[i] for row in found] for i in range(len(columns))]


def difference(old: Sequence[Any], new: Sequence[Any]) -> float:
    """The largest difference of a column's values, over max(1, |value|); inf where NaN, null, text or lengths differ."""
    if len(old) != len(new):
        return np.inf
    return max(map(_difference, old, new), default=0.0)


def _difference(a: Any, b: Any) -> float:
    if not isinstance(a, (float, np.ndarray)) or type(a) is not type(b):
        return 0.0 if a == b else np.inf
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return np.inf
    same = np.isnan(a) | (a == b)
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(a))).max(initial=0.0))


def worst(model: Any, new: Any, rows: DataFrame, columns: Sequence[str]) -> float:
    """The largest difference of these columns."""
    pairs = zip(values(model, rows, columns), values(new, rows, columns), strict=True)
    return max((difference(a, b) for a, b in pairs), default=0.0)
