"""XGBoost's trees in Spark: the same leaf for every double, predictions as near as its float32 sums."""

from __future__ import annotations

from typing import Any

import adversarial
import numpy as np
import pytest
import xgboost as xgb
from test_sklearn import WIDTH, data

import sparkdiff

SMALL = {"n_estimators": 12, "max_depth": 4, "random_state": 0, "n_jobs": 1}
REGRESSIONS: dict[str, dict[str, Any]] = {
    "squared": {},
    "base score": {"base_score": 7.25},
    "absolute": {"objective": "reg:absoluteerror"},
    "quantile": {"objective": "reg:quantileerror", "quantile_alpha": 0.9},
    "huber": {"objective": "reg:pseudohubererror"},
    "poisson": {"objective": "count:poisson"},
    "gamma": {"objective": "reg:gamma"},
    "tweedie": {"objective": "reg:tweedie", "tweedie_variance_power": 1.2},
    "logistic": {"objective": "reg:logistic"},
    "dart": {"booster": "dart", "rate_drop": 0.5},
    "parallel": {"num_parallel_tree": 3, "subsample": 0.6},
    "best first": {"grow_policy": "lossguide", "max_leaves": 9, "max_depth": 0},
}


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions(spark: Any, name: str, nan: bool) -> None:
    X, y = data(nan=nan)
    y = {"gamma": y + 1, "logistic": y / y.max()}.get(name, y)
    model = xgb.XGBRegressor(**SMALL | REGRESSIONS[name]).fit(X, y)
    home = sparkdiff.from_xgboost(model)
    rows = adversarial.rows(home, WIDTH, inf=False)
    (found,) = adversarial.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("options", [{}, {"base_score": 0.3}])
def test_classifiers(spark: Any, classes: int, options: dict[str, Any]) -> None:
    X, y = data(nan=True)
    model = xgb.XGBClassifier(**SMALL, **options).fit(X, np.minimum(y, classes - 1).astype(int))
    home = sparkdiff.from_xgboost(model)
    rows = adversarial.rows(home, WIDTH, inf=False)
    probability, number = adversarial.served(spark, home, rows, "probability", "prediction")
    expected = model.predict_proba(rows)
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    clear = np.ptp(np.sort(expected, 1)[:, -2:], axis=1) > 1e-5
    np.testing.assert_array_equal(number[clear], model.predict(rows)[clear])
