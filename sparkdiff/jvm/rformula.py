"""The stages inside an RFormulaModel, which pyspark does not show."""

from typing import Any

from pyspark.ml import Transformer
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable, JavaMLWritable
from pyspark.ml.wrapper import JavaParams, JavaTransformer
from pyspark.sql import DataFrame, functions as F

from sparkdiff.jvm.selections import quoted
from sparkdiff.jvm.sessions import UNREACHABLE


class FormulaPart(JavaTransformer, JavaMLWritable):
    """A stage without a pyspark class. It has no Params, and Spark's own copy() fails because the stage has no
    constructor.
    """

    @classmethod
    def of(cls, java: Any) -> "FormulaPart":
        return cls(java)._resetUid(str(java.uid()))

    def copy(self, extra: Any = None) -> "FormulaPart":
        java: Any = self._java_obj
        return self.of(java.getClass().cast(java))  # its own reference: that of a stage ends with the stage


class VectorAttributeRewriter(FormulaPart):
    """A stage that gives the slots of a vector the names of the formula's terms."""

    def getVectorCol(self) -> str:
        return str(self._java_obj.vectorCol())  # type: ignore[union-attr]


class ColumnPruner(FormulaPart):
    """A stage that drops the temporary columns of the formula's terms."""


class FormulaLabel(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[type-arg]
    """A stage that writes the label of a formula as a double, if the data have the label and lack the output column.

    Source: org.apache.spark.ml.feature.RFormulaModel.transformLabel, which is not a stage inside the model.
    """

    @classmethod
    def of(cls, formula: Any, label: str) -> "FormulaLabel":
        return cls()._set(inputCol=label, outputCol=formula.getLabelCol())._resetUid(formula.uid)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        source, to = self.getInputCol(), self.getOutputCol()
        if to in dataset.columns or source not in dataset.columns:
            return dataset
        return dataset.withColumn(to, F.col(quoted(source)).cast("double"))


_OWN = {"VectorAttributeRewriter": VectorAttributeRewriter, "ColumnPruner": ColumnPruner}


def parts(formula: Any) -> list[Any] | None:
    """Fitted stages inside an RFormulaModel, in order; None if Spark gives no access to them."""
    try:
        stages = [_stage(java) for java in formula._java_obj.pipelineModel().stages()]
        label = str(formula._java_obj.resolvedFormula().label())
    except UNREACHABLE:
        return None
    to = formula.getLabelCol()
    made = any(s.hasParam("outputCol") and s.isSet("outputCol") and s.getOrDefault("outputCol") == to for s in stages)
    if label and label != to and not made:
        stages.append(FormulaLabel.of(formula, label))
    return stages


def _stage(java: Any) -> Any:
    own = _OWN.get(java.getClass().getSimpleName())
    return JavaParams._from_java(java) if own is None else own.of(java)
