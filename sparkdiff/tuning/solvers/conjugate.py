"""Minima of many functions of many parameters at once: Newton's method, whose steps conjugate gradients find without a Hessian.

Parameters are (parameters, problems, sets): a problem has one or several sets, as many as a model has rows of coefficients.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from sparkdiff.tuning.solvers import quadratic
from sparkdiff.tuning.solvers.descent import TOLERANCE, Minimum

STEPS, TRIALS, INNER = 100, 40, 500
"""Newton steps, trials along one of them, conjugate gradients for one."""


@dataclass(frozen=True)
class Costs:
    """Penalties ½·ridge·x² + lasso·|x| of the parameters; `free` is zero for those that stay zero."""

    ridge: Tensor
    lasso: Tensor
    free: Tensor

    def of(self, which: Tensor) -> "Costs":
        return Costs(*(getattr(self, field.name)[:, which] for field in fields(self)))


class Function(Protocol):
    """Losses of some problems, without penalties."""

    def of(self, which: Tensor) -> "Function": ...

    def look(self, at: Tensor) -> "Iterate": ...


@dataclass(frozen=True)
class Iterate:
    """What the losses are like at some parameters."""

    value: Tensor
    """(problems,)"""
    gradient: Tensor
    times: Callable[[Tensor, Tensor], Tensor]
    """The Hessians of these problems (their numbers) times these vectors."""
    diagonal: Tensor
    """About the Hessians' diagonals."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(problems,)"""
    return torch.einsum("pms,pms->m", a, b)


def largest(x: Tensor) -> Tensor:
    return x.abs().amax((0, 2))


def minimise(function: Function, given: Costs, start: Tensor) -> Minimum:
    """Elastic net: each step stays on its side of zero in every parameter, and what would cross over stays at zero."""
    at, m = start.clone(), start.shape[1]
    value, found = torch.full((m,), torch.nan, dtype=torch.float64), torch.zeros(m, dtype=torch.bool)
    active, first = torch.arange(m), torch.full((m,), torch.nan, dtype=torch.float64)
    own, costs, now = function, given, start
    place = own.look(now)
    for step in range(STEPS):
        total = penalised(place.value, costs, now)
        slope = quadratic.subgradient((place.gradient + costs.ridge * now) * costs.free, costs.lasso, now) * costs.free
        left = largest(slope)
        if step == 0:
            first = left
        bound = (1e-9 * first[active]).clamp(1e-13, TOLERANCE)
        done = left <= bound
        found[active[done]] = True
        value[active], at[:, active] = total, now
        going = (~done & torch.isfinite(left)).nonzero()[:, 0]
        if not len(going):
            break
        goal = (left * (left / first[active]).sqrt().clamp_max(0.1)).maximum(0.5 * bound)
        way = towards(place, costs, now, slope, goal, going)
        active, slope, total = active[going], slope[:, going], total[going]
        own, costs, now = own.of(going), costs.of(going), now[:, going]
        now, place, moved = along(own, costs, now, way, slope, total)
        if not bool(moved.all()):  # nothing is gained any more
            stay = moved.nonzero()[:, 0]
            if not len(stay):
                break
            active, own, costs, now = active[stay], own.of(stay), costs.of(stay), now[:, stay]
            place = own.look(now)
    return Minimum(at, value, found)


def penalised(loss: Tensor, costs: Costs, at: Tensor) -> Tensor:
    return loss + (0.5 * costs.ridge * at.square() + costs.lasso * at.abs()).sum((0, 2))


def towards(place: Iterate, costs: Costs, at: Tensor, slope: Tensor, goal: Tensor, which: Tensor) -> Tensor:
    """Newton's steps of these problems, found until what is left of the slope is below the goal."""
    costs, at, slope, goal = costs.of(which), at[:, which], slope[:, which], goal[which]
    moving = ((at != 0) | (slope != 0) | (costs.lasso == 0)).to(at.dtype) * costs.free
    inverse = moving / (place.diagonal[:, which] + costs.ridge).clamp_min(1e-300)
    answer, x = torch.zeros_like(at), torch.zeros_like(at)
    left = -slope * moving
    near = inverse * left
    way, size = near, dot(left, near)
    # Where columns depend on one another a little more curvature gives a step all the same, one to where a sign changes.
    order, ridge = torch.arange(len(which)), costs.ridge + quadratic.NEAR * place.diagonal[:, which] * (costs.lasso > 0)
    for _ in range(INNER):
        turned = (place.times(which[order], way) + ridge * way) * moving
        bend = dot(way, turned)
        length = torch.where(bend > 0, size / bend, 0.0)
        x = x + length[:, None] * way
        left = left - length[:, None] * turned
        going = (largest(left) > goal) & (length > 0)
        answer[:, order] = x
        if not bool(going.any()):
            break
        if int(going.sum()) <= 0.7 * len(order):  # those that are done cost no more
            keep = going.nonzero()[:, 0]
            order, goal, size = order[keep], goal[keep], size[keep]
            x, left, way = x[:, keep], left[:, keep], way[:, keep]
            moving, inverse, ridge = moving[:, keep], inverse[:, keep], ridge[:, keep]
        near = inverse * left
        before, size = size, dot(left, near)
        way = near + (size / before)[:, None] * way
    return answer


def along(
    own: Function, costs: Costs, at: Tensor, way: Tensor, slope: Tensor, total: Tensor
) -> tuple[Tensor, Iterate, Tensor]:
    """As far along each way as the function goes down enough; and which problems moved."""
    bent = costs.lasso > 0
    side = torch.where(at != 0, at.sign(), -slope.sign())
    length = torch.ones(at.shape[1], dtype=torch.float64)
    open_ = torch.ones(at.shape[1], dtype=torch.bool)
    for _ in range(TRIALS):
        new = at + length[:, None] * way
        new = torch.where(bent & (new.sign() != side), 0.0, new)
        place = own.look(new)
        value = penalised(place.value, costs, new)
        limit = total + 1e-4 * dot(slope, new - at) + 1e-13 * total.abs()
        open_ = ~(value <= limit)
        if not bool(open_.any()):
            return new, place, ~open_
        length = torch.where(open_, length / 4, length)
    new = torch.where(open_[:, None], at, new)
    return new, own.look(new), ~open_
