"""The dependence between gains on out-of-fold rows. The test of a finalist (one of the few pipelines that remain for
the final test) takes it into account.

The rows are divided into folds. For each fold, an original and a tuned network were made from the rows outside of it,
in the same way, and measured on the fold's own rows. So the networks that are measured on a row have not seen it, and
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
factor is estimated, between 1 and 2 (`proof.decision` takes at least 1.5). Rows that by chance favour one direction
raise the score and lower the estimated factor, so both favour acceptance; simulations show that the test keeps its
level all the same, for any number of parameters (benchmarks/proof_size.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
