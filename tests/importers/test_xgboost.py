"""XGBoost's trees in Spark: the same leaf for every double, predictions as near as its float32 sums."""

from typing import Any

import numpy as np
import pytest
import xgboost as xgb

import sparkdiff
from sparkdiff import InputError
from sparkdiff.importers.xgboost import read
from tests.support import rows_on_thresholds
from tests.support.foreign_data import WIDTH, data, nominal, whole

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
    "probability": {"objective": "binary:logistic"},
    "dart": {"booster": "dart", "rate_drop": 0.5},
    "parallel": {"num_parallel_tree": 3, "subsample": 0.6},
    "best first": {"grow_policy": "lossguide", "max_leaves": 9, "max_depth": 0},
}


ALIKE = {"absolute", "huber"}
"""Only what they are fitted by differs from `squared` and `quantile`."""


@pytest.mark.parametrize(
    ("name", "nan"),
    [
        *(pytest.param(name, True, marks=pytest.mark.nightly if name in ALIKE else ()) for name in REGRESSIONS),
        ("squared", False),
        *(pytest.param(name, False, marks=pytest.mark.nightly) for name in ("dart", "best first")),
    ],
)
def test_regressions(spark: Any, name: str, nan: bool) -> None:
    X, y = data(nan=nan)
    y = {"gamma": y + 1, "logistic": y / y.max(), "probability": y > 1}.get(name, y)
    model = xgb.XGBRegressor(**SMALL | REGRESSIONS[name]).fit(X, y)
    home = sparkdiff.from_xgboost(model)
    rows = rows_on_thresholds.rows(home, WIDTH, inf=False)
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "options"),
    [*((k, o) for k in (2, 3) for o in ({}, {"base_score": 0.3})), (2, {"objective": "reg:logistic"})],
)
def test_classifiers(spark: Any, classes: int, options: dict[str, Any]) -> None:
    X, y = data(nan=True)
    model = xgb.XGBClassifier(**SMALL, **options).fit(X, np.minimum(y, classes - 1).astype(int))
    home = sparkdiff.from_xgboost(model)
    rows = rows_on_thresholds.rows(home, WIDTH, inf=False)
    probability, number = rows_on_thresholds.served(spark, home, rows, "probability", "prediction")
    expected = model.predict_proba(rows)
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    clear = np.ptp(np.sort(expected, 1)[:, -2:], axis=1) > 1e-5
    np.testing.assert_array_equal(number[clear], model.predict(rows)[clear])


def test_missing_none_is_nan() -> None:
    X, y = data(nan=True)
    one, other = (read(xgb.XGBRegressor(**SMALL, missing=missing).fit(X, y), whole=False) for missing in (None, np.nan))
    for tree, same in zip(one.trees, other.trees, strict=True):
        np.testing.assert_array_equal(tree.nanLeft, same.nanLeft)
        np.testing.assert_array_equal(tree.value, same.value)


def test_categories(spark: Any) -> None:
    X, y = nominal()
    model = xgb.XGBRegressor(
        **SMALL, enable_categorical=True, feature_types=["q", "c", "q", "c"], max_cat_to_onehot=3
    ).fit(X, y)
    with pytest.raises(InputError, match=r"feature \d is categorical.*categories='whole'"):
        sparkdiff.from_xgboost(model)
    home = sparkdiff.from_xgboost(model, categories="whole")
    assert (rows_on_thresholds.trees.read(home).numCategories >= 0).sum() > 10
    rows = whole(rows_on_thresholds.rows(home, WIDTH, inf=False))
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=2e-6, atol=1e-6)


def test_the_best_iteration(spark: Any) -> None:
    """An estimator stops where its own predict does, and a Booster doesn't."""
    X, y = data()
    model = xgb.XGBRegressor(**SMALL | {"n_estimators": 300, "learning_rate": 0.5, "early_stopping_rounds": 3})
    model.fit(X[:200], y[:200], eval_set=[(X[200:], y[200:])], verbose=False)
    booster = model.get_booster()
    assert model.best_iteration + 1 < booster.num_boosted_rounds() < 100
    for each, trees, rows in (
        (model, model.best_iteration + 1, X),
        (booster, booster.num_boosted_rounds(), xgb.DMatrix(X)),
    ):
        home = sparkdiff.from_xgboost(each, missing="absent")
        assert home.getNumTrees == trees + 1  # and one leaf, the base score
        (found,) = rows_on_thresholds.served(spark, home, X, "prediction")
        np.testing.assert_allclose(found, each.predict(rows), rtol=2e-6, atol=1e-6)


def test_feature_importances(spark: Any) -> None:
    X, y = data()
    model = xgb.XGBRegressor(**SMALL, importance_type="total_gain").fit(X, y)
    found = sparkdiff.from_xgboost(model).featureImportances.toArray()
    np.testing.assert_allclose(found, model.feature_importances_, rtol=1e-5)


def test_huge_numbers_are_rounded_as_float32_is(spark: Any) -> None:
    random = np.random.default_rng(0)
    X = (10.0 ** random.uniform(-44, 38.4, size=(500, WIDTH)) * random.choice([-1, 1], (500, WIDTH))).astype(np.float32)
    model = xgb.XGBRegressor(**SMALL | {"tree_method": "exact"}).fit(X, random.normal(size=500))
    home = sparkdiff.from_xgboost(model)
    rows = rows_on_thresholds.rows(home, WIDTH, inf=False)
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    np.testing.assert_allclose(found, model.predict(rows), rtol=2e-6, atol=1e-6)
