"""One test over all that the arms measured, and which pipelines may be offered."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from sparkdiff.data.splits import REFERENCE, VALIDATION
from sparkdiff.diagnostics import rows as datachecks
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.acceptance import Judgement, judge
from sparkdiff.evaluation.ledger import Ledger
from sparkdiff.evaluation.recorded import keyed
from sparkdiff.improvement.candidate import Candidate, Step, share, whole_ledger
from sparkdiff.improvement.ground import Ground, allowed
from sparkdiff.improvement.settings import CHANGES_FORM

BEST, AS_CHEAP, SAME_FORM, SIMPLER = "best", "asCheap", "sameForm", "simpler"
"""The names of offers: the largest gain; of those that cost no more to serve than the original; of those with the original's
stages; one with a stage less that loses nothing."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A candidate and the decision about it.

    Attributes:
        p: adjusted for everything that all arms measured, and for several offers (`guard.step_down`).
        accepted: whether its gain is larger than chance explains, and nothing speaks against it.
    """

    candidate: Candidate
    judgement: Judgement
    p: float

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

    judged: tuple[Judged, ...]
    offers: Mapping[str, Judged]
    warnings: tuple[str, ...]
    measured: int

    @property
    def best(self) -> Judged | None:
        return self.offers.get(BEST)


def decide(ground: Ground, steps: Sequence[Step]) -> Decision:
    """Judge the best candidate of each arm, and the best of those that serve as cheaply as the original."""
    ledger, candidates = whole_ledger(ground, steps)
    order = sorted(candidates, key=lambda k: (-share(ground, candidates[k]), k))
    worth = _finalists(ground, [(k, candidates[k]) for k in order if allowed(ground, candidates[k].found.cost)])
    with ground.begun(ground.start.task) as run:
        data, reference = keyed(run.data), bool(run.cache.rows(REFERENCE))
        held = ground.start.scores[VALIDATION]

        def judged(column: int, candidate: Candidate) -> Judged:
            gained = float(ledger.gains[column].sum()) > 0
            own = dataclasses.replace(ledger, chosen=column if gained else -1)
            networks = (run.network, candidate.found.recorded)
            found = judge(
                run.task.options, data, run.goal.metric, networks, own, held, reference=reference, always=True
            )
            return _stepped(candidate, found, column, own, ground.options.seed)

        all_judged = tuple(judged(k, c) for k, c in worth)
        first = next((j for j in all_judged if j.judgement.verdict.best >= 0), None)
        warnings = () if first is None else _few(ledger, first, held.mean)
    return Decision(all_judged, _offers(ground, all_judged, steps), warnings, len(ledger.gains))


def _finalists(ground: Ground, ordered: Sequence[tuple[int, Candidate]]) -> list[tuple[int, Candidate]]:
    """The best of each arm and the best that is as cheap to serve, in the order of their gains."""
    arms, found, cheap = set[str](), list[tuple[int, Candidate]](), False
    for column, candidate in ordered:
        is_cheap = candidate.found.cost <= ground.start.cost
        if candidate.arm not in arms or (is_cheap and not cheap):
            found.append((column, candidate))
        arms.add(candidate.arm)
        cheap = cheap or is_cheap
    return found


def _stepped(candidate: Candidate, found: Judgement, column: int, ledger: Ledger, seed: int) -> Judged:
    """The judgement with a p-value that allows for several offers."""
    verdict = found.verdict
    if verdict.best < 0 or verdict.level >= 1:
        return Judged(candidate, found, verdict.p)
    held = ledger.weights > 0
    p = float(guard.step_down(ledger.gains[:, held], level=verdict.level, joined=verdict.joined, seed=seed)[column])
    verdict = dataclasses.replace(verdict, p=p, accepted=p < verdict.level)
    return Judged(candidate, dataclasses.replace(found, verdict=verdict), p)


def _few(ledger: Ledger, first: Judged, original: float) -> tuple[str, ...]:
    return tuple(datachecks.too_few_rows(ledger.gains, ledger.weights, first.judgement.verdict, original))


def _offers(ground: Ground, judged: Sequence[Judged], steps: Sequence[Step]) -> dict[str, Judged]:
    accepted = [j for j in judged if j.accepted]
    found: dict[str, Judged] = {}
    if accepted:
        found[BEST] = accepted[0]
        cheap = next((j for j in accepted if j.candidate.found.cost <= ground.start.cost), None)
        same = next((j for j in accepted if j.candidate.arm not in CHANGES_FORM), None)
        found |= {
            name: j for name, j in ((AS_CHEAP, cheap), (SAME_FORM, same)) if j is not None and j is not accepted[0]
        }
    simpler = _simpler(ground, judged, found.get(BEST), steps)
    return found if simpler is None else found | {SIMPLER: simpler}


def _simpler(
    ground: Ground, judged: Sequence[Judged], best: Judged | None, steps: Sequence[Step]
) -> Judged | None:  # fmt: skip
    """The pipeline with a stage less that serves cheaper than the best and is not worse by more than `maxLoss`.

    A test of non-inferiority at the guard's level, which covers all that the arm measured: the best of many deletions looks
    better than it is. With a timeCol there is none: neighbouring rows depend on each other.
    """
    o, spared = ground.options, ground.settings.maxLoss
    reference = ground.start if best is None else best.candidate.found
    tried = [j for j in judged if j.candidate.arm == "simplify" and j.candidate.found.cost < reference.cost]
    if not tried or not spared or o.timeCol is not None or (best is not None and best in tried):
        return None
    whole = reference.scores[VALIDATION]
    least = min(tried, key=lambda j: j.candidate.found.scores[VALIDATION].mean)
    gains, column = _simplified(steps, least.candidate)
    gains = gains - (ground.start.scores[VALIDATION].blocks - whole.blocks)
    unit: Literal["rows", "groups"] = "groups" if o.groupCol else "rows"
    units = int((whole.weights > 0).sum()) if o.groupCol else ground.rows[VALIDATION]
    level = o.guard / o.fleetSize if o.guard < 1 else 0.025
    if units < guard.MIN_UNITS:
        return None
    better = gains + spared * abs(whole.mean) * whole.weights
    verdict = guard.decide(better, whole.weights, chosen=column, level=level, unit=unit, units=units, seed=o.seed)
    against = least.judgement
    return least if verdict.accepted and not against.worse and not against.flips else None


def _simplified(steps: Sequence[Step], candidate: Candidate) -> tuple[torch.Tensor, int]:
    """The gains (C, B) of all that the arm of a candidate measured, and which of these columns is the candidate's."""
    own, column, first = [s for s in steps if s.arm == candidate.arm], -1, 0
    for step in own:
        if any(c is candidate for c in step.candidates):
            column = first + candidate.column
        first += len(step.gains)
    return torch.cat([s.gains for s in own]), column
