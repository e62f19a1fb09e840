"""Where Spark's part of a pipeline ends and torch's begins; and the whole analysis of a pipeline. Runs no job."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from pyspark.sql import Column, DataFrame

from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Graph, Version, Vertex
from sparkdiff.pipeline.names import named
from sparkdiff.pipeline.roles import Roles, droppers, roles_of, with_head
from sparkdiff.pipeline.schema import SchemaOrRows
from sparkdiff.pipeline.translation import translated


@dataclasses.dataclass(frozen=True)
class CutColumn:
    """A column version that training reads.

    Attributes:
        name: as the stage that writes it, or the first that reads it, spells it.
        in_struct: it is a field of a struct, `struct.field`.
        nulls: a stage tells its nulls from NaN.
        loss: only the loss reads it.
    """

    version: Version
    name: str
    in_struct: bool
    nulls: bool
    loss: bool

    def source(self, spelled: str) -> Column:
        """The column of Spark that holds it, called `spelled` in the schema."""
        return named(self.name if self.in_struct else spelled, in_struct=self.in_struct)


@dataclasses.dataclass(frozen=True)
class Cut:
    """What Spark computes before training, and what training computes. Two cuts through one pipeline compare equal.

    Attributes:
        cached: positions of the stages that run in Spark.
        live: positions of those that run in torch.
        columns: what training reads, in the order of first use.
    """

    graph: Graph = dataclasses.field(compare=False, repr=False)
    cached: tuple[int, ...]
    live: tuple[int, ...]
    columns: tuple[CutColumn, ...]

    @property
    def stages(self) -> list[Vertex]:
        """The pipeline's stages that run in Spark."""
        return [self.graph.vertices[i] for i in self.cached]

    @property
    def made(self) -> list[str]:
        """The columns that these declare to write."""
        return [c for v in self.stages for c in v.outputs]

    @property
    def opaque(self) -> list[str]:
        """Uids of those that may read and write any column."""
        return [v.uid for v in self.stages if v.opaque]

    @property
    def null_columns(self) -> list[CutColumn]:
        """The columns whose nulls are told from NaN, in the order in which the stages that tell them read them."""
        by_version = {c.version: c for c in self.columns}
        return [by_version[v] for v in self.graph.nulls_read(self.live)]

    def transform(self, df: DataFrame) -> DataFrame:
        """What Spark computes before the cache."""
        for i in sorted({*self.cached, *self.live}):
            vertex = self.graph.vertices[i]
            for stage in [vertex.stage] if i in self.cached else vertex.preparation():
                df = stage.transform(df)
        return df


def cut_of(roles: Roles) -> Cut:
    """The cut at which the cache is smallest among those that leave in torch all that trains.

    Raises:
        InputError: a stage makes what training reads in place of a column that stages before it read.
    """
    graph = roles.graph
    cached = _cached(roles)
    live = [i for i in sorted(roles.upstream & set(graph.modules)) if i not in cached]
    read = dict.fromkeys(v for i in live for v in graph.vertices[i].margin_reads if v[1] not in live)
    nulls, loss = set(graph.nulls_read(live)), set(graph.head.lossReads if live else ())
    columns = (CutColumn(v, graph.name(v), graph.in_struct(v), v in nulls, v in loss) for v in read)
    return Cut(graph, tuple(sorted(cached)), tuple(live), tuple(columns))


def _cached(roles: Roles) -> set[int]:
    """Stages that run in Spark before the cache."""
    if not roles.trainable:
        return set()
    graph = roles.graph
    spark = (roles.upstream - set(graph.modules)) | droppers(graph, roles.upstream) | set(roles.makers)
    spark |= graph.ancestors(spark)
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


def _overwrites(graph: Graph, i: int, spark: frozenset[int]) -> bool:
    """Whether stage i replaces a column that an earlier stage of the network reads."""
    return any(graph.writes(i, [name]) for j in range(i) if j not in spark for name, _ in graph.vertices[j].reads)


class Analysis(NamedTuple):
    """A fitted pipeline as a graph whose modules are new, what becomes of its stages, and where the cut lies."""

    graph: Graph
    roles: Roles
    cut: Cut


def analyse(model: Any, options: Options | None = None, data: SchemaOrRows = None) -> Analysis:
    """The analysis of a fitted pipeline or stage; `requires_grad` is set where parameters train.

    Args:
        options: those that decide the roles of stages; `freeze` doesn't, see `Roles.freeze`.
        data: decides what a few stages compute.

    Raises:
        InputError: the pipeline isn't fitted, a name matches nothing, or what is wanted can't train.
    """
    o = options or Options()
    graph = translated(model, data, reference=o.reference, unfreeze=o.unfreeze)
    roles = roles_of(with_head(graph, o.predictionCol), o)
    cut = cut_of(roles)
    roles.apply()
    return Analysis(roles.graph, roles, cut)
