"""What float32 does to the outputs of a network is measured, and refused where it is much."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.evaluation import cached_parity
from sparkdiff.fine_tuning.task import check_place
from sparkdiff.options import Options
from sparkdiff.stages.scaling import StandardScaler
from sparkdiff.stages.trees import GBTRegression
from sparkdiff.tensors.rows import SparseRows
from tests.support.random_trees import WIDTH
from tests.support.small_networks import F64, logistic, network, normal, trees

X = ("x", -1)


def data(*batches: Any, weight: Tensor | None = None) -> Any:
    """Validation rows as `Data` gives them."""
    rows = [(x, None, torch.ones(len(x), dtype=F64) if weight is None else weight, None) for x in batches]
    return SimpleNamespace(columns={X: "c0"}, values=lambda batch: {X: batch}, batches=lambda split: iter(rows))


def test_a_small_difference_is_measured_and_names_no_column() -> None:
    x = normal(50, 6, seed=3)
    found = cached_parity.check_single_precision(network((logistic(6), ["x"], "p")), data(x[:30], x[30:]))
    assert (found.rows, found.ok, found.labelDisagreements) == (50, True, 0)
    assert 0 < found.maxRelDiff["margin"] < 1e-5
    assert found.maxAbsDiff.keys() == {"margin"}


def test_a_column_far_from_zero_is_named() -> None:
    x = normal(50, 6, seed=3)
    x[:, 2] += 1e9
    scaled = StandardScaler(torch.ones(6, dtype=F64), x.mean(0), True, True)
    net = network((scaled, ["x"], "s"), (logistic(6), ["s"], "p"))
    with pytest.raises(
        InputError,
        match=r"moves the outputs of stage1 by .* \(rounding moves entry 2 of column 'x' by up to 2.2 standard",
    ):
        cached_parity.check_single_precision(net, data(x))
    nothing = torch.zeros(50, dtype=F64)
    assert cached_parity.check_single_precision(net, data(x, weight=nothing)).rows == 0  # rows of weight 0 are ignored


def test_sparse_rows_and_numbers_beyond_float32() -> None:
    offsets = torch.tensor([0, 1, 2])
    rows = SparseRows(torch.tensor([1, 4]), torch.tensor([0.1, 1e60], dtype=F64), offsets, 6)
    with pytest.raises(InputError, match=r"column 'x'.*set precision='float64'"):
        cached_parity.check_single_precision(network((logistic(6), ["x"], "p")), data(rows))


class Doubles(StandardScaler):
    def forward(self, x: Any) -> Any:
        return x @ torch.eye(6, dtype=F64)


def test_a_stage_that_names_its_dtype() -> None:
    scaler = Doubles(torch.ones(6, dtype=F64), torch.zeros(6, dtype=F64), True, True)
    net = network((scaler, ["x"], "s"), (logistic(6), ["s"], "p"))
    with pytest.raises(InputError, match=r"can't compute with precision='float32' \(.*\): set precision='float64'$"):
        cached_parity.check_single_precision(net, data(normal(5, 6, seed=3)))


def test_trees_are_refused_in_float32() -> None:
    forest = network((trees(GBTRegression, 5), ["x"], "p"))
    single, live = Options.of({"precision": "float32"}), SimpleNamespace(live=forest.positions)
    with pytest.raises(InputError, match=r"precision='float32', but stage0 compares .*Set precision='float64'$"):
        check_place(single, forest.graph, live)  # type: ignore[arg-type]
    check_place(Options(), forest.graph, live)  # type: ignore[arg-type]
    linear = network((logistic(WIDTH), ["x"], "p"))
    check_place(single, linear.graph, SimpleNamespace(live=linear.positions))  # type: ignore[arg-type]
