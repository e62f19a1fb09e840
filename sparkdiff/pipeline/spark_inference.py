"""Inference inside Spark's tasks: a network turns Arrow record batches into the columns that the translated stages
write.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_tensors import VECTOR, from_arrow, is_scalar, to_arrow
from sparkdiff.pipeline.graph import Version, null_of
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.factorization_machine import FMClassification, FMRegression
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.stages.linear import LinearMargin, LogisticRegression
from sparkdiff.stages.perceptron import MultilayerPerceptron
from sparkdiff.stages.projection import PCA
from sparkdiff.stages.scaling import MaxAbsScaler, MinMaxScaler, Standardizer
from sparkdiff.stages.weighing import ElementwiseProduct, Normalizer
from sparkdiff.tensors.device import Place, copy_to
from sparkdiff.tensors.rows import NEVER, Rows

TAKE_ALL = (
    Trees,
    LinearMargin,
    LogisticRegression,
    MultilayerPerceptron,
    FMRegression,
    FMClassification,
    Standardizer,
    MaxAbsScaler,
    MinMaxScaler,
    PCA,
    ElementwiseProduct,
    Normalizer,
)
"""Stages that accept every row. Only these may run on a GPU, because on a GPU stages do not check their rows."""


@dataclasses.dataclass(frozen=True)
class BatchTransform:
    """The function for `mapInArrow`: record batches in, the same rows with other columns out.

    Attributes:
        network: the network, without Spark stages.
        reads: position in an input batch of each column version that the network reads.
        kept: positions of the input columns that the output begins with, in their order.
        computed: the versions whose columns follow the kept ones in the output.
        kinds: for each computed version that is a number, its type in pyarrow's spelling.
        names: names of all output columns.
        device: torch's device in the task.
        widths: number of entries of the vectors that the network reads, if the metadata have it; needed because all
            vectors of a batch may be null.
    """

    network: Network
    reads: Mapping[Version, int]
    kept: Sequence[int]
    computed: Sequence[Version]
    kinds: Mapping[Version, str]
    names: Sequence[str]
    device: str = "cpu"
    widths: Mapping[Version, int] = dataclasses.field(default_factory=dict)

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        there = torch.device(self.device)
        network = self.network if there.type == "cpu" else copy_to(self.network, there)
        for batch in batches:
            if len(batch):
                yield self.batch(batch, network, there)

    @torch.no_grad()
    def batch(self, batch: pa.RecordBatch, elsewhere: Network, device: torch.device) -> pa.RecordBatch:
        values, nulls = self.inputs(batch)
        if device.type == "cpu":
            self.network.run(values, self.computed, explain=True)
        else:
            self._on(elsewhere, device, values)
        made = [self._column(v, values, nulls) for v in self.computed]
        return pa.RecordBatch.from_arrays([*(batch.column(i) for i in self.kept), *made], names=list(self.names))

    def inputs(self, batch: pa.RecordBatch) -> tuple[dict[Version, Rows], dict[Version, Tensor]]:
        """The columns that the network reads, with their null flags as further columns; and a mask (n,) of the null
        rows for each numeric column that has any.

        The flags exist even without nulls: the meaning of a NaN must not depend on the other rows of its batch.
        """
        values: dict[Version, Rows] = {}
        nulls: dict[Version, Tensor] = {}
        for version, place in self.reads.items():
            column = batch.column(place)
            values[version] = from_arrow(column, self.widths.get(version, 0), self.network.exact)
            if column.null_count and is_scalar(values[version]):
                nulls[version] = torch.from_numpy(np.array(column.is_null()))
            elif column.null_count:
                self._check_no_null(version)
                self._check_width(version, column)
        none = torch.zeros(len(batch), dtype=torch.bool)
        flags: dict[Version, Rows] = {
            null_of(v): nulls.get(v, none)
            for v in self.reads
            if is_scalar(values[v]) and null_of(v) in self.network.flags
        }
        return values | flags, nulls

    def _check_no_null(self, version: Version) -> None:
        """Raise InputError if a stage that would fail in Spark on a null vector reads this column, which has null
        vectors.
        """
        graph = self.network.graph
        for i in self.network.positions:
            module = self.network.module(i)
            if version in graph.vertices[i].reads and not (isinstance(module, VectorAssembler) and module.keep):
                raise InputError(
                    f"{graph.vertices[i].uid}: column {graph.name(version)!r} holds null in place of a vector, which Spark "
                    "refuses; drop such rows"
                )

    def _check_width(self, version: Version, column: pa.Array) -> None:
        """Raise InputError if the number of entries of the vectors is unknown."""
        if column.null_count == len(column) and version not in self.widths:
            graph = self.network.graph
            reader = next(i for i in self.network.positions if version in graph.vertices[i].reads)
            raise InputError(
                f"{graph.vertices[reader].uid}: column {graph.name(version)!r} holds null in place of every vector of a "
                "batch, and its metadata do not tell how many entries they have; run a VectorSizeHint on the data first"
            )

    def _on(self, network: Network, device: torch.device, values: dict[Version, Rows]) -> None:
        """Compute all stages up to the last one that may refuse rows on the CPU, and the later ones on `device`, where
        `network` lies.
        """
        graph, last = self.network.graph, first_free(self.network)
        late = [v for v in self.computed if v[1] >= last]
        read = {v for i in self.network.positions if i >= last for v in graph.vertices[i].reads}
        early = [v for v in {*self.computed, *read} if v[1] < last and v not in values]
        self.network.run(values, early, explain=True)
        place = Place(device)
        there = {v: place.rows(x) for v, x in values.items()}
        network.run(there, late, explain=True)
        values.update({v: Place().rows(there[v]) for v in late})

    def _column(self, version: Version, values: Mapping[Version, Rows], nulls: Mapping[Version, Tensor]) -> pa.Array:
        """A computed column in Spark's form: NaN is null if the stage writes null."""
        x, null = values[version], self._null(version, values, nulls)
        if not is_scalar(x):
            return _vectors(x, null)
        column = to_arrow(x, null)
        kind = self.kinds[version]
        return column if kind == "double" else column.cast(pa.type_for_alias(kind))

    def _null(self, version: Version, values: Mapping[Version, Rows], nulls: Mapping[Version, Tensor]) -> Tensor | None:
        """Mask (n,) of the null rows of a computed column; None without nulls."""
        graph, module, x = self.network.graph, self.network.module(version[1]), values[version]
        vertex = graph.vertices[version[1]]
        if isinstance(module, OneHotEncoder):
            number = [graph.casefold(c) for c in vertex.outputs].index(version[0])
            flags = self.network.null_flags(module, vertex.reads, values)["nulls"]
            return flags[number]  # type: ignore[no-any-return]
        if (source := graph.null_from(version)) is not None:
            return nulls.get(source) if source in self.reads else self.network.null_flag(source, values)
        return x.isnan() if module.writes_null and isinstance(x, Tensor) and x.ndim == 1 else None


def first_free(network: Network) -> int:
    """First position from which on no stage may refuse rows, or looks at them to decide how to store them."""
    checking = [
        i
        for i in network.positions
        if not isinstance(m := network.module(i), TAKE_ALL) or (m.storage and m.exact_beyond < NEVER)
    ]
    return max(checking, default=-1) + 1


def _vectors(x: Rows, null: Tensor | None) -> pa.Array:
    column: Any = to_arrow(x)
    if null is None or not bool(null.any()):
        return column
    parts = [column.field(i) for i in range(len(VECTOR))]
    return pa.StructArray.from_arrays(parts, fields=list(VECTOR), mask=pa.array(null.numpy()))
