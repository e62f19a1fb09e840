"""scikit-learn's trees in Spark: the same leaf for every double, the same predictions."""

from __future__ import annotations

from typing import Any

import adversarial
import numpy as np
import pytest
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeRegressor

import sparkdiff

WIDTH = 4
FLOAT32 = 3.0e38  # what scikit-learn's float32 trees take


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


REGRESSORS: dict[str, tuple[Any, bool]] = {
    "tree": (DecisionTreeRegressor(max_depth=6), True),
    "tree by absolute error": (DecisionTreeRegressor(criterion="absolute_error", max_leaf_nodes=20), True),
    "extra tree": (ExtraTreeRegressor(max_depth=6, random_state=0), True),
    "forest": (RandomForestRegressor(10, max_depth=6, random_state=0), True),
    "extra trees": (ExtraTreesRegressor(10, max_depth=6, random_state=0), True),
    "boosting": (GradientBoostingRegressor(n_estimators=20, random_state=0), False),
    "boosting from zero": (GradientBoostingRegressor(n_estimators=20, init="zero", subsample=0.7), False),
    "boosting best first": (GradientBoostingRegressor(loss="huber", max_leaf_nodes=9, n_estimators=10), False),
    "hist": (HistGradientBoostingRegressor(max_iter=20), True),
    "hist poisson": (HistGradientBoostingRegressor(loss="poisson", max_iter=20), True),
    "hist quantile": (HistGradientBoostingRegressor(loss="quantile", quantile=0.9, max_iter=10), True),
}  # fmt: skip


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(spark: Any, name: str, nan: bool) -> None:
    model, takes_nan = REGRESSORS[name]
    X, y = data(nan=nan and takes_nan)
    model.fit(X, y)
    home = sparkdiff.from_sklearn(model)
    hist = name.startswith("hist")
    rows = adversarial.rows(home, WIDTH, nan=takes_nan, inf=hist)
    (found,) = adversarial.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-12, atol=1e-12)


CLASSIFIERS: dict[str, tuple[Any, bool]] = {
    "tree": (DecisionTreeClassifier(max_depth=6, criterion="entropy"), True),
    "forest": (RandomForestClassifier(10, max_depth=6, random_state=0), True),
    "weighted forest": (RandomForestClassifier(5, max_leaf_nodes=12, class_weight="balanced", random_state=0), True),
    "extra trees": (ExtraTreesClassifier(10, max_depth=6, random_state=0), True),
    "boosting": (GradientBoostingClassifier(n_estimators=15, random_state=0), False),
    "hist": (HistGradientBoostingClassifier(max_iter=15), True),
}  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(spark: Any, name: str, classes: int) -> None:
    model, takes_nan = CLASSIFIERS[name]
    X, y = data(nan=takes_nan)
    model.fit(X, np.minimum(y, classes - 1).astype(int))
    check_classifier(spark, model, takes_nan, inf=name == "hist")


def check_classifier(spark: Any, model: Any, takes_nan: bool, *, inf: bool = False) -> None:
    home = sparkdiff.from_sklearn(model, predictionCol="number")
    rows = adversarial.rows(home, WIDTH, nan=takes_nan, inf=inf)
    probability, number = adversarial.served(spark, home, rows, "probability", "number")
    expected = model.predict_proba(rows)
    np.testing.assert_allclose(probability, expected, rtol=1e-12, atol=1e-12)
    top = np.sort(expected, 1)
    clear = top[:, -1] - top[:, -2] > 1e-12
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(model.classes_[number[clear].astype(int)], model.predict(rows)[clear])


def test_the_exponential_loss(spark: Any) -> None:
    X, y = data()
    model = GradientBoostingClassifier(loss="exponential", n_estimators=15, random_state=0).fit(X, y > 1)
    check_classifier(spark, model, False)
