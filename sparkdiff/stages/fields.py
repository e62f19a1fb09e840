"""Stages whose computation depends on what is known of their input columns before a row is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class StaysInSparkError(Exception):
    """What a stage's input columns hold keeps it in Spark, for the reason given; never leaves the package."""


UNDECIDED = "decided when data are seen"
UNKNOWN_SLOT = "(of unknown width)"
"""What the only slot of a vector of unknown width is called until data are seen; an assembler adds it to the column's name."""


class Field(NamedTuple):
    """What is known of an input column before a row is seen.

    Attributes:
        vector: whether it holds vectors.
        attributes: its `ml_attr` metadata, as Spark writes them; None where it has none.
        storage: how Spark stores each of its vectors, as the `storage` of a StageModule.
        kind: its type, as Spark's `simpleString`.
    """

    vector: bool
    attributes: Mapping[str, Any] | None
    storage: str = ""
    kind: str = ""
