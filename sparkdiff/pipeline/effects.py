"""The effects of SQL and of stages that are not Spark's: the columns that they change, as the plan of their transform shows."""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pyspark.ml import UnaryTransformer
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.jvm.lineage import changes_between
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.schema import SchemaOrRows, frame_of, is_plain
from sparkdiff.stages.base import class_name
from sparkdiff.stages.referenced import OUTPUTS

ANY = "may read and change any column and drop rows"


def with_effects(vertices: Sequence[Vertex], data: SchemaOrRows, casefold: Callable[[str], str]) -> list[Vertex]:
    """The stages of a pipeline; those that may change any column are described by what they do to these data.

    Each stage up to the last one of them transforms the data; Spark's own stages run no job for that.

    Args:
        data: the rows, or their schema. With a schema alone, a stage that is not Spark's is believed only as far as it declares
            its output, since its code may look at the rows.
    """
    out, last = list(vertices), max((v.position for v in vertices if v.opaque), default=-1)
    # A user's stage may raise anything here; it raises it again when it runs.
    with contextlib.suppress(Exception), jvm.unlogged():
        frame = frame_of(data)
        for vertex in vertices[: last + 1]:
            after = vertex.stage.transform(frame)
            after.schema  # noqa: B018  # Spark Connect analyses nothing before
            if vertex.opaque:
                known = _known(vertex, frame, after, casefold)
                trusted = isinstance(data, DataFrame) or is_plain(vertex.stage)
                out[vertex.position] = known if known and trusted else _assumed(vertex, known, frame, after, casefold)
            frame = after
    later: set[str] = set()
    for i in reversed(range(len(out))):
        rewritten = later.intersection(map(casefold, out[i].removes))
        later.update(map(casefold, out[i].outputs))
        out[i] = dataclasses.replace(out[i], rewritten=frozenset(rewritten)) if rewritten else out[i]
    return out


def _assumed(
    vertex: Vertex, known: Vertex | None, before: DataFrame, after: DataFrame, casefold: Callable[[str], str]
) -> Vertex:
    """The stage as it declares itself, if its output has no other difference in the schema; else as it is.

    Args:
        known: what its plan says without rows.
    """
    stage = vertex.stage
    found = [stage.getOrDefault(name) for name in OUTPUTS if stage.hasParam(name) and stage.isSet(name)]
    declared = tuple(c for one in found for c in ([one] if isinstance(one, str) else one))
    own = {*map(casefold, declared)}
    others = [[f for f in df.schema.fields if casefold(f.name) not in own] for df in (before, after)]
    if is_plain(stage) or not own or others[0] != others[1] or (known and not own >= {*map(casefold, known.outputs)}):
        return vertex
    why = f"it is assumed to change {', '.join(declared)} only, which it declares, and may drop rows"
    return dataclasses.replace(vertex, opaque=False, outputs=declared, why=custom_reason(stage, why))


def _known(vertex: Vertex, before: DataFrame, after: DataFrame, casefold: Callable[[str], str]) -> Vertex | None:
    """The stage with the columns that it reads, writes and drops; None if its plan does not tell them."""
    changes = changes_between(before, after)
    if changes is None:
        return None
    new = Counter(map(casefold, after.columns)) - Counter(map(casefold, changes.passed))
    writes = tuple(dict.fromkeys(c for c in after.columns if casefold(c) in new))
    removes = tuple(c for c in before.columns if casefold(c) not in {*map(casefold, after.columns)})
    reads = {casefold(c) for c in (*(changes.reads or ()), *map(jvm.unquoted, vertex.spelled))}
    reads |= _named(vertex.stage, [c for c in before.columns if casefold(c) not in reads], before, casefold)
    does = " and ".join((
        f"computes {', '.join(writes) or 'no column'}",
        *(["drops columns"] if removes else []),
        *(["may drop rows"] if changes.drops_rows else []),
    ))  # fmt: skip
    return dataclasses.replace(
        vertex, opaque=False, declares_all=changes.reads is not None, drops_rows=changes.drops_rows, outputs=writes,
        spelled=tuple(jvm.quoted(c) if "." in c else c for c in before.columns if casefold(c) in reads),
        removes=removes, selects=True,
        why=f"its statement {does}" if is_plain(vertex.stage) else custom_reason(vertex.stage, f"it {does}"),
    )  # fmt: skip


def _named(stage: Any, unread: Sequence[str], before: DataFrame, casefold: Callable[[str], str]) -> set[str]:
    """The columns that a stage only passes on, and needs all the same because it names them; casefolded."""
    names = {*map(casefold, unread)}
    if is_plain(stage):
        return names_in(casefold(stage.getStatement()), names)
    with contextlib.suppress(Exception):  # whatever the stage does without its columns
        stage.transform(before.drop(*unread))
        return set()
    return names


def names_in(statement: str, names: Iterable[str]) -> set[str]:
    """The names that a statement of SQL has as words."""
    return {name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", statement)}


def only_computes(stage: Any) -> bool:
    """Return whether a stage is a UnaryTransformer with that class's own transform: one column in, one out, all rows kept."""
    own = (getattr(type(stage), name, None) for name in ("transform", "_transform"))
    return isinstance(stage, UnaryTransformer) and [*own] == [UnaryTransformer.transform, UnaryTransformer._transform]


def custom_reason(stage: Any, does: str) -> str:
    """The reason why a stage that is not Spark's stays in Spark."""
    return f"not one of Spark's stages: {does}; register a StageModule for {class_name(stage)} to translate it"
