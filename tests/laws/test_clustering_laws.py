"""The four laws for KMeans and GaussianMixture, by either route of writing back, on rows that find the corners of arithmetic."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import jvm
from sparkdiff.jvm import sessions
from tests.support.cluster_models import WIDTHS, fitted, framed, k_means, mixture, rows_of
from tests.support.stages_and_rows import COLUMNS, check


@pytest.fixture(scope="module")
def bases(spark: SparkSession) -> dict[str, Any]:
    return fitted(spark)


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> dict[tuple[str, int], DataFrame]:
    return rows_of(spark)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("measure", ["euclidean", "cosine"])
def test_k_means(bases: dict[str, Any], rows: dict[Any, DataFrame], measure: str, width: int) -> None:
    random = np.random.default_rng([width, len(measure)])
    check(
        [
            k_means(bases[measure], random, width, k).copy({bases[measure].featuresCol: column})
            for k in (1, 2, 3, 6)
            for column in COLUMNS
        ],
        rows[measure, width],
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_gaussian_mixture(bases: dict[str, Any], rows: dict[Any, DataFrame], width: int) -> None:
    base, random = bases["mixture"], np.random.default_rng(width)
    cases = [(k, kind, column) for kind in ("regular", "no weight") for k in (1, 2, 4) for column in COLUMNS[:2]]
    stages = [mixture(base, random, width, k, kind).copy({base.featuresCol: column}) for k, kind, column in cases]
    stages[1] = stages[1].copy({base.predictionCol: ""})
    stages[2] = stages[2].copy({base.probabilityCol: ""})
    check(stages, rows["mixture", width])


def test_a_singular_covariance_takes_the_pseudo_inverse(bases: dict[str, Any], spark: SparkSession) -> None:
    random = np.random.default_rng(5)
    df = framed(spark, [random.normal(size=3) * 10.0**k for k in (-2, 0, 1) for _ in range(6)])
    stages = [
        mixture(bases["mixture"], random, 3, k, "singular").copy({bases["mixture"].featuresCol: "mixed"})
        for k in (1, 2, 3)
    ]
    check(stages, df)


@pytest.mark.slow
def test_by_way_of_files(bases: dict[str, Any], rows: dict[Any, DataFrame]) -> None:
    random = np.random.default_rng(11)
    with patch.object(sessions, "has_constructors", lambda: False):
        check(
            [k_means(bases[m], random, 3, 3).copy({bases[m].featuresCol: "mixed"}) for m in ("euclidean", "cosine")],
            rows["cosine", 3],
        )
        check(
            [mixture(bases["mixture"], random, 3, 2, "regular").copy({bases["mixture"].featuresCol: "mixed"})],
            rows["mixture", 3],
        )


def test_both_routes_write_the_same(bases: dict[str, Any]) -> None:
    random = np.random.default_rng(3)
    for base in bases.values():
        network = sparkdiff.translate(base)
        with torch.no_grad():
            for name, p in network.module(0).named_parameters():
                constraint = network.module(0).constraints().get(name)
                move = torch.from_numpy(random.normal(size=tuple(p.shape))) / 8
                p.copy_(p + move if constraint is None else constraint.value(p, move[None])[0])
        made = sparkdiff.write_back(base, network)
        with patch.object(sessions, "has_constructors", lambda: False):
            filed = sparkdiff.write_back(base, network)
        for one, other in zip(*(sparkdiff.translate(m).parameters() for m in (made, filed)), strict=True):
            assert torch.equal(one, other)
        assert made.uid == filed.uid == base.uid
        assert jvm.defined_params(made) == jvm.defined_params(base)


# What Spark refuses, and what leaves the domain -------------------------------------------------------------------------


def test_what_has_no_distance_is_refused(bases: dict[str, Any]) -> None:
    nan = torch.tensor([[0.0, torch.nan]], dtype=torch.float64)
    for measure in ("euclidean", "cosine"):
        with pytest.raises(sparkdiff.InputError, match=f"{bases[measure].uid}: the features of a row hold NaN"):
            sparkdiff.translate(bases[measure])({"features": nan})
    with pytest.raises(sparkdiff.InputError, match="all 0, so the row has no cosine"):
        sparkdiff.translate(bases["cosine"])({"features": torch.zeros(1, 2, dtype=torch.float64)})


def test_a_cosine_centre_must_have_norm_1(bases: dict[str, Any]) -> None:
    network = sparkdiff.translate(bases["cosine"])
    with torch.no_grad():
        network.module(0).clusterCenters *= 2
    with pytest.raises(sparkdiff.InputError, match="clusterCenters must have norm 1"):
        sparkdiff.write_back(bases["cosine"], network)


def test_a_mixture_stays_a_mixture(bases: dict[str, Any]) -> None:
    network = sparkdiff.translate(bases["mixture"])
    with torch.no_grad():
        network.module(0).mixture[0] += 0.1
    with pytest.raises(sparkdiff.InputError, match="mixture must hold shares"):
        sparkdiff.write_back(bases["mixture"], network)
    network = sparkdiff.translate(bases["mixture"])
    with torch.no_grad():
        network.module(0).sigmas[0] *= -1
    with pytest.raises(sparkdiff.InputError, match="sigmas must be symmetric without negative eigenvalues"):
        sparkdiff.write_back(bases["mixture"], network)
