"""Fitted stages whose constructors take other objects made of the weights, mostly a model of spark.mllib: IDF, feature
selectors, IsotonicRegression, KMeans and GaussianMixture.
"""

from typing import Any

import numpy as np
from pyspark.ml.linalg import DenseMatrix, Vectors
from pyspark.mllib.linalg import Matrices as OldMatrices, Vectors as OldVectors

from sparkdiff.jvm.folders import model_at
from sparkdiff.jvm.java_objects import array, class_named, doubles, in_java, ints, longs, packages
from sparkdiff.jvm.rebuilding import made_of, model_with_weights, rebuild, rebuild_with
from sparkdiff.jvm.stage_files import read_rows, save_temporarily, table_of, write_rows


def idf(stage: Any, values: np.ndarray, docFreq: np.ndarray | None = None) -> Any:
    """An IDFModel like `stage` with other inverse document frequencies (d,); numDocs is kept.

    Args:
        docFreq: (d,) number of documents with each term; None keeps the counts.
    """

    def inner() -> Any:
        java = stage._java_obj
        counts = java.docFreq() if docFreq is None else longs(docFreq)
        return _packages().feature.IDFModel(_vector(values), counts, java.numDocs())

    counts = {} if docFreq is None else {"docFreq": docFreq.tolist()}
    return rebuild(stage, {"idf": values, **counts}, inner=inner)


def selector(stage: Any, indices: np.ndarray) -> Any:
    """A model like `stage`, a feature selector, that selects these features (s,)."""
    return rebuild(stage, {"selectedFeatures": indices.tolist()}, inner=lambda: ints(indices))


def isotonic(stage: Any, boundaries: np.ndarray, predictions: np.ndarray, rises: bool) -> Any:
    """An IsotonicRegressionModel like `stage` with these boundaries and predictions (m,)."""

    weights = _of_curve(boundaries, predictions, rises)
    return rebuild(stage, weights, inner=lambda: _curve(boundaries, predictions, rises))


def fitted_isotonic(estimator: Any, boundaries: np.ndarray, predictions: np.ndarray, rises: bool) -> Any:
    """The IsotonicRegressionModel that an unfitted IsotonicRegression would return with these boundaries and predictions (m,)."""
    weights = _of_curve(boundaries, predictions, rises)
    return model_with_weights(estimator, weights, inner=lambda: _curve(boundaries, predictions, rises))


def _of_curve(boundaries: np.ndarray, predictions: np.ndarray, rises: bool) -> dict[str, Any]:
    return {"boundaries": boundaries.tolist(), "predictions": predictions.tolist(), "isotonic": rises}


def _curve(boundaries: np.ndarray, predictions: np.ndarray, rises: bool) -> Any:
    return _packages().regression.IsotonicRegressionModel(doubles(boundaries), doubles(predictions), rises)


def k_means(stage: Any, centers: np.ndarray) -> Any:
    """A KMeansModel like `stage` with these centres (k, d). It keeps the training cost and iterations of the fit."""

    def construct(old: Any) -> Any:
        parent = old._java_obj.parentModel()
        vectors = array(class_named("org.apache.spark.mllib.linalg.Vector"), [_vector(center) for center in centers])
        facts = (parent.distanceMeasure(), parent.trainingCost(), parent.numIter())
        return made_of(old, _packages().clustering.KMeansModel(vectors, *facts))

    def rewrite(old: Any) -> Any:
        with save_temporarily(old) as where:
            rows = [(i, Vectors.dense(center)) for i, center in enumerate(centers)]
            write_rows(f"{where}/data", table_of(rows, read_rows(f"{where}/data").schema))
            return type(old).load(model_at(where))

    return rebuild_with(stage, construct, rewrite)


def gaussian_mixture(stage: Any, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> Any:
    """A GaussianMixtureModel like `stage` with these weights (k,), means (k, d) and covariances (k, d, d)."""
    centers = [Vectors.dense(m) for m in means]
    spreads = [DenseMatrix(len(c), len(c), c.ravel("F")) for c in covariances]

    def construct(old: Any) -> Any:
        kind = "org.apache.spark.ml.stat.distribution.MultivariateGaussian"
        gaussian = packages().org.apache.spark.ml.stat.distribution.MultivariateGaussian
        gaussians = [gaussian(in_java(mean), in_java(spread)) for mean, spread in zip(centers, spreads, strict=True)]
        return made_of(old, doubles(weights), array(class_named(kind), gaussians))

    def rewrite(old: Any) -> Any:
        mus, sigmas = [OldVectors.fromML(c) for c in centers], [OldMatrices.fromML(s) for s in spreads]
        return rebuild(old, {"weights": weights.tolist(), "mus": mus, "sigmas": sigmas})

    return rebuild_with(stage, construct, rewrite)


def _packages() -> Any:
    return packages().org.apache.spark.mllib


def _vector(values: np.ndarray) -> Any:
    """A vector of spark.mllib."""
    return _packages().linalg.Vectors.fromML(in_java(Vectors.dense(values)))
