"""A part: what growth may add to a pipeline, as tensors and as plain MLlib stages; and the items of a round, each the training of
one part for a fixed number of epochs, and what they find.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparkdiff.growth.costs import Steps
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.table import Split, Table


@dataclass(frozen=True)
class PipelinePlace:
    """Where in a pipeline a part's stages stand.

    Attributes:
        features: the column of vectors that the last linear stage reads, of `width` entries.
        prefix: of the uids of the stages and the names of the columns that are made, different for each part.
        classes: see `Table`.
    """

    features: str
    width: int
    prefix: str
    classes: int

    def name(self, what: str) -> str:
        return f"{self.prefix}_{what}"


@dataclass(frozen=True)
class Output:
    """A column that a part's stages make for the last linear stage.

    Attributes:
        column: a vector of m entries, or a number (m = 1).
        coefficients: (m,), or (k, m) of k classes: what the last stage multiplies it by.
    """

    column: str
    coefficients: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stages:
    """Plain MLlib stages, and those of their columns that the last linear stage reads."""

    stages: Sequence[Any]
    outputs: Sequence[Output]


@dataclass(frozen=True)
class Served:
    """What serving a part takes.

    Attributes:
        steps: its stages, as the table of costs counts them.
        entries: how many entries of its outputs are not zero in a row: each is assembled, and has a coefficient.
        columns: that its stages read, beside the features.
    """

    steps: Steps
    entries: float
    columns: frozenset[str] = frozenset()


class Part(ABC):
    """A trained part: a function of a row that is added to the margin. Holds plain values and tensors, and can be pickled.

    Attributes:
        name: what a reader calls it, by the names of columns: "hr x workingday", "16 units".
    """

    kind: ClassVar[str]
    name: str

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many numbers were fitted."""

    @abstractmethod
    def output(self, split: Split) -> Tensor:
        """What it adds to the margin, (n,) or (n, k), exactly as its stages compute it in Spark."""

    @abstractmethod
    def served(self, features: float) -> Served:
        """What serving it takes, stage by stage as `stages` makes them.

        Args:
            features: how many entries of a row's features are not zero.
        """

    @abstractmethod
    def stages(self, place: PipelinePlace) -> Stages:
        """The stages that compute it; their outputs times their coefficients add up to `output`."""

    def shown(self) -> list[dict[str, Any]]:
        """What it has learned, as the rows of a table that a plot can use; empty where there is no such table."""
        return []


class Trainer(ABC):
    """The training of one part. Can be pickled between two epochs: that is its checkpoint.

    All that it draws comes from generators that it holds, so that a training that goes on from a checkpoint ends as if it had
    never been interrupted.
    """

    @abstractmethod
    def epoch(self, table: Table, criterion: Criterion) -> None:
        """Train one more epoch on the training rows, starting from their margin. May look at no validation row."""

    @abstractmethod
    def part(self) -> Part:
        """The part as it is now."""


def unused(name: str, columns: Iterable[str]) -> str:
    """A heading for a table beside these columns: the name, with underscores where a column has it."""
    taken = set(columns)
    while name in taken:
        name += "_"
    return name


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
