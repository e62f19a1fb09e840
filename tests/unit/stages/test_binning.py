"""Splits and thresholds that train: they stay sorted between their ends, and learn by what the other side would have given."""

import math

import pytest
import torch
from torch import Tensor

from sparkdiff.stages.binning import Binarizer, Bucketizer, SortedSplits, ordered_bits

INF, NAN = math.inf, math.nan
CASES = [
    ([-INF, 1.0, 2.0, 5.0, INF], 4),
    ([0.0, 1.0, 2.0, 5.0, 9.0], 4),
    ([-INF, 1.0, 2.0, 5.0, 9.0], 4),
    ([0.0, 1.0, 2.0, 5.0, INF], 4),
    ([0.0, 1.0, 9.0, INF, INF], 2),  # padded
    ([-INF, 1.0, INF], 2),
]


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def made(splits: list[float], last: int) -> tuple[Tensor, SortedSplits, Tensor]:
    outer = torch.tensor([k in (0, last) for k in range(len(splits))])
    start = float64(*splits)
    return start, SortedSplits(outer), ~outer & start.isfinite()


@pytest.mark.parametrize(("splits", "last"), CASES)
def test_splits_stay_sorted_between_their_ends(splits: list[float], last: int) -> None:
    start, constraint, inner = made(splits, last)
    generator = torch.Generator().manual_seed(3)
    move = torch.randn(50, len(start), dtype=torch.float64, generator=generator)
    value = constraint.value(start, move)
    assert bool(((value.diff() > 0) | value[:, 1:].isinf()).all())
    assert torch.equal(value[:, ~inner], start[~inner].expand(50, -1))
    assert bool((value[:, inner] != start[inner]).all())
    assert torch.equal(constraint.value(start, torch.zeros_like(move)), start.expand_as(move))


@pytest.mark.parametrize(("splits", "last"), CASES)
def test_every_inner_split_can_go_its_own_way(splits: list[float], last: int) -> None:
    start, constraint, inner = made(splits, last)
    move = torch.randn(1, len(start), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    jacobian = torch.autograd.functional.jacobian(lambda m: constraint.value(start, m)[0, inner], move)[:, 0]
    assert bool(jacobian.isfinite().all())
    assert bool((jacobian[:, ~inner] == 0).all())
    assert int(torch.linalg.matrix_rank(jacobian[:, inner])) == int(inner.sum())


def test_columns_of_several_lengths_don_t_touch_each_other() -> None:
    rows = float64(-INF, 1, 2, INF, INF, 0, 1, 2, 5, 9).view(2, 5)
    outer = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]).bool()
    move = torch.randn(4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = SortedSplits(outer).value(rows, move)
    for i in range(2):
        torch.testing.assert_close(
            together[:, i], SortedSplits(outer[i]).value(rows[i], move[:, i]), rtol=1e-15, atol=0
        )


def test_splits_that_rounding_makes_one_stay() -> None:
    start, constraint, _ = made([-INF, 0.0, 5e-324, INF], 3)
    assert torch.equal(constraint.value(start, float64(0, 1.5, 0, 0)[None])[0], start)


def test_the_order_of_doubles_is_java_s() -> None:
    values = float64(-INF, -1e300, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1.0, INF)
    assert bool((ordered_bits(values).diff() > 0).all())


# Gradients --------------------------------------------------------------------------------------------------------------


def test_a_threshold_moves_by_what_its_other_side_gives() -> None:
    module = Binarizer("threshold", float64(2.0)[0], 1)
    module.unfreeze("threshold")
    x = float64(1.9, 2.1, NAN, 50.0).requires_grad_()
    out = module(x)
    assert out.tolist() == [0.0, 1.0, 0.0, 1.0]
    (out * float64(1.0, 0.0, 0.0, 0.0)).sum().backward()  # a 1 at 1.9 costs: the threshold should go up
    assert module.threshold.grad < 0
    assert x.grad is None  # the gradient ends at what is compared


def test_each_split_learns_from_the_rows_beside_it() -> None:
    module = Bucketizer("splits", [float64(-INF, 0.0, 100.0, INF)], True, "bucketizer", ("x",))
    module.unfreeze("splits")
    x = float64(0.5, NAN, INF, -INF)
    out = module(x)
    assert out.tolist() == [1.0, 3.0, 2.0, 0.0]
    out[0].backward()
    gradient = module.splits.grad
    assert gradient[1] < 0 and gradient[2].abs() < 1e-30 and bool((gradient[[0, 3]] == 0).all())
    soft = torch.sigmoid(float64(0.5))
    torch.testing.assert_close(gradient[1], -(soft * (1 - soft))[0])


def test_nothing_is_unfrozen_unasked() -> None:
    assert not Binarizer("threshold", float64(0.0)[0], 1).passes_gradient()
    assert not Bucketizer("splits", [float64(0.0, 1.0, 2.0)], False, "b", ("x",)).passes_gradient()
