"""The way of the data, once through: plan, cache, verify, train, guard, write back, verify."""

import dataclasses
from collections.abc import Sequence

from sparkdiff.data import soft_labels
from sparkdiff.data.splits import VALIDATION, Boundaries, Source
from sparkdiff.evaluation import guard
from sparkdiff.fine_tuning.phases import begun, checked, judged_by_rows, too_few, trained, verified, written
from sparkdiff.fine_tuning.probabilities import hardened, no_evidence
from sparkdiff.fine_tuning.shared import Shared
from sparkdiff.fine_tuning.starting_point import StartingPoint
from sparkdiff.fine_tuning.summary import summary_of, untrained
from sparkdiff.fine_tuning.task import Task
from sparkdiff.fine_tuning.together import JointSetting
from sparkdiff.fine_tuning.values import Outcome
from sparkdiff.report import Phases
from sparkdiff.training.recipes import Recipe


def fine_tune(
    task: Task, sources: Sequence[Source], phases: Phases, *, shared: Shared | None = None, replace: bool = False,
    boundaries: Boundaries | None = None, recipes: Sequence[Recipe] | None = None, member: JointSetting | None = None,
    start: StartingPoint | None = None,
) -> Outcome:  # fmt: skip
    """Train what the plan says on these rows, and return the pipeline that held-out rows decide for.

    Args:
        phases: times the phases and tells the listeners.
        recipes: the candidates to train; None: those of `options.recipe`.
        boundaries: where time divides the rows, if that is known already.
        member: of settings that train together, this one; they share `shared`.
        start: where `task` comes from; None: from a pipeline that has not seen the rows that decide.
        replace: start again if `options.runId` was started with other settings, instead of raising.

    Raises:
        InputError: the data or options can't be used (nothing has been written but, perhaps, a complete cache).
        ParityError: the network and Spark disagree.
    """
    shared, start = shared or Shared(), start or StartingPoint(task.model, task.model)
    if soft_labels.given(sources, task.labelCol):
        task, boundaries = hardened(task, sources, phases, shared), None
        assert task.soft is not None
        sources = task.soft.sources
        if task.soft.held < guard.MIN_UNITS:
            return no_evidence(task, task.soft, phases)
    with begun(task, sources, phases, shared=shared, boundaries=boundaries, keyed=start.given is not None) as run:
        start = start.checked(too_few(run))
        original = verified(run, decides=not start.refused)
        doubts = checked(run)
        if start.refused:
            summary = start.told(untrained(run, original, doubts))
            phases.on_decision(summary)
            return start.finished(Outcome(task.model, task.model, task.plan, summary, ()))
        fitted = trained(run, original, recipes, replace=replace, member=member)
        judged = judged_by_rows(run, original, fitted, start.given)
        model, tuned = task.model, dataclasses.replace(original, parity=None)
        if judged.judgement.accepted:
            model, tuned = written(run, original, fitted.found.network, {VALIDATION: judged.tuned})
            judgement, notes = task.compared_outside(judged.judgement, model, sources[0].df)
            judged, doubts = dataclasses.replace(judged, judgement=judgement), [*doubts, *notes]
            if not judgement.accepted:
                model, tuned = task.model, dataclasses.replace(original, parity=None)
        summary = start.told(summary_of(run, original, fitted, judged, tuned, doubts))
        phases.on_decision(summary)
        return start.finished(Outcome(model, task.model, task.plan, summary, (fitted.folder,)))
