"""The plan: what happens to every stage of a pipeline, and why, for people and programs to read."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyspark.sql.types import StructType

from sparkdiff.errors import check_type
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Analysis, analyse
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.schema import check_columns
from sparkdiff.stages.base import StageModule

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""Number of cache columns that are printed."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What happens to one leaf stage.

    Attributes:
        path: position in the nested pipelines and formulas.
        role: "translated", in torch, or "referenced", in Spark.
        cached: whether Spark runs the stage once, before the cache.
        trainable: whether its parameters would change.
        numParameters: number of its parameters, without those that train on request only; 0 if the stage is
            referenced.
        reason: what happens to the stage and why, as text.
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
class Plan:
    """One StagePlan per leaf stage in the order of the pipeline, and the columns of the cache."""

    __module__ = "sparkdiff"

    stages: tuple[StagePlan, ...]
    cacheCols: tuple[str, ...]

    def toJSON(self) -> str:
        return json.dumps(
            {"stages": [dataclasses.asdict(s) for s in self.stages], "cacheCols": self.cacheCols}, indent=2
        )

    def toPandas(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(s) for s in self.stages])

    def __str__(self) -> str:
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
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[3]]) for r in [head, *rows]]
        more = len(self.cacheCols) - SHOWN
        held = [*self.cacheCols[:SHOWN], f"{more} more"] if more > 1 else self.cacheCols
        trained = [s for s in self.stages if s.trainable]
        lines.append(
            f"trains {sum(s.numParameters for s in trained):,} parameters in {len(trained)} of {len(self.stages)} stages; "
            f"the cache holds {', '.join(held) or 'nothing'}"
        )
        return "\n".join(lines)


def plan(
    model: Any, *, schema: StructType | None = None, freeze: Sequence[Any] = (), reference: Sequence[Any] = (),
    target: Sequence[Any] = (), unfreeze: Sequence[str] = (),
) -> Plan:  # fmt: skip
    """The plan for a fitted pipeline or stage, stage by stage. Runs no job, except to read the factors of an
    ALSModel.

    Args:
        model: a fitted `PipelineModel` or one fitted stage.
        schema: the schema of the data; a missing column is then an error.
        freeze, reference, target: stages that do not change, that stay in Spark, that are the only ones to train;
            each a uid, stage, class name or output column.
        unfreeze: parameters to train that train on request only, `<uid, class name or output column>.<parameter>`;
            this includes all parameters of a stage that also feeds stages outside the loss.

    Raises:
        InputError: the pipeline is not fitted, or a name matches no stage.
    """
    if schema is not None:
        check_type("schema", schema, StructType, "a StructType such as df.schema")
    asked = Options.of({"freeze": freeze, "reference": reference, "target": target, "unfreeze": unfreeze})
    analysis = analyse(model, asked, schema)
    if schema is not None:
        check_columns(analysis.graph, schema)
    return plan_of(analysis, analysis.roles.freeze(asked.freeze, asked.target))


def _number(module: StageModule, named: Collection[str] | None) -> int:
    """Number of its parameters, without those that train on request only; only the `named` ones, if given."""
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


def plan_of(analysis: Analysis, frozen: Mapping[int, str]) -> Plan:
    """The plan of an analysed pipeline; `frozen` gives the stages that do not train, with reasons."""
    graph, roles, cut = analysis
    notes = _dense_notes(graph)
    stages = tuple(
        StagePlan(
            path=v.path, uid=v.uid, stageClass=v.stageClass,
            role="referenced" if v.module is None else "translated", cached=i in cut.cached,
            trainable=i in roles.trainable and i not in frozen,
            numParameters=_number(v.module, roles.named.get(i)) if v.module is not None else 0,
            inputCols=v.inputs, outputCols=v.outputs,
            reason="; ".join(filter(None, (roles.reason(i, frozen), notes.get(i)))),
        )
        for i, v in enumerate(graph.vertices)
    )  # fmt: skip
    return Plan(stages, tuple(c.name for c in cut.columns) if roles.trainable else ())
