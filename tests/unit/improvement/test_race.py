"""The race over arms that take no time: what a clock ends, what Ctrl-C ends, and where trainings are kept."""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparkdiff.fine_tuning.task import FitResults
from sparkdiff.improvement.arm_context import ArmContext
from sparkdiff.improvement.budget import Account, Budget, Limit
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step, nothing
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.improvement.parallel_tasks import StoppableListener
from sparkdiff.improvement.race import _may_reach, most_gain, race
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.machine.interrupts import ignore_first_interrupt
from sparkdiff.options import Options
from sparkdiff.report import Phases

GROUND: Any = SimpleNamespace(
    start=SimpleNamespace(scores={"validation": SimpleNamespace(weights=torch.ones(3), value=1.0)}),
    metric=SimpleNamespace(name="logLoss", larger=False),
    settings=ImprovementSettings(),
    side_by_side=1,
    brake=StoppableListener(()),
)


def arm(name: str, does: Callable[[Limit], None]) -> Arm:
    def run(context: Any, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
        does(limit)
        return nothing(name, number, "ran", hope=1.0)

    return Arm(name, 2, 1.0, lambda context: "", run, lambda context, made: None)


def test_an_arm_out_of_time_is_stopped_and_others_go_on() -> None:
    given: list[Limit] = []

    def late(limit: Limit) -> None:
        given.append(limit)
        raise TimeoutError("Spark took longer than 47 s")

    account = Account(Budget.of("100s"), clock=lambda: 0.0)
    arms = [arm("refit", late), arm("finetune", given.append)]
    found = race(GROUND, arms, account, StepLog(None), Phases(False))
    assert [(s.arm, s.state) for s in found.standings] == [("refit", "stopped"), ("finetune", "done")]
    assert "set a larger one" in found.standings[0].why
    assert given[0].most == pytest.approx(50)  # its share of what is left; a first step is to take a tenth of it
    assert given[0].seconds == pytest.approx(15)


def test_no_time_is_set_aside_for_what_cannot_be_proven() -> None:
    """Else a slow arm that comes first would end the race."""

    def candidate(name: str, loss: float, seconds: float) -> Any:
        score = SimpleNamespace(blocks=torch.full((3,), loss), weights=torch.ones(3), mean=loss, value=loss)
        found: Any = SimpleNamespace(scores={"validation": score}, cost=1.0)
        return Candidate(name, name, found, CandidateRecipe(name), seconds=seconds)

    def arm(name: str, loss: float, seconds: float) -> Arm:
        def run(context: Any, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
            now[0] += seconds
            return Step(name, number, (candidate(name, loss, seconds),), 0.0, "")

        return Arm(name, 1, 1.0, lambda context: "", run, lambda context, made: None)

    now = [0.0]
    start = SimpleNamespace(scores={"validation": candidate("start", 1.0, 0.0).found.scores["validation"]}, cost=1.0)
    ground: Any = SimpleNamespace(**{**vars(GROUND), "start": start})
    account = Account(Budget.of("60s"), clock=lambda: now[0])
    account.start(4, 1)
    account.fold = 1.0
    found = race(ground, [arm("grow", 0.5, 20.0), arm("import", 0.7, 4.0)], account, StepLog(None), Phases(False))
    assert [(s.arm, s.state) for s in found.standings] == [("grow", "done"), ("import", "done")]
    assert account.balance() == pytest.approx(76 - 24 - 4 * (4 + 1))


def test_a_step_does_not_begin_if_its_result_cannot_be_proven() -> None:
    """Where making it again takes as long as the step: three folds and all rows come after it."""
    now, ran = [0.0], list[str]()

    def does(name: str) -> Arm:
        def run(context: Any, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
            ran.append(name)
            now[0] += 1.0
            return nothing(name, number, "")

        return Arm(name, 1, 1.0, lambda context: "", run, lambda context, made: None, repeats=name == "grow")

    for budget, steps in (("60s", ["import", "search"]), ("5m", ["import", "grow", "search"])):
        ran.clear()
        account = Account(Budget.of(budget), clock=lambda: now[0])
        account.start(4, 1)
        account.fold = 2.0
        found = race(GROUND, [does("import"), does("grow"), does("search")], account, StepLog(None), Phases(False))
        assert ran == steps
        assert all(s.state == ("done" if s.arm in steps else "stopped") for s in found.standings)


def test_no_arm_sees_another_one_of_its_round() -> None:
    """So that what runs beside what decides nothing."""
    seen: list[tuple[str, int, list[str]]] = []

    def looks(name: str) -> Arm:
        def run(context: Any, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
            seen.append((name, number, [f"{s.arm} {s.number}" for s in steps]))
            return nothing(name, number, "", hope=1.0)

        return Arm(name, 2, 1.0, lambda context: "", run, lambda context, made: None)

    race(GROUND, [looks("refit"), looks("finetune")], Account(Budget.of("100 passes")), StepLog(None), Phases(False))
    first = ["refit 0", "finetune 0"]
    assert seen == [("refit", 0, []), ("finetune", 0, []), ("refit", 1, first)]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a shell: tests that run in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_ctrl_c_does_not_end_a_decision(capsys: pytest.CaptureFixture[str]) -> None:
    with ignore_first_interrupt("deciding"):
        signal.raise_signal(signal.SIGINT)
        assert capsys.readouterr().err == "deciding\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_trainings_are_kept_in_the_folder_of_the_run(tmp_path: Path) -> None:
    """Where no id is too long, and none is that of another run."""

    def kept(runId: str | None, fold: int | None = None) -> dict[str, Any]:
        options, shared = Options.of({"runId": runId}), FitResults()
        context = ArmContext(
            None, options, ImprovementSettings(), [], None, Phases(False), shared, folder=tmp_path, fold=fold
        )
        return context.checkpoint_options("finetune", "0")

    assert kept("x" * 100) == {"checkpointDir": str(tmp_path / "trainings"), "runId": "finetune-0"}
    assert [kept("x", fold)["runId"] for fold in (2, 0)] == ["finetune-0-fold2", "finetune-0-fold0"]
    assert kept(None)["runId"] is None


@pytest.mark.parametrize(
    ("name", "value", "larger", "most"),
    [
        ("logLoss", 0.4, False, 1.0),
        ("poissonDeviance", 3.0, False, 1.0),
        ("areaUnderROC", 0.8, True, 0.25),
        ("r2", -0.5, True, 3.0),
        ("poisson", 0.4, False, math.inf),
        ("myLoss", 0.4, False, math.inf),
        ("rmse", 0.0, False, math.inf),
    ],
)
def test_no_arm_hopes_for_more_than_a_pipeline_without_errors(
    name: str, value: float, larger: bool, most: float
) -> None:
    scores = {"validation": SimpleNamespace(weights=torch.ones(3), value=value)}
    context: Any = SimpleNamespace(
        metric=SimpleNamespace(name=name, larger=larger), start=SimpleNamespace(scores=scores)
    )
    assert most_gain(context) == pytest.approx(most)
    steps = [nothing("grow", 0, "ran", hope=1.335)]
    assert _may_reach(context, "grow", steps) == pytest.approx(min(1.335, most))
