"""The arm "search", which searches the settings (Params) of the stages, on the training rows only, and then trains the winner's
weights."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.data.splits import training_rows
from sparkdiff.errors import InputError
from sparkdiff.growth import cost_table
from sparkdiff.improvement.arm_context import ArmContext, is_cost_allowed, measure
from sparkdiff.improvement.arms.fine_tuning import fine_tuned
from sparkdiff.improvement.arms.refitting import form_of
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step, nothing
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import DEFAULTS
from sparkdiff.options import callable_name
from sparkdiff.pipeline.unfitted_form import refit
from sparkdiff.search.samplers import check_sampler
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.search.settings_space import settings_space
from sparkdiff.search.within_budget import TunedSetting, TunedSettings, tune_within_budget
from sparkdiff.tuning.mean_loss import evaluator_of

FEW, MANY = 6, 40
"""Number of trials of the first step, and of the first two steps together."""
PASSES = 10
"""Number of passes over the training rows that a trial counts as, if the budget is in passes."""
SEVERAL = 5
"""Number of best settings that are fitted to all training rows if there is a `maxServingCost`, which the best one may exceed."""
STUDY = "study"
"""Name of the folder of the trials in the run's folder."""
MORE = 0.05
"""Expected gain of more trials, as a share of the metric."""


def _refusal(context: ArmContext) -> str:
    try:
        check_sampler("tpe", 1)
    except InputError as e:
        return str(e)
    form = form_of(context)
    if why := form.refusal:
        return why
    if context.plan.labelCol is None:
        return "there is no label by which a trial could be judged"
    if why := _unmeasurable(context):
        return why
    return "" if settings_space(form) else "none of its stages has a setting that is worth searching"


def _run(context: ArmContext, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    if number == 2:
        found_before = [c for s in steps if s.arm == "search" for c in s.candidates]
        if not found_before:
            return nothing("search", number, "no settings but its own to train from")
        winner = found_before[-1]
        return fine_tuned(context, winner, limit, recipe="default", number=number, name=f"{winner.name}, fine-tuned")
    found = _search_settings(context, limit, MANY if number else FEW)
    best = next((b for b in found.best if is_cost_allowed(context, cost_table.of_model(b.model))), None)
    says = f"tried settings: {found.trials}{f', {found.failed} could not be fitted' if found.failed else ''}"
    hope = MORE if number == 0 else 0.0
    if best is None:
        why = f"{says}, the best ones cost more to serve than maxServingCost allows"
        return nothing("search", number, why, hope, trains=True)
    if not (words := _words(found, best)):
        return nothing("search", number, f"{says}, none better than its own", hope, trains=number == 0)
    begun, measured = time.monotonic(), measure(context, best.model)
    [trial] = [t for t in found.records if t["trial"] == best.number]
    seconds = time.monotonic() - begun + trial["seconds"]
    making = CandidateRecipe("search", {"params": dict(best.settings)})
    candidate = Candidate("search", f"refitted with {words}", measured, making, seconds=seconds)
    return Step("search", number, (candidate,), hope, says, trains=True, learned={"trials": found.records})


def _make(context: ArmContext, settings: Mapping[str, Any]) -> Any:
    form = form_of(context)
    space = SearchSpace.of(form.estimator, settings_space(form))
    params = space.setting(settings["params"])[1]
    return refit(form, training_rows(context.sources, context.options, context.boundaries), params)


def _search_settings(context: ArmContext, limit: Limit, trials: int) -> TunedSettings:
    o, form = context.options, form_of(context)
    if limit.passes is not None:
        trials = max(2, min(trials, int(limit.passes / PASSES)))
    rows = training_rows(context.sources, o, context.boundaries)
    return tune_within_budget(
        form,
        settings_space(form),
        _evaluator(context),
        rows,
        groupCol=o.groupCol,
        timeCol=o.timeCol,
        numTrials=trials,
        maxSeconds=limit.seconds,
        seed=o.seed,
        folder=context.folder / STUDY,
        keep=1 if context.settings.maxServingCost is None else SEVERAL,
    )


def _evaluator(context: ArmContext) -> Any:
    """Evaluator by which trials are compared: it computes the metric that decides."""
    task = context.plan
    return evaluator_of(
        context.metric,
        task.cut.graph.head.stage,
        labelCol=str(task.labelCol),
        weightCol=task.weightCol,
        params=context.metricParams,
    )


def _unmeasurable(context: ArmContext) -> str:
    """Reason why no evaluator can compute the metric that decides; empty if one can.

    Before the rows are read, the metric is not yet known, and only its name is checked.
    """
    o, head = context.options, context.plan.cut.graph.head
    try:
        if context.goal is not None:
            _evaluator(context)
            return ""
        loss = o.loss if isinstance(o.loss, str) else callable_name(o.loss) if callable(o.loss) else " + ".join(o.loss)
        loss = head.module.own_loss()[0] if loss == "auto" else loss  # type: ignore[union-attr, operator]
        name = o.metric or DEFAULTS.get(loss, loss)
        known = {"delta": 1.0, **context.metricParams}
        evaluator_of(Metric(name), head.stage, labelCol=str(context.plan.labelCol), params=known)
    except InputError as e:
        return str(e)
    return ""


def _words(found: TunedSettings, best: TunedSetting) -> str:
    """Text with the settings that differ from the original's; empty if all are equal."""
    now = next((r for r in found.records if r["trial"] == 0), {})
    changed = {k: v for k, v in best.settings.items() if now.get(k) != v}
    shown = [f"{k.rpartition('.')[2]} {f'{v:.3g}' if isinstance(v, float) else v}" for k, v in changed.items()]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


ARM = Arm("search", 3, 1.5, _refusal, _run, _make, fits=4.0)
