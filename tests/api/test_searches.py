"""FineTuner inside Pipeline, CrossValidator and TrainValidationSplit, many settings over one cache, and fits from threads."""

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression, GeneralizedLinearRegressionModel, LinearRegression
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
    TrainValidationSplitModel,
)
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import FineTuner, FineTunerModel, InputError
from sparkdiff.data import cache as caches
from sparkdiff.estimators import fine_tuner as tuners
from sparkdiff.training import recipes
from sparkdiff.training.distributed import launch
from tests.support.describe_saved import described
from tests.support.small_data import NUMBERS, QUICK, files, pinball, pipeline, predictions, same, tune


@pytest.fixture(scope="session")
def absolute(spark: SparkSession) -> RegressionEvaluator:
    return RegressionEvaluator(labelCol="riders", metricName="mae")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a fingerprint was made, a cache written, and an unfitted pipeline fitted; they do as ever."""
    calls = {"fingerprint": 0, "_build": 0, "fit_on_training_rows": 0}

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: Any) -> Any:
            calls[name] += 1
            return original(*arguments)

        monkeypatch.setattr(module, name, watched)

    watch(caches, "fingerprint")
    watch(caches, "_build")
    watch(tuners, "fit_on_training_rows")
    return calls


@pytest.fixture(scope="module")
def short(df: DataFrame) -> PipelineModel:
    """Assembler and Poisson regression: quick to fit, to cache, to save."""
    head = GeneralizedLinearRegression(featuresCol="x", labelCol="riders", family="poisson", regParam=1.0)
    return pipeline(df, head)


def tuner_of(model: Any, folder: Path, **options: Any) -> FineTuner:
    return FineTuner(pipeline=model, cacheDir=str(folder), **{**QUICK, "maxEpochs": 1, **options})


# Many settings --------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["files", "memory"])
def test_the_maps_of_one_fit_share_all_but_the_training(
    spark: SparkSession,
    df: DataFrame,
    short: PipelineModel,
    table: pa.Table,
    folder: Path,
    counted: dict[str, int],
    jobs: Callable[[], int],
    kind: str,
) -> None:
    rows = df if kind == "files" else spark.createDataFrame(table.select([*NUMBERS, "riders"]).to_pandas())
    tuner = tuner_of(short, folder, guard=1e-12)  # nothing is accepted, so that no model is written back and verified
    jobs()
    one = tuner.fit(rows, [{tuner.learningRate: 0.01}])
    for_one = jobs()
    assert counted["fingerprint"] == counted["_build"] == 1
    maps = [
        {tuner.learningRate: 0.01, tuner.seed: 1},
        {tuner.loss: "absolute", tuner.seed: 1},
        {tuner.freeze: ["VectorAssembler"], tuner.maxEpochs: 1, tuner.seed: 1},
        {tuner.metric: "absolute", tuner.seed: 1},
    ][:: 1 if kind == "files" else 3]
    models = tuner.fit(rows, maps)
    assert 0 < jobs() <= for_one  # stages are not saved again for their digest
    assert counted["fingerprint"] == counted["_build"] == 2
    assert [m.summary.cache["hit"] for m in models] == [False] + [True] * (len(maps) - 1)
    assert len({m.summary.cache["fingerprint"] for m in [*models, *one]}) == 2
    assert [m.summary.options["loss"] for m in models] == [params.get(tuner.loss, "auto") for params in maps]
    assert models[0].summary.parity == models[-1].summary.parity
    for m, params in zip(models, maps, strict=True):
        alone = tuner.fit(rows, params).summary
        assert alone.history.equals(m.summary.history)
        assert alone.parity == m.summary.parity
        assert alone.cache == m.summary.cache | {"hit": True}


@pytest.mark.nightly
def test_maps_that_differ_in_their_candidates_train_together(
    df: DataFrame, short: PipelineModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "FEW_ROWS", 10)  # several candidates on few rows
    started: list[int] = []
    run = launch.run
    monkeypatch.setattr(launch, "run", lambda a, *rest: started.append(len(a.start.recipes)) or run(a, *rest))
    tuner = tuner_of(short, folder, maxEpochs=3)
    maps = [
        {tuner.learningRate: 0.01},
        {tuner.learningRate: 0.001, tuner.regAnchor: 0.1},
        {tuner.recipe: "thorough"},
        {tuner.learningRate: 0.01, tuner.patience: 1},  # decides when a candidate stops
        {tuner.learningRate: 0.01, tuner.ema: 0.9},
        {tuner.learningRate: 0.01},
    ]
    models = tuner.fit(df, maps)
    assert len(started) == 2
    assert started[0] > 4 > started[1] - 1  # the candidates of five settings, and of the one with another patience
    for m, params in zip(models, maps, strict=True):
        alone = tuner.fit(df, params).summary
        pd.testing.assert_frame_equal(alone.history, m.summary.history, rtol=1e-9)
        assert (alone.decision, alone.candidates) == (m.summary.decision, m.summary.candidates)
        assert m.summary.gain == pytest.approx(alone.gain, rel=1e-9)
        assert m.summary.p == pytest.approx(alone.p)
    assert len(started) == 2 + len(maps)


def test_maps_that_change_the_cache_get_their_own(
    df: DataFrame, short: PipelineModel, folder: Path, counted: dict[str, int]
) -> None:
    tuner = tuner_of(short, folder, maxEpochs=1, guard=1e-12)
    maps = [{tuner.seed: s, tuner.maxEpochs: n} for n in (1, 2) for s in (0, 1)]
    models = dict(tuner.fitMultiple(df, [*maps, {tuner.weightCol: "weight"}]))
    assert counted["_build"] == counted["fingerprint"] == 3
    prints = [models[i].summary.cache["fingerprint"] for i in range(5)]
    assert prints[:2] == prints[2:4]
    assert len(set(prints)) == 3


def test_an_unfitted_pipeline_is_fitted_once_per_split(
    df: DataFrame, folder: Path, counted: dict[str, int], short: PipelineModel
) -> None:
    stages = [VectorAssembler(inputCols=NUMBERS, outputCol="x"), LinearRegression(featuresCol="x", labelCol="riders")]
    tuner = tuner_of(Pipeline(stages=stages), folder, maxEpochs=1, guard=1e-12)
    grid = [{tuner.loss: loss, tuner.validationFraction: f} for loss in ("squared", "absolute") for f in (0.2, 0.3)]
    models = tuner.fit(df, grid)
    assert counted["fit_on_training_rows"] == counted["_build"] == 2
    assert models[0].originalModel is models[2].originalModel
    assert models[1].originalModel is models[3].originalModel
    assert not same(models[0].originalModel, models[1].originalModel)


def test_maps_share_a_fit_only_if_stage_params_are_equal(df: DataFrame, folder: Path, counted: dict[str, int]) -> None:
    head = LinearRegression(featuresCol="x", labelCol="riders")
    tuner = tuner_of(
        Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="x"), head]), folder, maxEpochs=1, guard=1e-12
    )
    models = tuner.fit(df, [{head.regParam: 100.0}, {head.regParam: 0.0}, {head.regParam: 0.0, tuner.seed: 0}])
    originals = [m.originalModel for m in models]
    assert counted["fit_on_training_rows"] == 2
    assert originals[1] is originals[2]
    assert [m.stages[1].getRegParam() for m in originals] == [100.0, 0.0, 0.0]
    strong, none = (np.linalg.norm(m.stages[1].coefficients.toArray()) for m in originals[:2])
    assert strong < none


def test_a_wrong_map_is_refused_before_the_first_fit(
    df: DataFrame, short: PipelineModel, folder: Path, counted: dict[str, int], absolute: RegressionEvaluator
) -> None:
    tuner = tuner_of(short, folder)
    for wrong, words in (
        ({tuner.learningRate: -1.0}, r"'learningRate' option must be in \(0, inf\). Got -1.0"),
        ({tuner.loss: "possion"}, "'loss' option can't be 'possion'. Did you mean 'poisson'. It must be one of auto"),
        ({tuner.loss: "tests.support.small_data:gone"}, "loss=tests.support.small_data:gone can't be found"),
        (
            {tuner.loss: "tests.support.small_data:ROWS"},
            "loss=tests.support.small_data:ROWS is 1500, which can't be called",
        ),
        ({tuner.freeze: 3}, "'freeze' option must be a list of stages"),
        ({tuner.groupCol: "user", tuner.timeCol: "when"}, "exclude each other"),
    ):
        with pytest.raises(InputError, match=words):
            tuner.fit(df, wrong)
        with pytest.raises(InputError, match=words):
            tuner.fit(df, [{}, wrong])
        with pytest.raises(InputError, match=words):
            CrossValidator(estimator=tuner, estimatorParamMaps=[{}, wrong], evaluator=absolute).fit(df)
    with pytest.raises(InputError, match="runId='once' names one training, but 2 settings would share it"):
        tuner.setRunId("once").fit(df, [{}, {tuner.runId: "other"}, {tuner.loss: "absolute"}])
    assert counted == {"fingerprint": 0, "_build": 0, "fit_on_training_rows": 0}
    assert not folder.exists()


# Searches -------------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_cross_validator_builds_one_cache_per_fold(
    df: DataFrame,
    short: PipelineModel,
    folder: Path,
    counted: dict[str, int],
    jobs: Callable[[], int],
    absolute: RegressionEvaluator,
) -> None:
    tuner = tuner_of(short, folder, guard=1e-12)
    search = CrossValidator(estimator=tuner, evaluator=absolute, numFolds=2, seed=1)
    grid = [{tuner.learningRate: 0.01}, {tuner.learningRate: 0.001, tuner.loss: "absolute"}]
    jobs()
    search.copy().setEstimatorParamMaps(grid[:1]).fit(df)
    for_one = jobs()
    assert counted["_build"] == counted["fingerprint"] == 3  # two folds, and all rows for the best setting
    search.setEstimatorParamMaps(grid).setSeed(2).fit(df)
    for_two = jobs()
    assert counted["_build"] == 3 + 2  # all rows are known
    assert counted["fingerprint"] == 6
    assert len(list(folder.glob("*/manifest.json"))) == 5
    scored = short.transform(df)
    jobs()
    absolute.evaluate(scored)
    assert for_two - for_one <= 2 * jobs()  # two more settings are evaluated; nothing else needs a job


@pytest.fixture(scope="module")
def whole(df: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A FineTuner behind the stage whose output it reads, with a folder of its own for the caches."""
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="x")
    head = GeneralizedLinearRegression(featuresCol="x", labelCol="riders", family="poisson", regParam=1.0)
    folder = tmp_path_factory.mktemp("whole")
    tuner = tuner_of(
        head.fit(assembler.transform(df)), folder, loss=pinball, freeze=[], learningRates={"prediction": 0.01}
    )
    return Pipeline(stages=[assembler, tuner])


@pytest.fixture(scope="module")
def split(df: DataFrame, whole: Pipeline, absolute: RegressionEvaluator) -> tuple[Any, TrainValidationSplitModel]:
    """A search of two settings for the pipeline, and what it finds."""
    tuner = whole.getStages()[1]
    grid = (
        ParamGridBuilder()
        .addGrid(tuner.loss, ["tests.support.small_data:pinball", "absolute"])
        .addGrid(tuner.learningRates, [{"prediction": 0.02}])
        .addGrid(tuner.freeze, [[]])
        .addGrid(tuner.labelCol, [None])
        .build()
    )
    search = TrainValidationSplit(
        estimator=whole, estimatorParamMaps=grid, evaluator=absolute, seed=4, collectSubModels=True
    )
    return search, search.fit(df)


def test_a_pipeline_in_a_search_shares_caches_too(
    whole: Pipeline, split: tuple[Any, TrainValidationSplitModel]
) -> None:
    found = split[1]
    caches_of_all = Path(whole.getStages()[1].getCacheDir()).glob("*/manifest.json")
    assert len({p.parent for p in caches_of_all}) == 2  # three fits: two settings, and all rows for the best
    assert isinstance(found.bestModel.stages[1], FineTunerModel)
    assert type(sparkdiff.plain(found).bestModel.stages[1]) is GeneralizedLinearRegressionModel


@pytest.fixture(scope="module")
def searched(
    df: DataFrame, short: PipelineModel, shared: Path, absolute: RegressionEvaluator
) -> dict[int, CrossValidatorModel]:
    """A search by one thread, and by two threads."""
    tuner = tuner_of(short, shared, maxEpochs=2)
    grid = [
        {tuner.learningRate: 0.02, tuner.loss: "absolute", tuner.freeze: [short.stages[0]]},
        {tuner.learningRate: 0.02, tuner.loss: pinball, tuner.freeze: []},
    ]
    search = CrossValidator(estimator=tuner, estimatorParamMaps=grid, evaluator=absolute, numFolds=2, seed=3)
    search.setCollectSubModels(True)
    one = search.fit(df)
    return {1: one, 2: search.setParallelism(2).fit(df)}


def test_a_search_finds_the_best_setting(
    df: DataFrame, short: PipelineModel, searched: dict[int, CrossValidatorModel], absolute: RegressionEvaluator
) -> None:
    found = searched[1]
    assert len(found.avgMetrics) == 2
    assert int(np.argmin(found.avgMetrics)) == 0  # the loss that is measured, at a rate that moves
    assert min(found.avgMetrics) < 0.97 * absolute.evaluate(short.transform(df))
    best = found.bestModel
    assert isinstance(best, FineTunerModel)
    assert (best.getLoss(), best.getLearningRate()) == ("absolute", 0.02)
    assert best.originalModel is short
    assert [[type(m) for m in fold] for fold in found.subModels] == [[FineTunerModel] * 2] * 2
    assert found.subModels[1][1].getLoss() == "tests.support.small_data:pinball"
    assert found.subModels[0][0].getFreeze() == [short.stages[0].uid]
    served = sparkdiff.plain(found)
    assert type(served.bestModel) is PipelineModel
    assert (served.uid, served.avgMetrics, served.stdMetrics) == (found.uid, found.avgMetrics, found.stdMetrics)
    assert [[type(m) for m in fold] for fold in served.subModels] == [[PipelineModel] * 2] * 2
    np.testing.assert_array_equal(predictions(served, df), predictions(found, df))


def test_two_threads_find_the_same_bits(searched: dict[int, CrossValidatorModel]) -> None:
    one, two = searched[1], searched[2]
    assert one.avgMetrics == two.avgMetrics
    assert same(one.bestModel.pipelineModel, two.bestModel.pipelineModel)
    for fold, again in zip(one.subModels, two.subModels, strict=True):
        for a, b in zip(fold, again, strict=True):
            assert same(a.pipelineModel, b.pipelineModel)
            assert a.summary.history.equals(b.summary.history)


@pytest.mark.nightly  # threads of a search: test_two_threads_find_the_same_bits
def test_threads_of_ones_own(df: DataFrame, numeric: PipelineModel, short: PipelineModel, folder: Path) -> None:
    settings: list[dict[str, Any]] = [{"learningRate": 0.01}, {"learningRate": 0.01}, {"loss": "absolute"}, {"seed": 1}]
    threads, found = torch.get_num_threads(), {}
    filters = list(warnings.filters)

    def fit(i: int) -> None:
        found[i] = tune([numeric, short][i % 2], df, folder, **settings[i], stream="auto")

    running = [threading.Thread(target=fit, args=(i,)) for i in range(4)]
    for t in running:
        t.start()
    for t in running:
        t.join()
    assert sorted(found) == [0, 1, 2, 3]
    assert torch.get_num_threads() == threads
    assert list(warnings.filters) == filters
    assert df.sparkSession.conf.get("spark.sql.debug.maxToStringFields") == "25"
    assert len(list(folder.glob("*/manifest.json"))) == 3
    for i, one in found.items():
        alone = tune([numeric, short][i % 2], df, folder, **settings[i], stream="auto")
        assert same(alone.pipelineModel, one.pipelineModel)
        assert alone.summary.history.equals(one.summary.history)
        assert alone.summary.parity == one.summary.parity
        assert alone.summary.cache == one.summary.cache | {"hit": True}


def test_a_train_validation_split(
    df: DataFrame, short: PipelineModel, shared: Path, absolute: RegressionEvaluator
) -> None:
    tuner = tuner_of(short, shared, loss="absolute")
    grid = ParamGridBuilder().addGrid(tuner.learningRate, [1e-9, 0.02]).build()
    search = TrainValidationSplit(
        estimator=tuner, estimatorParamMaps=grid, evaluator=absolute, seed=2, collectSubModels=True, parallelism=2
    )
    found = search.fit(df)
    assert found.validationMetrics[1] < found.validationMetrics[0]
    assert found.bestModel.getLearningRate() == 0.02
    served = sparkdiff.plain(found)
    assert type(served) is TrainValidationSplitModel
    assert (type(served.bestModel), [type(m) for m in served.subModels]) == (PipelineModel, [PipelineModel] * 2)
    assert (served.uid, served.validationMetrics) == (found.uid, found.validationMetrics)


@pytest.mark.nightly
def test_a_stage_of_a_pipeline(
    df: DataFrame, numeric: PipelineModel, tuned_numeric: FineTunerModel, shared: Path
) -> None:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="assembled")
    tuner = tuner_of(PipelineModel(numeric.stages[1:]), shared, maxEpochs=4)
    whole = Pipeline(stages=[assembler, tuner, VectorAssembler(inputCols=["prediction"], outputCol="last")])
    found = whole.fit(df)
    assert [type(s) for s in found.stages] == [VectorAssembler, FineTunerModel, VectorAssembler]
    assert found.stages[1].summary.decision == "tuned"
    flat = sparkdiff.plain(found)
    assert [type(s) for s in flat.stages] == [VectorAssembler, PipelineModel, VectorAssembler]
    assert flat.uid == found.uid
    np.testing.assert_array_equal(predictions(flat, df), predictions(found, df))
    again = whole.fit(df, {tuner.loss: "absolute"}).stages[1]
    assert (again.summary.metric, again.getLoss()) == ("absolute", "absolute")
    # it is trained on what the stages before it make, in the same way as with them
    before, after = (m.summary.metrics["train"]["before"] for m in (tuned_numeric, found.stages[1]))
    assert abs(before / after - 1) < 0.1
    lacking = Pipeline(stages=[tuner])
    with pytest.raises(InputError, match="reads column 'assembled', which is not in the data"):
        lacking.fit(df)


# Models of searches ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["CrossValidator", "TrainValidationSplit"])
def spark_search(request: pytest.FixtureRequest, df: DataFrame, absolute: RegressionEvaluator) -> Any:
    """The fitted search of someone who never heard of us."""
    head = GeneralizedLinearRegression(featuresCol="scaled", labelCol="riders", family="poisson")
    stages = [VectorAssembler(inputCols=NUMBERS, outputCol="x"), StandardScaler(inputCol="x", outputCol="scaled"), head]
    setting: dict[str, Any] = {
        "estimator": Pipeline(stages=stages),
        "evaluator": absolute,
        "seed": 1,
        "estimatorParamMaps": ParamGridBuilder().addGrid(head.regParam, [0.5]).build(),
    }
    if request.param == "CrossValidator":
        return CrossValidator(numFolds=2, collectSubModels=True, **setting).fit(df)
    return TrainValidationSplit(**setting).fit(df)


@pytest.mark.nightly
def test_the_fitted_model_of_a_search_is_tuned_inside(
    df: DataFrame, spark_search: Any, shared: Path, tmp_path: Path
) -> None:
    best = spark_search.bestModel
    shown = sparkdiff.plan(spark_search)
    assert [s.path for s in shown.stages] == [(0,), (1,), (2,)]  # the search adds nothing to the path
    assert shown == sparkdiff.plan(best)
    inside = sparkdiff.plan(PipelineModel([best.stages[0], spark_search]))
    assert [s.path for s in inside.stages] == [(0,), (1, 0), (1, 1), (1, 2)]
    network = sparkdiff.translate(spark_search)
    assert sparkdiff.verify(spark_search, df, network).ok
    assert sparkdiff.write_back(spark_search, network) is spark_search
    with torch.no_grad():
        network.head.intercept += 0.5
    changed = sparkdiff.write_back(spark_search, network)
    _is_the_same_search(changed, spark_search)
    np.testing.assert_allclose(predictions(changed, df), predictions(spark_search, df) * np.exp(0.5), rtol=1e-12)
    assert spark_search.bestModel is best
    if not isinstance(spark_search, CrossValidatorModel):
        return  # whatever holds the best model, it is trained in the same way
    found = tune(spark_search, df, shared)
    assert found.originalModel is spark_search
    assert found.summary.decision == "tuned"
    _is_the_same_search(found.pipelineModel, spark_search)
    assert same(found.pipelineModel.bestModel, tune(best, df, shared).pipelineModel)
    found.pipelineModel.write().save(f"file://{tmp_path}/search")
    loaded = type(spark_search).load(f"file://{tmp_path}/search")
    assert same(loaded.bestModel, found.pipelineModel.bestModel)
    assert loaded.uid == spark_search.uid


def _is_the_same_search(new: Any, old: Any) -> None:
    assert type(new) is type(old)
    assert new is not old
    assert new.uid == old.uid
    for name in ("avgMetrics", "stdMetrics", "validationMetrics"):
        assert getattr(new, name, None) == getattr(old, name, None)
    assert new.subModels is old.subModels
    assert {p.name: v for p, v in new.extractParamMap().items()} == {
        p.name: v for p, v in old.extractParamMap().items()
    }
    assert not same(new.bestModel, old.bestModel)


def test_a_tuned_model_in_a_pipeline_counts_as_what_it_holds(
    df: DataFrame, numeric: PipelineModel, tuned: FineTunerModel, shared: Path
) -> None:
    for model in (PipelineModel([PipelineModel([tuned])]), tuned):
        flat = sparkdiff.plain(model)
        assert sparkdiff.plan(model) == sparkdiff.plan(flat)
        assert sparkdiff.verify(model, df).ok
        network = sparkdiff.translate(model)
        same_again = sparkdiff.write_back(model, network)
        assert type(same_again) is PipelineModel
        assert _leaves(same_again) == _leaves(flat)
        with torch.no_grad():
            network.head.intercept += 0.5
        changed = sparkdiff.write_back(model, network)
        assert _leaves(changed)[:-1] == _leaves(flat)[:-1]
        np.testing.assert_allclose(predictions(changed, df), predictions(model, df) * np.exp(0.5), rtol=1e-12)


def _leaves(model: Any) -> list[Any]:
    return [x for s in model.stages for x in _leaves(s)] if isinstance(model, PipelineModel) else [model]


# In a new session -----------------------------------------------------------------------------------------------------


@pytest.mark.nightly  # each of them is saved and loaded in one session by other tests
def test_all_of_it_can_be_loaded_in_a_new_session(
    df: DataFrame, whole: Pipeline, split: tuple[Any, TrainValidationSplitModel], tmp_path: Path
) -> None:
    """And what is loaded fits to the same; after the session has stopped, all say that it has."""
    search, found = split
    grid, first = search.getEstimatorParamMaps(), found.subModels
    folds = CrossValidator(
        estimator=whole, estimatorParamMaps=grid, evaluator=search.getEvaluator(), numFolds=2, seed=4
    )
    short_folds = folds.copy().setEstimatorParamMaps(grid[:1])  # with a model of each fold
    by_folds = CrossValidatorModel(
        found.bestModel, avgMetrics=found.validationMetrics[:1], subModels=[[m] for m in first], stdMetrics=[0.5]
    )
    best = TrainValidationSplitModel(found.bestModel, validationMetrics=found.validationMetrics)
    made = {"Pipeline": whole, "PipelineModel": whole.fit(df), "CrossValidator": folds, "TrainValidationSplit": search}
    made |= {
        "CrossValidatorModel": short_folds._copyValues(by_folds),
        "TrainValidationSplitModel": search._copyValues(best),
    }
    for name, thing in made.items():
        thing.write().save(f"file://{tmp_path}/{name}")
    paths = [str(p) for p in (Path(sparkdiff.__file__).parents[1], Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.describe_saved", tmp_path, files(df)[0]],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    refused = loaded.pop("stopped")
    assert loaded.keys() == made.keys()
    for name, thing in made.items():
        fitted = made.get(f"{name}Model") if name in ("Pipeline", "TrainValidationSplit") else None
        assert loaded[name] == json.loads(json.dumps(described(thing, df, fitted))), name
    assert loaded["TrainValidationSplit"]["metrics"] == loaded["TrainValidationSplitModel"]["metrics"]
    assert refused.keys() == {"plan", "translate", "verify", "fit"}
    assert all("session" in said.lower() and "load the model again" in said for said in refused.values()), refused


def test_a_callable_in_a_grid_is_saved_by_its_name_only(
    short: PipelineModel, shared: Path, tmp_path: Path, absolute: RegressionEvaluator
) -> None:
    tuner = tuner_of(short, shared)
    search = CrossValidator(estimator=tuner, evaluator=absolute, estimatorParamMaps=[{tuner.loss: pinball}])
    with pytest.raises(TypeError, match="Object of type function is not JSON serializable"):  # Spark's words
        search.save(f"file://{tmp_path}/search")
    search.setEstimatorParamMaps([{tuner.loss: "tests.support.small_data:pinball"}]).save(f"file://{tmp_path}/named")
    tuner.setLoss(lambda outputs, label, weight: label)
    with pytest.raises(InputError, match="cannot be saved: define it as a function at the top level of a module"):
        search.save(f"file://{tmp_path}/lambda")
