"""The fingerprint of a cache: one hash of everything that decides its content, to recognise a cache that already
exists.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame

from sparkdiff.data import splits
from sparkdiff.data.content import content
from sparkdiff.data.splits import Source
from sparkdiff.jvm.plans import plan_facts
from sparkdiff.jvm.settings import settings
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Cut
from sparkdiff.pipeline.schema import is_plain
from sparkdiff.store.digests import digest_of, without_uids

FORMAT = 2
SHARDS = 8
"""Number of virtual shards of a cache. It does not depend on the number of processes, so caches, batches and results
do not either.
"""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to cache: the cut of a pipeline, the roles of the label and weight columns, the rows, and how they split."""

    cut: Cut
    sources: list[Source]
    options: Options
    labelCol: str | None
    weightCol: str | None
    cuts: splits.Cuts | None = None  # None: still to be found


def fingerprint(request: Request, folder: Path) -> str:
    """Hash of everything that decides the content of a cache; runs no job for deterministic sources in files."""
    parts: dict[str, Any] = {
        "format": FORMAT,
        "shards": SHARDS,
        "stages": _saved_bytes(request.cut, folder),
        "cut": [c.name for c in request.cut.columns],
        "columns": [request.labelCol, request.weightCol],
        "split": splits.rule(request.options),
        "slices": request.options.guardCols,
        "sources": [[s.split, source_facts(s.df)] for s in request.sources],
    }
    if request.options.timeCol:
        parts["cuts"] = dataclasses.astuple(request.cuts or splits.find_cuts(request.sources, request.options))
    cut = request.cut
    if nulls := cut.null_columns:
        parts["nulls"] = [c.name for c in nulls]
    if cut.opaque:  # SQL may call functions and read tables of its own
        facts = [plan_facts(cut.transform(s.df), after_stages=True) for s in request.sources]
        parts["tables"] = None if None in facts else _anonymous(facts, [v.uid for v in cut.graph.vertices])
    if parts["stages"] is None or ("tables" in parts and parts["tables"] is None):
        # What can't be saved, or what code decides, can't be told apart: the rows that it makes decide.
        parts["stages"] = [content(cut.transform(s.df)) for s in request.sources]
        parts.pop("tables", None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def source_facts(df: DataFrame) -> dict[str, Any]:
    """Everything that decides the rows of a DataFrame: its plan and files if they are sufficient, else its content."""
    return {**(plan_facts(df) or {"content": content(df)}), "settings": settings(df.sparkSession)}


def _anonymous(facts: Any, uids: list[str]) -> str:
    """A plan in which column names that contain uids are replaced, so that it does not depend on when stages were
    fitted or loaded.
    """
    text = json.dumps(facts)
    for i, uid in enumerate(uids):
        # The view by which SQL reads its input is named anew each time, in lower case by default.
        text = re.sub(rf"{re.escape(uid)}_[0-9a-f]{{12}}(?!_)", f"view{i}", text, flags=re.IGNORECASE)
    return without_uids(uids)(text)


def _saved_bytes(cut: Cut, folder: Path) -> list[str] | None:
    """Digest of the saved stages that run before the cache; None if one cannot be saved or is not a Spark class.

    A subclass of a Spark stage may have its own code, which is not saved.
    """
    stages = [*(v.stage for v in cut.stages), *(s for i in cut.live for s in cut.graph.vertices[i].preparation())]
    if not all(is_plain(stage) for stage in stages):
        return None
    return digest_of(PipelineModel(stages), folder) if stages else []
