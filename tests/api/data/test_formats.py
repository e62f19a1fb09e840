"""Rows in files of several formats, read by Spark as commands and jobs name them."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import StringIndexer, Tokenizer
from pyspark.sql import SparkSession

from sparkdiff import InputError, jvm
from sparkdiff.data.loading import load_data

CSV = b"zip,label\n12345,1.5\n23456,2.5\n"
ROWS = [(12345, 1.5), (23456, 2.5)]


def test_compressed_rows_are_read_by_their_names(spark: SparkSession, tmp_path: Path) -> None:
    for codec, ending in (("gzip", "gz"), ("bz2", "bz2")):
        with pa.CompressedOutputStream(str(tmp_path / f"rows.csv.{ending}"), codec) as file:
            file.write(CSV)
        assert sorted(map(tuple, load_data(spark, f"rows.csv.{ending}", tmp_path, "train").collect())) == ROWS
    (tmp_path / "part" / "day=1").mkdir(parents=True)
    (tmp_path / "part" / "day=1" / "0.csv").write_bytes(CSV)
    assert load_data(spark, "part", tmp_path, "train").columns == ["zip", "label", "day"]


def test_zstandard_is_read_or_named_as_missing(spark: SparkSession, tmp_path: Path) -> None:
    with pa.CompressedOutputStream(str(tmp_path / "rows.csv.zst"), "zstd") as file:
        file.write(CSV)
    if jvm.reads_zstandard(spark):
        assert sorted(map(tuple, load_data(spark, "rows.csv.zst", tmp_path, "train").collect())) == ROWS
    else:
        with pytest.raises(InputError, match=r"data\.train cannot be read: rows\.csv\.zst is compressed by Zstandard"):
            load_data(spark, "rows.csv.zst", tmp_path, "train")


def test_the_model_tells_the_types_of_a_csv(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("zip,code,Level,day,n\n02134,1,1,2020-01-01,7\n90210,2,2,2020-01-02,8\n")
    as_read = [("zip", "string"), ("code", "int"), ("Level", "double"), ("day", "string"), ("n", "int")]
    rows = [("02134", 1, 1.0, "2020-01-01"), ("90210", 2, 2.0, "2020-01-02")]
    fitted_on = spark.createDataFrame(rows, "zip string, code int, level double, day string")
    indexer = StringIndexer(inputCols=["zip", "code", "level"], outputCols=["z", "c", "l"], handleInvalid="keep")
    pipeline = Pipeline(stages=[indexer, Tokenizer(inputCol="day", outputCol="words")])
    told = list[str]()
    read = load_data(spark, "rows.csv", tmp_path, "train", pipeline.fit(fitted_on), told.append)
    assert read.dtypes == as_read
    assert sorted(row.zip for row in read.collect()) == ["02134", "90210"]
    changed = "zip string (inferred: int), Level double (inferred: int), day string (inferred: date)"
    assert told == [f"train is read with the types that the pipeline needs: {changed}"]
    assert dict(load_data(spark, "rows.csv", tmp_path, "train", pipeline).dtypes)["zip"] == "int"  # not fitted
    given = {"path": "rows.csv", "schema": "zip INT, code INT, level INT, day STRING, n INT"}
    assert load_data(spark, given, tmp_path, "train", pipeline.fit(fitted_on)).dtypes[0] == ("zip", "int")


@pytest.mark.parametrize(
    ("file", "form", "package"),
    [
        ("rows.avro", "avro", "spark-avro"),
        ("_delta_log/0.json", "delta", "delta-spark"),
        ("metadata/v1.metadata.json", "iceberg", "iceberg-spark-runtime"),
    ],
)
def test_a_package_that_is_missing_is_named(
    spark: SparkSession, tmp_path: Path, file: str, form: str, package: str
) -> None:
    (tmp_path / "rows" / file).parent.mkdir(parents=True)
    (tmp_path / "rows" / file).touch()
    with pytest.raises(InputError, match=f"cannot be read as {form}, which needs the package {package} "):
        load_data(spark, "rows", tmp_path, "train")
