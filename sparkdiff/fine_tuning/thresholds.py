"""The choice of `threshold` (or `thresholds`) of the last stage alone: probabilities and weights stay as they are.

A pipeline is too sure on rows of its own fit, so that a threshold that is best there need not be best on others. Therefore it is
chosen on out-of-fold scores of the training rows, as by scikit-learn's TunedThresholdClassifierCV: for each fold of them, the
pipeline is fitted without it and scores it. A pipeline that was fitted on none of the rows scores them itself. No held-out row
takes part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from sparkdiff import jvm
from sparkdiff.data.splits import TRAIN, VALIDATION, Boundaries, Source, number_equal_rows, training_rows
from sparkdiff.errors import InputError
from sparkdiff.evaluation.guard import Ledger
from sparkdiff.evaluation.scores import score
from sparkdiff.fine_tuning.phases import open_run
from sparkdiff.fine_tuning.task import FitResults, PipelineScores, Run, Task, TrainingResult, prepare
from sparkdiff.objectives.metrics import of_predictions
from sparkdiff.pipeline.indexer_labels import check_same_classes, classes_of
from sparkdiff.pipeline.nesting import flatten, with_leaves
from sparkdiff.pipeline.network import Network
from sparkdiff.proof.division import out_of_fold
from sparkdiff.report import Phases
from sparkdiff.training.epoch_results import TrainedNetwork

STEPS = sorted((10 ** (k / 20) for k in range(-100, 101)), key=lambda step: max(step, 1 / step))
"""Factors of a threshold that are tried, the nearest first."""


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
    task, o, metric = run.task, run.task.options, run.goal.metric
    head: Any = run.network.head
    with run.phases.phase("threshold"):
        parts = [scores_of(run, TRAIN)] if fit is None else _out_of_fold_scores(task, sources, boundaries, fit)
        cuts = choose_thresholds(head, metric.name, {**o.lossParams, **o.metricParams}, parts)
        params, far = head.threshold_params(cuts), (cuts - head.decides_by()).abs()
        new = prepare(with_params(task, task.model, params), o, sources[0].df)
        network = Network(new.cut.graph, new.cut.live)
        now = score(network, run.data, VALIDATION, metric)
    gains = original.scores[VALIDATION].blocks - now.blocks
    found = TrainedNetwork(
        [],
        Ledger(gains[None], now.weights, (), 0 if gains.sum() > 0 else -1),
        network,
        {f"{new.cut.graph.head.uid}.{k}": (float(far.max()), float(far.square().mean().sqrt())) for k in params},
    )
    return TrainingResult(found, now.mean, {}, [], "", "", None, None, "cpu", [], None, (), None, params)


def _out_of_fold_scores(
    task: Task, sources: Sequence[Source], boundaries: Boundaries | None, fit: Callable[[Source], Any]
) -> list[tuple[torch.Tensor, ...]]:
    """Scores of the rows of each fold."""
    o, shared, parts = task.options, FitResults(), list[tuple[torch.Tensor, ...]]()
    rows, cached = number_equal_rows(training_rows(sources, o, boundaries), o), Boundaries()
    try:
        for k, (train, held) in enumerate(out_of_fold(Source(rows, TRAIN, numbered=True), o), 1):
            own = prepare(fit(train), o, train.data)
            check_classes(task, own, f"those without fold {k}")
            with open_run(
                own, [held], Phases(False), shared=shared, boundaries=cached, allTrain=True, lasting=False
            ) as run:
                parts.append(scores_of(run, TRAIN))
    finally:
        shared.remove_caches()
    return parts


def check_classes(task: Task, refit: Task, where: str) -> None:
    """Check that a refit to a part of the training rows has the same classes, as thresholds belong to their numbers.

    Args:
        where: name of these rows, for the message.

    Raises:
        InputError: the refit has other classes, or fewer.
    """
    label = task.labelCol
    check_same_classes(classes_of(task.model, label), classes_of(refit.model, label), label, where, "the training rows")
    whole, part = (each.cut.graph.head.module.classes for each in (task, refit))  # type: ignore[union-attr]
    if part != whole:
        raise InputError(
            f"a fit to {where} knows {part} of the {whole} classes of labelCol={label!r}: a class has too few rows to choose its "
            "threshold; add rows of it, or leave the thresholds as they are"
        )


def choose_thresholds(
    head: Any, metric: str, params: Mapping[str, Any], parts: Sequence[tuple[torch.Tensor, ...]]
) -> torch.Tensor:
    """The thresholds (k,), with sum 1, with the best metric on scored rows.

    Args:
        head: the last stage, at whose thresholds the search begins.
        metric, params: name of a metric of decisions, and its parameters.
        parts: results of `scores_of`.
    """
    probability, label, weight = (torch.cat(each) for each in zip(*parts, strict=True))
    decided = of_predictions(metric, params, head.classes)
    mean = decided.value or (lambda each, _label, weight: weight @ each / weight.sum())

    def loss(prediction: torch.Tensor) -> float:
        return float(decided.sign * mean(decided.by_row(prediction, label, weight), label, weight))

    return best_thresholds(loss, head.decides_by(), probability)


@torch.no_grad()
def scores_of(run: Run, split: str) -> tuple[torch.Tensor, ...]:
    """Probabilities (n, classes), labels (n,) and weights (n,) of the rows of a split."""
    head: Any = run.network.head
    rows = (
        (head.raw_and_probability(run.network.margin(run.data.values(x)))[1], y.clone(), w.clone())
        for x, y, w, _ in run.data.batches(split)
    )
    return tuple(torch.cat(each) for each in zip(*rows, strict=True))


@torch.no_grad()
def best_thresholds(
    loss: Callable[[torch.Tensor], float], start: torch.Tensor, probability: torch.Tensor
) -> torch.Tensor:
    """The thresholds (k,), with sum 1, with the smallest loss; found class by class, and near `start` among equals.

    Args:
        loss: function of the predicted classes (n,), those with the largest quotient of probability and threshold.
        probability: (n, k).
    """
    # From a threshold of 0, no step would lead elsewhere.
    cuts = torch.where(start.min() > 0, start, 1.0)
    for _ in range(3 if len(start) > 2 else 1):  # rounds, as the thresholds of several classes depend on each other
        before = cuts.clone()
        for k in range(1, len(start)):
            losses = [loss(each) for each in _decisions(probability, cuts, k)]
            cuts[k] *= STEPS[losses.index(min(losses))]
        if torch.equal(cuts, before):
            break
    return cuts / cuts.sum()


def _decisions(probability: torch.Tensor, cuts: torch.Tensor, k: int) -> Iterator[torch.Tensor]:
    """Predicted classes (n,) for each of `STEPS` as factor of the threshold of class k; of equal quotients the first decides."""
    other, rival = (probability / cuts).index_fill(1, torch.tensor(k), -torch.inf).max(1)
    for step in STEPS:
        own = probability[:, k] / (cuts[k] * step)
        yield torch.where((own > other) | ((own == other) & (rival > k)), k, rival).double()


def with_params(task: Task, model: Any, params: Mapping[str, Any]) -> Any:
    """The pipeline `model`, of the same stages as that of the task, with these Params set on a copy of its last stage."""
    [(path, stage)] = [leaf for leaf in flatten(model) if leaf[0] == task.cut.graph.head.path]
    new = stage.copy()
    for param in (p for p in new.params if p.name in ("threshold", "thresholds")):
        jvm.clear_param(new, param)  # Spark refuses one that contradicts the other
    return with_leaves(model, {path: new.copy({new.getParam(name): value for name, value in params.items()})})
