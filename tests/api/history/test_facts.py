"""The cheap facts of a pipeline tell slack from an optimum."""

import contextlib
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import CountVectorizer, Tokenizer
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.data import rehearsal
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.history import pipeline_facts
from sparkdiff.history.pipeline_facts import Facts, SampleError, Samples, measure_facts, training_facts
from sparkdiff.jvm.sessions import count_jobs
from sparkdiff.options import Options
from tests.support.small_data import QUICK, pipeline

FAST = {**QUICK, "verbosity": 0, "seed": 2}


def facts_of(task: Any, df: DataFrame) -> Facts:
    with contextlib.closing(Samples()) as samples:
        return measure_facts(task, df, samples)[0]


def test_facts_tell_slack_from_an_optimum(numeric: PipelineModel, df: DataFrame) -> None:
    best = pipeline(df, GeneralizedLinearRegression(featuresCol="x", labelCol="riders", family="poisson"))
    slack, none = (facts_of(prepare(m, Options.of(FAST), df), df) for m in (numeric, best))
    assert slack["rows"] == none["rows"] == df.count() and slack["parameters"] > none["parameters"] == 5
    assert slack["heldOut"] == pytest.approx(0.2 * df.count(), rel=0.2)
    assert slack["gradientSignal"] > 5 > 1 > none["gradientSignal"]
    assert slack["quadraticGain"] > 0.02 > 0.005 > none["quadraticGain"]
    assert slack["stepGain"] > 0.02 > abs(none["stepGain"])
    assert slack["lastEpochGain"] > slack["firstEpochGain"] > 0 and slack["lastEpochZ"] > 3 > none["lastEpochZ"]
    assert 0 < slack["secondsPerRow"] < 0.01 and slack["epochs"] == 4
    assert slack["head:linear"] == 1.0 and slack["trainedBeforeHead"] == 1.0 and none["trainedBeforeHead"] == 0.0


def test_sparse_rows_have_the_entries_that_are_stored(spark: SparkSession) -> None:
    rows = [(" ".join(f"w{(i * j) % 300}" for j in range(1, 5)), float(i % 2)) for i in range(200)]
    df = spark.createDataFrame(rows, "text string, label double")
    stages = [Tokenizer(inputCol="text", outputCol="words"), CountVectorizer(inputCol="words", outputCol="features")]
    model = Pipeline(stages=[*stages, LogisticRegression(maxIter=2)]).fit(df)
    facts = facts_of(prepare(model, Options(), df), df)
    distinct = [len(set(text.split())) for text, _ in rows]
    assert facts["width"] > 128
    beside = facts["width"] - len(model.stages[1].vocabulary)  # the label and what else is a column of its own
    assert facts["entries"] == pytest.approx(sum(distinct) / len(rows) + beside)


def test_metadata_that_tell_a_wrong_width_change_nothing(spark: SparkSession) -> None:
    rows = [(Vectors.dense(i % 3, i % 5, -(i % 7), 1.0 / (1 + i)), float(i % 2)) for i in range(200)]
    df = spark.createDataFrame(rows, ["features", "label"])
    wrong = df.withMetadata("features", {"ml_attr": {"num_attrs": 2}})
    model = PipelineModel([LogisticRegression(maxIter=2).fit(df)])
    found, other = (facts_of(prepare(model, Options(), data), data) for data in (df, wrong))
    assert {k: v for k, v in found.items() if k != "secondsPerRow"} == {
        k: v for k, v in other.items() if k != "secondsPerRow"
    }


def test_the_step_of_the_facts_is_that_of_the_quadratic(numeric: PipelineModel, df: DataFrame) -> None:
    """On the training rows themselves, the loss falls about as far as gradient and curvature promise."""
    found = facts_of(prepare(numeric, Options.of(FAST), df), df)
    assert found["stepGain"] == pytest.approx(found["quadraticGain"], rel=0.6)


def test_facts_are_of_rows_from_the_whole_table(
    numeric: PipelineModel, df: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out rows lie at the end of a table that is longer than the sample."""
    for module in (pipeline_facts, rehearsal):
        monkeypatch.setattr(module, "SAMPLE", 400)
    count = df.count()
    number = F.monotonically_increasing_id() % (1 << 33)
    rows = df.coalesce(1).withColumn("held", number >= int(0.75 * count))
    found = facts_of(prepare(numeric, Options.of({**FAST, "validationIndicatorCol": "held"}), rows), rows)
    assert found["rows"] == count and found["heldOut"] == pytest.approx(0.25 * count, rel=0.3)
    none = df.coalesce(1).withColumn("held", F.lit(False))
    with pytest.raises(SampleError, match=r"on a sample of about .* of its .* rows: .*; with all rows it may work"):
        facts_of(prepare(numeric, Options.of({**FAST, "validationIndicatorCol": "held"}), none), none)


def test_held_out_rows_do_not_tell_the_facts_of_training(numeric: PipelineModel, df: DataFrame) -> None:
    """By them an improvement chooses what it tests on these rows."""
    task = prepare(numeric, Options.of({**FAST, "validationIndicatorCol": "held"}), df.withColumn("held", F.lit(True)))
    rows = df.coalesce(1).withColumn("held", F.monotonically_increasing_id() % 4 == 0)
    other = rows.withColumn("riders", F.when(F.col("held"), F.col("riders") * 7 + 3).otherwise(F.col("riders")))
    count = df.count()
    found, same = (training_facts(task, data, count) for data in (rows, other))
    assert found == same and found["gradientSignal"] > 1
    whole = facts_of(task, rows)
    assert {name: whole[name] for name in found} == found and whole != facts_of(task, other)


def test_a_table_is_counted_and_drawn_from_once(numeric: PipelineModel, df: DataFrame) -> None:
    """The second pipeline finds the rows in memory; at the end nothing is held, and the table itself never was."""
    task, jobs, found = prepare(numeric, Options.of(FAST), df), list[int | None](), list[dict[str, float]]()
    with contextlib.closing(Samples()) as samples:
        for _ in range(2):
            with count_jobs(df.sparkSession) as count:
                found.append({**measure_facts(task, df, samples)[0], "secondsPerRow": 0.0})
                jobs.append(count())
        few = samples.of(df, task.options.seed).few
        assert few.storageLevel.useMemory and not df.storageLevel.useMemory
    assert not few.storageLevel.useMemory
    assert found[0] == found[1] and jobs[0] is not None and jobs[1] is not None and 0 < jobs[1] < jobs[0]
