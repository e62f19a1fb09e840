"""A search on all rows, judged by all rows: the whole search is repeated per fold, and out-of-fold rows decide."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import SPLIT, TIME
from sparkdiff.evaluation import out_of_fold
from sparkdiff.evaluation.out_of_fold import FoldSums
from sparkdiff.pipeline.class_numbers import check_same_classes, classes_of
from sparkdiff.pipeline.names import named
from sparkdiff.tuning.scores import judge_of
from sparkdiff.tuning.search.judging import UNDEFINED, Comparison, left_out, losses_of, scored
from sparkdiff.tuning.search.splitting import FOLD, Divided, SearchSplit


@dataclass(frozen=True)
class Parts:
    """The rows of a search in folds.

    Attributes:
        rows: with SPLIT, BLOCK and FOLD.
        columns: those of the data.
    """

    rows: DataFrame
    columns: tuple[str, ...]

    def outside(self, fold: int | None) -> Divided:
        """The rows that a fold's search fits to and chooses by; None: all."""
        rows = self.rows if fold is None else self.rows.where(F.col(FOLD) != float(fold))
        return Divided(rows.drop(FOLD), self.columns)

    def fitted(self, fold: int | None) -> DataFrame:
        """The rows that its models are fitted to in the end."""
        rows = self.rows if fold is None else self.rows.where(F.col(FOLD) != float(fold))
        return rows.select(*map(named, self.columns))

    def judged(self) -> DataFrame:
        """All rows with their block, and the fold in place of a time, which there is none of."""
        return self.rows.drop(SPLIT).withColumn(TIME, F.col(FOLD)).drop(FOLD)


@dataclass(frozen=True)
class Fold:
    """What the two models of a fold show on its own rows, and on the others, which trained them.

    Attributes:
        refused: why a winner like that of the fold can't ship, whatever its metric; empty if it can.
    """

    sums: FoldSums
    winner: float
    default: float
    weight: float
    refused: str = ""


def judged(
    number: int, winner: Any, default: Any, parts: Parts, total: int, split: SearchSplit, evaluator: Any
) -> Fold | str:
    """The two models of a fold; or why they can't be told apart.

    Args:
        total: number of the rows of all folds.
    """
    judge, losses = judge_of(evaluator), losses_of(evaluator)
    assert judge is not None and losses is not None
    found, why = scored(winner, default, parts.judged(), total, split, evaluator)
    if found is None:
        return why
    own = (found.time == number) & (found.weight > 0)
    rest = (found.time != number) & (found.weight > 0)

    def sums(x: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros(MAX_BLOCKS, dtype=torch.float64).index_add(0, found.block[rows], found.weight[rows] * x)

    (one, other), (one_rest, other_rest) = found.losses(losses, own), found.losses(losses, rest)
    values = [judge.value(part[own], label[own], found.weight[own]) for part, label in (found.winner, found.default)]
    if not all(bool(x.isfinite().all()) for x in (one, other, one_rest, other_rest)):
        return UNDEFINED
    units = int(own.sum()) if not split.groupCol else len(found.unit[own].unique())
    folded = FoldSums(
        sums(other, own),
        sums(other - one, own),
        sums(torch.ones_like(one), own),
        units,
        sums(other_rest - one_rest, rest),
    )
    refused = left_out(len(found.weight), total, winner, default, parts.judged())
    return Fold(folded, values[0], values[1], float(found.weight[own].sum()), refused)


def check_classes(first: Any, other: Any, evaluator: Any, where: str) -> None:
    """Raise InputError if the metric goes by the numbers of classes, and two models number them differently."""
    name, label = str(evaluator.getMetricName()), evaluator.getLabelCol()
    if name == "areaUnderPR" or name.endswith("ByLabel"):
        check_same_classes(classes_of(first, label), classes_of(other, label), label, where)


def decided(folds: list[Fold], split: SearchSplit, *, level: float, seed: int) -> Comparison:
    """Whether the search gains, by the rows of all folds."""
    unit: Literal["rows", "groups"] = "groups" if split.groupCol else "rows"
    verdict = out_of_fold.decide([fold.sums for fold in folds], level=level, unit=unit, seed=seed)
    total = sum(fold.weight for fold in folds)
    means = [sum(value(fold) * fold.weight for fold in folds) / total for value in (_winner, _default)]
    for number, fold in enumerate(folds):
        if fold.refused:
            return Comparison(means[0], means[1], None, f"{fold.refused} (fold {number})", refused=True)
    return Comparison(means[0], means[1], verdict)


def _winner(fold: Fold) -> float:
    return fold.winner


def _default(fold: Fold) -> float:
    return fold.default


def folder_of(folder: Path | None, fold: int | None) -> Path | None:
    """Where the study of a fold is stored."""
    if folder is None or fold is None:
        return folder
    path = folder / f"fold-{fold}"
    path.mkdir(exist_ok=True, mode=0o700)
    return path
