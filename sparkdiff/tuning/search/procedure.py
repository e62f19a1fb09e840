"""The whole way of a search, once: split, trials, winner, fresh rows, decision."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.ml import Model
from pyspark.ml.param import Params
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.fingerprint import content
from sparkdiff.errors import InputError
from sparkdiff.machine import memory, paths
from sparkdiff.pipeline.nesting import plain
from sparkdiff.report import Phases
from sparkdiff.report.progress import Phase
from sparkdiff.store.digests import hash_of, params_of
from sparkdiff.store.identity import UntoldError
from sparkdiff.tuning.checks import check_evaluator
from sparkdiff.tuning.fits import inside
from sparkdiff.tuning.scores import judge_of
from sparkdiff.tuning.search import folds
from sparkdiff.tuning.search.alternatives import chosen
from sparkdiff.tuning.search.by_slope import by_slope, check_method
from sparkdiff.tuning.search.judging import Comparison, compare, losses_of
from sparkdiff.tuning.search.pruning import Pruning, check_pruner, find_resource, pruning_of
from sparkdiff.tuning.search.questions import Questions, names_of
from sparkdiff.tuning.search.samplers import Plan, check_sampler
from sparkdiff.tuning.search.settings import Settings
from sparkdiff.tuning.search.space import PLAIN, Choice, Distribution
from sparkdiff.tuning.search.splitting import Divided, Split, check_folds, check_rows, divided, in_folds
from sparkdiff.tuning.search.study import Study, Trial, opened
from sparkdiff.tuning.search.summary import SearchSummary, decided
from sparkdiff.tuning.search.trials import FAILURES, Trials
from sparkdiff.tuning.search.watching import progress

BY_NUMBER = ("annealing", "nsga2")
"""Samplers whose trials depend on how many there will be."""
ELSEWHERE = ("cacheDir", "checkpointDir", "verbosity")
"""Params of a FineTuner that decide nothing."""


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
        for (
            question
        ) in questions.all:  # each stage in its place: one may name a column that is not there without another
            if question.param is None:
                for answer in names_of(question.distribution):
                    questions.setting({question.name: answer})
        for stage in inside(questions.estimator).values():
            if stage.hasParam("runId") and stage.isSet("runId"):
                raise InputError(
                    f"runId of {stage.uid} names one training, but each trial is one: clear it, and set runDir of the Search"
                )
        if settings.numFolds:
            _check_folds(settings, evaluators[0], current)
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
        names = [
            "sampler",
            "pruner",
            "resource",
            "numFolds",
            "validationFraction",
            "testFraction",
            "groupCol",
            "timeCol",
            "seed",
        ]
        names += ["numTrials"] * (s.sampler in BY_NUMBER or s.pruner is not None)
        names += ["parallelism"] * (s.pruner is not None)
        stages = inside(self.questions.estimator)
        told = [_described(stage) for stage in stages.values()]
        for i, uid in enumerate(stages):  # a default column bears the uid of the stage that writes it
            told = [text.replace(uid, f"stage{i}") for text in told]
        return {
            **{name: getattr(s, name) for name in names},
            "space": [[q.name, _values(q.distribution)] for q in self.questions.all],  # in the order of a grid
            "evaluator": [_described(e) for e in self.evaluators],
            "estimator": told,
            "rows": content(dataset),
        }


def _check_folds(settings: Settings, evaluator: Any, current: Any) -> None:
    if current is not None:
        raise InputError(
            f"numFolds={settings.numFolds} fits the model that the winner is compared with anew in each fold, but `current` is "
            "fitted and may have seen the rows: leave one of them out"
        )
    if judge_of(evaluator) is None or losses_of(evaluator) is None:
        raise InputError(
            f"numFolds={settings.numFolds} needs a metric with a value per row, which {type(evaluator).__name__} lacks here: "
            "use an evaluator of pyspark.ml.evaluation, or testFraction"
        )


def _values(distribution: Distribution) -> Any:
    """All that a distribution says, however long its values are."""
    if not isinstance(distribution, Choice):
        return str(distribution)
    return [_described(v) if isinstance(v, Params) else repr(v) for v in distribution.values]


def _described(stage: Any) -> str:
    if isinstance(stage, Model):  # what it has learned decides, too
        found = hash_of(stage, None, jvm.scratch_folder() or Path(tempfile.gettempdir()))
        return f"{type(stage).__name__} {found or stage.uid}"
    try:
        return params_of(stage)
    except UntoldError:  # of a class that isn't Spark's, or of one that holds such a stage
        told = {p.name: stage.getOrDefault(p) for p in stage.params if stage.isSet(p) and p.name not in ELSEWHERE}
        plain_ = {name: value for name, value in sorted(told.items()) if isinstance(value, (*PLAIN, list, dict))}
        return f"{type(stage).__name__} {json.dumps(plain_, default=lambda value: type(value).__name__)}"


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found: the model that ships, its summary, a dict per trial, and the trials of the Pareto front."""

    model: Any
    summary: SearchSummary
    records: list[dict[str, Any]]
    front: list[int]


def searched(asked: Asked, dataset: DataFrame, phases: Phases) -> SearchOutcome:
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


def _in_folder(asked: Asked, dataset: DataFrame, phases: Phases, folder: Path | None) -> SearchOutcome:
    s = asked.settings
    split = Split(s.validationFraction, s.testFraction, s.groupCol, s.timeCol, s.seed)
    if s.numFolds:
        return _in_folds(asked, dataset, phases, folder, split)
    rows = divided(dataset, split)
    rows.rows.cache()
    try:
        with phases.phase("split") as phase:
            counts = check_rows(rows, split, asked.evaluators)
            phase(", ".join(f"{n:,} {name}" for name, n in counts.items()) + " rows")
        train, fresh = rows.part("train"), rows.fresh()
        with phases.phase("default"):
            default = plain(asked.current) if asked.current is not None else _default(asked, train)
        if s.method == "hypergradient":
            with phases.phase("penalties"):
                best, winner = by_slope(asked.questions, rows, asked.evaluators)
            known, front = [best], [best.number]
        else:
            study = studied(asked, rows, phases, folder, counts["train"])
            best = best_of(study)
            with phases.phase("winner"):
                winner = _fitted(asked, best, train)
            known, front = study.trials(), [t.number for t in study.front()]
        with phases.phase("fresh rows"):
            compared = compare(winner, default, fresh, split, asked.evaluators[0], level=s.guard, seed=s.seed)
        kept = default if asked.current is None else asked.current
        return SearchOutcome(*_told(asked, known, best, compared, counts, winner, kept), front)
    finally:
        rows.rows.unpersist()
        memory.trim()


def _in_folds(asked: Asked, dataset: DataFrame, phases: Phases, folder: Path | None, split: Split) -> SearchOutcome:
    """The whole search once per fold, and once on all rows: out-of-fold rows decide, all rows fit what ships."""
    s = asked.settings
    parts = folds.Parts(in_folds(dataset, split, s.numFolds), tuple(dataset.columns))
    parts.rows.cache()
    try:
        with phases.phase("split") as phase:
            counts = check_folds(parts.rows, split, asked.evaluators, s.numFolds)
            phase(f"{counts['test']:,} rows in {s.numFolds} folds")
        found: list[folds.Fold] = []
        trained = counts["train"] * (s.numFolds - 1) // s.numFolds
        for fold in range(s.numFolds):
            rows = parts.fitted(fold)
            with phases.phase("default"):
                default = _default(asked, rows)
            study = studied(asked, parts.outside(fold), phases, folds.folder_of(folder, fold), trained)
            with phases.phase("winner"):
                winner = _fitted(asked, best_of(study), rows)
                one = folds.judged(fold, winner, default, parts, split, asked.evaluators[0])
            if isinstance(one, str):
                raise InputError(f"numFolds={s.numFolds}: {one} (fold {fold})")
            found.append(one)
        compared = folds.decided(found, split, level=s.guard, seed=s.seed)
        study = studied(asked, parts.outside(None), phases, folder, counts["train"])
        best = best_of(study)
        with phases.phase("winner"):
            accepted = compared.verdict is not None and compared.verdict.accepted
            model = _fitted(asked, best if accepted else None, parts.fitted(None))
        front = [t.number for t in study.front()]
        return SearchOutcome(*_told(asked, study.trials(), best, compared, counts, model, model), front)
    finally:
        parts.rows.unpersist()
        memory.trim()


def studied(asked: Asked, rows: Divided, phases: Phases, folder: Path | None, trained: int) -> Study:
    """The trials on some rows.

    Args:
        trained: how many of them fit the trials.
    """
    s = asked.settings
    trials = Trials(asked.questions, rows, asked.evaluators, s.parallelism)
    total = len(asked.questions.grid()) if s.sampler == "grid" else s.numTrials
    plan = Plan(s.sampler, asked.questions, s.seed, total, s.parallelism, trials.chunk(), asked.larger)
    pruning = pruning_of(asked, trials, plan, trained) if s.pruner else None
    if pruning is not None:
        plan = replace(plan, sizes=tuple(bracket.size for bracket in pruning.brackets))
    study = Study(plan, folder)
    try:
        with phases.phase("trials") as phase:
            run(study, trials, s.maxSeconds, phase, pruning)
    finally:
        trials.release()
    return study


def run(study: Study, trials: Any, limit: float | None, phase: Phase, pruning: Pruning | None) -> None:
    """Ask, evaluate and tell, batch by batch, until all trials are done or the time is over."""
    while limit is None or sum(t.seconds for t in study.trials()) < limit:
        batch = study.next()
        if not batch:
            return
        if pruning is None:
            left = [t for t in batch if t.state == "running"]
            found = trials.evaluate(left)
        else:
            number = pruning.firsts.index(batch[0].number)
            left, found = batch, pruning.evaluated(number, batch, study, trials.evaluate)
        for trial, result in zip(left, found, strict=True):
            if trial.state == "running":
                study.tell(trial.number, result)
        phase.now(str(progress(study.trials(), study.plan.total, study.plan.larger[0])))


def best_of(study: Study) -> Trial:
    """The winner among the trials.

    Raises:
        InputError: none has a metric; says why.
    """
    best, known = study.best(), study.trials()
    if best is None:
        why = next((f"; the first one: {t.why}" for t in known if t.why), "")
        raise InputError(
            f"none of {len(known)} trials has a metric{why}"
            if known
            else "no trial was run: maxSeconds was over before"
        )
    return best


def _default(asked: Asked, rows: DataFrame) -> Any:
    """What Spark fits with the default settings, before any trial.

    Raises:
        InputError: Spark refuses them; says why.
    """
    try:
        return _fitted(asked, None, rows)
    except FAILURES as e:
        raise InputError(
            f"the estimator as it is, which the winner is compared with, can't be fitted ({jvm.cause(e)}): set on its stages "
            "what only the space sets, or pass a fitted model as `current`"
        ) from e


def _fitted(asked: Asked, trial: Trial | None, rows: DataFrame) -> Any:
    """What Spark fits with a trial's settings; None: with the default ones."""
    estimator, params = (
        (chosen(asked.questions.estimator, {}), {}) if trial is None else asked.questions.setting(trial.answers)
    )
    return plain(estimator.fit(rows, params))


def _told(
    asked: Asked, known: Sequence[Trial], best: Trial, compared: Comparison, counts: dict[str, int], winner: Any, other: Any
) -> tuple[Any, SearchSummary, list[dict[str, Any]]]:  # fmt: skip
    """What ships, and what is told of it."""
    s, against = asked.settings, "default" if asked.current is None else "current"
    better, reason, figures = decided(
        compared, metric=asked.names[0], larger=asked.larger[0], against=against, level=s.guard,
        rows="out-of-fold" if s.numFolds else "fresh",
    )  # fmt: skip
    warnings = list(compared.verdict.warnings) if compared.verdict else []
    summary = SearchSummary(
        decision="winner" if better else f"kept {against}", reason=reason, metric=asked.names[0],
        metricDirection="larger" if asked.larger[0] else "smaller", validation=best.values[0],
        fresh={"winner": compared.winner, "default": compared.default}, optimism=best.values[0] - compared.winner,
        settings=best.answers, number=best.number, trials=len(known), failed=sum(t.state == "failed" for t in known),
        pruned=sum(t.state == "pruned" for t in known), rows=counts, folds=s.numFolds,
        sampler=s.sampler if s.method == "trials" else s.method, pruner=s.pruner,
        seconds=sum(t.seconds for t in known), warnings=warnings, against=against, **figures,
    )  # fmt: skip
    return winner if better else other, summary, records(known, asked)


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
