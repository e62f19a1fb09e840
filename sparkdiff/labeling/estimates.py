"""Estimates of the accuracy of labelling functions, from their votes alone.

The model: given the class of a row, the functions vote independently, and each function has its own probability of each
vote in each class (abstaining counts as a vote). The model is identifiable with three or more functions that are better
than chance on average.

A pattern is one combination of the votes of all m functions, (m,) int64, with -1 where a function abstains. There are P
patterns, with weights (P,): the number of rows that have each pattern, or their total weight where rows have
weights (see `Votes`).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ABSTAINS = -1
FEW = 10
"""A vote's correlations with other votes count only if at least this many rows have the vote, and at least as many don't."""
LEAST = 1e-4
"""Smallest assumed share of wrong votes, because a function that was never wrong on these rows may be wrong on other rows."""
LOWEST = np.log(1e-12)
"""Logarithm of the smallest probability that extrapolated steps of EM may reach."""
NEEDED = 3
"""Smallest number of functions with informative covariances that `triplets` needs."""
PRIOR, SHARE = 0.8, 0.25
"""In `precision`: prior accuracy of a vote, and the weight of the prior relative to the weight of the data."""
ROWS = 10.0
"""In `precision`: the accuracy of each vote is shrunk towards the mean accuracy of all votes as if by this many rows."""
SMOOTHING = 1.0
"""Pseudo-count in EM: number of rows (of weight 1) that are added to each distribution of votes. To the distribution of the
classes, only `LEAST` rows are added per class, because a whole row would raise the share of a rare class where votes carry
little information.
"""
FEWEST, WORK = 60, 500_000_000
"""Limits of EM from each start: FEWEST steps, or the number of steps that process WORK votes times classes if it is larger."""
STEPS, RISE = 300, 0.02
"""EM stops if STEPS steps raise the log-likelihood by less than RISE, which is about a hundredth of the difference that
chance explains (`WITHIN` in label_model.py). Otherwise, uninformative votes could make the likelihood so flat that the
maximum is thousands of steps away."""


class UndeterminedError(ValueError):
    """Error raised if the votes do not determine the accuracies of the functions."""


@dataclass(frozen=True)
class Estimate:
    """Estimated shares of the classes, and probabilities of the votes in each class.

    Attributes:
        balance: (k,) share of each class.
        tables: (m, k, k + 1) probability of each vote in each class, for each of m functions; the last vote is
            abstaining. In estimates by `precision`, the probability of abstaining is the same in each class, so the
            probabilities don't add up to 1.
        converged: True unless EM stopped before it reached a maximum.
        likelihood: log-likelihood of the votes, including the pseudo-counts; NaN if the estimate is not by EM.
    """

    balance: Floats
    tables: Floats
    converged: bool = True
    likelihood: float = np.nan

    @property
    def above_chance(self) -> float:
        """Sum over all functions and classes of the probability of a vote for the class in this class, minus the mean of this
        probability over the classes. It is positive if functions are better than chance.
        """
        votes = self.tables[:, :, : len(self.balance)]
        return float(np.einsum("mll->", votes) - votes.mean(1).sum())

    @property
    def accuracies(self) -> Floats:
        """Estimated share of each function's votes that are right, (m,)."""
        k = len(self.balance)
        right = np.einsum("y,myy->m", self.balance, self.tables[:, :, :k])
        return np.asarray(right / np.einsum("y,myl->m", self.balance, self.tables[:, :, :k]))

    def joint(self, voted: Ints) -> Floats:
        """Log of the joint probability of each class and the votes of each pattern, including abstentions, (P, k).

        Args:
            voted: (m, P) votes, as in `by_function`.
        """
        by_vote = np.log(self.tables).transpose(0, 2, 1).copy()
        return np.asarray(np.log(self.balance) + sum(table[votes] for table, votes in zip(by_vote, voted, strict=True)))

    def posterior(self, patterns: Ints) -> Floats:
        """Probability of each class given the votes of each pattern, (P, k)."""
        return _posterior_and_evidence(self.joint(by_function(patterns, len(self.balance))))[0]


def _posterior_and_evidence(joint: Floats) -> tuple[Floats, Floats]:
    """Posterior probability of each class, (P, k), and log probability of the votes, (P,), from the log of the joint one."""
    most = joint.max(1, keepdims=True)
    shares = np.exp(joint - most)
    total = shares.sum(1, keepdims=True)
    return np.asarray(shares / total), np.asarray(most + np.log(total))[:, 0]


def by_function(patterns: Ints, k: int) -> Ints:
    """Votes of each function, (m, P), with k instead of -1 where a function abstains."""
    return np.where(patterns == ABSTAINS, k, patterns).T.copy()


def majority(patterns: Ints, k: int) -> Floats:
    """Majority vote as probabilities, (P, k). Tied classes get equal shares; without votes, all classes do."""
    counts = vote_counts(patterns, k)
    most = (counts == counts.max(1, keepdims=True)).astype(np.float64)
    return np.asarray(most / most.sum(1, keepdims=True))


def vote_counts(patterns: Ints, k: int) -> Floats:
    """Number of functions that vote for each class, (P, k)."""
    return np.stack([(patterns == y).sum(1) for y in range(k)], 1).astype(np.float64)


def one_hot(patterns: Ints, k: int) -> Floats:
    """Votes in one-hot form, (P, m, k); all 0 where a function abstains."""
    return (patterns[:, :, None] == np.arange(k)).astype(np.float64)


def triplets(patterns: Ints, weights: Floats, balance: Floats | None = None) -> Estimate:
    """Estimate for two classes in closed form, from triplets of functions.

    A vote for class 1 counts as 1, for class 0 as -1. Let q = P(Y = 1), and d_i the difference between function i's mean
    vote in class 1 and in class 0. Then the votes of functions i and j have the covariance q (1 - q) d_i d_j, so the
    covariances among three functions determine each d up to its sign (Fu et al. 2020, "Fast and Three-rious"; they use
    uncentred moments, which do not suit functions that vote for one class only). The third central moment
    q (1 - q) (1 - 2 q) d_i d_j d_l determines q. The probabilities of each vote follow by least squares from the
    covariances of the vote with the other functions.

    Args:
        balance: (2,) shares of the classes, if known. Estimated shares are at least the share of one row.

    Raises:
        UndeterminedError: fewer than three functions have d != 0. For the other functions, covariances are 0, or their signs
            contradict each other.
    """
    n, w = weights.sum(), weights / weights.sum()
    votes = [(patterns == y).astype(np.float64) for y in (0, 1)]
    mean = np.stack([w @ v for v in votes], 1)  # (m, 2)
    signed = votes[1] - votes[0]
    signed -= w @ signed
    covariance = (signed * w[:, None]).T @ signed
    d = _signed(_magnitudes(covariance), covariance)
    if (d != 0).sum() < NEEDED:
        raise UndeterminedError(
            f"only {(d != 0).sum()} of {len(d)} functions have covariances that tell how good they are"
        )
    q = float(np.clip(_share(signed, w, d), 1 / n, 1 - 1 / n) if balance is None else balance[1])
    # `signed` is centred, so the votes `v` need not be centred for their covariance with it.
    with_others = np.stack([(v * w[:, None]).T @ signed for v in votes], 1)  # (m, 2, m)
    with_others[np.arange(len(d)), :, np.arange(len(d))] = 0.0
    scaled = with_others @ d / np.maximum((d**2).sum() - d**2, 1e-12)[:, None]  # (m, 2)
    inside = np.stack([mean - np.sqrt(q / (1 - q)) * scaled, mean + np.sqrt((1 - q) / q) * scaled], 1)  # (m, 2, 2)
    least = np.maximum(LEAST * mean, 1 / n)[:, None, :]
    inside = np.clip(inside, least, 1.0)
    abstains = np.maximum(LEAST * (1 - mean.sum(1)), 1 / n)[:, None, None]
    tables = np.concatenate([inside, np.maximum(1 - inside.sum(2, keepdims=True), abstains)], 2)
    shares = np.array([1 - q, q]) if balance is None else balance
    return Estimate(shares, tables / tables.sum(2, keepdims=True))


def _magnitudes(covariance: Floats) -> Floats:
    """Estimate of |d| sqrt(q (1 - q)) of each labelling function, (m,): the square root of a weighted median over triplets.

    For function i and each pair of other functions j and l, |d_i|^2 q (1 - q) is cov_ij cov_il / cov_jl. The weight of this
    ratio is |cov_jl|.
    """
    m = len(covariance)
    out = np.zeros(m)
    for i in range(m):
        j, l = np.array([*combinations([x for x in range(m) if x != i], 2)]).T  # noqa: E741
        below = covariance[j, l]
        known = np.abs(below) > 1e-12
        if known.any():
            ratios, heavy = (covariance[i, j] * covariance[i, l])[known] / below[known], np.abs(below[known])
            order = np.argsort(ratios)
            middle = np.searchsorted(np.cumsum(heavy[order]), heavy.sum() / 2)
            out[i] = np.sqrt(max(ratios[order][min(middle, len(order) - 1)], 0.0))
    return out


def _signed(magnitudes: Floats, covariance: Floats) -> Floats:
    """The magnitudes with signs that fit the signs of the covariances. Of the two solutions, the one is chosen in which functions
    are better than chance on average.
    """
    apart = covariance - np.diag(np.diag(covariance))
    leading = np.linalg.eigh(apart)[1][:, -1]
    found = np.where(leading < 0, -magnitudes, magnitudes)
    return np.asarray(-found if found.sum() < 0 else found)


def _share(signed: Floats, w: Floats, d: Floats) -> float:
    """P(Y = 1), estimated by least squares from the third central moments of all triplets of functions."""
    third = np.stack([(signed * (w * one)[:, None]).T @ signed for one in signed.T])
    i, j, l = np.array([*combinations(range(len(d)), 3)]).T  # noqa: E741
    product = d[i] * d[j] * d[l]
    skew = (third[i, j, l] * product).sum() / max((product**2).sum(), 1e-300)  # (1 - 2 q) / sqrt(q (1 - q))
    return float((1 - skew / np.sqrt(4 + skew**2)) / 2)


def em(
    patterns: Ints,
    weights: Floats,
    k: int,
    *,
    balance: Floats | None = None,
    known: Ints | None = None,
    start: Estimate | None = None,
    maxIter: int = 20_000,
    tol: float = 1e-6,
) -> Estimate:
    """Maximum-likelihood estimate by expectation-maximisation (Dawid and Skene 1979) from three starts: the majority
    vote, `precision`, and for two classes `triplets`.

    The result is the most likely of the maxima that are found. Without labels, it is the most likely of those at which
    functions are better than chance, if there are any: exchanging the classes does not change the likelihood, so there
    is also a maximum at which they are worse.

    Args:
        balance: (k,) shares of the classes, if known.
        known: (P,) the class of patterns from rows with a label, -1 for others.
        start: if set, the only start.
        maxIter: largest number of steps from each start; fewer steps are taken if there are very many patterns, or if the
            likelihood is flat.
        tol: EM has converged if no probability is estimated to be farther than this from its value at the maximum.
    """

    voted = by_function(patterns, k)
    possible = _with_known_classes(np.ones((len(patterns), k)), known) > 0

    def fit(posterior: Floats) -> Estimate:
        counts = _by_class(voted, posterior * weights[:, None], k) + SMOOTHING / (k + 1)
        shares = weights @ posterior + LEAST if balance is None else balance
        return Estimate(np.asarray(shares / shares.sum()), counts / counts.sum(2, keepdims=True))

    def step(estimate: Estimate) -> tuple[Estimate, float]:
        posterior, total = _posterior_and_evidence(np.where(possible, estimate.joint(voted), -np.inf))
        prior = SMOOTHING / (k + 1) * np.log(estimate.tables).sum() + LEAST * np.log(estimate.balance).sum()
        return fit(posterior), float(weights @ total + prior)

    starts = [majority(patterns, k), precision(patterns, weights, k, balance=balance, known=known).posterior(patterns)]
    if k == 2:
        with suppress(UndeterminedError):
            starts.append(triplets(patterns, weights, balance).posterior(patterns))
    if start is not None:
        starts = [start.posterior(patterns)]
    most = min(maxIter, max(FEWEST, WORK // (patterns.size * k)))
    found = [_climb(fit(_with_known_classes(one, known)), step, most, tol) for one in starts]
    if known is None or (known < 0).all():
        found = [one for one in found if one.above_chance > 0] or found
    return max(found, key=lambda one: one.likelihood)


def _climb(
    estimate: Estimate, step: Callable[[Estimate], tuple[Estimate, float]], maxIter: int, tol: float
) -> Estimate:
    """Iterate EM from an estimate to a maximum of the likelihood, with accelerated steps.

    Near the maximum, steps of EM shrink by a constant factor, which is near 1 if votes carry little information. Two steps
    reveal the factor, and from it the point to which the steps converge is extrapolated (SQUAREM, Varadhan and Roland
    2008). EM continues from this point, unless it is less likely than the estimate after the first step.

    Args:
        step: estimate -> (the next estimate, the log-likelihood of the given estimate).
    """
    distance, rising = np.inf, list[float]()
    for _ in range(0, maxIter, 3):
        first, _ = step(estimate)
        second, least = step(first)
        end, distance = _extrapolation(estimate, first, second)
        further, likelihood = step(end)
        estimate = further if likelihood >= least else second
        rising.append(least)
        if distance < tol or (len(rising) > STEPS // 3 and least < rising[-1 - STEPS // 3] + RISE):
            break
    return replace(estimate, likelihood=step(estimate)[1], converged=bool(distance < tol))


def _extrapolation(start: Estimate, first: Estimate, second: Estimate) -> tuple[Estimate, float]:
    """The estimate to which steps from `start` via `first` and `second` converge, and how far it is from `start`.

    The distance is the largest difference of a probability, extrapolated from the first step.
    """
    one, two, three = (np.log(np.concatenate([e.balance, e.tables.ravel()])) for e in (start, first, second))
    move, bend = two - one, three - 2 * two + one
    length = max(float(np.linalg.norm(move)) / max(float(np.linalg.norm(bend)), 1e-300), 1.0)
    end = np.exp(np.clip(one + 2 * length * move + length**2 * bend, LOWEST, 0.0))
    shares, tables = end[: len(start.balance)], end[len(start.balance) :].reshape(start.tables.shape)
    found = Estimate(shares / shares.sum(), tables / tables.sum(2, keepdims=True))
    return found, float(length * np.abs(np.exp(two) - np.exp(one)).max())


def _by_class(voted: Ints, columns: Floats, k: int) -> Floats:
    """Sums of columns (P, c) over the patterns with each vote of each function, (m, c, k + 1); abstaining last.

    Args:
        voted: (m, P) votes, as in `by_function`.
    """
    return np.stack([[np.bincount(votes, one, k + 1) for one in columns.T] for votes in voted])


def precision(
    patterns: Ints, weights: Floats, k: int, *, balance: Floats | None = None, known: Ints | None = None
) -> Estimate:
    """Estimate the accuracy of each vote by the share of its rows on which it agrees with the majority (or with the
    label, if known).

    This suits few rows, and functions that do not vote independently: a full model would explain the dependence between
    their votes by its classes, which may then be topics rather than the intended classes. Here each vote l of a function
    has only one parameter, its accuracy a = P(Y = l | the function votes l), between 1 / k and 1. Abstaining carries no
    information. The accuracies of votes on few rows are shrunk towards the mean accuracy, so that the majority decides
    where little is known. Then all accuracies are shrunk to a prior, to the same degree. With n votes on a row,
    P(y | votes) is proportional to P(y) ** (1 - n) times the product of P(y | vote), so a single vote for l gives class l
    the probability a.

    There is no iteration, and classes are assumed to be equally frequent unless their shares are known. In an iteration,
    each deviation from the majority vote, and each error of the shares, would be amplified in every step, until only one
    class is left.

    Args:
        balance: (k,) shares of the classes, if known.
        known: (P,) the class of patterns from rows with a label, -1 for others.
    """
    posterior, voted = _with_known_classes(majority(patterns, k), known), by_function(patterns, k)
    number = _by_class(voted, weights[:, None], k)[:, 0, :k]
    right = np.einsum("mll->ml", _by_class(voted, posterior * weights[:, None], k)[:, :, :k])
    own = (right + ROWS * right.sum() / max(number.sum(), 1e-300)) / (number + ROWS)
    a = np.clip((own + SHARE * PRIOR) / (1 + SHARE), 1 / k, 1 - LEAST)
    coverage, shares = number / weights.sum(), np.full(k, 1 / k) if balance is None else balance
    inside = np.where(np.eye(k)[None] > 0, a[:, None, :], (1 - a[:, None, :]) / (k - 1))  # (m, y, l): P(y | votes l)
    inside = inside * np.maximum(coverage, 1e-12)[:, None, :] / shares[None, :, None]
    abstains = np.maximum(1 - coverage.sum(1), LEAST)
    return Estimate(shares, np.concatenate([inside, np.broadcast_to(abstains[:, None, None], (len(a), k, 1))], 2))


def residual_correlations(estimate: Estimate, patterns: Ints, weights: Floats) -> tuple[float, float, tuple[int, int]]:
    """Correlations between votes of different functions that the classes do not explain.

    Returns:
        The root mean square of these correlations over all pairs of votes of two functions, minus the part expected by
        chance; the correlation that is largest in magnitude; and the indices of its two functions.
    """
    k, n, m = len(estimate.balance), weights.sum(), patterns.shape[1]
    voted = by_function(patterns, k)
    own = (one_hot(one[:, None], k + 1)[:, 0] * (weights / n)[:, None] for one in voted)
    seen = np.concatenate([_by_class(voted, columns, k).swapaxes(0, 1).reshape(k + 1, -1) for columns in own])
    mean = seen.diagonal().copy()
    seen -= np.outer(mean, mean)
    by_class = np.moveaxis(estimate.tables, 1, 0).reshape(k, -1)
    expected = estimate.balance @ by_class
    told = (by_class * estimate.balance[:, None]).T @ by_class - np.outer(expected, expected)
    often = (mean * n >= FEW) & ((1 - mean) * n >= FEW)
    who = np.repeat(np.arange(m), k + 1)
    use = np.outer(often, often) & (who[:, None] != who[None, :])
    if not use.any():
        return 0.0, 0.0, (0, 0)
    spread = np.sqrt(np.maximum(mean * (1 - mean), 1e-300))
    left = np.where(use, (seen - told) / np.outer(spread, spread), 0.0)
    at = np.unravel_index(np.abs(left).argmax(), left.shape)
    size = float(np.sqrt(max((left[use] ** 2).mean() - 1 / n, 0.0)))
    return size, float(left[at]), (int(who[at[0]]), int(who[at[1]]))


def _with_known_classes(posterior: Floats, known: Ints | None) -> Floats:
    """The posterior (P, k), with probability 1 for the known class of labelled patterns."""
    if known is None:
        return posterior
    return np.asarray(np.where((known >= 0)[:, None], known[:, None] == np.arange(posterior.shape[1]), posterior))
