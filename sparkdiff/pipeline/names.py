"""Names of columns: quoting, case, and unused names."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkdiff import jvm
from sparkdiff.errors import InputError


def unquoted(name: str) -> str:
    """The column that a Param names as an input: `a.b` in backticks is the column a.b (not so for an output)."""
    return name[1:-1].replace("``", "`") if len(name) > 2 and name[0] == name[-1] == "`" else name


def folding() -> Callable[[str], str]:
    """What makes two column names equal, by the running session's rule."""
    try:
        sensitive = str(jvm.session().conf.get("spark.sql.caseSensitive", "false")).lower() == "true"
    except InputError:  # each stage says so by its name
        sensitive = False
    return str if sensitive else str.lower


def read_by_name(df: DataFrame) -> list[str]:
    """The columns that share their name with no other, and so can be read by it."""
    fold = folding()
    times = collections.Counter(map(fold, df.columns))
    return [c for c in df.columns if times[fold(c)] == 1]


def unused(prefix: str, names: Iterable[str]) -> str:
    """The prefix, with as many underscores in front as it takes for none of these names to begin with it."""
    taken = [name.lower() for name in names]
    while any(name.startswith(prefix) for name in taken):
        prefix = f"_{prefix}"
    return prefix


def named(name: str, *, in_struct: bool = False) -> Column:
    """The column of this name, which may contain dots and backticks; or the field of a struct, `struct.field`."""
    return F.col(name if in_struct else "`" + name.replace("`", "``") + "`")


def refuse_stream(df: DataFrame) -> None:
    if df.isStreaming:
        raise InputError("the DataFrame is a stream, which has no end; write it to a table and pass the table")


def quoted(name: str) -> Column:
    """The top-level column of this name, which may contain dots and backticks."""
    return F.col("`" + name.replace("`", "``") + "`")
