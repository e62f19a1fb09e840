"""The layout of a cache: the physical types of its columns, its shards, and the files that Spark writes."""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, Window, functions as F
from pyspark.sql.types import ArrayType, BooleanType, DataType, NumericType, StructField

from sparkdiff.data.fingerprint import SHARDS, Request
from sparkdiff.data.row_hashes import row_hash
from sparkdiff.data.splits import BLOCK, ROW, SLICE, SPLIT, TIME, of_first_source, united
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.jvm import stores
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.cut import Cut, CutColumn
from sparkdiff.pipeline.graph import Version, null_of
from sparkdiff.pipeline.schema import fields_by_name, width_in
from sparkdiff.stages.base import NULL, columns_of as stage_columns

NO_ROWS = "the data have no rows, or a stage before training drops all: check how they are read and filtered"
SPARSE_WIDTH, SPARSE_FILL = 128, 0.25
PIECE_BYTES = 1 << 26
# Stages that write vectors with as many entries as all that they read.
KEEP_WIDTH = {"VectorAssembler", "StandardScalerModel", "MinMaxScalerModel", "MaxAbsScalerModel", "RobustScalerModel"}
SCALAR: dict[str, Any] = {"kind": "scalar", "width": 1}
OWN = {"label": "float64", "weight": "float64", "block": "int64", "time": "float64", "row": "int64"}
"""Columns of a cache in addition to those of the cut, and their dtypes. `row`, the row's hash, exists only if it is
requested (`Request.keyed`).
"""
USUAL = 64
"""Weights are not rescaled if the largest one lies between 2 ** -USUAL and 2 ** USUAL and none is negligible
(`NEGLIGIBLE`).
"""


def check_number(
    option: str, column: str | None, df: DataFrame, casefold: Callable[[str], str], stages: Iterable[Any] = ()
) -> None:
    """Raise InputError if a column of the data is not a number.

    Args:
        stages: the stages of the pipeline, fitted or not; the error names the column in which one of them writes the indices.
    """
    for field in df.schema.fields:
        named = column is not None and casefold(field.name) == casefold(column)
        if named and not isinstance(field.dataType, (NumericType, BooleanType)):
            ways = (
                f"set {option}={out!r}, which {stage.uid} writes from it"
                for stage in stages
                if type(stage).__name__ in ("StringIndexer", "StringIndexerModel")
                for read, out in zip(
                    stage_columns(stage, ("inputCol", "inputCols")),
                    stage_columns(stage, ("outputCol", "outputCols")),
                    strict=False,
                )
                if casefold(read) == casefold(field.name)
            )
            kind, way = field.dataType.simpleString(), next(ways, "cast or index it")
            if isinstance(field.dataType, VectorUDT) and option == "labelCol":
                way = "only FineTuner takes class probabilities, for a fitted pipeline and without numFolds"
            raise InputError(f"{option}={column!r} is {kind}, but must be a number: {way}")


def columns_of(
    request: Request, df: DataFrame, slices: dict[str, tuple[Any, ...]], *, told: bool = False
) -> list[dict[str, Any]]:
    """Description of each column of the files (name, kind, width, dtype), the columns of the cut first. If there are
    vectors or arrays, a small job reads their widths from the first rows of the first source, unless `_width_of` knows them.

    Args:
        df: the rows of the first source, and perhaps of others.
        told: whether to trust the width in the metadata of vectors that are too narrow to be stored as sparse; this may
            save the job.
    """
    out: list[dict[str, Any]] = []
    fields = fields_by_name(df.schema, request.cut.graph.casefold)
    vectors = list[tuple[dict[str, Any], CutColumn, StructField]]()
    for i, read in enumerate(request.cut.columns):
        field = fields.get(read.version[0])
        if field is None:
            raise InputError(f"column {read.name!r} is missing when the cache is written: an earlier stage drops it")
        column: dict[str, Any] = {
            "name": f"c{i}",
            "column": read.name,
            "metadata": field.metadata,
            "type": field.dataType.simpleString(),
        }
        if isinstance(field.dataType, (VectorUDT, ArrayType)):
            width = width_in(field) if told else _width_of(request.cut, read.version, fields)
            if width and width < SPARSE_WIDTH:
                column |= {"kind": "dense", "width": width}
            else:
                vectors.append((column, read, field))
        elif isinstance(field.dataType, (NumericType, BooleanType)):
            column |= SCALAR
        else:
            raise InputError(
                f"column {field.name!r} is {field.dataType.simpleString()}; torch accepts numbers, vectors and "
                "arrays of numbers"
            )
        out.append(column)
    found = _widths(of_first_source(df), [(read, field) for _, read, field in vectors])
    for (column, _, field), (width, fill) in zip(vectors, found, strict=True):
        sparse = isinstance(field.dataType, VectorUDT) and width >= SPARSE_WIDTH and fill < SPARSE_FILL
        column |= {"kind": "sparse" if sparse else "dense", "width": width}
    # Even if this schema allows no null: those of other sources may, and a field of a struct is null if the struct is.
    out += [
        {"name": f"null{i}", "column": read.name + NULL, **SCALAR, "dtype": "bool"}
        for i, read in enumerate(request.cut.columns)
        if read.nulls and out[i]["kind"] == "scalar"
    ]
    own = {name: kind for name, kind in OWN.items() if name != "row" or request.keyed}
    return [
        *out,
        *({"name": name, "column": name, **SCALAR, "dtype": dtype} for name, dtype in own.items()),
        *(
            {"name": f"slice{i}", "column": c, **SCALAR, "dtype": "int64", "values": v}
            for i, (c, v) in enumerate(slices.items())
        ),
    ]


def _width_of(cut: Cut, version: Version, fields: Mapping[str, StructField], *, inside: bool = False) -> int | None:
    """The width of a vector column, by its metadata, or 1 for numbers; None if Spark's own stages do not guarantee it.

    Args:
        fields: the fields of the rows, by casefolded name.
        inside: whether an assembler reads the column, so that some row has no null in it.
    """
    field, writer = fields.get(version[0]), cut.graph.vertices[version[1]] if version[1] >= 0 else None
    if field is not None and isinstance(field.dataType, (NumericType, BooleanType)):
        return 1
    if writer is None or writer.custom:
        return None
    widths = [
        _width_of(cut, source, fields, inside=writer.stageClass == "VectorAssembler") or 0 for source in writer.sources
    ]
    # The sum is another if a scaler was fitted to vectors of another width.
    sure = writer.stageClass in KEEP_WIDTH and all(widths) and sum(widths) == width_in(field)
    return width_in(field) if sure or (inside and writer.stageClass == "OneHotEncoderModel") else None


def names_of(cut: Cut, columns: Sequence[Mapping[str, Any]]) -> dict[Version, str]:
    """Name of the column of the files for each column version of the cut, and for its null flags.

    Args:
        columns: columns of a cache that was written for this cut, or for one with more columns.
    """
    # The cut's columns come first in the list and take precedence: one of them may be named like a column of OWN.
    casefold = cut.graph.casefold
    names = {casefold(c["column"]): c["name"] for c in reversed(columns)}
    flagged = {null_of(c.version): names.get(casefold(c.name + NULL)) for c in cut.columns if c.nulls}
    nulls = {version: name for version, name in flagged.items() if name is not None}
    return {c.version: names[casefold(c.name)] for c in cut.columns} | nulls


def holds_true(folder: Path, splits: dict[str, Any], name: str) -> bool:
    return any(pc.any(table[name]).as_py() for shards in splits.values() for table in tables(folder, shards, [name]))


def _widths(df: DataFrame, vectors: Sequence[tuple[CutColumn, StructField]]) -> list[tuple[int, float]]:
    """Width of each vector column and the share of its entries that Spark stores, measured on the first rows in which
    no vector is null.
    """
    if not vectors:
        return []
    columns, figures = [read.source(field.name) for read, field in vectors], list[Column]()
    for c, (_, field) in zip(columns, vectors, strict=True):
        if isinstance(field.dataType, ArrayType):
            stored = size = F.size(c)
        else:
            v = F.unwrap_udt(c)
            stored = F.size(v["values"])
            size = F.coalesce(v["size"], stored)
        figures += [F.max(size), F.sum(stored), F.sum(size)]
    whole = functools.reduce(Column.__and__, (c.isNotNull() for c in columns))
    row = df.where(whole).limit(256).agg(*figures).first()
    assert row is not None  # there are no groups
    found = [row[i : i + 3] for i in range(0, len(row), 3)]
    if all(width for width, _, _ in found):
        return [(int(width), stored / size) for width, stored, size in found]
    if len(vectors) > 1:  # perhaps no row has all of them
        return [_widths(df, [vector])[0] for vector in vectors]
    if df.isEmpty():
        raise InputError(NO_ROWS)
    holds = "null in all rows" if row[0] is None else "only vectors without entries"
    raise InputError(
        f"column {vectors[0][0].name!r} holds {holds}, but training needs vectors with entries: look at the rows, or at the "
        "stage that writes it"
    )


def _physical(column: dict[str, Any], field_type: DataType, c: Column) -> list[Column]:
    """The column as stored in the files; a null vector is NaN in all entries, or in the first entry of a sparse
    column.
    """
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

    def with_width_check(nothing: Column, whole: Column) -> Column:
        return F.when(c.isNull(), nothing).when(size == column["width"], whole).otherwise(unequal)

    if column["kind"] == "dense":
        array = vector_to_array(c) if vector else c.cast("array<double>")
        return [with_width_check(F.array_repeat(nan, column["width"]), array).alias(name)]
    every = F.sequence(F.lit(0), F.size(v["values"]) - 1)
    indices = with_width_check(F.array(F.lit(0)), F.when(v["indices"].isNull(), every).otherwise(v["indices"]))
    return [indices.alias(f"{name}_i"), F.when(c.isNull(), F.array(nan)).otherwise(v["values"]).alias(f"{name}_v")]


def write_files(request: Request, frames: list[DataFrame], columns: list[dict[str, Any]], folder: Path) -> None:
    width = sum(c["width"] if c["kind"] == "dense" else 1 for c in columns if c.get("dtype") != "bool")
    piece = max(1024, min(65536, PIECE_BYTES // (8 * width)))
    # Numbers are read faster without dictionaries. Sparse columns (such as counts of words) have few distinct values
    # and are smaller with dictionaries.
    dictionaries = {f"parquet.enable.dictionary#{name}.list.element": "true" for name in sparse_fields(columns)}
    rows_by_shard(request, frames, columns).write.mode("append").options(
        maxRecordsPerFile=piece, **{"parquet.enable.dictionary": "false", **dictionaries}
    ).partitionBy("split", "shard").parquet(stores.address(folder))


def sparse_fields(columns: list[dict[str, Any]]) -> list[str]:
    """Columns of the files that hold sparse vectors."""
    return [f"{c['name']}_{part}" for c in columns if c["kind"] == "sparse" for part in "iv"]


def rows_by_shard(request: Request, frames: list[DataFrame], columns: list[dict[str, Any]]) -> DataFrame:
    """The rows as they are written to the files: assigned to virtual shards and sorted, with the columns `split` and
    `shard`.
    """
    ties = [*(f"slice{i}" for i in range(len(request.options.guardCols))), *(["row"] if request.keyed else [])]
    # Equal rows are also assigned by their occurrence number, so that the files depend on the rows, not on partitions.
    occurrence = F.row_number().over(Window.partitionBy("hash").orderBy("hash", *ties))
    keyed = (
        rows_with_hash(request, frames, columns)
        .withColumn("key", F.xxhash64("hash", occurrence))
        .withColumn("shard", F.pmod(F.col("key"), F.lit(SHARDS)))
    )
    return keyed.repartition(SHARDS, "split", "shard").sortWithinPartitions("split", "shard", "key").drop("hash", "key")


def rows_with_hash(request: Request, frames: list[DataFrame], columns: list[dict[str, Any]]) -> DataFrame:
    """The rows with a weight other than 0, with the columns of the files, `split` and `hash` (the hash of the row), in
    any order.
    """
    slices = [f"slice{i}" for i in range(len(request.options.guardCols))]
    nulls = [c["name"] for c in columns if c.get("dtype") == "bool"]
    union = functools.reduce(DataFrame.unionByName, (_as_stored(request, df, columns) for df in united(frames)))
    # The hash leaves out the slices, because another guardCol must not change the order of rows and thereby training;
    # the null flags, which add nothing, because a null hashes differently from NaN; and the hash of the source row.
    return union.withColumn("hash", row_hash(union.drop(*slices, *nulls, "row")))


def _as_stored(request: Request, df: DataFrame, columns: list[dict[str, Any]]) -> DataFrame:
    """The rows with a weight other than 0 with the columns that the files hold."""
    casefold = request.cut.graph.casefold
    slices = [f"{SLICE}{i}" for i in range(len(request.options.guardCols))]
    fields, keyed = fields_by_name(df.schema, casefold), (ROW,) if request.keyed else ()
    own = (SPLIT, BLOCK, TIME, *keyed, *slices)
    for lost in (request.labelCol, request.weightCol, *own):
        if lost is not None and casefold(lost) not in fields:
            whose = ", ".join(request.cut.opaque) or "a stage"
            given = [c for s in request.sources for c in s.df.columns]
            if lost not in own and casefold(lost) not in map(casefold, given):
                option = "labelCol" if lost == request.labelCol else "weightCol"
                raise InputError(
                    f"{option}={lost!r} is not a column of the data, and {whose} does not make it. "
                    f"{did_you_mean(lost, [c for c in df.columns if c not in own])}"
                )
            what = f"column {lost!r}" if lost not in own else "columns that it does not name"
            raise InputError(f"{whose} drops {what}, which training needs; keep all columns (SELECT *, ...)")
    check_number("labelCol", request.labelCol, df, casefold)  # a stage may have made them
    check_number("weightCol", request.weightCol, df, casefold)
    nulls = {c["name"] for c in columns}
    selected: list[Column] = []
    for i, (column, read) in enumerate(zip(columns, request.cut.columns, strict=False)):
        f = fields[read.version[0]]
        source = read.source(f.name)
        selected += _physical(column, f.dataType, source)
        if f"null{i}" in nulls:
            selected.append(source.isNull().alias(f"null{i}"))
    label = col_by_name(request.labelCol).cast("double") if request.labelCol else F.lit(0.0)  # clustering has none
    weight = col_by_name(request.weightCol).cast("double") if request.weightCol else F.lit(1.0)
    selected += [
        label.alias("label"),
        weight.alias("weight"),
        *(F.col(made).alias(name) for made, name in ((BLOCK, "block"), (TIME, "time"), (SPLIT, "split"))),
        *(F.col(name).alias("row") for name in keyed),
        *(F.col(name).alias(f"slice{i}") for i, name in enumerate(slices)),
    ]
    return df.select(*selected).where("weight <> 0 OR weight IS NULL")  # weight 0 counts nowhere


def shards_in(folder: Path, data: Path, split: str, number: int) -> list[list[dict[str, Any]]]:
    """Rename and describe the files of one split that Spark wrote to `data`, shard by shard. Only files on this
    machine, where `data` is the folder of the cache, are renamed; in a store, where renaming would copy them, files
    keep Spark's names.
    """
    out = []
    for shard in range(number):
        pieces: list[dict[str, Any]] = []
        written = data / f"split={split}" / f"shard={shard}"
        for i, path in enumerate(sorted(written.glob("part-*.parquet"), key=lambda p: p.name.rsplit("-c", 1)[-1])):
            name = f"{split}/shard-{shard:03d}-{i:03d}.parquet"
            if data == folder:
                (folder / split).mkdir(exist_ok=True)
                os.rename(path, folder / name)
            else:
                name = path.relative_to(folder).as_posix()
            content = (folder / name).read_bytes()
            rows = pq.read_metadata(folder / name).num_rows
            pieces.append(
                {"path": name, "rows": rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            )
        out.append(pieces)
    if data == folder:
        shutil.rmtree(folder / f"split={split}", ignore_errors=True)
    return out


def tables(folder: Path, shards: list[list[dict[str, Any]]], columns: list[str]) -> Iterator[pa.Table]:
    for shard in shards:
        for piece in shard:
            yield pq.read_table(folder / piece["path"], columns=columns, partitioning=None)
