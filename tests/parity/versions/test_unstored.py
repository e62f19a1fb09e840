"""What Spark has no number for: coefficients that an L1 penalty leaves out, and the vector that an encoder makes of null."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, OneVsRest
from pyspark.ml.feature import OneHotEncoder, StandardScaler, VectorAssembler, VectorIndexer, VectorSizeHint, Word2Vec
from pyspark.ml.linalg import SparseMatrix, SparseVector, Vectors
from pyspark.ml.regression import DecisionTreeRegressor, FMRegressor, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, jvm
from sparkdiff.growth.assembly import with_output_coefficients
from sparkdiff.growth.part import Output
from sparkdiff.jvm.coefficients import stored_of

COLUMNS = [*"abcdefgh"]
LOST = (0.0, None, float("nan"), float("inf"), -float("inf"))


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    """Classes that depend on `a` and `b` only."""
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 8))
    two, three = (x[:, 0] > 0).astype(float), np.digitize(x[:, 0], [-0.5, 0.5]).astype(float)
    table = [(*map(float, r), float(v), float(w)) for r, v, w in zip(x, two, three, strict=True)]
    return spark.createDataFrame(table, [*COLUMNS, "two", "three"]).coalesce(1).cache()


@pytest.fixture(scope="module")
def odd(spark: SparkSession) -> DataFrame:
    """Each of LOST in each column; the others are numbers."""
    table = [[v if j == k else 0.5 for k in range(8)] + [1.0, 1.0] for j in range(8) for v in LOST]
    return (
        spark.createDataFrame(table, ", ".join(f"{c} double" for c in [*COLUMNS, "two", "three"])).coalesce(1).cache()
    )


def fitted(rows: DataFrame, label: str, rest: bool = False) -> PipelineModel:
    last: Any = LogisticRegression(labelCol=label, regParam=0.1, elasticNetParam=1.0, maxIter=20)
    if rest:
        last = OneVsRest(classifier=last, labelCol=label)
    assembler = VectorAssembler(inputCols=COLUMNS, outputCol="features", handleInvalid="keep")
    return Pipeline(stages=[assembler, last]).fit(rows)


def regression(rows: DataFrame) -> PipelineModel:
    assembler = VectorAssembler(inputCols=COLUMNS, outputCol="features", handleInvalid="keep")
    last = LinearRegression(labelCol="two", regParam=0.1, elasticNetParam=1.0, solver="l-bfgs", maxIter=20)
    return Pipeline(stages=[assembler, last]).fit(rows)


CASES: dict[str, Callable[[DataFrame], PipelineModel]] = {
    "two classes": lambda rows: fitted(rows, "two"),
    "three classes": lambda rows: fitted(rows, "three"),
    "one against the rest": lambda rows: fitted(rows, "three", rest=True),
    "a regression": regression,
}


@pytest.fixture(scope="module")
def models(rows: DataFrame) -> Callable[[str], PipelineModel]:
    """The model of a case, fitted once."""
    return functools.cache(lambda name: CASES[name](rows))


def matrix(model: PipelineModel) -> Any:
    last = model.stages[-1]
    last = last.models[0] if hasattr(last, "models") else last
    return last.coefficientMatrix if hasattr(last, "coefficientMatrix") else last.coefficients


@pytest.mark.parametrize("name", CASES)
def test_a_coefficient_that_is_not_stored_is_not_multiplied(
    name: str, models: Callable[[str], PipelineModel], odd: DataFrame, tmp_path: Path
) -> None:
    """Not by NaN and infinity either: before training, in serving, and where training leaves it at 0."""
    model = models(name)
    assert isinstance(matrix(model), (SparseMatrix, SparseVector))
    assert sparkdiff.verify(model, odd).ok
    expected = [r["prediction"] for r in model.transform(odd).collect()]
    given = [r.asDict() for r in odd.select(*COLUMNS).collect()]
    assert [r["prediction"] for r in sparkdiff.Scorer(model).predict(given)] == pytest.approx(
        expected, rel=1e-12, nan_ok=True
    )
    sparkdiff.export(model, str(tmp_path / "m.onnx"), outputCols=["prediction"])
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    numbers = {c: np.array([np.nan if r[c] is None else r[c] for r in given]) for c in COLUMNS}
    assert session.run(["prediction"], numbers)[0].tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    network = sparkdiff.translate(model)
    with torch.no_grad():
        for weight in (p for n, p in network.named_parameters() if n.endswith(("coefficientMatrix", "coefficients"))):
            weight[..., 1] = 0.75  # of a feature that some rows or all leave out
    back = sparkdiff.write_back(model, network)
    stored = matrix(back)
    assert isinstance(stored, (SparseMatrix, SparseVector))
    assert (stored.toArray()[..., 1] == 0.75).all()
    assert sparkdiff.verify(back, odd, network=network).ok
    assert sparkdiff.verify(back, odd).ok


def test_sparse_rows_lack_such_coefficients_too(models: Callable[[str], PipelineModel], spark: SparkSession) -> None:
    model = PipelineModel([models("three classes").stages[-1]])
    vectors = [Vectors.sparse(8, [0, j], [1.0, v]) for j in (1, 2, 3) for v in LOST if v is not None]
    data = spark.createDataFrame([(v, 1.0) for v in vectors], ["features", "three"])
    assert sparkdiff.verify(model, data).ok


def test_training_refuses_rows_that_need_such_a_coefficient(
    models: Callable[[str], PipelineModel], rows: DataFrame, tmp_path: Path
) -> None:
    """Training moves it from 0, and then they have no prediction."""
    model = models("two classes")
    gaps = rows.withColumn("d", F.when(F.abs("c") > 0.1, F.col("d")))
    tuner = sparkdiff.FineTuner(
        model, labelCol="two", maxEpochs=1, recipe="fast", cacheDir=str(tmp_path), rowsAreNew=True
    )
    with pytest.raises(InputError, match=r"entry 3 of column 'features' is NaN, null or infinite .*impute the column"):
        tuner.fit(gaps)


@pytest.mark.parametrize("name", ["two classes", "three classes"])
def test_a_stage_that_grows_does_not_store_it_either(
    name: str, models: Callable[[str], PipelineModel], odd: DataFrame
) -> None:
    model = models(name)
    *stages, last = model.stages
    k = len(matrix(model).toArray())
    last = with_output_coefficients(last, [Output("a", np.zeros((k, 1)))])
    assert stored_of(last).tolist() == [[*row, True] for row in stored_of(model.stages[-1]).tolist()]
    again = VectorAssembler(inputCols=["features", "one"], outputCol="more", handleInvalid="keep")
    grown = PipelineModel([*stages, again, last.setFeaturesCol("more")])
    found = grown.transform(odd.withColumn("one", F.lit(1.0))).select("prediction").collect()
    assert found == model.transform(odd).select("prediction").collect()


def test_growth_refuses_rows_that_need_such_a_coefficient(
    models: Callable[[str], PipelineModel], rows: DataFrame, tmp_path: Path
) -> None:
    """Before its rounds; behind them no stage of the parts was to blame."""
    gaps = rows.withColumn("d", F.when(F.abs("c") > 0.1, F.col("d")))
    grower = sparkdiff.Grower(
        models("three classes"), labelCol="three", cacheDir=str(tmp_path), rowsAreNew=True, numFolds=2
    )
    with pytest.raises(InputError, match=r"entry 3 of column 'features' is NaN, null or infinite .*impute the column"):
        grower.fit(gaps)


# The vector of null -----------------------------------------------------------------------------------------------------


READERS: dict[str, Callable[[], Any]] = {
    "an assembler that refuses": lambda: VectorAssembler(inputCols=["a", "hot"], outputCol="v"),
    "an assembler that skips": lambda: VectorAssembler(inputCols=["a", "hot"], outputCol="v", handleInvalid="skip"),
    "a scaler": lambda: StandardScaler(inputCol="hot", outputCol="v"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_null_behind_an_encoder_is_refused_where_spark_fails(name: str, rows: DataFrame, tmp_path: Path) -> None:
    data = rows.withColumn("i", F.monotonically_increasing_id().cast("int") % 3).select("a", "i", "two")
    encoder = OneHotEncoder(inputCol="i", outputCol="hot", handleInvalid="keep")
    last = DecisionTreeRegressor(featuresCol="v", labelCol="two", maxDepth=2)
    model = Pipeline(stages=[encoder, READERS[name](), last]).fit(data)
    scorer = sparkdiff.Scorer(model, schema=data.schema)
    known = {"a": 1.0, "i": 2}
    expected = model.transform(data.sparkSession.createDataFrame([known], "a double, i int")).first()["prediction"]
    scorer.save(tmp_path / "scorer")
    for each in (scorer, sparkdiff.Scorer.load(tmp_path / "scorer")):
        assert each.predict(known)["prediction"] == expected
        for given in ({"a": 1.0, "i": None}, [known, {"a": 1.0, "i": None}]):
            with pytest.raises(
                InputError, match=r"column 'i' holds null, so that its vector is null, which .* refuses"
            ):
                each.predict(given)
    if name == "an assembler that skips":
        return  # which stays in Spark, with all in front of it
    sparkdiff.export(model, str(tmp_path / "m.onnx"), schema=data.schema, outputCols=["prediction"])
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    whole = {"a": np.ones(2), "i": np.array([2.0, np.nan]), "i is null": np.array([False, True])}
    found = session.run(["prediction", "refused by Spark"], {i.name: whole[i.name] for i in session.get_inputs()})
    assert found[1].tolist() == [False, True]
    assert found[0][0] == expected


def test_a_null_vector_is_refused_by_those_who_need_it_only(rows: DataFrame) -> None:
    """A size hint that does not look passes it on, and a stage that no wanted column needs is not asked."""
    data = rows.withColumn("i", F.monotonically_increasing_id().cast("int") % 3).select("a", "i", "two")
    stages = [
        OneHotEncoder(inputCol="i", outputCol="hot", handleInvalid="keep"),
        VectorSizeHint(inputCol="hot", size=3, handleInvalid="optimistic"),
        VectorAssembler(inputCols=["a", "hot"], outputCol="v", handleInvalid="keep"),
        DecisionTreeRegressor(featuresCol="v", labelCol="two", maxDepth=2),
        StandardScaler(inputCol="hot", outputCol="unread"),
    ]
    model, row = Pipeline(stages=stages).fit(data), {"a": 1.0, "i": None}
    one = data.sparkSession.createDataFrame([row], "a double, i int")
    expected = model.transform(one).select("prediction").first()["prediction"]
    assert sparkdiff.Scorer(model, data.schema, ["prediction"]).predict(row)["prediction"] == expected
    with pytest.raises(InputError, match=f"which {model.stages[-1].uid} refuses"):
        sparkdiff.Scorer(model, data.schema, ["unread"]).predict(row)
    passing = PipelineModel(model.stages[:-1])
    assert sparkdiff.verify(passing, data.limit(3).select("a", "i").union(one).coalesce(1)).ok
    assert sparkdiff.verify(passing, one).ok


def test_factors_that_are_not_finite_are_not_multiplied_by_zero(spark: SparkSession, tmp_path: Path) -> None:
    """As of a diverged fit: Spark skips entries of 0, stored or not."""
    weights = {"intercept": 0.5, "linear": np.array([0.0, 1.0]), "factors": np.array([[np.inf, np.nan], [2.0, 1.0]])}
    model = jvm.model_with_weights(FMRegressor(factorSize=2), weights)
    vectors = [Vectors.dense([0.0, 3.0]), Vectors.sparse(2, [1], [3.0]), Vectors.sparse(2, [0, 1], [0.0, 3.0])]
    df = spark.createDataFrame([(v,) for v in vectors], ["features"]).coalesce(1)
    expected = [3.5] * 3
    assert [row.prediction for row in model.transform(df).collect()] == expected
    by_torch = sparkdiff.TorchTransformer(model, device="cpu").transform(df)
    assert [row.prediction for row in by_torch.collect()] == expected
    assert [
        found["prediction"] for found in sparkdiff.Scorer(model).predict([{"features": v} for v in vectors])
    ] == expected
    sparkdiff.export(model, tmp_path / "fm.onnx", schema=df)
    session = onnxruntime.InferenceSession(tmp_path / "fm.onnx")
    [found] = session.run(None, {"features": np.array([v.toArray() for v in vectors])})
    assert found.tolist() == expected


def test_a_row_without_words_stores_nothing(spark: SparkSession) -> None:
    """Spark leaves what is not stored alone, where a zero would be a value that the VectorIndexer doesn't know."""
    rows = [(["a"],), (["b"],), (["c"],), (["b"],)]  # one word each, so that no sum rounds
    train = spark.createDataFrame(rows, "words array<string>").coalesce(1)
    stages = [
        Word2Vec(inputCol="words", outputCol="means", minCount=0, vectorSize=3, maxIter=1, seed=1),
        VectorIndexer(inputCol="means", outputCol="indexed", maxCategories=4),
    ]
    model = Pipeline(stages=stages).fit(train)
    asked = spark.createDataFrame([([],), *rows], "words array<string>").coalesce(1)
    expected = [row.indexed.toArray().tolist() for row in model.transform(asked).collect()]
    by_torch = sparkdiff.TorchTransformer(model, device="cpu").transform(asked)
    assert [row.indexed.toArray().tolist() for row in by_torch.collect()] == expected
    scorer = sparkdiff.Scorer(model, schema=asked.schema)
    assert [scorer.predict({"words": row.words})["indexed"].tolist() for row in asked.collect()] == expected
    assert sparkdiff.verify(model, asked).ok
    with pytest.raises(InputError, match="is not one of its categories"):  # dense zeros, of words that it doesn't know
        scorer.predict({"words": ["z"]})
