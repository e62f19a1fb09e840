"""The decision about one finalist: what it and its rival show on the rows that prove, fold by fold, and the test of it."""

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import TEST, TRAIN
from sparkdiff.evaluation import compatibility, guard, slices
from sparkdiff.evaluation.acceptance import Judgement, unit_of
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.data import Data
from sparkdiff.evaluation.out_of_fold import FoldSums, dependence
from sparkdiff.evaluation.paired_rows import PairedRows, decide_by_rows, read
from sparkdiff.evaluation.recorded import Predicts
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.evaluation.units import Costs
from sparkdiff.evaluation.unseen_errors import costs, unseen
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options

FINALISTS = 4
"""The number of tests that each p-value allows for, also where fewer finalists are tested."""


@dataclass(frozen=True)
class FoldComparison:
    """A finalist and its rival on the rows of a fold.

    Attributes:
        rows: of the fold.
        training: the cost of the finalist on the rows that it was made from; None where it isn't known.
        elsewhere: (B,) block sums of weight * gain on these rows; None where they are no rows of other folds.
        exponent: of the power of two by which the weights of this fold are divided.
        slices: None without guardCols.
        compatibility: None of pipelines that are compared by Spark's own columns.
        unseen: (n,) costs of each row if its label were another one, see `unseen_errors.costs`.
    """

    rows: PairedRows
    training: Costs | None
    elsewhere: Tensor | None = None
    exponent: int = 0
    slices: SliceSums | None = None
    compatibility: Compatibility | None = None
    unseen: Tensor | None = None

    def scaled(self, top: int) -> "FoldComparison":
        """The same comparison, with weights that are divided by 2 ** top."""
        factor = math.ldexp(1.0, self.exponent - top)
        return replace(
            self, rows=self.rows.scaled(factor), exponent=top,
            elsewhere=None if self.elsewhere is None else factor * self.elsewhere,
            slices=None if self.slices is None else self.slices.scaled(factor),
            unseen=None if self.unseen is None else factor * self.unseen,
        )  # fmt: skip

    def sums(self) -> FoldSums:
        """Sums over the guard's blocks."""
        rows = self.rows

        def blocks(x: Tensor) -> Tensor:
            return torch.zeros(MAX_BLOCKS, dtype=torch.float64).index_add(0, rows.block, x)

        return FoldSums(blocks(rows.original - rows.other), blocks(rows.weight), self.elsewhere)


def compare(
    rival: Predicts, finalist: Predicts, data: Data, metric: Metric, options: Options, *, elsewhere: Tensor | None,
    exponent: int = 0, training: bool = True,
) -> FoldComparison:  # fmt: skip
    """Measure both pipelines on the rows of a fold, which are the split `test` of the data.

    Args:
        elsewhere, exponent: see `FoldComparison`.
        training: whether both can be run on the training rows.
    """
    unit, networks = unit_of(options), (rival, finalist)
    rows = read(*networks, data, TEST, metric, unit)
    cost = read(*networks, data, TRAIN, metric, unit, rows).costs() if training and options.guard < 1 else None
    columns = list(data.stream.slices.values())
    return FoldComparison(
        rows, cost, elsewhere, exponent,
        slices.sums(*networks, data, TEST, metric, columns, unit=unit) if columns else None,
        compatibility.compare(*networks, data, TEST), costs(*networks, data, TEST, metric),
    )  # fmt: skip


def scaled_alike(folds: Sequence[FoldComparison]) -> list[FoldComparison]:
    """The comparisons with weights in one unit."""
    top = max(fold.exponent for fold in folds)
    return [fold.scaled(top) for fold in folds]


def test(folds: Sequence[FoldComparison], *, level: float, factor: float | None = None, seed: int = 0) -> guard.Verdict:
    """Test the gain of a finalist over its rival.

    Args:
        folds: in one unit of weight.
        level: p-value to accept, of the p-value that allows for all finalists.
        factor: see `dependence_of`.
    """
    return decide_by_rows(
        functools.reduce(operator.add, (fold.rows for fold in folds)), level=level, training=_training(folds),
        dependence=dependence_of(folds, factor), finalists=FINALISTS, seed=seed,
    )  # fmt: skip


def _training(folds: Sequence[FoldComparison]) -> Costs | None:
    """The costs of the fold where a row costs most on average: the folds share the rows that they are made from."""
    known = [fold.training for fold in folds if fold.training is not None]
    return max(known, key=lambda cost: cost.mean_square, default=None)


def dependence_of(folds: Sequence[FoldComparison], factor: float | None) -> float:
    """Variance of the sum of all gains, as a multiple of that of independent gains.

    Args:
        factor: the multiple, where it is known; None: it is estimated from the folds, or 1 where there is only one.
    """
    if factor is not None or len(folds) == 1:
        return factor or 1.0
    return dependence([fold.sums() for fold in folds])


def judge(folds: Sequence[FoldComparison], options: Options, factor: float | None = None) -> Judgement:
    """Decide whether the rows that prove show that a finalist is better than its rival, and nowhere worse.

    Args:
        factor: see `dependence_of`.
    """
    o, folds = options, scaled_alike(folds)
    level = o.guard / o.fleetSize if o.guard < 1 else o.guard
    verdict = test(folds, level=level, factor=factor, seed=o.seed)
    # A fleet's budget is one of false accepts: a false veto costs a gain, never a model, and so keeps the level of one run.
    worse = o.guard * verdict.level / level if o.guard < 1 else None
    if verdict.untested:
        return Judgement(verdict, worse)
    sliced = [fold.slices for fold in folds if fold.slices is not None]
    how: dict[str, Any] = {"level": worse or guard.TAIL, "dependence": dependence_of(folds, factor), "seed": o.seed}
    changes = slices.judged(functools.reduce(operator.add, sliced), joined=verdict.joined, **how) if sliced else []
    weights = [float(fold.rows.weight.sum()) for fold in folds]
    compared = compatibility.mean([f.compatibility for f in folds if f.compatibility is not None], weights)
    further = None
    if worse is not None and verdict.best >= 0:
        every = torch.cat([fold.unseen for fold in folds if fold.unseen is not None])
        gain = sum(float((fold.rows.original - fold.rows.other).sum()) for fold in folds)
        further = unseen(gain, every, _training(folds))
    return Judgement(verdict, worse, tuple(changes), None, compared, o.maxFlipRate, unseen=further)
