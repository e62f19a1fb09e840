"""What an improvement may not do: cost more to serve than is allowed, or take one row for another."""

import dataclasses
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import Imputer, Normalizer, SQLTransformer, StandardScaler, VectorAssembler
from pyspark.ml.regression import GBTRegressor, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import FineTuner, Grower, Improver, InputError, jvm
from sparkdiff.data.splits import Source
from sparkdiff.evaluation.row_margins import with_row_hashes
from sparkdiff.fine_tuning.task import FitResults
from sparkdiff.improvement import baseline, parallel_tasks
from sparkdiff.improvement.arm_context import ArmContext, measure, measure_original
from sparkdiff.improvement.arms import fine_tuning, refitting, searching, simplifying
from sparkdiff.improvement.arms.simplifying import fold_stages
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Candidate, CandidateRecipe, Step
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.options import Options
from sparkdiff.proof.division import divide
from sparkdiff.report import Phases
from sparkdiff.training.recipes import Recipe
from tests.support.small_data import NUMBERS, half_deviance, riders, sides, unfitted


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(riders(), path)
    return spark.read.parquet(f"file://{path}")


@pytest.mark.nightly
def test_no_arm_makes_what_costs_more_to_serve_than_is_allowed(rows: DataFrame, tmp_path: Path) -> None:
    """More components of the PCA are better, and cost more."""
    model = unfitted(components=2).fit(rows)
    new = {"rowsAreNew": True, "numFolds": 2}
    given = {"arms": ["search"], "budget": "30 passes", "maxEpochs": 2, "cacheDir": str(tmp_path), **new}
    held = Improver(model, maxServingCost=1.01, **given).fit(rows)
    assert [a["state"] for a in held.summary.arms] != ["failed"]
    assert all(row["serving"] <= 1.01 for row in (*held.summary.table, *held.summary.race))


@pytest.mark.nightly
def test_plan_and_summary_name_unknown_serving_costs(rows: DataFrame, tmp_path: Path) -> None:
    statement = SQLTransformer(statement="SELECT *, 2 * wind AS gust FROM __THIS__")
    model = PipelineModel([statement, *unfitted().fit(rows).stages])
    given = {"numFolds": 2, "cacheDir": str(tmp_path)}
    few = rows.limit(40).localCheckpoint()  # too few to decide
    for made in (Grower(model, **given), Improver(model, arms=["refit"], budget="30 passes", baseline=False, **given)):
        named = f"serving costs of SQLTransformer {statement.uid} are not known"
        assert str(made.explain(few)).count(named) == 1
        assert [w.startswith(named) for w in made.fit(few).summary.warnings].count(True) == 1


def test_what_is_to_be_kept_is_not_folded(rows: DataFrame) -> None:
    model = unfitted().fit(rows)
    scaler, pca = model.stages[3:5]

    def left(**settings: object) -> list[str] | None:
        context = ArmContext(
            model, Options(), ImprovementSettings.of(settings), [Source(rows)], None, Phases(False), FitResults()
        )
        found = fold_stages(context, model)
        return None if found is None else [s.uid for s in found.stages]

    assert left() == [s.uid for s in model.stages if s.uid not in (scaler.uid, pca.uid)]
    assert left(keepStages=[scaler.uid]) == [s.uid for s in model.stages if s.uid != pca.uid]
    assert left(keepStages=["scaled"]) == left(keepStages=[scaler.uid])  # the column that it writes
    assert left(keepStages=["GeneralizedLinearRegressionModel"]) is None  # which would take the others up
    assert left(keepForm=True) is None
    assert left(arms=["refit"]) is None


def test_what_is_to_be_kept_has_any_name_that_freeze_takes(rows: DataFrame) -> None:
    """A uid, a class, an output column, or a pipeline inside of the pipeline; another name is an error of this option."""
    inner = unfitted().fit(rows)
    model = PipelineModel([PipelineModel(inner.stages[:4]), *inner.stages[4:]])
    scaler = inner.stages[3]

    def kept(**settings: object) -> tuple[str, ...]:
        own = {k: v for k, v in settings.items() if k != "freeze"}
        options = Options.of({k: v for k, v in settings.items() if k == "freeze"})
        return ArmContext(
            model, options, ImprovementSettings.of(own), [Source(rows)], None, Phases(False), FitResults()
        ).keeps

    assert (
        kept(keepStages=["scaled"])
        == kept(keepStages=["StandardScalerModel"])
        == kept(freeze=["scaled"])
        == (scaler.uid,)
    )
    assert kept(keepStages=[model.stages[0].uid]) == tuple(s.uid for s in inner.stages[:4])
    with pytest.raises(InputError, match=r"^keepStages='scale' is no uid, class or output column"):
        Improver(model, keepStages=["scale"]).explain(rows)


def test_rows_that_differ_in_where_a_null_is_are_different_rows(spark: SparkSession, tmp_path: Path) -> None:
    values = [(None, 1.0), (1.0, None), (2.0, 2.0), (3.0, 1.0)]
    df = spark.createDataFrame(
        [(i, a, b, float(i % 3 == k % 2)) for i in range(200) for k, (a, b) in enumerate(values)],
        "number int, a double, b double, label double",
    )
    made = [
        Imputer(inputCols=["a", "b"], outputCols=["c", "d"]),
        VectorAssembler(inputCols=["c", "d"], outputCol="features"),
    ]
    model = Pipeline(stages=[*made, LogisticRegression()]).fit(df.unionAll(df.where("a > 2")))
    options = Options.of({"groupCol": "number", "cacheDir": str(tmp_path)})
    context = measure_original(
        ArmContext(model, options, ImprovementSettings(), [Source(df)], None, Phases(False), FitResults())
    )
    with context.open_run(context.plan) as run:
        data = with_row_hashes(run.data)
        for batch, *_ in data.batches("validation"):
            values_ = data.values(batch)
            assert torch.equal(run.network.margin(values_), context.start.recorded.margin(values_))


@pytest.mark.nightly
def test_the_last_row_is_what_sparks_own_trees_reach(
    rows: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted here once more, and measured on the rows that explore; nothing of it is proven."""
    monkeypatch.setattr(baseline, "TREES", 2)
    model = unfitted().fit(rows)
    given = {
        "arms": ["refit"],
        "budget": "60 passes",
        "maxEpochs": 1,
        "recipe": "fast",
        "cacheDir": str(tmp_path),
        "rowsAreNew": True,
        "numFolds": 2,
    }
    found = Improver(model, **given).fit(rows).summary
    explores = divide([Source(rows)], Options.of({"numFolds": 2})).explores
    made = {s.split: model.transform(s.df).selectExpr("components features", "riders") for s in explores}
    trees = GBTRegressor(labelCol="riders", maxIter=2, seed=0).fit(made["train"])
    y, mu = trees.transform(made["validation"]).select("riders", "prediction").toPandas().to_numpy().T
    assert found.baseline is not None
    assert found.baseline["value"] == pytest.approx(half_deviance(y, np.maximum(mu, 0.5)).mean(), rel=1e-9)
    assert found.baseline["name"] == "Spark's GBTRegressor, 2 trees"
    assert found.baseline["seconds"] == pytest.approx(found.budget["spent"]["baseline"], abs=1e-3)
    assert any(line.endswith("for comparison") for line in str(found).splitlines())
    assert {row["arm"] for row in found.table if row["folds"]} == {"refit"} == {row["arm"] for row in found.race}
    without = Improver(model, baseline=False, **given)
    assert "GBTRegressor" not in str(without.explain(rows))


@pytest.mark.nightly
def test_what_changes_too_many_labels_is_no_simpler_offer(rows: DataFrame, tmp_path: Path) -> None:
    """Labels that depend on nothing: a refit loses nothing, and decides otherwise on many rows."""
    data = rows.withColumn("label", (F.rand(3) > 0.5).cast("double")).localCheckpoint()
    made = [
        VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
        Normalizer(inputCol="assembled", outputCol="features"),  # which folds into nothing
    ]
    model = Pipeline(stages=[*made, LogisticRegression(elasticNetParam=0.1, regParam=1e-3, maxIter=8)]).fit(data)
    given = {
        "arms": ["simplify"],
        "maxLoss": 0.1,
        "budget": "60 passes",
        "maxEpochs": 2,
        "cacheDir": str(tmp_path),
        "rowsAreNew": True,
        "numFolds": 2,
    }
    free = Improver(model, **given).fit(data)
    assert set(free.offers) == {"simpler"}
    row = free.summary.table[free.summary.offers["simpler"]]
    assert row["folds"] == 1 and not row["accepted"]  # no gain, and no loss
    assert row["changed"] > 0.001
    held = Improver(model, maxFlipRate=row["changed"] / 2, **given).fit(data)
    assert held.offers == {}


def test_a_single_stage_is_read_back_as_one(rows: DataFrame, tmp_path: Path) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(rows)
    model = LinearRegression(labelCol="riders", solver="normal").fit(data)
    options = Options.of({"cacheDir": str(tmp_path)})
    context = measure_original(
        ArmContext(model, options, ImprovementSettings(), [Source(data)], None, Phases(False), FitResults())
    )
    making = CandidateRecipe("refit", {"trees": [[1, "trees", 40]]}, Recipe(1e-3, 1e-4, mixup=0.2), 3)
    step = Step("refit", 0, (Candidate("refit", "refitted", context.start, making, value=0.3, seconds=2.5),), 0.0, "")
    StepLog(tmp_path).write(step)
    found = StepLog(tmp_path).read(context, "refit", 0)
    assert found is not None
    [candidate] = found.candidates
    assert type(candidate.model) is type(model)
    assert candidate.model.uid == model.uid
    assert (candidate.making, candidate.value, candidate.seconds) == (making, 0.3, 2.5)
    assert torch.equal(candidate.found.scores["validation"].blocks, context.start.scores["validation"].blocks)


def test_a_metric_that_judges_no_trial_is_named_before_work(rows: DataFrame) -> None:
    made = [VectorAssembler(inputCols=NUMBERS, outputCol="features"), LogisticRegression(labelCol="rain")]
    model = Pipeline(stages=made).fit(rows)

    def refused(**given: object) -> str:
        options = Options.of(given)
        return searching.ARM.refusal(
            ArmContext(model, options, ImprovementSettings(), [Source(rows)], None, Phases(False), FitResults())
        )

    def own(margin: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (margin - label) ** 2

    assert "own' can't be computed" in refused(loss=own)
    assert "can't be computed" in refused(loss={"auto": 1.0, "focal": 1.0})
    costs = {"costs": [[0, 1], [5, 0]]}
    assert refused() == refused(loss="focal", metric="areaUnderROC") == refused(loss="auc") == ""
    assert refused(loss="focal") == refused(loss="cost", lossParams=costs) == refused(metric="brier") == ""


def test_trials_are_judged_with_the_class_weights_of_the_loss(rows: DataFrame, tmp_path: Path) -> None:
    made = [VectorAssembler(inputCols=NUMBERS, outputCol="features"), LogisticRegression(labelCol="rain")]
    model = Pipeline(stages=made).fit(rows)
    options = Options.of({"cacheDir": str(tmp_path), "loss": "focal", "lossParams": {"classWeights": "balanced"}})
    given = ArmContext(model, options, ImprovementSettings(), [Source(rows)], None, Phases(False), FitResults())
    context = measure_original(given)
    weights = context.metricParams["classWeights"]
    assert context.goal is not None
    counts = context.goal.label.classes
    assert weights == pytest.approx((counts.sum() / (2 * counts)).tolist())
    evaluator = searching._evaluator(context)
    assert evaluator.getOrDefault("lossParams") == {"gamma": 2.0, "classWeights": weights}
    named = dataclasses.replace(context, options=dataclasses.replace(options, metric="focal"))
    assert "classWeights" not in named.metricParams


def test_a_fit_that_takes_too_long_is_ended(spark: SparkSession) -> None:
    def group() -> object:
        return spark.sparkContext.getLocalProperty("spark.jobGroup.id")

    spark.sparkContext.setJobGroup("mine", "of the user")
    with pytest.raises(TimeoutError, match="longer than 1 s"), jvm.within(1):
        spark.sql("select sum(sqrt(id)) from range(1000000000000)").collect()
    assert group() == "mine"
    with jvm.within(60):
        assert spark.range(3).count() == 3
    assert group() == "mine"


def test_what_is_made_ahead_stops_when_nobody_waits_for_it(spark: SparkSession) -> None:
    begun, made = threading.Event(), list[object]()

    def forever() -> None:
        begun.set()
        made.extend(spark.sql("select sum(sqrt(id)) from range(1000000000000)").collect())

    with parallel_tasks.ahead([lambda: made.append("first"), forever, lambda: made.append("third")]):
        assert begun.wait(30)
    assert made == ["first"] and spark.range(3).count() == 3  # other jobs are not ended
    with parallel_tasks.ahead([lambda: made.append(spark.range(4).count())], wait=True):
        pass
    assert made == ["first", 4]
    with pytest.raises(ValueError, match="no such column"), parallel_tasks.ahead([forever], wait=True):
        raise ValueError("no such column")  # nobody needs the result


def test_ctrl_c_ends_what_is_made_ahead_before_it_is_passed_on(spark: SparkSession) -> None:
    """A thread counts as ended once a Ctrl-C has interrupted `join`, even while it works."""
    begun, ended = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(2)
        ended.set()

    def interrupt() -> None:
        begun.wait(30)
        time.sleep(0.5)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), parallel_tasks.ahead([slow], wait=True):
        threading.Thread(target=interrupt).start()
    assert ended.is_set()


@pytest.mark.nightly
def test_a_fine_tuner_in_an_unfitted_pipeline_waits_for_nobody(rows: DataFrame, tmp_path: Path) -> None:
    """Fits take turns: one in another thread would wait for the improvement, which waits for it."""
    inner = FineTuner(pipeline=unfitted(), labelCol="riders", maxEpochs=1, recipe="fast", numFolds=0)
    options = {
        "budget": "20 passes",
        "numFolds": 2,
        "arms": ["finetune"],
        "recipe": "fast",
        "maxEpochs": 1,
        "baseline": False,
    }
    found = Improver(Pipeline(stages=[inner]), labelCol="riders", parallelism=2, cacheDir=str(tmp_path), **options).fit(
        rows
    )
    assert found.summary.decision in ("improved", "kept original")


def test_tasks_run_side_by_side_and_end_together(spark: SparkSession) -> None:
    both, said, brake = threading.Barrier(2, timeout=30), list[str](), parallel_tasks.StoppableListener(())

    def meets() -> str:
        both.wait()
        said.append(f"{spark.range(3).count()} rows, {torch.get_num_threads()} threads")
        return ""

    def fails() -> str:
        both.wait()
        raise ValueError("the disk is full")

    def waits() -> str:
        both.wait()
        while True:
            brake.on_epoch({})
            time.sleep(0.01)

    parallel_tasks.run(iter([("a", meets), ("b", meets)]), 2, Phases(False), brake)
    assert said == [f"3 rows, {torch.get_num_threads()} threads"] * 2
    with pytest.raises(ValueError, match="the disk is full"):
        parallel_tasks.run(iter([("a", waits), ("b", fails), ("c", meets)]), 2, Phases(False), brake)
    assert len(said) == 2
    assert not brake.pulled


def test_what_trained_on_rounded_rows_is_measured_on_exact_ones(rows: DataFrame, tmp_path: Path) -> None:
    model = unfitted().fit(rows)
    options = Options.of({"precision": "float32", "recipe": "fast", "maxEpochs": 2, "cacheDir": str(tmp_path)})
    context = measure_original(
        ArmContext(model, options, ImprovementSettings(), [Source(rows)], None, Phases(False), FitResults())
    )
    step = fine_tuning.ARM.run(context, 0, Limit(None, 8), ())
    [candidate] = step.candidates
    exact = measure(
        dataclasses.replace(context, options=dataclasses.replace(options, precision="float64")), candidate.model
    )
    for split in ("train", "validation"):
        apart = candidate.found.scores[split].blocks - exact.scores[split].blocks
        assert float(apart.abs().max()) < 1e-11


def test_clusters_are_compared_in_one_space(rows: DataFrame, tmp_path: Path) -> None:
    """Without its scaler a k-means measures shorter distances, and is no better."""
    small = rows.select(*((F.col(c) / 100).alias(c) for c in NUMBERS)).localCheckpoint()
    made = [
        VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="features"),
    ]
    model = Pipeline(stages=[*made, KMeans(k=3, seed=1)]).fit(small)
    options = Options.of({"cacheDir": str(tmp_path)})
    context = ArmContext(model, options, ImprovementSettings(), [Source(small)], None, Phases(False), FitResults())
    assert "distances" in simplifying.ARM.refusal(context)
    assert [s.role for s in refitting.form_of(context).stages] == ["as fitted", "as fitted", "estimator"]


def test_all_pipelines_are_measured_by_the_originals_delta(rows: DataFrame, tmp_path: Path) -> None:
    """Huber's delta is a multiple of a scale that is fitted: with a smaller one the same errors cost less."""
    head = LinearRegression(labelCol="riders", loss="huber", regParam=0.1)
    whole = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="features"), head])
    model, other = whole.fit(rows), whole.fit(rows.where("riders < 4"))
    scales = [m.stages[1].scale for m in (model, other)]
    assert scales[1] < 0.8 * scales[0]
    options = Options.of({"cacheDir": str(tmp_path)})
    context = ArmContext(model, options, ImprovementSettings(), [Source(rows)], None, Phases(False), FitResults())
    context = measure_original(context)
    errors = F.abs(F.col("riders") - F.col("prediction"))
    delta = 1.35 * scales[0]
    loss = F.when(errors < delta, errors**2 / 2).otherwise(delta * (errors - delta / 2))
    found = other.transform(sides(rows)["validation"]).select(F.avg(loss)).first()
    assert found is not None
    assert measure(context, other).scores["validation"].value == pytest.approx(found[0], rel=1e-9)
