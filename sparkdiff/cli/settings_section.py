"""The sections `grower` and `improver` of a job: checks that need neither a session nor torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparkdiff import options
from sparkdiff.errors import InputError, check_keys
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.improvement.improvement_options import WHY_REFUSED, ImprovementSettings

SETTINGS: Mapping[str, Any] = {"grower": GrowthSettings, "improver": ImprovementSettings}


def check(section: str, given: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Check the section `grower` or `improver` of a job.

    Args:
        section: the name of the section.
        given: its content.
        others: the content of the section `fineTuner`.

    Raises:
        InputError: a key is unknown, a value is wrong, or an option of `fineTuner` is not possible with this section.
    """
    for key in given:
        if key in options.FIELDS:
            raise InputError(f"{section}: {key!r} is an option of the section fineTuner: fineTuner.{key}={given[key]}")
    check_keys(f"{section}: unknown key", given, [field.name for field in dataclasses.fields(SETTINGS[section])])
    try:
        SETTINGS[section].of(given)
    except InputError as e:
        raise InputError(f"{section}: {e}") from e
    for name, why in WHY_REFUSED.items() if section == "improver" else [("tune", WHY_REFUSED["tune"])]:
        if others.get(name):
            raise InputError(
                f"fineTuner.{name}={others[name]!r} is not possible with a section {section}: {why}. Leave it out"
            )
