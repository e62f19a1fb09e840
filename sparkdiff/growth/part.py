"""A part: what growth may add to a pipeline, as tensors and as plain MLlib stages."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.table import Split, Table


@dataclass(frozen=True)
class Place:
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
    def cost(self) -> float:
        """What it costs to serve, in multiplications and look-ups per row (see `costs`)."""

    @abstractmethod
    def stages(self, place: Place) -> Stages:
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
