"""Rows of a split as batches of tensors, in pieces that fit into memory."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.stream.batches import Preparation, Stream
from sparkdiff.data.stream.manifest import Batch
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network, fixed_versions, routed_versions
from sparkdiff.tensors.device import Place
from sparkdiff.tensors.rows import Rows, SparseRows
from sparkdiff.tensors.team import ALONE, Team

EVAL_ROWS, SPARSE_ROWS = 8192, 1024
"""Number of rows that are measured at a time; the second, smaller one for sparse rows, which need a dozen temporary
tensors.
"""
GPU_ROWS = 16
"""Factor by which this number is larger on a GPU, which would be idle between small pieces; smaller for wide rows."""
GPU_BYTES, FEWEST = 256 << 20, 256
"""Largest size of the rows measured at a time on a GPU, and the smallest number of rows."""
DENSE_ENTRIES = 1 << 24
"""Largest number of entries of sparse rows that a stage makes dense at a time while rows are measured (128 MiB of
doubles).
"""


def rows_at_once(network: Network, stream: Stream) -> int:
    """Number of rows to measure at a time: EVAL_ROWS, or fewer for sparse rows and if a stage makes wide rows dense;
    more on a GPU.
    """
    most = SPARSE_ROWS if any(column.kind == "sparse" for column in stream.manifest.columns) else EVAL_ROWS
    fitting = max(16, min(most, DENSE_ENTRIES // max(1, network.made_dense())))
    if stream.place.on_cpu:
        return fitting
    narrow = GPU_BYTES // sum(column.row_bytes for column in stream.manifest.columns)
    return max(min(fitting, FEWEST), min(GPU_ROWS * fitting, narrow))


@dataclasses.dataclass(frozen=True)
class Data:
    """The cached rows of a pipeline: the stream, the name in it of each column version, and the team of processes that
    reads it.

    `tick` is called for every batch that is measured; a batch has at most about `rows` rows per process.
    """

    stream: Stream
    columns: Mapping[Version, str]
    team: Team = ALONE
    tick: Callable[[], None] = lambda: None
    prepare: Preparation | None = None
    rows: int = EVAL_ROWS

    def values(self, batch: Batch) -> dict[Version, Rows]:
        return {v: batch[name] for v, name in self.columns.items()}

    def with_fixed_columns(self, network: Network) -> "Data":
        """The same data with further column versions: those that no trainable parameter changes, which are computed
        when rows are gathered (`Preparation`).
        """
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
        return dataclasses.replace(self, columns={**self.columns, **made}, prepare=Preparation(rows, size))

    def batches(self, split: str) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
        """Yield the rows of this process in large batches in stored order, for measuring: (batch, label, weight,
        block).
        """
        team = self.team
        for batch in self.stream.batches(
            split,
            batchSize=self.stream.together(self.rows, team.world),
            rank=team.rank,
            world=team.world,
            prepare=self.prepare,
        ):
            self.tick()
            yield batch, scalar(batch, "label"), scalar(batch, "weight"), scalar(batch, "block") % MAX_BLOCKS


def scalar(batch: Batch, name: str) -> Tensor:
    """A scalar column of a batch, (n,)."""
    column = batch[name]
    assert isinstance(column, Tensor)
    return column
