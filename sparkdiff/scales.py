"""The natural units of all trainable parameters of a network, as one flat vector: what optimizers, anchors and clips act on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from sparkdiff.network import Network
from sparkdiff.options import Options
from sparkdiff.stages.base import FeatureStats, LabelStats

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
class Scales:
    """Per trainable entry its natural unit, 0 where it must not move; p = p0 + unit * u, and p0 * exp(unit * u) if positive."""

    unit: Tensor  # (p,)
    positive: Tensor | None  # (p,) bool, None where no parameter is positive
    rate: Tensor  # (p,) a stage's own learning rate over the common one

    @staticmethod
    def of(
        network: Network, x: Mapping[int, FeatureStats], y: LabelStats, options: Options,
        others: Mapping[int, LabelStats] | None = None,
    ) -> tuple[Scales, dict[str, int]]:  # fmt: skip
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
        unit, positive, rate, frozen = [], [], [], {}
        for i, name, p in trained(network):
            module, label = network.module(i), (others or {}).get(i, y)
            mask = module.counts().get(name, torch.ones_like(p, dtype=torch.bool))
            supported = module.supported(x[i], label).get(name, mask)
            if bool((mask & ~supported).any()):
                frozen[f"{network.graph.leaves[i].uid}.{name}"] = int((mask & ~supported).sum())
            own = torch.as_tensor(
                1.0 if name in module.positive else module.units(x[i], label).get(name, 1.0), dtype=torch.float64
            )
            unit.append((own.expand_as(p) * (mask & supported & p.detach().isfinite())).flatten())
            positive.append(torch.full((p.numel(),), name in module.positive))
            rate.append(torch.full((p.numel(),), rates.get(i, 1.0), dtype=torch.float64))
        flags = torch.cat(positive)
        return Scales(torch.cat(unit), flags if bool(flags.any()) else None, torch.cat(rate)), frozen

    def moved(self, network: Network, flat: Tensor) -> dict[str, tuple[float, float]]:
        """How far each parameter is from `flat` (p,), in its units: {uid.parameter: (largest, root mean square)}."""
        start = flattened(network)
        change = flat - start
        if self.positive is not None:
            change = torch.where(self.positive, torch.log(flat / start), change)
        out, first = {}, 0
        for i, name, p in trained(network):
            unit, own = self.unit[first : first + p.numel()], change[first : first + p.numel()]
            own = (own / unit)[unit != 0].abs()
            first += p.numel()
            if len(own):
                out[f"{network.graph.leaves[i].uid}.{name}"] = (float(own.max()), float((own**2).mean().sqrt()))
        return out
