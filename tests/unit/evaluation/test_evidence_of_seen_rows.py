"""Evidence that an original was fitted on these rows, on tensors; benchmarks/seen_rows.py measures how often it is wrong."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import seen_rows as simulation
import torch
from scipy.stats import chi2
from torch import Tensor

from sparkdiff.evaluation.seen_rows import (
    MOST,
    LinearRows,
    Penalty,
    RowCount,
    combine_evidence,
    p_of_equations,
    p_of_losses,
    reproduces,
    rows_of_roots,
)
from sparkdiff.stages.linear import LinearRegression
from sparkdiff.stages.predictor import LeastSquares
from sparkdiff.tensors.rows import SparseRows


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def least_squares(x: Tensor, y: Tensor) -> LinearRegression:
    b = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), y[:, None]).solution[:, 0]
    return LinearRegression(b[:-1], b[-1], 1.0, True, None)


def rows_for(head: Any, x: Any, y: Tensor, weight: Tensor | None = None) -> LinearRows:
    with torch.no_grad():
        return LinearRows(x, head.margin(x), y, torch.ones_like(y) if weight is None else weight)


def p(head: Any, *rows: LinearRows, penalty: Penalty | None = None) -> float | None:
    return p_of_equations(head, lambda: iter(rows), penalty or Penalty())


def drawn(columns: int = 4, n: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    cell = simulation.Cell("gaussian", columns, n)
    return simulation.drawn(cell, torch.ones(columns, dtype=torch.float64), n, random(seed))


# Linear last stages ---------------------------------------------------------------------------------------------------


def test_p_is_that_of_the_score_and_its_own_covariance() -> None:
    (x, y), other = drawn(), least_squares(*drawn(seed=1))
    weight = 0.5 + torch.rand(len(y), generator=random(), dtype=torch.float64)
    rows = rows_for(other, x, y, weight)
    terms = torch.cat([x, torch.ones(len(x), 1)], 1) * ((rows.margin - y) * weight)[:, None]
    mean, covariance = terms.mean(0), np.cov(terms.T.numpy())
    expected = chi2.cdf(len(y) * float(mean @ np.linalg.solve(covariance, mean)), 5)
    assert p(other, rows) == pytest.approx(expected, rel=1e-9)
    halves = [LinearRows(*(t[part] for t in (x, rows.margin, y, weight))) for part in (slice(200), slice(200, None))]  # type: ignore[arg-type]
    assert p(other, *halves) == pytest.approx(expected, rel=1e-9)


CELLS = [
    simulation.Cell("gaussian", 20, 1000, "less noise far out"),
    simulation.Cell("logistic", 20, 1000, ridge=0.2),
    simulation.Cell("poisson", 20, 1000, ridge=0.2),
    simulation.Cell("gaussian", 20, 1000, lasso=0.05),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_seen_rows_are_told_from_others(cell: simulation.Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MANY", 20_000)
    found = simulation.simulate(cell, 10)
    assert found["all seen"] == 1 and found["75% seen"] >= 0.4
    assert found["200,000 others"] <= 3 / 80 and found["as many others"] <= 0.1


def test_sparse_rows_and_dependent_columns_change_nothing() -> None:
    x, y = drawn()
    other = least_squares(*drawn(seed=1))
    plain, penalty = p(other, rows_for(other, x, y)), Penalty(0.3, 0.1, True)
    sparse = SparseRows.from_csr(x.to_sparse_csr())
    assert p(other, rows_for(other, sparse, y)) == pytest.approx(plain, rel=1e-9)
    dense = p(other, rows_for(other, x, y), penalty=penalty)
    assert p(other, rows_for(other, sparse, y), penalty=penalty) == pytest.approx(dense, rel=1e-9)
    both = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)
    assert other.coefficients is not None
    b = torch.cat([other.coefficients - torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([0.5])]).detach()
    same = LinearRegression(b, other.intercept.detach(), 1.0, True, None)
    assert p(same, rows_for(same, both, y)) == pytest.approx(plain, rel=1e-6)


def test_of_many_coefficients_some_combinations_tell() -> None:
    units = torch.logspace(-2, 2, 2 * MOST, dtype=torch.float64)
    (x, y), (more, labels) = drawn(2 * MOST, 1500), drawn(2 * MOST, 9000, seed=1)
    some, other = least_squares(x[:1200] * units, y[:1200]), least_squares(more * units, labels)
    p_some, p_other = (p(head, rows_for(head, x * units, y)) for head in (some, other))
    assert p_some is not None and p_some < 1e-6
    assert p_other is not None and p_other > 0.01


def test_equal_shares_of_classes_by_design_are_no_evidence() -> None:
    cell = simulation.Cell("logistic", 3, 600, "equal classes")
    truth = torch.zeros(3, dtype=torch.float64)
    many = simulation.fitted(cell, *simulation.drawn(cell, truth, 20_000, random(7)))
    found = [simulation.p_value(cell, many, *simulation.drawn(cell, truth, 600, random(s))) for s in range(200)]
    assert sum(q < 0.1 for q in found) <= 0.1 * 200 + 2 * math.sqrt(0.09 * 200)
    assert sum(q < 0.5 for q in found) >= 0.5 * 200 - 3 * math.sqrt(0.25 * 200)


def test_nothing_is_said_of_other_stages_and_of_few_rows() -> None:
    x, y = drawn()
    own = least_squares(x, y)
    assert p(LeastSquares(), LinearRows(x, y, y, y)) is None
    assert p(own, rows_for(own, x[:9], y[:9])) is None
    none = LinearRegression(torch.zeros(4, dtype=torch.float64), y.mean(), 1.0, True, None)
    assert p(none, rows_for(none, x, y)) is None


# Reproduction and trees -----------------------------------------------------------------------------------------------


def test_a_refit_reproduces_an_original_up_to_rounding() -> None:
    margins = torch.randn(100, generator=random(), dtype=torch.float64)
    assert reproduces(margins, margins * (1 + 1e-9)) and not reproduces(margins, margins * 1.001)
    assert not reproduces(torch.zeros(3), torch.zeros(3))
    assert not reproduces(margins, margins * math.nan)


def test_roots_tell_rows_by_what_was_drawn_of_them() -> None:
    assert rows_of_roots(torch.tensor([500])) == RowCount(500)
    assert rows_of_roots(torch.tensor([490, 515]), bootstrap=True) == RowCount(502.5, math.sqrt(502.5 / 2))
    assert rows_of_roots(torch.tensor([240, 260]), 0.5) == RowCount(500, math.sqrt(250))
    assert rows_of_roots(torch.tensor([0, 500])) is None and rows_of_roots(torch.tensor([-1])) is None
    assert RowCount(530, 10).exceeds(499) and not RowCount(530, 10).exceeds(501)


def blocks(seed: int = 0) -> Iterator[Tensor]:
    """Losses of refits that have seen blocks, and of refits that haven't, and the noise of another model's."""
    g = random(seed)
    base = 1 + torch.rand(400, generator=g, dtype=torch.float64)
    yield from (base - 0.3, base, 0.2 * torch.randn(400, generator=g, dtype=torch.float64))


def test_losses_near_seen_rows_tell_if_their_count_is_known() -> None:
    seen, unseen, noise = blocks()
    ones = torch.ones_like(seen)

    def tested(share: float, count: RowCount | None, refitted: float = 400) -> float | None:
        original = unseen - share * (unseen - seen) + noise
        return p_of_losses(count, refitted, original=original, seen=seen, unseen=unseen, weights=ones)

    assert tested(1.0, None) is None
    assert (tested(0.55, RowCount(400)) or 0.0) < 0.01
    assert (tested(0.55, RowCount(800)) or 0.0) > 0.01  # as many other rows may explain half of the way
    assert (tested(0.3, RowCount(400)) or 0.0) > 0.01 and (tested(-0.5, RowCount(100)) or 0.0) > 0.5
    few = [t[:20] for t in (seen, unseen, ones)]
    assert p_of_losses(RowCount(400), 400, original=few[0], seen=few[0], unseen=few[1], weights=few[2]) is None


def test_a_few_large_errors_hide_no_evidence_and_are_none() -> None:
    """As prices have them: the errors of two rows are larger than those of all others together."""
    seen, unseen, noise = blocks()
    ones, far = torch.ones_like(seen), torch.zeros_like(seen)
    far[:2] = torch.tensor([900.0, 1500.0], dtype=torch.float64)

    def tested(original: Tensor, *, squared: bool = True) -> float:
        found = p_of_losses(
            RowCount(400), 400, original=original, seen=seen, unseen=unseen + far, weights=ones, squared=squared
        )
        assert found is not None
        return found

    own = unseen - 0.9 * (unseen - seen) + noise
    assert tested(own + far / 2) < 0.01 < tested(own + far / 2, squared=False)
    assert tested((unseen + noise).clamp_min(0.0)) > 0.01  # better by these two rows alone


def test_trees_that_have_seen_rows_are_told_from_others() -> None:
    found = simulation.simulate_trees("bent", "tree", 600, 6)
    assert found["all seen"] >= 5 / 6 and found["as many others"] + found["half as many others"] == 0


def test_the_evidence_is_weighed_in_words() -> None:
    assert not combine_evidence(500).shown and combine_evidence(500).kind == ""
    nothing: dict[str, Any] = {"equations": 0.02, "losses": 0.01, "count": RowCount(500)}
    assert combine_evidence(500, **nothing) == combine_evidence(500)
    found = [
        combine_evidence(500, reproduced=True, equations=0.5),
        combine_evidence(500, equations=0.001, losses=None),
        combine_evidence(500, losses=0.001, count=RowCount(510, 10)),
    ]
    assert [f.kind for f in found] == ["reproduction", "equations", "losses"] and all(f.shown for f in found)
    assert all(f.words.startswith("was fitted on ") for f in found) and "p = 0.001" in found[1].words
    more = combine_evidence(500, reproduced=True, equations=0.0, losses=0.0, count=RowCount(12_000))
    assert more == replace(more, shown=False, kind="count") and "about 12,000 rows, more than these 500" in more.words
