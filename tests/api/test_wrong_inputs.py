"""Wrong inputs: each gives one clear InputError with stage, column, value and remedy, and leaves nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    IndexToString,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from riders import NUMBERS, tune

import sparkdiff
from sparkdiff import FineTuner, InputError, SparkdiffError

ROOT = Path(__file__).parents[2]


def refused(folder: Path, *parts: str) -> Any:
    """An InputError that says all of these, after which the cache folder holds no unfinished and no useless cache."""

    class Refused:
        def __enter__(self) -> None:
            self.raises = pytest.raises(InputError)
            self.info = self.raises.__enter__()

        def __exit__(self, *error: Any) -> bool:
            handled = bool(self.raises.__exit__(*error))
            message = str(self.info.value)
            for part in parts:
                assert part in message
            assert not folder.exists() or not list(folder.iterdir())
            return handled

    return Refused()


def when(condition: str, value: object, column: str) -> Column:
    return F.when(F.expr(condition), F.lit(value)).otherwise(F.col(column))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("riders", None, ("labelCol='riders'", "None", "finite")),
        ("riders", float("nan"), ("labelCol='riders'", "nan", "finite")),
        ("riders", float("inf"), ("labelCol='riders'", "inf", "finite")),
        ("weight", None, ("weightCol='weight'", "None", ">= 0")),
        ("weight", float("nan"), ("weightCol='weight'", "nan", ">= 0")),
        ("weight", -1.0, ("weightCol='weight'", "-1.0", ">= 0")),
    ],
)
def test_labels_and_weights(
    df: DataFrame, numeric: PipelineModel, folder: Path, column: str, value: float | None, said: tuple[str, ...]
) -> None:
    with refused(folder, *said):
        tune(numeric, df.withColumn(column, when("number = 77", value, column)), folder, weightCol="weight")


def test_weights_that_are_all_zero(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    with pytest.raises(InputError, match=r"0 train rows of weight > 0, at least 1"):
        tune(numeric, df.withColumn("weight", F.lit(0.0)), folder, weightCol="weight")


def regression(**params: Any) -> list[Any]:
    return [
        VectorAssembler(inputCols=NUMBERS, outputCol="x"), StandardScaler(inputCol="x", outputCol="s"),
        GeneralizedLinearRegression(featuresCol="s", **params),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "family", "value", "said"),
    [
        ("riders", "poisson", -3.0, ("'riders'", "-3.0", "poisson", ">= 0")),
        ("wait", "gamma", 0.0, ("'wait'", "0.0", "gamma", "> 0")),
        ("rain", "binomial", 2.0, ("'rain'", "2.0", "logLoss", "from 0 to 1")),
    ],
)
def test_labels_that_the_family_has_no_likelihood_for(
    df: DataFrame, folder: Path, label: str, family: str, value: float, said: tuple[str, ...]
) -> None:
    model = Pipeline(
        stages=regression(family=family, link="logit" if family == "binomial" else "log", labelCol=label)
    ).fit(df)
    with pytest.raises(InputError) as info:
        tune(model, df.withColumn(label, when("number = 77", value, label)), folder)
    for part in said:
        assert part in str(info.value)


@pytest.mark.parametrize("value", [3.0, 0.5, -1.0])
def test_labels_outside_the_classes(df: DataFrame, folder: Path, value: float) -> None:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="x"),
        LogisticRegression(featuresCol="x", labelCol="kind", maxIter=3),
    ]
    model = Pipeline(stages=stages).fit(df)
    with pytest.raises(InputError, match=rf"'kind' holds {value}.*class indices 0 to 2"):
        tune(model, df.withColumn("kind", when("number = 77", value, "kind")), folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_not_finite_and_reaches_a_linear_stage(df: DataFrame, folder: Path, value: float | None) -> None:
    model = Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="x", handleInvalid="keep"),
            LinearRegression(featuresCol="x", labelCol="riders"),
        ]
    ).fit(df)
    spoilt = df.withColumn("hum", when("number = 77", value, "hum"))
    with pytest.raises(InputError) as info:
        tune(model, spoilt, folder)
    for part in (model.stages[1].uid, "'x'", "entry 1", "inf" if value == float("inf") else "nan", "impute"):
        assert part in str(info.value)


def test_nan_that_reaches_a_pca(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    model = numeric.copy()
    model.stages[0].setHandleInvalid("keep")
    with pytest.raises(InputError, match=rf"{model.stages[2].uid}: entry 2 of column 'assembled' holds nan"):
        tune(model, df.withColumn("wind", when("number = 77", float("nan"), "wind")), folder)


def test_nan_that_the_assembler_refuses(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    numeric.stages[0].setHandleInvalid("error")
    with refused(folder, "Spark failed", numeric.stages[0].uid, "NaN"):
        tune(numeric, df.withColumn("wind", when("number = 77", float("nan"), "wind")), folder)


def test_an_unseen_category_that_the_indexer_refuses(df: DataFrame, model: PipelineModel, folder: Path) -> None:
    with refused(folder, "Spark failed", model.stages[0].uid, "h99"):
        tune(model, df.withColumn("hour", when("number = 77", "h99", "hour")), folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labelCol": "rider"}, ("labelCol='rider'", "Did you mean 'riders'")),
        ({"weightCol": "weigth"}, ("weightCol='weigth'", "Did you mean 'weight'")),
        ({"groupCol": "users"}, ("groupCol='users'", "Did you mean 'user'")),
        ({"timeCol": "then"}, ("timeCol='then'", "'when'")),
        ({"timeCol": "hour"}, ("timeCol='hour'", "timestamp, date or number", "string")),
        ({"validationIndicatorCol": "hed"}, ("validationIndicatorCol='hed'", "Did you mean 'held'")),
        ({"validationIndicatorCol": "rain"}, ("validationIndicatorCol='rain'", "boolean")),
        ({"freeze": ["PCA"]}, ("freeze='PCA'", "PCAModel")),
        ({"target": ["assembled"]}, ("can't train", "nothing to train")),
        ({"freeze": ["scaled", "components", "prediction"]}, ("nothing to train", "frozen by request")),
        ({"predictionCol": "predicted"}, ("predictionCol='predicted'", "'prediction'")),
        ({"loss": "logLoss"}, ("logLoss", "probabilities")),
        ({"loss": "huber"}, ("huber", "delta", "None")),
        ({"loss": "quantile", "lossParams": {"tau": 1.5}}, ("tau", "1.5")),
        ({"lossParams": {"tau": 0.5}}, ("tau", "mean nothing")),
        ({"learningRates": {"PCAModle": 0.1}}, ("learningRates='PCAModle'", "PCAModel")),
    ],
)
def test_options_that_the_data_or_the_pipeline_refuse(
    df: DataFrame, numeric: PipelineModel, folder: Path, options: dict[str, Any], said: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as info:
        tune(numeric, df, folder, **options)
    for part in said:
        assert part in str(info.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learningrate": 0.1}, ("unknown option 'learningrate'", "Did you mean 'learningRate'")),
        ({"maxEpochs": 0}, ("'maxEpochs'", "[1, inf)", "Got 0")),
        ({"maxEpochs": 2.5}, ("'maxEpochs'", "whole number", "Got 2.5")),
        ({"learningRate": "fast"}, ("'learningRate'", "finite number", "Got 'fast'")),
        ({"learningRate": 0}, ("'learningRate'", "(0, inf)")),
        ({"guard": 1.5}, ("'guard'", "(0, 1]")),
        ({"optimizer": "adamm"}, ("'optimizer'", "adam, adamw, sgd")),
        ({"loss": "mse"}, ("'loss'", "squared")),
        ({"freeze": 3}, ("'freeze'", "list of stages or their names")),
        ({"validationIndicatorCol": "a", "validationFraction": 0.1}, ("exclude each other",)),
        ({"groupCol": "a", "timeCol": "b"}, ("exclude each other",)),
        ({"maxEpochs": -1, "patience": -1}, ("'maxEpochs'", "'patience'")),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as info:
        FineTuner(**options)
    for part in said:
        assert part in str(info.value)


def test_too_few_rows_and_groups(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    with pytest.raises(InputError, match=r"\d validation rows of weight > 0, at least 30"):
        tune(numeric, df.limit(60), folder)
    with pytest.raises(InputError, match=r"1 groups with weight.*at least 30"):
        tune(
            numeric,
            df.withColumn("user", when("number % 5 = 0", 1, "number") % 2),
            folder,
            groupCol="user",
            validationFraction=0.5,
        )


def test_null_that_leaves_a_row_on_no_side(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    for column, option in (("held", "validationIndicatorCol"), ("when", "timeCol")):
        with refused(folder, f"{option}={column!r}", "null"):
            tune(numeric, df.withColumn(column, when("number = 77", None, column)), folder, **{option: column})
    with refused(folder, "groupCol='user'", "null"):
        tune(numeric, df.withColumn("user", when("number = 77", None, "user")), folder, groupCol="user")


def test_pipelines_that_cannot_be_tuned(df: DataFrame, folder: Path, spark: SparkSession) -> None:
    pipeline = Pipeline(stages=regression(family="poisson", labelCol="riders"))
    with pytest.raises(InputError, match=rf"{pipeline.uid} isn't fitted: fit it first"):
        sparkdiff.plan(pipeline)
    with pytest.raises(InputError, match="isn't fitted"):
        sparkdiff.translate(pipeline.getStages()[2])
    with pytest.raises(InputError, match="expected a fitted PipelineModel or stage, got str"):
        sparkdiff.plan("models/churn")
    with pytest.raises(InputError, match="has no pipeline"):
        FineTuner().fit(df)
    indexer = Pipeline(
        stages=[StringIndexer(inputCol="hour", outputCol="i"), IndexToString(inputCol="i", outputCol="h")]
    ).fit(df)
    with refused(folder, "nothing to train", "strings"):
        tune(indexer, df, folder, labelCol="riders")
    scaler = Pipeline(stages=regression()[:2]).fit(df)
    with refused(folder, "nothing to train", "no predictor"):
        tune(scaler, df, folder, labelCol="riders")
    two = Pipeline(
        stages=[
            *regression(family="poisson", labelCol="riders"),
            LinearRegression(featuresCol="s", labelCol="wait", predictionCol="waiting"),
        ]
    ).fit(df)
    with refused(folder, "several predictors", "prediction", "waiting", "predictionCol"):
        tune(two, df, folder)


def test_a_referenced_stage_that_drops_the_label(df: DataFrame, folder: Path) -> None:
    select = SQLTransformer(statement=f"SELECT {', '.join(NUMBERS)} FROM __THIS__")
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="x")
    last = LinearRegression(featuresCol="x", labelCol="riders").fit(assembler.transform(df))
    model = PipelineModel([select, assembler, last])
    with refused(folder, select.uid, "drops column", "SELECT *"):
        tune(model, df, folder)


def test_a_string_where_a_number_is_needed(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    with refused(folder, "wind"):
        tune(numeric, df.withColumn("wind", F.lit("strong")), folder)


def test_a_missing_column(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    with refused(folder, numeric.stages[0].uid, "'wind'", "lack"):
        tune(numeric, df.drop("wind"), folder)


def test_a_streaming_dataframe(spark: SparkSession, numeric: PipelineModel, folder: Path) -> None:
    stream = spark.readStream.format("rate").load()
    with refused(folder, "stream"):
        tune(numeric, stream, folder)
    with pytest.raises(InputError, match="stream"):
        sparkdiff.verify(numeric, stream)


def wrong_shape(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return ((outputs["prediction"] - label) ** 2).mean()


def test_a_callable_of_the_wrong_shape(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    with pytest.raises(InputError, match=r"wrong_shape.*returned shape \(\).*one value per row"):
        tune(numeric, df, shared, loss=wrong_shape)


def test_the_session_was_stopped(tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(
        """
from pyspark.ml.feature import StandardScaler
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
import sparkdiff
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
df = spark.createDataFrame([(Vectors.dense([1.0]),), (Vectors.dense([2.0]),)], ["x"])
model = StandardScaler(inputCol="x", outputCol="s").fit(df)
spark.stop()
for call in (lambda: sparkdiff.plan(model), lambda: sparkdiff.translate(model), lambda: sparkdiff.verify(model, df),
             lambda: sparkdiff.FineTuner(pipeline=model, labelCol="y").fit(df)):
    try:
        call()
    except sparkdiff.SparkdiffError as e:
        print("REFUSED", e)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    refusals = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert len(refusals) == 4
    assert all("session" in line.lower() for line in refusals)


def test_every_error_is_a_sparkdiff_error() -> None:
    found: list[Callable[..., Any]] = [InputError, sparkdiff.ParityError]
    assert all(issubclass(e, SparkdiffError) for e in found)  # type: ignore[arg-type]
