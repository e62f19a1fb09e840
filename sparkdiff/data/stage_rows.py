"""Rows after the first stages that Spark runs, kept in the folder of the caches, from which a later cache is written.

A cache serves one pipeline: it holds what torch reads. Where a pipeline is edited, its stages up to the edit make the same rows
again. With `reuseStages`, the second run that needs the same rows after the same stages keeps them, and later ones start from
them (HELIX, Xin et al. 2018, keeps the results of a workflow's steps in the same way).
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
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
from sparkdiff.jvm import stores
from sparkdiff.jvm.plans import plan_facts
from sparkdiff.pipeline.schema import is_plain
from sparkdiff.store.digests import digest_of
from sparkdiff.store.files import full, moved

PREFIX = "stages-"
FORMAT = 1

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

    Raises:
        FullDiskError: the disk has no space for the rows that are to be kept.
    """
    stages = request.cut.in_spark()
    keys = keys_of(request, where)
    uids = [stage.uid for stage in stages]
    with contextlib.ExitStack() as held:
        read, found = next(((k, f) for k in range(len(keys), 0, -1) if (f := _Kept.at(where, keys[k - 1]))), (0, None))
        if found is None:
            frames, values = divided()
        else:
            held.callback(usage.Lock(found.folder).close)
            usage.used(found.folder)
            frames, values = found.frames(request), found.values
        through = next((k for k in range(len(keys), read, -1) if _seen(where, keys[k - 1])), read)
        frames = _through(frames, stages[read:through])
        new = _keep(request, where, keys[through - 1], frames, values, stages[:through]) if through > read else None
        if new is not None:
            held.callback(usage.Lock(new.folder).close)
            frames = new.frames(request)
        frames = _through(frames, stages[through:])
        yield Made(frames, values, tuple(uids[:read]), tuple(uids[: through if new else 0]))
        for key in keys:
            stores.write(where / usage.SEEN / key, b"")


def _through(frames: Frames, stages: Sequence[Any]) -> Frames:
    for stage in stages:
        frames = [stage.transform(df) for df in frames]
    return frames


def keys_of(request: Request, where: Path) -> list[str]:
    """A hash of everything that decides the rows after the first stage, after the first two, and so on, as long as it is known:
    up to the first stage whose code is not Spark's own, or whose statement doesn't tell its rows.
    """
    known = hashlib.sha256(json.dumps([FORMAT, divided_facts(request)], sort_keys=True, default=str).encode())
    keys, frames = [], [source.df for source in request.sources]
    for vertex in request.cut.first_in_spark():
        digest = digest_of([vertex.stage], where) if is_plain(vertex.stage) else None
        frames = [vertex.stage.transform(df) for df in frames]
        facts = [plan_facts(df, after_stages=True) for df in frames] if vertex.opaque else []
        if digest is None or None in facts:
            break
        # Digests know no uids, but the rows have columns that are named by them.
        told = [digest, vertex.inputs, vertex.outputs, anonymous(facts, [vertex.uid])]
        known.update(json.dumps(told).encode())
        keys.append(known.hexdigest()[:16])
    return keys


def _seen(where: Path, key: str) -> bool:
    return stores.exists(where / usage.SEEN / key)


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
        with contextlib.suppress(OSError, ValueError, KeyError):
            if stores.url_of(folder) is not None:
                stores.fetch(folder / usage.MANIFEST)
            told = json.loads((folder / usage.MANIFEST).read_text(encoding="utf-8"))
            rows = folder / told["rows"]
            if stores.exists(rows) and stores.size(rows) == told["bytes"]:
                return _Kept(folder, rows, {name: tuple(values) for name, values in told["slices"].items()})
        return None

    def frames(self, request: Request) -> Frames:
        spark = request.sources[0].df.sparkSession
        return [spark.read.parquet(stores.address(self.rows / str(i))) for i in range(len(request.sources))]


def _keep(
    request: Request, where: Path, key: str, frames: Frames, values: Slices, stages: Sequence[Any]
) -> _Kept | None:
    """Write the rows. None, with a warning, if Spark cannot: Parquet holds no intervals, for example, and a stage may fail,
    which the cache's own error then tells.
    """
    folder = where / f"{PREFIX}{key}"
    local = stores.url_of(folder) is None
    target = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}") if local else folder
    rows = target / f"rows-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    try:
        stores.make(target)
        for i, df in enumerate(frames):
            df.write.parquet(stores.address(rows / str(i)))
        told = {"rows": rows.name, "bytes": stores.size(rows), "slices": values}
        stores.write(target / usage.MANIFEST, json.dumps(told).encode())
        if local:
            usage.begin(target, [type(s).__name__ for s in stages], time.monotonic() - began)
            _move(where, key, target, folder)
    except BaseException as e:
        stores.remove(rows)
        if not isinstance(e, jvm.SparkError) or full(e):
            raise
        warnings.warn(f"the rows after {stages[-1].uid} are not kept: {jvm.cause(e)}", UserWarning, stacklevel=2)
        return None
    finally:
        if local:
            shutil.rmtree(target, ignore_errors=True)
    return _Kept.at(where, key)


def _move(where: Path, key: str, target: Path, folder: Path) -> None:
    if (
        not moved(target, folder) and _Kept.at(where, key) is None
    ):  # damaged; whole ones are another run's of this moment
        shutil.rmtree(folder, ignore_errors=True)
        moved(target, folder)
