"""Exit codes of commands, whose work may be a user's function."""

import sys
from typing import Any

import pytest

from sparkdiff.errors import run_for_exit_code


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        (None, 0, ""),
        (3, 3, ""),
        ("the table is empty", 1, "the table is empty\n"),
        ("jdbc:x?password=hunter2", 1, "jdbc:x?password=...\n"),
    ],
)
def test_sys_exit_is_told_as_python_does(given: Any, code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_for_exit_code(lambda: sys.exit(given)) == code
    assert capsys.readouterr().err == told
