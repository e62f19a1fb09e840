"""Runs of MLflow without Spark: several results in one run, a server that fails midway, and jobs that ran before."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff import FineTuner, InputError, Search
from sparkdiff.cli import starting, steps
from sparkdiff.cli.scripts import run_job
from sparkdiff.cli.tracking import activate_callbacks
from sparkdiff.errors import DONE
from sparkdiff.report import Phases
from sparkdiff.report.fit_observer import fit_with_observer, observe
from sparkdiff.tracking import mlflow_runs
from tests.support.made_up_runs import record
from tests.support.noting_callbacks import Watcher

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytestmark = pytest.mark.filterwarnings("default")
HASH = "h" * 64


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store in files. What needs Spark is left out of `log`."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(mlflow_runs, "flatten", lambda model: [(None, stage) for stage in model])
    monkeypatch.setattr(mlflow_runs, "hash_of", lambda *_: HASH)
    monkeypatch.setattr(mlflow_runs, "jvm", SimpleNamespace(scratch_folder=lambda: tmp_path))
    monkeypatch.setattr(mlflow_runs, "_plan", lambda _: None)
    monkeypatch.setattr(mlflow_runs, "log_model", lambda *_: None)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)  # another test's
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    yield mlflow.MlflowClient()
    while mlflow.active_run() is not None:
        mlflow.end_run()


def tuned(*stages: Any, epochs: int = 7) -> Any:
    summary = record(options={"maxEpochs": epochs, "runId": "mine"})
    return SimpleNamespace(pipelineModel=stages, summary=summary, originalModel=None, dataset=None)


def told(callback: mlflow_runs.Callback, result: Any) -> str:
    callback.on_phase("train", None, "")
    for row in result.summary.records:
        callback.on_epoch(row)
    callback.on_decision(result.summary)
    return mlflow_runs.log(result, runId=callback.runId)


@pytest.mark.parametrize("kind", [FineTuner, Search])
def test_the_observer_finds_the_rows_of_the_fit(kind: Any) -> None:
    watcher, found = Watcher(), SimpleNamespace(pipelineModel=None, summary=None)
    fit = lambda rows, callbacks: found  # noqa: E731
    observe(watcher)
    watcher.on_fit_end = lambda listener, model: watcher.said.append(model.dataset)  # type: ignore[method-assign]
    try:
        assert (
            kind._fit(
                SimpleNamespace(_fit_with_callbacks=fit, _run_search=fit, callbacks=[], _shared=None, job={}), "rows"
            )
            is found
        )
    finally:
        observe(None)
    assert watcher.said[1:] == ["rows"]


def test_each_result_within_an_active_run_is_a_run(client: Any) -> None:
    results = [tuned(1, epochs=1), tuned(2.0, epochs=2), tuned("3", epochs=3)]
    with mlflow.start_run() as active:
        mine = active.info.run_id
        ids = [told(mlflow_runs.Callback(), result) for result in results]
        assert mlflow_runs.log(results[0]) == mine  # once more
        assert mlflow_runs.log(results[1]) not in (mine, *ids)
        assert mlflow.active_run().info.run_id == mine
    assert ids[0] == mine and len({*ids}) == 3
    runs = [client.get_run(one) for one in ids]
    assert [run.data.params["maxEpochs"] for run in runs] == ["1", "2", "3"]
    assert [run.data.params["stages"] for run in runs] == ["int", "float", "str"]
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs] == [None, mine, mine]
    assert {run.info.status for run in runs} == {"FINISHED"}
    curves = [client.get_metric_history(one, "candidate0/validationMetric") for one in ids]
    assert [len(curve) for curve in curves] == [1, 1, 1]


def test_a_store_that_refuses_files_leaves_no_run_open(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(mlflow_runs, "log_pages", refuse)
    callback = mlflow_runs.Callback()
    with pytest.raises(OSError, match="no room"):
        told(callback, tuned())
    assert client.get_run(callback.runId).info.status == "FINISHED"


def runs_of(client: Any, name: str) -> list[Any]:
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])  # type: ignore[no-any-return]


def test_a_job_that_ran_before_is_logged_once(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt died after it had written its folder."""
    logged: list[Any] = []
    monkeypatch.setattr(mlflow_runs, "log_model", lambda package, model, *_: logged.append(model))
    monkeypatch.setattr(steps, "_read_summary", lambda *_: tuned().summary)
    monkeypatch.setattr(steps, "jvm", SimpleNamespace(load_model=lambda path: (str(path),)))
    found = {"parent": {"path": None}, "model": {"hash": HASH}}
    config: Any = SimpleNamespace(output=tmp_path / "run", options={"runId": "mine"})
    given = {"mlflow": {"experiment": "found"}, "jsonLines": str(tmp_path / "new" / "events.jsonl")}
    for _ in range(2):
        with activate_callbacks(given) as tracking:
            phases = Phases(False, tracking.listeners)
            tracking.mute(True)
            with phases.phase("load"):
                pass
            steps._replay_finished_run(found, config, phases, tracking, "original", None)  # type: ignore[arg-type]
    assert logged == [(f"{tmp_path}/run/model",)]
    [run] = runs_of(client, "found")
    assert run.info.status == "FINISHED"
    assert "candidate0/validationMetric" in run.data.metrics
    assert (tmp_path / "new" / "events.jsonl").read_text().count('"decision", "time"') == 2


def test_no_run_goes_elsewhere_and_the_server_is_as_before(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment cannot be had at first."""
    before, uri, known = mlflow.set_experiment, mlflow.get_tracking_uri(), dict(os.environ)
    tries: list[str] = []

    def once(name: str) -> Any:
        tries.append(name)
        if len(tries) == 1:
            raise OSError("no server")
        return before(name)

    monkeypatch.setattr(mlflow, "set_experiment", once)
    with activate_callbacks(
        {"mlflow": {"experiment": "late", "uri": f"{uri}-of-job"}, "jsonLines": "/dev/null/x/y"}
    ) as tracking:
        [callback] = tracking.listeners
        with pytest.raises(OSError, match="no server"):
            callback.on_phase("load", None, "")
        callback.on_decision(tuned().summary)
        tracking.log(tuned)
        [run] = runs_of(mlflow.MlflowClient(), "late")
        assert run.info.status == "FINISHED" and run.data.tags["sparkdiff.modelHash"] == HASH
    assert mlflow.get_tracking_uri() == uri and dict(os.environ) == known
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}-later")
    assert mlflow.get_tracking_uri() == f"{uri}-later"
    assert mlflow_runs._new_run(mlflow, None) and not client.get_experiment_by_name("late")


def test_stdout_of_a_job_is_its_result_alone(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def run(settings: Any) -> Any:
        print("of Python")
        os.write(1, b"of native code\n")
        subprocess.run(["echo", "of Java"], check=True)
        return tuned().summary

    monkeypatch.setattr(starting, "run", run)
    words = ["pipeline=p", "data.train=d", "fineTuner.labelCol=y", "output=o"]
    assert run_job("finetune", None, words, as_json=True) == DONE
    out, err = capfd.readouterr()
    assert re.fullmatch(r"\{.*\}\n", out, re.DOTALL) and "of " not in out.replace("is better", "")
    assert {"of Python", "of native code", "of Java"} <= {*err.splitlines()}
    os.write(1, b"as before\n")
    assert capfd.readouterr().out == "as before\n"


def test_a_fit_that_fails_leaves_no_run_open(client: Any) -> None:
    ended = {}
    for error in (ValueError("x"), KeyboardInterrupt()):
        callback = mlflow_runs.Callback()

        def fit(_: Any, callback: Any = callback, error: BaseException = error) -> None:
            Phases(False, [callback]).phase("train").__enter__()
            raise error

        with pytest.raises(type(error)):
            fit_with_observer(SimpleNamespace(callbacks=[callback]), fit)
        ended[type(error)] = client.get_run(callback.runId).info.status
    assert ended == {ValueError: "FAILED", KeyboardInterrupt: "KILLED"}


def test_a_run_of_the_user_stays_open(client: Any) -> None:
    with mlflow.start_run() as active:
        callback = mlflow_runs.Callback()
        callback.on_phase("train", None, "")
        callback.on_exception(ValueError("x"))
        assert callback.runId == active.info.run_id
        assert client.get_run(callback.runId).info.status == "RUNNING"


def test_names_that_a_server_refuses_are_changed(client: Any) -> None:
    """It takes names for paths, of 250 characters at most; one such name would cost all figures of a run."""
    result = tuned()
    result.summary = record(
        options={"../a//b": 1, "x" * 300: 2},
        metric="q//" + "r" * 300,
        records=[{"trial": 1, "A/../../lr.regParam": 0.1, "rmse": 2.0}],
    )
    run = client.get_run(told(mlflow_runs.Callback(), result))
    assert run.data.params["__/a/b"] == "1" and run.data.metrics["trials/A/__/__/lr.regParam"] == 0.1
    assert any(name.startswith("validation.q/rrr") for name in run.data.metrics)


def test_a_callback_logs_one_fit(client: Any) -> None:
    callback = mlflow_runs.Callback()
    told(callback, tuned())
    with pytest.raises(InputError, match="another one for the next fit"):
        callback.on_decision(tuned().summary)
