"""Items in this process: what is kept, and a training that is interrupted ends as if it hadn't been."""

import dataclasses
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sparkdiff.errors import FullDiskError
from sparkdiff.growth import checkpoints, item_runner, parts
from sparkdiff.growth.checkpoints import ItemError, RoundFiles
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.part import Item, ItemResult, ItemTraining
from sparkdiff.growth.row_tensors import LINE
from sparkdiff.store import files
from sparkdiff.store.checkpoint_folder import CheckpointFolder, folder_name, name_beside
from sparkdiff.tensors.device import torch_threads
from sparkdiff.tensors.rows import SparseRows
from tests.support import climbing
from tests.support.climbing import bits
from tests.support.full_disk import no_room
from tests.support.item_rounds import ITEMS, changed, planted, rounds_of

KINDS = tuple(parts.KINDS)


@pytest.fixture(autouse=True)
def kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.KINDS, "climbing", climbing)


def test_items_gain_and_results_are_in_the_order_of_the_list(tmp_path: Path) -> None:
    found = rounds_of(tmp_path, [ITEMS])[0]
    assert [f.item for f in found] == ITEMS
    assert all(f.part is not None and f.gains.shape[0] == f.item.epochs and f.seconds > 0 for f in found)
    assert torch.get_num_threads() >= 1


def test_a_round_that_is_there_is_not_trained_again(tmp_path: Path) -> None:
    trained: list[int] = []
    first, second = (rounds_of(tmp_path, [ITEMS], trained=trained)[0] for _ in range(2))
    assert bits(first) == bits(second)
    assert trained == [6, 0]


def test_a_growth_trains_only_what_an_earlier_one_has_not(tmp_path: Path) -> None:
    """Also where time was over for some items; another item, and the same one from another margin, are trained."""
    alone = rounds_of(tmp_path / "alone", [ITEMS])[0]
    memory, trained = item_runner.ItemResultCache(), list[int]()
    first = rounds_of(tmp_path / "first", [ITEMS[:2]], trained=trained, memory=memory)[0]
    late = rounds_of(tmp_path / "late", [ITEMS], trained=trained, clock=Clock(0.0), memory=memory)[0]
    second = rounds_of(tmp_path / "second", [ITEMS], trained=trained, memory=memory)[0]
    assert trained == [2, 0, 4]
    assert [f.is_late for f in late] == [False] * 2 + [True] * 4
    assert bits(second) == bits(alone)
    assert bits(first) == bits(alone[:2])
    rounds_of(tmp_path / "other", [[dataclasses.replace(i, seed=99) for i in ITEMS]], trained=trained, memory=memory)
    assert trained[-1] == 6
    table, specification = planted()
    moved = table.at(table.train.margin + 0.1, table.validation.margin)
    original = specification.criterion().score(table.validation.margin, table.validation).blocks
    folder = CheckpointFolder.open(tmp_path / "moved", "run", {}, replace=False)
    counts: list[int] = []
    with item_runner.runner(
        folder, specification, memory=memory, on_item=lambda number, done, most: counts.append(done)
    ) as train:
        train(1, ITEMS, moved, original)
    assert counts == [*range(7)]


def test_other_items_or_margins_begin_again(tmp_path: Path) -> None:
    trained: list[int] = []
    rounds_of(tmp_path, [ITEMS, ITEMS], trained=trained)
    other = [dataclasses.replace(i, seed=99) for i in ITEMS]
    rounds_of(tmp_path, [other], trained=trained)
    assert trained == [6, 6, 6]
    assert not (tmp_path / "run" / "round-2").exists(), "later rounds followed from what is gone"


def test_a_training_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    whole = rounds_of(tmp_path / "whole", [ITEMS])[0]
    seen = []
    monkeypatch.setattr(climbing, "_suffer", lambda item, epoch: seen.append((item.name, epoch)))
    for stop in ("part 1", "part 4"):

        def interrupted(item: Item, epoch: int, stop: str = stop) -> None:
            seen.append((item.name, epoch))
            if (item.name, epoch) == (stop, 3):
                raise KeyboardInterrupt

        monkeypatch.setattr(climbing, "_suffer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rounds_of(tmp_path / "cut", [ITEMS])[0]
    monkeypatch.setattr(climbing, "_suffer", lambda item, epoch: seen.append((item.name, epoch)))
    assert bits(rounds_of(tmp_path / "cut", [ITEMS])[0]) == bits(whole)
    again = {s for s in seen if seen.count(s) > 1}
    assert again == {("part 1", 3), ("part 4", 3)}, "only the epochs that were cut short are trained twice"
    assert not list((tmp_path / "cut" / "run" / "round-1").glob("course-*"))


KILLED = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from tests.support import climbing, item_rounds
from sparkdiff.growth import checkpoints, parts
parts.KINDS["climbing"] = climbing
checkpoints.EVERY = 0.0
item_rounds.rounds_of(Path({run!r}), [item_rounds.ITEMS])
"""


def test_a_driver_that_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    code = KILLED.format(paths=sys.path, run=str(tmp_path / "killed"))
    child = subprocess.Popen([sys.executable, "-c", code])
    kept = tmp_path / "killed" / "run" / "round-1"
    while child.poll() is None and not (kept / "course-3.pickle").exists():
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -9
    before = {p: p.stat().st_mtime_ns for p in kept.glob("found-*")}
    assert {"found-0.pickle", "found-1.pickle", "found-2.pickle"} <= {p.name for p in before}
    again = rounds_of(tmp_path / "killed", [ITEMS])[0]
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())
    assert bits(again) == bits(rounds_of(tmp_path / "whole", [ITEMS])[0])


def test_no_item_begins_out_of_time_even_in_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(limit=1e6)

    def slow(item: Item, epoch: int) -> None:
        if (item.name, epoch) == ("part 2", 2):
            clock.begun -= 2e6

    monkeypatch.setattr(climbing, "_suffer", slow)
    first = rounds_of(tmp_path, [ITEMS, ITEMS], clock=clock)
    assert [f.is_late for f in first[0]] == [False] * 3 + [True] * 3, "the item that runs when time is over ends"
    assert all(f.is_late for f in first[1])
    late = first[0][-1]
    assert late.part is None and len(late.gains) == 0 and math.isfinite(late.value)
    monkeypatch.setattr(climbing, "_suffer", lambda item, epoch: pytest.fail("nothing trains again"))
    again = Clock(limit=1e6)
    assert bits(rounds_of(tmp_path, [ITEMS, ITEMS], clock=again)[0]) == bits(first[0])
    assert again.noted == clock.noted > 2e6
    assert again.seconds_left(3e6) == 3e6 - clock.noted


def test_the_clock_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(limit=1e6)

    def stop(item: Item, epoch: int) -> None:
        if item.name == "part 1":
            clock.begun -= 5000
        if item.name == "part 2":
            raise KeyboardInterrupt

    monkeypatch.setattr(climbing, "_suffer", stop)
    with pytest.raises(KeyboardInterrupt):
        rounds_of(tmp_path, [ITEMS], clock=clock)
    monkeypatch.setattr(climbing, "_suffer", lambda item, epoch: None)
    again = Clock(limit=1e6)
    assert not any(f.is_late for f in rounds_of(tmp_path, [ITEMS], clock=again)[0])
    assert again.noted > 5000


def test_every_id_of_a_run_has_one_for_its_rounds() -> None:
    assert name_beside("mine", "-rounds") == "mine-rounds"
    ids = ["a" * n for n in range(90, 101)] + ["a" * 99 + "b"]
    names = [name_beside(run, "-rounds") for run in ids]
    assert len({*names, *ids}) == len(names) + len(ids)
    assert all(folder_name(name).endswith("-rounds") for name in names)


def test_an_item_that_fails_is_named(tmp_path: Path) -> None:
    bad = changed(2, fails=2)[2]
    with pytest.raises(ItemError, match=r"(?s)the item 'part 2' \(climbing\) failed:\n.*this one can't"):
        rounds_of(tmp_path, [[*ITEMS[:2], bad]])


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    table, specification = planted()
    original = torch.zeros(3, dtype=torch.float64)
    kept = RoundFiles.open(tmp_path, 1, ITEMS, table, original)
    (kept.path / ".course-0.pickle-0123abcd").write_bytes(b"half")
    assert kept.course(0) is None
    assert kept.finished_items() == set()
    assert pickle.loads(pickle.dumps(specification)).criterion().metric.name == specification.criterion().metric.name


@pytest.mark.parametrize("kind", KINDS)
def test_every_training_resumes_bit_for_bit_from_a_pickle(kind: str) -> None:
    table, specification = planted()
    criterion = specification.criterion()
    original = criterion.score(table.validation.margin, table.validation)
    item = parts.propose([kind], table, criterion, 0)[-1]
    item = dataclasses.replace(item, epochs=min(item.epochs, 6))

    def found(again: Callable[[ItemTraining], ItemTraining]) -> ItemResult:
        course = ItemTraining(item, parts.trainer(item, table), original.mean)
        while not course.is_done:
            course.step(table, criterion, original.blocks)
            course = again(course)
        return course.result()

    with torch_threads(1):
        whole, pickled = found(lambda course: course), found(lambda course: pickle.loads(pickle.dumps(course)))
    assert whole.epoch == pickled.epoch
    np.testing.assert_array_equal((whole.value, whole.train), (pickled.value, pickled.train))  # NaN too
    assert torch.equal(whole.gains, pickled.gains)
    if whole.part is not None and pickled.part is not None:
        assert torch.equal(whole.part.output(table.train), pickled.part.output(table.train))


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_are_read_from_a_file_as_they_lie_in_memory(sparse: bool, tmp_path: Path) -> None:
    table, _ = planted()
    x = table.train.features
    assert isinstance(x, torch.Tensor)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    numbers = torch.arange(len(x) + 1)
    rows = SparseRows(numbers[:-1] % 5, x[:, 0].contiguous(), numbers, 5)  # one entry in a row
    table = dataclasses.replace(table, train=dataclasses.replace(table.train, features=rows if sparse else shifted))
    assert sparse or shifted.data_ptr() % LINE
    files.save_mappable(tmp_path / "rows.pt", table.aligned())
    read = torch.load(tmp_path / "rows.pt", mmap=True, weights_only=False)
    assert (read.columns, read.classes) == (table.columns, table.classes)
    for split, was in ((read.train, table.train), (read.validation, table.validation)):
        for name in ("features", "values", "label", "weight", "block", "margin"):
            now, before = getattr(split, name), getattr(was, name)
            pairs = (
                [(getattr(now, part), getattr(before, part)) for part in ("indices", "values", "offsets")]
                if isinstance(now, SparseRows)
                else [(now, before)]
            )
            for a, b in pairs:
                assert torch.equal(a, b)
                assert a.is_contiguous()
                assert a.data_ptr() % LINE == 0


def test_a_full_disk_costs_a_checkpoint_and_names_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = planted()
    kept = RoundFiles.open(tmp_path, 1, ITEMS, table, torch.zeros(3))
    course = ItemTraining(ITEMS[0], climbing.trainer(ITEMS[0], table), 1.0)
    with no_room(100), pytest.warns(RuntimeWarning, match=r"a checkpoint cannot be written .* Training continues"):
        kept.save(0, course)
    with no_room(100), pytest.raises(FullDiskError, match=r"the result of an item cannot be written to .*free some"):
        kept.keep(0, ItemResult(ITEMS[0], None, 0, 1.0, 1.0, torch.zeros(2, 64), 0.1))
    assert kept.finished_items() == set()
