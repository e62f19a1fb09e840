"""The before/after table of a run, and the text below it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.report.progress import counted, share_of, signed
from sparkdiff.report.sections import Section, SectionTable, StrongLine

SHOWN = 8
"""Largest number of slices in the report; the summary has all."""


def p_value(p: float, least: float = 0.001) -> str:
    """A p-value as text; below `least` (itself at most 0.001), only "p < least" is shown."""
    least = min(least, 0.001)
    return f"p < {least:.1g}" if p < least else f"p {p:.3f}" if p >= 0.001 else f"p {p:.2g}"


def sections_of(summary: Mapping[str, Any]) -> Iterator[Section]:
    """The sections of a run's report: before/after table, decision, reason, further figures, and warnings."""
    yield SectionTable(_metrics(summary), ruled=True)
    held = ""
    if summary["gainInterval"] is not None:
        low, high = ("unknown" if v is None else signed(v, 2) for v in summary["gainInterval"])
        held = f"95% interval {low} to {high} of {_whose(summary)}, "
    yield StrongLine(
        f"decision: {summary['decision']} (gain {signed(summary['gain'], 2)}, {held}z {summary['z']:.1f}, "
        f"{p_value(summary['p'])})"
    )
    yield summary["reason"]
    yield from _folds(summary.get("folds") or [])
    yield from _place(summary)
    yield from _changes(summary["slices"], _whose(summary))
    if summary["compatibility"] is not None:
        yield _compatibility(summary["compatibility"], _whose(summary))
    yield from (f"warning: {w}" for w in summary["warnings"])


def _metrics(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    metric, direction = summary["metric"], summary["metricDirection"]
    rows = [(f"{metric} ({direction} is better)", "original", "grown" if "rounds" in summary else "tuned", "change")]
    for split, values in summary["metrics"].items():
        if values is not None:
            before, after = values["before"], values["after"]
            change = share_of(after - before, before)
            shown = "out of fold" if split == "validation" and summary.get("folds") else split
            rows.append((shown, f"{before:.5g}", f"{after:.5g}", signed(change)))
    return rows


def headline(summary: Mapping[str, Any]) -> str:
    """A run in one line of text: the decision, and the metric on the held-out rows by which it was made."""
    held = (summary["metrics"] or {}).get("validation")
    if held is None:
        return f"{summary['decision']}, {summary['metric']}"
    rows = "out-of-fold" if summary.get("folds") else "validation"
    return (
        f"{summary['decision']}, {summary['metric']} {held['before']:.5g} -> {held['after']:.5g} on {rows} rows "
        f"(gain {signed(summary['gain'], 2)}, {p_value(summary['p'])})"
    )


def _whose(summary: Mapping[str, Any]) -> str:
    """Name of the pipelines to which the figures on the rows that decide belong."""
    return (
        "the folds' pipelines"
        if summary.get("folds")
        else "the new threshold"
        if (summary.get("options") or {}).get("tune") == "threshold"
        else "the best epoch"
    )


def _folds(folds: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """Table of the metric before and after on the rows of each fold; nothing without folds."""
    if folds:
        rows = [("fold", "rows", "original", "tuned", "change", "epochs")]
        for f in folds:
            change = share_of(f["after"] - f["before"], f["before"])
            figures = (f"{f['before']:.5g}", f"{f['after']:.5g}", signed(change), str(f["epochs"]))
            rows.append((str(f["fold"]), f"{f['rows']:,}", *figures))
        yield SectionTable(rows)


def _place(summary: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on the device and the dtype of training, unless they are the CPU and float64, and on the number of
    processes if it was chosen automatically.
    """
    device, single = summary.get("device") or "cpu", summary.get("parity", {}).get("float32")
    if single is not None:
        most = max(single["maxRelDiff"].values())
        yield f"trained on {device} in float32, which moves the original's outputs by up to {most:.1e} of their size"
    elif device != "cpu":
        yield f"trained on {device}"
    if auto := summary.get("processes"):
        yield f"trained in {counted(auto['number'], 'process', 'processes')}: {auto['why']}"


def _changes(slices: Sequence[Mapping[str, Any]], whose: str) -> Iterator[Section]:
    """Table of the slices (rows with one value of a guardCol) that gained least, and the number of the other slices."""
    known = [s for s in slices if s["rows"]]
    if not known:
        return
    order = sorted(known, key=lambda s: (s["p"] is None, s["before"] is None, _gain(s)))
    rows = [(f"slice under {whose}", "rows", "original", "tuned", "change", "p worse")]
    for s in order[:SHOWN]:
        value = "null" if s["value"] is None else s["value"]
        p = f"too few {'rows' if s['rows'] == s['units'] else 'units'}" if s["p"] is None else f"{s['p']:.3f}"
        before, after = ("undefined" if s[k] is None else f"{s[k]:.5g}" for k in ("before", "after"))
        change = "" if "undefined" in (before, after) else signed(share_of(s["after"] - s["before"], s["before"]))
        rows.append(
            (f"{s['column']} = {value}", f"{s['rows']:,}", before, after, change, "" if s["before"] is None else p)
        )
    yield SectionTable(rows)
    if len(order) > SHOWN:
        few = sum(s["p"] is None for s in order[SHOWN:])
        yield f"and {counted(len(order) - SHOWN, 'slice')} with better results" + (
            f", or with too few rows ({few})" if few else ""
        )


def _gain(change: Mapping[str, Any]) -> float:
    """The gain of a slice as a share of the original's metric; -inf if the metric before or the gain is undefined."""
    if change["before"] is None or change["gain"] is None:
        return -math.inf
    return share_of(change["gain"], change["before"])


def _compatibility(c: Mapping[str, Any], whose: str) -> str:
    what = "of the labels change" if c["labels"] else "move by more than a tenth"
    size = next(
        word for word, most in (("stable", 0.1), ("moderate", 0.25), ("large", float("inf"))) if c["psi"] < most
    )
    out = f"predictions of {whose}: {c['changed']:.1%} {what}; PSI {c['psi']:.3f} ({size})"
    if c["correlation"] is not None:
        out += f", correlation {c['correlation']:.3f}"
    if (k := c["calibration"]) is not None:
        out += f"; {k['measure']} {k['before']:.3g} -> {k['after']:.3g}"
    return out
