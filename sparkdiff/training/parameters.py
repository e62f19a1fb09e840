"""The trainable parameters of a network as one flat vector, in natural units, and of all candidates as one matrix.

The natural unit of a parameter is its typical scale. Optimizers, anchors and clipping use natural units.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.constraints import Constraint


class Piece(NamedTuple):
    """The range [first, last) of the flat vector that holds one parameter."""

    position: int
    name: str
    shape: tuple[int, ...]
    first: int
    last: int

    def of(self, matrix: Tensor) -> Tensor:
        """A view of these entries of (K, p) or (p,), as (K, *shape) or (*shape)."""
        entries = matrix.narrow(
            -1, self.first, self.last - self.first
        )  # with few calls: ten of these views make up a step
        return entries if len(self.shape) == 1 else entries.view(matrix.shape[:-1] + self.shape)


def trainable_parameters(network: Network) -> list[tuple[Piece, nn.Parameter]]:
    """The trainable parameters, in the order of the flat vector."""
    out, first = [], 0
    for i in network.positions:
        for name, p in network.module(i).named_parameters():
            if p.requires_grad:
                out.append((Piece(i, name, tuple(p.shape), first, first + p.numel()), p))
                first += p.numel()
    return out


def parameter_vector(network: Network) -> Tensor:
    """All trainable parameters, (p,)."""
    return torch.cat([p.detach().flatten() for _, p in trainable_parameters(network)])


def load(network: Network, flat: Tensor) -> None:
    """Set all trainable parameters from (p,)."""
    vector_to_parameters(flat.clone(), [p for _, p in trainable_parameters(network)])


def named_parameters(network: Network) -> dict[int, dict[str, Tensor]]:
    """All parameters of each stage, detached but not copied."""
    return {i: {n: p.detach() for n, p in network.module(i).named_parameters()} for i in network.positions}


@dataclasses.dataclass(frozen=True)
class NaturalUnits:
    """The natural units of the trainable entries: p = p0 + unit * u, unless constrained."""

    unit: Tensor  # (p,); 0 if an entry must not move
    constrained: tuple[tuple[Piece, Constraint], ...]
    rate: Tensor  # a stage's own learning rate over the common one, (p,); (1,) if no stage has its own

    @staticmethod
    def of(
        network: Network,
        x: Mapping[int, FeatureStats],
        y: LabelStats,
        options: Options,
        others: Mapping[int, LabelStats] | None = None,
    ) -> "tuple[NaturalUnits, dict[str, int]]":
        """The units, and per parameter the number of entries that are frozen because too few rows support them.

        Args:
            x: statistics of each stage's input.
            y: statistics of the labels.
            others: statistics that replace `y` for stages that predict something else.
        """
        rates = {
            i: r / options.learningRate
            for n, r in options.learningRates.items()
            for i in network.graph.select([n], "learningRates")
        }
        unit, constrained, rate, frozen = [], [], [], {}
        for part, p in trainable_parameters(network):
            i, name, module = part.position, part.name, network.module(part.position)
            label = (others or {}).get(i, y)
            mask = module.entry_mask().get(name, torch.ones_like(p, dtype=torch.bool))
            supported = module.supported(x[i], label).get(name, mask)
            if bool((mask & ~supported).any()):
                frozen[f"{network.graph.vertices[i].uid}.{name}"] = int((mask & ~supported).sum())
            own = torch.as_tensor(
                1.0 if name in module.positive else module.units(x[i], label).get(name, 1.0), dtype=torch.float64
            )
            unit.append((own.expand_as(p) * (mask & supported & p.detach().isfinite())).flatten())
            if (constraint := module.constraints().get(name)) is not None:
                constrained.append((part, constraint))
            rate.append(torch.full((p.numel(),), rates.get(i, 1.0), dtype=torch.float64))
        one = torch.ones(1, dtype=torch.float64)
        return NaturalUnits(torch.cat(unit), tuple(constrained), torch.cat(rate) if rates else one), frozen

    def parameters(self, start: Tensor, u: Tensor, out: Tensor) -> Tensor:
        """Write the parameters at u (K, p) into `out`; `start` (p,) are those at u = 0."""
        torch.addcmul(start, u, self.unit, out=out)
        for part, constraint in self.constrained:
            move = part.of(u) * part.of(self.unit)
            part.of(out).copy_(constraint.value(part.of(start), move))
        return out

    def by_u(self, start: Tensor, u: Tensor, flat: Tensor, gradient: Tensor, out: Tensor) -> None:
        """Write the gradient with respect to u into `out`, given the gradient with respect to the parameters `flat`,
        all (K, p).
        """
        torch.mul(gradient, self.unit, out=out)
        for part, constraint in self.constrained:
            value, unit = part.of(flat), part.of(self.unit)
            move = part.of(u) * unit
            part.of(out).copy_(constraint.gradient(part.of(start), move, value, part.of(gradient)) * unit)

    def distances(self, network: Network, flat: Tensor) -> dict[str, tuple[float, float]]:
        """Distance of each parameter from `flat` (p,), in its units: {uid.parameter: (largest, root mean square)}."""
        start, out = parameter_vector(network), {}
        change = flat - start
        for part, constraint in self.constrained:
            part.of(change).copy_(constraint.move_between(part.of(start), part.of(flat)))
        for part, _ in trainable_parameters(network):
            unit = part.of(self.unit)
            own = (part.of(change) / unit)[unit != 0].abs()
            if len(own):
                uid = network.graph.vertices[part.position].uid
                out[f"{uid}.{part.name}"] = (float(own.max()), float((own**2).mean().sqrt()))
        return out


class ParameterMatrix:
    """The parameters (K, q) of K candidates (all parameters, or those at the active columns), and memory for their
    gradients.

    Attributes:
        changed: (m,) indices of the q entries that a step changes; None for all of them. `start` (m,) and `units`
            belong to these entries.
        flat: (K, q) parameters; `gradient` (K, q) is the sum of the rows' gradients.
        parameters: for each stage and name, (K, *shape) views of `flat`; parameters that do not train are taken from
            `given`.
        gradients: the same views of `gradient`.
        sums: one block of memory, so that a step needs one sum over the processes: gradient (K, q), losses (K,),
            curvature (C, q) of the candidates that take Newton steps, weight ().
    """

    def __init__(
        self,
        given: Mapping[int, Mapping[str, Tensor]],
        parts: Sequence[Piece],
        values: Tensor,
        units: NaturalUnits,
        count: int,
        newton: int = 0,
        changed: Tensor | None = None,
    ):
        self.parts, self.units, self.changed, size = parts, units, changed, len(values)
        self.start = self.changing(values[None])[0]
        sizes = [count * size, count, newton * size, 1]
        self.sums = values.new_zeros(sum(sizes))
        gradient, self.losses, curvature, weight = self.sums.split(sizes)
        self.gradient, self.curvature, self.weight = gradient.view(count, size), curvature.view(newton, size), weight[0]
        self.flat, self._by_u = values.repeat(count, 1), values.new_empty(count, len(self.start))
        own, gradients = self.views(self.flat), self.views(self.gradient)
        self.parameters = {i: {**named, **own.get(i, {})} for i, named in given.items()}
        self.gradients = {i: gradients.get(i, {}) for i in given}

    def changing(self, matrix: Tensor) -> Tensor:  # (K, q) -> (K, m)
        return matrix if self.changed is None else matrix.index_select(1, self.changed)

    def views(self, matrix: Tensor) -> dict[int, dict[str, Tensor]]:
        """Views (K, *shape) of a matrix (K, q), one for each stage and name of a trainable parameter."""
        out: dict[int, dict[str, Tensor]] = {}
        for part in self.parts:
            out.setdefault(part.position, {})[part.name] = part.of(matrix)
        return out

    def load(self, u: Tensor) -> None:
        """Set `flat` to the parameters at u (K, m)."""
        if self.changed is None:
            self.units.parameters(self.start, u, self.flat)
        else:
            self.flat.index_copy_(1, self.changed, self.units.parameters(self.start, u, torch.empty_like(u)))

    def gradient_by_u(self, u: Tensor) -> Tensor:
        """The gradient (K, m) with respect to u, in memory that the next call reuses."""
        self.units.by_u(self.start, u, self.changing(self.flat), self.changing(self.gradient), self._by_u)
        return self._by_u
