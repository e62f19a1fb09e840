"""Charts of a report, as SVG with the colours of the page: training curves, changes, reliability, slices.

Each function takes plain values and returns the markup of one picture, which needs no script and no other file. A slice
is the set of rows with one value of a guardCol.
"""

import html
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparkdiff.errors import requires_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, LINE, BEFORE, AFTER, FAINT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
"""Placeholder colours that are replaced by the page's: text, lines, the original, the new pipeline, curves and
points in the background, the background itself.
"""
VARIABLES = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
"""The style of all charts, as matplotlib's settings."""
WIDTH = 4.8
"""Width of all charts in inches: with text of ten points, readable on a phone, and half as wide as the page of a screen."""
CURVES = 12
"""Largest number of curves; if there are more, only the best are drawn."""
SLICES = 30

Records = Sequence[Mapping[str, Any]]


@contextmanager
def _figure(title: str, height: float = 3.2) -> Iterator[tuple["Axes", list[str]]]:
    """Provide axes in the report's style, and a list to which the finished SVG is appended when the context ends.

    The legend of labelled lines is above the axes, where it hides nothing.
    """
    with requires_extra("report", "a report with charts"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure

    made: list[str] = []
    with rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        yield axes, made
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0)
        text = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Glyph .* missing"
            )  # text stays text in the SVG, and the browser has its own fonts
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    made.append(_for_page(text.getvalue(), title))


def _for_page(svg: str, title: str) -> str:
    """The SVG without its prolog, with a title for screen readers, and with the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # several pictures on a page would share them
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" class="chart" ', 1)


def curves(records: Records, metric: str, direction: str, *, whose: str = "validation rows") -> str:
    """Curves of the metric by epoch, one per candidate of each fold, with the best epoch marked; "" if there are no epochs.

    A dashed line shows the original's metric, unless there are several folds.
    """
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in records:
        value = row.get("validationMetric")
        if value is not None and math.isfinite(value):
            key = (row.get("fold"), row.get("candidate", 0), row.get("recipe", ""))
            lines.setdefault(key, []).append((row["epoch"], value))
    lines = {k: sorted(v) for k, v in lines.items() if len(v) > 1}
    if not lines:
        return ""
    sign = -1 if direction == "larger" else 1
    order = sorted(lines, key=lambda k: min(sign * v for _, v in lines[k]))
    several = len({k[0] for k in lines}) > 1
    with _figure(f"{metric} by epoch") as (axes, made):
        fold, _, recipe = order[0]
        best = min(lines[order[0]], key=lambda p: sign * p[1])
        name = _short("all rows" if several and fold == 0 else f"fold {fold}" if several else str(recipe))
        labels = {0: f"{name}: {best[1]:.5g} in epoch {best[0]:g}", 1: "others"}
        for place, key in reversed([*enumerate(order[:CURVES])]):
            axes.plot(
                *zip(*lines[key], strict=True),
                color=FAINT if place else AFTER,
                linewidth=1 if place else 2,
                label=labels.get(place),
                zorder=2 if place else 3,
            )
        axes.plot(*best, "o", color=AFTER, markersize=6, zorder=4)
        if not several:
            axes.axhline(lines[order[0]][0][1], color=BEFORE, linewidth=1.2, linestyle="--", label="original")
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{metric}, {whose}")
    return made[0]


def changes(histogram: Mapping[str, Any] | None, what: str = "prediction") -> str:
    """Histogram of the changes of predictions; "" if fewer than three bins have rows, as is usual for clusters."""
    if not histogram or sum(c > 0 for c in histogram["counts"]) < 3:
        return ""
    edges, counts = histogram["edges"], histogram["counts"]
    total = sum(counts) + histogram["outside"]
    with _figure("distribution of changes") as (axes, made):
        widths = [b - a for a, b in itertools.pairwise(edges)]
        axes.bar(edges[:-1], [100 * c / total for c in counts], widths, align="edge", color=AFTER, edgecolor=AFTER)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(f"new {what} − original {what}")
        axes.set_ylabel("% of rows")
        axes.grid(axis="x", visible=False)
    return made[0]


def reliability(bins: Sequence[Mapping[str, float]] | None, what: str = "prediction") -> str:
    """Reliability diagram of both pipelines: mean label against mean score, one point per decile of the original's
    score.

    "" if fewer than two deciles have known values.
    """
    known = [b for b in bins or [] if all(math.isfinite(b[k]) for k in ("label", "before", "after"))]
    if len(known) < 2:
        return ""
    with _figure("reliability") as (axes, made):
        ends = [v for b in known for v in (b["label"], b["before"], b["after"])]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=INK, linewidth=0.8, linestyle=":")
        for side, colour, name, mark in (("before", BEFORE, "original", "o-"), ("after", AFTER, "new", "s-")):
            points = sorted((b[side], b["label"]) for b in known)
            axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=5, linewidth=1.2, label=name)
        axes.set_xlabel(f"mean {what}")
        axes.set_ylabel("mean label")
    return made[0]


def slices(found: Sequence[Mapping[str, Any]]) -> str:
    """Gain of the metric by slice, the smallest first, with 95% intervals (normal approximation) if standard errors are
    known.
    """
    rows = [s for s in found if s.get("before") and s.get("gain") is not None]
    if not rows:
        return ""
    shares = sorted(
        ((s["gain"] / abs(s["before"]), (s["error"] or 0) / abs(s["before"]), s) for s in rows), key=lambda r: r[0]
    )
    shown = shares[:SLICES]
    with _figure("gain by slice", height=0.9 + 0.24 * len(shown)) as (axes, made):
        for place, (gain, error, _) in enumerate(shown):
            colour = BEFORE if gain < 0 else AFTER
            axes.plot(
                [100 * (gain - 1.96 * error), 100 * (gain + 1.96 * error)], [place, place], color=colour, linewidth=1.5
            )
            axes.plot(100 * gain, place, "o", color=colour, markersize=5)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), [_short(slice_name(s)) for _, _, s in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("gain in % of the original's metric")
        axes.grid(axis="y", visible=False)
    return made[0]


def best_so_far(values: Sequence[float | None], metric: str, direction: str) -> str:
    """The metric of each trial of a search, and the best value so far as steps; "" with fewer than two trials."""
    points = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    if len(points) < 2:
        return ""
    better = max if direction == "larger" else min
    with _figure("best so far") as (axes, made):
        axes.plot(*zip(*points, strict=True), "o", color=FAINT, markersize=4, label="trial")
        best = [better(v for _, v in points[: k + 1]) for k in range(len(points))]
        axes.step([i for i, _ in points], best, where="post", color=AFTER, linewidth=2, label="best so far")
        axes.set_xlabel("trial")
        axes.set_ylabel(metric)
    return made[0]


def slice_name(s: Mapping[str, Any]) -> str:
    """A slice as text: column = value."""
    return f"{s['column']} = {'null' if s['value'] is None else s['value']}"


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
