"""The rows that a cache is written from: checked, divided into splits (training, validation, ...) and slices (sets of
rows with one value of a `guardCols` column), and transformed by the stages that run in Spark. The rows after the first
few or all of these stages can be kept in the folder of the caches, so that a later cache is written from them.

A cache serves one pipeline: it holds the columns that torch reads. If a pipeline is edited, its stages before the
edit make the same rows again. With `reuseStages`, the second run that needs the same rows after the same stages keeps
these rows, and later runs start from them (HELIX, Xin et al. 2018, keeps the results of a workflow's steps in the same
way).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.data import splits
from sparkdiff.data.fingerprint import Request, anonymous, divided_facts
from sparkdiff.data.layout import check_number
from sparkdiff.data.row_hashes import row_hashes
from sparkdiff.data.stream import usage
from sparkdiff.errors import DamagedFileError, InputError, as_read_error, did_you_mean, warn
from sparkdiff.jvm import stores
from sparkdiff.jvm.query_plans import plan_facts
from sparkdiff.machine import atomic_files
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.schema import check_columns as check_stage_columns, is_plain
from sparkdiff.store import folder_marker
from sparkdiff.store.files import full, move_into_place, read_object
from sparkdiff.store.model_digests import digest_of

PREFIX = "stages-"

Frames = list[DataFrame]
Slices = dict[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class TransformedRows:
    """The rows of the sources after all stages in Spark.

    Attributes:
        frames: the rows of each source; those of several sources may be united, see `transformed_frames`.
        values: the values that form slices, by column of `guardCols`.
        read: uids of the first stages, which did not run, because an earlier run has kept the rows after them.
        kept: uids of the first stages after which this run has kept the rows.
    """

    frames: Frames
    values: Slices
    read: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def _longest(where: Path, keys: Sequence[str], held: contextlib.ExitStack) -> tuple[int, "_KeptRows | None"]:
    """The largest number k for which the rows after the first k stages are kept, and these rows, which are locked
    against removal until `held` is closed; 0 and None if no rows are kept.
    """
    for k in range(len(keys), 0, -1):
        if _KeptRows.at(where, keys[k - 1]) is not None:
            lock = usage.Lock(where / f"{PREFIX}{keys[k - 1]}")
            if (found := _KeptRows.at(where, keys[k - 1])) is not None:  # still there, now that it is locked
                held.callback(lock.close)
                return k, found
            lock.close()
    return 0, None


def _through(frames: Frames, stages: Sequence[Vertex]) -> Frames:
    return [functools.reduce(lambda rows, stage: stage.transform(rows), stages, df) for df in frames]


def keys_of(request: Request, where: Path) -> list[str]:
    """Hashes of everything that decides the rows after the first stage in Spark, after the first two, and so on.

    Empty if the rows after one of these stages cannot be identified: its code is not Spark's own, it cannot be saved, or
    its SQL statement, for example, draws random numbers, calls code or asks for the file of a row (which would be
    another file for kept rows).
    """
    known = hashlib.sha256(json.dumps(divided_facts(request), sort_keys=True, default=str).encode())
    keys, frames = [], [source.df for source in request.sources]
    first = request.cut.first_in_spark()
    if any(v.custom for v in request.cut.stages[len(first) :]):
        return []
    for vertex in first:
        digest = digest_of([vertex.stage], where) if is_plain(vertex.stage) else None
        if digest is None:
            return []
        frames = [vertex.transform(df) for df in frames]
        facts = [plan_facts(df, after_stages=True) for df in frames] if vertex.custom else []
        if None in facts:
            return []
        # Digests leave out uids, but names of columns may contain them.
        told = [digest, vertex.inputs, vertex.outputs, anonymous(facts, [vertex.uid])]
        known.update(json.dumps(told).encode())
        keys.append(known.hexdigest()[:16])
    return keys


def _was_needed(where: Path, key: str) -> bool:
    with contextlib.suppress(OSError):  # of another user
        return stores.exists(where / usage.SEEN / key)
    return False


def _note(where: Path, keys: Sequence[str]) -> None:
    """Record for later runs that the rows with these keys were needed; does nothing if the folder cannot be written."""
    with contextlib.suppress(OSError):
        folder = where / usage.SEEN
        if not stores.exists(folder):
            stores.make(folder, private=False)
            folder_marker.mark(folder, folder_marker.SEEN)
            if stores.url_of(folder) is None:
                folder.chmod(where.stat().st_mode & 0o777)  # as the folder of the caches is shared
        for key in keys:
            stores.write(folder / key, b"")


@dataclasses.dataclass(frozen=True)
class _KeptRows:
    """Kept rows, with the values of their slices."""

    folder: Path
    rows: Path
    values: Slices

    @staticmethod
    def at(where: Path, key: str) -> "_KeptRows | None":
        """The kept rows with this key; None if there are none, or if one of their files is missing or truncated.

        Raises:
            SparkdiffError: they cannot be read at this time.
        """
        folder = where / f"{PREFIX}{key}"
        with contextlib.suppress(DamagedFileError), as_read_error(stores.path_or_url(folder)):
            told = read_object(stores.fetch(folder / usage.MANIFEST))
            rows = folder / told["rows"]
            if stores.exists(rows) and stores.size(rows) == told["bytes"]:
                return _KeptRows(folder, rows, {name: tuple(values) for name, values in told["slices"].items()})
        return None

    def frames(self, request: Request) -> Frames:
        spark = request.sources[0].df.sparkSession
        return [spark.read.parquet(stores.readable(self.rows / str(i))) for i in range(len(request.sources))]


def _keep(
    where: Path, key: str, frames: Frames, values: Slices, stages: Sequence[Vertex], run: str | None
) -> _KeptRows | None:
    """Write the rows to the folder of the caches, and return them. If that fails, warns and returns None: for example,
    Parquet has no type for intervals, the disk may have room only for the cache, or a stage may fail (the error is
    raised when the cache is written).
    """
    folder = where / f"{PREFIX}{key}"
    local = stores.url_of(folder) is None
    target = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}") if local else folder
    rows = target / f"rows-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    try:
        folder_marker.check_owner(folder, folder_marker.ROWS, f"the folder {stores.path_or_url(folder)}", "cacheDir")
        stores.make(target)
        folder_marker.mark(target, folder_marker.ROWS)
        for i, df in enumerate(frames):
            if _cuts_times(df):
                raise OSError("spark.sql.parquet.outputTimestampType=TIMESTAMP_MILLIS would cut off microseconds")
            df.write.parquet(stores.address(rows / str(i)))
        told = {"rows": rows.name, "bytes": stores.size(rows), "slices": values}
        stores.write(target / usage.MANIFEST, json.dumps(told).encode())
        if local:
            usage.begin(target, [s.stageClass for s in stages], time.monotonic() - began, run)
            # A damaged folder in its place is replaced; a complete one was written by another run meanwhile.
            if not move_into_place(target, folder) and _KeptRows.at(where, key) is None:
                atomic_files.remove(folder)
                move_into_place(target, folder)
    except BaseException as e:
        stores.remove(rows)
        if not isinstance(e, (jvm.SparkError, OSError, InputError)):
            raise
        why = full(e) or (jvm.cause(e) if isinstance(e, jvm.SparkError) else str(e))
        warn(f"the rows after {stages[-1].uid} are not kept: {why}")
        return None
    finally:
        if local:
            atomic_files.remove(target)
    return _KeptRows.at(where, key)


def _cuts_times(df: DataFrame) -> bool:
    """True if Parquet would hold the timestamps of these rows with milliseconds only."""
    kind = str(df.sparkSession.conf.get("spark.sql.parquet.outputTimestampType"))
    return kind.upper() == "TIMESTAMP_MILLIS" and '"timestamp"' in df.schema.json()


def check_request(request: Request) -> None:
    cut, graph = request.cut, request.cut.graph
    for source in request.sources:
        splits.check_columns(source.data, request.options)
        splits.check_names(cut.spark_outputs)
        check_stage_columns(graph, source.df.schema, (request.labelCol, request.weightCol))
        names = {
            graph.casefold(c) for c in (*source.df.columns, *cut.spark_outputs)
        }  # without outputs of opaque stages
        for lost in (c for c in graph.head.lossInputs if not cut.opaque and graph.casefold(c) not in names):
            raise InputError(
                f"the loss of {graph.head.uid} reads column {lost!r}, which is not in the data. "
                f"{did_you_mean(lost, source.df.columns)}"
            )
        for option, column in (("labelCol", request.labelCol), ("weightCol", request.weightCol)):
            if column is not None and not cut.opaque and graph.casefold(column) not in names:
                known = (*source.df.columns, *cut.spark_outputs)
                raise InputError(f"{option}={column!r} is not a column of the data. {did_you_mean(column, known)}")
            check_number(option, column, source.df, graph.casefold, [v.stage for v in graph.vertices])


def transformed_frames(request: Request) -> tuple[list[DataFrame], dict[str, tuple[Any, ...]]]:
    """The rows of each source, divided into splits and slices, after all stages in Spark; and the values that form
    slices, by column. Sources with the same columns are united (`splits.united`), unless a stage may look at several rows.

    Raises:
        InputError: Spark failed on the rows.
    """
    divided, values = _split_rows(request, unite=not request.cut.custom)
    with jvm.as_input_error(failure_of(request)):
        return [request.cut.transform(df) for df in divided], values


def _split_rows(request: Request, *, unite: bool = False) -> tuple[list[DataFrame], dict[str, tuple[Any, ...]]]:
    """The rows of each source, divided into splits and slices, before any stage; and the values that form slices, by
    column.

    Args:
        unite: whether to unite sources with the same columns.
    """
    o = request.options
    by = [f"{n}={v!r}" for n in ("validationIndicatorCol", "groupCol", "timeCol", "guardCols") if (v := getattr(o, n))]
    with jvm.as_input_error(f"Spark failed while it split the rows ({', '.join(by) or 'by a hash of all columns'})"):
        dealt = splits.with_splits(_numbered(request), o, request.boundaries)
        if unite and len(dealt) > 1:
            dealt = splits.united(df.withColumn(splits.SOURCE, F.lit(i)) for i, df in enumerate(dealt))
        if request.keyed:
            # Not the hash used for the split: it skips nulls, and would not see which column of a row is null.
            dealt = [
                df.withColumn(
                    splits.ROW, row_hashes(df.drop(splits.SPLIT, splits.BLOCK, splits.TIME, splits.SOURCE))[0]
                )
                for df in dealt
            ]
        dealt, values = splits.with_slices(dealt, o)
        for df in dealt:
            df.schema  # noqa: B018  # Spark Connect analyses nothing until then
        return dealt, values


_ALL_DIFFERENT: set[str] = set()
"""Hashes of the facts of sources in which this process has found no equal rows, so that the job that looks for them need not run
again."""


def _numbered(request: Request) -> list[splits.Source]:
    """The sources, with numbers for equal rows if a hash of the row decides its split or block."""
    o, found = request.options, list[splits.Source]()
    for source, facts in zip(request.sources, request.facts or [None] * len(request.sources), strict=True):
        key = facts and hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        df = source.df
        if not source.numbered and not (o.groupCol or o.timeCol or key in _ALL_DIFFERENT):
            df = splits.number_equal_rows(df, o)
            if key and df is source.df:
                _ALL_DIFFERENT.add(key)
        found.append(dataclasses.replace(source, df=df, numbered=True))
    return found


@contextlib.contextmanager
def rows_after_stages(request: Request, where: Path) -> Iterator[TransformedRows]:
    """Yield the result of `transformed_frames`; with `reuseStages`, made from rows that an earlier run has kept, if
    there are any. No process removes the kept rows within this context.

    Args:
        where: the folder of the caches.
    """
    if not request.options.reuseStages:
        yield TransformedRows(*transformed_frames(request))
        return
    with jvm.as_input_error(failure_of(request)), contextlib.ExitStack() as held:
        stages = request.cut.in_spark()
        keys = keys_of(request, where)
        uids = [stage.uid for stage in stages]
        read, found = _longest(where, keys, held)
        if found is None:
            frames, values = _split_rows(request)
        else:
            usage.record_use(found.folder)
            frames, values = found.frames(request), found.values
        through = next((k for k in range(len(keys), read, -1) if _was_needed(where, keys[k - 1])), read)
        frames = _through(frames, stages[read:through])
        new = (
            _keep(where, keys[through - 1], frames, values, stages[:through], request.options.runId)
            if through > read
            else None
        )
        if new is not None:
            held.callback(usage.Lock(new.folder).close)
            frames = new.frames(request)
        frames = _through(frames, stages[through:])
        yield TransformedRows(frames, values, tuple(uids[:read]), tuple(uids[: through if new else 0]))
        _note(where, keys)


def failure_of(request: Request) -> str:
    """First words of the error if Spark fails on the rows."""
    return (
        "Spark failed while it ran the stages before training "
        f"({', '.join(['reading the data', *(v.uid for v in request.cut.stages)])})"
    )
