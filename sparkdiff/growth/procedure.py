"""The steps of a growth: rounds, parts that are dropped, the grown pipeline, and ensembles trained once more on other rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from pyspark.sql import DataFrame
from torch import Tensor

from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.checks import check_stored
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.evaluation.units import Units
from sparkdiff.fine_tuning.phases import run_folder
from sparkdiff.fine_tuning.task import check_runs
from sparkdiff.fine_tuning.values import Run
from sparkdiff.growth import rounds, running
from sparkdiff.growth.assembly import columns_last, cost_of, grown_pipeline
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.ground import GrowthStart
from sparkdiff.growth.inputs import room_of, specification_of, table_of
from sparkdiff.growth.parts import trees
from sparkdiff.growth.reporting import RoundProgress
from sparkdiff.growth.rounds import Grown, Limits, Member, mixed
from sparkdiff.growth.serving import Serving, check_cost
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.growth.table import Criterion, Table
from sparkdiff.options import Options
from sparkdiff.store.run_folder import TRAININGS, RunFolder, name_beside
from sparkdiff.tensors.device import torch_threads

ROUNDING = 1e-9
"""Share of the loss by which the original's may differ when it is computed by the grown pipeline's network."""
SHARE = 0.1
"""Of the gain over the original, which may be lost with all parts that go."""


def assembled(
    start: GrowthStart, members: Sequence[rounds.Member], serving: Serving, data: DataFrame, *, drop: bool
) -> Any:
    """The grown pipeline, see `grown_pipeline` and `columns_last`.

    Raises:
        SparkdiffError: it costs more than what was counted for its parts, or Spark can't run it.
    """
    made = grown_pipeline(start.model, start.head, members, start.indexers, start.mark)
    check_cost(serving, [m.part for m in members], cost_of(made, start.head, serving))
    check_runs(made, data)
    return columns_last(made, start.mark, data, drop=drop)


def grow_rounds(
    run: Run, start: GrowthStart, settings: GrowthSettings, serving: Serving, clock: Clock,
    *, replace: bool, memory: running.Memory | None = None,
) -> tuple[rounds.Grown, tuple[rounds.Member, ...]]:  # fmt: skip
    """What the rounds made without the parts that are not missed, and these.

    Args:
        memory: of earlier growths of the same pipeline on the same rows.
    """
    check_stored(run.network, run.data)  # as the training behind the rounds does
    o = run.task.options
    limits = rounds.Limits(settings.parts, settings.rounds, settings.complexity, o.seed, serving, settings.maxLoss)
    # The level of the guard and the size of the fleet decide what is dropped.
    beside = {"growth": settings.asdict(), "guard": o.guard, "fleetSize": o.fleetSize}
    with run.phases.phase("grow") as say:
        specification = specification_of(run)
        criterion, forecast = specification.criterion(), RoundProgress(settings.rounds)
        with (
            run_folder(run, o.runId and name_beside(o.runId, "-rounds"), replace=replace, beside=beside) as folder,
            running.runner(
                folder, specification, say.now, clock=clock, memory=memory,
                on_item=lambda *item: say.now(forecast.item(*item)),
            ) as train,
        ):  # fmt: skip
            table = table_of(run, start.known, _room(folder))
            grown = rounds.grow(table, criterion, limits, train, lambda tried: say.now(forecast.joined(tried)))
        with torch_threads(1):  # as in the rounds
            grown, gone = without_needless(grown, table, criterion, limits, o, settings.maxLoss)
        names = ", ".join(m.part.name for m in grown.members)
        say(f"{names}; {grown.stopped}" if names else grown.stopped)
        return grown, gone


@torch.no_grad()
def check_without_parts(run: Run, first: Score, width: int) -> None:
    """Compare the grown pipeline without what was added with the original.

    Args:
        run: of the grown pipeline.
        first: the original's validation metric, as growth measured it.
        width: the number of features that the head read before growth.

    Raises:
        ParityError: they differ by more than rounding.
    """
    original = run.network.clone()
    head = original.head
    weight = head.get_parameter("coefficientMatrix" if hasattr(head, "coefficientMatrix") else "coefficients")
    weight[..., width:] = 0.0
    own = score(original, run.data, VALIDATION, run.goal.metric)
    scale = float(first.blocks.abs().sum()) + 1e-300
    apart = float((first.blocks - own.blocks).abs().sum()) / scale
    if not torch.equal(first.weights > 0, own.weights > 0) or not apart < ROUNDING:
        raise ParityError(
            f"{run.task.model.uid}: without its parts the grown pipeline differs from the original by {apart:.1e} of the loss on "
            "validation rows, so nothing was changed. Report this as a bug"
        )


def grow_again(run: Run, start: GrowthStart, chosen: Sequence[tuple[int, str, int]]) -> tuple[rounds.Member, ...]:
    """Train ensembles of trees once more, on other rows; each joins with the weight 1.

    Args:
        run: of the rows, of which none is held out.
        chosen: the round, the name and the epochs of each.

    Raises:
        InputError: one diverges.
    """
    o, specification, members = run.task.options, specification_of(run), list[rounds.Member]()
    criterion = specification.criterion()
    with (
        run_folder(run, o.runId and name_beside(o.runId, "-rounds"), replace=True) as folder,
        running.runner(folder, specification) as train,
    ):
        table = table_of(run, start.known, _room(folder))
        original = criterion.score(table.validation.margin, table.validation)
        for number, name, epochs in chosen:
            items = trees.propose(table, criterion, rounds.seed_of(o.seed, number))
            [found] = train(
                number, [dataclasses.replace(i, epochs=epochs) for i in items if i.name == name], table, original.blocks
            )
            if found.part is None:
                raise InputError(f"{name} diverge on these rows")
            members.append(rounds.Member(found.part, 1.0, number))
            table = table.at(*(s.margin + found.part.output(s) for s in (table.train, table.validation)))
    return tuple(members)


def _room(folder: RunFolder) -> int:
    """See `room_of`; all growths of a run have the same."""
    of_run = folder.path.parent
    return room_of(of_run if of_run.name == TRAININGS else folder.path)


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
