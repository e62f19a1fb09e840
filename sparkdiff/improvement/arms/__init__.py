"""The list of the arms (ways to improve a pipeline, which compete), and a module for each."""

from sparkdiff.improvement.arms import fine_tuning, growing, refitting, searching, simplifying, threshold
from sparkdiff.improvement.candidate import Arm
from sparkdiff.improvement.improvement_options import ImprovementSettings

ARMS: tuple[Arm, ...] = (
    refitting.ARM,
    fine_tuning.ARM,
    threshold.ARM,
    simplifying.ARM,
    searching.ARM,
    growing.IMPORT,
    growing.GROW,
)
"""All arms, the cheap ones first."""


def arms_of(settings: ImprovementSettings) -> list[Arm]:
    """Arms that the settings allow, the cheap ones first."""
    return [arm for arm in ARMS if arm.name in settings.allowed_arms()]
