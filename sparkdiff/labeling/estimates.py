"""How often functions are right, from their votes alone.

The model: given the class, functions vote independently, and each has its own probability of each vote in each class (abstaining
is one of the votes). It is identified by three functions or more that are better than chance on average.

A pattern is a row of votes (m,) int64, -1 where a function abstains; P patterns have weights (P,), how many rows show them.
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
"""Rows on which a vote is cast, and on which it is not, before its correlations with others count."""
LEAST = 1e-4
"""Share of the rows with a vote that may be wrong, at least: a function that was never wrong on some rows may be so on others."""
LOWEST = np.log(1e-12)
"""Logarithm of the least probability that EM tries."""
NEEDED = 3
"""Functions that `triplets` needs, whose covariances tell how good they are."""
PRIOR, SHARE = 0.8, 0.25
"""Of `precision`: the accuracy that votes are taken to have before any is counted, and its weight as a share of their rows."""
ROWS = 10.0
"""Of `precision`: rows of the mean accuracy of all votes that each vote is taken to have before it is counted."""
SMOOTHING = 1.0
"""Rows (of weight 1) that each distribution of votes has seen before EM begins. The classes have seen `LEAST` rows each: one
would pull the share of a rare class up where votes tell little."""
FEWEST, WORK = 60, 500_000_000
"""Of EM: steps from each start that are taken in any case, and votes times classes that are read by more than these."""
STEPS, RISE = 300, 0.02
"""EM ends where so many steps raise the logarithm of the likelihood by less than this, a hundredth of what chance explains
(`WITHIN` in estimator.py): votes that tell hardly anything make it so flat that the maximum is thousands of steps away."""


class Undetermined(ValueError):
    """The votes do not tell how good the functions are."""


@dataclass(frozen=True)
class Estimate:
    """
    Attributes:
        balance: (k,) share of each class.
        tables: (m, k, k + 1) probability of each vote in each class; the last one is that of abstaining. Of `precision`
            this one is the same in each class, so they don't add up to 1.
        converged: whether EM came to a maximum.
        likelihood: logarithm of that of the votes, of EM.
    """

    balance: Floats
    tables: Floats
    converged: bool = True
    likelihood: float = np.nan

    @property
    def above_chance(self) -> float:
        """Sum over all votes of their probability in their own class, less their mean over the classes."""
        votes = self.tables[:, :, : len(self.balance)]
        return float(np.einsum("mll->", votes) - votes.mean(1).sum())

    @property
    def accuracies(self) -> Floats:
        """(m,) share of its votes that are right."""
        k = len(self.balance)
        right = np.einsum("y,myy->m", self.balance, self.tables[:, :, :k])
        return np.asarray(right / np.einsum("y,myl->m", self.balance, self.tables[:, :, :k]))

    def joint(self, voted: Ints) -> Floats:
        """(P, k) logarithm of the probability of each class and the votes (m, P), those that are missing too."""
        by_vote = np.log(self.tables).transpose(0, 2, 1).copy()
        return np.asarray(np.log(self.balance) + sum(table[votes] for table, votes in zip(by_vote, voted, strict=True)))

    def posterior(self, patterns: Ints) -> Floats:
        """(P, k) probability of each class given the votes."""
        return _normalised(self.joint(by_function(patterns, len(self.balance))))[0]


def _normalised(joint: Floats) -> tuple[Floats, Floats]:
    """The probability (P, k) of each class given the votes, and the logarithm (P,) of that of the votes."""
    most = joint.max(1, keepdims=True)
    shares = np.exp(joint - most)
    total = shares.sum(1, keepdims=True)
    return np.asarray(shares / total), np.asarray(most + np.log(total))[:, 0]


def by_function(patterns: Ints, k: int) -> Ints:
    """(m, P) the votes of each function, k where it abstains."""
    return np.where(patterns == ABSTAINS, k, patterns).T.copy()


def majority(patterns: Ints, k: int) -> Floats:
    """(P, k) the class with most votes; several with as many share it, and without votes all do."""
    counts = counted(patterns, k)
    most = (counts == counts.max(1, keepdims=True)).astype(np.float64)
    return np.asarray(most / most.sum(1, keepdims=True))


def counted(patterns: Ints, k: int) -> Floats:
    """(P, k) how many functions vote for each class."""
    return np.stack([(patterns == y).sum(1) for y in range(k)], 1).astype(np.float64)


def one_hot(patterns: Ints, k: int) -> Floats:
    """(P, m, k) what was voted; all 0 where a function abstains."""
    return (patterns[:, :, None] == np.arange(k)).astype(np.float64)


def triplets(patterns: Ints, weights: Floats, balance: Floats | None = None) -> Estimate:
    """The closed form from triplets of functions, for two classes.

    A vote counts as 1 for class 1 and -1 for class 0. With q = P(Y = 1), two functions' votes have the covariance
    q (1 - q) d_i d_j, where d is the difference of their means in both classes, so three functions' covariances give each d
    up to a sign (Fu et al. 2020, "Fast and Three-rious", there with uncentred moments, which functions that vote one class only
    do not fit). The third central moment q (1 - q) (1 - 2 q) d_i d_j d_l gives q. The probabilities of each vote follow by
    least squares from its covariances with the other functions.

    Args:
        balance: (2,) shares of the classes, if they are known. Estimated ones are at least one row's.

    Raises:
        Undetermined: fewer than three functions have a difference: the others' covariances are 0, or their signs contradict each
            other.
    """
    n, w = weights.sum(), weights / weights.sum()
    votes = [(patterns == y).astype(np.float64) for y in (0, 1)]
    mean = np.stack([w @ v for v in votes], 1)  # (m, 2)
    signed = votes[1] - votes[0]
    signed -= w @ signed
    covariance = (signed * w[:, None]).T @ signed
    d = _signed(_magnitudes(covariance), covariance)
    if (d != 0).sum() < NEEDED:
        raise Undetermined(f"only {(d != 0).sum()} of {len(d)} functions have covariances that tell how good they are")
    q = float(np.clip(_share(signed, w, d), 1 / n, 1 - 1 / n) if balance is None else balance[1])
    # As `signed` is centred, the covariance with a vote needs no mean of it.
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
    """(m,) |d| sqrt(q (1 - q)) of each function: the median over its triplets, weighted by the covariance they divide by."""
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
    """The magnitudes with the signs that the covariances ask for, so that the functions are better than chance on average."""
    apart = covariance - np.diag(np.diag(covariance))
    leading = np.linalg.eigh(apart)[1][:, -1]
    found = np.where(leading < 0, -magnitudes, magnitudes)
    return np.asarray(-found if found.sum() < 0 else found)


def _share(signed: Floats, w: Floats, d: Floats) -> float:
    """P(Y = 1), by least squares over the third central moments of all triplets of functions."""
    third = np.stack([(signed * (w * one)[:, None]).T @ signed for one in signed.T])
    i, j, l = np.array([*combinations(range(len(d)), 3)]).T  # noqa: E741
    product = d[i] * d[j] * d[l]
    skew = (third[i, j, l] * product).sum() / max((product**2).sum(), 1e-300)  # (1 - 2 q) / sqrt(q (1 - q))
    return float((1 - skew / np.sqrt(4 + skew**2)) / 2)


def em(
    patterns: Ints, weights: Floats, k: int, *, balance: Floats | None = None, known: Ints | None = None,
    start: Estimate | None = None, maxIter: int = 20_000, tol: float = 1e-6,
) -> Estimate:  # fmt: skip
    """Maximum likelihood by expectation-maximisation (Dawid and Skene 1979) from three starts: the majority vote, `precision`,
    and for two classes `triplets`.

    The largest of the maxima counts; without labels the largest of those where functions are better than chance, because
    exchanged classes are as likely.

    Args:
        known: (P,) the class of rows with a label, -1 of others.
        start: the only start, if given.
        maxIter: largest number of steps from each start; very many patterns take fewer, and so does a flat likelihood.
        tol: largest estimated distance of a probability from its value at the maximum.
    """

    voted = by_function(patterns, k)
    possible = _told(np.ones((len(patterns), k)), known) > 0

    def fit(posterior: Floats) -> Estimate:
        counts = _by_class(voted, posterior * weights[:, None], k) + SMOOTHING / (k + 1)
        shares = weights @ posterior + LEAST if balance is None else balance
        return Estimate(np.asarray(shares / shares.sum()), counts / counts.sum(2, keepdims=True))

    def step(estimate: Estimate) -> tuple[Estimate, float]:
        posterior, total = _normalised(np.where(possible, estimate.joint(voted), -np.inf))
        prior = SMOOTHING / (k + 1) * np.log(estimate.tables).sum() + LEAST * np.log(estimate.balance).sum()
        return fit(posterior), float(weights @ total + prior)

    starts = [majority(patterns, k), precision(patterns, weights, k, balance=balance, known=known).posterior(patterns)]
    if k == 2:
        with suppress(Undetermined):
            starts.append(triplets(patterns, weights, balance).posterior(patterns))
    if start is not None:
        starts = [start.posterior(patterns)]
    most = min(maxIter, max(FEWEST, WORK // (patterns.size * k)))
    found = [_climb(fit(_told(one, known)), step, most, tol) for one in starts]
    if known is None or (known < 0).all():
        found = [one for one in found if one.above_chance > 0] or found
    return max(found, key=lambda one: one.likelihood)


def _climb(
    estimate: Estimate, step: Callable[[Estimate], tuple[Estimate, float]], maxIter: int, tol: float
) -> Estimate:
    """Take steps to a maximum of the likelihood.

    Steps of EM shrink by a constant factor, which is near 1 where votes tell little. Two of them give the factor, and with it
    the point where they end (SQUAREM, Varadhan and Roland 2008), which is taken unless it is less likely.

    Args:
        step: the next estimate, and the logarithm of the likelihood of the given one.
    """
    distance, rising = np.inf, list[float]()
    for _ in range(0, maxIter, 3):
        first, _ = step(estimate)
        second, least = step(first)
        end, distance = _extrapolated(estimate, first, second)
        further, likelihood = step(end)
        estimate = further if likelihood >= least else second
        rising.append(least)
        if distance < tol or (len(rising) > STEPS // 3 and least < rising[-1 - STEPS // 3] + RISE):
            break
    return replace(estimate, likelihood=step(estimate)[1], converged=bool(distance < tol))


def _extrapolated(start: Estimate, first: Estimate, second: Estimate) -> tuple[Estimate, float]:
    """The estimate where steps from `start` end, and its largest difference from `start` in a probability."""
    one, two, three = (np.log(np.concatenate([e.balance, e.tables.ravel()])) for e in (start, first, second))
    move, bend = two - one, three - 2 * two + one
    length = max(float(np.linalg.norm(move)) / max(float(np.linalg.norm(bend)), 1e-300), 1.0)
    end = np.exp(np.clip(one + 2 * length * move + length**2 * bend, LOWEST, 0.0))
    shares, tables = end[: len(start.balance)], end[len(start.balance) :].reshape(start.tables.shape)
    found = Estimate(shares / shares.sum(), tables / tables.sum(2, keepdims=True))
    return found, float(length * np.abs(np.exp(two) - np.exp(one)).max())


def _by_class(voted: Ints, columns: Floats, k: int) -> Floats:
    """(m, c, k + 1) sums of columns (P, c) over the rows with each vote (m, P) of each function; the last one abstains."""
    return np.stack([[np.bincount(votes, one, k + 1) for one in columns.T] for votes in voted])


def precision(
    patterns: Ints, weights: Floats, k: int, *, balance: Floats | None = None, known: Ints | None = None
) -> Estimate:
    """How often each vote of each function agrees with the majority vote, and nothing from abstaining.

    For few rows, and for functions that do not vote independently: a full model of their votes then explains what they have in
    common by its classes, which may be topics rather than the classes that are meant. Here a vote l of a function has one number,
    a = P(Y = l | it votes l), between 1 / k and 1. Votes on few rows are taken for as good as all are on average, so that the
    majority decides where little is known; and all are taken for less good than they look, to the same degree. With n votes on a
    row, P(y | votes) is proportional to P(y) ** (1 - n) times the product of P(y | vote): a single vote counts as its a.
    Nothing is iterated, and the classes are taken for equally frequent unless their shares are known: each step away from the
    majority vote, and each error of the shares, counts again in the next one, and ends with one class only.

    Args:
        known: (P,) the class of rows with a label, -1 of others.
    """
    posterior, voted = _told(majority(patterns, k), known), by_function(patterns, k)
    number = _by_class(voted, weights[:, None], k)[:, 0, :k]
    right = np.einsum("mll->ml", _by_class(voted, posterior * weights[:, None], k)[:, :, :k])
    own = (right + ROWS * right.sum() / max(number.sum(), 1e-300)) / (number + ROWS)
    a = np.clip((own + SHARE * PRIOR) / (1 + SHARE), 1 / k, 1 - LEAST)
    coverage, shares = number / weights.sum(), np.full(k, 1 / k) if balance is None else balance
    inside = np.where(np.eye(k)[None] > 0, a[:, None, :], (1 - a[:, None, :]) / (k - 1))  # (m, y, l): P(y | votes l)
    inside = inside * np.maximum(coverage, 1e-12)[:, None, :] / shares[None, :, None]
    abstains = np.maximum(1 - coverage.sum(1), LEAST)
    return Estimate(shares, np.concatenate([inside, np.broadcast_to(abstains[:, None, None], (len(a), k, 1))], 2))


def unexplained(estimate: Estimate, patterns: Ints, weights: Floats) -> tuple[float, float, tuple[int, int]]:
    """How far the votes of two functions are correlated beyond what the classes explain.

    Returns:
        the root mean square of these correlations, over all pairs of votes of two functions, less what chance alone gives; the
        largest; and the functions of this one.
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


def _told(posterior: Floats, known: Ints | None) -> Floats:
    """The posterior, certain where the class is known."""
    if known is None:
        return posterior
    return np.asarray(np.where((known >= 0)[:, None], known[:, None] == np.arange(posterior.shape[1]), posterior))
