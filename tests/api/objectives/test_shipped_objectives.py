"""Objectives on the shipped data: each, optimised, improves its metric on test rows that chose nothing, by Spark's own count."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import FineTuner, FineTunerModel

pytestmark = pytest.mark.slow
CONF = Path(__file__).parents[3] / "conf"
COSTS = [[0.0, 1.0], [5.0, 0.0]]
"""A busy hour that nobody expected costs five times what a false alarm does."""
Tune = Callable[..., tuple[PipelineModel, FineTunerModel]]


@pytest.fixture(scope="module")
def hours(spark: SparkSession) -> DataFrame:
    """The rows of conf/bikeshare.yaml with the split of its seed: train, validation (`held`) and test."""
    train = yaml.safe_load((CONF / "bikeshare.yaml").read_text())["data"]["train"]
    df = spark.read.csv(f"file://{(CONF / train['path']).resolve()}", header=True, schema=train["schema"])
    tenth = "pmod(xxhash64(day, hr, 0), 10)"
    return df.selectExpr(
        "*", f"{tenth} AS tenth", f"{tenth} >= 6 AS held", "CAST(bikers >= 250 AS DOUBLE) AS busy"
    ).cache()


@pytest.fixture(scope="module")
def test_rows(hours: DataFrame) -> DataFrame:
    return hours.where("tenth >= 8").cache()


@pytest.fixture(scope="module")
def made(hours: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tune]:
    """A pipeline of conf/pipelines.py fitted on the training rows, and its fine-tuning, by all defaults but the objective."""
    sys.path.insert(0, str(CONF))
    import pipelines

    fitted: dict[str, PipelineModel] = {}
    caches = str(tmp_path_factory.mktemp("caches"))

    def tune(name: str, **options: Any) -> tuple[PipelineModel, FineTunerModel]:
        if name not in fitted:
            fitted[name] = getattr(pipelines, name)(hours).fit(hours.where("tenth < 6"))
        tuner = FineTuner(
            pipeline=fitted[name],
            cacheDir=caches,
            validationIndicatorCol="held",
            batchSize=128,
            rowsAreNew=True,
            **options,
        )
        return fitted[name], tuner.fit(hours.where("tenth < 8"))

    yield tune
    sys.path.remove(str(CONF))


def both(models: tuple[PipelineModel, FineTunerModel], rows: DataFrame, *columns: str) -> list[Any]:
    """The columns of the test rows under the original and the tuned pipeline."""
    return [m.transform(rows).select(*columns).toPandas() for m in (models[0], models[1].pipelineModel)]


@pytest.mark.nightly
def test_absolute_error_of_a_linear_regression(made: Tune, test_rows: DataFrame) -> None:
    models = made("bikeshare_linear", loss="absolute")
    evaluator = RegressionEvaluator(labelCol="bikers", metricName="mae")
    before, after = (evaluator.evaluate(m.transform(test_rows)) for m in (models[0], models[1].pipelineModel))
    assert models[1].summary.decision == "tuned"
    assert after < 0.95 * before, (before, after)


@pytest.mark.nightly
def test_a_linear_regressions_quantile_covers_what_it_says(made: Tune, test_rows: DataFrame) -> None:
    models = made("bikeshare_linear", loss="quantile", lossParams={"tau": 0.9})
    before, after = both(models, test_rows, "prediction", "bikers")
    coverage = [float((f.bikers <= f.prediction).mean()) for f in (before, after)]
    pinball = [
        float(np.maximum(0.9 * (f.bikers - f.prediction), 0.1 * (f.prediction - f.bikers)).mean())
        for f in (before, after)
    ]
    assert models[1].summary.decision == "tuned"
    assert abs(coverage[1] - 0.9) <= 0.02 < abs(coverage[0] - 0.9), coverage
    assert pinball[1] < 0.8 * pinball[0], pinball


@pytest.mark.nightly
def test_expected_cost_of_a_logistic_regression(made: Tune, test_rows: DataFrame) -> None:
    models = made("bikeshare_busy", loss="cost", lossParams={"costs": COSTS})
    before, after = (
        float(np.array(COSTS)[f.busy.astype(int), f.prediction.astype(int)].mean())
        for f in both(models, test_rows, "prediction", "busy")
    )
    assert models[1].summary.decision == "tuned"
    assert models[1].summary.metric == "expectedCost"
    assert any("no longer calibrated" in w for w in models[1].summary.warnings)
    assert after < 0.8 * before, (before, after)


@pytest.mark.nightly  # its formula and its slope: tests/unit/objectives
def test_auc_of_a_logistic_regression(made: Tune, test_rows: DataFrame) -> None:
    models = made("bikeshare_busy", loss="auc")
    evaluator = BinaryClassificationEvaluator(labelCol="busy", numBins=0)
    before, after = (evaluator.evaluate(m.transform(test_rows)) for m in (models[0], models[1].pipelineModel))
    s = models[1].summary
    assert (s.decision, s.metric, s.metricDirection) == ("tuned", "areaUnderROC", "larger")
    assert 1 - after < 0.8 * (1 - before), (before, after)
    held = s.metrics["validation"]
    assert held is not None
    assert s.gain == pytest.approx((held["after"] - held["before"]) / held["before"])
    assert s.gain > 0
    best = s.history.groupby("candidate").validationMetric.max().max()
    assert best == pytest.approx(held["after"], rel=1e-12)  # as the evaluator counts it, not as a loss


@pytest.mark.nightly
def test_poisson_deviance_falls_where_regparam_held_it_back(made: Tune, test_rows: DataFrame) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    models = made("bikeshare_ridge", metric="poissonDeviance")
    before, after = (
        metrics.mean_poisson_deviance(f.bikers, f.prediction) for f in both(models, test_rows, "prediction", "bikers")
    )
    assert models[1].summary.decision == "tuned"
    assert after < 0.7 * before, (before, after)


@pytest.mark.nightly
def test_f1_by_a_balanced_loss(made: Tune, test_rows: DataFrame) -> None:
    """A weighted sum with class weights, measured by what Spark's evaluator shows by default."""
    models = made(
        "bikeshare_busy", loss={"logLoss": 1, "focal": 1}, lossParams={"classWeights": "balanced"}, metric="f1"
    )
    evaluator = MulticlassClassificationEvaluator(labelCol="busy", metricName="f1")
    before, after = (evaluator.evaluate(m.transform(test_rows)) for m in (models[0], models[1].pipelineModel))
    assert models[1].summary.decision == "tuned"
    assert after > before + 0.01, (before, after)
