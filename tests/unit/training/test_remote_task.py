"""What a task of a barrier stage does with its rows, and with what its process writes; no Spark."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Client
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from sparkdiff.errors import InputError
from sparkdiff.store import files
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.training.distributed import remote, remote_task
from sparkdiff.training.distributed.remote_task import receive, receive_files, send, send_back

FILES = {f"rows-1/split=train/shard={i}/part-{i}.parquet": bytes([i]) * 10 for i in range(3)}


def facts(**others: Any) -> dict[str, Any]:
    return {
        "root": "rows-1",
        "needed": [20, 10],
        "ranks": {name: [0] if i < 2 else [1] for i, name in enumerate(FILES)},
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
        **others,
    }


def batches(given: dict[str, bytes]) -> Iterator[pa.RecordBatch]:
    for name, content in given.items():
        yield pa.RecordBatch.from_arrays([pa.array([f"s3a://b/x/{name}"]), pa.array([content])], ["path", "content"])


def kept(cache: Path, given: dict[str, bytes], **others: Any) -> list[str]:
    cache.mkdir(parents=True)
    remote_task._keep(batches(given), cache, facts(**others), 0, lambda: None)
    return sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*.parquet"))


def test_a_process_keeps_its_own_files(tmp_path: Path) -> None:
    assert kept(tmp_path / "cache", FILES) == list(FILES)[:2]
    first = next(iter(FILES))
    with pytest.raises(ValueError, match="is not what was written"):
        kept(tmp_path / "changed", {**FILES, first: b"other"})
    with pytest.raises(ValueError, match="1 files of the cache did not arrive, such as rows-1/split=train/shard=0"):
        kept(tmp_path / "lost", {name: content for name, content in FILES.items() if name != first})


def test_a_full_disk_of_an_executor_is_one_sentence(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(remote_task._FullError) as raised:
        kept(tmp_path / "cache", FILES, needed=[10 * free])
    told = remote_task._error_report(raised.value, 0)
    assert (told["error"], told["ours"]) == ("FullDiskError", True)
    assert told["message"].startswith(f"process 0 keeps {10 * free:,} bytes of cached rows in {tmp_path} on ")
    assert "give the executors more local disk (spark.local.dir)" in told["message"]


def test_what_a_process_writes_goes_back_once(tmp_path: Path) -> None:
    driver, task = Pipe()
    (tmp_path / "attempt").mkdir()
    (tmp_path / "state.pt").write_bytes(b"came with the files")
    sent = dict(remote_task._states(tmp_path))
    (tmp_path / "attempt" / "start.py").write_text("")  # nobody's business
    progress = tmp_path / "attempt" / "progress.jsonl"
    for line in ("one\n", "two\n"):
        with progress.open("a") as file:
            file.write(line)
        send_back(task, tmp_path, sent)
        assert receive(driver) == ({"name": "attempt/progress.jsonl", "add": True}, line.encode())
    send_back(task, tmp_path, sent)
    (tmp_path / "state.pt").write_bytes(b"new")
    send_back(task, tmp_path, sent)
    assert receive(driver) == ({"name": "state.pt", "add": False}, b"new")
    assert not driver.poll()


def test_folders_of_dead_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path},/nowhere")
    (tmp_path / f"sparkdiff-rows-{2**22 + 1}-x").mkdir()  # above the largest id of a process
    (tmp_path / f"sparkdiff-rows-{os.getppid()}-x").mkdir()
    (tmp_path / "sparkdiff-rows-mine").mkdir()
    with remote_task._folder() as folder:
        assert folder.parent == tmp_path
        assert len(list(tmp_path.iterdir())) == 3
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def post(tmp_path: Path) -> Iterator[remote.DriverConnections]:
    run, cache = CheckpointFolder(tmp_path / "run", "r"), tmp_path / "cache"
    here = run.path / "attempt-1"
    for folder in (here, cache):
        folder.mkdir(parents=True)
    for name in ("sparkdiff.zip", "assignment.pickle", "start.py"):
        (here / name).write_bytes(name.encode())
    (cache / "manifest.json").write_text("{}")
    out = remote.DriverConnections(run, here, cache)
    yield out
    out.close(1.0)


def test_the_driver_serves_who_knows_the_secret(post: remote.DriverConnections, tmp_path: Path) -> None:
    """Its files arrive, what comes back is written, and nothing else is; a second task of a rank is turned away."""
    with pytest.raises((AuthenticationError, EOFError, OSError)):
        Client(("127.0.0.1", post.port), authkey=b"guessed").recv_bytes()
    with Client(("127.0.0.1", post.port), authkey=post.secret) as task:
        send(task, {"rank": 0})
        receive_files(task, tmp_path / "task")
        assert (tmp_path / "task" / "attempt" / "start.py").read_bytes() == b"start.py"
        assert (tmp_path / "task" / "attempt" / "cache" / "manifest.json").exists()
        with Client(("127.0.0.1", post.port), authkey=post.secret) as again:
            send(again, {"rank": 0})
            with pytest.raises(EOFError):
                receive(again)
        for name, content in (
            ("attempt/../../x", b"x"),
            ("attempt/start.py", b"x"),
            ("state.pt", b"1"),
            ("state.pt", b"2"),
        ):
            send(task, {"name": name}, content)
        for line in (b"a\n", b"b\n"):
            send(task, {"name": "attempt/progress.jsonl", "add": True}, line)
    end = time.monotonic() + 10
    progress = post.here / "progress.jsonl"
    while not (progress.exists() and progress.read_bytes() == b"a\nb\n") and time.monotonic() < end:
        time.sleep(0.01)
    assert progress.read_bytes() == b"a\nb\n"
    assert post.folder.state.read_bytes() == b"2"
    assert files.previous(post.folder.state).read_bytes() == b"1"
    assert (post.here / "start.py").read_bytes() == b"start.py"
    assert not list(tmp_path.glob("x"))
    assert post.joined == {0}
    assert post.failed is None


def test_each_rank_gets_the_files_of_its_shards(tmp_path: Path) -> None:
    def piece(split: str, shard: int) -> Any:
        return SimpleNamespace(path=f"rows-1/split={split}/shard={shard}/p", bytes=10 + shard)

    splits = {split: tuple((piece(split, shard),) for shard in range(8)) for split in ("train", "validation", "test")}
    pieces = {p.path: p for shards in splits.values() for shard in shards for p in shard}
    manifest: Any = SimpleNamespace(virtualShards=8, splits=splits, pieces=pieces)
    ranks = remote.ranks_of(manifest, 3)
    assert [ranks[f"rows-1/split=train/shard={i}/p"] for i in range(8)] == [[0], [0], [1], [1], [1], [2], [2], [2]]
    assert not any("test" in name for name in ranks)
    assert ranks == {**ranks, **remote.ranks_of(manifest, 3)}
    shared = remote.ranks_of(manifest, 16)
    assert [shared[f"rows-1/split=train/shard={i}/p"] for i in range(2)] == [[0, 1], [2, 3]]
    assert remote.check_limit(manifest, 8, None, tmp_path) == [2 * (10 + i) for i in range(8)]
    with pytest.raises(
        InputError, match=r"takes up to 34 bytes on the local disk of each process \(8\), and localCacheLimit=33"
    ):
        remote.check_limit(manifest, 8, 33, tmp_path)
    assert json.dumps(ranks)
