"""The arm that trains the weights: of the original, or of a pipeline that another arm has found."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparkdiff.data.splits import VALIDATION
from sparkdiff.evaluation.checks import is_rounded, trained_score
from sparkdiff.evaluation.ledger import LedgerTrial
from sparkdiff.fine_tuning.phases import trained, verified, written
from sparkdiff.fine_tuning.starting_point import recorded_rows
from sparkdiff.growth import costs
from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Candidate, Step, rounded
from sparkdiff.improvement.ground import Ground, Measurement, check_same_rows
from sparkdiff.report.shares import share_of
from sparkdiff.training.recipes import recipes_for

STEPS = ("default", "thorough")
"""Recipes, the cheap one first."""
TIMED_OUT = 0.5
"""Share of its gain that a training that ran out of time is expected to gain still."""
ANOTHER_RECIPE = 0.05
"""Share of its gain that more candidates are expected to add: benchmarks/recipes.py."""


def fine_tuned(
    ground: Ground, base: Measurement, limit: Limit, *, recipe: str, arm: str, number: int, name: str, changes: str = ""
) -> Step:  # fmt: skip
    """Train the weights of a pipeline, and write the best epoch back, whether or not it would be accepted.

    Args:
        base: the pipeline and its figures.
        recipe: see `Options.recipe`.
        name: of the candidate.
        changes: what the pipeline has more or less than the original.
    """
    o = ground.options
    changed: dict[str, Any] = {"recipe": recipe, "maxSeconds": limit.seconds}
    epochs = limit.epochs(len(recipes_for(replace(o, recipe=recipe), ground.rows[VALIDATION])))
    changed["maxEpochs"] = o.maxEpochs if epochs is None else min(o.maxEpochs, epochs)
    changed |= ground.kept(arm, number)
    with ground.begun(ground.task(base.model, **changed)) as run:
        before = verified(run)
        fitted = trained(run, before, None, replace=True)
        ledger, network = fitted.found.ledger, fitted.found.network
        shift = ground.start.scores[VALIDATION].blocks - before.scores[VALIDATION].blocks
        trials = [LedgerTrial(t.candidate, t.epoch, t.arm) for t in ledger.trials]
        if ledger.chosen < 0:
            none = rounded(ground, ledger.gains + shift)
            return Step(arm, number, none, trials, (), 0.0, "no epoch gains", learned={"late": bool(fitted.cut)})
        metric = run.goal.metric
        tuned = trained_score(run.task.model.uid, o, fitted.best, metric, network, run.data)
        if is_rounded(o, metric):  # the guard decides on rows and ties as the network has them
            ledger = ledger.measured_again(before.scores[VALIDATION].blocks - tuned.blocks)
        gains = rounded(ground, ledger.gains + shift)
        margins = recorded_rows(run, network)
        model, after = written(run, before, network, {VALIDATION: tuned})
    found = Measurement(ground.task(model), after.scores, margins, after.parity, costs.of_model(model))
    check_same_rows(ground.start, found)
    gained = share_of(before.scores[VALIDATION].mean - tuned.mean, ground.start.scores[VALIDATION].mean)
    hope = gained * (TIMED_OUT if fitted.cut else ANOTHER_RECIPE if recipe == "default" else 0.0)
    last = max(row["epoch"] for row in fitted.found.history)
    says = f"{last} epochs of {len(fitted.recipes)} candidates{', out of time' if fitted.cut else ''}"
    candidate = Candidate(arm, name, found, ledger.chosen, changes)
    told = {"history": fitted.found.history, "late": bool(fitted.cut)}
    return Step(arm, number, gains, trials, (candidate,), hope, says, learned=told)


def _run(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    name = "fine-tuned" if number == 0 else f"fine-tuned, {STEPS[number]}"
    return fine_tuned(ground, ground.start, limit, recipe=STEPS[number], arm="finetune", number=number, name=name)


ARM = Arm("finetune", len(STEPS), 1.0, lambda ground: "", _run)
