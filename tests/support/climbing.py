"""A kind of part for tests of how items are run: steps along the slope on drawn rows, as slow as its settings say.

In a module of its own, which other processes can import.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, ItemResult, Part, PipelinePlace, ServingWork, Stages, Trainer
from sparkdiff.growth.row_tensors import Split, Table


class Slope(Part):
    """The features times weights."""

    kind = "climbing"

    def __init__(self, name: str, weights: Tensor):
        self.name, self.weights = name, weights

    @property
    def parameters(self) -> int:
        return len(self.weights)

    def output(self, split: Split) -> Tensor:
        assert isinstance(split.features, Tensor)
        return split.features @ self.weights

    def serving_work(self, features: float) -> ServingWork:
        return ServingWork([], 0)

    def stages(self, place: PipelinePlace) -> Stages:
        return Stages([], [])


class Climber(Trainer):
    def __init__(self, item: Item, table: Table):
        assert isinstance(table.train.features, Tensor)
        self.item, self.epochs = item, 0
        self.weights = torch.zeros(table.train.features.shape[1], dtype=torch.float64)
        self.drawn = torch.Generator().manual_seed(item.seed).get_state()

    def epoch(self, table: Table, criterion: Criterion) -> None:
        settings = self.item.settings
        self.epochs += 1
        _suffer(self.item, self.epochs)
        end = time.monotonic() + settings.get("pause", 0.0)
        random = torch.Generator()
        random.set_state(self.drawn)
        features, margin = table.train.features, table.train.margin
        assert isinstance(features, Tensor)
        for _ in range(settings.get("steps", 5)):
            rows = torch.randint(0, len(margin), (len(margin),), generator=random)
            slope, _ = criterion.slopes(margin + features @ self.weights, table.train)
            self.weights = self.weights - settings.get("rate", 0.1) * (features[rows].T @ slope[rows]) / len(rows)
        self.drawn = random.get_state()
        time.sleep(max(0.0, end - time.monotonic()))

    def part(self) -> Slope:
        return Slope(self.item.name, self.weights)


def _suffer(item: Item, epoch: int) -> None:
    """What is to happen before an epoch: nothing, an error, or the end of a process, once (with a file as a mark) or always."""
    settings = item.settings
    if epoch == settings.get("fails"):
        raise ArithmeticError("this one can't")
    if epoch == settings.get("dies"):
        if "mark" in settings:
            if (mark := Path(settings["mark"])).exists():
                return
            mark.touch()
        os.kill(os.getppid() if settings.get("with its parent") else os.getpid(), signal.SIGKILL)
        time.sleep(60)  # until the death of the parent ends this process too


def items(seed: int) -> list[Item]:
    """Six, of which the longest takes three times as long as the shortest."""
    lengths = (2, 6, 3, 4, 5, 3)
    return [Item("climbing", f"part {j}", n, float(n), seed + j, {"pause": 0.01}) for j, n in enumerate(lengths)]


def propose(table: Table, criterion: Criterion, seed: int) -> list[Item]:
    return items(seed)


def trainer(item: Item, table: Table) -> Climber:
    return Climber(item, table)


def bits(found: Sequence[ItemResult]) -> list[tuple[object, ...]]:
    """All that a round decides on, exactly."""
    return [
        (
            f.item.name,
            f.epoch,
            f.value.hex(),
            f.train.hex(),
            f.gains.numpy().tobytes(),
            f.part.weights.numpy().tobytes() if isinstance(f.part, Slope) else None,
        )
        for f in found
    ]
