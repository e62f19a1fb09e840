"""What training keeps of its candidates: the column that was tested ships, and those that diverged are counted."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import Judgement, divergence, reason, ways_to_decide
from sparkdiff.evaluation.guard import Ledger, LedgerTrial, diverged_candidates
from sparkdiff.evaluation.scores import Score, Tally
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.evaluation.units import Units
from sparkdiff.objectives.losses import resolve
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.tensors.team import Team
from sparkdiff.training.epoch_results import TrainedNetwork
from sparkdiff.training.parameters import parameter_vector
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.training_run import Training
from tests.support.metric_cases import METRICS, case
from tests.support.small_heads import linear, stats
from tests.support.small_networks import F64, natural_units, network

ROWS, TWINS = 20, 4  # as many rows in one, of the same label and weight
PLACES = torch.arange(ROWS * TWINS).view(TWINS, ROWS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on small matrices mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Columns:
    """Candidates whose scores are known beforehand; all parameters of candidate k in an epoch are count * epoch + k."""

    scores_of: Callable[[int, int], Score]  # of a candidate and an epoch
    count: int
    rows: list[int]
    loss: float = 0.0
    epoch: int = 0
    lazy: bool = False

    def end_epoch(self, scale: float) -> list[float]:
        self.epoch += 1
        return [self.loss] * len(self.rows)

    def scores(self, *_: Any) -> tuple[list[Score], Callable[[int], Tensor]]:
        first = self.count * self.epoch
        return [self.scores_of(k, self.epoch) for k in self.rows], lambda j: torch.full(
            (2,), first + self.rows[j], dtype=F64
        )

    def subset(self, rows: Sequence[int]) -> "Columns":
        return Columns(self.scores_of, self.count, [self.rows[j] for j in rows], self.loss, self.epoch)


def trained(
    original: Score,
    scores_of: Callable[[int, int], Score],
    candidates: int,
    epochs: int,
    loss: float = 0.0,
    **given: Any,
) -> TrainedNetwork:
    """What a training finds whose candidates have these scores."""
    options = Options.of({"maxEpochs": epochs, "patience": epochs, **given})
    net = network((linear(), ["x"], "prediction"))
    training = Training(net, [Recipe(0.1, 0.0)] * candidates, options, natural_units(net, {"x": 1}, options), original)
    training.candidates = Columns(scores_of, candidates, list(range(candidates)), loss)  # type: ignore[assignment]
    objective = resolve("squared", {}, net.head, ("prediction",), stats())
    measured(training, None, objective)
    return training.result(net)


def measured(training: Training, data: Any, objective: Objective) -> None:
    """The ends of all epochs."""
    while not training.ended:
        assert training.candidates is not None
        training.validate(training.candidates, data, objective, Metric("any"), active := training.active)
        training.end_epoch(data, active)


def shipped(found: TrainedNetwork, candidates: int) -> tuple[int, int] | None:
    """The candidate and the epoch whose parameters the network holds, None where they are the original's."""
    marks = parameter_vector(found.network)
    if torch.equal(marks, parameter_vector(network((linear(), ["x"], "prediction")))):
        return None
    [mark] = set(marks.tolist())
    return int(mark) % candidates, int(mark) // candidates


def tied(name: str, seed: int, levels: int) -> tuple[Score, list[Callable[[torch.Generator], Score]]]:
    """The original's score, and what draws a better one: by level, the same value each time, but of other rows.

    Rows of one label and weight exchange their predictions, which changes no metric but for the order of additions.
    """
    metric, head, margin, y = case(name)
    generator = torch.Generator().manual_seed(seed)
    y, weight = y[:ROWS].repeat(TWINS), torch.randint(1, 4, (ROWS,), generator=generator).double().repeat(TWINS) / 7

    def score(margin: Tensor) -> Score:
        tally = Tally(metric, head)
        tally.add(margin, y, weight, torch.arange(len(y)))
        return tally.score(Team())

    def margins() -> Tensor:
        out = margin[torch.randperm(len(margin), generator=generator)]
        if name == "weibull":  # whether the event was seen belongs to the label
            out[:, 2] = margin[:ROWS, 2].repeat(TWINS)
        return out

    def exchanged(margin: Tensor) -> Callable[[torch.Generator], Score]:
        return lambda g: score(margin[PLACES.gather(0, torch.rand(TWINS, ROWS, generator=g).argsort(0)).flatten()])

    found = sorted((margins() for _ in range(levels + 1)), key=lambda m: -score(m).mean)
    return score(found[0]), [exchanged(m) for m in found[1:]]


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), candidates=st.integers(1, 4), epochs=st.integers(1, 6), data=st.data())
def test_what_was_tested_ships(name: str, seed: int, candidates: int, epochs: int, data: st.DataObject) -> None:
    original, levels = tied(name, seed, 2)
    which = data.draw(st.lists(st.integers(0, 1), min_size=candidates * epochs, max_size=candidates * epochs))
    scores = [levels[level](torch.Generator().manual_seed(i)) for i, level in enumerate(which)]
    found = trained(original, lambda k, epoch: scores[candidates * (epoch - 1) + k], candidates, epochs)
    ships = shipped(found, candidates)
    verdict = guard.decide(
        found.ledger.gains, found.ledger.weights, chosen=found.ledger.chosen, original=original.blocks, units=Units(80)
    )
    totals = found.ledger.gains.sum(1)
    best = float(totals.max())
    if not best > 1e-9 * float(original.blocks.abs().sum()):
        assert (found.ledger.chosen, ships, verdict.best) == (-1, None, -1)
        return
    assert ships == found.ledger.trials[verdict.best][:2]
    # Of equal gains the first: by epoch, then by candidate.
    assert verdict.best == int((totals >= best * (1 - 1e-9)).nonzero()[0])
    gains = original.blocks - scores[candidates * (ships[1] - 1) + ships[0]].blocks
    mean, used = gains.sum() / original.weights.sum(), original.weights > 0
    error = (gains - mean * original.weights)[used].norm() * math.sqrt(80 / 79) / original.weights.sum()
    assert verdict.gain == pytest.approx(float(mean), rel=1e-9)
    assert verdict.z == pytest.approx(float(mean / error), rel=1e-9)
    others = [g for i, g in enumerate(found.ledger.gains) if i != verdict.best]
    first = guard.decide(
        torch.stack([gains, *others]), found.ledger.weights, chosen=0, original=original.blocks, units=Units(80)
    )
    # In another order of columns a draw that ties with the score can fall on the other side of it.
    assert verdict.p == pytest.approx(first.p, abs=0.01)
    assert verdict.interval == pytest.approx(first.interval, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), candidates=st.integers(1, 4))
def test_the_order_of_additions_chooses_nothing(seed: int, candidates: int) -> None:
    """Several processes add the same numbers in another order, which may change the last bits of every sum."""
    original, [level] = tied("accuracy", seed, 1)
    scores = [level(torch.Generator().manual_seed(i)) for i in range(3 * candidates)]
    noise = torch.Generator().manual_seed(seed)

    def rounded(score: Score) -> Score:
        error = 1 + 4e-16 * torch.randint(-1, 2, score.blocks.shape, generator=noise)
        return Score(score.blocks * error, score.weights, score.below, score.sign)

    runs = [
        trained(original, lambda k, epoch, change=change: change(scores[candidates * (epoch - 1) + k]), candidates, 3)
        for change in (lambda s: s, rounded, rounded)
    ]
    assert len({run.ledger.chosen for run in runs}) == 1


def test_a_column_that_gains_what_it_loses_counts_as_tried() -> None:
    """It is none that ships, but the best of all is compared with it, too."""
    ones = torch.ones(60, dtype=F64)
    even = torch.tensor([1.0, -1.0], dtype=F64).repeat(30)
    found = trained(Score(5 * ones, ones, 0), lambda k, epoch: Score(5 * ones - even, ones, 0), 1, 2)
    assert found.ledger.chosen == -1
    assert found.ledger.gains.tolist() == [even.tolist()] * 2


# Early ends ----------------------------------------------------------------------------------------------------------


def training_of(
    *metrics: float, data: Any = None, begun: Mapping[str, Any] | None = None, epochs: int | None = None, **given: Any
) -> Training:
    """The ended training of a candidate with these metrics, of an original of 5, from a state if one is given."""
    ones = torch.ones(60, dtype=F64)
    options = Options.of({"maxEpochs": len(metrics), **given})
    net = network((linear(), ["x"], "prediction"))
    training = Training(
        net, [Recipe(0.1, 0.0)], options, natural_units(net, {"x": 1}, options), Score(5 * ones, ones, 0), epochs=epochs
    )
    if begun is not None:
        training.load(begun)
    scores = Columns(lambda k, epoch: Score(metrics[epoch - 1] * ones, ones, 0), 1, [0], epoch=training.epoch - 1)
    training.candidates = scores  # type: ignore[assignment]
    measured(training, data, resolve("squared", {}, net.head, ("prediction",), stats()))
    return training


def test_small_gains_extend_patience_only_if_they_add_up() -> None:
    falling = [4.0, 3.9, 3.8, 3.7, 3.6, 3.6, 3.6]

    def end(*metrics: float, **given: Any) -> tuple[int, int]:
        """The last epoch, and the best."""
        training = training_of(*metrics, patience=3, **given)
        assert not training.ended_early
        return training.epoch - 1, training.columns[training.best.column][1]

    assert end(*falling) == end(*falling, minDelta=0) == end(*falling, minDelta=0.01) == (7, 5)
    assert end(*falling, minDelta=0.1) == (4, 4)  # 0.5 of 5; the best epoch did not count
    assert end(*falling, minDelta=0.05) == (7, 5)  # 4.0 counts, and 3.7
    assert end(*falling, minDelta=1.0) == (3, 3)  # none counts
    assert training_of(5.5, 5.5, 4.0, 4.0, patience=2, minDelta=0.01).epoch == 3


def test_given_epochs_are_all_trained_and_the_last_counts() -> None:
    training = training_of(4.0, 9.0, 8.0, 1.0, epochs=3, patience=1, data=Clock())
    assert (training.epoch - 1, training.best.column, training.best.metric, training.ended_early) == (3, 2, 8.0, "")
    assert bool((training.best.flat == 3).all())
    diverged_at = training_of(4.0, math.nan, 3.0, epochs=3)
    assert (diverged_at.epoch - 1, diverged_at.best.column, len(diverged_candidates(diverged_at.history))) == (2, 0, 1)


class Clock:
    """A team whose first process has trained for so many seconds, and this process, one of the others, for none."""

    rank = 1

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.team = iter(seconds), self

    def sum_(self, tensor: Tensor) -> None:
        assert not tensor
        tensor += next(self.seconds)


def test_the_clock_of_the_first_process_ends_training_in_all() -> None:
    training = training_of(4.0, 3.0, 2.0, 1.0, maxSeconds=10, data=Clock(5.0, 9.9, 10.1))
    assert (training.epoch, training.best.column) == (4, 2)
    assert training.ended_early == (
        "maxSeconds=10 ended training after epoch 3, when 1 of 1 candidates had not stopped: with more time they may gain more"
    )
    assert not training_of(4.0, 3.0, maxSeconds=10, data=Clock(5.0, 11.0)).ended_early  # it was the last epoch
    assert not training_of(
        4.0, 6.0, 6.0, patience=1, maxSeconds=10, data=Clock(5.0, 11.0)
    ).ended_early  # it had stopped
    assert training_of(4.0, 3.0).epoch == 3  # without a limit nobody is asked


def test_seconds_of_earlier_attempts_count() -> None:
    alone = Data(None, {})  # type: ignore[arg-type]
    state = training_of(4.0, 3.0).state() | {"seconds": 1e6, "ended": False}
    resumed = training_of(4.0, 3.0, 2.0, 1.0, begun=state, maxSeconds=1e6, data=alone)
    assert (resumed.epoch, bool(resumed.ended_early)) == (4, True)
    assert resumed.state()["seconds"] >= 1e6
    assert training_of(4.0, 3.0, 2.0, 1.0, begun=state, maxSeconds=1e7, data=alone).epoch == 5


# Divergence -----------------------------------------------------------------------------------------------------------


def run(*metrics: Sequence[float], losses: float = 0.0, **given: Any) -> tuple[TrainedNetwork, str, str]:
    """Candidates with these metrics, epoch by epoch, of an original of 5; what is told of those that diverged."""
    ones = torch.ones(60, dtype=F64)
    found = trained(
        Score(5 * ones, ones, 0),
        lambda k, epoch: Score(metrics[k][epoch - 1] * ones, ones, 0),
        len(metrics),
        len(metrics[0]),
        loss=losses,
        **given,
    )
    options = Options.of(given)
    verdict = guard.decide(found.ledger.gains, found.ledger.weights, chosen=found.ledger.chosen)
    told = reason(Judgement(verdict, None), options, Metric("rmse"), 5.0, found.history)
    return found, told, divergence(found.history, options)


def test_if_all_candidates_diverge_the_gain_is_unknown() -> None:
    found, told, _ = run([math.nan], [math.inf], learningRate=100.0)
    assert told == (
        "all 2 candidates diverged in epoch 1 (learningRate=100): lower learningRate or set gradientClip; no epoch before had "
        "a smaller rmse on the validation rows, so the possible gain is unknown"
    )
    assert (len(diverged_candidates(found.history)), found.ledger.chosen) == (2, -1)
    assert "the only candidate diverged in epoch 2 (" in run([6.0, math.nan])[1]
    assert "in epochs 1 to 2 (" in run([6.0, math.nan], [math.nan, 1.0], gradientClip=1.0)[1]
    assert "lower learningRate or gradientClip;" in run([math.nan], gradientClip=1.0)[1]


def test_a_non_finite_loss_ends_a_candidate_of_any_metric() -> None:
    found, told, _ = run([4.0, 3.0], losses=math.inf)
    assert (found.ledger.chosen, len(found.history), len(diverged_candidates(found.history))) == (-1, 2, 1)
    assert "diverged in epoch 1" in told


def test_some_candidates_that_diverge_are_counted() -> None:
    found, told, lost = run([6.0, 6.0], [6.0, math.nan])
    assert told.startswith(
        "no epoch of any other candidate had a smaller rmse on the validation rows, and 1 of 2 candidates"
    )
    assert (
        lost == "1 of 2 candidates diverged in epoch 2 (adam 0.1, regAnchor 0): lower learningRate or set gradientClip"
    )
    found, told, lost = run([4.0, 3.0], [2.0, math.nan])  # what it had before counts
    assert found.ledger.trials[found.ledger.chosen] == (1, 1)
    assert (len(diverged_candidates(found.history)), "diverged" in told, bool(lost)) == (1, False, True)
    _, told, lost = run([6.0])
    assert told.startswith(
        "no epoch of any candidate had a smaller rmse on the validation rows: nothing to gain from here; "
    )
    assert "try recipe='thorough'" in told and not lost


def test_a_loss_that_is_large_and_grows_diverges() -> None:
    def of(candidate: int, *losses: float) -> list[dict[str, Any]]:
        rows = {"candidate": candidate, "recipe": "adam 1", "validationMetric": 1.0}
        return [rows | {"epoch": epoch, "trainLoss": loss} for epoch, loss in enumerate(losses)]

    assert [row["epoch"] for row in diverged_candidates(of(0, 1.0, 2.1, 2.2))] == [1]
    assert diverged_candidates(of(0, 1.0, 5.0, 4.0))  # steps that are too long lead anywhere
    assert not diverged_candidates(of(0, 1.0, 1.9, 5.0)) and not diverged_candidates(of(0, 1.0, 5.0, 1.9))
    assert diverged_candidates(of(0, 1.0, 5.0)) and not diverged_candidates(of(0, 1.0, 1.9))
    assert not diverged_candidates(of(0, math.nan, 5.0, 6.0))  # it gained
    assert diverged_candidates(of(0, -1.0, 0.5, 0.6)) and not diverged_candidates(of(0, -1.0, -0.9, -0.8))
    several = [*of(0, 1.0, 9.0, 99.0), *of(1, 1.0, 0.9, 0.8), *of(2, 1.0, 9.0, 99.0, math.nan)]
    assert [(row["candidate"], row["epoch"]) for row in diverged_candidates(several)] == [(0, 1), (2, 3)]
    assert "2 of 3 candidates diverged in epochs 1 to 3" in divergence(several, Options())


def test_steps_without_a_learning_rate_have_another_remedy() -> None:
    rows = [{"epoch": 1, "candidate": 0, "recipe": "lbfgs 1", "trainLoss": math.nan, "validationMetric": math.nan}]
    well = [rows[0] | {"candidate": 1, "trainLoss": 1.0, "validationMetric": 1.0}]
    assert divergence(rows + well, Options()).endswith(
        "(lbfgs 1): choose recipe=default, which has no lbfgs and no newton"
    )


def test_the_chosen_column_can_be_measured_again() -> None:
    gains = torch.arange(6, dtype=F64).view(2, 3)
    ledger = Ledger(gains, torch.ones(3, dtype=F64), [LedgerTrial(0, 1), LedgerTrial(1, 1)], 1)
    again = ledger.measured_again(torch.full((3,), 7.0, dtype=F64))
    assert again.gains.tolist() == [[0, 1, 2], [7, 7, 7]]
    assert ledger.gains.tolist() == [[0, 1, 2], [3, 4, 5]]
    none = replace(ledger, chosen=-1)
    assert none.measured_again(gains[0]) is none


@pytest.mark.parametrize(
    ("options", "how", "ways"),
    [
        ({}, {}, "set numFolds=5, so that all rows decide, or validationFraction=0.3, or pass more rows"),
        ({"groupCol": "user"}, {"folds": False}, "set validationFraction=0.3, or pass more groups"),
        ({"timeCol": "day"}, {}, "set validationFraction=0.3, or pass more rows"),
        ({"validationFraction": 0.4}, {}, "set numFolds=5, so that all rows decide, or pass more rows"),
        ({"numFolds": 5}, {}, "pass more rows"),
        ({"validationIndicatorCol": "held"}, {}, "pass more rows"),
        ({}, {"divided": False}, "pass more rows"),
    ],
)
def test_only_ways_that_there_are_are_advised(options: dict[str, Any], how: dict[str, bool], ways: str) -> None:
    assert ways_to_decide(Options(**options), **{"folds": True, **how}) == f"to decide it, {ways}"
