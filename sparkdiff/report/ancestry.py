"""The lineage of a model as a picture: one box per run that led to the model, the first ancestor at the top."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from sparkdiff.report.progress import change, counted, duration
from sparkdiff.report.summary_sections import p_value
from sparkdiff.report.svg import add, canvas, cropped, label, wrapped

BOX, TEXT, HEIGHT, GAP, LINE, MARGIN, LANE = 330, 450, 44, 26, 16, 12, 44
"""Sizes in pixels: width of a box, width of the text beside the box, height of a box, gap between boxes, height of a
text line, margin, space left of the boxes."""
SHORT = 12
"""Number of characters of a hash that are shown."""


class Ancestor(NamedTuple):
    """A box of the picture.

    Attributes:
        title: title of the box, such as what made the model and when.
        content: content hash of the model; "" if unknown.
        notes: texts beside the box.
        run: id of the run that made the model; "" if no run made it.
        cacheOf: id of the run whose cache that run reused; "" if it reused none.
        made: whether the box is the model that the picture is about.
    """

    title: str
    content: str
    notes: Sequence[str] = ()
    run: str = ""
    cacheOf: str = ""
    made: bool = False


def ancestor_picture(line: Sequence[Ancestor], title: str) -> ElementTree.Element:
    """The picture of a model's ancestors, one below the other, the first ancestor at the top."""
    left = MARGIN + LANE
    notes = [[row for note in a.notes for row in wrapped(note, "note", TEXT)] for a in line]
    tops, y = list[float](), float(MARGIN)
    for rows in notes:
        tops.append(y)
        y += max(HEIGHT, LINE * len(rows)) + GAP
    root = canvas(left + BOX + 14 + TEXT + MARGIN, y - GAP + MARGIN, title)
    for above, below in itertools.pairwise(tops):
        x = left + BOX / 2
        add(root, "path", "gradient", d=f"M{x} {above + HEIGHT}V{below - 2}m-5 -6l5 6l5 -6")
    places = {a.run: top for a, top in zip(line, tops, strict=True) if a.run}
    for ancestor, top, rows in zip(line, tops, notes, strict=True):
        _box(root, ancestor, left, top)
        for k, row in enumerate(rows):
            label(root, row, left + BOX + 14, top + 13 + LINE * k, "note")
        if ancestor.cacheOf in places:
            begin, end = places[ancestor.cacheOf] + HEIGHT / 2, top + HEIGHT / 2
            add(root, "path", "reused", d=f"M{left} {begin}h-{LANE - 14}V{end}h{LANE - 16}")
            add(root, "path", "line", d=f"M{left - 8} {end - 4}l6 4l-6 4")
    return root


def _box(root: ElementTree.Element, ancestor: Ancestor, left: float, top: float) -> None:
    kind = "trains" if ancestor.made else "torch" if ancestor.run else "spark"
    add(root, "rect", kind, x=left, y=top, width=BOX, height=HEIGHT, rx=6)
    label(root, cropped(ancestor.title, "title", BOX - 20), left + 10, top + 18, "title")
    label(
        root, f"model {ancestor.content}" if ancestor.content else "content not known", left + 10, top + 35, "columns"
    )


def ancestors_of(lineage: Mapping[str, Any]) -> list[Ancestor]:
    """The ancestors of a model and the model itself, the first ancestor first.

    Args:
        lineage: the content of `Lineage.toJSON`, as plain values.
    """
    line = [_ancestor(step) for step in reversed(lineage["steps"])]
    if line:
        origin = lineage["origin"]
        first = "fitted by Spark" if origin is None else "the first ancestor"
        line.insert(0, Ancestor(first, (origin or "")[:SHORT], ["no run in the store made it"]))
        line[-1] = line[-1]._replace(made=True)
    return line


def metric_of(run: Mapping[str, Any]) -> str:
    """The metric of a run as text, with its values before and after the run if both are known."""
    before, after = run["before"], run["after"]
    return run["metric"] if before is None or after is None else change(run["metric"], before, after)


def name_of(run: Mapping[str, Any]) -> str:
    """The name of a run: its runId, or else the beginning of its id in the store."""
    return run["runId"] or run["id"][:SHORT]


def cost_of(run: Mapping[str, Any]) -> str:
    """The time and the core-seconds that a run took, as text; "unknown" if the store does not have them."""
    took, used = run["seconds"], run["coreSeconds"]
    return "unknown" if took is None or used is None else f"{duration(took)}, {used:.0f} core-seconds"


def _ancestor(step: Mapping[str, Any]) -> Ancestor:
    run = step["run"]
    notes = [f"{run['decision']}: {metric_of(run)}" + (f", {p_value(run['p'])}" if run["p"] is not None else "")]
    if run["data"] is not None:
        reused = "reused" if run["cacheHit"] else "written"
        notes.append(f"cache {run['data'][:SHORT]}, {reused}; {cost_of(run)}")
    if step["beside"]:
        kept = sum(other["kept"] for other in step["beside"])
        notes.append(f"from the same parent {counted(len(step['beside']), 'other run')}, of which {kept} kept it")
    title = f"{run['verb']}, {str(run['finished'])[:16].replace('T', ' ')}"
    return Ancestor(title, (run["model"] or "")[:SHORT], notes, run["id"], step["cacheOf"] or "")
