"""Names and kinds of the entries of feature vectors (slots), from Spark's `ml_attr` metadata."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.stages.inputs import slots_of
from sparkdiff.tensors.rows import Rows, SparseRows, width


def entering(network: Network) -> list[Version]:
    """Column versions through which features enter the trainable part: stages with parameters read them, and they
    depend on no parameter. Identifiers do not count as features.
    """
    plain: set[int] = set()
    for i in network.positions:
        parents = {p for _, p in network.graph.vertices[i].reads if p in network.positions}
        module = network.module(i)
        if parents <= plain and not any(True for _ in module.parameters()) and not module.on_request():
            plain.add(i)
    features = (i for i in network.positions if i not in plain and not network.module(i).reads_identifiers)
    read = (v for i in features for v in network.graph.vertices[i].reads)
    return [v for v in dict.fromkeys(read) if v[1] in plain or v[1] not in network.positions]


class FeatureNames:
    """The names of the entries (slots) of column versions.

    Args:
        described: for each cached column version, its entry in the cache's manifest (`column`, `metadata`).
        values: some rows of every version, as `network.run` leaves them; only their widths and forms matter.
    """

    def __init__(
        self, network: Network, described: Mapping[Version, Mapping[str, Any]], values: Mapping[Version, Rows]
    ):
        self.network, self.graph = network, network.graph
        self.widths = {v: width(x) for v, x in values.items()}
        self.vectors = {v: isinstance(x, SparseRows) or x.ndim == 2 for v, x in values.items()}
        self.attributes: dict[Version, dict[int, tuple[str, str]]] = {}  # slot -> (kind, name)
        self.levels: dict[Version, list[str]] = {}  # of an index column
        for version, entry in described.items():
            attr = (entry.get("metadata") or {}).get("ml_attr") or {}
            self.levels[version] = [str(value) for value in attr.get("vals", ())]
            self.attributes[version] = {
                slot: (kind, a["name"]) for slot, (kind, a) in slots_of(attr).items() if "name" in a
            }

    def name(self, version: Version, slot: int) -> str:
        """Name of a slot for users: `temp` for a number, `weather=snow` for a category, `features[7]` if the metadata
        have no name.
        """
        source, own = self._source(version, slot)
        column = self.graph.name(source)
        if isinstance(own, str):
            return own
        if source in self.one_hot_sizes():
            return f"{column}={self.level(source, own)}"
        return f"{column}[{own}]" if self.vectors.get(source) else column

    def level(self, version: Version, index: int) -> str:
        """Text of the category with this index in an index column; `(index 7)` if it is unknown."""
        levels = self.levels.get(version, [])
        return levels[index] if index < len(levels) else f"(index {index})"

    def has_slot_names(self, version: Version) -> bool:
        """True if the slots of a version have names. The slots of hashed text and of plain vectors have none."""
        return not self.vectors[version] or not self.name(version, 0).endswith("[0]")

    def binary(self, version: Version, *, encoded: bool = True) -> Tensor:
        """Mask (w,), True for slots that are indicators of categories. Slots that a OneHotEncoder of the network makes
        count only if `one_hot_sizes` is True.
        """
        out = torch.zeros(self.widths[version], dtype=torch.bool)
        if version in self.attributes:
            known = [j for j, (kind, _) in self.attributes[version].items() if kind == "binary" and j < len(out)]
            out[known] = True
            return out
        module, reads = self._writer(version)
        if isinstance(module, OneHotEncoder):
            out[:] = encoded
        elif isinstance(module, VectorAssembler):
            out = torch.cat([self.binary(v, encoded=encoded) for v in reads])
        return out

    def one_hot_sizes(self) -> dict[Version, int]:
        """Number of categories of each index column that a OneHotEncoder of the network reads."""
        found: dict[Version, int] = {}
        for i in self.network.positions:
            module = self.network.module(i)
            if isinstance(module, OneHotEncoder):
                found |= dict(zip(self.graph.vertices[i].reads, module.sizes, strict=True))
        return found

    def _writer(self, version: Version) -> tuple[Any, tuple[Version, ...]]:
        i = version[1]
        return (self.network.module(i), self.graph.vertices[i].reads) if i in self.network.positions else (None, ())

    def _source(self, version: Version, slot: int) -> tuple[Version, int | str]:
        """The column that a slot comes from, and the slot's name if the metadata have one, else the slot's index in
        that column.
        """
        if version in self.attributes:
            return version, self.attributes[version].get(slot, (None, slot))[1]
        module, reads = self._writer(version)
        if isinstance(module, OneHotEncoder):
            return reads[
                [self.graph.casefold(c) for c in self.graph.vertices[version[1]].outputs].index(version[0])
            ], slot
        if isinstance(module, VectorAssembler):
            for v in reads:
                if slot < self.widths[v]:
                    return self._source(v, slot)
                slot -= self.widths[v]
        return version, slot
