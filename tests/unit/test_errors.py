"""Exit codes of commands, whose work may be a user's function."""

import sys
from typing import Any

import pytest

from sparkdiff.errors import InputError, check_type, run_for_exit_code


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


def test_a_notebook_shows_the_callers_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython asks an error for its lines."""
    with pytest.raises(InputError) as caught:
        check_type("penalty", "much", float, "a number")
    *frames, said = caught.value._render_traceback_()
    assert said == "InputError: penalty must be a number, got str"
    assert "test_a_notebook_shows" in frames[0] and not [line for line in frames if "sparkdiff/errors.py" in line]
    monkeypatch.setenv("SPARKDIFF_TRACEBACK", "1")
    assert [line for line in caught.value._render_traceback_() if "sparkdiff/errors.py" in line]
