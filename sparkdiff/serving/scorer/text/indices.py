"""Conversion of text to indices and back."""

import functools
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from sparkdiff.jvm.java_texts import texts_of
from sparkdiff.serving.scorer.java_text import NotServedError
from sparkdiff.serving.scorer.text.base import (
    SKIPS,
    BadValueError,
    Outputs,
    StagePart,
    TextInputs,
    TextStage,
    serves,
    whole,
)


@serves("StringIndexerModel")
@dataclass(frozen=True)
class StringIndexer(TextStage):
    """Index of a text among the labels; a number is converted to the text that Java prints for it.

    Attributes:
        java: the release of Java by which numbers are converted to text.

    Source: org.apache.spark.ml.feature.StringIndexerModel.getIndexer, after a cast to string.
    """

    refusals = ("handleInvalid='skip' where NaN is a label",)
    labels: tuple[str, ...]
    keep: bool
    java: int

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        if stage.getHandleInvalid() == "skip":
            raise NotServedError(SKIPS)
        keep = stage.getHandleInvalid() == "keep"
        return [
            StagePart(cls(tuple(labels), keep, facts.java), (i,), (i,)) for i, labels in enumerate(stage.labelsArray)
        ]

    @functools.cached_property
    def places(self) -> dict[str, float]:
        return {label: float(i) for i, label in enumerate(self.labels)}

    @functools.cached_property
    def doubles(self) -> dict[str, float]:
        return self._places_of("double")

    @functools.cached_property
    def floats(self) -> dict[str, float]:
        return self._places_of("float")

    def _places_of(self, kind: str) -> dict[str, float]:
        """Indices of the labels that this Java version prints for a number of type `kind`, by the number in
        hexadecimal.
        """
        return {
            x.hex(): self.places[label] for label, x, text in texts_of(self.labels, kind, self.java) if text == label
        }

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        places = self.places
        found = [places[v] if type(v) is str and v in places else self._other(v) for v in column]
        return (torch.tensor(found, dtype=torch.float64),)

    def _other(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (str, int, float, np.number, Decimal, type(None))):
            raise BadValueError(value, "which is neither text nor a plain number")
        place = None if value is None else self._place(value)
        if place is not None:
            return place
        if self.keep:
            return float(len(self.labels))
        if value is None:
            raise BadValueError(value, "and handleInvalid='error' refuses null; set it to 'keep', or fill the column")
        raise BadValueError(value, "which is not among the labels that it was fitted to; set handleInvalid to 'keep'")

    def _place(self, value: Any) -> float | None:
        if isinstance(value, np.float32):
            return self.floats.get(float(value).hex())
        if isinstance(value, float):
            return self.doubles.get(float(value).hex())
        if isinstance(value, Decimal):  # Spark's text has an exponent only if spark.sql.ansi.enabled is false
            return self.places.get(f"{value:f}", self.places.get(str(value)))
        return self.places.get(str(value))


@serves("IndexToString")
@dataclass(frozen=True)
class IndexToString(TextStage):
    """Label at the index that a number gives, truncated to an integer; NaN gives 0, as with Java's toInt.

    Source: org.apache.spark.ml.feature.IndexToString.transform.
    """

    kind = "string"
    refusals = ("labels that nothing tells",)
    labels: tuple[str, ...]

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        labels = stage.getLabels() if stage.isDefined("labels") else ()
        labels = labels or facts.labels[0]
        if not labels:
            raise NotServedError("it has no labels, and those of its input are not known here; set its Param labels")
        return whole(cls(tuple(labels)))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return ([None if v is None else self._label(v) for v in column],)

    def _label(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number, Decimal)):
            raise BadValueError(value, "which is no number")
        known = -1 < value < len(self.labels)
        if not known and value == value:
            raise BadValueError(value, f"but it has labels 0 to {len(self.labels) - 1} only")
        return self.labels[int(value) if known else 0]
