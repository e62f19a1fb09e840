"""Crosses: an effect for each pair of values of two columns, by MLlib's Interaction of their one-hot blocks.

The pairs are found by a score test over all of them; numbers are bucketized.
"""

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.items import Item
from sparkdiff.growth.parts import score_test
from sparkdiff.growth.parts.blocks import EPOCHS, Blocks, BlocksTrainer
from sparkdiff.growth.parts.coding import Coding, coding, codings
from sparkdiff.growth.table import Table

BINS = 8
"""Buckets of a number."""
MOST_CELLS = 10_000
"""Of a cross: Spark's Interaction writes a name for each into the metadata of its column."""
ALONE = 3
TOGETHER = (3, 6)


class Crosses(Blocks):
    """One effect for each cell of each cross."""

    kind = "crosses"


def propose(table: Table, criterion: Criterion, seed: int) -> list[Item]:
    """The best pair, the next two, and the best three and six together."""
    found = score_test.pairs(codings(table, BINS), table.train, criterion, MOST_CELLS)
    best = found[:1] + [f for f in found[1:] if f[0] > 0]
    pairs = [(a, b) for _, a, b in best]
    items = [_item(table, [pair], seed) for pair in pairs[:ALONE]]
    sizes = sorted({min(size, len(pairs)) for size in TOGETHER if len(pairs) > 1})
    return items + [_item(table, pairs[:size], seed) for size in sizes]


def _item(table: Table, pairs: list[tuple[Coding, Coding]], seed: int) -> Item:
    name = ", ".join(f"{a.column.name} x {b.column.name}" for a, b in pairs)
    settings = {"pairs": [[a.place, b.place] for a, b in pairs], "bins": BINS}
    return Item("crosses", name, EPOCHS, len(pairs) * len(table.train) * table.width, seed, settings)


def trainer(item: Item, table: Table) -> BlocksTrainer:
    blocks = []
    for places in item.settings["pairs"]:
        first, second = (coding(table, place, item.settings["bins"]) for place in places)
        assert first is not None
        assert second is not None
        blocks.append((first, second))
    return BlocksTrainer(Crosses, item.name, blocks)
