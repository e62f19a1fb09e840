"""Summary of an improvement: the summary of fine-tuning, plus the arms, a table of the tested finalists, and an explanation.

Arms are ways to improve a pipeline. They compete on the exploring rows; the best candidates, the finalists, are tested on the
proving rows.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.report import FineTuningSummary, Section, SectionTable, StrongLine, p_value, signed
from sparkdiff.report.page import OFFERS

MORE = re.compile(r" and \d+ more\b")
"""Pattern of the words that end a shortened pipeline name in a table."""


@dataclasses.dataclass(frozen=True, repr=False)
class ImprovementSummary(FineTuningSummary):
    """The report of one improvement. `print(summary)` shows the table of the tested finalists.

    Its other attributes are those of `FineTuningSummary`. They describe the returned pipeline or, if the original is kept, the
    best finalist. The decision is "improved" or "kept original".

    Attributes:
        arms: an entry for each arm: {"arm", "does" (a description), "state", "why", "seconds", "cut" (True if the budget was
            over before the arm was done)}; `state` is "done", "stopped", "failed", "not tried" or "interrupted".
        table: a row for the original and for each tested finalist, the best first: {"arm", "name", "value" (metric on the proving
            rows, from pipelines made without these rows), "test" (metric on the test rows; None without them), "change", "gain"
            and "error" (standard error of the gain; all three as shares of the rival's metric), "rival" (the pipeline with which
            the finalist was compared), "folds" (number of folds on which it was tested), "changed" (share of rows whose label
            changes, or whose prediction moves by more than a tenth), "serving" (cost relative to the original), "compacted" (for
            an offer, the same cost after `sparkdiff.compact`; None if compacting saves nothing), "seconds" (time to make the
            pipeline once), "p" (p-value, corrected for four finalists), "interval" (95% interval of the gain, corrected for four
            finalists; None if nothing gains), "accepted", "offers" (names), "why" (the reason why the finalist was not accepted),
            "changes" (names of all added or deleted stages)}.
        race: an entry for the best candidate of each arm on the exploring rows, by which finalists are chosen: {"arm", "name",
            "value", "gain", "serving", "seconds", "accepted"}.
        proof: {"rows" (description of the proving rows), "folds", "rival", "why" (the reason for this rival), "shows" (the gain,
            as a share of the metric, that the test on the proving rows would detect in 8 of 10 cases), "units" (effective number
            of rows, groups or blocks that decided), "unproven" ([{"name", "seconds"}]: finalists that there was no time to test,
            and the seconds that were lacking)}.
        offers: {name of an offer: index of its row in `table`}; see `sparkdiff.improvement.proving`.
        budget: {"given" (the requested budget), "spent" (seconds per arm, and for measuring the original, the baseline, the
            order and the proof), "seconds" (of the whole improvement; less than the sum if arms ran at the same time)}.
        foundAt: seconds after which the best pipeline was found; None if the original is kept.
        baseline: Spark's own trees on the same features, measured on the exploring rows: {"name", "value", "test", "change",
            "serving", "seconds", "why" (the reason why there is no value)}; None if `baseline=False` or the budget is small. It
            is only shown, and takes no part in the test.
        explanation: text about the part of the pipeline that caused the loss (weights, settings or form), and what
            would help next.
        order: the order in which the arms were tried: {"arms", "chances" (name of an arm -> probability that it finds the best
            pipeline, if any arm improves the original), "shipped" and "own" (numbers of past improvements from which the order
            was learned: shipped with sparkdiff, and in the store), "why", "facts" (about the pipeline and its rows)}.
    """

    __module__ = "sparkdiff"

    arms: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    table: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    offers: dict[str, int] = dataclasses.field(default_factory=dict)
    budget: dict[str, Any] = dataclasses.field(default_factory=dict)
    race: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    proof: dict[str, Any] = dataclasses.field(default_factory=dict)
    foundAt: float | None = None
    baseline: dict[str, Any] | None = None
    explanation: str = ""
    order: dict[str, Any] = dataclasses.field(default_factory=dict)

    def _sections(self) -> Iterator[Section]:
        yield table_of(self)
        yield from _in_full(self.table)
        unfinished = (a for a in self.arms if a["state"] != "done")
        yield from (f"{a['arm']}: {a['state']} after {a['seconds']:.0f} s, {a['why']}" for a in unfinished)
        if self.order:
            yield f"order of the arms: {', '.join(self.order['arms'])}; {self.order['why']}"
        yield StrongLine(f"decision: {self.decision}")
        yield from (self.reason, *_when(self), self.explanation, *(f"warning: {w}" for w in self.warnings))


def _in_full(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that list all changes of those offers whose names are shortened in the table."""
    return [f"'{r['name']}': {r['changes']}" for r in table if r["offers"] and MORE.search(r["name"])]


def _when(summary: ImprovementSummary) -> list[str]:
    if summary.foundAt is None:
        return []
    return [f"the best was found after {summary.foundAt:.0f} s of {summary.budget['seconds']:.0f} s"]


def table_of(summary: ImprovementSummary) -> SectionTable:
    """Table of the results on the proving rows, one line per pipeline."""
    tested = any(r["test"] is not None for r in summary.table)
    head = [f"{summary.metric} ({summary.metricDirection} is better)", "proving rows", *(["test"] if tested else [])]
    rows = [(*head, "change", "error", "flips", "95% interval", "serving", "cost", "")]
    for r in summary.table:
        shown = [f"{r['value']:.5g}", *([f"{r['test']:.5g}"] if tested else [])]
        if r["arm"] is None:
            rows.append((r["name"], *shown, "", "", "", "", "1.0x", "", ""))
            continue
        flips = "" if r["changed"] is None else f"{r['changed']:.1%}"
        ends = ["unbounded" if math.isinf(end) else signed(end) for end in r["interval"] or ()]
        error = "" if r["error"] is None else f"{r['error']:.1%}"
        cost = f"{r['serving']:.1f}x", f"{r['seconds']:.0f} s"
        rows.append((r["name"], *shown, signed(r["change"]), error, flips, " to ".join(ends), *cost, _verdict(r)))
    rows += _comparison(summary.baseline, tested=tested)
    return SectionTable(rows, left=(0, len(rows[0]) - 1), ruled=True)


def _comparison(found: Mapping[str, Any] | None, *, tested: bool) -> list[tuple[str, ...]]:
    """Last line of the table, with the baseline; empty if there is no baseline."""
    if found is None:
        return []
    if found["value"] is None:
        return [(found["name"], *[""] * (7 + tested), f"not compared: {found['why']}")]
    shown = [f"{found['value']:.5g}", *([f"{found['test']:.5g}"] if tested else [])]
    figures = (signed(found["change"]), "", "", "", f"{found['serving']:.1f}x", f"{found['seconds']:.0f} s")
    return [(found["name"], *shown, *figures, "for comparison")]


def _verdict(row: Mapping[str, Any]) -> str:
    offered = [OFFERS[name] for name in row["offers"]]
    smaller = "" if row["compacted"] is None else f" ({row['compacted']:.1f}x compacted)"
    mark = f"<- {', '.join(offered)}{smaller}, " if offered else ""
    if row["p"] is None:
        return mark.rstrip(", ")
    why = "" if row["accepted"] or not row["why"] else f", {row['why']}"
    return f"{mark}{p_value(row['p'])}{why}"
