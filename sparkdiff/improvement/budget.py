"""The budget of an improvement, and the account of what each arm has spent of it."""

import dataclasses
import re

from sparkdiff.errors import InputError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|passes)\s*")
LEAST_SECONDS, LEAST_PASSES = 10.0, 20.0
"""The smallest budgets: about what it takes to write one cache and to train for some epochs."""
RESERVE = 0.05
"""The share of the time that is kept for the decision."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Seconds, or passes over the training rows; one of them is None."""

    seconds: float | None
    passes: float | None

    @staticmethod
    def of(text: str) -> "Budget":
        """
        Raises:
            InputError: it is no budget, or nothing fits in.
        """
        found = FORM.fullmatch(text)
        if not found:
            raise InputError(f"budget={text!r} must be a time such as 90s, 30m or 2h, or passes such as '300 passes'")
        number, unit = float(found[1]), found[2]
        if unit == "passes":
            if number < LEAST_PASSES:
                raise InputError(f"budget={text!r} is too small for anything: at least {LEAST_PASSES:g} passes")
            return Budget(None, number)
        if number * UNITS[unit] < LEAST_SECONDS:
            raise InputError(f"budget={text!r} is too small for anything: at least {LEAST_SECONDS:g}s")
        return Budget(number * UNITS[unit], None)


@dataclasses.dataclass(frozen=True)
class Limit:
    """What one step of an arm may use: seconds or passes over the training rows; None where the other one counts.

    Attributes:
        most: seconds after which Spark is stopped at work that cannot be done in parts, as one fit: the arm's share of all that
            is left.
    """

    seconds: float | None
    passes: float | None
    most: float | None = None

    def epochs(self, candidates: int) -> int | None:
        """Epochs for as many candidates that train together; None without a limit of passes."""
        return None if self.passes is None else max(1, int(self.passes / max(candidates, 1)))


class Account:
    """What is left of a budget, and what was spent on what.

    Args:
        kept: seconds, or passes, that the arms leave.
    """

    def __init__(self, budget: Budget, kept: float = 0.0):
        self.budget, self.kept = budget, kept
        self.spent: dict[str, float] = {}
        self._granted = 0.0

    def left(self, *, whole: bool = False) -> float:
        """Seconds, or passes, that are left for arms.

        Args:
            whole: with what the arms leave.
        """
        kept = 0.0 if whole else self.kept
        if self.budget.seconds is not None:
            return (1 - RESERVE) * self.budget.seconds - kept - sum(self.spent.values())
        assert self.budget.passes is not None
        return self.budget.passes - kept - self._granted

    def limit(self, share: float, most: float = 1.0) -> Limit:
        """A share of what is left. Passes count as spent once they are granted, whatever a step makes of them.

        Args:
            most: the share of work that cannot be done in parts.
        """
        if self.budget.seconds is not None:
            return Limit(max(share * self.left(), 1.0), None, max(most * self.left(), LEAST_SECONDS))
        granted = share * self.left()
        self._granted += granted
        return Limit(None, granted)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to what was spent on this."""
        self.spent[name] = self.spent.get(name, 0.0) + seconds
