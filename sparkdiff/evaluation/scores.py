"""The metric of a network on the cached rows of a split."""

import dataclasses

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.stream.manifest import Batch
from sparkdiff.errors import InputError
from sparkdiff.evaluation.row_margins import MarginModel
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives.metric import Metric, influence
from sparkdiff.objectives.objective import Rows, zero_margin
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.projection import PCA
from sparkdiff.tensors.rows import SparseRows, on_gpu, rows_at
from sparkdiff.tensors.team import Team


@dataclasses.dataclass(frozen=True)
class Score:
    """Weighted sums of one network's metric on one split, as a loss: a metric for which larger is better is negated."""

    blocks: Tensor  # (B,) sum of w * loss per block; for a metric that is no mean over rows, of w * influence
    weights: Tensor  # (B,) sum of w
    below: int  # rows with a predicted mean below the loss's floor
    sign: float = 1.0  # -1 if larger is better
    broken: int = 0  # rows of weight > 0 with a margin or loss that is not finite; only `score` counts them

    @property
    def mean(self) -> float:
        """The metric as a loss."""
        return float(self.blocks.sum() / self.weights.sum())

    @property
    def value(self) -> float:
        """The metric as shown in reports."""
        return self.sign * self.mean


class Tallies:
    """Running sums of the metric of K networks with the same head over the rows of a split.

    For a metric that is not a mean over rows, one number per row and network is kept, and each row's label, weight and
    block, but never features. All tensors are on the device of the margins.
    """

    def __init__(self, metric: Metric, head: Predictor, number: int):
        self.metric, self.head = metric, head
        device = zero_margin(head, 0).device
        self.blocks = torch.zeros(number, MAX_BLOCKS, dtype=torch.float64, device=device)
        self.weights = torch.zeros_like(self.blocks[0])
        self.below = torch.zeros(number, dtype=torch.int64, device=device)
        self.columns: list[list[Tensor]] = [[] for _ in range(number)]  # for each network, in pieces
        self.kept: list[tuple[Tensor, ...]] = []  # label, weight, block of the same pieces

    @torch.no_grad()
    def add_all(self, margins: Tensor, label: Tensor, weight: Tensor, block: Tensor) -> Tensor:
        """Add rows, given margins (K, n) or (K, n, c). Returns a mask (K, n) bool: True for rows with a finite margin
        and metric, or with weight 0.
        """
        metric, counts, gpu = self.metric, weight > 0, on_gpu(margins)
        if self.blocks.device != margins.device:
            sums = (self.blocks, self.weights, self.below)
            self.blocks, self.weights, self.below = (x.to(margins.device, non_blocking=True) for x in sums)
        if metric.rows is not None:
            losses = torch.where(counts, self._losses(metric.rows, margins, label, weight), 0.0)
            finite = losses.isfinite()
            self._add_blocks(block, losses * weight)
        else:
            assert metric.column is not None
            made = [metric.column(margin) for margin in margins]
            finite = torch.stack([_finite(column) for column in made])

            # On a GPU all rows are kept, because it would have to wait for the number of rows that count; they are
            # cloned, because the stream may reuse a batch's memory.
            def own(x: Tensor) -> Tensor:
                return x.clone() if gpu else x[counts]

            for kept, column in zip(self.columns, made, strict=True):
                kept.append(own(column))
            self.kept.append((own(label), own(weight), own(block)))
        self.weights.index_add_(0, block, weight)
        if metric.floor is not None:  # for a deviance, whose predictor has a mean
            mean = self.head.mean(margins) if gpu else torch.stack([self.head.mean(margin) for margin in margins])
            self.below += (mean < metric.floor).sum(1)
        # A link can turn an infinite margin into a finite loss, so the margin is checked too.
        good = margins.isfinite() if margins.ndim == 2 else margins.isfinite().all(2)
        return (finite & good) | ~counts

    def _losses(self, rows: Rows, margins: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """Metric of each row, (K, n); on a GPU in one call, because its kernels take longer to launch than to run."""
        if not (on_gpu(margins) and self.metric.elementwise):
            return torch.stack([rows(margin, label, weight) for margin in margins])
        number = len(margins)
        return rows(margins.flatten(0, 1), label.repeat(number), weight.repeat(number)).view(number, -1)

    def _add_blocks(self, block: Tensor, losses: Tensor) -> None:
        """Add losses (K, n) to the sums of their blocks, row by row."""
        if on_gpu(losses):
            first = MAX_BLOCKS * torch.arange(len(losses), device=losses.device)
            self.blocks.view(-1).index_add_(0, (first[:, None] + block).view(-1), losses.view(-1))
            return
        for own, loss in zip(self.blocks, losses, strict=True):
            own.index_add_(0, block, loss)

    def scores(self, team: Team) -> list[Score]:
        """Score of each network, summed over all processes and the same in each process; with one exchange."""
        metric = self.metric
        team.sum_(self.weights, self.below, *([self.blocks] if metric.rows is not None else []))
        if metric.rows is None:
            columns, label, weight, block = self.rows(team)
            for own, column in zip(self.blocks, columns, strict=True):
                own.index_add_(0, block, weight * influence(metric, column, label, weight))
        weights, below = self.weights.to("cpu"), self.below.tolist()
        blocks = (metric.sign * self.blocks.to("cpu")).unbind()
        return [Score(own.clone(), weights, n, metric.sign) for own, n in zip(blocks, below, strict=True)]

    def rows(self, team: Team) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Columns of the networks, and label, weight and block, of the rows of weight > 0 of all processes."""
        if not self.kept:  # this process has no row of the split
            margin = zero_margin(self.head, 0)
            none = margin.new_empty(0)
            self.add_all(margin.expand(len(self.blocks), *margin.shape), none, none, none.long())
        label, weight, block = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        columns = [torch.cat(parts) for parts in self.columns]
        if on_gpu(weight):
            counts = weight > 0
            columns, label, weight, block = [x[counts] for x in columns], label[counts], weight[counts], block[counts]
        return [team.gather(x) for x in columns], team.gather(label), team.gather(weight), team.gather(block)


class Tally(Tallies):
    """Running sums of one network's metric."""

    def __init__(self, metric: Metric, head: Predictor):
        super().__init__(metric, head, 1)

    def add(self, margin: Tensor, label: Tensor, weight: Tensor, block: Tensor) -> Tensor:
        """Add rows. Returns a mask (n,) bool: True for rows with a finite margin and metric, or with weight 0."""
        return self.add_all(margin[None], label, weight, block)[0]

    def score(self, team: Team) -> Score:
        """Score of the network, summed over all processes and the same in each process."""
        return self.scores(team)[0]


def _finite(x: Tensor) -> Tensor:
    """Mask of rows with only finite values, (n,) or (n, c) -> (n,) bool; there may be no rows."""
    return x.isfinite() if x.ndim == 1 else x.isfinite().all(1)


def score(network: MarginModel, data: Data, split: str, metric: Metric) -> Score:
    """The metric of a network, or of its recorded margins, on a split, over all processes.

    Raises:
        InputError: a row with weight > 0 has no finite loss (the message names the column with NaN and the stage).
    """
    tally, broken = Tally(metric.of(network.head), network.head), 0
    for batch, label, weight, block in data.batches(split):
        with torch.no_grad():
            margin = network.margin(data.values(batch))
        finite = tally.add(margin, label, weight, block)
        if not bool(finite.all()):
            broken += int((~finite).sum())
            if isinstance(network, Network):
                _explain(network, data, batch, ~finite)
    return dataclasses.replace(tally.score(data.team), broken=broken)


def _explain(network: Network, data: Data, batch: Batch, bad: Tensor) -> None:
    """Raise an InputError that names the cause if rows have no finite loss because of an input; `bad` marks these rows,
    (n,).
    """
    values = data.values(batch)
    with torch.no_grad():
        network.run(values, [v for i in network.positions for v in network.graph.vertices[i].reads if v not in values])
    worst = torch.nonzero(bad)[:1, 0]
    for i in network.positions:
        reads = [rows_at(values[v], worst) for v in network.graph.vertices[i].reads]
        module = network.module(i)
        if isinstance(module, Predictor) and (why := module.explain_nan(*reads)):
            raise InputError(why)
    wanting = next(
        network.graph.vertices[i].uid for i in network.positions if isinstance(network.module(i), (Predictor, PCA))
    )
    for version, name in data.columns.items():
        column = rows_at(batch[name], worst)
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
