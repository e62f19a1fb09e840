"""Parity on cached rows: the outputs of Spark's stages compared with those of the network, on some rows of the cache
and on rows built at critical values (those at which a stage's output jumps); and the network in float32 compared with
the network in float64.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyspark
import torch
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from sparkdiff import jvm
from sparkdiff.data.cache import ROOM, Cache
from sparkdiff.data.splits import TRAIN, VALIDATION
from sparkdiff.data.stream.manifest import sha256_of
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.machine import resources
from sparkdiff.pipeline.column_names import col_by_name, unused_prefix
from sparkdiff.pipeline.column_tensors import into_structs, schema_of, write_columns
from sparkdiff.pipeline.graph import Version, null_of
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity, compare, differences, outputs_of, run_in_spark
from sparkdiff.stages.inputs import PreparedStage
from sparkdiff.store.files import move_into_place, room
from sparkdiff.tensors.device import copy_to, place
from sparkdiff.tensors.rows import Rows, SparseRows, below, dense, rows_at

PARITY_ROWS, FEWER_ROWS = 10_000, 1_000
"""Largest number of rows that are compared with Spark: for a model that may be returned to the user, and for a model
that is only measured.
"""
DENSE_ENTRIES = 1 << 26
"""Number of entries that Spark may write as dense vectors for the comparison (half a gibibyte of doubles)."""
KEPT_BYTES = 1 << 26
SAMPLE = "sample.parquet"
NARROW = {"tinyint": 7, "smallint": 15, "int": 31, "bigint": 53, "float": None}
"""Types to which a column of doubles is cast back before Spark's stages read it, because a stage may return its input;
integers are limited to magnitudes up to 2 ** value.
"""


def check(
    model: Any, network: Network, sample: dict[Version, Rows], cache: Cache, original: Mapping[str, Any] | None = None
) -> Parity:
    """Compare Spark's trained stages with the network, on cached rows and on rows built at critical values of the
    inputs.

    Args:
        sample: cached rows, see `sample_of`; emptied once they are written for Spark.
        original: everything that decides the computation of the stages. If given, Spark's outputs are kept in the
            cache, and the next run with the same stages, rows and version of Spark compares its network with these
            outputs instead of running Spark.

    Raises:
        ParityError: Spark and the network differ.
    """
    where = cache.folder.parent
    with room("the rows to compare", where, ROOM), jvm.temporary(".parity-", where) as folder:
        file = _write_sample(network, dict(sample), cache, folder)
        sample.clear()
        resources.trim_memory()
        kept = None if original is None else cache.folder / f"spark-{_key(original, folder)}"
        parity = None if kept is None else _compare_kept_outputs(network, kept, folder / "kept")
        if parity is None:
            stages = [stage for _, stage in flatten(model)]
            versions = run_in_spark(
                file.read(network), {i: stages[i] for i in network.positions}, network, folder / "rows", file.recovered
            )
            parity = compare(network, folder / "rows", versions)
            if kept is not None and parity.ok:
                _keep(network, versions, folder / "rows", kept)
    if not parity.ok:
        worst = sorted(parity.maxRelDiff.items(), key=lambda item: -item[1])
        raise ParityError(
            f"{model.uid}: Spark and the network disagree on {parity.rows} rows, so nothing was changed: "
            + ", ".join(f"{c} by {d:.1e}" for c, d in worst if d > 0)
            + f", {parity.labelDisagreements} labels. Leave the stage in Spark (reference=...) and report this "
            "as a bug"
        )
    return parity


# Spark's outputs, kept beside the cached rows -------------------------------------------------------------------------


def _key(original: Mapping[str, Any], folder: Path) -> str:
    """Hash of the stages, of the sample that was written to a folder, and of Spark's version."""
    digest = hashlib.sha256(json.dumps([original, pyspark.__version__], sort_keys=True).encode())
    digest.update((folder / SAMPLE).read_bytes())
    return digest.hexdigest()[:16]


def _versions(network: Network) -> list[Version]:
    """All column versions that Spark may write, in an order that doesn't depend on their names."""
    return list(dict.fromkeys([*network.reads, *outputs_of(network)]))


def _keep(network: Network, versions: Sequence[Version], rows: Path, kept: Path) -> None:
    """Keep Spark's outputs beside the cached rows, unless they are large or the disk is full; replaces the outputs of
    other stages that were kept there.
    """
    files = sorted(rows.glob("part-*.parquet"))
    if sum(file.stat().st_size for file in files) > KEPT_BYTES:
        return
    every = _versions(network)
    index = {"versions": [every.index(v) for v in versions], "files": {f.name: sha256_of(f) for f in files}}
    with contextlib.suppress(OSError):
        (rows / "index.json").write_text(json.dumps(index), encoding="utf-8")
        for other in kept.parent.glob("spark-*"):
            shutil.rmtree(other, ignore_errors=True)
        move_into_place(rows, kept)


def _compare_kept_outputs(network: Network, kept: Path, folder: Path) -> Parity | None:
    """Compare the network with the kept outputs; None if there are none, or if they are damaged.

    They are copied to `folder` first, because another process may replace them.
    """
    try:
        index = json.loads((kept / "index.json").read_text(encoding="utf-8"))
        folder.mkdir()
        for name, digest in index["files"].items():
            if sha256_of(shutil.copyfile(kept / name, folder / name)) != digest:
                return None
        every = _versions(network)
        versions = [every[i] for i in index["versions"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return compare(network, folder, versions)


# The rows to compare --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _File:
    """The rows in a file for Spark.

    Attributes:
        narrow: Spark's type, by column, for the columns that are cast to it on reading.
        recovered: names of the columns with the recovered inputs of `PreparedStage` stages, by stage and input.
    """

    path: Path
    schema: StructType
    metadata: dict[str, Any]
    narrow: dict[str, str]
    versions: list[Version]
    recovered: dict[tuple[int, Version], str]

    def read(self, network: Network) -> DataFrame:
        graph, metadata = network.graph, self.metadata
        df = jvm.session().read.schema(self.schema).parquet(jvm.stores.readable(self.path))
        if self.narrow:
            df = df.withColumns(
                {n: col_by_name(n).cast(k).alias(n, metadata=metadata[n]) for n, k in self.narrow.items()}
            )
        return into_structs(df, [graph.name(v) for v in self.versions if graph.in_struct(v)])


def _write_sample(network: Network, sample: dict[Version, Rows], cache: Cache, folder: Path) -> _File:
    """Write the sample and the rows of `_edges` to a file for Spark."""
    graph = network.graph
    flags = {v: sample.pop(v) for v in network.flags if v in sample}
    first = {v: rows_at(c, torch.tensor([0])) for v, c in (sample | flags).items()}
    edges = _edges(network, first, sample)
    columns = {graph.name(v): below([c, edges[v]]) for v, c in sample.items()}
    nulls = {graph.name(v): dense(below([flags[f], edges[f]])) for v in sample if (f := null_of(v)) in flags}
    spoken, recovered = _original_inputs(network, columns)
    # The cut's columns come first in the manifest and take precedence: one of them may be named like a column of ours.
    casefold, kept = graph.casefold, {c["column"]: c for c in reversed(cache.manifest["columns"])}
    spelled = {casefold(name): entry for name, entry in reversed(kept.items())}
    # Another cached pipeline may spell a column in another case.
    described = kept | {name: spelled[casefold(name)] for name in columns}
    metadata = {name: entry.get("metadata") or {} for name, entry in described.items()}
    narrow = {name: kind for name in columns if name not in spoken and (kind := described[name].get("type")) in NARROW}
    for name, kind in narrow.items():
        x, power = columns[name], NARROW[kind]
        if isinstance(x, torch.Tensor) and power is not None:
            nulls[name] = x.isnan()
            columns[name] = x.nan_to_num(0.0).trunc().clamp(-(2.0**power), 2.0**power - 1)
    write_columns(columns, folder / SAMPLE, nulls, spoken)
    jvm.stores.send(folder / SAMPLE)
    return _File(folder / SAMPLE, schema_of(columns, metadata, spoken), metadata, narrow, list(sample), recovered)


def _original_inputs(
    network: Network, named: Mapping[str, Rows]
) -> tuple[dict[str, pa.Array], dict[tuple[int, Version], str]]:
    """Inputs of `PreparedStage` stages (such as words, which cannot enter torch), recovered from the prepared columns, by
    name of a new column; and this name for each stage and input.
    """
    graph, columns, standing = network.graph, {}, {}
    prefix = unused_prefix("__sparkdiff_source", named)
    for i in network.positions:
        vertex, module = graph.vertices[i], network.module(i)
        if not isinstance(module, PreparedStage):
            continue
        arrays = module.original_inputs(*(named[graph.name(v)] for v in vertex.reads))
        for k, (v, array) in enumerate(zip(vertex.sources, arrays, strict=True)):
            standing[i, v] = name = f"{prefix}{i}_{k}"
            columns[name] = array
    return columns, standing


def sample_of(network: Network, data: Data, most: int = PARITY_ROWS) -> dict[Version, Rows]:
    """Cached rows for `check`, about `most` if there are as many: training and validation rows in equal parts; fewer rows
    if a stage makes wide rows dense.
    """
    most = max(100, min(most, DENSE_ENTRIES // max(1, network.made_dense())))
    parts: list[dict[Version, Rows]] = []
    rows = 0
    quotas = {TRAIN: most} if data.stream.manifest.all_train else {TRAIN: most // 2, VALIDATION: most}
    for split, quota in quotas.items():
        for batch in data.stream.batches(split, batchSize=min(1000, most // 2)):
            if rows >= quota:
                break
            parts.append(data.values(batch))
            rows += len(batch["label"])
    return {v: below([p[v] for p in parts]) for v in data.columns}


def _edges(network: Network, row: dict[Version, Rows], sample: dict[Version, Rows]) -> dict[Version, Rows]:
    """Copies of `row`, in each of which one column has a special value: zero, the column's extremes in the sample and
    beyond, or critical values of a stage that reads it. Only copies that the network accepts.
    """
    graph = network.graph
    changes: list[tuple[Version, Rows]] = []
    for v, column in sample.items():
        if isinstance(column, SparseRows):
            nothing = torch.zeros(0, dtype=torch.int64)
            changes.append((v, SparseRows(nothing, column.values[:0], torch.zeros(2, dtype=torch.int64), column.width)))
            continue
        if v[1] < -1:  # prepared columns belong together and can't change alone, except that a vector may be empty
            changes += [(v, torch.zeros_like(column[:1]))] if column.ndim == 2 else []
            continue
        readers = [i for i in network.positions if v in graph.vertices[i].reads]
        own = [
            module.critical_values()[k]
            for i in readers
            for k, read in enumerate(graph.vertices[i].reads)
            if read == v and column.ndim == 1 and k < len((module := network.module(i)).critical_values())
        ]
        if own:  # one reader may treat as missing what another refuses
            given = [e for e in own[0] if len(readers) == 1 or not math.isnan(e)]
            changes += [(v, torch.tensor([e], dtype=torch.float64)) for e in given]
        else:
            alone = [i for i in readers if graph.vertices[i].reads == (v,)]
            rows = [network.module(i).critical_rows(row[v]) for i in alone]  # type: ignore[arg-type]
            changes += [(v, e) for part in rows if len(part) for e in part.split(1)]
            low, high = column.amin(0, keepdim=True), column.amax(0, keepdim=True)
            changes += [(v, e) for e in (torch.zeros_like(low), low, high, 10 * low, 10 * high)]
    every = [row | {changed: value} | _no_null(row, changed) for changed, value in changes]
    most = max(1, min(PARITY_ROWS, DENSE_ENTRIES // max(1, network.made_dense())))
    accepted = [r for i in range(0, len(every), most) for r in _accepted_rows(network, every[i : i + most])]
    versions = [*sample, *(flag for v in sample if (flag := null_of(v)) in row)]
    none = torch.empty(0, dtype=torch.int64)
    return {v: below([r[v] for r in accepted] or [rows_at(row[v], none)]) for v in versions}


def _no_null(row: dict[Version, Rows], v: Version) -> dict[Version, Rows]:
    """The null flag False for a column whose value was replaced, if the column has a null flag."""
    return {null_of(v): torch.tensor([False])} if null_of(v) in row else {}


def _accepted_rows(network: Network, rows: Sequence[dict[Version, Rows]]) -> list[dict[Version, Rows]]:
    """Those of these single rows that the network accepts. It refuses the same rows as Spark, for example a row of
    zeros with the cosine distance.

    All rows run together, and if one is refused, each half runs again: one by one, rows for thousands of trees would
    take minutes.
    """
    if _accepts(network, {v: below([r[v] for r in rows]) for v in rows[0]}):
        return [*rows]
    half = len(rows) // 2
    return [*_accepted_rows(network, rows[:half]), *_accepted_rows(network, rows[half:])] if half else []


@torch.no_grad()
def _accepts(network: Network, rows: dict[Version, Rows]) -> bool:
    """True if the network accepts all of these rows."""
    try:
        network.run(rows, outputs_of(network))
    except InputError:
        return False
    return True


MARGIN = "margin"
MOST_ROUNDING = 1e-3
"""Largest relative difference of the margin for which a network may train in float32."""


@torch.no_grad()
def check_single_precision(network: Network, data: Data) -> Parity:
    """Compare the head's margin in float32 with that in float64 on the validation rows.

    Raises:
        InputError: they differ by more than `MOST_ROUNDING` (the message names the column that loses most). Or a stage can't
            compute in float32.
    """
    there = place("cpu", "float32")
    single = copy_to(network.without_spark(), there.device, there.dtype)
    absolute = relative = 0.0
    rows, culprit = 0, ""
    for batch, _, weight, _ in data.batches(VALIDATION):
        values = data.values(batch)
        exact = network.margin(dict(values))
        try:
            rounded = single.margin({v: there.rows(x) for v, x in values.items()}).to(exact.dtype)
        except RuntimeError as e:  # a stage of the user's may name a dtype
            raise InputError(
                f"the network can't compute with precision='float32' ({str(e).splitlines()[0]}): set precision='float64'"
            ) from e
        counts = weight > 0
        by, share = (x[counts] for x in differences(rounded, exact))
        rows += len(by)
        if not len(by):
            continue
        absolute = max(absolute, float(by.max()))
        if float(share.max()) > max(relative, MOST_ROUNDING):
            culprit = _culprit({network.graph.name(v): values[v] for v in data.columns})
        relative = max(relative, float(share.max()))
    if relative > MOST_ROUNDING:
        raise InputError(
            f"precision='float32' moves the outputs of {network.graph.head.uid} by {relative:.1e} of their size on validation "
            f"rows, more than {MOST_ROUNDING:g}{culprit}: scale the columns before the pipeline, or set precision='float64'"
        )
    return Parity({MARGIN: absolute}, {MARGIN: relative}, 0, rows, True)


def _culprit(columns: dict[str, Rows]) -> str:
    """The column whose values rounding changes most, relative to its standard deviation, as a part of a sentence; empty
    if there is none.
    """
    worst, said = 0.0, ""
    for name, column in columns.items():
        x = column.values[:, None] if isinstance(column, SparseRows) else column.reshape(len(column), -1)
        if not x.is_floating_point() or not len(x):
            continue
        lost = torch.where(x.isfinite(), (x - x.to(torch.float32)).abs(), 0.0).amax(0)
        spread = torch.where(x.isfinite(), x, x.nanmean(0)).std(0, correction=0)
        share = torch.where(spread > 0, lost / spread, 0.0)
        if share.numel() and float(share.max()) > worst:
            worst, j = float(share.max()), int(share.argmax())
            entry = f"entry {j} of column" if isinstance(column, torch.Tensor) and column.ndim == 2 else "column"
            said = f" (rounding moves {entry} {name!r} by up to {worst:.2g} standard deviations)"
    return said
