"""The race over arms that take no time: what a clock ends, what Ctrl-C ends, and where trainings are kept."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.budget import Account, Budget, Limit
from sparkdiff.improvement.candidate import Step, nothing
from sparkdiff.improvement.ground import Ground
from sparkdiff.improvement.log import Log
from sparkdiff.improvement.race import race
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.machine.interrupts import undisturbed
from sparkdiff.options import Options
from sparkdiff.report import Phases

GROUND: Any = SimpleNamespace(
    start=SimpleNamespace(scores={"validation": SimpleNamespace(weights=torch.ones(3))}),
    settings=ImprovementSettings(),
)


def arm(name: str, does: Callable[[Limit], None]) -> Arm:
    def run(ground: Any, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
        does(limit)
        return nothing(ground, name, number, "ran", hope=1.0)

    return Arm(name, 2, 1.0, lambda ground: "", run)


def test_what_spark_cannot_end_in_time_is_stopped_and_the_others_go_on() -> None:
    given: list[Limit] = []

    def late(limit: Limit) -> None:
        given.append(limit)
        raise TimeoutError("Spark took longer than 47 s")

    found = race(
        GROUND,
        [arm("refit", late), arm("finetune", given.append)],
        Account(Budget.of("100s")),
        Log(None),
        Phases(False),
    )
    assert [(s.arm, s.state) for s in found.standings] == [("refit", "stopped"), ("finetune", "done")]
    assert "set a larger one" in found.standings[0].why
    assert given[0].most == pytest.approx(47.5)  # its share of what is left; a first step is to take a tenth of it
    assert given[0].seconds == pytest.approx(10)


def test_the_first_ctrl_c_does_not_end_a_decision(capsys: pytest.CaptureFixture[str]) -> None:
    with undisturbed("deciding"):
        signal.raise_signal(signal.SIGINT)
        assert capsys.readouterr().err == "deciding\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_trainings_are_kept_in_the_folder_of_the_run(tmp_path: Path) -> None:
    """Where no id is too long, and none is that of another run."""

    def kept(runId: str | None) -> dict[str, Any]:
        ground = Ground(
            None, Options.of({"runId": runId}), ImprovementSettings(), [], None, Phases(False), Any, folder=tmp_path
        )  # type: ignore[arg-type]
        return ground.kept("finetune", 0)

    assert kept("x" * 100) == {"checkpointDir": str(tmp_path / "trainings"), "runId": "finetune-0"}
    assert kept(None)["runId"] is None
