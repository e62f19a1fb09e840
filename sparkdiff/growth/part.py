"""Parts that growth may add to a pipeline, as tensors and as plain MLlib stages; and the items of a round, each the training of
one part for a fixed number of epochs, with their results.
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
    """Position of a part's stages in a pipeline.

    Attributes:
        features: the column of vectors that the last linear stage reads, of `width` entries.
        prefix: common to the uids and the column names of the part's stages; different for each part.
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
        coefficients: (m,), or (k, m) for k classes: the last stage's coefficients of the column.
    """

    column: str
    coefficients: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stages:
    """Plain MLlib stages, and the columns of theirs that the last linear stage reads."""

    stages: Sequence[Any]
    outputs: Sequence[Output]


@dataclass(frozen=True)
class Served:
    """Work that serving a part takes.

    Attributes:
        steps: its stages, as the table of costs counts them.
        entries: number of nonzero entries of its outputs in a row: each is assembled, and has a coefficient.
        columns: columns that its stages read, beside the features.
    """

    steps: Steps
    entries: float
    columns: frozenset[str] = frozenset()


class Part(ABC):
    """A trained part: a function of a row that is added to the margin. Holds plain values and tensors, and can be pickled.

    Attributes:
        name: readable name, made of column names: "hr x workingday", "16 units".
    """

    kind: ClassVar[str]
    name: str

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Number of fitted parameters."""

    @abstractmethod
    def output(self, split: Split) -> Tensor:
        """Margin that the part adds, (n,) or (n, k), exactly as its stages compute it in Spark."""

    @abstractmethod
    def served(self, features: float) -> Served:
        """Work that serving the part takes, stage by stage as `stages` makes them.

        Args:
            features: number of nonzero entries of a row's features.
        """

    @abstractmethod
    def stages(self, place: PipelinePlace) -> Stages:
        """Stages that compute the part; their outputs times their coefficients add up to `output`."""

    def shown(self) -> list[dict[str, Any]]:
        """Rows of a table of what the part has learned, for reports and plots; empty if there is no such table."""
        return []


class Trainer(ABC):
    """The training of one part. Can be pickled between two epochs: that is its checkpoint.

    All its random numbers come from generators that it holds, so that training resumed from a checkpoint ends as if it had
    never been interrupted.
    """

    @abstractmethod
    def epoch(self, table: Table, criterion: Criterion) -> None:
        """Train one more epoch on the training rows, starting from their margin. Must not read validation rows."""

    @abstractmethod
    def part(self) -> Part:
        """The part in its current state."""


def unused(name: str, columns: Iterable[str]) -> str:
    """Heading for a table beside these columns: the name, with underscores appended if a column has it."""
    taken = set(columns)
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class Item:
    """Description of one training.

    Attributes:
        kind: the kind of part, a key of `parts.KINDS`.
        name: readable name of the part.
        settings: settings of the part's trainer, as JSON values.
        epochs: number of epochs.
        work: estimated seconds on one core: long items are handed out first.
        seed: seed of all its random numbers.
    """

    kind: str
    name: str
    epochs: int
    work: float
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Result of an item.

    Attributes:
        part: the part after its best epoch by the validation rows; None if no epoch gained.
        epoch: the best epoch, counted from 1; 0 if none gained.
        value: the metric as a loss after that epoch; if none gained, the metric before the item.
        train: the loss on the training rows after that epoch; NaN if none gained.
        gains: (E, B) per epoch the block sums of weight * (loss of the original - loss); NaN once it has diverged. E is 0 if
            there was no time to train it.
        seconds: CPU seconds of the process that trained it.
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
        """Result of an item that there was no time for.

        Args:
            before: the metric as a loss before the item.
            original: (B,) the original's sums of weight * loss.
        """
        return Found(item, None, 0, before, math.nan, original.new_zeros(0, len(original)), 0.0)

    @property
    def is_late(self) -> bool:
        return not len(self.gains)


class Course:
    """State of one item's training: all that a checkpoint has to hold."""

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
