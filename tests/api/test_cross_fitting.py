"""Fine-tuning by folds: which rows fit, choose and judge, what ships, and why something is refused."""

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
from small_data import NUMBERS, QUICK, half_deviance, predictions, tune

from sparkdiff import Events, FineTuner, FineTunerModel, InputError, job
from sparkdiff.cross_fitting import procedure
from sparkdiff.data.folds import all_sources, fold_sources
from sparkdiff.data.splits import Source
from sparkdiff.errors import ParityError
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.options import Options
from sparkdiff.pipeline.class_numbers import check_same_classes, classes_of
from sparkdiff.training.recipes import Recipe

pytestmark = pytest.mark.once
FOLDS = 2
BY_USER = {"numFolds": FOLDS, "groupCol": "user", "weightCol": "weight", "guardCols": ["held"], "seed": 2}


def unfitted(train: Any = None) -> Pipeline:
    """Without a category, so that caches are quick."""
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=2),
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def found(df: DataFrame, folder: Path, told: Told) -> FineTunerModel:
    return FineTuner(
        unfitted(), cacheDir=str(folder), runId="by-user", referenceData=df.limit(300), callbacks=[told], **BY_USER, **QUICK
    ).fit(df)  # fmt: skip


def deviance(model: Any, rows: DataFrame) -> tuple[float, float]:
    """Weighted sum and weight, by numpy."""
    predicted, label, weight = predictions(model, rows, "riders", "weight").T
    return float((weight * half_deviance(label, predicted)).sum()), float(weight.sum())


def test_each_fold_fits_and_trains_on_rows_outside_of_it_and_its_own_rows_judge(
    df: DataFrame, found: FineTunerModel
) -> None:
    options, total = Options.of(BY_USER), np.zeros(2)
    seen: dict[int, list[int]] = {}
    for k, entry in enumerate(found.summary.folds):
        parts = {s.split: s.df for s in fold_sources([Source(df)], options, k)}
        users = {s: {r[0] for r in rows.select("user").distinct().collect()} for s, rows in parts.items()}
        assert not users["train"] & users["test"] and not users["validation"] & users["test"]
        assert not users["train"] & users["validation"]
        assert len(users["validation"]) / len(users["train"] | users["validation"]) == pytest.approx(0.2, abs=0.1)
        for user in users["test"]:
            seen.setdefault(user, []).append(k)
        fitted = unfitted().fit(parts["train"])
        sums = deviance(fitted, parts["test"])
        total += sums
        assert entry["before"] == pytest.approx(sums[0] / sums[1], rel=1e-9)
        # A fold in which no epoch gained on its validation rows has two equal pipelines.
        gained = entry["epochs"] > 0
        assert entry["fold"] == k + 1 and entry["epochs"] <= 4 and (entry["after"] < entry["before"]) == gained
        assert entry["rows"] == parts["test"].where("weight > 0").count()
        assert all(max(side["maxRelDiff"].values()) < 1e-9 for side in entry["parity"].values())
        assert entry["parity"].keys() == ({"before", "after"} if gained else {"before"})
    assert sorted(seen) == list(range(150)) and all(len(folds) == 1 for folds in seen.values())
    assert found.summary.metrics["validation"]["before"] == pytest.approx(total[0] / total[1], rel=1e-9)


def test_what_ships_is_fitted_and_trained_on_all_rows(df: DataFrame, found: FineTunerModel, told: Told) -> None:
    s = found.summary
    assert s.decision == "tuned", s.reason
    assert s.reason.startswith("the tuned pipelines' gain of") and "on the out-of-fold rows is larger" in s.reason
    expected = unfitted().fit(df)
    np.testing.assert_allclose(found.originalModel.stages[1].mean, expected.stages[1].mean, rtol=1e-12)
    before, after = (deviance(m, df) for m in (found.originalModel, found.pipelineModel))
    assert s.metrics["train"] == pytest.approx(
        {"before": before[0] / before[1], "after": after[0] / after[1]}, rel=1e-9
    )
    assert 0 < s.gain < 1 and s.gainInterval[0] < s.gain < s.gainInterval[1]
    assert {c["value"] for c in s.slices} == {False, True} and sum(c["rows"] for c in s.slices) == sum(
        f["rows"] for f in s.folds
    )
    assert s.reference["rows"] > 150 and s.metrics["reference"]["after"] < s.metrics["reference"]["before"]
    assert [*dict.fromkeys(row["fold"] for row in s.records)] == [1, 2, 0]
    assert [row for row in told.rows if row["epoch"]] == [row for row in s.records if row["epoch"]]
    assert [row["validationMetric"] for row in told.rows] == [row["validationMetric"] for row in s.records]
    assert {d.partition(":")[0] for d in told.details if d} == {"fold 1", "fold 2", "all rows"}
    assert (s.candidates, s.diverged, s.options["numFolds"]) == (1, 0, FOLDS)
    assert "out of fold" in str(s) and "the folds' pipelines" in str(s)


@pytest.mark.nightly
def test_a_second_run_of_the_same_name_reads_caches_and_trains_nothing_again(
    df: DataFrame, found: FineTunerModel, folder: Path
) -> None:
    told = Told()
    tuner = FineTuner(
        unfitted(), cacheDir=str(folder), runId="by-user", referenceData=df.limit(300), callbacks=[told], **BY_USER, **QUICK
    )  # fmt: skip
    again = tuner.fit(df)
    assert again.summary.cache["hit"]
    assert sum("this run was already finished" in d for d in told.details) == FOLDS + 1
    assert again.summary.metrics == found.summary.metrics and again.summary.folds == found.summary.folds


# What has been fitted -------------------------------------------------------------------------------------------------

NEW = {"numFolds": 2, "rowsAreNew": True, "runId": "new-rows", "guard": 1.0}


def test_a_fitted_pipeline_is_fitted_anew_in_each_fold_unless_the_rows_are_new_to_it(
    df: DataFrame, numeric: PipelineModel, folder: Path
) -> None:
    none = {"maxEpochs": 1, "recipe": "fast", "learningRate": 1e-9, "guard": 1e-12, "rowsAreNew": False, "numFolds": 2}
    found, other = (FineTuner(p, cacheDir=str(folder), **{**QUICK, **none}).fit(df) for p in (numeric, unfitted()))
    assert found.originalModel is found.pipelineModel is numeric
    assert [f["before"] for f in found.summary.folds] == pytest.approx([f["before"] for f in other.summary.folds])
    with pytest.raises(
        InputError, match=r"can't be: GeneralizedLinearRegression_.* stays as it is.*set rowsAreNew=True"
    ):
        FineTuner(numeric, freeze=[numeric.stages[-1].uid], numFolds=2).fit(df)


@pytest.fixture(scope="module")
def new_rows(df: DataFrame, numeric: PipelineModel, folder: Path) -> FineTunerModel:
    return tune(numeric, df, folder, **NEW)


def test_a_fitted_pipeline_stays_what_it_is_in_all_folds(numeric: PipelineModel, new_rows: FineTunerModel) -> None:
    assert new_rows.summary.decision == "tuned"
    assert new_rows.originalModel is numeric
    assert new_rows.pipelineModel.uid == numeric.uid
    assert [f["epochs"] for f in new_rows.summary.folds] == [4, 4]


def too_far(chosen: Any) -> tuple[Recipe, int]:
    return Recipe(1e6, 0.0), 2


def not_spark(*arguments: Any) -> Any:
    raise ParityError("Spark and the network disagree")


@pytest.mark.parametrize(
    ("name", "replacement", "why"),
    [
        ("for_all_rows", too_far, "but the training on all rows diverged in epoch"),
        ("_measured", None, "but Spark and the network disagree"),
    ],
)
def test_the_original_ships_where_the_training_on_all_rows_fails(
    df: DataFrame, numeric: PipelineModel, new_rows: FineTunerModel, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str,
    replacement: Any, why: str,
) -> None:  # fmt: skip
    measured = procedure._measured

    def only_in_folds(run: Any, fitted: Any) -> Any:
        return measured(run, fitted) if "fold" in run.task.options.runId else not_spark()

    monkeypatch.setattr(procedure, name, replacement or only_in_folds)
    found = tune(numeric, df, folder, **NEW | ({"runId": "too-far"} if replacement else {}))
    assert found.pipelineModel is numeric
    assert found.summary.decision == "kept original" and why in found.summary.reason
    assert found.summary.gain == 0.0 and all(
        m is None or m["before"] == m["after"] for m in found.summary.metrics.values()
    )
    assert "after" not in found.summary.parity


def test_reference_rows_judge_what_ships_and_labels_that_change_count_out_of_fold(
    df: DataFrame, numeric: PipelineModel, new_rows: FineTunerModel, folder: Path
) -> None:
    shuffled = df.withColumn("riders", F.lit(30.0) / (1 + F.col("riders")))
    found = FineTuner(
        numeric, cacheDir=str(folder), referenceData=shuffled, **QUICK | NEW | {"guard": 0.025, "runId": None}
    ).fit(df)  # fmt: skip
    assert found.pipelineModel is numeric
    assert "but poisson gets worse on the reference rows" in found.summary.reason


def test_nothing_to_gain_out_of_fold_keeps_the_original_and_trains_nothing_on_all_rows(
    df: DataFrame, numeric: PipelineModel, folder: Path
) -> None:
    found = tune(numeric, df, folder, **NEW | {"runId": None, "learningRate": 1e-9, "maxEpochs": 1, "guard": 1e-12})
    assert found.pipelineModel is numeric
    assert found.summary.decision == "kept original"
    assert {row["fold"] for row in found.summary.records} == {1, 2}
    assert found.summary.metrics["train"]["before"] > 0


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
def test_folds_that_cannot_judge_are_named(df: DataFrame) -> None:
    few = df.withColumn("team", F.col("user") % 3)
    with pytest.raises(InputError, match="groupCol='team' has 3 values, too few for numFolds=2: at least 4 are needed"):
        FineTuner(unfitted(), numFolds=2, groupCol="team").fit(few)
    with pytest.raises(InputError, match="groupCol='team' holds null; fill the column"):
        FineTuner(unfitted(), numFolds=2, groupCol="team").fit(df.withColumn("team", F.nullif("user", F.lit(3))))
    with pytest.raises(
        InputError, match=r"fold 1 of numFolds=2 has \d+ rows, and \d+ of the others would choose its epoch"
    ):
        FineTuner(unfitted(), numFolds=2).fit(df.where("number < 3"))
    rare = df.withColumn("rare", (F.col("user") == 7).cast("double") * (F.col("number") % 3 == 0).cast("double"))
    with pytest.raises(
        InputError, match=r"fold [\d, ]+ of numFolds=9 has no row of labelCol='rare' 1: set fewer folds"
    ):
        FineTuner(classifier("rare"), numFolds=9).fit(rare)
    with pytest.raises(InputError, match=r"groupCol='usr' is not a column of the data\. Did you mean 'user'"):
        FineTuner(unfitted(), numFolds=2, groupCol="usr").fit(df)
    with pytest.raises(InputError, match="runId='no/name-fold2' may contain only"):
        FineTuner(unfitted(), numFolds=2, runId="no/name").fit(df)


# Refused before anything is trained -----------------------------------------------------------------------------------


def test_a_label_that_is_another_class_in_another_fold_is_refused(
    df: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where classes are about as frequent, each fold's StringIndexer may put another one first."""

    def trains(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(procedure, "_fold", trains)
    rows = df.withColumn("even", F.when(F.col("number") % 2 == 0, "yes").otherwise("no"))
    stages = classifier("label").getStages()
    stages[-1].setMaxIter(1)
    frequent = Pipeline(stages=[StringIndexer(inputCol="even", outputCol="label"), *stages])
    with pytest.raises(
        InputError,
        match=r"class 0 of labelCol='label' is '(yes|no)' in the first fold, but '(yes|no)' in (fold|the fit on all)",
    ):
        FineTuner(frequent, numFolds=2, metric="areaUnderPR").fit(rows)
    with pytest.raises(AssertionError, match="trained"):  # log-loss knows no numbers
        FineTuner(frequent, numFolds=2).fit(rows)


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
        (few, many, "class 0 of labelCol='class' is 'few' in the first fold, but 'many' in fold 2: number"),
        (many, none, "class 1 of labelCol='class' is 'few' in the first fold, but None in fold 2: number"),
    ):
        with pytest.raises(InputError, match=said):
            check_same_classes(first, other, "class", "fold 2")

    def counts(**options: Any) -> bool:
        return procedure.by_number(prepare(one.model, Options(labelCol="class", **options)))

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
    told = [f"data.train={tmp_path}/rows", f"data.test={tmp_path}/rows", "pipeline=test_cross_fitting:unfitted"]
    told += [f"output={tmp_path}/run", "fineTuner.numFolds=2", "fineTuner.verbosity=0"]
    told += [f"fineTuner.{k}={v}" for k, v in QUICK.items()]
    with pytest.raises(
        InputError, match=r"fineTuner\.numFolds=2 lets all rows of data.train decide, but data.validation"
    ):
        job.load_config(None, [*told, f"data.validation={tmp_path}/rows"])
    summary = job.run(job.load_config(None, told))
    assert (summary.decision, len(summary.folds)) == ("tuned", 2)
    assert summary.metrics["test"] == pytest.approx(summary.metrics["train"], rel=1e-9)  # the same rows
    assert not [p for p in (tmp_path / ".cache").glob("checkpoints/*") if p.is_dir()]
    stored = PipelineModel.load(f"file://{tmp_path}/run/model")
    before, after = (
        np.mean(half_deviance(*predictions(m, df, "riders").T[::-1])) for m in (unfitted().fit(df), stored)
    )
    assert summary.metrics["test"] == pytest.approx({"before": before, "after": after}, rel=1e-9)


def test_all_rows_train_what_ships_and_test_rows_stay_test_rows() -> None:
    one, two = object(), object()
    parts = all_sources([Source(one), Source(two, "test"), Source(two, "reference")])  # type: ignore[arg-type]
    assert [(s.df, s.split) for s in parts] == [(one, "train"), (two, "test"), (two, "reference")]
