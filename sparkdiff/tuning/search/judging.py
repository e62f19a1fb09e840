"""The winner against the model that it would replace, on rows that no fit and no trial has seen: row by row, by the guard."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import NumericType
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import BLOCK, TIME
from sparkdiff.errors import InputError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.paired_rows import PairedRows, decide_by_rows, pair
from sparkdiff.evaluation.recorded import changed
from sparkdiff.evaluation.units import Costs, Kind
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import BINARY, of_predictions
from sparkdiff.pipeline.columns import read_plain, write_plain
from sparkdiff.pipeline.names import named
from sparkdiff.pipeline.translation import linked
from sparkdiff.stages.base import columns_of
from sparkdiff.tensors.rows import dense
from sparkdiff.tuning.mean_loss import MeanLoss
from sparkdiff.tuning.scores import CLASSIFIERS, Judge, judge_of
from sparkdiff.tuning.search.splitting import Divided, SearchSplit

MetricOf = Callable[[int], Metric]
"""Number of classes -> the metric of what the evaluator reads, (n,) or (n, k)."""
UNDEFINED = "the metric is undefined on the rows that decide"
PIECE = 65536
"""Rows that are read at a time."""
TRAINING_ROWS = 200_000
"""Rows that fitted the models, up to which they are predicted, too."""
NAMED = 3
"""Stages that a reason names."""
DATA = "__sd_data"
"""The columns of the data, together."""


@dataclass(frozen=True)
class Comparison:
    """Two models on fresh rows.

    Attributes:
        winner, default: their metrics.
        verdict: of the test; None if there is none, and then `untested` says why.
        refused: whether the winner can't ship, whatever its metric.
    """

    winner: float
    default: float
    verdict: guard.Verdict | None
    untested: str = ""
    refused: bool = False

    def ships(self, level: float, *, larger: bool) -> bool:
        """Whether the winner replaces the other model. Without a test it never does, unless any gain is accepted."""
        if self.refused or self.verdict is not None:
            return self.verdict is not None and self.verdict.accepted
        # A metric that is NaN never wins, as among the trials.
        better = self.winner > self.default if larger else self.winner < self.default
        return level >= 1 and not math.isnan(self.winner) and (math.isnan(self.default) or better)


def metric_of(evaluator: Any) -> MetricOf | None:
    """The metric of an evaluator; None if it gives no value per row."""
    if isinstance(evaluator, MeanLoss):
        return lambda classes: Metric(evaluator.getOrDefault("metricName"), rows=lambda s, y, w: evaluator.rows(s, y))
    if type(evaluator) is BinaryClassificationEvaluator:
        name = str(evaluator.getMetricName())
        area = Metric(
            name, larger=True, column=lambda s: s[:, 1] if s.ndim == 2 else s, value=BINARY[name], ranks=True
        )  # fmt: skip
        return lambda classes: area
    if type(evaluator) is RegressionEvaluator:
        origin = {"throughOrigin": evaluator.getThroughOrigin()}
        return lambda classes: of_predictions(evaluator.getMetricName(), origin)
    if type(evaluator) is MulticlassClassificationEvaluator:
        name, eps = str(evaluator.getMetricName()), evaluator.getEps()
        if name == "logLoss":
            return lambda classes: Metric(name, rows=lambda s, y, w: _log_loss(s, y, eps))
        beta = 1.0 if name == "f1" else evaluator.getBeta()  # which Spark's f1 does not read
        given, last = {"beta": beta, "metricLabel": evaluator.getMetricLabel()}, int(evaluator.getMetricLabel())
        return lambda classes: of_predictions(name, given, max(classes, last + 1))
    return None


def _judge(evaluator: Any) -> Judge:
    """How an evaluator is computed here; of another one only its label and its weight, where it has Params that name them."""
    named_by = (
        columns_of if hasattr(evaluator, "uid") else lambda stage, params: ()
    )  # what of one's own may have no Params
    label, weight = (next(iter(named_by(evaluator, (name,))), "") for name in ("labelCol", "weightCol"))
    return judge_of(evaluator) or Judge(label, weight, "", lambda found, y, w: math.nan)


def by_number(evaluator: Any, dimensions: int = 2) -> bool:
    """Whether the metric is another one where the classes have other numbers, or may be so.

    Args:
        dimensions: those of what the evaluator reads: (n,) of a curve is the score of class 1.
    """
    if type(evaluator) is BinaryClassificationEvaluator:
        return evaluator.getMetricName() == "areaUnderPR" or dimensions == 1
    return type(evaluator) is not MulticlassClassificationEvaluator or evaluator.getMetricName().endswith("ByLabel")


def _renamed(one: Tensor, other: Tensor) -> bool:
    """Whether two columns of classes (n,) differ in the numbers of the classes only."""
    pairs = torch.stack([one, other], 1).unique(dim=0)
    return len(pairs) == len(pairs[:, 0].unique()) == len(pairs[:, 1].unique())


def _check_same(
    pair: Sequence[Tensor], what: str, column: str, models: Sequence[Any], data: DataFrame, remedy: str = ""
) -> None:
    """Raise InputError if the winner has another label or weight than the other model; names the stages that make it.

    Args:
        pair: of the winner, of the other model.
        models: the two.
        data: without columns of its own.
    """
    told = changed(pair[0], pair[1], what, "the pipeline that the winner is compared with")
    if not told:
        return
    graphs = [linked(model) for model in models]
    makers = [g.makers([column], data.columns) or [v for v in g.vertices if v.opaque] for g in graphs]
    uids = dict.fromkeys(v.uid for found in makers for v in found)
    raise InputError(
        f"{', '.join([*uids][:NAMED])}: {told} ({what}Col={column!r}), and models of different {what}s can't be compared. Leave "
        f"what makes the {what} out of the space, or make it as `current` does{remedy}"
    )


def _log_loss(probability: Tensor, y: Tensor, eps: float) -> Tensor:
    if probability.ndim != 2 or not 0 <= y.min() <= y.max() < probability.shape[1]:
        return torch.full_like(y, torch.nan)
    return -probability.gather(1, y.long()[:, None])[:, 0].clamp(eps, 1 - eps).log()


@dataclass(frozen=True)
class Scored:
    """What two models write on the same rows; each has labels of its own, as a pipeline may index them."""

    winner: tuple[Tensor, Tensor]  # what the evaluator reads, label
    default: tuple[Tensor, Tensor]
    weight: Tensor
    block: Tensor
    unit: Tensor
    time: Tensor

    def taken(self, rows: Tensor) -> "Scored":
        """Some of these rows (n,), without those of no weight."""
        rows = rows & (self.weight > 0)
        (one, own), (other, its) = self.winner, self.default
        return Scored(
            (one[rows], own[rows]), (other[rows], its[rows]), self.weight[rows], self.block[rows], self.unit[rows],
            self.time[rows],
        )  # fmt: skip

    def pair(self, of: MetricOf, split: SearchSplit) -> PairedRows:
        """The rows as both models see them, the default first; they alone are the rows of the metric."""
        (one, own), (other, its) = self.default, self.winner
        metric = of(1 + int(max(x.max() for x in (one, other, own, its))))
        columns = [x if metric.column is None else metric.column(x) for x in (one, other)]
        kind = kind_of(split)
        unit = None if kind == "rows" else self.unit
        time = self.time if kind == "blocks" else None
        return pair(metric, columns, (own, its), self.weight, self.block, unit, kind, time)


def kind_of(split: SearchSplit) -> Kind:
    """What decides."""
    return "groups" if split.groupCol else "blocks" if split.timeCol else "rows"


def compare(
    winner: Any, default: Any, rows: Divided, split: SearchSplit, evaluator: Any, *, level: float, seed: int
) -> Comparison:
    """Both models on the fresh rows, and whether the winner is better than chance explains.

    Where it is, both predict the rows that fitted them, too, which show how losses are spread.

    Raises:
        InputError: the models have other labels or weights.
    """
    fresh = rows.fresh()
    judge, metric, total = _judge(evaluator), metric_of(evaluator), fresh.count()
    found, why = scored(winner, default, fresh, total, split, evaluator)
    values = [math.nan, math.nan]
    if found is not None and not why:
        values = [judge.value(part, label, found.weight) for part, label in (found.winner, found.default)]
    one, other = (
        evaluator.evaluate(model.transform(_data(fresh))) if math.isnan(value) else value
        for value, model in zip(values, (winner, default), strict=True)
    )
    if less := left_out(None if found is None else len(found.weight), total, winner, default, fresh):
        return Comparison(one, other, None, less, refused=True)
    if metric is None:
        return Comparison(one, other, None, f"{type(evaluator).__name__} gives no value per row")
    if found is None or why:
        return Comparison(one, other, None, why)
    held = found.taken(found.weight > 0).pair(metric, split)
    verdict, why = verdict_of([held], level=level, seed=seed)
    if verdict is not None and verdict.accepted and level < 1:
        trained = rows.trained(TRAINING_ROWS / max(total, 1))
        seen, _ = scored(winner, default, trained, trained.count(), split, evaluator)
        if seen is not None:
            training = seen.taken(seen.weight > 0).pair(metric, split).costs()
            verdict, why = verdict_of([held], level=level, seed=seed, training=training)
    return Comparison(one, other, verdict, why)


def left_out(both: int | None, total: int, winner: Any, default: Any, fresh: DataFrame) -> str:
    """Why a winner can't ship that has no prediction where the other model has one; empty if it has all.

    Args:
        both: number of rows that both models predict; None if that isn't known, and then their numbers of rows tell.
        total: number of the rows.
    """
    if both == total:
        return ""
    kept = default.transform(_data(fresh)).count()
    if both is None:
        both = winner.transform(_data(fresh)).count()
    if both >= kept:
        return ""
    return f"the winner leaves out {kept - both:,} of {kept:,} rows that the other model predicts"


def _with_data(fresh: DataFrame, *more: Column) -> tuple[DataFrame, list[Column]]:
    """The fresh rows, with all columns of the data in DATA and with more columns; and the columns of the data as they were.

    A stage may write over a column that it reads: each model gets the columns as they were.
    """
    columns = _data(fresh).columns
    data, base = F.struct(*map(named, columns)).alias(DATA), [F.col(DATA).getField(c).alias(c) for c in columns]
    return fresh.select(*map(named, columns), data, *more), base


def _data(fresh: DataFrame) -> DataFrame:
    return fresh.drop(BLOCK, TIME)


def scored(
    winner: Any, default: Any, fresh: DataFrame, total: int, split: SearchSplit, evaluator: Any
) -> tuple[Scored | None, str]:
    """Both models' columns on the same rows, `total` in number, written by one job; and why they can't be tested.

    Raises:
        InputError: the models have other labels or weights.
    """
    judge = _judge(evaluator)
    block = F.pmod(F.col(BLOCK), F.lit(MAX_BLOCKS)) if split.groupCol else F.col(BLOCK)
    kept = {
        "__sd_block": block.cast("double"), "__sd_unit": F.col(BLOCK).cast("double"), "__sd_time": F.col(TIME).cast("double"),
    }  # fmt: skip
    rows, base = _with_data(fresh, *(c.alias(name) for name, c in kept.items()))
    names = [*kept]
    for model, part in ((default, "default"), (winner, "winner")):
        out = model.transform(rows)
        missing = [c for c in (*names, DATA, judge.label, judge.column, judge.weight) if c and c not in out.columns]
        if missing:
            what = "a column of its own" if missing[0].startswith("__sd_") else f"the column {missing[0]!r}"
            return None, f"the pipeline of the {part} drops or lacks {what}"
        label = named(judge.label) if judge.label else F.lit(0.0)
        if not judge.column and judge.label and not isinstance(out.schema[judge.label].dataType, NumericType):
            label = F.xxhash64(label)  # it is only compared
        new = {
            f"__sd_{part}": named(judge.column) if judge.column else F.lit(0.0),
            f"__sd_{part}_label": label.cast("double"),
            f"__sd_{part}_weight": named(judge.weight).cast("double") if judge.weight else F.lit(1.0),
        }
        rows = out.select(*base, DATA, *names, *(c.alias(name) for name, c in new.items()))
        names += [*new]
    with TemporaryDirectory(prefix=".fresh-", dir=jvm.scratch_folder()) as folder:
        path = Path(folder) / "rows"
        write_plain(rows.select(*names), names, path)
        parts = [*read_plain(path, PIECE)]
    if not parts:
        return None, "the pipelines leave no fresh row"
    if sum(len(part["v0"]) for part in parts) > total:
        return None, "the pipelines make several rows of one, of which nothing tells the pairs"
    read = {name: torch.cat([dense(part[f"v{i}"]) for part in parts]) for i, name in enumerate(names)}
    labels, weights = ([read[f"__sd_{part}_{what}"] for part in ("winner", "default")] for what in ("label", "weight"))
    numbers, remedy = by_number(evaluator, read["__sd_winner"].ndim), ""
    if numbers and type(evaluator) in CLASSIFIERS:
        remedy = (
            "; or let a StringIndexer with stringOrderType='alphabetAsc' number the classes, which the metric goes by"
        )
    if numbers or not _renamed(*labels):
        _check_same(labels, "label", judge.label, (winner, default), _data(fresh), remedy)
    _check_same(weights, "weight", judge.weight, (winner, default), _data(fresh))
    found = Scored(
        (read["__sd_winner"], labels[0]), (read["__sd_default"], labels[1]), weights[0],
        read["__sd_block"].long(), read["__sd_unit"], read["__sd_time"],
    )  # fmt: skip
    finite = all(bool(t.isfinite().all()) for t in (*found.winner, *found.default, found.weight))
    return found, "" if finite else "labels, weights or predictions are null or not finite"


def verdict_of(
    parts: Sequence[PairedRows], *, level: float, seed: int, dependence: float = 1.0, training: Costs | None = None
) -> tuple[guard.Verdict | None, str]:
    """The guard on the gains of the rows; or why there is no test.

    Args:
        parts: rows with a metric of their own each, those of the folds.
        dependence, training: see `decide_by_rows`.
    """
    rows = functools.reduce(operator.add, parts)
    if not len(rows.weight) or not bool((rows.original.isfinite() & rows.other.isfinite()).all()):
        return None, UNDEFINED
    verdict = decide_by_rows(rows, level=level, training=training, dependence=dependence, seed=seed)
    return (None, verdict.untested) if verdict.untested else (verdict, "")
