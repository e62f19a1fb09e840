"""What is trained: a pipeline, analysed, with its roles resolved."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.soft_labels import Hardened
from sparkdiff.diagnostics.predictions import changed_outputs
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.acceptance import Judgement
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Cut, analyse
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.plan import Plan, plan_of
from sparkdiff.pipeline.roles import Roles
from sparkdiff.pipeline.schema import SchemaOrRows
from sparkdiff.stages.base import columns_of
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.device import place


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained: the analysed pipeline with its roles resolved."""

    model: Any
    roles: Roles
    cut: Cut
    plan: Plan
    options: Options
    labelCol: str | None  # None: clusters, whose loss needs none
    weightCol: str | None
    soft: Hardened | None = None  # of labels that were class probabilities

    def kept_as_fitted(self, columns: Iterable[str]) -> dict[str, str]:
        """Reasons, by uid, for the stages that must not be fitted anew, searched or deleted: `unfitted(model, keep=...)`.

        Among them are those that make the label, the weight or another column of the loss (as `censorCol`).

        Args:
            columns: of the rows.
        """
        graph = self.cut.graph
        wanted = [c for c in (self.labelCol, self.weightCol, *graph.head.lossInputs) if c is not None]
        makers = graph.makers(wanted, columns)
        return self.roles.kept_as_fitted(self.options.target) | {
            graph.formula_of(v) or v.uid: "the loss reads what it makes" for v in makers
        }

    def compared_outside(
        self, judgement: Judgement, new: Any, df: DataFrame, keep: Collection[str] = ()
    ) -> tuple[Judgement, list[str]]:
        """Judge a pipeline in the place of this one by what it changes that no training and no fit for the loss may change.

        Args:
            df: the rows.
            keep: uids of more stages that must not be fitted anew.

        Returns:
            The judgement with these changes, and warnings about columns that can't be compared.
        """
        graph, kept = self.cut.graph, {*self.kept_as_fitted(df.columns), *keep}
        fitted = {v.uid for v in graph.vertices if (graph.formula_of(v) or v.uid) not in kept}
        trained = {s.uid for s in self.plan.stages if s.trainable}
        differences, notes = changed_outputs(self.model, new, df, fitted | trained)
        return dataclasses.replace(judgement, outside=tuple(differences)), notes


def check_runs(model: Any, data: DataFrame) -> None:
    """Let Spark plan a pipeline that was made, as a whole: its stages are planned, and compared, one by one. Runs no job.

    Raises:
        ParityError: Spark can't run it; says why.
    """
    try:
        model.transform(data)
    except jvm.SparkError as e:
        raise ParityError(
            f"{model.uid}: Spark can't run the pipeline that was made ({jvm.cause(e)}), so nothing was changed. Report this as "
            "a bug"
        ) from e


def prepare(model: Any, options: Options, data: SchemaOrRows = None) -> Task:
    """Plan the pipeline and resolve the predictor, the label and the weight.

    Args:
        data: the rows, whose schema decides what a few stages compute.

    Raises:
        InputError: not fitted, several predictors, nothing to train, or a stage name that matches none.
    """
    analysis = analyse(model, options, data)
    graph, roles, cut = analysis
    several = [graph.vertices[i] for i in graph.last_predictors()]
    if options.predictionCol is None and len(several) > 1:
        found = "; ".join(f"{v.uid} ({', '.join(v.outputs)})" for v in several)
        raise InputError(
            f"there are several predictors to train for: {found}. Set predictionCol to the prediction column "
            "of one of them"
        )
    plan = plan_of(analysis, roles.freeze(options.freeze, options.target))
    if not any(s.trainable for s in plan.stages):
        reasons = "; ".join(f"{s.uid}: {s.reason}" for s in plan.stages)
        raise InputError(f"nothing to train in {model.uid}: {reasons}")
    predictor, head = graph.head.module, graph.head.stage
    assert isinstance(predictor, Predictor)
    check_place(options, graph, cut)
    label = options.labelCol or next(iter(columns_of(head, ("labelCol",))), None)
    if not predictor.labelled and label is not None and not callable(options.loss):
        raise InputError(
            f"{head.uid} does not use labelCol={label!r}: its clusters have no label. Leave it out, or set "
            "loss to a function of its outputs and the label"
        )
    if label is None and (predictor.labelled or callable(options.loss)):
        why = "" if predictor.labelled else ", but a loss of your own needs one"
        raise InputError(f"{head.uid} names no label column{why}; set labelCol")
    weight = options.weightCol or next(iter(columns_of(head, ("weightCol",))), None)
    return Task(model, roles, cut, plan, options, label, weight)


def check_place(options: Options, graph: Graph, cut: Cut) -> None:
    """Raise InputError for a device that this process lacks, and for a precision that a stage can't train in."""
    if options.device.startswith("cuda") and options.processes == 1:
        place(options.device, options.precision)
    trees = [graph.vertices[i].uid for i in cut.live if isinstance(graph.modules[i], Trees)]
    if trees and options.precision == "float32":
        raise InputError(
            f"precision='float32', but {trees[0]} compares its inputs with thresholds: rounded rows would reach other leaves "
            "than in Spark. Set precision='float64'"
        )
