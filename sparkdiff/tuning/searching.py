"""The metrics of all settings in all folds: what can be solved at once is, Spark fits the rest."""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from multiprocessing.pool import ThreadPool
from threading import Event
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.tuning import shared_fits, tails
from sparkdiff.tuning.fits import Branch, FoldFits, FoldMetrics, GridTask, for_threads
from sparkdiff.tuning.folds import Folds
from sparkdiff.tuning.trie import Fit


def outcomes(task: GridTask, folds: Folds, parallelism: int, keeps: bool) -> list[FoldMetrics]:
    """Fold by fold the metric of each setting, and its model if models are kept."""
    if why_not_at_once(task):
        return _by_spark(task, folds, parallelism, keeps)
    with ThreadPool(min(parallelism, len(task.maps))) as threads:
        if not tails.one_for_all(task):
            wanted = tails.asked(task)
            return [FoldFits(task, threads, keeps, partial(_after, wanted)).run(*pair) for pair in folds.pairs]
        if folds.drawn:  # as Spark caches a fold's rows; else another plan may draw other numbers for them
            folds.rows.cache()
        try:
            found = tails.across(task, folds.rows, folds.held_out, folds.count, folds.kept)
        finally:
            if folds.drawn:
                folds.rows.unpersist()
        return [_outcome(task, threads, keeps, _of_fold(found, i), folds, i) for i in range(folds.count)]


def _by_spark(task: GridTask, folds: Folds, parallelism: int, keeps: bool) -> list[FoldMetrics]:
    """All fits of all folds by Spark; where a fold has fewer than there are threads, several folds are fitted at once."""
    folds_at_once = min(max(parallelism // task.fits_at_once, 1), folds.count)
    size = min(parallelism // folds_at_once, len(task.maps))
    over = Event()

    def of_fold(pair: tuple[DataFrame, DataFrame]) -> FoldMetrics:
        if over.is_set():
            raise CancelledError
        try:
            with ThreadPool(size) as threads:
                return FoldFits(task, threads, keeps).run(*pair)
        except BaseException:
            over.set()
            raise

    pairs = folds.pairs
    with ThreadPoolExecutor(folds_at_once) as pool:  # which waits for those that run when one has failed
        inherit = for_threads(folds.rows)
        running = [pool.submit(inherit(partial(of_fold, pair))) for pair in pairs]
        try:
            return [fold.result() for fold in running]
        finally:
            over.set()


def why_not_at_once(task: GridTask) -> str:
    """Why nothing is solved at once; empty if something is."""
    kind = type(task.stages[-1]).__name__
    if type(task.stages[-1]) not in tails.KINDS:
        return f"{kind} is fitted by Spark"
    reasons = [asked.why for asked in tails.asked(task).values()]
    if all(reasons):
        return reasons[0]
    try:
        jvm.scratch_folder()
    except InputError as e:
        return f"{kind} is fitted by Spark: {e}"
    return ""


def _of_fold(found: tails.Results, fold: int) -> dict[Fit, tails.Result]:
    return {fit: result for (fit, number), result in found.items() if number == fold}


def _outcome(
    task: GridTask, threads: ThreadPool, keeps: bool, found: Mapping[Fit, tails.Result], folds: Folds, fold: int
) -> FoldMetrics:
    if keeps or any(math.isnan(result.metric) for result in found.values()):
        return FoldFits(task, threads, keeps, partial(_ends, found)).run(*folds.pairs[fold])
    out = FoldMetrics([0.0] * len(task.maps), [])
    for fit, result in found.items():
        for setting in fit.settings:
            out.metrics[setting] = result.metric
    return out


def _after(wanted: Mapping[Fit, tails.AskedFit], fold: FoldFits, branch: Branch) -> Iterator[tuple[Fit, float, Any]]:
    """Of a fold with fitted stages of its own."""
    return _ends(_of_fold(tails.within(fold.task, wanted, branch), 0), fold, branch)


def _ends(found: Mapping[Fit, tails.Result], fold: FoldFits, branch: Branch) -> Iterator[tuple[Fit, float, Any]]:
    """The last stage and the metric of each way on: by Spark, where a solution, a metric or a model is missing."""
    task, stage, steps = fold.task, fold.task.stages[-1], []
    unsolved = [fit for fit in branch.fit.after if found[fit].solution is None]
    fitted = dict(shared_fits.models(stage, unsolved, branch.train))

    def step(fit: Fit, result: tails.Result) -> tuple[Fit, float, Any]:
        model = fitted[fit]() if result.solution is None else tails.model_of(stage, fit, result.solution)
        if math.isnan(result.metric):
            return fit, task.evaluator.evaluate(model.transform(branch.validation, fit.params)), model
        return fit, result.metric, model

    for fit in dict.fromkeys([*fitted, *branch.fit.after]):
        result = found[fit]
        if fold.keeps or math.isnan(result.metric):
            steps.append(partial(step, fit, result))
        else:
            yield fit, result.metric, None
    yield from fold.at_once(steps, branch.train)
