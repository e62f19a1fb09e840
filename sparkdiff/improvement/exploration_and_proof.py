"""Steps of an improvement: measure the original, let the arms (ways to improve it) compete on the exploring rows, and test the
best results, the finalists, on the proving rows. `describe_improvement` is the plan, made before anything runs and
without a Spark job.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pyspark.ml import Estimator
from pyspark.sql import DataFrame

from sparkdiff.data.splits import REFERENCE, TEST, TRAIN, VALIDATION, Source
from sparkdiff.errors import InputError
from sparkdiff.fine_tuning.phases import open_checkpoints
from sparkdiff.fine_tuning.task import FitResults, Outcome
from sparkdiff.growth import cost_table
from sparkdiff.growth.growth_steps import check_entities
from sparkdiff.improvement import baseline, proving, race
from sparkdiff.improvement.arm_context import ArmContext, measure_original
from sparkdiff.improvement.arm_order import order_of
from sparkdiff.improvement.arms import arms_of
from sparkdiff.improvement.baseline import Baseline, has_baseline, name_of
from sparkdiff.improvement.budget import Account, Budget
from sparkdiff.improvement.candidate import Arm
from sparkdiff.improvement.improvement_options import ARMS, ImprovementSettings
from sparkdiff.improvement.origin import Fits, Origin, check_rows, check_same_numbers
from sparkdiff.improvement.parallel_tasks import StoppableListener, ahead
from sparkdiff.improvement.proving import Decision, Proof
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.improvement.summary_contents import ExplorationResult, summary_of
from sparkdiff.machine.interrupts import ignore_first_interrupt
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import stages_within
from sparkdiff.pipeline.unfitted_form import check_unfitted
from sparkdiff.proof import division
from sparkdiff.proof.division import Division, divide, too_few
from sparkdiff.report import Displayable, Phases, RunPlan, counted, is_progress_shown, versions
from sparkdiff.store.checkpoint_folder import CheckpointFolder, name_beside

Summarize = Callable[
    [ArmContext, ArmContext, Origin, Division, ExplorationResult, Decision, Mapping[str, float], Account], Any
]


@dataclasses.dataclass(frozen=True)
class ImprovementKind:
    """Settings in which improving, fine-tuning by folds and growth by folds differ; all of them use `explore_and_prove`.

    Attributes:
        arms: the arms that are tried.
        budget: the budget for exploring and proving.
        describe: (fitted pipeline, rows) -> the plan.
        summarize: function that makes the summary.
    """

    arms: Sequence[Arm]
    budget: Budget
    describe: Callable[[Any, DataFrame], Displayable]
    summarize: Summarize


@dataclasses.dataclass(frozen=True)
class ImprovementOutcome(Outcome):
    """Result of an improvement: `model` is the best offer, or the original object itself if nothing is offered as best.

    Attributes:
        offers: the offered pipelines by name.
    """

    offers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def improve_pipeline(
    given: Any,
    options: Options,
    settings: ImprovementSettings,
    sources: Sequence[Source],
    phases: Phases,
    *,
    replace: bool = False,
    fits: Fits | None = None,
) -> ImprovementOutcome:
    """Print the plan, improve a pipeline by all arms within the budget, and return the best pipeline that the test accepts.

    See `explore_and_prove`.
    """
    budget = Budget.of(settings.budget)
    verb = ImprovementKind(
        arms_of(settings), budget, lambda m, df: describe_improvement(m, options, settings, df), summary_of
    )
    return explore_and_prove(given, options, settings, sources, phases, verb, replace=replace, fits=fits)


def explore_and_prove(
    given: Any,
    options: Options,
    settings: ImprovementSettings,
    sources: Sequence[Source],
    phases: Phases,
    verb: ImprovementKind,
    *,
    replace: bool = False,
    fits: Fits | None = None,
) -> ImprovementOutcome:
    """Print the plan, try the arms on the exploring rows, test the finalists on the proving rows, and return the best
    accepted one.

    The returned pipeline is made from all rows, or if there is only one fold, perhaps from this fold's training rows. If no
    accepted finalist can ship, the original is returned.

    Args:
        given: the fitted pipeline, or an unfitted Pipeline.
        replace: see `fine_tune`.
        fits: see `Origin.of`.

    Raises:
        InputError: the pipeline, the data or the options can't be used.
        ParityError: the original's network and Spark disagree.
    """
    account, begun = Account(verb.budget), time.monotonic()
    if any(isinstance(s, Estimator) and s.hasParam("rowsAreNew") for s in stages_within(given)):
        # Fits of sparkdiff take turns: a FineTuner in the pipeline, fitted in another thread, would wait for this fit to end.
        settings = dataclasses.replace(settings, parallelism=1)
    check_unfitted(given, options.rowsAreNew)
    division = divide(sources, options)
    units = check_rows(given, options, sources, division)
    rows = [division.makes, *(s for s in sources if s.split in (TEST, REFERENCE))]
    origin = Origin.of(given, options, rows, division.boundaries[1], keep=settings.keepStages, fits=fits)
    origin = dataclasses.replace(origin, refused=origin.refused or too_few(division, options, units))
    with phases.phase("plan"):
        planned = verb.describe(origin.model, sources[0].df)
    if is_progress_shown(options.verbosity):
        print(planned, flush=True)
    brake = StoppableListener(phases.within().listeners)
    context = ArmContext(
        origin.model,
        options,
        settings,
        rows,
        division.boundaries[1],
        Phases(False, [brake]),
        FitResults(),
        brake=brake,
        allTrain=True,
    )
    check_entities(settings.entityCols, context.plan, sources[0].df)
    side_by_side = not origin.refused and context.folds_side_by_side > 1
    fits_early = [functools.partial(_fit_early, origin, division, account)] if side_by_side else []
    with phases.phase("original") as say, ahead(fits_early, wait=True):
        started = time.monotonic()
        context = measure_original(context)
        account.note_check(time.monotonic() - started)
        say(
            f"{context.metric.name} {context.start.scores[TRAIN].value:.5g} on {context.rows[TRAIN]:,} rows; "
            f"{context.start.parity}"
        )
    context = dataclasses.replace(context, fit=origin.fit)
    with context.temporary, _folder(context, replace=replace) as (folder, log):
        context = dataclasses.replace(context, folder=folder.path)
        proof = Proof(context, division, None, log, verb.arms, fit_by_spark=origin.fit_by_spark)
        account.start(division.number, context.folds_side_by_side)
        early = side_by_side and not log.has("folds")
        with ahead(_makes(proof, origin, account) if early else ()):
            started = time.monotonic() - account.fold  # the seconds of `_fit_early`, which are part of a fold
            explores = context if origin.refused else proof.explores()
            check_same_numbers(context, explores.model, "fold 1")
            account.fold = time.monotonic() - started
            account.add("original", time.monotonic() - begun)
            explored = _explore(explores, verb.arms, origin, account, log, phases)
            begun = time.monotonic()
            with ignore_first_interrupt(_deciding(options.runId)), phases.phase("prove") as say:
                decision = _proven(proof, explores, origin, explored, account, phases, say)
                say(f"{counted(len(decision.proven), 'finalist')}, {division.name}")
            account.add("prove", time.monotonic() - begun)
        timings = {k: round(v, 3) for k, v in phases.timings.items()}
        summary = verb.summarize(context, explores, origin, division, explored, decision, timings, account)
    offers = {name: s.found.model for name, s in decision.offers.items() if s.found is not None}
    result = origin.given_model if decision.best is None else offers[proving.BEST]
    phases.on_decision(summary)
    return ImprovementOutcome(result, origin.given_model, context.start.task.plan, summary, (folder,), offers)


def _rival(proof: Proof, origin: Origin) -> tuple[bool, str]:
    """Result of `Origin.rival`, computed only once and logged."""
    find = functools.partial(origin.rival, proof.context, proof.explores())
    return proof.shared.once(("rival",), lambda: proof.log.read_or_make("rival", find))


def _fit_early(origin: Origin, division: Division, account: Account) -> None:
    """Fit the pipeline to the exploring rows while the original is measured; `Proof.explores` finds the result."""
    if origin.fit is not None:
        with account.fitting():
            origin.fit(division.explores, division.boundaries[0])


def _makes(proof: Proof, origin: Origin, account: Account) -> list[Callable[[], object]]:
    """Functions for a background thread, called while arms explore: first fold, rival, other folds, all rows; what is not needed
    is not made.
    """

    def make_fold(k: int) -> None:
        if k < account.folds:
            with account.fitting():
                proof.ground_of(k)

    def make_whole() -> None:
        # Otherwise no time would be saved, and perhaps nothing ships.
        if account.folds and account.budget.seconds is not None:
            proof.whole()

    first, *others = [functools.partial(make_fold, k) for k in range(proof.division.number)]
    return [first, functools.partial(_rival, proof, origin), *others, make_whole]


def _explore(
    context: ArmContext, arms: Sequence[Arm], origin: Origin, account: Account, log: StepLog, phases: Phases
) -> ExplorationResult:
    """Measure the baseline, choose the order of the arms, and race the arms on the exploring rows.

    Raises:
        InputError: no arm can be tried.
    """
    if origin.refused:
        return ExplorationResult(race.RaceResult((), ()), None, None)
    refusals = {arm.name: arm.refusal(context) for arm in arms}
    if all(refusals.values()):
        raise InputError(
            f"nothing can be tried on {context.model.uid}: {'; '.join(f'{k}: {v}' for k, v in refusals.items())}"
        )
    beside = _beside(context, account, log, phases)
    begun = time.monotonic()
    with phases.phase("order") as say:
        order = log.read_or_make("order", lambda: order_of(context, [arm for arm in arms if not refusals[arm.name]]))
        say(str(order))
    account.add("order", time.monotonic() - begun)
    rank = {name: place for place, name in enumerate(order.arms)}
    raced = race.race(context, sorted(arms, key=lambda a: rank.get(a.name, len(rank))), account, log, phases)
    return ExplorationResult(raced, beside, order)


def _proven(
    proof: Proof,
    explores: ArmContext,
    origin: Origin,
    explored: ExplorationResult,
    account: Account,
    phases: Phases,
    say: Any,
) -> Decision:
    """Choose the finalists and their rival, and test as many finalists as there is time for on the proving rows."""
    if origin.refused:
        return Decision((), (), {})
    division = proof.division
    against, why = _rival(proof, origin)
    chosen = proving.finalists(
        explores,
        explored.raced.steps,
        small=proof.context.rows[TRAIN] < proving.SMALL,
        seconds=proof.log.read_or_make("provable", lambda: account.provable_seconds(proof.ready())),
    )
    if not origin.was_fitted:
        chosen = [f for f in chosen if f.role != proving.REFIT]
    seconds = [f.candidate.seconds for f in chosen]
    bought: list[tuple[int, float]] = proof.log.read_or_make("folds", lambda: account.buy_folds(seconds, proof.ready()))
    chosen = [dataclasses.replace(f, folds=n, lacks=s) for f, (n, s) in zip(chosen, bought, strict=True)]
    leading = [f for f in chosen if f.role in (proving.BEST, proving.NEXT)]
    shows = None
    if leading:
        tested = next((f for f in leading if f.folds), leading[0])
        shows = proving.smallest_gain(explores, tested.candidate, division)
        rows = division.number * explores.rows[VALIDATION]
        say.now(f"{division.name}: about {rows:,} rows decide, a gain of {shows:.1%} would show")
    proof = dataclasses.replace(proof, against=origin.model if against else None)
    found = proof.prove(chosen, phases.within(), early=account.budget.seconds is not None)
    return dataclasses.replace(proving.decide(proof, chosen, found), rival=why, shows=shows)


def _beside(context: ArmContext, account: Account, log: StepLog, phases: Phases) -> Baseline | None:
    """Baseline: Spark's own trees, measured on the same rows; None if it is not requested, or if the budget is too small."""
    if not baseline.has_baseline(context) or not baseline.limit(account.budget):
        return None
    begun = account.now()
    with phases.phase("baseline") as say:
        found: Baseline = log.read_or_make("baseline", lambda: baseline.measure_trees(context, account.budget))
        say(found.why or f"{found.name}: {found.value:.5g}")
    account.grant(baseline.limit(account.budget))
    account.add("baseline", found.seconds, until=begun + found.seconds)
    return found


def _deciding(runId: str | None) -> str:
    later = "" if runId is None else f"; everything that was tried is kept, and runId={runId!r} decides later"
    return f"deciding about everything that was tried so far; Ctrl-C again ends without a decision{later}"


@contextlib.contextmanager
def _folder(context: ArmContext, *, replace: bool) -> Iterator[tuple[CheckpointFolder, StepLog]]:
    """Context with the run's folder and its log. Only a run with a runId writes the log."""
    o, runId, known = context.options, context.options.runId, versions()
    # Measurements may differ between versions, and the guard's level affects which parts growth drops.
    settings = dataclasses.asdict(context.settings)
    del settings["parallelism"]  # it doesn't affect the result
    beside = {
        "improvement": settings,
        "guard": o.guard,
        "fleetSize": o.fleetSize,
        "versions": {name: known[name] for name in ("sparkdiff", "pyspark") if name in known},
    }
    with context.open_run(context.start.task) as run:
        pass
    with open_checkpoints(run, runId and name_beside(runId, "-improve"), replace=replace, beside=beside) as folder:
        yield folder, StepLog(folder.path if runId is not None else None)


def describe_improvement(model: Any, options: Options, settings: ImprovementSettings, data: DataFrame) -> RunPlan:
    """The plan of an improvement of this fitted pipeline: what it would try on rows with this schema.

    Raises:
        InputError: the pipeline can't be translated, or an option does not suit it.
    """
    Budget.of(settings.budget)
    context = ArmContext(model, options, settings, [Source(data)], None, Phases(False), FitResults())
    head = context.plan.cut.graph.head.uid
    allowed = {arm.name: arm for arm in arms_of(settings)}
    arms = list[dict[str, str]]()
    for name in (arm for arm in ARMS if arm in settings.arms):
        why = allowed[name].refusal(context) if name in allowed else "keepForm forbids it"
        arms.append({"arm": name, "does": ARMS[name], "note": f"not tried: {why}" if why else ""})
    costs = [f"serving costs {cost_table.of_model(model):.3g} us per row by the table of costs"]
    facts: dict[str, str | list[dict[str, str]]] = {
        "rows": division.sentence(context.sources, options),
        "arms": arms,
        "keeps": f"stages that stay as they are: {', '.join(context.keeps)}" if context.keeps else "",
        "baseline": f"for comparison only: {name_of(context)}" if has_baseline(context) else "",
        "serving": "\n".join([*costs, *cost_table.unknown(model)]),
    }
    title = f"improvement of {model.uid} within {settings.budget}, judged by {options.metric or f'the loss of {head}'}"
    return RunPlan(title, {name: fact for name, fact in facts.items() if fact})
