"""What Spark computes once: the columns that training reads, as fingerprinted Parquet files dealt into virtual shards."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, DataType, NumericType

from sparkdiff import jvm
from sparkdiff.data import splits
from sparkdiff.data.fingerprint import FORMAT, SHARDS, Request, fingerprint
from sparkdiff.data.splits import BLOCK, SLICE, SPLIT, SPLITS, TIME
from sparkdiff.data.stream import NEGLIGIBLE, DamagedCacheError, Stream
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Graph, Version, null_of
from sparkdiff.pipeline.graph import check_columns as check_stage_columns
from sparkdiff.pipeline.schema import fields_by_name, named
from sparkdiff.stages.base import NULL
from sparkdiff.store.disk import room

PIECE_BYTES = 1 << 26
SPARSE_WIDTH, SPARSE_FILL = 128, 0.25
USUAL = 64
"""Weights are taken as they are where the largest lies between two to the power of minus this and of this."""
NO_TIME = "null or NaN or an infinite value"


ROOM = "make room, or set cacheDir (and conf spark.local.dir, where Spark keeps what it sorts) to a disk that has more"


class DamagedCache(UserWarning):
    """A cache on disk did not match its manifest and was built again."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """A complete cache on disk."""

    folder: Path
    manifest: dict[str, Any]
    hit: bool

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def columns(self, graph: Graph) -> dict[Version, str]:
        """Which cached column holds which column version of the cut, and which says where it is null."""
        cut, names = list(enumerate(graph.cut())), {c["name"] for c in self.manifest["columns"]}
        nulls = {null_of(version): f"null{i}" for i, version in cut if f"null{i}" in names}
        return {version: f"c{i}" for i, version in cut} | nulls

    def rows(self, split: str) -> int:
        return sum(p["rows"] for shard in self.manifest["splits"][split] for p in shard)

    def fits_in_memory(self, copies: float = 1) -> bool:
        """Whether all rows, as tensors, held so many times, take less than half of this machine's memory."""
        dense = 8 * sum(c["width"] for c in self.manifest["columns"] if c["kind"] != "sparse")
        files = sum(p["bytes"] for shards in self.manifest["splits"].values() for shard in shards for p in shard)
        sparse = any(c["kind"] == "sparse" for c in self.manifest["columns"])
        # Sparse entries take up to 12 bytes in memory; in the files they are compressed, here taken to be to less than a quarter.
        needed = dense * sum(map(self.rows, SPLITS)) + (4 * files if sparse else 0)
        return copies * needed < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def moved(temporary: Path, folder: Path) -> bool:
    """Give a folder its name; False where another process has made the same meanwhile, which stays."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():
            raise
        return False
    return True


def root(options: Options) -> Path:
    """The folder of the caches: the option, the session's conf `spark.sparkdiff.cacheDir`, or a temporary folder.

    Raises:
        InputError: neither is set and Spark's master is not local, so that a temporary folder would be seen by one machine;
            or Spark, behind Connect on another machine, doesn't see the folder.
    """
    folder = jvm.shared_folder(options.cacheDir) or _temporary()
    if not jvm.sees(jvm.session(), folder):
        raise InputError(
            f"Spark doesn't see {folder}: set cacheDir (or conf spark.sparkdiff.cacheDir) to a folder that Spark and this "
            "process both see as files"
        )
    return folder


_made: list[Path] = []


def _temporary() -> Path:
    if not _made:
        _made.append(Path(tempfile.mkdtemp(prefix="sparkdiff-")))
        atexit.register(shutil.rmtree, _made[0], ignore_errors=True)
    return _made[0]


def open_cache(request: Request) -> Cache:
    """The cache of a request: the one on disk where its fingerprint is known and its files are whole, else a new one.

    Raises:
        InputError: a column is missing, a label, weight, time or group is null or NaN, or Spark failed on the rows.
        FullDiskError: there is no room for it; nothing is left of it.
    """
    _check(request)
    if request.cuts is None:
        request = dataclasses.replace(request, cuts=splits.find_cuts(request.sources, request.options))
    where = root(request.options)
    with room("the cache", where, ROOM):
        return _opened(request, where)


def _opened(request: Request, where: Path) -> Cache:
    key = fingerprint(request, where)
    folder = where / key[:16]
    if folder.exists():
        try:
            return Cache(folder, _whole(folder, key), hit=True)
        except DamagedCacheError as e:
            warnings.warn(f"the cache {folder} is damaged and is built again: {e}", DamagedCache, stacklevel=2)
        shutil.rmtree(folder, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir(mode=0o700)  # before there is anything in it
    try:
        _build(request, key, temporary)
        moved(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Cache(folder, _whole(folder, key), hit=False)


def _whole(folder: Path, key: str) -> dict[str, Any]:
    """The manifest of a cache all of whose files are as they were written.

    Raises:
        DamagedCacheError: they are not.
    """
    with Stream(folder, backend="arrow") as stream:
        stream.check()
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["fingerprint"] != key or manifest.get("digest") != _digest(manifest):
        raise DamagedCacheError(folder, "manifest.json", "its content is not what was written")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    content = {k: v for k, v in manifest.items() if k != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(request: Request) -> None:
    for source in request.sources:
        splits.check_columns(source.df, request.options)
        splits.check_names(c for i in request.graph.cached for c in request.graph.leaves[i].outputs)
        check_stage_columns(request.graph, source.df.schema, (request.labelCol, request.weightCol))
        names = _after(request.graph, source.df)
        head = request.graph.leaves[request.graph.head]  # type: ignore[index]
        told = not any(request.graph.leaves[i].opaque for i in request.graph.cached)  # what these make isn't known here
        for lost in (c for c in head.lossInputs if told and request.graph.fold(c) not in names):
            raise InputError(
                f"the loss of {head.uid} reads column {lost!r}, which the data lack. {did_you_mean(lost, source.df.columns)}"
            )
        for option, column in (("labelCol", request.labelCol), ("weightCol", request.weightCol)):
            if column is not None and request.graph.fold(column) not in names:
                raise InputError(
                    f"{option}={column!r} names no column of the data. {did_you_mean(column, source.df.columns)}"
                )
            _check_number(option, column, source.df, request.graph)


def _check_number(option: str, column: str | None, df: DataFrame, graph: Graph) -> None:
    """Raise InputError where a column that the data have is no number."""
    for field in df.schema.fields:
        named = column is not None and graph.fold(field.name) == graph.fold(column)
        if named and not isinstance(field.dataType, (NumericType, BooleanType)):
            kind = field.dataType.simpleString()
            raise InputError(f"{option}={column!r} is {kind}, but must be a number: cast or index it")


def _after(graph: Graph, df: DataFrame) -> set[str]:
    """Folded names of the columns once Spark's part has run (of those that can be told)."""
    made = {c for i in graph.cached for c in graph.leaves[i].outputs}
    return {graph.fold(c) for c in (*df.columns, *made)}


@contextlib.contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Inside, what Spark raises becomes an InputError that says what it was doing."""
    try:
        yield
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while it {what}: {jvm.cause(e)}") from e


def _build(request: Request, key: str, folder: Path) -> None:
    columns: list[dict[str, Any]] = []
    with room("the cache", folder.parent, ROOM, lambda: _needed(request, columns)):
        _fill(request, key, folder, columns)


def _fill(request: Request, key: str, folder: Path, columns: list[dict[str, Any]]) -> None:
    o = request.options
    by = [f"{n}={v!r}" for n in ("validationIndicatorCol", "groupCol", "timeCol", "guardCols") if (v := getattr(o, n))]
    with _blamed(f"split the rows ({', '.join(by) or 'by a hash of all columns'})"):
        dealt, slices = splits.with_slices(splits.with_splits(request.sources, o, request.cuts), o)
        for df in dealt:
            df.schema  # noqa: B018  # Spark Connect analyses nothing before
    uids = [request.graph.leaves[i].uid for i in sorted(request.graph.cached)]
    with _blamed(f"ran what comes before training ({', '.join(['reading the data', *uids])})"):
        frames = [request.graph.before_cut(df) for df in dealt]
        columns += _layout(request, frames[0], slices)
        _write(request, frames, columns, folder)
    shards = {s: _shards(folder, s, SHARDS) for s in SPLITS}
    manifest: dict[str, Any] = {
        "format": FORMAT, "fingerprint": key, "virtualShards": SHARDS, "splits": shards,
        "columns": [c for c in columns if c.get("dtype") != "bool" or _holds_true(folder, shards, c["name"])],
    }  # fmt: skip
    ranges = {s: _weights(folder, shards[s], request) for s in SPLITS}
    manifest["weights"] = {s: exponent for s, (exponent, _) in ranges.items() if exponent is not None}
    manifest["stats"] = {s: _stats(folder, shards[s], request, ranges[s][1]) for s in SPLITS}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"digest": _digest(manifest)}), encoding="utf-8")


def _needed(request: Request, columns: list[dict[str, Any]]) -> str:
    """About how many bytes the cache takes, in words; empty where the rows can't be counted.

    Args:
        columns: none where it isn't known yet how wide they are.
    """
    wide = sum(c["width"] for c in columns if c["kind"] != "sparse") or len(request.graph.cut())
    try:
        rows = sum(source.df.count() for source in request.sources)
    except jvm.SparkError:
        return ""
    beside = " and what the sparse columns take" if any(c["kind"] == "sparse" for c in columns) else ""
    return f"{'about' if columns else 'at least'} {8 * wide * rows:,} bytes for {rows:,} rows{beside}"


def _layout(request: Request, df: DataFrame, slices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """How each column lies in the files, the cut's first. Vectors of unknown width cost a small job over the first rows."""
    graph = request.graph
    out: list[dict[str, Any]] = []
    fields = fields_by_name(df.schema, graph.fold)
    for i, version in enumerate(graph.cut()):
        field = fields.get(version[0])
        if field is None:
            raise InputError(
                f"column {graph.name(version)!r} is gone when the cache is written: a stage before drops it"
            )
        column: dict[str, Any] = {"name": f"c{i}", "column": graph.name(version), "metadata": field.metadata}
        column["type"] = field.dataType.simpleString()
        if isinstance(field.dataType, (VectorUDT, ArrayType)):
            width, fill = _width(df, _source(graph, version, field.name), graph.name(version), field.dataType)
            sparse = isinstance(field.dataType, VectorUDT) and width >= SPARSE_WIDTH and fill < SPARSE_FILL
            column |= {"kind": "sparse" if sparse else "dense", "width": width}
        elif isinstance(field.dataType, (NumericType, BooleanType)):
            column |= {"kind": "scalar", "width": 1}
        else:
            raise InputError(
                f"column {field.name!r} is {field.dataType.simpleString()}; torch takes numbers, vectors and arrays of numbers"
            )
        out.append(column)
    for i, version in enumerate(graph.cut()):
        if version in graph.telling(graph.live) and fields[version[0]].nullable and out[i]["kind"] == "scalar":
            column = {"name": f"null{i}", "column": graph.name(version) + NULL, "kind": "scalar", "width": 1}
            out.append(column | {"dtype": "bool"})
    for name, dtype in (("label", "float64"), ("weight", "float64"), ("block", "int64"), ("time", "float64")):
        out.append({"name": name, "column": name, "kind": "scalar", "width": 1, "dtype": dtype})
    for i, (name, values) in enumerate(slices.items()):
        out.append(
            {"name": f"slice{i}", "column": name, "kind": "scalar", "width": 1, "dtype": "int64", "values": values}
        )
    return out


def _source(graph: Graph, version: Version, name: str) -> Column:
    """The column that holds a version of the cut, `name` as the schema spells it."""
    in_struct = graph.in_struct(version)
    return named(graph.name(version) if in_struct else name, in_struct=in_struct)


def _holds_true(folder: Path, splits: dict[str, Any], name: str) -> bool:
    return any(pc.any(table[name]).as_py() for shards in splits.values() for table in _tables(folder, shards, [name]))


def _width(df: DataFrame, c: Column, name: str, kind: DataType) -> tuple[int, float]:
    """Width of a vector column and the share of its entries that is stored, from its first rows."""
    if isinstance(kind, ArrayType):
        size, stored = F.size(c), F.size(c)
    else:
        v = F.unwrap_udt(c)
        stored = F.size(v["values"])
        size = F.coalesce(v["size"], stored)
    row = df.where(c.isNotNull()).limit(256).agg(F.max(size), F.sum(stored), F.sum(size)).first()
    if row is None or not row[0]:
        if df.isEmpty():
            raise InputError("the data hold no row, or a stage before training drops all of them; add rows")
        holds = "null in all rows" if row is None or row[0] is None else "vectors of no entries only"
        raise InputError(f"column {name!r} holds {holds}, where training needs vectors with entries")
    return int(row[0]), row[1] / row[2]


def _physical(column: dict[str, Any], field_type: DataType, c: Column) -> list[Column]:
    """The column as it lies in the files; a null vector is NaN, in all entries or in the first one of a sparse column."""
    name, nan = column["name"], F.lit(float("nan"))
    if column["kind"] == "scalar":
        return [c.cast("double").alias(name)]
    vector = isinstance(field_type, VectorUDT)
    v = F.unwrap_udt(c) if vector else c
    size = F.coalesce(v["size"], F.size(v["values"])) if vector else F.size(c)
    unequal = F.raise_error(
        F.concat(
            F.lit(f"column {column['column']!r} holds vectors of {column['width']} and of "),
            size.cast("string"),
            F.lit(" entries"),
        )
    )

    def checked(nothing: Column, whole: Column) -> Column:
        return F.when(c.isNull(), nothing).when(size == column["width"], whole).otherwise(unequal)

    if column["kind"] == "dense":
        array = vector_to_array(c) if vector else c.cast("array<double>")
        return [checked(F.array_repeat(nan, column["width"]), array).alias(name)]
    every = F.sequence(F.lit(0), F.size(v["values"]) - 1)
    indices = checked(F.array(F.lit(0)), F.when(v["indices"].isNull(), every).otherwise(v["indices"]))
    return [indices.alias(f"{name}_i"), F.when(c.isNull(), F.array(nan)).otherwise(v["values"]).alias(f"{name}_v")]


def _write(request: Request, frames: list[DataFrame], columns: list[dict[str, Any]], folder: Path) -> None:
    union: DataFrame | None = None
    slices = [f"slice{i}" for i in range(len(request.options.guardCols))]
    nulls = [c["name"] for c in columns if c.get("dtype") == "bool"]
    own = (SPLIT, BLOCK, TIME, *(f"{SLICE}{i}" for i in range(len(slices))))
    for df in frames:
        selected: list[Column] = []
        fold = request.graph.fold
        fields = fields_by_name(df.schema, fold)
        for lost in (request.labelCol, request.weightCol, *own):
            if lost is not None and fold(lost) not in fields:
                cut = ", ".join(
                    request.graph.leaves[i].uid for i in sorted(request.graph.cached) if request.graph.leaves[i].opaque
                )
                what = f"column {lost!r}" if lost not in own else "columns that it doesn't name"
                raise InputError(
                    f"{cut or 'a stage'} drops {what}, which training needs; let it keep all columns (SELECT *, ...)"
                )
        _check_number("labelCol", request.labelCol, df, request.graph)  # here they may be made by a stage
        _check_number("weightCol", request.weightCol, df, request.graph)
        for i, (column, version) in enumerate(zip(columns, request.graph.cut(), strict=False)):
            f = fields[version[0]]
            source = _source(request.graph, version, f.name)
            selected += _physical(column, f.dataType, source)
            if f"null{i}" in nulls:
                selected.append(source.isNull().alias(f"null{i}"))
        weight = splits.quoted(request.weightCol).cast("double") if request.weightCol else F.lit(1.0)
        label = splits.quoted(request.labelCol).cast("double") if request.labelCol else F.lit(0.0)  # clusters have none
        selected += [label.alias("label"), weight.alias("weight")]
        selected += [F.col(BLOCK).alias("block"), F.col(TIME).alias("time"), F.col(SPLIT).alias("split")]
        selected += [F.col(f"{SLICE}{i}").alias(name) for i, name in enumerate(slices)]
        part = df.select(*selected).where("weight <> 0 OR weight IS NULL")  # weight 0 counts nowhere
        union = part if union is None else union.unionByName(part)
    assert union is not None
    # Equal rows are dealt by their occurrence number too, so that the files depend on the rows alone, not on partitions.
    # The slices don't count: naming another guardCol changes no order of rows, and so no training.
    # Nor do the flags of nulls: a null that is hashed isn't NaN.
    hashed = union.withColumn("hash", splits.row_hash(union.drop(*slices, *nulls)))
    occurrence = F.row_number().over(Window.partitionBy("hash").orderBy("hash", *slices))
    keyed = hashed.withColumn("key", F.xxhash64("hash", occurrence)).withColumn(
        "shard", F.pmod(F.col("key"), F.lit(SHARDS))
    )
    dealt = (
        keyed.repartition(SHARDS, "split", "shard").sortWithinPartitions("split", "shard", "key").drop("hash", "key")
    )
    width = sum(c["width"] if c["kind"] == "dense" else 1 for c in columns if c["name"] not in nulls)
    piece = max(1024, min(65536, PIECE_BYTES // (8 * width)))
    dealt.write.mode("append").option("maxRecordsPerFile", piece).partitionBy("split", "shard").parquet(
        f"file://{folder}"
    )


def _shards(folder: Path, split: str, number: int) -> list[list[dict[str, Any]]]:
    """Rename Spark's files of one split and describe them."""
    out = []
    for shard in range(number):
        pieces: list[dict[str, Any]] = []
        written = folder / f"split={split}" / f"shard={shard}"
        for i, path in enumerate(sorted(written.glob("part-*.parquet"), key=lambda p: p.name.rsplit("-c", 1)[-1])):
            name = f"{split}/shard-{shard:03d}-{i:03d}.parquet"
            (folder / split).mkdir(exist_ok=True)
            os.rename(path, folder / name)
            content = (folder / name).read_bytes()
            rows = pq.read_metadata(folder / name).num_rows
            pieces.append(
                {"path": name, "rows": rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            )
        out.append(pieces)
    shutil.rmtree(folder / f"split={split}", ignore_errors=True)
    return out


def _weights(folder: Path, shards: list[list[dict[str, Any]]], request: Request) -> tuple[int | None, float]:
    """The exponent of the power of two to divide a split's weights by, None for 0, and the smallest weight that counts.

    Sums of weights times losses, and their squares, stay within what doubles hold where the largest weight does. What is
    less than NEGLIGIBLE of the largest weight would change no digit of any such sum.
    """
    least, largest = math.inf, 0.0
    for table in _tables(folder, shards, ["weight"]):
        weight = table["weight"]
        _refuse(
            weight,
            "weightCol",
            request.weightCol,
            "weight",
            lambda c: pc.and_(pc.is_finite(c), pc.greater_equal(c, 0.0)),
            ">= 0",
        )
        least = min(least, pc.min(weight.filter(pc.greater(weight, 0.0))).as_py() or math.inf)
        largest = max(largest, pc.max(weight).as_py() or 0.0)
    exponent = math.frexp(largest)[1]
    negligible = math.ldexp(NEGLIGIBLE, exponent)
    usual = abs(exponent) <= USUAL and not least < negligible
    return None if usual else exponent, 0.0 if usual else negligible


def _stats(folder: Path, shards: list[list[dict[str, Any]]], request: Request, negligible: float) -> dict[str, Any]:
    """Label statistics of one split, and the refusal of rows that can't be used."""
    if (nowhere := folder / "split=__HIVE_DEFAULT_PARTITION__").exists():
        o, rows = request.options, sum(pq.read_metadata(path).num_rows for path in nowhere.rglob("*.parquet"))
        which = f"validationIndicatorCol={o.validationIndicatorCol!r} holds null"
        if not o.validationIndicatorCol:
            which = f"timeCol={o.timeCol!r} holds {NO_TIME}"
        raise InputError(f"{which} in {rows} rows, which so are on neither side; fill it or drop such rows")
    n = mean = m2 = 0.0
    low, high = float("inf"), float("-inf")
    counts: dict[float, int] = {}
    fractional = None
    graph = request.graph
    beside = {f"c{i}": graph.name(v) for i, v in enumerate(graph.cut()) if v in graph.lossReads}
    ranges: dict[str, list[float]] = {}
    for table in _tables(folder, shards, ["label", "weight", "block", *beside]):
        label, weight = table["label"], table["weight"]
        _refuse(label, "labelCol", request.labelCol, "label", lambda c: pc.is_finite(c), "a finite number")
        if table["block"].null_count:
            option = "groupCol" if request.options.groupCol else "timeCol"
            column = getattr(request.options, option)
            what = "null" if option == "groupCol" else NO_TIME
            raise InputError(f"{option}={column!r} holds {what}; fill it or drop such rows")
        counted = pc.and_(pc.greater(weight, 0.0), pc.greater_equal(weight, negligible))
        used = label.filter(counted)
        if not len(used):
            continue
        for name, column in beside.items():
            values = table[name].filter(counted)
            least, most = ranges.get(column, [math.inf, -math.inf])
            if values.null_count < len(values):
                ranges[column] = [min(least, pc.min(values).as_py()), max(most, pc.max(values).as_py())]
        if fractional is None and len(broken := used.filter(pc.not_equal(pc.floor(used), used))):
            fractional = broken[0].as_py()
        n += len(used)
        size, there = len(used), pc.mean(used).as_py()
        delta = there - mean
        mean += delta * size / n
        m2 += pc.variance(used).as_py() * size + delta * delta * size * (n - size) / n
        low, high = min(low, pc.min(used).as_py()), max(high, pc.max(used).as_py())
        if len(counts) <= 1000:
            for entry in pc.value_counts(used).to_pylist():  # at most a thousand distinct labels are counted
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
                if len(counts) > 1000:
                    break
    whole = len(counts) <= 1000 and all(v >= 0 and float(v).is_integer() for v in counts)
    classes = [counts.get(float(k), 0) for k in range(int(high) + 1)] if n and whole and high <= 1000 else []
    return {
        "rows": int(n), "mean": mean, "std": (m2 / (n - 1)) ** 0.5 if n > 1 else 0.0, "beside": ranges,
        "fractional": fractional, "low": low if n else None, "high": high if n else None, "classes": classes,
    }  # fmt: skip


def _refuse(column: pa.ChunkedArray, option: str, name: str | None, what: str, good: Any, rule: str) -> None:
    bad = column.filter(pc.invert(pc.fill_null(good(column), False)))
    if len(bad):
        raise InputError(
            f"{option}={name!r} holds {bad[0].as_py()!r} in {len(bad)} or more rows; "
            f"a {what} must be {rule}: drop or fill such rows"
        )


def _tables(folder: Path, shards: list[list[dict[str, Any]]], columns: list[str]) -> Iterator[pa.Table]:
    for shard in shards:
        for piece in shard:
            yield pq.read_table(folder / piece["path"], columns=columns, partitioning=None)
