"""Labels of StringIndexers: the numbers that a pipeline itself gives to the classes (a fit on other rows may number them
differently), and labels that no row can have in this Java. Spark finds the label of a number by casting the number to text,
and releases of Java print some numbers differently.
"""

import collections
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from pyspark.ml.feature import StringIndexerModel
from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import StructType

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm.java_texts import PRECISIONS, java_release, texts_of
from sparkdiff.pipeline.column_names import casefolding, col_by_name
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.schema import known_fields
from sparkdiff.stages.base import columns_of


def classes_of(model: Any, column: str | None) -> tuple[str, ...]:
    """Classes that a StringIndexer of a fitted pipeline (or of its RFormula) numbers 0, 1, ... in a column, in this
    order; empty if no StringIndexer writes the column.
    """
    casefold, found = casefolding(), tuple[str, ...]()
    for stage in (stage for _, stage in flatten(model) if isinstance(stage, StringIndexerModel)):
        written = zip(columns_of(stage, ("outputCol", "outputCols")), stage.labelsArray, strict=False)
        found = next((tuple(classes) for name, classes in written if casefold(name) == casefold(column or "")), found)
    return found


def check_same_classes(
    first: Sequence[str], other: Sequence[str], column: str | None, where: str, first_where: str = "the first fold"
) -> None:
    """Raise InputError if two fits of a pipeline, with the classes `first` and `other`, number the classes differently.

    Args:
        where, first_where: names of the rows of the second and of the first fit, for the message.
    """
    for k, (one, two) in enumerate(zip_longest(first, other)):
        if one != two:
            raise InputError(
                f"class {k} of labelCol={column!r} is {one!r} in {first_where}, but {two!r} in {where}: number the classes by a "
                "StringIndexer with stringOrderType='alphabetAsc' (in front of an RFormula, which has none for its label), and "
                "leave out classes that a fold lacks"
            )


def label_notes(graph: Graph, data: DataFrame | StructType, counted: bool = False) -> dict[int, list[str]]:
    """Sentences on labels that no row of the data can have in this Java, by the position of their StringIndexer.

    Args:
        counted: whether to add the number of rows of a DataFrame with the numbers of such labels; runs a job if there
            are any.
    """
    indexers = [vertex for vertex in graph.vertices if isinstance(vertex.stage, StringIndexerModel)]
    known = known_fields(graph, {source for vertex in indexers for source in vertex.sources}, data) if indexers else {}
    kinds = {source: kind for source, field in known.items() if (kind := field.dataType.simpleString()) in PRECISIONS}
    version = jvm.origin().get("javaVersion") if kinds else None
    notes: dict[int, list[str]] = collections.defaultdict(list)
    for vertex in indexers if version else ():
        for source, labels in zip(vertex.sources, vertex.stage.labelsArray, strict=True):
            read = texts_of(labels, kinds[source], java_release(version)) if source in kinds else []
            lost = [(label, x, text) for label, x, text in read if text != label]
            rows = _rows_by_number(graph, data, source, [x for _, x, _ in lost]) if counted and lost else {}
            for label, x, text in lost:
                held = f"; rows with it: {rows.get(x, 0):,}" if counted else ""
                notes[vertex.position].append(
                    f"no row of {graph.name(source)!r} ({kinds[source]}) has the label {label!r}: Java {version} prints {text!r} "
                    f"for its number{held}"
                )
    return notes


def _rows_by_number(graph: Graph, df: Any, version: Version, numbers: Sequence[float]) -> dict[float, int]:
    """Number of rows that have each of these numbers in a version of a column."""
    for vertex in graph.vertices[: version[1] + 1]:
        df = vertex.transform(df)
    column = col_by_name(graph.name(version), in_struct=graph.in_struct(version)).cast("double")
    found = df.select(column.alias("number")).where(F.col("number").isin(numbers))
    return {row[0]: row[1] for row in found.groupBy("number").count().collect()}
