"""Metrics and winners of `sparkdiff.CrossValidator` are those of pyspark's with a small `tol`; all combinations are nightly."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from pyspark.ml import Pipeline, tuning
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import IDF, HashingTF, Tokenizer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame

import sparkdiff
from sparkdiff.tuning.solvers import Setting
from tests.support.linear_rows import Rows, deviation, objective
from tests.support.small_data import Write

ROOT = Path(__file__).parents[3]
TIGHT = {"tol": 1e-9, "maxIter": 3000}
Maps = list[dict[Any, Any]]


def generated(rows: int) -> dict[str, np.ndarray]:
    """A constant column, a sum of two others, a sparse one, several scales."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(rows, 4)) * [1, 5, 0.2, 1]
    x = np.c_[x, np.full(rows, 3.0), x[:, 0] + x[:, 1], x[:, 3] * (draw.random(rows) < 0.1)]
    signal = x[:, 0] - x[:, 1] / 5 + 4 * x[:, 2] + draw.logistic(size=rows)
    return {
        **{f"x{i}": column for i, column in enumerate(x.T)},
        "two": (signal > 0.5) * 1.0,
        "several": np.digitize(signal, [-1.0, 1.0]) * 1.0,
        "number": signal + 3.0,
        "count": draw.poisson(np.exp(0.2 * signal)) * 1.0,
        "positive": np.exp(0.3 * signal),
    }


def bike(rows: int) -> dict[str, np.ndarray]:
    """Hours of bike sharing, with all columns as numbers."""
    table = pa.csv.read_csv(ROOT / "data" / "bikeshare.csv").to_pandas()
    table = table.sample(rows, random_state=0)
    riders = table.pop("bikers").to_numpy(float)
    numbers = table.select_dtypes("number").drop(columns=["casual", "registered"])  # their sum is the label
    columns = {f"x{i}": column for i, column in enumerate(numbers.to_numpy(float).T)}
    several = np.digitize(riders, np.quantile(riders, [0.3, 0.7])) * 1.0
    return {
        **columns,
        "two": (riders > np.median(riders)) * 1.0,
        "several": several,
        "number": riders,
        "count": riders,
        "positive": riders + 1.0,
    }


def digits(rows: int) -> dict[str, np.ndarray]:
    """Pixels, many of them constant or sparse; odd or even, and which digit."""
    table = pa.csv.read_csv(ROOT / "data" / "digits.csv").to_pandas().drop(columns="id")
    table = table.sample(rows, random_state=0)
    label = table.pop("label").to_numpy(float)
    columns = {f"x{i}": column for i, column in enumerate(table.to_numpy(float).T)}
    return {**columns, "two": label % 2, "several": label, "number": label, "count": label, "positive": label + 1.0}


DATA = {"generated": generated, "bike": bike, "digits": digits}


def frame(write: Write, name: str, rows: int) -> DataFrame:
    found = DATA[name](rows)
    draw = np.random.default_rng(7)
    more = {"weight": draw.integers(0, 3, rows) * 1.0, "fold": (np.arange(rows) % 2).astype(np.int32)}
    inputs = [c for c in found if c[0] == "x"]
    data = VectorAssembler(inputCols=inputs, outputCol="features").transform(write(pa.table({**found, **more})))
    return data.drop(*inputs).coalesce(1).cache()


def compare(data: DataFrame, head: Any, maps: Maps, judges: Sequence[Any]) -> list[str]:
    """What differs, by setting and metric, but where Spark stops short of the optimum: Spark fits each setting once per fold,
    and its evaluators judge those models.
    """
    given = {"estimator": head, "estimatorParamMaps": maps, "numFolds": 2, "foldCol": "fold"}
    theirs = tuning.CrossValidator(**given, evaluator=judges[0], collectSubModels=True).fit(data)
    wrong = []
    for judge in judges:
        expected = np.array(theirs.avgMetrics)
        if judge is not judges[0]:
            folds = [
                [judge.evaluate(m.transform(data.where(f"fold = {k}"))) for m in own]
                for k, own in enumerate(theirs.subModels)
            ]
            expected = np.mean(folds, 0)
        ours = np.array(sparkdiff.CrossValidator(**given, evaluator=judge).fit(data).avgMetrics)
        told = sparkdiff.CrossValidator(**given, evaluator=judge).explain(data)
        assert told.solvedAtOnce == 2 * len(maps)
        off = np.abs(ours - expected) / np.maximum(1, np.abs(expected))
        for i in np.flatnonzero(~(off <= 1e-5)):
            if stops_early(data, head, maps[i], [models[i] for models in theirs.subModels]):
                ours[i] = expected[i]
                continue
            wrong.append(f"{judge.getMetricName()} {named(maps[i])}: {ours[i]:.10g}, Spark {expected[i]:.10g}")
        best = (np.argmax, np.argmin)[not judge.isLargerBetter()]
        # Settings that Spark itself can't tell apart at this tol share the first place.
        if abs(expected[best(ours)] - expected[best(expected)]) > 1e-6 * max(1, abs(expected[best(expected)])):
            wrong.append(
                f"{judge.getMetricName()} winner {named(maps[best(ours)])}, Spark {named(maps[best(expected)])}"
            )
    return wrong


def stops_early(data: DataFrame, head: Any, params: dict[Any, Any], theirs: Sequence[Any]) -> bool:
    """Whether Spark's objective is smaller at our models than at Spark's own, in no fold larger.

    Steps towards an elastic net end where none goes down, as in columns that depend on one another, also short of the optimum.
    """
    head, several = head.copy(params), isinstance(head, LogisticRegression)
    given = {"estimator": head, "estimatorParamMaps": [{}], "numFolds": 2, "foldCol": "fold", "collectSubModels": True}
    judge = RegressionEvaluator(labelCol=head.getLabelCol())
    ours = [models[0] for models in sparkdiff.CrossValidator(**given, evaluator=judge).fit(data).subModels]
    names = ("regParam", "elasticNetParam", "fitIntercept", "standardization", *(() if several else ("solver",)))
    setting = Setting(**{name: head.getOrDefault(name) for name in names})
    table = data.toPandas()
    weight = table[head.getWeightCol()] if head.isDefined("weightCol") else np.ones(len(table))
    x = np.stack([vector.toArray() for vector in table["features"]])
    rows = Rows(x, table[head.getLabelCol()].to_numpy(float), np.asarray(weight, float), table["fold"].to_numpy(int))

    def value(model: Any, fold: int) -> float:
        if several:
            return objective(
                rows, setting, model.coefficientMatrix.toArray(), model.interceptVector.toArray(), fold=fold
            )
        sigma, b = deviation(rows, setting, fold), model.coefficients.toArray()[None]
        return objective(rows, setting, b, np.array([model.intercept]), sigma, fold)

    gains = [
        value(other, fold) / value(own, fold) - 1 for fold, (own, other) in enumerate(zip(ours, theirs, strict=True))
    ]
    return min(gains) > -1e-10 and max(gains) > 1e-9


def named(params: dict[Any, Any]) -> str:
    return ", ".join(f"{param.name}={value}" for param, value in params.items())


def every(head: Any, **grid: Sequence[Any]) -> Maps:
    """All combinations of values."""
    return [
        {head.getParam(name): value for name, value in zip(grid, values, strict=True) if value is not None}
        for values in itertools.product(*grid.values())
    ]


def covering(head: Any, *rows: tuple[Any, ...]) -> Maps:
    """Settings of regParam, elasticNetParam, standardization, fitIntercept and weightCol."""
    names = ("regParam", "elasticNetParam", "standardization", "fitIntercept", "weightCol")
    return [
        {head.getParam(name): value for name, value in zip(names, row, strict=True) if value is not None}
        for row in rows
    ]


def of_two(label: str = "two") -> list[Any]:
    return [
        BinaryClassificationEvaluator(labelCol=label, numBins=0),
        BinaryClassificationEvaluator(labelCol=label, numBins=0, metricName="areaUnderPR"),
        *of_several(label),
    ]


def of_several(label: str = "several") -> list[Any]:
    return [MulticlassClassificationEvaluator(labelCol=label, metricName=name) for name in ("logLoss", "f1")]


def of_numbers(label: str = "number") -> list[Any]:
    return [RegressionEvaluator(labelCol=label, metricName=name) for name in ("rmse", "r2")]


@pytest.fixture
def small(write: Write, request: pytest.FixtureRequest) -> Iterator[DataFrame]:
    data = frame(write, request.param, 160)
    yield data
    data.unpersist()


# On each commit: any two values of two Params meet in some setting ----------------------------------------------------


@pytest.mark.nightly  # Spark takes minutes: columns depend on one another
@pytest.mark.parametrize("small", ["generated"], indirect=True)
def test_small_grids_of_everything(small: DataFrame) -> None:
    two = LogisticRegression(labelCol="two", **TIGHT)
    maps = covering(
        two,
        (1e-3, 0.0, True, True, "weight"),
        (1e-2, 0.5, True, False, None),
        (1e-2, 0.0, False, False, "weight"),
        (1e-3, 0.5, False, True, None),
    )
    assert compare(small, two, maps, of_two()) == []
    several = LogisticRegression(labelCol="several", **TIGHT)
    assert compare(small, several, maps_like(several, maps[:1] + maps[3:]), of_several()) == []
    number = LinearRegression(labelCol="number", **TIGHT)
    maps = maps_like(number, maps)
    for params, solver in zip(maps, ("auto", "l-bfgs", "l-bfgs", "normal"), strict=True):
        params[number.solver] = solver
    assert compare(small, number, maps, of_numbers()) == []


def maps_like(head: Any, maps: Maps) -> Maps:
    """The same values for another estimator."""
    return [{head.getParam(param.name): value for param, value in params.items()} for params in maps]


@pytest.mark.parametrize("small", ["digits"], indirect=True)
def test_pixels(small: DataFrame) -> None:
    head = LogisticRegression(labelCol="two", regParam=0.05, **TIGHT)
    assert compare(small, head, [{head.elasticNetParam: 0.0}], of_two()[1:3]) == []


@pytest.mark.parametrize("small", ["bike"], indirect=True)
def test_fixed_points_of_generalized_regressions(small: DataFrame) -> None:
    for family, label in (("poisson", "count"), ("gamma", "positive"), ("binomial", "two")):
        head = GeneralizedLinearRegression(family=family, labelCol=label, weightCol="weight")
        link = {head.link: "log"} if family == "gamma" else {}
        maps: Maps = [{**link, head.regParam: strength} for strength in (1e-4, 0.1)]
        judge = RegressionEvaluator(labelCol=label)
        given = {"estimator": head, "estimatorParamMaps": maps, "numFolds": 2, "foldCol": "fold", "evaluator": judge}
        found = sparkdiff.CrossValidator(**given, collectSubModels=True).fit(small)
        columns = small.select("features", label, "weight", "fold").collect()
        for fold, models in enumerate(found.subModels):
            used = [row for row in columns if row["fold"] != fold]
            x = np.array([[*row["features"].toArray(), 1.0] for row in used])
            y, w = (np.array([row[name] for row in used]) for name in (label, "weight"))
            for model, params in zip(models, maps, strict=True):
                b = np.r_[model.coefficients.toArray(), model.intercept]
                margin = x @ b
                mean = 1 / (1 + np.exp(-margin)) if family == "binomial" else np.exp(margin)
                slope = {"binomial": mean * (1 - mean)}.get(family, mean)  # of the mean by the margin
                variance = {"poisson": mean, "gamma": mean**2, "binomial": mean * (1 - mean)}[family]
                working = w * slope**2 / variance
                left = x.T @ (working * (y - mean) / slope) / working.sum()
                left[:-1] -= params[head.regParam] * b[:-1]
                assert np.linalg.norm(left / np.sqrt((x**2).mean(0))) <= 1e-8


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["two", pytest.param("number", marks=pytest.mark.nightly)])
def test_words(write: Write, kind: str) -> None:
    """Wide sparse rows, which stay sparse."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, 2, 120)
    lines = [" ".join(f"w{w}" for w in draw.zipf(1.4, 12) % 300 + 7 * y * (draw.random(12) < 0.2)) for y in label]
    columns = {"text": lines, "two": label * 1.0, "fold": (np.arange(120) % 2).astype(np.int32)}
    data = Tokenizer(inputCol="text", outputCol="words").transform(write(pa.table(columns))).coalesce(1).cache()
    terms = HashingTF(inputCol="words", outputCol="terms", numFeatures=2**10)
    weigh = IDF(inputCol="terms", outputCol="features")
    head: Any = LogisticRegression(labelCol="two", **TIGHT)
    maps, judges = [{head.regParam: 0.05}, {head.regParam: 0.05, head.elasticNetParam: 0.5}], of_two()[:1]
    if kind == "number":
        head = LinearRegression(labelCol="two", **TIGHT)
        maps, judges = [{head.regParam: 0.05, head.solver: "l-bfgs"}], of_numbers("two")[:1]
    assert compare(data, Pipeline(stages=[terms, weigh, head]), maps, judges) == []
    data.unpersist()


# All combinations -----------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*DATA])
@pytest.mark.parametrize("kind", ["binomial", "multinomial", "linear"])
def test_all_combinations(write: Write, name: str, kind: str) -> None:
    data = frame(write, name, 300)
    grid: dict[str, Any] = {
        "regParam": [1e-4, 1e-2],
        "elasticNetParam": [0.0, 0.5],
        "standardization": [True, False],
        "fitIntercept": [True, False],
        "weightCol": [None, "weight"],
    }
    if kind == "linear":
        head: Any = LinearRegression(labelCol="number", **TIGHT)
        wrong = compare(data, head, every(head, **grid, solver=["auto", "l-bfgs"]), of_numbers())
    else:
        head = LogisticRegression(labelCol="two" if kind == "binomial" else "several", **TIGHT)
        wrong = compare(data, head, every(head, **grid), of_two() if kind == "binomial" else of_several())
    assert wrong == []
    data.unpersist()
