"""Under spark-submit a job logs warnings only, unless the user has said how to log; and what is cancelled logs no stacks."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession, functions as F

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


@pytest.fixture
def written(spark: SparkSession) -> Iterator[Any]:
    """A Java writer that gets what the JVM logs, with its stacks."""
    java: Any = spark.sparkContext._jvm
    core = java.org.apache.logging.log4j.core
    target, layout = java.java.io.StringWriter(), core.layout.PatternLayout.createDefaultLayout()
    appender = core.appender.WriterAppender.createAppender(layout, None, target, "of a test", False, True)
    appender.start()
    root = java.org.apache.logging.log4j.LogManager.getContext(False).getConfiguration().getRootLogger()
    root.addAppender(appender, None, None)
    yield target
    root.removeAppender("of a test")


def test_cancelled_jobs_log_no_stacks_and_other_errors_do(spark: SparkSession, written: Any, tmp_path: Path) -> None:
    slept = F.expr("java_method('java.lang.Thread', 'sleep', 200L)")
    rows = spark.createDataFrame([(Vectors.dense(float(i % 7), i % 3), float(i % 2)) for i in range(100)], ["x", "y"])
    slow = rows.where(slept.isNull())  # of every row: the method returns nothing
    over = threading.Event()

    def fail() -> None:
        while not over.wait(0.1):
            with contextlib.suppress(*jvm.SparkError):
                spark.range(1).select(F.raise_error(F.lit("planted"))).collect()

    other = threading.Thread(target=fail)
    other.start()
    try:
        for work in (
            lambda: LogisticRegression(featuresCol="x", labelCol="y").fit(slow),
            lambda: slow.write.parquet(f"file://{tmp_path}/slow"),
        ):
            with pytest.raises(TimeoutError), jvm.within(1):
                work()
    finally:
        over.set()
        other.join(60)
    told = str(written.toString())
    assert "planted" in told and "at org.apache.spark" in told
    assert "sparkdiff-" not in told and "Aborting job" not in told
    loggers = (
        spark.sparkContext._jvm.org.apache.logging.log4j.LogManager.getContext(False).getConfiguration().getLoggers()
    )
    assert not [
        name for name in loggers if "FileFormatWriter" in name
    ]  # with its own level it would show INFO in a shell
    with pytest.raises(jvm.SparkError):
        spark.range(1).select(F.raise_error(F.lit("later")).cast("string")).write.parquet(f"file://{tmp_path}/bad")
    assert "Aborting job" in str(written.toString())  # of a job that nobody cancelled
