"""LogisticRegression's optimum: Spark's objective has no slope there, whatever the columns are like."""

import numpy as np
import pytest
from hypothesis import given, settings as run, strategies as st

from sparkdiff.tuning.solvers import RowFacts, Setting, classification, solve_logistic, why_left_to_spark
from sparkdiff.tuning.solvers.problem import moments, table
from tests.support.linear_rows import Rows, kinds, labelled, logistic_slope, objective_at, seeds


@run(max_examples=20, deadline=None)
@given(
    seeds,
    kinds,
    st.booleans(),
    st.booleans(),
    st.sampled_from([(2, "auto"), (2, "multinomial"), (3, "auto")]),
    st.sampled_from([1e-4, 1e-2, 0.3]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_no_slope(
    seed: int, kind: str, intercept: bool, standardization: bool, classes: tuple[int, str], strength: float, mix: float
) -> None:
    data = labelled(seed, kind, classes[0])
    grid = [Setting(s, mix, intercept, standardization, family=classes[1]) for s in (strength, 3 * strength)]
    for setting, models in zip(grid, solve_logistic(data.chunks, grid, 3, classes[0]), strict=True):
        for fold, solution in enumerate(models):
            assert solution.converged
            assert logistic_slope(data.training(fold), setting, solution) < 1e-8


def test_ways_to_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in memory or read for each pass, a Hessian at each step or L-BFGS from one of some rows: one optimum."""
    for classes in (2, 4):
        data = labelled(3, "scales", classes, n=900)
        grid = [Setting(s, standardization=s > 0.01) for s in (1e-4, 1e-2, 0.3)]
        expected = solve_logistic(data.chunks, grid, 3, classes)
        monkeypatch.setattr(classification, "by_newton", lambda *_: False)
        monkeypatch.setattr(classification, "SAMPLED", 10 if classes == 4 else 60)
        for memory in (0, 2**30):
            found = solve_logistic(data.chunks, grid, 3, classes, memory)
            for setting, row, expected_row in zip(grid, found, expected, strict=True):
                for fold, (one, other) in enumerate(zip(row, expected_row, strict=True)):
                    assert one.converged and other.converged
                    value, least = (objective_at(data, setting, s, fold=fold) for s in (one, other))
                    assert value == pytest.approx(least, rel=1e-12)
                    unit = data.x.std(0)
                    assert one.coefficients.numpy() * unit == pytest.approx(other.coefficients.numpy() * unit, abs=1e-5)
        monkeypatch.undo()


def test_deviations_of_numbers_far_from_zero() -> None:
    """Without an intercept columns aren't moved, but their deviation is that of the moved ones."""
    data = labelled(3, "plain", 2)
    far = Rows(data.x * 1e-3 + 1e5, data.label, data.weight, data.fold)
    for intercept in (True, False):
        rows = table(far.chunks, 3, moments(far.chunks, 3, 2), intercept=intercept, memory=2**30)
        for fold in range(3):
            own = far.training(fold)
            expected = own.deviations(unbiased=False)
            assert (rows.variance[fold].sqrt() * rows.scale).numpy() == pytest.approx(expected, rel=1e-6)


def test_without_penalty() -> None:
    for classes in (2, 3):
        data = labelled(1, "plain", classes)
        [models] = solve_logistic(data.chunks, [Setting()], 3, classes)
        for fold, solution in enumerate(models):
            assert solution.converged and logistic_slope(data.training(fold), Setting(), solution) < 1e-8
            if classes == 3:
                assert solution.coefficients.mean(0).numpy() == pytest.approx(0, abs=1e-9)


def test_what_is_left_to_spark() -> None:
    data = labelled(1, "plain", 2)
    separable = Rows(data.x, (data.x[:, 0] > 0).astype(float), data.weight, data.fold)
    for mix in (0.0, 0.5):
        free, held = solve_logistic(separable.chunks, [Setting(elasticNetParam=mix), Setting(1e-4, mix)], 3, 2)
        assert all(m.converged for m in held) and not any(m.converged for m in free)
    [models] = solve_logistic(rows_with_one_class_in_a_fold(data).chunks, [Setting(0.1)], 3, 2)
    assert [m.converged for m in models] == [True, False, True]
    assert not any(m.converged for m in solve_logistic(labelled(1, "collinear", 2).chunks, [Setting()], 3, 2)[0])
    assert not any(
        m.converged for m in solve_logistic(labelled(1, "plain", 3).chunks, [Setting(0.1)], 3, 2)[0]
    )  # a label 2


def rows_with_one_class_in_a_fold(data: Rows) -> Rows:
    """Fold 1 holds out all rows of class 1."""
    fold = np.where(data.label == 1, 1, np.where(data.fold == 1, 0, data.fold))
    return Rows(data.x, data.label, data.weight, fold)


def test_unsolved() -> None:
    assert why_left_to_spark("LogisticRegression", Setting(0.1), RowFacts(200, 2)) == ""
    assert "3000 coefficients without a penalty" in str(
        why_left_to_spark("LogisticRegression", Setting(), RowFacts(300, 10))
    )
    assert why_left_to_spark("LogisticRegression", Setting(0.1), RowFacts(300, 10)) == ""
    assert "1001 coefficients are more" in str(
        why_left_to_spark("GeneralizedLinearRegression", Setting(0.1, family="poisson"), RowFacts(1001))
    )
    assert "at most 4096" in str(why_left_to_spark("LinearRegression", Setting(0.1, solver="normal"), RowFacts(4097)))
    assert "bounds" in str(why_left_to_spark("LogisticRegression", Setting(0.1, bounded=True), RowFacts(3, 2)))
    assert "huber" in str(why_left_to_spark("LinearRegression", Setting(0.1, loss="huber"), RowFacts(3)))
    assert why_left_to_spark("LinearSVC", Setting(0.1), RowFacts(3)) == "LinearSVC is fitted by Spark"
