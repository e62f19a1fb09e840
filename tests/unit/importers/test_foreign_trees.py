"""Foreign trees as Spark's nodes: rounding against the machine's own, routing against a walk in plain Python."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sparkdiff.errors import InputError
from sparkdiff.importers.trees import TreeArrays, below, rounding_to
from sparkdiff.jvm.nodes import Nodes

FEATURES = 3
MAX = float(np.finfo(np.float32).max)


@given(st.floats(width=32, allow_nan=False))
def test_the_largest_double_that_rounds_to_a_float32_or_less(limit: float) -> None:
    (found,) = rounding_to(np.array([limit], np.float32))
    with np.errstate(over="ignore"):
        assert np.float64(found).astype(np.float32) <= np.float32(limit)
        after = np.nextafter(found, np.inf).astype(np.float32)
    assert found == np.inf or after > np.float32(limit)


@pytest.mark.parametrize("limit", [0.0, -0.0, 1e-45, -1e-45, MAX, -MAX, np.inf, -np.inf, 1.0, 16777216.0])
def test_rounding_at_the_edges(limit: float) -> None:
    test_the_largest_double_that_rounds_to_a_float32_or_less.hypothesis.inner_test(limit)  # type: ignore[attr-defined]


@given(st.floats(allow_nan=False))
def test_the_largest_float32_at_or_below(threshold: float) -> None:
    (found,) = below(np.array([threshold]))
    assert float(found) <= threshold
    with np.errstate(over="ignore"):
        assert found == np.inf or float(np.nextafter(found, np.float32(np.inf))) > threshold


def grown(random: np.random.Generator, splits: int, *, nan: float = 0.5, categories: float = 0.3) -> TreeArrays:
    """One tree with its nodes in random order; a share of its splits sends NaN left, another is of categories."""
    left, right, leaves = {}, {}, [0]
    for _ in range(splits):
        at = leaves.pop(random.integers(len(leaves)))
        size = 2 * len(left) + 1
        left[at], right[at] = size, size + 1
        leaves += [size, size + 1]
    n = 2 * splits + 1
    inner = np.array([j in left for j in range(n)])
    feature = np.where(inner, random.integers(0, FEATURES, n), -1)
    sets = {}
    for j in np.flatnonzero(inner & (random.random(n) < categories)):
        sets[int(j)] = (
            np.unique(random.integers(0, 8, random.integers(1, 6))).astype(float),
            bool(random.random() < 0.5),
        )
    return TreeArrays(
        offsets=np.array([0, n]),
        left=np.array([left.get(j, -1) for j in range(n)]),
        right=np.array([right.get(j, -1) for j in range(n)]),
        feature=feature,
        threshold=random.integers(-2, 9, n) / 2,
        nanLeft=inner & (random.random(n) < nan),
        value=random.permutation(n).astype(float),
        impurity=np.zeros(n),
        gain=np.ones(n),
        count=np.ones(n),
        sets=sets,
    )


def foreign(trees: TreeArrays, tree: int, row: np.ndarray) -> float:
    """What the library would say: a walk."""
    first = at = int(trees.offsets[tree])
    while trees.left[at] >= 0:
        x = row[trees.feature[at]]
        if np.isnan(x):
            goes = bool(trees.nanLeft[at])
        elif at in trees.sets:
            members, left = trees.sets[at]
            goes = (x in members) == left
        else:
            goes = x <= trees.threshold[at]
        at = first + int(trees.left[at] if goes else trees.right[at])
    return float(trees.value[at])


def spark(nodes: Nodes, tree: int, row: np.ndarray) -> float:
    """ContinuousSplit and CategoricalSplit, as written in Scala."""
    first = at = int(nodes.offsets[tree])
    while nodes.leftChild[at] >= 0:
        x, values = row[nodes.featureIndex[at]], nodes.values[nodes.starts[at] : nodes.ends[at]]
        n = int(nodes.numCategories[at])
        if n < 0:
            goes = x <= values[0]
        elif len(values) <= n // 2:
            goes = x in values
        else:
            goes = x not in np.setdiff1d(np.arange(n), values)
        at = first + int(nodes.leftChild[at] if goes else nodes.rightChild[at])
    return float(nodes.prediction[at])


def rows(random: np.random.Generator, n: int) -> np.ndarray:
    choices = np.concatenate([np.arange(-4, 20) / 2, [np.nan] * 8, [np.inf, -np.inf, 0.1, 1e9]])
    return random.choice(choices, (n, FEATURES))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_every_row_reaches_the_same_leaf(seed: int, sizes: list[int]) -> None:
    random = np.random.default_rng(seed)
    trees = TreeArrays.join([grown(random, size) for size in sizes])
    nodes = trees.nodes()
    nodes.check(FEATURES, "the trees")
    assert nodes.trees == len(sizes)
    for row in rows(random, 60):
        for tree in range(len(sizes)):
            assert spark(nodes, tree, row) == foreign(trees, tree, row)
    # Each split has its gain once, however often it was copied.
    assert nodes.gain.sum() == sum(sizes)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_without_missing_values_no_node_is_added(seed: int) -> None:
    random = np.random.default_rng(seed)
    trees = grown(random, 20)
    nodes = trees.without_missing().nodes()
    assert len(nodes) == 41
    for row in rows(random, 60):
        if not np.isnan(row).any():
            assert spark(nodes, 0, row) == foreign(trees, 0, row)


def chain(n: int) -> TreeArrays:
    """n splits, each of a feature of its own and below the last one's left, and all send NaN left."""
    inner = np.arange(2 * n + 1) % 2 == 0
    inner[-1] = False
    at = np.arange(2 * n + 1)
    zeros = np.zeros(2 * n + 1)
    return TreeArrays(
        np.array([0, 2 * n + 1]),
        np.where(inner, at + 2, -1),
        np.where(inner, at + 1, -1),
        np.where(inner, at // 2, -1),
        zeros,
        inner,
        at.astype(float),
        zeros,
        zeros,
        zeros,
    )


def test_growth_has_a_limit() -> None:
    """Each level of such a chain doubles what is below it."""
    assert len(chain(3).nodes()) > 7
    with pytest.raises(InputError, match=r"more than 20 times as large \(61 nodes now\).*missing='absent'"):
        chain(30).nodes()
    assert len(chain(30).without_missing().nodes()) == 61


@pytest.mark.parametrize("wrong", [1.5, -1.0, 1e6])
def test_a_category_that_spark_cannot_have(wrong: float) -> None:
    random = np.random.default_rng(0)
    trees = grown(random, 5, categories=1.0)
    node: Any = next(iter(trees.sets))
    trees.sets[node] = (np.array([0.0, wrong]), True)
    with pytest.raises(InputError, match=rf"feature {trees.feature[node]}: {wrong} is a category"):
        trees.nodes()
