"""Sparse vectors at the network's border: torch.sparse_csr in, and out where a stage keeps zeros."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession
from torch import Tensor

import sparkdiff
from sparkdiff.tensors.rows import SparseRows
from tests.support.stages_and_rows import Fitted, built, one_hot

WIDTH = 5
random = np.random.default_rng(0)
W = random.normal(size=(3, WIDTH))
STAGES: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    # name: (class, weights, Params, whether the first output is sparse)
    "StandardScaler": ("StandardScaler", {"std": np.array([1.0, 0.0, 2.0, 0.1, 7.0]), "mean": W[0]}, {}, True),
    "neither": ("StandardScaler", {"std": np.ones(5), "mean": W[0]}, {"withStd": False}, True),
    "with mean": (
        "StandardScaler",
        {"std": np.array([1.0, 0.0, 2.0, 0.1, 7.0]), "mean": W[0]},
        {"withMean": True},
        False,
    ),
    "mean only": ("StandardScaler", {"std": np.ones(5), "mean": W[0]}, {"withMean": True, "withStd": False}, False),
    "MinMaxScaler": ("MinMaxScaler", {"originalMin": W[0], "originalMax": W[0] + [1.0, 0.0, 2.0, 3.0, 4.0]}, {}, False),
    "PCA": ("PCA", {"pc": W.T.copy(), "explainedVariance": np.ones(3)}, {"k": 3}, False),
    "LinearRegression": ("LinearRegression", {"coefficients": W[0], "intercept": 1.0, "scale": 1.0}, {}, False),
    "GLR": ("GeneralizedLinearRegression", {"coefficients": W[0], "intercept": 1.0}, {"family": "poisson"}, False),
    "binomial": (
        "LogisticRegression",
        {"coefficientMatrix": W[:1], "interceptVector": np.ones(1), "numClasses": 2, "isMultinomial": False},
        {},
        False,
    ),
    "multinomial": (
        "LogisticRegression",
        {"coefficientMatrix": W, "interceptVector": np.ones(3), "numClasses": 3, "isMultinomial": True},
        {},
        False,
    ),
}


def csr(x: Tensor) -> Tensor:
    row, column = x.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), row.bincount(minlength=len(x)).cumsum(0)])
    return SparseRows(column, x[row, column], offsets, x.shape[1]).to_csr()


def strided(x: Tensor) -> Tensor:
    return x.to_dense() if x.layout == torch.sparse_csr else x


def rows(n: int) -> Tensor:
    x = torch.randn(n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    x[torch.rand(n, WIDTH, generator=torch.Generator().manual_seed(n)) < 0.6] = 0
    return x


def network_of(fitted: Fitted, case: str) -> tuple[sparkdiff.Network, str]:
    name, weights, params, _ = STAGES[case]
    column = "inputCol" if name in ("StandardScaler", "MinMaxScaler", "PCA") else "featuresCol"
    stage = built(fitted(name), weights, **{column: "features"}, **params)
    return sparkdiff.translate(stage), stage.getOrDefault("outputCol" if column == "inputCol" else "predictionCol")


@pytest.mark.parametrize("case", STAGES)
@pytest.mark.parametrize("x", [rows(7), 0 * rows(3), rows(0)], ids=["rows", "only zeros", "no row"])
def test_sparse_rows_give_what_dense_rows_give(fitted: Fitted, case: str, x: Tensor) -> None:
    network, _ = network_of(fitted, case)
    ours, wished = network({"features": csr(x)}), network({"features": x})
    assert ours.keys() == wished.keys()
    for name, column in ours.items():
        assert (column.layout == torch.sparse_csr) == STAGES[case][3], name
        torch.testing.assert_close(strided(column), wished[name], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("case", sorted(STAGES.keys() - {"neither"}))
def test_gradients_are_the_same(fitted: Fitted, case: str) -> None:
    network, column = network_of(fitted, case)
    if case in ("binomial", "multinomial"):
        column = "rawPrediction"
    x, parameters = rows(9), [p.requires_grad_() for p in network.parameters()]
    gradients = []
    for features in (x, csr(x)):
        out = strided(network({"features": features})[column])
        loss = (out * torch.arange(out.numel()).view_as(out)).sum()
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_index_types_and_stored_zeros(fitted: Fitted) -> None:
    network, column = network_of(fitted, "LinearRegression")
    x = torch.tensor([[0.0, 2.0, 0.0, 0.0, -1.0], [0.0] * 5, [3.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    offsets, indices, values = (
        torch.tensor([0, 3, 3, 4]),
        torch.tensor([0, 1, 4, 0]),
        torch.tensor([0.0, 2.0, -1.0, 3.0]),
    )
    odd = SparseRows(indices.int(), values, offsets.int(), WIDTH).to_csr()
    assert (odd.dtype, odd.col_indices().dtype) == (torch.float32, torch.int32)
    torch.testing.assert_close(network({"features": odd})[column], network({"features": x})[column])


def test_assembled_blocks(spark: SparkSession) -> None:
    network = sparkdiff.translate(VectorAssembler(inputCols=["a", "s", "b"], outputCol="out", handleInvalid="keep"))
    a, b, s = torch.tensor([1.0, 0.0, torch.nan]), rows(3), rows(3) * 2
    out = network({"a": a, "b": b, "s": csr(s)})["out"]
    assert out.layout == torch.sparse_csr
    torch.testing.assert_close(out.to_dense(), torch.cat([a.double()[:, None], s, b], 1), equal_nan=True)
    assert out._nnz() == int((torch.cat([a.double()[:, None], s, b], 1) != 0).sum())
    assert network({"a": a, "b": b, "s": s})["out"].layout == torch.strided


@pytest.mark.parametrize(("levels", "sparse"), [(1023, False), (1024, False), (1025, True)])
def test_one_hot_is_sparse_from_1024_columns(spark: SparkSession, levels: int, sparse: bool) -> None:
    stage = one_hot(spark.range(1), [levels])  # one column fewer than levels
    out = sparkdiff.translate(stage)({"i0": torch.tensor([0.0, levels - 1, levels - 2])})["i0 hot"]
    assert (out.layout == torch.sparse_csr) == sparse
    assert strided(out).nonzero().tolist() == [[0, 0], [2, levels - 2]]
    assert out.shape == (3, levels - 1)


def test_a_sparse_output_raises_no_warning() -> None:
    """torch warns once per process, so this wants a process of its own."""
    code = """
import torch
from sparkdiff.tensors.rows import SparseRows
SparseRows(torch.tensor([0, 1]), torch.ones(2), torch.tensor([0, 2]), 2).to_csr()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
