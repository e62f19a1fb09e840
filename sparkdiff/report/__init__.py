"""What a run shows: a live line per phase, the before/after table, and the table of what differs."""

from sparkdiff.report.difference_table import difference_table
from sparkdiff.report.progress import Phases
from sparkdiff.report.table import before_after, p_value

__all__ = ["Phases", "before_after", "difference_table", "p_value"]
