"""Items in several processes of this machine: the result of one process, bit for bit, whoever is killed."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparkdiff.errors import FullDiskError
from sparkdiff.growth import parts, worker_pool
from sparkdiff.growth.checkpoints import ItemError
from sparkdiff.machine import line_files
from tests.support import item_rounds
from tests.support.climbing import bits
from tests.support.item_rounds import ITEMS, changed, planted, rounds_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("climbing_kind")]
alone, climbing_kind = item_rounds.alone, item_rounds.climbing_kind
KINDS = tuple(parts.KINDS)
"""Those of growth."""
TWO = {"numProcesses": 2, "localMode": "true"}


def test_two_processes_find_what_one_finds(tmp_path: Path, alone: list[tuple[object, ...]]) -> None:
    """One of the items kills its process, and goes on in another one."""
    trained, said = list[int](), list[str]()
    items = changed(1, dies=3, mark=str(tmp_path / "mark"))
    first, second = rounds_of(tmp_path, [items, ITEMS], said, trained, **TWO)
    assert bits(first) == bits(second) == alone
    told = "the process of the item 'part 1' (climbing) of round 1 died (killed by SIGKILL, out of memory?)"
    assert [s.partition(";")[0] for s in said] == [told]
    assert trained == [6, 6]
    assert [p.name for p in (tmp_path / "run").glob("attempt-*")] == []


@pytest.mark.nightly  # one kind is in the other tests
def test_each_kind_of_part_finds_the_same_bit_for_bit(tmp_path: Path) -> None:
    table, specification = planted()
    items = parts.propose([*KINDS], table, specification.criterion(), 0)
    assert {item.kind for item in items} == {*KINDS}
    few = [item for _, of_kind in itertools.groupby(items, lambda item: item.kind) for item in [*of_kind][-2:]]
    one, two = (rounds_of(tmp_path / str(n), [few], numProcesses=n, localMode="true")[0] for n in (1, 2))
    assert any(found.part is not None for found in one)
    for a, b in zip(one, two, strict=True):
        assert (a.item, a.epoch, a.value, a.gains.tolist()) == (b.item, b.epoch, b.value, b.gains.tolist())
        if a.part is not None and b.part is not None:
            assert torch.equal(a.part.output(table.validation), b.part.output(table.validation))


def test_long_items_are_handed_out_first() -> None:
    handing = worker_pool.RoundQueue.of(1, ITEMS, {0, 2, 3, 4, 5})
    assert list(handing.queue) == [4, 3, 2, 5, 0]


def test_who_ends_an_item_of_a_round_before_gets_the_next_one(tmp_path: Path) -> None:
    """As where a task that seemed lost has ended the item first. What an earlier process tells says nothing of this one."""
    (tmp_path / "from-0.jsonl").touch()
    member = worker_pool.WorkerHandle(
        0, tmp_path / "to-0.jsonl", line_files.LineReader(tmp_path / "from-0.jsonl"), token="now", item=3
    )
    chief, handing = worker_pool.WorkerPool.__new__(worker_pool.WorkerPool), worker_pool.RoundQueue.of(2, ITEMS, {0, 3})
    chief.here = tmp_path
    ended = {"ended": True, "round": 1, "position": 3}
    chief._hear(handing, member, {**ended, "token": "before"})
    assert member.item == 3
    chief._hear(handing, member, {**ended, "token": "now"})
    chief._order(handing, member)
    assert [line["position"] for line in line_files.LineReader(member.orders).new()] == [3]
    assert handing.left == {0, 3}
    assert not handing.trained
    chief._hear(handing, member, {**ended, "round": 2, "token": "now"})
    assert (handing.left, handing.trained, member.item) == ({0}, {3}, None)


@pytest.mark.nightly  # one death: the first test; too many, of tasks: test_running_by_spark
def test_an_item_that_kills_each_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(worker_pool, "ATTEMPTS", 2)
    with pytest.raises(ItemError, match=r"the item 'part 1' \(climbing\) of round 1 died 2 times: killed by SIGKILL"):
        rounds_of(tmp_path, [changed(1, dies=3)], said, **TWO)
    assert len(said) == 1


def test_an_item_that_fails_is_named_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"(?s)the item 'part 2' \(climbing\) failed:\nTraceback.*this one can't"):
        rounds_of(tmp_path, [changed(2, fails=2)[2:3]], **TWO)


@pytest.mark.nightly  # an item that fails is told in the same way: the test of its traceback
def test_a_process_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.KINDS, "climbing", type(sys)("no_such_module"))
    monkeypatch.setattr(worker_pool, "ATTEMPTS", 1)
    with pytest.raises(ItemError, match=r"(?s)could not be started 1 times: exit code 1: .*No module named 'no_such_"):
        rounds_of(tmp_path, [ITEMS], **TWO)


def test_a_process_that_cannot_be_watched_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its thread can't write, as on a full disk; nobody would tell that the process is gone."""
    begin = worker_pool.WorkerPool._start

    def denied(chief: worker_pool.WorkerPool) -> None:
        (chief.here / "worker-1.txt").mkdir()
        begin(chief)

    monkeypatch.setattr(worker_pool.WorkerPool, "_start", denied)
    told = r"can be watched no longer \(IsADirectoryError.*"
    with pytest.raises(ItemError, match=rf"{told}runId='mine' goes on from there"):
        rounds_of(tmp_path, [ITEMS], **TWO, runId="mine")
    with pytest.raises(ItemError, match=f"{told}Nothing is kept, because it has no runId"):
        rounds_of(tmp_path / "other", [ITEMS], **TWO)

    def full(here: str) -> Callable[..., None]:
        def supervise(number: int, children: dict[int, object]) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        return supervise

    monkeypatch.setattr(worker_pool.WorkerPool, "_start", begin)
    monkeypatch.setattr(worker_pool, "_supervisor", full)
    with pytest.raises(FullDiskError, match="the answers of the processes that train cannot be written"):
        rounds_of(tmp_path, [ITEMS], **TWO)


def test_processes_end_where_orders_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **line: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    chiefs: list[worker_pool.WorkerPool] = []
    begin = worker_pool.WorkerPool._start
    monkeypatch.setattr(worker_pool.WorkerPool, "_start", lambda chief: (chiefs.append(chief), begin(chief)))
    monkeypatch.setattr(line_files, "add", full)
    with pytest.raises(FullDiskError, match="an order cannot be written"):
        rounds_of(tmp_path, [ITEMS], **TWO)
    [chief] = chiefs
    assert not any(thread.is_alive() for thread in chief.threads)
    assert all(child.poll() is not None for child in chief.children.values())


DRIVER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from tests.support import climbing, item_rounds
from sparkdiff.growth import checkpoints, parts
parts.KINDS["climbing"] = climbing
checkpoints.EVERY = 0.0
item_rounds.rounds_of(Path({run!r}), [item_rounds.ITEMS] * 2, numProcesses=2, localMode="true")
"""


def test_a_driver_that_is_killed_goes_on(tmp_path: Path, alone: list[tuple[object, ...]]) -> None:
    code = DRIVER.format(paths=sys.path, run=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", code])
    second = tmp_path / "run" / "round-2"
    while driver.poll() is None and not list(second.glob("course-*")):
        time.sleep(0.005)
    told = [line for p in (tmp_path / "run").glob("attempt-*/from-*") for line in line_files.LineReader(p).new()]
    workers = [line["pid"] for line in told if "pid" in line]
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert 1 <= len(workers) <= 2  # one may still start
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "processes die with their driver"
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("round-*/found-*")}
    assert len(kept) >= 6, "the first round is there"
    trained: list[int] = []
    first, again = rounds_of(tmp_path, [ITEMS] * 2, trained=trained, **TWO)
    assert bits(first) == bits(again) == alone
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())
    assert trained[0] == 0
    assert [p.name for p in (tmp_path / "run").glob("attempt-*")] == []
