"""The fingerprint of a cache: one hash of everything that decides its content, by which an existing cache is found.

Rows that their plan and files do not identify are identified by their content: a few numbers computed from all rows,
which do not depend on the order and the partitions of the rows.
"""

import dataclasses
import functools
import hashlib
import json
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.data import splits
from sparkdiff.data.row_hashes import row_hashes
from sparkdiff.data.stream.manifest import FORMAT
from sparkdiff.jvm.query_plans import plan_facts, settings, table_versions
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Cut
from sparkdiff.pipeline.schema import is_plain
from sparkdiff.store.model_digests import digest_of, without_uids

SHARDS = 8
"""Number of virtual shards of a cache. It does not depend on the number of processes, and so neither do caches, batches
and results.
"""


@dataclasses.dataclass(frozen=True)
class Request:
    """The content of a cache to write: the cut of a pipeline, the label and weight columns, the rows, and the split."""

    cut: Cut
    sources: list[splits.Source]
    options: Options
    labelCol: str | None
    weightCol: str | None
    boundaries: splits.Boundaries | None = None  # None: still to be found
    allTrain: bool = (
        False  # whether all rows train and none are held out: then the split `validation` holds the training rows
    )
    keyed: bool = (
        False  # whether each row keeps its hash, so that its rows can be matched with those of other pipelines' caches
    )
    lasting: bool = (
        True  # whether anything later may read the cache; else its fingerprint is a random number, which takes no time
    )
    facts: list[Any] | None = None  # `source_facts` of each source; None: still to be found

    def facts_of_sources(self) -> list[Any]:
        """Facts that decide the rows of each source."""
        return [source_facts(s.df) for s in self.sources] if self.facts is None else self.facts


def fingerprint(request: Request, folder: Path) -> str:
    """Hash of everything that decides the content of a cache; a random number if nothing later may read the cache.

    Runs no job over the rows if they come from files, their plan is deterministic, the boundaries are known, and all
    stages that Spark runs are its own; only saving these stages for their digests takes jobs.
    """
    if not request.lasting:
        return uuid.uuid4().hex
    cut, boundaries = request.cut, request.boundaries or splits.find_boundaries(request.sources, request.options)
    stages: list[Any] | None = _saved_bytes(cut, folder)
    tables: str | None = ""
    if cut.custom:  # SQL may call functions and read tables of its own
        ran = cut.in_spark()  # each call creates the stages that prepare a column anew, with new uids
        frames = [functools.reduce(lambda df, stage: stage.transform(df), ran, s.df) for s in request.sources]
        facts = [plan_facts(df, after_stages=True) for df in frames]
        uids = dict.fromkeys([*(v.uid for v in cut.graph.vertices), *(stage.uid for stage in ran)])
        tables = None if None in facts else anonymous(facts, [*uids])
    if stages is None or tables is None:
        # Stages that can't be saved, or whose code is not Spark's, are identified by the rows that they make.
        stages, tables = [content(cut.transform(s.df)) for s in request.sources], ""
    parts = {
        "format": FORMAT,
        "shards": SHARDS,
        "stages": stages,
        "tables": tables,
        "cut": [c.name for c in cut.columns],
        "null flags": [c.name for c in cut.null_columns],
        "loss": [c.name for c in cut.columns if c.loss],  # the manifest holds their ranges
        "columns": [request.labelCol, request.weightCol],
        "split": splits.rule(request.options),
        "cuts": dataclasses.astuple(boundaries),
        "slices": request.options.guardCols,
        "sources": _sources(request),
        "allTrain": request.allTrain,
        "keyed": request.keyed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def divided_facts(request: Request) -> list[Any]:
    """Everything that decides the rows before the first stage of the pipeline, and their division into splits and
    slices.
    """
    o, boundaries = request.options, request.boundaries
    times = None if boundaries is None else dataclasses.astuple(boundaries)
    return [FORMAT, _sources(request), splits.rule(o), o.guardCols, times, request.keyed]


def _sources(request: Request) -> list[list[Any]]:
    return [[s.split, facts] for s, facts in zip(request.sources, request.facts_of_sources(), strict=True)]


def source_facts(df: DataFrame) -> dict[str, Any]:
    """Everything that decides the rows of a DataFrame: its plan and files if they are sufficient, else its content; and the
    versions of tables that its plan shows.
    """
    versions = table_versions(df)
    named_ = {"versions": versions} if versions else {}
    return {**(plan_facts(df) or {"content": content(df)}), **named_, "settings": settings(df.sparkSession)}


def versions_of(sources: Iterable[splits.Source]) -> list[dict[str, str]]:
    """Versions of the tables that the plans of sources show, with the split that reads them."""
    return [{"split": s.split or splits.TRAIN, **entry} for s in sources for entry in table_versions(s.df)]


def anonymous(facts: Any, uids: list[str]) -> str:
    """Facts of plans, as text in which the uids within names (of columns, and of the views that SQL reads) are replaced,
    so that it does not depend on when stages were fitted or loaded.
    """
    text = json.dumps(facts)
    for i, uid in enumerate(uids):
        # The view from which SQL reads its input gets a new name each time, in lower case by default.
        text = re.sub(rf"{re.escape(uid)}_[0-9a-f]{{12}}(?!_)", f"view{i}", text, flags=re.IGNORECASE)
    return without_uids(uids)(text)


def deciding_stages(cut: Cut) -> list[Any]:
    """Stages whose weights and settings decide the content of the cache: those that run in Spark before it is
    written.
    """
    return [*(v.stage for v in cut.stages), *(s for i in cut.live for s in cut.graph.vertices[i].preparation())]


def _saved_bytes(cut: Cut, folder: Path) -> list[str] | None:
    """Digests of the stages that run before the cache is written, computed from their saved files; None if one of them
    cannot be saved or is not a class of Spark.

    A subclass of a Spark stage may have its own code, which is not saved.
    """
    stages = deciding_stages(cut)
    if not all(is_plain(stage) for stage in stages):
        return None
    return digest_of(stages, folder) if stages else []


def content(df: DataFrame) -> list[Any]:
    """Schema, number of rows, and two independent sums of the rows' hashes. Runs one job, which reads all rows.

    Raises:
        InputError: Spark failed on the rows; the message has the cause.
    """
    sums = [F.sum(h.cast("decimal(20,0)")) for h in row_hashes(df)]  # a sum of longs overflows
    with jvm.as_input_error("Spark failed while reading the data"):
        row = df.agg(F.count(F.lit(1)), *sums).first()
    return [df.schema.json(), [str(v) for v in row or ()]]
