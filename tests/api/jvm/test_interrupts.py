"""Ctrl-C while Python waits for Java: KeyboardInterrupt, and a session that goes on."""

import os
import signal
import threading
import time
from typing import Any

import pytest
from pyspark.sql import SparkSession, functions as F

from sparkdiff import jvm


def test_ctrl_c_ends_a_call_to_java_and_the_session_goes_on(
    spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert getattr(before, "__module__", "").startswith("pyspark."), (
        "pyspark handles Ctrl-C in another way: is this needed?"
    )

    slowly = F.udf(lambda x: time.sleep(120) or x, "long")  # type: ignore[func-returns-value]
    own, begun = spark.newSession(), time.monotonic()
    rows = own.range(1).select(slowly("id"))
    java: Any = spark._jvm
    sessions = java.org.apache.spark.sql.SparkSession
    spark.sparkContext.setLocalProperty("spark.scheduler.pool", "small")
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    try:
        sessions.setActiveSession(own._jsparkSession)
        timer.start()
        with pytest.raises(KeyboardInterrupt), jvm.interruptible():
            rows.collect()
        assert time.monotonic() - begun < 60
        # Python has another connection to Java, and so another thread there.
        assert sessions.getActiveSession().get().equals(own._jsparkSession)
        assert spark.sparkContext.getLocalProperty("spark.scheduler.pool") == "small"
    finally:
        sessions.setActiveSession(spark._jsparkSession)  # type: ignore[attr-defined]
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", None)  # type: ignore[arg-type]
    assert [spark.range(n).count() for n in (3, 5, 7)] == [3, 5, 7]  # pyspark's handler leaves answers of other calls
    assert signal.getsignal(signal.SIGINT) is before
    assert "KeyboardInterrupt" not in caplog.text


def test_other_handlers_and_threads_keep_theirs(spark: SparkSession) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with jvm.interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []

    def look() -> None:
        with jvm.interruptible():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
