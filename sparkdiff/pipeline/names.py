"""Names of columns: quoting, case, and unused names."""

import collections
from collections.abc import Callable, Iterable

from pyspark.sql import Column, DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.errors import InputError


def unquoted(name: str) -> str:
    """The column name of an input Param: `a.b` in backticks is the column a.b (but not for an output)."""
    return name[1:-1].replace("``", "`") if len(name) > 2 and name[0] == name[-1] == "`" else name


def casefolding() -> Callable[[str], str]:
    """The session's rule for equal column names, as a function."""
    try:
        sensitive = str(jvm.session().conf.get("spark.sql.caseSensitive", "false")).lower() == "true"
    except InputError:  # each stage says so by its name
        sensitive = False
    return str if sensitive else str.lower


def read_by_name(df: DataFrame) -> list[str]:
    """The columns whose name is unique, so that they can be read by name."""
    casefold = casefolding()
    times = collections.Counter(map(casefold, df.columns))
    return [c for c in df.columns if times[casefold(c)] == 1]


def unused(prefix: str, names: Iterable[str]) -> str:
    """The prefix, with enough leading underscores that none of these names starts with it."""
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
