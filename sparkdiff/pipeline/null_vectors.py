"""Who refuses the vector that an encoder makes of null: every stage of Spark that reads one, but an assembler that keeps NaN."""

from collections.abc import Collection

from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.encoding import OneHotEncoder
from sparkdiff.stages.selecting import VectorSizeHint


def note_readers(graph: Graph, positions: Collection[int]) -> None:
    """Tell each encoder among these stages which of them refuses its null vectors. Other stages are not run."""
    for i in positions:
        module, vertex = graph.vertices[i].module, graph.vertices[i]
        if isinstance(module, OneHotEncoder):
            versions = ((name, (graph.casefold(c), i)) for name, c in zip(module.names, vertex.outputs, strict=True))
            found = ((name, _refusing(graph, positions, version)) for name, version in versions)
            module.refusing = {name: uid for name, uid in found if uid}


def _refusing(graph: Graph, positions: Collection[int], version: Version) -> str:
    """The uid of a stage that refuses null in this column; empty if none does."""
    for i in positions:
        vertex = graph.vertices[i]
        if version not in vertex.reads:
            continue
        if isinstance(vertex.module, VectorSizeHint) and not vertex.module.checks:  # it passes the column on
            if uid := _refusing(graph, positions, (graph.casefold(vertex.outputs[0]), i)):
                return uid
        elif not (isinstance(vertex.module, VectorAssembler) and vertex.module.keep):
            return vertex.uid
    return ""
