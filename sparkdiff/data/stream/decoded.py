"""Rows beyond memory, kept on the disk as they lie in memory: decoding their Parquet files anew in each epoch takes far longer.

The pieces lie in one file without a name beside the cache.
"""

import itertools
import shutil
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from sparkdiff.data.stream.files import Files
from sparkdiff.data.stream.manifest import Batch, CachedFile
from sparkdiff.data.stream.scratch import PAGE, Buffers, Scratch
from sparkdiff.machine import memory
from sparkdiff.tensors.rows import SparseRows

SHARE = 0.5
"""Of the free disk, the share that the decoded rows of a cache may take."""
LARGE = 0.75
"""Of the memory there is, the share above which decoded rows pass over the system's cache of files: it would hold what is read
last, and what comes next in an epoch is what was read first."""
ALIGNED = 64
"""Bytes of which an array begins at a multiple, as torch's own."""
Array = tuple[int, int, np.dtype[Any], tuple[int, ...]]
"""Where in its piece an array begins, its bytes, its dtype and its shape."""


class PiecePlace(NamedTuple):
    """Where in the file a piece lies, and its columns in it."""

    start: int
    end: int
    columns: dict[str, list[Array]]


class Decoded:
    """The pieces of a cache that were decoded before.

    Args:
        enabled: whether any may be kept.
    """

    def __init__(self, files: Files, *, enabled: bool):
        self.files, self.enabled = files, enabled
        self._places: dict[str, PiecePlace] = {}
        self._seen: set[str] = set()
        self._file: Scratch | None = None
        self._buffers = Buffers()
        self._room, self._lock = 0.0, threading.Lock()

    @property
    def direct(self) -> bool:
        """Whether the system holds nothing of them in its cache of files."""
        return self._file is not None and self._file.direct

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

    def rest(self) -> None:
        """Give back the memory that pieces were read into."""
        self._buffers.clear()

    def close(self) -> None:
        self._places.clear()
        self.rest()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _loaded(self, pieces: Sequence[CachedFile]) -> Iterator[Batch]:
        for i, piece in enumerate(pieces):
            try:
                if self._file is None:
                    raise OSError("it was closed")
                found = [self._piece(self._file, self._places[piece.path])]
                for coming in pieces[i + 1 : i + 2]:
                    self._file.expect(*self._places[coming.path][:2])
            except (
                OSError,
                ValueError,
                KeyError,
            ):  # the disk is gone, or it was closed: the cache is there, or says why not
                self._places.clear()
                self.enabled = False
                with closing(self.files.read([*pieces[i:]])) as read:
                    yield from read
                return
            yield found.pop()  # held here no longer: the next one may take its memory

    def _piece(self, file: Scratch, place: PiecePlace) -> Batch:
        room = file.read(self._buffers, place.start, place.end)
        widths = {column.name: column.width for column in self.files.manifest.columns}
        out: Batch = {}
        for name, arrays in place.columns.items():
            parts = [torch.from_numpy(room[a : a + n].view(dtype).reshape(shape)) for a, n, dtype, shape in arrays]
            out[name] = parts[0] if len(parts) == 1 else SparseRows(parts[0], parts[1], parts[2], widths[name])
        return out

    def _keep(self, piece: CachedFile, batch: Batch) -> None:
        if not self.enabled:
            return
        with self._lock:
            try:
                file = self._file = self._file or self._begin()
                size = sum(part.nbytes + ALIGNED for x in batch.values() for part in parts_of(x))
                if file.end + PAGE + size > self._room:
                    self.enabled = False  # rows take more than was expected: the others are read from the files
                    return
                start = file.align(PAGE)
                columns = {
                    name: [_written(file, part.numpy(), start) for part in parts_of(x)] for name, x in batch.items()
                }
                self._places[piece.path] = PiecePlace(start, file.end, columns)
            except OSError:  # a full disk, or a folder that cannot be written: the files are read as before
                self.enabled = False
                self._places.clear()
                if self._file is not None:
                    self._file.clear()  # the disk is left to those that need it more, such as checkpoints

    def _begin(self) -> Scratch:
        manifest = self.files.manifest
        dense = sum(column.row_bytes for column in manifest.columns)
        self._room = SHARE * shutil.disk_usage(manifest.folder).free
        size = sum(max(piece.rows * dense, piece.bytes) for piece in manifest.pieces.values())
        if size > self._room:
            raise OSError("there is too little room")
        return Scratch(manifest.folder, direct=size > LARGE * memory.total())


def _written(file: Scratch, array: np.ndarray[Any, Any], piece: int) -> Array:
    """Write an array of the piece that begins there."""
    start = file.align(ALIGNED)
    file.write(array)
    return start - piece, file.end - start, array.dtype, array.shape


def parts_of(x: torch.Tensor | SparseRows) -> list[torch.Tensor]:
    return [x.indices, x.values, x.offsets] if isinstance(x, SparseRows) else [x]
