"""The best settings of a fitted pipeline within a budget, on its training rows alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LinearSVC, LogisticRegression, MultilayerPerceptronClassifier, OneVsRest
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import PCA, Normalizer, QuantileDiscretizer, StandardScaler, VectorAssembler, VectorSizeHint
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import RandomForestRegressor
from pyspark.sql import DataFrame
from scipy.special import xlogy

from sparkdiff import InputError, choice, integer, loguniform
from sparkdiff.data.splits import Source, training_rows
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options
from sparkdiff.pipeline.unfitted_form import unfitted_form
from sparkdiff.search import within_budget
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.search.settings_space import first_settings, settings_space
from sparkdiff.search.trials import Trials
from sparkdiff.search.within_budget import TunedSettings, tune_within_budget
from sparkdiff.tuning.mean_loss import OF_PROBABILITIES, MeanLoss, evaluator_of
from tests.support.small_data import NUMBERS

OF_CLASSES = (*OF_PROBABILITIES, "hinge", "expectedCost")


def judge() -> RegressionEvaluator:
    return RegressionEvaluator(labelCol="riders", metricName="rmse")


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> Iterator[DataFrame]:
    data = training_rows([Source(df)], Options(validationFraction=0.3)).coalesce(1).cache()
    yield data
    data.unpersist()


@pytest.fixture(scope="module")
def space(numeric: PipelineModel) -> dict[Any, Any]:
    """Small enough for a few trials to find that the components are too few."""
    whole = settings_space(unfitted_form(numeric))
    return {p: d for p, d in whole.items() if p.name in ("k", "regParam")}


@pytest.fixture(scope="module")
def search(numeric: PipelineModel, rows: DataFrame, space: dict[Any, Any]) -> Callable[..., TunedSettings]:
    return lambda **given: tune_within_budget(
        unfitted_form(numeric), space, judge(), rows, **{"numTrials": 5, "seed": 1, **given}
    )


@pytest.fixture(scope="module")
def found(search: Callable[..., TunedSettings], tmp_path_factory: pytest.TempPathFactory) -> tuple[TunedSettings, Path]:
    folder = tmp_path_factory.mktemp("tuned") / "study"
    return search(folder=folder, keep=2), folder


def test_the_winner_is_the_pipeline_fitted_to_all_training_rows(
    found: tuple[TunedSettings, Path], numeric: PipelineModel, rows: DataFrame
) -> None:
    best, second = found[0].best
    assert (best.model.uid, [s.uid for s in best.model.stages]) == (numeric.uid, [s.uid for s in numeric.stages])
    assert best.model.stages[2].getK() == best.settings["PCA.k"] > 2 == numeric.stages[2].getK()
    assert {r["PCA.k"] for r in found[0].records[:2]} == {2, 4}  # as it is, and with all components
    assert best.metric < second.metric and best.settings != second.settings
    assert found[0].current == found[0].records[0]["rmse"] > best.metric
    assert found[0].records[0]["PCA.k"] == 2 and found[0].records[0]["GeneralizedLinearRegression.regParam"] == 0.0
    assert (found[0].trials, found[0].failed, found[0].stopped) == (5, 0, "trials")
    again = unfitted_form(best.model).estimator.fit(rows)
    assert again.stages[-1].coefficients == best.model.stages[-1].coefficients


def test_it_goes_on_where_it_was(
    found: tuple[TunedSettings, Path],
    search: Callable[..., TunedSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluated: list[int] = []
    evaluate, most = Trials.evaluate, 1

    def counted(self: Trials, trials: Any, resource: float | None = None) -> Any:
        if len(evaluated) >= most:
            raise KeyboardInterrupt
        evaluated.extend(t.number for t in trials)
        return evaluate(self, trials, resource)

    monkeypatch.setattr(Trials, "evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        search(folder=tmp_path / "s", maxSeconds=1000)
    monkeypatch.setattr(within_budget, "_size", lambda known, limit: 2)
    most = 3
    with pytest.raises(KeyboardInterrupt):
        search(folder=tmp_path / "s")
    most = 5
    whole = search(folder=tmp_path / "s")
    assert evaluated == [*range(5)]
    assert_same_trials(whole, found[0])
    assert whole.best[0].model.stages[-1].coefficients == found[0].best[0].model.stages[-1].coefficients
    with pytest.raises(InputError, match="holds a search with other seed"):
        search(folder=tmp_path / "s", seed=2)


def test_what_the_clock_decided_is_decided_again(search: Callable[..., TunedSettings], tmp_path: Path) -> None:
    short = search(folder=tmp_path / "s", maxSeconds=1e-3)
    assert (short.stopped, short.trials, short.best[0].number) == ("seconds", 1, 0)
    again = search(folder=tmp_path / "s", maxSeconds=1e-3)
    assert [{**r} for r in again.records] == short.records and again.seconds == short.seconds
    assert search(folder=tmp_path / "s", maxSeconds=1e6, numTrials=2).trials == 2


def test_a_batch_takes_a_part_of_the_time_that_is_left() -> None:
    from sparkdiff.search.study import Trial

    known = [Trial(0, {}, "complete", (1.0,), seconds=9.0)]
    later = [*known, *(Trial(n, {}, "complete", (1.0,), seconds=1.0) for n in (1, 2))]
    assert within_budget._usual(known) == 4.5 and within_budget._usual(later) == 1.0  # the first one makes caches
    assert within_budget._size([], None) is None and within_budget._size([], 60.0) == 1
    assert (
        within_budget._size(known, 60.0) == 1
        and within_budget._size(later, 31.0) == 5
        and within_budget._size(later, 12.0) == 1
    )


def assert_same_trials(one: TunedSettings, other: TunedSettings) -> None:
    """To the last digits, in which a batch of another size may differ."""
    for a, b in zip(one.records, other.records, strict=True):
        assert {**a, "rmse": 0, "seconds": 0} == {**b, "rmse": 0, "seconds": 0}
        assert a["rmse"] == pytest.approx(b["rmse"], rel=1e-12)


# The metric -----------------------------------------------------------------------------------------------------------


def test_a_deviance_judges_solutions_and_models_alike(
    numeric: PipelineModel, rows: DataFrame, space: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = MeanLoss("poisson", "prediction", "riders", "weight")
    given = unfitted_form(numeric)
    at_once = tune_within_budget(given, space, evaluator, rows, numTrials=3, seed=1)
    monkeypatch.setattr("sparkdiff.tuning.linear_last_stages.judge_of", lambda evaluator: None)
    by_spark = tune_within_budget(given, space, evaluator, rows, numTrials=3, seed=1)
    one, other = ([r["poisson"] for r in found.records] for found in (at_once, by_spark))
    assert one == pytest.approx(other, rel=1e-6)
    shown = numeric.transform(rows).select("prediction", "riders", "weight").toPandas()
    mu, y, w = (shown[c].to_numpy() for c in shown)
    half = xlogy(y, y / mu) - y + mu
    assert evaluator.evaluate(numeric.transform(rows)) == pytest.approx((w * half).sum() / w.sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "column"),
    [
        ("squared", RegressionEvaluator, "predictionCol"),
        ("r2", RegressionEvaluator, "predictionCol"),
        ("poisson", MeanLoss, "column"),
        ("areaUnderROC", BinaryClassificationEvaluator, "rawPredictionCol"),
        ("logLoss", MulticlassClassificationEvaluator, "probabilityCol"),
        ("hinge", MeanLoss, "column"),
        ("f1", MulticlassClassificationEvaluator, "predictionCol"),
        ("focal", MeanLoss, "column"),
        ("brier", MeanLoss, "column"),
        ("expectedCost", MeanLoss, "column"),
    ],
)
def test_the_evaluator_of_a_metric(numeric: PipelineModel, df: DataFrame, name: str, kind: type, column: str) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    votes = kind in (BinaryClassificationEvaluator, MulticlassClassificationEvaluator) or name in OF_CLASSES
    head = LogisticRegression(labelCol="rain", maxIter=1).fit(data) if votes else numeric.stages[-1]
    params = {"gamma": 2.0, "costs": [[0.0, 1.0], [4.0, 0.0]]}
    found = evaluator_of(Metric(name), head, labelCol="rain", weightCol="weight", params=params)
    assert (
        type(found) is kind and found.getOrDefault("labelCol") == "rain" and found.getOrDefault("weightCol") == "weight"
    )
    shown = {
        "areaUnderROC": "rawPrediction",
        "hinge": "rawPrediction",
        **dict.fromkeys(OF_PROBABILITIES, "probability"),
    }
    shown = shown.get(name, "prediction")
    assert found.getOrDefault(column) == shown
    if votes:
        assert found.evaluate(head.transform(data)) > 0


def test_class_weights_count_where_the_loss_is_the_metric(df: DataFrame) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    head = LogisticRegression(labelCol="rain", maxIter=1).fit(data)
    found = head.transform(data)
    params = {"classWeights": [1.0, 4.0]}

    def value(name: str) -> float:
        return float(evaluator_of(Metric(name), head, labelCol="rain", params=params).evaluate(found))

    shown = found.select("rain", vector_to_array("probability")[1].alias("p")).toPandas()
    own = np.where(shown.rain > 0, shown.p, 1 - shown.p)
    assert value("logLoss") == pytest.approx(float((np.where(shown.rain > 0, 4.0, 1.0) * -np.log(own)).mean()))
    assert value("brier") == pytest.approx(float(((1 - own) ** 2).mean()))
    assert value("areaUnderROC") > 0


def test_a_metric_that_no_column_shows(numeric: PipelineModel, df: DataFrame) -> None:
    with pytest.raises(InputError, match="metric='weibull' can't be computed of the columns"):
        evaluator_of(Metric("weibull"), numeric.stages[-1], labelCol="rain")
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    with pytest.raises(InputError, match="metric='brier' needs probabilities, which LinearSVCModel doesn't write"):
        evaluator_of(Metric("brier"), LinearSVC(labelCol="rain", maxIter=1).fit(data), labelCol="rain")


# The space ------------------------------------------------------------------------------------------------------------


def test_the_current_setting_is_in_the_space(numeric: PipelineModel) -> None:
    form = unfitted_form(numeric)
    space = SearchSpace.of(form.estimator, settings_space(form))
    now = space.current()
    assert now.keys() == {q.name for q in space.dimensions}
    assert now == {
        "StandardScaler.withStd": True,
        "StandardScaler.withMean": True,
        "PCA.k": 2,
        "GeneralizedLinearRegression.regParam": 0.0,
    }
    assert first_settings(space) == [now, {**now, "PCA.k": 4, "GeneralizedLinearRegression.regParam": 1e-6}]
    for q in space.dimensions:
        if q.name == "PCA.k":
            assert (q.distribution.low, q.distribution.high) == (1, 4)  # type: ignore[attr-defined]


def test_a_forest_is_tried_with_deeper_trees_first(df: DataFrame) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    for depth, deep in ((3, 12), (14, 14)):
        forest = RandomForestRegressor(labelCol="rain", maxDepth=depth, numTrees=2, seed=1).fit(data)
        form = unfitted_form(forest)
        space = SearchSpace.of(form.estimator, settings_space(form))
        now = space.current()
        deeper = {**now, "RandomForestRegressor.maxDepth": deep}
        assert first_settings(space) == ([now] if depth == deep else [now, deeper])


def test_a_width_that_a_later_stage_needs_is_not_searched(df: DataFrame) -> None:
    before = [VectorAssembler(inputCols=NUMBERS, outputCol="a"), PCA(inputCol="a", outputCol="x", k=2)]
    net = MultilayerPerceptronClassifier(featuresCol="x", labelCol="kind", layers=[2, 4, 3], maxIter=2, seed=1)
    form = unfitted_form(Pipeline(stages=[*before, net]).fit(df))
    space = settings_space(form)
    assert {p.name for p in space} == {"layers", "maxIter"}
    layers = next(d for p, d in space.items() if p.name == "layers").listed()
    assert layers is not None and layers[0] == [2, 4, 3] and all((v[0], v[-1]) == (2, 3) for v in layers)
    label = QuantileDiscretizer(
        inputCol="wait", outputCol="long", numBuckets=2
    )  # stays as it is, and reads no components
    hint = VectorSizeHint(inputCol="x", size=2)
    many = OneVsRest(classifier=LogisticRegression(maxIter=2, regParam=1e-9), featuresCol="x", labelCol="kind")
    space = settings_space(
        unfitted_form(Pipeline(stages=[*before, hint, Normalizer(inputCol="x", outputCol="n"), many]).fit(df))
    )
    assert {p.name: d for p, d in space.items()} == {
        "p": choice(2.0, 1.0),
        "regParam": loguniform(1e-9, 10.0),
        "elasticNetParam": space_of(space, "elasticNetParam"),
        "maxIter": choice(2, 100),
    }
    free = settings_space(unfitted_form(Pipeline(stages=[*before, many, label]).fit(df)))
    assert space_of(free, "k") == integer(1, 4)


def space_of(space: dict[Any, Any], name: str) -> Any:
    return next(d for p, d in space.items() if p.name == name)


def test_nothing_to_search(df: DataFrame) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="a").transform(df)
    scaler = StandardScaler(inputCol="a", outputCol="s").fit(data)
    form = unfitted_form(PipelineModel([VectorAssembler(inputCols=NUMBERS, outputCol="a")]))
    assert settings_space(form) == {}
    with pytest.raises(InputError, match="can't be fitted anew: none of its stages is ever fitted"):
        tune_within_budget(form, {}, judge(), df)
    with pytest.raises(InputError, match="space is empty"):
        tune_within_budget(unfitted_form(PipelineModel([scaler])), {}, judge(), df)
