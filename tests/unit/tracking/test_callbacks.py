"""Callbacks that keep what a run tells: JSON lines, TensorBoard; names, steps, and no secrets."""

import dataclasses
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import sparkdiff
from sparkdiff import JSONLines, TensorBoard
from sparkdiff.machine import secrets
from sparkdiff.options import Options
from sparkdiff.report import Events, Phases, RunRecord
from sparkdiff.report.observing import observe, observed
from sparkdiff.tracking import values
from sparkdiff.tracking.values import CurvePoint

pytestmark = pytest.mark.once
SECRET = "hunter2"


def record(**changes: Any) -> RunRecord:
    options = Options.of({"cacheDir": f"s3a://user:{SECRET}@bucket/caches", "maxEpochs": 7, "labelCol": "y"})
    given: dict[str, Any] = {
        "decision": "tuned", "reason": f"it is better than password={SECRET}", "metric": "poisson", "metricDirection": "smaller",
        "metrics": {"train": {"before": 2.0, "after": 1.0}, "validation": {"before": 2.0, "after": 1.5}, "test": None},
        "gain": 0.25, "z": 3.0, "p": 0.001, "parity": {}, "stages": {}, "timings": {"train": 2.0}, "stream": "arrow",
        "records": [{"epoch": 0, "candidate": 0, "recipe": "r", "trainLoss": float("nan"), "validationMetric": 2.0}],
        "cache": {"hit": False, "fingerprint": "f" * 64}, "options": options.asdict(every=True), "versions": {"sparkdiff": "1"},
        "warnings": [], "gainInterval": [0.1, None],
    }  # fmt: skip
    return RunRecord(**given | changes)


def test_what_is_told_of_a_record_is_what_differs_and_has_no_secrets() -> None:
    found = record()
    assert values.params(found) == {"cacheDir": "s3a://...@bucket/caches", "maxEpochs": "7", "labelCol": "y"}
    assert values.metrics(found) == {
        "train.poisson.before": 2.0, "train.poisson.after": 1.0, "validation.poisson.before": 2.0,
        "validation.poisson.after": 1.5, "seconds.train": 2.0, "z": 3.0, "gain": 0.25, "p": 0.001,
        "gainInterval.low": 0.1, "warnings": 0.0,
    }  # fmt: skip
    assert SECRET not in json.dumps(values.plain(found))
    held = {
        "password": SECRET,
        "list": [{"sig": SECRET, "sigmas": "kept"}],
        "apiKey": [SECRET],
        "tokens": 0.5,
        "x": float("inf"),
    }
    held |= {"RegexTokenizer.pattern": "a", "minTokenLength": 3, "accessToken": SECRET}
    assert secrets.hidden(held) == {
        "password": "...", "list": [{"sig": "...", "sigmas": "kept"}], "apiKey": ["..."], "tokens": 0.5, "x": None,
        "RegexTokenizer.pattern": "a", "minTokenLength": 3, "accessToken": "...",
    }  # fmt: skip
    assert len(values.text("x" * 9999)) == values.LONGEST


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
    assert list(values.points(row)) == [CurvePoint(name, 2.0, step)]


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


@pytest.mark.filterwarnings("default")  # of TensorBoard's own
def test_tensorboard_has_the_curves_and_the_decision(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run([TensorBoard(tmp_path / "run")])
    found = EventAccumulator(str(tmp_path / "run"))
    found.Reload()
    [point] = found.Scalars("candidate0/validationMetric")
    assert (point.step, point.value) == (0, 2.0)
    assert found.Scalars("decision/gain")[0].value == 0.25
    assert {"asked/text_summary", "decision/text_summary"} <= set(found.Tags()["tensors"])
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "run").iterdir())


class Watcher:
    def __init__(self, broken: bool = False):
        self.broken, self.said, self.listener = broken, list[Any](), Events()

    def begun(self, estimator: Any) -> Events:
        self.said.append(estimator)
        if self.broken:
            raise OSError("no server")
        return self.listener

    def ended(self, listener: Events, model: Any) -> None:
        self.said.append(model)


def test_only_the_outermost_fit_is_observed() -> None:
    watcher = Watcher()
    observe(watcher)
    try:
        inner = lambda more: observed("inner", lambda none: [more, none])  # noqa: E731
        assert observed("outer", inner) == [[watcher.listener], []]
        assert watcher.said == ["outer", [[watcher.listener], []]]
        assert observed("one of many", list, alone=False) == []
        error = ValueError("x")
        with pytest.raises(ValueError, match="x"):
            observed("fails", lambda more: (_ for _ in ()).throw(error))
        assert watcher.said[2:] == ["fails", error]
        observe(Watcher(broken=True))
        with pytest.warns(RuntimeWarning, match=r"fit could not be logged.*no server"):
            assert observed("goes on", list) == []
    finally:
        observe(None)
    assert observed("nobody", list) == []


def test_without_the_packages_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['mlflow'] = sys.modules['mlflow.spark'] = None; sys.modules['tensorboard'] = None\n"
        "import sparkdiff, sparkdiff.mlflow\n"
        "for needs in (lambda: sparkdiff.mlflow.log(1), sparkdiff.mlflow.autolog, sparkdiff.mlflow.Callback, "
        "lambda: sparkdiff.TensorBoard('x')):\n"
        "    try: needs()\n"
        "    except sparkdiff.InputError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('pip install "sparkdiff[mlflow]"') == 3
    assert done.stdout.count('pip install "sparkdiff[tensorboard]"') == 1


def test_all_fields_of_a_record_are_plain() -> None:
    assert {f.name for f in dataclasses.fields(RunRecord)} - {"records"} == values.plain(record()).keys()
    assert sparkdiff.mlflow.log is not None
