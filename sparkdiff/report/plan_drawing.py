"""A picture of a plan: a row per stage in the order of the pipeline, with its box, its role, and its columns as lines.

The lines of columns run beside the boxes, each from the stage that writes the column down to the stages that read it,
so that text never crosses a line and a pipeline of any length or width stays legible. A lane is a vertical track for
such lines.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from sparkdiff.report.svg import add, canvas, cropped, label, length, wrapped

BOX, TEXT, HEIGHT, GAP, LINE, LANE, MARGIN, FRAME = 365, 450, 44, 24, 16, 9, 12, 7
"""Sizes in pixels: width of a box, width of the text beside the box, height of a box, gap between rows, height of a
text line, width of a lane, margin, padding of a frame."""
LOSS = 42
"""Width in pixels of the mark of the stage whose outputs enter the loss."""
BESIDE = 10
"""Pixels between a box and the text beside the box."""
NOTES = 3
"""Largest number of lines of a reason; the tooltip has the whole reason."""


class Row(NamedTuple):
    """The row of a stage: the stage's box begins at `left` and `top`, the row ends at `bottom`, and `notes` are its
    texts.
    """

    stage: Mapping[str, Any]
    left: float
    top: float
    bottom: float
    notes: Sequence[str]


def plan_picture(plan: Mapping[str, Any], total: str) -> ElementTree.Element:
    """The picture of a plan.

    Args:
        plan: the plan as plain values, as in `plan.json`.
        total: text about the whole plan, shown below the picture.
    """
    buses, cuts = _buses(plan), _cuts(plan)
    lanes = _lanes(buses)
    depth = max((len(s["path"]) for s in plan["stages"]), default=1)
    left = MARGIN + 26 + LANE * (max(lanes, default=-1) + 1) + FRAME * depth
    rows = _rows(plan, left, cuts)
    bottom = (rows[-1].bottom if rows else MARGIN + 2 * GAP) + GAP
    width = left + BOX + FRAME * depth + BESIDE + TEXT + MARGIN
    told = wrapped(total, "strong", width - 2 * MARGIN)
    root = canvas(width, bottom + LINE * (len(told) + 1), f"plan: {total}")
    _legend(root)
    for frame in _frames(rows, depth):
        add(root, "rect", "frame", rx=10, **frame)
    for flows in (False, True):  # gradients above the other lines
        for bus, lane in zip(buses, lanes, strict=True):
            if bus.gradients == flows:
                _bus(root, bus, rows, left - FRAME * depth - 14 - LANE * lane)
    for i, row in enumerate(rows):
        beside, reads_data = left + BOX + FRAME * depth + BESIDE, any(e["source"] < 0 for e in _into(plan, i))
        _box(root, row, beside, columns=BOX - 20 - LOSS * (i == plan["head"]), reads_data=reads_data)
    for i in sorted(cuts):
        x, y = rows[i].left - 1, rows[i].top + HEIGHT
        add(root, "path", "cut", d=f"M{x - 4} {y - 14}l8 8m0 -8l-8 8")
    if plan["head"] is not None:
        _loss(root, rows[plan["head"]])
    for k, line in enumerate(told):
        label(root, line, MARGIN, bottom + LINE * (k + 1), "strong")
    return root


# Lines ----------------------------------------------------------------------------------------------------------------


class Bus(NamedTuple):
    """A line for the columns of stages with the same readers, from these stages to those that read the columns."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    gradients: bool
    columns: tuple[str, ...]

    @property
    def straight(self) -> bool:
        """True if the line only leads from one row to the next."""
        return len(self.sources) == len(self.targets) == 1 and self.targets[0] == self.sources[0] + 1


def _into(plan: Mapping[str, Any], target: int) -> list[Mapping[str, Any]]:
    return [e for e in plan["edges"] if e["target"] == target]


def _buses(plan: Mapping[str, Any]) -> list[Bus]:
    """The lines of columns between stages. Stages share a line if the same stages read their columns.

    A stage whose columns only the next stage reads has a straight line of its own. Columns along which gradients flow
    count apart from the others.
    """
    columns: dict[tuple[int, bool], dict[int, list[str]]] = {}
    for e in plan["edges"]:
        if e["source"] >= 0:
            columns.setdefault((e["source"], e["gradients"]), {}).setdefault(e["target"], []).append(e["column"])
    shared: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    buses = []
    for (source, gradients), readers in columns.items():
        targets = tuple(sorted(readers))
        if targets == (source + 1,):
            buses.append(Bus((source,), targets, gradients, tuple(readers[targets[0]])))
        else:
            shared.setdefault((gradients, targets), []).append(source)
    for (gradients, targets), sources in shared.items():
        names = (c for s in sources for read in columns[s, gradients].values() for c in read)
        buses.append(Bus(tuple(sources), targets, gradients, tuple(dict.fromkeys(names))))
    return buses


def _lanes(buses: Sequence[Bus]) -> list[int]:
    """The lane of each bus, counted from the boxes; -1 for a straight bus. Shorter buses get nearer lanes; no two
    overlap.
    """
    taken: list[list[tuple[int, int]]] = []
    found = [-1] * len(buses)
    spans = {k: (min(b.sources), max(b.targets)) for k, b in enumerate(buses) if not b.straight}
    for k, (start, end) in sorted(spans.items(), key=lambda item: (item[1][1] - item[1][0], item[1])):
        free = (n for n, lane in enumerate(taken) if all(end < a or b < start for a, b in lane))
        found[k] = next(free, len(taken))
        if found[k] == len(taken):
            taken.append([])
        taken[found[k]].append((start, end))
    return found


def _bus(root: ElementTree.Element, bus: Bus, rows: Sequence[Row], lane: float) -> None:
    group = ElementTree.SubElement(root, "g")
    ElementTree.SubElement(group, "title").text = ", ".join(bus.columns)
    style = "gradient" if bus.gradients else "line"
    if bus.straight:
        above, below = rows[bus.sources[0]], rows[bus.targets[0]]
        x = max(above.left, below.left) + 24
        add(group, "path", style, d=f"M{x} {above.top + HEIGHT}V{below.top - 6}")
        add(group, "path", _head(bus), d=f"M{x - 4} {below.top - 7}h8l-4 7z")
        return
    for source in bus.sources:
        row = rows[source]
        add(group, "path", style, d=f"M{row.left} {row.top + HEIGHT - 10}H{lane + 5}q-5 0 -5 5")
    first, last = min(bus.sources), max(bus.targets)
    add(group, "path", style, d=f"M{lane} {rows[first].top + HEIGHT - 5}V{rows[last].top + 7}")
    for target in bus.targets:
        row = rows[target]
        add(group, "path", style, d=f"M{lane} {row.top + 7}q0 5 5 5H{row.left - 6}")
        add(group, "path", _head(bus), d=f"M{row.left - 7} {row.top + 8}v8l7 -4z")


def _head(bus: Bus) -> str:
    return "head flows" if bus.gradients else "head"


def _cuts(plan: Mapping[str, Any]) -> set[int]:
    """Indices of the stages at which gradients stop: on each path back from the loss, the first stage that gets
    no gradients and stays in Spark or has parameters that do not train.
    """
    out: set[int] = set()
    stack, seen = [plan["head"]] if plan["head"] is not None else [], set()
    while stack:
        for e in _into(plan, stack.pop()):
            i = e["source"]
            if i < 0 or i in seen:
                continue
            seen.add(i)
            s = plan["stages"][i]
            stops = s["role"] != "translated" or (s["numParameters"] and not s["trainable"])
            if stops and not e["gradients"]:
                out.add(i)
            else:
                stack.append(i)
    return out


# Rows -----------------------------------------------------------------------------------------------------------------


def _rows(plan: Mapping[str, Any], left: float, cuts: set[int]) -> list[Row]:
    out, top = [], MARGIN + 2.0 * GAP
    for i, stage in enumerate(plan["stages"]):
        notes = [_status(stage, i in cuts), *_shortened(wrapped(stage["reason"], "note", TEXT))]
        height = max(HEIGHT, LINE * len(notes) + 4)
        out.append(Row(stage, left, top, top + height, notes))
        top += height + GAP
    return out


def _status(stage: Mapping[str, Any], cut: bool) -> str:
    where = "in torch" if stage["role"] == "translated" else "in Spark"
    where = "in Spark, before the cache" if stage["cached"] else where
    number = stage["numParameters"]
    if stage["trainable"]:
        return f"trains {number:,} parameter{'s' * (number != 1)}"
    return f"{where}; gradients stop here" if cut else where


def _frames(rows: Sequence[Row], depth: int) -> Iterator[dict[str, Any]]:
    """Frames around the stages of each nested pipeline."""
    for level in range(1, depth):
        pad = FRAME * (depth - level)
        for held in _together(rows, level):
            top, end = held[0].top - pad, held[-1].top + HEIGHT + pad
            yield {"x": held[0].left - pad, "y": top, "width": BOX + 2 * pad, "height": end - top}


def _together(rows: Sequence[Row], level: int) -> Iterator[list[Row]]:
    """The rows of each pipeline that is nested at depth `level`."""
    for prefix, inside in itertools.groupby(rows, lambda row: tuple(row.stage["path"][:level])):
        held = [*inside]
        if len(prefix) == level < len(held[0].stage["path"]):
            yield held


def _box(root: ElementTree.Element, row: Row, beside: float, *, columns: float, reads_data: bool) -> None:
    s = row.stage
    group = ElementTree.SubElement(root, "g")
    names = f"{', '.join(s['inputCols'])} → {', '.join(s['outputCols'])}"
    ElementTree.SubElement(group, "title").text = f"{s['uid']}\n{names}\n{s['reason']}"
    kind = "trains" if s["trainable"] else "spark" if s["cached"] or s["role"] != "translated" else "torch"
    add(group, "rect", kind, x=row.left, y=row.top, width=BOX, height=HEIGHT, rx=6)
    number = ".".join(map(str, s["path"])) or "0"
    title = cropped(f"{number} {s['stageClass']}", "title", BOX - 20)  # the longest of Spark's names fits
    label(group, title, row.left + 10, row.top + 18, "title")
    label(group, _flow(s["inputCols"], s["outputCols"], columns), row.left + 10, row.top + 35, "columns")
    for k, line in enumerate(row.notes):
        label(group, line, beside, row.top + 14 + LINE * k, "note" if k else "strong")
    if reads_data:
        add(group, "circle", "data", cx=row.left - 9, cy=row.top + HEIGHT / 2, r=3)
        add(group, "path", "data", d=f"M{row.left - 6} {row.top + HEIGHT / 2}h6")


def _loss(root: ElementTree.Element, row: Row) -> None:
    x, y = row.left + BOX - LOSS - 6, row.top + HEIGHT - 21
    add(root, "rect", "loss", x=x, y=y, width=LOSS, height=16, rx=8)
    label(root, "loss", x + 8, y + 12, "note")


def _legend(root: ElementTree.Element) -> None:
    x = float(MARGIN)
    for kind, words in (("spark", "in Spark"), ("torch", "in torch"), ("trains", "trains")):
        add(root, "rect", kind, x=x, y=MARGIN, width=22, height=14, rx=3)
        x = _add_legend_text(root, words, x + 28)
    for kind, words in (("line", "column"), ("gradient", "column, gradients flow back")):
        add(root, "path", kind, d=f"M{x} {MARGIN + 7}h22")
        x = _add_legend_text(root, words, x + 28)
    add(root, "path", "cut", d=f"M{x} {MARGIN + 3}l8 8m0 -8l-8 8")
    x = _add_legend_text(root, "gradients stop", x + 14)
    add(root, "circle", "data", cx=x + 4, cy=MARGIN + 7, r=3)
    _add_legend_text(root, "reads the data", x + 13)


def _add_legend_text(root: ElementTree.Element, words: str, x: float) -> float:
    label(root, words, x, MARGIN + 11, "note")
    return x + length(words, "note") + 14


# Text ---------------------------------------------------------------------------------------------------------------------


def _flow(inputs: Sequence[str], outputs: Sequence[str], width: float) -> str:
    """The columns that a stage declares to read and to write, on one line."""
    half = (width - length(" → ", "columns")) / 2
    written = f"→ {_names_or_count(outputs, half)}" if outputs else ""
    read = _names_or_count(inputs, width - length(f" {written}", "columns")) if inputs else ""
    return f"{read} {written}".strip()


def _names_or_count(names: Sequence[str], width: float) -> str:
    """The names as text if they fit into `width`; otherwise their number, or for a single name its beginning."""
    text = ", ".join(names)
    if length(text, "columns") <= width:
        return text
    return cropped(names[0], "columns", width) if len(names) == 1 else f"{len(names)} columns"


def _shortened(lines: Sequence[str]) -> list[str]:
    return [*lines] if len(lines) <= NOTES else [*lines[: NOTES - 1], cropped(f"{lines[NOTES - 1]} …", "note", TEXT)]
