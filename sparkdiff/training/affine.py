"""Margins (linear predictors before the link) of all K candidates of one network at the same time, from parameters with
a leading dimension of candidates.

If the network is affine between its fixed inputs and its margin (scalers, projections, linear predictors), it folds
into one slope per input entry: the candidates share one product of the rows with all their slopes, (n, d) @ (d, K), and
only the slopes are computed from each candidate's parameters, in K small products. That costs a sixth of evaluating K
networks on the same rows. Any other network is evaluated candidate by candidate.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparkdiff.pipeline.graph import LEAVES, Version
from sparkdiff.pipeline.network import Network, moving_positions, routed_versions
from sparkdiff.stages.affine import Affine, NotAffineError, Parameters
from sparkdiff.stages.forest import Trees
from sparkdiff.tensors.rows import Rows, SparseRows


class Link(NamedTuple):
    """A stage between the fixed inputs and the margin."""

    position: int
    module: Affine
    reads: tuple[Version, ...]
    widths: list[int]
    writes: tuple[Version, ...]


Back = Callable[[list[Tensor], Tensor, Parameters], Tensor | None]


class AffineMargin(NamedTuple):
    """Slopes and constants of margin = sum over versions of x @ slope, + constant, for each of K candidates; m margins
    per row.

    Attributes:
        of: the slopes (K, d, m) of each fixed version (a column that training doesn't change).
        constant: (K, 1, m).
        tape: for each stage, from the margin backwards, its link and its backward function.
    """

    of: dict[Version, Tensor]
    constant: Tensor
    tape: list[tuple[Link, Back]]


class AffineNetwork:
    """A network that is affine in its fixed inputs.

    Raises:
        NotAffineError: a stage between the fixed inputs and the margin isn't affine.
    """

    def __init__(self, network: Network, widths: Mapping[Version, int]):
        graph = network.graph
        inside, routed = moving_positions(network), routed_versions(network)
        self.wide = network.head.wide
        self.chain: list[Link] = []  # from the margin backwards
        wanted: set[Version] = set()
        for i in sorted(inside, reverse=True):
            vertex = graph.vertices[i]
            writes = tuple((graph.casefold(c), i) for c in vertex.outputs)
            if i == graph.head_position or wanted & set(writes):
                writes = () if i == graph.head_position else tuple(v for v in writes if v in wanted)
                module, reads = network.module(i), vertex.margin_reads
                if not isinstance(module, Affine):
                    raise NotAffineError(type(module).__name__)
                if isinstance(module, Trees):  # affine in its leaves, even if it is not in its features
                    reads = ((LEAVES, i),) if (LEAVES, i) in routed else ()
                self.chain.append(Link(i, module, reads, [widths[v] for v in reads], writes))
                wanted |= set(reads)

    @property
    def reads(self) -> set[Version]:
        """The fixed versions from which the margin is computed."""
        made = {v for link in self.chain for v in link.writes}
        return {v for link in self.chain for v in link.reads} - made

    def narrowed(self, columns: Mapping[Version, Tensor]) -> "tuple[AffineNetwork, dict[int, Tensor]]":
        """The network on some columns (c,) of its inputs, with all other columns 0, and the features (c,) that are left
        for each stage.

        Raises:
            NotSparseError: the other columns affect the margin even where they are 0.
        """
        known: dict[Version, Tensor | None] = dict(columns)
        features: dict[int, Tensor] = {}
        chain = []
        for link in reversed(self.chain):
            of = [known.get(v) for v in link.reads]
            if any(c is not None for c in of):
                module, out = link.module.narrowed(of, link.widths)
                known.update(dict.fromkeys(link.writes, out))
                if of[0] is not None:
                    features[link.position] = of[0]
                widths = [w if c is None else len(c) for c, w in zip(of, link.widths, strict=True)]
                link = link._replace(module=module, widths=widths)
            chain.append(link)
        affine = copy.copy(self)
        affine.chain = chain[::-1]
        return affine, features

    @torch.no_grad()
    def slopes(self, parameters: Mapping[int, Parameters], candidates: int) -> AffineMargin:
        """The slopes for the parameters of K candidates; parameters that train have a leading dimension K.

        Raises:
            NotAffineError: a stage between the fixed inputs and the margin is not affine.
        """
        found: dict[Version, Tensor] = {}
        constant: Tensor | float = 0.0
        tape = []
        for link in self.chain:
            if isinstance(link.module, Trees) and not link.reads:
                raise NotAffineError("a stage before the trees trains")
            slope = found.pop(link.writes[0]) if link.writes else torch.empty(0)
            pulled = link.module.affine_form(parameters[link.position], slope, link.widths)
            constant = pulled.constant if isinstance(constant, float) else constant + pulled.constant
            for v, new in zip(link.reads, pulled.slopes, strict=True):
                found[v] = found[v] + new if v in found else new
            tape.append((link, pulled.back))
        assert isinstance(constant, Tensor)
        for v, slope in found.items():
            if slope.ndim == 2:
                found[v] = slope.expand(candidates, *slope.shape)
        return AffineMargin(found, constant.expand(candidates, *constant.shape[-2:]), tape)

    @torch.no_grad()
    def back(
        self, slopes: AffineMargin, gradients: dict[Version, Tensor], constant: Tensor, room: Mapping[int, Parameters]
    ) -> None:
        """Add to `room` the gradients with respect to the parameters, given the gradients with respect to the slopes,
        (K, d, m) each, and to the constants (K, 1, m).
        """
        for link, back in reversed(slopes.tape):
            found = back([gradients[v] for v in link.reads], constant, room[link.position])
            if found is not None:
                gradients[link.writes[0]] = found

    def margins(self, slopes: AffineMargin, values: Mapping[Version, Rows]) -> Tensor:
        """(K, n) margins, or (K, n, k) for k classes in softmax form."""
        total = slopes.constant
        for v, slope in slopes.of.items():
            total = _product(values[v], slope) + total
        return total if self.wide else total[:, :, 0]

    @torch.no_grad()
    def leaf_curvature(self, values: Mapping[Version, Rows], second: Tensor) -> Tensor:
        """Sums, over the rows in each leaf of the head (L,), of `second` (n,) times the squared derivative of the margin."""
        head = self.chain[0]
        [version] = head.reads
        rows = _spread(values[version], second[None, :, None], head.widths[0])[0, :, 0]  # type: ignore[arg-type]
        share = head.module.affine_form({"leaves": second.new_ones(1, head.widths[0])}, torch.empty(0), head.widths)
        return rows * share.slopes[0][0, :, 0] ** 2

    def slope_gradients(
        self, slopes: AffineMargin, values: Mapping[Version, Rows], margin: Tensor
    ) -> tuple[dict[Version, Tensor], Tensor]:
        """The gradients with respect to slopes and constant, given those with respect to the margins, (K, n) or
        (K, n, k).
        """
        margin = margin if margin.ndim == 3 else margin[:, :, None]
        return {v: _transposed_product(values[v], margin, s.shape[1]) for v, s in slopes.of.items()}, margin.sum(
            1, keepdim=True
        )


# Products take the dtype of the rows; slopes, margins and gradients are doubles.


def _product(x: Rows, slope: Tensor) -> Tensor:  # (n,) or (n, d), (K, d, m) -> (K, n, m)
    if isinstance(x, Tensor) and not x.is_floating_point():
        return _leaf_sums(x, slope)
    narrow = (x.values if isinstance(x, SparseRows) else x).dtype
    return _product_of(x, slope) if narrow == slope.dtype else _product_of(x, slope.to(narrow)).to(slope.dtype)


def _product_of(x: Rows, slope: Tensor) -> Tensor:
    candidates, width, number = slope.shape
    if isinstance(x, Tensor) and number == 1:
        return (slope[:, :, 0] @ x.view(-1, width).T)[:, :, None]
    matrix = slope.transpose(0, 1).reshape(width, candidates * number)
    out = x.matmul(matrix) if isinstance(x, SparseRows) else x.view(-1, width) @ matrix
    return out.view(-1, candidates, number).transpose(0, 1)


def _transposed_product(x: Rows, margin: Tensor, width: int) -> Tensor:  # (n,) or (n, d), (K, n, m) -> (K, d, m)
    if isinstance(x, Tensor) and not x.is_floating_point():
        return _spread(x, margin, width)
    narrow = (x.values if isinstance(x, SparseRows) else x).dtype
    if narrow == margin.dtype:
        return _transposed_product_of(x, margin, width)
    return _transposed_product_of(x, margin.to(narrow), width).to(margin.dtype)


def _transposed_product_of(x: Rows, margin: Tensor, width: int) -> Tensor:
    candidates, _, number = margin.shape
    if isinstance(x, Tensor) and number == 1:
        return (margin[:, :, 0] @ x.view(-1, width))[:, :, None]
    matrix = margin.transpose(0, 1).reshape(-1, candidates * number)
    if isinstance(x, SparseRows):
        out = matrix.new_zeros(width, candidates * number)
        out.index_add_(0, x.indices, x.values[:, None] * matrix[x.rows()])
        return out.view(width, candidates, number).transpose(0, 1)
    out = x.view(-1, width).T @ matrix
    # Copied, because the stages multiply it by slopes (K, d, m): a product of two layouts takes three times as long.
    return out.view(width, candidates, number).transpose(0, 1).contiguous()


# Leaves (n, T) int32 stand for rows with a 1 at each leaf. The tables are flat: look-ups of rows of K numbers are many
# times slower. If each candidate has leaves of its own, they are given as places (K * m, n, T) in the tables of all.


def places(leaves: Sequence[Rows], number: int, width: int) -> Tensor:
    """Positions of each candidate's own leaves (n, T) in the tables of K candidates, with m = `number` tables each."""
    kind = torch.int32 if len(leaves) * number * width < 2**31 else torch.int64
    first = width * torch.arange(len(leaves) * number, dtype=kind, device=leaves[0].device)  # type: ignore[union-attr]
    own = torch.stack([x for x in leaves if isinstance(x, Tensor)]).to(kind)
    return own.repeat_interleave(number, 0).add_(first[:, None, None])


def _leaf_sums(leaves: Tensor, slope: Tensor) -> Tensor:  # (K, L, m) -> (K, n, m)
    candidates, width, number = slope.shape
    table = slope.transpose(1, 2).reshape(-1)
    found = table.index_select(0, _places(leaves, candidates * number, width))
    return found.view(candidates, number, *leaves.shape[-2:]).sum(3).transpose(1, 2)


def _spread(leaves: Tensor, margin: Tensor, width: int) -> Tensor:  # (K, n, m) -> (K, L, m)
    candidates, _, number = margin.shape
    out = margin.new_zeros(candidates * number * width)
    entries = margin.transpose(1, 2)[..., None].expand(-1, -1, -1, leaves.shape[-1]).reshape(-1)
    out.index_add_(0, _places(leaves, candidates * number, width), entries)
    return out.view(candidates, number, width).transpose(1, 2)


def _places(leaves: Tensor, tables: int, width: int) -> Tensor:
    if leaves.ndim == 3:
        return leaves.view(-1)
    kind = torch.int32 if tables * width < 2**31 else torch.int64
    return (leaves.to(kind).view(-1) + width * torch.arange(tables, dtype=kind, device=leaves.device)[:, None]).view(-1)


def affine_network(network: Network, widths: Mapping[Version, int]) -> AffineNetwork | None:
    """The affine form of the network; None if a stage that trains, or a later one, is not affine."""
    try:
        affine = AffineNetwork(network, widths)
        affine.slopes({i: dict(network.module(i).named_parameters()) for i in network.positions}, 1)
    except NotAffineError:
        return None
    return affine
