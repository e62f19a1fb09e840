"""Requirements of the stages that read a vector on the stages that write it. Every stage of Spark except an assembler
that keeps NaN refuses the null vector that a OneHotEncoder makes from null; a few stages distinguish zeros that Spark
stores from zeros that it doesn't store.
"""

from collections.abc import Collection

from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.stages.selecting import VectorSizeHint
from sparkdiff.tensors.rows import NEVER


def note_readers(graph: Graph, positions: Collection[int], later: Collection[int] = ()) -> float:
    """Set `refusing` and `exact_beyond` of each of these stages to what the readers of its vectors require. Only these
    stages run in the network.

    Args:
        later: stages that Spark runs on what the network writes. They may distinguish stored zeros of any vector.

    Returns:
        `exact_beyond` for vectors from outside the network: if a number is larger in magnitude than this, the vectors
            must stay dense or sparse as Spark stores them.
    """
    exact: dict[Version, float] = {v: -1.0 for i in later for v in graph.vertices[i].sources}
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
