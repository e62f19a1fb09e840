"""Models of many coefficients: Spark's objective has no slope there, on sparse rows and on dense ones."""

import numpy as np
import torch
from hypothesis import given, settings as run, strategies as st

from sparkdiff.tensors.rows import SparseRows, offsets_of
from sparkdiff.tuning.solvers import (
    RowFacts,
    RowsInMemory,
    Setting,
    Solution,
    gather,
    is_wide,
    solve_linear,
    solve_wide,
)
from tests.support.linear_rows import (
    Rows,
    deviation,
    kinds,
    labelled,
    linear_slope,
    logistic_slope,
    objective_at,
    rows,
    seeds,
)

MIXES = st.sampled_from([0.0, 0.3])


def whole(data: Rows, *, sparse: bool) -> RowsInMemory:
    """In two parts, with a last column in which no row has a number."""
    x = torch.nn.functional.pad(torch.from_numpy(data.x), (0, 1))
    label, weight, fold = (torch.from_numpy(column) for column in (data.label, data.weight, data.fold))
    stored = x != 0
    packed = SparseRows(stored.nonzero()[:, 1], x[stored], offsets_of(stored.sum(1)), x.shape[1])
    order = torch.arange(len(x))
    parts = [
        RowsInMemory(packed.take(some) if sparse else x[some], label[some], weight[some], fold[some])
        for some in order.split(100)
    ]
    return gather(parts)


@run(max_examples=12, deadline=None)
@given(
    seeds, kinds, st.booleans(), st.booleans(), st.sampled_from([(2, "auto"), (2, "multinomial"), (3, "auto")]), MIXES
)
def test_no_slope_of_logistic_regression(
    seed: int, kind: str, intercept: bool, sparse: bool, classes: tuple[int, str], mix: float
) -> None:
    data = labelled(seed, kind, classes[0])
    grid = [Setting(s, mix, intercept, s > 1e-3, family=classes[1]) for s in (1e-4, 1e-2)]
    for setting, models in zip(grid, solve_wide(whole(data, sparse=sparse), grid, 3, classes[0]), strict=True):
        for fold, solution in enumerate(models):
            # Where many steps do not end in the optimum of an elastic net, Spark fits it: 2 of 360 collinear ones.
            slow = kind in ("scales", "collinear") or (kind == "shifted" and not intercept)
            assert solution.converged or (mix and slow)
            if solution.converged:
                assert not solution.coefficients[..., -1].any()
                cut = Solution(solution.coefficients[..., :-1], solution.intercept, True)
                assert logistic_slope(data.training(fold), setting, cut) < 1e-8


@run(max_examples=12, deadline=None)
@given(seeds, kinds, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["auto", "l-bfgs"]), MIXES)
def test_they_are_those_of_linear_regression(
    seed: int, kind: str, intercept: bool, sparse: bool, standardization: bool, solver: str, mix: float
) -> None:
    data = rows(seed, kind)
    grid = [Setting(s, mix, intercept, standardization, solver) for s in (1e-3, 0.3)]
    for setting, some, others in zip(
        grid, solve_wide(whole(data, sparse=sparse), grid, 3), solve_linear(data.chunks, grid, 3), strict=True
    ):
        for fold, (one, other) in enumerate(zip(some, others, strict=True)):
            assert one.converged == other.converged or (mix and kind == "shifted" and not intercept)
            if one.converged and other.converged:
                # The floor: where little of the label is left, what cancels (its squares, those of the products) is rounded.
                size = (
                    np.abs(data.x - data.x.mean(0) * intercept) @ np.abs(other.coefficients.numpy()) / data.label.std()
                )
                rounded = 1e-12 + 1e-15 * np.mean(size**2)
                sigma = deviation(data, setting, fold)
                value, least = (objective_at(data, setting, s, sigma, fold) for s in (one, other))
                assert abs(value - least) < 1e-9 * least + rounded
                cut = Solution(one.coefficients[:-1], one.intercept, True)
                assert linear_slope(data.training(fold), setting, cut) < 1e-8


def test_dense_parts_join_sparse_ones() -> None:
    """A part with a vector that Spark stores dense may be read as a dense one."""
    data = rows(0, "sparse")
    strided, packed = whole(data, sparse=False), whole(data, sparse=True)
    assert isinstance(strided.x, torch.Tensor) and isinstance(packed.x, SparseRows)
    order = torch.arange(len(data.x))
    first, rest = order[:50], order[50:]
    parts = [
        RowsInMemory(x, strided.label[own], strided.weight[own], strided.fold[own])
        for x, own in ((packed.x.take(first), first), (strided.x[rest], rest))
    ]
    found = gather(parts)
    assert isinstance(found.x, SparseRows) and torch.equal(found.x.to_dense(), strided.x)
    assert torch.equal(found.label, strided.label) and torch.equal(found.fold, strided.fold)


def test_which_are_wide() -> None:
    few, many, text = RowFacts(200, 2), RowFacts(300, 10), RowFacts(2**18, 2)
    assert not is_wide("LogisticRegression", Setting(0.1), few, sparse=False)
    assert is_wide("LogisticRegression", Setting(0.1), few, sparse=True)
    assert is_wide("LogisticRegression", Setting(0.1), many, sparse=False)
    assert is_wide("LinearRegression", Setting(0.1), text, sparse=False)
    assert not is_wide("LinearRegression", Setting(), text, sparse=True)
    assert not is_wide("GeneralizedLinearRegression", Setting(0.1), text, sparse=True)
