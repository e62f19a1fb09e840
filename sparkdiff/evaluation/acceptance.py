"""The decision whether the tuned network replaces the original. It depends on the gain on held-out rows (tested by the
guard), on slices and reference rows, which must not get worse, on predicted labels that change, on errors that
the rows cannot show (see `unseen_errors`), and on output columns that must stay as they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.evaluation import compatibility, guard, paired_rows, slices
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.row_margins import MarginModel, RecordedMargins, with_row_hashes
from sparkdiff.evaluation.slices import Change
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.evaluation.units import Kind
from sparkdiff.evaluation.unseen_errors import UnseenErrorCost, costs, unseen
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.report import p_value, share_of
from sparkdiff.stages.predictor import Predictor

NAMED = 3  # largest number of slices that a reason names
LARGER_FRACTION = 0.3
"""The validationFraction that the text of a reason recommends."""


@dataclass(frozen=True)
class Judgement:
    """The decision and all figures behind it; if no epoch gains, only the verdict.

    Attributes:
        level: p-value below which a slice or the reference rows count as worse, shrunk like the level in the verdict;
            None if the guard accepts any gain.
        unseen: the gain against the cost of one more row that is predicted wrongly, or of one more bad group; None if
            the guard accepts any gain, or if there is no such cost, as for a regression without groups.
        outside: sentences about changes of outputs outside the loss.
    """

    verdict: guard.Verdict
    level: float | None
    slices: tuple[Change, ...] = ()
    reference: Change | None = None
    compatibility: Compatibility | None = None
    maxFlipRate: float = 1.0
    unseen: UnseenErrorCost | None = None
    outside: tuple[str, ...] = ()

    @property
    def worse(self) -> list[Change]:
        """Slices, or the reference rows, on which the metric got worse; the smallest p-value first."""
        sets = [*self.slices, *filter(None, [self.reference])]
        found = [c for c in sets if c.p is not None and self.level is not None and c.p < self.level]
        return sorted(found, key=lambda c: c.p or 0.0)

    @property
    def flips(self) -> bool:
        """True if more predicted labels change than `maxFlipRate` allows."""
        return (
            self.compatibility is not None
            and self.compatibility.labels
            and self.compatibility.changed > self.maxFlipRate
        )

    @property
    def fragile(self) -> bool:
        """True if one more row that is predicted wrongly, or one more bad group, would undo the gain."""
        return self.unseen is not None and self.unseen.undoes

    @property
    def accepted(self) -> bool:
        return self.verdict.accepted and not (self.worse or self.flips or self.fragile or self.outside)


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
    networks: tuple[Network, MarginModel],
    ledger: guard.Ledger,
    *,
    reference: bool,
    given: RecordedMargins | None = None,
) -> Judgement:
    """Test the gain of the best epoch, overall and by slice, in passes over the validation and the reference rows.

    Args:
        networks: the original network and, to compare with it, the network of the best epoch or the recorded margins
            of another pipeline.
        ledger: the gains of all trials over the original.
        reference: whether there are reference rows.
        given: the pipeline that the user passed, if the original is a refit of it. Labels then count as changed if they
            differ from the labels of `given`.
    """
    o, (network, tuned) = options, networks
    data = data if given is None else with_row_hashes(data)
    rows = paired_rows.read(network, tuned, data, "validation", metric, unit_of(o))
    level = guard_level(o)
    spread = None
    if o.guard < 1 and ledger.chosen >= 0:
        spread = paired_rows.read(network, tuned, data, "train", metric, unit_of(o), rows).costs()
    verdict = paired_rows.decide_by_rows(rows, level=level, ledger=ledger, training=spread, seed=o.seed)
    # A fleet divides its level for accepting by the number of runs. A false veto only loses a gain and ships no worse
    # model, so its level is not divided.
    worse = o.guard * verdict.level / level if o.guard < 1 else None
    if verdict.best < 0:
        return Judgement(verdict, worse)
    how: dict[str, Any] = {"unit": unit_of(o), "level": worse or 0.025, "joined": verdict.joined, "seed": o.seed}
    columns = list(data.stream.manifest.slices.values())
    further = None
    if worse is not None:
        gain = float((rows.original - rows.other).sum())
        further = unseen(gain, costs(network, tuned, data, "validation", metric), spread)
    return Judgement(
        verdict,
        worse,
        tuple(slices.changes(network, tuned, data, "validation", metric, columns, **how)) if columns else (),
        slices.changes(network, tuned, data, "reference", metric, (), **how)[0] if reference else None,
        compatibility.compare(given or network, tuned, data, "validation"),
        o.maxFlipRate,
        further,
    )


def unit_of(options: Options) -> Kind:
    """The kind of unit that the guard counts as independent: rows, groups or blocks of time."""
    return "groups" if options.groupCol else "blocks" if options.timeCol else "rows"


def guard_level(options: Options) -> float:
    """p-value below which a gain is accepted."""
    return options.guard / options.fleetSize if options.guard < 1 else options.guard


def divergence(history: Sequence[Mapping[str, Any]], options: Options) -> str:
    """Number of diverged candidates, their epochs, and the remedy, as text; empty if none diverged."""
    lost, total = guard.diverged_candidates(history), guard.candidate_count(history)
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
    by_rate = [row["recipe"].startswith(options.optimizer) for row in lost]  # other optimizers choose their own steps
    remedies = (
        [f"lower learningRate or {'set ' if options.gradientClip is None else ''}gradientClip"] if any(by_rate) else []
    )
    remedies += [] if all(by_rate) else ["choose recipe=default, which has no lbfgs and no newton"]
    return f"{who} diverged in {when} ({how}): {', and '.join(remedies)}"


def reason(
    judgement: Judgement,
    options: Options,
    metric: Metric,
    original: float,
    history: Sequence[Mapping[str, Any]] = (),
    *,
    whose: str = "the best epoch's",
    where: str = "validation",
    folds: bool = True,
    divided: bool = True,
    nothing: str = "",
) -> str:
    """The reason for the decision, in one sentence with the figures; if the original is kept, it ends with the remedy.

    Args:
        original: the original's metric on the held-out rows.
        history: a row per epoch and candidate.
        whose: the subject of the gain in the possessive form, such as "the best epoch's".
        where: the name of the held-out rows in the sentence.
        folds, divided: see `ways_to_decide`.
        nothing: the reason if there is no gain on the held-out rows; if empty, that of a training.
    """
    verdict, o = judgement.verdict, options
    ways = ways_to_decide(o, folds=folds, divided=divided)
    if verdict.untested:
        return f"not tested: {verdict.untested}; {ways}"
    if verdict.best < 0:
        return nothing or nothing_gained(o, metric, history)
    gain = f"{whose} gain of {share_of(verdict.gain, original):.2%} on the {where} rows"
    share = f" = guard {o.guard:g} / fleetSize {o.fleetSize:,}" if o.fleetSize > 1 and o.guard < 1 else ""
    shrunk = ", shrunk" if share and verdict.level < 0.99 * o.guard / o.fleetSize else ""
    figures = f"({p_value(verdict.p, verdict.level / 10)}, needed < {verdict.level:.3g}{share}{shrunk})"
    if verdict.against:
        return f"{gain} is not proven {figures}, because {verdict.against}; {ways}"
    if not verdict.accepted:
        return f"{gain} is within what chance explains {figures}; {ways}"
    gain += (
        f" is larger than chance explains {figures}"
        if o.guard < 1
        else f" is accepted without a test, because guard is {o.guard:g} ({p_value(verdict.p)})"
    )
    if judgement.accepted:
        return gain
    against, out = [], []
    if worse := judgement.worse:
        named = [f"{c.name} from {c.before:.5g} to {c.after:.5g} ({p_value(c.p or 0.0)})" for c in worse[:NAMED]]
        more = f" and {len(worse) - NAMED} more" if len(worse) > NAMED else ""
        against.append(f"{metric.name} gets worse on {', '.join(named)}{more}, needed p >= {judgement.level:g}")
        out.append(
            "to accept that, leave these rows out of guardCols and referenceData, or train on more rows like them"
        )
    if judgement.flips:
        assert judgement.compatibility is not None
        changed = judgement.compatibility.changed
        against.append(f"{changed:.2%} of the labels change, more than maxFlipRate {o.maxFlipRate:g} allows")
        out.append("to accept that, raise maxFlipRate")
    if judgement.fragile:
        assert judgement.unseen is not None
        what = (
            "group that is as bad as the worst of training"
            if o.groupCol
            else "row that is predicted as surely, and wrongly,"
        )
        against.append(
            f"one more {what} would undo it: its {metric.name} would be larger by {judgement.unseen.cost:.3g}, and all {where} "
            f"rows together gain {judgement.unseen.gain:.3g}"
        )
        out.append(ways)
    if judgement.outside:
        against.append(f"outputs outside the loss would change: {', '.join(judgement.outside)}")
        out.append("to accept that, name the stages in target")
    return f"{gain}, but {'; and '.join(against)}; {'; '.join(out)}"


def nothing_gained(options: Options, metric: Metric, history: Sequence[Mapping[str, Any]]) -> str:
    """The reason for keeping the original if no epoch gained on the validation rows, as text."""
    better = f"had a {metric.direction} {metric.name} on the validation rows"
    lost = divergence(history, options)
    if len(guard.diverged_candidates(history)) == guard.candidate_count(history) > 0:
        return f"{lost}; no epoch before {better}, so the possible gain is unknown"
    if lost:
        return f"no epoch of any other candidate {better}, and {lost}"
    wider = "" if options.recipe == "thorough" else "recipe='thorough', which trains more candidates, or "
    return (
        f"no epoch of any candidate {better}: nothing to gain from here; to look further, try {wider}Improver, which also "
        "refits, searches and grows"
    )


def ways_to_decide(options: Options, *, folds: bool, divided: bool = True) -> str:
    """Remedies that could show a gain that the held-out rows don't show, as the end of a sentence.

    Args:
        folds: whether the called function has the option numFolds.
        divided: whether the held-out rows are a fraction of the passed rows, and not rows that the user chose.
    """
    o = options
    divided = divided and o.validationIndicatorCol is None
    folds = folds and divided and not o.numFolds and not o.timeCol and o.tune == "weights"
    ways = ["set numFolds=5, so that all rows decide"] if folds else []
    if not o.numFolds and divided and o.validationFraction < LARGER_FRACTION:
        ways.append(f"{'' if ways else 'set '}validationFraction={LARGER_FRACTION:g}")
    more = "groups" if o.groupCol else "rows"
    return f"to decide it, {', or '.join([*ways, f'pass more {more}'])}"
