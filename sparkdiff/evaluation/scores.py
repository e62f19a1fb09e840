"""What the cached rows say about a network: its metric on a split, and what its stages' inputs look like."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from sparkdiff.data.stream import Batch, Prepare, Stream
from sparkdiff.errors import InputError
from sparkdiff.evaluation.guard import MAX_BLOCKS
from sparkdiff.objectives.losses import means, zero_margin
from sparkdiff.objectives.metrics import Metric, influence
from sparkdiff.pipeline.graph import LEAVES, Version
from sparkdiff.pipeline.network import Network
from sparkdiff.rows import SparseRows
from sparkdiff.stages.base import FeatureStats, Rows, StageModule, dense, matrix, taken, width
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.projection import PCA
from sparkdiff.team import ALONE, Team
from sparkdiff.training.affine import fixed_versions, routed_versions

VALUES = 1 << 15
"""Different values of a feature that are told apart."""
EVAL_ROWS, SPARSE_ROWS = 8192, 1024
"""Rows that are measured at a time; fewer sparse ones, of whose entries a dozen temporaries are made."""
DENSE_ENTRIES = 1 << 24
"""Entries that a stage may make dense at a time while rows are measured (128 MiB of doubles)."""


def rows_at_once(network: Network, stream: Stream) -> int:
    """EVAL_ROWS, but fewer of sparse rows, and where a stage makes wide rows dense."""
    most = SPARSE_ROWS if any(column.kind == "sparse" for column in stream.columns) else EVAL_ROWS
    return max(16, min(most, DENSE_ENTRIES // max(1, network.made_dense())))


@dataclasses.dataclass(frozen=True)
class Data:
    """The stream, what its columns are, and which process of how many reads it.

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

    def prepared(self, network: Network) -> Data:
        """These data with the column versions that no trainable parameter changes, computed once for many batches."""
        fixed, routed = fixed_versions(network), routed_versions(network)
        made = {v: f"prepared {i}" for i, v in enumerate([*fixed, *routed])}

        @torch.no_grad()
        def rows(batch: Batch) -> Batch:
            values = self.values(batch)
            network.run(values, fixed)
            network.route(values, routed)
            return {**batch, **{name: values[v] for v, name in made.items()}}

        nothing = rows(self.nothing())
        wide = [nothing[name] for name in made.values()]
        size = sum(x.width if isinstance(x, SparseRows) else x.itemsize * math.prod(x.shape[1:]) for x in wide)
        return dataclasses.replace(self, columns={**self.columns, **made}, prepare=Prepare(rows, size))

    def nothing(self) -> Batch:
        """A batch of no rows."""
        return {column.name: column.empty(0) for column in self.stream.columns}

    def batches(self, split: str) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
        """This process's rows in large batches, as they lie, for measuring: (batch, label, weight, block)."""
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


@dataclasses.dataclass(frozen=True)
class Score:
    """Weighted sums of one network's metric on one split, smaller being better: negated where larger is better."""

    blocks: Tensor  # (B,) sum of w * loss per block; of a metric that is no mean over rows, of w * influence
    weights: Tensor  # (B,) sum of w
    below: int  # rows whose predicted mean lies below the loss's floor
    sign: float = 1.0  # -1 where larger is better

    @property
    def mean(self) -> float:
        """The metric as a loss."""
        return float(self.blocks.sum() / self.weights.sum())

    @property
    def value(self) -> float:
        """The metric as reports show it."""
        return self.sign * self.mean


class Tally:
    """Adds up one network's metric over the rows of a split.

    Of a metric that is no mean over rows it keeps one number of each row, its label, weight and block: 32 bytes a row, and
    never features.
    """

    def __init__(self, metric: Metric, head: Predictor):
        self.metric, self.head = metric, head
        self.blocks = torch.zeros(MAX_BLOCKS, dtype=torch.float64)
        self.weights, self.below = torch.zeros_like(self.blocks), torch.zeros((), dtype=torch.int64)
        self.kept: list[tuple[Tensor, ...]] = []

    @torch.no_grad()
    def add(self, margin: Tensor, label: Tensor, weight: Tensor, block: Tensor) -> Tensor:
        """Add rows; returns which of them (n,) bool have a finite margin and metric, or weight 0."""
        metric, counts = self.metric, weight > 0
        if metric.rows is not None:
            loss = torch.where(counts, metric.rows(margin, label, weight), 0.0)
            finite = loss.isfinite()
            self.blocks.index_add_(0, block, loss * weight)
        else:
            assert metric.column is not None
            column = metric.column(margin)
            finite = _finite(column)
            self.kept.append((column[counts], label[counts], weight[counts], block[counts]))
        self.weights.index_add_(0, block, weight)
        mean = means(self.head, margin)
        if metric.floor is not None and mean is not None:
            self.below += (mean < metric.floor).sum()
        # A link can turn an infinite margin into a finite loss, so the margin is looked at too.
        return (finite & _finite(margin)) | ~counts

    def score(self, team: Team) -> Score:
        """What all processes have added up, the same on each of them."""
        blocks, sign = self.blocks, self.metric.sign
        team.sum_(self.weights, self.below)
        if self.metric.rows is not None:
            team.sum_(blocks)
        else:
            column, label, weight, block = self.rows(team)
            blocks.index_add_(0, block, weight * influence(self.metric, column, label, weight))
        return Score(sign * blocks, self.weights, int(self.below), sign)

    def rows(self, team: Team) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Column, label, weight and block of the rows of weight > 0 of all processes."""
        if not self.kept:  # no row of the split lies with this process
            none = torch.empty(0, dtype=torch.float64)
            self.add(zero_margin(self.head, 0), none, none, none.long())
        column, label, weight, block = (team.gather(torch.cat(parts)) for parts in zip(*self.kept, strict=True))
        return column, label, weight, block


def _finite(x: Tensor) -> Tensor:
    """Which rows are finite throughout, (n,) or (n, c) -> (n,) bool; there may be none."""
    return x.isfinite() if x.ndim == 1 else x.isfinite().all(1)


def score(network: Network, data: Data, split: str, metric: Metric) -> Score:
    """The network's metric on a split, over all processes.

    Raises:
        InputError: a row of weight > 0 has no finite loss, and the column that holds NaN and the stage that it reaches are
            named; or the metric is undefined on these rows.
    """
    tally, sound = Tally(metric, network.head), True
    for batch, label, weight, block in data.batches(split):
        with torch.no_grad():
            margin = network.margin(data.values(batch))
        finite = tally.add(margin, label, weight, block)
        if not bool(finite.all()):
            sound = False
            _explain(network, data, batch, ~finite)
    found = tally.score(data.team)
    if sound and metric.needs and not math.isfinite(found.mean):
        raise InputError(f"metric={metric.name!r} is undefined on the {split} rows: it needs {metric.needs}")
    return found


@torch.no_grad()
def contributions(network: Network, data: Data, split: str, metric: Metric) -> Tensor:
    """w * loss, or w * influence, of each row of a split (n,) as they are streamed, of one process alone; sums to its Score's."""
    tally, places, n = Tally(metric, network.head), [], 0
    parts = []
    for batch, label, weight, block in data.batches(split):
        margin = network.margin(data.values(batch))
        if metric.rows is not None:
            parts.append(torch.where(weight > 0, metric.rows(margin, label, weight), 0.0) * weight)
            continue
        tally.add(margin, label, weight, block)
        places.append(n + (weight > 0).nonzero()[:, 0])
        n += len(weight)
    if metric.rows is not None:
        return metric.sign * torch.cat(parts)
    column, label, weight, _ = tally.rows(ALONE)
    out = torch.zeros(n, dtype=torch.float64)
    out[torch.cat(places)] = weight * influence(metric, column, label, weight)
    return metric.sign * out


def _explain(network: Network, data: Data, batch: Batch, bad: Tensor) -> None:
    """Raise the InputError of rows without a finite loss where an input is to blame."""
    values = data.values(batch)
    with torch.no_grad():
        network.run(values, [v for i in network.positions for v in network.graph.leaves[i].reads if v not in values])
    worst = torch.nonzero(bad)[:1, 0]
    for i in network.positions:
        reads = [taken(values[v], worst) for v in network.graph.leaves[i].reads]
        if why := network.module(i).explain_nan(*reads):
            raise InputError(why)
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
    return {v: network.module(v[1]).trees_and_leaves()[1] if v[0] == LEAVES else width(x) for v, x in values.items()}


@torch.no_grad()
def all_dense(network: Network, data: Data, versions: Collection[Version]) -> bool:
    """Whether none of these column versions holds sparse rows."""
    values = data.values(data.nothing())
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
            width = x.width if isinstance(x, SparseRows) else x.shape[1]
            self.sum, self.square = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
            self.support = torch.zeros(width, dtype=torch.int64)
            # Of sparse rows one number for all columns.
            self.usual = torch.zeros((), dtype=torch.float64) if isinstance(x, SparseRows) else _median(x)
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
        """Of the entries that aren't NaN."""
        n = (self.n - self.missing).clamp_min(1)
        mean = self.sum / n
        std = (self.square / n - mean * mean).clamp_min(0).sqrt()
        entry = (self.square / self.support.clamp_min(1)).sqrt() if self.sparse else None
        return FeatureStats(self.usual + mean, std, self.support, entry=entry)


def _median(x: Tensor) -> Tensor:
    """Of the columns of (n, d), (d,); 0 of one that is NaN throughout."""
    return x.nanmedian(0).values.nan_to_num(0.0, torch.inf, -torch.inf)


@torch.no_grad()
def leaf_counts(network: Network, data: Data) -> dict[int, Tensor]:
    """Training rows of weight > 0 that each leaf (L,) holds, of the stages of trees by position, in one pass."""
    trees = [i for i in network.positions if network.module(i).routes]
    found = {i: torch.zeros(network.module(i).trees_and_leaves()[1], dtype=torch.int64) for i in trees}
    for batch, _, weight, _ in data.batches("train") if trees else ():
        values = data.values(batch)
        network.route(values, [(LEAVES, i) for i in trees])
        for i, count in found.items():
            leaves = values[LEAVES, i]
            assert isinstance(leaves, Tensor)
            count += torch.bincount(leaves[weight > 0].view(-1), minlength=len(count))
    return found


@torch.no_grad()
def tallies(network: Network, data: Data) -> dict[int, dict[str, Tensor]]:
    """What the stages that train tally of the training rows of weight > 0, by position, in one pass."""
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
            reads, module = network.graph.leaves[i].reads, network.module(i)
            network.run(values, [v for v in reads if v not in values])
            null_flags = network.null_flags(module, reads, values)
            nulls = {"nulls": [None if n is None else n[counted] for n in null_flags["nulls"]]} if null_flags else {}
            for name, part in module.training_sums(*(taken(values[v], counted) for v in reads), **nulls).items():
                found[i][name] = found[i][name] + part if name in found[i] else part
    return found


def settling(network: Network) -> set[int]:
    """The stages of trees whose thresholds train on features that no trainable parameter changes."""
    fixed = fixed_versions(network)
    return {
        i
        for i in network.positions
        if (m := network.module(i)).routes
        and not m.routes_fixed
        and all(v in fixed for v in network.graph.leaves[i].reads)
    }


@torch.no_grad()
def distinct_values(network: Network, data: Data, i: int) -> dict[int, Tensor]:
    """The finite values of the training rows, ascending, of each feature that stage i compares with thresholds.

    Of a feature of many values, about VALUES of them, evenly by rank.
    """
    [version] = network.graph.leaves[i].reads
    found: dict[int, Tensor] = {}
    used = network.module(i).compared_features().tolist()
    for batch, _, weight, _ in data.batches("train"):
        values = data.values(batch)
        network.run(values, [version])
        x = values[version]
        x = matrix(dense(x.take((weight > 0).nonzero()[:, 0]) if isinstance(x, SparseRows) else x[weight > 0]))
        for feature in used:
            own = x[:, feature]
            seen = torch.cat([found[feature], own[own.isfinite()]]) if feature in found else own[own.isfinite()]
            seen = seen.unique()
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
