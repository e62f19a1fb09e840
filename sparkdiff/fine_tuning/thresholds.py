"""The choice of `threshold` (or `thresholds`) of the last stage alone: probabilities and weights stay as they are.

A pipeline is too sure on rows of its own fit, so that a threshold that is best there need not be best on others. Therefore it is
chosen on out-of-fold scores of the training rows, as by scikit-learn's TunedThresholdClassifierCV: for each fold of them, the
pipeline is fitted without it and scores it. A pipeline that was fitted on none of the rows scores them itself. No held-out row
takes part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sparkdiff.data.splits import TRAIN, VALIDATION, Boundaries, Source, number_equal_rows, training_rows
from sparkdiff.evaluation.guard import Ledger
from sparkdiff.evaluation.scores import score
from sparkdiff.fine_tuning.phases import open_run
from sparkdiff.fine_tuning.task import FitResults, PipelineScores, Run, Task, TrainingResult, prepare
from sparkdiff.objectives.metrics import of_predictions
from sparkdiff.pipeline.class_numbers import check_same_classes, classes_of
from sparkdiff.pipeline.nesting import flatten, with_leaves
from sparkdiff.pipeline.network import Network
from sparkdiff.proof.division import out_of_fold
from sparkdiff.report import Phases
from sparkdiff.training.epoch_results import TrainedNetwork

FOLDS = 5
ROUNDS = 3
"""Number of rounds over the classes; two classes need one."""
STEPS = sorted((10 ** (k / 40) for k in range(-240, 241)), key=lambda step: max(step, 1 / step))
"""Factors of a threshold that are tried, the nearest first."""
FEWEST = 1e-6
"""Threshold in place of a smaller one, from which the steps lead to all others."""


def tune_threshold(
    run: Run,
    original: PipelineScores,
    sources: Sequence[Source],
    boundaries: Boundaries | None,
    fit: Callable[[Source], Any] | None,
) -> TrainingResult:
    """Choose the threshold or thresholds, and measure the pipeline with them on the validation rows.

    Args:
        original: the original's metrics.
        fit: function that fits the pipeline to training rows; None if it was fitted on none of these rows.

    Raises:
        InputError: the pipeline can't be fitted without some fold, or its classes have other numbers then.
    """
    task, o, head, metric = run.task, run.task.options, run.task.cut.graph.head, run.goal.metric
    module: Any = head.module
    with run.phases.phase("threshold"):
        parts = [_scores(run, TRAIN)] if fit is None else _out_of_fold_scores(task, sources, boundaries, fit)
        probability, label, weight = (torch.cat(each) for each in zip(*parts, strict=True))
        decided = of_predictions(metric.name, {**o.lossParams, **o.metricParams}, module.classes)
        mean = decided.value or (lambda each, _label, weight: weight @ each / weight.sum())

        def loss(prediction: torch.Tensor) -> float:
            return float(decided.sign * mean(decided.by_row(prediction, label, weight), label, weight))

        params = module.threshold_params(head.stage, best_thresholds(loss, module.decides_by(), probability))
        new = prepare(with_params(task, task.model, params), o, sources[0].df)
        network = Network(new.cut.graph, new.cut.live)
        now = score(network, run.data, VALIDATION, metric)
    gains = original.scores[VALIDATION].blocks - now.blocks
    found = TrainedNetwork([], Ledger(gains[None], now.weights, (), 0 if gains.sum() > 0 else -1), network, {})
    return TrainingResult(found, now.mean, {}, [], "", "", None, None, "cpu", [], None, (), None, params)


def _out_of_fold_scores(
    task: Task, sources: Sequence[Source], boundaries: Boundaries | None, fit: Callable[[Source], Any]
) -> list[tuple[torch.Tensor, ...]]:
    o, shared, parts = task.options, FitResults(), list[tuple[torch.Tensor, ...]]()
    rows = number_equal_rows(training_rows(sources, o, boundaries), o)
    try:
        for k, fold in enumerate(out_of_fold(Source(rows, TRAIN, numbered=True), o, FOLDS), 1):
            own = prepare(fit(fold[0]), o, fold[0].data)
            check_same_classes(
                *map(_classes, (task, own)), task.labelCol, f"those without fold {k}", "the training rows"
            )
            with open_run(own, fold, Phases(False), shared=shared, boundaries=Boundaries(), lasting=False) as run:
                parts.append(_scores(run, VALIDATION))
    finally:
        shared.remove_caches()
    return parts


def _classes(task: Task) -> Sequence[str]:
    """The classes of the labels in the order of their numbers."""
    head: Any = task.cut.graph.head.module
    return classes_of(task.model, task.labelCol) or [*map(str, range(head.classes))]


@torch.no_grad()
def _scores(run: Run, split: str) -> tuple[torch.Tensor, ...]:
    """Probabilities (n, k), labels (n,) and weights (n,) of the rows of a split."""
    probabilities: Any = run.network.head.raw_and_probability
    rows = run.data.batches(split)
    parts = ((probabilities(run.network.margin(run.data.values(x)))[1], y.clone(), w.clone()) for x, y, w, _ in rows)
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


@torch.no_grad()
def best_thresholds(
    loss: Callable[[torch.Tensor], float], start: torch.Tensor, probability: torch.Tensor
) -> torch.Tensor:
    """The thresholds (k,), with sum 1, with the smallest loss; found class by class, and near `start` among equals.

    Args:
        loss: function of the predicted classes (n,), those with the largest quotient of probability and threshold.
        probability: (n, k).
    """
    cuts, classes = start.clamp_min(FEWEST), torch.arange(len(start))
    for k in classes[1:].tolist() * (ROUNDS if len(start) > 2 else 1):
        tried = [cuts * torch.where(classes == k, step, 1.0) for step in STEPS]
        losses = [loss((probability / each).argmax(1).double()) for each in tried]
        cuts = tried[losses.index(min(losses))]
    return cuts / cuts.sum()


def with_params(task: Task, model: Any, params: Mapping[str, Any]) -> Any:
    """The pipeline `model`, of the same stages as that of the task, with these Params set on a copy of its last stage."""
    [(path, stage)] = [leaf for leaf in flatten(model) if leaf[0] == task.cut.graph.head.path]
    return with_leaves(model, {path: stage.copy({stage.getParam(name): value for name, value in params.items()})})
