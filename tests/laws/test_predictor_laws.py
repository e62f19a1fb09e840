"""The four laws for the predictors that are neither linear regressions nor trees: any weights, any Params, adversarial rows."""

import itertools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from pyspark.ml.classification import (
    DecisionTreeClassifier,
    FMClassifier,
    GBTClassifier,
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    NaiveBayes,
    OneVsRestModel,
    RandomForestClassifier,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import AFTSurvivalRegression, FMRegressor, IsotonicRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import jvm
from sparkdiff.jvm import mllib, sessions, trees
from tests.support.law_examples import generated
from tests.support.random_trees import WIDTH, grown
from tests.support.stages_and_rows import AT_ONCE, COLUMNS, Features, check, sparse

TREES = {c.__name__: c for c in (DecisionTreeClassifier, GBTClassifier, RandomForestClassifier)}

SHOWN = ("rpl", "rpl", "rp", "rl", "pl", "r", "p", "l")
random = np.random.default_rng(0)
seeds = st.lists(st.integers(0, 2**32 - 1), min_size=AT_ONCE, max_size=AT_ONCE, unique=True)


def numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Of any sign and of several magnitudes, some of them 0."""
    values = random.normal(size=shape) * 10.0 ** random.integers(-3, 2, shape)
    return np.where(random.random(shape) < 0.2, 0.0, values)


def hidden(random: np.random.Generator, names: str = "rpl") -> dict[str, str]:
    """Which of the columns of scores and classes aren't shown."""
    params = {"r": "rawPredictionCol", "p": "probabilityCol", "l": "predictionCol"}
    shown = str(random.choice([s for s in SHOWN if set(s) & set(names)]))
    return {params[letter]: "" for letter in names if letter not in shown}


def thresholds(random: np.random.Generator, classes: int) -> dict[str, Any]:
    if random.random() < 0.6:
        return {}
    return {"thresholds": random.permutation([0.0, 0.2, 1.0, 0.1][:classes] if classes > 2 else [0.2, 0.7]).tolist()}


def column(random: np.random.Generator) -> dict[str, str]:
    return {"featuresCol": str(random.choice(COLUMNS))}


def support_vector(random: np.random.Generator) -> Any:
    fit = bool(random.random() < 0.7)
    threshold = float(random.choice([0.0, -0.0, 0.5, -1.25, 1e300, np.inf]))
    estimator = LinearSVC(threshold=threshold, fitIntercept=fit, **column(random), **hidden(random, "rl"))
    intercept = float(numbers(random)) if fit else 0.0
    return jvm.model_with_weights(estimator, {"coefficients": numbers(random, WIDTH), "intercept": intercept})


def perceptron(random: np.random.Generator) -> Any:
    k = int(random.integers(2, 5))
    layers = [WIDTH, *random.integers(1, 5, random.integers(0, 3)).tolist(), k]
    size = sum((a + 1) * b for a, b in itertools.pairwise(layers))
    estimator = MultilayerPerceptronClassifier(layers=layers, **column(random), **hidden(random))
    estimator = estimator.copy({estimator.getParam(n): v for n, v in thresholds(random, k).items()})
    return jvm.model_with_weights(estimator, {"weights": numbers(random, size)})


def machine(random: np.random.Generator) -> Any:
    rank, classifies = int(random.integers(1, 4)), bool(random.random() < 0.5)
    fit = {"fitIntercept": bool(random.random() < 0.7), "fitLinear": bool(random.random() < 0.7)}
    if classifies:
        estimator = FMClassifier(factorSize=rank, **fit, **column(random), **hidden(random))
        estimator = estimator.copy({estimator.getParam(n): v for n, v in thresholds(random, 2).items()})
    else:
        estimator = FMRegressor(factorSize=rank, **fit, **column(random))
    return jvm.model_with_weights(
        estimator,
        {
            "intercept": float(numbers(random)) if fit["fitIntercept"] else 0.0,
            "linear": numbers(random, WIDTH) if fit["fitLinear"] else np.zeros(WIDTH),
            "factors": np.round(numbers(random, WIDTH, rank), 2),
        },
    )


def log_shares(random: np.random.Generator, *shape: int) -> np.ndarray:
    shares = random.random(shape) ** 3 + 1e-6
    return np.log(shares / shares.sum(-1, keepdims=True))


def bayes(random: np.random.Generator, kind: str) -> Any:
    k = int(random.integers(2, 5))
    theta, sigma = log_shares(random, k, WIDTH), np.empty((0, 0))
    if kind == "complement":
        theta = -theta
    elif kind == "bernoulli":
        theta = np.log(random.uniform(1e-9, 1 - 1e-9, (k, WIDTH)))
    elif kind == "gaussian":
        theta, sigma = (
            numbers(random, k, WIDTH),
            10.0 ** random.integers(-10, 4, (k, WIDTH)) * random.random((k, WIDTH)),
        )
    estimator = NaiveBayes(modelType=kind, featuresCol=str(random.choice(list(COLUMNS))), **hidden(random))
    estimator = estimator.copy({estimator.getParam(n): v for n, v in thresholds(random, k).items()})
    return jvm.model_with_weights(estimator, {"pi": log_shares(random, k), "theta": theta, "sigma": sigma})


@pytest.mark.parametrize("make", [support_vector, perceptron, machine])
@generated(1)
@given(seeds)
def test_predictors(features: Features, make: Callable[[np.random.Generator], Any], drawn: list[int]) -> None:
    check([make(np.random.default_rng(s)) for s in drawn], features(WIDTH))


@pytest.fixture(scope="session")
def counted(spark: SparkSession) -> DataFrame:
    """Vectors that NaiveBayes accepts: `mixed`, `dense`, `sparse` with numbers from 0 on, `<name> binary` with 0 and 1."""
    values = [0.0, -0.0, 1.0, 2.0, 0.5, 1e-300, 1e5, 1e300, np.inf]
    rows = [random.choice(values[:6], WIDTH) for _ in range(16)]
    rows += [np.where(np.arange(WIDTH) == i % WIDTH, v, 1.0) for i, v in enumerate(values)]
    bits = [random.integers(0, 2, WIDTH).astype(float) for _ in rows]

    def stored(v: np.ndarray, i: int) -> tuple[Any, ...]:
        return (Vectors.dense(v) if i % 2 else sparse(v)), Vectors.dense(v), sparse(v)

    data = [(*stored(v, i), *stored(b, i)) for i, (v, b) in enumerate(zip(rows, bits, strict=True))]
    names = [*COLUMNS, *(f"{c} binary" for c in COLUMNS)]
    return spark.createDataFrame(data, names).repartition(2).cache()


@pytest.mark.parametrize("kind", ["multinomial", "complement", "bernoulli", "gaussian"])
@generated(1)
@given(seeds)
def test_naive_bayes(features: Features, counted: DataFrame, kind: str, drawn: list[int]) -> None:
    stages = [bayes(np.random.default_rng(s), kind) for s in drawn[: AT_ONCE // 2]]
    if kind == "bernoulli":
        stages = [s.copy({s.featuresCol: f"{s.getFeaturesCol()} binary"}) for s in stages]
    check(stages, features(WIDTH) if kind == "gaussian" else counted)


@pytest.mark.parametrize(
    ("kind", "value"), [("multinomial", -1e-300), ("complement", np.nan), ("bernoulli", 0.5), ("bernoulli", np.nan)]
)
def test_naive_bayes_refuses_what_spark_refuses(spark: SparkSession, kind: str, value: float) -> None:
    stage = bayes(np.random.default_rng(1), kind)
    name = stage.getFeaturesCol()
    df = spark.createDataFrame([(Vectors.dense(1.0, 0.0, 0.0, value),)], [name])
    with pytest.raises(
        sparkdiff.InputError, match=rf"{stage.uid}: column '{name}' holds {value!r}, but must hold 0 or"
    ):
        sparkdiff.translate(stage)({name: torch.tensor([[1.0, 0.0, 0.0, value]], dtype=torch.float64)})
    with pytest.raises(sparkdiff.InputError, match="Spark failed"):
        sparkdiff.verify(stage, df)


def tensor_of(rows: list[list[float]]) -> Any:
    import torch

    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture(scope="session")
def curves(spark: SparkSession) -> Any:
    """A fitted IsotonicRegressionModel to be rebuilt."""
    return IsotonicRegression(featuresCol="x").fit(spark.createDataFrame([(0.0, 0.0), (1.0, 1.0)], ["x", "label"]))


@pytest.fixture(scope="session")
def places(spark: SparkSession) -> DataFrame:
    """`x`, scalars on, between and beyond boundaries, and vectors that hold them at index 1."""
    values = [*np.linspace(-3, 3, 25), -0.0, np.nan, np.inf, -np.inf, 5e-324, 1e300, -1e300, 1.0, 0.1 + 0.2, 0.3]
    vectors = [np.array([7.0, v, 0.0]) for v in values]
    rows = [
        (float(v[1]), Vectors.dense(v) if i % 2 else sparse(v), Vectors.dense(v), sparse(v))
        for i, v in enumerate(vectors)
    ]
    rows.append((None, *rows[0][1:]))  # type: ignore[arg-type]  # null stays null, and NaN doesn't
    return spark.createDataFrame(rows, ["x", *COLUMNS]).repartition(2).cache()


def curve(random: np.random.Generator, base: Any) -> Any:
    size = int(random.choice([1, 2, 3, 8, 40]))
    boundaries = np.sort(random.choice([*np.linspace(-3, 3, 25), 0.3, 2.9999999], size, replace=True))
    if random.random() < 0.6:
        boundaries = np.unique(boundaries)
    if random.random() < 0.3:
        boundaries = np.where(boundaries == 0, -0.0, boundaries)  # to Java below 0.0
    steps = random.choice([0.0, 1e-9, 0.5, 20.0], len(boundaries))
    predictions, rises = numbers(random) + steps.cumsum(), bool(random.random() < 0.5)
    stage = mllib.isotonic(base, boundaries, predictions if rises else -predictions, rises)
    reads = str(random.choice(["x", "x", *COLUMNS]))
    return stage.copy({stage.featuresCol: reads, stage.featureIndex: 1, stage.isotonic: rises})


@generated(1)
@given(seeds)
def test_isotonic_regression(curves: Any, places: DataFrame, drawn: list[int]) -> None:
    check([curve(np.random.default_rng(s), curves) for s in drawn], places)


@pytest.mark.slow
def test_without_constructors(features: Features, counted: DataFrame, curves: Any, places: DataFrame) -> None:
    random = np.random.default_rng(4)
    stages = [make(random) for make in (support_vector, perceptron, machine, machine)]
    counting, smooth, steps = bayes(random, "multinomial"), bayes(random, "gaussian"), curve(random, curves)
    with patch.object(sessions, "has_constructors", return_value=False):
        check([*stages, smooth], features(WIDTH))
        check([counting], counted)
        check([steps], places)


def survival(random: np.random.Generator) -> Any:
    quantiles = random.choice(
        [1e-17, 1e-9, 0.001, 0.1, 0.5, 0.63, 0.99, 0.999999], random.integers(1, 4), replace=False
    )
    shown = {"quantilesCol": "quantiles"} if random.random() < 0.7 else {}
    fit = bool(random.random() < 0.7)
    estimator = AFTSurvivalRegression(
        quantileProbabilities=quantiles.tolist(), fitIntercept=fit, **shown, **column(random)
    )
    weights = {"coefficients": numbers(random, WIDTH), "intercept": float(numbers(random)) if fit else 0.0}
    return jvm.model_with_weights(
        estimator, {**weights, "scale": float(10.0 ** random.integers(-4, 3) * random.random())}
    )


def members(random: np.random.Generator, kind: str, count: int) -> list[Any]:
    """Binary classifiers without Params of their own."""
    plain = {"featuresCol": "mixed"}
    if kind == "LinearSVC":
        return [
            jvm.model_with_weights(
                LinearSVC(**plain), {"coefficients": numbers(random, WIDTH), "intercept": float(numbers(random))}
            )
            for _ in range(count)
        ]
    if kind == "FMClassifier":
        return [
            jvm.model_with_weights(
                FMClassifier(factorSize=2, **plain),
                {
                    "intercept": float(numbers(random)),
                    "linear": numbers(random, WIDTH),
                    "factors": np.eye(WIDTH, 2),
                },
            )
            for _ in range(count)
        ]
    if kind == "MultilayerPerceptronClassifier":
        estimator = MultilayerPerceptronClassifier(layers=[WIDTH, 2, 2], **plain)
        return [
            jvm.model_with_weights(estimator, {"weights": numbers(random, 2 * (WIDTH + 1) + 6)}) for _ in range(count)
        ]
    if kind == "NaiveBayes":
        estimator = NaiveBayes(modelType="gaussian", **plain)
        return [
            jvm.model_with_weights(
                estimator,
                {
                    "pi": log_shares(random, 2),
                    "theta": numbers(random, 2, WIDTH),
                    "sigma": random.random((2, WIDTH)) + 0.01,
                },
            )
            for _ in range(count)
        ]
    if kind in TREES:
        boosted = kind == "GBTClassifier"
        each = 1 if kind == "DecisionTreeClassifier" else 2
        nodes = [grown(random, each, 0 if boosted else 2) for _ in range(count)]
        return [
            trees.model_with_nodes(
                TREES[kind](**plain), n, WIDTH, treeWeights=np.array([0.3, 1.0]) if boosted else None
            )
            for n in nodes
        ]
    rows = {"LogisticRegression": 1, "LogisticRegression of 2 rows": 2}[kind]
    return [
        jvm.model_with_weights(
            LogisticRegression(family="multinomial" if rows == 2 else "binomial", **plain),
            {
                "coefficientMatrix": numbers(random, rows, WIDTH),
                "interceptVector": numbers(random, rows),
                "numClasses": 2,
                "isMultinomial": rows == 2,
            },
        )
        for _ in range(count)
    ]


def one_vs_rest(random: np.random.Generator, kind: str, count: int) -> Any:
    model = OneVsRestModel(models=members(random, kind, count))
    return model._set(featuresCol="mixed", classifier=LogisticRegression())  # what fitted them doesn't matter here


KINDS = (
    "LogisticRegression",
    "LinearSVC",
    "NaiveBayes",
    "GBTClassifier",
    "DecisionTreeClassifier",
    "LogisticRegression of 2 rows",
    "FMClassifier",
    "MultilayerPerceptronClassifier",
    "RandomForestClassifier",
)


# One a job: Spark's time to plan grows much faster than their number.
@pytest.mark.parametrize("kind", [*KINDS[:5], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[5:])])
def test_one_vs_rest(features: Features, kind: str) -> None:
    df = features(WIDTH).coalesce(1)  # Spark starts a Python process for each member, trial and partition
    check([one_vs_rest(np.random.default_rng(8), kind, 3 if kind == "LogisticRegression" else 2)], df)


@generated(1)
@given(seeds)
def test_survival(features: Features, drawn: list[int]) -> None:
    check([survival(np.random.default_rng(s)) for s in drawn], features(WIDTH))
