"""Fits that several settings share: settings that differ only in Params that Spark's `fit` does not read, or in a Param
such as the number of boosted trees, where the models of all values can be derived from a single fit.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pyspark.ml import classification, feature
from pyspark.ml.recommendation import ALS
from pyspark.ml.regression import GBTRegressor
from pyspark.ml.stat import Summarizer
from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.jvm import mllib, trees
from sparkdiff.machine.threads import SharedResults
from sparkdiff.tuning import trie

OUTPUTS = frozenset(("outputCol", "outputCols", "predictionCol", "rawPredictionCol", "probabilityCol", "leafCol"))
Get = Callable[[str], Any]
"""Function of a Param's name that returns the Param's value in a setting."""
Models = Callable[[Any], Any]
"""Function of another value of a Param that returns the model that Spark's own fit with that value would return."""


@dataclass(frozen=True)
class DerivedParam:
    """A Param of which one value is fitted, and the models of all other values are derived from that fit.

    Attributes:
        best: function that chooses, among all requested values, the one to fit.
        models: function of the fitted model and its training rows that returns a function: another value -> the model
            that Spark's fit with that value returns.
        told: the part of the fit that other values use, in words, for `explain`.
        able: whether models can be derived, given the other Params of a setting.
    """

    param: str
    best: Callable[[Iterable[Any]], Any]
    models: Callable[[Any, DataFrame], Models]
    told: str
    able: Callable[[Get], bool] = lambda _get: True


@dataclass(frozen=True)
class SharedParams:
    """The Params of an estimator's class in which settings may differ and still share a fit.

    Attributes:
        unread: Params that Spark's `fit` does not read: they only affect the model's `transform`.
        derived: one more such Param, which `fit` reads; None if there is none.
    """

    unread: frozenset[str]
    derived: DerivedParam | None = None


def _boosts(get: Get) -> bool:
    """True if models of fewer trees can be derived: Java's constructors can be called, and the fit has trees and keeps
    all of them. With a validation column a fit may stop early and drop its last trees.
    """
    return not get("validationIndicatorCol") and get("maxIter") > 0 and jvm.has_constructors()


def _counts_features(get: Get) -> bool:
    count = get("selectionThreshold")
    return get("selectionMode") == "numTopFeatures" and count is not None and count >= 1 and count == int(count)


def first_trees(model: Any, _rows: DataFrame) -> Models:
    """Models by `maxIter`: the first trees, as each tree is fitted to the residuals of those before it."""
    return lambda count: trees.first(model, count)


def components(model: Any, _rows: DataFrame) -> Models:
    """Models by `k`: Spark decomposes the whole covariance matrix and keeps the first components."""
    matrix, share = model.pc.toArray(), model.explainedVariance.toArray()
    return lambda k: jvm.rebuild(model, {"pc": matrix[:, :k], "explainedVariance": share[:k]})


def frequent(model: Any, _rows: DataFrame) -> Models:
    """Models by `minDocFreq`: terms in fewer documents get an IDF of 0 and, in Spark, a document frequency of 0."""
    counts, idf = np.array(model.docFreq), model.idf.toArray()

    def of(least: int) -> Any:
        held = counts >= least
        return mllib.idf(model, np.where(held, idf, 0.0), np.where(held, counts, 0))

    return of


def top_features(model: Any, _rows: DataFrame) -> Models:
    """Models by `selectionThreshold` as the number of features: Spark lists features by test result, the best first."""
    best = np.array(model.selectedFeatures, np.int64)
    return lambda count: mllib.selector(model, best[: int(count)])


def varying(model: Any, rows: DataFrame) -> Models:
    """Models by `varianceThreshold`, from the features' variances; takes one job.

    Source: org.apache.spark.ml.feature.VarianceThresholdSelector.fit.
    """
    summary = Summarizer.metrics("max", "min", "variance").summary(F.col(model.getOrDefault("featuresCol")))
    high, low, variance = (part.toArray() for part in rows.select(summary).collect()[0][0])
    variance = np.where(high == low, 0.0, variance)
    return lambda least: mllib.selector(model, np.flatnonzero(variance > least))


def smoothed_models(model: Any, rows: DataFrame) -> Models:
    """Models by `smoothing`, from Spark's closed forms in the counts of the classes.

    Source: org.apache.spark.ml.classification.NaiveBayes.trainDiscreteImpl. A Gaussian model is not smoothed.
    """
    kind = model.getOrDefault("modelType")
    if kind == "gaussian":
        return lambda _smoothing: model
    sizes, counts = _by_class(model, rows)
    if kind == "complement":
        counts = counts.sum(0) - counts

    def of(smoothing: float) -> Any:
        with np.errstate(divide="ignore"):  # without smoothing a feature may have probability 0 in a class
            pi = np.log(sizes + smoothing) - np.log(sizes.sum() + len(sizes) * smoothing)
            words, values = (sizes, 2) if kind == "bernoulli" else (counts.sum(1), counts.shape[1])
            totals = words + values * smoothing
            theta = np.log(counts + smoothing) - np.log(totals)[:, None]
        weights = {"pi": pi, "theta": -theta if kind == "complement" else theta, "sigma": np.zeros((0, 0))}
        return jvm.rebuild(model, weights)

    return of


def _by_class(model: Any, rows: DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Sums of weights (k,) and of weighted features (k, d) of each class; takes one job."""
    weight = model.getOrDefault("weightCol") if model.isDefined("weightCol") else ""
    w = F.col(weight).cast("double") if weight else F.lit(1.0)
    label, features = (F.col(model.getOrDefault(name)) for name in ("labelCol", "featuresCol"))
    found = rows.select(label.cast("double").alias("label"), w.alias("w"), features.alias("x")).groupBy("label")
    sums = found.agg(F.sum("w"), Summarizer.metrics("sum").summary(F.col("x"), F.col("w")).alias("x")).collect()
    sums.sort(key=lambda row: row[0])
    return np.array([row[1] for row in sums]), np.array([row[2][0].toArray() for row in sums])


TREES = DerivedParam("maxIter", max, first_trees, "the first trees", _boosts)
CUTS = OUTPUTS | {"thresholds"}
SHARED: dict[Any, SharedParams] = {
    classification.LogisticRegression: SharedParams(CUTS | {"threshold"}),
    classification.LinearSVC: SharedParams(OUTPUTS | {"threshold"}),
    classification.DecisionTreeClassifier: SharedParams(CUTS),
    classification.RandomForestClassifier: SharedParams(CUTS),
    classification.GBTClassifier: SharedParams(CUTS, TREES),
    classification.NaiveBayes: SharedParams(CUTS, DerivedParam("smoothing", min, smoothed_models, "the counts")),
    classification.MultilayerPerceptronClassifier: SharedParams(CUTS),
    classification.FMClassifier: SharedParams(CUTS),
    GBTRegressor: SharedParams(OUTPUTS, TREES),
    ALS: SharedParams(OUTPUTS | {"coldStartStrategy"}),
    feature.StringIndexer: SharedParams(OUTPUTS | {"handleInvalid"}),
    feature.OneHotEncoder: SharedParams(OUTPUTS | {"handleInvalid", "dropLast"}),
    feature.VectorIndexer: SharedParams(OUTPUTS | {"handleInvalid"}),
    feature.StandardScaler: SharedParams(OUTPUTS | {"withMean", "withStd"}),
    feature.MinMaxScaler: SharedParams(OUTPUTS | {"min", "max"}),
    feature.RobustScaler: SharedParams(OUTPUTS | {"withCentering", "withScaling"}),
    feature.CountVectorizer: SharedParams(OUTPUTS | {"binary", "minTF"}),
    feature.PCA: SharedParams(
        OUTPUTS, DerivedParam("k", max, components, "the first components", lambda get: get("k") is not None)
    ),
    feature.IDF: SharedParams(OUTPUTS, DerivedParam("minDocFreq", min, frequent, "the counts")),
    feature.UnivariateFeatureSelector: SharedParams(
        OUTPUTS, DerivedParam("selectionThreshold", max, top_features, "the best features", _counts_features)
    ),
    feature.VarianceThresholdSelector: SharedParams(
        OUTPUTS, DerivedParam("varianceThreshold", min, varying, "the variances")
    ),
}
"""Shared Params by class. Subclasses are excluded, because their `fit` may read any Param."""


def knows(stage: Any) -> bool:
    """True if settings of this stage may share a fit."""
    return type(stage) in SHARED


def groups(stage: Any, fits: Sequence[trie.Fit]) -> list[list[trie.Fit]]:
    """Groups of settings of a stage on the same rows. A group shares one fit, which is made for its first setting."""
    shared = SHARED.get(type(stage))
    if shared is None:
        return [[fit] for fit in fits]
    found: dict[Any, list[trie.Fit]] = {}
    for fit in fits:
        able = shared.derived is not None and shared.derived.able(_values(stage, fit))
        names = shared.unread | ({shared.derived.param} if shared.derived and able else set())
        rest = {param: value for param, value in fit.params.items() if param.name not in names}
        found.setdefault((able, trie.key(rest)), []).append(fit)
    return [_best_first(stage, shared.derived if able else None, group) for (able, _), group in found.items()]


def _best_first(stage: Any, derived: DerivedParam | None, group: list[trie.Fit]) -> list[trie.Fit]:
    if derived is None:
        return group
    values = [_values(stage, fit)(derived.param) for fit in group]
    first = values.index(derived.best(values))
    return [group[first], *group[:first], *group[first + 1 :]]


def models(stage: Any, fits: Sequence[trie.Fit], rows: DataFrame) -> list[tuple[trie.Fit, Callable[[], Any]]]:
    """Each setting with a function that returns its model. Call each function once, in this order, from any thread."""
    found = [_answers(stage, group, rows) for group in groups(stage, fits)]
    return [*(first for first, *_ in found), *(other for _, *rest in found for other in rest)]


def _answers(stage: Any, group: Sequence[trie.Fit], rows: DataFrame) -> list[tuple[trie.Fit, Callable[[], Any]]]:
    """Each setting of a group with a function that returns its model; the group shares the fit of its first setting."""
    one, *rest = group
    made = SharedResults()
    # A copy of the stage, because several folds may fit it at the same time.
    fitted = partial(made.once, "fitted", lambda: stage.copy(one.params).fit(rows))
    if not rest:
        return [(one, fitted)]
    shared, kept = SHARED[type(stage)], _values(stage, one)
    derived = shared.derived
    derive: Callable[[], Any] = partial(
        made.once, "derived", lambda: derived.models(fitted(), rows) if derived else None
    )

    def answer(fit: trie.Fit) -> Any:
        model, names = fitted(), shared.unread
        if derived:
            names, value = names | {derived.param}, _values(stage, fit)(derived.param)
            if value != kept(derived.param):
                model = derive()(value)
        return _with_params(model, stage.copy(fit.params), names)

    return [(one, fitted), *((fit, partial(answer, fit)) for fit in rest)]


def _with_params(model: Any, estimator: Any, names: Iterable[str]) -> Any:
    """A copy of the model with these Params set, or left unset, as on the estimator."""
    held, new = [name for name in names if model.hasParam(name)], model.copy()
    for name in held:  # clear first: a model refuses a threshold together with thresholds
        if new.isSet(name) and not estimator.isSet(name):
            jvm.clear_param(new, new.getParam(name))
    return new.copy({new.getParam(name): estimator.getOrDefault(name) for name in held if estimator.isSet(name)})


def remarks(stage: Any, fits: Sequence[trie.Fit]) -> list[str]:
    """Remarks for `explain` about settings of a stage that share a fit on the same rows."""
    out, kind = [], type(stage).__name__
    for one, *rest in groups(stage, fits):
        shared, both = SHARED.get(type(stage)), [one, *rest]
        if shared is None or not rest:
            continue
        if shared.derived:
            name = shared.derived.param
            best, *others = dict.fromkeys(_values(stage, fit)(name) for fit in both)
            if others:
                has = f"{name}={' and '.join(map(str, others))} {'have' if len(others) > 1 else 'has'}"
                out.append(f"{kind}: {has} {shared.derived.told} of the fit with {name}={best}")
        if names := sorted({param.name for fit in both for param in fit.params} & shared.unread):
            out.append(f"{kind}: settings that differ in {' and '.join(names)} only share a fit")
    return out


def _values(stage: Any, fit: trie.Fit) -> Get:
    """Function of a Param's name that returns its value in a setting; None if the Param has no value."""
    given = {param.name: param.typeConverter(value) for param, value in fit.params.items() if value is not None}

    def get(name: str) -> Any:
        return given.get(name, stage.getOrDefault(name) if stage.isDefined(name) else None)

    return get
