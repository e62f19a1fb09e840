"""The summary of a growth: that of fine-tuning, with the rounds, the parts, and what serving costs."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.report import FineTuningSummary, Section, SectionTable


@dataclasses.dataclass(frozen=True, repr=False)
class GrowthSummary(FineTuningSummary):
    """The report of one growth. `print(summary)` shows the before/after table, the rounds and the parts.

    Its other attributes are those of `FineTuningSummary`; the decision is "grown" or "kept original".

    Attributes:
        rounds: an entry for everything that a round tried: {"round", "kind", "name", "gain" (of validation rows, as a share of
            the original's metric), "objective", "parameters", "cost", "seconds", "epoch", "why"}; `why` is empty for the part
            that joined, else says why it did not.
        parts: an entry for each part that joined: {"kind", "name", "round", "gain" (of validation rows, as it joined), "cost",
            "parameters", "dropped", "shown" (what it learned, as rows of a table)}.
        servingCost: {"before", "after", "limit"}: microseconds per row by the table of costs, the limit None without one.
        attribution: where the gain comes from, entries {"what", "gain" (of validation rows over the original, as a share of its
            metric), "cost" (of the whole pipeline)}: "fine-tuned alone", which is the original's stages trained without any part;
            each part, with those before it, as they joined; and all of it "trained together". Empty if the original was kept;
            without the first entry if maxSeconds was over.
    """

    __module__ = "sparkdiff"

    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    servingCost: dict[str, float | None] = dataclasses.field(default_factory=dict)
    attribution: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def _headline(self) -> str:
        joined = [p["name"] for p in self.parts if not p["dropped"]]
        return f"{super()._headline()}" + (f"; parts: {', '.join(joined)}" if joined else "")

    def _sections(self) -> Iterator[Section]:
        yield from super()._sections()
        if self.rounds:
            yield rounds_table(self.rounds)
        yield from parts_lines(self.parts, self.servingCost)
        if self.attribution:
            rows = [(a["what"], f"{a['gain']:+.2%}", f"{a['cost']:.2f}") for a in self.attribution]
            yield SectionTable([("the gain by what brings it", "gain", "us/row"), *rows], left=(0,))


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> SectionTable:
    """What each round tried, the part that joined marked."""
    rows = [("round", "part", "gain", "us/row", "s", "")]
    for r in rounds:
        told = "joined" if not r["why"] else r["why"]
        rows.append((str(r["round"]), r["name"], f"{r['gain']:+.2%}", f"{r['cost']:.2f}", f"{r['seconds']:.1f}", told))
    return SectionTable(rows, left=(0, 1, 5))


def parts_lines(parts: Sequence[Mapping[str, Any]], cost: Mapping[str, float | None]) -> list[str]:
    """The parts of the grown pipeline, and what serving costs."""
    out = []
    for p in parts:
        gone = ", dropped at the end: it is not missed" if p["dropped"] else ""
        out.append(f"part {p['name']} ({p['kind']}, round {p['round']}, {p['parameters']:,} parameters{gone})")
    before, after = cost.get("before"), cost.get("after")
    if before and after and not math.isclose(before, after):
        out.append(f"serving: {before:.2f} -> {after:.2f} us per row by the table of costs ({after / before:.1f}x)")
    return out
