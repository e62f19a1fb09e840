"""The way of the data, once through: plan, cache, verify, train, guard, write back, verify."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparkdiff import jvm
from sparkdiff.data import cache as caches, soft_labels
from sparkdiff.data.fingerprint import SHARDS, Request, versions_of
from sparkdiff.data.soft_labels import Hardened
from sparkdiff.data.splits import REFERENCE, SPLITS, TRAIN, VALIDATION, Boundaries, Source, rule
from sparkdiff.data.stream import Stream, copies
from sparkdiff.device import place
from sparkdiff.diagnostics import rows as datachecks
from sparkdiff.diagnostics.pipelines import changes_outside, unreadable_by_older_spark
from sparkdiff.errors import InputError
from sparkdiff.evaluation import cached_parity, guard, single_precision
from sparkdiff.evaluation.acceptance import Judgement, check_options, divergence, judge, reason
from sparkdiff.evaluation.checks import (
    all_labels,
    check_classes,
    check_finite,
    check_repeats,
    check_trained,
    check_varies,
    training_labels,
)
from sparkdiff.evaluation.data import Data, rows_at_once
from sparkdiff.evaluation.feature_names import FeatureNames
from sparkdiff.evaluation.ledger import candidate_count, diverged
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.jvm import stores
from sparkdiff.machine import memory
from sparkdiff.objectives.losses import Objective, check_label
from sparkdiff.objectives.metrics import Metric
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Cut, analyse
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity
from sparkdiff.pipeline.plan import Plan, plan_of
from sparkdiff.pipeline.roles import Roles
from sparkdiff.pipeline.schema import SchemaOrRows, is_plain
from sparkdiff.pipeline.write_back import write_back
from sparkdiff.report import FineTuningSummary, Phases
from sparkdiff.report.record import versions
from sparkdiff.stages.base import columns_of
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.trainable import SUPPORT, LabelStats
from sparkdiff.store.files import folder_size, room
from sparkdiff.store.run_folder import UNTOLD, RunFolder, opened
from sparkdiff.training import monotone
from sparkdiff.training.distributed import choice, launch, number
from sparkdiff.training.distributed.worker import Assignment, objectives
from sparkdiff.training.preparation import computed_by, request_of, start_of
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.results import Trained


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
    _check_place(options, graph, cut)
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


def _check_place(options: Options, graph: Graph, cut: Cut) -> None:
    """Raise InputError for a device that this process lacks, and for a precision that a stage can't train in."""
    if options.device.startswith("cuda") and options.processes == 1:
        place(options.device, options.precision)
    trees = [graph.vertices[i].uid for i in cut.live if isinstance(graph.modules[i], Trees)]
    if trees and options.precision == "float32":
        raise InputError(
            f"precision='float32', but {trees[0]} compares its inputs with thresholds: rounded rows would reach other leaves "
            "than in Spark. Set precision='float64'"
        )


class Shared:
    """What fits on the same rows have in common: each distinct cache is fingerprinted, written and compared with Spark once."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Any] = {}
        self._lock, self._making = threading.Lock(), dict[tuple[Any, ...], threading.RLock]()

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What was made for this key, which holds every object that decides it."""
        with self._lock:
            making = self._making.setdefault(key, threading.RLock())
        with making:  # two threads don't make the same
            if key not in self._found:
                self._found[key] = make()
            return self._found[key]

    def cache(self, key: tuple[Any, ...], request: Request, watch: caches.Watch) -> caches.Cache:
        known = ("cache", key) in self._found
        if known and not self._found["cache", key].is_there:  # `localCacheLimit` gave its place to another one
            del self._found["cache", key]
        cache: caches.Cache = self.once(("cache", key), lambda: caches.open_cache(request, watch))
        return dataclasses.replace(cache, hit=True) if known else cache


def _key(task: Task, sources: Sequence[Source]) -> tuple[Any, ...]:
    """All that decides, beside the rows to split, what is cached and where; not how it is trained."""
    o = task.options
    # The cut itself, and not the options that move it (reference, predictionCol, unfreeze): a list of these can lack one.
    return (
        task.model, task.cut.graph.head_position, task.cut, task.labelCol, task.weightCol, rule(o), o.guardCols,
        o.cacheDir, *(s.df for s in sources if s.split == REFERENCE),
    )  # fmt: skip


# The phases' values ---------------------------------------------------------------------------------------------------


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
    processes: number.Choice | None


@dataclasses.dataclass(frozen=True)
class Judged:
    """The decision about the trained network, its validation metric, and warnings about the decision."""

    judgement: Judgement
    tuned: Score
    warnings: list[str]


# The phases -----------------------------------------------------------------------------------------------------------


def fine_tune(
    task: Task, sources: Sequence[Source], phases: Phases, *, shared: Shared | None = None, replace: bool = False,
    boundaries: Boundaries | None = None, recipes: Sequence[Recipe] | None = None,
) -> Outcome:  # fmt: skip
    """Train what the plan says on these rows, and return the pipeline that held-out rows decide for.

    Args:
        phases: times the phases and tells the listeners.
        recipes: the candidates to train; None: those of `options.recipe`.
        boundaries: where time divides the rows, if that is known already.
        replace: start again if `options.runId` was started with other settings, instead of raising.

    Raises:
        InputError: the data or options can't be used (nothing has been written but, perhaps, a complete cache).
        ParityError: the network and Spark disagree.
    """
    shared = shared or Shared()
    if soft_labels.given(sources, task.labelCol):
        task, boundaries = hardened(task, sources, phases, shared), None
        assert task.soft is not None
        sources = task.soft.sources
        if task.soft.held < guard.MIN_UNITS:
            return _no_evidence(task, task.soft, phases)
    with begun(task, sources, phases, shared=shared, boundaries=boundaries) as run:
        original = verified(run)
        doubts = checked(run)
        fitted = trained(run, original, recipes, replace=replace)
        judged = _judge(run, original, fitted)
        model, tuned = task.model, dataclasses.replace(original, parity=None)
        if judged.judgement.accepted:
            model, tuned = written(run, original, fitted.found.network, {VALIDATION: judged.tuned})
        summary = _summary(run, original, fitted, judged, tuned, doubts)
        phases.on_decision(summary)
        return Outcome(model, task.model, task.plan, summary, (fitted.folder,))


def hardened(task: Task, sources: Sequence[Source], phases: Phases, shared: Shared) -> Task:
    """The task with the rows that labels of class probabilities stand for.

    Raises:
        InputError: the labels can't be used, or the predictor or an option needs one label per row.
    """
    o, head, label = task.options, task.roles.graph.head, task.labelCol
    predictor = head.module
    assert isinstance(predictor, Predictor) and label is not None
    if not predictor.classes or not predictor.labelled:
        what = "predicts no classes that were labelled" if predictor.classes else "predicts numbers"
        raise InputError(
            f"labelCol={label!r} is a vector of class probabilities, but {head.uid} {what}: name another column"
        )
    soft_labels.check_options(o)
    with phases.phase("labels") as say:
        frames = tuple(s.df for s in sources)
        key = ("soft", label, task.weightCol, rule(o), predictor.classes, *frames)
        found: Hardened = shared.once(
            key, lambda: soft_labels.hardened(sources, o, label, task.weightCol, predictor.classes)
        )
        say(found.told())
    return dataclasses.replace(task, soft=found)


def _no_evidence(task: Task, soft: Hardened, phases: Phases) -> Outcome:
    """The outcome where too few rows with true labels are held out: nothing is trained, because nothing could be accepted."""
    why = (
        f"no evidence: {soft.held:,} validation rows have a true label (a probability of 1 for one class), and at least "
        f"{guard.MIN_UNITS} are needed to decide, because labels that are themselves guesses prove nothing. Label some rows, and "
        "add them, or hold out more of them by validationFraction or validationIndicatorCol"
    )
    network = Network(task.cut.graph, task.cut.live)
    classes = torch.zeros(network.head.classes, dtype=torch.int64)
    _, metric = objectives(task.options, network, LabelStats(0.0, 1.0, 0.0, len(classes) - 1.0, classes))
    summary = FineTuningSummary(
        decision="kept original", reason=why, metric=metric.name, metricDirection=metric.direction,
        metrics=dict.fromkeys(SPLITS[:3]), gain=0.0, z=0.0, p=1.0, records=[], parity={}, stages={},
        timings={k: round(v, 3) for k, v in phases.timings.items()}, stream=task.options.stream,
        cache={"hit": False, "fingerprint": "", "rows": {TRAIN: soft.soft + soft.certain, VALIDATION: soft.held}},
        options=shown_options(task, metric), versions=versions(), warnings=[soft.told()], candidates=0, diverged=0,
        precision=task.options.precision,
    )  # fmt: skip
    phases.on_decision(summary)
    return Outcome(task.model, task.model, task.plan, summary, ())


@contextlib.contextmanager
def begun(
    task: Task, sources: Sequence[Source], phases: Phases, *, shared: Shared | None = None, boundaries: Boundaries | None = None,
    allTrain: bool = False, keyed: bool = False,
) -> Iterator[Run]:  # fmt: skip
    """Write the cache or find it, and open it for the phases that follow, while the context lasts.

    Args:
        allTrain, keyed: see `Request`.
    """
    # A batch takes as many rows from each virtual shard.
    o = dataclasses.replace(task.options, batchSize=-(-task.options.batchSize // SHARDS) * SHARDS)
    task, shared, key = dataclasses.replace(task, options=o), shared or Shared(), (*_key(task, sources), keyed)
    if o.checkpointDir is not None and stores.url_of(where := jvm.folder("checkpointDir", o.checkpointDir)) is not None:
        jvm.check_writable("checkpointDir", o.checkpointDir, where)  # before anything runs
    with phases.phase("cache") as say:
        weight = task.weightCol if task.soft is None else task.soft.weightCol
        request = Request(task.cut, list(sources), o, task.labelCol, weight, boundaries, allTrain, keyed)
        cache = shared.cache(key, request, lambda folder: say.watched(caches.Growing(folder).told))
        counts = ", ".join(f"{cache.rows(s):,} {s}" for s in cache.splits if not (allTrain and s == VALIDATION))
        say(
            f"{'reused' if cache.hit else 'written'}: {counts} rows, {len(task.plan.cacheCols)} columns, {_size(cache.folder)}"
        )
    network = Network(task.cut.graph, task.cut.live)
    # Before the network sees a row, by which some stages remember how far it is spread.
    computed = computed_by(network)
    # Where others train, this process only measures, once before and once after.
    held = _in_memory(o, cache) and o.processes == 1
    with Stream(cache.folder, backend=o.stream, inMemory=held, seed=o.seed) as stream:
        data = Data(stream, cache.columns(task.cut), rows=rows_at_once(network, stream))
        goal = _goal(task, cache, network, reference=any(s.split == REFERENCE for s in sources))
        yield Run(task, phases, shared, key, cache, network, computed, data, goal, versions_of(sources))


def _in_memory(options: Options, cache: caches.Cache) -> bool:
    several = options.numProcesses == number.AUTO  # then this process has read the rows, too
    return options.cacheInMemory and cache.fits_in_memory(copies(SHARDS, options.processes) + several)


def _goal(task: Task, cache: caches.Cache, network: Network, *, reference: bool) -> Goal:
    """Resolve the loss and the metric, and check the labels and the options against them.

    Args:
        reference: whether there are reference rows.
    """
    head, stats = network.head, cache.manifest["stats"]
    label = training_labels(stats, reference=reference)
    check_options(task.options, head)
    objective, metric = objectives(task.options, network, label)
    labels, fractional = all_labels(stats)
    for bound in (objective, metric):
        if task.labelCol is not None and head.labelled:
            check_label(bound, head, labels, task.labelCol, fractional)
    return Goal(
        label, labels if task.labelCol else None, objective, metric,
        check_varies(stats, task.options, head, task.labelCol),
    )  # fmt: skip


def verified(run: Run) -> Measured:
    """Measure the original, and compare its network with Spark."""
    task, cache, network, data = run.task, run.cache, run.network, run.data
    own = callable(task.options.loss) and task.options.metric is None
    with run.phases.phase("verify") as say:
        scores = {s: score(network, data, s, run.goal.metric) for s in cache.splits}
        memory.trim()
        check_finite(scores, run.goal.metric, task.model.uid, run.goal.labels, own=own)
        if own:
            check_repeats(run.goal.metric, network, data)
        check_classes(run.goal.metric, cache.manifest["stats"])
        parity = run.once(
            "parity",
            lambda: cached_parity.check(
                task.model, network, cached_parity.sample_of(network, data), cache, _known(run)
            ),
        )
        say(f"the network reproduces Spark: {parity}")
        return Measured(scores, parity)


def _known(run: Run) -> dict[str, Any] | None:
    """Everything that decides what Spark's stages compute; None if code does that is not Spark's own."""
    plain = all(is_plain(vertex.stage) for vertex in run.network.graph.vertices)
    return run.computed if plain and not run.computed["pipeline"].startswith(UNTOLD) else None


def checked(run: Run) -> list[str]:
    """Warnings about the rows."""
    cache, o, label = run.cache, run.task.options, run.goal.label
    with run.phases.phase("check") as say:
        found = run.once(
            "check",
            lambda: datachecks.check(
                run.network,
                run.data,
                cache.described(run.task.cut),
                o,
                label,
                cache.splits,
                copies=run.task.soft is not None,
            ),
        )
        doubts: list[str] = found + run.goal.warnings
        say(f"{len(doubts)} warnings about the data" if doubts else "no warnings about the data")
        return doubts


def trained(
    run: Run, original: Measured, recipes: Sequence[Recipe] | None, *, replace: bool, epochs: int | None = None
) -> Fitted:  # fmt: skip
    """Train all candidates, or resume the training of an earlier run with the same runId.

    Args:
        epochs: train one candidate for so many epochs, and take the last one.
    """
    o, cache, network, data, goal = run.task.options, run.cache, run.network, run.data, run.goal
    with run.phases.phase("train") as say:
        single = single_precision.check(network, data) if o.precision == "float32" else None
        start = start_of(network, data, goal.label, o, cache.rows(VALIDATION), recipes)
        memory.trim()
        wishes = _wishes(run) if "monotone" in o.penalties else None
        penalty = None if wishes is None else wishes.penalty(start.stats, goal.label)
        assignment = Assignment(
            network, cache.folder, data.stream.backend, _in_memory(o, cache), data.columns, goal.label,
            original.scores[VALIDATION], start, o, goal.metric.name, penalty, epochs=epochs,
        )  # fmt: skip
        with (
            run_folder(run, o.runId, recipes=recipes, epochs=epochs, replace=replace) as folder,
            _interruption_told(o.runId, say),
        ):
            training, lost = launch.run(assignment, data.stream, folder, say.now, run.phases.on_epoch)
            folder.check()
            note = choice.Note.read(folder.path) or choice.Note()
            several = number.Choice.read(folder.path) if o.numProcesses == number.AUTO else None
        unsaved = training.unsaved or folder.unsaved
        return Fitted(
            training.found(network), training.chosen.metric, start.frozen, lost, unsaved, training.cut, wishes,
            folder, note.shown, training.fallbacks, single, start.recipes, several,
        )  # fmt: skip


@contextlib.contextmanager
def _interruption_told(runId: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """Tell a user who interrupts the training how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        later = (
            "with a runId, the same fit would go on from here"
            if runId is None
            else f"runId={runId!r} goes on from here"
        )
        say(f"interrupted; {later}")
        raise


def _size(folder: Path) -> str:
    """The bytes in a folder, as text; empty if files in it are renamed meanwhile."""
    with contextlib.suppress(OSError):
        return f"{folder_size(folder) / 1e6:,.1f} MB"
    return ""


@contextlib.contextmanager
def run_folder(
    run: Run, runId: str | None, *, replace: bool, recipes: Sequence[Recipe] | None = None, epochs: int | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Iterator[RunFolder]:  # fmt: skip
    """The folder of a training on these rows, which is removed at the end unless it has a runId.

    Args:
        beside: what else decides the result, by name.
    """
    o = run.task.options
    where = jvm.folder("checkpointDir", o.checkpointDir) if o.checkpointDir else run.cache.folder.parent / "checkpoints"
    computed = run.computed if runId is not None else {}
    request = request_of(o, run.cache.fingerprint, computed, recipes, epochs) | dict(beside or {})
    own = o.checkpointDir is None
    with (
        opened(where, runId, request, replace=replace, own=own, wait=o.waitForRun) as folder,
        folder.kept(always=runId is not None),
    ):
        yield folder


def _wishes(run: Run) -> monotone.Wishes:
    values = run.data.values(run.data.nothing())
    run.network.margin(values)
    names = FeatureNames(run.network, run.cache.described(run.task.cut), values)
    return monotone.Wishes(run.task.options.penalties["monotone"], run.network, names)


def _judge(run: Run, original: Measured, fitted: Fitted) -> Judged:
    """Decide whether the trained network may replace the original."""
    found, metric, held_out = fitted.found, run.goal.metric, original.scores[VALIDATION]
    with run.phases.phase("judge"):
        tuned = score(found.network, run.data, VALIDATION, metric)
        single, ledger = run.task.options.precision == "float32", found.ledger
        check_trained(run.task.model.uid, fitted.best, tuned, metric, single=single)
        if single:  # the guard decides on rows as Spark has them
            ledger = ledger.measured_again(held_out.blocks - tuned.blocks)
        networks, reference = (run.network, found.network), bool(run.cache.rows(REFERENCE))
        judged = judge(run.task.options, run.data, metric, networks, ledger, held_out, reference=reference)
        warnings = datachecks.too_few_rows(ledger.gains, ledger.weights, judged.verdict, held_out.mean)
        if fitted.wishes is not None and judged.accepted:
            warnings = [*warnings, *fitted.wishes.broken(found.network)]
        return Judged(judged, tuned, warnings)


def written(run: Run, original: Measured, network: Network, known: Mapping[str, Score]) -> tuple[Any, Measured]:
    """The trained network as Spark stages, compared with Spark, and its metrics.

    Args:
        known: those of the metrics that were measured before.
    """
    model, data, cache = run.task.model, run.data, run.cache
    with run.phases.phase("write back") as say:
        scores = {s: known.get(s) or score(network, data, s, run.goal.metric) for s in original.scores}
        memory.trim()
        sample = cached_parity.sample_of(network, data)
        data.stream.close()  # the last that read the rows: room for Spark's
        memory.trim()
        where = cache.folder.parent
        with jvm.scratch(where), room("the data of the new Spark model", where, caches.ROOM):
            model = write_back(model, network)
        parity = cached_parity.check(model, network, sample, cache)
        say(f"Spark reproduces the network: {parity}")
        return model, Measured(scores, parity)


# Summary --------------------------------------------------------------------------------------------------------------


def _summary(
    run: Run, original: Measured, fitted: Fitted, judged: Judged, tuned: Measured, doubts: Sequence[str]
) -> FineTuningSummary:  # fmt: skip
    judgement, found = judged.judgement, fitted.found
    held, now = original.scores[VALIDATION], tuned.scores[VALIDATION]
    compared = {"before": original.parity, "after": tuned.parity, "float32": fitted.single}
    return FineTuningSummary(
        decision="tuned" if judgement.accepted else "kept original",
        reason=reason(judgement, run.task.options, run.goal.metric, held.value, found.history),
        warnings=warnings_of(run, fitted, judged, now, doubts), options=shown_options(run.task, run.goal.metric),
        **facts(run), **tested(judgement), **measured(original, tuned), **trained_facts(fitted, compared, judgement.accepted),
    )  # fmt: skip


# Values of a summary by name, which the summaries of all verbs share.


def facts(run: Run) -> dict[str, Any]:
    """What is known without training."""
    metric, cache = run.goal.metric, run.cache
    known = {"hit": cache.hit, "fingerprint": cache.fingerprint, "rows": {s: cache.rows(s) for s in cache.splits}}
    known |= {name: list(uids) for name, uids in (("stagesRead", cache.read), ("stagesKept", cache.kept)) if uids}
    return {
        "metric": metric.name, "metricDirection": metric.direction, "versions": versions(),
        "timings": {k: round(v, 3) for k, v in run.phases.timings.items()}, "stream": run.data.stream.backend,
        "cache": known | ({"versions": run.versions} if run.versions else {}), "precision": run.task.options.precision,
    }  # fmt: skip


def shown_options(task: Task, metric: Metric, **more: Any) -> dict[str, Any]:
    """All options, with the columns and the metric that were found where none was named."""
    found = {"labelCol": task.labelCol, "weightCol": task.weightCol, "metric": task.options.metric or metric.name}
    return task.options.asdict(every=True) | more | found


def tested(judgement: Judgement) -> dict[str, Any]:
    """What the guard found."""
    verdict, reference, compatibility = judgement.verdict, judgement.reference, judgement.compatibility
    return {
        "z": verdict.z, "p": verdict.p, "gainInterval": None if verdict.interval is None else list(verdict.interval),
        "slices": [dataclasses.asdict(c) for c in judgement.slices],
        "reference": None if reference is None else dataclasses.asdict(reference),
        "compatibility": None if compatibility is None else dataclasses.asdict(compatibility),
    }  # fmt: skip


def measured(original: Measured, after: Measured) -> dict[str, Any]:
    """The metrics of both pipelines, and the gain on validation rows."""
    before, now = original.scores, after.scores
    held, own = before[VALIDATION], now[VALIDATION]
    metrics = {
        s: {"before": before[s].value, "after": now[s].value} if s in before else None
        for s in SPLITS
        if s in before or s != REFERENCE
    }
    return {"metrics": metrics, "gain": held.sign * (held.value - own.value) / max(abs(held.value), 1e-12)}


def trained_facts(fitted: Fitted, compared: Mapping[str, Parity | None], changed: bool) -> dict[str, Any]:
    """What training did.

    Args:
        compared: parities, None where nothing was compared.
        changed: whether the result has the trained parameters.
    """
    found = fitted.found
    moved = found.moved.items() if changed else ()
    return {
        "records": found.history, "candidates": candidate_count(found.history), "diverged": len(diverged(found.history)),
        "parity": {k: dataclasses.asdict(p) for k, p in compared.items() if p is not None},
        "stages": {k: {"largest": a, "rootMeanSquare": b} for k, (a, b) in moved}, "device": fitted.device,
        "processes": None if fitted.processes is None else dataclasses.asdict(fitted.processes),
    }  # fmt: skip


def warnings_of(run: Run, fitted: Fitted, judged: Judged, tuned: Score, doubts: Sequence[str]) -> list[str]:
    """Reasons to doubt the figures."""
    task, o, goal, judgement = run.task, run.task.options, run.goal, judged.judgement
    warnings = [
        *judgement.verdict.warnings, *([task.soft.told()] if task.soft else []), *unreadable_by_older_spark(task.model), *doubts,
        *filter(None, [fitted.unsaved, fitted.cut]), *fitted.fallbacks, *judged.warnings,
    ]  # fmt: skip
    warnings += [f"{loss}; training continued from the last checkpoint" for loss in fitted.lost]
    lost_candidates = divergence(fitted.found.history, o)
    if lost_candidates and judgement.verdict.best >= 0:  # else the reason says it
        warnings.append(lost_candidates)
    if judgement.reference is not None and judgement.reference.p is None:
        warnings.append(
            f"the reference rows come from {judgement.reference.units} groups or blocks, fewer than "
            f"{guard.MIN_UNITS}: they were measured, but not tested"
        )
    if fitted.frozen:
        entries = ", ".join(f"{n} of {name}" for name, n in fitted.frozen.items())
        warnings.append(f"entries that did not train, because fewer than {SUPPORT} training rows have them: {entries}")
    if o.localSteps > 1:
        one = f"localSteps={o.localSteps} has no effect in one process"
        several = f"with localSteps={o.localSteps} another number of processes than {o.processes} gives another result"
        warnings.append(one if o.processes == 1 else several)
    if o.cacheInMemory and not _in_memory(o, run.cache):
        warnings.append(
            "the cached rows would use half of the memory of this machine, so each epoch read them from the files"
        )
    trained = [i for i, s in enumerate(task.plan.stages) if s.trainable]
    warnings += changes_outside(task.roles, trained, judgement.accepted)
    if judgement.accepted and not goal.objective.calibrated:
        warnings.append(
            f"the loss {goal.objective.name} trains decisions or ranks, not probabilities: the probabilities of the "
            "tuned pipeline are no longer calibrated"
        )
    if tuned.below:
        warnings.append(
            f"{tuned.below} validation rows are predicted below {goal.metric.floor:.3g}, where {goal.metric.name} continues as "
            "a parabola"
        )
    return warnings
