"""Who listens to a run: each phase, each epoch once and in order, and the decision; what a listener raises costs no run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff import FineTuner, Grower, Improver, InputError, Search
from sparkdiff.improvement.parallel_tasks import StoppableListener
from sparkdiff.machine.line_files import LineReader
from sparkdiff.options import Options
from sparkdiff.report import Events, Phases, duration
from sparkdiff.training.distributed.launch import EpochForwarder, TrainingProgress


class Heard(Events):
    def __init__(self) -> None:
        self.phases: list[tuple[str, bool, str]] = []

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        self.phases.append((name, seconds is not None, detail))


def test_a_phase_begins_says_how_far_it_is_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    heard = Heard()
    phases = Phases(True, [heard])
    with phases.phase("train") as say:
        say.now("epoch 1")
    with pytest.raises(ZeroDivisionError), phases.phase("judge"):
        _ = 1 / 0
    assert heard.phases == [
        ("train", False, ""),
        ("train", False, "epoch 1"),
        ("train", True, "epoch 1"),
        ("judge", False, ""),
        ("judge", True, ""),
    ]
    assert list(phases.timings) == ["train", "judge"]
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == ["train", "judge"]


class Broken(Events):
    def __init__(self, error: BaseException):
        self.error = error

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        raise self.error

    def on_epoch(self, row: Any) -> None:
        row.clear()
        raise self.error

    def on_decision(self, record: Any) -> None:
        raise self.error


def events(phases: Phases) -> list[tuple[str, Any]]:
    def phase() -> None:
        with phases.phase("train"):
            pass

    return [
        ("on_phase", phase),
        ("on_epoch", lambda: phases.on_epoch({"epoch": 7})),
        ("on_decision", lambda: phases.on_decision("x")),
    ]


def test_a_listeners_error_is_a_warning_and_others_hear_all() -> None:
    heard, told = Heard(), list[Any]()
    heard.on_epoch = told.append  # type: ignore[method-assign]
    heard.on_decision = told.append  # type: ignore[method-assign]
    for brake in (False, True):
        listeners = [Broken(OSError("s3a://user:secret@bucket is gone")), heard]
        phases = Phases(False, [StoppableListener(listeners)] if brake else listeners)
        for method, event in events(phases):
            with pytest.warns(
                RuntimeWarning, match=rf"callback Broken\.{method} failed, .*OSError.*s3a://\.\.\.@bucket"
            ):
                event()
    assert told == [{"epoch": 7}, "x"] * 2
    assert len(heard.phases) == 4


def test_ctrl_c_in_a_listener_ends_the_run() -> None:
    for end in (KeyboardInterrupt, SystemExit):
        phases = Phases(False, [Broken(end())])
        for _, event in events(phases):
            with pytest.raises(end):
                event()


@pytest.mark.parametrize(
    ("callbacks", "got"),
    [([Events], "the class Events itself"), (Heard(), "Heard"), (None, "NoneType"), (["x"], "str")],
)
def test_listeners_are_a_list_of_instances(callbacks: Any, got: str) -> None:
    for estimator in (FineTuner, Grower, Improver, Search):
        with pytest.raises(
            InputError, match=rf"callbacks must be a list of instances of .*sparkdiff.Events, got .*{got}$"
        ):
            estimator(callbacks=callbacks)


def test_rows_from_anywhere_are_told_once_and_in_order() -> None:
    heard: list[int] = []
    epochs, rows = EpochForwarder(lambda row: heard.append(row["epoch"])), [{"epoch": i} for i in range(9)]
    epochs(rows[:2])
    epochs(rows[:1])  # of an attempt that begins anew
    epochs(rows[1:4], 1)
    epochs(rows[6:8], 6)  # the line before was lost
    assert heard == [0, 1, 2, 3]
    epochs(rows)
    assert heard == list(range(9))


def test_progress_is_read_by_line_and_broken_ones_left_out(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    progress = LineReader(file)
    first, second = json.dumps({"rows": [1]}), json.dumps({"rows": [2]})
    file.write_text(first[:4])
    assert progress.new() == []
    file.write_text(first + "\n" + second[:3])
    assert progress.new() == [{"rows": [1]}]
    file.write_text(first + "\n" + second[:3] + second + "\n" + second + "\n")
    assert progress.new() == [{"rows": [2]}]
    file.write_text("")
    assert progress.new() == []


def test_how_far_a_training_is_and_how_long_it_may_still_take() -> None:
    now = 0.0
    options = Options(maxEpochs=120, maxSeconds=100.0)
    assignment: Any = SimpleNamespace(
        original=SimpleNamespace(value=38.7, sign=1), metric="poisson", epochs=None, options=options
    )
    forecast = TrainingProgress(assignment, clock=lambda: now)
    figures = "poisson 38.7 -> 12.4 (-68.0%) on validation rows"
    assert forecast.line(1, 12.4, 4) == f"epoch 1 of at most 120: {figures}, 4 candidates left"
    now = 10.0
    assert forecast.line(101, 12.4, 1) == f"epoch 101 of at most 120: {figures}, 1 candidate left, at most 2 s"
    now = 99.0
    assert forecast.line(102, 12.4, 1).endswith("at most 1 s")  # maxSeconds ends it
    assert forecast.line(110, 12.4, 2, ended=True) == f"109 of at most 120 epochs: {figures}"
    larger = SimpleNamespace(**{**vars(assignment), "original": SimpleNamespace(value=0.5, sign=-1), "epochs": 7})
    assert "epoch 2 of at most 7: poisson 0.5 -> 0.6 (+20.0%) on training rows" in TrainingProgress(larger).line(
        2, -0.6, 2
    )
    assert [duration(s) for s in (40.2, 720, 9000)] == ["40 s", "12 min", "2.5 h"]
