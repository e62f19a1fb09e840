"""Tuning of one penalty per group of columns: descent along the gradient of the loss on held-out rows, from the best
single penalty for all groups.

The gradient follows from the implicit function theorem. The fitted weights θ solve slope(θ, λ) = 0 for penalties λ. So
dθ/dλ = -J⁻¹·∂slope/∂λ, where J is the slope's Jacobian with respect to θ: the Hessian of the training loss, except for
GeneralizedLinearRegression's working weights. Sources: Pedregosa, "Hyperparameter optimization with approximate gradient"
(2016); Lorraine et al., "Optimizing millions of hyperparameters by implicit differentiation" (2020).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tuning.hypergradients.weights import LinearModel

ENOUGH = 1e-10
"""Largest slope at a solution, as a share of the sum of its rows' absolute slopes."""
NEWTON_STEPS, SLOW = 60, 0.2
"""Largest number of Newton steps; and the Jacobian is recomputed if a step leaves more than this share of the slope."""

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Point:
    """A solution, and the gradient of the loss on held-out rows there.

    Attributes:
        logs: the logarithms of the groups' penalties.
        gradient: the gradient of the loss with respect to `logs`.
        factors: LU factors of the Jacobian.
    """

    logs: Tensor
    weights: Tensor
    loss: float
    gradient: Tensor
    factors: Factors


def point(model: LinearModel, logs: Tensor, near: Point | Tensor) -> Point | None:
    """The solution at these log penalties, by Newton steps from `near`; None if they don't converge, or the
    gradient isn't finite.
    """
    ridge = model.ridge(logs)
    if isinstance(near, Point):
        moved = lu_solve(near.factors, (ridge - model.ridge(near.logs)) * near.weights * model.free)
        weights = follow(model, ridge, near.weights - moved, near.factors)
    else:
        weights = follow(model, ridge, near)
    if weights is None:
        return None
    factors = lu_factors(model.jacobian(weights, ridge))
    at = weights.clone().requires_grad_()
    loss = model.loss(at)
    (pull,) = torch.autograd.grad(loss, at)
    back = lu_solve(factors, pull, adjoint=True)
    by_column = -(back * ridge * weights * model.free)[:, : len(model.group)].sum(0)
    gradient = torch.zeros_like(logs).index_add_(0, model.group, by_column)
    good = bool(gradient.isfinite().all())
    return Point(logs, weights, float(loss.detach()), gradient, factors) if good else None


def follow(model: LinearModel, ridge: Tensor, weights: Tensor, factors: Factors | None = None) -> Tensor | None:
    """Take Newton steps to the solution, with an older Jacobian as long as it reduces the slope fast enough; return the
    weights, or None if the steps don't converge.
    """
    last = torch.inf
    for _ in range(NEWTON_STEPS):
        slope, size = model.slope(weights, ridge), model.size(weights)
        left = float(slope.abs().amax() / size)
        if left <= ENOUGH:
            return weights
        if not left < torch.inf:
            return None
        if factors is None or left > SLOW * last:
            factors = lu_factors(model.jacobian(weights, ridge))
        last = left
        weights = weights - lu_solve(factors, slope)
    return None


def lu_factors(jacobian: Tensor) -> Factors:
    return torch.linalg.lu_factor_ex(jacobian)[:2]


def lu_solve(factors: Factors, right: Tensor, *, adjoint: bool = False) -> Tensor:
    return torch.linalg.lu_solve(*factors, right.flatten()[:, None], adjoint=adjoint)[:, 0].reshape(right.shape)


STEPS, RATE = 40, 0.2
"""Number of Adam's steps, and their learning rate for the penalties' logarithms."""
SPREAD = 1.0
"""Standard deviation of the prior of the groups' log penalties around the best single one's logarithm. The prior keeps
the steps from overfitting the held-out rows."""
HALVES = 6
"""Largest number of lengths tried for a step, each half the length before, until a solution is found at its end."""


@dataclass(frozen=True)
class TunedPenalties:
    """The result of tuning.

    Attributes:
        single: the point of the best single penalty.
        best: the point with the smallest loss on held-out rows plus prior. Expect a larger loss on other rows.
        losses: the loss on held-out rows at the start and after each step, without the prior.
    """

    single: Point
    best: Point
    losses: tuple[float, ...]


def tune_penalties(model: LinearModel, grid: Sequence[float], steps: int = STEPS) -> TunedPenalties | None:
    """Tune the penalties from the best single one of the grid; None if no single penalty has a solution."""
    single = best_single(model, grid)
    return None if single is None else descend(model, single, steps)


def best_single(model: LinearModel, grid: Sequence[float]) -> Point | None:
    """The point of the best penalty of the grid, common to all columns; None if no penalty has a solution."""
    best, least = None, math.inf
    for penalty, solution in zip(grid, model.at_once(grid), strict=True):
        if solution.converged:
            weights = model.weights_of(solution)
            loss = float(model.loss(weights))
            if loss < least:
                best, least = (penalty, weights), loss
    if best is None:
        return None
    logs = torch.full((model.groups,), math.log(best[0]), dtype=torch.float64)
    return point(model, logs, best[1])


def descend(model: LinearModel, start: Point, steps: int = STEPS) -> TunedPenalties:
    """Take steps of Adam from the best single penalty to the most probable penalties given the held-out rows.

    A row's loss divided by twice the mean loss is used as its negative log-likelihood: this holds for squared errors,
    and for half the deviance of a family whose dispersion is estimated. The prior of the logarithms is normal around
    the start.
    """
    pull = 2 * start.loss / float((model.held > 0).sum()) / SPREAD**2

    def objective(p: Point) -> float:
        return p.loss + 0.5 * pull * float((p.logs - start.logs).square().sum())

    at = start.logs.clone().requires_grad_()
    optimizer = torch.optim.Adam([at], lr=RATE, betas=(0.9, 0.99))
    way = [start]
    for _ in range(steps):
        now = way[-1]
        at.grad = now.gradient + pull * (now.logs - start.logs)
        optimizer.step()
        found = towards(model, now, at.detach())
        if found is None:
            break
        way.append(found)
        with torch.no_grad():
            at.copy_(found.logs)
    return TunedPenalties(start, min(way, key=objective), tuple(p.loss for p in way))


def towards(model: LinearModel, start: Point, goal: Tensor) -> Point | None:
    """The solution at the log penalties `goal`, or else at a point on the way there; None if none of them has one."""
    for half in range(HALVES):
        found = point(model, start.logs + (goal - start.logs) / 2**half, start)
        if found is not None:
            return found
    return None
