"""Fine-tuning and growth by folds, as improvements with a single arm.

The arm explores on some rows. Its result is tested on the proving rows (usually several folds), together with a plain refit.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.splits import TRAIN, Source
from sparkdiff.evaluation.acceptance import Judgement, divergence
from sparkdiff.evaluation.guard import candidate_count, diverged_candidates
from sparkdiff.evaluation.pipeline_warnings import unreadable_by_older_spark
from sparkdiff.fine_tuning.fine_tuning_summary import guard_fields, shown_options, warnings_of
from sparkdiff.fine_tuning.task import GuardDecision, prepare
from sparkdiff.growth import cost_table
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.growth_steps import describe_growth
from sparkdiff.growth.growth_summary import GrowthSummary
from sparkdiff.growth.parts import trees
from sparkdiff.improvement.arm_context import ArmContext, Training
from sparkdiff.improvement.arms.fine_tuning import with_recipe
from sparkdiff.improvement.arms.growing import with_settings
from sparkdiff.improvement.budget import Account, Budget, Limit
from sparkdiff.improvement.candidate import share
from sparkdiff.improvement.exploration_and_proof import ImprovementKind, ImprovementOutcome, explore_and_prove
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.improvement.origin import Fits, Origin
from sparkdiff.improvement.parallel_tasks import StoppableListener
from sparkdiff.improvement.proving import REFIT, Decision, FinalistResult, gain_of
from sparkdiff.improvement.summary_contents import ExplorationResult, left_out, metrics_of, reason_of, shown_of
from sparkdiff.options import Options
from sparkdiff.pipeline.plan import Plan
from sparkdiff.proof.division import Division
from sparkdiff.report import FineTuningSummary, Phases, Progress, RunPlan
from sparkdiff.store.checkpoint_folder import folder_name


class FoldListener(StoppableListener):
    """Listener that passes events on to other listeners.

    To rows of a history without a fold (those of the exploring arm) it adds "fold": 1; it removes the arm and the round.
    """

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._tell("on_epoch", {"fold": 1, **{k: v for k, v in row.items() if k not in ("arm", "round")}})


def of_one_arm(phases: Phases) -> Phases:
    """A copy of the phases for a run with a single arm: its listeners, except `Progress`, get rows in the form of the summary's
    records.
    """
    own, others = copy.copy(phases), [x for x in phases.listeners if not isinstance(x, Progress)]
    own.listeners = [*(x for x in phases.listeners if isinstance(x, Progress)), FoldListener(others)]
    return own


def fine_tune_by_folds(
    given: Any,
    options: Options,
    sources: Sequence[Source],
    phases: Phases,
    *,
    replace: bool = False,
    fits: Fits | None = None,
) -> ImprovementOutcome:
    """Fine-tune a pipeline by folds, and return the pipeline that the test on the proving rows accepts, made from all rows.

    See `explore_and_prove`.
    """
    if options.runId is not None:
        folder_name(options.runId)  # before anything is fitted

    def describe(model: Any, data: DataFrame) -> Plan:
        return prepare(model, options, data).plan

    arm = with_recipe(options.recipe, options.maxSeconds)
    verb = ImprovementKind([arm], Budget.unlimited(), describe, summary_of)
    settings = ImprovementSettings(arms=("finetune",), baseline=False, parallelism=1)
    return explore_and_prove(given, options, settings, sources, of_one_arm(phases), verb, replace=replace, fits=fits)


def summary_of(
    context: ArmContext,
    explores: ArmContext,
    origin: Origin,
    division: Division,
    _explored: ExplorationResult,
    decision: Decision,
    timings: Mapping[str, float],
    _account: Account,
) -> FineTuningSummary:
    """Summary of a fine-tuning by folds; for the arguments see `summary_contents.summary_of`."""
    best, trainings, (shown, judgement) = decision.best, context.trainings, shown_of(decision)
    after = context.start if best is None or best.found is None else best.found
    parity = {"before": context.start.parity, "after": None if best is None else after.parity}
    parity["float32"] = trainings[0].fitted.single if trainings else None
    entries = _folds(shown, context.metric.sign) if shown is not None and division.ships else []
    histories = [t.fitted.found.history for t in trainings]
    last = trainings[-1].fitted if trainings else None
    of_best = _training_of(context, decision)
    moved = {} if of_best is None else of_best.fitted.found.moved
    return FineTuningSummary(
        decision="kept original" if best is None else "tuned",
        reason=reason_of(context, origin, division, decision, shown, judgement),
        metrics=metrics_of(context.start, after, shown, best),
        gain=0.0 if best is None else gain_of(best.proven),
        records=[{"fold": t.fold, **row} for t, rows in zip(trainings, histories, strict=True) for row in rows],
        parity={k: dataclasses.asdict(p) for k, p in parity.items() if p is not None},
        stages={k: {"largest": a, "rootMeanSquare": b} for k, (a, b) in moved.items()},
        options=shown_options(context.start.task, context.metric),
        warnings=_warnings(context, explores, origin, decision, judgement),
        candidates=max(map(candidate_count, histories), default=None),
        diverged=sum(len(diverged_candidates(h)) for h in histories),
        device=None if last is None else last.device,
        folds=entries,
        **{**context.facts, "timings": timings, **guard_fields(judgement)},
    )


def _folds(shown: FinalistResult, sign: float) -> list[dict[str, Any]]:
    """Entries of the proving folds for the summary."""
    making, entries = shown.finalist.candidate.making, []
    recipe = "" if making.recipe is None else str(making.recipe)
    for k, fold in enumerate(shown.folds):
        rows = fold.rows
        before, after = (sign * float(x.sum() / rows.weight.sum()) for x in (rows.original, rows.other))
        entries.append(
            {
                "fold": k + 2,
                "rows": len(rows.weight),
                "before": before,
                "after": after,
                "recipe": recipe,
                "epochs": making.epochs,
            }
        )
    return entries


def _warnings(
    context: ArmContext, explores: ArmContext, origin: Origin, decision: Decision, judgement: Judgement
) -> list[str]:
    rival = [decision.rival] if decision.rival and context.options.rowsAreNew is None else []
    doubts = [*origin.warnings, *rival, *explores.doubts, *decision.warnings, *left_out(decision)]
    for training in context.trainings:
        fitted = training.fitted
        lost = [f"{loss}; training continued from the last checkpoint" for loss in fitted.lost]
        notes = [
            fitted.unsaved,
            fitted.endedEarly,
            divergence(fitted.found.history, context.options),
            *fitted.fallbacks,
            *lost,
        ]
        doubts += [f"fold {training.fold}: {note}" if training.fold else note for note in notes if note]
    best, of_best = decision.best, _training_of(context, decision)
    if of_best is None or best is None or best.found is None:
        return [*judgement.verdict.warnings, *unreadable_by_older_spark(context.model), *doubts]
    tuned, fitted = best.found.scores[TRAIN], of_best.fitted
    broken = fitted.wishes.violations(fitted.found.network) if fitted.wishes is not None else []
    plain = dataclasses.replace(fitted, unsaved="", endedEarly="", fallbacks=[], lost=[])
    return warnings_of(of_best.run, plain, GuardDecision(judgement, tuned, broken), tuned, doubts)


def _training_of(context: ArmContext, decision: Decision) -> Training | None:
    """Training run of the pipeline that ships; None if nothing ships, or if a refit without training ships."""
    best = decision.best
    if best is None or best.proven.finalist.role == REFIT or not context.trainings or context.trainings[-1].fold:
        return None
    return context.trainings[-1]


@dataclasses.dataclass(frozen=True)
class _GrowthByFolds(ImprovementSettings):
    """Settings of the improvement and of the growth, so that a resumed run must have the same settings of both."""

    growth: GrowthSettings = dataclasses.field(default_factory=GrowthSettings)


def grow_pipeline(
    given: Any,
    options: Options,
    settings: GrowthSettings,
    sources: Sequence[Source],
    phases: Phases,
    *,
    replace: bool = False,
    fits: Fits | None = None,
) -> ImprovementOutcome:
    """Grow a pipeline on the exploring rows, and return the pipeline that the test on the proving rows accepts, made
    from all rows.

    See `explore_and_prove`.
    """
    settings, missing = trees.without_trees(settings)
    learned: dict[int | None, Mapping[str, Any]] = {}

    def plan(model: Any, data: DataFrame) -> RunPlan:
        return describe_growth(model, options, settings, data)

    def summarize(
        context: ArmContext,
        explores: ArmContext,
        origin: Origin,
        division: Division,
        explored: ExplorationResult,
        decision: Decision,
        timings: Mapping[str, float],
        account: Account,
    ) -> GrowthSummary:
        plain = summary_of(context, explores, origin, division, explored, decision, timings, account)
        values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        step = next(iter(explored.raced.steps), None)
        best, shown = decision.best, {} if step is None else dict(step.learned)
        if grown := best is not None and best.proven.finalist.candidate.arm == "grow":
            shown |= learned.get(0, {})
            grown = any(not part["dropped"] for part in shown["fields"]["parts"])
            if not grown:
                values["reason"] += "; on the rows that make what ships no part joins, so it is the refit without any"
        values |= {
            "decision": "grown" if grown else "kept original" if best is None else "improved",
            "options": {**plain.options, **settings.asdict()},
        }
        if best is None and (step is None or not step.candidates):
            values["reason"] = plain.reason if step is None else step.learned["why"]
        values["warnings"] = [*missing, *shown.get("warnings", []), *plain.warnings, *cost_table.unknown(context.model)]
        cost = context.start.cost
        fields = shown.get("fields", {"servingCost": {"limit": None}})
        after = cost if best is None or best.found is None else best.found.cost
        values |= fields | {"servingCost": {"before": cost, "after": after, **fields["servingCost"]}}
        if grown and step is not None:
            with phases.phase("attribute"):
                values["fineTunedGain"] = _gain_alone(explores, options, step.seconds)
            values["timings"] = {k: round(v, 3) for k, v in phases.timings.items()}
        return GrowthSummary(**values)

    verb = ImprovementKind([with_settings(settings, options.maxSeconds, learned)], Budget.unlimited(), plan, summarize)
    own = _GrowthByFolds(
        arms=("grow",),
        baseline=False,
        parallelism=1,
        parts=settings.parts,
        entityCols=settings.entityCols,
        maxServingCost=settings.maxServingCost,
        maxLoss=settings.maxLoss,
        growth=settings,
    )
    return explore_and_prove(given, options, own, sources, of_one_arm(phases), verb, replace=replace, fits=fits)


def _gain_alone(explores: ArmContext, options: Options, spent: float) -> float | None:
    """Gain on the exploring rows if the original's stages are trained without any added part; None if no time is left.

    Args:
        spent: seconds of maxSeconds that growth on these rows has taken.
    """
    left = None if options.maxSeconds is None else options.maxSeconds - spent
    if left is not None and left <= 0:
        return None
    alone = dataclasses.replace(explores, phases=Phases(False), trainings=[])
    step = with_recipe(options.recipe, left).run(alone, 0, Limit(None, None), ())
    return max((share(alone, candidate) for candidate in step.candidates), default=0.0)
