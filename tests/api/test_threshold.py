"""The threshold of a LogisticRegression, trained on request by the cost of decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from riders import NUMBERS, tune

import sparkdiff
from sparkdiff import InputError

pytestmark = pytest.mark.once  # what is Spark's in it the laws check on every version

COSTS = {"costs": [[0.0, 1.0], [8.0, 0.0]]}
THRESHOLD = ["LogisticRegressionModel.threshold"]


@pytest.fixture(scope="module")
def rain(df: DataFrame) -> PipelineModel:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="features"), LogisticRegression(labelCol="rain", regParam=0.1, maxIter=5),
    ]  # fmt: skip
    return Pipeline(stages=stages).fit(df)


def cost(model: PipelineModel, df: DataFrame) -> float:
    wrong = F.when(F.col("prediction") == F.col("rain"), 0.0).when(F.col("rain") == 1, 8.0).otherwise(1.0)
    return float(model.transform(df).agg(F.avg(wrong)).first()[0])  # type: ignore[index]


def test_it_moves_with_the_cost_of_decisions(rain: PipelineModel, df: DataFrame, shared: Path, tmp_path: Path) -> None:
    plan = sparkdiff.plan(rain)
    assert plan.stages[1].numParameters == 5  # without what trains on request only
    found = tune(
        rain, df, shared, labelCol="rain", loss="cost", lossParams=COSTS, unfreeze=THRESHOLD, maxEpochs=15,
        learningRate=1e-2,
    )  # fmt: skip
    summary, old, new = found.summary, rain.stages[1], found.pipelineModel.stages[1]
    assert summary.decision == "tuned"
    assert summary.metric == "expectedCost"
    assert 0 < new.getThreshold() < 0.5  # a false alarm is cheap
    assert not old.isSet("threshold")
    assert old.getThreshold() == 0.5
    assert any(name.endswith(".threshold") for name in summary.stages)
    found.pipelineModel.save(f"{tmp_path}/model")
    loaded = PipelineModel.load(f"{tmp_path}/model")
    assert loaded.stages[1].getThreshold() == new.getThreshold()
    assert cost(loaded, df) < cost(rain, df)
    held = summary.metrics["validation"]
    assert held["after"] < held["before"]
    # All that is shown is of one margin: probability = sigmoid(margin), and the decision is by the new threshold.
    shown = loaded.transform(df).select(
        vector_to_array("rawPrediction")[1], vector_to_array("probability")[1], "prediction"
    )  # fmt: skip
    raw, p, prediction = np.array([tuple(r) for r in shown.collect()]).T
    assert np.allclose(p, 1 / (1 + np.exp(-raw)), rtol=0, atol=1e-12)
    assert np.array_equal(prediction, (raw > np.log(new.getThreshold() / (1 - new.getThreshold()))).astype(float))
    assert sparkdiff.verify(loaded, df).ok


def test_accuracy_may_choose(rain: PipelineModel, df: DataFrame, shared: Path) -> None:
    found = tune(
        rain, df, shared, labelCol="rain", loss="cost", lossParams={"costs": [[0.0, 1.0], [1.0, 0.0]]}, metric="accuracy",
        unfreeze=THRESHOLD, maxEpochs=3,
    )  # fmt: skip
    best = MulticlassClassificationEvaluator(labelCol="rain", metricName="accuracy")
    assert best.evaluate(found.pipelineModel.transform(df)) >= best.evaluate(rain.transform(df)) - 0.02


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "loss='auto' doesn't see the threshold, which trains by the cost of decisions alone: set loss='cost'"),
        ({"loss": {"cost": 1.0, "logLoss": 1.0}, "lossParams": COSTS}, "doesn't see the threshold"),
        ({"loss": "cost", "lossParams": COSTS, "metric": "logLoss"}, "metric='logLoss' isn't of decisions"),
    ],
)
def test_what_doesn_t_see_it_is_refused(
    rain: PipelineModel, df: DataFrame, shared: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        tune(rain, df, shared, labelCol="rain", unfreeze=THRESHOLD, **options)


def test_thresholds_of_both_classes_stay(rain: PipelineModel, df: DataFrame, shared: Path) -> None:
    both = PipelineModel([rain.stages[0], rain.stages[1].copy({rain.stages[1].thresholds: [0.3, 0.7]})])
    with pytest.raises(InputError, match=r"of LogisticRegression_.* these do: none"):
        tune(both, df, shared, labelCol="rain", unfreeze=THRESHOLD, loss="cost", lossParams=COSTS)
