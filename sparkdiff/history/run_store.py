"""The store of runs: one Parquet file per run; any number of writers can add files at once, and readers see one table.

A file is written under a temporary name and renamed, so nothing that a killed writer left behind is read. `compact`
copies the files into one and then removes them; a reader in between sees some runs twice and keeps one row per id.
"""

import errno
import io
import itertools
import json
import os
import uuid
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm import stores
from sparkdiff.store.files import DamagedFile, write_bytes

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


def add(folder: Path, run: Mapping[str, Any]) -> None:
    """Add a run to the store in this folder.

    Args:
        folder: a folder on this machine, or the local working copy of a remote folder.
        run: the values of the columns; missing ones are null.

    Raises:
        InputError: the folder cannot be written.
    """
    row = {name: run.get(name) for name in SCHEMA.names}
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), content)
    _write(folder, f"run-{run['id']}.parquet", content.getvalue())


def _write(folder: Path, name: str, content: bytes) -> None:
    try:
        if stores.url_of(folder) is None:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            stores.make(folder, private=False)  # the folder's permissions decide who may read the runs
        write_bytes(folder / name, content)
        stores.send(folder / name)
    except OSError as e:
        raise InputError(
            f"storeDir={stores.path_or_url(folder)!r} cannot be used: {e.strerror or e}; choose a folder that can be written"
        ) from e


def rows(
    folder: Path, columns: Sequence[str] | None = None, ids: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """The runs of a store, the oldest first; read without Spark.

    Args:
        folder: the folder of the store on this machine, or the local working copy of a remote one.
        columns: the columns to read; None: all. With many runs, reading nested columns takes minutes.
        ids: ids of the runs to read; None: all.

    Raises:
        InputError: there is no store in this folder.
    """
    _, table = _read(folder, columns or SCHEMA.names)
    if ids is not None:
        table = table.filter(pc.is_in(table["id"], pa.array([*ids], pa.string())))
    found = {row["id"]: {name: _plain(value) for name, value in row.items()} for row in table.to_pylist()}
    return sorted(found.values(), key=lambda row: (row["finished"], row["id"]))


def rows_so_far(storeDir: str | None, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of a store, the oldest first; empty if storeDir is not set or the store does not exist yet.

    Raises:
        InputError: runs cannot be stored in storeDir, because it cannot be written or created.
    """
    if storeDir is None:
        return []
    folder = jvm.folder("storeDir", storeDir)
    jvm.check_writable("storeDir", storeDir, folder)
    try:
        names = stores.names(folder)
    except OSError:
        return []
    return rows(folder, columns) if any(_is_run(name) for name in names) else []


def json_object(text: str | None) -> dict[str, Any]:
    """The JSON object in a stored text, as a dict; empty if the text holds none."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    """The value, except that a map, which Arrow returns as a list of pairs, becomes a dict."""
    return dict(value) if isinstance(value, list) and value and isinstance(value[0], tuple) else value


def _read(folder: Path, columns: Sequence[str]) -> tuple[list[Path], pa.Table]:
    """The files of a store and their rows. Reading starts again if another process compacts the store meanwhile.

    Raises:
        InputError: there is no store in this folder.
    """
    names = [*{*columns, "id", "finished"}]
    for attempt in itertools.count():
        try:
            files = [folder / name for name in stores.names(folder) if _is_run(name)]
            if not files:
                raise _missing(folder)
            found = {file: rows for file in files if (rows := _rows(file, names)) is not None}
            # A column that an older file lacks is null.
            tables = [SCHEMA.empty_table().select(names), *found.values()]
            return [*found], pa.concat_tables(tables, promote_options="default")
        except OSError as e:
            if e.errno != errno.ENOENT or attempt == MOST:
                raise
    raise AssertionError


def _rows(file: Path, columns: Sequence[str]) -> pa.Table | None:
    """The rows of a file; None, with a warning, if the file is damaged or holds no runs.

    Raises:
        OSError: another process has removed the file.
    """
    stores.fetch(file)
    try:
        with pq.ParquetFile(file) as opened:
            rows = opened.read([name for name in columns if name in opened.schema_arrow.names])
        if rows.schema != pa.schema([SCHEMA.field(name) for name in rows.column_names]) or any(
            name not in rows.column_names or rows[name].null_count for name in ("id", "finished")
        ):
            raise pa.ArrowInvalid("its columns are not those of runs")
        return rows
    except (pa.ArrowException, OSError) as e:
        if not os.path.lexists(file):
            raise FileNotFoundError(errno.ENOENT, "it is gone", str(file)) from e
        warnings.warn(
            f"{stores.path_or_url(file)} is damaged or holds no runs, and is left out: {e}", DamagedFile, stacklevel=2
        )
        return None


def _missing(folder: Path) -> InputError:
    return InputError(
        f"there are no runs in {stores.path_or_url(folder)}: pass the folder that storeDir names. Runs are kept only where it "
        "is set"
    )


def runs(storeDir: str) -> DataFrame:
    """The runs of a store as a DataFrame, a row per run; docs/runs.md describes its columns.

    Args:
        storeDir: the value of the option `storeDir` of the runs: a folder on any file system that Spark knows.

    Raises:
        InputError: there is no store in this folder.

    Examples:
        >>> import sparkdiff
        >>> store = f"{folder}/runs"
        >>> tuned = sparkdiff.FineTuner(pipeline=pipeline, labelCol="label", maxEpochs=2, storeDir=store).fit(df)
        >>> sparkdiff.runs(store).select("verb", "metric", "decision").collect()
        [Row(verb='finetune', metric='logLoss', decision='tuned')]
    """
    spark, folder = jvm.session(), jvm.folder("storeDir", storeDir)
    schema: Any = from_arrow_schema(SCHEMA)
    files, _ = _read(folder, SCHEMA.names)
    if not files:
        return spark.createDataFrame([], schema)
    places = (
        files if len(files) < sum(map(_is_run, stores.names(folder))) else [folder]
    )  # for a whole store, one folder in place of many files
    read = spark.read.schema(schema).option("pathGlobFilter", "run*.parquet")
    return read.parquet(*map(stores.readable, places)).dropDuplicates(["id"])


def _is_run(name: str) -> bool:
    return name.startswith("run") and name.endswith(".parquet")


def compact(folder: Path) -> int:
    """Put all runs into one file, and return the number of runs. Other processes may write to the store meanwhile.

    Raises:
        InputError: there is no store in this folder, the folder cannot be written, or a newer version of sparkdiff has
            written to it.
    """
    files, table = _read(folder, SCHEMA.names)
    newest = max(filter(None, table["schemaVersion"].to_pylist()), default=VERSION)
    if newest > VERSION:
        raise InputError(
            f"{stores.path_or_url(folder)} holds runs of a newer sparkdiff (schema {newest}, here {VERSION}), whose columns "
            "would be lost: compact it with that version"
        )
    found = {id_.as_py(): i for i, id_ in enumerate(table["id"])}
    if len(files) > 1:
        content = io.BytesIO()
        pq.write_table(table.take(sorted(found.values())), content)
        _write(folder, f"runs-{uuid.uuid4().hex[:12]}.parquet", content.getvalue())
        for file in files:
            stores.remove(file)
    return len(found)
