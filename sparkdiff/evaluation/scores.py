"""The metric of a network on the cached rows of a split."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.stream import Batch
from sparkdiff.errors import InputError
from sparkdiff.evaluation.data import Data
from sparkdiff.evaluation.recorded import Predicts
from sparkdiff.objectives.metric import Metric, influence
from sparkdiff.objectives.objective import zero_margin
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.projection import PCA
from sparkdiff.tensors.rows import SparseRows, on_gpu, taken
from sparkdiff.tensors.team import ALONE, Team


@dataclasses.dataclass(frozen=True)
class Score:
    """Weighted sums of one network's metric on one split, smaller being better: negated where larger is better."""

    blocks: Tensor  # (B,) sum of w * loss per block; of a metric that is no mean over rows, of w * influence
    weights: Tensor  # (B,) sum of w
    below: int  # rows whose predicted mean lies below the loss's floor
    sign: float = 1.0  # -1 where larger is better
    broken: int = 0  # rows of weight > 0 with a margin or loss that is not finite, as far as `score` has counted them

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

    For a metric that is not a mean over rows it keeps one number per row, its label, weight and block: 32 bytes per
    row, never features. All of it lies where the margins do.
    """

    def __init__(self, metric: Metric, head: Predictor):
        self.metric, self.head = metric, head
        self.blocks = torch.zeros(MAX_BLOCKS, dtype=torch.float64, device=zero_margin(head, 0).device)
        self.weights = torch.zeros_like(self.blocks)
        self.below = self.blocks.new_zeros((), dtype=torch.int64)
        self.kept: list[tuple[Tensor, ...]] = []

    @torch.no_grad()
    def add(self, margin: Tensor, label: Tensor, weight: Tensor, block: Tensor) -> Tensor:
        """Add rows; returns which of them (n,) bool have a finite margin and metric, or weight 0."""
        metric, counts = self.metric, weight > 0
        if self.blocks.device != margin.device:
            sums = (self.blocks, self.weights, self.below)
            self.blocks, self.weights, self.below = (x.to(margin.device, non_blocking=True) for x in sums)
        if metric.rows is not None:
            loss = torch.where(counts, metric.rows(margin, label, weight), 0.0)
            finite = loss.isfinite()
            self.blocks.index_add_(0, block, loss * weight)
        else:
            assert metric.column is not None
            column = metric.column(margin)
            finite = _finite(column)
            # On a GPU how many count isn't waited for; the stream may use a batch's memory again.
            rows = (column, label, weight, block)
            self.kept.append(tuple(x.clone() if on_gpu(margin) else x[counts] for x in rows))
        self.weights.index_add_(0, block, weight)
        if metric.floor is not None:  # of a deviance, whose predictor has a mean
            self.below += (self.head.mean(margin) < metric.floor).sum()
        # A link can turn an infinite margin into a finite loss, so the margin is looked at too.
        return (finite & _finite(margin)) | ~counts

    def score(self, team: Team) -> Score:
        """The sum over all processes, the same in each of them."""
        return scores([self], team)[0]

    def sums(self) -> list[Tensor]:
        """What is added up over all processes."""
        return [self.weights, self.below, *([self.blocks] if self.metric.rows is not None else [])]

    def added_up(self, team: Team) -> Score:
        """The score, once the `sums` are those of all processes."""
        blocks, sign = self.blocks, self.metric.sign
        if self.metric.rows is None:
            column, label, weight, block = self.rows(team)
            blocks.index_add_(0, block, weight * influence(self.metric, column, label, weight))
        return Score(sign * blocks.to("cpu"), self.weights.to("cpu"), int(self.below), sign)

    def rows(self, team: Team) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Column, label, weight and block of the rows of weight > 0 of all processes."""
        if not self.kept:  # no row of the split lies with this process
            margin = zero_margin(self.head, 0)
            none = margin.new_empty(0)
            self.add(margin, none, none, none.long())
        every = [torch.cat(parts) for parts in zip(*self.kept, strict=True)]
        if on_gpu(every[0]):
            counts = every[2] > 0
            every = [x[counts] for x in every]
        column, label, weight, block = (team.gather(x) for x in every)
        return column, label, weight, block


def _finite(x: Tensor) -> Tensor:
    """Rows with only finite values, (n,) or (n, c) -> (n,) bool; there may be no rows."""
    return x.isfinite() if x.ndim == 1 else x.isfinite().all(1)


def scores(tallies: Sequence[Tally], team: Team) -> list[Score]:
    """The sums of tallies over all processes, the same in each of them; in one exchange."""
    team.sum_(*(x for tally in tallies for x in tally.sums()))
    return [tally.added_up(team) for tally in tallies]


def score(network: Network, data: Data, split: str, metric: Metric) -> Score:
    """The network's metric on a split, over all processes.

    Raises:
        InputError: a row with weight > 0 has no finite loss (the message names the column with NaN and the stage), or
            the metric is undefined on these rows.
    """
    tally, broken = Tally(metric, network.head), 0
    for batch, label, weight, block in data.batches(split):
        with torch.no_grad():
            margin = network.margin(data.values(batch))
        finite = tally.add(margin, label, weight, block)
        if not bool(finite.all()):
            broken += int((~finite).sum())
            _explain(network, data, batch, ~finite)
    found = dataclasses.replace(tally.score(data.team), broken=broken)
    if not broken and metric.needs and not math.isfinite(found.mean):
        raise InputError(f"metric={metric.name!r} is undefined on the {split} rows: it needs {metric.needs}")
    return found


@torch.no_grad()
def contributions(network: Predicts, data: Data, split: str, metric: Metric) -> Tensor:
    """w * loss, or w * influence, of each row of a split (n,) in stream order, for one process; its sum is the sum of
    the Score.
    """
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
    out = weight.new_zeros(n)
    out[torch.cat(places)] = weight * influence(metric, column, label, weight)
    return metric.sign * out


def _explain(network: Network, data: Data, batch: Batch, bad: Tensor) -> None:
    """Raise an InputError for rows without a finite loss if an input is the cause."""
    values = data.values(batch)
    with torch.no_grad():
        network.run(values, [v for i in network.positions for v in network.graph.vertices[i].reads if v not in values])
    worst = torch.nonzero(bad)[:1, 0]
    for i in network.positions:
        reads = [taken(values[v], worst) for v in network.graph.vertices[i].reads]
        module = network.module(i)
        if isinstance(module, Predictor) and (why := module.explain_nan(*reads)):
            raise InputError(why)
    wanting = next(
        network.graph.vertices[i].uid for i in network.positions if isinstance(network.module(i), (Predictor, PCA))
    )
    for version, name in data.columns.items():
        column = taken(batch[name], worst)
        entries = column.values if isinstance(column, SparseRows) else column.flatten()
        wrong = (~entries.isfinite()).nonzero()
        if len(wrong):
            j = int(wrong[0])
            entry = int(column.indices[j]) if isinstance(column, SparseRows) else j
            where = f"entry {entry} of column" if isinstance(column, SparseRows) or column.ndim == 2 else "column"
            raise InputError(
                f"{wanting}: {where} {network.graph.name(version)!r} holds {entries[j].item()!r} (or null), so a "
                "linear stage gives NaN; impute it before the pipeline, or drop these rows"
            )
