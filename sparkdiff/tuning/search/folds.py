"""A search on all rows, judged by all rows: the whole search is repeated per fold, and out-of-fold rows decide."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import SPLIT, TIME
from sparkdiff.evaluation import out_of_fold
from sparkdiff.evaluation.out_of_fold import FoldSums
from sparkdiff.evaluation.paired_rows import PairedRows
from sparkdiff.evaluation.units import Costs
from sparkdiff.pipeline.class_numbers import check_same_classes, classes_of
from sparkdiff.pipeline.names import named
from sparkdiff.tuning.scores import judge_of
from sparkdiff.tuning.search.judging import NOT_FINITE, ROW_BY_ROW, Comparison, by_number, left_out, scored, verdict_of
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
        return self.outside(fold).rows.select(*map(named, self.columns))

    def judged(self) -> DataFrame:
        """All rows with their block, and the fold in place of a time, which there is none of."""
        return self.rows.drop(SPLIT).withColumn(TIME, F.col(FOLD)).drop(FOLD)


@dataclass(frozen=True)
class Fold:
    """What the two models of a fold show on its own rows, and on the others, which trained them.

    Attributes:
        held: the fold's own rows.
        training: what the winner costs on the rows that trained it.
        refused: why a winner like that of the fold can't ship, whatever its metric; empty if it can.
    """

    held: PairedRows
    training: Costs
    sums: FoldSums
    winner: float
    default: float
    refused: str = ""


def judged(
    number: int, winner: Any, default: Any, parts: Parts, total: int, split: SearchSplit, evaluator: Any
) -> Fold | str:
    """The two models of a fold; or why they can't be told apart.

    Args:
        total: number of the rows of all folds.

    Raises:
        InputError: the models have other labels or weights.
    """
    judge = judge_of(evaluator)
    assert judge is not None and judge.metric is not None
    found = scored(winner, default, parts.judged(), total, split, evaluator)
    if isinstance(found, str):
        return found
    if not bool(found.finite.all()):
        return NOT_FINITE
    used, is_own = found.weight > 0, found.time == number
    own, rest = found.taken(used & is_own), found.taken(used & ~is_own)
    values = [judge.value(part, label, own.weight) for part, label in (own.winner, own.default)]
    alone = replace(split, timeCol=None)
    held = own.pair(judge.metric, alone)
    trained = rest.pair(judge.metric, alone, held)

    def sums(rows: PairedRows, x: Tensor) -> Tensor:
        return torch.zeros(MAX_BLOCKS, dtype=torch.float64).index_add(0, rows.block, x)

    folded = FoldSums(
        sums(held, held.original - held.other), sums(held, held.weight), sums(trained, trained.original - trained.other)
    )  # fmt: skip
    refused = left_out(len(found.weight), total, winner, default, parts.fitted(None))
    return Fold(held, trained.costs(), folded, values[0], values[1], refused)


def check_classes(first: Any, other: Any, evaluator: Any, where: str) -> None:
    """Raise InputError if the metric goes by the numbers of classes, and two models number them differently."""
    judge = judge_of(evaluator)
    if judge is not None and by_number(evaluator):
        label = judge.label
        check_same_classes(classes_of(first, label), classes_of(other, label), label, where)


def decided(folds: list[Fold], *, level: float, seed: int) -> Comparison:
    """Whether the search gains, by the rows of all folds."""
    held = [fold.held for fold in folds]
    weights = torch.stack([rows.weight.sum() for rows in held])
    values = torch.tensor([(fold.winner, fold.default) for fold in folds], dtype=torch.float64)
    winner, default = (weights @ values / weights.sum()).tolist()
    for number, fold in enumerate(folds):
        if fold.refused:
            why = f"{fold.refused} (fold {number})"
            return Comparison(winner, default, None, why, refused=True, remedy=ROW_BY_ROW)
    dependence = out_of_fold.dependence([fold.sums for fold in folds])
    training = max((fold.training for fold in folds), key=lambda costs: costs.mean_square)
    return Comparison(
        winner, default, *verdict_of(held, level=level, seed=seed, dependence=dependence, training=training)
    )  # fmt: skip


def allowed(
    compared: Comparison, winner: Any, default: Any, parts: Parts, total: int, split: SearchSplit, evaluator: Any
) -> Comparison:
    """The comparison, refused where the winner that is fitted to all rows leaves some of them out, or makes several of one.

    Raises:
        InputError: it has other labels or weights than the default.
    """
    found = scored(winner, default, parts.judged(), total, split, evaluator)
    why = found if isinstance(found, str) else left_out(len(found.weight), total, winner, default, parts.fitted(None))
    return replace(compared, verdict=None, untested=why, refused=True, remedy=ROW_BY_ROW) if why else compared


def folder_of(folder: Path | None, fold: int | None) -> Path | None:
    """Where the study of a fold is stored."""
    if folder is None or fold is None:
        return folder
    path = folder / f"fold-{fold}"
    path.mkdir(exist_ok=True, mode=0o700)
    return path
