"""A disk without room: one sentence with the path and the bytes, the last whole checkpoint stays, and training goes on."""

import errno
import os
import re
import threading
from pathlib import Path

import pytest
import torch
from py4j.protocol import Py4JError

from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import FullDiskError, InputError, StoreError, WriteError
from sparkdiff.machine.line_files import LineReader
from sparkdiff.store import files
from sparkdiff.store.files import folder_size, free, full, room
from sparkdiff.tensors.team import ALONE
from sparkdiff.training.distributed.attempt import Attempt
from sparkdiff.training.distributed.worker import Assignment, Checkpoints, work
from sparkdiff.training.training_run import Training
from tests.support.full_disk import no_room
from tests.support.train_in_processes import CASES, assignment, write_cache


def test_a_checkpoint_without_room_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    files.save(path, {"x": torch.zeros(10)})
    for entries in (900, 100_000):  # found out as the buffer is written in the end, and in the midst of it
        with no_room(6000), pytest.raises(OSError, match="File too large") as found:
            files.save(path, {"x": torch.ones(entries), "y": [torch.ones(entries)]})
        assert found.value.errno == errno.EFBIG
        state = files.load(path)
        assert state is not None and torch.equal(state["x"], torch.zeros(10))
        assert not [p for p in tmp_path.iterdir() if not p.name.startswith("state.pt")]
    assert files.size({"x": torch.ones(3), "y": [{"z": torch.ones(2)}, 7], "n": None}) == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_what_is_a_full_disk() -> None:
    with pytest.raises(OSError, match="No space left") as found, open("/dev/full", "wb", 0) as file:
        file.write(b"x")
    assert full(found.value) == os.strerror(errno.ENOSPC)
    wrapped = InputError("Spark failed while it ran the stages before training")
    wrapped.__cause__ = Py4JError("Job aborted ...\nCaused by: java.io.IOException: No space left on device\n")
    assert full(wrapped) == os.strerror(errno.ENOSPC)
    assert full(OSError(errno.EACCES, "Permission denied")) == full(InputError("No space left on device")) == ""


def test_one_sentence_with_path_bytes_and_way_out(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there"
    with pytest.raises(FullDiskError) as found, room("the run", path, "make room", lambda: "about 1,234 bytes"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = r"no space left on device \(it needs about 1,234 bytes, and [\d,]+ bytes are free\); make room"
    assert re.fullmatch(rf"the run cannot be written to {path}: {said}", str(found.value))
    assert free(path) > 0
    for other in (
        OSError(errno.EACCES, "Permission denied"),
        InputError("no such column"),
        FullDiskError("said before"),
    ):
        with pytest.raises(type(other), match=str(other.args[-1])), room("the run", path, "make room"):
            raise other
    (tmp_path / "a").write_bytes(b"123")
    assert folder_size(tmp_path) == 3


@pytest.mark.parametrize(
    "refusal",
    [
        StoreError(errno.EACCES, "the folder cannot be created", "s3a://bucket/run"),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        Py4JError("Job aborted ...\nCaused by: java.io.FileNotFoundException: /mnt/x (Read-only file system)\n"),
    ],
)
def test_a_store_that_refuses_is_one_sentence(refusal: Exception, tmp_path: Path) -> None:
    with pytest.raises(WriteError) as found, room("the run", tmp_path, "make room"):
        raise refusal
    why = "the folder cannot be created" if isinstance(refusal, StoreError) else "Read-only file system"
    assert str(found.value) == (
        f"the run cannot be written to {tmp_path}: {why}; make it writable and repeat the command, or choose another folder"
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    case, folder = CASES["from files"], tmp_path_factory.mktemp("cache")
    write_cache(folder, case)
    return assignment(case, folder)


def trained(given: Assignment, saves: Checkpoints) -> Training:
    training = given.training()
    with Stream(given.cache, backend="arrow") as stream:
        work(given, training, stream, ALONE, saves)
    return training


def test_training_goes_on_without_checkpoints(given: Assignment, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    undisturbed = trained(given, Checkpoints(tmp_path / "state.pt", 0.0))
    with no_room(5000):
        training = trained(given, Checkpoints(tmp_path / "one" / "state.pt", 0.0))
    assert training.ended and training.history[1:] == undisturbed.history[1:] and not undisturbed.unsaved
    assert re.match(
        rf"a checkpoint cannot be written to {tmp_path}/one/state.pt: .*needs about [\d,]+ bytes", training.unsaved
    )
    assert training.unsaved.endswith("Training continued without it; a crash would have lost more")
    assert not list((tmp_path / "one").iterdir())
    training = trained(given, Checkpoints(tmp_path / "gone" / "state.pt", 0.0))  # nor for any other reason
    assert "No such file or directory. Training continued" in training.unsaved
    resumed = given.training()
    resumed.load(training.state())
    assert resumed.unsaved == training.unsaved


def test_the_end_that_others_wait_for_must_be_written(given: Assignment, tmp_path: Path) -> None:
    with (
        no_room(5000),
        pytest.raises(FullDiskError, match=r"checkpoint cannot be written .*state.pt: .*set checkpointDir"),
    ):
        trained(given, Checkpoints(tmp_path / "state.pt", 1e9, awaited=True))


def test_a_file_of_progress_without_a_line_ends_nothing(tmp_path: Path) -> None:
    """On a full disk it is made, and stays empty; its time says that the processes are alive."""
    (tmp_path / "progress.jsonl").touch()
    attempt = Attempt.__new__(Attempt)
    attempt.here, attempt.timeout, said = tmp_path, 60.0, []
    attempt.progress = LineReader(tmp_path / "progress.jsonl")
    thread = threading.Thread(target=threading.Event().wait, args=(0.5,))
    thread.start()
    attempt._watch(thread, lambda epoch, best: said.append(epoch))
    assert not attempt.stalled and not said
