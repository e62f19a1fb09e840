"""Summary of an improvement, from the results of its race and its proof."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import REFERENCE, TEST, TRAIN, VALIDATION
from sparkdiff.evaluation.acceptance import Judgement, reason
from sparkdiff.fine_tuning.fine_tuning_summary import guard_fields, shown_options
from sparkdiff.growth import cost_table
from sparkdiff.improvement import bottleneck
from sparkdiff.improvement.arm_context import ArmContext, Measurement, is_cost_allowed
from sparkdiff.improvement.arm_order import ArmOrder
from sparkdiff.improvement.arms.simplifying import fold_stages
from sparkdiff.improvement.baseline import Baseline
from sparkdiff.improvement.budget import Account, Budget
from sparkdiff.improvement.candidate import candidates_of, share
from sparkdiff.improvement.improvement_options import ARMS
from sparkdiff.improvement.improvement_summary import ImprovementSummary
from sparkdiff.improvement.origin import Origin
from sparkdiff.improvement.proving import (
    BEST,
    NEXT,
    NOTHING,
    REFIT,
    SIMPLER,
    YOURS,
    Decision,
    Finalist,
    FinalistResult,
    FinalPipeline,
    gain_of,
)
from sparkdiff.improvement.race import RaceResult
from sparkdiff.options import Options, without_effect
from sparkdiff.proof.division import Division
from sparkdiff.report import share_of


@dataclasses.dataclass(frozen=True)
class ExplorationResult:
    """Results on the exploring rows.

    Attributes:
        raced: steps and final standings of the arms.
        beside: the baseline (Spark's own trees, for comparison only); None if not requested, or if the budget is too small.
        order: the order in which the arms were tried; None if no arm was tried.
    """

    raced: RaceResult
    beside: Baseline | None
    order: ArmOrder | None


def summary_of(
    context: ArmContext,
    explores: ArmContext,
    origin: Origin,
    division: Division,
    explored: ExplorationResult,
    decision: Decision,
    timings: Mapping[str, float],
    account: Account,
) -> ImprovementSummary:
    """Summary of an improvement.

    Args:
        context: context of the original, with the rows from which the shipped pipeline is made.
        explores: context of the exploring rows.
        timings: seconds per phase.
        account: contains the seconds spent on each arm, on measuring the original, and on the proof.
    """
    best, (shown, judgement) = decision.best, shown_of(decision)
    table, race, arms = _table(context, decision), _race(explores, explored, decision), _standings(explored.raced)
    after = context.start if best is None or best.found is None else best.found
    parity = {"before": context.start.parity, "after": after.parity}
    return ImprovementSummary(
        decision="kept original" if best is None else "improved",
        reason=reason_of(context, origin, division, decision, shown, judgement),
        records=_history(explored.raced, shown),
        parity={k: dataclasses.asdict(p) for k, p in parity.items() if p is not None},
        stages={},
        options=shown_options(context.start.task, context.metric, **context.settings.asdict()),
        warnings=_warnings(context, explores, origin, decision, judgement),
        arms=arms,
        table=table,
        race=race,
        order={} if explored.order is None else explored.order.asdict(),
        offers={n: next(i for i, r in enumerate(table) if n in r["offers"]) for n in decision.offers},
        budget={
            "given": context.settings.budget,
            "spent": {k: round(v, 3) for k, v in account.spent.items()},
            "seconds": round(account.now(), 3),
        },
        proof={
            "rows": division.name,
            "folds": division.number,
            "rival": "" if shown is None else shown.rival,
            "why": decision.rival,
            "shows": decision.shows,
            "units": None if shown is None else sum(f.rows.units.number for f in shown.folds),
            "unproven": [{"name": f.candidate.name, "seconds": round(f.lacks, 1)} for f in decision.unproven],
        },
        foundAt=_found_at(explored.raced, best),
        baseline=_beside(explores, explored.beside),
        explanation=_explanation(explores, race, arms, shown, explored.beside),
        metrics=metrics_of(context.start, after, shown, best),
        gain=0.0 if shown is None or (best is None and judgement.verdict.best < 0) else gain_of(shown),
        **{**context.facts, "timings": timings, **guard_fields(judgement)},
    )


def shown_of(decision: Decision) -> tuple[FinalistResult | None, Judgement]:
    """Finalist that the summary describes, and its judgement.

    It is the best offer; if there is none, an accepted finalist that can't ship; else the first finalist that was tested, or
    None.
    """
    gains = [s for s in decision.refused if s.proven.accepted]
    for shipped in (*filter(None, [decision.best]), *gains):
        return shipped.proven, shipped.judgement
    first = next((p for p in decision.proven if p.folds), None)
    return first, Judgement(NOTHING, None) if first is None else first.judgement


def metrics_of(
    before: Measurement, after: Measurement, shown: FinalistResult | None, best: FinalPipeline | None
) -> dict[str, dict[str, float] | None]:
    """Metric before and after, by split: on training, test and reference rows; and under "validation", on the proving rows."""
    metrics: dict[str, dict[str, float] | None] = {TRAIN: None, VALIDATION: None, TEST: None}
    for split in (TRAIN, TEST, REFERENCE):
        if split in before.scores:
            metrics[split] = {"before": before.scores[split].value, "after": after.scores[split].value}
    if shown is not None:
        metrics[VALIDATION] = {"before": shown.before, "after": shown.before if best is None else shown.after}
    return metrics


def _standings(raced: RaceResult) -> list[dict[str, Any]]:
    """Standings of the arms, in the fixed order of `ARMS` rather than in the order in which they were tried."""
    names = list(ARMS)
    return [
        {**dataclasses.asdict(s), "does": ARMS[s.arm]}
        for s in sorted(raced.standings, key=lambda s: names.index(s.arm))
    ]


def _history(raced: RaceResult, shown: FinalistResult | None) -> list[dict[str, Any]]:
    """Epochs of the training that made the described finalist on the exploring rows; empty if no training made it."""
    found = [s for s in raced.steps if shown is not None and shown.finalist.candidate in s.candidates]
    return found[0].learned.get("history", []) if found else []


def _explanation(
    explores: ArmContext,
    race: Sequence[Mapping[str, Any]],
    arms: Sequence[Mapping[str, Any]],
    shown: FinalistResult | None,
    beside: Baseline | None,
) -> str:
    of_best = shown if shown is not None and shown.finalist.role in (BEST, NEXT) else None
    verdict = NOTHING if of_best is None else of_best.judgement.verdict
    rows = 0 if of_best is None else sum(len(fold.rows.weight) for fold in of_best.folds)
    text = bottleneck.explanation(
        race,
        arms,
        metric=explores.metric.name,
        level=verdict.level,
        rows=rows,
        z=verdict.z,
        timed=explores.options.timeCol is not None,
        proven=shown.finalist.candidate.name if shown is not None and shown.accepted else "",
    )
    if beside is None:
        return text
    value = min((explores.metric.sign * r["value"] for r in race), default=explores.start.scores[VALIDATION].mean)
    return f"{text} {bottleneck.beside(beside.name, beside.value, explores.metric.sign * value, explores.metric.sign)}".strip()


def _found_at(raced: RaceResult, best: FinalPipeline | None) -> float | None:
    """Second of the improvement at which the step that found the best offer ended; None if there is no best offer."""
    found = [] if best is None else [s.ended for s in raced.steps if best.proven.finalist.candidate in s.candidates]
    return round(found[0], 3) if found else None


def _untested(context: ArmContext, finalist: Finalist) -> str:
    """The reason why a finalist was not tested, with a budget in which there is time for it."""
    given = Budget.of(context.settings.budget).seconds or 0.0
    enough = 5 * math.ceil((given + finalist.lacks) / 5)
    best = ", the best on the rows that explore" if finalist.role == BEST else ""
    return f"there was no time to prove {finalist.candidate.name!r}{best}: set a budget of {enough}s or more"


def reason_of(
    context: ArmContext,
    origin: Origin,
    division: Division,
    decision: Decision,
    shown: FinalistResult | None,
    judgement: Judgement,
) -> str:
    if origin.refused:
        return origin.refused
    if shown is None:
        failed = "; ".join(f"{p.finalist.candidate.name!r}: {p.failure}" for p in decision.proven if p.failure)
        late = _untested(context, decision.unproven[0]) if decision.unproven else ""
        return (
            failed
            or late
            or "nothing that was tried is better on the rows that explore; to look further, raise the budget, or pass more "
            "columns"
        )
    name = shown.finalist.candidate.name
    for refused in decision.refused:
        if refused.failure and refused.proven.accepted and decision.best is None:
            return f"the gain of {refused.proven.finalist.candidate.name!r} is proven, but {refused.failure}"
    best = next((f for f in decision.unproven if f.role == BEST), None)
    late = "" if best is None or decision.best is not None else _untested(context, best)
    if judgement.verdict.best < 0 and not judgement.verdict.untested:
        where = f"on those that prove ({division.name})"
        if late:
            return late
        if shown.finalist.role == REFIT:
            nothing = "nothing that was tried is better on the rows that explore"
            return f"{nothing}, and its refit is not better than {shown.rival} {where}"
        return f"{name!r}, the best on the rows that explore, is not better than {shown.rival} {where}"
    whose = f"the gain of {name!r} over {shown.rival}"
    where = "out-of-fold" if division.ships else "proving"
    text = reason(
        judgement,
        context.options,
        context.metric,
        shown.before,
        whose=whose,
        where=where,
        folds=False,
        divided=not division.ships,
    )
    return "; ".join(filter(None, [text.replace(f"{whose} gain", whose), late]))


def left_out(decision: Decision) -> list[str]:
    """Warnings about finalists that could not be made in a fold, each with the reason."""
    return [f"{p.finalist.candidate.name!r} can't be proven: {p.failure}" for p in decision.proven if p.failure]


def _warnings(
    context: ArmContext, explores: ArmContext, origin: Origin, decision: Decision, judgement: Judgement
) -> list[str]:
    recipe = (
        [
            f"recipe={context.options.recipe!r} has an effect in the arm grow, and in import where the last stage is linear, on "
            "the candidates that train at their end: other arms train those of recipe='default', and finetune then "
            "those of 'thorough'"
        ]
        if context.options.recipe != Options().recipe
        else []
    )
    settings, tried = context.settings, {*context.settings.allowed_arms()}
    reads_entities = "import" in tried or ("grow" in tried and settings.parts != ("units",))
    idle = without_effect(
        settings,
        {
            "parts": ("grow" not in tried, "it is for the arm grow, which is not tried"),
            "entityCols": (
                not reads_entities,
                "it is for import, and for parts of grow other than units, which are not tried",
            ),
            "maxLoss": (
                not {"grow", "import", "simplify"} & tried,
                "it is for grow, import and simplify, which are not tried",
            ),
        },
    )
    refused = [
        f"{s.proven.finalist.candidate.name!r} is not offered: {'; '.join([s.failure] if s.failure else s.judgement.outside)}"
        for s in decision.refused
        if s.failure or s.judgement.outside
    ]
    return [
        *origin.warnings,
        *judgement.verdict.warnings,
        *explores.doubts,
        *decision.warnings,
        *left_out(decision),
        *refused,
        *recipe,
        *idle,
        *cost_table.unknown(context.model),
    ]


def _row(name: str, value: float, **more: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "arm": None,
        "test": None,
        "change": 0.0,
        "gain": 0.0,
        "error": None,
        "changed": None,
        "serving": 1.0,
        "compacted": None,
        "seconds": 0.0,
        "p": None,
        "interval": None,
        "accepted": False,
        "offers": [],
        "why": "",
        "changes": "",
        "rival": "",
        "folds": 0,
    }
    return {**plain, "name": name, "value": value, **more}


def _table(context: ArmContext, decision: Decision) -> list[dict[str, Any]]:
    """Rows of the table: the user's pipeline (or its refit, if this was the rival), then the tested finalists, best first."""
    test = context.start.scores.get(TEST)
    measured = [p for p in decision.proven if p.folds]
    first = next((p for p in measured if p.rival == YOURS), next(iter(measured), None))
    held = context.start.scores[TRAIN].value if first is None else first.before
    name = YOURS if first is None or first.rival == YOURS else f"{YOURS}, fitted anew in each fold"
    rows = [_row(name, held, test=None if test is None else test.value)]
    shipped = {id(s.proven): s for s in decision.offers.values()}
    for p in sorted((p for p in decision.proven if p.folds), key=lambda p: -gain_of(p)):
        candidate, compared, verdict = p.finalist.candidate, p.judgement.compatibility, p.judgement.verdict
        found = shipped[id(p)].found if id(p) in shipped else None
        tested = None if found is None else found.scores.get(TEST)
        offers = [n for n, s in decision.offers.items() if s.proven is p]
        rows.append(
            _row(
                candidate.name,
                p.after,
                arm=candidate.arm,
                test=None if tested is None else tested.value,
                change=share_of(p.after - p.before, p.before),
                gain=gain_of(p),
                error=_error(p),
                changed=None if compared is None else compared.changed,
                serving=(candidate.found if found is None else found).cost / context.start.cost,
                compacted=_cost_after_folding(context, found) if offers and found is not None else None,
                seconds=candidate.seconds,
                p=None if verdict.best < 0 else verdict.p,
                interval=None if verdict.interval is None else list(verdict.interval),
                accepted=p.accepted,
                offers=offers,
                why=_against(p.judgement),
                changes=candidate.changes,
                rival=p.rival,
                folds=p.finalist.folds,
            )
        )
    exact = decision.offers.get(SIMPLER)
    if exact is not None and exact.found is not None and exact.proven.finalist.candidate.exact:
        after, found = exact.proven.after if exact.proven.folds else held, exact.found
        tested = found.scores.get(TEST)
        row = _row(
            exact.proven.finalist.candidate.name,
            after,
            arm="simplify",
            test=None if tested is None else tested.value,
            gain=gain_of(exact.proven),
            change=share_of(after - held, held),
            serving=found.cost / context.start.cost,
            offers=[SIMPLER],
        )
        rows.insert(1 + next((i for i, r in enumerate(rows) if BEST in r["offers"]), 0), row)
    return rows


def _error(proven: FinalistResult) -> float | None:
    """Standard error of a finalist's gain, as a share of the rival's metric; None if unknown."""
    verdict = proven.judgement.verdict
    return abs(gain_of(proven)) / verdict.z if verdict.z > 0 else None


def _race(explores: ArmContext, explored: ExplorationResult, decision: Decision) -> list[dict[str, Any]]:
    """Entries for the best candidate of each arm on the exploring rows, best first."""
    if not explored.raced.steps:
        return []
    accepted = {id(p.finalist.candidate) for p in decision.proven if p.accepted}
    rows: dict[str, dict[str, Any]] = {}
    for c in sorted(candidates_of(explored.raced.steps), key=lambda c: -share(explores, c)):
        if is_cost_allowed(explores, c.found.cost):
            rows.setdefault(
                c.arm,
                {
                    "arm": c.arm,
                    "name": c.name,
                    "value": c.found.scores[VALIDATION].value,
                    "gain": share(explores, c),
                    "serving": c.found.cost / explores.start.cost,
                    "seconds": c.seconds,
                    "accepted": id(c) in accepted,
                },
            )
    return list(rows.values())


def _cost_after_folding(context: ArmContext, found: Measurement) -> float | None:
    """Serving cost of an offer after `sparkdiff.compact`, relative to the original's; None if compacting saves nothing."""
    model = fold_stages(context, found.model)
    return None if model is None else cost_table.of_model(model) / context.start.cost


def _beside(explores: ArmContext, rival: Baseline | None) -> dict[str, Any] | None:
    """Entry of the baseline (Spark's own trees), measured on the exploring rows; None if there is no baseline."""
    if rival is None:
        return None
    held = explores.start.scores[VALIDATION].value
    change = None if rival.value is None else share_of(rival.value - held, held)
    return dataclasses.asdict(rival) | {"change": change}


def _against(judgement: Judgement) -> str:
    """Reasons why a statistically significant gain was not accepted; empty if it was accepted or is not significant."""
    if judgement.accepted or not judgement.verdict.accepted:
        return ""
    against = [f"worse on {c.name}" for c in judgement.worse[:1]]
    against += ["too many labels change"] if judgement.flips else []
    against += ["one more wrong prediction, or bad group, would undo it"] if judgement.fragile else []
    return ", ".join(against)
