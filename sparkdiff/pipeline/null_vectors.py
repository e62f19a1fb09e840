"""What readers make of a stage's vectors: who refuses the one that an encoder makes of null (every stage of Spark that reads it,
but an assembler that keeps NaN), and who tells the zeros that Spark stores from those that it doesn't.
"""

from collections.abc import Collection

from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.encoding import OneHotEncoder
from sparkdiff.stages.selecting import VectorSizeHint
from sparkdiff.tensors.rows import NEVER


def note_readers(graph: Graph, positions: Collection[int]) -> float:
    """Tell each of these stages what those that read its vectors make of them. Other stages are not run.

    Returns:
        the size of the numbers in vectors from outside from which on they must be stored as in Spark (`exact_beyond`).
    """
    exact: dict[Version, float] = {}
    for i in sorted(graph.modules.keys() & positions, reverse=True):
        module, vertex = graph.modules[i], graph.vertices[i]
        versions = [(graph.casefold(c), i) for c in vertex.outputs]
        if isinstance(module, OneHotEncoder):
            found = ((n, _refusing(graph, positions, v)) for n, v in zip(module.names, versions, strict=True))
            module.refusing = {name: uid for name, uid in found if uid}
        module.exact_beyond = min((exact.get(v, NEVER) for v in versions), default=NEVER)
        passed = NEVER if module.storage or module.makes_dense else module.exact_beyond
        for place, v in enumerate(vertex.reads):
            exact[v] = min(exact.get(v, NEVER), passed, module.tells_zeros_beyond(place))
    return min(exact.values(), default=NEVER)


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
