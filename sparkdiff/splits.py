"""Which rows train and which decide: by indicator, by a hash of the row or the group, or by time; and their slices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    DateType,
    IntegralType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.guard import MAX_BLOCKS, TIME_BLOCKS
from sparkdiff.options import Options

TRAIN, VALIDATION, TEST, REFERENCE = SPLITS = ("train", "validation", "test", "reference")
SPLIT, BLOCK, TIME = "__sparkdiff_split", "__sparkdiff_block", "__sparkdiff_time"
SLICE = "__sparkdiff_slice"  # and the position in guardCols
MAX_SLICES = 50  # values of a guardCol


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows of one origin. A split given here holds for all of them; None leaves it to the options."""

    df: DataFrame
    split: str | None = None


def rule(options: Options) -> tuple[object, ...]:
    """All that decides, beside the rows, which of them train."""
    o = options
    return o.validationIndicatorCol, o.validationFraction, o.groupCol, o.timeCol, o.seed


def refuse_stream(df: DataFrame) -> None:
    if df.isStreaming:
        raise InputError("the DataFrame is a stream, which has no end; write it to a table and pass that")


def check_columns(df: DataFrame, options: Options) -> None:
    """Raise InputError where a column that the options name is missing or of a wrong type. Runs no job."""
    refuse_stream(df)
    for name in ("validationIndicatorCol", "groupCol", "timeCol"):
        column = getattr(options, name)
        if column is not None:
            field(df, column, name)
    for name in options.guardCols:
        kind = field(df, name, "guardCols").dataType
        if not isinstance(kind, (StringType, NumericType, BooleanType)):
            raise InputError(
                f"guardCols: column {name!r} is {kind.simpleString()}; slices are by strings, numbers or booleans: cast it"
            )
    if (
        options.validationIndicatorCol
        and field(df, options.validationIndicatorCol, "").simpleString().split(":")[-1] != "boolean"
    ):
        raise InputError(
            f"validationIndicatorCol={options.validationIndicatorCol!r} must be boolean, true for validation rows"
        )
    if options.timeCol:
        kind = field(df, options.timeCol, "timeCol").dataType
        if not isinstance(kind, (NumericType, DateType, TimestampType, TimestampNTZType)):
            raise InputError(
                f"timeCol={options.timeCol!r} must be a timestamp, date or number, got {kind.simpleString()}"
            )


def field(df: DataFrame, column: str, option: str):  # type: ignore[no-untyped-def]
    """The schema's field of a column, found as Spark finds it."""
    for f in df.schema.fields:
        if f.name.lower() == column.lower():
            return f
    raise InputError(f"{option}={column!r} names no column of the data. {did_you_mean(column, df.columns)}")


def quoted(name: str) -> Column:
    """The top-level column of this name, which may contain dots and backticks."""
    return F.col("`" + name.replace("`", "``") + "`")


def row_hash(df: DataFrame, *salt: object) -> Column:
    """Hash of all columns, the same wherever and in whatever order the row stands."""
    columns = [
        F.to_json(F.struct(quoted(f.name)))
        if "map<" in f.dataType.simpleString()
        else quoted(f.name)  # no hash of maps
        for f in sorted(df.schema.fields, key=lambda f: f.name)
    ]
    return F.xxhash64(*columns, *(F.lit(s) for s in salt))


def with_splits(sources: list[Source], options: Options) -> list[DataFrame]:
    """The sources with SPLIT, BLOCK and TIME columns. Where `timeCol` is set a job runs, two with reference rows."""
    given = any(s.split == VALIDATION for s in sources)
    deciding = _time_cuts(sources, options) if options.timeCol else []
    out = []
    for source in sources:
        df = source.df
        row = row_hash(df, options.seed)
        time = _seconds(df, options.timeCol) if options.timeCol else F.lit(None).cast("double")
        unit = F.xxhash64(quoted(options.groupCol), F.lit(options.seed)) if options.groupCol else row
        if options.timeCol:
            cuts = _cuts(df, options.timeCol, 0.0) if source.split == REFERENCE else deciding
            block = sum((F.when(time > c, 1).when(time <= c, 0) for c in cuts[1:]), F.lit(0)).cast("long")
        elif options.groupCol:
            block = F.when(quoted(options.groupCol).isNotNull(), unit)
        else:
            block = F.pmod(F.xxhash64(row, F.lit("block")), F.lit(MAX_BLOCKS)).cast("long")
        if source.split is not None or given:
            split: Column = F.lit(source.split or TRAIN)
        elif options.validationIndicatorCol:
            c = quoted(options.validationIndicatorCol)
            split = F.when(c, VALIDATION).when(~c, TRAIN)
        elif options.timeCol:
            split = F.when(time > deciding[0], VALIDATION).when(time <= deciding[0], TRAIN)
        else:
            share = F.pmod(F.xxhash64(unit, F.lit("split")), F.lit(1 << 30))
            split = F.when(share < int(options.validationFraction * (1 << 30)), VALIDATION).otherwise(TRAIN)
        out.append(df.withColumn(SPLIT, split).withColumn(BLOCK, block).withColumn(TIME, time))
    return out


def _seconds(df: DataFrame, column: str) -> Column:
    kind, c = field(df, column, "timeCol").dataType, quoted(column)
    seconds = c.cast("double") if isinstance(kind, NumericType) else c.cast("timestamp").cast("double")
    return F.when(~F.isnan(seconds), seconds)  # NaN, like null, is on neither side


def _time_cuts(sources: list[Source], options: Options) -> list[float]:
    """Where the validation part begins, and the starts of its contiguous blocks."""
    assert options.timeCol is not None
    held_out = [s for s in sources if s.split == VALIDATION]
    df = (held_out or [s for s in sources if s.split is None])[0].df
    start = 0.0
    if options.validationIndicatorCol and not held_out:
        df = df.where(quoted(options.validationIndicatorCol))
    elif not held_out:
        start = 1 - options.validationFraction
    return _cuts(df, options.timeCol, start)


def _cuts(df: DataFrame, column: str, start: float) -> list[float]:
    """Where the part of these rows after the share `start` begins, and the starts of its contiguous blocks."""
    shares = [start + (1 - start) * k / TIME_BLOCKS for k in range(TIME_BLOCKS)]
    row = df.agg(F.percentile_approx(_seconds(df, column), shares, 10_000)).first()
    if row is None or row[0] is None:
        raise InputError(f"timeCol={column!r} holds no value to split by")
    return [float(v) for v in row[0]]


# Slices ---------------------------------------------------------------------------------------------------------------


def with_slices(frames: Sequence[DataFrame], options: Options) -> tuple[list[DataFrame], dict[str, tuple[Any, ...]]]:
    """The frames with a column SLICE0, SLICE1, ... (long) per guardCol, and the values that these codes count through.

    The values are those of all frames, sorted; null and NaN are one slice, None, the last. Runs a job per column.

    Raises:
        InputError: a column has more than MAX_SLICES values; names their number.
    """
    out, values = list(frames), {}
    for i, name in enumerate(options.guardCols):
        kind = _slice_type(frames[0], name)
        each = functools.reduce(DataFrame.union, (df.select(_slice(df, name, kind)) for df in frames)).distinct()
        found = [row[0] for row in each.limit(MAX_SLICES + 1).collect()]
        if len(found) > MAX_SLICES:
            raise InputError(
                f"guardCols: column {name!r} has {each.count():,} values, more than {MAX_SLICES}: put them into bins, or "
                "leave the column out"
            )
        known = sorted(v for v in found if v is not None)
        values[name] = (*known, *([None] if None in found else []))
        changed = F.raise_error(F.lit(f"guardCols: column {name!r} held other values when it was read again"))
        for k, df in enumerate(out):
            value = _slice(df, name, kind)
            at = F.array_position(F.array(*map(F.lit, known)).cast(f"array<{kind}>"), value)
            code = F.when(value.isNull(), len(known)).when(at > 0, at - 1).otherwise(changed)
            out[k] = df.withColumn(f"{SLICE}{i}", code.cast("long"))
    return out, values


def _slice_type(df: DataFrame, name: str) -> str:
    """The Spark type that a guardCol's values are compared in."""
    kind = field(df, name, "guardCols").dataType
    if isinstance(kind, NumericType):
        return "bigint" if isinstance(kind, IntegralType) else "double"
    return "boolean" if isinstance(kind, BooleanType) else "string"


def _slice(df: DataFrame, name: str, kind: str) -> Column:
    value = quoted(field(df, name, "guardCols").name).cast(kind)
    return F.when(~F.isnan(value), value) if kind == "double" else value
