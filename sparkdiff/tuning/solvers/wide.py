"""LogisticRegression and LinearRegression with many coefficients, for all settings and folds at once, on rows in memory."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from sparkdiff.tuning.solvers import quadratic
from sparkdiff.tuning.solvers.descent import TOLERANCE, Minimum
from sparkdiff.tuning.solvers.least_squares import normal
from sparkdiff.tuning.solvers.problem import (
    MATRICES,
    Problem,
    Setting,
    Solution,
    solve_by_kind,
    solve_in_batches,
)
from sparkdiff.tuning.solvers.wide_rows import RowsInMemory, WideRows, wide_rows

STEPS, TRIALS, INNER = 100, 40, 500
"""Largest numbers of Newton steps, of trial lengths of a step, and of conjugate gradient iterations for a step."""


@dataclass(frozen=True)
class Costs:
    """Penalties ½·ridge·x² + lasso·|x| of the parameters (d + 1, problems, sets); `free` is 0 for those that stay 0."""

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
    """Values and derivatives of the losses at some parameters."""

    value: Tensor
    """(problems,)"""
    gradient: Tensor
    times: Callable[[Tensor, Tensor], Tensor]
    """Function that multiplies the Hessians of these problems (their indices) by these vectors."""
    diagonal: Tensor
    """Approximate diagonals of the Hessians."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar products: (problems,)"""
    return torch.einsum("pms,pms->m", a, b)


def largest(x: Tensor) -> Tensor:
    return x.abs().amax((0, 2))


def minimise(function: Function, given: Costs, start: Tensor) -> Minimum:
    """Minimise the function plus elastic-net penalties by Newton's method; in each step, a parameter with a lasso
    penalty that would cross zero stops at zero.
    """
    at, m = start.clone(), start.shape[1]
    found = torch.zeros(m, dtype=torch.bool)
    active, first = torch.arange(m), torch.full((m,), torch.nan, dtype=torch.float64)
    own, costs, now = function, given, start
    place = own.look(now)
    for step in range(STEPS):
        total = penalised_loss(place.value, costs, now)
        slope = quadratic.subgradient((place.gradient + costs.ridge * now) * costs.free, costs.lasso, now) * costs.free
        left = largest(slope)
        if step == 0:
            first = left
        bound = (1e-9 * first[active]).clamp(1e-13, TOLERANCE)
        done = left <= bound
        found[active[done]] = True
        at[:, active] = now
        going = (~done & torch.isfinite(left)).nonzero()[:, 0]
        if not len(going):
            break
        goal = (left * (left / first[active]).sqrt().clamp_max(0.1)).maximum(0.5 * bound)
        way = towards(place, costs, now, slope, goal, going)
        active, slope, total = active[going], slope[:, going], total[going]
        own, costs, now = own.of(going), costs.of(going), now[:, going]
        now, place, moved = along(own, costs, now, way, slope, total)
        if not bool(moved.all()):  # drop problems whose value can't get lower
            stay = moved.nonzero()[:, 0]
            if not len(stay):
                break
            active, own, costs, now = active[stay], own.of(stay), costs.of(stay), now[:, stay]
            place = own.look(now)
    return Minimum(at, found)


def penalised_loss(loss: Tensor, costs: Costs, at: Tensor) -> Tensor:
    return loss + (0.5 * costs.ridge * at.square() + costs.lasso * at.abs()).sum((0, 2))


def towards(place: Iterate, costs: Costs, at: Tensor, slope: Tensor, goal: Tensor, which: Tensor) -> Tensor:
    """Newton steps of the problems `which` from the point `at`; conjugate gradients solve each linear system until its
    residual is below `goal`.
    """
    costs, at, slope, goal = costs.of(which), at[:, which], slope[:, which], goal[which]
    moving = ((at != 0) | (slope != 0) | (costs.lasso == 0)).to(at.dtype) * costs.free
    inverse = moving / (place.diagonal[:, which] + costs.ridge).clamp_min(1e-300)
    answer, x = torch.zeros_like(at), torch.zeros_like(at)
    left = -slope * moving
    near = inverse * left
    way, size = near, dot(left, near)
    # Where columns are linearly dependent, a little added curvature still yields a step: to where a sign changes.
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
        if int(going.sum()) <= 0.7 * len(order):  # drop problems that are done, so that they take no more time
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
    """Move along each direction, shortened until the function decreases enough. Return the new parameters, the losses
    there, and which problems moved.
    """
    bent = costs.lasso > 0
    side = torch.where(at != 0, at.sign(), -slope.sign())
    length = torch.ones(at.shape[1], dtype=torch.float64)
    open_ = torch.ones(at.shape[1], dtype=torch.bool)
    for _ in range(TRIALS):
        new = at + length[:, None] * way
        new = torch.where(bent & (new.sign() != side), 0.0, new)
        place = own.look(new)
        value = penalised_loss(place.value, costs, new)
        limit = total + 1e-4 * dot(slope, new - at) + 1e-13 * total.abs()
        open_ = ~(value <= limit)
        if not bool(open_.any()):
            return new, place, ~open_
        length = torch.where(open_, length / 4, length)
    new = torch.where(open_[:, None], at, new)
    return new, own.look(new), ~open_


def solve_wide(whole: RowsInMemory, settings: list[Setting], folds: int, classes: int = 0) -> list[list[Solution]]:
    """Models with a penalty, [setting][fold]: LogisticRegression if there are `classes`, else LinearRegression."""

    def of_intercept(some: list[Setting]) -> list[list[Solution]]:
        rows = wide_rows(whole, folds, intercept=some[0].fitIntercept)
        return solve_by_kind(some, lambda s: s.sets(classes), lambda same: of_sets(rows, same, folds, classes))

    return solve_by_kind(settings, lambda s: s.fitIntercept, of_intercept)


def of_sets(rows: WideRows, settings: list[Setting], folds: int, classes: int) -> list[list[Solution]]:
    """The models of settings with the same number of sets of coefficients."""
    sets, n, d = settings[0].sets(classes), len(rows.label), len(rows.columns)
    size = max(MATRICES // (8 * sets * (8 * n + 16 * d)), 1)
    return solve_in_batches(settings, range(folds), size, partial(logistic if classes else linear, rows, sets=sets))


def folds_of(problems: list[Problem]) -> Tensor:
    return torch.tensor([f for _, f in problems])


def costs(rows: WideRows, problems: list[Problem], sets: int, ridge: Tensor, lasso: Tensor) -> Costs:
    """The costs of all parameters, given the columns' penalties (d, problems); the intercept has no penalty."""

    def of(columns: Tensor, intercept: float) -> Tensor:
        last = torch.full((1, len(problems)), intercept, dtype=torch.float64)
        return torch.cat([columns, last])[:, :, None].expand(-1, -1, sets).contiguous()

    free = (~rows.constant[:, folds_of(problems)]).to(torch.float64)
    return Costs(of(ridge, 0.0), of(lasso, 0.0), of(free, float(problems[0][0].fitIntercept)))


def units(rows: WideRows, problems: list[Problem], factor: Tensor) -> Tensor:
    """Factor by which the penalty multiplies the coefficient of a scaled column: (d, problems)."""
    fold = folds_of(problems)
    deviation = (rows.variance[:, fold] * factor).sqrt()
    plain = torch.tensor([not s.standardization for s, _ in problems])
    return torch.where(plain, 1 / rows.scale[:, None], deviation)


def strengths(problems: list[Problem]) -> tuple[Tensor, Tensor]:
    """Strengths of the L2 and of the L1 penalty: (problems,) each."""
    strength = torch.tensor([s.regParam for s, _ in problems], dtype=torch.float64)
    share = torch.tensor([s.elasticNetParam for s, _ in problems], dtype=torch.float64)
    return strength * (1 - share), strength * share


def logistic(rows: WideRows, problems: list[Problem], sets: int) -> list[Solution]:
    fold = folds_of(problems)
    unit = units(rows, problems, rows.bessel_correction[fold])
    ridge, lasso = strengths(problems)
    given = costs(rows, problems, sets, ridge * unit.square(), lasso * unit)
    start = torch.zeros_like(given.ridge)
    if problems[0][0].fitIntercept:
        kinds = functional.one_hot(rows.label.long(), max(sets, 2)).to(torch.float64)
        log = (rows.own[:, fold].T @ kinds).log()
        start[-1] = log[:, 1:] - log[:, :1] if sets == 1 else log - log.mean(1, keepdim=True)
    loss = LogisticLoss(rows, fold) if sets == 1 else MultinomialLoss(rows, fold)
    return solutions(rows, problems, minimise(loss, given, start))


def linear(rows: WideRows, problems: list[Problem], sets: int) -> list[Solution]:
    """Solutions of LinearRegression, computed with a moved and scaled label. Penalties: see `least_squares.penalty`."""
    fold, intercept = folds_of(problems), problems[0][0].fitIntercept
    plain = torch.tensor([normal(s, rows.width) for s, _ in problems])
    factor = torch.where(plain, 1.0, rows.bessel_correction[fold])
    mean = rows.own.T @ rows.label
    variance = (rows.own * (rows.label[:, None] - mean).square()).sum(0)
    centre = mean.mean() if intercept else mean.new_zeros(())
    scale = ((rows.label - centre).square().mean()).sqrt()
    sigma = (variance[fold] * factor).sqrt()
    unit = units(rows, problems, factor)
    ridge, lasso = strengths(problems)
    given = costs(rows, problems, sets, ridge / sigma * unit.square(), lasso / scale * unit)
    start = torch.zeros_like(given.ridge)
    if intercept:
        start[-1, :, 0] = (mean[fold] - centre) / scale
    minimum = minimise(SquaresLoss(rows, fold, (rows.label - centre) / scale), given, start)
    answers = []
    for (setting, f), found, spread in zip(problems, solutions(rows, problems, minimum), sigma.tolist(), strict=True):
        # Without an intercept, rounding in Spark's sums decides whether Spark's normal equations treat a column as
        # constant.
        unclear = not intercept and normal(setting, rows.width) and bool(rows.lost[f])
        usable = found.converged and spread > 0 and not unclear
        answers.append(Solution(found.coefficients * scale, found.intercept * scale + centre, usable))
    return answers


def solutions(rows: WideRows, problems: list[Problem], minimum: Minimum) -> list[Solution]:
    answers = []
    for i, (setting, _) in enumerate(problems):
        at = minimum.at[:, i]
        coefficients = at.new_zeros(at.shape[1], rows.width)
        coefficients[:, rows.columns] = at[:-1].T / rows.scale
        intercept = at[-1] - rows.centre @ at[:-1] if setting.fitIntercept else at.new_zeros(at.shape[1])
        several = at.shape[1] > 1
        taken = (coefficients, intercept - intercept.mean()) if several else (coefficients[0], intercept[0])
        answers.append(Solution(*taken, bool(minimum.found[i])))
    return answers


# Losses ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loss:
    """Losses of problems on folds of these rows."""

    rows: WideRows
    fold: Tensor

    def of(self, which: Tensor) -> Self:
        """The losses of some of the problems."""
        return replace(self, fold=self.fold[which])


@dataclass(frozen=True)
class SquaresLoss(_Loss):
    """½·(margin - label)²"""

    label: Tensor

    def look(self, at: Tensor) -> Iterate:
        own = self.rows.own[:, self.fold]
        error = self.rows.margins(at[:, :, 0]) - self.label[:, None]
        left = own * error
        return Iterate(
            0.5 * (left * error).sum(0),
            self.rows.sums(left)[:, :, None],
            lambda which, way: hessian_product(self.rows, some(own, which), way),
            diagonal(self.rows, self.fold, torch.ones(1, len(self.fold), 1, dtype=torch.float64)),
        )


def some(columns: Tensor, which: Tensor) -> Tensor:
    """Some of the columns; not copied if they are all of them."""
    return columns if len(which) == columns.shape[1] else columns[:, which]


def hessian_product(rows: WideRows, curve: Tensor, way: Tensor) -> Tensor:
    return rows.sums(rows.margins(way[:, :, 0]) * curve)[:, :, None]


def diagonal(rows: WideRows, fold: Tensor, curve: Tensor) -> Tensor:
    """Approximate diagonals of the Hessians, (d + 1, problems, sets), as if all rows had the same curvature `curve`,
    (1, problems, sets).
    """
    variance = rows.variance[:, fold]
    return torch.cat([variance, torch.ones_like(variance[:1])])[:, :, None] * curve


class LogisticLoss(_Loss):
    def look(self, at: Tensor) -> Iterate:
        own, y = self.rows.own[:, self.fold], self.rows.label[:, None]
        margin = self.rows.margins(at[:, :, 0])
        small = margin.abs().neg_().exp_()
        loss = margin.clamp_min(0).sub_(y * margin).add_(small.log1p())
        p = torch.where(margin >= 0, 1.0, small).div_(small + 1)
        value, gradient = (loss * own).sum(0), self.rows.sums((p - y) * own)
        curve = p * (1 - p) * own
        return Iterate(
            value,
            gradient[:, :, None],
            lambda which, way: hessian_product(self.rows, some(curve, which), way),
            diagonal(self.rows, self.fold, curve.sum(0)[None, :, None]),
        )


class MultinomialLoss(_Loss):
    def look(self, at: Tensor) -> Iterate:
        own, shape = self.rows.own[:, self.fold, None], (len(self.rows.own), *at.shape[1:])
        log = torch.log_softmax(self.rows.margins(at.flatten(1)).view(shape), 2)
        true = functional.one_hot(self.rows.label.long(), at.shape[2]).to(log.dtype)[:, None]
        value, p = -((log * true).sum(2) * own[:, :, 0]).sum(0), log.exp()
        gradient = self.rows.sums(((p - true) * own).flatten(1)).view(at.shape)

        def times(which: Tensor, way: Tensor) -> Tensor:
            mine = some(p, which)
            turned = mine * self.rows.margins(way.flatten(1)).view(mine.shape)
            turned -= mine * turned.sum(2, keepdim=True)
            return self.rows.sums((turned * some(own, which)).flatten(1)).view(way.shape)

        curve = (p * (1 - p) * own).sum(0)[None]
        return Iterate(value, gradient, times, diagonal(self.rows, self.fold, curve))
