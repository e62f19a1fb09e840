"""The store of runs: many writers at once, killed ones, stores of earlier versions, compaction in the middle of it, and the
list of its runs.
"""

import datetime
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkdiff import InputError
from sparkdiff.cli.app import main
from sparkdiff.errors import DONE, WRONG_INPUT
from sparkdiff.history import run_store, run_table
from sparkdiff.store.saved_digests import hash_of_folder

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


def test_the_list_is_sorted_and_names_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the process of the tests, where Spark could start: that nothing starts it is tested below."""
    write_some(tmp_path, 0, 3)
    run_store.add(tmp_path, run_of(3, gain=None, runId="mine", output="/runs/fair"))
    run_store.add(tmp_path, run_of(4, gain=-0.0001, before=float("nan")))
    assert main(["runs", str(tmp_path), "--sort", "gain", "--limit", "4"]) == DONE
    head, *lines, more = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["00000002", "00000001", "00000000", "00000004"]
    assert head.split()[:3] == ["finished", "run", "by"] and "--limit shows them" in more
    assert "2026-01-01 12:00" in lines[0] and "+20.0%" in lines[0] and "+0.0%" in lines[3]  # UTC; no "-0.0%"
    assert main(["runs", str(tmp_path), "--json"]) == DONE
    last, named, *_ = map(json.loads, capsys.readouterr().out.splitlines())
    assert (last["before"], named["output"], named["finished"]) == ("NaN", "/runs/fair", "2026-01-01T12:00:03+00:00")
    assert "gain" not in named and "tags" not in named
    assert main(["runs", str(tmp_path), "--sort", "gian"]) == WRONG_INPUT and "'gain'" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--sort", "tags"]) == WRONG_INPUT
    assert "--sort tags is no column of a run that has an order" in capsys.readouterr().err


WITHOUT_SPARK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pyspark", "py4j", "torch"):
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Absent())
from sparkdiff.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def test_runs_and_why_import_neither_spark_nor_torch(tmp_path: Path) -> None:
    """The row of a job with redact=true has no folder: the job's own folder below this one has the row's id."""
    saved = tmp_path / "runs" / "fair" / "model" / "metadata"
    saved.mkdir(parents=True)
    (saved / "part-00000").write_text(json.dumps({"class": "org.apache.spark.ml.PipelineModel", "uid": "p_1"}))
    (tmp_path / "runs" / "fair" / "summary.json").write_text(
        json.dumps({"decision": "tuned", "id": "00000001"}, indent=2)
    )
    told = {"decision": "tuned", "metric": "logLoss", "reason": "it is better", "kept": False}
    made = hash_of_folder(saved.parent)
    run_store.add(tmp_path / "store", run_of(1, model=made, parent="f" * 64, **told))
    run_store.add(tmp_path / "store", run_of(2, model="e" * 64, parent=made, runId="after", **told))

    def answer(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_SPARK, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(run_store.__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == DONE, done.stderr
        return done.stdout

    _, after, fair = answer("runs", "store").splitlines()
    assert after.split()[2] == "after" and fair.split()[2] == "00000001" and fair.endswith("runs/fair")
    origin = answer("why", "runs/fair", "--store", "store")
    assert "run 00000001, in runs/fair" in origin and "tried from this model since" in origin


def test_a_folder_named_like_a_summary_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "rows" / "summary.json").mkdir(parents=True)  # as Spark writes rows
    assert run_table.folders_of_runs(tmp_path) == {}
