"""The ways to a better pipeline, one file each, and their list."""

from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.arms import fine_tuning, growing, refitting, searching, simplifying

ARMS: tuple[Arm, ...] = (
    refitting.ARM, fine_tuning.ARM, simplifying.ARM, searching.ARM, growing.IMPORT, growing.GROW,
)  # fmt: skip
"""The cheap ones first."""
