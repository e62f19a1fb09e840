"""Gaps and categories through the public interface: null and NaN, bins, mean encodings, wide one-hot blocks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyspark.ml.feature
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import Binarizer, Bucketizer, Imputer, OneHotEncoder, VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, jvm, plan
from sparkdiff.jvm import encoders
from tests.support.small_data import cached

pytestmark = pytest.mark.slow
NAN, INF = float("nan"), float("inf")
FAST: dict[str, Any] = {"maxEpochs": 6, "guard": 1.0, "verbosity": 0, "rowsAreNew": True}
TARGET_ENCODER = getattr(pyspark.ml.feature, "TargetEncoder", None)


@pytest.fixture(scope="module")
def gappy(spark: SparkSession) -> DataFrame:
    """`a` has -1, null and NaN in place of what is missing, `b` null, `age` null and NaN, `c` are categories and null."""
    random = np.random.default_rng(5)
    n = 2000

    def missing(x: np.ndarray, *gaps: float | None) -> list[float | None]:
        which = random.random(n)
        return [
            next((g for k, g in enumerate(gaps) if u < 0.06 * (k + 1)), float(v)) for v, u in zip(x, which, strict=True)
        ]

    a, b, age = random.gamma(2.0, 2.0, n), random.normal(size=n), random.uniform(0, 80, n)
    c = random.integers(0, 6, n).astype(float)
    # Rounded, as the last bits of a logarithm depend on the processor, and the split of a row on its bits.
    y = np.round(1.2 * np.log(a + 0.1) - b + np.sin(c) + 1.5 * (age > 33) + 0.5 * random.normal(size=n), 9)
    columns = [missing(a, -1.0, None, NAN), missing(b, None), missing(age, None, NAN), missing(c, None), y.tolist()]
    rows = list(zip(*columns, range(n), strict=True))
    return (
        spark.createDataFrame(rows, "a double, b double, age double, c double, y double, id long").coalesce(1).cache()
    )


def filling() -> list[Any]:
    return [
        Imputer(inputCols=["a"], outputCols=["a1"], missingValue=-1.0),  # NaN passes
        Imputer(inputCols=["a1", "b"], outputCols=["a2", "b"]),  # b in place
        Bucketizer(splits=[-INF, 18.0, 45.0, 65.0, INF], inputCol="age", outputCol="bin", handleInvalid="keep"),
        Imputer(inputCols=["bin"], outputCols=["bin1"]),  # null is no bin, NaN is
    ]


@pytest.fixture(scope="module")
def fitted(gappy: DataFrame) -> PipelineModel:
    encoding = ["b"]
    stages = filling()
    if TARGET_ENCODER is not None:
        stages.append(
            TARGET_ENCODER(
                inputCol="c",
                outputCol="mean",
                labelCol="y",
                targetType="continuous",
                smoothing=5.0,
                handleInvalid="keep",
            )
        )
        encoding.append("mean")
    stages += [
        VectorAssembler(inputCols=["a2", "bin1", *encoding], outputCol="x"),
        LinearRegression(featuresCol="x", labelCol="y", regParam=0.5),
    ]
    return Pipeline(stages=stages).fit(gappy.where("id < 500"))


@pytest.mark.nightly
def test_gaps_train_and_come_back_plain(
    gappy: DataFrame, fitted: PipelineModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sparkdiff.verify(fitted, gappy).ok
    found = sparkdiff.FineTuner(pipeline=fitted, labelCol="y", cacheDir=str(tmp_path / "cache"), **FAST).fit(gappy)
    assert found.summary.decision == "tuned"
    new = found.pipelineModel
    assert [(type(s), s.uid) for s in new.stages] == [(type(s), s.uid) for s in fitted.stages]
    for k in (0, 1, 3):
        before, after = (list(m.stages[k].surrogateDF.head()) for m in (fitted, new))
        assert all(u != v for u, v in zip(before, after, strict=True))
    assert new.stages[2] is fitted.stages[2]
    if TARGET_ENCODER is not None:
        [before], [after] = encoders.statistics(fitted.stages[4]), encoders.statistics(new.stages[4])
        assert np.array_equal(before.categories, after.categories) and np.array_equal(before.counts, after.counts)
        assert (before.stats != after.stats).all()
    new.write().overwrite().save(f"file://{tmp_path}/model")
    again = PipelineModel.load(f"file://{tmp_path}/model")
    predictions = [[r.prediction for r in m.transform(gappy).orderBy("id").collect()] for m in (new, again)]
    assert predictions[0] == predictions[1]


def test_the_cache_flags_only_nulls_that_a_stage_tells(gappy: DataFrame, fitted: PipelineModel, tmp_path: Path) -> None:
    cache = cached(fitted, gappy, tmp_path / "with", labelCol="y")
    flags = [c["column"] for c in cache.manifest["columns"] if c["column"].endswith(" is null")]
    assert flags == ["a is null", *(["c is null"] if TARGET_ENCODER else [])]  # not of b: there NaN is null
    whole = gappy.na.fill(-1.0, ["a", "c"])
    flags = [
        c for c in cached(fitted, whole, tmp_path / "without", labelCol="y").manifest["columns"] if "null" in c["name"]
    ]
    assert flags == []


def test_a_call_says_which_rows_are_null(spark: SparkSession) -> None:
    stage = Bucketizer(splits=[-INF, 0.0, INF], inputCol="Age", outputCol="bin", handleInvalid="keep")
    network = sparkdiff.translate(stage)
    assert network.inputCols == ("Age",)
    age = torch.tensor([NAN, NAN, 3.0], dtype=torch.float64)
    assert network({"age": age})["bin"].tolist() == [2.0, 2.0, 1.0]
    told = network({"Age": age, "Age is null": torch.tensor([True, False, False])})["bin"]
    assert bool(told[0].isnan()) and told[1:].tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("handleInvalid", "value", "said"),
    [
        ("error", 7.5, r"column 'x' holds 7\.5, outside the splits 0\.0 to 2\.0"),
        ("keep", -1e-9, r"column 'x' holds -1e-09, outside the splits"),
        ("error", -0.0, r"column 'x' holds -0\.0, outside the splits"),
    ],
)
def test_what_spark_refuses_is_refused_by_name(
    spark: SparkSession, handleInvalid: str, value: float, said: str
) -> None:
    stage = Bucketizer(splits=[0.0, 1.0, 2.0], inputCol="x", outputCol="y", handleInvalid=handleInvalid)
    network = sparkdiff.translate(stage)
    with pytest.raises(InputError, match=f"{stage.uid}: {said}"):
        network({"x": torch.tensor([0.5, value], dtype=torch.float64)})
    with pytest.raises(InputError, match=stage.uid):
        sparkdiff.verify(stage, spark.createDataFrame([(0.5,), (value,)], "x double"))


def test_a_surrogate_of_whole_numbers_stays_whole(gappy: DataFrame, tmp_path: Path) -> None:
    ages = gappy.withColumn("age", F.when(~F.isnan("age"), F.col("age")).cast("int"))
    model = Pipeline(
        stages=[
            Imputer(inputCols=["age", "b"], outputCols=["age1", "b1"]),
            VectorAssembler(inputCols=["age1", "b1"], outputCol="x"),
            LinearRegression(featuresCol="x", labelCol="y"),
        ]
    ).fit(ages.where("id < 500"))
    assert not float(model.stages[0].surrogateDF.head()["age"]).is_integer()
    assert sparkdiff.verify(model, ages).ok
    found = sparkdiff.FineTuner(pipeline=model, labelCol="y", **FAST).fit(ages).pipelineModel
    before, after = (m.stages[0].surrogateDF.head() for m in (model, found))
    assert before["age"] == after["age"] and before["b"] != after["b"]
    assert plan(model, schema=ages.select("age", F.col("b").cast("decimal(9,2)").alias("b"), "y").schema).stages[
        0
    ].reason == ("column 'b' is decimal(9,2): Spark rounds surrogates to this type, which torch does not have")


# Thresholds on request --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps(spark: SparkSession) -> DataFrame:
    random = np.random.default_rng(2)
    v = random.uniform(0, 80, 3000)
    y = 2.0 * (v > 33) + (v > 50) + 0.3 * random.normal(size=3000)
    return (
        spark.createDataFrame(list(zip(v.tolist(), y.tolist(), strict=True)), "v double, y double").coalesce(1).cache()
    )


@pytest.fixture(scope="module")
def stepped(steps: DataFrame) -> PipelineModel:
    return Pipeline(
        stages=[
            Binarizer(inputCol="v", outputCol="old", threshold=20.0),
            Bucketizer(splits=[0.0, 10.0, 60.0, 80.0], inputCol="v", outputCol="bin"),
            VectorAssembler(inputCols=["old", "bin"], outputCol="x"),
            LinearRegression(featuresCol="x", labelCol="y", regParam=0.01),
        ]
    ).fit(steps.limit(600))


@pytest.mark.nightly
def test_thresholds_train_on_request(steps: DataFrame, stepped: PipelineModel) -> None:
    assert [s.trainable for s in plan(stepped).stages] == [False, False, False, True]
    wishes = ["Binarizer.threshold", "Bucketizer.splits"]
    assert [s.trainable for s in plan(stepped, unfreeze=wishes).stages] == [True, True, False, True]
    tuner = sparkdiff.FineTuner(pipeline=stepped, labelCol="y", unfreeze=wishes, **FAST | {"maxEpochs": 40})
    found = tuner.setParams(learningRate=0.01, regAnchor=1e-4).fit(steps)
    new, splits = found.pipelineModel, found.pipelineModel.stages[1].getSplits()
    assert found.summary.gain > 0.4
    assert abs(new.stages[0].getThreshold() - 33) < 2 or any(abs(s - 33) < 2 for s in splits)
    assert splits[0] == 0.0 and splits[-1] == 80.0 and sorted(splits) == splits
    assert splits != stepped.stages[1].getSplits()
    assert stepped.stages[0].getThreshold() == 20.0
    for old, now in zip(stepped.stages, new.stages, strict=True):
        before, after = jvm.defined_params(old), jvm.defined_params(now)
        changed = {k for k in after["set"] if after["set"][k] != before["set"].get(k)}
        assert changed <= {"threshold", "splits"} and before["default"] == after["default"]


def test_settings_that_move_the_cut_share_no_cache(steps: DataFrame, stepped: PipelineModel) -> None:
    tuner = sparkdiff.FineTuner(pipeline=stepped, labelCol="y", **FAST | {"maxEpochs": 1})
    # Trained, these stages belong to the network; else Spark runs them before the cache.
    wishes = ["Binarizer.threshold", "Bucketizer.splits"]
    few, more, again = tuner.fit(steps, [{}, {tuner.unfreeze: wishes}, {tuner.regAnchor: 0.1}])
    assert few.summary.metrics["train"]["before"] == pytest.approx(more.summary.metrics["train"]["before"], rel=1e-12)
    fingerprints = [m.summary.cache["fingerprint"] for m in (few, more, again)]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_where_no_gradient_comes_the_plan_says_so(stepped: PipelineModel, steps: DataFrame) -> None:
    encoder = OneHotEncoder(inputCol="bin", outputCol="hot").fit(stepped.stages[1].transform(steps))
    hot = PipelineModel(
        [
            stepped.stages[1],
            encoder,
            LinearRegression(featuresCol="hot", labelCol="y").fit(
                encoder.transform(stepped.stages[1].transform(steps))
            ),
        ]
    )
    with pytest.raises(InputError, match=r"unfreeze='Bucketizer.splits': .* no differentiable path to the loss"):
        plan(hot, unfreeze=["Bucketizer.splits"])


# A hundred thousand categories ------------------------------------------------------------------------------------------

MANY = 100_000


@pytest.fixture(scope="module")
def visits(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    folder = tmp_path_factory.mktemp("visits")
    draw = "cast(pmod(xxhash64(id, {}), {}) as double)"
    columns = ["id", f"{draw.format(0, MANY)} page", f"{draw.format(1, 7)} day", f"{draw.format(2, 1000)} / 1000 time"]
    df = spark.range(6_000).selectExpr(*columns)
    df = df.selectExpr("*", "cast(pmod(page, 10) / 10 + time > 0.9 as double) label")
    df.write.parquet(f"file://{folder}/visits")
    return spark.read.parquet(f"file://{folder}/visits")


@pytest.fixture(scope="module")
def wide(visits: DataFrame) -> PipelineModel:
    """Two encoded columns, one of them of 100,000 categories, in front of a linear model, as if fitted long ago."""
    sizes = {"page": MANY, "day": 7}
    seen = visits.select(
        *(F.col(c).alias(c, metadata={"ml_attr": {"type": "nominal", "num_vals": k}}) for c, k in sizes.items())
    )
    encoder = OneHotEncoder(inputCols=list(sizes), outputCols=["page hot", "day hot"]).fit(seen)
    assembler = VectorAssembler(inputCols=[*encoder.getOutputCols(), "time"], outputCol="features")
    rows = [(Vectors.dense(0.0, 1.0), 0.0), (Vectors.dense(1.0, 0.0), 1.0)]
    base = LogisticRegression(maxIter=0).fit(visits.sparkSession.createDataFrame(rows, ["features", "label"]))
    weights = np.random.default_rng(1).normal(size=(1, MANY - 1 + 6 + 1)) / 10
    linear = jvm.rebuild(
        base,
        {
            "coefficientMatrix": weights,
            "interceptVector": np.zeros(1),
            "numClasses": 2,
            "isMultinomial": False,
        },
    )
    return PipelineModel([encoder, assembler, linear])


@pytest.mark.nightly
def test_many_categories_cross_as_indices(visits: DataFrame, wide: PipelineModel, tmp_path: Path) -> None:
    assert plan(wide).cacheCols == ("page", "day", "time")
    parity = sparkdiff.verify(wide, visits)
    assert parity.ok and parity.maxRelDiff.keys() == {"page hot", "day hot", "features", "rawPrediction", "probability"}
    cache = cached(wide, visits, tmp_path)
    columns = [c for c in cache.manifest["columns"] if c["name"].startswith("c")]
    assert [c["kind"] for c in columns] == ["scalar"] * 3
    pieces = [p for shards in cache.manifest["splits"].values() for shard in shards for p in shard]
    rows, size = sum(p["rows"] for p in pieces), sum(p["bytes"] for p in pieces)
    assert rows == 6_000
    assert size / rows <= 8 * len(cache.manifest["columns"])  # label, weight, block and time among them
    own = sum(_bytes(cache.folder / p["path"], [c["name"] for c in columns]) for p in pieces)
    assert own / rows / len(columns) <= 8


def _bytes(path: Path, names: list[str]) -> int:
    import pyarrow.parquet as pq

    groups = pq.read_metadata(path)
    chunks = [groups.row_group(i).column(j) for i in range(groups.num_row_groups) for j in range(groups.num_columns)]
    return sum(c.total_compressed_size for c in chunks if c.path_in_schema in names)


@pytest.mark.nightly
def test_many_categories_train_as_an_embedding(visits: DataFrame, wide: PipelineModel) -> None:
    found = sparkdiff.FineTuner(pipeline=wide, **FAST | {"maxEpochs": 2, "batchSize": 1024, "recipe": "fast"}).fit(
        visits
    )
    assert found.summary.decision == "tuned"
    new, old = (m.stages[-1].coefficientMatrix.toArray()[0] for m in (found.pipelineModel, wide))
    rare = np.flatnonzero(np.bincount(np.array([r.page for r in visits.select("page").collect()], dtype=int)) == 0)
    assert np.array_equal(new[rare[rare < MANY - 1]], old[rare[rare < MANY - 1]])  # nothing speaks for them
    assert (new[-7:] != old[-7:]).all()
