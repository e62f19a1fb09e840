"""Growth by folds: what is made anew in each fold and from all rows, what Spark measures of it, and what the summary tells."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import SQLTransformer, StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import Events, Grower, GrowerModel, InputError
from sparkdiff.data.splits import TEST, TRAIN, Source
from sparkdiff.growth import growth_steps, part_inputs
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.parts import trees
from sparkdiff.improvement import by_folds, proving
from sparkdiff.improvement.arms import growing
from sparkdiff.improvement.budget import Limit
from sparkdiff.jvm import sessions
from sparkdiff.options import Options
from sparkdiff.proof.division import divide
from tests.support.arm_contexts import prepare_context

ROWS = 1500
QUICK: dict[str, Any] = {"rounds": 1, "maxEpochs": 3, "recipe": "fast", "numFolds": 2}
FOLDS: dict[str, Any] = {
    "parts": ("effects",),
    "entityCols": ["shop"],
    "maxServingCost": 3.0,
    "dropColumns": sessions.VERSION >= (4, 0),
    "labelCol": "sales",
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """`sales` has an effect of each shop in it, `bent` is |y|, and `noise` is noise."""
    random = np.random.default_rng(0)
    x, y, noise, error = random.normal(size=(4, ROWS))
    shop = random.integers(0, 20, ROWS)
    columns = {
        "x": x,
        "y": y,
        "shop": [f"s{s}" for s in shop],
        "noise": noise,
        "bent": x + 2 * np.abs(y) + error / 2,
        "sales": x + random.normal(scale=0.8, size=20)[shop] + error / 2,
    }
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return spark.read.parquet(f"file://{path}")


def unfitted(label: str) -> Pipeline:
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=["x", "y"], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            LinearRegression(featuresCol="scaled", labelCol=label),
        ]
    )


def squared(model: Any, rows: DataFrame, label: str) -> float:
    """The mean squared error of Spark's own predictions."""
    found = np.array([tuple(r) for r in model.transform(rows).select(label, "prediction").collect()])
    return float(np.square(found[:, 0] - found[:, 1]).mean())


def numbers(model: Any) -> list[float]:
    """The weights of the scaler and of the last linear stage."""
    scaler, last = (next(s for s in model.stages if hasattr(s, name)) for name in ("std", "coefficients"))
    return [*map(float, scaler.std), *map(float, last.coefficients), float(last.intercept)]


class Told(Events):
    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)


Made = dict[int | None, list[Any]]
"""Grounds and measurements of what was made anew, by the fold."""


@pytest.fixture(scope="module")
def made() -> Made:
    return {}


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def grown(rows: DataFrame, made: Made, told: Told, tmp_path_factory: pytest.TempPathFactory) -> GrowerModel:
    def remade(context: Any, making: Any, arms: Any) -> Any:
        found = proving_remade(context, making, arms)
        made.setdefault(context.fold, []).append((context, found))
        return found

    proving_remade, cache = proving.remake, str(tmp_path_factory.mktemp("grown"))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(proving, "remake", remade)
        return Grower(unfitted("sales"), cacheDir=cache, callbacks=[told], **FOLDS, **QUICK).fit(rows)


@pytest.mark.nightly
def test_figures_are_what_spark_measures_on_other_folds(grown: GrowerModel, rows: DataFrame, made: Made) -> None:
    summary = grown.summary
    assert summary.decision == "grown", str(summary)
    [parts] = divide([Source(rows)], Options(numFolds=2)).proves
    fold = {p.split: p.data for p in parts}
    [(_, found)] = made[2]
    assert summary.metrics["validation"] == pytest.approx(
        {
            "before": squared(unfitted("sales").fit(fold[TRAIN]), fold[TEST], "sales"),
            "after": squared(found.model, fold[TEST], "sales"),
        },
        rel=1e-6,
    )
    held: Any = summary.metrics["validation"]
    assert summary.gain == pytest.approx(1 - held["after"] / held["before"], rel=1e-6)
    assert [(f["fold"], f["rows"]) for f in summary.folds] == [(2, fold[TEST].count())]
    assert summary.metrics["train"] == pytest.approx(
        {"before": squared(grown.originalModel, rows, "sales"), "after": squared(grown.pipelineModel, rows, "sales")},
        rel=1e-6,
    )


def test_all_rows_make_what_ships_and_an_inner_part_chooses(grown: GrowerModel, rows: DataFrame, made: Made) -> None:
    assert [*made] == [2, 0]
    [(context, found)] = made[0]
    assert found.model is grown.pipelineModel
    assert sum(s.df.count() for s in context.sources if s.split == TRAIN) == ROWS
    chooses = [s for s in growing.inner(context.sources, context.options) if s.split != TRAIN]
    assert 0.1 * ROWS < sum(s.df.count() for s in chooses) < 0.3 * ROWS
    assert numbers(grown.originalModel) == pytest.approx(numbers(unfitted("sales").fit(rows)), rel=1e-9)


def test_the_summary_tells_rounds_and_parts_of_what_ships(grown: GrowerModel, told: Told) -> None:
    summary = grown.summary
    assert {r["kind"] for r in summary.rounds} == {"effects"}
    [part] = summary.parts
    assert "shop" in part["name"] and not part["dropped"]
    # Its own stages, and those that join it: an effect has a value for each shop, of all rows.
    uids = " ".join(s.uid for s in grown.pipelineModel.stages)
    assert "_grown_effects1" in uids and "_grown_effects2" not in uids and "shop_indexer" in uids
    cost: Any = summary.servingCost
    assert cost["before"] < cost["after"] <= cost["limit"] == pytest.approx(3.0 * cost["before"])
    assert summary.fineTunedGain is not None and 0 <= summary.fineTunedGain < summary.gain
    assert [*summary.timings][-2:] == ["prove", "attribute"]
    assert summary.parity.keys() == {"before", "after"}
    assert set(summary.history["fold"]) == {1, 2, 0}
    assert [row for row in told.rows if row["epoch"]] == [row for row in summary.records if row["epoch"]]


@pytest.mark.skipif(sessions.VERSION < (4, 0), reason="Spark 3.5 has no `* EXCEPT`")
def test_columns_are_dropped_by_a_last_stage(grown: GrowerModel, rows: DataFrame) -> None:
    assert type(grown.pipelineModel.stages[-1]) is SQLTransformer
    assert grown.transform(rows).columns == grown.originalModel.transform(rows).columns


class Gone(BaseException):
    """Ends a run as a crash does."""


class Stop(Events):
    """Ends a run while this fold trains."""

    def __init__(self, fold: int):
        self.fold = fold

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        if (row["fold"], row["epoch"]) == (self.fold, 1):
            raise Gone


@pytest.mark.nightly
def test_a_killed_growth_resumes_with_the_same_bits(
    grown: GrowerModel, rows: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it explores, and while what ships is made, as in the fold that proves."""
    given = {"cacheDir": str(tmp_path), "runId": "mine", **FOLDS, **QUICK}
    trained: list[int] = []
    monkeypatch.setattr(growing, "grow_rounds", lambda *a, **k: trained.append(1) or growth_steps.grow_rounds(*a, **k))
    for fold in (1, 0):
        with pytest.raises(Gone):
            Grower(unfitted("sales"), callbacks=[Stop(fold)], **given).fit(rows)
    assert len(trained) == 1 + 3
    found = Grower(unfitted("sales"), **given).fit(rows)
    assert len(trained) == 5  # what explored is read, and so is the fold
    assert numbers(found.pipelineModel) == numbers(grown.pipelineModel)
    assert found.summary.metrics == grown.summary.metrics and found.summary.p == grown.summary.p
    without = ("seconds",)
    for one, other in ((found.summary.rounds, grown.summary.rounds), (found.summary.parts, grown.summary.parts)):
        assert [{k: v for k, v in r.items() if k not in without} for r in one] == [
            {k: v for k, v in r.items() if k not in without} for r in other
        ]
    with pytest.raises(InputError, match=r"was started with other .*complexity"):
        Grower(unfitted("sales"), **{**given, "complexity": 0.2}).fit(rows)


def test_where_nothing_is_proven_the_original_itself_is_kept(
    rows: DataFrame, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Something joins by chance, as it may; the fold that proves doesn't confirm it."""
    model = unfitted("noise").fit(rows)
    parts = {"parts": ("shapes", "effects"), "entityCols": ["shop"], "maxLoss": 0.0, "complexity": 0.0}
    found = Grower(model, cacheDir=str(shared), verbosity=1, **parts, **QUICK).fit(rows)
    summary = found.summary
    assert "parts may read it as" in capsys.readouterr().out
    assert next(iter(summary.timings)) == "plan" and summary.reason
    assert summary.decision == "kept original" and found.pipelineModel is model, str(summary)
    assert summary.rounds and summary.fineTunedGain is None
    cost: Any = summary.servingCost
    assert cost["before"] == cost["after"]
    assert summary.metrics["train"]["before"] == summary.metrics["train"]["after"]  # type: ignore[index]


@pytest.mark.nightly
@pytest.mark.parametrize("numFolds", [2, 0])
def test_a_refit_that_ships_has_grown_nothing(
    rows: DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch, numFolds: int
) -> None:
    """The original was fitted on rows of another kind, and the rounds find nothing.

    Or something that the rows which prove refute; where the only fold makes what ships, it trains the growth, too.
    """
    monkeypatch.setattr(by_folds, "warnings_of", lambda *a: pytest.fail("of a training, but none ships"))
    options, makes = {**QUICK, "parts": ("shapes",), "complexity": 1e6}, rows
    if not numFolds:
        options = {**QUICK, "parts": ("effects",), "entityCols": ["shop"], "validationIndicatorCol": "held"}
        held = rows.withColumn("held", F.pmod(F.hash("x"), F.lit(4)) == 0)
        rows = held.withColumn("sales", F.when(held["held"], 2 * F.col("x") - F.col("sales")).otherwise(F.col("sales")))
        makes = rows.where("NOT held")
    model = unfitted("sales").fit(makes.selectExpr("x", "y + x AS y", "3 * sales - 4 AS sales"))
    found = Grower(model, cacheDir=str(shared), **{**options, "numFolds": numFolds}).fit(rows)
    summary = found.summary
    assert summary.decision == "improved", str(summary)
    assert (0 in {*summary.history.get("fold", ())}) == (not numFolds)
    assert "refitted" in summary.reason and summary.fineTunedGain is None and summary.stages == {}
    assert numbers(found.pipelineModel) == pytest.approx(numbers(unfitted("sales").fit(makes)), rel=1e-9)
    assert len(summary.parts) == (not numFolds)
    cost: Any = summary.servingCost
    assert cost["before"] == cost["after"]


@pytest.mark.nightly
def test_where_no_part_joins_on_all_rows_the_reason_says_so(
    rows: DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is proven is then the refit, though the finalist has the name of what the rows that explore let join."""
    again = growing._rounds_again
    monkeypatch.setattr(growing, "_rounds_again", lambda *a: again(*a[:2], dataclasses.replace(a[2], complexity=1e6)))
    held = rows.withColumn("held", F.pmod(F.hash("x"), F.lit(4)) == 0)
    model = unfitted("sales").fit(held.where("NOT held").selectExpr("x", "y + x AS y", "3 * sales - 4 AS sales"))
    options = {**QUICK, "parts": ("effects",), "entityCols": ["shop"], "validationIndicatorCol": "held"}
    summary = Grower(model, cacheDir=str(shared), **{**options, "numFolds": 0}).fit(held).summary
    assert summary.decision == "improved" and summary.parts == []
    assert summary.reason.startswith("the gain of '+ ")
    assert summary.reason.endswith("; on the rows that make what ships no part joins, so it is the refit without any")


@pytest.mark.nightly
def test_trees_alone_are_trained_again_with_as_many_trees(
    rows: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no rounds: none of the rows of a fold is held out. Of more rows than there is room for, they learn from a sample."""
    monkeypatch.setattr(trees, "SIZES", (trees.EnsembleSize(4, 60),))
    monkeypatch.setattr(part_inputs, "LARGEST", 80_000)
    again: list[tuple[int | None, int, int]] = []

    def counted(context: Any, made: Mapping[str, Any], settings: Any) -> Any:
        model = trees_again(context, made, settings)
        [(number, name, epochs)] = made["trees"]
        [part] = [s for s in model.stages if "grown_trees" in s.uid and hasattr(s, "trees")]
        assert (number, name) == (1, "trees of 4 leaves")
        again.append((context.fold, epochs, len(part.trees)))
        return model

    trees_again = growing._trees_again
    monkeypatch.setattr(growing, "_trees_again", counted)
    monkeypatch.setattr(growing, "_rounds_again", lambda *a: pytest.fail("no rounds"))
    model = unfitted("bent").fit(rows)
    found = Grower(model, parts=("trees",), cacheDir=str(tmp_path), **QUICK).fit(rows)
    summary = found.summary
    assert summary.decision == "grown", str(summary)
    [(first, epochs, number), (second, *same)] = again
    assert (first, second) == (2, 0) and same == [epochs, number]
    assert number == trees.ROUNDS * epochs
    [part] = summary.parts
    assert part["name"] == f"{number} trees"
    assert summary.metrics["train"]["after"] == pytest.approx(squared(found, rows, "bent"), rel=1e-6)  # type: ignore[index]


@pytest.mark.nightly
def test_time_that_is_over_bounds_the_rounds_of_the_folds_too(
    rows: DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rounds as those that explored had time for."""
    joined = growth_steps.RoundProgress.end_round
    clock = Clock(3000.0)

    def over(self: Any, tried: Any) -> str:
        clock.begun -= 1e6
        return joined(self, tried)

    monkeypatch.setattr(growing.Clock, "of", staticmethod(lambda seconds: clock))
    monkeypatch.setattr(growth_steps.RoundProgress, "end_round", over)
    context = prepare_context(unfitted("sales").fit(rows), rows, cacheDir=str(shared), recipe="fast", maxEpochs=1)
    arm = growing.with_settings(GrowthSettings(parts=("effects",), entityCols=("shop",), rounds=4), 3000.0, {})
    step = arm.run(context, 0, Limit(None, None), ())
    assert "maxSeconds was over" in step.says
    again: list[int] = []
    monkeypatch.setattr(
        growing, "grow_and_train", lambda context, limit, settings, *more: again.append(settings.rounds) or step
    )
    assert arm.make(context, step.candidates[0].making.settings) is step.candidates[0].model
    assert again == [1]
