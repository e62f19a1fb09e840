"""The files of a cache: read piece by piece, each checked against the manifest, or all at once as one table."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from pyarrow import ArrowException
from torch import Tensor

from sparkdiff.data.stream import arrow, petastorm
from sparkdiff.data.stream.manifest import Batch, CachedFile, DamagedCacheError, Manifest
from sparkdiff.tensors.rows import SparseRows

BACKENDS = {"petastorm": petastorm.read, "arrow": arrow.read}
_READ_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StopIteration),
    ArrowException,
)


@dataclass(frozen=True)
class Files:
    """The files that a manifest names, and the back end ("arrow" or "petastorm") that reads them."""

    manifest: Manifest
    backend: str

    def load(self, pieces: list[CachedFile]) -> Batch:
        """All rows of these pieces. The doubles of sparse rows become float32 if that changes no value, as with counts
        of words.
        """
        table = {column.name: column.empty(sum(piece.rows for piece in pieces)) for column in self.manifest.columns}
        paths = [self.manifest.file(piece) for piece in pieces]
        for column in self.manifest.columns:  # memory that is allocated but never written to takes no space
            if isinstance(room := table[column.name], SparseRows):
                entries = sum(arrow.entries(path, column.fields[0]) for path in paths)
                kind = torch.float32 if column.dtype == torch.float64 else column.dtype
                indices, values = torch.empty(entries, dtype=torch.int32), torch.empty(entries, dtype=kind)
                table[column.name] = SparseRows(indices, values, room.offsets, room.width)
        first, filled = 0, dict.fromkeys(table, 0)
        for piece, batch in zip(pieces, self.read(pieces), strict=True):
            for name, x in batch.items():
                room, last = table[name], first + piece.rows
                if isinstance(x, SparseRows) and isinstance(room, SparseRows):
                    values, start = x.values.to(room.values.dtype), filled[name]
                    if not torch.equal(values.to(x.values.dtype), x.values):
                        room = table[name] = room.with_values(room.values.to(x.values.dtype))
                        values = x.values
                    end = start + len(values)
                    room.indices.numpy()[start:end], room.values.numpy()[start:end] = x.indices.numpy(), values.numpy()
                    room.offsets[first + 1 : last + 1] = x.offsets[1:] + start
                    filled[name] = end
                elif isinstance(x, Tensor) and isinstance(room, Tensor):
                    room.numpy()[first:last] = x.numpy()
            first = last
        return {
            name: SparseRows(x.indices[: filled[name]], x.values[: filled[name]], x.offsets, x.width)
            if isinstance(x, SparseRows)
            else x
            for name, x in table.items()
        }

    def read(self, pieces: list[CachedFile]) -> Generator[Batch]:
        """Yield the pieces one by one, each checked against the manifest."""
        paths = [self.manifest.file(piece) for piece in pieces]
        with closing(BACKENDS[self.backend](paths, self.manifest.columns)) as files:
            for i in range(len(pieces)):
                yield self._next(files, pieces[i:])

    def _next(self, files: Iterator[Batch], pieces: list[CachedFile]) -> Batch:
        try:
            batch = next(files)
        except _READ_ERRORS as error:
            if len(pieces) > 1:  # a back end may read several files at once: this finds the one that fails
                for piece in pieces:
                    next(self.read([piece]))
            problem = f"cannot be read ({type(error).__name__}: {error})"
            raise DamagedCacheError(self.manifest.folder, pieces[0].path, problem) from error
        for column in self.manifest.columns:
            if problem := column.problem(batch[column.name], pieces[0].rows):
                raise DamagedCacheError(self.manifest.folder, pieces[0].path, problem)
        return batch
