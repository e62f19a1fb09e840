"""Rows of a split as batches of tensors, in pieces that fit into memory; and the margins of one pipeline, kept by row, so that it
can be compared row by row with another pipeline that reads other columns.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import ROW
from sparkdiff.data.stream import Batch, Prepare, Stream
from sparkdiff.errors import InputError
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.network import Network, fixed_versions, routed_versions
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.device import Place
from sparkdiff.tensors.rows import Rows, SparseRows
from sparkdiff.tensors.team import ALONE, Team

EVAL_ROWS, SPARSE_ROWS = 8192, 1024
"""Number of rows that are measured at the same time; fewer for sparse rows, which need a dozen temporaries."""
GPU_ROWS = 16
"""So many times as many on a GPU, which is idle between pieces that are too small, unless they are wide."""
GPU_BYTES, FEWEST = 256 << 20, 256
"""Size from which no more rows are measured at the same time on a GPU, and the fewest rows."""
DENSE_ENTRIES = 1 << 24
"""Entries that a stage may make dense at a time while rows are measured (128 MiB of doubles)."""


def rows_at_once(network: Network, stream: Stream) -> int:
    """EVAL_ROWS, or fewer for sparse rows and if a stage makes wide rows dense; more on a GPU."""
    most = SPARSE_ROWS if any(column.kind == "sparse" for column in stream.columns) else EVAL_ROWS
    fitting = max(16, min(most, DENSE_ENTRIES // max(1, network.made_dense())))
    if stream.place.on_cpu:
        return fitting
    narrow = GPU_BYTES // sum(column.row_bytes for column in stream.columns)
    return max(min(fitting, FEWEST), min(GPU_ROWS * fitting, narrow))


@dataclasses.dataclass(frozen=True)
class Data:
    """The stream, its columns, and the process that reads it.

    `tick` is called for every batch that is measured, of `rows` rows.
    """

    stream: Stream
    columns: Mapping[Version, str]
    team: Team = ALONE
    tick: Callable[[], None] = lambda: None
    prepare: Prepare | None = None
    rows: int = EVAL_ROWS

    def values(self, batch: Batch) -> dict[Version, Rows]:
        return {v: batch[name] for v, name in self.columns.items()}

    def prepared(self, network: Network) -> "Data":
        """The same data with the column versions that no trainable parameter changes, computed once."""
        fixed, routed = fixed_versions(network), routed_versions(network)
        made = {v: f"prepared {i}" for i, v in enumerate([*fixed, *routed])}

        @torch.no_grad()
        def rows(batch: Batch) -> Batch:
            values = self.values(batch)
            network.run(values, fixed)
            network.route(values, routed)
            return {**batch, **{name: values[v] for v, name in made.items()}}

        at = Place(network.device, network.dtype)
        nothing = rows({name: at.rows(x) for name, x in self.stream.nothing().items()})
        wide = [nothing[name] for name in made.values()]
        size = sum(x.width if isinstance(x, SparseRows) else x.itemsize * math.prod(x.shape[1:]) for x in wide)
        return dataclasses.replace(self, columns={**self.columns, **made}, prepare=Prepare(rows, size))

    def batches(self, split: str) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
        """The rows of this process in large batches in stored order, for measuring: (batch, label, weight, block)."""
        team = self.team
        for batch in self.stream.batches(
            split, batchSize=self.stream.together(self.rows, team.world), rank=team.rank, world=team.world,
            prepare=self.prepare,
        ):  # fmt: skip
            self.tick()
            yield batch, scalar(batch, "label"), scalar(batch, "weight"), scalar(batch, "block") % MAX_BLOCKS


def scalar(batch: Batch, name: str) -> Tensor:
    """A scalar column of a batch, (n,)."""
    column = batch[name]
    assert isinstance(column, Tensor)
    return column


ROW_VERSION: Version = (ROW, -1)
"""The hash of the row among the columns of a cache that has it (`Request.keyed`)."""


class Predicts(Protocol):
    """What a judgement needs of a network: `margin(values)`, (n,) or (n, k), and the stage that turns it into columns."""

    @property
    def head(self) -> Predictor: ...

    @property
    def graph(self) -> Graph: ...

    def margin(self, values: dict[Version, Rows]) -> Tensor: ...


def keyed(data: Data) -> Data:
    """The same data, whose values include the hash of the row."""
    return Data(data.stream, {**data.columns, ROW_VERSION: "row"}, data.team, data.tick, data.prepare, data.rows)


class Recorded:
    """The margins of a network on the rows of some splits, found by the hash of the row.

    Attributes:
        network: whose margins they are.
        keys: (n,) hashes of the rows, sorted.
        margins: (n,) or (n, k). Rows with the same hash are the same row, and have the same margin.
        labels: (n,) as the pipeline sees them: a stage may index them.
    """

    def __init__(self, network: Network, keys: Tensor, margins: Tensor, labels: Tensor):
        self.network, order = network, keys.argsort(stable=True)
        self.keys, self.margins, self.labels = keys[order], margins[order], labels[order]

    @property
    def head(self) -> Predictor:
        return self.network.head

    @property
    def graph(self) -> Graph:
        return self.network.graph

    def margin(self, values: Mapping[Version, Rows]) -> Tensor:
        """
        Raises:
            InputError: a row was not recorded.
        """
        wanted = values[ROW_VERSION]
        assert isinstance(wanted, Tensor)
        return self.margins[self._places(wanted)]

    def among(self, keys: Tensor) -> "Recorded":
        """The same of these rows alone, (n,) hashes.

        Raises:
            InputError: a row was not recorded.
        """
        at = self._places(keys)
        return Recorded(self.network, keys, self.margins[at], self.labels[at])

    def _places(self, wanted: Tensor) -> Tensor:
        at = torch.searchsorted(self.keys, wanted).clamp_max(max(len(self.keys) - 1, 0))
        lost = len(wanted) if not len(self.keys) else int((self.keys[at] != wanted).sum())
        if lost:
            raise InputError(
                f"{self.graph.head.uid}: {lost:,} rows are missing that the pipeline beside it predicts: a stage drops them, or "
                "the rows were others when they were read again; write the rows to a table, and pass the table"
            )
        return at


@torch.no_grad()
def recorded(network: Network, data: Data, splits: tuple[str, ...]) -> Recorded:
    """The margins of a network on all rows of these splits; 8 bytes per row and margin, 16 for the hash and the label."""
    rows = [
        (scalar(batch, "row").long(), network.margin(data.values(batch)), label.clone())
        for split in splits
        for batch, label, *_ in data.batches(split)
    ]
    return Recorded(network, *map(torch.cat, zip(*rows, strict=True)))


def changed(one: Tensor, other: Tensor, what: str, beside: str) -> str:
    """How many rows have another label or weight, in words, with the first of them; empty if none has. NaN is equal to NaN.

    Args:
        one, other: (n,) of a pipeline, and of the one that it is compared with.
        what: "label" or "weight".
        beside: what the other pipeline is.
    """
    differ = (one != other) & ~(one.isnan() & other.isnan())
    if not bool(differ.any()):
        return ""
    first = int(differ.nonzero()[0])
    return (
        f"{int(differ.sum()):,} of {len(one):,} rows have another {what} than in {beside}, as {one[first]:g} for "
        f"{other[first]:g}"
    )
