"""The winner against the model that it would replace, on rows that no fit and no trial has seen: row by row, by the guard."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.sql import Column, DataFrame, functions as F
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import BLOCK, TIME
from sparkdiff.evaluation import guard
from sparkdiff.objectives.metric import Metric, influence
from sparkdiff.objectives.metrics import BINARY, of_predictions
from sparkdiff.pipeline.columns import read_plain, write_plain
from sparkdiff.pipeline.names import named
from sparkdiff.tensors.rows import dense
from sparkdiff.tuning.mean_loss import MeanLoss
from sparkdiff.tuning.scores import judge_of
from sparkdiff.tuning.search.splitting import SearchSplit

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(what the evaluator reads (n,) or (n, k), label (n,), weight (n,)) -> what each row adds to the metric, smaller is better."""
UNDEFINED = "the metric is undefined on the fresh rows"
PIECE = 65536
"""Rows that are read at a time."""
DATA = "__sd_data"
"""The columns of the data, together."""


@dataclass(frozen=True)
class Comparison:
    """Two models on fresh rows.

    Attributes:
        winner, default: their metrics.
        verdict: of the test; None if there is none, and then `untested` says why.
        rows: how many both predict.
        refused: whether the winner can't ship, whatever its metric.
    """

    winner: float
    default: float
    verdict: guard.Verdict | None
    untested: str = ""
    rows: int = 0
    refused: bool = False


def losses_of(evaluator: Any) -> Losses | None:
    """What each row adds to the metric of an evaluator; None if it can't be told."""
    if isinstance(evaluator, MeanLoss):
        return lambda s, y, w: evaluator.rows(s, y)
    if type(evaluator) is BinaryClassificationEvaluator:
        value = BINARY[evaluator.getMetricName()]
        area = Metric(evaluator.getMetricName(), larger=True, value=value)
        return lambda s, y, w: -influence(area, s[:, 1] if s.ndim == 2 else s, y, w)
    if type(evaluator) is RegressionEvaluator:
        if evaluator.getMetricName() == "r2" and evaluator.getThroughOrigin():
            return None
        return _added(lambda s, y: of_predictions(evaluator.getMetricName(), {}))
    if type(evaluator) is MulticlassClassificationEvaluator:
        name, eps = str(evaluator.getMetricName()), evaluator.getEps()
        if name == "logLoss":
            return lambda s, y, w: _log_loss(s, y, eps)
        beta = 1.0 if name == "f1" else evaluator.getBeta()  # which Spark's f1 does not read
        given = {"beta": beta, "metricLabel": evaluator.getMetricLabel()}
        return _added(lambda s, y: of_predictions(name, given, int(max(s.max(), y.max())) + 1))
    return None


def _log_loss(probability: Tensor, y: Tensor, eps: float) -> Tensor:
    if probability.ndim != 2 or not 0 <= y.min() <= y.max() < probability.shape[1]:
        return torch.full_like(y, torch.nan)
    return -probability.gather(1, y.long()[:, None])[:, 0].clamp(eps, 1 - eps).log()


def _added(metric_of: Callable[[Tensor, Tensor], Metric]) -> Losses:
    def of(score: Tensor, y: Tensor, w: Tensor) -> Tensor:
        metric = metric_of(score, y)
        found = metric.rows(score, y, w) if metric.rows is not None else influence(metric, score, y, w)
        return metric.sign * found

    return of


@dataclass(frozen=True)
class Scored:
    """What two models write on the same rows; each has labels of its own, as a pipeline may index them."""

    winner: tuple[Tensor, Tensor]  # what the evaluator reads, label
    default: tuple[Tensor, Tensor]
    weight: Tensor
    block: Tensor
    unit: Tensor
    time: Tensor

    def losses(self, losses: Losses, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What some rows add to the metric of both; they alone are the rows of the metric."""
        one, other = (losses(part[rows], label[rows], self.weight[rows]) for part, label in (self.winner, self.default))
        return one, other


def compare(
    winner: Any, default: Any, fresh: DataFrame, split: SearchSplit, evaluator: Any, *, level: float, seed: int
) -> Comparison:
    """Both models on the fresh rows, and whether the winner is better than chance explains."""
    judge, losses, total = judge_of(evaluator), losses_of(evaluator), fresh.count()
    why = f"{type(evaluator).__name__} gives no value per row"
    if judge is not None and losses is not None:
        found, why = scored(winner, default, fresh, total, split, evaluator)
        if found is not None:
            values = [judge.value(part, label, found.weight) for part, label in (found.winner, found.default)]
            one, other = (
                evaluator.evaluate(model.transform(_data(fresh))) if math.isnan(value) else value
                for value, model in zip(values, (winner, default), strict=True)
            )
            rows = int((found.weight > 0).sum())
            if why := left_out(len(found.weight), total, winner, default, fresh):
                return Comparison(one, other, None, why, rows, refused=True)
            verdict, why = _tested(found, losses, split, level, seed)
            return Comparison(one, other, verdict, why, rows)
    one, other = (evaluator.evaluate(model.transform(_data(fresh))) for model in (winner, default))
    if less := left_out(predicted_by_both(winner, default, fresh), total, winner, default, fresh):
        return Comparison(one, other, None, less, refused=True)
    return Comparison(one, other, None, why)


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


def predicted_by_both(winner: Any, default: Any, fresh: DataFrame) -> int | None:
    """The number of these rows that both models predict; None if a model drops columns that it does not know."""
    rows, base = _with_data(fresh)
    for model in (default, winner):
        out = model.transform(rows)
        if DATA not in out.columns:
            return None
        rows = out.select(*base, DATA)
    return rows.count()


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
    """Both models' columns on the same rows, `total` in number, written by one job; or why that can't be."""
    judge = judge_of(evaluator)
    assert judge is not None
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
        weight: Column = named(judge.weight).cast("double") if judge.weight else F.lit(1.0)
        new = {
            f"__sd_{part}": named(judge.column), f"__sd_{part}_label": named(judge.label).cast("double"),
            f"__sd_{part}_weight": weight,
        }  # fmt: skip
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
    found = Scored(
        (read["__sd_winner"], read["__sd_winner_label"]), (read["__sd_default"], read["__sd_default_label"]),
        read["__sd_winner_weight"], read["__sd_block"].long(), read["__sd_unit"], read["__sd_time"],
    )  # fmt: skip
    usable = [t for t in (*found.winner, *found.default, found.weight) if not bool(t.isfinite().all())]
    return (None, "labels, weights or predictions are null or not finite") if usable else (found, "")


def _tested(
    scored: Scored, losses: Losses, split: SearchSplit, level: float, seed: int
) -> tuple[guard.Verdict | None, str]:
    """The guard on the gains of the rows."""
    counts = scored.weight > 0
    weight, block = scored.weight[counts], scored.block[counts]
    one, other = scored.losses(losses, counts)
    if not bool((one.isfinite() & other.isfinite()).all()):
        return None, UNDEFINED
    size = int(block.max()) + 1

    def sums(x: Tensor) -> Tensor:
        return torch.zeros(size, dtype=torch.float64).index_add(0, block, x)

    unit: Literal["rows", "groups", "blocks"] = "groups" if split.groupCol else "blocks" if split.timeCol else "rows"
    units = len(block) if unit == "rows" else len(scored.unit[counts].unique())
    by_time = scored.time[counts].argsort(stable=True) if split.timeCol else None
    verdict = guard.decide(
        sums(weight * (other - one))[None], sums(weight), chosen=0, level=level, original=sums(weight * other), unit=unit,
        units=units, blockRows=len(block) / max(units, 1), seed=seed,
        correlationTime=None if by_time is None else guard.correlation_time((other - one)[by_time]),
    )  # fmt: skip
    return verdict, ""
