"""The way of a growth, once through: columns and cache, rounds, the grown pipeline, all of it together, the decision."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import StringIndexer
from pyspark.sql import DataFrame
from pyspark.sql.types import NumericType, StringType

from sparkdiff import jvm
from sparkdiff.data.splits import SPLITS, VALIDATION, Boundaries, Source, field, fit_on_training_rows
from sparkdiff.diagnostics import rows as datachecks
from sparkdiff.errors import InputError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import reason
from sparkdiff.evaluation.ledger import candidate_count, diverged
from sparkdiff.finetune import (
    Judged,
    Measured,
    Outcome,
    Run,
    Task,
    begun,
    checked,
    prepare,
    run_folder,
    verified,
    warnings_of,
    written,
)
from sparkdiff.growth import costs, rounds, running
from sparkdiff.growth.assembly import grown_pipeline, unused_mark, width_of
from sparkdiff.growth.dropping import without_needless
from sparkdiff.growth.finishing import Finished, finish
from sparkdiff.growth.inputs import UNKNOWN, Known, cut_for, linear_head, specification_of, table_of, upstream_columns
from sparkdiff.growth.parts import trees
from sparkdiff.growth.rounds import Grown, Limits, Member, Tried
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.growth.summary import GrowthSummary
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.nesting import flatten, replaced
from sparkdiff.pipeline.parity import Parity
from sparkdiff.report import Phases
from sparkdiff.report.record import versions
from sparkdiff.store.run_folder import RunFolder

MOST_ENTITIES = 100_000
"""Values of an entityCol at most: each has a coefficient in the last stage, or more."""


@dataclasses.dataclass(frozen=True)
class Ground:
    """What growth starts from.

    Attributes:
        task: of the pipeline with indexers of the entities in front of its head; the cut has the growth's columns.
        head: the last linear stage, in the pipeline as it was given.
        indexers: the fitted StringIndexers of the entities.
        known: the columns that parts may read.
    """

    task: Task
    head: Vertex
    indexers: tuple[Any, ...]
    known: tuple[Known, ...]


def ground(
    model: Any, options: Options, settings: GrowthSettings, sources: Sequence[Source], boundaries: Boundaries | None
) -> Ground:  # fmt: skip
    """Look at the pipeline and the schema of the rows, and index the entities, whose values need a job.

    Raises:
        InputError: the pipeline ends in no linear stage, or an entityCol cannot be used; says what to do.
    """
    data = sources[0].df
    plain = prepare(model, options, data)
    head = linear_head(plain.cut.graph)
    check_entities(settings.entityCols, plain, data)
    fitted = _indexers(model, head, settings.entityCols, sources, options, boundaries)
    entities = {name: (stage.getOutputCol(), (*stage.labels, UNKNOWN)) for name, stage in fitted.items()}
    task = plain
    if fitted:
        inserted = replaced(model, {head.path: [*fitted.values(), head.stage]})
        task = prepare(inserted if not isinstance(inserted, list) else PipelineModel(inserted), options, data)
    known = upstream_columns(task.cut.graph, data, entities)
    return Ground(dataclasses.replace(task, cut=cut_for(task, known)), head, tuple(fitted.values()), tuple(known))


def check_entities(names: Sequence[str], task: Task, data: DataFrame) -> None:
    """Raise InputError if one of these columns can't be an entity: the label and what divides the rows would tell the label."""
    o, casefold = task.options, task.cut.graph.casefold
    used = {
        "labelCol": task.labelCol, "weightCol": task.weightCol, "timeCol": o.timeCol,
        "validationIndicatorCol": o.validationIndicatorCol,
    }  # fmt: skip
    for name in names:
        kind = field(data, name, "entityCols").dataType
        if not isinstance(kind, (StringType, NumericType)):
            raise InputError(f"entityCols: column {name!r} is {kind.simpleString()}, but must hold strings or numbers")
        for option, column in used.items():
            if column is not None and casefold(column) == casefold(name):
                raise InputError(f"entityCols: {name!r} is the {option}, so it can be no entity: leave it out")
        if "." in name or "`" in name:
            raise InputError(
                f"entityCols: {name!r} has a dot or a backtick, which stages read as a field: rename the column"
            )


def check_growth_options(options: Options) -> None:
    """Raise InputError for options of fine-tuning that a grown pipeline can't keep."""
    if options.precision != "float64":
        raise InputError(
            f"precision={options.precision!r} is not possible with Grower: parts are trained in float64. Leave it out"
        )
    if "monotone" in options.penalties:
        raise InputError(
            "penalties: monotone is not possible with Grower, because parts are no linear functions of a feature: leave it out"
        )


def _indexers(
    model: Any, head: Vertex, names: Sequence[str], sources: Sequence[Source], options: Options, boundaries: Boundaries | None
) -> dict[str, Any]:  # fmt: skip
    """A StringIndexer for each entity, fitted to the training rows."""
    found: dict[str, Any] = {}
    for name in names:
        mark = unused_mark(model, f"{head.uid}_{name}", sources[0].df.columns)
        indexer = StringIndexer(
            inputCol=name, outputCol=f"{mark}_index", handleInvalid="keep", stringOrderType="alphabetAsc"
        )
        indexer = jvm.named(indexer, f"{mark}_indexer")
        stage: Any = fit_on_training_rows(Pipeline(stages=[indexer]), sources, options, boundaries).stages[0]
        if len(stage.labels) > MOST_ENTITIES:
            raise InputError(
                f"entityCols: column {name!r} has {len(stage.labels):,} values, more than {MOST_ENTITIES:,}: "
                "name a coarser column"
            )
        found[name] = stage
    return found


def grow_pipeline(
    model: Any, options: Options, settings: GrowthSettings, sources: Sequence[Source], phases: Phases,
    *, boundaries: Boundaries | None = None, replace: bool = False,
) -> Outcome:  # fmt: skip
    """Grow a fitted pipeline on these rows, and return the pipeline that held-out rows decide for.

    Args:
        boundaries: where time divides the rows, if that is known already.
        replace: see `fine_tune`.

    Raises:
        InputError: the pipeline, the data or the options can't be used.
        ParityError: a network and Spark disagree.
    """
    check_growth_options(options)
    settings, missing = trees.without_trees(settings)
    start = ground(model, options, settings, sources, boundaries)
    before = costs.of_model(model)
    room_of(settings, before)
    with begun(start.task, sources, phases, boundaries=boundaries) as first:
        _check_rows(first)
        original = verified(first)
        doubts = checked(first)
        grown, gone, folder = _rounds(first, start, settings, before, replace=replace)
        data = start.task.cut.transform(sources[0].df)
    told = _Told(settings, grown, gone, before, [*doubts, *missing])
    if not grown.members:
        summary = _kept(first, original, told)
        phases.on_decision(summary)
        return Outcome(model, model, start.task.plan, summary, (folder,))
    task = prepare(_assembled(model, start, grown, data), options, sources[0].df)
    with begun(task, sources, phases, boundaries=boundaries) as second:
        done = finish(second, original.scores[VALIDATION], grown, width_of(start.head.stage), replace=replace)
        result, after = model, done.before
        if done.judgement.accepted:
            result, after = written(second, done.start, done.network, {VALIDATION: done.tuned})
        summary = _summary(done, original.parity, after, told, costs.of_model(result), result is not model)
    phases.on_decision(summary)
    return Outcome(result, model, start.task.plan, summary, (folder, done.fitted.folder))


def _rounds(
    run: Run, start: Ground, settings: GrowthSettings, cost: float, *, replace: bool
) -> tuple[Grown, tuple[Member, ...], RunFolder]:  # fmt: skip
    """What the rounds made, without the parts that are not missed, these, and the folder of the rounds."""
    o = run.task.options
    room = room_of(settings, cost)
    limits = Limits(settings.parts, settings.rounds, settings.complexity, room, o.seed)
    runId = o.runId and f"{o.runId}-rounds"
    beside = {
        "growth": _plain(settings),
        "guard": o.guard,
        "fleetSize": o.fleetSize,
    }  # these two decide what is dropped
    with run.phases.phase("grow") as say:
        table, specification = table_of(run, start.known), specification_of(run)
        criterion = specification.criterion()

        def on_round(tried: Sequence[Tried]) -> None:
            joined = next((t for t in tried if not t.why), None)
            say.now(
                f"round {tried[0].round}: {f'{joined.name} joins, {joined.gain:+.1%}' if joined else 'nothing gains'}"
            )

        with (
            run_folder(
                run,
                runId,
                replace=replace,
                beside=beside,
            ) as folder,
            running.runner(folder, specification, say.now) as train,
        ):
            grown = rounds.grow(table, criterion, limits, train, on_round)
        grown, gone = without_needless(grown, table, criterion, limits, o, settings.maxLoss)
        names = ", ".join(m.part.name for m in grown.members)
        say(f"{names}; {grown.stopped}" if names else grown.stopped)
        return grown, gone, folder


def room_of(settings: GrowthSettings, cost: float) -> float:
    """Microseconds per row that parts may cost to serve.

    Raises:
        InputError: no part is so cheap.
    """
    if settings.maxServingCost is None:
        return math.inf
    join = costs.of("VectorAssembler", 2)
    cheapest = min(
        costs.of(kind, 1) for kind in ("MultilayerPerceptronClassificationModel", "Bucketizer", "OneHotEncoderModel")
    )
    room = (settings.maxServingCost - 1) * cost - join
    if room < cheapest:
        raise InputError(
            f"maxServingCost={settings.maxServingCost:g} leaves {(settings.maxServingCost - 1) * cost:.3g} us per row beside the "
            f"{cost:.3g} us that the pipeline costs now, but the cheapest part costs {cheapest + join:.3g} us: set it to "
            f"{1 + 1.5 * (cheapest + join) / cost:.2f} or more"
        )
    return room


def _check_rows(run: Run) -> None:
    """Raise InputError where the held-out rows are too few to decide anything."""
    if run.task.options.guard < 1 and (rows := run.cache.rows(VALIDATION)) < guard.MIN_UNITS:
        raise InputError(
            f"Validation has {rows} rows, too few to tell a gain from chance: at least {guard.MIN_UNITS} are needed. "
            "Use more data, or a larger validationFraction"
        )


def _plain(settings: GrowthSettings) -> dict[str, Any]:
    """In values that JSON can hold."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}


def _assembled(model: Any, start: Ground, grown: Grown, data: DataFrame) -> Any:
    """The grown pipeline, with those indexers of entities that a part reads."""
    made = grown_pipeline(model, start.head, grown.members, start.indexers, data)
    if not start.indexers:
        return made
    read = {c for _, stage in flatten(made) for c in _read(stage)}
    needed = [s for s in start.indexers if s.getOutputCol() in read]
    return (
        made if len(needed) == len(start.indexers) else grown_pipeline(model, start.head, grown.members, needed, data)
    )


def _read(stage: Any) -> list[str]:
    found: list[str] = []
    for name in ("inputCol", "inputCols"):
        if stage.hasParam(name) and stage.isDefined(name):
            value = stage.getOrDefault(name)
            found += [value] if isinstance(value, str) else value
    return found


# The summary ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Told:
    """What the rounds tell the summary."""

    settings: GrowthSettings
    grown: Grown
    gone: tuple[Member, ...]
    before: float
    doubts: Sequence[str]

    def fields(self, after: float) -> dict[str, Any]:
        limit = self.settings.maxServingCost
        parts = [
            {
                "kind": m.part.kind, "name": m.part.name, "round": m.round, "cost": m.part.cost(),
                "parameters": m.part.parameters, "dropped": m in self.gone, "shown": m.part.shown(),
            }
            for m in sorted((*self.grown.members, *self.gone), key=lambda m: m.round)
        ]  # fmt: skip
        cost = {"before": self.before, "after": after, "limit": None if limit is None else limit * self.before}
        return {"rounds": rounds.summary_of(self.grown.tried), "parts": parts, "servingCost": cost}


def _kept(run: Run, original: Measured, told: _Told) -> GrowthSummary:
    """The summary where no part joined."""
    metric, task = run.goal.metric, run.task
    scores = original.scores
    metrics = {s: {"before": scores[s].value, "after": scores[s].value} if s in scores else None for s in SPLITS[:3]}
    return GrowthSummary(
        decision="kept original", reason=_why_none(told), metric=metric.name,
        metricDirection=metric.direction, metrics=metrics, gain=0.0, z=0.0, p=1.0, records=[],
        parity={} if original.parity is None else {"before": dataclasses.asdict(original.parity)}, stages={},
        timings={k: round(v, 3) for k, v in run.phases.timings.items()}, stream=run.data.stream.backend,
        cache={"hit": run.cache.hit, "fingerprint": run.cache.fingerprint}, options=_options(task, told, metric.name),
        versions=versions(), warnings=[*told.doubts], precision=task.options.precision,
        **told.fields(told.before),
    )  # fmt: skip


def _why_none(told: _Told) -> str:
    if not told.gone:
        return f"no part joined: {told.grown.stopped}"
    return f"the parts that joined are not missed, so all of them were dropped (maxLoss={told.settings.maxLoss:g})"


def _options(task: Task, told: _Told, metric: str) -> dict[str, Any]:
    found = {"labelCol": task.labelCol, "weightCol": task.weightCol, "metric": task.options.metric or metric}
    return task.options.asdict(every=True) | _plain(told.settings) | found


def _summary(
    done: Finished, parity: Parity | None, after: Measured, told: _Told, cost: float, grown: bool
) -> GrowthSummary:  # fmt: skip
    run, judgement, fitted = done.run, done.judgement, done.fitted
    task, metric, verdict, before = run.task, run.goal.metric, judgement.verdict, done.before.scores
    now = after.scores
    metrics: dict[str, dict[str, float] | None] = {
        s: {"before": before[s].value, "after": now[s].value} if s in before else None
        for s in SPLITS
        if s in before or s != "reference"
    }
    held, own = before[VALIDATION], now[VALIDATION]
    compared: Mapping[str, Parity | None] = {"before": parity, "grown": done.start.parity, "after": after.parity}
    few = datachecks.too_few_rows(done.ledger.gains, done.ledger.weights, verdict, held.mean)
    why = reason(judgement, task.options, metric, held.value, fitted.found.history, whose="the grown pipeline's")
    if verdict.best < 0:
        why = "the grown pipeline does not gain on the validation rows"
    return GrowthSummary(
        decision="grown" if grown else "kept original", reason=why, metric=metric.name, metricDirection=metric.direction,
        metrics=metrics, gain=held.sign * (held.value - own.value) / max(abs(held.value), 1e-12), z=verdict.z, p=verdict.p,
        records=fitted.found.history, parity={k: dataclasses.asdict(p) for k, p in compared.items() if p is not None},
        stages={k: {"largest": a, "rootMeanSquare": b} for k, (a, b) in fitted.found.moved.items()} if grown else {},
        timings={k: round(v, 3) for k, v in run.phases.timings.items()}, stream=run.data.stream.backend,
        cache={"hit": run.cache.hit, "fingerprint": run.cache.fingerprint}, options=_options(task, told, metric.name),
        versions=versions(), warnings=warnings_of(run, fitted, Judged(judgement, done.tuned, few), own, told.doubts),
        gainInterval=None if verdict.interval is None else list(verdict.interval),
        slices=[dataclasses.asdict(c) for c in judgement.slices],
        reference=None if judgement.reference is None else dataclasses.asdict(judgement.reference),
        compatibility=None if judgement.compatibility is None else dataclasses.asdict(judgement.compatibility),
        candidates=candidate_count(fitted.found.history), diverged=len(diverged(fitted.found.history)), device=fitted.device,
        precision=task.options.precision, **told.fields(cost),
    )  # fmt: skip
