"""LightGBM's trees in Spark: the same leaf for every double, the same predictions."""

from __future__ import annotations

from typing import Any

import adversarial
import lightgbm as lgb
import numpy as np
import pytest
from test_sklearn import WIDTH, data

import sparkdiff

SMALL = {"n_estimators": 12, "num_leaves": 9, "min_child_samples": 5, "verbose": -1, "random_state": 0, "n_jobs": 1}
REGRESSIONS: dict[str, dict[str, Any]] = {
    "squared": {},
    "absolute": {"objective": "l1"},
    "quantile": {"objective": "quantile", "alpha": 0.9},
    "huber": {"objective": "huber"},
    "fair": {"objective": "fair"},
    "mape": {"objective": "mape"},
    "poisson": {"objective": "poisson"},
    "gamma": {"objective": "gamma"},
    "tweedie": {"objective": "tweedie", "tweedie_variance_power": 1.2},
    "cross entropy": {"objective": "cross_entropy"},
    "dart": {"boosting_type": "dart", "drop_rate": 0.5},
    "goss": {"data_sample_strategy": "goss"},
    "forest": {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
    "stumps that stop": {"min_child_samples": 150, "num_leaves": 2},
    "no tree splits": {"min_child_samples": 300},
    "no missing": {"use_missing": False},
}


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions(spark: Any, name: str, nan: bool) -> None:
    X, y = data(nan=nan)
    X[::3, 3] = 0.0  # LightGBM's zeros have a bin of their own
    y = {"gamma": y + 1, "cross entropy": y / y.max()}.get(name, y)
    model = lgb.LGBMRegressor(**SMALL | REGRESSIONS[name]).fit(X, y)
    home = sparkdiff.from_lightgbm(model)
    rows = adversarial.rows(home, WIDTH)
    (found,) = adversarial.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("options", [{}, {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}])
def test_classifiers(spark: Any, classes: int, options: dict[str, Any]) -> None:
    X, y = data(nan=True)
    extra = {"sigmoid": 1.7} if classes == 2 else {}
    model = lgb.LGBMClassifier(**SMALL, **options, **extra).fit(X, np.minimum(y, classes - 1).astype(int))
    home = sparkdiff.from_lightgbm(model)
    rows = adversarial.rows(home, WIDTH)
    probability, number = adversarial.served(spark, home, rows, "probability", "prediction")
    np.testing.assert_allclose(probability, model.predict_proba(rows), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(number, model.predict(rows))
