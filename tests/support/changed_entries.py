"""A stage with one entry of its weights changed, beside what Spark computes with the right ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyspark.sql import DataFrame
from torch import Tensor

import sparkdiff
from sparkdiff.pipeline.column_tensors import read_plain, write_plain
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Differences
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.tensors.rows import Rows, dense

STEP, MOVED = 1e-6, 1e-8


class Outputs:
    """Spark's outputs of a stage, computed once, and the network's with one entry changed."""

    def __init__(self, stage: Any, df: DataFrame, folder: Path):
        self.stage, self.network = stage, sparkdiff.translate(stage)
        self.module = self.network.module(0)
        self.trainable = [n for n, p in type(self.module).from_spark(stage).named_parameters() if p.requires_grad]
        leaf = self.network.graph.vertices[0]
        self.columns: list[Version] = [(self.network.graph.casefold(c), 0) for c in leaf.outputs]
        write_plain(stage.transform(df), [*leaf.inputs, *leaf.outputs], folder / "rows")
        (batch,) = read_plain(folder / "rows", 1000)  # one partition, one file, one batch
        versions = [*leaf.reads, *self.columns]
        self.spark: dict[Version, Rows] = {v: batch[f"v{i}"] for i, v in enumerate(versions)}
        self.before = self.computed(self.network)

    def computed(self, network: Network) -> list[Tensor]:
        values = dict(list(self.spark.items())[: -len(self.columns)])
        with torch.no_grad():
            network.run(values, self.columns)
        labels = type(self.module).labels(self.stage)
        return [dense(values[v]) for v in self.columns if v[0] not in labels]

    def units(self) -> dict[str, Tensor]:
        """As the trainer takes them: 1 where the stage names none, relative where a parameter is positive."""
        x = dense(self.spark[self.network.reads[0]])
        y = self.before[0].flatten()
        inputs = FeatureStats(x.mean(0), x.std(0, correction=0), (x != 0).sum(0))
        units = self.module.units(inputs, LabelStats(float(y.mean()), float(y.std()), 0.0, 1.0, torch.empty(0)))
        return {name: torch.as_tensor(units.get(name, 1.0), dtype=torch.float64) for name in self.trainable}

    def changes(self) -> Iterator[tuple[str, tuple[int, ...], Network]]:
        """A network per entry that trains, with that entry changed by a millionth of its unit."""
        units, counts = self.units(), self.module.entry_mask()
        for name in self.trainable:
            shape = self.module.get_parameter(name).shape
            counting = counts.get(name, torch.ones(shape, dtype=torch.bool))
            for entry in counting.nonzero().tolist():
                network = self.network.clone()
                p, at = network.module(0).get_parameter(name), tuple(entry)
                with torch.no_grad():
                    p[at] = (
                        p[at] * np.exp(STEP)
                        if name in self.module.positive
                        else p[at] + STEP * units[name].expand(shape)[at]
                    )
                yield name, at, network

    def moved(self, network: Network) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(self.computed(network), self.before, strict=True))

    def ok(self, network: Network) -> bool:
        tally = Differences(network)
        tally.add(self.spark, self.columns)
        return tally.parity().ok
