"""LightGBM's trees in Spark: the same leaf for every double, the same predictions."""

from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

import sparkdiff
from sparkdiff import InputError
from tests.support import rows_on_thresholds
from tests.support.foreign_data import SMALL_LIGHTGBM as SMALL, WIDTH, data, nominal, whole

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
    "probability": {"objective": "binary", "sigmoid": 1.7},
    "dart": {"boosting_type": "dart", "drop_rate": 0.5},
    "goss": {"data_sample_strategy": "goss"},
    "forest": {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
    "stumps that stop": {"min_child_samples": 150, "num_leaves": 2},
    "no tree splits": {"min_child_samples": 300},
    "no missing": {"use_missing": False},
}


ALIKE = {"absolute", "huber", "fair", "mape", "goss"}
"""Only what they are fitted by differs from `squared` and `quantile`."""


@pytest.mark.parametrize(
    ("name", "nan"),
    [
        *(pytest.param(name, True, marks=pytest.mark.nightly if name in ALIKE else ()) for name in REGRESSIONS),
        ("squared", False),
        ("no missing", False),
        *(pytest.param(name, False, marks=pytest.mark.nightly) for name in ("forest", "goss")),
    ],
)
def test_regressions(spark: Any, name: str, nan: bool) -> None:
    X, y = data(nan=nan)
    X[::3, 3] = 0.0  # LightGBM's zeros have a bin of their own
    y = {"gamma": y + 1, "cross entropy": y / y.max(), "probability": y > 1}.get(name, y)
    model = lgb.LGBMRegressor(**SMALL | REGRESSIONS[name]).fit(X, y)
    home = sparkdiff.from_lightgbm(model)
    rows = rows_on_thresholds.rows(home, WIDTH)
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-12, atol=1e-12)


FOREST = {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}


@pytest.mark.parametrize(
    ("classes", "options"), [*((k, o) for k in (2, 3) for o in ({}, FOREST)), (2, {"objective": "cross_entropy"})]
)
def test_classifiers(spark: Any, classes: int, options: dict[str, Any]) -> None:
    X, y = data(nan=True)
    extra = {"sigmoid": 1.7} if classes == 2 and not options.get("objective") else {}
    model = lgb.LGBMClassifier(**SMALL, **options, **extra).fit(X, np.minimum(y, classes - 1).astype(int))
    home = sparkdiff.from_lightgbm(model)
    rows = rows_on_thresholds.rows(home, WIDTH)
    probability, number = rows_on_thresholds.served(spark, home, rows, "probability", "prediction")
    np.testing.assert_allclose(probability, model.predict_proba(rows), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(number, model.predict(rows))


def test_zero_as_missing(spark: Any) -> None:
    """Zeros that go with their neighbours come home, others can't."""
    X = np.abs(data()[0][:, :1])
    X[::4] = 0
    options = SMALL | {"n_estimators": 3, "num_leaves": 2, "zero_as_missing": True}
    model = lgb.LGBMRegressor(**options).fit(X, X[:, 0] > 1)
    home = sparkdiff.from_lightgbm(model)
    rows = rows_on_thresholds.rows(home, 1)
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-12, atol=1e-12)
    assert len(np.unique(found)) > 1
    with pytest.raises(InputError, match="feature 0: with zero_as_missing a split sends zeros to another side"):
        sparkdiff.from_lightgbm(lgb.LGBMRegressor(**options).fit(X, (X[:, 0] > 1) | (X[:, 0] == 0)))


def test_categories(spark: Any) -> None:
    X, y = nominal()
    model = lgb.LGBMRegressor(**SMALL, cat_smooth=1, min_data_per_group=5).fit(X, y, categorical_feature=[1, 3])
    with pytest.raises(InputError, match=r"feature \d is categorical.*categories='whole'"):
        sparkdiff.from_lightgbm(model)
    home = sparkdiff.from_lightgbm(model, categories="whole")
    assert (rows_on_thresholds.trees.read(home).numCategories >= 0).sum() > 10
    rows = whole(rows_on_thresholds.rows(home, WIDTH))
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
def test_the_best_iteration(spark: Any) -> None:
    """A Booster stops where its own predict does."""
    X, y = data()
    model = lgb.LGBMRegressor(**SMALL | {"n_estimators": 300, "learning_rate": 0.5})
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])], callbacks=[lgb.early_stopping(3, verbose=False)])
    assert 0 < model.best_iteration_ < 100
    for each in (model, model.booster_):
        home = sparkdiff.from_lightgbm(each)
        assert home.getNumTrees == model.best_iteration_
        (found,) = rows_on_thresholds.served(spark, home, X, "prediction")
        np.testing.assert_allclose(found, each.predict(X), rtol=1e-12)


def test_feature_importances(spark: Any) -> None:
    X, y = data()
    model = lgb.LGBMRegressor(**SMALL, importance_type="gain").fit(X, y)
    expected = model.feature_importances_ / model.feature_importances_.sum()
    np.testing.assert_allclose(sparkdiff.from_lightgbm(model).featureImportances.toArray(), expected, rtol=1e-4)
