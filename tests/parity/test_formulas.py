"""RFormulaModels in their parts: planned, translated, trained through, saved, loaded."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import RFormula, RFormulaModel, StandardScaler
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import InputError
from sparkdiff.jvm import rformula
from sparkdiff.pipeline import nesting


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    """Strings `s`, `t` (two), `c`; numbers `a`, `b`, `n`; `y` from them, `count` a count."""
    random, data = np.random.default_rng(3), []
    for i in range(300):
        s, c, a, b = "abc"[i % 3], "uvw"[i % 3 if i % 5 else 1], float(random.normal()), float(random.normal(1, 2))
        y = 3 + 2 * a - a * b + 2 * (s == "a") + float(random.normal()) / 5
        data.append((s, a, b, "xy"[y > 3], y, c, i % 7, float(random.poisson(np.exp(0.3 * a + 0.1 * b)))))
    return spark.createDataFrame(data, ["s", "a", "b", "t", "y", "c", "n", "count"]).repartition(2).cache()


FORMULAS = {
    "y ~ a + b": {},
    "y ~ . - c - t": {},
    "y ~ a:b + s": {},
    "y ~ a*s - 1": {},
    "y ~ s:c:n + c:a": {},
    "~ a + s": {},
    "t ~ s:a + n": {"labelCol": "class", "featuresCol": "found"},
    "n ~ a": {"forceIndexLabel": True},
    "y ~ (a + b + s)^2": {},
    "y ~ s": {"stringIndexerOrderType": "alphabetDesc", "handleInvalid": "keep"},
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_parity(rows: DataFrame, formula: str) -> None:
    model = RFormula(formula=formula, **FORMULAS[formula]).fit(rows)
    network = sparkdiff.translate(model)
    seen = sparkdiff.verify(model, rows)
    assert seen.ok, seen
    assert model.getFeaturesCol() in seen.maxRelDiff
    assert sparkdiff.verify(model, rows, network=network).ok  # translated without a look at the data
    assert sparkdiff.write_back(model, network) is model
    inside = [s.stageClass for s in sparkdiff.plan(model, schema=rows.schema).stages if s.role == "referenced"]
    assert set(inside) <= {"StringIndexerModel", "FormulaLabel"}


def of(found: sparkdiff.Plan) -> list[tuple[Any, ...]]:
    return [(s.path, s.stageClass, s.role, s.cached, s.trainable) for s in found.stages]


def test_the_plan_shows_the_parts(rows: DataFrame) -> None:
    model = Pipeline(stages=[RFormula(formula="y ~ a:b + s"), LinearRegression()]).fit(rows)
    found = sparkdiff.plan(model, schema=rows.schema)
    assert of(found) == [
        ((0, 0), "StringIndexerModel", "referenced", True, False),
        ((0, 1), "Interaction", "translated", False, False),
        ((0, 2), "OneHotEncoderModel", "translated", False, False),
        ((0, 3), "VectorAssembler", "translated", False, False),
        ((0, 4), "VectorAttributeRewriter", "translated", False, False),
        ((0, 5), "ColumnPruner", "translated", False, False),
        ((0, 6), "FormulaLabel", "referenced", True, False),
        ((1,), "LinearRegressionModel", "translated", False, True),
    ]
    assert found.stages[1].reason == "nothing to train"
    blind = sparkdiff.plan(model)
    assert of(blind) == of(found)
    assert blind.stages[1].reason == "nothing to train; whether a, b hold categories is decided when data are seen"
    assert found.stages[6].reason == "it makes the label, which only the loss reads"
    for name in ("RFormulaModel", model.stages[0].uid, model.stages[0]):
        left = sparkdiff.plan(model, reference=name)
        assert [s.role for s in left.stages] == ["referenced"] * 7 + ["translated"]
        assert left.cacheCols == ("features",)


@pytest.mark.parametrize(
    ("formula", "predictor"),
    [
        ("t ~ a:b + s*a", lambda: LogisticRegression(featuresCol="scaled", regParam=1.0)),
        (
            "count ~ a*b + s",
            lambda: GeneralizedLinearRegression(featuresCol="scaled", family="poisson", regParam=3.0),
        ),
    ],
    ids=["string label", "numeric label"],
)
def test_trained_through(rows: DataFrame, tmp_path: Path, formula: str, predictor: Any) -> None:
    scaler = StandardScaler(inputCol="features", outputCol="scaled", withMean=True)
    model = Pipeline(stages=[RFormula(formula=formula), scaler, predictor()]).fit(rows)
    tuner = sparkdiff.FineTuner(
        pipeline=model,
        maxEpochs=2,
        learningRate=0.05,
        recipe="fast",
        guard=1.0,
        verbosity=0,
        cacheDir=str(tmp_path / "cache"),
        rowsAreNew=True,
    )
    tuned = tuner.fit(rows)
    assert tuned.summary.decision == "tuned"
    held = tuned.summary.metrics["validation"]
    assert held["after"] < held["before"]
    new = tuned.pipelineModel
    assert new.stages[0] is model.stages[0]
    assert type(new.stages[0]) is RFormulaModel
    assert new.stages[2] is not model.stages[2]
    again = tuner.copy({tuner.maxEpochs: 1, tuner.guard: 1e-12}).fit(rows)
    assert again.summary.cache["hit"]  # the stages before the cache can be saved, and so be told apart

    new.write().overwrite().save(str(tmp_path / "new"))
    loaded = PipelineModel.load(str(tmp_path / "new"))
    assert sparkdiff.verify(loaded, rows, network=sparkdiff.translate(new)).ok
    assert [s.uid for s in loaded.stages] == [s.uid for s in model.stages]
    assert loaded.stages[0]._java_obj.resolvedFormula().toString() == str(
        model.stages[0]._java_obj.resolvedFormula().toString()
    )
    label = formula[: formula.index(" ")]
    assert sparkdiff.verify(loaded, rows.drop(label)).ok  # where a model only predicts, there is no label
    with pytest.raises(InputError, match=rf"reads column '{label}', which is not in the data"):
        tuner.fit(rows.drop(label))


def test_the_label_is_sparks(rows: DataFrame) -> None:
    """Cast to double where the data have it; left alone where they have a label column already, or none."""
    model = RFormula(formula="n ~ a", labelCol="out").fit(rows)
    (label,) = [s for _, s in nesting.flatten(model) if isinstance(s, rformula.FormulaLabel)]
    for df in (rows, rows.withColumn("out", rows.a), rows.drop("n")):
        wished, found = model.transform(df).drop("features"), label.transform(df)
        assert [(f.name, f.dataType) for f in found.schema] == [(f.name, f.dataType) for f in wished.schema]
        assert found.exceptAll(wished).isEmpty()


def test_where_the_parts_cannot_be_had(rows: DataFrame) -> None:
    model = Pipeline(stages=[RFormula(formula="y ~ a + s"), LinearRegression()]).fit(rows)
    with patch.object(nesting, "parts", return_value=None):
        found = sparkdiff.plan(model)
        assert [(s.role, s.cached, s.trainable) for s in found.stages] == [
            ("referenced", True, False),
            ("translated", False, True),
        ]
        assert found.stages[0].reason.startswith("its parts are not accessible here (Spark Connect")
        assert sparkdiff.verify(model, rows).ok
    java = type("Java", (), {"pipelineModel": None})
    assert rformula.parts(type("Formula", (), {"_java_obj": java})()) is None


def test_a_formula_inside_a_search(rows: DataFrame) -> None:
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit

    predictor = LinearRegression(regParam=2.0)
    grid = ParamGridBuilder().addGrid(predictor.fitIntercept, [True]).build()
    pipeline = Pipeline(stages=[RFormula(formula="y ~ a:b + s"), predictor])
    model = TrainValidationSplit(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=RegressionEvaluator(), seed=1
    ).fit(rows)
    network = sparkdiff.translate(model)
    with torch.no_grad():
        network.head.intercept.add_(1.0)
    new = sparkdiff.write_back(model, network)
    assert type(new) is type(model)
    assert new.validationMetrics == model.validationMetrics
    assert new.bestModel.stages[0] is model.bestModel.stages[0]
    assert sparkdiff.verify(new, rows, network=network).ok
    assert not sparkdiff.verify(model, rows, network=network).ok
