"""One training loop for a set of candidate recipes over one stream, in one process or several. Knows torch and the stream only.

Every process holds the same parameters. At each step it sums w * gradient over its rows of the batch; the sums are added up over
all processes and divided by the sum of w, so that the number of processes changes nothing but the order of additions.
"""

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
from sparkdiff.measure import Data, Score, scalar, score
from sparkdiff.metrics import Metric
from sparkdiff.network import Network
from sparkdiff.options import Options
from sparkdiff.parallel import Team
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
    """

    history: list[dict[str, Any]]
    gains: Tensor
    weights: Tensor
    steps: list[tuple[int, int]]
    network: Network
    moved: dict[str, tuple[float, float]]


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
    `gradient` (p,) and `loss` () are sums over the rows of a step, in memory that the caller owns.
    """

    def __init__(
        self, network: Network, recipe: Recipe, options: Options, scales: Scales, original: float, gradient: Tensor, loss: Tensor
    ):  # fmt: skip
        self.network, self.recipe, self.scales, self.clip = network.clone(), recipe, scales, options.gradientClip
        parameters = [p for _, _, p in trained(self.network)]
        self.flat = torch.cat([p.detach().flatten() for p in parameters])
        self.gradient, self.loss = gradient, loss
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
        self.total = self.weight = torch.zeros((), dtype=torch.float64)  # of the epoch so far

    def add(self, values: dict[Version, Rows], label: Tensor, weight: Tensor, objective: Objective, team: Team) -> None:
        """Add w * loss and its gradient over these rows to `loss` and `gradient`."""
        margin = self.network.margin(values)
        if objective.rows is not None:
            loss = (objective.rows(margin, label, weight) * weight).sum()
            loss.backward(retain_graph=objective.batch is not None)
            self.loss += loss.detach()
        if objective.batch is not None:
            # All processes compute the batch's loss; each has the gradient of its own rows, and its share of the value.
            margins, labels, weights = (team.gather(t) for t in (margin, label, weight))
            if team.world > 1:
                first = int(team.gather(torch.tensor([len(margin)]))[: team.rank].sum())
                margins = torch.cat([margins[:first], margin, margins[first + len(margin) :]])
            total = weights.sum()
            if bool(total > 0):
                loss = objective.batch(margins, labels, weights, {}) * total
                loss.backward()
                self.loss += loss.detach() / team.world

    @torch.no_grad()
    def step(self, weight: Tensor, scale: float) -> None:
        """One optimizer step by the sums in `loss` and `gradient`, which `weight` () is the sum of w of."""
        self.total, self.weight = self.total + self.loss, self.weight + weight
        s, u = self.scales, self.u
        slope = s.unit if s.positive is None else torch.where(s.positive, s.unit * self.flat, s.unit)
        torch.mul(self.gradient, slope, out=u.grad)
        u.grad.mul_(scale / weight).addcmul_(u, s.pull, value=self.recipe.regAnchor)  # type: ignore[union-attr]
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
        mean = float(self.total / self.weight)
        self.total = self.weight = torch.zeros((), dtype=torch.float64)
        return mean

    def judge(self, metric: float, patience: int) -> None:
        """Take note of the validation metric of an epoch: the best one is kept, and patience ends."""
        if metric < self.best:
            self.best, self.since = metric, 0
            self.best_flat.copy_(self.flat)
        else:
            self.since += 1
        self.active = math.isfinite(metric) and self.since < patience

    def state(self) -> dict[str, Any]:
        return {
            "flat": self.flat, "u": self.u, "optimizer": self.optimizer.state_dict(), "best": self.best,
            "bestFlat": self.best_flat, "since": self.since, "active": self.active, "total": self.total, "weight": self.weight,
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        self.flat.copy_(state["flat"])
        self.u.copy_(state["u"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.since, self.active = state["best"], state["since"], state["active"]
        self.best_flat.copy_(state["bestFlat"])
        self.total, self.weight = state["total"], state["weight"]


class Training:
    """A training under way: its candidates, what they have shown, and where in the data it is.

    `state()` holds all that `load()` needs to go on as if there had been no break: bit for bit in as many processes as before,
    and but for the order of additions in any other number.
    """

    def __init__(self, network: Network, recipes: Sequence[Recipe], options: Options, scales: Scales, original: Score):
        self.options, self.scales, self.original = options, scales, original
        size = len(scales.unit)
        # One piece of memory, so that a step needs one sum over the processes: gradients, losses, weight.
        self.sums = torch.zeros(len(recipes) * (size + 1) + 1, dtype=torch.float64)
        self.weight = self.sums[-1]
        losses = self.sums[len(recipes) * size : -1]
        self.team = [
            Candidate(network, r, options, scales, original.mean, self.sums[k * size : (k + 1) * size], losses[k])
            for k, r in enumerate(recipes)
        ]
        self.history = [_entry(0, k, c.recipe, math.nan, original.value) for k, c in enumerate(self.team)]
        self.gains: list[Tensor] = []
        self.columns: list[tuple[int, int]] = []
        self.epoch, self.step, self.ended = 1, 0, False  # the next step of the current epoch

    @property
    def active(self) -> list[Candidate]:
        return [c for c in self.team if c.active]

    @property
    def best(self) -> float:
        return min(c.best for c in self.team)

    def state(self) -> dict[str, Any]:
        gains = torch.stack(self.gains) if self.gains else torch.empty(0)
        return {
            "epoch": self.epoch, "step": self.step, "ended": self.ended, "history": self.history, "gains": gains,
            "columns": self.columns, "candidates": [c.state() for c in self.team],
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.ended = state["epoch"], state["step"], state["ended"]
        self.history, self.gains = list(state["history"]), list(state["gains"])
        self.columns = [(k, epoch) for k, epoch in state["columns"]]
        for candidate, of_it in zip(self.team, state["candidates"], strict=True):
            candidate.load(of_it)

    def fit(self, values: dict[Version, Rows], label: Tensor, weight: Tensor, objective: Objective, team: Team) -> None:
        """One optimizer step of every active candidate on this process's rows of a batch, of which there may be none."""
        self.sums.zero_()
        self.weight += weight.sum()
        active = self.active
        if objective.batch is not None or bool((weight > 0).any()):
            for c in active:
                c.add(dict(values), label, weight, objective, team)
        team.sum_(self.sums)
        if bool(self.weight > 0):
            for c in active:
                c.step(self.weight.clone(), objective.scale)

    def validate(self, data: Data, metric: Metric) -> None:
        """Measure every active candidate on the validation split; ends the epoch."""
        for k, c in enumerate(self.team):
            if not c.active:
                continue
            now = score(c.network, data, "validation", metric, explain=False)
            self.history.append(_entry(self.epoch, k, c.recipe, c.epoch_loss(), now.value))
            self.gains.append(self.original.blocks - now.blocks)
            self.columns.append((k, self.epoch))
            c.judge(now.mean, self.options.patience)
        self.epoch, self.step = self.epoch + 1, 0
        self.ended = self.epoch > self.options.maxEpochs or not self.active

    def found(self, network: Network) -> Trained:
        """What the training has found; `network` is the original."""
        best = min(self.team, key=lambda c: c.best)
        out, moved = network.clone(), {}
        if best.best < self.original.mean:
            best.flat.copy_(best.best_flat)
            out, moved = best.network, _moved(network, best, self.scales)
        return Trained(self.history, torch.stack(self.gains), self.original.weights, self.columns, out, moved)


def train(
    training: Training, data: Data, objective: Objective, metric: Metric,
    on_step: Callable[[Training], None] = lambda training: None,
) -> None:  # fmt: skip
    """Train on the train split to the end, and measure on the validation split after every epoch.

    All candidates see the same batches. A candidate stops when its validation metric hasn't improved for
    `options.patience` epochs, or when it diverges. `on_step` is called after every step and every epoch.
    """
    options = training.options
    with one_thread_for_small_steps(len(training.scales.unit) * options.batchSize):
        data = data.prepared(training.team[0].network)
        while not training.ended:
            steps = data.stream.batches(
                "train", batchSize=options.batchSize, epoch=training.epoch, first=training.step, rank=data.team.rank,
                world=data.team.world, prepare=data.prepare,
            )  # fmt: skip
            for batch in steps:
                training.fit(data.values(batch), scalar(batch, "label"), scalar(batch, "weight"), objective, data.team)
                training.step += 1
                on_step(training)
            training.validate(data, metric)
            on_step(training)


@contextlib.contextmanager
def one_thread_for_small_steps(work: int) -> Iterator[None]:
    """torch's threads cost more than they bring where a step is small, and many times more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if work < SMALL_STEP else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
