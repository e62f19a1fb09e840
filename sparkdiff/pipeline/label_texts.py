"""Labels of StringIndexers that no row can have in this Java: Spark finds the label of a number by casting the number
to text, and releases of Java print some numbers differently.
"""

import collections
from collections.abc import Sequence
from typing import Any

from pyspark.ml.feature import StringIndexerModel
from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import StructType

from sparkdiff import jvm
from sparkdiff.jvm.number_text import PRECISIONS, java_release, texts_of
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.schema import known_fields


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
            rows = _rows(graph, data, source, [x for _, x, _ in lost]) if counted and lost else {}
            for label, x, text in lost:
                held = f"; rows with it: {rows.get(x, 0):,}" if counted else ""
                notes[vertex.position].append(
                    f"no row of {graph.name(source)!r} ({kinds[source]}) has the label {label!r}: Java {version} prints {text!r} "
                    f"for its number{held}"
                )
    return notes


def _rows(graph: Graph, df: Any, version: Version, numbers: Sequence[float]) -> dict[float, int]:
    """Number of rows that have each of these numbers in a version of a column."""
    for vertex in graph.vertices[: version[1] + 1]:
        df = vertex.transform(df)
    column = col_by_name(graph.name(version), in_struct=graph.in_struct(version)).cast("double")
    found = df.select(column.alias("number")).where(F.col("number").isin(numbers))
    return {row[0]: row[1] for row in found.groupBy("number").count().collect()}
