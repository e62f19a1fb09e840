"""Items as tasks of Spark: the result of one process, bit for bit, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from sparkdiff.growth import worker_pool
from sparkdiff.growth.checkpoints import ItemError
from tests.support import item_rounds
from tests.support.climbing import bits
from tests.support.item_rounds import ITEMS, changed, rounds_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("spark", "climbing_kind")]
alone, climbing_kind = item_rounds.alone, item_rounds.climbing_kind
TASKS = {"numProcesses": 2, "localMode": "false"}


@pytest.mark.nightly  # without a death of an item: the next test; by processes: test_item_processes
def test_tasks_find_what_one_process_finds(
    tmp_path: Path, alone: list[tuple[object, ...]], spark: SparkSession
) -> None:
    """One of the items kills its process, which the task starts again."""
    said, trained = list[str](), list[int]()
    items = changed(1, dies=3, mark=str(tmp_path / "mark"))
    first, second = rounds_of(tmp_path, [items, ITEMS], said, trained, **TASKS)
    assert bits(first) == bits(second) == alone
    assert [s.partition("(killed")[0] for s in said] == ["the process of the item 'part 1' (climbing) of round 1 died "]
    assert trained == [6, 6]
    assert spark.sparkContext.statusTracker().getActiveStageIds() == []


@pytest.mark.nightly
def test_a_task_that_is_killed_begins_again(tmp_path: Path, alone: list[tuple[object, ...]]) -> None:
    said: list[str] = []
    items = changed(1, **{"dies": 3, "with its parent": True, "mark": str(tmp_path / "mark")})
    [found] = rounds_of(tmp_path, [items], said, **TASKS)
    assert bits(found) == alone
    assert [s.partition(" (")[0] for s in said] == ["the Spark tasks that train were lost"]


@pytest.mark.nightly
def test_tasks_that_are_lost_too_often_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "ATTEMPTS", 2)
    with pytest.raises(ItemError, match=r"the Spark tasks that train were lost 2 times: .*: runId='mine' goes on"):
        rounds_of(tmp_path, [changed(1, **{"dies": 3, "with its parent": True})], **TASKS, runId="mine")


DRIVER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from tests.support import climbing, item_rounds
from pyspark.sql import SparkSession
from sparkdiff.growth import checkpoints, parts
SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
parts.KINDS["climbing"] = climbing
checkpoints.EVERY = 0.0
item_rounds.rounds_of(Path({run!r}), [item_rounds.ITEMS] * 2, numProcesses=2, localMode="false")
"""


@pytest.mark.nightly  # test_item_processes kills one whose processes are not Spark's
def test_a_driver_that_is_killed_goes_on(tmp_path: Path, alone: list[tuple[object, ...]]) -> None:
    code = DRIVER.format(paths=sys.path, run=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
    second = tmp_path / "run" / "round-2"
    while driver.poll() is None and not list(second.glob("course-*")):
        time.sleep(0.005)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("round-1/found-*")}
    assert len(kept) == 6, "the first round is there"
    trained: list[int] = []
    first, again = rounds_of(tmp_path, [ITEMS] * 2, trained=trained, **TASKS)
    assert bits(first) == bits(again) == alone
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())
    assert trained[0] == 0
