"""The way of the data, once through: plan, cache, verify, train, guard, write back, verify."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyspark.util import VersionUtils

from sparkdiff import jvm
from sparkdiff.data import cache as caches
from sparkdiff.data.cache import Cache
from sparkdiff.data.fingerprint import SHARDS, Request
from sparkdiff.data.splits import REFERENCE, SPLITS, TRAIN, VALIDATION, Cuts, Source, rule
from sparkdiff.data.stream import Stream, copies
from sparkdiff.diagnostics import rows as datachecks
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation import cached_parity, guard
from sparkdiff.evaluation.acceptance import Judgement, check_options, divergence, judge, reason
from sparkdiff.evaluation.data import Data, rows_at_once
from sparkdiff.evaluation.feature_names import Slots
from sparkdiff.evaluation.ledger import candidate_count, diverged
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.machine import memory
from sparkdiff.objectives.losses import Objective, check_label, no_event, one_label
from sparkdiff.objectives.metrics import Metric
from sparkdiff.options import Options, callable_name
from sparkdiff.pipeline.cut import Cut, analyse
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity
from sparkdiff.pipeline.plan import Plan, plan_of
from sparkdiff.pipeline.roles import Roles
from sparkdiff.pipeline.schema import SchemaOrRows
from sparkdiff.pipeline.write_back import write_back
from sparkdiff.report import Phases
from sparkdiff.report.summary import FineTuningSummary
from sparkdiff.stages.base import REGISTRY, SUPPORT, LabelStats, StageModule, class_name, columns_of
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import Predictor
from sparkdiff.store.digests import all_params, without_uids
from sparkdiff.store.disk import room
from sparkdiff.store.files import not_writable
from sparkdiff.store.identity import UntoldError, identity
from sparkdiff.store.lease import held, lease_of
from sparkdiff.store.run_folder import RunFolder, folder_name, untold
from sparkdiff.training import monotone
from sparkdiff.training.distributed import launch
from sparkdiff.training.distributed.worker import Assignment, objectives
from sparkdiff.training.loop import STATE, Trained
from sparkdiff.training.preparation import outset

FOLDED = 1e-6
"""Relative difference allowed between a metric of the folded candidates and of the network itself."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run's result: `model` is the original object itself where the decision is to keep it."""

    model: Any
    plan: Plan
    summary: FineTuningSummary
    folder: RunFolder


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

    @property
    def graph(self) -> Graph:
        return self.cut.graph


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
    label = options.labelCol or next(iter(columns_of(head, ("labelCol",))), None)
    if not predictor.labelled and label is not None and not callable(options.loss):
        raise InputError(
            f"{head.uid} does not use labelCol={label!r}: its clusters have no label. Leave it out, or set "
            "loss to a function of its outputs and the label"
        )
    if not predictor.labelled and label is None and callable(options.loss):
        raise InputError(f"{head.uid} names no label column, but a loss of your own needs one; set labelCol")
    if label is None and predictor.labelled:
        raise InputError(f"{head.uid} names no label column; set labelCol")
    weight = options.weightCol or next(iter(columns_of(head, ("weightCol",))), None)
    return Task(model, roles, cut, plan, options, label, weight)


class Shared:
    """What fits on the same rows have in common: each distinct cache is fingerprinted, written and compared with Spark once."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Any] = {}

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What was made for this key, which holds every object that decides it."""
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]

    def cache(self, key: tuple[Any, ...], request: Request) -> Cache:
        known = ("cache", key) in self._found
        cache: Cache = self.once(("cache", key), lambda: caches.open_cache(request))
        return dataclasses.replace(cache, hit=True) if known else cache


def _cached(task: Task, sources: Sequence[Source]) -> tuple[Any, ...]:
    """All that decides, beside the rows to split, what is cached and where; not how it is trained."""
    o = task.options
    # The cut itself, and not the options that move it (reference, predictionCol, unfreeze): a list of these can lack one.
    return (
        task.model, task.graph.head_position, task.cut, task.labelCol, task.weightCol, rule(o), o.guardCols,
        o.cacheDir, *(s.df for s in sources if s.split == REFERENCE),
    )  # fmt: skip


def fine_tune(
    task: Task, sources: Sequence[Source], phases: Phases, *, shared: Shared | None = None, replace: bool = False,
    cuts: Cuts | None = None,
) -> Outcome:  # fmt: skip
    """Train what the plan says on these rows, and return the pipeline that held-out rows decide for.

    Args:
        cuts: where time divides the rows, if that has been found.
        replace: begin anew where `options.runId` was begun for something else, instead of raising.

    Raises:
        InputError: the data or options can't be used (nothing has been written but, perhaps, a complete cache).
        ParityError: the network and Spark disagree.
    """
    graph, options, shared, what = task.graph, task.options, shared or Shared(), _cached(task, sources)
    with phases.phase("cache") as say:
        cache = shared.cache(what, Request(task.cut, list(sources), options, task.labelCol, task.weightCol, cuts))
        counts = ", ".join(f"{cache.rows(s):,} {s}" for s in SPLITS if cache.rows(s))
        say(f"{'reused' if cache.hit else 'written'}: {counts} rows, {len(task.plan.cacheCols)} columns")
    network = Network(graph, task.cut.live)
    # Before the network sees a row, by which some stages remember how far it is spread.
    what_trains = _told_of(network) if options.runId is not None else {}
    in_memory = options.cacheInMemory and cache.fits_in_memory(copies(SHARDS, options.numProcesses))
    # Where others train, this process only measures, once before and once after.
    held = in_memory and options.numProcesses == 1
    with Stream(cache.folder, backend=options.stream, inMemory=held, seed=options.seed) as stream:
        data = Data(stream, cache.columns(task.cut), rows=rows_at_once(network, stream))
        label = _label(task, cache, network, sources)
        check_options(options, network.head)
        objective, metric = objectives(options, network, label)
        labels, fractional = _all_labels(cache)
        for bound in (objective, metric):
            if task.labelCol is not None and network.head.labelled:
                check_label(bound, network.head, labels, task.labelCol, fractional)
        uniform = _check_varies(task, cache, network.head)
        with phases.phase("verify") as say:
            before = {s: score(network, data, s, metric) for s in SPLITS if cache.rows(s)}
            memory.trim()
            _check_finite(before, metric, task, labels)
            _check_classes(metric, cache)

            def compared() -> Parity:
                return cached_parity.check(task.model, network, cached_parity.sample_of(network, data), cache)

            parity = {"before": shared.once(("parity", what), compared)}
            say(f"the network reproduces Spark: {parity['before']}")
        with phases.phase("check") as say:
            doubts = shared.once(("check", what), lambda: _doubts(task, cache, network, data, label)) + uniform
            say(f"{len(doubts)} warnings about the data" if doubts else "no warnings about the data")
        with phases.phase("train") as say:
            start = outset(network, data, label, options, cache.rows(VALIDATION))
            memory.trim()
            wishes = _wishes(options, network, data, cache) if "monotone" in options.penalties else None
            penalty = None if wishes is None else wishes.penalty(start.stats, label)
            assignment = Assignment(
                network, cache.folder, stream.backend, in_memory, data.columns, label, before[VALIDATION],
                start.scales, start.recipes, whole_batches(options), metric.name, start.stats, penalty,
            )  # fmt: skip
            with (
                _run_folder(options, what_trains, cache, replace) as folder,
                folder.kept(always=options.runId is not None),
            ):
                training, lost = launch.run(assignment, stream, folder, say.now)
                folder.check()
            found = training.found(network)
            doubts = [*doubts, training.unsaved] if training.unsaved else doubts
        with phases.phase("judge"):
            tuned = score(found.network, data, VALIDATION, metric)
            _check_trained(training.best, tuned, metric, task)
            judged = judge(
                options,
                data,
                metric,
                (network, found.network),
                found.ledger,
                before[VALIDATION],
                reference=bool(cache.rows(REFERENCE)),
            )
            held_out = before[VALIDATION].mean
            doubts = [
                *doubts,
                *datachecks.too_few_rows(found.ledger.gains, found.ledger.weights, judged.verdict, held_out),
            ]
            if wishes is not None and judged.accepted:
                doubts += wishes.broken(found.network)
        model, after = task.model, before
        if judged.accepted:
            with phases.phase("write back") as say:
                after = {s: tuned if s == VALIDATION else score(found.network, data, s, metric) for s in before}
                memory.trim()
                sample = cached_parity.sample_of(found.network, data)
                stream.close()  # the last that read the rows: room for Spark's
                memory.trim()
                where = cache.folder.parent
                with jvm.scratch(where), room("the data of the new Spark model", where, caches.ROOM):
                    model = write_back(task.model, found.network)
                parity["after"] = cached_parity.check(model, found.network, sample, cache)
                say(f"Spark reproduces the network: {parity['after']}")
        summary = _summary(
            task,
            cache,
            stream,
            objective,
            metric,
            found,
            start.frozen,
            lost,
            doubts,
            judged,
            (before, after),
            parity,
            phases,
        )
        return Outcome(model, task.plan, summary, folder)


def whole_batches(options: Options) -> Options:
    """The options with batchSize rounded up, so that every batch takes as many rows from each virtual shard."""
    return dataclasses.replace(options, batchSize=-(-options.batchSize // SHARDS) * SHARDS)


# What decides where, how and how loud training runs, but not what comes of it.
_OUTSIDE = (
    "verbosity", "numProcesses", "localMode", "timeout", "stream", "cacheInMemory", "cacheDir", "checkpointDir", "runId", "guard",
    "maxFlipRate", "fleetSize", "waitForRun",
)  # fmt: skip


@contextlib.contextmanager
def _run_folder(o: Options, what_trains: Mapping[str, Any], cache: Cache, replace: bool) -> Iterator[RunFolder]:
    """The folder of this training, which an earlier one of the same runId may have left a checkpoint in; nobody else's now."""
    where = jvm.folder("checkpointDir", o.checkpointDir) if o.checkpointDir else cache.folder.parent / "checkpoints"
    name, own = folder_name(o.runId or uuid.uuid4().hex[:12]), o.checkpointDir is None
    request: dict[str, Any] = {k: v for k, v in whole_batches(o).asdict().items() if k not in _OUTSIDE}
    if callable(o.loss) and o.runId is not None:
        request["loss"] = told(lambda: f"{callable_name(o.loss)} {identity(o.loss)[:16]}")  # type: ignore[arg-type]
    request |= {"rows": cache.fingerprint, "stateVersion": STATE, **what_trains}
    try:
        with contextlib.ExitStack() as stack:
            lease = None
            try:
                if o.runId is not None:  # nobody else has a name that was just drawn
                    lease = stack.enter_context(held(lease_of(where / name), f"runId={name!r}", wait=o.waitForRun))
            except OSError as e:
                raise not_writable(where / name, e) from e
            yield RunFolder.open(where, name, request, replace=replace, own=own, lease=lease)
    finally:
        if own:
            with contextlib.suppress(OSError):  # there are other runs in it
                where.rmdir()


def _told_of(network: Network) -> dict[str, Any]:
    """What a network computes before it is trained, free of uids: the same in each process that is given the same pipeline.

    Its stages' Params, to be read; and of those that it translates all that they hold, and the code of those that aren't ours.
    """
    vertices = network.graph.vertices
    stages = [v.stage for v in vertices]
    modules = [(i, network.module(i)) for i in network.positions]
    return {
        "stages": {f"{i} {s.stageClass}": p for i, (s, p) in enumerate(zip(vertices, all_params(stages), strict=True))},
        "pipeline": told(lambda: identity(modules, bare=without_uids([s.uid for s in stages]))),
    }


def told(tell: Callable[[], str]) -> str:
    """What `tell` returns, or why nothing can be told, in words that are equal to nothing else."""
    try:
        return tell()
    except UntoldError as e:
        return untold(f"({e})")


def _label(task: Task, cache: Cache, network: Network, sources: Sequence[Source]) -> LabelStats:
    needed = {TRAIN: 1, VALIDATION: guard.MIN_UNITS}
    if any(s.split == REFERENCE for s in sources):
        needed[REFERENCE] = guard.MIN_UNITS
    for split, least in needed.items():
        rows = cache.manifest["stats"][split]["rows"]
        if rows < least:
            raise InputError(
                f"{rows} {split} rows of weight > 0, but at least {least} are needed: add rows, or change "
                "validationFraction or validationIndicatorCol"
            )
    return _stats(cache.manifest["stats"][TRAIN])


def _stats(s: dict[str, Any]) -> LabelStats:
    return LabelStats(s["mean"], s["std"], s["low"], s["high"], torch.tensor(s["classes"], dtype=torch.int64))


def _all_labels(cache: Cache) -> tuple[LabelStats, float | None]:
    """The range of the labels over all splits, and one of them that is no whole number, if there is one."""
    parts = [s for s in cache.manifest["stats"].values() if s["rows"]]
    low, high = min(s["low"] for s in parts), max(s["high"] for s in parts)
    fractional = next((s["fractional"] for s in parts if s["fractional"] is not None), None)
    return LabelStats(0.0, 0.0, low, high, torch.empty(0, dtype=torch.int64)), fractional


def _check_varies(task: Task, cache: Cache, head: Predictor) -> list[str]:
    """Warnings about splits all of whose rows have one label.

    Raises:
        InputError: what trains, or what decides, compares with the labels of such a split. A loss of one's own may do
            without labels, and neither test nor reference rows let anything be accepted.
    """
    found, o = [], task.options
    compares = {TRAIN: not callable(o.loss), VALIDATION: o.metric is not None or not callable(o.loss)}
    if task.labelCol is None:
        return []
    for split in SPLITS:
        stats = cache.manifest["stats"][split]
        for why in (one_label(split, stats, task.labelCol, ranks=head.ranks), no_event(split, stats)):
            if why is not None and head.labelled and compares.get(split, False):
                raise InputError(why)
            found += [why] if why is not None else []
    return found


def _check_finite(before: dict[str, Score], metric: Metric, task: Task, labels: LabelStats) -> None:
    """Raise InputError where the original's metric, or the squares that test its gains, overflow on finite inputs."""
    for split, found in before.items():
        decides = split in (VALIDATION, REFERENCE)
        if not math.isfinite(found.mean) or (decides and not math.isfinite(float(found.blocks.square().sum()))):
            square = ", whose square overflows" if math.isfinite(found.mean) else ""
            far = f"some predictions are too far from the labels ({labels.low!r} to {labels.high!r}); " * bool(
                task.labelCol
            )
            raise InputError(
                f"the mean {metric.name} of {task.model.uid} on the {split} rows is {found.value}{square}: {far}"
                "clean or scale the features, or choose another metric or smaller lossParams"
            )


def _wishes(options: Options, network: Network, data: Data, cache: Cache) -> monotone.Wishes:
    values = data.values(data.nothing())
    network.margin(values)
    return monotone.Wishes(options.penalties["monotone"], network, Slots(network, _described(cache, data), values))


def _doubts(task: Task, cache: Cache, network: Network, data: Data, label: LabelStats) -> list[str]:
    """What about the cached rows should make one doubt the figures."""
    splits = [s for s in SPLITS if cache.rows(s)]
    return datachecks.check(network, data, _described(cache, data), task.options, label, splits)


def _described(cache: Cache, data: Data) -> dict[Version, Mapping[str, Any]]:
    """What the manifest says of each cached column version."""
    entries = {c["name"]: c for c in cache.manifest["columns"]}
    return {version: entries[name] for version, name in data.columns.items()}


def _check_classes(metric: Metric, cache: Cache) -> None:
    """Raise InputError where the metric compares two classes, of which one has too few validation rows to decide."""
    rarer = min([*cache.manifest["stats"][VALIDATION]["classes"], 0, 0][:2])
    if metric.ranks and rarer < guard.MIN_UNITS:
        raise InputError(
            f"metric={metric.name!r} compares two classes, and the rarer one has {rarer} validation rows of "
            f"weight > 0, but at least {guard.MIN_UNITS} are needed: add rows, raise validationFraction, or "
            "choose another metric"
        )


def _check_trained(best: float, tuned: Score, metric: Metric, task: Task) -> None:
    """Raise ParityError where the network that would ship hasn't the metric that its candidate was chosen for.

    Candidates are measured in their folded form. What it rounds otherwise is far below a millionth; a stage whose `affine_form`
    isn't its `forward` would let gains decide that the network doesn't have.
    """
    if not abs(tuned.mean - best) <= FOLDED * max(abs(best), abs(tuned.mean), 1e-12):
        raise ParityError(
            f"{task.model.uid}: the trained network has {metric.name} {tuned.value!r} on the validation rows, "
            f"but training measured {tuned.sign * best!r}, so nothing was changed: the `affine_form` of a "
            "stage does not match its `forward`; report this as a bug"
        )


# Summary --------------------------------------------------------------------------------------------------------------


def _summary(
    task: Task, cache: Cache, stream: Stream, objective: Objective, metric: Metric, found: Trained, frozen: dict[str, int],
    lost: list[str], doubts: list[str], judged: Judgement,
    scores: tuple[dict[str, Score], dict[str, Score]], parity: dict[str, Parity], phases: Phases,
) -> FineTuningSummary:  # fmt: skip
    (before, after), verdict = scores, judged.verdict
    metrics = {s: {"before": before[s].value, "after": after[s].value} if s in before else None for s in SPLITS}
    if metrics[REFERENCE] is None:
        del metrics[REFERENCE]
    held = metrics[VALIDATION]
    assert held is not None
    scale, sign = max(abs(held["before"]), 1e-12), before[VALIDATION].sign
    warnings = [*verdict.warnings, *unreadable_by_older_spark(task.model), *doubts]
    warnings += [f"{loss}; training continued from the last checkpoint" for loss in lost]
    if (lost_candidates := divergence(found.history, task.options)) and verdict.best >= 0:  # else the reason says it
        warnings.append(lost_candidates)
    if judged.reference is not None and judged.reference.p is None:
        warnings.append(
            f"the reference rows come from {judged.reference.units} groups or blocks, fewer than "
            f"{guard.MIN_UNITS}: they were measured, but not tested"
        )
    if frozen:
        entries = ", ".join(f"{n} of {name}" for name, n in frozen.items())
        warnings.append(f"entries that did not train, because fewer than {SUPPORT} training rows have them: {entries}")
    if task.options.cacheInMemory and not cache.fits_in_memory(copies(SHARDS, task.options.numProcesses)):
        warnings.append(
            "the cached rows would use half of the memory of this machine, so each epoch read them from the files"
        )
    warnings += changes_outside(task.roles, [i for i, s in enumerate(task.plan.stages) if s.trainable], judged.accepted)
    if judged.accepted and not objective.calibrated:
        warnings.append(
            f"the loss {objective.name} trains decisions or ranks, not probabilities: the probabilities of the "
            "tuned pipeline are no longer calibrated"
        )
    below = after[VALIDATION].below
    if below:
        warnings.append(
            f"{below} validation rows are predicted below {metric.floor:.3g}, where {metric.name} continues as "
            "a parabola"
        )
    return FineTuningSummary(
        decision="tuned" if judged.accepted else "kept original",
        reason=reason(judged, task.options, metric, held["before"], found.history),
        metric=metric.name, metricDirection=metric.direction, metrics=metrics,
        gain=sign * (held["before"] - held["after"]) / scale,
        z=verdict.z, p=verdict.p, records=found.history,
        parity={k: dataclasses.asdict(p) for k, p in parity.items()},
        stages={k: {"largest": a, "rootMeanSquare": b} for k, (a, b) in found.moved.items()} if judged.accepted else {},
        timings={k: round(v, 3) for k, v in phases.timings.items()}, stream=stream.backend,
        cache={"hit": cache.hit, "fingerprint": cache.fingerprint},
        options=whole_batches(task.options).asdict() | {
            "labelCol": task.labelCol, "weightCol": task.weightCol,
            "metric": task.options.metric or metric.name,
        },
        versions=versions(), warnings=warnings, gainInterval=None if verdict.interval is None else list(verdict.interval),
        slices=[dataclasses.asdict(c) for c in judged.slices],
        reference=None if judged.reference is None else dataclasses.asdict(judged.reference),
        compatibility=None if judged.compatibility is None else dataclasses.asdict(judged.compatibility),
        candidates=candidate_count(found.history), diverged=len(diverged(found.history)),
    )  # fmt: skip


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def changes_outside(roles: Roles, trained: Sequence[int], accepted: bool) -> list[str]:
    """A warning that lists the columns outside of the loss that change with these stages."""
    columns, vertices = roles.outside.columns(trained), roles.graph.vertices
    if not columns:
        return []
    makers = [vertices[i].uid for i in trained if roles.outside.columns([i])]
    readers = [vertices[j].uid for j in roles.outside.readers_of(trained)]
    return [
        f"columns outside the loss also {'change' if accepted else 'would have changed'}: "
        f"{', '.join(columns)}; {_and(readers)} read{'s' * (len(readers) == 1)} the output of {_and(makers)}"
    ]


def unreadable_by_older_spark(model: Any) -> list[str]:
    """A warning where Spark 3.5 and 4.0 can't load what this Spark saves: from 4.1 a tree ensemble's columns lack names."""
    version = jvm.session().version
    kinds = [(s.uid, REGISTRY.get(class_name(s), StageModule)) for _, s in flatten(model)]
    names = [uid for uid, kind in kinds if issubclass(kind, Trees) and not kind.single]
    if not names or VersionUtils.majorMinorVersion(version) < (4, 1):
        return []
    return [
        f"saved by Spark {version}, {', '.join(names)} cannot be loaded by Spark 3.5 and 4.0: save with the "
        "Spark version that will use the model"
    ]


def versions() -> dict[str, str]:
    """Versions of what the result depends on; a package that isn't installed is left out."""
    out = {"python": sys.version.split()[0]}
    for name in ("sparkdiff", "pyspark", "torch", "numpy", "pyarrow", "petastorm"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out
