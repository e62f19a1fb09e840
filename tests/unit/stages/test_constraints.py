"""Constraints: where no move leads is the start itself, every move ends inside the domain, and gradients are autograd's."""

import pickle

import pytest
import torch
from torch import Tensor

from sparkdiff.stages.constraints import (
    Constraint,
    Covariance,
    LogProbabilities,
    Odds,
    OrderedValues,
    PositiveValues,
    Probabilities,
    UnitNorm,
)

F64 = torch.float64
INF = float("inf")


def rows(seed: int) -> Tensor:
    return torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(seed))


SHARES = torch.softmax(rows(1), -1)
SHARES[1, 2] = 0.0
SPREADS = rows(2)[:, :3, None] * rows(2)[:, None, :3] + torch.diag_embed(rows(1)[:, :3].exp())
SPREADS[2] = torch.ones(3, 3, dtype=F64)  # singular
STARTS: dict[str, tuple[Constraint, Tensor]] = {
    "positive": (PositiveValues(), rows(1).exp()),
    "ordered": (OrderedValues(), rows(1).sort(-1).values),
    "ordered with ends": (OrderedValues(), torch.tensor([-INF, -0.3, 0.1, 0.1, 7.0, INF], dtype=F64)),
    "ordered, infinite on the left": (OrderedValues(), torch.tensor([-INF, 1.0, 3.0], dtype=F64)),
    "ordered, one finite": (OrderedValues(), torch.tensor([-INF, 1.0, INF], dtype=F64)),
    "unit norm": (UnitNorm(), torch.nn.functional.normalize(rows(1), dim=-1)),
    "log-probabilities": (LogProbabilities(), torch.log_softmax(rows(1), -1)),
    "log-probabilities with a class that never occurs": (LogProbabilities(), torch.log(SHARES)),
    "probabilities": (Probabilities(), SHARES),
    "covariances": (Covariance(), SPREADS),
    "odds": (Odds(), torch.tensor([0.5, 0.1, 0.7, 1e-300, 5e-324, 1e-12, 1 / 3, 1 - 2**-53], dtype=F64)),
}


def holds(constraint: Constraint, start: Tensor, value: Tensor) -> bool:
    if isinstance(constraint, PositiveValues):
        return bool((value > 0).all())
    if isinstance(constraint, Odds):
        return bool(((value >= 0) & (value <= 1)).all())
    if isinstance(constraint, OrderedValues):
        ends = ~start.isfinite()
        return bool((value[..., 1:] >= value[..., :-1]).all() and (value[..., ends] == start[ends]).all())
    if isinstance(constraint, Covariance):
        regular, symmetric = value[:2], torch.equal(value, value.mT)
        return symmetric and bool((torch.linalg.eigvalsh(regular) > 0).all()) and torch.equal(value[2], start[2])
    total = {
        UnitNorm: lambda x: x.norm(dim=-1),
        LogProbabilities: lambda x: x.exp().sum(-1),
        Probabilities: lambda x: x.sum(-1),
    }
    measure = total[type(constraint)]
    kept = torch.allclose(measure(value), measure(start).expand(value.shape[:-1]), rtol=1e-12, atol=0)
    return kept and (not isinstance(constraint, Probabilities) or bool(((value > 0) == (start > 0)).all()))


@pytest.mark.parametrize("name", STARTS)
def test_no_move_is_the_start_and_every_move_stays_inside(name: str) -> None:
    constraint, start = STARTS[name]
    constraint = pickle.loads(pickle.dumps(constraint))  # it goes to other processes
    moves = torch.stack([torch.zeros_like(start), *(s * torch.randn_like(start) for s in (1e-9, 0.1, 3.0))])
    values = constraint.value(start, moves)
    assert torch.equal(values[0], start)
    assert values.shape == moves.shape
    for value in values[1:]:
        assert not torch.equal(value, start)
        assert holds(constraint, start, value)


@pytest.mark.parametrize("name", STARTS)
def test_gradients_are_those_of_differences(name: str) -> None:
    constraint, start = STARTS[name]
    generator = torch.Generator().manual_seed(3)
    move = 0.3 * torch.randn(2, *start.shape, dtype=F64, generator=generator)
    weight = torch.randn(2, *start.shape, dtype=F64, generator=generator)
    found = constraint.gradient(start, move, constraint.value(start, move), weight)

    def total(m: Tensor) -> Tensor:
        value = constraint.value(start, m)
        return (torch.where(value.isfinite(), value, 0.0) * weight).sum()

    expected = torch.zeros_like(move)
    for at in torch.ones_like(move).nonzero().tolist():
        step = torch.zeros_like(move)
        step[tuple(at)] = 1e-6
        expected[tuple(at)] = (total(move + step) - total(move - step)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    if constraint.elementwise:
        other = move.clone()
        other[..., 0] += 1.0
        assert torch.equal(constraint.value(start, other)[..., 1:], constraint.value(start, move)[..., 1:])


@pytest.mark.parametrize("name", ["positive", "ordered", "ordered with ends", "probabilities", "covariances", "odds"])
def test_how_far_parameters_moved_is_told_in_moves(name: str) -> None:
    constraint, start = STARTS[name]
    move = 0.3 * torch.randn(1, *start.shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    value = constraint.value(start, move)
    again = constraint.value(start, constraint.move_between(start, value[0])[None])
    torch.testing.assert_close(again, value)
