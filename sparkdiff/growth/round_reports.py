"""Progress lines, warnings and summary fields of a growth, from the results of its rounds."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparkdiff.evaluation.acceptance import ways_to_decide
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.rounds import GrowthResult, ItemReport, Member
from sparkdiff.growth.row_tensors import Table
from sparkdiff.growth.serving_cost import ServingCostModel
from sparkdiff.options import Options, without_effect
from sparkdiff.report import RemainingTime, advance, signed


class RoundProgress:
    """Progress lines about the rounds: parts trained, gain so far, and estimated time left in the current round."""

    def __init__(self, rounds: int, clock: Callable[[], float] = time.monotonic):
        self.rounds, self.clock, self.gain, self.number, self.pace = rounds, clock, 0.0, 0, RemainingTime(clock)

    def item(self, number: int, done: int, most: int) -> str:
        """Progress line after `done` of the `most` items of a round are trained."""
        if number != self.number:
            self.number, self.pace = number, RemainingTime(self.clock)
        gained = signed(self.gain) if self.gain else ""
        return advance(
            "round",
            number,
            self.rounds,
            gained,
            f"{done} of {most} parts trained",
            seconds=self.pace.seconds_left(done, most),
        )

    def end_round(self, tried: Sequence[ItemReport]) -> str:
        """Line with the outcome of a round: the part that joined, and the gain so far."""
        best = next((t for t in tried if not t.why), None)
        self.gain += best.gain if best else 0.0
        what = f"{best.name} joins, {signed(self.gain)}" if best else "nothing gains"
        return advance("round", tried[0].round, self.rounds, what)


def growth_warnings(settings: GrowthSettings, grown: GrowthResult) -> list[str]:
    """Warnings known before all stages of the grown pipeline are trained together."""
    stopped = [f"growth stopped early: {grown.stopped}"] if grown.late else []
    reads_none = (settings.parts == ("units",), "units read no entities, and no other parts are tried")
    idle = without_effect(settings, {"entityCols": reads_none})
    return [*idle, *stopped, *of_a_sample(grown.table), *rows_without_entity(grown)]


def summary_fields(grown: GrowthResult, gone: Sequence[Member], serving: ServingCostModel) -> dict[str, Any]:
    """Fields of the summary that only growth has. `servingCost` has only its limit so far.

    Args:
        gone: members that were dropped at the end.
    """
    limit = None if math.isinf(serving.limit) else serving.limit
    gains = {t.round: t.gain for t in grown.tried if not t.why}
    parts = [
        {
            "kind": m.part.kind,
            "name": m.part.name,
            "round": m.round,
            "gain": gains[m.round],
            "cost": serving.share(m.part),
            "parameters": m.part.parameters,
            "dropped": m in gone,
            "shown": m.part.learned_table(),
        }
        for m in sorted((*grown.members, *gone), key=lambda m: m.round)
    ]
    rounds = [dataclasses.asdict(t) for t in grown.tried]
    return {"rounds": rounds, "parts": parts, "servingCost": {"limit": limit}}


def of_a_sample(table: Table) -> list[str]:
    """A warning if parts were trained on a sample, because not all training rows fit into memory; else empty."""
    told = (
        f"parts learned from {table.sample_text}, as many as there is room for in memory; all of them trained the whole"
    )
    return [told] if table.sample_text else []


def rows_without_entity(grown: GrowthResult) -> list[str]:
    """Warnings about entities that are read by parts and missing in some training rows.

    StringIndexer gives null and unknown values the same index, so a new value of the entity gets the effect of missing ones.
    """
    read = {column for m in grown.members for column in m.part.serving_work(0.0).columns}
    return [
        f"{lack:,} training rows have no {c.name}: a {c.name} that no training row has counts as one of them"
        for c, lack in zip(grown.table.columns, grown.table.unknown, strict=True)
        if c.entity and c.column in read and lack
    ]


def why_none(settings: GrowthSettings, grown: GrowthResult, gone: Sequence[Member], options: Options) -> str:
    """Reason why no part was added to the pipeline, and advice to the user.

    Args:
        gone: members that were dropped at the end.
    """
    if gone:
        return (
            f"the parts that joined are not missed, so all of them were dropped (maxLoss={settings.maxLoss:g}); to keep them, "
            "set maxLoss=0, which drops none"
        )
    way = "to propose more, name more kinds in parts, or columns in entityCols"
    if grown.late:
        way = f"to train more parts, raise maxSeconds={options.maxSeconds:g}"
    elif grown.tried:
        limits = {"maxLoss": settings.maxLoss, "complexity": settings.complexity}
        lower = " or ".join(f"{name}={limit:g}" for name, limit in limits.items() if limit > 0)
        way = f"{f'to let smaller gains join, lower {lower}; ' if lower else ''}{ways_to_decide(options, folds=False)}"
    return f"no part joined: {grown.stopped}; {way}"
