"""Losses that only one predictor has, and what predictors without probabilities, or with censored labels, refuse. No Spark."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.label_checks import check_label
from sparkdiff.objectives.losses import resolve
from sparkdiff.objectives.metrics import resolve as resolve_metric
from sparkdiff.objectives.objective import with_penalties
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.bayes import Bernoulli, Complement, LogOdds, Multinomial, NegativeLogProbabilities
from sparkdiff.stages.isotonic import FallingValues, IsotonicRegression, RisingValues
from sparkdiff.stages.one_vs_rest import OneVsRest
from sparkdiff.stages.predictor import Predictor
from tests.support.small_networks import bayes, logistic, normal, one_vs_rest, support_vector, survival

F64 = torch.float64
COLUMNS = ("rawPrediction", "prediction")


def stats(low: float = 0.0, high: float = 2.0, classes: int = 3) -> LabelStats:
    return LabelStats(1.0, 1.0, low, high, torch.full((classes,), 9))


def rows(loss: Any, head: Predictor, margin: Tensor, y: Tensor, **params: Any) -> Tensor:
    found = resolve(loss, params, head, COLUMNS, stats()).rows
    assert found is not None
    return found(margin, y, torch.ones_like(y))


def test_one_against_the_rest_is_the_models_own_losses_added_up() -> None:
    head, y = one_vs_rest(2), torch.tensor([0.0, 2.0, 1.0, 2.0], dtype=F64)
    margin = normal(4, 6)
    expected = sum(rows("logLoss", logistic(2), margin[:, 3 + k], (y == k).double()) for k in range(3))
    torch.testing.assert_close(rows("auto", head, margin, y), expected, rtol=1e-12, atol=1e-12)
    machines = OneVsRest([support_vector(2) for _ in range(3)], shown=OneVsRest.SHOWN, by_array=False)
    expected = sum(rows("hinge", support_vector(2), margin[:, 3 + k], (y == k).double()) for k in range(3))
    torch.testing.assert_close(rows("auto", machines, margin, y), expected, rtol=1e-12, atol=1e-12)


def test_one_against_the_rest_decides_by_raw_predictions() -> None:
    head, margin = one_vs_rest(2), normal(50, 6)
    assert head.decision(margin).tolist() == margin[:, :3].argmax(1).tolist()
    y = torch.arange(50).double() % 3
    before = rows("hinge", head, margin, y)
    margin[:, 3:] += 1
    torch.testing.assert_close(rows("hinge", head, margin, y), before)


@pytest.mark.parametrize("by_array", [False, True])
def test_not_a_number_among_the_scores(by_array: bool) -> None:
    head, nan = one_vs_rest(2), torch.nan
    head.by_array = by_array
    margin = torch.tensor([[nan, 1.0, 2.0], [1.0, nan, 2.0], [1.0, nan, nan], [nan] * 3], dtype=F64)
    assert head.decision(margin.repeat(1, 2)).tolist() == ([2.0, 2.0, 0.0, -1.0] if by_array else [0.0, 2.0, 0.0, 0.0])


def test_the_censored_weibull_loss_has_the_gradient_of_spark() -> None:
    head, y = survival(1), torch.tensor([0.5, 3.0, 2.0], dtype=F64)
    margin = torch.tensor([[0.1, -0.3, 1.0], [0.7, -0.3, 0.0], [0.2, -0.3, 1.0]], dtype=F64).requires_grad_()
    rows("auto", head, margin, y).sum().backward()
    assert margin.grad is not None
    eta, log_scale, seen = margin.detach().T
    e = (y.log() - eta) / log_scale.exp()
    torch.testing.assert_close(margin.grad[:, 0], (seen - e.exp()) / log_scale.exp())  # AFTAggregator's formulas
    torch.testing.assert_close(margin.grad[:, 1], seen + (seen - e.exp()) * e)
    assert margin.grad[:, 2].tolist() == [0.0] * 3


@pytest.mark.parametrize("value", [0.5, 2.0, torch.nan])
def test_a_censor_is_0_or_1(value: float) -> None:
    censor = torch.tensor([1.0, value], dtype=F64)
    with pytest.raises(
        InputError, match=r"survival: censorCol='censor' holds .*, but must be 1 if the event was observed and 0"
    ):
        survival(1).margin(torch.zeros(2, 1, dtype=F64), censor)


@pytest.mark.parametrize("loss", ["logLoss", "focal", "mmce", {"hinge": 1.0, "mmce": 1.0}])
@pytest.mark.parametrize("head", [support_vector(2), one_vs_rest(2)], ids=["SVC", "OneVsRest"])
def test_no_loss_of_probabilities_without_probabilities(head: Predictor, loss: Any) -> None:
    with pytest.raises(
        InputError, match=f"needs probabilities, which {type(head).__name__} doesn't output; use one of"
    ):
        resolve(loss, {}, head, COLUMNS, stats())


def test_what_else_needs_probabilities() -> None:
    head = support_vector(2)
    objective = resolve("auto", {}, head, COLUMNS, stats())
    assert objective.name == "hinge"
    assert objective.calibrated  # there is nothing to be spoilt
    with pytest.raises(InputError, match="'brier' measures probabilities, which LinearSVC doesn't output"):
        resolve_metric(Options.of({"metric": "brier"}), objective, head, COLUMNS, stats())
    with pytest.raises(InputError, match="parityGap compares probabilities, which LinearSVC doesn't output"):
        with_penalties(objective, {"parityGap": {"g": 1.0}}, head, stats(), ["g"])
    for metric in ("areaUnderROC", "accuracy", "f1"):
        assert resolve_metric(Options.of({"metric": metric}), objective, head, COLUMNS, stats()).larger


@pytest.mark.parametrize("loss", ["squared", "absolute", "quantile", "poisson", "logLoss"])
def test_a_regression_loss_would_ignore_the_censoring(loss: str) -> None:
    with pytest.raises(
        InputError, match=f"loss='{loss}' on AFTSurvivalRegression would treat censored labels as events"
    ):
        resolve(loss, {}, survival(1), ("prediction",), stats())


@pytest.mark.parametrize(("loss", "own"), [("weibull", "logLoss"), ("oneVsRest", "logLoss")])
def test_an_own_loss_is_nobody_else_s(loss: str, own: str) -> None:
    with pytest.raises(InputError, match=f"loss='{loss}' is not a loss of LogisticRegression; its own loss is '{own}'"):
        resolve(loss, {}, logistic(2), COLUMNS, stats())


def test_times_are_positive() -> None:
    objective = resolve("auto", {}, survival(1), ("prediction",), stats())
    check_label(objective, survival(1), stats(low=1e-9), "t")
    with pytest.raises(
        InputError, match=r"label column 't' holds 0.0, but weibull on AFTSurvivalRegression needs times > 0"
    ):
        check_label(objective, survival(1), stats(low=0.0), "t")


# Constraints ----------------------------------------------------------------------------------------------------------


def test_probabilities_of_a_feature_stay_probabilities() -> None:
    start = torch.tensor([[-1e-12, -0.5, -40.0], [-1e-3, -700.0, -1.0]], dtype=F64)
    map_ = LogOdds()
    assert torch.equal(map_.value(start, torch.zeros(1, 2, 3, dtype=F64))[0], start)
    move = 5 * normal(4, 2, 3)
    value = map_.value(start, move)
    assert bool((value < 0).all())
    torch.testing.assert_close(map_.move_between(start, value[0]), move[0], rtol=1e-3, atol=1e-3)
    for at in (torch.zeros(1, 2, 3, dtype=F64), move[:1]):
        gradient = map_.gradient(start, at, map_.value(start, at), torch.ones(1, 2, 3, dtype=F64))
        step = 1e-6
        numeric = (map_.value(start, at + step) - map_.value(start, at - step)) / (2 * step)
        torch.testing.assert_close(gradient, numeric, rtol=1e-5, atol=1e-8)


def test_shares_with_a_minus_keep_their_total() -> None:
    start, move = -torch.log_softmax(normal(2, 5), 1), 3 * normal(3, 2, 5, seed=1)
    assert torch.equal(NegativeLogProbabilities().value(start, 0 * move)[0], start)
    torch.testing.assert_close(
        (-NegativeLogProbabilities().value(start, move)).exp().sum(-1), torch.ones(3, 2, dtype=F64)
    )
    grown = NegativeLogProbabilities().value(start, torch.eye(5, dtype=F64)[:1, None])[0] - start
    assert bool((grown[:, 0] > 0).all() & (grown[:, 1:] < 0).all())  # a larger move is a larger parameter


@pytest.mark.parametrize(("map_", "sign"), [(RisingValues(), 1), (FallingValues(), -1)])
def test_curves_stay_monotone(map_: RisingValues, sign: int) -> None:
    start = sign * torch.tensor([-1.0, -1.0, 0.3, 0.3 + 1e-16, 7.0, 7.0], dtype=F64)
    assert torch.equal(map_.value(start, torch.zeros(1, 6, dtype=F64))[0], start)
    value = map_.value(start, 30 * normal(200, 6))
    assert bool((sign * value.diff(dim=-1) >= 0).all())
    assert torch.equal(value[:, 0], value[:, 1])  # a plateau stays one
    torch.testing.assert_close(map_.move_between(start, map_.value(start, normal(1, 6))[0])[:1], normal(1, 6)[0, :1])


def test_nothing_in_front_of_counts_may_train() -> None:
    assert not bayes(Multinomial, 3).differentiable
    assert not OneVsRest([bayes(Bernoulli, 3, 2)] * 2, shown=OneVsRest.SHOWN, by_array=False).differentiable
    assert one_vs_rest(3).differentiable


def test_log_probabilities_are_checked() -> None:
    module = bayes(Multinomial, 3)
    module.check_domain("nb_1")
    with torch.no_grad():
        module.theta[1, 2] -= 0.1
    module.check_domain("nb_1")  # shares needn't add up to 1: Spark computes as well
    with torch.no_grad():
        module.theta[1, 2] = 0.1
    with pytest.raises(InputError, match=r"nb_1: theta must hold logarithms of probabilities, but an entry is 0\.1"):
        module.check_domain("nb_1")
    complement = bayes(Complement, 3)
    with torch.no_grad():
        complement.theta.neg_()
        complement.check_domain("nb_1")
        complement.theta[0, 0] = -0.1
    with pytest.raises(InputError, match=r"theta must hold minus logarithms of probabilities, but an entry is -0\.1"):
        complement.check_domain("nb_1")
    bernoulli = bayes(Bernoulli, 3)
    with torch.no_grad():
        bernoulli.theta[0, 0] = 0.0
    with pytest.raises(
        InputError, match=r"nb_2: theta must hold logarithms of probabilities, < 0, but an entry is 0.0"
    ):
        bernoulli.check_domain("nb_2")


# A curve's slopes -----------------------------------------------------------------------------------------------------


def test_a_curve_s_slope_is_what_its_input_gets() -> None:
    b, y = torch.tensor([0.0, 1.0, 1.0, 3.0], dtype=F64), torch.tensor([5.0, 6.0, 8.0, 10.0], dtype=F64)
    curve = IsotonicRegression(b, y, True, 0, "curve")
    x = torch.tensor([-1.0, 0.25, 2.0, 9.0, 3.0, torch.nan], dtype=F64).requires_grad_()
    out = curve.margin(x)
    assert out.tolist() == [5.0, 5.25, 9.0, 10.0, 10.0, 10.0]
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0, 0.5, 0.0]  # on the last boundary the mean of both sides
    gradient = curve.predictions.grad
    assert gradient is not None
    assert gradient.tolist() == [1.75, 0.25, 0.5, 3.5]


def test_an_unsorted_curve_is_refused() -> None:
    curve = IsotonicRegression(torch.arange(2).double(), torch.tensor([1.0, 0.0], dtype=F64), True, 0, "curve")
    with pytest.raises(InputError, match=r"curve: predictions must rise between boundaries, but 1.0 comes before 0.0"):
        curve.check_domain("curve")
