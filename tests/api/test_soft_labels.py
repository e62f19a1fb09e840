"""Fine-tuning on class probabilities: the optimum is MLlib's on weighted rows, and only true labels decide."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import (
    DecisionTreeClassifier,
    FMClassifier,
    GBTClassifier,
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    NaiveBayes,
    OneVsRest,
    RandomForestClassifier,
)
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff import FineTuner, InputError
from tests.support.small_data import NUMBERS, Write, pipeline, tune, weights

COPIES = 8


def with_labels(df: DataFrame, name: str, classes: int, true: str, noise: float = 0.0) -> DataFrame:
    """A vector label: column `name` where the condition holds, else a guess of probability 0.8, wrong in a share of rows."""
    hit = F.rand(1) >= noise
    guess = F.when(hit, F.col(name)).otherwise(F.pmod(F.col(name) + 1, F.lit(classes)))
    chances = [
        F.when(F.expr(true), (F.col(name) == k).cast("double")).otherwise(
            F.when(guess == k, 0.8).otherwise(0.2 / (classes - 1))
        )
        for k in range(classes)
    ]
    return df.withColumn("soft", array_to_vector(F.array(*chances)))


@pytest.fixture(scope="module")
def soft(df: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Rain of the first 500 rows is known, and guessed rather well for the others."""
    path = f"file://{tmp_path_factory.mktemp('soft')}/rows.parquet"
    with_labels(df, "rain", 2, "number < 500", noise=0.1).write.parquet(path)
    return df.sparkSession.read.parquet(path)


@pytest.fixture(scope="module")
def rain(df: DataFrame) -> PipelineModel:
    return pipeline(df.where("number < 40"), LogisticRegression(featuresCol="x", labelCol="rain", regParam=1.0))


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.nightly), 3])
def test_it_ends_where_mllib_does_on_weighted_rows(write: Write, folder: Path, classes: int) -> None:
    random = np.random.default_rng(classes)
    x = random.normal(size=(70, len(NUMBERS)))
    slopes = random.normal(size=(len(NUMBERS), classes))
    chances = np.exp(x @ slopes)
    counts = np.array([random.multinomial(COPIES, p) for p in chances / chances.sum(1, keepdims=True)])
    # The rows that decide are eight true labels per training row, in proportion: their optimum is that of the probabilities.
    own = np.repeat(np.arange(len(x)), COPIES)
    true = np.concatenate([np.repeat(np.arange(classes), c) for c in counts])
    rows, chances = np.concatenate([x, x[own]]), np.concatenate([counts / COPIES, np.eye(classes)[true]])
    weight = np.concatenate([random.integers(1, 3, len(x)), np.zeros(len(own))])
    weight[len(x) :] = weight[own]
    table = pa.table(
        {
            **{name: rows[:, j] for j, name in enumerate(NUMBERS)},
            "chances": [list(c) for c in chances],
            "held": np.arange(len(rows)) >= len(x),
            "weight": weight,
        }
    )
    df = write(table).withColumn("soft", array_to_vector("chances"))
    each = df.where("NOT held").select("*", F.posexplode("chances").alias("label", "chance"))
    each = each.withColumn("share", F.col("weight") * F.col("chance"))
    fit = {"featuresCol": "x", "labelCol": "label", "weightCol": "share", "standardization": False, "tol": 1e-12}
    wanted = pipeline(each, LogisticRegression(**fit, maxIter=500))
    start = pipeline(each, LogisticRegression(**fit, maxIter=1))
    found = tune(
        start,
        df,
        folder,
        labelCol="soft",
        weightCol="weight",
        validationIndicatorCol="held",
        recipe="fast",
        optimizer="lbfgs",
        regAnchor=0.0,
        maxEpochs=60,
        guard=1.0,
        learningRate=1.0,
    )
    ours, theirs = weights(found.pipelineModel), weights(wanted)
    assert found.summary.decision == "tuned" and found.summary.options["weightCol"] == "weight"
    for (name, value), other in zip(ours.items(), theirs.values(), strict=True):
        centred = [v - v.mean(0) if classes > 2 else v for v in (value, other)]
        np.testing.assert_allclose(*centred, atol=2e-4, err_msg=name)
    # The loss of the training rows is the mean expected log-loss.
    sides = found.summary.metrics
    assert sides["train"]["before"] == pytest.approx(sides["validation"]["before"], rel=1e-12)
    p = start.transform(df.where("NOT held")).select(vector_to_array("probability")).toPandas().to_numpy()
    loss = -(chances[: len(x)] * np.log(np.stack(p[:, 0]))).sum(1) @ weight[: len(x)] / weight[: len(x)].sum()
    assert sides["train"]["before"] == pytest.approx(loss, rel=1e-9)


def test_only_true_labels_decide(rain: PipelineModel, soft: DataFrame, df: DataFrame, shared: Path) -> None:
    found = tune(rain, soft, shared, labelCol="soft")
    summary = found.summary
    assert summary.decision == "tuned", summary.reason
    assert summary.cache["rows"]["validation"] < 150
    assert any("1,000 training rows have class probabilities" in w for w in summary.warnings)
    assert [*map(type, found.pipelineModel.stages)] == [*map(type, rain.stages)] and summary.options[
        "weightCol"
    ] is None
    assert tune(rain, soft, shared, labelCol="soft").summary.cache["hit"]
    wrong = with_labels(df, "rain", 2, "number < 500", noise=1.0).where("held OR number >= 500").cache()
    kept = tune(rain, wrong, shared, labelCol="soft", validationIndicatorCol="held")
    assert kept.summary.decision == "kept original" and kept.pipelineModel is rain


def test_without_true_labels_nothing_is_accepted(
    rain: PipelineModel, soft: DataFrame, shared: Path, tmp_path: Path
) -> None:
    guesses = soft.where("number >= 500")
    for rows, held in ((guesses, 0), (guesses.union(soft.where("number < 20")), 20)):
        kept = tune(rain, rows, shared, labelCol="soft", guard=1.0, validationFraction=0.999)
        summary = kept.summary
        assert summary.decision == "kept original" and kept.pipelineModel is rain and summary.metric == "logLoss"
        assert summary.reason.startswith(f"no evidence: {held} validation rows have a true label")
        assert "no evidence" in str(summary) and summary.p == 1.0 and not summary.history.size
    summary.toHTML(tmp_path / "report.html")
    assert "No evidence" in (tmp_path / "report.html").read_text()


HEADS: dict[Any, tuple[str, dict[str, Any]]] = {
    GBTClassifier: ("rain", {"maxIter": 3, "maxDepth": 2, "seed": 1}),
    LinearSVC: ("rain", {"maxIter": 2}),
    FMClassifier: ("rain", {"factorSize": 2, "maxIter": 5, "seed": 1}),
    OneVsRest: ("kind", {}),
    MultilayerPerceptronClassifier: ("kind", {"layers": [4, 3], "maxIter": 2, "seed": 1}),
    DecisionTreeClassifier: ("kind", {"maxDepth": 2}),
    RandomForestClassifier: ("kind", {"maxDepth": 2, "numTrees": 3, "seed": 1}),
    NaiveBayes: ("kind", {"modelType": "gaussian"}),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, id=k.__name__, marks=() if k is GBTClassifier else pytest.mark.nightly) for k in HEADS]
)
def test_every_classifier_trains_on_probabilities(df: DataFrame, shared: Path, kind: Any) -> None:
    label, params = HEADS[kind]
    if kind is OneVsRest:
        params = {"classifier": LogisticRegression(maxIter=1)}
    rows = with_labels(df, label, 2 if label == "rain" else 3, "number < 600").cache()
    model = pipeline(df.where("number < 60"), kind(featuresCol="x", labelCol=label, **params))
    summary = tune(model, rows, shared, labelCol="soft", recipe="fast").summary
    assert len(summary.records) > 1 and not summary.diverged
    first, *_, end = summary.history["trainLoss"].dropna()
    assert end < first


def test_the_way_out_is_one_that_there_is(rain: PipelineModel, soft: DataFrame, shared: Path) -> None:
    """Spark can't fit these labels, so the unfitted Pipeline is none."""
    known = soft.where("number < 500")
    reason = tune(rain, known, shared, labelCol="soft", maxEpochs=1, rowsAreNew=False).summary.reason
    assert "Spark can't fit labelCol='soft'" in reason and "rowsAreNew=True" in reason and "unfitted" not in reason


def test_what_cannot_take_probabilities_says_so(rain: PipelineModel, soft: DataFrame, df: DataFrame) -> None:
    number = pipeline(df, LinearRegression(featuresCol="x", labelCol="wait", maxIter=1))
    for model, options, said in (
        (number, {}, r"labelCol='soft' is a vector of class probabilities, but LinearRegression_\w+ predicts numbers"),
        (rain, {"loss": "auc"}, r"loss='auc' compares rows with each other, .*vector of class probabilities"),
        (rain, {"lossParams": {"classWeights": "balanced"}}, "classWeights='balanced' counts labels"),
        (rain, {"numFolds": 3, "rowsAreNew": True}, "numFolds=3 lets all rows decide, but labelCol is a vector"),
    ):
        with pytest.raises(InputError, match=said):
            FineTuner(model, labelCol="soft", **options).fit(soft)
    with pytest.raises(
        InputError, match=r"labelCol='soft' is .*, but must be a number: only FineTuner takes class prob"
    ):
        FineTuner(rain, labelCol="soft").cost(soft)
    three = with_labels(df, "kind", 3, "number < 500")
    with pytest.raises(InputError, match=r"3 probabilities, but the pipeline has 2 classes"):
        FineTuner(rain, labelCol="soft").fit(three)
