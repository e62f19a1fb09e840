"""The whole way of a search, once: split, trials, winner, fresh rows, decision."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.fingerprint import content
from sparkdiff.errors import InputError
from sparkdiff.machine import memory, paths
from sparkdiff.pipeline.nesting import plain
from sparkdiff.report import Phases
from sparkdiff.report.progress import Phase
from sparkdiff.store.digests import params_of
from sparkdiff.store.identity import UntoldError
from sparkdiff.tuning.checks import check_evaluator
from sparkdiff.tuning.fits import inside
from sparkdiff.tuning.search.alternatives import chosen
from sparkdiff.tuning.search.by_slope import by_slope, check_method
from sparkdiff.tuning.search.judging import compare
from sparkdiff.tuning.search.pruning import Pruning, check_pruner, find_resource, pruning_of
from sparkdiff.tuning.search.questions import Questions
from sparkdiff.tuning.search.samplers import Plan, check_sampler
from sparkdiff.tuning.search.settings import Settings
from sparkdiff.tuning.search.splitting import Divided, Split, check_rows, divided
from sparkdiff.tuning.search.study import Study, Trial, opened
from sparkdiff.tuning.search.summary import SearchSummary, decided
from sparkdiff.tuning.search.trials import Trials

BY_NUMBER = ("annealing", "nsga2")
"""Samplers whose trials depend on how many there will be."""


@dataclass(frozen=True)
class Asked:
    """What is searched, checked."""

    questions: Questions
    evaluators: tuple[Any, ...]
    settings: Settings
    current: Any

    @staticmethod
    def of(questions: Questions, evaluators: Sequence[Any], settings: Settings, current: Any) -> "Asked":
        """
        Raises:
            InputError: names what cannot be.
        """
        if settings.method == "hypergradient":
            check_method(questions, settings, len(evaluators))
        check_sampler(settings.sampler, len(evaluators))
        if settings.pruner is not None:
            check_pruner(settings.pruner, settings.sampler, len(evaluators))
            find_resource(questions, settings.resource)
        for evaluator in evaluators:
            check_evaluator(evaluator)
        if settings.sampler == "grid":
            questions.grid()
        return Asked(questions, tuple(evaluators), settings, current)

    @property
    def names(self) -> list[str]:
        """Of the metrics."""
        found = [e.getMetricName() if hasattr(e, "getMetricName") else type(e).__name__ for e in self.evaluators]
        return [f"{name} {i + 1}" if found.count(name) > 1 else name for i, name in enumerate(found)]

    @property
    def larger(self) -> tuple[bool, ...]:
        return tuple(bool(e.isLargerBetter()) for e in self.evaluators)

    def request(self, dataset: DataFrame) -> dict[str, Any]:
        """Everything that decides the trials, by name."""
        s = self.settings
        names = ["sampler", "pruner", "resource", "validationFraction", "testFraction", "groupCol", "timeCol", "seed"]
        names += ["numTrials"] * (s.sampler in BY_NUMBER or s.pruner is not None)
        return {
            **{name: getattr(s, name) for name in names},
            "space": {q.name: str(q.distribution) for q in self.questions.all},
            "evaluator": [_described(e) for e in self.evaluators],
            "estimator": [_described(stage) for stage in inside(self.questions.estimator).values()],
            "rows": content(dataset),
        }


def _described(stage: Any) -> str:
    try:
        return params_of(stage)
    except UntoldError:  # of a class that isn't Spark's, or of one that holds such a stage
        return type(stage).__name__


@dataclass(frozen=True)
class Outcome:
    """What a search found: the model that ships, its summary, a dict per trial, and the trials of the Pareto front."""

    model: Any
    summary: SearchSummary
    records: list[dict[str, Any]]
    front: list[int]


def searched(asked: Asked, dataset: DataFrame, phases: Phases) -> Outcome:
    """The search of `asked` on these rows.

    Raises:
        InputError: the rows can't be divided, or no trial could be fitted.
    """
    s = asked.settings
    jvm.scratch_folder()  # refuses a cluster without a shared folder before anything runs
    if s.runDir is None:
        return _in_folder(asked, dataset, phases, None)
    path = paths.local(s.runDir)
    assert path is not None
    with opened(path.absolute(), asked.request(dataset)) as folder:
        return _in_folder(asked, dataset, phases, folder)


def _in_folder(asked: Asked, dataset: DataFrame, phases: Phases, folder: Path | None) -> Outcome:
    s = asked.settings
    split = Split(s.validationFraction, s.testFraction, s.groupCol, s.timeCol, s.seed)
    rows = divided(dataset, split)
    rows.rows.cache()
    trials = Trials(asked.questions, rows, asked.evaluators, s.parallelism)
    try:
        with phases.phase("split") as phase:
            counts = check_rows(rows, split, asked.evaluators)
            phase(", ".join(f"{n:,} {name}" for name, n in counts.items()) + " rows")
        if s.method == "hypergradient":
            with phases.phase("penalties"):
                trial, winner = by_slope(asked.questions, rows, asked.evaluators)
            with phases.phase("winner"):
                return _decided(asked, [trial], trial, winner, [0], rows, split, counts)
        total = len(asked.questions.grid()) if s.sampler == "grid" else s.numTrials
        plan = Plan(s.sampler, asked.questions, s.seed, total, s.parallelism, trials.chunk(), asked.larger)
        pruning = pruning_of(asked, trials, plan) if s.pruner else None
        if pruning is not None:
            plan = replace(plan, sizes=tuple(bracket.size for bracket in pruning.brackets))
        study = Study(plan, folder)
        with phases.phase("trials") as phase:
            run(study, trials, s.maxSeconds, phase, asked.names[0], pruning)
        trials.release()
        with phases.phase("winner"):
            best = _best(study)
            estimator, params = asked.questions.setting(best.answers)
            winner = plain(estimator.fit(rows.part("train"), params))
            front = [t.number for t in study.front()]
            return _decided(asked, study.trials(), best, winner, front, rows, split, counts)
    finally:
        trials.release()
        rows.rows.unpersist()
        memory.trim()


def run(study: Study, trials: Any, limit: float | None, phase: Phase, metric: str, pruning: Pruning | None) -> None:
    """Ask, evaluate and tell, batch by batch, until all trials are done or the time is over."""
    start, done, number = time.perf_counter(), 0, 0
    while batch := study.next():
        if limit is not None and sum(t.seconds for t in study.trials()) >= limit:
            return
        if pruning is None:
            left = [t for t in batch if t.state == "running"]
            found = trials.evaluate(left)
        else:
            number = next(i for i, first in enumerate(pruning.firsts) if first == batch[0].number)
            left, found = batch, pruning.evaluated(number, batch, study, trials.evaluate)
        for trial, result in zip(left, found, strict=True):
            if trial.state == "running":
                study.tell(trial.number, result)
                done += 1
        phase.now(progress(study.trials(), study.plan, metric, (time.perf_counter() - start) / max(done, 1)))


def progress(known: Sequence[Trial], plan: Plan, metric: str, each: float) -> str:
    """How far a study is: trials, best so far, time to go."""
    finished = [t for t in known if t.state != "running"]
    complete = [t.values[0] for t in finished if t.state == "complete"]
    best = f", best {metric} {(max if plan.larger[0] else min)(complete):.5g}" if complete else ""
    left = max(plan.total - len(finished), 0) * each
    return f"{len(finished)} of {plan.total} trials{best}" + (f", {left:.0f} s to go" if left else "")


def _best(study: Study) -> Trial:
    known, best = study.trials(), study.best()
    if best is None:
        failed = [t for t in known if t.state == "failed"]
        raise InputError(
            f"none of {len(known)} trials has a metric; the first one: {failed[0].why}" if failed else "no trial was run: "
            "maxSeconds was over before"
        )  # fmt: skip
    return best


def _decided(
    asked: Asked, known: Sequence[Trial], best: Trial, winner: Any, front: list[int], rows: Divided, split: Split,
    counts: dict[str, int],
) -> Outcome:  # fmt: skip
    """The winner and the model that it would replace, fitted to the training rows and compared on fresh ones."""
    s, train, evaluator = asked.settings, rows.part("train"), asked.evaluators[0]
    against = "default" if asked.current is None else "current"
    other = (
        plain(asked.current) if asked.current is not None else plain(chosen(asked.questions.estimator, {}).fit(train))
    )
    compared = compare(winner, other, rows.fresh(), split, evaluator, level=s.guard, seed=s.seed)
    better, reason, figures = decided(
        compared, metric=asked.names[0], larger=asked.larger[0], against=against, level=s.guard
    )
    kept = f"kept {against}"
    warnings = list(compared.verdict.warnings) if compared.verdict else []
    summary = SearchSummary(
        decision="winner" if better else kept, reason=reason, metric=asked.names[0],
        metricDirection="larger" if asked.larger[0] else "smaller", validation=best.values[0],
        fresh={"winner": compared.winner, "default": compared.default}, optimism=best.values[0] - compared.winner,
        settings=best.answers, number=best.number, trials=len(known), failed=sum(t.state == "failed" for t in known),
        pruned=sum(t.state == "pruned" for t in known), rows=counts,
        sampler=s.sampler if s.method == "trials" else s.method, pruner=s.pruner,
        seconds=sum(t.seconds for t in known), warnings=warnings, **figures,
    )  # fmt: skip
    model = winner if better else (asked.current if asked.current is not None else other)
    return Outcome(model, summary, records(known, asked), front)


def records(known: Sequence[Trial], asked: Asked) -> list[dict[str, Any]]:
    """A dict per trial."""
    none = [None] * len(asked.names)
    return [
        {
            "trial": t.number, "state": t.state, **dict(zip(asked.names, t.values or none, strict=True)), "seconds": t.seconds,
            **{q.name: t.answers.get(q.name) for q in asked.questions.all}, "why": t.why,
        }
        for t in known
    ]  # fmt: skip
