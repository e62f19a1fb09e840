"""The section `tracking` of a job: checks that need neither a session nor torch."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparkdiff.errors import InputError, check_keys, kind_of
from sparkdiff.history.model_registry import ALIAS, check_version
from sparkdiff.machine import paths

FILES = ("jsonLines", "tensorboard")
"""Keys whose values are paths: of a file (jsonLines) and of a folder (tensorboard)."""
MLFLOW = {
    "uri": str,
    "experiment": str,
    "runName": str,
    "registeredModelName": str,
    "alias": str,
    "registerOriginal": bool,
    "dfsTmpdir": str,
}
"""The keys below `mlflow`, with their types."""
SERVERS = ("databricks", "databricks-uc")
"""Values of `uri` that MLflow treats as servers, although they are no URLs."""
NEEDS = {"mlflow": "mlflow", "tensorboard": "tensorboard"}
"""Packages that keys need; sparkdiff's optional extras with the names of the keys install them."""


def check(given: Mapping[str, Any]) -> dict[str, Any]:
    """The section `tracking` after checks; an empty value of `mlflow` becomes an empty mapping.

    Raises:
        InputError: a key is unknown, a value is wrong, or a package is missing.
    """
    check_keys("tracking: unknown key", given, (*FILES, "mlflow"))
    for key, value in given.items():
        if key in FILES and (not isinstance(value, str) or not value or paths.local(value) is None):
            raise InputError(f"tracking.{key} must be a path on the file system of this machine. Got {value!r} instead")
        if key in NEEDS and importlib.util.find_spec(NEEDS[key]) is None:
            raise InputError(f'tracking.{key} needs a package: pip install "sparkdiff[{key}]"')
    if (lines := given.get("jsonLines")) is not None and Path(lines).is_dir():
        raise InputError(f"tracking.jsonLines={lines} is a folder: name a file")
    return {key: _mlflow(value) if key == "mlflow" else value for key, value in given.items()}


def _mlflow(given: Any) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise InputError(f"tracking.mlflow must be a mapping of names to values. Got {kind_of(given)} instead")
    check_keys("tracking.mlflow: unknown key", given, MLFLOW)
    for key, value in given.items():
        if not isinstance(value, MLFLOW[key]) or value == "":
            kind = "true or false" if MLFLOW[key] is bool else "text"
            raise InputError(f"tracking.mlflow.{key} must be {kind}. Got {value!r} instead")
    check_version(given.get("registeredModelName"), given.get("alias", ALIAS), "tracking.mlflow.")
    return given
