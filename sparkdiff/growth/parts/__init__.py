"""The kinds of parts (stages that growth adds), one module each.

In each module, `propose` returns the items of a round (descriptions of training runs), and `trainer` the trainer of an item.
"""

from collections.abc import Sequence
from types import ModuleType

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, Trainer
from sparkdiff.growth.parts import crosses, effects, embeddings, shapes, trees, units
from sparkdiff.growth.row_tensors import Table

KINDS: dict[str, ModuleType] = {
    "units": units,
    "crosses": crosses,
    "shapes": shapes,
    "effects": effects,
    "embeddings": embeddings,
    "trees": trees,
}
"""Kinds in the order in which they are proposed."""


def propose(kinds: Sequence[str], table: Table, criterion: Criterion, seed: int) -> list[Item]:
    """The items of a round, proposed for the rows and the margin of the table, in the order in which they are compared.

    Args:
        seed: seed of the items; different for each round.
    """
    return [item for kind in kinds for item in KINDS[kind].propose(table, criterion, seed)]


def trainer(item: Item, table: Table) -> Trainer:
    """Trainer of an item, before its first epoch."""
    return KINDS[item.kind].trainer(item, table)
