"""The files for orchestrators in examples/: they parse, and their commands and jobs are ones that sparkdiff takes."""

import ast
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sparkdiff.cli import tracking_section
from sparkdiff.cli.app import app
from sparkdiff.cli.config import load_config
from sparkdiff.errors import FAILED, WRONG_INPUT

EXAMPLES = Path(__file__).parents[2] / "examples"


def parsed(words: list[str]) -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    found: dict[str, Any] = command.commands[words[0]].make_context(words[0], words[1:]).params
    return found


def test_the_bundle_runs_a_command_of_ours() -> None:
    bundle = yaml.safe_load((EXAMPLES / "databricks" / "databricks.yml").read_text())
    assert {"bundle", "resources", "targets", "variables"} == bundle.keys()
    (job,) = bundle["resources"]["jobs"].values()
    (cluster,) = job["job_clusters"]
    assert {"spark_version", "node_type_id", "num_workers", "data_security_mode"} <= cluster["new_cluster"].keys()
    assert cluster["new_cluster"]["data_security_mode"] == "SINGLE_USER"  # of dedicated mode
    (task,) = job["tasks"]
    assert task["job_cluster_key"] == cluster["job_cluster_key"]
    wheel = task["python_wheel_task"]
    assert wheel["package_name"] == wheel["entry_point"] == "sparkdiff"
    assert [lib["whl"] for lib in task["libraries"]] == ["${var.wheel}"]
    found = parsed(wheel["parameters"])
    assert found["as_json"] and Path(found["config"]).name == "churn.yaml"
    assert [name for name, target in bundle["targets"].items() if target.get("default")] == ["dev"]


def test_the_job_of_the_bundle_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_section, "NEEDS", {})
    config = load_config(EXAMPLES / "databricks" / "churn.yaml", [])
    assert config.data["train"]["options"] == {"versionAsOf": 12}
    assert config.tracking is not None and config.tracking["mlflow"]["registeredModelName"].count(".") == 2


def test_the_dag_compiles_and_runs_a_command_of_ours() -> None:
    """Airflow isn't installed here."""
    path = EXAMPLES / "airflow" / "weekly_update.py"
    tree = ast.parse(path.read_text())
    compile(tree, path.name, "exec")
    numbers = {n.targets[0].id: n.value.value for n in tree.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
    assert numbers["WRONG_INPUT"] == WRONG_INPUT != FAILED
    [(first, more)] = [
        (node, following)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "finetune"
        for node, following in zip(function.body, function.body[1:], strict=False)
        if isinstance(node, ast.Assign) and node.targets[0].id == "command"  # type: ignore[attr-defined]
    ]
    words = eval(compile(ast.Expression(first.value), "", "eval"), {"CONFIG": "x.yaml", "week": "1"})
    words += eval(compile(ast.Expression(more.value), "", "eval"), {"week": "1"})  # type: ignore[attr-defined]
    assert words.pop(0) == "sparkdiff"
    found = parsed(words)
    assert found["as_json"] and found["config"] == "x.yaml" and "output.mode=overwrite" in found["words"]
