"""What a run shows: a live line per phase, and the before/after table."""

from sparkdiff.report.progress import Phases
from sparkdiff.report.table import before_after, p_value

__all__ = ["Phases", "before_after", "p_value"]
