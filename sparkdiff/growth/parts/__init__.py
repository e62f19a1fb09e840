"""The kinds of parts. Each module has `propose`, which makes the items of a round, and `trainer`, which begins one."""

from collections.abc import Sequence
from types import ModuleType

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, Trainer
from sparkdiff.growth.parts import crosses, effects, embeddings, shapes, trees, units
from sparkdiff.growth.table import Table

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
    """The items of a round, for the margin of the table, in the order in which the chief decides on them.

    Args:
        seed: a different one for each round.
    """
    return [item for kind in kinds for item in KINDS[kind].propose(table, criterion, seed)]


def trainer(item: Item, table: Table) -> Trainer:
    """Trainer of an item, before its first epoch."""
    made: Trainer = KINDS[item.kind].trainer(item, table)
    return made
