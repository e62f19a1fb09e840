"""Effects of entities: an intercept for each user, item or shop, and its own slope for each feature.

These are the random effects of GLMix, computed from the one-hot block of the entity and from MLlib's Interaction of this block
with the features. Effects of entities with few rows shrink towards zero. The intercepts have one ridge, and the slopes of each
feature have their own.
Source: Zhang et al., "GLMix: Generalized Linear Mixed Models for Large-Scale Response Prediction", 2016.
"""

from dataclasses import dataclass

import torch
from pyspark.ml.feature import ElementwiseProduct, Interaction, VectorAssembler
from pyspark.ml.linalg import Vectors
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, Output, PipelinePlace, ServingWork, Stages
from sparkdiff.growth.parts import score_test
from sparkdiff.growth.parts.blocks import EPOCHS, Blocks, BlocksTrainer, PathTrainer
from sparkdiff.growth.parts.coding import Coding, are_finite, coding_of, codings, gate, gate_steps
from sparkdiff.growth.row_tensors import Split, Table

MANY = 20
"""Smallest number of values for which a category is treated like an entity without being named in entityCols."""
MOST_SLOPES = 50_000
"""Largest number of slopes in a part. It is limited because Interaction and the assembler write a name for each slope into the
metadata of their columns. With 50,000 names, the metadata take 4 MB, and each `transform` takes 0.7 s of the JVM before
it reads a row; with 300,000 names, 24 MB and 3.5 s (one core, 10 features)."""
MOST_NUMBERS = 50_000_000
"""Largest number of rows times features times classes: training of slopes holds so many numbers in memory at once."""
SLOPE_EPOCHS = 6
"""Epochs of slopes. The ridge weakens with each epoch; with even weaker ridges, training takes long and doesn't gain, because
there are so many effects."""
ENTITIES = 2
"""Largest number of entity columns for which effects are proposed in a round."""


class Intercepts(Blocks):
    """A part with one effect (an intercept) for each value of an entity column."""

    kind = "effects"


class Slopes(Intercepts):
    """A part with an intercept and a slope for each feature, for each value of an entity column."""

    def __init__(self, name: str, entity: Coding, scale: Tensor, intercepts: Tensor, slopes: Tensor):
        """
        Args:
            scale: (d,), factors by which the features are multiplied before the slopes.
            intercepts: (width,), or (width, k) for k classes.
            slopes: (width, d), or (width, d, k) for k classes.
        """
        super().__init__(name, [(entity,)], [intercepts])
        self.entity, self.scale, self.slopes = entity, scale, slopes

    @property
    def parameters(self) -> int:
        return super().parameters + int(torch.count_nonzero(self.slopes))

    def output(self, split: Split) -> Tensor:
        scaled, slopes = _dense(split) * self.scale, self.slopes[self.entity.index(split)]
        scaled = torch.where(are_finite(split.features)[:, None], scaled, 0.0)
        return super().output(split) + _product(scaled, slopes)

    def serving_work(self, features: float) -> ServingWork:
        own, count = super().serving_work(features), min(features, float(len(self.scale)))
        more = [(kind, count) for kind in ("ElementwiseProduct", "VectorAssembler", "Interaction")]
        return ServingWork([*own.steps, *more, *gate_steps(features)], own.entries + count, own.columns)

    def stages(self, place: PipelinePlace) -> Stages:
        """Stages of the intercepts and slopes.

        Interaction needs a name for each feature, and it one-hot encodes features that the metadata mark as categories. So
        ElementwiseProduct removes the features' metadata, and VectorAssembler adds new metadata.
        """
        made = super().stages(place)
        [block] = made.outputs
        scaled, named, slopes = (place.name(name) for name in ("scaled", "numbers", "slopes"))
        vector = Vectors.dense(self.scale.numpy())
        finite, gating = gate(place)
        more = [
            *gating,
            jvm.set_uid(ElementwiseProduct(scalingVec=vector, inputCol=place.features, outputCol=scaled), scaled),
            jvm.set_uid(VectorAssembler(inputCols=[scaled], outputCol=named), named),
            jvm.set_uid(Interaction(inputCols=[block.column, finite, named], outputCol=slopes), slopes),
        ]
        coefficients = self.slopes.flatten(0, 1).numpy().T.copy()
        return Stages([*made.stages, *more], [block, Output(slopes, coefficients)])


@dataclass(frozen=True)
class SlopesDesign:
    """Design matrix of intercepts and slopes, see `ridge.Design`.

    The effects are ordered as follows: the intercepts of all values, then the slopes of all values for the first feature, and so
    on.

    Attributes:
        entity: (n,) int64, index of the value of each row.
        features: (n, d), scaled.
        width: width of the entity's one-hot block.
    """

    entity: Tensor
    features: Tensor
    width: int

    def margin(self, effects: Tensor) -> Tensor:
        intercepts, slopes = _parts(effects, self.width)
        return intercepts.index_select(0, self.entity) + _product(self.features, slopes.index_select(0, self.entity))

    def sums(self, rows: Tensor) -> Tensor:
        return self._column_sums(rows, self.features)

    def squares(self, rows: Tensor) -> Tensor:
        return self._column_sums(rows, self.features.square())

    def _column_sums(self, rows: Tensor, features: Tensor) -> Tensor:
        intercepts = rows.new_zeros(self.width, *rows.shape[1:]).index_add_(0, self.entity, rows)
        each = rows[:, None] * (features if rows.ndim == 1 else features[:, :, None])
        slopes = rows.new_zeros(self.width, *each.shape[1:]).index_add_(0, self.entity, each)
        return torch.cat([intercepts, slopes.transpose(0, 1).flatten(0, 1)])


def _parts(effects: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Split effects of a `SlopesDesign` into intercepts (width, [k]) and slopes (width, d, [k])."""
    return effects[:width], effects[width:].unflatten(0, (-1, width)).transpose(0, 1)


class SlopesTrainer(PathTrainer):
    """Trainer of intercepts and slopes together, on features scaled to a standard deviation of 1."""

    def __init__(self, table: Table, name: str, entity: Coding, scale: Tensor):
        """
        Args:
            scale: (d,) factors by which the features are multiplied; 0 for constant features.
        """
        self.name, self.entity, self.scale = name, entity, scale
        super().__init__(table)

    def design(self, split: Split) -> SlopesDesign:
        return SlopesDesign(self.entity.index(split), _dense(split) * self.scale, self.entity.width)

    def groups(self) -> list[int]:
        return [self.entity.width] * (1 + len(self.scale))

    def part(self) -> Slopes:
        intercepts, slopes = _parts(self.effects, self.entity.width)
        return Slopes(self.name, self.entity, self.scale, intercepts.clone(), slopes.contiguous())


def propose(table: Table, criterion: Criterion, seed: int) -> list[Item]:
    """Items for the entity columns, and categories of at least `MANY` values, with the largest scores: intercepts alone and, if
    `_has_room`, intercepts with slopes.
    """
    entities = [c for c in codings(table, 2) if not c.is_number and (c.column.entity or c.size >= MANY)]
    items = []
    for _, c in score_test.columns(entities, score_test.rows_of(table.train), criterion)[:ENTITIES]:
        work = 6e-6 * len(table.train) * table.width
        items.append(
            Item("effects", f"effect of {c.column.name}", EPOCHS, work, seed, {"entity": c.place, "slopes": False})
        )
        if _has_room(table, c):
            name = f"effect of {c.column.name} on {table.features}"
            work *= 0.3 * _dense(table.train).shape[1]
            items.append(Item("effects", name, SLOPE_EPOCHS, work, seed, {"entity": c.place, "slopes": True}))
    return items


def trainer(item: Item, table: Table) -> PathTrainer:
    entity = coding_of(table, item.settings["entity"], 2)
    if not item.settings["slopes"]:
        return BlocksTrainer(table, Intercepts, item.name, [(entity,)])
    spread = _dense(table.train).std(0)
    return SlopesTrainer(table, item.name, entity, torch.where(spread > 0, 1 / spread, 0.0))


def _has_room(table: Table, c: Coding) -> bool:
    features = table.train.features
    if not isinstance(features, Tensor):
        return False
    count = features.shape[1]
    return c.width * count <= MOST_SLOPES and len(features) * count * table.width <= MOST_NUMBERS


def _dense(split: Split) -> Tensor:
    assert isinstance(split.features, Tensor)
    return split.features


def _product(features: Tensor, slopes: Tensor) -> Tensor:
    """Row-wise inner product: (n, d) and (n, d) -> (n,), or (n, d) and (n, d, k) -> (n, k)."""
    return (features * slopes).sum(1) if slopes.ndim == 2 else (features[:, :, None] * slopes).sum(1)
