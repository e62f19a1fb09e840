"""Assembly of the grown pipeline: the user's stages, the added MLlib stages, and the user's last linear stage, which
then reads the outputs of the added stages, too. A member is a part (a group of added stages) that has joined."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler, VectorSizeHint
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.growth import cost_table
from sparkdiff.growth.part import Output, PipelinePlace
from sparkdiff.growth.rounds import Member
from sparkdiff.growth.serving_cost import ServingCostModel
from sparkdiff.jvm.coefficients import matrix_of, stored_of, with_coefficients
from sparkdiff.pipeline.graph import Vertex
from sparkdiff.pipeline.nesting import flatten, with_leaves
from sparkdiff.stages.base import columns_of


def grown_pipeline(model: Any, head: Vertex, members: Sequence[Member], before: Sequence[Any], mark: str) -> Any:
    """A pipeline of plain MLlib with the members' stages in front of the last linear stage. The model itself is not changed.

    The last stage keeps its uid and its Params except featuresCol: it now reads a vector that begins with its former features.

    Args:
        members: the parts that have joined, with their weights.
        before: StringIndexers of the entities (columns that name users, items or shops). Only indexers whose output a member
            reads are added, in front of the members' stages.
        mark: prefix of the uid and the columns of each added stage.
    """
    stage, (features, *_) = head.stage, head.inputs
    outputs: list[Output] = []
    # The assembler fails if the metadata of future rows lack the number of features.
    hint = VectorSizeHint(inputCol=features, size=width_of(stage), handleInvalid="optimistic")
    stages = [jvm.set_uid(hint, f"{mark}_size")]
    for i, member in enumerate(members):
        place = PipelinePlace(features, width_of(stage), f"{mark}_{member.part.kind}{i + 1}", _classes(stage))
        made = member.part.stages(place)
        stages += made.stages
        outputs += [Output(o.column, member.weight * np.asarray(o.coefficients)) for o in made.outputs]
    read = {column for made in stages for column in columns_of(made, ("inputCol", "inputCols"))}
    stages = [*(indexer for indexer in before if indexer.getOutputCol() in read), *stages]
    columns = [features, *(o.column for o in outputs)]
    assembler = VectorAssembler(inputCols=columns, outputCol=mark, handleInvalid="keep")
    assembler = jvm.set_uid(assembler, f"{mark}_assembler")
    last = with_output_coefficients(stage.copy({stage.getParam("featuresCol"): mark}), outputs)
    found = with_leaves(model, {head.path: [*stages, assembler, last]})
    return PipelineModel(found) if isinstance(found, list) else found


def columns_last(made: Any, mark: str, data: DataFrame, *, drop: bool) -> Any:
    """The grown pipeline with a last stage that puts the columns of the added stages behind all others, or drops them.

    Return the pipeline unchanged if this Spark has no `SELECT * EXCEPT`, or if no stage has added a column.

    Args:
        mark: prefix of the names of all added columns.
        data: rows that the pipeline reads; only their schema is used, so no job runs.
        drop: True to drop the columns.
    """
    added = [column for column in made.transform(data).columns if column.startswith(mark)]
    if not added or not jvm.can_except():
        return made
    path, stage = flatten(made)[-1]
    return with_leaves(made, {path: [stage, jvm.selecting(added, () if drop else added, f"{mark}_columns")]})


def serving_of(model: Any, head: Vertex, limit: float | None, indexers: Sequence[Any] = ()) -> ServingCostModel:
    """Serving costs of the pipelines that `grown_pipeline` makes.

    Args:
        limit: largest cost as a multiple of the pipeline's current cost; None for no limit.
        indexers: StringIndexers of the entities, as `before` in `grown_pipeline`.
    """
    stage, (features, *_) = head.stage, head.inputs
    entries = cost_table.filled_by_model(model).get(features, float(width_of(stage)))
    before = cost_table.of_model(model, {features: entries})
    most = math.inf if limit is None else limit * before
    indexed = frozenset(indexer.getOutputCol() for indexer in indexers)
    return ServingCostModel(before, most, type(stage).__name__, max(_classes(stage), 1), entries, indexed)


def unused_mark(model: Any, wanted: str, columns: Sequence[str]) -> str:
    """A prefix that no uid and no column of the pipeline begins with, so that a grown pipeline can be grown again."""
    uids = [stage.uid for _, stage in flatten(model)]
    taken = [
        *uids,
        *columns,
        *(c for _, stage in flatten(model) for c in columns_of(stage, ("outputCol", "outputCols"))),
    ]
    mark, number = wanted, 1
    while any(name.startswith(mark) for name in taken):
        number += 1
        mark = f"{wanted}{number}"
    return mark


def _classes(stage: Any) -> int:
    """Number of margins of a softmax stage; 0 if the stage has only one margin."""
    rows = stage.coefficientMatrix.numRows if hasattr(stage, "coefficientMatrix") else 1
    return int(rows) if rows > 1 else 0


def width_of(stage: Any) -> int:
    return int(stage.numFeatures)


def with_output_coefficients(stage: Any, outputs: Sequence[Output]) -> Any:
    """The last linear stage with the outputs' coefficients behind its own; same class, uid, intercept and Params.

    Zeros that its sparse coefficients do not store stay unstored.
    """
    more = [np.atleast_2d(o.coefficients) for o in outputs]
    matrix = np.concatenate([matrix_of(stage), *more], axis=1)
    stored = np.concatenate([stored_of(stage), *(np.ones_like(m, np.bool_) for m in more)], axis=1)
    return with_coefficients(stage, matrix, stored=stored)
