"""Bases of the stages that need more of their inputs than values: facts that are known before a row is read (FieldReader), or
plain stages that Spark runs first, because torch cannot hold the inputs themselves (PreparedStage)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from sparkdiff.stages.base import StageModule
from sparkdiff.tensors.rows import Rows


class StaysInSparkError(Exception):
    """A stage must stay in Spark because of its input columns; the message is the reason. Never leaves the package."""


UNDECIDED = "decided when data are seen"
UNKNOWN_SLOT = "(of unknown width)"
"""Name of the only slot of a vector whose width is unknown until data are seen; an assembler appends this name to that
of the column.
"""


class Field(NamedTuple):
    """The facts about an input column that are known before a row is read.

    Attributes:
        vector: whether it holds vectors.
        attributes: its `ml_attr` metadata, as Spark writes them; None if it has none.
        storage: the form in which Spark stores each of its vectors, like the `storage` of a StageModule.
        kind: its type, as Spark's `simpleString`.
    """

    vector: bool
    attributes: Mapping[str, Any] | None
    storage: str = ""
    kind: str = ""


class FieldReader(StageModule):
    """A stage whose computation depends on facts about its input columns, such as their number of categories."""

    undecided: ClassVar[str] = "hold categories"
    """The fact about its input columns that the stage can't know before data are seen; for this one the plan prints
    "whether x, y hold categories is decided when data are seen".
    """

    @classmethod
    def wants_fields(cls, stage: Any) -> bool:
        """True if facts about the input columns (their `ml_attr` metadata) decide what this fitted stage computes."""
        return True

    @classmethod
    def from_fields(cls, stage: Any, fields: Sequence[Field | None]) -> "FieldReader":
        """Module of a fitted stage, given the facts about its input columns; None for a column without known facts.

        Raises:
            StaysInSparkError: these columns keep it in Spark.
        """
        raise NotImplementedError


def values_of(attribute: Mapping[str, Any]) -> int:
    """Number of values that a nominal attribute declares; 0 if it declares none."""
    return int(attribute["num_vals"]) if "num_vals" in attribute else len(attribute.get("vals", ()))


def slots_of(attributes: Mapping[str, Any]) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """Index -> (kind: "numeric", "binary" or "nominal"; attribute) of each entry that a vector's `ml_attr` metadata has."""
    kinds = (attributes.get("attrs") or {}).items()
    return {int(a["idx"]): (kind, a) for kind, each in kinds for a in each if "idx" in a}


class PreparedStage(StageModule):
    """A stage before which Spark runs plain stages that make its inputs; for example, a stage that reads words needs
    their counts.
    """

    preparation_note: ClassVar[str]
    """Description of Spark's preparation, which the plan shows."""

    @classmethod
    def prepared_columns(cls, stage: Any) -> tuple[str, ...]:
        """Columns that `preparation` makes and `forward` takes in place of `inputs`."""
        raise NotImplementedError

    @classmethod
    def preparation(cls, stage: Any) -> list[Any]:
        """Plain stages that Spark runs before the fitted one."""
        raise NotImplementedError

    def original_inputs(self, *columns: Rows) -> tuple[Any, ...]:
        """The inverse of `preparation`: inputs of Spark's stage, as Arrow arrays, that give these prepared columns."""
        raise NotImplementedError
