"""`CrossValidator` and `TrainValidationSplit` against pyspark's own: the same folds, metrics, winner and saved files."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pyspark.ml import Estimator, Model, Pipeline, tuning
from pyspark.ml.classification import LinearSVC, LogisticRegression, OneVsRest, RandomForestClassifier
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    ClusteringEvaluator,
    Evaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import PCA, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.recommendation import ALS
from pyspark.ml.regression import DecisionTreeRegressor, FMRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError
from sparkdiff.jvm import SparkError
from sparkdiff.tuning.cross_validation import best_of
from sparkdiff.tuning.fits import GridTask
from tests.support.small_data import NUMBERS


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> Iterator[DataFrame]:
    """Numbers assembled, two labels, a fold: in memory, as users have it."""
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(
        df.withColumn("fold", (F.col("number") % 3).cast("int"))
    )
    data = data.coalesce(1).cache()
    data.count()
    yield data
    data.unpersist()


def both(rows: DataFrame, kind: str = "CrossValidator", **given: Any) -> tuple[Any, Any]:
    """What pyspark's class and ours find."""
    return getattr(tuning, kind)(**given).fit(rows), getattr(sparkdiff, kind)(**given).fit(rows)


def found(model: Any) -> list[float]:
    return list(model.avgMetrics if hasattr(model, "avgMetrics") else model.validationMetrics)


class Mean(Estimator):  # type: ignore[type-arg]
    """An estimator of one's own: it predicts the label's mean times a factor."""

    factor: Param[float] = Param(Params._dummy(), "factor", "a factor", TypeConverters.toFloat)

    def _fit(self, dataset: DataFrame) -> "MeanModel":
        mean = dataset.agg(F.avg("riders")).head()[0]
        return self._copyValues(MeanModel(mean * self.getOrDefault("factor")))


class MeanModel(Model):
    factor: Param[float] = Param(Params._dummy(), "factor", "a factor", TypeConverters.toFloat)

    def __init__(self, mean: float = 0.0):
        super().__init__()
        self.mean = mean

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn("prediction", F.lit(self.mean))


class Width(Evaluator):
    """Reads no rows: those of OneVsRest take workers of Python a while."""

    def _evaluate(self, dataset: DataFrame) -> float:
        return float(len(dataset.columns))


# Whatever is fitted ---------------------------------------------------------------------------------------------------


def searched(kind: str) -> dict[str, Any]:
    """An estimator with a grid and an evaluator."""
    if kind == "RandomForestClassifier":
        forest = RandomForestClassifier(labelCol="rain", numTrees=1, seed=1)
        grid = ParamGridBuilder().addGrid(forest.maxDepth, [1, 2]).build()
        return {
            "estimator": forest,
            "estimatorParamMaps": grid,
            "evaluator": BinaryClassificationEvaluator(labelCol="rain"),
        }
    if kind == "KMeans":
        means = KMeans(seed=1, maxIter=1)
        return {
            "estimator": means,
            "estimatorParamMaps": ParamGridBuilder().addGrid(means.k, [2]).build(),
            "evaluator": ClusteringEvaluator(),
        }
    if kind == "OneVsRest":
        inner = LinearSVC(maxIter=1)
        several = OneVsRest(classifier=inner, labelCol="rain")
        return {"estimator": several, "estimatorParamMaps": [{inner.regParam: 0.1}], "evaluator": Width()}
    riders = RegressionEvaluator(labelCol="riders")
    if kind in ("FMRegressor", "ALS"):
        machine = FMRegressor(labelCol="riders", factorSize=1, maxIter=1, stepSize=0.1)
        if kind == "ALS":
            machine = ALS(userCol="fold", itemCol="user", ratingCol="riders", rank=1, maxIter=1)
            machine.setNumBlocks(1)
        return {"estimator": machine, "estimatorParamMaps": [{machine.regParam: 0.1}], "evaluator": riders}
    own = Mean()
    return {"estimator": own, "estimatorParamMaps": [{own.factor: 1.0}, {own.factor: 2.0}], "evaluator": riders}


@pytest.fixture
def not_adaptive(spark: SparkSession) -> Iterator[None]:
    """Adaptive plans take as many jobs as they happen to: by which side of a join is ready first, and for rows in memory."""
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    yield
    spark.conf.unset("spark.sql.adaptive.enabled")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "kind",
    [
        # as LinearSVC in test_a_prefix_is_fitted_once_per_fold_whatever_follows: one stage of Spark's, the same evaluator
        pytest.param("RandomForestClassifier", marks=pytest.mark.nightly),
        pytest.param("KMeans", marks=pytest.mark.nightly),  # as ALS: no label, an evaluator of its own
        "OneVsRest",
        pytest.param("FMRegressor", marks=pytest.mark.nightly),  # as RandomForestClassifier: one stage of Spark's
        "ALS",
        "Mean",
    ],
)
def test_any_estimator_takes_no_more_fits_and_jobs_than_sparks(
    rows: DataFrame, jobs: Callable[[], int], fits: list[str], not_adaptive: None, kind: str
) -> None:
    given, few = {**searched(kind), "numFolds": 2, "seed": 3}, rows.where("number < 300")
    jobs()
    theirs = tuning.CrossValidator(**given).fit(few)
    their_jobs, their_fits = jobs(), fits.copy()
    fits.clear()
    ours = sparkdiff.CrossValidator(**given).fit(few)
    assert jobs() <= their_jobs
    assert sorted(fits) == sorted(their_fits)
    assert fits.count(kind) == 1 + 2 * len(given["estimatorParamMaps"])
    np.testing.assert_allclose(found(ours), found(theirs), rtol=1e-12)
    np.testing.assert_allclose(ours.stdMetrics, theirs.stdMetrics, rtol=1e-12, atol=1e-12)
    assert type(ours) is tuning.CrossValidatorModel


class Meeting(Mean):
    """Its fits wait for one another, two and two; with a factor below 0 that without fold 0 fails."""

    met = threading.Barrier(2)
    fitted: ClassVar[list[int]] = []

    def _fit(self, dataset: DataFrame) -> MeanModel:
        first = dataset.agg(F.min("fold")).head()[0]
        self.met.wait(120)
        self.fitted.append(first)
        if self.getOrDefault("factor") < 0 and first:
            raise ValueError("a factor below 0")
        return super()._fit(dataset)


def test_folds_with_fewer_fits_than_threads_run_at_once(rows: DataFrame) -> None:
    few = rows.where("number < 300").withColumn("fold", F.col("number") % 4)
    own, judge = Meeting(), RegressionEvaluator(labelCol="riders")
    given = {"estimator": own, "evaluator": judge, "numFolds": 4, "foldCol": "fold", "parallelism": 2}
    task = sparkdiff.CrossValidator(**given, estimatorParamMaps=[{own.factor: 1.0}])
    found, _ = task._outcomes(few)[1], own.fitted.clear()  # without the last fit, which is alone
    plain = Mean()
    theirs = tuning.CrossValidator(**{**given, "estimator": plain}, estimatorParamMaps=[{plain.factor: 1.0}]).fit(few)
    assert np.mean([fold.metrics[0] for fold in found]) == pytest.approx(theirs.avgMetrics[0], rel=1e-12)
    with pytest.raises(ValueError, match="below 0"):  # fold 0 is held out first
        sparkdiff.CrossValidator(**given, estimatorParamMaps=[{own.factor: -1.0}]).fit(few)
    assert len(own.fitted) == 2, "the two that ran have ended, no other has begun"


@pytest.mark.nightly
def test_a_prefix_is_fitted_once_per_fold_whatever_follows(
    rows: DataFrame, monkeypatch: pytest.MonkeyPatch, jobs: Callable[[], int], not_adaptive: None
) -> None:
    fits: list[str] = []
    original = Estimator.fit
    monkeypatch.setattr(Estimator, "fit", lambda s, *a: fits.append(type(s).__name__) or original(s, *a))  # type: ignore[func-returns-value]
    index = StringIndexer(inputCol="hour", outputCol="index")
    inner = Pipeline(stages=[index, VectorAssembler(inputCols=["index", *NUMBERS], outputCol="assembled")])
    scale = StandardScaler(inputCol="assembled", outputCol="x")
    head = LinearSVC(featuresCol="x", labelCol="rain", maxIter=1)
    grid = ParamGridBuilder().addGrid(scale.withStd, [True, False]).addGrid(head.regParam, [0.1, 1.0]).build()
    given = {
        "estimator": Pipeline(stages=[inner, scale, head]),
        "estimatorParamMaps": grid,
        "numFolds": 2,
        "seed": 3,
        "evaluator": BinaryClassificationEvaluator(labelCol="rain"),
        "collectSubModels": True,
        "parallelism": 2,
    }
    few = rows.where("number < 300")
    jobs()
    theirs = tuning.CrossValidator(**given).fit(few)
    their_jobs = jobs()
    fits.clear()
    ours = sparkdiff.CrossValidator(**given).fit(few)
    counts = {name: fits.count(name) for name in set(fits)}
    assert counts == {
        "CrossValidator": 1,
        "Pipeline": 2,
        "StringIndexer": 2 + 1,
        "StandardScaler": 2 + 1,
        "LinearSVC": 8 + 1,
    }  #   # the last ones: the winner, by Spark itself
    assert jobs() < their_jobs
    assert found(ours) == pytest.approx(found(theirs), rel=1e-12)
    assert str(sparkdiff.CrossValidator(**given).explain(few)).startswith(
        "4 settings x 2 folds: Spark makes 24 fits, here"
    )
    for mine, other in zip(ours.subModels, theirs.subModels, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert [type(s) for s in one.stages] == [type(s) for s in two.stages]
            assert one.stages[0].stages[0].labels == two.stages[0].stages[0].labels
            np.testing.assert_allclose(one.stages[2].coefficients.toArray(), two.stages[2].coefficients.toArray())


def test_what_cannot_be_taken_apart_is_left_whole(rows: DataFrame) -> None:
    one, two = (LinearRegression(labelCol="riders", regParam=r, solver="normal") for r in (0.0, 10.0))
    pipeline = Pipeline(stages=[one])
    judge = RegressionEvaluator(labelCol="riders")
    given = {"estimator": pipeline, "evaluator": judge, "numFolds": 2}
    theirs, ours = both(rows, estimatorParamMaps=[{pipeline.stages: [one]}, {pipeline.stages: [two]}], **given)
    assert found(ours) == found(theirs)
    classifier = LogisticRegression(labelCol="kind")
    several = OneVsRest(classifier=classifier, labelCol="kind")
    maps = [{classifier.regParam: r} for r in (0.0, 0.5)]
    task = GridTask.of(Pipeline(stages=[several]), maps, judge)
    assert task.fits_at_once == task.sparks_fits == 2


# Linear last stages ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of all fits, in order; they do as ever."""
    made: list[str] = []
    original = Estimator.fit

    def fit(self: Any, *arguments: Any) -> Any:
        made.append(type(self).__name__)
        return original(self, *arguments)

    monkeypatch.setattr(Estimator, "fit", fit)
    return made


def close(ours: Any, theirs: Any) -> None:
    """The same metrics to 1e-5, and the same winner."""
    mine, other = np.array(found(ours)), np.array(found(theirs))
    assert np.abs(mine - other).max() <= 1e-5 * max(1.0, np.abs(other).max())
    assert ours.bestModel.extractParamMap() == theirs.bestModel.extractParamMap()


def test_least_squares_of_all_settings_and_folds_at_once(
    rows: DataFrame, fits: list[str], jobs: Callable[[], int]
) -> None:
    head = LinearRegression(labelCol="riders", weightCol="weight", tol=1e-9, maxIter=1000)
    grid = ParamGridBuilder().addGrid(head.regParam, [1e-4, 0.5]).addGrid(head.elasticNetParam, [0.0, 0.7]).build()
    judge = RegressionEvaluator(labelCol="riders", weightCol="weight", metricName="r2")
    given = {"estimator": head, "estimatorParamMaps": grid, "evaluator": judge, "seed": 4}
    theirs = tuning.CrossValidator(**given, numFolds=2, collectSubModels=True).fit(rows)
    fits.clear()
    jobs()
    ours = sparkdiff.CrossValidator(**given, numFolds=2).fit(rows)
    assert fits == ["CrossValidator", "LinearRegression"]
    assert jobs() < 10
    close(ours, theirs)
    np.testing.assert_allclose(ours.stdMetrics, theirs.stdMetrics, atol=1e-5)
    assert ours.bestModel.coefficients == theirs.bestModel.coefficients
    told = sparkdiff.CrossValidator(**given, numFolds=2).explain(rows)
    assert (told.sparkFits, told.fits, told.solvedAtOnce) == (8, 0, 8)
    assert "LinearRegression: 4 fits in a fold, here 0 and 4 solved at once" in str(told)
    kept = sparkdiff.CrossValidator(**given, numFolds=2, collectSubModels=True).fit(rows)
    for mine, other in zip(itertools.chain(*kept.subModels), itertools.chain(*theirs.subModels), strict=True):
        # Spark's elastic net stops a little before the optimum.
        np.testing.assert_allclose(mine.coefficients.toArray(), other.coefficients.toArray(), atol=1e-3)
        assert mine.extractParamMap() == other.extractParamMap()
    given |= {"estimatorParamMaps": [{head.maxIter: 1, head.solver: "l-bfgs"}, {head.regParam: 0.1}], "trainRatio": 0.6}
    theirs, ours = both(rows, "TrainValidationSplit", **given)
    close(ours, theirs)
    told = sparkdiff.TrainValidationSplit(**given).explain(rows)
    assert (told.fits, told.solvedAtOnce) == (1, 1)
    assert "maxIter=1 stops LinearRegression early, so it is fitted by Spark" in told.reasons


@pytest.mark.nightly  # fits of each fold are counted in test_a_prefix_is_fitted_once_per_fold_whatever_follows
def test_each_fold_has_its_own_prefix(rows: DataFrame, fits: list[str]) -> None:
    index = StringIndexer(inputCol="hour", outputCol="index")
    encode = OneHotEncoder(inputCol="index", outputCol="hours")
    assemble = VectorAssembler(inputCols=["hours", *NUMBERS], outputCol="assembled")
    scale = StandardScaler(inputCol="assembled", outputCol="scaled")
    pca = PCA(inputCol="scaled", outputCol="x", k=1)
    head = LinearRegression(featuresCol="x", labelCol="riders", tol=1e-9)
    grid = ParamGridBuilder().addGrid(pca.k, [2, 6]).addGrid(head.regParam, [0.01, 1.0]).build()
    given = {
        "estimator": Pipeline(stages=[Pipeline(stages=[index, encode, assemble]), scale, pca, head]),
        "estimatorParamMaps": grid,
        "evaluator": RegressionEvaluator(labelCol="riders"),
        "seed": 4,
    }
    theirs = tuning.TrainValidationSplit(**given).fit(rows)
    fits.clear()
    ours = sparkdiff.TrainValidationSplit(**given).fit(rows)
    counts = {name: fits.count(name) for name in {*fits} - {"TrainValidationSplit", "Pipeline"}}
    assert counts == {"StringIndexer": 2, "OneHotEncoder": 2, "StandardScaler": 2, "PCA": 2, "LinearRegression": 1}
    np.testing.assert_allclose(found(ours), found(theirs), rtol=1e-5)
    best = [s.extractParamMap() for s in (ours.bestModel.stages[-1], theirs.bestModel.stages[-1])]
    assert best[0] == best[1]


@pytest.mark.parametrize("label", ["rain", "kind"])
def test_logistic_regressions_of_all_settings_and_folds_at_once(rows: DataFrame, fits: list[str], label: str) -> None:
    head = LogisticRegression(labelCol=label, weightCol="weight", tol=1e-9, maxIter=1000)
    judge: Any = BinaryClassificationEvaluator(labelCol=label, numBins=0)
    maps = [{head.regParam: 0.1}, {head.regParam: 0.2, head.elasticNetParam: 0.5}]
    if label == "kind":
        judge = MulticlassClassificationEvaluator(labelCol=label, metricName="logLoss", weightCol="weight")
        maps += [{head.regParam: 0.1, head.standardization: False}]
    given = {"estimator": head, "estimatorParamMaps": maps, "evaluator": judge, "trainRatio": 0.5, "seed": 4}
    theirs = tuning.TrainValidationSplit(**given).fit(rows)
    fits.clear()
    ours = sparkdiff.TrainValidationSplit(**given).fit(rows)
    assert fits == ["TrainValidationSplit", "LogisticRegression"]
    close(ours, theirs)
    if label == "rain":  # what Spark joins in bins it computes itself, of models with our coefficients
        given |= {"evaluator": BinaryClassificationEvaluator(labelCol=label, numBins=100)}
        theirs, ours = both(rows, "TrainValidationSplit", **given)
        np.testing.assert_allclose(
            found(ours), found(theirs), atol=2e-3
        )  # Spark joins them in a random order of partitions
        decides = MulticlassClassificationEvaluator(labelCol=label, metricName="f1")
        cuts = [{head.regParam: 0.1, head.threshold: t} for t in (0.3, 0.5)]
        theirs, ours = both(rows, "TrainValidationSplit", **given | {"evaluator": decides, "estimatorParamMaps": cuts})
        close(ours, theirs)
        assert fits.count("LogisticRegression") == 1 + (2 + 1) + 1 + (2 + 1) + 1


def test_glms_of_all_settings_and_folds_at_once(rows: DataFrame, fits: list[str]) -> None:
    head = GeneralizedLinearRegression(
        family="poisson", labelCol="riders", weightCol="weight", offsetCol="exposure", tol=1e-10, maxIter=100
    )
    maps = [
        {head.regParam: 1e-3},
        {head.regParam: 0.5, head.fitIntercept: False},
        {head.link: "sqrt", head.regParam: 0.1},
    ]
    judge = RegressionEvaluator(labelCol="riders", metricName="rmse")
    given = {"estimator": head, "estimatorParamMaps": maps, "evaluator": judge, "numFolds": 2, "seed": 4}
    theirs = tuning.CrossValidator(**given).fit(rows)
    fits.clear()
    ours = sparkdiff.CrossValidator(**given).fit(rows)
    assert fits == ["CrossValidator", "GeneralizedLinearRegression"]
    close(ours, theirs)
    told = sparkdiff.CrossValidator(**given).explain(rows).reasons
    assert told[-1] == "features of more than 1,000 columns are left to Spark"


# Folds ----------------------------------------------------------------------------------------------------------------


class Fits(Estimator):  # type: ignore[type-arg]
    """Keeps which rows it was fitted to."""

    seen: list[list[float]] = []

    def _fit(self, dataset: DataFrame) -> Any:
        Fits.seen.append(sorted(row[0] for row in dataset.select("number").collect()))
        return MeanModel(1.0)


class Rows(Evaluator):
    """Keeps which rows it judged, and finds nothing."""

    def _evaluate(self, dataset: DataFrame) -> float:
        Fits.seen.append(sorted(row[0] for row in dataset.select("number").collect()))
        return 0.0


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("CrossValidator", {"numFolds": 3, "seed": 5}),
        ("CrossValidator", {"numFolds": 2}),  # the seed comes from the name of the class
        ("TrainValidationSplit", {"trainRatio": 0.6, "seed": 5}),
    ],
)
def test_the_rows_are_those_of_pyspark(rows: DataFrame, kind: str, given: dict[str, Any]) -> None:
    found, rows = [], rows.repartition(2, "number")
    for home in (tuning, sparkdiff):
        Fits.seen = []
        search = getattr(home, kind)(estimator=Fits(), estimatorParamMaps=[{}], evaluator=Rows(), **given)
        search._resetUid("fixed")
        search.fit(rows)
        found.append(Fits.seen)
    assert found[0] == found[1]
    folds = search._folds(rows)
    where = folds.rows.select("number", folds.held_out.alias("fold")).collect()
    for fold, (_, validation) in enumerate(folds.pairs):
        assert sorted(n for n, f in where if f == fold) == sorted(
            row[0] for row in validation.select("number").collect()
        )
    assert {f for _, f in where} == ({0, -1} if kind == "TrainValidationSplit" else {*range(given["numFolds"])})


def test_a_column_with_the_name_of_ours_is_the_callers(rows: DataFrame) -> None:
    """A feature that is called as the number of the fold that is written beside it."""
    few = rows.select(F.col(NUMBERS[0]).alias("Sparkdiff_Fold"), F.col(NUMBERS[1]).alias("other"), "riders")
    regression = LinearRegression(labelCol="riders", tol=1e-9)
    pipeline = Pipeline(
        stages=[VectorAssembler(inputCols=["Sparkdiff_Fold", "other"], outputCol="features"), regression]
    )
    maps = [{regression.regParam: r} for r in (0.01, 0.1)]
    spark, own = both(
        few,
        estimator=pipeline,
        estimatorParamMaps=maps,
        evaluator=RegressionEvaluator(labelCol="riders"),
        seed=3,
        numFolds=2,
    )
    np.testing.assert_allclose(found(own), found(spark), rtol=1e-6)


# Saved ----------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_pysparks(rows: DataFrame, tmp_path: Path) -> None:
    estimator = LinearRegression(labelCol="riders")
    grid = ParamGridBuilder().addGrid(estimator.regParam, [0.1, 0.2]).build()
    given = {
        "estimator": estimator,
        "estimatorParamMaps": grid,
        "evaluator": RegressionEvaluator(labelCol="riders"),
        "seed": 9,
    }
    for kind, more in (("CrossValidator", {"numFolds": 2}), ("TrainValidationSplit", {"trainRatio": 0.7})):
        search, where = getattr(sparkdiff, kind)(**given, **more), str(tmp_path / f"{kind}-{estimator.uid}")
        search.save(where)
        plain, own = getattr(tuning, kind).load(where), getattr(sparkdiff, kind).load(where)
        assert type(plain) is getattr(tuning, kind)
        assert type(own) is type(search) is type(search.copy())
        for read in (plain, own):
            assert (read.uid, read.getSeed(), read.getEstimatorParamMaps()) == (search.uid, 9, grid)
        model = search.fit(rows)
        model.save(f"{where}-model")
        again = type(model).load(f"{where}-model")
        assert found(again) == found(model)
        assert again.bestModel.coefficients == model.bestModel.coefficients


# Refused --------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named_before_anything_runs(rows: DataFrame, jobs: Callable[[], int]) -> None:
    head, other = LogisticRegression(labelCol="rain"), LogisticRegression()
    judge = BinaryClassificationEvaluator(labelCol="rain")
    grid = [{head.regParam: 0.1}]
    unknown = BinaryClassificationEvaluator(metricName="areaUnderRocks")  # type: ignore[arg-type]
    for words, given in (
        ("CrossValidator has no estimatorParamMaps: set it", {"estimator": head, "evaluator": judge}),
        ("estimatorParamMaps is empty", {"estimatorParamMaps": []}),
        (f"sets regParam of {other.uid}, which is no stage", {"estimatorParamMaps": [{other.regParam: 1.0}]}),
        ("gives regParam of .* the value -1.0", {"estimatorParamMaps": [{}, {head.regParam: -1.0}]}),
        ("gives maxIter of .* the value 'a'", {"estimatorParamMaps": [{head.maxIter: "a"}]}),
        ("has 'regParam' in place of a Param", {"estimatorParamMaps": [{"regParam": 1.0}]}),
        ("estimatorParamMaps is dict: give a list of dicts", {"estimatorParamMaps": grid[0]}),
        ("estimatorParamMaps is .*ParamGridBuilder: give a list", {"estimatorParamMaps": ParamGridBuilder()}),
        ("estimatorParamMaps holds str: give a list of dicts", {"estimatorParamMaps": ["regParam"]}),
        ("evaluator must be an Evaluator .* got str", {"evaluator": "areaUnderROC"}),
        ("numFolds must be at least 2, but is 1", {"numFolds": 1}),
        (r"foldCol='folt' is not a column of the data. Did you mean 'fold'\?", {"foldCol": "folt"}),
    ):
        whole = {
            "estimator": head,
            "evaluator": judge,
            **({"estimatorParamMaps": grid} if len(given) < 2 else {}),
            **given,
        }
        with pytest.raises(InputError, match=words):
            sparkdiff.CrossValidator(**whole).fit(rows)
        with pytest.raises(InputError, match=words):
            sparkdiff.CrossValidator(**whole).explain(rows)
    with pytest.raises(InputError, match=r"metricName='areaUnderRocks'\): .* invalid value"):
        sparkdiff.CrossValidator(estimator=head, estimatorParamMaps=grid, evaluator=unknown).fit(rows)
    with pytest.raises(InputError, match=r"trainRatio must lie between 0 and 1, but is 1.0"):
        sparkdiff.TrainValidationSplit(estimator=head, estimatorParamMaps=grid, evaluator=judge, trainRatio=1.0).fit(
            rows
        )
    assert jobs() == 0
    for folds, words in ((2, "holds 2: with numFolds=2"), (4, "has no row of fold 3: numFolds is 4")):
        search = sparkdiff.CrossValidator(
            estimator=head, estimatorParamMaps=grid, evaluator=judge, foldCol="fold", numFolds=folds
        )
        with pytest.raises(InputError, match=words):
            search.fit(rows)


@pytest.mark.nightly
@pytest.mark.parametrize("label", ["rain", "word"])
def test_a_fold_that_is_trained_on_one_class_is_named(rows: DataFrame, label: str) -> None:
    """All rows of the other class are held out of it; also where the pipeline makes the label of a text."""
    every = rows.withColumn("word", F.when(F.col("rain") == 0, "dry").otherwise("wet"))
    data = every.where("rain = 0 or fold = 1")
    index = StringIndexer(inputCol="word", outputCol="wordIndex", handleInvalid="keep")
    head = LogisticRegression(labelCol="rain" if label == "rain" else "wordIndex", maxIter=2)
    given: dict[str, Any] = {
        "estimator": head if label == "rain" else Pipeline(stages=[index, head]),
        "estimatorParamMaps": [{}, {head.maxIter: 1}],
        "evaluator": BinaryClassificationEvaluator(labelCol=head.getLabelCol()),
        "foldCol": "fold",
        "numFolds": 3,
    }
    with pytest.raises(SparkError):
        tuning.CrossValidator(**given).fit(data)
    value = "0" if label == "rain" else "'dry'"
    words = rf"fold 1 is trained on rows of one class, {label}={value}.*: take fewer folds, or spread the classes"
    with pytest.raises(InputError, match=words):
        sparkdiff.CrossValidator(**given).fit(data)
    judge = BinaryClassificationEvaluator(labelCol="rain", rawPredictionCol="word")  # a text
    with pytest.raises(SparkError, match="word"):
        sparkdiff.CrossValidator(**given | {"evaluator": judge}).fit(every)


def test_a_fold_column_that_two_have_is_named(rows: DataFrame) -> None:
    head, judge = LogisticRegression(labelCol="rain"), BinaryClassificationEvaluator(labelCol="rain")
    search = sparkdiff.CrossValidator(estimator=head, estimatorParamMaps=[{}], evaluator=judge, foldCol="fold")
    with pytest.raises(InputError, match="foldCol='fold' matches 2 columns, 'fold', 'fold': rename all but one"):
        search.fit(rows.select("*", F.col("fold")))


class Bare:
    """Neither an Evaluator of Spark's nor one that has Params: all that Spark's classes ask for."""

    def evaluate(self, dataset: DataFrame) -> float:
        return float(dataset.where("prediction = rain").count())

    def isLargerBetter(self) -> bool:
        return True


def test_an_evaluator_without_params(rows: DataFrame) -> None:
    head = LogisticRegression(labelCol="rain", tol=1e-9, maxIter=1000)
    head.ring = [1]  # what a stage holds may hold itself
    head.ring.append(head.ring)
    maps = [{head.regParam: r} for r in (0.001, 10.0)]
    spark, own = both(rows, "TrainValidationSplit", estimator=head, estimatorParamMaps=maps, evaluator=Bare(), seed=3)
    assert found(own) == found(spark) and found(own)[0] != found(own)[1]


def test_a_grid_over_pipelines(rows: DataFrame) -> None:
    """Spark's way to compare several pipelines: a map gives the stages of one, and Params of these stages."""
    line, tree = LinearRegression(labelCol="riders", tol=1e-9), DecisionTreeRegressor(labelCol="riders", seed=1)
    pipeline = Pipeline(stages=[])
    grid = [
        *ParamGridBuilder().baseOn({pipeline.stages: [line]}).addGrid(line.regParam, [0.01, 30.0]).build(),
        *ParamGridBuilder().baseOn({pipeline.stages: [tree]}).addGrid(tree.maxDepth, [2]).build(),
    ]
    evaluator = RegressionEvaluator(labelCol="riders")
    given = {"estimatorParamMaps": grid, "evaluator": evaluator, "seed": 3}
    spark, own = both(rows, "TrainValidationSplit", estimator=pipeline, **given)
    inside = sparkdiff.TrainValidationSplit(estimator=Pipeline(stages=[pipeline]), **given).fit(rows)
    np.testing.assert_allclose(found(own), found(spark), rtol=1e-6)
    np.testing.assert_allclose(found(inside), found(spark), rtol=1e-6)
    assert len(set(found(own))) == 3


def test_a_metric_that_is_nan_cannot_win() -> None:
    assert best_of([0.5, 0.7, 0.6], True) == 1
    assert best_of([0.5, 0.7, 0.6], False) == 0
    with pytest.warns(UserWarning, match="NaN for 1 of 3 maps of the grid"):
        assert best_of([np.nan, 0.7, 0.6], True) == 1


def test_rows_that_are_not_in_memory_fall_into_the_same_folds(df: DataFrame) -> None:
    """What is drawn for a row depends on its place, which another plan over the same rows would change."""
    few = df.select("number", *(F.col(c).cast("double").alias(c) for c in NUMBERS), F.col("riders").cast("double"))
    shuffled = (
        few.groupBy("number").agg(*(F.first(c).alias(c) for c in [*NUMBERS, "riders"])).sortWithinPartitions("number")
    )
    regression = LinearRegression(labelCol="riders", tol=1e-9, maxIter=1000)
    maps = [{regression.maxIter: 1000}, {regression.maxIter: 50}]  # one model; the second is Spark's
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="features"), regression])
    spark, own = both(
        shuffled,
        estimator=pipeline,
        estimatorParamMaps=maps,
        evaluator=RegressionEvaluator(labelCol="riders"),
        seed=3,
        numFolds=2,
    )
    np.testing.assert_allclose(found(own), found(spark), rtol=1e-6)
    assert found(own)[0] == pytest.approx(found(own)[1], rel=1e-6)


@pytest.mark.nightly  # which numbers are that far: test_judges
def test_a_number_far_from_all_others_is_left_to_spark(rows: DataFrame) -> None:
    far = rows.withColumn("features", F.col("features"))
    first = F.col("number") == F.lit(rows.agg(F.min("number")).head()[0])
    assembled = VectorAssembler(inputCols=["far", *NUMBERS[1:]], outputCol="x")
    far = assembled.transform(
        far.withColumn("far", F.when(first, 9999999999.0).otherwise(F.col(NUMBERS[0]).cast("double")))
    )
    regression = LinearRegression(labelCol="riders", featuresCol="x", tol=1e-9, maxIter=1000)
    evaluator = RegressionEvaluator(labelCol="riders", metricName="mae")
    maps = [{regression.regParam: r} for r in (0.01, 0.1)]
    given = {
        "estimator": regression,
        "estimatorParamMaps": maps,
        "evaluator": evaluator,
        "foldCol": "fold",
        "numFolds": 3,
    }
    spark, own = both(far, **given)
    np.testing.assert_allclose(found(own), found(spark), rtol=1e-9)


def test_rows_that_the_caller_keeps_in_memory_stay_there(rows: DataFrame) -> None:
    regression, evaluator = LinearRegression(labelCol="riders"), RegressionEvaluator(labelCol="riders")
    given = {"estimator": regression, "estimatorParamMaps": [{regression.regParam: 0.1}], "evaluator": evaluator}
    search = sparkdiff.CrossValidator(**given, foldCol="fold", numFolds=3)
    search.fit(rows)
    assert rows.storageLevel.useMemory
    told = search.explain(rows).reasons
    assert "solutions are the optimum; at tol=1e-06 Spark stops a little before it where it iterates" in told


def test_a_param_of_the_evaluator_changes_nothing_as_in_spark(rows: DataFrame) -> None:
    regression, evaluator = LinearRegression(labelCol="riders"), RegressionEvaluator(labelCol="riders")
    maps = [{regression.regParam: 0.1, evaluator.metricName: "mae"}, {regression.regParam: 0.1}]
    own = sparkdiff.TrainValidationSplit(
        estimator=regression, estimatorParamMaps=maps, evaluator=evaluator, seed=1
    ).fit(rows)
    assert found(own)[0] == found(own)[1]
