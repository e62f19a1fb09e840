"""`CrossValidator` and `TrainValidationSplit`: pyspark's classes, with fewer fits, and with an explanation before any
job. Settings of a linear last stage that can be solved at once (together, by sparkdiff's own solvers) are solved here;
Spark fits the rest.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from threading import Event
from typing import Any, ClassVar

import numpy as np
from pyspark.ml import tuning
from pyspark.ml.param import Params
from pyspark.ml.util import MLWriter
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError, kind_of, warn
from sparkdiff.machine.autologging import pause_autologging
from sparkdiff.pipeline.column_names import check_rows
from sparkdiff.report import DisplayableFields, Section, StrongLine
from sparkdiff.tuning import folds, linear_last_stages, shared_fits
from sparkdiff.tuning.evaluator_metrics import judge_of
from sparkdiff.tuning.fits import Branch, FoldFits, FoldMetrics, GridTask, for_threads
from sparkdiff.tuning.folds import Folds
from sparkdiff.tuning.param_checks import check_evaluator, check_values
from sparkdiff.tuning.trie import Fit


def outcomes(task: GridTask, folds: Folds, parallelism: int, keeps: bool) -> list[FoldMetrics]:
    """The metric of each setting, fold by fold, and the setting's model if `keeps`."""
    if why_not_at_once(task):
        return _by_spark(task, folds, parallelism, keeps)
    with ThreadPool(min(parallelism, len(task.maps))) as threads:
        if not linear_last_stages.one_for_all(task):
            wanted = linear_last_stages.settings_by_fit(task)
            return [FoldFits(task, threads, keeps, partial(_after, wanted)).run(*pair) for pair in folds.pairs]
        if folds.drawn:  # as Spark does: without a cache, another plan may draw other random numbers for the rows
            folds.rows.cache()
        try:
            found = linear_last_stages.across(task, folds.rows, folds.held_out, folds.count, folds.kept)
        finally:
            if folds.drawn:
                folds.rows.unpersist()
        return [_outcome(task, threads, keeps, _of_fold(found, i), folds, i) for i in range(folds.count)]


def _by_spark(task: GridTask, folds: Folds, parallelism: int, keeps: bool) -> list[FoldMetrics]:
    """Make all fits with Spark; several folds run in parallel if there are threads for all fits of each."""
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
    with ThreadPoolExecutor(folds_at_once) as pool:  # waits for the running folds, even if a fold has failed
        inherit = for_threads(folds.rows)
        running = [pool.submit(inherit(partial(of_fold, pair))) for pair in pairs]
        try:
            return [fold.result() for fold in running]
        finally:
            over.set()


def why_not_at_once(task: GridTask) -> str:
    """The reason why no setting can be solved at once; empty if at least one can."""
    kind = type(task.stages[-1]).__name__
    if type(task.stages[-1]) not in linear_last_stages.KINDS:
        return f"{kind} is fitted by Spark"
    reasons = [asked.why for asked in linear_last_stages.settings_by_fit(task).values()]
    if all(reasons):
        return reasons[0]
    try:
        jvm.scratch_folder()
    except InputError as e:
        return f"{kind} is fitted by Spark: {e}"
    return ""


def _of_fold(found: linear_last_stages.Results, fold: int) -> dict[Fit, linear_last_stages.Result]:
    return {fit: result for (fit, number), result in found.items() if number == fold}


def _outcome(
    task: GridTask,
    threads: ThreadPool,
    keeps: bool,
    found: Mapping[Fit, linear_last_stages.Result],
    folds: Folds,
    fold: int,
) -> FoldMetrics:
    if keeps or any(math.isnan(result.metric) for result in found.values()):
        return FoldFits(task, threads, keeps, partial(_ends, found)).run(*folds.pairs[fold])
    out = FoldMetrics([0.0] * len(task.maps), [])
    for fit, result in found.items():
        for setting in fit.settings:
            out.metrics[setting] = result.metric
    return out


def _after(
    wanted: Mapping[Fit, linear_last_stages.SolverSetting], fold: FoldFits, branch: Branch
) -> Iterator[tuple[Fit, float, Any]]:
    """Each last fit after `branch`, its metric and its fitted last stage; the earlier stages of the fold are fitted."""
    return _ends(_of_fold(linear_last_stages.within(fold.task, wanted, branch), 0), fold, branch)


def _ends(
    found: Mapping[Fit, linear_last_stages.Result], fold: FoldFits, branch: Branch
) -> Iterator[tuple[Fit, float, Any]]:
    """Each last fit after `branch`, its metric, and its fitted last stage (None if that isn't needed).

    Spark fits the settings without a solution and computes the metrics that are NaN.
    """
    task, stage, steps = fold.task, fold.task.stages[-1], []
    unsolved = [fit for fit in branch.fit.after if found[fit].solution is None]
    fitted = dict(shared_fits.models(stage, unsolved, branch.train))

    def step(fit: Fit, result: linear_last_stages.Result) -> tuple[Fit, float, Any]:
        model = fitted[fit]() if result.solution is None else linear_last_stages.model_of(stage, fit, result.solution)
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


TIE = 1e-12
"""Relative difference to the best metric below which metrics count as equal: Spark's sums vary as much between runs."""


@dataclass(frozen=True, repr=False)
class Explanation(DisplayableFields):
    """The plan of a search; `str` and `print` show it as text.

    Attributes:
        settings, folds: number of maps in the grid, and number of sets of rows on which each map is judged.
        sparkFits: number of fits that Spark's own class would make, without its final fit of the winner to all rows.
        fits: number of fits that Spark makes here, without that final fit and without those solved at once.
        solvedAtOnce: number of fits solved at once.
        stages: for each leaf stage its class, its uid, and per fold Spark's fits, our fits, and those solved at once.
        reasons: how settings are solved, and why something is left to Spark.
    """

    settings: int
    folds: int
    sparkFits: int
    fits: int
    solvedAtOnce: int
    stages: tuple[dict[str, Any], ...]
    reasons: tuple[str, ...]

    def _headline(self) -> str:
        on = "one split" if self.folds == 1 else f"{self.folds} folds"
        at_once = f", {self.solvedAtOnce:,} more are solved at once" if self.solvedAtOnce else ""
        return f"{self.settings} settings x {on}: Spark makes {self.sparkFits:,} fits, here they are {self.fits:,}{at_once}"

    def _sections(self) -> Iterator[Section]:
        yield StrongLine(self._headline())
        for s in self.stages:
            if s["sparkFits"]:
                solved = f" and {s['solvedAtOnce']} solved at once" if s["solvedAtOnce"] else ""
                yield f"  {s['stage']}: {s['sparkFits']} fits in a fold, here {s['fits']}{solved}"
        yield from (f"  {r}" for r in self.reasons)


def explanation(task: GridTask, folds: int, own: bool = True) -> Explanation:
    """The plan of a search of this task on `folds` folds; `own` is False if pyspark's class does the whole search."""
    if not own:
        fits = task.sparks_fits * folds
        return Explanation(
            len(task.maps), folds, fits, fits, 0, (), ("Spark Connect: pyspark's own class makes all fits",)
        )
    why, last = why_not_at_once(task), len(task.stages) - 1
    asked = {} if why else linear_last_stages.settings_by_fit(task)
    reasons = [*dict.fromkeys(one.why for one in asked.values() if one.why)] if asked else [why]
    at_once = {fit for fit, one in asked.items() if not one.why}
    counts, shared = _fits(task, at_once)
    solved = len(at_once)
    stages = tuple(
        {
            "stage": type(stage).__name__,
            "uid": stage.uid,
            "sparkFits": len(task.maps) if task.estimates(i) else 0,
            "fits": counts[i],
            "solvedAtOnce": solved if i == last else 0,
        }
        for i, stage in enumerate(task.stages)
    )
    told = []
    if solved:
        where = "of all folds" if linear_last_stages.one_for_all(task) else "of a fold"
        told.append(
            f"all settings {where} are solved at once, if no rows are invalid and no class is missing in a fold"
        )
        told.append(
            f"{type(task.evaluator).__name__} is computed here where that is exact, else by Spark"
            if judge_of(task.evaluator) is not None
            else f"{type(task.evaluator).__name__} is computed by Spark"
        )
        told += linear_last_stages.notes(task)
    fits = sum(s["fits"] for s in stages)
    return Explanation(
        len(task.maps),
        folds,
        task.sparks_fits * folds,
        fits * folds,
        solved * folds,
        stages,
        (*told, *shared, *reasons),
    )


def _fits(task: GridTask, at_once: set[Fit]) -> tuple[Counter[int], list[str]]:
    """The number of fits in a fold by stage position, without those solved at once; and remarks for `explain` about
    fits that several settings share.
    """
    counts: Counter[int] = Counter()
    shared: list[str] = []
    for place in task.ways_to_fits():
        stage = task.stages[place.after[0].position]
        fits = [fit for fit in place.after if fit not in at_once]
        counts[place.after[0].position] += len(shared_fits.groups(stage, fits))
        shared += shared_fits.remarks(stage, fits)
    return counts, [*dict.fromkeys(shared)]


class _Search(Params):
    """Base of `CrossValidator` and `TrainValidationSplit`. They are subclasses of pyspark's classes, are saved as
    objects of pyspark's classes, and return pyspark's models.
    """

    PLAIN: ClassVar[Any]
    """pyspark's class of the same name."""

    def _folds(self, dataset: DataFrame) -> Folds:
        raise NotImplementedError

    def _numbers(self) -> None:
        """Raise InputError if the number of folds or the share of training rows is out of range."""
        raise NotImplementedError

    def explain(self, dataset: DataFrame) -> Explanation:
        """The plan: number of fits that Spark's own class would make, number made here, what is solved at once, and why
        something is left to Spark. Runs no job.

        Raises:
            InputError: as for `fit`.
        """
        own = jvm.in_process(dataset.sparkSession)
        folds = int(self.getOrDefault("numFolds")) if self.hasParam("numFolds") else 1
        return explanation(self._task(dataset), folds, own)

    def _task(self, dataset: DataFrame) -> GridTask:
        """The task of the search, checked before anything runs.

        Raises:
            InputError: a Param is missing or its value is invalid. The message names the Param.
        """
        name = type(self).__name__
        check_rows("dataset", dataset)
        for param in ("estimator", "estimatorParamMaps", "evaluator"):
            if not self.isDefined(param) or self.getOrDefault(param) is None:
                raise InputError(f"{name} has no {param}: set it with {name}({param}=...)")
        self._numbers()
        get = self.getOrDefault
        if not all(hasattr(get("evaluator"), member) for member in ("evaluate", "isLargerBetter")):
            raise InputError(
                f"evaluator must be an Evaluator of pyspark.ml.evaluation or of your own, got {kind_of(get('evaluator'))}"
            )
        task = GridTask.of(get("estimator"), get("estimatorParamMaps"), get("evaluator"))
        if jvm.in_process(dataset.sparkSession):
            check_values(task)
            check_evaluator(task.evaluator, [task.estimator, *task.maps], dataset.columns)
        return task

    def _outcomes(self, dataset: DataFrame) -> tuple[GridTask, list[FoldMetrics]]:
        """The metrics of all settings, fold by fold."""
        task, get = self._task(dataset), self.getOrDefault
        split = self._folds(dataset)
        try:
            return task, outcomes(task, split, get("parallelism"), get("collectSubModels"))
        except jvm.SparkError as e:
            folds.check_classes(split, task.stages, e)
            raise

    def write(self) -> MLWriter:
        """Writer that saves this object as one of pyspark's class."""
        return jvm.with_uid(self.PLAIN(), self).write()

    @classmethod
    def read(cls) -> Any:
        return _Reader(cls)


class CrossValidator(_Search, tuning.CrossValidator):
    """pyspark.ml.tuning.CrossValidator: the same Params, folds and metrics, and the same winner, with fewer fits.

    Parts that several settings have in common are fitted once per fold. `fit` returns pyspark's CrossValidatorModel,
    whose bestModel is fitted by Spark; it is saved and loaded without sparkdiff. `explain(df)` shows the plan of a fit.

    Examples:
        >>> import sparkdiff
        >>> from pyspark.ml.evaluation import BinaryClassificationEvaluator
        >>> from pyspark.ml.tuning import ParamGridBuilder
        >>> pca, head = pipeline.getStages()[2:]
        >>> grid = ParamGridBuilder().addGrid(pca.k, [2, 3]).addGrid(head.regParam, [0.01, 0.1]).build()
        >>> judge = BinaryClassificationEvaluator()
        >>> search = sparkdiff.CrossValidator(estimator=pipeline, estimatorParamMaps=grid, evaluator=judge)
        >>> search.fit(df).bestModel.stages[2].getK()  # search.explain(df) shows which fits are shared
        3
    """

    __module__ = "sparkdiff"

    PLAIN = tuning.CrossValidator

    @jvm.interruptible()
    @pause_autologging()
    def _fit(self, dataset: DataFrame) -> Any:
        if not jvm.in_process(dataset.sparkSession):
            return super()._fit(dataset)
        task, found = self._outcomes(dataset)
        average, spread = tuning.CrossValidator._gen_avg_and_std_metrics([fold.metrics for fold in found])
        best = task.estimator.fit(dataset, task.maps[best_of(average, task.evaluator.isLargerBetter())])
        models = [fold.models for fold in found] if self.getCollectSubModels() else None
        return self._copyValues(tuning.CrossValidatorModel(best, average, models, spread))  # type: ignore[arg-type]

    def _folds(self, dataset: DataFrame) -> Folds:
        count, column = self.getNumFolds(), self.getFoldCol()
        if column:
            return folds.folds_from_column(dataset, column, count)
        return folds.random_folds(dataset, f"{self.uid}_rand", self.getSeed(), count, self._kFold)

    def _task(self, dataset: DataFrame) -> GridTask:
        task = super()._task(dataset)
        if self.getFoldCol():
            folds.check_column(dataset, self.getFoldCol())
        return task

    def _numbers(self) -> None:
        if self.getNumFolds() < 2:
            raise InputError(f"numFolds must be at least 2, but is {self.getNumFolds()}")


class TrainValidationSplit(_Search, tuning.TrainValidationSplit):
    """pyspark.ml.tuning.TrainValidationSplit: the same Params, rows and metrics, and the same winner, with fewer fits.

    It works as `CrossValidator` does; `fit` returns pyspark's TrainValidationSplitModel.

    Examples:
        >>> import sparkdiff
        >>> from pyspark.ml.evaluation import BinaryClassificationEvaluator
        >>> from pyspark.ml.tuning import ParamGridBuilder
        >>> pca = pipeline.getStages()[2]
        >>> grid = ParamGridBuilder().addGrid(pca.k, [2, 3]).build()
        >>> judge = BinaryClassificationEvaluator()
        >>> search = sparkdiff.TrainValidationSplit(estimator=pipeline, estimatorParamMaps=grid, evaluator=judge)
        >>> search.fit(df).bestModel.stages[2].getK()
        3
    """

    __module__ = "sparkdiff"

    PLAIN = tuning.TrainValidationSplit

    @jvm.interruptible()
    @pause_autologging()
    def _fit(self, dataset: DataFrame) -> Any:
        if not jvm.in_process(dataset.sparkSession):
            return super()._fit(dataset)
        task, [found] = self._outcomes(dataset)
        best = task.estimator.fit(dataset, task.maps[best_of(found.metrics, task.evaluator.isLargerBetter())])
        models = found.models if self.getCollectSubModels() else None
        return self._copyValues(tuning.TrainValidationSplitModel(best, found.metrics, models))

    def _folds(self, dataset: DataFrame) -> Folds:
        return folds.split_once(dataset, f"{self.uid}_rand", self.getSeed(), self.getTrainRatio())

    def _numbers(self) -> None:
        if not 0 < self.getTrainRatio() < 1:
            raise InputError(f"trainRatio must lie between 0 and 1, but is {self.getTrainRatio()!r}")


class _Reader(jvm.Reader):
    """Reader that loads an object saved by pyspark's class and returns it as an object of sparkdiff's class."""

    def load(self, path: str) -> Any:
        return jvm.with_uid(self.cls(), self.cls.PLAIN.load(path))


def best_of(metrics: Sequence[float], larger: bool) -> int:
    """Index of the setting that wins, the first one among equal metrics.

    A setting whose metric is NaN can't win; numpy's argmax, which Spark uses, would choose it.
    """
    undefined = [i for i, metric in enumerate(metrics) if math.isnan(metric)]
    if undefined:
        warn(
            f"the metric is NaN for {len(undefined)} of {len(metrics)} maps of the grid (the first is number {undefined[0]}); "
            + ("map 0 is fitted" if len(undefined) == len(metrics) else "they cannot win"),
        )
    if len(undefined) == len(metrics):
        return 0
    best = np.nanmax(metrics) if larger else np.nanmin(metrics)
    return int(np.argmax(np.isclose(metrics, best, rtol=TIE, atol=0)))
