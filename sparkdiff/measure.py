"""What the cached rows say about a network: its loss on a split, and what its stages' inputs look like."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.folding import fixed_versions
from sparkdiff.graph import Version
from sparkdiff.guard import MAX_BLOCKS
from sparkdiff.losses import Objective, means
from sparkdiff.network import Network
from sparkdiff.parallel import ALONE, Team
from sparkdiff.sparse import SparseRows
from sparkdiff.stages.base import FeatureStats, Rows
from sparkdiff.stages.linear import Predictor
from sparkdiff.stages.projection import PCA
from sparkdiff.stream import Batch, Prepare, Stream

EVAL_ROWS = 8192
"""Rows that are measured at a time."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The stream, what its columns are, and which process of how many reads it.

    `tick` is called for every batch that is measured.
    """

    stream: Stream
    columns: Mapping[Version, str]
    team: Team = ALONE
    tick: Callable[[], None] = lambda: None
    prepare: Prepare | None = None

    def values(self, batch: Batch) -> dict[Version, Rows]:
        return {v: batch[name] for v, name in self.columns.items()}

    def prepared(self, network: Network) -> Data:
        """These data with the column versions that no trainable parameter changes, computed once for many batches."""
        made = {v: f"prepared {i}" for i, v in enumerate(fixed_versions(network))}

        @torch.no_grad()
        def rows(batch: Batch) -> Batch:
            values = self.values(batch)
            network.run(values, list(made))
            return {**batch, **{name: values[v] for v, name in made.items()}}

        nothing = rows(self.nothing())
        wide = [nothing[name] for name in made.values()]
        size = 8 * sum(x.width // 8 if isinstance(x, SparseRows) else math.prod(x.shape[1:]) for x in wide)
        return dataclasses.replace(self, columns={**self.columns, **made}, prepare=Prepare(rows, size))

    def nothing(self) -> Batch:
        """A batch of no rows."""
        return {column.name: column.empty(0) for column in self.stream.columns}

    def batches(self, split: str) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
        """This process's rows in large batches, as they lie, for measuring: (batch, label, weight, block)."""
        team = self.team
        for batch in self.stream.batches(
            split, batchSize=EVAL_ROWS * team.world, rank=team.rank, world=team.world, prepare=self.prepare
        ):
            self.tick()
            yield batch, scalar(batch, "label"), scalar(batch, "weight"), scalar(batch, "block") % MAX_BLOCKS


def scalar(batch: Batch, name: str) -> Tensor:
    """A scalar column of a batch, (n,)."""
    column = batch[name]
    assert isinstance(column, Tensor)
    return column


@dataclasses.dataclass(frozen=True)
class Score:
    """Weighted loss sums of one network on one split."""

    blocks: Tensor  # (B,) sum of w * loss per block
    weights: Tensor  # (B,) sum of w
    below: int  # rows whose predicted mean lies below the loss's floor

    @property
    def mean(self) -> float:
        return float(self.blocks.sum() / self.weights.sum())


class Tally:
    """A score in the making, batch by batch."""

    def __init__(self, objective: Objective, network: Network):
        self.objective, self.head = objective, network.head
        self.blocks = torch.zeros(MAX_BLOCKS, dtype=torch.float64)
        self.weights, self.below = torch.zeros_like(self.blocks), torch.zeros((), dtype=torch.int64)

    def add(self, margin: Tensor, label: Tensor, weight: Tensor, block: Tensor) -> Tensor:
        """Add the rows of a batch; returns which of them (n,) have a finite loss or weight 0."""
        loss = torch.where(weight > 0, self.objective.rows(margin, label, weight), 0.0)
        self.blocks.index_add_(0, block, loss * weight)
        self.weights.index_add_(0, block, weight)
        mean = means(self.head, margin)
        if self.objective.floor is not None and mean is not None:
            self.below += (mean < self.objective.floor).sum()
        # A link can turn an infinite margin into a finite loss, so the margin is looked at too.
        return loss.isfinite() & (margin.reshape(len(margin), -1).isfinite().all(1) | (weight <= 0))

    def score(self, team: Team) -> Score:
        """The score over all processes."""
        team.sum_(self.blocks, self.weights, self.below)
        return Score(self.blocks, self.weights, int(self.below))


@torch.no_grad()
def score(network: Network, data: Data, split: str, objective: Objective) -> Score:
    """The network's loss on a split, over all processes.

    Raises:
        InputError: a row of weight > 0 has no finite loss; names the column that holds NaN and the stage that it reaches.
    """
    tally = Tally(objective, network)
    for batch, label, weight, block in data.batches(split):
        finite = tally.add(network.margin(data.values(batch)), label, weight, block)
        if not bool(finite.all()):
            _explain(network, data, batch, ~finite)
    return tally.score(data.team)


def _explain(network: Network, data: Data, batch: Batch, bad: Tensor) -> None:
    """Raise the InputError of rows without a finite loss where an input is to blame."""
    wanting = next(
        network.graph.leaves[i].uid for i in network.positions if isinstance(network.module(i), (Predictor, PCA))
    )
    for version, name in data.columns.items():
        column = batch[name]
        column = column.take(bad.nonzero()[:1, 0]) if isinstance(column, SparseRows) else column[bad][:1]
        entries = column.values if isinstance(column, SparseRows) else column.flatten()
        wrong = entries[~entries.isfinite()]
        if len(wrong):
            j = int((~entries.isfinite()).nonzero()[0])
            entry = int(column.indices[j]) if isinstance(column, SparseRows) else j
            where = f"entry {entry} of column" if isinstance(column, SparseRows) or column.ndim == 2 else "column"
            raise InputError(
                f"{wanting}: {where} {network.graph.name(version)!r} holds {wrong[0].item()!r} (or null), "
                "which a linear stage turns into NaN; impute it before the pipeline, or drop such rows"
            )


@torch.no_grad()
def widths(network: Network, data: Data) -> dict[Version, int]:
    """Entries per row of all column versions that the margin depends on."""
    batch = data.nothing()
    values = data.values(data.prepare.rows(batch) if data.prepare else batch)
    network.margin(values)
    return {v: x.width if isinstance(x, SparseRows) else math.prod(x.shape[1:]) for v, x in values.items()}


class Feature:
    """Streaming statistics of one stage's input."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, x: Rows, counted: Tensor) -> None:
        """Add a batch (n, d), of which the rows `counted` (n,) count."""
        x = x.take(counted.nonzero()[:, 0]) if isinstance(x, SparseRows) else x[counted].view(int(counted.sum()), -1)
        if not len(x):
            return
        if not self.n:
            width = x.width if isinstance(x, SparseRows) else math.prod(x.shape[1:])
            self.usual = torch.zeros(width, dtype=torch.float64) if isinstance(x, SparseRows) else x.median(0).values
            self.sum, self.square = torch.zeros_like(self.usual), torch.zeros_like(self.usual)
            self.support = torch.zeros(width, dtype=torch.int64)
        self.n += len(x)
        if isinstance(x, SparseRows):
            v = x.values - self.usual[x.indices]
            self.sum.index_add_(0, x.indices, v)
            self.square.index_add_(0, x.indices, v * v)
            self.support.index_add_(0, x.indices, (x.values != self.usual[x.indices]).long())
        else:
            v = x - self.usual
            self.sum += v.sum(0)
            self.square += (v * v).sum(0)
            self.support += (x != self.usual).sum(0)

    def stats(self) -> FeatureStats:
        mean = self.sum / self.n
        return FeatureStats(self.usual + mean, (self.square / self.n - mean * mean).clamp_min(0).sqrt(), self.support)


@torch.no_grad()
def features(network: Network, data: Data, versions: Collection[Version]) -> dict[Version, FeatureStats]:
    """Statistics of column versions over the training rows of weight > 0, in one pass."""
    found = {v: Feature() for v in versions}
    for batch, _, weight, _ in data.batches("train"):
        values = data.values(batch)
        network.run(values, [v for v in found if v not in values])
        for v, feature in found.items():
            feature.add(values[v], weight > 0)
    return {v: f.stats() for v, f in found.items()}
