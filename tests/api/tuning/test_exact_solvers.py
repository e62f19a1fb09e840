"""Our linear models against Spark's own fits with a small `tol`: the same predictions, no larger an objective."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.tuning.solvers import Setting, Solution, solve_generalized, solve_linear, solve_logistic
from tests.support.linear_rows import Array, Rows, deviation, objective, objective_at, rows

TIGHT = {"tol": 1e-9, "maxIter": 500, "weightCol": "weight"}
FOLD = 0


def name(value: str | Setting) -> str:
    """A setting by what differs from the defaults."""
    if isinstance(value, str):
        return value
    own = {f.name: getattr(value, f.name) for f in fields(value)}
    return ",".join(f"{k}={v}" for k, v in own.items() if v != getattr(Setting(), k))


@pytest.fixture(scope="module")
def data() -> Rows:
    """Correlated columns, a constant one, a sum of two others and a sparse one."""
    found = rows(5, "plain", 300)
    x = np.c_[found.x, np.full(300, 2.0), found.x[:, 0] + found.x[:, 1], found.x[:, 2] * (found.label > 1)]
    return Rows(x, found.label, found.weight, found.fold)


@pytest.fixture(scope="module")
def labels(data: Rows) -> dict[str, Array]:
    draw = np.random.default_rng(0)
    noisy = data.label / data.label.std() + draw.logistic(size=300)
    return {
        "number": noisy + 3.0,
        "two": (noisy > 0.5) * 1.0,
        "three": np.digitize(noisy, [-1.0, 1.0]) * 1.0,
        "count": draw.poisson(np.exp(0.3 * noisy)) * 1.0,
        "positive": np.exp(0.4 * noisy),
        "offset": 0.2 * draw.normal(size=300),
    }


@pytest.fixture(scope="module")
def df(
    spark: SparkSession, data: Rows, labels: dict[str, Array], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DataFrame]:
    """What all folds but the first train on, in memory."""
    names = [f"x{i}" for i in range(data.x.shape[1])]
    columns = {**dict(zip(names, data.x.T, strict=True)), **labels, "weight": data.weight, "fold": data.fold}
    path: Path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    read = spark.read.parquet(f"file://{path}").where(f"fold != {FOLD}").coalesce(1)
    found = VectorAssembler(inputCols=names, outputCol="features").transform(read).cache()
    yield found
    found.unpersist()


def check(
    data: Rows, setting: Setting, ours: Solution, theirs: tuple[Array, Array], sigma: float | None = None
) -> None:
    """The margins agree, and ours has no larger an objective."""
    assert ours.converged
    b, intercept = np.atleast_2d(ours.coefficients.numpy()), np.atleast_1d(ours.intercept.numpy())
    margins, expected = (data.x @ w.T + c for w, c in ((b, intercept), theirs))
    if len(b) > 1:
        margins, expected = (m - m.mean(1, keepdims=True) for m in (margins, expected))
    assert margins == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())
    assert objective_at(data, setting, ours, sigma) <= objective(data, setting, *theirs, sigma) * (1 + 1e-9)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("label", "setting"),
    [
        ("two", Setting(1e-3, 0.0, True, True)),
        ("two", Setting(1e-2, 0.5, False, False)),
        ("two", Setting(1e-2, 0.3, True, True, family="multinomial")),
        ("three", Setting(1e-2, 0.0, True, False)),
        ("three", Setting(3e-2, 0.5, True, True)),
    ],
    ids=name,
)
def test_logistic(df: DataFrame, data: Rows, labels: dict[str, Array], label: str, setting: Setting) -> None:
    own = Rows(data.x, labels[label], data.weight, data.fold)
    params = {
        name: getattr(setting, name)
        for name in ("regParam", "elasticNetParam", "fitIntercept", "standardization", "family")
    }
    model = LogisticRegression(labelCol=label, **params, **TIGHT).fit(df)
    [[ours, *_]] = solve_logistic(own.chunks, [setting], 3, 3 if label == "three" else 2)
    check(own, setting, ours, (model.coefficientMatrix.toArray(), model.interceptVector.toArray()))


@pytest.mark.parametrize(
    "setting",
    [
        Setting(0.1, 0.0, True, False),
        Setting(0.1, 0.4, True, True),
        Setting(0.1, 0.0, False, True, solver="l-bfgs"),
        Setting(0.1, 0.4, True, False, solver="l-bfgs"),
    ],
    ids=name,
)
def test_linear(df: DataFrame, data: Rows, labels: dict[str, Array], setting: Setting) -> None:
    own = Rows(data.x, labels["number"], data.weight, data.fold)
    params = {
        name: getattr(setting, name)
        for name in ("regParam", "elasticNetParam", "fitIntercept", "standardization", "solver")
    }
    model = LinearRegression(labelCol="number", **params, **TIGHT).fit(df)
    [[ours, *_]] = solve_linear(own.chunks, [setting], 3)
    sigma = deviation(own, setting)
    check(own, setting, ours, (model.coefficients.toArray()[None], np.array([model.intercept])), sigma)


@pytest.mark.parametrize(
    ("label", "setting"),
    [
        ("count", Setting(1e-2, family="poisson", link="log")),
        ("positive", Setting(1e-2, family="gamma", link="log")),
        ("two", Setting(1e-2, family="binomial")),
        ("number", Setting(0.1, family="gaussian")),
    ],
    ids=name,
)
def test_generalized(df: DataFrame, data: Rows, labels: dict[str, Array], label: str, setting: Setting) -> None:
    own = Rows(data.x, labels[label], data.weight, data.fold, labels["offset"])
    params = {n: v for n in ("family", "link", "regParam") if (v := getattr(setting, n)) is not None}
    model = GeneralizedLinearRegression(labelCol=label, offsetCol="offset", **params, **TIGHT).fit(df)
    [[ours, *_]] = solve_generalized(own.chunks, [setting], 3)
    assert ours.converged
    expected = own.x @ model.coefficients.toArray() + model.intercept
    assert own.x @ ours.coefficients.numpy() + float(ours.intercept) == pytest.approx(expected, abs=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("label", "setting"),
    [
        ("two", Setting(1e-3)),
        ("three", Setting(3e-3, 0.5)),
        ("number", Setting(0.1, 0.4, solver="l-bfgs")),
    ],
    ids=name,
)
def test_where_spark_stops_early_the_objective_is_smaller(
    df: DataFrame, data: Rows, labels: dict[str, Array], label: str, setting: Setting
) -> None:
    """At Spark's default `tol` and `maxIter`."""
    own = Rows(data.x, labels[label], data.weight, data.fold)
    params = {"regParam": setting.regParam, "elasticNetParam": setting.elasticNetParam}
    if label == "number":
        model = LinearRegression(labelCol=label, weightCol="weight", solver="l-bfgs", **params).fit(df)
        theirs, sigma = (model.coefficients.toArray()[None], np.array([model.intercept])), deviation(own, setting)
        [[ours, *_]] = solve_linear(own.chunks, [setting], 3)
    else:
        classifier = LogisticRegression(labelCol=label, weightCol="weight", **params).fit(df)
        theirs, sigma = (classifier.coefficientMatrix.toArray(), classifier.interceptVector.toArray()), None
        [[ours, *_]] = solve_logistic(own.chunks, [setting], 3, 3 if label == "three" else 2)
    assert ours.converged
    assert 0 < objective_at(own, setting, ours, sigma) < objective(own, setting, *theirs, sigma)
