"""The cut of a pipeline: the point up to which Spark runs the stages, after which torch runs them; and the whole
analysis of a pipeline. Runs no job.
"""

import collections
import dataclasses
from collections.abc import Set
from typing import Any, NamedTuple

from pyspark.sql import Column, DataFrame

from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.graph import Graph, Version, Vertex, in_front_of
from sparkdiff.pipeline.roles import Roles, droppers, roles_of, with_head
from sparkdiff.pipeline.schema import SchemaOrRows
from sparkdiff.pipeline.translation import translated_graph


@dataclasses.dataclass(frozen=True)
class CutColumn:
    """A column version that training reads.

    Attributes:
        name: the column name, spelled as in the stage that writes it, or that reads it first.
        in_struct: whether it is the field of a struct, `struct.field`.
        nulls: whether a stage in torch distinguishes null from NaN in this column.
        loss: whether only the loss reads it.
    """

    version: Version
    name: str
    in_struct: bool
    nulls: bool
    loss: bool

    def source(self, spelled: str) -> Column:
        """The Spark column; `spelled` is its name in the schema."""
        return col_by_name(self.name if self.in_struct else spelled, in_struct=self.in_struct)


@dataclasses.dataclass(frozen=True)
class Cut:
    """The stages that Spark runs before it writes the cache, the stages that torch runs in training, and the columns
    that the cache hands over.

    Two cuts compare equal if these stages and columns are the same, even if their graphs have different modules.

    Attributes:
        cached: positions of the stages in Spark.
        live: positions of the stages in torch.
        columns: the columns that training reads, in the order of first use.
    """

    graph: Graph = dataclasses.field(compare=False, repr=False)
    cached: tuple[int, ...]
    live: tuple[int, ...]
    columns: tuple[CutColumn, ...]

    @property
    def stages(self) -> list[Vertex]:
        """The stages in Spark."""
        return [self.graph.vertices[i] for i in self.cached]

    @property
    def spark_outputs(self) -> list[str]:
        """The columns that the stages in Spark declare as outputs."""
        return [c for v in self.stages for c in v.outputs]

    @property
    def opaque(self) -> list[str]:
        """Uids of the stages in Spark that may read and write any column."""
        return [v.uid for v in self.stages if v.opaque]

    @property
    def custom(self) -> bool:
        """True if Spark runs SQL, or a stage that is not one of its own."""
        return any(v.custom for v in self.stages)

    @property
    def late_droppers(self) -> list[Vertex]:
        """The stages that may drop rows of the cache, because Spark runs them only after training: they depend on what
        trains, or would overwrite columns that torch reads.
        """
        return [v for v in self.graph.vertices if v.may_drop and v.position not in self.cached]

    @property
    def null_columns(self) -> list[CutColumn]:
        """The columns in which a stage in torch distinguishes null from NaN, in the order of these stages."""
        by_version = {c.version: c for c in self.columns}
        return [by_version[v] for v in self.graph.nulls_read(self.live)]

    def transform(self, df: DataFrame) -> DataFrame:
        """The rows after all stages in Spark."""
        for stage in self.in_spark():
            df = stage.transform(df)
        return df

    def in_spark(self) -> list[Vertex]:
        """All stages that Spark runs for the cache, in order: the stages before the cut, and the plain stages that
        prepare columns for the modules of stages in torch (`PreparedStage`).
        """
        found = list[Vertex]()
        for i in sorted({*self.cached, *self.live}):
            vertex = self.graph.vertices[i]
            if i in self.live:
                found += [Vertex(i, vertex.path, s.uid, type(s).__name__, s) for s in vertex.preparation()]
            found += [vertex] if i in self.cached else []
        return found

    def first_in_spark(self) -> list[Vertex]:
        """The beginning of `in_spark`, up to the first plain stage that prepares a column."""
        prepared = next(
            (i for i in sorted(self.live) if self.graph.vertices[i].preparation()), len(self.graph.vertices)
        )
        return [self.graph.vertices[i] for i in sorted(self.cached) if i < prepared]


def cut_of(roles: Roles) -> Cut:
    """The cut that gives the smallest cache while all trainable stages run in torch.

    Raises:
        InputError: a stage that makes the label or weight overwrites a column that the network reads.
    """
    graph = roles.graph
    cached = _positions_before_cache(roles)
    live = [i for i in sorted(roles.upstream & set(graph.modules)) if i not in cached]
    read = dict.fromkeys(v for i in live for v in graph.vertices[i].margin_reads if v[1] not in live)
    nulls, loss = set(graph.nulls_read(live)), set(graph.head.lossReads if live else ())
    columns = (CutColumn(v, graph.name(v), graph.in_struct(v), v in nulls, v in loss) for v in read)
    return Cut(graph, tuple(sorted(cached)), tuple(live), tuple(columns))


def merged_cut(one: Cut, other: Cut) -> Cut | None:
    """The cut `one`, extended by the columns and Spark stages of `other`, so that one cache serves both cuts of a
    pipeline. None if the stages that only `other` runs in Spark could change the rows or the columns of `one`.
    """
    graph, more = one.graph, [other.graph.vertices[i] for i in other.cached if i not in one.cached]
    read = {v[0] for vertex in graph.vertices for v in (*vertex.sources, *vertex.margin_reads) if v[1] == -1}
    written = collections.Counter(graph.casefold(c) for vertex in graph.vertices for c in vertex.outputs)
    made = [graph.casefold(c) for vertex in more for c in vertex.outputs]
    read |= {name.partition(".")[0] for name in read}  # a field of a struct
    if one.opaque or any(v.opaque or v.may_drop for v in more) or any(c in read or written[c] > 1 for c in made):
        return None
    columns = {c.version: c for c in one.columns}
    for c in other.columns:
        own = columns.get(c.version, c)
        columns[c.version] = dataclasses.replace(own, nulls=own.nulls or c.nulls, loss=own.loss or c.loss)
    return dataclasses.replace(one, cached=tuple(sorted({*one.cached, *other.cached})), columns=tuple(columns.values()))


def within(cut: Cut, wide: Cut) -> Cut | None:
    """The cut of a pipeline, changed so that it reads the cache of the cut `wide` of another pipeline that begins with
    the same stages; stages that Spark did not run for this cache run in torch. None if such a stage cannot run in torch,
    or if the cache lacks a column, or may have other rows or values.
    """
    graph, base = cut.graph, wide.graph
    ran = {id(base.vertices[i].stage): i for i in wide.cached}
    same = {i: ran[id(v.stage)] for i in cut.cached if id((v := graph.vertices[i]).stage) in ran}
    prepared = {id(base.vertices[i].stage): i for i in wide.live}

    def there(version: Version) -> Version | None:
        name, writer = version
        if writer < -1:
            place = prepared.get(id(graph.vertices[in_front_of(writer)].stage))
            return None if place is None else (name, in_front_of(place))
        return version if writer == -1 else (name, same[writer]) if writer in same else None

    in_front, rest = graph.ancestors([graph.head.position]), [i for i in cut.cached if i not in same]
    unlike = any(
        tuple(map(there, graph.vertices[i].sources)) != base.vertices[j].sources
        or {same.get(p) for p in graph.vertices[i].parents} != base.vertices[j].parents
        for i, j in same.items()
    )
    droppers = {same[i] for i in same if graph.vertices[i].may_drop} ^ {v.position for v in wide.stages if v.may_drop}
    if (
        cut.opaque
        or wide.opaque
        or unlike
        or droppers
        or any(i not in in_front or i not in graph.modules for i in rest)
    ):
        return None
    live = sorted({*cut.live, *rest})
    read = dict.fromkeys(
        [*(c.version for c in cut.columns), *(v for i in live for v in graph.vertices[i].margin_reads)]
    )
    nulls, loss, stored = set(graph.nulls_read(live)), set(graph.head.lossReads), {c.version: c for c in wide.columns}
    columns = list[CutColumn]()
    for version in (v for v in read if v[1] not in live):
        own = CutColumn(version, graph.name(version), graph.in_struct(version), version in nulls, version in loss)
        place = there(version)
        kept = None if place is None else stored.get(place)
        if kept is None or own.nulls > kept.nulls or own.loss > kept.loss or own.in_struct != kept.in_struct:
            return None
        columns.append(own)
    return Cut(graph, tuple(sorted(same)), tuple(live), tuple(columns))


def _positions_before_cache(roles: Roles) -> set[int]:
    """Positions of the stages that Spark runs before it writes the cache."""
    if not roles.trainable:
        return set()
    graph = roles.graph
    spark = (roles.upstream - set(graph.modules)) | droppers(graph, roles.upstream) | set(roles.makers)
    spark |= graph.ancestors(spark)
    spark |= _droppers_behind(roles, spark)
    for i, column in roles.makers.items():
        if _overwrites(graph, i, spark):
            raise InputError(
                f"{graph.vertices[i].uid} overwrites the column {column!r}, which training reads and stages before it read "
                "too: give it another output column"
            )
    for i in sorted(roles.upstream - spark):
        vertex = graph.vertices[i]
        may = vertex.parents <= spark and not vertex.parametric and not _overwrites(graph, i, spark)
        if may and not graph.modules[i].expands:
            spark |= {i}
    return set(spark)


def _droppers_behind(roles: Roles, spark: Set[int]) -> set[int]:
    """Stages behind the head that may drop rows and that Spark can run before the cache, with all stages that they depend
    on. None of these stages trains, or overwrites a column that torch reads.
    """
    graph, out = roles.graph, set[int]()
    for vertex in (v for v in graph.vertices[graph.head.position + 1 :] if v.may_drop):
        needed = {vertex.position} | graph.ancestors([vertex.position])
        if not needed & roles.trainable and not any(_overwrites(graph, i, spark | needed) for i in needed):
            out |= needed
    return out


def _overwrites(graph: Graph, i: int, spark: Set[int]) -> bool:
    """True if stage i overwrites a column that an earlier stage in torch, or the loss at that stage, reads."""
    return any(
        graph.writes(i, [name]) for j in range(i) if j not in spark for name, _ in graph.vertices[j].margin_reads
    )


class Analysis(NamedTuple):
    """A fitted pipeline as a graph with new modules, the roles of its stages, and its cut."""

    graph: Graph
    roles: Roles
    cut: Cut


def analyse(model: Any, options: Options | None = None, data: SchemaOrRows = None) -> Analysis:
    """Analyse a fitted pipeline or stage, and set `requires_grad`: True only for parameters that train.

    Args:
        options: options that decide the roles, except `freeze`, which `Roles.freeze` applies.
        data: the data or their schema, which decides the computation of a few stages.

    Raises:
        InputError: the pipeline is not fitted, a name matches no stage, or a requested parameter cannot train.
    """
    o = options or Options()
    graph = translated_graph(model, data, reference=o.reference, unfreeze=o.unfreeze)
    roles = roles_of(with_head(graph, o.predictionCol), o)
    cut = cut_of(roles)
    roles.apply()
    return Analysis(roles.graph, roles, cut)
