"""Step sizes by unrolling: their derivative equals finite differences, and they train better than one size for all."""

import math

import torch

from sparkdiff.tuning.hypergradients.unrolled_steps import Parameters, step_sizes, unrolled_adam

GROUPS = {"scale": ["scale"], "head": ["weights", "intercept"]}


def problem() -> tuple[Parameters, torch.Tensor, torch.Tensor]:
    """A scaler before a linear model: the head has far to go, the scaler is right as it is."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=draw, dtype=torch.float64)
    y = 3 * x[:, 0] + 0.5 * torch.randn(200, generator=draw, dtype=torch.float64)
    zero = {"scale": torch.ones(5), "weights": torch.zeros(5), "intercept": torch.zeros(()), "fixed": torch.ones(())}
    return {name: p.to(torch.float64) for name, p in zero.items()}, x, y


def test_derivative_and_what_it_finds() -> None:
    start, x, y = problem()

    def loss(p: Parameters, rows: slice) -> torch.Tensor:
        return ((x[rows] * p["scale"]) @ p["weights"] + p["intercept"] * p["fixed"] - y[rows]).square().mean()

    def train(p: Parameters, step: int) -> torch.Tensor:
        return loss(p, slice(20 * (step % 5), 20 * (step % 5) + 20))

    def validation(p: Parameters) -> torch.Tensor:
        return loss(p, slice(100, 200))

    logs = torch.tensor([-4.0, -3.0], dtype=torch.float64)
    _, gradient = unrolled_adam(start, GROUPS, logs, train, validation, 10)
    for g in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[g] = 1e-4
        above, below = (unrolled_adam(start, GROUPS, logs + s, train, validation, 10)[0] for s in (step, -step))
        assert math.isclose((above - below) / 2e-4, float(gradient[g]), rel_tol=1e-5)
    found = step_sizes(start, GROUPS, train, validation, start=1e-2, steps=12, rounds=10)
    assert min(found.losses) < 0.5 * found.losses[0]
    assert found.sizes["head"] > 3e-2
    assert all(bool((p == q).all()) for p, q in zip(start.values(), problem()[0].values(), strict=True))
