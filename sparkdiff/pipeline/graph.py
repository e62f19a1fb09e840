"""The pipeline as a graph: its stages, linked by the versions of columns that they read and write. The head is the
predictor whose outputs enter the loss. Runs no job.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from pyspark.ml import Transformer
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.jvm.transform_changes import with_lost_columns
from sparkdiff.pipeline.column_names import casefolding
from sparkdiff.stages.base import NULL, StageModule, columns_of
from sparkdiff.stages.inputs import PreparedStage
from sparkdiff.stages.linear import GeneralizedLinearRegression
from sparkdiff.stages.predictor import Predictor

Version = tuple[str, int]
"""A version of a column: its casefolded name, and the position of the stage that wrote it or -1 if it comes from the
data.
"""

LEAVES = "\0leaves"
"""Name in a version (LEAVES, position) that holds the leaf indices of each row in the trees at this position. No column
has this name.
"""


def null_of(version: Version) -> Version:
    """The version that holds the null flags of this one."""
    return version[0] + NULL, version[1]


def in_front_of(position: int) -> int:
    """Number in place of a writer's position, for columns that plain stages before the stage at `position` prepare for
    its module.
    """
    return -2 - position


@dataclasses.dataclass(frozen=True)
class Vertex:
    """A leaf stage of a pipeline, with the column versions that it reads and its torch module.

    Attributes:
        position: the index among the graph's vertices, by which a version refers to its writer.
        path: the position in the nested pipelines.
        stage: the fitted Spark stage; None in a process without Spark.
        spelled: the inputs as spelled in the Params; a name with dots may be in backticks.
        lossInputs: the columns that only a loss at this stage would read.
        custom: whether it runs SQL, or is not one of Spark's stages.
        opaque: whether it may read and write any column.
        declares_all: whether it reads only the columns that it declares, and keeps all rows, as stages of Spark do.
        passed_over: whether Spark skips it if the data have no such input.
        own_attributes: whether the attributes of its outputs contain nothing about its inputs.
        makes_sparse: whether it writes sparse vectors, which may be very wide.
        removes: the columns that it drops.
        selects: whether it may drop columns that it doesn't name.
        rewritten: casefolded names of the columns that it drops and a later stage writes.
        why: the reason why it stays in Spark.
        sources: the versions that the Spark stage reads.
        parents: positions of the writers of all versions that it reads or may read.
        declaredParents: positions of the writers of the columns that it declares as inputs, or names in its statement,
            under the assumption that opaque stages overwrite no column that another stage declares as an output.
        module: the torch module; None if the stage stays in Spark.
        parametric: whether it has parameters that may train.
        prepared: the columns that plain stages before it make for its module.
        reads: the versions that its module reads.
        lossReads: the versions that only the loss reads.
        note: the assumption about the data under which the module is right.
    """

    position: int
    path: tuple[int, ...]
    uid: str
    stageClass: str
    stage: Any
    spelled: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    lossInputs: tuple[str, ...] = ()
    custom: bool = False
    opaque: bool = False
    declares_all: bool = True
    drops_rows: bool = False
    passed_over: bool = False
    own_attributes: bool = False
    makes_sparse: bool = False
    removes: tuple[str, ...] = ()
    selects: bool = False
    rewritten: frozenset[str] = frozenset()
    why: str = ""
    sources: tuple[Version, ...] = ()
    parents: frozenset[int] = frozenset()
    declaredParents: frozenset[int] = frozenset()
    module: StageModule | None = None
    parametric: bool = False
    prepared: tuple[str, ...] = ()
    reads: tuple[Version, ...] = ()
    lossReads: tuple[Version, ...] = ()
    note: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return tuple(map(jvm.unquoted, self.spelled))

    @property
    def statement(self) -> str:
        """SQL that an opaque stage runs, which may read and write any column; else empty."""
        return "".join(columns_of(self.stage, ("statement",))) if self.opaque else ""

    @property
    def margin_reads(self) -> tuple[Version, ...]:
        """Versions that the margin of its module takes as arguments: `reads` and, at the head, `lossReads`."""
        return (*self.reads, *self.lossReads)

    @property
    def may_drop(self) -> bool:
        """True if it stays in Spark and may drop rows."""
        return self.module is None and self.drops_rows

    def preparation(self) -> list[Any]:
        """Plain stages that make the `prepared` columns."""
        return self.module.preparation(self.stage) if isinstance(self.module, PreparedStage) else []

    def transform(self, df: DataFrame, *, is_last: bool = False) -> DataFrame:
        """The rows after the stage; columns that the stage drops without naming them are added back.

        Args:
            is_last: whether this stage runs last, after all later stages of the pipeline. If not, the dropped columns
                that a later stage writes again (`rewritten`) stay dropped.
        """
        out = self.stage.transform(df)
        return with_lost_columns(df, out, casefolding(), () if is_last else self.rewritten) if self.selects else out

    def in_spark(self, why: str) -> "Vertex":
        """The same stage, left in Spark."""
        return dataclasses.replace(self, module=None, parametric=False, prepared=(), reads=self.sources, why=why)


@dataclasses.dataclass(frozen=True)
class Graph:
    """The stages of a pipeline, in its order, linked by the column versions that they read and write.

    Attributes:
        casefold: function that maps all spellings of a column's name to the same text.
        holders: pipelines, searches and formulas, by the path of their stages, with uid and class name.
        head_position: the position of the head; None if there is none.
    """

    casefold: Callable[[str], str]
    vertices: tuple[Vertex, ...]
    holders: tuple[tuple[tuple[int, ...], tuple[str, str]], ...] = ()
    head_position: int | None = None

    @property
    def head(self) -> Vertex:
        """The predictor whose outputs enter the loss."""
        assert self.head_position is not None, "no predictor that a loss could train"
        return self.vertices[self.head_position]

    @functools.cached_property
    def modules(self) -> Mapping[int, StageModule]:
        """Torch modules by position."""
        return {v.position: v.module for v in self.vertices if v.module is not None}

    @functools.cached_property
    def writers(self) -> Mapping[str, int]:
        """Position of the last stage that declares a column as an output, by casefolded name of the column; without
        columns that a later stage drops.
        """
        removed = {self.casefold(c): v.position for v in self.vertices for c in v.removes}
        every = {self.casefold(c): v.position for v in self.vertices for c in v.outputs}
        return {c: writer for c, writer in every.items() if removed.get(c, -1) < writer}

    @functools.cached_property
    def above(self) -> Sequence[frozenset[int]]:
        """Positions, for each stage, of the stages from which a path of declared columns leads to it."""
        out: list[frozenset[int]] = []
        for vertex in self.vertices:
            out.append(vertex.declaredParents.union(*(out[p] for p in vertex.declaredParents)))
        return out

    def versions(self, i: int) -> tuple[Version, ...]:
        """Versions that stage i writes, in the order of its outputs."""
        return tuple((self.casefold(c), i) for c in self.vertices[i].outputs)

    def writes(self, i: int, names: Iterable[str]) -> bool:
        """True if stage i declares an output with one of these casefolded names."""
        return not set(names).isdisjoint(map(self.casefold, self.vertices[i].outputs))

    def passes_over(self, vertex: Vertex, read: Set[str]) -> set[Version]:
        """Inputs of a stage that the data may lack: Spark then skips them, and nothing reads the columns that the stage
        would make from them.

        Args:
            read: casefolded names of the columns that are read.
        """
        pairs = zip(vertex.sources, map(self.casefold, vertex.outputs), strict=True) if vertex.passed_over else ()
        return {version for version, written in pairs if written not in read}

    def ancestors(self, of: Iterable[int]) -> set[int]:
        """Positions of all stages on which one of these stages depends through columns."""
        out: set[int] = set()
        stack = [p for i in of for p in self.vertices[i].parents]
        while stack:
            i = stack.pop()
            if i not in out:
                out.add(i)
                stack += self.vertices[i].parents
        return out

    def reference(self) -> list[int]:
        """Positions of the stages that Spark runs to make the network's inputs, including translated stages that feed
        such stages.
        """
        if not self.modules:
            return []
        in_torch = (v for v in self.vertices if v.module is not None)
        read = {p for v in in_torch for _, p in (v.sources if v.prepared else v.reads) if p >= 0}
        made = read - set(self.modules)
        before = self.vertices[: max(self.modules)]
        made |= {v.position for v in before if v.may_drop}
        return sorted(made | self.ancestors(made))

    def formula_of(self, vertex: Vertex) -> str | None:
        """Uid of the RFormulaModel that contains a stage; None if there is none."""
        found = (
            uid for path, (uid, kind) in self.holders if kind == "RFormulaModel" and vertex.path[: len(path)] == path
        )
        return next(found, None)

    def predictors(self) -> list[int]:
        """Positions of the translated predictors; clusterings only if no predictor has a label."""
        found = {i: m for i, m in self.modules.items() if isinstance(m, Predictor)}
        return [i for i, m in found.items() if m.labelled] or list(found)

    def last_predictors(self) -> list[int]:
        """Positions of the translated predictors that no other predictor reads from."""
        found = self.predictors()
        return [i for i in found if not any(i in self.ancestors([j]) for j in found)]

    def float32_positions(self) -> set[int]:
        """Positions of the translated stages with float32 weights in Spark, and of all stages behind them."""
        out: set[int] = set()
        for i, module in self.modules.items():
            if module.float32 or any(p in out for _, p in self.vertices[i].reads):
                out.add(i)
        return out

    def makers(self, columns: Iterable[str], given: Iterable[str] | None = None) -> list[Vertex]:
        """Stages before the head that make these columns, directly or through other columns; the last stage first.

        Args:
            given: the columns of the data. A wanted column that is neither in the data nor a declared output must come
                from an opaque stage, such as an SQLTransformer, and through it possibly from any earlier stage; then
                all these are included. With None, opaque stages are not considered.
        """
        wanted, found = set(map(self.casefold, columns)), list[Vertex]()
        vertices, known = self.vertices[: self.head_position], set(map(self.casefold, given or ()))
        for vertex in reversed(vertices):
            before = vertices[: vertex.position]
            if given is not None and vertex.opaque:
                declared = known.union(self.casefold(c) for v in before for c in v.outputs)
                if any(declared.isdisjoint((name, name.partition(".")[0])) for name in wanted):
                    return [*found, vertex, *reversed(before)]
            if self.writes(vertex.position, wanted):
                found.append(vertex)
                wanted = wanted.difference(map(self.casefold, vertex.outputs)) | {name for name, _ in vertex.sources}
        return found

    def nulls_read(self, positions: Iterable[int]) -> list[Version]:
        """Versions written outside of these stages in which one of these stages distinguishes null from NaN."""
        inside = set(positions)
        reads = dict.fromkeys(v for i in inside if self.modules[i].takes_nulls for v in self.vertices[i].reads)
        # A stage may pass a null on to a stage that distinguishes it from NaN.
        while passed := [v for u in reads if u[1] in inside if (v := self.null_from(u)) is not None and v not in reads]:
            reads |= dict.fromkeys(passed)
        return [v for v in reads if v[1] not in inside]

    def null_from(self, version: Version) -> Version | None:
        """The input whose nulls make this column null: the offset of a generalized linear model; None for other
        columns.
        """
        reads = self.vertices[version[1]].reads
        has_offset = isinstance(self.modules.get(version[1]), GeneralizedLinearRegression) and len(reads) > 1
        return reads[1] if has_offset else None

    def name(self, version: Version) -> str:
        """Name of the column, spelled as in the stage that writes it, or that reads it first."""
        name, producer = version
        written = self.vertices[producer].outputs if producer >= 0 else ()
        read = (c for v in self.vertices for c in (*v.inputs, *v.lossInputs, *v.prepared))
        return next((c for c in (*written, *read) if self.casefold(c) == name), name)

    def in_struct(self, version: Version) -> bool:
        """True if it is the field of a struct, `struct.field`; a column with such a name is read in backticks."""
        name, producer = version
        if "." not in name or (producer >= 0 and self.writes(producer, [name])):
            return False
        readers = [c for v in self.vertices for c, read in zip(v.spelled, v.sources, strict=True) if read == version]
        return bool(readers) and all(jvm.unquoted(c) == c for c in readers)

    def select(self, names: Iterable[Any], option: str) -> set[int]:
        """Positions of the stages with this uid, class name or output column; for a pipeline or search, of all stages
        inside it.
        """
        out: set[int] = set()
        for wanted in [names] if isinstance(names, (str, Transformer)) else names:
            name = wanted if isinstance(wanted, str) else wanted.uid
            match = {
                v.position
                for v in self.vertices
                if name in (v.uid, v.stageClass)
                or self.writes(v.position, [self.casefold(name)])
                or any(name in names and v.path[: len(path)] == path for path, names in self.holders)
            }
            if not match:
                known = {n for v in self.vertices for n in (v.uid, v.stageClass, *v.outputs)}
                raise InputError(
                    f"{option}={name!r} is no uid, class or output column of a stage. {did_you_mean(name, known)}"
                )
            out |= match
        return out

    def positions_to_unfreeze(self, unfreeze: Iterable[str]) -> dict[str, set[int]]:
        """Positions of the stages that each name `<uid, class name or output column>.<parameter>` refers to."""
        for name in unfreeze:
            if meant := {
                f"{self.vertices[i].stageClass}.{name}"
                for i, m in self.modules.items()
                if name in {*dict(m.named_parameters()), *m.on_request()}
            }:
                raise InputError(
                    f"unfreeze={name!r} names a parameter without its stage. Did you mean "
                    f"{' or '.join(map(repr, sorted(meant)))}?"
                )
        return {name: self.select([name.rpartition(".")[0] or name], "unfreeze") for name in unfreeze}

    def with_vertices(self, new: Mapping[int, Vertex]) -> "Graph":
        """The graph with other vertices at these positions."""
        vertices = tuple(new.get(v.position, v) for v in self.vertices)
        return dataclasses.replace(self, vertices=vertices) if new else self

    def with_stages_in_spark(self, positions: Iterable[int], why: str) -> "Graph":
        """The graph with these stages left in Spark, for the reason `why`."""
        return self.with_vertices({i: self.vertices[i].in_spark(why) for i in positions})

    def without_spark(self) -> "Graph":
        """The same graph without Spark stages, for processes without a session; it can compute, but not write back."""
        return self.with_vertices({v.position: dataclasses.replace(v, stage=None) for v in self.vertices})
