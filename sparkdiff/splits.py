"""Which rows train and which decide: by indicator, by a hash of the row or the group, or by time."""

from __future__ import annotations

import dataclasses

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, NumericType, TimestampNTZType, TimestampType

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.guard import MAX_BLOCKS, TIME_BLOCKS
from sparkdiff.options import Options

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
SPLIT, BLOCK, TIME = "__sparkdiff_split", "__sparkdiff_block", "__sparkdiff_time"


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
    """The sources with SPLIT, BLOCK and TIME columns. Runs one job where `timeCol` is set, else none."""
    given = any(s.split == VALIDATION for s in sources)
    cuts = _time_cuts(sources, options) if options.timeCol else []
    out = []
    for source in sources:
        df = source.df
        row = row_hash(df, options.seed)
        time = _seconds(df, options.timeCol) if options.timeCol else F.lit(None).cast("double")
        unit = F.xxhash64(quoted(options.groupCol), F.lit(options.seed)) if options.groupCol else row
        if options.timeCol:
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
            split = F.when(time > cuts[0], VALIDATION).when(time <= cuts[0], TRAIN)
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
    shares = [start + (1 - start) * k / TIME_BLOCKS for k in range(TIME_BLOCKS)]
    row = df.agg(F.percentile_approx(_seconds(df, options.timeCol), shares, 10_000)).first()
    if row is None or row[0] is None:
        raise InputError(f"timeCol={options.timeCol!r} holds no value to split by")
    return [float(v) for v in row[0]]
