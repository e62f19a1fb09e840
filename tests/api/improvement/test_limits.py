"""What an improvement may not do: cost more to serve than is allowed, or take one row for another."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import Imputer, StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F
from small_data import NUMBERS, riders, sides, unfitted

from sparkdiff import Improver
from sparkdiff.data.splits import Source
from sparkdiff.evaluation.recorded import keyed
from sparkdiff.finetune import Shared
from sparkdiff.improvement.arms import fine_tuning, refitting, simplifying
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.ground import Ground, measure, prepared
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.report import Phases


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(riders(), path)
    return spark.read.parquet(path.as_uri())


def test_no_arm_makes_what_costs_more_to_serve_than_is_allowed(rows: DataFrame, tmp_path: Path) -> None:
    """More components of the PCA are better, and cost more."""
    model = unfitted(components=2).fit(rows)
    given = {"arms": ["search"], "budget": "60 passes", "maxEpochs": 2, "cacheDir": str(tmp_path)}
    held = Improver(model, maxServingCost=1.01, **given).fit(rows)
    assert [a["state"] for a in held.summary.arms] != ["failed"]
    assert all(row["serving"] <= 1.01 for row in held.summary.table)


def test_rows_that_differ_in_where_a_null_is_are_different_rows(spark: SparkSession, tmp_path: Path) -> None:
    values = [(None, 1.0), (1.0, None), (2.0, 2.0), (3.0, 1.0)]
    df = spark.createDataFrame(
        [(i, a, b, float(i % 3 == k % 2)) for i in range(200) for k, (a, b) in enumerate(values)],
        "number int, a double, b double, label double",
    )  # fmt: skip
    made = [
        Imputer(inputCols=["a", "b"], outputCols=["c", "d"]),
        VectorAssembler(inputCols=["c", "d"], outputCol="features"),
    ]
    model = Pipeline(stages=[*made, LogisticRegression()]).fit(df.unionAll(df.where("a > 2")))
    options = Options.of({"groupCol": "number", "cacheDir": str(tmp_path)})
    ground = prepared(Ground(model, options, ImprovementSettings(), [Source(df)], None, Phases(False), Shared()))
    with ground.begun(ground.plan) as run:
        data = keyed(run.data)
        for batch, *_ in data.batches("validation"):
            values_ = data.values(batch)
            assert torch.equal(run.network.margin(values_), ground.start.recorded.margin(values_))


def test_what_changes_more_labels_than_allowed_is_no_simpler_pipeline(rows: DataFrame, tmp_path: Path) -> None:
    """Labels that depend on nothing: a refit loses nothing, and decides otherwise on many rows."""
    data = rows.withColumn("label", (F.rand(3) > 0.5).cast("double")).localCheckpoint()
    made = [
        VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="features"),
    ]
    model = Pipeline(stages=[*made, LogisticRegression(elasticNetParam=0.1, regParam=1e-3)]).fit(data)
    given = {"arms": ["simplify"], "maxLoss": 0.1, "budget": "60 passes", "maxEpochs": 2, "cacheDir": str(tmp_path)}
    free = Improver(model, **given).fit(data)
    row = free.summary.table[1]
    assert set(free.offers) == {"simpler"}
    assert row["changed"] > 0.001
    held = Improver(model, maxFlipRate=row["changed"] / 2, **given).fit(data)
    assert held.offers == {}


def test_gains_of_rounded_rows_are_measured_again(rows: DataFrame, tmp_path: Path) -> None:
    model = unfitted().fit(rows)
    options = Options.of({"precision": "float32", "recipe": "fast", "maxEpochs": 2, "cacheDir": str(tmp_path)})
    ground = prepared(Ground(model, options, ImprovementSettings(), [Source(rows)], None, Phases(False), Shared()))
    step = fine_tuning.ARM.run(ground, 0, Limit(None, 8), ())
    [candidate] = step.candidates
    own = ground.start.scores["validation"].blocks - candidate.found.scores["validation"].blocks
    assert float((step.gains[candidate.column] - own).abs().max()) < 1e-11


def test_clusters_are_compared_in_one_space(rows: DataFrame, tmp_path: Path) -> None:
    """Without its scaler a k-means measures shorter distances, and is no better."""
    small = rows.select(*((F.col(c) / 100).alias(c) for c in NUMBERS)).localCheckpoint()
    made = [
        VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="features"),
    ]
    model = Pipeline(stages=[*made, KMeans(k=3, seed=1)]).fit(small)
    options = Options.of({"cacheDir": str(tmp_path)})
    ground = Ground(model, options, ImprovementSettings(), [Source(small)], None, Phases(False), Shared())
    assert "distances" in simplifying.ARM.refused(ground)
    assert [s.role for s in refitting.form_of(ground).stages] == ["as fitted", "as fitted", "estimator"]


def test_every_pipeline_is_measured_by_the_delta_of_the_original(rows: DataFrame, tmp_path: Path) -> None:
    """Huber's delta is a multiple of a scale that is fitted: with a smaller one the same errors cost less."""
    head = LinearRegression(labelCol="riders", loss="huber", regParam=0.1)
    whole = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="features"), head])
    model, other = whole.fit(rows), whole.fit(rows.where("riders < 4"))
    scales = [m.stages[1].scale for m in (model, other)]
    assert scales[1] < 0.8 * scales[0]
    options = Options.of({"cacheDir": str(tmp_path)})
    ground = Ground(model, options, ImprovementSettings(), [Source(rows)], None, Phases(False), Shared())
    ground = prepared(ground)
    errors = F.abs(F.col("riders") - F.col("prediction"))
    delta = 1.35 * scales[0]
    loss = F.when(errors < delta, errors**2 / 2).otherwise(delta * (errors - delta / 2))
    found = other.transform(sides(rows)["validation"]).select(F.avg(loss)).first()
    assert found is not None
    assert measure(ground, other).scores["validation"].value == pytest.approx(found[0], rel=1e-9)
