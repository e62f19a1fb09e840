"""`sparkdiff prepare` as a user runs it: Java then starts with the classes of its file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
START = """
from sparkdiff.data.loading import start_session
spark = start_session({"spark.ui.enabled": False})
print("ROWS", spark.range(3).count())
"""


def run(folder: Path, *arguments: str) -> str:
    """A command with its caches in a folder whose name has a space; Java's log of classes is in the same folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("SPARK_CONF_DIR", "JDK_JAVA_OPTIONS")}
    environment["XDG_CACHE_HOME"] = str(folder)
    environment["SPARK_SUBMIT_OPTS"] = f'-Xlog:class+load:file="{folder}/classes.log"'
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd="/", capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cds" not in done.stderr
    return done.stdout


def from_archive(folder: Path) -> float:
    lines = (folder / "classes.log").read_text().splitlines()
    return sum("shared objects file (top)" in line for line in lines) / len(lines)


def test_java_starts_with_the_classes_of_the_archive(tmp_path: Path) -> None:
    folder = tmp_path / "my caches"
    folder.mkdir()
    assert "ROWS 3" in run(folder, "-c", START)
    assert from_archive(folder) == 0
    said = run(folder, "-m", "sparkdiff", "prepare")
    (archive,) = (folder / "sparkdiff").iterdir()
    assert f"wrote {archive}" in said
    assert "ROWS 3" in run(folder, "-c", START)
    assert from_archive(folder) > 0.5
    before = archive.stat().st_mtime_ns
    run(folder, "-m", "sparkdiff", "prepare")
    assert archive.stat().st_mtime_ns > before
    assert list((folder / "sparkdiff").iterdir()) == [archive]
