"""The decision about one finalist (a pipeline chosen on the rows that explore): its comparison, fold by fold, with its
rival on the rows that prove, and the test of the gain (the guard).

The test takes into account how gains on out-of-fold rows depend on each other. The rows are divided into folds. For
each fold, an original and a tuned network were made from the rows outside of it, in the same way, and measured on the
fold's own rows. So the networks that are measured on a row have not seen it, and
neither have the trials and choices that led to these networks: there is one column of gains and no choice to correct
for (`guard.decide`). The question is about the procedure: is its result better, on rows that it has not seen, than the
network that it starts from? The same procedure then makes the final model from all rows, so that no row is left on
which this model could be tested.

The gains of rows in different folds are not independent, because each row has trained the networks of all other folds.
Write row i's gain as a part that depends only on i, plus for each training row j a part b(i, j), whose mean over i and
whose mean over j are 0. For training by small steps this is exact, because a gradient is a sum over rows. Two gains g_i
and g_j are then correlated only if i has trained the network that is measured on j, and j the network measured on i:
E[g_i g_j] = E[b(i, j) b(j, i)]. By the Cauchy-Schwarz inequality this adds at most the sum of all E[b(i, j)^2] to the
variance of the sum of all gains: the part that the training rows decide counts twice,

    Var(sum g) <= sum E[g^2] + sum E[b^2],  at most 2 sum E[g^2].

The bound is reached in the worst case: if nothing can be gained and the tuned network has moved a little by chance, its
gains consist only of b, and are symmetric. A paired test that ignores this accepts up to 8% of the networks that gain
nothing, instead of 2.5%; the more parameters train, the nearer to 8%. (Bengio and Grandvalet 2004 show that no estimate
of this variance from one cross-validation is unbiased; Nadeau and Bengio 2003 take a factor of 1 + K / (K - 1), 2.25
for five folds, as a rule of thumb.) A true gain, however, is mostly in the part that depends only on i, so a factor of
2 would waste half of the rows. The disagreement of the folds shows how much the training rows decide: the networks of
the K - 1 other folds have all trained on row i, each leaving out one further fold, and the variance of their gains on
it is 1 / (K - 1) of the sum of b(i, j)^2. Row i's own influence as a training row moves all of them alike. So the
factor is estimated, between 1 and 2 (`dependence_of` takes at least 1.5). Rows that by chance favour one direction
raise the score and lower the estimated factor, so both favour acceptance; simulations show that the test keeps its
level all the same, for any number of parameters (benchmarks/proof_size.py).
"""

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.splits import TEST, TRAIN
from sparkdiff.evaluation import compatibility, guard, slices
from sparkdiff.evaluation.acceptance import Judgement, guard_level, unit_of
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.paired_rows import PairedRows, decide_by_rows, read
from sparkdiff.evaluation.row_margins import MarginModel
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.evaluation.units import Costs
from sparkdiff.evaluation.unseen_errors import costs, unseen
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options

LEAST_FACTOR = 1.5
"""Lower bound of the variance factor that is estimated from folds. If many arms (ways to improve a pipeline) are tried,
the best arm on the rows that explore tends to be one that all rows happen to favour: its folds agree, so the estimate
is too small (benchmarks/proof_size.py)."""
FINALISTS = 4
"""The number of tests that each p-value allows for, even if fewer finalists are tested."""
ERRORS = 3.0
"""Number of standard errors by which the loss of the shipped pipeline, on the rows that it was made from, may exceed
the loss of the folds' finalists."""


MOST = 2.0
"""Largest factor of the variance, which is also used if the factor can't be estimated."""
FEWEST = 3
"""Smallest number of folds from which the factor can be estimated."""


@dataclass(frozen=True)
class FoldSums:
    """The gains of one fold's networks, as sums over blocks of rows; all folds have the same blocks.

    Attributes:
        gains: (B,) sums of weight * (loss of the original - loss of the tuned network) over the rows of the fold.
        weights: (B,) sums of the weights of these rows.
        elsewhere: (B,) the same sums of gains over the rows of all other folds, on which the fold's networks were
            trained. They only show how much the networks of the folds disagree, and are used only if no block has rows
            of several folds.
    """

    gains: Tensor
    weights: Tensor
    elsewhere: Tensor | None = None


def dependence(folds: Sequence[FoldSums]) -> float:
    """Variance of the sum of the out-of-fold gains, as a multiple of that of independent gains; from 1 to 2."""
    held = torch.stack([fold.weights > 0 for fold in folds])
    elsewhere = [fold.elsewhere for fold in folds if fold.elsewhere is not None]
    if len(folds) < FEWEST or len(elsewhere) < len(folds) or bool((held.sum(0) > 1).any()):
        return MOST
    total = float(sum(fold.gains.square().sum() for fold in folds))
    by_training = 0.0
    for k, own in enumerate(held):
        others = torch.stack([x[own] for j, x in enumerate(elsewhere) if j != k])
        by_training += len(others) * float(others.var(0).sum())
    return 1 + min(by_training / total, MOST - 1) if total > 0 and by_training == by_training else MOST


@dataclass(frozen=True)
class FoldComparison:
    """A finalist and its rival on the rows of a fold.

    Attributes:
        rows: losses of both pipelines on the rows of the fold.
        training: costs of the finalist, against its rival, on the rows that the finalist was made from; None if
            unknown.
        elsewhere: (B,) block sums of weight * gain on the rows that the finalist was made from; None if those are not
            rows of other folds.
        exponent: the weights of this fold are divided by 2 ** exponent.
        slices: sums for each slice (the rows with one value of a guard column); None without guardCols.
        compatibility: None for pipelines that are compared by Spark's own columns.
        unseen: (n,) costs of each row if its label were a different one, see `unseen_errors.costs`.
    """

    rows: PairedRows
    training: Costs | None
    elsewhere: Tensor | None = None
    exponent: int = 0
    slices: SliceSums | None = None
    compatibility: Compatibility | None = None
    unseen: Tensor | None = None

    def scaled(self, top: int) -> "FoldComparison":
        """The same comparison, with weights divided by 2 ** top."""
        factor = math.ldexp(1.0, self.exponent - top)
        return replace(
            self,
            rows=self.rows.scaled(factor),
            exponent=top,
            elsewhere=None if self.elsewhere is None else factor * self.elsewhere,
            slices=None if self.slices is None else self.slices.scaled(factor),
            unseen=None if self.unseen is None else factor * self.unseen,
        )

    def sums(self) -> FoldSums:
        """Sums of gains and weights over each of the guard's blocks (sets of rows whose gains are summed together)."""
        rows = self.rows
        return FoldSums(rows.block_sums(rows.original - rows.other), rows.block_sums(rows.weight), self.elsewhere)


def compare(
    rival: MarginModel,
    finalist: MarginModel,
    data: Data,
    metric: Metric,
    options: Options,
    *,
    elsewhere: Tensor | None,
    exponent: int = 0,
    training: bool = True,
) -> FoldComparison:
    """Measure both pipelines on the rows of a fold, the split `test` of the data.

    Args:
        elsewhere, exponent: see `FoldComparison`.
        training: whether both pipelines can be run on the training rows.
    """
    unit, networks = unit_of(options), (rival, finalist)
    rows = read(*networks, data, TEST, metric, unit)
    cost = read(*networks, data, TRAIN, metric, unit, rows).costs() if training and options.guard < 1 else None
    columns = list(data.stream.manifest.slices.values())
    return FoldComparison(
        rows,
        cost,
        elsewhere,
        exponent,
        slices.sums(*networks, data, TEST, metric, columns, unit=unit) if columns else None,
        compatibility.compare(*networks, data, TEST),
        costs(*networks, data, TEST, metric),
    )


def scaled_alike(folds: Sequence[FoldComparison]) -> list[FoldComparison]:
    """The comparisons, with the weights of all folds divided by the same power of 2, the largest."""
    top = max(fold.exponent for fold in folds)
    return [fold.scaled(top) for fold in folds]


def decide_gain(
    folds: Sequence[FoldComparison],
    *,
    level: float,
    factor: float | None = None,
    finalists: int = FINALISTS,
    seed: int = 0,
) -> guard.Verdict:
    """Test the gain of a finalist over its rival.

    Args:
        folds: comparisons with weights in one unit, see `scaled_alike`.
        level: largest p-value to accept; the p-value allows for all finalists.
        factor: see `dependence_of`.
        finalists: the number of tests that the p-value allows for.
    """
    return decide_by_rows(
        functools.reduce(operator.add, (fold.rows for fold in folds)),
        level=level,
        training=_training(folds),
        dependence=dependence_of(folds, factor),
        finalists=finalists,
        seed=seed,
    )


def largest_loss(folds: Sequence[FoldComparison]) -> float:
    """Largest mean loss allowed for the shipped pipeline on the rows that it was made from: the mean loss of the folds'
    finalists plus `ERRORS` standard errors.

    Args:
        folds: comparisons with weights in one unit, see `scaled_alike`.
    """
    rows = functools.reduce(operator.add, (fold.rows for fold in folds))
    mean = rows.other.sum() / rows.weight.sum()
    apart = rows.block_sums(rows.other - mean * rows.weight)  # no two blocks share a group
    return float(mean + ERRORS * apart.norm() / rows.weight.sum())


def _training(folds: Sequence[FoldComparison]) -> Costs | None:
    """The training costs of the fold in which their mean square is largest; of one fold only, as the folds share
    training rows.
    """
    known = [fold.training for fold in folds if fold.training is not None]
    return max(known, key=lambda cost: cost.mean_square, default=None)


def dependence_of(folds: Sequence[FoldComparison], factor: float | None) -> float:
    """Variance of the sum of all gains, as a multiple of the variance that independent gains would have.

    Args:
        factor: the multiple, if known; None: estimate it from the folds, at least LEAST_FACTOR (1 for a single fold).
    """
    if factor is None:
        return max(dependence([fold.sums() for fold in folds]), LEAST_FACTOR) if len(folds) > 1 else 1.0
    return factor


def _of_all_folds(folds: Sequence[SliceSums]) -> SliceSums:
    """Slice sums over the rows of all folds. A fold may lack a slice: in stretches of time, its value may come later."""
    sets = list(dict.fromkeys(each for fold in folds for each in fold.sets))
    columns = [column for column, _ in sets]
    sets.sort(key=lambda each: columns.index(each[0]))
    names = ("loss", "gains", "weights", "rows", "units")

    def aligned(fold: SliceSums) -> SliceSums:
        place = torch.tensor([sets.index(each) for each in fold.sets])
        sums = {n: (x := getattr(fold, n)).new_zeros((len(sets), *x.shape[1:])).index_copy(0, place, x) for n in names}
        return replace(fold, sets=tuple(sets), **sums)

    return functools.reduce(operator.add, map(aligned, folds))


def judge(folds: Sequence[FoldComparison], options: Options, factor: float | None = None) -> Judgement:
    """Decide whether the rows that prove show that a finalist is better than its rival, and worse in no slice, without
    changing too many labels or making one more wrong prediction so costly that it would undo the gain.

    Args:
        factor: see `dependence_of`.
    """
    o, folds = options, scaled_alike(folds)
    level = guard_level(o)
    verdict = decide_gain(folds, level=level, factor=factor, seed=o.seed)
    # A fleet's budget limits false accepts. A false veto costs a gain, never a model, so vetoes keep the level of one
    # run.
    worse = o.guard * verdict.level / level if o.guard < 1 else None
    if verdict.untested:
        return Judgement(verdict, worse)
    sliced = [fold.slices for fold in folds if fold.slices is not None]
    how: dict[str, Any] = {"level": worse or guard.TAIL, "dependence": dependence_of(folds, factor), "seed": o.seed}
    changes = slices.changes_from_sums(_of_all_folds(sliced), joined=verdict.joined, **how) if sliced else []
    weights = [float(fold.rows.weight.sum()) for fold in folds]
    each = [f.compatibility for f in folds if f.compatibility is not None]
    compared = compatibility.mean(each, weights) if each else None
    further = None
    if worse is not None and verdict.best >= 0 and (costs_of := [f.unseen for f in folds if f.unseen is not None]):
        every = torch.cat(costs_of)
        gain = sum(float((fold.rows.original - fold.rows.other).sum()) for fold in folds)
        further = unseen(gain, every, _training(folds))
    return Judgement(verdict, worse, tuple(changes), None, compared, o.maxFlipRate, unseen=further)
