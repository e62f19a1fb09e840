"""The store of runs: one Parquet file per run; any number of writers can add files at once, and readers see one table.

A file is written under a temporary name and renamed, so nothing that a killed writer left behind is read. `compact`
copies the files into one and then removes them; a reader in between sees some runs twice and keeps one row per id
(see `run_table`).
"""

import io
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_schema

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.history import run_table
from sparkdiff.history.lineage import Lineage, hash_of_saved, lineage
from sparkdiff.jvm import stores
from sparkdiff.machine.atomic_files import write_bytes
from sparkdiff.pipeline.nesting import plain
from sparkdiff.store.model_digests import hash_of


def add(folder: Path, run: Mapping[str, Any]) -> None:
    """Add a run to the store in this folder.

    Args:
        folder: a folder on this machine, or the local working copy of a remote folder.
        run: the values of the columns; missing ones are null.

    Raises:
        InputError: the folder cannot be written.
    """
    row = {name: run.get(name) for name in run_table.SCHEMA.names}
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], run_table.SCHEMA), content)
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


def rows_so_far(storeDir: str | None, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of a store, the oldest first; empty if storeDir is not set or the store does not exist yet.

    Raises:
        InputError: runs cannot be stored in storeDir, because it cannot be written or created.
    """
    if storeDir is None:
        return []
    folder = jvm.folder("storeDir", storeDir)
    jvm.check_writable("storeDir", storeDir, folder)
    there = any(map(run_table.is_run, stores.names(folder)))
    return run_table.rows(folder, columns, files=fetched_files) if there else []


def fetched_files(folder: Path) -> tuple[str, list[Path]]:
    """The name and the files of a store on any file system that Spark knows; they are copied to this machine."""
    names = filter(run_table.is_run, stores.names(folder))
    return stores.path_or_url(folder), [stores.fetch(folder / name) for name in names]


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
    schema: Any = from_arrow_schema(run_table.SCHEMA)
    files, _ = run_table.read(folder, run_table.SCHEMA.names, fetched_files)
    if not files:
        return spark.createDataFrame([], schema)
    places = (
        files if len(files) < sum(map(run_table.is_run, stores.names(folder))) else [folder]
    )  # for a whole store, one folder in place of many files
    read = spark.read.schema(schema).option("pathGlobFilter", "run*.parquet")
    return read.parquet(*map(stores.readable, places)).dropDuplicates(["id"])


def select(storeDir: str, where: str | None, *, compact_first: bool) -> tuple[Path, list[str] | None]:
    """Find the runs of a store that meet a condition in SQL, and return the store's folder and their ids.

    Args:
        storeDir: the folder of the store of runs.
        where: the condition; None: no ids are returned, which means all runs.
        compact_first: first put all runs into one file.

    Raises:
        InputError: there is no store, or the condition is not valid SQL.
    """
    folder = jvm.folder("storeDir", storeDir)
    if compact_first:
        compact(folder)
    if where is None:
        return folder, None
    with jvm.suppress_error_logs(), jvm.as_input_error(f"--where {where} is no condition on the runs"):
        return folder, [row["id"] for row in runs(storeDir).where(where).select("id").collect()]


def why(model: Any, storeDir: str) -> Lineage:
    """The lineage of a model, as far as the runs in a store show it.

    Args:
        model: a fitted pipeline or a FineTunerModel; or the path of a saved one, or of a run's folder. The model is
            identified by its content, not by its name or uids, so copies are recognised.
        storeDir: the folder of the store of runs.

    Raises:
        InputError: the model or the store does not exist; or the model cannot be saved, which is necessary to hash it.

    Examples:
        >>> import sparkdiff
        >>> store = f"{folder}/runs"
        >>> tuned = sparkdiff.FineTuner(pipeline=pipeline, labelCol="label", maxEpochs=2, storeDir=store).fit(df)
        >>> lineage = sparkdiff.why(tuned, store)
        >>> print(lineage)
        FineTunerModel_..., content ...
        made by finetune on ... from ...: tuned
          logLoss ... -> ...
    """
    saved = isinstance(model, (str, Path))
    name = str(model) if saved else model.uid
    content = hash_of_saved(name, stores.fetch_folder(name)) if saved else hash_of(plain(model), None, None)
    if content is None:
        raise InputError(f"{name} cannot be saved, so its content is not known: pass a pipeline of Spark's own stages")
    return lineage(name, content, jvm.folder("storeDir", storeDir), fetched_files)


def compact(folder: Path) -> int:
    """Put all runs into one file, and return the number of runs. Other processes may write to the store meanwhile.

    Raises:
        InputError: there is no store in this folder, the folder cannot be written, or a newer version of sparkdiff has
            written to it.
    """
    files, table = run_table.read(folder, run_table.SCHEMA.names, fetched_files)
    newest = max(filter(None, table["schemaVersion"].to_pylist()), default=run_table.VERSION)
    if newest > run_table.VERSION:
        raise InputError(
            f"{stores.path_or_url(folder)} holds runs of a newer sparkdiff (schema {newest}, here {run_table.VERSION}), whose "
            "columns would be lost: compact it with that version"
        )
    found = {id_.as_py(): i for i, id_ in enumerate(table["id"])}
    if len(files) > 1:
        content = io.BytesIO()
        pq.write_table(table.take(sorted(found.values())), content)
        _write(folder, f"runs-{uuid.uuid4().hex[:12]}.parquet", content.getvalue())
        for file in files:
            stores.remove(file)
    return len(found)
