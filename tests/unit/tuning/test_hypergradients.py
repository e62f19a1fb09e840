"""Derivatives by penalties: the implicit ones equal finite differences and unrolled ones, for every family."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from sparkdiff.tuning.hypergradients import LinearModel, choose_alternatives, linear_model, point, tune_penalties
from sparkdiff.tuning.hypergradients.gates import improve_positions
from sparkdiff.tuning.hypergradients.penalties import lu_factors, lu_solve
from sparkdiff.tuning.solvers import Setting
from tests.support.linear_rows import Rows, rows

GROUP = torch.tensor([0, 0, 1, 2, 1])
FAMILIES = [
    ("LinearRegression", "auto", None),
    ("LogisticRegression", "auto", None),
    ("LogisticRegression", "multinomial", None),
    ("GeneralizedLinearRegression", "gaussian", None),
    ("GeneralizedLinearRegression", "poisson", None),
    ("GeneralizedLinearRegression", "binomial", None),
    ("GeneralizedLinearRegression", "binomial", "probit"),
    ("GeneralizedLinearRegression", "gamma", "log"),
]


def drawn(kind: str, family: str, n: int = 160) -> tuple[Rows, int]:
    """Labels drawn from a model of the family, with weights and held-out rows; a Poisson one with an offset."""
    data, draw = rows(1, "", n), np.random.default_rng(0)
    data = dataclasses.replace(data, fold=np.where(data.fold == 0, 0, -1))
    margin = 0.3 * data.x @ np.linspace(-1, 1, 5) / data.x.std()
    if kind == "LogisticRegression":
        classes = 3 if family == "multinomial" else 2
        label = (np.stack([margin * k for k in range(classes)], 1) + draw.gumbel(size=(n, classes))).argmax(1)
        return dataclasses.replace(data, label=label.astype(float)), classes
    label = {
        "auto": lambda: 50 + 10 * margin + draw.normal(size=n),
        "gaussian": lambda: 3 + margin + draw.normal(size=n),
        "poisson": lambda: draw.poisson(np.exp(margin)).astype(float),
        "binomial": lambda: (draw.random(n) < 1 / (1 + np.exp(-margin))).astype(float),
        "gamma": lambda: draw.gamma(3, np.exp(margin) / 3) + 0.01,
    }[family]()
    return dataclasses.replace(data, label=label, offset=draw.normal(size=n) / 10 if family == "poisson" else None), 0


def model_of(
    kind: str, family: str, link: str | None = None, intercept: bool = True, standardization: bool = True
) -> LinearModel:
    data, classes = drawn(kind, family)
    setting = Setting(0.1, 0.0, intercept, standardization, family=family, link=link)
    model = linear_model(kind, data.chunks, setting, GROUP, classes)
    assert model is not None
    return model


def unrolled(
    model: LinearModel, logs: torch.Tensor, start: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss on held-out rows after so many steps from these weights, and its derivative by `logs` through all the steps."""
    at = logs.detach().clone().requires_grad_()
    ridge = model.ridge(at)
    factors = lu_factors(model.jacobian(start, ridge.detach()))
    weights = start
    for _ in range(steps):
        weights = weights - lu_solve(factors, model.slope(weights, ridge))
    loss = model.loss(weights)
    return loss.detach(), torch.autograd.grad(loss, at)[0]


@pytest.mark.parametrize(("kind", "family", "link"), FAMILIES)
def test_implicit_equals_finite_differences_and_unrolled(kind: str, family: str, link: str | None) -> None:
    for intercept, standardization in itertools.product((True, False), repeat=2):
        model = model_of(kind, family, link, intercept, standardization)
        start = model.weights_of(model.at_once([0.1])[0])
        logs = torch.full((3,), math.log(0.1), dtype=torch.float64)
        slope = model.slope(start, model.ridge(logs))  # with equal penalties the solution is Spark's
        assert float(slope.abs().max() / model.size(start)) < 1e-9
        logs += torch.tensor([0.5, -1.0, 2.0])
        at = point(model, logs, start)
        assert at is not None
        differences = torch.zeros_like(logs)
        for g in range(3):
            step = torch.zeros_like(logs)
            step[g] = 1e-4
            above, below = point(model, logs + step, at), point(model, logs - step, at)
            assert above is not None and below is not None
            differences[g] = (above.loss - below.loss) / 2e-4
        loss, through_steps = unrolled(model, logs, start, 40)
        assert float(loss) == pytest.approx(at.loss, rel=1e-8)
        scale = float(at.gradient.abs().max())
        assert at.gradient.numpy() == pytest.approx(differences.numpy(), abs=1e-5 * scale)
        assert at.gradient.numpy() == pytest.approx(through_steps.numpy(), abs=1e-4 * scale)


@pytest.mark.parametrize(("kind", "family"), [("LinearRegression", "auto"), ("LogisticRegression", "multinomial")])
def test_a_penalty_per_group_is_a_scale_of_columns(kind: str, family: str) -> None:
    """What the estimator that is shipped relies on: Spark's own fit of scaled columns has these weights."""
    model = model_of(kind, family)
    logs = torch.tensor([-1.0, 0.5, -3.0], dtype=torch.float64)
    at = point(model, logs, model.weights_of(model.at_once([0.1])[0]))
    assert at is not None
    scale = model.scale_of_columns(logs, 0.1)
    data, classes = drawn(kind, family)
    setting = dataclasses.replace(model.setting, standardization=False)
    scaled = dataclasses.replace(data, x=data.x * scale.numpy())
    other = linear_model(kind, scaled.chunks, setting, torch.zeros(5, dtype=torch.long), classes)
    assert other is not None
    [solution] = other.at_once([0.1])
    expected = model.weights_of(dataclasses.replace(solution, coefficients=solution.coefficients * scale))
    assert at.weights.numpy() == pytest.approx(expected.numpy(), rel=1e-7, abs=1e-9)


def test_penalties_find_the_columns_that_matter() -> None:
    """Of 40 columns 3 matter; one penalty for all of them is worse on new rows."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(600, 40))
    x[:, 39] = 1.0  # a constant column has no weight
    y = x[:, :3].sum(1) + draw.normal(size=600)
    fold = np.arange(600) % 3 - 1
    group = torch.tensor([0] * 3 + [1] * 37)
    tuning = Rows(x[fold < 1], y[fold < 1], np.ones((fold < 1).sum()), fold[fold < 1])
    model = linear_model("LinearRegression", tuning.chunks, Setting(), group)
    assert model is not None
    found = tune_penalties(model, [0.01, 0.1, 1.0], steps=30)
    assert found is not None
    kept, others = found.best.logs.tolist()
    assert others > kept + 2
    assert found.best.loss < found.single.loss == found.losses[0]

    def error(weights: torch.Tensor) -> float:
        new = fold == 1
        z = (torch.from_numpy(x[new]) - model.table.centre) / model.table.scale
        margin = z @ weights[0, :-1] + weights[0, -1]
        return float(((margin.numpy() - y[new]) ** 2).mean())

    assert error(found.best.weights) < error(found.single.weights)
    assert found.best.weights[0, 39] == 0


def test_gates_choose_what_held_out_rows_prefer() -> None:
    """A square that matters beside the number alone, a category that doesn't matter beside nothing."""
    draw = np.random.default_rng(0)
    number, noise = draw.normal(size=900), draw.normal(size=(900, 30))
    y = draw.poisson(np.exp(0.5 * number**2 - 1)).astype(float)
    x = np.c_[noise[:, 0], number, number**2, number, noise[:, 1:]]
    group = torch.tensor([0, 1, 2, 2] + [3] * 29)
    fold = np.arange(900) % 2 - 1
    data = Rows(x, y, np.ones(900), fold)
    setting = Setting(family="poisson")
    model = linear_model("GeneralizedLinearRegression", data.chunks, setting, group)
    assert model is not None
    found = choose_alternatives(model, [[[1], [2]], [[3], []]], [1e-3, 1e-2, 1e-1], steps=15)
    assert found is not None
    assert found.positions == tuple(int(gate.argmax()) for gate in found.gates) == (1, 1)
    for start in ((0, 0), (0, 1), (1, 0)):
        assert improve_positions(model, [[[1], [2]], [[3], []]], start, [1e-3, 1e-2, 1e-1]) == (1, 1), (
            "wherever gates may end"
        )
    assert found.losses[-1] < found.losses[0]
    assert [float(share.sum()) for share in found.gates] == pytest.approx([1, 1])


def test_alternatives_are_judged_at_their_final_penalty() -> None:
    """Thirty columns that each matter a little: worth their errors where they are penalised, and not without a penalty."""
    draw = np.random.default_rng(0)
    wide, number = draw.normal(size=(900, 30)), draw.normal(size=900)
    y = 0.5 * number + wide @ draw.normal(size=30) * 0.25 + 2 * draw.normal(size=900)
    fold = np.where(np.arange(900) < 60, -1, 0)
    data = Rows(np.c_[number, wide], y, np.ones(900), fold)
    model = linear_model("LinearRegression", data.chunks, Setting(), torch.tensor([0] + [1] * 30))
    assert model is not None
    places, grid = [[[1], []]], [1e-6, 1e-3, 0.1, 1.0, 3.0]
    assert improve_positions(model, places, (0,), grid) == improve_positions(model, places, (1,), grid) == (0,)
    assert improve_positions(model, places, (0,), grid, fits=[1e-6]) == (1,)
    found = choose_alternatives(model, places, grid, steps=3, fits=[1e-6])
    assert found is not None
    assert found.positions == (1,)
