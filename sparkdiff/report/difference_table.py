"""A readable table of the differences between two pipelines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.report.sections import Section, SectionTable, StrongLine

HEAD = ("stage", "what", "shape", "differ", "largest", "relative")
BLANK = ("",) * 4
SHOWN = 60
"""Largest number of characters of a Param's value."""


def difference_sections(d: Mapping[str, Any]) -> Iterator[Section]:
    """Sections on a `diagnostics.model_differences.Difference`, given as plain values: a table with a row per weight, Param
    or stage that differs, the content hashes, and the differences of predictions.
    """
    rows = [row for stage in d["stages"] for row in _rows(stage)]
    if rows:
        yield SectionTable([HEAD, *rows], left=range(len(HEAD)))
    yield StrongLine(how_many(d))
    yield f"old {d['oldHash'] or 'cannot be saved'}"
    yield f"new {d['newHash'] or 'cannot be saved'}"
    if d["predictions"] is not None:
        yield from _predictions(d["predictions"])


def how_many(d: Mapping[str, Any]) -> str:
    """Number of stages that differ, as text."""
    changed = sum(stage["what"] != "same" or stage["path"] != stage["newPath"] for stage in d["stages"])
    return f"the same: {len(d['stages'])} stages" if d["same"] else f"{changed} of {len(d['stages'])} stages differ"


def difference_headline(d: Mapping[str, Any]) -> str:
    """Number of stages and of predictions that differ, as text."""
    p = d["predictions"]
    flips = [f"{f['column']}: {f['share']:.2%} of {p['rows']:,} rows flip" for f in p["labels"]] if p else []
    moves = [f"{n['column']} changes in {n['changed']:,} of {p['rows']:,} rows" for n in p["numbers"]] if p else []
    return "; ".join([how_many(d), *(flips or moves)[:1]])


def _rows(s: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    old, new = _stage(s["path"], s["stageClass"], s["uid"]), _stage(s["newPath"], s["newStageClass"], s["newUid"])
    where = new if s["what"] == "only in new" else old
    if s["what"].startswith("only"):
        yield (where, s["what"], *BLANK)
    elif s["path"] != s["newPath"] or (s["what"] != "same" and old != new):
        yield (where, f"is {new}", *BLANK)
    for p in s["params"]:
        yield (where, f"{p['param']}: {_value(p['old'])} -> {_value(p['new'])}", *BLANK)
    for w in s["weights"]:
        shape = str(list(w["shape"]))
        if w["shape"] == w["newShape"]:
            count = f"{w['differ']:,} of {w['entries']:,}"
            yield where, w["parameter"], shape, count, _number(w["maxAbsDiff"]), _number(w["maxRelDiff"])
        else:
            yield where, w["parameter"], f"{shape} -> {list(w['newShape'])}", "all", "-", "-"
    if s["content"]:
        yield (where, "saved content differs" + ("" if s["translated"] else " (not translated)"), *BLANK)


def _stage(path: Sequence[int] | None, stage_class: str | None, uid: str | None) -> str:
    return f"{'.'.join(map(str, path or ())) or '0'} {stage_class} {uid}"


def _value(value: tuple[str, Any] | None) -> str:
    if value is None:
        return "none"
    text = json.dumps(value[1])
    return f"{text if len(text) <= SHOWN else text[: SHOWN - 3] + '...'} ({value[0]})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _predictions(p: Mapping[str, Any]) -> Iterator[str]:
    dropped = p["sampled"] - p["rows"]
    yield f"predictions on {p['rows']:,} rows" + (f" ({dropped:,} others dropped by a stage):" if dropped else ":")
    for f in p["labels"]:
        yield f"  {f['column']}: {f['flips']:,} flip ({f['share']:.2%})"
    for n in p["numbers"]:
        quantiles = ", ".join(f"{float(q):.0%} of rows by at most {_number(v)}" for q, v in n["quantiles"].items())
        yield (
            f"  {n['column']}: {n['changed']:,} change, by {_number(n['meanAbsChange'])} on average, "
            f"{_number(n['maxAbsChange'])} at most ({quantiles})"
            + (f"; {n['undefined']:,} without a finite change" if n["undefined"] else "")
        )
    for which in ("old", "new"):
        columns = p[f"onlyIn{which.title()}"]
        if columns:
            yield f"  only in {which}: {', '.join(columns)}"
    yield f"bit by bit, on the first rows: {'' if p['outputs'] else 'all outputs are the same'}".rstrip()
    yield from (f"  {column} {what}" for column, what in p["outputs"].items())
