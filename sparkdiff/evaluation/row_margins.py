"""Margins of one pipeline, kept by row, so that it can be compared row by row with a pipeline that reads other columns."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sparkdiff.data.splits import ROW
from sparkdiff.errors import InputError
from sparkdiff.evaluation.split_batches import Data, scalar
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.rows import Rows

ROW_VERSION: Version = (ROW, -1)
"""Version of the column with the row's hash, in a cache that has it (`Request.keyed`)."""


class MarginModel(Protocol):
    """The part of a network that a comparison needs: `margin(values)`, (n,) or (n, k), and the predictor that turns a
    margin into columns. Implemented by `Network` and `RecordedMargins`.
    """

    @property
    def head(self) -> Predictor: ...

    @property
    def graph(self) -> Graph: ...

    def margin(self, values: dict[Version, Rows]) -> Tensor: ...


def with_row_hashes(data: Data) -> Data:
    """The same data, whose values include the hash of the row."""
    return Data(data.stream, {**data.columns, ROW_VERSION: "row"}, data.team, data.tick, data.prepare, data.rows)


class RecordedMargins:
    """The margins of a network on the rows of some splits, found by the hash of the row.

    Attributes:
        network: the network with these margins.
        keys: (n,) hashes of the rows, sorted.
        margins: (n,) or (n, k). Rows with the same hash are the same row, and have the same margin.
        labels: (n,) labels in this pipeline, one of whose stages may have indexed them.
    """

    def __init__(self, network: Network, keys: Tensor, margins: Tensor, labels: Tensor):
        self.network, order = network, keys.argsort(stable=True)
        self.keys, self.margins, self.labels = keys[order], margins[order], labels[order]

    @property
    def head(self) -> Predictor:
        return self.network.head

    @property
    def graph(self) -> Graph:
        return self.network.graph

    def margin(self, values: Mapping[Version, Rows]) -> Tensor:
        """Margins of the rows with the hashes in `values`, (n,) or (n, k).

        Raises:
            InputError: a row was not recorded.
        """
        wanted = values[ROW_VERSION]
        assert isinstance(wanted, Tensor)
        return self.margins[self._places(wanted)]

    def among(self, keys: Tensor) -> "RecordedMargins":
        """The recorded margins restricted to rows with these hashes (n,).

        Raises:
            InputError: a row was not recorded.
        """
        at = self._places(keys)
        return RecordedMargins(self.network, keys, self.margins[at], self.labels[at])

    def _places(self, wanted: Tensor) -> Tensor:
        at = torch.searchsorted(self.keys, wanted).clamp_max(max(len(self.keys) - 1, 0))
        lost = len(wanted) if not len(self.keys) else int((self.keys[at] != wanted).sum())
        if lost:
            raise InputError(
                f"{self.graph.head.uid}: {lost:,} rows that the other pipeline predicts have no prediction: a stage drops "
                "them, or the DataFrame gave other rows when it was read again; write the rows to a table, and pass the table"
            )
        return at


@torch.no_grad()
def record_margins(network: Network, data: Data, splits: tuple[str, ...]) -> RecordedMargins:
    """Compute the margins of a network on all rows of these splits; takes 8 bytes per row and margin, 16 for the hash
    and the label.
    """
    rows = [
        (scalar(batch, "row").long(), network.margin(data.values(batch)), label.clone())
        for split in splits
        for batch, label, *_ in data.batches(split)
    ]
    return RecordedMargins(network, *map(torch.cat, zip(*rows, strict=True)))


def difference_text(one: Tensor, other: Tensor, what: str, beside: str) -> str:
    """A text with the number of rows that have another label or weight in two pipelines, and the first of these rows;
    empty if there are none. NaN equals NaN.

    Args:
        one, other: (n,) labels or weights in a pipeline, and in the pipeline that it is compared with.
        what: "label" or "weight".
        beside: the name of the second pipeline.
    """
    differ = (one != other) & ~(one.isnan() & other.isnan())
    if not bool(differ.any()):
        return ""
    first = int(differ.nonzero()[0])
    return (
        f"{int(differ.sum()):,} of {len(one):,} rows have another {what} than in {beside}, as {one[first]:g} for "
        f"{other[first]:g}"
    )
