"""Pruners on made-up learning curves, without Spark: who goes on, what it costs, and what a kill leaves."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff.search.pruning import Pruning
from sparkdiff.search.rungs import Bracket, brackets, run, rungs, warning
from sparkdiff.search.samplers import SamplingPlan
from sparkdiff.search.study import Study, Trial, TrialOutcome, lock_search_folder
from tests.support.small_studies import REQUEST, SPACE, loss


def test_resources_grow_by_the_same_factor_up_to_the_whole() -> None:
    assert rungs(1.0, 1 / 27, integer=False) == pytest.approx((1 / 27, 1 / 9, 1 / 3, 1.0))
    assert rungs(100, 100 / 27, integer=True) == (4, 11, 33, 100)
    assert rungs(20, 1, integer=True) == (2, 7, 20)
    assert rungs(2, 1, integer=True) == (2,)


def test_hyperbands_brackets() -> None:
    whole = brackets("hyperband", 60, (1, 3, 9, 27), 1)
    assert [(b.size, b.rungs[0]) for b in whole[:4]] == [(27, 1), (12, 3), (6, 9), (4, 27)]  # of Li et al., for R = 27
    assert sum(b.size for b in whole) == 60
    fewer = brackets("hyperband", 24, (3, 9, 27, 80), 1)
    assert [(b.size, b.rungs[0]) for b in fewer] == [(13, 3), (6, 9), (3, 27), (2, 80)]
    assert all(sum(b.size for b in brackets("hyperband", n, (1, 3, 9, 27), 1)) == n for n in range(1, 100))
    assert [b.size for b in brackets("halving", 27, (1, 3, 9, 27), 1)] == [27]
    assert [b.size for b in brackets("median", 25, (1, 3), 4)] == [10, 4, 4, 4, 3]
    assert "has 1 trial, fewer than the 10 after which TPE adapts" in warning("hyperband", "tpe", whole)
    assert not warning("halving", "tpe", whole) and not warning("hyperband", "random", whole)


def test_the_better_third_goes_on() -> None:
    asked: list[tuple[list[int], float]] = []

    def evaluate(alive: Sequence[int], resource: float) -> list[float | None]:
        asked.append(([*alive], resource))
        return [None if i == 4 else float("nan") if i == 5 else i + 1 / resource for i in alive]

    found = run(Bracket(9, (1, 3, 9)), "halving", evaluate)
    assert asked == [([*range(9)], 1), ([0, 1, 2], 3), ([0], 9)]
    assert [len(f.steps) for f in found] == [3, 2, 2, 1, 0, 0, 1, 1, 1]
    assert [f.last for f in found] == [True, *[False] * 8]
    assert found[0].steps == ((1, 1.0), (3, 1 / 3), (9, 1 / 9))


def test_what_is_worse_than_the_median_of_all_before_ends() -> None:
    def evaluate(alive: Sequence[int], resource: float) -> list[float | None]:
        return [float(i) for i in alive]

    assert [f.last for f in run(Bracket(5, (1, 3)), "median", evaluate)] == [True, True, True, False, False]
    earlier = [[(1.0, -1.0)], [(1.0, -2.0), (3.0, -2.0)], [(1.0, -3.0)], [(1.0, -3.0)]]
    assert not any(f.last for f in run(Bracket(2, (1, 3)), "median", evaluate, earlier))
    # A study keeps three digits of a share.
    shares = [[(0.037, -1.0)], [(0.037, -2.0)], [(0.037, -3.0)]]
    assert not any(f.last for f in run(Bracket(2, (1 / 27, 1.0)), "median", evaluate, shares))


class Evaluating:
    """Trials whose metric comes near to its end as the resource grows; fails after so many calls, as a kill would end it."""

    def __init__(self, calls: int = 10**9):
        self.calls, self.spent = calls, 0.0

    def evaluate(self, trials: Sequence[Trial], resource: float) -> list[TrialOutcome]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.spent += resource * len(trials)
        return [TrialOutcome((-loss(t.configuration) - 1 / resource,)) for t in trials]


def searched(folder: Path | None, evaluating: Evaluating, total: int = 30) -> list[Any]:
    found = brackets("bohb", total, (1, 3, 9), 1)
    plan = SamplingPlan("tpe", SPACE, 3, total, 1, 8, (True,), tuple(b.size for b in found))
    study, pruning = Study(plan, folder), Pruning("bohb", tuple(found), larger=True)
    while batch := study.next():
        number = pruning.firsts.index(batch[0].number)
        for trial, result in zip(
            batch, pruning.evaluate_bracket(number, batch, study, evaluating.evaluate), strict=True
        ):
            if trial.state == "running":
                study.tell(trial.number, result)
    best = study.best()
    assert best is not None and best.steps[-1][0] == 9
    return [(t.number, t.configuration, t.values, t.state, t.steps) for t in study.trials()]


def test_a_killed_bracket_goes_on_after_its_last_rung(tmp_path: Path) -> None:
    whole, first, second = Evaluating(), Evaluating(4), Evaluating()
    undisturbed = searched(None, whole)
    with lock_search_folder(tmp_path / "run", REQUEST) as folder:
        with pytest.raises(KeyboardInterrupt):
            searched(folder, first)
        assert searched(folder, second) == undisturbed
    assert first.spent + second.spent == whole.spent < 0.6 * 9 * 30  # without a pruner: 9 for each of 30 trials
    assert {t[3] for t in undisturbed} == {"complete", "pruned"}


def test_a_trial_that_fails_at_a_rung_has_failed() -> None:
    study = SimpleNamespace(once=lambda name, find: find(), trials=list)
    trials = [Trial(i, {}, "running") for i in range(3)]

    def evaluate(trials: Sequence[Trial], resource: float) -> list[TrialOutcome]:
        return [
            TrialOutcome(None, "too wide") if t.number == 0 else TrialOutcome((float(t.number) * resource,))
            for t in trials
        ]

    pruning = Pruning("halving", (Bracket(3, (1, 3)),), larger=False)
    found = pruning.evaluate_bracket(0, trials, study, evaluate)  # type: ignore[arg-type]
    assert [(f.values, f.why, f.pruned) for f in found] == [
        (None, "too wide", False),
        ((3.0,), "", False),
        ((2.0,), "", True),
    ]
