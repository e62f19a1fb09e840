"""Rows on which solvers of linear models go wrong, and what Spark minimises on them, written down once more in numpy."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparkdiff.tuning.solvers import Chunk, Setting, Solution

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    x: Array
    label: Array
    weight: Array
    fold: NDArray[np.int64]
    offset: Array | None = None

    def chunks(self, size: int = 37) -> Iterator[Chunk]:
        for start in range(0, len(self.label), size):
            part = slice(start, start + size)
            offset = None if self.offset is None else torch.from_numpy(self.offset[part])
            yield Chunk(
                *(torch.from_numpy(a[part]) for a in (self.x, self.label, self.weight)),
                offset,
                torch.from_numpy(self.fold[part]),
            )

    def training(self, fold: int) -> "Rows":
        """The rows that this fold trains on: all of another one, or of none, that have a weight."""
        own = (self.fold != fold) & (self.weight > 0)
        return Rows(
            self.x[own],
            self.label[own],
            self.weight[own],
            self.fold[own],
            None if self.offset is None else self.offset[own],
        )

    def deviations(self, unbiased: bool) -> Array:
        """The columns' standard deviations, exactly zero for constant ones."""
        w = self.weight
        freedom = w.sum() - (w**2).sum() / w.sum() if unbiased else w.sum()
        mean = w @ self.x / w.sum()
        return np.where(np.ptp(self.x, 0) == 0, 0.0, np.sqrt(w @ (self.x - mean) ** 2 / freedom))


def rows(seed: int, kind: str, n: int = 160, d: int = 5) -> Rows:
    """Three folds and some rows of none; weights, a tenth of them 0."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d)) @ (np.eye(d) + 0.3 * draw.normal(size=(d, d)))
    weight = draw.integers(1, 4, n) * (draw.random(n) > 0.1) * 0.5
    fold = draw.integers(-1, 3, n)
    if kind == "constant":
        x[:, 0], x[:, 1] = 0.0, 2.5
    elif kind == "constant in a fold":
        x[:, 0] = np.where(fold == 1, x[:, 0], 3.0)
    elif kind == "collinear":
        x[:, 0], x[:, 1] = x[:, 2], x[:, 3] + x[:, 4]
    elif kind == "scales":
        x = x * 10.0 ** np.array([6, -6, 0, 3, -3])[:d] + 10.0 ** np.array([7, -5, 2, 0, 0])[:d]
    elif kind == "sparse":
        x = x * (draw.random((n, d)) < 0.15)
    elif kind == "single":
        x = x[:, :1].copy()
    elif kind == "shifted":
        x = x + 100.0
    spread = np.where(x.std(0) > 0, x.std(0), 1)
    margin = (x - x.mean(0)) / spread @ draw.normal(size=x.shape[1])
    return Rows(x, margin, weight, fold)


def labelled(seed: int, kind: str, classes: int, n: int = 160) -> Rows:
    """Labels drawn from a model, classes of different frequency."""
    data = rows(seed, kind, n)
    draw = np.random.default_rng(seed + 1)
    spread = np.where(data.x.std(0) > 0, data.x.std(0), 1)
    margins = (data.x - data.x.mean(0)) / spread @ draw.normal(size=(data.x.shape[1], classes)) + np.arange(
        classes
    ) * 0.3
    label = (margins + draw.gumbel(size=margins.shape)).argmax(1).astype(float)
    label[: 12 * classes] = np.tile(np.arange(classes), 12)  # every fold has each class
    data.fold[: 12 * classes], data.weight[: 12 * classes] = np.repeat([0, 1, 2, -1], 3 * classes), 1.0
    return Rows(data.x, label, data.weight, data.fold)


kinds = st.sampled_from(
    ["plain", "constant", "constant in a fold", "collinear", "scales", "sparse", "single", "shifted"]
)
seeds = st.integers(0, 10**6)


def penalty_weights(of: Rows, setting: Setting, unbiased: bool) -> tuple[Array, Array]:
    """Factors of b² / 2 and of |b|, b unscaled; LinearRegression divides the first by the label's deviation."""
    unit = of.deviations(unbiased) if setting.standardization else np.ones(of.x.shape[1])
    strength, mix = setting.regParam, setting.elasticNetParam
    return strength * (1 - mix) * unit**2, strength * mix * unit


def subgradient(gradient: Array, lasso: Array, at: Array) -> Array:
    """The smallest subgradient of what has this gradient plus Σ lasso·|at|."""
    flat = np.sign(gradient) * np.maximum(np.abs(gradient) - lasso, 0)
    return np.where(at == 0, flat, gradient + lasso * np.sign(at))


def objective(
    data: Rows, setting: Setting, b: Array, intercept: Array, sigma: float | None = None, fold: int = 0
) -> float:
    """What Spark minimises, on all rows but a fold's; `sigma`, the label's deviation, is LinearRegression's."""
    of = data.training(fold)
    w, margin = of.weight / of.weight.sum(), of.x @ b.T + intercept
    ridge, lasso = penalty_weights(of, setting, unbiased=sigma is None or setting.solver == "l-bfgs")
    penalty = float((0.5 * ridge * b**2).sum() / (sigma or 1) + (lasso * np.abs(b)).sum())
    if sigma is not None:
        return float(w @ (of.label - margin[:, 0]) ** 2 / 2 + penalty) / sigma**2
    margin = np.c_[np.zeros(len(w)), margin] if len(b) == 1 else margin
    return float(w @ (np.logaddexp.reduce(margin, 1) - margin[np.arange(len(w)), of.label.astype(int)])) + penalty


def objective_at(data: Rows, setting: Setting, solution: Solution, sigma: float | None = None, fold: int = 0) -> float:
    """`objective` of a model; columns beyond those of the data don't count."""
    b = np.atleast_2d(solution.coefficients.numpy())[:, : data.x.shape[1]]
    return objective(data, setting, b, np.atleast_1d(solution.intercept.numpy()), sigma, fold)


def deviation(data: Rows, setting: Setting, fold: int = 0) -> float:
    """The label's standard deviation as LinearRegression's solver has it."""
    used = data.training(fold)
    w = used.weight / used.weight.sum()
    freedom = 1 - (w**2).sum() if setting.solver == "l-bfgs" else 1.0
    return float(np.sqrt(w @ (used.label - w @ used.label) ** 2 / freedom))


def linear_slope(of: Rows, setting: Setting, solution: Solution) -> float:
    """Largest subgradient, each coordinate in units of its column, relative to that of the model 0."""
    b, intercept = solution.coefficients.numpy(), float(solution.intercept)
    w = of.weight / of.weight.sum()
    unbiased = setting.solver == "l-bfgs"
    deviation = of.deviations(unbiased)
    freedom = 1 - (w**2).sum() if unbiased else 1.0
    sigma = np.sqrt(w @ (of.label - w @ of.label) ** 2 / freedom)
    ridge, lasso = penalty_weights(of, setting, unbiased)
    left = of.x @ b + intercept - of.label
    unit = np.where(deviation > 0, deviation, 1.0) * sigma
    x = of.x - (w @ of.x if setting.fitIntercept else 0)
    gradient = subgradient((w * left) @ x + ridge / sigma * b, lasso, b) / unit
    reach = np.sqrt(w @ x**2) / unit * sigma
    gradient = np.where(deviation > 0, gradient / np.maximum(reach, 1), 0)
    assert (b[deviation == 0] == 0).all()
    assert not setting.fitIntercept or abs(w @ left) <= 1e-9 * sigma
    return float(np.abs(gradient).max())


def logistic_slope(of: Rows, setting: Setting, solution: Solution) -> float:
    """Largest subgradient, each coordinate in units of its column."""
    b, intercept = np.atleast_2d(solution.coefficients.numpy()), np.atleast_1d(solution.intercept.numpy())
    w = of.weight / of.weight.sum()
    deviation = of.deviations(unbiased=True)
    ridge, lasso = penalty_weights(of, setting, unbiased=True)
    margin = of.x @ b.T + intercept
    if len(b) == 1:
        left = 1 / (1 + np.exp(-margin)) - of.label[:, None]
    else:
        p = np.exp(margin - margin.max(1, keepdims=True))
        left = p / p.sum(1, keepdims=True) - np.eye(len(b))[of.label.astype(int)]
        assert intercept.mean() == pytest.approx(0, abs=1e-9)
    left = left * w[:, None]
    assert not setting.fitIntercept or np.abs(left.sum(0)).max() < 1e-9
    x = of.x - (w @ of.x if setting.fitIntercept else 0)
    gradient = subgradient(left.T @ x + ridge * b, lasso, b)
    assert (b[:, deviation == 0] == 0).all()
    reach = np.maximum(np.sqrt(w @ x**2), deviation)
    return float(np.abs(np.where(deviation > 0, gradient / np.where(reach > 0, reach, 1), 0)).max())
