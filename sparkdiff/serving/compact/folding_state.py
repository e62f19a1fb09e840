"""State of a pipeline while it is folded: the stages that read each version of a column, and the widths of columns.

A version of a column is (casefolded name, position of the stage that wrote it; -1 for the data).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from pyspark.ml import PipelineModel
from pyspark.ml.linalg import VectorUDT
from pyspark.sql.types import BooleanType, NumericType, StructField, StructType

from sparkdiff import jvm
from sparkdiff.pipeline.graph import Graph, Version, Vertex
from sparkdiff.pipeline.nesting import SEARCHES, Path, holders
from sparkdiff.pipeline.schema import fields_by_name, known_fields, width_in
from sparkdiff.pipeline.translation import field_of
from sparkdiff.serving.compact.affine_maps import Absorber, Map, RefusedError, absorber_of, map_of
from sparkdiff.stages.base import class_name, columns_of
from sparkdiff.stages.inputs import Field

Found = TypeVar("Found")
SCALARS = ("StringIndexerModel", "Bucketizer", "ImputerModel", "TargetEncoderModel")
"""Classes whose outputs are all single numbers."""


@dataclasses.dataclass(frozen=True)
class ReadColumn:
    """A column that a stage reads: the name as spelled in the stage's Param, and the version of the column."""

    spelled: str
    version: Version


def reads_of(graph: Graph) -> dict[int, tuple[ReadColumn, ...]]:
    """Columns that each stage of a pipeline reads, by position."""
    return {v.position: tuple(map(ReadColumn, v.spelled, v.sources)) for v in graph.vertices}


def unchangeable_stages(graph: Graph) -> dict[int, str]:
    """The stages of a pipeline that cannot change, with the reason."""
    formulas = {v.position: uid for v in graph.vertices if (uid := graph.formula_of(v)) is not None}
    selections = (v.position for v in graph.vertices if jvm.selection_of(v.stage) is not None)
    return {
        **{i: f"it is a part of {uid}, which cannot change" for i, uid in formulas.items()},
        **dict.fromkeys(selections, "it drops columns or puts them last"),
    }


def selection_replacements(
    model: Any, graph: Graph, gone: Collection[int], renamed: Mapping[int, str]
) -> dict[Path, Any]:
    """Replacements (for `nesting.with_leaves`) of the stages that drop columns or move them to the end, where such a stage
    names a renamed column or a column of a removed stage.
    """
    out: dict[Path, Any] = {}
    for i, vertex in enumerate(graph.vertices):
        selection, before = jvm.selection_of(vertex.stage), graph.vertices[:i]
        writers = {
            c: max((v.position for v in before if graph.writes(v.position, [graph.casefold(c)])), default=-1)
            for c in (selection.columns if selection is not None else ())
        }
        if selection is not None and not {*gone, *renamed}.isdisjoint(writers.values()):
            columns, last = (
                [renamed.get(writers[c], c) for c in names if writers[c] not in gone] for names in selection
            )
            out[vertex.path] = jvm.selecting(columns, last, vertex.uid) if columns else left_out(model, vertex.path)
    return out


def left_out(model: Any, path: Path) -> Any:
    """Replacement of a removed stage for `nesting.with_leaves`: no stages, or an empty pipeline for a search's model."""
    alone = any(place == path and isinstance(holder, SEARCHES) for place, holder in holders(model))
    return PipelineModel([]) if alone else []


def reading(stage: Any, vertex: Vertex, now: tuple[str, ...]) -> Any:
    """The stage, or a copy of it, with the input columns `now`; the same object if `vertex` already reads them."""
    if vertex.spelled == now:
        return stage
    name = next(p for p in ("inputCols", "inputCol", "featuresCol") if stage.hasParam(p) and stage.isDefined(p))
    changed = stage.copy({stage.getParam(name): list(now) if name == "inputCols" else now[0]})
    if class_name(stage) == "pyspark.ml.classification.OneVsRestModel":  # each of its models reads the column itself
        changed.models = [m.copy({m.featuresCol: now[0]}) for m in stage.models]
    return changed


def is_assembler(stage: Any) -> bool:
    return class_name(stage) == "pyspark.ml.feature.VectorAssembler"


class StageFacts:
    """Facts about the stages of a pipeline before folding; each fact is determined once and cached.

    Attributes:
        schema: the schema of the data, if it is known.
        fields: the schema's fields by casefolded name.
    """

    def __init__(self, graph: Graph, schema: StructType | None):
        self.graph, self.schema = graph, schema
        self.fields = {} if schema is None else fields_by_name(schema, graph.casefold)
        self._known: dict[tuple[Callable[[Any, int], Any], int], Any] = {}

    def _once(self, find: Callable[["StageFacts", int], Found], i: int) -> Found:
        """Return the cached result of `find` for stage i; raise RefusedError if `find` raised it."""
        if (find, i) not in self._known:
            try:
                self._known[find, i] = find(self, i)
            except RefusedError as e:
                self._known[find, i] = e
        found = self._known[find, i]
        if isinstance(found, RefusedError):
            raise RefusedError(str(found))
        return found  # type: ignore[no-any-return]

    def map_of(self, i: int) -> Map:
        """Map of stage i. Raises RefusedError like `affine_maps.map_of`."""
        return self._once(_map_of, i)

    def absorber(self, i: int) -> Absorber:
        """Absorber of stage i. Raises RefusedError like `affine_maps.absorber_of`."""
        return self._once(_absorber, i)

    def width(self, version: Version) -> int | None:
        """Number of entries of a column, 1 for a number; None if neither a stage nor the schema determines it."""
        name, writer = version
        if writer < 0:
            found = _width_in_data(self.fields.get(name))
        else:
            found = dict(zip(self.graph.versions(writer), self._once(_widths, writer), strict=True)).get(version)
        return self._width_read(version) if found is None else found

    def _width_read(self, version: Version) -> int | None:
        """Width of the vectors on which a reader of the column was fitted; None if no reader determines it."""
        for vertex in self.graph.vertices:
            if version in vertex.sources and len(vertex.sources) == 1:
                try:
                    if (width := self.map_of(vertex.position).width_in) is not None:
                        return width
                except RefusedError:
                    pass
        return None


def _map_of(facts: StageFacts, i: int) -> Map:
    vertex = facts.graph.vertices[i]
    by_name = vertex.stage.hasParam("names") and vertex.stage.getOrDefault("names")
    return map_of(vertex.stage, [_field(facts, v) for v in vertex.sources] if by_name else (None,))


def _field(facts: StageFacts, version: Version) -> Field | None:
    found = known_fields(facts.graph, {version}, facts.schema)
    return field_of(found[version]) if version in found else None


def _absorber(facts: StageFacts, i: int) -> Absorber:
    return absorber_of(facts.graph.vertices[i].stage)


@dataclasses.dataclass(frozen=True)
class State:
    """Intermediate state of a pipeline that is being folded.

    Attributes:
        facts: facts about the stages as they were fitted.
        keep: the versions of columns that must stay, whether a stage reads them or not.
        pinned: positions of the stages that cannot change, with the reason.
        reads: the columns that each remaining stage reads, by position.
        absorbers: the stages that have absorbed others, in their changed form, by position.
        gone: positions of the removed stages, with a text on what happened to each.
        changed: positions of the assemblers whose output has other values now, and maybe another width; that output
            column is renamed.
    """

    facts: "StageFacts"
    keep: frozenset[Version]
    pinned: Mapping[int, str]
    reads: Mapping[int, tuple[ReadColumn, ...]]
    absorbers: Mapping[int, Absorber] = dataclasses.field(default_factory=dict)
    gone: Mapping[int, str] = dataclasses.field(default_factory=dict)
    changed: frozenset[int] = frozenset()

    @property
    def graph(self) -> Graph:
        return self.facts.graph

    def vertex(self, i: int) -> Vertex:
        return self.graph.vertices[i]

    def readers(self, i: int) -> list[int]:
        """Stages that read an output of stage i.

        Raises:
            RefusedError: a later stage may read any column.
        """
        for j in self.reads:
            if j > i and not (self.vertex(j).declares_all and not self.vertex(j).opaque):
                raise RefusedError(f"{self.vertex(j).uid} behind it may read any column")
        return [j for j in self.reads if any(read.version[1] == i for read in self.reads[j])]

    def behind(self, i: int, *, only_assemblers: bool = False) -> list[int]:
        """Stages that depend on stage i's output; with `only_assemblers`, those that read it directly or through
        assemblers.
        """
        reached, passes = [], {i}
        for j in sorted(self.reads):
            if any(read.version[1] in passes for read in self.reads[j]):
                reached.append(j)
                if not only_assemblers or is_assembler(self.vertex(j).stage):
                    passes.add(j)
        return reached

    def overwritten(self, i: int) -> list[str]:
        """Outputs of stage i that overwrite existing columns, which without stage i would have their old values."""
        there = {(name, -1) for name in self.facts.fields}.union(
            *(v.sources for v in self.graph.vertices), *map(self.graph.versions, self.reads)
        )
        before = {name for name, writer in there if writer < i and writer not in self.gone}
        return [c for c in self.vertex(i).outputs if self.graph.casefold(c) in before]

    def check_visible(self, version: Version, at: int, without: int) -> None:
        """Raise RefusedError if a stage between this version's writer and stage `at`, other than stage `without`,
        overwrites the column.
        """
        first = version[0].partition(".")[0]
        for j in self.reads:
            if version[1] < j < at and j != without and self.graph.writes(j, [version[0], first]):
                raise RefusedError(f"{self.vertex(j).uid} overwrites {self.graph.name(version)!r}, which it reads")

    def absorber(self, j: int) -> Absorber:
        """Absorber of stage j.

        Raises:
            RefusedError: stage j cannot absorb any map.
        """
        if j in self.pinned:
            raise RefusedError(f"{self.vertex(j).uid} reads its vector, and {self.pinned[j]}")
        return self.absorbers.get(j) or self.facts.absorber(j)

    def width(self, version: Version) -> int | None:
        """Current number of entries of a column; None if neither a stage nor the schema determines it."""
        writer = version[1]
        if writer >= 0 and is_assembler(self.vertex(writer).stage):
            widths = [self.width(read.version) for read in self.reads.get(writer, ())] or [None]
            if None not in widths:
                return sum(w for w in widths if w is not None)
            if writer in self.changed:
                return None
        return self.facts.width(version)

    def block(self, i: int, place: int, total: int | None) -> int:
        """Index in assembler i's output at which the entries of its input column number `place` begin.

        Args:
            total: the width that the output must have, if its reader checks the width; else None.

        Raises:
            RefusedError: an input column before that one has an unknown width, or the known widths contradict `total`.
        """
        reads = self.reads[i]
        widths = [self.width(read.version) for read in reads]
        unknown = [k for k, w in enumerate(widths) if w is None]
        if total is not None:
            rest = total - sum(w for w in widths if w is not None)
            if rest < len(unknown) or (not unknown and rest):  # a column has at least one entry
                raise RefusedError(
                    f"{self.vertex(i).uid} writes {total} entries, but its columns seem to have another number"
                )
            if len(unknown) == 1 or rest == len(unknown):
                widths = [w if w is not None else rest // len(unknown) for w in widths]
        before = widths[:place]
        if None in before:
            names = ", ".join(reads[k].spelled for k in unknown if k < place)
            raise RefusedError(
                f"how many entries {names} have, in front of it in {self.vertex(i).uid}, is unknown: pass the schema of the data "
                "(schema=df.schema)"
            )
        return sum(w for w in before if w is not None)


def _width_in_data(field: StructField | None) -> int | None:
    if field is None:
        return None
    if isinstance(field.dataType, (NumericType, BooleanType)):
        return 1
    return width_in(field) if isinstance(field.dataType, VectorUDT) else None


def _widths(facts: StageFacts, i: int) -> list[int | None]:
    vertex = facts.graph.vertices[i]
    stage, kind = vertex.stage, type(vertex.stage).__name__
    unknown: list[int | None] = [None] * len(vertex.outputs)
    if not vertex.declares_all or class_name(stage).partition(".")[0] != "pyspark":
        return unknown
    if kind == "OneHotEncoderModel":
        more = (stage.getHandleInvalid() == "keep") - stage.getDropLast()
        return [int(size) + more for size in stage.categorySizes]
    if kind in SCALARS:
        return [1] * len(unknown)
    if kind == "HashingTF":
        return [int(stage.getNumFeatures())]
    if kind == "CountVectorizerModel":
        return [len(stage.vocabulary)]
    if kind == "VectorSizeHint":
        return [None if stage.getHandleInvalid() == "optimistic" else int(stage.getSize())]  # which Spark doesn't check
    if stage.hasParam("predictionCol"):
        return [_width_of_prediction(stage, column) for column in vertex.outputs]
    try:
        return [facts.map_of(i).width_out]
    except RefusedError:
        return unknown


def _width_of_prediction(stage: Any, column: str) -> int | None:
    if column in columns_of(stage, ("predictionCol",)):
        return 1
    wide = column in columns_of(stage, ("rawPredictionCol", "probabilityCol"))
    return int(stage.numClasses) if wide and hasattr(stage, "numClasses") else None
