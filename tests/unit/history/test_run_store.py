"""The store of runs: many writers at once, killed ones, stores of earlier versions, compaction in the middle of it, and the
list of its runs.
"""

import datetime
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkdiff import InputError
from sparkdiff.history import run_store, run_table

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.timezone.utc)


def run_of(number: int, **more: Any) -> dict[str, Any]:
    later = NOON + datetime.timedelta(seconds=number)
    return {
        "id": f"{number:08d}",
        "schemaVersion": 1,
        "finished": later,
        "verb": "finetune",
        "gain": number / 10,
        **more,
    }


def ids(folder: Path) -> list[str]:
    return [run["id"] for run in run_table.rows(folder)]


def write_some(folder: Path, first: int, many: int) -> None:
    for number in range(first, first + many):
        run_store.add(folder, run_of(number))


def compact_all(folder: Path) -> None:
    while not (folder / "end").exists():
        run_store.compact(folder)


def write_forever(folder: Path) -> None:
    number = 1000
    while True:
        run_store.add(folder, run_of(number))
        number += 1


def test_ten_writers_at_once_and_a_compaction_lose_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_some, args=(tmp_path, 20 * i, 20)) for i in range(10)]
    for writer in writers:
        writer.start()
    others = [fork.Process(target=compact_all, args=(tmp_path,)), fork.Process(target=compact_all, args=(tmp_path,))]
    seen = 0
    while any(w.is_alive() for w in writers):
        if any(tmp_path.glob("run*.parquet")):
            for other in others:
                if other.pid is None:
                    other.start()
            read = len(ids(tmp_path))  # never fewer than before, and no file that is missing
            assert read >= seen
            seen = read
    (tmp_path / "end").touch()
    for other in others:
        other.join()
    (tmp_path / "end").unlink()
    assert [o.exitcode for o in others] == [0, 0]
    assert [w.exitcode for w in writers] == [0] * 10
    assert ids(tmp_path) == [f"{i:08d}" for i in range(200)]
    assert run_store.compact(tmp_path) == 200 and len(list(tmp_path.iterdir())) == 1
    assert ids(tmp_path) == [f"{i:08d}" for i in range(200)]


def test_a_reader_begins_again_if_compaction_removes_files(tmp_path: Path) -> None:
    write_some(tmp_path, 0, 3)
    calls = list[int]()

    def late(folder: Path) -> tuple[str, list[Path]]:
        found = run_table.local_files(folder)
        if not calls:  # between the list of the files and their reading
            calls.append(1)
            run_store.compact(folder)
        return found

    assert [run["id"] for run in run_table.rows(tmp_path, files=late)] == [f"{i:08d}" for i in range(3)]


def test_a_killed_writer_leaves_no_half_run(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writer = fork.Process(target=write_forever, args=(tmp_path,))
    writer.start()
    while len(list(tmp_path.glob("run*.parquet"))) < 20:
        time.sleep(0.01)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    written = len(list(tmp_path.glob("run*.parquet")))
    (tmp_path / ".run-halfway.parquet-0badf00d").write_bytes(b"PAR1")  # as one that was killed in the middle of a file
    assert ids(tmp_path) == [f"{i:08d}" for i in range(1000, 1000 + written)]
    assert run_store.compact(tmp_path) == written


def test_a_run_that_two_files_hold_is_one_run(tmp_path: Path) -> None:
    write_some(tmp_path, 0, 3)
    files = {f: f.read_bytes() for f in tmp_path.iterdir()}
    run_store.compact(tmp_path)
    for file, content in files.items():  # a compaction that was killed before it removed them
        file.write_bytes(content)
    assert ids(tmp_path) == [f"{i:08d}" for i in range(3)]
    assert run_store.compact(tmp_path) == 3 and len(list(tmp_path.iterdir())) == 1


def test_a_store_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    few = pa.schema([run_table.SCHEMA.field(name) for name in ("id", "schemaVersion", "finished", "verb", "gain")])
    pq.write_table(pa.Table.from_pylist([run_of(1)], few), tmp_path / "run-old.parquet")
    run_store.add(tmp_path, run_of(2, tags={"team": "risk"}))
    old, new = run_table.rows(tmp_path)
    assert (old["gain"], old["tags"], old["tried"]) == (0.1, None, None)
    assert new["tags"] == {"team": "risk"}
    assert run_store.compact(tmp_path) == 2


def test_a_newer_store_is_not_compacted_by_an_older_version(tmp_path: Path) -> None:
    write_some(tmp_path, 0, 2)
    run_store.add(tmp_path, run_of(3, schemaVersion=run_table.VERSION + 1))
    with pytest.raises(InputError, match=f"schema {run_table.VERSION + 1}, here {run_table.VERSION}"):
        run_store.compact(tmp_path)
    assert len(ids(tmp_path)) == 3


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no runs in .*absent: pass the folder that storeDir names"):
        run_table.rows(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"storeDir='.*file' cannot be used"):
        run_store.add(tmp_path / "file", run_of(1))
