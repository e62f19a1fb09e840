"""What keeps the original although the mean gains: slices, reference rows, changed labels; and what is told of them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import StandardScaler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, functions as F
from sklearn.metrics import roc_auc_score

from sparkdiff import FineTuner, FineTunerModel, InputError, write_back
from sparkdiff.data.splits import REFERENCE, Source
from sparkdiff.data.stream.batches import Stream
from sparkdiff.evaluation.compatibility import compare
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from tests.support.small_data import (
    QUICK,
    cached,
    fingerprint_of,
    half_deviance,
    pipeline,
    predictions,
    riders,
    same,
    sides,
    tune,
)

REGIONS = ("north", "south", "west", "islands")


@pytest.fixture(scope="module")
def regional(df: DataFrame, numeric: PipelineModel, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """A fifth of the riders, the islands, like wind instead of minding it: what the tuning learns is wrong there."""
    table = riders(6000).to_pandas()
    random = np.random.default_rng(8)
    table["region"] = random.choice(REGIONS, len(table), p=[0.4, 0.3, 0.15, 0.15])
    islands = table["region"] == "islands"
    flipped = np.exp(1.0 - 0.5 * table["wind"] + 0.4 * table["noise"])
    table.loc[islands, "riders"] = random.poisson(flipped[islands]).astype(float)
    table["zone"] = np.where(random.random(len(table)) < 0.1, np.nan, random.integers(0, 3, len(table)) / 2)
    table["rainy"] = pd.array(np.where(random.random(len(table)) < 0.02, pd.NA, table["rain"] > 0), dtype="boolean")
    table.loc[random.random(len(table)) < 0.1, "region"] = None
    path = tmp_path_factory.mktemp("regional") / "riders.parquet"
    table.to_parquet(path, coerce_timestamps="us")
    return df.sparkSession.read.parquet(f"file://{path}")


def tune_each(model: PipelineModel, rows: DataFrame, folder: Path, *each: dict[str, Any], **options: Any) -> list[Any]:
    """A tuned model for each of these settings, on one cache that is written and compared with Spark once."""
    tuner = FineTuner(pipeline=model, cacheDir=str(folder), **{**QUICK, **options})
    found: list[Any] = tuner.fit(rows, [{getattr(tuner, name): v for name, v in one.items()} for one in each])
    return found


@pytest.fixture(scope="module")
def by_slices(regional: DataFrame, numeric: PipelineModel, shared: Path) -> list[FineTunerModel]:
    return tune_each(numeric, regional, shared, {}, {"guard": 1.0}, guardCols=["region", "zone", "rainy"])


@pytest.fixture(scope="module")
def sliced(by_slices: list[FineTunerModel]) -> FineTunerModel:
    """What the slices decide."""
    return by_slices[0]


@pytest.fixture(scope="module")
def accepted(by_slices: list[FineTunerModel]) -> FineTunerModel:
    """The same training, accepted without a test."""
    return by_slices[1]


@pytest.fixture(scope="module")
def classifier(regional: DataFrame) -> PipelineModel:
    return pipeline(
        regional,
        LogisticRegression(featuresCol="x", labelCol="rain", regParam=0.3, threshold=0.4),
        StandardScaler(inputCol="raw", outputCol="x", withMean=True),
    )


@pytest.fixture(scope="module")
def relabelled(regional: DataFrame, classifier: PipelineModel, shared: Path) -> FineTunerModel:
    return tune(classifier, regional, shared)


def by_hand(model: Any, rows: DataFrame, *columns: str) -> pd.DataFrame:
    return model.transform(rows).select("prediction", *columns).toPandas()


# Codes in the cache ---------------------------------------------------------------------------------------------------


def test_the_cache_holds_the_slices_as_codes(regional: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    names = ["region", "Zone", "rainy", "user"]
    few = regional.withColumn("user", F.col("user") % 7)
    cache = cached(numeric, few, folder, guardCols=names)
    with Stream(cache.folder, backend="arrow") as stream:
        assert {k: v.name for k, v in stream.manifest.slices.items()} == {n: f"slice{i}" for i, n in enumerate(names)}
        assert stream.manifest.slices["region"].values == ("islands", "north", "south", "west", None)
        assert stream.manifest.slices["Zone"].values == (0.0, 0.5, 1.0, None)  # NaN is null
        assert stream.manifest.slices["rainy"].values == (False, True, None)
        assert stream.manifest.slices["user"].values == (0, 1, 2, 3, 4, 5, 6)
        found: list[Any] = []
        for split in ("train", "validation"):
            for batch in stream.batches(split, batchSize=10_000):
                codes = [
                    [stream.manifest.slices[n].values[k] for k in batch[f"slice{i}"].tolist()]
                    for i, n in enumerate(names)
                ]
                found += list(zip(batch["label"].tolist(), *codes, strict=True))
    rows = few.select("riders", *names).toPandas().astype(object)
    expected = list(rows.where(rows.notna(), None).itertuples(index=False, name=None))
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_slices_change_no_order_of_rows(regional: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    twice = regional.union(regional.withColumn("region", F.lit("twin")))  # rows that differ by their slice alone
    labels = []
    for columns in ([], ["region"]):
        cache = cached(numeric, twice, folder, guardCols=columns)
        with Stream(cache.folder, backend="arrow") as stream:
            labels.append([b["c0"].tolist() for b in stream.batches("train", batchSize=64, epoch=3)])
    assert labels[0] == labels[1]


def test_slices_of_several_sources_and_another_column_rebuild(
    regional: DataFrame, numeric: PipelineModel, folder: Path
) -> None:
    sources = [
        Source(regional.where("region <> 'west'"), "train"),
        Source(regional.where("region = 'west'"), "validation"),
    ]
    first = cached(numeric, sources, folder, guardCols=["region"])
    columns = {c["column"]: c for c in first.manifest["columns"]}
    assert columns["region"]["values"] == ["islands", "north", "south", "west"]
    each = [fingerprint_of(numeric, sources, guardCols=columns) for columns in (["region"], ["rainy"], [])]
    assert each[0] == first.fingerprint
    assert len(set(each)) == 3


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("number", r"guardCols: column 'number' has 6,000 values, more than 50: bin them"),
        ("regoin", r"guardCols='regoin' is not a column of the data. Did you mean 'region'"),
        ("when", r"guardCols: column 'when' is timestamp_ntz; slices need strings, numbers or booleans"),
    ],
)
def test_a_column_without_slices_is_refused(
    regional: DataFrame, numeric: PipelineModel, folder: Path, column: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cached(numeric, regional, folder, guardCols=[column])


# A worsened slice -----------------------------------------------------------------------------------------------------


def test_a_worsened_slice_keeps_the_original_and_is_named(numeric: PipelineModel, sliced: FineTunerModel) -> None:
    s = sliced.summary
    assert s.decision == "kept original"
    assert sliced.pipelineModel is numeric
    assert "but poisson gets worse on region = islands from" in s.reason
    worse = {(c["column"], c["value"]): c for c in s.slices}
    islands = worse["region", "islands"]
    assert f"from {islands['before']:.5g} to {islands['after']:.5g}" in s.reason
    assert islands["p"] < 0.002
    assert [k for k, c in worse.items() if c["p"] is not None and c["p"] < 0.025] == [("region", "islands")]
    assert s.gain == 0
    assert s.gainInterval is not None
    assert s.gainInterval[0] > 0  # the mean gains
    assert s.metrics["validation"]["after"] == s.metrics["validation"]["before"]  # type: ignore[index]
    text = str(s)
    assert "region = islands" in text
    assert "and 4 slices with better results, or with too few rows (1)" in text
    json.dumps(s.asdict(), allow_nan=False)


def test_the_figures_of_a_slice_are_those_of_sparks_predictions(
    regional: DataFrame, numeric: PipelineModel, sliced: FineTunerModel, accepted: FineTunerModel
) -> None:
    new = accepted.pipelineModel
    assert not same(new, numeric)
    held = sides(regional)["validation"]
    found = {(c["column"], c["value"]): c for c in sliced.summary.slices}
    assert len(found) == 5 + 4 + 3
    columns = ("riders", "region", "zone", "rainy")
    old_rows, new_rows = (by_hand(m, held, *columns) for m in (numeric, new))
    loss, gain = (
        half_deviance(old_rows["riders"].to_numpy(), r["prediction"].to_numpy()) for r in (old_rows, new_rows)
    )
    for (column, value), c in found.items():
        rows = (old_rows[column].isna() if value is None else (old_rows[column] == value).fillna(False)).to_numpy(bool)
        assert c["rows"] == c["units"] == rows.sum()
        assert c["before"] == pytest.approx(loss[rows].mean(), rel=1e-9)
        assert c["after"] == pytest.approx(gain[rows].mean(), rel=1e-9)
        if rows.sum() < 30:
            assert (column, value) == ("rainy", None)
            assert c["p"] is None
        else:
            difference = (loss - gain)[rows]  # rows meet in blocks: the error by block scatters about that by row
            assert c["error"] == pytest.approx(difference.std(ddof=1) / math.sqrt(rows.sum()), rel=0.25)


def test_guard_1_reports_slices_and_accepts(accepted: FineTunerModel) -> None:
    s = accepted.summary
    assert s.decision == "tuned"
    assert "on the validation rows is accepted without a test, because guard is 1 (p" in s.reason
    assert min(c["p"] for c in s.slices if c["p"] is not None) < 0.002


# Slices of metrics that are no mean over rows -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wet(regional: DataFrame) -> DataFrame:
    """Wet by wind, on the islands by noise; `part` has a value with one class only and one with few rows of a class."""
    cause = F.when(F.col("region") == "islands", F.col("noise")).otherwise(F.col("wind"))
    wet = (cause + 2 * F.col("exposure") > 0).cast("double")
    part = F.when((wet == 0) & (F.col("user") % 4 == 0), "dry").when((wet == 0) & (F.col("user") % 4 == 1), "rarely")
    return regional.withColumn("wet", wet).withColumn(
        "part", part.when((wet == 1) & (F.col("user") % 40 == 1), "rarely").otherwise("rest")
    )


@pytest.fixture(scope="module")
def islander(wet: DataFrame) -> PipelineModel:
    """Fitted on the islands only, so that it has much to gain elsewhere."""
    head = LogisticRegression(featuresCol="x", labelCol="wet", regParam=0.1)
    scaler = StandardScaler(inputCol="raw", outputCol="x", withMean=True)
    return pipeline(wet.where("region = 'islands'"), head, scaler)


def positive(rows: pd.DataFrame) -> Any:
    return np.stack([v.toArray()[1] for v in rows["probability"]])


def test_a_slice_that_loses_area_under_roc_keeps_the_original(
    wet: DataFrame, islander: PipelineModel, shared: Path
) -> None:
    columns = ["region", "part"]
    options = {"metric": "areaUnderROC", "guardCols": columns, "maxEpochs": 12}
    kept, tuned = tune_each(islander, wet, shared, {}, {"guard": 1.0}, **options)
    s, new = kept.summary, tuned.pipelineModel
    assert s.decision == "kept original"
    assert kept.pipelineModel is islander
    held = sides(wet)["validation"]
    one, other = (by_hand(m, held, "probability", "wet", *columns) for m in (islander, new))
    before, after, y = positive(one), positive(other), one["wet"].to_numpy()
    found = {(c["column"], c["value"]): c for c in s.slices}
    assert set(found) == {("region", r) for r in (*REGIONS, None)} | {("part", p) for p in ("dry", "rarely", "rest")}
    for (column, value), c in found.items():
        rows = (one[column].isna() if value is None else (one[column] == value).fillna(False)).to_numpy(bool)
        assert c["rows"] == rows.sum()
        assert c["units"] == min(y[rows].sum(), (1 - y[rows]).sum())
        if value == "dry":
            assert [c[k] for k in ("units", "before", "after", "gain", "error", "p")] == [
                0,
                None,
                None,
                None,
                None,
                None,
            ]
            continue
        a, b = (roc_auc_score(y[rows], score[rows]) for score in (before, after))
        assert (c["before"], c["after"], c["gain"]) == pytest.approx((a, b, b - a), rel=1e-9)
        assert (c["p"] is None) is (value == "rarely")
        # DeLong, DeLong and Clarke-Pearson 1988: the variance of a difference by the placements of either class
        up, down = (np.stack([x[rows & (y == k)] for x in (before, after)]) for k in (1, 0))
        wins = np.subtract(*[(p[:, None] > n) + 0.5 * (p[:, None] == n) for p, n in zip(up, down, strict=True)])
        variance = sum(wins.mean(k).var(ddof=1) / wins.shape[1 - k] for k in (0, 1))
        assert c["error"] == pytest.approx(math.sqrt(variance), rel=0.25)
    islands = found["region", "islands"]
    assert islands["p"] < 0.025
    assert islands["gain"] < -0.02
    figures = f"from {islands['before']:.5g} to {islands['after']:.5g}"
    assert f"but areaUnderROC gets worse on region = islands {figures} (p" in s.reason
    text = str(s).splitlines()
    first = next(i for i, line in enumerate(text) if line.startswith("slice"))
    assert text[first + 1].startswith("region = islands ")
    assert text[first + 1].split()[-2].startswith("-")
    assert next(line for line in text if line.startswith("part = dry")).split()[-2:] == ["undefined", "undefined"]
    assert next(line for line in text if line.startswith("part = rarely")).endswith("too few units")
    assert json.loads(json.dumps(s.asdict(), allow_nan=False))["slices"][-3]["before"] is None


def test_few_rows_of_a_class_decide_no_ranking(wet: DataFrame, islander: PipelineModel, shared: Path) -> None:
    few = wet.where("wet = 0 or user % 40 = 1")
    kept = tune(islander, few, shared, metric="areaUnderROC").summary
    assert kept.decision == "kept original" and re.match(
        r"not tested: \d+ rows of class 1, 30 are needed; ", kept.reason
    )
    assert tune(islander, few, shared, maxEpochs=1).summary.metric == "logLoss"


def evaluator(metric: str, label: str) -> Any:
    kind = MulticlassClassificationEvaluator if metric in ("f1", "accuracy") else RegressionEvaluator
    return kind(metricName=metric, labelCol=label, predictionCol="prediction", weightCol="weight")


@pytest.fixture(scope="module")
def part(regional: DataFrame) -> dict[str, DataFrame]:
    """By label, rows with a slice in which all labels are the same."""
    parts = {label: F.when(F.col(label) == 0, "same").otherwise("rest") for label in ("kind", "riders")}
    return {label: regional.withColumn("part", part) for label, part in parts.items()}


@pytest.fixture(scope="module")
def weighed(
    part: dict[str, DataFrame], shared: Path
) -> dict[str, tuple[PipelineModel, DataFrame, dict[str, FineTunerModel]]]:
    """By label an original, its validation rows, and by metric what was tuned with weights."""
    found = {}
    for label, head, slack, metrics in (
        ("kind", LogisticRegression, 0.5, ("f1", "accuracy")),
        ("riders", LinearRegression, 20.0, ("rmse", "r2")),
    ):
        scaler = StandardScaler(inputCol="raw", outputCol="x", withMean=True)
        model = pipeline(part[label], head(featuresCol="x", labelCol=label, regParam=slack), scaler)
        each = [{"metric": metric} for metric in metrics]
        options = {"guardCols": ["region", "rainy", "part"], "weightCol": "weight", "guard": 1.0, "maxEpochs": 8}
        tuned = tune_each(model, part[label], shared, *each, **options)
        held = sides(part[label])["validation"].where("weight > 0")
        found[label] = (model, held, dict(zip(metrics, tuned, strict=True)))
    return found


OTHERS = [pytest.param(metric, marks=pytest.mark.nightly) for metric in ("accuracy", "rmse")]
"""Means over rows, which the other tests' metrics are too."""


@pytest.mark.nightly
@pytest.mark.parametrize("metric", ["f1", "r2", *OTHERS])
def test_slices_by_sparks_evaluators_with_weights(weighed: dict[str, Any], metric: str) -> None:
    model, held, each = weighed["kind" if metric in ("f1", "accuracy") else "riders"]
    tuned, label = each[metric], model.stages[-1].getLabelCol()
    assert tuned.summary.decision == "tuned"
    one, other = (
        m.transform(held).select("prediction", label, "weight", "region", "rainy", "part").coalesce(1).cache()
        for m in (model, tuned.pipelineModel)
    )
    sign = 1 if evaluator(metric, label).isLargerBetter() else -1
    assert len(tuned.summary.slices) == 5 + 3 + 2
    for c in tuned.summary.slices:
        here = F.col(c["column"]).eqNullSafe(F.lit(c["value"]))
        assert c["rows"] == one.where(here).count()
        assert (c["p"] is None) is (c["units"] < 30 or c["before"] is None)
        if metric == "r2" and c["value"] == "same":  # labels that don't differ
            assert (c["before"], c["after"], c["p"]) == (None, None, None)
            continue
        before, after = (evaluator(metric, label).evaluate(m.where(here)) for m in (one, other))
        assert (c["before"], c["after"]) == pytest.approx((before, after), rel=1e-9)
        assert c["gain"] == pytest.approx(sign * (after - before), rel=1e-6, abs=1e-12)
    json.dumps(tuned.summary.asdict(), allow_nan=False)
    assert "slice under the best epoch" in str(tuned.summary)


# Reference rows -------------------------------------------------------------------------------------------------------


def test_reference_rows_that_get_worse_keep_the_original(
    regional: DataFrame, numeric: PipelineModel, shared: Path
) -> None:
    islands, rest = regional.where("region = 'islands'"), regional.where("region <> 'islands'")
    kept = tune(numeric, rest, shared, referenceData=islands)
    s = kept.summary
    assert s.decision == "kept original"
    assert "poisson gets worse on the reference rows from" in s.reason
    assert s.reference is not None
    assert s.reference["rows"] == islands.count()
    assert s.metrics["reference"] is not None
    y, mu = predictions(numeric, islands, "riders").T[::-1]
    assert s.metrics["reference"]["before"] == pytest.approx(half_deviance(y, mu).mean(), rel=1e-12)
    assert s.metrics["reference"]["after"] == s.metrics["reference"]["before"]
    assert s.reference["after"] > 1.02 * s.reference["before"]
    assert "reference" in str(s)
    # Rows that gain, or not enough of them to tell, don't keep it; and no training reads them.
    good = tune(numeric, rest, shared, referenceData=rest.sample(0.3, seed=1))
    assert good.summary.decision == "tuned"
    assert good.summary.metrics["reference"]["after"] < good.summary.metrics["reference"]["before"]  # type: ignore[index]
    assert good.summary.history.equals(s.history)


@pytest.mark.nightly  # blocks of time: test_splits
def test_reference_rows_by_time_make_blocks_of_their_own(
    regional: DataFrame, numeric: PipelineModel, folder: Path
) -> None:
    islands, rest = regional.where("region = 'islands'"), regional.where("region <> 'islands'")
    cache = cached(numeric, [Source(rest), Source(islands, REFERENCE)], folder, timeCol="number")
    with Stream(cache.folder, backend="arrow") as stream:
        (batch,) = stream.batches("reference", batchSize=10_000)
    block = batch["block"][batch["time"].argsort()]
    assert (block.diff() >= 0).all()
    assert len(block.unique()) == 50


def test_slices_and_reference_rows_by_group(regional: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    """Few reference groups are measured, and not tested."""
    old = regional.where("user < 20")
    s = tune(numeric, regional, shared, referenceData=old, groupCol="user", guardCols=["region"]).summary
    assert s.decision == "kept original"
    assert "region = islands" in s.reason
    for c in s.slices:
        assert c["units"] < c["rows"]
    assert s.reference is not None
    assert (s.reference["units"], s.reference["rows"]) == (20, 200)
    assert s.reference["p"] is None
    assert any("20 groups or blocks, fewer than 30" in w for w in s.warnings)


def test_wrong_reference_rows(regional: DataFrame, numeric: PipelineModel, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="12 reference rows of weight > 0, but at least 30 are needed"):
        tune(numeric, regional, shared, referenceData=regional.limit(12))
    with pytest.raises(InputError, match="referenceData must be a Spark DataFrame, got str"):
        FineTuner(pipeline=numeric, referenceData="old.parquet")
    with pytest.raises(InputError, match="'wind'"):
        tune(numeric, regional, shared, referenceData=regional.drop("wind"))
    tuner = FineTuner(pipeline=numeric, referenceData=regional, rowsAreNew=True)
    assert tuner.getReferenceData() is regional
    with pytest.raises(InputError, match=r"cannot be saved: clear it with tuner.clear\(tuner.referenceData\)"):
        tuner.write().save(f"file://{tmp_path}/tuner")
    tuner.clear(tuner.referenceData)
    tuner.write().save(f"file://{tmp_path}/cleared")
    assert not FineTuner.load(f"file://{tmp_path}/cleared").isSet("referenceData")


@pytest.mark.nightly  # keys of caches: test_cache and test_searches
def test_a_grid_over_reference_rows_doesnt_mix_caches(
    regional: DataFrame, numeric: PipelineModel, shared: Path
) -> None:
    tuner = FineTuner(pipeline=numeric, cacheDir=str(shared), maxEpochs=1, stream="arrow", rowsAreNew=True)
    parts = [regional.where("region = 'north'"), regional.where("region = 'south'")]
    found = tuner.fit(regional, [{tuner.referenceData: part} for part in parts])
    for part, model in zip(parts, found, strict=True):
        y, mu = predictions(numeric, part, "riders").T[::-1]
        reference = model.summary.metrics["reference"]
        assert reference is not None
        assert reference["before"] == pytest.approx(half_deviance(y, mu).mean(), rel=1e-12)


# Changed labels, scores and calibration -------------------------------------------------------------------------------


def psi(old: Any, new: Any) -> float:
    """By numpy's quantiles and histograms, half a row added to each bin."""
    edges = np.unique(np.quantile(old, np.arange(1, 10) / 10, method="lower"))
    a, b = (np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) + 0.5 for x in (old, new))
    a, b = a / a.sum(), b / b.sum()
    return float(((b - a) * np.log(b / a)).sum())


@pytest.mark.nightly
def test_compatibility_of_a_classifier(
    regional: DataFrame, classifier: PipelineModel, relabelled: FineTunerModel
) -> None:
    assert relabelled.summary.decision == "tuned"
    c = relabelled.summary.compatibility
    assert c is not None
    held = sides(regional)["validation"]
    old, new = (by_hand(m, held, "probability", "rain") for m in (classifier, relabelled.pipelineModel))
    p, q = (np.stack([v.toArray()[1] for v in r["probability"]]) for r in (old, new))
    y = old["rain"].to_numpy()
    assert c["rows"] == len(y)
    assert c["labels"] is True
    assert c["changed"] == pytest.approx((old["prediction"] != new["prediction"]).mean())
    assert 0 < c["changed"] != pytest.approx(((p > 0.5) != (q > 0.5)).mean())  # the model's threshold is 0.4
    assert c["psi"] == pytest.approx(psi(p, q), rel=1e-9)
    assert c["correlation"] == pytest.approx(np.corrcoef(p, q)[0, 1], rel=1e-9)
    for when, score in (("before", p), ("after", q)):
        bins = np.minimum((score * 10).astype(int), 9)
        error = sum(abs((score - y)[bins == k].sum()) for k in range(10)) / len(y)
        assert c["calibration"][when] == pytest.approx(error, rel=1e-9)
    assert c["calibration"]["after"] < c["calibration"]["before"]  # regParam 0.3 had drawn them together
    assert sum(b["rows"] for b in c["bins"]) == len(y)
    edges = np.quantile(p, np.arange(1, 10) / 10, method="lower")
    top = p > edges[-1]
    assert c["bins"][-1] == pytest.approx(
        {"rows": top.sum(), "label": y[top].mean(), "before": p[top].mean(), "after": q[top].mean()}
    )
    assert sum(c["changes"]["counts"]) + c["changes"]["outside"] == len(y)
    for when, r in (("before", old), ("after", new)):
        own = np.stack([v.toArray() for v in r["probability"]])
        assert c["others"]["accuracy"][when] == pytest.approx((r["prediction"] == y).mean())
        assert c["others"]["logLoss"][when] == pytest.approx(-np.log(own[np.arange(len(y)), y.astype(int)]).mean())
    assert f"{c['changed']:.1%} of the labels change" in str(relabelled.summary)


def test_more_changed_labels_than_allowed_keep_the_original(
    regional: DataFrame, classifier: PipelineModel, relabelled: FineTunerModel, shared: Path
) -> None:
    changed = relabelled.summary.compatibility["changed"]  # type: ignore[index]
    kept, enough = tune_each(classifier, regional, shared, {"maxFlipRate": changed / 2}, {"maxFlipRate": changed})
    assert kept.summary.decision == "kept original"
    assert kept.pipelineModel is classifier
    assert (
        f"but {changed:.2%} of the labels change, more than maxFlipRate {changed / 2:g} allows" in kept.summary.reason
    )
    assert kept.summary.compatibility == relabelled.summary.compatibility
    assert enough.summary.decision == "tuned"


def test_a_regression_has_no_labels_to_change(regional: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    with pytest.raises(InputError, match=r"maxFlipRate=0.1 limits changed labels, but GeneralizedLinearRegression"):
        tune(numeric, regional, shared, maxFlipRate=0.1)


def test_compatibility_of_a_regression(weighed: dict[str, Any]) -> None:
    model, held, each = weighed["riders"]
    tuned = each["rmse"]
    c = tuned.summary.compatibility
    assert c is not None
    old, new = (by_hand(m, held, "riders", "weight") for m in (model, tuned.pipelineModel))
    p, q, w, y = old["prediction"].to_numpy(), new["prediction"].to_numpy(), old["weight"], old["riders"]
    assert c["labels"] is False
    assert c["rows"] == len(p)
    assert c["changed"] == pytest.approx((np.abs(q - p) > 0.1 * np.abs(p)).mean())
    assert c["psi"] == pytest.approx(psi(p, q), rel=1e-9)
    assert c["calibration"]["measure"] == "meanPrediction / meanLabel"
    for when, mean in (("before", p), ("after", q)):
        assert c["calibration"][when] == pytest.approx(np.average(mean, weights=w) / np.average(y, weights=w), rel=1e-9)
        assert c["others"]["mae"][when] == pytest.approx(np.average(np.abs(mean - y), weights=w), rel=1e-9)


@pytest.fixture(scope="module")
def several(regional: DataFrame) -> PipelineModel:
    head = LogisticRegression(featuresCol="x", labelCol="kind", regParam=0.2)
    return pipeline(regional, head, StandardScaler(inputCol="raw", outputCol="x", withMean=True))


@pytest.mark.parametrize("shown", ["predictionCol", "probabilityCol", "rawPredictionCol"])
def test_compatibility_of_several_classes_whatever_is_shown(
    regional: DataFrame, several: PipelineModel, shared: Path, shown: str
) -> None:
    head = several.stages[-1].copy()
    for name in ("predictionCol", "probabilityCol", "rawPredictionCol"):
        head._set(**{name: "out" if name == shown else ""})
    model = PipelineModel([*several.stages[:-1], head])
    task = prepare(model, Options(loss="logLoss"))
    cache = cached(model, regional, shared)
    old = Network(task.cut.graph, task.cut.live)
    moved = old.clone()
    with torch.no_grad():
        for k, weights in enumerate(moved.parameters()):
            weights += 0.3 * torch.randn(weights.shape, dtype=weights.dtype, generator=torch.Generator().manual_seed(k))
    with Stream(cache.folder, backend="arrow") as stream:
        c = compare(old, moved, Data(stream, cache.columns(task.cut)), "validation")
    held = sides(regional)["validation"]
    one, other = (m.transform(held).select("out", "kind").toPandas() for m in (model, write_back(model, moved)))
    if shown == "predictionCol":
        assert 0.05 < c.changed == pytest.approx((one["out"] != other["out"]).mean())
        assert c.calibration is None
    else:
        p, q = (np.stack([v.toArray() for v in r["out"]]) for r in (one, other))
        assert 0.05 < c.changed == pytest.approx((p.argmax(1) != q.argmax(1)).mean())
        assert c.psi == pytest.approx(psi(p.max(1), q.max(1)), rel=1e-9)
    if shown == "probabilityCol":
        sure, right = p.max(1), p.argmax(1) == one["kind"]
        bins = np.minimum((sure * 10).astype(int), 9)
        error = sum(abs((sure - right)[bins == k].sum()) for k in range(10)) / len(sure)
        assert c.calibration is not None
        assert c.calibration["before"] == pytest.approx(error, rel=1e-9)
    assert c.bins is None


# A fleet --------------------------------------------------------------------------------------------------------------


def test_a_fleet_asks_for_more(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    """And turns down what one pipeline accepts."""
    alone = tune(numeric, df, shared, maxEpochs=2).summary
    assert alone.decision == "tuned"
    sizes = [2, 10**12]  # beyond what its p could be with any number of draws
    few, many = (m.summary for m in tune_each(numeric, df, shared, *({"fleetSize": n} for n in sizes), maxEpochs=2))
    assert few.decision == "tuned"
    assert "needed < 0.0125 = guard 0.025 / fleetSize 2" in few.reason
    assert few.p < 0.0125
    assert many.decision == "kept original"
    assert f"fleetSize {sizes[1]:,}" in many.reason
    assert "within what chance explains" in many.reason
    assert many.gainInterval == alone.gainInterval
