"""LinearRegression for all settings and folds, from one matrix of products per fold."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparkdiff.tuning.solvers import quadratic
from sparkdiff.tuning.solvers.problem import (
    MATRICES,
    Chunks,
    Moments,
    Setting,
    Solution,
    failed_solution,
    gram,
    moments,
    solve_by_kind,
)

NORMAL_COLUMNS = 4096
"""Number of columns above which Spark's solver `auto` is l-bfgs, and `normal` is refused."""
PIVOT = 1e-10
"""Smallest pivot of a correlation matrix: below it, columns count as linearly dependent, the model as undetermined."""


def solve_linear(chunks: Chunks, settings: list[Setting], folds: int) -> list[list[Solution]]:
    """Models of LinearRegression, [setting][fold]."""
    found = moments(chunks, folds)
    if not found.usable:
        return [[failed_solution(found) for _ in range(folds)] for _ in settings]
    columns: list[list[Solution]] = [[] for _ in settings]
    size = max(MATRICES // (8 * (len(found.centre) + 2) ** 2) - 1, 1)
    for first in range(0, folds, size):
        for fold, sums in gram(chunks, range(first, min(first + size, folds)), found):
            solve = partial(of_fold, sums, found=found, fold=fold)
            for place, solution in enumerate(solve_by_kind(settings, lambda s: s.fitIntercept, solve)):
                columns[place].append(solution)
    return columns


@dataclass(frozen=True)
class NormalSums:
    """Mean products of columns and label over the rows that one fold trains on; both are centred for a model with an
    intercept, and otherwise not.
    """

    matrix: Tensor
    """Products of the columns: (d, d)"""
    vector: Tensor
    """Products of the columns and the label: (d,)"""
    label: Tensor
    variance: Tensor
    """The columns' variances: (d,)"""
    spread: Tensor
    """The label's variance"""
    mean: Tensor
    label_mean: Tensor


def products(sums: Tensor, found: Moments, centred: bool) -> NormalSums:
    """Mean products from `sums`, one fold's sums of products of moved and scaled columns; in units of their scales."""
    d = len(found.centre)
    mean_of = sums / sums[-1, -1]
    mean, label_mean = mean_of[:d, -1], mean_of[d, -1]
    both = torch.cat([mean, label_mean.reshape(1)])
    covariance = mean_of[:-1, :-1] - both[:, None] * both
    shift = torch.cat([found.centre / found.scale, (found.label_centre / found.label_scale).reshape(1)]) + both
    taken = covariance if centred else covariance + shift[:, None] * shift
    spread = covariance.diagonal().clamp_min(0)
    return NormalSums(taken[:d, :d], taken[:d, d], taken[d, d], spread[:d], spread[d], shift[:d], shift[d])


def of_fold(sums: Tensor, settings: list[Setting], found: Moments, fold: int) -> list[Solution]:
    """The models of settings that all have an intercept, or all have none, from one fold's sums of products."""
    constant = found.constant[fold]
    label_scale, intercept = found.label_scale, settings[0].fitIntercept
    given = products(sums, found, intercept)
    if bool(found.labels[fold, 0] == found.labels[fold, 1]):
        flat = torch.zeros_like(found.centre)
        return [Solution(flat, found.labels[fold, 0], intercept) for _ in settings]
    unit = torch.where(
        constant, 0.0, given.matrix.diagonal().clamp_min(0).sqrt()
    )  # columns are scaled once more, by this
    inverse = torch.where(unit > 0, 1 / unit, 0.0)
    h = given.matrix * inverse[:, None] * inverse
    b = given.vector * inverse / given.label.sqrt()
    penalties = [penalty(s, given, found, fold, inverse) for s in settings]
    ridge = torch.stack([p[0] for p in penalties]) + (unit == 0).to(h.dtype)
    lasso = torch.stack([p[1] for p in penalties])
    x = torch.zeros_like(ridge)
    good = torch.zeros(len(settings), dtype=torch.bool)
    smooth = (lasso == 0).all(1)
    for i in smooth.nonzero()[:, 0].tolist():
        x[i], good[i] = solve(h, ridge[i], b)
    if not bool(smooth.all()):
        rough = ~smooth
        x[rough], good[rough] = quadratic.minimise(h[None], ridge[rough], b.expand_as(ridge)[rough], lasso[rough])
    solutions = []
    for i, setting in enumerate(settings):
        scaled = x[i] * inverse * given.label.sqrt()
        coefficients = scaled * label_scale / found.scale
        offset = (given.label_mean - scaled @ given.mean) * label_scale if intercept else label_scale.new_zeros(())
        # Without an intercept, rounding in Spark's sums decides whether Spark's normal equations treat a column as
        # constant.
        unclear = not intercept and normal(setting, len(constant)) and bool((constant & (found.low[fold] != 0)).any())
        solutions.append(Solution(coefficients, offset, bool(good[i]) and not unclear))
    return solutions


def normal(setting: Setting, columns: int) -> bool:
    return setting.solver == "normal" or (setting.solver == "auto" and columns <= NORMAL_COLUMNS)


def penalty(setting: Setting, given: NormalSums, found: Moments, fold: int, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of x² / 2 and of |x| in the penalty on x, the solver's variables: the coefficient of a scaled column is
    x · inverse · (the label's root mean square).

    Spark minimises ½·mean squared error / σ² + regParam / σ · ((1 - α) / 2 · Σ b² + α·Σ |b|), where σ is the label's
    standard deviation and b is a coefficient, multiplied by its column's standard deviation (by 1 without
    standardization) and divided by σ. The deviations are the population's for normal equations, else the sample's.
    """
    factor = 1.0 if normal(setting, len(found.centre)) else float(found.bessel_correction[fold])
    deviation = (given.variance * factor).sqrt() if setting.standardization else 1 / found.scale
    sigma = (given.spread * factor).sqrt() * found.label_scale
    root = given.label.sqrt()
    unit = deviation * inverse
    ridge = setting.regParam * (1 - setting.elasticNetParam) / sigma * unit.square()
    lasso = setting.regParam * setting.elasticNetParam * unit / (root * found.label_scale)
    return ridge, lasso


def solve(h: Tensor, ridge: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    system = h + torch.diag(ridge)
    factor, wrong = torch.linalg.cholesky_ex(system)
    x = torch.cholesky_solve(b[:, None], factor)
    x = x + torch.cholesky_solve(b[:, None] - system @ x, factor)
    left = (system @ x - b[:, None]).abs().amax()
    exact = (wrong == 0) & (factor.diagonal().amin().square() >= PIVOT) & (left <= 1e-12)
    return x[:, 0], exact
