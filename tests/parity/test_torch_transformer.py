"""`sparkdiff.TorchTransformer`: the columns of the pipeline's own transform, values, types and metadata, computed by torch."""

import importlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, RandomForestClassifier
from pyspark.ml.feature import (
    DCT,
    IDF,
    Bucketizer,
    HashingTF,
    Imputer,
    IndexToString,
    OneHotEncoder,
    RFormula,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
    Word2Vec,
)
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, TorchTransformer, jvm
from sparkdiff.machine import package
from tests.support.torch_parity import check_same

SERVING = importlib.import_module("sparkdiff.serving.torch_transformer")


def vector(*columns: str, keep: bool = True) -> VectorAssembler:
    return VectorAssembler(inputCols=[*columns], outputCol="vector", handleInvalid="keep" if keep else "error")


PIPELINES: dict[str, Callable[[], list[Any]]] = {
    "strings on both sides": lambda: [
        StringIndexer(inputCol="kind", outputCol="kindIndex", handleInvalid="keep"),
        OneHotEncoder(inputCols=["kindIndex", "index"], outputCols=["hot", "indexHot"], handleInvalid="keep"),
        vector("hot", "indexHot", "a", "whole"),
        LogisticRegression(featuresCol="vector", labelCol="label", maxIter=3),
        IndexToString(inputCol="prediction", outputCol="said", labels=["no", "yes"]),
    ],
    "overwritten columns and nulls": lambda: [
        Imputer(inputCols=["a", "whole"], outputCols=["a", "whole"], missingValue=7.0),
        Bucketizer(splits=[-9e9, 0.0, 2.0, 9e9], inputCol="a", outputCol="bin", handleInvalid="keep"),
        OneHotEncoder(inputCols=["bin"], outputCols=["binHot"], handleInvalid="keep"),
        vector("bin", "b", "whole"),
        StandardScaler(inputCol="vector", outputCol="scaled"),
    ],
    "trees of several outputs": lambda: [
        vector("index", "a", "b"),
        RandomForestClassifier(featuresCol="vector", labelCol="grade", numTrees=3, maxDepth=3, seed=1, leafCol="leaf"),
        GBTRegressor(featuresCol="vector", labelCol="count", maxIter=2, maxDepth=2, predictionCol="mean"),
    ],
    "wide sparse": lambda: [
        Tokenizer(inputCol="text", outputCol="words"),
        HashingTF(inputCol="words", outputCol="counts", numFeatures=1 << 14),
        IDF(inputCol="counts", outputCol="weighed"),
        LogisticRegression(featuresCol="weighed", labelCol="label", maxIter=2),
    ],
    "words": lambda: [
        Tokenizer(inputCol="text", outputCol="words"),
        Word2Vec(inputCol="words", outputCol="mean", vectorSize=2, minCount=1, maxIter=1, seed=1),
        LinearRegression(featuresCol="mean", labelCol="count"),
    ],
    "formula and offset": lambda: [
        RFormula(formula="count ~ a + kind", featuresCol="vector", labelCol="made"),
        GeneralizedLinearRegression(
            featuresCol="vector", labelCol="count", family="poisson", offsetCol="offset", maxIter=2
        ),
    ],
}


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> DataFrame:
    return df.select(
        "*",
        F.col("count").cast("int").alias("whole"),
        F.col("a").alias("offset"),
        F.concat_ws(" ", "kind", F.col("grade").cast("string"), F.lit("the"), "kind").alias("text"),
        F.struct("a", "b").alias("pair"),
    ).cache()


@pytest.fixture(scope="module")
def hostile(rows: DataFrame) -> DataFrame:
    """Rows with NaN, infinities, zeros of both signs, nulls and an unseen category, beside usual ones."""
    odd = [F.lit(v).cast("double") for v in (float("nan"), float("inf"), -0.0, 7.0, None)]
    made = [
        rows.limit(2).withColumns({"a": value, "b": other, "kind": F.lit("unseen"), "whole": F.lit(None).cast("int")})
        for value in odd
        for other in odd
    ]
    out = rows.limit(5)
    for part in made:
        out = out.unionByName(part)
    return out.coalesce(1).cache()


def test_a_column_that_nobody_reads_is_not_computed(spark: SparkSession) -> None:
    """As in Spark, where an unseen label fails only if it is asked for."""
    schema = "a double, n int, kind string, target double"
    train = spark.createDataFrame([(0.1, 0, "a", 0.6), (-0.2, 1, "b", 0.4), (-0.8, 2, "c", 3.0)], schema)
    unseen = spark.createDataFrame([(-0.7, 1, "b", 1.0)], schema)
    formula = RFormula(formula="target ~ n + a + kind", featuresCol="made", labelCol="index", forceIndexLabel=True)
    model = Pipeline(stages=[formula]).fit(train)
    ours = TorchTransformer(model, device="cpu")
    assert ours.transform(train).collect() == model.transform(train).collect()
    assert ours.transform(unseen).select("made").collect() == model.transform(unseen).select("made").collect()
    with pytest.raises(jvm.SparkError, match=r"(?s)Unseen label: 1\.0"):
        ours.transform(unseen).collect()


@pytest.mark.parametrize("name", PIPELINES)
def test_columns_are_those_of_spark(name: str, rows: DataFrame, hostile: DataFrame) -> None:
    model = Pipeline(stages=PIPELINES[name]()).fit(rows)
    odd = {} if name == "formula and offset" else {"odd.na`me": F.lit(1.5)}  # which Spark's own RFormulaModel fails on
    check_same(model, rows.limit(40).withColumns(odd))
    if name in ("strings on both sides", "trees of several outputs"):
        check_same(model, hostile)
    if name == "overwritten columns and nulls":
        check_same(model, hostile.where("a is null or abs(a) < 1e9"))


def test_what_spark_refuses_names_stage_column_and_value(rows: DataFrame, hostile: DataFrame) -> None:
    model = Pipeline(
        stages=[vector("a", "b", keep=False), LinearRegression(featuresCol="vector", labelCol="count")]
    ).fit(rows)
    frame = TorchTransformer(model, device="cpu").transform(hostile)
    with pytest.raises(jvm.SparkError, match=rf"{model.stages[0].uid}: column 'a' holds null or NaN"):
        frame.collect()
    made = TorchTransformer(model.stages[1], device="cpu")
    empty = model.stages[0].transform(rows).withColumn("vector", F.when(F.col("a") > 0, F.col("vector")))
    with pytest.raises(jvm.SparkError, match="column 'vector' holds null in place of a vector"):
        made.transform(empty).collect()


def test_it_is_lazy_saved_and_copied(rows: DataFrame, tmp_path: Path) -> None:
    model = Pipeline(stages=[vector("a", "b"), LinearRegression(featuresCol="vector", labelCol="count")]).fit(rows)
    made = TorchTransformer(model, device="cpu")
    broken = rows.withColumn("a", F.raise_error(F.lit("it was run")).cast("double"))
    assert made.transform(broken).columns == model.transform(rows).columns  # no row is read
    made.save(str(tmp_path / "new" / "t"))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t"]
    loaded = TorchTransformer.load(str(tmp_path / "new" / "t"))
    assert (loaded.uid, loaded.getDevice(), loaded.choice) == (made.uid, "cpu", None)
    assert type(PipelineModel.load(str(tmp_path / "new" / "t" / "pipelineModel"))) is PipelineModel
    with pytest.raises(InputError, match="exists already"):
        made.save(str(tmp_path / "new" / "t"))
    made.write().overwrite().save(str(tmp_path / "new" / "t"))
    (tmp_path / "file").touch()
    made.write().overwrite().save(str(tmp_path / "file"))
    assert (tmp_path / "file" / "metadata").is_dir()
    renamed = loaded.transform(rows, {model.stages[1].getParam("predictionCol"): "other"})
    assert "other" in renamed.columns and "prediction" in loaded.transform(rows).columns
    assert PipelineModel([made]).transform(rows).columns == model.transform(rows).columns


def test_the_fastest_is_chosen_and_told(
    rows: DataFrame, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Pipeline(stages=[vector("a", "b"), LinearRegression(featuresCol="vector", labelCol="count")]).fit(rows)
    took = {"spark": 1.0, "cpu": 2.0}
    monkeypatch.setattr(SERVING, "measure_seconds", lambda frames: {device: took[device] for device in frames})
    made = TorchTransformer(model)
    with caplog.at_level(logging.INFO, "sparkdiff.serving"):
        assert "python" not in str(made.transform(rows)._jdf.queryExecution()).lower()
    assert "MLlib's own transform is fastest" in caplog.text and made.choice.device == "spark"
    took["cpu"] = 0.5
    assert made.measure(rows).device == "cpu"
    assert "mapinarrow" in str(made.transform(rows)._jdf.queryExecution()).lower()
    strings = StringIndexer(inputCol="kind", outputCol="k").fit(rows)
    alone = TorchTransformer(strings)
    assert alone.transform(rows).columns[-1] == "k" and "no stage of this pipeline is translated" in alone.choice.reason
    with pytest.raises(InputError, match="no stage of this pipeline is translated"):
        TorchTransformer(strings, device="cpu").transform(rows)
    with pytest.raises(InputError, match="device='tpu' must be one of 'auto'"):
        TorchTransformer(model, device="tpu")


def test_measuring_takes_every_device(rows: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SERVING, "TURNS", 1)
    monkeypatch.setattr(SERVING, "COPIES", 2)
    model = Pipeline(stages=[vector("a", "b"), LinearRegression(featuresCol="vector", labelCol="count")]).fit(rows)
    choice = TorchTransformer(model).measure(rows)
    assert choice.rows == 240 and set(choice.seconds) == {"spark", "cpu"} and min(choice.seconds.values()) > 0


def test_what_cannot_be_measured_is_left_to_mllib_this_time(
    rows: DataFrame, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Pipeline(stages=[vector("a", "b"), LinearRegression(featuresCol="vector", labelCol="count")]).fit(rows)
    made = TorchTransformer(model)
    twice = rows.select("a", "b", F.lit(1).alias("c"), F.lit(2).alias("c"))
    interval = rows.withColumn("every", F.expr("make_interval(1, 2)"))  # Arrow does not carry it
    for frame, why in (
        (rows.limit(3), "3 rows are too few"),
        (twice, "measuring failed"),
        (interval, "measuring failed"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "sparkdiff.serving"):
            assert made.transform(frame).columns == [*frame.columns, "vector", "prediction"]
        assert why in caplog.text and made.choice is None
    monkeypatch.setattr(SERVING, "measure_seconds", lambda frames: dict(zip(frames, (2.0, 1.0, 3.0), strict=False)))
    made.transform(rows)
    made.transform(rows.limit(0))
    assert made.choice is not None and made.choice.device == "cpu"


def test_what_cannot_be_computed_is_refused_in_a_sentence(rows: DataFrame) -> None:
    months = rows.withColumn("every", F.expr("interval '1' month"))
    with pytest.raises(
        InputError, match="column 'every' is interval month, which Arrow does not carry to torch: drop or cast"
    ):
        TorchTransformer(vector("a", "b"), device="cpu").transform(months)
    twice = rows.select("a", "b", F.lit(1).alias("c"), F.lit(2).alias("C"))  # which Spark passes on
    with pytest.raises(InputError, match="2 columns match 'c', 'c', 'C': rename all but one, or set device='spark'"):
        TorchTransformer(vector("a", "b"), device="cpu").transform(twice)
    with pytest.raises(InputError, match="expected a fitted PipelineModel or stage, got NoneType"):
        TorchTransformer(None)
    with pytest.raises(InputError, match="isn't fitted"):
        TorchTransformer(LinearRegression())


def test_nan_is_refused_alone_in_its_batch(rows: DataFrame) -> None:
    stages = [Bucketizer(splits=[-9e9, 0.0, 9e9], inputCol=c, outputCol=f"{c}Bin") for c in ("a", "b")]
    model = Pipeline(stages=stages).fit(rows)
    odd = rows.limit(1).withColumns({"a": F.lit(float("nan")), "b": F.lit(None).cast("double")})
    assert TorchTransformer(model, device="cpu").transform(odd.withColumn("a", F.lit(1.0))).head()["bBin"] is None
    for transformer in (model, TorchTransformer(model, device="cpu")):
        with pytest.raises(jvm.SparkError, match="NaN"):
            transformer.transform(odd).collect()


def test_a_cosine_transform_of_what_is_not_finite_is_refused(rows: DataFrame) -> None:
    model = Pipeline(stages=[vector("a", "b"), DCT(inputCol="vector", outputCol="waves")]).fit(rows)
    check_same(model, rows.limit(5))
    infinite = rows.limit(5).withColumn("b", F.when(F.col("a") > -1e9, F.lit(float("-inf"))))
    with pytest.raises(
        jvm.SparkError, match=rf"{model.stages[1].uid}: column 'vector' holds a vector with the entry -inf"
    ):
        TorchTransformer(model, device="cpu").transform(infinite).collect()


def test_vectors_that_are_all_null_are_as_wide_as_their_column(rows: DataFrame) -> None:
    model = Pipeline(stages=[VectorAssembler(inputCols=["part", "a"], outputCol="all", handleInvalid="keep")]).fit(rows)
    parts = VectorAssembler(inputCols=["index", "count"], outputCol="part").transform(rows)
    metadata = parts.schema["part"].metadata
    check_same(
        model,
        parts.limit(3).withColumn(
            "part", F.when(F.col("count") < -1e9, F.col("part")).alias("part", metadata=metadata)
        ),
    )


def test_a_stage_in_spark_needs_its_own_version_of_a_column(rows: DataFrame) -> None:
    said = IndexToString(inputCol="index", outputCol="said", labels=["x", "y", "z"])
    binned = Bucketizer(splits=[-1.0, 1.0, 9.0], inputCol="index", outputCol="bin")
    imputer = Imputer(inputCols=["index"], outputCols=["index"]).fit(rows)
    sql = SQLTransformer(statement="SELECT *, index + 1 AS more FROM __THIS__")
    check_same(PipelineModel([said, imputer, sql, VectorAssembler(inputCols=["more"], outputCol="v")]), rows.limit(20))
    model = PipelineModel([said, binned, imputer])
    with pytest.raises(
        InputError, match=r"stays in Spark, and Imputer_\w+ behind it writes a column .* device='spark'"
    ):
        TorchTransformer(model, device="cpu").transform(rows)


@pytest.mark.parametrize(
    "what",
    [
        "CAST(prediction - a AS FLOAT) AS prediction",  # of doubles, not of floats
        "prediction > 5.5 AS vector, CAST(prediction AS STRING) AS p",
    ],
)
def test_a_last_stage_in_spark_may_drop_or_recast_its_input(what: str, rows: DataFrame) -> None:
    front = [vector("a", "b"), LinearRegression(featuresCol="vector", labelCol="count")]
    fitted = Pipeline(stages=front).fit(rows).stages
    model = PipelineModel([*fitted, SQLTransformer(statement=f"SELECT a, {what} FROM __THIS__")])
    check_same(model, rows.limit(20).withColumn("a", F.col("a") + 1e6))


def test_rows_may_lack_a_label_indexed_with_a_feature(rows: DataFrame) -> None:
    """Spark passes over an input that the rows lack."""
    indexer = StringIndexer(inputCols=["label", "kind"], outputCols=["class", "k"], handleInvalid="keep")
    assembler = VectorAssembler(inputCols=["a", "k"], outputCol="vector")
    model = Pipeline(
        stages=[indexer, assembler, LogisticRegression(featuresCol="vector", labelCol="class", maxIter=2)]
    ).fit(rows)
    check_same(model, rows.drop("label"))
    assert sparkdiff.verify(model, rows.drop("label")).ok
    with pytest.raises(InputError, match=f"{indexer.uid} reads column 'kind', which is not in the data"):
        sparkdiff.verify(model, rows.drop("kind"))


def test_executors_get_the_same_whole_package_each_time(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        package.write_zip(tmp_path / name, ["sparkdiff/cli"])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    found = set(zipfile.ZipFile(tmp_path / "a.zip").namelist())
    assert {"sparkdiff/__init__.py", "sparkdiff/pipeline/spark_inference.py"} <= found
    assert not any(n.startswith("sparkdiff/cli") for n in found)


def test_it_is_public() -> None:
    assert sparkdiff.TorchTransformer is SERVING.TorchTransformer
