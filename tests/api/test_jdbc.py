"""Rows of a database, read by Spark as a job names them."""

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from sparkdiff import InputError
from sparkdiff.data.loading import load_data

PASSWORD = "hunter2"


@pytest.fixture(scope="module")
def database(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a table of three rows in memory, by the driver that comes with Spark."""
    log = str(tmp_path_factory.mktemp("derby") / "derby.log")
    spark.sparkContext._jvm.java.lang.System.setProperty("derby.stream.error.file", log)
    options = {
        "url": "jdbc:derby:memory:rows;create=true",
        "driver": "org.apache.derby.jdbc.EmbeddedDriver",
        "user": "app",
        "password": PASSWORD,
    }
    rows = spark.createDataFrame([(1, 0.5), (2, 1.5), (3, 2.5)], "id int, label double")
    rows.write.format("jdbc").options(**options, dbtable="trips").save()
    return options


def test_a_table_and_a_query_are_read(spark: SparkSession, database: dict[str, Any]) -> None:
    table = {"format": "jdbc", "options": {**database, "dbtable": "trips", "fetchsize": 2}}
    assert sorted(map(tuple, load_data(spark, table, Path(), "train").collect())) == [(1, 0.5), (2, 1.5), (3, 2.5)]
    query = {
        "format": "jdbc",
        "options": {**database, "query": 'select * from trips where "id" > 1'},
        "where": "label < 2",
    }
    assert [*map(tuple, load_data(spark, query, Path(), "test").collect())] == [(2, 1.5)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dbtable": "nowhere"},
        {"dbtable": "trips", "url": f"jdbc:derby:memory:none;password={PASSWORD}"},
        {"dbtable": "trips", "url": f"jdbc:none://h/d?password={PASSWORD}", "driver": "none.Driver"},
    ],
    ids=["table", "database", "driver"],
)
def test_an_error_of_the_database_names_the_split_and_no_secret(
    spark: SparkSession, database: dict[str, Any], wrong: dict[str, str]
) -> None:
    with pytest.raises(InputError, match=r"^data\.train cannot be read: .*(?i:nowhere|none)") as caught:
        load_data(spark, {"format": "jdbc", "options": {**database, **wrong}}, Path(), "train")
    assert PASSWORD not in str(caught.value)
