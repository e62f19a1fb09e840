"""Losses against independent references, their gradients, and what happens where a mean may be <= 0. No Spark session."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.formulas import half_deviance
from sparkdiff.objectives.label_checks import check_label
from sparkdiff.objectives.losses import REGRESSION, resolve
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression
from sparkdiff.stages.predictor import Predictor

Array = NDArray[np.float64]
NONE = torch.empty(0, dtype=torch.int64)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def label(y: Tensor | None = None, classes: Tensor = NONE) -> LabelStats:
    y = tensor([0.0, 1.0, 2.0, 7.0]) if y is None else y
    return LabelStats(float(y.mean()), float(y.std(correction=0)), float(y.min()), float(y.max()), classes)


def linear(epsilon: float | None = None, scale: float = 1.0) -> LinearRegression:
    return LinearRegression(tensor([1.0]), tensor(0.0), scale, True, epsilon)


def glr(family: str, link: str, *, link_power: float = float("nan"), power: float = float("nan")) -> Predictor:
    return GeneralizedLinearRegression(
        tensor([1.0]),
        tensor(0.0),
        True,
        family=family,
        link=link,
        link_power=link_power,
        variance_power=power,
        shows_link=False,
    )


def logistic(rows: int, classes: int) -> LogisticRegression:
    return LogisticRegression(
        torch.zeros(rows, 1, dtype=torch.float64),
        torch.zeros(rows, dtype=torch.float64),
        True,
        num_classes=classes,
        thresholds=None,
        threshold=0.5,
        bounds={},
        shown=LogisticRegression.SHOWN,
        uid="logreg",
    )


def rows(loss: Any, head: Predictor, margin: Tensor, y: Tensor, **params: float) -> Tensor:
    columns = {0: ("prediction",)}.get(head.classes, ("raw", "p", "prediction"))
    return resolve(loss, params, head, columns, label(y)).rows(margin, y, torch.ones_like(y))


def integrated(y: Array, mu: Array, power: float) -> Array:
    """Half the unit deviance by its definition: the integral of (y - t) / t^power from mu to y."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = (y - mu)[:, None] / 2 * nodes + ((y + mu) / 2)[:, None]
    return ((y[:, None] - t) / t**power) @ weights * (y - mu) / 2


RANDOM = np.random.default_rng(0)
Y, MU = RANDOM.gamma(2.0, 2.0, 50) + 0.3, RANDOM.gamma(3.0, 1.0, 50) + 0.5


@pytest.mark.parametrize(("name", "power"), [("poisson", 1.0), ("gamma", 2.0), ("tweedie", 1.5), ("tweedie", 2.7)])
def test_deviances_are_the_integral_that_defines_them(name: str, power: float) -> None:
    head = glr("poisson", "log")
    given = {"power": power} if name == "tweedie" else {}
    found = rows(name, head, tensor(np.log(MU)), tensor(Y), **given)
    np.testing.assert_allclose(found.numpy(), integrated(Y, MU, power), rtol=1e-10, atol=1e-12)
    assert bool((found >= 0).all())
    np.testing.assert_allclose(rows(name, head, tensor(np.log(Y)), tensor(Y), **given), 0, atol=1e-12)


def test_deviances_are_half_of_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    head, margin = glr("poisson", "log"), tensor(np.log(MU))
    counts = np.round(Y) * (Y > 1)  # zeros among them
    assert (counts == 0).any()
    for found, reference in (
        (rows("poisson", head, margin, tensor(counts)), metrics.mean_poisson_deviance(counts, MU)),
        (rows("gamma", head, margin, tensor(Y)), metrics.mean_gamma_deviance(Y, MU)),
        (rows("tweedie", head, margin, tensor(counts)), metrics.mean_tweedie_deviance(counts, MU, power=1.5)),
        (rows("tweedie", head, margin, tensor(Y), power=3.0), metrics.mean_tweedie_deviance(Y, MU, power=3.0)),
        (rows("tweedie", head, margin, tensor(counts), power=1.0), metrics.mean_poisson_deviance(counts, MU)),
        (rows("tweedie", head, margin, tensor(Y), power=2.0), metrics.mean_gamma_deviance(Y, MU)),
    ):
        assert float(found.mean()) == pytest.approx(reference / 2, rel=1e-12)


def test_a_poisson_label_of_zero() -> None:
    head = glr("poisson", "log")
    assert rows("poisson", head, tensor([0.7]), tensor([0.0])).item() == pytest.approx(np.exp(0.7), rel=1e-15)


def test_losses_of_the_difference() -> None:
    y, m = tensor([1.0, 2.0, 3.0, -4.0]), tensor([1.5, 2.0, -2.0, 1.0])
    miss = (y - m).numpy()
    np.testing.assert_array_equal(rows("squared", linear(), m, y), miss**2)
    np.testing.assert_array_equal(rows("absolute", linear(), m, y), np.abs(miss))
    for tau in (0.5, 0.9, 0.1):
        pinball = np.where(miss > 0, tau * miss, (tau - 1) * miss)
        np.testing.assert_allclose(rows("quantile", linear(), m, y, tau=tau), pinball, rtol=1e-15)
    for delta in (0.7, 3.0):
        huber = np.where(np.abs(miss) <= delta, miss**2 / 2, delta * (np.abs(miss) - delta / 2))
        np.testing.assert_allclose(rows("huber", linear(), m, y, delta=delta), huber, rtol=1e-15)
    np.testing.assert_array_equal(rows("quantile", linear(), m, y), np.abs(miss) / 2)  # the median by default


def test_huber_of_a_fitted_model_has_its_own_delta() -> None:
    head, y, m = linear(epsilon=1.5, scale=2.0), tensor([0.0, 10.0]), tensor([1.0, 0.0])
    np.testing.assert_allclose(rows("auto", head, m, y), [0.5, 3 * (10 - 1.5)])


def test_log_losses() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    margin, y = tensor(RANDOM.normal(size=40) * 3), tensor(RANDOM.integers(0, 2, 40))
    p = 1 / (1 + np.exp(-margin.numpy()))
    assert float(rows("logLoss", logistic(1, 2), margin, y).mean()) == pytest.approx(metrics.log_loss(y, p), rel=1e-12)
    softmax = RANDOM.normal(size=(40, 4))
    digit = RANDOM.integers(0, 4, 40)
    e = np.exp(softmax)
    reference = metrics.log_loss(digit, e / e.sum(1, keepdims=True), labels=range(4))
    assert float(rows("logLoss", logistic(4, 4), tensor(softmax), tensor(digit)).mean()) == pytest.approx(reference)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog"])
def test_log_loss_of_a_binomial_regression_is_its_half_deviance(link: str) -> None:
    norm = torch.distributions.Normal(0.0, 1.0)
    unlink: dict[str, Callable[[Tensor], Tensor]] = {
        "logit": torch.sigmoid,
        "probit": norm.cdf,
        "cloglog": lambda m: 1 - torch.exp(-torch.exp(m)),
    }
    margin, y = tensor(RANDOM.normal(size=30)), tensor(RANDOM.random(30).round(1))  # shares, 0 and 1 too
    p = unlink[link](margin).numpy()
    share = y.numpy()
    with np.errstate(all="ignore"):
        reference = -np.where(share > 0, share * np.log(p), 0) - np.where(share < 1, (1 - share) * np.log(1 - p), 0)
    np.testing.assert_allclose(rows("auto", glr("binomial", link), margin, y), reference, rtol=1e-7)


def test_log_loss_of_a_large_margin_is_the_margin() -> None:
    y = tensor([0.0, 1.0])
    np.testing.assert_allclose(rows("logLoss", logistic(1, 2), tensor([800.0, -800.0]), y), [800, 800])
    two = tensor([[0.0, 800.0], [800.0, 0.0]])
    np.testing.assert_allclose(rows("logLoss", logistic(2, 2), two, y), [800, 800])


HEADS = {
    "linear": linear(),
    "log": glr("poisson", "log"),
    "sqrt": glr("poisson", "sqrt"),
    "identity": glr("gamma", "identity"),
    "inverse": glr("gamma", "inverse"),
    "power": glr("tweedie", "power", link_power=0.3, power=1.5),
}


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("name", REGRESSION)
def test_gradients_of_regression_losses(name: str, head: str) -> None:
    margin = tensor(RANDOM.uniform(0.4, 1.5, 12)).requires_grad_()
    y = tensor(RANDOM.uniform(1.6, 4.0, 12))
    params = {"huber": {"delta": 0.7}, "quantile": {"tau": 0.8}}.get(name, {})
    assert torch.autograd.gradcheck(lambda m: rows(name, HEADS[head], m, y, **params), (margin,))


@pytest.mark.parametrize(
    ("head", "shape"),
    [(logistic(1, 2), ()), (logistic(2, 2), (2,)), (logistic(3, 3), (3,)), (glr("binomial", "probit"), ())],
)
def test_gradients_of_log_losses(head: Predictor, shape: tuple[int, ...]) -> None:
    margin = tensor(RANDOM.normal(size=(12, *shape))).requires_grad_()
    y = tensor(RANDOM.integers(0, max(head.classes, 2), 12))
    assert torch.autograd.gradcheck(lambda m: rows("auto", head, m, y), (margin,))


# Means that may be <= 0 -------------------------------------------------------------------------------------------------

POWERS = [(1.0, 0.0), (1.0, 3.0), (1.5, 0.0), (1.5, 2.0), (2.0, 1.0), (2.7, 0.5)]


def slope(mu: Tensor, y: float, power: float, floor: float) -> Tensor:
    mu = mu.clone().requires_grad_()
    half_deviance(mu, torch.full_like(mu, y), power, floor).sum().backward()
    assert mu.grad is not None
    return mu.grad


@pytest.mark.parametrize(("power", "y"), POWERS)
def test_below_the_floor_value_and_slope_go_on(power: float, y: float) -> None:
    floor, step = 0.01, 1e-9
    around = tensor([floor * (1 - step), floor * (1 + step)])
    below, above = half_deviance(around, tensor([y, y]), power, floor)
    assert below.item() == pytest.approx(above.item(), rel=1e-6)
    left, right = slope(around, y, power, floor)
    assert left.item() == pytest.approx(right.item(), rel=1e-6)
    away = tensor([0.02, 1.0, 5.0])
    assert torch.equal(
        half_deviance(away, torch.full_like(away, y), power, floor),
        half_deviance(away, torch.full_like(away, y), power),
    )


@pytest.mark.parametrize(("power", "y"), POWERS)
def test_a_mean_below_zero_is_never_rewarded(power: float, y: float) -> None:
    floor = 0.01
    mu = torch.linspace(-100, 0, 1001, dtype=torch.float64)
    assert bool((slope(mu, y, power, floor) <= 1e-12).all())  # the loss falls all the way up to 0
    values = half_deviance(mu, torch.full_like(mu, y), power, floor)
    assert bool(values.isfinite().all())
    assert bool((values[1:] <= values[:-1]).all())


def test_the_floor_is_there_where_a_mean_may_be_negative() -> None:
    y = label()
    for head, name in (
        (linear(), "poisson"),
        (linear(), "gamma"),
        (glr("gamma", "identity"), "auto"),
        (glr("poisson", "identity"), "auto"),
    ):
        assert resolve(name, {}, head, ("prediction",), y).floor == pytest.approx(1e-3 * y.mean)
    for head, name in ((glr("poisson", "log"), "auto"), (glr("gamma", "inverse"), "auto"), (linear(), "squared")):
        assert resolve(name, {}, head, ("prediction",), y).floor is None


def test_a_negative_linear_prediction_pays_and_is_pushed_up() -> None:
    margin = tensor([-5.0, 2.0]).requires_grad_()
    loss = rows("poisson", linear(), margin, tensor([3.0, 2.0]))
    loss.sum().backward()
    assert loss[0] > 100 > 1 > loss[1] >= 0
    assert margin.grad is not None
    assert margin.grad[0] < 0


def test_labels_that_are_all_zero_have_a_floor_too() -> None:
    margin, y = tensor([-1.0, 0.5]), torch.zeros(2, dtype=torch.float64)
    assert bool(rows("poisson", linear(), margin, y).isfinite().all())


# Which loss, and for whom -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (linear(), "squared"),
        (linear(epsilon=1.35), "huber"),
        (glr("gaussian", "identity"), "squared"),
        (glr("poisson", "log"), "poisson"),
        (glr("gamma", "inverse"), "gamma"),
        (glr("binomial", "logit"), "logLoss"),
        (glr("tweedie", "power", link_power=0.3, power=1.5), "tweedie"),
        (logistic(1, 2), "logLoss"),
        (logistic(3, 3), "logLoss"),
    ],
)
def test_auto_is_the_predictors_own_loss(head: Predictor, name: str) -> None:
    assert resolve("auto", {}, head, ("prediction",), label()).name == name


def test_tweedie_takes_the_models_power() -> None:
    head, margin, y = glr("tweedie", "log", power=1.2), tensor([0.3]), tensor([2.0])
    assert rows("auto", head, margin, y).item() == pytest.approx(integrated(np.array([2.0]), np.exp([0.3]), 1.2).item())
    assert rows("auto", head, margin, y, power=1.9).item() != rows("auto", head, margin, y).item()


def test_the_scale_frees_training_of_the_labels_unit() -> None:
    small, large = tensor([1.0, 2.0, 4.0]), tensor([1000.0, 2000.0, 4000.0])
    for name, params in (("squared", {}), ("absolute", {}), ("quantile", {}), ("huber", {"delta": 1.0})):
        one = resolve(name, params, linear(), ("prediction",), label(small))
        other = resolve(name, {k: 1000 * v for k, v in params.items()}, linear(), ("prediction",), label(large))
        weight = torch.ones(3, dtype=torch.float64)
        a = one.rows(small * 0.5, small, weight) * one.scale
        b = other.rows(large * 0.5, large, weight) * other.scale
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("head", [logistic(1, 2), logistic(3, 3), glr("binomial", "logit")])
def test_losses_that_redefine_probabilities_are_refused(head: Predictor, name: str) -> None:
    with pytest.raises(InputError, match=f"loss='{name}' on .*use 'logLoss'"):
        resolve(name, {}, head, ("prediction",), label())


@pytest.mark.parametrize("head", [linear(), glr("poisson", "log"), glr("gaussian", "identity")])
def test_log_loss_without_probabilities_is_refused(head: Predictor) -> None:
    with pytest.raises(InputError, match=r"needs probabilities, which .*Regression doesn't output; use one of squared"):
        resolve("logLoss", {}, head, ("prediction",), label())


@pytest.mark.parametrize(
    ("name", "params", "sentence"),
    [
        ("squared", {"delta": 1.0}, r"lossParams \['delta'\] are unknown to the loss 'squared'; it takes none"),
        ("huber", {"tau": 1.0}, r"\['tau'\] are unknown to the loss 'huber'; it takes \['delta'\]"),
        ("huber", {}, "'delta'.*Got None instead"),
        ("huber", {"delta": 0.0}, "'delta'.*Got 0.0 instead"),
        ("quantile", {"tau": 1.0}, r"'tau': in \(0, 1\).*Got 1.0 instead"),
        ("quantile", {"tau": 0.0}, "Got 0.0 instead"),
        ("tweedie", {"power": 0.5}, "'power': >= 1.*Got 0.5 instead"),
    ],
)
def test_wrong_loss_params_are_refused(name: str, params: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        resolve(name, params, linear(), ("prediction",), label())


CHECKS: list[tuple[str, dict[str, float], Predictor, list[float], str]] = [
    ("poisson", {}, glr("poisson", "log"), [-1.0, 2.0], "holds -1.0.*labels >= 0"),
    ("gamma", {}, glr("gamma", "inverse"), [0.0, 2.0], "holds 0.0.*labels > 0"),
    ("tweedie", {"power": 1.5}, linear(), [-0.5, 2.0], "holds -0.5.*labels >= 0"),
    ("tweedie", {"power": 2.0}, linear(), [0.0, 2.0], "holds 0.0.*labels > 0"),
    ("tweedie", {"power": 2.5}, linear(), [0.0, 2.0], "holds 0.0.*labels > 0"),
    ("logLoss", {}, glr("binomial", "logit"), [0.0, 1.5], "holds 1.5.*labels from 0 to 1"),
    ("logLoss", {}, glr("binomial", "probit"), [-0.5, 1.0], "holds -0.5.*labels from 0 to 1"),
    ("logLoss", {}, logistic(1, 2), [0.0, 2.0], "holds 2.0.*class indices 0 to 1"),
    ("logLoss", {}, logistic(3, 3), [-1.0, 2.0], "holds -1.0.*class indices 0 to 2"),
    ("logLoss", {}, logistic(3, 3), [0.0, 0.5, 2.0], "holds 0.5.*class indices 0 to 2"),
    (
        "logLoss",
        {},
        logistic(3, 3),
        [0.0, 3.0],
        "holds 3.0.*class indices 0 to 2: index the labels with a StringIndexer",
    ),
    ("logLoss", {}, logistic(3, 3), [1.0, 2.0, 3.0], "holds 3.0.*start at 1, so use bikers - 1, or .*StringIndexer"),
    ("logLoss", {}, logistic(1, 2), [-1.0, 1.0], r"holds -1.0.*seem to be -1 and 1, so use \(bikers \+ 1\) / 2"),
]


def checked(name: str, params: dict[str, float], head: Predictor, y: list[float]) -> None:
    stats = label(tensor(y))
    fractional = next((v for v in y if not v.is_integer()), None)
    check_label(resolve(name, params, head, ("prediction",), stats), head, stats, "bikers", fractional)


@pytest.mark.parametrize(("name", "params", "head", "y", "sentence"), CHECKS)
def test_labels_outside_of_what_a_loss_allows(
    name: str, params: dict[str, float], head: Predictor, y: list[float], sentence: str
) -> None:
    with pytest.raises(InputError, match=f"label column 'bikers' {sentence}"):
        checked(name, params, head, y)


@pytest.mark.parametrize(
    ("name", "params", "head", "y"),
    [
        ("poisson", {}, linear(), [0.0, 2.5]),
        ("tweedie", {"power": 1.9}, linear(), [0.0, 2.0]),
        ("gamma", {}, linear(), [0.1, 2.0]),
        ("logLoss", {}, glr("binomial", "logit"), [0.0, 0.3, 1.0]),
        ("logLoss", {}, logistic(3, 3), [0.0, 1.0, 2.0]),
        ("squared", {}, linear(), [-3.5, 5.0]),
        ("logLoss", {}, logistic(1, 2), [0.0, 0.0]),
    ],
)
def test_labels_that_a_loss_allows(name: str, params: dict[str, float], head: Predictor, y: list[float]) -> None:
    checked(name, params, head, y)


# Callables --------------------------------------------------------------------------------------------------------------


def asymmetric(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    miss = label - outputs["prediction"]
    return torch.where(miss > 0, 3 * miss, -miss)


def test_a_callable_gets_sparks_columns_by_name() -> None:
    y, margin = tensor([1.0, 4.0]), tensor([2.0, 1.0])
    objective = resolve(asymmetric, {}, linear(), ("prediction",), label(y))
    assert objective.name == f"{__name__}:asymmetric"
    np.testing.assert_array_equal(objective.rows(margin, y, torch.ones_like(y)), [1, 9])
    seen: dict[str, Tensor] = {}

    def classes(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
        seen.update(outputs)
        return 1 - outputs["p"].gather(1, label.long()[:, None])[:, 0]

    found = rows(classes, logistic(3, 3), tensor([[0.0, 1.0, 2.0]]), tensor([2.0]))
    assert found.item() == pytest.approx(1 - np.exp(2) / np.exp([0, 1, 2]).sum())
    assert {name: tuple(c.shape) for name, c in seen.items()} == {"raw": (1, 3), "p": (1, 3), "prediction": (1,)}


def column(outputs: Any, label: Tensor, weight: Tensor) -> Tensor:
    return label[:, None]


def number(outputs: Any, label: Tensor, weight: Tensor) -> float:
    return 1.0


def cut_off(outputs: Any, label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"].detach() - label) ** 2


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (column, r"column returned shape \(2, 1\)"),
        (number, r"number returned 1.0; it must return a torch tensor"),
        (functools.partial(column), r"functools:partial returned shape \(2, 1\)"),
    ],
)
def test_a_callable_must_return_one_value_per_row(loss: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        rows(loss, linear(), tensor([1.0, 2.0]), tensor([1.0, 2.0]))


def test_a_callable_must_let_gradients_through() -> None:
    y, margin = tensor([1.0, 2.0]), tensor([1.0, 2.0])
    rows(cut_off, linear(), margin, y)  # without gradients there is nothing to say against it
    with pytest.raises(InputError, match=r"no gradient passes through the loss .*cut_off"):
        rows(cut_off, linear(), margin.requires_grad_(), y)


def changed_label(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"] - label.log1p_()) ** 2


def changed_weight(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"] - label) ** 2 * weight.mul_(2)


def changed_output(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"].add_(1) - label) ** 2


def changed_later(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    """Not with the few rows that a loss is tried with before it is used."""
    return (outputs["prediction"] - (label.sub_(1) if len(label) > 2 else label)) ** 2


@pytest.mark.parametrize(
    ("loss", "what"),
    [(changed_label, "label"), (changed_weight, "weight"), (changed_output, "prediction"), (changed_later, "label")],
)
def test_a_callable_must_not_change_what_it_is_given(loss: Any, what: str) -> None:
    """The next candidate would train on the logarithm of the logarithm."""
    with pytest.raises(InputError, match=f"the loss .*{loss.__name__} changes '{what}' in place: use functions that"):
        rows(loss, linear(), tensor([1.0, 2.0, 3.0]), tensor([1.0, 2.0, 3.0]))


def test_a_callable_may_compute_in_float32() -> None:
    y, margin = tensor([1.0, 4.0]), tensor([2.0, 1.0]).requires_grad_()
    for whole in (False, True):
        objective = resolve(
            lambda o, y, w, whole=whole: (asymmetric(o, y, w).sum() if whole else asymmetric(o, y, w)).float(),
            {},
            linear(),
            ("prediction",),
            label(y),
        )
        loss = (
            objective.batch(margin, y, torch.ones_like(y), {})
            if whole
            else objective.rows(margin, y, torch.ones_like(y))
        )
        assert loss.dtype == torch.float64
        [slope] = torch.autograd.grad(loss.sum(), [margin])
        np.testing.assert_array_equal(slope, [1, -3])


@pytest.mark.parametrize("kind", [torch.complex128, torch.int64, torch.bool])
def test_a_callable_must_return_real_numbers(kind: torch.dtype) -> None:
    with pytest.raises(InputError, match=f"the loss .*lambda> returned a tensor of {kind}; its values must be real"):
        rows(lambda o, y, w: (o["prediction"] - y).to(kind), linear(), tensor([1.0, 2.0]), tensor([1.0, 2.0]))


def test_loss_params_of_a_callable_are_refused() -> None:
    with pytest.raises(InputError, match=r"lossParams \['delta'\]"):
        resolve(asymmetric, {"delta": 1.0}, linear(), ("prediction",), label())
