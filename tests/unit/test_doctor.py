"""What `sparkdiff doctor` finds wrong, each with its remedy; and `sparkdiff --version`. Starts no Spark."""

import importlib
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyspark
import pytest

import sparkdiff
from sparkdiff.cli import doctor
from sparkdiff.cli.app import main
from sparkdiff.cli.doctor import NOTE, OK, PROBLEM, Finding, run_checks
from sparkdiff.errors import DONE, FAILED, InputError


def found(name: str, folder: str | None = None) -> Finding:
    """The worst finding of this name."""
    return max(
        (f for f in run_checks(folder, start=False) if f.name == name), key=lambda f: [OK, NOTE, PROBLEM].index(f.state)
    )


def test_nothing_is_wrong_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [*run_checks(str(tmp_path), start=False)]
    assert not [f for f in findings if f.state == PROBLEM]
    assert all(f.remedy for f in findings if f.state != OK)
    assert main(["doctor", "--no-start", "--json", "--path", str(tmp_path)]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in told] == [f.name for f in findings]


def test_a_problem_is_shown_with_its_remedy_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> str:
        raise InputError("JAVA_HOME is unset, and no java on PATH runs: set JAVA_HOME")

    monkeypatch.setattr(doctor.jvm, "check_java", missing)
    assert main(["doctor", "--no-start"]) == FAILED
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("problem  Java"))
    assert lines[at].endswith("no java on PATH runs")
    assert lines[at + 1].strip() == "set JAVA_HOME"


def test_each_kind_of_problem_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "spark-core_2.12-3.1.2.jar").touch()
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    spark = found("Spark")
    assert spark.state == PROBLEM and "3.1.2" in spark.found and pyspark.__version__ in spark.found
    monkeypatch.delenv("SPARK_HOME")

    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["torch>=99", "nothing-of-this-name", "pytest; extra == 'dev'"]
    )
    packages = found("packages")
    assert packages.state == PROBLEM
    assert f"torch is {known('torch')}, needed is >=99; nothing-of-this-name is missing" == packages.found

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    disk = found("disk", str(tmp_path / "new" / "folder"))
    assert disk.state == NOTE and disk.found.startswith("1.0 GB free")

    real = importlib.import_module

    def broken(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open")
        return real(name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", broken)
        assert found("torch").state == PROBLEM

    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert found("Python").state == PROBLEM


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == DONE
    assert capsys.readouterr().out == f"sparkdiff {sparkdiff.__version__}\n"
