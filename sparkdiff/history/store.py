"""The store of runs: one Parquet file per run, which any number of writers add at once, read back as one table.

A file is written beside its place and renamed, so a writer that is killed leaves nothing that is read. `compact` copies the files
into one and then removes them; who reads in between sees some runs twice and keeps one of each id.
"""

import io
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm import stores
from sparkdiff.store.files import write_bytes

VERSION = 1
"""Of the schema. A later one adds columns; a column never changes its meaning or its type."""
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
        "id": pa.string(), "schemaVersion": pa.int32(), "finished": pa.timestamp("us", tz="UTC"), "verb": pa.string(),
        "runId": pa.string(), "model": pa.string(), "parent": pa.string(), "data": pa.string(), "dataVersions": pa.string(),
        "decision": pa.string(),
        "kept": pa.bool_(), "reason": pa.string(), "metric": pa.string(), "metricDirection": pa.string(), "before": pa.float64(),
        "after": pa.float64(), "testBefore": pa.float64(), "testAfter": pa.float64(), "gain": pa.float64(), "p": pa.float64(),
        "gainInterval": pa.list_(pa.float64()), "rows": pa.map_(pa.string(), pa.int64()), "stages": _structs(_STAGE),
        "tried": _structs(_TRIED), "curves": _structs(_POINT), "options": pa.string(), "evidence": pa.string(),
        "timings": _NUMBERS, "seconds": pa.float64(), "coreSeconds": pa.float64(), "cacheHit": pa.bool_(), "warnings": pa.int32(),
        "versions": _NAMES, "tags": _NAMES, "redacted": pa.bool_(), "command": pa.string(), "output": pa.string(),
    }
)  # fmt: skip
"""A row per run; docs/runs.md tells what each column holds. Null is unknown."""


def add(folder: Path, run: Mapping[str, Any]) -> None:
    """Add a run to the store in this folder, of this machine or the working copy of one in a store.

    Raises:
        InputError: the folder cannot be written.
    """
    row = {name: run.get(name) for name in SCHEMA.names}
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), content)
    _write(folder, f"run-{run['id']}.parquet", content.getvalue())


def _write(folder: Path, name: str, content: bytes) -> None:
    try:
        stores.make(folder)
        write_bytes(folder / name, content)
        stores.send(folder / name)
    except OSError as e:
        raise InputError(
            f"storeDir={stores.named(folder)!r} cannot be used: {e.strerror or e}; choose a folder that can be written"
        ) from e


def rows(
    folder: Path, columns: Sequence[str] | None = None, ids: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """The runs of a store, the oldest first; without Spark.

    Args:
        columns: those to read; None: all. Of many runs the nested ones take minutes.
        ids: of the runs to read; None: all.

    Raises:
        InputError: there is no store in this folder.
    """
    wanted = None if ids is None else ds.field("id").isin(pa.array([*ids], pa.string()))
    table = _table(_files(_brought(folder)), [*{*(columns or SCHEMA.names), "id", "finished"}], wanted)
    found = {row["id"]: {name: _plain(value) for name, value in row.items()} for row in table.to_pylist()}
    return sorted(found.values(), key=lambda row: (row["finished"], row["id"]))


def _plain(value: Any) -> Any:
    """Arrow's pairs of a map as a dict."""
    return dict(value) if isinstance(value, list) and value and isinstance(value[0], tuple) else value


def _brought(folder: Path) -> Path:
    if stores.url_of(folder) is None:
        return folder
    try:
        return stores.fetch(folder)
    except OSError as e:
        raise _missing(folder) from e


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("run*.parquet")) if folder.is_dir() else []
    if not found:
        raise _missing(folder)
    return found


def _missing(folder: Path) -> InputError:
    return InputError(
        f"there are no runs in {stores.named(folder)}: pass the folder that storeDir names. Runs are kept only where it is set"
    )


def _table(files: Sequence[Path], columns: Sequence[str], wanted: Any = None) -> pa.Table:
    """The rows of these files that meet a condition of Arrow. A column that an older file lacks is null there.

    Raises:
        FileNotFoundError: another process has compacted the store in the meantime.
    """
    return ds.dataset([str(f) for f in files], schema=SCHEMA, format="parquet").to_table(
        columns=list(columns), filter=wanted
    )


def runs(storeDir: str) -> DataFrame:
    """The runs of a store as a DataFrame, a row per run; docs/runs.md tells its columns.

    Args:
        storeDir: the folder that the option `storeDir` of the runs named, on any file system that Spark knows.

    Raises:
        InputError: there is no store in this folder.
    """
    spark, folder = jvm.session(), jvm.folder("storeDir", storeDir)
    if not any(_is_run(name) for name in stores.names(folder)):
        raise _missing(folder)
    frame = spark.read.schema(from_arrow_schema(SCHEMA)).parquet(stores.readable(folder))  # type: ignore[arg-type]
    return frame.dropDuplicates(["id"])


def _is_run(name: str) -> bool:
    return name.startswith("run") and name.endswith(".parquet")


def compact(folder: Path) -> int:
    """Put all runs into one file; returns their number. Other processes may write meanwhile.

    Raises:
        InputError: there is no store in this folder, or it cannot be written.
    """
    here = _brought(folder)
    while True:
        files = _files(here)
        try:
            table = _table(files, SCHEMA.names)
            break
        except FileNotFoundError:  # another process compacts it, too
            here = _brought(folder)
    found = {id_.as_py(): i for i, id_ in enumerate(table["id"])}
    if len(files) > 1:
        content = io.BytesIO()
        pq.write_table(table.take(sorted(found.values())), content)
        _write(folder, f"runs-{uuid.uuid4().hex[:12]}.parquet", content.getvalue())
        for file in files:
            stores.remove(folder / file.name)
    return len(found)
