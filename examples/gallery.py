"""The pipelines of the gallery, and the rows of those that have no file: functions that the YAML files beside this one name."""

import functools
import inspect
import pkgutil
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    IDF,
    PCA,
    HashingTF,
    OneHotEncoder,
    StandardScaler,
    StopWordsRemover,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
)
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

CALENDAR, WEATHER = ["season", "mnth", "hr", "holiday", "weekday", "workingday"], ["temp", "atemp", "hum", "windspeed"]
DAYS, SHOPS, VISITS = 300, 40, 20
"""Of the rows of shops; rows of a day."""


def bikes(train: DataFrame) -> Pipeline:
    """Riders per hour: one-hot columns, ten principal components, a Poisson regression."""
    index, hot = ([f"{c}_{kind}" for c in CALENDAR] for kind in ("index", "hot"))
    return Pipeline(
        stages=[
            StringIndexer(inputCols=CALENDAR, outputCols=index),
            OneHotEncoder(inputCols=index, outputCols=hot),
            VectorAssembler(inputCols=[*hot, *WEATHER], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=10),
            GeneralizedLinearRegression(featuresCol="components", labelCol="bikers", family="poisson", link="log"),
        ]
    )


def trees(train: DataFrame) -> Pipeline:
    """Riders per hour: Spark's boosted trees at their defaults."""
    return Pipeline(
        stages=[
            StringIndexer(inputCols=["mnth"], outputCols=["month"]),
            VectorAssembler(inputCols=["month", *(c for c in CALENDAR if c != "mnth"), *WEATHER], outputCol="features"),
            GBTRegressor(labelCol="bikers", seed=0),
        ]
    )


def digits(train: DataFrame) -> Pipeline:
    """Which digit an image shows: ten principal components of 64 pixels, a softmax."""
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=[f"p{i}" for i in range(64)], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=10),
            LogisticRegression(featuresCol="components", family="multinomial"),
        ]
    )


def text(train: DataFrame) -> Pipeline:
    """Of which package a paragraph is: hashed words, a logistic regression."""
    return Pipeline(
        stages=[
            Tokenizer(inputCol="text", outputCol="all"),
            StopWordsRemover(inputCol="all", outputCol="words"),
            HashingTF(inputCol="words", outputCol="counts", numFeatures=1024),
            IDF(inputCol="counts", outputCol="features"),
            LogisticRegression(regParam=0.1),
        ]
    )


@functools.cache
def paragraphs() -> pd.DataFrame:
    """Paragraphs of the docstrings of SciPy (label 0) and scikit-learn (1), in the order of their text."""
    found: dict[str, float] = {}
    for label, package in enumerate(("scipy.stats", "sklearn.linear_model", "scipy.optimize", "sklearn.ensemble")):
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if "test" in module.name:
                continue
            for value in vars(import_module(module.name)).values():
                if getattr(value, "__module__", "") == module.name and (doc := inspect.getdoc(value)):
                    found |= {part: float(label % 2) for part in doc.split("\n\n") if len(part.split()) >= 8}
    return pd.DataFrame({"text": sorted(found), "label": [found[t] for t in sorted(found)]})


def fifths(spark: SparkSession, low: int, high: int) -> DataFrame:
    """Paragraphs by a hash of their text."""
    fifth = F.pmod(F.xxhash64("text"), F.lit(5))
    return spark.createDataFrame(paragraphs()).coalesce(1).where(fifth.between(low, high))


def paragraphs_train(spark: SparkSession) -> DataFrame:
    return fifths(spark, 0, 2)


def paragraphs_validation(spark: SparkSession) -> DataFrame:
    return fifths(spark, 3, 3)


def paragraphs_test(spark: SparkSession) -> DataFrame:
    return fifths(spark, 4, 4)


def visits() -> pd.DataFrame:
    """What visitors of shops spend, day by day: the effect of the price turns round in a year, and each shop has a level."""
    random, count = np.random.default_rng(0), DAYS * VISITS
    day = np.repeat(np.arange(DAYS), VISITS)
    shop = random.integers(0, SHOPS, count)
    price, hour = random.normal(size=count), random.uniform(8, 20, count)
    turned = np.cos(np.pi * day / DAYS)
    spent = 10 + 2 * turned * price - 0.1 * (hour - 14) ** 2 + 1.5 * random.normal(size=SHOPS)[shop]
    spent += random.normal(size=count)
    return pd.DataFrame({"day": day, "shop": [f"s{i}" for i in shop], "price": price, "hour": hour, "spent": spent})


def visits_train(spark: SparkSession) -> DataFrame:
    """All but the last 50 days; the last fifth of these is held out."""
    return spark.createDataFrame(visits()).coalesce(1).where(f"day < {DAYS - 50}")


def visits_test(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(visits()).coalesce(1).where(f"day >= {DAYS - 50}")


def shops(train: DataFrame) -> PipelineModel:
    """What a visitor spends: a linear regression that was fitted on the first 100 days, and is used since."""
    stages: list[Any] = [
        VectorAssembler(inputCols=["price", "hour"], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="features", withMean=True),
        LinearRegression(labelCol="spent"),
    ]
    return Pipeline(stages=stages).fit(train.where("day < 100"))
