"""How often does the proof accept a finalist that is worth no more than its rival, and are planted faults caught?

Simulated on tensors: one fold explores, where the best of 5, 20 or 50 arms become finalists; each of the other folds measures
the rival and the finalists, made anew from all other rows; `proof.decision.decide_gain` decides at 2.5%, and a draw counts as
accepted if any of the four finalists is. In the cells without a gain the arms are at the boundary, worth as much as the rival
or a little less. The faults are those that make a proof worthless: rows in training that prove, structure chosen by the labels
of all rows, a stage fitted with them. Beside these stand the same test without the factor for the folds' dependence or without
the quarter for four finalists, true gains, the test of all epochs and candidates on held-out rows where thresholds of trees
train, and three ways to choose an arm in tables of 300 and 700 rows, where only the best arm is tested (as one of four). Fails
where a share is above 2.5% and two standard errors, or a fault is not caught. About half an hour of one core. Each cell is
written to --cells as soon as it is measured, and isn't run again.

    python benchmarks/proof_size.py --runs 1000 --cells proof_size.jsonl --out proof_size.json
"""

import functools
import math
import resource
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from common import append_lines, exit_code, markdown, parse, parser, read_lines, write
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS, TIME_BLOCKS
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.guard import Ledger
from sparkdiff.evaluation.paired_rows import PairedRows, decide_by_rows, pair
from sparkdiff.evaluation.units import Kind
from sparkdiff.objectives.metric import Metric
from sparkdiff.proof import decision
from sparkdiff.proof.decision import FINALISTS, FoldComparison, FoldSums, dependence

F64 = torch.float64
LEVEL = 0.025
FOLDS = 5
ARMS = (5, 20, 50)
OTHERS = 2  # finalists beside the best arm and the plain refit
HOPELESS = 1.75
"""A score that no test accepts: of random signs, 4% sum to more, and the loosest test wants 2.5%."""
OTHER_ROWS = 200_000
SHIPPED = 9 / 200
"""The largest share in which anything may ship against an original that was fitted on OTHER_ROWS."""

Draw = Callable[[torch.Generator, int], dict[str, dict[str, float]]]
"""One draw: for each way to choose, what was found."""


# The test of a finalist -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of a draw.

    Attributes:
        fold: (n,) 0 explores, 1 to F prove, -1 only trains.
        train: (1 + F, n) bool, the rows that the models of a fold are made from.
        block: (n,) the guard's block.
        unit: (n,) group or block of time; None where each row decides by itself.
        factor: of the variance; None: it is estimated from the folds.
    """

    fold: Tensor
    train: Tensor
    block: Tensor
    kind: Kind = "rows"
    unit: Tensor | None = None
    factor: float | None = None

    @staticmethod
    def dealt(unit: Tensor, kind: Kind = "rows") -> "Rows":
        """Rows in FOLDS folds, by their unit (n,): the number of the row or of the group."""
        block = unit % MAX_BLOCKS
        fold = block % FOLDS
        train = fold != torch.arange(FOLDS)[:, None]
        return Rows(fold, train, block, kind, unit if kind == "groups" else None)

    @staticmethod
    def in_time(n: int) -> "Rows":
        """Rows in the order of time: of the last 40%, four stretches, the first explores and the others prove."""
        at, stretch = torch.arange(n), n // 10
        fold = ((at - (n - 4 * stretch)) // stretch).clamp_min(-1)
        train = torch.stack([at < n - (4 - k) * stretch for k in range(4)])
        block = ((at - (n - 3 * stretch)) * TIME_BLOCKS // (3 * stretch)).clamp_min(0)
        return Rows(fold, train, block, "blocks", block, 2.0)


@dataclass(frozen=True)
class Outcome:
    """The decisions about one finalist.

    Attributes:
        accepted: by the factor, as one of four.
        alone: by the factor, as if it were the only one.
        independent: as if it were the only one, and the folds independent.
        factor: for the folds' dependence.
    """

    accepted: bool
    alone: bool
    independent: bool
    factor: float


LOSS = Metric("loss", rows=lambda loss, _y, _w: loss)


def paired(rows: Rows, which: Tensor, one: Tensor, other: Tensor) -> PairedRows:
    """The losses (n,) of two pipelines on some of the rows."""
    label = torch.zeros(int(which.sum()), dtype=F64)
    unit = None if rows.unit is None else rows.unit[which]
    at = which.nonzero()[:, 0].double() if rows.kind == "blocks" else None
    return pair(
        LOSS, (one[which], other[which]), (label, label), torch.ones_like(label), rows.block[which], unit, rows.kind, at
    )


def tested(rows: Rows, rival: Tensor, finalist: Tensor, seed: int) -> Outcome:
    """Decide about a finalist.

    Args:
        rival, finalist: (F, n) the losses of the models of each fold that proves, on all rows.
    """
    own = rows.fold == torch.arange(1, len(rival) + 1)[:, None]
    gains = rival - finalist

    def sums(x: Tensor) -> Tensor:
        return torch.zeros(len(x), MAX_BLOCKS, dtype=F64).index_add(1, rows.block, x.double())

    held, elsewhere = sums(gains * own), sums(gains * ~own)
    factor = rows.factor
    if factor is None:
        factor = dependence([FoldSums(*each) for each in zip(held, sums(own), elsewhere, strict=True)])
    total, norm = float(held.sum()), float(held.sum(0).norm())
    if not total > HOPELESS * norm:
        return Outcome(False, False, False, factor)
    folds = [
        FoldComparison(
            paired(rows, own[k], rival[k], finalist[k]),
            paired(rows, rows.train[k + 1], rival[k], finalist[k]).costs(),
            None if rows.kind == "blocks" else elsewhere[k],
        )
        for k in range(len(rival))
    ]
    found: list[bool] = []
    for finalists, known in ((1, 1.0), (1, rows.factor), (FINALISTS, rows.factor)):
        how: dict[str, Any] = {"level": LEVEL, "factor": known, "finalists": finalists, "seed": seed}
        found.append(all(found) and decision.decide_gain(folds, **how).accepted)
    return Outcome(found[2], found[1], found[0], factor)


class Sample(Protocol):
    """A table that was drawn, with the pipelines that are made from it.

    Attributes:
        rival: (1 + F, n) the losses of the rival that is made for each fold.
        original: (n,) the losses of the fitted original, which the plain refit meets; None where there is none.
        refit: (1 + F, n) the losses of the plain refit, None where it is the rival.
    """

    rows: Rows
    rival: Tensor
    original: Tensor | None
    refit: Tensor | None

    def losses(self, arms: Sequence[int], folds: slice) -> Tensor:
        """(arms, folds, n) the losses of these arms, made for these folds."""


def race(sample: Sample, arms: Sequence[int], seed: int) -> dict[str, dict[str, float]]:
    """One draw: for each number of arms, what was accepted (1.0) or not (0.0); "one arm" is the first, without a choice."""
    explores, proves = slice(0, 1), slice(1, None)
    own = sample.rows.fold == 0
    every = range(max(arms))
    gains = (sample.rival[0, own] - sample.losses(every, explores)[:, 0, own]).sum(1)
    finalists = {n: gains[:n].topk(1 + OTHERS).indices.tolist() for n in arms}
    needed = sorted({0}.union(*finalists.values()))
    made = dict(zip(needed, sample.losses(needed, proves), strict=True))
    found = {a: tested(sample.rows, sample.rival[proves], loss, seed) for a, loss in made.items()}
    refit = False
    if sample.original is not None:
        plain = (sample.rival if sample.refit is None else sample.refit)[proves]
        refit = tested(sample.rows, sample.original.expand_as(plain), plain, seed).accepted
    out: dict[str, dict[str, float]] = {
        f"{n} arms": figures(found[best[0]]) | {"accepted": float(refit or any(found[a].accepted for a in best))}
        for n, best in finalists.items()
    }
    return out | {"one arm": figures(found[0])}


def figures(outcome: Outcome) -> dict[str, float]:
    """The outcome of a finalist that is the only one that counts."""
    return {k: float(v) for k, v in vars(outcome).items()}


# Linear models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A change of a linear model: one Newton step from the rival's coefficients.

    Attributes:
        columns: that join the model.
        weights: (n,) of the rows, as of a bootstrap; None: 1.
        rate: the share of the step that is taken: the smaller, the nearer the boundary.
    """

    columns: tuple[int, ...] = ()
    weights: Tensor | None = None
    rate: float = 1.0


def mean_and_slope(margin: Tensor, binary: bool) -> tuple[Tensor, Tensor]:
    p = torch.sigmoid(margin)
    return (p, p * (1 - p)) if binary else (margin, torch.ones_like(margin))


def loss_of(margin: Tensor, y: Tensor, binary: bool) -> Tensor:
    return torch.nn.functional.softplus(margin) - y * margin if binary else (y - margin).square()


def newton(x: Tensor, y: Tensor, train: Tensor, binary: bool) -> Tensor:
    """(F, d) the coefficients of the models of x (n, d) or (F, n, d) that are made from the rows `train` (F, n)."""
    x = x.expand(len(train), *x.shape[-2:])
    out = x.new_zeros(len(train), x.shape[-1])
    for _ in range(7 if binary else 1):
        mean, slope = mean_and_slope((x @ out[..., None])[..., 0], binary)
        curvature = (x * (train * slope)[..., None]).mT @ x
        out = out + torch.linalg.solve(curvature, ((train * (y - mean))[:, None] @ x)[:, 0])
    return out


@dataclass
class Linear:
    """A linear or logistic regression on the columns that make the label, and arms beside it."""

    rows: Rows
    x: Tensor
    y: Tensor
    more: Tensor  # (n, m) columns that only arms have
    arms: Sequence[Arm]
    binary: bool = False
    fitted: Tensor | None = None  # (d,) the original's coefficients, which are the rival; None: the rival is the refit
    rival: Tensor = field(init=False)
    original: Tensor | None = field(init=False)
    refit: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        train = self.rows.train.double()
        every = self.fitted
        if every is None:
            every = newton(self.x, self.y, torch.ones_like(train[:1]), self.binary)[0]
        self.margin = newton(self.x, self.y, train, self.binary) @ self.x.T  # (1 + F, n)
        mean, slope = mean_and_slope(self.margin, self.binary)
        self.all = torch.cat([self.x, self.more], 1)
        self.curvature = (self.all.T * (train * slope)[:, None]) @ self.all
        self.residual = train * (self.y - mean)
        self.refit = loss_of(self.margin, self.y, self.binary)
        self.original = loss_of(self.x @ every, self.y, self.binary)
        self.rival = self.refit if self.fitted is None else self.original.expand_as(self.refit)

    def losses(self, arms: Sequence[int], folds: slice) -> Tensor:
        chosen, d = [self.arms[a] for a in arms], self.x.shape[1]
        part = torch.zeros(len(chosen), self.all.shape[1], dtype=F64)
        part[:, :d] = 1
        residual = self.residual[folds]
        score = (residual @ self.all).repeat(len(chosen), 1, 1)  # (arms, folds, columns)
        for i, arm in enumerate(chosen):
            part[i, [d + c for c in arm.columns]] = 1
            if arm.weights is not None:
                score[i] = (residual * arm.weights) @ self.all
        both = part[:, None, :, None] * part[:, None, None, :]
        system = self.curvature[folds] * both + torch.diag_embed(1 - part)[:, None]
        step = torch.linalg.solve(system, score * part[:, None])
        rate = torch.tensor([a.rate for a in chosen], dtype=F64)[:, None, None]
        return loss_of(self.margin[folds] + rate * (step @ self.all.T), self.y, self.binary)


def random(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=F64)


def with_intercept(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[..., :1]), x], -1)


def mixed_arms(noise: Tensor, x: Tensor, unit: Tensor, generator: torch.Generator) -> tuple[Tensor, list[Arm]]:
    """Noise columns, bootstraps and drawn splits in turn, at full, a third and a tenth of their step; and their columns.

    Args:
        noise: (n, 51) columns to take.
        x: (n, d) columns to split.
        unit: (n,) the row or group that a bootstrap draws.
    """
    number, arms, steps = int(unit.max()) + 1, [], []
    for i in range(max(ARMS)):
        rate = (1.0, 0.3, 0.1)[i // 3 % 3]
        if i % 3 == 1:
            weights = torch.empty(number, dtype=F64).exponential_(generator=generator)[unit]
            arms.append(Arm(weights=weights, rate=rate))
            continue
        if i % 3 == 2:
            column = x[:, int(torch.randint(x.shape[1], (), generator=generator))]
            at = torch.rand((), generator=generator, dtype=F64) * 0.8 + 0.1
            steps.append((column > column.quantile(at)).double())
            arms.append(Arm((noise.shape[1] + len(steps) - 1,), rate=rate))
            continue
        arms.append(Arm(tuple(range(i, min(i + 1 + i // 3 % 3, noise.shape[1]))), rate=rate))
    return torch.cat([noise, torch.stack(steps, 1)], 1), arms


def linear(n: int, g: torch.Generator) -> Sample:
    x = random(n, 10, generator=g)
    truth = 0.7 * random(10, generator=g) / math.sqrt(10)
    y = (torch.rand(n, generator=g, dtype=F64) < torch.sigmoid(x @ truth)).double()
    more, arms = mixed_arms(random(n, 51, generator=g), x, torch.arange(n), g)
    return Linear(Rows.dealt(torch.arange(n)), with_intercept(x), y, more, arms, binary=True)


def small_steps(n: int, g: torch.Generator) -> Sample:
    """All arms at the boundary: a tenth of the step that a noise column would take."""
    x = random(n, 10, generator=g)
    y = x @ random(10, generator=g) + random(n, generator=g)
    arms = [Arm((i,), rate=0.1) for i in range(max(ARMS))]
    return Linear(Rows.dealt(torch.arange(n)), with_intercept(x), y, random(n, max(ARMS), generator=g), arms)


def groups(n: int, g: torch.Generator) -> Sample:
    """100 or 200 groups with a shared effect; half of the columns are the same for all rows of a group."""
    number = 100 if n < 4000 else 200
    unit = torch.arange(n) % number
    x = torch.cat([random(n, 5, generator=g), random(number, 5, generator=g)[unit]], 1)
    y = x @ random(10, generator=g) + random(number, generator=g)[unit] + random(n, generator=g)
    noise = random(number, 51, generator=g)[unit]
    noise[:, ::2] = random(n, 26, generator=g)
    more, arms = mixed_arms(noise, x, unit, g)
    return Linear(Rows.dealt(unit, "groups"), with_intercept(x), y, more, arms)


def autoregressive(x: Tensor, coefficient: float) -> Tensor:
    """(n, k) series of noise x whose every value keeps this share of the one before; variance about 1."""
    step, share = 1, coefficient
    x = x * math.sqrt(1 - coefficient**2)
    while step < len(x) and share > 1e-9:  # 1 / (1 - cB) = (1 + cB)(1 + c²B²)(1 + c⁴B⁴)...
        x = torch.cat([x[:step], x[step:] + share * x[:-step]])
        step, share = 2 * step, share**2
    return x


def in_time(n: int, g: torch.Generator) -> Sample:
    """Columns and noise that stay, by an autocorrelation of 0.8."""
    series = autoregressive(random(n, 62, generator=g), 0.8)
    x, noise = series[:, :10], series[:, 10:61]
    y = x @ random(10, generator=g) + series[:, 61]
    more, arms = mixed_arms(noise, x, torch.arange(n), g)
    return Linear(Rows.in_time(n), with_intercept(x), y, more, arms)


def others(columns: int, n: int, g: torch.Generator) -> Sample:
    """The original was fitted on OTHER_ROWS and is the rival; the refit and arms beside it are finalists."""
    x, truth = with_intercept(random(n, columns, generator=g)), random(columns + 1, generator=g)
    y = x @ truth + random(n, generator=g)
    fitted = truth + random(columns + 1, generator=g) / math.sqrt(OTHER_ROWS)
    more, arms = mixed_arms(random(n, 51, generator=g), x[:, 1:], torch.arange(n), g)
    return Linear(Rows.dealt(torch.arange(n)), x, y, more, arms, fitted=fitted)


# Small tables -----------------------------------------------------------------------------------------------------------

SMALL_ARMS, SMALL_GAIN = 50, 2.0  # the gain in standard errors on a fifth of the rows
KINDS = 5
"""Arms of the engine, as search and growth are, each with as many candidates."""


def chosen_arms(gains: Tensor, rows: Rows) -> dict[str, list[list[int]]]:
    """The finalists, chosen in four ways: for each way and finalist, the number of the arm in each of the folds that prove.

    Args:
        gains: (arms, FOLDS, n) the gains of each fold's models on all rows; only those on the fold's own rows count.
    """
    each = torch.stack([gains[:, k, rows.fold == k].sum(1) for k in range(FOLDS)], 1)  # (arms, FOLDS)
    every, kinds = each.sum(1), torch.arange(len(each)) % KINDS
    firsts = [int(each[:, 0].where(kinds == kind, -math.inf).argmax()) for kind in range(KINDS)]
    first = sorted(firsts, key=lambda arm: -float(each[arm, 0]))[: FINALISTS - 1]  # beside the plain refit
    return {
        "by the first fold": [[int(each[:, 0].argmax())] * (FOLDS - 1)],
        "by all folds": [[int(every.argmax())] * (FOLDS - 1)],
        "by all other folds": [[int((every - each[:, k]).argmax()) for k in range(1, FOLDS)]],
        "the best of three kinds": [[arm] * (FOLDS - 1) for arm in sorted(first, key=lambda arm: -float(every[arm]))],
    }


def first_accepted(outcomes: Sequence[Outcome]) -> tuple[int, dict[str, float]]:
    """The number of the finalist that ships, the first one where none is accepted, and whether any is accepted in each way."""
    number = next((i for i, outcome in enumerate(outcomes) if outcome.accepted), 0)
    every = [figures(outcome) for outcome in outcomes]
    return number, {k: v if k == "factor" else max(f[k] for f in every) for k, v in every[number].items()}


def choose_in_small(make: Callable[[int, torch.Generator], Sample], n: int) -> Draw:
    """Tables of n rows without a gain, on which some of SMALL_ARMS are chosen in four ways and tested on folds 2 to FOLDS."""

    def draw(generator: torch.Generator, seed: int) -> dict[str, dict[str, float]]:
        sample = make(n, generator)
        losses = sample.losses(range(SMALL_ARMS), slice(None))
        found = {}
        for way, finalists in chosen_arms(sample.rival - losses, sample.rows).items():
            each = [torch.stack([losses[a, k] for k, a in enumerate(arms, 1)]) for arms in finalists]
            _, found[way] = first_accepted([tested(sample.rows, sample.rival[1:], loss, seed) for loss in each])
        return found

    return draw


# Trees ------------------------------------------------------------------------------------------------------------------

COLUMNS, CUTS, ROUNDS = 8, 7, 10
RATE = 0.02
LEAST_ROWS = 5  # of a leaf


def splits_of(x: Tensor) -> Tensor:
    """(n, COLUMNS * CUTS) whether a row goes right at each of the cuts, quantiles of each column."""
    cuts = x.quantile(torch.arange(1, CUTS + 1, dtype=x.dtype) / (CUTS + 1), dim=0)
    return (x[:, :, None] > cuts.T).flatten(1).float()


def best_split(right: Tensor, right_rows: Tensor, total: Tensor, rows: Tensor) -> Tensor:
    """(J,) the split with the largest gain, of sums of residuals and numbers of rows on its right (T, J), and of all (J,)."""
    left_rows = rows - right_rows
    gain = right.square() / right_rows.clamp_min(1) + (total - right).square() / left_rows.clamp_min(1)
    return gain.masked_fill(torch.minimum(right_rows, left_rows) < LEAST_ROWS, -1.0).argmax(0)


def boosted(splits: Tensor, start: Tensor, y: Tensor, train: Tensor, bags: Tensor, rate: float) -> Iterator[Tensor]:
    """The margins (n, J) of J fits after each round of boosting by trees of four leaves, on squared errors.

    Args:
        start: (n, J) the first margins.
        train: (n, J) 1 for the rows of a fit.
        bags: (rounds, n, J) 1 for the rows of a round.
    """
    margin, transposed = start, splits.T.contiguous()
    for bag in bags:
        weight = train * bag
        residual = weight * (y[:, None] - margin)
        right, right_rows = transposed @ residual, transposed @ weight
        total, rows = residual.sum(0), weight.sum(0)
        goes = transposed[best_split(right, right_rows, total, rows)].T
        above, above_rows = transposed @ (residual * goes), transposed @ (weight * goes)
        sides = (
            (above, above_rows, (residual * goes).sum(0), (weight * goes).sum(0)),
            (right - above, right_rows - above_rows, (residual * (1 - goes)).sum(0), (weight * (1 - goes)).sum(0)),
        )
        values = []
        for sums, counts, all_sums, all_counts in sides:
            k = best_split(sums, counts, all_sums, all_counts)[None]
            s, c = sums.gather(0, k)[0], counts.gather(0, k)[0]
            high, low = s / (c + 1), (all_sums - s) / (all_counts - c + 1)
            values.append(low + (high - low) * transposed[k[0]].T)
        margin = margin + rate * (goes * values[0] + (1 - goes) * values[1])
        yield margin


def bag(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) < 0.7).float()


class Cuts:
    """The rival knows the tree that makes the label, and learns its leaves; arms go on from it, by trees that fit noise.

    Arms are cuts of five boosted fits, of other seeds, after 5, 10, 1, 2, ... rounds.
    """

    original: Tensor | None = None
    refit: Tensor | None = None
    fits = 5
    order = (5, 10, 1, 2, 3, 4, 6, 7, 8, 9)

    def __init__(self, n: int, g: torch.Generator):
        x = torch.randn((n, COLUMNS), generator=g)
        self.rows = Rows.dealt(torch.arange(n))
        leaf = ((x[:, :3] > 0) * torch.tensor([1, 2, 4])).sum(1)
        self.y = torch.randn(8, generator=g)[leaf] + torch.randn(n, generator=g)
        train, member = self.rows.train.float(), torch.nn.functional.one_hot(leaf, 8).float()
        means = ((train * self.y) @ member) / (train @ member)  # (1 + F, leaves)
        start = means[:, leaf].T
        self.rival = (self.y - start.T).square().double()
        bags = bag((ROUNDS, n, 1, self.fits), g).expand(-1, -1, FOLDS, -1).flatten(2)
        wide = (t[:, :, None].expand(-1, -1, self.fits).flatten(1) for t in (start, train.T))
        first, own = wide
        margins = torch.stack([*boosted(splits_of(x), first, self.y, own, bags, RATE)])
        self.margins = margins.unflatten(2, (FOLDS, self.fits)).permute(3, 0, 2, 1)  # (fits, rounds, folds, n)

    def losses(self, arms: Sequence[int], folds: slice) -> Tensor:
        at = [(a % self.fits, self.order[a // self.fits] - 1) for a in arms]
        return torch.stack([(self.y - self.margins[fit, cut, folds]).square() for fit, cut in at]).double()


class Seeds:
    """Boosted trees, and arms that are the rival's own procedure with other seeds of its bags.

    Each fold draws its bags anew. Where an arm has the same bag in all folds its models are alike, and the best of 50 on the
    first fold is truly better, by a tenth of the loss in what it was tried on: then it is right to accept it.
    """

    original: Tensor | None = None
    refit: Tensor | None = None

    def __init__(self, n: int, g: torch.Generator):
        x = torch.randn((n, COLUMNS), generator=g)
        self.rows = Rows.dealt(torch.arange(n))
        self.splits = splits_of(x)
        self.y = x[:, 0] + torch.sin(2 * x[:, 1]) + x[:, 2] * x[:, 3] + torch.randn(n, generator=g)
        self.bags = bag((ROUNDS, n, 1 + max(ARMS), FOLDS), g)
        self.rival = self._losses([-1], slice(None))[0]

    def losses(self, arms: Sequence[int], folds: slice) -> Tensor:
        return self._losses(arms, folds)

    def _losses(self, arms: Sequence[int], folds: slice) -> Tensor:
        train = self.rows.train[folds].float()
        shape = len(arms), len(train)
        own = train.T[:, None].expand(-1, shape[0], -1).flatten(1)
        bags = self.bags[:, :, list(arms), folds].flatten(2)
        for margin in boosted(self.splits, torch.zeros_like(own), self.y, own, bags, 0.3):
            last = margin
        return (self.y - last.T.unflatten(0, shape)).square().double()


# Planted faults -----------------------------------------------------------------------------------------------------------

NOISE, CHOSEN, LEVELS = 1000, 20, 100


def planted(fault: str, inside: bool, g: torch.Generator, seed: int) -> dict[str, float]:
    """One finalist beside a least-squares rival; all that a fault touches is noise.

    Args:
        fault: "rows", "structure" or "codes".
        inside: whether all is done inside the folds, without the fault; then a tenth of the step is taken, at the boundary.
    """
    n = 1000
    x = with_intercept(random(n, 10, generator=g))
    y = x @ random(11, generator=g) + random(n, generator=g)
    rows = Rows.dealt(torch.arange(n))
    train = rows.train[1:].double()
    first = newton(x, y, train, False) @ x.T
    sees = train if inside else torch.ones_like(train)  # (F, n) the rows whose labels a fault sees
    left = y - newton(x, y, sees, False) @ x.T
    if fault == "rows":
        wide = torch.cat([x, random(n, CHOSEN, generator=g)], 1).expand(len(train), -1, -1)
    elif fault == "structure":
        noise = random(n, NOISE, generator=g)
        kept = ((sees * left) @ noise).abs().topk(CHOSEN).indices  # (F, CHOSEN), of about the same variance
        wide = torch.stack([torch.cat([x, noise[:, k]], 1) for k in kept])
    else:
        code = torch.nn.functional.one_hot(torch.randint(LEVELS, (n,), generator=g), LEVELS).double()
        means = ((sees * left) @ code) / (sees @ code + 1)
        wide = torch.stack([torch.cat([x, (code @ m)[:, None]], 1) for m in means])
    by = newton(wide, y, sees if fault == "rows" else train, False)
    last = first + (0.1 if inside else 1.0) * ((wide @ by[..., None])[..., 0] - first)
    return figures(tested(rows, loss_of(first, y, False), loss_of(last, y, False), seed))


# True gains -------------------------------------------------------------------------------------------------------------

POWER_ROWS, GAIN, ERROR = 7200, 0.02, 0.01


def draw_means(arms: int, gain: float, alike: bool, g: torch.Generator) -> Tensor:
    """Draw the mean gains (arms,): one of the arms gains `gain`, the others less than it, but something (`alike`), or nothing."""
    true = torch.zeros(arms, dtype=F64)
    if alike:
        true = gain * torch.rand(arms, generator=g, dtype=F64)
    true[int(torch.randint(arms, (), generator=g))] = gain
    return true


def draw_gains(true: Tensor, deviation: float, n: int, g: torch.Generator) -> Tensor:
    """Draw the gains (arms, n) of arms with these mean gains on n rows, half of whose variance is shared by all arms."""
    shared = 0.7 * random(n, generator=g)
    return true[:, None] + deviation * (shared + math.sqrt(0.51) * random(len(true), n, generator=g))


def draw_training(deviation: float, n: int, g: torch.Generator) -> Tensor:
    """Draw what training on other rows adds to the gains of each fold's model, (FOLDS - 1, n); the factor is about 1.2."""
    return deviation * math.sqrt(0.2 / (FOLDS - 2)) * random(FOLDS - 1, n, generator=g)


def true_gains(arms: int, alike: bool, g: torch.Generator, seed: int) -> dict[str, float]:
    """One of the arms gains GAIN of the loss, with a standard error of ERROR on a fifth of the rows; see `draw_means`."""
    n = POWER_ROWS
    rows = Rows.dealt(torch.arange(n))
    deviation = ERROR * math.sqrt(n / FOLDS)
    gains = draw_gains(draw_means(arms, GAIN, alike, g), deviation, n, g)
    own = rows.fold == 0
    sums = torch.zeros(arms, MAX_BLOCKS, dtype=F64).index_add(1, rows.block[own], gains[:, own])
    weights = torch.bincount(rows.block[own], minlength=MAX_BLOCKS).double()
    best = (sums.sum(1)).topk(min(1 + OTHERS, arms)).indices.tolist()
    found = []
    for a in best:
        each = gains[a] + draw_training(deviation, n, g)
        found.append(tested(rows, torch.ones_like(each), 1 - each, seed))
    held = guard.decide(sums, weights, level=LEVEL, seed=seed).accepted
    return {
        "accepted": float(any(f.accepted for f in found)),
        "best": float(found[0].accepted),
        "heldOut": float(held),
        "factor": found[0].factor,
    }


def choose_among_gains(n: int, gain: float, alike: bool) -> Draw:
    """Tables of n rows, on which one of SMALL_ARMS gains so many standard errors on a fifth of the rows; see `draw_means`."""

    def draw(generator: torch.Generator, seed: int) -> dict[str, dict[str, float]]:
        rows, deviation = Rows.dealt(torch.arange(n)), math.sqrt(n / FOLDS)
        true = draw_means(SMALL_ARMS, gain, alike, generator)
        gains = draw_gains(true, deviation, n, generator)
        training = draw_training(deviation, n, generator)
        found = {}
        for way, finalists in chosen_arms(gains[:, None].expand(-1, FOLDS, -1), rows).items():
            each = [gains[arms] + training for arms in finalists]
            number, outcome = first_accepted([tested(rows, torch.zeros_like(x), -x, seed) for x in each])
            gained = outcome["accepted"] * float(true[finalists[number]].mean()) / SMALL_GAIN
            found[way] = outcome | {"gained": gained}
        return found

    return draw


# Thresholds that train --------------------------------------------------------------------------------------------------

STUMPS, EPOCHS, RATES = 15, 25, (0.001, 0.003, 0.01, 0.03)
SOFTNESS, TAU = 0.15, 0.3


def stumps(x: Tensor, thresholds: Tensor, steps: Tensor) -> Tensor:
    """(C, n) the margins of C sums of stumps: splits are hard, their derivatives those of a sigmoid.

    Args:
        x: (n, STUMPS) the column that each of them reads.
        thresholds: (C, STUMPS)
        steps: (STUMPS,) from the left leaf to the right one.
    """
    z = x - thresholds[:, None]
    soft = torch.sigmoid(z / TAU)
    return ((z > 0).to(x.dtype) + soft - soft.detach()) @ steps


def thresholds_train(n: int, short: bool, g: torch.Generator, seed: int) -> dict[str, float]:
    """The thresholds of the original are the best for its leaves, and train; a fifth of the rows tests all epochs and candidates.

    The label's mean rises smoothly where a stump steps, and passes the middle at its threshold: rows beside it are right as often
    on one side as on the other, so that a small move costs next to nothing. "accepted" is by the level itself, "stricter" by a
    tenth of it.

    Args:
        short: whether one epoch of one candidate is all there is, so that nothing is paid for a choice.
    """
    x = math.sqrt(12) * torch.rand((n, STUMPS), generator=g)  # of variance 1
    thresholds = math.sqrt(12) * (0.3 + 0.4 * torch.rand(STUMPS, generator=g))
    steps = 2 * torch.randn(STUMPS, generator=g) / math.sqrt(STUMPS)
    y = torch.sigmoid((x - thresholds) / SOFTNESS) @ steps + torch.randn(n, generator=g)
    own = torch.arange(n) % 5 == 0
    rates, epochs = (RATES[-1:], 1) if short else (RATES, EPOCHS)
    rate = torch.tensor(rates)[:, None]
    moved = thresholds.expand(len(rates), -1).clone().requires_grad_()
    first, second, found = torch.zeros_like(moved), torch.zeros_like(moved), []
    for epoch in range(1, epochs + 1):
        margin = stumps(x[~own], moved, steps)
        (slope,) = torch.autograd.grad(loss_of(margin, y[~own], False).mean(1).sum(), moved)
        with torch.no_grad():  # Adam
            first.lerp_(slope, 0.1)
            second.lerp_(slope.square(), 0.01)
            moved -= rate * first / (1 - 0.9**epoch) / (second / (1 - 0.99**epoch)).sqrt().clamp_min(1e-12)
            found.append(moved.clone())
    every = torch.cat(found)
    before = loss_of(stumps(x, thresholds[None], steps)[0], y, False).double()
    after = loss_of(stumps(x[own], every, steps), y[own], False).double()  # (epochs * candidates, held-out rows)
    gains = before[own] - after
    chosen = int(gains.sum(1).argmax())
    if not float(gains[chosen].sum()) > HOPELESS * float(gains[chosen].norm()):
        return {"accepted": 0.0, "stricter": 0.0}
    last = loss_of(stumps(x, every[chosen : chosen + 1], steps)[0], y, False).double()
    rows = Rows(torch.zeros(n, dtype=torch.int64), own[None], torch.where(own, own.cumsum(0) - 1, 0))
    fill = MAX_BLOCKS - gains.shape[1]  # each held-out row is a block
    weights = torch.nn.functional.pad(torch.ones(gains.shape[1], dtype=F64), (0, fill))
    ledger = Ledger(torch.nn.functional.pad(gains, (0, fill)), weights, (), chosen)
    held, training = paired(rows, own, before, last), paired(rows, ~own, before, last).costs()
    levels = {"accepted": LEVEL, "stricter": LEVEL / 10}
    how: dict[str, Any] = {"ledger": ledger, "training": training, "seed": seed}
    return {k: float(decide_by_rows(held, level=x, **how).accepted) for k, x in levels.items()}


# Cells ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A question, answered by many draws.

    Attributes:
        most, least: the bounds of the share that is accepted, without the error of the draws; 1 and 0 where there is none.
        share: of --runs that is drawn.
        kind: the table that it stands in.
    """

    name: str
    kind: str
    draw: Draw
    most: float = LEVEL
    least: float = 0.0
    share: float = 1.0


def raced(make: Callable[[int, torch.Generator], Sample], n: int, arms: Sequence[int] = ARMS) -> Draw:
    """Tables of n rows, on which arms race and finalists are tested."""
    return lambda generator, seed: race(make(n, generator), arms, seed)


def alone(word: str, draw: Callable[..., dict[str, float]], *arguments: Any) -> Draw:
    """What `draw` finds with these arguments, under this word."""
    return lambda generator, seed: {word: draw(*arguments, generator, seed)}


NULL: dict[str, Callable[[int, torch.Generator], Sample]] = {
    "linear": linear,
    "linear, small steps": small_steps,
    "trees": Cuts,
    "trees, other seeds": Seeds,
    "groups": groups,
    "time": in_time,
}


def cells() -> list[Cell]:
    """All cells."""
    sizes, fifth = (1000, 4000), {"share": 0.2}
    out = [Cell(f"{name}, {n:,} rows", "null", raced(make, n)) for name, make in NULL.items() for n in sizes]
    for d in (30, 60):
        for n in (1500, 7200):
            draw = raced(functools.partial(others, d), n, (20,))
            out.append(Cell(f"fitted on other rows, {d} columns, {n:,} rows", "others", draw, SHIPPED, **fifth))
    for fault in ("rows", "structure", "codes"):
        for inside, *bounds in ((False, 1.0, LEVEL, 0.3), (True, LEVEL, 0.0, 1.0)):
            name = f"{fault} inside, a tenth of the step" if inside else f"{fault}, 1,000 rows"
            out.append(Cell(name, "plant", alone("one arm", planted, fault, inside), *bounds))
    for arms, alike in ((1, False), *((a, x) for a in ARMS for x in (False, True))):
        name = f"{arms} arms, the others gain {'less' if alike else 'nothing'}" if arms > 1 else "1 arm"
        out.append(Cell(name, "power", alone("power", true_gains, arms, alike), 1.0, share=0.3))
    for n in (300, 700):
        out.extend(
            Cell(f"{name}, {n} rows", "small", choose_in_small(NULL[name], n))
            for name in ("linear", "linear, small steps", "trees")
        )
        out.append(Cell(f"no arm gains, {n} rows", "small", choose_among_gains(n, 0.0, False)))
        for alike in (False, True):
            name = f"the others gain {'less' if alike else 'nothing'}, {n} rows"
            out.append(Cell(name, "small gains", choose_among_gains(n, SMALL_GAIN, alike), 1.0, share=0.3))
    for short in (False, True):
        for n in sizes:
            name = "one epoch of one candidate" if short else f"{EPOCHS} epochs of {len(RATES)} candidates"
            out.append(Cell(f"{name}, {n:,} rows", "thresholds", alone("held out", thresholds_train, n, short)))
    return out


def measure(name: str, runs: int, seed: int) -> dict[str, Any]:
    """The mean of all figures of a cell."""
    torch.set_num_threads(1)
    (cell,) = (c for c in cells() if c.name == name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    number = max(1, round(cell.share * runs))
    totals: dict[str, dict[str, float]] = {}
    for i in range(number):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed} {i}".encode()))
        for arm, found in cell.draw(generator, i).items():
            into = totals.setdefault(arm, dict.fromkeys(found, 0.0))
            for key, value in found.items():
                into[key] += value / number
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    return {
        "name": name,
        "kind": cell.kind,
        "runs": runs,
        "seed": seed,
        "draws": number,
        "seconds": round(seconds, 1),
        "shares": totals,
    }


def error(share: float, draws: int) -> float:
    """Two standard errors of a share."""
    return 2 * math.sqrt(max(share * (1 - share), 0.0) / draws)


def amiss(cell: Cell, found: dict[str, Any]) -> list[str]:
    """The shares of a cell that are out of its bounds."""
    out = []
    for arm, shares in found["shares"].items():
        # One arm, without a choice, is held against its bound only where it is the only finalist.
        if arm == "one arm" and cell.kind != "plant":
            continue
        share, draws = shares["accepted"], found["draws"]
        above = cell.most if cell.kind == "others" else cell.most + error(cell.most, draws)
        if share > above and cell.most < 1:
            out.append(f"{cell.name}, {arm}: {share:.1%} accepted, more than {above:.1%}")
        if cell.least and not share - error(share, draws) > cell.least:
            out.append(f"{cell.name}: the fault is not caught, {share:.1%} accepted")
    return out


HEADS = {
    "null": ("Nothing to gain", ("accepted", "alone", "independent", "factor")),
    "others": ("The rival was fitted on other rows", ("accepted", "alone", "independent", "factor")),
    "plant": ("Planted faults, and the same inside the folds", ("accepted", "alone", "independent", "factor")),
    "power": ("A true gain of two standard errors on a fifth of the rows", ("accepted", "best", "heldOut", "factor")),
    "small": ("Small tables, nothing to gain", ("accepted", "independent", "factor")),
    "small gains": ("Small tables, a true gain of two standard errors on a fifth", ("accepted", "gained", "factor")),
    "thresholds": ("Thresholds train, held-out rows decide", ("accepted", "stricter")),
}
WORDS = {
    "accepted": "accepted",
    "alone": "the best alone, with the factor",
    "independent": "the best alone, without it",
    "factor": "its factor",
    "best": "of these the best arm",
    "heldOut": "by the held-out fifth",
    "stricter": "at a tenth of the level",
    "gained": "share of the gain that ships",
}


def table(kind: str, found: Sequence[dict[str, Any]]) -> str:
    """The cells of a kind as a table."""
    title, keys = HEADS[kind]
    lines = [
        [f["name"], arm, f"{f['draws']:,}", *(f"{s[k]:.2f}" if k == "factor" else f"{s[k]:.1%}" for k in keys)]
        for f in found
        if f["kind"] == kind
        for arm, s in f["shares"].items()
    ]
    return markdown([title, "", "draws", *(WORDS[k] for k in keys)], lines)


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--runs", type=int, default=1000, help="draws of a cell; fewer where nothing is near a bound")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--processes", type=int, default=1)
    flags.add_argument("--only", default="", help="only cells whose kind and name contain this")
    flags.add_argument("--cells", type=Path, metavar="FILE", help="where the cells are kept, as JSON lines")
    given = parse(flags, runs=2)
    asked = [c for c in cells() if given.only in f"{c.kind}: {c.name}"]
    own = given.runs, given.seed
    found = {c["name"]: c for c in read_lines(given.cells) if (c["runs"], c["seed"]) == own}
    left = [c.name for c in asked if c.name not in found]
    wrong: list[str] = []
    with ProcessPoolExecutor(given.processes) as pool:
        for one in pool.map(measure, left, *([x] * len(left) for x in own)):
            append_lines(given.cells, one)
            found[one["name"]] = one
            shares = "; ".join(f"{arm} {s['accepted']:.1%}" for arm, s in one["shares"].items())
            print(f"{one['seconds']:5.0f} s  {one['name']}: {shares}", file=sys.stderr, flush=True)
    results = [found[c.name] for c in asked]
    for kind in dict.fromkeys(c.kind for c in asked):
        print(f"{table(kind, results)}\n")
    for cell in asked:
        wrong += amiss(cell, found[cell.name])
    print(f"{sum(r['seconds'] for r in results):.0f} s of CPU")
    print("\n".join(wrong) if wrong else "All shares are within their bounds, and all faults are caught.")
    write(given, results, {f"{r['name']}, {a}": s["accepted"] for r in results for a, s in r["shares"].items()})
    return exit_code(given, wrong)


if __name__ == "__main__":
    sys.exit(main())
