"""Finalists through the public interface: which rows make and prove them, what they are compared with, and what may ship."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import PCA, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff import Improver, ImproverModel
from sparkdiff.data.splits import TEST, TRAIN, Source
from sparkdiff.improvement import proving
from sparkdiff.improvement.arms import refitting
from sparkdiff.options import Options
from sparkdiff.proof.division import Division, divide
from sparkdiff.training.recipes import Recipe
from tests.support.small_data import NUMBERS, half_deviance, predictions, same

QUICK: dict[str, Any] = {
    "budget": "60 passes",
    "maxEpochs": 4,
    "learningRate": 0.01,
    "parallelism": 1,
    "numFolds": 2,
    "baseline": False,
    "rowsAreNew": True,
}
STAYS = {"maxEpochs": 1, "learningRate": 1e-12}
"""With these a training changes nothing, and only the refit is proven."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def improve(cache: str) -> Callable[..., ImproverModel]:
    def run(pipeline: Any, rows: DataFrame, *arms: str, **options: Any) -> ImproverModel:
        return Improver(pipeline, arms=list(arms), cacheDir=cache, **{**QUICK, **options}).fit(rows)  # type: ignore[return-value]

    return run


def divided(rows: DataFrame, **options: Any) -> Division:
    return divide([Source(rows)], Options.of({"numFolds": QUICK["numFolds"], **options}))


def row_of(found: ImproverModel, name: str) -> dict[str, Any]:
    [row] = [r for r in found.summary.table if r["name"] == name]
    return row


def tuned_of(found: ImproverModel) -> dict[str, Any]:
    """The row of the finalist that was trained, by whichever recipe."""
    [row] = [r for r in found.summary.table if r["arm"] == "finetune"]
    return row


def assembled(last: Any) -> Pipeline:
    return Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="features"), last])


def linear() -> Pipeline:
    return assembled(LinearRegression(labelCol="riders", solver="normal"))


@pytest.fixture(scope="module")
def wrong(df: DataFrame) -> PipelineModel:
    """A regression of other labels, whose refit gains a lot."""
    return linear().fit(df.withColumn("riders", 9 - F.col("wind")))


def squares(model: Any, rows: DataFrame) -> np.ndarray[Any, Any]:
    predicted, label = predictions(model, rows, "riders").T
    return (predicted - label) ** 2


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "folds", "all_rows"),
    [
        ({"numFolds": 3, "groupCol": "user"}, 2, True),
        # On each commit tests/api/test_by_folds.py has stretches of time.
        pytest.param({"timeCol": "number", "numFolds": "auto"}, 3, True, marks=pytest.mark.nightly),
        ({"validationIndicatorCol": "held", "numFolds": "auto"}, 1, False),
        ({"numFolds": 0, "validationFraction": 0.5}, 1, False),
    ],
)
def test_unseen_rows_prove_a_finalist_and_all_rows_ship_it(
    df: DataFrame,
    wrong: PipelineModel,
    improve: Callable[..., ImproverModel],
    options: dict[str, Any],
    folds: int,
    all_rows: bool,
) -> None:
    """By Spark's own fits and figures: on the rows of each fold, and on those that make what ships."""
    found, division = improve(wrong, df, "refit", **STAYS, **options), divided(df, **options)
    parts = [{s.split: s.df for s in rows} for rows in division.proves]
    assert len(parts) == folds == row_of(found, "refitted")["folds"]
    before = np.concatenate([squares(wrong, p[TEST]) for p in parts])
    after = np.concatenate([squares(linear().fit(p[TRAIN]), p[TEST]) for p in parts])
    assert found.summary.metrics["validation"] == pytest.approx(
        {"before": before.mean(), "after": after.mean()}, rel=1e-9
    )
    assert row_of(found, "refitted")["value"] == pytest.approx(after.mean(), rel=1e-9)
    assert found.summary.gain == pytest.approx(1 - after.mean() / before.mean(), rel=1e-9)
    units = found.summary.proof["units"]
    if "timeCol" in options:
        assert units == pytest.approx(51, abs=1.5)
    elif "groupCol" in options:
        assert units == sum(p[TEST].select("user").distinct().count() for p in parts)
    else:
        assert units == len(before)
    assert found.summary.decision == "improved"
    ships = division.makes.df
    assert (ships.count() == df.count()) == all_rows
    assert not all_rows or len({r.number for p in parts for r in p[TEST].collect()}) == len(before)
    last, whole = found.pipelineModel.stages[-1], linear().fit(ships).stages[-1]
    assert np.array_equal(last.coefficients.toArray(), whole.coefficients.toArray())
    assert found.summary.metrics["train"]["after"] == pytest.approx(
        squares(found.pipelineModel, ships).mean(), rel=1e-9
    )


def test_by_default_five_folds_prove(df: DataFrame, wrong: PipelineModel, cache: str) -> None:
    given = {k: v for k, v in {**QUICK, **STAYS}.items() if k != "numFolds"}
    improver = Improver(wrong, arms=["refit"], cacheDir=cache, **given)
    assert "\n5 folds: the first explores, the others prove\n" in str(improver.explain(df))


def test_too_few_rows_decide_nothing_and_nothing_is_tried(
    df: DataFrame, wrong: PipelineModel, improve: Callable[..., ImproverModel]
) -> None:
    kept = improve(wrong, df.where("user < 20"), "refit", groupCol="user", numFolds=4)
    assert kept.pipelineModel is wrong and "groups, 30 are needed, but groupCol='" in kept.summary.reason
    assert not kept.summary.arms and not kept.offers


# The rival ------------------------------------------------------------------------------------------------------------


def projected() -> Pipeline:
    """A projection to one dimension, which holds nothing of the label until training turns it."""
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=1),
            GeneralizedLinearRegression(featuresCol="components", labelCol="riders", family="poisson"),
        ]
    )


def deviance(model: Any, rows: DataFrame) -> float:
    mu, y = predictions(model, rows, "riders").T
    return float(half_deviance(y, mu).mean())


TRAINS = {"maxEpochs": 8, "learningRate": 0.03, "budget": "400 passes"}


@pytest.fixture(scope="module")
def trained(df: DataFrame, improve: Callable[..., ImproverModel]) -> ImproverModel:
    """Of an unfitted Pipeline."""
    return improve(projected(), df, "finetune", rowsAreNew=None, **TRAINS)


@pytest.mark.nightly
def test_an_unfitted_pipelines_rival_is_its_refit_in_folds(df: DataFrame, trained: ImproverModel) -> None:
    [fold] = divided(df).proves
    train, proves = (s.df for s in fold)
    assert trained.summary.metrics["validation"]["before"] == pytest.approx(
        deviance(projected().fit(train), proves), rel=1e-6
    )
    whole = projected().fit(df)
    assert np.array_equal(trained.originalModel.stages[1].mean.toArray(), whole.stages[1].mean.toArray())
    assert deviance(trained.originalModel, df) == pytest.approx(deviance(whole, df), rel=1e-9)
    row = tuned_of(trained)
    assert row["rival"] == trained.summary.proof["rival"] == "its refit in the same folds"
    assert not [r for r in trained.summary.table if r["name"] == "refitted"]  # which is the pipeline itself
    assert trained.summary.decision == "improved", trained.summary.reason
    assert not same(trained.pipelineModel, trained.originalModel)


@pytest.mark.nightly
def test_on_seen_rows_a_fitted_pipelines_refit_is_the_rival(
    df: DataFrame, trained: ImproverModel, improve: Callable[..., ImproverModel]
) -> None:
    """Of all finalists but of itself."""
    model = projected().fit(df)
    found = improve(model, df, "finetune", rowsAreNew=False, **TRAINS)
    tuned, refitted = tuned_of(found), row_of(found, "refitted")
    assert (tuned["rival"], refitted["rival"]) == ("its refit in the same folds", "your pipeline")
    [fold] = divided(df).proves
    train, proves = (s.df for s in fold)
    after, before = (deviance(m, proves) for m in (projected().fit(train), model))
    assert refitted["value"] == pytest.approx(after, rel=1e-6)
    assert refitted["gain"] == pytest.approx(1 - after / before, abs=1e-6)
    assert tuned["gain"] == pytest.approx(1 - tuned["value"] / after, abs=1e-6)
    for name in ("value", "gain", "p", "interval", "accepted"):  # as of the unfitted pipeline
        assert tuned[name] == pytest.approx(tuned_of(trained)[name], rel=1e-6)
    assert found.originalModel is model


# One test each ----------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_what_else_was_tried_changes_no_figure_of_a_finalist(
    df: DataFrame, improve: Callable[..., ImproverModel]
) -> None:
    """To the bit: neither other arms nor their number, nor the role that it is proven in."""
    rows = df.where("number < 900")
    model = projected().fit(rows)
    few, many = (
        improve(model, rows, *arms, numFolds=3, **TRAINS) for arms in (("finetune",), ("refit", "finetune", "simplify"))
    )
    assert len(many.summary.race) == 3 > len(few.summary.race)
    assert {r["arm"] for r in many.summary.table if r["accepted"]} > {"simplify"}
    for row in (tuned_of, functools.partial(row_of, name="refitted")):
        one, other = (
            {k: v for k, v in row(m).items() if k not in ("seconds", "offers", "compacted")} for m in (few, many)
        )
        assert one == other
    assert tuned_of(few)["gain"] > 0 and tuned_of(few)["p"] < 1
    assert few.summary.offers != many.summary.offers


@pytest.mark.nightly
def test_what_cannot_be_made_in_a_fold_is_left_out_by_name(
    df: DataFrame, improve: Callable[..., ImproverModel]
) -> None:
    """A value of which the only row proves: the refit without it doesn't know it; the pipeline as it was fitted does."""
    data = with_one_that_proves(df)
    stages = [
        StringIndexer(inputCol="hour", outputCol="index"),
        VectorAssembler(inputCols=[*NUMBERS, "index"], outputCol="features"),
        LinearRegression(labelCol="riders", regParam=3.0),
    ]
    model = Pipeline(stages=stages).fit(data)
    found = improve(model, data, "finetune", maxEpochs=8, learningRate=0.1)
    assert [r["arm"] for r in found.summary.table if r["folds"]] == ["finetune"]
    [warning] = [w for w in found.summary.warnings if w.startswith("'refitted' can't be proven: fold 2: ")]
    assert "never" in warning
    assert found.summary.decision == "improved", found.summary.reason


def with_one_that_proves(df: DataFrame) -> DataFrame:
    """Rows go to folds by their values: with the rare one in the first row that then proves."""
    for number in range(20):
        data = df.withColumn("hour", F.when(F.col("number") == number, "never").otherwise(F.col("hour")))
        if divided(data).proves[0][1].df.where("hour = 'never'").count():
            return data
    raise AssertionError("none of 20 rows proves")


# What may ship ----------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_what_diverges_on_all_rows_is_not_shipped(
    df: DataFrame, improve: Callable[..., ImproverModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = proving.train_again

    def too_far(context: Any, base: Any, recipe: Recipe, *rest: Any) -> Any:
        return again(context, base, recipe if context.fold else Recipe(1e6, 0.0), *rest)

    monkeypatch.setattr(proving, "train_again", too_far)
    model = projected().fit(df)
    found = improve(model, df, "finetune", **TRAINS)
    assert found.pipelineModel is model
    assert found.summary.decision == "kept original" and "best" not in found.offers
    row, why = tuned_of(found), "it can't be made from all rows: the training diverges in epoch "
    assert found.summary.reason.startswith(f"the gain of {row['name']!r} is proven, but {why}")
    assert row["accepted"] and not row["offers"]
    assert any(w.startswith(f"{row['name']!r} is not offered: {why}") for w in found.summary.warnings)


@pytest.mark.nightly
def test_what_is_unlike_the_folds_pipelines_does_not_ship(
    df: DataFrame, wrong: PipelineModel, improve: Callable[..., ImproverModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = refitting.fit_anew
    monkeypatch.setattr(
        refitting, "fit_anew", lambda context, *rest: context.model if context.fold == 0 else fit(context, *rest)
    )
    found = improve(wrong, df, "refit", **STAYS)
    assert found.pipelineModel is wrong and not found.offers
    loss = squares(wrong, df).mean()
    assert f"its squared there is {loss:.5g}, worse than on rows of folds" in found.summary.reason


def towns(df: DataFrame) -> DataFrame:
    """Wind means the opposite in a fifth of the rows."""
    town = F.when(F.col("number") % 5 == 0, "small").otherwise("large")
    sign = F.when(town == "small", -1).otherwise(1)
    return df.withColumns({"town": town, "wet": (sign * F.col("wind") + 0.3 * F.col("noise") > 0).cast("double")})


@pytest.fixture(scope="module")
def small_town(df: DataFrame) -> PipelineModel:
    return assembled(LogisticRegression(labelCol="wet", regParam=0.1)).fit(towns(df).where("town = 'small'"))


@pytest.mark.nightly
def test_slices_and_labels_are_judged_on_the_rows_that_prove(
    df: DataFrame, small_town: PipelineModel, improve: Callable[..., ImproverModel]
) -> None:
    data = towns(df)
    [proves] = [{s.split: s.df for s in rows} for rows in divided(data).proves]
    refit = assembled(LogisticRegression(labelCol="wet", regParam=0.1)).fit(proves[TRAIN])
    before, after = (predictions(m, proves[TEST])[:, 0] for m in (small_town, refit))
    changed = (before != after).mean()
    enough = improve(small_town, data, "refit", **STAYS, maxFlipRate=changed + 0.001)
    assert enough.summary.decision == "improved"
    assert row_of(enough, "refitted")["changed"] == pytest.approx(changed, abs=1e-9)
    few = improve(small_town, data, "refit", **STAYS, maxFlipRate=changed - 0.001)
    assert few.pipelineModel is small_town and "of the labels change, more than maxFlipRate" in few.summary.reason
    held = improve(small_town, data, "refit", **STAYS, guardCols=["town"])
    assert held.pipelineModel is small_town
    assert "wet" not in held.summary.reason and "gets worse on town = small from " in held.summary.reason
    for found in held.summary.slices:
        p = chance(small_town, proves[TEST].where(F.col("town") == found["value"]))
        assert (found["rows"], found["before"]) == (len(p), pytest.approx(-np.log(p).mean(), rel=1e-9))


def chance(model: Any, rows: DataFrame) -> np.ndarray[Any, Any]:
    """The probability of the label of each row."""
    shown = model.transform(rows).select("probability", "wet").toPandas()
    return np.stack([v.toArray() for v in shown["probability"]])[np.arange(len(shown)), shown["wet"].astype(int)]


@pytest.mark.nightly
def test_what_ships_may_not_be_worse_on_reference_rows(
    df: DataFrame, small_town: PipelineModel, improve: Callable[..., ImproverModel]
) -> None:
    data = towns(df)
    small, large = (data.where(F.col("town") == town) for town in ("small", "large"))
    kept = improve(small_town, data, "refit", **STAYS, referenceData=small)
    assert kept.pipelineModel is small_town and not kept.offers
    assert "'refitted" in kept.summary.reason and "gets worse on the reference rows from " in kept.summary.reason
    found = improve(small_town, data, "refit", **STAYS, referenceData=large)
    assert found.summary.decision == "improved" and found.summary.reference["rows"] == large.count()
    p = chance(found.pipelineModel, large)
    assert found.summary.metrics["reference"]["after"] == pytest.approx(-np.log(p).mean(), rel=1e-9)
