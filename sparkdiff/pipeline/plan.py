"""The plan: the role of every stage of a pipeline and the reason for it, for people and programs to read."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pyspark.sql.types import StructType

from sparkdiff.errors import check_dataframe
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Analysis, analyse
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.indexer_labels import label_notes
from sparkdiff.pipeline.schema import SchemaOrRows, check_columns
from sparkdiff.report import Drawing, Section, SectionTable, StrongLine, counted, plan_picture
from sparkdiff.report.sections import DisplayableStages
from sparkdiff.stages.base import StageModule

SHOWN = 20
"""Number of cache columns that are printed."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """The plan for one leaf stage.

    Attributes:
        path: position in the nested pipelines and formulas.
        role: "translated" (runs in torch) or "referenced" (runs in Spark).
        cached: whether Spark runs the stage once, before it writes the cache.
        trainable: whether training changes its parameters.
        numParameters: number of its parameters, without those that train only on request and are not requested; 0 if
            the stage is referenced.
        reason: the treatment of the stage and the reason for it, as text.
    """

    __module__ = "sparkdiff"

    path: tuple[int, ...]
    uid: str
    stageClass: str
    role: str
    cached: bool
    trainable: bool
    numParameters: int
    inputCols: tuple[str, ...]
    outputCols: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class PlanEdge:
    """A column between the stage that writes it and a stage that reads it.

    Attributes:
        source, target: positions in `Plan.stages`; source -1 stands for the data.
        gradients: whether gradients of the loss flow back along this column to parameters that train.
    """

    __module__ = "sparkdiff"

    column: str
    source: int
    target: int
    gradients: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(DisplayableStages):
    """One StagePlan per leaf stage in the order of the pipeline, and the columns of the cache.

    Attributes:
        edges: the columns between the stages, as far as the stages declare their inputs.
        head: the position of the stage whose outputs enter the loss; None if there is none.
    """

    __module__ = "sparkdiff"

    stages: tuple[StagePlan, ...]
    cacheCols: tuple[str, ...]
    edges: tuple[PlanEdge, ...] = ()
    head: int | None = None

    def draw(self) -> Drawing:
        """Draw the stages and their columns: which stages run in Spark and in torch, which train, and how far
        gradients flow back.

        A notebook displays the drawing; `plan.draw().save("plan.svg")` writes it.
        """
        return Drawing(plan_picture(dataclasses.asdict(self), self._total()))

    def _headline(self) -> str:
        return self._trains()

    def _sections(self) -> Iterator[Section]:
        head = ("stage", "where", "trains", "what for")
        rows = [
            (
                f"{'.'.join(map(str, s.path)) or '0'} {s.stageClass}",
                "Spark, cached" if s.cached else "torch" if s.role == "translated" else "Spark",
                f"{s.numParameters:,}" if s.trainable else "-",
                s.reason,
            )
            for s in self.stages
        ]
        yield SectionTable([head, *rows], left=range(4))
        yield StrongLine(self._total())

    def _trains(self) -> str:
        trained = [s for s in self.stages if s.trainable]
        number = sum(s.numParameters for s in trained)
        return f"trains {counted(number, 'parameter')} in {len(trained)} of {counted(len(self.stages), 'stage')}"

    def _total(self) -> str:
        more = len(self.cacheCols) - SHOWN
        held = [*self.cacheCols[:SHOWN], f"{more} more"] if more > 1 else self.cacheCols
        return f"{self._trains()}; the cache holds {', '.join(held) or 'nothing'}"


def plan(
    model: Any,
    *,
    schema: SchemaOrRows = None,
    freeze: Sequence[Any] = (),
    reference: Sequence[Any] = (),
    target: Sequence[Any] = (),
    unfreeze: Sequence[str] = (),
) -> Plan:
    """Return the plan for a fitted pipeline or stage, stage by stage. Runs no job, except to read the factors of an
    ALSModel.

    Args:
        model: a fitted `PipelineModel` or one fitted stage.
        schema: the schema of the data, or the data themselves; a missing column is then an error, and the plan names
            labels of numbers that this Java prints differently. The data also show which columns SQL and stages that
            are not Spark's change.
        freeze: stages that do not change; each a uid, stage, class name or output column.
        reference: stages that stay in Spark; named as in `freeze`.
        target: the only stages that train; named as in `freeze`.
        unfreeze: parameters that are frozen by default and shall train, as `<uid, class name or output
            column>.<parameter>`; all parameters of a stage that also feeds stages outside the loss are such parameters.

    Raises:
        InputError: the pipeline is not fitted, or a name matches no stage.

    Examples:
        >>> import sparkdiff
        >>> found = sparkdiff.plan(model, schema=df)
        >>> print(found)
        stage                      where          trains  what for
        0 VectorAssembler          Spark, cached  -       nothing to train
        1 StandardScalerModel      torch          10      a differentiable path leads to the loss
        2 PCAModel                 torch          10      a differentiable path leads to the loss
        3 LogisticRegressionModel  torch          3       the loss; trains on request (unfreeze): threshold
        trains 23 parameters in 3 of 4 stages; the cache holds numbers
    """
    if schema is not None and not isinstance(schema, StructType):
        check_dataframe("schema, if not a StructType,", schema)
    asked = Options.of({"freeze": freeze, "reference": reference, "target": target, "unfreeze": unfreeze})
    analysis = analyse(model, asked, schema)
    if schema is not None:
        check_columns(analysis.graph, schema if isinstance(schema, StructType) else schema.schema)
    labels = {} if schema is None else label_notes(analysis.graph, schema)
    return plan_of(analysis, analysis.roles.freeze(asked.freeze, asked.target), labels)


def _number(module: StageModule, named: Collection[str] | None) -> int:
    """Number of a module's parameters, without those that train only on request and are not requested; with `named`,
    only the named ones.
    """
    return sum(
        p.numel()
        for n, p in module.named_parameters()
        if (n in named if named is not None else p.requires_grad or n not in module.optional)
    )


WIDE = 1024


def _dense_notes(graph: Graph) -> dict[int, str]:
    """Notes on stages that make sparse rows dense, or that may do so and are wide."""
    sparse: set[int] = set()
    notes = {}
    for i, vertex in enumerate(graph.vertices):
        arrives = any(p in sparse for _, p in vertex.reads)
        module = vertex.module
        if vertex.makes_sparse or (arrives and module is not None and not module.makes_dense):
            sparse.add(i)
        if module is None or not module.makes_dense:
            continue
        width = module.fitted_width()
        if arrives:
            entries = f" of {width:,} entries" if width else ""
            notes[i] = f"makes sparse rows{entries} dense ({module.makes_dense})"
        elif width >= WIDE:
            notes[i] = f"makes rows of {width:,} entries dense if they are sparse ({module.makes_dense})"
    return notes


def plan_of(
    analysis: Analysis, frozen: Mapping[int, str], labels: Mapping[int, Sequence[str]] = MappingProxyType({})
) -> Plan:
    """Plan of an analysed pipeline.

    Args:
        analysis: the pipeline as a graph, the roles of its stages, and its cut.
        frozen: the stages that do not train, with reasons.
        labels: notes on the labels of stages.
    """
    graph, roles, cut = analysis
    notes = _dense_notes(graph)
    stages = tuple(
        StagePlan(
            path=v.path,
            uid=v.uid,
            stageClass=v.stageClass,
            role="referenced" if v.module is None else "translated",
            cached=i in cut.cached,
            trainable=i in roles.trainable and i not in frozen,
            numParameters=_number(v.module, roles.named.get(i)) if v.module is not None else 0,
            inputCols=v.inputs,
            outputCols=v.outputs,
            reason="; ".join(filter(None, (roles.reason(i, frozen), notes.get(i), *labels.get(i, ())))),
        )
        for i, v in enumerate(graph.vertices)
    )
    cached = tuple(c.name for c in cut.columns) if roles.trainable else ()
    trained = [s.trainable for s in stages]
    return Plan(stages, cached, tuple(_edges(graph, roles.gradients, trained)), graph.head_position)


def _edges(graph: Graph, gradients: Collection[tuple[Version, int]], trained: Sequence[bool]) -> Iterator[PlanEdge]:
    """Yield the columns between the stages. Gradients flow along a column if it is among `gradients`, and its writer
    trains or gets a gradient that flows on to a stage that trains.
    """
    waits = [*trained]  # whether the stage, or a stage before it that gradients reach through it, trains
    for v in graph.vertices:
        flows = {version for version, reader in gradients if reader == v.position and waits[version[1]]}
        waits[v.position] |= bool(flows)
        read = {version: graph.name(version) for version in v.sources}
        if v.position == graph.head_position:
            read |= {version: graph.name(version) for version in v.lossReads if version[1] >= 0}
        for version, name in read.items():
            yield PlanEdge(name, max(version[1], -1), v.position, version in flows)
