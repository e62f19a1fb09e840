"""The dependence of gains on out-of-fold rows, which the test of a finalist allows for.

The rows are dealt into folds. For each fold, an original and a tuned network were made of the rows outside of it, in
the same way, and measured on its own rows. No row that decides has been seen by the networks that it judges, what was
tried and chosen on the way included, so there is one column of gains and no choice to allow for (`guard.decide`). The
question is about the procedure: is what it returns better, on rows that it has not seen, than what it starts from? The
model that ships is made by the same procedure of all rows, and none of them can judge it once more.

The gains of rows of different folds are not independent: each row has trained the networks of all other folds. Take row
i's gain as a part that i alone decides, and one for each training row j, b(i, j), that is 0 on the mean over i and over
j; training by small steps is exactly that, as a gradient is a sum over rows. Two gains g_i and g_j are then correlated
only where i has trained what judges j and j what judges i, E[g_i g_j] = E[b(i, j) b(j, i)], and by Cauchy and Schwarz
this adds to the variance of the sum of all gains at most the sum of all E[b(i, j)^2]: what the training rows decide
counts twice,

    Var(sum g) <= sum E[g^2] + sum E[b^2],  at most 2 sum E[g^2].

The bound is reached where it hurts: if nothing can be gained and the tuned network has moved a little by chance, its
gains are all b, and symmetric. A paired test that ignores this accepts up to 8% instead of 2.5%, the more the more
parameters train. (Bengio and Grandvalet 2004 show that no estimate of this variance from one cross-validation is
unbiased; Nadeau and Bengio 2003 take a factor of 1 + K / (K - 1), 2.25 for five folds, as a rule of thumb.) A true
gain, though, is mostly in the part that i alone decides, so that a factor of 2 would give away half of the rows. How
much the training rows decide shows where the folds disagree: the networks of the K - 1 other folds have all trained on
row i, each without one more fold, and the variance of their gains on it is 1 / (K - 1) of the sum of b(i, j)^2. That
row i itself has trained them moves all of them alike. So the factor is estimated, between 1 and 2. Rows that happen to
favour a direction raise the score and lower the estimated factor; the two together keep the level for any number of
parameters (benchmarks/proof_size.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 2.0
"""The largest factor of the variance, taken where it can't be estimated."""
FEWEST = 3
"""Folds from which on it can be estimated."""


@dataclass(frozen=True)
class FoldSums:
    """What the networks of one fold show on the rows, as sums over blocks that are the same in all folds.

    Attributes:
        gains: (B,) sums of weight * (loss of the original - loss of the tuned network) on the rows of the fold.
        weights: (B,) sums of the weights there.
        elsewhere: (B,) the gains of the same two networks on the rows of all other folds, which trained them. They only tell
            how much the folds' networks disagree, and are used where no block has rows of several folds.
    """

    gains: Tensor
    weights: Tensor
    elsewhere: Tensor | None = None


def dependence(folds: Sequence[FoldSums]) -> float:
    """The variance of the sum of the out-of-fold gains, as a multiple of that of independent gains; from 1 to 2."""
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
