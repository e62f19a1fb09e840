"""Active columns: the columns in which a batch of wide sparse rows has entries, their parameters, and the network
restricted to them.

A batch of 128 documents has words in some thousands of 2^18 columns. No other column adds to a margin or has a gradient, so that
the candidates of a step are those of a small network, the same in all processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.rows import Rows, SparseRows
from sparkdiff.stages.base import FeatureStats, NotSparseError
from sparkdiff.team import ALONE, Team
from sparkdiff.training.affine import Folded
from sparkdiff.training.units import Constrained, Scales, trained

DENSE_FROM = 0.25
"""Share of the parameters that some batches reach from which all of them are as cheap."""
GROUP_ROWS, GROUP_BATCHES = 8192, 8
"""Rows and number of the batches of a group: choosing columns costs more than a step does."""


def group_size(batchSize: int) -> int:
    """The number of consecutive batches whose columns train together, at each of their steps."""
    return max(1, min(GROUP_BATCHES, GROUP_ROWS // batchSize))


class Piece(NamedTuple):
    """The entries [first, last) of the flat vector, which are one parameter."""

    position: int
    name: str
    shape: tuple[int, ...]
    first: int
    last: int


def pieces(network: Network) -> list[Piece]:
    """The parameters that train, in the order of the flat vector."""
    out, first = [], 0
    for i, name, p in trained(network):
        out.append(Piece(i, name, tuple(p.shape), first, first + p.numel()))
        first += p.numel()
    return out


class Span:
    """K candidates' parameters, all of them or those that a batch reaches, and room for their gradients.

    Attributes:
        entries: (q,) int64, which of those that the candidates' state is of; None for all of the flat vector.
        flat: (K, q) parameters, `gradient` (K, q) by them.
        parameters: per stage and name, (K, *shape) views of `flat`; parameters that do not train are passed
            unchanged.
        room: the same views of `gradient`.
        sums: in one piece, so that a step needs one sum over the processes: gradients (K, q), losses (K,), curvature (C, q) of
            those that take Newton's steps, weight ().
    """

    def __init__(
        self, network: Network, parts: Iterable[Piece], start: Tensor, scales: Scales, count: int, *, curved: int = 0,
        entries: Tensor | None = None, fixed: Mapping[int, Mapping[str, Tensor]] | None = None, folded: Folded | None = None,
    ):  # fmt: skip
        self.parts, self.start, self.scales, self.entries, self.folded = list(parts), start, scales, entries, folded
        size = len(start)
        sizes = [count * size, count, curved * size, 1]
        self.sums = torch.zeros(sum(sizes), dtype=torch.float64)
        gradient, self.losses, curvature, weight = self.sums.split(sizes)
        self.gradient, self.curvature, self.weight = gradient.view(count, size), curvature.view(curved, size), weight[0]
        self.flat = start.repeat(count, 1)
        self._scratch: Tensor | None = None
        self.room, own = self.views(self.gradient), self.views(self.flat)
        given = fixed or {}
        self.parameters = {
            i: dict(given.get(i) or {n: p.detach() for n, p in network.module(i).named_parameters()}) | own.get(i, {})
            for i in network.positions
        }
        for i in network.positions:
            self.room.setdefault(i, {})

    def views(self, matrix: Tensor) -> dict[int, dict[str, Tensor]]:
        """Per stage and name the parameters that train, as (K, *shape) views of a matrix (K, q)."""
        out: dict[int, dict[str, Tensor]] = {}
        for part in self.parts:
            view = matrix[:, part.first : part.last].view(len(matrix), *part.shape)
            out.setdefault(part.position, {})[part.name] = view
        return out

    @property
    def scratch(self) -> Tensor:
        """Room (K, q) for a gradient by u."""
        if self._scratch is None:
            self._scratch = torch.empty_like(self.flat)
        return self._scratch

    def load(self, u: Tensor) -> None:
        """Set `flat` to the parameters at u (K, q)."""
        self.scales.parameters(self.start, u, self.flat)


class Reach:
    """Makes the span of some batches.

    Attributes:
        folded: the network on all columns.
        widths: of the sparse inputs of which only some columns are reached.
        moving: (m,) int32, the entries of the flat vector that training may move; the state of the candidates is of these, and of
            one more at the end, which stands for all that stay.
        slots: (p,) int32, where each entry is among them.
        scales, start: of `moving` and that one more.
    """

    def __init__(self, network: Network, folded: Folded, start: Tensor, scales: Scales, widths: Mapping[Version, int]):
        self.network, self.folded, self.whole, self.widths = network, folded, start, dict(widths)
        self.parts = pieces(network)
        self.constrained = {c.first: c.constraint for c in scales.constrained}
        self._there = {v: np.zeros(width, dtype=bool) for v, width in widths.items()}
        self._numbered: dict[Version, Tensor] = {}  # the columns that the numbers are of
        self._number = {v: torch.zeros(width, dtype=torch.int32) for v, width in widths.items()}
        _, reached = folded.narrowed(self.none())
        moves = torch.ones(len(start), dtype=torch.bool)
        for part in self.parts:
            if part.position in reached and part.name in network.module(part.position).feature_axis:
                moves[part.first : part.last] = scales.unit[part.first : part.last] != 0
        self.moving = moves.nonzero()[:, 0].int()
        self.slots = torch.full((len(start),), len(self.moving), dtype=torch.int32)
        self.slots[self.moving] = torch.arange(len(self.moving), dtype=torch.int32)
        constrained = []
        for c in scales.constrained:
            before, own = int(moves[: c.first].sum()), int(moves[c.first : c.last].sum())
            shape = c.shape if own == c.last - c.first else (own,)
            constrained.append(Constrained(before, before + own, shape, c.constraint))
        rate = scales.rate if len(scales.rate) == 1 else _and(scales.rate[self.moving], 1.0)
        self.scales = Scales(_and(scales.unit[self.moving], 0.0), tuple(constrained), rate)
        self.start = _and(start[self.moving], 0.0)

    def parameters(self, u: Tensor) -> Tensor:
        """All parameters (p,) at u (m + 1,)."""
        out = self.whole.clone()
        out[self.moving] = self.scales.parameters(self.start, u[None], torch.empty(1, len(u), dtype=u.dtype))[0, :-1]
        return out

    def columns(self, batches: Sequence[Mapping[Version, Rows]], team: Team = ALONE) -> dict[Version, Tensor]:
        """The columns (c,), ascending, in which a row of these batches has an entry, in any process."""
        out = {}
        for v in self.widths:
            out[v] = self._distinct(v, [_indices(values[v]) for values in batches])
            if team.world > 1:
                out[v] = self._distinct(v, [team.gather(out[v])])
        return out

    def none(self) -> dict[Version, Tensor]:
        """No columns."""
        return {v: torch.empty(0, dtype=torch.int64) for v in self.widths}

    def _distinct(self, v: Version, indices: Sequence[Tensor]) -> Tensor:
        there = self._there[v]
        for part in indices:
            there[part.numpy()] = True
        found = np.flatnonzero(there)
        there[found] = False
        return torch.from_numpy(found)

    def rows(self, values: Mapping[Version, Rows], columns: Mapping[Version, Tensor]) -> dict[Version, SparseRows]:
        """The sparse inputs with their columns counted among those that are reached."""
        out = {}
        for v, reached in columns.items():
            x, number = values[v], self._number[v]
            assert isinstance(x, SparseRows)
            if self._numbered.get(v) is not reached:
                number.index_copy_(0, reached, torch.arange(len(reached), dtype=torch.int32))
                self._numbered[v] = reached
            out[v] = SparseRows(number.index_select(0, x.indices).long(), x.values, x.offsets, len(reached))
        return out

    def span(self, columns: Mapping[Version, Tensor], count: int) -> Span:
        """Room for K candidates of the network on these columns."""
        folded, reached = self.folded.narrowed(columns)
        entries: list[Tensor] = []
        parts: list[Piece] = []
        constrained: list[Constrained] = []
        fixed: dict[int, dict[str, Tensor]] = {}
        first = 0
        for part in self.parts:
            axis = self.network.module(part.position).feature_axis.get(part.name)
            at = reached.get(part.position)
            own, shape = _entries(part, axis, at)
            entries.append(own)
            parts.append(Piece(part.position, part.name, shape, first, first + len(own)))
            if (constraint := self.constrained.get(part.first)) is not None:
                if len(own) < part.last - part.first and not constraint.elementwise:
                    raise NotSparseError(part.name)
                constrained.append(Constrained(first, first + len(own), shape, constraint))
            first += len(own)
        for i, at in reached.items():
            module = self.network.module(i)
            fixed[i] = {
                n: p.detach().index_select(module.feature_axis[n], at) if n in module.feature_axis else p.detach()
                for n, p in module.named_parameters()
                if not p.requires_grad
            }
        every = torch.cat(entries)
        slots = self.slots.index_select(0, every).long()
        scales = Scales(self.scales.unit.index_select(0, slots), tuple(constrained), self.scales.rate)
        start = self.whole.index_select(0, every)
        return Span(self.network, parts, start, scales, count, entries=slots, fixed=fixed, folded=folded)


def _and(x: Tensor, last: float) -> Tensor:
    return torch.cat([x, x.new_tensor([last])])


def _indices(x: Rows) -> Tensor:
    assert isinstance(x, SparseRows)
    return x.indices


def _entries(part: Piece, axis: int | None, at: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    """The flat vector's entries of a parameter at some features (c,), and its shape there."""
    if axis is None or at is None:
        return torch.arange(part.first, part.last), part.shape
    shape = (*part.shape[:axis], len(at), *part.shape[axis + 1 :])
    if part.last - part.first == part.shape[axis]:
        return at + part.first, shape
    return torch.arange(part.first, part.last).view(part.shape).index_select(axis, at).flatten(), shape


def reach_of(
    network: Network, folded: Folded, start: Tensor, scales: Scales, sparse: Mapping[Version, int],
    stats: Mapping[Version, FeatureStats], rows: int, together: int,
) -> Reach | None:  # fmt: skip
    """How to train on the columns alone that batches reach, or None where these are too many or others count too.

    Args:
        together: rows of the batches that share a span.
        sparse: widths of the network's fixed inputs that are sparse rows.
        stats: of all fixed inputs, over so many training rows.
    """
    wide = {v: width for v, width in sparse.items() if v in folded.reads}
    if not wide:
        return None
    columns = {}
    for v, width in wide.items():
        share = stats[v].support.double() / max(1, rows)
        expected = max(1, int((1 - (1 - share) ** together).sum()))
        columns[v] = torch.arange(expected) * width // expected
    try:
        reach = Reach(network, folded, start, scales, wide)
        span = reach.span(columns, 1)
    except NotSparseError:
        return None
    if len(span.start) >= DENSE_FROM * len(start) or not _same(reach, span, columns):
        return None
    return reach


def _same(reach: Reach, span: Span, columns: Mapping[Version, Tensor]) -> bool:
    """Whether the network on some columns has the slopes there, and the constant, of the network on all of them."""
    assert span.folded is not None
    narrow = span.folded.slopes(span.parameters, 1)
    parameters = {i: dict(reach.network.module(i).named_parameters()) for i in reach.network.positions}
    whole = reach.folded.slopes(parameters, 1)
    pairs = [(narrow.constant, whole.constant)]
    for v, slope in whole.of.items():
        pairs.append((narrow.of[v], slope.index_select(1, columns[v]) if v in columns else slope))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=0.0, equal_nan=True) for a, b in pairs)
