"""Small data with all that the options speak of, an unfitted pipeline for it, and short ways to the code under test."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import PCA, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame
from torch import Tensor

from sparkdiff import FineTuner, FineTunerModel
from sparkdiff.data import cache as caches
from sparkdiff.data.cache import Cache
from sparkdiff.data.fingerprint import Request, fingerprint
from sparkdiff.data.splits import SPLIT, Source, with_splits
from sparkdiff.data.stream import petastorm
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.options import Options

HAS_PETASTORM = not petastorm.refusal(Path("/"), ())
ROWS = 1500
Write = Callable[..., DataFrame]
NUMBERS = ["temp", "hum", "wind", "noise"]


def riders(rows: int = ROWS) -> pa.Table:
    """Counts that depend on `wind` and `noise` most, which a PCA of the three widest columns passes over.

    What comes of exp and tanh is rounded: their last bits depend on the processor, and by its bits a row goes to a split.
    """
    random = np.random.default_rng(5)
    hour = random.integers(0, 5, rows)
    temp, hum = random.normal(size=(2, rows))
    common = random.normal(size=rows)
    temp, hum = common + 0.3 * temp, common + 0.3 * hum
    wind, noise = random.normal(size=(2, rows))
    rate = np.exp(1.0 + 0.2 * hour + 0.4 * wind - 0.3 * noise + 0.1 * common)
    start = datetime.datetime(2024, 1, 1)
    return pa.table(
        {
            "hour": pa.array([f"h{h}" for h in hour]),
            "temp": temp,
            "hum": hum,
            "wind": wind,
            "noise": noise,
            "riders": random.poisson(rate).astype(np.float64),
            "wait": np.round(random.gamma(2.0, rate / 2) + 0.01, 6),
            "delay": np.round(random.gamma(4.0, 0.25, rows) / (2 + np.tanh(wind) - 0.5 * np.tanh(noise)) + 0.01, 6),
            "rain": (random.random(rows) < 1 / (1 + np.exp(-2 * wind + noise))).astype(np.float64),
            "kind": np.digitize(wind + 0.5 * random.normal(size=rows), [-0.5, 0.5]).astype(np.float64),
            "weight": random.integers(0, 3, rows).astype(np.float64),
            "exposure": random.normal(size=rows) / 3,
            "user": np.arange(rows) // 10,
            "held": random.random(rows) < 0.3,
            "number": np.arange(rows, dtype=np.float64),
            "when": [start + datetime.timedelta(hours=h) for h in range(rows)],
        }
    )


def unfitted(label: str = "riders", components: int = 3, *last: Any) -> Pipeline:
    return Pipeline(
        stages=[
            StringIndexer(inputCol="hour", outputCol="hour_index"),
            OneHotEncoder(inputCol="hour_index", outputCol="hour_onehot"),
            VectorAssembler(inputCols=["hour_onehot", *NUMBERS], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=components),
            *(last or [GeneralizedLinearRegression(featuresCol="components", labelCol=label, family="poisson")]),
        ]
    )


def requested(model: Any, data: DataFrame | list[Source], options: dict[str, Any]) -> Request:
    """What a fit asks to be cached."""
    given = Options.of(options)
    task = prepare(model, given)
    sources = data if isinstance(data, list) else [Source(data)]
    return Request(task.cut, sources, given, task.labelCol, task.weightCol)


def cached(model: Any, data: DataFrame | list[Source], folder: Path | None, **options: Any) -> Cache:
    """The cache of a fit, without the training."""
    return caches.open_cache(requested(model, data, {"cacheDir": folder and str(folder), **options}))


def fingerprint_of(model: Any, data: DataFrame | list[Source], **options: Any) -> str:
    """The fingerprint alone, which decides whether a fit takes a cache that exists or writes a new one."""
    request = requested(model, data, options)
    return fingerprint(request, caches.root(request.options))


def files(df: DataFrame) -> list[str]:
    """Where its rows are, as a reader takes it: what Spark tells has %20 for a space."""
    return [unquote(uri) for uri in df.inputFiles()]


QUICK = {"maxEpochs": 4, "learningRate": 0.01, "stream": "arrow", "rowsAreNew": True}


def tune(model: Any, df: DataFrame, folder: Path | None, **options: Any) -> FineTunerModel:
    """A fit of few, large steps, from the pipeline as it is, whatever rows it has seen."""
    return FineTuner(pipeline=model, cacheDir=folder and str(folder), **{**QUICK, **options}).fit(df)


WEIGHTS = (
    *("std", "mean", "pc", "originalMin", "originalMax", "coefficients", "intercept"),
    *("coefficientMatrix", "interceptVector"),
)


def weights(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Every fitted number of the stages, by uid and name, as Spark shows it."""
    found = {}
    for stage in getattr(model, "stages", [model]):
        for name in WEIGHTS:
            try:
                value = getattr(stage, name)
            except Exception:  # a multinomial model has no `coefficients`, and says so with a Java error
                continue
            if not callable(value):
                array = np.array(value.toArray() if hasattr(value, "toArray") else value, dtype=np.float64)
                found[f"{stage.uid}.{name}"] = array
    return found


def same(one: Any, other: Any) -> bool:
    """Whether all weights of two models are equal, bit for bit."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert a
    return all(np.array_equal(a[k], b[k]) for k in a)


def sides(df: DataFrame, **options: Any) -> dict[str, DataFrame]:
    """The rows that train and those that decide, by the code under test (tests/api/data/test_splits.py checks it)."""
    dealt = with_splits([Source(df)], Options.of(options))[0]
    return {s: dealt.where(dealt[SPLIT] == s).select(*df.columns) for s in ("train", "validation")}


def half_deviance(y: np.ndarray[Any, Any], mu: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Poisson, by numpy."""
    return np.where(y > 0, y * np.log(np.maximum(y, 1e-300) / mu), 0.0) - y + mu


def predictions(model: Any, df: DataFrame, *columns: str) -> np.ndarray[Any, Any]:
    return model.transform(df).select("prediction", *columns).toPandas().to_numpy()


def pipeline(df: DataFrame, head: Any, *before: Any) -> PipelineModel:
    """Assembler, stages in between, and a predictor that reads the last one's `x`."""
    return Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="raw" if before else "x"), *before, head]).fit(
        df
    )


def pinball(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    """A loss of one's own: the 0.9 quantile."""
    miss = label - outputs["prediction"]
    return torch.maximum(0.9 * miss, -0.1 * miss)


class Losses:
    """A loss may be a static method."""

    @staticmethod
    def squared(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
        return (outputs["prediction"] - label) ** 2
