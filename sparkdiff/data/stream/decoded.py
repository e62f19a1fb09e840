"""Rows beyond memory, kept on the disk as they lie in memory: decoding their Parquet files anew in each epoch takes far longer.

The pieces lie in one file beside the cache, which has no name: it is gone as soon as it is closed, also if a process is killed.
"""

import contextlib
import itertools
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from sparkdiff.data.stream.files import Files
from sparkdiff.data.stream.manifest import Batch, CachedFile
from sparkdiff.tensors.rows import SparseRows

SHARE = 0.5
"""Of the free disk, the share that the decoded rows of a cache may take."""
ALIGNED = 64
"""Bytes of which an array begins at a multiple, as torch's own."""
Array = tuple[int, int, np.dtype[Any], tuple[int, ...]]
"""Where in its piece an array begins, its bytes, its dtype and its shape."""


class Place(NamedTuple):
    """Where in the file a piece lies, and its columns in it."""

    start: int
    end: int
    columns: dict[str, list[Array]]


class Buffers:
    """Memory that is used again when the arrays in it are gone: to read into memory that is new to the process takes three times
    as long, and what is freed in pieces of many sizes is not given back to the system.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def of(self, size: int) -> np.ndarray[Any, Any]:
        """So many bytes, (size,) uint8."""
        fitting = [memory for memory in self._free if len(memory) >= size]
        if fitting:
            memory = min(fitting, key=len)
            self._free.remove(memory)
        else:  # those that are free are too small for what comes
            self._free.clear()
            memory = mmap.mmap(-1, size)
            if hasattr(mmap, "MADV_HUGEPAGE"):  # as numpy asks for: rows in any order are found faster
                memory.madvise(mmap.MADV_HUGEPAGE)
        out = np.frombuffer(memory, np.uint8, size)  # the base of all views of it
        weakref.finalize(out, self._free.append, memory).atexit = False
        return out

    def clear(self) -> None:
        """Give the memory back that is not used now."""
        self._free.clear()


class Decoded:
    """The pieces of a cache that were decoded before.

    Args:
        enabled: whether any may be kept.
    """

    def __init__(self, files: Files, *, enabled: bool = True):
        self.files, self.enabled = files, enabled
        self._places: dict[str, Place] = {}
        self._seen: set[str] = set()
        self._file: Any = None
        self._buffers = Buffers()
        self._end, self._room, self._lock = 0, 0.0, threading.Lock()

    def has(self, pieces: Sequence[CachedFile]) -> bool:
        return all(piece.path in self._places for piece in pieces)

    def read(self, pieces: Sequence[CachedFile], *, again: bool) -> Generator[Batch]:
        """The pieces one by one.

        Args:
            again: whether they are known to be read again; else those are kept that are read for the second time.
        """
        for there, group in itertools.groupby(pieces, key=lambda piece: piece.path in self._places):
            wanted = [*group]
            if there:
                yield from self._loaded(wanted)
                continue
            with closing(self.files.read(wanted)) as read:
                for piece, batch in zip(wanted, read, strict=True):
                    if again or piece.path in self._seen:
                        self._keep(piece, batch)
                    self._seen.add(piece.path)
                    yield batch

    def close(self) -> None:
        self._places.clear()
        self._buffers.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _loaded(self, pieces: Sequence[CachedFile]) -> Iterator[Batch]:
        for i, piece in enumerate(pieces):
            try:
                found = [self._piece(piece)]
                for coming in pieces[i + 1 : i + 2]:
                    self._expect(coming)
            except (
                OSError,
                KeyError,
                AttributeError,
            ):  # the disk is gone, or it was closed: the cache is still there, or says why not
                self._places.clear()
                self.enabled = False
                with closing(self.files.read([*pieces[i:]])) as read:
                    yield from read
                return
            yield found.pop()  # held here no longer: the next one may take its memory

    def _piece(self, piece: CachedFile) -> Batch:
        place = self._places[piece.path]
        size = place.end - place.start
        room = self._buffers.of(size)
        left, start = room.data, place.start
        while left:
            read = os.preadv(self._file.fileno(), [left], start)
            if not read:
                raise OSError("the file ends early")
            left, start = left[read:], start + read
        widths = {column.name: column.width for column in self.files.manifest.columns}
        out: Batch = {}
        for name, arrays in place.columns.items():
            parts = [torch.from_numpy(room[a : a + n].view(dtype).reshape(shape)) for a, n, dtype, shape in arrays]
            out[name] = parts[0] if len(parts) == 1 else SparseRows(parts[0], parts[1], parts[2], widths[name])
        return out

    def _expect(self, piece: CachedFile) -> None:
        """Let the system read a piece while others are used."""
        if hasattr(os, "posix_fadvise"):
            place = self._places[piece.path]
            os.posix_fadvise(self._file.fileno(), place.start, place.end - place.start, os.POSIX_FADV_WILLNEED)

    def _keep(self, piece: CachedFile, batch: Batch) -> None:
        if not self.enabled:
            return
        with self._lock:
            try:
                if self._file is None:
                    self._begin()
                if self._end + sum(part.nbytes + ALIGNED for x in batch.values() for part in parts_of(x)) > self._room:
                    self.enabled = False  # rows take more than was expected: the others are read from the files
                    return
                start = self._end = -(-self._end // ALIGNED) * ALIGNED
                columns = {
                    name: [self._written(part.numpy(), start) for part in parts_of(x)] for name, x in batch.items()
                }
                self._places[piece.path] = Place(start, self._end, columns)
            except OSError:  # a full disk, or a folder that cannot be written: the files are read as before
                self.enabled = False
                self._give_back()

    def _give_back(self) -> None:
        """Leave the disk to those that need it more, such as checkpoints."""
        self._places.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), 0)

    def _begin(self) -> None:
        manifest = self.files.manifest
        dense = sum(column.row_bytes for column in manifest.columns)
        pieces = {p.path: p for shards in manifest.splits.values() for shard in shards for p in shard}.values()
        self._room = SHARE * shutil.disk_usage(manifest.folder).free
        if sum(max(piece.rows * dense, piece.bytes) for piece in pieces) > self._room:
            raise OSError("there is too little room")
        self._file = tempfile.TemporaryFile(dir=manifest.folder, buffering=0)  # noqa: SIM115 - closed by `close`

    def _written(self, array: np.ndarray[Any, Any], piece: int) -> Array:
        """Write an array of the piece that begins there."""
        self._end = -(-self._end // ALIGNED) * ALIGNED
        start, data = self._end, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        while data:
            written = os.pwrite(self._file.fileno(), data, self._end)
            self._end, data = self._end + written, data[written:]
        return start - piece, self._end - start, array.dtype, array.shape


def parts_of(x: torch.Tensor | SparseRows) -> list[torch.Tensor]:
    return [x.indices, x.values, x.offsets] if isinstance(x, SparseRows) else [x]
