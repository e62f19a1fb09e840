"""LinearRegression's optimum: Spark's objective has no slope there, whatever the columns are like."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings as run, strategies as st

from sparkdiff.tuning.solvers import Setting, least_squares, solve_linear
from tests.support.linear_rows import Rows, kinds, linear_slope, rows, seeds


@run(max_examples=25, deadline=None)
@given(
    seeds,
    kinds,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["normal", "l-bfgs"]),
    st.sampled_from([1e-4, 1e-2, 0.3, 10.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_no_slope(
    seed: int, kind: str, intercept: bool, standardization: bool, solver: str, strength: float, mix: float
) -> None:
    data = rows(seed, kind)
    grid = [Setting(s, mix, intercept, standardization, solver) for s in (strength, 3 * strength)]
    for setting, models in zip(grid, solve_linear(data.chunks, grid, 3), strict=True):
        for fold, solution in enumerate(models):
            left_to_spark = not intercept and solver == "normal" and kind == "constant"
            if not left_to_spark and not (kind == "constant in a fold" and not intercept and solver == "normal"):
                assert solution.converged
            if solution.converged:
                assert linear_slope(data.training(fold), setting, solution) < 1e-8


def test_without_penalty() -> None:
    data = rows(0, "plain")
    [models] = solve_linear(data.chunks, [Setting()], 3)
    for fold, solution in enumerate(models):
        own = data.training(fold)
        root = np.sqrt(own.weight)[:, None]
        design = np.c_[own.x, np.ones(len(own.x))]
        expected = np.linalg.lstsq(design * root, own.label * root[:, 0], rcond=None)[0]
        assert torch.cat([solution.coefficients, solution.intercept[None]]).numpy() == pytest.approx(expected, abs=1e-9)
    [models] = solve_linear(rows(0, "collinear").chunks, [Setting()], 3)
    assert not any(m.converged for m in models)  # the model isn't determined: Spark's choice counts


def test_matrices_of_many_folds_come_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    data, grid = rows(0, "plain"), [Setting(0.1), Setting(0.1, 0.5)]
    expected = solve_linear(data.chunks, grid, 3)
    monkeypatch.setattr(least_squares, "MATRICES", 0)
    for some, others in zip(solve_linear(data.chunks, grid, 3), expected, strict=True):
        for one, other in zip(some, others, strict=True):
            assert one.coefficients.numpy() == pytest.approx(other.coefficients.numpy(), abs=1e-12)


def test_what_is_left_to_spark() -> None:
    data = rows(0, "plain")
    flat = Rows(data.x, np.full_like(data.label, 7.0), data.weight, data.fold)
    with_one, without = solve_linear(flat.chunks, [Setting(0.1), Setting(0.1, fitIntercept=False)], 3)
    assert all(m.converged and float(m.intercept) == 7 and not m.coefficients.any() for m in with_one)
    assert not any(m.converged for m in without)
    data.x[3, 1] = np.nan
    assert not any(m.converged for m in solve_linear(data.chunks, [Setting(0.1)], 3)[0])
