"""Scripts over Spark Connect, each in a process of its own: a classic session and Connect don't mix in one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def missing() -> str | None:
    """What this environment lacks for Spark ML over Connect."""
    try:
        import pyspark.ml.connect.readwrite
        import pyspark.sql.connect.session  # noqa: F401
    except ImportError as e:
        return f"Spark ML over Connect can't be had here: {e}"
    return None


def ran(script: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The facts that a module of `tests.support` leaves in a folder."""
    if why := missing():
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{script}", str(folder), *arguments],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "facts.json").read_text())  # type: ignore[no-any-return]
