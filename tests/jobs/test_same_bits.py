"""tools/same_bits.py finds that a checkout of other code trains otherwise; that equal ones are equal is its daily use."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_another_step_size_is_told(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sparkdiff", tmp_path / "sparkdiff")
    options = tmp_path / "sparkdiff" / "options.py"
    text, number = re.subn(r"(\blearningRate: float = option\()1e-3", r"\g<1>2e-3", options.read_text())
    assert number == 1
    options.write_text(text)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "same_bits.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    for name in ("counts", "classes", "trees"):
        assert re.search(rf"^{name}: .* this checkout differ in .*history", done.stdout, re.MULTILINE), done.stdout
        assert f"{name}: the finished run is refused: runId='{name}' was started with other" in done.stdout
    assert "what was saved is loaded with other" not in done.stdout
