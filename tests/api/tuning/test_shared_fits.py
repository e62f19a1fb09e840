"""Models of settings that share a fit, against Spark's own fit of each: the same weights, Params and rows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Estimator, Pipeline, classification as c, feature as f, tuning
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.ml.regression import GBTRegressor
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import jvm
from sparkdiff.tuning import shared_fits
from sparkdiff.tuning.trie import Fit
from tests.support.small_data import NUMBERS

Maps = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> Iterator[DataFrame]:
    """In one partition, so that sums are the same to the last bit."""
    few = df.where("number < 240").withColumns(
        {
            "one": F.lit(1.0),
            "count": F.floor(F.abs("wind") * 3) * F.col("held").cast("int"),
            "thing": F.col("number") % 7,
            "share": 0.5 + F.col("hum") ** 2,
            "words": F.split(F.concat_ws(" ", "hour", F.when(F.col("wind") > 0, F.col("hour")), F.lit("all")), " "),
            "class": (F.col("wind") > 0).cast("double") + (F.col("hum") > 1).cast("double"),
        }
    )
    pieces = Pipeline(
        stages=[
            f.VectorAssembler(inputCols=[*NUMBERS, "one", "count"], outputCol="x"),
            f.VectorAssembler(inputCols=["count", "class"], outputCol="counts"),
            f.VectorAssembler(inputCols=["rain", "one"], outputCol="flags"),
        ]
    )
    data = pieces.fit(few).transform(few).coalesce(1).cache()
    data.count()
    yield data
    data.unpersist()


def settings_of(stage: Any, maps: Maps) -> list[Fit]:
    return [Fit(0, {stage.getParam(name): value for name, value in given.items()}, [i]) for i, given in enumerate(maps)]


def answered(stage: Any, maps: Maps, rows: DataFrame, fits: int = 1) -> list[tuple[Any, Any]]:
    """Of each setting the model of `models` and Spark's."""
    settings = settings_of(stage, maps)
    assert len(shared_fits.groups(stage, settings)) == fits
    found = {fit.settings[0]: model() for fit, model in shared_fits.models(stage, settings, rows)}
    return [(found[i], stage.fit(rows, fit.params)) for i, fit in enumerate(settings)]


def weights(model: Any) -> list[Any]:
    """What a fit has learned."""
    if hasattr(model, "treeWeights"):
        trunks = [text.partition("\n")[2] for text in (tree.toDebugString for tree in model.trees)]
        return [trunks, list(model.treeWeights), model.featureImportances, model.getNumTrees]
    names = (
        "pc",
        "explainedVariance",
        "idf",
        "docFreq",
        "numDocs",
        "mean",
        "std",
        "originalMin",
        "originalMax",
        "median",
        "range",
        "labelsArray",
        "categorySizes",
        "vocabulary",
        "categoryMaps",
        "coefficientMatrix",
        "toDebugString",
        "rank",
        "selectedFeatures",
    )
    held = [getattr(model, name) for name in names if hasattr(model, name)]
    return [str(one).partition("\n")[2] if isinstance(one, str) else one for one in held]


close = partial(np.testing.assert_allclose, rtol=1e-12)


def given_params(model: Any) -> dict[str, Any]:
    return {name: dict(sorted(values.items())) for name, values in jvm.defined_params(model).items()}


def same(one: Any, other: Any, rows: DataFrame) -> None:
    assert type(one) is type(other) and one.uid == other.uid
    assert weights(one) == weights(other)
    assert given_params(one) == given_params(other)
    mine, theirs = one.transform(rows), other.transform(rows)
    assert [(field.name, field.metadata) for field in mine.schema] == [
        (field.name, field.metadata) for field in theirs.schema
    ]
    new = [name for name in mine.columns if name not in rows.columns]
    found = [part.select(new).toPandas() for part in (mine, theirs)]
    if hasattr(one, "theta"):  # logarithms of another library
        for name in ("pi", "theta", "sigma"):
            close(getattr(one, name).toArray(), getattr(other, name).toArray())
        raw = [np.stack([vector.toArray() for vector in part.pop("rawPrediction")]) for part in found]
        close(*raw)
        found = [part[["prediction"]] for part in found]
    if isinstance(one, ALSModel):  # whose joins shuffle the rows
        found = [part.sort_values(new, ignore_index=True) for part in found]
    assert found[0].equals(found[1])
    assert jvm.java_params(one) == jvm.java_params(other)


BOOSTED = {"featuresCol": "x", "maxDepth": 2, "maxBins": 8, "labelCol": "rain"}
BETWEEN = {"inputCol": "x", "outputCol": "y"}
SELECTED = {"featuresCol": "x", "outputCol": "y"}
TESTED = SELECTED | {"labelCol": "class"}
COUNTED = {"featuresCol": "counts", "labelCol": "class"}
CASES: list[tuple[Any, dict[str, Any], Maps, int]] = [
    (f.PCA, BETWEEN | {"k": 3}, [{"k": 1}, {}, {"k": 6}, {"k": 2, "outputCol": "z"}], 1),
    (f.IDF, BETWEEN | {"inputCol": "counts", "minDocFreq": 100}, [{"minDocFreq": 0}, {"minDocFreq": 60}, {}], 1),
    (f.StandardScaler, BETWEEN | {"withMean": True}, [{"withStd": False}, {}, {"withMean": False}], 1),
    (f.MinMaxScaler, BETWEEN | {"min": 2.0}, [{"max": 3.0}, {"min": 0.0, "max": 5.0}, {"max": 9.0}], 1),
    (f.RobustScaler, BETWEEN, [{"withCentering": True}, {}, {"lower": 0.1, "withScaling": False}, {"lower": 0.1}], 2),
    (f.StringIndexer, BETWEEN | {"inputCol": "hour"}, [{"handleInvalid": "keep"}, {}, {"handleInvalid": "skip"}], 1),
    (f.OneHotEncoder, BETWEEN | {"inputCol": "class"}, [{"dropLast": False}, {}, {"handleInvalid": "keep"}], 1),
    (f.VectorIndexer, BETWEEN | {"inputCol": "counts", "maxCategories": 4}, [{"handleInvalid": "keep"}, {}], 1),
    (f.CountVectorizer, BETWEEN | {"inputCol": "words"}, [{"binary": True}, {}, {"minTF": 2.0}, {"minDF": 2.0}], 2),
    (f.UnivariateFeatureSelector, TESTED, [{"selectionThreshold": 2}, {"selectionThreshold": 9}, {}], 2),
    (f.VarianceThresholdSelector, SELECTED, [{"varianceThreshold": 1.0}, {}, {"varianceThreshold": 99.0}], 1),
    (
        c.GBTClassifier,
        BOOSTED | {"subsamplingRate": 0.7, "featureSubsetStrategy": "onethird", "stepSize": 0.3},
        [{"maxIter": 1}, {"maxIter": 3, "thresholds": [0.3, 0.7]}],
        1,
    ),
    (GBTRegressor, BOOSTED | {"weightCol": "share", "maxIter": 3}, [{}, {"maxIter": 1, "leafCol": "leaf"}], 1),
    (c.NaiveBayes, COUNTED, [{"thresholds": [0.2, 0.3, 0.5]}, {}, {"smoothing": 0.5}], 1),
    (c.NaiveBayes, COUNTED | {"modelType": "complement", "weightCol": "weight"}, [{}, {"smoothing": 0.0}], 1),
    (c.NaiveBayes, COUNTED | {"modelType": "bernoulli", "featuresCol": "flags"}, [{"smoothing": 9.0}, {}], 1),
    (c.NaiveBayes, COUNTED | {"modelType": "gaussian"}, [{"smoothing": 9.0}, {}], 1),
    (
        c.LogisticRegression,
        {"featuresCol": "x", "labelCol": "rain", "maxIter": 2},
        [{"threshold": 0.3}, {"thresholds": [0.2, 0.8]}, {}],
        1,
    ),
    (
        ALS,
        {
            "userCol": "user",
            "itemCol": "thing",
            "ratingCol": "wind",
            "rank": 1,
            "maxIter": 1,
            "numUserBlocks": 1,
            "numItemBlocks": 1,
        },
        [{"coldStartStrategy": "drop"}, {}],
        1,
    ),
]


class Own(f.PCA):
    """What a subclass fits is not known."""


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "given", "maps", "fits"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_models_are_those_of_sparks_own_fits(
    rows: DataFrame, kind: Any, given: dict[str, Any], maps: Maps, fits: int
) -> None:
    stage = kind(**given)
    if kind is f.UnivariateFeatureSelector:
        stage.setFeatureType("continuous").setLabelType("categorical")
    for ours, theirs in answered(stage, maps, rows, fits):
        same(ours, theirs, rows.limit(60))


@pytest.mark.parametrize(
    ("kind", "given", "maps"),
    [
        (GBTRegressor, {"validationIndicatorCol": "held"}, [{"maxIter": 1}, {"maxIter": 2}]),
        (GBTRegressor, {}, [{"maxIter": 1, "stepSize": 0.1}, {"maxIter": 2, "stepSize": 0.2}]),
        (GBTRegressor, {"maxIter": 0}, [{}, {"maxIter": 2}]),
        (f.UnivariateFeatureSelector, {"selectionMode": "fpr"}, [{"selectionThreshold": 0.1}, {}]),
        (f.UnivariateFeatureSelector, {}, [{"selectionThreshold": 1.5}, {"selectionThreshold": 2}]),
        (f.CountVectorizer, {}, [{"vocabSize": 2}, {"vocabSize": 3}]),
        (f.RobustScaler, {}, [{"lower": 0.1}, {"lower": 0.2}]),
        (c.DecisionTreeClassifier, {}, [{"maxDepth": 1}, {"maxDepth": 2}]),
        (Own, {}, [{"k": 1}, {"k": 2}]),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_one_fit_cannot_answer_for_is_fitted_apart(
    spark: SparkSession, kind: Any, given: dict[str, Any], maps: Maps
) -> None:
    stage = kind(**given)
    assert len(shared_fits.groups(stage, settings_of(stage, maps))) == 2


@pytest.mark.nightly
def test_the_most_boosted_trees_are_fitted_once_per_fold(
    rows: DataFrame, jobs: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pca = f.PCA(inputCol="x", outputCol="components", k=2)
    boosted = c.GBTClassifier(featuresCol="components", labelCol="rain", maxDepth=1, maxBins=8)
    grid = ParamGridBuilder().addGrid(pca.k, [2, 3]).addGrid(boosted.maxIter, [1, 3]).build()
    judge = BinaryClassificationEvaluator(labelCol="rain")
    given = {
        "estimator": Pipeline(stages=[pca, boosted]),
        "estimatorParamMaps": grid,
        "evaluator": judge,
        "seed": 2,
        "collectSubModels": True,
        "parallelism": 2,
    }
    jobs()
    theirs = tuning.TrainValidationSplit(**given).fit(rows)
    their_jobs, fits = jobs(), []
    original = Estimator.fit
    monkeypatch.setattr(Estimator, "fit", lambda s, *a: fits.append(type(s).__name__) or original(s, *a))  # type: ignore[func-returns-value]
    search = sparkdiff.TrainValidationSplit(**given)
    ours = search.fit(rows)
    assert jobs() < their_jobs
    assert (fits.count("PCA"), fits.count("GBTClassifier")) == (1 + 1, 2 + 1)  # the last ones: the winner
    assert ours.validationMetrics == theirs.validationMetrics
    for one, other in zip(ours.subModels, theirs.subModels, strict=True):
        for mine, own in zip(one.stages, other.stages, strict=True):
            assert weights(mine) == weights(own)
            assert given_params(mine) == given_params(own)
    told = search.explain(rows)
    assert (told.sparkFits, told.fits) == (8, 3)
    assert {
        "PCA: k=2 has the first components of the fit with k=3",
        "GBTClassifier: maxIter=1 has the first trees of the fit with maxIter=3",
    } <= {*told.reasons}
