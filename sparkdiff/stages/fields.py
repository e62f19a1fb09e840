"""Stages whose computation depends on what is known of their input columns before a row is seen."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from sparkdiff.stages.base import StageModule


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


class FieldReader(StageModule):
    """A stage that computes by what its input columns are, such as how many categories they hold."""

    undecided: ClassVar[str] = "hold categories"
    """What of its input columns the stage can't know before data are seen."""

    @classmethod
    def wants_fields(cls, stage: Any) -> bool:
        """Whether what the input columns are (their `ml_attr` metadata) decides what the stage computes."""
        return True

    @classmethod
    def from_fields(cls, stage: Any, fields: Sequence[Field | None]) -> "FieldReader":
        """The module of a fitted stage, given what its input columns are; None is a column that nothing is known of yet.

        Raises:
            StaysInSparkError: these columns keep it in Spark.
        """
        raise NotImplementedError


def values_of(attribute: Mapping[str, Any]) -> int:
    """How many values a nominal attribute says that it has; 0 if it doesn't say."""
    return int(attribute["num_vals"]) if "num_vals" in attribute else len(attribute.get("vals", ()))


def slots_of(attributes: Mapping[str, Any]) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """Of a vector's `ml_attr` metadata: kind ("numeric", "binary", "nominal") and attribute of each entry that they describe."""
    kinds = (attributes.get("attrs") or {}).items()
    return {int(a["idx"]): (kind, a) for kind, each in kinds for a in each if "idx" in a}
