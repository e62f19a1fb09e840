"""A test at the 1% level whether the original (the fitted pipeline that the user passed) was fitted on these rows, or
on some of them.

There are four kinds of evidence, depending on what Spark keeps about the rows of a fit:

- A refit on all rows reproduces the original: then it was fitted on exactly these rows.
- The leaves of the first of several boosted trees, which Spark grows for the label itself: each leaf keeps the number of its
  rows, and the sum of their labels. If the rows that fall into it have exactly these, the original was fitted on them.
- The equations of a linear last stage. On the rows of its fit, the sum of weight * slope of the loss * feature, plus
  the slope of the penalty, is zero for each coefficient. On other rows the sum of n such terms has a mean and a
  variance: Hotelling's T² of its q entries is chi-square with q degrees of freedom if the original has the true
  coefficients, and larger if it was fitted on few rows, on rows that differ, or didn't converge. If it has seen a
  fraction f of the rows, T² is 1/f - 1 times a chi-square. So a T² below the 1% point shows that it has seen them. The
  covariance of the terms is estimated from the rows, not from the model (the sandwich estimator: White 1980), so uneven
  noise, wrong models and penalties don't invalidate the test. It needs no refit, and stages before the last may have
  been fitted on any rows. (The distance of the coefficients from those of a refit, in units of the model's own
  covariance, is too small on other rows if there is a penalty, or less noise far out: benchmarks/seen_rows.py.)
- The losses of trees, whose roots show how many rows they were grown from. A model is better on the rows of its fit
  than on others. Suppose that an original was grown from no more rows than the table has, and that its loss on these
  rows has moved more than a third of the way from the loss of refits that haven't seen them towards the loss of a refit
  that has. Then the original has seen some of them. A loss that is merely smaller than that of unseen refits would show
  little: the quality of trees depends on their rows and random numbers, and up to a fifth of the forests grown from
  other rows are better, too.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.evaluation import guard
from sparkdiff.evaluation.input_statistics import column_sums
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.support_vector import LinearSVC
from sparkdiff.tensors.rows import Rows, product, squared

LEVEL = 0.01
SAME = 1e-5
"""Largest relative difference of two fits on the same rows: Spark adds numbers in another order each time."""
MOST = 100
"""Largest number of equations in the test; if there are more, this number of random combinations replaces them."""
ROWS = 10
"""Smallest number of rows per equation."""
NUMBERS = 20_000_000
"""Largest number of entries of the matrix of random combinations."""
SINGULAR = 1e-9
"""A combination of equations with a smaller relative variance than this counts as one that holds on any rows."""
SPREAD = 2.0
"""Factor by which the variance of the comparison of losses is increased, because the quality of a refit depends on its
rows.
"""
SHARE = 1 / 3
"""Fraction of the way from the loss of refits that haven't seen the rows to the loss of a refit that has, which chance
doesn't explain. If the refits have fewer rows than the original, half of the missing fraction of rows is added: p
coefficients fitted on n rows lose p / n on other rows, and look 2 p / n better on their own rows.
"""
TINY = 1e-300
"""Divisor in place of 0."""
ERRORS = 3.0
"""Number of standard errors by which an estimated number of rows must exceed another number to count as larger."""


@dataclass(frozen=True)
class SeenRows:
    """The answer whether the original was fitted on these rows.

    Attributes:
        shown: whether a test at the 1% level shows that it was.
        words: the answer as text, which continues a sentence that begins with the original's name.
        kind: the evidence for it: "leaves", "reproduction", "equations" or "losses"; "count" if the original was fitted on more
            rows; empty if there is no evidence.
    """

    shown: bool
    words: str
    kind: str = ""


@dataclass(frozen=True)
class RowCount:
    """The number of rows that an original was fitted on, with its standard error."""

    rows: float
    error: float = 0.0

    def exceeds(self, rows: float) -> bool:
        """True if the number is certainly larger than `rows`."""
        return self.rows > rows + ERRORS * self.error


@dataclass(frozen=True)
class Penalty:
    """Spark's penalty of a linear stage: `ridge` is regParam * (1 - elasticNetParam), `lasso` regParam *
    elasticNetParam.
    """

    ridge: float = 0.0
    lasso: float = 0.0
    standardization: bool = False


@dataclass(frozen=True)
class LinearRows:
    """A batch of rows as inputs of the original's last stage.

    Attributes:
        features: (n, p).
        margin: (n,) or (n, k) of the original, with any offset.
        label, weight: (n,).
    """

    features: Rows
    margin: Tensor
    label: Tensor
    weight: Tensor


def combine_evidence(
    rows: int,
    *,
    leaves: bool = False,
    reproduced: bool = False,
    count: RowCount | None = None,
    equations: float | None = None,
    losses: float | None = None,
) -> SeenRows:
    """Combine the evidence whether the original was fitted on these rows.

    Args:
        rows: number of rows of the table.
        leaves: whether the leaves of the original's first tree have the counts and the sums of these rows.
        reproduced: whether a refit on all rows reproduces the original.
        count: the number of rows that the original was fitted on, if known.
        equations, losses: the p-values of `p_of_equations` and `p_of_losses`.
    """
    if count is not None and count.exceeds(rows):
        return SeenRows(False, f"was fitted on about {count.rows:,.0f} rows, more than these {rows:,}", "count")
    if leaves:
        return SeenRows(True, "was fitted on these rows: they are in the leaves of its first tree", "leaves")
    if reproduced:
        return SeenRows(True, "was fitted on these rows: a refit on all of them reproduces it", "reproduction")
    if equations is not None and equations < LEVEL:
        how = "its coefficients fit them better than those of a model of other rows would"
        return SeenRows(True, f"was fitted on most of these rows: {how} (p = {equations:.2g})", "equations")
    if losses is not None and losses < LEVEL:
        how = "its losses are nearer to those of a refit on them than others' would be"
        return SeenRows(True, f"was fitted on some of these rows: {how} (p = {losses:.2g})", "losses")
    return SeenRows(False, "may have been fitted on these rows, but no test shows it")


def reproduces(original: Tensor, refit: Tensor) -> bool:
    """True if the margins of a refit, or its losses, equal those of the original up to rounding. False if the
    original's are all 0, because that shows nothing.

    Margins are stronger evidence: the losses of a million rows are nearly the same for all models of a million rows.
    """
    size, apart = float(original.abs().sum()), float((original - refit).abs().sum())
    return size > 0 and apart <= SAME * size


# Trees ----------------------------------------------------------------------------------------------------------------


def rows_of_roots(counts: Tensor, subsamplingRate: float = 1.0, *, bootstrap: bool = False) -> RowCount | None:
    """Number of rows that trees were grown from, estimated from the counts in their roots; None without counts.

    Args:
        counts: (T,) rawCount of the roots.
        bootstrap: whether rows were drawn with replacement, which only a forest of several trees does.
    """
    if not len(counts) or int(counts.min()) <= 0:
        return None
    drawn = len(counts) * subsamplingRate
    rows = float(counts.sum()) / drawn
    spread = 1.0 if bootstrap else 1 - subsamplingRate
    return RowCount(rows, math.sqrt(spread * rows / drawn))


def p_of_losses(
    count: RowCount | None,
    refitted: float,
    *,
    original: Tensor,
    seen: Tensor,
    unseen: Tensor,
    weights: Tensor,
    squared: bool = False,
) -> float | None:
    """p-value of the null hypothesis that the original hasn't seen the rows, tested by how close its losses are to
    those of a refit that has; None if the original's number of rows is unknown, or if there are too few units.

    Args:
        count: the number of rows that the original was fitted on.
        refitted: the smallest number of rows that any of the refits that haven't seen the rows was fitted on.
        original: (B,) sums over blocks of weight * loss of the original.
        seen, unseen: (B,) the same for a refit on all rows, and for refits that haven't seen the rows that they are
            measured on.
        weights: (B,) sums of the weights.
        squared: whether the losses are squared errors. A few outliers would dominate their sum, so each loss x counts
            as x / (x + m), where m is the mean loss of the refits that haven't seen the rows.
    """
    if count is None:
        return None
    if squared:
        usual = unseen.sum() / weights.sum() * weights
        original, seen, unseen = (weights * x / (x + usual).clamp_min(TINY) for x in (original, seen, unseen))
    nearer = SHARE + max(0.0, 1 - refitted / count.rows) / 2
    gains = unseen - original - nearer * (unseen - seen)
    verdict = guard.decide(gains[None], weights, level=LEVEL, dependence=SPREAD)
    return None if verdict.untested else verdict.p


# Linear last stages ---------------------------------------------------------------------------------------------------


def p_of_equations(head: Predictor, batches: Callable[[], Iterator[LinearRows]], penalty: Penalty) -> float | None:
    """p-value of the null hypothesis that the original hasn't seen the rows, tested by how closely the equations of its
    linear last stage hold on them; None if the test isn't possible.

    For classifiers the equations of the intercepts don't count: they also hold on other rows if the shares of the
    classes are the same by design (Prentice and Pyke 1979).

    Args:
        head: the last stage of the original.
        batches: yields all rows of weight > 0; called twice.
    """
    if isinstance(head, LogisticRegression) and not head.has_bounds():
        b, intercepts = head.coefficientMatrix.detach(), head.interceptVector.detach()  # (k, p), (k,)
    elif isinstance(head, LinearRegression | GeneralizedLinearRegression | LinearSVC):
        b, intercepts = head.coefficients.detach()[None], head.intercept.detach()[None]
    else:
        return None
    fitted = intercepts != 0
    columns = _columns(batches)
    combined = _combinations(b != 0, columns)
    if not combined.shape[2]:
        return None
    total = products = torch.zeros((), dtype=torch.float64)
    for rows in batches():
        slope, curvature = _slopes(head, rows)
        terms = _pulls(head, rows, curvature, b, penalty, columns, combined)
        for i, each in enumerate(combined):
            terms = terms + slope[:, [i]] * product(rows.features, each)
        terms = torch.cat([slope[:, fitted], terms], 1) * rows.weight[:, None]
        total, products = total + terms.sum(0), products + terms.T @ terms
    distance, free = _hotelling(total, products, columns.rows)
    if head.classes or head.binomial:
        k = int(fitted.sum())
        of_intercepts, fewer = _hotelling(total[:k], products[:k, :k], columns.rows)
        distance, free = distance - of_intercepts, free - fewer
    if free < 1:
        return None
    return float(torch.special.gammainc(torch.tensor(free / 2).double(), (distance / 2).clamp_min(0)))


@dataclass(frozen=True)
class _Columns:
    """The number of rows, and weighted moments of the features (p,) and of the label ()."""

    rows: int
    mean: Tensor
    std: Tensor
    size: Tensor  # root mean square
    label_mean: Tensor
    label_std: Tensor


def _columns(batches: Callable[[], Iterator[LinearRows]]) -> _Columns:
    n, sums = 0, [torch.zeros((), dtype=torch.float64)] * 5
    for rows in batches():
        x, y, w = rows.features, rows.label, rows.weight
        new = [w.sum(), column_sums(x, w), column_sums(squared(x), w), w @ y, w @ y.square()]
        n, sums = n + len(y), [a + b for a, b in zip(sums, new, strict=True)]
    mean, square, label, label_square = (s / sums[0] for s in sums[1:])
    std, label_std = ((b - a.square()).clamp_min(0).sqrt() for a, b in ((mean, square), (label, label_square)))
    return _Columns(n, mean, std, square.sqrt(), label, label_std)


def _combinations(used: Tensor, columns: _Columns) -> Tensor:
    """Combinations (k, p, K) of the equations of the coefficients in the mask `used` (k, p): single equations if there
    are few, else random linear combinations.
    """
    at, most = used.nonzero(), min(MOST, columns.rows // ROWS, NUMBERS // used.numel())
    if len(at) <= most:
        out = torch.zeros(*used.shape, len(at), dtype=torch.float64)
        out[at[:, 0], at[:, 1], torch.arange(len(at))] = 1.0
        return out
    random = torch.randn(*used.shape, most, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    size = torch.where(columns.size > 0, columns.size, 1.0)
    return random * (used / size)[:, :, None]


def _slopes(head: Predictor, rows: LinearRows) -> tuple[Tensor, Tensor | None]:
    """Derivative (n, k) of Spark's loss with respect to the margin; for a GLM also its expected second derivative
    (n,).
    """
    margin, y = rows.margin.detach(), rows.label
    if isinstance(head, LinearRegression):
        residual = margin - y
        if head.epsilon is not None:
            residual = (residual / head.scale).clamp(-head.epsilon, head.epsilon)
        return residual[:, None], None
    if isinstance(head, GeneralizedLinearRegression):
        with torch.enable_grad():
            eta = margin.clone().requires_grad_()
            mean = head.mean(eta)
            (slope,) = torch.autograd.grad(mean.sum(), eta)
        mean = mean.detach()
        power = {"gaussian": 0.0, "poisson": 1.0, "gamma": 2.0}.get(head.family, head.variance_power)
        variance = mean * (1 - mean) if head.binomial else mean**power
        return ((mean - y) * slope / variance)[:, None], slope.square() / variance
    if isinstance(head, LinearSVC):
        sign = 2 * y - 1
        slope = torch.where(sign * margin < 1, -sign, 0.0)
    elif head.wide:
        return margin.softmax(1) - torch.nn.functional.one_hot(y.long(), margin.shape[1]), None
    else:
        slope = torch.sigmoid(margin) - y
    return slope[:, None], None


def _pulls(
    head: Predictor,
    rows: LinearRows,
    curvature: Tensor | None,
    b: Tensor,
    penalty: Penalty,
    columns: _Columns,
    combined: Tensor,
) -> Tensor:
    """Slope of the penalty in each combination of equations, as a term per row whose mean over the rows it is, (n, K)
    or (K,).

    Spark's penalty depends on standard deviations of the rows of the fit. So a part of its slope is itself a mean over
    rows, and varies with them. For a GLM the sum is divided by the sum of the working weights.
    """

    def together(x: Tensor) -> Tensor:
        return torch.einsum("kp,kpc->c", x, combined)

    ridge, lasso = penalty.ridge * b, penalty.lasso * b.sign()
    if curvature is not None:
        return curvature[:, None] * together(ridge)
    of_label = torch.zeros(1, dtype=torch.float64)
    if isinstance(head, LinearRegression) and head.epsilon is None:
        ridge = ridge / columns.label_std
        unit = columns.std.square() if penalty.standardization else 1.0
        z = (rows.label - columns.label_mean) / columns.label_std
        of_label = (1 - z.square())[:, None] / 2 * together(ridge * unit)
    if not penalty.standardization:
        return together(ridge + lasso) + of_label
    std, mean = torch.where(columns.std > 0, columns.std, 1.0), columns.mean[:, None]
    by_square = torch.einsum("kp,kpc->pc", ridge + lasso / (2 * std), combined)
    centred = product(squared(rows.features), by_square) - 2 * product(rows.features, mean * by_square)
    return centred + (mean.square() * by_square).sum(0) + together(lasso * std / 2) + of_label


def _hotelling(total: Tensor, products: Tensor, n: int) -> tuple[Tensor, int]:
    """Hotelling's T² for the mean of n terms with these sums (q,) and sums of products (q, q), and its degrees of
    freedom: the number of their independent combinations that vary.
    """
    mean = total / n
    covariance = products / n - mean[:, None] * mean
    std = covariance.diagonal().clamp_min(0).sqrt()
    moves = std > 0
    scale = std[moves]
    values, vectors = torch.linalg.eigh(covariance[moves][:, moves] / scale[:, None] / scale)
    kept = values > SINGULAR
    return (n - 1) * ((mean[moves] / scale) @ vectors[:, kept]).square() @ (1 / values[kept]), int(kept.sum())
