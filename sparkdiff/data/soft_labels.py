"""Soft labels: a label column of class probabilities, turned into rows with one label each. Only rows with true labels
decide whether a result is kept.

A training row becomes one row per class whose probability is not 0, with the probability as weight: the weighted mean
of any loss over these rows is the mean expected loss, and all readers of the cache still get one number as the label.
A row with a true label, whose probability is 1 for one class, stays one row.
"""

import dataclasses
import functools
from collections.abc import Sequence

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, Window, functions as F

from sparkdiff import jvm
from sparkdiff.data.layout import check_number
from sparkdiff.data.splits import (
    BLOCK,
    REFERENCE,
    SPLIT,
    TIME,
    TRAIN,
    VALIDATION,
    Boundaries,
    Source,
    check_columns,
    field,
    find_boundaries,
    with_splits,
)
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.options import Options
from sparkdiff.pipeline.column_names import casefolding, col_by_name

WEIGHT, CHANCES, CERTAIN, CLASS, CHANCE = (
    f"__sparkdiff_{name}" for name in ("weight", "chances", "true", "class", "chance")
)
FAR = 1e-6
"""Tolerance for the sum of a row's probabilities, which should be 1."""
MADE = "is made by the pipeline, which comes after the rows are weighted by their probabilities: pass it as a column of the data"


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """Rows with one label each.

    Attributes:
        sources: the training rows, and those rows of the other splits that have true labels.
        weightCol: the name of the column with the weights of these rows.
        soft, certain: number of training rows with class probabilities, and number of those with true labels.
        held: number of validation rows, all of which have true labels.
        leftOut: number of rows on the held-out side that were left out, because they have no true label.
        leftOutReference: number of reference rows that were left out for the same reason.
        doubt: a text that warns that the true labels may be a model's guesses; empty if nothing indicates this.
    """

    sources: tuple[Source, ...]
    weightCol: str
    soft: int
    certain: int
    held: int
    leftOut: int
    leftOutReference: int = 0
    doubt: str = ""

    def sentence(self) -> str:
        """A sentence about the labels."""
        where = {"on the held-out side": self.leftOut, "among the reference rows": self.leftOutReference}
        left = "".join(
            f"; {rows:,} rows with probabilities {place} were left out, because only true labels decide"
            for place, rows in where.items()
            if rows
        )
        return (
            f"{self.soft:,} training rows have class probabilities as labels, and count as one weighted row per class; "
            f"{self.certain:,} training and {self.held:,} validation rows have true labels{left}{self.doubt}"
        )


def has_vector_labels(sources: Sequence[Source], labelCol: str | None) -> bool:
    """True if the labels of training rows are vectors."""
    return labelCol is not None and any(_is_vector(s.df, labelCol) for s in sources if s.split in (None, TRAIN))


def _is_vector(df: DataFrame, column: str) -> bool:
    casefold = casefolding()
    return any(isinstance(f.dataType, VectorUDT) for f in df.schema.fields if casefold(f.name) == casefold(column))


def explode_classes(
    sources: Sequence[Source], options: Options, labelCol: str, weightCol: str | None, classes: int
) -> SoftLabels:
    """Turn rows with class probabilities as labels into rows with one label and a weight each. Runs one job per source,
    which checks the labels, and the jobs of `find_boundaries` and `with_splits`.

    Rows with probabilities train. The held-out rows are drawn from the rows with true labels. If some rows of a group
    are held out, no row of the group trains; with `timeCol`, no row trains that is later than the start of the held-out
    part.

    Args:
        classes: number of classes of the pipeline, which is also the number of entries of each vector.

    Raises:
        InputError: a vector is null, has another number of entries, or is no distribution (the message has the column,
            the number of rows, and one of the values); a weight is no finite number, or negative; the column that
            decides the split is null; or there are reference rows, but none has a true label.
    """
    for source in sources:
        check_columns(source.df, options)
    counted = [dataclasses.replace(s, df=_of_weight(s.df, labelCol, weightCol)) for s in sources]
    certain = [dataclasses.replace(s, df=_with_chances(s.df, labelCol).where(CERTAIN)) for s in counted]
    dealt = with_splits(counted, options, _boundaries(certain, counted, options))
    alone = any(s.split == VALIDATION for s in sources)
    counts: dict[tuple[str, bool], int] = {}
    out: list[Source] = []
    weight = WEIGHT if weightCol is None else f"{WEIGHT}_of_{weightCol}"
    for source, frame in zip(sources, dealt, strict=True):
        df = _with_chances(frame, labelCol)
        if source.split is None and not alone:
            df = df.withColumn(SPLIT, _side(options))
        for key, n in _count_rows(df, options, labelCol, weightCol, classes).items():
            counts[key] = counts.get(key, 0) + n
        made = functools.partial(_one_label, labelCol=labelCol, weightCol=weightCol, weight=weight)
        for split in [TRAIN, VALIDATION] if source.split is None else [source.split]:
            rows = df.where(F.col(SPLIT) == split)
            out.append(Source(made(rows) if split == TRAIN else made(rows.where(CERTAIN)), split))
    if any(s.split == REFERENCE for s in sources) and not counts.get((REFERENCE, True)):
        raise InputError(
            f"none of the reference rows has a true label in labelCol={labelCol!r} (a probability of 1 for one class), and only "
            "true labels decide: label some of them, or leave the reference rows out"
        )
    held = [n for (split, certain), n in counts.items() if not certain and split not in (TRAIN, REFERENCE)]
    return SoftLabels(
        tuple(out),
        weight,
        counts.get((TRAIN, False), 0),
        counts.get((TRAIN, True), 0),
        counts.get((VALIDATION, True), 0),
        sum(held),
        counts.get((REFERENCE, False), 0),
        _doubt(sources, labelCol, sum(n for (_, c), n in counts.items() if c)),
    )


def _boundaries(certain: Sequence[Source], counted: Sequence[Source], options: Options) -> Boundaries:
    """Times that divide the rows with true labels into training and held-out rows; if no row with a true label has a
    time, the times that divide all rows. In that case no row is held out, which is no error but gives no evidence.
    """
    try:
        return find_boundaries(certain, options)
    except InputError:
        return find_boundaries(counted, options)


def _doubt(sources: Sequence[Source], labelCol: str, certain: int) -> str:
    """Text that warns that the true labels may be a model's guesses: MLlib's entry in the metadata of the label column
    shows that a stage made it. Empty without such an entry, or without true labels.
    """
    casefold = casefolding()
    fields = [f for s in sources for f in s.df.schema.fields if casefold(f.name) == casefold(labelCol)]
    if not certain or not any("ml_attr" in (f.metadata or {}) for f in fields):
        return ""
    return (
        f"; warning: a stage of Spark ML made labelCol={labelCol!r}, so that its {certain:,} probabilities of 1, which count as "
        "true labels, may be guesses of a model that was sure; sparkdiff.distill tells the two apart"
    )


def _of_weight(df: DataFrame, labelCol: str, weightCol: str | None) -> DataFrame:
    """The rows with a weight other than 0.

    Raises:
        InputError: a column is missing, or has a reserved name.
    """
    casefold = casefolding()
    for option, column in (("labelCol", labelCol), ("weightCol", weightCol)):
        if column is not None and casefold(column) not in map(casefold, df.columns):
            raise InputError(
                f"{option}={column!r} is not a column of the data, or {MADE}. {did_you_mean(column, df.columns)}"
            )
    check_number("weightCol", weightCol, df, casefold)
    if reserved := [c for c in df.columns if c.lower().startswith((WEIGHT, CHANCES, CERTAIN, CLASS, CHANCE))]:
        raise InputError(
            f"the data have a column {reserved[0]!r}, a name that sparkdiff reserves for its own: rename it"
        )
    return df if weightCol is None else df.where((col_by_name(weightCol) != 0) | col_by_name(weightCol).isNull())


def _with_chances(df: DataFrame, labelCol: str) -> DataFrame:
    """The rows with a column of their class probabilities (null where the label is a number), and a flag whether the
    label is true.

    Each expression refers to the previous one only once. If Spark pushes a filter down, it evaluates the expressions
    again for each reference, together with the model that made the probabilities.
    """
    if not _is_vector(df, labelCol):
        return df.withColumn(CHANCES, F.lit(None).cast("array<double>")).withColumn(CERTAIN, F.lit(True))
    known = df.withColumn(CHANCES, F.when(col_by_name(labelCol).isNotNull(), vector_to_array(col_by_name(labelCol))))
    return known.withColumn(CERTAIN, F.coalesce(F.array_max(CHANCES) == 1.0, F.lit(False)))


def _side(options: Options) -> Column:
    """The split (train or validation) of rows of a source for which the options decide it."""
    side = F.col(SPLIT)
    if options.validationIndicatorCol or options.timeCol:
        return side
    # A group without true labels decides nothing, and may train.
    own = F.max(CERTAIN).over(Window.partitionBy(col_by_name(options.groupCol))) if options.groupCol else F.col(CERTAIN)
    return F.when(own, side).otherwise(TRAIN)


def _count_rows(
    df: DataFrame, options: Options, labelCol: str, weightCol: str | None, classes: int
) -> dict[tuple[str, bool], int]:
    """Number of rows by split and by whether the label is true.

    Raises:
        InputError: see `explode_classes`.
    """
    c = F.col(CHANCES)
    total = F.aggregate(c, F.lit(0.0), lambda x, y: x + y)
    problem = (
        F.when(F.lit(not _is_vector(df, labelCol)), None)
        .when(c.isNull(), "null")
        .when(F.size(c) != classes, "length")
        .when(F.exists(c, lambda x: F.isnan(x) | (x < 0)), "entry")
        .when(F.abs(total - 1) > FAR, "sum")
    )
    with jvm.as_input_error(f"Spark failed while reading labelCol={labelCol!r}"):
        weight = (
            F.lit(1.0) if weightCol is None else F.coalesce(col_by_name(weightCol).cast("double"), F.lit(float("nan")))
        )
        unusable = F.isnan(weight) | (weight < 0) | (weight == float("inf"))
        wrong = F.count(F.when(unusable, 1)), F.first(F.when(unusable, weight), ignorenulls=True)
        found = df.groupBy(problem, SPLIT, CERTAIN).agg(F.count(F.lit(1)), F.first(c), *wrong).collect()
    whole = sum(row[3] for row in found)
    for kind in ("null", "length", "entry", "sum"):
        if bad := [row for row in found if row[0] == kind]:
            raise InputError(_problem(kind, labelCol, sum(row[3] for row in bad), whole, bad[0][4], classes))
    if unweighted := sum(row[5] for row in found):
        value = next(row[6] for row in found if row[5])
        raise InputError(
            f"weightCol={weightCol!r} holds {'null or NaN' if value != value else value} in {unweighted:,} rows; a weight must "
            "be a finite number >= 0"
        )
    if nowhere := sum(row[3] for row in found if row[1] is None):
        side = "timeCol" if options.timeCol else "validationIndicatorCol"
        raise InputError(
            f"{side}={getattr(options, side)!r} holds null in {nowhere} rows, which therefore belong to neither side; fill the "
            "column or drop these rows"
        )
    return {(row[1], row[2]): row[3] for row in found}


def _problem(kind: str, column: str, rows: int, whole: int, value: list[float] | None, classes: int) -> str:
    """Message for an error about the labels: the problem and how to fix it."""
    if kind == "null":
        which = f"all {rows:,} rows" if rows == whole else f"{rows:,} of {whole:,} rows"
        return (
            f"labelCol={column!r} is null in {which}: drop them, or let the predictions of another model be their labels by "
            "sparkdiff.distill(teacher, df, labelCol=..., outputCol=...)"
        )
    holds = f"labelCol={column!r} holds {value} in {rows:,} rows"
    if kind == "length":
        assert value is not None
        return (
            f"{holds}: {len(value)} probabilities, but the pipeline has {classes} classes; a label needs one for each class, "
            "in their order"
        )
    wrong = "an entry is negative or NaN" if kind == "entry" else f"the sum is {sum(value or ()):.6g}, not 1"
    return f"{holds}: {wrong}; a label must be the probabilities of the classes, or a 1 for the true class and else 0"


def _one_label(df: DataFrame, *, labelCol: str, weightCol: str | None, weight: str) -> DataFrame:
    """One row per class whose probability is not 0, with that class as label."""
    label, own = (
        field(df, labelCol, "labelCol").name,
        F.lit(1.0) if weightCol is None else col_by_name(weightCol).cast("double"),
    )
    if not _is_vector(df, labelCol):
        return df.withColumn(weight, own).drop(SPLIT, BLOCK, TIME, CHANCES, CERTAIN)
    each = df.select("*", F.posexplode(CHANCES).alias(CLASS, CHANCE)).where(F.col(CHANCE) > 0)
    made = each.withColumn(label, F.col(CLASS).cast("double")).withColumn(weight, own * F.col(CHANCE))
    return made.drop(SPLIT, BLOCK, TIME, CHANCES, CERTAIN, CLASS, CHANCE)


def check_options(options: Options) -> None:
    """Raise InputError for options that do not allow class probabilities: losses that compare rows with each other,
    balanced class weights, which count labels, and numFolds, which lets all rows decide.
    """
    names = [options.loss] if isinstance(options.loss, str) else [] if callable(options.loss) else list(options.loss)
    for name in ("auc", "mmce"):
        if name in names:
            raise InputError(
                f"loss={name!r} compares rows with each other, and so needs one label per row, but labelCol is a vector of class "
                "probabilities: leave the loss out, or set it to 'logLoss' or 'focal'"
            )
    if options.lossParams.get("classWeights") == "balanced":
        raise InputError(
            "classWeights='balanced' counts labels, but labelCol is a vector of class probabilities: set classWeights to a "
            "number for each class"
        )
    if options.numFolds:
        raise InputError(
            f"numFolds={options.numFolds} lets all rows decide, but labelCol is a vector of class probabilities, and only true "
            "labels may decide: leave numFolds out"
        )
