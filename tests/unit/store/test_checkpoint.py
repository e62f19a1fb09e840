"""Checkpoints are whole or not there, and a run's folder belongs to one training."""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.store import checkpoint_folder, files, folder_marker
from sparkdiff.store.checkpoint_folder import CheckpointFolder, NotResumable, untold
from sparkdiff.store.files import DamagedCheckpoint, DamagedFile
from sparkdiff.store.lease import LeaseHeldError, hold_lease


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "best": math.nan,
        "ended": False,
        "text": "é",
        "columns": [(0, 1)],
        "u": torch.full((3,), float(step), dtype=torch.float64),
        "nested": [{"active": True, "none": None}],
    }


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    files.save(tmp_path / "state.pt", state(7))
    found = files.load(tmp_path / "state.pt")
    assert found is not None
    assert found["step"] == 7
    assert math.isnan(found["best"])
    assert torch.equal(found["u"], state(7)["u"])
    assert found["nested"] == state(7)["nested"]
    assert files.load(tmp_path / "other.pt") is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_one_gives_way_to_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "state.pt"
    files.save(path, state(1))
    files.save(path, state(2))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]  # torn
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.warns(DamagedCheckpoint, match="sha256"):
        found = files.load(path)
    assert found is not None
    assert found["step"] == 1


def test_a_crash_between_the_renames_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    files.save(path, state(1))

    replace = os.replace

    def crash(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        files.save(path, state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt.previous"]
    found = files.load(path)
    assert found is not None
    assert found["step"] == 1


def test_no_code_is_run_by_loading(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("evil",)

    files.save(tmp_path / "state.pt", {"evil": Evil()})
    with pytest.raises(Exception, match="Weights only load failed"):
        files.load(tmp_path / "state.pt")


def test_a_run_belongs_to_one_request(tmp_path: Path) -> None:
    one = CheckpointFolder.open(tmp_path, "run", {"rows": "a", "maxEpochs": 3}, replace=False)
    files.save(one.state, state(1))
    assert CheckpointFolder.open(tmp_path, "run", {"maxEpochs": 3, "rows": "a"}, replace=False).state.exists()
    with pytest.raises(InputError, match=r"runId='run' was started with other rows \(rows: 'a', now 'b'\)"):
        CheckpointFolder.open(tmp_path, "run", {"rows": "b", "maxEpochs": 3}, replace=False)
    assert not CheckpointFolder.open(tmp_path, "run", {"rows": "b", "maxEpochs": 3}, replace=True).state.exists()


@pytest.mark.parametrize("foreign", ["metadata", "state.pt", "run.json", "attempt-1", ".hidden"])
def test_a_folder_of_the_user_is_not_replaced(tmp_path: Path, foreign: str) -> None:
    (tmp_path / "churn" / foreign).mkdir(parents=True)
    (tmp_path / "churn" / foreign / "precious.csv").write_text("1")
    for other in ("", folder_marker.SEARCH):
        if other:
            folder_marker.mark(tmp_path / "churn", other)
        before = sorted(tmp_path.rglob("*"))
        for replace in (False, True):
            with pytest.raises(
                InputError, match=f"contains {foreign}, which is not of .* another runId or checkpointDir$"
            ):
                CheckpointFolder.open(tmp_path, "churn", {}, replace=replace)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "churn" / foreign / "precious.csv").read_text() == "1"


def test_what_a_crashed_run_leaves_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / "run"
    left.mkdir()
    folder_marker.mark(left, folder_marker.RUN)
    (left / "attempt-1").mkdir()
    (left / "trainings").mkdir()
    for name in ("attempt-1/start.py", "state.pt", "state.pt.previous"):
        (left / name).write_text("torn")
    for name in ("run.json", "state.pt"):
        with contextlib.suppress(KeyboardInterrupt), files.open_atomic(left / name):
            crashed = next(left.glob(f".{name}-*"))
            raise KeyboardInterrupt
        crashed.write_text("torn")  # as a killed process leaves it
    (left / "run.json").write_text("torn")
    with pytest.warns(DamagedFile, match=r"run/run.json is damaged .*checkpoints are removed: JSONDecodeError"):
        CheckpointFolder.open(tmp_path, "run", {}, replace=False)
    assert sorted(p.name for p in left.iterdir()) == [folder_marker.MARKER, "run.json"]


def test_a_run_of_what_cannot_be_told_begins_anew(tmp_path: Path) -> None:
    def begin(**others: Any) -> CheckpointFolder:
        with pytest.warns(
            NotResumable, match=r"runId='run' starts again each time: its loss can't be told: \(a lock\)$"
        ):
            return CheckpointFolder.open(tmp_path, "run", {"loss": untold("(a lock)"), **others}, replace=False)

    files.save(begin().state, state(1))
    assert not begin().state.exists()
    with pytest.raises(InputError, match="started with other loss, maxEpochs"):
        CheckpointFolder.open(tmp_path, "run", {"loss": untold("(a lock)"), "maxEpochs": 3}, replace=False)
    with pytest.raises(InputError, match="started with other loss"):  # which was told now, and not then
        CheckpointFolder.open(tmp_path, "run", {"loss": "squared"}, replace=False)


def test_what_differs_within_a_mapping_is_named(tmp_path: Path) -> None:
    CheckpointFolder.open(tmp_path, "run", {"stages": {"0 A": {"k": 1, "m": 2}}, "lossParams": {}}, replace=False)
    changed = {"stages": {"0 A": {"k": 3, "m": 2}}, "lossParams": {"tau": 0.5}}
    with pytest.raises(
        InputError, match=r"other lossParams.tau, stages.0 A.k \(lossParams.tau: None, now 0.5; stages.0 A.k: 1, n"
    ):
        CheckpointFolder.open(tmp_path, "run", changed, replace=False)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from([None, 0, 0.0, -0.0, 1, 1.0, True, False, "1", "", [1], [1.0], {"a": 1}, {"a": True}]),
        max_size=2,
    )
)
def test_equal_requests_are_those_of_equal_text(values: list[Any]) -> None:
    assert not checkpoint_folder._differences({"v": values}, {"v": values})
    for i in range(len(values)):
        for other in (None, 0, 0.0, 1, True, "1", [True]):
            changed = {"v": [*values[:i], other, *values[i + 1 :]]}
            assert bool(checkpoint_folder._differences({"v": values}, changed)) == (repr(changed["v"]) != repr(values))


def test_who_has_lost_a_run_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / ".run.lease"
    with hold_lease(path, "runId='run'", beat=60) as lease:
        run = CheckpointFolder.open(tmp_path, "run", {}, replace=False, lease=lease)
        os.rename(path, tmp_path / "aside")
        with hold_lease(path, "runId='run'", beat=60) as other:
            with (
                pytest.raises(LeaseHeldError, match=r"runId='run' no longer belongs to this process"),
                run.keep_for_resume(always=True),
            ):
                run.check()
            assert run.path.exists()
            CheckpointFolder.open(tmp_path, "run", {}, replace=False, lease=other).remove()
            assert not run.path.exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a" * 101, "a b"])
def test_an_id_that_is_no_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="may contain only letters"):
        CheckpointFolder.open(tmp_path, name, {}, replace=False)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="checkpointDir"):
        CheckpointFolder.open(tmp_path / "file", "run", {}, replace=False)


def test_attempts_are_numbered(tmp_path: Path) -> None:
    run = CheckpointFolder.open(tmp_path, "run", {}, replace=False)
    assert [run.attempt().name for _ in range(3)] == ["attempt-1", "attempt-2", "attempt-3"]


def test_a_disk_that_says_in_the_end_that_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network's file system does: the checkpoint before is still in its place."""
    path = tmp_path / "state.pt"
    files.save(path, {"epoch": 1})

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.save(path, {"epoch": 2})
    assert path.exists() and files.load(path) == {"epoch": 1}


def test_a_run_that_fails_keeps_a_checkpoint_under_either_name(tmp_path: Path) -> None:
    folder = CheckpointFolder.open(tmp_path, "job", {"a": 1}, replace=False)
    files.save(folder.state, {"epoch": 1})
    folder.state.rename(folder.state.with_name("state.pt.previous"))  # as a kill between two renames leaves it
    failing = folder.keep_for_resume(always=True)
    failing.__enter__()
    assert not failing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert files.load(folder.state) == {"epoch": 1}


@pytest.mark.parametrize(
    ("error", "stays"),
    [(KeyboardInterrupt(), False), (SparkdiffError("it was lost; runId='drawn' continues from there"), True)],
)
def test_an_unnamed_checkpoint_stays_only_if_its_id_is_told(tmp_path: Path, error: BaseException, stays: bool) -> None:
    folder = CheckpointFolder.open(tmp_path, "drawn", {}, replace=False)
    files.save(folder.state, {"epoch": 1})
    with pytest.raises(type(error)), folder.keep_for_resume(always=False):
        raise error
    assert folder.path.exists() is stays
