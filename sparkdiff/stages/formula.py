"""The hidden stages of an RFormulaModel: VectorAttributeRewriter, ColumnPruner, and its label."""

from typing import Any

from sparkdiff.stages.affine import Identity
from sparkdiff.stages.base import StageModule, leave_in_spark, register
from sparkdiff.tensors.rows import Rows

leave_in_spark(
    "pyspark.ml.feature.RFormulaModel",
    "its parts are not accessible here (Spark Connect, or a cluster that denies access to Java objects)",
)
leave_in_spark("sparkdiff.jvm.rformula.FormulaLabel", "it makes the label, which only the loss reads", passed_over=True)


@register("sparkdiff.jvm.rformula.VectorAttributeRewriter")
class AttributeRewriting(Identity):
    """The vector itself. Spark only renames its slots from temporary columns to the terms of the formula."""

    storage = "compressed"  # that of the assembler before it

    @classmethod
    def inputs(cls, stage: Any) -> tuple[str, ...]:
        return (stage.getVectorCol(),)

    outputs = inputs

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, d)
        return x


@register("sparkdiff.jvm.rformula.ColumnPruner")
class ColumnPruning(StageModule):
    """A stage without computation: Spark drops temporary columns here, which the network never has."""

    @classmethod
    def inputs(cls, stage: Any) -> tuple[str, ...]:
        return ()

    outputs = inputs

    def forward(self) -> tuple[Rows, ...]:
        return ()
