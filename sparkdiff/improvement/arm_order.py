"""Order in which arms (ways to improve a pipeline) are tried, by forecasts of the probability that an arm finds the best
pipeline, and of its duration.

The forecasts are learned from past improvements: those that sparkdiff ships (arm_priors.json, made by benchmarks/arms.py)
and those in the user's store of runs, with equal weights. The fitted models are not saved, because learning takes only a
second.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from sparkdiff import jvm
from sparkdiff.data.splits import TEST, TRAIN, VALIDATION
from sparkdiff.history import run_store
from sparkdiff.history.pipeline_facts import Facts, training_facts
from sparkdiff.history.run_forecasts import MOST, features, forests, numbers
from sparkdiff.history.run_table import json_object
from sparkdiff.improvement.arm_context import ArmContext
from sparkdiff.improvement.budget import Budget
from sparkdiff.improvement.candidate import Arm
from sparkdiff.stages.trees import RandomForestClassification, RandomForestRegression

PRIORS = resources.files("sparkdiff.improvement").joinpath("arm_priors.json")  # the package may be in a zip
ENOUGH = 0.95
"""An arm counts as having found the best pipeline if its gain is at least this share of the best arm's gain."""
EARLY = ("stopped", "interrupted")
"""First words of the outcome of an arm that ended early."""
COLUMNS = ("verb", "metricDirection", "before", "tried", "evidence", "finished")
"""Columns of a store of runs from which forecasts for arms are learned."""


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """The result of an arm.

    Attributes:
        gain: the gain that the guard (the test on held-out rows) accepted, as a share of the original's metric; 0 if it
            accepted none.
        seconds: duration of the arm.
    """

    gain: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class PastImprovement:
    """A finished improvement: the facts about its pipeline and rows, and the result of each arm that was tried."""

    facts: Facts
    arms: Mapping[str, ArmResult]

    @property
    def best(self) -> float:
        return max((min(r.gain, MOST) for r in self.arms.values()), default=0.0)

    def is_near_best(self, arm: str) -> bool:
        """True if this arm has found the best pipeline, or one that is nearly as good (see `ENOUGH`)."""
        return self.best > 0 and min(self.arms[arm].gain, MOST) >= ENOUGH * self.best


@dataclasses.dataclass(frozen=True)
class ArmForecast:
    """The forecast for one arm.

    Attributes:
        probability: probability that the arm finds the best pipeline, if any arm finds a better one than the original.
        seconds: expected duration of the arm.
    """

    arm: str
    probability: float
    seconds: float

    @property
    def worth(self) -> float:
        """Probability per second. If arms are independent, trying them in descending order of this ratio finds the best
        pipeline in the shortest average time (Smith 1956).
        """
        return self.probability / max(self.seconds, 1e-3)


@functools.cache
def priors() -> tuple[PastImprovement, ...]:
    """The past improvements that sparkdiff ships."""
    found = json.loads(PRIORS.read_text(encoding="utf-8"))["runs"]
    return tuple(PastImprovement(run["facts"], {k: ArmResult(*arm) for k, arm in run["arms"].items()}) for run in found)


def of_store(runs: Sequence[Mapping[str, Any]]) -> list[PastImprovement]:
    """The past improvements in a store of runs, without those whose facts, original metric or results are unknown."""
    out = []
    for run in runs:
        evidence = json_object(run["evidence"]) if run["verb"] == "improve" else {}
        facts = numbers(evidence.get("facts"))
        if facts is not None and run["before"]:
            arms = _results(run, evidence.get("stopped") or ())
            out += [PastImprovement(facts, arms)] if arms else []
    return out


def _results(run: Mapping[str, Any], stopped: Sequence[str]) -> dict[str, ArmResult]:
    """The results of the arms of a stored improvement, by arm.

    Arms that were not tried are left out. Arms that ended early are also left out, because their final results are
    unknown, unless they had already found the best pipeline.

    Args:
        run: a row of the store.
        stopped: names of arms that ended early.
    """
    sign, found = 1.0 if run["metricDirection"] == "smaller" else -1.0, dict[str, ArmResult]()
    early = {*stopped, *(t["kind"] for t in run["tried"] or () if t["outcome"].startswith(EARLY))}
    for tried in run["tried"] or ():
        if tried["outcome"].startswith("not tried") or tried["seconds"] is None:
            continue
        kept = tried["outcome"] == "accepted" and tried["value"] is not None
        gain = sign * (run["before"] - tried["value"]) / abs(run["before"]) if kept else 0.0
        known = found.get(tried["kind"])
        found[tried["kind"]] = ArmResult(max(gain, known.gain if known else 0.0), tried["seconds"])
    whole = PastImprovement({}, found)
    return {arm: result for arm, result in found.items() if arm not in early or whole.is_near_best(arm)}


class ArmForecaster:
    """Forecasts for arms, learned from finished improvements.

    Args:
        runs: the past improvements from which the forecasts are learned.

    Raises:
        InputError: scikit-learn is not installed.
    """

    def __init__(self, runs: Sequence[PastImprovement]):
        self._models = {}
        for arm in dict.fromkeys(name for run in runs for name in run.arms):
            own = [run for run in runs if arm in run.arms]
            gained = [run for run in own if run.best > 0]
            if not gained:
                continue
            classifier, regressor = forests()
            finds = classifier.fit(_table(gained), np.array([run.is_near_best(arm) for run in gained]))
            takes = regressor.fit(_table(own), np.log([max(run.arms[arm].seconds, 1e-3) for run in own]))
            self._models[arm] = finds, takes

    def __call__(self, facts: Facts, arms: Sequence[str]) -> list[ArmForecast]:
        """Forecasts for these arms in descending order of `worth`; arms that can't be forecast come last, in the given order.

        An arm can't be forecast if it was tried in no past improvement that gained.
        """
        x = np.array([features(facts)])
        known = [arm for arm in arms if arm in self._models]
        out = [self._one(arm, x) for arm in known]
        rest = [ArmForecast(arm, 0.0, math.inf) for arm in arms if arm not in self._models]
        return [*sorted(out, key=lambda f: -f.worth), *rest]

    def _one(self, arm: str, x: Any) -> ArmForecast:
        finds, takes = self._models[arm]
        return ArmForecast(arm, _share(finds, x), float(np.exp(takes.predict(x)[0])))


def _table(runs: Sequence[PastImprovement]) -> Any:
    return np.array([features(run.facts) for run in runs])


def _share(classifier: Any, x: Any) -> float:
    """The predicted probability of True, also if the classifier has seen only one of the two classes."""
    classes, found = [bool(c) for c in classifier.classes_], classifier.predict_proba(x)[0]
    return float(found[classes.index(True)]) if True in classes else 0.0


FIXED = "fixed"
FORESTS = (RandomForestClassification, RandomForestRegression)
LEAST = 300.0
"""Budget in seconds below which no order is learned: measuring facts and learning take a few seconds, more than it saves."""
QUICK = ("import", "finetune", "search", "refit", "threshold", "grow", "simplify")
"""Order for small budgets: descending probability per second of finding the best pipeline."""
FOREST = ("search", *QUICK)
"""Order for small budgets if the pipeline ends in a random forest, whose trees are mostly too shallow by default."""


@dataclasses.dataclass(frozen=True)
class ArmOrder:
    """Order of the arms, with the reason.

    Attributes:
        arms: names of the arms in order.
        chances: name of an arm -> probability that the arm finds the best pipeline, if any arm finds a better one than
            the original; empty if the order is not learned.
        shipped, own: numbers of past improvements from which the order is learned: shipped with sparkdiff, and in the
            user's store.
        why: the reason for the order, as text.
        facts: facts about the pipeline and its rows, from which later improvements learn.
    """

    arms: tuple[str, ...]
    chances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shipped: int = 0
    own: int = 0
    why: str = ""
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{', '.join(self.arms)}; {self.why}"

    def asdict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self) | {"arms": list(self.arms)}


def order_of(context: ArmContext, arms: Sequence[Arm]) -> ArmOrder:
    """Order of the arms for this pipeline and these rows. If none is learned, it is fixed: the given order (cheap arms first), or
    for small budgets `QUICK` or `FOREST`.
    """
    names = tuple(arm.name for arm in arms)
    if context.settings.order == FIXED:
        return ArmOrder(names, why="the cheap ones first, as order='fixed' asks")
    if len(names) < 2:
        return ArmOrder(names, why="there is no other one")
    budget = Budget.of(context.settings.budget)
    if budget.seconds is None:
        return ArmOrder(
            names, why="the cheap ones first, as the budget is in passes and no arm is left out for lack of time"
        )
    if budget.seconds < LEAST:
        head = context.plan.cut.graph.head.module
        quick = tuple(sorted(names, key=(FOREST if isinstance(head, FORESTS) else QUICK).index))
        return ArmOrder(
            quick, why=f"by chance per second, as {context.settings.budget} is too short to learn an order in"
        )
    rows = sum(context.rows[split] for split in (TRAIN, VALIDATION, TEST) if split in context.rows)
    try:
        facts = training_facts(context.plan, context.sources[0].df, rows)
        own = of_store(run_store.rows_so_far(context.options.storeDir, COLUMNS))
        found = ArmForecaster([*priors(), *own])(facts, names)
    except Exception as e:  # the order affects no decision: no error here may end the improvement
        return ArmOrder(names, why=f"the cheap ones first, as no order can be learned: {jvm.message(e)}")
    stored = f" and {len(own):,} of storeDir" if context.options.storeDir else ""
    why = f"learned from {len(priors()):,} improvements that sparkdiff ships{stored}"
    chances = {f.arm: round(f.probability, 3) for f in found}
    return ArmOrder(tuple(f.arm for f in found), chances, len(priors()), len(own), why, facts)
