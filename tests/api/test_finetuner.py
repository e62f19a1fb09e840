"""A fit through the public interface: what comes back, the original, repeatability, weights, verbosity."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F
from torch import Tensor

from sparkdiff import Events, FineTunerModel, RunRecord
from sparkdiff.data import blocks
from sparkdiff.errors import ParityError
from sparkdiff.evaluation import guard
from sparkdiff.objectives import losses
from sparkdiff.stages.projection import PCA
from tests.support.small_data import (
    HAS_PETASTORM,
    NUMBERS,
    QUICK,
    half_deviance,
    pipeline,
    predictions,
    same,
    sides,
    tune,
    unfitted,
    weights,
)

needs_petastorm = pytest.mark.skipif(not HAS_PETASTORM, reason="Petastorm is not usable here")


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the guard was asked, call by call; it decides as ever."""
    calls: list[dict[str, Any]] = []
    decide = guard.decide

    def watched(gains: Tensor, weights: Tensor, **options: Any) -> guard.Verdict:
        calls.append({"gains": gains, "weights": weights, **options})
        return decide(gains, weights, **options)

    monkeypatch.setattr(guard, "decide", watched)
    return calls


# What comes back ------------------------------------------------------------------------------------------------------


def test_a_pipeline_with_slack_improves_and_comes_back_plain(
    df: DataFrame, model: PipelineModel, tuned: FineTunerModel, tmp_path: Path
) -> None:
    new = tuned.pipelineModel
    assert tuned.summary.decision == "tuned"
    assert tuned.originalModel is model
    assert new is not model
    assert type(new) is PipelineModel
    assert [type(s) for s in new.stages] == [type(s) for s in model.stages]
    assert all(type(s).__module__.startswith("pyspark.ml") for s in new.stages)
    assert new.uid == model.uid
    for old, now in zip(model.stages, new.stages, strict=True):
        assert now.uid == old.uid
        assert {p.name: v for p, v in now.extractParamMap().items()} == {
            p.name: v for p, v in old.extractParamMap().items()
        }
        assert {p.name for p in now.params if now.isSet(p)} == {p.name for p in old.params if old.isSet(p)}
    moved = {k for k, v in weights(new).items() if not np.array_equal(v, weights(model)[k])}
    assert {k.rpartition(".")[2] for k in moved} == {"std", "mean", "pc", "coefficients", "intercept"}
    assert new.stages[:3] == model.stages[:3]  # what has nothing to train is the same object
    schema, before = new.transform(df).schema, model.transform(df).schema
    assert [f.metadata for f in schema.fields] == [f.metadata for f in before.fields]
    assert schema == before
    new.write().save(f"file://{tmp_path}/model")
    loaded = PipelineModel.load(f"file://{tmp_path}/model")
    np.testing.assert_array_equal(predictions(loaded, df), predictions(tuned, df))


def test_the_metrics_are_those_of_sparks_predictions(df: DataFrame, tuned: FineTunerModel) -> None:
    found = tuned.summary.metrics
    for split, rows in sides(df).items():
        for when, stage in (("before", tuned.originalModel), ("after", tuned.pipelineModel)):
            mu, y = predictions(stage, rows, "riders").T
            assert found[split] is not None
            assert found[split][when] == pytest.approx(half_deviance(y, mu).mean(), rel=1e-12)
        assert found[split]["after"] < 0.9 * found[split]["before"]
    assert found["test"] is None


def test_what_the_summary_says(df: DataFrame, tuned: FineTunerModel) -> None:
    s = tuned.summary
    assert s.metric == "poisson"
    assert s.metricDirection == "smaller"
    held = s.metrics["validation"]
    assert held is not None
    assert s.gain == (held["before"] - held["after"]) / held["before"]
    assert s.gain > 0.1
    assert 0 < s.p < 0.025
    assert s.z > 2
    assert f"{s.gain:.2%}" in s.reason
    assert s.stream == ("petastorm" if HAS_PETASTORM else "arrow")
    assert set(s.cache) == {"hit", "fingerprint", "rows"}
    assert len(s.cache["fingerprint"]) == 64
    assert set(s.timings) >= {"cache", "verify", "train", "write back"}
    assert all(t >= 0 for t in s.timings.values())
    assert s.warnings == []
    for when in ("before", "after"):
        parity = s.parity[when]
        assert parity["ok"] is True
        assert parity["rows"] >= 1500
        assert set(parity["maxRelDiff"]) == {"hour_onehot", "assembled", "scaled", "components", "prediction"}
        assert max(parity["maxRelDiff"].values()) <= 1e-9
    names = {k.rpartition(".")[2] for k in s.stages}
    assert names == {"std", "mean", "pc", "coefficients", "intercept"}
    for stage, moved in s.stages.items():
        assert stage.partition(".")[0] in {x.uid for x in tuned.originalModel.stages}
        assert 0 < moved["rootMeanSquare"] <= moved["largest"] < 1
    assert s.options["learningRate"] == QUICK["learningRate"]
    assert (s.options["labelCol"], s.options["weightCol"], s.options["loss"]) == ("riders", None, "auto")
    assert s.versions["pyspark"] == df.sparkSession.version
    assert s.versions["torch"] == torch.__version__.partition("+")[0] or s.versions["torch"] == torch.__version__


def test_the_summary_as_text_and_json(tuned: FineTunerModel) -> None:
    s = tuned.summary
    held = s.metrics["validation"]
    assert held is not None
    lines = str(s).splitlines()
    row = next(line for line in lines if line.startswith("validation"))
    assert all(f"{held[w]:.5g}" in row for w in ("before", "after"))
    assert any(line.startswith("decision: tuned (gain +") for line in lines)
    json.dumps(s.asdict(), allow_nan=False)
    worst = dataclasses.replace(s, z=math.nan, timings={"cache": math.inf})
    assert worst.asdict()["z"] is None
    json.dumps(worst.asdict(), allow_nan=False)


def test_the_history_has_a_row_per_epoch_and_candidate(tuned: FineTunerModel) -> None:
    history = tuned.summary.history
    columns = ["epoch", "candidate", "recipe", "learningRate", "regAnchor", "trainLoss", "validationMetric"]
    assert list(history.columns) == columns
    assert list(history["epoch"]) == list(range(9))  # under 1,000 validation rows only the gentle candidate runs
    assert set(history["candidate"]) == {0}
    held = tuned.summary.metrics["validation"]
    assert held is not None
    assert history["validationMetric"][0] == held["before"]
    assert history["validationMetric"].min() == pytest.approx(held["after"], rel=1e-12)  # the best epoch was restored
    assert math.isnan(history["trainLoss"][0])
    assert history["trainLoss"][8] < history["trainLoss"][1]


def test_from_a_thousand_validation_rows_four_candidates_run(
    df: DataFrame, numeric: PipelineModel, shared: Path, decided: list[dict[str, Any]]
) -> None:
    summary = tune(numeric, df, shared, validationFraction=0.75, maxEpochs=3, learningRate=1e-3).summary
    history = summary.history
    assert sorted(zip(history["epoch"], history["candidate"], strict=True)) == [
        (e, c) for e in range(4) for c in range(4)
    ]
    assert list(history.groupby("candidate")["learningRate"].first()) == [1e-3, 3e-3, 1e-2, 1e-2]
    assert list(history.groupby("candidate")["regAnchor"].first()) == [1e-3, 1e-3, 1e-3, 1e-1]
    assert (summary.candidates, summary.diverged) == (4, 0)
    gains, w = decided[0]["gains"], decided[0]["weights"]
    assert gains.shape == (12, blocks.MAX_BLOCKS)
    assert decided[0]["level"] == 0.025
    assert (decided[0]["units"].kind, decided[0]["units"].number) == ("rows", int(w.sum()))
    # gain and z from the block sums of what ships
    epoch, candidate = divmod(decided[0]["chosen"], 4)
    best = gains[decided[0]["chosen"]][w > 0]
    held = summary.metrics["validation"]
    assert held is not None
    mean = float(best.sum() / w.sum())
    assert mean == pytest.approx(held["before"] - held["after"], rel=1e-9)
    shipped = history[(history.epoch == epoch + 1) & (history.candidate == candidate)].validationMetric.item()
    assert held["after"] == pytest.approx(shipped, rel=1e-9)
    residual = best - mean * w[w > 0]
    error = float(residual.norm()) / float(w.sum()) * math.sqrt(len(best) / (len(best) - 1))
    assert summary.z == pytest.approx(mean / error, rel=1e-9)


def test_four_diverging_candidates_are_told_from_no_gain(
    df: DataFrame, numeric: PipelineModel, shared: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"validationFraction": 0.75, "learningRate": 1e6, "checkpointDir": str(tmp_path)}
    for _ in range(2):  # the second is read from the first one's checkpoint
        found = tune(numeric, df, shared, runId="diverged", **given)
        s = found.summary
        assert found.pipelineModel is numeric
        assert (s.decision, s.candidates, s.diverged) == ("kept original", 4, 4)
        assert s.reason.startswith(
            "all 4 candidates diverged in epoch 1 (learningRate=1e+06): lower learningRate or set gradientClip"
        )
        assert "nothing to gain" not in str(s)
        assert (s.asdict()["candidates"], s.asdict()["diverged"]) == (4, 4)


@pytest.mark.parametrize("metric", ["logLoss", "areaUnderROC"])
def test_a_finite_divergence_is_told_from_nothing_to_gain(df: DataFrame, shared: Path, metric: str) -> None:
    """The loss of linear scores stays finite however large they are."""
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    data = data.withColumn("many", (F.col("riders") > 10).cast("double"))
    stage = LogisticRegression(labelCol="many", maxIter=20).fit(data)
    found = tune(stage, data, shared, learningRate=1e6, maxEpochs=3, metric=metric, validationFraction=0.75)
    s = found.summary
    assert found.pipelineModel is stage and np.isfinite(s.history["validationMetric"]).all()
    assert s.diverged == s.candidates and s.reason.startswith(
        "all 4 candidates diverged in epoch 1 (learningRate=1e+06)"
    )
    assert "lower learningRate" in s.reason and "nothing to gain" not in str(s)


@pytest.mark.nightly
@pytest.mark.parametrize("folds", [0, 2])
def test_options_without_effect_are_told(df: DataFrame, model: PipelineModel, shared: Path, folds: int) -> None:
    given: dict[str, Any] = {
        "recipe": "fast",
        "fleetSize": 3,
        "guard": 1.0,
        "tags": {"team": "risk"},
        "timeout": 30.0,
        "patience": 19,
        "freeze": ["StringIndexerModel"],
        "learningRates": {"hour_onehot": 0.1},
    }
    s = tune(model, df, shared, **given, numFolds=folds, rowsAreNew=bool(folds), maxEpochs=1).summary
    assert s.candidates == 1
    for name in ("recipe='fast'", "fleetSize=3", "tags={'team': 'risk'}", "timeout=30.0", "patience=19"):
        assert sum(w.startswith(f"{name} has no effect: ") for w in s.warnings) == 1, name
    [frozen] = [w for w in s.warnings if w.startswith("freeze names 'StringIndexerModel'")]
    assert "which only keeps it from being fitted anew" in frozen
    assert "learningRates names 'hour_onehot', which has no effect: no parameter of it trains" in s.warnings
    if not folds:
        assert not any("effect" in w for w in tune(model, df, shared, maxEpochs=1).summary.warnings)


def test_a_single_stage_comes_back_as_that_stage(df: DataFrame, shared: Path) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    stage = GeneralizedLinearRegression(labelCol="riders", family="poisson", regParam=1.0).fit(data)
    found = tune(stage, data, shared)
    assert found.summary.decision == "tuned"
    assert type(found.pipelineModel) is type(stage)
    assert found.pipelineModel.uid == stage.uid
    assert not same(found.pipelineModel, stage)
    assert found.originalModel is stage


def test_a_nested_pipeline_keeps_its_form(
    df: DataFrame, numeric: PipelineModel, tuned_numeric: FineTunerModel, shared: Path
) -> None:
    inner = PipelineModel(numeric.stages[1:3])
    nested = PipelineModel([numeric.stages[0], inner, numeric.stages[3]])
    found = tune(nested, df, shared).pipelineModel
    assert type(found.stages[1]) is PipelineModel
    assert [s.uid for s in found.stages] == [s.uid for s in nested.stages]
    assert [s.uid for s in found.stages[1].stages] == [s.uid for s in inner.stages]
    flat = tuned_numeric.pipelineModel
    assert same(PipelineModel([found.stages[0], *found.stages[1].stages, found.stages[2]]), flat)


# The original ---------------------------------------------------------------------------------------------------------


def test_an_unfitted_pipeline_fits_training_rows_only(df: DataFrame, shared: Path) -> None:
    odd = df.withColumn("temp", F.when(F.col("held"), 1e6).otherwise(F.col("temp")))
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="x"),
            StandardScaler(inputCol="x", outputCol="s", withMean=True),
            LinearRegression(featuresCol="s", labelCol="riders", regParam=5.0),
        ]
    )
    found = tune(pipeline, odd, shared, validationIndicatorCol="held", maxEpochs=1)
    scaler = found.originalModel.stages[1]
    expected = pipeline.fit(df.where("NOT held"))
    np.testing.assert_array_equal(scaler.mean, expected.stages[1].mean)
    np.testing.assert_array_equal(scaler.std, expected.stages[1].std)
    np.testing.assert_allclose(found.originalModel.stages[2].coefficients, expected.stages[2].coefficients, rtol=1e-10)
    assert not isinstance(found.originalModel, Pipeline)


def test_what_cannot_convince_returns_the_original_object(df: DataFrame, shared: Path) -> None:
    for seed in range(4, 24):  # of which some split shows a gain by chance, where there is nothing to gain
        optimum = pipeline(sides(df, seed=seed)["train"], LinearRegression(featuresCol="x", labelCol="riders"))
        found = tune(optimum, df, shared, learningRate=1e-3, maxEpochs=10, seed=seed)
        s = found.summary
        if s.z > 1:
            break
    assert s.decision == "kept original"
    assert found.pipelineModel is optimum
    assert found.originalModel is optimum
    assert all(m is None or m["before"] == m["after"] for m in s.metrics.values())
    assert s.gain == 0.0
    assert s.stages == {}
    assert "after" not in s.parity
    assert "write back" not in s.timings
    assert s.p >= 0.025
    assert s.history["validationMetric"].min() < s.history["validationMetric"][0]
    assert s.z > 1
    assert "is within what chance explains" in s.reason or "is not proven" in s.reason


def test_sign_flipped_gradients_return_the_original_object(
    df: DataFrame, model: PipelineModel, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = losses.resolve

    def flipped(*arguments: Any) -> Any:
        objective = resolve(*arguments)
        return dataclasses.replace(objective, scale=-objective.scale)

    monkeypatch.setattr(losses, "resolve", flipped)
    found = tune(model, df, shared)
    assert found.pipelineModel is model
    s = found.summary
    assert (s.decision, s.z, s.p, s.gain) == ("kept original", 0.0, 1.0, 0.0)
    assert s.history["validationMetric"].iloc[-1] > s.history["validationMetric"][0]  # it really went uphill
    assert "no epoch of any candidate" in s.reason


def test_guard_1_takes_any_gain_and_an_end_by_time_is_told(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    found = tune(numeric, df, shared, maxEpochs=9, maxSeconds=1e-9, learningRate=1e-6, guard=1.0)
    assert found.summary.decision == "tuned"
    assert 0 < found.summary.gain < 1e-3
    assert [r["epoch"] for r in found.summary.records] == [0, 1]
    assert any(w.startswith("maxSeconds=1e-09 ended training after epoch 1") for w in found.summary.warnings)
    assert (found.getMaxSeconds(), found.summary.options["minDelta"]) == (1e-9, 0.0)


def test_nothing_of_the_callers_changes(spark: SparkSession, df: DataFrame, folder: Path) -> None:
    model = unfitted().fit(df)
    before = {k: v.copy() for k, v in weights(model).items()}
    params = [{p.name: v for p, v in s.extractParamMap().items()} for s in model.stages]
    objects, columns, plan = list(model.stages), df.columns, df._jdf.queryExecution().optimizedPlan().toString()
    confs = {r.key: r.value for r in spark.sql("SET").collect()}
    views, torch_state = spark.sql("SHOW TABLES").collect(), torch.get_rng_state().clone()
    threads, numpy_state = torch.get_num_threads(), np.random.get_state()[1].copy()
    found = tune(model, df, folder)
    assert found.summary.decision == "tuned"
    assert all(np.array_equal(before[k], v) for k, v in weights(model).items())
    assert [{p.name: v for p, v in s.extractParamMap().items()} for s in model.stages] == params
    assert all(a is b for a, b in zip(objects, model.stages, strict=True))
    assert df.columns == columns
    assert df._jdf.queryExecution().optimizedPlan().toString() == plan
    assert {r.key: r.value for r in spark.sql("SET").collect()} == confs
    assert spark.sql("SHOW TABLES").collect() == views
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert [p.name for p in folder.iterdir()] == [found.summary.cache["fingerprint"][:16]]
    assert set(found.transform(df).columns) == {
        *columns,
        "hour_index",
        "hour_onehot",
        "assembled",
        "scaled",
        "components",
        "prediction",
    }


# The same again -------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(
    df: DataFrame, model: PipelineModel, shared: Path, tuned: FineTunerModel
) -> None:
    again = tune(model, df, shared, stream="auto", maxEpochs=8)
    assert same(again.pipelineModel, tuned.pipelineModel)
    assert again.summary.history.equals(tuned.summary.history)
    for name in ("decision", "reason", "metrics", "gain", "z", "p", "stages", "parity"):
        assert getattr(again.summary, name) == getattr(tuned.summary, name), name


def test_another_seed_gives_another_result(
    df: DataFrame, model: PipelineModel, shared: Path, tuned: FineTunerModel
) -> None:
    assert not same(tune(model, df, shared, stream="auto", maxEpochs=8, seed=1).pipelineModel, tuned.pipelineModel)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"stream": "petastorm"}, marks=[needs_petastorm, pytest.mark.nightly]),  # the default, where it is
        pytest.param({"stream": "petastorm", "cacheInMemory": False}, marks=needs_petastorm),
        {"stream": "arrow"},
        {"stream": "arrow", "cacheInMemory": False},
    ],
    ids=lambda o: " ".join(map(str, o.values())),
)
def test_every_way_to_read_gives_the_same_bits(
    df: DataFrame, model: PipelineModel, shared: Path, tuned: FineTunerModel, options: dict[str, Any]
) -> None:
    found = tune(model, df, shared, maxEpochs=8, **options)
    assert found.summary.stream == options["stream"]
    assert found.summary.cache["hit"]
    assert same(found.pipelineModel, tuned.pipelineModel)
    assert found.summary.history.equals(tuned.summary.history)


@needs_petastorm
def test_petastorm_really_reads(
    df: DataFrame, numeric: PipelineModel, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import petastorm as library

    opened: list[str] = []
    make = library.make_batch_reader

    def counted(urls: list[str], **options: Any) -> Any:
        opened.extend(urls)
        return make(urls, **options)

    monkeypatch.setattr(library, "make_batch_reader", counted)
    summary = tune(numeric, df, shared, stream="auto", maxEpochs=1).summary
    assert summary.stream == "petastorm"
    assert len(set(opened)) == 16  # the 8 shards of the two splits
    assert all(url.endswith(".parquet") for url in opened)  # files, never a folder
    opened.clear()
    assert tune(numeric, df, shared, stream="arrow", maxEpochs=1).summary.stream == "arrow"
    assert opened == []


# Weights --------------------------------------------------------------------------------------------------------------


def absurd(df: DataFrame, column: str, *values: float) -> DataFrame:
    """A third of the rows has weight 0 and one of these values."""
    wrong = F.element_at(F.array(*map(F.lit, values)), (F.col("number") % len(values) + 1).cast("int"))
    return df.withColumn(column, F.when(F.col("weight") == 0, wrong).otherwise(F.col(column)))


def test_rows_of_weight_0_count_nowhere(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    data = absurd(df, "riders", 1e12, -5.0)
    found = tune(numeric, data, shared, weightCol="weight")
    assert found.summary.decision == "tuned"
    assert found.summary.history["validationMetric"].notna().all()
    assert found.summary.history["trainLoss"][1:].notna().all()
    for split, rows in sides(data).items():
        mu, y, w = predictions(numeric, rows, "riders", "weight").T
        loss = half_deviance(np.maximum(y, 0), mu)
        metric = found.summary.metrics[split]
        assert metric is not None
        assert metric["before"] == pytest.approx((loss * w)[w > 0].sum() / w.sum(), rel=1e-12)
        assert metric["after"] < metric["before"]
    assert max(abs(v).max() for v in weights(found.pipelineModel).values()) < 10


def test_classes_of_weight_0_count_nowhere(df: DataFrame, shared: Path) -> None:
    data = absurd(df, "kind", 7.0, -1.0, 0.5)
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    head = LogisticRegression(labelCol="kind", regParam=0.5, maxIter=3, family="multinomial")
    fitted = Pipeline(stages=[assembler, head]).fit(data.where("weight > 0"))
    found = tune(fitted, data, shared, weightCol="weight")
    assert found.summary.decision == "tuned"


def test_features_of_weight_0_count_nowhere(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    data = absurd(df, "wind", float("nan"), 1e300)
    for_keep = PipelineModel([numeric.stages[0].copy(), *numeric.stages[1:]])
    for_keep.stages[0].setHandleInvalid("keep")
    found = tune(for_keep, data, shared, weightCol="weight")
    assert found.summary.decision == "tuned"
    assert found.summary.history["validationMetric"].notna().all()
    assert found.summary.history["trainLoss"][1:].notna().all()


def test_the_weights_of_the_head_are_used_by_default(df: DataFrame, shared: Path) -> None:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    head = GeneralizedLinearRegression(labelCol="riders", weightCol="weight", family="poisson", regParam=1.0)
    fitted = Pipeline(stages=[assembler, head]).fit(df)
    found = tune(fitted, df, shared, maxEpochs=1)
    assert found.summary.options["weightCol"] == "weight"
    mu, y, w = predictions(fitted, sides(df)["validation"], "riders", "weight").T
    held = found.summary.metrics["validation"]
    assert held is not None
    assert held["before"] == pytest.approx((half_deviance(y, mu) * w).sum() / w.sum(), rel=1e-12)
    ones = df.withColumn("one", F.lit(1.0))
    other = tune(fitted, ones, shared, weightCol="one", maxEpochs=1).summary.metrics["validation"]
    assert other is not None
    mu, y = predictions(fitted, sides(ones)["validation"], "riders").T
    assert other["before"] == pytest.approx(half_deviance(y, mu).mean(), rel=1e-12)


def test_a_rare_level_stays_as_it_was(df: DataFrame, shared: Path) -> None:
    rare = df.withColumn("hour", F.when(F.col("number") % 500 == 7, "storm").otherwise(F.col("hour")))  # 3 rows
    common = df.withColumn("hour", F.when(F.col("number") % 50 == 7, "storm").otherwise(F.col("hour")))  # 30 rows
    stages = [
        StringIndexer(inputCol="hour", outputCol="index"),
        OneHotEncoder(inputCol="index", outputCol="onehot", dropLast=False),
        VectorAssembler(inputCols=["onehot", *NUMBERS], outputCol="x"),
        StandardScaler(inputCol="x", outputCol="s", withMean=True),
        GeneralizedLinearRegression(featuresCol="s", labelCol="riders", family="poisson", regParam=0.5),
    ]
    fitted = Pipeline(stages=stages).fit(rare)
    at = fitted.stages[0].labels.index("storm")
    for data, frozen in ((rare, True), (common, False)):
        found = tune(fitted, data, shared)
        assert found.summary.decision == "tuned"
        for uid, name in (
            (fitted.stages[4].uid, "coefficients"),
            (fitted.stages[3].uid, "mean"),
            (fitted.stages[3].uid, "std"),
        ):
            moved = weights(found.pipelineModel)[f"{uid}.{name}"] != weights(fitted)[f"{uid}.{name}"]
            assert moved[at] != frozen, name
            assert np.delete(moved, at).all(), name
        warned = [w for w in found.summary.warnings if "fewer than 5 training rows" in w]
        assert len(warned) == frozen
        names = [f"1 of {fitted.stages[i].uid}.{n}" for i, n in ((3, "std"), (3, "mean"), (4, "coefficients"))]
        assert all(name in warned[0] for name in names) if frozen else warned == []


# Around it ------------------------------------------------------------------------------------------------------------


def test_verbosity(df: DataFrame, numeric: PipelineModel, shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    tune(numeric, df, shared, maxEpochs=1)
    assert capfd.readouterr() == ("", "")
    heard = Heard()
    summary = tune(numeric, df, shared, maxEpochs=1, verbosity=1, callbacks=[heard]).summary
    text = "".join(capfd.readouterr())
    assert all(phase in text for phase in ("cache", "verify", "train", "reused: 1"))
    assert heard.phases == list(summary.timings)
    assert heard.rows == summary.records
    assert heard.records == [summary]


class Heard(Events):
    """Listens to a fit."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.rows: list[Any] = []
        self.records: list[RunRecord] = []

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        self.phases += [name] if seconds is not None else []

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def on_decision(self, record: RunRecord) -> None:
        assert isinstance(record, RunRecord)
        self.records.append(record)


def test_a_table_can_be_any_dataframe(
    spark: SparkSession, numeric: PipelineModel, table: pa.Table, shared: Path
) -> None:
    rows = table.select([*NUMBERS, "riders"]).slice(0, 400).to_pandas()
    found = tune(numeric, spark.createDataFrame(rows), shared, maxEpochs=1)
    assert found.summary.metrics["train"] is not None
    vectors = spark.createDataFrame(
        [(Vectors.dense(r[:4]), float(r[4])) for r in rows.to_numpy().tolist()], ["assembled", "riders"]
    )
    rest = PipelineModel(numeric.stages[1:])
    other = tune(rest, vectors, shared, maxEpochs=1)
    assert other.summary.metrics["validation"] is not None


def test_a_folded_form_unlike_the_network_stops_the_run(
    df: DataFrame, numeric: PipelineModel, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `pull` that forgets what trains: right before training, wrong after, and it is what candidates are measured by."""
    pull = PCA.affine_form

    def forgets(self: PCA, p: Any, slope: torch.Tensor, widths: Any) -> Any:
        return pull(self, {**p, "pc": self.pc.detach()}, slope, widths)

    monkeypatch.setattr(PCA, "affine_form", forgets)
    with pytest.raises(
        ParityError,
        match=r"has poisson .* but training measured .* the `affine_form` of a stage does not match its `forward`",
    ):
        tune(numeric, df, shared, guard=1.0)
