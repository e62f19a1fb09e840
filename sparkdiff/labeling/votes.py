"""Patterns of votes (combinations of the votes of all labelling functions on a row), counted by Spark in one pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import BooleanType, NullType, NumericType

from sparkdiff import jvm
from sparkdiff.data.splits import field
from sparkdiff.errors import InputError
from sparkdiff.jvm.query_plans import draws
from sparkdiff.labeling.estimates import ABSTAINS, Floats, Ints
from sparkdiff.labeling.posterior_stages import as_number
from sparkdiff.pipeline.column_names import col_by_name

MOST = 1_000_000
"""Largest number of patterns that are collected; if there are more, rows are sampled."""
SAMPLE = 200_000
"""Approximate number of rows without a label in such a sample; an accuracy is then known to within about 0.003."""


@dataclass(frozen=True)
class Votes:
    """Patterns of votes and their weights.

    Attributes:
        patterns: (P, m) votes of the m functions in each pattern, -1 where a function abstains. Rows with different labels
            have patterns of their own.
        weights: (P,) total weight of the rows of each pattern, scaled so that the average weight of a row is 1.
        rows: (P,) number of rows of each pattern with weight above 0.
        known: (P,) class of each pattern if its rows have a label, else -1.
        sampled: True if rows were sampled.
    """

    patterns: Ints
    weights: Floats
    rows: Floats
    known: Ints
    sampled: bool


def count_vote_patterns(
    df: DataFrame, votes: Mapping[str, str], labelCol: str | None, weightCol: str | None, seed: int
) -> Votes:
    """Count the rows of each pattern of votes.

    Raises:
        InputError: a vote can't be computed or is not a class (the message names the function); a label is not a class; a
            weight is negative or not finite, or all are 0; or the label or weight column is missing or has no numbers.
    """
    check_columns(df, votes, labelCol, weightCol)
    try:
        table = _table(df, votes, labelCol, weightCol)
        with jvm.by_arrow():
            found, sampled = _group_by_pattern(table).limit(MOST + 1).toPandas(), False
            if len(found) > MOST:
                found, sampled = _group_by_pattern(_sample(table, seed)).toPandas(), True
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while it computed {_failing(df, votes)}: {jvm.cause(e)}") from e
    values = found.to_numpy(dtype=np.float64, na_value=np.nan)
    _check_weights(weightCol, *values[:, -4:].T)
    values = values[values[:, -4] > 0]
    classes, weights, rows = values[:, :-4], values[:, -4], values[:, -3]
    _check_classes([*votes, labelCol or "the label"], classes)
    whole = np.where(np.isnan(classes), ABSTAINS, classes).astype(np.int64)
    weights = weights * (rows.sum() / max(weights.sum(), np.finfo(float).tiny))
    return Votes(whole[:, : len(votes)], weights, rows, whole[:, len(votes)], sampled)


def _failing(df: DataFrame, votes: Mapping[str, str]) -> str:
    """Text that names the first vote that fails when it is computed alone; "the votes" if no vote does."""
    for name, told in votes.items():
        try:
            df.agg(F.max(F.expr(as_number(told)))).collect()
        except jvm.SparkError:
            return f"the vote {name!r} ({told})"
    return "the votes"


def _table(df: DataFrame, votes: Mapping[str, str], labelCol: str | None, weightCol: str | None) -> DataFrame:
    """Columns `v0`, `v1`, ... with the votes, `label` and `weight`, as doubles. Except in `weight`, NaN is replaced by null."""
    cast = [
        F.nanvl(F.expr(as_number(told)), F.lit(None).cast("double")).alias(f"v{i}")
        for i, told in enumerate(votes.values())
    ]
    label = (F.lit(None) if labelCol is None else col_by_name(labelCol)).cast("double")
    weight = (F.lit(1) if weightCol is None else col_by_name(weightCol)).cast("double")
    return df.select(*cast, F.nanvl(label, F.lit(None).cast("double")).alias("label"), weight.alias("weight"))


def _group_by_pattern(table: DataFrame) -> DataFrame:
    """One row for each pattern of votes and label, with four more columns: `weight` (sum of valid weights), `rows` (number of
    rows with weight above 0), `number` (number of invalid weights), and `value` (the smallest invalid weight).
    """
    weight = F.col("weight")
    wrong = weight.isNull() | F.isnan(weight) | (weight < 0) | (weight == math.inf)
    kept = F.when(~wrong, weight)
    return table.groupBy(*table.columns[:-1]).agg(
        F.coalesce(F.sum(kept), F.lit(0.0)).alias("weight"),
        F.count(F.when(kept > 0, 1)).alias("rows"),
        F.count(F.when(wrong, 1)).alias("number"),
        F.min(F.when(wrong, weight)).alias("value"),
    )


def _sample(table: DataFrame, seed: int) -> DataFrame:
    """Sample about `SAMPLE` rows without a label, and about `MOST` rows with a label, or all if there are fewer. Weights are
    divided by the sampled share.
    """
    row = table.agg(F.count(F.lit(1)), F.count("label")).first()
    rows, labelled = (int(x) for x in row) if row is not None else (0, 0)
    without, known = (min(SAMPLE / max(n, 1), 1.0) for n in (rows - labelled, labelled / (MOST // SAMPLE)))
    share = F.when(F.col("label").isNull(), without).otherwise(known)
    return table.where(F.rand(seed) < share).withColumn("weight", F.col("weight") / share)


def _check_weights(weightCol: str | None, weight: Floats, _rows: Floats, number: Floats, value: Floats) -> None:
    """Check the weights of the rows, from the columns of `_group_by_pattern`.

    Raises:
        InputError: a weight is null, NaN, negative or infinite, or all weights are 0. The message names the column, an
            invalid weight, and the number of rows with invalid weights.
    """
    if number.any():
        seen = value[number > 0]
        shown = "null or NaN" if np.isnan(seen).all() else repr(float(np.nanmin(seen)))
        raise InputError(
            f"weightCol={weightCol!r} holds {shown} in {number.sum():,.0f} rows; a weight must be finite and >= 0: "
            "drop or fill these rows"
        )
    if len(weight) and not weight.any():
        raise InputError(f"weightCol={weightCol!r} is 0 in all rows, so none counts: give some rows a weight above 0")


def check_columns(df: DataFrame, votes: Mapping[str, str], labelCol: str | None, weightCol: str | None) -> None:
    """Check that the votes can be computed, and that the label and weight columns hold numbers.

    Raises:
        InputError: a vote is not valid SQL, not a number, or random; or a column does not exist, or does not hold numbers.
    """
    for option, column in (("labelCol", labelCol), ("weightCol", weightCol)):
        if column is None:
            continue
        kind = field(df, column, option).dataType
        if not isinstance(kind, NumericType):
            raise InputError(
                f"{option}={column!r} holds {kind.simpleString()}, not numbers of classes or weights: cast it"
            )
    for name, told in votes.items():
        _check_vote(df, name, told)


def _check_vote(df: DataFrame, name: str, told: str) -> None:
    """Check that one vote can be computed.

    Args:
        told: SQL expression of the vote.

    Raises:
        InputError: the vote is not valid SQL, contains __THIS__, is not a number, or draws random numbers.
    """
    what = f"the vote {name!r} ({told})"
    if "__THIS__" in told:
        raise InputError(f"{what} contains __THIS__, which an SQLTransformer replaces by a table: name columns alone")
    with jvm.as_input_error(f"{what} can't be computed from the data"):
        # Also parsed without parentheses, because `1) + (1` is an expression only within them.
        alone = df.select("*", F.expr(told), F.expr(f"(\n{told}\n)"))
        kind = alone.schema.fields[-1].dataType
        drawn = draws(alone)
    if isinstance(kind, BooleanType):
        raise InputError(
            f"{what} is true or false, which is no class: vote 1 where it holds and abstain elsewhere by "
            f"CASE WHEN {told} THEN 1 END"
        )
    if not isinstance(kind, (NumericType, NullType)):
        raise InputError(f"{what} is {kind.simpleString()}: a vote is the number of a class, or null")
    if drawn:
        raise InputError(
            f"{what} can differ from one evaluation to the next, so what fit() counts is not what "
            "transform() sees: draw random numbers into a column that is saved with the data, and vote by that"
        )


def _check_classes(names: Sequence[str], classes: Any) -> None:
    """Raise InputError for a vote or label that is neither NaN nor a whole number >= 0. The message has its name and value.

    Args:
        names: names of the columns of `classes`.
        classes: (P, m + 1) votes and label of each pattern; NaN for abstaining, or without a label.
    """
    wrong = ~np.isnan(classes) & ((classes < 0) | (classes != np.floor(classes)) | np.isinf(classes))
    if wrong.any():
        row, column = (int(x) for x in np.argwhere(wrong)[0])
        value = float(classes[row, column])
        hint = "; null abstains" if value < 0 else ""
        shown = int(value) if math.isfinite(value) and value == int(value) else value
        raise InputError(f"{names[column]!r} is {shown} in some rows: classes are 0, 1, 2 and so on{hint}")
