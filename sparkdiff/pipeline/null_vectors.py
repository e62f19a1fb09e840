"""The requirements of the stages that read a vector. Every stage of Spark except an assembler that keeps NaN refuses
the null vector that an encoder makes from null; a few stages distinguish zeros that Spark stores from those that it
doesn't.
"""

from collections.abc import Collection

from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.stages.selecting import VectorSizeHint
from sparkdiff.tensors.rows import NEVER


def note_readers(graph: Graph, positions: Collection[int]) -> float:
    """Set in each of these stages what the readers of its vectors require (`refusing`, `exact_beyond`). Other stages
    are not run.

    Returns:
        the magnitude of the numbers in vectors from outside above which they must be stored as in Spark
            (`exact_beyond`).
    """
    exact: dict[Version, float] = {}
    refusing: dict[Version, str] = {}  # the uid of the first stage that refuses null
    for i in sorted(graph.modules.keys() & positions, reverse=True):
        module, vertex = graph.modules[i], graph.vertices[i]
        versions = [(graph.casefold(c), i) for c in vertex.outputs]
        if isinstance(module, OneHotEncoder):
            module.refusing = {n: refusing[v] for n, v in zip(module.names, versions, strict=True) if refusing.get(v)}
        module.exact_beyond = min((exact.get(v, NEVER) for v in versions), default=NEVER)
        passed = NEVER if module.storage or module.makes_dense else module.exact_beyond
        uid = "" if isinstance(module, VectorAssembler) and module.keep else vertex.uid
        if isinstance(module, VectorSizeHint) and not module.checks:  # it passes the column on
            uid = refusing.get(versions[0], "")
        for place, v in enumerate(vertex.reads):
            exact[v] = min(exact.get(v, NEVER), passed, module.tells_zeros_beyond(place))
            refusing[v] = uid or refusing.get(v, "")
    return min(exact.values(), default=NEVER)
