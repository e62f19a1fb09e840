"""Models of other settings out of one fit and its rows: the model that Spark's own fit with that value would return.

Each function takes the fitted model and the rows of its fit, and returns value -> model.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from pyspark.ml.stat import Summarizer
from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.jvm import mllib, trees

Models = Callable[[Any], Any]


def first_trees(model: Any, rows: DataFrame) -> Models:
    """By `maxIter`: each tree is fitted to what those before it leave."""
    return lambda count: trees.first(model, count)


def components(model: Any, rows: DataFrame) -> Models:
    """By `k`: Spark decomposes the whole covariance, and keeps the first components."""
    matrix, share = model.pc.toArray(), model.explainedVariance.toArray()
    return lambda k: jvm.rebuild(model, {"pc": matrix[:, :k], "explainedVariance": share[:k]})


def frequent(model: Any, rows: DataFrame) -> Models:
    """By `minDocFreq`: terms of fewer documents have 0, which Spark takes for their number of documents too."""
    counts, idf = np.array(model.docFreq), model.idf.toArray()

    def of(least: int) -> Any:
        held = counts >= least
        return mllib.idf(model, np.where(held, idf, 0.0), np.where(held, counts, 0))

    return of


def top_features(model: Any, rows: DataFrame) -> Models:
    """By `selectionThreshold` as the number of features: Spark lists them by their tests, the best first."""
    best = np.array(model.selectedFeatures, np.int64)
    return lambda count: mllib.selector(model, best[: int(count)])


def varying(model: Any, rows: DataFrame) -> Models:
    """By `varianceThreshold`, of the features' variances; one job.

    Source: org.apache.spark.ml.feature.VarianceThresholdSelector.fit.
    """
    summary = Summarizer.metrics("max", "min", "variance").summary(F.col(model.getOrDefault("featuresCol")))
    high, low, variance = (part.toArray() for part in rows.select(summary).collect()[0][0])
    variance = np.where(high == low, 0.0, variance)
    return lambda least: mllib.selector(model, np.flatnonzero(variance > least))


def smoothed(model: Any, rows: DataFrame) -> Models:
    """By `smoothing`: Spark's closed forms of the classes' counts.

    Source: org.apache.spark.ml.classification.NaiveBayes.trainDiscreteImpl. A Gaussian model is not smoothed.
    """
    kind = model.getOrDefault("modelType")
    if kind == "gaussian":
        return lambda smoothing: model
    sizes, counts = _by_class(model, rows)
    if kind == "complement":
        counts = counts.sum(0) - counts

    def of(smoothing: float) -> Any:
        with np.errstate(divide="ignore"):  # without smoothing a feature may have no chance in a class
            pi = np.log(sizes + smoothing) - np.log(sizes.sum() + len(sizes) * smoothing)
            words, values = (sizes, 2) if kind == "bernoulli" else (counts.sum(1), counts.shape[1])
            totals = words + values * smoothing
            theta = np.log(counts + smoothing) - np.log(totals)[:, None]
        weights = {"pi": pi, "theta": -theta if kind == "complement" else theta, "sigma": np.zeros((0, 0))}
        return jvm.rebuild(model, weights)

    return of


def _by_class(model: Any, rows: DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The sums of weights (k,) and of weighted features (k, d), by one job."""
    weight = model.getOrDefault("weightCol") if model.isDefined("weightCol") else ""
    w = F.col(weight).cast("double") if weight else F.lit(1.0)
    label, features = (F.col(model.getOrDefault(name)) for name in ("labelCol", "featuresCol"))
    found = rows.select(label.cast("double").alias("label"), w.alias("w"), features.alias("x")).groupBy("label")
    sums = found.agg(F.sum("w"), Summarizer.metrics("sum").summary(F.col("x"), F.col("w")).alias("x")).collect()
    sums.sort(key=lambda row: row[0])
    return np.array([row[1] for row in sums]), np.array([row[2][0].toArray() for row in sums])
