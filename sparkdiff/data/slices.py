"""Slices of the rows by the values of guardCols, as one column of numbers."""

import functools
from collections.abc import Sequence
from typing import Any

from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import (
    BooleanType,
    IntegralType,
    NumericType,
)

from sparkdiff.data.splits import SLICE, field
from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.pipeline.names import quoted

MAX_SLICES = 50  # values of a guardCol


def with_slices(frames: Sequence[DataFrame], options: Options) -> tuple[list[DataFrame], dict[str, tuple[Any, ...]]]:
    """The frames with one column SLICE0, SLICE1, ... (long) per guardCol, and the values of these codes.

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
    """The Spark type that a guardCol's values are compared in."""
    kind = field(df, name, "guardCols").dataType
    if isinstance(kind, NumericType):
        return "bigint" if isinstance(kind, IntegralType) else "double"
    return "boolean" if isinstance(kind, BooleanType) else "string"


def _slice(df: DataFrame, name: str, kind: str) -> Column:
    value = quoted(field(df, name, "guardCols").name).cast(kind)
    return F.when(~F.isnan(value), value) if kind == "double" else value
