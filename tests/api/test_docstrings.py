"""The examples in the docstrings of the public names run, and print what they say."""

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.sql import SparkSession

import sparkdiff
from sparkdiff.stages.base import REGISTRY

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NEEDS = {
    "TensorBoard": "tensorboard", "Search": "optuna", "export": "onnxruntime", "from_sklearn": "sklearn",
    "from_lightgbm": "lightgbm", "from_xgboost": "xgboost", "triage": "sklearn",
}  # fmt: skip
"""The optional package that an example needs."""
SHOWN = {
    "FineTunerModel": ("FineTuner", "tuned"), "FineTuningSummary": ("FineTuner", "tuned.summary"),
    "RunRecord": ("FineTuner", "tuned.summary"),
    "GrowerModel": ("Grower", "grown"), "GrowthSummary": ("Grower", "grown.summary"),
    "ImproverModel": ("Improver", "improved"), "ImprovementSummary": ("Improver", "improved.summary"),
    "SearchModel": ("Search", "found"), "SearchSummary": ("Search", "found.summary"),
    "CompactPlan": ("compact_plan", "found"), "ExportedModel": ("export", "described"),
    "Lineage": ("why", "lineage"), "Triage": ("triage", "found"),
    "LabelModelModel": ("LabelModel", "labels"), "LabelSummary": ("LabelModel", "labels.summary"),
    "Plan": ("plan", "found"), "Network": ("translate", "network"), "Parity": ("verify", "found"),
    "ParityError": ("SparkdiffError", "sparkdiff.ParityError"),
}  # fmt: skip
"""Names that nobody makes by hand: the name whose example shows one, and what it is called there."""
SLOW: set[str] = set()


def example(name: str) -> doctest.DocTest:
    """What the docstring of a public name has of examples, not of its members; names in it are those of `churn`."""
    found = doctest.DocTestFinder(recurse=False).find(getattr(sparkdiff, name), name, module=False, globs={})
    return found[0]


@pytest.fixture(scope="module")
def churn(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that an example may use: customers who leave if they call too often, which the PCA passes over."""
    random = np.random.default_rng(3)
    rows = 600
    mature, keen = random.normal(size=(2, rows))
    noise = random.normal(size=(4, rows))
    calls = random.poisson(2.0, rows)
    leaves = 1 / (1 + np.exp(-(1.5 * (calls - 2) - 0.5 * mature)))
    table = pd.DataFrame(
        {
            "age": np.clip(45 + 12 * mature + 4 * noise[0], 18, 90).round(),
            "months": np.clip(30 + 10 * mature + 4 * noise[1], 1, 72).round(),
            "visits": np.clip(8 + 3 * keen + noise[2], 0, 30).round(),
            "basket": np.clip(40 + 15 * keen + 5 * noise[3], 1, 150).round(2),
            "calls": calls.astype(float),
            "label": (random.random(rows) < leaves).astype(float),
        }
    )
    path = tmp_path_factory.mktemp("churn") / "churn.parquet"
    table.to_parquet(path)
    df = spark.read.parquet(f"file://{path}")
    assembler = VectorAssembler(inputCols=["age", "months", "visits", "basket", "calls"], outputCol="numbers")
    scaler = StandardScaler(inputCol="numbers", outputCol="scaled", withMean=True)
    pca = PCA(inputCol="scaled", outputCol="features", k=2)
    pipeline = Pipeline(stages=[assembler, scaler, pca, LogisticRegression()])
    return {"spark": spark, "df": df, "pipeline": pipeline, "model": pipeline.fit(df)}


@pytest.fixture
def own_registry() -> Iterator[None]:
    """What an example registers is gone after it."""
    with mock.patch.dict(REGISTRY):
        yield


@pytest.mark.parametrize("name", sparkdiff.__all__)
def test_examples(
    name: str, churn: dict[str, Any], tmp_path: Path, own_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = example(name)
    if NEEDS.get(name):
        pytest.importorskip(NEEDS[name])
    found.globs = churn | {"folder": str(tmp_path)}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    outcome = runner.run(found, out=print, clear_globs=False)
    assert outcome.failed == 0, capsys.readouterr().out
