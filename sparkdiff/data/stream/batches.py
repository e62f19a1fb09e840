"""Batches of a cache for torch: the same batches with both readers (Arrow and Petastorm), from memory or from files, on
any number of ranks.

A split's rows lie in V virtual shards of pieces (files). The order of an epoch is f(seed, epoch, virtual shard): a
permutation of the shard's pieces and, inside each, of its rows. Step t of S takes the rows from n*t//S to n*(t+1)//S
of that order from a shard of n rows: every row is used once, and every rank takes the same number of steps.

W ranks share the rows of a step, in the order of the ranks. With up to V ranks, each rank serves complete shards, some
ranks perhaps one shard more than others. With more than V ranks, each serves in every step a part of the rows of one or two
shards, which may be empty.
"""

import copy
import itertools
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.data.stream import device_batches, usage
from sparkdiff.data.stream.decoded_rows import DecodedPieces
from sparkdiff.data.stream.files import Files, choose_backend
from sparkdiff.data.stream.manifest import Batch, Manifest
from sparkdiff.data.stream.order import (
    RankShards,
    Rows,
    ShardPart,
    Share,
    Source,
    from_files,
    from_memory,
    own_rows,
    scaled_weights,
    split,
    take,
)
from sparkdiff.errors import InputError
from sparkdiff.tensors.device import CPU, Place
from sparkdiff.tensors.rows import SparseRows

_CHUNK_BYTES = 8 << 20  # bytes of batches that are gathered at a time and then served as views


@dataclass(frozen=True)
class Preparation:
    """A function that computes further columns from gathered rows, and the bytes per row that these columns take."""

    rows: Callable[[Batch], Batch]
    row_bytes: int


class Stream:
    """The batches of a cache folder. A context manager: leaving it ends the iterators that are still under way.

    Attributes:
        place: the device of the batches, and the dtype of their floats; labels and weights are always doubles.
        resident: whether all rows of this rank are kept on that device; False on the CPU.

    Args:
        decoded: whether rows that are read from Parquet files more than once are kept decoded in an unnamed file beside
            these.
    """

    def __init__(
        self, folder: Path, *, backend: str = "auto", inMemory: bool = True, seed: int = 0, decoded: bool = True
    ):
        manifest = Manifest.load(folder)
        self._begin(
            manifest, choose_backend(backend, manifest), inMemory, seed, decoded=decoded, lock=usage.Lock(folder)
        )

    @classmethod
    def of_tables(cls, manifest: Manifest, tables: dict[str, Batch], *, seed: int = 0) -> "Stream":
        """A stream of rows that are in memory already, the shards of a split one after another; no file is read."""
        out = cls.__new__(cls)
        out._begin(manifest, "arrow", True, seed)
        out._tables = {split: (0, 1, table) for split, table in tables.items()}
        return out

    def _begin(
        self, manifest: Manifest, backend: str, inMemory: bool, seed: int, *, decoded: bool = True, lock: Any = None
    ) -> None:
        self.manifest, self.backend, self.files = manifest, backend, Files(manifest, backend)
        self.decoded = DecodedPieces(self.files, enabled=decoded)
        self.inMemory = inMemory
        self.seed = seed
        self.place, self.resident = CPU, False
        self._origin = self
        self._lock = lock  # held while the cache is read: `sparkdiff cache prune` then keeps the cache
        self._staging: device_batches.StagingBuffers | None = None  # gathers rows to copy to a device
        self._tables: dict[str, tuple[int, int, Batch]] = {}  # per split: rank, world, all rows of the rank
        self._running: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()

    def on(self, place: Place, *, resident: bool = True) -> "Stream":
        """A stream of the same batches at a place (device and dtype). The new stream shares the rows that were read
        from files with this one; close this stream, not the new one.

        Args:
            resident: whether all rows are kept on the device. Without it, or if the rows aren't held in memory at all,
                they are copied to the device chunk by chunk.
        """
        if place.plain:
            return self._origin
        out = copy.copy(self._origin)
        out.place, out.resident, out._tables = place, resident and self.inMemory and not place.on_cpu, {}
        out._staging = None if place.on_cpu else device_batches.StagingBuffers(place)
        return out

    def fits(self, splits: Sequence[str], spare: int, rank: int = 0, world: int = 1) -> bool:
        """True if a rank's rows of these splits fit into the memory of the device and leave `spare` bytes free for
        computations with them; always True on the CPU.
        """
        free = self.place.free()
        if free is None:
            return True
        needed = spare + device_batches.SPARE_BYTES + 2 * device_batches.CHUNK_BYTES
        tables = (self._rows_of_rank(name, rank, world) for name in splits)
        return needed + sum(device_batches.bytes_of(table, self.place) for table in tables) <= free

    def zero_weights(self, split: str, rank: int = 0, world: int = 1) -> int | None:
        """Number of the rows in a rank's shards whose weight is 0 or negligible; None if rows are not held in memory."""
        if not self.inMemory:
            return None
        weight = self._with_scaled_weights(split, self._rows_of_rank(split, rank, world))["weight"]
        return int((weight <= 0).sum()) if isinstance(weight, Tensor) else None

    def rows(self, split: str) -> int:
        return sum(piece.rows for shard in self.manifest.shards(split) for piece in shard)

    def steps(self, split: str, batchSize: int) -> int:
        """Number of steps of an epoch, the same on every rank."""
        if batchSize < 1:
            raise InputError(f"batchSize must be at least 1, got {batchSize}.")
        return -(-self.rows(split) // batchSize)

    def shares(self, split: str, batchSize: int, step: int, rank: int = 0, world: int = 1) -> list[Share]:
        """The parts of the shards that this rank serves in a step, in the order of the rows in its batch."""
        return RankShards.of(self.manifest, split, rank, world).shares(self.steps(split, batchSize), step)

    def together(self, rows: int, world: int) -> int:
        """Largest batch size for which each of `world` ranks gets at most about `rows` rows."""
        shards = self.manifest.virtualShards
        return rows * shards // -(-shards // world) if world <= shards else rows * world

    def batches(
        self,
        split: str,
        *,
        batchSize: int,
        epoch: int | None = None,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
        prepare: Preparation | None = None,
        whole: bool = False,
    ) -> Iterator[Batch]:
        """Iterate over this rank's part of every step from `first` on, as tensors by `BatchColumn.name`; without an
        epoch in the order of the files.

        A part may have no rows. The tensors are views of memory that belongs to a few consecutive batches. `prepare` is
        called on the rows of all these batches at once, because a call per batch would be expensive.

        Args:
            whole: whether to include those rows of its shards that other ranks serve; `shares` returns which rows are
                its own.
        """
        shards = RankShards.of(self.manifest, split, rank, world)
        if whole:
            shards = shards.with_whole_steps()
        steps = self.steps(split, batchSize)
        batches = self._batches(split, batchSize, steps, epoch, first, shards, (rank, world), prepare)
        self._running.add(batches)
        return batches

    def close(self) -> None:
        for batches in list(self._running):
            batches.close()
        self._tables.clear()
        self.decoded.rest()

    def leave(self) -> None:
        """Free the memory that rows take on the device, and the memory into which decoded pieces were read."""
        self.decoded.rest()
        if self is not self._origin:
            self._tables.clear()
            if self._staging is not None:
                self._staging.clear()
            self.place.trim()

    def nothing(self) -> Batch:
        """A batch of no rows."""
        return device_batches.here(self.manifest.empty_batch(), self.place)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.decoded.close()
        if self._lock is not None:
            self._lock.close()

    def _batches(
        self,
        name: str,
        batchSize: int,
        steps: int,
        epoch: int | None,
        start: int,
        shards: RankShards,
        team: tuple[int, int],
        prepare: Preparation | None,
    ) -> Generator[Batch]:
        manifest, orders, bounds = self.manifest, shards.orders(self.seed, epoch), shards.bounds(steps)
        row_bytes = sum(column.row_bytes for column in manifest.columns) + (prepare.row_bytes if prepare else 0)
        chunk_bytes = _CHUNK_BYTES if self.place.on_cpu else device_batches.CHUNK_BYTES
        chunk = max(1, chunk_bytes * min(team[1], manifest.virtualShards) // (batchSize * row_bytes))
        with ExitStack() as opened:
            if self.inMemory:
                table = self._resident_rows(name, *team) if self.resident else self._rows_of_rank(name, *team)
                source = from_memory(table, shards.sizes, orders, shards.parts)
            else:
                pieces = [[own[i] for i in order] for own, (order, _) in zip(shards.pieces, orders, strict=True)]
                readers = self.decoded.readers(opened, pieces, again=epoch is not None)
                drawn = [(reader, numbers) for reader, (_, numbers) in zip(readers, orders, strict=True)]
                source = from_files(manifest.empty_batch(), drawn, shards.parts)
            # Start at the beginning of a chunk, because the last bit of a result of `prepare` may depend on other rows.
            firsts = range(start // chunk * chunk, steps, chunk)
            chunks = self._chunks(
                name, source, ((first, bounds[:, first : first + chunk + 1]) for first in firsts), shards.parts
            )
            if self._staging is not None and not self.resident:
                chunks = device_batches.copy_ahead(chunks, self._staging)
            for gathered, (first, rows) in chunks:
                batches = split(prepare.rows(gathered) if prepare else gathered, rows)
                del gathered  # the next chunk takes its place
                yield from itertools.islice(batches, max(start - first, 0), None)
                del batches

    def _chunks(
        self, name: str, source: Source, pieces: Iterator[tuple[int, Rows]], parts: list[ShardPart]
    ) -> Iterator[tuple[Batch, tuple[int, list[int]]]]:
        """Yield one chunk (the rows of some consecutive steps) at a time, with the index of its first step and the row count
        of each step.

        Args:
            pieces: for each chunk, the index of its first step, and for each shard the bounds of the steps.
        """
        dtypes = {c.name: c.dtype if c.dtype != torch.float64 else self.place.dtype for c in self.manifest.columns}
        for first, ends in pieces:
            counts = ends[:, 1:] - ends[:, :-1]
            own, end = own_rows(counts, parts)
            table, rows = source(ends)
            if rows is None and self._staging is None:
                gathered = table
            else:
                numbers = np.arange((end - own).sum()) if rows is None else rows
                if self.resident:
                    gathered = device_batches.take(table, numbers, self.place)
                else:
                    gathered = (self._staging.gather if self._staging is not None else take)(table, numbers)
            del table
            gathered = {
                n: x.with_values(x.values.to(dtypes[n])) if isinstance(x, SparseRows) else x
                for n, x in gathered.items()
            }
            if not self.resident:
                gathered = self._with_scaled_weights(name, gathered)
            if self.place.on_cpu and not self.place.plain:
                gathered = device_batches.here(gathered, self.place)
            yield gathered, (first, (end - own).sum(0).tolist())

    def _with_scaled_weights(self, name: str, batch: Batch) -> Batch:
        """The batch with its weights divided by the power of two in the manifest, if it has one for this split; weights
        that are then negligible become 0.
        """
        if name in self.manifest.weights and isinstance(weight := batch["weight"], Tensor):
            return {**batch, "weight": scaled_weights(weight, self.manifest.weights[name])}
        return batch

    def _rows_of_rank(self, name: str, rank: int, world: int) -> Batch:
        """All rows of the shards that a rank serves, in the memory of the CPU."""

        def load() -> Batch:
            shards = RankShards.of(self.manifest, name, rank, world)
            return self.files.load([piece for shard in shards.pieces for piece in shard])

        return self._origin._once(name, (rank, world), load)

    def _resident_rows(self, name: str, rank: int, world: int) -> Batch:
        """All rows of the shards that a rank serves, in the memory of the device."""

        def copy_rows() -> Batch:
            return device_batches.here(
                self._with_scaled_weights(name, self._rows_of_rank(name, rank, world)), self.place
            )

        return self._once(name, (rank, world), copy_rows)

    def _once(self, name: str, team: tuple[int, int], make: Callable[[], Batch]) -> Batch:
        """All rows of the rank's shards of a split, made by `make` when they are first needed and kept."""
        if name not in self._tables or self._tables[name][:2] != team:
            self._tables.pop(name, None)
            self._tables[name] = *team, make()
        return self._tables[name][2]
