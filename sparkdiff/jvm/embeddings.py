"""Tables of vectors: those of a Word2VecModel, one vector per word, and those of an ALSModel, one per user and item. They are
read, the models are rebuilt with new ones, and plain stages count the words of a Word2VecModel.

If constructors can be called, a vocabulary is sent as one string and its vectors as bytes, without a job and without
a call per word. Otherwise it is sent as a DataFrame with Arrow. Factors are read with Arrow, in one job per table.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyspark.ml.feature import CountVectorizerModel, Interaction, SQLTransformer
from pyspark.ml.functions import vector_to_array
from pyspark.ml.wrapper import JavaParams
from pyspark.sql import DataFrame, functions as F

from sparkdiff.jvm import selections, sessions
from sparkdiff.jvm.folders import model_at
from sparkdiff.jvm.java_objects import packages
from sparkdiff.jvm.rebuilding import made_of, rebuild_with
from sparkdiff.jvm.stage_files import save_temporarily, save_until_exit

Vocabulary = tuple[tuple[str, ...], np.ndarray]
"""Words, sorted, and their vectors (v, d) float32."""
BETWEEN = "\0"
"""A separator that no word contains."""
MLLIB = "org.apache.spark.mllib.feature.Word2VecModel"
LITERAL = 16  # java.util.regex.Pattern.LITERAL
_vocabularies: weakref.WeakKeyDictionary[Any, Vocabulary] = weakref.WeakKeyDictionary()


def vocabulary(stage: Any) -> Vocabulary:
    """Words of a Word2VecModel and their vectors. A fitted model never changes, so they are read only once."""
    if stage not in _vocabularies:
        words, vectors = _by_bytes(stage) if sessions.has_constructors() else _by_arrow(stage)
        order = sorted(range(len(words)), key=words.__getitem__)
        _vocabularies[stage] = tuple(words[k] for k in order), vectors[order]
    return _vocabularies[stage]


def word2vec(stage: Any, words: Sequence[str], vectors: np.ndarray) -> Any:
    """A Word2VecModel like `stage` with new vectors (v, d) for its words."""

    def construct(old: Any) -> Any:
        context: Any = sessions.session().sparkContext
        jvm, index = context._jvm, _mllib(old).wordIndex()
        places = _places(index)
        if places is None:
            return rewrite(old)
        ordered = np.empty_like(vectors, dtype="<f4")
        ordered[[places[w] for w in words]] = vectors
        floats = context._gateway.new_array(jvm.float, ordered.size)
        wrapped = jvm.java.nio.ByteBuffer.wrap(ordered.tobytes()).order(jvm.java.nio.ByteOrder.LITTLE_ENDIAN)
        wrapped.asFloatBuffer().get(floats)
        return made_of(old, jvm.org.apache.spark.mllib.feature.Word2VecModel(index, floats))

    def rewrite(old: Any) -> Any:
        import pandas as pd

        with save_temporarily(old) as where, sessions.by_arrow():
            rows = pd.DataFrame({"word": list(words), "vector": list(vectors.astype(np.float32))})
            frame = sessions.session().createDataFrame(rows, "word string, vector array<float>")
            frame.coalesce(1).write.mode("overwrite").parquet(f"{where}/data")
            return type(old).load(model_at(where))

    return rebuild_with(stage, construct, rewrite)


def counting(words: Sequence[str], column: str, shares: str, length: str) -> list[Any]:
    """Plain stages that turn a column of words into a vector: the share of each of these words among all words of the
    row.

    Args:
        shares, length: names of the output columns for the vector and for the number of words.
    """
    counts, inverse, said = f"{shares}_counts", f"{shares}_inverse", f"size({selections.quoted(column)})"
    return [
        _counter(words).setInputCol(column).setOutputCol(counts),
        SQLTransformer(
            statement=f"SELECT *, CAST({said} AS DOUBLE) AS `{length}`, "
            f"CASE WHEN {said} > 0 THEN 1.0D / {said} ELSE 0.0D END AS `{inverse}` FROM __THIS__"
        ),
        Interaction(inputCols=[inverse, counts], outputCol=shares),
    ]


def _counter(words: Sequence[str]) -> CountVectorizerModel:
    together = BETWEEN.join(words)
    if not sessions.has_constructors() or together.count(BETWEEN) != len(words) - 1:
        return CountVectorizerModel.from_vocabulary(list(words), inputCol="words")
    jvm = packages()
    array = jvm.java.util.regex.Pattern.compile(BETWEEN, LITERAL).split(together, -1)
    return JavaParams._from_java(jvm.org.apache.spark.ml.feature.CountVectorizerModel(array))


def _mllib(stage: Any) -> Any:
    """The hidden spark.mllib model inside a Word2VecModel."""
    kind = stage._java_obj.getClass()
    [field] = [f for f in kind.getDeclaredFields() if f.getType().getName() == MLLIB]
    field.setAccessible(True)
    return field.get(stage._java_obj)


def _places(index: Any) -> dict[str, int] | None:
    """Positions of the words in a Scala map; None if a word contains the separator `BETWEEN`."""
    words, places = (str(part.mkString(BETWEEN)).split(BETWEEN) for part in (index.keys(), index.values()))
    return dict(zip(words, map(int, places), strict=True)) if len(words) == len(places) else None


def _by_bytes(stage: Any) -> tuple[list[str], np.ndarray]:
    mllib = _mllib(stage)
    places = _places(mllib.wordIndex())
    if places is None:
        return _by_arrow(stage)
    nio = packages().java.nio
    size = len(places) * stage.getVectorSize()
    buffer = nio.ByteBuffer.allocate(4 * size).order(nio.ByteOrder.LITTLE_ENDIAN)
    buffer.asFloatBuffer().put(mllib.wordVectors())
    vectors = np.frombuffer(buffer.array(), dtype="<f4").reshape(len(places), -1)
    return list(places), vectors[list(places.values())]


def _by_arrow(stage: Any) -> tuple[list[str], np.ndarray]:
    with sessions.by_arrow():
        found = stage.getVectors().select("word", vector_to_array(F.col("vector"), "float32").alias("v")).toPandas()
    return found["word"].tolist(), np.stack(found["v"]).astype(np.float32)


Table = tuple[np.ndarray, np.ndarray]
"""Ids (n,) int64, ascending, and factors (n, rank) float32."""
_factors: weakref.WeakKeyDictionary[Any, tuple[Table, Table]] = weakref.WeakKeyDictionary()


def factor_tables(stage: Any) -> tuple[Table, Table]:
    """Factor tables of users and of items. The tables of a fitted model never change, so each is read only once."""
    if stage not in _factors:
        _factors[stage] = _factor_table(stage.userFactors, stage.rank), _factor_table(stage.itemFactors, stage.rank)
    return _factors[stage]


def als(stage: Any, users: Table, items: Table) -> Any:
    """An ALSModel like `stage` with these factor tables."""

    def construct(old: Any) -> Any:
        return made_of(old, stage.rank, _factor_frame(users)._jdf, _factor_frame(items)._jdf)

    def rewrite(old: Any) -> Any:
        where = save_until_exit(old)
        for name, table in (("userFactors", users), ("itemFactors", items)):
            _factor_frame(table).coalesce(1).write.mode("overwrite").parquet(f"{where}/{name}")
        return type(old).load(model_at(where))

    return rebuild_with(stage, construct, rewrite)


def _factor_table(df: DataFrame, rank: int) -> Table:
    with sessions.by_arrow():
        found = df.select("id", "features").toPandas()
    ids = found["id"].to_numpy(np.int64)
    factors = np.concatenate([np.empty(0, np.float32), *found["features"]]).astype(np.float32).reshape(len(ids), rank)
    order = ids.argsort()
    return ids[order], factors[order]


def _factor_frame(table: Table) -> DataFrame:
    ids, factors = table
    import pandas as pd

    with sessions.by_arrow():
        rows = pd.DataFrame({"id": ids.astype(np.int32), "features": list(factors)})
        return sessions.session().createDataFrame(rows, "id int, features array<float>")
