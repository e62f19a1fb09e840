"""The arm `import` of a pipeline that ends in boosted trees: more trees in its last stage, or others in their place."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier
from pyspark.ml.feature import StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GBTRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import Improver, ImproverModel, InputError
from sparkdiff.data.splits import TRAIN, VALIDATION, Source
from sparkdiff.growth import boosters
from sparkdiff.improvement import proving
from sparkdiff.improvement.arm_context import ArmContext, measure
from sparkdiff.improvement.arms import boosting
from sparkdiff.improvement.arms.growing import IMPORT
from sparkdiff.improvement.budget import Account, Budget, Limit
from sparkdiff.improvement.race import race
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.jvm import trees
from sparkdiff.options import Options
from sparkdiff.proof.division import divide
from sparkdiff.report import Phases
from sparkdiff.tuning import in_process_fits
from tests.support.arm_contexts import prepare_context
from tests.support.small_data import NUMBERS, riders

OPTIONS: dict[str, Any] = {
    "arms": ["import"],
    "budget": "200 passes",
    "baseline": False,
    "recipe": "fast",
    "maxEpochs": 3,
    "guard": 0.5,
    "rowsAreNew": True,
    "numFolds": 2,
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(riders(1800), path)
    return spark.read.parquet(f"file://{path}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def pipeline(last: Any) -> Pipeline:
    indexer = StringIndexer(inputCol="hour", outputCol="index")
    return Pipeline(stages=[indexer, VectorAssembler(inputCols=[*NUMBERS, "index"], outputCol="features"), last])


@pytest.fixture(scope="module")
def few(rows: DataFrame) -> PipelineModel:
    """Three small trees of other rows: much is left to learn."""
    last = GBTRegressor(labelCol="riders", maxIter=3, maxDepth=2, stepSize=0.3, seed=0)
    return pipeline(last).fit(rows.where("number < 600"))


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Numbers of rows from which trees grew in this process, and in Spark."""
    here, there = list[int](), list[int]()
    boost, fit = in_process_fits.boost, GBTRegressor._fit

    def counted_boost(x: Any, *given: Any) -> Any:
        here.append(len(x))
        return boost(x, *given)

    def counted_fit(self: Any, df: DataFrame) -> Any:
        there.append(df.count())
        return fit(self, df)

    monkeypatch.setattr(in_process_fits, "boost", counted_boost)
    monkeypatch.setattr(GBTRegressor, "_fit", counted_fit)
    return here, there


Sizes = tuple[list[int], list[int]]


def small_trees() -> Pipeline:
    return pipeline(GBTRegressor(labelCol="riders", maxIter=3, maxDepth=2, stepSize=0.3, seed=0))


@pytest.fixture(scope="module")
def of_noise(rows: DataFrame) -> PipelineModel:
    return small_trees().fit(rows.where("number < 600").withColumn("riders", F.rand(0)))


REFITS = OPTIONS | {"labelCol": "riders", "maxServingCost": 1, "rowsAreNew": None}
"""Settings with which no other trees ship."""


def test_a_refit_that_ships_is_sparks_own(of_noise: PipelineModel, rows: DataFrame, cache: str, sizes: Sizes) -> None:
    """Also where the trees of the folds grow in this process."""
    found = Improver(pipeline=of_noise, cacheDir=cache, **REFITS | {"numFolds": 3}).fit(rows)
    [row] = [r for r in found.summary.table if r["name"] == "refitted"]
    here, there = sizes
    assert row["accepted"] and there == [rows.count()]
    assert len(here) == 4 and max(here) == rows.count()  # three folds, and the test whether rows were seen
    for stage, other in zip(found.pipelineModel.stages, of_noise.stages, strict=True):
        assert stage.uid == other.uid
    expected = small_trees().fit(rows)
    ours, theirs = (np.array(m.transform(rows).select("prediction").collect()) for m in (found.pipelineModel, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_a_refit_that_was_tested_and_ships_is_sparks_own(
    of_noise: PipelineModel, rows: DataFrame, cache: str, sizes: Sizes
) -> None:
    """With a single held-out part the tested pipelines themselves ship."""
    found = Improver(pipeline=of_noise, cacheDir=cache, **REFITS | {"numFolds": 0}).fit(rows)
    here, there = sizes
    [row] = [r for r in found.summary.table if r["name"] == "refitted"]
    assert row["accepted"]
    shipped = trees.read(found.pipelineModel.stages[-1]).rawCount[0]
    assert there == [shipped] and shipped < rows.count() and here


def test_the_rows_of_a_fit_are_recognised_in_the_leaves(rows: DataFrame, cache: str, sizes: Sizes) -> None:
    """Without a refit of all rows, which chooses other thresholds than Spark where Spark draws rows for that."""
    here, _ = sizes
    numbers = pipeline(GBTRegressor(labelCol="riders", maxIter=2, maxDepth=4, seed=0))
    classes = pipeline(GBTClassifier(labelCol="rain", maxIter=2, maxDepth=4, seed=0))
    cases = [("riders", numbers, rows, True), ("riders", numbers, rows.where("number > 0"), False)]
    cases += [
        ("rain", classes, rows, True),
        ("riders", small_trees(), rows, False),
    ]  # of four leaves many rows have the sums
    for label, unfitted, fitted, seen in cases:
        here.clear()
        options = REFITS | {"labelCol": label}
        found = Improver(pipeline=unfitted.fit(fitted), cacheDir=cache, **options).fit(rows)
        why = found.summary.proof["why"]
        assert ("in the leaves of its first tree" in why) is seen, why
        assert (max(here) < rows.count()) is seen


@pytest.fixture(scope="module")
def remade() -> dict[tuple[str, int | None], Any]:
    """The pipelines that the improvement has made anew, by arm and fold."""
    return {}


@pytest.fixture(scope="module")
def improved(
    few: PipelineModel, rows: DataFrame, cache: str, remade: dict[tuple[str, int | None], Any]
) -> ImproverModel:
    make = proving.remake

    def noted(context: Any, making: Any, arms: Any) -> Any:
        found = make(context, making, arms)
        remade[making.arm, context.fold] = found.model
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proving, "remake", noted)
        return Improver(few, cacheDir=cache, **OPTIONS).fit(rows.where("number >= 600"))  # type: ignore[return-value]


def parts(rows: DataFrame) -> tuple[tuple[DataFrame, ...], tuple[DataFrame, ...]]:
    """The rows that train and explore, and those that train and prove."""
    division = divide([Source(rows.where("number >= 600"))], Options.of({"numFolds": 2}))
    return tuple(s.df for s in division.explores), tuple(s.df for s in division.proves[0])


def squared(model: Any, rows: DataFrame) -> float:
    found = model.transform(rows).select(F.avg((F.col("riders") - F.col("prediction")) ** 2)).first()
    assert found is not None
    return float(found[0])


def params(stage: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple({p.name: v for p, v in known.items()} for known in (stage._paramMap, stage._defaultParamMap))  # type: ignore[return-value]


Explores = Callable[..., ArmContext]
ONE_EACH = Limit(None, 40.0)
"""Passes for one ensemble beside the trees that are there, and one in their place."""


@pytest.fixture
def explores(rows: DataFrame, cache: str) -> Explores:
    """The rows that explore, for a pipeline and these settings of an improvement."""
    train, held = (rows.where(f"number >= 600 and number % 5 {sign} 0") for sign in (">", "="))

    def explored(model: PipelineModel, **settings: Any) -> ArmContext:
        return prepare_context(model, train, held, settings, cacheDir=cache, recipe="fast", maxEpochs=3)

    return explored


def test_the_original_is_not_measured_again(few: PipelineModel, explores: Explores) -> None:
    """A plain refit, whose measurement is known, costs nothing where it ships."""
    context = explores(few)
    assert measure(context, context.model) is context.start


@pytest.mark.nightly
def test_the_last_stage_gets_more_trees_and_nothing_else(
    improved: ImproverModel, few: PipelineModel, rows: DataFrame, tmp_path: Path
) -> None:
    assert improved.summary.decision == "improved"
    assert improved.summary.gain > 0.1
    best, (*before, old) = improved.pipelineModel, few.stages
    *kept, last = best.stages
    assert [s.uid for s in kept] == [s.uid for s in before]
    assert (type(last), last.uid, best.uid) == (type(old), old.uid, few.uid)
    assert params(last) == params(old)
    assert last.numFeatures == old.numFeatures
    assert last.getNumTrees > 10
    best.save(str(tmp_path / "best"))
    again = PipelineModel.load(str(tmp_path / "best"))
    ours, theirs = (m.transform(rows).select("prediction").toPandas() for m in (best, again))
    assert ours.equals(theirs)


def test_the_table_is_what_spark_measures_of_more_trees(
    improved: ImproverModel, rows: DataFrame, few: PipelineModel, remade: dict[tuple[str, int | None], Any]
) -> None:
    """Of the rows that prove by what was made without them; of all rows by what ships."""
    _, (_, proves) = parts(rows)
    own, best = improved.summary.table[0], improved.summary.table[improved.summary.offers["best"]]
    assert best["arm"] == "import"
    assert own["value"] == pytest.approx(squared(few, proves), rel=1e-9)
    assert best["value"] == pytest.approx(squared(remade["import", 2], proves), rel=1e-9)
    every = rows.where("number >= 600")
    assert improved.summary.metrics["train"]["after"] == pytest.approx(squared(improved.pipelineModel, every), rel=1e-9)
    assert remade["import", 0].stages[-1].toDebugString == improved.pipelineModel.stages[-1].toDebugString
    assert remade["import", 2].stages[-1].toDebugString != improved.pipelineModel.stages[-1].toDebugString


def test_as_many_trees_are_made_of_all_rows_as_in_each_fold(remade: dict[tuple[str, int | None], Any]) -> None:
    """How many there are was found on the rows that explore."""
    assert remade["import", 2].stages[-1].getNumTrees == remade["import", 0].stages[-1].getNumTrees
    first = [trees.read(remade["import", fold].stages[-1]).prediction.tolist() for fold in (2, 0)]
    assert first[0] != first[1]


def test_an_index_is_a_category_to_the_new_trees(improved: ImproverModel) -> None:
    nodes = trees.read(improved.pipelineModel.stages[-1])
    assert set(nodes.featureIndex[nodes.categorical].tolist()) == {len(NUMBERS)}
    assert len(NUMBERS) not in nodes.featureIndex[nodes.continuous]


def test_joined_trees_stay_and_others_begin_with_the_mean(
    few: PipelineModel, explores: Explores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind alone; their margins by Spark are the sums of what was there and of the new trees."""
    seen: list[tuple[bool, Any]] = []
    made = boosting._pipeline

    def noted(context: Any, ensemble: Any) -> Any:
        model = made(context, ensemble)
        seen.append((ensemble.base is None, model.stages[-1]))
        return model

    monkeypatch.setattr(boosting, "_pipeline", noted)
    context = explores(few, maxServingCost=1.0)
    step = boosting.run(context, 0, ONE_EACH, ())
    assert not step.candidates and "all of them cost more to serve than maxServingCost allows" in step.says
    old = few.stages[-1]
    assert {joins for joins, _ in seen} == {True, False}
    for joins, stage in seen:
        nodes, own = trees.read(stage), trees.read(old)
        if joins:
            assert stage.treeWeights[: old.getNumTrees] == old.treeWeights
            first = nodes.offsets[old.getNumTrees]
            assert nodes.prediction[:first].tolist() == own.prediction.tolist()
        else:
            assert nodes.offsets[1] == 1  # a tree of one leaf
            mean = few.transform(context.sources[0].df).agg(F.avg("prediction")).first()
            assert nodes.prediction[0] == pytest.approx(mean[0], rel=1e-9)
        assert set(stage.treeWeights[old.getNumTrees :]) == {1.0}


def test_classes_get_trees_of_half_the_log_odds(rows: DataFrame, explores: Explores) -> None:
    last = GBTClassifier(labelCol="rain", maxIter=2, maxDepth=1, seed=0, leafCol="leaf")
    model = pipeline(last.setThresholds([0.4, 0.6])).fit(rows.where("number < 600"))
    context = explores(model)
    [found] = boosting.run(context, 0, ONE_EACH, ()).candidates
    assert found.found.scores[VALIDATION].mean < context.start.scores[VALIDATION].mean
    new = found.model.stages[-1]
    assert set(new.treeWeights[model.stages[-1].getNumTrees :]) == {0.5}
    assert params(new) == params(model.stages[-1])
    shown = found.model.transform(context.sources[0].df).select("rain", "probability", "leaf").toPandas()
    p = np.stack([v.toArray() for v in shown["probability"]])[np.arange(len(shown)), shown["rain"].astype(int)]
    assert found.found.scores[TRAIN].mean == pytest.approx(-np.log(p).mean(), rel=1e-9)
    assert shown["leaf"][0].size == new.getNumTrees


@pytest.mark.nightly
def test_more_trees_are_refused_with_the_reason(
    few: PipelineModel, rows: DataFrame, cache: str, explores: Explores, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexer, assembler, last = few.stages
    scaler = StandardScaler(inputCol="raw", outputCol="features").fit(
        assembler.copy({assembler.outputCol: "raw"}).transform(indexer.transform(rows))
    )
    scaled = PipelineModel([indexer, assembler.copy({assembler.outputCol: "raw"}), scaler, last])
    kept = Improver(scaled, keepStages=[last.uid], cacheDir=cache, **OPTIONS)
    assert f"not tried: {last.uid} is to be kept, and more trees change it" in str(kept.explain(rows))
    with pytest.raises(InputError, match=f"import: {last.uid} is to be kept"):
        kept.fit(rows)
    shaped = Improver(few, penalties={"monotone": {"wind": 1.0}}, **OPTIONS)
    assert "not tried: penalties: monotone is not possible" in str(shaped.explain(rows))
    monkeypatch.setattr(boosters, "preferred_library", lambda: None)
    assert "'trees' needs LightGBM, XGBoost or scikit-learn" in str(Improver(few, **OPTIONS).explain(rows))
    monkeypatch.undo()
    monkeypatch.setattr(boosting, "LARGEST", 1000)
    found = race(explores(few), [IMPORT], Account(Budget.of("200 passes")), StepLog(None), Phases(False))
    assert not any(step.candidates for step in found.steps)
    [arm] = found.standings
    assert arm.state == "failed"
    assert "validation rows take" in arm.why
    assert "hold out fewer rows" in arm.why


def test_trees_learn_from_the_rows_that_there_is_room_for(
    few: PipelineModel, explores: Explores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boosting, "LARGEST", 75_000)
    step = boosting.run(explores(few), 0, ONE_EACH, ())
    assert step.candidates
    [used, there] = map(int, re.findall(r"ensembles of (\d+) of (\d+) training rows", step.says)[0])
    assert 300 < used < 0.8 * there
