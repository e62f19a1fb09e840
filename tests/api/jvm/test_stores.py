"""Jobs whose folders lie on a file system that Spark knows and Python doesn't: `viewfs://` over a local folder."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from sparkdiff import FineTuner, InputError, jvm
from sparkdiff.cli import starting
from sparkdiff.cli.app import main
from sparkdiff.cli.config import load_config
from sparkdiff.cli.output import is_unfinished, summary_of
from sparkdiff.cli.output_writing import write_run_folder
from sparkdiff.data.cache import DamagedCache
from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import StoreError, WriteError
from sparkdiff.jvm import stores
from sparkdiff.machine import processes
from sparkdiff.store import checkpoint_folder, files, folder_marker
from sparkdiff.store.lease import LeaseHeldError, hold_lease

QUICK = ["fineTuner.maxEpochs=1", "fineTuner.recipe=fast", "fineTuner.guard=1.0", "fineTuner.verbosity=0"]


@pytest.fixture(scope="module")
def store(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of a store, and the local folder that is behind it."""
    folder = tmp_path_factory.mktemp("store")
    settings: Any = spark.sparkContext._jsc.hadoopConfiguration()
    settings.set("fs.viewfs.mounttable.tests.link./d", f"file://{folder}")
    settings.set("fs.viewfs.enable.inner.cache", "false")  # below it is the local file system of the other tests
    yield "viewfs://tests/d", folder
    if (root := stores.tree()) is not None:
        shutil.rmtree(root / "viewfs", ignore_errors=True)


def test_a_job_in_a_store_ends_as_on_local_files(
    spark: SparkSession, table: pa.Table, numeric: PipelineModel, tmp_path: Path, store: tuple[str, Path]
) -> None:
    """The same weights; the summary names URLs, the model is plain, and nothing but caches and results is left."""
    url, behind = store
    pq.write_table(table, tmp_path / "rows.parquet", coerce_timestamps="us")
    found = {}
    for where in (str(tmp_path), url):
        address = where if "://" in where else f"file://{where}"
        spark.read.parquet(f"file://{tmp_path}/rows.parquet").write.parquet(f"{address}/rows")
        numeric.write().save(f"{address}/model")
        given = [f"pipeline={where}/model", f"data.train.path={where}/rows", f"output.path={where}/runs/x", *QUICK]
        assert main(["finetune", *given, f"fineTuner.checkpointDir={where}/checkpoints"]) == 0
    for where, folder in ((str(tmp_path), tmp_path), (url, behind)):
        found[where] = json.loads((folder / "runs" / "x" / "summary.json").read_text())
        assert found[where]["parent"]["path"] == f"{where}/model"
        assert sorted(p.name for p in (folder / "runs").glob("[!.]*")) == ["x"]
        assert not list((folder / "checkpoints").glob("[!.]*"))
    local, there = found.values()
    for part in ("model", "decision", "metrics"):
        assert local[part] == there[part]
    assert local["model"]["hash"] != local["parent"]["hash"]
    assert PipelineModel.load(f"{url}/runs/x/model").stages
    # What an earlier run has written is replaced, and so is what one that was killed has left.
    again = [f"pipeline={url}/runs/x", f"data.train.path={url}/rows", f"output.path={url}/runs/x", *QUICK]
    output = jvm.folder("output", f"{url}/runs/x")
    with pytest.raises(InputError, match=f"output {url}/runs/x exists"):
        starting.run(load_config(None, again))
    stores.remove(output / "summary.json")
    assert summary_of(output) is None and is_unfinished(output)
    starting.run(load_config(None, again))
    assert summary_of(output) is not None and not is_unfinished(output)
    stores.write(output / "mine.txt", b"")
    with pytest.raises(InputError, match=r"contains mine\.txt, which is not of sparkdiff's run"):
        starting.run(load_config(None, [*again, "output.mode=overwrite"]))


def test_what_a_killed_driver_has_written_is_there_for_the_next(store: tuple[str, Path]) -> None:
    """On another machine, where there is no working copy. A file that is gone is gone there, too."""
    url, behind = store
    where = jvm.folder("checkpointDir", f"{url}/kept")

    def opened(rows: int = 1) -> Any:
        return checkpoint_folder.open_checkpoint_folder(where, "r", {"rows": rows}, replace=False, own=False, wait=0.0)

    with opened() as folder:
        (folder.path / "round-1").mkdir()
        (folder.path / "round-1" / "a.pt").write_bytes(b"a")
        folder.state.write_bytes(b"state")
        folder.mirror.sync()
        assert (behind / "kept" / "r" / "state.pt").read_bytes() == b"state"
        with pytest.raises(LeaseHeldError, match="runId='r' is in use by process"), opened():
            pass
    assert not list((behind / "kept").glob(".r.lease"))
    shutil.rmtree(where)
    with opened() as folder:
        assert folder.state.read_bytes() == b"state"
        assert (folder.path / "round-1" / "a.pt").read_bytes() == b"a"
        shutil.rmtree(folder.path / "round-1")
    assert sorted(p.name for p in (behind / "kept" / "r").glob("[!.]*")) == ["run.json", "state.pt"]
    with pytest.raises(InputError, match="runId='r' was started with other rows"), opened(rows=2):
        pass
    folder.remove()
    assert not (behind / "kept" / "r").exists()


def test_a_checkpoint_that_is_being_replaced_stays_in_the_store(store: tuple[str, Path]) -> None:
    """The mirror may look in the moment in which the old one has another name already and the new one none."""
    where = jvm.folder("checkpointDir", f"{store[0]}/replaced")
    there = store[1] / "replaced" / "r"
    with checkpoint_folder.open_checkpoint_folder(
        where, "r", {"rows": 1}, replace=False, own=False, wait=0.0
    ) as folder:
        files.save(folder.state, {"epoch": 1})
        folder.mirror.sync()
        first = (there / "state.pt").read_bytes()
        folder.state.rename(files.previous(folder.state))
        folder.mirror.sync()
        assert (there / "state.pt").read_bytes() == first
        assert files.load(folder.state) == {"epoch": 1}
        files.save(folder.state, {"epoch": 2})
        folder.mirror.sync()
        # A training that is part of this run is sent with it, and nothing is fetched over it.
        inside = folder.path / checkpoint_folder.TRAININGS
        with checkpoint_folder.open_checkpoint_folder(
            inside, "a", {"rows": 2}, replace=False, own=False, wait=0.0
        ) as part:
            assert part.mirror is None
            files.save(part.state, {"epoch": 3})
            folder.mirror.sync()
        folder.remove()
    assert not there.exists()


def test_a_checkpoint_replaced_while_sent_is_no_store_fault(
    store: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been gone for a moment: the next look sends the new one, and no warning is told."""
    where = jvm.folder("checkpointDir", f"{store[0]}/raced")
    send = stores.send
    with checkpoint_folder.open_checkpoint_folder(
        where, "r", {"rows": 1}, replace=False, own=False, wait=0.0
    ) as folder:
        files.save(folder.state, {"epoch": 1})
        folder.mirror.stop()

        def raced(path: Path) -> None:
            path.rename(files.previous(path))
            try:
                send(path)
            finally:
                files.previous(path).rename(path)
                files.save(path, {"epoch": 2})

        with monkeypatch.context() as m:
            m.setattr(stores, "send", raced)
            folder.mirror.sync()
        folder.mirror.sync()
        assert not folder.mirror.failed
        assert (store[1] / "raced" / "r" / "state.pt").read_bytes() == folder.state.read_bytes()
        (store[1] / "raced" / "r").rename(store[1] / "gone")  # what the store itself refuses is told
        (store[1] / "raced" / "r").write_text("no folder")
        files.save(folder.state, {"epoch": 3})
        with pytest.raises(StoreError):
            folder.mirror.sync()
        (store[1] / "raced" / "r").unlink()
        folder.remove()


def test_a_run_that_a_store_refuses_leaves_the_one_before(
    store: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = jvm.folder("output", f"{store[0]}/refused/x")
    there = store[1] / "refused" / "x"
    said = {"summary.json": json.dumps({"fingerprints": {}}), "plan.json": "old"}
    for name, text in said.items():
        stores.write(output / name, text.encode())
    folder_marker.mark(output, folder_marker.OUTPUT, said)
    rename, lease = stores.rename, SimpleNamespace(check=lambda: None)

    def fill(folder: Path) -> None:
        for name in said:
            stores.write(folder / name, json.dumps({"fingerprints": {}, "new": 1}).encode())

    def refused(path: Path, other: Path) -> None:
        if other == output / "summary.json" and ".old" not in path.parent.name:
            raise StoreError(13, "denied", str(path))
        rename(path, other)

    with monkeypatch.context() as m:
        m.setattr(stores, "rename", refused)
        with pytest.raises(WriteError, match=r"the run cannot be written to .*/refused/x: denied; make it writable"):
            write_run_folder(output, lease, fill)
    assert {p.name: p.read_text() for p in there.glob("[!.]*")} == said
    assert [p.name for p in there.parent.glob("[!.]*")] == ["x"]
    # One that was killed while it was written is replaced, too; a file of the user never.
    stores.remove(output / "summary.json")
    assert is_unfinished(output)
    write_run_folder(output, lease, fill)
    assert "new" in json.loads((there / "summary.json").read_text())
    assert not is_unfinished(output)
    stores.write(output / "mine.txt", b"")
    with pytest.raises(InputError, match=r"contains mine\.txt"):
        write_run_folder(output, lease, fill)


def test_a_cache_of_which_a_file_is_gone_is_written_again(
    df: Any, numeric: PipelineModel, store: tuple[str, Path]
) -> None:
    def fitted() -> Any:
        return (
            FineTuner(numeric, cacheDir=f"{store[0]}/gone", maxEpochs=1, recipe="fast", verbosity=0, rowsAreNew=True)
            .fit(df)
            .summary
        )

    first = fitted()
    [gone, *_] = sorted((store[1] / "gone").rglob("*.parquet"))
    gone.unlink()
    shutil.rmtree(jvm.folder("cacheDir", f"{store[0]}/gone"))  # as on another machine
    with pytest.warns(DamagedCache, match="is damaged and is written again: .*there is no such file"):
        again = fitted()
    assert (again.metrics, again.cache["hit"]) == (first.metrics, False)


def test_a_store_that_cannot_be_used_is_named_before_any_job(
    spark: SparkSession, df: Any, numeric: PipelineModel, tmp_path: Path, store: tuple[str, Path]
) -> None:
    settings: Any = spark.sparkContext._jsc.hadoopConfiguration()
    settings.set("fs.viewfs.mounttable.denied.link./d", "file:///proc")
    for option in ("cacheDir", "checkpointDir"):
        beside = {"cacheDir": str(tmp_path)} if option == "checkpointDir" else {}
        for url, sentence in (
            ("nowhere://x/y", "can't be used, as Spark has no file system for it .No FileSystem for scheme"),
            ("viewfs://tests/other", "cannot be used: .* choose a folder that can be written"),
            ("viewfs://denied/d/x", "cannot be used: .* choose a folder that can be written"),
        ):
            with pytest.raises(InputError, match=f"{option}='{url}' {sentence}"):
                FineTuner(pipeline=numeric, **{**beside, option: url}).fit(df)
    assert not list(tmp_path.iterdir())


def test_the_limit_of_local_copies_is_named(df: Any, numeric: PipelineModel, store: tuple[str, Path]) -> None:
    url, behind = store
    tuner = FineTuner(pipeline=numeric, cacheDir=f"{url}/small", maxEpochs=1, localCacheLimit=1000, rowsAreNew=True)
    with pytest.raises(
        InputError, match=rf"the cache in {url}/small/\w+ takes [\d,]+ bytes .* localCacheLimit=1,000: raise it"
    ):
        tuner.fit(df)
    assert not list((behind / "small").rglob("*.parquet"))


@pytest.mark.nightly
def test_the_limit_removes_no_cache_that_is_being_read(
    df: Any, numeric: PipelineModel, store: tuple[str, Path]
) -> None:
    def fitted(rows: Any, limit: int | None = None) -> Any:
        caches = f"{store[0]}/read"
        return FineTuner(
            numeric, cacheDir=caches, maxEpochs=1, recipe="fast", verbosity=0, localCacheLimit=limit, rowsAreNew=True
        ).fit(rows)

    fitted(df)
    where = jvm.folder("cacheDir", f"{store[0]}/read")
    [first] = [p for p in where.iterdir() if (p / "manifest.json").exists()]
    limit = files.folder_size(first) + 1000
    other = df.unionByName(df.limit(5))
    with (
        Stream(first) as stream,
        pytest.raises(InputError, match=r"beside [\d,]+ of caches that are being read, and localCacheLimit="),
    ):
        fitted(other, limit)
    assert stream.rows("train") and (first / "manifest.json").exists()
    fitted(other, limit)
    assert not first.exists()  # but it is still in the store


@pytest.mark.nightly
def test_what_a_killed_writer_of_a_cache_has_left_is_removed(
    df: Any, numeric: PipelineModel, tmp_path: Path, store: tuple[str, Path]
) -> None:
    """By the next one that writes the same cache; in a store it waits for one that still writes."""
    dead = subprocess.Popen(["true"])
    owner = {"machine": processes.machine(), "pid": dead.pid, "started": processes.start_time(dead.pid) or 1}
    dead.wait()
    for url, folder in ((f"{store[0]}/killed", store[1] / "killed"), (str(tmp_path), tmp_path)):
        tuner = FineTuner(numeric, cacheDir=url, maxEpochs=1, recipe="fast", verbosity=0, rowsAreNew=True)
        tuner.fit(df)
        [cache] = [p for p in folder.glob("[!.]*") if (p / "manifest.json").exists()]
        shutil.rmtree(cache)
        left, lives = folder / f".{cache.name}-0", folder / f".{cache.name}-1"
        if "://" in url:
            left = cache / "rows-0"
            shutil.rmtree(jvm.folder("cacheDir", url))
        left.mkdir(parents=True)
        (left / "part-0.parquet").write_bytes(b"x")
        if "://" in url:
            (cache / folder_marker.MARKER).write_text(folder_marker.CACHE)
        if "://" not in url:
            (left / ".owner").write_text(json.dumps(owner))
            lives.mkdir()
            processes.write_owner(lives / ".owner", os.getpid())
        tuner.fit(df)
        assert (cache / "manifest.json").exists() and not left.exists()
        assert "://" in url or (lives.exists() and not (cache / ".owner").exists())
        assert not list(folder.glob(".*.lease"))


def test_only_a_killed_drivers_working_copies_are_removed(spark: SparkSession, tmp_path: Path) -> None:
    """The next driver of the machine removes them, and those of no other."""
    dead = subprocess.Popen(["sleep", "60"])
    for name, pid in (("dead", dead.pid), ("lives", os.getpid())):
        tree = tmp_path / f"spark-{name}" / "pyspark-0" / "stores"
        (tree / "viewfs").mkdir(parents=True)
        processes.write_owner(tree / stores.OWNER, pid)
    (tmp_path / "spark-old" / "pyspark-0" / "stores").mkdir(parents=True)  # of a version that wrote no owner
    own = tmp_path / "spark-own" / "pyspark-0"
    own.mkdir(parents=True)
    dead.kill()
    dead.wait()
    root = stores._tree.__wrapped__(SimpleNamespace(_temp_dir=str(own), _jvm=spark._jvm))  # not kept
    assert root == own / "stores" and not processes.is_orphan(root / stores.OWNER)
    assert sorted(p.parent.parent.name for p in tmp_path.glob("*/*/stores")) == [
        "spark-lives",
        "spark-old",
        "spark-own",
    ]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("how", ["lost", "read-only"])
def test_a_store_that_fails_in_the_middle(
    spark: SparkSession,
    numeric: PipelineModel,
    table: pa.Table,
    tmp_path: Path,
    store: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    request: pytest.FixtureRequest,
) -> None:
    """It is one sentence, and nothing is lost: once it is as before, the same command goes on to the same end."""
    pq.write_table(table, tmp_path / "rows.parquet", coerce_timestamps="us")
    numeric.write().save(f"file://{tmp_path}/model")
    (tmp_path / "losses.py").write_text(
        "import time\n\ndef slow(outputs, label, weight):\n    time.sleep(0.01)\n"
        "    return (outputs['prediction'] - label) ** 2\n"
    )
    monkeypatch.chdir(tmp_path)
    url, behind = f"{store[0]}/{how}", store[1] / how
    away = behind.with_name("away")
    behind.mkdir()
    if how == "read-only":
        if subprocess.run(["mount", "-t", "tmpfs", "none", str(behind)], capture_output=True).returncode:
            pytest.skip("this machine lets no test mount file systems")
        request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(behind)], check=True))

    def mounted(mode: str) -> None:
        while subprocess.run(["mount", "-o", f"remount,{mode}", str(behind)], capture_output=True).returncode:
            time.sleep(0.01)  # a file is being written

    def command(name: str) -> list[str]:
        return [
            "finetune",
            f"pipeline={tmp_path}/model",
            f"data.train.path={tmp_path}/rows.parquet",
            f"output.path={url}/{name}",
            f"fineTuner.cacheDir={url}/caches",
            "fineTuner.maxEpochs=12",
            "fineTuner.patience=12",
            "fineTuner.batchSize=16",
            "fineTuner.timeout=5",
            "fineTuner.recipe=fast",
            "fineTuner.guard=1.0",
            "fineTuner.loss=losses:slow",
            "fineTuner.metric=rmse",
            f"fineTuner.checkpointDir={url}/checkpoints",
        ]

    assert main(command("calm")) == 0
    failed = threading.Event()

    def fail() -> None:
        while not any((behind / "checkpoints").glob("x-*/state.pt")):
            time.sleep(0.02)
        if how == "lost":
            behind.rename(away)
        else:
            mounted("ro")
        failed.set()

    thread = threading.Thread(target=fail, daemon=True)
    thread.start()
    capsys.readouterr()
    code, said = main(command("x")), capsys.readouterr().err
    assert failed.wait(10)
    if how == "lost":
        away.rename(behind)
    else:
        mounted("rw")
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert code != 0 and len(errors) == 1, said
    place, cause = ("checkpoints/.x-", "a lost mount?") if how == "lost" else ("caches", "make it writable and repeat")
    assert f"{url}/{place}" in errors[0] and cause in errors[0], said
    assert "Traceback" not in said
    assert not (behind / "x").exists()
    [state] = (behind / "checkpoints").glob("x-*/state.pt")
    assert (reached := files.load(state)) is not None and not reached["ended"]
    assert main(command("x")) == 0
    runs = [json.loads((behind / name / "summary.json").read_text()) for name in ("calm", "x")]
    assert runs[0]["model"] == runs[1]["model"] and runs[0]["metrics"] == runs[1]["metrics"]
    assert sorted(p.name for p in behind.glob("[!.]*")) == ["caches", "calm", "checkpoints", "x"]


def test_a_lease_in_a_store_of_a_dead_process_is_taken_over(store: tuple[str, Path]) -> None:
    where = jvm.folder("output", f"{store[0]}/x.lease")
    with hold_lease(where, "x", beat=0.05, lasts=0.2) as lease, pytest.MonkeyPatch.context() as patched:
        patched.setattr(lease, "_renew", lambda: None)  # it no longer renews it
        content = json.loads((store[1] / "x.lease").read_text())
        stores.write(where, json.dumps({**content, "machine": None}).encode())
        with hold_lease(where, "x", wait=5, beat=0.05, lasts=0.2) as other:
            assert not other.is_lost()
            patched.undo()
            assert lease.is_lost()


@pytest.mark.parametrize(
    ("where", "state", "told"),
    [
        ("viewfs://tests/d/new/caches", "ok", "Spark can write to viewfs://tests/d/new/caches"),
        ("nofs://lake/caches", "problem", "Spark has no file system for it"),
        ("new/caches", "ok", "Spark and this process see the same files in {}/new/caches"),
    ],
)
def test_doctor_writes_where_it_is_told_and_leaves_nothing(
    store: tuple[str, Path],
    where: str,
    state: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["doctor", "--json", "--path", where])
    [found] = [f for f in json.loads(capsys.readouterr().out) if f["name"] == "paths"]
    assert found["state"] == state and told.format(tmp_path) in found["found"]
    assert not [*tmp_path.iterdir()] and not (store[1] / "new").exists()
