"""Stages whose inputs can enter torch only after Spark has turned them into numbers."""

from typing import Any, ClassVar

from sparkdiff.stages.base import StageModule
from sparkdiff.tensors.rows import Rows


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
