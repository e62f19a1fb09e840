"""Reports of a run: its events and its record, a live line per phase, the before/after table, the table of differences."""

from sparkdiff.report.difference_table import difference_table
from sparkdiff.report.progress import Events, Phases
from sparkdiff.report.record import FineTuningSummary, RunRecord
from sparkdiff.report.table import before_after, p_value

__all__ = ["Events", "FineTuningSummary", "Phases", "RunRecord", "before_after", "difference_table", "p_value"]
