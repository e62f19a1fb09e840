"""The context that all arms share: the original pipeline, the rows and their splits, and the original's figures on them."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pyspark.ml import PipelineModel

from sparkdiff import jvm
from sparkdiff.data.splits import VALIDATION, Boundaries, Source
from sparkdiff.errors import InputError
from sparkdiff.evaluation.cached_parity import FEWER_ROWS, PARITY_ROWS
from sparkdiff.evaluation.row_margins import RecordedMargins, difference_text
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.fine_tuning_run import record_rows
from sparkdiff.fine_tuning.fine_tuning_summary import facts
from sparkdiff.fine_tuning.phases import check_data, open_run, verify_original
from sparkdiff.fine_tuning.task import FitResults, Goal, PipelineScores, Run, Task, TrainingResult, check_runs, prepare
from sparkdiff.growth import cost_table
from sparkdiff.growth.item_runner import ItemResultCache
from sparkdiff.growth.part_inputs import LINEAR, cut_for, upstream_columns
from sparkdiff.growth.serving_cost import SAME
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.improvement.parallel_tasks import StoppableListener
from sparkdiff.machine import resources
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import class_weights
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import merged_cut, within
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.parity import Parity
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.report import Phases
from sparkdiff.stages.trees import GBTClassification, GBTRegression
from sparkdiff.store.checkpoint_folder import TRAININGS
from sparkdiff.tensors.device import gpus

BOOSTED = (GBTRegression, GBTClassification)
"""Last stages to which boosted trees can be added."""
CORES = 2
"""Number of cores that an arm keeps busy: one by Spark or torch, and one by the process that drives them."""


Fit = Callable[[Sequence[Source], Boundaries | None], Any]
"""(rows, boundaries of time) -> the pipeline, fitted to the training rows among them."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Figures of a pipeline on the rows of a context.

    Attributes:
        task: the pipeline's plan.
        scores: the metric, for each split that has rows.
        recorded: margins (linear predictors before the link) on held-out rows.
        parity: result of the comparison of the pipeline's network with Spark.
        cost: serving cost in microseconds per row, according to the cost table.
    """

    task: Task
    scores: Mapping[str, Score]
    recorded: RecordedMargins
    parity: Parity | None
    cost: float

    @property
    def model(self) -> Any:
        return self.task.model


@dataclasses.dataclass(frozen=True)
class Training:
    """A training run that the summary reports.

    Attributes:
        fold: 1 for the exploring rows, 2 and more for the proving folds, 0 for all rows.
    """

    fold: int
    run: Run
    fitted: TrainingResult


@dataclasses.dataclass(frozen=True)
class ArmContext:
    """The original pipeline, a set of rows, and the request of the user.

    Attributes:
        model: the original, as the user passed it, or refitted to the training rows of this context (see `refit_on_rows`).
        fit: function that fits the pipeline to the training rows of other contexts; None if the pipeline stays fixed (see
            `Origin`).
        original: the figures of `model`; None until `model` is measured.
        goal: the loss and the metric; None until `model` is measured.
        facts: facts about the original's cache, stream and versions, for the summary.
        rows: number of rows per split.
        doubts: warnings about the rows.
        folder: folder of the run, for trials and trainings.
        brake: listener that passes events to the other listeners, and ends concurrent work.
        trained: results of parts that growth has trained on these rows; later steps, also of other arms, reuse them.
        allTrain: True if no row is held out: then the split "validation" holds the training rows.
        fold: number of the proving fold, 0 for all rows (and for an only fold whose pipelines ship); None while arms
            explore. Used in names of trainings.
        lasting: True if a later run may read the caches of this context.
        temporary: calls, at the end of the run, that remove caches that no later run reads.
        trainings: training runs of whole pipelines so far.
    """

    model: Any
    options: Options
    settings: ImprovementSettings
    sources: Sequence[Source]
    boundaries: Boundaries | None
    phases: Phases
    shared: FitResults
    fit: Fit | None = None
    original: Measurement | None = None
    goal: Goal | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    folder: Path = Path()
    brake: StoppableListener = dataclasses.field(default_factory=lambda: StoppableListener(()))
    trained: ItemResultCache = dataclasses.field(default_factory=ItemResultCache)
    allTrain: bool = False
    fold: int | None = None
    lasting: bool = True
    temporary: ExitStack = dataclasses.field(default_factory=ExitStack)
    trainings: list[Training] = dataclasses.field(default_factory=list)

    @property
    def ships(self) -> bool:
        """True if a pipeline made from this context's rows may ship; False while arms explore, and in one of several folds."""
        return self.allTrain and not self.fold

    @functools.cached_property
    def in_threads(self) -> bool:
        """True if work can run in several threads: they can share the session, and use neither several processes nor GPUs."""
        o = self.options
        return o.numProcesses == 1 and not (o.device != "cpu" and gpus()) and jvm.threads_share_session()

    @functools.cached_property
    def side_by_side(self) -> int:
        """Number of arms that run at the same time; 1 if `in_threads` is False."""
        if not self.in_threads:
            return 1
        return self.settings.parallelism or max(resources.idle_cores() // CORES, 1)

    @functools.cached_property
    def folds_side_by_side(self) -> int:
        """Number of folds that are measured at the same time, by default two, because a fold waits for Spark half of the time."""
        if not self.in_threads:
            return 1
        return self.settings.parallelism or min(CORES, os.cpu_count() or 1)

    @property
    def start(self) -> Measurement:
        """Figures of the original."""
        assert self.original is not None
        return self.original

    @property
    def metric(self) -> Metric:
        assert self.goal is not None
        return self.goal.metric

    @functools.cached_property
    def keeps(self) -> tuple[str, ...]:
        """Uids of the stages that must not change: those that the options `keepStages` and `freeze` name (see `Graph.select`).

        Raises:
            InputError: an option names no stage of the pipeline.
        """
        return self._uids_of(self.options.freeze, "freeze") + self._uids_of(self.settings.keepStages, "keepStages")

    def _uids_of(self, names: Sequence[Any], option: str) -> tuple[str, ...]:
        graph = graph_of(self.model)
        return tuple(graph.vertices[i].uid for i in sorted(graph.select(names, option)))

    @functools.cached_property
    def stay(self) -> dict[str, str]:
        """Uid -> reason, for each stage that no arm may refit, search or delete."""
        kept = dict.fromkeys(self.keeps, "it is to be kept")
        return self.plan.kept_as_fitted(self.sources[0].df.columns) | kept

    @functools.cached_property
    def lossParams(self) -> dict[str, Any]:
        """Parameters of the loss. Parameters that were fitted with the original, such as Huber's delta, are used for
        every pipeline, because another fit would choose other values.
        """
        name, fitted = self.plan.cut.graph.head.module.own_loss()  # type: ignore[union-attr, operator]
        loss = self.options.loss
        own = not callable(loss) and bool({"auto", name} & ({loss} if isinstance(loss, str) else set(loss)))
        return {**({k: float(v) for k, v in fitted.items()} if own else {}), **self.options.lossParams}

    @property
    def metricParams(self) -> dict[str, Any]:
        """Parameters of the metric that decides. Once the labels are known, `classWeights` is a list of numbers."""
        o = self.options
        found = {**self.lossParams, **o.metricParams}
        weights = found.pop("classWeights", None)  # a named metric takes none
        if weights is None or o.metric is not None or self.goal is None:
            return found
        head: Any = self.plan.cut.graph.head.module
        return {**found, "classWeights": class_weights(weights, head.classes, self.goal.label).tolist()}

    @property
    def plan(self) -> Task:
        """Plan of the original on the rows of this context; made once, also for copies of the context."""
        return self.shared.once(("plan",), lambda: self.task(self.model))

    def task(self, model: Any, **changes: Any) -> Task:
        """Plan of a pipeline on the rows of this context; stages that must not change are frozen.

        Args:
            changes: options that differ from those of the context.
        """
        keeps, target = self.keeps, self.options.target  # raises an error for an unknown name
        if model is self.model:
            freeze = tuple(dict.fromkeys((*self.options.freeze, *self.settings.keepStages)))
        else:
            uids, named = [s.uid for s in stages_of(model)], self._uids_of(target, "target")
            freeze, target = (tuple(uid for uid in uids if uid in names) for names in (keeps, named))
            changes = {"lossParams": self.lossParams, **changes}
            check_runs(model, self.sources[0].df)
        o = dataclasses.replace(self.options, freeze=freeze, target=target, **changes)
        return prepare(model, o, self.sources[0].df)

    def checkpoint_options(self, arm: str, number: str) -> dict[str, Any]:
        """Options that let a training run of an arm store its files in this run's folder, where they replace no other run.

        Args:
            number: name of the step, such as "0" or "again".
        """
        if self.folder == Path():
            return {}
        place = f"{arm}-{number}" if self.fold is None else f"{arm}-{number}-fold{self.fold}"
        return {"checkpointDir": str(self.folder / TRAININGS), "runId": self.options.runId and place}

    @property
    def cache_plan(self) -> Task:
        """Plan of the original, whose common cache also has the columns that the arms "import" and "grow" read."""
        return self.shared.once(("cache plan",), self._cache_plan)

    def _cache_plan(self) -> Task:
        graph, head = self.plan.cut.graph, self.plan.cut.graph.head.module
        if not isinstance(head, (*LINEAR, *BOOSTED)) or not {"import", "grow"} & set(self.settings.allowed_arms()):
            return self.plan
        known = upstream_columns(graph, self.sources[0].df, {}) if isinstance(head, LINEAR) else ()
        cut = merged_cut(self.plan.cut, cut_for(self.plan, known))
        return self.plan if cut is None else dataclasses.replace(self.plan, cut=cut)

    @contextmanager
    def open_run(self, task: Task) -> Iterator[Run]:
        """Context with the run of a task, see `fine_tuning.phases.open_run`.

        A pipeline that begins with the stages of the original reads the original's cache.
        """
        written, cut = self.cache_plan, within(task.cut, self.cache_plan.cut)
        if (task.labelCol, task.weightCol) != (written.labelCol, written.weightCol) or (
            cut is not None and not set(task.roles.makers) <= set(cut.cached)
        ):
            cut = None  # the candidate has another label or weight than the original
        if (
            cut is not None
            and task.model is self.model
            and not {c.version for c in task.cut.columns} <= {c.version for c in cut.columns}
        ):
            cut = None  # growth reads each of these columns from the cache
        if cut is not None:
            task = dataclasses.replace(task, cut=cut)
        with open_run(
            task,
            self.sources,
            self.phases,
            shared=self.shared,
            boundaries=self.boundaries,
            allTrain=self.allTrain,
            keyed=True,
            lasting=self.lasting,
            written=None if cut is None else written,
            comparedRows=PARITY_ROWS if self.ships else FEWER_ROWS,
        ) as run:
            yield run


def stages_of(model: Any) -> list[Any]:
    return [stage for _, stage in flatten(model)]


def is_cost_allowed(context: ArmContext, cost: float) -> bool:
    """True if `maxServingCost` allows a pipeline with this cost in microseconds per row."""
    limit = context.settings.maxServingCost
    return limit is None or cost <= limit * context.start.cost * (1 + SAME)


def measure_original(context: ArmContext, *, doubts: bool = False) -> ArmContext:
    """Measure the model of a context on its rows.

    Args:
        doubts: True to check the rows for problems, and store warnings in `ArmContext.doubts`.

    Raises:
        InputError: the pipeline, the data or the options can't be used.
        ParityError: the network and Spark disagree.
    """
    with context.open_run(context.plan) as run:
        measured = verify_original(run)
        warnings = check_data(run) if doubts else []
        found = _measurement(run, measured)
        rows = {s: run.cache.rows(s) for s in run.cache.splits}
        goal, known = run.goal, facts(run)
    return dataclasses.replace(context, original=found, goal=goal, facts=known, rows=rows, doubts=tuple(warnings))


def refit_on_rows(
    context: ArmContext,
    sources: Sequence[Source],
    boundaries: Boundaries | None,
    *,
    allTrain: bool = False,
    fold: int | None = None,
    doubts: bool = False,
) -> ArmContext:
    """Make a context with other rows: fit the model to the training rows among them, unless it stays fixed, and measure it.

    Args:
        fold: see `ArmContext`; None for the fold of `context`.
        doubts: see `measure_original`.
    """
    model = context.model if context.fit is None else context.fit(sources, boundaries)
    fold = context.fold if fold is None else fold
    phases, shared = Phases(False, context.phases.listeners), FitResults()
    phases.fold = fold
    # Caches of all rows are kept, because the original may already have written one that a later run reads.
    lasting = fold == 0 or context.options.runId is not None or jvm.shared_folder(context.options.cacheDir) is not None
    if not lasting:
        context.temporary.callback(shared.remove_caches)
    there = dataclasses.replace(
        context,
        phases=phases,
        model=model,
        sources=sources,
        boundaries=boundaries,
        shared=shared,
        trained=ItemResultCache(),
        original=None,
        allTrain=allTrain,
        fold=fold,
        lasting=lasting,
    )
    return measure_original(there, doubts=doubts)


def measure(context: ArmContext, model: Any) -> Measurement:
    """Measure a pipeline on the same rows as the original. The original itself is not measured again.

    Raises:
        InputError: the pipeline can't be compared with the original, because it drops rows, indexes the labels differently
            or has other weights.
        ParityError: the pipeline's network and Spark disagree.
    """
    if model is context.model:
        return context.start
    with context.open_run(context.task(model)) as run:
        found = _measurement(run, verify_original(run))
    check_same_rows(context.start, found)
    return found


def _measurement(run: Run, measured: PipelineScores) -> Measurement:
    return Measurement(
        run.task, measured.scores, record_rows(run, run.network), measured.parity, cost_table.of_model(run.task.model)
    )


def check_same_rows(original: Measurement, other: Measurement) -> None:
    """Check that another pipeline predicts the same rows as the original.

    Raises:
        InputError: the rows, labels or weights of the other pipeline differ from the original's.
    """
    one, two = original.recorded, other.recorded
    head = other.task.cut.graph.head.uid
    if not torch.equal(one.keys, two.keys):
        raise InputError(
            f"{head}: the pipeline predicts {len(two.keys):,} of the {len(one.keys):,} rows that the original predicts"
        )
    if told := difference_text(two.labels, one.labels, "label", "the original pipeline"):
        raise InputError(f"{head}: {told}")
    if not torch.equal(original.scores[VALIDATION].weights, other.scores[VALIDATION].weights):
        raise InputError(f"{head}: rows have other weights than in the original pipeline")


def as_pipeline(model: Any) -> PipelineModel:
    return model if isinstance(model, PipelineModel) else PipelineModel([model])
