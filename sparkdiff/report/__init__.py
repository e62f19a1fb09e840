"""Reports of a run: a live line per phase, the before/after table, and the table of differences."""

from sparkdiff.report.difference_table import difference_table
from sparkdiff.report.progress import Phases
from sparkdiff.report.table import before_after, p_value

__all__ = ["Phases", "before_after", "difference_table", "p_value"]
