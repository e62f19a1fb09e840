"""A budget of processor time, parsed from text."""

import re

from sparkdiff.errors import InputError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
FORM = re.compile(
    r"\s*(\d+(?:\.\d+)?)\s*(?:core[-\s]\s*)?(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:ours?)?)\s*", re.IGNORECASE
)


def core_seconds(text: str) -> float:
    """The number of core-seconds that a text such as "4 core-hours", "30 core-minutes" or "90s" means.

    Raises:
        InputError: the text has another form, or its amount is 0.
    """
    found = FORM.fullmatch(text) if isinstance(text, str) else None
    if not found or not float(found[1]):
        raise InputError(f"budget={text!r} must be processor time such as '4 core-hours', '30 core-minutes' or '90s'")
    return float(found[1]) * UNITS[found[2][0].lower()]
