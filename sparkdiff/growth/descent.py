"""Training with Adam on small batches, for parts that are smooth functions of one vector of parameters.

`AdamTrainer` is the base class of their trainers. It draws batches, lets the learning rate fall along half a cosine, and applies
weight decay as in AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019). Subclasses define the meaning of
the parameters.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.evaluation.input_statistics import column_sums
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, Trainer
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.tensors.rows import squared
from sparkdiff.training import optimizers

SMALLEST, USUAL = 16, 128
"""Smallest batch size, and the usual batch size if there are enough rows."""
FEWEST, MOST = 40, 400
"""Smallest number of batches per epoch, unless batches would be smaller than `SMALLEST`; and largest number."""


@dataclass(frozen=True)
class LearningRateSchedule:
    """Learning rate schedule and weight decay.

    Attributes:
        epochs: number of epochs over which the learning rate falls to zero.
        rate: the learning rate at the beginning.
        decay: weight decay: each step also subtracts learning rate * decay * parameters.
    """

    epochs: int
    rate: float
    decay: float


def batch_size(rows: int) -> int:
    return max(min(rows // FEWEST, USUAL), rows // MOST, SMALLEST)


def work(rows: int, parameters: int, epochs: int) -> float:
    """Estimated seconds of a training run on one core."""
    batches = math.ceil(rows / batch_size(rows))
    return epochs * (6e-4 * batches + 6e-10 * rows * parameters)


class AdamTrainer(Trainer):
    """Base class of trainers that use Adam, see the module. All parameters begin at zero, unless a subclass sets them.

    Args:
        shapes: shapes of the tensors that the vector of parameters consists of, see `pieces`.
        rate, decay: see `LearningRateSchedule`; the item's settings may have another rate.
    """

    def __init__(self, item: Item, table: Table, shapes: Sequence[tuple[int, ...]], rate: float, decay: float):
        self.name, self.unit, self.classes = item.name, float(item.settings["unit"]), table.classes
        self.mean, self.inverse = standardisation(table.train)
        self.shapes = shapes
        self.parameters = table.train.margin.new_zeros(sum(map(math.prod, shapes)))
        self.pace = LearningRateSchedule(item.epochs, float(item.settings.get("rate", rate)), decay)
        self.epochs = 0
        self.optimizer = optimizers.FirstOrderSteps("adam", self.parameters, None)
        self.random = torch.Generator().manual_seed(item.seed).get_state()

    @abstractmethod
    def part_margin(self, parameters: Tensor, split: Split, rows: Tensor) -> Tensor:
        """Margin that a part with these parameters adds to rows: (m,) or (m, k), with gradients.

        Args:
            rows: (m,) indices of the rows.
        """

    def epoch(self, table: Table, criterion: Criterion) -> None:
        train = table.train
        known = (train.weight > 0).nonzero()[:, 0]
        size = batch_size(len(known))
        weight = train.weight / train.weight[known].mean()
        batches = known[self._order(len(known))].split(size)
        for i, rows in enumerate(batches):
            done = (self.epochs + i / len(batches)) / self.pace.epochs
            own = self.parameters.clone().requires_grad_()
            margin = train.margin[rows] + self.part_margin(own, train, rows)
            assert criterion.objective.rows is not None
            loss = criterion.objective.rows(margin, train.label[rows], train.weight[rows])
            [gradient] = torch.autograd.grad((weight[rows] * loss).sum() / size, own)
            self._step(gradient, self.pace.rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        self.epochs += 1

    def _order(self, rows: int) -> Tensor:
        random = torch.Generator()
        random.set_state(self.random)
        order = torch.randperm(rows, generator=random)
        self.random = random.get_state()
        return order

    def _step(self, gradient: Tensor, rate: float) -> None:
        self.parameters.mul_(1 - rate * self.pace.decay)
        self.optimizer.step(self.parameters, gradient, rate, (self.optimizer.mean, self.optimizer.square), None)


def pieces(parameters: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """A vector (p,) split into consecutive tensors of these shapes."""
    split = parameters.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(split, shapes, strict=True)]


def standardisation(split: Split) -> tuple[Tensor, Tensor]:
    """Weighted means (d,) of the features, and 1 / standard deviation (d,), which is set to 0 for constant features."""
    share = split.weight / split.weight.sum()
    mean, square = column_sums(split.features, share), column_sums(squared(split.features), share)
    variance = square - mean.square()
    varies = variance > 1e-12 * square  # otherwise the variance is rounding error
    return mean, torch.where(varies, torch.where(varies, variance, 1.0).rsqrt(), 0.0)
