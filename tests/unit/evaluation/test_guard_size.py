"""How often the guard accepts a change without gain, and a true gain, on the simulations of benchmarks/guard_size.py."""

from collections.abc import Iterator

import guard_size
import pytest
import torch

from sparkdiff.errors import InputError
from tests.support.metric_cases import METRICS, PARAMS, metric
from tests.support.small_heads import linear, logistic

pytestmark = pytest.mark.slow

SHORT = [
    cell
    for cell in guard_size.CELLS + guard_size.HARDER_CELLS
    if cell.name
    in {
        "500 rows, Student t(3)",
        "50 groups",
        "1,700 rows of a time series",
        "500 rows, a hopeless noisy candidate",
        "1,700 rows, gain of 0.1 sd",
    }
]
"""One cell of each kind, for each commit; `.ci/nightly` has all of them."""
LONG = [cell for cell in guard_size.CELLS + guard_size.HARDER_CELLS if cell not in SHORT]
FEW = ("areaUnderROC", "areaUnderPR", "f1", "weightedPrecision", "falsePositiveRateByLabel")
"""Metrics by ranks, by ratios of counts over classes and of one class; tests/unit/test_metrics.py has the influence of all."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on small matrices mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(cell, runs: int) -> None:
    accepted = above = below = 0
    for i, run in enumerate(guard_size.simulations(cell, runs)):
        verdict = guard_size.decide(cell, run, i)
        accepted += verdict.accepted
        high, low = guard_size.misses(run, verdict)
        above, below = above + high, below + low
    assert cell.least <= accepted / runs <= cell.most
    assert max(above, below) / min(runs, guard_size.INTERVALS) <= guard_size.MOST_OUTSIDE


@pytest.mark.nightly
@pytest.mark.parametrize("cell", guard_size.CELLS, ids=lambda cell: cell.name)
def test_the_guard_keeps_its_promise(cell):
    check(cell, 500 if cell.gain else 2000)


@pytest.mark.nightly
@pytest.mark.parametrize("cell", guard_size.HARDER_CELLS, ids=lambda cell: cell.name)
def test_the_guard_stands_harder_cases(cell):
    check(cell, 500)


@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: cell.name)
def test_few_runs_accept_no_more_than_chance_would(cell):
    """A guard that fails, as plain z does, accepts a fifth of them."""
    accepted = sum(guard_size.decide(cell, run, i).accepted for i, run in enumerate(guard_size.simulations(cell, 60)))
    assert accepted <= 5 if not cell.gain else accepted >= 48


def test_the_simulation_would_fool_a_plain_z():
    cell = guard_size.CELLS[0]
    fooled = sum(guard_size.plain_z(run.gains, run.weights) for run in guard_size.simulations(cell, 300))
    assert fooled / 300 > 0.1


@pytest.mark.parametrize(
    "cell", [*SHORT, *(pytest.param(cell, marks=pytest.mark.nightly) for cell in LONG)], ids=lambda cell: cell.name
)
def test_the_simulation_is_what_it_says(cell):
    runs = list(guard_size.simulations(cell, 20 if cell.size > 5000 else 60))
    scores = torch.stack([run.gains.sum(1) / run.gains.norm(dim=1) for run in runs])
    shape = (guard_size.CANDIDATES, guard_size.EPOCHS, -1)
    if cell.bad:
        scores = scores[:, guard_size.EPOCHS :]
        assert runs[0].gains[: guard_size.EPOCHS].sum(1).mean() < 0
    elif not cell.gain:
        # The mean gain is zero, and a block's sums have the same variance in expectation whatever the column.
        assert abs(float(scores.mean())) < 4 / len(runs) ** 0.5
    gains = runs[0].gains.reshape(shape)
    if cell.epochCorrelation == 0.97 and cell.common < 0.9 and not cell.bad:
        spread = gains.std(2)
        assert (spread[:, -1] > 3 * spread[:, 0]).all()  # the variance grows with the epoch
        neighbours = [torch.corrcoef(gains[:, epoch : epoch + 2].reshape(8, -1))[0, 1] for epoch in range(0, 28)]
        assert 0.9 < float(torch.stack(neighbours).mean()) < 0.999
        across = torch.corrcoef(gains[:, 10])
        assert 0.3 < float((across.sum() - 4) / 12) < 0.99


# Metrics that are no mean over rows ------------------------------------------------------------------------------------


def test_every_metric_that_is_no_mean_over_rows_is_simulated():
    numbers, classes = linear(), logistic()
    others = set()
    for name in METRICS:
        for head in (numbers, classes):
            try:
                found = metric(
                    name, head, metricParams=PARAMS.get(name, {}) | ({"metricLabel": 1} if "ByLabel" in name else {})
                )
            except InputError:
                continue
            others |= {name} if found.rows is None else set()
    assert others == set(guard_size.OF_METRICS)


@pytest.mark.parametrize(
    ("name", "runs"),
    [(n, 20) for n in FEW] + [pytest.param(n, 60, marks=pytest.mark.nightly) for n in guard_size.OF_METRICS],
)
def test_the_promise_holds_for_metrics_that_are_no_mean(name, runs):
    rows = guard_size.population(name)
    ones = torch.ones_like(rows.label)
    before, *after = (float(rows.metric.value(c, rows.label, ones)) for c in rows.columns)
    assert len(after) >= 4
    assert max(abs(value - before) for value in after) < 1e-4  # a hundredth of a sample's error
    assert guard_size.accepted(rows, 500, runs) <= {20: 0.15, 60: 0.1}[runs]  # 2.5%, and three standard errors


def test_the_calibration_error_would_break_the_promise():
    assert guard_size.accepted(guard_size.calibrated(50), 500, 30) > 0.5
