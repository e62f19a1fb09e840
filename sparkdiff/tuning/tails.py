"""Linear last stages: the rows that reach one are written once, and all settings and folds are solved and judged at once."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import torch
from pyspark.ml import PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import SQLTransformer
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import NumericType, StructType
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.pipeline.columns import read_plain, write_plain
from sparkdiff.pipeline.names import named
from sparkdiff.rows import dense, width
from sparkdiff.stages import linear as heads
from sparkdiff.stages.base import columns_of
from sparkdiff.tuning import solvers
from sparkdiff.tuning.fits import Branch, Task, is_sparks
from sparkdiff.tuning.scores import Judge, judge_of
from sparkdiff.tuning.solvers import Chunk, Facts, Setting, Solution
from sparkdiff.tuning.trie import Fit

KINDS = (LinearRegression, LogisticRegression, GeneralizedLinearRegression)
OUTPUTS = ("rawPredictionCol", "probabilityCol", "predictionCol", "linkPredictionCol")
MEMORY = 2**30
"""Bytes of rows that stay in memory; more are read anew in each pass."""
PIECE = 2**25
"""Bytes of features that one piece of a pass holds."""
WIDEST = 20_000
"""Columns of dense features that are ever held."""
NEAR = 1e-4
"""Share of a column's range that every fold's training rows have to reach, for solutions with ten digits."""
SCORES = 2**28
"""Bytes of scores that are held at the same time."""


@dataclass(frozen=True)
class Reads:
    """The columns of the rows that a fit and its evaluator read; "" where there is none."""

    features: str
    label: str
    weight: str
    offset: str


class Given:
    """An estimator with other values for some Params, to be read only. A copy would take Java a while, for each setting."""

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
class Asked:
    """One setting of the last stage.

    Attributes:
        estimator: it, with the setting's Params.
        why: why Spark has to fit it, as far as is known before any job; empty if it is solved here.
    """

    estimator: Given
    setting: Setting
    reads: Reads
    why: str


@dataclass(frozen=True)
class Result:
    """What was found for a setting in a fold; a metric that is NaN has to be computed by Spark.

    Attributes:
        why: why there is no solution.
    """

    solution: Solution | None
    metric: float
    why: str = ""


Results = dict[tuple[Fit, int], Result]
"""By the last fit and the fold."""
Parts = Sequence[tuple[DataFrame, Column]]
"""Rows, and the fold that each is held out of: -1 for rows of none."""


def kind_of(task: Task) -> str | None:
    """The class of a last stage that can be solved here; None if it is another one."""
    last = task.stages[-1]
    return type(last).__name__ if type(last) in KINDS else None


def one_for_all(task: Task) -> bool:
    """Whether the rows that reach the last stage are the same for all folds: no stage before it looks at other rows."""
    return all(map(_by_row, task.stages[:-1]))


def _by_row(stage: Any) -> bool:
    if isinstance(stage, PipelineModel):
        return all(map(_by_row, stage.stages))
    return isinstance(stage, Transformer) and is_sparks(stage) and not isinstance(stage, SQLTransformer)


def asked(task: Task) -> dict[Fit, Asked]:
    """What each last fit of the trie asks of the solvers."""
    kind = kind_of(task)
    assert kind is not None
    return {fit: _asked(kind, Given(task.stages[-1], fit.params)) for fit in task.root.leaves()}


def _asked(kind: str, estimator: Given) -> Asked:
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
        given["elasticNetParam"] = 0.0  # nothing to share out: one solution, and of equal metrics the first wins
    bounds = (f"{side}BoundsOn{what}" for side in ("lower", "upper") for what in ("Coefficients", "Intercepts"))
    setting = Setting(**given, bounded=any(get(bound, None) is not None for bound in bounds))
    reads = Reads(get("featuresCol"), get("labelCol"), get("weightCol"), get("offsetCol"))
    return Asked(estimator, setting, reads, _why(kind, estimator, setting))


def _why(kind: str, estimator: Given, setting: Setting) -> str:
    """Why Spark has to fit a setting, as far as is known before any job."""
    for name, larger in (("maxIter", False), ("tol", True)):
        stage = estimator.stage
        value, usual = estimator.getOrDefault(name), stage._defaultParamMap[stage.getParam(name)]
        if value > usual if larger else value < usual:
            return f"{name}={value:g} stops {kind} early, so it is fitted by Spark"
    return solvers.unsolved(kind, setting, Facts(1, 0)) or ""


# The rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Some rows, and what the evaluator reads of them."""

    chunk: Chunk
    label: Tensor
    weight: Tensor


@dataclass
class Cache:
    """The rows that reach a last stage, in files."""

    folder: Path
    offset: bool
    held: list[Piece] | None = None

    def __post_init__(self) -> None:
        self.count = sum(pq.read_metadata(path).num_rows for path in self.folder.glob("part-*.parquet"))
        first = next(read_plain(self.folder, 1), None)
        self.width = width(first["v0"]) if first else 0
        self.rows = max(1, PIECE // (8 * max(self.width, 1)))
        if self.count * (self.width + 6) * 8 <= MEMORY:
            self.held = [*self._read()]

    def pieces(self) -> Iterator[Piece]:
        yield from self._read() if self.held is None else self.held

    def chunks(self) -> Iterator[Chunk]:
        for piece in self.pieces():
            yield piece.chunk

    def _read(self) -> Iterator[Piece]:
        for found in read_plain(self.folder, self.rows):
            x, label, weight, fold, own_label, own_weight, offset = (found[f"v{i}"] for i in range(7))
            shift = dense(offset) if self.offset else None
            chunk = Chunk(dense(x), dense(label), dense(weight), shift, dense(fold).long())
            yield Piece(chunk, dense(own_label), dense(own_weight))


def written(parts: Parts, reads: Reads, judge: Judge | None, folder: Path) -> Cache:
    """The rows, written by one job."""
    one = F.lit(1.0)

    def plain(rows: DataFrame, fold: Column) -> DataFrame:
        return rows.select(
            named(reads.features).alias("x"),
            named(reads.label).cast("double").alias("label"),
            (named(reads.weight).cast("double") if reads.weight else one).alias("weight"),
            fold.cast("double").alias("fold"),
            (named(judge.label).cast("double") if judge else one).alias("own_label"),
            (named(judge.weight).cast("double") if judge and judge.weight else one).alias("own_weight"),
            (named(reads.offset).cast("double") if reads.offset else F.lit(0.0)).alias("offset"),
        )

    rows = functools.reduce(DataFrame.union, [plain(*part) for part in parts])
    write_plain(rows, rows.columns, folder)
    return Cache(folder, bool(reads.offset))


def cannot_read(schema: StructType, reads: Reads, outputs: Sequence[str] = ()) -> str:
    """Why these columns are left to Spark; empty if they are not."""
    fields = {field.name: field.dataType for field in schema.fields}
    if taken := [name for name in outputs if name in fields]:
        return f"{taken[0]} is there already, so Spark decides what to do with it"
    if not isinstance(fields.get(reads.features), VectorUDT):
        return f"{reads.features} is no column of vectors, so Spark decides what to do with it"
    for name in (reads.label, reads.weight, reads.offset):
        if name and not isinstance(fields.get(name), NumericType):
            return f"{name} is no column of numbers, so Spark decides what to do with it"
    return ""


@dataclass(frozen=True)
class Seen:
    """What a first pass finds in the rows."""

    problem: str
    classes: int = 0


def look(cache: Cache, kind: str, settings: Sequence[Setting], folds: int, known_classes: int | None) -> Seen:
    """A pass over the rows for what Spark refuses, or treats in a way of its own."""
    if cache.width > WIDEST or not cache.count:
        return Seen(f"{cache.width} columns are more than {WIDEST}" if cache.count else "there are no rows")
    tops, lowest, whole, held = -1.0, math.inf, True, torch.zeros(folds + 1, dtype=torch.long)
    for c in cache.chunks():
        parts = [c.x, c.label, c.weight, *([c.offset] if c.offset is not None else [])]
        if not all(bool(part.isfinite().all()) for part in parts) or bool((c.weight < 0).any()):
            return Seen("rows hold nulls, numbers that aren't finite or negative weights, so Spark decides what to do")
        tops, lowest = max(tops, float(c.label.max())), min(lowest, float(c.label.min()))
        whole = whole and bool((c.label == c.label.floor()).all())
        held += torch.bincount(c.fold + 1, minlength=folds + 1)
    if bool((held[1:] == 0).any()) or bool((held.sum() - held[1:] == 0).any()):
        return Seen("a fold has no rows")
    if far := _far(cache, folds, labels=kind != "LogisticRegression"):
        return Seen(far)
    if kind == "GeneralizedLinearRegression":
        families = {setting.family for setting in settings}
        if ("poisson" in families and lowest < 0) or ("gamma" in families and lowest <= 0):
            return Seen("labels lie outside the family's range")
        return Seen(
            "labels lie outside the family's range" if "binomial" in families and not 0 <= lowest <= tops <= 1 else ""
        )
    if kind != "LogisticRegression":
        return Seen("")
    if not whole or lowest < 0 or tops > 1000:
        return Seen("labels are no classes")
    classes = max(int(tops) + 1, known_classes or 0)
    counts = torch.zeros(folds + 1, classes)
    for c in cache.chunks():
        counts.index_put_((c.fold + 1, c.label.long()), (c.weight > 0).to(counts.dtype), accumulate=True)
    if classes < 2 or bool((counts.sum(0) - counts[1:] == 0).any()):
        return Seen("a class is missing where a fold trains")
    return Seen("", classes)


def _far(cache: Cache, folds: int, *, labels: bool) -> str:
    """What makes sums over all folds useless for one of them: a number that is held out of it and far from all others.

    All folds share one centre and one scale of a column; what such a number adds to their sums hides the others' digits.
    """
    low = torch.full((folds + 1, cache.width + 1), math.inf, dtype=torch.float64)
    high = -low
    for c in cache.chunks():
        both = torch.cat([c.x, c.label[:, None] if labels else torch.zeros_like(c.label)[:, None]], 1)
        for group in (c.fold + 1).unique().tolist():
            part = both[c.fold + 1 == group]
            low[group] = torch.minimum(low[group], part.amin(0))
            high[group] = torch.maximum(high[group], part.amax(0))
    whole = high.amax(0) - low.amin(0)
    for fold in range(folds):
        others = [group for group in range(folds + 1) if group != fold + 1]
        own = high[others].amax(0) - low[others].amin(0)
        if len(far := ((own > 0) & (own < NEAR * whole)).nonzero()):
            j = int(far[0])
            what = "the label" if j == cache.width else f"entry {j} of the features"
            return f"{what} reaches {1 / NEAR:g} times as far in the rows that fold {fold} holds out as in all others"
    return ""


def classes_told(schema: StructType, label: str) -> int | None:
    """The number of classes in the label's metadata; None if they don't say."""
    field = next(field for field in schema.fields if field.name == label)
    told = (field.metadata or {}).get("ml_attr", {})
    if told.get("type") == "binary":
        return 2
    return told.get("num_vals") or (len(told["vals"]) if "vals" in told else None)


# Solutions ------------------------------------------------------------------------------------------------------------


def solve(task: Task, wanted: Mapping[Fit, Asked], fits: Sequence[Fit], parts: Parts, folds: int) -> Results:
    """All settings of a last stage on the rows that reach it; `fits` are the last ones of the trie that read these."""
    kind, judge, schema = kind_of(task), judge_of(task.evaluator), parts[0][0].schema
    assert kind is not None
    out: Results = {}
    groups: dict[Reads, list[Fit]] = {}
    for fit in fits:
        if wanted[fit].why:
            out |= left([fit], folds, wanted[fit].why)
        else:
            groups.setdefault(wanted[fit].reads, []).append(fit)
    for reads, group in groups.items():
        outputs = {name for fit in group for name in columns_of(wanted[fit].estimator, OUTPUTS)}
        if why := cannot_read(schema, reads, sorted(outputs)):
            out |= left(group, folds, why)
            continue
        own = judge if judge and _column_exists(schema, judge) else None
        with TemporaryDirectory(prefix=".search-", dir=jvm.scratch_folder()) as name:
            cache = written(parts, reads, own, Path(name) / "rows")
            classes = classes_told(schema, reads.label)
            out |= _solved(kind, {fit: wanted[fit] for fit in group}, cache, folds, own, classes)
    return out


def left(fits: Sequence[Fit], folds: int, why: str) -> Results:
    return {(fit, fold): Result(None, math.nan, why) for fit in fits for fold in range(folds)}


def _column_exists(schema: StructType, judge: Judge) -> bool:
    fields = {field.name: field.dataType for field in schema.fields}
    return all(isinstance(fields.get(c), NumericType) for c in (judge.label, judge.weight) if c)


def _solved(
    kind: str, group: Mapping[Fit, Asked], cache: Cache, folds: int, judge: Judge | None, classes: int | None
) -> Results:
    settings = [*dict.fromkeys(a.setting for a in group.values())]
    early = {setting: _unsolved(kind, setting, Facts(cache.width, 0)) for setting in settings}
    if all(early.values()):  # as where rows are too wide: no pass over them
        return {
            key: found for fit, one in group.items() for key, found in left([fit], folds, early[one.setting]).items()
        }
    seen = look(cache, kind, settings, folds, classes)
    if seen.problem:
        return left([*group], folds, seen.problem)
    facts = Facts(cache.width, seen.classes)
    why = {setting: _unsolved(kind, setting, facts) for setting in settings}
    settings = [setting for setting in settings if not why[setting]]
    found: dict[Setting, list[Solution]] = {}
    if settings:
        if kind == "LinearRegression":
            solutions = solvers.linear(cache.chunks, settings, folds)
        elif kind == "LogisticRegression":
            solutions = solvers.logistic(cache.chunks, settings, folds, seen.classes)
        else:
            solutions = solvers.generalized(cache.chunks, settings, folds)
        found = dict(zip(settings, solutions, strict=True))
    out: Results = {}
    for fold in range(folds):
        solved: dict[Fit, Solution] = {}
        for fit, one in group.items():
            cuts = one.estimator.getOrDefault("thresholds") if one.estimator.isDefined("thresholds") else None
            if why[one.setting]:
                out[fit, fold] = Result(None, math.nan, why[one.setting])
            elif cuts is not None and len(cuts) != seen.classes:
                out[fit, fold] = Result(None, math.nan, f"thresholds={cuts} don't fit {seen.classes} classes")
            elif not found[one.setting][fold].converged:
                out[fit, fold] = Result(None, math.nan, "it did not converge here")
            else:
                solved[fit] = found[one.setting][fold]
        metrics = _judged(solved, group, cache, fold, judge, kind) if judge else {}
        out |= {(fit, fold): Result(solution, metrics.get(fit, math.nan)) for fit, solution in solved.items()}
    return out


def _unsolved(kind: str, setting: Setting, facts: Facts) -> str:
    if kind == "LogisticRegression" and setting.family == "binomial" and facts.classes > 2:
        return f"family='binomial' has two classes, the rows have {facts.classes}"
    return solvers.unsolved(kind, setting, facts) or ""


def _judged(
    solved: Mapping[Fit, Solution], group: Mapping[Fit, Asked], cache: Cache, fold: int, judge: Judge, kind: str
) -> dict[Fit, float]:
    """The metrics of a fold's solutions on the rows that it holds out."""
    outs = {
        fit: (solution.coefficients.shape[0] if solution.coefficients.ndim == 2 else 1)
        for fit, solution in solved.items()
    }
    columns = {fit: _columns(kind, group[fit].estimator, outs[fit], cache.width) for fit in solved}
    pending = [fit for fit in solved if judge.column in columns[fit][0]]
    metrics: dict[Fit, float] = {}
    while pending:
        room, now = SCORES // (8 * max(cache.count, 1)), [pending.pop(0)]
        used = outs[now[0]]
        while pending and used + outs[pending[0]] <= room:
            used += outs[pending[0]]
            now.append(pending.pop(0))
        matrix = torch.cat([solved[fit].coefficients.view(outs[fit], -1) for fit in now]).T.contiguous()
        shift = torch.cat([solved[fit].intercept.view(-1) for fit in now])
        margins, labels, weights = [], [], []
        for piece in cache.pieces():
            mine = piece.chunk.fold == fold
            margin = piece.chunk.x[mine] @ matrix + shift
            margins.append(margin if piece.chunk.offset is None else margin + piece.chunk.offset[mine][:, None])
            labels.append(piece.label[mine])
            weights.append(piece.weight[mine])
        margin, y, w = torch.cat(margins), torch.cat(labels), torch.cat(weights)
        for fit, part in zip(now, margin.split([outs[fit] for fit in now], 1), strict=True):
            names, head = columns[fit]
            of = head.columns(part[:, 0] if outs[fit] == 1 else part)
            metrics[fit] = judge.value(dict(zip(names, of, strict=True))[judge.column], y, w)
    return metrics


def _columns(kind: str, estimator: Given, outs: int, features: int) -> tuple[tuple[str, ...], Any]:
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
            flat, zero, intercept, family=family, link=link, link_power=math.nan, variance_power=math.nan,
            shows_link=bool(columns_of(estimator, ("linkPredictionCol",))),
            shows_mean=bool(columns_of(estimator, ("predictionCol",))),
        )  # fmt: skip
        return shown, head
    settings = heads.LogisticRegression.settings(estimator)
    head = heads.LogisticRegression(
        torch.zeros(outs, features, dtype=torch.float64), torch.zeros(outs, dtype=torch.float64), intercept,
        num_classes=max(outs, 2), thresholds=settings["thresholds"] if outs > 1 else None,
        threshold=heads.binary_threshold(estimator) if outs == 1 else 0.5, bounds={}, shown=settings["shown"],
        uid=estimator.uid,
    )  # fmt: skip
    return columns_of(estimator, heads.LogisticRegression.SHOWN), head


def model_of(stage: Any, fit: Fit, solution: Solution) -> Any:
    """Spark's model with these coefficients."""
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
        return jvm.fitted(estimator, weights, {"numFeatures": coefficients.shape[-1]})
    weights = {"coefficients": coefficients, "intercept": float(intercept)}
    return jvm.fitted(estimator, weights if type(stage) is not LinearRegression else {**weights, "scale": 1.0})


# Folds ----------------------------------------------------------------------------------------------------------------

FOLD = "sparkdiff_fold"


def across(task: Task, rows: DataFrame, fold: Column, folds: int) -> Results:
    """All settings and folds, where no stage before the last one is fitted: each distinct way to it is written once."""
    wanted, out = asked(task), {}

    def follow(place: Fit, rows: DataFrame) -> None:
        if place.position == len(task.stages) - 2:
            out.update(solve(task, wanted, place.after, [(rows, F.col(FOLD))], folds))
            return
        for child in place.after:
            follow(child, task.stages[child.position].copy(child.params).transform(rows))

    follow(task.root, rows.withColumn(FOLD, fold))
    return out


def within(task: Task, wanted: Mapping[Fit, Asked], branch: Branch) -> Results:
    """All settings after the fitted stages of a fold, which is then number 0."""
    parts = [(branch.train, F.lit(-1)), (branch.validation, F.lit(0))]
    return solve(task, wanted, branch.fit.after, parts, 1)
