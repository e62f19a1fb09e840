"""Summary of a growth: the summary of fine-tuning, plus the rounds, the parts (added stages), and the serving costs."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.report import FineTuningSummary, Section, SectionTable, signed


@dataclasses.dataclass(frozen=True, repr=False)
class GrowthSummary(FineTuningSummary):
    """The report of one growth. `print(summary)` shows the before/after table, the rounds and the parts.

    Its other attributes are those of `FineTuningSummary`. The decision is "grown", "improved" (a refit of the original
    without any part replaces the original) or "kept original". Rounds and parts describe growth on all rows if a grown
    pipeline ships; they describe growth on the exploring rows if no grown pipeline ships, or if only trees are tried.

    Attributes:
        rounds: an entry for each part that a round tried: {"round", "kind", "name", "gain" (on the validation rows of
            growth, as a share of the original's metric), "objective" (metric plus penalty), "parameters", "cost",
            "seconds", "epoch", "why" (the reason why the part did not join; empty if it joined)}.
        parts: an entry for each part that joined: {"kind", "name", "round", "gain" (on the same rows, when the part joined),
            "cost", "parameters", "dropped", "shown" (what the part learned, as rows of a table)}.
        servingCost: {"before", "after", "limit"}: microseconds per row according to the cost table; the limit is None if unset.
        fineTunedGain: gain on the exploring rows, as a share of the metric, if the original's stages are trained without any
            part; None if no grown pipeline ships or maxSeconds was over.
    """

    __module__ = "sparkdiff"

    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    servingCost: dict[str, float | None] = dataclasses.field(default_factory=dict)
    fineTunedGain: float | None = None

    def _headline(self) -> str:
        joined = [p["name"] for p in self.parts if self.decision == "grown" and not p["dropped"]]
        return f"{super()._headline()}" + (f"; parts: {', '.join(joined)}" if joined else "")

    def _sections(self) -> Iterator[Section]:
        yield from super()._sections()
        if self.rounds:
            yield rounds_table(self.rounds)
        before, after = self.servingCost.get("before"), self.servingCost.get("after")
        if self.fineTunedGain is not None:
            yield f"fine-tuned alone: {signed(self.fineTunedGain, 2)} at {before:.2f} us per row"
        for p in self.parts:
            gone = ", dropped at the end: it is not missed" if p["dropped"] else ""
            told = f"{p['kind']}, round {p['round']}, {p['parameters']:,} parameters{gone}"
            yield f"part {p['name']} ({told}): {signed(p['gain'], 2)} as it joined, at {p['cost']:.2f} us per row"
        if before and after and not math.isclose(before, after):
            yield f"serving: {before:.2f} -> {after:.2f} us per row by the table of costs ({after / before:.1f}x)"


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> SectionTable:
    """Table of the parts that each round tried; the part that joined is marked."""
    rows = [("round", "part", "gain", "us/row", "s", "")]
    for r in rounds:
        figures = (signed(r["gain"], 2), f"{r['cost']:.2f}", f"{r['seconds']:.1f}")
        rows.append((str(r["round"]), r["name"], *figures, r["why"] or "joined"))
    return SectionTable(rows, left=(0, 1, 5))
