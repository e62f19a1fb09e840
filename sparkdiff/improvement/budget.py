"""Budget of an improvement, and the account of what each arm has spent of it."""

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
"""Smallest budgets: about enough to write one cache and to train for some epochs."""
LATE, LATE_SECONDS = 0.1, 10.0
"""Share of the budget, and additional seconds, by which the proof of the best candidate may exceed the budget."""
FIRST_GUESS = 0.5
"""Assumed time of making and measuring a candidate, relative to fitting and measuring the pipeline, before there is one."""
ALONE = 0.7
"""Time of making a pipeline alone, relative to the time while other folds are fitted at the same time."""
LEAST_FOLDS = 3
"""Smallest number of folds that prove a finalist, if there are more and not enough time for all of them."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Seconds, or passes over the training rows; one of them is None."""

    seconds: float | None
    passes: float | None

    @staticmethod
    def of(text: str) -> "Budget":
        """Budget from its text.

        Raises:
            InputError: it is no budget, or too small for anything.
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
        """An infinite budget."""
        return Budget(None, math.inf)


@dataclasses.dataclass(frozen=True)
class Limit:
    """Limit on one step of an arm: seconds or passes over the training rows; None if the other one counts.

    Attributes:
        most: seconds after which Spark is stopped at work that cannot be divided, such as one fit: the arm's share of everything
            that is left.
    """

    seconds: float | None
    passes: float | None
    most: float | None = None

    def epochs(self, candidates: int) -> int | None:
        """Number of epochs if so many candidates train together; None without a limit of passes."""
        return None if self.passes is None else max(1, int(self.passes / max(candidates, 1)))


class Account:
    """Account of a budget: the rest, and the seconds spent on each arm.

    Attributes:
        fold: seconds that fitting and measuring the pipeline takes.
        folds: number of folds that prove; after the finalists are chosen, as many as there is time for.

    Args:
        clock: returns seconds since some moment; None for the machine's clock.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] | None = None):
        # Looked up at each call: benchmarks replace this module's clock with CPU seconds.
        self.budget, self._clock = budget, clock or (lambda: time.monotonic())
        self._begun = self._clock()
        self.spent: dict[str, float] = {}
        self._granted = 0.0
        self.fold, self.folds, self._lanes = 0.0, 0, 1
        self._best: float | None = None
        self._since: float | None = None

    def now(self) -> float:
        """Seconds since the improvement began, including those before an interruption."""
        return self._clock() - self._begun

    def left(self) -> float:
        """Seconds, or passes, left for arms, after reserving the time to prove the best candidate so far."""
        if self.budget.seconds is not None:
            best = FIRST_GUESS * self.fold if self._best is None else self._best
            late = self._late() - self._proof(best, min(self.folds, LEAST_FOLDS))
            return min(self.budget.seconds - self.now(), late)
        assert self.budget.passes is not None
        return self.budget.passes - self._granted

    def start(self, folds: int, lanes: int) -> None:
        """Record the number of folds that prove, and how many of them run at the same time."""
        self.folds, self._lanes = folds, lanes

    def note_fit(self, seconds: float) -> None:
        """Record the seconds of fitting and measuring the pipeline, as is done in each fold."""
        self.fold = seconds

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Context in which the pipeline is fitted and measured in a fold; records its time."""
        self._since = since = self._clock()
        try:
            yield
        finally:
            self._since = None
        self.note_fit(self._clock() - since)

    def note_best(self, seconds: float) -> None:
        """Record the seconds of making and measuring the best candidate so far."""
        self._best = seconds

    def _late(self) -> float:
        """Seconds left until the improvement would exceed its budget by more than `LATE` and `LATE_SECONDS` allow."""
        assert self.budget.seconds is not None
        return (1 + LATE) * self.budget.seconds + LATE_SECONDS - self.now()

    def _proof(self, seconds: float, folds: int, ready: float = 0.0) -> float:
        """Seconds of a proof of one candidate: in each fold beside its rival, and from all rows, which count as one more fold.

        Args:
            ready: number of folds in which the pipeline is already fitted and measured, the last perhaps in part; then all rows.
        """
        fits = max(folds - ready, 0.0) + (ready <= self.folds)
        return self._times(folds + 1) * seconds + self._times(fits) * self.fold

    def _times(self, folds: float) -> float:
        """Time of so many folds in units of one fold, run `lanes` at a time; the last one may run alone."""
        together, rest = divmod(folds, self._lanes)
        alone = ALONE if self._lanes > 1 else 1.0
        return together + alone * min(rest, 1.0) + (1 - alone) * min(max(rest - 1.0, 0.0), 1.0)

    def buy_folds(self, seconds: Sequence[float], ready: int = 0) -> list[int]:
        """Choose the number of folds that prove each finalist, within the time left.

        The first finalist that can be proven at all is proven in at least three folds, if need be after the end of the budget.

        Args:
            seconds: for each finalist, the seconds of making and measuring it once.
            ready: number of folds in which the pipeline is already fitted and measured; one more if all rows are ready, too.
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
        """Number of folds in which a finalist can be proven within the budget, at least three."""
        assert self.budget.seconds is not None
        left, least = self.budget.seconds - self.now(), min(self.folds, LEAST_FOLDS)
        return next((n for n in range(self.folds, least, -1) if self._proof(seconds, n, ready) <= left), least)

    def grant(self, passes: float) -> None:
        """Count passes as spent; no effect if the budget is a time."""
        if self.budget.passes is not None:
            self._granted += passes

    def limit(self, share: float, most: float = 1.0, lanes: int = 1) -> Limit:
        """Grant a share of what is left. Passes count as spent once granted, even if a step uses fewer.

        Args:
            most: the share for work that cannot be divided.
            lanes: number of arms that run at the same time; each may use so many times its share of the seconds.
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
        """Add seconds to those spent under this name.

        Args:
            until: second at which it ended, perhaps in an interrupted run; moves the clock forward to at least this second.
        """
        self.spent[name] = self.spent.get(name, 0.0) + seconds
        self._begun -= max(until - self.now(), 0.0)
