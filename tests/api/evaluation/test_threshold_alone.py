"""`tune="threshold"`: only the threshold of the last stage moves, as held-out rows prove; all else stays bit by bit."""

from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, NaiveBayes
from pyspark.ml.feature import CountVectorizer, MinMaxScaler, StandardScaler, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, Window, functions as F

import sparkdiff
from sparkdiff import FineTuner, InputError
from sparkdiff.evaluation.model_differences import ParamDifference, between
from tests.support.small_data import NUMBERS, tune

COSTS = [[0.0, 1.0], [8.0, 0.0]]
OF_COST: dict[str, Any] = {"labelCol": "rain", "loss": "cost", "lossParams": {"costs": COSTS}, "tune": "threshold"}


@pytest.fixture(scope="module")
def rain(df: DataFrame) -> PipelineModel:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="features"),
        LogisticRegression(labelCol="rain", regParam=0.1, maxIter=5, thresholds=[0.5, 0.5]),
    ]
    return Pipeline(stages=stages).fit(df)


def cost(model: Any, df: DataFrame, label: str, costs: list[list[float]]) -> float:
    """Mean cost of the decisions that Spark shows."""
    at = F.array(*(F.lit(float(c)) for row in costs for c in row))
    found = F.element_at(at, (F.col(label) * len(costs) + F.col("prediction") + 1).cast("int"))
    return float(model.transform(df).agg(F.avg(found)).first()[0])  # type: ignore[index]


def assert_only_decisions_differ(old: Any, new: Any, df: DataFrame) -> None:
    """All columns but the prediction are the same, bit by bit, in Spark; and so are all stages but the last."""
    one, other = (model.transform(df) for model in (old, new))
    assert one.schema == other.schema
    kept = [c for c in one.columns if c != "prediction"]
    assert one.select(kept).collect() == other.select(kept).collect()
    assert new.uid == old.uid and [s.uid for s in new.stages] == [s.uid for s in old.stages]
    assert all(a is b for a, b in zip(old.stages[:-1], new.stages[:-1], strict=True))


@pytest.mark.slow
def test_it_reaches_the_cost_and_keeps_the_calibration(
    rain: PipelineModel, df: DataFrame, shared: Path, tmp_path: Path
) -> None:
    """Of a pipeline that has seen the rows, out-of-fold scores choose; its own weights are returned. Its `thresholds` make way
    for a threshold, which they would contradict.
    """
    found = FineTuner(pipeline=rain, cacheDir=str(shared), **OF_COST).fit(df)
    summary, old, new = found.summary, rain.stages[1], found.pipelineModel.stages[1]
    threshold = new.getThreshold()
    assert summary.decision == "tuned" and 0.2 < threshold < 0.35  # a penalty draws the probabilities to the mean
    assert summary.reason.startswith(f"threshold={threshold:.4g}: its gain of ")
    assert new.coefficients == old.coefficients and new.intercept == old.intercept
    assert_only_decisions_differ(rain, found.pipelineModel, df)
    assert found.originalModel is rain and not old.isSet("threshold")
    [_, told] = between(rain, found.pipelineModel, tmp_path).stages
    assert told.params == (
        ParamDifference("threshold", ("default", 0.5), ("set", threshold)),
        ParamDifference("thresholds", ("set", [0.5, 0.5]), None),
    )
    assert cost(found.pipelineModel, df, "rain", COSTS) < 0.6 * cost(rain, df, "rain", COSTS)
    compared = summary.compatibility
    assert compared is not None and compared["psi"] == 0 and compared["changed"] > 0.1
    assert compared["calibration"]["before"] == compared["calibration"]["after"]
    for name in ("logLoss", "areaUnderROC"):
        assert compared["others"][name]["before"] == compared["others"][name]["after"]
    assert any("tested the threshold on its refit on the training rows" in w for w in summary.warnings)
    assert not any("no longer calibrated" in w for w in summary.warnings)
    assert "of the new threshold" in str(summary)
    name, page = f"{new.uid}.threshold", tmp_path / "page.html"
    assert {name: round(far["largest"], 9) for name, far in summary.stages.items()} == {name: round(0.5 - threshold, 9)}
    summary.toHTML(str(page))
    assert f"<code>{name}</code> moved, and no other Param; weights," in page.read_text()
    found.pipelineModel.save(f"{tmp_path}/model")
    loaded = PipelineModel.load(f"{tmp_path}/model")
    assert loaded.stages[1].getThreshold() == threshold and sparkdiff.verify(loaded, df).ok


@pytest.mark.nightly
@pytest.mark.slow
def test_words_that_only_the_original_knows(df: DataFrame, shared: Path) -> None:
    """The refit, by which a threshold is judged, has other columns than the original, on which it is set."""
    words = df.withColumn("words", F.array(F.col(NUMBERS[0]).cast("string")))
    stages = [
        CountVectorizer(inputCol="words", outputCol="counts"),
        VectorAssembler(inputCols=["counts", *NUMBERS], outputCol="features"),
        LogisticRegression(labelCol="rain", regParam=0.1, maxIter=5),
    ]
    model = Pipeline(stages=stages).fit(words)
    found = FineTuner(pipeline=model, cacheDir=str(shared), **OF_COST).fit(words)
    assert found.summary.decision == "tuned", found.summary.reason
    assert_only_decisions_differ(model, found.pipelineModel, words)


def test_a_threshold_that_is_right_is_kept(rain: PipelineModel, df: DataFrame, shared: Path) -> None:
    found = tune(rain, df, shared, **OF_COST | {"metric": "accuracy", "numFolds": 3})
    summary = found.summary
    assert summary.decision == "kept original" and found.pipelineModel is rain
    assert summary.reason.startswith("threshold=0.") and "on the validation rows" in summary.reason
    assert "numFolds" not in summary.reason
    idle = "has no effect: tune='threshold' trains nothing, and held-out rows decide"
    assert {w.partition("=")[0] for w in summary.warnings if w.endswith(idle)} >= {"maxEpochs", "numFolds"}


def test_several_classes_have_one_each(df: DataFrame, shared: Path) -> None:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="raw"),
        MinMaxScaler(inputCol="raw", outputCol="features"),
        NaiveBayes(labelCol="kind"),
    ]
    model, costs = Pipeline(stages=stages).fit(df), [[0.0, 1.0, 1.0], [6.0, 0.0, 6.0], [1.0, 1.0, 0.0]]
    given = OF_COST | {"labelCol": "kind", "lossParams": {"costs": costs}}
    found = tune(model, df, shared, **given, guardCols=["held"])
    new = found.pipelineModel.stages[2]
    assert found.summary.decision == "tuned" and not model.stages[2].isDefined("thresholds")
    assert found.summary.reason.startswith("thresholds=[0.")
    assert new.getThresholds()[1] == min(new.getThresholds()) and new.theta == model.stages[2].theta
    assert_only_decisions_differ(model, found.pipelineModel, df)
    assert cost(found.pipelineModel, df, "kind", costs) < 0.6 * cost(model, df, "kind", costs)
    [*slices] = found.summary.slices
    assert [s["after"] < s["before"] for s in slices] == [True, True]


@pytest.mark.nightly
@pytest.mark.slow
def test_an_arm_of_improve_moves_it(rain: PipelineModel, numeric: PipelineModel, df: DataFrame, shared: Path) -> None:
    given: dict[str, Any] = {"budget": "100 passes", "arms": ["threshold"], "numFolds": 3, "cacheDir": str(shared)}
    found = sparkdiff.Improver(rain, **given, **{k: v for k, v in OF_COST.items() if k != "tune"}).fit(df)
    assert found.summary.decision == "improved", found.summary.reason
    old, new = rain.stages[1], found.pipelineModel.stages[1]
    assert 0.05 < new.getThreshold() < 0.35 and new.coefficients.toArray() == pytest.approx(old.coefficients.toArray())
    assert cost(found.pipelineModel, df, "rain", COSTS) < 0.6 * cost(rain, df, "rain", COSTS)
    for model, label, why in ((numeric, "riders", "is no classifier"), (rain, "rain", "does not depend on decisions")):
        with pytest.raises(InputError, match=f"nothing can be tried on .*threshold: .*{why}"):
            sparkdiff.Improver(model, **given, labelCol=label).fit(df)


@pytest.mark.nightly
def test_classes_that_a_part_of_the_rows_numbers_otherwise(df: DataFrame, shared: Path) -> None:
    """A threshold belongs to a class by its number. With this seed, 594 and 593 rows of the classes train, and 458 and 472 of
    these do where the threshold is chosen.
    """
    number = F.row_number().over(Window.orderBy(*df.columns))
    halves = df.withColumn("half", F.when(number % 2 == 0, "even").otherwise("odd"))
    stages = [
        StringIndexer(inputCol="half", outputCol="target"),
        VectorAssembler(inputCols=NUMBERS, outputCol="features"),
        LogisticRegression(labelCol="target", maxIter=2),
    ]
    given: dict[str, Any] = {"budget": "50 passes", "arms": ["threshold"], "numFolds": 0, "metric": "accuracy"}
    improver = sparkdiff.Improver(Pipeline(stages=stages), seed=5, cacheDir=str(shared), **given)
    [arm] = improver.fit(halves).summary.arms
    assert arm["state"] == "failed"
    assert arm["why"].startswith("class 0 of labelCol='target' is 'even' in the training rows, but 'odd' in a part of")


def test_what_has_no_threshold_is_refused(numeric: PipelineModel, rain: PipelineModel, df: DataFrame) -> None:
    said = r"tune='threshold' moves the threshold at which a classifier with probabilities decides, and \w+ \(Gen"
    with pytest.raises(InputError, match=said):
        tune(numeric, df, None, tune="threshold")
    with pytest.raises(InputError, match="set labelCol"):
        tune(PipelineModel([rain.stages[0], rain.stages[1].copy()._set(labelCol="")]), df, None, tune="threshold")
    with pytest.raises(InputError, match="leave tune out, too, which trains nothing as 'threshold'"):
        FineTuner(pipeline=rain, **OF_COST).cost(df)
    for kind in (sparkdiff.Improver, sparkdiff.Grower):
        with pytest.raises(InputError, match=f"tune is no option of {kind.__name__}: only FineTuner has it"):
            kind(pipeline=rain, **OF_COST)


def test_a_last_stage_that_is_not_to_change_keeps_its_threshold(df: DataFrame, shared: Path) -> None:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="numbers"),
        StandardScaler(inputCol="numbers", outputCol="features"),
        LogisticRegression(labelCol="rain", maxIter=2),
    ]
    model = Pipeline(stages=stages).fit(df)
    for kept, why in (
        ({"freeze": ["LogisticRegressionModel"]}, "frozen on request"),
        ({"target": ["StandardScalerModel"]}, "not in target"),
    ):
        with pytest.raises(InputError, match=f"changes LogisticRegression_\\w+ alone, and that is {why}: leave it out"):
            FineTuner(pipeline=model, **kept, **OF_COST).fit(df)
    given: dict[str, Any] = {"budget": "50 passes", "arms": ["threshold"], "cacheDir": str(shared), "labelCol": "rain"}
    given |= {"rowsAreNew": True}
    with pytest.raises(InputError, match=r"threshold: LogisticRegression_\w+: not in target"):
        sparkdiff.Improver(model, target=["StandardScalerModel"], metric="accuracy", **given).fit(df)


@pytest.mark.nightly
def test_a_class_that_a_fold_lacks_is_named(df: DataFrame, shared: Path) -> None:
    number = F.row_number().over(Window.orderBy(*df.columns))
    rare = df.withColumn("kind", F.when(number == 7, 2.0).otherwise(F.col("rain").cast("double")))
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="features"),
        LogisticRegression(labelCol="kind", family="multinomial", maxIter=2),
    ]
    tuner = FineTuner(Pipeline(stages=stages).fit(rare), tune="threshold", metric="accuracy", cacheDir=str(shared))
    seeds = [{tuner.seed: seed} for seed in range(5)]  # with one of them the row trains
    with pytest.raises(InputError, match=r"those without fold \d knows 2 of the 3 classes of labelCol='kind'"):
        tuner.fit(rare, seeds)
