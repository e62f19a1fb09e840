"""What decides a cache's content, as one hash; and digests of pipelines, so that what was fitted before is known again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

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

FORMAT = 1
SHARDS = 8
"""The fewest virtual shards of a cache."""


def virtual_shards(options: Options) -> int:
    """The smallest multiple of the number of processes that is at least 8, so that 1, 2, 4 and 8 share caches and results."""
    return -(-SHARDS // options.numProcesses) * options.numProcesses


@dataclasses.dataclass(frozen=True)
class Request:
    """What to cache: the cut of a graph, the roles of the label and weight columns, the rows, and how they split."""

    graph: Graph
    sources: list[Source]
    options: Options
    labelCol: str
    weightCol: str | None

    @property
    def shards(self) -> int:
        return virtual_shards(self.options)


def fingerprint(request: Request, folder: Path) -> str:
    """Hash of all that decides the cache's content; runs no job over file-based, deterministic sources."""
    spark = request.sources[0].df.sparkSession
    parts: dict[str, Any] = {
        "format": FORMAT,
        "shards": request.shards,
        "stages": _saved_bytes(request.graph, folder),
        "cut": [request.graph.name(v) for v in request.graph.cut()],
        "columns": [request.labelCol, request.weightCol],
        "split": splits.rule(request.options),
        "conf": {
            k: spark.conf.get(k)
            for k in ("spark.sql.session.timeZone", "spark.sql.ansi.enabled", "spark.sql.caseSensitive")
        },
        "sources": [[s.split, source_facts(s.df)] for s in request.sources],
    }
    graph = request.graph
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
    if not all(isinstance(s, JavaParams) or type(s).__module__.startswith("pyspark.ml.") for s in stages):
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
    """Digests of the files of a saved model or pipeline, free of what differs between two savings (uids, names, time).

    None where it can't be saved. It is saved below `folder`, which Spark and this process both see, for a moment.
    """
    folder = Path(tempfile.mkdtemp(prefix=".stages-", dir=folder))
    try:
        model.write().overwrite().save(f"file://{folder}")
    except (*jvm.SparkError, AttributeError, ValueError, TypeError, NotImplementedError):
        return None
    else:
        metas = {p: json.loads(p.read_text()) for p in sorted(folder.rglob("metadata/part-*"))}
        uids = {meta["uid"]: f"uid{i}" for i, meta in enumerate(metas.values())}

        def anonymous(text: str) -> str:
            for uid, name in uids.items():
                text = text.replace(uid, name)
            # A fitted stage's default outputCol holds its uid, a loaded one's a random uid of the moment it was loaded.
            return re.sub(r"(uid\d+|\w+_[0-9a-f]{12})__output", "__output", text)

        out = []
        for path in sorted(p for p in folder.rglob("part-*") if p.is_file()):
            meta = metas.get(path)
            if meta is not None:
                del meta["timestamp"]
                content: Any = anonymous(json.dumps(meta, sort_keys=True)).encode()
            elif path.suffix == ".parquet":  # Spark orders a file's key-value metadata anyhow; the table is what counts
                table = pq.read_table(path, partitioning=None).replace_schema_metadata().combine_chunks()
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as out_stream:
                    out_stream.write_table(table)
                content = sink.getvalue()
            else:
                content = path.read_bytes()
            where = anonymous(path.parent.relative_to(folder).as_posix())
            out.append(f"{where}:{hashlib.sha256(content).hexdigest()}")
        return sorted(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
