"""What a Scorer computes without Spark is what Spark computes: every class of MLlib, text of any language, and rows that fail."""

import importlib.util
import json
import math
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    DecisionTreeClassifier,
    FMClassifier,
    GBTClassifier,
    LogisticRegression,
    NaiveBayes,
    RandomForestClassifier,
)
from pyspark.ml.feature import (
    DCT,
    Binarizer,
    Bucketizer,
    CountVectorizerModel,
    FeatureHasher,
    HashingTF,
    Imputer,
    IndexToString,
    NGram,
    OneHotEncoder,
    RegexTokenizer,
    SQLTransformer,
    StopWordsRemover,
    StringIndexer,
    StringIndexerModel,
    Tokenizer,
    VectorAssembler,
)
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, Row, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, Scorer, jvm
from sparkdiff.serving.scorer.compiling import NOT_SERVED
from tests.support.scoring import differences, fails, in_spark, origin, refuses

ROOT = Path(__file__).parents[2]
REFUSED = {
    "BisectingKMeansModel",
    "BucketedRandomProjectionLSHModel",
    "DistributedLDAModel",
    "FPGrowthModel",
    "LocalLDAModel",
    "MinHashLSHModel",
    "SQLTransformer",
}
"""Classes that a Scorer refuses by name. Another one here is an acceptance lost."""
ANOTHER_INPUT = {"Interaction"}
"""Classes that the rows of the coverage tool don't suit."""
SINGLE = {"ALSModel", "Word2VecModel"}


@pytest.fixture(scope="module")
def rows(tool: Any, spark: SparkSession) -> DataFrame:
    found: DataFrame = tool.rows(spark)
    return found


@pytest.mark.slow
def test_each_class_is_taken_or_refused_by_name(tool: Any, rows: DataFrame, tmp_path: Path) -> None:
    wrong = []
    for name in tool.stages():
        stage = tool.one_of(name, rows)
        if name in REFUSED:
            with pytest.raises(InputError, match=rf"{stage.uid} \({name}\) cannot be computed without Spark"):
                Scorer(stage, schema=rows.schema)
            continue
        scorer = Scorer(stage, schema=rows.schema)
        scorer.save(tmp_path / name)
        again = Scorer.load(tmp_path / name)
        if name not in ANOTHER_INPUT:
            wrong += [f"{name}: {d}" for d in differences(again, stage, rows, 1e-6 if name in SINGLE else 1e-9)]
    assert not wrong, "\n".join(wrong[:20])


# Text -------------------------------------------------------------------------------------------------------------------

LETTERS = "aAbBzZßẞİıIiÀàçÇΣσςΑαΆάЖжДд字かカ한ǅǄﬁ" + "\u0301\u0345\u200d" + "\U0001f600\U00010400" + "ᲐᏣꟀ"
SPACES = " \t\n\x0b\f\r\u00a0\u2003\u3000\u0085\u2028\x1c"
MARKS = "-_.,;:!?'\"’()[]{}/\\|@#$%&*+=<>~`^\u2010\u00ad\u2027"
text = st.text(
    alphabet=st.one_of(st.sampled_from(LETTERS + SPACES + MARKS + "0123456789"), st.characters(codec="utf-8"))
)


def drawn(strategy: Any, n: int, seed: int) -> list[Any]:
    """Many examples at once: a Spark job for each would take too long."""
    found: list[Any] = []

    @settings(max_examples=n, database=None, derandomize=True, deadline=None)
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    random.Random(seed).shuffle(found)
    return found


@pytest.fixture(scope="module")
def texts(spark: SparkSession) -> DataFrame:
    found = drawn(text, 400, 0)
    # Java's rule for a final sigma looks at words as Java cuts them; blanks, letters and common marks are cut alike.
    some = random.Random(1)
    found += [
        "".join(some.choices("Σσα Α.,-'1!\u0301/", k=some.randint(1, 7))) + "Σ" * some.randint(0, 1) for _ in range(400)
    ]
    return spark.createDataFrame([(t,) for t in found], "x string").coalesce(1).cache()


WORDS = {
    "Tokenizer": Tokenizer,
    "gaps": RegexTokenizer,
    "words": lambda: RegexTokenizer(pattern=r"\w+", gaps=False, toLowercase=False),
    "letters": lambda: RegexTokenizer(pattern=r"[^\p{Alnum}'\]-]+|x?", minTokenLength=0),
    "dots": lambda: RegexTokenizer(pattern="(?:a|.)b*?$", minTokenLength=0, toLowercase=False),
    "long": lambda: RegexTokenizer(pattern=r"[\s\p{Punct}]", minTokenLength=2),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_of_text(texts: DataFrame, name: str) -> None:
    stage = WORDS[name]().setInputCol("x").setOutputCol("o")
    assert not differences(Scorer(stage), stage, texts)


@pytest.mark.parametrize("tag", ["tr-TR", "az-Latn", "lt"])
def test_a_language_with_a_lower_case_of_its_own(spark: SparkSession, tag: str) -> None:
    rows = spark.createDataFrame([("TITLE \u00ccs",)], "x string").coalesce(1)
    lowering = [kind(inputCol="x", outputCol="o") for kind in (Tokenizer, RegexTokenizer)]
    as_it_is = RegexTokenizer(inputCol="x", outputCol="o", toLowercase=False)
    locale = spark._jvm.java.util.Locale  # type: ignore[attr-defined]
    before = locale.getDefault()
    usual = in_spark(lowering[0], rows, ["o"])
    locale.setDefault(locale.forLanguageTag(tag))
    try:
        for stage in lowering:
            assert in_spark(stage, rows, ["o"]) != usual
            with pytest.raises(InputError, match=rf"{stage.uid} .* by the rules of the JVM's language, '{tag[:2]}'"):
                Scorer(PipelineModel([stage]))
        assert not differences(Scorer(as_it_is), as_it_is, rows)
    finally:
        locale.setDefault(before)


def test_a_match_behind_an_empty_one(spark: SparkSession) -> None:
    """Java goes on one character further; none of these characters is cut in two."""
    some = random.Random(2)
    texts = ["a, b", "aa", "", *("".join(some.choices("aα, \n-", k=some.randint(1, 9))) for _ in range(60))]
    df = spark.createDataFrame([(t,) for t in texts], "x string").coalesce(1)
    patterns = {r"(?<=,)|\s": True, "[aα]*?": False, "a??|,+": True, "(?=a)|α*": False}
    stages = [
        RegexTokenizer(inputCol="x", outputCol=f"o{i}", pattern=p, gaps=gaps, minTokenLength=i % 2, toLowercase=False)
        for i, (p, gaps) in enumerate(patterns.items())
    ]
    model = PipelineModel(stages)
    assert not differences(Scorer(model), model, df)


def test_a_character_that_java_cuts_in_two_is_refused() -> None:
    scorer = Scorer(RegexTokenizer(inputCol="x", outputCol="o", pattern="", minTokenLength=0))
    assert scorer.predict({"x": "Ab"}) == {"o": ["a", "b"]}
    with pytest.raises(InputError, match=r"column 'x' holds .*, in which the pattern finds nothing"):
        scorer.predict({"x": "\U0001f600"})


def test_a_text_of_many_stages(texts: DataFrame) -> None:
    labels = list(dict.fromkeys(row["x"] for row in texts.limit(200).collect()))
    model = PipelineModel(
        [
            Tokenizer(inputCol="x", outputCol="w"),
            StopWordsRemover(inputCol="w", outputCol="v", stopWords=["a", "ΑΣ", "İ", "б", ""]),
            NGram(inputCol="v", outputCol="g", n=2),
            HashingTF(inputCol="v", outputCol="h", numFeatures=50),
            HashingTF(inputCol="g", outputCol="b", binary=True, numFeatures=3000),
            CountVectorizerModel.from_vocabulary(["α", "a", "σ"], "v", "c", minTF=0.4),
            FeatureHasher(inputCols=["x"], outputCol="f", numFeatures=3000),
            StringIndexerModel.from_labels(labels, "x", "i", "keep"),
            IndexToString(inputCol="i", outputCol="s"),
        ]
    )
    outputs = ["g", "h", "b", "c", "f", "i", "s"]
    assert not differences(Scorer(model, outputCols=outputs), model, texts)


# Numbers ----------------------------------------------------------------------------------------------------------------

DOUBLES = [
    0.0,
    -0.0,
    1.0,
    0.1,
    1e7,
    9999999.0,
    0.001,
    0.00099,
    1e-5,
    1e21,
    123456.789,
    math.inf,
    -math.inf,
    5e-324,
    1e100,
]


def test_an_index_of_numbers(spark: SparkSession) -> None:
    """Of each type, in a column of its own."""
    some = random.Random(0)
    values: list[Any] = [*DOUBLES, *(struct.unpack("<d", some.randbytes(8))[0] for _ in range(200)), math.nan]
    whole = [some.randrange(-30000, 30000) for _ in values]
    kinds = {"double": values, "float": values, "int": whole, "bigint": whole[::-1], "smallint": whole}
    schema = ", ".join(f"`of {kind}` {kind}" for kind in kinds)
    df = spark.createDataFrame(list(zip(*kinds.values(), strict=True)), schema).coalesce(1).cache()
    outputs = [f"index of {kind}" for kind in kinds]
    indexer = StringIndexer(inputCols=df.columns, outputCols=outputs, handleInvalid="keep")
    model = indexer.fit(df.limit(150).dropna())
    assert not differences(Scorer(model, schema=df.schema), model, df)
    ours = Scorer(model).predict(df.toPandas())  # its columns know their type
    told = Scorer(model, schema=df.schema).predict([r.asDict() for r in df.collect()])
    for output in outputs:
        assert ours[output].tolist() == [row[output] for row in told], output


@pytest.mark.parametrize(("precision", "scale"), [(12, 4), (38, 18)])
def test_an_index_of_decimals(spark: SparkSession, precision: int, scale: int) -> None:
    """A decimal has the digits of its column's type; a Decimal of Python alone those that Spark gives it, 18."""
    values = list(map(Decimal, ["1.5", "0", "-0.0001", "1E+3", "12345678.25", "0.0001", "-7", "2.5"]))
    values += [Decimal(1).scaleb(-scale)]
    df = spark.createDataFrame([(v,) for v in [*values, None]], f"x decimal({precision}, {scale})").coalesce(1)
    model = StringIndexer(inputCol="x", outputCol="o", handleInvalid="keep").fit(df.where("x <> 2.5"))
    assert not differences(Scorer(model, schema=df.schema), model, df)
    theirs = [row["o"] for row in in_spark(model, df.where("x IS NOT NULL"), ["o"])]
    table = pa.table({"x": pa.array(values, pa.decimal128(precision, scale))})
    assert Scorer(model).predict(table)["o"].to_pylist() == theirs
    alone = [row["o"] for row in Scorer(model).predict([{"x": v} for v in values])]
    assert alone == (theirs if scale == 18 else [float(len(model.labels))] * len(values))


@pytest.mark.parametrize("far", [2**60 + 1, -(2**53) - 1, 2**53 - 1])
def test_an_index_of_integers_that_pandas_has_rounded(spark: SparkSession, far: int) -> None:
    """A column of integers with null is one of floats in pandas."""
    df = spark.createDataFrame([(7,), (None,), (far,)], "x bigint").coalesce(1)
    index = StringIndexer(inputCol="x", outputCol="i", handleInvalid="keep").fit(df.where("x is not null"))
    hashed = FeatureHasher(inputCols=["x"], outputCol="h", categoricalCols=["x"])
    vector = VectorAssembler(inputCols=["x"], outputCol="v", handleInvalid="keep")
    theirs = in_spark(PipelineModel([index, vector]), df, ["i", "v"])
    rows = df.toPandas()
    assert rows["x"].dtype == np.float64
    floats = Scorer(vector, schema=df.schema).predict(rows)["v"]
    assert [str(v[0]) for v in floats] == [str(row["v"][0]) for row in theirs]
    for stage in (index, hashed):
        scorer = Scorer(stage, schema=df.schema)
        for asked in (rows, {"x": float(far)}, pa.table({"x": rows["x"]}), [{"x": 7}, {"x": np.float64(far)}]):
            if abs(far) < 2**53:
                scorer.predict(asked)
                continue
            with pytest.raises(
                InputError, match=r"column 'x' holds .*, a float that several numbers of the schema's bigint"
            ):
                scorer.predict(asked)
    exact = (pd.DataFrame({"x": pd.array([7, None, far], "Int64")}), pa.table({"x": pa.array([7, None, far])}))
    for known in (*exact, pd.DataFrame({"x": pd.Series([7, None, far], dtype=object)})):
        found = Scorer(index, schema=df.schema).predict(known)["i"]
        assert (found.to_pylist() if isinstance(known, pa.Table) else found.tolist()) == [row["i"] for row in theirs]


def test_a_hash_of_numbers(spark: SparkSession) -> None:
    some = random.Random(1)
    data = [
        (
            float(some.randrange(100)) / 4,
            some.randrange(-5, 10**10),
            some.random() < 0.5,
            some.choice(DOUBLES[:10]),
            "é",
        )
        for _ in range(50)
    ]
    df = spark.createDataFrame([*data, (None,) * 5], "a double, b bigint, c boolean, d double, e string").coalesce(1)
    hasher = FeatureHasher(inputCols=list("abcde"), outputCol="o", categoricalCols=["a", "b"])
    assert not differences(Scorer(hasher, schema=df.schema), hasher, df)


def test_a_hash_of_lists_of_numbers(spark: SparkSession) -> None:
    """Of each type, in a column of its own."""
    kinds = {
        "double": DOUBLES,
        "float": DOUBLES,
        "int": [1, -3],
        "bigint": [1, 2**40],
        "boolean": [True, False],
    }
    row = {kind: [*values, None] for kind, values in kinds.items()}
    schema = ", ".join(f"`{kind}` array<{kind}>" for kind in kinds)
    lists = spark.createDataFrame([tuple(row.values())], schema).coalesce(1)
    model = PipelineModel([HashingTF(inputCol=kind, outputCol=f"hash of {kind}") for kind in kinds])
    assert not differences(Scorer(model, schema=lists.schema), model, lists)
    [there] = Scorer(model, schema=lists.schema).predict([row])
    for stage, kind, width in zip(model.stages, kinds, (pa.float64(), pa.float32(), pa.int32()), strict=False):
        table = pa.table({kind: pa.array([row[kind]], pa.list_(width))})  # Arrow knows the type
        found = Scorer(stage).predict(table)[f"hash of {kind}"][0].as_py()
        assert found["indices"] == there[f"hash of {kind}"].indices.tolist(), kind


# A pipeline -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def usual(df: DataFrame) -> PipelineModel:
    stages = [
        StringIndexer(inputCols=["kind", "grade"], outputCols=["kindIndex", "gradeIndex"], handleInvalid="keep"),
        OneHotEncoder(inputCols=["kindIndex"], outputCols=["hot"], handleInvalid="keep"),
        VectorAssembler(inputCols=["hot", "a", "b", "c"], outputCol="features", handleInvalid="keep"),
        LogisticRegression(maxIter=3),
        IndexToString(inputCol="prediction", outputCol="said", labels=["no", "yes"]),
    ]
    return Pipeline(stages=stages).fit(df)


ADVERSARIAL = [
    ("a", 1.0, 2.0, 3.0),
    (None, 0.0, -0.0, 0.0),
    ("unseen", 1e300, -1e300, 5e-324),
    ("A", math.nan, 0.0, 1.0),
    ("a ", None, 1.0, None),
    ("\U0001f600", math.inf, 1.0, 0.0),
    ("", -math.inf, 2.0, 1.0),
    ("b", math.inf, math.inf, 1.0),
]


@pytest.fixture(scope="module")
def adversarial(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(ADVERSARIAL, "kind string, a double, b double, c double").coalesce(1).cache()


def test_adversarial_rows(usual: PipelineModel, adversarial: DataFrame) -> None:
    scorer = Scorer(usual)
    assert scorer.inputCols == ("kind", "a", "b", "c")  # not the grade, which no prediction needs
    assert scorer.outputCols == ("rawPrediction", "probability", "prediction", "said")
    assert not differences(scorer, usual, adversarial)


def test_rows_that_spark_drops_are_refused(df: DataFrame, adversarial: DataFrame) -> None:
    """Also where no output needs what the stage writes: it drops the row all the same."""
    skip = {"handleInvalid": "skip"}
    stages = [
        StringIndexer(inputCols=["kind", "grade"], outputCols=["kindIndex", "gradeIndex"], **skip),
        VectorAssembler(inputCols=["a", "b"], outputCol="features", **skip),
        LogisticRegression(maxIter=2),
    ]
    model = Pipeline(stages=stages).fit(df)
    scorer, rows = Scorer(model), adversarial.withColumn("grade", F.when(F.col("c") == 1, 9.0).otherwise(1.0))
    assert not differences(scorer, model, rows.union(df.limit(9).select("kind", "a", "b", "c", "grade")))
    with pytest.raises(
        InputError, match=r"column 'a' holds null or NaN: Spark drops such a row \(handleInvalid='skip'\)"
    ):
        scorer.predict([{"kind": "a", "a": a, "b": 1.0, "grade": 1.0} for a in (1.0, None)])


def test_every_kind_of_rows_has_the_same_answers(usual: PipelineModel, adversarial: DataFrame) -> None:
    scorer, rows = Scorer(usual), [r.asDict() for r in adversarial.collect()]
    frame = pd.DataFrame(rows, index=list("stuvwxyz"))
    table = pa.Table.from_pylist(rows)
    dicts, by_pandas, by_arrow = scorer.predict(rows), scorer.predict(frame), scorer.predict(table)
    batch = scorer.predict(table.to_batches()[0])
    assert isinstance(batch, pa.RecordBatch)
    assert str(batch.to_pydict()) == str(by_arrow.to_pydict())
    assert list(by_pandas.index) == list(frame.index)
    for i, row in enumerate(dicts):
        for name, value in row.items():
            for other in (by_pandas[name].iloc[i], by_arrow[name][i].as_py()):
                np.testing.assert_array_equal(np.asarray(other), np.asarray(value))
    assert scorer.predict([]) == []
    assert len(scorer.predict(frame.iloc[:0])) == 0
    assert scorer.predict(table.slice(0, 0)).num_rows == 0
    for lacking in (pd.DataFrame(), table.slice(0, 0).drop_columns([scorer.inputCols[-1]])):
        with pytest.raises(InputError, match=r"the rows have no column .*, which the pipeline reads"):
            scorer.predict(lacking)
    upper = {k.upper(): v for k, v in rows[0].items()}
    assert scorer.predict(upper)["prediction"] == dicts[0]["prediction"]


def test_many_vectors_in_arrow(fitted: dict[str, Any], spark: SparkSession) -> None:
    """More rows than are computed at a time, vectors as Spark stores them, dense and sparse."""
    scorer, rows = Scorer(fitted["logistic"]), 20_001
    vectors = [Vectors.dense(i % 7, -i % 5, 1.0) if i % 3 else Vectors.sparse(3, [1], [i / 1000]) for i in range(rows)]
    kind = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    names = [field.name for field in kind]
    table = pa.table(
        {"vector": pa.array([dict(zip(names, VectorUDT().serialize(v), strict=True)) for v in vectors], kind)}
    )
    found = scorer.predict(table)
    wished = scorer.predict([{"vector": v} for v in vectors[::1000]])
    np.testing.assert_allclose(
        np.stack(found["probability"].to_pylist()[::1000]), np.stack([w["probability"] for w in wished]), 1e-12
    )
    assert found.num_rows == rows
    with pytest.raises(InputError, match=r"logistic needs 3 entries per row in column 'vector', got 2"):
        scorer.predict({"vector": [1.0, 2.0]})
    with pytest.raises(InputError, match="column 'vector' holds null or a number"):
        scorer.predict({"vector": None})


@pytest.fixture(scope="module")
def numbered(spark: SparkSession) -> DataFrame:
    data = [(Vectors.dense(i % 3, i % 5, 1.0), float(i % 7), float(i % 4)) for i in range(40)]
    return spark.createDataFrame(data, ["vec", "a", "label"]).coalesce(1).cache()


def test_a_prediction_that_is_nan_is_no_null(numbered: DataFrame, spark: SparkSession) -> None:
    """Behind a stage that never writes null, NaN is NaN; behind a null offset the prediction is null."""
    stages = [
        VectorAssembler(inputCols=["a"], outputCol="features", handleInvalid="keep"),
        LinearRegression(maxIter=1),
        Bucketizer(inputCol="prediction", outputCol="bin", splits=[-math.inf, 1.0, math.inf]),
    ]
    model = Pipeline(stages=stages).fit(numbered)
    row = spark.createDataFrame([(math.nan,)], "a double")
    assert fails(model, row, ["bin"])
    assert refuses(Scorer(model, outputCols=["bin"]), {"a": math.nan})

    offset = GeneralizedLinearRegression(featuresCol="vec", offsetCol="a", linkPredictionCol="link", maxIter=1)
    model = PipelineModel([offset.fit(numbered), stages[2]])
    some = spark.createDataFrame([(Vectors.dense(1.0, 2.0, 3.0), x) for x in (1.0, None)], ["vec", "a"]).coalesce(1)
    scorer = Scorer(model, outputCols=["prediction", "link", "bin", "LINK"])
    assert scorer.outputCols == ("prediction", "link", "bin")
    assert not differences(scorer, model, some)


def test_nothing_stands_in_place_of_a_vector(numbered: DataFrame) -> None:
    stages = [
        VectorAssembler(inputCols=["vec", "a"], outputCol="features"),
        DecisionTreeClassifier(maxDepth=2),
    ]
    model = Pipeline(stages=stages).fit(numbered)
    model.stages[0].setHandleInvalid("keep")
    for scorer in (Scorer(model), Scorer(model, schema=numbered.schema)):
        assert scorer.predict({"vec": [1.0, 2.0, 1.0], "a": 5.0})
        for vec in (None, 1.0):
            assert refuses(scorer, {"vec": vec, "a": 5.0})
    assert refuses(Scorer(model, schema=numbered.schema, outputCols=["features"]), {"vec": None, "a": 5.0})


def test_votes_are_added_in_the_order_of_the_trees(numbered: DataFrame) -> None:
    """So many rows that they are not computed by numpy; the sums agree to the last digit."""
    forest = RandomForestClassifier(featuresCol="vec", numTrees=30, maxDepth=3, seed=1).fit(numbered)
    many = numbered.unionAll(numbered).unionAll(numbered).unionAll(numbered)
    assert not differences(Scorer(forest, outputCols=["rawPrediction", "prediction"]), forest, many, 0.0)


def test_a_float_of_one_row_is_that_of_many(spark: SparkSession) -> None:
    df = spark.createDataFrame([(0.1,)], "x float")
    edge = Bucketizer(inputCol="x", outputCol="o", splits=[-math.inf, 0.10000000100000001, math.inf])
    scorer, theirs = Scorer(edge, schema=df.schema), in_spark(edge, df, ["o"])
    assert theirs == scorer.predict([{"x": 0.1}]) == [scorer.predict({"x": 0.1})] == [{"o": 1.0}]


def test_what_spark_takes_for_no_label_is_refused(spark: SparkSession) -> None:
    labels = StringIndexerModel.from_labels(["2024-01-01"], inputCol="x", outputCol="o", handleInvalid="keep")
    for value in (date(2024, 1, 1), datetime(2024, 1, 1), b"2024-01-01", True):
        row = spark.createDataFrame([(value,)], ["x"])
        assert fails(labels, row, ["o"]) and refuses(Scorer(labels), {"x": value}), value
        with pytest.raises(InputError, match=r"column 'x' holds .*, which is neither text nor a plain number"):
            Scorer(labels).predict(pa.table({"x": [value]}))
    back = IndexToString(inputCol="x", outputCol="o", labels=["a", "b"])
    assert fails(back, spark.createDataFrame([(True,)], "x boolean"), ["o"]) and refuses(Scorer(back), {"x": True})


def test_rows_and_structs_of_pyspark(spark: SparkSession) -> None:
    """`toPandas()` of a struct holds Rows, and `collect()` returns them."""
    df = spark.sql(
        "select named_struct('x', 1.5D, 'in', named_struct('y', 2L)) s, 3.5D z union all select null, 1D"
    ).coalesce(1)
    model = VectorAssembler(inputCols=["s.x", "s.in.y", "z"], outputCol="o", handleInvalid="keep")
    theirs = [str(row["o"].toArray()) for row in in_spark(model, df, ["o"])]
    for scorer in (Scorer(model), Scorer(model, schema=df.schema)):
        for rows in (df.collect(), [row.asDict() for row in df.collect()], [row.asDict(True) for row in df.collect()]):
            assert [str(row["o"]) for row in scorer.predict(rows)] == theirs
            assert [str(scorer.predict(row)["o"]) for row in rows] == theirs
        for pandas in (df.toPandas(), df.toPandas().assign(s=[row.s and row.s.asDict() for row in df.collect()])):
            assert [str(v) for v in scorer.predict(pandas)["o"]] == theirs
        with pytest.raises(InputError, match=r"column 's\.x' holds \(1\.5, 2\), which has no field 'x'"):
            scorer.predict({"s": (1.5, 2), "z": 1.0})
        with pytest.raises(InputError, match="no column 'x'"):
            scorer.predict({"s": Row(w=1.0), "z": 1.0})
        twofold = {"x": 1.0, "X": 2.0, "in": {"y": 1}}
        for asked in ({"s": twofold, "z": 1.0}, [{"s": twofold, "z": 1.0}], pd.DataFrame({"s": [twofold], "z": [1.0]})):
            with pytest.raises(InputError, match=r"2 columns that match 'x', \['x', 'X'\]: leave out all but one"):
                scorer.predict(asked)
    with pytest.raises(InputError, match="2 columns that match 'x'"):
        Scorer(model).predict(pa.table({"s": [twofold], "z": [1.0]}))


def test_vectors_as_spark_writes_them_in_json(spark: SparkSession) -> None:
    vectors = [
        Vectors.dense([1.0, -0.0, 1e300]),
        Vectors.sparse(3, [0, 2], [5.0, -1.5]),
        Vectors.sparse(3, [], []),
        Vectors.dense([math.nan, math.inf, -math.inf]),
    ]
    df = spark.createDataFrame([(v,) for v in vectors], ["v"]).coalesce(1)
    written = [json.loads(row) for row in df.toJSON().collect()]
    model = VectorAssembler(inputCols=["v"], outputCol="o", handleInvalid="keep")
    for scorer in (Scorer(model), Scorer(model, schema=df.schema)):
        theirs = [str(row["o"]) for row in scorer.predict([{"v": v} for v in vectors])]
        assert [str(scorer.predict(row)["o"]) for row in written] == [
            str(scorer.predict({"v": v})["o"]) for v in vectors
        ]
        assert [str(row["o"]) for row in scorer.predict(written)] == theirs
        assert [str(v) for v in scorer.predict(pd.DataFrame(written))["o"]] == theirs
        whole = {"type": 0, "size": 3, "indices": [0], "values": [1.0]}
        for wrong in (
            whole | {"type": 2},
            whole | {"indices": [3]},
            whole | {"indices": [-1]},
            whole | {"values": []},
            {"a": 1.0},
            {},
            whole | {"values": ["1.0"]},
            whole | {"values": [None]},
            {"type": 1, "values": None},
            {"type": [], "values": []},
        ):
            with pytest.raises(InputError, match=r"column 'v' holds \{.*which is no number, and no vector in the form"):
                scorer.predict({"v": wrong})


def test_types_of_tables(spark: SparkSession) -> None:
    big = spark.createDataFrame([(2**40,), (None,)], "x bigint").coalesce(1)
    model = Imputer(inputCol="x", outputCol="o").fit(big)
    scorer = Scorer(model, schema=big.schema)
    assert not differences(scorer, model, big)
    table = pa.table({"x": pa.array([2**40, None])})
    assert scorer.predict(table)["o"].to_pylist() == [2**40, 2**40]
    assert scorer.predict(table.slice(0, 0))["o"].type == pa.int64()
    words = Scorer(
        Tokenizer(inputCol="s.a", outputCol="w"), schema=spark.createDataFrame([(("A",),)], "s struct<a: string>")
    )
    row = {"s.a": "B", "s": {"a": "A"}}
    assert words.predict(row) == words.predict([row])[0]
    assert Scorer(Tokenizer(inputCol="x", outputCol="w")).predict(pa.table({"x": pa.array([], pa.string())}))[
        "w"
    ].type == pa.list_(pa.string())


def test_a_folder_that_is_none_is_refused(usual: PipelineModel, tmp_path: Path, spark: SparkSession) -> None:
    folder = tmp_path / "scorer"
    Scorer(usual).save(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scorer"]
    with pytest.raises(InputError, match="exists already"):
        Scorer(usual).save(folder)
    with pytest.raises(InputError, match="there is no scorer in"):
        Scorer.load(tmp_path)
    described = (folder / "scorer.json").read_text()
    told = json.loads(described)
    assert {k: told[k] for k in ("sparkVersion", "javaVersion", "timeZone")} == origin(spark)
    for changed, why in [
        (described.replace('"format": 1', '"format": 2', 1), "has format 2, and this version reads format 1"),
        (described.replace('"sparkdiff": "0.', '"sparkdiff": "99.', 1), "sparkdiff 99.* wrote the scorer"),
        (described.replace("sparkdiff.stages.linear.LogisticRegression", "os.system"), "needs the class os.system"),
        (described[:-100], "cannot be read"),
        ("[]", "has format None"),
        (described.replace('"tensor": "a0"', '"tensor": "zz"', 1), "is damaged"),
    ]:
        assert changed != described
        (folder / "scorer.json").write_text(changed)
        with pytest.raises(InputError, match=why):
            Scorer.load(folder)
    (folder / "scorer.json").write_text(described)
    (folder / "arrays.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="is damaged"):
        Scorer.load(folder)


def test_another_version_of_unicode_is_refused(tmp_path: Path, spark: SparkSession) -> None:
    for name, lowers in [("lowers", True), ("keeps", False)]:
        folder = tmp_path / name
        Scorer(RegexTokenizer(inputCol="x", outputCol="o", toLowercase=lowers)).save(folder)
        described = json.loads((folder / "scorer.json").read_text())
        (folder / "scorer.json").write_text(json.dumps(described | {"unicode": "1.0"}))
        if lowers:
            with pytest.raises(InputError, match=r"lowers text by Unicode 1\.0, and this Python has"):
                Scorer.load(folder)
        else:
            assert Scorer.load(folder).predict({"x": "A b"}) == {"o": ["A", "b"]}


def test_rows_that_fail_in_spark_fail_here(df: DataFrame, spark: SparkSession) -> None:
    strict = Pipeline(
        stages=[
            StringIndexer(inputCol="kind", outputCol="kindIndex"),
            VectorAssembler(inputCols=["kindIndex", "a"], outputCol="features"),
            LogisticRegression(maxIter=1),
        ]
    ).fit(df)
    scorer = Scorer(strict)
    for kind, a in [("a", 1.0), ("unseen", 1.0), (None, 1.0), ("a", None), ("a", math.nan), ("b", math.inf)]:
        row = spark.createDataFrame([(kind, a)], "kind string, a double")
        assert fails(strict, row, ["prediction"]) == refuses(scorer, {"kind": kind, "a": a}), (kind, a)
    with pytest.raises(
        InputError, match=r"StringIndexer_\w+: column 'kind' holds 'unseen', which is not among the labels"
    ):
        scorer.predict([{"kind": "a", "a": 1.0}, {"kind": "unseen", "a": 1.0}])
    with pytest.raises(
        InputError,
        match=r"no column 'kind', which the pipeline reads; for null, give it with the value None\. Did you mean 'kynd'",
    ):
        scorer.predict({"kynd": "a", "a": 1.0})
    with pytest.raises(InputError, match="column 'a' holds 'x', which is no number"):
        scorer.predict({"kind": "a", "a": "x"})


@pytest.mark.parametrize("inverse", [False, True])
def test_a_cosine_transform_of_what_is_not_finite_is_refused(
    spark: SparkSession, tmp_path: Path, inverse: bool
) -> None:
    stage = DCT(inverse=inverse, inputCol="v", outputCol="o")
    rows = [Vectors.dense([1.0, value, 0.0, 2.0, 3.0]) for value in (2.0, math.nan, 1e200)]
    df = spark.createDataFrame([(v,) for v in rows], ["v"]).coalesce(1)
    scorer = Scorer(PipelineModel([stage]))
    scorer.save(tmp_path / "scorer")
    for made in (scorer, Scorer.load(tmp_path / "scorer")):
        assert not differences(made, stage, df)
        for value in (math.inf, -math.inf, 1.7e308):
            wrong = {"v": Vectors.sparse(5, [3], [value])}
            for asked in (wrong, [{"v": rows[0]}, wrong]):
                with pytest.raises(
                    InputError,
                    match=rf"{stage.uid}: column 'v' holds a vector with the entry {re.escape(str(value))}, of",
                ):
                    made.predict(asked)
        with pytest.raises(InputError, match="the entry inf"):
            made.predict({"v": [math.nan, math.inf, 0.0, 0.0, 0.0]})


def test_thresholds_of_another_length_than_the_classes(df: DataFrame, fitted: dict[str, Any], tmp_path: Path) -> None:
    rows = fitted["assembler"].transform(df)
    kinds = (LogisticRegression, RandomForestClassifier, DecisionTreeClassifier, GBTClassifier, FMClassifier)
    for kind, label in [(kind, "label") for kind in kinds] + [(LogisticRegression, "grade"), (NaiveBayes, "label")]:
        features = "vector" if kind is not NaiveBayes else "positive"
        data = rows.withColumn("positive", array_to_vector(F.array(F.lit(1.0), F.abs(F.col("a")))))
        model = kind(featuresCol=features, labelCol=label).fit(data)
        k = model.numClasses
        for length in (k - 1, k + 1):
            wrong = model.copy()._set(thresholds=[0.5] * length)
            assert fails(wrong, data.limit(3), ["prediction"])
            why = (
                rf"{model.uid}: thresholds has {length} numbers, and the model has {k} classes: set one for each class"
            )
            for act in (
                lambda m=wrong: Scorer(m),
                lambda m=wrong: sparkdiff.plan(m),
                lambda m=wrong, d=data: sparkdiff.verify(m, d),
                lambda m=wrong, d=data: sparkdiff.FineTuner(m, labelCol="label").fit(d),
                lambda m=wrong, d=data: sparkdiff.export(m, tmp_path / "m.onnx", schema=d.schema),
                lambda m=wrong, d=data: sparkdiff.TorchTransformer(m, device="cpu").transform(d).head(),
            ):
                with pytest.raises(InputError, match=why):
                    act()
        Scorer(model.copy()._set(thresholds=[0.5] * k))


TYPED = {
    "Binarizer": lambda: Binarizer(threshold=0.5, inputCol="x", outputCol="o"),
    "Bucketizer": lambda: Bucketizer(splits=[0.0, 1.0, 9.0], inputCol="x", outputCol="o"),
    "VectorAssembler": lambda: VectorAssembler(inputCols=["x"], outputCol="o"),
    "Tokenizer": lambda: Tokenizer(inputCol="x", outputCol="o"),
    "IndexToString": lambda: IndexToString(inputCol="x", outputCol="o", labels=["a", "b", "c", "d"]),
}


@pytest.mark.parametrize("name", TYPED)
def test_types_that_spark_refuses(name: str, spark: SparkSession) -> None:
    stage, values = (
        TYPED[name](),
        {"int": 1, "float": 1.5, "boolean": True, "double": 1.5, "string": "1.5", "bigint": 3},
    )
    for kind, value in values.items():
        df = spark.createDataFrame([(value,)], f"x {kind}")
        try:
            stage.transform(df).schema  # noqa: B018  # over Connect only this asks
        except jvm.SparkError:
            with pytest.raises(
                InputError, match=rf"{stage.uid} \({name}\) reads 'x', whose type Spark refuses: .*cast the column"
            ):
                Scorer(stage, schema=df.schema)
        else:
            assert Scorer(stage, schema=df.schema).predict({"x": value})["o"] is not None


def test_what_cannot_be_served_is_refused_by_name(usual: PipelineModel, df: DataFrame) -> None:
    sql = SQLTransformer(statement="SELECT *, a + b AS s FROM __THIS__")
    why = rf"{sql.uid} \(SQLTransformer\) cannot be computed without Spark: .*; compute its columns before"
    with pytest.raises(InputError, match=why):
        Scorer(PipelineModel([sql, *usual.stages]))
    with pytest.raises(InputError, match="drops rows"):
        Scorer(Bucketizer(splits=[0.0, 1.0, 2.0], inputCol="a", outputCol="o", handleInvalid="skip"))
    for pattern in (r"\bx", "(?i)a", "a++", r"\p{L}+", "[a&&b]", r"(a)\1", "a{b}", "x{,3}"):
        with pytest.raises(InputError, match="Python's regular expressions have no equal"):
            Scorer(RegexTokenizer(inputCol="x", outputCol="o", pattern=pattern))
    with pytest.raises(InputError, match="locale 'tr'"):
        Scorer(StopWordsRemover(inputCol="x", outputCol="o", locale="tr"))
    words = df.sparkSession.createDataFrame([(["IN", "in", "\u0130N", "\u0131n"],)], ["x"])
    for locale in ("tr_TR", "az_AZ", "lt_LT"):  # as a whole no language that lowers text in its own way
        stops = StopWordsRemover(inputCol="x", outputCol="o", locale=locale, stopWords=["IN"])
        assert Scorer(stops).predict(words.first().asDict())["o"] == stops.transform(words).first()["o"]
    with pytest.raises(InputError, match=r"no stage writes column 'predction'\. Did you mean 'prediction'"):
        Scorer(usual, outputCols=["predction"])


def load_test(scorer: Scorer, folder: Path, seconds: float) -> dict[str, Any]:
    """What `serving_load` finds, in a process that finds no java."""
    scorer.save(folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("JAVA_HOME", "SPARK_HOME")}
    environment["PATH"] = str(Path(sys.executable).parent)
    assert shutil.which("java", path=environment["PATH"]) is None
    command = [sys.executable, "-m", "tests.support.serving_load", str(folder), str(seconds)]
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_eight_threads_without_spark(usual: PipelineModel, tmp_path: Path) -> None:
    found = load_test(Scorer(usual), tmp_path / "scorer", 1.5)
    assert found["requests"] > 100
    assert (found["wrong"], found["children"], found["spark"]) == (0, 0, False)
    assert found["grown"] < 24


@pytest.mark.nightly
def test_eight_threads_for_minutes(df: DataFrame, usual: PipelineModel, tmp_path: Path) -> None:
    """Text that is hashed is remembered, up to a bound."""
    hashed = [
        *usual.stages[:3],
        Tokenizer(inputCol="kind", outputCol="words"),
        HashingTF(inputCol="words", outputCol="hashed"),
        VectorAssembler(inputCols=["features", "hashed"], outputCol="all", handleInvalid="keep"),
        LogisticRegression(featuresCol="all", maxIter=2),
    ]
    found = load_test(Scorer(Pipeline(stages=hashed).fit(df)), tmp_path / "scorer", 100)
    assert (found["wrong"], found["children"]) == (0, 0)
    assert found["grown"] < 64


def answers_differ(scorer: Scorer, rows: list[dict[str, Any]], seed: int, wished: list[Any]) -> list[int]:
    """Which rows, asked in another order, get another answer than before."""
    order = [*range(len(rows))] * 5
    random.Random(seed).shuffle(order)
    return [i for i in order if scorer.predict(rows[i])["probability"].tolist() != wished[i]]


def test_eight_threads_get_right_answers(usual: PipelineModel, df: DataFrame) -> None:
    trees = Pipeline(stages=[*usual.stages[:3], RandomForestClassifier(numTrees=20, maxDepth=3, seed=1)]).fit(df)
    rows = [{"kind": "abcx"[i % 4], "a": i / 7, "b": -i / 3, "c": 7.0} for i in range(40)]
    for model in (usual, trees):
        wished = [Scorer(model).predict(row)["probability"].tolist() for row in rows]
        asked = Scorer(model)  # a new one: several threads ask it for the first time
        with ThreadPoolExecutor(8) as threads:
            wrong = list(threads.map(lambda seed, s=asked, w=wished: answers_differ(s, rows, seed, w), range(8)))
        assert wrong == [[]] * 8


# What is recorded ------------------------------------------------------------------------------------------------------


def test_the_table_is_up_to_date() -> None:
    """`python tools/serving_table.py` brings it up to date."""
    path = ROOT / "tools" / "serving_table.py"
    spec = importlib.util.spec_from_file_location("serving_table", path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text("utf-8")
    assert tool.page(text) == text
    assert {r.name for r in tool.rows() if not r.where} == REFUSED == set(NOT_SERVED)
