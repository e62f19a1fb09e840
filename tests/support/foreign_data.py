"""What models of other libraries are fitted to, and their size."""

import numpy as np

WIDTH = 4
SMALL_LIGHTGBM = {
    "n_estimators": 12,
    "num_leaves": 9,
    "min_child_samples": 5,
    "verbose": -1,
    "random_state": 0,
    "n_jobs": 1,
}


def data(seed: int = 0, *, nan: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    X = random.normal(size=(400, WIDTH))
    X[:, 1] = np.round(X[:, 1], 1)
    X[:, 2] = random.integers(0, 3, 400)
    rate = np.exp(0.5 * X[:, 0] + 0.3 * (X[:, 2] == 1) - 0.4 * np.abs(X[:, 1]))
    if nan:
        X[random.random(X.shape) < 0.15] = np.nan
        rate = np.where(np.isnan(X[:, 0]), 3.0, rate)
    return X, random.poisson(2 * rate).astype(float)


def nominal(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of categories, 40 of them with gaps and a few with NaN, between two of numbers."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(1500, WIDTH))
    X[:, 1] = random.permutation(48)[:40][random.integers(0, 40, 1500)]
    X[:, 3] = random.choice([0, 2, 5, 7, np.nan], 1500)
    effect = random.normal(size=48)
    return X, effect[X[:, 1].astype(int)] + np.where(np.isnan(X[:, 3]), 2, X[:, 3] % 3) + 0.3 * X[:, 0]


def whole(rows: np.ndarray) -> np.ndarray:
    """Categories as they may be: whole numbers, seen or not, and NaN; not negative."""
    for column in (1, 3):
        rows[:, column] = np.abs(np.rint(np.clip(rows[:, column], -60, 60)))
    return rows
