"""Boosted trees on the scalar columns, fitted to the derivatives of the head's loss at the current margin.

In Spark, a VectorAssembler reads the unchanged columns, and for each entry of the margin a GBTRegressionModel makes a prediction,
which the last linear stage multiplies by 1. `sparkdiff.importers` converts the trees of LightGBM, XGBoost or
scikit-learn, so that every double falls into the same leaf in Spark.

Source: Friedman, "Greedy function approximation: a gradient boosting machine", 2001; Chen and Guestrin, "XGBoost", 2016, for
Newton's steps in the leaves.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import GBTRegressor
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.growth import boosters, cost_table
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.growth_options import KINDS, GrowthSettings
from sparkdiff.growth.part import Item, Output, Part, PipelinePlace, ServingWork, Stages, Trainer
from sparkdiff.growth.row_tensors import Column, Split, Table
from sparkdiff.importers.tree_ensembles import sum_of_trees
from sparkdiff.importers.trees import LARGEST_CATEGORY, TreeArrays
from sparkdiff.jvm.nodes import Array, Nodes


@dataclasses.dataclass(frozen=True)
class EnsembleSize:
    """Size and learning rate of an ensemble.

    Attributes:
        leaves: largest number of leaves of a tree.
        rounds: largest number of boosting rounds.
        rate: learning rate, the factor by which each tree's leaf values are multiplied.
        columns: share of the columns that is drawn at random for each tree.
    """

    leaves: int
    rounds: int
    rate: float = 0.1
    columns: float = 1.0


FAST = (EnsembleSize(4, 300), EnsembleSize(31, 200))
SIZES = (*FAST, EnsembleSize(8, 400, 0.05, 0.7), EnsembleSize(63, 400, 0.05, 0.6))
"""The proposed ensembles. The last two learn slowly: the one with 8 leaves is often better on some thousand rows, the one with 63
leaves on more rows."""
MOST_LEAVES = 320
"""Largest number of leaves per boosting round of a slow ensemble (leaves of a tree times entries of the margin). More leaves, as
with many classes, would make a model slow to load and serve."""
ROUNDS = 10
"""Number of boosting rounds per epoch."""
RIDGE = 1.0
LEAST_ROWS = 20
"""Smallest number of rows in a leaf; a fiftieth of the training rows if that is less."""
LONGEST = 4.0
"""Largest Newton step of a leaf, in units of the margin (`Criterion.unit`)."""


def require_library() -> str:
    """Name of the library that fits trees.

    Raises:
        InputError: none is installed.
    """
    library = boosters.preferred_library()
    if library is None:
        raise InputError(
            "parts: 'trees' needs LightGBM, XGBoost or scikit-learn, and none of them is installed: "
            "pip install 'sparkdiff[trees]', or leave 'trees' out of parts"
        )
    return library


def without_trees(settings: GrowthSettings) -> tuple[GrowthSettings, list[str]]:
    """Leave trees out of the options, with a warning, if `parts` has all kinds and no library for trees is installed.

    Otherwise return the options unchanged and no warning.

    Raises:
        InputError: `parts` names trees but not all kinds, and no library for trees is installed.
    """
    if "trees" not in settings.parts or boosters.preferred_library() is not None:
        return settings, []
    if set(settings.parts) != set(KINDS):
        require_library()
    rest = tuple(kind for kind in settings.parts if kind != "trees")
    why = "none of LightGBM, XGBoost and scikit-learn is installed: pip install 'sparkdiff[trees]'"
    return dataclasses.replace(settings, parts=rest), [f"growth tried no trees, because {why}"]


def propose(table: Table, _criterion: Criterion, seed: int) -> list[Item]:
    """Items for ensembles of small trees, which model interactions of two or three columns, and of larger trees; see `SIZES`.

    Raises:
        InputError: no library for trees is installed.
    """
    library = require_library()
    if not table.columns:
        return []
    return [
        Item(
            kind="trees",
            name=f"trees of {size.leaves} leaves",
            epochs=size.rounds // ROUNDS,
            work=size.rounds * table.width * (1e-3 + 1e-7 * len(table.train) * math.log2(size.leaves)),  # seconds
            seed=seed,
            settings={"library": library, "leaves": size.leaves, "rate": size.rate, "columns": size.columns},
        )
        for size in SIZES
        if size in FAST or size.leaves * table.width <= MOST_LEAVES
    ]


Block = tuple[Nodes, ...]
"""The trees of one epoch, for each entry of the margin; `featureIndex` is an index into the columns of the table."""


class BlockSumCache:
    """Cache of the summed outputs of blocks, so that each block is evaluated only once on the rows of a split.

    Blocks are always added one after another, so that sums are bit for bit the same with and without the cache.
    """

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, int, Array]] = {}  # the rows, the number of blocks, the sum

    def of(self, blocks: Sequence[Block], values: Tensor) -> Array:
        """Sum of the outputs of the blocks for rows (n, c); (n, k)."""
        rows, count, sums = self.kept.get(id(values), (None, 0, None))
        if rows is not values or count > len(blocks) or sums is None:
            count, sums = 0, np.zeros((len(values), len(blocks[0]) if blocks else 1))
        for block in blocks[count:]:
            sums = sums + np.stack([boosters.total(nodes, values.numpy()) for nodes in block], 1)
        self.kept[id(values)] = values, len(blocks), sums
        return sums

    def __reduce__(self) -> Any:
        return BlockSumCache, ()


class TreesPart(Part):
    """A part with one sum of trees for each entry of the margin.

    Args:
        columns: all columns of the table; the part keeps those that its trees read.
        blocks: the trees, epoch by epoch.
        sums: cache of outputs.
    """

    kind = "trees"

    def __init__(self, columns: Sequence[Column], blocks: Sequence[Block], sums: BlockSumCache):
        self._blocks, self._sums = tuple(blocks), sums
        joined = [Nodes.join(each) for each in zip(*blocks, strict=True)]
        read = np.unique(np.concatenate([n.featureIndex[~n.leaf] for n in joined])).astype(np.int64)
        places = read if len(read) else np.zeros(1, np.int64)
        number = np.full(len(columns) + 1, -1, np.int32)  # the last entry is for leaves
        number[places] = np.arange(len(places))
        self.columns = tuple(columns[j] for j in places)
        self.nodes = tuple(n.replace(featureIndex=number[n.featureIndex]) for n in joined)
        self.name = f"{sum(n.trees for n in joined)} trees"

    @property
    def parameters(self) -> int:
        """Number of nodes: each inner node has a threshold (or a set of categories), and each leaf a value."""
        return sum(len(nodes) for nodes in self.nodes)

    def output(self, split: Split) -> Tensor:
        sums = torch.from_numpy(self._sums.of(self._blocks, split.values))
        return sums[:, 0] if split.margin.ndim == 1 else sums

    def serving_work(self, features: float) -> ServingWork:
        trees = [("GBTRegressionModel", cost_table.lookups(n.trees, len(n))) for n in self.nodes]
        columns = frozenset(column.column for column in self.columns)
        return ServingWork([("VectorAssembler", float(len(columns))), *trees], float(len(trees)), columns)

    def stages(self, place: PipelinePlace) -> Stages:
        assembled = place.name("columns")
        assembler = VectorAssembler(
            inputCols=[column.column for column in self.columns], outputCol=assembled, handleInvalid="keep"
        )
        stages, outputs = [jvm.set_uid(assembler, place.name("assembler"))], []
        for k, nodes in enumerate(self.nodes):
            name = place.name(f"margin{k}" if place.classes else "margin")
            estimator = jvm.set_uid(GBTRegressor(featuresCol=assembled, predictionCol=name), f"{name}_trees")
            stages.append(sum_of_trees(estimator, nodes, np.ones(nodes.trees), len(self.columns)))
            outputs.append(Output(name, np.eye(place.classes)[:, [k]] if place.classes else np.ones(1)))
        return Stages(stages, outputs)

    def learned_table(self) -> list[dict[str, Any]]:
        """Table of the columns with their shares in the gain of all splits, largest share first."""
        gains = np.zeros(len(self.columns))
        for nodes in self.nodes:
            inner = ~nodes.leaf
            np.add.at(gains, nodes.featureIndex[inner], (nodes.gain * nodes.rawCount)[inner])
        shares = gains / max(gains.sum(), 1e-300)
        order = np.argsort(-shares, kind="stable")
        return [{"column": self.columns[j].name, "gain": float(shares[j])} for j in order]


class TreesTrainer(Trainer):
    """Trainer of boosted trees. Each epoch adds a block of trees; the trees found so far are the whole state."""

    def __init__(self, item: Item, table: Table):
        self.item, self.columns, self.width = item, table.columns, table.width
        self.blocks: list[Block] = []
        self.sums = BlockSumCache()
        self._booster: boosters.Booster | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_booster": None}

    def epoch(self, table: Table, criterion: Criterion) -> None:
        train = table.train
        x, weight = train.values.numpy(), (train.weight / train.weight.mean())[:, None]
        start = train.margin.numpy().reshape(-1, self.width)
        if self.blocks:
            start = start + self.sums.of(self.blocks, train.values)
        if self._booster is None:
            library, rules = self.item.settings["library"], self._rules(table, criterion)
            nominal = np.array([c.indexes and 0 < c.levels <= LARGEST_CATEGORY for c in self.columns], bool)
            self._booster = boosters.booster(library, x, nominal, rules)

        def slopes(margin: Array) -> tuple[Array, Array]:
            at = torch.from_numpy(np.ascontiguousarray(margin)).reshape(train.margin.shape)
            slope, curve = (d.reshape(margin.shape) for d in criterion.slopes(at, train))
            weighted = weight / train.mean(curve).mean()
            # Infinite or NaN slopes, of rows without weight or after divergence, count as zero.
            slope, curve = ((weighted * d).nan_to_num(0.0, 0.0, 0.0) for d in (slope, curve))
            return slope.numpy(), curve.numpy()

        seed = (self.item.seed + 7919 * len(self.blocks)) % 2**31
        gaps = np.array([column.gaps for column in self.columns])
        trees = [_with_nan_directions(tree, x, gaps) for tree in self._booster.block(start, slopes, ROUNDS, seed)]
        self.blocks.append(tuple(_nodes(trees[k :: self.width]) for k in range(self.width)))

    def part(self) -> Part:
        return TreesPart(self.columns, self.blocks, self.sums)

    def _rules(self, table: Table, criterion: Criterion) -> boosters.TreeConstraints:
        leaves, rate, columns = (self.item.settings[name] for name in ("leaves", "rate", "columns"))
        rows = max(1, min(LEAST_ROWS, len(table.train) // 50))
        return boosters.TreeConstraints(
            leaves, math.ceil(math.log2(leaves)) + 3, rows, RIDGE, rate, LONGEST * criterion.unit, columns
        )


trainer = TreesTrainer


def _with_nan_directions(tree: TreeArrays, x: Array, gaps: Array) -> TreeArrays:
    """The tree, with a direction for NaN at every split.

    At splits on a column with NaN in the training rows, the tree has learned the direction, which is kept. At splits on other
    columns, NaN goes where most training rows go if future rows may lack the value, and else where Spark sends NaN. If these
    directions would make the tree too large, NaN goes where Spark sends it at all splits.

    Args:
        x: (n, c) the training rows.
        gaps: (c,) True for columns in which future rows may lack a value.
    """
    lacks, gaps = (np.append(columns, False)[tree.feature] for columns in (np.isnan(x).any(0), gaps))
    plain = tree.without_missing()
    most = tree.count[tree.left] > tree.count[tree.right]
    kept = dataclasses.replace(tree, nanLeft=np.where(lacks, tree.nanLeft, np.where(gaps, most, plain.nanLeft)))
    if np.array_equal(kept.nanLeft, plain.nanLeft):
        return plain
    try:
        kept.nodes()
    except InputError:
        return plain
    return kept


def _nodes(trees: Sequence[TreeArrays]) -> Nodes:
    """The trees in Spark's form, without trees that predict 0 for all rows."""
    kept = [tree for tree in trees if len(tree.left) > 1 or tree.value[0] != 0]
    return TreeArrays.join(kept or [TreeArrays.constant(0.0)]).nodes()
