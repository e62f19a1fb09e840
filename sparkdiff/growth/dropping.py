"""Parts that are not missed: removed once the rounds are over, by a test of non-inferiority."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from sparkdiff.evaluation import guard
from sparkdiff.evaluation.ledger import Trial
from sparkdiff.evaluation.scores import Score
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.rounds import Grown, Limits, Member, mixed
from sparkdiff.growth.table import Table
from sparkdiff.options import Options


def without_needless(
    grown: Grown, start: Table, criterion: Criterion, limits: Limits, options: Options, maxLoss: float
) -> tuple[Grown, tuple[Member, ...]]:  # fmt: skip
    """Remove the parts that are not missed, one after another, the one that is missed least first.

    The weights of the others are fitted again. A part goes if the validation rows show, at the guard's level, that the metric is
    worse by less than `maxLoss` of itself without it and without all that went before.

    Args:
        start: the table at the original's margin.

    Returns:
        what is left, and the parts that went.
    """
    validation, gone = grown.table.validation, list[Member]()
    original = criterion.score(start.validation.margin, start.validation)
    whole = criterion.score(validation.margin, validation)
    gains, trials = [grown.gains], list(grown.trials)
    while maxLoss > 0 and grown.members:
        tries = []
        for i in range(len(grown.members)):
            rest = [m for j, m in enumerate(grown.members) if j != i]
            members, table = mixed(rest, start, criterion, limits) if rest else ((), start)
            tries.append((criterion.score(table.validation.margin, table.validation), members, table))
        gains += [(original.blocks - score.blocks)[None] for score, *_ in tries]
        trials += [Trial(i, 0, f"without {m.part.name}") for i, m in enumerate(grown.members)]
        least = min(range(len(tries)), key=lambda i: tries[i][0].mean)
        score, members, table = tries[least]
        if not not_worse(whole, score, maxLoss, options, int((validation.weight > 0).sum())):
            break
        gone.append(grown.members[least])
        grown = dataclasses.replace(grown, members=members, table=table)
    return dataclasses.replace(grown, gains=torch.cat(gains), trials=tuple(trials)), tuple(gone)


def not_worse(whole: Score, less: Score, maxLoss: float, options: Options, rows: int) -> bool:
    """Whether the rows show that the second metric is worse than the first by less than this share of it."""
    o = options
    level = o.guard / o.fleetSize if o.guard < 1 else 0.025
    spared: Tensor = maxLoss * abs(whole.mean) * whole.weights - (less.blocks - whole.blocks)
    unit: Literal["rows", "groups", "blocks"] = "groups" if o.groupCol else "blocks" if o.timeCol else "rows"
    units = rows if unit == "rows" else None
    if (units or int((whole.weights > 0).sum())) < guard.MIN_UNITS:
        return False
    return guard.decide(spared[None], whole.weights, level=level, unit=unit, units=units, seed=o.seed).accepted
