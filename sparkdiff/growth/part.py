"""Parts (stages that growth may add to a pipeline), as tensors and as plain MLlib stages; and items, each the description of one
part's training for a fixed number of epochs, with their results.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparkdiff.growth.cost_table import Steps
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.row_tensors import Split, Table


@dataclass(frozen=True)
class PipelinePlace:
    """Position of a part's stages in a pipeline.

    Attributes:
        features: name of the vector column that the last linear stage reads; the vectors have `width` entries.
        prefix: prefix of the uids and the column names of all stages of this part; different for each part.
        classes: number of margins of a softmax; 0 if a row's margin is one number.
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
        coefficients: (m,), or (k, m) for k classes: coefficients of the column in the last linear stage.
    """

    column: str
    coefficients: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stages:
    """Plain MLlib stages, and those of their output columns that the last linear stage reads."""

    stages: Sequence[Any]
    outputs: Sequence[Output]


@dataclass(frozen=True)
class ServingWork:
    """Work of serving a part, per row.

    Attributes:
        steps: the part's stages, as (class, number of entries) of the cost table.
        entries: number of nonzero entries of the part's outputs; each is assembled and multiplied by a coefficient.
        columns: columns that the part's stages read, in addition to the features.
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
    def serving_work(self, features: float) -> ServingWork:
        """Work of serving the part, for the same stages that `stages` makes.

        Args:
            features: number of nonzero entries of a row's features.
        """

    @abstractmethod
    def stages(self, place: PipelinePlace) -> Stages:
        """Stages that compute the part. The sum of their outputs times their coefficients equals `output`."""

    def learned_table(self) -> list[dict[str, Any]]:
        """Rows of a table of what the part has learned, for reports and plots; empty if there is no such table."""
        return []


class Trainer(ABC):
    """Trainer of one part. Between two epochs it can be pickled; the pickle is its checkpoint.

    All random numbers come from generators that the trainer holds, so that training resumed from a checkpoint ends as if it had
    never been interrupted.
    """

    @abstractmethod
    def epoch(self, table: Table, criterion: Criterion) -> None:
        """Train one more epoch on the training rows, on top of their margin. Must not read validation rows."""

    @abstractmethod
    def part(self) -> Part:
        """The part in its current state."""


def unused_heading(name: str, columns: Iterable[str]) -> str:
    """The name, with underscores appended until no column has it: a heading for a table that also has these columns."""
    taken = set(columns)
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class Item:
    """Description of the training of one part.

    Attributes:
        kind: the kind of part, a key of `parts.KINDS`.
        name: readable name of the part.
        settings: settings of the part's trainer, as JSON values.
        epochs: number of epochs.
        work: estimated seconds on one core; items with more work are handed out first.
        seed: seed of all random numbers of the training.
    """

    kind: str
    name: str
    epochs: int
    work: float
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemResult:
    """Result of an item.

    Attributes:
        part: the part after the epoch with the best metric on the validation rows; None if no epoch gained.
        epoch: the best epoch, counted from 1; 0 if no epoch gained.
        value: the metric, as a loss, after the best epoch; if no epoch gained, the metric before the item.
        train: the loss on the training rows after the best epoch; NaN if no epoch gained.
        gains: (E, B) for each epoch and each block of the guard (a group of validation rows), the sum of weight * (loss of the
            original - loss); NaN for the epoch in which training diverged. E is 0 if there was no time to train the item.
        seconds: CPU seconds of training.
    """

    item: Item
    part: Part | None
    epoch: int
    value: float
    train: float
    gains: Tensor
    seconds: float

    @staticmethod
    def late(item: Item, before: float, original: Tensor) -> "ItemResult":
        """Result of an item that there was no time for.

        Args:
            before: the metric, as a loss, before the item.
            original: (B,) the original's sum of weight * loss in each block of the guard.
        """
        return ItemResult(item, None, 0, before, math.nan, original.new_zeros(0, len(original)), 0.0)

    @property
    def is_late(self) -> bool:
        return not len(self.gains)

    @property
    def parameters(self) -> int:
        """Number of fitted parameters of the part; 0 without a part."""
        return self.part.parameters if self.part is not None else 0


class ItemTraining:
    """State of one item's training, as it is stored in a checkpoint.

    Args:
        before: the metric, as a loss, before the item.
    """

    def __init__(self, item: Item, trainer: Any, before: float):
        self.item, self.trainer = item, trainer
        self.epoch, self.gains = 0, list[Tensor]()
        self.best: Part | None = None
        self.chosen, self.value, self.train, self.seconds = 0, before, math.nan, 0.0

    @property
    def is_done(self) -> bool:
        return self.epoch >= self.item.epochs or (bool(self.gains) and not bool(self.gains[-1].isfinite().all()))

    def step(self, table: Table, criterion: Criterion, original: Tensor) -> None:
        """Train one more epoch, and measure the part on training and validation rows.

        Args:
            original: (B,) the original's sum of weight * loss in each block of the guard.
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

    def result(self) -> ItemResult:
        return ItemResult(
            self.item, self.best, self.chosen, self.value, self.train, torch.stack(self.gains), self.seconds
        )
