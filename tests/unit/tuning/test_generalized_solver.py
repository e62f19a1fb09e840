"""GeneralizedLinearRegression's fixed point: reweighted least squares give the same model again."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings as run, strategies as st

from sparkdiff.tuning.solvers import RowFacts, Setting, Solution, solve_generalized, solve_linear, why_left_to_spark
from tests.support.linear_rows import Array, Rows, kinds, rows, seeds

Function = Callable[[Array], Array]
MODELS: dict[tuple[str, str], tuple[Function, Function, Function]] = {
    # mean of the margin, derivative of the margin by the mean, variance of the mean
    ("poisson", "log"): (np.exp, lambda m: 1 / m, lambda m: m),
    ("gamma", "log"): (np.exp, lambda m: 1 / m, lambda m: m**2),
    ("binomial", "logit"): (lambda e: 1 / (1 + np.exp(-e)), lambda m: 1 / (m * (1 - m)), lambda m: m * (1 - m)),
    ("gaussian", "log"): (np.exp, lambda m: 1 / m, np.ones_like),
}
LABELS: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "poisson": lambda draw, mean: draw.poisson(mean) * 1.0,
    "gamma": lambda draw, mean: draw.gamma(2, mean / 2),
    "binomial": lambda draw, mean: (draw.random(len(mean)) < mean) * 1.0,
    # positive: Spark starts at the logarithm of the label
    "gaussian": lambda draw, mean: np.maximum(mean + 0.1 * draw.normal(size=len(mean)), 0.05 * mean),
}


def labelled(seed: int, kind: str, family: str, link: str) -> Rows:
    data = rows(seed, kind, 200)
    draw = np.random.default_rng(seed + 1)
    offset = 0.3 * draw.normal(size=200)
    mean = MODELS[family, link][0](0.3 * data.label / max(data.label.std(), 1e-9) + offset)
    return Rows(data.x, LABELS[family](draw, mean), data.weight, data.fold, offset)


def equations(of: Rows, setting: Setting, solution: Solution) -> tuple[Array, Array, Array]:
    """Columns (the last one is 1 for an intercept, 0 without), working weights that add up to 1, and the working labels
    less the margins, at the solution."""
    assert of.offset is not None and setting.link is not None
    mean_of, derivative, variance = MODELS[setting.family, setting.link]
    b, intercept = solution.coefficients.numpy(), float(solution.intercept)
    mean = mean_of(of.x @ b + intercept + of.offset)
    w = of.weight / (derivative(mean) ** 2 * variance(mean))
    ones = np.full((len(of.x), 1), float(setting.fitIntercept))
    return np.hstack([of.x, ones]), w / w.sum(), (of.label - mean) * derivative(mean)


def residual(of: Rows, setting: Setting, solution: Solution) -> float:
    """XᵀW(z - Xb)/ΣW - regParam·b, in units of the columns."""
    columns, w, left = equations(of, setting, solution)
    x, b = columns[:, :-1], solution.coefficients.numpy()
    left = w * left
    deviation = of.deviations(unbiased=False)
    assert (b[deviation == 0] == 0).all()
    assert not setting.fitIntercept or not solution.converged or abs(left.sum()) < 1e-9
    x = x - (w @ x if setting.fitIntercept else 0)
    reach = np.maximum(np.sqrt(w @ x**2), deviation)
    gradient = (left @ x - setting.regParam * b) / np.where(reach > 0, reach, 1)
    return float(np.abs(np.where(deviation > 0, gradient, 0)).max())


def step(of: Rows, setting: Setting, solution: Solution) -> Solution:
    """The model after one more step of reweighted least squares."""
    columns, w, left = equations(of, setting, solution)
    strength = np.append(np.full(of.x.shape[1], setting.regParam), 0.0)
    b = np.append(solution.coefficients.numpy(), 0.0)
    own = np.append(of.deviations(unbiased=False) > 0, setting.fitIntercept)
    matrix = (columns.T * w @ columns + np.diag(strength))[np.ix_(own, own)]
    moved = np.zeros(len(own))
    moved[own] = np.linalg.solve(matrix, ((w * left) @ columns - strength * b)[own])
    return replace(
        solution, coefficients=torch.from_numpy(b + moved)[:-1], intercept=solution.intercept + float(moved[-1])
    )


@run(max_examples=20, deadline=None)
@example(441, "sparse", True, ("gamma", "log"), 1e-4)  # the error is -0.91 of the last step's
@given(seeds, kinds, st.booleans(), st.sampled_from([*MODELS]), st.sampled_from([1e-4, 1e-2, 0.3]))
def test_fixed_point(seed: int, kind: str, intercept: bool, model: tuple[str, str], strength: float) -> None:
    data = labelled(seed, kind, *model)
    grid = [Setting(s, fitIntercept=intercept, family=model[0], link=model[1]) for s in (strength, 3 * strength)]
    for setting, models in zip(grid, solve_generalized(data.chunks, grid, 3, memory=0), strict=True):
        for fold, solution in enumerate(models):
            own = data.training(fold)
            if solution.converged:
                assert residual(own, setting, solution) < 1e-9
            elif intercept or not kind.startswith("constant"):  # left to Spark, whose steps are as slow
                assert residual(own, setting, step(own, setting, solution)) > 0.5 * residual(own, setting, solution)


def test_gaussian_is_linear_regression() -> None:
    data = rows(2, "shifted")
    moved = Rows(data.x, data.label + 2.0, data.weight, data.fold, np.full(len(data.label), 2.0))
    models = solve_generalized(
        moved.chunks, [Setting(0.1, family="gaussian"), Setting(0.1, family="gaussian", link="log")], 3
    )
    for one, other in zip(models[0], solve_linear(data.chunks, [Setting(0.1, solver="normal")], 3)[0], strict=True):
        assert one.coefficients.numpy() == pytest.approx(other.coefficients.numpy(), rel=1e-9)


def test_what_is_left_to_spark() -> None:
    data = labelled(0, "plain", "poisson", "log")
    gamma = solve_generalized(data.chunks, [Setting(family="gamma")], 3)  # labels 0
    assert not any(m.converged for m in gamma[0])
    below = Rows(data.x, data.label - 1.0, data.weight, data.fold, data.offset)  # no logarithm to start from
    assert not any(
        m.converged for m in solve_generalized(below.chunks, [Setting(0.1, family="gaussian", link="log")], 3)[0]
    )
    assert why_left_to_spark("GeneralizedLinearRegression", Setting(family="poisson", link="sqrt"), RowFacts(3)) == ""
    assert "tweedie" in str(why_left_to_spark("GeneralizedLinearRegression", Setting(family="tweedie"), RowFacts(3)))
    assert "'logit' of family='poisson'" in str(
        why_left_to_spark("GeneralizedLinearRegression", Setting(family="poisson", link="logit"), RowFacts(3))
    )
