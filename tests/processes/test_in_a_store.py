"""One job with data, model, cache, checkpoints and output in a store that Python cannot open, on executors that share no folder.

The store is `viewfs://` over a local folder. The executors' Python can open neither that folder nor the driver's working copy.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from sparkdiff.store import files
from tests.support.faults import ROOT, left, parent, pipeline, submission, table, until

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
URL = "viewfs://t/d"
CLUSTER = "local-cluster[2,1,1024]"
OPTIONS = [
    "fineTuner.numProcesses=2",
    "fineTuner.maxEpochs=12",
    "fineTuner.patience=12",
    "fineTuner.batchSize=64",
    "fineTuner.timeout=12",
    "fineTuner.guard=1.0",
    "fineTuner.metric=poisson",
    "fineTuner.loss=losses:slow_poisson",
    "fineTuner.validationFraction=0.3",
]
LOSS = """
import time

import torch


def slow_poisson(outputs, label, weight):
    time.sleep(0.005)  # so that there is time for a fault
    return outputs["prediction"] - label * torch.log(outputs["prediction"])
"""


@dataclass
class Place:
    """Where a job's folders lie, and what it leaves."""

    root: Path
    python: str

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def local(self) -> Path:
        """Spark's folder for temporary files."""
        return self.root / "local"

    def start(self, where: str, name: str, master: str = CLUSTER) -> subprocess.Popen[bytes]:
        """The job of this name, with all its folders in `where`."""
        arguments = [
            "--config",
            str(self.root / "job.yaml"),
            f"pipeline={where}/model",
            f"data.train.path={where}/rows",
            f"output.path={where}/runs/{name}",
            f"fineTuner.cacheDir={where}/caches-{name}",
            f"fineTuner.checkpointDir={where}/checkpoints",
            *OPTIONS,
        ]
        conf = {
            "spark.hadoop.fs.viewfs.mounttable.t.link./d": f"file://{self.store}",
            "spark.local.dir": str(self.local),
            "spark.pyspark.driver.python": sys.executable,
        }
        script = ROOT / "jobs" / "finetune.py"
        command, environment = submission(script, *arguments, master=master, python=self.python, conf=conf)
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, cwd=self.root, start_new_session=True, stdout=log, stderr=log
            )

    def ended(self, job: subprocess.Popen[bytes], name: str, expect: int = 0) -> str:
        """What the job printed."""
        code = job.wait(1200)
        said = (self.root / f"{name}.log").read_text()
        assert code == expect, said
        return said

    def first(self, pattern: str, job: subprocess.Popen[bytes], where: Path) -> Path:
        """The first path of this pattern, as soon as there is one."""
        until(lambda: job.poll() is not None or any(where.glob(pattern)), 900)
        return next(where.glob(pattern))

    def ranks(self, name: str, job: subprocess.Popen[bytes]) -> list[int]:
        """The training processes of the first attempt, as soon as there is a checkpoint in the store."""
        self.first(f"checkpoints/{name}-*/state.pt", job, self.store)
        told = self.local.rglob(f"checkpoints/{name}-*/attempt-1/rank-*.json")
        return [json.loads(path.read_text())["pid"] for path in sorted(told)]

    def check_nothing_left(self, name: str, but: tuple[str, ...] = ()) -> None:
        """Only caches and results are in the store, and nothing of ours on local disks, but in folders whose names begin so."""
        assert sorted(p.name for p in self.store.glob("checkpoints/*")) == []
        assert [p.name for p in (self.store / "runs").glob(f"*{name}*")] == [name]
        [cache] = (self.store / f"caches-{name}").glob("[!.]*")
        manifest = json.loads((cache / "manifest.json").read_text())
        named = {piece["path"] for shards in manifest["splits"].values() for shard in shards for piece in shard}
        there = {p.relative_to(cache).as_posix() for p in cache.rglob("*.parquet") if not p.name.startswith(".")}
        assert there == named
        ours = [path.relative_to(self.local) for path in self.local.rglob("*sparkdiff*")]
        assert not [path for path in ours if not any(folder.startswith(but) for folder in path.parts)]
        assert not list(self.local.rglob("stores"))

    def result(self, name: str, behind: Path) -> Any:
        """What must be equal: history, decision, metrics, the model's hash."""
        run = behind / "runs" / name
        told = json.loads((run / "summary.json").read_text())
        assert told["decision"] == "tuned"
        assert told["model"]["hash"] != told["parent"]["hash"]
        return (run / "history.csv").read_text(), told["metrics"], told["model"]["hash"]


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    for name in ("store", "local", "files"):
        (root / name).mkdir()
    pq.write_table(table(4000), root / "files" / "rows")
    pipeline(spark.read.parquet(f"file://{root}/files/rows")).write().save(f"file://{root}/files/model")
    shutil.copy(root / "files" / "rows", root / "store" / "rows")
    shutil.copytree(root / "files" / "model", root / "store" / "model")
    (root / "losses.py").write_text(LOSS)
    (root / "job.yaml").write_text("data: {train: {path: rows}}\npipeline: model\noutput: {path: run}\n")
    blind = root / "python"
    hidden = f'for d in {root}/store {root}/files {root}/local/*/pyspark-*; do mount -t tmpfs none "$d"; done'
    blind.write_text(f'#!/bin/sh\nexec unshare -m sh -c \'{hidden}; exec {sys.executable} "$@"\' sh "$@"\n')
    blind.chmod(0o755)
    if subprocess.run([str(blind), "-c", ""], capture_output=True).returncode:
        pytest.skip("this machine lets no process have file systems of its own")
    return Place(root, str(blind))


@pytest.fixture(scope="module")
def expected(place: Place) -> Any:
    """The same job on local files, which its processes see."""
    job = Place(place.root, sys.executable).start(str(place.root / "files"), "local")
    place.ended(job, "local")
    return place.result("local", place.root / "files")


def test_the_same_weights_as_on_local_files(place: Place, expected: Any) -> None:
    job = place.start(URL, "calm")
    said = place.ended(job, "calm")
    assert place.result("calm", place.store) == expected, said
    place.check_nothing_left("calm")


def test_a_killed_executor(place: Place, expected: Any) -> None:
    job = place.start(URL, "executor")
    ranks = place.ranks("executor", job)
    target = ranks[-1]
    for _ in range(3):
        target = parent(target)
    os.kill(target, signal.SIGKILL)
    place.ended(job, "executor")
    told = json.loads((place.store / "runs" / "executor" / "summary.json").read_text())["warnings"]
    assert any("training continued from the last checkpoint" in warning for warning in told)
    assert not any("cannot be written" in warning for warning in told)
    assert place.result("executor", place.store) == expected
    assert not left(ranks)
    place.check_nothing_left("executor")


def test_a_killed_driver_and_the_same_command_again(place: Place, expected: Any) -> None:
    """Its JVM and its Python die at once; the executors end by themselves. Nothing of either remains when the next has ended."""
    job = place.start(URL, "driver")
    ranks = place.ranks("driver", job)
    time.sleep(1.5 * (time.time() % 1))
    children = [
        int(pid) for task in Path(f"/proc/{job.pid}/task").glob("*/children") for pid in task.read_text().split()
    ]
    python = next(pid for pid in children if b"jobs/finetune.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    for pid in (job.pid, python):
        os.kill(pid, signal.SIGKILL)
    job.wait()
    assert not left(ranks)
    [state] = place.store.glob("checkpoints/driver-*/state.pt")
    reached = files.load(state)
    assert reached is not None and not reached["ended"], "the fault came too late"
    assert not (place.store / "runs" / "driver").exists()
    before = {*place.local.glob("spark-*")}
    job = place.start(URL, "driver")
    pattern = "pyspark-*/stores/viewfs/t/d/checkpoints/driver-*/attempt-1/progress.jsonl"

    def lines() -> list[str]:
        new = [path for tree in {*place.local.glob("spark-*")} - before for path in tree.glob(pattern)]
        return [line for path in new for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    until(lambda: job.poll() is not None or lines(), 900)
    line = json.loads(lines()[0])
    assert (line["epoch"], line["step"]) > (reached["epoch"], reached["step"])
    place.ended(job, "driver")
    assert place.result("driver", place.store) == expected
    # A JVM that is killed leaves the files that it hands to executors, --py-files among them.
    place.check_nothing_left("driver", but=("userFiles-",))
