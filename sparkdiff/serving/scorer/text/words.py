"""Conversion of text to words, and of words to words."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparkdiff.jvm import java_texts
from sparkdiff.serving.scorer import java_text as java
from sparkdiff.serving.scorer.text.base import BadValueError, Outputs, StagePart, TextInputs, TextStage, serves, whole


def all_of(column: list[Any], kind: type, what: str) -> list[Any]:
    """Check that all values of a column have this type, and return the column.

    Raises:
        BadValueError: a value has another type; the message ends with `what`, a description of what Spark reads.
    """
    for v in column:
        if not isinstance(v, kind):
            raise BadValueError(v, f"which Spark cannot take here; it reads {what}")
    return column


def words(column: list[Any]) -> list[list[Any]]:
    """Check that all values of a column are lists of str or None, and return the column; raises BadValueError."""
    for row in all_of(column, list, "lists of words"):
        for v in row:
            if v is not None and not isinstance(v, str):
                raise BadValueError(row, "which are not words; it reads lists of words")
    return column


LANGUAGES = ("az", "lt", "tr")
"""Languages with their own rules for lower case."""
OF_THE_JVM = "lower case in a JVM whose language is az, lt or tr"


def lower_case() -> Mapping[str, str]:
    """Result of `jvm.java_texts.lower_case`, for a stage that lowers text by the rules of the JVM's language.

    Raises:
        NotServedError: the JVM's language has its own rules for lower case (see LANGUAGES).
    """
    if (language := java_texts.language()) in LANGUAGES:
        raise java.NotServedError(f"it lowers text by the rules of the JVM's language, {language!r}")
    return java_texts.lower_case()


@serves("Tokenizer")
@dataclass(frozen=True)
class Tokenizer(TextStage):
    """Words in lower case, split at each white space.

    Source: org.apache.spark.ml.feature.Tokenizer.createTransformFunc.
    """

    kind = "array<string>"
    refusals = (OF_THE_JVM,)
    lowers_text = True
    others: Mapping[str, str]

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        return whole(cls(lower_case()))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        space = java.pattern(r"\s")
        return ([java.split(space, java.lower(v, self.others)) for v in all_of(column, str, "text")],)


@serves("RegexTokenizer")
@dataclass(frozen=True)
class RegexTokenizer(TextStage):
    """Matches of a regular expression, or the text between them.

    Source: org.apache.spark.ml.feature.RegexTokenizer.createTransformFunc.
    """

    kind = "array<string>"
    refusals = (
        "patterns that Python cannot say (`\\b`, `\\p{L}`, flags, possessive quantifiers, sets within sets)",
        OF_THE_JVM,
    )
    pattern: str
    gaps: bool
    lowers_text: bool
    shortest: int
    others: Mapping[str, str]

    def __post_init__(self) -> None:
        java.pattern(self.pattern)

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        lowers = stage.getToLowercase()
        return whole(
            cls(
                stage.getPattern(),
                stage.getGaps(),
                lowers,
                stage.getMinTokenLength(),
                lower_case() if lowers else {},
            )
        )

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        found = java.pattern(self.pattern)
        return ([self._words(v, found) for v in all_of(column, str, "text")],)

    def _words(self, text: str, found: Any) -> list[str]:
        text = java.lower(text, self.others) if self.lowers_text else text
        if not text.isascii() and any(
            not m[0] and text[m.start() : m.start() + 1] > "\uffff" for m in java.matches(found, text)
        ):
            raise BadValueError(
                text, "in which the pattern finds nothing before a character that Java then cuts in two"
            )
        parts = java.split(found, text) if self.gaps else [match[0] for match in java.matches(found, text)]
        return [p for p in parts if java.units(p) >= self.shortest]


@serves("StopWordsRemover")
@dataclass(frozen=True)
class StopWordsRemover(TextStage):
    """Words that are not in a list.

    Source: org.apache.spark.ml.feature.StopWordsRemover.transform.
    """

    kind = "array<string>"
    refusals = ("the locales az, lt and tr",)
    stops: tuple[str, ...]
    lowers_text: bool
    others: Mapping[str, str]

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        exact = stage.getCaseSensitive()
        # Spark makes the whole text a language: "tr_TR" is none that lowers text in its own way.
        if not exact and stage.getLocale().lower() in LANGUAGES:
            raise java.NotServedError(
                f"its locale {stage.getLocale()!r} lowers text by rules that Python does not have"
            )
        one = cls(tuple(stage.getStopWords()), not exact, {} if exact else java_texts.lower_case())
        return [StagePart(one, (i,), (i,)) for i in range(len(facts.inputs))]

    @functools.cached_property
    def stop_words(self) -> frozenset[Any]:
        return frozenset((java.lower(w, self.others) for w in self.stops) if self.lowers_text else self.stops)

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return ([[w for w in row if not self._stops(w)] for row in words(column)],)

    def _stops(self, word: str | None) -> bool:
        return (word if word is None or not self.lowers_text else java.lower(word, self.others)) in self.stop_words


@serves("NGram")
@dataclass(frozen=True)
class NGram(TextStage):
    """Every n consecutive words, joined by a blank.

    Source: org.apache.spark.ml.feature.NGram.createTransformFunc.
    """

    kind = "array<string>"
    n: int

    @classmethod
    def of(cls, stage: Any, facts: TextInputs) -> list[StagePart]:
        return whole(cls(stage.getN()))

    def run(self, column: list[Any]) -> Outputs:  # type: ignore[override]
        return ([self._ngrams(["null" if w is None else w for w in row]) for row in words(column)],)

    def _ngrams(self, row: list[str]) -> list[str]:
        return [" ".join(row[i : i + self.n]) for i in range(len(row)) if i + self.n <= len(row)]
