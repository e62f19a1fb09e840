"""The way of the data, once through: plan, cache, verify, train, guard, write back, verify; with labels of probabilities, too."""

import dataclasses
from collections.abc import Sequence

import torch

from sparkdiff.data import soft_labels
from sparkdiff.data.splits import SPLITS, TRAIN, VALIDATION, Boundaries, Source, rule
from sparkdiff.errors import InputError
from sparkdiff.evaluation import guard
from sparkdiff.fine_tuning.phases import begun, checked, judged_by_rows, too_few, trained, verified, written
from sparkdiff.fine_tuning.shared import JointSetting, Shared
from sparkdiff.fine_tuning.starting_point import StartingPoint
from sparkdiff.fine_tuning.summary import shown_options, summary_of, untrained
from sparkdiff.fine_tuning.task import Task
from sparkdiff.fine_tuning.values import Outcome
from sparkdiff.pipeline.network import Network
from sparkdiff.report import FineTuningSummary, Phases, versions
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.training.distributed.worker import objectives
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


def hardened(task: Task, sources: Sequence[Source], phases: Phases, shared: Shared) -> Task:
    """The task with the rows that labels of class probabilities stand for.

    Raises:
        InputError: the labels can't be used, or the predictor or an option needs one label per row.
    """
    o, head, label = task.options, task.roles.graph.head, task.labelCol
    predictor = head.module
    assert isinstance(predictor, Predictor) and label is not None
    if not predictor.classes or not predictor.labelled:
        what = "predicts no classes that were labelled" if predictor.classes else "predicts numbers"
        raise InputError(
            f"labelCol={label!r} is a vector of class probabilities, but {head.uid} {what}: name another column"
        )
    soft_labels.check_options(o)
    with phases.phase("labels") as say:
        frames = tuple(s.df for s in sources)
        key = ("soft", label, task.weightCol, rule(o), predictor.classes, *frames)
        found: soft_labels.Hardened = shared.once(
            key, lambda: soft_labels.hardened(sources, o, label, task.weightCol, predictor.classes)
        )
        say(found.told())
    return dataclasses.replace(task, soft=found)


def no_evidence(task: Task, soft: soft_labels.Hardened, phases: Phases) -> Outcome:
    """The outcome where too few rows with true labels are held out: nothing is trained, because nothing could be accepted."""
    why = (
        f"no evidence: {soft.held:,} validation rows have a true label (a probability of 1 for one class), and at least "
        f"{guard.MIN_UNITS} are needed to decide, because labels that are themselves guesses prove nothing. Label some rows, and "
        "add them, or hold out more of them by validationFraction or validationIndicatorCol"
    )
    network = Network(task.cut.graph, task.cut.live)
    classes = torch.zeros(network.head.classes, dtype=torch.int64)
    _, metric = objectives(task.options, network, LabelStats(0.0, 1.0, 0.0, len(classes) - 1.0, classes))
    summary = FineTuningSummary(
        decision="kept original", reason=why, metric=metric.name, metricDirection=metric.direction,
        metrics=dict.fromkeys(SPLITS[:3]), gain=0.0, z=0.0, p=1.0, records=[], parity={}, stages={},
        timings={k: round(v, 3) for k, v in phases.timings.items()}, stream=task.options.stream,
        cache={"hit": False, "fingerprint": "", "rows": {TRAIN: soft.soft + soft.certain, VALIDATION: soft.held}},
        options=shown_options(task, metric), versions=versions(), warnings=[soft.told()], candidates=0, diverged=0,
        precision=task.options.precision,
    )  # fmt: skip
    phases.on_decision(summary)
    return Outcome(task.model, task.model, task.plan, summary, ())
