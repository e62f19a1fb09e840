"""Gradients through hard splits against plain autograd, node by node; and what trees tell the trainer about themselves."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.evaluation.input_statistics import distinct_values, leaf_counts
from sparkdiff.stages import forest
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.trees import (
    DecisionTreeClassification,
    DecisionTreeRegression,
    GBTClassification,
    GBTRegression,
    RandomForestClassification,
    RandomForestRegression,
)
from sparkdiff.tensors.rows import SparseRows
from sparkdiff.training.augmentation import augment
from sparkdiff.training.recipes import Recipe
from tests.support.random_trees import CATEGORIES, WIDTH, rows
from tests.support.small_networks import F64, normal, trees as trees_of

LABELS = LabelStats(1.0, 2.0, 0.0, 9.0, torch.empty(0, dtype=torch.int64))


def module(kind: type[Trees], seed: int) -> Trees:
    made = trees_of(kind, seed)
    made.shown = made.SHOWN
    made.tau = torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 2.0, len(made.thresholds)))
    return made


def by_autograd(trees: Trees, x: Tensor, thresholds: Tensor, table: Tensor) -> Tensor:
    """FACTS' formula at every node: d = h + p - p.detach(), value = left + d * (right - left), from the leaves up."""
    nodes = trees.nodes
    number = {int(j): i for i, j in enumerate(np.flatnonzero(nodes.leaf))}
    place = {int(j): i for i, j in enumerate(np.flatnonzero(nodes.continuous))}
    value: dict[int, Tensor] = {}
    for j in reversed(range(len(nodes))):
        if j in number:
            value[j] = table[number[j]].expand(len(x), -1)
            continue
        root = int(nodes.roots()[j])
        left, right = value[root + int(nodes.leftChild[j])], value[root + int(nodes.rightChild[j])]
        own = x[:, int(nodes.featureIndex[j])]
        if j in place:
            h = (~(own <= thresholds[place[j]])).to(F64)
            z = own - thresholds[place[j]]
            p = torch.sigmoid(torch.where(z.isnan(), torch.inf, z) / trees.tau[place[j]])
            d = h + p - p.detach()
        else:
            split = set(nodes.values[nodes.starts[j] : nodes.ends[j]].tolist())
            size = int(nodes.numCategories[j])
            unseen = len(split) > size // 2  # goes left
            d = torch.tensor(
                [float(v not in split if v in set(map(float, range(size))) else not unseen) for v in own.tolist()],
                dtype=F64,
            )
        value[j] = torch.where((d != 0)[:, None] | (d == 0)[:, None], left + d[:, None] * (right - left), 0.0)
    return torch.stack([value[int(begin)] for begin in nodes.offsets[:-1]]).sum(0)


KINDS = [
    GBTRegression,
    GBTClassification,
    RandomForestRegression,
    RandomForestClassification,
    DecisionTreeRegression,
    DecisionTreeClassification,
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_straight_through_is_what_autograd_finds_node_by_node(kind: type[Trees], seed: int) -> None:
    trees = module(kind, seed)
    trees.thresholds.requires_grad_()
    x = torch.from_numpy(
        np.concatenate([rows(60), np.random.default_rng(seed).normal(size=(60, WIDTH))])
    ).requires_grad_()
    total = trees.total(x)
    weight = normal(*total.shape, seed=seed + 1)
    wanted = [x, trees.thresholds, trees.leaves]
    found = torch.autograd.grad((total * weight).sum(), wanted)
    table = trees.table()
    expected = by_autograd(trees, x, trees.thresholds, table if table.ndim == 2 else table[:, None])
    expected = expected if table.ndim == 2 else expected[:, 0]
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    reference = torch.autograd.grad((expected * weight).sum(), wanted)
    for ours, theirs in zip(found, reference, strict=True):
        torch.testing.assert_close(ours, theirs.nan_to_num(0.0), rtol=1e-10, atol=1e-12)
    if not kind.single:  # one tree may be a leaf
        assert (found[0][60:] != 0).any() and (found[1] != 0).any()
    assert not found[0][x.detach().isnan()].any()  # nothing is learned about what is missing
    nominal = sorted(set(trees.nodes.featureIndex[trees.nodes.categorical].tolist()))
    assert trees.nominal_features().tolist() == nominal


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = module(RandomForestClassification, 3)
    trees.thresholds.requires_grad_()
    x = normal(50, WIDTH).requires_grad_()
    weight = normal(50, 3, seed=2)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad((trees.total(x) * weight).sum(), [x, trees.thresholds, trees.leaves])

    whole = gradients()
    monkeypatch.setattr(forest, "ENTRIES", 7 * 3 * len(trees.nodes))
    assert trees._gates is not None and trees._gates.rows_at_once(3) == 7
    for a, b in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_no_rows() -> None:
    trees = module(GBTRegression, 1)
    x = torch.empty(0, WIDTH, dtype=F64, requires_grad=True)
    total = trees.total(x)
    assert total.shape == (0,)
    total.sum().backward()


def test_sparse_rows_have_gradients_at_what_is_stored() -> None:
    trees = module(GBTRegression, 2)
    trees.thresholds.requires_grad_()
    x = torch.where(normal(40, WIDTH).abs() > 0.7, normal(40, WIDTH), 0.0)
    row, column = x.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (x != 0).sum(1).cumsum(0)])
    values = x[row, column].clone().requires_grad_()
    full = x.clone().requires_grad_()
    weight = normal(40, seed=5)
    found = torch.autograd.grad(
        trees.total(SparseRows(column, values, offsets, WIDTH)) @ weight, [values, trees.thresholds]
    )
    expected = torch.autograd.grad(trees.total(full) @ weight, [full, trees.thresholds])
    torch.testing.assert_close(found[0], expected[0][row, column])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_the_same_with_and_without_gradients(kind: type[Trees]) -> None:
    trees, x = module(kind, 5), torch.from_numpy(rows(80))
    with torch.no_grad():
        plain = trees(x)
    trees.thresholds.requires_grad_()
    for given in (x, x.clone().requires_grad_()):
        for a, b in zip(trees(given), plain, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-12, atol=1e-12, equal_nan=True)


# What the trainer is told ----------------------------------------------------------------------------------------------


def stats(std: Tensor, support: Tensor, leaves: Tensor) -> FeatureStats:
    return FeatureStats(torch.zeros(len(std), dtype=F64), std, support, leaves)


def test_thresholds_settle_between_values_they_separate() -> None:
    trees = module(GBTRegression, 4)
    trees.thresholds.requires_grad_()
    was = trees.thresholds.detach().clone()
    with torch.no_grad():
        moved = torch.rand(len(was), generator=torch.Generator().manual_seed(0)) < 0.7
        trees.thresholds[moved] = 3 * normal(int(moved.sum()))
    features = trees.feature.unique().tolist()
    values = {f: normal(n, seed=f).sort().values for f, n in zip(features, (2, 3, 40), strict=False)}
    std = torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=F64)
    old_tau = trees.tau.clone()
    trees.observe(stats(std, torch.full((WIDTH,), 99), torch.empty(0)), values)
    expected_tau = torch.where(std[trees.feature] > 0, forest.SHARPNESS * std[trees.feature], old_tau)
    torch.testing.assert_close(trees.tau, expected_tau)
    before = trees.thresholds.detach().clone()
    assert trees.settles()
    trees.settle_()
    kinds = set()
    facts = zip(trees.feature.tolist(), was.tolist(), before.tolist(), trees.thresholds.tolist(), strict=True)
    for f, old, given, now in facts:
        known = values[f].tolist() if f in values else []
        left, right = [v for v in known if v <= given], [v for v in known if v > given]
        kind = (
            "same side"
            if not known or left == [v for v in known if v <= old]
            else "between"
            if left and right
            else "outside"
        )
        kinds.add(kind)
        if kind == "between":
            assert now == (left[-1] + right[0]) / 2
        else:
            assert now == (old if known and kind == "same side" else given)
    assert kinds == {"same side", "between", "outside"}
    settled = trees.thresholds.detach().clone()
    trees.settle_()
    assert torch.equal(trees.thresholds, settled)
    trees.thresholds.requires_grad_(False)
    assert not trees.settles()


def test_values_are_those_of_the_rows_that_count() -> None:
    trees = module(GBTRegression, 4)
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [math.nan, 5.0], [math.inf, 5.0], [2.0, 5.0], [100.0, 5.0]], dtype=F64)
    trees.feature = torch.tensor([0, 0, 1])
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 0.0], dtype=F64)
    network = SimpleNamespace(
        graph=SimpleNamespace(vertices=[SimpleNamespace(reads=(("x", -1),))]),
        trees=lambda: {0: trees},
        run=lambda values, wanted: None,
    )
    batches = [(x[:3], None, weight[:3], None), (x[3:], None, weight[3:], None)]
    data = SimpleNamespace(batches=lambda split: batches, values=lambda batch: {("x", -1): batch})
    found = distinct_values(network, data, 0)  # type: ignore[arg-type]
    assert {f: v.tolist() for f, v in found.items()} == {0: [1.0, 2.0, 3.0]}


def test_a_leaf_that_few_rows_reach_stays() -> None:
    trees = module(RandomForestClassification, 0)
    x = torch.from_numpy(rows(200))
    weight = torch.from_numpy(np.random.default_rng(0).integers(0, 2, 200)).to(F64)
    network = SimpleNamespace(
        trees=lambda: {0: trees},
        route=lambda values, wanted: values.update({v: trees.route(values["x", -1]) for v in wanted}),
    )
    batches = [(x[:90], None, weight[:90], None), (x[90:], None, weight[90:], None)]
    data = SimpleNamespace(batches=lambda split: batches, values=lambda batch: {("x", -1): batch})
    counts = leaf_counts(network, data)[0]  # type: ignore[arg-type]
    expected = torch.nn.functional.one_hot(trees.route(x[weight > 0]).long(), len(trees.leaves)).sum((0, 1))
    assert torch.equal(counts, expected)
    assert 0 < (counts < 5).sum() < len(counts)
    support = torch.tensor([99, 4, 99, 99])
    masks = trees.supported(stats(torch.ones(WIDTH, dtype=F64), support, counts), LABELS)
    assert torch.equal(masks["leaves"], (counts >= 5)[:, None].expand(-1, 3))
    assert torch.equal(masks["thresholds"], trees.feature != 1)


@pytest.mark.parametrize("kind", KINDS)
def test_leaf_units_move_margins_alike_at_any_tree_weight(kind: type[Trees]) -> None:
    trees = module(kind, 2)
    std = torch.arange(1.0, WIDTH + 1, dtype=F64)
    units = trees.units(stats(std, torch.full((WIDTH,), 99), torch.empty(0)), LABELS)
    torch.testing.assert_close(units["thresholds"], 0.3 * std[trees.feature])
    unit = torch.as_tensor(units["leaves"]).expand_as(trees.leaves)
    with torch.no_grad():
        before = trees.table().clone()
        trees.leaves += 1e-3 * unit
        moved = trees.table() - before
    if trees.leaves.ndim == 1:  # the mean of T leaves, or their weighted sum
        share = moved / (trees.nodes.trees if kind is RandomForestRegression else 1)
        expected = {GBTClassification: 1.0}.get(kind, LABELS.std) * 1e-3
        torch.testing.assert_close(share.abs(), torch.full_like(share, expected), rtol=1e-9, atol=1e-15)
    else:  # of the leaf's own weight
        size = (
            before.sum(1)
            if kind is DecisionTreeClassification
            else torch.from_numpy(trees.nodes.impurityStats[trees.nodes.leaf].sum(1))
        )
        relative = (unit[:, 0] / size)[size > 0]
        torch.testing.assert_close(relative, torch.full_like(relative, trees.nodes.trees / 3))


def test_weights_of_classes_stay_what_spark_can_use() -> None:
    trees = module(RandomForestClassification, 1)
    fitted = trees.leaves.detach().clone()
    with torch.no_grad():
        trees.leaves[0] = -1.0
        trees.leaves[1, 0] = -2.0
        trees.leaves[1, 1] = 3.0
        trees.leaves[2] = torch.tensor([0.0, 5e-324, 0.0], dtype=F64)  # its reciprocal is infinite
    with pytest.raises(InputError, match="trees: leaves must hold class weights >= 0, but an entry is -"):
        trees.check_domain("trees")
    trees.project_()
    assert torch.equal(trees.leaves[0], fitted[0])  # nothing was left of it
    shares = torch.tensor([0.0, 3.0, fitted[1, 2]], dtype=F64) / (3.0 + fitted[1, 2])
    torch.testing.assert_close(trees.leaves[1], shares * fitted[1].sum())
    assert trees.leaves[2].tolist() == [0.0, fitted[2].sum(), 0.0]
    assert torch.equal(trees.leaves[3:], fitted[3:])  # bit for bit where nothing moved
    trees.check_domain("trees")
    with torch.no_grad():
        trees.leaves[0] = 0.0
    with pytest.raises(InputError, match=r"leaf 0 has weight 0 for every class.*project_\(\)"):
        trees.check_domain("trees")


def test_no_noise_reaches_a_category() -> None:
    trees = module(GBTRegression, 2)
    nominal = trees.nominal_features()
    assert set(nominal.tolist()) == set(CATEGORIES)
    std = torch.ones(WIDTH, dtype=F64).index_fill(0, nominal, 0.0)
    x = torch.from_numpy(rows(64)).nan_to_num(0.0)
    v = ("x", -1)
    given = FeatureStats(torch.full((WIDTH,), 7.0, dtype=F64), std, torch.full((WIDTH,), 99))
    for recipe in (Recipe(1e-3, 0, noise=0.4), Recipe(1e-3, 0, mask=0.5)):
        target: Any = (torch.zeros(64), torch.ones(64))
        seen, _ = augment(recipe, {v: x}, target, {v: given}, [(0, 64)], (0, 0, 0))
        changed = (seen[v] != x).any(0)  # type: ignore[union-attr]
        assert changed.tolist() == [f not in CATEGORIES for f in range(WIDTH)]
