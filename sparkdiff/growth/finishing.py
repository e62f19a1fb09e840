"""The end of growth: all stages train together, and the guard decides on everything that was tried."""

import dataclasses

import torch

from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import ParityError
from sparkdiff.evaluation.acceptance import Judgement, judge
from sparkdiff.evaluation.ledger import Ledger, LedgerTrial
from sparkdiff.evaluation.recorded import Recorded
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.fine_tuning.phases import trained, verified
from sparkdiff.fine_tuning.values import Fitted, Measured, Run
from sparkdiff.growth.rounds import Grown
from sparkdiff.pipeline.network import Network

ROUNDING = 1e-9
"""Share of the loss by which the original's may differ when it is computed by the grown pipeline's network."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The grown pipeline after all of it has trained together.

    Attributes:
        run: of the grown pipeline.
        before: the original, measured by the grown pipeline's network without what was added.
        start: the grown pipeline before it trained.
        fitted: its training.
        network: what would ship.
        ledger: everything that was measured on validation rows.
        judgement: the decision.
        tuned: the validation metric of what would ship.
    """

    run: Run
    before: Measured
    start: Measured
    fitted: Fitted
    network: Network
    ledger: Ledger
    judgement: Judgement
    tuned: Score


def finish(
    run: Run,
    first: Score,
    grown: Grown,
    width: int,
    seconds: float | None,
    *,
    replace: bool,
    given: Recorded | None = None,
) -> Finished:
    """Train the grown pipeline, and decide.

    Args:
        run: of the grown pipeline, whose cache is written.
        first: the original's validation metric, as growth measured it.
        width: the number of features that the head read before growth.
        seconds: that training may take; None without a limit.
        replace: see `fine_tune`.
        given: see `judge`.

    Raises:
        ParityError: the network and Spark disagree, or the grown pipeline without its parts isn't the original.
    """
    start = verified(run)
    plain = original_network(run, width)
    own = {split: score(plain, run.data, split, run.goal.metric) for split in start.scores}
    _check_same(run, first, own[VALIDATION])
    options = dataclasses.replace(run.task.options, maxSeconds=seconds)
    timed = dataclasses.replace(run, task=dataclasses.replace(run.task, options=options))
    fitted = trained(timed, start, None, replace=replace)
    network = fitted.found.network
    tuned = score(network, run.data, VALIDATION, run.goal.metric)
    ledger = whole_ledger(grown, own[VALIDATION], start.scores[VALIDATION], fitted)
    with run.phases.phase("judge"):
        judgement = judge(
            run.task.options, run.data, run.goal.metric, (plain, network), ledger,
            reference=bool(run.cache.rows("reference")), given=given,
        )  # fmt: skip
    return Finished(run, Measured(own, None), start, fitted, network, ledger, judgement, tuned)


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


def whole_ledger(grown: Grown, original: Score, start: Score, fitted: Fitted) -> Ledger:
    """The gains over the original of all that was measured on validation rows: the rounds, and the epochs of all together."""
    joint = fitted.found.ledger
    shift = original.blocks - start.blocks
    gains = torch.cat([grown.gains, shift[None], joint.gains + shift])
    trials = [*grown.trials, LedgerTrial(0, 0, "together"), *(t._replace(arm="together") for t in joint.trials)]
    chosen = len(grown.gains) + 1 + max(joint.chosen, -1)
    gained = float(gains[chosen].sum()) > 0
    return Ledger(gains, original.weights, trials, chosen if gained else -1)
