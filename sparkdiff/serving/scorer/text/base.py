"""Base of all stages that read or write text, and their registry by the class of a fitted stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor

from sparkdiff.tensors.rows import Rows

SKIPS = "handleInvalid='skip' drops rows, and a request has an answer for each row; use 'error' or 'keep'"


Outputs = tuple[list[Any] | Rows, ...]


_Stage = TypeVar("_Stage", bound="type[TextStage]")


class BadValueError(Exception):
    """A value on which Spark fails. The message completes the sentence "column 'x' holds <value>, ..."."""

    def __init__(self, value: Any, why: str):
        super().__init__(why)
        self.value = value


@dataclass(frozen=True)
class TextStage:
    """A stage in Python; `run` takes its input columns, all of the same length.

    A stage class that can convert text to lower case has an attribute `lowers_text`: True if the stage does so, and
    thus depends on Python's version of Unicode.
    """

    kind: ClassVar[str] = ""
    """Spark type of the objects that the stage writes; empty if it writes numbers."""
    refusals: ClassVar[tuple[str, ...]] = ()
    """Descriptions of the settings that `of` refuses, for the documentation."""

    @classmethod
    def of(cls, stage: Any, facts: "TextInputs") -> "list[StagePart]":
        """Parts of a fitted stage.

        Raises:
            NotServedError: with its settings, the stage cannot be computed without Spark.
        """
        raise NotImplementedError

    def run(self, *columns: list[Any]) -> Outputs:
        raise NotImplementedError


@dataclass(frozen=True)
class TextInputs:
    """Facts about a stage's input columns.

    Attributes:
        inputs: names of the columns.
        labels: labels of each column, None if unknown; empty if the stage is no IndexToString.
        java: the release of Java by which numbers are converted to text.
    """

    inputs: tuple[str, ...]
    labels: tuple[Sequence[str] | None, ...]
    java: int


@dataclass(frozen=True)
class StagePart:
    """A part of a stage that can be computed alone, with the indices of its inputs and outputs among those of the
    stage.
    """

    stage: TextStage
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


SERVED: "dict[str, type[TextStage]]" = {}


def serves(name: str) -> Callable[[_Stage], _Stage]:
    """Register a class as the Python form of the stages of this class of pyspark.ml.feature."""

    def decorate(kind: _Stage) -> _Stage:
        SERVED[f"pyspark.ml.feature.{name}"] = kind
        return kind

    return decorate


def whole(stage: TextStage, inputs: int = 1) -> list[StagePart]:
    """The parts of a stage that has one output and this number of inputs: a list of one part, the stage as a whole."""
    return [StagePart(stage, tuple(range(inputs)), (0,))]


def number(v: Any) -> float:
    if isinstance(v, (int, float, np.number, Decimal)):
        return float(v)
    raise BadValueError(v, "which is neither text nor a number")


def as_objects(column: Tensor, null: Tensor | None, kind: str) -> list[Any]:
    """A column of numbers (n,) as Python objects of its type in Spark."""
    values: list[Any] = column.tolist()
    if kind in ("int", "bigint"):
        values = [v if v != v else int(v) for v in values]
    elif kind == "float":
        values = [np.float32(v) for v in values]
    if null is None:
        return values
    return [None if absent else v for v, absent in zip(values, null.tolist(), strict=True)]
