"""Compiler from a fitted pipeline to its schedule: the steps that the wanted columns need, and the forms in which each
column is read (numbers, null flags or Python objects).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyspark.ml.feature import StringIndexerModel
from pyspark.ml.wrapper import JavaWrapper
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from sparkdiff import jvm
from sparkdiff.errors import InputError, check_dataframe, did_you_mean
from sparkdiff.jvm.java_objects import schema_after
from sparkdiff.jvm.java_texts import java_release
from sparkdiff.pipeline.graph import Graph, Version, Vertex
from sparkdiff.pipeline.nesting import Path, flatten, with_leaves
from sparkdiff.pipeline.network import note_readers
from sparkdiff.pipeline.schema import SchemaOrRows, fields_by_name, is_plain, known_fields
from sparkdiff.pipeline.translation import graph_of, with_modules
from sparkdiff.serving.scorer.java_text import NotServedError
from sparkdiff.serving.scorer.requests import InputColumn
from sparkdiff.serving.scorer.schedule import (
    NOWHERE,
    InputPlaces,
    ObjectsStep,
    OutputColumn,
    Schedule,
    Step,
    TextStep,
    TorchStep,
)
from sparkdiff.serving.scorer.text import SERVED
from sparkdiff.serving.scorer.text.base import SKIPS, StagePart, TextInputs
from sparkdiff.serving.scorer.text.counts import WordShares
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import class_name
from sparkdiff.stages.clustering import Clusters
from sparkdiff.stages.embedding import Word2Vec
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.imputing import Imputer
from sparkdiff.stages.inputs import PreparedStage
from sparkdiff.stages.recommendation import ALS

WAYS = {
    "SQLTransformer": "compute its columns before, and leave it out of the pipeline",
    "RFormulaModel": "build the Scorer where sparkdiff has access to the JVM, and save it",
}
OTHER_WAY = (
    "leave it out of the pipeline, name only columns that don't need it (outputCols=), or let Spark transform the rows"
)


@dataclass(frozen=True)
class Unit:
    """A part of the pipeline that can be computed alone: a translated stage, or a part of a stage in Python."""

    vertex: Vertex
    reads: tuple[Version, ...]
    writes: tuple[Version, ...]
    part: StagePart | None = None


DROPPING = ("pyspark.ml.feature.StringIndexerModel", "pyspark.ml.feature.VectorAssembler")
"""Classes that with handleInvalid='skip' drop the rows on which they fail with handleInvalid='error'."""
NOT_SERVED = {
    "BisectingKMeansModel": "Spark does not show the tree of centres that it descends",
    "BucketedRandomProjectionLSHModel": "its hash values serve joins of whole tables, which stay in Spark",
    "DistributedLDAModel": "its topics are stored in a distributed graph",
    "FPGrowthModel": "it compares the sets of a row with all association rules, which only Spark can read",
    "LocalLDAModel": "it infers the topics of a row by iterations from random numbers of Java",
    "MinHashLSHModel": "its hash values serve joins of whole tables, which stay in Spark",
    "SQLTransformer": "its statement is SQL",
}
"""Classes of MLlib that are refused with any settings, and the reasons; all others are accepted, at least with some."""


def refusal_error(vertex: Vertex, why: str) -> InputError:
    name = vertex.stageClass if is_plain(vertex.stage) else ""  # a user's class may have the name of one of Spark's
    way, why = WAYS.get(name, OTHER_WAY), NOT_SERVED.get(name, why)
    return InputError(f"{vertex.uid} ({vertex.stageClass}) cannot be computed without Spark: {why}; {way}")


def compile_schedule(
    model: Any, schema: SchemaOrRows, outputCols: Iterable[str] | None, javaVersion: str | None
) -> Schedule:
    """Schedule of a fitted pipeline.

    Raises:
        InputError: the pipeline isn't fitted, no stage writes one of `outputCols`, there is no such version of Java,
            Spark refuses the schema's type of a column, a stage may write any column or drop rows (unless `_refusing`
            copies it), or a stage that a wanted column needs cannot be computed without Spark. For a refused stage the
            message names the stage, its class, the reason and how to fix it.
    """
    if schema is not None and not isinstance(schema, StructType):
        check_dataframe("schema, if not a StructType,", schema)
    refusing = _refusing(model)
    graph = with_modules(graph_of(with_leaves(model, refusing), schema), schema)
    for vertex in graph.vertices:
        if vertex.opaque or vertex.drops_rows:
            raise refusal_error(vertex, SKIPS if _skips(vertex.stage) else vertex.why)
    dropping = [v for v in graph.vertices if v.path in refusing]
    return _Compiler(graph, schema, java_release(javaVersion)).compile(_output_versions(graph, outputCols), dropping)


def _refusing(model: Any) -> dict[Path, Any]:
    """Copies of the stages of DROPPING that drop invalid rows, by path in the pipeline; the copies raise an error on just
    these rows instead.
    """
    return {
        path: stage.copy({stage.handleInvalid: "error"})
        for path, stage in flatten(model)
        if class_name(stage) in DROPPING
        and _skips(stage)
        # A NaN is dropped, but "NaN" may be among the labels.
        and not any("NaN" in labels for labels in getattr(stage, "labelsArray", ()))
    }


def _skips(stage: Any) -> bool:
    return "skip" in (stage.getOrDefault(p) for p in stage.params if p.name == "handleInvalid" and stage.isDefined(p))


def _output_versions(graph: Graph, outputCols: Iterable[str] | None) -> list[Version]:
    names = {graph.casefold(c): i for c, i in graph.writers.items()}
    if outputCols is None:
        return _default(graph)
    wanted = []
    for c in [outputCols] if isinstance(outputCols, str) else outputCols:
        if not isinstance(c, str) or graph.casefold(c) not in names:
            raise InputError(f"no stage writes column {c!r}. {did_you_mean(str(c), _column_names(graph))}")
        version = (graph.casefold(c), names[graph.casefold(c)])
        wanted += [version] if version not in wanted else []
    if not wanted:
        raise InputError(f"outputCols is empty. Known: {', '.join(_column_names(graph))}.")
    return wanted


def _column_names(graph: Graph) -> list[str]:
    return [graph.name(version) for version in graph.writers.items()]


def _default(graph: Graph) -> list[Version]:
    """Columns of the predictors and of the stages behind them; without a predictor, the columns that no stage reads."""
    last = list(graph.writers.items())
    predictors = set(graph.predictors())
    behind = {v.position for v in graph.vertices if predictors & graph.ancestors([v.position])}
    found = [version for version in last if version[1] in predictors | behind]
    if not found:
        read = {v for vertex in graph.vertices for v in vertex.sources}
        found = [v for v in last if v not in read and not graph.vertices[v[1]].passed_over] or last
    if not found:
        raise InputError("the pipeline writes no column")
    return found


@dataclass
class _Compiler:
    """Gives each value its place, an index in the list of a request's values, and collects the steps."""

    graph: Graph
    schema: SchemaOrRows
    java: int
    places: dict[tuple[Version, str], int] = field(default_factory=dict)
    entries: dict[Version, dict[str, int]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    kinds: dict[Version, str] = field(default_factory=dict)
    exact: float = field(init=False)

    def compile(self, wanted: Sequence[Version], dropping: Sequence[Vertex] = ()) -> Schedule:
        """Schedule of the `wanted` columns, and of all that the `dropping` stages need to decide which rows they drop."""
        told = [version for v in dropping for version in self.graph.versions(v.position)]
        units = self._needed_units([*wanted, *told])
        self.exact = note_readers(self.graph, dict.fromkeys(unit.vertex.position for unit in units))
        self._check_types({unit.vertex.position for unit in units})
        for unit in units:
            self._add(unit)
        outputs = tuple(self._output(v) for v in wanted)
        entries = tuple(InputPlaces(self._source(v), **places) for v, places in self.entries.items())
        notes = dict.fromkeys(unit.vertex.note for unit in units if unit.vertex.note)
        sensitive = self.graph.casefold is str
        drop = frozenset(v.uid for v in dropping)
        return Schedule(entries, tuple(self.steps), outputs, len(self.places), sensitive, tuple(notes), drop)

    def _check_types(self, needed: Collection[int]) -> None:
        """Raise InputError if Spark refuses the schema's type of a column that one of these stages reads."""
        schema: Any = self.schema.schema if isinstance(self.schema, DataFrame) else self.schema
        if schema is None or not jvm.has_constructors():
            return
        for vertex in self.graph.vertices:
            dropped = {*map(self.graph.casefold, vertex.removes)}
            schema = StructType([f for f in schema.fields if self.graph.casefold(f.name) not in dropped])
            if vertex.position not in needed:
                continue
            if not isinstance(vertex.stage, JavaWrapper):
                return
            try:
                schema = schema_after(vertex.stage, schema, self.graph.casefold)
            except jvm.SparkError as e:
                raise InputError(
                    f"{vertex.uid} ({vertex.stageClass}) reads {', '.join(map(repr, vertex.inputs))}, whose type Spark refuses: "
                    f"{jvm.cause(e)}; cast the column, and name its new type in the schema"
                ) from e

    # Which ones -----------------------------------------------------------------------------------------------------

    def _needed_units(self, wanted: Sequence[Version]) -> list[Unit]:
        """Units that these columns need, in order."""
        made: dict[int, dict[Version, Unit]] = {}
        found: dict[Version, Unit] = {}
        stack = list(wanted)
        while stack:
            version = stack.pop()
            if version[1] == -1 or version in found:
                continue
            position = version[1] if version[1] >= 0 else -2 - version[1]
            if position not in made:
                made[position] = {w: u for u in self._units(self.graph.vertices[position]) for w in u.writes}
            unit = made[position][version]
            found.update(dict.fromkeys(unit.writes, unit))
            stack += unit.reads
        unique = {id(u): u for u in found.values()}.values()
        # A Word2VecModel's words are counted in front of it.
        return sorted(unique, key=lambda u: (u.vertex.position, u.writes[0][1] >= 0, u.reads))

    def _units(self, vertex: Vertex) -> list[Unit]:
        writes = self.graph.versions(vertex.position)
        if isinstance(vertex.module, PreparedStage):
            if not isinstance(vertex.module, Word2Vec):
                raise refusal_error(vertex, f"Spark prepares its input ({vertex.module.preparation_note})")
            counting = StagePart(WordShares(vertex.module.words), (0,), (0, 1))
            return [Unit(vertex, vertex.sources, vertex.reads, counting), Unit(vertex, vertex.reads, writes)]
        if vertex.module is not None:
            return [Unit(vertex, vertex.reads, writes)]
        kind = SERVED.get(class_name(vertex.stage))
        if kind is None:
            raise refusal_error(vertex, vertex.why)
        labels = tuple(map(self._labels, vertex.sources)) if vertex.stageClass == "IndexToString" else ()
        try:
            parts = kind.of(vertex.stage, TextInputs(vertex.inputs, labels, self.java))
        except NotServedError as e:
            raise refusal_error(vertex, str(e)) from e
        return [
            Unit(vertex, tuple(vertex.sources[i] for i in p.inputs), tuple(writes[i] for i in p.outputs), p)
            for p in parts
        ]

    def _labels(self, version: Version) -> Sequence[str] | None:
        """Labels of an index column, from the StringIndexerModel that writes it or from the column's metadata; None if
        unknown.
        """
        writer = self.graph.vertices[version[1]] if version[1] >= 0 else None
        if writer is not None and isinstance(writer.stage, StringIndexerModel):
            at = list(map(self.graph.casefold, writer.outputs)).index(version[0])
            unknown = ["__unknown"] if writer.stage.getHandleInvalid() == "keep" else []
            return [*writer.stage.labelsArray[at], *unknown]
        known = known_fields(self.graph, {version}, self.schema).get(version)
        attributes = ((known.metadata if known is not None else None) or {}).get("ml_attr", {})
        return attributes.get("vals")

    # Where to -------------------------------------------------------------------------------------------------------

    def _place(self, version: Version, form: str) -> int:
        return self.places.setdefault((version, form), len(self.places))

    def _add(self, unit: Unit) -> None:
        vertex = unit.vertex
        if unit.part is None:
            self._add_module(unit)
            return
        kind, reads = unit.part.stage.kind, tuple(self._objects(v, vertex) for v in unit.reads)
        writes = tuple(self._place(v, "objects" if kind else "numbers") for v in unit.writes)
        columns = tuple(map(self.graph.name, unit.reads))
        if kind:
            self.kinds.update(dict.fromkeys(unit.writes, kind))
        self.steps.append(TextStep(vertex.uid, columns, reads, writes, unit.part.stage))

    def _add_module(self, unit: Unit) -> None:
        vertex, module = unit.vertex, unit.vertex.module
        assert module is not None
        reads = tuple(self._numbers(v, vertex) for v in unit.reads)
        nulls = tuple(map(self._null, unit.reads)) if module.takes_nulls else None
        writes = tuple(self._place(v, "numbers") for v in unit.writes)
        source = self.graph.null_from(unit.writes[0])
        passed = NOWHERE if source is None else self._null(source)
        writes_null = module.writes_null or passed != NOWHERE
        flags = tuple(self._place(v, "null") for v in unit.writes) if writes_null else ()
        self.kinds.update(zip(unit.writes, self._kinds(vertex), strict=False))
        wanted, or_more = self._width(unit)
        columns = tuple(map(self.graph.name, unit.reads))
        module.requires_grad_(False).eval()
        self.steps.append(TorchStep(vertex.uid, columns, reads, writes, module, nulls, flags, wanted, or_more, passed))

    def _width(self, unit: Unit) -> tuple[int, bool]:
        """Number of entries that a row of the first input must have (0 if any number), and whether it may have more."""
        module, vertex = unit.vertex.module, unit.vertex
        if not isinstance(module, Trees):
            return (module.fitted_width() if module is not None and len(unit.reads) == 1 else 0), False
        assembled = any(
            isinstance(self.graph.vertices[i].module, VectorAssembler) for i in self.graph.ancestors([vertex.position])
        )
        # A number in place of a vector would shift the features behind it.
        if assembled and (features := int(getattr(vertex.stage, "numFeatures", 0))) > 0:
            return features, False
        return module.router.width, True

    def _kinds(self, vertex: Vertex) -> tuple[str, ...]:
        """Spark types of the outputs of a translated stage."""
        module = vertex.module
        if isinstance(module, Clusters):
            return tuple("int" if c == "predictionCol" else "double" for c in module.shown)
        if isinstance(module, ALS):
            return ("float",)
        if isinstance(module, Imputer):
            small = [v[1] == -1 and self._source(v).kind in ("tinyint", "smallint", "int") for v in vertex.reads]
            return tuple(
                ("int" if s else "bigint") if w else "float" if f else "double"
                for w, f, s in zip(module.whole, module.floats, small, strict=True)
            )
        return tuple("double" for _ in vertex.outputs)

    def _numbers(self, version: Version, reader: Vertex) -> int:
        """Place of a column's numbers."""
        if version[1] == -1:
            return self._entry(version, "numbers")
        if (version, "numbers") not in self.places:
            raise refusal_error(reader, f"column {self.graph.name(version)!r}, which it reads, holds text")
        return self._place(version, "numbers")

    def _null(self, version: Version) -> int:
        if version[1] == -1:
            return self._entry(version, "null")
        return self.places.get((version, "null"), NOWHERE)

    def _objects(self, version: Version, reader: Vertex) -> int:
        """Place of a column's objects; adds a step that makes them if the column is computed and has only numbers yet."""
        if version[1] == -1:
            return self._entry(version, "objects")
        if (version, "objects") not in self.places:
            place, null, kind = self._numbers(version, reader), self._null(version), self.kinds.get(version, "double")
            to = self._place(version, "objects")
            columns = (self.graph.name(version),)
            self.steps.append(ObjectsStep(reader.uid, columns, (place,), (to,), null, kind))
        return self._place(version, "objects")

    def _entry(self, version: Version, form: str) -> int:
        """Place of a source column in this form."""
        places = self.entries.setdefault(version, {})
        if form == "null":
            self._entry(version, "numbers")
        places[form] = self._place(version, form)
        return places[form]

    def _source(self, version: Version) -> InputColumn:
        name = self.graph.name(version)
        path = tuple(name.split(".")) if self.graph.in_struct(version) else (name,)
        schema = self.schema.schema if isinstance(self.schema, DataFrame) else self.schema
        field = fields_by_name(schema, self.graph.casefold).get(version[0]) if isinstance(schema, StructType) else None
        return InputColumn(name, path, "" if field is None else field.dataType.simpleString(), self.exact)

    def _output(self, version: Version) -> OutputColumn:
        form = "numbers" if (version, "numbers") in self.places else "objects"
        name = self.graph.name(version)
        return OutputColumn(name, self._place(version, form), self._null(version), self.kinds.get(version, "double"))


def warm(schedule: Schedule) -> None:
    """Check the trees, and fill the caches of their modules before threads call them concurrently.

    Raises:
        InputError: trees, which may come from a file, are invalid.
    """
    modules = (m for step in schedule.steps if isinstance(step, TorchStep) for m in step.module.modules())
    with torch.no_grad():
        for module in modules:
            if isinstance(module, Trees):
                module.check()
                module.route(torch.zeros(0, 1, dtype=torch.float64))
