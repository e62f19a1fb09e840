"""Evidence of seen rows on stages that Spark fits: the rows that roots count, and the equations of a linear stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyspark.ml.classification import (
    DecisionTreeClassifier,
    GBTClassifier,
    LinearSVC,
    LogisticRegression,
    RandomForestClassifier,
)
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import (
    DecisionTreeRegressor,
    GBTRegressor,
    GeneralizedLinearRegression,
    LinearRegression,
    RandomForestRegressor,
)
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.evaluation.seen_rows import LinearRows, Penalty, RowCount, p_of_equations, rows_of_roots
from sparkdiff.jvm import trees
from sparkdiff.stages.base import REGISTRY
from sparkdiff.stages.predictor import Predictor

ROWS = 600
TREES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "tree of classes": (DecisionTreeClassifier, {}),
    "tree of numbers": (DecisionTreeRegressor, {}),
    "forest of classes": (RandomForestClassifier, {"numTrees": 30}),
    "forest of numbers": (RandomForestRegressor, {"numTrees": 30, "subsamplingRate": 0.5}),
    "forest without replacement": (RandomForestRegressor, {"numTrees": 30, "bootstrap": False, "subsamplingRate": 0.5}),
    "forest of all rows": (RandomForestClassifier, {"numTrees": 5, "bootstrap": False}),
    "boosted classes": (GBTClassifier, {"maxIter": 3}),
    "boosted numbers": (GBTRegressor, {"maxIter": 12, "subsamplingRate": 0.4, "maxDepth": 1}),
}
LINEAR: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "least squares": (LinearRegression, {}),
    "ridge": (LinearRegression, {"regParam": 0.5}),
    "ridge, columns as they are": (LinearRegression, {"regParam": 0.5, "standardization": False}),
    "elastic net": (LinearRegression, {"regParam": 0.2, "elasticNetParam": 0.5, "tol": 1e-10, "maxIter": 500}),
    "no intercept": (LinearRegression, {"fitIntercept": False, "regParam": 0.1}),
    "huber": (LinearRegression, {"loss": "huber", "regParam": 0.1, "tol": 1e-9, "maxIter": 500}),
    "poisson": (GeneralizedLinearRegression, {"family": "poisson", "labelCol": "count", "regParam": 0.1}),
    "gamma": (GeneralizedLinearRegression, {"family": "gamma", "link": "log", "labelCol": "size"}),
    "probit": (GeneralizedLinearRegression, {"family": "binomial", "link": "probit", "labelCol": "flag"}),
    "tweedie": (
        GeneralizedLinearRegression,
        {"family": "tweedie", "variancePower": 1.5, "linkPower": 0.0, "labelCol": "size"},
    ),
    "logistic": (LogisticRegression, {"labelCol": "flag"}),
    "logistic, ridge": (LogisticRegression, {"labelCol": "flag", "regParam": 0.1, "tol": 1e-9}),
    "logistic, lasso": (
        LogisticRegression,
        {"labelCol": "flag", "regParam": 0.05, "elasticNetParam": 1.0, "tol": 1e-10, "maxIter": 500},
    ),
    "three classes": (LogisticRegression, {"labelCol": "class", "tol": 1e-9}),
    "three classes, elastic net": (
        LogisticRegression,
        {"labelCol": "class", "regParam": 0.02, "elasticNetParam": 0.5, "tol": 1e-10, "maxIter": 500},
    ),
    "hinge": (LinearSVC, {"labelCol": "flag", "regParam": 0.1, "maxIter": 100, "tol": 1e-9}),
}


def table(seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=(ROWS, 6)) * [1, 3, 0.2, 1, 1, 10] + [0, 1, 5, 0, 0, 0]
    z = x @ [0.5, 0.2, 2, -0.5, 0.3, 0.05] - 10
    frame = pd.DataFrame(x, columns=list("abcdef"))
    frame["label"] = z + 3 * random.normal(size=ROWS) + 4
    frame["flag"] = (z + random.logistic(size=ROWS) > 0).astype(float)
    frame["class"] = np.argmax(np.stack([z, -z, 0 * z], 1) + random.gumbel(size=(ROWS, 3)), 1).astype(float)
    frame["count"], frame["size"] = random.poisson(np.exp(z / 2)).astype(float), random.gamma(2, np.exp(z / 2) / 2)
    frame["weight"] = random.uniform(0.5, 3, ROWS)
    return frame


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    return {"own": table(0), "others": table(1)}


@pytest.fixture(scope="module")
def rows(spark: SparkSession, frames: dict[str, pd.DataFrame]) -> DataFrame:
    own = frames["own"]
    assembler = VectorAssembler(inputCols=list("abcdef"), outputCol="features")
    return assembler.transform(spark.createDataFrame(own.to_numpy().tolist(), list(own.columns))).cache()


def count_of(model: Any) -> RowCount | None:
    nodes = trees.read(model)
    forest = model.hasParam("bootstrap")
    return rows_of_roots(
        torch.from_numpy(nodes.rawCount[nodes.offsets[:-1]].copy()),
        model.getOrDefault("subsamplingRate") if trees.is_ensemble(model) else 1.0,
        bootstrap=forest and model.getOrDefault("bootstrap"),
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", TREES)
def test_roots_tell_the_number_of_rows_whatever_their_weights(name: str, rows: DataFrame, tmp_path: Path) -> None:
    kind, settings = TREES[name]
    label = "flag" if "lass" in name or name == "forest of all rows" else "label"
    model = kind(labelCol=label, weightCol="weight", **({"seed": 1} | {"maxDepth": 2} | settings)).fit(rows)
    found = count_of(model)
    assert found is not None and abs(found.rows - ROWS) <= 3 * found.error
    assert not found.exceeds(ROWS) and found.exceeds(ROWS // 2)
    assert (found.error == 0) == (found.rows == ROWS) == (name.startswith(("tree", "boosted classes", "forest of all")))
    model.write().save(f"file://{tmp_path}/model")
    assert count_of(type(model).load(f"file://{tmp_path}/model")) == found


@pytest.mark.nightly
@pytest.mark.parametrize("name", LINEAR)
def test_equations_of_linear_stages_hold_only_on_own_rows(
    name: str, rows: DataFrame, frames: dict[str, pd.DataFrame]
) -> None:
    kind, settings = LINEAR[name]
    model = kind(**settings, weightCol="weight").fit(rows)
    head, label = (
        REGISTRY[f"{kind.__module__}.{type(model).__name__}"].from_spark(model),
        settings.get("labelCol", "label"),
    )
    strength, share = settings.get("regParam", 0.0), settings.get("elasticNetParam", 0.0)
    assert isinstance(head, Predictor)
    standardization = model.hasParam("standardization") and model.getOrDefault("standardization")

    def p(frame: pd.DataFrame, penalty: Penalty) -> float:
        x, y, w = (torch.tensor(frame[c].to_numpy()) for c in (list("abcdef"), label, "weight"))
        with torch.no_grad():
            batch = LinearRows(x, head.margin(x), y, w)
        found = p_of_equations(head, lambda: iter([batch]), penalty)
        assert found is not None
        return found

    right = Penalty(strength * (1 - share), strength * share, standardization)
    assert p(frames["own"], right) < 1e-5  # rows on the hinge's corner have a slope between two
    assert p(frames["others"], right) > 0.01
    if strength:
        assert p(frames["own"], Penalty()) > p(frames["own"], right)
