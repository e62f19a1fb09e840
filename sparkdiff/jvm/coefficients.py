"""Coefficients of fitted linear stages, read as a matrix and written back; the number of features may change."""

from typing import Any

import numpy as np
from pyspark.ml.linalg import DenseMatrix, DenseVector, SparseMatrix, Vectors

from sparkdiff.jvm.rebuilding import rebuild

Array = np.ndarray[Any, Any]


def matrix_of(stage: Any) -> Array:
    """Coefficients, (1, d), or (k, d) for a LogisticRegressionModel with a row for each class."""
    if hasattr(stage, "coefficientMatrix"):
        return np.asarray(stage.coefficientMatrix.toArray())
    return np.atleast_2d(stage.coefficients.toArray())


def stored_of(stage: Any) -> Array:
    """Mask of the coefficients that Spark stores, (1, d) or (k, d) bool. Spark never multiplies a coefficient that it
    does not store, not even by NaN.
    """
    if hasattr(stage, "coefficientMatrix"):
        matrix = stage.coefficientMatrix
        if isinstance(matrix, DenseMatrix):
            return np.ones((matrix.numRows, matrix.numCols), np.bool_)
        return np.asarray(
            SparseMatrix(
                matrix.numRows,
                matrix.numCols,
                matrix.colPtrs,
                matrix.rowIndices,
                np.ones(len(matrix.values)),
                matrix.isTransposed,
            ).toArray()
            != 0
        )
    vector = stage.coefficients
    out = np.full((1, len(vector)), isinstance(vector, DenseVector))
    if not isinstance(vector, DenseVector):
        out[0, vector.indices] = True
    return out


def intercepts_of(stage: Any) -> Array:
    """Intercepts, (1,) or (k,)."""
    if hasattr(stage, "interceptVector"):
        return np.asarray(stage.interceptVector.toArray())
    return np.array([float(stage.intercept)])


def with_coefficients(stage: Any, matrix: Array, intercepts: Array | None = None, stored: Array | None = None) -> Any:
    """A new fitted stage of the same class, uid and Params with these coefficients.

    Args:
        matrix: (1, d) or (k, d), as returned by `matrix_of`; d may differ from that of the stage.
        intercepts: (1,) or (k,); None keeps them.
        stored: mask of the coefficients that Spark stores; None stores them all.
    """
    intercepts = intercepts_of(stage) if intercepts is None else intercepts
    sparse = stored is not None and not stored.all()
    if hasattr(stage, "coefficientMatrix"):
        weights = {
            "coefficientMatrix": _sparse_matrix(matrix, stored) if sparse else matrix,
            "interceptVector": intercepts,
            "numClasses": stage.numClasses,
            "isMultinomial": len(matrix) > 1,
        }
        return rebuild(stage, weights, beside={"numFeatures": matrix.shape[1]})
    vector = matrix[0]
    if sparse:
        places = np.flatnonzero(stored[0])  # type: ignore[index]
        vector = Vectors.sparse(len(vector), places.tolist(), vector[places].tolist())
    # The scale is that of a LinearRegression or of a survival regression.
    scale = {"scale": float(stage.scale)} if hasattr(stage, "scale") else {}
    return rebuild(stage, {"coefficients": vector, "intercept": float(intercepts[0]), **scale})


def _sparse_matrix(matrix: Array, stored: Any) -> SparseMatrix:
    """Sparse matrix, row by row, as LogisticRegressionModel requires."""
    rows, columns = np.nonzero(stored)
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    k, d = matrix.shape
    return SparseMatrix(k, d, ends.tolist(), columns.tolist(), matrix[rows, columns].tolist(), True)
