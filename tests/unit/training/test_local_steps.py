"""Steps that processes take apart: where they meet, what they go on from, and what can't be done so."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.tensors.device import home
from sparkdiff.tensors.team import ALONE, Team
from sparkdiff.training.distributed.worker import Assignment, work
from sparkdiff.training.local_steps import LocalSteps
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.training_run import Training
from tests.support.train_in_processes import CASES, Case, assignment, dense, write_cache


class Meeting:
    """Sums over the threads of a test."""

    def __init__(self, world: int):
        self.barrier, self.parts = threading.Barrier(world, timeout=60), dict[int, list[torch.Tensor]]()

    def sum_(self, rank: int, tensors: tuple[torch.Tensor, ...]) -> None:
        self.parts[rank] = [x.clone() for x in tensors]
        self.barrier.wait()
        totals = [sum(each) for each in zip(*(self.parts[r] for r in sorted(self.parts)), strict=True)]
        self.barrier.wait()
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total)


class Threads(Team):
    def __init__(self, rank: int, world: int, meeting: Meeting):
        super().__init__(rank, world)
        object.__setattr__(self, "meeting", meeting)

    def sum_(self, *tensors: torch.Tensor) -> None:
        self.meeting.sum_(self.rank, tensors)  # type: ignore[attr-defined]


def trained(a: Assignment, world: int, resumed: Any = None, at: tuple[int, int] | None = None) -> tuple[list[Any], Any]:
    """The training of each process, and the first one's state after a step of an epoch."""
    meeting, ended, states = Meeting(world), dict[int, Training](), list[Any]()

    def process(rank: int) -> None:
        training = a.training()
        if resumed is not None:
            training.load(resumed)

        def on_step(training: Training) -> None:
            if rank == 0 and (training.epoch, training.step) == at:
                assert training.is_whole
                states.append({k: _copy(v) for k, v in training.state().items()})

        team = Threads(rank, world, meeting) if world > 1 else ALONE
        with Stream(a.cache, backend=a.backend, inMemory=a.inMemory, seed=a.options.seed) as stream:
            work(a, training, stream, team, on_step)
        ended[rank] = training

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ended[rank] for rank in range(world)], states[0] if states else None


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def found(training: Training) -> tuple[list[Any], list[Any]]:
    assert training.candidates is not None
    return home(training.candidates.u).tolist(), [[h["trainLoss"], h["validationMetric"]] for h in training.history]


RECIPES = (Recipe(1e-2, 1e-3), Recipe(3e-2, 1e-2, noise=0.2), Recipe(1e-2, 1e-3, ema=0.9))


@pytest.fixture
def apart(tmp_path: Path) -> Assignment:
    """Steps of eight rows, ten an epoch; the processes meet after four, eight and ten."""
    case = Case(dense, 6, RECIPES, {"batchSize": 8, "maxEpochs": 3, "localSteps": 4, "schedule": "cosine"})
    write_cache(tmp_path / "cache", case)
    a = assignment(case, tmp_path / "cache")
    return replace(a, options=replace(a.options, numProcesses=2))


def test_all_processes_end_with_the_same_parameters(apart: Assignment) -> None:
    first, second = trained(apart, 2)[0]
    assert found(first) == found(second)
    assert found(first) == found(trained(apart, 2)[0][0])
    together = replace(apart, options=replace(apart.options, localSteps=1))
    sums = trained(together, 2)[0][0]
    assert found(first) != found(sums)
    # Near enough to be the same training: each has seen all rows.
    before, after = (np.array(found(t)[1]) for t in (sums, first))
    np.testing.assert_allclose(after, before, rtol=0.2)


def test_a_checkpoint_between_meetings_goes_on_bit_for_bit(apart: Assignment) -> None:
    whole, state = trained(apart, 2, at=(2, 4))
    again = trained(apart, 2, resumed=state)[0]
    assert [found(t) for t in again] == [found(t) for t in whole]


def test_an_average_of_another_candidate_changes_nothing(apart: Assignment) -> None:
    """Who has no average of its own is measured with the weights that it goes on from."""
    plain = replace(apart, start=replace(apart.start, recipes=RECIPES[:1]))
    both = replace(apart, start=replace(apart.start, recipes=(RECIPES[0], RECIPES[2])))
    alone, together = (trained(a, 2)[0][0] for a in (plain, both))
    assert found(together.among(RECIPES[:1]))[1][1:] == [pytest.approx(row) for row in found(alone)[1][1:]]


def test_one_process_has_none_to_meet(apart: Assignment) -> None:
    alone = [replace(apart, options=replace(apart.options, numProcesses=1, localSteps=k)) for k in (1, 4)]
    assert found(trained(alone[0], 1)[0][0]) == found(trained(alone[1], 1)[0][0])


def test_the_slow_momentum_is_that_of_the_paper() -> None:
    """u' = beta u + (x0 - mean x) / gamma; x0' = x0 - gamma u', there with a slow learning rate of 1."""
    random = np.random.default_rng(0)
    x0 = random.normal(size=(2, 3))
    local = LocalSteps(5, 0.7, torch.from_numpy(x0.copy()))
    momentum, meeting = np.zeros((2, 3)), Meeting(1)
    for gamma in (1.0, 0.8, 0.3):
        moved = random.normal(size=(2, 3))
        local.u.add_(torch.from_numpy(moved))
        local.meet(Threads(0, 1, meeting), [], gamma)
        local.record_start()
        momentum = 0.7 * momentum - moved / gamma
        x0 = x0 - gamma * momentum
        np.testing.assert_allclose(local.u.numpy(), x0, rtol=1e-12)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (replace(CASES["trees"], options={"localSteps": 2}), "steps by newton, once an epoch"),
        (
            replace(CASES["ranks and a slice"], options={**CASES["ranks and a slice"].options, "localSteps": 2}),
            "all rows of a batch",
        ),
    ],
)
def test_what_needs_all_rows_is_refused(tmp_path: Path, case: Case, says: str) -> None:
    write_cache(tmp_path / "cache", case)
    a = assignment(case, tmp_path / "cache")
    a = replace(a, options=replace(a.options, numProcesses=2))
    with Stream(a.cache, backend=a.backend) as stream, pytest.raises(InputError, match=f"localSteps=2, but .*{says}"):
        work(a, a.training(), stream, Threads(0, 2, Meeting(1)), lambda training: None)


def test_the_number_is_to_be_set() -> None:
    with pytest.raises(
        InputError, match=r"numProcesses='auto', but with localSteps=8 the result depends on their number"
    ):
        Options.of({"numProcesses": "auto", "localSteps": 8})
