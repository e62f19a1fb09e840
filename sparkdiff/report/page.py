"""The report of a run as one page: a file of HTML that needs no other file, no script and no network.

The page is made from the plain values of a run folder (`summary.json`, `history.csv`, `plan.json`, `trials.csv`), so
that old runs can be shown without Spark. Its first screen has the decision, the evidence, the predictions and slices that
change, and the way back to the original.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.report import charts
from sparkdiff.report.ancestry import SHORT, Ancestor, ancestor_picture, ancestors_of
from sparkdiff.report.plan_drawing import plan_picture
from sparkdiff.report.progress import counted, share_of, signed
from sparkdiff.report.sections import render_template, template
from sparkdiff.report.summary_sections import p_value
from sparkdiff.report.svg import Drawing

ACCEPTED = {"tuned", "grown", "improved", "winner"}
WORDS = {
    "tuned": "Fine-tuned",
    "grown": "Grown",
    "improved": "Improved",
    "winner": "Winner of the search",
    "kept original": "Original kept",
    "kept default": "Default kept",
    "kept current": "Current model kept",
}
OFFERS = {
    "best": "best",
    "asCheap": "best that serves as cheaply",
    "sameForm": "best with the same stages",
    "simpler": "simpler, and no worse",
}
"""Names of the pipelines that an improvement offers (`ImproverModel.offers`), and their titles."""
SIDES = {"train": "training rows", "validation": "validation rows", "test": "test rows", "reference": "reference rows"}
MOVED = 60
"""Largest number of parameters in the table of changed parameters; the summary has all."""

Values = Mapping[str, Any]


def page(
    summary: Values,
    records: Sequence[Values] = (),
    *,
    plan: Values | None = None,
    trials: Sequence[Values] = (),
    command: str | None = None,
    lineage: Values | None = None,
) -> str:
    """The report as HTML.

    Args:
        summary: the content of `summary.json`, or a summary's `asdict()`.
        records: rows of the history, one per epoch and candidate.
        plan: the content of `plan.json`.
        trials: rows of `trials.csv` of a search.
        command: the command that runs the job again.
        lineage: the lineage of the original, the content of `lineage.json`.
    """
    charts_of = _charts(summary, records, trials)
    tables = {
        "metrics": _metrics(summary),
        "others": _others(summary),
        "affected": effect_sentences(summary),
        "moved": _parameter_changes(summary),
        "stages": [] if plan is None else plan["stages"],
        "slices": _slices(summary),
        "timings": _timings(summary),
        "options": _setting_rows(summary.get("options")),
        "asked": _setting_rows(summary.get("search")),
        "parity": _parity(summary),
        "settings": _setting_rows(summary.get("settings")),
        "trials": _trials(trials, summary),
    }
    return _render_page(
        "report.html",
        s=summary,
        accepted=summary["decision"] in ACCEPTED,
        word=word(summary),
        headline=headline(summary),
        offers=OFFERS,
        moved_count=len(summary.get("stages") or {}),
        drawing=_drawing(plan),
        command=command,
        ancestry=_ancestry(lineage, summary),
        **charts_of,
        **tables,
    )


def comparison(runs: Mapping[str, Values]) -> str:
    """Comparison of runs as HTML: their decisions, metrics and gains, and the options in which they differ.

    Args:
        runs: the summaries of the runs, by name.
    """
    options = {name: dict(_setting_rows(s.get("options"))) for name, s in runs.items()}
    keys = list(dict.fromkeys(k for o in options.values() for k in o))
    differ = [k for k in keys if len({o.get(k) for o in options.values()}) > 1]
    shown = {
        name: {"s": s, "headline": headline(s), "metrics": dict(by_side(s)), "word": word(s)}
        for name, s in runs.items()
    }
    sides = [side for side in SIDES if any(side in r["metrics"] for r in shown.values())]
    listed = [(k, [o.get(k, "") for o in options.values()]) for k in differ]
    return _render_page("compare.html", runs=shown, sides=sides, options=listed)


def _render_page(name: str, **values: Any) -> str:
    return render_template(
        name, {"number": number, "share": share, "better": better, "p": p_value}, css=template("report.css"), **values
    )


# Words ----------------------------------------------------------------------------------------------------------------


def word(summary: Values) -> str:
    """The decision of a run as a title."""
    decision = str(summary["decision"])
    return WORDS.get(decision, decision)


def number(value: Any) -> str:
    """A number with five significant digits, or all digits of an integer; a dash for None and non-finite values."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}" if abs(value) < 1e5 else f"{value:.5g}"


def share(value: float | None) -> str:
    """A share as a signed percentage; "unbounded" if the share is infinite, or None, which stands for infinity in JSON."""
    return "unbounded" if value is None or math.isinf(value) else signed(value, 2)


def better(gain: float) -> str:
    """A gain as a share without a sign, such as "2.0% worse"."""
    return f"{abs(gain):.1%} {'better' if gain >= 0 else 'worse'}"


def headline(summary: Values) -> str:
    """The gain with its interval and p-value."""
    gain = summary.get("gain")
    if gain is None:
        return ""
    interval = summary.get("gainInterval")
    said = signed(gain, 2)
    if interval is not None:
        said += f" (95% interval {share(interval[0])} to {share(interval[1])})"
    p = summary.get("p")
    return said if p is None else f"{said}, {p_value(p)}"


def effect_sentences(summary: Values) -> list[str]:
    """Sentences on the predictions and slices that change, or would change if the best candidate had been accepted."""
    out, kept = [], summary["decision"] not in ACCEPTED
    if (c := summary.get("compatibility")) is not None:
        what = "predicted labels change" if c["labels"] else "predictions move by more than a tenth"
        whose = "Nobody; the best candidate, not accepted: " if kept else ""
        out.append(f"{whose}{round(c['changed'] * c['rows']):,} of {c['rows']:,} held-out {what} ({c['changed']:.1%}).")
        size = "little" if c["psi"] < 0.1 else "moderately" if c["psi"] < 0.25 else "much"
        index = f"population stability index {c['psi']:.3f}, little below 0.1, much above 0.25"
        out.append(f"The scores' distribution shifts {size} ({index}).")
    known = [s for s in summary.get("slices") or [] if s.get("before") and s.get("gain") is not None]
    if known:
        worst = min(known, key=lambda s: s["gain"] / abs(s["before"]))
        gain, name = worst["gain"] / abs(worst["before"]), charts.slice_name(worst)
        how = f"gains least: {signed(gain)}" if gain >= 0 else f"loses most: {signed(gain)}"
        out.append(f"Of {len(known)} slices, {name} {how} ({worst['rows']:,} rows).")
    return out


# Tables ---------------------------------------------------------------------------------------------------------------


def _compatibility_value(summary: Values, key: str) -> Any:
    return (summary.get("compatibility") or {}).get(key)


def by_side(summary: Values) -> Iterator[tuple[str, Values]]:
    """Pairs of the kind of rows (see `SIDES`) and the metric on them, {"before", "after"}."""
    if "fresh" in summary:
        fresh = summary["fresh"]
        yield "test", {"before": fresh["default"], "after": fresh["winner"]}
        return
    for side, values in summary["metrics"].items():
        if values is not None:
            yield side, values


def _metrics(summary: Values) -> list[dict[str, Any]]:
    folds = summary.get("folds")
    names = {**SIDES, "validation": "out-of-fold rows" if folds else SIDES["validation"]}
    if "fresh" in summary:
        names["test"] = "out-of-fold rows" if folds else "rows that no trial has seen"
    sign = 1 if summary["metricDirection"] == "larger" else -1
    return [
        {
            **v,
            "name": names.get(side, side),
            "gain": None if None in v.values() else share_of(sign * (v["after"] - v["before"]), v["before"]),
        }
        for side, v in by_side(summary)
    ]


def _others(summary: Values) -> list[tuple[str, Any, Any]]:
    found = dict(_compatibility_value(summary, "others") or {})
    found.pop(summary["metric"], None)
    if (c := _compatibility_value(summary, "calibration")) is not None:
        found[c["measure"]] = c
    return [(name, v["before"], v["after"]) for name, v in found.items()]


def _parameter_changes(summary: Values) -> list[tuple[str, str, float, float]]:
    """(stage, parameter, largest change, root mean square) of the changed parameters, the most changed first."""
    found = summary.get("stages") or {}
    rows = [(*k.rsplit(".", 1), v["largest"], v["rootMeanSquare"]) for k, v in found.items()]
    return sorted(rows, key=lambda r: -r[3])[:MOVED]


def _drawing(plan: Values | None) -> str:
    """The picture of the plan as SVG; "" if there is no plan."""
    if plan is None:
        return ""
    trained = [t for t in plan["stages"] if t["trainable"]]
    total = (
        f"trains {counted(sum(t['numParameters'] for t in trained), 'parameter')} in {len(trained)} of "
        f"{counted(len(plan['stages']), 'stage')}"
    )
    return Drawing(plan_picture(plan, total))._repr_html_()


def _ancestry(lineage: Values | None, summary: Values) -> str:
    """The runs that led to the original, and this run, as SVG; "" if no run in the store made the original."""
    if lineage is None or not lineage["steps"]:
        return ""
    known = [a._replace(made=False) for a in ancestors_of(lineage)]
    this = Ancestor(
        "this run", str((summary.get("model") or {}).get("hash", ""))[:SHORT], [summary["decision"]], "this", made=True
    )
    return Drawing(ancestor_picture([*known, this], f"{counted(len(known), 'model')} led to this run"))._repr_html_()


def _slices(summary: Values) -> list[dict[str, Any]]:
    rows = [s for s in summary.get("slices") or [] if s["rows"]]
    rows.sort(key=lambda s: math.inf if not s.get("before") or s.get("gain") is None else s["gain"] / abs(s["before"]))
    return [{**s, "name": charts.slice_name(s)} for s in rows]


def _charts(summary: Values, records: Sequence[Values], trials: Sequence[Values]) -> dict[str, Any]:
    metric, direction = summary["metric"], summary["metricDirection"]
    compared = summary.get("compatibility") or {}
    what = "score" if compared.get("labels") else "prediction"
    if trials:
        curves = charts.best_so_far([t.get(metric) for t in trials], metric, direction)
    else:
        whose = "held-out rows" if summary.get("folds") else "validation rows"
        curves = charts.curves(records, metric, direction, whose=whose)
    return {
        "curves": curves,
        "changes": charts.changes(compared.get("changes"), what),
        "outside": (compared.get("changes") or {}).get("outside", 0),
        "reliability": charts.reliability(compared.get("bins"), what),
        "slice_chart": charts.slices(summary.get("slices") or []),
    }


def _trials(trials: Sequence[Values], summary: Values) -> dict[str, Any]:
    if not trials:
        return {}
    head = [k for k in trials[0] if any(t.get(k) is not None and t.get(k) == t.get(k) for t in trials)]
    return {
        "head": head,
        "rows": [[_text(t.get(k)) for k in head] for t in trials[:200]],
        "all": len(trials),
        "best": summary.get("number"),
    }


def _setting_rows(values: Values | None) -> list[tuple[str, str]]:
    return [(k, _text(v)) for k, v in (values or {}).items() if v is not None and v != [] and v != {}]


def _timings(summary: Values) -> list[tuple[str, float]]:
    spent = (summary.get("budget") or {}).get("spent") or summary.get("timings") or {}
    return list(spent.items()) or ([("all trials", summary["seconds"])] if "seconds" in summary else [])


def _parity(summary: Values) -> list[tuple[str, Values]]:
    found = summary.get("parity") or {}
    return [(side, found[side]) for side in ("before", "after") if found.get(side)]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return number(value) if isinstance(value, (int, float)) else json.dumps(value, ensure_ascii=False)
