"""Column names in SQL, and SQLTransformer statements that only drop columns or move them to the end."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyspark.ml.feature import SQLTransformer

from sparkdiff.jvm import rebuilding, sessions

NAME = r"(?:`(?:[^`]|``)+`|\w+)"
NAMES = rf"{NAME}(?:\s*,\s*{NAME})*"
FORM = re.compile(
    rf"\s*SELECT\s+\*\s*EXCEPT\s*\(\s*({NAMES})\s*\)\s*(?:,\s*({NAMES})\s)?\s*FROM\s+__THIS__\s*", re.IGNORECASE
)


class Selection(NamedTuple):
    """The columns that a statement drops or moves to the end; all others stay unchanged.

    Attributes:
        columns: all columns that the statement names.
        last: those of `columns` that it moves to the end; it drops the rest of `columns`.
    """

    columns: tuple[str, ...]
    last: tuple[str, ...]


def can_except() -> bool:
    """True if this Spark supports `SELECT * EXCEPT`, which exists from 4.0 on."""
    return sessions.VERSION >= (4, 0)


def selection_of(stage: Any) -> Selection | None:
    """Columns that an SQLTransformer drops or moves to the end; None for a stage that may do anything else."""
    plain = isinstance(stage, SQLTransformer) and stage.isDefined(stage.statement)
    form = FORM.fullmatch(stage.getStatement()) if plain else None
    if form is None:
        return None
    columns, last = (tuple(map(unquoted, re.findall(NAME, names or ""))) for names in form.groups())
    return Selection(columns, last) if set(last) <= set(columns) else None


def selecting(columns: Sequence[str], last: Sequence[str], uid: str) -> SQLTransformer:
    """SQLTransformer that moves the columns `last` to the end and drops the other ones of `columns`."""
    behind = f", {', '.join(map(quoted, last))}" if last else ""
    made = SQLTransformer(statement=f"SELECT * EXCEPT ({', '.join(map(quoted, columns))}){behind} FROM __THIS__")
    # The name of a view begins with its uid.
    return rebuilding.set_uid(made, re.sub(r"\W", "_", uid))  # type: ignore[no-any-return]


def quoted(name: str) -> str:
    """Name in backticks, because it may contain dots and backticks."""
    return "`" + name.replace("`", "``") + "`"


def unquoted(name: str) -> str:
    """Column name of an input Param: `a.b` in backticks is the column a.b (but not for an output)."""
    return name[1:-1].replace("``", "`") if len(name) > 2 and name[0] == name[-1] == "`" else name
