"""The four laws for stages that rescale, weigh, pick, expand and number the entries of vectors."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pyspark.ml.feature import (
    DCT,
    IDF,
    ChiSqSelector,
    ElementwiseProduct,
    MaxAbsScaler,
    Normalizer,
    PolynomialExpansion,
    RobustScaler,
    UnivariateFeatureSelector,
    VarianceThresholdSelector,
    VectorIndexer,
    VectorSizeHint,
    VectorSlicer,
)
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.jvm import mllib, sessions
from tests.support.law_examples import columns, generated, many, numbers, scales, vector
from tests.support.stages_and_rows import AT_ONCE, COLUMNS, Features, adversarial, built, check, sparse, with_features

ESTIMATORS: dict[str, Callable[[], Any]] = {
    "RobustScaler": lambda: RobustScaler(inputCol="features", outputCol="scaled"),
    "MaxAbsScaler": lambda: MaxAbsScaler(inputCol="features", outputCol="scaled"),
    "IDF": lambda: IDF(inputCol="features", outputCol="weighed", minDocFreq=2),
    "ChiSqSelector": lambda: ChiSqSelector(numTopFeatures=2, outputCol="picked"),
    "UnivariateFeatureSelector": lambda: (
        UnivariateFeatureSelector(outputCol="picked")
        .setFeatureType("continuous")
        .setLabelType("categorical")
        .setSelectionThreshold(2)
    ),
    "VarianceThresholdSelector": lambda: VarianceThresholdSelector(varianceThreshold=0.1, outputCol="picked"),
}


@pytest.fixture(scope="module")
def fitted(spark: SparkSession) -> Callable[[str], Any]:
    """A fitted stage by the name of its estimator."""
    data = [(Vectors.dense(i % 3, 0.0, i % 2, i), float(i % 2)) for i in range(6)]
    df = spark.createDataFrame(data, ["features", "label"]).coalesce(1).cache()
    stages: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in stages:
            stages[name] = ESTIMATORS[name]().fit(df)
        return stages[name]

    return of


@pytest.fixture(scope="module")
def finite(spark: SparkSession) -> DataFrame:
    """Rows of three numbers of ordinary size, in the columns of `features(3)`."""
    rows = [v for v in adversarial(3) if np.isfinite(v).all() and np.abs(v).max() < 1e4]
    data = [(Vectors.dense(v) if i % 2 else sparse(v), Vectors.dense(v), sparse(v)) for i, v in enumerate(rows)]
    return spark.createDataFrame(data, [*COLUMNS]).repartition(2).cache()


# Scalers ----------------------------------------------------------------------------------------------------------------


@st.composite
def scaler(draw: st.DrawFn, width: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if draw(st.booleans()):
        return "MaxAbsScaler", {"maxAbs": draw(vector(width, scales))}, {"inputCol": draw(columns)}
    weights = {"range": draw(vector(width, scales)), "median": draw(vector(width))}
    params = {"withScaling": draw(st.booleans()), "withCentering": draw(st.booleans()), "inputCol": draw(columns)}
    return "RobustScaler", weights, params


@generated(1)
@given(many(scaler, 2 * AT_ONCE))
def test_scalers(features: Features, fitted: Callable[[str], Any], drawn: Any) -> None:
    width, several = drawn
    check([built(fitted(name), weights, **params) for name, weights, params in several], features(width))


@pytest.mark.slow
def test_weights_by_way_of_files(features: Features, fitted: Callable[[str], Any]) -> None:
    zero = np.array([2.5, 0.0, 1e-3])
    stages = [
        built(fitted("RobustScaler"), {"range": zero, "median": -zero}, withCentering=True, inputCol="mixed"),
        built(fitted("MaxAbsScaler"), {"maxAbs": zero}, inputCol="sparse"),
        with_idf(fitted("IDF"), zero, inputCol="sparse"),
    ]
    with patch.object(sessions, "has_constructors", return_value=False):
        check(stages, features(3))


# Weights ----------------------------------------------------------------------------------------------------------------


def with_idf(base: Any, values: np.ndarray, **params: Any) -> Any:
    stage = mllib.idf(base, values)
    assert (stage.docFreq, stage.numDocs, stage.uid) == (base.docFreq, base.numDocs, base.uid)
    return stage.copy({stage.getParam(name): value for name, value in params.items()})


@generated(1)
@given(many(lambda d: st.tuples(st.booleans(), vector(d, st.one_of(numbers, scales)), columns)))
def test_weighing(features: Features, fitted: Callable[[str], Any], drawn: Any) -> None:
    width, several = drawn
    check(
        [
            with_idf(fitted("IDF"), weights, inputCol=column)
            if idf
            else ElementwiseProduct(scalingVec=Vectors.dense(weights), inputCol=column, outputCol="weighed")
            for idf, weights, column in several
        ],
        features(width),
    )


def test_a_sparse_scaling_vector(features: Features) -> None:
    weights = Vectors.sparse(3, [0, 2], [-2.0, 1e300])
    check([ElementwiseProduct(scalingVec=weights, inputCol=c, outputCol="weighed") for c in COLUMNS], features(3))


# Stages without weights -------------------------------------------------------------------------------------------------


def test_normalizer(features: Features) -> None:
    norms = (1.0, 2.0, float("inf"), 1.25, 17.0)
    check([Normalizer(p=p, inputCol=c, outputCol="unit") for p in norms for c in COLUMNS], features(3))
    check([Normalizer(p=p, inputCol="mixed", outputCol="unit") for p in norms], features(0))


def test_polynomial_expansion(features: Features, finite: DataFrame) -> None:
    """Rows of both kinds in one batch all count as dense, so only finite ones come out as in Spark."""
    stages = [
        PolynomialExpansion(degree=d, inputCol=c, outputCol="monomials") for d in (1, 2, 3, 5) for c in COLUMNS[1:]
    ]
    check(stages, features(3))
    check([PolynomialExpansion(degree=2, inputCol=c, outputCol="monomials") for c in COLUMNS[1:]], features(1))
    check([PolynomialExpansion(degree=d, inputCol="mixed", outputCol="monomials") for d in (2, 4)], finite)


def test_cosine_transform(spark: SparkSession, finite: DataFrame) -> None:
    check([DCT(inverse=i, inputCol=c, outputCol="waves") for i in (False, True) for c in COLUMNS], finite)
    random = np.random.default_rng(1)
    rows = [{f"w{d}": Vectors.dense(random.normal(size=d) * 9) for d in (1, 2, 4, 7, 64, 101)} for _ in range(3)]
    wide = spark.createDataFrame(rows).coalesce(1)
    check([DCT(inverse=i, inputCol=c, outputCol="waves") for i in (False, True) for c in wide.columns], wide)


def test_selectors(features: Features, fitted: Callable[[str], Any]) -> None:
    """Whatever the order in which features were selected, they come out in ascending order."""
    chosen = {
        "ChiSqSelector": [(2, 0), (1,)],
        "UnivariateFeatureSelector": [(1, 0, 2), ()],
        "VarianceThresholdSelector": [(0, 2), (1,)],
    }
    stages = [
        with_features(fitted(name), *selected, featuresCol=column)
        for name, several in chosen.items()
        for selected in several
        for column in COLUMNS
    ]
    check(stages, features(3))


def test_fitted_selectors(spark: SparkSession, fitted: Callable[[str], Any]) -> None:
    df = spark.createDataFrame([(Vectors.dense(1, 2, 3, 4),), (Vectors.sparse(4, [2], [-1.0]),)], ["features"])
    stages = [fitted(name) for name in ("ChiSqSelector", "UnivariateFeatureSelector", "VarianceThresholdSelector")]
    assert all(len(stage.selectedFeatures) in (2, 3) for stage in stages)
    check(stages, df)


def test_vector_slicer(features: Features) -> None:
    """In the order of the indices, not ascending."""
    check(
        [
            VectorSlicer(indices=list(indices), inputCol=column, outputCol="picked")
            for indices in [(2, 0), (0, 1, 2), (2, 1, 0), (1,)]
            for column in COLUMNS
        ],
        features(3),
    )


def test_vector_size_hint(features: Features) -> None:
    check(
        [VectorSizeHint(size=3, inputCol=c, handleInvalid=h) for h in ("error", "optimistic") for c in COLUMNS],
        features(3),
    )
    check([VectorSizeHint(size=2, inputCol=c, handleInvalid="optimistic") for c in COLUMNS], features(3))


def test_vector_indexer(spark: SparkSession, features: Features) -> None:
    """Category 0 of a feature is 0.0 where 0.0 occurs; an entry that a sparse row doesn't store becomes 0 in any case."""
    rows = [(2.5, 0.0, i) for i in (1.0, -1.0, 0.5, 3.7)] + [
        (-1.0, 1.0, 40.0),
        (1.0, -2.25, 1e300),
        (3.7, 5e-324, -0.0),
    ]
    stages = []
    for kinds, most in (("dense", 4), ("dense", 2), ("sparse", 20)):
        data = [(Vectors.dense(v) if kinds == "dense" else sparse(np.array(v)),) for v in rows]
        fitted = VectorIndexer(inputCol="features", outputCol="indexed", maxCategories=most).fit(
            spark.createDataFrame(data, ["features"]).coalesce(1)
        )
        stages += [fitted.copy({fitted.inputCol: column, fitted.handleInvalid: "keep"}) for column in COLUMNS[1:]]
    assert [sorted(s.categoryMaps) for s in stages[::2]] == [[0, 1], [], [0, 1, 2]]
    assert 0.0 not in stages[0].categoryMaps[0]
    check(stages, features(3))
    known = spark.createDataFrame([(Vectors.dense(v),) for v in rows[:4]], ["features"]).coalesce(1)
    fitted = VectorIndexer(inputCol="features", outputCol="indexed").fit(known)
    check([fitted], known)
