"""Fine-tuning where columns' attributes decide what stages compute: they come from the data, and the cache keeps them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import Interaction, OneHotEncoder, StringIndexer, VectorAssembler, VectorSlicer
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    random, data = np.random.default_rng(6), []
    for i in range(400):
        kind, a = i % 5, float(random.normal())
        data.append((float(kind), "abcde"[kind], a, kind * a + float(random.normal()) / 3))
    path = str(tmp_path_factory.mktemp("rows") / "rows")
    spark.createDataFrame(data, ["kind", "name", "a", "y"]).write.parquet(path)
    return spark.read.parquet(path)


def nominal(df: DataFrame, values: int) -> DataFrame:
    return df.withColumn(
        "kind", F.col("kind").alias("kind", metadata={"ml_attr": {"type": "nominal", "num_vals": values}})
    )


def tuned(stages: list[Any], df: DataFrame, cache: Path) -> Any:
    model = Pipeline(stages=stages).fit(df)
    tuner = sparkdiff.FineTuner(
        pipeline=model,
        labelCol="y",
        maxEpochs=4,
        learningRate=0.05,
        recipe="fast",
        guard=1.0,
        verbosity=0,
        cacheDir=str(cache),
        rowsAreNew=True,
    )
    found = tuner.fit(df)
    assert found.summary.parity["before"]["ok"]
    assert found.summary.parity["after"]["ok"]
    assert sparkdiff.verify(found.pipelineModel, df).ok
    return found


def test_categories_of_the_data(rows: DataFrame, tmp_path: Path) -> None:
    """The same files under other attributes are another cache."""
    linear = LinearRegression(featuresCol="products", labelCol="y", regParam=2.0)
    products, hits = Interaction(inputCols=["kind", "a"], outputCol="products"), []
    for values in (5, 7, 5):
        found = tuned([products, linear], nominal(rows, values), tmp_path)
        hits.append(found.summary.cache["hit"])
        assert found.pipelineModel.stages[1].numFeatures == values
    assert hits == [False, False, True]
    one = tuned([products, linear], rows, tmp_path)  # no category: one product
    assert one.pipelineModel.stages[1].numFeatures == 1


def test_names_behind_an_encoder(rows: DataFrame, tmp_path: Path) -> None:
    """The sliced vector is made in torch, and named by Spark on the cached rows."""
    found = tuned(
        [
            StringIndexer(inputCol="name", outputCol="index"),
            OneHotEncoder(inputCol="index", outputCol="hot"),
            Interaction(inputCols=["index", "a"], outputCol="products"),
            VectorAssembler(inputCols=["hot", "products", "a"], outputCol="all"),
            VectorSlicer(
                inputCol="all", outputCol="some", names=["a", "products_index_c:a", "hot_b", "products_index_a:a"]
            ),
            LinearRegression(featuresCol="some", labelCol="y", regParam=2.0),
        ],
        rows,
        tmp_path,
    )
    stages = sparkdiff.plan(found.originalModel, schema=rows.schema).stages
    assert [s.role for s in stages] == ["referenced"] + ["translated"] * 5
    assert [s.cached for s in stages] == [True] + [False] * 5
