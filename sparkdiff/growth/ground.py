"""What growth starts from: the pipeline, its last linear stage, and the columns that parts may read."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.ml.feature import StringIndexer

from sparkdiff import jvm
from sparkdiff.data.splits import Boundaries, Source, fit_on_training_rows
from sparkdiff.errors import InputError
from sparkdiff.fine_tuning.task import Task, prepare
from sparkdiff.growth.assembly import unused_mark
from sparkdiff.growth.checks import check_entities
from sparkdiff.growth.inputs import UNKNOWN, Known, cut_for, linear_head, upstream_columns
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.nesting import replaced

MOST_ENTITIES = 100_000
"""Values of an entityCol at most: each has a coefficient in the last stage, or more."""


@dataclasses.dataclass(frozen=True)
class GrowthStart:
    """What growth starts from.

    Attributes:
        model: the pipeline as it was given.
        task: of the pipeline with indexers of the entities in front of its head; the cut has the growth's columns.
        head: the last linear stage, in the pipeline as it was given.
        indexers: the fitted StringIndexers of the entities.
        known: the columns that parts may read.
        mark: begins the uids and the columns of all stages that are added, and no other.
    """

    model: Any
    task: Task
    head: Vertex
    indexers: tuple[Any, ...]
    known: tuple[Known, ...]
    mark: str


def ground(
    model: Any, options: Options, entities: Sequence[str], sources: Sequence[Source], boundaries: Boundaries | None
) -> GrowthStart:  # fmt: skip
    """Look at the pipeline and the schema of the rows, and index the entities, whose values need a job.

    Raises:
        InputError: the pipeline ends in no linear stage, or an entityCol cannot be used; says what to do.
    """
    data = sources[0].df
    plain = prepare(model, options, data)
    head = linear_head(plain.cut.graph)
    check_entities(entities, plain, data)
    mark = unused_mark(model, f"{head.uid}_grown", data.columns)
    fitted = _indexers(mark, entities, sources, options, boundaries)
    indexed = {name: (stage.getOutputCol(), (*stage.labels, UNKNOWN)) for name, stage in fitted.items()}
    task = plain
    if fitted:
        inserted = replaced(model, {head.path: [*fitted.values(), head.stage]})
        task = prepare(inserted if not isinstance(inserted, list) else PipelineModel(inserted), options, data)
    known = upstream_columns(task.cut.graph, data, indexed)
    task = dataclasses.replace(task, cut=cut_for(task, known))
    return GrowthStart(model, task, head, tuple(fitted.values()), tuple(known), mark)


def _indexers(
    mark: str, names: Sequence[str], sources: Sequence[Source], options: Options, boundaries: Boundaries | None
) -> dict[str, Any]:
    """A StringIndexer for each entity, fitted to the training rows."""
    found: dict[str, Any] = {}
    for name in names:
        indexer = StringIndexer(
            inputCol=name, outputCol=f"{mark}_{name}_index", handleInvalid="keep", stringOrderType="alphabetAsc"
        )
        indexer = jvm.named(indexer, f"{mark}_{name}_indexer")
        stage = fit_on_training_rows(indexer, sources, options, boundaries)
        if len(stage.labels) > MOST_ENTITIES:
            raise InputError(
                f"entityCols: column {name!r} has {len(stage.labels):,} values, more than {MOST_ENTITIES:,}: "
                "name a coarser column"
            )
        found[name] = stage
    return found
