"""The cache: what rebuilds it and what doesn't, what lies in it, and what happens to a damaged one."""

import dataclasses
import json
import os
import shutil
import stat
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    HashingTF,
    MinMaxScaler,
    OneHotEncoder,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
)
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import LinearRegression
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame, SparkSession, functions as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparkdiff import InputError
from sparkdiff.cli import steps
from sparkdiff.data import cache as caches, frames, layout, splits
from sparkdiff.data.cache import Cache, DamagedCache
from sparkdiff.data.fingerprint import Request, source_facts
from sparkdiff.data.frames import TransformedRows
from sparkdiff.data.splits import Source
from sparkdiff.data.stream.batches import Stream
from sparkdiff.options import Options
from sparkdiff.pipeline.schema import width_in
from sparkdiff.tensors.rows import SparseRows
from tests.support.small_data import HAS_PETASTORM, NUMBERS, cached, fingerprint_of, requested, tune

Write = Callable[..., DataFrame]


def contents(cache: Cache) -> dict[str, list[list[tuple[int, str]]]]:
    """Rows and hash of every file, split by split and shard by shard: equal contents mean equal bytes on disk."""
    splits = cache.manifest["splits"]
    return {s: [[(p["rows"], p["sha256"]) for p in shard] for shard in shards] for s, shards in splits.items()}


def column(cache: Cache, name: str, *splits: str) -> Any:
    """A column of the cache, all rows of these splits (of all, where none is named)."""
    with Stream(cache.folder, backend="arrow") as stream:
        found = [b[name] for s in splits or cache.manifest["splits"] for b in stream.batches(s, batchSize=100_000)]
    sparse = [x for x in found if isinstance(x, SparseRows)]
    return SparseRows.cat(sparse) if sparse else torch.cat(found)  # type: ignore[arg-type]


@pytest.fixture
def rows_read(spark: SparkSession) -> Iterator[Callable[[], int]]:
    """Rows that Spark's tasks have read from files since it was asked last."""
    context = spark.sparkContext
    groups: list[str] = []

    def next_group() -> None:
        groups.append(f"rows read {uuid.uuid4()}")
        context.setJobGroup(groups[-1], "")

    def count() -> int:
        scala, tracker = context._jsc.sc(), context.statusTracker()
        scala.listenerBus().waitUntilEmpty()
        jobs = [tracker.getJobInfo(i) for i in tracker.getJobIdsForGroup(groups[-1])]
        stages = {i for job in jobs for i in job.stageIds}
        next_group()
        return sum(scala.statusStore().lastStageAttempt(i).inputRecords() for i in stages)

    next_group()
    yield count
    context.setLocalProperty("spark.jobGroup.id", None)


# What rebuilds --------------------------------------------------------------------------------------------------------


def test_a_changed_value_in_the_source_file_rebuilds(
    write: Write, table: pa.Table, numeric: PipelineModel, tmp_path: Path
) -> None:
    path = tmp_path / "source.parquet"
    first = fingerprint_of(numeric, write(table, path))
    assert fingerprint_of(numeric, write(table.slice(0), path)) != first  # written anew: other mtime
    time = path.stat().st_mtime_ns
    doubled = pc.multiply(table["riders"], 2.0)
    df = write(table.set_column(table.schema.get_field_index("riders"), "riders", doubled), path)
    os.utime(path, ns=(time, time + 5_000_000_000))
    assert fingerprint_of(numeric, df) != first


def test_a_value_changed_at_the_same_length_rebuilds(
    spark: SparkSession, numeric: PipelineModel, folder: Path, tmp_path: Path
) -> None:
    """An equal fingerprint hits and another one rebuilds; all other tests of what rebuilds compare fingerprints."""
    path = tmp_path / "rows.csv"
    header, lines = (
        ",".join([*NUMBERS, "riders"]),
        [f"0.{i},0.{i + 1},0.{i + 2},0.{i + 3},{i % 7}" for i in range(100, 400)],
    )
    path.write_text("\n".join([header, *lines]))
    schema = ", ".join(f"{c} DOUBLE" for c in [*NUMBERS, "riders"])

    def read() -> DataFrame:
        return spark.read.schema(schema).csv(f"file://{path}", header=True)

    first = cached(numeric, read(), folder)
    assert cached(numeric, read(), folder).hit
    assert fingerprint_of(numeric, read()) == first.fingerprint
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("0.399", "0.993"))
    assert path.stat().st_size == size
    os.utime(path, ns=(time, time + 1_000_000_000))
    second = cached(numeric, read(), folder)
    assert not second.hit
    assert column(second, "c0").max() == 0.993 > column(first, "c0").max()


def test_a_changed_param_of_a_referenced_stage_rebuilds(df: DataFrame, model: PipelineModel) -> None:
    first = fingerprint_of(model, df)
    assert fingerprint_of(model, df) == first
    indexer = model.stages[0].copy()
    indexer._set(stringOrderType="alphabetDesc")
    changed = PipelineModel([indexer, *model.stages[1:]])
    labels = StringIndexer(inputCol="hour", outputCol="hour_index", stringOrderType="alphabetDesc").fit(df)
    assert labels.labels != model.stages[0].labels
    other = PipelineModel([labels, *model.stages[1:]])
    assert len({first, fingerprint_of(changed, df), fingerprint_of(other, df)}) == 3


def in_memory(spark: SparkSession, shift: float) -> DataFrame:
    random = np.random.default_rng(3)
    rows = [(*map(float, random.normal(size=4)), float(i % 5) + shift) for i in range(400)]
    return spark.createDataFrame(rows, [*NUMBERS, "riders"])


def test_another_dataframe_of_the_same_schema_rebuilds(spark: SparkSession, numeric: PipelineModel) -> None:
    one, other = in_memory(spark, 0.0), in_memory(spark, 3.0)

    def text(df: DataFrame) -> str:
        return str(df._jdf.queryExecution().optimizedPlan().canonicalized().toString())

    assert text(one) == text(other)  # so that the plan can't tell them apart
    first = fingerprint_of(numeric, one)
    assert fingerprint_of(numeric, in_memory(spark, 0.0)) == first  # the same rows
    assert fingerprint_of(numeric, other) != first


def test_what_only_training_looks_at_hits(df: DataFrame, model: PipelineModel) -> None:
    first = fingerprint_of(model, df)
    for options in (
        {"learningRate": 1e-4},
        {"loss": "squared"},
        {"freeze": ["PCAModel"]},
        {"target": ["components"]},
        {"regAnchor": 0.0},
        {"batchSize": 7},
        {"maxEpochs": 3},
        {"guard": 1.0},
        {"stream": "arrow"},
        {"cacheInMemory": False},
    ):
        assert fingerprint_of(model, df, **options) == first, options  # type: ignore[arg-type]


def test_what_changes_rows_or_columns_rebuilds(df: DataFrame, numeric: PipelineModel) -> None:
    each = [
        {},
        {"seed": 1},
        {"validationFraction": 0.3},
        {"validationIndicatorCol": "held"},
        {"groupCol": "user"},
        {"timeCol": "when"},
        {"weightCol": "weight"},
        {"labelCol": "wait"},
        {"reference": ["StandardScalerModel"]},
        {"guardCols": ["hour"]},
    ]
    keys = [fingerprint_of(numeric, df, **options) for options in each]
    assert len(set(keys)) == len(each), dict(zip(map(str, each), keys, strict=True))


def test_reference_changes_the_cut_and_what_is_cached(
    df: DataFrame, numeric: PipelineModel, shared: Path, folder: Path
) -> None:
    cut = cached(numeric, df, folder, reference=["StandardScalerModel"])
    assert [c["column"] for c in cut.manifest["columns"]][:1] == ["scaled"]
    assert column(cut, "c0").mean(0).abs().max() < 0.1  # really scaled
    assert [c["column"] for c in cached(numeric, df, shared).manifest["columns"]][:1] == ["assembled"]


@pytest.mark.parametrize(
    "change",
    [
        lambda df: df.where("temp < 2"),
        lambda df: df.where(F.col("number").isin([float(i) for i in range(200)])),
        lambda df: df.withColumn("temp", F.col("temp") * 2),
        lambda df: df.withColumnsRenamed({"temp": "hum", "hum": "temp"}),
        lambda df: df.unionAll(df),
    ],
    ids=["filter", "long list", "expression", "names", "union"],
)
def test_another_query_on_the_same_file_rebuilds(df: DataFrame, change: Callable[[DataFrame], DataFrame]) -> None:
    facts = json.dumps(source_facts(change(df)))
    assert facts != json.dumps(source_facts(df))
    assert facts == json.dumps(source_facts(change(df)))


def test_one_value_in_a_long_list_counts(df: DataFrame) -> None:
    lists = [df.where(F.col("number").isin([float(i) for i in range(300)] + [last])) for last in (900.0, 901.0)]
    one, other = (json.dumps(source_facts(d)) for d in lists)
    assert one != other


def test_names_of_columns_count_although_the_plan_forgets_them(df: DataFrame) -> None:
    wide = df.select(*(F.col("temp").alias(f"x{i}") for i in range(40)))  # beyond the 25 fields that a plan shows
    other = df.select(*(F.col("hum" if i == 39 else "temp").alias(f"x{i}") for i in range(40)))
    assert json.dumps(source_facts(wide)) != json.dumps(source_facts(other))


# Where the plan doesn't tell ------------------------------------------------------------------------------------------

SHIFT = 0.0


def test_a_python_udf_is_told_by_what_it_returns(df: DataFrame, numeric: PipelineModel) -> None:
    def shifted(by: float) -> DataFrame:
        return df.withColumn("temp", F.udf(lambda x: x + by, "double")("temp"))  # no hints: Spark 4.3 goes by them

    first = fingerprint_of(numeric, shifted(0.0))
    assert fingerprint_of(numeric, shifted(0.0)) == first
    assert fingerprint_of(numeric, shifted(100.0)) != first  # the same name, the same plan, another function


def test_rows_made_by_a_python_function_are_told_by_content(spark: SparkSession, df: DataFrame) -> None:
    def made(by: float) -> DataFrame:
        def f(batches: Iterator[Any]) -> Iterator[Any]:
            for batch in batches:
                yield batch.assign(temp=batch["temp"] + by)

        return df.select(*NUMBERS).mapInPandas(f, "temp double, hum double, wind double, noise double")

    facts = [json.dumps(source_facts(made(by))) for by in (0.0, 0.0, 1.0)]
    assert facts[0] == facts[1] != facts[2]


def test_what_a_udf_in_a_referenced_stage_returns_counts(spark: SparkSession, df: DataFrame) -> None:
    assembler = VectorAssembler(inputCols=["made", "hum"], outputCol="x")
    sql = SQLTransformer(statement="SELECT *, made_up(temp) AS made FROM __THIS__")
    spark.udf.register("made_up", lambda x: x, "double")
    fitted = Pipeline(stages=[sql, assembler, LinearRegression(featuresCol="x", labelCol="riders", maxIter=1)]).fit(df)
    first = fingerprint_of(fitted, df)
    assert fingerprint_of(fitted, df) == first
    spark.udf.register("made_up", lambda x: x + 100.0, "double")
    assert fingerprint_of(fitted, df) != first


class Shift(Transformer, DefaultParamsWritable, DefaultParamsReadable):
    """A stage in Python, whose saved form doesn't hold its code."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn("made", F.col("temp") + F.lit(SHIFT))


class Unsaved(Transformer):
    """A stage in Python that can't be saved."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn("made", F.col("temp") + F.lit(SHIFT))


@pytest.mark.parametrize("stage", [Shift, Unsaved])
def test_a_stage_in_python_is_told_by_what_it_returns(
    df: DataFrame, stage: type[Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    assembler = VectorAssembler(inputCols=["made", "hum"], outputCol="x")
    fitted = Pipeline(stages=[stage(), assembler, LinearRegression(featuresCol="x", labelCol="riders", maxIter=1)]).fit(
        df
    )
    first = fingerprint_of(fitted, df)
    assert fingerprint_of(fitted, df) == first
    monkeypatch.setattr(sys.modules[__name__], "SHIFT", 100.0)
    assert fingerprint_of(fitted, df) != first


def test_a_nondeterministic_source_is_told_by_content(df: DataFrame, numeric: PipelineModel) -> None:
    drawn = df.withColumn("temp", F.rand(seed=3))
    assert "plan" not in source_facts(drawn)
    first = fingerprint_of(numeric, drawn)
    assert fingerprint_of(numeric, df.withColumn("temp", F.rand(seed=3))) == first
    assert fingerprint_of(numeric, df.withColumn("temp", F.rand(seed=4))) != first


def test_files_inside_a_subquery_count(spark: SparkSession, df: DataFrame, write: Write, tmp_path: Path) -> None:
    path = tmp_path / "limit.parquet"

    def below(limit: float) -> DataFrame:
        write(pa.table({"limit": [limit]}), path).createOrReplaceTempView("sparkdiff_limit")
        return df.where("temp < (SELECT max(limit) FROM sparkdiff_limit)")

    one = json.dumps(source_facts(below(0.25)))
    time = path.stat().st_mtime_ns
    df_other = below(0.75)
    os.utime(path, ns=(time, time + 5_000_000_000))
    assert json.dumps(source_facts(df_other)) != one


# What hits ------------------------------------------------------------------------------------------------------------


def test_a_hit_reads_no_source_row(
    df: DataFrame, model: PipelineModel, folder: Path, rows_read: Callable[[], int]
) -> None:
    assert not cached(model, df, folder).hit
    assert rows_read() >= 1500
    assert cached(model, df, folder).hit
    assert rows_read() == 0
    assert df.where("temp > 0").groupBy("hour").count().collect()
    assert rows_read() >= 1500  # so that the zero above means something


def test_the_content_does_not_depend_on_partitioning(
    spark: SparkSession, df: DataFrame, numeric: PipelineModel, shared: Path, folder: Path
) -> None:
    twice = df.unionAll(df.where("number < 300"))  # equal rows, too
    one = cached(numeric, twice.coalesce(1), shared)
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        many = cached(numeric, twice.repartition(7, "wind"), folder)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    assert many.folder != one.folder
    assert contents(many) == contents(one)
    assert sum(many.rows(s) for s in many.manifest["splits"]) == 1800


# Damage ---------------------------------------------------------------------------------------------------------------


def a_file(folder: Path) -> Path:
    return sorted(folder.glob("train/*.parquet"))[3]


def truncate(folder: Path) -> None:
    with a_file(folder).open("r+b") as file:
        file.truncate(100)


def flip(folder: Path) -> None:
    data = bytearray(a_file(folder).read_bytes())
    data[len(data) // 2] ^= 1
    a_file(folder).write_bytes(data)


def swap(folder: Path) -> None:
    one, other = sorted(folder.glob("train/*.parquet"))[:2]
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def rewrite(change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        new = change((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_bytes(new if isinstance(new, bytes) else new.encode())

    return damage


def without(key: str) -> Callable[[str], str]:
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "a flipped bit": flip,
    "deleted": lambda folder: a_file(folder).unlink(),
    "swapped": swap,
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no data at all": lambda folder: shutil.rmtree(folder / "train"),
    "manifest cut off": rewrite(lambda text: text[: len(text) // 2]),
    "manifest empty": rewrite(lambda text: ""),
    "manifest not UTF-8": rewrite(lambda text: b"\xff\xfe" + text.encode()),
    "manifest of another kind": rewrite(lambda text: "[]"),
    "manifest without columns": rewrite(without("columns")),
    "manifest without stats": rewrite(without("stats")),
    "manifest of another format": rewrite(lambda text: text.replace('"format": 1', '"format": 0')),
    "manifest with another mean": rewrite(lambda text: text.replace('"mean": ', '"mean": 1')),
    "manifest of another cache": rewrite(lambda text: text.replace('"fingerprint": "', '"fingerprint": "0')),
    "manifest a folder": lambda folder: ((folder / "manifest.json").unlink(), (folder / "manifest.json").mkdir()),
}


@pytest.fixture(scope="module")
def whole(df: DataFrame, numeric: PipelineModel, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache to damage copies of, in a folder that didn't exist before."""
    return cached(numeric, df, tmp_path_factory.mktemp("whole") / "caches")


SOME = {
    "truncated",
    "a flipped bit",
    "swapped",
    "no manifest",
    "manifest cut off",
    "manifest without stats",
    "manifest with another mean",
}
"""For each commit: of each file, one that is no longer one, one that says other things, and one that is gone or elsewhere."""


@pytest.mark.parametrize("damage", [pytest.param(d, marks=() if d in SOME else pytest.mark.nightly) for d in DAMAGES])
def test_a_damaged_cache_is_built_again(
    df: DataFrame, numeric: PipelineModel, folder: Path, whole: Cache, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is built, another test compares; here it is copied."""
    copied: list[Path] = []

    def copy(request: Any, told: str, to: Path, data: Path, columns: list[Any]) -> TransformedRows:
        copied.append(shutil.copytree(whole.folder, to, dirs_exist_ok=True))
        return TransformedRows([], {})

    monkeypatch.setattr(caches, "fingerprint", lambda request, folder: whole.fingerprint)
    monkeypatch.setattr(caches, "_build", copy)
    shutil.copytree(whole.folder, folder / whole.folder.name)
    assert cached(numeric, df, folder).hit  # a copy is as good
    DAMAGES[damage](folder / whole.folder.name)
    with pytest.warns(DamagedCache, match="is damaged and is written again"):
        again = cached(numeric, df, folder)
    assert not again.hit
    assert len(copied) == 1
    assert [p.name for p in folder.iterdir()] == [whole.folder.name]


def test_what_is_built_again_is_what_was_there(
    df: DataFrame, numeric: PipelineModel, folder: Path, whole: Cache
) -> None:
    folder.mkdir(mode=0o755)
    shutil.copytree(whole.folder, folder / whole.folder.name)
    flip(folder / whole.folder.name)
    with pytest.warns(DamagedCache, match="is damaged and is written again"):
        again = cached(numeric, df, folder)
    assert not again.hit
    assert contents(again) == contents(whole)
    assert again.manifest == whole.manifest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached(numeric, df, folder).hit
    # Nobody else can read what was built, whether its folder was there or not.
    for made in (again.folder, whole.folder, whole.folder.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_two_processes_may_build_the_same_cache(
    df: DataFrame, numeric: PipelineModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, others = caches._build, []

    def overtaken(*arguments: Any) -> TransformedRows:
        made = build(*arguments)
        monkeypatch.setattr(caches, "_build", build)
        others.append(cached(numeric, df, folder))  # another one begins later and is done earlier
        return made

    monkeypatch.setattr(caches, "_build", overtaken)
    first = cached(numeric, df, folder)
    assert others[0].folder == first.folder
    assert others[0].manifest == first.manifest
    assert [p.name for p in folder.iterdir()] == [first.folder.name]


def test_two_jobs_may_fit_the_same_pipeline(df: DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, others, said = steps.fit_on_training_rows, [], []

    def fitted() -> tuple[PipelineModel, Path]:
        stages = [
            VectorAssembler(inputCols=NUMBERS, outputCol="x"),
            LinearRegression(featuresCol="x", labelCol="riders"),
        ]
        return steps.fit_or_reuse(Pipeline(stages=stages), [Source(df)], Options(cacheDir=str(folder)), said.append)

    def overtaken(*arguments: Any) -> PipelineModel:
        monkeypatch.setattr(steps, "fit_on_training_rows", fit)
        others.append(fitted())  # another one begins later and is done earlier
        return fit(*arguments)

    monkeypatch.setattr(steps, "fit_on_training_rows", overtaken)
    model, path = fitted()
    assert path == others[0][1]
    assert model.uid == others[0][0].uid  # what lies in the folder, whose hash the run's summary names
    assert "another process" in said[-1]
    assert [*folder.iterdir()] == [path.parent]


# On disk --------------------------------------------------------------------------------------------------------------


def test_the_default_cacheDir_is_temporary_or_from_the_conf(spark: SparkSession, folder: Path) -> None:
    temporary = caches.root(Options())
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert caches.root(Options()) == temporary
    spark.conf.set("spark.sparkdiff.cacheDir", f"file://{folder}")
    try:
        assert caches.root(Options()) == folder
    finally:
        spark.conf.unset("spark.sparkdiff.cacheDir")


def test_the_folder_may_have_any_name(df: DataFrame, numeric: PipelineModel, tmp_path: Path) -> None:
    name = "my caches, 100% #1 größe:x a+b&c=d"
    found = tune(numeric, df, tmp_path / name, maxEpochs=1, stream="auto")
    assert found.summary.metrics["train"] is not None
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert [p.name for p in (tmp_path / name).iterdir()] == [found.summary.cache["fingerprint"][:16]]
    assert cached(numeric, df, f"file://{tmp_path / name}").hit  # type: ignore[arg-type]


def test_a_loaded_model_hits(df: DataFrame, model: PipelineModel, tmp_path: Path) -> None:
    model.write().save(f"file://{tmp_path}/model")
    assert fingerprint_of(PipelineModel.load(f"file://{tmp_path}/model"), df) == fingerprint_of(model, df)


def test_a_failed_build_leaves_nothing_behind(
    df: DataFrame, numeric: PipelineModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = df.withColumn("riders", F.when(F.col("number") == 700, None).otherwise(F.col("riders")))
    with pytest.raises(InputError, match="labelCol='riders' holds None"):
        cached(numeric, bad, folder)
    assert list(folder.iterdir()) == []
    in_spark = df.withColumn(
        "riders", F.when(F.col("number") == 700, F.raise_error(F.lit("boom"))).otherwise(F.col("riders"))
    )
    with pytest.raises(InputError, match="boom"):
        cached(numeric, in_spark, folder)
    assert list(folder.iterdir()) == []

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(caches, "label_stats", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(numeric, df, folder)
    assert list(folder.iterdir()) == []


def test_what_lies_in_the_files(df: DataFrame, model: PipelineModel, shared: Path) -> None:
    cache = cached(model, df, shared, weightCol="weight")
    by_name = {c["column"]: c for c in cache.manifest["columns"]}
    assert by_name["hour_index"]["metadata"]["ml_attr"]["type"] == "nominal"
    assert {c["kind"] for c in by_name.values()} == {"scalar"}  # indices, not one-hot blocks
    assert {c["name"] for c in by_name.values()} >= {"c0", "c1", "label", "weight", "block"}
    assert cache.manifest["virtualShards"] == 8
    for split in ("train", "validation"):
        rows = [sum(p["rows"] for p in shard) for shard in cache.manifest["splits"][split]]
        assert min(rows) > 0.5 * sum(rows) / 8  # even shards
        on_disk = [
            pq.read_metadata(cache.folder / p["path"]).num_rows for s in cache.manifest["splits"][split] for p in s
        ]
        assert sum(on_disk) == sum(rows) == cache.rows(split)
    counted = df.where("weight > 0").select("riders", "wind", "weight").toPandas()  # weight 0 counts nowhere
    assert cache.rows("train") + cache.rows("validation") == len(counted) < 1200
    for name, values in (("label", "riders"), ("weight", "weight"), (by_name["wind"]["name"], "wind")):
        np.testing.assert_array_equal(np.sort(column(cache, name).numpy()), np.sort(counted[values].to_numpy()))


def test_the_shards_are_no_function_of_the_label(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    cache = cached(numeric, df, shared)

    def mean_label(part: Any) -> float:
        return float(pq.read_table(cache.folder / part["path"], partitioning=None)["label"].to_numpy().mean())

    means = [np.mean([mean_label(p) for p in shard]) for shard in cache.manifest["splits"]["train"]]
    assert np.std(means) < 0.25 * np.mean(means)


def test_test_rows_are_cached_as_such(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    sources = [Source(df.where("number < 1000")), Source(df.where("number >= 1000"), "test")]
    cache = cached(numeric, sources, folder)
    assert cache.rows("test") == 500
    assert cache.rows("train") + cache.rows("validation") == 1000
    given = [Source(df.where("number < 1000"), "train"), Source(df.where("number >= 1000"), "validation")]
    cache = cached(numeric, given, folder)
    assert (cache.rows("train"), cache.rows("validation"), cache.rows("test")) == (1000, 500, 0)


# Several sources ------------------------------------------------------------------------------------------------------


def halves(df: DataFrame, change: Callable[[DataFrame], DataFrame] = lambda rows: rows) -> list[Source]:
    return [Source(df.where("number < 1000")), Source(change(df.where("number >= 1000")), "test")]


def planned(
    model: PipelineModel, sources: list[Source], folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Cache, int]:
    """A cache, with the same files as one for which Spark plans each source alone; and the number of DataFrames that it plans."""
    numbers, transformed = list[int](), frames.transformed_frames

    def counted(request: Request) -> tuple[list[DataFrame], dict[str, Any]]:
        found = transformed(request)
        numbers.append(len(found[0]))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(frames, "transformed_frames", counted)
        cache = cached(model, sources, folder, **options)
        for module in (splits, layout):
            patch.setattr(module, "united", list)
        alone = cached(model, sources, folder / "alone", **options)
    assert numbers[1] == len(sources)
    assert contents(cache) == contents(alone)
    assert cache.manifest["columns"] == alone.manifest["columns"]
    return cache, numbers[0]


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda rows: rows, 1),
        (lambda rows: rows.union(rows.where("wind > 0")), 1),  # with equal rows, which are numbered
        (lambda rows: rows.select(*reversed(rows.columns)), 2),
        (lambda rows: rows.withColumn("more", F.lit(1)), 2),
        (lambda rows: rows.withColumn("wind", F.col("wind").cast("float")), 2),
        (lambda rows: rows.withColumn("wind", F.coalesce("wind", F.lit(0.0))), 2),  # never null
        (lambda rows: rows.withColumn("wind", F.col("wind").alias("wind", metadata={"unit": "m/s"})), 2),
    ],
)
def test_sources_with_the_same_columns_are_planned_once(
    df: DataFrame,
    numeric: PipelineModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[DataFrame], DataFrame],
    number: int,
) -> None:
    options = {"reference": ["StandardScalerModel"], "guardCols": ["hour"]}
    assert planned(numeric, halves(df, change), folder, monkeypatch, **options)[1] == number


def test_a_third_source_may_have_other_columns(
    df: DataFrame, numeric: PipelineModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = df.where("wind > 0").withColumn("more", F.lit(1))
    sources = [Source(df, "train"), Source(df.where("number < 700"), "validation"), Source(more, "reference")]
    cache, number = planned(numeric, sources, folder, monkeypatch, timeCol="when")
    assert number == 2
    assert {s: cache.rows(s) for s in cache.splits} == {"train": 1500, "validation": 700, "reference": more.count()}


def test_metadata_of_the_rows_stay(df: DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = VectorAssembler(inputCols=NUMBERS, outputCol="x").transform(df)
    fitted = LinearRegression(featuresCol="x", labelCol="riders", maxIter=1).fit(rows)
    cache, number = planned(fitted, halves(rows), folder, monkeypatch)
    assert number == 1
    assert cache.manifest["columns"][0]["metadata"] == rows.schema["x"].metadata != {}


def test_each_row_is_dropped_for_itself(df: DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_nulls(df)
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="x", handleInvalid="skip")
    fitted = Pipeline(stages=[assembler, LinearRegression(featuresCol="x", labelCol="riders", maxIter=1)]).fit(df)
    cache, number = planned(fitted, halves(rows), folder, monkeypatch)
    assert number == 1
    assert (cache.rows("train") + cache.rows("validation"), cache.rows("test")) == (800, 400)


@pytest.mark.parametrize("value", ["avg(number) OVER ()", "rand(1)", "monotonically_increasing_id()"])
def test_sql_sees_the_rows_of_one_source(
    df: DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    stages = [
        SQLTransformer(statement=f"SELECT *, {value} AS mean FROM __THIS__"),
        VectorAssembler(inputCols=["mean", *NUMBERS], outputCol="x"),
        LinearRegression(featuresCol="x", labelCol="riders", maxIter=1),
    ]
    cache, number = planned(Pipeline(stages=stages).fit(df), halves(df), folder, monkeypatch)
    assert number == 2
    if "avg" in value:
        assert set(column(cache, "c0", "train", "validation")[:, 0].tolist()) == {499.5}
        assert set(column(cache, "c0", "test")[:, 0].tolist()) == {1249.5}


def test_the_first_source_decides_how_vectors_are_stored(
    spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [(Vectors.dense([float(i + 1)] * 200), float(i)) for i in range(60)]
    rows = spark.createDataFrame([*full, *((Vectors.sparse(200, {i: 1.0}), i + 0.5) for i in range(60))], ["x", "y"])
    parts = rows.where("y = floor(y)"), rows.where("y <> floor(y)")
    fitted = LinearRegression(featuresCol="x", labelCol="y", maxIter=1).fit(rows)
    for first, other, kind in ((*parts, "dense"), (*reversed(parts), "sparse")):
        sources = [Source(first, "train"), Source(other, "validation")]
        cache, number = planned(fitted, sources, folder / kind, monkeypatch)
        assert number == 1
        assert cache.manifest["columns"][0]["kind"] == kind


def test_the_first_source_may_have_no_rows(text_model: PipelineModel, texts: DataFrame, folder: Path) -> None:
    with pytest.raises(InputError, match="the data have no rows"):
        cached(text_model, [Source(texts.where("false"), "train"), Source(texts, "validation")], folder)


# Widths ---------------------------------------------------------------------------------------------------------------


def test_scaled_and_encoded_vectors_have_a_known_width(df: DataFrame, folder: Path, jobs: Callable[[], int]) -> None:
    stages = [
        StringIndexer(inputCol="hour", outputCol="index"),
        OneHotEncoder(inputCol="index", outputCol="onehot"),
        VectorAssembler(inputCols=["onehot", *NUMBERS], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="scaled"),
        MinMaxScaler(inputCol="scaled", outputCol="x"),
        LinearRegression(featuresCol="x", labelCol="riders", maxIter=1),
    ]
    fitted, took = Pipeline(stages=stages).fit(df), list[int]()
    for stage in ("StringIndexerModel", "MinMaxScalerModel"):  # the cache has scalars, or vectors
        options = {"cacheDir": str(folder), "reference": [stage]}
        request = requested(fitted, [Source(df, "train"), Source(df, "validation")], options)
        jobs()
        cache = caches.open_cache(dataclasses.replace(request, lasting=False))  # no stages are saved for a fingerprint
        took.append(jobs())
    assert [c["width"] for c in cache.manifest["columns"] if c["column"] == "x"] == [8]
    assert took[0] == took[1]


def test_a_scaler_of_other_vectors_tells_no_width(df: DataFrame, folder: Path) -> None:
    wide, narrow = (VectorAssembler(inputCols=NUMBERS[:n], outputCol="assembled") for n in (4, 3))
    scaler = StandardScaler(inputCol="assembled", outputCol="x", withMean=False).fit(wide.transform(df))
    assert width_in(scaler.transform(narrow.transform(df)).schema["x"]) == 4
    head = LinearRegression(featuresCol="x", labelCol="riders", maxIter=1).fit(scaler.transform(narrow.transform(df)))
    cache = cached(PipelineModel([narrow, scaler, head]), df, folder, reference=["StandardScalerModel"])
    assert [c["width"] for c in cache.manifest["columns"] if c["column"] == "x"] == [3]


# Null and NaN ---------------------------------------------------------------------------------------------------------


def with_nulls(df: DataFrame) -> DataFrame:
    temp = (
        F.when(F.col("number") % 10 == 0, None).when(F.col("number") % 10 == 1, float("nan")).otherwise(F.col("temp"))
    )
    return df.withColumn("temp", temp)


def both(cache: Cache, name: str) -> Any:
    """A column, all rows, which every reader that is installed gives alike."""
    found = []
    for backend in ["arrow", *(["petastorm"] if HAS_PETASTORM else [])]:
        with Stream(cache.folder, backend=backend) as reader:
            found.append(
                torch.cat([b[name] for s in ("train", "validation") for b in reader.batches(s, batchSize=5000)])
            )
    assert all(x.shape == found[0].shape and torch.equal(x.isnan().sum(0), found[0].isnan().sum(0)) for x in found)
    return found[0]


def test_null_becomes_nan(df: DataFrame, folder: Path) -> None:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="x", handleInvalid="keep")
    fitted = Pipeline(stages=[assembler, LinearRegression(featuresCol="x", labelCol="riders", maxIter=1)]).fit(df)
    rows = with_nulls(df)
    cache = cached(fitted, rows, folder, reference=["VectorAssembler"])
    x = both(cache, "c0")  # NaN inside the vectors
    assert x.shape == (1500, 4)
    assert x.isnan().sum(0).tolist() == [300, 0, 0, 0]
    encoded = Pipeline(
        stages=[
            StringIndexer(inputCol="hour", outputCol="index"),
            OneHotEncoder(inputCol="index", outputCol="onehot"),
            VectorAssembler(inputCols=["onehot", *NUMBERS], outputCol="x", handleInvalid="keep"),
            LinearRegression(featuresCol="x", labelCol="riders", maxIter=1),
        ]
    ).fit(df)
    scalars = cached(encoded, rows, folder)  # scalars, since the one-hot block is made in torch
    temp = both(scalars, next(c["name"] for c in scalars.manifest["columns"] if c["column"] == "temp"))
    assert temp.shape == (1500,)
    assert int(temp.isnan().sum()) == 300


def test_null_and_nan_inside_arrays_become_nan(df: DataFrame, folder: Path) -> None:
    array = F.array(F.when(F.col("number") % 5 == 0, None).otherwise(F.col("temp")), F.col("hum"), F.lit(float("nan")))
    rows = df.withColumn("list", array)
    fitted = LinearRegression(featuresCol="x", labelCol="riders", maxIter=1).fit(
        df.withColumn("x", array_to_vector(F.array("temp", "hum", "wind")))
    )
    fitted.setFeaturesCol("list")
    assert both(cached(fitted, rows, folder), "c0").isnan().sum(0).tolist() == [300, 0, 1500]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_null_vector_becomes_nan_and_is_refused_by_name(spark: SparkSession, folder: Path, kind: str) -> None:
    width = 3 if kind == "dense" else 1000
    make = (
        (lambda i: Vectors.dense([float(i), 1.0, 0.0]))
        if kind == "dense"
        else (lambda i: Vectors.sparse(width, {i % width: 1.0}))
    )
    rows = [(make(i) if i % 50 else None, float(i)) for i in range(600)]
    df = spark.createDataFrame(rows, ["x", "y"]).coalesce(1).cache()
    fitted = LinearRegression(featuresCol="x", labelCol="y", maxIter=1).fit(df.where("x IS NOT NULL"))
    cache = cached(fitted, df, folder)
    x = column(cache, "c0")
    x = x.to_dense() if isinstance(x, SparseRows) else x
    assert x.shape == (600, width)
    assert int(x.isnan().any(1).sum()) == 12
    with pytest.raises(InputError, match=f"{fitted.uid}: entry 0 of column 'x' holds nan"):
        tune(fitted, df, folder, maxEpochs=1)


def test_vectors_of_unequal_width_are_refused_by_name(spark: SparkSession, folder: Path) -> None:
    fitted = LinearRegression(featuresCol="x", labelCol="y", maxIter=1).fit(
        spark.createDataFrame([(Vectors.dense([float(i), 1.0]), float(i)) for i in range(50)], ["x", "y"])
    )
    rows = [(Vectors.dense([1.0, 2.0] if i != 400 else [1.0, 2.0, 3.0]), float(i)) for i in range(600)]
    with pytest.raises(InputError, match=r"'x' holds vectors of . and of . entries"):
        cached(fitted, spark.createDataFrame(rows, ["x", "y"]), folder)
    assert list(folder.iterdir()) == []


# Sparse ---------------------------------------------------------------------------------------------------------------

WORDS = [f"word{i}" for i in range(300)]


@pytest.fixture(scope="module")
def texts(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    random = np.random.default_rng(1)
    words = [random.choice(300, size=random.integers(0, 12)) for _ in range(1500)]
    label = [float((w < 100).sum() > (w > 200).sum()) for w in words]
    path = tmp_path_factory.mktemp("texts") / "texts.parquet"
    pq.write_table(pa.table({"text": [" ".join(WORDS[i] for i in w) for w in words], "label": label}), path)
    return spark.read.parquet(f"file://{path}")


@pytest.fixture(scope="module")
def text_model(texts: DataFrame) -> PipelineModel:
    stages = [
        Tokenizer(inputCol="text", outputCol="words"),
        HashingTF(inputCol="words", outputCol="tf", numFeatures=1 << 12),
        LogisticRegression(featuresCol="tf", maxIter=2, regParam=0.5),
    ]
    return Pipeline(stages=stages).fit(texts)


def test_a_sparse_column_is_never_densified(texts: DataFrame, text_model: PipelineModel, shared: Path) -> None:
    cache = cached(text_model, texts, shared)
    kind = cache.manifest["columns"][0]
    assert (kind["kind"], kind["width"], kind["column"]) == ("sparse", 1 << 12, "tf")
    files = [cache.folder / p["path"] for s in cache.manifest["splits"].values() for shard in s for p in shard]
    schema = pq.read_schema(files[0])
    assert {name for name in schema.names if name.startswith("c0")} == {"c0_i", "c0_v"}
    assert (schema.field("c0_i").type.value_type, schema.field("c0_v").type.value_type) == (pa.int32(), pa.float64())
    assert sum(f.stat().st_size for f in files) < 1500 * 200  # a dense row takes 32 KiB
    expected = text_model.transform(texts).select(F.sum(F.size(F.unwrap_udt("tf")["values"]))).first()[0]
    assert len(column(cache, "c0").values) == expected
    assert len(column(cache, "c0")) == 1500


class Largest(TorchDispatchMode):
    """How many entries the largest tensor has that a step of torch has made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def test_text_trains_through_arrow(texts: DataFrame, text_model: PipelineModel, shared: Path) -> None:
    """No tensor has the entries of a dense batch; test_sparse_text looks at the memory of the whole process by night."""
    with Largest() as largest:
        tuned = tune(text_model, texts, shared, maxEpochs=6, learningRate=0.05, stream="auto", batchSize=512)
    assert (1 << 12) < largest.entries < (512 << 12) / 4
    assert tuned.summary.stream == "arrow"
    assert tuned.summary.decision == "tuned"
    before, after = text_model.stages[-1], tuned.pipelineModel.stages[-1]
    moved = before.coefficients.toArray() != after.coefficients.toArray()
    assert 200 < moved.sum() <= 300  # the words that occur, and none else
    with pytest.raises(
        InputError, match=r"stream='petastorm' cannot be used: .*sparse columns \['tf'\].*stream='arrow'"
    ):
        tune(text_model, texts, shared, stream="petastorm")


def test_dense_rows_in_a_sparse_column(spark: SparkSession, folder: Path) -> None:
    sparse = [Vectors.sparse(200, {i % 200: 1.0, (7 * i + 3) % 200: 2.0}) for i in range(600)]
    mixed = [Vectors.dense(v.toArray()) if i % 40 == 39 else v for i, v in enumerate(sparse)]
    rows = spark.createDataFrame([(x, float(i % 3)) for i, x in enumerate(mixed)], ["x", "y"]).coalesce(1).cache()
    fitted = LinearRegression(featuresCol="x", labelCol="y", maxIter=1).fit(rows)
    cache = cached(fitted, rows, folder)
    assert cache.manifest["columns"][0]["kind"] == "sparse"
    found = column(cache, "c0").to_dense().numpy()
    assert sorted(map(tuple, found)) == sorted(map(tuple, (v.toArray() for v in sparse)))
