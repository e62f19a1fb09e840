"""The budget of an improvement, and the account of what each arm has spent of it."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence

from sparkdiff.errors import InputError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|passes)\s*")
LEAST_SECONDS, LEAST_PASSES = 10.0, 20.0
"""The smallest budgets: about what it takes to write one cache and to train for some epochs."""
LATE, LATE_SECONDS = 0.1, 10.0
"""The share of the budget, and the seconds, that the proof of the best candidate may take more."""
FIRST_GUESS = 0.5
"""What making and measuring a candidate takes, as a share of fitting and measuring the pipeline, before there is a candidate."""
ALONE = 0.7
"""What making a pipeline takes alone, as a share of what it took while the folds were fitted beside."""
LEAST_FOLDS = 3
"""Folds that prove a finalist at least, where there are more and no time for all of them."""


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

    @staticmethod
    def unlimited() -> "Budget":
        """A budget that ends nothing."""
        return Budget(None, math.inf)


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

    Attributes:
        fold: the seconds that fitting and measuring the pipeline takes.
        folds: how many prove; once finalists have been chosen, as many as there is time for.

    Args:
        clock: seconds since any moment; None for that of the machine.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] | None = None):
        # Looked up when it is called: benchmarks give this module CPU seconds for a clock.
        self.budget, self._clock = budget, clock or (lambda: time.monotonic())
        self._begun = self._clock()
        self.spent: dict[str, float] = {}
        self._granted = 0.0
        self.fold, self.folds, self._lanes = 0.0, 0, 1
        self._best: float | None = None
        self._since: float | None = None

    def now(self) -> float:
        """Seconds since the improvement began, with those before an interruption."""
        return self._clock() - self._begun

    def left(self) -> float:
        """Seconds, or passes, that are left for arms, once the best candidate so far has been proven."""
        if self.budget.seconds is not None:
            best = FIRST_GUESS * self.fold if self._best is None else self._best
            late = self._late() - self._proof(best, min(self.folds, LEAST_FOLDS))
            return min(self.budget.seconds - self.now(), late)
        assert self.budget.passes is not None
        return self.budget.passes - self._granted

    def start(self, folds: int, lanes: int) -> None:
        """Note how many folds prove, so many of them at the same time."""
        self.folds, self._lanes = folds, lanes

    def note_fit(self, seconds: float) -> None:
        """Note how long it takes to fit and to measure the pipeline, which each of the folds does."""
        self.fold = seconds

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Within this context, the pipeline is fitted and measured in a fold: note how long that takes."""
        self._since = since = self._clock()
        try:
            yield
        finally:
            self._since = None
        self.note_fit(self._clock() - since)

    def note_best(self, seconds: float) -> None:
        """Note how long it takes to make and to measure the best candidate so far."""
        self._best = seconds

    def _late(self) -> float:
        """The seconds that are left until the improvement would end too late."""
        assert self.budget.seconds is not None
        return (1 + LATE) * self.budget.seconds + LATE_SECONDS - self.now()

    def _proof(self, seconds: float, folds: int, ready: float = 0.0) -> float:
        """The seconds of a proof of one candidate: in each fold beside its rival, and from all rows, as one more fold.

        Args:
            ready: folds in which the pipeline is fitted and measured already, one of them perhaps in part; then all rows.
        """
        fits = max(folds - ready, 0.0) + (ready <= self.folds)
        return self._times(folds + 1) * seconds + self._times(fits) * self.fold

    def _times(self, folds: float) -> float:
        """How many times as long as one fold so many take, of which the last one may be alone."""
        together, rest = divmod(folds, self._lanes)
        alone = ALONE if self._lanes > 1 else 1.0
        return together + alone * min(rest, 1.0) + (1 - alone) * min(max(rest - 1.0, 0.0), 1.0)

    def buy_folds(self, seconds: Sequence[float], ready: int = 0) -> list[int]:
        """Choose the number of folds that prove each finalist, as far as the time reaches.

        The first of them that can be proven at all is proven in three at least, if need be after the end of the budget.

        Args:
            seconds: that making and measuring a finalist once takes.
            ready: how many folds the pipeline is fitted and measured in already; one more where all rows follow them.
        """
        if self.budget.seconds is None:
            return [self.folds] * len(seconds)
        out, most, left = list[int](), 0, self.budget.seconds - self.now()
        begun = 0.0 if self._since is None else min((self._clock() - self._since) / max(self.fold, 1e-9), 1.0)
        for each in seconds:
            if most:
                cost = (self._times(most) + 1) * each
                out.append(most if cost <= max(left, 0.0) else 0)  # the refit, which is made anyway, costs nothing
            else:
                number = self._affordable(each, ready + begun)
                cost = self._proof(each, number, ready + begun)
                most = number if cost <= self._late() else 0
                out.append(most)
            left -= cost if out[-1] else 0.0
        self.folds = most
        return out

    def _affordable(self, seconds: float, ready: float) -> int:
        """The number of folds that a finalist can be proven in within the budget, three at least."""
        assert self.budget.seconds is not None
        left, least = self.budget.seconds - self.now(), min(self.folds, LEAST_FOLDS)
        return next((n for n in range(self.folds, least, -1) if self._proof(seconds, n, ready) <= left), least)

    def grant(self, passes: float) -> None:
        """Count passes as spent; where time is the budget, the clock does."""
        if self.budget.passes is not None:
            self._granted += passes

    def limit(self, share: float, most: float = 1.0, lanes: int = 1) -> Limit:
        """A share of what is left. Passes count as spent once they are granted, whatever a step makes of them.

        Args:
            most: the share of work that cannot be done in parts.
            lanes: how many arms run at the same time; all of them together have so many times the seconds.
        """
        if self.budget.seconds is not None:
            left, share, most = self.left(), min(lanes * share, 1.0), min(lanes * most, 1.0)
            return Limit(max(share * left, 1.0), None, max(most * left, LEAST_SECONDS))
        if self.budget.passes == math.inf:
            return Limit(None, None)
        granted = share * self.left()
        self._granted += granted
        return Limit(None, granted)

    def add(self, name: str, seconds: float, until: float = 0.0) -> None:
        """Add seconds to what was spent on this.

        Args:
            until: it ended at this second, perhaps in a run that was interrupted then: it is no earlier now.
        """
        self.spent[name] = self.spent.get(name, 0.0) + seconds
        self._begun -= max(until - self.now(), 0.0)
