"""Pruning of the trials of a search by a resource: rows, or a Param such as a number of trees. The results of each rung
(an amount of the resource) are stored, so that a rung isn't evaluated again after a kill.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from sparkdiff.errors import InputError, warn
from sparkdiff.pipeline.nesting import last_stage
from sparkdiff.search import rungs
from sparkdiff.search.alternatives import Alternatives, places
from sparkdiff.search.samplers import SamplingPlan
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.search.study import Study, Trial, TrialOutcome

AUTO = {
    "FineTuner": "maxEpochs",
    "GBTClassifier": "maxIter",
    "GBTRegressor": "maxIter",
    "RandomForestClassifier": "numTrees",
    "RandomForestRegressor": "numTrees",
}
"""The resource of a last stage by its class: the Param that counts its epochs or trees; for other classes, rows."""
BOOSTED = ("GBTClassifier", "GBTRegressor")
LEAST_BOOSTED = 1 / 9
"""Smallest share of boosted trees with which a trial starts by default: fewer only show which step size is the largest."""
FEWEST = 200
"""Least number of training rows of a trial, by default."""
Evaluate = Callable[[Sequence[Trial], float], Sequence[TrialOutcome]]


def check_pruner(name: str, sampler: str, metrics: int) -> None:
    """Check that a pruner suits the sampler and the number of metrics.

    Raises:
        InputError: there are several metrics, by which no pruner can compare, or the pruner needs another sampler.
    """
    if metrics > 1:
        raise InputError(
            f"pruner={name!r} compares trials by one metric, but there are {metrics} evaluators: a trial that is behind in one "
            "may be ahead in another; leave the pruner out, or give one evaluator"
        )
    if name == "bohb" and sampler != "tpe":
        raise InputError(
            f"pruner='bohb' is Hyperband with TPE, but sampler={sampler!r}: set sampler='tpe', or pruner='hyperband'"
        )


def find_resource(space: SearchSpace, given: str) -> Any:
    """The Param that a pruner increases from rung to rung; None: training rows.

    Raises:
        InputError: the last stage has no such Param, or the Param is searched.
    """
    last = last_stage(space.estimator)
    if given == "rows":
        return None
    name = AUTO.get(type(last).__name__) if given == "auto" else given
    searched = {q.param for q in space.dimensions if q.param is not None}
    if given == "auto" and (name is None or last.getParam(name) in searched):
        return None
    assert name is not None
    kinds = "rows, auto, or a Param of the last stage, as maxIter"
    if isinstance(last, Alternatives) or places(last):
        raise InputError(
            f"resource={given!r}: the last stage is one of alternatives, which have no Param in common: use rows"
        )
    if not last.hasParam(name) or not last.isDefined(name) or not isinstance(last.getOrDefault(name), int):
        raise InputError(f"resource={given!r} is no Param of {last.uid} that holds a number of something: use {kinds}")
    if last.getParam(name) in searched:
        raise InputError(f"resource={given!r} is searched too: take {name} of {last.uid} out of the space, or use rows")
    return last.getParam(name)


def resources_of(
    space: SearchSpace, resource: str, least: float | None, trained: int | None = None
) -> tuple[float, ...]:
    """The resource of a trial at each rung, the full one last; for rows, as shares.

    Args:
        least: lower bound of the resource that a trial starts with; None: a default for the kind of resource.
        trained: number of training rows, if known.

    Raises:
        InputError: the resource can't be used; `least` is not below the full resource; or `least` is below 1 for a
            resource that is a count.
    """
    param, last = find_resource(space, resource), last_stage(space.estimator)
    whole = 1.0 if param is None else float(last.getOrDefault(param.name))
    if least is not None and least >= whole:
        kind = "all training rows" if param is None else f"{param.name} of {last.uid}"
        raise InputError(f"minResource={least:g} is not below {whole:g}, which is {kind}: set a smaller one")
    if least is not None and param is not None and least < 1:
        raise InputError(
            f"minResource={least:g} is no number of {param.name} of {last.uid}: set 1 or more, of {whole:g}"
        )
    if param is None:
        return rungs.rungs(1.0, least or max(rungs.LEAST, min(FEWEST / max(trained or FEWEST, 1), 1.0)), integer=False)
    boosted = type(last).__name__ in BOOSTED and param.name == "maxIter"
    return rungs.rungs(whole, max(least or whole * (LEAST_BOOSTED if boosted else rungs.LEAST), 1.0), integer=True)


@dataclass(frozen=True)
class Pruning:
    """The brackets of a search, and the comparison of trials within one.

    Attributes:
        larger: whether a larger metric is better.
    """

    name: str
    brackets: tuple[rungs.Bracket, ...]
    larger: bool

    @property
    def firsts(self) -> list[int]:
        """The number of the first trial of each bracket."""
        return [0, *accumulate(bracket.size for bracket in self.brackets)]

    def evaluate_bracket(
        self, number: int, batch: Sequence[Trial], study: Study, evaluate: Evaluate
    ) -> list[TrialOutcome]:
        """The outcome of each trial of a bracket; a rung that was evaluated before a kill isn't evaluated again."""
        bracket = replace(self.brackets[number], size=len(batch))
        sign, seconds, why = -1.0 if self.larger else 1.0, [0.0] * len(batch), [""] * len(batch)

        def rung(alive: Sequence[int], resource: float) -> list[float | None]:
            def find() -> list[Any]:
                start = time.perf_counter()
                found = evaluate([batch[i] for i in alive], resource)
                each = (time.perf_counter() - start) / len(alive)
                return [[None if f.values is None else f.values[0], f.why, each] for f in found]

            told = study.once(f"bracket {number} at {resource:g}", find)
            for i, (_, reason, spent) in zip(alive, told, strict=True):
                seconds[i], why[i] = seconds[i] + spent, reason
            return [None if metric is None else sign * metric for metric, *_ in told]

        earlier = [t.steps for t in study.trials() if t.number < batch[0].number] if self.name == "median" else []
        signed = [[(r, sign * m) for r, m in steps] for steps in earlier]
        out = []
        for i, run in enumerate(rungs.run(bracket, self.name, rung, signed)):
            steps = tuple((resource, sign * metric) for resource, metric in run.steps)
            values = (steps[-1][1],) if steps and not why[i] else None
            out.append(TrialOutcome(values, why[i], seconds[i], steps, pruned=values is not None and not run.last))
        return out


def pruning_of(task: Any, trials: Any, plan: SamplingPlan, trained: int) -> Pruning:
    """The pruning of a search; also sets the resource of `trials`.

    Args:
        trained: number of training rows.
    """
    s = task.settings
    trials.resource = find_resource(task.space, s.resource)
    resources = resources_of(task.space, s.resource, s.minResource, trained)
    found = rungs.brackets(s.pruner, plan.total, resources, max(plan.parallelism, 1))
    if told := rungs.warning(s.pruner, s.sampler, found):
        warn(told)
    return Pruning(s.pruner, tuple(found), plan.larger[0])
