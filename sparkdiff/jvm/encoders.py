"""The surrogates of an ImputerModel and the encodings of a TargetEncoderModel, read from Spark and written back; the
categories of a VectorIndexerModel.
"""

import functools
import json
import re
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pyspark.sql import DataFrame

from sparkdiff.errors import SparkdiffError
from sparkdiff.jvm import folders, selections, sessions, stage_files
from sparkdiff.jvm.java_objects import array, class_named, doubles, mapper, packages
from sparkdiff.jvm.rebuilding import made_of, rebuild_with

Numbers = npt.NDArray[np.float64]
_surrogates: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], tuple[float, ...]]] = weakref.WeakKeyDictionary()
"""Surrogates that were read, by ImputerModel and columns; reading them takes a job, and a pipeline is translated often."""


def category_maps(stage: Any) -> dict[int, dict[float, int]]:
    """Index of each category by feature, of a VectorIndexerModel: its `categoryMaps`, but complete. PySpark's maps lack
    the features whose map is empty, and have only one entry for several NaN; here each NaN that Spark counts has its
    own entry, because no NaN equals another.
    """
    if sessions.has_constructors():
        text = mapper().writeValueAsString(stage._java_obj.javaCategoryMaps())
        maps = [(int(j), [(float(x), k) for x, k in pairs]) for j, pairs in json.loads(text, object_pairs_hook=list)]
        return {j: dict(pairs) for j, pairs in maps}
    with stage_files.save_temporarily(stage) as where:
        [maps] = stage_files.read_rows(f"{where}/data")["categoryMaps"].to_pylist()
    return {j: dict(categories) for j, categories in maps}


def surrogates(stage: Any, columns: Sequence[str]) -> list[float]:
    """Surrogates of an ImputerModel for these columns."""
    found = _surrogates.setdefault(stage, {})
    if tuple(columns) not in found:
        found[tuple(columns)] = tuple(stage.surrogateDF.select(*columns).head())
    return list(found[tuple(columns)])


def with_surrogates(stage: Any, values: Mapping[str, float]) -> Any:
    """A new ImputerModel like `stage` (uid, set and default Params) with these surrogates."""
    frame: DataFrame = stage.surrogateDF
    row: dict[str, float] = dict(zip(frame.columns, frame.head(), strict=True))  # type: ignore[arg-type]
    spelled = {name.lower(): name for name in row}  # for a Param that spells a column in another case
    row.update({name if name in row else spelled[name.lower()]: value for name, value in values.items()})

    def construct(old: Any) -> Any:
        """Construct the model: Spark 3.5 and 4.0 take a DataFrame of one row, later versions names and values."""
        taken = max(len(c.getParameterTypes()) for c in old._java_obj.getClass().getConstructors())
        if taken == 2:
            return made_of(old, _one_row(row)._jdf)
        return made_of(old, array(class_named("java.lang.String"), list(row)), doubles(list(row.values())))

    def rewrite(old: Any) -> Any:
        where = stage_files.save_until_exit(old)  # Spark 3.5 and 4.0 read the files when the model is used
        _one_row(row).coalesce(1).write.mode("overwrite").parquet(f"{where}/data")
        return type(old).load(folders.model_at(where))

    return rebuild_with(stage, construct, rewrite)


def _one_row(row: Mapping[str, float]) -> DataFrame:
    """A DataFrame whose row is part of its plan, so that reading it runs no job."""
    names = ", ".join(map(selections.quoted, row))
    values = ", ".join(f"CAST('{value!r}' AS DOUBLE)" for value in row.values())
    return sessions.session().sql(f"SELECT * FROM VALUES ({values}) AS surrogates({names})")


def binarizer_keeps_null(stage: Any) -> bool:
    """True if a Binarizer leaves null unchanged, as up to Spark 3.5; later versions turn it into 0. Reads this from the
    schema of its output, and runs no job.
    """
    return _keeps_null(type(stage), sessions.session().version)  # type: ignore[arg-type]  # a class can be hashed


@functools.cache
def _keeps_null(kind: type, _version: str) -> bool:
    null = sessions.session().sql("SELECT CAST(NULL AS DOUBLE) AS x")
    return bool(kind(inputCol="x", outputCol="y").transform(null).schema["y"].nullable)


class Statistics(NamedTuple):
    """The statistics of a TargetEncoderModel for the categories of one column, (k,) each."""

    categories: Numbers
    counts: Numbers
    stats: Numbers


ENTRY = re.compile(r"\(([^,()]+),\(([^,()]+),([^,()]+)\)\)")
"""An entry of a Scala Seq[(Double, (Double, Double))] as text. Reading the text of a double gives the same double."""


def statistics(stage: Any) -> list[Statistics]:
    """Categories of a TargetEncoderModel per column, with counts and stats."""
    if sessions.has_constructors():
        texts = [column.toSeq().toString() for column in stage._java_obj.stats()]
        return [Statistics(*np.array(ENTRY.findall(text), dtype=np.float64).reshape(-1, 3).T.copy()) for text in texts]
    with stage_files.save_temporarily(stage) as where:
        rows = stage_files.read_rows(f"{where}/data").sort_by("index").to_pylist()
    return [Statistics(*(np.array(row[name], dtype=np.float64) for name in Statistics._fields)) for row in rows]


FEW = 1000
"""Largest number of categories, of all columns, for which a model is created by its constructor, which takes separate
calls of Java for each category; beyond it, the model is loaded from files.
"""


def with_statistics(stage: Any, columns: Sequence[Statistics]) -> Any:
    """A new TargetEncoderModel like `stage` (uid, Params set and default) with these statistics."""
    few = sum(len(c.categories) for c in columns) <= FEW
    construct = _with_maps if few else _with_files
    return rebuild_with(stage, lambda old: construct(old, columns), lambda old: _with_files(old, columns))


def _with_maps(old: Any, columns: Sequence[Statistics]) -> Any:
    scala, maps = packages().scala, []
    for column in columns:
        entries = scala.Predef.Map().empty()
        for category, count, stat in zip(*(values.tolist() for values in column), strict=True):
            entries = entries.updated(category, scala.Tuple2(count, stat))
        maps.append(entries)
    return made_of(old, array(class_named("scala.collection.immutable.Map"), maps))


def _with_files(old: Any, columns: Sequence[Statistics]) -> Any:
    with stage_files.save_temporarily(old) as where:
        schema = stage_files.read_rows(f"{where}/data").schema
        if schema.names != ["index", *Statistics._fields]:
            raise SparkdiffError(f"{old.uid}: its saved data contain {', '.join(schema.names)}, an unknown format")
        rows = [(i, *(values.tolist() for values in column)) for i, column in enumerate(columns)]
        stage_files.write_rows(f"{where}/data", stage_files.table_of(rows, schema))
        return type(old).load(folders.model_at(where))
