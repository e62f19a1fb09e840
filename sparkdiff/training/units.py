"""The natural units of all trainable parameters of a network, as one flat vector. Optimizers, anchors and clipping
use them.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.constraints import Constraint
from sparkdiff.stages.trainable import FeatureStats, LabelStats

Named = tuple[int, str, Tensor]


def trained(network: Network) -> list[Named]:
    """(position, name, parameter) of every parameter that trains."""
    return [(i, n, p) for i in network.positions for n, p in network.module(i).named_parameters() if p.requires_grad]


def flattened(network: Network) -> Tensor:
    """All trainable parameters, (p,), in the order of `trained`."""
    return torch.cat([p.detach().flatten() for _, _, p in trained(network)])


@torch.no_grad()
def load(network: Network, flat: Tensor) -> None:
    """Set all trainable parameters from (p,)."""
    parameters = [p for _, _, p in trained(network)]
    for p, new in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.copy_(new.view_as(p))


@dataclasses.dataclass(frozen=True)
class Constrained:
    """The entries [first, last) of the flat vector, which are one parameter of this shape."""

    first: int
    last: int
    shape: tuple[int, ...]
    constraint: Constraint

    def of(self, matrix: Tensor) -> Tensor:
        """These entries of (K, p) or (p,), as (K, *shape) or (*shape)."""
        return matrix[..., self.first : self.last].view(matrix.shape[:-1] + self.shape)


@dataclasses.dataclass(frozen=True)
class Scales:
    """Natural units of the trainable entries: p = p0 + unit * u, where not constrained."""

    unit: Tensor  # (p,) 0 where an entry must not move
    constrained: tuple[Constrained, ...]
    rate: Tensor  # a stage's own learning rate over the common one, (p,); (1,) where no stage has one

    @staticmethod
    def of(
        network: Network, x: Mapping[int, FeatureStats], y: LabelStats, options: Options,
        others: Mapping[int, LabelStats] | None = None,
    ) -> "tuple[Scales, dict[str, int]]":  # fmt: skip
        """The scales, and per parameter the number of entries frozen for want of support.

        Args:
            x: each stage's input.
            y: the labels; `others`: what stands in their place for stages that predict something else.
        """
        rates = {
            i: r / options.learningRate
            for n, r in options.learningRates.items()
            for i in network.graph.select([n], "learningRates")
        }
        unit, constrained, rate, frozen, first = [], [], [], {}, 0
        for i, name, p in trained(network):
            module, label = network.module(i), (others or {}).get(i, y)
            mask = module.entry_mask().get(name, torch.ones_like(p, dtype=torch.bool))
            supported = module.supported(x[i], label).get(name, mask)
            if bool((mask & ~supported).any()):
                frozen[f"{network.graph.vertices[i].uid}.{name}"] = int((mask & ~supported).sum())
            own = torch.as_tensor(
                1.0 if name in module.positive else module.units(x[i], label).get(name, 1.0), dtype=torch.float64
            )
            unit.append((own.expand_as(p) * (mask & supported & p.detach().isfinite())).flatten())
            constraint, last = module.constraints().get(name), first + p.numel()
            if constraint is not None:
                constrained.append(Constrained(first, last, tuple(p.shape), constraint))
            first = last
            rate.append(torch.tensor(rates.get(i, 1.0), dtype=torch.float64).expand(p.numel()))
        one = torch.ones(1, dtype=torch.float64)
        return Scales(torch.cat(unit), tuple(constrained), torch.cat(rate) if rates else one), frozen

    def parameters(self, start: Tensor, u: Tensor, out: Tensor) -> Tensor:
        """Put the parameters at u (K, p) into `out`; `start` (p,) are those at 0."""
        torch.addcmul(start, u, self.unit, out=out)
        for part in self.constrained:
            move = part.of(u) * part.of(self.unit)
            part.of(out).copy_(part.constraint.value(part.of(start), move))
        return out

    def by_u(self, start: Tensor, u: Tensor, flat: Tensor, gradient: Tensor, out: Tensor) -> None:
        """Put the gradient by u into `out`, from the one by the parameters `flat`, all (K, p)."""
        torch.mul(gradient, self.unit, out=out)
        for part in self.constrained:
            value, unit = part.of(flat), part.of(self.unit)
            move = part.of(u) * unit
            part.of(out).copy_(part.constraint.gradient(part.of(start), move, value, part.of(gradient)) * unit)

    def moved(self, network: Network, flat: Tensor) -> dict[str, tuple[float, float]]:
        """How far each parameter is from `flat` (p,), in its units: {uid.parameter: (largest, root mean square)}."""
        start = flattened(network)
        change = flat - start
        for part in self.constrained:
            part.of(change).copy_(part.constraint.moved(part.of(start), part.of(flat)))
        out, first = {}, 0
        for i, name, p in trained(network):
            unit, own = self.unit[first : first + p.numel()], change[first : first + p.numel()]
            own = (own / unit)[unit != 0].abs()
            first += p.numel()
            if len(own):
                out[f"{network.graph.vertices[i].uid}.{name}"] = (float(own.max()), float((own**2).mean().sqrt()))
        return out
