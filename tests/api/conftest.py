"""Fixtures of the API tests: the data as a DataFrame, pipelines fitted on them once, folders for caches."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import FineTunerModel
from tests.support.small_data import NUMBERS, Write, riders, tune, unfitted


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_in_memory(spark: SparkSession) -> Iterator[None]:
    """What a file caches another one would read in place of its own rows: Spark knows cached rows by their plan."""
    yield
    spark.catalog.clearCache()


@pytest.fixture(scope="session")
def table() -> pa.Table:
    return riders()


@pytest.fixture
def write(spark: SparkSession, tmp_path: Path) -> Write:
    """Write a table to a new Parquet file (or over a given one) and read it with Spark."""
    numbers = itertools.count()

    def to_parquet(table: pa.Table, path: Path | None = None) -> DataFrame:
        path = path or tmp_path / f"table-{next(numbers)}.parquet"
        pq.write_table(table, path, coerce_timestamps="us")
        return spark.read.parquet(f"file://{path}")

    return to_parquet


@pytest.fixture(scope="session")
def df(spark: SparkSession, table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = tmp_path_factory.mktemp("data") / "riders.parquet"
    pq.write_table(table, path, coerce_timestamps="us")
    return spark.read.parquet(f"file://{path}")


@pytest.fixture(scope="session")
def model(df: DataFrame) -> PipelineModel:
    """Indexer, one-hot, assembler, scaler, PCA to 3 of 8 dimensions, Poisson regression: slack for a third of the loss."""
    return unfitted().fit(df)


@pytest.fixture(scope="session")
def numeric(df: DataFrame) -> PipelineModel:
    """The same without the category: no referenced stage, so that its cache is quick."""
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=2),
            GeneralizedLinearRegression(featuresCol="components", labelCol="riders", family="poisson"),
        ]
    ).fit(df)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for caches that doesn't exist yet."""
    return tmp_path / "caches"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of caches for all tests that don't look into it: fits on the same rows share a cache."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def tuned(df: DataFrame, model: PipelineModel, shared: Path) -> FineTunerModel:
    return tune(model, df, shared, stream="auto", maxEpochs=8)


@pytest.fixture(scope="session")
def tuned_numeric(df: DataFrame, numeric: PipelineModel, shared: Path) -> FineTunerModel:
    return tune(numeric, df, shared)


@pytest.fixture
def jobs(spark: SparkSession) -> Callable[[], int]:
    """Spark jobs since it was asked last, of all threads."""
    scheduler, last = spark.sparkContext._jsc.sc().dagScheduler(), 0

    def count() -> int:
        nonlocal last
        newest = scheduler.numTotalJobs()
        new, last = newest - last, newest
        return new

    count()
    return count
