"""The effects of SQL and of stages that are not Spark's: which columns they change, as far as the plan of their transform tells."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any

from pyspark.ml import UnaryTransformer
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.jvm.lineage import Changes, changes_between
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.names import named
from sparkdiff.pipeline.schema import SchemaOrRows, frame_of, is_plain
from sparkdiff.stages.base import class_name
from sparkdiff.stages.referenced import OUTPUTS

ANY = "may read and change any column and drop rows"


def with_effects(vertices: Sequence[Vertex], data: SchemaOrRows, casefold: Callable[[str], str]) -> list[Vertex]:
    """The stages of a pipeline, in which those that may change any column are described by what they do to these data.

    Each stage up to the last one of them transforms the data; Spark's own stages run no job for that.

    Args:
        data: the rows; from their schema alone, what a stage does that is not Spark's is only taken for true where the stage
            declares it, since it may look at the rows.
    """
    out, last = list(vertices), max((v.position for v in vertices if v.opaque), default=-1)
    try:
        frame = frame_of(data)
        for vertex in vertices[: last + 1]:
            after = vertex.stage.transform(frame)
            after.schema  # noqa: B018  # Spark Connect analyses nothing before
            if vertex.opaque:
                out[vertex.position] = _described(vertex, frame, after, casefold, isinstance(data, DataFrame))
            frame = after
    except Exception:  # a stage of the user's may raise anything, and says so again when it runs
        return out
    return out


def _described(
    vertex: Vertex, before: DataFrame, after: DataFrame, casefold: Callable[[str], str], has_rows: bool
) -> Vertex:
    changes, plain = changes_between(before, after), is_plain(vertex.stage)
    if changes is not None and (plain or has_rows):
        return _known(vertex, changes, before, after, casefold)
    declared = () if plain else _declared(vertex.stage)
    written = changes and _known(vertex, changes, before, after, casefold)
    others = [[f for f in df.schema.fields if casefold(f.name) not in map(casefold, declared)] for df in (before, after)]
    if not declared or others[0] != others[1] or (written and not {*written.outputs} <= {*declared}):
        return vertex
    why = f"it is assumed to change {', '.join(declared)} only, which it declares, and may drop rows"
    return dataclasses.replace(vertex, opaque=False, outputs=declared, why=custom_reason(vertex.stage, why))


def _known(
    vertex: Vertex, changes: Changes, before: DataFrame, after: DataFrame, casefold: Callable[[str], str]
) -> Vertex:
    """The stage with the columns that it reads, writes and drops."""
    new = Counter(map(casefold, after.columns)) - Counter(map(casefold, changes.passed))
    writes = tuple(dict.fromkeys(c for c in after.columns if casefold(c) in new))
    removes = tuple(c for c in before.columns if casefold(c) not in {*map(casefold, after.columns)})
    reads = vertex.spelled + tuple(jvm.quoted(c) if "." in c else c for c in changes.reads or ())
    if changes.reads is not None and not _runs_on(vertex.stage, before, {casefold(jvm.unquoted(c)) for c in reads}, casefold):
        reads = tuple(map(jvm.quoted, before.columns))
    does = [
        f"computes {', '.join(writes)}" if writes else "computes no column",
        *(["drops columns"] if removes else []),
        *(["may drop rows"] if changes.drops_rows else []),
    ]
    does = " and ".join(does)
    return dataclasses.replace(
        vertex, opaque=False, declares_all=changes.reads is not None, drops_rows=changes.drops_rows, outputs=writes,
        spelled=tuple(dict.fromkeys(reads)), removes=removes, selects=bool(removes),
        why=f"its statement {does}" if is_plain(vertex.stage) else custom_reason(vertex.stage, f"it {does}"),
    )  # fmt: skip


def _runs_on(stage: Any, before: DataFrame, names: Set[str], casefold: Callable[[str], str]) -> bool:
    """Whether a stage can do without all other columns; it cannot if it names one that it only passes on."""
    try:
        stage.transform(before.select(*(named(c) for c in before.columns if casefold(c) in names)))
    except Exception:  # whatever the stage does without its columns
        return False
    return True


def _declared(stage: Any) -> tuple[str, ...]:
    """The output columns that a stage was given; the default of a mixin says nothing about what the stage does."""
    found = [stage.getOrDefault(name) for name in OUTPUTS if stage.hasParam(name) and stage.isSet(name)]
    return tuple(c for one in found for c in ([one] if isinstance(one, str) else one))


def only_computes(stage: Any) -> bool:
    """Whether it is a UnaryTransformer that transforms as this class does: it reads and writes one column and keeps all rows."""
    own = (getattr(type(stage), name, None) for name in ("transform", "_transform"))
    return isinstance(stage, UnaryTransformer) and [*own] == [UnaryTransformer.transform, UnaryTransformer._transform]


def custom_reason(stage: Any, does: str) -> str:
    """The reason why a stage that is not Spark's stays in Spark."""
    return f"not one of Spark's stages: {does}; register a StageModule for {class_name(stage)} to translate it"
