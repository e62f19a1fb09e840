"""The cache: the columns that training reads, computed once by Spark and stored as Parquet files in virtual shards."""

import atexit
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparkdiff import jvm
from sparkdiff.data import splits
from sparkdiff.data.fingerprint import SHARDS, Request, fingerprint
from sparkdiff.data.frames import TransformedRows, check_request, failure_of, rows_after_stages
from sparkdiff.data.label_stats import label_stats, weight_range
from sparkdiff.data.layout import NO_ROWS, OWN, columns_of, holds_true, names_of, shards_in, write_files
from sparkdiff.data.stream import arrow, usage
from sparkdiff.data.stream.manifest import FORMAT, DamagedCacheError, Manifest
from sparkdiff.errors import FullDiskError, InputError, warn
from sparkdiff.jvm import stores
from sparkdiff.machine import atomic_files, processes, resources
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Cut
from sparkdiff.pipeline.graph import Version
from sparkdiff.store import folder_marker
from sparkdiff.store.files import folder_size, free, move_into_place, room
from sparkdiff.store.lease import hold_lease, lease_of

ROOM = (
    "free some space, or set cacheDir (and conf spark.local.dir, Spark's folder for sorting) to a disk with more space"
)


MANIFEST = "manifest.json"
OWNER = ".owner"
"""The file that names the process that writes a cache, until the cache is complete."""
ROWS = "rows-"
"""Prefix of the name of the folder into which Spark writes, for a cache in a store."""


class DamagedCache(UserWarning):
    """A cache on disk did not match its manifest and was written again."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """A complete cache on disk.

    Attributes:
        hit: whether it existed already, so that nothing was written.
        read: uids of the first stages in Spark that did not run, because the cache was written from the rows that an
            earlier run kept after them (`reuseStages`).
        kept: uids of the first stages in Spark after which this run has kept the rows for later runs.
    """

    folder: Path
    manifest: dict[str, Any]
    hit: bool
    read: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def columns(self, cut: Cut) -> dict[Version, str]:
        """Names of the cached columns, by column version of the cut; of their null flags, too."""
        return names_of(cut, self.manifest["columns"])

    def manifest_entries(self, cut: Cut) -> dict[Version, Mapping[str, Any]]:
        """The manifest's entry of each of these columns."""
        entries = {c["name"]: c for c in self.manifest["columns"]}
        return {version: entries[name] for version, name in self.columns(cut).items()}

    @property
    def splits(self) -> list[str]:
        """The splits that have rows."""
        return [s for s in splits.SPLITS if self.rows(s)]

    @property
    def is_there(self) -> bool:
        """True if its files are still on this machine."""
        return (self.folder / MANIFEST).exists()

    def rows(self, split: str) -> int:
        return sum(p["rows"] for shard in self.manifest["splits"][split] for p in shard)

    def size(self, split: str, *, of: Cut | None = None, dense: bool = False) -> int:
        """Upper limit for the number of bytes that the rows of a split take as tensors.

        Args:
            of: the cut whose columns count; None for all columns.
            dense: whether sparse columns are counted as dense tensors.
        """
        read = None if of is None else {*self.columns(of).values(), *OWN}
        columns = [c for c in self.manifest["columns"] if read is None or c["name"] in read]
        sparse = [c["name"] for c in columns if c["kind"] == "sparse" and not dense]
        widths = [c["width"] for c in columns if c["name"] not in sparse]
        # A sparse row has its offset, and an index and a value for each entry.
        paths = [self.folder / piece["path"] for shard in self.manifest["splits"][split] for piece in shard]
        entries = sum(arrow.entries(path, f"{name}_v") for name in sparse for path in paths)
        return 8 * (sum(widths) + len(sparse)) * self.rows(split) + 16 * entries

    def fits_in_memory(self, copies: float = 1) -> bool:
        """True if that many copies of all rows as tensors need less than half of the total memory (`resources.memory_bytes`)."""
        return copies * sum(map(self.size, splits.SPLITS)) < resources.memory_bytes() // 2


def root(options: Options) -> Path:
    """The folder of the caches: the option `cacheDir`, the session's conf `spark.sparkdiff.cacheDir`, or a temporary
    folder.

    Raises:
        InputError: neither is set and Spark's master is not local, so only one machine would see a temporary folder;
            or a remote Spark Connect server cannot see the folder.
    """
    folder = jvm.shared_folder(options.cacheDir) or _temporary()
    if stores.url_of(folder) is None and not jvm.sees(jvm.session(), folder):
        raise InputError(
            f"Spark cannot read {folder}: set cacheDir (or conf spark.sparkdiff.cacheDir) to a folder in which "
            "Spark and this process see the same files"
        )
    return folder


@functools.cache
def _temporary() -> Path:
    """The temporary folder of this process, deleted at exit."""
    folder = Path(tempfile.mkdtemp(prefix="sparkdiff-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


Watch = Callable[[Path], contextlib.AbstractContextManager[object]]
"""A function that returns a context manager, which watches the given folder while files are written into it."""


class CacheProgress:
    """Observer of Spark's progress in writing a cache, which looks at the files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.known: dict[str, int] = {}  # rows of the files that are complete, by name

    def message(self) -> str:
        """Rows and bytes so far; empty if files in the folder are being renamed."""
        with contextlib.suppress(OSError):
            size = folder_size(self.folder)
            for path in self.folder.rglob("part-*.parquet"):
                if path.name not in self.known:
                    with contextlib.suppress(pa.ArrowException, OSError):  # it has no footer yet
                        self.known[path.name] = pq.read_metadata(path).num_rows
            return f"{sum(self.known.values()):,} rows, {size / 1e6:,.1f} MB so far"
        return ""


def open_cache(request: Request, watch: Watch = contextlib.nullcontext) -> Cache:
    """Open the cache of a request: the cache on disk with its fingerprint if there is one and its files are complete,
    else a new one.

    Args:
        watch: makes a context manager for the folder of a new cache on this machine, entered while Spark writes it.

    Raises:
        InputError: a column is missing, a label, weight, time or group is null or NaN, or Spark failed on the rows.
        FullDiskError: the disk has no space for the cache; no partial cache is left behind.
    """
    check_request(request)
    if request.boundaries is None:
        request = dataclasses.replace(request, boundaries=splits.find_boundaries(request.sources, request.options))
    if request.lasting:
        request = dataclasses.replace(request, facts=request.facts_of_sources())
    where = root(request.options)
    columns: list[dict[str, Any]] = []
    with room("the cache", where, ROOM, lambda: _size_text(request, columns)):
        return _find_or_write(request, where, columns, watch)


def _find_or_write(request: Request, where: Path, columns: list[dict[str, Any]], watch: Watch) -> Cache:
    key = fingerprint(request, where)
    folder = where / key[:16]
    folder_marker.check_owner(
        folder, folder_marker.CACHE, f"the folder of the cache, {stores.path_or_url(folder)},", "cacheDir"
    )
    if stores.url_of(folder) is not None:
        return _find_or_write_in_store(request, folder, key, columns)
    if folder.exists():
        try:
            found = _whole(folder, key)
            usage.record_use(folder)
            return Cache(folder, found, hit=True)
        except DamagedCacheError as e:
            warn(f"the cache {folder} is damaged and is written again: {e}", DamagedCache)
        atomic_files.remove(folder)
    # Remains of processes of this machine that were killed while they wrote this cache.
    for owner in folder.parent.glob(f".{folder.name}-*/{OWNER}"):
        if processes.is_orphan(owner):
            atomic_files.remove(owner.parent)
    with atomic_files.temporary(folder) as temporary:
        temporary.mkdir(mode=0o700)  # before there is anything in it
        folder_marker.mark(temporary, folder_marker.CACHE)
        processes.write_owner(temporary / OWNER, os.getpid())
        began = time.monotonic()
        with watch(temporary):
            made = _build(request, key, temporary, temporary, columns)
        usage.begin(
            temporary,
            [type(v.stage).__name__ for v in request.cut.stages],
            time.monotonic() - began,
            request.options.runId,
        )
        (temporary / OWNER).unlink()
        move_into_place(temporary, folder)
    return Cache(folder, _whole(folder, key), False, made.read, made.kept)


def _find_or_write_in_store(request: Request, folder: Path, key: str, columns: list[dict[str, Any]]) -> Cache:
    """Open a cache in a store; `folder` is its working copy (see `jvm.stores`). Files in a store are never renamed; the
    manifest, which is written last, lists the files that belong to the cache.
    """
    limit = request.options.localCacheLimit
    with contextlib.suppress(DamagedCacheError):
        return Cache(folder, _whole(folder, key), hit=True)  # the copy of an earlier fit of this process
    if (found := _find_in_store(folder, key, limit)) is not None:
        return Cache(folder, found, hit=True)
    stores.make(folder)
    with hold_lease(lease_of(folder), f"the cache {stores.path_or_url(folder)}", wait=math.inf):
        if (found := _find_in_store(folder, key, limit)) is not None:  # another process has written it meanwhile
            return Cache(folder, found, hit=True)
        for name in stores.names(folder):
            if name.startswith(ROWS):  # of a process that was killed while it wrote
                stores.remove(folder / name)
        return _write_to_store(request, folder, key, columns)


def _find_in_store(folder: Path, key: str, limit: int | None) -> dict[str, Any] | None:
    """Copy a complete cache in a store to this machine. Returns its manifest; None if there is no such cache, or if it
    is damaged and therefore removed.
    """
    if not stores.exists(folder / MANIFEST):
        return None
    try:
        return _fetch_files(folder, key, limit)
    except DamagedCacheError as e:
        url = str(stores.url_of(folder))
        said = str(e).replace(str(folder), url)
        warn(f"the cache {url} is damaged and is written again: {said}", DamagedCache)
    stores.remove(folder)
    return None


def _write_to_store(request: Request, folder: Path, key: str, columns: list[dict[str, Any]]) -> Cache:
    stores.make(folder)
    folder_marker.mark(folder, folder_marker.CACHE)
    data = folder / f"{ROWS}{uuid.uuid4().hex[:8]}"
    try:
        with jvm.as_input_error("Spark failed while it wrote the cache"):
            made = _build(request, key, folder, data, columns)
            stores.send(folder / MANIFEST)
    except BaseException:
        stores.remove(data)
        (folder / MANIFEST).unlink(missing_ok=True)
        raise
    return Cache(folder, _whole(folder, key), False, made.read, made.kept)


def _fetch_files(folder: Path, key: str, limit: int | None) -> dict[str, Any]:
    """Copy the files of a cache in a store to this machine. Returns its manifest.

    Raises:
        DamagedCacheError: a file is missing or changed.
        FullDiskError, InputError: see `make_room`.
    """
    stores.fetch(folder / MANIFEST)
    manifest = Manifest.load(folder)
    make_room(folder, sum(piece.bytes for piece in manifest.pieces.values()), limit)
    for name in manifest.pieces:
        try:
            stores.fetch(folder / name)
        except OSError as e:
            if e.errno != errno.ENOENT:
                raise
            raise DamagedCacheError(folder, name, "there is no such file") from e
    return _whole(folder, key)


def make_room(folder: Path, needed: int, limit: int | None) -> None:
    """Make room for the working copy `folder` of a cache with `needed` bytes: if the limit (`localCacheLimit`) requires
    it, remove copies of other caches that nothing reads.

    Raises:
        InputError: the cache takes more than `localCacheLimit` allows, alone or with the copies that are being read.
        FullDiskError: the cache takes more than the free space.
    """
    if limit is not None and needed > limit:
        raise InputError(
            f"the cache in {stores.url_of(folder)} takes {needed:,} bytes on the local disk of the driver, and "
            f"localCacheLimit={limit:,}: raise it, or set cacheDir to a folder that all machines see"
        )
    if limit is not None:
        _evict(folder, needed, limit)
    if needed > (there := free(folder)):
        raise FullDiskError(
            f"the cache in {stores.url_of(folder)} takes {needed:,} bytes on the local disk of the driver, and {there:,} are "
            f"free in {folder}: set spark.local.dir to a disk with more space, or cacheDir to a folder that all machines see"
        )


def _evict(folder: Path, needed: int, limit: int) -> None:
    """Remove copies of other caches that nothing reads, the oldest first, until the rest and `needed` bytes for `folder`
    stay within the limit.

    Raises:
        InputError: copies that are being read leave too little room.
    """
    others = [
        p
        for p in folder.parent.iterdir()
        if p != folder and (p / MANIFEST).exists() and folder_marker.read_marker(p) == [folder_marker.CACHE]
    ]
    sizes = {other: folder_size(other) for other in others}
    for other in sorted(others, key=lambda p: p.stat().st_mtime):
        if needed + sum(sizes.values()) <= limit:
            return
        with contextlib.suppress(FileNotFoundError), usage.alone(other) as unused:
            if unused:
                shutil.rmtree(other, ignore_errors=True)
                del sizes[other]
    if needed + (kept := sum(sizes.values())) > limit:
        raise InputError(
            f"the cache in {stores.url_of(folder)} takes {needed:,} bytes on the local disk of the driver, beside {kept:,} of "
            f"caches that are being read, and localCacheLimit={limit:,}: raise it, or run fewer at a time (parallelism)"
        )


def _whole(folder: Path, key: str) -> dict[str, Any]:
    """Manifest of a cache whose files are all unchanged.

    Raises:
        DamagedCacheError: a file is missing or changed.
    """
    Manifest.load(folder).check()
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["fingerprint"] != key or manifest.get("digest") != _digest(manifest):
        raise DamagedCacheError(folder, MANIFEST, "its content differs from what was written")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    content = {k: v for k, v in manifest.items() if k != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _build(request: Request, key: str, folder: Path, data: Path, columns: list[dict[str, Any]]) -> TransformedRows:
    """Write a cache. Returns the rows that it was written from.

    Args:
        data: the folder into which Spark writes: the cache's folder, or a folder inside it.
        columns: an empty list that is filled with the description of the cache's columns as soon as it is known.
    """
    with rows_after_stages(request, folder.parent) as made, jvm.as_input_error(failure_of(request)):
        columns += columns_of(request, made.frames[0], made.values)
        write_files(request, made.frames, columns, data)
    if stores.url_of(data) is not None:
        make_room(folder, stores.size(data), request.options.localCacheLimit)
        stores.fetch(data)
    shards = {s: shards_in(folder, data, s, SHARDS) for s in splits.SPLITS}
    if not any(map(any, shards.values())) and splits.of_first_source(made.frames[0]).isEmpty():
        raise InputError(NO_ROWS)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": key,
        "virtualShards": SHARDS,
        "splits": shards,
        "columns": [c for c in columns if c.get("dtype") != "bool" or holds_true(folder, shards, c["name"])],
    }
    ranges = {s: weight_range(folder, shards[s], request) for s in splits.SPLITS}
    manifest["weights"] = {s: exponent for s, (exponent, _) in ranges.items() if exponent is not None}
    manifest["stats"] = {s: label_stats(folder, shards[s], request, ranges[s][1]) for s in splits.SPLITS}
    if request.allTrain:
        for content in (manifest["splits"], manifest["weights"], manifest["stats"]):
            if splits.TRAIN in content:
                content[splits.VALIDATION] = content[splits.TRAIN]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"digest": _digest(manifest)}), encoding="utf-8")
    return made


def _size_text(request: Request, columns: list[dict[str, Any]]) -> str:
    """The approximate size of the cache, as text; empty if the rows cannot be counted.

    Args:
        columns: empty if their widths are not known yet.
    """
    wide = sum(c["width"] for c in columns if c["kind"] != "sparse") or len(request.cut.columns)
    try:
        rows = sum(source.df.count() for source in request.sources)
    except jvm.SparkError:
        return ""
    beside = " and what the sparse columns take" if any(c["kind"] == "sparse" for c in columns) else ""
    return f"{'about' if columns else 'at least'} {8 * wide * rows:,} bytes for {rows:,} rows{beside}"
