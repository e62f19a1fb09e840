"""Damage of each kind of file in the folders of runs, searches and stores of runs, and whose a folder is."""

import datetime
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException

import sparkdiff
from sparkdiff.cli.app import main
from sparkdiff.cli.output import check_replaceable, summary_of
from sparkdiff.data.stream import usage
from sparkdiff.data.stream.manifest import Manifest
from sparkdiff.errors import WRONG_INPUT, InputError, SparkdiffError
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.part_inputs import room_of
from sparkdiff.history import lineage, run_store, run_table
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.machine import atomic_files
from sparkdiff.search import study
from sparkdiff.store import files, folder_marker
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.store.files import DamagedFile
from sparkdiff.store.lease import LeaseHeldError, hold_lease
from sparkdiff.training.distributed.choice import DeviceNote, ProcessNumber

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


def parquet(**columns: Any) -> Callable[[Path], object]:
    return lambda path: pq.write_table(
        pa.table({"id": ["x"], "finished": [NOW], "schemaVersion": pa.array([9], pa.int32())} | columns), path
    )


def cut_off(path: Path) -> None:
    parquet()(path)
    path.write_bytes(path.read_bytes()[:-20])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": cut_off,
    "text": lambda path: path.write_text("{}"),
    "folder": lambda path: path.mkdir(),
    "other columns": lambda path: pq.write_table(pa.table({"x": [1]}), path),
    "no time": parquet(finished=[None]),
    "ids that are numbers": parquet(id=[1]),
    "models that are numbers": parquet(model=[1]),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["run-d.parquet", "runs.parquet"])
def test_a_damaged_or_foreign_file_of_a_store_is_left_out(tmp_path: Path, kind: str, name: str) -> None:
    run_store.add(tmp_path, {"id": "a", "finished": NOW, "model": "B", "parent": "A", "options": "[1]"})
    run_store.add(tmp_path, {"id": "b", "finished": NOW, "model": "C", "parent": "B"})
    DAMAGE[kind](tmp_path / name)
    with pytest.warns(DamagedFile, match=rf"{tmp_path / name} is damaged or holds no runs, and is left out: "):
        found = lineage.lineage("m", "C", tmp_path)
    assert [step.run["id"] for step in found.steps] == ["b", "a"]
    assert "cost: unknown" in str(found) and found.draw()
    with pytest.warns(DamagedFile, match=name):
        assert run_store.compact(tmp_path) == 2
    assert (tmp_path / name).exists()
    assert len([*tmp_path.iterdir()]) == 2


def test_a_store_of_a_later_version_is_read(tmp_path: Path) -> None:
    parquet(later=["what this version does not know"])(tmp_path / "run-later.parquet")
    assert [run["id"] for run in run_table.rows(tmp_path)] == ["x"]


TEXTS = ["", "{", "[]", "7", "null", '{"a": 1}', "\udce9"]


@pytest.fixture(params=[*TEXTS, None])
def damaged(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        if request.param is None:
            path.mkdir()
        else:
            path.write_bytes(request.param.encode(errors="surrogateescape"))

    return damage


def test_a_damaged_request_begins_anew(tmp_path: Path, damaged: Callable[[Path], None]) -> None:
    files.save(CheckpointFolder.open(tmp_path, "r", {"rows": 1}, replace=False).state, {"step": 1})
    (tmp_path / "r" / "run.json").unlink()
    damaged(tmp_path / "r" / "run.json")
    if (tmp_path / "r" / "run.json").is_file() and (tmp_path / "r" / "run.json").read_bytes() == b'{"a": 1}':
        with pytest.raises(InputError, match="was started with other a, rows"):
            CheckpointFolder.open(tmp_path, "r", {"rows": 1}, replace=False)
        return
    says = rf"{tmp_path}/r/run.json is damaged and made again, and the run's checkpoints are removed: "
    with pytest.warns(DamagedFile, match=says):
        assert not CheckpointFolder.open(tmp_path, "r", {"rows": 1}, replace=False).state.exists()


@pytest.mark.filterwarnings("ignore::sparkdiff.store.files.DamagedFile")
def test_damaged_notes_of_a_run_are_made_again(tmp_path: Path, damaged: Callable[[Path], None]) -> None:
    """Of its device, of the processes, of the clock and the rows of growth, of an improvement."""
    for name in ("device.json", "processes.json", "clock.json", "room.json", "decisions.json", "order.pt"):
        damaged(tmp_path / name)
    wanted = (
        7
        if (tmp_path / "room.json").is_file() and (tmp_path / "room.json").read_text(errors="replace") == "7"
        else None
    )
    assert DeviceNote.read(tmp_path) is None and ProcessNumber.read(tmp_path) is None
    assert Clock.of(60.0).resume(tmp_path) == frozenset()
    room = room_of(tmp_path)
    assert room_of(tmp_path) == room and (wanted is None or room == wanted)
    log = StepLog(tmp_path)
    assert log.skip_reason("grow", 1, lambda: "too late") == log.skip_reason("grow", 1, lambda: "") == "too late"
    assert log.read_or_make("order", lambda: [1]) == log.read_or_make("order", lambda: [2]) == [1]
    assert log.read_or_make("folds", lambda: None) is None and log.read_or_make("folds", lambda: [3]) is None  # type: ignore[func-returns-value]


def test_notes_with_values_of_other_types_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "processes.json").write_text(json.dumps({"number": "two", "why": "", "milliseconds": {}}))
    with pytest.warns(DamagedFile, match="processes.json is damaged and made again: TypeError: its number is 'two'"):
        assert ProcessNumber.read(tmp_path) is None
    (tmp_path / "manifest.json").write_text("{}")
    for told in ({"uses": "3"}, {"seconds": None}, {"last": "2026-01-01T00:00:00"}, {"last": 5}):
        usual = {"madeBy": [], "seconds": 1.0, "uses": 3, "last": NOW.isoformat()}
        (tmp_path / "usage.json").write_text(json.dumps(usual | told))
        assert usage.of(tmp_path).uses == 1
        usage.record_use(tmp_path)
        assert usage.of(tmp_path).uses == 2


def test_a_damaged_lease_expires(tmp_path: Path, damaged: Callable[[Path], None]) -> None:
    path = tmp_path / ".r.lease"
    damaged(path)
    if path.is_dir():
        with pytest.raises(IsADirectoryError), hold_lease(path, "r", lasts=0.2, beat=0.05):
            pass
        return
    with hold_lease(path, "r", wait=5.0, lasts=0.2, beat=0.05) as lease:
        assert not lease.is_lost()


def test_a_lease_with_values_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / ".r.lease"
    path.write_text(json.dumps({"owner": [1], "pid": "x", "machine": "m", "beat": "x", "host": 1, "begun": None}))
    with pytest.raises(LeaseHeldError, match="a process that is just starting"), hold_lease(path, "r"):
        pass


def test_a_damaged_search_says_what_to_do(tmp_path: Path, damaged: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    with study.lock_search_folder(folder, {"rows": 1}):
        pass
    (folder / "search.json").unlink()
    damaged(folder / "search.json")
    with (
        pytest.raises(InputError, match=r"search.json is damaged \(.*: delete .*run to start again|with other a, rows"),
        study.lock_search_folder(folder, {"rows": 1}),
    ):
        pass


def test_a_damaged_journal_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / study.JOURNAL).write_text('{"op_code": 0}\n{"op\n[7]\n')
    for read in (study.journal, study.read_study):
        with pytest.raises(InputError, match=rf"{study.JOURNAL} is damaged \(.*delete {tmp_path} to start again"):
            read(tmp_path)


# A read that fails is no damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_read_now_removes_nothing(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.save(CheckpointFolder.open(tmp_path, "r", {"rows": 1}, replace=False).state, {"step": 1})
    for name in ("device.json", "clock.json", "room.json", "decisions.json", "summary.json", "manifest.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model" / "metadata").mkdir(parents=True)
    (tmp_path / "model" / "metadata" / "part-00000").write_text("{}")
    log = StepLog(tmp_path)
    log.read_or_make("order", lambda: [1])
    there = sorted(tmp_path.rglob("*"))

    read_bytes = Path.read_bytes

    def stale(path: Path, *_mode: Any, **_how: Any) -> Any:
        if path.name == folder_marker.MARKER:
            return read_bytes(path)
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as m:
        for name in ("read_text", "read_bytes"):
            m.setattr(Path, name, stale)
        m.setattr("torch.load", stale)
        reads: dict[str, Callable[[], object]] = {
            "r/run.json": lambda: CheckpointFolder.open(tmp_path, "r", {"rows": 1}, replace=True),
            "device.json": lambda: DeviceNote.read(tmp_path),
            "clock.json": lambda: Clock.of(60.0).resume(tmp_path),
            "room.json": lambda: room_of(tmp_path),
            "decisions.json": lambda: log.skip_reason("grow", 1, lambda: "too late"),
            "order.pt": lambda: log.read_or_make("order", lambda: [2]),
            "summary.json": lambda: summary_of(tmp_path),
            "model": lambda: sparkdiff.why(str(tmp_path), str(tmp_path / "store")),
        }
        for name, read in reads.items():
            says = rf"{tmp_path / name} cannot be read at this time .*{os.strerror(number)}.*: nothing was removed"
            with pytest.raises(SparkdiffError, match=says):
                read()
        with pytest.raises(OSError, match=os.strerror(number)):
            Manifest.load(tmp_path)
    assert sorted(tmp_path.rglob("*")) == there
    assert CheckpointFolder.open(tmp_path, "r", {"rows": 1}, replace=False).state.exists()


CUT = """An error occurred while calling o42.load.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 3.0 failed 1 times, most recent failure: \
Lost task 0.0 in stage 3.0 (TID 3) (here executor driver): {}
\tat java.net.Interrupted.cancelled(Cancelled.java:1)
\t... 3 more
"""


def test_an_error_of_spark_is_damage_if_it_is_about_the_content(tmp_path: Path) -> None:
    path = tmp_path / "fitted"

    def fail(message: str) -> Callable[[], object]:
        def read() -> object:
            raise PySparkException(message)

        return read

    path.mkdir()
    for message in (
        CUT.format("ExecutorLostFailure (executor 1 exited caused by one of the running tasks)"),
        CUT.format("java.lang.RuntimeException") + "Caused by: java.io.IOException: Stale file handle",
        ": org.apache.spark.SparkException: Job 5 cancelled because SparkContext was shut down",
        "Answer from Java side is empty",
    ):
        with pytest.raises(SparkdiffError, match="fitted cannot be read at this time"):
            files.read_undamaged(path, fail(message))
    assert path.exists()
    cut = CUT.format("FAILED_READ_FILE") + "Caused by: java.lang.RuntimeException: part-0 is not a Parquet file."
    with pytest.warns(DamagedFile, match="fitted is damaged and made again"):
        assert files.read_undamaged(path, fail(cut)) is None
    assert not path.exists()


def model_of(folder: Path, metadata: str, data: bytes = b"") -> str:
    for name, content in (("metadata/part-00000", metadata.encode()), ("data/part-00000.parquet", data)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    return str(folder)


WHOLE = '{"class": "org.apache.spark.ml.feature.IDFModel", "uid": "idf"}'


@pytest.mark.parametrize("metadata", [WHOLE, WHOLE[:-9], "", "[]", "{}", "7", '{"class": 5, "uid": []}', "\udce9"])
def test_the_origin_of_a_damaged_model_is_one_sentence(
    tmp_path: Path, metadata: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet()(tmp_path / "whole.parquet")
    model = model_of(tmp_path / "m", "", (tmp_path / "whole.parquet").read_bytes()[:-20])
    (tmp_path / "m" / "metadata" / "part-00000").write_bytes(metadata.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=rf"the model in {model} is damaged \(.*\): restore it"):
        sparkdiff.why(model, str(tmp_path))
    assert main(["why", model, "--store", str(tmp_path)]) == WRONG_INPUT
    assert f"the model in {model} is damaged" in capsys.readouterr().err


# Whose a folder is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["precious.csv", "run.json", "search.json", "summary.json", ".hidden", "model/metadata/part-0"]
)
def test_a_folder_of_the_user_is_neither_written_nor_removed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    says = rf"contains {name.partition('/')[0]}, which is not of sparkdiff's .*: no file {folder_marker.MARKER} there says so"
    for replace in (False, True):
        with pytest.raises(InputError, match=says):
            CheckpointFolder.open(tmp_path, "mine", {}, replace=replace)
    with pytest.raises(InputError, match=says), study.lock_search_folder(folder, {}):
        pass
    with pytest.raises(InputError, match=says):
        check_replaceable(folder)
    assert sorted(tmp_path.rglob("*")) == before and (folder / name).read_text() == "{}"


def test_a_folder_of_another_part_is_not_taken(tmp_path: Path) -> None:
    CheckpointFolder.open(tmp_path, "r", {}, replace=False)
    says = r"contains run.json, which is not of sparkdiff's search"
    with pytest.raises(InputError, match=says), study.lock_search_folder(tmp_path / "r", {}):
        pass


def test_the_marker_is_the_last_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file can't be removed, as one that is open on a network's file system."""
    folder = CheckpointFolder.open(tmp_path, "r", {}, replace=False)
    (folder.path / "round-1").mkdir()
    (folder.path / "round-1" / "open").touch()
    unlink = Path.unlink

    def held_open(path: Path, missing_ok: bool = False) -> None:
        if path.name == "open":
            raise OSError(16, "Device or resource busy")
        unlink(path, missing_ok)

    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", held_open)
        folder.remove()
    assert (folder.path / "round-1" / "open").exists()
    CheckpointFolder.open(tmp_path, "r", {"rows": 2}, replace=True).remove()
    assert not folder.path.exists()


def test_what_a_link_names_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious.csv").touch()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    atomic_files.remove(tmp_path / "link")
    assert (tmp_path / "there" / "precious.csv").exists() and not (tmp_path / "link").is_symlink()


def test_a_folder_that_a_kill_left_before_anything_was_in_it(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / folder_marker.MARKER).touch()
    assert CheckpointFolder.open(tmp_path, "r", {}, replace=False).path.exists()
