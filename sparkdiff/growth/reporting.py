"""Makes the summary of a growth from what its phases found."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparkdiff.data.splits import VALIDATION
from sparkdiff.diagnostics import rows as datachecks
from sparkdiff.evaluation.acceptance import reason, ways_to_decide
from sparkdiff.fine_tuning.summary import facts, measured, shown_options, tested, trained_facts, untrained, warnings_of
from sparkdiff.fine_tuning.values import Judged, Measured, Run
from sparkdiff.growth.finishing import Finished
from sparkdiff.growth.rounds import Grown, Member, Tried
from sparkdiff.growth.serving import Serving
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.growth.summary import GrowthSummary
from sparkdiff.growth.table import Table
from sparkdiff.options import Options, without_effect
from sparkdiff.pipeline.parity import Parity
from sparkdiff.report import RemainingTime, advance


class RoundProgress:
    """Lines about the rounds: how far they are, what they have gained, and how long the one that runs may still take."""

    def __init__(self, rounds: int, clock: Callable[[], float] = time.monotonic):
        self.rounds, self.clock, self.gain, self.number, self.pace = rounds, clock, 0.0, 0, RemainingTime(clock)

    def item(self, number: int, done: int, most: int) -> str:
        """So many of the parts that a round tries are trained."""
        if number != self.number:
            self.number, self.pace = number, RemainingTime(self.clock)
        gained = f"{self.gain:+.1%}" if self.gain else ""
        return advance(
            "round", number, self.rounds, gained, f"{done} of {most} parts trained", seconds=self.pace.left(done, most)
        )

    def joined(self, tried: Sequence[Tried]) -> str:
        """What a round has come to."""
        best = next((t for t in tried if not t.why), None)
        self.gain += best.gain if best else 0.0
        what = f"{best.name} joins, {self.gain:+.1%}" if best else "nothing gains"
        return advance("round", tried[0].round, self.rounds, what)


@dataclasses.dataclass(frozen=True)
class Told:
    """What the rounds tell the summary.

    Attributes:
        gone: members that were dropped.
        serving: what pipelines cost to serve.
        doubts: warnings that came before the rounds.
    """

    settings: GrowthSettings
    grown: Grown
    gone: tuple[Member, ...]
    serving: Serving
    doubts: Sequence[str]

    @property
    def warnings(self) -> list[str]:
        """Those that came before the grown pipeline was trained."""
        stopped = [f"growth stopped early: {self.grown.stopped}"] if self.grown.late else []
        reads_none = (self.settings.parts == ("units",), "units read no entities, and no other parts are tried")
        idle = without_effect(self.settings, {"entityCols": reads_none})
        return [*self.doubts, *idle, *stopped, *of_a_sample(self.grown.table), *rows_without_entity(self.grown)]

    def fields(self, after: float) -> dict[str, Any]:
        """The fields of a summary that only growth has.

        Args:
            after: what the result costs to serve.
        """
        limit = None if math.isinf(self.serving.limit) else self.serving.limit
        gains = {t.round: t.gain for t in self.grown.tried if not t.why}
        parts = [
            {
                "kind": m.part.kind, "name": m.part.name, "round": m.round, "gain": gains[m.round],
                "cost": self.serving.share(m.part), "parameters": m.part.parameters, "dropped": m in self.gone,
                "shown": m.part.shown(),
            }
            for m in sorted((*self.grown.members, *self.gone), key=lambda m: m.round)
        ]  # fmt: skip
        cost = {"before": self.serving.before, "after": after, "limit": limit}
        return {"rounds": [dataclasses.asdict(t) for t in self.grown.tried], "parts": parts, "servingCost": cost}


def of_a_sample(table: Table) -> list[str]:
    """A warning where not all training rows fit into memory."""
    told = f"parts learned from {table.sampled}, as many as there is room for in memory; all of them trained the whole"
    return [told] if table.sampled else []


def rows_without_entity(grown: Grown) -> list[str]:
    """Warnings of entities that parts read and that training rows lack: StringIndexer gives null and unknown values one index."""
    read = {column for m in grown.members for column in m.part.served(0.0).columns}
    columns = zip(grown.table.columns, grown.table.unknown, strict=True)
    lacking = [(c.name, lack) for c, lack in columns if c.entity and c.column in read and lack]
    return [
        f"{lack:,} training rows have no {name}: a {name} that no training row has counts as one of them"
        for name, lack in lacking
    ]


def without_parts(run: Run, original: Measured, told: Told) -> GrowthSummary:
    """The summary where no part joined, or all were dropped."""
    fields = told.fields(told.serving.before)
    options = told.settings.asdict()
    why = _why_none(told, run.task.options)
    return untrained(GrowthSummary, run, original, told.warnings, why, options, **fields)


def _why_none(told: Told, options: Options) -> str:
    """The reason where no part is left, which ends with the way out."""
    s, grown = told.settings, told.grown
    if told.gone:
        return (
            f"the parts that joined are not missed, so all of them were dropped (maxLoss={s.maxLoss:g}); to keep them, set "
            "maxLoss=0, which drops none"
        )
    way = "to propose more, name more kinds in parts, or columns in entityCols"
    if grown.late:
        way = f"to train more parts, raise maxSeconds={options.maxSeconds:g}"
    elif grown.tried:
        lower = " or ".join(f"{k}={v:g}" for k, v in (("maxLoss", s.maxLoss), ("complexity", s.complexity)) if v > 0)
        way = f"{f'to let smaller gains join, lower {lower}; ' if lower else ''}{ways_to_decide(options, folds=False)}"
    return f"no part joined: {grown.stopped}; {way}"


def with_parts(done: Finished, parity: Parity | None, after: Measured, told: Told, cost: float) -> GrowthSummary:
    """The summary of what the guard decided.

    Args:
        parity: of the original.
        after: the metrics of the result.
        cost: what the result costs to serve.
    """
    run, judgement, fitted = done.run, done.judgement, done.fitted
    compared = {"before": parity, "grown": done.start.parity, "after": after.parity}
    few = datachecks.too_few_rows(
        done.ledger.gains, done.ledger.weights, judgement.verdict, done.before.scores[VALIDATION].mean
    )
    judged, own = Judged(judgement, done.tuned, few), after.scores[VALIDATION]
    return GrowthSummary(
        decision="grown" if judgement.accepted else "kept original", reason=_why(done),
        options=shown_options(run.task, run.goal.metric, **told.settings.asdict()),
        warnings=warnings_of(run, fitted, judged, own, told.warnings), **facts(run), **tested(judgement),
        **measured(done.before, after), **trained_facts(fitted, compared, judgement.accepted), **told.fields(cost),
    )  # fmt: skip


def _why(done: Finished) -> str:
    run, judgement, held = done.run, done.judgement, done.before.scores[VALIDATION]
    history = done.fitted.found.history
    return reason(
        judgement,
        run.task.options,
        run.goal.metric,
        held.value,
        history,
        whose="the grown pipeline's",
        folds=False,
        divided=run.divided,
    )
