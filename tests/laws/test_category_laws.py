"""The four laws for stages that fill, compare and look up: Imputer, Binarizer, Bucketizer, TargetEncoder, OneHotEncoder."""

import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pyspark.ml.feature import Binarizer, Bucketizer, Imputer
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.jvm import encoders, sessions
from sparkdiff.jvm.encoders import Statistics
from sparkdiff.stages.base import StageModule
from sparkdiff.testing import check_stages, perturb_parameters
from tests.support import rows_with_gaps
from tests.support.rows_with_gaps import INF, NAN
from tests.support.stages_and_rows import COLUMNS, Features, check, one_hot

random = np.random.default_rng(11)


def any_number(n: int) -> list[float]:
    return random.choice([0.0, -0.0, 1.5, -3.25, 1e-300, 5e-324, 1e100, 0.1, 7.0], n).tolist()


@pytest.fixture(scope="module")
def numbers(spark: SparkSession) -> DataFrame:
    return rows_with_gaps.numbers(spark)


def trained(module: StageModule, generator: torch.Generator) -> None:
    """As `perturb_parameters`, also what trains on request only."""
    for name in module.on_request():
        module.unfreeze(name)
    perturb_parameters(module, generator)


# Imputer ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imputers(numbers: DataFrame) -> list[Any]:
    finite = numbers.select(*(F.when(F.abs(c) < 1e6, F.col(c)).alias(c) for c in "xyz"))
    several = Imputer(inputCols=["x", "y", "z"], outputCols=["ox", "oy", "oz"], strategy="median").fit(finite)
    single = Imputer(inputCol="y", outputCol="filled").fit(finite)
    in_place = Imputer(inputCols=["z", "x"], outputCols=["z", "x"], strategy="mode").fit(finite)
    missing = [NAN, 0.0, 1.5]
    typed = Imputer(inputCols=["n", "f", "x"], outputCols=["on", "of", "ox"]).fit(
        numbers.fillna(0.0).replace([-INF, INF], 0.0)
    )
    return [
        encoders.with_surrogates(typed, {"n": -2.75, "f": 0.1, "x": 0.1}).copy({typed.missingValue: m})
        for m in (NAN, 3.0)
    ] + [
        encoders.with_surrogates(base, dict(zip(columns, any_number(len(columns)), strict=True))).copy(
            {base.missingValue: m}
        )
        for m, (base, columns) in itertools.product(missing, [(several, "xyz"), (single, "y"), (in_place, "zx")])
    ]


@pytest.mark.parametrize("constructors", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_imputer(imputers: list[Any], numbers: DataFrame, constructors: bool) -> None:
    with patch.object(sessions, "has_constructors", return_value=constructors):
        check(imputers if constructors else imputers[:3], numbers)


# Binarizer and Bucketizer -----------------------------------------------------------------------------------------------


def test_binarizer(features: Features, numbers: DataFrame) -> None:
    thresholds = [0.0, -0.0, 0.5, -1.0, 1.0, 5e-324, INF, -INF]
    check_stages(
        [
            *(Binarizer(inputCol="x", outputCol="out", threshold=t) for t in (*thresholds, NAN)),
            Binarizer(inputCol="x", outputCol="out"),
            Binarizer(inputCols=["x", "y"], outputCols=["p", "q"], threshold=0.1),
            Binarizer(inputCols=["x", "y", "z"], outputCols=["p", "q", "r"], thresholds=[-0.5, 0.0, 2.0]),
        ],
        numbers,
        perturb=trained,
    )
    check_stages(
        [
            *(Binarizer(inputCol=c, outputCol="out", threshold=t) for c in COLUMNS for t in (0.0, -0.0, 0.5, -1.0)),
            Binarizer(inputCols=["sparse", "offset"], outputCols=["p", "q"], thresholds=[-2.25, 1.0]),
        ],
        features(3),
        perturb=trained,
    )


def test_bucketizer(numbers: DataFrame) -> None:
    ends = [-INF, INF]
    inner: list[list[float]] = [[0.0], [-0.0, 0.5], [0.0, 5e-324], [-2.25, 0.1, 1.0, 1.5], [-1e300, 1e-9, 700.0]]
    bounded = [
        [-1.0, 0.0, 3.0],
        [-1.0, -0.0, 5e-324, 1.5, 3.0],
        [-INF, 0.5, 3.0],
        [-1.0, 0.0, 0.1, INF],
        [-1.0, 1.0, 2.0, 3.0],
    ]
    check_stages(
        [
            *(
                Bucketizer(splits=[ends[0], *s, ends[1]], inputCol="x", outputCol="bin", handleInvalid="keep")
                for s in inner
            ),
            *(
                Bucketizer(splits=s, inputCol="b", outputCol="bin", handleInvalid=h)
                for s in bounded
                for h in ("error", "keep")
            ),
            Bucketizer(
                splitsArray=[[-INF, 0.0, 1.0, INF], [-INF, 0.5, INF], [-1.0, 0.0, 0.5, 1.0, 3.0]],
                handleInvalid="keep",
                inputCols=["y", "z", "b"],
                outputCols=["p", "q", "r"],
            ),
            Bucketizer(splitsArray=[[-1.0, 0.0, 3.0]], inputCols=["b"], outputCols=["p"]),
        ],
        numbers,
        perturb=trained,
    )


# OneHotEncoder and TargetEncoder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(2, 6), (1500, 3)])
def test_null_stays_null_in_a_one_hot_encoder(numbers: DataFrame, levels: tuple[int, int]) -> None:
    kept = numbers.select(F.col("i").alias("i0"), F.col("j").alias("i1"))
    valid = numbers.select(F.col("j").alias("i0"), F.col("j").alias("i1"))
    check([one_hot(kept, levels, handleInvalid="keep", dropLast=d) for d in (True, False)], kept)
    check([one_hot(valid, (max(levels), 6), dropLast=d) for d in (True, False)], valid)


@pytest.fixture(scope="module")
def target_encoder(spark: SparkSession) -> Any:
    feature = pytest.importorskip("pyspark.ml.feature")
    if not hasattr(feature, "TargetEncoder"):
        pytest.skip("Spark has no TargetEncoder before 4.0")
    df = spark.createDataFrame([(0.0, 1.0, 1.0), (1.0, None, 0.0)], "i double, j double, label double")
    return feature.TargetEncoder(inputCols=["i", "j"], outputCols=["p", "q"]).fit(df)


def looked_up(base: Any, missing: bool, **params: Any) -> Any:
    columns = []
    for _ in range(2):
        categories = [2147483647.0, 4.0, 0.0, 2.0, 1.0, *([-1.0] if missing else [])]
        order = random.permutation(len(categories))
        counts, stats = random.integers(1, 9, len(order)).astype(float), np.array(any_number(len(order)))
        columns.append(Statistics(np.array(categories)[order], counts, stats))
    return encoders.with_statistics(base, columns).copy({base.getParam(k): v for k, v in params.items()})


@pytest.mark.parametrize("constructors", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_target_encoder(target_encoder: Any, numbers: DataFrame, constructors: bool) -> None:
    valid = numbers.withColumn("i", F.col("j"))
    with patch.object(sessions, "has_constructors", return_value=constructors):
        kept = [
            looked_up(target_encoder, m, targetType=t, smoothing=s, handleInvalid="keep")
            for m, t, s in [(True, "binary", 0.0), (False, "binary", 2.5), (True, "continuous", 1.0)][
                : 3 if constructors else 1
            ]
        ]
        check(kept, numbers)
        check([looked_up(target_encoder, True, targetType="continuous", smoothing=0.5)], valid)
