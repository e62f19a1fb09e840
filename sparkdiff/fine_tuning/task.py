"""A fine-tuning as values: what is trained (a pipeline, analysed, with its roles resolved), what fits on the same rows share, and
what the phases hand to one another.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data import cache as caches
from sparkdiff.data.fingerprint import Request
from sparkdiff.data.soft_labels import Hardened
from sparkdiff.data.splits import REFERENCE, Source, rule
from sparkdiff.diagnostics.predictions import changed_outputs
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.acceptance import Judgement
from sparkdiff.evaluation.cached_parity import PARITY_ROWS
from sparkdiff.evaluation.data import Data
from sparkdiff.evaluation.scores import Score
from sparkdiff.machine import whole
from sparkdiff.machine.threads import MadeOnce
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
from sparkdiff.stages.predictor import Predictor
from sparkdiff.store.run_folder import RunFolder
from sparkdiff.tensors.device import place
from sparkdiff.training import monotone
from sparkdiff.training.distributed.choice import ProcessNumber
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.results import Trained


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


CANDIDATES = ("learningRate", "regAnchor", "recipe", "ema")
"""Options that only decide which candidates train; all others must be the same. Candidates share one optimizer."""
MOST = 16
"""Settings that train together: with four candidates each, 64 copies of the parameters and of the optimizer's state; with the
ten of `thorough`, 160.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """Options that differ in their candidates only."""

    settings: tuple[Options, ...]


@dataclasses.dataclass(frozen=True)
class JointSetting:
    """One of several settings that train together, by its position."""

    together: Together
    position: int


def members(fits: Sequence[tuple[Any, Options]]) -> list[JointSetting | None]:
    """For each (pipeline, options) the training that it is a part of; None where it trains alone.

    A run with a `runId` has a training of its own, which can be resumed; `maxSeconds` would count the seconds of the others.
    `numFolds` trains once per fold, and `learningRates` are relative to one `learningRate`.
    """
    groups: list[list[int]] = []
    for i, (pipeline, options) in enumerate(fits):
        if options.runId is not None or options.maxSeconds is not None or options.numFolds or options.learningRates:
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
            together = Together(tuple(fits[i][1] for i in group))
            for position, i in enumerate(group):
                out[i] = JointSetting(together, position)
    return out


class Shared(MadeOnce):
    """What fits on the same rows have in common: each distinct cache is fingerprinted, written and compared with Spark once."""

    def __init__(self) -> None:
        super().__init__()
        self._members: list[tuple[Any, Options, JointSetting | None]] = []

    def train_together(self, fits: Sequence[tuple[Any, Options]]) -> None:
        """Take note of all fits that will be asked for, each a pipeline and options."""
        self._members = [(*fit, member) for fit, member in zip(fits, members(fits), strict=True)]

    def member_of(self, pipeline: Any, options: Options) -> JointSetting | None:
        """The training of several settings that one of those fits is a part of; None: it trains alone."""
        return next((m for p, o, m in self._members if p is pipeline and o == options), None)

    def has(self, key: tuple[Any, ...]) -> bool:
        """Whether there is something for this key."""
        return key in self.found

    def cache(self, key: tuple[Any, ...], request: Request, watch: caches.Watch) -> caches.Cache:
        known = ("cache", key) in self.found
        if known and not self.found["cache", key].is_there:  # `localCacheLimit` gave its place to another one
            del self.found["cache", key]
        cache = self.once(("cache", key), lambda: caches.open_cache(request, watch))
        return dataclasses.replace(cache, hit=True) if known else cache

    def remove_caches(self) -> None:
        """Remove the files of all caches; a later fit would write them again."""
        for key, cache in [*self.found.items()]:
            if key[0] == "cache":
                whole.remove(cache.folder)


def key_of(task: Task, sources: Sequence[Source]) -> tuple[Any, ...]:
    """All that decides, beside the rows to split, what is cached and where; not how it is trained."""
    o = task.options
    # The cut itself, and not the options that move it (reference, predictionCol, unfreeze): a list of these can lack one.
    return (
        task.model, task.cut.graph.head_position, task.cut, task.labelCol, task.weightCol, rule(o), o.guardCols,
        o.cacheDir, *(s.df for s in sources if s.split == REFERENCE),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run's result: `model` is the original object itself where the decision is to keep it.

    Attributes:
        original: the pipeline that was fine-tuned.
        folders: of the run's trainings.
    """

    model: Any
    original: Any
    plan: Plan
    summary: FineTuningSummary
    folders: tuple[RunFolder, ...]


@dataclasses.dataclass(frozen=True)
class Goal:
    """The loss and the metric, and the labels that they were checked with.

    Attributes:
        label: the labels of the training rows.
        labels: the labels of all rows; None without a label column.
        warnings: about splits in which all rows have the same label.
    """

    label: LabelStats
    labels: LabelStats | None
    objective: Objective
    metric: Metric
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """The input of all phases after the cache.

    Attributes:
        shared, key: give the results that other fits on the same rows can use, too.
        network: the network of the original.
        computed: identifies the network before it sees a row.
        versions: of the tables that the rows come from, as far as their plans show them.
        divided: whether the validation rows are a share of the rows that were passed.
        comparedRows: largest number of rows compared with Spark.
    """

    task: Task
    phases: Phases
    shared: Shared
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
class Measured:
    """The metric of a pipeline on each split that has rows, and its parity with Spark; None if it was not compared again."""

    scores: dict[str, Score]
    parity: Parity | None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The result of training.

    Attributes:
        best: the metric (as a loss) that training measured for the chosen network.
        frozen: per parameter the number of entries that did not train, because too few rows have them.
        lost: a sentence for every restart after lost processes.
        unsaved: why a checkpoint could not be written; empty if all were written.
        cut: that maxSeconds ended training while candidates were still active; empty if not.
        recipes: the candidates.
        device: where it was trained, as text.
        fallbacks: what was done there where memory was short, and what else is slower than it could be.
        single: how far float32 moves the original's outputs; None in float64.
        processes: how many trained, where they were to be chosen; else None.
    """

    found: Trained
    best: float
    frozen: dict[str, int]
    lost: list[str]
    unsaved: str
    cut: str
    wishes: monotone.Wishes | None
    folder: RunFolder
    device: str
    fallbacks: list[str]
    single: Parity | None
    recipes: tuple[Recipe, ...]
    processes: ProcessNumber | None


@dataclasses.dataclass(frozen=True)
class Judged:
    """The decision about the trained network, its validation metric, and warnings about the decision."""

    judgement: Judgement
    tuned: Score
    warnings: list[str]
