"""Budget of an improvement (a time, or passes over the training rows), and the account of what is spent and left; and the
budget of triage (processor time).
"""

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
"""Smallest allowed budgets: just enough to write one cache and to train for some epochs."""
LATE, LATE_SECONDS = 0.1, 10.0
"""The proof of the best candidate may exceed the budget by this share of the budget plus these seconds."""
FIRST_GUESS = 0.5
"""Assumed time to make and measure a candidate before one is found, relative to the time to fit and measure the pipeline."""
ALONE = 0.7
"""Time to make a pipeline when nothing else runs, relative to the time when other folds are fitted at the same time."""
LEAST_FOLDS = 3
"""Smallest number of folds on which a finalist is proven, if there are more but no time for all of them."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Either seconds or passes over the training rows; the unused one is None."""

    seconds: float | None
    passes: float | None

    @staticmethod
    def of(text: str) -> "Budget":
        """Budget from a text such as "30m" or "300 passes".

        Raises:
            InputError: the text is not a budget, or the budget is too small for anything.
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
    """Limit on one step of an arm: either seconds or passes over the training rows; both are None without a limit.

    Attributes:
        most: seconds after which Spark jobs are cancelled in work that cannot be divided, such as one fit: the arm's
            share of all the time left, which in the first step is more than `seconds`. None for no limit.
    """

    seconds: float | None
    passes: float | None
    most: float | None = None

    def epochs(self, candidates: int, most: int) -> int:
        """Number of epochs, at most `most`, that the passes allow if `candidates` candidates train together."""
        return most if self.passes is None else min(most, max(1, int(self.passes / max(candidates, 1))))


class Account:
    """Account of a budget: how much is left, and the seconds spent on each arm.

    Attributes:
        spent: name of an arm (or of another step) -> seconds spent on it.
        fold: seconds that it takes to fit and measure the pipeline, which is done in each fold.
        best: seconds that it takes to make and measure the best candidate so far that there is time to prove; None without one.
        folds: number of proving folds; once the finalists are chosen, reduced to the number that there is time for.
        check: seconds reserved for the comparison of the saved result with the one in memory, after the improvement.

    Args:
        clock: function that returns seconds since a fixed moment; None for the machine's clock.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] | None = None):
        # The lambda looks the clock up at each call, because benchmarks replace this module's clock with CPU seconds.
        self.budget, self._clock = budget, clock or (lambda: time.monotonic())
        self._begun = self._clock()
        self.spent: dict[str, float] = {}
        self._granted = 0.0
        self.fold, self.folds, self._lanes = 0.0, 0, 1
        self.check = 0.0
        self.best: float | None = None
        self._since: float | None = None

    def now(self) -> float:
        """Seconds since the improvement began, including those before an interruption."""
        return self._clock() - self._begun

    def balance(self) -> float:
        """Seconds left for arms, after reserving the time to prove the best candidate noted so far; or passes left."""
        if self.budget.seconds is not None:
            best = FIRST_GUESS * self.fold if self.best is None else self.best
            late = self._late() - self._proof(best, min(self.folds, LEAST_FOLDS))
            return min(self.budget.seconds - self.now(), late)
        assert self.budget.passes is not None
        return self.budget.passes - self._granted

    def start(self, folds: int, lanes: int) -> None:
        """Record the number of proving folds, and the number of folds that run at the same time."""
        self.folds, self._lanes = folds, lanes

    def note_check(self, seconds: float) -> None:
        """Reserve time to compare what is saved with the pipeline in memory: at most as much as a run may take beyond its budget.

        Args:
            seconds: seconds that it took to measure the original, which takes as long, or longer where caches are written.
        """
        if self.budget.seconds is not None:
            self.check = min(seconds, LATE * self.budget.seconds + LATE_SECONDS)

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Context that records its duration as the time to fit and measure the pipeline in a fold."""
        self._since = since = self._clock()
        try:
            yield
        finally:
            self._since = None
        self.fold = self._clock() - since

    def _late(self) -> float:
        """Seconds left until only the time for the check remains of what `LATE` and `LATE_SECONDS` allow beyond the budget."""
        assert self.budget.seconds is not None
        return (1 + LATE) * self.budget.seconds + LATE_SECONDS - self.check - self.now()

    def _proof(self, seconds: float, folds: int, ready: float = 0.0) -> float:
        """Seconds needed to prove one candidate: to make it in each fold, beside its rival, and once from all rows.

        Making it from all rows counts as one more fold.

        Args:
            seconds: seconds to make and measure the candidate once.
            folds: number of folds.
            ready: number of folds in which the pipeline is already fitted and measured. The fraction is the finished part of the
                next fold; once all folds are ready, all rows count as the next fold.
        """
        fits = max(folds - ready, 0.0) + (ready <= self.folds)
        return self._times(folds + 1) * seconds + self._times(fits) * self.fold

    def _times(self, folds: float) -> float:
        """Time of this many folds, in units of one fold's time. Several folds run at a time, but the last one may run alone."""
        together, rest = divmod(folds, self._lanes)
        alone = ALONE if self._lanes > 1 else 1.0
        return together + alone * min(rest, 1.0) + (1 - alone) * min(max(rest - 1.0, 0.0), 1.0)

    def provable_seconds(self, ready: int) -> float:
        """Largest time to make and measure a candidate for which there is still time to prove it; infinite if passes are counted.

        Args:
            ready: see `buy_folds`.
        """
        if self.budget.seconds is None:
            return math.inf
        least = min(self.folds, LEAST_FOLDS)
        return (self._late() - self._proof(0.0, least, ready + self._begun_part())) / self._times(least + 1)

    def provable_step(self) -> float:
        """Largest time of a step whose result there is time to prove, if it takes as long to make it again; infinite if passes
        are counted."""
        if self.budget.seconds is None:
            return math.inf
        again = self._times(min(self.folds, LEAST_FOLDS) + 1) if self.folds else 0.0
        return (self._late() - again * self.fold) / (1 + again)

    def _begun_part(self) -> float:
        """Finished part of the fold that is being fitted; 0 if none is."""
        return 0.0 if self._since is None else min((self._clock() - self._since) / max(self.fold, 1e-9), 1.0)

    def buy_folds(self, seconds: Sequence[float], ready: int = 0) -> list[tuple[int, float]]:
        """Choose for each finalist the number of folds on which it is proven, within the time left; 0 if there is no time for it.
        Each number comes with the seconds by which the time left was too short for this number of folds; 0.0 if it was not.

        The first finalist for which there is any time is proven on at least three folds, even if this exceeds the budget a little
        (see `LATE`).

        Args:
            seconds: for each finalist, the seconds to make and measure it once.
            ready: number of folds in which the pipeline is already fitted and measured, plus one if all rows are ready, too.
        """
        if self.budget.seconds is None:
            return [(self.folds, 0.0)] * len(seconds)
        out, most, left = list[tuple[int, float]](), 0, self.budget.seconds - self.now()
        done = ready + self._begun_part()
        for each in seconds:
            if most:
                cost = (self._times(most) + 1) * each
                # `cost` is 0 for the plain refit, which is made anyway.
                number = most if cost <= max(left, 0.0) else 0
            else:
                number = self._affordable(each, done)
                cost = self._proof(each, number, done)
                number = number if cost <= self._late() else 0
                most = number
            out.append((number, 0.0 if number else cost - left))
            left -= cost if number else 0.0
        self.folds = most
        return out

    def _affordable(self, seconds: float, ready: float) -> int:
        """Largest number of folds on which a finalist can be proven within the budget; at least three, even beyond it."""
        assert self.budget.seconds is not None
        left, least = self.budget.seconds - self.now(), min(self.folds, LEAST_FOLDS)
        return next((n for n in range(self.folds, least, -1) if self._proof(seconds, n, ready) <= left), least)

    def grant(self, passes: float) -> None:
        """Count passes as spent; no effect if the budget is a time."""
        if self.budget.passes is not None:
            self._granted += passes

    def limit(self, share: float, most: float = 1.0, lanes: int = 1) -> Limit:
        """Grant a step a share of the rest of the budget. Passes count as spent once granted, even if the step uses fewer.

        Args:
            share: the share of the rest.
            most: the share for work that cannot be divided, see `Limit`.
            lanes: number of arms that run at the same time. Shares of the seconds are multiplied by it.
        """
        if self.budget.seconds is not None:
            left, share, most = self.balance(), min(lanes * share, 1.0), min(lanes * most, 1.0)
            return Limit(max(min(share * left, self.provable_step()), 1.0), None, max(most * left, LEAST_SECONDS))
        if self.budget.passes == math.inf:
            return Limit(None, None)
        granted = share * self.balance()
        self._granted += granted
        return Limit(None, granted)

    def add(self, name: str, seconds: float, until: float = 0.0) -> None:
        """Add seconds to those spent under a name.

        Args:
            until: second of the improvement at which the work ended. If the work was done in an earlier, interrupted
                run, the clock is moved forward to this second.
        """
        self.spent[name] = self.spent.get(name, 0.0) + seconds
        self._begun -= max(until - self.now(), 0.0)


CORE_FORM = re.compile(
    r"\s*(\d+(?:\.\d+)?)\s*(?:core[-\s]\s*)?(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:ours?)?)\s*", re.IGNORECASE
)


def core_seconds(text: str) -> float:
    """The number of core-seconds that a text such as "4 core-hours", "30 core-minutes" or "90s" means.

    Raises:
        InputError: the text has another form, or its amount is 0.
    """
    found = CORE_FORM.fullmatch(text) if isinstance(text, str) else None
    if not found or not float(found[1]):
        raise InputError(f"budget={text!r} must be processor time such as '4 core-hours', '30 core-minutes' or '90s'")
    return float(found[1]) * UNITS[found[2][0].lower()]
