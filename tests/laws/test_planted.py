"""A change of a millionth of a natural unit in any single parameter doesn't get past `verify`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import DenseMatrix, Vectors
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from tests.support.changed_entries import MOVED, Outputs
from tests.support.stages_and_rows import Fitted, built, sparse

WIDTH = 4
random = np.random.default_rng(3)
W = random.normal(size=(3, WIDTH))
KEEPS_ZERO = {"coefficients": W[0] / 2, "intercept": 0.0}
FREE = {"coefficients": W[1] / 2, "intercept": 0.7}
POSITIVE = {"coefficients": np.abs(W[2]) / 9, "intercept": 3.0}  # with features in 0 .. 10 the margin stays above 0


def logistic(rows: int, *, intercepts: bool = True) -> dict[str, Any]:
    return {
        "coefficientMatrix": W[:rows],
        "interceptVector": np.linspace(-1, 1, rows) if intercepts else np.zeros(rows),
        "numClasses": max(rows, 2),
        "isMultinomial": rows > 1,
    }


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "StandardScaler": ("StandardScaler", {"std": np.array([1e-4, 1.0, 0.0, 250.0]), "mean": W[0]}, {"withMean": True}),
    "StandardScaler without mean": ("StandardScaler", {"std": np.array([0.3, 2.0, 1.0, 9.0]), "mean": W[0]}, {}),
    "StandardScaler without std": (
        "StandardScaler",
        {"std": np.ones(4), "mean": W[0]},
        {"withMean": True, "withStd": False},
    ),
    "MinMaxScaler": (
        "MinMaxScaler",
        {"originalMin": np.array([0.0, -1.0, 2.0, -20.0]), "originalMax": np.array([0.1, 1.0, 2.0, 40.0])},
        {},
    ),
    "MinMaxScaler to an interval": (
        "MinMaxScaler",
        {"originalMin": W[0], "originalMax": W[0] + 2},
        {"min": -3.0, "max": 5.0},
    ),
    "PCA": ("PCA", {"pc": W[:2].T, "explainedVariance": np.array([0.6, 0.3])}, {"k": 2}),
    "LinearRegression": ("LinearRegression", {**FREE, "scale": 1.0}, {}),
    "LinearRegression through 0": ("LinearRegression", {**KEEPS_ZERO, "scale": 1.0}, {"fitIntercept": False}),
    "GLR gaussian": ("GeneralizedLinearRegression", FREE, {}),
    "GLR gaussian inverse": ("GeneralizedLinearRegression", POSITIVE, {"link": "inverse"}),
    "GLR poisson": ("GeneralizedLinearRegression", FREE, {"family": "poisson", "linkPredictionCol": "link"}),
    "GLR poisson sqrt": (
        "GeneralizedLinearRegression",
        FREE,
        {"family": "poisson", "link": "sqrt", "offsetCol": "offset"},
    ),
    "GLR gamma": ("GeneralizedLinearRegression", POSITIVE, {"family": "gamma"}),
    "GLR binomial": ("GeneralizedLinearRegression", FREE, {"family": "binomial"}),
    "GLR binomial probit": ("GeneralizedLinearRegression", FREE, {"family": "binomial", "link": "probit"}),
    "GLR binomial cloglog through 0": (
        "GeneralizedLinearRegression",
        KEEPS_ZERO,
        {"family": "binomial", "link": "cloglog", "fitIntercept": False},
    ),
    "GLR tweedie": ("GeneralizedLinearRegression", POSITIVE, {"family": "tweedie", "variancePower": 1.5}),
    "GLR tweedie log": (
        "GeneralizedLinearRegression",
        FREE,
        {"family": "tweedie", "variancePower": 1.7, "linkPower": 0.0},
    ),
    "LogisticRegression": ("LogisticRegression", logistic(1), {}),
    "LogisticRegression of 2 rows": ("LogisticRegression", logistic(2), {}),
    "LogisticRegression of 3 rows": ("LogisticRegression", logistic(3), {"thresholds": [0.2, 0.5, 0.3]}),
    "LogisticRegression through 0": ("LogisticRegression", logistic(3, intercepts=False), {"fitIntercept": False}),
    "LogisticRegression, probability only": ("LogisticRegression", logistic(1), {"rawPredictionCol": ""}),
    "LogisticRegression with bounds": (
        "LogisticRegression",
        logistic(1),
        {"lowerBoundsOnCoefficients": DenseMatrix(1, WIDTH, W[0] - 1)},
    ),
}


@pytest.fixture(scope="session")
def rows(spark: SparkSession) -> DataFrame:
    """Ordinary rows, dense and sparse ones."""
    values = random.uniform(0, 3, size=(40, WIDTH)) * random.integers(0, 2, size=(40, WIDTH))
    data = [(Vectors.dense(v) if i % 3 else sparse(v), float(i % 5) / 4) for i, v in enumerate(values)]
    return spark.createDataFrame(data, ["features", "offset"]).coalesce(1).cache()


def stage_of(fitted: Fitted, case: str) -> Any:
    name, weights, params = CASES[case]
    column = "inputCol" if name in ("StandardScaler", "MinMaxScaler", "PCA") else "featuresCol"
    return built(fitted(name), weights, **{column: "features"}, **params)


@pytest.mark.parametrize("case", CASES)
def test_every_change_is_seen(fitted: Fitted, rows: DataFrame, tmp_path: Path, case: str) -> None:
    outputs = Outputs(stage_of(fitted, case), rows, tmp_path)
    assert outputs.ok(outputs.network)
    changes = list(outputs.changes())
    assert len(changes) >= WIDTH - 1
    for name, entry, network in changes:
        assert outputs.moved(network) > MOVED, f"the rows don't exercise {name}{list(entry)}"
        assert not outputs.ok(network), f"{name}{list(entry)} changed, and parity is still ok"


ONE_PER_CLASS = ["StandardScaler", "MinMaxScaler", "PCA", "LinearRegression", "GLR poisson", "LogisticRegression"]


@pytest.mark.parametrize("case", ONE_PER_CLASS)
def test_verify_sees_it(fitted: Fitted, rows: DataFrame, tmp_path: Path, case: str) -> None:
    stage = stage_of(fitted, case)
    assert sparkdiff.verify(stage, rows).ok
    name, entry, network = list(Outputs(stage, rows, tmp_path).changes())[-1]
    parity = sparkdiff.verify(stage, rows, network=network)
    assert not parity.ok, f"{name}{list(entry)}: {parity}"
    assert max(parity.maxRelDiff.values()) > 1e-9
    assert parity.rows == rows.count()
