"""Augmentation: noise, masks and mixtures of the rows of a batch, for the candidates that ask for them.

Random draws depend on the seed, the epoch, the step and the virtual shard of a row, and therefore not on the number
of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.pipeline.graph import Version
from sparkdiff.rows import Rows, SparseRows
from sparkdiff.stages.base import FeatureStats
from sparkdiff.training.recipes import Recipe

Target = tuple[Tensor, Tensor]
"""Labels and weights, (n,) each."""


def augmented(
    recipe: Recipe, values: Mapping[Version, Rows], target: Target, stats: Mapping[Version, FeatureStats],
    shards: Sequence[tuple[int, int]], key: tuple[int, ...],
) -> tuple[dict[Version, Rows], list[Target]]:  # fmt: skip
    """The values augmented for this recipe, and the targets over which the loss of a row is summed.

    Args:
        values: the network's fixed inputs. In sparse rows only stored entries change, and sparse rows cannot be
            mixed.
        stats: mean and standard deviation of each.
        shards: (virtual shard, rows) of this batch, in the order of its rows.
        key: the seed and the other numbers that identify this draw.
    """
    rngs = [np.random.default_rng((*key, shard)) for shard, _ in shards]
    sizes = [rows for _, rows in shards]
    out = dict(values)

    def drawn(draw: Callable[[np.random.Generator, int], Any], counts: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.concatenate([draw(rng, n) for rng, n in zip(rngs, counts, strict=True)]))

    for v, x in out.items():
        s = stats[v]
        if isinstance(x, SparseRows):
            ends = x.offsets[np.cumsum(sizes)].tolist()
            entries = np.diff([0, *ends]).tolist()
            if recipe.noise:
                noise = drawn(lambda rng, n: rng.standard_normal(n), entries)
                x = x.with_values(x.values + recipe.noise * s.std[x.indices] * noise)
            if recipe.mask:
                x = x.with_values(x.values * (drawn(lambda rng, n: rng.random(n), entries) >= recipe.mask))
        else:
            width = x.shape[1] if x.ndim == 2 else 1
            std, mean = (s.std, s.mean) if x.ndim == 2 else (s.std[0], s.mean[0])
            if recipe.noise:
                noise = drawn(lambda rng, n, w=width: rng.standard_normal((n, w)), sizes)  # type: ignore[misc]
                x = x + recipe.noise * std * noise.view_as(x)
            if recipe.mask:
                kept = drawn(lambda rng, n, w=width: rng.random((n, w)), sizes) >= recipe.mask  # type: ignore[misc]
                x = torch.where(kept.view_as(x) | (std == 0), x, mean)  # 0: constant, or no number but a category
        out[v] = x
    if not recipe.mixup:
        return out, [target]
    assert not any(isinstance(x, SparseRows) for x in out.values())  # see recipes.candidates
    partner = drawn(lambda rng, n: rng.permutation(n), sizes)  # of the same virtual shard
    partner += torch.from_numpy(np.repeat(np.cumsum([0, *sizes[:-1]]), sizes))
    share = drawn(lambda rng, n: rng.beta(recipe.mixup, recipe.mixup, n), sizes)
    for v, x in out.items():
        if isinstance(x, Tensor):
            own = share.view(-1, *[1] * (x.ndim - 1))
            out[v] = own * x + (1 - own) * x[partner]
    label, weight = target
    return out, [(label, weight * share), (label[partner], weight[partner] * (1 - share))]
