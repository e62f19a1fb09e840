"""Labels that are class probabilities: the rows they stand for, and the outcome without true labels."""

import dataclasses
from collections.abc import Sequence

import torch

from sparkdiff.data import soft_labels
from sparkdiff.data.splits import SPLITS, TRAIN, VALIDATION, Source, rule
from sparkdiff.errors import InputError
from sparkdiff.evaluation import guard
from sparkdiff.fine_tuning.shared import Shared
from sparkdiff.fine_tuning.summary import shown_options
from sparkdiff.fine_tuning.task import Task
from sparkdiff.fine_tuning.values import Outcome
from sparkdiff.pipeline.network import Network
from sparkdiff.report import FineTuningSummary, Phases
from sparkdiff.report.record import versions
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.trainable import LabelStats
from sparkdiff.training.distributed.worker import objectives


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
