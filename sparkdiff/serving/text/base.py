"""What all stages that read or write text have in common, and how they are found by the class of a fitted stage."""

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
    """A value for which Spark fails. The text goes on from "column 'x' holds <value>"."""

    def __init__(self, value: Any, why: str):
        super().__init__(why)
        self.value = value


@dataclass(frozen=True)
class TextStage:
    """A stage in Python; `run` is given the columns of its inputs, of the same length.

    One that may lower text tells by its attribute `lowers_text` whether it does: it depends on Python's version of Unicode.
    """

    kind: ClassVar[str] = ""
    """The type in Spark of the objects that it writes; empty where it writes numbers."""
    refusals: ClassVar[tuple[str, ...]] = ()
    """The settings that `of` refuses, in words."""

    @classmethod
    def of(cls, stage: Any, facts: "TextInputs") -> "list[StagePart]":
        """The parts of a fitted stage.

        Raises:
            NotServedError: with these settings it cannot be computed without Spark.
        """
        raise NotImplementedError

    def run(self, *columns: list[Any]) -> Outputs:
        raise NotImplementedError


@dataclass(frozen=True)
class TextInputs:
    """What is known of a stage's input columns: labels per column as far as their attributes tell them.

    Attributes:
        java: the release of Java whose text of numbers the stage reads.
    """

    inputs: tuple[str, ...]
    labels: tuple[Sequence[str] | None, ...]
    java: int


@dataclass(frozen=True)
class StagePart:
    """A part of a stage that can be computed alone: by the positions of its inputs and outputs among the stage's."""

    stage: TextStage
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


SERVED: "dict[str, type[TextStage]]" = {}


def serves(name: str) -> Callable[[_Stage], _Stage]:
    """Make a class the Python form of the stages of this class of pyspark.ml.feature."""

    def decorate(kind: _Stage) -> _Stage:
        SERVED[f"pyspark.ml.feature.{name}"] = kind
        return kind

    return decorate


def whole(stage: TextStage, inputs: int = 1) -> list[StagePart]:
    """A stage that is one part with one output."""
    return [StagePart(stage, tuple(range(inputs)), (0,))]


def number(v: Any) -> float:
    if isinstance(v, (int, float, np.number, Decimal)):
        return float(v)
    raise BadValueError(v, "which is neither text nor a number")


def as_objects(column: Tensor, null: Tensor | None, kind: str) -> list[Any]:
    """A column of numbers (n,) as Python's, of the type that it has in Spark."""
    values: list[Any] = column.tolist()
    if kind in ("int", "bigint"):
        values = [v if v != v else int(v) for v in values]
    elif kind == "float":
        values = [np.float32(v) for v in values]
    if null is None:
        return values
    return [None if absent else v for v, absent in zip(values, null.tolist(), strict=True)]
