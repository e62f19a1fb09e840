"""What decides a cache's content, as one hash; and digests of saved models, so that what was made before is known again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml import PipelineModel
from pyspark.ml.wrapper import JavaParams
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkdiff import jvm, splits
from sparkdiff.errors import InputError
from sparkdiff.graph import Graph
from sparkdiff.options import Options
from sparkdiff.splits import Source

FORMAT = 2
SHARDS = 8
"""Virtual shards of a cache, whatever number of processes trains on it: so all share caches, batches and results."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to cache: the cut of a graph, the roles of the label and weight columns, the rows, and how they split."""

    graph: Graph
    sources: list[Source]
    options: Options
    labelCol: str | None
    weightCol: str | None


def fingerprint(request: Request, folder: Path) -> str:
    """Hash of all that decides the cache's content; runs no job over file-based, deterministic sources."""
    spark = request.sources[0].df.sparkSession
    parts: dict[str, Any] = {
        "format": FORMAT,
        "shards": SHARDS,
        "stages": _saved_bytes(request.graph, folder),
        "cut": [request.graph.name(v) for v in request.graph.cut()],
        "columns": [request.labelCol, request.weightCol],
        "split": splits.rule(request.options),
        "slices": request.options.guardCols,
        "conf": {
            k: spark.conf.get(k)
            for k in ("spark.sql.session.timeZone", "spark.sql.ansi.enabled", "spark.sql.caseSensitive")
        },
        "sources": [[s.split, source_facts(s.df)] for s in request.sources],
        # The manifest keeps the columns' attributes, of which the plan's text says nothing.
        "metadata": [[[f.name, f.metadata] for f in s.df.schema.fields if f.metadata] for s in request.sources],
    }
    graph = request.graph
    if nulls := graph.telling(graph.live):
        parts["nulls"] = [graph.name(v) for v in nulls]
    if any(graph.leaves[i].opaque for i in graph.cached):  # SQL may call functions and read tables of its own
        facts = [jvm.plan_facts(graph.before_cut(s.df), after_stages=True) for s in request.sources]
        parts["tables"] = None if None in facts else [[f["relations"], f["files"]] for f in facts if f]
    if parts["stages"] is None or ("tables" in parts and parts["tables"] is None):
        # What can't be saved, or what code decides, can't be told apart: the rows that it makes decide.
        parts["stages"] = [_content(graph.before_cut(s.df)) for s in request.sources]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def source_facts(df: DataFrame) -> Any:
    """What decides a DataFrame's rows: its plan and files where that tells all, else count and hash sum of its content."""
    return jvm.plan_facts(df) or _content(df)


def _content(df: DataFrame) -> Any:
    h = splits.row_hash(df).cast("decimal(20,0)")  # a sum of longs overflows, and raises under ANSI
    try:
        row = df.agg(F.count(F.lit(1)), F.sum(h)).first()
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while it read the data: {jvm.cause(e)}") from e
    return [df.schema.json(), [str(v) for v in row or ()]]


def _saved_bytes(graph: Graph, folder: Path) -> list[str] | None:
    """Digest of the saved stages that run before the cache; None where one can't be saved, or is Python code."""
    stages = [graph.leaves[i].stage for i in sorted(graph.cached)]
    stages += [stage for i in graph.live for stage in graph.preparation(i)]
    if not all(
        isinstance(s, JavaParams) or type(s).__module__.startswith(("pyspark.ml.", "sparkdiff.")) for s in stages
    ):
        return None
    return digest_of(PipelineModel(stages), folder) if stages else []


def params_of(pipeline: Any) -> str | None:
    """Classes and Params of an unfitted pipeline, free of uids; None where they don't tell it whole (a stage not of Spark's)."""
    stages = pipeline.getStages() if hasattr(pipeline, "getStages") else [pipeline]
    parts: list[Any] = []
    for stage in stages:
        if hasattr(stage, "getStages"):
            parts.append(params_of(stage))
            continue
        params = jvm.defined_params(stage)
        params["default"].pop("seed", None)  # differs between two Python processes
        values = {
            k: v.toArray().tolist() if hasattr(v, "toArray") else v
            for k, v in {**params["default"], **params["set"]}.items()
        }
        simple = all(isinstance(v, (str, int, float, list, type(None))) for v in values.values())
        parts.append(
            [type(stage).__name__, values] if simple and type(stage).__module__.startswith("pyspark.ml.") else None
        )
    if None in parts:
        return None
    text = json.dumps(parts, sort_keys=True)
    for i, stage in enumerate(stages):
        text = text.replace(stage.uid, f"uid{i}")
    return text


def digest_of(model: Any, folder: Path) -> list[str] | None:
    """`digest_of_folder` of a model or pipeline as it would be saved now; None where it can't be saved.

    It is saved below `folder`, which Spark and this process both see, for a moment.
    """
    with saved(model, folder) as path:
        return None if path is None else digest_of_folder(path)


@contextlib.contextmanager
def saved(model: Any, folder: Path) -> Iterator[Path | None]:
    """A folder below `folder` that holds the saved model while the context lasts; None where it can't be saved."""
    path = Path(tempfile.mkdtemp(prefix=".stages-", dir=folder))
    try:
        try:
            model.write().overwrite().save(f"file://{path}")
        except (*jvm.SparkError, AttributeError, ValueError, TypeError, NotImplementedError):
            yield None
        else:
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def hash_of(model: Any, path: str | None, folder: Path) -> str | None:
    """`hash_of_folder` of a model that was loaded from `path`, or from nowhere; None where it can't be saved.

    Where the path is none of this machine's, the model is saved below `folder` for a moment.
    """
    if path is not None and (local := Path(path.removeprefix("file://"))).is_dir():
        return hash_of_folder(local)
    with saved(model, folder) as copy:
        return None if copy is None else hash_of_folder(copy)


def hash_of_folder(path: Path) -> str:
    """One hash of a saved model's classes, Params and weights: the same whenever, and under whatever uids, it was saved."""
    return hashlib.sha256("\n".join(digest_of_folder(path, by_whom=False)).encode()).hexdigest()


def digest_of_folder(folder: Path, *, by_whom: bool = True) -> list[str]:
    """Digests of a saved model's files, free of what differs between two savings: uids, file names, time.

    Without `by_whom` also free of what depends on who fits and saves: Spark's version, and the default seed, which Python
    draws per process.
    """
    metas = {p: json.loads(p.read_text()) for p in sorted(folder.rglob("metadata/part-*"))}
    # What some models (BisectingKMeans) keep as their data is a saved model of spark.mllib, which has no uid.
    uids = {uid: f"uid{i}" for i, meta in enumerate(metas.values()) if (uid := meta.get("uid"))}

    def anonymous(text: str) -> str:
        for uid, name in uids.items():
            text = text.replace(uid, name)
        # A fitted stage's default outputCol holds its uid, a loaded one's a random uid of the moment it was loaded.
        return re.sub(r"(uid\d+|\w+_[0-9a-f]{12})__output", "__output", text)

    def of_metadata(meta: dict[str, Any]) -> bytes:
        meta = {k: v for k, v in meta.items() if k != "timestamp" and (by_whom or k != "sparkVersion")}
        if not by_whom and "defaultParamMap" in meta:
            meta["defaultParamMap"] = {k: v for k, v in meta["defaultParamMap"].items() if k != "seed"}
        return anonymous(json.dumps(meta, sort_keys=True)).encode()

    def of_tree(text: str) -> str:  # an ensemble keeps its trees' metadata in a table
        return of_metadata({**json.loads(text), "uid": "tree"}).decode()

    out = []
    for path in sorted(p for p in folder.rglob("part-*") if p.is_file()):
        if path in metas:
            digest = hashlib.sha256(of_metadata(metas[path]))
        elif path.suffix == ".parquet":  # Spark orders a file's key-value metadata anyhow; the table is what counts
            table = pq.read_table(path, partitioning=None).combine_chunks()
            if path.parent.name == "treesMetadata":  # of an id, JSON and a weight, by names that Spark 4.3 leaves out
                (i,) = (i for i, kind in enumerate(table.schema.types) if pa.types.is_string(kind))
                texts = pa.array([of_tree(text) for text in table.column(i).to_pylist()])
                table = table.set_column(i, table.column_names[i], texts)
            digest = hashlib.sha256()
            for name, column in zip(table.column_names, table.columns, strict=True):
                digest.update(f"{name} {column.type} {len(column)};".encode())
                for chunk in column.chunks:
                    _feed(digest, chunk)
        else:
            digest = hashlib.sha256(path.read_bytes())
        where = anonymous(path.parent.relative_to(folder).as_posix())
        out.append(f"{where}:{digest.hexdigest()}")
    return sorted(out)


def _feed(digest: Any, array: pa.Array) -> None:
    """An array's values, in a form that doesn't depend on the version of Arrow."""
    digest.update(np.packbits(np.asarray(array.is_valid())).tobytes())
    if pa.types.is_struct(array.type):
        for i in range(array.type.num_fields):
            _feed(digest, pa.StructArray.field(array, i))
    elif pa.types.is_list(array.type):
        digest.update(np.asarray(array.value_lengths().fill_null(0)).astype(np.int64).tobytes())
        _feed(digest, array.flatten())
    elif pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        numbers = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
        digest.update(np.ascontiguousarray(numbers.fill_null(0).to_numpy(zero_copy_only=False)).tobytes())
    else:
        digest.update(json.dumps(array.to_pylist(), default=str).encode())
