"""The options of a job by its sections: checks, hints for names in other places, and the list of `sparkdiff options`. Needs
neither a session nor torch.
"""

import dataclasses
import json
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparkdiff.errors import InputError, check_keys, did_you_mean
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.improvement.improvement_options import WHY_REFUSED, ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.search.search_options import Settings

SETTINGS: Mapping[str, Any] = {
    "fineTuner": Options,
    "improver": ImprovementSettings,
    "grower": GrowthSettings,
    "search": Settings,
}
FIELDS = {name: {field.name: field for field in dataclasses.fields(kind)} for name, kind in SETTINGS.items()}
"""The options of each section, by name."""
OWN = ("space", "metric", "current")
"""Keys of the section `search` that are not options of `sparkdiff.Search`."""
READERS = {
    "fineTuner": "finetune, improve, grow, and a search that fine-tunes",
    "improver": "improve",
    "grower": "grow",
    "search": "search",
}
"""Commands that read the options of a section."""
OTHER_NAMES = {"model": "pipeline", "label": "labelCol", "group": "groupCol", "time": "timeCol", "weight": "weightCol"}
"""Names that users write for settings, and the settings' own names."""


def check(section: str, given: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Check the section `grower` or `improver` of a job.

    Args:
        section: the name of the section.
        given: its content.
        others: the content of the section `fineTuner`.

    Raises:
        InputError: a key is unknown, a value is wrong, or an option of `fineTuner` is not possible with this section.
    """
    check_names(f"{section}: unknown key", given, FIELDS[section])
    try:
        SETTINGS[section].of(given)
    except InputError as e:
        raise InputError(f"{section}: {e}") from e
    for name, why in WHY_REFUSED.items() if section == "improver" else [("tune", WHY_REFUSED["tune"])]:
        if others.get(name) and others[name] != getattr(Options(), name):
            raise InputError(
                f"fineTuner.{name}={others[name]!r} is not possible with a section {section}: {why}. Leave it out"
            )


def check_names(what: str, given: Iterable[Any], known: Collection[str]) -> None:
    """Raise InputError for a name that is not known, with the settings of this name; `what` is the beginning of its message."""
    for name in given:
        if name not in known and (places := places_of(str(name))):
            raise InputError(f"{what} {name!r}. Did you mean {' or '.join(places)}?")
    check_keys(what, given, known)


def check_flags(words: Sequence[str], known: Collection[str], *, takes_overrides: bool) -> None:
    """Raise InputError for a flag that a command does not have, if it has the name of a setting.

    Args:
        words: the arguments of the command.
        known: the flags of the command.
        takes_overrides: True if the command takes settings as section.key=value.
    """
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        places = places_of(flag[2:]) if flag not in known else []
        if places == ["pipeline"] or (places and takes_overrides):
            ways = [f"write {place}=..." for place in places if place != "pipeline"]
            raise InputError(
                f"there is no flag {flag}: "
                f"{' or '.join(ways) or 'name the model as the first argument, such as models/churn'}"
            )


def places_of(name: str) -> list[str]:
    """The settings that a name may mean, as `section.key`, whatever its case and hyphens: fineTuner.maxEpochs for max-epochs."""
    plain = OTHER_NAMES.get(name, name).replace("-", "").replace("_", "").lower()
    options = (f"{section}.{key}" for section, fields in FIELDS.items() for key in fields)
    settings = ("pipeline", *options, *(f"search.{key}" for key in OWN))
    return [place for place in settings if place.rpartition(".")[2].lower() == plain]


def list_options(word: str) -> Iterator[str]:
    """The lines of a list of the options whose name or description contains this word, by section, with their defaults.

    Raises:
        InputError: there is none.
    """
    found = {
        section: [f for f in fields.values() if word.lower() in f"{section}.{f.name} {f.metadata['help']}".lower()]
        for section, fields in FIELDS.items()
    }
    if not any(found.values()):
        raise InputError(
            f"no option has {word!r} in its name or description. {did_you_mean(word, set().union(*FIELDS.values()))}"
        )
    for section, fields in found.items():
        if fields:
            yield f"{section} (read by {READERS[section]})"
        for field in fields:
            default = json.dumps(getattr(SETTINGS[section](), field.name))
            yield f"  {section}.{field.name}={default}".replace('"', "").removesuffix("null")  # null: not set
            yield textwrap.indent(textwrap.fill(field.metadata["help"], 90), " " * 6)
