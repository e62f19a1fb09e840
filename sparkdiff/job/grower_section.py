"""The section `grower` of a job: what it may hold, checked without a session and without torch."""

from collections.abc import Mapping
from typing import Any

from sparkdiff import options
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.growth.settings import FIELDS, REFUSED, GrowthSettings


def check(given: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """
    Args:
        others: the section `fineTuner`.

    Raises:
        InputError: a key is unknown, a value is wrong, or growth has no such option.
    """
    for key in given:
        if key in options.FIELDS:
            raise InputError(f"grower: {key!r} is an option of the section fineTuner: fineTuner.{key}={given[key]}")
        if key not in FIELDS:
            raise InputError(f"grower: unknown key {key!r}. {did_you_mean(str(key), FIELDS)}")
    try:
        GrowthSettings.of(given)
    except InputError as e:
        raise InputError(f"grower: {e}") from e
    for name in REFUSED:
        if others.get(name):
            raise InputError(
                f"fineTuner.{name}={others[name]!r} is not possible with a section grower: growth holds validation rows out, and "
                "fits once. Leave it out"
            )
