"""The slope by which benchmarks/strengths.py learns strengths of augmentation, against finite differences."""

import numpy as np
import pytest
import torch
from strengths import Features, Search, Strengths
from torch import Tensor

from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.training.recipes import Recipe
from tests.support.small_networks import F64, glr, natural_units, network, normal

ROWS, WIDTH, STEPS, SHIFT = 200, 4, 3, 1e-6


def validation_loss(logs: Tensor) -> Tensor:
    """After some steps of Adam on rows that are changed with these logarithms of strengths; the same random numbers each time."""
    x = normal(ROWS, WIDTH, seed=4)
    y = torch.poisson((0.5 * x[:, 0]).exp(), generator=torch.Generator().manual_seed(5))
    rows = {"train": (x[:150], y[:150]), "validation": (x[150:], y[150:])}
    net, groups = network((glr(WIDTH), ["c-1"], "prediction")), torch.tensor([0, 0, 1, 1])
    units = natural_units(net, {"c-1": WIDTH}, Options())
    loss = Objective("poisson", lambda margin, label, weight: margin.exp() - label * margin)
    features = Features(torch.zeros(WIDTH, dtype=F64), torch.ones(WIDTH, dtype=F64), groups)
    search = Search(net, loss, units, features, rows, seed=3, grouped=True, unrolled=STEPS)
    u = torch.zeros_like(search.start).requires_grad_()
    moments: tuple[Tensor, ...] = (torch.zeros_like(search.start),) * 2
    for step in range(1, STEPS + 1):
        u, moments = search._stepped(u, moments, Strengths.of(logs), step, Recipe(0.03, 0.01))
    held, label = rows["validation"]
    return search.loss(u, held, [(label, torch.ones_like(label))])


def test_the_slope_by_noise_is_that_of_finite_differences() -> None:
    """Noise alone: the masks are 0 or 1 and have the slope of another function, on purpose."""
    logs = torch.log(torch.tensor([0.3, 0.2, 0.05, 0.05, 0.1, 0.05], dtype=F64)).requires_grad_()
    [slope] = torch.autograd.grad(validation_loss(logs), [logs])
    for group in (0, 1):
        sides = []
        for sign in (1, -1):
            moved = logs.detach().clone()
            moved[group] += sign * SHIFT
            sides.append(validation_loss(moved).item())
        assert slope[group] == pytest.approx((sides[0] - sides[1]) / (2 * SHIFT), rel=1e-4)
        assert abs(float(slope[group])) > 1e-5
    assert np.isfinite(slope.numpy()).all()
