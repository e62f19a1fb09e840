"""A rehearsal of a cache: Spark's work to write it is done with a few rows, to estimate the size, time and number of
jobs. The rows stay in memory, and nothing is written.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.ml import Model, PipelineModel
from pyspark.ml.tree import _TreeEnsembleModel
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.fingerprint import SHARDS, Request, content, deciding_stages
from sparkdiff.data.frames import check_request, failure_of, transformed_frames
from sparkdiff.data.label_stats import stats_of
from sparkdiff.data.layout import columns_of, names_of, rows_by_shard, rows_with_hash, sparse_fields
from sparkdiff.data.splits import SPLITS, find_boundaries
from sparkdiff.data.stream import arrow
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.manifest import Batch, BatchColumn, CachedFile, Manifest
from sparkdiff.errors import InputError
from sparkdiff.jvm.query_plans import plan_facts
from sparkdiff.jvm.sessions import VERSION
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.schema import is_plain

SAMPLE, TIMED = 2_000, 40_000
"""Largest number of rows of each source that are collected, and of rows of each source on which Spark is timed."""

Range = tuple[float, float]
"""The smallest and the largest value."""


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """The result of a rehearsal.

    Attributes:
        rows: number of rows of all sources with a weight other than 0, estimated from the sample.
        jobs: number of jobs that the cache takes; None where Spark does not report it.
        bytes: size of the files with the rows.
        seconds: time that Spark takes for all rows.
        jobSeconds: time that a small job takes in this session.
        sample: a few of the rows.
    """

    rows: int
    jobs: Range | None
    bytes: int
    seconds: Range
    jobSeconds: float
    sample: "Sample"


@dataclasses.dataclass(frozen=True)
class Sample:
    """A few rows as a cache would hold them, in memory.

    Attributes:
        rows: number of these rows, without those of weight 0.
        splits: their number by split.
        stats: statistics of the labels of each split, as in a manifest.
        entries: mean number of entries of a row in the cache.
    """

    rows: int
    splits: Mapping[str, int]
    stats: dict[str, Any]
    stream: Stream
    columns: Mapping[Version, str]
    entries: float


def cache_sample(request: Request) -> Sample:
    """Cache a few rows in memory, with as few and as small Spark jobs as possible. The shards and the order of the rows
    differ from those of a real cache.

    Args:
        request: the request for the few rows.

    Raises:
        InputError: a column is missing, there are no rows, or Spark failed on them.
    """
    check_request(request)
    try:
        columns, found = _collect_rows(request, request, rows_with_hash, told=True)
    except InputError:  # if the metadata are wrong, the rows show the widths; else the same error is raised again
        columns, found = _collect_rows(request, request, rows_with_hash)
    found.sort(key=lambda row: row["hash"])  # makes them independent of the order from Spark
    return _sample(_table(found, columns, [row["hash"] % SHARDS for row in found]), columns, request)


def _collect_rows(
    sample: Request, request: Request, assign: Callable[..., DataFrame], *, told: bool = False
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The columns of the cache of a sample, and its rows, collected.

    Args:
        assign: makes the rows of the files from the rows after the stages in Spark: `rows_by_shard`, or
            `rows_with_hash` for rows before they are assigned to shards.
        told: see `columns_of`.
    """
    boundaries = request.boundaries or find_boundaries(sample.sources, sample.options)
    frames, values = transformed_frames(dataclasses.replace(sample, boundaries=boundaries))
    with jvm.as_input_error(failure_of(request)):
        columns = columns_of(sample, frames[0], values, told=told)
        return columns, assign(sample, frames, columns).collect()


def _sample(table: pa.Table, columns: list[dict[str, Any]], request: Request) -> Sample:
    if not len(table):
        raise InputError(
            f"none of the first {SAMPLE:,} rows has a weight other than 0, so nothing can be told of the rest"
        )
    return Sample(
        len(table),
        {s: table["split"].to_pylist().count(s) for s in SPLITS},
        {s: stats_of([_of(table, s)], request) for s in SPLITS},
        _stream(table, columns, request.options.seed),
        names_of(request.cut, columns),
        sum(_entries(table, c) for c in columns),
    )


def _entries(table: pa.Table, column: dict[str, Any]) -> float:
    """Mean number of entries of a row in a column."""
    sparse = column["kind"] == "sparse"
    return float(pc.mean(pc.list_value_length(table[f"{column['name']}_v"])).as_py() if sparse else column["width"])


def rehearse(request: Request) -> Rehearsal:
    """Rehearse the cache of a request: do the work for a few rows, and write no files. Counts all rows, and collects
    some of them.

    Raises:
        InputError: a column is missing, there are no rows, or Spark failed on them.
    """
    check_request(request)
    spark = request.sources[0].df.sparkSession
    with jvm.as_input_error("Spark failed while it counted the rows"):
        rows = sum(source.df.count() for source in request.sources)
        first = [spark.createDataFrame(s.df.limit(SAMPLE).collect(), s.df.schema) for s in request.sources]
    if not rows:
        raise InputError("the data have no rows: check how they are read and filtered")
    few = [dataclasses.replace(s, df=df) for s, df in zip(request.sources, first, strict=True)]
    sample = dataclasses.replace(request, sources=few, boundaries=None)
    with jvm.count_jobs(spark) as count:
        columns, found = _rehearse_steps(sample, request)
        counted = count()
    jobs = None if counted is None else _with_saving(counted, request)
    table = _table(found, columns)
    few_rows = _sample(table, columns, request)
    quick, seconds = _measure_seconds(request, columns, rows)
    looked_at = sum(min(SAMPLE, source.df.count()) for source in few)
    kept = rows * few_rows.rows // looked_at  # rows of weight 0 are not cached
    return Rehearsal(kept, jobs, _bytes(table, columns, kept), seconds, quick, few_rows)


def _rehearse_steps(sample: Request, request: Request) -> tuple[list[dict[str, Any]], list[Any]]:
    """Do the steps of `open_cache` for the sample. Returns the columns of the cache, and its rows."""
    for few, whole in zip(sample.sources, request.sources, strict=True):
        if plan_facts(whole.df) is None:  # else its plan and files identify it
            content(few.df)
    if request.cut.stages and not all(is_plain(stage) for stage in deciding_stages(request.cut)):
        content(request.cut.transform(sample.sources[0].df))
    return _collect_rows(sample, request, rows_by_shard)


def _with_saving(jobs: int, request: Request) -> Range:
    """Smallest and largest number of jobs: `jobs`, without those that look for equal rows if this process knows the sources;
    those that save the stages for their digest; and those of a third pass for the quantiles of `timeCol`, which may be needed.
    """
    o, stages = request.options, deciding_stages(request.cut)
    known = stages and all(is_plain(stage) for stage in stages)
    low, high = saving_jobs(stages) if known else (0.0, 0.0)
    spared = 0 if o.groupCol or o.timeCol else len(request.sources)
    return jobs + low - spared, jobs + high + 2 * (o.timeCol is not None and request.boundaries is None)


def saving_jobs(stages: Sequence[Any]) -> Range:
    """Smallest and largest number of Spark jobs that save a pipeline of these stages: one job for the metadata of the
    pipeline and of each stage; for the data of each model one job, or two if Spark sorts them first, as in 3.5. An
    ensemble of trees also saves a list of its trees; most versions sort this list and the data of the model.
    """
    low = high = 1
    for stage in stages:
        inner = getattr(stage, "models", None) if isinstance(stage, Model) else None
        if isinstance(stage, PipelineModel) or isinstance(inner, list):
            least, most = saving_jobs(list(stage.stages if isinstance(stage, PipelineModel) else inner or ()))
            low, high = low + int(least), high + int(most)
            continue
        trees = isinstance(stage, _TreeEnsembleModel)
        data = isinstance(stage, Model) + trees
        low, high = low + 1 + data, high + 1 + data * (1 if VERSION >= (4, 0) and not trees else 2)
    return low, high


def _measure_seconds(request: Request, columns: list[dict[str, Any]], rows: int) -> tuple[float, Range]:
    """Seconds that a small job takes, and the range of seconds that the cache takes for all rows, estimated from runs
    of its query on some rows.

    The run on some rows may use only one core. A run on all rows uses all cores, but also sorts and writes the rows:
    its time lies between the time on one core divided by the number of cores, and one and a half times the time on one
    core.
    """

    def run(number: int) -> float:
        parts = [dataclasses.replace(s, df=s.df.limit(number)) for s in request.sources]
        boundaries = request.boundaries or find_boundaries(parts, request.options)
        one = dataclasses.replace(request, sources=parts, boundaries=boundaries)
        query, begun = rows_by_shard(one, transformed_frames(one)[0], columns), time.perf_counter()
        query.write.format("noop").mode("overwrite").save()  # computes all rows and keeps none
        return time.perf_counter() - begun

    with jvm.as_input_error(failure_of(request)):
        small, least = run(1), min(SAMPLE, rows)
        if rows <= SAMPLE:
            return small, (0.5 * small, 2 * small)
        first, second = run(least), run(most := min(TIMED, rows))
    each = max(second - min(first, small), 1e-3) / (most - least)
    cores = jvm.slots(request.sources[0].df.sparkSession) or 1
    return small, (small / 2 + each * rows / cores, 2 * small + 1.5 * each * rows)


def _table(rows: Sequence[Any], columns: list[dict[str, Any]], shards: Sequence[int] | None = None) -> pa.Table:
    """The rows of the cache, with the types of its files.

    Args:
        shards: shard of each row, if the rows have no such column.
    """
    kinds: dict[str, Any] = {"split": pa.string()} | ({"shard": pa.int64()} if shards is None else {})
    for c in columns:
        if c["kind"] == "sparse":
            kinds |= {f"{c['name']}_i": pa.list_(pa.int32()), f"{c['name']}_v": pa.list_(pa.float64())}
        else:
            of = {"int64": pa.int64(), "bool": pa.bool_()}.get(c.get("dtype", ""), pa.float64())
            kinds[c["name"]] = pa.list_(of) if c["kind"] == "dense" else of
    names = list(kinds)
    values = list(zip(*(tuple(row[n] for n in names) for row in rows), strict=True)) or [()] * len(names)
    table = pa.table([pa.array(list(v), kinds[n]) for n, v in zip(names, values, strict=True)], names=names)
    return table if shards is None else table.append_column("shard", pa.array(shards, pa.int64()))


def _bytes(table: pa.Table, columns: list[dict[str, Any]], rows: int) -> int:
    """Bytes of the files of `rows` rows, estimated from files in memory: the bytes per row and the bytes of a file's
    footer are measured separately.
    """
    held = table.drop_columns(["split", "shard"])

    def size(some: pa.Table) -> int:
        out = pa.BufferOutputStream()
        pq.write_table(
            some, out, compression="snappy", use_dictionary=[f"{n}.list.element" for n in sparse_fields(columns)]
        )
        return int(out.getvalue().size)

    footer, few = size(held.slice(0, 1)), len(held)
    each = (size(held) - footer) / max(1, few - 1)
    files = SHARDS * len(set(table["split"].to_pylist()))
    return int(files * footer + each * rows)


def _of(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def _stream(table: pa.Table, columns: list[dict[str, Any]], seed: int) -> Stream:
    """The batches of the sample, as a cache would yield them."""
    kinds = tuple(map(BatchColumn.of, columns))
    held, pieces = dict[str, Batch](), dict[str, tuple[tuple[CachedFile, ...], ...]]()
    for split in SPLITS:
        own = _of(table, split).sort_by("shard")
        counts = [own["shard"].to_pylist().count(shard) for shard in range(SHARDS)]
        pieces[split] = tuple((CachedFile(f"{split}-{i}", n, 0, ""),) for i, n in enumerate(counts))
        held[split] = {c.name: arrow.column_of(own, c) for c in kinds}
    return Stream.of_tables(Manifest(Path(), "", SHARDS, kinds, pieces), held, seed=seed)
