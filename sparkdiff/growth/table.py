"""The cached rows as tensors: the features of the last linear stage, and the single columns that parts are made of; and what
growth minimises on training rows and measures on validation rows, as functions of a margin.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparkdiff.evaluation.scores import Score, Tally
from sparkdiff.objectives import losses, metrics
from sparkdiff.objectives.objective import Metric, Objective
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.rows import Rows, SparseRows
from sparkdiff.tensors.team import ALONE

LINE = 64
"""Bytes of a line of memory, where torch's own tensors begin."""


def aligned(tensor: Tensor) -> Tensor:
    """The same tensor, contiguous and beginning with a line of memory; itself if it is so.

    The last bits of a product depend on where the numbers lie: `matrix @ vector` differs if the matrix begins 8 bytes later.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % LINE == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Column:
    """A scalar column that parts may read.

    Attributes:
        name: as the data call it, and as reports show it, such as "hr".
        column: the column that Spark's stages read, such as "hr_index"; the same as the name where the data have it as numbers.
        levels: of a category, how many values it has, 0 to levels - 1; 0 for a number. As many as the metadata of `column` say,
            if they do (of a StringIndexer that keeps unknown values, one more than its labels): Spark's OneHotEncoder compares.
        labels: the names of a category's values; empty where nothing tells them.
        indexes: whether `column` numbers the values of another column of numbers or strings, so that the order means nothing.
        entity: whether it names a user, an item, a shop: something with an effect of its own.
        gaps: whether rows to come may lack a value, even if none of these rows does: no stage of the pipeline refuses null in it.
        boolean: whether Spark has it as true and false, which stages for numbers don't take.
    """

    name: str
    column: str
    levels: int = 0
    labels: tuple[str, ...] = ()
    indexes: bool = False
    entity: bool = False
    boolean: bool = False
    gaps: bool = False


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        features: (n, d), what the last linear stage reads.
        values: (n, c) the columns of the table; NaN where a row has none.
        label, weight: (n,).
        block: (n,) int64, the guard's block of each row.
        margin: (n,), or (n, k) of k classes: the margin of what has been grown so far; at first, the original's.
    """

    features: Rows
    values: Tensor
    label: Tensor
    weight: Tensor
    block: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def at(self, margin: Tensor) -> "Split":
        """The same rows with another margin."""
        return replace(self, margin=margin)

    def aligned(self) -> "Split":
        """The same rows with all tensors in whole lines of memory, see `aligned`."""
        x = self.features
        features = (
            SparseRows(aligned(x.indices), aligned(x.values), aligned(x.offsets), x.width)
            if isinstance(x, SparseRows)
            else aligned(x)
        )
        tensors = (self.values, self.label, self.weight, self.block, self.margin)
        return Split(features, *(aligned(tensor) for tensor in tensors))

    def mean(self, of: Tensor) -> Tensor:
        """The weighted mean over the rows, (n, ...) -> (...)."""
        return torch.tensordot(self.weight, of, dims=1) / self.weight.sum()


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        features: the name of the column of vectors that the last linear stage reads.
        columns: c of them.
        classes: 0 where a row's margin is a number, else how many numbers it is.
        most: the number of training rows that there are; `train` may be a sample of them.
        unknown: of each column, how many of all these have the last of its levels: an entity's is the one of rows without it.
    """

    features: str
    columns: tuple[Column, ...]
    train: Split
    validation: Split
    classes: int = 0
    most: int = 0
    unknown: tuple[int, ...] = ()

    @property
    def sampled(self) -> str:
        """Of how many training rows the parts learn; empty where it is all of them."""
        return f"{len(self.train):,} of {self.most:,} training rows" if len(self.train) < self.most else ""

    @property
    def width(self) -> int:
        """The number of entries of a margin."""
        return max(self.classes, 1)

    def aligned(self) -> "Table":
        """The same rows with all tensors in whole lines of memory, see `aligned`."""
        return replace(self, train=self.train.aligned(), validation=self.validation.aligned())

    def at(self, train: Tensor, validation: Tensor) -> "Table":
        """The same rows with other margins."""
        return replace(self, train=self.train.at(train), validation=self.validation.at(validation))


LEAST = 1e-6
"""Curvature at least, as a share of its mean, so that rows that are all but certain don't make steps endless."""


@dataclass(frozen=True)
class Criterion:
    """The loss and the metric of a head.

    Attributes:
        objective: a mean over rows.
        unit: the natural unit of the margin, see `Predictor.margin_unit`.
    """

    head: Predictor
    objective: Objective
    metric: Metric
    unit: float

    def rows(self, margin: Tensor, split: Split) -> Tensor:
        """The loss of each row, (n,), unweighted."""
        assert self.objective.rows is not None
        return self.objective.rows(margin, split.label, split.weight)

    def loss(self, margin: Tensor, split: Split) -> Tensor:
        """The weighted mean of the loss, ()."""
        return split.mean(torch.where(split.weight > 0, self.rows(margin, split), 0.0))

    def slopes(self, margin: Tensor, split: Split) -> tuple[Tensor, Tensor]:
        """First and second derivative of each row's loss by its own margin, both shaped like the margin, unweighted.

        Of k entries the second is the Hessian's diagonal. It is positive: where the loss bends down, it is a small number; of a
        loss without any curvature, the number with which the step slope / curvature of a typical row is one unit of the margin.
        """
        with torch.enable_grad():
            m = margin.detach().clone().requires_grad_()
            [slope] = torch.autograd.grad(self.rows(m, split).sum(), m, create_graph=True)
            if not slope.requires_grad:  # of a loss that is linear in pieces
                curve = torch.zeros_like(m)
            elif m.ndim == 1:
                [curve] = torch.autograd.grad(slope.sum(), m)
            else:
                each = [
                    torch.autograd.grad(slope[:, k].sum(), m, retain_graph=True)[0][:, k] for k in range(m.shape[1])
                ]
                curve = torch.stack(each, 1)
        curve = curve.detach().nan_to_num(0.0).clamp_min(0)
        slope, typical = slope.detach(), float(split.mean(curve if curve.ndim == 1 else curve.mean(1)))
        if typical > 0:
            return slope, curve.clamp_min(LEAST * typical)
        steepness = float(split.mean(slope.abs() if slope.ndim == 1 else slope.abs().mean(1)))
        return slope, torch.full_like(curve, steepness / self.unit if steepness > 0 else 1.0)

    @torch.no_grad()
    def size(self, margin: Tensor, split: Split) -> float:
        """The size of the metric, of which a penalty is a share. It does not vanish where the metric is near zero.

        The larger of the metric and of what single rows are apart from it: their mean absolute deviation, which of a loss that
        is never negative is at most twice the loss. A metric that is no mean over rows is 1 at best: what is lacking to that.
        """
        value = self.score(margin, split)
        if self.metric.rows is not None:
            rows = torch.where(split.weight > 0, self.metric.rows(margin, split.label, split.weight), 0.0)
            apart = float(split.mean((rows - value.value).abs()))
        else:
            apart = abs(1 - value.value) if self.metric.larger else 0.0
        return max(abs(value.mean), apart)

    @torch.no_grad()
    def loss_size(self, margin: Tensor, split: Split) -> float:
        """Likewise, of the loss."""
        rows = torch.where(split.weight > 0, self.rows(margin, split), 0.0)
        mean = split.mean(rows)
        return max(abs(float(mean)), float(split.mean((rows - mean).abs())))

    @torch.no_grad()
    def score(self, margin: Tensor, split: Split) -> Score:
        """The metric, in sums over the guard's blocks."""
        tally = Tally(self.metric, self.head)
        tally.add(margin, split.label, split.weight, split.block)
        return tally.score(ALONE)


@dataclass(frozen=True)
class Specification:
    """What a criterion is made of. Unlike a criterion, it can be sent to another process.

    Attributes:
        head: the last linear stage.
        columns: its output columns.
        label: of the training rows.
    """

    head: Predictor
    columns: tuple[str, ...]
    options: Options
    label: LabelStats

    def criterion(self) -> Criterion:
        """
        Raises:
            InputError: see `losses.resolve` and `metrics.resolve`.
        """
        o, head = self.options, self.head
        objective = losses.resolve(o.loss, o.lossParams, head, self.columns, self.label)
        metric = metrics.resolve(o, objective, head, self.columns, self.label)
        return Criterion(head, objective, metric, head.margin_unit(self.label))
