"""Linear last stages: the rows that reach one are written once, and all settings and folds are solved and judged at once."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyspark.ml import Model, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import SQLTransformer
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import NumericType, StructType
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.schema import width_in
from sparkdiff.stages import linear as heads
from sparkdiff.stages.base import columns_of
from sparkdiff.tensors.device import threads_for
from sparkdiff.tensors.rows import product, rows_at
from sparkdiff.tuning import cached_rows, solvers, trie
from sparkdiff.tuning.cached_rows import CachedRows, InputColumns, Parts, RowsStore
from sparkdiff.tuning.evaluator_metrics import Judge, judge_of
from sparkdiff.tuning.fits import Branch, GridTask, is_sparks
from sparkdiff.tuning.solvers import RowFacts, Setting, Solution

KINDS = (LinearRegression, LogisticRegression, GeneralizedLinearRegression)
EXACT = 1e-8
"""Largest `tol` at which the metrics of Spark's solution agree with those of the optimum to 1e-5."""
SCORES = 2**27
"""Bytes of scores that are in memory at the same time."""
OUTPUTS = ("rawPredictionCol", "probabilityCol", "predictionCol", "linkPredictionCol")


class WithParams:
    """A read-only view of an estimator with other values for some Params; it avoids a copy, which is slow in Java."""

    def __init__(self, stage: Any, params: Mapping[Any, Any]):
        self.stage, self.uid = stage, stage.uid
        self.values = {param.name: param.typeConverter(value) for param, value in params.items()}

    def hasParam(self, name: str) -> bool:
        return bool(self.stage.hasParam(name))

    def isSet(self, name: str) -> bool:
        return name in self.values or self.stage.isSet(name)

    def isDefined(self, name: str) -> bool:
        return name in self.values or (self.stage.hasParam(name) and self.stage.isDefined(name))

    def getOrDefault(self, name: str) -> Any:
        return self.values[name] if name in self.values else self.stage.getOrDefault(name)


@dataclass(frozen=True)
class SolverSetting:
    """One setting of the last stage, in the form that the solvers read.

    Attributes:
        estimator: the last stage with the setting's Params.
        why: the reason why Spark has to fit the setting, as far as known before any job; empty if it is solved here.
    """

    estimator: WithParams
    setting: Setting
    reads: InputColumns
    why: str


@dataclass(frozen=True)
class Result:
    """The solution and metric of a setting in a fold. Spark has to fit if the solution is None, and to compute the
    metric if it is NaN.
    """

    solution: Solution | None
    metric: float


Results = dict[tuple[trie.Fit, int], Result]
"""Results by last fit and fold."""
Solutions = Mapping[tuple[trie.Fit, int], Solution]
"""Solutions by last fit and fold."""


def one_for_all(task: GridTask) -> bool:
    """True if all folds have the same rows at the last stage, because every earlier stage transforms row by row."""
    return all(map(_by_row, task.stages[:-1]))


def _by_row(stage: Any) -> bool:
    if isinstance(stage, PipelineModel):
        return all(map(_by_row, stage.stages))
    return isinstance(stage, Transformer) and is_sparks(stage) and not isinstance(stage, SQLTransformer)


def settings_by_fit(task: GridTask) -> dict[trie.Fit, SolverSetting]:
    """The setting of each last fit of the trie, in the form that the solvers read."""
    return {fit: solver_setting(task.stages[-1], fit.params) for fit in task.root.leaves()}


def notes(task: GridTask) -> list[str]:
    """Remarks for `explain` about the settings that sparkdiff's solvers solve in place of Spark."""
    kind = type(task.stages[-1]).__name__
    solved = [a for a in settings_by_fit(task).values() if not a.why]
    tol = max((a.estimator.getOrDefault("tol") for a in solved), default=0.0)
    found = []
    if tol > EXACT:
        found.append(f"solutions are the optimum; at tol={tol:g} Spark stops a little before it where it iterates")
    if kind == "GeneralizedLinearRegression":
        found.append(f"features of more than {solvers.WIDEST[kind]:,} columns are left to Spark")
    return found


def solver_setting(stage: Any, params: Mapping[Any, Any]) -> SolverSetting:
    """The setting of a linear estimator with these Params, in the form that the solvers read."""
    estimator = WithParams(stage, params)

    def get(name: str, otherwise: Any = "") -> Any:
        return estimator.getOrDefault(name) if estimator.hasParam(name) and estimator.isDefined(name) else otherwise

    given = {
        name: get(name)
        for name in ("regParam", "elasticNetParam", "fitIntercept", "standardization", "solver", "loss", "family")
        if get(name, None) is not None
    }
    for name in ("family", "link"):
        if get(name):
            given[name] = get(name).lower()
    if not given.get("regParam"):
        given["elasticNetParam"] = 0.0  # without a penalty it has no effect: such settings share one solution
    bounds = (f"{side}BoundsOn{what}" for side in ("lower", "upper") for what in ("Coefficients", "Intercepts"))
    setting = Setting(**given, bounded=any(get(bound, None) is not None for bound in bounds))
    reads = InputColumns(get("featuresCol"), get("labelCol"), get("weightCol"), get("offsetCol"))
    return SolverSetting(estimator, setting, reads, _why(estimator, setting))


def _why(estimator: WithParams, setting: Setting) -> str:
    """The reason why Spark has to fit a setting, as far as known before any job; empty if there is none."""
    stage, kind = estimator.stage, type(estimator.stage).__name__
    for name, larger in (("maxIter", False), ("tol", True)):
        value, usual = estimator.getOrDefault(name), stage._defaultParamMap[stage.getParam(name)]
        if value > usual if larger else value < usual:
            return f"{name}={value:g} stops {kind} early, so it is fitted by Spark"
    return solvers.why_left_to_spark(kind, setting, RowFacts(1, 0))


# Solutions ------------------------------------------------------------------------------------------------------------


def solve(
    task: GridTask,
    wanted: Mapping[trie.Fit, SolverSetting],
    fits: Sequence[trie.Fit],
    parts: Parts,
    folds: int,
    kept: RowsStore | None = None,
    way: Sequence[Any] = (),
) -> Results:
    """Solve all settings of a last stage on the rows that reach it.

    Args:
        wanted: the setting of each last fit.
        fits: the last fits of the trie that read these rows.
        parts: the rows, with each row's held-out fold.
        kept: the store in which written rows are kept for later settings; None to delete them.
        way: the steps by which the rows were made, as part of the rows' key in `kept`.
    """
    kind, judge, schema = type(task.stages[-1]).__name__, judge_of(task.evaluator), parts[0][0].schema
    out: Results = {(fit, fold): Result(None, math.nan) for fit in fits for fold in range(folds)}
    groups: dict[InputColumns, list[trie.Fit]] = {}
    for fit in fits:
        if not wanted[fit].why:
            groups.setdefault(wanted[fit].reads, []).append(fit)
    for reads, group in groups.items():
        outputs = {name for fit in group for name in columns_of(wanted[fit].estimator, OUTPUTS)}
        if cached_rows.cannot_read(schema, reads, sorted(outputs)):
            continue
        if _too_wide(kind, [wanted[fit].setting for fit in group], parts[0][0], reads.features):
            continue
        own = judge if judge and _column_exists(schema, judge) else None
        with jvm.temporary(".search-", jvm.scratch_folder()) as folder:
            if kept is None:
                cache = cached_rows.write_rows(parts, reads, own, folder / "rows")
            else:
                columns = (reads, own and (own.label, own.weight))
                cache = kept.once((*way, columns), partial(cached_rows.write_rows, parts, reads, own))
            classes = cached_rows.classes_told(schema, reads.label)
            out |= _solve_group(kind, {fit: wanted[fit] for fit in group}, cache, folds, own, classes)
    return out


def _too_wide(kind: str, settings: Sequence[Setting], rows: DataFrame, features: str) -> bool:
    """True if the features are too wide for the solvers in all settings; checked before the rows are written."""
    width = width_in(rows.schema[features])
    if not width:
        first = rows.select(col_by_name(features)).head()
        width = len(first[0]) if first and first[0] is not None else 0
    return all(solvers.why_left_to_spark(kind, setting, RowFacts(width)) for setting in settings)


def _column_exists(schema: StructType, judge: Judge) -> bool:
    fields = {field.name: field.dataType for field in schema.fields}
    return all(isinstance(fields.get(c), NumericType) for c in (judge.label, judge.weight) if c)


def _solve_group(
    kind: str,
    group: Mapping[trie.Fit, SolverSetting],
    cache: CachedRows,
    folds: int,
    judge: Judge | None,
    classes: int | None,
) -> Results:
    """Results of the settings and folds that have a usable solution; the caller leaves the others to Spark."""
    settings = [*dict.fromkeys(a.setting for a in group.values())]
    seen = cached_rows.look(cache, kind, settings, folds, classes)
    if seen.problem:
        return {}
    facts = RowFacts(cache.width, seen.classes)
    settings = [
        s for s in settings if not solvers.why_left_to_spark(kind, s, facts) and _has_room(kind, s, cache, facts)
    ]
    found: dict[Setting, list[Solution]] = {}
    size = cache.stored * len(settings) * folds * max(seen.classes - 1, 1)
    if settings:
        with threads_for(size):
            found = _solutions(kind, settings, cache, folds, seen.classes)
    solved: dict[tuple[trie.Fit, int], Solution] = {}
    for fit, one in group.items():
        cuts = one.estimator.getOrDefault("thresholds") if one.estimator.isDefined("thresholds") else None
        for fold, solution in enumerate(found.get(one.setting, [])):
            if solution.converged and (cuts is None or len(cuts) == seen.classes):
                solved[fit, fold] = solution
    estimators = {fit: one.estimator for fit, one in group.items()}
    with threads_for(size):
        metrics = compute_metrics(solved, estimators, cache, folds, judge, kind) if judge else {}
    return {key: Result(solution, metrics.get(key, math.nan)) for key, solution in solved.items()}


def _solutions(
    kind: str, settings: list[Setting], cache: CachedRows, folds: int, classes: int
) -> dict[Setting, list[Solution]]:
    facts = RowFacts(cache.width, classes)
    wide = [s for s in settings if solvers.is_wide(kind, s, facts, sparse=cache.sparse)]
    rest = [s for s in settings if s not in wide]
    found: dict[Setting, list[Solution]] = {}
    if wide:
        found |= dict(zip(wide, solvers.solve_wide(cache.whole(), wide, folds, classes), strict=True))
    if rest:
        memory = cached_rows.MEMORY - (cache.size if cache.held is not None else 0)
        solved = solvers.solve(kind, cache.chunks, rest, folds, classes, memory)
        found |= dict(zip(rest, solved, strict=True))
    return found


def _has_room(kind: str, setting: Setting, cache: CachedRows, facts: RowFacts) -> bool:
    """True if the rows fit into memory, or if the setting's solver doesn't need them in memory."""
    return cache.fits or not solvers.is_wide(kind, setting, facts, sparse=cache.sparse)


def model_of(stage: Any, fit: trie.Fit, solution: Solution) -> Any:
    """Spark's model of `stage`, with the Params of `fit` and the coefficients of `solution`."""
    estimator, coefficients, intercept = (
        stage.copy(fit.params),
        solution.coefficients.numpy(),
        solution.intercept.numpy(),
    )
    if type(stage) is LogisticRegression:
        several = coefficients.ndim == 2
        weights = {
            "coefficientMatrix": coefficients if several else coefficients[None],
            "interceptVector": intercept if several else intercept.reshape(1),
            "numClasses": len(coefficients) if several else 2,
            "isMultinomial": several,
        }
        return jvm.model_with_weights(estimator, weights, {"numFeatures": coefficients.shape[-1]})
    weights = {"coefficients": coefficients, "intercept": float(intercept)}
    return jvm.model_with_weights(
        estimator, weights if type(stage) is not LinearRegression else {**weights, "scale": 1.0}
    )


# Folds ----------------------------------------------------------------------------------------------------------------

FOLD = "sparkdiff_fold"


def _way(stage: Any, params: Mapping[Any, Any]) -> tuple[Any, ...]:
    """A key for a stage's effect on rows. A uid alone isn't enough: copies and all models of an estimator share it."""
    return (stage if isinstance(stage, Model) else stage.uid, trie.key(stage.extractParamMap(params)))


def across(task: GridTask, rows: DataFrame, fold: Column, folds: int, kept: RowsStore | None = None) -> Results:
    """Solve all settings and folds of a task without fits before the last stage (see `one_for_all`). Rows are written
    once for each distinct path to the last stage.
    """
    wanted, out, name = settings_by_fit(task), {}, FOLD
    while name in map(str.lower, rows.columns):  # a column of that name in the data, which a stage may read
        name += "_"

    def follow(place: trie.Fit, rows: DataFrame, way: tuple[Any, ...]) -> None:
        if place.position == len(task.stages) - 2:
            out.update(solve(task, wanted, place.after, [(rows, F.col(name))], folds, kept, way))
            return
        for child in place.after:
            stage = task.stages[child.position]
            follow(child, stage.copy(child.params).transform(rows), (*way, _way(stage, child.params)))

    follow(task.root, rows.withColumn(name, fold), ())
    return out


def within(task: GridTask, wanted: Mapping[trie.Fit, SolverSetting], branch: Branch) -> Results:
    """Solve all settings after the fitted stages of a fold; in the results, that fold has number 0."""
    parts = [(branch.train, F.lit(-1)), (branch.validation, F.lit(0))]
    return solve(task, wanted, branch.fit.after, parts, 1)


def compute_metrics(
    solved: Solutions, estimators: Mapping[trie.Fit, WithParams], cache: CachedRows, folds: int, judge: Judge, kind: str
) -> dict[tuple[trie.Fit, int], float]:
    """The metric of each solution on its fold's held-out rows; no entry if the model lacks the column to be judged."""
    outs = {
        fit: found.coefficients.shape[0] if found.coefficients.ndim == 2 else 1 for (fit, _), found in solved.items()
    }
    columns = {fit: _columns(kind, estimators[fit], outs[fit], cache.width) for fit in outs}
    metrics: dict[tuple[trie.Fit, int], float] = {}
    pending = [fit for fit in outs if judge.column in columns[fit][0]]
    for now in _batches(pending, outs, SCORES // (8 * max(cache.count, 1))):
        models = {fold: [fit for fit in now if (fit, fold) in solved] for fold in range(folds)}
        for fold, (margin, y, w) in _margins(solved, models, cache).items():
            for fit, part in zip(models[fold], margin.split([outs[fit] for fit in models[fold]], 1), strict=True):
                names, head = columns[fit]
                of = head.columns(part[:, 0] if outs[fit] == 1 else part)
                metrics[fit, fold] = judge.value(dict(zip(names, of, strict=True))[judge.column], y, w)
    return metrics


def _batches(fits: Sequence[trie.Fit], outs: Mapping[trie.Fit, int], room: int) -> Iterator[list[trie.Fit]]:
    """Batches of at least one fit, each with at most `room` columns of scores (`outs`: columns per fit) if possible."""
    now: list[trie.Fit] = []
    used = 0
    for fit in fits:
        if now and used + outs[fit] > room:
            yield now
            now, used = [], 0
        now.append(fit)
        used += outs[fit]
    if now:
        yield now


def _margins(
    solved: Solutions, models: Mapping[int, Sequence[trie.Fit]], cache: CachedRows
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Margins (linear predictors before the link) of each fold's models on the rows that the fold holds out, with these
    rows' labels and weights; computed in one pass.
    """
    matrices, found = {}, defaultdict(list)
    for fold, fits in models.items():
        if fits:
            own = [solved[fit, fold] for fit in fits]
            matrix = torch.cat([one.coefficients.view(-1, cache.width) for one in own]).T.contiguous()
            matrices[fold] = matrix, torch.cat([one.intercept.view(-1) for one in own])
    for piece in cache.pieces():
        for fold, (matrix, shift) in matrices.items():
            mine = piece.fold == fold
            margin = product(rows_at(piece.x, mine.nonzero()[:, 0]), matrix) + shift
            margin = margin if piece.offset is None else margin + piece.offset[mine][:, None]
            found[fold].append((margin, piece.own_label[mine], piece.own_weight[mine]))
    return {fold: tuple(map(torch.cat, zip(*parts, strict=True))) for fold, parts in found.items()}  # type: ignore[misc]


def _columns(kind: str, estimator: WithParams, outs: int, features: int) -> tuple[tuple[str, ...], Any]:
    """The names of the columns that a model writes, and the module that computes them from margins."""
    get, flat = estimator.getOrDefault, torch.zeros(features, dtype=torch.float64)
    zero, intercept = torch.tensor(0.0, dtype=torch.float64), get("fitIntercept")
    if kind == "LinearRegression":
        head: Any = heads.LinearRegression(flat, zero, 1.0, intercept, None)
        return ((get("predictionCol"),), head)
    if kind == "GeneralizedLinearRegression":
        family = get("family").lower()
        link = get("link").lower() if estimator.isDefined("link") else heads.CANONICAL[family]
        shown = columns_of(estimator, heads.GeneralizedLinearRegression.SHOWN)
        head = heads.GeneralizedLinearRegression(
            flat,
            zero,
            intercept,
            family=family,
            link=link,
            link_power=math.nan,
            variance_power=math.nan,
            shows_link=bool(columns_of(estimator, ("linkPredictionCol",))),
            shows_mean=bool(columns_of(estimator, ("predictionCol",))),
        )
        return shown, head
    settings = heads.LogisticRegression.settings(estimator)
    head = heads.LogisticRegression(
        torch.zeros(outs, features, dtype=torch.float64),
        torch.zeros(outs, dtype=torch.float64),
        intercept,
        num_classes=max(outs, 2),
        thresholds=settings["thresholds"] if outs > 1 else None,
        threshold=heads.binary_threshold(estimator) if outs == 1 else 0.5,
        bounds={},
        shown=settings["shown"],
        uid=estimator.uid,
    )
    return columns_of(estimator, heads.LogisticRegression.SHOWN), head
