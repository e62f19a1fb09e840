"""Stages whose inputs can't enter torch before Spark has made numbers of them."""

from typing import Any, ClassVar

from sparkdiff.stages.base import StageModule
from sparkdiff.tensors.rows import Rows


class Prepared(StageModule):
    """A stage in front of which Spark runs plain stages, such as one that reads words: these are counted first."""

    preparation_note: ClassVar[str]
    """What Spark does first, in words that the plan shows."""

    @classmethod
    def prepared_columns(cls, stage: Any) -> tuple[str, ...]:
        """The columns that `preparation` makes and `forward` takes in place of `inputs`."""
        raise NotImplementedError

    @classmethod
    def preparation(cls, stage: Any) -> list[Any]:
        """Plain stages that Spark runs in front of the fitted one."""
        raise NotImplementedError

    def original_inputs(self, *columns: Rows) -> tuple[Any, ...]:
        """Inputs of Spark's stage, as Arrow arrays, from which `preparation` would make these columns."""
        raise NotImplementedError
