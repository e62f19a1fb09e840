"""Quadratic functions with absolute values: minimise ½x'(H + diag(ridge))x - b'x + Σ lasso·|x|, for many problems at once."""

import numpy as np
import torch
from torch import Tensor

SWEEPS = 3000
FACES = 100
"""Coordinates that may leave in one go."""
NEAR = 1e-8
"""Weight of ½·(distance from the last x)², which is zero in the end: columns that depend on one another give a system with a
solution all the same, and one that leads to where a sign changes."""


def minimise(
    h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, start: Tensor | None = None, *, tol: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """(m or 1, d, d), (m, d), (m, d), (m, d) -> the minima (m, d), and which of them are exact to `tol` (m,).

    Coordinate descent finds out which coordinates are zero and the others' signs; a linear system then gives the values.
    """
    x = (torch.zeros_like(b) if start is None else start).clone()
    done = torch.zeros(len(b), dtype=torch.bool)
    budget, sweeps = 4, 0
    while sweeps < SWEEPS and not bool(done.all()):
        todo = (~done).nonzero()[:, 0]
        part = h if len(h) == 1 else h[todo]
        given = (part, ridge[todo], b[todo], lasso[todo])
        x[todo] = descend(*given, x[todo], budget)
        x[todo] = settle(*given, x[todo])
        done[todo] = violation(*given, x[todo]) <= tol * (1 + b[todo].abs().amax(1))
        sweeps += budget
        budget *= 2
    return x, done


def violation(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """How far the smallest subgradient is from zero: (m,)."""
    return subgradient(times(h, x) + ridge * x - b, lasso, x).abs().amax(1)


def subgradient(gradient: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """The smallest subgradient of a smooth function with this gradient plus Σ lasso·|x|."""
    flat = (gradient.abs() - lasso).clamp_min(0) * gradient.sign()
    return torch.where(x == 0, flat, gradient + lasso * x.sign())


def times(h: Tensor, x: Tensor) -> Tensor:
    return x @ h[0] if len(h) == 1 else (h @ x[:, :, None])[:, :, 0]


def settle(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """Down to the minimum with the zeros and signs of x; where a sign would change on the way, that coordinate stays at zero."""
    x, moving = x.clone(), torch.ones(len(x), dtype=torch.bool)
    for _ in range(min(x.shape[1], FACES)):
        todo = moving.nonzero()[:, 0]
        now = x[todo]
        goal = with_signs(h if len(h) == 1 else h[todo], ridge[todo], b[todo], lasso[todo], now)
        known = torch.isfinite(goal).all(1)
        crossing = (goal * now < 0) & (lasso[todo] > 0)
        way = torch.where(crossing, now / (now - goal), 1.0)
        first = way.amin(1, keepdim=True)
        reached = torch.where(crossing & (way <= first), 0.0, now + first * (goal - now))
        x[todo[known]] = reached[known]
        moving[todo] = known & crossing.any(1)
        if not bool(moving.any()):
            break
    return x


def with_signs(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """The minimum over the coordinates that aren't zero in x (or have no |x|) as if signs stayed; NaN where none is found."""
    used = ((x != 0) | (lasso == 0)).to(x.dtype)
    system = h * used[:, :, None] * used[:, None, :] + torch.diag_embed((ridge + NEAR) * used + 1 - used)
    factor, wrong = torch.linalg.cholesky_ex(system)
    right = ((b - lasso * x.sign() + NEAR * x) * used)[:, :, None]
    found = torch.cholesky_solve(right, factor)
    return torch.where((wrong == 0)[:, None, None], found, torch.nan)[:, :, 0] * used


def descend(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor, sweeps: int) -> Tensor:
    """Cyclic coordinate descent, every problem at the same coordinate; one sweep of four goes over all of them."""
    columns = np.ascontiguousarray(h.permute(1, 2, 0).numpy())  # (d, d, m or 1)
    stay, edge = ridge.T.numpy(), np.ascontiguousarray(lasso.T.numpy())
    now = np.ascontiguousarray(x.T.numpy()).copy()
    rest = np.ascontiguousarray((b - times(h, x)).T.numpy()).copy()  # b - Hx, without the ridge
    diagonal = np.einsum("iim->im", columns)
    curvature = diagonal + stay
    inverse = np.divide(1.0, curvature, out=np.zeros_like(curvature), where=curvature > 0)
    below = -edge
    everything = range(len(now))
    for sweep in range(sweeps):
        order = everything if sweep % 4 == 0 else np.flatnonzero((now != 0).any(1)).tolist()
        for j in order:
            old = now[j]
            goal = rest[j] + diagonal[j] * old
            new = (goal - np.minimum(np.maximum(goal, below[j]), edge[j])) * inverse[j]
            step = new - old
            if step.any():
                rest -= columns[j] * step
                now[j] = new
    return torch.from_numpy(now.T.copy())
