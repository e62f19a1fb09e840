"""Reports of a run: its events, its record, a live line per phase, and displays of results as text, HTML and pictures."""

from sparkdiff.report.ancestry import ancestors_of, drawn_ancestors
from sparkdiff.report.difference_table import difference_headline, difference_sections
from sparkdiff.report.drawing import drawn
from sparkdiff.report.progress import (
    Events,
    Phases,
    Progress,
    RemainingTime,
    advance,
    change,
    check_callbacks,
    duration,
    share_of,
    shown,
    tell,
)
from sparkdiff.report.record import FineTuningSummary, RunRecord, versions
from sparkdiff.report.sections import Section, SectionTable, Shown, ShownFields, Strong, aligned, as_html
from sparkdiff.report.svg import Drawing
from sparkdiff.report.table import p_value

__all__ = [
    "Drawing",
    "Events",
    "FineTuningSummary",
    "Phases",
    "Progress",
    "RemainingTime",
    "RunRecord",
    "Section",
    "SectionTable",
    "Shown",
    "ShownFields",
    "Strong",
    "advance",
    "aligned",
    "ancestors_of",
    "as_html",
    "change",
    "check_callbacks",
    "difference_headline",
    "difference_sections",
    "drawn",
    "drawn_ancestors",
    "duration",
    "p_value",
    "share_of",
    "shown",
    "tell",
    "versions",
]  # fmt: skip
