"""The folds of cross-fitting: which rows judge which training, by the hash of the row or group."""

import dataclasses
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.data import soft_labels
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import (
    REFERENCE,
    TEST,
    TRAIN,
    VALIDATION,
    Source,
    below,
    check_columns,
    numbered,
    unit_and_block,
)
from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.pipeline.names import named

MOST_CLASSES = 100
"""Distinct labels up to which they are looked at fold by fold."""


def _fold(df: DataFrame, options: Options) -> Column:
    """The fold that a row judges, 0, 1, ...; null where its group is null. A block of the guard lies in one fold."""
    block = unit_and_block(df, options)[1]
    return F.pmod(F.pmod(block, F.lit(MAX_BLOCKS)), F.lit(options.numFolds)).cast("int")


def _chooses(df: DataFrame, options: Options, fold: int) -> Column:
    """Whether a row that doesn't judge the training of this fold is held out in it, to choose the candidate and the epoch."""
    return below(unit_and_block(df, options)[0], options.validationFraction, "fold", fold)


def _dealt(sources: Sequence[Source]) -> DataFrame:
    [rows] = [s.df for s in sources if s.split in (None, TRAIN)]
    return rows


def numbered_sources(sources: Sequence[Source], options: Options) -> list[Source]:
    """The same rows, numbered once for all folds: a part of them alone would have other numbers, and so other blocks.

    Raises:
        InputError: a column is missing or has a wrong type, or Spark failed on the rows.
    """
    for source in sources:
        check_columns(source.df, options)
    return [
        dataclasses.replace(s, df=numbered(s.df, options), numbered=True) if s.split in (None, TRAIN) else s
        for s in sources
    ]


def fold_sources(sources: Sequence[Source], options: Options, fold: int) -> list[Source]:
    """The rows for the training of a fold (0, 1, ...). Its own rows are the split `test`: nothing is fitted on them or chosen
    by them.

    Args:
        sources: see `numbered_sources`.
    """
    df = _dealt(sources)
    own, chooses = _fold(df, options) == fold, _chooses(df, options, fold)
    return [
        Source(df.where(~own & ~chooses), TRAIN, numbered=True),
        Source(df.where(~own & chooses), VALIDATION, numbered=True),
        Source(df.where(own), TEST, numbered=True),
    ]


def all_sources(sources: Sequence[Source]) -> list[Source]:
    """The rows for the training of what ships: all of them train."""
    return [Source(_dealt(sources), TRAIN, numbered=True), *(s for s in sources if s.split in (TEST, REFERENCE))]


def check(
    sources: Sequence[Source], options: Options, *, labelCol: str | None, weightCol: str | None, classes: bool
) -> None:  # fmt: skip
    """Check that each fold can be trained and can judge, by one or two jobs over the rows.

    Args:
        sources: see `numbered_sources`.
        labelCol, weightCol: None where the data have no such column.
        classes: whether the label names classes.

    Raises:
        InputError: validation rows are given; a group is null; a fold has too few rows or lacks a class; there are too few
            groups.
    """
    o = options
    if any(s.split == VALIDATION for s in sources):
        raise InputError(
            f"numFolds={o.numFolds} and validation rows of their own exclude each other: with folds all rows decide. Leave one "
            "of them out, or add the validation rows to the training rows"
        )
    if soft_labels.given(sources, labelCol):
        soft_labels.check_options(o)
    df = _dealt(sources)
    used = df if weightCol is None else df.where(named(weightCol) != 0)
    fold, label = _fold(df, o).alias("fold"), named(labelCol).cast("double") if labelCol and classes else F.lit(None)
    chooses = [F.sum(_chooses(df, o, k).cast("long")).alias(f"chooses{k}") for k in range(o.numFolds)]
    try:
        rows = used.groupBy(fold, label.alias("label")).agg(F.count(F.lit(1)).alias("rows"), *chooses).collect()
        units = 0 if o.groupCol is None else used.select(named(o.groupCol)).distinct().count()
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while it dealt the rows into {o.numFolds} folds: {jvm.cause(e)}") from e
    if any(r["fold"] is None for r in rows):
        raise InputError(f"groupCol={o.groupCol!r} holds null; fill the column or drop these rows")
    if o.groupCol is not None and units < 2 * o.numFolds:
        raise InputError(
            f"groupCol={o.groupCol!r} has {units} values, too few for numFolds={o.numFolds}: at least "
            f"{2 * o.numFolds} are needed. Use more data, or a groupCol with more values"
        )
    for k in range(o.numFolds):
        own = sum(r["rows"] for r in rows if r["fold"] == k)
        inner = sum(r[f"chooses{k}"] for r in rows if r["fold"] != k)
        if not own or not inner:
            raise InputError(
                f"fold {k + 1} of numFolds={o.numFolds} has {own} rows, and {inner} of the others would choose its epoch, but at "
                f"least 1 must: add rows, raise validationFraction={o.validationFraction:g}, or set fewer folds"
            )
    known = {r["label"] for r in rows}
    for value in sorted(v for v in known if v is not None) if len(known) <= MOST_CLASSES else ():
        there = {r["fold"] for r in rows if r["label"] == value}
        if lacking := [str(k + 1) for k in range(o.numFolds) if k not in there]:
            raise InputError(
                f"fold {', '.join(lacking)} of numFolds={o.numFolds} has no row of labelCol={labelCol!r} {value:g}: set fewer "
                "folds, add such rows, or leave the rare class out"
            )
