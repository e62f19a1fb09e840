"""Codings of columns, and the score tests that read them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff.growth.parts import coding, crosses, score_test
from sparkdiff.growth.parts.coding import Coding
from sparkdiff.growth.row_tensors import Column, Split, Table
from tests.support.growth_tables import table_of

F64 = torch.float64


def table_with(column: Column, train: Tensor, validation: Tensor | None = None) -> Table:
    """A table of one column."""
    table, _ = table_of("poisson", 3)

    def split(values: Tensor) -> Split:
        nothing = torch.zeros(len(values), dtype=F64)
        return Split(nothing[:, None], values[:, None], nothing, nothing + 1, nothing.long(), nothing)

    held = train if validation is None else validation
    return dataclasses.replace(table, columns=(column,), train=split(train), validation=split(held))


def coded(column: Column, values: Tensor, bins: int = 4) -> Coding:
    found = coding.coding(table_with(column, values), 0, bins)
    assert found is not None
    return found


def test_few_values_have_a_bucket_each_and_many_have_quantiles() -> None:
    some = torch.arange(1000, dtype=F64)
    assert coded(Column("x", "x"), some % 10).edges == tuple(i + 0.5 for i in range(9))
    assert coded(Column("x", "x"), some % 10).labels[:2] == ("0", "1")
    many = coded(Column("x", "x"), some)
    assert many.edges == (249.75, 499.5, 749.25)
    assert many.labels == ("[-inf, 249.8)", "[249.8, 499.5)", "[499.5, 749.2)", "[749.2, inf)", "missing")
    assert coded(Column("x", "x"), some[:300] % 10).size == 4, "each of ten values has 30 rows only"


def test_buckets_begin_with_their_edge_and_have_one_for_nothing() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, 2.0] * 30, dtype=F64)
    found = coded(Column("x", "x"), values)
    rows = torch.tensor([-math.inf, -0.6, -0.5, -0.0, 0.0, 0.49, 0.5, 3.0, math.inf, math.nan], dtype=F64)
    index = found.index(table_with(Column("x", "x"), rows).train)
    assert index.tolist() == [0, 0, 1, 1, 1, 1, 2, 3, 3, 4]
    half = coded(Column("x", "x"), torch.arange(-500, 500, dtype=F64).clamp_min(-1e-300), 2)
    assert all(edge != 0 or math.copysign(1, edge) < 0 for edge in half.edges)


def test_categories_are_their_own_index() -> None:
    column = Column("a", "a_index", 3, ("p", "q"), indexes=True)
    found = coded(column, torch.tensor([0.0, 1.0, 2.0], dtype=F64))
    assert (found.size, found.labels, found.is_number) == (3, ("p", "q", "2", "other"), False)
    rows = torch.tensor([0.0, 2.0, 3.0, -1.0, math.nan], dtype=F64)
    assert found.index(table_with(column, rows).train).tolist() == [0, 2, 3, 3, 3]


def test_a_category_with_gaps_has_other_and_missing_entries() -> None:
    column = Column("a", "a_index", 2, ("p", "q"), indexes=True)
    found = coded(column, torch.tensor([0.0, 1.0, math.nan], dtype=F64))
    assert (found.labels, found.width) == (("p", "q", "other", "missing"), 4)
    assert found.entry(torch.tensor([0.0, 1.0, 2.0, 9.0, math.nan], dtype=F64)).tolist() == [0, 1, 2, 2, 3]


def test_indices_of_unknown_categories() -> None:
    column = Column("user", "user", indexes=True)
    assert coded(column, torch.tensor([5.0, 90.0], dtype=F64)).size == 91
    for values in ([0.5, 1.0], [-1.0, 2.0], [1.0, 1e9], [3.0, 3.0], [math.nan, math.nan]):
        table = table_with(column, torch.tensor(values, dtype=F64))
        assert coding.coding(table, 0, 4) is None


def test_gaps_are_those_of_training_and_validation_rows() -> None:
    known, gap = torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.0, math.nan], dtype=F64)
    for train, validation, gaps in ((known, known, False), (known, gap, True), (torch.cat([gap, known]), known, True)):
        found = coding.coding(table_with(Column("x", "x"), train, validation), 0, 4)
        assert found is not None
        assert found.gaps == gaps


def test_columns_of_one_name_have_no_cross() -> None:
    table, criterion = table_of("poisson", planted=lambda c: 0.8 * ((c["a"] < 3) == (c["b"] < 2)))
    same = tuple(dataclasses.replace(c, name="a") if c.name == "b" else c for c in table.columns)
    names = [i.name for i in crosses.propose(dataclasses.replace(table, columns=same), criterion, 0)]
    assert "a x b" in [i.name for i in crosses.propose(table, criterion, 0)]
    assert all("a x a" not in name for name in names)


@pytest.mark.parametrize("weights", [1.0, 7.0])
def test_without_an_effect_scores_are_standardised(weights: float) -> None:
    scores = []
    for seed in range(30):
        table, criterion = table_of("poisson", 1500, seed)
        train = dataclasses.replace(table.train, weight=weights * table.train.weight)
        codes = coding.codings(table, 8)
        scores += [score for score, *_ in score_test.pairs(codes, train, criterion, 1000)]
    assert abs(float(np.mean(scores))) < 0.5
    assert 0.4 < float(np.std(scores)) < 1.5
