"""Crosses: an effect for each pair of values of two columns, computed by MLlib's Interaction of their one-hot blocks.

A score test of all pairs of columns finds the best ones. Numbers are bucketized.
"""

from collections.abc import Sequence

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item
from sparkdiff.growth.parts import score_test
from sparkdiff.growth.parts.blocks import EPOCHS, Blocks, BlocksTrainer, index, width
from sparkdiff.growth.parts.coding import Coding, coding_of, codings
from sparkdiff.growth.parts.ridge import Ridge, SparseDesign, fit, mean_curvature
from sparkdiff.growth.row_tensors import Split, Table

Pair = tuple[Coding, Coding]

BINS = 8
"""Largest number of buckets of a numeric column, unless it has few distinct values (see `coding.FEW`)."""
MOST_CELLS = 10_000
"""Largest number of cells of a cross. It is limited because Spark's Interaction writes a name for each cell into the metadata."""
ALONE = 3
TOGETHER = (3, 6)
POOL = 20
"""Number of top-scoring pairs from which the pairs of a part with several pairs are chosen."""
RIDGE = 10.0
"""Ridge with which the cells of a chosen pair are fitted before the next pair is chosen; 1 counts like one average row."""


class Crosses(Blocks):
    """A part with one effect for each cell of each cross."""

    kind = "crosses"


def propose(table: Table, criterion: Criterion, seed: int) -> list[Item]:
    """Items for each of the three best pairs alone, and for three and six pairs together, chosen greedily (see `_in_turn`).

    There are fewer if too few pairs have a positive score; the best pair needs none.
    """
    found = score_test.pairs(codings(table, BINS), score_test.rows_of(table.train), criterion, MOST_CELLS)
    best = found[:1] + [f for f in found[1:] if f[0] > 0]
    pool = [(a, b) for _, a, b in best[:POOL]]
    items = [_item(table, [pair], seed) for pair in pool[:ALONE]]
    pairs = _in_turn(pool, score_test.rows_of(table.train), criterion)
    sizes = sorted({min(size, len(pairs)) for size in TOGETHER if len(pairs) > 1})
    return items + [_item(table, pairs[:size], seed) for size in sizes]


def _in_turn(pool: Sequence[Pair], split: Split, criterion: Criterion) -> list[Pair]:
    """Pairs chosen greedily: the first pair, then the pair with the largest score after the effects of the first are fitted, and
    so on, while scores are positive.
    """
    chosen = list(pool[:1])
    while chosen and len(chosen) < max(TOGETHER):
        cells = SparseDesign(index(chosen[-1], split)[None], width(chosen[-1]))
        penalty = Ridge(split.margin.new_full((cells.width,), RIDGE * mean_curvature(split, criterion) / len(split)))
        start = split.margin.new_zeros(cells.width, *split.margin.shape[1:])
        split = split.at(split.margin + cells.margin(fit(cells, penalty, start, split, criterion)))
        d = score_test.derivatives(split, criterion)
        rest = [(a, b) for a, b in pool if (a, b) not in chosen]
        scores = [(score_test.of_pair(a.index(split), b.index(split), (a.width, b.width), d), (a, b)) for a, b in rest]
        score, best = max(scores, key=lambda of: of[0], default=(0.0, None))
        if best is None or score <= 0:
            break
        chosen.append(best)
    return chosen


def _item(table: Table, pairs: Sequence[Pair], seed: int) -> Item:
    name = ", ".join(f"{a.column.name} x {b.column.name}" for a, b in pairs)
    settings = {"pairs": [[a.place, b.place] for a, b in pairs], "bins": BINS}
    return Item("crosses", name, EPOCHS, 8e-6 * len(pairs) * len(table.train) * table.width, seed, settings)


def trainer(item: Item, table: Table) -> BlocksTrainer:
    pairs, bins = item.settings["pairs"], item.settings["bins"]
    blocks = [(coding_of(table, first, bins), coding_of(table, second, bins)) for first, second in pairs]
    return BlocksTrainer(table, Crosses, item.name, blocks)
