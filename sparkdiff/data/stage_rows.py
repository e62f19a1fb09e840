"""Rows after the first stages that Spark runs, kept in the folder of the caches, from which a later cache is written.

A cache serves one pipeline: it holds what torch reads. Where a pipeline is edited, its stages up to the edit make the same rows
again. With `reuseStages`, the second run that needs the same rows after the same stages keeps them, and later ones start from
them (HELIX, Xin et al. 2018, keeps the results of a workflow's steps in the same way).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.fingerprint import Request, anonymous, divided_facts
from sparkdiff.data.stream import usage
from sparkdiff.errors import InputError
from sparkdiff.jvm import stores
from sparkdiff.jvm.plans import plan_facts
from sparkdiff.machine import whole
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.schema import is_plain
from sparkdiff.store import marker
from sparkdiff.store.digests import digest_of
from sparkdiff.store.files import full, moved, read_object

PREFIX = "stages-"

Frames = list[DataFrame]
Slices = dict[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Made:
    """The rows of each source after all stages in Spark.

    Attributes:
        values: of the slices.
        read: uids of the first stages, whose rows an earlier run has kept.
        kept: uids of the first stages, whose rows this run has kept.
    """

    frames: Frames
    values: Slices
    read: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@contextlib.contextmanager
def frames_after(request: Request, where: Path, divided: Callable[[], tuple[Frames, Slices]]) -> Iterator[Made]:
    """The rows after all stages in Spark, from those that are kept if there are any; nobody removes these in this context.

    Args:
        where: the folder of the caches.
        divided: makes the rows before the first stage, divided into splits and slices.
    """
    stages = request.cut.in_spark()
    keys = keys_of(request, where)
    uids = [stage.uid for stage in stages]
    with contextlib.ExitStack() as held:
        read, found = _longest(where, keys, held)
        if found is None:
            frames, values = divided()
        else:
            usage.used(found.folder)
            frames, values = found.frames(request), found.values
        through = next((k for k in range(len(keys), read, -1) if _seen(where, keys[k - 1])), read)
        frames = _through(frames, stages[read:through])
        new = _keep(where, keys[through - 1], frames, values, stages[:through]) if through > read else None
        if new is not None:
            held.callback(usage.Lock(new.folder).close)
            frames = new.frames(request)
        frames = _through(frames, stages[through:])
        yield Made(frames, values, tuple(uids[:read]), tuple(uids[: through if new else 0]))
        _note(where, keys)


def _longest(where: Path, keys: Sequence[str], held: contextlib.ExitStack) -> tuple[int, "_Kept | None"]:
    """The largest number of first stages whose rows are kept, and these rows, which nobody removes from now on."""
    for k in range(len(keys), 0, -1):
        if _Kept.at(where, keys[k - 1]) is not None:
            lock = usage.Lock(where / f"{PREFIX}{keys[k - 1]}")
            if (found := _Kept.at(where, keys[k - 1])) is not None:  # still there, now that it is locked
                held.callback(lock.close)
                return k, found
            lock.close()
    return 0, None


def _through(frames: Frames, stages: Sequence[Vertex]) -> Frames:
    return [functools.reduce(lambda rows, stage: stage.transform(rows), stages, df) for df in frames]


def keys_of(request: Request, where: Path) -> list[str]:
    """A hash of everything that decides the rows after the first stage in Spark, after the first two, and so on.

    Empty if one of all these stages does not tell its rows: where its code is not Spark's own, or its statement draws numbers,
    calls code or asks for the file of a row (which kept rows would answer otherwise).
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
        # Digests know no uids, but the rows have columns that are named by them.
        told = [digest, vertex.inputs, vertex.outputs, anonymous(facts, [vertex.uid])]
        known.update(json.dumps(told).encode())
        keys.append(known.hexdigest()[:16])
    return keys


def _seen(where: Path, key: str) -> bool:
    with contextlib.suppress(OSError):  # of another user
        return stores.exists(where / usage.SEEN / key)
    return False


def _note(where: Path, keys: Sequence[str]) -> None:
    """Tell later runs that these were needed; where the folder cannot be written, they are not told."""
    with contextlib.suppress(OSError):
        folder = where / usage.SEEN
        if not stores.exists(folder):
            stores.make(folder, private=False)
            marker.mark(folder, marker.SEEN)
            if stores.url_of(folder) is None:
                folder.chmod(where.stat().st_mode & 0o777)  # as the folder of the caches is shared
        for key in keys:
            stores.write(folder / key, b"")


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Rows that are kept, with the values of their slices."""

    folder: Path
    rows: Path
    values: Slices

    @staticmethod
    def at(where: Path, key: str) -> "_Kept | None":
        """Those of this key; None if there are none, or if a file of them is missing or cut off."""
        folder = where / f"{PREFIX}{key}"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            if stores.url_of(folder) is not None:
                stores.fetch(folder / usage.MANIFEST)
            told = read_object(folder / usage.MANIFEST)
            rows = folder / told["rows"]
            if stores.exists(rows) and stores.size(rows) == told["bytes"]:
                return _Kept(folder, rows, {name: tuple(values) for name, values in told["slices"].items()})
        return None

    def frames(self, request: Request) -> Frames:
        spark = request.sources[0].df.sparkSession
        return [spark.read.parquet(stores.readable(self.rows / str(i))) for i in range(len(request.sources))]


def _keep(where: Path, key: str, frames: Frames, values: Slices, stages: Sequence[Vertex]) -> _Kept | None:
    """Write the rows. None, with a warning, where that fails: Parquet holds no intervals, for example, the disk may have room for
    the cache only, and a stage may fail, which the cache's own error then tells.
    """
    folder = where / f"{PREFIX}{key}"
    local = stores.url_of(folder) is None
    target = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}") if local else folder
    rows = target / f"rows-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    try:
        marker.check_owner(folder, marker.ROWS, f"the folder {stores.named(folder)}", "cacheDir")
        stores.make(target)
        marker.mark(target, marker.ROWS)
        for i, df in enumerate(frames):
            if _cuts_times(df):
                raise OSError("spark.sql.parquet.outputTimestampType=TIMESTAMP_MILLIS would cut off microseconds")
            df.write.parquet(stores.address(rows / str(i)))
        told = {"rows": rows.name, "bytes": stores.size(rows), "slices": values}
        stores.write(target / usage.MANIFEST, json.dumps(told).encode())
        if local:
            usage.begin(target, [s.stageClass for s in stages], time.monotonic() - began)
            # One that is there and damaged gives way; whole ones are another run's of this moment.
            if not moved(target, folder) and _Kept.at(where, key) is None:
                whole.remove(folder)
                moved(target, folder)
    except BaseException as e:
        stores.remove(rows)
        if not isinstance(e, (jvm.SparkError, OSError, InputError)):
            raise
        why = full(e) or (jvm.cause(e) if isinstance(e, jvm.SparkError) else str(e))
        warnings.warn(f"the rows after {stages[-1].uid} are not kept: {why}", UserWarning, stacklevel=2)
        return None
    finally:
        if local:
            whole.remove(target)
    return _Kept.at(where, key)


def _cuts_times(df: DataFrame) -> bool:
    """Whether Parquet would hold the timestamps of these rows with milliseconds only."""
    kind = str(df.sparkSession.conf.get("spark.sql.parquet.outputTimestampType"))
    return kind.upper() == "TIMESTAMP_MILLIS" and '"timestamp"' in df.schema.json()
