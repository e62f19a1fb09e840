"""LogisticRegression for all settings and folds at once, binomial and multinomial."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sparkdiff.tuning.solvers.descent import ElasticNetPenalties, Minimum, Slope, minimise
from sparkdiff.tuning.solvers.problem import (
    CACHE,
    Block,
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
    sample,
    solve_by_kind,
    solve_in_batches,
    table,
)

MEMORY = 2**30
SAMPLED = 20
"""Sampled rows per column for a Hessian that only has to give L-BFGS a direction."""
CHEAP = 5e8
"""Number of multiplications up to which full Hessians are always computed."""


def solve_logistic(
    chunks: Chunks, settings: list[Setting], folds: int, classes: int, memory: int = MEMORY
) -> list[list[Solution]]:
    """Models of LogisticRegression, [setting][fold]; `classes` as Spark counts them (labels are 0 to classes - 1).

    Rows stay in memory between passes if they need no more than `memory` bytes; else each pass reads `chunks` again.
    """
    found = moments(chunks, folds, classes)
    fits = [f for f in range(folds) if found.usable and bool((found.classes[f] > 0).all()) and classes > 1]

    def of_kind(some: list[Setting]) -> list[list[Solution]]:
        sets = some[0].sets(classes)
        answers = [dict.fromkeys(range(folds), failed_solution(found, sets)) for _ in some]
        if fits:
            rows = table(chunks, folds, found, intercept=some[0].fitIntercept, memory=memory)
            solve = partial(together, rows, found, sets=sets)
            solved = solve_in_batches(some, fits, batch_size(sets * rows.width), solve)
            for answer, own in zip(answers, solved, strict=True):
                answer.update(zip(fits, own, strict=True))
        return [[*answer.values()] for answer in answers]

    return solve_by_kind(settings, lambda s: (s.fitIntercept, s.sets(classes)), of_kind)


@dataclass(frozen=True)
class Functions:
    """Mean losses over the training rows of each problem's fold, given parameters (problems, sets · width)."""

    rows: RowTable
    sample: Block | None
    """The rows from which Hessians are computed; None: all rows."""
    fold: Tensor
    """The fold of each problem."""
    weight: Tensor
    """The sum of the weights of each problem's rows."""
    sets: int
    whole: bool
    """True for whole Hessians, False for Hessians of one block for each set of coefficients."""

    def slopes(self, which: Tensor, at: Tensor) -> Slope:
        fold, weight = self.fold[which], self.weight[which]
        value, gradient = torch.zeros(len(at), dtype=torch.float64), torch.zeros_like(at)
        for block in self.rows.blocks():
            for part in block.parts(self.size(len(at))):
                losses = binomial if self.sets == 1 else multinomial
                loss, left = losses(part, fold, at)
                value += loss
                gradient += (left.T @ part.z).reshape(at.shape)
        return Slope(value / weight, gradient / weight[:, None])

    def size(self, problems: int) -> int:
        return max(CACHE // max(problems * self.sets, self.rows.width), 64)

    def hessians(self, which: Tensor, at: Tensor) -> Tensor:
        fold = self.fold[which]
        pairs = [(k, m) for k in range(self.sets) for m in range(k, self.sets) if self.whole or k == m]
        sums = ProductSums(self.rows.width, len(at) * len(pairs))
        weight = torch.zeros(len(at), dtype=torch.float64)
        for block in iter([self.sample]) if self.sample else self.rows.blocks():
            for part in block.parts(self.size(len(at) * (self.sets + 1) // 2)):
                own = part.own[:, fold]
                weight += own.sum(0)
                p = probabilities(part, at, self.sets)
                curve = (
                    [p[:, :, k] * (float(k == m) - p[:, :, m]) for k, m in pairs] if self.sets > 1 else [p * (1 - p)]
                )
                sums.add(part.z, (torch.stack(curve, 2) * own[:, :, None]).reshape(len(own), -1))
        found = (
            sums.matrices().reshape(len(at), len(pairs), self.rows.width, self.rows.width) / weight[:, None, None, None]
        )
        if not self.whole or self.sets == 1:
            return found
        width = self.rows.width
        h = found.new_empty(len(at), self.sets, width, self.sets, width)
        for place, (k, m) in enumerate(pairs):
            h[:, k, :, m] = h[:, m, :, k] = found[:, place]
        return h.reshape(len(at), 1, self.sets * width, self.sets * width)


def binomial(part: Block, fold: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of the losses (problems,), and their derivatives with respect to the margins (n, problems)."""
    own, y = part.own[:, fold], part.label[:, None]
    margin = part.z @ at.T
    small = margin.abs().neg_().exp_()
    loss = margin.clamp_min(0).sub_(y * margin).add_(small.log1p())
    p = torch.where(margin >= 0, 1.0, small).div_(small + 1)
    return (loss * own).sum(0), (p - y) * own


def multinomial(part: Block, fold: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of the losses (problems,), and their derivatives with respect to the margins
    (n, problems · sets).
    """
    own, sets = part.own[:, fold], at.shape[1] // part.z.shape[1]
    log = torch.log_softmax((part.z @ at.reshape(-1, part.z.shape[1]).T).reshape(len(own), -1, sets), 2)
    true = functional.one_hot(part.label.long(), sets).to(log.dtype)[:, None]
    return -((log * true).sum(2) * own).sum(0), ((log.exp() - true) * own[:, :, None]).reshape(len(own), -1)


def probabilities(part: Block, at: Tensor, sets: int) -> Tensor:
    margin = part.z @ at.reshape(-1, part.z.shape[1]).T
    return margin.sigmoid() if sets == 1 else margin.reshape(len(margin), -1, sets).softmax(2)


def together(rows: RowTable, found: Moments, problems: list[Problem], sets: int) -> list[Solution]:
    fold = torch.tensor([f for _, f in problems])
    given = penalties(rows, found, problems, sets)
    newton = by_newton(rows, problems, sets)
    few = None if newton else sample(rows, SAMPLED * rows.width)
    whole = newton or sets * rows.width <= 2000
    functions = Functions(rows, few, fold, found.weight[fold], sets, whole)
    start = torch.zeros(len(problems), sets, rows.width, dtype=torch.float64)
    if rows.intercept:
        log = found.classes[fold].log()
        start[:, :, -1] = log[:, 1:] - log[:, :1] if sets == 1 else log - log.mean(1, keepdim=True)
    start = start.reshape(len(problems), -1)
    minimum = minimise(functions.slopes, functions.hessians, given, start, newton=newton)
    return solutions(rows, problems, sets, minimum)


def by_newton(rows: RowTable, problems: list[Problem], sets: int) -> bool:
    """True if the problems are solved by Newton's method: it is needed if a lasso penalty can make coefficients zero or
    if nothing is penalised, and it pays off if full Hessians are cheap.
    """
    if any(s.regParam == 0 or s.elasticNetParam > 0 for s, _ in problems):
        return True
    width, every = rows.width, rows.rows * len(problems)
    hessians = 8 * every * sets * (sets + 1) * width * (width + 1) / 2
    return hessians < max(CHEAP, 1.5 * 25 * every * 4 * sets * width)


def penalties(rows: RowTable, found: Moments, problems: list[Problem], sets: int) -> ElasticNetPenalties:
    """The penalties of the problems, in units of the columns' scale.

    Spark's L2 is regParam·(1 - α)/2·Σ b², its L1 regParam·α·Σ |b|, where b is a coefficient, times its column's
    standard deviation if standardization is on.
    """
    ridge = torch.zeros(len(problems), sets, rows.width, dtype=torch.float64)
    lasso, free = torch.zeros_like(ridge), torch.ones_like(ridge)
    d = len(rows.scale)
    for i, (setting, fold) in enumerate(problems):
        unit = (
            (rows.variance[fold] * found.bessel_correction[fold]).sqrt() if setting.standardization else 1 / rows.scale
        )
        ridge[i, :, :d] = setting.regParam * (1 - setting.elasticNetParam) * unit.square()
        lasso[i, :, :d] = setting.regParam * setting.elasticNetParam * unit
        free[i, :, :d] = (~found.constant[fold]).to(free.dtype)
    # Adding the same number to all classes' coefficients of a column changes no probability.
    shift = ((lasso == 0).all(1) & (free > 0).all(1)).to(ridge.dtype) * (sets > 1)
    m = len(problems)
    return ElasticNetPenalties(ridge.reshape(m, -1), lasso.reshape(m, -1), free.reshape(m, -1), shift)


def solutions(rows: RowTable, problems: list[Problem], sets: int, minimum: Minimum) -> list[Solution]:
    at = minimum.at.reshape(len(problems), sets, rows.width)
    answers = []
    for i, (setting, _) in enumerate(problems):
        coefficients = at[i, :, : len(rows.scale)] / rows.scale
        intercept = at[i, :, -1] - coefficients @ rows.centre if rows.intercept else at.new_zeros(sets)
        if sets > 1:
            intercept = intercept - intercept.mean()
            if setting.regParam == 0:
                coefficients = coefficients - coefficients.mean(0)
        taken = (coefficients[0], intercept[0]) if sets == 1 else (coefficients, intercept)
        answers.append(Solution(*taken, bool(minimum.found[i])))
    return answers
