"""Every error that sparkdiff raises on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparkdiffError(Exception):
    """Base of all errors raised by sparkdiff: what was found, why it cannot be, what to do."""


class InputError(SparkdiffError):
    """The caller's input (pipeline, data, options) cannot be used as it is. The command exits with 2."""


class ParityError(SparkdiffError):
    """Spark and the translated network disagree by more than the tolerance. The command exits with 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that lists the nearest known names, or all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Known: {', '.join(known)}."
