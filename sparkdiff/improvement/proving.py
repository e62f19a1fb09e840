"""Proof of an improvement, by a test of the finalists (the candidates chosen for this test) on the proving rows.

Each finalist is made again from the training rows of each fold, and compared with its rival on the fold's proving rows. Those
accepted finalists that are to be offered are made again from all rows; or if there is only one fold, its pipelines may ship.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch

from sparkdiff import jvm
from sparkdiff.data.splits import REFERENCE, TEST, TRAIN, VALIDATION
from sparkdiff.errors import SparkdiffError, WriteError
from sparkdiff.evaluation import guard, slices
from sparkdiff.evaluation.acceptance import Judgement, guard_level, unit_of
from sparkdiff.evaluation.row_margins import with_row_hashes
from sparkdiff.evaluation.row_warnings import POWER
from sparkdiff.evaluation.scores import score
from sparkdiff.fine_tuning.fine_tuning_run import TRAINING_ROWS
from sparkdiff.fine_tuning.task import FitResults
from sparkdiff.improvement import parallel_tasks
from sparkdiff.improvement.arm_context import (
    ArmContext,
    Fit,
    Measurement,
    check_same_rows,
    is_cost_allowed,
    measure,
    refit_on_rows,
)
from sparkdiff.improvement.arms import ARMS
from sparkdiff.improvement.arms.fine_tuning import train_again
from sparkdiff.improvement.arms.simplifying import fold_stages
from sparkdiff.improvement.candidate import Arm, Candidate, CandidateRecipe, Step, candidates_of, share
from sparkdiff.improvement.improvement_options import CHANGES_FORM
from sparkdiff.improvement.origin import check_same_numbers
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.proof import decision
from sparkdiff.proof.decision import FINALISTS, FoldComparison
from sparkdiff.proof.division import Division
from sparkdiff.report import Phases, share_of

BEST, AS_CHEAP, SAME_FORM, SIMPLER = "best", "asCheap", "sameForm", "simpler"
"""Names of offers: the pipeline with the largest gain; the largest gain among pipelines that cost no more to serve than
the original; the largest gain among pipelines with the original's stages; and a pipeline with fewer stages that is
cheaper to serve and, within `maxLoss`, not worse."""
NEXT, REFIT, YOURS = "next", "refit", "your pipeline"
OTHER, SMALL = "other", 1000
"""Role of the best candidate of an arm other than the best one, and the number of rows below which such candidates come
right after the refit: then there are too few exploring rows to choose among the arms by them alone."""
ACCEPT = 0.025
"""p-value that a simpler pipeline needs if the option `guard` accepts any gain."""


@dataclasses.dataclass(frozen=True)
class Finalist:
    """A candidate chosen for proof.

    Attributes:
        role: the reason for its choice: `BEST`, `NEXT`, `REFIT`, `OTHER`, `SAME_FORM`, `AS_CHEAP` or `SIMPLER`.
        folds: number of folds on which it is tested; 0 if there is no time for it.
        lacks: seconds by which the time left was too short for its test.
    """

    role: str
    candidate: Candidate
    folds: int = 0
    lacks: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.role}-{self.candidate.making.key}"


@dataclasses.dataclass(frozen=True)
class FinalistResult:
    """Results of a finalist on the proving rows.

    Attributes:
        judgement: the decision about the finalist.
        before, after: the metric of the rival and of the finalist on the proving rows.
        rival: description of the rival, the pipeline with which the finalist was compared.
        folds: comparisons in the folds; empty if the finalist could not be made in one of the folds.
        failure: the reason why it could not be made; empty if it was made.
    """

    finalist: Finalist
    judgement: Judgement
    before: float
    after: float
    rival: str
    folds: tuple[FoldComparison, ...] = ()
    failure: str = ""

    @property
    def accepted(self) -> bool:
        return self.judgement.accepted and not self.failure


@dataclasses.dataclass(frozen=True)
class FinalPipeline:
    """A finalist made from all rows.

    Attributes:
        found: figures of the pipeline on all rows; None if it can't ship, for the reason in `failure` or `judgement`.
        doubts: warnings about columns that must not change, but can't be compared with the original's.
    """

    proven: FinalistResult
    found: Measurement | None
    judgement: Judgement
    failure: str = ""
    doubts: tuple[str, ...] = ()


NOTHING = guard.Verdict(False, -1, 0.0, 0.0, 1.0, 0.025)
"""Verdict if there was nothing to test."""


# Finalists ------------------------------------------------------------------------------------------------------------


def finalists(context: ArmContext, steps: Sequence[Step], *, small: bool, seconds: float = math.inf) -> list[Finalist]:
    """Choose at most `FINALISTS` candidates for the proof, by role.

    The roles, in this order: the best candidate; the best that there is time to prove, if there is none for the best of all;
    the plain refit, the best with the original's stages, the best that costs no more to serve than the original, and the cheapest
    that is simpler. A candidate is chosen only once.

    Args:
        context: context of the exploring rows.
        small: True if there are fewer than `SMALL` rows. Then the best candidates of the other arms come right after
            the refit, so that the choice among arms is made on all folds.
        seconds: largest time to make and measure a candidate for which there is time to prove it.
    """
    every = [c for c in candidates_of(steps) if is_cost_allowed(context, c.found.cost)]
    found = sorted((c for c in every if share(context, c) > 0), key=lambda c: -share(context, c))
    cost, least = context.start.cost, -context.settings.maxLoss
    refitted = [c for c in every if c.making == CandidateRecipe(REFIT)]
    others = {c.arm: c for c in reversed(found)}.values() if small else ()
    roles: dict[str, list[Candidate]] = {
        BEST: found,
        NEXT: [c for c in found if c.seconds <= seconds],
        REFIT: [*refitted, Candidate(REFIT, "refitted", context.start, CandidateRecipe(REFIT))],
        OTHER: sorted(others, key=lambda c: -share(context, c)),
        SAME_FORM: [c for c in found if c.arm not in CHANGES_FORM],
        AS_CHEAP: [c for c in found if c.found.cost <= cost],
        SIMPLER: sorted(
            (c for c in every if c.arm == "simplify" and c.found.cost < cost and share(context, c) >= least),
            key=lambda c: c.found.cost,
        ),
    }
    chosen: list[Finalist] = []
    for role, ordered in roles.items():
        for candidate in ordered if role == OTHER else ordered[:1]:
            if len(chosen) < FINALISTS and all(candidate.making != f.candidate.making for f in chosen):
                chosen.append(Finalist(role, candidate))
    return chosen


def remake(context: ArmContext, making: CandidateRecipe, arms: Sequence[Arm]) -> Measurement:
    """Make a candidate again, from the training rows of a context, and measure it on the rows of the context.

    Args:
        arms: the arms of this run, which take precedence over those in `ARMS`.

    Raises:
        SparkdiffError: the candidate can't be made from these rows, or its network and Spark disagree.
    """
    arm = next(arm for arm in (*arms, *ARMS) if arm.name == making.arm)
    model = arm.make(context, making.settings)
    if making.recipe is not None:
        return train_again(context, model, making.recipe, making.epochs, f"again-{making.key}")
    return measure(context, model)


def smallest_gain(context: ArmContext, candidate: Candidate, division: Division) -> float:
    """Smallest gain of a finalist like this candidate, as a share of the metric, that the test on the proving rows
    would detect with probability `POWER`.

    Args:
        context: context of the exploring rows; it has about as many held-out rows as a fold.
    """
    before, after = context.start.scores[VALIDATION], candidate.found.scores[VALIDATION]
    gains, weights = before.blocks - after.blocks, before.weights
    error = float((gains - gains.sum() / weights.sum() * weights).norm() / weights.sum())
    factor = division.factor or (decision.LEAST_FACTOR if division.number > 1 else 1.0)
    normal, level = NormalDist(), min(guard_level(context.options), 0.5) / FINALISTS
    return share_of(
        (normal.inv_cdf(POWER) - normal.inv_cdf(level)) * error * math.sqrt(factor / division.number), before.mean
    )


# Folds ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Proof:
    """Proof of finalists on the proving rows, against a rival.

    Attributes:
        context: context of the original, with the rows from which the shipped pipeline is made. Its `fit` refits the pipeline in
            each fold.
        division: division of the rows into exploring rows and proving folds.
        against: the fitted original, if finalists have to beat it; None if their rival is its refit in the same fold.
        log: log of the run.
        arms: the arms of the run, which make the finalists again.
        made: finalist's name -> its pipeline from the only fold, if the tested pipelines themselves ship.
        shared: cache of contexts and pipelines.
        fit_by_spark: see `Origin`.
    """

    context: ArmContext
    division: Division
    against: Any
    log: StepLog
    arms: Sequence[Arm] = ()
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    shared: FitResults = dataclasses.field(default_factory=FitResults)
    fit_by_spark: Fit | None = None

    def prove(self, chosen: Sequence[Finalist], phases: Phases, *, early: bool = False) -> list[FinalistResult]:
        """Measure the finalists and their rival in each fold, and decide about each finalist. Folds may run at the same time.

        Args:
            early: True to make the first finalist from all rows already while the last fold is measured, to save time.
        """
        found: dict[tuple[str, int], FoldComparison | str] = {}
        number = max((f.folds for f in chosen), default=0)
        tasks = [(f"fold {k + 2}", functools.partial(self._prove_in, k, chosen, found)) for k in range(number)]
        first = next((f for f in chosen if f.folds), None)
        if early and first is not None and self.division.ships and self.context.folds_side_by_side > 1:
            tasks.append(("all rows", functools.partial(self._make_early, first, found)))
        parallel_tasks.run(iter(tasks), self.context.folds_side_by_side, phases, self.context.brake)
        return [self._decide(f, [found.get((f.name, k), "") for k in range(f.folds)]) for f in chosen if f.folds]

    def _prove_in(self, k: int, chosen: Sequence[Finalist], found: dict[tuple[str, int], FoldComparison | str]) -> str:
        """Compare the finalists with their rival in fold `k`, except those tested on fewer folds or failed in an earlier fold.

        Args:
            found: (name of a finalist, fold) -> its comparison, or the reason why it can't be made; results are added.
        """
        rival = functools.cache(functools.partial(self._measure_rival, k))
        for finalist in chosen:
            failed = any(isinstance(found.get((finalist.name, before)), str) for before in range(k))
            if k >= finalist.folds or failed:
                continue
            parallel_tasks.STEP.set({"arm": finalist.candidate.arm, "round": finalist.role})
            make = functools.partial(self._try, k, finalist, rival)
            try:
                found[finalist.name, k] = self.log.read_or_make(f"{finalist.name}-fold{k + 2}", make)
            except jvm.SparkError as e:
                found[finalist.name, k] = jvm.cause(e)  # not logged: Spark may succeed when the run is resumed
        return ""

    def explores(self) -> ArmContext:
        """Context of the exploring rows; made at the first call."""
        context, division = self.context, self.division
        return self.shared.once(
            ("explores",), lambda: refit_on_rows(context, division.explores, division.boundaries[0], doubts=True)
        )

    def ground_of(self, k: int) -> ArmContext:
        """Context of fold `k`; made at the first call."""

        def make() -> ArmContext:
            rows, boundaries = self.division.proves[k], self.division.boundaries[1]
            own = self.context
            if not self.division.ships and self.fit_by_spark is not None:  # what this fold's refit is ships
                own = dataclasses.replace(own, fit=self.fit_by_spark)
            context = refit_on_rows(own, rows, boundaries, allTrain=True, fold=k + 2 if self.division.ships else 0)
            check_same_numbers(self.context, context.model, f"fold {k + 2}")
            return context

        return self.shared.once(("fold", k), make)

    def whole(self) -> ArmContext:
        """Context of all rows, from which the shipped pipeline is made; made at the first call."""
        context = self.context
        return self.shared.once(
            ("whole",), lambda: refit_on_rows(context, context.sources, context.boundaries, allTrain=True, fold=0)
        )

    def make_from_all_rows(self, finalist: Finalist) -> Measurement:
        """Make a finalist's pipeline from all rows (see `remake`), only at the first call. If accepted, it ships."""

        def make() -> Measurement:
            whole = self.whole()
            if finalist.role == REFIT and self.fit_by_spark is not None:
                return measure(whole, self.fit_by_spark(whole.sources, whole.boundaries))
            return remake(whole, finalist.candidate.making, self.arms)

        return self.shared.once(("ships", finalist.name), make)

    def _make_early(self, finalist: Finalist, found: Mapping[tuple[str, int], FoldComparison | str]) -> str:
        """Make a finalist from all rows before it is accepted, unless it has already failed in a fold."""
        parallel_tasks.STEP.set({"arm": finalist.candidate.arm, "round": finalist.role})
        if not any(name == finalist.name and isinstance(fold, str) for (name, _), fold in [*found.items()]):
            with contextlib.suppress(Exception):  # if accepted, it is made again and raises its error
                self.make_from_all_rows(finalist)
        return ""

    def ready(self) -> int:
        """Number of contexts that are already made, among those of the folds and the context of all rows."""
        return sum(map(self.shared.has, [("whole",), *(("fold", k) for k in range(self.division.number))]))

    def _measure_rival(self, k: int) -> Measurement:
        return self.ground_of(k).start if self.against is None else self._measure_original(k)

    def _measure_original(self, k: int) -> Measurement:
        """Measure the fitted pipeline on the rows of fold `k`, from its recorded margins if there are margins of all rows."""
        context, whole = self.ground_of(k), self.context.start
        if context.model is self.context.model:
            return context.start
        if not self.division.ships or self.context.rows[TRAIN] > TRAINING_ROWS:
            return measure(context, self.context.model)
        recorded = whole.recorded.among(context.start.recorded.keys)
        with context.open_run(context.plan) as run:
            scores = {s: score(recorded, with_row_hashes(run.data), s, run.goal.metric) for s in run.cache.splits}
        found = dataclasses.replace(whole, scores=scores, recorded=recorded)
        check_same_rows(context.start, found)
        return found

    def _try(self, k: int, finalist: Finalist, rival: Callable[[], Measurement]) -> FoldComparison | str:
        """Make a finalist in fold `k`; return its comparison with the rival, or the reason why the finalist can't be made."""
        try:
            context = self.ground_of(k)
            plain = finalist.role == REFIT and self.against is None
            before = self._measure_original(k) if plain else rival()
            found = remake(context, finalist.candidate.making, self.arms)
            if not self.division.ships:
                self.made[finalist.name] = found.model
            return self._compare(context, before, found)
        except WriteError:
            raise
        except SparkdiffError as e:
            return str(e)

    def _compare(self, context: ArmContext, rival: Measurement, found: Measurement) -> FoldComparison:
        with context.open_run(context.plan) as run:
            exponents: Mapping[str, int] = run.cache.manifest["weights"]
            own, trains = (exponents.get(split, 0) for split in (TEST, TRAIN))
            elsewhere = (rival.scores[TRAIN].blocks - found.scores[TRAIN].blocks) * math.ldexp(1.0, trains - own)
            return decision.compare(
                rival.recorded,
                found.recorded,
                with_row_hashes(run.data),
                run.goal.metric,
                run.task.options,
                exponent=own,
                elsewhere=elsewhere if self.division.factor is None else None,
                training=run.cache.rows(TRAIN) <= TRAINING_ROWS,
            )

    def _decide(self, finalist: Finalist, found: Sequence[FoldComparison | str]) -> FinalistResult:
        failure = next((f"fold {k + 2}: {fold}" for k, fold in enumerate(found) if isinstance(fold, str)), "")
        folds = [fold for fold in found if not isinstance(fold, str)]
        plain = finalist.role == REFIT and self.against is None
        rival = YOURS if self.against is not None or plain else "its refit in the same folds"
        if failure:
            return FinalistResult(finalist, Judgement(NOTHING, None), math.nan, math.nan, rival, (), failure)
        judgement = decision.judge(folds, self.context.options, self.division.factor)
        alike, sign = decision.scaled_alike(folds), self.context.metric.sign
        weight = sum(float(f.rows.weight.sum()) for f in alike)
        before, after = (
            sign * sum(float(getattr(f.rows, side).sum()) for f in alike) / weight for side in ("original", "other")
        )
        return FinalistResult(finalist, judgement, before, after, rival, tuple(alike))

    def no_worse(self, simpler: FinalistResult, reference: FinalistResult | None) -> bool:
        """True if the test shows that a simpler finalist is worse than the reference by less than `maxLoss`.

        Args:
            reference: another finalist; None for the simpler finalist's own rival.
        """
        o, allowance = self.context.options, self.context.settings.maxLoss
        if not allowance or not simpler.folds or simpler.judgement.worse or simpler.judgement.flips:
            return False
        if reference is not None and len(reference.folds) < len(simpler.folds):
            return False
        others = [None] * len(simpler.folds) if reference is None else reference.folds
        folds = [_with_allowance(one, other, allowance) for one, other in zip(simpler.folds, others, strict=False)]
        level = ACCEPT if o.guard >= 1 else guard_level(o)
        return decision.decide_gain(folds, level=level, factor=self.division.factor, seed=o.seed).accepted


def _with_allowance(one: FoldComparison, other: FoldComparison | None, allowance: float) -> FoldComparison:
    """Comparison of a finalist with a reference whose losses are raised by a share of their mean: "not worse" becomes a gain.

    Args:
        one: comparison of the finalist with its rival.
        other: comparison of another finalist with the same rival; then the other finalist is the reference. None: the rival is.
        allowance: the share.
    """
    rows, elsewhere = one.rows, one.elsewhere
    reference = rows.original if other is None else other.rows.other
    if other is not None:
        elsewhere = None if elsewhere is None or other.elsewhere is None else elsewhere - other.elsewhere
    spare = allowance * (reference.sum() / rows.weight.sum()).abs() * rows.weight
    beside = torch.stack([rows.beside[0] - rows.original + reference + spare, rows.beside[1]])
    rows = dataclasses.replace(rows, original=reference + spare, beside=beside)
    return dataclasses.replace(one, rows=rows, training=None, elsewhere=elsewhere)


# What ships -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Decision:
    """The decision of an improvement.

    Attributes:
        proven: results of the tested finalists.
        unproven: finalists that were not tested, for lack of time.
        offers: the offers by name; `BEST` is among them if a finalist is accepted and can ship.
        refused: finalists that were chosen to ship, but can't.
        warnings: warnings about the finalists that were made from all rows.
        rival: the reason why the rival is the fitted original, or its refit; empty if it is obvious.
        shows: see `smallest_gain`; None if there is no best candidate to test.
    """

    proven: tuple[FinalistResult, ...]
    unproven: tuple[Finalist, ...]
    offers: Mapping[str, FinalPipeline]
    refused: tuple[FinalPipeline, ...] = ()
    warnings: tuple[str, ...] = ()
    rival: str = ""
    shows: float | None = None

    @property
    def best(self) -> FinalPipeline | None:
        return self.offers.get(BEST)


def gain_of(proven: FinalistResult) -> float:
    """Gain of a finalist over its rival on the proving rows, as a share of the rival's metric; 0 if it was not tested."""
    loss = sum(float(f.rows.original.sum()) for f in proven.folds)
    gains = sum(float((f.rows.original - f.rows.other).sum()) for f in proven.folds)
    return share_of(gains, loss)


def decide(proof: Proof, chosen: Sequence[Finalist], proven: Sequence[FinalistResult]) -> Decision:
    """Choose the offers among the tested finalists; those that may be offered are made from all rows.

    Args:
        chosen: all finalists.
        proven: the results of the tested finalists.
    """
    made: dict[str, FinalPipeline] = {}

    def ship(one: FinalistResult) -> FinalPipeline:
        name = one.finalist.name
        if name not in made:
            made[name] = _ship(proof, one)
        return made[name]

    def first(wanted: Callable[[FinalistResult], bool]) -> FinalPipeline | None:
        found = (ship(p) for p in accepted if wanted(p))
        return next((s for s in found if s.found is not None), None)

    # Gains over the refit rank above the gain of the refit itself over the user's pipeline.
    accepted = sorted(
        (p for p in proven if p.accepted),
        key=lambda p: (p.finalist.role == REFIT and proof.against is None, -gain_of(p)),
    )
    cost, best = proof.context.start.cost, first(lambda _p: True)
    offers: dict[str, FinalPipeline] = {}
    if best is not None:
        cheap = first(lambda p: p.finalist.candidate.found.cost <= cost)
        same = first(lambda p: p.finalist.candidate.arm not in CHANGES_FORM)
        named = {BEST: best, AS_CHEAP: cheap, SAME_FORM: same}
        offers = {name: s for name, s in named.items() if s is not None and (name == BEST or s is not best)}
    simpler = _simpler(proof, proven, best, ship)
    offers |= {} if simpler is None else {SIMPLER: simpler}
    doubts = [note for s in made.values() for note in s.doubts]
    unproven = tuple(f for f in chosen if not f.folds)
    refused = tuple(s for s in made.values() if s.found is None)
    return Decision(tuple(proven), unproven, offers, refused, tuple(dict.fromkeys(doubts)))


def _ship(proof: Proof, proven: FinalistResult) -> FinalPipeline:
    """Make a finalist from all rows, and check that it may ship.

    Its loss must not be much larger than in the folds, it must not be worse on a slice or on the reference rows (rows that no
    pipeline has seen), not too many labels may change, and no output column that depends on none of the refitted or trained
    stages may change.
    """
    context, judgement, finalist = proof.context, proven.judgement, proven.finalist
    parallel_tasks.STEP.set({"arm": finalist.candidate.arm, "round": finalist.role})
    try:
        if finalist.name in proof.made:
            found = measure(proof.whole(), proof.made[finalist.name])
        else:
            found = proof.make_from_all_rows(finalist)
    except WriteError:
        raise
    except (SparkdiffError, *jvm.SparkError) as e:
        return FinalPipeline(proven, None, judgement, f"it can't be made from all rows: {jvm.message(e)}")
    loss, most = found.scores[TRAIN].mean, decision.largest_loss(proven.folds)
    if not loss <= most:
        value = context.metric.sign * loss
        why = f"made from all rows its {context.metric.name} there is {value:.5g}, worse than on rows of folds"
        return FinalPipeline(proven, None, judgement, why)
    if context.rows.get(REFERENCE):
        judgement = dataclasses.replace(judgement, reference=_reference(context, found, judgement))
    judgement, notes = context.plan.compare_other_outputs(judgement, found.model, context.sources[0].data, context.stay)
    vetoed = judgement.worse or judgement.flips or judgement.outside  # a simpler pipeline needs no gain
    return FinalPipeline(proven, None if vetoed else found, judgement, doubts=tuple(notes))


def _reference(context: ArmContext, found: Measurement, judgement: Judgement) -> slices.Change:
    """Change of the metric on the reference rows, which no pipeline has seen."""
    o = context.options
    with context.open_run(context.start.task) as run:
        [change] = slices.changes(
            run.network,
            found.recorded,
            with_row_hashes(run.data),
            REFERENCE,
            context.metric,
            (),
            unit=unit_of(o),
            level=judgement.level or ACCEPT,
            seed=o.seed,
        )
    return change


def _simpler(
    proof: Proof,
    proven: Sequence[FinalistResult],
    best: FinalPipeline | None,
    ship: Callable[[FinalistResult], FinalPipeline],
) -> FinalPipeline | None:
    """The cheapest pipeline that is not worse than a reference and cheaper to serve; None if there is none.

    The reference is the best offer, or the original if there is no best offer. Two kinds of pipelines count as not worse: exact
    folding (the same outputs by fewer stages), and the deletion of a stage that loses no more than `maxLoss`. With a timeCol no
    deletion is offered, because neighbouring rows depend on each other. If there is no best offer, a deletion is
    offered only if it was compared with the fitted original, because a deletion always includes a refit.
    """
    reference = _figures(proof, best)
    found = [_fold_best(proof, best)]
    if proof.context.options.timeCol is None and (best is not None or proof.against is not None):
        rest = [p for p in proven if best is None or p is not best.proven]
        deletions = [
            p
            for p in rest
            if p.finalist.candidate.arm == "simplify" and p.finalist.candidate.found.cost < reference.cost
        ]
        found += [ship(p) for p in deletions if proof.no_worse(p, None if best is None else best.proven)]
    costs_of = {id(s): s.found.cost for s in found if s is not None and s.found is not None}
    return min((s for s in found if id(s) in costs_of), key=lambda s: costs_of[id(s)], default=None)


def _figures(proof: Proof, best: FinalPipeline | None) -> Measurement:
    """Figures of the best offer, or of the original if there is no best offer."""
    return proof.context.start if best is None or best.found is None else best.found


def _fold_best(proof: Proof, best: FinalPipeline | None) -> FinalPipeline | None:
    """The best pipeline, or the original if nothing is better, after folding; None if `fold_stages` returns None."""
    reference = _figures(proof, best)
    model = fold_stages(proof.context, reference.model)
    if model is None:
        return None
    name = "compacted" if best is None else f"{best.proven.finalist.candidate.name}, compacted"
    found = measure(proof.context, model)
    finalist = Finalist(SIMPLER, Candidate("simplify", name, found, CandidateRecipe("simplify"), exact=True))
    if best is None:
        unproven = FinalistResult(finalist, Judgement(NOTHING, None), math.nan, math.nan, "")
        return FinalPipeline(unproven, found, unproven.judgement)
    return FinalPipeline(dataclasses.replace(best.proven, finalist=finalist), found, best.judgement)
