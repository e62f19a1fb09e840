"""A fitted pipeline folded into fewer plain MLlib stages with the same outputs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyspark.sql.types import StructType

from sparkdiff.errors import InputError, check_type, did_you_mean
from sparkdiff.pipeline.column_names import unused_prefix
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.nesting import Path, plain, with_leaves
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.report import Section, SectionTable, StrongLine, counted
from sparkdiff.report.sections import DisplayableStages
from sparkdiff.serving.compact.folding import fold
from sparkdiff.serving.compact.folding_state import (
    StageFacts,
    State,
    left_out,
    reading,
    reads_of,
    selection_replacements,
    unchangeable_stages,
)


@dataclasses.dataclass(frozen=True)
class StageCompaction:
    """Outcome for one leaf stage.

    Attributes:
        path: position of the stage in the nested pipelines and formulas.
        action: "gone"; "changed", if the stage absorbs other stages or reads other columns; or "same".
        reason: text on what happens to the stage, or why it stays.
    """

    __module__ = "sparkdiff"

    path: tuple[int, ...]
    uid: str
    stageClass: str
    action: str
    reason: str


@dataclasses.dataclass(frozen=True, repr=False)
class CompactPlan(DisplayableStages):
    """Report of `compact_plan`: a StageCompaction per leaf stage, in the order of the pipeline, and the columns that
    stay.
    """

    __module__ = "sparkdiff"

    stages: tuple[StageCompaction, ...]
    keepCols: tuple[str, ...]

    def _headline(self) -> str:
        left = sum(s.action != "gone" for s in self.stages)
        return f"{counted(len(self.stages), 'stage')} become{'s' * (len(self.stages) == 1)} {left}"

    def _sections(self) -> Iterator[Section]:
        rows = [(".".join(map(str, s.path)) or "0", s.stageClass, s.action, s.reason) for s in self.stages]
        yield SectionTable([("", "stage", "", "why"), *rows], left=range(4))
        yield StrongLine(f"{self._headline()}; these columns stay: {', '.join(self.keepCols) or 'none'}")


def compact(model: Any, keepCols: Sequence[str] | None = None, *, schema: StructType | None = None) -> Any:
    """The pipeline with as few stages as possible: plain MLlib, with the same values in the columns that are kept.

    Scalers, PCA, DCT, IDF and stages that select entries are folded into the linear model, the network or the trees that read
    them; assemblers of assemblers become one. Remaining stages keep class, uid and Params, except the names of the columns
    that they read. Where a stage absorbed the one in front of it, the assembler before them writes other values than it did,
    into a column with another name, so that each remaining column keeps its values. A fold that could change an output is
    left out; `compact_plan` reports which and why. Margins change only by rounding, and trees not at all. A NaN stays where
    it was. One exception: a row in which a PCA or a DCT reads an infinite entry, which makes its output NaN, may have an
    infinite margin. Rows that Spark refuses because a vector is null or too long may be refused by a later stage, or by none.
    Runs no Spark job, except where the JVM doesn't let us call the constructors of models, as over Connect.

    Args:
        model: a fitted `PipelineModel`; it is never changed.
        keepCols: the columns that must stay; the columns of the data always stay. By default the columns that no later
            stage reads, and those of the last stage.
        schema: the schema of the data, which tells the widths of columns: those of vectors if their metadata have them.

    Returns:
        The folded pipeline; the same object if nothing folds.

    Raises:
        InputError: the pipeline is not fitted, or no stage writes one of `keepCols`.

    Examples:
        >>> import sparkdiff
        >>> small = sparkdiff.compact(model)
        >>> [type(stage).__name__ for stage in small.stages]
        ['VectorAssembler', 'LogisticRegressionModel']
        >>> small.write().overwrite().save(f"{folder}/churn-small")
    """
    given = plain(model)
    state, _ = fold(_start(given, keepCols, schema))
    taken = [*state.facts.fields, *(c for v in state.graph.vertices for c in (*v.inputs, *v.outputs))]
    renamed = {
        i: unused_prefix(f"{state.vertex(i).uid}_folded{i}", taken)
        for i in sorted(state.changed.intersection(state.reads))
    }
    new: dict[Path, Any] = {state.vertex(i).path: left_out(given, state.vertex(i).path) for i in state.gone}
    for i, reads in state.reads.items():
        vertex = state.vertex(i)
        stage = state.absorbers[i].changed_stage() if i in state.absorbers else vertex.stage
        stage = stage.copy({stage.outputCol: renamed[i]}) if i in renamed else stage
        new[vertex.path] = reading(stage, vertex, tuple(renamed.get(r.version[1], r.spelled) for r in reads))
    return with_leaves(given, new | selection_replacements(given, state.graph, state.gone, renamed))


def compact_plan(model: Any, keepCols: Sequence[str] | None = None, *, schema: StructType | None = None) -> CompactPlan:
    """Report on what `compact` would do with the same arguments, stage by stage, with the reasons why stages stay.

    Raises:
        InputError: as in `compact`.

    Examples:
        >>> import sparkdiff
        >>> found = sparkdiff.compact_plan(model)
        >>> print(found)
           stage                             why
        0  VectorAssembler          same     stays: ...
        1  StandardScalerModel      gone     folded into LogisticRegression_...
        2  PCAModel                 gone     folded into LogisticRegression_...
        3  LogisticRegressionModel  changed  stays: rawPrediction, probability, prediction are kept
        4 stages become 2; these columns stay: rawPrediction, probability, prediction
    """
    start = _start(plain(model), keepCols, schema)
    state, why = fold(start)
    return CompactPlan(
        tuple(_stage_compaction(state, start, why, i) for i in range(len(state.graph.vertices))),
        tuple(
            c for v in state.graph.vertices for c in v.outputs if (state.graph.casefold(c), v.position) in state.keep
        ),
    )


def _stage_compaction(state: State, start: State, why: Mapping[int, str], i: int) -> StageCompaction:
    vertex = state.vertex(i)
    changed = i in state.absorbers or i in state.changed or (i in state.reads and state.reads[i] != start.reads[i])
    action = "gone" if i in state.gone else "changed" if changed else "same"
    return StageCompaction(vertex.path, vertex.uid, vertex.stageClass, action, state.gone.get(i) or f"stays: {why[i]}")


def _start(model: Any, keepCols: Sequence[str] | None, schema: StructType | None) -> State:
    if schema is not None:
        check_type("schema", schema, StructType, "a StructType such as df.schema")
    graph = graph_of(model)
    keep = _unread(graph) if keepCols is None else _versions_of(graph, keepCols)
    return State(StageFacts(graph, schema), keep, unchangeable_stages(graph), reads_of(graph))


def _unread(graph: Graph) -> frozenset[Version]:
    """Columns of which no later stage reads any field and that no later stage overwrites, and the last stage's columns."""
    last, read = len(graph.vertices) - 1, {version for v in graph.vertices for version in v.sources}
    return frozenset(
        (name, i)
        for name, i in graph.writers.items()
        if i == last or not any(p == i and f"{other}.".startswith(f"{name}.") for other, p in read)
    )


def _versions_of(graph: Graph, keepCols: Sequence[str]) -> frozenset[Version]:
    given = [keepCols] if isinstance(keepCols, str) else list(keepCols)
    if not given:
        raise InputError("keepCols is empty, so that no stage would be left: name the columns that must stay")
    for name in given:
        if graph.casefold(name) not in graph.writers:
            known = {c for v in graph.vertices for c in v.outputs}
            raise InputError(
                f"keepCols={name!r} is no column that a stage writes; columns of the data always stay. "
                f"{did_you_mean(name, known)}"
            )
    return frozenset((graph.casefold(name), graph.writers[graph.casefold(name)]) for name in given)


__all__ = ["CompactPlan", "StageCompaction", "compact", "compact_plan"]
