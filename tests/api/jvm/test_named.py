"""New stages with uids of the caller's."""

from pathlib import Path

from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GBTRegressor
from pyspark.sql import SparkSession

from sparkdiff import jvm


def test_a_stage_has_the_uid_in_python_in_java_and_in_its_files(spark: SparkSession, tmp_path: Path) -> None:
    stage = jvm.named("growth1_columns", VectorAssembler, inputCols=["a", "b"], handleInvalid="keep")
    assert type(stage) is VectorAssembler
    assert stage.uid == stage._java_obj.uid() == "growth1_columns"
    assert stage.getOutputCol() == "growth1_columns__output"
    assert {p.parent for p in stage.params} == {"growth1_columns"}
    stage.save(str(tmp_path / "stage"))
    assert VectorAssembler.load(str(tmp_path / "stage")).uid == "growth1_columns"
    [row] = stage.transform(spark.createDataFrame([(1.0, 2.0)], "a double, b double")).collect()
    assert row["growth1_columns__output"] == Vectors.dense(1.0, 2.0)
    assert jvm.named("other", VectorAssembler).uid == "other"
    assert VectorAssembler().uid.startswith("VectorAssembler_")


def test_a_fitted_stage_takes_the_uid_of_its_estimator(spark: SparkSession) -> None:
    rows = spark.createDataFrame(
        [(Vectors.dense(float(i)), float(i)) for i in range(4)], "features vector, label double"
    )
    assert jvm.named("margin", GBTRegressor, maxIter=1).fit(rows).uid == "margin"
