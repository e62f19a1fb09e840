"""The steps of a growth: rounds, the grown pipeline, and ensembles that are trained once more on other rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from pyspark.sql import DataFrame

from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.checks import check_stored
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.fine_tuning.phases import run_folder
from sparkdiff.fine_tuning.task import check_runs
from sparkdiff.fine_tuning.values import Run
from sparkdiff.growth import rounds, running
from sparkdiff.growth.assembly import columns_last, cost_of, grown_pipeline
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.dropping import without_needless
from sparkdiff.growth.ground import GrowthStart
from sparkdiff.growth.inputs import room_of, specification_of, table_of
from sparkdiff.growth.parts import trees
from sparkdiff.growth.reporting import RoundProgress
from sparkdiff.growth.serving import Serving, check_cost
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.store.run_folder import TRAININGS, RunFolder, name_beside
from sparkdiff.tensors.device import torch_threads

ROUNDING = 1e-9
"""Share of the loss by which the original's may differ when it is computed by the grown pipeline's network."""


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
