"""An improvement, from the original to the offers: measure, race the arms, decide once over everything."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import SPLITS, TEST, VALIDATION, Boundaries, Source
from sparkdiff.errors import InputError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import Judgement, reason
from sparkdiff.finetune import Outcome, Shared, run_folder
from sparkdiff.improvement import judging, race, why
from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.arms import ARMS
from sparkdiff.improvement.budget import Account, Budget
from sparkdiff.improvement.candidate import Step, share
from sparkdiff.improvement.ground import Ground, prepared
from sparkdiff.improvement.judging import Decision, Judged
from sparkdiff.improvement.log import Log
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.improvement.summary import ImprovementSummary
from sparkdiff.options import Options
from sparkdiff.report import Phases
from sparkdiff.report.progress import Progress
from sparkdiff.report.record import versions
from sparkdiff.store.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Improved(Outcome):
    """The result of an improvement: `model` is the best offer, or the original object itself.

    Attributes:
        offers: the offered pipelines by name.
    """

    offers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def arms_of(settings: ImprovementSettings) -> list[Arm]:
    """The arms that may be tried, the cheap ones first."""
    return [arm for arm in ARMS if arm.name in settings.tried()]


def improve_pipeline(
    model: Any, options: Options, settings: ImprovementSettings, sources: Sequence[Source], phases: Phases,
    *, boundaries: Boundaries | None = None, replace: bool = False,
) -> Improved:  # fmt: skip
    """Improve a fitted pipeline by all arms within the budget, and return what held-out rows decide for.

    Args:
        boundaries: where time divides the rows, if that is known already.
        replace: see `fine_tune`.

    Raises:
        InputError: the pipeline, the data or the options can't be used.
        ParityError: the original's network and Spark disagree.
    """
    quiet = Phases(False, [x for x in phases.listeners if not isinstance(x, Progress)])
    with phases.phase("original") as say:
        ground = prepared(Ground(model, options, settings, sources, boundaries, quiet, Shared()))
        held = ground.start.scores[VALIDATION].value
        say(f"{ground.metric.name} {held:.5g} on {ground.rows[VALIDATION]:,} validation rows; {ground.start.parity}")
    arms = arms_of(settings)
    if not any(not arm.refused(ground) for arm in arms):
        told = "; ".join(f"{arm.name}: {arm.refused(ground)}" for arm in arms)
        raise InputError(f"nothing can be tried on {model.uid}: {told}")
    account = Account(Budget.of(settings.budget))
    with _folder(ground, replace=replace) as (folder, log):
        ground = dataclasses.replace(ground, folder=folder.path)
        raced = race.race(ground, arms, account, log, phases)
        with phases.phase("judge"):
            decision = judging.decide(ground, raced.steps)
        summary = _summary(ground, raced, decision, phases)
    offers = {name: j.candidate.model for name, j in decision.offers.items()}
    result = model if decision.best is None else decision.best.candidate.model
    phases.on_decision(summary)
    return Improved(result, model, ground.start.task.plan, summary, (folder,), offers)


@contextlib.contextmanager
def _folder(ground: Ground, *, replace: bool) -> Iterator[tuple[RunFolder, Log]]:
    """The run's folder, and the log in it; only a run with a name keeps one."""
    runId = ground.options.runId
    beside = {
        "improvement": {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(ground.settings).items()
        }
    }
    with ground.begun(ground.start.task) as run:
        pass
    with run_folder(run, runId and f"{runId}-improve", replace=replace, beside=beside) as folder:
        yield folder, Log(folder.path if runId is not None else None)


# The summary ----------------------------------------------------------------------------------------------------------


def _summary(ground: Ground, raced: race.Raced, decision: Decision, phases: Phases) -> ImprovementSummary:
    best, metric, start = decision.best, ground.metric, ground.start
    shown = best or next(iter(decision.judged), None)
    after = start if best is None else best.candidate.found
    table = _table(ground, raced, decision)
    judgement = None if shown is None else shown.judgement
    verdict = guard.Verdict(False, -1, 0.0, 0.0, 1.0, ground.options.guard) if judgement is None else judgement.verdict
    metrics = {
        s: {"before": start.scores[s].value, "after": after.scores[s].value} if s in start.scores else None
        for s in SPLITS
        if s in start.scores or s != "reference"
    }
    parity = {k: dataclasses.asdict(p) for k, p in (("before", start.parity), ("after", after.parity)) if p is not None}
    said = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(ground.settings).items()}
    task = start.task
    return ImprovementSummary(
        decision="kept original" if best is None else "improved", reason=_reason(ground, shown), metric=metric.name,
        metricDirection=metric.direction, metrics=metrics, gain=0.0 if shown is None else share(ground, shown.candidate),
        z=verdict.z, p=1.0 if shown is None else shown.p, records=_history(raced.steps, shown), parity=parity, stages={},
        timings={k: round(v, 3) for k, v in phases.timings.items()}, stream=ground.options.stream, cache={},
        options=task.options.asdict(every=True) | said | {"labelCol": task.labelCol, "weightCol": task.weightCol},
        versions=versions(), warnings=_warnings(ground, decision, verdict),
        gainInterval=None if verdict.interval is None else list(verdict.interval),
        slices=[] if judgement is None else [dataclasses.asdict(c) for c in judgement.slices],
        reference=_plain(judgement, "reference"), compatibility=_plain(judgement, "compatibility"),
        precision=ground.options.precision, arms=[dataclasses.asdict(s) for s in raced.standings], table=table,
        offers={n: next(i for i, r in enumerate(table) if n in r["offers"]) for n in decision.offers},
        budget={"given": ground.settings.budget, "spent": {s.arm: round(s.seconds, 3) for s in raced.standings}},
        measured=decision.measured,
        explanation=why.explanation(
            table, metric=metric.name, level=verdict.level, rows=ground.rows[VALIDATION], z=verdict.z,
            timed=ground.options.timeCol is not None,
        ),
    )  # fmt: skip


def _plain(judgement: Judgement | None, name: str) -> dict[str, Any] | None:
    found = None if judgement is None else getattr(judgement, name)
    return None if found is None else dataclasses.asdict(found)


def _history(steps: Sequence[Step], shown: Judged | None) -> list[dict[str, Any]]:
    """The epochs of the training that made the candidate, if one did."""
    if shown is None:
        return []
    return next((s.learned.get("history", []) for s in steps if shown.candidate in s.candidates), [])


def _reason(ground: Ground, shown: Judged | None) -> str:
    if shown is None or shown.judgement.verdict.best < 0:
        return "nothing that was tried is better on the validation rows"
    held = ground.start.scores[VALIDATION].value
    whose = f"the gain of {shown.candidate.name!r}"
    return reason(shown.judgement, ground.options, ground.metric, held, whose=whose).replace(f"{whose} gain", whose)


def _warnings(ground: Ground, decision: Decision, verdict: guard.Verdict) -> list[str]:
    return [*verdict.warnings, *ground.doubts, *decision.warnings]


def _table(ground: Ground, raced: race.Raced, decision: Decision) -> list[dict[str, Any]]:
    """The rows of the table: the original, and the judged candidates, the best first."""
    start, held = ground.start, ground.start.scores[VALIDATION].value
    test = start.scores.get(TEST)
    rows: list[dict[str, Any]] = [{
        "arm": None, "name": "your pipeline", "value": held, "test": None if test is None else test.value, "change": 0.0,
        "gain": 0.0, "changed": None, "serving": 1.0, "seconds": 0.0, "p": None, "accepted": False, "offers": [], "why": "",
    }]  # fmt: skip
    spent = {s.arm: s.seconds for s in raced.standings}
    for j in decision.judged:
        found, compared = j.candidate.found, j.judgement.compatibility
        value = found.scores[VALIDATION].value
        tested = found.scores.get(TEST)
        rows.append({
            "arm": j.candidate.arm, "name": j.candidate.name, "value": value, "test": None if tested is None else tested.value,
            "change": (value - held) / max(abs(held), 1e-12), "gain": share(ground, j.candidate),
            "changed": None if compared is None else compared.changed, "serving": found.cost / start.cost,
            "seconds": spent[j.candidate.arm], "p": None if j.judgement.verdict.best < 0 else j.p, "accepted": j.accepted,
            "offers": [n for n, o in decision.offers.items() if o is j], "why": _against(j.judgement),
        })  # fmt: skip
    return rows


def _against(judgement: Judgement) -> str:
    """What speaks against a gain that is larger than chance."""
    if judgement.accepted or not judgement.verdict.accepted:
        return ""
    sets = [f"worse on {c.name}" for c in judgement.worse[:1]]
    return ", ".join([*sets, *(["too many labels change"] if judgement.flips else [])])
