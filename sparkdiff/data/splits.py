"""The split of the rows into training rows and held-out rows, which decide whether a result is kept: by an indicator
column, by a hash of the row or group, or by time. Also slices (the rows with one value of a `guardCols` column), and exact
quantiles of a column, which are counted without collecting a row and do not depend on the partitions.
"""

import dataclasses
import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pyspark.ml import Estimator
from pyspark.ml.feature import Bucketizer
from pyspark.sql import Column, DataFrame, Window, functions as F
from pyspark.sql.types import (
    BooleanType,
    DateType,
    IntegralType,
    NumericType,
    StringType,
    StructField,
    TimestampNTZType,
    TimestampType,
)

from sparkdiff import jvm
from sparkdiff.data.blocks import MAX_BLOCKS, TIME_BLOCKS
from sparkdiff.data.row_hashes import COPY, HASH, coin, is_hashed, with_copies
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.options import Options
from sparkdiff.pipeline.column_names import casefolding, col_by_name, read_by_name, refuse_stream

ACCURACY = 10_000
"""Accuracy of Spark's approximate quantiles: their rank error is at most n / ACCURACY. It affects only how long it
takes to find the exact quantiles.
"""


class ChangedRowsError(Exception):
    """A DataFrame had other values when it was read again."""


def quantiles(df: DataFrame, column: Column, shares: Sequence[float]) -> list[float]:
    """Exact quantiles of a double column: per share the smallest value v with count(value <= v) >= share * count
    (numpy's `inverted_cdf`).

    Null and NaN are ignored; the result is empty if there are no other values. Reads the rows twice: for approximate
    quantiles ("guesses"), and to count the rows around them. If an exact quantile lies between two guesses, the rows
    between these, a few ten-thousandths of all rows, are read a third time and sorted.

    Raises:
        ChangedRowsError: the rows differ between two readings.
    """
    value = F.when(column == 0, 0.0).otherwise(column)  # -0.0 equals 0.0, but not for Bucketizer
    values = df.select(value.alias("value")).where("value IS NOT NULL AND NOT isnan(value)")
    guesses = _approximate_quantiles(values, shares)
    if not guesses:
        return []
    # Half-open buckets: one for each guess, and one for the values between two guesses.
    bounds = {b + 0.0 for g in guesses for b in (g, math.nextafter(g, math.inf))} | {-math.inf, math.inf}
    rows = Bucketizer(splits=sorted(bounds), inputCol="value", outputCol="bucket").transform(values)
    counted = rows.groupBy("bucket").agg(F.count("value").alias("rows"), F.min("value"), F.max("value"))
    buckets = sorted(tuple(row) for row in counted.collect())
    places = bucket_ranks(shares, [n for _, n, _, _ in buckets])
    found = {(i, rank): buckets[i][2] for i, rank in places if buckets[i][2] == buckets[i][3]}
    wanted = {(buckets[i][0], rank): (i, rank) for i, rank in places if (i, rank) not in found}
    if wanted:
        found |= {wanted[at]: value for at, value in _values_at_ranks(rows, sorted(wanted)).items()}
    if len(found) < len(set(places)):
        raise ChangedRowsError
    return [found[place] + 0.0 for place in places]


def bucket_ranks(shares: Iterable[float], counts: Sequence[int]) -> list[tuple[int, int]]:
    """Index of the bucket that contains each quantile, and the quantile's rank within the bucket, from 1; `counts` has
    the numbers of values in the buckets, in ascending order of the values.
    """
    below = [0, *itertools.accumulate(counts)]
    out = []
    for share in shares:
        rank = min(max(1, math.ceil(share * below[-1])), below[-1])
        i = next(i for i, n in enumerate(below[1:]) if n >= rank)
        out.append((i, rank - below[i]))
    return out


def _approximate_quantiles(values: DataFrame, shares: Sequence[float]) -> list[float]:
    """Spark's approximate quantiles at these shares, and at shares slightly below and above; empty without values."""
    near = {min(1.0, max(0.0, share + d)) for share in shares for d in (-2 / ACCURACY, 0.0, 2 / ACCURACY)}
    row = values.agg(F.percentile_approx("value", sorted(near), ACCURACY)).first()
    return [] if row is None or row[0] is None else sorted(set(row[0]))


def _values_at_ranks(rows: DataFrame, wanted: Iterable[tuple[float, int]]) -> dict[tuple[float, int], float]:
    """The values with these (bucket, rank in the bucket)."""
    ranks = {bucket: [r for _, r in group] for bucket, group in itertools.groupby(wanted, key=operator.itemgetter(0))}
    inside = rows.where(F.col("bucket").isin(list(ranks)))
    at = F.row_number().over(Window.partitionBy("bucket").orderBy("value"))
    is_wanted = functools.reduce(
        operator.or_, ((F.col("bucket") == bucket) & F.col("rank").isin(found) for bucket, found in ranks.items())
    )
    return {(r["bucket"], r["rank"]): r["value"] for r in inside.withColumn("rank", at).where(is_wanted).collect()}


TRAIN, VALIDATION, TEST, REFERENCE = SPLITS = ("train", "validation", "test", "reference")
SPLIT, BLOCK, TIME = "__sparkdiff_split", "__sparkdiff_block", "__sparkdiff_time"
ROW = "__sparkdiff_row"
"""The column with the hash of a row, by which the same row is found in the caches of different pipelines."""
SOURCE = "__sparkdiff_source"  # the column with the position of a row's source, if several sources are united
SLICE = "__sparkdiff_slice"  # and the position in guardCols
MAX_SLICES = 50  # values of a guardCol
RULE = (
    2  # incremented when the same options split the same rows in a new way: then earlier caches and fits do not match
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows of one DataFrame. `split` is the split of all of them; None if the options decide for each row.

    Attributes:
        numbered: whether `number_equal_rows` was already called on these rows, or on rows that contain them.
    """

    df: DataFrame
    split: str | None = None
    numbered: bool = False

    @property
    def data(self) -> DataFrame:
        """The rows without the column that `number_equal_rows` may have added."""
        return self.df.drop(COPY) if self.numbered else self.df


@dataclasses.dataclass(frozen=True)
class Boundaries:
    """The times at which `timeCol` divides the rows, in seconds or in the numbers of the column; empty without
    `timeCol`.

    `deciding` divides the rows that train or are held out: its first time is the start of the held-out part
    (exclusive), the others are the starts of the later blocks of this part. `reference` divides the reference rows
    into blocks in the same way.
    """

    deciding: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()


def rule(options: Options) -> tuple[object, ...]:
    """Everything in the options, and the version of this code (RULE), that decides which rows train."""
    o = options
    return RULE, o.validationIndicatorCol, o.validationFraction, o.groupCol, o.timeCol, o.seed


def check_columns(df: DataFrame, options: Options) -> None:
    """Raise InputError if a column of the options is missing or has a wrong type, or if a column has a reserved name.

    Runs no job.
    """
    refuse_stream(df)
    check_names(df.columns)
    given = {name: getattr(options, name) for name in ("validationIndicatorCol", "groupCol", "timeCol")}
    kinds = {name: field(df, column, name).dataType for name, column in given.items() if column is not None}
    for column in options.guardCols:
        kind = field(df, column, "guardCols").dataType
        if not isinstance(kind, (StringType, NumericType, BooleanType)):
            raise InputError(
                f"guardCols: column {column!r} is {kind.simpleString()}; slices need strings, numbers or "
                "booleans: cast the column"
            )
    if not isinstance(kinds.get("validationIndicatorCol", BooleanType()), BooleanType):
        raise InputError(
            f"validationIndicatorCol={options.validationIndicatorCol!r} must be boolean, true for validation rows, and is "
            f"{kinds['validationIndicatorCol'].simpleString()}: cast the column"
        )
    if "groupCol" in kinds and not is_hashed(kinds["groupCol"]):
        raise InputError(
            f"groupCol={options.groupCol!r} is {kinds['groupCol'].simpleString()}, and Spark cannot group by this type: "
            "use a string, number or date, for example one of its entries"
        )
    if "timeCol" in kinds and not isinstance(
        kinds["timeCol"], (NumericType, DateType, TimestampType, TimestampNTZType)
    ):
        raise InputError(
            f"timeCol={options.timeCol!r} must be a timestamp, date or number, got {kinds['timeCol'].simpleString()}"
        )


def check_names(names: Iterable[str]) -> None:
    """Raise InputError if one of these columns, of the data or of a stage, would be overwritten by a column of
    sparkdiff.
    """
    casefold = casefolding()
    for name in names:
        if casefold(name) in (SPLIT, BLOCK, TIME, ROW, SOURCE, COPY, HASH) or re.fullmatch(
            rf"{SLICE}\d+", casefold(name)
        ):
            raise InputError(
                f"the data or a stage have a column {name!r}, a name that sparkdiff reserves for its own "
                "columns: rename it"
            )


def field(df: DataFrame, column: str, option: str) -> StructField:
    """The schema field of a column, found by Spark's rule (`spark.sql.caseSensitive`).

    Raises:
        InputError: no column or several columns have this name.
    """
    casefold = casefolding()
    found = [f for f in df.schema.fields if casefold(f.name) == casefold(column)]
    if len(found) > 1:
        names = ", ".join(repr(f.name) for f in found)
        raise InputError(f"{option}={column!r} matches {len(found)} columns, {names}: rename all but one")
    if not found:
        raise InputError(f"{option}={column!r} is not a column of the data. {did_you_mean(column, df.columns)}")
    return found[0]


def number_equal_rows(df: DataFrame, options: Options) -> DataFrame:
    """The rows with numbers for equal rows (`with_copies`), if a hash of the row decides its split or block; else
    unchanged.
    """
    return df if options.groupCol or options.timeCol else with_copies(df)


def unit_and_block(df: DataFrame, options: Options) -> tuple[Column, Column]:
    """The hash of a row's group (without `groupCol`: of the row), and the block of the row by this hash: a set of rows
    whose sum the guard treats as one independent observation. The block is null where the group is null.

    Args:
        df: the result of `number_equal_rows`.
    """
    row = coin(df, options.seed)
    if options.groupCol:
        unit = F.xxhash64(col_by_name(options.groupCol), F.lit(options.seed))
        return unit, F.when(col_by_name(options.groupCol).isNotNull(), unit)
    return row, F.pmod(F.xxhash64(row, F.lit("block")), F.lit(MAX_BLOCKS)).cast("long")


def below(unit: Column, share: float, *salt: object) -> Column:
    """True for a fraction `share` of all rows or groups, chosen by their hash `unit` and a salt."""
    number = F.pmod(F.xxhash64(unit, *(F.lit(s) for s in salt)), F.lit(1 << 30))
    return number < int(share * (1 << 30))


def with_splits(sources: Sequence[Source], options: Options, boundaries: Boundaries | None = None) -> list[DataFrame]:
    """The sources with the columns SPLIT, BLOCK (see `unit_and_block`) and TIME. With `timeCol`, the boundaries, which
    are computed first if they are None, divide the rows into blocks, and into splits unless the sources or
    `validationIndicatorCol` do so. One job per source looks for equal rows if `number_equal_rows` needs it.

    Raises:
        InputError: Spark failed on the rows.
    """
    given = any(s.split == VALIDATION for s in sources)
    boundaries = find_boundaries(sources, options) if boundaries is None else boundaries
    out = []
    for source in sources:
        df = source.df if source.numbered else number_equal_rows(source.df, options)
        time = seconds(df, options.timeCol) if options.timeCol else F.lit(None).cast("double")
        unit, block = unit_and_block(df, options)
        if options.timeCol:
            starts = (boundaries.reference if source.split == REFERENCE else boundaries.deciding)[1:]
            block = sum((F.when(time > c, 1).when(time <= c, 0) for c in starts), F.lit(0)).cast("long")
        if source.split is not None or given:
            split: Column = F.lit(source.split or TRAIN)
        elif options.validationIndicatorCol:
            c = col_by_name(options.validationIndicatorCol)
            split = F.when(c, VALIDATION).when(~c, TRAIN)
        elif options.timeCol:
            split = F.when(time > boundaries.deciding[0], VALIDATION).when(time <= boundaries.deciding[0], TRAIN)
        else:
            split = F.when(below(unit, options.validationFraction, "split"), VALIDATION).otherwise(TRAIN)
        out.append(df.withColumns({SPLIT: split, BLOCK: block, TIME: time}).drop(COPY))
    return out


def united(frames: Iterable[DataFrame]) -> list[DataFrame]:
    """The frames, of which adjacent ones with the same columns become one, so that Spark plans only once what follows."""
    return [functools.reduce(DataFrame.union, alike) for _, alike in itertools.groupby(frames, lambda df: df.schema)]


def of_first_source(df: DataFrame) -> DataFrame:
    """The rows of the first source, if several sources are united; else all rows."""
    return df.where(F.col(SOURCE) == 0) if SOURCE in df.columns else df


def held_out_first(sources: Sequence[Source], options: Options) -> DataFrame:
    """The rows of all sources except the reference rows: first the held-out rows, then the training rows. Unlike in
    training, equal rows are not numbered, so that all of them may be on the same side.
    """
    own = [dataclasses.replace(s, numbered=True) for s in sources if s.split != REFERENCE]  # saves a job
    dealt = [df.select(*map(col_by_name, read_by_name(df))) for df in with_splits(own, options)]
    pairs = [(split, s.split, df) for split in (VALIDATION, TEST, TRAIN) for s, df in zip(own, dealt, strict=True)]
    parts = [df.where(F.col(SPLIT) == split) for split, only, df in pairs if only in (None, split)]
    union = functools.partial(DataFrame.unionByName, allowMissingColumns=True)
    return functools.reduce(union, parts).drop(SPLIT, BLOCK, TIME)


def seconds(df: DataFrame, column: str) -> Column:
    """The time of a row, in seconds or in the numbers of the column; null if it is not finite."""
    kind, c = field(df, column, "timeCol").dataType, col_by_name(column)
    seconds = c.cast("double") if isinstance(kind, NumericType) else c.cast("timestamp").cast("double")
    # NaN and infinite, like null, are on neither side.
    return F.when(~F.isnan(seconds) & (F.abs(seconds) < float("inf")), seconds)


def find_boundaries(sources: Sequence[Source], options: Options) -> Boundaries:
    """The exact times that divide these rows. Runs two or three jobs if `timeCol` is set, and again two or three for
    reference rows.

    Raises:
        InputError: see `check_columns`; or there is no time to divide by, or Spark failed on the rows.
    """
    if options.timeCol is None:
        return Boundaries()
    for source in sources:
        check_columns(source.df, options)
    held_out = [s for s in sources if s.split == VALIDATION]
    df, start = (held_out or [s for s in sources if s.split is None])[0].df, 0.0
    if options.validationIndicatorCol and not held_out:
        df = df.where(col_by_name(options.validationIndicatorCol))
    elif not held_out:
        start = 1 - options.validationFraction
    reference = [time_quantiles(s.df, options.timeCol, block_shares()) for s in sources if s.split == REFERENCE]
    return Boundaries(time_quantiles(df, options.timeCol, block_shares(start)), *reference)


def block_shares(start: float = 0.0, number: int = TIME_BLOCKS) -> list[float]:
    """The shares of the rows, in the order of time, at which contiguous blocks of the rows without their earliest
    fraction `start` begin.
    """
    return [start + (1 - start) * k / number for k in range(number)]


def time_quantiles(df: DataFrame, column: str, shares: Sequence[float]) -> tuple[float, ...]:
    """The exact quantiles of the times of these rows at these shares.

    Raises:
        InputError: there is no time, or the times had changed when they were read again; Spark failed on the rows.
    """
    try:
        found = quantiles(df, seconds(df, column), shares)
    except ChangedRowsError as e:
        raise InputError(
            f"timeCol={column!r} had other values when the rows were read again: write the rows to a table, "
            "and pass the table"
        ) from e
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while reading timeCol={column!r}: {jvm.cause(e)}") from e
    if not found and df.isEmpty():
        raise InputError(
            f"the data have no rows, or none for validation, that timeCol={column!r} could split; add rows"
        )
    if not found:
        raise InputError(f"timeCol={column!r} has no finite value to split by")
    return tuple(found)


def with_slices(frames: Sequence[DataFrame], options: Options) -> tuple[list[DataFrame], dict[str, tuple[Any, ...]]]:
    """The frames with one column of codes SLICE0, SLICE1, ... (long) per column of `guardCols`, and the values that the
    codes 0, 1, ... of each column stand for.

    The values are those in all frames, sorted; null and NaN form one slice with the value None, which comes last. Runs
    a job per column.

    Raises:
        InputError: a column has more than MAX_SLICES values; the message has their number.
    """
    out, values = list(frames), {}
    for i, name in enumerate(options.guardCols):
        kind = _slice_type(frames[0], name)
        each = functools.reduce(DataFrame.union, (df.select(_slice(df, name, kind)) for df in frames)).distinct()
        found = [row[0] for row in each.limit(MAX_SLICES + 1).collect()]
        if len(found) > MAX_SLICES:
            raise InputError(
                f"guardCols: column {name!r} has {each.count():,} values, more than {MAX_SLICES}: bin them, or "
                "leave the column out"
            )
        known = sorted(v for v in found if v is not None)
        values[name] = (*known, *([None] if None in found else []))
        changed = F.raise_error(F.lit(f"guardCols: column {name!r} had other values when it was read again"))
        for k, df in enumerate(out):
            value = _slice(df, name, kind)
            at = F.array_position(F.array(*map(F.lit, known)).cast(f"array<{kind}>"), value)
            code = F.when(value.isNull(), len(known)).when(at > 0, at - 1).otherwise(changed)
            out[k] = df.withColumn(f"{SLICE}{i}", code.cast("long"))
    return out, values


def _slice_type(df: DataFrame, name: str) -> str:
    """The Spark type in which a guardCol's values are compared."""
    kind = field(df, name, "guardCols").dataType
    if isinstance(kind, NumericType):
        return "bigint" if isinstance(kind, IntegralType) else "double"
    return "boolean" if isinstance(kind, BooleanType) else "string"


def _slice(df: DataFrame, name: str, kind: str) -> Column:
    value = col_by_name(field(df, name, "guardCols").name).cast(kind)
    return F.when(~F.isnan(value), value) if kind == "double" else value


def training_rows(sources: Sequence[Source], options: Options, boundaries: Boundaries | None = None) -> DataFrame:
    """The training rows of all sources, with the columns of the data; no held-out or reference row is among them.

    Args:
        boundaries: the times that divide the rows, if already computed.
    """
    sources = [source for source in sources if source.split != REFERENCE]
    for source in sources:
        check_columns(source.data, options)
    train = [source.data for source in sources if source.split == TRAIN]
    if not train or not all(source.split and source.numbered for source in sources):
        train = [
            df.where(df[SPLIT] == TRAIN).drop(SPLIT, BLOCK, TIME) for df in with_splits(sources, options, boundaries)
        ]
    return functools.reduce(DataFrame.unionByName, train)


def fit_on_training_rows(
    estimator: Estimator[Any],
    sources: Sequence[Source],
    options: Options,
    boundaries: Boundaries | None = None,
    fit: Callable[[Any, DataFrame], Any] = lambda estimator, rows: estimator.fit(rows),
) -> Any:
    """Fit a pipeline or a stage on the training rows only; see `training_rows`.

    Args:
        fit: (estimator, rows) -> its model.
    """
    rows = training_rows(sources, options, boundaries)
    with jvm.as_input_error(f"{estimator.uid} cannot be fitted on the training rows"):
        return fit(estimator, rows)
