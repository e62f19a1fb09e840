"""One penalty per group of columns, from the best single one down the slope of the loss on held-out rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tuning.hypergradients.implicit import Point, point
from sparkdiff.tuning.hypergradients.weights import Linear

STEPS, RATE = 40, 0.2
"""Of Adam, and how far each moves a penalty's logarithm."""
SPREAD = 1.0
"""How far the groups' penalties lie from the best single one, as a standard deviation of their logarithms. A prior of this width
keeps the steps from learning the held-out rows by heart."""
HALVES = 6
"""How often a step without a solution at its end is halved."""


@dataclass(frozen=True)
class Tuned:
    """
    Attributes:
        single: the best single penalty, and its point.
        best: the point with the smallest loss on the rows that are held out, the prior included. That loss is better than it will
            be elsewhere.
        losses: of each step, without the prior.
    """

    single: Point
    best: Point
    losses: tuple[float, ...]


def tuned(model: Linear, grid: Sequence[float], steps: int = STEPS, spread: float = SPREAD) -> Tuned | None:
    """None if no single penalty of the grid has a solution."""
    single = best_single(model, grid)
    return None if single is None else descended(model, single, steps, spread)


def best_single(model: Linear, grid: Sequence[float]) -> Point | None:
    """The best of some penalties for all columns together, all solved at once."""
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


def descended(model: Linear, start: Point, steps: int = STEPS, spread: float = SPREAD) -> Tuned:
    """Steps of Adam from the best single penalty, to the most probable penalties given the rows that are held out.

    A row's loss over twice the mean loss is taken for its negative log-likelihood: that is so for squared errors, and for half
    the deviance of a family with its dispersion estimated. The logarithms' prior is normal around the start.
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
    return Tuned(start, min(way, key=objective), tuple(p.loss for p in way))


def towards(model: Linear, start: Point, goal: Tensor) -> Point | None:
    """The solution at these penalties, or at some on the way."""
    for half in range(HALVES):
        found = point(model, start.logs + (goal - start.logs) / 2**half, start)
        if found is not None:
            return found
    return None
