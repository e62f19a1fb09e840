"""Distillation: class probabilities predicted by any Spark model (the teacher) serve as labels of rows without labels."""

from typing import Any

from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import BooleanType, NumericType

from sparkdiff import jvm
from sparkdiff.data.splits import field
from sparkdiff.errors import InputError, check_dataframe, kind_of
from sparkdiff.labeling.posterior_stages import SURE
from sparkdiff.pipeline.column_names import casefolding, col_by_name, read_by_name, unused_prefix
from sparkdiff.pipeline.nesting import flatten, holders
from sparkdiff.pipeline.translation import graph_of


def distill(
    teacher: Any,
    df: DataFrame,
    *,
    labelCol: str | None,
    outputCol: str,
    probabilityCol: str | None = None,
    temperature: float = 1.0,
) -> DataFrame:
    """The rows with an added column: a vector of class probabilities, which `FineTuner` accepts as a label.

    Where the true label is known, the vector is its one-hot form; where the label is null or NaN, the vector has the teacher's
    probabilities. Everything is plain Spark; small jobs count the rows and check the classes and the labels. Save the result
    before training reads it, because otherwise the teacher predicts the rows several times.

    Args:
        teacher: a fitted model that adds a column of class probabilities: an MLlib pipeline, a `LabelModelModel`, the result of
            `FineTuner`, or any other Transformer. Its classes are those of the labels, in the same order.
        df: the rows, with the columns that the teacher reads, but without its column of probabilities and without
            `outputCol`.
        labelCol: column of true labels 0, 1, 2, ..., null where unknown; if None, all rows get the teacher's probabilities.
        outputCol: name of the column to add.
        probabilityCol: column with the teacher's probabilities; if None, the Param probabilityCol of the last stage that has one.
        temperature: divisor of the teacher's log-probabilities; above 1, the probabilities become less certain (Hinton
            et al. 2015).

    A predicted probability of 1 is changed to 1 - 1e-9, because in the added vectors a 1 marks a true label.

    Raises:
        InputError: the teacher adds no column of probabilities, drops rows or columns, or can't predict the rows; a label is not
            one of the teacher's classes; or a column or the temperature is invalid.

    Examples:
        >>> import sparkdiff
        >>> known = df.selectExpr("*", "CASE WHEN age < 40 THEN label END AS known")  # unknown for the others
        >>> soft = sparkdiff.distill(model, known, labelCol="known", outputCol="soft")
        >>> soft.columns == [*known.columns, "soft"]
        True
        >>> soft.write.mode("overwrite").parquet(f"{folder}/soft")  # rows for a FineTuner with labelCol="soft"
    """
    check_dataframe("the DataFrame of distill()", df)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be a finite number above 0, got {temperature!r}")
    casefold = casefolding()
    if casefold(outputCol) in map(casefold, df.columns):
        raise InputError(f"outputCol={outputCol!r} is a column of the data already: choose another name")
    column = _probability_column(teacher, probabilityCol)
    if casefold(column) in map(casefold, df.columns):
        raise InputError(f"the data have a column {column!r} already, which the teacher would add: drop or rename it")
    if labelCol is not None:
        _label(df, labelCol)
    held = _hidden_names(teacher, df)
    with jvm.as_input_error("the teacher cannot predict these rows"):
        made = teacher.transform(df.withColumns({hidden: col_by_name(c) for c, hidden in held.items()}))
    if lost := [c for c, hidden in held.items() if hidden not in made.columns]:
        raise InputError(
            f"the teacher selects columns, so that those of the data ({', '.join(map(repr, lost))}) may be others behind it: let "
            "its SQLTransformers begin with SELECT *"
        )
    found = [f for f in made.schema.fields if casefold(f.name) == casefold(column)]
    if not found or not isinstance(found[0].dataType, VectorUDT):
        what = f"is {found[0].dataType.simpleString()}" if found else "is not there"
        raise InputError(
            f"the teacher adds no vector of probabilities: column {column!r} {what} in its output. Name the column by "
            "probabilityCol, or take a model that predicts probabilities"
        )
    _check_all(df, made)
    own = [
        col_by_name(held[c]).alias(c, metadata=df.schema[c].metadata) if c in held else col_by_name(c)
        for c in df.columns
    ]
    guess = made.select(*own, vector_to_array(col_by_name(found[0].name)).alias(outputCol))
    guess = _softened(guess, outputCol, temperature)
    if labelCol is None:
        return guess.withColumn(outputCol, array_to_vector(col_by_name(outputCol)))
    label = _label(df, labelCol)
    classes = range(_classes(guess, outputCol, label, labelCol))
    true = F.array(*(F.when(label == k, 1.0).otherwise(0.0) for k in classes))
    return guess.withColumn(outputCol, array_to_vector(F.when(label.isNull(), col_by_name(outputCol)).otherwise(true)))


def _probability_column(teacher: Any, given: str | None) -> str:
    """Name of the column with the teacher's probabilities: `given`, or else read from the teacher's Params."""
    if given is not None:
        return given
    within = sorted([*flatten(teacher), *holders(teacher)], key=lambda found: found[0], reverse=True)
    for stage in [teacher, *(stage for _, stage in within)]:
        if stage.hasParam("probabilityCol") and stage.isDefined("probabilityCol"):
            return str(stage.getOrDefault("probabilityCol"))
    raise InputError(
        f"{kind_of(teacher)} has no probabilityCol, so there are no probabilities to learn from: take a teacher that "
        "predicts them (LinearSVC and regressions do not), or name the column of class probabilities by probabilityCol"
    )


def _hidden_names(teacher: Any, df: DataFrame) -> dict[str, str]:
    """The columns of the data that the teacher may overwrite, each with the hidden name of a copy that passes through
    the teacher.

    Raises:
        InputError: the teacher is not fitted, or two columns have the same name.
    """
    graph, alone = graph_of(teacher, df), read_by_name(df)
    if twice := [c for c in df.columns if c not in alone]:
        raise InputError(f"the data have {len(twice)} columns of the name {twice[0]!r}: rename or drop all but one")
    written = {graph.casefold(c) for v in graph.vertices for c in v.outputs}
    anything = any(v.opaque or not v.declares_all for v in graph.vertices)
    hidden = unused_prefix("__sparkdiff_given", (*df.columns, *written))
    return {c: f"{hidden}{i}" for i, c in enumerate(df.columns) if anything or graph.casefold(c) in written}


def _check_all(df: DataFrame, made: DataFrame) -> None:
    """Raise InputError if the teacher drops or adds rows.

    Args:
        df: the rows.
        made: the teacher's output for these rows.
    """
    with jvm.as_input_error("the teacher cannot predict these rows"):
        given, there = df.count(), made.count()
    if given != there:
        raise InputError(
            f"the teacher makes {there:,} rows of {given:,}: rows that it drops, such as those with handleInvalid='skip', "
            "would get no label, and true labels would be lost; set handleInvalid='keep' in the teacher, or drop them before"
        )


def _label(df: DataFrame, labelCol: str) -> Column:
    """The label as a double; NaN is replaced by null.

    Raises:
        InputError: the column is missing, or holds neither numbers nor booleans.
    """
    kind, c = field(df, labelCol, "labelCol").dataType, col_by_name(labelCol).cast("double")
    if not isinstance(kind, (NumericType, BooleanType)):
        raise InputError(
            f"labelCol={labelCol!r} is {kind.simpleString()}, but must be a class 0, 1, 2, ...: cast or index it"
        )
    return F.when(~F.isnan(c), c)


def _softened(df: DataFrame, column: str, temperature: float) -> DataFrame:
    """The rows with the probabilities in `column` at this temperature; those above `SURE` are changed to `SURE`."""
    if temperature != 1.0:
        most = F.array_max(
            col_by_name(column)
        )  # divide by the row's maximum: a low temperature could make all powers 0
        df = df.withColumn(column, F.transform(col_by_name(column), lambda x: F.pow(x / most, F.lit(1 / temperature))))
        total = F.aggregate(col_by_name(column), F.lit(0.0), lambda s, x: s + x)
        df = df.withColumn(column, F.transform(col_by_name(column), lambda x: x / total))
    return df.withColumn(
        column, F.transform(col_by_name(column), lambda x: F.when((x > SURE) & ~F.isnan(x), SURE).otherwise(x))
    )


def _classes(df: DataFrame, column: str, label: Column, labelCol: str) -> int:
    """Number of the teacher's classes, from the length of its vectors.

    Raises:
        InputError: a label is not one of these classes, or Spark failed on the rows.
    """
    with jvm.as_input_error("the teacher cannot predict these rows"):
        row = df.where(col_by_name(column).isNotNull()).select(F.size(col_by_name(column))).first()
        classes = int(row[0]) if row is not None else 0
        wrong = (
            df.where((label < 0) | (label >= classes) | (label != F.floor(label)))
            .groupBy(label)
            .count()
            .limit(1)
            .collect()
        )
    if wrong:
        raise InputError(
            f"labelCol={labelCol!r} holds {wrong[0][0]:g} in {wrong[0][1]:,} rows, but the teacher has the classes 0 to "
            f"{classes - 1}: take a teacher of the same classes, or drop these rows"
        )
    return classes
