"""Each known way to be wrong about clusters breaks a law when it is planted."""

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession
from torch import Tensor

from sparkdiff.jvm import mllib
from sparkdiff.stages.clustering import GaussianMixture, KMeans
from sparkdiff.testing import LawBroken, check_stage
from tests.support.cluster_models import fitted, framed, k_means, mixture


def last_of_equals(self: Any, margin: Tensor) -> Tensor:
    return (margin.shape[1] - 1 - margin.flip(1).argmin(1)).to(margin.dtype)


def any_where_infinite(self: Any, margin: Tensor) -> Tensor:
    return torch.where(margin.isfinite(), margin, -math.inf).argmin(1).to(margin.dtype)


def manhattan(self: Any, x: Tensor) -> Tensor:
    return torch.cdist(x.to_dense() if hasattr(x, "to_dense") else x, self.clusterCenters, p=1)


def without_the_norm(self: Any, stage: Any) -> Any:
    return mllib.k_means(stage, 2 * self.weight("clusterCenters"))


def roots(tolerant: bool, normalised: bool) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """`roots` without the tolerance of the pseudo-inverse, or without the determinant."""

    def planted(self: Any) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.sigmas.detach())
        values = values.abs()  # the processor decides the sign of one that is 0 but for rounding
        kept = values > (2.0**-52 * values.amax(1, keepdim=True) * values.shape[1] if tolerant else 0.0)
        size = torch.where(kept, values, 1.0)
        out = torch.where(kept, size.rsqrt(), 0.0)[:, :, None] * vectors.mT
        return out, -0.5 * (values.shape[1] * math.log(2 * math.pi) + normalised * size.log().sum(1))

    return planted


def plain_inverse(self: Any) -> tuple[Tensor, Tensor]:
    """The density of all d dimensions, also where the covariance has fewer."""
    sigmas = self.sigmas.detach() + 1e-12 * torch.eye(self.sigmas.shape[1], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(sigmas)
    return values.rsqrt()[:, :, None] * vectors.mT, -0.5 * (
        len(values[0]) * math.log(2 * math.pi) + values.log().sum(1)
    )


def without_epsilon(self: Any, margin: Tensor) -> Tensor:
    return margin.exp()


def equal_weights(self: Any, margin: Tensor) -> Tensor:
    return 2.0**-52 + (margin - self.mixture.log()).exp()


TRAPS: dict[str, tuple[type[Any], str, Callable[..., Any], str]] = {
    "last of equals": (KMeans, "decision", last_of_equals, "euclidean"),
    "infinite is near": (KMeans, "decision", any_where_infinite, "euclidean"),
    "another distance": (KMeans, "margin", manhattan, "euclidean"),
    "euclidean for cosine": (KMeans, "margin", manhattan, "cosine"),
    "norm lost": (KMeans, "to_spark", without_the_norm, "cosine"),
    "no tolerance": (GaussianMixture, "roots", roots(False, True), "singular"),
    "plain inverse": (GaussianMixture, "roots", plain_inverse, "singular"),
    "no determinant": (GaussianMixture, "roots", roots(True, False), "regular"),
    "no epsilon": (GaussianMixture, "densities", without_epsilon, "regular"),
    "no weights": (GaussianMixture, "densities", equal_weights, "regular"),
}


@pytest.fixture(scope="module")
def stages(spark: SparkSession) -> dict[str, Any]:
    bases, random = fitted(spark), np.random.default_rng(2)
    return {
        "euclidean": k_means(bases["euclidean"], random, 3, 6),
        "cosine": k_means(bases["cosine"], random, 3, 3),
        "regular": mixture(bases["mixture"], random, 3, 3, "regular"),
        "singular": mixture(bases["mixture"], random, 3, 3, "singular"),
    }


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    random = np.random.default_rng(8)
    ordinary = [random.normal(size=3) * 10.0**k for k in (-1, 0, 1, 2) for _ in range(6)]
    beyond = [np.array([math.inf, 1.0, 2.0]), np.array([1e200, 0.0, 0.0])]
    df = framed(spark, [*ordinary, *beyond]).select("mixed").withColumnRenamed("mixed", "features")
    return df.coalesce(1).cache()


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_seen(stages: dict[str, Any], rows: DataFrame, trap: str) -> None:
    module, method, planted, case = TRAPS[trap]
    finite = rows.where("features is not null").limit(24) if case == "singular" else rows
    with patch.object(module, method, planted), pytest.raises(LawBroken):
        check_stage(stages[case], finite)


def test_without_a_trap_all_is_well(stages: dict[str, Any], rows: DataFrame) -> None:
    for case, stage in stages.items():
        check_stage(stage, rows.limit(24) if case == "singular" else rows)
