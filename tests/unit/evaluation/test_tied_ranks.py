"""A metric of ranks measured in another order of additions: what ties allow, and no more."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparkdiff.errors import ParityError
from sparkdiff.evaluation.row_checks import check_trained, measure_tie_range
from sparkdiff.evaluation.scores import Score
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import BINARY
from sparkdiff.tensors.team import ALONE
from tests.support.small_networks import least_squares

MARGIN = torch.tensor([0.1, 0.3, 0.3 + 1e-16, 0.3 - 2e-16, 0.3, 0.9, 0.5], dtype=torch.float64)
LABEL = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
NAMES = ["areaUnderROC", "areaUnderPR"]


def given(name: str, margin: torch.Tensor) -> tuple[Any, Any, Metric]:
    """A network whose margin is the column of a batch, the rows, and the metric."""
    one, block = torch.ones_like(LABEL), torch.arange(len(LABEL))
    network = SimpleNamespace(margin=lambda values: values, head=least_squares(1))
    data = SimpleNamespace(batches=lambda split: [(margin, LABEL, one, block)], values=lambda batch: batch, team=ALONE)
    return network, data, Metric(name, column=lambda m: m, value=BINARY[name], larger=True, ranks=True)


def loss(metric: Metric, margin: torch.Tensor) -> float:
    assert metric.value is not None
    return -float(metric.value(margin, LABEL, torch.ones_like(LABEL)))


@pytest.mark.parametrize("name", NAMES)
def test_the_range_has_every_order_of_tied_rows_and_is_no_wider(name: str) -> None:
    network, data, metric = given(name, MARGIN)
    low, high = measure_tie_range(network, data, metric)
    apart = [0.3 + 1e-3 * side * (2 * LABEL[1:5] - 1) for side in (1, -1)]
    apart[0] += 1e-4 * torch.arange(4)  # rows of class 1 one by one
    ends = [loss(metric, torch.cat([MARGIN[:1], tied, MARGIN[5:]])) for tied in apart]
    assert [low, high] == pytest.approx(ends)
    assert low < loss(metric, MARGIN) < high
    assert low <= loss(metric, MARGIN.round(decimals=9)) <= high


@pytest.mark.parametrize("name", NAMES)
def test_no_order_of_tied_rows_leaves_the_range(name: str) -> None:
    front = torch.tensor([0.9, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # of class 0
    network, data, metric = given(name, front)
    low, high = measure_tie_range(network, data, metric)
    for order in itertools.permutations(range(5)):
        tied = front.clone()
        tied[front == 0] = 1e-3 * torch.tensor(order, dtype=torch.float64)
        assert low - 1e-12 <= loss(metric, tied) <= high + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_outside_of_what_ties_allow_is_an_error(name: str) -> None:
    network, data, metric = given(name, MARGIN)
    now = loss(metric, MARGIN)
    tuned = Score(torch.tensor([now]), torch.ones(1), 0, -1.0)
    low, high = measure_tie_range(network, data, metric)
    for best in (low, now, high):
        check_trained("m", best, tuned, metric, network, data)
    for best in (low - 1e-3, high + 1e-3):
        with pytest.raises(ParityError, match="`affine_form`"):
            check_trained("m", best, tuned, metric, network, data)
    untied, data, metric = given(name, torch.linspace(0, 1, len(LABEL), dtype=torch.float64))
    with pytest.raises(ParityError):
        check_trained("m", now + 1e-4, tuned, metric, untied, data)


@pytest.mark.parametrize("name", NAMES)
def test_ties_do_not_excuse_a_network_without_a_metric(name: str) -> None:
    """Beside a margin that is NaN, all would count as tied."""
    network, data, metric = given(name, torch.where(LABEL > 0, torch.nan, MARGIN))
    tuned = Score(torch.tensor([torch.nan]), torch.ones(1), 0, -1.0, broken=3)
    with pytest.raises(ParityError, match=r"has area.* nan on the validation rows"):
        check_trained("m", loss(metric, MARGIN), tuned, metric, network, data)
