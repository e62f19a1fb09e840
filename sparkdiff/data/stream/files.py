"""The files of a cache: read piece by piece, each checked against the manifest, or all at once as one table; and
iterators whose next item a thread reads ahead.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TypeVar

import torch
from pyarrow import ArrowException
from torch import Tensor

from sparkdiff.data.stream import arrow, petastorm
from sparkdiff.data.stream.manifest import Batch, CachedFile, DamagedCacheError, Manifest
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.tensors.rows import SparseRows

BACKENDS = {"petastorm": petastorm.read, "arrow": arrow.read}
_READ_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StopIteration),
    ArrowException,
)
T = TypeVar("T")


def choose_backend(backend: str, manifest: Manifest) -> str:
    """The back end that an option names; for "auto", Petastorm if it can read the cache here.

    Raises:
        InputError: there is no such back end, or it cannot read the cache.
    """
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"There is no stream {backend!r}. {did_you_mean(backend, ('auto', *BACKENDS))}")
    if backend == "arrow":
        return backend
    refusal = petastorm.refusal(manifest.folder, manifest.columns)
    if backend == "petastorm" and refusal:
        raise InputError(
            f"stream='petastorm' cannot be used: {refusal}; or use stream='arrow', which reads the same rows."
        )
    return "arrow" if refusal else "petastorm"


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


def ahead(opened: ExitStack, iterators: Sequence[tuple[Iterator[T], int]]) -> list[Iterator[T]]:
    """The same iterators, each limited to its number of items; one thread reads ahead for all of them. Closing `opened`
    waits only for the item that the thread is reading at that time.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sparkdiff-reads-ahead")
    opened.callback(pool.shutdown, cancel_futures=True)
    return [
        _read_ahead(pool, items, number, pool.submit(next, items) if number else None) for items, number in iterators
    ]


def _read_ahead(pool: ThreadPoolExecutor, items: Iterator[T], number: int, coming: Future[T] | None) -> Iterator[T]:
    """Yield the first `number` items of an iterator. The generator holds the next item, `coming`, which a thread makes,
    and none that it has yielded.
    """
    while coming is not None:
        held = [coming.result()]  # raises what the thread has raised
        number -= 1
        coming = pool.submit(next, items) if number else None
        yield held.pop()
