"""The rows of a search: those that fit trials, those that choose among them, and those that decide."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.data.splits import (
    BLOCK,
    SPLIT,
    TEST,
    TIME,
    TRAIN,
    VALIDATION,
    Boundaries,
    Source,
    below,
    check_columns,
    find_boundaries,
    number_equal_rows,
    seconds,
    unit_and_block,
    with_splits,
)
from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.pipeline.column_names import col_by_name, read_by_name
from sparkdiff.proof.division import STRETCHES, Division, divide, folds_of
from sparkdiff.search.samplers import seed_of
from sparkdiff.search.search_options import Settings
from sparkdiff.tuning.evaluator_metrics import CLASSIFIERS

MOST_CLASSES = 1000
"""Largest number of distinct labels that are checked one by one."""


def _options(settings: Settings, share: float, what: str) -> Options:
    """Options of a division by its own hash. A FineTuner inside the search must divide its rows by another hash: by the
    same one, all its rows would lie on one side.
    """
    s, seed = settings, 2**40 + seed_of(settings.seed, 0, what)
    return Options(validationFraction=share, numFolds=s.folds, groupCol=s.groupCol, timeCol=s.timeCol, seed=seed)


def folds_in(settings: Settings) -> int:
    """The number of folds or stretches of time; 0 if fresh rows decide, with "auto" if they can show a smaller gain."""
    # The fresh rows count as one half of held-out rows whose other half chooses.
    share = 2 * settings.testFraction
    folds = folds_of(Options(validationFraction=share, numFolds=settings.numFolds, timeCol=settings.timeCol))
    return STRETCHES if folds and settings.timeCol else folds


@dataclass(frozen=True)
class DividedRows:
    """Rows of a search, with the columns SPLIT, BLOCK and TIME."""

    rows: DataFrame

    def part(self, split: str) -> DataFrame:
        """The rows of a part, with the columns of the data only."""
        return self.rows.where(F.col(SPLIT) == split).drop(SPLIT, BLOCK, TIME)

    def rows_to_predict(self, share: float) -> DataFrame:
        """The rows that decide, with BLOCK and TIME (0 if there are no times), and a share of the rows, or groups, that
        fit the models, which are marked by a null TIME.
        """
        trains, time = F.col(SPLIT) == TRAIN, F.coalesce(F.col(TIME), F.lit(0.0))
        sampled = below(
            F.xxhash64(F.col(BLOCK), F.col(TIME)), share, "training"
        )  # with times, BLOCK is the same for all
        of_both = self.rows.where((F.col(SPLIT) == TEST) | (trains & sampled))
        return of_both.withColumn(TIME, F.when(~trains, time)).drop(SPLIT)


def divide_rows(df: DataFrame, settings: Settings) -> tuple[DataFrame, Division]:
    """All rows, and their division: folds, stretches of time, or rows that fit, rows that choose and fresh rows.

    The division is by a hash, of whole groups if there are any; with times, the latest rows decide. The caller must
    cache the returned rows so that each row is read once: a column that changes between reads would put rows into two
    parts, and others into none.

    Raises:
        InputError: a column is missing or has a wrong type, or a row has no group or no time.
    """
    chooses = _options(settings, settings.validationFraction / (1 - settings.testFraction), "rows that choose")
    check_columns(df, chooses)
    df = df.select(*map(col_by_name, read_by_name(df)))  # no stage can read columns that share a name
    _check_units(df, settings)
    if settings.folds:
        division = divide([Source(df)], chooses)
        return division.makes.df, division
    fresh, boundaries = _options(settings, settings.testFraction, "fresh rows"), (Boundaries(), Boundaries())
    if settings.timeCol:  # the rows that choose depend on the times of the rows that aren't fresh
        time, own = seconds(df, settings.timeCol), find_boundaries([Source(df)], fresh)
        tests = time > own.deciding[0]
        boundaries = find_boundaries([Source(df.where(~tests))], chooses), own
        chosen = time > boundaries[0].deciding[0]
    else:
        df = number_equal_rows(df, fresh)
        tests, chosen = (below(unit_and_block(df, o)[0], o.validationFraction, "split") for o in (fresh, chooses))
    parts = {TRAIN: ~tests & ~chosen, VALIDATION: ~tests & chosen, TEST: tests}
    train, validation, test = (Source(df.where(rows), name, numbered=True) for name, rows in parts.items())
    return df, Division("fresh rows", (train, validation), ((train, test),), boundaries=boundaries)


def assign_splits(sources: Sequence[Source], settings: Settings, boundaries: Boundaries | None = None) -> DividedRows:
    """The rows of these sources that belong to a split.

    Args:
        boundaries: see `with_splits`.
    """
    parts = with_splits(sources, _options(settings, settings.validationFraction, "rows that choose"), boundaries)
    return DividedRows(functools.reduce(DataFrame.unionByName, parts).where(F.col(SPLIT).isNotNull()))


def _check_units(df: DataFrame, settings: Settings) -> None:
    """Raise InputError if a row has no group or no time."""
    if (column := settings.timeCol or settings.groupCol) is None:
        return
    of, holds = ("timeCol", "nulls, NaN or infinite times") if settings.timeCol else ("groupCol", "nulls")
    with jvm.as_input_error("Spark failed while reading the rows"):
        if not df.where((seconds(df, column) if settings.timeCol else col_by_name(column)).isNull()).isEmpty():
            raise InputError(
                f"{of}={column!r} holds {holds}, so these rows belong to no part: fill in the values, or leave the rows out"
            )


def check_rows(parts: Sequence[DividedRows], settings: Settings, evaluators: Sequence[Any]) -> list[dict[str, int]]:
    """Count the rows of each part by split, in one job before the first fit.

    Args:
        parts: the rows for trials (train and validation), and then the rows that decide (train and test) of each fold.

    Raises:
        InputError: a split has no rows, or lacks a class that models are fitted to or judged by; a label is null or NaN.
    """
    column = _label(parts[0].rows, evaluators)
    label, most = (
        (col_by_name(column).cast("double") if column else F.lit(None)).alias("label"),
        2 * len(parts) * MOST_CLASSES,
    )
    every = (rows.rows.select(F.lit(k).alias("part"), SPLIT, label) for k, rows in enumerate(parts))
    with jvm.as_input_error("Spark failed while reading the rows"):
        counts = functools.reduce(DataFrame.union, every).groupBy("part", SPLIT, "label").count().limit(most).collect()
    totals, classes = [dict[str, int]() for _ in parts], dict[str, set[Any]]()
    for k, name in [(part, name) for part in range(len(parts)) for name in (TRAIN, TEST if part else VALIDATION)]:
        own = {r["label"]: r["count"] for r in counts if (r["part"], r[SPLIT]) == (k, name)}
        where = f"the {name} part{f' of fold {k + 1}' * (settings.folds > 0)}"
        if not own:
            shares = "fewer folds" if settings.folds else "more rows, or other shares: validationFraction, testFraction"
            raise InputError(
                f"0 rows are in {where}, and at least 1 is needed: use {shares}"
                if counts
                else "the data have no rows: check how they are read and filtered"
            )
        classes[where], totals[k][name] = {*own}, sum(own.values())
    if column and len(counts) < most:
        _check_classes(column, classes)
    return totals


def _label(df: DataFrame, evaluators: Sequence[Any]) -> str | None:
    """The label column of a classification evaluator, if the data have it as numbers; else None."""
    kinds, names = dict(df.dtypes), [e.getLabelCol() for e in evaluators if type(e) in CLASSIFIERS]
    numbers = ("double", "float", "int", "bigint", "boolean")
    return next((name for name in names if kinds.get(name, "").startswith(numbers)), None)


def _check_classes(label: str, classes: dict[str, set[Any]]) -> None:
    every = set().union(*classes.values())
    if None in every or any(isinstance(c, float) and math.isnan(c) for c in every):
        raise InputError(f"labelCol={label!r} holds nulls or NaN: leave these rows out")
    if len(every) < 2:
        raise InputError(f"labelCol={label!r} holds one class only, {min(every):g}: there is nothing to tell apart")
    for part, seen in classes.items() if len(every) <= MOST_CLASSES else ():
        lacks = every - seen
        if lacks and (part.startswith(f"the {TRAIN}") or len(every) == 2):
            raise InputError(
                f"{part} has no row of class {min(lacks):g} of {label!r}: use more rows, other shares, or fewer folds"
            )
