"""Rows that prove nothing, through the public face: rare large labels, lucky predictions, few groups of a class, heavy rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import VectorAssembler, VectorSlicer
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import FineTuner, Search

COLUMNS = ["x0", "x1", "x2"]


def fitted(head: Any, rows: DataFrame) -> PipelineModel:
    return Pipeline(stages=[VectorAssembler(inputCols=COLUMNS, outputCol="features"), head]).fit(rows)


def table(spark: SparkSession, rows: int, seed: int, **more: Any) -> tuple[DataFrame, np.ndarray]:
    """Rows of three normal columns, and more columns."""
    x = np.random.default_rng(seed).normal(size=(rows, 3))
    return spark.createDataFrame(pd.DataFrame(x, columns=COLUMNS).assign(**more)).coalesce(1), x


def tuned(model: PipelineModel, rows: DataFrame, folder: Path, **options: Any) -> sparkdiff.FineTuningSummary:
    given = {"maxEpochs": 12, "patience": 6, "cacheDir": str(folder), "rowsAreNew": True, **options}
    return FineTuner(model, **given).fit(rows).summary


@pytest.mark.nightly
def test_held_out_rows_without_a_rare_label_prove_nothing(spark: SparkSession, tmp_path: Path) -> None:
    """One label in 200 is larger by 250; none of these is held out, and a model that ignores them is better there on all rows."""
    random = np.random.default_rng(0)

    def labels(rows: int, first: int, large: int) -> np.ndarray:
        y = random.normal(size=rows)
        y[first : first + large] += 250
        return y

    before, _ = table(spark, 4000, 1, y=labels(4000, 0, 20), held=False)
    model = fitted(LinearRegression(labelCol="y", maxIter=20), before)
    held, robust = np.arange(1500) < 300, {"loss": "absolute", "metric": "squared", "learningRate": 0.1}
    for large, words in ((6, "some of 1,200 training rows lose far more"), (2, "fewer than 5 of 1,200 training rows")):
        rows, _ = table(spark, 1500, 2, y=labels(1500, 300, large), held=held)
        kept = tuned(model, rows, tmp_path, labelCol="y", validationIndicatorCol="held", **robust)
        assert kept.decision == "kept original"
        assert words in kept.reason and "pass more rows" in kept.reason, kept.reason
    rows, _ = table(spark, 1500, 2, y=labels(1500, 300, 0), held=held)  # nothing there tells of such labels
    assert tuned(model, rows, tmp_path, labelCol="y", validationIndicatorCol="held", **robust).decision == "tuned"


@pytest.mark.parametrize(
    ("metric", "options"),
    [("precisionByLabel", {}), ("areaUnderROC", {"groupCol": "team"}), ("areaUnderROC", {"weightCol": "w"})],
)
def test_random_labels_are_not_tested_on_few_units(
    spark: SparkSession, tmp_path: Path, metric: str, options: dict[str, str]
) -> None:
    random = np.random.default_rng(3)
    team = np.repeat(np.arange(150), 10)
    label = (team % 15 == 0) if "groupCol" in options else random.random(1500) < 0.4
    w = np.where(np.arange(1500) % 100 == 0, 400.0, 1.0)
    rows, _ = table(spark, 1500, 4, label=label.astype(float), team=team, w=w)
    model = fitted(LogisticRegression(), rows.where("x0 > 1").limit(60))
    params = {"metricParams": {"metricLabel": 1}} if metric.endswith("ByLabel") else {}
    found = tuned(model, rows, tmp_path, labelCol="label", metric=metric, validationFraction=0.3, **params, **options)
    assert found.decision == "kept original"
    if options:
        assert "effective rows of class" in found.reason or "groups of class 1, 30 are needed" in found.reason


@pytest.mark.nightly
def test_a_search_does_not_test_by_few_rows_of_a_class(spark: SparkSession) -> None:
    label = (np.arange(1000) % 100 == 0).astype(float)
    rows, _ = table(spark, 1000, 5, label=label)
    slices = [VectorSlicer(inputCol="all", outputCol="features", indices=i) for i in ([0], [1, 2])]
    assembler = VectorAssembler(inputCols=COLUMNS, outputCol="all")
    pipeline = Pipeline(stages=[assembler, sparkdiff.alternatives(*slices), LogisticRegression(regParam=0.01)])
    found = Search(pipeline, space={}, sampler="grid", evaluator=BinaryClassificationEvaluator(), testFraction=0.4).fit(
        rows
    )
    assert found.summary.decision == "kept default" and not found.summary.tested
    assert "rows of class 1, 30 are needed" in found.summary.reason, found.summary.reason
