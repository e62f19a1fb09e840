"""Rows on which solvers of linear models go wrong, and what Spark minimises on them, written down once more in numpy."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparkdiff.tuning.solvers import Chunk, Setting

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
