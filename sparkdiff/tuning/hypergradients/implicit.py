"""Derivatives of the loss on held-out rows with respect to the penalties, from the implicit function theorem.

The fitted weights θ solve slope(θ, λ) = 0 for penalties λ. So dθ/dλ = -J⁻¹·∂slope/∂λ, where J is the slope's Jacobian
with respect to θ: the Hessian of the training loss, except for GeneralizedLinearRegression's working weights. Sources:
Pedregosa, "Hyperparameter optimization with approximate gradient" (2016); Lorraine et al., "Optimizing millions of
hyperparameters by implicit differentiation" (2020).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tuning.hypergradients.weights import LinearModel

ENOUGH = 1e-10
"""Largest slope at a solution, as a share of the sum of its rows' absolute slopes."""
STEPS, SLOW = 60, 0.2
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
        moved = lu_solve(near.factors, (ridge - model.ridge(near.logs)) * near.weights * model.free[:, None])
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
    by_column = -(back * ridge * weights * model.free[:, None])[:, :, : len(model.group)].sum((0, 1))
    gradient = torch.zeros_like(logs).index_add_(0, model.group, by_column)
    good = bool(gradient.isfinite().all())
    return Point(logs, weights, float(loss.detach()), gradient, factors) if good else None


def follow(model: LinearModel, ridge: Tensor, weights: Tensor, factors: Factors | None = None) -> Tensor | None:
    """Take Newton steps to the solution, with an older Jacobian as long as it reduces the slope fast enough; return the
    weights, or None if the steps don't converge.
    """
    last = torch.inf
    for _ in range(STEPS):
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
    return torch.linalg.lu_solve(*factors, right.flatten(1)[:, :, None], adjoint=adjoint)[:, :, 0].reshape(right.shape)
