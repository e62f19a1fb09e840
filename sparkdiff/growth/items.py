"""Items: the trainings of a round, each of one part for a fixed number of epochs, and what they find."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Part
from sparkdiff.growth.table import Table


@dataclass(frozen=True)
class Item:
    """One training.

    Attributes:
        kind: of part, a key of `parts.KINDS`.
        name: what a reader calls the part.
        settings: what the part's trainer takes, in values that JSON can hold.
        epochs: how many.
        work: about how many seconds it takes on one core: long items are handed out first.
        seed: of all that it draws.
    """

    kind: str
    name: str
    epochs: int
    work: float
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What an item found.

    Attributes:
        part: as it was after its best epoch by the validation rows; None where no epoch gained.
        epoch: the best one, from 1 on; 0 where none gained.
        value: the metric as a loss after that epoch; of what was there before, where none gained.
        train: the loss of the training rows after that epoch; NaN where none gained.
        gains: (E, B) per epoch the block sums of weight * (loss of the original - loss); NaN once it has diverged. No epoch where
            there was no time to train it.
        seconds: of this process's CPU.
    """

    item: Item
    part: Part | None
    epoch: int
    value: float
    train: float
    gains: Tensor
    seconds: float

    @staticmethod
    def late(item: Item, before: float, original: Tensor) -> "Found":
        """Of an item that there was no time for.

        Args:
            before: the metric as a loss of what is there.
            original: (B,) the original's sums of weight * loss.
        """
        return Found(item, None, 0, before, math.nan, original.new_zeros(0, len(original)), 0.0)

    @property
    def is_late(self) -> bool:
        return not len(self.gains)


class Course:
    """The course of one item's training, with all that a checkpoint has to hold."""

    def __init__(self, item: Item, trainer: Any, before: float):
        self.item, self.trainer = item, trainer
        self.epoch, self.gains = 0, list[Tensor]()
        self.best: Part | None = None
        self.chosen, self.value, self.train, self.seconds = 0, before, math.nan, 0.0

    @property
    def done(self) -> bool:
        return self.epoch >= self.item.epochs or (bool(self.gains) and not bool(self.gains[-1].isfinite().all()))

    def step(self, table: Table, criterion: Criterion, original: Tensor) -> None:
        """Train one more epoch and measure it.

        Args:
            original: (B,) the original's sums of weight * loss.
        """
        self.trainer.epoch(table, criterion)
        self.epoch += 1
        with torch.no_grad():
            part = self.trainer.part()
            score = criterion.score(table.validation.margin + part.output(table.validation), table.validation)
            train = float(criterion.loss(table.train.margin + part.output(table.train), table.train))
        finite = math.isfinite(score.mean) and math.isfinite(train)
        self.gains.append(original - score.blocks if finite else torch.full_like(original, math.nan))
        if finite and score.mean < self.value:
            self.best, self.chosen, self.value, self.train = part, self.epoch, score.mean, train

    def found(self) -> Found:
        return Found(self.item, self.best, self.chosen, self.value, self.train, torch.stack(self.gains), self.seconds)
