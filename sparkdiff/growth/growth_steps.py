"""Steps of a growth: checks that refuse what growth can't work with, analysis of the pipeline, rounds that add parts, removal
of parts that contribute too little, assembly of the grown pipeline, and training of chosen ensembles of trees once more on
other rows. `describe_growth` is the plan of a growth, made before anything trains and without a Spark job.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import StringIndexer
from pyspark.sql import DataFrame
from pyspark.sql.types import NumericType, StringType
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.data.splits import VALIDATION, Boundaries, Source, field, fit_on_training_rows
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.row_checks import check_stored
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.evaluation.units import Units
from sparkdiff.fine_tuning.phases import open_checkpoints
from sparkdiff.fine_tuning.task import Run, Task, check_runs, prepare
from sparkdiff.growth import cost_table, item_runner, rounds
from sparkdiff.growth.assembly import columns_last, grown_pipeline, serving_of, unused_mark, width_of
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.growth_options import GAPS, KINDS, GrowthSettings
from sparkdiff.growth.part_inputs import (
    UNKNOWN,
    UpstreamColumn,
    cut_for,
    linear_head,
    room_of,
    specification_of,
    table_of,
    upstream_columns,
)
from sparkdiff.growth.parts import trees
from sparkdiff.growth.round_reports import RoundProgress
from sparkdiff.growth.rounds import GrowthResult, Limits, Member, fit_weights
from sparkdiff.growth.row_tensors import Column, Table
from sparkdiff.growth.serving_cost import ServingCostModel, check_cost, check_room
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.nesting import with_leaves
from sparkdiff.proof import division
from sparkdiff.report import RunPlan, counted
from sparkdiff.store.checkpoint_folder import TRAININGS, CheckpointFolder, name_beside
from sparkdiff.tensors.device import torch_threads

MOST_ENTITIES = 100_000
"""Largest number of distinct values of an entityCol. It is limited because each value has at least one coefficient in the
last stage."""


@dataclasses.dataclass(frozen=True)
class GrowthStart:
    """Starting point of a growth.

    Attributes:
        model: the user's pipeline.
        task: task for the pipeline with the indexers in front of its head. Its cut (the point up to which Spark runs the stages)
            also has the columns that parts may read.
        head: the last linear stage, in the user's pipeline.
        indexers: the fitted StringIndexers of the entities (columns that name users, items or shops).
        known: the columns that parts may read.
        mark: prefix of the uids and the columns of all added stages; no other uid or column begins with it.
        serving: serving costs of the pipelines that growth may make.
    """

    model: Any
    task: Task
    head: Vertex
    indexers: tuple[Any, ...]
    known: tuple[UpstreamColumn, ...]
    mark: str
    settings: GrowthSettings
    serving: ServingCostModel


def check_options(options: Options) -> None:
    """Raise InputError for options of fine-tuning that are not possible with growth."""
    if options.precision != "float64":
        raise InputError(
            f"precision={options.precision!r} is not possible with Grower: parts are trained in float64. Leave it out"
        )
    if "monotone" in options.penalties:
        raise InputError(
            "penalties: monotone is not possible with Grower, because parts are no linear functions of a feature: leave it out"
        )


def check_last_stage(settings: GrowthSettings) -> None:
    """Raise InputError if the added columns are to be dropped, but this Spark can't drop columns without naming all others."""
    if settings.dropColumns and not jvm.can_except():
        raise InputError(
            f"dropColumns=True needs Spark 4.0 or newer, and this is {jvm.session().version}: an SQLTransformer drops columns "
            "by `SELECT * EXCEPT (...)`. A list of the columns to keep would lose those that only rows to predict have. Leave "
            "dropColumns out, and drop the columns from what transform returns (docs/growing.md shows the code)"
        )


def check_entities(names: Sequence[str], task: Task, data: DataFrame) -> None:
    """Raise InputError if one of these columns can't be an entity.

    Refused are the label, the columns that it is made of, and timeCol, because they would leak the label; the weight, the columns
    that it is made of, and validationIndicatorCol; and columns with an unsuitable type or name.
    """
    o, casefold = task.options, task.cut.graph.casefold
    used = {
        "labelCol": task.labelCol,
        "weightCol": task.weightCol,
        "timeCol": o.timeCol,
        "validationIndicatorCol": o.validationIndicatorCol,
    }
    for name in names:
        kind = field(data, name, "entityCols").dataType
        if not isinstance(kind, (StringType, NumericType)):
            raise InputError(f"entityCols: column {name!r} is {kind.simpleString()}, but must hold strings or numbers")
        for option, column in used.items():
            if column is not None and casefold(column) == casefold(name):
                raise InputError(
                    f"entityCols: {name!r} is the {option}, so it cannot be an entity column: leave it out"
                )
        for option in ("labelCol", "weightCol"):
            made, column = f"{option}={used[option]!r}", used[option]
            makers = task.cut.graph.makers([column] if column is not None else [])
            if any(casefold(name) in (read for read, _ in vertex.sources) for vertex in makers):
                raise InputError(
                    f"entityCols: {made} is made of {name!r}, so it cannot be an entity column: leave it out"
                )
        if "." in name or "`" in name:
            raise InputError(
                f"entityCols: {name!r} has a dot or a backtick, which stages read as a field: rename the column"
            )


def prepare_growth(
    model: Any, options: Options, settings: GrowthSettings, sources: Sequence[Source], boundaries: Boundaries | None
) -> GrowthStart:
    """Analyse the pipeline and the schema of the rows, and fit StringIndexers to the entities, which takes a Spark job.

    Raises:
        InputError: the pipeline doesn't end in a linear stage, or an entityCol can't be used. The message says how to fix it.
    """
    data = sources[0].df
    plain = prepare(model, options, data)
    head = linear_head(plain.cut.graph)
    check_entities(settings.entityCols, plain, data)
    mark = unused_mark(model, f"{head.uid}_grown", data.columns)
    fitted = _indexers(mark, settings.entityCols, sources, options, boundaries)
    indexed = {name: (stage.getOutputCol(), (*stage.labels, UNKNOWN)) for name, stage in fitted.items()}
    task = plain
    if fitted:
        inserted = with_leaves(model, {head.path: [*fitted.values(), head.stage]})
        task = prepare(inserted if not isinstance(inserted, list) else PipelineModel(inserted), options, data)
    known = upstream_columns(task.cut.graph, data, indexed)
    task = dataclasses.replace(task, cut=cut_for(task, known))
    indexers = tuple(fitted.values())
    serving = serving_of(model, head, settings.maxServingCost, indexers)
    return GrowthStart(model, task, head, indexers, tuple(known), mark, settings, serving)


def _indexers(
    mark: str, names: Sequence[str], sources: Sequence[Source], options: Options, boundaries: Boundaries | None
) -> dict[str, Any]:
    """A StringIndexer for each entity, fitted to the training rows."""
    found: dict[str, Any] = {}
    for name in names:
        indexer = StringIndexer(
            inputCol=name, outputCol=f"{mark}_{name}_index", handleInvalid="keep", stringOrderType="alphabetAsc"
        )
        indexer = jvm.set_uid(indexer, f"{mark}_{name}_indexer")
        stage = fit_on_training_rows(indexer, sources, options, boundaries)
        if len(stage.labels) > MOST_ENTITIES:
            raise InputError(
                f"entityCols: column {name!r} has {len(stage.labels):,} values, more than {MOST_ENTITIES:,}: "
                "name a coarser column"
            )
        found[name] = stage
    return found


ROUNDING = 1e-9
"""Largest relative difference between the original's loss and the loss of the grown pipeline without its parts."""
SHARE = 0.1
"""Largest share of the gain over the original that all dropped parts together may cost."""


def assemble(start: GrowthStart, members: Sequence[rounds.Member], data: DataFrame) -> Any:
    """Assemble the grown pipeline, and check its serving cost; see `grown_pipeline` and `columns_last`.

    Raises:
        SparkdiffError: the cost of the assembled stages exceeds the limit or differs from the cost counted for the parts, or
            Spark can't run the pipeline.
    """
    made = grown_pipeline(start.model, start.head, members, start.indexers, start.mark)
    cost = cost_table.of_model(made, {start.head.inputs[0]: start.serving.features})
    check_cost(start.serving, [m.part for m in members], cost)
    check_runs(made, data)
    return columns_last(made, start.mark, data, drop=start.settings.dropColumns)


def grow_rounds(
    run: Run, start: GrowthStart, clock: Clock, memory: item_runner.ItemResultCache
) -> tuple[rounds.GrowthResult, tuple[rounds.Member, ...]]:
    """Run the rounds, and drop the parts that contribute too little (see `without_needless`).

    Args:
        memory: results of earlier growth runs of the same pipeline on the same rows.

    Returns:
        The result with the remaining parts, and the dropped parts.
    """
    check_stored(run.network, run.data)  # the training of all stages after the rounds checks this, too
    o, settings = run.task.options, start.settings
    limits = rounds.Limits(settings, start.serving, o.seed)
    # The guard's level and the fleet's size affect which parts are dropped.
    beside = {"growth": settings.asdict(), "guard": o.guard, "fleetSize": o.fleetSize}
    with run.phases.phase("grow") as say:
        specification = specification_of(run)
        criterion, forecast = specification.criterion(), RoundProgress(settings.rounds)
        with (
            open_checkpoints(run, o.runId and name_beside(o.runId, "-rounds"), replace=True, beside=beside) as folder,
            item_runner.runner(
                folder,
                specification,
                say.now,
                clock=clock,
                memory=memory,
                on_item=lambda *item: say.now(forecast.item(*item)),
            ) as train,
        ):
            table = table_of(run, start.known, _room(folder))
            grown = rounds.grow(table, criterion, limits, train, lambda tried: say.now(forecast.end_round(tried)))
        with torch_threads(1):  # as in the rounds
            grown, gone = without_needless(grown, table, criterion, limits, o)
        names = ", ".join(m.part.name for m in grown.members)
        say(f"{names}; {grown.stopped}" if names else grown.stopped)
        return grown, gone


@torch.no_grad()
def check_without_parts(run: Run, first: Score, width: int) -> None:
    """Check that the grown pipeline, with the coefficients of all added parts set to zero, has the original's losses.

    Args:
        run: run of the grown pipeline.
        first: the original's validation metric, as measured before the rounds.
        width: number of features that the head read before growth.

    Raises:
        ParityError: the losses differ by more than rounding.
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
            f"{run.task.model.uid}: without the added parts the grown pipeline should equal the original, but its loss on "
            f"validation rows differs by {apart:.1e}, relative to the loss; nothing was changed. Report this as a bug"
        )


def grow_again(run: Run, start: GrowthStart, chosen: Sequence[tuple[int, str, int]]) -> tuple[rounds.Member, ...]:
    """Train the chosen ensembles of trees once more, on other rows; each joins with the weight 1.

    Args:
        run: run on the other rows; all of them are training rows.
        chosen: round, name and number of epochs of each ensemble, from an earlier growth run.

    Raises:
        InputError: the training of an ensemble diverges.
    """
    o, specification, members = run.task.options, specification_of(run), list[rounds.Member]()
    criterion = specification.criterion()
    with (
        open_checkpoints(run, o.runId and name_beside(o.runId, "-rounds"), replace=True) as folder,
        item_runner.runner(folder, specification) as train,
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


def _room(folder: CheckpointFolder) -> int:
    """Size in bytes that rows may take (see `room_of`); the same number for all growth runs of one checkpoint folder."""
    of_run = folder.path.parent
    return room_of(of_run if of_run.name == TRAININGS else folder.path)


def without_needless(
    grown: GrowthResult, start: Table, criterion: Criterion, limits: Limits, options: Options
) -> tuple[GrowthResult, tuple[Member, ...]]:
    """Remove parts that contribute too little, one after another, beginning with the part whose removal costs the least.

    After each removal, the weights of the remaining parts are fitted again. A part is dropped if the validation rows show, at the
    guard's level, that removing this part and all parts dropped before makes the metric worse by less than `maxLoss` times the
    metric, and by less than a tenth of the gain of growth. (The guard is the statistical test on held-out rows.) With a timeCol
    no part is dropped: neighbouring rows depend on each other, so their evidence is not enough.

    Args:
        start: the table at the original's margin.

    Returns:
        The result with the remaining parts, and the dropped parts.
    """
    validation, gone = grown.table.validation, list[Member]()
    original = criterion.score(start.validation.margin, start.validation)
    whole = criterion.score(validation.margin, validation)
    spared = min(limits.settings.maxLoss * abs(whole.mean), SHARE * (original.mean - whole.mean))
    while spared > 0 and grown.members and options.timeCol is None:
        tries = []
        for i in range(len(grown.members)):
            rest = [m for j, m in enumerate(grown.members) if j != i]
            members, table = fit_weights(rest, start, criterion, limits) if rest else ((), start)
            tries.append((criterion.score(table.validation.margin, table.validation), members, table))
        least = min(range(len(tries)), key=lambda i: tries[i][0].mean)
        _, members, table = tries[least]
        losses = torch.stack([s.blocks - whole.blocks for s, *_ in tries])
        if not not_worse(losses, whole.weights, least, spared, options, int((validation.weight > 0).sum())):
            break
        gone.append(grown.members[least])
        grown = dataclasses.replace(grown, members=members, table=table)
    return grown, tuple(gone)


def not_worse(losses: Tensor, weights: Tensor, chosen: int, spared: float, options: Options, rows: int) -> bool:
    """True if the validation rows show that dropping the chosen part makes the metric worse by less than `spared`.

    Args:
        losses: (C, B) for each of C parts that could be dropped and each block of the guard (a group of rows), the sum of weight
            * (metric without the part and those dropped before - metric with all parts).
        weights: (B,) sums of the weights.
        chosen: index of the part.
        rows: number of validation rows with a weight above 0.
    """
    o = options
    level = o.guard / o.fleetSize if o.guard < 1 else 0.025
    units = Units(float((weights > 0).sum()), "groups") if o.groupCol else Units(rows)
    better = spared * weights - losses
    return guard.decide(better, weights, chosen=chosen, level=level, units=units, seed=o.seed).accepted


def describe_growth(model: Any, options: Options, settings: GrowthSettings, data: DataFrame) -> RunPlan:
    """The plan of growth of this fitted pipeline: what it would try on rows with this schema.

    Raises:
        InputError: the pipeline doesn't end in a linear stage, an option or an entityCol can't be used, the limit on the serving
            cost leaves no room for a part, or no library that fits trees is installed.
    """
    settings, _ = trees.without_trees(settings)
    check_options(options)
    check_last_stage(settings)
    task = prepare(model, options, data)
    graph = task.cut.graph
    head = linear_head(graph)
    check_entities(settings.entityCols, task, data)
    known = upstream_columns(graph, data, {})
    serving = serving_of(model, head, settings.maxServingCost)
    check_room(serving, settings.parts)
    limit = "no limit" if settings.maxServingCost is None else f"limit {serving.limit:.3g} us"
    costs = [
        f"serving costs {serving.before:.3g} us per row by the table of costs; {limit}",
        *cost_table.unknown(model),
    ]
    return RunPlan(
        f"growth of {model.uid}: {counted(settings.rounds, 'round')} at most, in each of which one part may join",
        {
            "rows": division.sentence([Source(data)], options),
            "head": f"parts join {head.stageClass} {head.uid}, beside its {width_of(head.stage)} features in {head.inputs[0]!r}",
            "columns": _columns([k.column for k in known], settings),
            "parts": _kinds(settings),
            "serving": "\n".join(costs),
        },
    )


def _columns(columns: list[Column], settings: GrowthSettings) -> list[dict[str, str]]:
    """The columns that parts may read, by name. A number that a StringIndexer reads is listed as a category and a number."""
    pairs = [(c.name, f"category with {c.levels} values" if c.levels else "number") for c in columns]
    kinds = [(name, kind) for name, kind in pairs if kind == "number" or name not in settings.entityCols]
    by_name = itertools.groupby(
        sorted([*kinds, *((name, "entity") for name in settings.entityCols)]), lambda pair: pair[0]
    )
    return [
        {"column": name, "parts may read it as": " and ".join(kind for _, kind in found)} for name, found in by_name
    ]


def _kinds(settings: GrowthSettings) -> list[dict[str, str]]:
    """The kinds of parts, and the stages that they add."""
    rows = [(name, KINDS[name].does, ", ".join(KINDS[name].stages)) for name in settings.parts]
    if set(settings.parts) - {"units"}:
        rows.append(("all", "where a column lacks values", ", ".join(GAPS)))
    rows.append(("all", "to join the features", "VectorSizeHint, VectorAssembler"))
    if jvm.can_except():
        rows.append(
            ("all", f"to {'drop' if settings.dropColumns else 'put last'} the columns that are added", "SQLTransformer")
        )
    return [{"part": part, "does": does, "stages that it adds": stages} for part, does, stages in rows]
