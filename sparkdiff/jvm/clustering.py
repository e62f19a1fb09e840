"""Cluster models rebuilt with new centres or Gaussians, by their Scala constructors or by rewriting the saved data."""

from typing import Any

import numpy as np
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import DenseMatrix, Vectors
from pyspark.mllib.linalg import Matrices as OldMatrices, Vectors as OldVectors

from sparkdiff.jvm.files import read_rows, saved, table_of, write_rows
from sparkdiff.jvm.rebuilding import made_of, rebuild, rebuilt
from sparkdiff.jvm.sessions import model_at, session


def k_means(stage: Any, centers: np.ndarray) -> Any:
    """A KMeansModel like `stage` with these centres (k, d). Its training cost and iterations stay those of the fit."""

    def construct(old: Any) -> Any:
        context: Any = session().sparkContext
        mllib, parent = context._jvm.org.apache.spark.mllib, old._java_obj.parentModel()
        vectors = context._gateway.new_array(mllib.linalg.Vector, len(centers))
        for i, center in enumerate(centers):
            vectors[i] = mllib.linalg.Vectors.fromML(_py2java(context, Vectors.dense(center)))
        model = mllib.clustering.KMeansModel(vectors, parent.distanceMeasure(), parent.trainingCost(), parent.numIter())
        return made_of(old, model)

    def rewrite(old: Any) -> Any:
        with saved(old) as where:
            schema = read_rows(f"{where}/data").schema
            rows = [(i, Vectors.dense(center)) for i, center in enumerate(centers)]
            write_rows(f"{where}/data", table_of(rows, schema))
            return type(old).load(model_at(where))

    return rebuilt(stage, construct, rewrite)


def gaussian_mixture(stage: Any, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> Any:
    """A GaussianMixtureModel like `stage` of these weights (k,), means (k, d) and covariances (k, d, d)."""
    centers = [Vectors.dense(m) for m in means]
    spreads = [DenseMatrix(len(c), len(c), c.ravel("F")) for c in covariances]

    def construct(old: Any) -> Any:
        context: Any = session().sparkContext
        gaussian, gateway = context._jvm.org.apache.spark.ml.stat.distribution.MultivariateGaussian, context._gateway
        shares, gaussians = (
            gateway.new_array(context._jvm.double, len(weights)),
            gateway.new_array(gaussian, len(weights)),
        )
        for i, (weight, mean, covariance) in enumerate(zip(weights, centers, spreads, strict=True)):
            shares[i], gaussians[i] = float(weight), gaussian(_py2java(context, mean), _py2java(context, covariance))
        return made_of(old, shares, gaussians)

    def rewrite(old: Any) -> Any:
        mus, sigmas = [OldVectors.fromML(c) for c in centers], [OldMatrices.fromML(s) for s in spreads]
        return rebuild(old, {"weights": weights.tolist(), "mus": mus, "sigmas": sigmas})

    return rebuilt(stage, construct, rewrite)
