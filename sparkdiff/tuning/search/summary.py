"""What a search tells: the decision, its reason, and how much better the winner looked than it is. Plain values."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparkdiff.evaluation.guard import Verdict
from sparkdiff.machine.whole import write_bytes
from sparkdiff.report import Section, SectionTable, Shown, Strong, p_value
from sparkdiff.report.page import page
from sparkdiff.report.shares import share_of
from sparkdiff.tuning.search.judging import Comparison


@dataclasses.dataclass(frozen=True, repr=False)
class SearchSummary(Shown):
    """What a search was asked, did and found; as text by `str` and `print`.

    Attributes:
        decision: "winner", "kept default" or "kept current".
        reason: why.
        metric, metricDirection: the metric, and which direction is better.
        validation: metric of the winner on the rows that chose it.
        fresh: {"winner", "default"} on rows that no fit and no trial has seen; "default" is the model that the winner was
            compared with.
        optimism: metric of the winner on the rows that chose it, minus its metric on fresh rows.
        tested: whether a test decided; without one the winner ships only where guard is 1, and its metric is better.
        p, level: of the test; accepted if p is below the level. None without a test.
        gain: mean gain of the winner per row over its comparison, as a share of that one's metric; None without a test.
        gainInterval: [low, high], 95%, of that. None in it: unbounded.
        settings: what the winner's trial decided, by name; number: of that trial.
        trials, failed, pruned: how many there were, and of these how many failed or were pruned.
        rows: {"train", "validation", "test"}; with folds "test" are all rows, each in its turn.
        folds: in how many the search was repeated, so that out-of-fold rows decided and `fresh` is their mean; 0: none.
        sampler, pruner: how settings were chosen.
        seconds: of all trials.
        warnings: reasons to doubt the figures.
        against: what the winner was compared with, "default" or "current".
    """

    __module__ = "sparkdiff"

    decision: str
    reason: str
    metric: str
    metricDirection: str
    validation: float
    fresh: dict[str, float]
    optimism: float
    tested: bool
    p: float | None
    level: float | None
    gain: float | None
    gainInterval: list[float | None] | None
    settings: dict[str, Any]
    number: int
    trials: int
    failed: int
    pruned: int
    rows: dict[str, int]
    folds: int
    sampler: str
    pruner: str | None
    seconds: float
    warnings: list[str]
    against: str = "default"

    def toHTML(self, path: str | Path) -> None:
        """Write the report of the search as one page that needs no other file and no network.

        Raises:
            OSError: the file can't be written.
        """
        write_bytes(Path(path), page(self.toDict()).encode())

    def toDict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _headline(self) -> str:
        one, other = self.fresh["winner"], self.fresh["default"]
        tested = "" if self.p is None else f" ({p_value(self.p)})"
        rows = f"{self.rows['test']:,} {self._fresh()} rows"
        return f"{self.decision}, {self.metric} {one:.6g} against {other:.6g} of the {self.against} on {rows}{tested}"

    def _fresh(self) -> str:
        return "out-of-fold" if self.folds else "fresh"

    def _sections(self) -> Iterator[Section]:
        yield Strong(f"{self.decision}: {self.reason}")
        validation = f"{self.validation:.6g} (optimism {self.optimism:+.3g})"
        yield SectionTable([
            (f"  {self.metric} ({self.metricDirection} is better)", "winner", self.against),
            (f"  {self.rows['test']:,} {self._fresh()} rows", f"{self.fresh['winner']:.6g}", f"{self.fresh['default']:.6g}"),
            (f"  {self.rows['validation']:,} validation rows", validation, ""),
        ], left=range(3))  # fmt: skip
        told = ", ".join(f"{name}={_short(value)}" for name, value in self.settings.items())
        yield f"  winner: trial {self.number} of {self.trials} by {self.sampler}: {told}"
        yield from (f"  warning: {w}" for w in self.warnings)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def decided(
    compared: Comparison, *, metric: str, larger: bool, against: str, level: float, rows: str = "fresh"
) -> tuple[bool, str, dict[str, Any]]:
    """Whether the winner is better, the reason in a sentence, and the figures of the test.

    Args:
        against: "default" or "current".
        rows: "fresh" or "out-of-fold".
    """
    ships, verdict = compared.ships(level, larger=larger), compared.verdict
    figures = f"{metric} {compared.winner:.6g} against {compared.default:.6g} of the {against} model"
    if verdict is not None:
        return ships, _reason(verdict, figures, level, rows), _figures(verdict, compared.default)
    why = compared.untested
    if not compared.refused and level < 1:
        why = f"not tested, because {why}: set guard=1 to let the metric on the {rows} rows alone decide"
    elif not compared.refused:
        why = f"not tested, because {why}: on the {rows} rows alone the winner {'is' if ships else 'is not'} better"
    untested = {"tested": False, "p": None, "level": None, "gain": None, "gainInterval": None}
    return ships, f"{why} ({figures})", untested


def _reason(verdict: Verdict, figures: str, level: float, rows: str) -> str:
    needed = f"{p_value(verdict.p, verdict.level / 10)}, needed < {verdict.level:.3g}"
    if verdict.best < 0:
        return f"on the {rows} rows the winner is not better ({figures})"
    if not verdict.accepted:
        return f"on the {rows} rows the winner's gain is within what chance explains ({figures}; {needed})"
    if level >= 1:
        return (
            f"the winner's gain on the {rows} rows is accepted without a test, because guard is {level:g} ({figures})"
        )
    return f"on the {rows} rows the winner is better than chance explains ({figures}; {needed})"


def _figures(verdict: Verdict, other: float) -> dict[str, Any]:
    interval = None
    if verdict.interval is not None:
        interval = [bound if math.isfinite(bound) else None for bound in verdict.interval]
    gain = share_of(verdict.gain, other)
    return {"tested": True, "p": verdict.p, "level": verdict.level, "gain": gain, "gainInterval": interval}
