"""The votes of labelling functions on the rows of a DataFrame, counted by Spark in one pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import BooleanType, NumericType

from sparkdiff import jvm
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.labeling.estimates import ABSTAINS, Floats, Ints
from sparkdiff.pipeline.names import named

MOST = 1_000_000
"""Patterns of votes that are fetched at most; rows are sampled where there are more."""
SAMPLE = 200_000
"""Rows, about, of such a sample; an accuracy is known to 0.003 then."""


@dataclass(frozen=True)
class Votes:
    """
    Attributes:
        patterns: (P, m) distinct rows of votes, -1 where a function abstains.
        weights: (P,) rows of each.
        known: (P,) class of labelled rows, -1 of others.
        sampled: whether rows were sampled.
    """

    patterns: Ints
    weights: Floats
    known: Ints
    sampled: bool


def counted(df: DataFrame, votes: Mapping[str, str], labelCol: str | None, weightCol: str | None, seed: int) -> Votes:
    """Count each pattern of votes.

    Raises:
        InputError: a vote is no number, or cannot be computed; names the function.
    """
    check_columns(df, votes, labelCol, weightCol)
    grouped = _grouped(df, votes, labelCol, weightCol)
    try:
        with jvm.by_arrow():
            found, sampled = grouped.limit(MOST + 1).toPandas(), False
            if len(found) > MOST:
                share = min(SAMPLE / df.count(), 1.0)
                found, sampled = _grouped(df.sample(share, seed), votes, labelCol, weightCol).toPandas(), True
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while it computed the votes: {jvm.cause(e)}") from e
    values = found.to_numpy(dtype=np.float64, na_value=np.nan)
    values = values[values[:, -1] > 0]
    classes = values[:, :-1]
    _check_classes([*votes, labelCol or "the label"], classes)
    whole = np.where(np.isnan(classes), ABSTAINS, classes).astype(np.int64)
    return Votes(whole[:, : len(votes)], values[:, -1], whole[:, len(votes)], sampled)


def _grouped(df: DataFrame, votes: Mapping[str, str], labelCol: str | None, weightCol: str | None) -> DataFrame:
    names = [f"v{i}" for i in range(len(votes))]
    cast = [F.expr(told).cast("double").alias(name) for name, told in zip(names, votes.values(), strict=True)]
    label = (F.lit(None) if labelCol is None else named(labelCol)).cast("double").alias("label")
    weight = (F.lit(1) if weightCol is None else named(weightCol)).cast("double").alias("weight")
    return df.select(*cast, label, weight).groupBy(*names, "label").agg(F.sum("weight").alias("weight"))


def check_columns(df: DataFrame, votes: Mapping[str, str], labelCol: str | None, weightCol: str | None) -> None:
    """
    Raises:
        InputError: a vote is no SQL, or no number; or a column does not exist, or holds no numbers.
    """
    for option, column in (("labelCol", labelCol), ("weightCol", weightCol)):
        if column is None:
            continue
        field = next((f for f in df.schema.fields if f.name.lower() == column.lower()), None)
        if field is None:
            raise InputError(f"{option}={column!r} is not a column of the data. {did_you_mean(column, df.columns)}")
        if not isinstance(field.dataType, NumericType):
            raise InputError(
                f"{option}={column!r} holds {field.dataType.simpleString()}, not numbers of classes or weights"
            )
    for name, told in votes.items():
        try:
            kind = df.select(F.expr(told)).schema.fields[0].dataType
        except jvm.SparkError as e:
            raise InputError(f"the vote {name!r} ({told}) can't be computed from the data: {jvm.cause(e)}") from e
        if isinstance(kind, BooleanType):
            raise InputError(
                f"the vote {name!r} ({told}) is true or false, which is no class: vote 1 where it holds and abstain elsewhere by "
                f"CASE WHEN {told} THEN 1 END"
            )
        if not isinstance(kind, NumericType):
            raise InputError(
                f"the vote {name!r} ({told}) is {kind.simpleString()}: a vote is the number of a class, or null"
            )


def _check_classes(names: Sequence[str], classes: Any) -> None:
    """Raise InputError for a vote that is not null and no whole number from 0 on; names the function and the value."""
    wrong = ~np.isnan(classes) & ((classes < 0) | (classes != np.floor(classes)) | np.isinf(classes))
    if wrong.any():
        row, column = (int(x) for x in np.argwhere(wrong)[0])
        value = float(classes[row, column])
        hint = "; null abstains" if value < 0 else ""
        shown = int(value) if math.isfinite(value) and value == int(value) else value
        raise InputError(f"{names[column]!r} is {shown} in some rows: classes are 0, 1, 2 and so on{hint}")
