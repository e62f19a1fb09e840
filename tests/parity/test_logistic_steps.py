"""A logistic regression fitted in this process is Spark's own fit: after as many steps, with the same objective at each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.ml.stat import Summarizer
from pyspark.sql import SparkSession, functions as F

from sparkdiff.tuning.solvers.logistic_steps import LogisticFit, LogisticParams, depends_on_order, fit_logistic

Array = np.ndarray[Any, Any]
Fits = Callable[..., tuple[LogisticFit, LogisticFit]]
DEFAULTS: dict[str, Any] = {
    "maxIter": 100,
    "regParam": 0.0,
    "elasticNetParam": 0.0,
    "tol": 1e-6,
    "fitIntercept": True,
    "standardization": True,
}


def features(n: int, *, seed: int = 0) -> Array:
    """Columns of different scales, a constant one, one of zeros mostly, and one far from zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) * [1.0, 1000.0, 0.001, 0.0, 1.0, 1.0] + [0.0, 0.0, 0.0, 2.5, 0.0, 30.0]
    x[rng.random(n) < 0.8, 4] = 0.0
    return x


def labels(x: Array, classes: int, *, noise: float = 1.0) -> Array:
    rng = np.random.default_rng(1)
    scores = np.outer(x[:, 0], np.arange(classes)) + np.outer(x[:, 1] / 1000, np.arange(classes) % 2)
    return (scores + noise * rng.logistic(size=scores.shape)).argmax(axis=1).astype(float)


def probabilities(fit: LogisticFit, x: Array) -> Array:
    margins = x @ fit.coefficients.T + fit.intercepts
    if margins.shape[1] == 1:
        margins = np.column_stack([np.zeros(len(x)), margins])
    exponentials = np.exp(margins - margins.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


@pytest.fixture
def fits(spark: SparkSession) -> Fits:
    def fit(
        x: Array,
        y: Array,
        params: dict[str, Any],
        *,
        family: str = "binomial",
        weights: Array | None = None,
        classes: int | None = None,
    ) -> tuple[LogisticFit, LogisticFit]:
        """Spark's fit, and ours; `classes` is the number that the label's metadata tell."""
        w = np.ones(len(y)) if weights is None else weights
        told = {"ml_attr": {"type": "nominal", "num_vals": classes}} if classes else {"none": 0}
        data = [(Vectors.dense(a), float(b), float(c)) for a, b, c in zip(x, y, w, strict=True)]
        df = spark.createDataFrame(data, ["features", "label", "weight"])
        df = df.withColumn("label", F.col("label").alias("label", metadata=told))
        named: dict[str, Any] = params if weights is None else params | {"weightCol": "weight"}
        model = LogisticRegression(family=family, **named).fit(df)
        theirs = LogisticFit(
            model.coefficientMatrix.toArray(), model.interceptVector.toArray(), list(model.summary.objectiveHistory)
        )
        known = LogisticParams(**DEFAULTS | params)
        return theirs, fit_logistic(x, y, w, classes or int(y.max()) + 1, family == "multinomial", known)

    return fit


def assert_same(ours: LogisticFit, theirs: LogisticFit, x: Array) -> None:
    assert ours.coefficients.shape == theirs.coefficients.shape and ours.intercepts.shape == theirs.intercepts.shape
    assert len(ours.objectiveHistory) == len(theirs.objectiveHistory)
    np.testing.assert_allclose(ours.objectiveHistory, theirs.objectiveHistory, rtol=1e-8)
    sizes = np.abs(theirs.coefficients).max(axis=0)
    assert (np.abs(ours.coefficients - theirs.coefficients) <= 1e-6 * sizes).all()
    np.testing.assert_allclose(ours.intercepts, theirs.intercepts, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(probabilities(ours, x), probabilities(theirs, x), atol=1e-8)


SETTINGS: list[tuple[int, str, bool, dict[str, Any]]] = [
    (2, "binomial", False, {}),
    (2, "binomial", True, {"regParam": 0.01}),
    (2, "binomial", True, {"fitIntercept": False}),
    (2, "binomial", True, {"regParam": 1.0, "elasticNetParam": 0.5, "standardization": False}),
    (2, "binomial", False, {"regParam": 0.01, "elasticNetParam": 1.0, "fitIntercept": False}),
    (2, "binomial", False, {"regParam": 0.01, "elasticNetParam": 0.5, "tol": 0.1}),
    (2, "binomial", False, {"maxIter": 0}),
    (2, "binomial", False, {"maxIter": 3, "fitIntercept": False}),
    # Each second search of these fails.
    (2, "binomial", False, {"maxIter": 6, "regParam": 1.0, "standardization": False}),
    (2, "multinomial", True, {"regParam": 0.01, "fitIntercept": False}),
    (3, "multinomial", True, {}),
    (3, "multinomial", False, {"fitIntercept": False, "maxIter": 30}),
    (3, "multinomial", False, {"regParam": 1.0, "standardization": False, "maxIter": 4}),
    (3, "multinomial", False, {"regParam": 0.01, "elasticNetParam": 0.5, "standardization": False}),
    (4, "multinomial", True, {"regParam": 0.05, "elasticNetParam": 1.0, "fitIntercept": False, "maxIter": 20}),
]


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_steps_are_those_of_sparks_own_fit(case: int, fits: Fits) -> None:
    classes, family, weighted, params = SETTINGS[case]
    x = features(400, seed=case)
    weights = np.random.default_rng(case).integers(0, 4, len(x)) / 2.0 if weighted else None
    theirs, ours = fits(x, labels(x, classes), params, family=family, weights=weights)
    assert_same(ours, theirs, x)


def test_classes_of_few_rows_and_of_none(fits: Fits) -> None:
    x = features(300)
    y = labels(x, 3)
    y[y == 2] = 3.0
    y[y == 1] = np.where(np.arange((y == 1).sum()) < 3, 1.0, 3.0)
    for params in ({"regParam": 0.01}, {"maxIter": 10}):
        theirs, ours = fits(x, y, params, family="multinomial", classes=5)
        assert_same(ours, theirs, x)


def test_rows_that_nearly_separate_the_classes(fits: Fits) -> None:
    """After many steps of an unbounded problem the paths part, those of Spark's own fits too; the predictions hardly do."""
    x = features(600)
    for classes, family in ((2, "binomial"), (3, "multinomial")):
        theirs, ours = fits(x, labels(x, classes, noise=0.02), {}, family=family)
        assert len(theirs.objectiveHistory) > 20
        np.testing.assert_allclose(ours.objectiveHistory[:20], theirs.objectiveHistory[:20], rtol=1e-6)
        np.testing.assert_allclose(probabilities(ours, x), probabilities(theirs, x), atol=1e-4)


def test_without_tolerance_both_go_on_until_no_search_succeeds(fits: Fits) -> None:
    x = features(400)
    for params in ({"tol": 0.0}, {"tol": 0.0, "regParam": 0.01, "elasticNetParam": 0.5}):
        theirs, ours = fits(x, labels(x, 2), params)
        np.testing.assert_allclose(probabilities(ours, x), probabilities(theirs, x), atol=1e-8)


@pytest.mark.parametrize(
    ("family", "label", "classes"),
    [("binomial", 0, None), ("binomial", 1, None), ("binomial", 0, 2), ("multinomial", 2, None), ("multinomial", 0, 3)],
)
def test_labels_that_are_all_equal(family: str, label: int, classes: int | None, fits: Fits) -> None:
    x = features(50)
    given: dict[str, Any] = {"family": family, "classes": classes}
    theirs, ours = fits(x, np.full(50, float(label)), {}, **given)
    assert (ours.coefficients == theirs.coefficients).all() and (ours.intercepts == theirs.intercepts).all()
    assert ours.objectiveHistory == theirs.objectiveHistory
    theirs, ours = fits(x, np.full(50, float(label)), {"fitIntercept": False, "maxIter": 5}, **given)
    assert_same(ours, theirs, x)


def test_the_order_of_rows_changes_little() -> None:
    x = features(500)
    y, order = labels(x, 3), np.random.default_rng(2).permutation(500)
    settings: list[dict[str, Any]] = [{}, {"regParam": 0.01, "elasticNetParam": 0.5}]
    for params in settings:
        given = (3, True, LogisticParams(**DEFAULTS | params))
        one = fit_logistic(x, y, np.ones(500), *given)
        other = fit_logistic(x[order], y[order], np.ones(500), *given)
        assert_same(one, other, x)


def test_constant_columns_that_spark_may_see_vary(spark: SparkSession) -> None:
    rng = np.random.default_rng(4)
    weights = rng.uniform(0.2, 3.0, 200)
    weights[::9] = 0.0
    constants = rng.normal(size=200)
    used = weights[weights > 0, None]
    doubtful = (used * constants / used != constants).any(axis=0)
    x = np.tile(constants, (200, 1))
    assert all(depends_on_order(x[:, [j]], weights) == doubtful[j] for j in range(200))
    assert not depends_on_order(x, np.ones(200)) and not depends_on_order(np.round(x), np.ceil(weights))
    assert not depends_on_order(rng.normal(size=(200, 3)), weights)
    df = spark.createDataFrame([(Vectors.dense(a), float(w)) for a, w in zip(x, weights, strict=True)], ["x", "weight"])
    found = df.select(Summarizer.metrics("std").summary(F.col("x"), F.col("weight"))).first()
    assert found is not None
    varies = found[0]["std"].toArray() > 0
    assert varies.any() and not varies[~doubtful].any()
