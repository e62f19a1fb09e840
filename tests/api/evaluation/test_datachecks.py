"""Warnings with evidence: each fault that is planted is named, on rows that Spark prepared, and clean rows say nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import HashingTF, OneHotEncoder, StandardScaler, StringIndexer, Tokenizer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff.data.splits import Source
from sparkdiff.data.stream.batches import Stream
from sparkdiff.evaluation.row_checks import training_labels
from sparkdiff.evaluation.row_warnings import check
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from tests.support.small_data import NUMBERS, cached, tune, unfitted

pytestmark = pytest.mark.slow


def doubts(model: Any, data: DataFrame | list[Source], folder: Path, **options: Any) -> list[str]:
    """What a fit would warn of before it trains."""
    task = prepare(model, Options.of(options))
    cache = cached(model, data, folder, **options)
    network = Network(task.cut.graph, task.cut.live)
    with Stream(cache.folder, backend="arrow") as stream:
        data, label = Data(stream, cache.columns(task.cut)), training_labels(cache.manifest["stats"], task.options)
        return check(network, data, cache.manifest_entries(task.cut), task.options, label, cache.splits)


OLD = "number % 7 <> 0"
"""Rows that an original is fitted on: neither those of a side nor all, so that nothing can be said against it."""


def linear(data: DataFrame, label: str = "riders", columns: list[str] = NUMBERS, **params: Any) -> PipelineModel:
    """Assembler, scaler, linear regression, fitted on OLD rows."""
    stages = [
        VectorAssembler(inputCols=columns, outputCol="raw"),
        StandardScaler(inputCol="raw", outputCol="x", withMean=True),
        LinearRegression(featuresCol="x", labelCol=label, **params),
    ]
    return Pipeline(stages=stages).fit(data.where(OLD))


@pytest.fixture(scope="module")
def straight(df: DataFrame) -> PipelineModel:
    return linear(df)


@pytest.fixture(scope="module")
def old(df: DataFrame) -> PipelineModel:
    return unfitted().fit(df.where(OLD))


def held(df: DataFrame, *, fraction: float = 0.3) -> DataFrame:
    """The same rows with an indicator that depends on nothing else."""
    return df.withColumn("held", F.pmod(F.xxhash64("number"), F.lit(1000)) < int(1000 * fraction))


# Silence --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"groupCol": "user"}, {"validationIndicatorCol": "held"}, {"timeCol": "number"}]
)
def test_clean_rows_say_nothing(df: DataFrame, old: PipelineModel, shared: Path, options: dict[str, Any]) -> None:
    assert doubts(old, df, shared, **options) == []


@pytest.mark.parametrize(("plain", "grouped"), [(2, 1), pytest.param(27, 13, marks=pytest.mark.nightly)])
def test_false_alarms_over_seeds(df: DataFrame, old: PipelineModel, shared: Path, plain: int, grouped: int) -> None:
    """Hash splits of clean rows, a third of them by group; one finding in 40 would be a rate of 2.5%."""
    found = [w for seed in range(plain) for w in doubts(old, df, shared, seed=seed)]
    found += [
        w
        for seed in range(grouped)
        for w in doubts(old, df, shared, seed=seed, groupCol="user", validationFraction=0.4)
    ]
    assert len(found) <= (plain + grouped) // 40, found


# Faults, one by one ---------------------------------------------------------------------------------------------------


def test_sentinels_are_named(df: DataFrame, straight: PipelineModel, shared: Path) -> None:
    """One in each split, in a column of its own."""
    data = held(df)
    train, validation = (data.where(where).select("number").first()[0] for where in ("not held", "held"))  # type: ignore[index]
    for column, row in (("hum", train), ("temp", validation)):
        data = data.withColumn(column, F.when(F.col("number") == row, 999999.0).otherwise(F.col(column)))
    bad = df.limit(50).withColumn("wind", F.when(F.col("number") % 2 == 0, -9999.0).otherwise(F.col("wind")))
    rows = bad.where("wind = -9999").count()
    sources = [Source(data.where("not held"), "train"), Source(data.where("held"), "validation")]
    found = doubts(straight, [*sources, Source(bad.withColumn("held", F.lit(False)), "test")], shared)
    assert len(found) == 3
    for said in (
        "'hum' holds 999999 in 1 train row,",
        "'temp' holds 999999 in 1 validation row,",
        f"'wind' holds -9999 in {rows} test rows",
    ):
        assert any(said in text for text in found)


def test_a_leaking_number_is_named(df: DataFrame, shared: Path) -> None:
    data = df.withColumn("billed", 2.5 * F.col("riders") + 1 + F.col("noise") / 50)
    model = linear(data, columns=[*NUMBERS, "billed"], regParam=1.0)
    (text,) = doubts(model, data, shared)
    assert text.startswith("column 'billed' alone has a Pearson correlation of 1.0000")
    near = df.withColumn("billed", 2.5 * F.col("riders") + 8 * F.col("noise"))  # correlates, but honestly
    assert doubts(linear(near, columns=[*NUMBERS, "billed"], regParam=1.0), near, shared) == []


@pytest.mark.parametrize(("label", "what"), [("rain", "the two classes"), ("kind", "class 2 from the rest")])
def test_a_leaking_flag_is_named(df: DataFrame, shared: Path, label: str, what: str) -> None:
    top = 1 if label == "rain" else 2
    data = df.withColumn("refund", F.when(F.col(label) == top, -1.0 - F.abs("temp") / 100).otherwise(0.0))
    stages = [
        VectorAssembler(inputCols=[*NUMBERS, "refund"], outputCol="x"),
        LogisticRegression(featuresCol="x", labelCol=label, regParam=0.01),
    ]
    (text,) = doubts(Pipeline(stages=stages).fit(data.where(OLD)), data, shared)
    assert text.startswith(f"column 'refund' alone separates {what} with an AUC of 1.0000 on")


def test_rows_on_both_sides_are_counted(df: DataFrame, straight: PipelineModel, shared: Path) -> None:
    data = held(df)
    copied = data.unionByName(data.where("not held").limit(40).withColumn("held", F.lit(True)))
    (text,) = doubts(straight, copied, shared, validationIndicatorCol="held")
    total = data.where("held").count() + 40
    assert text.startswith(
        f"40 validation rows ({40 / total:.1%}) occur in train with the same inputs and label (chance would explain 0)"
    )
    given = [Source(data.where("not held"), "train"), Source(data.where("number < 300"), "validation")]
    both = data.where("number < 300 and not held").count()
    assert any(w.startswith(f"{both} validation rows") for w in doubts(straight, given, shared))


def test_groups_on_both_sides_are_counted(df: DataFrame, straight: PipelineModel, shared: Path) -> None:
    data = held(df)  # by row: the ten rows of a user lie on both sides
    sides = data.groupBy("user").agg(F.expr("count_if(held)").alias("held"), F.expr("count_if(not held)").alias("rest"))
    groups, both = sides.where("held > 0").count(), sides.where("held > 0 and rest > 0").count()
    (text,) = doubts(straight, data, shared, validationIndicatorCol="held", groupCol="user")
    assert text.startswith(f"{both} of the {groups} groups of 'user' in validation also have training rows")
    clean = df.withColumn("held", F.col("user") % 3 == 0)
    assert doubts(straight, clean, shared, validationIndicatorCol="held", groupCol="user") == []


def test_drift_names_what_moved(df: DataFrame, straight: PipelineModel, shared: Path) -> None:
    data = held(df).withColumn("noise", F.col("noise") + F.when(F.col("held"), 0.8).otherwise(0.0))
    (text,) = doubts(straight, data, shared, validationIndicatorCol="held")
    assert 0.65 < float(text.split("an AUC of ")[1].split()[0]) < 0.76  # at best Phi(0.8 / sqrt 2) = 0.71
    shift = float(text.split("mostly by 'noise' (")[1].split()[0])
    assert shift == pytest.approx(0.8 / np.sqrt(1 + 0.8**2 * 0.21), abs=0.15)
    by_time = df.withColumn("noise", F.col("noise") + F.col("number") / 500)  # 1,200 rows, then 300: a shift of 1.5
    (text,) = doubts(straight, by_time, shared, timeCol="number")
    assert "with timeCol some drift is expected" in text


@pytest.mark.parametrize("where", ["torch", "Spark", "dropped last"])
def test_categories_of_validation_only_are_named(df: DataFrame, shared: Path, where: str) -> None:
    storm = F.col("held") & (F.col("number") % 9 == 0)
    data = held(df).withColumn("sky", F.when(storm, "storm").when(F.col("number") % 2 == 0, "sun").otherwise("rain"))
    model = Pipeline(
        stages=[
            StringIndexer(inputCol="sky", outputCol="sky_index"),
            OneHotEncoder(inputCol="sky_index", outputCol="sky_onehot", dropLast=where == "dropped last"),
            VectorAssembler(inputCols=["sky_onehot", *NUMBERS], outputCol="x"),
            LinearRegression(featuresCol="x", labelCol="riders", regParam=0.1),
        ]
    ).fit(data)
    options = {"reference": (model.stages[1].uid,)} if where == "Spark" else {}
    found = doubts(model, data, shared, validationIndicatorCol="held", **options)
    rows = data.where(storm).count()
    (text,) = [w for w in found if "no training row has" in w]
    assert text.startswith(f"{rows} validation rows hold values of ")
    name = "sky_onehot_storm" if where == "Spark" else "storm"
    assert f"{name!r} in {rows}" in text or f"_{name}' in {rows}" in text
    assert "chance would explain 0.0 rows" in text


def test_too_few_rows_are_named(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    few = df.limit(200)
    tuned = tune(numeric, few, shared, guard=1e-6)
    assert tuned.summary.decision == "kept original"
    (text,) = [w for w in tuned.summary.warnings if w.startswith("there are few validation rows")]
    assert "to show a gain of 5%, use about" in text


# Sparse and wide ------------------------------------------------------------------------------------------------------


def test_hashed_text_is_checked_without_being_densified(df: DataFrame, shared: Path) -> None:
    numbers = F.array(*(F.concat(F.lit("w"), (F.col("number") * k % 97).cast("int")) for k in (1, 7, 31)))
    flag = F.when(F.col("rain") == 1, "umbrella").otherwise("parasol")
    often = F.when(F.col("number") == 5, F.expr("repeat('buffalo ', 80)")).otherwise("")  # as words are
    some = F.when(F.col("number") < 20, "buffalo").otherwise("")
    data = held(df).withColumn("text", F.concat_ws(" ", numbers, flag, some, often))
    stages = [
        Tokenizer(inputCol="text", outputCol="words"),
        HashingTF(inputCol="words", outputCol="x", numFeatures=1 << 14),
        LogisticRegression(featuresCol="x", labelCol="rain", regParam=0.1),
    ]
    model = Pipeline(stages=stages).fit(data.where(OLD))
    found = doubts(model, data, shared, validationIndicatorCol="held")
    leaks = [w for w in found if "alone separates the two classes" in w]
    slots = {f"'x[{model.stages[1].indexOf(word)}]'" for word in ("umbrella", "parasol")}
    assert {w.split()[1] for w in leaks} == slots
    assert found == leaks


# The original's own rows ----------------------------------------------------------------------------------------------

HEADS = {
    "least squares": lambda **p: LinearRegression(labelCol="riders", **p),
    "ridge": lambda **p: LinearRegression(labelCol="riders", regParam=1.0, **p),
    "elastic net": lambda **p: LinearRegression(labelCol="riders", regParam=0.5, elasticNetParam=0.5, **p),
    "quasi-Newton": lambda **p: LinearRegression(labelCol="riders", regParam=0.1, solver="l-bfgs", **p),
    "huber": lambda **p: LinearRegression(labelCol="riders", loss="huber", maxIter=200, **p),
    "poisson": lambda **p: GeneralizedLinearRegression(labelCol="riders", family="poisson", regParam=1.0, **p),
    "gamma log": lambda **p: GeneralizedLinearRegression(labelCol="wait", family="gamma", link="log", **p),
    "poisson sqrt": lambda **p: GeneralizedLinearRegression(labelCol="riders", family="poisson", link="sqrt", **p),
    "gaussian": lambda **p: GeneralizedLinearRegression(labelCol="riders", family="gaussian", **p),
    "tweedie": lambda **p: GeneralizedLinearRegression(
        labelCol="wait", family="tweedie", variancePower=1.5, linkPower=0.0, **p
    ),
    "binomial probit": lambda **p: GeneralizedLinearRegression(labelCol="rain", family="binomial", link="probit", **p),
    "logistic": lambda **p: LogisticRegression(labelCol="rain", regParam=0.01, **p),
    "logistic, not standardised": lambda **p: LogisticRegression(
        labelCol="rain", regParam=0.1, standardization=False, **p
    ),
    "softmax": lambda **p: LogisticRegression(labelCol="kind", regParam=0.01, **p),
}


@pytest.mark.nightly
@pytest.mark.parametrize(
    "head",
    [h if h in ("least squares", "softmax") else pytest.param(h, marks=pytest.mark.nightly) for h in HEADS],
)
def test_an_original_that_saw_validation_rows_is_found_out(df: DataFrame, shared: Path, head: str) -> None:
    data = held(df).cache()
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="x"), HEADS[head](featuresCol="x")])

    def found(rows: DataFrame) -> str:
        how: dict[str, Any] = {"validationIndicatorCol": "held", "rowsAreNew": False, "maxEpochs": 1, "recipe": "fast"}
        summary = tune(pipeline.fit(rows), data, shared, **how).summary
        return "; ".join([summary.reason, *(w for w in summary.warnings if "the rows that decide" in w)])

    assert "the rows that decide" not in found(data.where("not held"))
    assert "has seen the rows that decide" in found(data)
    assert "may have seen the rows that decide" in found(data.where("held"))


def test_the_summary_shows_them(df: DataFrame, old: PipelineModel, shared: Path) -> None:
    data = df.withColumn("hum", F.when(F.col("number") == 3, 999999.0).otherwise(F.col("hum")))
    summary = tune(old, data, shared).summary
    assert sum("'hum' holds 999999" in w for w in summary.warnings) == 1
    assert "999999" in str(summary)
    assert np.isfinite(summary.timings["check"])
