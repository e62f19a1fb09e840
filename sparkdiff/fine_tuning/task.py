"""Data classes of a fine-tuning run: the task, results shared by fits on the same rows, and results of the phases.

The cut of a pipeline divides its stages into those that Spark runs before the cache is written, and those that torch
runs in training, the network.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data import cache as caches
from sparkdiff.data.fingerprint import Request
from sparkdiff.data.soft_labels import SoftLabels
from sparkdiff.data.splits import REFERENCE, Source, rule
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.acceptance import Judgement
from sparkdiff.evaluation.cached_parity import PARITY_ROWS
from sparkdiff.evaluation.prediction_differences import find_output_changes
from sparkdiff.evaluation.scores import Score
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.machine import atomic_files
from sparkdiff.machine.threads import SharedResults
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Cut, analyse
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity
from sparkdiff.pipeline.plan import Plan, plan_of
from sparkdiff.pipeline.roles import Roles
from sparkdiff.pipeline.schema import SchemaOrRows
from sparkdiff.report import FineTuningSummary, Phases
from sparkdiff.stages.base import LabelStats, columns_of
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import Predictor, ProbabilisticClassifier
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.tensors.device import place
from sparkdiff.training import monotone
from sparkdiff.training.distributed.choice import ProcessNumber
from sparkdiff.training.epoch_results import TrainedNetwork
from sparkdiff.training.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Task:
    """A pipeline to train with its options: the roles of its stages, its cut, the plan, and the label and weight
    columns.
    """

    model: Any
    roles: Roles
    cut: Cut
    plan: Plan
    options: Options
    labelCol: str | None  # None: clustering, whose loss needs no label
    weightCol: str | None
    soft: SoftLabels | None = None  # set if the labels were class probabilities

    def kept_as_fitted(self, columns: Iterable[str]) -> dict[str, str]:
        """Stages that must not be refitted, searched or deleted: {uid: reason}; passed to `unfitted_form(model, keep=...)`.

        Among them are the stages that compute the label, the weight or another column of the loss (such as
        `censorCol`).

        Args:
            columns: names of the columns of the rows.
        """
        graph = self.cut.graph
        wanted = [c for c in (self.labelCol, self.weightCol, *graph.head.lossInputs) if c is not None]
        makers = graph.makers(wanted, columns)
        return self.roles.kept_as_fitted(self.options.target) | {
            graph.formula_of(v) or v.uid: "the loss reads what it makes" for v in makers
        }

    def compare_other_outputs(
        self, judgement: Judgement, new: Any, df: DataFrame, keep: Collection[str] = ()
    ) -> tuple[Judgement, list[str]]:
        """Find outputs that differ between the original and `new` although no stage that may change writes them.

        Args:
            df: the rows on which the outputs are compared.
            keep: uids of further stages that must not be refitted.

        Returns:
            The judgement with the differences in `outside`, and warnings about columns that can't be compared.
        """
        graph, kept = self.cut.graph, {*self.kept_as_fitted(df.columns), *keep}
        fitted = {v.uid for v in graph.vertices if (graph.formula_of(v) or v.uid) not in kept}
        trained = {s.uid for s in self.plan.stages if s.trainable}
        differences, notes = find_output_changes(self.model, new, df, fitted | trained)
        return dataclasses.replace(judgement, outside=tuple(differences)), notes


def check_runs(model: Any, data: DataFrame) -> None:
    """Check that Spark can plan a new pipeline as a whole; other checks only plan its stages one by one.

    Runs no job.

    Raises:
        ParityError: Spark can't plan the pipeline; the message contains the reason.
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
        data: the rows or their schema, on which the computation of a few stages depends.

    Raises:
        InputError: the pipeline is not fitted, has several predictors or nothing to train, or a stage name matches no stage.
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
    frozen = roles.freeze(options.freeze, options.target)
    plan = plan_of(analysis, frozen)
    if not any(s.trainable for s in plan.stages):
        reasons = "; ".join(f"{s.uid}: {s.reason}" for s in plan.stages)
        raise InputError(f"nothing to train in {model.uid}: {reasons}")
    predictor, head = graph.head.module, graph.head.stage
    if options.tune == "threshold":
        if not isinstance(predictor, ProbabilisticClassifier):
            raise InputError(
                f"tune='threshold' moves the threshold at which a classifier with probabilities decides, and {head.uid} "
                f"({graph.head.stageClass}) is none: leave tune out"
            )
        if why := frozen.get(graph.head.position) or roles.kept_as_fitted(options.target).get(head.uid):
            raise InputError(
                f"tune='threshold' changes {head.uid} alone, and that is {why}: leave it out of freeze, or add it to target"
            )
        plan = plan_of(analysis, dict.fromkeys(roles.trainable, "only the threshold of the last stage moves"))
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


CANDIDATES = ("learningRate", "regAnchor", "recipe", "ema")
"""Options that only determine the candidates, the copies of the parameters that are trained side by side.

Settings that train together may differ in these options only, and share one optimizer.
"""
MOST = 16
"""Largest number of settings that train together.

With four candidates per setting, they have 64 copies of the parameters and of the optimizer's state; with the ten
candidates of `thorough`, 160.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class JointTraining:
    """Settings that train together, in one pass over the rows per epoch; they differ only in the options `CANDIDATES`."""

    settings: tuple[Options, ...]


@dataclasses.dataclass(frozen=True)
class JointSetting:
    """One of several settings that train together, and its position among them."""

    together: JointTraining
    position: int


def members(fits: Sequence[tuple[Any, Options]]) -> list[JointSetting | None]:
    """The joint training to which each (pipeline, options) belongs; None if it trains alone.

    These runs train alone: a run with a `runId`, so that it can be resumed; with `maxSeconds`, which would count the
    seconds of the other settings, too; with `tune="threshold"`, which trains nothing; with `numFolds`, which trains once
    per fold; and with `learningRates`, which are relative to a single `learningRate`.
    """
    groups: list[list[int]] = []
    for i, (pipeline, options) in enumerate(fits):
        if (
            options.runId is not None
            or options.maxSeconds is not None
            or options.tune == "threshold"
            or options.numFolds
            or options.learningRates
        ):
            continue
        for group in groups:
            other, first = fits[group[0]]
            but_candidates = dataclasses.replace(first, **{name: getattr(options, name) for name in CANDIDATES})
            if len(group) < MOST and other is pipeline and but_candidates == options:
                group.append(i)
                break
        else:
            groups.append([i])
    out: list[JointSetting | None] = [None] * len(fits)
    for group in groups:
        if len(group) > 1:
            together = JointTraining(tuple(fits[i][1] for i in group))
            for position, i in enumerate(group):
                out[i] = JointSetting(together, position)
    return out


class FitResults(SharedResults):
    """Results shared by fits on the same rows: each cache is fingerprinted, written and compared with Spark once."""

    def __init__(self) -> None:
        super().__init__()
        self._members: list[tuple[Any, Options, JointSetting | None]] = []

    def train_together(self, fits: Sequence[tuple[Any, Options]]) -> None:
        """Register all fits that will follow, each as (pipeline, options), and group those that can train together."""
        self._members = [(*fit, member) for fit, member in zip(fits, members(fits), strict=True)]

    def member_of(self, pipeline: Any, options: Options) -> JointSetting | None:
        """The joint training to which a registered fit belongs; None if the fit trains alone."""
        return next((m for p, o, m in self._members if p is pipeline and o == options), None)

    def has(self, key: tuple[Any, ...]) -> bool:
        """True if a result is stored for this key."""
        return key in self.found

    def cache(self, key: tuple[Any, ...], request: Request, watch: caches.Watch) -> caches.Cache:
        known = ("cache", key) in self.found
        if known and not self.found["cache", key].is_there:  # evicted because of `localCacheLimit`
            del self.found["cache", key]
        cache = self.once(("cache", key), lambda: caches.open_cache(request, watch))
        return dataclasses.replace(cache, hit=True) if known else cache

    def remove_caches(self) -> None:
        """Remove the files of all caches; a later fit writes them again."""
        for key, cache in [*self.found.items()]:
            if key[0] == "cache":
                atomic_files.remove(cache.folder)


def key_of(task: Task, sources: Sequence[Source]) -> tuple[Any, ...]:
    """Key of a cache: all that determines its content and place except the rows to be split; options of training are
    not in it.
    """
    o = task.options
    # The cut itself stands for the options that change it (reference, predictionCol, unfreeze); a list could be
    # incomplete.
    return (
        task.model,
        task.cut.graph.head_position,
        task.cut,
        task.labelCol,
        task.weightCol,
        rule(o),
        o.guardCols,
        o.cacheDir,
        *(s.df for s in sources if s.split == REFERENCE),
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run; `model` is the original object itself if the decision is to keep it.

    Attributes:
        original: the pipeline that was fine-tuned.
        folders: the checkpoint folders of the run's training runs.
    """

    model: Any
    original: Any
    plan: Plan
    summary: FineTuningSummary
    folders: tuple[CheckpointFolder, ...]


@dataclasses.dataclass(frozen=True)
class Goal:
    """The loss and the metric of a run, and statistics of the labels against which both were checked.

    Attributes:
        label: statistics of the labels of the training rows.
        labels: statistics of the labels of all rows; None without a label column.
        objective: the loss.
        warnings: warnings about splits in which all rows have the same label.
    """

    label: LabelStats
    labels: LabelStats | None
    objective: Objective
    metric: Metric
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """The input of all phases that follow the writing of the cache.

    Attributes:
        shared, key: the store of results that other fits on the same rows can use, too, and this run's key in it.
        network: the torch network of the original pipeline.
        computed: values that identify what the untrained network computes, see `network_identity`.
        versions: versions of the tables from which the rows come, as far as Spark's plans show them.
        divided: True if the validation rows were split off from the rows passed, False if they were passed separately.
        comparedRows: largest number of rows on which the network is compared with Spark.
    """

    task: Task
    phases: Phases
    shared: FitResults
    key: tuple[Any, ...]
    cache: caches.Cache
    network: Network
    computed: dict[str, Any]
    data: Data
    goal: Goal
    versions: list[dict[str, str]] = dataclasses.field(default_factory=list)
    divided: bool = True
    comparedRows: int = PARITY_ROWS

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        return self.shared.once((name, self.key), make)


@dataclasses.dataclass(frozen=True)
class PipelineScores:
    """The metric of a pipeline on each split with rows; and the agreement of its network with Spark, None if not
    compared.
    """

    scores: dict[str, Score]
    parity: Parity | None


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The result of training.

    Attributes:
        best: validation metric of the chosen network as a loss (smaller is better), as measured in training.
        frozen: by parameter, the number of entries that did not train because too few training rows support them.
        lost: a sentence for every restart after processes were lost.
        unsaved: why a checkpoint could not be written; empty if all were written.
        endedEarly: a sentence if maxSeconds ended training while candidates were still active; else empty.
        wishes: the requested signs of slopes (the penalty `monotone`); None without them.
        folder: the checkpoint folder; None if nothing trained.
        recipes: the settings of the candidates.
        device: the device that trained, as text.
        fallbacks: sentences on workarounds for a lack of memory on the device, and on other reasons for slow training.
        single: the effect of float32 on the original's outputs; None in float64.
        processes: the number of processes that numProcesses="auto" chose; None if the user set the number.
        params: if nothing trained, the Params of the last stage that set its threshold; else empty.
    """

    found: TrainedNetwork
    best: float
    frozen: dict[str, int]
    lost: list[str]
    unsaved: str
    endedEarly: str
    wishes: monotone.SlopeSigns | None
    folder: CheckpointFolder | None
    device: str
    fallbacks: list[str]
    single: Parity | None
    recipes: tuple[Recipe, ...]
    processes: ProcessNumber | None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GuardDecision:
    """The decision about the trained network, the network's validation metric, and warnings about the decision."""

    judgement: Judgement
    tuned: Score
    warnings: list[str]
