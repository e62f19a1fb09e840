"""One training loop for a set of candidate recipes over one stream. Knows torch and the stream only."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.graph import Version
from sparkdiff.losses import Objective
from sparkdiff.measure import Data, Score, features, scalar, score
from sparkdiff.network import Network
from sparkdiff.options import Options
from sparkdiff.stages.base import FeatureStats, LabelStats, Rows, StageModule

SMALL_STEP = 10_000_000
"""Parameters times rows of a step below which one thread is faster."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, fused=True),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One candidate's settings."""

    learningRate: float
    regAnchor: float


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training found.

    Attributes:
        history: a row per epoch and candidate, the original as epoch 0.
        gains: (C, B) per column (candidate, epoch >= 1) the block sums of w * (loss of the original - loss).
        weights: (B,) block sums of w.
        steps: the (candidate, epoch) of each column of `gains`.
        network: the network at the column with the largest mean gain (the original where none gains).
        moved: per parameter how far it moved, in its natural units: {uid.parameter: (largest, root mean square)}.
        frozen: entries that stayed as they were for want of training rows.
    """

    history: list[dict[str, Any]]
    gains: Tensor
    weights: Tensor
    steps: list[tuple[int, int]]
    network: Network
    moved: dict[str, tuple[float, float]]
    frozen: dict[str, int]


def candidates(options: Options, validationRows: int) -> list[Recipe]:
    """The recipes to try: the gentle one, and from 1,000 validation rows one with ten times its rate and anchor."""
    gentle = Recipe(options.learningRate, options.regAnchor)
    return [gentle] if validationRows < 1000 else [gentle, Recipe(10 * options.learningRate, 10 * options.regAnchor)]


Named = tuple[int, str, Tensor]


def trained(network: Network) -> list[Named]:
    """(position, name, parameter) of every parameter that trains."""
    return [(i, n, p) for i in network.positions for n, p in network.module(i).named_parameters() if p.requires_grad]


@dataclasses.dataclass(frozen=True)
class Scales:
    """Natural units of all trainable parameters, flat, in the order of `trained`; 0 where an entry must not move."""

    unit: Tensor  # (p,)
    positive: Tensor | None  # (p,) bool, None where no parameter is positive
    pull: Tensor  # (p,) what a unit of the anchor weighs here, so that a stage's own rate doesn't change its anchor

    @staticmethod
    def of(
        network: Network, x: Mapping[int, FeatureStats], y: LabelStats, options: Options
    ) -> tuple[Scales, dict[str, int]]:
        """The scales, and per parameter the number of entries frozen for want of support."""
        rates = {
            i: r / options.learningRate
            for n, r in options.learningRates.items()
            for i in network.graph.select([n], "learningRates")
        }
        unit, positive, pull, frozen = [], [], [], {}
        for i, name, p in trained(network):
            module = network.module(i)
            mask = module.counts().get(name, torch.ones_like(p, dtype=torch.bool))
            supported = module.supported(x[i], y).get(name, mask)
            if bool((mask & ~supported).any()):
                frozen[f"{network.graph.leaves[i].uid}.{name}"] = int((mask & ~supported).sum())
            rate = rates.get(i, 1.0)
            own = torch.as_tensor(
                1.0 if name in module.positive else module.units(x[i], y).get(name, 1.0), dtype=torch.float64
            )
            unit.append((own.expand_as(p) * rate * (mask & supported & p.detach().isfinite())).flatten())
            positive.append(torch.full((p.numel(),), name in module.positive))
            pull.append(torch.full((p.numel(),), rate**2, dtype=torch.float64))
        flags = torch.cat(positive)
        return Scales(torch.cat(unit), flags if bool(flags.any()) else None, torch.cat(pull)), frozen


class Candidate:
    """A network of its own in training: all its trainable parameters are views of one flat vector p = p0 + unit * u.

    Positive parameters are p = p0 * exp(unit * u). The optimizer works on u, in natural units; u = 0 is the original.
    """

    def __init__(self, network: Network, recipe: Recipe, options: Options, scales: Scales, original: float):
        self.network, self.recipe, self.scales, self.clip = network.clone(), recipe, scales, options.gradientClip
        parameters = [p for _, _, p in trained(self.network)]
        self.flat = torch.cat([p.detach().flatten() for p in parameters])
        self.gradient = torch.zeros_like(self.flat)
        first = 0
        for p in parameters:
            last = first + p.numel()
            p.data, p.grad = self.flat[first:last].view_as(p), self.gradient[first:last].view_as(p)
            first = last
        self.start, self.u = self.flat.clone(), torch.zeros_like(self.flat)
        self.u.grad = torch.zeros_like(self.flat)
        self.optimizer = OPTIMIZERS[options.optimizer]([self.u], recipe.learningRate)
        stages = (self.network.module(i) for i in network.positions)
        self.projects = [m for m in stages if type(m).project_ is not StageModule.project_]
        self.best, self.best_flat, self.since, self.active = original, self.flat.clone(), 0, True
        self.loss = self.weight = torch.zeros((), dtype=torch.float64)

    def step(self, values: dict[Version, Rows], label: Tensor, weight: Tensor, objective: Objective) -> None:
        """One optimizer step on one batch."""
        total = weight.sum()
        self.gradient.zero_()
        loss = (objective.rows(self.network.margin(values), label, weight) * weight).sum()
        (loss * (objective.scale / total)).backward()
        self.loss, self.weight = self.loss + loss.detach(), self.weight + total
        with torch.no_grad():
            s, u = self.scales, self.u
            slope = s.unit if s.positive is None else torch.where(s.positive, s.unit * self.flat, s.unit)
            torch.mul(self.gradient, slope, out=u.grad)
            u.grad.addcmul_(u, s.pull, value=self.recipe.regAnchor)  # type: ignore[union-attr]
            if self.clip is not None:
                u.grad.mul_((self.clip / u.grad.norm().clamp_min(1e-300)).clamp_max(1))  # type: ignore[union-attr]
            self.optimizer.step()
            torch.addcmul(self.start, u, s.unit, out=self.flat)
            if s.positive is not None:
                self.flat.copy_(torch.where(s.positive, self.start * torch.exp(u * s.unit), self.flat))
            if self.projects:
                self._project()

    def _project(self) -> None:
        before = self.flat.clone()
        for module in self.projects:
            module.project_()
        moved = (self.flat != before) & (self.scales.unit != 0)  # those go on from where they were put
        self.u[moved] = ((self.flat - self.start) / self.scales.unit)[moved]

    def epoch_loss(self) -> float:
        """Mean training loss of the epoch just done; starts the next one."""
        mean = float(self.loss / self.weight)
        self.loss = self.weight = torch.zeros((), dtype=torch.float64)
        return mean


def train(
    network: Network, data: Data, *, objective: Objective, metric: Objective, original: Score, label: LabelStats,
    recipes: Sequence[Recipe], options: Options, progress: Callable[[str], None] = lambda line: None,
) -> Trained:  # fmt: skip
    """Train one candidate per recipe on the train split, and measure each on the validation split after every epoch.

    All candidates see the same batches. A candidate stops when its validation metric hasn't improved for
    `options.patience` epochs, or when it diverges.
    """
    scales, frozen = Scales.of(network, features(network, data), label, options)
    with one_thread_for_small_steps(len(scales.unit) * options.batchSize):
        return _train(network, data, objective, metric, original, recipes, options, scales, frozen, progress)


@contextlib.contextmanager
def one_thread_for_small_steps(work: int) -> Iterator[None]:
    """torch's threads cost more than they bring where a step is small, and many times more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if work < SMALL_STEP else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    network: Network, data: Data, objective: Objective, metric: Objective, original: Score, recipes: Sequence[Recipe],
    options: Options, scales: Scales, frozen: dict[str, int], progress: Callable[[str], None],
) -> Trained:  # fmt: skip
    team = [Candidate(network, r, options, scales, original.mean) for r in recipes]
    history = [_entry(0, k, c.recipe, math.nan, original.mean) for k, c in enumerate(team)]
    gains: list[Tensor] = []
    steps: list[tuple[int, int]] = []
    data = data.prepared(network)
    for epoch in range(1, options.maxEpochs + 1):
        active = [c for c in team if c.active]
        if not active:
            break
        for batch in data.stream.batches("train", batchSize=options.batchSize, epoch=epoch, prepare=data.prepare):
            label, weight = scalar(batch, "label"), scalar(batch, "weight")
            if not bool((weight > 0).any()):
                continue
            values = data.values(batch)
            for c in active:
                c.step(dict(values), label, weight, objective)
        for k, c in enumerate(team):
            if not c.active:
                continue
            now = score(c.network, data, "validation", metric, explain=False)
            history.append(_entry(epoch, k, c.recipe, c.epoch_loss(), now.mean))
            gains.append(original.blocks - now.blocks)
            steps.append((k, epoch))
            if now.mean < c.best:
                c.best, c.since = now.mean, 0
                c.best_flat.copy_(c.flat)
            else:
                c.since += 1
            c.active = math.isfinite(now.mean) and c.since < options.patience
        progress(
            f"epoch {epoch}: {metric.name} {original.mean:.5g} -> {min(c.best for c in team):.5g} on validation rows"
        )
    best = min(team, key=lambda c: c.best)
    out = network.clone()
    moved = {}
    if best.best < original.mean:
        best.flat.copy_(best.best_flat)
        out = best.network
        moved = _moved(network, best, scales)
    return Trained(history, torch.stack(gains), original.weights, steps, out, moved, frozen)


def _entry(epoch: int, candidate: int, recipe: Recipe, train: float, validation: float) -> dict[str, Any]:
    return {
        "epoch": epoch, "candidate": candidate, "learningRate": recipe.learningRate, "regAnchor": recipe.regAnchor,
        "trainLoss": train, "validationMetric": validation,
    }  # fmt: skip


def _moved(network: Network, candidate: Candidate, scales: Scales) -> dict[str, tuple[float, float]]:
    change = candidate.best_flat - candidate.start
    if scales.positive is not None:
        change = torch.where(scales.positive, torch.log(candidate.best_flat / candidate.start), change)
    out, first = {}, 0
    for i, name, p in trained(network):
        unit, moved = scales.unit[first : first + p.numel()], change[first : first + p.numel()]
        moved = (moved / unit)[unit != 0].abs()
        first += p.numel()
        if len(moved):
            out[f"{network.graph.leaves[i].uid}.{name}"] = (float(moved.max()), float((moved**2).mean().sqrt()))
    return out
