"""Deletion of single stages from a fitted pipeline: the readers of the deleted stage's output read its input instead.

Unlike folding, a deletion changes the pipeline's outputs; the caller decides whether the result is good enough.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pyspark.ml import Model
from pyspark.sql.types import StructType

from sparkdiff.pipeline.nesting import Path, plain, with_leaves
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.serving.compact.affine_maps import RefusedError
from sparkdiff.serving.compact.folding import check_input
from sparkdiff.serving.compact.folding_state import (
    ReadColumn,
    StageFacts,
    State,
    is_assembler,
    left_out,
    reading,
    reads_of,
    selection_replacements,
    unchangeable_stages,
)
from sparkdiff.stages.base import class_name

KINDS: Mapping[str, str] = {
    "StandardScalerModel": "scaling",
    "RobustScalerModel": "scaling",
    "MinMaxScalerModel": "scaling",
    "MaxAbsScalerModel": "scaling",
    "Normalizer": "scaling",
    "ElementwiseProduct": "weights",
    "IDFModel": "weights",
    "PCAModel": "projection",
    "DCT": "projection",
    "PolynomialExpansion": "expansion",
    "VectorSlicer": "selection",
    "ChiSqSelectorModel": "selection",
    "UnivariateFeatureSelectorModel": "selection",
    "VarianceThresholdSelectorModel": "selection",
    "VectorIndexerModel": "categories",
}
"""Classes of `pyspark.ml.feature` that turn one vector into one vector, and the kind of their effect."""
SAME_WIDTH = frozenset({"scaling", "weights", "categories"})
BY_ENTRY = (
    "scalingVec",
    "indices",
    "names",
    "size",
    "lowerBoundsOnCoefficients",
    "upperBoundsOnCoefficients",
    "initialWeights",
)
"""Params that refer to single entries of a vector, or to their number."""


@dataclasses.dataclass(frozen=True)
class Deletion:
    """A pipeline without one of its stages.

    Attributes:
        uid: the uid of the deleted stage.
        stageClass: its class.
        mustRefit: uids of the fitted stages that depend on the deleted stage's output, in the order of the pipeline, if
            they must be refitted because vectors have, or may have, another width now; else empty.
        pipeline: the pipeline without the stage; the stage's readers read its input instead. The columns are wired
            correctly, but the stages in `mustRefit`, if any, must be refitted before use.
    """

    uid: str
    stageClass: str
    mustRefit: tuple[str, ...]
    pipeline: Any


def deletions(model: Any, schema: StructType | None = None) -> tuple[Deletion, ...]:
    """Possible deletions of one stage each, in the order of the pipeline. Runs no job.

    A stage can be deleted if it turns one vector into one vector, another stage reads that vector, and all stages that
    read it can read the deleted stage's input instead. The model itself is never changed.

    Args:
        model: a fitted `PipelineModel`.
        schema: the schema of the data, whose metadata may have the widths of vectors.

    Raises:
        InputError: the pipeline is not fitted.
    """
    model = plain(model)
    graph = graph_of(model)
    state = State(StageFacts(graph, schema), frozenset(), unchangeable_stages(graph), reads_of(graph))
    found = []
    for i in range(len(graph.vertices)):
        try:
            found.append(_without(model, state, i))
        except RefusedError:
            continue
    return tuple(found)


def _without(model: Any, state: State, i: int) -> Deletion:
    """The pipeline without stage i.

    Raises:
        RefusedError: the stage cannot be deleted.
    """
    vertex = state.vertex(i)
    module, _, kind = class_name(vertex.stage).rpartition(".")
    if module != "pyspark.ml.feature" or kind not in KINDS or i in state.pinned or vertex.drops_rows:
        raise RefusedError("it does not make one vector of one vector")
    readers = state.readers(i)
    if not readers:
        raise RefusedError("nobody reads it")
    [read] = state.reads[i]
    new: dict[Path, Any] = {vertex.path: left_out(model, vertex.path)} | selection_replacements(
        model, state.graph, [i], {}
    )
    for j in readers:
        if j in state.pinned or ("." in read.spelled and state.vertex(j).stage.hasParam("featuresCol")):
            raise RefusedError("a reader cannot read its input")
        state.check_visible(read.version, j, i)
        if is_assembler(state.vertex(j).stage):
            check_input(state, i)
        now = tuple(read.spelled if r.version[1] == i else r.spelled for r in state.reads[j])
        new[state.vertex(j).path] = reading(state.vertex(j).stage, state.vertex(j), now)
    behind = tuple(state.vertex(j).uid for j in state.behind(i) if isinstance(state.vertex(j).stage, Model))
    must = () if KINDS[kind] in SAME_WIDTH or _same_width(state, i, read) else behind
    if must:
        new |= _width_replacements(state, i, read, new)
    return Deletion(vertex.uid, vertex.stageClass, must, with_leaves(model, new))


def _same_width(state: State, i: int, read: ReadColumn) -> bool:
    widths = state.facts.width(read.version), state.facts.width(state.graph.versions(i)[0])
    return type(state.vertex(i).stage).__name__ == "DCT" or (None not in widths and widths[0] == widths[1])


def _width_replacements(state: State, i: int, read: ReadColumn, new: Mapping[Path, Any]) -> dict[Path, Any]:
    """Stages whose Params hold the width of the vector, with the new width.

    Raises:
        RefusedError: a Param of BY_ENTRY is set; `layers` or a PCA depends on a width that is unknown; or a PCA would have
            more components than its vectors have entries.
    """
    was, now = state.facts.width(state.graph.versions(i)[0]), state.facts.width(read.version)
    out: dict[Path, Any] = {}
    for j in state.behind(i, only_assemblers=True):
        stage = new.get(state.vertex(j).path, state.vertex(j).stage)
        if any(stage.hasParam(name) and stage.isSet(name) for name in BY_ENTRY):
            raise RefusedError(f"{stage.uid} has a setting for each entry")
        if stage.hasParam("layers") or class_name(stage) == "pyspark.ml.feature.PCAModel":
            if was is None or now is None:
                raise RefusedError(f"{stage.uid} has to know how wide its vectors are")
            if stage.hasParam("layers"):
                first, *rest = stage.getOrDefault("layers")
                out[state.vertex(j).path] = stage.copy({stage.getParam("layers"): [first - was + now, *rest]})
            elif stage.getK() > stage.pc.numRows - was + now:
                raise RefusedError(f"{stage.uid} would make more components than its vectors have entries")
    return out
