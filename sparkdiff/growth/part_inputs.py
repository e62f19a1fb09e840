"""Inputs of growth from a pipeline: the last linear stage, the scalar columns before it, and their cached rows."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pyspark.sql import DataFrame
from pyspark.sql.types import BooleanType, NumericType, StructField
from torch import Tensor

from sparkdiff.data.splits import TRAIN, VALIDATION
from sparkdiff.errors import InputError
from sparkdiff.fine_tuning.task import Run, Task
from sparkdiff.growth.criterion import CriterionSpecification
from sparkdiff.growth.row_tensors import Column, Split, Table
from sparkdiff.machine import resources
from sparkdiff.pipeline.cut import Cut, CutColumn
from sparkdiff.pipeline.graph import Graph, Version, Vertex
from sparkdiff.pipeline.schema import known_fields
from sparkdiff.stages.inputs import values_of
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression
from sparkdiff.store import files
from sparkdiff.tensors.rows import Rows, below, rows_at
from sparkdiff.training.distributed.worker import ROOM

LARGEST = 2**31
"""Largest size in bytes of the rows that parts learn from. A sixteenth of the memory is a further limit, because rounds take
several times as much memory as the rows."""
HELD_OUT = 0.75
"""Share of the room (see `room_of`) that the validation rows may take."""
LINEAR = (GeneralizedLinearRegression, LinearRegression, LogisticRegression)
"""Classes of last stages to which growth can add parts."""
UNKNOWN = "__unknown"
"""Name of the additional category to which StringIndexer with handleInvalid=keep maps unknown values."""
INDEXER, ENCODER = "StringIndexerModel", "OneHotEncoderModel"


@dataclasses.dataclass(frozen=True)
class UpstreamColumn:
    """A scalar column that parts may read, and its version in the graph."""

    column: Column
    version: Version


def linear_head(graph: Graph) -> Vertex:
    """The last linear stage, to which the outputs of parts are added.

    Raises:
        InputError: the pipeline ends in another stage, or the coefficients have bounds. The message says how to fix it.
    """
    head = graph.head
    if isinstance(head.module, LINEAR):
        if isinstance(head.module, LogisticRegression) and head.module.has_bounds():
            raise InputError(
                f"{head.uid} has bounds on its coefficients, one for each feature: clear them (lowerBoundsOnCoefficients, ...) "
                "on the model to grow features beside them"
            )
        return head
    kinds = "LinearRegression, GeneralizedLinearRegression or LogisticRegression"
    what = f"{head.stageClass} {head.uid} is no linear stage, so nothing can be added to its margin"
    advice = f"grow a pipeline that ends in {kinds}"
    if "Tree" in head.stageClass or "Forest" in head.stageClass or "GBT" in head.stageClass:
        advice = (
            f"put its margin in front of a linear stage (VectorAssembler of its prediction or rawPrediction, then {kinds} with "
            "coefficient 1), and grow that pipeline; or fine-tune the trees as they are with FineTuner"
        )
    raise InputError(f"{what}: {advice}")


def upstream_columns(
    graph: Graph, data: DataFrame, entities: Mapping[str, tuple[str, tuple[str, ...]]]
) -> list[UpstreamColumn]:
    """Scalar columns from which the head's features are made, in the order in which stages read them; then the entities.

    The output of a StringIndexer counts as a category; if the StringIndexer reads numbers of the data, its input is a further
    column. If an Imputer or another stage writes a number, this number is listed in place of the stage's inputs. Columns whose
    names have a dot or a backtick are left out, because stages could read them only in backticks. So are columns that a later
    stage overwrites, and columns inside an RFormula, which drops its intermediate columns.

    Args:
        data: rows whose schema determines which columns are numbers.
        entities: name of an entity's column -> (column of its indices, its values). These columns were indexed for growth.
    """
    every = {v for vertex in graph.vertices for v in vertex.sources} | {
        (graph.casefold(c), vertex.position) for vertex in graph.vertices for c in vertex.outputs
    }
    fields = known_fields(graph, every, data)
    found: dict[Version, Column] = {}
    seen: set[Version] = set()
    sizes = _category_counts(graph)

    def visit(version: Version) -> None:
        if version in seen:
            return
        seen.add(version)
        vertex = graph.vertices[version[1]] if version[1] >= 0 else None
        if vertex is not None and vertex.stageClass == INDEXER:
            found.update(_indexer_columns(graph, vertex, version, fields))
        elif (field := fields.get(version)) is not None and isinstance(field.dataType, (NumericType, BooleanType)):
            # A TargetEncoder writes numbers, although Spark's attribute calls them categories.
            encoded = vertex is not None and vertex.stageClass == "TargetEncoderModel"
            levels, labels = (0, ()) if encoded else _levels(field, sizes.get(version, 0))
            name = graph.name(version)
            column = Column(
                name,
                name,
                levels,
                labels,
                levels > 0,
                boolean=isinstance(field.dataType, BooleanType),
                gaps=_has_gaps(graph, version, field),
            )
            found.setdefault(version, column)
        elif vertex is not None:
            for source in vertex.sources:
                visit(source)

    for version in graph.head.reads:
        if version[1] >= 0:
            visit(version)
    out = [
        UpstreamColumn(column, version)
        for version, column in found.items()
        if graph.writers.get(version[0], -1) == version[1]
        and not any(c in column.column for c in ".`")  # Spark reads such a column in backticks only
        and not _inside(graph, version)
    ]
    for name, (column, labels) in entities.items():
        version = (graph.casefold(column), graph.writers[graph.casefold(column)])
        out = [k for k in out if k.column.name != name or not k.column.levels]
        out.append(UpstreamColumn(Column(name, column, len(labels), labels, indexes=True, entity=True), version))
    return out


def _inside(graph: Graph, version: Version) -> bool:
    """True if a column is an intermediate column of an RFormula, which drops it after its own stages have read it."""
    return version[1] >= 0 and graph.formula_of(graph.vertices[version[1]]) is not None


def _refuses_null(graph: Graph, version: Version) -> bool:
    """True if a stage that reads a column fails on null or drops the row, so that no row with null reaches the head."""
    readers = [v for v in graph.vertices if version in v.sources and v.stageClass in ("VectorAssembler", INDEXER)]
    return any(v.stage.getHandleInvalid() in ("error", "skip") for v in readers)


def _has_gaps(graph: Graph, version: Version, field: StructField) -> bool:
    """True if rows without a value in a column may reach the head, in any future data.

    The nullability of an input column in the schema of the present rows is therefore ignored.
    """
    writer = graph.vertices[version[1]] if version[1] >= 0 else None
    if writer is not None and writer.stageClass == "ImputerModel" and math.isnan(writer.stage.getMissingValue()):
        return False
    return (writer is None or field.nullable) and not _refuses_null(graph, version)


def _category_counts(graph: Graph) -> dict[Version, int]:
    """Number of categories of each column version that a OneHotEncoder reads."""
    return {
        source: int(size)
        for vertex in graph.vertices
        if vertex.stageClass == ENCODER and vertex.stage is not None
        for source, size in zip(vertex.sources, vertex.stage.categorySizes, strict=True)
    }


def _indexer_columns(
    graph: Graph, vertex: Vertex, version: Version, fields: Mapping[Version, StructField]
) -> dict[Version, Column]:
    """Column that a StringIndexer writes and, if its input column is in the data and holds numbers, the input column."""
    names = [graph.casefold(c) for c in vertex.outputs]
    place = names.index(version[0])
    labels = tuple(vertex.stage.labelsArray[place])
    if vertex.stage.getHandleInvalid() == "keep":
        labels = (*labels, UNKNOWN)
    source = vertex.sources[place]
    name = graph.name(source)
    out = {version: Column(name, graph.name(version), len(labels), labels, indexes=True)}
    field = fields.get(source)
    if source[1] < 0 and field is not None and isinstance(field.dataType, NumericType):
        out[source] = Column(name, name, gaps=_has_gaps(graph, source, field))
    return out


def _levels(field: StructField, encoded: int) -> tuple[int, tuple[str, ...]]:
    """Number of values of a column, and their names: from a nominal attribute, else `encoded` values without names."""
    attribute = (field.metadata or {}).get("ml_attr", {})
    if attribute.get("type") == "nominal" and (levels := values_of(attribute)):
        return levels, tuple(map(str, attribute.get("vals", ())))
    return encoded, ()


def cut_for(task: Task, known: Sequence[UpstreamColumn]) -> Cut:
    """Cut (the point up to which Spark runs the stages) in front of the head. Its cache has the head's features and `known`."""
    graph = task.cut.graph
    head = graph.head
    read = dict.fromkeys(head.margin_reads)
    extra = dict.fromkeys(k.version for k in known if k.version not in read)
    cached = graph.ancestors([head.position]) | set(task.cut.cached)
    for version in extra:
        if version[1] >= 0:
            cached |= {version[1]} | graph.ancestors([version[1]])
    loss = set(head.lossReads)
    columns = tuple(CutColumn(v, graph.name(v), graph.in_struct(v), False, v in loss) for v in (*read, *extra))
    return Cut(graph, tuple(sorted(cached - {head.position})), (head.position,), columns)


def room_of(folder: Path, largest: int | None = None) -> int:
    """Size in bytes that the rows that parts learn from may take. The folder stores the number, so that a run that is resumed on
    a machine with more or less memory learns from the same rows.

    Args:
        largest: upper limit; None for `LARGEST`.
    """
    file = folder / "room.json"
    kept = files.read_undamaged(file, lambda: int(json.loads(file.read_text(encoding="utf-8"))))
    if kept is not None:
        return kept
    room = min(largest or LARGEST, resources.memory_bytes() // 16)
    with files.room("how many rows parts learn from", folder, ROOM):
        files.write_bytes(file, json.dumps(room).encode())
    return room


def table_of(run: Run, known: Sequence[UpstreamColumn], room: int, *, dense: bool = False) -> Table:
    """Table of the rows of a cache that was written for the cut of `cut_for`; their margin is the original's.

    If the rows take more than `room` bytes, the table has only as many training rows as fit, spread evenly over the cache. The
    choice is the same each time.

    Args:
        room: bytes that the rows may take, see `room_of`.
        dense: True if sparse features will be made dense: the rows have to fit into `room` in this form.

    Raises:
        InputError: the head's features are not vectors, or the validation rows alone take too much of `room`.
    """
    head = run.task.cut.graph.head
    train, unknown = _split(run, TRAIN, head.reads[0], known, _share(run, room, dense=dense))
    validation = train if run.data.stream.manifest.all_train else _split(run, VALIDATION, head.reads[0], known, 1.0)[0]
    columns, rows = tuple(k.column for k in known), run.cache.rows(TRAIN)
    return Table(head.inputs[0], columns, train, validation, run.network.head.margins, rows, unknown).aligned()


def _share(run: Run, room: int, *, dense: bool) -> float:
    """Share of the training rows that fits into `room` together with all validation rows."""
    cut = run.task.cut
    train, validation = (run.cache.size(split, of=cut, dense=dense) for split in (TRAIN, VALIDATION))
    validation *= not run.data.stream.manifest.all_train
    if validation > HELD_OUT * room:
        raise InputError(
            f"{run.cache.rows(VALIDATION):,} validation rows take {validation / 2**30:.2g} GiB of memory, more than the "
            f"{HELD_OUT * room / 2**30:.2g} GiB that are available for them: hold out fewer rows (validationFraction), or take "
            "a machine with more memory"
        )
    return min(1.0, (room - validation) / train)


@torch.no_grad()
def _split(
    run: Run, name: str, features: Version, known: Sequence[UpstreamColumn], share: float
) -> tuple[Split, tuple[int, ...]]:
    """This share of the rows of a split; and for each column, the number of all rows of the split with its last level."""
    data, seen = run.data, 0
    last = torch.tensor([k.column.levels - 1 for k in known])
    have = torch.zeros_like(last)
    parts: list[tuple[Rows, ...]] = []
    for batch, label, weight, block in data.batches(name):
        values = data.values(batch)
        margin = run.network.margin(dict(values))
        scalars = [values[k.version] for k in known]
        stacked = torch.stack(scalars, 1) if scalars else label.new_zeros(len(label), 0)  # type: ignore[arg-type]
        have += (stacked == last).sum(0)
        count = (torch.arange(seen, seen + len(label) + 1, dtype=torch.float64) * share).floor()
        chosen, seen = count.diff().nonzero()[:, 0], seen + len(label)
        columns: tuple[Rows, ...] = (values[features], stacked, label, weight, block, margin)
        parts.append(tuple(rows_at(x, chosen) for x in columns))
    rows, *tensors = (below([p[i] for p in parts]) for i in range(6))
    made: list[Tensor] = [t for t in tensors if isinstance(t, Tensor)]
    return Split(rows, *made), tuple(have.tolist())


def specification_of(run: Run) -> CriterionSpecification:
    """The loss and the metric of a run.

    Raises:
        InputError: the loss is not a mean over rows.
    """
    goal, head = run.goal, run.network.graph.head
    if goal.objective.rows is None or goal.objective.batch is not None:
        raise InputError(
            f"loss={goal.objective.name!r} is not a mean over rows, which growth needs: name another loss, and this one as metric"
        )
    return CriterionSpecification(run.network.without_spark().head, head.outputs, run.task.options, goal.label)
