"""A pipeline whose stages are loaded at the same time is the one that Spark loads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, OneVsRestModel, RandomForestClassifier
from pyspark.ml.feature import MinMaxScaler, OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import InputError, jvm
from sparkdiff.jvm import persistence
from sparkdiff.pipeline.nesting import flatten


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> DataFrame:
    return df.withColumn("kind", (F.col("riders") % 3).cast("double"))


@pytest.fixture(scope="module")
def pipeline(rows: DataFrame) -> PipelineModel:
    """Twelve stages, among them trees."""
    first = VectorAssembler(inputCols=["noise", "number"], outputCol="x0", handleInvalid="keep")
    scalers = [MinMaxScaler(inputCol=f"x{i}", outputCol=f"x{i + 1}") for i in range(8)]
    last: list[Any] = [
        StringIndexer(inputCol="hour", outputCol="hourIndex"),
        RandomForestClassifier(featuresCol="x8", labelCol="kind", numTrees=2, maxDepth=2).setPredictionCol("p1"),
        LogisticRegression(featuresCol="x8", labelCol="kind", maxIter=1).setPredictionCol("p2"),
    ]
    last[1].setProbabilityCol("q1").setRawPredictionCol("r1")
    last[2].setProbabilityCol("q2").setRawPredictionCol("r2")
    return Pipeline(stages=[first, *scalers, *last]).fit(rows)


def told(model: Any) -> list[Any]:
    """What a default output is called differs from load to load."""
    params = [(s, jvm.defined_params(s)) for _, s in flatten(model)]
    return [(type(s), s.uid, str(p["set"]), {**p["default"], "outputCol": ""}) for s, p in params]


def test_it_is_what_spark_loads(pipeline: PipelineModel, rows: DataFrame, tmp_path: Path) -> None:
    where = tmp_path / "x [1]{y,z} 50%20#"
    pipeline.write().save(f"file://{where}")
    stages = persistence._stages(where)
    assert stages is not None
    assert len(stages[1]) == 12
    mine, sparks = jvm.load_model(where), PipelineModel.load(jvm.model_at(where))
    assert mine.uid == sparks.uid
    assert told(mine) == told(sparks)
    chosen = ["x8", "hourIndex", "r1", "p1", "r2", "p2"]
    assert mine.transform(rows).select(chosen).collect() == sparks.transform(rows).select(chosen).collect()


def test_an_encoder_of_spark_2_2_is_named(rows: DataFrame, tmp_path: Path) -> None:
    """It needed no fit, under the name of today's Estimator."""
    encoder = OneHotEncoder(inputCol="kind", outputCol="hot")
    model = PipelineModel([encoder.fit(rows)])
    model.write().save(str(tmp_path / "model"))
    [stage] = (tmp_path / "model" / "stages").iterdir()
    shutil.rmtree(stage)
    encoder.write().save(str(stage))
    with pytest.raises(
        InputError, match=rf"OneHotEncoder {encoder.uid} isn't fitted: .* Spark 2\.2 or older has saved .* fit it"
    ):
        sparkdiff.Scorer(jvm.load_model(tmp_path / "model"))


@pytest.mark.nightly
def test_what_is_no_plain_pipeline_is_left_to_spark(
    numeric: PipelineModel, pipeline: PipelineModel, tmp_path: Path
) -> None:
    nested = PipelineModel([PipelineModel(numeric.stages[:2]), *numeric.stages[2:]])
    single = OneVsRestModel(models=[pipeline.stages[-1]])._set(classifier=LogisticRegression())
    in_python = PipelineModel([*numeric.stages[:2], single])
    for name, model in (
        ("nested", nested),
        ("stage", numeric.stages[1]),
        ("empty", PipelineModel([])),
        ("python", in_python),
    ):
        model.write().save(f"file://{tmp_path}/{name}")
        mine, sparks = jvm.load_model(tmp_path / name), type(model).load(f"file://{tmp_path}/{name}")
        assert type(mine) is type(sparks)
        assert (mine.uid, told(mine)) == (sparks.uid, told(sparks))


def test_a_damaged_stage_is_spark_to_name(numeric: PipelineModel, tmp_path: Path) -> None:
    numeric.write().save(f"file://{tmp_path}/model")
    (scaler,) = (tmp_path / "model" / "stages").glob("1_*")
    shutil.rmtree(scaler / "data")
    with pytest.raises(jvm.SparkError, match="data"):
        jvm.load_model(tmp_path / "model")
    shutil.rmtree(scaler / "metadata")
    with pytest.raises(jvm.SparkError, match="metadata"):
        jvm.load_model(tmp_path / "model")
