"""The decision whether the tuned network replaces the original: its gain, slices, changed labels, reference rows, and errors
that were not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.evaluation import compatibility, guard, slices
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.data import Data, scalar
from sparkdiff.evaluation.ledger import Ledger, candidate_count, diverged
from sparkdiff.evaluation.recorded import Predicts, Recorded, keyed
from sparkdiff.evaluation.scores import Score, contributions
from sparkdiff.evaluation.slices import Change
from sparkdiff.evaluation.unseen_errors import Unseen, costs, unseen
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.report import p_value
from sparkdiff.report.shares import share_of
from sparkdiff.stages.predictor import Predictor

NAMED = 3  # slices that a reason names
STRICTER = 10
"""Divisor of the required p-value if thresholds train, because they fit chance more easily than leaves."""


@dataclass(frozen=True)
class Judgement:
    """The decision and all figures behind it; if no epoch gains, only the verdict, unless `judge` was asked for all.

    Attributes:
        level: p-value below which a set of rows counts as worse, shrunk as in the verdict; None if the guard accepts
            anything.
        unseen: one more row that is predicted wrongly; None if the guard accepts anything, and of a regression.
    """

    verdict: guard.Verdict
    level: float | None
    slices: tuple[Change, ...] = ()
    reference: Change | None = None
    compatibility: Compatibility | None = None
    maxFlipRate: float = 1.0
    stricter: int = 1  # what the guard was divided by beside fleetSize
    unseen: Unseen | None = None

    @property
    def worse(self) -> list[Change]:
        """The sets of rows that got worse, the smallest p-value first."""
        sets = [*self.slices, *filter(None, [self.reference])]
        found = [c for c in sets if c.p is not None and self.level is not None and c.p < self.level]
        return sorted(found, key=lambda c: c.p or 0.0)

    @property
    def flips(self) -> bool:
        """Whether more labels change than allowed."""
        return (
            self.compatibility is not None
            and self.compatibility.labels
            and self.compatibility.changed > self.maxFlipRate
        )

    @property
    def fragile(self) -> bool:
        """Whether one more row that is predicted wrongly would undo the gain."""
        return self.unseen is not None and self.unseen.undoes

    @property
    def accepted(self) -> bool:
        return self.verdict.accepted and not self.worse and not self.flips and not self.fragile


@dataclass(frozen=True)
class GivenPipeline:
    """The pipeline as the user passed it, where a run started from its refit on the training rows.

    Attributes:
        scores: its metric by split.
        recorded: its margins on the rows that decide.
        decides: whether the result must beat it, and not the refit.
    """

    scores: Mapping[str, Score]
    recorded: Recorded
    decides: bool


def moves_splits(network: Network) -> bool:
    """Whether thresholds of trees or of binning stages train."""
    trees = network.trees().values()
    return any(network.module(i).passes_gradient() for i in network.positions) or not all(m.routes_fixed for m in trees)


def check_options(options: Options, head: Predictor) -> None:
    """Raise InputError if maxFlipRate is set for a predictor without labels."""
    if options.maxFlipRate < 1 and not head.classes:
        raise InputError(
            f"maxFlipRate={options.maxFlipRate:g} limits changed labels, but {type(head).__name__} predicts "
            "numbers: leave it out; `compatibility` in the summary has the share of predictions that move by "
            "more than a tenth"
        )


def judge(
    options: Options,
    data: Data,
    metric: Metric,
    networks: tuple[Network, Predicts],
    ledger: Ledger,
    original: Score,
    *,
    reference: bool,
    always: bool = False,
    given: GivenPipeline | None = None,
) -> Judgement:
    """Test the gain of the best epoch, overall and by slice, in passes over the validation and the reference rows.

    Args:
        networks: the original network and the network of the best epoch, or what was recorded of another pipeline.
        ledger, original: gains over the pipeline that the result must beat, and its validation metric.
        reference: whether there are reference rows.
        always: whether slices, reference rows and labels are compared even where nothing gains.
        given: the pipeline that the user has, where the original is its refit: its labels are those that may not change.
    """
    o, (network, tuned) = options, networks
    data = data if given is None else keyed(data)
    known = network if given is None else given.recorded
    before = known if given is not None and given.decides else network
    unit: Literal["rows", "groups", "blocks"] = "groups" if o.groupCol else "blocks" if o.timeCol else "rows"
    rows, units = counted(data, "validation", unit)
    level, stricter = needed(o, network)
    correlation = guard.correlation_time(_differences(data, metric, before, tuned)) if o.timeCol else None
    verdict = guard.decide(
        ledger.gains, ledger.weights, chosen=ledger.chosen, level=level, original=original.blocks, unit=unit, units=units,
        blockRows=rows / max(units, 1), correlationTime=correlation, seed=o.seed,
    )  # fmt: skip
    # A fleet's budget is one of false accepts: a false veto costs a gain, never a model, and so keeps the level of one run.
    worse = o.guard * verdict.level / level if o.guard < 1 else None
    if verdict.best < 0 and not always:
        return Judgement(verdict, worse, stricter=stricter)
    how: dict[str, Any] = {"unit": unit, "level": worse or 0.025, "joined": verdict.joined, "seed": o.seed}
    columns = list(data.stream.slices.values())
    further = None
    if worse is not None and verdict.best >= 0:
        further = unseen(float(ledger.gains[ledger.chosen].sum()), costs(before, tuned, data, "validation", metric))
    return Judgement(
        verdict, worse,
        tuple(slices.changes(before, tuned, data, "validation", metric, columns, **how)) if columns else (),
        slices.changes(before, tuned, data, "reference", metric, (), **how)[0] if reference else None,
        compatibility.compare(known, tuned, data, "validation"), o.maxFlipRate, stricter, further,
    )  # fmt: skip


def counted(data: Data, split: str, unit: str) -> tuple[int, int]:
    """The rows of weight > 0 of a split, and the rows, groups or blocks that they are."""
    rows, distinct = 0, torch.empty(0, dtype=torch.int64)
    for batch, _, weight, _ in data.batches(split):
        rows += int((weight > 0).sum())
        if unit != "rows":  # groups before they are dealt into blocks, where some meet
            distinct = torch.cat([distinct, scalar(batch, "block")[weight > 0]]).unique()
    return rows, rows if unit == "rows" else len(distinct)


def needed(options: Options, network: Network) -> tuple[float, int]:
    """The p-value that a gain of this network needs, and what the guard was divided by beside fleetSize."""
    stricter = STRICTER if options.guard < 1 and moves_splits(network) else 1
    return options.guard / options.fleetSize / stricter if options.guard < 1 else options.guard, stricter


@torch.no_grad()
def _differences(data: Data, metric: Metric, one: Predicts, other: Predicts) -> Tensor:
    """Loss of `one` minus loss of `other` per validation row, in time order."""
    times = torch.cat([scalar(batch, "time") for batch, *_ in data.batches("validation")])
    first, second = (contributions(n, data, "validation", metric) for n in (one, other))
    return (first - second)[times.argsort(stable=True)]


def divergence(history: Sequence[Mapping[str, Any]], options: Options) -> str:
    """How many candidates diverged, when, and the remedy; empty if none diverged."""
    lost, total = diverged(history), candidate_count(history)
    if not lost:
        return ""
    first, last = min(row["epoch"] for row in lost), max(row["epoch"] for row in lost)
    when = f"epoch {first}" if first == last else f"epochs {first} to {last}"
    if len(lost) == total:
        who, how = (
            f"all {total} candidates" if total > 1 else "the only candidate",
            f"learningRate={options.learningRate:g}",
        )
    else:
        who, how = f"{len(lost)} of {total} candidates", "; ".join(row["recipe"] for row in lost)
    by_rate = [row["recipe"].startswith(options.optimizer) for row in lost]  # the others take steps of their own
    remedies = (
        [f"lower learningRate or {'set ' if options.gradientClip is None else ''}gradientClip"] if any(by_rate) else []
    )
    remedies += [] if all(by_rate) else ["choose recipe=default, which has no lbfgs and no newton"]
    return f"{who} diverged in {when} ({how}): {', and '.join(remedies)}"


def reason(
    judgement: Judgement, options: Options, metric: Metric, original: float, history: Sequence[Mapping[str, Any]] = (),
    *, whose: str = "the best epoch's", where: str = "validation",
) -> str:  # fmt: skip
    """The reason of the decision, in one sentence with the figures.

    Args:
        original: the original's metric on the rows that decide.
        history: a row per epoch and candidate.
        whose: whose gain decides.
        where: the name of the rows that decide.
    """
    verdict, o = judgement.verdict, options
    if verdict.best < 0:
        better = f"had a {metric.direction} {metric.name} on the validation rows"
        lost = divergence(history, o)
        if len(diverged(history)) == candidate_count(history) > 0:
            return f"{lost}; no epoch before {better}, so the possible gain is unknown"
        if lost:
            return f"no epoch of any other candidate {better}, and {lost}"
        return f"no epoch of any candidate {better}: nothing to gain from here"
    gain = f"{whose} gain of {share_of(verdict.gain, original):.2%} on the {where} rows"
    parts = [f" / fleetSize {o.fleetSize:,}"] if o.fleetSize > 1 else []
    parts += [f" / {judgement.stricter} because thresholds train"] if judgement.stricter > 1 else []
    share = f" = guard {o.guard:g}{''.join(parts)}" if parts and o.guard < 1 else ""
    shrunk = ", shrunk" if share and verdict.level < 0.99 * o.guard / o.fleetSize / judgement.stricter else ""
    figures = f"({p_value(verdict.p, verdict.level / 10)}, needed < {verdict.level:.3g}{share}{shrunk})"
    if not verdict.accepted:
        return f"{gain} is within what chance explains {figures}; more {where} rows can show smaller gains"
    gain += (
        f" is larger than chance explains {figures}"
        if o.guard < 1
        else f" is accepted without a test, because guard is {o.guard:g} ({p_value(verdict.p)})"
    )
    if judgement.accepted:
        return gain
    against = []
    if worse := judgement.worse:
        named = [f"{c.name} from {c.before:.5g} to {c.after:.5g} ({p_value(c.p or 0.0)})" for c in worse[:NAMED]]
        more = f" and {len(worse) - NAMED} more" if len(worse) > NAMED else ""
        against.append(f"{metric.name} gets worse on {', '.join(named)}{more}, needed p >= {judgement.level:g}")
    if judgement.flips:
        assert judgement.compatibility is not None
        changed = judgement.compatibility.changed
        against.append(f"{changed:.2%} of the labels change, more than maxFlipRate {o.maxFlipRate:g} allows")
    if judgement.fragile:
        assert judgement.unseen is not None
        against.append(
            f"one more row that is predicted as surely, and wrongly, would undo it: its {metric.name} would be larger by "
            f"{judgement.unseen.cost:.3g}, and all {where} rows together gain {judgement.unseen.gain:.3g}; more {where} rows "
            "can tell"
        )
    return f"{gain}, but {'; and '.join(against)}"
