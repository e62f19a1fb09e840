"""Counts of words and other values, by a hash or by a vocabulary."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from sparkdiff.jvm import java_texts
from sparkdiff.serving.scorer import java_text as java
from sparkdiff.serving.scorer.text.base import (
    BadValueError,
    Outputs,
    StagePart,
    TextInputs,
    TextStage,
    number,
    serves,
    whole,
)
from sparkdiff.serving.scorer.text.words import all_of, words
from sparkdiff.tensors.rows import SparseRows

KEPT = 100_000
"""Largest number of terms whose hashes are cached."""


def sparse(rows: Sequence[Mapping[int, float]], width: int) -> SparseRows:
    """Sparse rows from entries by index."""
    ordered = [sorted(row.items()) for row in rows]
    indices = torch.tensor([i for row in ordered for i, _ in row], dtype=torch.int64)
    values = torch.tensor([v for row in ordered for _, v in row], dtype=torch.float64)
    offsets = torch.tensor([0, *itertools.accumulate(map(len, ordered))], dtype=torch.int64)
    return SparseRows(indices, values, offsets, width)


@dataclass(frozen=True)
class Hashing(TextStage):
    """Base of the stages that put a term at the index hash(term) % width, its place."""

    width: int

    @functools.cached_property
    def place_cache(self) -> dict[Any, int]:
        return {}

    def place(self, key: Any) -> int:
        """Place of a term. It is cached by the term and the term's type, because 1, 1.0 and True are equal as dict
        keys.
        """
        found, kind = self.place_cache, (key, type(key))
        place = found.get(kind)
        if place is None:
            place = self.slot_hash(key) % self.width
            if len(found) >= KEPT:  # another thread may clear it at any time
                found.clear()
            found[kind] = place
        return place

    def slot_hash(self, key: Any) -> int:
        raise NotImplementedError


def hash_of_text(text: str, spark2: bool = False) -> int:
    try:
        return java.hash_of_bytes(text.encode(), spark2)
    except UnicodeEncodeError:
        raise BadValueError(text, "which is no text of whole characters (a lone surrogate)") from None


@serves("HashingTF")
@dataclass(frozen=True)
class HashingTF(Hashing):
    """Count of each word (or 1 if binary), at the place that the word's hash determines.

    Source: org.apache.spark.ml.feature.HashingTF.transform and hashFunc.
    """

    binary: bool
    spark2: bool

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        return whole(cls(stage.getNumFeatures(), stage.getBinary(), java_texts.hashes_as_spark_2(stage)))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        rows = []
        for terms in all_of(column, list, "lists of words"):
            row: dict[int, float] = {}
            for term in terms:
                place = self.place(term if term == term and term != 0.0 else _exact(term))
                row[place] = 1.0 if self.binary else row.get(place, 0.0) + 1.0
            rows.append(row)
        return (sparse(rows, self.width),)

    def slot_hash(self, key: Any) -> int:
        if isinstance(key, _Exact):
            key = key.value
        if isinstance(key, str):
            return hash_of_text(key, self.spark2)
        if key is None:
            return java.SEED
        if isinstance(key, (bool, np.int32)):
            return java.hash_of_words(int(key), 1)
        if isinstance(key, int):
            return java.hash_of_words(key, 2)
        if isinstance(key, np.float32):
            return java.hash_of_float(float(key))
        if isinstance(key, float):
            return java.hash_of_double(key)
        raise BadValueError(key, "which is neither text nor a plain number")


@dataclass(frozen=True)
class _Exact:
    """Dict key for a number that == does not identify: 0.0 equals -0.0, and NaN does not equal itself."""

    text: str
    value: Any = field(compare=False)


def _exact(value: Any) -> Any:
    return (
        _Exact(f"{type(value).__name__} {float(value).hex()}", value)
        if isinstance(value, (float, np.float32))
        else value
    )


@dataclass(frozen=True)
class Vocabulary(TextStage):
    """Base of stages with a vocabulary."""

    vocabulary: tuple[str, ...]

    @functools.cached_property
    def places(self) -> dict[Any, int]:
        return {word: i for i, word in enumerate(self.vocabulary)}


@serves("CountVectorizerModel")
@dataclass(frozen=True)
class CountVectorizer(Vocabulary):
    """Count of each word of a vocabulary.

    Source: org.apache.spark.ml.feature.CountVectorizerModel.transform.
    """

    least: float
    binary: bool

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        return whole(cls(tuple(stage.vocabulary), stage.getMinTF(), stage.getBinary()))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return (sparse([self._counts_of(row) for row in words(column)], len(self.vocabulary)),)

    def _counts_of(self, row: list[Any]) -> dict[int, float]:
        counts = word_counts(row, self.places)
        least = self.least if self.least >= 1.0 else len(row) * self.least
        return {i: 1.0 if self.binary else n for i, n in counts.items() if n >= least}


def word_counts(row: list[Any], places: Mapping[Any, int]) -> dict[int, float]:
    """Count of each word that is in `places`, by its place."""
    counts: dict[int, float] = {}
    for word in row:
        if (place := places.get(word)) is not None:
            counts[place] = counts.get(place, 0.0) + 1.0
    return counts


@dataclass(frozen=True)
class WordShares(Vocabulary):
    """Input of a translated Word2VecModel: share of each known word among all words of a row, and the row's number of
    words.
    """

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        rows = [
            {i: (1.0 / len(row)) * n for i, n in word_counts(row, self.places).items()} if row else {}
            for row in words(column)
        ]
        return sparse(rows, len(self.vocabulary)), torch.tensor([float(len(row)) for row in column]).double()


@serves("FeatureHasher")
@dataclass(frozen=True)
class FeatureHasher(Hashing):
    """A number at the place of its column name's hash; for text, booleans and categorical columns, 1 at the place of
    the hash of `column=value`.

    Attributes:
        java: the release of Java by which numbers are converted to text.

    Source: org.apache.spark.ml.feature.FeatureHasher.transform.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    java: int

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        names = stage.getInputCols()
        categories = stage.getOrDefault("categoricalCols") if stage.isDefined("categoricalCols") else ()
        return whole(cls(stage.getNumFeatures(), tuple(names), tuple(categories), facts.java), len(names))

    def run(self, *columns: list[Any]) -> Outputs:
        return (sparse([self._row(values) for values in zip(*columns, strict=True)], self.width),)

    def _row(self, values: tuple[Any, ...]) -> dict[int, float]:
        row: dict[int, float] = {}
        for name, v in zip(self.names, values, strict=True):
            if v is None:
                continue
            if isinstance(v, (str, bool)) or name in self.categories:
                place, value = self.place(f"{name}={java_text(v, self.java)}"), 1.0
            else:
                place, value = self.place(name), number(v)
            row[place] = row[place] + value if place in row else value
        return row

    def slot_hash(self, key: Any) -> int:
        return hash_of_text(key)


def java_text(v: Any, release: int) -> str:
    """Text of a value by toString of this release of Java."""
    if isinstance(v, (bool, np.bool_)):
        return "true" if v else "false"
    if isinstance(v, (np.float32, float)):
        return java_texts.number_text(v, release)
    if isinstance(v, (str, int, np.integer, Decimal)):
        return str(v)
    raise BadValueError(v, "which is neither text nor a number")
