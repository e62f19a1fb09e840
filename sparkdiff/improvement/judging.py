"""One test over all that the arms measured, and which pipelines may be offered."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparkdiff import jvm
from sparkdiff.data.splits import REFERENCE, TRAIN, VALIDATION
from sparkdiff.diagnostics import rows as datachecks
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import Judgement, judge
from sparkdiff.evaluation.ledger import Ledger
from sparkdiff.evaluation.recorded import keyed
from sparkdiff.fine_tuning.starting_point import TRAINING_ROWS
from sparkdiff.improvement.candidate import ROUNDING, Candidate, Step, share, whole_ledger
from sparkdiff.improvement.folding import folded
from sparkdiff.improvement.ground import Ground, allowed, measure
from sparkdiff.improvement.settings import CHANGES_FORM

BEST, AS_CHEAP, SAME_FORM, SIMPLER = "best", "asCheap", "sameForm", "simpler"
"""The names of offers: the largest gain; of those that cost no more to serve than the original; of those with the original's
stages; one with fewer stages that serves cheaper and loses nothing."""
ACCEPT = 0.025
"""The p-value that a simpler pipeline needs where any gain is accepted."""


@dataclasses.dataclass(frozen=True)
class JudgedCandidate:
    """A candidate and the decision about it.

    Attributes:
        p: adjusted for everything that all arms measured, and for several offers (`guard.step_down`).
        column: of the family of tests.
        accepted: whether its gain is larger than chance explains, and nothing speaks against it.
    """

    candidate: Candidate
    judgement: Judgement
    p: float
    column: int

    @property
    def accepted(self) -> bool:
        return self.judgement.accepted


@dataclasses.dataclass(frozen=True)
class Decision:
    """What may be offered.

    Attributes:
        judged: the best candidate of each arm, the one with the largest gain first.
        offers: by name; `BEST` is among them if anything is accepted.
        warnings: about the rows that decide.
        measured: how many columns of gains the test covers.
    """

    judged: tuple[JudgedCandidate, ...]
    offers: Mapping[str, JudgedCandidate]
    warnings: tuple[str, ...]
    measured: int

    @property
    def best(self) -> JudgedCandidate | None:
        return self.offers.get(BEST)


@dataclasses.dataclass(frozen=True)
class TestedFamily:
    """All that one test covers: that anything gains, and that anything simpler loses no more than `maxLoss`.

    Attributes:
        gains: (C, B) of everything that the arms measured, then, for everything that the arm `simplify` measured, the gain over
            the original and the allowed loss, and likewise over the leader.
        weights: (B,).
        leader: the column with the largest gain; -1 where none gains.
        spared: (column, what it is compared with: -1 the original) -> the row of `gains`.
    """

    gains: torch.Tensor
    weights: torch.Tensor
    leader: int
    spared: Mapping[tuple[int, int], int]

    def p(self, row: int, verdict: guard.Verdict, seed: int) -> float:
        """The p-value of a row, adjusted for all others: `guard.step_down`."""
        held, missing = self.weights > 0, torch.zeros(len(self.gains), dtype=torch.float64)
        missing[row] = verdict.missing
        found = guard.step_down(
            self.gains[:, held], level=verdict.level, joined=verdict.joined, seed=seed, missing=missing
        )  # fmt: skip
        return float(found[row])


def decide(ground: Ground, steps: Sequence[Step]) -> Decision:
    """Judge the best candidate of each arm, and the best of those that serve as cheaply as the original."""
    ledger, candidates = whole_ledger(ground, steps)
    order = sorted(candidates, key=lambda k: (-share(ground, candidates[k]), k))
    worth = _finalists(ground, [(k, candidates[k]) for k in order if allowed(ground, candidates[k].found.cost)])
    family = family_of(ground, steps, ledger, worth[0][0] if worth else -1)
    with ground.begun(ground.start.task) as run:
        data, reference, notes = keyed(run.data), bool(run.cache.rows(REFERENCE)), list[str]()
        held, training = ground.start.scores[VALIDATION], run.cache.rows(TRAIN) <= TRAINING_ROWS

        def judged(column: int, candidate: Candidate) -> JudgedCandidate:
            gained = float(ledger.gains[column].sum()) > 0
            own = dataclasses.replace(ledger, chosen=column if gained else -1)
            networks = (run.network, candidate.found.recorded)
            found = judge(
                run.task.options, data, run.goal.metric, networks, own, reference=reference, training=training, always=True,
                given=ground.given,
            )  # fmt: skip
            found, more = _compared_outside(ground, candidate.name, found, candidate.model)
            notes.extend(more)
            return _stepped(candidate, found, column, family, ground)

        all_judged = tuple(judged(k, c) for k, c in worth)
        first = next((j for j in all_judged if j.judgement.verdict.best >= 0), None)
        notes += [] if first is None else _few(ledger, first, held.mean)
    warnings = tuple(dict.fromkeys(notes))
    return with_folded(ground, Decision(all_judged, _offers(ground, all_judged, family), warnings, len(ledger.gains)))


def family_of(ground: Ground, steps: Sequence[Step], ledger: Ledger, leader: int) -> TestedFamily:
    """All that is tested.

    Args:
        leader: the column of the best candidate that may be offered.
    """
    gains = ledger.gains
    leader = leader if leader >= 0 and float(gains[leader].sum()) > 0 else -1
    rows, spared, first, allowance = [gains], dict[tuple[int, int], int](), 0, ground.settings.maxLoss
    before = ground.start.scores[VALIDATION]
    for step in steps:
        exact = {c.column for c in step.candidates if c.exact}
        simpler = [k for k in range(len(step.gains)) if k not in exact] if step.arm == "simplify" else []
        for beside in (-1, leader) if allowance and simpler and leader >= 0 else (-1,) if allowance and simpler else ():
            over = torch.zeros_like(before.blocks) if beside < 0 else gains[beside]
            mean = (before.blocks - over).sum() / before.weights.sum()
            spared |= {(first + k, beside): sum(map(len, rows)) + i for i, k in enumerate(simpler)}
            rows.append(step.gains[simpler] - over + allowance * mean.abs() * before.weights)
        first += len(step.gains)
    return TestedFamily(torch.cat(rows), ledger.weights, leader, spared)


def _finalists(ground: Ground, ordered: Sequence[tuple[int, Candidate]]) -> list[tuple[int, Candidate]]:
    """The best of each arm, the best that is as cheap to serve, and what is exact, in the order of their gains."""
    arms, found, cheap = set[str](), list[tuple[int, Candidate]](), False
    for column, candidate in ordered:
        if candidate.exact:  # not a gain, so that it takes no other's place
            found.append((column, candidate))
            continue
        is_cheap = candidate.found.cost <= ground.start.cost
        if candidate.arm not in arms or (is_cheap and not cheap):
            found.append((column, candidate))
        arms.add(candidate.arm)
        cheap = cheap or is_cheap
    return found


def _stepped(
    candidate: Candidate, found: Judgement, column: int, family: TestedFamily, ground: Ground
) -> JudgedCandidate:  # fmt: skip
    """The judgement with a p-value that allows for several offers."""
    verdict = found.verdict
    if verdict.best < 0 or verdict.level >= 1 or verdict.against or ground.metric.denominators is not None:
        return JudgedCandidate(candidate, found, verdict.p, column)
    p = family.p(column, verdict, ground.options.seed)
    verdict = dataclasses.replace(verdict, p=p, accepted=p < verdict.level)
    return JudgedCandidate(candidate, dataclasses.replace(found, verdict=verdict), p, column)


def _compared_outside(ground: Ground, name: str, judgement: Judgement, model: Any) -> tuple[Judgement, list[str]]:
    """The judgement of a candidate with what it changes outside the loss, and warnings."""
    judgement, notes = ground.plan.compared_outside(judgement, model, ground.sources[0].df, ground.stay)
    return judgement, [f"{name!r} is not offered: {change}" for change in judgement.outside] + notes


def _few(ledger: Ledger, first: JudgedCandidate, original: float) -> tuple[str, ...]:
    return tuple(datachecks.too_few_rows(ledger.gains, ledger.weights, first.judgement.verdict, original))


def _offers(ground: Ground, judged: Sequence[JudgedCandidate], family: TestedFamily) -> dict[str, JudgedCandidate]:
    accepted = [j for j in judged if j.accepted]
    found: dict[str, JudgedCandidate] = {}
    if accepted:
        found[BEST] = accepted[0]
        cheap = next((j for j in accepted if j.candidate.found.cost <= ground.start.cost), None)
        same = next((j for j in accepted if j.candidate.arm not in CHANGES_FORM), None)
        found |= {
            name: j for name, j in ((AS_CHEAP, cheap), (SAME_FORM, same)) if j is not None and j is not accepted[0]
        }
    simpler = _simpler(ground, [j for j in judged if not j.judgement.outside], found.get(BEST), family)
    return found if simpler is None else found | {SIMPLER: simpler}


def _simpler(
    ground: Ground, judged: Sequence[JudgedCandidate], best: JudgedCandidate | None, family: TestedFamily
) -> JudgedCandidate | None:
    """The cheapest pipeline that serves cheaper than the best, or than the original where nothing is better, and is not worse.

    Not worse is what is exact, and a deletion that loses no more than `maxLoss`: non-inferiority, one more hypothesis of the same
    test. With a timeCol no deletion is offered: neighbouring rows depend on each other.
    """
    if best is None and ground.given is not None:  # only what is made of the refit is at hand
        return None
    reference = ground.start if best is None else best.candidate.found
    cheaper = [j for j in judged if j.candidate.arm == "simplify" and j.candidate.found.cost < reference.cost]
    exact = [j for j in cheaper if j.candidate.exact and best is None]
    deleted = [j for j in cheaper if not j.candidate.exact]
    if deleted and (best is None or best not in deleted) and ground.options.timeCol is None:
        least = min(deleted, key=lambda j: j.candidate.found.scores[VALIDATION].mean)
        exact += [least] if _no_worse(ground, least, best, family) else []
    return min(exact, key=lambda j: j.candidate.found.cost, default=None)


def _no_worse(ground: Ground, simpler: JudgedCandidate, best: JudgedCandidate | None, family: TestedFamily) -> bool:
    row = family.spared.get((simpler.column, -1 if best is None else best.column))
    against, verdict = simpler.judgement, simpler.judgement.verdict
    if (
        row is None or against.worse or against.flips or verdict.untested
    ):  # None: the best is another one than the leader, or nothing may be lost
        return False
    if verdict.level >= 1:  # whoever accepts any gain still wants to know what it loses
        verdict = dataclasses.replace(verdict, level=ACCEPT)
    return family.p(row, verdict, ground.options.seed) < verdict.level


def with_folded(ground: Ground, decision: Decision) -> Decision:
    """The decision with the best pipeline folded as the simpler one, where that is cheaper to serve than what is offered."""
    best, offered = decision.best, decision.offers.get(SIMPLER)
    model = None if best is None else folded(ground, best.candidate.model)
    if best is None or model is None:
        return decision
    name = f"{best.candidate.name}, compacted"
    try:
        found = measure(ground, model)
    except (InputError, ParityError, *jvm.SparkError) as e:
        why = jvm.cause(e) if isinstance(e, jvm.SparkError) else str(e)
        return dataclasses.replace(decision, warnings=(*decision.warnings, f"{name}: {why}"))
    before = best.candidate.found.scores[VALIDATION].blocks
    apart = float((found.scores[VALIDATION].blocks - before).abs().sum())
    judgement, notes = _compared_outside(ground, name, best.judgement, model)
    if judgement.outside:
        return dataclasses.replace(decision, warnings=(*decision.warnings, *notes))
    if apart > ROUNDING * float(before.abs().sum()) or (offered and offered.candidate.found.cost <= found.cost):
        return decision
    simpler = dataclasses.replace(
        best, candidate=dataclasses.replace(best.candidate, name=name, found=found, exact=True)
    )
    at = decision.judged.index(best) + 1
    judged = (*decision.judged[:at], simpler, *decision.judged[at:])
    return dataclasses.replace(decision, judged=judged, offers={**decision.offers, SIMPLER: simpler})
