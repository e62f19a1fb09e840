"""The results of triage, one per pipeline of the fleet, and the pipelines that were tuned."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from sparkdiff.history.run_forecasts import Forecast
from sparkdiff.report import DisplayableFields, Section, SectionTable, StrongLine, duration, signed

TUNED, KEPT, STOPPED, SKIPPED, REFUSED, FAILED = "tuned", "kept original", "stopped", "skipped", "refused", "failed"


@dataclasses.dataclass(frozen=True)
class Triaged:
    """The result of triage for one pipeline of the fleet.

    Attributes:
        forecast: the forecast of gain and cost; None if before one was made, the pipeline was refused or failed, its
            facts could not be measured on the sampled rows, or the budget was used up.
        outcome: "tuned"; "kept original"; "stopped" (early, without prospects); "skipped" (not run); "refused" (the
            pipeline, its rows or its options cannot be used); or "failed" (an unexpected error).
        why: the reason for the outcome, as text.
        gain: gain on validation rows, as a share of the original's metric; 0 unless the pipeline was tuned.
        coreSeconds: core-seconds that were spent on the pipeline, including those for its facts.
        facts: the facts on which the forecast is based.
    """

    name: str
    forecast: Forecast | None
    outcome: str
    why: str
    gain: float
    coreSeconds: float
    facts: Mapping[str, float]


@dataclasses.dataclass(frozen=True, repr=False)
class Triage(DisplayableFields):
    """The results of triage. `print` shows them, `toJSON` and `toPandas` return them; `models` has the tuned pipelines
    by name.

    Attributes:
        pipelines: a result per pipeline, that with the largest expected gain per core-second first.
        budget, coreSeconds: core-seconds that were available, and that were spent.
        shipped, own: number of runs from which the forecasts were learned: those shipped with sparkdiff, and those in
            the store of runs.
        models: only the tuned pipelines, plain Spark ML, by name.
    """

    __module__ = "sparkdiff"

    pipelines: tuple[Triaged, ...]
    budget: float
    coreSeconds: float
    shipped: int
    own: int
    models: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def toDict(self) -> dict[str, Any]:
        """All results except the models."""
        told = dataclasses.asdict(dataclasses.replace(self, models={}))
        return {name: value for name, value in told.items() if name != "models"}

    def toPandas(self) -> pd.DataFrame:
        """The results as a pandas DataFrame with a row per pipeline."""
        rows = []
        for p in self.pipelines:
            forecast = {} if p.forecast is None else dataclasses.asdict(p.forecast)
            own = {k: getattr(p, k) for k in ("name", "outcome", "why", "gain", "coreSeconds")}
            rows.append(own | {f"expected {k}": v for k, v in forecast.items()})
        return pd.DataFrame(rows)

    def _headline(self) -> str:
        counts = [sum(p.outcome == outcome for p in self.pipelines) for outcome in (TUNED, KEPT, STOPPED)]
        told = f"{counts[0]} tuned, {counts[1]} kept, {counts[2]} stopped"
        spent = f"{self.coreSeconds:,.0f} of {self.budget:,.0f} core-seconds"
        return f"{len(self.pipelines)} pipelines, {told}; {spent}"

    def _sections(self) -> Iterator[Section]:
        head = ("pipeline", "chance", "gain if so", "cost", "outcome", "gain", "why")
        yield SectionTable([head, *map(_row, self.pipelines)], left=(0, 4, 6), ruled=True)
        yield StrongLine(self._headline())
        yield f"forecasts were learned from {self.shipped} runs that sparkdiff ships and {self.own} of the store"


def _row(p: Triaged) -> tuple[str, ...]:
    if p.forecast is None:
        return p.name, "", "", "", p.outcome, "", p.why
    f = p.forecast
    gain = signed(p.gain) if p.outcome == TUNED else ""
    return p.name, f"{f.probability:.0%}", signed(f.gain), duration(f.coreSeconds), p.outcome, gain, p.why
