"""Rules for names and aliases in MLflow's registry of models, which are checked before a run begins and without MLflow."""

import re

from sparkdiff.errors import InputError

ALIAS, NEVER = "challenger", "champion"
"""The default alias of a version that this package registers, and the alias that only users may set."""


def check_version(name: str | None, alias: str, section: str = "") -> None:
    """Check the name and alias of a new model version. MLflow itself checks them only at the end, when the model is
    stored.

    Args:
        section: prefix of the settings' names in messages.

    Raises:
        InputError: the registry does not accept the name or alias, or only users may set it.
    """
    if name is not None and (not name.strip() or {"/", ":"} & {*name}):
        raise InputError(
            f"{section}registeredModelName={name!r} is no name for MLflow: it may not be empty, nor hold '/' or ':'"
        )
    if alias.strip().lower() == NEVER:
        raise InputError(f"{section}alias={alias!r} is not set here: compare the {ALIAS}, and move the alias yourself")
    if not re.fullmatch(r"(?!(?:latest|v\d+)$)[\w-]{1,255}", alias, re.ASCII | re.IGNORECASE):
        raise InputError(
            f"{section}alias={alias!r} is no alias for MLflow: it has letters, digits, '_' and '-', "
            "and is neither 'latest' nor like 'v1'"
        )
