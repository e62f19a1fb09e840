"""Rows through trees: every shape, against a recursion in plain Python on Spark's own words."""

import copy
import math
import pickle
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from sparkdiff.jvm.nodes import Nodes
from sparkdiff.stages import routing
from sparkdiff.stages.routing import Router
from sparkdiff.tensors.rows import SparseRows

Tree = dict[str, Any] | None
"""A split {"feature", "values", "categories", "left", "right"}, or None for a leaf."""
WIDTH = 4
CATEGORIES = {2: 5, 3: 4}
"""Sizes of the categorical features; both an odd and an even one."""
THRESHOLDS = [0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
VALUES = [
    *(v for t in THRESHOLDS for v in (t, math.nextafter(t, math.inf), math.nextafter(t, -math.inf))),
    *map(float, range(7)),
    0.5,
    2.5,
    -1.0,
    -2.0,
    1e300,
]


def nodes_of(trees: list[Tree]) -> Nodes:
    return Nodes.of([records(tree) for tree in trees])


def records(tree: Tree) -> list[dict[str, Any]]:
    """Spark's records in pre-order; without recursion, so that chains may be as long as they like."""
    out: list[dict[str, Any]] = []
    todo: list[tuple[Tree, int, str]] = [(tree, -1, "")]
    while todo:
        node, parent, side = todo.pop()
        if parent >= 0:
            out[parent][side] = len(out)
        split = node or {"feature": -1, "values": [], "categories": -1}
        out.append(
            {
                "prediction": 0.0,
                "impurity": 0.0,
                "gain": 0.0,
                "rawCount": 1,
                "leftChild": -1,
                "rightChild": -1,
                "impurityStats": [1.0, 0.0, 0.0],
                "split": {
                    "featureIndex": split["feature"],
                    "leftCategoriesOrThreshold": split["values"],
                    "numCategories": split["categories"],
                },
            }
        )
        if node:
            here = len(out) - 1
            todo += [(node["right"], here, "rightChild"), (node["left"], here, "leftChild")]
    return out


def goes_left(split: dict[str, Any], x: float) -> bool:
    """org.apache.spark.ml.tree.{Continuous,Categorical}Split.shouldGoLeft, word for word."""
    if split["categories"] < 0:
        return bool(x <= split["values"][0])
    left, every = set(split["values"]), set(map(float, range(split["categories"])))
    is_left = len(left) <= split["categories"] // 2
    return x in left if is_left else x not in every - left


def reference(trees: list[Tree], rows: list[list[float]]) -> list[list[int]]:
    def leaves(tree: Tree) -> list[tuple[bool, ...]]:
        out, todo = [], [(tree, ())]
        while todo:
            node, path = todo.pop()
            if node is None:
                out.append(path)
            else:
                todo += [(node["right"], (*path, False)), (node["left"], (*path, True))]
        return out

    number: dict[tuple[int, tuple[bool, ...]], int] = {}
    for t, tree in enumerate(trees):
        for path in leaves(tree):
            number[t, path] = len(number)
    out = []
    for row in rows:
        out.append([])
        for t, tree in enumerate(trees):
            path: tuple[bool, ...] = ()
            while tree is not None:
                path = (*path, goes_left(tree, row[tree["feature"]]))
                tree = tree["left" if path[-1] else "right"]
            out[-1].append(number[t, path])
    return out


def thresholds_of(nodes: Nodes) -> torch.Tensor:
    return torch.from_numpy(nodes.values[nodes.starts[nodes.continuous]])


def continuous(feature: int, threshold: float, left: Tree, right: Tree) -> Tree:
    return {"feature": feature, "values": [threshold], "categories": -1, "left": left, "right": right}


def chain(depth: int, *, left: bool, width: int = WIDTH) -> Tree:
    tree: Tree = None
    for i in range(depth):
        sides = (tree, None) if left else (None, tree)
        tree = continuous(i % min(2, width), [0.5, 1.0, 0.0, -1.0][i % 4], *sides)
    return tree


def full(depth: int, feature: int = 0) -> Tree:
    if not depth:
        return None
    sub = full(depth - 1, 1 - feature)
    return continuous(feature, 0.25 * depth - 0.5, sub, sub)


thresholds = st.sampled_from(THRESHOLDS) | st.floats(-2, 2)
categorical = st.sampled_from(sorted(CATEGORIES)).flatmap(
    lambda f: st.tuples(
        st.just(f), st.lists(st.integers(0, CATEGORIES[f] - 1).map(float), unique=True, max_size=CATEGORIES[f])
    )
)
trees = st.recursive(
    st.none(),
    lambda sub: (
        st.builds(continuous, st.integers(0, WIDTH - 1), thresholds, sub, sub)
        | st.builds(
            lambda split, left, right: {
                "feature": split[0],
                "values": split[1],
                "categories": CATEGORIES[split[0]],
                "left": left,
                "right": right,
            },
            categorical,
            sub,
            sub,
        )
    ),
    max_leaves=20,
)
chains = st.builds(chain, st.integers(1, 30), left=st.booleans())
ensembles = st.lists(trees | chains | st.builds(full, st.integers(0, 5)), min_size=1, max_size=6)
values = st.sampled_from(VALUES) | st.floats(-3, 3)
batches = st.lists(st.lists(values, min_size=WIDTH, max_size=WIDTH), max_size=9)


def sparse(rows: list[list[float]], columns: list[int], width: int) -> SparseRows:
    """The rows with their entries in wide `columns`, zeros left out but for -0.0, and some entries elsewhere."""
    indices, entries, offsets = [], [], [0]
    for row in rows:
        stored = {c: v for c, v in zip(columns, row, strict=True) if v != 0 or math.copysign(1, v) < 0}
        stored |= {c + 1: 7.0 for c in columns if c + 1 not in columns and c + 1 < width}
        for c in sorted(stored):
            indices.append(c)
            entries.append(stored[c])
        offsets.append(len(indices))
    return SparseRows(
        torch.tensor(indices, dtype=torch.int64),
        torch.tensor(entries, dtype=torch.float64),
        torch.tensor(offsets),
        width,
    )


def moved(tree: Tree, columns: list[int]) -> Tree:
    """The same tree on other columns."""
    if tree is None:
        return None
    left, right = moved(tree["left"], columns), moved(tree["right"], columns)
    return {**tree, "feature": columns[tree["feature"]], "left": left, "right": right}


@settings(deadline=None, max_examples=200)
@given(ensembles, batches, st.sampled_from([1, 5, 100_000]))
@example([None], [[0.0] * WIDTH], 100_000)
@example([chain(30, left=True), None, full(5)], [[v] * WIDTH for v in VALUES], 40)
def test_every_row_falls_into_the_leaf_that_spark_sends_it_to(
    forest: list[Tree], rows: list[list[float]], pairs: int
) -> None:
    nodes = nodes_of(forest)
    router, x = Router(nodes), torch.tensor(rows, dtype=torch.float64).view(-1, WIDTH)
    expected = torch.tensor(reference(forest, rows), dtype=torch.int32).view(len(rows), len(forest))
    size, routing.PAIRS = routing.PAIRS, pairs
    try:
        found = router.leaf(x, thresholds_of(nodes))
        assert found.dtype == torch.int32
        assert torch.equal(found, expected)
        assert torch.equal(router.leaf(sparse(rows, [*range(WIDTH)], WIDTH), thresholds_of(nodes)), expected)
        # Categories are those of all values, or, where these are many, of the values that are looked up.
        wide, many = torch.cat([x, x.new_zeros(len(x), 50)], 1), nodes_of(WIDTH * forest)
        assert torch.equal(router.leaf(wide, thresholds_of(nodes)), expected)
        again = Router(many).leaf(x, thresholds_of(many)) - router.leaves * torch.arange(WIDTH).repeat_interleave(
            len(forest)
        )
        assert torch.equal(again.int(), expected.repeat(1, WIDTH))
        for shape in ((router.leaves,), (router.leaves, 3)):
            table = torch.randn(shape, dtype=torch.float64)
            total = router.total(x, thresholds_of(nodes), table)
            torch.testing.assert_close(total, table[expected.long()].sum(1), rtol=1e-12, atol=1e-12)
    finally:
        routing.PAIRS = size
    assert (router.trees, router.leaves) == (len(forest), int(nodes.leaf.sum()))


@settings(deadline=None, max_examples=50)
@given(ensembles, batches)
def test_columns_may_lie_far_apart(forest: list[Tree], rows: list[list[float]]) -> None:
    columns, width = [3, 70_000, 70_001, 2**18 - 1], 2**18
    nodes = nodes_of([moved(tree, columns) for tree in forest])
    router = Router(nodes)
    expected = torch.tensor(reference(forest, rows), dtype=torch.int32).view(len(rows), len(forest))
    assert torch.equal(router.leaf(sparse(rows, columns, width), thresholds_of(nodes)), expected)
    x = torch.zeros(len(rows), width, dtype=torch.float64)
    x[:, columns] = torch.tensor(rows, dtype=torch.float64).view(-1, WIDTH)
    assert torch.equal(router.leaf(x, thresholds_of(nodes)), expected)


def test_sparse_rows_are_never_made_dense() -> None:
    columns, width, n = [3, 70_000, 70_001, 2**18 - 1], 2**18, 20_000
    nodes = nodes_of([moved(full(5), columns)] * 10)
    x = torch.randn(n, WIDTH, dtype=torch.float64)
    offsets = torch.arange(0, n * WIDTH + 1, WIDTH)
    rows = SparseRows(torch.tensor(columns).repeat(n), x.view(-1), offsets, width)  # 40 GB dense
    dense = Router(nodes_of([full(5)] * 10)).leaf(x, thresholds_of(nodes))
    assert torch.equal(Router(nodes).leaf(rows, thresholds_of(nodes)), dense)


def test_layouts_of_a_batch_do_not_matter() -> None:
    nodes = nodes_of([full(4), chain(30, left=False)])
    router, t = Router(nodes), thresholds_of(nodes)
    x = torch.randn(500, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = router.leaf(x, t)
    assert len(expected.unique()) > 10
    assert torch.equal(router.leaf(x.t().contiguous().t(), t), expected)
    assert torch.equal(router.leaf(x.repeat_interleave(2, 0)[::2], t), expected)
    assert torch.equal(router.leaf(torch.cat([x, x], 1), t), expected)  # more columns than the trees know


def test_thresholds_that_are_changed_in_place_count() -> None:
    nodes = nodes_of([full(3), full(3), chain(30, left=True)])
    router, t = Router(nodes), thresholds_of(nodes).clone().requires_grad_()
    x = torch.randn(200, WIDTH, dtype=torch.float64)
    before = router.leaf(x, t)
    with torch.no_grad():
        t.add_(0.3)
    after = router.leaf(x, t)
    assert not torch.equal(before, after)
    assert torch.equal(after, Router(nodes).leaf(x, t))
    table = torch.randn(router.leaves, dtype=torch.float64)
    with torch.no_grad():
        t.sub_(0.3)
    torch.testing.assert_close(router.total(x, t, table), table[before.long()].sum(1))


def test_thresholds_follow_the_order_of_the_nodes() -> None:
    """A categorical node between two continuous ones takes no threshold."""
    middle = {"feature": 2, "values": [1.0], "categories": 5, "left": continuous(0, 7.0, None, None), "right": None}
    nodes = nodes_of([continuous(1, 8.0, middle, continuous(0, 9.0, None, None))])
    x = torch.tensor([[0.0, 0.0, 1.0, 0.0], [2.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0], [9.0, 2.0, 0.0, 0.0]])
    found = Router(nodes).leaf(x.double(), torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))
    assert found.view(-1).tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("forest", [[full(4)] * 3, [full(4), chain(30, left=True)]], ids=["full", "mixed"])
@pytest.mark.parametrize("k", [(), (3,)])
def test_derivatives_go_to_the_table(forest: list[Tree], k: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "PAIRS", 100)  # several parts
    nodes = nodes_of(forest)
    router, x = Router(nodes), torch.randn(70, WIDTH, dtype=torch.float64)
    table = torch.randn(router.leaves, *k, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(70, *k, dtype=torch.float64)
    (router.total(x, thresholds_of(nodes), table) * weight).sum().backward()
    counts = torch.nn.functional.one_hot(router.leaf(x, thresholds_of(nodes)).long(), router.leaves).sum(1).double()
    torch.testing.assert_close(table.grad, counts.T @ weight)


@pytest.mark.parametrize("used", [False, True])
def test_a_router_can_be_copied_and_pickled(used: bool) -> None:
    nodes = nodes_of([full(4), chain(30, left=True), None])
    router, t = Router(nodes), thresholds_of(nodes).requires_grad_()
    x = torch.randn(60, WIDTH, dtype=torch.float64)
    expected = Router(nodes).leaf(x, t)
    if used:
        router.total(x, t, torch.zeros(router.leaves, dtype=torch.float64))
    for other in (copy.deepcopy(router), pickle.loads(pickle.dumps(router))):
        assert torch.equal(other.leaf(x, t), expected)
        assert torch.equal(other.leaf(x, t + 1), Router(nodes).leaf(x, t + 1))


@pytest.mark.parametrize("make", [lambda: chain(30, left=True), lambda: chain(30, left=False), lambda: full(6)])
def test_memory_is_linear_in_the_nodes(make: Any) -> None:
    """1,000 chains of depth 30 have 61,000 nodes; full trees as deep would have 2e12."""
    tree = make()
    part = Nodes.of([records(tree)])
    nodes = Nodes.of([records(tree)] * 1000)
    tracemalloc.start()
    router = Router(nodes)
    peak = tracemalloc.get_traced_memory()[1]  # numpy reports its arrays, torch does not
    tracemalloc.stop()
    router.leaf(torch.zeros(1, WIDTH, dtype=torch.float64), thresholds_of(nodes))
    held = sum(len(pickle.dumps(t)) for t in vars(router).values())
    assert len(nodes) == 1000 * len(part)
    assert held < 100 * len(nodes)
    assert peak < 250 * len(nodes)
