"""Parts that add up effects, one for each cell of one or more one-hot blocks, and the trainers of such parts.

A cell is an entry of a one-hot block, or a pair of entries of two crossed blocks.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from pyspark.ml.feature import Interaction
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Output, Part, PipelinePlace, ServingWork, Stages, Trainer, unused_heading
from sparkdiff.growth.parts import ridge
from sparkdiff.growth.parts.coding import Coding, one_hot, steps
from sparkdiff.growth.parts.ridge import Design, Ridge, SparseDesign
from sparkdiff.growth.row_tensors import Split, Table

STRONGEST, WEAKER, EPOCHS = 1000.0, 4.0, 8
"""Ridge of the first epoch, where 1 counts like one row of average curvature; factor by which the ridge weakens per epoch; number
of epochs."""

Block = tuple[Coding, ...]
"""One coding for a one-hot block, or two codings for the cells of their cross; the index of the first one varies slowest."""


def width(block: Block) -> int:
    return reduce(lambda size, c: size * c.width, block, 1)


def index(block: Block, split: Split) -> Tensor:
    """Index of the cell that each row falls into, (n,) int64."""
    return reduce(lambda i, c: i * c.width + c.index(split), block, torch.zeros(len(split), dtype=torch.int64))


class Blocks(Part):
    """A part with one effect for each cell of each block; it adds the effects of a row's cells to the row's margin."""

    def __init__(self, name: str, blocks: Sequence[Block], effects: Sequence[Tensor]):
        """
        Args:
            effects: for each block, the effects of its cells: (width,), or (width, k) for k classes.
        """
        self.name, self.blocks, self.effects = name, tuple(blocks), tuple(effects)

    @property
    def parameters(self) -> int:
        return sum(int(torch.count_nonzero(e)) for e in self.effects)

    def output(self, split: Split) -> Tensor:
        return torch.stack([e[index(b, split)] for b, e in zip(self.blocks, self.effects, strict=True)]).sum(0)

    def serving_work(self, features: float) -> ServingWork:
        crossed = [("Interaction", 1.0)] * sum(len(b) > 1 for b in self.blocks)
        coded = self.codings()
        return ServingWork(
            [*steps(coded), *crossed], float(len(self.blocks)), frozenset(c.column.column for c in coded)
        )

    def codings(self) -> list[Coding]:
        return list(dict.fromkeys(c for block in self.blocks for c in block))

    def stages(self, place: PipelinePlace) -> Stages:
        stages, columns = one_hot(self.codings(), place)
        outputs = []
        for i, (block, effects) in enumerate(zip(self.blocks, self.effects, strict=True)):
            column = columns[block[0]]
            if len(block) > 1:
                column = place.name(f"cross{i}")
                cross = Interaction(inputCols=[columns[c] for c in block], outputCol=column)
                stages.append(jvm.set_uid(cross, column))
            outputs.append(Output(column, effects.numpy().T.copy()))
        return Stages(stages, outputs)

    def learned_table(self) -> list[dict[str, Any]]:
        return [row for b, e in zip(self.blocks, self.effects, strict=True) for row in table_rows(b, e)]


def table_rows(block: Block, effects: Tensor) -> list[dict[str, Any]]:
    """Table rows for the cells with a nonzero effect: value of each column, class if there are several, and effect."""
    several, names = effects.reshape(len(effects), -1), _headings(block)
    effect, label = unused_heading("effect", names), unused_heading("class", names)
    out = []
    for cell in several.any(1).nonzero()[:, 0].tolist():
        row, rest = dict[str, Any](), cell
        for c, name in zip(reversed(block), reversed(names), strict=True):
            rest, i = divmod(rest, c.width)
            row = {name: c.labels[i], **row}
        values = several[cell].tolist()
        out += (
            [{**row, effect: values[0]}]
            if effects.ndim == 1
            else [{**row, label: k, effect: v} for k, v in enumerate(values)]
        )
    return out


def _headings(block: Block) -> list[str]:
    """Names of the columns, for headings. If two names are equal (a number and the category made of it), the names of Spark's
    columns.
    """
    names = [c.column.name for c in block]
    return names if len(set(names)) == len(names) else [c.column.column for c in block]


class PathTrainer(Trainer):
    """Trainer of effects along a path of decreasing ridge penalties, so that the validation rows choose the penalty.

    Each epoch has one penalty, and begins at the effects of the previous epoch. A subclass must set the attributes that its
    `groups` needs before it calls `__init__`.
    """

    def __init__(self, table: Table) -> None:
        self.done = 0
        self.unit: Tensor | None = None
        self.effects = table.train.margin.new_zeros(sum(self.groups()), *table.train.margin.shape[1:])

    @abstractmethod
    def design(self, split: Split) -> Design: ...

    @abstractmethod
    def groups(self) -> list[int]:
        """Numbers of effects in consecutive groups; each group has its own strength of the ridge."""

    def ridge(self, like: Tensor) -> Ridge:
        """The ridge penalty of strength 1, in rows of average curvature.

        Args:
            like: a tensor with the dtype and device of the result.
        """
        return Ridge(like.new_ones(sum(self.groups())))

    def penalty(self, table: Table, criterion: Criterion) -> Ridge:
        """The ridge of the next epoch."""
        if self.unit is None:
            factors = ridge.apart(self.design(table.train), self.groups(), table.train, criterion)
            self.unit = factors * (ridge.mean_curvature(table.train, criterion) / len(table.train))
        return self.ridge(table.train.margin).scaled(self.unit * STRONGEST / WEAKER**self.done)

    def epoch(self, table: Table, criterion: Criterion) -> None:
        penalty = self.penalty(table, criterion)
        self.effects = ridge.fit(self.design(table.train), penalty, self.effects, table.train, criterion)
        self.done += 1


class BlocksTrainer(PathTrainer):
    """Trainer of a part of blocks, with a ridge that shrinks each effect towards zero."""

    def __init__(self, table: Table, make: type[Blocks], name: str, blocks: Sequence[Block]):
        self.make, self.name, self.blocks = make, name, tuple(blocks)
        super().__init__(table)

    def design(self, split: Split) -> SparseDesign:
        starts = [0, *accumulate(self.groups())]
        cells = [index(block, split) + start for block, start in zip(self.blocks, starts, strict=False)]
        return SparseDesign(torch.stack(cells), starts[-1])

    def groups(self) -> list[int]:
        return [width(b) for b in self.blocks]

    def part(self) -> Blocks:
        return self.make(self.name, self.blocks, [e.clone() for e in self.effects.split(self.groups())])
