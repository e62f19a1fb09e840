"""The plan of a growth, as text: what may join where, before anything trains and without a Spark job."""

from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.splits import Source
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.growth import costs
from sparkdiff.growth.assembly import serving_of, width_of
from sparkdiff.growth.checks import check_entities, check_last_stage, check_options
from sparkdiff.growth.inputs import linear_head, upstream_columns
from sparkdiff.growth.parts import trees
from sparkdiff.growth.serving import check_room
from sparkdiff.growth.settings import GAPS, KINDS, GrowthSettings
from sparkdiff.growth.table import Column
from sparkdiff.options import Options
from sparkdiff.proof import division
from sparkdiff.report import aligned


def described(model: Any, options: Options, settings: GrowthSettings, data: DataFrame) -> str:
    """What growth of this fitted pipeline would try on rows of this schema.

    Raises:
        InputError: the pipeline ends in no linear stage, an entityCol cannot be used, the cost limit leaves no room, or
            no library finds trees.
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
    return "\n".join(
        [
            f"growth of {model.uid}: {settings.rounds} rounds at most, in each of which one part may join",
            division.sentence([Source(data)], options),
            f"parts join {head.stageClass} {head.uid}, beside its {width_of(head.stage)} features in {head.inputs[0]!r}",
            "columns that parts may read:",
            *_columns([k.column for k in known], settings),
            "kinds of parts, and the stages that they add:",
            *_kinds(settings),
            f"serving costs {serving.before:.3g} us per row by the table of costs; {limit}",
            *costs.unknown(model),
        ]
    )


def _columns(columns: list[Column], settings: GrowthSettings) -> list[str]:
    """A line for each name; a StringIndexer's input of numbers is both a category and a number."""
    found: dict[str, list[str]] = {}
    for c in columns:
        if not (c.levels and c.name in settings.entityCols):
            found.setdefault(c.name, []).append(f"category with {c.levels} values" if c.levels else "number")
    for name in settings.entityCols:
        found.setdefault(name, []).append("entity")
    return aligned([(f"  {name}", " and ".join(sorted(kinds))) for name, kinds in found.items()], left=(0, 1))


def _kinds(settings: GrowthSettings) -> list[str]:
    rows = [(f"  {name}", KINDS[name].does, ", ".join(KINDS[name].stages)) for name in settings.parts]
    gaps = ("  all", "where a column lacks values", ", ".join(GAPS))
    joined = ("  all", "to join the features", "VectorSizeHint, VectorAssembler")
    does = "to drop the columns that are added" if settings.dropColumns else "to put the columns that are added last"
    last = [("  all", does, "SQLTransformer")] if jvm.can_except() else []
    return aligned([*rows, *([gaps] if set(settings.parts) - {"units"} else []), joined, *last], left=(0, 1, 2))
