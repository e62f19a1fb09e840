"""A part: what growth may add to a pipeline, as tensors and as plain MLlib stages."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
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
