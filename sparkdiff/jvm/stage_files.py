"""Saved stages as files: the rows of their data, read and written with Arrow."""

import atexit
import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparkdiff.jvm import stores
from sparkdiff.jvm.folders import scratch_folder, temporary


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """Yield the address of a temporary folder for a saved stage."""
    with temporary(".stage-", scratch_folder()) as path:
        yield stores.address(path / "stage")


@contextlib.contextmanager
def save_temporarily(stage: Any) -> Iterator[str]:
    """Save a stage to a temporary folder, and yield its address."""
    with folder() as where:
        stage.write().save(where)
        yield where


def save_until_exit(stage: Any) -> str:
    """Save a stage to a folder that exists until this process ends, for models that read their files whenever they are
    used. Returns the folder's address.
    """
    folder = Path(tempfile.mkdtemp(prefix=".stage-", dir=scratch_folder()))
    atexit.register(stores.remove, folder)
    where = stores.address(folder / "stage")
    stage.write().save(where)
    return where


def write_text(where: str, text: str) -> None:
    """Write a line of text to a new folder, as Spark's saveAsTextFile does."""
    folder = stores.local_of(where)
    folder.mkdir(parents=True)
    (folder / "part-00000").write_text(f"{text}\n", encoding="utf-8")
    stores.send(folder)


def change_metadata(where: str, **values: Any) -> None:
    """Change entries of the metadata of a stage that was saved to an address of `save_temporarily`."""
    folder = stores.fetch(stores.local_of(f"{where}/metadata"))
    (part,) = folder.glob("part-*")
    told = {**json.loads(part.read_text(encoding="utf-8")), **values}
    shutil.rmtree(folder)  # with its checksums
    write_text(f"{where}/metadata", json.dumps(told))


def read_rows(where: str) -> pa.Table:
    """The rows of a folder of Parquet that Spark saved to an address of `save_temporarily`. Runs no job."""
    tables = []
    for path in sorted(stores.fetch(stores.local_of(where)).glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            tables.append(file.read())
    return pa.concat_tables(tables)


def write_rows(where: str, data: pa.Table) -> None:
    """Write a folder of Parquet like those that `read_rows` reads, or replace it. The schema should be one that Spark
    saved, because its metadata tell Spark which columns are vectors.

    Runs no job; sending the rows through Spark would take a Python process and a tenth of a second for each partition.
    """
    folder = stores.local_of(where)
    if folder.exists():
        shutil.rmtree(folder)  # with the checksums of the old files
    folder.mkdir(parents=True)
    pq.write_table(data, folder / "part-00000.parquet")
    stores.send(folder)


def table_of(rows: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Table of rows with pyspark's values (vectors, matrices, numbers), in a schema from `read_rows`."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays([_arrow(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _arrow(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([_plain(value, kind) for value in values], kind)


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value in a form that Arrow accepts for a type: vectors and matrices as the structs that Spark stores, integers
    as floats for a floating-point type.
    """
    value = value.__UDT__.serialize(value) if hasattr(value, "__UDT__") else value
    if value is None:
        return None
    if pa.types.is_struct(kind):
        values = value if isinstance(value, Mapping) else dict(zip([f.name for f in kind], value, strict=True))
        return {f.name: _plain(values[f.name], f.type) for f in kind}
    if pa.types.is_list(kind):
        return [_plain(v, kind.value_type) for v in value]
    return float(value) if pa.types.is_floating(kind) else value
