"""Decoded rows on the disk, in the format of memory, for rows that exceed memory: reading them takes far less time than
decoding their Parquet files in each epoch.

The pieces lie in one unnamed file beside the cache.
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
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sparkdiff.data.stream.files import Files, ahead
from sparkdiff.data.stream.manifest import Batch, CachedFile
from sparkdiff.machine import resources
from sparkdiff.tensors.rows import SparseRows, tensors_of

SHARE = 0.5
"""Fraction of the free disk space that the decoded rows of a cache may take."""
LARGE = 0.75
"""If decoded rows take more than this fraction of the total memory, their reads bypass the page cache. It would hold
the rows that were read last, but the next epoch begins with others.
"""
ALIGNED = 64
"""Alignment of an array in bytes, the same as torch's."""
Array = tuple[int, int, np.dtype[Any], tuple[int, ...]]
"""Start of an array in its piece, its bytes, its dtype and its shape."""


class PiecePlace(NamedTuple):
    """The start and end of a piece in the file, and the arrays of each of its columns."""

    start: int
    end: int
    columns: dict[str, list[Array]]


PAGE = 4096
"""Alignment of offsets in the file and of memory for reads that bypass the page cache."""


class Buffers:
    """Memory that is reused once no array uses it any more. Reading into memory that is new to the process takes three
    times as long, and memory that is freed in pieces of many sizes is not returned to the system.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def of(self, size: int) -> np.ndarray[Any, Any]:
        """An array of `size` bytes, (size,) uint8, that starts at a memory page."""
        with self._lock:
            fitting = [memory for memory in self._free if len(memory) >= size]
            if fitting:
                memory = min(fitting, key=len)
                self._free.remove(memory)
            else:  # the free ones are too small for what comes
                self._free.clear()
                memory = mmap.mmap(-1, size)
                # It is shared memory: a forked process would write into it.
                with contextlib.suppress(OSError, AttributeError):
                    memory.madvise(mmap.MADV_DONTFORK)
        out = np.frombuffer(memory, np.uint8, size)  # the base of all views of it
        weakref.finalize(out, self._free.append, memory).atexit = False
        return out

    def clear(self) -> None:
        """Free the memory that is not in use."""
        with self._lock:
            self._free.clear()


class ScratchFile:
    """An unnamed file: it is gone as soon as it is closed, or the process is killed.

    Args:
        direct: whether reads bypass the page cache, which then keeps other files. Has no effect where that isn't
            possible.

    Attributes:
        end: the offset at which the next bytes are written.
    """

    def __init__(self, folder: Path, *, direct: bool):
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self._direct: int | None = None
        self._refused = False
        self.end = 0
        if direct and hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):
                self._direct = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_DIRECT)

    @property
    def direct(self) -> bool:
        return self._direct is not None and not self._refused

    def fileno(self) -> int:
        return self._file.fileno()

    def align(self, size: int) -> int:
        """Move the end to a multiple of `size`, where the next bytes begin.

        Returns:
            The new end.
        """
        self.end = -(-self.end // size) * size
        return self.end

    def write(self, array: np.ndarray[Any, Any]) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        while data:
            written = os.pwrite(self.fileno(), data, self.end)
            self.end, data = self.end + written, data[written:]

    def read(self, buffers: Buffers, start: int, end: int) -> np.ndarray[Any, Any]:
        """Read the bytes from the start, a multiple of PAGE, to the end into memory of the buffers.

        Raises:
            OSError: the file ends early, or cannot be read.
        """
        room = buffers.of(-(-(end - start) // PAGE) * PAGE)
        if self._direct is not None and not self._refused:
            try:
                self._read(self._direct, room, start, end)
            except OSError:  # a file system that doesn't support it, or the disk is gone
                self._refused = True
            else:
                return room
        self._read(self.fileno(), room, start, end)
        return room

    def expect(self, start: int, end: int) -> None:
        """Ask the system to read these bytes into its page cache in the background."""
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)

    def clear(self) -> None:
        """Free the disk space."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fileno(), 0)

    def close(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            os.close(direct)
        self._file.close()

    def _read(self, file: int, room: np.ndarray[Any, Any], start: int, end: int) -> None:
        left = room.data
        while start < end:
            read = os.preadv(file, [left], start)
            if not read:
                raise OSError("the file ends early")
            left, start = left[read:], start + read


class DecodedPieces:
    """The pieces of a cache, which are kept decoded in an unnamed file when they are read more than once.

    Args:
        enabled: whether pieces may be kept.
    """

    def __init__(self, files: Files, *, enabled: bool):
        self.files, self.enabled = files, enabled
        self._places: dict[str, PiecePlace] = {}
        self._seen: set[str] = set()
        self._file: ScratchFile | None = None
        self._buffers = Buffers()
        self._room, self._lock = 0.0, threading.Lock()

    @property
    def direct(self) -> bool:
        """True if reads of the decoded pieces bypass the page cache."""
        return self._file is not None and self._file.direct

    def readers(
        self, opened: ExitStack, shards: Sequence[Sequence[CachedFile]], *, again: bool
    ) -> list[Iterator[Batch]]:
        """An iterator over the pieces of each shard, in this order. The next piece of each shard is read ahead: by the
        system into its page cache if the rows are decoded and don't bypass that cache, else by a thread. Petastorm
        reads in the caller's thread, because it needs changes to Python's warning filters, which all threads share.

        Args:
            again: see `read`.
        """
        readers: list[Iterator[Batch]] = [
            opened.enter_context(closing(self.read(pieces, again=again))) for pieces in shards
        ]
        decoded = all(piece.path in self._places for pieces in shards for piece in pieces)
        if self.direct if decoded else self.files.backend == "arrow":
            return ahead(opened, list(zip(readers, map(len, shards), strict=True)))
        return readers

    def read(self, pieces: Sequence[CachedFile], *, again: bool) -> Generator[Batch]:
        """Yield the pieces one by one.

        Args:
            again: whether the pieces will certainly be read again and are kept now; else a piece is kept when it is
                read for the second time.
        """
        for there, group in itertools.groupby(pieces, key=lambda piece: piece.path in self._places):
            wanted = [*group]
            if there:
                yield from self._load(wanted)
                continue
            with closing(self.files.read(wanted)) as read:
                for piece, batch in zip(wanted, read, strict=True):
                    if again or piece.path in self._seen:
                        self._keep(piece, batch)
                    self._seen.add(piece.path)
                    yield batch

    def rest(self) -> None:
        """Free the memory that pieces were read into."""
        self._buffers.clear()

    def close(self) -> None:
        self._places.clear()
        self.rest()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _load(self, pieces: Sequence[CachedFile]) -> Iterator[Batch]:
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
            ):  # the disk is gone, or it was closed: read the cache, which raises its own error
                self._places.clear()
                self.enabled = False
                with closing(self.files.read([*pieces[i:]])) as read:
                    yield from read
                return
            yield found.pop()  # no longer held here, so the next one may take its memory

    def _piece(self, file: ScratchFile, place: PiecePlace) -> Batch:
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
                size = sum(part.nbytes + ALIGNED for x in batch.values() for part in tensors_of(x))
                if file.end + PAGE + size > self._room:
                    self.enabled = False  # rows take more space than expected: the others are read from the files
                    return
                start = file.align(PAGE)
                columns = {
                    name: [_write_array(file, part.numpy(), start) for part in tensors_of(x)]
                    for name, x in batch.items()
                }
                self._places[piece.path] = PiecePlace(start, file.end, columns)
            except OSError:  # a full disk, or a folder that cannot be written: the files are read as before
                self.enabled = False
                self._places.clear()
                if self._file is not None:
                    self._file.clear()  # leaves the disk to more important files, such as checkpoints

    def _begin(self) -> ScratchFile:
        manifest = self.files.manifest
        dense = sum(column.row_bytes for column in manifest.columns)
        self._room = SHARE * shutil.disk_usage(manifest.folder).free
        size = sum(max(piece.rows * dense, piece.bytes) for piece in manifest.pieces.values())
        if size > self._room:
            raise OSError("there is too little room")
        return ScratchFile(manifest.folder, direct=size > LARGE * resources.memory_bytes())


def _write_array(file: ScratchFile, array: np.ndarray[Any, Any], piece: int) -> Array:
    """Write an array of the piece that begins at the offset `piece`."""
    start = file.align(ALIGNED)
    file.write(array)
    return start - piece, file.end - start, array.dtype, array.shape
