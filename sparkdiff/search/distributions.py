"""Distributions, the possible values of a Param in a search, as small objects that need neither Spark nor Optuna."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkdiff.errors import InputError, kind_of
from sparkdiff.options import is_finite, is_number

PLAIN = (bool, int, float, str, type(None))
"""Types of values that every study can store unchanged."""
MOST = 10_000
"""Largest number of values, or of settings of a grid, that are listed."""


@dataclass(frozen=True)
class Distribution:
    """The values that a Param may have."""

    __module__ = "sparkdiff"

    def ends(self) -> list[Any]:
        """Values to test a Param with: a Param that accepts these accepts all values of the distribution."""
        raise NotImplementedError

    def listed(self) -> list[Any] | None:
        """All values; None if there are too many to list."""
        return None

    def toDict(self) -> dict[str, Any]:
        """This distribution as a dict for JSON, which `from_dict` reads."""
        return {"kind": type(self).__name__, **vars(self)}


@dataclass(frozen=True)
class Uniform(Distribution):
    """Any number from low to high; with `log`, any order of magnitude with the same probability."""

    __module__ = "sparkdiff"

    low: float
    high: float
    log: bool = False

    def ends(self) -> list[Any]:
        """Both ends, and a fraction between them, which a Param of whole numbers refuses."""
        inner = self.low + 0.6180339887 * (self.high - self.low)  # no whole number, as some Params take only whole ones
        return [self.low, self.high, inner]

    def __str__(self) -> str:
        return f"{'loguniform' if self.log else 'uniform'}({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Integer(Distribution):
    """A whole number from low to high, both included; with `log`, any order of magnitude with the same probability."""

    __module__ = "sparkdiff"

    low: int
    high: int
    log: bool = False

    def ends(self) -> list[Any]:
        """The smallest and the largest number."""
        return [self.low, self.high]

    def listed(self) -> list[Any] | None:
        """All numbers in ascending order; None if there are more than 10,000."""
        return [*range(self.low, self.high + 1)] if self.high - self.low < MOST else None

    def __str__(self) -> str:
        return f"integer({self.low}, {self.high}{', log=True' if self.log else ''})"


@dataclass(frozen=True)
class Choice(Distribution):
    """One of some values of any kind."""

    __module__ = "sparkdiff"

    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """All values, because a Param that accepts some of them may refuse others."""
        return [*self.values]

    def listed(self) -> list[Any]:
        """All values in their order."""
        return [*self.values]

    def names(self) -> list[Any]:
        """Names of the values in a study: the values themselves if they are plain and distinct, else numbered texts."""
        plain = all(isinstance(value, PLAIN) for value in self.values)
        if plain and len({*self.values}) == len(self.values) and not any(value != value for value in self.values):
            return [*self.values]
        return [f"{i}: {_short(value)}" for i, value in enumerate(self.values)]

    def toDict(self) -> dict[str, Any]:
        """This choice as a dict, which `from_dict` reads; it is for JSON if the values are."""
        return {"kind": "Choice", "values": [*self.values]}

    def __str__(self) -> str:
        return f"choice({', '.join(map(_short, self.values))})"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (*PLAIN, list, tuple)) else kind_of(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def uniform(low: float, high: float) -> Uniform:
    """Any number from low to high.

    Args:
        low: the smallest value.
        high: the largest value.

    Raises:
        InputError: an end is not a finite number, or low is above high.

    Examples:
        >>> import sparkdiff
        >>> head = pipeline.getStages()[-1]
        >>> space = {head.elasticNetParam: sparkdiff.uniform(0, 1)}  # for `Search`
    """
    _check("uniform", low, high)
    return Uniform(float(low), float(high))


def loguniform(low: float, high: float) -> Uniform:
    """Any number from low to high whose logarithm is uniform: for penalties and step sizes.

    Args:
        low: the smallest value, above 0.
        high: the largest value.

    Raises:
        InputError: an end is not a finite number, low is not above 0, or low is above high.

    Examples:
        >>> import sparkdiff
        >>> head = pipeline.getStages()[-1]
        >>> space = {head.regParam: sparkdiff.loguniform(1e-5, 10)}  # for `Search`
    """
    if is_number(low) and low <= 0:
        raise InputError(f"loguniform({low!r}, {high!r}): low must be above 0, because 0 has no logarithm")
    _check("loguniform", low, high)
    return Uniform(float(low), float(high), log=True)


def integer(low: int, high: int, *, log: bool = False) -> Integer:
    """A whole number from low to high, both included.

    Args:
        low: the smallest value; with `log`, at least 1.
        high: the largest value.
        log: draw any order of magnitude with the same probability, as for numbers of trees.

    Raises:
        InputError: an end is not a whole number, low is above high, or `log` is set and low is below 1.

    Examples:
        >>> import sparkdiff
        >>> pca = pipeline.getStages()[2]
        >>> space = {pca.k: sparkdiff.integer(1, 5)}  # for `Search`
    """
    _check("integer", low, high, whole=True)
    if log and low < 1:
        raise InputError(f"integer({low!r}, {high!r}, log=True): low must be at least 1")
    return Integer(int(low), int(high), log)


def choice(*values: Any) -> Choice:
    """One of these values.

    Args:
        *values: the values, of any kind that the Param takes; a number of numpy becomes a number of Python.

    Raises:
        InputError: there are no values.

    Examples:
        >>> import sparkdiff
        >>> scaler = pipeline.getStages()[1]
        >>> space = {scaler.withMean: sparkdiff.choice(True, False)}  # for `Search`
    """
    if not values:
        raise InputError("choice() has no values: choice('auto', 'multinomial')")
    return Choice(tuple(v.item() if isinstance(v, np.generic) else v for v in values))


def _check(name: str, low: float, high: float, *, whole: bool = False) -> None:
    """Raise InputError if these are not the ends of a range."""
    for value in (low, high):
        if not is_finite(value) or (whole and value != int(value)):
            raise InputError(f"{name}({low!r}, {high!r}): {value!r} is no {'whole' if whole else 'finite'} number")
    if low > high:
        raise InputError(f"{name}({low!r}, {high!r}): low is above high")


def as_distribution(name: str, given: Any) -> Distribution:
    """The distribution that a space gives for a Param: a distribution unchanged, or a choice from a list of values.

    Raises:
        InputError: `given` is something else. The message names the Param.
    """
    if isinstance(given, Distribution):
        return given
    if isinstance(given, Sequence) and not isinstance(given, str):
        return choice(*given)
    raise InputError(
        f"space gives {name} {given!r}: give sparkdiff.uniform, loguniform, integer or choice; "
        f"for a single value set the Param on the stage"
    )


def from_dict(given: Mapping[str, Any]) -> Distribution:
    """The distribution that `toDict` wrote."""
    rest = {key: value for key, value in given.items() if key != "kind"}
    if given["kind"] == "Choice":
        return Choice(tuple(rest["values"]))
    return {"Uniform": Uniform, "Integer": Integer}[given["kind"]](**rest)
