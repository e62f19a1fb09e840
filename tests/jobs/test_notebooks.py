"""The notebooks run from end to end: the first on each commit, all by night, one of them over Spark Connect too.

They are stored with outputs. On each commit all that they import from sparkdiff is there, and takes the arguments that they give.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def code(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def ours(tree: ast.AST) -> dict[str, Any]:
    """Everything that code takes from sparkdiff, by the name that it gives it. Raises where something isn't there."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "sparkdiff":
                    module = importlib.import_module(alias.name)
                    found[alias.asname or "sparkdiff"] = module if alias.asname else sys.modules["sparkdiff"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sparkdiff":
            module = importlib.import_module(str(node.module))
            found |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    return found


def named(node: ast.AST, known: dict[str, Any]) -> Any:
    """What an expression such as `sparkdiff.data.open` stands for, or None where it is none of ours."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := named(node.value, known)) is not None:
        return getattr(owner, node.attr)
    return None


def calls(tree: ast.AST, known: dict[str, Any]) -> Iterator[tuple[Any, list[str]]]:
    """Each call of something of ours, and the names of its arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (function := named(node.func, known)) is not None:
            yield function, [k.arg for k in node.keywords if k.arg is not None]


@pytest.mark.parametrize("name", [p.stem for p in NOTEBOOKS])
def test_all_that_it_calls_is_there(name: str) -> None:
    tree = ast.parse(code(ROOT / "notebooks" / f"{name}.ipynb"))
    known = ours(tree)
    for node in ast.walk(tree):
        named(node, known)
    found = [*calls(tree, known)]
    assert found
    for function, given in found:
        takes = inspect.signature(function)
        takes.bind_partial(**dict.fromkeys(given))
        if any(p.kind is p.VAR_KEYWORD for p in takes.parameters.values()):  # an Estimator's Params are its attributes
            assert all(name in takes.parameters or hasattr(function, name) for name in given), (function, given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [p.stem if p.stem == QUICK else pytest.param(p.stem, marks=pytest.mark.nightly) for p in NOTEBOOKS]
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
        timeout=400,
        check=False,
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert (tmp_path / "notebooks" / "wrong.ipynb").read_text() == before


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


def test_there_are_five() -> None:
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]
