"""The arms that add stages which learn.

`grow` adds parts (stages whose outputs the last linear stage reads in addition to its features). `import` adds boosted trees in
front of the last linear stage or, if the pipeline ends in boosted trees, to these trees or in place of them (boosting.py).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.phases import train, verify_original
from sparkdiff.growth.assembly import serving_of, width_of
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.growth_steps import (
    GrowthStart,
    assemble,
    check_options,
    check_without_parts,
    grow_again,
    grow_rounds,
    prepare_growth,
)
from sparkdiff.growth.part_inputs import linear_head
from sparkdiff.growth.parts import trees
from sparkdiff.growth.round_reports import growth_warnings, of_a_sample, rows_without_entity, summary_fields, why_none
from sparkdiff.growth.serving_cost import check_room
from sparkdiff.improvement.arm_context import ArmContext, Measurement, Training, measure, refit_on_rows
from sparkdiff.improvement.arms import boosting
from sparkdiff.improvement.arms.fine_tuning import with_tuned, written_back
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step, shortened
from sparkdiff.proof.division import inner
from sparkdiff.report import counted, share_of

FEW, MANY = 1, 6
"""Numbers of rounds in the first and the second step."""
PASSES = 40
"""Number of passes over the training rows that a round counts as, if the budget is in passes; its items train together."""
NEXT_ROUND = 0.5
"""Expected gain of all later rounds together, as a share of the first round's gain."""
TREES = ("trees",)
"""Kinds of parts that `import` tries."""


def _settings(context: ArmContext, parts: tuple[str, ...], rounds: int) -> GrowthSettings:
    s = context.settings
    return GrowthSettings(
        parts=parts, rounds=rounds, entityCols=s.entityCols, maxServingCost=s.maxServingCost, maxLoss=s.maxLoss
    )


def _refusal(context: ArmContext, parts: tuple[str, ...]) -> str:
    """Reason why none of these kinds of parts can be added; empty if parts can be added."""
    try:
        check_options(context.options)
        head = linear_head(context.plan.cut.graph)
        if head.uid in context.keeps:
            return f"{head.uid} is to be kept, and what joins changes it"
        check_room(serving_of(context.model, head, context.settings.maxServingCost), parts)
        if parts == TREES:
            trees.require_library()
    except InputError as e:
        return str(e)
    return ""


@dataclass(frozen=True)
class _RoundsResult:
    """Result of rounds of growth.

    Attributes:
        start: starting point of the growth.
        first: the metric of the pipeline before growth.
        made: the grown pipeline; None if no part joined.
        names: names of the parts that joined.
        making: recipe to grow again: the largest number of rounds and, if only trees were tried, the ensembles that joined.
        says: a short report.
        learned: facts for `Step.learned`.
        looked: seconds that growing again would save, because it is known which ensembles join; 0 for other parts.
    """

    start: GrowthStart
    first: Score
    made: Any
    names: str
    making: CandidateRecipe
    says: str
    learned: dict[str, Any]
    looked: float


def _rounds(
    context: ArmContext, limit: Limit, settings: GrowthSettings, arm: str, number: int, clock: Clock
) -> _RoundsResult:
    """Run rounds of growth on the model of a context, and assemble the grown pipeline."""
    options = replace(
        context.options,
        freeze=context.keeps,
        maxSeconds=limit.seconds,
        **context.checkpoint_options(arm, str(number)),
        maxEpochs=limit.epochs(4, context.options.maxEpochs),
    )
    start = prepare_growth(context.model, options, settings, context.sources, context.boundaries)
    with context.open_run(start.task) as run:
        first = verify_original(run).scores[VALIDATION]
        looks = time.monotonic()
        found, gone = grow_rounds(run, start, clock, context.trained)
        looked = time.monotonic() - looks if settings.parts == TREES else 0.0  # afterwards their sizes are known
    learned = {
        "rounds": [asdict(t) for t in found.tried],
        "late": found.late,
        "warnings": growth_warnings(settings, found),
        "fields": summary_fields(found, gone, start.serving),
    }
    if not found.members:
        learned["why"], says = why_none(settings, found, gone, options), f"no part joined: {found.stopped}"
        return _RoundsResult(start, first, None, "", CandidateRecipe(arm), says, learned, looked)
    made = assemble(start, found.members, context.sources[0].df)
    dropped = f", {len(gone)} dropped" if gone else ""
    doubts = (*of_a_sample(found.table), *rows_without_entity(found))
    says = "; ".join([f"{counted(found.members[-1].round, 'round')}{dropped}", found.stopped, *doubts])
    rounds = {m.round for m in found.members}
    joined = [t for t in found.tried if not t.why and t.round in rounds]
    most = max(rounds) if found.late else settings.rounds  # if the time was over: the rounds that there was time for
    known = {"trees": [(t.round, t.name, t.epoch) for t in joined]} if settings.parts == TREES else {}
    looked = max(looked - sum(t.seconds for t in joined), 0.0)
    names = ", ".join(m.part.name for m in found.members)
    making = CandidateRecipe(arm, {"rounds": most} | known)
    return _RoundsResult(start, first, made, names, making, says, learned, looked)


def _grow(context: ArmContext, number: int, limit: Limit, _steps: Sequence[Step]) -> Step:
    return grow_and_train(
        context, limit, _settings(context, context.settings.parts, _number_of_rounds(number, limit)), "grow", number
    )


def _number_of_rounds(number: int, limit: Limit) -> int:
    rounds = (FEW, MANY)[number]
    return rounds if limit.passes is None else max(1, min(rounds, int(limit.passes / PASSES)))


def grow_and_train(context: ArmContext, limit: Limit, settings: GrowthSettings, arm: str, number: int) -> Step:
    """Grow the model of a context, train all stages together, and write the result back as a Spark pipeline."""
    begun, clock = time.monotonic(), Clock.of(limit.seconds)
    rounds = _rounds(context, limit, settings, arm, number, clock)
    if rounds.made is None:
        return Step(arm, number, (), 0.0, rounds.says, learned=rounds.learned)
    options = replace(rounds.start.task.options, maxSeconds=clock.seconds_left(limit.seconds))
    with context.open_run(replace(context.task(rounds.made), options=options)) as run:
        trains = time.monotonic()
        before = verify_original(run)
        check_without_parts(run, rounds.first, width_of(rounds.start.head.stage))
        fitted = train(run, before, None, replace=True)
        trains = time.monotonic() - trains
        context.trainings.append(Training(1 if context.fold is None else context.fold, run, fitted))
        measured = written_back(context, run, before, fitted)
    making, looked, ledger = rounds.making, rounds.looked, fitted.found.ledger
    if settings.parts == TREES:
        looked += trains
        if ledger.chosen >= 0:
            chosen = ledger.trials[ledger.chosen]
            making = replace(making, recipe=fitted.recipes[chosen.candidate], epochs=chosen.epoch)
            epochs = max(row["epoch"] for row in fitted.found.history) * len(fitted.recipes)
            looked -= trains * chosen.epoch / epochs
    candidate = _candidate(rounds, measured, making, time.monotonic() - begun - looked)
    learned = rounds.learned | {"history": fitted.found.history}
    hope = _hope(rounds.first, measured.scores[VALIDATION], number)
    return Step(arm, number, (candidate,), hope, rounds.says, learned=learned)


def _candidate(rounds: _RoundsResult, measured: Measurement, making: CandidateRecipe, seconds: float) -> Candidate:
    return Candidate(making.arm, f"+ {shortened(rounds.names)}", measured, making, rounds.names, seconds=seconds)


def _put_in_front(context: ArmContext, number: int, limit: Limit, _steps: Sequence[Step]) -> Step:
    """Put boosted trees in front of the last linear stage; in the second step, by more rounds, and then train all stages
    together.
    """
    begun, clock = time.monotonic(), Clock.of(limit.seconds)
    settings = _settings(context, TREES, _number_of_rounds(number, limit))
    rounds = _rounds(context, limit, settings, "import", number, clock)
    if rounds.made is None:
        return Step("import", number, (), 0.0, rounds.says, learned=rounds.learned)
    measured = measure(context, rounds.made)
    candidate = _candidate(rounds, measured, rounds.making, time.monotonic() - begun - rounds.looked)
    hope = _hope(rounds.first, measured.scores[VALIDATION], number)
    step = Step("import", number, (candidate,), hope, rounds.says, trains=number == 0, learned=rounds.learned)
    return step if number == 0 else with_tuned(context, step, limit, clock)


def _rounds_again(context: ArmContext, made: Mapping[str, Any], settings: GrowthSettings) -> Step:
    """Grow again with the same largest number of rounds. Some of this context's training rows are held out, and decide which
    parts join.
    """
    within = refit_on_rows(context, inner(context.sources, context.options), context.boundaries)
    return grow_and_train(within, Limit(None, None), replace(settings, rounds=made["rounds"]), "grow", 0)


def _model_of(step: Step, context: ArmContext) -> Any:
    return step.candidates[0].model if step.candidates else context.model


def _grow_again(context: ArmContext, made: Mapping[str, Any]) -> Any:
    return _model_of(_rounds_again(context, made, _settings(context, context.settings.parts, made["rounds"])), context)


def _trees_again(context: ArmContext, made: Mapping[str, Any], settings: GrowthSettings) -> Any:
    """Train the same ensembles again, with the same numbers of trees, and put them in front of the last linear stage."""
    options = replace(context.options, freeze=context.keeps, **context.checkpoint_options("import", "again"))
    start = prepare_growth(context.model, options, settings, context.sources, context.boundaries)
    with context.open_run(start.task) as run:
        members = grow_again(run, start, made["trees"])
    return assemble(start, members, context.sources[0].df)


def _hope(before: Score, after: Score, number: int) -> float:
    gained = share_of(before.mean - after.mean, before.mean)
    return NEXT_ROUND * max(gained, 0.0) if number == 0 else 0.0


def with_settings(settings: GrowthSettings, seconds: float | None, learned: dict[int | None, Mapping[str, Any]]) -> Arm:
    """Arm with a single step, which grows with these options within `seconds`; for runs with this arm only.

    Args:
        learned: filled by the arm, unless only trees are tried: fold (0 for all rows) -> `Step.learned` of the growth in this
            fold.
    """

    def run(context: ArmContext, number: int, _limit: Limit, _steps: Sequence[Step]) -> Step:
        return grow_and_train(context, Limit(seconds, None), settings, "grow", number)

    def again(context: ArmContext, made: Mapping[str, Any]) -> Any:
        if "trees" in made:
            return _trees_again(context, made, settings)
        step = _rounds_again(context, made, settings)
        learned[context.fold] = step.learned
        return _model_of(step, context)

    return replace(GROW, steps=1, run=run, make=again, alone=True)


def _import_refused(context: ArmContext) -> str:
    return boosting.refusal(context) if boosting.ends_in_boosted(context) else _refusal(context, TREES)


def _import(context: ArmContext, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    run = boosting.run if boosting.ends_in_boosted(context) else _put_in_front
    return run(context, number, limit, steps)


def _import_again(context: ArmContext, made: Mapping[str, Any]) -> Any:
    if boosting.ends_in_boosted(context):
        return boosting.make(context, made)
    return _trees_again(context, made, _settings(context, TREES, made["rounds"]))


GROW = Arm(
    "grow",
    2,
    2.0,
    lambda context: _refusal(context, context.settings.parts),
    _grow,
    _grow_again,
    repeats=True,
)
IMPORT = Arm("import", 2, 1.0, _import_refused, _import, _import_again)
