"""Reports of a run: its events, its record, a live line per phase, and displays of results as text, HTML and pictures."""

from sparkdiff.report.ancestry import ancestor_picture, ancestors_of
from sparkdiff.report.difference_table import difference_headline, difference_sections
from sparkdiff.report.plan_drawing import plan_picture
from sparkdiff.report.progress import (
    Events,
    Phases,
    Progress,
    RemainingTime,
    advance,
    change,
    check_callbacks,
    counted,
    duration,
    enumeration,
    is_progress_shown,
    share_of,
    signed,
    tell,
)
from sparkdiff.report.run_record import FineTuningSummary, RunRecord, versions
from sparkdiff.report.sections import (
    Displayable,
    DisplayableFields,
    RunPlan,
    Section,
    SectionTable,
    StrongLine,
    SummarizedModel,
    aligned,
    as_html,
)
from sparkdiff.report.summary_sections import p_value
from sparkdiff.report.svg import Drawing

__all__ = [
    "Displayable",
    "DisplayableFields",
    "Drawing",
    "Events",
    "FineTuningSummary",
    "Phases",
    "Progress",
    "RemainingTime",
    "RunPlan",
    "RunRecord",
    "Section",
    "SectionTable",
    "StrongLine",
    "SummarizedModel",
    "advance",
    "aligned",
    "ancestor_picture",
    "ancestors_of",
    "as_html",
    "change",
    "check_callbacks",
    "counted",
    "difference_headline",
    "difference_sections",
    "duration",
    "enumeration",
    "is_progress_shown",
    "p_value",
    "plan_picture",
    "share_of",
    "signed",
    "tell",
    "versions",
]
