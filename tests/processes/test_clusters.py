"""Jobs in several processes on real clusters, our package shipped by --py-files only, and what a cluster may lack."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from sparkdiff import FineTuner, InputError, TorchTransformer
from sparkdiff.cli.app import main
from tests.support.bare_python import python_with, python_without
from tests.support.faults import CLUSTER, JOB, REMOTE, ROOT, kill_driver, pipeline, spark_home, submit, table

pytestmark = pytest.mark.slow
DEMO = ROOT / "jobs" / "finetune.py"
SUPPORT = ROOT / "tests" / "support"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that doesn't know sparkdiff."""
    python = python_without(tmp_path_factory.mktemp("python") / "foreign")
    for packages, there in (("sparkdiff", False), ("torch, pyspark", True)):
        found = subprocess.run([python, "-E", "-c", f"import {packages}"], capture_output=True, cwd="/")
        assert (found.returncode == 0) == there
    return python


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def demo(runs: Path, name: str, *arguments: str, **options: Any) -> str:
    return submit(
        DEMO, *JOB, f"output.path={runs / name}", f"fineTuner.cacheDir={runs / 'caches'}", *arguments, **options
    )


@pytest.fixture(scope="module")
def local(runs: Path, foreign: str) -> Path:
    demo(runs, "local", python=foreign)
    return runs / "local"


def in_this_process(spark: SparkSession, runs: Path, name: str, *arguments: str) -> int:
    """The exit code of the same command, in the session of the tests."""
    paths = [f"output.path={runs / name}", f"fineTuner.cacheDir={runs / 'caches'}"]
    return main(["finetune", *JOB, *paths, *arguments])


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A master and two workers of one core."""
    folder = tmp_path_factory.mktemp("standalone")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"spark://127.0.0.1:{port}"
    deploy = "org.apache.spark.deploy"
    commands = [[f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]]
    commands += [
        [f"{deploy}.worker.Worker", url, "--cores", "1", "--memory", "1g", "--webui-port", "0", "--work-dir", str(work)]
        for work in (folder / "one", folder / "two")
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"SPARK_HOME": spark_home()}
    processes = []
    for i, command in enumerate(commands):
        log = (folder / f"{i}.log").open("w")
        start = [str(Path(spark_home()) / "bin" / "spark-class"), *command]
        processes.append(
            subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder)
        )
        log.close()
    yield url
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        process.wait(30)


def same(one: Path, other: Path) -> None:
    """The two runs' histories agree but for the order of additions, and so do their decisions."""
    a, b = (pd.read_csv(run / "history.csv") for run in (one, other))
    pd.testing.assert_frame_equal(a, b, rtol=1e-10)
    decisions = [json.loads((run / "summary.json").read_text())["decision"] for run in (one, other)]
    assert decisions == ["tuned", "tuned"]


@pytest.mark.nightly
def test_gpus_that_spark_gives_and_torch_does_not_see(runs: Path, local: Path, foreign: str, tmp_path: Path) -> None:
    """Each executor claims a GPU, which Spark schedules: `auto` takes the CPU, and `cuda` says what is missing."""
    script = tmp_path / "gpus.sh"
    script.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["0"]}\'\n')
    script.chmod(0o755)
    amounts = {f"spark.{part}.resource.gpu.amount": "1" for part in ("worker", "executor", "task")}
    scripts = {f"spark.{part}.resource.gpu.discoveryScript": str(script) for part in ("worker", "executor")}
    options: dict[str, Any] = {"master": "local-cluster[2,1,1024]", "python": foreign}
    demo(runs, "claimed", conf=amounts | scripts, **options)
    same(runs / "claimed", local)
    assert json.loads((runs / "claimed" / "summary.json").read_text())["device"] == "cpu"
    said = demo(runs, "refused", "fineTuner.device=cuda", conf=amounts | scripts, expect=2, **options)
    assert "error: device='cuda', but torch " in said
    said = demo(runs, "refused", "fineTuner.device=cuda", expect=2, **options)
    assert "spark.executor.resource.gpu.amount and spark.task.resource.gpu.amount are not set" in said


def test_a_job_on_a_cluster(runs: Path, spark: SparkSession, foreign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executors in processes of their own, whose Python has our package from the driver only."""
    (runs / "small").mkdir()
    pq.write_table(table(2000), runs / "small" / "rows.parquet")
    pipeline(spark.read.parquet(f"file://{runs}/small/rows.parquet")).save(f"file://{runs}/small/model")
    job = [f"pipeline={runs}/small/model", "--data", f"{runs}/small/rows.parquet", "--label", "count"]
    job += ["fineTuner.maxEpochs=3", "fineTuner.timeout=12", f"fineTuner.cacheDir={runs}/small/caches"]
    submit(
        DEMO,
        *job,
        f"output.path={runs}/small/two",
        "fineTuner.numProcesses=2",
        master="local-cluster[2,1,1024]",
        python=foreign,
    )
    monkeypatch.chdir(ROOT)
    assert main(["finetune", *job, f"output.path={runs}/small/one"]) == 0
    same(runs / "small" / "two", runs / "small" / "one")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["local-cluster", "standalone"])
def test_the_demo_on_a_cluster(
    runs: Path,
    spark: SparkSession,
    foreign: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Executors of the standalone one are started by its workers, not by the driver."""
    master = request.getfixturevalue(kind) if kind == "standalone" else "local-cluster[2,1,1024]"
    few = ("fineTuner.maxEpochs=3", "fineTuner.batchSize=256")  # each step waits for a core that all processes want
    demo(runs, kind, *few, master=master, python=foreign)
    monkeypatch.chdir(ROOT)
    if not (runs / "one").exists():
        assert in_this_process(spark, runs, "one", *few, "fineTuner.numProcesses=1") == 0
    same(runs / kind, runs / "one")


@pytest.mark.nightly  # in pieces: test_processes raises the error, and test_config ends by it
def test_a_failed_process_ends_the_job_with_1_and_traceback(
    runs: Path,
    spark: SparkSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("conf", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "conf" / "losses.py").write_text(
        "import os\n\ndef bad(outputs, label, weight):\n"
        "    name = 'predictions' if os.environ.get('RANK') == '1' else 'prediction'\n"
        "    return (outputs[name] - label) ** 2\n"
    )
    monkeypatch.chdir(tmp_path)
    assert in_this_process(spark, runs, "bad", "fineTuner.loss=losses:bad", "fineTuner.metric=poisson") == 1
    said = capsys.readouterr().err
    assert "process 1 of 2" in said
    assert "in bad" in said
    assert "KeyError: 'predictions'" in said
    assert not (runs / "bad").exists()


@pytest.mark.nightly
def test_a_killed_driver_resumes_by_the_same_command(runs: Path, local: Path) -> None:
    told = kill_driver(runs / "killed", runs / "caches", local, delay=1.5 * (time.time() % 1))
    assert told.resumed, told
    assert told.identical, told
    assert not told.orphans, told


@pytest.mark.nightly
def test_the_faults_of_a_cluster_change_nothing(tmp_path: Path, foreign: str) -> None:
    submit(
        SUPPORT / "faults.py",
        str(tmp_path),
        "1",
        master="local-cluster[2,1,1024]",
        python=foreign,
        timeout=1500,
    )
    told = json.loads((tmp_path / "told.json").read_text())
    assert [t["fault"] for t in told] == [*CLUSTER]
    assert all(t["identical"] and t["resumed"] and not t["orphans"] and t["seconds"] < 300 for t in told), told


@pytest.mark.nightly
def test_executors_that_share_no_folder(tmp_path: Path) -> None:
    """The same weights as with files that all see, also after a killed process, task and executor; nothing stays on local disks.

    The executors' Python can open neither the store nor the driver's working copy.
    """
    for name in ("store", "local", "shared"):
        (tmp_path / name).mkdir()
    blind = tmp_path / "python"
    hidden = f'for d in {tmp_path}/store {tmp_path}/local/*/pyspark-*; do mount -t tmpfs none "$d"; done'
    blind.write_text(f'#!/bin/sh\nexec unshare -m sh -c \'{hidden}; exec {sys.executable} "$@"\' sh "$@"\n')
    blind.chmod(0o755)
    if subprocess.run([str(blind), "-c", ""], capture_output=True).returncode:
        pytest.skip("this machine lets no process have file systems of its own")
    conf = {
        "spark.hadoop.fs.viewfs.mounttable.t.link./d": f"file://{tmp_path}/store",
        "spark.local.dir": str(tmp_path / "local"),
        "spark.pyspark.driver.python": sys.executable,
    }
    submit(
        SUPPORT / "remote_training.py",
        str(tmp_path / "shared"),
        "viewfs://t/d",
        *REMOTE,
        master="local-cluster[2,1,1024]",
        python=str(blind),
        conf=conf,
        timeout=1500,
    )
    told = json.loads((tmp_path / "shared" / "told.json").read_text())
    assert list(told) == ["in the store", *REMOTE]
    assert all(t["identical"] for t in told.values()), told
    assert all(told[name]["resumed"] and not told[name]["left"] for name in REMOTE), told
    assert not list((tmp_path / "local").rglob("*sparkdiff*"))
    assert not list((tmp_path / "local").rglob("stores"))


# What a cluster may lack ----------------------------------------------------------------------------------------------


@pytest.fixture
def workers(spark: SparkSession) -> Iterator[Any]:
    """Sets the Python of the shared session's workers."""
    before = spark.sparkContext.pythonExec
    yield lambda python: setattr(spark.sparkContext, "pythonExec", str(python))
    spark.sparkContext.pythonExec = before


@pytest.fixture(scope="module")
def tuner(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("lacking")
    pq.write_table(table(500), folder / "rows.parquet")
    df = spark.read.parquet(f"file://{folder}/rows.parquet")
    made = FineTuner(
        pipeline=pipeline(df), cacheDir=str(folder), numProcesses=2, localMode="false", maxEpochs=1, rowsAreNew=True
    )
    return lambda **params: made.copy({made.getParam(name): value for name, value in params.items()}).fit(df)


def test_a_python_that_is_not_there(tuner: Any, workers: Any) -> None:
    workers("/nowhere/python")
    with pytest.raises(InputError, match=r"the executors can't run Python .*/nowhere/python.*set PYSPARK_PYTHON"):
        tuner()


def test_a_python_without_torch(tuner: Any, workers: Any, tmp_path: Path) -> None:
    workers(python_without(tmp_path / "bare", "torch"))
    with pytest.raises(
        InputError, match=r"the executors' Python \(.*bare/bin/python on .*\) lacks torch: install it there"
    ):
        tuner()


def imports(python: str, module: str) -> bool:
    return subprocess.run([python, "-E", "-c", f"import {module}"], capture_output=True, cwd="/").returncode == 0


def test_executors_that_have_what_the_docs_ask_for_only(tuner: Any, workers: Any, tmp_path: Path) -> None:
    python = python_with(tmp_path / "bare", "pyspark", "torch", "pyarrow", "pandas")
    assert imports(python, "torch, pandas")
    assert not any(imports(python, module) for module in ("sparkdiff", "petastorm", "rich", "typer", "sklearn"))
    workers(python)
    assert len(tuner(stream="arrow").summary.history)


def test_a_torch_transformer_on_executors_without_pandas(spark: SparkSession, workers: Any, tmp_path: Path) -> None:
    python = python_with(tmp_path / "bare", "pyspark", "torch", "pyarrow", "numpy")
    assert imports(python, "torch, pyarrow") and not imports(python, "pandas") and not imports(python, "sparkdiff")
    df = spark.createDataFrame(table(200).to_pandas())
    model = pipeline(df)
    expected = [row.prediction for row in model.transform(df).select("prediction").collect()]
    workers(python)
    found = TorchTransformer(model, device="cpu").transform(df).select("prediction").collect()
    assert [row.prediction for row in found] == pytest.approx(expected, rel=1e-9)


def test_a_run_folder_that_the_executors_do_not_see(
    tuner: Any, workers: Any, tmp_path: Path, tmp_path_factory: Any
) -> None:
    hidden = tmp_path_factory.getbasetemp()
    wrapper = tmp_path / "elsewhere"
    mount = f"mount -t tmpfs none {hidden} && exec {sys.executable} " + '"$@"'
    wrapper.write_text(f"#!/bin/sh\nexec unshare -m sh -c '{mount}' sh \"$@\"\n")
    wrapper.chmod(0o755)
    if subprocess.run([str(wrapper), "-c", ""], capture_output=True).returncode:
        pytest.skip("this machine lets no process have file systems of its own")
    workers(wrapper)
    with pytest.raises(InputError, match=r"the checkpoint folder .* can't be read on .*: set cacheDir"):
        tuner()
