"""Makes the summary of an improvement from what its race and its decision found."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import TEST, VALIDATION
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import Judgement, reason
from sparkdiff.fine_tuning.summary import measured, shown_options, tested
from sparkdiff.fine_tuning.values import Measured
from sparkdiff.growth import costs
from sparkdiff.improvement import why
from sparkdiff.improvement.baseline import Baseline
from sparkdiff.improvement.budget import Account
from sparkdiff.improvement.candidate import Step, share
from sparkdiff.improvement.folding import folded
from sparkdiff.improvement.ground import Ground, Measurement
from sparkdiff.improvement.judging import Decision, JudgedCandidate
from sparkdiff.improvement.order import ArmOrder, as_json
from sparkdiff.improvement.race import Raced
from sparkdiff.improvement.settings import ARMS
from sparkdiff.improvement.summary import ImprovementSummary
from sparkdiff.options import Options, without_effect
from sparkdiff.report.shares import share_of


def summary_of(
    ground: Ground, raced: Raced, decision: Decision, rival: Baseline | None, timings: Mapping[str, float],
    account: Account, order: ArmOrder,
) -> ImprovementSummary:  # fmt: skip
    """
    Args:
        rival: what is shown for comparison.
        timings: seconds per phase.
        account: seconds per arm, of measuring the original, and of the decision.
    """
    best, start = decision.best, ground.start
    shown = best or next(iter(decision.judged), None)
    after = start if best is None else best.candidate.found
    judgement = Judgement(NOTHING, None) if shown is None else shown.judgement
    table, arms = _table(ground, raced, decision), _standings(raced)
    parity = {k: dataclasses.asdict(p) for k, p in (("before", start.parity), ("after", after.parity)) if p is not None}
    told = dataclasses.asdict(ground.settings)
    said = {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}
    facts = {**ground.facts, "timings": timings, **tested(judgement), **measured(_plain(start), _plain(after))}
    facts |= {"gain": 0.0 if shown is None else share(ground, shown.candidate), "p": 1.0 if shown is None else shown.p}
    return ImprovementSummary(
        decision="kept original" if best is None else "improved", reason=_reason(ground, shown),
        records=_history(raced.steps, shown), parity=parity, stages={},
        options=shown_options(start.task, ground.metric, **said), warnings=_warnings(ground, decision, judgement.verdict),
        arms=arms, table=table, order=as_json(order),
        offers={n: next(i for i, r in enumerate(table) if n in r["offers"]) for n in decision.offers},
        budget={
            "given": ground.settings.budget, "spent": {k: round(v, 3) for k, v in account.spent.items()},
            "seconds": round(account.now(), 3),
        },
        measured=decision.measured, foundAt=_found_at(raced.steps, best), baseline=_beside(ground, rival),
        explanation=_explained(ground, table, arms, judgement, rival, after),
        **facts,
    )  # fmt: skip


def _standings(raced: Raced) -> list[dict[str, Any]]:
    """Where the arms stand, in their fixed order, in whatever order they were tried."""
    names = list(ARMS)
    return [dataclasses.asdict(s) for s in sorted(raced.standings, key=lambda s: names.index(s.arm))]


NOTHING = guard.Verdict(False, -1, 0.0, 0.0, 1.0, 0.025)
"""Where there was nothing to test."""


def _plain(found: Measurement) -> Measured:
    return Measured(dict(found.scores), found.parity)


def _history(steps: Sequence[Step], shown: JudgedCandidate | None) -> list[dict[str, Any]]:
    """The epochs of the training that made the candidate, if one did."""
    if shown is None:
        return []
    return next((s.learned.get("history", []) for s in steps if shown.candidate in s.candidates), [])


def _explained(
    ground: Ground, table: Sequence[Mapping[str, Any]], arms: Sequence[Mapping[str, Any]], judgement: Judgement,
    rival: Baseline | None, after: Measurement,
) -> str:  # fmt: skip
    verdict, timed = judgement.verdict, ground.options.timeCol is not None
    name, rows = ground.metric.name, ground.rows[VALIDATION]
    text = why.explanation(table, arms, metric=name, level=verdict.level, rows=rows, z=verdict.z, timed=timed)
    if rival is None:
        return text
    value = after.scores[VALIDATION].value
    return f"{text} {why.beside(rival.name, rival.value, value, ground.metric.sign)}".strip()


def _found_at(steps: Sequence[Step], best: JudgedCandidate | None) -> float | None:
    """The second at which the step ended that found the best."""
    found = [] if best is None else [s.ended for s in steps if best.candidate in s.candidates]
    return round(found[0], 3) if found else None


def _reason(ground: Ground, shown: JudgedCandidate | None) -> str:
    if shown is None or (shown.judgement.verdict.best < 0 and not shown.judgement.verdict.untested):
        return "nothing that was tried is better on the validation rows; to look further, raise the budget, or pass more columns"
    held = ground.start.scores[VALIDATION].value
    whose = f"the gain of {shown.candidate.name!r}"
    text = reason(shown.judgement, ground.options, ground.metric, held, whose=whose, folds=False)
    return text.replace(f"{whose} gain", whose)


def _warnings(ground: Ground, decision: Decision, verdict: guard.Verdict) -> list[str]:
    recipe = [
        f"recipe={ground.options.recipe!r} has an effect in the arm grow, and in import where the last stage is linear, on the "
        "candidates that train at their end: other arms train those of recipe='default', and finetune then those of 'thorough'"
    ] if ground.options.recipe != Options().recipe else []  # fmt: skip
    settings, tried = ground.settings, {*ground.settings.tried()}
    reads_entities = "import" in tried or ("grow" in tried and settings.parts != ("units",))
    idle = without_effect(settings, {
        "parts": ("grow" not in tried, "it is for the arm grow, which is not tried"),
        "entityCols": (not reads_entities, "it is for import, and for parts of grow other than units, which are not tried"),
        "maxLoss": (not {"grow", "import", "simplify"} & tried, "it is for grow, import and simplify, which are not tried"),
    })  # fmt: skip
    return [*verdict.warnings, *ground.doubts, *decision.warnings, *recipe, *idle]


def _table(ground: Ground, raced: Raced, decision: Decision) -> list[dict[str, Any]]:
    """The rows of the table: the original, and the judged candidates, the best first."""
    start, held = ground.start, ground.start.scores[VALIDATION].value
    test = start.scores.get(TEST)
    rows: list[dict[str, Any]] = [{
        "arm": None, "name": "your pipeline", "value": held, "test": None if test is None else test.value, "change": 0.0,
        "gain": 0.0, "changed": None, "serving": 1.0, "compacted": None,
        "seconds": 0.0, "p": None, "interval": None, "accepted": False,
        "offers": [], "why": "", "changes": "",
    }]  # fmt: skip
    spent = {s.arm: s.seconds for s in raced.standings}
    for j in decision.judged:
        found, compared = j.candidate.found, j.judgement.compatibility
        value = found.scores[VALIDATION].value
        tested = found.scores.get(TEST)
        rows.append({
            "arm": j.candidate.arm, "name": j.candidate.name, "value": value, "test": None if tested is None else tested.value,
            "change": share_of(value - held, held), "gain": share(ground, j.candidate),
            "changed": None if compared is None else compared.changed, "serving": found.cost / start.cost,
            "compacted": _compacted(ground, j) if j in decision.offers.values() else None,
            "seconds": spent[j.candidate.arm], "p": None if j.judgement.verdict.best < 0 else j.p,
            "interval": None if j.judgement.verdict.interval is None else list(j.judgement.verdict.interval),
            "accepted": j.accepted,
            "offers": [n for n, o in decision.offers.items() if o is j], "why": _against(j.judgement),
            "changes": j.candidate.changes,
        })  # fmt: skip
    return rows


def _compacted(ground: Ground, offered: JudgedCandidate) -> float | None:
    """What an offer costs to serve once it is folded (`sparkdiff.compact`), by what the original costs; None if nothing folds."""
    model = folded(ground, offered.candidate.model)
    return None if model is None else costs.of_model(model) / ground.start.cost


def _beside(ground: Ground, rival: Baseline | None) -> dict[str, Any] | None:
    """The last row of the table: what is shown for comparison."""
    if rival is None:
        return None
    held = ground.start.scores[VALIDATION].value
    change = None if rival.value is None else share_of(rival.value - held, held)
    return dataclasses.asdict(rival) | {"change": change}


def _against(judgement: Judgement) -> str:
    """What speaks against a gain that is larger than chance."""
    if judgement.accepted or not judgement.verdict.accepted:
        return ""
    against = [f"worse on {c.name}" for c in judgement.worse[:1]]
    against += ["too many labels change"] if judgement.flips else []
    against += ["one more wrong prediction, or bad group, would undo it"] if judgement.fragile else []
    return ", ".join(against)
