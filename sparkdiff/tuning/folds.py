"""Training and validation rows of each fold: the same as in pyspark's own classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyspark.ml.classification import Classifier
from pyspark.ml.feature import StringIndexer
from pyspark.sql import Column, DataFrame, functions as F

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.jvm import SparkError, cause
from sparkdiff.pipeline.column_names import casefolding, col_by_name, read_by_name
from sparkdiff.stages.base import columns_of
from sparkdiff.tuning.cached_rows import RowsStore

Pairs = Sequence[tuple[DataFrame, DataFrame]]


@dataclass(frozen=True)
class Folds:
    """All rows, and how they are split.

    Attributes:
        drawn: True if random numbers split the rows, so that rows must be cached: read again, they could be split
            otherwise. False if the split is given.
        held_out: the fold that holds a row out for validation; -1 for none.
        split: function that returns the training and validation rows of each fold.
        kept: the store of written rows, if other settings on these rows follow; else None.
    """

    rows: DataFrame
    held_out: Column
    count: int
    split: Callable[[], Pairs]
    drawn: bool = True
    kept: RowsStore | None = None

    @cached_property
    def pairs(self) -> Pairs:
        return self.split()


def random_folds(dataset: DataFrame, column: str, seed: int, folds: int, split: Callable[[DataFrame], Pairs]) -> Folds:
    """The same folds as pyspark's `CrossValidator._kFold`, which the caller passes as `split`."""
    rows, width = dataset.select("*", F.rand(seed).alias(column)), 1.0 / folds
    drawn, fold = rows[column], F.lit(-1)
    for i in range(folds):  # the bounds of _kFold, to the bit
        fold = F.when((drawn >= i * width) & (drawn < (i + 1) * width), F.lit(i)).otherwise(fold)
    return Folds(rows, fold, folds, lambda: split(dataset))


def folds_from_column(dataset: DataFrame, column: str, folds: int) -> Folds:
    """The folds given by a column. One job checks its values; Spark's own class checks them row by row, in Python.

    Raises:
        InputError: a value is no fold number, or a fold has no rows.
    """
    found = [row[0] for row in dataset.select(F.col(column)).distinct().limit(folds + 100).collect()]
    if wrong := [value for value in found if value not in range(folds)]:
        raise InputError(
            f"foldCol={column!r} holds {', '.join(map(repr, wrong[:3]))}: with numFolds={folds} its values must be 0 to "
            f"{folds - 1}"
        )
    if absent := sorted({*range(folds)} - {*found}):
        raise InputError(
            f"foldCol={column!r} has no row of fold {', '.join(map(str, absent))}: numFolds is {folds}, but the column "
            f"holds {len(found)} folds"
        )
    fold = F.col(column)

    def pairs() -> Pairs:
        return [(dataset.filter(fold != F.lit(i)), dataset.filter(fold == F.lit(i))) for i in range(folds)]

    return Folds(dataset, fold.cast("int"), folds, pairs, drawn=False)


def split_once(dataset: DataFrame, column: str, seed: int, ratio: float) -> Folds:
    """The same split as in pyspark's `TrainValidationSplit._fit`, as one fold."""
    rows = dataset.select("*", F.rand(seed).alias(column))
    held = rows[column] >= ratio
    fold = F.when(held, F.lit(0)).otherwise(F.lit(-1))
    return Folds(rows, fold, 1, lambda: [(rows.filter(~held), rows.filter(held))])


def check_classes(folds: Folds, stages: Sequence[Any], error: Exception) -> None:
    """Raise InputError if the training rows of a fold have fewer than two classes; `error` is the error with which Spark failed.

    Args:
        stages: the estimator's stages; a StringIndexer among them may make the label from a column of the rows.
    """
    made = {
        out: column
        for stage in stages
        if isinstance(stage, StringIndexer)
        for out, column in zip(
            columns_of(stage, ("outputCol", "outputCols")), columns_of(stage, ("inputCol", "inputCols")), strict=False
        )
    }
    labels = {stage.getOrDefault("labelCol") for stage in stages if isinstance(stage, Classifier)}
    columns = read_by_name(folds.rows)
    for column in (name for name in (made.get(label, label) for label in sorted(labels)) if name in columns):
        for i, (train, _) in enumerate(folds.pairs):
            if len(found := train.select(col_by_name(column)).distinct().limit(2).collect()) < 2:
                raise InputError(
                    f"fold {i} is trained on rows of one class, {column}={found[0][0]!r}, which Spark fails on "
                    f"({cause(error)}): take fewer folds, or spread the classes over the folds of a foldCol"
                    if found
                    else f"fold {i} is trained on no rows: check how the data are read and filtered, or take fewer folds"
                ) from error


def check_column(dataset: DataFrame, column: str) -> None:
    """Raise InputError if there is no such column, or several."""
    casefold = casefolding()
    if len(same := [repr(name) for name in dataset.columns if casefold(name) == casefold(column)]) > 1:
        raise InputError(f"foldCol={column!r} matches {len(same)} columns, {', '.join(same)}: rename all but one")
    try:
        _ = dataset.select(F.col(column)).schema  # for Spark Connect, this asks the server
    except SparkError as e:
        raise InputError(
            f"foldCol={column!r} is not a column of the data. {did_you_mean(column, dataset.columns)}"
        ) from e
