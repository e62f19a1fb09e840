"""One penalty per group of columns, from the best single one down the slope of the loss on held-out rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tuning.hypergradients.implicit import Point, point
from sparkdiff.tuning.hypergradients.weights import Linear

STEPS, RATE = 40, 0.2
"""Of Adam, and how far each moves a penalty's logarithm: with more steps the held-out rows are learned by heart."""
HALVES = 6
"""How often a step without a solution at its end is halved."""


@dataclass(frozen=True)
class Tuned:
    """
    Attributes:
        single: the best single penalty, and its point.
        best: the point with the smallest loss on the rows that are held out. That loss is better than it will be elsewhere.
        losses: of each step.
    """

    single: Point
    best: Point
    losses: tuple[float, ...]


def tuned(model: Linear, grid: Sequence[float], steps: int = STEPS, rate: float = RATE) -> Tuned | None:
    """None if no single penalty of the grid has a solution."""
    single = best_single(model, grid)
    if single is None:
        return None
    losses, best = [single.loss], single
    for now in adam(model, single, steps, rate):
        losses.append(now.loss)
        best = min(best, now, key=lambda p: p.loss)
    return Tuned(single, best, tuple(losses))


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


def adam(model: Linear, start: Point, steps: int, rate: float) -> list[Point]:
    """The way of Adam; it ends early where no solution can be found."""
    at = start.logs.clone().requires_grad_()
    optimizer = torch.optim.Adam([at], lr=rate, betas=(0.9, 0.99))
    way = [start]
    for _ in range(steps):
        at.grad = way[-1].gradient.clone()
        optimizer.step()
        found = towards(model, way[-1], at.detach())
        if found is None:
            break
        way.append(found)
        with torch.no_grad():
            at.copy_(found.logs)
    return way[1:]


def towards(model: Linear, start: Point, goal: Tensor) -> Point | None:
    """The solution at these penalties, or at some on the way."""
    for half in range(HALVES):
        found = point(model, start.logs + (goal - start.logs) / 2**half, start)
        if found is not None:
            return found
    return None
