"""Names of columns: when two names are equal, which names are unique or unused, and the Column for a name."""

import collections
from collections.abc import Callable, Iterable

from pyspark.sql import Column, DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.errors import InputError, check_dataframe


def casefolding() -> Callable[[str], str]:
    """A function that maps names to the same text if they name the same column in this session
    (`spark.sql.caseSensitive`).
    """
    try:
        sensitive = str(jvm.session().conf.get("spark.sql.caseSensitive", "false")).lower() == "true"
    except InputError:  # each stage reports this with its name
        sensitive = False
    return str if sensitive else str.lower


def read_by_name(df: DataFrame) -> list[str]:
    """Columns with a unique name, which can be read by name."""
    casefold = casefolding()
    times = collections.Counter(map(casefold, df.columns))
    return [c for c in df.columns if times[casefold(c)] == 1]


def unused_prefix(prefix: str, names: Iterable[str]) -> str:
    """`prefix` with as many underscores in front as are needed so that none of these names starts with it."""
    taken = [name.lower() for name in names]
    while any(name.startswith(prefix) for name in taken):
        prefix = f"_{prefix}"
    return prefix


def col_by_name(name: str, *, in_struct: bool = False) -> Column:
    """The column of this name, which may contain dots and backticks; or the field of a struct, `struct.field`."""
    return F.col(name if in_struct else jvm.quoted(name))


def check_rows(name: str, df: DataFrame) -> None:
    """Raise InputError if `df` is not a Spark DataFrame, or is a stream."""
    check_dataframe(name, df)
    refuse_stream(df)


def refuse_stream(df: DataFrame) -> None:
    if df.isStreaming:
        raise InputError("the DataFrame is a stream, which has no end; write it to a table and pass the table")
