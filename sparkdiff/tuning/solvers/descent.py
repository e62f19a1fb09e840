"""Minima of many smooth convex functions with elastic-net penalties at once, by Newton's method, or by L-BFGS with a
Hessian as its initial matrix. A problem is one such function.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tuning.solvers import quadratic

TOLERANCE = 1e-10
"""Largest absolute entry of a minimum's subgradient, for columns of standard deviation about 1 and row weights of mean 1."""
NEWTON_STEPS, OTHER_STEPS, TRIALS = 100, 400, 40
PAIRS = 12
"""Number of steps that L-BFGS remembers."""
RENEWED = (3, 8)
"""Steps after which L-BFGS computes a new Hessian."""
PIVOT = 1e-10


@dataclass(frozen=True)
class ElasticNetPenalties:
    """Penalties ½·ridge·x² + lasso·|x| of each problem's parameters x: (problems, parameters)."""

    ridge: Tensor
    lasso: Tensor
    free: Tensor
    """1, or 0 for a parameter that stays zero."""
    shift: Tensor
    """1 for a column whose parameters sum to zero over sets (classes) at a minimum, so that curvature along this sum
    may be added to the Hessian; else 0: (problems, width)."""

    def of(self, which: Tensor) -> "ElasticNetPenalties":
        return ElasticNetPenalties(self.ridge[which], self.lasso[which], self.free[which], self.shift[which])

    def __len__(self) -> int:
        return len(self.ridge)


@dataclass(frozen=True)
class Slope:
    """Value (problems,) and gradient (problems, parameters) of the functions, without penalties."""

    value: Tensor
    gradient: Tensor


Slopes = Callable[[Tensor, Tensor], Slope]
"""Function of indices of problems, and of parameters for each of them, that returns their slopes."""
Hessians = Callable[[Tensor, Tensor], Tensor]
"""Function of the same arguments that returns diagonal blocks of the Hessians, (problems, blocks, size, size); a single
block is the whole Hessian."""


@dataclass(frozen=True)
class Minimum:
    at: Tensor
    found: Tensor
    """True where the minimum was reached: (problems,) bool."""


def minimise(slopes: Slopes, hessians: Hessians, given: ElasticNetPenalties, start: Tensor, *, newton: bool) -> Minimum:
    """Minimise the functions with their penalties.

    Args:
        newton: True for Newton's method, which needs a whole and exact Hessian at each step. False for L-BFGS, which
            computes only a few Hessians, early on; blocks of them, from part of the rows, suffice.
    """
    state = DescentState(given, start, newton)
    for step in range(NEWTON_STEPS if newton else OTHER_STEPS):
        state.look(slopes(state.active, state.trial()), hessians)
        if not len(state.active):
            break
        if not newton and step in RENEWED:
            state.renew(hessians)
    return Minimum(state.at, state.found)


class DescentState:
    """The state of the descent of each problem. Problems in `active` still move; `factors` and `memory` hold only these."""

    def __init__(self, given: ElasticNetPenalties, start: Tensor, newton: bool) -> None:
        m = len(given)
        self.given, self.newton = given, newton
        self.at, self.gradient = start.clone(), torch.zeros_like(start)
        self.value = torch.full((m,), torch.inf, dtype=torch.float64)
        self.found = torch.zeros(m, dtype=torch.bool)
        self.bound = torch.full((m,), TOLERANCE, dtype=torch.float64)
        self.way, self.length = torch.zeros_like(start), torch.ones(m, dtype=torch.float64)
        self.slope, self.trials = torch.zeros(m, dtype=torch.float64), torch.zeros(m, dtype=torch.long)
        self.active = torch.arange(m)
        self.factors: Tensor | None = None
        self.memory: list[tuple[Tensor, Tensor, Tensor]] = []

    def trial(self) -> Tensor:
        a = self.active
        return self.at[a] + self.length[a, None] * self.way[a]

    def look(self, new: Slope, hessians: Hessians) -> None:
        """Judge the trial points, given their slopes: accept those that decrease the value enough and choose the next
        direction from there; shorten the steps to the others.
        """
        a = self.active
        own = self.given.of(a)
        at = self.trial()
        value = new.value + (0.5 * own.ridge * at.square() + own.lasso * at.abs()).sum(1)
        gradient = (new.gradient + own.ridge * at) * own.free
        first = torch.isinf(self.value[a])
        limit = self.value[a] + 1e-4 * self.length[a] * self.slope[a] + 1e-13 * self.value[a].abs()
        down = (value <= limit) | (first & torch.isfinite(value))
        moved, turned = at - self.at[a], gradient - self.gradient[a]
        self.at[a[down]], self.value[a[down]], self.gradient[a[down]] = at[down], value[down], gradient[down]
        if not self.newton:
            self.remember(moved, turned, down & ~first)
        self.trials[a] = torch.where(down, 0, self.trials[a] + 1)
        last = self.length[a].clone()
        self.length[a] = torch.where(down, 1.0, last / 4)
        left = quadratic.subgradient(gradient, own.lasso, at).abs().amax(1)
        self.bound[a] = torch.where(first, (1e-9 * left).clamp(1e-13, TOLERANCE), self.bound[a])
        # Where classes can be separated and nothing is penalised, gradients vanish on the way to infinity, but steps
        # don't.
        held = ((own.ridge + own.lasso) > 0).any(1)
        short = (last == 1) & (moved.abs().amax(1) <= 1e-6 * (1 + at.abs().amax(1))) & ~first
        done = down & (left <= self.bound[a]) & (held | short)
        self.found[a[done]] = True
        self.turn(a[down & ~done], hessians)
        broken = self.trials[a] > TRIALS
        stuck = ~torch.isfinite(self.way[a]).all(1) | ~torch.isfinite(value) & first
        self.keep(~(done | broken | stuck))

    def keep(self, those: Tensor) -> None:
        if bool(those.all()):
            return
        self.active = self.active[those]
        self.memory = [(s[those], y[those], r[those]) for s, y, r in self.memory]
        self.factors = None if self.factors is None else self.factors[those]

    def turn(self, which: Tensor, hessians: Hessians) -> None:
        """Set the next direction of these problems."""
        if not len(which):
            return
        own, at, gradient = self.given.of(which), self.at[which], self.gradient[which]
        if self.newton:
            h = regular(hessians(which, at), own)[:, 0]
            way = towards(h, own, at, gradient)
        else:
            if self.factors is None:
                self.renew(hessians)
            way = self.quasi(which, gradient)
        self.way[which] = way
        jump = (own.lasso * ((at + way).abs() - at.abs())).sum(1)
        self.slope[which] = (gradient * way).sum(1) + jump

    def renew(self, hessians: Hessians) -> None:
        """Compute new Hessians as L-BFGS's initial matrices, and forget its steps so far."""
        own = self.given.of(self.active)
        h = regular(hessians(self.active, self.at[self.active]), own)
        blocks = h.shape[1]
        h = h + torch.diag_embed(own.ridge.reshape(len(own), blocks, -1))
        self.factors, wrong = torch.linalg.cholesky_ex(h)
        self.factors[wrong > 0] = torch.nan
        self.memory = []

    def remember(self, moved: Tensor, turned: Tensor, down: Tensor) -> None:
        product = (moved * turned).sum(1)
        useful = down & (product > 1e-14 * moved.norm(dim=1) * turned.norm(dim=1))
        inverse = torch.where(useful, 1 / product, 0.0)  # zero: this problem's step doesn't count
        if bool(useful.any()):
            self.memory = [*self.memory[-PAIRS + 1 :], (moved, turned, inverse)]

    def quasi(self, which: Tensor, gradient: Tensor) -> Tensor:
        """The direction from L-BFGS's two-loop recursion."""
        assert self.factors is not None
        place = torch.searchsorted(self.active, which)
        pairs = [(s[place], y[place], r[place]) for s, y, r in self.memory]
        q = gradient.clone()
        steps = []
        for s, y, r in reversed(pairs):
            a = r * (s * q).sum(1)
            q -= a[:, None] * y
            steps.append(a)
        factors = self.factors[place]
        shaped = q.reshape(len(q), factors.shape[1], -1, 1)
        q = torch.cholesky_solve(shaped, factors).reshape(q.shape) * self.given.free[which]
        for (s, y, r), a in zip(pairs, reversed(steps), strict=True):
            q += (a - r * (y * q).sum(1))[:, None] * s
        return -q


def regular(h: Tensor, own: ElasticNetPenalties) -> Tensor:
    """The Hessians, made regular: parameters that stay zero are decoupled from the others, and curvature is added along
    moves that are equal in all sets, where `own.shift` allows it.
    """
    m, blocks = h.shape[:2]
    free = own.free.reshape(m, blocks, -1)
    h = h * free[..., :, None] * free[..., None, :] + torch.diag_embed(1 - free)
    if blocks == 1 and bool(own.shift.any()):
        sets = h.shape[2] // own.shift.shape[1]
        h = h + torch.diag_embed(own.shift).repeat(1, sets, sets)[:, None]
    return h


def towards(h: Tensor, own: ElasticNetPenalties, at: Tensor, gradient: Tensor) -> Tensor:
    """Newton's direction, NaN where there is none: (problems, parameters)."""
    way, bent = torch.empty_like(at), (own.lasso > 0).any(1)
    for which, step in (((~bent).nonzero()[:, 0], _straight), (bent.nonzero()[:, 0], _bent)):
        if len(which):
            way[which] = step(h[which], own.of(which), at[which], gradient[which])
    return way


def _straight(h: Tensor, own: ElasticNetPenalties, _at: Tensor, gradient: Tensor) -> Tensor:
    """Newton's direction for problems without lasso penalties."""
    factor, wrong = torch.linalg.cholesky_ex(h + torch.diag_embed(own.ridge))
    pivots = factor.diagonal(dim1=1, dim2=2).square() / h.diagonal(dim1=1, dim2=2)
    way = -torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0] * own.free
    return torch.where(((wrong == 0) & (pivots.amin(1) > PIVOT))[:, None], way, torch.nan)


def _bent(h: Tensor, own: ElasticNetPenalties, at: Tensor, gradient: Tensor) -> Tensor:
    """Newton's direction for problems with lasso penalties."""
    smooth = gradient - own.ridge * at
    b = quadratic.times(h, at) - smooth
    left = quadratic.subgradient(gradient, own.lasso, at).abs().amax(1)
    goal, _ = quadratic.minimise(
        h, own.ridge, b, own.lasso, at, tol=(left * left.sqrt().clamp_max(0.1)).clamp_min(1e-14)
    )
    return (goal - at) * own.free
