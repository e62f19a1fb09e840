"""The four laws for every translated stage: generated parameters, rows made to break them, Spark as the judge."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import DenseMatrix, Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.types import BooleanType, DoubleType, IntegerType, LongType, StructField, StructType

import sparkdiff
from sparkdiff.jvm import sessions
from sparkdiff.stages.base import StageModule
from sparkdiff.testing import check_stages, perturb_parameters
from tests.support.law_examples import columns, generated, many, numbers, scales, vector
from tests.support.stages_and_rows import AT_ONCE, Features, Fitted, built, check, one_hot

# Stages with weights ----------------------------------------------------------------------------------------------------


@generated()
@given(many(lambda d: st.tuples(vector(d, scales), vector(d), st.booleans(), st.booleans(), columns)))
def test_standard_scaler(features: Features, fitted: Fitted, drawn: Any) -> None:
    width, several = drawn
    base = fitted("StandardScaler")
    check(
        [
            built(base, {"std": std, "mean": mean}, withStd=with_std, withMean=with_mean, inputCol=column)
            for std, mean, with_std, with_mean, column in several
        ],
        features(width),
    )


intervals = st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (2.5, 1e9), (-1e-9, 0.0)])


@generated()
@given(many(lambda d: st.tuples(vector(d), vector(d, scales), intervals, columns)))
def test_min_max_scaler(features: Features, fitted: Fitted, drawn: Any) -> None:
    width, several = drawn
    base = fitted("MinMaxScaler")
    check(
        [
            built(
                base, {"originalMin": low, "originalMax": low + size}, min=interval[0], max=interval[1], inputCol=column
            )
            for low, size, interval, column in several
        ],
        features(width),
    )


def components(width: int) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, width).flatmap(lambda k: arrays(np.float64, (width, k), elements=numbers))


@generated()
@given(many(lambda d: st.tuples(components(d), columns)))
def test_pca(features: Features, fitted: Fitted, drawn: Any) -> None:
    width, several = drawn
    base = fitted("PCA")
    check(
        [
            built(
                base,
                {"pc": pc, "explainedVariance": np.arange(pc.shape[1], dtype=float)},
                inputCol=column,
                k=pc.shape[1],
            )
            for pc, column in several
        ],
        features(width),
    )


@generated()
@given(many(lambda d: st.tuples(vector(d), numbers, st.floats(0.1, 10), columns)))
def test_linear_regression(features: Features, fitted: Fitted, drawn: Any) -> None:
    width, several = drawn
    base = fitted("LinearRegression")
    check(
        [
            built(
                base,
                {"coefficients": w, "intercept": b, "scale": scale},
                featuresCol=column,
                fitIntercept=bool(b),
                loss="huber" if scale > 5 else "squaredError",
            )
            for w, b, scale, column in several
        ],
        features(width),
    )


FAMILIES: list[dict[str, Any]] = [
    {"family": family, "link": link}
    for family, links in {
        "gaussian": (None, "identity", "log", "inverse"),
        "binomial": (None, "logit", "probit", "cloglog"),
        "poisson": (None, "log", "identity", "sqrt"),
        "gamma": (None, "inverse", "identity", "log"),
        "Poisson": ("LOG",),
    }.items()
    for link in links
] + [
    {"family": "tweedie", "variancePower": power, "linkPower": link}
    for power in (0.0, 1.0, 1.5, 2.0, 3.0)
    for link in (None, 0.0, 1.0, -1.0, 0.5, 2.0, -0.5, 1 / 3)
]
POWERS = [f for f in FAMILIES if f["family"] == "tweedie"]
ONE_OF_EACH = [f for f in FAMILIES if f not in POWERS] + POWERS[::5]
"""Each family with each link of its own; each power of tweedie and each link to a power, but not each pair of them."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "families", [ONE_OF_EACH, pytest.param(FAMILIES, marks=pytest.mark.nightly)], ids=["one of each", "all"]
)
@generated(1)
@given(data=st.data())
def test_generalized_linear_regression(
    features: Features, fitted: Fitted, families: list[dict[str, Any]], data: st.DataObject
) -> None:
    drawn = many(lambda d: st.tuples(vector(d), numbers, columns, st.booleans(), st.booleans()), len(families))
    width, several = data.draw(drawn)
    base = fitted("GeneralizedLinearRegression")
    check(
        [
            built(
                base,
                {"coefficients": w, "intercept": b},
                featuresCol=column,
                fitIntercept=bool(b),
                offsetCol="offset" if offset else None,
                linkPredictionCol="link" if shows_link else None,
                **family,
            )
            for (w, b, column, offset, shows_link), family in zip(several, families, strict=True)
        ],
        features(width),
    )


@st.composite
def logistic(draw: st.DrawFn, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and Params of a LogisticRegressionModel: one row of coefficients, or two or three (softmax)."""
    k, column = draw(st.sampled_from([1, 1, 2, 3])), draw(columns)
    intercepts = draw(vector(k, st.one_of(numbers, st.just(-np.inf)))) if draw(st.booleans()) else np.zeros(k)
    weights = {
        "coefficientMatrix": draw(arrays(np.float64, (k, width), elements=numbers)),
        "interceptVector": intercepts,
        "numClasses": max(k, 2),
        "isMultinomial": k > 1,
    }
    params: dict[str, Any] = {"featuresCol": column, "fitIntercept": bool(intercepts.any())}
    shown = draw(st.sampled_from(["rpl", "rpl", "rp", "rl", "pl", "r", "p", "l"]))
    names = ("rawPredictionCol", "probabilityCol", "predictionCol")
    params |= {name: "" for name, letter in zip(names, "rpl", strict=True) if letter not in shown}
    if k == 1 and draw(st.booleans()):
        params["threshold"] = draw(st.sampled_from([0.0, 1.0, 0.3, 0.5, 1e-12, 1 - 1e-12, 1 - 2**-53]))
    elif draw(st.booleans()):
        values = draw(st.sampled_from([[0.0, 0.2, 1.0], [0.3, 0.3, 0.1]]))
        params["thresholds"] = draw(st.permutations(values[: max(k, 2)]))
    if draw(st.integers(0, 2)) == 0:
        w, b = weights["coefficientMatrix"], intercepts
        params["lowerBoundsOnCoefficients"] = DenseMatrix(k, width, (w - 0.5).ravel("F"))
        params["upperBoundsOnCoefficients"] = DenseMatrix(k, width, np.maximum(w, 1.0).ravel("C"), True)
        if params["fitIntercept"]:
            params["lowerBoundsOnIntercepts"] = Vectors.dense(np.minimum(b, -2.0))
    return weights, params


@pytest.mark.slow
@generated(1)
@given(many(logistic, 2 * AT_ONCE))
def test_logistic_regression(features: Features, fitted: Fitted, drawn: Any) -> None:
    width, several = drawn
    base = fitted("LogisticRegression")
    check([built(base, weights, **params) for weights, params in several], features(width))


@pytest.mark.slow
@generated(1)
@given(many(logistic, 4))
def test_logistic_regression_without_constructors(features: Features, fitted: Fitted, drawn: Any) -> None:
    width, several = drawn
    base = fitted("LogisticRegression")
    stages = [built(base, weights, **params) for weights, params in several]
    with patch.object(sessions, "has_constructors", return_value=False):
        check(stages, features(width))


@pytest.mark.parametrize("constructors", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_thresholds_that_train(
    features: Features, fitted: Fitted, monkeypatch: pytest.MonkeyPatch, constructors: bool
) -> None:
    weights = {
        "coefficientMatrix": np.array([[1.0, 0.0, -2.0]]),
        "interceptVector": np.array([0.5]),
        "numClasses": 2,
        "isMultinomial": False,
    }
    stages = [
        built(fitted("LogisticRegression"), weights, featuresCol="mixed", threshold=threshold)
        for threshold in (None, 0.5, 0.2, 1e-12, 0.0, 1.0)
    ]

    def all_moved(module: StageModule, generator: torch.Generator) -> None:
        for name in module.on_request():
            module.unfreeze(name)
        perturb_parameters(module, generator)

    monkeypatch.setattr(sessions, "has_constructors", lambda: constructors)
    check_stages(stages, features(3), perturb=all_moved)


# Corners that generated parameters meet too seldom ----------------------------------------------------------------------


@pytest.mark.parametrize("constructors", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_corners(features: Features, fitted: Fitted, monkeypatch: pytest.MonkeyPatch, constructors: bool) -> None:
    scaler, min_max = fitted("StandardScaler"), fitted("MinMaxScaler")
    glr, logistic = fitted("GeneralizedLinearRegression"), fitted("LogisticRegression")
    huge, w = np.full(3, 1.7e308), np.array([[1.0, 0.0, -2.0], [0.5, 0.0, 0.0], [0.0, 1.0, 0.0]])
    weights = {"coefficientMatrix": w, "interceptVector": np.zeros(3), "numClasses": 3, "isMultinomial": True}
    binomial = {
        "coefficientMatrix": w[:1],
        "interceptVector": np.array([37.0]),
        "numClasses": 2,
        "isMultinomial": False,
    }
    stages = [
        built(min_max, {"originalMin": -huge, "originalMax": huge}, inputCol="mixed"),  # the range is infinite
        built(
            min_max, {"originalMin": np.ones(3), "originalMax": np.full(3, 1 + 2**-52)}, inputCol="mixed"
        ),  # nearly constant
        built(
            min_max, {"originalMin": np.zeros(3), "originalMax": huge}, max=1e-20, inputCol="mixed"
        ),  # the factor is 0
        built(scaler, {"std": np.zeros(3), "mean": np.ones(3)}, withMean=True, withStd=False, inputCol="mixed"),
        built(scaler, {"std": np.zeros(3), "mean": np.ones(3)}, withMean=True, withStd=True, inputCol="mixed"),
        built(
            glr,
            {"coefficients": w[0], "intercept": 1.0},
            featuresCol="mixed",
            predictionCol="",
            linkPredictionCol="eta",
        ),
        built(logistic, weights, featuresCol="mixed"),
        built(logistic, weights, featuresCol="mixed", rawPredictionCol=""),
        built(logistic, weights, featuresCol="mixed", rawPredictionCol="", thresholds=[0.5, 0.0, 0.1]),
        built(logistic, binomial, featuresCol="mixed", rawPredictionCol="", threshold=1 - 2**-53),  # p rounds to less
    ]
    monkeypatch.setattr(sessions, "has_constructors", lambda: constructors)
    check(stages, features(3))


def test_vectors_without_entries(features: Features, fitted: Fitted) -> None:
    none, mixed = np.empty(0), {"featuresCol": "mixed"}
    shape = {"interceptVector": np.array([0.5]), "numClasses": 2, "isMultinomial": False}
    check(
        [  # Spark's scalers refuse them
            built(fitted("LinearRegression"), {"coefficients": none, "intercept": 2.5, "scale": 1.0}, **mixed),
            built(
                fitted("GeneralizedLinearRegression"),
                {"coefficients": none, "intercept": 2.5},
                offsetCol="offset",
                **mixed,
            ),
            built(fitted("LogisticRegression"), {"coefficientMatrix": np.empty((1, 0)), **shape}, **mixed),
        ],
        features(0),
    )


# Stages without weights -------------------------------------------------------------------------------------------------

LEVELS = (1, 2, 3, 7, 1023, 1024, 1500)  # from 1,024 columns the network's blocks are sparse


@pytest.fixture(scope="session")
def categories(spark: SparkSession) -> DataFrame:
    """`clean<n>`: indices below n, in several types; `dirty`: also what is no index."""
    no_index = [-0.0, 2.5, 0.5, -0.5, -1.0, 1023.5, 1e18, np.nan, np.inf, -np.inf]
    dirty = [0.0, 1.0, 3.0, 6.0, 1022.0, 1023.0, 1024.0, *no_index]
    types = ("double", "int", "long", "float", "decimal(10,2)", "short", "double")
    df = spark.createDataFrame(list(enumerate(dirty)), "i int, dirty double")
    clean = [
        F.when(F.col("i") == 1, n - 1).otherwise(F.col("i") % n).cast(kind).alias(f"clean{n}")
        for n, kind in zip(LEVELS, types, strict=True)
    ]
    return df.select("dirty", *clean).repartition(2).cache()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_one_hot_encoder(categories: DataFrame, keep: bool, drop_last: bool, any_case: bool) -> None:
    stages = []
    few = LEVELS if keep or not drop_last else LEVELS[1:]  # Spark refuses to drop the only one
    for levels in [few, (1024, 2), (7,)]:
        stage = one_hot(categories, levels, dropLast=drop_last, handleInvalid="keep" if keep else "error")
        names = ["dirty" if keep else f"{'CLEAN' if any_case else 'clean'}{n}" for n in levels]
        stages.append(stage.copy({stage.inputCols: names}))
    check(stages, categories)


@pytest.mark.parametrize("value", [3.0, -1.0, np.nan, np.inf])
def test_one_hot_encoder_refuses_what_spark_refuses(categories: DataFrame, value: float) -> None:
    stage = one_hot(categories, [3])
    network, df = sparkdiff.translate(stage), categories.select(F.lit(value).alias("i0"))
    with pytest.raises(
        sparkdiff.InputError, match=rf"{stage.uid}: column 'i0' holds the index .*, but the categories are 0 to 2"
    ):
        network({"i0": torch.tensor([0.0, value])})
    with pytest.raises(sparkdiff.InputError, match="Spark failed"):
        sparkdiff.verify(stage, df)


@pytest.fixture(scope="session")
def parts(spark: SparkSession) -> DataFrame:
    """Scalars of several types and vectors of several widths; columns whose names begin with `gap` hold null or NaN."""
    values, gaps = [0.0, -0.0, 1.5, -2.0, 1e300, 5e-324, np.inf, -np.inf], [None, np.nan, 0.0, 1.0]
    fields: dict[str, tuple[Any, Callable[[int], Any]]] = {
        "double": (DoubleType(), lambda i: values[i % 8]),
        "long": (LongType(), lambda i: i - 3),
        "boolean": (BooleanType(), lambda i: i % 3 == 0),
        "gapNull": (DoubleType(), lambda i: None),
        "gapDouble": (DoubleType(), lambda i: gaps[i % 4]),
        "gapInt": (IntegerType(), lambda i: i if i % 5 else None),
        "none": (VectorUDT(), lambda i: Vectors.dense([]) if i % 2 else Vectors.sparse(0, [], [])),
        "mixed": (
            VectorUDT(),
            lambda i: Vectors.dense(values[i % 8], np.nan) if i % 3 else Vectors.sparse(2, [1], [-0.0]),
        ),
        "wide": (VectorUDT(), lambda i: Vectors.sparse(200, [i, 199], [1.0, 0.0])),
        "empty": (VectorUDT(), lambda i: Vectors.sparse(3, [], [])),
        "one": (VectorUDT(), lambda i: Vectors.dense(-0.0)),
        "gapVector": (VectorUDT(), lambda i: Vectors.dense(1.0, 2.0, i) if i % 7 else None),
    }
    rows = [tuple(make(i) for _, make in fields.values()) for i in range(24)]
    df = spark.createDataFrame(rows, StructType([StructField(name, kind) for name, (kind, _) in fields.items()]))
    widths = {"none": 0, "mixed": 2, "wide": 200, "empty": 3, "one": 1, "gapVector": 3}  # `keep` wants to know them
    known = {c: F.col(c).alias(c, metadata={"ml_attr": {"num_attrs": d}}) for c, d in widths.items()}
    return df.withColumns(known).repartition(2).cache()


def test_vector_assembler(parts: DataFrame, any_case: bool) -> None:
    full = [
        ["double"],
        ["mixed"],
        ["none"],
        ["none", "boolean"],
        ["wide"],
        ["empty", "empty"],
        ["DOUBLE", "double", "Long"] if any_case else ["double", "double", "long"],
        ["double", "mixed", "long", "one"],
        ["one", "wide", "double", "empty"],
        ["wide", "mixed", "none", "double", "wide"],
    ]
    gaps = [
        ["gapNull"],
        ["gapDouble", "gapInt"],
        ["wide", "gapNull", "mixed"],
        ["gapVector"],
        ["gapVector", "empty", "gapInt", "wide"],
    ]
    check(
        [VectorAssembler(inputCols=names, outputCol="out") for names in full]
        + [VectorAssembler(inputCols=names, outputCol="out", handleInvalid="keep") for names in gaps + full[-3:]],
        parts,
    )
