"""Under spark-submit a job logs warnings only, unless the user has said how to log."""

from collections.abc import Iterator
from typing import Any

import pytest
from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.jvm import sessions


@pytest.fixture
def log(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The JVM's packages, its root logger at INFO as if by Spark's own file, in a process that spark-submit has started."""
    java: Any = spark.sparkContext._jvm
    root = java.org.apache.logging.log4j.LogManager.getRootLogger()
    before = root.getLevel()
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    monkeypatch.setattr(sessions, "SPARKS_OWN_LOG", "")
    java.org.apache.spark.util.Utils.setLogLevel(java.org.apache.logging.log4j.Level.INFO)
    yield java
    java.org.apache.spark.util.Utils.setLogLevel(before)


def level(java: Any) -> str:
    return str(java.org.apache.logging.log4j.LogManager.getRootLogger().getLevel())


def test_it_is_quiet_by_default(log: Any) -> None:
    jvm.join_submit()
    assert level(log) == "WARN"


def test_a_level_of_the_users_holds(log: Any) -> None:
    log.java.lang.System.setProperty("spark.log.level", "INFO")  # where spark-submit puts its --conf
    try:
        jvm.join_submit()
    finally:
        log.java.lang.System.clearProperty("spark.log.level")
    assert level(log) == "INFO"


def test_a_log4j2_file_of_the_users_holds(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SPARKS_OWN_LOG", "/no/such/")
    jvm.join_submit()
    assert level(log) == "INFO"


def test_a_jvm_of_ones_own_is_left_alone(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts with the session's settings, and logs what PySpark's shell does."""
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT")
    jvm.join_submit()
    assert level(log) == "INFO"
