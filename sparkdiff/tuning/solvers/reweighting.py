"""GeneralizedLinearRegression for all settings and folds at once, by Spark's iteratively reweighted least squares."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sparkdiff.tuning.solvers.families import FAMILIES, LINKS, Family, LinkFunction
from sparkdiff.tuning.solvers.least_squares import solve_linear
from sparkdiff.tuning.solvers.problem import (
    CACHE,
    Chunk,
    Chunks,
    Moments,
    Problem,
    ProductSums,
    RowTable,
    Setting,
    Solution,
    batch_size,
    failed_solution,
    moments,
    solve_by_kind,
    solve_in_batches,
    table,
)

STEPS = 100
TOLERANCE = 1e-11
PIVOT = 1e-10


def solve_generalized(chunks: Chunks, settings: list[Setting], folds: int, memory: int = 2**30) -> list[list[Solution]]:
    """Models of GeneralizedLinearRegression, [setting][fold].

    Rows stay in memory between passes if they need no more than `memory` bytes; else each pass reads `chunks` again.
    """
    found = moments(chunks, folds)

    def of_link(some: list[Setting]) -> list[list[Solution]]:
        if kind_of(some[0]) == ("gaussian", "identity"):
            plain = [replace(s, elasticNetParam=0.0, standardization=True, solver="normal") for s in some]
            return solve_linear(lambda: without_offset(chunks), plain, folds)
        return solve_by_kind(some, lambda s: s.fitIntercept, lambda same: of_kind(chunks, same, folds, found, memory))

    return solve_by_kind(settings, kind_of, of_link)


def kind_of(setting: Setting) -> tuple[str, str]:
    return setting.family, setting.link or FAMILIES[setting.family].links[0]


def without_offset(chunks: Chunks) -> Iterator[Chunk]:
    for chunk in chunks():
        yield chunk if chunk.offset is None else replace(chunk, label=chunk.label - chunk.offset, offset=None)


def of_kind(chunks: Chunks, settings: list[Setting], folds: int, found: Moments, memory: int) -> list[list[Solution]]:
    """The models of settings with one family and one link, all with or all without an intercept."""
    name, link = kind_of(settings[0])
    family = FAMILIES[name]
    if not found.usable or not family.labels(float(found.labels.min()), float(found.labels.max())):
        return [[failed_solution(found) for _ in range(folds)] for _ in settings]
    rows = table(chunks, folds, found, intercept=settings[0].fitIntercept, memory=memory)
    solve = partial(together, rows, found, family=family, link=LINKS[link])
    return solve_in_batches(settings, range(folds), batch_size(rows.width), solve)


def together(
    rows: RowTable, found: Moments, problems: list[Problem], family: Family, link: LinkFunction
) -> list[Solution]:
    """Solve the problems with the same iteration as Spark, from almost the same start, until a fixed point."""
    m, d = len(problems), len(rows.scale)
    fold = torch.tensor([f for _, f in problems])
    ridge, free = torch.zeros(m, rows.width, dtype=torch.float64), torch.ones(m, rows.width, dtype=torch.float64)
    strength = torch.tensor([s.regParam for s, _ in problems], dtype=torch.float64)
    ridge[:, :d] = strength[:, None] / rows.scale.square()
    free[:, :d] = (~found.constant[fold]).to(free.dtype)
    at = torch.zeros_like(ridge)
    done = torch.zeros(m, dtype=torch.bool)
    active = torch.arange(m)
    for step in range(STEPS):
        matrix, vector = system(rows, fold[active], None if step == 0 else at[active], family, link)
        own = free[active]
        matrix = matrix * own[:, :, None] * own[:, None, :] + torch.diag_embed(ridge[active] * own + 1 - own)
        vector = vector * own
        residual = vector - (matrix @ at[active, :, None])[:, :, 0]
        factor, wrong = torch.linalg.cholesky_ex(matrix)
        pivots = (factor.diagonal(dim1=1, dim2=2).square() / matrix.diagonal(dim1=1, dim2=2)).amin(1)
        clear = (wrong == 0) & (pivots > PIVOT)
        still = residual.abs().amax(1) <= TOLERANCE * (1 + vector.abs().amax(1))
        done[active] = clear & still & (step > 0)
        new = torch.cholesky_solve(vector[:, :, None], factor)[:, :, 0]
        going = clear & ~done[active] & torch.isfinite(new).all(1)
        at[active[going]] = new[going]
        active = active[going]
        if not len(active):
            break
    return [solution(rows, found, problems[i], at[i], bool(done[i])) for i in range(m)]


def system(
    rows: RowTable, fold: Tensor, at: Tensor | None, family: Family, link: LinkFunction
) -> tuple[Tensor, Tensor]:
    """Matrix and vector of Spark's normal equations for each problem: means, weighted by the working weights, of the
    products of two columns, and of a column and the working label. `at` is None in the first step.
    """
    m = len(fold)
    sums, vector = ProductSums(rows.width, m), torch.zeros(m, rows.width, dtype=torch.float64)
    total = torch.zeros(m, dtype=torch.float64)
    for block in rows.blocks():
        for part in block.parts(max(CACHE // max(m, rows.width), 64)):
            own, y, offset = part.own[:, fold], part.label[:, None], part.offset[:, None]
            if at is None:
                weight, goal = own, link.of_mean(family.start(y, own)) - offset
                goal = goal.expand_as(own)
            else:
                moved = part.z @ at.T
                mean = link.mean(moved + offset).clamp(*family.bounds)
                slope = link.derivative(mean)
                weight = own / (slope.square() * family.variance(mean))
                goal = moved + (y - mean) * slope
            sums.add(part.z, weight)
            vector += (weight * goal).T @ part.z
            total += weight.sum(0)
    return sums.matrices() / total[:, None, None], vector / total[:, None]


def solution(rows: RowTable, found: Moments, problem: Problem, at: Tensor, done: bool) -> Solution:
    setting, fold = problem
    d = len(rows.scale)
    coefficients = at[:d] / rows.scale
    intercept = at.new_zeros(())
    if setting.fitIntercept:
        intercept = at[d] - coefficients @ rows.centre
    # Without an intercept, rounding in Spark's sums decides whether its normal equations treat a column as constant.
    unclear = not setting.fitIntercept and bool((found.constant[fold] & (found.low[fold] != 0)).any())
    return Solution(coefficients, intercept, done and not unclear)
