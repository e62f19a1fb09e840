"""The complete procedure of a search: split, trials, winner, its proof on other rows, decision."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.ml import Model
from pyspark.ml.feature import SQLTransformer
from pyspark.ml.param import Param, Params
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.fingerprint import content, source_facts
from sparkdiff.data.splits import TEST, TRAIN, Source
from sparkdiff.errors import InputError, WriteError
from sparkdiff.evaluation.prediction_differences import find_output_changes
from sparkdiff.jvm.query_plans import settings as settings_of, tables_read
from sparkdiff.machine import paths, resources
from sparkdiff.pipeline.nesting import flatten, inside, plain
from sparkdiff.pipeline.unfitted_form import check_unfitted
from sparkdiff.proof.decision import FINALISTS
from sparkdiff.report import Phases, versions
from sparkdiff.report.progress import Phase
from sparkdiff.search.alternatives import with_choices
from sparkdiff.search.distributions import Choice, Distribution
from sparkdiff.search.hypergradient_method import by_slope, check_method
from sparkdiff.search.pruning import Pruning, check_pruner, pruning_of, resources_of
from sparkdiff.search.samplers import SamplingPlan, check_sampler
from sparkdiff.search.search_options import Settings
from sparkdiff.search.search_progress import progress
from sparkdiff.search.search_space import SearchSpace, names_of
from sparkdiff.search.search_summary import SearchSummary, decision_and_reason
from sparkdiff.search.splitting import DividedRows, assign_splits, check_rows, divide_rows, folds_in
from sparkdiff.search.study import Study, Trial, lock_search_folder
from sparkdiff.search.trials import FAILURES, Trials
from sparkdiff.search.winner_comparison import Comparison, Fold, check_classes, compare, decide, with_final_check
from sparkdiff.store.identity import UnidentifiableError, identity
from sparkdiff.store.model_digests import hash_of, params_of
from sparkdiff.tuning.evaluator_metrics import judge_of
from sparkdiff.tuning.fits import is_sparks, leaves_of
from sparkdiff.tuning.param_checks import check_evaluator

BY_NUMBER = ("nsga2",)
"""Samplers whose trials depend on the total number of trials."""
ELSEWHERE = ("cacheDir", "checkpointDir", "verbosity")
"""Params of a FineTuner that don't affect results."""


@dataclass(frozen=True)
class SearchTask:
    """The checked task of a search."""

    space: SearchSpace
    evaluators: tuple[Any, ...]
    settings: Settings
    current: Any

    @staticmethod
    def of(space: SearchSpace, evaluators: Sequence[Any], settings: Settings, current: Any) -> "SearchTask":
        """Make the task.

        Raises:
            InputError: something can't be used. The message names it.
        """
        settings.check_together()
        check_unfitted(space.estimator, settings.rowsAreNew)
        if settings.method == "hypergradient":
            check_method(space, settings, len(evaluators))
        check_sampler(settings.sampler, len(evaluators))
        if settings.pruner is not None:
            check_pruner(settings.pruner, settings.sampler, len(evaluators))
            resources_of(space, settings.resource, settings.minResource)
        if settings.sampler == "grid" and settings.method == "trials":
            space.grid()
        # Check each alternative in its place: a later stage may name a column that only another alternative writes.
        for dimension in space.dimensions:
            for value in names_of(dimension.distribution) if dimension.param is None else ():
                space.setting({dimension.name: value})
        for stage in inside(space.estimator).values():
            if stage.hasParam("runId") and stage.isSet("runId"):
                raise InputError(
                    f"runId of {stage.uid} names one training, but each trial is one: clear it, and set runDir of the Search"
                )
        return SearchTask(
            space, tuple(evaluators), replace(settings, numFolds=_folds(settings, evaluators[0])), current
        )

    @property
    def names(self) -> list[str]:
        """Names of the metrics."""
        found = [e.getMetricName() if hasattr(e, "getMetricName") else type(e).__name__ for e in self.evaluators]
        return [f"{name} {i + 1}" if found.count(name) > 1 else name for i, name in enumerate(found)]

    @property
    def larger(self) -> tuple[bool, ...]:
        return tuple(bool(e.isLargerBetter()) for e in self.evaluators)

    def request(self, dataset: DataFrame) -> dict[str, Any]:
        """Everything that determines the trials, by name."""
        s = self.settings
        names = [
            "sampler",
            "pruner",
            "resource",
            "numFolds",
            "groupCol",
            "timeCol",
            "seed",
            *["validationFraction", "testFraction"] * (not s.folds),
            *["numTrials"] * (s.sampler in BY_NUMBER or s.pruner is not None),
            *["parallelism"] * (s.pruner is not None),
        ]
        pruned = {"resources": resources_of(self.space, s.resource, s.minResource)} if s.pruner is not None else {}
        stages = inside(self.space.estimator)
        copies = [s for s in leaves_of(self.space.estimator, lambda _: False) if s is not stages.get(s.uid)]
        told = [_description(stage) for stage in (*stages.values(), *copies)]
        for i, uid in enumerate(stages):  # a default column name contains the uid of its stage
            told = [text.replace(uid, f"stage{i}") for text in told]
        return {
            **{name: getattr(s, name) for name in names},
            **pruned,
            "space": [[q.name, _values(q.distribution)] for q in self.space.dimensions],  # in the order of a grid
            "evaluator": [_description(e) for e in self.evaluators],
            "estimator": told,
            "rows": content(dataset),
            "sparkdiff": versions()["sparkdiff"],
            **{f"Spark's {name}": value for name, value in settings_of(dataset.sparkSession).items()},
        }


def _folds(settings: Settings, evaluator: Any) -> int:
    """The number of folds; 0 if fresh rows decide. With "auto", fresh rows decide if folds can't be used, or if
    fresh rows can show a smaller gain.

    Raises:
        InputError: folds are requested, but the metric has no value per row.
    """
    judge = judge_of(evaluator)
    if settings.method == "trials" and judge is not None and judge.metric is not None:
        return folds_in(settings)
    if settings.folds:
        raise InputError(
            f"numFolds={settings.numFolds} needs a metric with a value per row, which {type(evaluator).__name__} lacks here: "
            "use an evaluator of regressions or classes, or numFolds=0"
        )
    return 0


def _values(distribution: Distribution) -> Any:
    """The full content of a distribution, however long its values are."""
    if not isinstance(distribution, Choice):
        return distribution.toDict()
    return [_description(v) if isinstance(v, Params) else repr(v) for v in distribution.values]


def _description(stage: Any) -> str:
    if isinstance(stage, Model):  # its learned state matters, too
        found = hash_of(stage, None, jvm.scratch_folder() or Path(tempfile.gettempdir()))
        return f"{type(stage).__name__} {found or stage.uid}"
    try:
        return params_of(stage)
    except UnidentifiableError:  # a class that isn't Spark's, or one that holds such a stage
        held = {name: value for name, value in vars(stage).items() if not name.startswith("_") and name != "uid"}
        params = stage.params if hasattr(stage, "uid") else []  # without a uid, Params' constructor wasn't called
        held |= {p.name: stage.getOrDefault(p) for p in params if stage.isDefined(p) and p.name not in ELSEWHERE}
        told = {
            name: _text(value)
            for name, value in sorted(held.items())
            if not (isinstance(value, Param) or inside(value))
        }
        code = "" if is_sparks(stage) else _hash_or_class(type(stage))
        tables = _tables(stage.getStatement()) if isinstance(stage, SQLTransformer) else {}
        return f"{type(stage).__name__} {code} {json.dumps([told, tables])}"


def _text(value: Any) -> str:
    """A stage's attribute as text; a best-effort key: equal texts mean equal values."""
    try:
        return json.dumps(value, default=_hash_or_class)
    except (TypeError, ValueError):  # a mapping with keys that JSON can't have, or a list that holds itself
        return _hash_or_class(value)


def _hash_or_class(value: Any) -> str:
    """A hash of a DataFrame, a function, a class or an object; its class if it can't be hashed."""
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    try:
        facts = json.dumps(source_facts(value)) if isinstance(value, DataFrame) else value
        return f"{kind} {identity(facts)[:16]}"
    except UnidentifiableError:
        return kind


def _tables(statement: str) -> dict[str, Any]:
    """Identities of the tables that a statement reads beside its input, by name."""
    spark, found = jvm.session(), {}
    with contextlib.suppress(*jvm.SparkError):  # the fit will report what is wrong with the statement
        for name in tables_read(spark, statement):
            with contextlib.suppress(
                *jvm.SparkError
            ):  # the statement itself defines this name, or there is no such table
                found[name] = content(spark.table(name))
    return found


SearchResult = tuple[Any, SearchSummary, list[int]]
"""The model that ships, the summary, and the numbers of the Pareto front's trials."""


def run_search(task: SearchTask, dataset: DataFrame, phases: Phases) -> SearchResult:
    """Run the search of `task` on these rows.

    Raises:
        InputError: an evaluator or the rows can't be used, or no trial could be fitted.
    """
    s = task.settings
    for evaluator in task.evaluators:
        check_evaluator(evaluator, [task.space.estimator, *task.space.dimensions], dataset.columns)
    jvm.scratch_folder()  # refuses a cluster without a shared folder before anything runs
    if s.runDir is None:
        return _in_folder(task, dataset, phases, None)
    path = paths.local(s.runDir)
    assert path is not None
    with lock_search_folder(path.absolute(), task.request(dataset)) as folder:
        return _in_folder(task, dataset, phases, folder)


def _in_folder(task: SearchTask, dataset: DataFrame, phases: Phases, folder: Path | None) -> SearchResult:
    """Choose a winner on some rows, and test on other rows whether it replaces the default. With folds, what ships is fitted
    to all rows.
    """
    s, judge = task.settings, task.evaluators[0]
    rows, division = divide_rows(dataset, s)
    rows.cache()
    try:
        explores = assign_splits(division.explores, s, division.boundaries[0])
        proves = [assign_splits(sources, s, division.boundaries[1]) for sources in division.proves]
        with phases.phase("split") as phase:
            known, *fresh = check_rows([explores, *proves], s, task.evaluators)
            counts = {**known, TEST: sum(n[TEST] for n in fresh)}
            phase(f"{', '.join(f'{n:,} {name}' for name, n in counts.items())} rows, {division.name}")
        with phases.phase("default"):
            rivals = [_rival(task, part.part(TRAIN)) for part in proves]
            for k, rival in enumerate(rivals):
                check_classes(rivals[0], rival, judge, f"fold {k + 2}")
        if s.method == "hypergradient":
            with phases.phase("penalties"):
                best, winner = by_slope(task.space, explores, task.evaluators)
            trials, front = [best], [best.number]
        else:
            study = run_trials(task, explores, phases, folder, known[TRAIN])
            best, winner, trials, front = best_of(study), None, study.trials(), [t.number for t in study.front()]
        folds = list[Fold]()
        with phases.phase("prove") as phase:
            for part, rival, n in zip(proves, rivals, fresh, strict=True):
                winner = _fit_settings(task, best, part.part(TRAIN)) if s.method == "trials" else winner
                folds.append(
                    compare(
                        winner,
                        rival,
                        part,
                        n,
                        s,
                        judge,
                        level=s.guard,
                        elsewhere=len(proves) > 1 and division.factor is None,
                    )
                )
                phase.now(f"{len(folds)} of {len(proves)}")
            compared = decide(
                folds, level=s.guard, seed=s.seed, factor=division.factor, finalists=FINALISTS if s.folds else 1
            )
        if s.folds:
            with phases.phase("winner"):
                whole = assign_splits([Source(rows, TEST, numbered=True)], s, division.boundaries[1])
                rival = _rival(task, whole.part(TEST))
                if compared.ships(s.guard, larger=task.larger[0]):
                    winner = _fit_settings(task, best, whole.part(TEST))
                    own = compare(winner, rival, whole, {TEST: rows.count()}, s, judge)
                    compared = with_final_check(compared, own, folds)
                    check_classes(rivals[0], winner, judge, "the fit on all rows")
        model, summary = _model_and_summary(
            task, trials, best, compared, counts, winner, rival if task.current is None else task.current
        )
        if task.current is not None and model is winner:
            fitted = [stage.uid for _, stage in flatten(rival) if isinstance(stage, Model)]
            changes, notes = find_output_changes(rival, winner, dataset, fitted)
            doubts = [f"other outputs than those of `current`: {change}" for change in changes] + notes
            summary = replace(summary, warnings=[*summary.warnings, *doubts])
        return model, summary, front
    finally:
        rows.unpersist()
        resources.trim_memory()


def run_trials(task: SearchTask, rows: DividedRows, phases: Phases, folder: Path | None, trained: int) -> Study:
    """Run the trials on some rows.

    Args:
        trained: number of these rows that fit the trials.
    """

    def tell(known: Sequence[Trial]) -> None:
        for record in records(known, task):
            phases.on_epoch(record)

    s = task.settings
    trials = Trials(task.space, rows, task.evaluators, s.parallelism)
    total = len(task.space.grid()) if s.sampler == "grid" else s.numTrials
    plan = SamplingPlan(s.sampler, task.space, s.seed, total, s.parallelism, trials.chunk(), task.larger)
    pruning = pruning_of(task, trials, plan, trained) if s.pruner else None
    if pruning is not None:
        plan = replace(plan, sizes=tuple(bracket.size for bracket in pruning.brackets))
    study = Study(plan, folder)
    with contextlib.closing(trials), phases.phase("trials") as phase:
        tell([t for t in study.trials() if t.state != "running"])
        run(study, trials, s.maxSeconds, phase, pruning, tell)
    return study


def run(
    study: Study,
    trials: Any,
    limit: float | None,
    phase: Phase,
    pruning: Pruning | None,
    tell: Callable[[Sequence[Trial]], None] = lambda _known: None,
) -> None:
    """Take trials from the study, evaluate them and store their outcomes, batch by batch, until all trials are done or
    the time is over.

    Args:
        tell: called with the trials of each batch.
    """
    while limit is None or sum(t.seconds for t in study.trials()) < limit:
        batch = study.next()
        if not batch:
            return
        if pruning is None:
            left = [t for t in batch if t.state == "running"]
            found = trials.evaluate(left)
        else:
            number = pruning.firsts.index(batch[0].number)
            left, found = batch, pruning.evaluate_bracket(number, batch, study, trials.evaluate)
        for trial, result in zip(left, found, strict=True):
            if trial.state == "running":
                study.tell(trial.number, result)
        numbers = {t.number for t in left}
        tell([t for t in study.trials() if t.number in numbers])
        phase.now(str(progress(study.trials(), study.plan.total, study.plan.larger[0])))


def best_of(study: Study) -> Trial:
    """The winner among the trials.

    Raises:
        InputError: no trial has a metric. The message says why.
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


def _rival(task: SearchTask, rows: DataFrame) -> Any:
    """The model to compare the winner with: `current`, or Spark's fit with the default settings.

    Raises:
        InputError: Spark refuses these settings. The message says why.
    """
    if task.current is not None:
        return plain(task.current)
    try:
        return _fit_settings(task, None, rows)
    except WriteError:
        raise
    except FAILURES as e:
        raise InputError(
            f"the estimator as it is, which the winner is compared with, can't be fitted ({jvm.cause(e)}): set on its stages "
            "what only the space sets, or pass a fitted model as `current`"
        ) from e


def _fit_settings(task: SearchTask, trial: Trial | None, rows: DataFrame) -> Any:
    """Spark's fit with a trial's settings, or with the default settings if `trial` is None."""
    estimator, params = (
        (with_choices(task.space.estimator, {}), {}) if trial is None else task.space.setting(trial.configuration)
    )
    return plain(estimator.fit(rows, params))


def _model_and_summary(
    task: SearchTask,
    known: Sequence[Trial],
    best: Trial,
    compared: Comparison,
    counts: dict[str, int],
    winner: Any,
    other: Any,
) -> tuple[Any, SearchSummary]:
    """The model that ships, and the summary."""
    s, against = task.settings, "default" if task.current is None else "current"
    better, reason, figures = decision_and_reason(
        compared, s, metric=task.names[0], larger=task.larger[0], against=against
    )
    warnings = [*check_unfitted(task.space.estimator, s.rowsAreNew), *s.idle()]
    warnings += compared.verdict.warnings if compared.verdict else ()
    summary = SearchSummary(
        decision="winner" if better else f"kept {against}",
        reason=reason,
        metric=task.names[0],
        metricDirection="larger" if task.larger[0] else "smaller",
        validation=best.values[0],
        fresh={"winner": compared.winner, "default": compared.default},
        optimism=best.values[0] - compared.winner,
        settings=best.configuration,
        number=best.number,
        trials=len(known),
        failed=sum(t.state == "failed" for t in known),
        pruned=sum(t.state == "pruned" for t in known),
        rows=counts,
        folds=s.folds,
        sampler=s.sampler if s.method == "trials" else s.method,
        pruner=s.pruner,
        seconds=sum(t.seconds for t in known),
        warnings=warnings,
        against=against,
        records=records(known, task),
        **figures,
    )
    return winner if better else other, summary


def records(known: Sequence[Trial], task: SearchTask) -> list[dict[str, Any]]:
    """A dict for each trial."""
    none = [None] * len(task.names)
    return [
        {
            "trial": t.number,
            "state": t.state,
            **dict(zip(task.names, t.values or none, strict=True)),
            "seconds": t.seconds,
            **{q.name: t.configuration.get(q.name) for q in task.space.dimensions},
            "why": t.why,
        }
        for t in known
    ]
