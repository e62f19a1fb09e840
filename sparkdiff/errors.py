"""Every error that sparkdiff raises on purpose."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any


class SparkdiffError(Exception):
    """Base of all errors raised by sparkdiff: what was found, why it cannot be, what to do."""


class InputError(SparkdiffError):
    """The caller's input (pipeline, data, options) cannot be used as it is. The command exits with 2."""


class FullDiskError(SparkdiffError):
    """There is no room for a file that is needed. The command exits with 1."""


class ParityError(SparkdiffError):
    """Spark and the translated network disagree by more than the tolerance. The command exits with 1."""


def kind_of(value: Any) -> str:
    """What a value of the wrong type is: `str`, or `pandas.DataFrame` where a library made it."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


def check_dataframe(name: str, given: Any) -> None:
    """Raise InputError where `given` is no DataFrame of Spark."""
    if isinstance(given, type) or not hasattr(given, "isStreaming"):
        way = (
            "load one with spark.read"
            if isinstance(given, (str, os.PathLike))
            else "create one with spark.createDataFrame"
        )
        way = "its to_spark() returns one" if hasattr(given, "to_spark") else way
        raise InputError(f"{name} must be a Spark DataFrame, got {kind_of(given)}: {way}")


def check_type(name: str, given: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise InputError where `given` is of none of these kinds."""
    if not isinstance(given, kinds):
        raise InputError(f"{name} must be {wanted}, got {kind_of(given)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that lists the nearest known names, or all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Known: {', '.join(known)}."
