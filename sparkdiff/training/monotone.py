"""Penalties on slopes of the wrong sign, which make a prediction rise (or fall) with a feature. The penalty
measures slopes in natural units: a typical scale of the margin per standard deviation of the feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.evaluation.feature_names import FeatureNames
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.linear import RISING
from sparkdiff.training.affine import AffineMargin, affine_network
from sparkdiff.training.parameters import named_parameters


@dataclass(frozen=True)
class MonotonePenalty:
    """The penalty: sum over features of strength * (slope of the margin, in natural units, if of the wrong sign)^2.

    Attributes:
        signs: for each fixed version (d,), 1 if the margin should rise, -1 if it should fall, 0 without a request.
        weights: for each fixed version (d,), strength * (standard deviation of the feature / natural unit of the
            margin)^2.
    """

    signs: Mapping[Version, Tensor]
    weights: Mapping[Version, Tensor]

    def gradients(self, slopes: AffineMargin) -> dict[Version, Tensor]:
        """The gradient of the penalty with respect to the slopes of each fixed version, (K, d, 1)."""
        found = {v: torch.zeros_like(slope) for v, slope in slopes.of.items()}
        for v, sign in self.signs.items():
            wrong = (-sign * slopes.of[v][:, :, 0]).clamp_min(0)  # (K, d)
            found[v] = (-2 * sign * self.weights[v] * wrong)[:, :, None]
        return found


class SlopeSigns:
    """The requested signs of slopes, {feature: strength}; the sign of the strength is the sign of the slope.

    Args:
        names: the names of the inputs' entries.
    """

    def __init__(self, given: Mapping[str, float], network: Network, names: FeatureNames):
        self.given, self.network, self.names = given, network, names
        # There are no slopes that show where predictions of trees rise.
        self.affine = None if network.trees() else affine_network(network, names.widths)

    def penalty(self, stats: Mapping[Version, FeatureStats], y: LabelStats) -> MonotonePenalty:
        """The penalty for these requests.

        Args:
            stats: statistics of the network's fixed inputs.

        Raises:
            InputError: the margin isn't linear in the inputs, has an entry per class, or falls as the mean rises; or a
                name is not the name of an input.
        """
        network, names, head = self.network, self.names, self.network.head
        uid = network.graph.head.uid
        if self.affine is None or head.wide:
            why = "is not linear in the inputs"
            if head.wide:
                why = "has a margin for each class" if head.classes else "has more than one number in its margin"
            raise InputError(
                f"penalties.monotone: the prediction of {uid} {why}, so there is no single slope; leave it out"
            )
        if head.falling_link:
            raise InputError(
                f"penalties.monotone needs a link whose mean increases with the margin ({', '.join(RISING)}), "
                f"but {uid} has {head.falling_link}; leave it out"
            )
        places = {names.name(v, j): (v, j) for v, s in stats.items() for j in range(len(s.std))}
        unit = head.margin_unit(y)
        signs = {v: torch.zeros_like(s.std) for v, s in stats.items()}
        weights = {v: torch.zeros_like(s.std) for v, s in stats.items()}
        for name, strength in self.given.items():
            if name not in places:
                raise InputError(f"penalties.monotone: {name!r} is not an input. {did_you_mean(name, places)}")
            v, j = places[name]
            signs[v][j] = 1.0 if strength > 0 else -1.0
            weights[v][j] = abs(strength) * (stats[v].std[j] / unit) ** 2
        return MonotonePenalty({v: s for v, s in signs.items() if bool((s != 0).any())}, weights)

    def violations(self, network: Network) -> list[str]:
        """One sentence for each requested sign that this trained network does not have."""
        assert self.affine is not None
        slopes = self.affine.slopes(named_parameters(network), 1)
        out = []
        for v, slope in slopes.of.items():
            for j, value in enumerate(slope[0, :, 0].tolist()):
                wish = self.given.get(self.names.name(v, j)) if value else None
                if wish is not None and value * wish < 0:
                    verb = "fall" if value < 0 else "rise"
                    out.append(
                        f"predictions still {verb} with {self.names.name(v, j)!r} (slope {value:.3g} of the margin): raise "
                        f"penalties.monotone.{self.names.name(v, j)}, now {wish:g}"
                    )
        return out
