"""One more row that is predicted wrongly: what it costs, and which gains it would undo."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import Judgement, reason
from sparkdiff.evaluation.unseen_errors import UnseenErrorCost, costs, unseen, wrong_label
from sparkdiff.objectives import losses, metrics
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options
from tests.support.small_heads import glr, logistic, stats


def lost(margin: Tensor, label: Tensor) -> Tensor:
    """The log-loss of a margin of two classes."""
    return torch.nn.functional.softplus(torch.where(label > 0, -margin, margin))


def metric_of(name: str, head: Any) -> Metric:
    loss = losses.resolve("auto", {}, head, (), stats())
    return metrics.resolve(Options(metric=name), loss, head, (), stats())


def measured(old: Tensor, new: Tensor, weight: Tensor, head: Any, metric: str) -> Tensor:
    """The costs of rows in two batches, with these margins."""
    parts = [slice(0, len(new) // 2), slice(len(new) // 2, None)]
    batches = [(part, torch.zeros(len(new[part])), weight[part], None) for part in parts]
    data: Any = SimpleNamespace(batches=lambda split: iter(batches), values=lambda part: {"part": part})
    networks: list[Any] = [SimpleNamespace(head=head, margin=lambda v, m=m: m[v["part"]]) for m in (old, new)]
    return costs(*networks, data, "validation", metric_of(metric, head))


def test_a_row_costs_what_its_most_expensive_wrong_label_does() -> None:
    random = np.random.default_rng(0)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    old, new = torch.tensor(random.normal(size=(2, 6, 3)) * [[[1.0]], [[4.0]]])
    found = measured(old, new, weight, logistic(3, 3), "logLoss")
    first, second = (-torch.log_softmax(m, 1) for m in (old, new))
    rise = (second - first).scatter(1, new.argmax(1, keepdim=True), -torch.inf).amax(1) * weight
    torch.testing.assert_close(found, rise[weight > 0])
    found = measured(old[:, 0], new[:, 0], weight, logistic(), "logLoss")
    wrong = (new[:, 0] <= 0).double()
    torch.testing.assert_close(found, ((lost(new[:, 0], wrong) - lost(old[:, 0], wrong)) * weight)[weight > 0])


def test_a_wrong_label_is_never_the_predicted_one() -> None:
    old, new = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0))
    assert not (wrong_label(old, new) == new.argmax(1)).any()
    assert wrong_label(old[:, 0], torch.tensor([-1.0, 0.0, 2.0])).tolist() == [1, 1, 0]


@pytest.mark.parametrize(("metric", "head"), [("poisson", glr("poisson", "log")), ("areaUnderROC", logistic())])
def test_where_no_row_of_its_own_can_be_wrong_nothing_is_added(metric: str, head: Any) -> None:
    margin = torch.linspace(-1, 1, 6, dtype=torch.float64)
    found = measured(margin, 2 * margin, torch.ones(6, dtype=torch.float64), head, metric)
    assert unseen(1.0, found, None) is None


def sharpened(rows: int, times: float, errors: int = 0) -> tuple[guard.Verdict, UnseenErrorCost]:
    """The verdict about margins that become so many times as large on rows that are right but for a few."""
    random = np.random.default_rng(1)
    old = torch.tensor(random.choice([-1, 1], rows) * random.uniform(1, 4, rows))
    label = (old > 0).double()
    label[:errors] = 1 - label[:errors]
    new = times * old
    gains = lost(old, label) - lost(new, label)
    found = unseen(
        float(gains.sum()), measured(old, new, torch.ones(rows, dtype=torch.float64), logistic(), "logLoss"), None
    )
    assert found is not None
    return guard.decide(gains[None], torch.ones(rows)), found


def test_few_rows_cannot_prove_that_there_are_no_errors() -> None:
    verdict, found = sharpened(90, 5.0)
    assert verdict.accepted and found.undoes  # the test of gains alone would ship it
    assert found.cost == pytest.approx(16, rel=0.05)  # of margins near 4 that become 20
    verdict, found = sharpened(900, 5.0)
    assert verdict.accepted and not found.undoes  # ten times as many without an error
    verdict, found = sharpened(90, 1.1)
    assert verdict.accepted and not found.undoes  # hardly surer


def test_what_rows_have_shown_counts_beside_what_they_have_not() -> None:
    verdict, found = sharpened(900, 1.5, errors=20)
    assert verdict.accepted and not found.undoes
    verdict, _ = sharpened(900, 5.0, errors=20)
    assert not verdict.accepted


def test_a_few_rows_far_from_all_others_do_not_decide() -> None:
    ordinary = torch.linspace(0, 2, 98, dtype=torch.float64)
    found = unseen(5.0, torch.cat([ordinary, ordinary.new_tensor([1e6, 1e9])]), None)
    assert found is not None and found.cost <= 2 and not found.undoes


def test_a_gain_one_more_row_undoes_is_refused_with_reason() -> None:
    verdict, found = sharpened(90, 5.0)
    judgement = Judgement(verdict, 0.025, unseen=found)
    assert verdict.accepted and not judgement.accepted
    assert Judgement(verdict, 0.025, unseen=UnseenErrorCost(9.0, 2.0)).accepted
    why = reason(judgement, Options(), metric_of("logLoss", logistic()), 0.1)
    assert "one more row that is predicted as surely, and wrongly, would undo it" in why and "set numFolds=5" in why
