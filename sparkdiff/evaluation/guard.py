"""The guard: a test whether a tuned candidate's gain on the validation rows is larger than chance explains. Its input
is the ledger: sums of the gains over blocks of rows, with a column for each candidate and epoch.

K candidates after each of E epochs are all measured on the same validation rows, and the best of them is tested on
these rows. A z-score that ignores the choice finds a gain in 6 to 18% of simulated runs without one, and in up to 67%
if the columns are less alike (benchmarks/guard_size.py). White (2000), "A Reality Check for Data Snooping", compares
the best gain with the distribution of the *largest* gain over all columns, drawn with random multipliers per row. This
is that test, with rows grouped into blocks that can be treated as independent, and with changes that the benchmark
showed to be necessary:

- The multipliers are random signs, and the null hypothesis is imposed: the block sums are not centred (Cameron, Gelbach
  and Miller 2008, the wild cluster bootstrap). If the sums are symmetric under the null, this is a randomisation test,
  exact for any number of blocks and any dependence between columns. Centred gaussian multipliers are not: at a level of
  2.5% they accept up to 5% with 50 groups.
- Each column is divided by its own root sum of squares (Hansen 2005). So one noisy, bad candidate neither drowns the
  other candidates' gains, nor hides, by having the largest drawn sum most often, that there was a choice among them.
- The column that ships, one with the largest mean gain, is compared with the largest *score* of any column. Its own
  score may be smaller than that of another column, so the test keeps its level whatever the quality of the other
  columns, and whichever column is chosen among equal gains.
- Signs make the drawn distribution symmetric, but rare large losses skew the gains to the left: a sample with too few
  of the rare losses looks both good and steady. Then the score is lowered to the signed root of the empirical
  likelihood ratio (Owen 1988), which follows the skewness; it is never raised.
- A sample without any of the rare losses shows no skewness either. There are several times as many training rows, and
  they show how often a row gets worse, and by how much. So the mean square of the amounts by which rows get worse is
  taken from the training rows if it is larger there. If fewer than five training rows make up that mean, their number
  says little about the frequency of such rows, and the mean is multiplied by three (Hanley and Lippman-Hand 1983, the
  rule of three); the factor falls towards 1 if more rows make it up.

The same test with reversed signs finds sets of rows that got worse (`worsening`, for slices and reference rows; because
some sets are small, it has a stricter allowance for skewness). Inverted, the test gives the confidence interval of the
relative gain: all ratios of gain to the original's loss that it would not reject as the true ratio.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparkdiff.evaluation.units import Costs, Units


class LedgerTrial(NamedTuple):
    """One column of a ledger: a candidate after an epoch (1 or later)."""

    candidate: int
    epoch: int


@dataclass(frozen=True)
class Ledger:
    """Sums of gains over blocks of rows, for all trials (candidates after an epoch), over the rows of all processes.

    Attributes:
        gains: (C, B) per column the block sums of w * (loss of the original - loss).
        weights: (B,) block sums of w.
        trials: the candidate and epoch of each of the C columns.
        chosen: the column with the largest mean gain, the first one among equals; -1 if none gains.
    """

    gains: Tensor
    weights: Tensor
    trials: Sequence[LedgerTrial]
    chosen: int

    def measured_again(self, gains: Tensor) -> "Ledger":
        """The ledger with these block sums (B,) for the chosen column, if training measured slightly different ones, for
        example on float32 rows.
        """
        if self.chosen < 0:
            return self
        every = self.gains.clone()
        every[self.chosen] = gains
        return replace(self, gains=every)


def candidate_count(history: Sequence[Mapping[str, Any]]) -> int:
    """Number of candidates in a history with one row per epoch and candidate."""
    return len({row["candidate"] for row in history})


def diverged_candidates(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row of the history for each diverged candidate. A candidate has diverged if one of its figures is not finite
    (its row is the last such one), or if its training loss is more than twice the original's after the first epoch, and
    also after the second if there is one (its row is that of the first epoch). Steps that are too long can lead
    anywhere, so the second loss may be smaller than the first.

    The training loss of the original is known (`trainLoss` of epoch 0) for candidates that gained nothing.
    """
    before = {row["candidate"]: row["trainLoss"] for row in history if not row["epoch"]}

    def small(row: Mapping[str, Any]) -> bool:
        original = before.get(row["candidate"], math.nan)
        return not row["trainLoss"] - original > abs(original)

    recovered = {row["candidate"] for row in history if row["epoch"] == 2 and small(row)}
    lost = [row for row in history if row["epoch"] == 1 and row["candidate"] not in recovered and not small(row)]
    broken = [
        row
        for row in history
        if row["epoch"] and not (math.isfinite(row["trainLoss"]) and math.isfinite(row["validationMetric"]))
    ]
    return list({row["candidate"]: row for row in (*lost, *broken)}.values())


MIN_UNITS = 30  # smallest number of rows, groups or blocks of time for a test
FEW_GROUPS = 50
SHORT_BLOCK = 200  # rows
TIMES_CORRELATION = 10
SHRINK = 2.5  # divides the level if groups are few or blocks short
LEAST_BLOCKS = 12  # fewest blocks that remain when short neighbours are joined
TAIL = 0.025  # of the interval, on each side
CHUNK = 400  # draws at a time, and the fewest draws
MAX_DRAWS = 100_000  # a level too small for them can only be reached by Hoeffding's bound


@dataclass(frozen=True)
class Verdict:
    """The decision of the guard and its figures."""

    accepted: bool
    best: int  # column that ships if accepted, -1 if the original is best
    gain: float  # its mean gain in units of the loss, 0.0 if the original is best
    z: float  # gain / its block-wise standard error, 0.0 if the original is best; ignores the choice
    p: float  # probability of a gain like this without a true one; 1.0 if the original is best
    level: float  # after any shrinking; accepted if p is below it
    warnings: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None  # 95%, of the gain as a share of the original's loss; may be infinite
    joined: int = 1  # number of neighbouring blocks that were counted as one
    untested: str = ""  # the reason if there was no test; then p is 1.0
    against: str = ""  # the objection to a gain that these rows alone would have accepted
    missing: float = 0.0  # sum of squares of rare losses that training rows show and these rows don't


def total_gain(gains: Tensor) -> Tensor:
    """Sums over the blocks (..., B); -inf if a column cannot be tested.

    A column cannot be tested if it is not finite, or if its squares overflow or vanish.
    """
    squares = gains.square().sum(-1)
    return torch.where(squares.isfinite() & (squares > 0), gains.sum(-1), -math.inf)


def decide(
    gains: Tensor,
    weights: Tensor,
    *,
    chosen: int | None = None,
    level: float = 0.025,
    original: Tensor | None = None,
    units: Units | None = None,
    blockRows: float | None = None,
    correlationTime: float | None = None,
    dependence: float = 1.0,
    costs: tuple[Costs, Costs] | None = None,
    finalists: int = 1,
    seed: int = 0,
) -> Verdict:
    """Test whether the gain of the chosen column is more than chance. Uses no global state.

    Args:
        gains: (C, B) sums over the rows of each block of weight * (loss of the original - loss of the column). A
            column that is not finite throughout has diverged and is never chosen.
        weights: (B,) sums of the weights; blocks of weight 0 are dropped.
        chosen: the column to test; -1 if the original is best. The caller passes its own choice, because a second
            choice made here could differ if several columns gain the same. The test is valid for any choice. Default:
            the first column with the largest mean gain.
        level: a gain is accepted if its p-value is below this level; with a level of 1 or more, any positive mean gain
            is accepted.
        original: (B,) sums of weight * loss of the original, for the interval of the relative gain.
        units: the rows, groups or blocks of time that the metric counts; default: each block with weight is a row.
        blockRows: mean number of rows of a time block (only for blocks of time).
        correlationTime: correlation time of the loss differences, in rows (only for blocks of time).
        dependence: the variance of a sum over the blocks, as a multiple of that of independent blocks, at least 1.
        costs: costs (see `Costs`) of the chosen column on the held-out units, and on training units.
        finalists: the number of tests like this one, by which the p-value is multiplied (Bonferroni).
    """
    gains, weights = (x.detach().to("cpu", torch.float64) for x in (gains, weights))
    held = weights > 0
    loss = None if original is None else original.detach().to("cpu", torch.float64)[held]
    gains, weights = gains[:, held], weights[held]
    units = Units(len(weights)) if units is None else units
    if level < 1 and (units.number < MIN_UNITS or len(weights) == 0):
        return Verdict(False, -1, 0.0, 0.0, 1.0, level, untested=why_untested(units))
    warnings: tuple[str, ...] = ()
    tail, join = TAIL / finalists, 1
    if level < 1:
        shrunk, join, warnings = _caution(level, units, len(weights), blockRows, correlationTime)
        level, tail = shrunk, tail * shrunk / level
        gains, weights, loss = _join(gains, join), _join(weights, join), None if loss is None else _join(loss, join)

    totals, norm = total_gain(gains), gains.square().sum(1).sqrt()  # (C,)
    moved = norm.isfinite() & (norm > 0)
    best = chosen if chosen is not None else int(totals.argmax()) if len(totals) else -1
    missing = 0.0 if costs is None else costs[1].missing_from(costs[0])
    if best < 0 or not totals[best] > 0:
        return Verdict(False, -1, 0.0, 0.0, 1.0, level, warnings, joined=join, missing=missing)
    gain = float(totals[best] / weights.sum())
    residual, score, columns = gains[best] - gain * weights, _score(gains[best]), gains[moved] / norm[moved, None]

    wider, shown = (math.sqrt(dependence * (1 + lack / float(norm[best]) ** 2)) for lack in (missing, 0.0))
    p, alone = (min(finalists * _p_value(columns, score / x, level / finalists, seed), 1.0) for x in (wider, shown))
    rare = str(costs[1]) if costs is not None and missing and alone < level <= p else ""
    error = shown * float(residual.norm()) * math.sqrt(len(weights) / max(len(weights) - 1, 1))
    z = float(totals[best]) / max(error, 1e-12 * float(totals[best]))  # finite even if all blocks gain the same
    ratios = None if loss is None else _interval(gains[moved], gains[best], loss, tail, seed, wider)
    return Verdict(
        p < level or level >= 1, best, gain, z, p, level, warnings, ratios, join, against=rare, missing=missing
    )


def why_untested(units: Units, groupCol: str | None = None) -> str:
    """The reason why there is no test, if there are too few units; with the name of the column whose values are the units."""
    return f"{units}, {MIN_UNITS} are needed{f', but groupCol={groupCol!r} has too few values' if groupCol else ''}"


def worsening(gains: Tensor, *, level: float, joined: int = 1, dependence: float = 1.0, seed: int = 0) -> Tensor:
    """Adjusted p-values of the null hypothesis that the true gain is not negative. (S, B) -> (S,)

    Each of S sets of rows (for example slices, which may overlap) has a row of block sums of gains, like a candidate in
    `decide`, with 0 for blocks without rows of the set. The p-value of a set is the share of random signs of the blocks
    for which the largest score of any set reaches the score of this set (Westfall & Young 1993, single-step maxT). So
    the chance that any p-value of sets without a true loss lies below a level is at most that level, however the sets
    depend on each other.

    Args:
        level: the level that the p-values are compared with; it decides the number of draws.
        joined: number of neighbouring blocks that count as one, from the verdict.
        dependence: see `decide`.
    """
    losses = _join(-gains.detach().to("cpu", torch.float64), joined)
    norm = losses.square().sum(1).sqrt()
    moved = norm > 0
    scores = torch.tensor([_score(x, adjusted=True) for x in losses], dtype=torch.float64) / math.sqrt(dependence)
    columns = losses[moved] / norm[moved, None]
    draws = min(max(CHUNK, math.ceil(20 / level)), MAX_DRAWS)
    hits = torch.zeros(len(losses), dtype=torch.float64)
    for signs in _signs(losses.shape[1], draws, seed) if len(columns) else ():
        hits += ((signs @ columns.T).amax(1)[:, None] >= scores).sum(0)
    p = torch.minimum((1 + hits) / (1 + draws), len(columns) * torch.exp(-(scores.clamp_min(0) ** 2) / 2))
    return torch.where(scores > 0, p.clamp_max(1), 1.0)


def _caution(
    level: float, units: Units, blocks: int, rows: float | None, correlation: float | None
) -> tuple[float, int, tuple[str, ...]]:
    """Level to use, number of neighbouring blocks to join, and the reasons as warnings (few groups or short blocks)."""
    why, join = [], 1
    if units.kind == "groups" and units.number < FEW_GROUPS:
        why.append(f"Validation has {units}, fewer than {FEW_GROUPS}")
    if units.kind == "blocks" and rows is not None:
        if rows < SHORT_BLOCK:
            why.append(f"A time block of validation has {rows:.0f} rows, fewer than {SHORT_BLOCK}")
        if correlation is not None and rows < TIMES_CORRELATION * correlation:
            # Twice the required length: estimated from so few rows, the correlation time itself is too short.
            join = max(1, min(math.ceil(2 * TIMES_CORRELATION * correlation / rows), blocks // LEAST_BLOCKS))
            why.append(
                f"A time block of validation has {rows:.0f} rows, fewer than {TIMES_CORRELATION} times the correlation time "
                f"of the loss differences, {correlation:.1f} rows, so {join} neighbours are counted as one"
            )
    if not why:
        return level, 1, ()
    shrunk = level / SHRINK
    advice = f"the test may accept too easily, so it needs p < {shrunk:.3g} instead of {level:.3g}; use more data."
    return shrunk, join, tuple(f"{reason}: {advice}" for reason in why)


def _join(x: Tensor, count: int) -> Tensor:
    """Sums over consecutive groups of `count` entries along the last dimension; the last group may be smaller."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % count)).unflatten(-1, (-1, count)).sum(-1)


def _likelihood_root(x: Tensor) -> float:
    """Signed root of the empirical likelihood ratio statistic for mean 0, for x (B,) with a positive sum; inf if no
    entry is < 0.
    """
    high = float(-x.min())
    if high <= 0:
        return math.inf
    # The multiplier t solves sum(x / (1 + t x)) = 0, which falls from t = 0 to the pole at t = 1: Newton's method, with
    # bisection in place of steps that leave the bracket.
    x = x / high
    low, high, t = 0.0, 1.0, 0.0
    for _ in range(60):
        share = x / (1 + t * x)
        slope, fall = float(share.sum()), float(share.square().sum())
        low, high = (t, high) if slope > 0 else (low, t)
        step = slope / fall
        if slope * step < 1e-15:  # twice the distance to the maximum of the likelihood
            break
        t = t + step if low < t + step < high else (low + high) / 2
    return math.sqrt(max(2 * float(torch.log1p(t * x).sum()), 0.0))


def _score(x: Tensor, *, adjusted: bool = False) -> float:
    """Sum of the blocks (B,) in standard errors under the null, at least 0; lowered if x is skewed.

    Args:
        adjusted: for a small set of rows out of many, whose score matters far out in its tail, where the plain
            likelihood root is still too large: the root is computed with one more block, -log(n) times the mean of the
            others (Chen, Variyath and Abraham 2008, who advise log(n) / 2 for intervals of 95%). With fewer than 30
            blocks the score would be too small to detect any loss, so no block is added.
    """
    total = float(x.sum())
    if not total > 0:
        return 0.0
    plain = total / float(x.norm())
    if adjusted and (n := int((x != 0).sum())) >= MIN_UNITS:
        x = torch.cat([x, x.new_tensor([-math.log(n) * total / n])])
    return min(plain, _likelihood_root(x))


def _signs(blocks: int, draws: int, seed: int) -> Iterator[Tensor]:
    """Yield random signs (n, blocks) in chunks; a smaller number of draws gives the beginning of the same sequence."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, draws, CHUNK):
        shape = min(CHUNK, draws - first), blocks
        yield torch.randint(0, 2, shape, generator=generator, dtype=torch.float64).mul_(2).sub_(1)


def _p_value(columns: Tensor, score: float, level: float, seed: int) -> float:
    """Share of random signs of the blocks for which a column of unit norm (C, B) sums to at least the score."""
    # Hoeffding's inequality over all columns: certain, and sharp enough to save fleets (tiny levels) millions of draws.
    bound = len(columns) * math.exp(-score * score / 2)
    draws = CHUNK if bound < level else min(max(CHUNK, math.ceil(20 / level)), MAX_DRAWS)
    hits = drawn = 0
    for signs in _signs(columns.shape[1], draws, seed):
        hits += int(((signs @ columns.T).amax(1) >= score).sum())
        drawn += len(signs)
        if 1 + hits >= level * (1 + draws):  # no further draw can change the decision (Besag and Clifford 1991)
            break
    return min((1 + hits) / (1 + drawn), bound)


def _interval(
    gains: Tensor, best: Tensor, loss: Tensor, tail: float, seed: int, wider: float = 1.0
) -> tuple[float, float] | None:
    """Bounds of the best column's true gain divided by the original's true loss, each missed with a probability of at
    most `tail`.

    Fieller (1954): a ratio r is the true one if gain - r * loss has mean zero, which needs no division by a noisy
    mean. The hypothesis is tested for all columns (C, B) as `decide` tests r = 0, with the same signs. So the choice
    of the best column is taken into account, and the lower bound is above 0 exactly if p < tail. None if the
    original's loss is not finite or sums to 0. Scores are divided by `wider`, as in `decide`.
    """
    if not bool(loss.isfinite().all()) or not (total := abs(float(loss.sum()))) > 0:
        return None
    loss = loss * math.copysign(1.0, float(loss.sum()))
    ratio, draws = float(best.sum()) / total, max(CHUNK, math.ceil(20 / tail))
    allowed = math.ceil(tail * (1 + draws)) - 2  # most hits that `_p_value` would accept
    certain = math.sqrt(2 * math.log(len(gains) / tail))  # Hoeffding's bound, as in `_p_value`
    both = torch.cat([gains, loss[None]])
    drawn = torch.cat([signs @ both.T for signs in _signs(len(loss), draws, seed)])
    squares, cross, own = gains.square().sum(1), gains @ loss, float(loss @ loss)

    def excess(r: float, side: int) -> float:
        """Score at the ratio r minus the largest score that is not rejected there; > 0 if r is rejected."""
        norm = (squares - 2 * r * cross + r * r * own).clamp_min(1e-300).sqrt()
        largest = ((drawn[:, :-1] - r * drawn[:, -1:]) / norm).amax(1)
        return _score(side * (best - r * loss)) / wider - min(float(largest.topk(allowed + 1).values[-1]), certain)

    def bound(outside: float, side: int) -> float:
        """End of the interval on one side: the last ratio, going from the estimate to `outside` and beyond, that is not
        rejected.
        """
        inside, below = ratio, excess(ratio, side)
        for _ in range(60):
            if (above := excess(outside, side)) > 0:
                break
            inside, below, outside = outside, above, outside - side * 2 * max(abs(outside - ratio), ratio)
        else:
            return -side * math.inf
        exact, last = abs(outside - inside) / 2**14, 0
        for _ in range(60):  # false position, with the value at the end that stays halved (the Illinois algorithm)
            if abs(outside - inside) <= exact:
                break
            r = outside - above * (outside - inside) / (above - below)
            if (value := excess(r, side)) > 0:
                outside, above, below, last = r, value, below / 2 if last > 0 else below, 1
            else:
                inside, below, above, last = r, value, above / 2 if last < 0 else above, -1
        return inside

    return bound(0.0, 1), bound(2 * ratio, -1)


def correlation_time(differences: Tensor) -> float:
    """Integrated autocorrelation time, in rows, of per-row loss differences (n,) in the order of time; at least 1.

    1 + 2 * the sum of the autocorrelations, truncated by Geyer's (1992) initial monotone sequence: the autocorrelations
    are added in neighbouring pairs, each limited to the previous pair's sum, until a pair's sum is not positive. A
    shorter window would miss a small but slow component.
    """
    x = differences.detach().to("cpu", torch.float64)
    n = len(x)
    x = x - x.mean() if n else x
    if n < 4 or not float(x.norm()) > 0:
        return 1.0
    size = 1 << (2 * n - 1).bit_length()  # padded, so that the end does not wrap around to the start
    covariance = torch.fft.irfft(torch.fft.rfft(x, size).abs().square(), size)[: n - n % 2]
    pairs = (covariance / covariance[0]).reshape(-1, 2).sum(1)
    positive = (pairs > 0).cumprod(0)
    return max(1.0, 2 * float((pairs.cummin(0).values * positive).sum()) - 1)
