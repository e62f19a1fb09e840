"""What is said of the Java that Spark would be started with; no Spark."""

from pathlib import Path

import pytest

from sparkdiff import InputError, jvm
from sparkdiff.jvm import sessions


@pytest.mark.parametrize(
    ("spark", "java", "said"),
    [
        (
            (3, 5),
            "1.7.0_80",
            r"is Java 7, and Spark .* needs Java 8 or later: set JAVA_HOME to the folder of a Java 8, 11 or 17",
        ),
        ((3, 5), "1.8.0_392", None),
        (
            (4, 0),
            "11.0.2",
            r"is Java 11, and Spark .* needs Java 17 or later: set JAVA_HOME to the folder of a Java 17",
        ),
        ((4, 0), "17.0.2", None),
    ],
)
def test_a_java_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spark: tuple[int, int], java: str, said: str | None
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{java}\"' >&2\n")
    (tmp_path / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setattr(sessions.SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setattr(sessions, "VERSION", spark)
    if said is None:
        jvm.check_java()
    else:
        with pytest.raises(InputError, match=said):
            jvm.check_java()
