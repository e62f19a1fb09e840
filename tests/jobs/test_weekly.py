"""docs/weekly.md, run as written: its commands in a bare checkout, one after the other."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.nightly


def test_every_command_of_the_how_to_runs(tmp_path: Path) -> None:
    for folder in ("jobs", "conf", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    commands = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "weekly.md").read_text(), re.DOTALL)
    assert sum("spark-submit" in block for block in commands) == 2
    script = "\n".join(["set -eu", *commands])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
    environment.pop("SPARK_HOME", None)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "runs" / "weekly"
    first, second = (json.loads((runs / week / "summary.json").read_text()) for week in ("week-26", "week-27"))
    assert second["parent"]["hash"] == first["model"]["hash"]  # it began with the model that served
    assert second["options"]["fleetSize"] == 52
    assert "fleetSize 52" in second["reason"] or second["decision"] == "kept original"
    assert second["metrics"]["reference"] is not None
    assert second["reference"] is None or second["reference"]["rows"] > 2000
    assert {s["column"] for s in second["slices"]} <= {"workingday"}
    assert "reference" in done.stdout
    assert (runs / "serving").resolve() == (runs / "week-26").resolve()  # the last command goes back
    same = second["model"]["hash"] == first["model"]["hash"]
    assert same is (second["decision"] == "kept original")
    assert second["decision"] in done.stdout
