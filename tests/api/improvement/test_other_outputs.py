"""Outputs that nobody asked to improve: a cluster, another label's predictor and columns of their own stay as they are."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import (
    PCA,
    Imputer,
    MinMaxScaler,
    Normalizer,
    RFormula,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
)
from pyspark.sql import DataFrame, functions as F

from sparkdiff import FineTuner, Improver, InputError, Search, compact
from sparkdiff.data.splits import Source
from sparkdiff.evaluation.prediction_differences import find_output_changes
from sparkdiff.fine_tuning.task import FitResults
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.improvement import arms
from sparkdiff.improvement.arm_context import ArmContext
from sparkdiff.improvement.arms import growing, refitting, searching, simplifying
from sparkdiff.improvement.arms.refitting import form_of
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.pipeline.unfitted_form import unfitted_form
from sparkdiff.report import Phases
from sparkdiff.search.distributions import choice
from sparkdiff.search.settings_space import settings_space
from sparkdiff.store.model_digests import hash_of
from tests.support.arm_contexts import prepare_context

OTHER = {"labelCol": "kind", "predictionCol": "other", "probabilityCol": "likely", "rawPredictionCol": "margins"}
NAMES = ("hours", "filled", "assembled", "scaled", "unit", "segment", "other", "components", "features", "prediction")
"""A name for each stage of `stages`."""


def stages() -> list[Any]:
    """The scaler feeds the head, and beside it a cluster; the indexer and the imputer feed both predictors."""
    return [
        StringIndexer(inputCol="hour", outputCol="hours", stringOrderType="frequencyAsc"),
        Imputer(inputCols=["wind"], outputCols=["wind"]),
        VectorAssembler(inputCols=["temp", "hum", "wind", "noise"], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="scaled"),
        Normalizer(inputCol="scaled", outputCol="unit"),
        KMeans(featuresCol="unit", predictionCol="segment", k=3, seed=1),
        LogisticRegression(featuresCol="assembled", regParam=0.01, **OTHER),
        PCA(inputCol="assembled", outputCol="components", k=3),
        VectorAssembler(inputCols=["components", "scaled", "hours"], outputCol="features"),
        LogisticRegression(labelCol="rain", regParam=0.3),
    ]


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> DataFrame:
    return df.where("number < 600")


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> PipelineModel:
    """Fitted on other rows."""
    return Pipeline(stages=stages()).fit(rows.where("number < 300").withColumn("rain", 1 - F.col("rain")))


@pytest.fixture(scope="module")
def refitted(rows: DataFrame) -> PipelineModel:
    """The same stages fitted on these rows."""
    return Pipeline(stages=stages()).fit(rows)


def context(model: Any, rows: DataFrame, **options: Any) -> ArmContext:
    given = Options.of({"predictionCol": "prediction", **options})
    return ArmContext(model, given, ImprovementSettings.of({}), [Source(rows)], None, Phases(False), FitResults())


def anew(start: ArmContext) -> set[str]:
    return {s.uid for s in form_of(start).stages if s.role == "estimator"}


def uids(model: PipelineModel, *names: str) -> set[str]:
    return {model.stages[NAMES.index(name)].uid for name in names}


# Which stages may be fitted anew --------------------------------------------------------------------------------------


def test_only_what_the_loss_alone_depends_on_is_fitted_anew(model: PipelineModel, rows: DataFrame) -> None:
    start = context(model, rows)
    assert anew(start) == uids(model, "hours", "components", "prediction")
    why = {s.uid: s.reason for s in form_of(start).stages}
    [imputer, scaler, cluster] = [model.stages[NAMES.index(name)].uid for name in ("filled", "scaled", "segment")]
    assert why[cluster] == "no path leads from it to the loss"
    assert f"{cluster}, outside the loss" in why[scaler]
    assert "segment" in why[scaler]
    assert why[scaler].endswith("name it in target to allow that")
    assert "other" in why[imputer]
    assert {p.parent for p in settings_space(form_of(start))} == uids(model, "components", "prediction")
    assert {one.uid for one, _ in simplifying.possible(start)} == uids(model, "components")


def test_a_stage_in_target_may_be_refitted_despite_readers(model: PipelineModel, rows: DataFrame) -> None:
    """It is the same option as of fine-tuning: the only stages that change."""
    named = sorted(uids(model, "hours", "scaled", "prediction"))
    start = context(model, rows, target=named)
    assert anew(start) == {*named}  # the indexer, too, which can't train
    assert {s.uid for s in start.plan.plan.stages if s.trainable} == uids(model, "scaled", "prediction")
    why = {s.uid: s.reason for s in form_of(start).stages}
    assert why[model.stages[NAMES.index("components")].uid] == "not in target"
    for outside in uids(model, "segment", "other"):
        with pytest.raises(InputError, match=f"target='{outside}' can't train: no differentiable path to the loss"):
            anew(context(model, rows, target=[outside]))


def test_a_statement_reads_what_it_names(rows: DataFrame) -> None:
    """One makes a column of its own from scaled features, another one makes a feature, beside a cluster that neither reads."""
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=["temp", "hum"], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled"),
            Imputer(inputCols=["wind"], outputCols=["full"]),
            KMeans(featuresCol="assembled", predictionCol="segment", k=3, seed=1),
            SQLTransformer(statement="SELECT *, 2 * full AS twice FROM __THIS__"),
            VectorAssembler(inputCols=["twice", "scaled"], outputCol="features"),
            LogisticRegression(labelCol="rain"),
        ]
    ).fit(rows)
    _, scaler, imputer, _, _, _, head = pipeline.stages
    assert anew(context(pipeline, rows)) == {scaler.uid, imputer.uid, head.uid}
    read = SQLTransformer(statement="SELECT *, array_max(vector_to_array(SCALED)) AS risk FROM __THIS__")
    start = context(PipelineModel([*pipeline.stages, read]), rows)
    assert anew(start) == {imputer.uid, head.uid}  # it does not read `twice`
    assert f"the columns of {read.uid}" in start.stay[scaler.uid]
    assert scaler.uid not in {s.uid for s in start.plan.plan.stages if s.trainable}
    follows = SQLTransformer(statement="SELECT *, scaled AS copy, prediction + 1 AS next FROM __THIS__")
    assert scaler.uid in anew(context(PipelineModel([*pipeline.stages, follows]), rows))


def test_a_formula_is_fitted_anew_as_a_whole(rows: DataFrame) -> None:
    formula = RFormula(formula="rain ~ hour + wind", labelCol="made")
    head = LogisticRegression(labelCol="rain")
    alone = Pipeline(stages=[formula, head]).fit(rows)
    start = context(alone, rows, labelCol="rain")
    assert anew(start) == {s.uid for s in alone.stages}
    beside = Pipeline(stages=[formula, KMeans(predictionCol="segment", k=2, seed=1), head]).fit(rows)
    assert anew(context(beside, rows, labelCol="rain")) == {beside.stages[2].uid}


# What ships -----------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {
    "recipe": "fast",
    "maxEpochs": 2,
    "learningRate": 0.01,
    "parallelism": 1,
    "predictionCol": "prediction",
}
OUTPUTS = ("wind", "scaled", "unit", "segment", "other", "likely", "margins")
KEPT = ("filled", "assembled", "scaled", "unit", "segment", "other")


def outputs(model: Any, rows: DataFrame) -> Any:
    return model.transform(rows).select(*OUTPUTS).toPandas()


@pytest.mark.nightly
def test_no_arm_touches_what_is_outside_of_the_loss(
    model: PipelineModel, rows: DataFrame, shared: Path, tmp_path: Path
) -> None:
    """Neither what it tries nor what it makes of that once more."""
    context = replace(prepare_context(model, rows, cacheDir=str(shared), predictionCol="prediction"), folder=tmp_path)
    before, by_uid = outputs(model, rows), {s.uid: s for s in model.stages}
    for arm in (refitting.ARM, simplifying.ARM, searching.ARM):
        assert not arm.refusal(context)
        step = arm.run(context, 0, Limit(None, 20.0), ())
        assert step.candidates, step.says
        made = [arm.make(context, c.making.settings) for c in step.candidates]
        for one in (*(c.model for c in step.candidates), *made):
            assert outputs(one, rows).equals(before), arm.name
            stays = [s for s in one.stages if s.uid in uids(model, *KEPT)]
            assert len(stays) == len(KEPT)
            assert all(hash_of(s, None, shared) == hash_of(by_uid[s.uid], None, shared) for s in stays), arm.name


@pytest.mark.nightly
def test_a_candidate_that_changes_other_outputs_is_not_offered(
    model: PipelineModel, rows: DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitting, "form_of", lambda context: unfitted_form(context.model))
    monkeypatch.setattr(arms, "ARMS", (replace(refitting.ARM, steps=1),))
    idle = {"maxLoss": 0.1, "entityCols": ["hour"], "parts": ["crosses"]}
    given = {"arms": ["refit"], "budget": "20 passes", "baseline": False, "cacheDir": str(shared), "rowsAreNew": True}
    found = Improver(model, numFolds=0, **given, **idle, **QUICK).fit(rows)
    unused = {w.partition("=")[0] for w in found.summary.warnings if " has no effect: it is for " in w}
    assert unused == {*idle}
    said = "recipe='fast' has an effect in the arm grow, and in import"
    assert any(w.startswith(said) for w in found.summary.warnings)
    assert found.pipelineModel is model
    assert found.offers == {}
    uid = model.stages[NAMES.index("segment")].uid
    warnings = [w for w in found.summary.warnings if "column 'segment'" in w]
    assert warnings  # of each finalist
    for warning in warnings:
        assert " is not offered: " in warning and f"{uid}: column 'segment' has other values in " in warning, warnings
        compared = int(warning.split()[-2])  # the rows that make what ships, and copies of one with critical values
        assert 549 <= compared < 700, warning
    assert "but outputs outside the loss would change: " in found.summary.reason


@pytest.mark.nightly
def test_fine_tuning_growth_and_folding_keep_other_outputs(model: PipelineModel, rows: DataFrame, shared: Path) -> None:
    options = {k: v for k, v in QUICK.items() if k != "parallelism"} | {"cacheDir": str(shared), "guard": 1.0}
    tuned = FineTuner(model, **options).fit(rows)
    assert tuned.summary.decision == "tuned"
    [[warm], [humid]] = rows.approxQuantile(["temp", "hum"], [0.5], 0.0)
    crossed = ((F.col("temp") > warm) != (F.col("hum") > humid)).cast("double")
    other = prepare_context(model, rows.withColumn("rain", crossed), **options)
    step = growing.grow_and_train(other, Limit(None, None), GrowthSettings(parts=("crosses",), rounds=1), "grow", 0)
    assert step.candidates, step.says
    made = (tuned.pipelineModel, step.candidates[0].model, compact(model, [*OUTPUTS, "prediction"]))
    before = outputs(model, rows)
    for one in made:
        assert outputs(one, rows).equals(before)


# The comparison -------------------------------------------------------------------------------------------------------


def compared(
    model: PipelineModel, rows: DataFrame, change: Callable[[list[Any]], list[Any]]
) -> tuple[list[str], list[str]]:
    """What differs after a change of the stages, although only the head may change."""
    return find_output_changes(model, PipelineModel(change([*model.stages])), rows, [model.stages[-1].uid])


def test_each_difference_is_named_with_stage_column_and_rows(
    model: PipelineModel, refitted: PipelineModel, rows: DataFrame
) -> None:
    uid = {name: stage.uid for name, stage in zip(NAMES, model.stages, strict=True)}
    other = refitted.stages
    assert compared(model, rows, lambda s: [*s[:-1], other[-1]]) == ([], [])
    assert compared(model, rows, lambda s: [t.copy() for t in s]) == ([], [])
    [found], _ = compared(model, rows, lambda s: [*s[:5], other[5], *s[6:]])
    assert found.startswith(f"{uid['segment']}: column 'segment' has other values in ")
    assert re.search(r" of 6\d\d rows$", found), found  # with copies of one row at critical values
    gone = compared(
        model, rows, lambda s: [*s[:7], *s[8:-2], VectorAssembler(inputCols=["scaled"], outputCol="features")]
    )[0]
    assert f"{uid['components']}: column 'components' is gone" in gone
    renamed = MinMaxScaler(inputCol="assembled", outputCol="scaled").fit(model.stages[2].transform(rows))
    found, _ = compared(model, rows, lambda s: [*s[:3], renamed, *s[4:]])
    every = rf"{uid['scaled']}: column 'scaled' has other values in (6\d\d) of \1 rows"
    assert any(re.match(every, w) for w in found), found
    text = SQLTransformer(statement="SELECT * EXCEPT (hours), CAST(hours AS FLOAT) AS hours FROM __THIS__")
    found, _ = compared(model, rows, lambda s: [*s, text])
    assert f"{uid['hours']}: column 'hours' has dataType FloatType(), not DoubleType()" in found
    assert f"{uid['hours']}: column 'hours' has metadata" in " ".join(found)
    assert any("stand in another order" in w for w in found)


def test_a_column_of_chance_is_left_out_and_named(
    model: PipelineModel, refitted: PipelineModel, rows: DataFrame
) -> None:
    chance = SQLTransformer(statement="SELECT *, rand() AS chance FROM __THIS__")
    pipeline = PipelineModel([*model.stages, chance])
    new = PipelineModel(
        [*model.stages[:-1], refitted.stages[-1], chance.copy()]
    )  # another object might do something else
    differences, notes = find_output_changes(pipeline, new, rows, [model.stages[-1].uid])
    assert differences == []
    assert notes == [f"{chance.uid}: column 'chance' can't be compared: it has other values each time"]


@pytest.mark.nightly
def test_a_search_names_outputs_that_differ_from_current(rows: DataFrame) -> None:
    """The label of `current` was turned round, so that the winner ships."""
    first = [*stages()[2:4], LogisticRegression(featuresCol="scaled", labelCol="rain", maxIter=5)]
    current = Pipeline(stages=[*first[:2], Normalizer(inputCol="assembled", outputCol="unit"), first[2]]).fit(
        rows.withColumn("rain", 1 - F.col("rain"))
    )
    pipeline, evaluator = (
        Pipeline(stages=first),
        MulticlassClassificationEvaluator(labelCol="rain", metricName="logLoss"),
    )
    found = Search(
        estimator=pipeline,
        space={first[2].regParam: choice(0.0, 0.01)},
        evaluator=evaluator,
        current=current,
        sampler="grid",
        numFolds=2,
    ).fit(rows)
    assert found.summary.decision == "winner"
    warning = f"other outputs than those of `current`: {current.stages[2].uid}: column 'unit' is gone"
    assert warning in found.summary.warnings
