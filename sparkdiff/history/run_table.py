"""The table of a store of runs: its columns, its rows, and the runs as lines of text. Imports neither Spark nor torch."""

import datetime
import errno
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkdiff.errors import DamagedFile, InputError, did_you_mean, warn
from sparkdiff.report import aligned, p_value, signed
from sparkdiff.report.ancestry import SHORT, name_of

FilesOf = Callable[[Path], tuple[str, list[Path]]]
"""Function that returns the name of a store for messages, and its files on this machine; it raises an OSError (ENOENT) if another
process has just removed one.
"""
MOST = 100
"""Largest number of times that a reader starts again because the store is being compacted."""
VERSION = 1
"""Version of the schema. A later version adds columns; a column never changes its meaning or its type."""
_NAMES, _NUMBERS = pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.float64())
_STAGE = {"stageClass": pa.string(), "role": pa.string(), "trained": pa.bool_()}
_TRIED = {
    "kind": pa.string(),
    "name": pa.string(),
    "value": pa.float64(),
    "seconds": pa.float64(),
    "outcome": pa.string(),
}
_POINT = {"candidate": pa.int32(), "epoch": pa.int32(), "value": pa.float64()}


def _structs(fields: Mapping[str, pa.DataType]) -> pa.DataType:
    return pa.list_(pa.struct([*fields.items()]))


SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "schemaVersion": pa.int32(),
        "finished": pa.timestamp("us", tz="UTC"),
        "verb": pa.string(),
        "runId": pa.string(),
        "model": pa.string(),
        "parent": pa.string(),
        "offers": _NAMES,
        "data": pa.string(),
        "dataVersions": pa.string(),
        "decision": pa.string(),
        "kept": pa.bool_(),
        "reason": pa.string(),
        "metric": pa.string(),
        "metricDirection": pa.string(),
        "before": pa.float64(),
        "after": pa.float64(),
        "testBefore": pa.float64(),
        "testAfter": pa.float64(),
        "gain": pa.float64(),
        "p": pa.float64(),
        "gainInterval": pa.list_(pa.float64()),
        "rows": pa.map_(pa.string(), pa.int64()),
        "stages": _structs(_STAGE),
        "tried": _structs(_TRIED),
        "curves": _structs(_POINT),
        "options": pa.string(),
        "evidence": pa.string(),
        "timings": _NUMBERS,
        "seconds": pa.float64(),
        "coreSeconds": pa.float64(),
        "cacheHit": pa.bool_(),
        "warnings": pa.int32(),
        "versions": _NAMES,
        "tags": _NAMES,
        "redacted": pa.bool_(),
        "command": pa.string(),
        "output": pa.string(),
    }
)
"""Schema of the store, with one row per run; docs/runs.md describes each column. Null means unknown."""


COLUMNS = ("verb", "decision", "metric", "before", "after", "gain", "p", "coreSeconds", "model", "parent")
"""Columns of the store that the table shows, besides the run's time, name and folder."""
HEAD = (
    "finished",
    "run",
    "by",
    "decision",
    "metric",
    "before",
    "after",
    "gain",
    "p",
    "core-s",
    "model",
    "parent",
    "folder",
)


def is_run(name: str) -> bool:
    """True for the name of a file of a store."""
    return name.startswith("run") and name.endswith(".parquet")


def local_files(folder: Path) -> tuple[str, list[Path]]:
    """The name and the files of a store in a folder of this machine."""
    return str(folder), [folder / n for n in sorted(os.listdir(folder) if folder.is_dir() else []) if is_run(n)]


def rows(
    folder: Path,
    columns: Sequence[str] | None = None,
    ids: Collection[str] | None = None,
    files: FilesOf = local_files,
) -> list[dict[str, Any]]:
    """The runs of a store, the oldest first.

    Args:
        folder: the folder of the store on this machine, or the local working copy of a remote one.
        columns: the columns to read; None: all. With many runs, reading nested columns takes minutes.
        ids: ids of the runs to read; None: all.
        files: function that returns the files in `folder`.

    Raises:
        InputError: there is no store in this folder.
    """
    _, table = read(folder, columns or SCHEMA.names, files)
    if ids is not None:
        table = table.filter(pc.is_in(table["id"], pa.array([*ids], pa.string())))
    maps = [field.name for field in table.schema if pa.types.is_map(field.type)]  # lists of pairs for Arrow
    found = {row["id"]: row | {n: dict(row[n]) for n in maps if row[n] is not None} for row in table.to_pylist()}
    return sorted(found.values(), key=lambda row: (row["finished"], row["id"]))


def json_object(text: str | None) -> dict[str, Any]:
    """The JSON object in a stored text, as a dict; empty if the text holds none."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read(folder: Path, columns: Sequence[str], files: FilesOf, attempts: int = MOST) -> tuple[list[Path], pa.Table]:
    """The files of a store and their rows. Reading starts again if another process compacts the store meanwhile.

    Raises:
        InputError: there is no store in this folder.
    """
    names = [*{*columns, "id", "finished"}]
    try:
        where, there = files(folder)
        if not there:
            raise InputError(
                f"there are no runs in {where}: pass the folder that storeDir names. Runs are kept only where it is set"
            )
        found = {file: rows for file in there if (rows := _rows(where, file, names)) is not None}
        # A column that an older file lacks is null.
        tables = [SCHEMA.empty_table().select(names), *found.values()]
        return [*found], pa.concat_tables(tables, promote_options="default")
    except OSError as e:
        if e.errno != errno.ENOENT or not attempts:
            raise
        return read(folder, columns, files, attempts - 1)


def _rows(where: str, file: Path, columns: Sequence[str]) -> pa.Table | None:
    """The rows of a file; None, with a warning that names the store, if the file is damaged or holds no runs.

    Raises:
        OSError: another process has removed the file.
    """
    try:
        with pq.ParquetFile(file) as opened:
            rows = opened.read([column for column in columns if column in opened.schema_arrow.names])
        if rows.schema != pa.schema([SCHEMA.field(column) for column in rows.column_names]) or any(
            column not in rows.column_names or rows[column].null_count for column in ("id", "finished")
        ):
            raise pa.ArrowInvalid("its columns are not those of runs")
        return rows
    except (pa.ArrowException, OSError) as e:
        if not os.path.lexists(file):
            raise FileNotFoundError(errno.ENOENT, "it is gone", str(file)) from e
        warn(f"{where}/{file.name} is damaged or holds no runs, and is left out: {e}", DamagedFile)
        return None


# Text ---------------------------------------------------------------------------------------------------------------------


def list_runs(
    folder: Path,
    ids: Collection[str] | None,
    sort: str,
    limit: int,
    *,
    as_json: bool,
    files: FilesOf = local_files,
) -> list[str]:
    """Runs of a store, as lines of a table or of JSON.

    Args:
        folder: the folder of the store on this machine, or the local working copy of a remote one.
        ids: ids of the runs; None: all.
        sort: the column to sort by, the largest first.
        limit: largest number of runs.
        as_json: all columns, as one JSON object per line.
        files: function that returns the files in `folder`.

    Raises:
        InputError: there is no store, or `sort` is no column that has an order.
    """
    columns = [field.name for field in SCHEMA if not pa.types.is_nested(field.type)]
    if sort not in columns:
        raise InputError(f"--sort {sort} is no column of a run that has an order. {did_you_mean(sort, columns)}")
    found = sorted(rows(folder, (sort,), ids, files), key=lambda run: (run[sort] is not None, run[sort]), reverse=True)
    chosen, folders = [run["id"] for run in found[:limit]], folders_of_runs(Path.cwd())
    shown = {
        run["id"]: run | {"output": run["output"] or folders.get(run["id"])}
        for run in rows(folder, None if as_json else (*COLUMNS, "runId", "output"), chosen, files)
    }
    if as_json:
        runs = [{k: v for k, v in shown[id_].items() if v is not None} for id_ in chosen]
        # JSON lacks NaN and infinity: they become texts.
        return [
            json.dumps(json.loads(json.dumps(run, default=datetime.datetime.isoformat), parse_constant=str))
            for run in runs
        ]
    if not chosen:
        return ["no runs"]
    lines = aligned([HEAD, *(_cells(shown[id_]) for id_ in chosen)], left=(0, 1, 2, 3, 4, 10, 11, 12))
    return [*lines, "and more: --limit shows them, --where and --sort choose"] if len(found) > limit else lines


def folders_of_runs(here: Path) -> dict[str, str]:
    """The output folders of jobs at most two levels below a folder, relative to it, by the id of their run."""
    return {
        found[1]: str(file.parent.relative_to(here))
        for up in ("", "*/", "*/*/")
        for file in sorted(here.glob(f"{up}summary.json"))
        if file.is_file() and os.access(file, os.R_OK)
        for found in re.finditer(r'^  "id": "(\w+)"', file.read_text(errors="replace"), re.MULTILINE)
    }


def _cells(run: Mapping[str, Any]) -> Sequence[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        f"{run['finished']:%Y-%m-%d %H:%M}",
        name_of(run),
        *(run[name] or "" for name in ("verb", "decision", "metric")),
        number(run["before"], ".5g"),
        number(run["after"], ".5g"),
        "" if run["gain"] is None else signed(run["gain"]),
        "" if run["p"] is None else p_value(run["p"]),
        number(run["coreSeconds"], ".0f"),
        (run["model"] or "")[:SHORT],
        (run["parent"] or "")[:SHORT],
        run["output"] or "",
    )
