"""A mixed pipeline as people build them, on census-like data: gaps, strings and skew, searched for by a CrossValidator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import (
    PCA,
    Bucketizer,
    Imputer,
    OneHotEncoder,
    RobustScaler,
    StringIndexer,
    UnivariateFeatureSelector,
    VectorAssembler,
)
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff.jvm import defined_params
from tests.support import plain_spark

pytestmark = pytest.mark.nightly
ROWS = 6000
NAN, INF = float("nan"), float("inf")
JOBS = ["clerk", "sales", "craft", "exec", "farm", "tech", "none"]


@pytest.fixture(scope="module")
def people(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Who earns much, by age, hours, a skewed capital gain, schooling and work; a tenth of the numbers is missing."""
    random = np.random.default_rng(1994)
    age, hours = random.uniform(17, 90, ROWS), random.normal(40, 12, ROWS).clip(1, 99)
    gain = np.where(random.random(ROWS) < 0.6, random.lognormal(7, 1.5, ROWS), 0.0)
    school, job = random.integers(1, 17, ROWS), random.choice(JOBS, ROWS, p=[0.3, 0.2, 0.15, 0.13, 0.1, 0.09, 0.03])
    better = np.isin(job, ["exec", "tech"]) * 1.2
    odds = 0.3 * (school - 10) + better + 0.04 * (hours - 40) + 0.2 * np.log1p(gain) - 0.002 * (age - 50) ** 2 - 0.3
    label = (random.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(float)

    def holes(x: Any, gap: float | None) -> list[float | None]:
        lost = random.random(ROWS) < 0.1
        return [gap if hole else float(v) for v, hole in zip(x, lost, strict=True)]

    columns = [
        holes(age, None),
        holes(hours, NAN),
        holes(gain, -1.0),
        school.astype(float).tolist(),
        [str(j) for j in job],
        label.tolist(),
        range(ROWS),
    ]
    schema = "age double, hours double, gain double, school double, job string, label double, id long"
    folder = tmp_path_factory.mktemp("census")
    made = spark.createDataFrame(list(zip(*columns, strict=True)), schema)
    made.coalesce(1).write.parquet(f"file://{folder}/people")
    return spark.read.parquet(f"file://{folder}/people")


@pytest.fixture(scope="module")
def searched(people: DataFrame) -> CrossValidatorModel:
    """Fitted long ago, on a quarter of the rows, with fewer components than the label wants."""
    linear = LogisticRegression(featuresCol="components")
    pipeline = Pipeline(
        stages=[
            Imputer(inputCols=["age", "hours"], outputCols=["age", "hours"], strategy="median"),
            Imputer(inputCols=["gain"], outputCols=["gains"], missingValue=-1.0),
            StringIndexer(inputCol="job", outputCol="job index", handleInvalid="keep"),
            Bucketizer(splits=[-INF, 25.0, 45.0, 65.0, INF], inputCol="age", outputCol="period"),
            OneHotEncoder(inputCols=["job index", "period"], outputCols=["job hot", "period hot"]),
            VectorAssembler(inputCols=["age", "hours", "gains", "school"], outputCol="numbers"),
            RobustScaler(inputCol="numbers", outputCol="scaled", withCentering=True),
            VectorAssembler(inputCols=["scaled", "job hot", "period hot"], outputCol="assembled"),
            UnivariateFeatureSelector(featuresCol="assembled", outputCol="selected")
            .setFeatureType("continuous")
            .setLabelType("categorical")
            .setSelectionThreshold(9),
            PCA(inputCol="selected", outputCol="components", k=4),
            linear,
        ]
    )
    grid = ParamGridBuilder().addGrid(linear.regParam, [0.01, 0.1]).build()
    search = CrossValidator(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=BinaryClassificationEvaluator(), numFolds=2, seed=1
    )
    return search.fit(people.where(f"id < {ROWS // 4}"))


def test_planned_trained_written_back_saved_loaded_and_served(
    people: DataFrame, searched: CrossValidatorModel, tmp_path: Path
) -> None:
    plan = {s.outputCols[0]: s for s in sparkdiff.plan(searched, schema=people.schema).stages}
    assert {name for name, s in plan.items() if s.role == "referenced"} == {"job index"}
    trained = ["age", "gains", "scaled", "components", "rawPrediction"]
    assert [name for name, s in plan.items() if s.trainable] == trained
    assert sparkdiff.verify(searched, people).ok

    found = sparkdiff.FineTuner(pipeline=searched, maxEpochs=8, learningRate=0.01, verbosity=0, rowsAreNew=True).fit(
        people
    )
    assert found.summary.decision == "tuned" and found.summary.gain > 0.02, found.summary
    new, old = found.pipelineModel, searched
    assert type(new) is CrossValidatorModel and new.uid == old.uid and new.avgMetrics == old.avgMetrics
    for before, after in zip(old.bestModel.stages, new.bestModel.stages, strict=True):
        assert type(before) is type(after) and before.uid == after.uid
        names = {str(k): set(v) for k, v in defined_params(before).items()}
        assert names == {str(k): set(v) for k, v in defined_params(after).items()}
        assert type(after).__module__.startswith("pyspark.ml")
    pairs = zip(old.bestModel.stages, new.bestModel.stages, plan.values(), strict=True)
    assert [p.outputCols[0] for before, after, p in pairs if after is not before] == trained

    PipelineModel([new]).write().save(f"file://{tmp_path}/tuned")
    people.write.parquet(f"file://{tmp_path}/rows")
    again = PipelineModel.load(f"file://{tmp_path}/tuned")
    here = [row.prediction for row in again.transform(people).orderBy("id").select("prediction").collect()]
    assert here == [row.prediction for row in new.transform(people).orderBy("id").select("prediction").collect()]
    assert plain_spark.predictions([tmp_path / "tuned"], tmp_path / "rows") == [here]
    assert len(here) == ROWS and set(here) == {0.0, 1.0}
