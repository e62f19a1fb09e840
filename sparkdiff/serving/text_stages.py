"""Stages that read or write text, in plain Python: those that a Scorer computes where Spark would otherwise have to.

Each is a small frozen object made of a fitted stage. `run` takes a list per input column, null as None, and returns what it
writes: a list, or numbers as tensor or sparse rows. `SERVED` finds the class of a stage.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparkdiff.jvm import text as spark
from sparkdiff.rows import Rows, SparseRows
from sparkdiff.serving import java_text as java
from sparkdiff.serving.java_text import NotServedError

KEPT = 100_000
"""Terms whose hashes are remembered at a time."""
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
    """A stage in Python; `run` is given the columns of its inputs, of the same length."""

    writes_objects: ClassVar[bool] = False
    """Whether it writes lists of text, or words, instead of numbers."""
    kind: ClassVar[str] = "array<string>"
    """The type in Spark of the objects that it writes."""
    refusals: ClassVar[tuple[str, ...]] = ()
    """The settings that `of` refuses, in words."""

    @property
    def lowers_text(self) -> bool:
        """Whether it lowers text, so that it depends on Python's version of Unicode."""
        return False

    @classmethod
    def of(cls, stage: Any, facts: "Facts") -> "list[Part]":
        """The parts of a fitted stage.

        Raises:
            NotServedError: with these settings it cannot be computed without Spark.
        """
        raise NotImplementedError

    def run(self, *columns: list[Any]) -> Outputs:
        raise NotImplementedError


@dataclass(frozen=True)
class Facts:
    """What is known of a stage's input columns: labels per column as far as their attributes tell them."""

    inputs: tuple[str, ...]
    labels: tuple[Sequence[str] | None, ...]


@dataclass(frozen=True)
class Part:
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


def whole(stage: TextStage, inputs: int = 1) -> list[Part]:
    """A stage that is one part with one output."""
    return [Part(stage, tuple(range(inputs)), (0,))]


# Text to numbers and back -----------------------------------------------------------------------------------------------


@serves("StringIndexerModel")
@dataclass(frozen=True)
class StringIndexer(TextStage):
    """The number of a label; of a number's label as Java prints it.

    Source: org.apache.spark.ml.feature.StringIndexerModel.getIndexer, after a cast to string.
    """

    refusals = ("handleInvalid='skip' where NaN is a label",)
    labels: tuple[str, ...]
    keep: bool

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        if stage.getHandleInvalid() == "skip":
            raise NotServedError(SKIPS)
        keep = stage.getHandleInvalid() == "keep"
        return [Part(cls(tuple(labels), keep), (i,), (i,)) for i, labels in enumerate(stage.labelsArray)]

    @functools.cached_property
    def places(self) -> dict[str, float]:
        return {label: float(i) for i, label in enumerate(self.labels)}

    @functools.cached_property
    def doubles(self) -> dict[str, float]:
        """The labels that doubles have; told by value, as versions of Java print some with other digits."""
        found = ((java.double_of(label), i) for i, label in enumerate(self.labels))
        return {x.hex(): float(i) for x, i in found if x is not None}

    @functools.cached_property
    def floats(self) -> dict[str, float]:
        """The same of numbers of single precision."""
        found = ((java.double_of(label), i) for i, label in enumerate(self.labels))
        with np.errstate(over="ignore"):
            return {float(np.float32(x)).hex(): float(i) for x, i in found if x is not None}

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        places = self.places
        found = [places[v] if type(v) is str and v in places else self._other(v) for v in column]
        return (torch.tensor(found, dtype=torch.float64),)

    def _other(self, value: Any) -> float:
        if isinstance(value, (bool, list)):
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
        if isinstance(value, Decimal):  # Spark's text has an exponent only where spark.sql.ansi.enabled is false
            return self.places.get(f"{value:f}", self.places.get(str(value)))
        return self.places.get(str(value))


@serves("IndexToString")
@dataclass(frozen=True)
class IndexToString(TextStage):
    """The label of a number, whose fraction is cut off; NaN is 0, as Java's toInt has it.

    Source: org.apache.spark.ml.feature.IndexToString.transform.
    """

    writes_objects = True
    kind = "string"
    refusals = ("labels that nothing tells",)
    labels: tuple[str, ...]

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        labels = stage.getLabels() if stage.isDefined("labels") else ()
        labels = labels or facts.labels[0]
        if not labels:
            raise NotServedError("it has no labels, and those of its input are not known here; set its Param labels")
        return whole(cls(tuple(labels)))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return ([None if v is None else self._label(v) for v in column],)

    def _label(self, value: Any) -> str:
        if isinstance(value, (str, list)):
            raise BadValueError(value, "which is no number")
        known = -1 < value < len(self.labels)
        if not known and value == value:
            raise BadValueError(value, f"but it has labels 0 to {len(self.labels) - 1} only")
        return self.labels[int(value) if known else 0]


# Words ------------------------------------------------------------------------------------------------------------------


def texts(column: list[Any]) -> list[str]:
    """The column, which must hold text throughout."""
    for v in column:
        if not isinstance(v, str):
            raise BadValueError(v, "which Spark cannot take here; it reads text")
    return column


def lists(column: list[Any]) -> list[list[Any]]:
    """The column, which must hold lists throughout."""
    for v in column:
        if not isinstance(v, list):
            raise BadValueError(v, "which Spark cannot take here; it reads lists of words")
    return column


def words(column: list[Any]) -> list[list[Any]]:
    """The column, which must hold lists of text and null throughout."""
    for row in lists(column):
        for v in row:
            if v is not None and not isinstance(v, str):
                raise BadValueError(row, "which are not words; it reads lists of words")
    return column


@serves("Tokenizer")
@dataclass(frozen=True)
class Tokenizer(TextStage):
    """Lower case, cut at each white space.

    Source: org.apache.spark.ml.feature.Tokenizer.createTransformFunc.
    """

    writes_objects = True
    others: Mapping[str, str]

    @property
    def lowers_text(self) -> bool:
        return True

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        return whole(cls(spark.lower_case()))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        space = java.pattern(r"\s")
        return ([java.split(space, java.lower(v, self.others)) for v in texts(column)],)


@serves("RegexTokenizer")
@dataclass(frozen=True)
class RegexTokenizer(TextStage):
    """What a regular expression finds, or what lies between.

    Source: org.apache.spark.ml.feature.RegexTokenizer.createTransformFunc.
    """

    writes_objects = True
    refusals = ("patterns that Python cannot say (`\\b`, `\\p{L}`, flags, possessive quantifiers, sets within sets)",)
    pattern: str
    gaps: bool
    lowers: bool
    shortest: int
    others: Mapping[str, str]

    @property
    def lowers_text(self) -> bool:
        return self.lowers

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        java.pattern(stage.getPattern())
        lowers = stage.getToLowercase()
        if lowers and (language := spark.language()) in LANGUAGES:
            raise NotServedError(f"it lowers text by the rules of the JVM's language, {language!r}")
        others = spark.lower_case() if lowers else {}
        return whole(cls(stage.getPattern(), stage.getGaps(), lowers, stage.getMinTokenLength(), others))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        found = java.pattern(self.pattern)
        return ([self._words(v, found) for v in texts(column)],)

    def _words(self, text: str, found: Any) -> list[str]:
        text = java.lower(text, self.others) if self.lowers else text
        if not text.isascii() and any(
            not m[0] and text[m.start() : m.start() + 1] > "\uffff" for m in java.matches(found, text)
        ):
            raise BadValueError(
                text, "in which the pattern finds nothing before a character that Java then cuts in two"
            )
        parts = java.split(found, text) if self.gaps else [match[0] for match in java.matches(found, text)]
        return [p for p in parts if java.units(p) >= self.shortest]


LANGUAGES = ("az", "lt", "tr")
"""Languages with rules of their own for lower case."""


@serves("StopWordsRemover")
@dataclass(frozen=True)
class StopWordsRemover(TextStage):
    """The words that are not in a list.

    Source: org.apache.spark.ml.feature.StopWordsRemover.transform.
    """

    writes_objects = True
    refusals = ("the locales az, lt and tr",)
    stops: tuple[str, ...]
    exact: bool
    others: Mapping[str, str]

    @property
    def lowers_text(self) -> bool:
        return not self.exact

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        exact = stage.getCaseSensitive()
        language = stage.getLocale().replace("-", "_").partition("_")[0].lower()
        if not exact and language in LANGUAGES:
            raise NotServedError(f"its locale {stage.getLocale()!r} lowers text by rules that Python does not have")
        one = cls(tuple(stage.getStopWords()), exact, {} if exact else spark.lower_case())
        return [Part(one, (i,), (i,)) for i in range(len(facts.inputs))]

    @functools.cached_property
    def known(self) -> frozenset[Any]:
        return frozenset(self.stops if self.exact else (java.lower(w, self.others) for w in self.stops))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return ([[w for w in row if not self._stops(w)] for row in words(column)],)

    def _stops(self, word: str | None) -> bool:
        return (word if self.exact or word is None else java.lower(word, self.others)) in self.known


@serves("NGram")
@dataclass(frozen=True)
class NGram(TextStage):
    """Each n words that follow one another, with a blank between.

    Source: org.apache.spark.ml.feature.NGram.createTransformFunc.
    """

    writes_objects = True
    n: int

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        return whole(cls(stage.getN()))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return ([self._joined(["null" if w is None else w for w in row]) for row in words(column)],)

    def _joined(self, row: list[str]) -> list[str]:
        return [" ".join(row[i : i + self.n]) for i in range(len(row) - self.n + 1)]


# Words to counts --------------------------------------------------------------------------------------------------------


def sparse(rows: Sequence[Mapping[int, float]], width: int) -> SparseRows:
    """Rows given as entries by index."""
    ordered = [sorted(row.items()) for row in rows]
    indices = torch.tensor([i for row in ordered for i, _ in row], dtype=torch.int64)
    values = torch.tensor([v for row in ordered for _, v in row], dtype=torch.float64)
    offsets = torch.tensor([0, *itertools.accumulate(map(len, ordered))], dtype=torch.int64)
    return SparseRows(indices, values, offsets, width)


@dataclass(frozen=True)
class Hashing(TextStage):
    """The common part of the stages that find a place by a hash."""

    width: int

    @functools.cached_property
    def found(self) -> dict[Any, int]:
        return {}

    def place(self, key: Any) -> int:
        """The place of a term, remembered by the term and its type, since 1, 1.0 and True are equal."""
        found, kind = self.found, (key, type(key))
        place = found.get(kind)
        if place is None:
            place = self.hashed(key) % self.width
            if len(found) >= KEPT:  # another thread may clear it at any time
                found.clear()
            found[kind] = place
        return place

    def hashed(self, key: Any) -> int:
        raise NotImplementedError


def hashed_text(text: str, spark2: bool = False) -> int:
    try:
        return java.hashed_bytes(text.encode(), spark2)
    except UnicodeEncodeError:
        raise BadValueError(text, "which is no text of whole characters (a lone surrogate)") from None


@serves("HashingTF")
@dataclass(frozen=True)
class HashingTF(Hashing):
    """How often each word occurs, or 1, at the place of its hash.

    Source: org.apache.spark.ml.feature.HashingTF.transform and hashFunc.
    """

    binary: bool
    spark2: bool

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        return whole(cls(stage.getNumFeatures(), stage.getBinary(), spark.hashes_as_spark_2(stage)))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        rows = []
        for terms in lists(column):
            row: dict[int, float] = {}
            for term in terms:
                place = self.place(term if term == term and term != 0.0 else _exact(term))
                row[place] = 1.0 if self.binary else row.get(place, 0.0) + 1.0
            rows.append(row)
        return (sparse(rows, self.width),)

    def hashed(self, key: Any) -> int:
        if isinstance(key, _Exact):
            key = key.value
        if isinstance(key, str):
            return hashed_text(key, self.spark2)
        if key is None:
            return java.SEED
        if isinstance(key, (bool, np.int32)):
            return java.hashed_words(int(key), 1)
        if isinstance(key, int):
            return java.hashed_words(key, 2)
        if isinstance(key, np.float32):
            return java.hashed_float(float(key))
        if isinstance(key, float):
            return java.hashed_double(key)
        raise BadValueError(key, "which is neither text nor a plain number")


@dataclass(frozen=True)
class _Exact:
    """A number that is equal to another one (0.0 and -0.0), or not even to itself."""

    text: str
    value: Any = field(compare=False)


def _exact(value: Any) -> Any:
    return (
        _Exact(f"{type(value).__name__} {float(value).hex()}", value)
        if isinstance(value, (float, np.float32))
        else value
    )


@serves("CountVectorizerModel")
@dataclass(frozen=True)
class CountVectorizer(TextStage):
    """How often each word of a vocabulary occurs.

    Source: org.apache.spark.ml.feature.CountVectorizerModel.transform.
    """

    vocabulary: tuple[str, ...]
    least: float
    binary: bool

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        return whole(cls(tuple(stage.vocabulary), stage.getMinTF(), stage.getBinary()))

    @functools.cached_property
    def places(self) -> dict[Any, int]:
        return {word: i for i, word in enumerate(self.vocabulary)}

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return (sparse([self._counted(row) for row in words(column)], len(self.vocabulary)),)

    def _counted(self, row: list[Any]) -> dict[int, float]:
        counts = counted(row, self.places)
        least = self.least if self.least >= 1.0 else len(row) * self.least
        return {i: 1.0 if self.binary else n for i, n in counts.items() if n >= least}


def counted(row: list[Any], places: Mapping[Any, int]) -> dict[int, float]:
    """How often each known word occurs, by its place."""
    counts: dict[int, float] = {}
    for word in row:
        if (place := places.get(word)) is not None:
            counts[place] = counts.get(place, 0.0) + 1.0
    return counts


@dataclass(frozen=True)
class WordShares(TextStage):
    """What a translated Word2VecModel reads: the share of each known word in a row, and how many words the row has."""

    vocabulary: tuple[str, ...]

    @functools.cached_property
    def places(self) -> dict[Any, int]:
        return {word: i for i, word in enumerate(self.vocabulary)}

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        rows = [
            {i: (1.0 / len(row)) * n for i, n in counted(row, self.places).items()} if row else {}
            for row in words(column)
        ]
        return sparse(rows, len(self.vocabulary)), torch.tensor([float(len(row)) for row in column]).double()


@serves("FeatureHasher")
@dataclass(frozen=True)
class FeatureHasher(Hashing):
    """Numbers at the place of their column's hash; text, booleans and named columns as 1 at that of `column=value`.

    Source: org.apache.spark.ml.feature.FeatureHasher.transform.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]

    @classmethod
    def of(cls, stage: Any, facts: Facts) -> list[Part]:
        names = stage.getInputCols()
        categories = stage.getOrDefault("categoricalCols") if stage.isDefined("categoricalCols") else ()
        one = cls(stage.getNumFeatures(), tuple(names), tuple(categories))
        return whole(one, len(names))

    def run(self, *columns: list[Any]) -> Outputs:
        return (sparse([self._row(values) for values in zip(*columns, strict=True)], self.width),)

    def _row(self, values: tuple[Any, ...]) -> dict[int, float]:
        row: dict[int, float] = {}
        for name, v in zip(self.names, values, strict=True):
            if v is None:
                continue
            if isinstance(v, (str, bool)) or name in self.categories:
                place, value = self.place(f"{name}={java_text(v)}"), 1.0
            else:
                place, value = self.place(name), number(v)
            row[place] = row[place] + value if place in row else value
        return row

    def hashed(self, key: Any) -> int:
        return hashed_text(key)


def java_text(v: Any) -> str:
    """toString of a value."""
    if isinstance(v, str):
        return v
    if isinstance(v, (bool, np.bool_)):
        return "true" if v else "false"
    if isinstance(v, (np.float32, float)):
        single = isinstance(v, np.float32)
        x = float(v)
        text = java.float_text(x) if single else java.double_text(x)
        digits = text.partition("E")[0].replace(".", "").lstrip("-0").rstrip("0")
        if len(digits) * math.isfinite(x) > (6 if single else 15) or 0 < abs(x) < 1e-30:
            raise BadValueError(v, "of which versions of Java print different digits: round it, or make text of it")
        return text
    if isinstance(v, (int, np.integer, Decimal)):
        return str(v)
    raise BadValueError(v, "which is neither text nor a number")


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
