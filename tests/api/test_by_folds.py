"""Fine-tuning by folds: which rows fit, explore and prove, what ships, and why something is refused."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import PCA, RFormula, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff import Events, FineTuner, FineTunerModel, InputError
from sparkdiff.cli import starting
from sparkdiff.cli.config import load_config
from sparkdiff.data.splits import TEST, TRAIN, VALIDATION, Source
from sparkdiff.errors import ParityError
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.improvement import exploration_and_proof, proving
from sparkdiff.improvement.origin import by_number
from sparkdiff.options import Options
from sparkdiff.pipeline.indexer_labels import check_same_classes, classes_of
from sparkdiff.proof.division import divide
from sparkdiff.training.recipes import Recipe
from tests.support.small_data import NUMBERS, QUICK, half_deviance, predictions, tune, weights

FOLDS = 3
BY_USER = {"numFolds": FOLDS, "groupCol": "user", "weightCol": "weight", "guardCols": ["held"], "seed": 2}
TRAINS = {"maxEpochs": 8, "learningRate": 0.01, "stream": "arrow"}
STANDS = {**TRAINS, "maxEpochs": 1, "recipe": "fast", "learningRate": 1e-9}
"""Steps that change a loss by less than anybody sees."""


def unfitted(train: Any = None) -> Pipeline:
    """Without a category, so that caches are quick; the one direction of its PCA is the same in all folds."""
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=1),
            GeneralizedLinearRegression(featuresCol="components", labelCol="riders", family="poisson"),
        ]
    )


class Told(Events):
    def __init__(self) -> None:
        self.details: list[str] = []
        self.rows: list[Mapping[str, Any]] = []

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        self.details += [detail] if seconds is not None else []

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)


@pytest.fixture(scope="module")
def fitted(df: DataFrame) -> PipelineModel:
    return unfitted().fit(df)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


def by_user(df: DataFrame, folder: Path, told: Told) -> FineTunerModel:
    return FineTuner(
        unfitted(),
        cacheDir=str(folder),
        runId="by-user",
        referenceData=df.limit(600),
        callbacks=[told],
        **BY_USER,
        **TRAINS,
    ).fit(df)


@pytest.fixture(scope="module")
def found(df: DataFrame, folder: Path, told: Told) -> FineTunerModel:
    return by_user(df, folder, told)


def deviance(model: Any, rows: DataFrame, weightCol: str = "weight") -> tuple[float, float]:
    """Weighted sum and weight, by numpy."""
    predicted, label, weight = predictions(model, rows, "riders", weightCol).T
    return float((weight * half_deviance(label, predicted)).sum()), float(weight.sum())


def test_one_recipe_makes_each_fold_from_rows_outside_it(df: DataFrame, found: FineTunerModel) -> None:
    division, total, s = divide([Source(df)], Options.of(BY_USER)), np.zeros(2), found.summary
    assert [entry["fold"] for entry in s.folds] == [2, 3] and division.number == 2
    proven: set[int] = set()
    for entry, parts in zip(s.folds, division.proves, strict=True):
        rows = {source.split: source.data for source in parts}
        users = {split: {r[0] for r in own.select("user").distinct().collect()} for split, own in rows.items()}
        assert users[TRAIN] | users[TEST] == set(range(150)) and not users[TEST] & (users[TRAIN] | proven)
        proven |= users[TEST]
        sums = deviance(unfitted().fit(rows[TRAIN]), rows[TEST])
        total += sums
        assert entry["before"] == pytest.approx(sums[0] / sums[1], rel=1e-9)
        assert entry["rows"] == rows[TEST].where("weight > 0").count()
        assert entry["after"] != entry["before"]
    assert s.metrics["validation"]["before"] == pytest.approx(total[0] / total[1], rel=1e-9)
    assert len({(entry["recipe"], entry["epochs"]) for entry in s.folds}) == 1
    assert 1 <= s.folds[0]["epochs"] <= TRAINS["maxEpochs"]
    weights = [deviance(unfitted().fit(df), {p.split: p.data for p in parts}[TEST])[1] for parts in division.proves]
    after = sum(w * entry["after"] for w, entry in zip(weights, s.folds, strict=True)) / sum(weights)
    assert s.metrics["validation"]["after"] == pytest.approx(after, rel=1e-9)


def test_fold_1_chooses_what_the_others_do(found: FineTunerModel, df: DataFrame) -> None:
    """It trains several candidates, and each of the others one, for a fixed number of epochs."""
    s = found.summary
    history, [recipe], [epochs] = s.history, {e["recipe"] for e in s.folds}, {e["epochs"] for e in s.folds}
    assert [*dict.fromkeys(history["fold"])] == [1, 2, 3, 0]
    explored = history[history["fold"] == 1]
    assert recipe in set(explored["recipe"]) and explored["candidate"].nunique() == s.candidates > 1
    for fold in (2, 3, 0):
        own = history[history["fold"] == fold]
        assert set(own["recipe"]) == {recipe} and [*own["epoch"]] == list(range(epochs + 1))
    # The losses before the first epoch are those of the fold's own fit, on the rows that it explores with.
    rows = {p.split: p.data for p in divide([Source(df)], Options.of(BY_USER)).explores}
    sums = deviance(unfitted().fit(rows[TRAIN]), rows[VALIDATION])
    assert explored["validationMetric"].iloc[0] == pytest.approx(sums[0] / sums[1], rel=1e-9)


def test_what_ships_is_fitted_and_trained_on_all_rows(df: DataFrame, found: FineTunerModel, told: Told) -> None:
    s = found.summary
    assert s.decision == "tuned", s.reason
    assert "over its refit in the same folds of" in s.reason and "on the out-of-fold rows is larger" in s.reason
    expected = unfitted().fit(df)
    np.testing.assert_allclose(found.originalModel.stages[1].mean, expected.stages[1].mean, rtol=1e-12)
    before, after = (deviance(m, df) for m in (found.originalModel, found.pipelineModel))
    assert s.metrics["train"] == pytest.approx(
        {"before": before[0] / before[1], "after": after[0] / after[1]}, rel=1e-9
    )
    own, out = s.metrics["train"]["after"], s.metrics["validation"]["after"]
    assert own < 1.3 * out  # it looks like the folds' pipelines
    assert 0 < s.gain < 1 and s.gainInterval[0] < s.gain < s.gainInterval[1]
    assert {c["value"] for c in s.slices} == {False, True} and sum(c["rows"] for c in s.slices) == sum(
        f["rows"] for f in s.folds
    )
    assert s.reference["rows"] > 300 and s.metrics["reference"]["after"] < s.metrics["reference"]["before"]
    assert s.reference["p"] is not None and s.parity.keys() == {"before", "after"}
    assert all(max(side["maxRelDiff"].values()) < 1e-9 for side in s.parity.values())
    assert (s.diverged, s.options["numFolds"]) == (0, FOLDS)
    assert "out of fold" in str(s) and "the folds' pipelines" in str(s)


def test_listeners_hear_the_rows_of_the_history_with_their_fold(found: FineTunerModel, told: Told) -> None:
    records = found.summary.records
    assert [row.keys() for row in told.rows] == [row.keys() for row in records]
    assert [row for row in told.rows if row["epoch"]] == [row for row in records if row["epoch"]]
    assert [row["validationMetric"] for row in told.rows] == [row["validationMetric"] for row in records]
    begins = {d.partition(":")[0] for d in told.details if d}
    assert begins >= {"fold 2", "fold 3", "all rows"} and "fold 0" not in begins


@pytest.mark.nightly
def test_a_rerun_by_name_reads_caches_and_explores_nothing(df: DataFrame, found: FineTunerModel, folder: Path) -> None:
    told = Told()
    again = by_user(df, folder, told)
    assert again.summary.cache["hit"]
    assert not any("written" in d for d in told.details)
    assert again.summary.metrics == found.summary.metrics and again.summary.folds == found.summary.folds
    assert again.summary.p == found.summary.p
    one, two = (weights(m.pipelineModel).values() for m in (again, found))  # to the bit
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.nightly
def test_by_time_each_stretch_is_proven_by_the_rows_before_it(df: DataFrame, folder: Path) -> None:
    options = {"numFolds": 5, "timeCol": "when"}
    found = FineTuner(unfitted(), cacheDir=str(folder), **TRAINS, **options).fit(df)
    s = found.summary
    assert [(entry["fold"], entry["rows"]) for entry in s.folds] == [(2, 150), (3, 150), (4, 150)]
    one = df.withColumn("one", F.lit(1.0))
    for k, entry in enumerate(s.folds):
        start = 1050 + 150 * k
        sums = deviance(
            unfitted().fit(df.where(f"number < {start}")),
            one.where(f"number >= {start} AND number < {start + 150}"),
            "one",
        )
        assert entry["before"] == pytest.approx(sums[0] / sums[1], rel=1e-9)
    expected = unfitted().fit(df)  # the newest rows, too
    np.testing.assert_allclose(found.originalModel.stages[1].mean, expected.stages[1].mean, rtol=1e-12)


@pytest.mark.nightly
def test_auto_and_rows_that_the_user_names_prove_without_folds(df: DataFrame, folder: Path) -> None:
    found = FineTuner(unfitted(), cacheDir=str(folder), numFolds="auto", validationIndicatorCol="held", **TRAINS).fit(
        df
    )
    s, one = found.summary, df.withColumn("one", F.lit(1.0))
    train, held = one.where("NOT held"), one.where("held")
    sums = deviance(unfitted().fit(train), held, "one")
    assert s.folds == [] and s.metrics["validation"]["before"] == pytest.approx(sums[0] / sums[1], rel=1e-9)
    assert s.decision == "tuned", s.reason
    own = deviance(found.pipelineModel, held, "one")  # what ships is made from the same rows as what they have proven
    assert s.metrics["validation"]["after"] == pytest.approx(own[0] / own[1], rel=0.02)
    np.testing.assert_allclose(found.originalModel.stages[1].mean, unfitted().fit(train).stages[1].mean, rtol=1e-12)
    assert "out of fold" not in str(s) and "out-of-fold" not in s.reason


# What has been fitted -------------------------------------------------------------------------------------------------

NEW = {"numFolds": 2, "rowsAreNew": True, "runId": "new-rows", "guard": 1.0}


@pytest.mark.nightly
def test_each_fold_trains_from_a_fitted_pipelines_refit(df: DataFrame, fitted: PipelineModel, folder: Path) -> None:
    """And what has to be beaten, where the pipeline was fitted on these rows."""
    none = {"guard": 1e-300, "rowsAreNew": False, "numFolds": 2, **STANDS}
    found, other = (FineTuner(p, cacheDir=str(folder), **none).fit(df) for p in (fitted, unfitted()))
    assert found.originalModel is found.pipelineModel is fitted
    for entry, of_unfitted in zip(found.summary.folds, other.summary.folds, strict=True):
        assert entry["before"] == pytest.approx(of_unfitted["before"], rel=1e-9)
        assert entry["after"] == pytest.approx(entry["before"], rel=1e-6)


def test_without_a_refit_it_is_kept_and_the_stage_is_named(df: DataFrame, fitted: PipelineModel, folder: Path) -> None:
    """Nothing is trained: the stage has seen the rows of all folds."""
    head = fitted.stages[-1].uid
    found = FineTuner(fitted, cacheDir=str(folder), freeze=[head], numFolds=2, **TRAINS).fit(df)
    s = found.summary
    assert found.pipelineModel is found.originalModel is fitted
    assert (s.decision, s.gain, s.folds, len(s.records)) == ("kept original", 0.0, [], 0)
    assert f"{head} stays as it is fitted" in s.reason and "rowsAreNew=True" in s.reason


@pytest.fixture(scope="module")
def new_rows(df: DataFrame, fitted: PipelineModel, folder: Path) -> FineTunerModel:
    return tune(fitted, df, folder, **NEW)


@pytest.mark.nightly
def test_a_fitted_pipeline_stays_what_it_is_in_all_folds(
    df: DataFrame, fitted: PipelineModel, new_rows: FineTunerModel
) -> None:
    s = new_rows.summary
    assert s.decision == "tuned"
    assert new_rows.originalModel is fitted
    assert new_rows.pipelineModel.uid == fitted.uid
    [entry], [parts] = s.folds, divide([Source(df)], Options.of({"numFolds": 2})).proves
    own = {p.split: p.data for p in parts}[TEST].withColumn("one", F.lit(1.0))
    sums = deviance(fitted, own, "one")
    assert entry["fold"] == 2 and entry["epochs"] >= 1
    assert entry["before"] == pytest.approx(sums[0] / sums[1], rel=1e-9)


def too_far(context: Any, base: Any, recipe: Recipe, epochs: int, name: str) -> Any:
    return train_again(context, base, Recipe(1e6, 0.0), 2, name)


def not_spark(*arguments: Any) -> Any:
    raise ParityError("Spark and the network disagree")


def much_worse(context: Any, *rest: Any) -> Any:
    found = train_again(context, *rest)
    scores = {k: dataclasses.replace(s, blocks=2 * s.blocks) for k, s in found.scores.items()}
    return dataclasses.replace(found, scores=scores)


train_again = proving.train_again


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("replacement", "why"),
    [
        (too_far, "but it can't be made from all rows: the training diverges in epoch"),
        (not_spark, "but it can't be made from all rows: Spark and the network disagree"),
        (much_worse, r"but made from all rows its poisson there is [\d.]+, worse than on rows of folds"),
    ],
)
def test_the_original_ships_if_training_on_all_rows_fails(
    df: DataFrame, fitted: PipelineModel, folder: Path, monkeypatch: pytest.MonkeyPatch, replacement: Any, why: str
) -> None:
    def only_on_all_rows(context: Any, *rest: Any) -> Any:
        return (train_again if context.fold else replacement)(context, *rest)

    monkeypatch.setattr(proving, "train_again", only_on_all_rows)
    found = tune(fitted, df, folder, **NEW | {"runId": None})
    s = found.summary
    assert found.pipelineModel is fitted
    assert s.decision == "kept original"
    assert re.search(why, s.reason), s.reason
    assert s.gain == 0.0 and all(m is None or m["before"] == m["after"] for m in s.metrics.values())
    assert "after" not in s.parity and s.stages == {}
    assert s.folds[0]["after"] < s.folds[0]["before"]  # what was proven is told


@pytest.mark.nightly
def test_what_gets_worse_on_reference_rows_does_not_ship(df: DataFrame, fitted: PipelineModel, folder: Path) -> None:
    shuffled = df.withColumn("riders", F.lit(30.0) / (1 + F.col("riders")))
    found = FineTuner(
        fitted, cacheDir=str(folder), referenceData=shuffled, **QUICK | NEW | {"guard": 0.025, "runId": None}
    ).fit(df)
    assert found.pipelineModel is fitted
    assert "but poisson gets worse on the reference rows" in found.summary.reason


def test_no_gain_out_of_fold_trains_nothing_on_all_rows(df: DataFrame, fitted: PipelineModel, folder: Path) -> None:
    found = tune(fitted, df, folder, **NEW | {"runId": None, "guard": 1e-300} | STANDS)
    s = found.summary
    assert found.pipelineModel is fitted
    assert s.decision == "kept original" and s.gain == 0.0
    assert {row["fold"] for row in s.records} <= {1, 2}
    assert s.metrics["train"]["before"] > 0 and s.metrics["train"]["after"] == s.metrics["train"]["before"]


# Refused before anything is fitted ------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise AssertionError("fitted")

    monkeypatch.setattr(Pipeline, "fit", fails)


def classifier(label: str) -> Pipeline:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="x")
    return Pipeline(stages=[assembler, LogisticRegression(featuresCol="x", labelCol=label)])


@pytest.mark.usefixtures("nothing_is_fitted")
def test_folds_that_cannot_prove_are_named(df: DataFrame) -> None:
    """See tests/api/proof/test_division.py, too."""
    few = df.withColumn("team", F.col("user") % 3)
    missing = df.withColumn("team", F.nullif("user", F.lit(3)))
    rare = df.withColumn("rare", (F.col("user") == 7).cast("double") * (F.col("number") % 3 == 0).cast("double"))
    timeless = df.withColumn("when", F.when(F.col("number") != 3, F.col("when")))
    for pipeline, options, rows, why in (
        (unfitted(), {"groupCol": "team"}, few, "groupCol='team' has 3 values, too few for numFolds=2: at least 4 are"),
        (unfitted(), {"groupCol": "team"}, missing, r"groupCol='team' holds null in 10 rows, .*; fill the column"),
        (unfitted(), {}, df.where("number < 1"), r"fold \d of numFolds=2 has no rows: add rows, or set fewer folds"),
        (classifier("rare"), {"numFolds": 9}, rare, r"fold [\d, ]+ of numFolds=9 has no row of labelCol='rare' 1: set"),
        (unfitted(), {"groupCol": "usr"}, df, r"groupCol='usr' is not a column of the data\. Did you mean 'user'"),
        (unfitted(), {"timeCol": "when"}, timeless, "timeCol='when' holds null or NaN or an infinite value in 1 rows"),
        (unfitted(), {"runId": "no/name"}, df, "runId='no/name' may contain only"),
    ):
        with pytest.raises(InputError, match=why):
            FineTuner(pipeline, **{"numFolds": 2, **options}).fit(rows)


# Refused before anything is trained -----------------------------------------------------------------------------------


@pytest.mark.nightly
def test_labels_whose_classes_differ_by_fold_are_refused(
    df: DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where classes are about as frequent, each fold's StringIndexer may put another one first."""
    stages = classifier("label").getStages()
    stages[-1].setMaxIter(1)
    frequent = Pipeline(stages=[StringIndexer(inputCol="even", outputCol="label"), *stages])
    rows = df.withColumn("even", F.when(F.col("number") % 2 == 0, "yes").otherwise("no"))
    by_class = {"cacheDir": str(folder), "metric": "areaUnderPR", **TRAINS}

    # Of four folds not the first one, which explores, but one that proves has another class 0; nothing is trained there.
    s = FineTuner(frequent, numFolds=4, **by_class).fit(rows).summary
    assert s.decision == "kept original" and {row["fold"] for row in s.records} == {1}
    assert re.search(
        r"fold 2: class 0 of labelCol='label' is '(yes|no)' in .*, but '(yes|no)' in fold 2: number", s.reason
    )
    s = FineTuner(frequent, cacheDir=str(folder), numFolds=4, **TRAINS).fit(rows).summary  # log-loss knows no numbers
    assert [entry["fold"] for entry in s.folds] == [2, 3, 4] and "class 0" not in s.reason

    def trains(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(exploration_and_proof, "_explore", trains)
    with pytest.raises(InputError, match=r"class 0 of labelCol='label' is '(yes|no)' in .*, but '(yes|no)' in fold 1"):
        FineTuner(frequent, numFolds=2, **by_class).fit(rows)


def test_the_classes_of_a_label_are_compared(df: DataFrame) -> None:
    rows = df.limit(20).withColumn("Kind", F.when(F.col("number") < 5, "few").otherwise("many"))
    formula = RFormula(formula="Kind ~ temp", labelCol="Class")
    pipeline = Pipeline(stages=[formula, LogisticRegression(labelCol="Class", maxIter=1)])
    one, two, three = (
        prepare(pipeline.fit(rows.where(f"number {which}")), Options(labelCol="class"))
        for which in ("< 9", "> 2", "> 4")
    )
    few, many, none = (classes_of(task.model, "class") for task in (one, two, three))
    assert (few, many, none) == (("few", "many"), ("many", "few"), ("many",))
    assert classes_of(one.model, "label") == ()
    check_same_classes(few, few, "class", "fold 2")
    for first, other, said in (
        (few, many, "class 0 of labelCol='class' is 'few' in .*, but 'many' in fold 2: number"),
        (many, none, "class 1 of labelCol='class' is 'few' in .*, but None in fold 2: number"),
    ):
        with pytest.raises(InputError, match=said):
            check_same_classes(first, other, "class", "fold 2")

    def counts(**options: Any) -> bool:
        return by_number(prepare(one.model, Options(labelCol="class", **options)))

    assert not counts() and not counts(loss={"logLoss": 1, "hinge": 1}, metric="accuracy")
    assert not counts(lossParams={"classWeights": "balanced"})
    assert counts(lossParams={"classWeights": [1.0, 2.0]}) and counts(
        loss="cost", lossParams={"costs": [[0, 1], [2, 0]]}
    )
    assert counts(metric="recallByLabel") and counts(loss=max)
    one.model.stages[-1].setThreshold(0.4)
    assert counts()


# Jobs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_job_deals_its_training_rows_into_folds(df: DataFrame, tmp_path: Path) -> None:
    df.write.parquet(f"file://{tmp_path}/rows")
    told = [f"data.train={tmp_path}/rows", f"data.test={tmp_path}/rows", "pipeline=test_by_folds:unfitted"]
    told += [f"output={tmp_path}/run", "fineTuner.numFolds=3", "fineTuner.verbosity=0"]
    told += [f"fineTuner.{k}={v}" for k, v in TRAINS.items()]
    with pytest.raises(
        InputError, match=r"fineTuner\.numFolds=3 lets all rows of data.train decide, but data.validation"
    ):
        load_config(None, [*told, f"data.validation={tmp_path}/rows"])
    summary = starting.run(load_config(None, told))
    assert (summary.decision, len(summary.folds)) == ("tuned", 2)
    assert summary.metrics["test"] == pytest.approx(summary.metrics["train"], rel=1e-9)  # the same rows
    assert not [p for p in (tmp_path / ".cache").glob("checkpoints/*") if p.is_dir()]
    stored = PipelineModel.load(f"file://{tmp_path}/run/model")
    before, after = (
        np.mean(half_deviance(*predictions(m, df, "riders").T[::-1])) for m in (unfitted().fit(df), stored)
    )
    assert summary.metrics["test"] == pytest.approx({"before": before, "after": after}, rel=1e-9)
