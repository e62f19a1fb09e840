"""Pipelines of the shipped configs: each function takes the training DataFrame and returns an unfitted Pipeline."""

from typing import Any

from pyspark.ml import Pipeline
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.feature import PCA, MinMaxScaler, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame

import sparkdiff

CALENDAR = ["season", "mnth", "hr", "holiday", "weekday", "workingday"]
WEATHER = ["weathersit"]
NUMERIC = ["temp", "atemp", "hum", "windspeed"]


def _calendar_and_weather() -> list[Any]:
    """StringIndexer, OneHotEncoder, VectorAssembler and StandardScaler: the columns of an hour, as `scaled`.

    The weather may show a level that the training rows don't have (the year has one hour of heavy rain): `keep`
    counts unseen levels as one more level, the last, and OneHotEncoder drops the last one, so that such a row gets
    all zeros instead of an error. The calendar's levels are all there; its indexer stays with `error`, because `keep`
    leaves a column for every level that was seen, they add up to 1, and with several such groups the covariance is
    so singular that Spark's PCA fails on some splits and on others returns wrong components without saying so.
    """
    categorical = [*CALENDAR, *WEATHER]
    return [
        StringIndexer(inputCols=CALENDAR, outputCols=[f"{column}_index" for column in CALENDAR]),
        StringIndexer(inputCols=WEATHER, outputCols=[f"{column}_index" for column in WEATHER], handleInvalid="keep"),
        OneHotEncoder(
            inputCols=[f"{column}_index" for column in categorical],
            outputCols=[f"{column}_onehot" for column in categorical],
        ),
        VectorAssembler(inputCols=[*(f"{column}_onehot" for column in categorical), *NUMERIC], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
    ]


def _components() -> list[Any]:
    return [*_calendar_and_weather(), PCA(inputCol="scaled", outputCol="components", k=10)]


def bikeshare(train: DataFrame) -> Pipeline:
    """Riders per hour from calendar and weather: ten principal components before a Poisson regression."""
    last = GeneralizedLinearRegression(featuresCol="components", labelCol="bikers", family="poisson", link="log")
    return Pipeline(stages=[*_components(), last])


def bikeshare_linear(train: DataFrame) -> Pipeline:
    """Riders per hour by least squares, to be tuned on another loss."""
    return Pipeline(stages=[*_components(), LinearRegression(featuresCol="components", labelCol="bikers")])


def bikeshare_ridge(train: DataFrame) -> Pipeline:
    """A Poisson regression on all columns, strongly regularised (regParam 1)."""
    last = GeneralizedLinearRegression(
        featuresCol="scaled", labelCol="bikers", family="poisson", link="log", regParam=1.0
    )
    return Pipeline(stages=[*_calendar_and_weather(), last])


def bikeshare_glr(train: DataFrame) -> Pipeline:
    """A Poisson regression on all columns, so weakly regularised that fine-tuning gains nothing (conf/bikeshare_grow.yaml)."""
    last = GeneralizedLinearRegression(
        featuresCol="scaled", labelCol="bikers", family="poisson", link="log", regParam=0.001
    )
    return Pipeline(stages=[*_calendar_and_weather(), last])


def bikeshare_gbt(train: DataFrame) -> Pipeline:
    """Riders per hour by 20 boosted trees on 11 columns; month and weather are categories, all others numbers."""
    words = ["mnth", "weathersit"]
    columns = [f"{c}_index" if c in words else c for c in (*CALENDAR, *WEATHER, *NUMERIC)]
    return Pipeline(
        stages=[
            StringIndexer(inputCols=words, outputCols=[f"{c}_index" for c in words], handleInvalid="keep"),
            VectorAssembler(inputCols=columns, outputCol="features"),
            GBTRegressor(featuresCol="features", labelCol="bikers", maxIter=20, seed=0),
        ]
    )


def bikeshare_busy(train: DataFrame) -> Pipeline:
    """Whether an hour is busy (a column `busy`, 0 or 1): ten principal components before a logistic regression."""
    return Pipeline(stages=[*_components(), LogisticRegression(featuresCol="components", labelCol="busy")])


def digits(train: DataFrame) -> Pipeline:
    """The digit on an 8x8 image: ten principal components of 64 pixels before a softmax."""
    pixels = [column for column in train.columns if column not in ("id", "label")]
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=pixels, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=10),
            LogisticRegression(featuresCol="components", labelCol="label", family="multinomial"),
        ]
    )


def digits_choices(train: DataFrame) -> Pipeline:
    """The digit on an 8x8 image: a scaler of two kinds or none, principal components, a softmax (conf/digits_search.yaml)."""
    pixels = [column for column in train.columns if column not in ("id", "label")]
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=pixels, outputCol="assembled"),
            sparkdiff.alternatives(
                StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
                MinMaxScaler(inputCol="assembled", outputCol="scaled"),
                None,
            ),
            PCA(inputCol="scaled", outputCol="components", k=10),
            LogisticRegression(featuresCol="components", labelCol="label", family="multinomial"),
        ]
    )


def digits_gbt(train: DataFrame) -> Pipeline:
    """Whether the digit on an 8x8 image is odd (a column `odd`, 0 or 1): 20 boosted trees on 64 pixels."""
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=[f"p{i}" for i in range(64)], outputCol="features"),
            GBTClassifier(featuresCol="features", labelCol="odd", maxIter=20, seed=0),
        ]
    )


def hourly(train: DataFrame) -> Pipeline:
    """Riders per hour without the season, so that all features mean the same in every part of the year (conf/weekly.yaml)."""
    categorical = ["hr", "weekday", "holiday", "weathersit"]
    return Pipeline(
        stages=[
            StringIndexer(
                inputCols=categorical, outputCols=[f"{column}_index" for column in categorical], handleInvalid="keep"
            ),
            OneHotEncoder(
                inputCols=[f"{column}_index" for column in categorical],
                outputCols=[f"{column}_onehot" for column in categorical],
            ),
            VectorAssembler(
                inputCols=[*(f"{column}_onehot" for column in categorical), *NUMERIC], outputCol="assembled"
            ),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            GeneralizedLinearRegression(
                featuresCol="scaled", labelCol="bikers", family="poisson", link="log", regParam=0.01
            ),
        ]
    )
