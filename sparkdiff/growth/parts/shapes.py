"""Shapes: the effect of one column as a curve or as steps, so that a linear model becomes a generalized additive model.

A curve is linear between its knots and constant outside them. In MLlib it is the sum of a rising and a falling
IsotonicRegressionModel, because every function of bounded variation is such a sum. Steps are a one-hot block of a
category, or of a number in buckets. The penalty pulls the values of neighbouring knots and buckets together. Source:
Eilers and Marx, "Flexible smoothing with B-splines and penalties", 1996.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from pyspark.ml.regression import IsotonicRegression
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.growth import cost_table
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, Output, PipelinePlace, ServingWork, Stages, unused_heading
from sparkdiff.growth.parts import score_test
from sparkdiff.growth.parts.blocks import EPOCHS, Blocks, PathTrainer
from sparkdiff.growth.parts.coding import Coding, assembler, coding_of, codings
from sparkdiff.growth.parts.ridge import Ridge, SparseDesign, beside
from sparkdiff.growth.row_tensors import Column, Split, Table
from sparkdiff.jvm import mllib

FINE, COARSE = 32, 8
"""Numbers of knots of a curve, or of buckets of a number, that are tried."""
ALONE, TOGETHER = 3, 30
"""Largest number of columns that get a part of their own, and of columns whose shapes form one part."""
LEVEL = 0.1
"""Ridge on the values of a curve or of the steps of a number; the ridge on differences of `COARSE` neighbours is 1."""


@dataclass(frozen=True)
class Knots:
    """Knots of a curve of a number.

    Attributes:
        place: position of the column in `Split.values`.
        at: positions of the knots, ascending; at least two.
    """

    column: Column
    place: int
    at: tuple[float, ...]

    def entries(self, split: Split) -> tuple[Tensor, Tensor]:
        """Indices of the knots below and above each row's value, (2, n) int64, and their interpolation weights, (2, n).

        NaN counts as larger than all numbers.
        """
        x = split.values[:, self.place].contiguous()
        at = x.new_tensor(self.at)
        below = (torch.searchsorted(at, x, right=True) - 1).clamp(0, len(at) - 2)
        share = ((x - at[below]) / (at[below + 1] - at[below])).clamp(0, 1).nan_to_num(1.0)
        return torch.stack([below, below + 1]), torch.stack([1 - share, share])


class Shapes(Blocks):
    """A part that adds curves and steps of single columns to the margin."""

    kind = "shapes"

    def __init__(
        self,
        name: str,
        steps: Sequence[Coding],
        effects: Sequence[Tensor],
        curves: Sequence[Knots],
        values: Sequence[Tensor],
    ):
        """
        Args:
            steps: codings of the columns with steps.
            effects: effects of each column with steps, see `Blocks`.
            curves: knots of the columns with curves.
            values: values of each curve at its knots.
        """
        super().__init__(name, [(c,) for c in steps], effects)
        self.curves, self.values = tuple(curves), tuple(values)

    @property
    def parameters(self) -> int:
        return super().parameters + sum(map(len, self.values))

    def output(self, split: Split) -> Tensor:
        total = super().output(split) if self.blocks else torch.zeros_like(split.margin)
        for knots, values in zip(self.curves, self.values, strict=True):
            index, share = knots.entries(split)
            total = total + (values[index] * share).sum(0)
        return total

    def serving_work(self, features: float) -> ServingWork:
        own = super().serving_work(features) if self.blocks else ServingWork([], 0.0)
        if not self.curves:
            return own
        searches = [
            ("IsotonicRegressionModel", cost_table.steps_among(len(knots.at)))
            for knots, values in zip(self.curves, self.values, strict=True)
            for _ in self._monotone(values)
        ]
        made = [*own.steps, ("VectorAssembler", float(len(self.curves))), *searches]
        return ServingWork(made, own.entries + len(searches), own.columns | {k.column.column for k in self.curves})

    def stages(self, place: PipelinePlace) -> Stages:
        made = super().stages(place) if self.blocks else Stages([], [])
        if not self.curves:
            return made
        stages, outputs = list(made.stages), list(made.outputs)
        numbers = place.name("numbers")
        stages.append(assembler([knots.column.column for knots in self.curves], numbers))
        for i, (knots, values) in enumerate(zip(self.curves, self.values, strict=True)):
            for rises, predictions in self._monotone(values):
                column = place.name(f"{'rise' if rises else 'fall'}{i}")
                estimator = IsotonicRegression(
                    featuresCol=numbers, featureIndex=i, predictionCol=column, isotonic=rises
                )
                stages.append(
                    mllib.fitted_isotonic(jvm.set_uid(estimator, column), np.array(knots.at), predictions, rises)
                )
                outputs.append(Output(column, np.ones(1)))
        return Stages(stages, outputs)

    @staticmethod
    def _monotone(values: Tensor) -> list[tuple[bool, np.ndarray[Any, Any]]]:
        """The curve as a sum of monotone curves: (True, values) for a rising one, (False, values) for a falling one, or both."""
        first, steps = values.numpy()[:1], np.diff(values.numpy())
        rise, fall = (np.concatenate([[0.0], np.cumsum(part)]) for part in (steps.clip(min=0), steps.clip(max=0)))
        if not fall.any():
            return [(True, rise + first)]
        return [(False, fall + first)] if not rise.any() else [(True, rise + first), (False, fall)]

    def learned_table(self) -> list[dict[str, Any]]:
        curves = [
            {knots.column.name: at, unused_heading("effect", [knots.column.name]): value}
            for knots, values in zip(self.curves, self.values, strict=True)
            for at, value in zip(knots.at, values.tolist(), strict=True)
        ]
        return [*curves, *super().learned_table()]


class ShapesTrainer(PathTrainer):
    """Trainer of a part that adds curves and step functions of single columns."""

    def __init__(self, table: Table, name: str, steps: Sequence[Coding], curves: Sequence[Knots]):
        self.name, self.steps, self.curves = name, tuple(steps), tuple(curves)
        super().__init__(table)

    def groups(self) -> list[int]:
        return [*(c.width for c in self.steps), *(len(knots.at) for knots in self.curves)]

    def design(self, split: Split) -> SparseDesign:
        entries = [(c.index(split)[None], split.label.new_ones(1, len(split))) for c in self.steps]
        entries += [knots.entries(split) for knots in self.curves]
        starts = [0, *accumulate(self.groups())]
        index = torch.cat([places + start for (places, _), start in zip(entries, starts, strict=False)])
        return SparseDesign(index, starts[-1], torch.cat([share for _, share in entries]) if self.curves else None)

    def ridge(self, like: Tensor) -> Ridge:
        steps = [_smooth(c.size, 1, like) if c.is_number else Ridge(like.new_ones(c.width)) for c in self.steps]
        return beside([*steps, *(_smooth(len(knots.at), 0, like) for knots in self.curves)])

    def part(self) -> Shapes:
        effects = [e.clone() for e in self.effects.split(self.groups())]
        several = len(self.steps)
        return Shapes(self.name, self.steps, effects[:several], self.curves, effects[several:])


def _smooth(neighbours: int, alone: int, like: Tensor) -> Ridge:
    """Ridge that pulls neighbouring effects together, as a random walk whose total spread does not depend on its length.

    Args:
        neighbours: number of effects that are neighbours of each other.
        alone: number of effects after them that have no neighbours.
        like: a tensor with the dtype and device of the result.
    """
    own = like.new_ones(neighbours + alone)
    own[:neighbours] = LEVEL
    links = like.new_zeros(neighbours + alone - 1)
    links[: neighbours - 1] = neighbours / COARSE
    return Ridge(own, links)


def propose(table: Table, criterion: Criterion, seed: int) -> list[Item]:
    """Items for a curve or steps of each of the top-scoring columns, and for shapes of up to `TOGETHER` columns in one part.

    The first column gets both if it can have a curve.
    """
    scored = score_test.columns(codings(table, COARSE), score_test.rows_of(table.train), criterion)
    ranked = [c for _, c in scored[:TOGETHER]]
    items = []
    for rank, c in enumerate(ranked[:ALONE]):
        bent = _knots(table, c.place, COARSE) is not None
        sizes = (COARSE, FINE) if bent or c.is_number else (COARSE,)
        if bent:
            items += [_item(table, [c], "curve", size, seed) for size in (sizes if rank == 0 else (FINE,))]
        if not bent or rank == 0:
            items.append(_item(table, [c], "steps", sizes[-1], seed))
    if len(ranked) > 1:
        sizes = (COARSE, FINE) if any(c.is_number for c in ranked) else (COARSE,)
        items += [_item(table, ranked, "curves", size, seed) for size in sizes]
    return items


def _item(table: Table, of: Sequence[Coding], form: str, size: int, seed: int) -> Item:
    name = f"{form} of {of[0].column.name}" if len(of) == 1 else f"{form} of {len(of)} columns"
    fine = ", fine" if size == FINE and any(c.is_number for c in of) else ""
    settings = {"columns": [c.place for c in of], "form": form, "size": size}
    return Item("shapes", name + fine, EPOCHS, 2e-5 * len(of) * len(table.train) * table.width, seed, settings)


def trainer(item: Item, table: Table) -> ShapesTrainer:
    steps, curves = list[Coding](), list[Knots]()
    for place in item.settings["columns"]:
        knots = _knots(table, place, item.settings["size"])
        if knots is not None and item.settings["form"] != "steps":
            curves.append(knots)
        else:
            steps.append(coding_of(table, place, item.settings["size"]))
    return ShapesTrainer(table, item.name, steps, curves)


def _knots(table: Table, place: int, most: int) -> Knots | None:
    """Knots at quantiles of a numeric column; None if the column can't have a curve.

    Without a curve are: categories; columns in which values are or may be missing, because a curve treats NaN as the
    largest value; columns with fewer than three distinct values; and all columns if there are several margins, because
    each margin would need two models.
    """
    column = table.columns[place]
    values = table.train.values[:, place]
    lacks = column.gaps or bool(values.isnan().any() or table.validation.values[:, place].isnan().any())
    if table.classes or column.levels or column.indexes or lacks:
        return None
    known = values[values.isfinite()].numpy()
    distinct = np.unique(known)
    if len(distinct) < 3:
        return None
    at = distinct if len(distinct) <= most else np.unique(np.quantile(known, np.linspace(0, 1, most)))
    return Knots(column, place, tuple(at.tolist())) if len(at) > 1 else None
