"""The section `improver` of a job: what it may hold, checked without a session and without torch."""

from collections.abc import Mapping
from typing import Any

from sparkdiff import options
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.improvement.settings import FIELDS, REFUSED, WHY_REFUSED, ImprovementSettings


def check(given: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """
    Args:
        others: the section `fineTuner`.

    Raises:
        InputError: a key is unknown, a value is wrong, or an improvement has no such option.
    """
    for key in given:
        if key in options.FIELDS:
            raise InputError(f"improver: {key!r} is an option of the section fineTuner: fineTuner.{key}={given[key]}")
        if key not in FIELDS:
            raise InputError(f"improver: unknown key {key!r}. {did_you_mean(str(key), FIELDS)}")
    try:
        ImprovementSettings.of(given)
    except InputError as e:
        raise InputError(f"improver: {e}") from e
    for name in REFUSED:
        if others.get(name):
            raise InputError(
                f"fineTuner.{name}={others[name]!r} is not possible with a section improver: {WHY_REFUSED[name]}. Leave it out"
            )
