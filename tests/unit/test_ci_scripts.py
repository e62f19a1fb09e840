"""`.ci/nightly` and `.ci/run` in a folder of their own, in which `make`, the setup and Python only note that they were called."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAKEFILE = 'pytest site test:\n\t@echo "$(STACK): make $@ $(ARGS)" >> notes\n\t@test "$@" != "$(FAILS)"\n'
SETUP = """echo "$STACK: setup" >> notes
test "$STACK" != "${BROKEN:-}" || exit 1
mkdir -p "$VENV/bin"
printf '#!/bin/sh\\necho "$STACK: python $*" >> notes\\n' > "$VENV/bin/python"
chmod +x "$VENV/bin/python"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "tools" / "setup.sh").write_text(SETUP)
    return tmp_path


def run(folder: Path, script: str, *parts: str, **environment: str) -> tuple[int, str, list[str]]:
    """The exit code, what is printed, and what was called."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "ARGS"))}
    done = subprocess.run(
        ["bash", f".ci/{script}", *parts],
        cwd=folder,
        env=given | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    notes = folder / "notes"
    return done.returncode, done.stdout + done.stderr, notes.read_text().splitlines() if notes.exists() else []


def test_only_chosen_parts_run_in_their_stacks_with_times(folder: Path) -> None:
    code, said, called = run(folder, "nightly", "spark35", "guard", "site")
    assert code == 0
    assert called == [
        "petastorm: setup",
        "petastorm: make site ",
        "petastorm: python benchmarks/guard_size.py --runs 2000",
        "spark35: setup",
        "spark35: make pytest --dist loadfile --durations=25 -n 3 tests/laws tests/parity",
    ]
    table = re.findall(r"^passed +\d+\.\d min +(.+): ", said.partition("=== all parts")[2], re.MULTILINE)
    names = ["setup of the petastorm stack", "site", "guard", "setup of the spark35 stack", "spark35"]
    assert table == names


def test_all_parts_run_without_arguments_even_if_one_fails(folder: Path) -> None:
    code, said, called = run(folder, "nightly", FAILS="site")
    assert code == 1
    _, listed, _ = run(folder, "nightly", "none")
    parts = listed.partition("its parts are: ")[2].split()
    assert len(parts) == len(set(parts)) > 5
    outcomes = re.findall(r"^(passed|FAILED) +\d+\.\d min +(\S+): ", said.partition("=== all parts")[2], re.MULTILINE)
    assert outcomes == [("FAILED" if part == "site" else "passed", part) for part in parts]
    assert [line for line in called if "setup" in line] == [f"{s}: setup" for s in ("petastorm", "modern", "spark35")]


def test_ci_runs_all_parts_on_their_stacks(folder: Path) -> None:
    code, said, called = run(folder, "run", FAILS="test")
    assert code == 1
    outcomes = re.findall(r"^(passed|FAILED) +\d+\.\d min +(\S+): ", said.partition("=== all parts")[2], re.MULTILINE)
    assert dict(reversed(o) for o in outcomes) == {
        "tests": "FAILED",
        "plain-spark": "passed",
        "modern": "passed",
        "spark35": "passed",
    }
    assert "petastorm: make test --durations=25 --ignore=tests/parity/versions" in called
    assert "modern: make pytest --dist loadfile --durations=25 -n 1 tests/parity/versions tests/connect" in called


@pytest.mark.parametrize("script", ["run", "nightly"])
def test_what_the_scripts_name_exists(folder: Path, script: str) -> None:
    _, _, called = run(folder, script)
    named = {word for line in called for word in re.findall(r"(?:tests|benchmarks)/[\w./]+", line)}
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_stack_that_cannot_be_set_up_fails_and_the_others_run(folder: Path) -> None:
    code, said, called = run(folder, "nightly", "modern", "modern-notebooks", "spark35", BROKEN="modern")
    assert code == 1
    assert [line.partition(":")[0] for line in called] == ["modern", "spark35", "spark35"]
    assert "not run: modern\nnot run: modern-notebooks\n" in said
    assert re.search(r"^FAILED +\d+\.\d min +setup of the modern stack: ", said, re.MULTILINE)


@pytest.mark.parametrize("given", [["gaurd"], ["site", "help"]])
def test_a_part_that_there_is_not_is_told_before_anything_runs(folder: Path, given: list[str]) -> None:
    code, said, called = run(folder, "nightly", *given)
    assert (code, called) == (2, [])
    assert f".ci/nightly has no part {given[-1]}; its parts are: tests site " in said
