"""Training in several processes through the public interface: the same result, and clear words where it can't be."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import Events, FineTuner, FineTunerModel, InputError, jvm
from sparkdiff.cli import steps
from sparkdiff.cli.config import Config
from sparkdiff.errors import FullDiskError
from sparkdiff.fine_tuning.task import Outcome
from sparkdiff.jvm import stores
from sparkdiff.report import Phases
from sparkdiff.store import files
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.store.lease import hold_lease
from sparkdiff.training.distributed import choice, launch, preflight
from sparkdiff.training.distributed.attempt import TrainingError
from tests.support.faults import LASTING, LOCAL, NUMBERS, outcome, pipeline, slow_poisson, suffer, table
from tests.support.full_disk import no_room

pytestmark = pytest.mark.slow
Fit = Callable[..., FineTunerModel]


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(table(4000), path)
    return spark.read.parquet(f"file://{path}")


@pytest.fixture(scope="module")
def fit(rows: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Fine-tune the same pipeline with other options; all of them share caches."""
    model, caches = pipeline(rows), str(tmp_path_factory.mktemp("caches"))

    def fitted(df: DataFrame = rows, **options: Any) -> FineTunerModel:
        return FineTuner(pipeline=model, **{"cacheDir": caches, "rowsAreNew": True, **options}).fit(df)

    return fitted


THOROUGH: dict[str, Any] = {"maxEpochs": 5, "batchSize": 64, "validationFraction": 0.3, "recipe": "thorough"}
"""7 of 10 rows train: 4000 * .7 / 64 = 44 steps an epoch, so 220 steps; enough rows are held out for all ten candidates."""


@pytest.fixture(scope="module")
def thorough(fit: Fit) -> dict[str, Any]:
    """What one process finds."""
    return outcome(fit(**THOROUGH))


@pytest.mark.nightly  # without Spark: test_ranks; two as tasks of Spark: below
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_more_processes_change_neither_weights_nor_decision(
    fit: Fit, thorough: dict[str, Any], tmp_path: Path, processes: int
) -> None:
    """And without a runId nothing is left."""
    told: list[Any] = []
    heard = Events()
    heard.on_epoch = told.append  # type: ignore[method-assign]
    fitted = fit(numProcesses=processes, callbacks=[heard], checkpointDir=str(tmp_path), **THOROUGH)
    pd.testing.assert_frame_equal(pd.DataFrame(told), fitted.summary.history)
    several = outcome(fitted)
    assert several["decision"] == thorough["decision"] == "tuned"
    np.testing.assert_allclose(several["weights"], thorough["weights"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(several["history"], thorough["history"], rtol=1e-12)
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_fastest_and_a_resumed_run_the_same(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short training starts no process to find out; a run that goes on asks no clock."""
    options: dict[str, Any] = {"maxEpochs": 2, "batchSize": 64, "checkpointDir": str(tmp_path), "runId": "auto"}
    monkeypatch.setattr(launch, "_together", lambda *given: pytest.fail("processes were started"))
    monkeypatch.setattr(choice, "most", lambda shards, slots: 2)
    first = fit(numProcesses="auto", **options)
    chosen = first.summary.processes
    assert chosen is not None
    assert chosen["number"] == 1
    assert chosen["why"].startswith("training takes at most ")
    assert list(chosen["milliseconds"]) == ["1"]
    assert f"trained in 1 process: {chosen['why']}" in str(first.summary)
    plain = fit(**(options | {"runId": "plain"}))
    assert outcome(first) == outcome(plain)
    assert plain.summary.processes is None
    for folder in tmp_path.glob("*/state.pt"):
        folder.unlink()
    monkeypatch.setattr(launch, "seconds_per_step", lambda *given: pytest.fail("the clock was asked again"))
    again = fit(numProcesses="auto", **options)
    assert again.summary.processes == chosen
    assert outcome(again) == outcome(first)


@pytest.mark.nightly  # without Spark: test_number
@pytest.mark.parametrize("localMode", ["true", pytest.param("false", marks=pytest.mark.nightly)])
def test_auto_times_a_step_of_several_processes(fit: Fit, monkeypatch: pytest.MonkeyPatch, localMode: str) -> None:
    """Where starting them costs nothing, two are started; whichever number is taken, the result is that of one."""
    options: dict[str, Any] = {"maxEpochs": 2, "batchSize": 64}
    monkeypatch.setattr(choice, "STARTING", 0.0)
    monkeypatch.setattr(choice, "most", lambda shards, slots: 2)
    found = fit(numProcesses="auto", localMode=localMode, **options)
    chosen = found.summary.processes
    assert chosen is not None
    assert set(chosen["milliseconds"]) == {"1", "2"}
    assert all(v > 0 for v in chosen["milliseconds"].values())
    one = outcome(fit(**options))
    np.testing.assert_allclose(outcome(found)["weights"], one["weights"], rtol=0, atol=1e-12)


@pytest.mark.nightly  # what the processes do alone: test_local_steps
def test_local_steps_gain_as_well_and_say_the_number_counts(fit: Fit) -> None:
    options: dict[str, Any] = {"maxEpochs": 5, "batchSize": 64, "numProcesses": 2, "localSteps": 4}
    first = fit(**options)
    assert first.summary.decision == "tuned"
    said = "with localSteps=4 another number of processes than 2 gives another result"
    assert said in first.summary.warnings
    assert outcome(fit(**options)) == outcome(first)
    assert outcome(fit(**(options | {"localSteps": 1}))) != outcome(first)
    alone = fit(**(options | {"numProcesses": 1}))
    assert "localSteps=4 has no effect: one process trains, that of the driver" in alone.summary.warnings
    assert first.summary.gain == pytest.approx(alone.summary.gain, rel=0.1)


@pytest.fixture(scope="module")
def store(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a store that Python can't open."""
    settings: Any = spark.sparkContext._jsc.hadoopConfiguration()
    settings.set("fs.viewfs.mounttable.processes.link./d", f"file://{tmp_path_factory.mktemp('store')}")
    settings.set("fs.viewfs.enable.inner.cache", "false")  # below it is the local file system of the other tests
    return "viewfs://processes/d"


def test_processes_as_tasks_of_a_barrier_stage(fit: Fit, store: str) -> None:
    """The weights of one process; and where they see no folder, so that rows come through Spark and all else through a
    connection, the same bits, and nothing stays but the cache."""
    training = {"maxEpochs": 2, "batchSize": 64}
    options: dict[str, Any] = {**training, "numProcesses": 2, "localMode": "false"}
    told: list[Any] = []
    heard = Events()
    heard.on_epoch = told.append  # type: ignore[method-assign]
    fitted = fit(**{**options, "cacheDir": store}, callbacks=[heard])
    tasks = outcome(fit(**options))
    np.testing.assert_allclose(tasks["weights"], outcome(fit(**training))["weights"], rtol=0, atol=1e-12)
    assert outcome(fitted) == tasks
    pd.testing.assert_frame_equal(pd.DataFrame(told), fitted.summary.history)
    assert stores.names(jvm.folder("cacheDir", store)) == [fitted.summary.cache["fingerprint"][:16]]


@pytest.mark.nightly  # as tracebacks of processes that see the folder: test_an_exception_in_a_process_comes_with_its_traceback
def test_an_exception_in_a_process_that_sees_no_folder(fit: Fit, store: str) -> None:
    options: dict[str, Any] = {"maxEpochs": 2, "batchSize": 64, "numProcesses": 2, "localMode": "false"}
    bad = {**options, "cacheDir": store, "loss": broken_loss, "metric": "poisson"}
    with pytest.raises(TrainingError, match=r"(?s)process \d of 2 .*KeyError: 'predictions'"):
        fit(**bad)


def broken_loss(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return outputs["predictions" if os.environ.get("RANK") == "1" else "prediction"] - label


def test_dynamic_allocation_is_named(tmp_path: Path) -> None:
    spark: Any = SimpleNamespace(conf={"spark.master": "yarn", "spark.dynamicAllocation.enabled": "true"})
    said = "spark.dynamicAllocation.enabled=true: Spark then refuses barrier stages"
    with pytest.raises(InputError, match=said):
        preflight.check_cluster(spark, 2, tmp_path, ["torch"])


def test_more_processes_than_slots(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SLOTS", 1.0)
    with pytest.raises(InputError, match=r"numProcesses=4, but local\[2\] can run 2 tasks at once"):
        fit(numProcesses=4, localMode="false", maxEpochs=1)


@pytest.mark.nightly
def test_fewer_rows_than_processes_train(fit: Fit, rows: DataFrame, spark: SparkSession) -> None:
    # 2 training rows for 3 processes: some have none of a batch, or none at all
    few = (
        rows.limit(2)
        .selectExpr("*", "false AS held")
        .unionByName(rows.offset(10).limit(40).selectExpr("*", "true AS held"))
    )
    few = spark.createDataFrame(few.toPandas())
    options = {"validationIndicatorCol": "held", "maxEpochs": 3, "guard": 1.0}
    one, three = (outcome(fit(few, numProcesses=n, **options)) for n in (1, 3))
    np.testing.assert_allclose(three["history"], one["history"], rtol=1e-12)


def recording(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The squared loss; leaves the labels that this process trains on, one number per row, in a file of its own."""
    import os

    with open(f"{os.environ['SPARKDIFF_TEST_LABELS']}/{os.environ['RANK']}", "a") as file:
        file.writelines(f"{y!r}\n" for y in label.tolist())
    return (outputs["prediction"] - label) ** 2


@pytest.mark.nightly  # by the stream: test_stream; and weights that a row twice would change: the number of processes, above
def test_every_row_trains_once_an_epoch_in_one_process(
    fit: Fit, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(1000)
    rows = rows.set_column(
        rows.schema.get_field_index("count"), "count", [np.arange(1000) / 7]
    )  # a label tells the row
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=1000)  # one row group
    held = spark.read.parquet(f"file://{tmp_path}/rows.parquet").selectExpr("*", "count > 110 AS held")
    labels = tmp_path / "labels"
    labels.mkdir()
    monkeypatch.setenv("SPARKDIFF_TEST_LABELS", str(labels))
    # As tasks of a stage the processes would have Spark's environment.
    fit(held, numProcesses=3, loss=recording, metric="squared", maxEpochs=1, validationIndicatorCol="held")
    seen = [[float(y) for y in (labels / str(rank)).read_text().split()] for rank in range(3)]
    assert all(seen)
    trained = [y for part in seen for y in part]
    assert len(set(trained)) == len(trained)
    assert sorted(trained) == sorted(y for y in np.arange(1000) / 7 if y <= 110)


@pytest.mark.nightly
def test_processes_that_see_one_class_only(rows: DataFrame, spark: SparkSession, tmp_path: Path) -> None:
    frame = rows.limit(200).toPandas()
    frame["label"] = (frame.index < 3).astype(float)  # three of 200: most shards have none
    frame["held"] = frame.index % 2 == 1
    df = spark.createDataFrame(frame)
    model = Pipeline(
        stages=[VectorAssembler(inputCols=NUMBERS, outputCol="features"), LogisticRegression(regParam=1.0)]
    ).fit(df)
    found = []
    for processes in (1, 3):
        tuner = FineTuner(
            pipeline=model,
            cacheDir=str(tmp_path),
            validationIndicatorCol="held",
            guard=1.0,
            maxEpochs=5,
            numProcesses=processes,
            rowsAreNew=True,
        )
        tuned = tuner.fit(df)
        found.append([*tuned.pipelineModel.stages[-1].coefficients, *tuned.summary.history["validationMetric"]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


@pytest.mark.nightly  # the other tests start each process by the same start.py, and read the same files back
def test_torchrun_starts_a_prepared_attempt(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TorchDistributor: what an attempt's folder holds is all that torchrun needs."""
    kept: dict[str, Any] = {}
    run = launch.run

    def spy(assignment: Any, stream: Any, folder: Any, *others: Any) -> Any:
        kept.update(assignment=assignment, folder=folder)
        return run(assignment, stream, folder, *others)

    monkeypatch.setattr(launch, "run", spy)
    fit(runId="prepared", checkpointDir=str(tmp_path), maxEpochs=3)
    alone = files.load(kept["folder"].state)
    kept["folder"].state.unlink()
    here = kept["folder"].attempt()
    sent = replace(kept["assignment"], network=kept["assignment"].network.without_spark())
    launch.equip(here, sent, sent.options.loss, "sparkdiff.training.distributed.worker")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(here / "start.py"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    two = files.load(kept["folder"].state)
    assert alone is not None
    assert two is not None
    assert two["ended"]
    for one, other in zip(alone["standings"], two["standings"], strict=True):
        torch.testing.assert_close(one["flat"], other["flat"], rtol=0, atol=1e-12)
    assert all(
        json.loads((here / f"rank-{rank}.json").read_text())["sparkdiff"].startswith(str(here / "sparkdiff.zip"))
        for rank in range(2)
    )


def failing(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    import os

    if os.environ.get("RANK") == "1":
        raise ZeroDivisionError("no such luck")
    return (outputs["prediction"] - label) ** 2


def constant(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    import os

    return (outputs["prediction"] - label) ** 2 if "RANK" not in os.environ else torch.zeros_like(label)


def mean_absolute(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of the whole batch, so that each process needs the rows of all; its root, so that no sum over processes would do."""
    return ((outputs["prediction"] - label).abs() * weight).sum().div(weight.sum()).sqrt()


@pytest.mark.nightly  # without Spark, by an AUC and a gap between groups: test_ranks, "ranks and a slice"
def test_processes_agree_on_a_loss_of_the_batch_and_rmse(fit: Fit) -> None:
    options = {"loss": mean_absolute, "metric": "rmse", "maxEpochs": 3, "batchSize": 64, "guard": 1.0}
    one, two = (outcome(fit(numProcesses=n, **options)) for n in (1, 2))
    assert two["decision"] == one["decision"] == "tuned"
    np.testing.assert_allclose(two["weights"], one["weights"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(two["history"], one["history"], rtol=1e-12)


def test_an_exception_in_a_process_comes_with_its_traceback(fit: Fit) -> None:
    with pytest.raises(
        TrainingError, match=r"process 1 of 2 (?s:.)*test_processes.py(?s:.)*ZeroDivisionError: no such luck"
    ):
        fit(numProcesses=2, loss=failing, maxEpochs=1)


@pytest.mark.nightly  # what a process tells of its error: test_ranks
def test_a_wrong_loss_is_the_users_error_in_any_process(fit: Fit) -> None:
    with pytest.raises(InputError, match="no gradient passes through the loss"):
        fit(numProcesses=2, loss=constant, maxEpochs=1)


def test_a_finished_run_is_returned_but_not_for_another(fit: Fit, tmp_path: Path) -> None:
    options = {"runId": "mine", "checkpointDir": str(tmp_path), "maxEpochs": 2}
    first = fit(**options)
    assert outcome(fit(numProcesses=2, **options)) == outcome(first)  # trained by one process, returned as it is
    assert not list((tmp_path / "mine").glob("attempt-*"))
    with pytest.raises(InputError, match=r"runId='mine' was started with other maxEpochs \(maxEpochs: 2, now 3\)"):
        fit(**{**options, "maxEpochs": 3})


def test_without_room_for_checkpoints_training_goes_on(fit: Fit, thorough: dict[str, Any], tmp_path: Path) -> None:
    # What has been found of ten candidates takes 16 kB for each of them and an epoch, more than what starts a process.
    kept = {"checkpointDir": str(tmp_path), "runId": "kept"}
    with no_room(800_000):
        alone = fit(**THOROUGH, **kept)
    assert outcome(alone) == thorough
    [said] = [w for w in alone.summary.warnings if "checkpoint" in w]
    assert f"cannot be written to {tmp_path}/kept/state.pt" in said and "bytes are free" in said
    assert not list((tmp_path / "kept").glob("*state*"))
    # The driver has nothing but the file.
    with (
        no_room(1_000_000),
        pytest.raises(FullDiskError, match=rf"{tmp_path}/longer/state.pt.*needs about .* bytes.*checkpointDir"),
    ):
        fit(numProcesses=2, **{**THOROUGH, **kept, "maxEpochs": 20, "patience": 20, "runId": "longer"})
    with no_room(1000), pytest.raises(FullDiskError, match=r"the rows to compare cannot be written to .*set cacheDir"):
        fit(**THOROUGH)


def test_without_room_for_the_cache_or_the_run(spark: SparkSession, rows: DataFrame, fit: Fit, tmp_path: Path) -> None:
    java = spark._jvm.java.lang.ProcessHandle.current().pid()  # type: ignore[union-attr]
    model, caches, output = pipeline(rows), tmp_path / "caches", tmp_path / "run"
    tuner = FineTuner(pipeline=model, cacheDir=str(caches), maxEpochs=1, rowsAreNew=True)
    needs = r"needs (about|at least) [\d,]+ bytes for 4,000 rows, and .* are free.*set cacheDir"
    said = rf"the cache cannot be written to {caches}: .*{needs}"
    with no_room(30_000, java), pytest.raises(FullDiskError, match=said):
        tuner.fit(rows)
    assert not list(caches.iterdir())
    tuned = fit(maxEpochs=1)
    config = Config(tmp_path, "", {}, {}, {}, output, False)
    given = (
        Outcome(tuned.pipelineModel, model, sparkdiff.plan(model), tuned.summary, (CheckpointFolder(tmp_path, "r"),)),
        config,
        Phases(False),
    )
    model.write().save(f"file://{tmp_path}/original")
    said = rf"the run cannot be written to {output}: .*needs about [\d,]+ bytes.* are free.*set output"
    with hold_lease(tmp_path / "lease", "the output") as lease:
        for process in (java, 0):  # Spark writes the model, Python the rest
            with no_room(600, process), pytest.raises(FullDiskError, match=said):
                steps.write_run(*given, {"path": f"{tmp_path}/original"}, {}, lease, lambda: rows)
            assert sorted(p.name for p in tmp_path.iterdir()) == ["caches", "lease", "original"]
        steps.write_run(*given, {"path": None}, {}, lease, lambda: rows)
    assert (output / "summary.json").exists()


@pytest.mark.parametrize(
    "name", [n if n == "rank killed" else pytest.param(n, marks=pytest.mark.nightly) for n in LOCAL]
)
def test_a_fault_changes_nothing(fit: Fit, calm: dict[str, Any], tmp_path: Path, name: str) -> None:
    target, number = LOCAL[name]
    # Seeded by the clock: every run of the tests tries other moments.
    delay = 1.5 * (time.time() % 1)
    told = suffer(
        lambda run_id: outcome(
            fit(loss=slow_poisson, metric="poisson", runId=run_id, checkpointDir=str(tmp_path), **LASTING)
        ),
        calm,
        tmp_path,
        name,
        target,
        number,
        delay,
    )
    assert told.resumed, told
    assert told.identical, told
    assert not told.orphans, told
    assert told.seconds < 300, told


@pytest.fixture(scope="module")
def calm(fit: Fit) -> dict[str, Any]:
    return outcome(fit(loss=slow_poisson, metric="poisson", **LASTING))
