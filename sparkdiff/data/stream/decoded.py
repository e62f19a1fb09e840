"""Rows beyond memory, kept on the disk as they lie in memory: decoding their Parquet files anew in each epoch takes far longer.

The pieces lie in one file beside the cache, which has no name: it is gone as soon as it is closed, also if a process is killed.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from sparkdiff.data.stream.files import Files
from sparkdiff.data.stream.manifest import Batch, CachedFile
from sparkdiff.tensors.rows import SparseRows

SHARE = 0.5
"""Of the free disk, the share that the decoded rows of a cache may take."""
Array = tuple[int, np.dtype[Any], tuple[int, ...]]
"""Where an array lies in the file, its dtype and its shape."""


class Decoded:
    """The pieces of a cache that were decoded before.

    Args:
        enabled: whether any may be kept.
    """

    def __init__(self, files: Files, *, enabled: bool = True):
        self.files, self.enabled = files, enabled
        self._places: dict[str, dict[str, list[Array]]] = {}
        self._seen: set[str] = set()
        self._file: Any = None
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
        if self._file is not None:
            self._file.close()
            self._file = None

    def _loaded(self, pieces: Sequence[CachedFile]) -> Iterator[Batch]:
        for i, piece in enumerate(pieces):
            try:
                batch = {name: self._column(name, arrays) for name, arrays in self._places[piece.path].items()}
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
            yield batch

    def _column(self, name: str, arrays: list[Array]) -> torch.Tensor | SparseRows:
        parts = [torch.from_numpy(self._array(*array)) for array in arrays]
        if len(parts) == 1:
            return parts[0]
        width = next(column.width for column in self.files.manifest.columns if column.name == name)
        return SparseRows(parts[0], parts[1], parts[2], width)

    def _array(self, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        out = np.empty(shape, dtype)
        left = out.reshape(-1).view(np.uint8).data
        while left:
            read = os.preadv(self._file.fileno(), [left], start)
            if not read:
                raise OSError("the file ends early")
            left, start = left[read:], start + read
        return out

    def _keep(self, piece: CachedFile, batch: Batch) -> None:
        if not self.enabled:
            return
        with self._lock:
            try:
                if self._file is None:
                    self._begin()
                if self._end + sum(part.nbytes for x in batch.values() for part in parts_of(x)) > self._room:
                    self.enabled = False  # rows take more than was expected: the others are read from the files
                    return
                self._places[piece.path] = {
                    name: [self._written(part.numpy()) for part in parts_of(x)] for name, x in batch.items()
                }
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

    def _written(self, array: np.ndarray[Any, Any]) -> Array:
        start, data = self._end, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        while data:
            written = os.pwrite(self._file.fileno(), data, self._end)
            self._end, data = self._end + written, data[written:]
        return start, array.dtype, array.shape


def parts_of(x: torch.Tensor | SparseRows) -> list[torch.Tensor]:
    return [x.indices, x.values, x.offsets] if isinstance(x, SparseRows) else [x]
