"""Strengths of augmentation by the slope of the validation loss: the search of `augmentation.py`.

A policy has a strength for noise, for masked entries, for mixup and for exchanged categories; noise and masks may have one per
group of features. The search trains the pipeline once, as a candidate of `thorough` trains, on rows that the policy has changed.
After every few steps of Adam the loss of validation rows is derived through these steps by the logarithms of the strengths,
which then take a step of Adam themselves (after one step, as DARTS, Liu et al. 2019, and DADA, Li et al. 2020). Noise is
reparameterised, Beta(a, a) has its implicit derivative, and masks and exchanges are 0 or 1 with the derivative of a relaxed
Bernoulli (Jang et al. 2017). The result is the geometric mean of the strengths over the second half of the search.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sparkdiff.objectives.objective import Objective
from sparkdiff.pipeline.network import Network
from sparkdiff.training.parameters import NaturalUnits, parameter_vector, trainable_parameters
from sparkdiff.training.recipes import Recipe

KINDS = ("noise", "mask", "mixup", "swap")
START = {"noise": 0.1, "mask": 0.05, "mixup": 0.1, "swap": 0.05}
LEAST, MOST = 1e-3, {"noise": 1.0, "mask": 0.5, "mixup": 1.0, "swap": 0.5}
TEMPERATURE = 0.5
"""Of the relaxed Bernoulli."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of torch's Adam."""
OUTER_RATE = {1: 0.02, 10: 0.1}
"""Step size of the logarithms of the strengths, by the steps that are unrolled."""
BATCH, VALIDATION = 128, 512
"""Rows of a step, and validation rows whose loss is derived."""


@dataclasses.dataclass(frozen=True)
class Policy(Recipe):
    """A candidate that exchanges categories, too: the share that gets the level of another row.

    Attributes:
        noises, masks: of each group of features, in place of `noise` and `mask`, which are their means.
    """

    swap: float = 0.0
    noises: tuple[float, ...] = ()
    masks: tuple[float, ...] = ()

    def __str__(self) -> str:
        return super().__str__() + (f", swap {self.swap:g}" if self.swap else "")


@dataclasses.dataclass(frozen=True)
class Features:
    """Of the inputs: mean and standard deviation (d,), the group of each (d,), and the columns of each category."""

    mean: Tensor
    std: Tensor
    group: Tensor
    categories: tuple[Tensor, ...] = ()


@dataclasses.dataclass(frozen=True)
class Strengths:
    """Noise and masks (G,) of each group, and the others ()."""

    noise: Tensor
    mask: Tensor
    mixup: Tensor
    swap: Tensor

    @staticmethod
    def of(logs: Tensor) -> "Strengths":
        groups = (len(logs) - 2) // 2
        found = logs.exp()
        return Strengths(found[:groups], found[groups : 2 * groups], found[-2], found[-1])


def bernoulli(chance: Tensor, random: Tensor) -> Tensor:
    """1 with this chance, else 0, with the derivative of the relaxed one."""
    soft = torch.sigmoid((torch.logit(chance) + torch.logit(random)) / TEMPERATURE)
    return soft + ((soft > 0.5).to(soft) - soft).detach()


def changed(x: Tensor, features: Features, s: Strengths, random: np.random.Generator) -> Tensor:
    """The rows (n, d) with exchanged categories, noise and masks."""
    n, group = len(x), features.group

    def uniform(*shape: int) -> Tensor:
        return torch.from_numpy(random.random(shape).clip(1e-9, 1 - 1e-9))

    if features.categories:
        other, swaps = (
            x[torch.from_numpy(random.permutation(n))],
            bernoulli(s.swap, uniform(n, len(features.categories))),
        )
        x = x.clone()
        for j, columns in enumerate(features.categories):
            own = swaps[:, j, None]
            x[:, columns] = own * other[:, columns] + (1 - own) * x[:, columns]
    x = x + s.noise[group] * features.std * torch.from_numpy(random.standard_normal(x.shape))
    masked = bernoulli(s.mask[group], uniform(*x.shape))
    return torch.where(features.std > 0, masked * features.mean + (1 - masked) * x, x)


class Search:
    """One training on changed rows, along which the strengths are learned.

    Args:
        rows: inputs (n, d) and labels (n,) of "train" and "validation".
        grouped: whether noise and masks have a strength per group.
        unrolled: steps of Adam that the validation loss is derived through.
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        units: NaturalUnits,
        features: Features,
        rows: Mapping[str, tuple[Tensor, Tensor]],
        *,
        seed: int,
        grouped: bool,
        unrolled: int,
    ):
        self.network, self.objective, self.units, self.rows, self.unrolled = network, objective, units, rows, unrolled
        groups = int(features.group.max()) + 1 if grouped else 1
        self.features = features if grouped else dataclasses.replace(features, group=torch.zeros_like(features.group))
        self.random = np.random.default_rng((seed, 2))
        torch.manual_seed(seed)  # of Beta's draws
        kinds = ("noise",) * groups + ("mask",) * groups + ("mixup", "swap")
        self.logs = torch.tensor([math.log(START[k]) for k in kinds], dtype=torch.float64)
        self.most = torch.tensor([math.log(MOST[k]) for k in kinds], dtype=torch.float64)
        self.start = parameter_vector(network)

    def loss(self, u: Tensor, x: Tensor, targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean over the rows at the parameters u (p,), which have natural units; targets are labels and weights (n,)."""
        flat = self.start + u * self.units.unit
        values = {part: flat[part.first : part.last].view(part.shape) for part, _ in trainable_parameters(self.network)}
        for part, constraint in self.units.constrained:
            values[part] = constraint.value(part.of(self.start), part.of(u) * part.of(self.units.unit))
        named = {f"network.stages.{part.position}.{part.name}": value for part, value in values.items()}
        margin = torch.func.functional_call(_Margin(self.network), named, (x,))
        assert self.objective.rows is not None
        total = sum((w * self.objective.rows(margin, y, w)).sum() for y, w in targets)
        return self.objective.scale * total / len(x)  # type: ignore[no-any-return]

    def strengths(self, epochs: int, like: Recipe) -> Policy:
        """Those learned in so many epochs, for a candidate with the rate and the anchor of another."""
        logs, visited = self.logs.clone().requires_grad_(), []
        outer = torch.optim.Adam([logs], lr=OUTER_RATE[self.unrolled], betas=(0.5, 0.99))
        u, moments, step = torch.zeros_like(self.start), (torch.zeros_like(self.start),) * 2, 0
        per_epoch = math.ceil(len(self.rows["train"][1]) / BATCH)
        for _ in range(max(epochs * per_epoch // self.unrolled, 2)):
            u = u.detach().requires_grad_()
            moments = tuple(m.detach() for m in moments)
            now = u
            for _ in range(self.unrolled):
                step += 1
                now, moments = self._stepped(now, moments, Strengths.of(logs), step, like)
            x, y = self._drawn("validation", VALIDATION)
            [slope] = torch.autograd.grad(self.loss(now, x, [(y, torch.ones_like(y))]), [logs])
            logs.grad = slope.nan_to_num()
            outer.step()
            with torch.no_grad():
                logs.clamp_(math.log(LEAST)).copy_(torch.minimum(logs, self.most))
            visited.append(logs.detach().clone())
            u = now
        found = Strengths.of(torch.stack(visited[len(visited) // 2 :]).mean(0))
        return Policy(
            like.learningRate,
            like.regAnchor,
            noise=float(found.noise.mean()),
            mask=float(found.mask.mean()),
            mixup=float(found.mixup),
            swap=float(found.swap) if self.features.categories else 0.0,
            noises=tuple(found.noise.tolist()),
            masks=tuple(found.mask.tolist()),
        )

    def _drawn(self, split: str, most: int) -> tuple[Tensor, Tensor]:
        x, y = self.rows[split]
        at = torch.from_numpy(self.random.choice(len(y), min(most, len(y)), replace=False))
        return x[at], y[at]

    def _stepped(
        self, u: Tensor, moments: tuple[Tensor, ...], s: Strengths, step: int, like: Recipe
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The parameters after a step of Adam on changed rows, and its moments; all depend on the strengths."""
        x, y = self._drawn("train", BATCH)
        x = changed(x, self.features, s, self.random)
        partner = torch.from_numpy(self.random.permutation(len(x)))
        own = torch.distributions.Beta(s.mixup, s.mixup).rsample((len(x),)).clamp(1e-9, 1 - 1e-9)
        x = own[:, None] * x + (1 - own[:, None]) * x[partner]
        loss = self.loss(u, x, [(y, own), (y[partner], 1 - own)])
        [slope] = torch.autograd.grad(loss, [u], create_graph=True)
        slope = slope + like.regAnchor * u
        first = BETAS[0] * moments[0] + (1 - BETAS[0]) * slope
        second = BETAS[1] * moments[1] + (1 - BETAS[1]) * slope.square()
        spread = (second / (1 - BETAS[1] ** step) + EPSILON**2).sqrt()
        return u - like.learningRate * first / (1 - BETAS[0] ** step) / spread, (first, second)


class _Margin(torch.nn.Module):
    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.margin({("c-1", -1): x})
