"""Logistic regression fitted in the same steps as by Spark, on rows in memory.

Spark runs a job for each step, which on a few thousand rows takes thirty to fifty times as long as the sums that it computes.
Where classes can nearly be separated it stops far from the optimum, so that only the same steps lead to the same model. The sums
differ in their last bits, as Spark's own do from one partitioning to another, and a hundred steps of an ill-conditioned problem
make that visible: with L2 penalties in the units of the columns, and where rows separate the classes.

Source: LogisticRegression.train, SummarizerBuffer, L2Regularization and the aggregators in org.apache.spark.ml;
FirstOrderMinimizer, LBFGS, OWLQN, StrongWolfeLineSearch and BacktrackingLineSearch in breeze.optimize.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparkdiff.jvm.nodes import Array

MEMORY = 10
"""Number of steps that tell L-BFGS the curvature."""
RECENT = 20
"""Number of objectives that are compared to see whether they still fall; before there are as many, they count as falling."""
WOLFE_TRIALS, ZOOM_TRIALS, BACKTRACKING_TRIALS = 10, 10, 20
FALL, FLATNESS = 1e-4, 0.9
"""Wolfe's conditions, as shares of the slope at the start: how much the objective must fall, and how steep it may still be."""


@dataclass(frozen=True)
class LogisticParams:
    """Params of a LogisticRegression, under Spark's names."""

    maxIter: int
    regParam: float
    elasticNetParam: float
    tol: float
    fitIntercept: bool
    standardization: bool


@dataclass(frozen=True)
class LogisticFit:
    """Weights of a LogisticRegressionModel, and the history of its summary.

    Attributes:
        coefficients: (classes, d), of the binomial family (1, d).
        intercepts: (classes,) or (1,).
        objectiveHistory: the objective at the start and after each step.
    """

    coefficients: Array
    intercepts: Array
    objectiveHistory: list[float]


@dataclass(frozen=True)
class _Point:
    """A point, and where a line search has met it.

    Attributes:
        x: coefficients (classes, columns).
        loss: the mean loss and the L2 penalty.
        gradient: that of the loss.
        total: the objective: the loss and the L1 penalty.
        steepest: the subgradient of the objective that is nearest to zero.
        t: distance from the start of the line, in units of the search's direction.
        slope: that of the objective along the line.
    """

    x: Array
    loss: float
    gradient: Array
    total: float
    steepest: Array
    t: float = 0.0
    slope: float = 0.0


class _SearchFailed(ArithmeticError):
    """No direction leads down, or no point on it is accepted."""


Pairs = Sequence[tuple[Array, Array]]
"""The last steps and the changes of the gradient by them, the newest first."""


def _binomial(margins: Array, label: Array) -> tuple[Array, Array]:
    """Losses (n,) of rows, and their derivatives (n, 1) by the margins (n, 1)."""
    margin = margins[:, 0]
    losses = np.logaddexp(0.0, -margin) + np.where(label > 0, 0.0, margin)
    return losses, (1.0 / (1.0 + np.exp(-margin)) - label)[:, None]


def _multinomial(margins: Array, label: Array) -> tuple[Array, Array]:
    """Losses (n,) of rows, and their derivatives (n, classes) by the margins (n, classes)."""
    shares = np.exp(margins - margins.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    own = np.arange(len(label)), label.astype(np.int64)
    losses = -np.log(shares[own])
    shares[own] -= 1.0
    return losses, shares


def _objective(
    rows: Array, label: Array, weights: Array, multinomial: bool, l1: Array, l2: Array
) -> Callable[[Array], _Point]:
    """Function that computes the objective; l1 and l2 are the penalties (columns,) of |x| and x²/2."""
    losses_of, total = _multinomial if multinomial else _binomial, weights.sum()

    def visit(x: Array) -> _Point:
        losses, derivatives = losses_of(rows @ x.T, label)
        loss = losses @ weights / total + 0.5 * np.sum(l2 * x * x)
        gradient = (weights[:, None] * derivatives).T @ rows / total + l2 * x
        at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - l1, 0.0)
        steepest = np.where(x == 0, at_zero, gradient + l1 * np.sign(x))
        return _Point(x, loss, gradient, loss + np.sum(l1 * np.abs(x)), steepest)

    return visit


def _direction(pairs: Pairs, gradient: Array) -> Array:
    """Minus the gradient times the inverse of the Hessian, as far as the last steps tell it."""
    direction, shares = gradient, list[float]()
    for step, change in pairs:
        shares.append(float(np.vdot(step, direction) / np.vdot(step, change)))
        direction = direction - shares[-1] * change
    if pairs:
        curvature, square = np.vdot(*pairs[0]), np.vdot(pairs[0][1], pairs[0][1])
        if not curvature >= 0 or np.isnan(shares).any():
            raise _SearchFailed
        direction = direction * (curvature / square)
    for (step, change), share in zip(reversed(pairs), reversed(shares), strict=True):
        direction = direction + (share - np.vdot(change, direction) / np.vdot(step, change)) * step
    return -direction


def _lowest(left: _Point, right: _Point) -> float:
    """Position where the cubic through two points is lowest, but no nearer to either than a tenth of their distance."""
    width = right.t - left.t
    bend = left.slope + right.slope - 3 * (left.total - right.total) / (left.t - right.t)
    root = np.sqrt(bend * bend - left.slope * right.slope)
    t = right.t - width * (right.slope + root - bend) / (right.slope - left.slope + 2 * root)
    return float(np.clip(t, left.t + 0.1 * width, left.t + 0.9 * width))


def _zoom(at: Callable[[float], _Point], start: _Point, low: _Point, high: _Point) -> _Point:
    """Find a point between two that meets Wolfe's conditions; `low` is the better one."""
    for _ in range(ZOOM_TRIALS):
        t = _lowest(*sorted((low, high), key=lambda point: point.t))
        if np.isnan(t):
            break
        point = at(t)
        if point.total > start.total + FALL * t * start.slope or point.total >= low.total:
            high = point
        elif abs(point.slope) <= FLATNESS * abs(start.slope):
            return point
        else:
            high = low if point.slope * (high.t - low.t) >= 0 else high
            low = point
    raise _SearchFailed


def _wolfe(at: Callable[[float], _Point], start: _Point, t: float) -> _Point:
    """Find a point that meets Wolfe's conditions, from `t` on."""
    if start.slope > 0:
        raise _SearchFailed
    low = start
    for trial in range(WOLFE_TRIALS):
        point = at(t)
        if not np.isfinite(point.total):
            t /= 2
            continue
        if point.total > start.total + FALL * t * start.slope or (trial > 0 and point.total >= low.total):
            return _zoom(at, start, low, point)
        if abs(point.slope) <= FLATNESS * abs(start.slope):
            return point
        if point.slope >= 0:
            return _zoom(at, start, point, low)
        low = point
        t *= 1.5
    raise _SearchFailed


def _backtrack(at: Callable[[float], _Point], start: _Point, t: float, shrink: float) -> _Point:
    """Find a point that meets Wolfe's conditions, from `t` on; the last but one if none does."""
    # Breeze takes the loss at the start for the objective at the first point.
    point, total = at(t), start.loss
    for _ in range(BACKTRACKING_TRIALS):
        if total > start.total + FALL * point.t * start.slope or point.slope > -FLATNESS * start.slope:
            t = point.t * shrink
        elif point.slope < FLATNESS * start.slope:
            t = point.t * 2.1
        else:
            return point
        if t < 1e-10 or t > 1e10:
            raise _SearchFailed
        last, point = point, at(t)
        total = point.total
    return last


def _step(visit: Callable[[Array], _Point], start: _Point, pairs: Pairs, first: bool, l1: bool) -> _Point:
    """The next point of L-BFGS, or with an L1 penalty of OWLQN, whose steps end where a coefficient would change its sign."""
    direction, length = _direction(pairs, start.steepest), np.linalg.norm(start.gradient)
    sign = np.sign(np.where(start.x == 0, -start.steepest, start.x))
    if l1:
        direction = np.where(direction * start.steepest < 0, direction, 0.0)

    def at(t: float) -> _Point:
        x = start.x + t * direction
        point = visit(np.where(np.sign(x) == sign, x, 0.0) if l1 else x)
        return replace(point, t=t, slope=float(np.vdot(point.steepest, direction)))

    start = replace(start, t=0.0, slope=float(np.vdot(start.steepest, direction)))
    if l1:
        return _backtrack(at, start, 0.5 / float(length) if first else 1.0, 0.1 if first else 0.5)
    point = _wolfe(at, start, 1.0 / float(np.linalg.norm(direction)) if first else 1.0)
    if point.t * length < 1e-10:
        raise _SearchFailed
    return point


def _descend(visit: Callable[[Array], _Point], x: Array, l1: bool, params: LogisticParams) -> tuple[Array, list[float]]:
    """Take steps until the objective or its gradient is small or falls no more; return the last point and all objectives.

    After a search that failed, the steps are forgotten, and the point is listed again; after a second one it is the last.
    """
    point, pairs = visit(x), list[tuple[Array, Array]]()
    totals, recent = [point.total], [np.inf]
    steps, failed = 0, False
    while steps < params.maxIter and not abs(point.total - max(recent)) <= params.tol * abs(totals[0]):
        if np.linalg.norm(point.steepest) <= max(params.tol * abs(point.total), 1e-8):
            break
        try:
            after = _step(visit, point, pairs, steps == 0, l1)
        except _SearchFailed:
            totals.append(point.total)
            if failed:
                break
            pairs, failed = [], True
            continue
        pairs = [(after.x - point.x, after.gradient - point.gradient), *pairs][:MEMORY]
        point, steps, failed = after, steps + 1, False
        recent = [*recent, point.total][-RECENT:]
        totals.append(point.total)
    return point.x, [float(total) for total in totals]


def _moments(features: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column; the latter is 0 if all values are equal, whatever the rounding."""
    total = weights.sum()
    mean, freedom = weights @ features / total, total - weights @ weights / total
    std = np.sqrt(weights @ (features - mean) ** 2 / freedom)
    return mean, np.where((features != features[:1]).any(axis=0) & (freedom > 0), std, 0.0)


def depends_on_order(features: Array, weights: Array) -> bool:
    """True if Spark may see a constant column vary by 1e-9, depending on which row is the first of its partition.

    Such a column has a large coefficient, and without an intercept the fit fails; here its coefficient is always 0.
    """
    features, weights = features[weights > 0], weights[weights > 0, None]
    values = features[0, (features == features[:1]).all(axis=0)]
    return bool((weights * values / weights != values).any())


def _first_intercepts(counts: Array, multinomial: bool) -> Array:
    """Logarithms of the classes' weights, less their mean; those of classes above the largest label are 0."""
    if not multinomial:
        return np.log(counts[1:] / counts[:1])
    seen = np.arange(len(counts)) <= np.flatnonzero(counts)[-1]
    return np.where(seen, np.log1p(counts) - np.log1p(counts[seen]).mean(), 0.0)


def fit_logistic(
    features: Array, label: Array, weights: Array, classes: int, multinomial: bool, params: LogisticParams
) -> LogisticFit:
    """Fit a LogisticRegression without bounds on coefficients.

    Args:
        features: (n, d).
        label: (n,), from 0 to classes - 1.
        weights: (n,), not all of them 0.
        classes: number of classes as Spark counts them: by the label's metadata, or else the largest label plus one.
        multinomial: whether each class has its coefficients.
    """
    used = weights > 0
    features, label, weights = features[used], label[used], weights[used]
    counts = np.bincount(label.astype(np.int64), weights, classes)
    shape = classes if multinomial else 1, features.shape[1]
    if params.fitIntercept and np.count_nonzero(counts) == 1:
        certain = np.where(counts > 0, np.inf, 0.0) if multinomial else np.array([np.inf if classes == 2 else -np.inf])
        return LogisticFit(np.zeros(shape), certain, [0.0])
    with np.errstate(all="ignore"):
        mean, std = _moments(features, weights)
        inverse = np.where(std == 0, 0.0, 1.0 / std)
        scales = np.ones(shape[1]) if params.standardization else inverse
        shift = mean if params.fitIntercept else 0.0
        x, rows = np.zeros(shape), (features - shift) * inverse
        if params.fitIntercept:
            rows = np.column_stack([rows, np.ones(len(rows))])
            x = np.column_stack([x, _first_intercepts(counts, multinomial)])
            scales = np.append(scales, 0.0)
        l1 = params.regParam * params.elasticNetParam
        l2 = params.regParam * (1.0 - params.elasticNetParam)
        visit = _objective(rows, label, weights, multinomial, l1 * scales, l2 * scales**2)
        x, history = _descend(visit, x, l1 != 0, params)
    coefficients = x[:, : shape[1]] * inverse
    intercepts = x[:, -1] - coefficients @ mean if params.fitIntercept else np.zeros(shape[0])
    if multinomial and params.regParam == 0:
        coefficients = coefficients - coefficients.mean(axis=0)
    return LogisticFit(coefficients, intercepts - intercepts.mean() if multinomial else intercepts, history)
