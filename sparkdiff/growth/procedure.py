"""The way of a growth, once through: columns and cache, rounds, the grown pipeline, all of it together, the decision."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.splits import VALIDATION, Boundaries, Source
from sparkdiff.errors import InputError
from sparkdiff.evaluation.checks import check_stored
from sparkdiff.fine_tuning.phases import begun, checked, run_folder, too_few, trained, verified, written
from sparkdiff.fine_tuning.starting_point import StartingPoint
from sparkdiff.fine_tuning.task import check_runs, prepare
from sparkdiff.fine_tuning.values import Measured, Outcome, Run
from sparkdiff.growth import rounds, running
from sparkdiff.growth.assembly import columns_last, cost_of, grown_pipeline, serving_of, width_of
from sparkdiff.growth.checkpoints import one_thread
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.dropping import without_needless
from sparkdiff.growth.finishing import finish
from sparkdiff.growth.ground import GrowthStart, ground
from sparkdiff.growth.inputs import room_of, specification_of, table_of
from sparkdiff.growth.parts import trees
from sparkdiff.growth.plan import described
from sparkdiff.growth.reporting import RoundProgress, Told, with_parts, without_parts
from sparkdiff.growth.rounds import Grown, Limits, Member
from sparkdiff.growth.running import Memory
from sparkdiff.growth.serving import Serving, check_cost
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.options import Options
from sparkdiff.report import Phases, shown
from sparkdiff.report.shares import share_of
from sparkdiff.store.run_folder import RunFolder, name_beside


def grow_pipeline(
    origin: StartingPoint, options: Options, settings: GrowthSettings, sources: Sequence[Source], phases: Phases,
    *, boundaries: Boundaries | None = None, replace: bool = False,
) -> Outcome:  # fmt: skip
    """Print the plan, grow a fitted pipeline on these rows, and return the pipeline that held-out rows decide for.

    Args:
        origin: the fitted pipeline, or its refit.
        boundaries: where time divides the rows, if that is known already.
        replace: see `fine_tune`.

    Raises:
        InputError: the pipeline, the data or the options can't be used.
        ParityError: a network and Spark disagree.
    """
    with phases.phase("plan"):
        text = described(origin.model, options, settings, sources[0].df)
    if shown(options.verbosity):
        print(text, flush=True)
    settings, missing = trees.without_trees(settings)
    model, keyed = origin.model, origin.given is not None
    start = ground(model, options, settings.entityCols, sources, boundaries)
    serving = serving_of(model, start.head, settings.maxServingCost, start.indexers)
    with begun(start.task, sources, phases, boundaries=boundaries) as run:
        origin = origin.checked(too_few(run, folds=False))
        tried = dataclasses.replace(settings, rounds=0) if origin.refused else settings
        original, doubts = verified(run, decides=not origin.refused), [*checked(run), *missing]
        clock = Clock.of(options.maxSeconds)
        grown, gone, folder = grow_rounds(run, start, tried, serving, clock, replace=replace)
        told = Told(settings, grown, gone, serving, doubts)
        if not grown.members:
            summary = origin.told(without_parts(run, original, told))
            phases.on_decision(summary)
            return origin.finished(Outcome(model, model, start.task.plan, summary, (folder,)))
    made = assembled(start, grown.members, serving, sources[0].df, drop=settings.dropColumns)
    task = prepare(made, options, sources[0].df)
    with begun(task, sources, phases, boundaries=boundaries, keyed=keyed) as run:
        left = clock.left(options.maxSeconds)
        outcome = _decided(run, origin, start, original, told, folder, left, sources[0].df, replace=replace)
    left = None if options.maxSeconds is None else options.maxSeconds - clock.seconds
    if outcome.model is not model and (left is None or left > 0):
        with phases.phase("attribute"):
            outcome = _with_gain_alone(outcome, dataclasses.replace(options, maxSeconds=left), sources, boundaries)
    phases.on_decision(outcome.summary)
    return origin.finished(outcome)


def assembled(start: GrowthStart, members: Sequence[Member], serving: Serving, data: DataFrame, *, drop: bool) -> Any:
    """The grown pipeline, see `grown_pipeline` and `columns_last`.

    Raises:
        SparkdiffError: it costs more than what was counted for its parts, or Spark can't run it.
    """
    made = grown_pipeline(start.model, start.head, members, start.indexers, start.mark)
    check_cost(serving, [m.part for m in members], cost_of(made, start.head, serving))
    check_runs(made, data)
    return columns_last(made, start.mark, data, drop=drop)


def _with_gain_alone(
    outcome: Outcome, options: Options, sources: Sequence[Source], boundaries: Boundaries | None
) -> Outcome:
    """The outcome with the gain of the original's stages when these train without any part."""
    own = options.runId and name_beside(options.runId, "-alone")
    task = prepare(outcome.original, dataclasses.replace(options, runId=own), sources[0].df)
    with begun(task, sources, Phases(False), boundaries=boundaries) as run:
        original = verified(run)
        fitted = trained(run, original, None, replace=True)
    before = original.scores[VALIDATION].mean
    gain = max(share_of(before - fitted.best, before), 0.0)
    summary = dataclasses.replace(outcome.summary, fineTunedGain=gain)  # type: ignore[call-arg]
    return dataclasses.replace(outcome, summary=summary, folders=(*outcome.folders, fitted.folder))


def _decided(
    run: Run,
    origin: StartingPoint,
    start: GrowthStart,
    original: Measured,
    told: Told,
    folder: RunFolder,
    seconds: float | None,
    df: DataFrame,
    *,
    replace: bool,
) -> Outcome:
    """Train the grown pipeline, and return it if held-out rows decide for it.

    Args:
        run: of the grown pipeline.
        original: as the rounds measured it.
        folder: of the rounds.
        seconds: that training may take; None without a limit.
        df: the rows.
    """
    width, first, model = width_of(start.head.stage), original.scores[VALIDATION], start.model
    done = finish(run, first, told.grown, width, seconds, replace=replace, given=origin.given)
    result, after, cost = model, done.before, told.serving.before
    if done.judgement.accepted:
        made, measured = written(run, done.start, done.network, {VALIDATION: done.tuned})
        task = dataclasses.replace(start.task, model=model)
        judgement, notes = task.compared_outside(done.judgement, made, df)
        done = dataclasses.replace(done, judgement=judgement)
        told = dataclasses.replace(told, doubts=[*told.doubts, *notes])
        if judgement.accepted:
            result, after, cost = made, measured, cost_of(made, start.head, told.serving)
    summary = origin.told(with_parts(done, original.parity, after, told, cost))
    return Outcome(result, model, start.task.plan, summary, (folder, done.fitted.folder))


def grow_rounds(
    run: Run, start: GrowthStart, settings: GrowthSettings, serving: Serving, clock: Clock,
    *, replace: bool, memory: Memory | None = None,
) -> tuple[Grown, tuple[Member, ...], RunFolder]:  # fmt: skip
    """What the rounds made without the parts that are not missed, these, and the folder of the rounds.

    Args:
        memory: of earlier growths of the same pipeline on the same rows.
    """
    check_stored(run.network, run.data)  # as the training behind the rounds does
    o = run.task.options
    limits = Limits(settings.parts, settings.rounds, settings.complexity, o.seed, serving, settings.maxLoss)
    # The level of the guard and the size of the fleet decide what is dropped.
    beside = {"growth": settings.asdict(), "guard": o.guard, "fleetSize": o.fleetSize}
    with run.phases.phase("grow") as say:
        specification = specification_of(run)
        criterion, forecast = specification.criterion(), RoundProgress(settings.rounds)
        with (
            run_folder(run, o.runId and name_beside(o.runId, "-rounds"), replace=replace, beside=beside) as folder,
            running.runner(
                folder, specification, say.now, clock=clock, memory=memory,
                on_item=lambda *item: say.now(forecast.item(*item)),
            ) as train,
        ):  # fmt: skip
            table = table_of(run, start.known, room_of(folder.path))
            grown = rounds.grow(table, criterion, limits, train, lambda tried: say.now(forecast.joined(tried)))
        with one_thread():
            grown, gone = without_needless(grown, table, criterion, limits, o, settings.maxLoss)
        names = ", ".join(m.part.name for m in grown.members)
        say(f"{names}; {grown.stopped}" if names else grown.stopped)
        return grown, gone, folder


def grow_again(run: Run, start: GrowthStart, chosen: Sequence[tuple[int, str, int]]) -> tuple[Member, ...]:
    """Train ensembles of trees once more, on other rows; each joins with the weight 1.

    Args:
        run: of the rows, of which none is held out.
        chosen: the round, the name and the epochs of each.

    Raises:
        InputError: one diverges.
    """
    o, specification, members = run.task.options, specification_of(run), list[Member]()
    criterion = specification.criterion()
    with (
        run_folder(run, o.runId and name_beside(o.runId, "-rounds"), replace=True) as folder,
        running.runner(folder, specification) as train,
    ):
        table = table_of(run, start.known, room_of(folder.path))
        original = criterion.score(table.validation.margin, table.validation)
        for number, name, epochs in chosen:
            items = trees.propose(table, criterion, rounds.seed_of(o.seed, number))
            [found] = train(
                number, [dataclasses.replace(i, epochs=epochs) for i in items if i.name == name], table, original.blocks
            )
            if found.part is None:
                raise InputError(f"{name} diverge on these rows")
            members.append(Member(found.part, 1.0, number))
            table = table.at(*(s.margin + found.part.output(s) for s in (table.train, table.validation)))
    return tuple(members)
