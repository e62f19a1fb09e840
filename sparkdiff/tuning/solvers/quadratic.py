"""Minima of quadratic functions with absolute values, ½x'(H + diag(ridge))x - b'x + Σ lasso·|x|, for many at once."""

import functools

import numpy as np
import torch
from torch import Tensor

SWEEPS = 3000
FACES = 10
"""Largest number of linear systems per problem in one call of `settle`."""
EXCHANGES = 20
"""Largest number of exchanges of active sets per problem in one call of `exchange`."""
IDLE = 3
"""Number of successive exchanges without a lower value after which `exchange` gives up on a problem."""
SMALL = 40
"""Largest number of coordinates with which systems are solved for all problems at once."""
NEAR = 1e-8
"""Weight of an added term ½·(distance from the last x)², which vanishes at the minimum. With this term, a system with
linearly dependent columns has a solution, too, and x moves to a point where a sign changes."""


def minimise(
    h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, start: Tensor | None = None, *, tol: float | Tensor = 1e-12
) -> tuple[Tensor, Tensor]:
    """The minima (m, d), and which of them are exact to `tol` (m,), given h (m or 1, d, d), ridge, b and lasso (m, d).

    Exchanges of active sets, or else coordinate descent, determine which coordinates are zero and the signs of the
    others; a linear system gives the values.
    """
    x = (torch.zeros_like(b) if start is None else start).clone()
    done = torch.zeros(len(b), dtype=torch.bool)
    enough = tol * (1 + b.abs().amax(1))
    budget, sweeps = 8, 0
    while sweeps < SWEEPS and not bool(done.all()):
        for way in (exchange, settle, exchange, settle, functools.partial(descend, sweeps=budget), settle):
            todo = (~done).nonzero()[:, 0]
            if len(todo):
                given = (h if len(h) == 1 else h[todo], ridge[todo], b[todo], lasso[todo])
                x[todo] = way(*given, x[todo])
                done[todo] = violation(*given, x[todo]) <= enough[todo]
        sweeps += budget
        budget *= 2
    return x, done


def value(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    return (x * (0.5 * times(h, x) + 0.5 * ridge * x - b) + lasso * x.abs()).sum(1)


def violation(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """The largest absolute entry of the smallest subgradient: (m,)."""
    return subgradient(times(h, x) + ridge * x - b, lasso, x).abs().amax(1)


def subgradient(gradient: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """The smallest subgradient of a smooth function with this gradient plus Σ lasso·|x|."""
    flat = (gradient.abs() - lasso).clamp_min(0) * gradient.sign()
    return torch.where(x == 0, flat, gradient + lasso * x.sign())


def times(h: Tensor, x: Tensor) -> Tensor:
    return x @ h[0] if len(h) == 1 else (h @ x[:, :, None])[:, :, 0]


def settle(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """Move x to the minimum among points with its zeros and signs; a coordinate that would change sign stops at 0."""
    x, moving = x.clone(), torch.ones(len(x), dtype=torch.bool)
    for _ in range(FACES):
        todo = moving.nonzero()[:, 0]
        now = x[todo]
        given = (h if len(h) == 1 else h[todo], ridge[todo], b[todo], lasso[todo])
        goal = with_signs(*given, now)
        known = torch.isfinite(goal).all(1)
        crossing = (goal * now < 0) & (given[3] > 0)
        far = torch.where(crossing, 0.0, goal)
        way = torch.where(crossing, now / (now - goal), 1.0)
        first = way.amin(1, keepdim=True)
        near = torch.where(crossing & (way <= first), 0.0, now + first * (goal - now))
        better = value(*given, far) <= value(*given, near)
        x[todo[known]] = torch.where(better[:, None], far, near)[known]
        moving[todo] = known & crossing.any(1)
        if not bool(moving.any()):
            break
    return x


def exchange(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor) -> Tensor:
    """Exchange primal-dual active sets (Hintermüller, Ito and Kunisch 2003): all coordinates that a step along the
    gradient would move across zero change sides at once, and a linear system gives the values.

    The sets settle after a few exchanges, or cycle; the x with the lowest value on the way is returned.
    """
    best, least = x.clone(), value(h, ridge, b, lasso, x)
    now, curvature = x.clone(), h.diagonal(dim1=1, dim2=2) + ridge
    moving, idle = torch.ones(len(x), dtype=torch.bool), torch.zeros(len(x))
    for _ in range(EXCHANGES):
        todo = moving.nonzero()[:, 0]
        at, given = now[todo], (h if len(h) == 1 else h[todo], ridge[todo], b[todo], lasso[todo])
        pull = curvature[todo] * at - (times(given[0], at) + given[1] * at - given[2])
        signs = torch.where(pull.abs() > given[3], pull.sign(), 0.0)
        goal = with_signs(*given, at, signs)
        reached, known = value(*given, goal), torch.isfinite(goal).all(1)
        better = known & (reached < least[todo])
        best[todo[better]], least[todo[better]] = goal[better], reached[better]
        now[todo[known]] = goal[known]
        idle[todo] = torch.where(better, 0.0, idle[todo] + 1)
        moving[todo] = known & (goal.sign() != at.sign()).any(1) & (idle[todo] < IDLE)
        if not bool(moving.any()):
            break
    return best


def with_signs(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor, signs: Tensor | None = None) -> Tensor:
    """The minimum over the coordinates that have a nonzero sign or no lasso penalty, with |x| replaced by sign · x; all
    other coordinates are 0. `signs` are x's by default. NaN where the linear system can't be solved.
    """
    signs = x.sign() if signs is None else signs
    used = (signs != 0) | (lasso == 0)
    right = b - lasso * signs + NEAR * x
    if x.shape[1] <= SMALL:
        flat = used.to(x.dtype)
        system = h * flat[:, :, None] * flat[:, None, :] + torch.diag_embed((ridge + NEAR) * flat + 1 - flat)
        return cholesky_solution(system, right * flat) * flat
    found = torch.zeros_like(x)
    for i in range(len(x)):
        own = used[i].nonzero()[:, 0]
        if len(own):
            system = h[i % len(h)][own[:, None], own] + torch.diag(ridge[i, own] + NEAR)
            found[i, own] = cholesky_solution(system[None], right[i, own][None])[0]
    return found


def cholesky_solution(system: Tensor, right: Tensor) -> Tensor:
    factor, wrong = torch.linalg.cholesky_ex(system)
    found = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
    return torch.where((wrong == 0)[:, None], found, torch.nan)


def descend(h: Tensor, ridge: Tensor, b: Tensor, lasso: Tensor, x: Tensor, *, sweeps: int) -> Tensor:
    """Take sweeps of cyclic coordinate descent; a step updates one coordinate in all problems. Every fourth sweep
    visits all coordinates, the other sweeps only coordinates that are nonzero in some problem.
    """
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
