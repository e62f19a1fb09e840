"""Statistics of the inputs of trainable stages on the training rows: widths, spreads, counts, distinct values; and the names and
kinds of the entries of feature vectors (slots), from Spark's `ml_attr` metadata.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from sparkdiff.evaluation.data import Data
from sparkdiff.pipeline.graph import LEAVES, Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import FeatureStats, StageModule
from sparkdiff.stages.fields import slots_of
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.tensors.rows import Rows, SparseRows, dense, matrix, taken, width

VALUES = 1 << 15
"""Number of distinct values of a feature that are kept."""


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
    """Whether none of these column versions holds sparse rows."""
    values = data.values(data.stream.nothing())
    network.run(values, [v for v in versions if v not in values])
    return not any(isinstance(values[v], SparseRows) for v in versions)


class Feature:
    """Streaming statistics of one stage's input."""

    def __init__(self) -> None:
        self.n, self.sparse = 0, False

    def add(self, x: Rows, counted: Tensor) -> None:
        """Add a batch (n, d), of which the rows `counted` (n,) count."""
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
    """The training sums of trainable stages over the training rows with weight > 0, by position, in one pass."""
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
            for name, part in module.training_sums(*(taken(values[v], counted) for v in reads), **nulls).items():
                found[i][name] = found[i][name] + part if name in found[i] else part
    return found


@torch.no_grad()
def distinct_values(network: Network, data: Data, i: int) -> dict[int, Tensor]:
    """The finite values of the training rows, ascending, of each feature that stage i compares with thresholds.

    For a feature with many values, about VALUES of them, evenly spaced by rank.
    """
    [version] = network.graph.vertices[i].reads
    found: dict[int, Tensor] = {}
    used = network.trees()[i].feature.unique().tolist()
    for batch, _, weight, _ in data.batches("train"):
        values = data.values(batch)
        network.run(values, [version])
        x = matrix(dense(taken(values[version], (weight > 0).nonzero()[:, 0])))
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


def entering(network: Network) -> list[Version]:
    """The column versions that stages with parameters read and that do not depend on any parameter.

    Identifiers are not features.
    """
    plain: set[int] = set()
    for i in network.positions:
        parents = {p for _, p in network.graph.vertices[i].reads if p in network.positions}
        module = network.module(i)
        if parents <= plain and not any(True for _ in module.parameters()) and not module.on_request():
            plain.add(i)
    features = (i for i in network.positions if i not in plain and not network.module(i).reads_identifiers)
    read = (v for i in features for v in network.graph.vertices[i].reads)
    return [v for v in dict.fromkeys(read) if v[1] in plain or v[1] not in network.positions]


class FeatureNames:
    """The names of the entries (slots) of column versions.

    Args:
        described: for each cached column version, its entry in the cache's manifest (`column`, `metadata`).
        values: some rows of every version, as `network.run` leaves them; only their widths count.
    """

    def __init__(
        self, network: Network, described: Mapping[Version, Mapping[str, Any]], values: Mapping[Version, Rows]
    ):
        self.network, self.graph = network, network.graph
        self.widths = {v: width(x) for v, x in values.items()}
        self.vectors = {v: isinstance(x, SparseRows) or x.ndim == 2 for v, x in values.items()}
        self.attributes: dict[Version, dict[int, tuple[str, str]]] = {}  # slot -> (kind, name)
        self.levels: dict[Version, list[str]] = {}  # of an index column
        for version, entry in described.items():
            attr = (entry.get("metadata") or {}).get("ml_attr") or {}
            self.levels[version] = [str(value) for value in attr.get("vals", ())]
            self.attributes[version] = {
                slot: (kind, a["name"]) for slot, (kind, a) in slots_of(attr).items() if "name" in a
            }

    def name(self, version: Version, slot: int) -> str:
        """The name for users: `temp`, `weather=snow` for a level, `features[7]` without a name in the metadata."""
        source, own = self._source(version, slot)
        column = self.graph.name(source)
        if isinstance(own, str):
            return own
        if source in self.encoded():
            return f"{column}={self.level(source, own)}"
        return f"{column}[{own}]" if self.vectors.get(source) else column

    def level(self, version: Version, index: int) -> str:
        """The category of a value of an index column."""
        levels = self.levels.get(version, [])
        return levels[index] if index < len(levels) else f"(index {index})"

    def named(self, version: Version) -> bool:
        """Whether the slots of a version have names; those of hashed text and of plain vectors have none."""
        return not self.vectors[version] or not self.name(version, 0).endswith("[0]")

    def binary(self, version: Version, *, encoded: bool = True) -> Tensor:
        """(w,) True for the slots of categories; those that an encoder of the network makes only with `encoded`."""
        out = torch.zeros(self.widths[version], dtype=torch.bool)
        if version in self.attributes:
            known = [j for j, (kind, _) in self.attributes[version].items() if kind == "binary" and j < len(out)]
            out[known] = True
            return out
        module, reads = self._writer(version)
        if isinstance(module, OneHotEncoder):
            out[:] = encoded
        elif isinstance(module, VectorAssembler):
            out = torch.cat([self.binary(v, encoded=encoded) for v in reads])
        return out

    def encoded(self) -> dict[Version, int]:
        """The index columns that an encoder of the network reads, with their number of categories."""
        found: dict[Version, int] = {}
        for i in self.network.positions:
            module = self.network.module(i)
            if isinstance(module, OneHotEncoder):
                found |= dict(zip(self.graph.vertices[i].reads, module.sizes, strict=True))
        return found

    def _writer(self, version: Version) -> tuple[Any, tuple[Version, ...]]:
        i = version[1]
        return (self.network.module(i), self.graph.vertices[i].reads) if i in self.network.positions else (None, ())

    def _source(self, version: Version, slot: int) -> tuple[Version, int | str]:
        """The column that a slot comes from, and its slot there or, where the metadata have one, its name."""
        if version in self.attributes:
            return version, self.attributes[version].get(slot, (None, slot))[1]
        module, reads = self._writer(version)
        if isinstance(module, OneHotEncoder):
            return reads[
                [self.graph.casefold(c) for c in self.graph.vertices[version[1]].outputs].index(version[0])
            ], slot
        if isinstance(module, VectorAssembler):
            for v in reads:
                if slot < self.widths[v]:
                    return self._source(v, slot)
                slot -= self.widths[v]
        return version, slot
