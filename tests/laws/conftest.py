"""Fitted stages to rebuild, and rows for them, made once per run."""

import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import PCA, MinMaxScaler, StandardScaler
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import testing
from tests.support import other_devices
from tests.support.stages_and_rows import COLUMNS, Features, Fitted, adversarial, sparse


@pytest.fixture(scope="session")
def fitted(spark: SparkSession) -> Fitted:
    """One fitted stage of each class with weights, to be rebuilt with others.

    Behind a function, as hypothesis prints arguments and a GeneralizedLinearRegressionModel without a link fails in repr.
    """
    data = [(Vectors.dense(1.0, 2.0), 0.0), (Vectors.dense(2.0, 1.0), 1.0), (Vectors.dense(3.0, 5.0), 1.0)]
    df = spark.createDataFrame(data, ["features", "label"]).cache()
    estimators = [
        StandardScaler(inputCol="features", outputCol="scaled"),
        MinMaxScaler(inputCol="features", outputCol="scaled"),
        PCA(inputCol="features", outputCol="components", k=1),
        LinearRegression(solver="normal"),
        GeneralizedLinearRegression(maxIter=1),
        LogisticRegression(maxIter=0),
    ]
    stages = {type(e).__name__: e.fit(df) for e in estimators}
    return lambda name: stages[name]


@pytest.fixture(scope="session")
def features(spark: SparkSession) -> Features:
    """Vectors of one width: `mixed` has dense and sparse rows, `dense` and `sparse` one kind; and an `offset`."""
    made: dict[int, DataFrame] = {}
    offsets = [0.0, None, -3.0, 1.5, np.nan, np.inf, 700.0, 1e-9]

    def of_width(width: int) -> DataFrame:
        if width not in made:
            data = [
                (Vectors.dense(v) if i % 2 else sparse(v), Vectors.dense(v), sparse(v), offsets[i % len(offsets)])
                for i, v in enumerate(adversarial(width))
            ]
            made[width] = spark.createDataFrame(data, [*COLUMNS, "offset"]).repartition(2).cache()
        return made[width]

    return of_width


@pytest.fixture(autouse=True)
def _other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test gives to `check_stages` is checked on other devices, too."""
    other_devices.checked.clear()
    monkeypatch.setattr(testing, "_compare", other_devices.compare)
