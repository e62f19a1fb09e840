"""Folding of numbers: margins and thresholds after an affine stage, against computing that stage first."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparkdiff.jvm.nodes import Nodes
from sparkdiff.serving.compact.affine_maps import (
    ElementwiseMap,
    Forest,
    LinearAbsorber,
    Map,
    MatrixMap,
    RefusedError,
    SelectionMap,
    double,
    last_left,
    of_module,
    order,
)
from sparkdiff.stages.projection import PCA
from sparkdiff.stages.scaling import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sparkdiff.stages.selecting import Selector
from sparkdiff.stages.weighing import ElementwiseProduct

doubles = st.floats(width=64)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(matrix: Any, intercepts: Any = None, stored: Any = None) -> LinearAbsorber:
    return LinearAbsorber(
        None, np.array(matrix, np.float64), None if intercepts is None else np.array(intercepts), stored
    )


def margins(of: LinearAbsorber, x: np.ndarray) -> np.ndarray:
    """As Spark computes them: what is not stored is not multiplied."""
    stored = np.ones(of.matrix.shape, np.bool_) if of.stored is None else of.stored
    with np.errstate(invalid="ignore", over="ignore"):
        terms = np.where(stored, x[:, None, :] * of.matrix, 0.0)
        return np.asarray(terms.sum(2) + (0.0 if of.intercepts is None else of.intercepts) + of.constants)


def computed(change: Map, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(change.module(torch.from_numpy(x)))


# Thresholds -------------------------------------------------------------------------------------------------------------


@given(doubles)
def test_ranks_of_doubles(x: float) -> None:
    if not math.isnan(x):
        [rank] = order(np.array([x]))
        assert double(np.array([rank]))[0] == x
        if abs(x) < 1e308:
            assert double(np.array([rank + 1]))[0] == np.nextafter(x, np.inf)


@settings(max_examples=300, deadline=None)
@given(finite, positive, finite, doubles, doubles)
def test_a_moved_threshold_decides_alike_for_every_double(
    shift: float, factor: float, plus: float, threshold: float, x: float
) -> None:
    a = [np.array([v]) for v in (shift, factor, plus, threshold)]
    [moved] = last_left(*a)
    with np.errstate(all="ignore"):
        for value in (x, moved, np.nextafter(moved, np.inf), np.nextafter(moved, -np.inf), shift, math.inf, -math.inf):
            assert ((np.float64(value) - shift) * factor + plus <= threshold) == (value <= moved), value


def tree(threshold: float, feature: int = 0) -> Nodes:
    leaf = {
        "prediction": 0.0,
        "impurity": 0.0,
        "gain": -1.0,
        "rawCount": 1,
        "leftChild": -1,
        "rightChild": -1,
        "impurityStats": [1.0, 0.0, 0.0],
        "split": {"featureIndex": -1, "leftCategoriesOrThreshold": [], "numCategories": -1},
    }
    split = {"featureIndex": feature, "leftCategoriesOrThreshold": [threshold], "numCategories": -1}
    return Nodes.of([[{**leaf, "leftChild": 1, "rightChild": 2, "split": split}, leaf, leaf]])


def test_thresholds_behind_other_columns() -> None:
    change = of_module(StandardScaler(t(2.0, 4.0), t(1.0, -1.0), True, True))
    moved = Forest(None, tree(0.5, feature=4), 6).absorb(change, 3, 2)
    assert moved.nodes.values.tolist() == pytest.approx([1.0])
    elsewhere = Forest(None, tree(0.5, feature=2), 6).absorb(change, 3, 2)
    assert elsewhere.nodes.values.tolist() == [0.5]
    chosen = Forest(None, tree(0.5, feature=4), 6).absorb(of_module(Selector("s", [2, 7])), 3, 9)
    assert (chosen.nodes.featureIndex[0], chosen.width) == (10, 13)
    behind = Forest(None, tree(0.5, feature=5), 6).absorb(of_module(Selector("s", [2, 7])), 3, 9)
    assert behind.nodes.featureIndex[0] == 12


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (ElementwiseProduct(t(-1.0)), "multiplies by -1"),
        (StandardScaler(t(0.0), t(0.0), True, True), "multiplies by 0"),
        (MinMaxScaler(t(3.0), t(3.0), 0.0, 1.0), "multiplies by 0"),
        (PCA(t(1.0)[:, None], t(1.0)), "it mixes them"),
    ],
)
def test_trees_refuse(module: Any, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        Forest(None, tree(0.5), 1).absorb(of_module(module), 0, 1)


# Margins ----------------------------------------------------------------------------------------------------------------


def changes(random: np.random.Generator, d: int) -> list[Map]:
    def vector(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(random.uniform(low, high, d))

    std = vector(0.1, 3.0)
    std[0] = 0.0
    low = vector(-2, 2)
    places = sorted(random.choice(d, d - 1, replace=False).tolist())
    return [
        of_module(StandardScaler(std, vector(-5, 5), True, True)),
        of_module(StandardScaler(std, vector(-5, 5), False, True)),
        of_module(RobustScaler(std, vector(-5, 5), True, False)),
        of_module(MaxAbsScaler(std)),
        of_module(MinMaxScaler(low, low + vector(0.5, 2), -1.0, 2.0)),
        of_module(ElementwiseProduct(vector(-1, 1))),
        of_module(PCA(torch.from_numpy(random.normal(size=(d, d - 1))), t(1.0))),
        of_module(Selector("s", places)),
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 3), st.booleans())
def test_folded_margins(seed: int, d: int, m: int, sparse: bool) -> None:
    """NaN everywhere, also where nothing is multiplied; blocks before and behind."""
    random = np.random.default_rng(seed)
    for change in changes(random, d):
        out = change.width_out or d
        width = 1 + out + 2
        stored = random.random((m, width)) < (0.6 if sparse else 2.0)
        matrix = np.where(stored, random.normal(size=(m, width)), 0.0)
        original = linear(matrix, random.normal(size=m), stored)
        folded = original.absorb(change, 1, d)
        before, x, behind = random.normal(size=(20, 1)), random.normal(size=(20, d)), random.normal(size=(20, 2))
        x[random.random(x.shape) < 0.1] = np.nan
        x[:3] = 0.0
        expected = margins(original, np.concatenate([before, computed(change, x), behind], 1))
        found = margins(folded, np.concatenate([before, x, behind], 1))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-11)


def test_infinite_entries_stay_what_they_are_where_entries_do() -> None:
    random = np.random.default_rng(0)
    for change in changes(random, 3):
        if isinstance(change, ElementwiseMap):
            original = linear(random.normal(size=(1, 3)), [1.0], np.ones((1, 3), np.bool_))
            x = np.array([[np.inf, 1.0, 0.0], [0.0, -np.inf, 1.0], [1.0, np.inf, -np.inf]])
            with np.errstate(invalid="ignore"):
                expected = margins(original, computed(change, x))
            np.testing.assert_array_equal(margins(original.absorb(change, 0, 3), x), expected)


def test_what_does_not_fold() -> None:
    one = np.ones((1, 2), np.bool_)
    constant = of_module(MinMaxScaler(t(0.0, 3.0), t(1.0, 3.0), 0.0, 1.0))
    with pytest.raises(RefusedError, match="entry 1 was constant"):
        linear([[1.0, 0.0]], [0.0], one).absorb(constant, 0, 2)
    not_stored = linear([[1.0, 0.0]], [0.0], np.array([[True, False]])).absorb(constant, 0, 2)
    assert not_stored.stored is not None and not_stored.stored.tolist() == [[True, False]]
    with pytest.raises(RefusedError, match="leaves out entries"):
        linear([[1.0]], [0.0]).absorb(of_module(Selector("s", [1])), 0, 2)
    with pytest.raises(RefusedError, match="moves zero"):
        linear([[1.0, 1.0]]).absorb(of_module(StandardScaler(t(1.0, 1.0), t(1.0, 0.0), True, True)), 0, 2)
    linear([[1.0, 1.0]]).absorb(of_module(StandardScaler(t(2.0, 1.0), t(1.0, 0.0), True, False)), 0, 2)
    with pytest.raises(RefusedError, match="width of its input is unknown"):
        linear([[1.0]], [0.0], one[:, :1]).absorb(of_module(Selector("s", [1])), 0, None)
    with pytest.raises(RefusedError, match="range of doubles"):
        linear([[1e200]], [0.0]).absorb(of_module(StandardScaler(t(1e-200), t(0.0), True, False)), 0, 1)
    with pytest.raises(RefusedError, match="range of doubles"):
        linear([[1e-200]], [0.0]).absorb(of_module(StandardScaler(t(1e200), t(0.0), True, False)), 0, 1)
    wide = of_module(PCA(torch.ones(2000, 2, dtype=torch.float64), t(1.0)))
    with pytest.raises(RefusedError, match="20,000 products a row would take the place of 4,020"):
        linear(np.ones((10, 2)), np.ones(10)).absorb(wide, 0, 2000)


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e5])
def test_large_shifts_fold_where_rounding_stays_small(ratio: float) -> None:
    """A bound that holds: on the rows at which it is largest, the error stays below it."""
    random = np.random.default_rng(1)
    d = 5
    change = of_module(StandardScaler(t(*[1e-3] * d), t(*[1e-3 * ratio] * d), True, True))
    original = linear(random.normal(size=(1, d)), [0.1])
    x = 1e-3 * (ratio + random.normal(size=(200, d)))
    expected = margins(original, computed(change, x))
    error = np.abs(margins(original.absorb(change, 0, d), x) - expected).max()
    assert error <= 1e-9 * (np.abs(original.matrix).sum() + 0.1)


def test_larger_shifts_do_not_fold() -> None:
    change = of_module(StandardScaler(t(1.0, 1.0), t(1e9, 0.0), True, True))
    with pytest.raises(RefusedError, match=r"its shifts are up to 5e\+08 times what its outputs vary by"):
        linear([[1.0, 1.0]], [0.0]).absorb(change, 0, 2)
    linear([[0.0, 1.0]], [0.0]).absorb(change, 0, 2)  # nothing is multiplied by it


def test_kinds_of_maps() -> None:
    assert isinstance(of_module(PCA(t(1.0)[:, None], t(1.0))), MatrixMap)
    assert isinstance(of_module(Selector("s", [0])), SelectionMap)
