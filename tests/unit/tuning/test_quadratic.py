"""Quadratic functions with absolute values: no slope at the minimum, with dependent columns too, in small and large systems."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings as run, strategies as st

from sparkdiff.tuning.solvers import quadratic


@run(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([1e-4, 1e-2, 0.3]), st.booleans(), st.booleans())
def test_no_slope(seed: int, rank: int, strength: float, ridge: bool, small: bool) -> None:
    draw = np.random.default_rng(seed)
    x = torch.from_numpy(draw.normal(size=(30, rank)) @ draw.normal(size=(rank, 6)) + 3 * draw.normal(size=(30, 1)))
    x = x / x.square().mean(0).sqrt()
    y = torch.from_numpy(draw.normal(size=(4, 30)))
    h, b = x.T @ x / 30, y @ x / 30
    lasso = torch.from_numpy(strength * draw.integers(0, 3, (4, 6)))
    if rank < 7:
        lasso = lasso.clamp_min(strength / 10)  # else a minimum isn't unique, or far away
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadratic, "SMALL", 40 if small else 0)
        for matrices in (h[None], h.repeat(4, 1, 1)):
            at, done = quadratic.minimise(matrices, lasso * ridge, b, lasso)
            assert done.all()
            slope = quadratic.subgradient(at @ h + lasso * ridge * at - b, lasso, at)
            assert float(slope.abs().max()) < 1e-11


def test_many_correlated_columns_need_no_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quadratic of a softmax regression on 30 principal components: coordinate descent takes thousands of sweeps for it."""
    r = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 30, generator=r).double() * torch.linspace(3, 0.05, 30)
    p = torch.softmax(rows[:, :5] @ torch.randn(5, 5, generator=r).double(), 1)
    weights = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    h = torch.einsum("nac,ni,nj->aicj", weights, rows, rows).reshape(1, 150, 150) / 400
    b, lasso = torch.randn(1, 150, generator=r).double() * 0.02, torch.full((1, 150), 5e-3).double()
    ridge = lasso.clone()
    monkeypatch.setattr(quadratic, "descend", lambda *_, sweeps: pytest.fail("descended"))
    x, done = quadratic.minimise(h, ridge, b, lasso, tol=1e-10)
    assert done.all() and 0 < int((x != 0).sum()) < 150
    assert float(quadratic.violation(h, ridge, b, lasso, x)) < 1e-9
