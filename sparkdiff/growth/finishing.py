"""The end of growth: all stages train together."""

import dataclasses

import torch

from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import ParityError
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.fine_tuning.phases import trained, verified
from sparkdiff.fine_tuning.values import Fitted, Measured, Run
from sparkdiff.pipeline.network import Network

ROUNDING = 1e-9
"""Share of the loss by which the original's may differ when it is computed by the grown pipeline's network."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The grown pipeline after all of it has trained together.

    Attributes:
        before: the validation metric of the original, by the grown pipeline's network without what was added.
        start: the grown pipeline before it trained.
        fitted: its training.
        network: what would ship.
        tuned: its validation metric.
    """

    before: Score
    start: Measured
    fitted: Fitted
    network: Network
    tuned: Score


def finish(run: Run, first: Score, width: int, seconds: float | None, *, replace: bool) -> Finished:
    """Train the grown pipeline.

    Args:
        run: of the grown pipeline, whose cache is written.
        first: the original's validation metric, as growth measured it.
        width: the number of features that the head read before growth.
        seconds: that training may take; None without a limit.
        replace: see `fine_tune`.

    Raises:
        ParityError: the network and Spark disagree, or the grown pipeline without its parts isn't the original.
    """
    start = verified(run)
    before = score(original_network(run, width), run.data, VALIDATION, run.goal.metric)
    _check_same(run, first, before)
    options = dataclasses.replace(run.task.options, maxSeconds=seconds)
    timed = dataclasses.replace(run, task=dataclasses.replace(run.task, options=options))
    fitted = trained(timed, start, None, replace=replace)
    network = fitted.found.network
    return Finished(before, start, fitted, network, score(network, run.data, VALIDATION, run.goal.metric))


@torch.no_grad()
def original_network(run: Run, width: int) -> Network:
    """The grown pipeline's network without what was added: the original, computed on the same columns."""
    other = run.network.clone()
    head = other.head
    weight = head.get_parameter("coefficientMatrix" if hasattr(head, "coefficientMatrix") else "coefficients")
    weight[..., width:] = 0.0
    return other


def _check_same(run: Run, first: Score, own: Score) -> None:
    scale = float(first.blocks.abs().sum()) + 1e-300
    apart = float((first.blocks - own.blocks).abs().sum()) / scale
    if not torch.equal(first.weights > 0, own.weights > 0) or not apart < ROUNDING:
        raise ParityError(
            f"{run.task.model.uid}: without its parts the grown pipeline differs from the original by {apart:.1e} of the loss on "
            "validation rows, so nothing was changed. Report this as a bug"
        )
