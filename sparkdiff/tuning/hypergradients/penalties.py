"""Tuning of one penalty per group of columns: descent along the gradient of the loss on held-out rows, from the best
single penalty for all groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tuning.hypergradients.implicit import Point, point
from sparkdiff.tuning.hypergradients.weights import LinearModel

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


def tune_penalties(
    model: LinearModel, grid: Sequence[float], steps: int = STEPS, spread: float = SPREAD
) -> TunedPenalties | None:
    """Tune the penalties from the best single one of the grid; None if no single penalty has a solution."""
    single = best_single(model, grid)
    return None if single is None else descend(model, single, steps, spread)


def best_single(model: LinearModel, grid: Sequence[float]) -> Point | None:
    """The point of the best penalty of the grid, common to all columns; None if no penalty has a solution."""
    best, least = None, math.inf
    for penalty, solutions in zip(grid, model.at_once(grid), strict=True):
        if all(s.converged for s in solutions):
            weights = model.weights_of(solutions)
            loss = float(model.loss(weights))
            if loss < least:
                best, least = (penalty, weights), loss
    if best is None:
        return None
    logs = torch.full((model.groups,), math.log(best[0]), dtype=torch.float64)
    return point(model, logs, best[1])


def descend(model: LinearModel, start: Point, steps: int = STEPS, spread: float = SPREAD) -> TunedPenalties:
    """Take steps of Adam from the best single penalty to the most probable penalties given the held-out rows.

    A row's loss divided by twice the mean loss is used as its negative log-likelihood: this holds for squared errors,
    and for half the deviance of a family whose dispersion is estimated. The prior of the logarithms is normal around
    the start.
    """
    pull = 2 * start.loss / float((model.held > 0).sum()) / spread**2

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
