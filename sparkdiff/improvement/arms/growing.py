"""The arms that add stages which learn.

`grow` adds parts (stages whose outputs the last linear stage reads in addition to its features). `import` adds boosted trees in
front of the last linear stage or, if the pipeline ends in boosted trees, to these trees or in place of them (boosting.py).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.phases import trained, verified
from sparkdiff.growth.assembly import serving_of, width_of
from sparkdiff.growth.checks import check_options
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.inputs import linear_head
from sparkdiff.growth.parts import trees
from sparkdiff.growth.procedure import (
    GrowthStart,
    assembled,
    check_without_parts,
    ground as growth_ground,
    grow_again,
    grow_rounds,
)
from sparkdiff.growth.reporting import Told, of_a_sample, rows_without_entity, why_none
from sparkdiff.growth.serving import check_room
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.improvement.arms import boosting
from sparkdiff.improvement.arms.fine_tuning import with_tuned, written_back
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, Making, Step, shortened
from sparkdiff.improvement.ground import Ground, Measurement, Training, measure, moved
from sparkdiff.options import Options
from sparkdiff.proof.division import inner
from sparkdiff.report import share_of

FEW, MANY = 1, 6
"""Numbers of rounds in the first and the second step."""
PASSES = 40
"""Number of passes over the training rows that a round counts as, if the budget is in passes; its items train together."""
NEXT_ROUND = 0.5
"""Expected gain of all later rounds together, as a share of the first round's gain."""


def _settings(ground: Ground, parts: tuple[str, ...], rounds: int) -> GrowthSettings:
    s = ground.settings
    return GrowthSettings(
        parts=parts, rounds=rounds, entityCols=s.entityCols, maxServingCost=s.maxServingCost, maxLoss=s.maxLoss
    )


def _refused(parts: Callable[[Ground], tuple[str, ...]]) -> Callable[[Ground], str]:
    """Function (ground -> the reason why none of these kinds of parts can be added; empty if parts can be added)."""

    def refused(ground: Ground) -> str:
        try:
            check_options(ground.options)
            head = linear_head(ground.plan.cut.graph)
            if head.uid in ground.keeps:
                return f"{head.uid} is to be kept, and what joins changes it"
            check_room(serving_of(ground.model, head, ground.settings.maxServingCost), parts(ground))
            if parts(ground) == ("trees",):
                trees.without_trees(_settings(ground, ("trees",), 1))
        except InputError as e:
            return str(e)
        return ""

    return refused


@dataclass(frozen=True)
class _Rounds:
    """Result of rounds of growth.

    Attributes:
        start: starting point of the growth.
        options: options of the growth, for the training that follows.
        first: the metric of the pipeline before growth.
        made: the grown pipeline; None if no part joined.
        names: names of the parts that joined.
        making: recipe to grow again: the largest number of rounds and, if only trees were tried, the ensembles that joined.
        says: a short report.
        learned: facts for `Step.learned`.
        looked: seconds that growing again would save, because it is known which ensembles join; 0 for other parts.
    """

    start: GrowthStart
    options: Options
    first: Score
    made: Any
    names: str
    making: Making
    says: str
    learned: dict[str, Any]
    looked: float


def _rounds(
    ground: Ground, limit: Limit, settings: GrowthSettings, arm: str, number: int, clock: Clock
) -> _Rounds:  # fmt: skip
    """Run rounds of growth on the model of a ground, and assemble the grown pipeline."""
    epochs = limit.epochs(4)
    options = replace(
        ground.options, freeze=ground.keeps, maxSeconds=limit.seconds, **ground.kept(arm, str(number)),
        maxEpochs=ground.options.maxEpochs if epochs is None else min(ground.options.maxEpochs, epochs),
    )  # fmt: skip
    start = growth_ground(ground.model, options, settings.entityCols, ground.sources, ground.boundaries)
    serving = serving_of(ground.model, start.head, settings.maxServingCost, start.indexers)
    with ground.begun(start.task) as run:
        first = verified(run).scores[VALIDATION]
        looks = time.monotonic()
        found, gone = grow_rounds(run, start, settings, serving, clock, replace=True, memory=ground.trained)
        looked = time.monotonic() - looks if settings.parts == ("trees",) else 0.0  # afterwards their sizes are known
    told = Told(settings, found, gone, serving)
    learned = {
        "rounds": [asdict(t) for t in found.tried], "late": found.late, "warnings": told.warnings, "fields": told.fields()
    }  # fmt: skip
    if not found.members:
        learned["why"], says = why_none(told, options), f"no part joined: {found.stopped}"
        return _Rounds(start, options, first, None, "", Making(arm), says, learned, looked)
    made = assembled(start, found.members, serving, ground.sources[0].df, drop=settings.dropColumns)
    dropped = f", {len(gone)} dropped" if gone else ""
    doubts = (*of_a_sample(found.table), *rows_without_entity(found))
    says = "; ".join([f"{found.members[-1].round} rounds{dropped}", found.stopped, *doubts])
    rounds = {m.round for m in found.members}
    joined = [t for t in found.tried if not t.why and t.round in rounds]
    most = max(rounds) if found.late else settings.rounds  # if the time was over: the rounds that there was time for
    known = {"trees": [(t.round, t.name, t.epoch) for t in joined]} if settings.parts == ("trees",) else {}
    looked = max(looked - sum(t.seconds for t in joined), 0.0)
    names = ", ".join(m.part.name for m in found.members)
    return _Rounds(start, options, first, made, names, Making(arm, {"rounds": most} | known), says, learned, looked)


def _grow(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    return grown(ground, limit, _settings(ground, _parts(ground), _number_of_rounds(number, limit)), "grow", number)


def _number_of_rounds(number: int, limit: Limit) -> int:
    rounds = (FEW, MANY)[number]
    return rounds if limit.passes is None else max(1, min(rounds, int(limit.passes / PASSES)))


def grown(ground: Ground, limit: Limit, settings: GrowthSettings, arm: str, number: int) -> Step:
    """Grow the model of a ground, train all stages together, and write the result back as a Spark pipeline."""
    begun, clock = time.monotonic(), Clock.of(limit.seconds)
    rounds = _rounds(ground, limit, settings, arm, number, clock)
    if rounds.made is None:
        return Step(arm, number, (), 0.0, rounds.says, learned=rounds.learned)
    options = replace(rounds.options, maxSeconds=clock.left(limit.seconds))
    with ground.begun(replace(ground.task(rounds.made), options=options)) as run:
        trains = time.monotonic()
        before = verified(run)
        check_without_parts(run, rounds.first, width_of(rounds.start.head.stage))
        fitted = trained(run, before, None, replace=True)
        trains = time.monotonic() - trains
        ground.trainings.append(Training(1 if ground.fold is None else ground.fold, run, fitted))
        measured = written_back(ground, run, before, fitted)
    making, looked, ledger = rounds.making, rounds.looked, fitted.found.ledger
    if settings.parts == ("trees",):
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


def _candidate(rounds: _Rounds, measured: Measurement, making: Making, seconds: float) -> Candidate:
    return Candidate(making.arm, f"+ {shortened(rounds.names)}", measured, making, rounds.names, seconds=seconds)


def _put_in_front(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    """Put boosted trees in front of the last linear stage; in the second step, by more rounds, and then train all stages
    together.
    """
    begun, clock = time.monotonic(), Clock.of(limit.seconds)
    settings = _settings(ground, _trees(ground), _number_of_rounds(number, limit))
    rounds = _rounds(ground, limit, settings, "import", number, clock)
    if rounds.made is None:
        return Step("import", number, (), 0.0, rounds.says, learned=rounds.learned)
    measured = measure(ground, rounds.made)
    candidate = _candidate(rounds, measured, rounds.making, time.monotonic() - begun - rounds.looked)
    hope = _hope(rounds.first, measured.scores[VALIDATION], number)
    step = Step("import", number, (candidate,), hope, rounds.says, trains=number == 0, learned=rounds.learned)
    return step if number == 0 else with_tuned(ground, step, limit, clock)


def _rounds_again(ground: Ground, made: Mapping[str, Any], settings: GrowthSettings) -> Step:
    """Grow again with the same largest number of rounds. Some of this ground's training rows are held out, and decide which
    parts join.
    """
    within = moved(ground, inner(ground.sources, ground.options), ground.boundaries)
    return grown(within, Limit(None, None), replace(settings, rounds=made["rounds"]), "grow", 0)


def _model_of(step: Step, ground: Ground) -> Any:
    return step.candidates[0].model if step.candidates else ground.model


def _grow_again(ground: Ground, made: Mapping[str, Any]) -> Any:
    return _model_of(_rounds_again(ground, made, _settings(ground, _parts(ground), made["rounds"])), ground)


def _trees_again(ground: Ground, made: Mapping[str, Any], settings: GrowthSettings) -> Any:
    """Train the same ensembles again, with the same numbers of trees, and put them in front of the last linear stage."""
    options = replace(ground.options, freeze=ground.keeps, **ground.kept("import", "again"))
    start = growth_ground(ground.model, options, settings.entityCols, ground.sources, ground.boundaries)
    serving = serving_of(ground.model, start.head, settings.maxServingCost, start.indexers)
    with ground.begun(start.task) as run:
        members = grow_again(run, start, made["trees"])
    return assembled(start, members, serving, ground.sources[0].df, drop=settings.dropColumns)


def _hope(before: Score, after: Score, number: int) -> float:
    gained = share_of(before.mean - after.mean, before.mean)
    return NEXT_ROUND * max(gained, 0.0) if number == 0 else 0.0


def with_settings(settings: GrowthSettings, seconds: float | None, learned: dict[int | None, Mapping[str, Any]]) -> Arm:
    """Arm with a single step, which grows with these options within `seconds`; for runs with this arm only.

    Args:
        learned: filled by the arm, unless only trees are tried: fold (0 for all rows) -> `Step.learned` of the growth in this
            fold.
    """

    def run(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
        return grown(ground, Limit(seconds, None), settings, "grow", number)

    def again(ground: Ground, made: Mapping[str, Any]) -> Any:
        if "trees" in made:
            return _trees_again(ground, made, settings)
        step = _rounds_again(ground, made, settings)
        learned[ground.fold] = step.learned
        return _model_of(step, ground)

    return replace(GROW, steps=1, run=run, make=again, alone=True)


def _parts(ground: Ground) -> tuple[str, ...]:
    return ground.settings.parts


def _trees(ground: Ground) -> tuple[str, ...]:
    return ("trees",)


def _import_refused(ground: Ground) -> str:
    return boosting.refused(ground) if boosting.ends_in_boosted(ground) else _refused(_trees)(ground)


def _import(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    run = boosting.run if boosting.ends_in_boosted(ground) else _put_in_front
    return run(ground, number, limit, steps)


def _import_again(ground: Ground, made: Mapping[str, Any]) -> Any:
    if boosting.ends_in_boosted(ground):
        return boosting.make(ground, made)
    return _trees_again(ground, made, _settings(ground, ("trees",), made["rounds"]))


GROW = Arm("grow", 2, 2.0, _refused(_parts), _grow, _grow_again)
IMPORT = Arm("import", 2, 1.0, _import_refused, _import, _import_again)
