"""Texts and tables that a person reads, told once and shown twice: as plain text, and as HTML in a notebook."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

LONG = 40
"""Characters of a cell from which on a browser may break its line."""


@dataclasses.dataclass(frozen=True)
class SectionTable:
    """A table; its first row is the head.

    Attributes:
        left: the columns that begin at the left; the others end at the right.
        ruled: whether the text has a line under the head.
    """

    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    ruled: bool = False


class Strong(str):
    """A line that matters most."""

    strong = True


Section = str | SectionTable


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """A line per row: the columns `left` begin at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    ]


def as_text(sections: Iterable[Section]) -> str:
    """The sections as lines of text."""
    return "\n".join(line for section in sections for line in _lines(section))


def _lines(section: Section) -> list[str]:
    if isinstance(section, str):
        return [section]
    lines = aligned(section.rows, section.left)
    return [lines[0], "-" * len(lines[0]), *lines[1:]] if section.ruled else lines


def as_html(sections: Iterable[Section]) -> str:
    """The sections as one `<div>` for a notebook: all text is escaped, colours are the page's own, and nothing runs."""
    return _template().render(sections=list(sections), long=LONG)


class Shown:
    """A result that shows itself: one line in a console, all of it by `print`, and as tables in a notebook."""

    def _headline(self) -> str:
        raise NotImplementedError

    def _sections(self) -> Iterable[Section]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._headline()}>"

    def __str__(self) -> str:
        return as_text(self._sections())

    def _repr_html_(self) -> str:
        return as_html(self._sections())


class ShownFields(Shown):
    """A dataclass that shows itself, and gives its fields as plain values and as JSON; times there are in ISO 8601."""

    def toDict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    def toJSON(self) -> str:
        return json.dumps(self.toDict(), indent=2, default=datetime.isoformat)


class ShownByStage(ShownFields):
    """A dataclass with an entry per stage in `stages`."""

    stages: tuple[Any, ...]

    def toPandas(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(s) for s in self.stages])


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2  # only where a notebook asks for it

    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)


TEMPLATE = """\
<div class="sparkdiff">
<style>
.sparkdiff {color: inherit; line-height: 1.45; overflow-x: auto}
.sparkdiff p {margin: 0.15em 0; white-space: pre-line; overflow-wrap: anywhere}
.sparkdiff p.warning {border-left: 3px solid rgba(201, 130, 43, 0.9); padding-left: 0.6em; margin: 0.4em 0}
.sparkdiff table {border-collapse: collapse; margin: 0.4em 0; color: inherit; background: none}
.sparkdiff tr {background: none}
.sparkdiff th, .sparkdiff td {
  font-variant-numeric: tabular-nums;
  padding: 0.2em 0.8em; text-align: right; vertical-align: top; white-space: nowrap; color: inherit; background: none;
  border: 0 solid rgba(128, 128, 128, 0.3); border-bottom-width: 1px}
.sparkdiff th {font-weight: 600; border-bottom-color: currentColor}
.sparkdiff table tr td.left, .sparkdiff table tr th.left {text-align: left}
.sparkdiff table tr td.long {white-space: normal; min-width: 20em}
</style>
{% for section in sections %}
{% if section.rows is defined %}
<table>
{% for row in section.rows %}
{% set tag = "th" if loop.first else "td" %}
<tr>{% for cell in row %}
<{{ tag }} class="{{ 'left' if loop.index0 in section.left }}{{ ' long' if cell|length > long }}">{{ cell.strip() }}</{{ tag }}>
{%- endfor %}
</tr>
{% endfor %}
</table>
{% else %}
{% set kind = "warning" if section.startswith("warning: ") else "said" %}
<p class="{{ kind }}">{% if section.strong is defined %}<strong>{{ section }}</strong>{% else %}{{ section }}{% endif %}</p>
{% endif %}
{% endfor %}
</div>"""
