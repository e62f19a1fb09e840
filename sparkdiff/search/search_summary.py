"""The summary of a search: the decision, its reason, and how much better the winner looked than it is. Plain values."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparkdiff.evaluation.acceptance import LARGER_FRACTION
from sparkdiff.evaluation.guard import Verdict
from sparkdiff.machine.atomic_files import write_bytes
from sparkdiff.report import DisplayableFields, Section, SectionTable, StrongLine, p_value, share_of
from sparkdiff.report.page import page
from sparkdiff.search.search_options import Settings
from sparkdiff.search.splitting import folds_in
from sparkdiff.search.winner_comparison import Comparison

WIDEN = "to look further, widen the space"


@dataclasses.dataclass(frozen=True, repr=False)
class SearchSummary(DisplayableFields):
    """Task, course and results of a search; `str` and `print` show it as text.

    Attributes:
        decision: "winner", "kept default" or "kept current".
        reason: the reason for the decision.
        metric, metricDirection: the metric, and which direction is better.
        validation: metric of the winner on the rows that chose it.
        fresh: {"winner", "default"}: metrics on rows that no fit and no trial has seen; with folds, the mean over the
            folds that decided. "default" is the model that the winner was compared with.
        optimism: metric of the winner on the rows that chose it, minus its metric on fresh rows.
        tested: whether a test decided; without one the winner ships only if guard is 1 and its metric is better.
        p, level: p-value and level of the test; the winner is accepted if p is below the level. None without a test.
        gain: mean gain of the winner per row over the other model, as a share of that model's metric; None without a
            test.
        gainInterval: [low, high], 95% interval of the gain; an end that is None is unbounded.
        settings: the decisions of the winner's trial, by name; number: the number of that trial.
        trials, failed, pruned: number of trials, and how many of them failed or were pruned.
        rows: {"train", "validation", "test"}: numbers of rows that fitted the trials, chose among them, and decided;
            with folds, the deciding rows are also among "train".
        folds: number of folds, or stretches of time, of which the first chose and the others decided; 0 without folds.
        sampler, pruner: how settings were chosen.
        seconds: time of all trials.
        warnings: reasons to doubt the figures.
        against: the model that the winner was compared with, "default" or "current".
        saved: see `sparkdiff.report.RunRecord`.
        records: a dict per trial; not in `toDict()`.
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
    saved: dict[str, Any] = dataclasses.field(default_factory=dict)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def toDict(self) -> dict[str, Any]:
        """All values except the records of the trials, ready for JSON."""
        return {name: value for name, value in super().toDict().items() if name != "records"}

    def toHTML(self, path: str | Path) -> None:
        """Write the report of the search as one page that needs no other file and no network.

        Raises:
            InputError: the extra `report` is not installed.
            OSError: the file can't be written.
        """
        write_bytes(Path(path), page(self.toDict(), trials=self.records).encode())

    def _headline(self) -> str:
        one, other = self.fresh["winner"], self.fresh["default"]
        tested = "" if self.p is None else f" ({p_value(self.p)})"
        rows = f"{self.rows['test']:,} {self._fresh()} rows"
        return f"{self.decision}, {self.metric} {one:.6g} against {other:.6g} of the {self.against} on {rows}{tested}"

    def _fresh(self) -> str:
        return "out-of-fold" if self.folds else "fresh"

    def _sections(self) -> Iterator[Section]:
        yield StrongLine(f"{self.decision}: {self.reason}")
        validation = f"{self.validation:.6g} (optimism {self.optimism:+.3g})"
        yield SectionTable(
            [
                (f"  {self.metric} ({self.metricDirection} is better)", "winner", self.against),
                (
                    f"  {self.rows['test']:,} {self._fresh()} rows",
                    f"{self.fresh['winner']:.6g}",
                    f"{self.fresh['default']:.6g}",
                ),
                (f"  {self.rows['validation']:,} validation rows", validation, ""),
            ],
            left=range(3),
        )
        told = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.settings.items())
        yield f"  winner: trial {self.number} of {self.trials} by {self.sampler}: {told}"
        yield from (f"  warning: {w}" for w in self.warnings)


def decision_and_reason(
    compared: Comparison, settings: Settings, *, metric: str, larger: bool, against: str
) -> tuple[bool, str, dict[str, Any]]:
    """The decision (True if the winner is better), its reason in a sentence, and the figures of the test.

    If the other model is kept, the reason ends with what can be done about it.

    Args:
        compared: the winner and the other model, compared on the rows that decide.
        settings: the options of the search.
        metric: name of the metric.
        larger: True if larger values of the metric are better.
        against: the other model, "default" or "current".
    """
    ships, verdict = compared.ships(settings.guard, larger=larger), compared.verdict
    rows = "out-of-fold" if settings.folds else "fresh"
    figures = f"{metric} {compared.winner:.6g} against {compared.default:.6g} of the {against} model"
    ways = f"to decide it, {compared.remedy}" if compared.remedy else ways_to_decide(settings)
    if verdict is not None:
        return ships, _reason(verdict, figures, settings, rows, ways), _figures(verdict, compared.default)
    why = compared.untested if compared.refused else f"not tested, because {compared.untested}"
    if settings.guard >= 1 and not compared.refused:
        why += f": on the {rows} rows alone the winner {'is' if ships else 'is not'} better"
        ways = WIDEN
    elif compared.remedy and not compared.refused:
        ways += f", or set guard=1 to let the metric on the {rows} rows alone decide"
    untested = {"tested": False, "p": None, "level": None, "gain": None, "gainInterval": None}
    return ships, f"{why} ({figures})" if ships else f"{why} ({figures}); {ways}", untested


def _reason(verdict: Verdict, figures: str, settings: Settings, rows: str, ways: str) -> str:
    needed = f"{p_value(verdict.p, verdict.level / 10)}, needed < {verdict.level:.3g}"
    if verdict.best < 0:
        return f"on the {rows} rows the winner is not better ({figures}); {WIDEN}"
    gain = f"the winner's gain on the {rows} rows"
    if verdict.against:
        return f"{gain} is not proven ({figures}; {needed}), because {verdict.against}; {ways}"
    if not verdict.accepted:
        return f"on the {rows} rows the winner's gain is within what chance explains ({figures}; {needed}); {ways}"
    if settings.guard >= 1:
        return f"{gain} is accepted without a test, because guard is {settings.guard:g} ({figures})"
    return f"on the {rows} rows the winner is better than chance explains ({figures}; {needed})"


def ways_to_decide(settings: Settings) -> str:
    """The end of a sentence: what could show a gain that these rows don't show, except what is used or impossible."""
    s, ways = settings, list[str]()
    if not s.folds and s.method == "trials" and (folds := folds_in(dataclasses.replace(s, numFolds="auto"))):
        ways.append(f"set numFolds={folds}, so that more rows decide")
    if not s.folds and s.testFraction < LARGER_FRACTION and s.validationFraction + LARGER_FRACTION < 1:
        ways.append(f"{'' if ways else 'set '}testFraction={LARGER_FRACTION:g}")
    return f"to decide it, {', or '.join([*ways, 'pass more groups' if s.groupCol else 'pass more rows'])}"


def _figures(verdict: Verdict, other: float) -> dict[str, Any]:
    bounds, gain = verdict.interval, share_of(verdict.gain, other)
    interval = None if bounds is None else [bound if math.isfinite(bound) else None for bound in bounds]
    return {"tested": True, "p": verdict.p, "level": verdict.level, "gain": gain, "gainInterval": interval}
