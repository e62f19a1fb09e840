"""The rows of a search: those that fit, those that choose among trials, and fresh ones that no trial sees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, Row, functions as F

from sparkdiff import jvm
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.row_hashes import COPY
from sparkdiff.data.splits import (
    BLOCK,
    SPLIT,
    TEST,
    TIME,
    TRAIN,
    VALIDATION,
    Source,
    below,
    check_columns,
    numbered,
    unit_and_block,
    with_splits,
)
from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.pipeline.names import named, read_by_name
from sparkdiff.tuning.scores import CLASSIFIERS
from sparkdiff.tuning.search.samplers import seed_of

MOST_CLASSES = 1000
"""Values of a label that are looked at one by one."""


@dataclass(frozen=True)
class SearchSplit:
    """How the rows of a search are divided.

    Attributes:
        validation, test: shares of all rows that choose among trials, and that are fresh.
    """

    validation: float
    test: float
    groupCol: str | None = None
    timeCol: str | None = None
    seed: int = 0

    def options(self, share: float, what: str) -> Options:
        """Each division by a hash of its own, which no FineTuner has either: it would find rows of one side only."""
        seed = 2**40 + seed_of(self.seed, 0, what)
        return Options(validationFraction=share, groupCol=self.groupCol, timeCol=self.timeCol, seed=seed)


@dataclass(frozen=True)
class Divided:
    """The rows of a search.

    Attributes:
        rows: all, with the columns SPLIT, BLOCK and TIME.
        columns: those of the data.
    """

    rows: DataFrame
    columns: tuple[str, ...]

    def part(self, split: str) -> DataFrame:
        """The rows of a part, with the columns of the data only."""
        return self.rows.where(F.col(SPLIT) == split).select(*map(named, self.columns))

    def fresh(self) -> DataFrame:
        """The fresh rows, with BLOCK and TIME."""
        return self.rows.where(F.col(SPLIT) == TEST).drop(SPLIT)

    def judged(self, share: float) -> DataFrame:
        """The fresh rows, with BLOCK and TIME, which is 0 where there are no times; and this share of the rows, or groups, that
        fit the models, without a time.
        """
        trains, time = F.col(SPLIT) == TRAIN, F.coalesce(F.col(TIME), F.lit(0.0))
        sampled = below(F.xxhash64(F.col(BLOCK), F.col(TIME)), share, "training")  # with times all have one block
        rows = self.rows.where((F.col(SPLIT) == TEST) | (trains & sampled))
        return rows.withColumn(TIME, F.when(~trains, time)).drop(SPLIT)


FOLD = "__sparkdiff_fold"


def divided(df: DataFrame, split: SearchSplit) -> Divided:
    """Rows by a hash; whole groups where there are any; with times the latest ones are fresh, those before them choose.

    Raises:
        InputError: a column is missing or has a wrong type, or holds no time.
    """
    fresh = split.options(split.test, "fresh rows")
    check_columns(df, fresh)
    df = _of_one_name(df)
    chooses = split.options(split.validation / (1 - split.test), "rows that choose")
    if split.timeCol:  # which rows choose depends on the times of those that aren't fresh
        (first,) = with_splits([Source(df)], fresh)
        held = F.coalesce(F.col(SPLIT) == VALIDATION, F.lit(False))
        test = first.where(held).withColumn(SPLIT, F.lit(TEST))
        (second,) = with_splits([Source(first.where(~held).drop(SPLIT, BLOCK, TIME))], chooses)
        return Divided(second.unionByName(test), tuple(df.columns))
    columns, df = tuple(df.columns), numbered(df, fresh)
    # Each row once: a column that is another one at each reading would put rows into two parts, and others into none.
    (unit, block), (rest, other) = (unit_and_block(df, options) for options in (fresh, chooses))
    tests, chosen = below(unit, fresh.validationFraction, "split"), below(rest, chooses.validationFraction, "split")
    part = F.when(tests, TEST).when(chosen, VALIDATION).otherwise(TRAIN)
    own = {SPLIT: part, BLOCK: F.when(tests, block).otherwise(other), TIME: F.lit(None).cast("double")}
    return Divided(df.withColumns(own).drop(COPY), columns)


def _of_one_name(df: DataFrame) -> DataFrame:
    """Without columns that share a name, which no stage can read."""
    alone = read_by_name(df)
    return df if len(alone) == len(df.columns) else df.select(*map(named, alone))


def in_folds(df: DataFrame, split: SearchSplit, folds: int) -> DataFrame:
    """Rows with SPLIT (train or validation), BLOCK and FOLD; a block is in one fold as a whole.

    Raises:
        InputError: a column is missing or has a wrong type.
    """
    chooses = split.options(split.validation, "rows that choose")
    check_columns(df, chooses)
    df = _of_one_name(df)
    (dealt,) = with_splits([Source(df)], chooses)
    block = F.pmod(F.col(BLOCK), F.lit(MAX_BLOCKS))
    return dealt.withColumn(FOLD, F.pmod(F.xxhash64(block, F.lit("fold")), F.lit(folds)).cast("double"))


def check_folds(rows: DataFrame, split: SearchSplit, evaluators: Sequence[Any], folds: int) -> dict[str, int]:
    """Count the rows of all folds by one job, before the first fit.

    Raises:
        InputError: a fold has no rows, a group is missing, or a class is where a model is fitted or judged.
    """
    label = _label(rows, evaluators)
    counts = _counted(rows, [F.col(FOLD).alias("fold"), F.col(SPLIT)], split, label, 2 * folds * MOST_CLASSES)
    if absent := {*range(folds)} - {int(row["fold"]) for row in counts}:
        raise InputError(f"fold {min(absent)} of {folds} has no rows: use a smaller numFolds")
    for part in ("train", "validation"):
        if not any(row[SPLIT] == part for row in counts):
            raise InputError(f"0 rows are in the {part} part: validationFraction={split.validation:g}")
    if label and len(counts) < 2 * folds * MOST_CLASSES:
        for fold in range(folds):
            inner = {
                p: {r["label"] for r in counts if r[SPLIT] == p and r["fold"] != fold} for p in ("train", "validation")
            }
            _check_classes(
                label, {**inner, f"held-out (fold {fold})": {r["label"] for r in counts if r["fold"] == fold}}
            )
    totals = {p: sum(r["rows"] for r in counts if r[SPLIT] == p) for p in ("train", "validation")}
    return {**totals, TEST: sum(totals.values())}


def check_rows(rows: Divided, split: SearchSplit, evaluators: Sequence[Any]) -> dict[str, int]:
    """Count the rows by one job, before the first fit.

    Raises:
        InputError: no row is fresh, a group or time is missing, or a class is where a model is fitted or judged.
    """
    label = _label(rows.rows, evaluators)
    counts = _counted(rows.rows, [F.col(SPLIT)], split, label, 3 * MOST_CLASSES)
    if any(row[0] is None for row in counts):
        raise InputError(
            f"timeCol={split.timeCol!r} holds nulls, NaN or infinite times, so it can't be told to which part these rows belong"
        )
    totals = {s: sum(row["rows"] for row in counts if row[0] == s) for s in ("train", "validation", TEST)}
    shares = {
        "train": "",
        "validation": f": validationFraction={split.validation:g}",
        TEST: f": testFraction={split.test:g}",
    }
    for name, total in totals.items():
        if not total:
            raise InputError(f"0 rows are in the {name} part, and at least 1 is needed{shares[name]}")
    if label and len(counts) < 3 * MOST_CLASSES:
        _check_classes(label, {s: {r["label"] for r in counts if r[0] == s} for s in totals})
    return totals


def _counted(df: DataFrame, keys: Sequence[Column], split: SearchSplit, label: str | None, most: int) -> list[Row]:
    """The rows by these columns and by the label, where there is one, in so many entries at most.

    Raises:
        InputError: a group is missing, or Spark failed.
    """
    named_keys = [*keys, *([named(label).cast("double").alias("label")] if label else [])]
    missing = F.sum(F.col(BLOCK).isNull().cast("int")).alias("missing")
    try:
        counts = df.groupBy(*named_keys).agg(F.count(F.lit(1)).alias("rows"), missing).limit(most).collect()
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while reading the rows: {jvm.cause(e)}") from e
    if split.groupCol and any(row["missing"] for row in counts):
        raise InputError(
            f"groupCol={split.groupCol!r} holds nulls, so it can't be told to which group these rows belong"
        )
    return counts


def _label(df: DataFrame, evaluators: Sequence[Any]) -> str | None:
    """The column of classes, if the data have it and models of classes are judged."""
    names = {e.getLabelCol() for e in evaluators if type(e) in CLASSIFIERS}
    kinds = dict(df.dtypes)
    numeric = [
        name for name in names if kinds.get(name, "").startswith(("double", "float", "int", "bigint", "boolean"))
    ]
    return numeric[0] if numeric else None


def _check_classes(label: str, classes: dict[str, set[Any]]) -> None:
    every = set().union(*classes.values())
    if None in every or any(isinstance(c, float) and math.isnan(c) for c in every):
        raise InputError(f"labelCol={label!r} holds nulls or NaN: leave these rows out")
    if len(every) < 2:
        raise InputError(f"labelCol={label!r} holds one class only, {min(every):g}: there is nothing to tell apart")
    if len(every) > 2 and len(every) > MOST_CLASSES:
        return
    for part, seen in classes.items():
        lacks = every - seen
        if lacks and (part == "train" or len(every) == 2):
            raise InputError(
                f"the {part} part has no row of class {min(lacks):g} of {label!r}: use more rows, another seed, or another share"
            )
