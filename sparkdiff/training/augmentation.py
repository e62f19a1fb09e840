"""Augmentation: noise, masks and mixtures of the rows of a batch, for the candidates that ask for them.

Random draws depend on the seed, the epoch, the step and the virtual shard of a row, and therefore not on the number
of processes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network, routed_versions
from sparkdiff.stages.base import FeatureStats
from sparkdiff.tensors.device import Place, home
from sparkdiff.tensors.rows import Rows, SparseRows, below, rows_at
from sparkdiff.training.recipes import Recipe

Target = tuple[Tensor, Tensor]
"""Labels and weights, (n,) each."""
View = tuple[list[int], dict[Version, Rows], list[Target]]
"""Candidates, the rows as they see them, and the targets over which their losses are summed."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """The position of a batch in the training, which determines the random draws of its augmentation.

    Attributes:
        shards: (virtual shard, number of rows) of this process's rows, in their order; of the rows in `whole` if that
            is given.
        key: seed, epoch and step.
        stats: statistics of the network's fixed inputs.
        whole: values and target of all rows of the virtual shards that contain this process's rows. They are needed as
            the draw for a row depends on the rows before it, and a row may be mixed with any row of its shard.
        own: indices (n,) of this process's rows in `whole`.
    """

    shards: Sequence[tuple[int, int]]
    key: tuple[int, ...]
    stats: Mapping[Version, FeatureStats]
    whole: tuple[Mapping[Version, Rows], Target] | None = None
    own: Tensor | None = None


class Augmenter:
    """Augmentation of a batch's rows for each candidate; candidates with the same settings share the rows.

    Args:
        among: all candidates of the training run, if `recipes` are only some of them; so each candidate gets the same
            random draws as if all were here.

    Attributes:
        groups: the candidates that share their rows.
        order: (K,) the position of each candidate when the groups are concatenated.
    """

    def __init__(
        self, network: Network, recipes: Sequence[Recipe], device: torch.device, among: Sequence[Recipe] | None = None
    ):
        self.network, self.recipes, self.routed = network, recipes, routed_versions(network)
        groups: dict[tuple[float, ...], list[int]] = {}
        for k, r in enumerate(recipes):
            groups.setdefault((r.noise, r.mask, r.mixup), []).append(k)
        self.groups = list(groups.values())
        drawn: list[tuple[float, ...]] = list(dict.fromkeys((r.noise, r.mask, r.mixup) for r in among or recipes))
        self.keys = [drawn.index(settings) for settings in groups]
        self.order = torch.tensor([k for rows in self.groups for k in rows], device=device).argsort()

    @torch.no_grad()
    def views(self, values: dict[Version, Rows], target: Target, draw: Draw) -> list[View]:
        """The view of the rows for each group of candidates."""
        out, drawn = [], []
        for key, rows in zip(self.keys, self.groups, strict=True):
            recipe = self.recipes[rows[0]]
            if not recipe.augments:
                out.append((rows, values, [target]))
                continue
            given, labels = draw.whole or (values, target)
            beside = [*self.network.graph.head.lossReads, *(v for v in self.network.flags if v in values)]
            inputs = {v: given[v] for v in draw.stats}
            seen, targets = augment(recipe, inputs, labels, draw.stats, draw.shards, (*draw.key, key))
            if (own := draw.own) is not None:
                seen = {v: rows_at(x, own) for v, x in seen.items()}
                targets = [(label[own], weight[own]) for label, weight in targets]
            out.append((rows, seen | {v: values[v] for v in beside}, targets))
            drawn.append(out[-1][1])
        if drawn and self.routed:  # all at once: for so few rows the overhead of a call dominates
            together = {v: below([seen[v] for seen in drawn]) for v in draw.stats}
            self.network.route(together, self.routed)
            for v in self.routed:
                for seen, leaves in zip(drawn, together[v].split(len(target[0])), strict=True):  # type: ignore[union-attr]
                    seen[v] = leaves
        return out


def augment(
    recipe: Recipe,
    values: Mapping[Version, Rows],
    target: Target,
    stats: Mapping[Version, FeatureStats],
    shards: Sequence[tuple[int, int]],
    key: tuple[int, ...],
) -> tuple[dict[Version, Rows], list[Target]]:
    """The values augmented for this recipe, and the targets over which the loss of a row is summed.

    Args:
        values: the network's fixed inputs. In sparse rows only stored entries change, and sparse rows cannot be mixed.
        stats: mean and standard deviation of each input.
        shards: (virtual shard, rows) of this batch, in the order of its rows.
        key: the seed and the other numbers that identify this draw.
    """
    rngs = [np.random.default_rng((*key, shard)) for shard, _ in shards]
    sizes = [rows for _, rows in shards]
    out = dict(values)

    def random_tensor(draw: Callable[[np.random.Generator, int], Any], counts: Sequence[int]) -> Tensor:
        found = torch.from_numpy(np.concatenate([draw(rng, n) for rng, n in zip(rngs, counts, strict=True)]))
        # Drawn on the CPU, so that the draws are the same for all devices.
        return Place(target[0].device).numbers(found, wait=False)

    for v, x in out.items():
        s = stats[v]
        if isinstance(x, SparseRows):
            ends = home(x.offsets)[np.cumsum(sizes)].tolist()
            entries = np.diff([0, *ends]).tolist()
            if recipe.noise:
                noise = random_tensor(lambda rng, n: rng.standard_normal(n), entries)
                x = x.with_values(x.values + (recipe.noise * s.std[x.indices] * noise).to(x.values.dtype))
            if recipe.mask:
                x = x.with_values(x.values * (random_tensor(lambda rng, n: rng.random(n), entries) >= recipe.mask))
        else:
            width = x.shape[1] if x.ndim == 2 else 1
            std, mean = (s.std, s.mean) if x.ndim == 2 else (s.std[0], s.mean[0])
            if recipe.noise:
                noise = random_tensor(lambda rng, n, w=width: rng.standard_normal((n, w)), sizes)  # type: ignore[misc]
                x = x + (recipe.noise * std * noise.view_as(x)).to(x.dtype)
            if recipe.mask:
                kept = random_tensor(lambda rng, n, w=width: rng.random((n, w)), sizes) >= recipe.mask  # type: ignore[misc]
                x = torch.where(
                    kept.view_as(x) | (std == 0), x, mean.to(x.dtype)
                )  # std 0: constant, or a category's number
        out[v] = x
    if not recipe.mixup:
        return out, [target]
    assert not any(isinstance(x, SparseRows) for x in out.values())  # see recipes.recipes_for
    partner = random_tensor(lambda rng, n: rng.permutation(n), sizes)  # within the same virtual shard
    first = torch.from_numpy(np.repeat(np.cumsum([0, *sizes[:-1]]), sizes))
    partner += Place(partner.device).numbers(first, wait=False)
    share = random_tensor(lambda rng, n: rng.beta(recipe.mixup, recipe.mixup, n), sizes)
    for v, x in out.items():
        if isinstance(x, Tensor):
            own = share.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
            out[v] = own * x + (1 - own) * x[partner]
    label, weight = target
    return out, [(label, weight * share), (label[partner], weight[partner] * (1 - share))]
