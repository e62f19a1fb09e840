"""The arm "finetune", which trains the weights of the original; and the training of pipelines that other arms have found."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparkdiff.data.splits import TRAIN, VALIDATION
from sparkdiff.errors import InputError
from sparkdiff.evaluation.guard import diverged_candidates
from sparkdiff.evaluation.row_checks import trained_score
from sparkdiff.fine_tuning.fine_tuning_run import record_rows
from sparkdiff.fine_tuning.phases import train, verify_original, write_back_and_verify
from sparkdiff.fine_tuning.task import PipelineScores, Run, TrainingResult
from sparkdiff.growth import cost_table
from sparkdiff.growth.clock import Clock
from sparkdiff.improvement.arm_context import ArmContext, Measurement, Training, check_same_rows
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step
from sparkdiff.report import counted, share_of
from sparkdiff.training.recipes import Recipe, recipes_for

STEPS = ("default", "thorough")
"""Value of the option `recipe` in each step, the cheap one first."""
TIMED_OUT = 0.5
"""Expected further gain of a training run that ran out of time, as a share of its gain."""
NEAR = 3
"""Epochs within this distance of an epoch count as its neighbours; or within a third of the epoch's number, if that is more."""
ANOTHER_RECIPE = 0.05
"""Expected further gain from the next recipe, which has more candidates, as a share of the gain: benchmarks/recipes.py."""


def fine_tuned(context: ArmContext, base: Candidate, limit: Limit, *, recipe: str, number: int, name: str) -> Step:
    """Train the weights of a pipeline, and write the weights of the best epoch back as a Spark pipeline.

    Args:
        base: the pipeline to train, with its figures.
        recipe: see `Options.recipe`.
        number: number of the step.
        name: name of the resulting candidate.
    """
    o, arm, begun = context.options, base.arm, time.monotonic()
    changed = context.checkpoint_options(arm, str(number)) | {
        "recipe": recipe,
        "maxSeconds": limit.seconds,
        "maxEpochs": limit.epochs(len(recipes_for(replace(o, recipe=recipe), context.rows[VALIDATION])), o.maxEpochs),
    }
    with context.open_run(context.task(base.model, **changed)) as run:
        before = verify_original(run)
        trains = time.monotonic()
        fitted = train(run, before, None, replace=True)
        trains = time.monotonic() - trains
        context.trainings.append(Training(1, run, fitted))
        told = {"history": fitted.found.history, "late": bool(fitted.endedEarly)}
        goal, held = run.goal, before.scores[VALIDATION].mean
        most = before.scores[TRAIN].mean if goal.metric.rows is goal.objective.rows else math.inf
        chosen, epoch, value = steady(fitted.found.history, fitted.recipes, goal.metric.sign, most)
        if fitted.found.ledger.chosen < 0 or not value < held:
            return Step(arm, number, (), 0.0, "no epoch gains", learned=told)
        found = written_back(context, run, before, fitted)
    gained = share_of(held - value, context.start.scores[VALIDATION].mean)
    hope = gained * (TIMED_OUT if fitted.endedEarly else ANOTHER_RECIPE if recipe == "default" else 0.0)
    last = max(row["epoch"] for row in fitted.found.history)
    late = ", out of time" if fitted.endedEarly else ""
    says = f"{counted(last, 'epoch')} of {counted(len(fitted.recipes), 'candidate')}{late}"
    making = replace(base.making, recipe=fitted.recipes[chosen], epochs=epoch)
    seconds = base.seconds + time.monotonic() - begun - trains * (1 - epoch / (last * len(fitted.recipes)))
    candidate = Candidate(arm, name, found, making, base.changes, value=value, seconds=seconds)
    return Step(arm, number, (candidate,), hope, says, learned=told)


def with_tuned(context: ArmContext, step: Step, limit: Limit, clock: Clock) -> Step:
    """Train the weights of a step's candidate in the time left; return the step with the candidate and the trained one."""
    [candidate] = step.candidates
    tuned = fine_tuned(
        context,
        candidate,
        replace(limit, seconds=clock.seconds_left(limit.seconds)),
        recipe="default",
        number=step.number,
        name=f"{candidate.name}, fine-tuned",
    )
    learned = {**tuned.learned, **step.learned, "late": step.learned["late"] or tuned.learned["late"]}
    says = f"{step.says}; {tuned.says}"
    return replace(tuned, candidates=(candidate, *tuned.candidates), says=says, learned=learned)


def steady(
    history: Sequence[Mapping[str, Any]], recipes: Sequence[Recipe], sign: float, most: float = math.inf
) -> tuple[int, int, float]:
    """Choose the candidate and the epoch with the smallest validation metric (as a loss), smoothed by medians over
    neighbouring epochs.

    In the single best of many epochs, the noise of the steps happens to help, which it would not do in another training run. So
    each epoch is judged by the median over its neighbouring epochs (`NEAR`). Epochs whose training loss is not below `most` are
    left out, unless the recipe augments.

    Args:
        sign: sign of the metric, -1 if larger is better.
        most: the loss on the training rows before the training.

    Returns:
        Index of the candidate (one of several copies of the parameters that are trained together), epoch, and median.
    """
    found = []
    for candidate, recipe in enumerate(recipes):
        own = {row["epoch"]: row for row in history if row["candidate"] == candidate and row["epoch"]}
        for epoch, row in own.items():
            near = [sign * r["validationMetric"] for e, r in own.items() if abs(e - epoch) <= max(NEAR, epoch // NEAR)]
            if row["trainLoss"] < most or recipe.augments:
                found.append((statistics.median(near), sign * row["validationMetric"], candidate, epoch))
    value, _, candidate, epoch = min((f for f in found if math.isfinite(f[0])), default=(math.inf, math.inf, 0, 1))
    return candidate, epoch, value


def written_back(context: ArmContext, run: Run, before: PipelineScores, fitted: TrainingResult) -> Measurement:
    """Write the trained weights back as a Spark pipeline, and measure this pipeline on the rows of the context."""
    network, known = fitted.found.network, {}
    if not context.allTrain:
        task = run.task
        known[VALIDATION] = trained_score(task.model.uid, task.options, fitted.best, run.goal.metric, network, run.data)
    margins = record_rows(run, network)
    model, after = write_back_and_verify(run, before, network, known)
    found = Measurement(context.task(model), after.scores, margins, after.parity, cost_table.of_model(model))
    check_same_rows(context.start, found)
    return found


def train_again(context: ArmContext, model: Any, recipe: Recipe, epochs: int, name: str) -> Measurement:
    """Train the weights of a pipeline on all rows of a context, with one recipe for a fixed number of epochs.

    Args:
        name: name of the training run in the run's folder.

    Raises:
        InputError: the training diverges.
    """
    with context.open_run(context.task(model, maxSeconds=None, **context.checkpoint_options(name, "again"))) as run:
        before = verify_original(run)
        fitted = train(run, before, [recipe], replace=True, epochs=epochs)
        if lost := diverged_candidates(fitted.found.history):
            epoch = lost[0]["epoch"]
            raise InputError(f"the training diverges in epoch {epoch} ({recipe}): lower learningRate")
        context.trainings.append(Training(context.fold or 0, run, fitted))
        return written_back(context, run, before, fitted)


def _run(context: ArmContext, number: int, limit: Limit, _steps: Sequence[Step]) -> Step:
    name = "fine-tuned" if number == 0 else f"fine-tuned, {STEPS[number]}"
    start = Candidate("finetune", "", context.start, CandidateRecipe("finetune"))
    return fine_tuned(context, start, limit, recipe=STEPS[number], number=number, name=name)


def _make(context: ArmContext, _settings: Mapping[str, Any]) -> Any:
    return context.model


def with_recipe(recipe: str, seconds: float | None) -> Arm:
    """Arm with a single step, which trains the candidates of `recipe` within `seconds`; for runs with this arm only."""

    def run(context: ArmContext, number: int, _limit: Limit, _steps: Sequence[Step]) -> Step:
        start = Candidate("finetune", "", context.start, CandidateRecipe("finetune"))
        return fine_tuned(context, start, Limit(seconds, None), recipe=recipe, number=number, name="the tuned pipeline")

    return replace(ARM, steps=1, run=run, alone=True)


ARM = Arm("finetune", len(STEPS), 1.0, lambda _context: "", _run, _make)
