"""Callbacks that keep what a run tells: JSON lines, TensorBoard; names, steps, and no secrets."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sparkdiff
from sparkdiff import InputError, JSONLines, TensorBoard
from sparkdiff.cli import tracking_section
from sparkdiff.history.model_registry import check_version
from sparkdiff.machine import secrets
from sparkdiff.report import Events, Phases, RunRecord
from sparkdiff.report.fit_observer import fit_with_observer, observe
from sparkdiff.tracking import plain_values
from sparkdiff.tracking.plain_values import CurvePoint
from sparkdiff.tuning import fits
from tests.support.made_up_runs import SECRET, record
from tests.support.noting_callbacks import Failures, Watcher


def test_a_record_tells_what_differs_and_no_secrets() -> None:
    found = record()
    assert plain_values.params(found) == {"cacheDir": "s3a://...@bucket/caches", "maxEpochs": "7", "labelCol": "y"}
    assert plain_values.metrics(found) == {
        "train.poisson.before": 2.0,
        "train.poisson.after": 1.0,
        "validation.poisson.before": 2.0,
        "validation.poisson.after": 1.5,
        "seconds.train": 2.0,
        "z": 3.0,
        "gain": 0.25,
        "p": 0.001,
        "gainInterval.low": 0.1,
        "warnings": 0.0,
    }
    assert SECRET not in json.dumps(plain_values.plain(found))
    held = {
        "password": SECRET,
        "list": [{"sig": SECRET, "sigmas": "kept"}],
        "apiKey": [SECRET],
        "tokens": 0.5,
        "x": float("inf"),
    }
    held |= {"RegexTokenizer.pattern": "a", "minTokenLength": 3, "accessToken": SECRET}
    assert secrets.hidden(held) == {
        "password": "...",
        "list": [{"sig": "...", "sigmas": "kept"}],
        "apiKey": ["..."],
        "tokens": 0.5,
        "x": None,
        "RegexTokenizer.pattern": "a",
        "minTokenLength": 3,
        "accessToken": "...",
    }
    assert len(plain_values.text("x" * 9999)) == plain_values.LONGEST


@pytest.mark.parametrize(
    ("row", "name", "step"),
    [
        ({"epoch": 3, "candidate": 1, "learningRate": 0.1, "validationMetric": 2.0}, "candidate1/validationMetric", 3),
        ({"fold": 0, "epoch": 3, "candidate": 1, "validationMetric": 2.0}, "fold0/candidate1/validationMetric", 3),
        ({"arm": "grow", "round": 1, "epoch": 0, "candidate": 0, "trainLoss": 2.0}, "grow1/candidate0/trainLoss", 0),
        ({"trial": 5, "state": "complete", "mae": 2.0, "why": "", "k": None, "on": True}, "trials/mae", 5),
        ({"fold": 2, "trial": 5, "mae": 2.0, "rmse": float("nan")}, "fold2/trials/mae", 5),
        ({"trial": 5, "regParam of price (€)": 2.0}, "trials/regParam of price ___", 5),
    ],
)
def test_a_row_is_a_point_of_a_curve(row: dict[str, Any], name: str, step: int) -> None:
    assert list(plain_values.points(row)) == [CurvePoint(name, 2.0, step)]


def run(listeners: list[Events]) -> None:
    phases, found = Phases(False, listeners), record()
    with phases.phase("train") as say:
        say.now(f"read jdbc:x?password={SECRET}")
        for row in found.records:
            phases.on_epoch(row)
    phases.on_decision(found)


def test_each_event_is_a_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("{}\n")  # it is continued
    run([JSONLines(path)])
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line.get("event") for line in lines] == [None, "phase", "phase", "epoch", "phase", "decision"]
    assert lines[3]["validationMetric"] == 2.0 and lines[3]["trainLoss"] is None
    assert lines[1]["seconds"] is None and lines[4]["seconds"] >= 0
    assert lines[5]["decision"] == "tuned" and lines[5]["options"]["maxEpochs"] == 7
    assert SECRET not in text and "NaN" not in text


def test_a_folder_that_is_gone_costs_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run([JSONLines(tmp_path / "none" / "events.jsonl")])
    assert len(told) == 5
    assert all(re.match(r"the callback JSONLines\.on_\w+ failed, .*FileNotFoundError", str(w.message)) for w in told)


def events(folder: Path) -> Any:
    """What TensorBoard reads."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder))
    found.Reload()
    return found


def curve(found: Any, name: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in found.Scalars(name)]


@pytest.mark.filterwarnings("default")  # of TensorBoard's own
def test_tensorboard_has_the_curves_and_the_decision(tmp_path: Path) -> None:
    run([TensorBoard(tmp_path / "run")])
    found = events(tmp_path / "run")
    assert curve(found, "candidate0/validationMetric") == [(0, 2.0)]
    assert curve(found, "decision/gain") == [(0, 0.25)]
    assert {"asked/text_summary", "decision/text_summary"} <= set(found.Tags()["tensors"])
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "run").iterdir())


def test_only_the_outermost_fit_is_observed() -> None:
    watcher = Watcher()
    observe(watcher)
    try:
        inner = lambda more: fit_with_observer("inner", lambda none: [more, none])  # noqa: E731
        assert fit_with_observer("outer", inner) == [[watcher.listener], []]
        assert watcher.said == ["outer", [[watcher.listener], []]]
        assert fit_with_observer("one of many", list, alone=False) == []
        error = ValueError("x")
        estimator = SimpleNamespace(callbacks=[Failures()])
        with pytest.raises(ValueError, match="x"):
            fit_with_observer(estimator, lambda more: (_ for _ in ()).throw(error))
        assert watcher.said[2:] == [estimator]
        assert watcher.listener.heard == estimator.callbacks[0].heard == [error]
        observe(Watcher(broken=True))
        with pytest.warns(RuntimeWarning, match=r"fit could not be logged.*no server"):
            assert fit_with_observer("goes on", list) == []
    finally:
        observe(None)
    assert fit_with_observer("nobody", list) == []


def test_fits_of_several_threads_are_observed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins while the first one runs; what these two start themselves is theirs."""
    monkeypatch.setattr(fits, "TAKES_SESSION", False)
    monkeypatch.setattr(fits, "inheritable_thread_target", lambda work: work)
    watcher, both = Watcher(), threading.Barrier(2, timeout=60)
    observe(watcher)

    def outer(more: Any) -> Any:
        both.wait()
        rows: Any = None
        inside = fits.for_threads(rows)(lambda: fit_with_observer("inner", list))
        with ThreadPoolExecutor(1) as threads:
            return more, threads.submit(inside).result(60)

    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda name: fit_with_observer(name, outer), ["one", "other"]))
    finally:
        observe(None)
    assert found == [([watcher.listener], [])] * 2
    assert {"one", "other"} < {str(said) for said in watcher.said} and len(watcher.said) == 4


@pytest.mark.filterwarnings("default")
def test_a_fit_that_fails_ends_what_its_callbacks_write(tmp_path: Path) -> None:
    lines, board = JSONLines(tmp_path / "events.jsonl"), TensorBoard(tmp_path / "board")

    def fit(more: Any) -> None:
        board.on_epoch({"epoch": 1, "candidate": 0, "validationMetric": 2.0})
        raise InputError(f"no such table: password={SECRET}")

    with pytest.raises(InputError):
        fit_with_observer(SimpleNamespace(callbacks=[lines, board]), fit)
    [line] = map(json.loads, lines.path.read_text().splitlines())
    assert line | {"time": 0} == {"event": "exception", "time": 0, "error": "InputError: no such table: password=..."}
    assert curve(events(tmp_path / "board"), "candidate0/validationMetric") == [(1, 2.0)]


@pytest.mark.filterwarnings("default")
def test_a_curve_is_on_disk_after_each_phase(tmp_path: Path) -> None:
    """A process that is killed has no time to close a file."""
    board = TensorBoard(tmp_path)
    board.on_epoch({"epoch": 1, "candidate": 0, "validationMetric": 2.0})
    board.on_phase("train", 1.0, "")
    assert curve(events(tmp_path), "candidate0/validationMetric") == [(1, 2.0)]
    board.on_exception(KeyboardInterrupt())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a//b", "a/b"),
        ("../x", "__/x"),
        ("..x", "_..x"),
        ("/a/./b/", "a/_/b"),
        ("", "_"),
        ("größe (m)", "gr__e _m_"),
        ("x" * 300, "x" * 231 + ".0d4e2ca9"),
    ],
)
def test_a_name_is_one_that_trackers_take(name: str, found: str) -> None:
    assert plain_values.safe_name(name) == found


def test_numbers_of_numpy_are_numbers() -> None:
    """As an evaluator returns them."""
    row = {"trial": 3, "rmse": np.float32(0.5), "count": np.int64(7), "bad": np.float32("nan"), "many": 10**400}
    assert [*plain_values.points(row)] == [CurvePoint("trials/rmse", 0.5, 3), CurvePoint("trials/count", 7.0, 3)]
    told = json.dumps(secrets.hidden(row))
    assert told.startswith('{"trial": 3, "rmse": 0.5, "count": 7, "bad": null, "many": 1000')


@pytest.mark.parametrize(
    ("name", "alias", "message"),
    [
        ("a/b", "challenger", "registeredModelName='a/b' is no name"),
        (" ", "challenger", "is no name for MLflow"),
        ("main.ml.churn", "Champion", "is not set here"),
        (None, "v1", "is no alias for MLflow"),
        (None, "Latest", "is no alias for MLflow"),
        (None, "a b", "is no alias for MLflow"),
        (None, "", "is no alias for MLflow"),
    ],
)
def test_what_the_registry_refuses_is_said_before_any_work(name: str | None, alias: str, message: str) -> None:
    check_version("main.ml.churn", "v1-b")
    with pytest.raises(InputError, match=message):
        check_version(name, alias)
    given = {"alias": alias} | ({} if name is None else {"registeredModelName": name})
    with pytest.raises(InputError, match=r"tracking\.mlflow\.(alias|registeredModelName)"):
        tracking_section._mlflow(given)


def test_without_the_packages_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['mlflow'] = sys.modules['mlflow.spark'] = None; sys.modules['tensorboard'] = None\n"
        "import sparkdiff, sparkdiff.mlflow\n"
        "for needs in (lambda: sparkdiff.mlflow.log(1), sparkdiff.mlflow.autolog, sparkdiff.mlflow.Callback, "
        "lambda: sparkdiff.TensorBoard('x')):\n"
        "    try: needs()\n"
        "    except sparkdiff.InputError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('pip install "sparkdiff[mlflow]"') == 3
    assert done.stdout.count('pip install "sparkdiff[tensorboard]"') == 1


def test_all_fields_of_a_record_are_plain() -> None:
    assert {f.name for f in dataclasses.fields(RunRecord)} - {"records"} == plain_values.plain(record()).keys()
    assert sparkdiff.mlflow.log is not None
