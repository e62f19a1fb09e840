"""The results of a training run's epochs: the history, the gains of all candidates, and which candidates continue."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparkdiff.evaluation.guard import Ledger, total_gain
from sparkdiff.evaluation.scores import Score
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.training.recipes import Recipe

R = TypeVar("R", bound="Results")
ROUNDING = 1e-12
"""Share of the original's loss below which a difference of gains is rounding (order of additions), and ignored."""


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """The result of a training run.

    Attributes:
        history: a row per epoch and candidate, the original as epoch 0.
        ledger: a column of gains for each candidate and epoch, and the index of the chosen column.
        network: the network with the parameters of the chosen column; the original network if no column has a gain.
        moved: distance that each parameter moved, in its natural units: {uid.parameter: (largest, root mean square)}.
    """

    history: list[dict[str, Any]]
    ledger: Ledger
    network: Network
    moved: dict[str, tuple[float, float]]


@dataclasses.dataclass
class Standing:
    """The state of a candidate: its best epoch, the parameters after it, and the number of epochs since the last one
    whose gain was large enough to count for patience.
    """

    metric: float
    flat: Tensor  # (p,)
    gain: float = 0.0  # gain of the best epoch, summed over the blocks
    column: int = -1  # index of the best epoch among all gains; -1 if the original is best
    counted: float = 0.0  # the gain of the last epoch that counted for patience
    since: int = 0
    active: bool = True


class Results:
    """The history of all candidates, block sums of their gains, and the standing of each; on the CPU.

    Args:
        start: the original's parameters, (p,).
        epochs: number of epochs to train; the last one is the result. None: the gains on the measured rows choose the
            epoch.
    """

    def __init__(
        self, start: Tensor, recipes: Sequence[Recipe], options: Options, original: Score, epochs: int | None = None
    ):
        self.start, self.recipes, self.options, self.original = start, recipes, options, original
        self.epochs = epochs
        self.standings = [Standing(original.mean, start) for _ in recipes]
        self.rounding = ROUNDING * float(original.blocks.abs().sum())
        self.least = max(self.rounding, options.minDelta * abs(float(original.blocks.sum())))
        self.history = [_entry(0, k, r, math.nan, original.value) for k, r in enumerate(recipes)]
        self.gains: list[Tensor] = []
        self.columns: list[tuple[int, int]] = []
        self.epoch = 1

    @property
    def active(self) -> list[int]:
        return [k for k, s in enumerate(self.standings) if s.active]

    @property
    def best(self) -> Standing:
        """The best epoch of the candidate with the largest gain; among equal gains the earliest epoch, then the first
        candidate. If `epochs` is set, the last epoch.
        """
        if self.epochs is not None:
            [only] = self.standings
            return only
        best = Standing(self.original.mean, self.start)
        for standing in sorted(self.standings, key=lambda s: s.column):
            if standing.gain > best.gain + self.rounding:
                best = standing
        return best

    def among(self: R, recipes: Sequence[Recipe]) -> R:
        """The results as if only these candidates had trained; a training run with these results can't be continued."""
        new, own = copy.copy(self), {self.recipes.index(recipe): k for k, recipe in enumerate(recipes)}
        rows = [row | {"candidate": own[row["candidate"]]} for row in self.history if row["candidate"] in own]
        kept = sorted((epoch, own[k], i) for i, (k, epoch) in enumerate(self.columns) if k in own)
        column = {i: position for position, (*_, i) in enumerate(kept)} | {-1: -1}
        new.recipes, new.history = recipes, sorted(rows, key=lambda row: (row["epoch"], row["candidate"]))
        new.gains, new.columns = [self.gains[i] for *_, i in kept], [(k, epoch) for epoch, k, _ in kept]
        new.standings = [dataclasses.replace(self.standings[i], column=column[self.standings[i].column]) for i in own]
        return new

    def record(self, k: int, loss: float, now: Score) -> bool:
        """Record a candidate's measurement after an epoch; return whether this epoch is the candidate's best."""
        self.history.append(_entry(self.epoch, k, self.recipes[k], loss, now.value))
        gains = self.original.blocks - now.blocks
        if not math.isfinite(loss):
            gains = torch.full_like(gains, math.nan)  # the candidate has diverged, whatever its metric is
        if gains.abs().sum() <= self.rounding:
            gains = torch.zeros_like(gains)
        self.gains.append(gains)
        self.columns.append((k, self.epoch))
        standing, given = self.standings[k], self.epochs is not None
        gain, metric = float(total_gain(gains)), now.mean if math.isfinite(loss) else math.nan
        better = math.isfinite(metric) if given else gain > standing.gain + self.rounding
        counts = gain > standing.counted + self.least
        standing.counted, standing.since = (gain, 0) if counts else (standing.counted, standing.since + 1)
        if better:
            standing.metric, standing.gain, standing.column = metric, gain, len(self.gains) - 1
        standing.active = math.isfinite(metric) and (given or standing.since < self.options.patience)
        return better


def _entry(epoch: int, candidate: int, recipe: Recipe, train: float, validation: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "candidate": candidate,
        "recipe": str(recipe),
        "learningRate": recipe.learningRate,
        "regAnchor": recipe.regAnchor,
        "trainLoss": train,
        "validationMetric": validation,
    }
