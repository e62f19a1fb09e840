"""Test of the winner against the model that it would replace, row by row with the guard (the statistical test on held-out
rows), on rows that no fit and no trial has seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator
from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import NumericType
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import BLOCK, TEST, TIME, TRAIN
from sparkdiff.errors import InputError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.paired_rows import PairedRows, pair
from sparkdiff.evaluation.row_margins import difference_text
from sparkdiff.evaluation.units import Kind
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.column_tensors import fetch_columns
from sparkdiff.pipeline.indexer_labels import check_same_classes, classes_of
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.proof.decision import FoldComparison, decide_gain, largest_loss
from sparkdiff.search.search_options import Settings
from sparkdiff.search.splitting import DividedRows
from sparkdiff.stages.base import columns_of
from sparkdiff.tuning.evaluator_metrics import CLASSIFIERS, Judge, MetricOf, judge_of

UNDEFINED = "the metric is undefined on the rows that decide"
NOT_FINITE = "labels, weights or predictions are null or not finite"
OF_SPARK, FILL = "use an evaluator of regressions or classes", "fill what is null or not finite, or leave such rows out"
ROW_BY_ROW = "let the stages keep all columns and make one row of each, as with handleInvalid='keep'"
"""Remedies that would make a test possible."""
NUMBER_ALIKE = (
    "; or let a StringIndexer with stringOrderType='alphabetAsc' number the classes, which the metric goes by"
)
TRAINING_ROWS = 200_000
"""Largest number of training rows that are also predicted; if there are more, a hash draws a sample of them."""
NAMED = 3
"""Largest number of stages that an error message names."""
DATA = "__sd_data"
"""Column with all columns of the data, as a struct."""


@dataclass(frozen=True)
class Comparison:
    """The winner and the model it would replace (`default`), compared on the rows that decide which of them ships.

    Attributes:
        winner, default: the metrics of both models.
        verdict: verdict of the test; None without a test, and then `untested` has the reason.
        refused: whether the winner can't ship, whatever its metric.
        remedy: what makes a test possible; empty if more rows would.
    """

    winner: float
    default: float
    verdict: guard.Verdict | None
    untested: str = ""
    refused: bool = False
    remedy: str = ""

    def ships(self, level: float, *, larger: bool) -> bool:
        """True if the winner replaces the other model. Without a test it does so only if `level` is 1, which accepts
        any gain, and its metric is better.
        """
        if self.refused or self.verdict is not None:
            return self.verdict is not None and self.verdict.accepted
        # As among trials, a NaN metric never wins.
        better = self.winner > self.default if larger else self.winner < self.default
        return level >= 1 and not math.isnan(self.winner) and (math.isnan(self.default) or better)


@dataclass(frozen=True)
class Fold(Comparison):
    """The comparison of two models on the rows of one fold; only all folds together give a verdict.

    Attributes:
        weight: sum of the rows' weights; the number of rows if they can't be paired.
        rows: the rows with both models' losses; None if they can't be compared, and then `untested` has the reason.
    """

    weight: float = 0.0
    rows: FoldComparison | None = None


def _judge(evaluator: Any, model: Any) -> Judge:
    """A Judge that computes an evaluator's metric on tensors. If only Spark can compute the metric, the Judge holds the label
    and weight columns that the evaluator's Params name, and its value is NaN.

    Args:
        model: provides the label, from its last stage with a labelCol, if the evaluator names none.
    """
    named_by = (
        columns_of if hasattr(evaluator, "uid") else lambda _stage, _params: ()
    )  # a user's own evaluator may have no Params
    of_stages = [name for _, stage in reversed(flatten(model)) for name in columns_of(stage, ("labelCol",))]
    label, weight = (next(iter(named_by(evaluator, (name,))), "") for name in ("labelCol", "weightCol"))
    return judge_of(evaluator) or Judge(label or next(iter(of_stages), ""), weight, "", lambda _found, _y, _w: math.nan)


def by_number(evaluator: Any, dimensions: int = 2) -> bool:
    """True if the metric depends, or may depend, on how classes are numbered.

    Args:
        dimensions: number of dimensions of the evaluator's input column; for the area under a curve, a column (n,)
            holds scores of class 1.
    """
    if type(evaluator) is BinaryClassificationEvaluator:
        return evaluator.getMetricName() == "areaUnderPR" or dimensions == 1
    return type(evaluator) is not MulticlassClassificationEvaluator or evaluator.getMetricName().endswith("ByLabel")


def _is_renumbering(one: Tensor, other: Tensor) -> bool:
    """True if two columns of classes (n,) differ only in how classes are numbered."""
    pairs = torch.stack([one, other], 1).unique(dim=0)
    return len(pairs) == len(pairs[:, 0].unique()) == len(pairs[:, 1].unique())


def _incomparable(
    told: str, what: str, column: str, models: Sequence[Any], data: DataFrame, remedy: str = ""
) -> InputError:
    """The error for a winner whose labels or weights differ from the other model's; it names the stages that make them.

    Args:
        told: the problem, in words.
        models: the two models.
        data: the data's own columns only.
    """
    graphs = [graph_of(model, data) for model in models]
    makers = [g.makers([column], data.columns) or [v for v in g.vertices if v.opaque] for g in graphs]
    uids = [*dict.fromkeys(v.uid for found in makers for v in found)] or [models[0].uid]
    return InputError(
        f"{', '.join(uids[:NAMED])}: {told} ({what}Col={column!r}), and models of different {what}s can't be compared. Leave "
        f"what makes the {what} out of the space, or make it as `current` does{remedy}"
    )


def _targets(judge: Judge, out: DataFrame) -> tuple[Column, Column]:
    """The label and the weight of a model's rows, as numbers."""
    label = col_by_name(judge.label) if judge.label else F.lit(0.0)
    if not judge.column and judge.label and not isinstance(out.schema[judge.label].dataType, NumericType):
        label = F.xxhash64(label)  # a hash suffices, as labels are only compared
    return label.cast("double"), col_by_name(judge.weight).cast("double") if judge.weight else F.lit(1.0)


def _check_totals(judge: Judge, models: Sequence[Any], data: DataFrame) -> None:
    """Check, for rows that can't be paired, that both models have the same labels and weights in total.

    Raises:
        InputError: labels or weights differ, or a model drops them. The message names the stages that make the labels.
    """
    columns, outputs = {judge.label, judge.weight} - {""}, [model.transform(data) for model in models]
    found = [
        out.agg(F.sum(F.xxhash64(*_targets(judge, out)).cast("decimal(38,0)"))).first()
        for out in outputs
        if columns <= {*out.columns}
    ]
    if columns and (len(found) < len(models) or len({*found}) > 1):
        told = "the rows have other labels or weights than in the pipeline that the winner is compared with, or none"
        raise _incomparable(told, "label", judge.label, models, data)


@dataclass(frozen=True)
class PairedOutputs:
    """Outputs of two models on the same rows; each model has its own labels, as its pipeline may index them."""

    winner: tuple[Tensor, Tensor]  # the column that the evaluator reads, label
    default: tuple[Tensor, Tensor]
    weight: Tensor
    block: Tensor
    unit: Tensor
    time: Tensor

    @property
    def finite(self) -> Tensor:
        """True for rows (n,) without nulls and infinite numbers."""
        return torch.column_stack([*self.winner, *self.default, self.weight]).isfinite().all(1)

    def subset(self, rows: Tensor) -> "PairedOutputs":
        """Some of these rows (n,)."""
        (one, own), (other, its) = self.winner, self.default
        return PairedOutputs(
            (one[rows], own[rows]),
            (other[rows], its[rows]),
            self.weight[rows],
            self.block[rows],
            self.unit[rows],
            self.time[rows],
        )

    def pair(self, of: MetricOf, settings: Settings, held: PairedRows | None = None) -> PairedRows:
        """The rows with positive weight, which alone count in the metric, paired: `default`'s outputs, then `winner`'s.

        Args:
            held: see `paired_rows.pair`.
        """
        rows = self.subset(self.weight > 0)
        (one, own), (other, its) = rows.default, rows.winner
        metric = of(1 + int(torch.cat([x.flatten() for x in (one, other, own, its, torch.zeros(1))]).max()))
        columns = [x if metric.column is None else metric.column(x) for x in (one, other)]
        kind: Kind = "groups" if settings.groupCol else "blocks" if settings.timeCol else "rows"
        unit = None if kind == "rows" else rows.unit
        time = rows.time if kind == "blocks" else None
        return pair(metric, columns, (own, its), rows.weight, rows.block, unit, kind, time, held)


def compare(
    winner: Any,
    default: Any,
    rows: DividedRows,
    counts: Mapping[str, int],
    settings: Settings,
    evaluator: Any,
    *,
    level: float = 1.0,
    elsewhere: bool = False,
) -> Fold:
    """Measure both models on the rows that decide.

    If `level` is below 1, both models also predict rows to which they were fitted; these show the losses' distribution.

    Args:
        counts: numbers of rows, by split.
        level: p-value to accept; 1 accepts any gain.
        elsewhere: True if the models were fitted to the rows of other folds. Then all of these rows are predicted, as
            they show how folds depend on each other.

    Raises:
        InputError: the models have different labels or weights.
    """
    fresh, judge, models = rows.part(TEST), _judge(evaluator, default), (winner, default)
    both = rows.rows_to_predict(1.0 if elsewhere else TRAINING_ROWS / counts[TRAIN] if level < 1 else 0.0)
    found = predict_both(winner, default, both, both.count(), settings, evaluator)
    if isinstance(found, str):
        one, other = (evaluator.evaluate(model.transform(fresh)) for model in models)
        less = why_rows_missing(None, counts[TEST], winner, default, fresh)
        if not less and level >= 1:
            _check_totals(judge, models, fresh)
        return Fold(one, other, None, less or found, bool(less), ROW_BY_ROW, counts[TEST])
    is_fresh = found.time.isfinite()
    held, trained = found.subset(is_fresh), found.subset(~is_fresh & found.finite)
    finite, pairs = bool(held.finite.all()), (held.winner, held.default)
    values = [judge.value(part, label, held.weight) if finite else math.nan for part, label in pairs]
    one, other = (
        evaluator.evaluate(model.transform(fresh)) if math.isnan(value) else value
        for value, model in zip(values, models, strict=True)
    )
    fold = Fold(one, other, None, weight=float(held.weight.nansum()))
    if less := why_rows_missing(len(held.weight), counts[TEST], winner, default, fresh):
        return replace(fold, untested=less, refused=True, remedy=ROW_BY_ROW)
    if judge.metric is None:
        return replace(fold, untested=f"{type(evaluator).__name__} gives no value per row", remedy=OF_SPARK)
    if not finite:
        return replace(fold, untested=NOT_FINITE, remedy=FILL)
    paired = held.pair(judge.metric, settings)
    if not len(paired.weight) or not bool((paired.original.isfinite() & paired.other.isfinite()).all()):
        return replace(fold, untested=UNDEFINED)
    training = trained.pair(judge.metric, settings, paired)
    gains = training.block_sums(training.original - training.other) if elsewhere else None
    return replace(fold, rows=FoldComparison(paired, training.costs(), gains))


def check_classes(first: Any, other: Any, evaluator: Any, where: str) -> None:
    """Raise InputError if the metric depends on how classes are numbered, and two models number them differently."""
    judge = judge_of(evaluator)
    if judge is not None and by_number(evaluator):
        check_same_classes(classes_of(first, judge.label), classes_of(other, judge.label), judge.label, where)


def decide(folds: Sequence[Fold], *, level: float, seed: int, factor: float | None, finalists: int) -> Comparison:
    """Decide whether the winner is better than chance explains, on the rows of all folds.

    Args:
        factor, finalists: see `decide_gain`.
    """
    total = sum(fold.weight for fold in folds) or math.nan
    winner, default = (
        sum(fold.weight / total * getattr(fold, name) for fold in folds) for name in ("winner", "default")
    )
    compared = [fold.rows for fold in folds if fold.rows is not None]
    if len(compared) < len(folds):
        k = min((k for k, fold in enumerate(folds) if fold.rows is None), key=lambda k: not folds[k].refused)
        where = f" (fold {k + 2})" if len(folds) > 1 else ""
        return Comparison(winner, default, None, f"{folds[k].untested}{where}", folds[k].refused, folds[k].remedy)
    verdict = decide_gain(compared, level=level, factor=factor, finalists=finalists, seed=seed)
    return Comparison(winner, default, None if verdict.untested else verdict, verdict.untested)


def with_final_check(compared: Comparison, shipped: Fold, folds: Sequence[Fold]) -> Comparison:
    """The comparison of the folds, after a check of the winner fitted to all rows. The winner is refused if it leaves rows
    out; and, if there was a test, if its loss on all rows is unknown, or larger by some standard errors than the loss of the
    folds' winners on their held-out rows.

    Args:
        shipped: the comparison of the winner fitted to all rows, on the same rows.
    """
    alike = not shipped.refused
    if compared.verdict is not None:
        own, rows = shipped.rows, [fold.rows for fold in folds if fold.rows is not None]
        alike = own is not None and float(own.rows.other.sum() / own.rows.weight.sum()) <= largest_loss(rows)
    why = (
        f"fitted to all rows the winner is worse there, at {shipped.winner:.6g}, than those of the folds on other rows"
    )
    return (
        compared
        if alike
        else replace(compared, verdict=None, untested=shipped.untested or why, refused=True, remedy=shipped.remedy)
    )


def why_rows_missing(both: int | None, total: int, winner: Any, default: Any, fresh: DataFrame) -> str:
    """The reason why a winner can't ship: it doesn't predict all rows that the other model predicts; empty if it does.

    Args:
        both: number of rows that both models predict; None if unknown: the models' numbers of output rows are compared.
        total: number of rows in `fresh`.
        fresh: the data's own columns only.
    """
    if both == total:
        return ""
    kept = default.transform(fresh).count()
    if both is None:
        both = winner.transform(fresh).count()
    if both >= kept:
        return ""
    return f"the winner leaves out {kept - both:,} of {kept:,} rows that the other model predicts"


def predict_both(
    winner: Any, default: Any, fresh: DataFrame, total: int, settings: Settings, evaluator: Any
) -> PairedOutputs | str:
    """Both models' columns on the same `total` rows, written by one job; or the reason why rows can't be paired.

    Raises:
        InputError: the models have different labels or weights.
    """
    judge = _judge(evaluator, default)
    block = F.pmod(F.col(BLOCK), F.lit(MAX_BLOCKS)) if settings.groupCol else F.col(BLOCK)
    kept = {
        "__sd_block": block.cast("double"),
        "__sd_unit": F.col(BLOCK).cast("double"),
        "__sd_time": F.col(TIME).cast("double"),
    }
    data, names = fresh.drop(BLOCK, TIME), [*kept]
    # A stage may overwrite a column that it reads, so each model gets the original columns.
    base = [F.col(DATA).getField(c).alias(c) for c in data.columns]
    together = F.struct(*map(col_by_name, data.columns)).alias(DATA)
    rows = fresh.select(*map(col_by_name, data.columns), together, *(c.alias(name) for name, c in kept.items()))
    for model, part in ((default, "default"), (winner, "winner")):
        out = model.transform(rows)
        missing = [c for c in (*names, DATA, judge.label, judge.column, judge.weight) if c and c not in out.columns]
        if missing:
            what = "a column of its own" if missing[0].startswith("__sd_") else f"the column {missing[0]!r}"
            return f"the pipeline of the {part} drops or lacks {what}"
        label, weight = _targets(judge, out)
        new = {
            f"__sd_{part}": col_by_name(judge.column) if judge.column else F.lit(0.0),
            f"__sd_{part}_label": label,
            f"__sd_{part}_weight": weight,
        }
        rows = out.select(*base, DATA, *names, *(c.alias(name) for name, c in new.items()))
        names += [*new]
    columns = fetch_columns(rows.select(*names), names)
    if not columns:
        return "the pipelines leave no fresh row"
    if len(columns[0]) > total:
        return "the pipelines make several rows of one, of which nothing tells the pairs"
    read = dict(zip(names, columns, strict=True))
    labels, weights = ([read[f"__sd_{part}_{what}"] for part in ("winner", "default")] for what in ("label", "weight"))
    numbers = by_number(evaluator, read["__sd_winner"].ndim)
    remedy = NUMBER_ALIKE if numbers and type(evaluator) in CLASSIFIERS else ""
    for what, column, of, more in (("label", judge.label, labels, remedy), ("weight", judge.weight, weights, "")):
        told = difference_text(of[0], of[1], what, "the pipeline that the winner is compared with")
        if told and (numbers or what == "weight" or not _is_renumbering(*of)):
            raise _incomparable(told, what, column, (winner, default), data, more)
    return PairedOutputs(
        (read["__sd_winner"], labels[0]),
        (read["__sd_default"], labels[1]),
        weights[0],
        read["__sd_block"].long(),
        read["__sd_unit"],
        read["__sd_time"],
    )
