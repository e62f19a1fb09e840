"""tools/setup.sh against itself: two calls at once in one checkout make one environment, one after the other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands in for the interpreter that makes the environment: `-m venv` copies it there, and `pip install` takes a moment and
# notes its begin and end. Whatever else it is asked, the real interpreter answers.
INTERPRETER = """#!/usr/bin/env bash
case "$*" in
    "-m venv"*) mkdir -p "${@: -1}/bin"; touch "${@: -1}/pyvenv.cfg"; cp "$0" "${@: -1}/bin/python" ;;
    "-m pip --version") ;;
    "-m pip install"*) echo begin >> "$NOTES"; sleep 1; echo end >> "$NOTES" ;;
    *) exec REAL "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("tools", "constraints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    interpreter = tmp_path / "python"
    interpreter.write_text(INTERPRETER.replace("REAL", sys.executable))
    interpreter.chmod(0o755)
    return tmp_path


def start(checkout: Path) -> subprocess.Popen[str]:
    version = "modern" if sys.version_info >= (3, 12) else "petastorm"
    given = {"PYTHON": str(checkout / "python"), "NOTES": str(checkout / "notes"), "VENV": ".venv", "STACK": version}
    return subprocess.Popen(
        ["bash", "tools/setup.sh", "dev"], cwd=checkout, env=os.environ | given, text=True, stderr=subprocess.PIPE
    )


def test_two_calls_at_once_install_one_after_the_other(checkout: Path) -> None:
    calls = [start(checkout) for _ in range(3)]
    said = [call.communicate(timeout=400)[1] for call in calls]
    assert [call.returncode for call in calls] == [0, 0, 0], said
    assert (checkout / "notes").read_text().split() == ["begin", "end"]  # the others found it done
    assert sum("waiting for it" in text for text in said) >= 1


def test_a_killed_call_leaves_no_lock(checkout: Path) -> None:
    first = start(checkout)
    while not (checkout / "notes").exists():
        assert first.poll() is None
    first.kill()
    first.communicate(timeout=200)
    second = start(checkout)
    said = second.communicate(timeout=400)[1]
    assert second.returncode == 0, said
    assert (checkout / "notes").read_text().split()[-1] == "end"
