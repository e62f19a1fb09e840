"""The active columns of wide sparse rows (those in which some batches have entries), and the network on them alone.

A batch of 128 documents has words in some thousands of 2^18 columns. No other column changes a margin or has a
gradient, so a step works on a small network, the same in all processes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.affine import NotSparseError
from sparkdiff.tensors.rows import Rows, SparseRows, as_sparse
from sparkdiff.tensors.team import ALONE, Team
from sparkdiff.training.affine import AffineNetwork
from sparkdiff.training.parameters import (
    NaturalUnits,
    ParameterMatrix,
    Piece,
    named_parameters,
    parameter_vector,
    trainable_parameters,
)

DENSE_FROM = 0.25
"""Share of all parameters that belong to active columns, from which on training all parameters is as cheap."""
GROUP_ROWS, GROUP_BATCHES = 8192, 8
"""Largest number of rows and of batches in a group; grouping pays because choosing columns costs more than a step."""


def group_size(batchSize: int) -> int:
    """Number of consecutive batches in a group; each step on one of them uses the active columns of the whole group."""
    return max(1, min(GROUP_BATCHES, GROUP_ROWS // batchSize))


class ActiveColumns:
    """Chooser of the active columns of some batches, and builder of the network on these columns.

    Attributes:
        affine: the network on all columns.
        widths: number of columns of each sparse input.
        moving: (m,) int32, the entries of the flat vector that training may move; the candidates' vectors have these
            entries.
        numbers: (p,) int32, the index of each entry in `moving`; m for entries that stay fixed.
        units, start: natural units (typical scales) and original values of the entries in `moving`.
    """

    def __init__(
        self, network: Network, affine: AffineNetwork, start: Tensor, units: NaturalUnits, widths: Mapping[Version, int]
    ):
        self.network, self.affine, self.whole, self.widths = network, affine, start, dict(widths)
        self.parts = [part for part, _ in trainable_parameters(network)]
        self.constrained = {part.first: constraint for part, constraint in units.constrained}
        self.device = start.device
        self._there = {v: torch.zeros(width, dtype=torch.bool, device=self.device) for v, width in widths.items()}
        self._numbered: dict[Version, Tensor] = {}  # the columns that `_number` currently enumerates
        self._number = {v: torch.zeros(width, dtype=torch.int32, device=self.device) for v, width in widths.items()}
        _, active = affine.narrowed(self.none())
        moves = torch.ones(len(start), dtype=torch.bool, device=self.device)
        for part in self.parts:
            if part.position in active and part.name in network.module(part.position).feature_axis:
                moves[part.first : part.last] = units.unit[part.first : part.last] != 0
        self.moving = moves.nonzero()[:, 0].int()
        self.numbers = torch.full_like(moves, len(self.moving), dtype=torch.int32)
        self.numbers[self.moving] = self._range(len(self.moving))
        constrained = []
        for part, constraint in units.constrained:
            before, own = int(moves[: part.first].sum()), int(moves[part.first : part.last].sum())
            shape = part.shape if own == part.last - part.first else (own,)
            constrained.append((part._replace(first=before, last=before + own, shape=shape), constraint))
        rate = units.rate if len(units.rate) == 1 else units.rate[self.moving]
        self.units, self.start = NaturalUnits(units.unit[self.moving], tuple(constrained), rate), start[self.moving]

    def parameters(self, u: Tensor) -> Tensor:
        """All parameters (p,) of a candidate whose vector, in natural units, is u (m,)."""
        out = self.whole.clone()
        out[self.moving] = self.units.parameters(self.start, u[None], torch.empty_like(u[None]))[0]
        return out

    def _range(self, number: int) -> Tensor:
        return torch.arange(number, dtype=torch.int32, device=self.device)

    def columns(self, batches: Sequence[Mapping[Version, Rows]], team: Team = ALONE) -> dict[Version, Tensor]:
        """The columns (c,), ascending, in which a row of these batches has an entry, in any process."""
        out = {}
        for v in self.widths:
            out[v] = self._distinct(v, [as_sparse(values[v]).indices for values in batches])
            if team.world > 1:
                out[v] = self._distinct(v, [team.gather(out[v])])
        return out

    def none(self) -> dict[Version, Tensor]:
        """No columns: an empty index tensor for each sparse input."""
        return {v: torch.empty(0, dtype=torch.int64, device=self.device) for v in self.widths}

    def _distinct(self, v: Version, indices: Sequence[Tensor]) -> Tensor:
        if self.device.type != "cpu":
            there = self._there[v]
            for part in indices:
                there.index_fill_(0, part, True)
            found = there.nonzero()[:, 0]
            there.index_fill_(0, found, False)
            return found
        marks = self._there[v].numpy()  # faster than torch on so few entries
        for part in indices:
            marks[part.numpy()] = True
        columns = np.flatnonzero(marks)
        marks[columns] = False
        return torch.from_numpy(columns)

    def rows(self, values: Mapping[Version, Rows], columns: Mapping[Version, Tensor]) -> dict[Version, SparseRows]:
        """The sparse inputs, with columns renumbered by their positions among the active ones."""
        out = {}
        for v, active in columns.items():
            x, number = as_sparse(values[v]), self._number[v]
            if self._numbered.get(v) is not active:
                number.index_copy_(0, active, self._range(len(active)))
                self._numbered[v] = active
            out[v] = SparseRows(number.index_select(0, x.indices).long(), x.values, x.offsets, len(active))
        return out

    def matrix(self, columns: Mapping[Version, Tensor], count: int) -> tuple[ParameterMatrix, Tensor, AffineNetwork]:
        """The parameters of K candidates at these columns, the indices in `moving` of the entries that a step changes,
        and the affine network on these columns.
        """
        affine, active = self.affine.narrowed(columns)
        entries, numbers, constrained = [], [], []
        parts: list[Piece] = []
        first = moved = 0
        for part in self.parts:
            axis = self.network.module(part.position).feature_axis.get(part.name)
            own, shape = _entries(part, axis, active.get(part.position), self.device)
            number = self.numbers.index_select(0, own).long()
            moves = int((number < len(self.moving)).sum())
            parts.append(Piece(part.position, part.name, shape, first, first + len(own)))
            if (constraint := self.constrained.get(part.first)) is not None:
                if len(own) < part.last - part.first and not constraint.elementwise:
                    raise NotSparseError(part.name)
                shape = shape if moves == len(own) else (moves,)
                constrained.append((part._replace(first=moved, last=moved + moves, shape=shape), constraint))
            entries.append(own)
            numbers.append(number)
            first, moved = first + len(own), moved + moves
        number = torch.cat(numbers)
        changed = (number < len(self.moving)).nonzero()[:, 0]
        at, values = number.index_select(0, changed), self.whole.index_select(0, torch.cat(entries))
        units = NaturalUnits(self.units.unit.index_select(0, at), tuple(constrained), self.units.rate)
        return ParameterMatrix(self._stage_parameters(active), parts, values, units, count, changed=changed), at, affine

    def _stage_parameters(self, active: Mapping[int, Tensor]) -> dict[int, dict[str, Tensor]]:
        """The parameters of each stage; if it has active features (c,), only its frozen ones, at these features."""
        out = named_parameters(self.network)
        for i, at in active.items():
            axes = self.network.module(i).feature_axis
            frozen = {n: p.detach() for n, p in self.network.module(i).named_parameters() if not p.requires_grad}
            out[i] = {n: p.index_select(axes[n], at) if n in axes else p for n, p in frozen.items()}
        return out


def _entries(part: Piece, axis: int | None, at: Tensor | None, device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """The flat vector's entries of a parameter at some features (c,), and the parameter's shape there."""
    if axis is None or at is None:
        return torch.arange(part.first, part.last, device=device), part.shape
    shape = (*part.shape[:axis], len(at), *part.shape[axis + 1 :])
    if part.last - part.first == part.shape[axis]:
        return at + part.first, shape
    every = torch.arange(part.first, part.last, device=device).view(part.shape)
    return every.index_select(axis, at).flatten(), shape


def choose_active_columns(
    network: Network, affine: AffineNetwork, units: NaturalUnits, share: Mapping[Version, Tensor], rows: int
) -> ActiveColumns | None:
    """The builder for training on active columns alone; None if they are too many or if other columns matter, too.

    Args:
        share: for each of the network's sparse inputs, the share (d,) of the training rows that have an entry in each
            column.
        rows: number of rows in a group of batches.
    """
    wide = {v: len(own) for v, own in share.items() if v in affine.reads}
    if not wide:
        return None
    columns = {}
    for v, width in wide.items():
        expected = max(1, int((1 - (1 - share[v]) ** rows).sum()))
        columns[v] = torch.arange(expected) * width // expected
    start = parameter_vector(network)
    columns = {v: own.to(start.device) for v, own in columns.items()}
    try:
        active = ActiveColumns(network, affine, start, units, wide)
        matrix, _, narrow = active.matrix(columns, 1)
    except NotSparseError:
        return None
    if matrix.flat.shape[1] >= DENSE_FROM * len(start) or not _same(active, matrix, narrow, columns):
        return None
    return active


def _same(
    active: ActiveColumns, matrix: ParameterMatrix, affine: AffineNetwork, columns: Mapping[Version, Tensor]
) -> bool:
    """True if the network on these columns has the constant of the network on all columns, and its slopes on these columns,
    up to rounding.
    """
    narrow = affine.slopes(matrix.parameters, 1)
    whole = active.affine.slopes(named_parameters(active.network), 1)
    there = {v: slope.index_select(1, columns[v]) if v in columns else slope for v, slope in whole.of.items()}
    pairs = [(narrow.constant, whole.constant), *((narrow.of[v], slope) for v, slope in there.items())]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=0.0, equal_nan=True) for a, b in pairs)
