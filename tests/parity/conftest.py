"""A small table and fitted stages over it, made once per run."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import PCA, MinMaxScaler, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession

from tests.support import acceptances
from tests.support.readable_uids import named


@pytest.fixture(scope="session")
def df(spark: SparkSession) -> DataFrame:
    """120 rows: `kind` (strings) and its `index`, numbers `a`, `b`, `c` (constant), `label` in 0/1, `grade` in 0/1/2, `count`."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(120):
        a, b = float(random.normal()), float(random.normal(2, 5))
        eta = a - b / 5 + (i % 4) / 2
        rows.append(
            (
                "abca"[i % 4],
                float(i % 3),
                a,
                b,
                7.0,
                float(eta + random.normal() > 0),
                float(random.integers(3)),
                float(random.poisson(np.exp(eta / 2))),
                float(1 + i % 2),
            )
        )
    names = ["kind", "index", "a", "b", "c", "label", "grade", "count", "weight"]
    return spark.createDataFrame(rows, names).repartition(2).cache()


@pytest.fixture(scope="session")
def fitted(df: DataFrame) -> dict[str, Any]:
    """One fitted stage per class, its name as uid; `vector` is the assembler's output and every other one's input."""
    made: dict[str, Any] = {
        "assembler": named("assembler", VectorAssembler, inputCols=["a", "b", "c"], outputCol="vector")
    }
    data = made["assembler"].transform(df).cache()
    vector = {"featuresCol": "vector"}
    for name, estimator, params in [
        ("indexer", StringIndexer, {"inputCol": "kind", "outputCol": "kindIndex"}),
        ("encoder", OneHotEncoder, {"inputCols": ["index"], "outputCols": ["hot"]}),
        ("scaler", StandardScaler, {"inputCol": "vector", "outputCol": "scaled", "withMean": True}),
        ("minmax", MinMaxScaler, {"inputCol": "vector", "outputCol": "squeezed"}),
        ("pca", PCA, {"inputCol": "vector", "outputCol": "components", "k": 2}),
        ("linear", LinearRegression, {"labelCol": "count", **vector}),
        ("glr", GeneralizedLinearRegression, {"labelCol": "count", "family": "poisson", "link": "log", **vector}),
        ("logistic", LogisticRegression, {"maxIter": 5, **vector}),
        ("softmax", LogisticRegression, {"labelCol": "grade", "maxIter": 5, **vector}),
    ]:
        made[name] = named(name, estimator, **params).fit(data)
    return made


@pytest.fixture(scope="session")
def tool() -> Any:
    """tools/stage_coverage.py, which makes one stage of each class."""
    path = Path(__file__).parents[2] / "tools" / "stage_coverage.py"
    spec = importlib.util.spec_from_file_location("stage_coverage", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["stage_coverage"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def still_accepted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a Scorer, TorchTransformer and ONNX took of the pipelines that a test verifies, they take still."""
    watched = acceptances.KINDS[-1]()
    with watched.watching(monkeypatch):
        yield
    assert not (wrong := watched.check()), "\n".join(wrong[:5])
