"""The notebooks run from end to end: one for each commit, all nightly, one over Spark Connect. They are stored with outputs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = "1_first_steps"


def run(name: str, **environment: str) -> str:
    """What tools/notebooks.py says; a cell that fails ends it with its traceback."""
    if importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None:
        pytest.skip("the extra `notebooks` is not installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "notebooks.py"), "--check", name],
        env=os.environ | environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(p.stem, marks=() if p.stem == QUICK else pytest.mark.nightly) for p in NOTEBOOKS]
)
def test_it_runs(name: str) -> None:
    assert run(name).startswith(f"{name}.ipynb: ")


@pytest.mark.nightly
def test_one_runs_over_connect() -> None:
    try:
        import pyspark.ml.connect.readwrite
        import pyspark.sql.connect.session  # noqa: F401
    except ImportError as e:
        pytest.skip(f"Spark ML over Connect can't be had here: {e}")
    run(QUICK, SPARK_REMOTE="local[2]")


def test_a_cell_that_fails_is_told(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    for name in ("tools", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "tools" / "notebooks.py").write_text((ROOT / "tools" / "notebooks.py").read_text())
    wrong = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(wrong, tmp_path / "notebooks" / "wrong.ipynb")
    before = (tmp_path / "notebooks" / "wrong.ipynb").read_text()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "tools" / "notebooks.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert (tmp_path / "notebooks" / "wrong.ipynb").read_text() == before


@pytest.mark.once
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stored_and_name_no_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["execution_count"] for cell in cells), "run tools/notebooks.py"
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    shown = [output for cell in cells for output in cell["outputs"] if "text/html" in output.get("data", {})]
    assert len(shown) >= 4, "results show themselves"
    assert not re.search(r"/(tmp/\w|work|home|root|Users)/|\bWARN\b|\b20[2-9]\d-\d\d-\d\d", text)
    assert len(text) < 200_000


def test_there_are_four() -> None:
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3", "4"]
