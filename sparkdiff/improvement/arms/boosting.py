"""Boosted trees that are added to the last stage of a pipeline that ends in boosted trees, or that replace its trees.

They are fitted on the cached rows like the trees that growth puts in front of a linear stage (growth/parts/trees.py): on the
features that the last stage reads, for the loss of the improvement. They start from the margin (the sum) of the
existing trees and are added to them, or start from the mean of this margin and replace them. In both cases the last
stage, which is rebuilt in Spark, keeps its class, uid and Params.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.phases import open_checkpoints
from sparkdiff.growth import cost_table, item_runner
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.growth_steps import check_options
from sparkdiff.growth.part import Item, ItemResult
from sparkdiff.growth.part_inputs import cut_for, room_of, specification_of, table_of
from sparkdiff.growth.parts import trees
from sparkdiff.growth.rounds import Run
from sparkdiff.growth.row_tensors import Column, Table
from sparkdiff.importers.trees import LARGEST_CATEGORY, TreeArrays
from sparkdiff.improvement.arm_context import BOOSTED, ArmContext, is_cost_allowed, measure
from sparkdiff.improvement.arms.fine_tuning import with_tuned
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Candidate, CandidateRecipe, Step, nothing
from sparkdiff.jvm import trees as java_trees
from sparkdiff.jvm.nodes import Array, Nodes
from sparkdiff.pipeline.nesting import with_leaves
from sparkdiff.pipeline.schema import known_fields
from sparkdiff.report import counted, share_of
from sparkdiff.stages.inputs import slots_of, values_of
from sparkdiff.store.checkpoint_folder import name_beside
from sparkdiff.tensors.rows import dense, width

LARGEST = 2**30
"""Largest size of the features as a dense matrix, in bytes."""
PASSES = 20
"""Number of passes over the training rows that one ensemble counts as, if the budget is in passes."""
LATE = 0.5
"""Expected further gain, as a share of the gain so far, from ensembles that there was no time to train."""


def ends_in_boosted(context: ArmContext) -> bool:
    return isinstance(context.plan.cut.graph.head.module, BOOSTED)


def refusal(context: ArmContext) -> str:
    """Reason why no trees can be added; empty if trees can be added."""
    head = context.plan.cut.graph.head
    if head.uid in context.keeps:
        return f"{head.uid} is to be kept, and more trees change it"
    try:
        check_options(context.options)
        trees.require_library()
    except InputError as e:
        return str(e)
    return ""


@dataclass(frozen=True)
class _Ensemble:
    """An ensemble of trees, fitted from one of the two margins.

    Attributes:
        found: result of the training.
        base: the constant margin from which the trees start if they replace the existing trees; None if they are added to them.
    """

    found: ItemResult
    base: float | None

    @property
    def name(self) -> str:
        part = self.found.part
        assert part is not None
        return f"{part.name} more" if self.base is None else f"{part.name} in their place"

    @property
    def making(self) -> CandidateRecipe:
        item = replace(self.found.item, epochs=self.found.epoch)
        return CandidateRecipe("import", {"item": asdict(item), "inPlace": self.base is not None})


@dataclass(frozen=True)
class _BoostingStarts:
    """The rows at the two margins from which trees can start.

    Attributes:
        tables: the rows at the margin of the existing trees, and the rows at the mean of this margin.
        base: the mean of the margin of the existing trees.
        original: the metric of the existing trees.
        train: function that trains items.
    """

    tables: tuple[Table, Table]
    base: float
    original: Score
    criterion: Criterion
    train: Run

    def ensembles(self, items: Sequence[Item], inPlace: bool) -> list[_Ensemble]:
        """Train these items: from the mean margin if `inPlace`, to replace the existing trees; else from the existing trees."""
        number = 1 + inPlace
        found = self.train(number, items, self.tables[inPlace], self.original.blocks)
        return [_Ensemble(f, self.base if inPlace else None) for f in found]


@contextmanager
def _boosting(context: ArmContext, number: str, clock: Clock, seconds: float | None) -> Iterator[_BoostingStarts]:
    options = replace(context.options, maxSeconds=seconds, **context.checkpoint_options("import", number))
    runId = options.runId and name_beside(options.runId, "-trees")
    with context.open_run(replace(context.plan, options=options, cut=cut_for(context.plan, ()))) as run:
        specification = specification_of(run)
        criterion = specification.criterion()
        with (
            open_checkpoints(run, runId, replace=True) as folder,
            item_runner.runner(folder, specification, clock=clock, memory=context.trained) as train,
        ):
            table = _table(run, context, room_of(folder.path, LARGEST))
            original = criterion.score(table.validation.margin, table.validation)
            base = float(table.train.mean(table.train.margin))
            anew = table.at(torch.full_like(table.train.margin, base), torch.full_like(table.validation.margin, base))
            yield _BoostingStarts((table, anew), base, original, criterion, train)


def run(context: ArmContext, number: int, limit: Limit, _steps: Sequence[Step]) -> Step:
    """Train as many ensembles as there is time for, and make a candidate from the best one.

    The second step also trains the ensembles that the first step had no time for, and then all weights of the best candidate.
    """
    begun, clock = time.monotonic(), Clock.of(limit.seconds)
    with _boosting(context, str(number), clock, limit.seconds) as boosting:
        items = trees.propose(boosting.tables[0], boosting.criterion, context.options.seed)
        if limit.passes is not None:
            items = items[: max(1, int(limit.passes / (2 * PASSES)))]
        found = [e for inPlace in (True, False) for e in boosting.ensembles(items, inPlace)]
        original, sampled = boosting.original.mean, boosting.tables[0].sample_text
    late = sum(e.found.is_late for e in found)
    if late == len(found):
        return nothing("import", number, "no time for any trees", late=True)
    told = {"ensembles": [_ensemble_facts(e, original) for e in found], "late": late > 0}
    says = (
        f"{counted(len(found) - late, 'ensemble')}{f' of {sampled}' if sampled else ''}"
        f"{f', no time for {late} more' if late else ''}"
    )
    gaining = [e for e in found if e.found.part is not None]
    best, model = _best(context, gaining)
    if best is None:
        why = "none gains" if not gaining else "all of them cost more to serve than maxServingCost allows"
        return Step("import", number, (), 0.0, f"{says}, {why}", learned=told)
    others = sum(e.found.seconds for e in found if e is not best)
    measured = measure(context, model)
    seconds = max(time.monotonic() - begun - others, best.found.seconds)
    candidate = Candidate("import", best.name, measured, best.making, best.name, seconds=seconds)
    hope = LATE * max(share_of(original - best.found.value, original), 0.0) if late else 0.0
    step = Step("import", number, (candidate,), hope, says, trains=number == 0, learned=told)
    return step if number == 0 else with_tuned(context, step, limit, clock)


def make(context: ArmContext, settings: Mapping[str, Any]) -> Any:
    """Train the same ensemble, with the same number of trees, on another context: from the margin of its model, or from the mean.

    Raises:
        InputError: the training diverges.
    """
    with _boosting(context, "again", Clock.of(None), None) as boosting:
        [ensemble] = boosting.ensembles([Item(**settings["item"])], settings["inPlace"])
    if ensemble.found.part is None:
        raise InputError(f"{settings['item']['name']} diverge on these rows")
    return _pipeline(context, ensemble)


def _table(run: Any, context: ArmContext, room: int) -> Table:
    """Table in which each feature that the last stage reads is a scalar column.

    Raises:
        InputError: the features of the validation rows don't fit into `room` as a dense matrix.
    """
    plain = table_of(run, (), room, dense=True)
    head = context.plan.cut.graph.head
    slots = width(plain.train.features)
    field = known_fields(context.plan.cut.graph, {head.reads[0]}, context.sources[0].df).get(head.reads[0])
    columns = _columns(plain.features, slots, (field.metadata or {}) if field is not None else {})
    train, validation = (replace(s, values=dense(s.features)) for s in (plain.train, plain.validation))
    return replace(plain, columns=columns, train=train, validation=validation).aligned()


def _columns(features: str, slots: int, metadata: dict[str, Any]) -> tuple[Column, ...]:
    """A column for each entry (slot) of the feature vector; nominal entries are categories, as in Spark's own trees."""
    known, out = slots_of(metadata.get("ml_attr") or {}), []
    for j in range(slots):
        kind, told = known.get(j, ("numeric", {}))
        levels = values_of(told) if kind == "nominal" else 0
        nominal = 0 < levels <= LARGEST_CATEGORY
        out.append(Column(str(told.get("name", f"{features}[{j}]")), str(j), levels, (), indexes=nominal))
    return tuple(out)


def _best(context: ArmContext, ensembles: Sequence[_Ensemble]) -> tuple[_Ensemble | None, Any]:
    """The best ensemble among those that `maxServingCost` allows, and its pipeline; None and None if there is none."""
    for ensemble in sorted(ensembles, key=lambda e: e.found.value):
        model = _pipeline(context, ensemble)
        if is_cost_allowed(context, cost_table.of_model(model)):
            return ensemble, model
    return None, None


def _pipeline(context: ArmContext, ensemble: _Ensemble) -> Any:
    """The original with the ensemble's trees in its last stage."""
    head = context.plan.cut.graph.head
    module, part = head.module, ensemble.found.part
    assert isinstance(module, BOOSTED)
    assert isinstance(part, trees.TreesPart)
    [nodes] = part.nodes
    slots = np.array([int(column.column) for column in part.columns], np.int32)
    own = nodes.replace(featureIndex=np.where(nodes.leaf, -1, slots[nodes.featureIndex]).astype(np.int32))
    if ensemble.base is None:
        first, weights = module.nodes, np.asarray(head.stage.treeWeights, np.float64)
    else:
        first, weights = TreeArrays.constant(ensemble.base).nodes(), np.full(1, 1 / module.factor)
    every = Nodes.join([first, own])
    treeWeights: Array = np.concatenate([weights, np.full(own.trees, 1 / module.factor)])
    return with_leaves(context.model, {head.path: java_trees.rebuild(head.stage, every, treeWeights)})


def _ensemble_facts(ensemble: _Ensemble, original: float) -> dict[str, Any]:
    """Facts about an ensemble, stored in `Step.learned`."""
    found = ensemble.found
    start = "the trees that are there" if ensemble.base is None else "their mean margin"
    gain = share_of(original - found.value, original) if found.part is not None else 0.0
    return {
        "name": found.item.name,
        "start": start,
        "gain": gain,
        "epoch": found.epoch,
        "seconds": found.seconds,
        "parameters": found.parameters,
    }
