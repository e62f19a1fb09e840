"""The runs of a store as lines of text."""

import datetime
from collections.abc import Sequence
from typing import Any

from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import MapType

from sparkdiff import jvm
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.history import run_store
from sparkdiff.report import aligned, p_value
from sparkdiff.report.ancestry import SHORT

COLUMNS = ("finished", "verb", "decision", "metric", "before", "after", "gain", "p", "coreSeconds", "model", "parent")
HEAD = ("finished", "by", "decision", "metric", "before", "after", "gain", "p", "core-s", "model", "parent")


def list_runs(storeDir: str, where: str | None, sort: str, limit: int, *, compact: bool, as_json: bool) -> list[str]:
    """The runs that meet a condition in SQL, as lines of a table or of JSON.

    Args:
        where: the condition; None: all runs.
        sort: the column to sort by, the largest first.
        limit: largest number of runs.
        compact: first put all runs into one file.
        as_json: all columns, as one JSON object per line.

    Raises:
        InputError: there is no store, the condition is not valid SQL, or `sort` is no column that has an order.
    """
    if compact:
        run_store.compact(jvm.folder("storeDir", storeDir))
    found = run_store.runs(storeDir)
    columns = [field.name for field in found.schema if not isinstance(field.dataType, MapType)]
    if sort not in columns:
        raise InputError(f"--sort {sort} is no column of a run that has an order. {did_you_mean(sort, columns)}")
    with jvm.suppress_error_logs(), jvm.as_input_error(f"--where {where} is no condition on the runs"):
        chosen = found if where is None else found.where(where)
        if as_json:
            lines = chosen.sort(F.desc(sort)).limit(limit).select(F.to_json(F.struct("*")).alias("line"))
            return [row["line"] for row in lines.collect()]
        return _table(chosen, sort, limit)


def _table(chosen: DataFrame, sort: str, limit: int) -> list[str]:
    rows = [
        row.asDict()
        for row in chosen.select(*dict.fromkeys((*COLUMNS, sort))).sort(F.desc(sort)).limit(limit + 1).collect()
    ]
    if not rows:
        return ["no runs"]
    lines = aligned([HEAD, *map(_cells, rows[:limit])], left=(0, 1, 2, 3, 9, 10))
    return [*lines, "and more: --limit shows them, --where and --sort choose"] if len(rows) > limit else lines


def _cells(run: dict[str, Any]) -> Sequence[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    finished = run["finished"].astimezone(datetime.timezone.utc)  # Spark returns it in the time zone of this process
    return (
        f"{finished:%Y-%m-%d %H:%M}",
        *(run[name] or "" for name in ("verb", "decision", "metric")),
        number(run["before"], ".5g"),
        number(run["after"], ".5g"),
        number(run["gain"], "+.1%"),
        "" if run["p"] is None else p_value(run["p"]),
        number(run["coreSeconds"], ".0f"),
        (run["model"] or "")[:SHORT],
        (run["parent"] or "")[:SHORT],
    )
