"""A fitted pipeline, and rows that it may have been fitted on: what starts, what must be beaten, and what ships, by new rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Model, Pipeline
from pyspark.ml.classification import GBTClassifier, LogisticRegression, RandomForestClassifier
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import PCA, UnivariateFeatureSelector, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import LinearRegression
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import FineTuner, Grower, Improver, InputError, Search, alternatives
from sparkdiff.data.splits import TEST, TRAIN, Source
from sparkdiff.options import Options
from sparkdiff.proof.division import divide

COLUMNS, TREES = 40, 12
QUICK: dict[str, Any] = {"maxEpochs": 8, "recipe": "fast", "stream": "arrow"}
WAY_OUT = ("pass the unfitted Pipeline", "numFolds=5", "rowsAreNew=True")
HEADS = {
    "boosted": lambda: GBTClassifier(maxDepth=5, maxIter=8, seed=1),
    "forest": lambda: RandomForestClassifier(maxDepth=8, numTrees=8, seed=1),
    "linear": lambda: LogisticRegression(),
}


def drawn(spark: SparkSession, seed: int, rows: int, slope: float = 0.8) -> DataFrame:
    """Rows of one distribution; few enough columns matter that a fit learns much chance."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, COLUMNS))
    z = slope * x[:, 0] + 0.5 * x[:, 1] * x[:, 2] - 1
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(COLUMNS)])
    frame["label"] = (random.random(rows) < 1 / (1 + np.exp(-z))).astype(float)
    frame["y"] = z + random.normal(size=rows)
    return spark.createDataFrame(frame)


def pipeline(head: Any, columns: int = TREES) -> Pipeline:
    assembler = VectorAssembler(inputCols=[f"x{i}" for i in range(columns)], outputCol="features")
    return Pipeline(stages=[assembler, head])


def losses(model: Any, rows: DataFrame) -> Any:
    """The log-loss of each row."""
    found = model.transform(rows).select("label", vector_to_array("probability").alias("p")).toPandas()
    one = np.stack(found.p)[:, 1].clip(1e-9, 1 - 1e-9)
    return -np.where(found.label == 1, np.log(one), np.log(1 - one))


def worse_by(found: Any, rows: DataFrame) -> float:
    """By how many standard errors what ships is worse than what was passed, on new rows."""
    lost = losses(found.pipelineModel, rows) - losses(found.originalModel, rows)
    return float(lost.mean() / (lost.std() / np.sqrt(len(lost)) + 1e-12))


def in_folds(rows: DataFrame, folds: int) -> list[dict[str | None, DataFrame]]:
    """The training rows and the rows of each fold that proves."""
    division = divide([Source(rows)], Options(numFolds=folds))
    return [{s.split: s.data for s in parts} for parts in division.proves]


def told(found: Any) -> list[str]:
    return [w for w in found.summary.warnings if "the rows that decide" in w]


@pytest.fixture(scope="module")
def new(spark: SparkSession) -> DataFrame:
    return drawn(spark, 1000, 4000).cache()


@pytest.fixture(scope="module")
def seen(spark: SparkSession) -> DataFrame:
    return drawn(spark, 0, 800).cache()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("head", "seed"),
    [
        *((head, 0) for head in ("boosted", "linear")),
        *(pytest.param(head, seed, marks=pytest.mark.nightly) for seed in range(1, 20) for head in HEADS),
    ],
)
def test_what_ships_from_seen_rows_is_no_worse_on_new_rows(
    spark: SparkSession, new: DataFrame, seen: DataFrame, head: str, seed: int, tmp_path: Path
) -> None:
    rows = drawn(spark, seed, 800).cache() if seed else seen
    original = pipeline(HEADS[head](), COLUMNS if head == "linear" else TREES).fit(rows)
    found = FineTuner(original, cacheDir=str(tmp_path), **QUICK).fit(rows)
    [warning] = told(found)
    assert "has seen the rows that decide: a refit on all rows reproduces it" in warning
    assert found.originalModel is original
    assert worse_by(found, new) < 3
    if found.summary.decision == "kept original":
        assert found.pipelineModel is original
        assert all(part in found.summary.reason for part in WAY_OUT)


@pytest.mark.nightly
@pytest.mark.parametrize("head", HEADS)
def test_an_unfitted_pipeline_gains_what_it_did(
    spark: SparkSession, seen: DataFrame, head: str, tmp_path: Path
) -> None:
    """It is fitted on the training rows, so nothing is looked for."""
    how: dict[str, Any] = {"cacheDir": str(tmp_path), "guard": 1.0, **QUICK}
    by_itself = FineTuner(pipeline(HEADS[head]()), **how).fit(seen).summary
    fitted = FineTuner(pipeline(HEADS[head]()).fit(seen), **how).fit(seen).summary
    assert by_itself.gain == pytest.approx(fitted.gain, rel=1e-6)  # which starts from the same refit
    assert "refit" not in by_itself.timings


VERBS: dict[str, Any] = {
    "folds": lambda original, **o: FineTuner(original, numFolds=2, **o),
    "Improver": lambda original, **o: Improver(original, numFolds=2, arms=["finetune"], budget="20 passes", **o),
    "Grower": lambda original, **o: Grower(original, numFolds=2, parts=["crosses"], rounds=1, **o),
}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("verb", "head"),
    [
        ("Improver", "boosted"),
        pytest.param("folds", "boosted", marks=pytest.mark.nightly),
        pytest.param("Grower", "linear", marks=pytest.mark.nightly),
    ],
)
def test_what_seen_rows_prove_is_no_worse_on_new_rows(
    seen: DataFrame, new: DataFrame, tmp_path: Path, verb: str, head: str
) -> None:
    """Its rival is the refit in the same folds, which has seen as little of their rows as it has."""
    original = pipeline(HEADS[head]()).fit(seen)
    found = VERBS[verb](original, rowsAreNew=False, cacheDir=str(tmp_path), **QUICK).fit(seen)
    assert found.originalModel is original
    assert worse_by(found, new) < 3


@pytest.mark.nightly
@pytest.mark.parametrize(
    "verb",
    [
        "Improver",
        pytest.param("folds", marks=pytest.mark.nightly),
        pytest.param("Grower", marks=pytest.mark.nightly),
    ],
)
def test_an_original_of_many_other_rows_stays_the_rival(
    spark: SparkSession, seen: DataFrame, tmp_path: Path, verb: str
) -> None:
    """It is better than its refit on these rows, and nothing that starts from that beats it."""
    original = pipeline(LogisticRegression(), COLUMNS).fit(drawn(spark, 7, 20_000))
    found = VERBS[verb](original, cacheDir=str(tmp_path), guard=1.0, **QUICK).fit(seen)
    assert found.pipelineModel is found.originalModel is original
    assert found.summary.decision == "kept original" and found.summary.gain <= 0
    assert "may have seen" not in found.summary.reason


@pytest.mark.nightly
def test_rowsAreNew_says_if_the_rival_is_refitted_per_fold(
    spark: SparkSession, seen: DataFrame, tmp_path: Path
) -> None:
    early = pipeline(LogisticRegression(regParam=0.5))  # training has something to gain
    original, folds = early.fit(drawn(spark, 7, 20_000)), in_folds(seen, 2)
    own = [losses(original, rows[TEST]).mean() for rows in folds]
    refits = [losses(early.fit(rows[TRAIN]), rows[TEST]).mean() for rows in folds]
    for said, expected in ((None, own), (False, refits)):
        found = FineTuner(original, numFolds=2, cacheDir=str(tmp_path), rowsAreNew=said, **QUICK).fit(seen)
        assert [entry["before"] for entry in found.summary.folds] == pytest.approx(expected, rel=1e-6), said
        assert any("set rowsAreNew=False" in w for w in found.summary.warnings) == (said is None)


@pytest.mark.nightly
def test_an_original_that_beats_its_refit_needs_new_rows(spark: SparkSession, seen: DataFrame, tmp_path: Path) -> None:
    """It was fitted on many other rows, and may have been fitted on these, too."""
    original = pipeline(LogisticRegression(), COLUMNS).fit(drawn(spark, 7, 20_000))
    found = FineTuner(original, cacheDir=str(tmp_path), **QUICK).fit(seen)
    assert found.pipelineModel is original
    assert "on which it is better than its refit on the training rows" in found.summary.reason
    assert all(part in found.summary.reason for part in WAY_OUT)
    said = FineTuner(original, cacheDir=str(tmp_path), rowsAreNew=True, **QUICK).fit(seen)
    assert said.summary.metrics["validation"]["before"] == pytest.approx(found.summary.metrics["validation"]["before"])
    assert len(said.summary.history) > 1


def up_to_rounding(found: Any) -> dict[str, Any]:
    """The metrics of a run; two fits to the same rows differ in their last bits, because Spark adds partitions as they come."""
    return {split: values and pytest.approx(values, rel=1e-9) for split, values in found.summary.metrics.items()}


def test_a_refit_no_worse_than_the_original_is_the_start(
    spark: SparkSession, seen: DataFrame, new: DataFrame, tmp_path: Path
) -> None:
    """Whether it has seen some of these rows or none."""
    original = pipeline(LogisticRegression()).fit(drawn(spark, 8, 800, slope=-0.8))
    found = FineTuner(original, cacheDir=str(tmp_path), guard=1.0, **QUICK).fit(seen)
    [warning] = told(found)
    assert "which the result must beat" in warning
    refit = FineTuner(pipeline(LogisticRegression()), cacheDir=str(tmp_path), guard=1.0, **QUICK).fit(seen)
    assert found.summary.metrics == up_to_rounding(refit)


def test_an_original_of_the_training_rows_alone_is_the_start(seen: DataFrame, tmp_path: Path) -> None:
    training = pipeline(LogisticRegression()).fit(seen.where("x11 < 0.5"))
    apart = FineTuner(training, validationIndicatorCol="held", cacheDir=str(tmp_path), **QUICK)
    assert told(apart.fit(seen.selectExpr("*", "x11 >= 0.5 AS held"))) == []


@pytest.mark.nightly
def test_options_of_side_by_side_fits_hold_in_their_refits(seen: DataFrame, tmp_path: Path) -> None:
    assembler = pipeline(None).getStages()[0]
    stages = [assembler, PCA(k=5, inputCol="features", outputCol="pca"), LogisticRegression(featuresCol="pca")]
    original = Pipeline(stages=stages).fit(seen.where("x0 < 1"))
    tuner = FineTuner(original, cacheDir=str(tmp_path), **QUICK)
    frozen = {tuner.getParam("freeze"): [original.stages[1].uid]}
    (_, first), (_, second) = sorted(tuner.fitMultiple(seen, [{}, frozen]), key=lambda found: found[0])
    alone = tuner.copy(frozen).fit(seen)
    assert second.summary.metrics == up_to_rounding(alone) != first.summary.metrics


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("verb", "keeps", "options"),
    [
        (FineTuner, "freeze", {}),
        (Grower, "freeze", {"rounds": 1, "parts": ["crosses"]}),
        (Improver, "keepStages", {"arms": ["finetune"], "budget": "20 passes", "baseline": False}),
    ],
)
def test_without_a_refit_the_pipeline_is_kept_with_advice(
    seen: DataFrame, tmp_path: Path, verb: Any, keeps: str, options: dict[str, Any]
) -> None:
    """A stage that the label has chosen stays as it is, and has seen all rows."""
    assembler, linear = pipeline(LinearRegression(labelCol="y", featuresCol="chosen")).getStages()
    selector = UnivariateFeatureSelector(labelCol="y", outputCol="chosen", selectionMode="numTopFeatures")
    selector = selector.setFeatureType("continuous").setLabelType("continuous").setSelectionThreshold(3)
    original = Pipeline(stages=[assembler, selector, linear]).fit(seen)
    kept = {keeps: [original.stages[1].uid]}
    found = verb(original, cacheDir=str(tmp_path), **kept, **options, **QUICK).fit(seen)
    assert found.pipelineModel is found.originalModel is original
    summary = found.summary
    assert (summary.decision, summary.gain, len(summary.history)) == ("kept original", 0.0, 0)
    assert f"{original.stages[1].uid} stays as it is fitted" in summary.reason
    ways = (
        WAY_OUT if verb is FineTuner else [way for way in WAY_OUT if way != "numFolds=5"]
    )  # which has the others already
    assert all(way in summary.reason for way in ways)
    side = "validation" if verb is FineTuner else "train"  # no row proves anything
    assert summary.metrics[side]["before"] == summary.metrics[side]["after"] > 0
    assert summary.parity["before"]["ok"] and "kept original" in str(summary)


@pytest.mark.nightly
def test_changed_labels_are_those_of_the_passed_pipeline(seen: DataFrame, tmp_path: Path) -> None:
    original = pipeline(LogisticRegression(), COLUMNS).fit(seen)
    options = {"validationIndicatorCol": "held", "guard": 1.0, "cacheDir": str(tmp_path), **QUICK}
    rows = seen.selectExpr("*", "x0 > 0.5 AS held")
    found = FineTuner(original, **options).fit(rows)
    assert found.summary.decision == "tuned"
    before, after = (
        np.array([r.prediction for r in m.transform(rows.where("held")).select("prediction").collect()])
        for m in (original, found.pipelineModel)
    )
    assert found.summary.compatibility["changed"] == pytest.approx((before != after).mean())
    kept = FineTuner(original, maxFlipRate=float((before != after).mean()) / 2, **options).fit(rows)
    assert kept.pipelineModel is original


@pytest.mark.parametrize(
    ("verb", "holder"),
    [
        *((verb, "pipeline") for verb in ("FineTuner", "folds", "Grower", "Improver", "Search")),
        ("Grower", "search"),
        ("FineTuner", "fitted search"),
        ("Search", "choice"),
    ],
)
def test_fitted_stages_in_unfitted_pipelines_may_know_rows(
    seen: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, holder: str
) -> None:
    """Wherever they are in it, and before anything is fitted."""
    grown = GBTClassifier(maxDepth=2, maxIter=2, predictionCol="first")
    fitted, last, judge = pipeline(grown).fit(seen), LinearRegression(labelCol="y"), RegressionEvaluator()
    tree = fitted.stages[1]
    whole = Pipeline(stages=[tree])
    search = CrossValidatorModel(tree, [0.5])
    search._set(estimator=grown)  # as a search leaves it, whose estimator has the uid of its model
    held = {
        "pipeline": whole,
        "search": CrossValidator(estimator=whole, estimatorParamMaps=[{}], evaluator=judge),
        "fitted search": search,
        "choice": alternatives(grown, whole),
    }[holder]
    estimator = Pipeline(stages=[fitted.stages[0], held, last])
    monkeypatch.setattr(Pipeline, "_fit", lambda *given: pytest.fail("a fit"))

    def fit() -> Any:
        if verb == "Search":
            return Search(estimator, space={last.regParam: [0.1, 1.0]}, evaluator=judge).fit(seen)
        kind, folds = (
            {"Grower": Grower, "Improver": Improver}.get(verb, FineTuner),
            {"numFolds": 2} if verb == "folds" else {},
        )
        return kind(estimator, cacheDir=str(tmp_path), **folds, **QUICK).fit(seen)

    with pytest.raises(InputError, match=rf"holds {tree.uid}, which may have been fitted with labels.*rowsAreNew=True"):
        fit()


class Unknown(Model):  # type: ignore[type-arg]
    """A fitted model of one's own, which doesn't tell what it was fitted with."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset


def test_own_models_in_unfitted_pipelines_may_know_rows(seen: DataFrame, tmp_path: Path) -> None:
    own = Unknown()
    stages = pipeline(LinearRegression(labelCol="y")).getStages()
    with pytest.raises(InputError, match=rf"holds {own.uid}, which may have been fitted with labels"):
        FineTuner(Pipeline(stages=[own, *stages]), cacheDir=str(tmp_path), **QUICK).fit(seen)


@pytest.mark.nightly
@pytest.mark.parametrize("verb", [FineTuner, Search, pytest.param("folds", marks=pytest.mark.nightly)])
def test_rowsAreNew_has_no_effect_without_fitted_stages(seen: DataFrame, tmp_path: Path, verb: Any) -> None:
    """And its warnings say so; they don't where they make one."""
    fitted, rows = pipeline(LinearRegression(labelCol="y", predictionCol="first"), 2).fit(seen), seen.limit(600)
    after = LinearRegression(labelCol="y", featuresCol="both")
    both = VectorAssembler(inputCols=["first", "x3"], outputCol="both")

    def warnings(*stages: Any) -> list[str]:
        whole = Pipeline(stages=[*stages, both, after])
        if verb is Search:
            space = {after.regParam: [0.1, 1.0]}
            search = Search(
                whole,
                space=space,
                evaluator=RegressionEvaluator(labelCol="y"),
                sampler="grid",
                rowsAreNew=True,
                numFolds=2,
            )
            return [*search.fit(rows).summary.warnings]
        options = {"numFolds": 2 if verb == "folds" else 0, "rowsAreNew": True, **QUICK, "maxEpochs": 1}
        return [*FineTuner(whole, cacheDir=str(tmp_path), **options).fit(rows).summary.warnings]

    own = LinearRegression(labelCol="y", predictionCol="first")
    assert [w for w in warnings(fitted.stages[0], own) if "rowsAreNew=True has no effect: Pipeline" in w]
    assert not [w for w in warnings(*fitted.stages) if "rowsAreNew" in w]
