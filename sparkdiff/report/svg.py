"""SVG pictures: a drawing that notebooks show, functions for its texts, lines and boxes, and the writing of its file.

Colours are translucent, so that they suit a light and a dark page.
"""

import textwrap
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sparkdiff.errors import InputError
from sparkdiff.machine import atomic_files

WIDTH_OF = {"title": 8.2, "columns": 6.7, "strong": 7.1, "note": 6.4}
"""Upper bound of the average width of a character, in pixels, in the widest of the fonts."""

STYLE = """
.sparkdiff-plan {color: inherit; font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif;
  max-width: 100%; height: auto}
.sparkdiff-plan text {fill: currentColor; stroke: none}
.sparkdiff-plan .title {font-size: 13px; font-weight: 600}
.sparkdiff-plan .columns {font: 11px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; opacity: .75}
.sparkdiff-plan .strong {font-weight: 600}
.sparkdiff-plan .note {opacity: .85}
.sparkdiff-plan .spark {fill: #848d97; fill-opacity: .18; stroke: #848d97; stroke-dasharray: 4 3}
.sparkdiff-plan .torch {fill: #2f81f7; fill-opacity: .04; stroke: #2f81f7; stroke-opacity: .6}
.sparkdiff-plan .trains {fill: #2f81f7; fill-opacity: .22; stroke: #2f81f7; stroke-width: 2}
.sparkdiff-plan .line {fill: none; stroke: #848d97; stroke-width: 1.3}
.sparkdiff-plan .gradient {fill: none; stroke: #2f81f7; stroke-width: 2.6}
.sparkdiff-plan .head {fill: #848d97; stroke: none}
.sparkdiff-plan .head.flows {fill: #2f81f7}
.sparkdiff-plan .reused {fill: none; stroke: #848d97; stroke-width: 1.3; stroke-dasharray: 4 3}
.sparkdiff-plan .data {fill: none; stroke: #848d97; stroke-width: 1.3}
.sparkdiff-plan .cut {stroke: #d4600a; stroke-width: 2.4; fill: none}
.sparkdiff-plan .loss {fill: #2f81f7; fill-opacity: .35; stroke: #2f81f7}
.sparkdiff-plan .frame {fill: none; stroke: #848d97; stroke-opacity: .6}
"""
ON_WHITE = ".sparkdiff-plan {color: #1f2328; background: #ffffff}"
"""Colours for a picture in a file, or in a notebook that isolates pictures from its page, where the page's colours are
unknown.
"""
OWN = b'="sparkdiff'
"""Part of the first lines of a picture (its class) and of a page of a report (its generator)."""


def write_own_file(path: Path, text: str) -> None:
    """Write a picture or a page; a file that is no picture or page of this package is not replaced.

    Raises:
        InputError: the path is such a file, or cannot be written.
    """
    try:
        if path.is_file() and OWN not in path.read_bytes()[:1000]:
            raise InputError(f"{path} exists and was not written by sparkdiff: choose another name, or move it away")
        atomic_files.write_bytes(path, text.encode())
    except OSError as e:
        raise InputError(f"{path} cannot be written: {e.strerror or e}") from e


class Drawing:
    """A picture that a notebook shows, and that `save` writes as a file."""

    def __init__(self, root: ElementTree.Element):
        self._root = root

    def __repr__(self) -> str:
        return f"<Drawing, {self._root.get('width')} x {self._root.get('height')} pixels; save(path) writes it as SVG>"

    def _repr_svg_(self) -> str:
        return self._text(STYLE + ON_WHITE)

    def _repr_html_(self) -> str:
        return self._text(STYLE)

    def save(self, path: str | Path) -> None:
        """Write the picture as SVG, dark on white.

        Raises:
            InputError: the folder does not exist or cannot be written, or the file exists and is no picture or page of
                sparkdiff.
        """
        write_own_file(Path(path), self._repr_svg_())

    def _text(self, style: str) -> str:
        whole = ElementTree.Element("svg", self._root.attrib)
        ElementTree.SubElement(whole, "style").text = style
        whole.extend(self._root)
        return ElementTree.tostring(whole, encoding="unicode")


def length(text: str, style: str) -> float:
    """Width of a text in pixels; a wide East Asian character counts twice."""
    return WIDTH_OF[style] * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cropped(text: str, style: str, width: float) -> str:
    while text and length(text, style) > width:
        text = text[:-2].rstrip() + "…" if text.endswith("…") else text[:-1] + "…"
    return text


def wrapped(text: str, style: str, width: float) -> list[str]:
    wide = length(text, style) / max(WIDTH_OF[style] * len(text), 1)
    return textwrap.wrap(text, max(int(width / WIDTH_OF[style] / max(wide, 1)), 10))


def canvas(width: float, height: float, title: str) -> ElementTree.Element:
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "sparkdiff-plan",
            "role": "img",
            "width": f"{width:g}",
            "height": f"{height:g}",
            "viewBox": f"0 0 {width:g} {height:g}",
        },
    )
    ElementTree.SubElement(root, "title").text = title
    return root


def label(parent: ElementTree.Element, text: str, x: float, y: float, style: str) -> None:
    ElementTree.SubElement(parent, "text", {"class": style, "x": f"{x:g}", "y": f"{y:g}"}).text = text


def add(parent: ElementTree.Element, tag: str, style: str, **attributes: Any) -> None:
    given = {k: v if isinstance(v, str) else f"{v:g}" for k, v in attributes.items()}
    ElementTree.SubElement(parent, tag, {"class": style, **given})
