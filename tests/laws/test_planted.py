"""A change of a millionth of a natural unit in any single parameter doesn't get past `verify`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.linalg import DenseMatrix, Vectors
from pyspark.sql import DataFrame, SparkSession
from stages_and_rows import Fitted, built, sparse
from torch import Tensor

import sparkdiff
from sparkdiff.pipeline.column_tensors import read_plain, write_plain
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Differences
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.tensors.rows import Rows, dense

pytestmark = pytest.mark.once  # whether a fault of our own is noticed: no stack changes it

STEP, MOVED = 1e-6, 1e-8
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


class Outputs:
    """Spark's outputs of a stage, computed once, and the network's with one entry changed."""

    def __init__(self, stage: Any, df: DataFrame, folder: Path):
        self.stage, self.network = stage, sparkdiff.translate(stage)
        self.module = self.network.module(0)
        self.trainable = [n for n, p in type(self.module).from_spark(stage).named_parameters() if p.requires_grad]
        leaf = self.network.graph.vertices[0]
        self.columns: list[Version] = [(self.network.graph.casefold(c), 0) for c in leaf.outputs]
        write_plain(stage.transform(df), [*leaf.inputs, *leaf.outputs], folder / "rows")
        (batch,) = read_plain(folder / "rows", 1000)  # one partition, one file, one batch
        versions = [*leaf.reads, *self.columns]
        self.spark: dict[Version, Rows] = {v: batch[f"v{i}"] for i, v in enumerate(versions)}
        self.before = self.computed(self.network)

    def computed(self, network: Network) -> list[Tensor]:
        values = dict(list(self.spark.items())[: -len(self.columns)])
        with torch.no_grad():
            network.run(values, self.columns)
        labels = type(self.module).labels(self.stage)
        return [dense(values[v]) for v in self.columns if v[0] not in labels]

    def units(self) -> dict[str, Tensor]:
        """As the trainer takes them: 1 where the stage names none, relative where a parameter is positive."""
        x = dense(self.spark[self.network.reads[0]])
        y = self.before[0].flatten()
        inputs = FeatureStats(x.mean(0), x.std(0, correction=0), (x != 0).sum(0))
        units = self.module.units(inputs, LabelStats(float(y.mean()), float(y.std()), 0.0, 1.0, torch.empty(0)))
        return {name: torch.as_tensor(units.get(name, 1.0), dtype=torch.float64) for name in self.trainable}

    def changes(self) -> Iterator[tuple[str, tuple[int, ...], Network]]:
        """A network per entry that trains, with that entry changed by a millionth of its unit."""
        units, counts = self.units(), self.module.entry_mask()
        for name in self.trainable:
            shape = self.module.get_parameter(name).shape
            counting = counts.get(name, torch.ones(shape, dtype=torch.bool))
            for entry in counting.nonzero().tolist():
                network = self.network.clone()
                p, at = network.module(0).get_parameter(name), tuple(entry)
                with torch.no_grad():
                    p[at] = (
                        p[at] * np.exp(STEP)
                        if name in self.module.positive
                        else p[at] + STEP * units[name].expand(shape)[at]
                    )
                yield name, at, network

    def moved(self, network: Network) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(self.computed(network), self.before, strict=True))

    def ok(self, network: Network) -> bool:
        tally = Differences(network)
        tally.add(self.spark, self.columns)
        return tally.parity().ok


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
