"""KMeans and GaussianMixture with any weights, and the rows that Spark takes for them."""

from typing import Any

import numpy as np
from pyspark.ml.clustering import GaussianMixture, KMeans
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.jvm import mllib
from tests.support.stages_and_rows import COLUMNS, adversarial, sparse

WIDTHS = (1, 3)


def fitted(spark: SparkSession) -> dict[str, Any]:
    """One fitted stage of each class, to be rebuilt with other weights."""
    data = [(Vectors.dense(v),) for v in ([1.0, 2.0], [2.0, 1.0], [9.0, 5.0], [8.0, 6.0])]
    df = spark.createDataFrame(data, ["features"]).coalesce(1).cache()
    return {
        "euclidean": KMeans(k=2, seed=1, maxIter=1).fit(df),
        "cosine": KMeans(k=2, seed=1, maxIter=1, distanceMeasure="cosine").fit(df),
        "mixture": GaussianMixture(k=2, seed=1, maxIter=1).fit(df),
    }


def framed(spark: SparkSession, rows: list[np.ndarray]) -> DataFrame:
    data = [(Vectors.dense(v) if i % 2 else sparse(v), Vectors.dense(v), sparse(v)) for i, v in enumerate(rows)]
    return spark.createDataFrame(data, list(COLUMNS)).repartition(3).cache()


def rows_of(spark: SparkSession) -> dict[tuple[str, int], DataFrame]:
    """By measure and width; Spark refuses NaN where there are distances, and zeros where there are cosines."""
    out = {}
    for width in WIDTHS:
        every = adversarial(width)
        known = [v for v in every if not np.isnan(v).any()]
        with np.errstate(over="ignore", under="ignore"):
            turned = [v for v in known if (v * v).sum() > 0]
        out |= {
            ("mixture", width): framed(spark, every),
            ("euclidean", width): framed(spark, known),
            ("cosine", width): framed(spark, turned),
        }
    return out


def k_means(base: Any, random: np.random.Generator, width: int, clusters: int) -> Any:
    centers = random.normal(size=(clusters, width)) * 10.0 ** random.integers(-2, 3)
    centers[-1] = centers[0]  # the first of two equal ones wins
    if base.getDistanceMeasure() == "cosine":
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    elif clusters > 3:
        centers[2], centers[1] = 0.0, 1e155  # whose squares are infinite
    return mllib.k_means(base, centers)


def mixture(base: Any, random: np.random.Generator, width: int, clusters: int, kind: str) -> Any:
    weights = random.dirichlet(np.ones(clusters))
    roots = random.normal(size=(clusters, width, width)) * 10.0 ** random.integers(-2, 2)
    covariances = roots @ roots.transpose(0, 2, 1)
    if kind == "singular":  # one by exact zeros, the others but for rounding
        covariances = roots[:, :, 1:] @ roots[:, :, 1:].transpose(0, 2, 1)
        covariances[0, 0] = covariances[0, :, 0] = 0.0
    if kind == "no weight" and clusters > 1:
        weights = np.array([0.0, *weights[1:] / weights[1:].sum()])
    return mllib.gaussian_mixture(base, weights, random.normal(size=(clusters, width)), covariances)
