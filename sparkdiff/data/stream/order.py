"""The order of the rows in an epoch: permutations, each step's share of the shards, and copies of the rows of a
batch.

numpy does the copying: a single thread is as fast as torch's threads, which wait for each other if other processes use
the cores (a gather of 8 MB then took 13 times the CPU time).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import Batch, CachedFile, Manifest
from sparkdiff.errors import InputError
from sparkdiff.tensors.device import home
from sparkdiff.tensors.rows import SparseRows

NEGLIGIBLE = 2.0**-256
"""A weight that is smaller than this multiple of the largest weight is treated as 0."""

Rows = npt.NDArray[np.int64]  # (n,) row numbers, or counts of rows
Order = tuple[list[int], Iterator[Rows]]  # the pieces of a shard in order, and the row numbers of each piece in order
# Argument: bounds of some steps in each shard's order of rows, (shards, steps + 1). Result: a table, and the numbers of
# its rows that a rank serves in these steps, step by step; None if the table consists of these rows in this order.
Source = Callable[[Rows], tuple[Batch, Rows | None]]
LONG = 64
"""If the steps have at least this number of rows per shard on average, and no column is sparse, rows are copied directly
to their place. Otherwise the rows of several steps are first copied together.
"""


def shard_order(sizes: Sequence[int], key: Sequence[int] | None) -> Order:
    """Order of the rows of a shard with pieces of these sizes: a permutation of the pieces, and of the rows within
    each, drawn with the key as the seed; without a key the stored order.
    """
    if key is None:
        return list(range(len(sizes))), (np.arange(size) for size in sizes)
    generator = np.random.default_rng(key)
    pieces = generator.permutation(len(sizes)).tolist()
    return pieces, (generator.permutation(sizes[i]) for i in pieces)


def step_bounds(rows: Sequence[int], steps: int, first: int = 0, last: int | None = None) -> Rows:
    """Bounds of the steps in each shard's order of rows: the starts of the steps from `first` to before `last` (None:
    all), and the end of the last one.

    (shards, last - first + 1)
    """
    numbers = np.arange(first, (steps if last is None else last) + 1)
    return np.array(rows, dtype=np.int64)[:, None] * numbers // max(steps, 1)


@dataclass(frozen=True)
class ShardPart:
    """The part of a virtual shard that a rank serves: of the n rows of the shard in a step, those from n * first //
    world to before n * last // world.
    """

    shard: int
    first: int
    last: int
    world: int


def parts_of(shards: int, rank: int, world: int) -> list[ShardPart]:
    """The parts of shards that a rank serves: complete shards if there are at least as many as ranks, else a part of
    one or two shards.

    The rows of a step on all ranks, one rank after the other, are those that a single process would see, in the same
    order.
    """
    begin, end = (shards * r // world * world if world <= shards else shards * r for r in (rank, rank + 1))
    touched = range(begin // world, -(-end // world))
    return [ShardPart(i, max(begin - i * world, 0), min(end - i * world, world), world) for i in touched]


@dataclass(frozen=True)
class Share:
    """The part of a virtual shard's rows in one step that belongs to one rank: of `rows` rows, those from `first` to
    before `last`.
    """

    shard: int
    rows: int
    first: int
    last: int


@dataclass(frozen=True)
class RankShards:
    """The shards of a split that a rank serves.

    Attributes:
        pieces: the files of each shard.
        parts: the part of each shard's rows that the rank serves.
    """

    pieces: list[list[CachedFile]]
    parts: list[ShardPart]

    @staticmethod
    def of(manifest: Manifest, split: str, rank: int, world: int) -> "RankShards":
        """The shards of this rank.

        Raises:
            InputError: there is no such rank or split.
        """
        if not 0 <= rank < world:
            raise InputError(f"There is no rank {rank} of {world}: ranks go from 0 to {world} - 1.")
        every, parts = manifest.shards(split), parts_of(manifest.virtualShards, rank, world)
        return RankShards([every[part.shard] for part in parts], parts)

    def with_whole_steps(self) -> "RankShards":
        """The same shards, with all of their rows in a step, also those that other ranks serve."""
        return replace(self, parts=[replace(part, first=0, last=part.world) for part in self.parts])

    @property
    def sizes(self) -> list[list[int]]:
        """Number of rows of each piece of each shard."""
        return [[piece.rows for piece in shard] for shard in self.pieces]

    def bounds(self, steps: int, first: int = 0, last: int | None = None) -> Rows:
        """See `step_bounds`."""
        return step_bounds([sum(shard) for shard in self.sizes], steps, first, last)

    def shares(self, steps: int, step: int) -> list[Share]:
        """The parts of the shards that the rank serves in one step of an epoch, in the order of the rows in its batch."""
        counts = np.diff(self.bounds(steps, step, step + 1))
        numbers = np.concatenate([counts, *own_rows(counts, self.parts)], axis=1).tolist()
        return [Share(part.shard, *found) for part, found in zip(self.parts, numbers, strict=True)]

    def orders(self, seed: int, epoch: int | None) -> list[Order]:
        """Order of the rows of each shard in an epoch; without an epoch the stored order."""
        keys = [None if epoch is None else (seed % 2**64, epoch, part.shard) for part in self.parts]
        return [shard_order(shard, key) for shard, key in zip(self.sizes, keys, strict=True)]


def copies(shards: int, world: int) -> float:
    """Number of copies of the rows that `world` ranks together hold in memory; a rank that serves a part of a shard
    holds the whole shard.
    """
    return sum(len(parts_of(shards, rank, world)) for rank in range(world)) / shards


def by_step(counts: Rows, parts: Sequence[ShardPart]) -> Rows:
    """Row numbers that bring a rank's rows into the order of the steps. The rows lie shard by shard, within a shard
    step by step; `counts` (shards, steps) has their numbers. Returns (rows,).
    """
    first, last = own_rows(counts, parts)
    starts = ((counts.cumsum() - counts.ravel()).reshape(counts.shape) + first).T.ravel()
    lengths = (last - first).T.ravel()
    rows: Rows = np.arange(lengths.sum(), dtype=np.int64)
    rows += np.repeat(starts - lengths.cumsum() + lengths, lengths)
    return rows


def own_rows(counts: Rows, parts: Sequence[ShardPart]) -> tuple[Rows, Rows]:
    """Start and end of the rank's part of the rows that each shard has in each step: numbers of rows (shards, steps) ->
    two arrays of the same shape.
    """
    ends = [(part.first, part.last, part.world) for part in parts]
    first, last, world = np.array(ends, dtype=np.int64).reshape(-1, 3).T[:, :, None]
    return counts * first // world, counts * last // world


def from_memory(
    table: Batch, sizes: Sequence[Sequence[int]], orders: Sequence[Order], parts: Sequence[ShardPart]
) -> Source:
    """A source of rows from a table in memory, which holds the pieces (of these sizes) of all shards, one after the
    other.
    """
    numbers, end = [], 0
    for shard, (pieces, rows) in zip(sizes, orders, strict=True):
        starts = end + np.cumsum([0, *shard])
        numbers.append(np.concatenate([np.arange(0), *(starts[i] + r for i, r in zip(pieces, rows, strict=True))]))
        end = int(starts[-1])

    def source(ends: Rows) -> tuple[Batch, Rows]:
        rows = np.concatenate([n[a:b] for n, a, b in zip(numbers, ends[:, 0], ends[:, -1], strict=True)])
        return table, rows[by_step(np.diff(ends), parts)]

    return source


def from_files(
    empty: Batch, shards: Sequence[tuple[Iterator[Batch], Iterator[Rows]]], parts: Sequence[ShardPart]
) -> Source:
    """A source of rows from pieces that are read when they are needed; one piece per shard is held in memory."""
    held = [_ShardReader(pieces, rows) for pieces, rows in shards]
    dense = all(isinstance(x, Tensor) for x in empty.values())

    def source(ends: Rows) -> tuple[Batch, Rows | None]:
        counts = np.diff(ends)
        first, last = own_rows(counts, parts)
        own = last - first
        if dense and own.sum() >= LONG * own.size:
            at = (own.T.cumsum() - own.T.ravel()).reshape(own.T.shape).T
            return _join_runs(empty, held, ends[:, :-1] + first, own, at), None
        every = ends[:, -1:] - ends[:, :1]
        return _join_runs(empty, held, ends[:, :1], every, every.cumsum(0) - every), by_step(counts, parts)

    return source


def _join_runs(empty: Batch, held: Sequence["_ShardReader"], begins: Rows, numbers: Rows, at: Rows) -> Batch:
    """One table of several runs of rows from each shard. A run starts at `begins` in the shard's order, has `numbers`
    rows, and is put at the row `at` of the table; all three are (shards, runs).

    Sparse rows lie shard by shard, whatever `at` is.
    """
    sparse = {name: [x] for name, x in empty.items() if isinstance(x, SparseRows)}
    number = int(numbers.sum())
    room = {n: np.empty((number, *x.shape[1:]), x.numpy().dtype) for n, x in empty.items() if isinstance(x, Tensor)}
    for h, *runs in zip(held, begins.tolist(), numbers.tolist(), at.tolist(), strict=True):
        for begin, left, first in zip(*runs, strict=True):
            h.skip(begin - h.drawn)
            for rows in h.draw(left):
                last = first + len(rows)
                for name, x in h.piece.items():
                    if isinstance(x, SparseRows):
                        sparse[name].append(x.take(torch.from_numpy(rows)))
                    else:
                        x.numpy().take(rows, 0, out=room[name][first:last], mode="clip")  # "raise" would copy twice
                del x  # the next piece may take its memory
                first = last
    return {n: SparseRows.cat(sparse[n]) if n in sparse else torch.from_numpy(room[n]) for n in empty}


class _ShardReader:
    """A shard whose rows are drawn one after the other, with the piece in memory that the next rows come from."""

    def __init__(self, pieces: Iterator[Batch], rows: Iterator[Rows]):
        self.pieces, self.rows = pieces, rows
        self.piece: Batch = {}
        self.left: Rows = np.arange(0)  # rows of the piece that are still to be drawn, in their order
        self.drawn = 0  # rows of the shard drawn so far

    def draw(self, number: int) -> Iterator[Rows]:
        """Yield the next `number` rows of the shard, in parts: row numbers in the piece that `piece` holds at the time
        of the yield.
        """
        self.drawn += number
        while number:
            if not len(self.left):
                self.piece = {}  # frees the memory before the next one is read
                self.piece, self.left = next(self.pieces), next(self.rows)
            now, self.left = self.left[:number], self.left[number:]
            yield now
            number -= len(now)

    def skip(self, number: int) -> None:
        """Skip the next `number` rows."""
        for _ in self.draw(number):
            pass


def scaled_weights(weight: Tensor, exponent: int) -> Tensor:
    """Weights (n,) divided by 2 ** exponent, which is exact and makes the largest weight at most 1; results below
    NEGLIGIBLE become 0.
    """
    out = np.ldexp(weight.numpy(), -exponent)
    return torch.from_numpy(np.where(out < NEGLIGIBLE, 0.0, out))


def take(batch: Batch, rows: Rows) -> Batch:
    """Copies of these rows of every column."""
    return {
        name: x.take(torch.from_numpy(rows)) if isinstance(x, SparseRows) else torch.from_numpy(x.numpy().take(rows, 0))
        for name, x in batch.items()
    }


def split(batch: Batch, sizes: list[int]) -> Iterator[Batch]:
    """Consecutive batches of these sizes, as views."""
    columns = [_split_sparse(x, sizes) if isinstance(x, SparseRows) else torch.split(x, sizes) for x in batch.values()]
    for parts in zip(*columns, strict=True):
        yield dict(zip(batch, parts, strict=True))


def _split_sparse(x: SparseRows, sizes: list[int]) -> Iterator[SparseRows]:
    rows = np.cumsum([0, *sizes])
    entries = home(x.offsets[torch.from_numpy(rows).to(x.offsets.device)]).tolist()
    for a, b, i, j in zip(rows, rows[1:], entries, entries[1:], strict=False):
        yield SparseRows(x.indices[i:j], x.values[i:j], x.offsets[a : b + 1] - i, x.width)
