"""The examples in the docstrings of the public names run, and print what they say."""

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.sql import SparkSession

import sparkdiff
from sparkdiff.stages.base import REGISTRY

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NEEDS = {
    "Search": ("optuna",),
    "TensorBoard": ("tensorboard",),
    "export": ("onnx", "onnxruntime"),
    "from_lightgbm": ("lightgbm",),
    "from_sklearn": ("sklearn",),
    "from_xgboost": ("xgboost",),
    "triage": ("sklearn",),
}
"""Packages that an example needs, and that may be missing."""
SHOWN = {
    "FineTunerModel": ("FineTuner", "tuned"),
    "FineTuningSummary": ("FineTuner", "tuned.summary"),
    "RunRecord": ("FineTuner", "tuned.summary"),
    "GrowerModel": ("Grower", "grown"),
    "GrowthSummary": ("Grower", "grown.summary"),
    "ImproverModel": ("Improver", "improved"),
    "ImprovementSummary": ("Improver", "improved.summary"),
    "SearchModel": ("Search", "found"),
    "SearchSummary": ("Search", "found.summary"),
    "CompactPlan": ("compact_plan", "found"),
    "ExportedModel": ("export", "described"),
    "Lineage": ("why", "lineage"),
    "Triage": ("triage", "found"),
    "LabelModelModel": ("LabelModel", "labels"),
    "LabelSummary": ("LabelModel", "labels.summary"),
    "Plan": ("plan", "found"),
    "Network": ("translate", "network"),
    "Parity": ("verify", "found"),
    "ParityError": ("SparkdiffError", "sparkdiff.ParityError"),
}
"""Names that nobody makes by hand -> the name whose example shows one, and what it is called there."""
MARKS = {
    **dict.fromkeys(("FineTuner", "Search", "TorchTransformer", "plain", "why"), pytest.mark.slow),
    **dict.fromkeys(("Grower", "Improver"), pytest.mark.nightly),
}


def example(name: str) -> doctest.DocTest:
    """The example in the docstring of a public name, not in those of its members."""
    found = doctest.DocTestFinder(recurse=False).find(getattr(sparkdiff, name), name, module=False, globs={})
    return found[0]


@pytest.fixture(scope="session")
def churn(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an example may use without making it, by name. Who calls often leaves, and calls are what the PCA passes over."""
    random = np.random.default_rng(3)
    rows = 600
    mature, keen = random.normal(size=(2, rows))
    noise = random.normal(size=(4, rows))
    calls = random.poisson(2.0, rows)
    leaves = 1 / (1 + np.exp(-(1.5 * (calls - 2) - 0.5 * mature)))
    columns = {  # whole numbers or cents: further digits may depend on the processor, and a row's bits decide its split
        "age": np.clip(45 + 12 * mature + 4 * noise[0], 18, 90).round(),
        "months": np.clip(30 + 10 * mature + 4 * noise[1], 1, 72).round(),
        "visits": np.clip(8 + 3 * keen + noise[2], 0, 30).round(),
        "basket": np.clip(40 + 15 * keen + 5 * noise[3], 1, 150).round(2),
        "calls": calls.astype(np.float64),
        "label": (random.random(rows) < leaves).astype(np.float64),
    }
    path = tmp_path_factory.mktemp("churn") / "churn.parquet"
    pq.write_table(pa.table(columns), path)
    df = spark.read.parquet(f"file://{path}")
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=["age", "months", "visits", "basket", "calls"], outputCol="numbers"),
            StandardScaler(inputCol="numbers", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="features", k=2),
            LogisticRegression(),
        ]
    )
    return {"spark": spark, "df": df, "pipeline": pipeline, "model": pipeline.fit(df)}


@pytest.fixture
def registry() -> Iterator[None]:
    """Drops what an example registers."""
    with mock.patch.dict(REGISTRY):
        yield


@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in sparkdiff.__all__])
def test_examples(name: str, churn: dict[str, Any], registry: None, tmp_path: Path) -> None:
    if name in SHOWN:
        other, shown = SHOWN[name]
        code = "".join(line.source for line in example(other).examples)
        assert re.search(rf"\b{re.escape(shown)}\b", code), f"the example of {other} has no {shown}"
        return
    found = example(name)
    assert found.examples, f"{name} has no example, and SHOWN names no other one that shows it"
    assert "\n\nExamples:\n    >>> " in str(inspect.getdoc(getattr(sparkdiff, name))), (
        "the site knows this heading only"
    )
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    found.globs = churn | {"folder": str(tmp_path)}
    said: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(found, out=said.append, clear_globs=False)
    assert not outcome.failed, "".join(said)
    for kind, (other, shown) in SHOWN.items():
        if other == name:
            value, wanted = eval(shown, found.globs), getattr(sparkdiff, kind)
            assert value is wanted or isinstance(value, wanted), f"{shown} is no {kind}"
