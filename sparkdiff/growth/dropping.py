"""Parts that are not missed: removed once the rounds are over, by a test of non-inferiority."""

import dataclasses

import torch
from torch import Tensor

from sparkdiff.evaluation import guard
from sparkdiff.evaluation.units import Units
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.rounds import Grown, Limits, Member, mixed
from sparkdiff.growth.table import Table
from sparkdiff.options import Options

SHARE = 0.1
"""Of the gain over the original, which may be lost with all parts that go."""


def without_needless(
    grown: Grown, start: Table, criterion: Criterion, limits: Limits, options: Options, maxLoss: float
) -> tuple[Grown, tuple[Member, ...]]:  # fmt: skip
    """Remove the parts that are not missed, one after another, the one that is missed least first.

    The weights of the others are fitted again. A part goes if the validation rows show, at the guard's level, that the metric is
    worse by less than `maxLoss` of itself without it and without all that went before, and by less than a tenth of what growth
    has gained. With a timeCol none goes: what neighbouring rows show is not enough.

    Args:
        start: the table at the original's margin.

    Returns:
        what is left, and the parts that went.
    """
    validation, gone = grown.table.validation, list[Member]()
    original = criterion.score(start.validation.margin, start.validation)
    whole = criterion.score(validation.margin, validation)
    spared = min(maxLoss * abs(whole.mean), SHARE * (original.mean - whole.mean))
    while spared > 0 and grown.members and options.timeCol is None:
        tries = []
        for i in range(len(grown.members)):
            rest = [m for j, m in enumerate(grown.members) if j != i]
            members, table = mixed(rest, start, criterion, limits) if rest else ((), start)
            tries.append((criterion.score(table.validation.margin, table.validation), members, table))
        least = min(range(len(tries)), key=lambda i: tries[i][0].mean)
        _, members, table = tries[least]
        losses = torch.stack([s.blocks - whole.blocks for s, *_ in tries])
        if not not_worse(losses, whole.weights, least, spared, options, int((validation.weight > 0).sum())):
            break
        gone.append(grown.members[least])
        grown = dataclasses.replace(grown, members=members, table=table)
    return grown, tuple(gone)


def not_worse(
    losses: Tensor, weights: Tensor, chosen: int, spared: float, options: Options, rows: int
) -> bool:  # fmt: skip
    """Whether the rows show that what was chosen is worse by less than this.

    Args:
        losses: (C, B) sums of weight * (metric - metric of the whole) of all C that could have been chosen.
    """
    o = options
    level = o.guard / o.fleetSize if o.guard < 1 else 0.025
    units = Units(float((weights > 0).sum()), "groups") if o.groupCol else Units(rows)
    better = spared * weights - losses
    return guard.decide(better, weights, chosen=chosen, level=level, units=units, seed=o.seed).accepted
