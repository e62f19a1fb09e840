"""Growth whose driver is killed in the middle of a round: started again, it ends as if nothing had happened, bit for bit."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
]  # its pieces: test_item_processes, test_running_by_spark
ROOT = Path(__file__).parents[2]


def started(folder: Path, run: str, processes: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.interrupted_growth", str(folder), run, str(processes)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)


def ended(folder: Path, run: str, processes: int) -> dict[str, Any]:
    assert started(folder, run, processes).wait(600) == 0
    facts: dict[str, Any] = json.loads((folder / f"{run}.json").read_text())
    return facts


def test_a_killed_growth_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """In two processes: in one, all stages together would train to other last bits, unlike parts (test_item_processes.py)."""
    whole = ended(tmp_path, "whole", 2)
    assert whole["decision"] == "grown", whole
    assert max(row["round"] for row in whole["rounds"]) >= 2
    explores = tmp_path / "runs" / "killed-improve" / "trainings" / "grow-0-rounds"
    driver, second = started(tmp_path, "killed", 2), explores / "round-2"
    while driver.poll() is None and not list(second.glob("found-*")):
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -9
    first = {p: p.stat().st_mtime_ns for p in second.parent.glob("round-1/found-*")}
    assert first
    assert ended(tmp_path, "killed", 2) == whole
    assert all(p.stat().st_mtime_ns == then for p, then in first.items()), "no item is trained twice"
