"""scikit-learn's trees in Spark: the same leaf for every double, the same predictions."""

from typing import Any

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
from sparkdiff.importers.sklearn import read
from tests.support import rows_on_thresholds
from tests.support.foreign_data import WIDTH, data, nominal

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
}


ALIKE = {"tree by absolute error", "extra trees", "hist quantile"}
"""Only what they are fitted by differs from others; their trees are the same."""


@pytest.mark.parametrize(
    ("name", "nan"),
    [
        *(
            pytest.param(name, takes_nan, marks=pytest.mark.nightly if name in ALIKE else ())
            for name, (_, takes_nan) in REGRESSORS.items()
        ),
        ("tree", False),
        pytest.param("forest", False, marks=pytest.mark.nightly),
        ("hist", False),
    ],
)
def test_regressors(spark: Any, name: str, nan: bool) -> None:
    """Fitted on rows with missing values where the model takes them; of each kind one that was fitted on none, but meets some."""
    model, takes_nan = REGRESSORS[name]
    X, y = data(nan=nan)
    model.fit(X, y)
    home = sparkdiff.from_sklearn(model)
    hist = name.startswith("hist")
    rows = rows_on_thresholds.rows(home, WIDTH, nan=takes_nan, inf=hist)
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    with np.errstate(invalid="ignore", over="ignore"):  # scikit-learn adds all values up
        expected = model.predict(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


CLASSIFIERS: dict[str, tuple[Any, bool]] = {
    "tree": (DecisionTreeClassifier(max_depth=6, criterion="entropy"), True),
    "forest": (RandomForestClassifier(10, max_depth=6, random_state=0), True),
    "weighted forest": (RandomForestClassifier(5, max_leaf_nodes=12, class_weight="balanced", random_state=0), True),
    "extra trees": (ExtraTreesClassifier(10, max_depth=6, random_state=0), True),
    "boosting": (GradientBoostingClassifier(n_estimators=15, random_state=0), False),
    "hist": (HistGradientBoostingClassifier(max_iter=15), True),
}


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        # Two classes are one more for trees of probabilities, and another form for boosted ones.
        pytest.param(n, k, marks=pytest.mark.nightly if k == 2 and n not in ("tree", "boosting", "hist") else ())
        for n in CLASSIFIERS
        for k in (2, 3)
    ],
)
def test_classifiers(spark: Any, name: str, classes: int) -> None:
    model, takes_nan = CLASSIFIERS[name]
    X, y = data(nan=takes_nan)
    model.fit(X, np.minimum(y, classes - 1).astype(int))
    check_classifier(spark, model, takes_nan, inf=name == "hist")


def check_classifier(spark: Any, model: Any, takes_nan: bool, *, inf: bool = False) -> None:
    home = sparkdiff.from_sklearn(model, predictionCol="number")
    rows = rows_on_thresholds.rows(home, WIDTH, nan=takes_nan, inf=inf)
    probability, number = rows_on_thresholds.served(spark, home, rows, "probability", "number")
    expected = model.predict_proba(rows)
    np.testing.assert_allclose(probability, expected, rtol=1e-12, atol=1e-12)
    top = np.sort(expected, 1)
    clear = top[:, -1] - top[:, -2] > 1e-12
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(model.classes_[number[clear].astype(int)], model.predict(rows)[clear])


@pytest.mark.parametrize("weight", [1e-7, 1.0000005])
def test_shares_of_rows_of_any_weight(weight: float) -> None:
    """A weight near a whole number isn't one, be it 0."""
    X, y = data()
    model = DecisionTreeClassifier(random_state=0).fit(X, y > 1, sample_weight=np.where(y > 1, weight, 1.0))
    (tree,) = read(model).trees
    assert tree.stats is not None
    shares = tree.stats / tree.stats.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, model.tree_.value[:, 0], rtol=1e-12)


def test_the_exponential_loss(spark: Any) -> None:
    X, y = data()
    model = GradientBoostingClassifier(loss="exponential", n_estimators=15, random_state=0).fit(X, y > 1)
    check_classifier(spark, model, False)


def test_categories(spark: Any) -> None:
    X, y = nominal()
    model = HistGradientBoostingRegressor(categorical_features=[1, 3], max_iter=15).fit(X, y)
    home = sparkdiff.from_sklearn(model)
    nodes = rows_on_thresholds.trees.read(home)
    assert (nodes.numCategories >= 0).sum() > 30  # splits of categories, of which
    ends = nodes.ends - nodes.starts
    assert (
        ends[nodes.numCategories >= 0] * 2 > nodes.numCategories[nodes.numCategories >= 0]
    ).any()  # some keep the rest left
    rows = rows_on_thresholds.rows(home, WIDTH)
    rows[:, [1, 3]] = np.clip(rows[:, [1, 3]], -1e300, 1e300)  # infinities are refused there
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    with np.errstate(invalid="ignore"):  # scikit-learn adds all values up
        expected = model.predict(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("boosted", [False, True])
def test_feature_importances(spark: Any, boosted: bool) -> None:
    """By gain; splits that only look for NaN have none."""
    X, y = data()
    model: Any = GradientBoostingRegressor(n_estimators=20) if boosted else RandomForestRegressor(10, max_depth=6)
    home = sparkdiff.from_sklearn(model.fit(X, y))
    np.testing.assert_allclose(home.featureImportances.toArray(), model.feature_importances_, rtol=1e-9)


def test_huge_numbers_are_rounded_as_float32_is(spark: Any) -> None:
    """Thresholds from 1e-44 to 3e38, which `float32(x) <= threshold` sees in steps."""
    random = np.random.default_rng(0)
    X = (10.0 ** random.uniform(-44, 38.4, size=(500, WIDTH)) * random.choice([-1, 1], (500, WIDTH))).astype(np.float32)
    model = RandomForestRegressor(10, random_state=0).fit(X, random.normal(size=500))
    home = sparkdiff.from_sklearn(model, missing="absent")
    rows = rows_on_thresholds.rows(home, WIDTH, nan=False, inf=False)
    (found,) = rows_on_thresholds.served(spark, home, rows, "prediction")
    with np.errstate(invalid="ignore", over="ignore"):  # scikit-learn adds all values up
        expected = model.predict(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
