"""Statistics of the inputs of trainable stages on the training rows: widths, spreads, counts, distinct values."""

from collections.abc import Collection

import torch
from torch import Tensor

from sparkdiff.evaluation.split_batches import Data
from sparkdiff.pipeline.graph import LEAVES, Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import FeatureStats, StageModule
from sparkdiff.tensors.rows import Rows, SparseRows, dense, matrix, rows_at, width

VALUES = 1 << 15
"""Approximate number of distinct values that are kept of a feature with more values."""


@torch.no_grad()
def widths(network: Network, data: Data) -> dict[Version, int]:
    """Entries per row of all column versions that the margin depends on."""
    batch = data.stream.nothing()
    values = data.values(data.prepare.rows(batch) if data.prepare else batch)
    network.margin(values)
    trees = network.trees()
    return {v: len(trees[v[1]].leaves) if v[0] == LEAVES else width(x) for v, x in values.items()}


@torch.no_grad()
def all_dense(network: Network, data: Data, versions: Collection[Version]) -> bool:
    """True if none of these column versions holds sparse rows."""
    values = data.values(data.stream.nothing())
    network.run(values, [v for v in versions if v not in values])
    return not any(isinstance(values[v], SparseRows) for v in versions)


class Feature:
    """Streaming statistics of one stage's input."""

    def __init__(self) -> None:
        self.n, self.sparse = 0, False

    def add(self, x: Rows, counted: Tensor) -> None:
        """Add a batch (n, d); only the rows in the mask `counted` (n,) count."""
        x = x.take(counted.nonzero()[:, 0]) if isinstance(x, SparseRows) else matrix(x[counted])
        if not len(x):
            return
        if not self.n:
            self.sparse = isinstance(x, SparseRows)
            self.sum, self.square = (torch.zeros(width(x), dtype=torch.float64) for _ in range(2))
            self.support = torch.zeros(width(x), dtype=torch.int64)
            if isinstance(x, SparseRows):  # one number for all columns
                self.usual = torch.zeros((), dtype=torch.float64)
            else:  # 0 for a column of NaN only
                self.usual = x.nanmedian(0).values.nan_to_num(0.0, torch.inf, -torch.inf)
            self.missing = torch.zeros_like(self.usual, dtype=torch.int64)
        self.n += len(x)
        if isinstance(x, SparseRows):
            self.sum.index_add_(0, x.indices, x.values)
            self.square.index_add_(0, x.indices, x.values * x.values)
            self.support.index_add_(0, x.indices, (x.values != 0).long())
        else:
            v = x - self.usual
            if bool((lacking := x.isnan()).any()):
                self.missing += lacking.sum(0)
                v = torch.where(lacking, 0.0, v)
            self.sum += v.sum(0)
            self.square += (v * v).sum(0)
            self.support += (v != 0).sum(0)

    def stats(self) -> FeatureStats:
        """Statistics of the entries that are not NaN."""
        n = (self.n - self.missing).clamp_min(1)
        mean = self.sum / n
        std = (self.square / n - mean * mean).clamp_min(0).sqrt()
        entry = (self.square / self.support.clamp_min(1)).sqrt() if self.sparse else None
        return FeatureStats(self.usual + mean, std, self.support, entry=entry)


def column_sums(x: Rows, weight: Tensor) -> Tensor:
    """Weighted sums of the columns, (n, p), (n,) -> (p,)."""
    if isinstance(x, SparseRows):
        return weight.new_zeros(x.width).index_add(0, x.indices, x.values * weight[x.rows()])
    return weight @ x


@torch.no_grad()
def leaf_counts(network: Network, data: Data) -> dict[int, Tensor]:
    """Number of training rows with weight > 0 in each leaf (L,), for the tree stages by position, in one pass."""
    trees = network.trees()
    found = {i: torch.zeros(len(m.leaves), dtype=torch.int64) for i, m in trees.items()}
    for batch, _, weight, _ in data.batches("train") if trees else ():
        values = data.values(batch)
        network.route(values, [(LEAVES, i) for i in trees])
        for i, count in found.items():
            count += torch.bincount(dense(values[LEAVES, i])[weight > 0].view(-1), minlength=len(count))
    return found


@torch.no_grad()
def tallies(network: Network, data: Data) -> dict[int, dict[str, Tensor]]:
    """Results of `training_sums`, summed over the training rows with weight > 0, for each trainable stage that has
    them, by position; in one pass.
    """
    asking = [
        i
        for i in network.positions
        if type(network.module(i)).training_sums is not StageModule.training_sums
        and any(p.requires_grad for p in network.module(i).parameters())
    ]
    found: dict[int, dict[str, Tensor]] = {i: {} for i in asking}
    for batch, _, weight, _ in data.batches("train") if asking else ():
        values, counted = data.values(batch), (weight > 0).nonzero()[:, 0]
        for i in asking:
            reads, module = network.graph.vertices[i].reads, network.module(i)
            network.run(values, [v for v in reads if v not in values])
            null_flags = network.null_flags(module, reads, values)
            nulls = {"nulls": [None if n is None else n[counted] for n in null_flags["nulls"]]} if null_flags else {}
            for name, part in module.training_sums(*(rows_at(values[v], counted) for v in reads), **nulls).items():
                found[i][name] = found[i][name] + part if name in found[i] else part
    return found


@torch.no_grad()
def distinct_values(network: Network, data: Data, i: int) -> dict[int, Tensor]:
    """Finite values of the training rows, ascending, of each feature that stage i compares with thresholds. Features with
    fewer than two values are left out.

    For a feature with many values, about VALUES of them, evenly spaced by rank.
    """
    [version] = network.graph.vertices[i].reads
    found: dict[int, Tensor] = {}
    used = network.trees()[i].feature.unique().tolist()
    for batch, _, weight, _ in data.batches("train"):
        values = data.values(batch)
        network.run(values, [version])
        x = matrix(dense(rows_at(values[version], (weight > 0).nonzero()[:, 0])))
        for feature in used:
            own = x[:, feature]
            seen = torch.cat([found.get(feature, own[:0]), own[own.isfinite()]]).unique()
            found[feature] = seen[:: len(seen) // VALUES + 1] if len(seen) > 2 * VALUES else seen
    return {f: v for f, v in found.items() if len(v) > 1}


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
