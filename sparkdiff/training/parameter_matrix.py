"""The parameters of all candidates in one matrix with a row for each candidate, and room for their gradients."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparkdiff.pipeline.network import Network
from sparkdiff.training.units import Scales, trained


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


def named_parameters(network: Network) -> dict[int, dict[str, Tensor]]:
    """All parameters of each stage, as they are."""
    return {i: {n: p.detach() for n, p in network.module(i).named_parameters()} for i in network.positions}


class ParameterMatrix:
    """The parameters (K, q) of K candidates: all parameters, or those of the active columns; and room for their gradients.

    Attributes:
        changed: (m,) which of the q entries a step changes; None for all of them. `start` (m,) and `scales` are theirs.
        flat: (K, q) parameters; `gradient` (K, q) is the sum of the rows' gradients.
        parameters: for each stage and name, (K, *shape) views of `flat`, and what does not train as it is `given`.
        gradients: the same views of `gradient`.
        sums: one piece of memory, so that a step needs one sum over the processes: gradient (K, q), losses (K,), curvature (C, q)
            of the candidates that take Newton steps, weight ().
    """

    def __init__(
        self, given: Mapping[int, Mapping[str, Tensor]], parts: Sequence[Piece], values: Tensor, scales: Scales, count: int,
        newton: int = 0, changed: Tensor | None = None,
    ):  # fmt: skip
        self.parts, self.scales, self.changed, size = parts, scales, changed, len(values)
        self.start = self.changing(values[None])[0]
        sizes = [count * size, count, newton * size, 1]
        self.sums = torch.zeros(sum(sizes), dtype=torch.float64)
        gradient, self.losses, curvature, weight = self.sums.split(sizes)
        self.gradient, self.curvature, self.weight = gradient.view(count, size), curvature.view(newton, size), weight[0]
        self.flat, self._by_u = values.repeat(count, 1), values.new_empty(count, len(self.start))
        own, gradients = self.views(self.flat), self.views(self.gradient)
        self.parameters = {i: {**named, **own.get(i, {})} for i, named in given.items()}
        self.gradients = {i: gradients.get(i, {}) for i in given}

    def changing(self, matrix: Tensor) -> Tensor:  # (K, q) -> (K, m)
        return matrix if self.changed is None else matrix.index_select(1, self.changed)

    def views(self, matrix: Tensor) -> dict[int, dict[str, Tensor]]:
        """For each stage and name the parameters that train, as (K, *shape) views of a matrix (K, q)."""
        out: dict[int, dict[str, Tensor]] = {}
        for part in self.parts:
            view = matrix[:, part.first : part.last].view(len(matrix), *part.shape)
            out.setdefault(part.position, {})[part.name] = view
        return out

    def load(self, u: Tensor) -> None:
        """Set `flat` to the parameters at u (K, m)."""
        if self.changed is None:
            self.scales.parameters(self.start, u, self.flat)
        else:
            self.flat.index_copy_(1, self.changed, self.scales.parameters(self.start, u, torch.empty_like(u)))

    def gradient_by_u(self, u: Tensor) -> Tensor:
        """The gradient (K, m) by u, in memory that the next call uses again."""
        self.scales.by_u(self.start, u, self.changing(self.flat), self.changing(self.gradient), self._by_u)
        return self._by_u
