"""An improvement, from the original to the offers: measure, race the arms, decide once over everything."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import VALIDATION, Boundaries, Source
from sparkdiff.errors import InputError
from sparkdiff.fine_tuning.phases import run_folder
from sparkdiff.fine_tuning.shared import Shared
from sparkdiff.fine_tuning.starting_point import StartingPoint
from sparkdiff.fine_tuning.values import Outcome
from sparkdiff.growth.checks import check_entities
from sparkdiff.improvement import baseline, judging, race
from sparkdiff.improvement.arms import arms_of
from sparkdiff.improvement.baseline import Baseline
from sparkdiff.improvement.budget import Account, Budget
from sparkdiff.improvement.ground import Ground, prepared
from sparkdiff.improvement.lanes import Brake
from sparkdiff.improvement.log import StepLog
from sparkdiff.improvement.order import order_of
from sparkdiff.improvement.plan import described
from sparkdiff.improvement.reporting import summary_of
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.machine.interrupts import undisturbed
from sparkdiff.options import Options
from sparkdiff.report import Phases, shown
from sparkdiff.report.record import versions
from sparkdiff.store.run_folder import RunFolder, name_beside


@dataclasses.dataclass(frozen=True)
class Improved(Outcome):
    """The result of an improvement: `model` is the best offer, or the original object itself.

    Attributes:
        offers: the offered pipelines by name.
    """

    offers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def improve_pipeline(
    origin: StartingPoint, options: Options, settings: ImprovementSettings, sources: Sequence[Source], phases: Phases,
    *, boundaries: Boundaries | None = None, replace: bool = False,
) -> Improved:  # fmt: skip
    """Print the plan, improve a fitted pipeline by all arms within the budget, and return what held-out rows decide for.

    Args:
        origin: the fitted pipeline, or its refit.
        boundaries: where time divides the rows, if that is known already.
        replace: see `fine_tune`.

    Raises:
        InputError: the pipeline, the data or the options can't be used.
        ParityError: the original's network and Spark disagree.
    """
    with phases.phase("plan"):
        text = described(origin.model, options, settings, sources[0].df)
    if shown(options.verbosity):
        print(text, flush=True)
    brake = Brake(phases.within().listeners)
    model = origin.model
    ground = Ground(
        model, options, settings, sources, boundaries, Phases(False, [brake]), Shared(), origin.given, brake=brake
    )
    check_entities(settings.entityCols, ground.plan, sources[0].df)
    arms = [] if origin.refused else arms_of(settings)
    refusals = {arm.name: arm.refused(ground) for arm in arms}
    if refusals and all(refusals.values()):
        raise InputError(f"nothing can be tried on {model.uid}: {'; '.join(f'{k}: {v}' for k, v in refusals.items())}")
    account, begun = Account(Budget.of(settings.budget)), time.monotonic()
    with phases.phase("original") as say:
        ground = prepared(ground)
        origin = origin.checked(ground.short)
        arms = [] if origin.refused else arms
        held = ground.start.scores[VALIDATION].value
        say(f"{ground.metric.name} {held:.5g} on {ground.rows[VALIDATION]:,} validation rows; {ground.start.parity}")
    account.add("original", time.monotonic() - begun)
    with _folder(ground, replace=replace) as (folder, log):
        ground = dataclasses.replace(ground, folder=folder.path)
        rival = None if origin.refused else _rival(ground, account, log, phases)
        begun = time.monotonic()
        with phases.phase("order") as say:
            order = log.order(lambda: order_of(ground, [arm for arm in arms if not refusals[arm.name]]))
            say(str(order))
        account.add("order", time.monotonic() - begun)
        rank = {name: place for place, name in enumerate(order.arms)}
        raced = race.race(ground, sorted(arms, key=lambda a: rank.get(a.name, len(rank))), account, log, phases)
        begun = time.monotonic()
        with undisturbed(_deciding(options.runId)), phases.phase("judge"):
            decision = judging.decide(ground, raced.steps)
        account.add("judge", time.monotonic() - begun)
        timings = {k: round(v, 3) for k, v in phases.timings.items()}
        summary = origin.told(summary_of(ground, raced, decision, rival, timings, account, order))
    offers = {name: j.candidate.model for name, j in decision.offers.items()}
    result = model if decision.best is None else decision.best.candidate.model
    phases.on_decision(summary)
    return origin.finished(Improved(result, model, ground.start.task.plan, summary, (folder,), offers))


def _rival(ground: Ground, account: Account, log: StepLog, phases: Phases) -> Baseline | None:
    """Spark's own trees on the same rows, for comparison; None where they are not asked for.

    They come before the arms: in the end nothing of the time may be left for them, and an honest table has this row.
    """
    if not baseline.wanted(ground):
        return None
    begun = account.now()
    with phases.phase("baseline") as say:
        found = log.baseline(lambda: baseline.compared(ground, account.budget))
        say(found.why or f"{found.name}: {found.value:.5g}")
    account.grant(baseline.limit(account.budget))
    account.add("baseline", found.seconds, until=begun + found.seconds)
    return found


def _deciding(runId: str | None) -> str:
    later = "" if runId is None else f"; everything that was tried is kept, and runId={runId!r} decides later"
    return f"deciding about everything that was tried so far; Ctrl-C again ends without a decision{later}"


@contextlib.contextmanager
def _folder(ground: Ground, *, replace: bool) -> Iterator[tuple[RunFolder, StepLog]]:
    """The run's folder, and the log in it; only a run with a name keeps one."""
    o, runId, known = ground.options, ground.options.runId, versions()
    # What was measured may differ between versions, and the level of the guard decides what growth drops.
    settings = dataclasses.asdict(ground.settings)
    del settings["parallelism"]  # it decides nothing
    beside = {
        "improvement": settings, "guard": o.guard, "fleetSize": o.fleetSize,
        "versions": {name: known[name] for name in ("sparkdiff", "pyspark") if name in known},
    }  # fmt: skip
    with ground.begun(ground.start.task) as run:
        pass
    with run_folder(run, runId and name_beside(runId, "-improve"), replace=replace, beside=beside) as folder:
        yield folder, StepLog(folder.path if runId is not None else None)
