"""Improver through the public interface: what races, what is proven and offered, what is kept, how a run goes on."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import Binarizer, MinMaxScaler, RFormula, SQLTransformer, StringIndexer, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import Events, Grower, ImprovementSummary, Improver, ImproverModel, InputError
from sparkdiff.data.splits import Source
from sparkdiff.fine_tuning.task import FitResults, prepare
from sparkdiff.improvement.arm_context import ArmContext
from sparkdiff.improvement.arms import refitting
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.proof.division import divide
from sparkdiff.report import Phases
from tests.support.small_data import half_deviance, predictions, riders, same, unfitted

FOLDS = 3
QUICK: dict[str, Any] = {
    "budget": "90 passes",
    "recipe": "fast",
    "maxEpochs": 6,
    "learningRate": 0.01,
    "parallelism": 1,
    "numFolds": 2,
    "rowsAreNew": True,
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(riders(), path)
    return spark.read.parquet(f"file://{path}")


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> PipelineModel:
    return unfitted().fit(rows)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def improved(model: PipelineModel, rows: DataFrame, cache: str) -> ImproverModel:
    """All cheap arms and one that grows; the PCA stands in the way of two columns that matter."""
    arms = ["refit", "finetune", "simplify", "grow"]
    given = {"parts": ["crosses"], "cacheDir": cache, "guardCols": ["hour"], **QUICK, "numFolds": FOLDS}
    return Improver(model, arms=arms, **given).fit(rows)  # type: ignore[return-value]


def in_folds(rows: DataFrame, **options: Any) -> Iterator[tuple[DataFrame, DataFrame]]:
    """The training rows and those that prove, of each fold."""
    given = Options.of({"numFolds": FOLDS, **options})
    for train, proves in divide([Source(rows)], given).proves:
        yield train.df, proves.df


def deviance(model: Any, rows: DataFrame) -> np.ndarray[Any, Any]:
    """Of each row, by Spark's own transform."""
    mu, y = predictions(model, rows, "riders").T
    return half_deviance(y, mu)


def test_the_best_of_all_arms_is_plain_spark_with_evidence(
    improved: ImproverModel, rows: DataFrame, tmp_path: Path
) -> None:
    summary = improved.summary
    assert isinstance(summary, ImprovementSummary)
    assert summary.decision == "improved"
    assert summary.p < 0.025
    assert summary.gain > 0.1
    own, *others = summary.table
    assert own["name"] == "your pipeline"
    assert [r["gain"] for r in others] == sorted((r["gain"] for r in others), reverse=True)
    proven = [r for r in others if r["folds"]]
    assert 2 <= len(proven) <= 4 and {r["folds"] for r in proven} == {FOLDS - 1}
    assert {r["rival"] for r in proven} == {"your pipeline"}
    assert [r["arm"] for r in proven].count("refit") == 1  # always, though it gains nothing
    assert others[0]["accepted"]
    assert "best" in others[0]["offers"]
    assert improved.offers["best"] is improved.pipelineModel
    head, *shown = repr(improved.offers).splitlines()
    assert head.split() == ["offer", "gain", "serving", "stages"] and [line.split()[0] for line in shown] == [
        *improved.offers
    ]
    assert all(f"{summary.table[i]['serving']:.1f}x" in shown[n] for n, i in enumerate(summary.offers.values()))
    assert '<td class="left">best</td>' in (improved.offers._repr_html_() or "")  # type: ignore[attr-defined]
    assert {a["arm"] for a in summary.arms} == {"refit", "finetune", "simplify", "grow"}
    assert {r["arm"] for r in summary.race} <= {
        a["arm"] for a in summary.arms if a["state"] not in ("failed", "not tried")
    }
    assert [r["gain"] for r in summary.race] == sorted((r["gain"] for r in summary.race), reverse=True)
    improved.pipelineModel.save(str(tmp_path / "best"))
    again = PipelineModel.load(str(tmp_path / "best"))
    assert {type(s).__module__.rpartition(".")[0] for s in again.stages} == {"pyspark.ml"}
    ours, theirs = (m.transform(rows).select("prediction").toPandas() for m in (improved.pipelineModel, again))
    assert ours.equals(theirs)


def test_the_table_is_what_spark_measures_out_of_fold(
    improved: ImproverModel, rows: DataFrame, model: PipelineModel
) -> None:
    """The deviance of the rows that prove: of the original, of its refit in each fold, and of the one without the PCA."""
    table, folds = improved.summary.table, list(in_folds(rows))
    assert len(folds) == FOLDS - 1
    own = np.concatenate([deviance(model, proves) for _, proves in folds])
    assert table[0]["value"] == pytest.approx(own.mean(), rel=1e-9)
    refitted = np.concatenate([deviance(unfitted().fit(train), proves) for train, proves in folds])
    [row] = [r for r in table if r["arm"] == "refit"]
    assert row["value"] == pytest.approx(refitted.mean(), rel=1e-6)
    assert row["gain"] == pytest.approx(1 - refitted.mean() / own.mean(), rel=1e-4)
    pruned = np.concatenate([deviance(without_pca().fit(train), proves) for train, proves in folds])
    [row] = [r for r in table if "without PCA" in r["name"] and r["folds"]]
    assert row["value"] == pytest.approx(pruned.mean(), rel=1e-6)
    assert improved.summary.proof["units"] == len(own) == sum(s["rows"] for s in improved.summary.slices)
    assert improved.summary.proof["rows"] == f"{FOLDS} folds"


def without_pca() -> Pipeline:
    *before, _, head = unfitted().getStages()
    return Pipeline(stages=[*before, head.setFeaturesCol("scaled")])


def test_what_ships_is_made_from_all_rows(improved: ImproverModel, rows: DataFrame, model: PipelineModel) -> None:
    for pipeline, side in ((model, "before"), (improved.pipelineModel, "after")):
        assert improved.summary.metrics["train"][side] == pytest.approx(deviance(pipeline, rows).mean(), rel=1e-9)
    table, whole = improved.summary.table, without_pca().fit(rows)
    [name] = {n for n, i in improved.summary.offers.items() if "without PCA" in table[i]["name"] and table[i]["folds"]}
    pruned = improved.offers[name]
    for part in ("mean", "std"):
        assert np.array_equal(getattr(pruned.stages[3], part).toArray(), getattr(whole.stages[3], part).toArray())
    assert deviance(pruned, rows).mean() == pytest.approx(deviance(whole, rows).mean(), rel=1e-6)


def test_a_needless_stage_is_found_to_stand_in_the_way(improved: ImproverModel) -> None:
    row = next(r for r in improved.summary.table if "without PCA" in r["name"] and r["folds"])
    assert row["arm"] == "simplify" and row["accepted"]
    assert row["gain"] > 0.1
    assert next(r for r in improved.summary.race if r["arm"] == "simplify")["gain"] > 0.1


def test_the_simpler_offer_is_the_best_with_fewer_stages(improved: ImproverModel, rows: DataFrame) -> None:
    """The scaler folds into the regression: the same predictions, and the table says what that saves."""
    best, simpler = improved.pipelineModel, improved.offers["simpler"]
    assert {s.uid for s in simpler.stages} < {s.uid for s in best.stages}
    ours, theirs = (m.transform(rows).select("prediction").toPandas()["prediction"] for m in (simpler, best))
    assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), rel=1e-9)
    first = improved.summary.table[improved.summary.offers["best"]]
    second = improved.summary.table[improved.summary.offers["simpler"]]
    assert second["offers"] == ["simpler"]
    assert second["value"] == pytest.approx(first["value"], rel=1e-9)
    assert second["serving"] == first["compacted"] < first["serving"]
    assert "x compacted)" in str(improved.summary)


def test_it_prints_one_table_and_says_why(improved: ImproverModel) -> None:
    text = str(improved.summary)
    assert text.count("\nyour pipeline ") == 1
    best = improved.summary.table[1]
    assert "{:+.1%} to {:+.1%}".format(*best["interval"]) in text
    assert best["interval"][0] < best["gain"] < best["interval"][1]
    assert 0 < best["error"] < best["gain"]
    spent = improved.summary.budget["spent"]
    assert 0 < best["seconds"] < spent[best["arm"]]  # to make it once
    found, whole = improved.summary.foundAt, improved.summary.budget["seconds"]
    assert found is not None
    assert spent["original"] + best["seconds"] / 2 < found < whole - spent["prove"] + 0.01
    assert sum(spent.values()) < whole
    assert f"the best was found after {found:.0f} s of {whole:.0f} s" in text
    assert "<- best" in text
    assert "The loss was in" in text
    assert "decision: improved" in text
    assert repr(improved.summary).startswith("<ImprovementSummary: improved, ")
    assert "&lt;- best" in improved.summary._repr_html_()


def test_it_is_saved_and_loaded(improved: ImproverModel, rows: DataFrame, tmp_path: Path) -> None:
    improved.save(str(tmp_path / "improved"))
    found = ImproverModel.load(str(tmp_path / "improved"))
    assert str(found.summary) == str(improved.summary)
    assert same(found.pipelineModel, improved.pipelineModel)
    assert found.getArms() == improved.getArms()
    assert found.summary.table == improved.summary.table and found.summary.proof == improved.summary.proof


@pytest.mark.nightly
def test_what_is_to_be_kept_is_kept(model: PipelineModel, rows: DataFrame, cache: str) -> None:
    """With keepForm no stage comes or goes; with keepStages the scaler keeps its numbers in every offer."""
    scaler = model.stages[3]
    improver = Improver(
        model, keepForm=True, arms=["refit", "finetune", "grow"], keepStages=[scaler.uid], cacheDir=cache, **QUICK
    )
    plan = improver.explain(rows)
    refused = {arm["arm"]: arm["note"] for arm in plan.toDict()["facts"]["arms"]}
    assert refused == {"refit": "", "finetune": "", "grow": "not tried: keepForm forbids it"}
    assert scaler.uid in str(plan) and "<td" in (plan._repr_html_() or "") and "\n" not in repr(plan)
    found = improver.fit(rows)
    assert {a["arm"] for a in found.summary.arms} == {"refit", "finetune"}
    for pipeline in (found.pipelineModel, *found.offers.values()):
        assert [type(s) for s in pipeline.stages] == [type(s) for s in model.stages]
        assert [s.uid for s in pipeline.stages] == [s.uid for s in model.stages]
        assert same(pipeline.stages[3], scaler)


class Stop(Events):
    """Raises an exception when the training of a network has begun.

    Args:
        fold: of the training, 0 for that of what ships; None: of an arm.
    """

    def __init__(self, error: BaseException, fold: int | None = None):
        self.error, self.fold = error, fold

    def on_epoch(self, row: Any) -> None:
        if (row["arm"], row.get("fold"), row["epoch"]) == ("finetune", self.fold, 1):
            raise self.error


class Trains(Events):
    """Allows no training but that of what ships."""

    def on_epoch(self, row: Any) -> None:
        if row.get("fold") != 0:
            raise Gone


class Gone(BaseException):
    """Ends a run as a crash does, where an `Exception` of a callback is only a warning."""


class Impatient(Events):
    """Presses Ctrl-C once more while the run decides."""

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        if name == "prove" and seconds is None and not detail:
            signal.raise_signal(signal.SIGINT)


def figures(found: ImproverModel) -> list[dict[str, Any]]:
    """All that the table tells but seconds."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found.summary.table]


@pytest.mark.nightly
def test_runs_killed_in_any_phase_resume_with_the_same_bits(
    model: PipelineModel, rows: DataFrame, tmp_path: Path
) -> None:
    """While an arm trains, in the second fold that proves, and while what ships is made."""
    longest = "x" * 100
    given = {"arms": ["refit", "finetune"], "cacheDir": str(tmp_path), "runId": longest, **QUICK, "numFolds": 3}
    times: dict[str, int] = {}
    for fold, there in ((None, {"step-0-refit"}), (3, {"step-0-finetune", "fold2"}), (0, {"fold3"})):
        with pytest.raises(Gone):
            Improver(model, callbacks=[Stop(Gone(), fold)], **given).fit(rows)
        [folder] = [p for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()]  # none of a training beside it
        kept = {p.stem: p.stat().st_mtime_ns for p in (*folder.glob("step-*"), *folder.glob("*.pt"))}
        assert all(any(part in name for name in kept) for part in there), kept
        assert kept.items() >= times.items()  # nothing is made once more
        times = kept
    assert sum(name.endswith("fold2") for name in times) == sum(name.endswith("fold3") for name in times) == 2
    found = Improver(model, **given).fit(rows)
    assert found.summary.decision == "improved"
    assert (folder / "trainings" / "finetune-0").is_dir()
    whole = Improver(model, **{**given, "runId": "other", "parallelism": 2}).fit(rows)  # side by side
    assert same(found.pipelineModel, whole.pipelineModel)
    assert figures(found) == figures(whole)
    again = Improver(model, callbacks=[Trains()], **given).fit(rows)  # all is read, but for what ships
    assert same(again.pipelineModel, found.pipelineModel)
    assert figures(again) == figures(found)
    for changed in ({"budget": "170 passes"}, {"guard": 0.01}):
        with pytest.raises(InputError, match=f"-improve' was started with other .*{next(iter(changed))}"):
            Improver(model, **{**given, **changed}).fit(rows)


@pytest.mark.nightly
def test_ctrl_c_ends_with_the_best_so_far(model: PipelineModel, rows: DataFrame, cache: str) -> None:
    arms = ["finetune", "simplify", "refit"]
    listeners = [Stop(KeyboardInterrupt()), Impatient()]
    found = Improver(model, arms=arms, cacheDir=cache, callbacks=listeners, **QUICK).fit(rows)
    states = {a["arm"]: a["state"] for a in found.summary.arms}
    assert states["finetune"] == states["simplify"] == "interrupted"
    assert [r["name"] for r in found.summary.table if r["folds"]] == ["refitted"]  # which is proven once
    assert {r["arm"] for r in found.summary.race} == {"refit"}


def test_where_nothing_is_better_the_original_itself_comes_back(rows: DataFrame, cache: str) -> None:
    """A regression at its optimum on labels that depend on nothing."""
    data = rows.withColumn("label", F.randn(7)).localCheckpoint()
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=["temp", "hum"], outputCol="features"),
            LinearRegression(labelCol="label"),
        ]
    ).fit(data)
    found = Improver(pipeline, arms=["refit", "finetune", "grow"], parts=["crosses"], cacheDir=cache, **QUICK).fit(data)
    assert found.summary.decision == "kept original"
    assert found.pipelineModel is pipeline
    assert found.offers == {}
    assert "refit" in str(found.summary)
    assert all(not r["accepted"] and r["p"] != 0 for r in found.summary.table)
    json.dumps([found.summary.table, found.summary.proof], allow_nan=False)


@pytest.mark.nightly
def test_the_label_of_a_row_is_the_same_in_every_arm(rows: DataFrame, cache: str) -> None:
    """A StringIndexer makes the label: a refit on other rows could index it otherwise, so it stays."""
    data = rows.withColumn("word", F.when(F.col("rain") > 0.5, "wet").otherwise("dry"))
    pipeline = Pipeline(
        stages=[
            StringIndexer(inputCol="word", outputCol="wet"),
            VectorAssembler(inputCols=["wind", "noise"], outputCol="features"),
            LogisticRegression(labelCol="wet", regParam=1.0),
        ]
    ).fit(data)
    found = Improver(pipeline, arms=["refit"], cacheDir=cache, **QUICK).fit(data)
    assert {a["arm"]: a["state"] for a in found.summary.arms}["refit"] != "failed"
    [row] = [r for r in found.summary.table if r["name"] == "refitted"]
    assert row["value"] < 1.05 * found.summary.table[0]["value"]  # far more with the classes the other way round
    indexers = [m.stages[0] for m in (pipeline, *found.offers.values())]
    assert all(i.labels == indexers[0].labels for i in indexers)


@pytest.mark.parametrize("statement", ["", "wet AS target", "noise AS other, 2 * wet AS made", "wet AS made"])
def test_what_makes_the_label_stays_as_it_is_fitted(statement: str, rows: DataFrame, cache: str) -> None:
    """Without a statement, which doesn't tell what it reads and writes, a formula makes it."""
    data = rows.withColumn("word", F.when(F.col("rain") > 0.5, "wet").otherwise("dry"))
    stages = [
        StringIndexer(inputCol="word", outputCol="wet"),
        SQLTransformer(statement=f"SELECT *, {statement} FROM __THIS__"),
        *([Binarizer(inputCol="made", outputCol="target", threshold=0.5)] if "made" in statement else []),
        VectorAssembler(inputCols=["wind", "noise"], outputCol="features"),
    ]
    made = stages if statement else [RFormula(formula="word ~ wind + noise", labelCol="target")]
    model = Pipeline(stages=[*made, LogisticRegression(labelCol="target", regParam=1.0)]).fit(data)
    options = Options(labelCol="target", cacheDir=cache)
    context = ArmContext(model, options, ImprovementSettings(), [Source(data)], None, Phases(False), FitResults())
    roles = {
        stage.uid: found.role for stage, found in zip(model.stages, refitting.form_of(context).stages, strict=True)
    }
    assert roles[model.stages[0].uid] == "as fitted" and roles[model.stages[-1].uid] == "estimator"


def test_statements_that_make_no_label_keep_no_stage(rows: DataFrame) -> None:
    """One is in front of the last stage, the other one behind it."""
    stages = [
        VectorAssembler(inputCols=["wind", "noise"], outputCol="numbers"),
        MinMaxScaler(inputCol="numbers", outputCol="features"),
        SQLTransformer(statement="SELECT *, wind AS other FROM __THIS__ LIMIT 1000000"),  # it might write any column
        LinearRegression(labelCol="rain"),
        SQLTransformer(statement="SELECT *, prediction AS found FROM __THIS__"),
    ]
    graph = prepare(Pipeline(stages=stages).fit(rows), Options(), rows).cut.graph
    assert graph.makers(["rain"], rows.columns) == []
    made = graph.makers(["unknown"], rows.columns)
    assert [v.stageClass for v in made] == ["SQLTransformer", "MinMaxScalerModel", "VectorAssembler"]


@pytest.mark.nightly
def test_arms_fit_the_label_and_the_weight_that_judge(rows: DataFrame, cache: str) -> None:
    data = (
        rows.withColumn("target", 3 * F.col("wind") + 0.1 * F.col("noise")).withColumn("heavy", F.lit(2.0)).drop("rain")
    )
    model = LinearRegression(labelCol="rain", featuresCol="f", regParam=1.0)
    assembler = VectorAssembler(inputCols=["wind", "noise"], outputCol="f")
    fitted = Pipeline(stages=[assembler, model]).fit(rows)
    found = Improver(fitted, labelCol="target", weightCol="heavy", arms=["refit"], cacheDir=cache, **QUICK).fit(data)
    assert found.summary.decision == "improved", str(found.summary)
    [row] = [r for r in found.summary.table if r["name"] == "refitted"]
    assert row["value"] < 0.5 * found.summary.table[0]["value"]
    last = found.pipelineModel.stages[-1]
    assert (last.getLabelCol(), last.getWeightCol(), last.getRegParam()) == ("target", "heavy", 1.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keepStages": ["NoSuchStage"]}, "NoSuchStage"),
        ({"entityCols": ["riders"], "arms": ["refit"]}, "'riders' is the labelCol"),
    ],
)
def test_hopeless_input_ends_in_one_sentence(
    given: dict[str, Any], says: str, model: PipelineModel, rows: DataFrame, cache: str
) -> None:
    with pytest.raises(InputError, match=says):
        Improver(model, cacheDir=cache, **{**QUICK, **given}).fit(rows)


def test_too_few_rows_decide_nothing_and_nothing_is_tried(model: PipelineModel, rows: DataFrame, cache: str) -> None:
    kept = Improver(model, cacheDir=cache, **QUICK).fit(rows.where("number < 60"))
    assert kept.pipelineModel is model and "rows, 30 are needed" in kept.summary.reason
    assert not kept.summary.arms and not kept.offers


def test_a_constant_label_is_named(model: PipelineModel, rows: DataFrame, cache: str) -> None:
    with pytest.raises(InputError, match="label"):
        Improver(model, cacheDir=cache, **QUICK).fit(rows.withColumn("riders", F.lit(3.0)))


def test_options_that_make_no_sense_are_named(model: PipelineModel) -> None:
    with pytest.raises(InputError, match="maxSeconds is no option of Improver: its time is `budget`"):
        Improver(model, maxSeconds=5.0)
    with pytest.raises(
        InputError, match=r"(?s)maxSeconds is no option.*unknown option 'budgets'\. Did you mean 'budget'"
    ):
        Improver(model, maxSeconds=5.0, budgets="1h")
    with pytest.raises(InputError, match=r"unknown option 'round'\. Did you mean 'rounds'"):
        Grower(model, round=3)
    with pytest.raises(InputError, match="'numFolds' option must be 0, or 2 to 20"):
        Improver(model, numFolds=1)
    with pytest.raises(InputError, match="must be a time"):
        Improver(model, budget="tomorrow")
    with pytest.raises(InputError, match="has no pipeline"):
        Improver().explain(None)  # type: ignore[arg-type]


@pytest.mark.nightly
def test_the_order_is_learned_from_shipped_and_stored_runs(
    model: PipelineModel, rows: DataFrame, cache: str, tmp_path: Path
) -> None:
    arms = ["refit", "finetune"]
    given = {
        **{**QUICK, "budget": "5m", "maxEpochs": 2},
        "arms": arms,
        "cacheDir": cache,
        "storeDir": str(tmp_path / "runs"),
        "baseline": False,
    }
    first, second = (Improver(model, **given).fit(rows).summary for _ in range(2))
    assert {first.proof["folds"], second.proof["folds"]} == {1}
    assert sorted(first.order["arms"]) == sorted(arms) == sorted(first.order["chances"])
    assert (first.order["own"], second.order["own"]) == (0, 1) and first.order["shipped"] >= 100
    assert f"learned from {first.order['shipped']} improvements that sparkdiff ships and 1 of storeDir" in str(second)
    assert [a["arm"] for a in first.arms] == arms  # in their fixed order, whatever was tried first
    assert "order" in first.budget["spent"]
