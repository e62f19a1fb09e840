"""What a fine-tuning costs, told before: as many Spark jobs as it makes, the bytes of its cache; and nothing is written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import RandomForestClassifier
from pyspark.ml.feature import HashingTF, StringIndexer, Tokenizer, VectorAssembler
from pyspark.ml.regression import GBTRegressor, LinearRegression
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import FineTuner, InputError
from sparkdiff.data.cache import Cache
from sparkdiff.data.rehearsal import saving_jobs
from tests.support.small_data import NUMBERS, Write, unfitted

Jobs = Callable[[], int]

BYTES = 1.3
"""The bytes of the cache lie within this factor of what is told."""


def files(*folders: Path) -> set[str]:
    return {
        os.path.join(where, name) for f in folders for where, inside, names in os.walk(f) for name in (*inside, *names)
    }


def cached(folder: Path) -> int:
    """Bytes of the rows in the only cache of a folder."""
    (manifest,) = folder.glob("*/manifest.json")
    found = Cache(manifest.parent, json.loads(manifest.read_text()), hit=False)
    return sum(p["bytes"] for shards in found.manifest["splits"].values() for shard in shards for p in shard)


def real(tuner: FineTuner, df: DataFrame, folder: Path, jobs: Jobs) -> tuple[int, int]:
    """Jobs and cache bytes of a run; a pipeline that is kept is not compared again, which takes one job less."""
    jobs()
    [found] = tuner.fit(df, [{}])  # one of several settings, whose results are not saved to be compared
    kept = found.summary.decision != "tuned"
    return jobs() + kept, cached(folder)


def test_jobs_and_bytes_match_the_run_without_any_writing(
    write: Write, table: pa.Table, folder: Path, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    df = write(table)  # a new file: rows that this process has read before need one job less
    tuner = FineTuner(unfitted().fit(df), cacheDir=str(folder), maxEpochs=3, verbosity=0, rowsAreNew=True)
    before = files(tmp_path)
    cost = tuner.cost(df)
    assert files(tmp_path) == before
    assert cost.jobs is not None and cost.totalJobs is not None
    assert cost.rows == df.count()
    found, size = real(tuner, df, folder, jobs)
    assert cost.totalJobs[1] == found
    assert size / BYTES < cost.cacheBytes < size * BYTES
    assert all(0 <= low <= high for low, high in cost.seconds.values())
    assert json.loads(cost.toJSON())["totalJobs"] == list(cost.totalJobs)
    assert "Spark jobs" in str(cost) and "a cache of about" in repr(cost)
    stopped = tuner.copy({tuner.patience: 1, tuner.minDelta: 1e6}).cost(df)  # by all candidates, after one epoch
    assert stopped.seconds["train"][0] < cost.seconds["train"][1]
    refitted = tuner.copy({tuner.rowsAreNew: False}).cost(df)
    assert (
        {*refitted.notes} - {*cost.notes} == {n for n in refitted.notes if "rowsAreNew=True spares them" in n} != set()
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["time and slices", "groups", "text", "trees", "rows that a plan does not tell"])
def test_jobs_and_bytes_in_other_settings(name: str, df: DataFrame, folder: Path, jobs: Jobs) -> None:
    # Fitted anew: the digests of stages that were saved before are remembered.
    pipeline = unfitted()
    options: dict[str, Any] = {"cacheDir": str(folder), "maxEpochs": 3, "verbosity": 0, "rowsAreNew": True}
    category = next(f.name for f in df.schema.fields if f.dataType.simpleString() == "string")
    if name == "time and slices":
        options |= {"timeCol": NUMBERS[0], "guardCols": [category]}
    elif name == "groups":
        options["groupCol"] = NUMBERS[1]
    elif name == "text":
        df = df.withColumn("text", F.concat_ws(" ", category, F.col(NUMBERS[0]).cast("int")))
        hashed = [
            Tokenizer(inputCol="text", outputCol="words"),
            HashingTF(inputCol="words", outputCol="features", numFeatures=4096),
        ]
        pipeline = Pipeline(stages=[*hashed, LinearRegression(labelCol="riders", regParam=1.0)])
    elif name == "trees":
        gathered = VectorAssembler(inputCols=NUMBERS, outputCol="features")
        pipeline = Pipeline(stages=[gathered, GBTRegressor(labelCol="riders", maxIter=2, maxDepth=2)])
    else:
        df = df.withColumn("noise", F.rand(3) * 0)
    tuner = FineTuner(pipeline.fit(df), **options)
    cost = tuner.cost(df)
    found, size = real(tuner, df, folder, jobs)
    assert cost.totalJobs is not None
    assert cost.totalJobs[0] <= found <= cost.totalJobs[1], cost
    assert size / BYTES < cost.cacheBytes < size * BYTES


def test_jobs_that_save_stages_are_known(df: DataFrame, tmp_path: Path, jobs: Jobs) -> None:
    category = next(f.name for f in df.schema.fields if f.dataType.simpleString() == "string")
    gathered = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    label = StringIndexer(inputCol=category, outputCol="target")
    model = Pipeline(stages=[label, gathered, RandomForestClassifier(labelCol="target", numTrees=2, maxDepth=2)]).fit(
        df
    )
    jobs()
    model.write().save(f"file://{tmp_path}/model")
    low, high = saving_jobs(model.stages)
    assert low <= jobs() <= high <= low + 2


@pytest.mark.nightly
def test_the_bytes_of_many_rows_follow_from_the_first_ones(
    write: Write, model: PipelineModel, table: pa.Table, folder: Path
) -> None:
    """And the time lies in its range, which is wide."""
    df = write(pa.concat_tables([table] * 20))
    tuner = FineTuner(model, cacheDir=str(folder), maxEpochs=2, verbosity=0, rowsAreNew=True)
    cost, summary = tuner.cost(df), tuner.fit(df).summary
    size = cached(folder)
    assert size / BYTES < cost.cacheBytes < size * BYTES
    for phase in ("cache", "train"):
        low, high = cost.seconds[phase]
        assert low / 3 <= summary.timings[phase] <= 3 * high, (phase, cost.seconds, summary.timings)


def test_what_has_no_cost_is_said(model: PipelineModel, df: DataFrame, folder: Path) -> None:
    for tuner, why in (
        (FineTuner(), "has no pipeline"),
        (FineTuner(Pipeline(stages=[])), "isn't fitted"),
        (FineTuner(model, numFolds=3), "numFolds"),
        (FineTuner(model, numFolds="auto"), "numFolds"),
        (FineTuner(model, labelCol="rider"), "Did you mean"),
        (sparkdiff.Grower(model), "depends on what it finds"),
    ):
        with pytest.raises(InputError, match=why):
            tuner.cost(df)
