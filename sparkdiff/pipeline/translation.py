"""The steps from a fitted pipeline to its graph: stages linked by the column versions they read, then torch modules.

The plan of a transform shows which columns SQL and stages that are not Spark's change.
"""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pyspark.ml import UnaryTransformer
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql.types import StructField

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm.transform_changes import changes_between
from sparkdiff.pipeline.column_names import casefolding
from sparkdiff.pipeline.graph import Graph, Version, Vertex, in_front_of
from sparkdiff.pipeline.nesting import flatten, holders
from sparkdiff.pipeline.schema import SchemaOrRows, frame_of, is_plain, known_fields
from sparkdiff.stages.base import (
    REGISTRY,
    UNTRANSLATED,
    StageModule,
    UntranslatedFacts,
    class_name,
    columns_of,
)
from sparkdiff.stages.inputs import UNDECIDED, Field, FieldReader, PreparedStage, StaysInSparkError
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.referenced_stages import INPUTS, OUTPUTS


def translated_graph(
    model: Any, data: SchemaOrRows = None, *, reference: Iterable[Any] = (), unfreeze: Iterable[str] = ()
) -> Graph:
    """Graph of a fitted pipeline or stage, with a module for each stage that torch can compute from available inputs.

    Args:
        data: the data or their schema, which decides the computation of a few stages.
        reference: stages to leave in Spark.
        unfreeze: parameters that train only on request, named as in `Graph.positions_to_unfreeze`.
    """
    graph = unfrozen(with_modules(graph_of(model, data), data), unfreeze)
    graph = graph.with_stages_in_spark(graph.select(reference, "reference"), "left in Spark on request")
    return without_unreachable(graph)


def with_modules(graph: Graph, data: SchemaOrRows) -> Graph:
    """The graph with a module for each stage with a translation; a few translations depend on the data."""
    classes = {v.position: cls for v in graph.vertices if not v.why and (cls := REGISTRY.get(class_name(v.stage)))}
    waiting = {
        i: cls
        for i, cls in classes.items()
        if issubclass(cls, FieldReader) and cls.wants_fields(graph.vertices[i].stage)
    }
    new = {
        i: _with_module(graph, i, cls.from_spark(graph.vertices[i].stage))
        for i, cls in classes.items()
        if i not in waiting
    }
    graph = graph.with_vertices(new)
    wanted = {version for i in waiting for version in graph.vertices[i].sources}
    known = known_fields(graph, wanted, data) if waiting else {}
    decided = {}
    for i in waiting:
        vertex = graph.vertices[i]
        fields = [field_of(known[v], _storage(graph, v)) if v in known else None for v in vertex.sources]
        try:
            module = waiting[i].from_fields(vertex.stage, fields)
        except StaysInSparkError as e:
            decided[i] = vertex.in_spark(str(e))
            continue
        note = _taken_for_granted(graph, i, module) if data is None else ""
        decided[i] = dataclasses.replace(_with_module(graph, i, module), note=note)
    return graph.with_vertices(decided)


def _with_module(graph: Graph, i: int, module: StageModule) -> Vertex:
    vertex = graph.vertices[i]
    prepared = module.prepared_columns(vertex.stage) if isinstance(module, PreparedStage) else ()
    return dataclasses.replace(
        vertex,
        module=module,
        parametric=any(p.requires_grad for p in module.parameters()),
        prepared=prepared,
        reads=tuple((graph.casefold(c), in_front_of(i)) for c in prepared) or vertex.sources,
    )


def _storage(graph: Graph, version: Version) -> str:
    """Form in which Spark stores the vectors of a version (`StageModule.storage`); "" without a translated writer."""
    return REGISTRY.get(class_name(graph.vertices[version[1]].stage), StageModule).storage if version[1] >= 0 else ""


def _taken_for_granted(graph: Graph, i: int, module: FieldReader) -> str:
    """Text of what is assumed about the data until they are seen, and on which the module depends; empty if nothing is
    assumed.
    """
    above = [graph.vertices[j] for j in (i, *sorted(graph.ancestors([i])))]
    read = (version for v in above if not v.own_attributes for version in v.sources)
    columns = dict.fromkeys(graph.name(version) for version in read if version[1] == -1)
    return f"whether {', '.join(columns)} {module.undecided} is {UNDECIDED}" if columns else ""


def field_of(field: StructField, storage: str = "") -> Field:
    """Facts about an input column that decide some translations."""
    attributes = (field.metadata or {}).get("ml_attr")
    return Field(isinstance(field.dataType, VectorUDT), attributes, storage, field.dataType.simpleString())


def unfrozen(graph: Graph, names: Iterable[str]) -> Graph:
    """The graph in which these parameters, which train only on request, may train.

    Raises:
        InputError: a name does not name such a parameter.
    """
    for name, found in graph.positions_to_unfreeze(names).items():
        stage, _, wanted = name.rpartition(".")
        for i in found:
            vertex = graph.vertices[i]
            module = vertex.module if stage else None
            if module is not None and wanted in module.on_request():
                module.unfreeze(wanted)
                graph = graph.with_vertices({i: dataclasses.replace(vertex, parametric=True)})
            elif module is not None and wanted in (denied := module.why_frozen()):
                raise InputError(f"unfreeze={name!r}: {vertex.uid} can't train it: {denied[wanted]}")
            elif module is None or not any(n == wanted and p.requires_grad for n, p in module.named_parameters()):
                raise not_on_request(name, vertex)
    return graph


def not_on_request(name: str, vertex: Vertex) -> InputError:
    """Error for a name in `unfreeze` that does not name a parameter that trains only on request."""
    own = sorted(vertex.module.on_request()) if vertex.module else ()
    known = ", ".join(f"{vertex.stageClass}.{n}" for n in own)
    return InputError(
        f"unfreeze={name!r} must name a parameter that trains on request only, as <stage>.<parameter>; "
        f"those of {vertex.uid} are: {known or 'none'}"
    )


def without_unreachable(graph: Graph) -> Graph:
    """The graph in which a stage stays in Spark if a stage in Spark overwrites its input before the network, which runs
    after these stages, could read it.
    """
    while True:
        reference = graph.reference()
        reasons = ((i, why) for i in sorted(graph.modules) if (why := _why_unreachable(graph, reference, i)))
        i, why = next(reasons, (None, ""))
        if i is None:
            return graph
        graph = graph.with_stages_in_spark([i], why)


def _why_unreachable(graph: Graph, reference: Sequence[int], i: int) -> str:
    """Reason why a translated stage cannot read a column: a stage in Spark overwrites it. Empty if none does."""
    for name, producer in graph.vertices[i].reads:
        there = i if producer == in_front_of(i) else producer
        later = (r for r in reversed(reference) if r > there and producer not in graph.modules)
        last = next((v for r in later if (v := graph.vertices[r]).opaque or graph.writes(r, [name])), None)
        if last is not None:
            how = " and may rewrite it" if last.opaque else ", rewrites it"
            return f"reads {name!r} before {last.uid}, which stays in Spark{how}"
    return ""


def graph_of(model: Any, data: SchemaOrRows = None) -> Graph:
    """The graph of a fitted pipeline or stage, without torch modules.

    Args:
        data: the data or their schema, from which it is read which columns an SQLTransformer or a stage of one's own changes;
            without them, such a stage counts as one that may change any column.

    Raises:
        InputError: a stage isn't fitted, or its Spark session has ended.
    """
    casefold = casefolding()
    found = [vertex_of(i, path, stage) for i, (path, stage) in enumerate(flatten(model))]
    if data is not None and any(v.opaque for v in found):
        found = _with_effects(found, data, casefold)
    held = tuple((path, (holder.uid, type(holder).__name__)) for path, holder in holders(model))
    return without_ambiguous(Graph(casefold, tuple(_with_links(found, casefold)), held))


def vertex_of(position: int, path: tuple[int, ...], stage: Any) -> Vertex:
    """A vertex for a stage, with the columns and facts that it declares."""
    bare = Vertex(position, path, stage.uid, type(stage).__name__, stage)
    cls = REGISTRY.get(class_name(stage))
    return _in_spark(bare) if cls is None else _translatable(bare, cls)


def _translatable(bare: Vertex, cls: type[StageModule]) -> Vertex:
    stage = bare.stage
    jvm.check_alive(stage)
    loss_inputs = cls.loss_inputs(stage) if issubclass(cls, Predictor) else ()
    return dataclasses.replace(
        bare,
        why=cls.refuses(stage) or "",
        spelled=cls.inputs(stage),
        outputs=cls.outputs(stage),
        drops_rows=_skips(stage),
        lossInputs=tuple(map(jvm.unquoted, loss_inputs)),
        own_attributes=cls.own_attributes,
    )


def _in_spark(bare: Vertex) -> Vertex:
    stage = bare.stage
    if (selection := jvm.selection_of(stage)) is not None:
        removes = tuple(c for c in selection.columns if c not in selection.last)
        return dataclasses.replace(bare, why="it drops columns or puts them last, and computes none", removes=removes)
    known = UNTRANSLATED.get(class_name(stage)) or UntranslatedFacts(foreign(stage) or "no translation to torch")
    plain, computes = is_plain(stage), _only_computes(stage)
    if plain:
        inputs, outputs = columns_of(stage, INPUTS), columns_of(stage, OUTPUTS)
    elif computes:
        inputs, outputs = columns_of(stage, ("inputCol",)), columns_of(stage, ("outputCol",))
    else:
        inputs, outputs = _declared_columns(stage, INPUTS), ()
    return dataclasses.replace(
        bare,
        why=known.reason,
        spelled=inputs,
        outputs=outputs,
        opaque=not outputs,
        custom=not plain or not outputs,
        declares_all=plain or computes,
        drops_rows=not outputs or _skips(stage),
        passed_over=known.passed_over,
        own_attributes=known.own_attributes,
        makes_sparse=known.makes_sparse,
    )


def _skips(stage: Any) -> bool:
    """True if a stage drops rows with invalid values, or with users and items that it doesn't know."""
    return any(
        stage.hasParam(name) and stage.isDefined(name) and stage.getOrDefault(name) == value
        for name, value in (("handleInvalid", "skip"), ("coldStartStrategy", "drop"))
    )


def foreign(stage: Any) -> str | None:
    """Reason why a stage that is not one of Spark's stays in Spark; None for a stage of Spark."""
    if is_plain(stage):
        return None
    whose = type(stage).__module__.partition(".")[0]
    if callable(getattr(stage, "cpu", None)):
        return f"{whose}'s model: convert it first, its .cpu() returns Spark's own model"
    return _custom_reason(stage, f"it {'only computes its output column' if _only_computes(stage) else ANY}")


def _with_links(vertices: Sequence[Vertex], casefold: Callable[[str], str]) -> Iterator[Vertex]:
    """Yield the stages with the versions that they read, and with the positions of the stages that wrote these."""
    current: dict[str, int] = {}
    declared: dict[str, int] = {}  # the same, if no stage wrote more than it declares
    unknown = -1  # the stage that may have written columns that no later stage has
    for i, vertex in enumerate(vertices):
        sources = tuple((casefold(jvm.unquoted(c)), _writer(c, current, casefold, unknown)) for c in vertex.spelled)
        parents = {p for _, p in sources} if vertex.declares_all else set(range(i))
        by_name = {_writer(c, declared, casefold, unknown) for c in vertex.spelled}
        if statement := casefold(vertex.statement):
            by_name = {declared[name] for name in _names_in(statement, declared)} | {unknown}
        yield dataclasses.replace(
            vertex,
            sources=sources,
            reads=sources,
            lossReads=tuple((casefold(c), current.get(casefold(c), unknown)) for c in vertex.lossInputs),
            parents=frozenset(range(i) if vertex.opaque else parents - {-1}),
            declaredParents=frozenset(range(i) if vertex.opaque and not statement else by_name - {-1}),
        )
        if vertex.opaque:
            unknown, current = i, {}
        current |= dict.fromkeys(map(casefold, vertex.outputs), i)
        declared |= dict.fromkeys(map(casefold, vertex.outputs), i)


def _writer(spelled: str, known: Mapping[str, int], casefold: Callable[[str], str], unknown: int) -> int:
    """Position of the stage that wrote a column or, for a field `s.b` of a struct, wrote the struct; `unknown` if no
    known stage did.
    """
    name = casefold(jvm.unquoted(spelled))
    while name not in known and "." in name and jvm.unquoted(spelled) == spelled:
        name = name.rpartition(".")[0]
    return known.get(name, unknown)


def without_ambiguous(graph: Graph) -> Graph:
    """The graph in which a stage that reads the field `s.b` of a struct stays in Spark if a column of that name is
    read too: tensors are keyed by name.
    """
    read = [(v, c, version) for v in graph.vertices for c, version in zip(v.spelled, v.sources, strict=True)]
    columns: set[Version] = {version for _, c, version in read if jvm.unquoted(c) != c}
    for vertex, c, version in read:
        if version in columns and "." in c and jvm.unquoted(c) == c:
            why = (
                f"reads the field {c!r} of a struct, and another stage reads a column of that name: rename one of them"
            )
            graph = graph.with_stages_in_spark([vertex.position], why)
    return graph


ANY = "may read and change any column and drop rows"


def _with_effects(vertices: Sequence[Vertex], data: SchemaOrRows, casefold: Callable[[str], str]) -> list[Vertex]:
    """The stages of a pipeline, in which each opaque stage (it may change any column) gets the inputs, outputs and
    drops that it has on these data, as far as its plan shows them.

    Each stage up to the last opaque one transforms the data for this; Spark's own stages run no job for that.

    Args:
        data: the rows, or their schema. With only a schema, a stage that is not Spark's is trusted only in the outputs
            that it declares, because its code may depend on the rows.
    """
    out, last = list(vertices), max((v.position for v in vertices if v.opaque), default=-1)
    # A user's stage may raise any error here; it will raise it again when it runs.
    with contextlib.suppress(Exception), jvm.suppress_error_logs():
        frame = frame_of(data)
        for vertex in vertices[: last + 1]:
            after = vertex.stage.transform(frame)
            after.schema  # noqa: B018  # Spark Connect analyses nothing until then
            if vertex.opaque:
                known = _with_plan_columns(vertex, frame, after, casefold)
                trusted = isinstance(data, DataFrame) or is_plain(vertex.stage)
                out[vertex.position] = (
                    known if known and trusted else _with_declared_outputs(vertex, known, frame, after, casefold)
                )
            frame = after
    later: set[str] = set()  # columns that later stages write: if dropped before, they must not be carried along
    for i in reversed(range(len(out))):
        rewritten = later.intersection(map(casefold, out[i].removes))
        later.update(map(casefold, out[i].outputs))
        out[i] = dataclasses.replace(out[i], rewritten=frozenset(rewritten)) if rewritten else out[i]
    return out


def _with_declared_outputs(
    vertex: Vertex, known: Vertex | None, before: DataFrame, after: DataFrame, casefold: Callable[[str], str]
) -> Vertex:
    """The stage with the outputs that it declares, if the schema shows no other change; else unchanged.

    Args:
        known: the stage as its plan for an empty DataFrame describes it; None if that plan does not show its effects.
    """
    stage = vertex.stage
    declared = _declared_columns(stage, OUTPUTS)
    own = {*map(casefold, declared)}
    others = [[f for f in df.schema.fields if casefold(f.name) not in own] for df in (before, after)]
    if is_plain(stage) or not own or others[0] != others[1] or (known and not own >= {*map(casefold, known.outputs)}):
        return vertex
    why = f"it is assumed to change {', '.join(declared)} only, which it declares, and may drop rows"
    return dataclasses.replace(vertex, opaque=False, outputs=declared, why=_custom_reason(stage, why))


def _with_plan_columns(
    vertex: Vertex, before: DataFrame, after: DataFrame, casefold: Callable[[str], str]
) -> Vertex | None:
    """The stage with the columns that it reads, writes and drops; None if its plan does not show them."""
    changes = changes_between(before, after)
    if changes is None:
        return None
    new = Counter(map(casefold, after.columns)) - Counter(map(casefold, changes.passed))
    writes = tuple(dict.fromkeys(c for c in after.columns if casefold(c) in new))
    removes = tuple(c for c in before.columns if casefold(c) not in {*map(casefold, after.columns)})
    reads = {casefold(c) for c in (*(changes.reads or ()), *map(jvm.unquoted, vertex.spelled))}
    reads |= _required_columns(vertex.stage, [c for c in before.columns if casefold(c) not in reads], before, casefold)
    does = " and ".join(
        (
            f"computes {', '.join(writes) or 'no column'}",
            *(["drops columns"] if removes else []),
            *(["may drop rows"] if changes.drops_rows else []),
        )
    )
    return dataclasses.replace(
        vertex,
        opaque=False,
        declares_all=changes.reads is not None,
        drops_rows=changes.drops_rows,
        outputs=writes,
        spelled=tuple(jvm.quoted(c) if "." in c else c for c in before.columns if casefold(c) in reads),
        removes=removes,
        selects=True,
        why=f"its statement {does}" if is_plain(vertex.stage) else _custom_reason(vertex.stage, f"it {does}"),
    )


def _required_columns(stage: Any, unread: Sequence[str], before: DataFrame, casefold: Callable[[str], str]) -> set[str]:
    """Those of the columns `unread` that a stage only passes on but cannot do without, because it names them;
    casefolded.
    """
    names = {*map(casefold, unread)}
    if is_plain(stage):
        return _names_in(casefold(stage.getStatement()), names)
    with contextlib.suppress(Exception):  # the stage may raise any error without its columns
        stage.transform(before.drop(*unread))
        return set()
    return names


def _names_in(statement: str, names: Iterable[str]) -> set[str]:
    """Those of the names that occur as words in an SQL statement."""
    return {name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", statement)}


def _declared_columns(stage: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The columns that a stage names in those of these Params that were set; a default may be that of a mixin, which the
    stage need not heed.
    """
    return columns_of(stage, tuple(name for name in names if stage.hasParam(name) and stage.isSet(name)))


def _only_computes(stage: Any) -> bool:
    """True if a stage is a UnaryTransformer with that class's own transform: `inputCol` in, `outputCol` out, all rows kept."""
    used = ("transform", "_transform", "getInputCol", "getOutputCol")
    return isinstance(stage, UnaryTransformer) and all(
        getattr(type(stage), name) is getattr(UnaryTransformer, name) and name not in vars(stage) for name in used
    )


def _custom_reason(stage: Any, does: str) -> str:
    """Reason why a stage that is not Spark's stays in Spark."""
    return f"not one of Spark's stages: {does}; register a StageModule for {class_name(stage)} to translate it"
