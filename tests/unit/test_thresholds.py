"""Thresholds alone: the best ones for given probabilities, and metrics that know at which thresholds each pipeline decides."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.fine_tuning.thresholds import STEPS, best_thresholds
from sparkdiff.objectives import losses, metrics
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import of_predictions
from sparkdiff.options import Options
from tests.support.small_heads import COLUMNS, logistic, stats, tensor

ROWS = 5_000


def drawn(classes: int) -> tuple[Tensor, Tensor]:
    """Probabilities of the classes, and labels drawn by them."""
    random = torch.Generator().manual_seed(1)
    p = torch.softmax(2 * torch.randn(ROWS, classes, generator=random, dtype=torch.float64), 1)
    return p, torch.multinomial(p, 1, generator=random)[:, 0].double()


def best(name: str, params: dict[str, Any], classes: int, start: Tensor | None = None) -> tuple[Tensor, float, float]:
    """The thresholds found from equal ones, and the metric as a loss before and after."""
    (p, y), w = drawn(classes), torch.ones(ROWS, dtype=torch.float64)
    start = torch.full((classes,), 1 / classes, dtype=torch.float64) if start is None else start
    metric = of_predictions(name, params, classes)

    def loss(prediction: Tensor) -> float:
        found = metric.by_row(prediction, y, w)
        return metric.sign * float(found.mean() if metric.value is None else metric.value(found, y, w))

    cuts = best_thresholds(loss, start, p)
    assert float(cuts.sum()) == pytest.approx(1)
    return cuts, *(loss((p / each).argmax(1).double()) for each in (start, cuts))  # type: ignore[return-value]


@pytest.mark.parametrize("start", [None, [0.7, 0.3], [1.0, 0.0], [0.0, 1.0]])
def test_costs_decide_the_threshold(start: list[float] | None) -> None:
    """The threshold that costs less if probabilities are right is 1 / (1 + 8) (Elkan 2001)."""
    costs = {"costs": [[0.0, 1.0], [8.0, 0.0]]}
    cuts, before, after = best("expectedCost", costs, 2, None if start is None else tensor(start))
    assert 0.08 < float(cuts[1]) < 0.15 and after < before


@pytest.mark.parametrize("costs", [[[0, 1, 1], [9, 0, 9], [1, 1, 0]], [[0, 1, 1], [1, 0, 1], [20, 4, 0]]])
def test_several_classes_get_one_each(costs: list[list[float]]) -> None:
    cuts, before, after = best("expectedCost", {"costs": costs}, 3)
    dear = max(range(3), key=lambda k: sum(costs[k]))
    assert int(cuts.argmin()) == dear and after < 0.8 * before


@pytest.mark.parametrize("name", ["f1", "recallByLabel", "weightedFMeasure", "hammingLoss"])
def test_any_metric_of_decisions_decides(name: str) -> None:
    _, before, after = best(name, {"metricLabel": 1.0, "beta": 2.0}, 2)
    assert after <= before


def test_each_step_decides_as_spark_does() -> None:
    """The largest quotient decides, and the first of equal ones; probabilities may be equal, or zero."""
    random, p = (
        torch.Generator().manual_seed(2),
        torch.randint(0, 4, (300, 4), generator=torch.Generator().manual_seed(3)) / 4,
    )
    start, seen = torch.tensor([0.25, 0.25, 0.5, 0.125], dtype=torch.float64), list[Tensor]()

    def loss(prediction: Tensor) -> float:
        seen.append(prediction)
        return float(torch.rand(1, generator=random))

    best_thresholds(loss, start, p.double())
    for step, found in zip(STEPS, seen, strict=False):
        cuts = start * torch.tensor([1.0, step, 1.0, 1.0], dtype=torch.float64)
        assert torch.equal(found, (p.double() / cuts).argmax(1).double())


def test_what_nothing_improves_stays_as_it_is() -> None:
    """Also where many thresholds are as good: that of now is the nearest."""
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    for start in ([0.5, 0.5], [0.4, 0.6], [0.25, 0.75]):
        now = torch.tensor(start, dtype=torch.float64)
        assert torch.equal(best_thresholds(lambda found: float(found[0] != 0) + float(found[1] != 1), now, p), now)


def of(head: Any, **options: Any) -> Metric:
    o = Options.of({"lossParams": {"costs": [[0.0, 1.0], [5.0, 0.0]]}, "loss": "cost", **options})
    return metrics.resolve(o, losses.resolve(o.loss, o.lossParams, head, COLUMNS, stats()), head, COLUMNS, stats())


def test_a_metric_decides_as_each_pipeline_does() -> None:
    margin, label, weight = tensor([-3.0, -1.0, 1.0]), tensor([0.0, 1.0, 1.0]), tensor([1.0, 1.0, 0.0])
    metric = of(logistic())
    assert metric.by_row(margin, label, weight).tolist() == [0.0, 5.0, 0.0]
    assert metric.of(logistic(threshold=0.2)).by_row(margin, label, weight).tolist() == [0.0, 0.0, 0.0]
    assert metric.of(logistic(threshold=0.01)).by_row(margin, label, weight).tolist() == [1.0, 0.0, 0.0]
    f1 = of(logistic(), metric="f1")
    assert f1.of(logistic(threshold=0.01)).by_row(margin, label, weight).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"metric": "areaUnderROC"},
            "metric='areaUnderROC' does not depend on decisions, and a threshold changes only",
        ),
        ({"metric": "logLoss"}, "metric='logLoss' does not depend on decisions"),
        (
            {"loss": "auto", "lossParams": {}},
            "metric='logLoss' does not depend on .* set metric to one of expectedCost, f1,",
        ),
    ],
)
def test_a_metric_that_no_threshold_changes_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        of(logistic(), tune="threshold", **options)


def test_thresholds_are_what_the_last_stage_reads() -> None:
    cuts = tensor([0.75, 0.25])
    assert logistic().threshold_params(cuts) == {"threshold": 0.25}
    assert logistic(rows=2).threshold_params(cuts) == {"thresholds": [0.75, 0.25]}
    assert logistic(threshold=0.2).decides_by().tolist() == [0.8, 0.2]
    assert logistic(rows=2, thresholds=[3.0, 1.0]).decides_by().tolist() == [0.75, 0.25]
