"""Cells of `guard_size.py --rare`: rare large losses, few units that a metric counts, uneven weights, groups.

Each draw goes the way of a run: a metric of the package, a label, an original and columns that were tried, of which the one with
the largest gain is decided on by `evaluation.paired_rows`, with what it costs on training rows. All columns have the true value
of the original, except in the cells of power.
"""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.guard import Ledger
from sparkdiff.evaluation.paired_rows import decide_by_rows, pair
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.metrics import BINARY, of_predictions

F64 = torch.float64
LEVEL = 0.025
MOST = 0.035  # share accepted without a gain
LEAST_POWER = 0.9  # of what a test of the sums accepts
LEAST_POWER_IN_TAILS = (
    0.7  # of what a test of the sums accepts, with a critical value that was raised until it holds the level
)
TRAINING = 4  # training rows for each row that decides
SHRINKING = (40, 25, 15, 10, 7, 5, 4, 3, 2, 1)  # rows that the columns predict as class 1


@dataclass(frozen=True)
class Rows:
    """One draw: what the metric reads of the original and of C columns, on rows that decide and on training rows.

    Attributes:
        columns, training: (1 + C, n), (1 + C, m): the original first.
        label, weight: (n,), (m,) each.
        group: (n,), (m,) or None.
    """

    columns: Tensor
    label: Tensor
    weight: Tensor
    training: Tensor
    training_label: Tensor
    training_weight: Tensor
    group: tuple[Tensor, Tensor] | None = None


Draw = Callable[[torch.Generator], Rows]


@dataclass(frozen=True)
class RareCell:
    """A question, and the draws that answer it."""

    name: str
    metric: Callable[[], Metric]
    draw: Draw
    without_gain: Draw | None = None


def outcome(cell: RareCell, rows: Rows, seed: int) -> tuple[bool, bool, float]:
    """Whether the column with the largest gain is accepted, whether a test of the sums would accept it, without units, costs and
    wrong rows, and its z-score there.
    """
    metric, kind = cell.metric(), "rows" if rows.group is None else "groups"
    generator = torch.Generator().manual_seed(seed)
    if rows.group is None:
        block, unit = torch.randint(0, MAX_BLOCKS, rows.label.shape, generator=generator), None
    else:
        unit = rows.group[0]
        block = torch.randperm(MAX_BLOCKS, generator=generator)[unit.long() % MAX_BLOCKS]

    def sums(x: Tensor) -> Tensor:
        return torch.zeros(MAX_BLOCKS, dtype=F64).index_add(0, block, x)

    plain = dataclasses.replace(metric, denominators=None)
    each = (
        pair(plain, (rows.columns[0], c), (rows.label,) * 2, rows.weight, block, unit, kind) for c in rows.columns[1:]
    )
    gains = torch.stack([sums(p.original - p.other) for p in each])
    weights, best = sums(rows.weight), int(gains.sum(1).argmax())
    before = guard.decide(gains, weights, chosen=best, seed=seed)
    chosen = pair(metric, (rows.columns[0], rows.columns[1 + best]), (rows.label,) * 2, rows.weight, block, unit, kind)
    columns, group = (rows.training[0], rows.training[1 + best]), None if rows.group is None else rows.group[1]
    y, w = rows.training_label, rows.training_weight
    training = pair(metric, columns, (y, y), w, y.long(), group, kind, held=chosen).costs()
    ledger = Ledger(gains, weights, (), best if float(gains[best].sum()) > 0 else -1)
    accepted = decide_by_rows(chosen, level=LEVEL, ledger=ledger, training=training, seed=seed).accepted
    return accepted, before.accepted, before.z


# Metrics ----------------------------------------------------------------------------------------------------------------


def by_class(name: str, classes: int = 2) -> Callable[[], Metric]:
    return lambda: of_predictions(name, {"metricLabel": 1.0} if name.endswith("ByLabel") else {}, classes)


def area(name: str) -> Callable[[], Metric]:
    return lambda: Metric(name, larger=True, column=lambda x: x, value=BINARY[name], ranks=True)


def by_name(name: str) -> Callable[[], Metric]:
    return lambda: of_predictions(name, {})


squared = by_name("mse")


def log_loss() -> Metric:
    return Metric("logLoss", rows=lambda m, y, _w: torch.nn.functional.softplus(m) - y * m)


# Draws ------------------------------------------------------------------------------------------------------------------


def weights_of(kind: str, n: int, generator: torch.Generator) -> Tensor:
    if kind == "pareto":
        return torch.rand(n, generator=generator, dtype=F64).pow(-1 / 1.2)
    if kind == "2% of 50":
        return torch.where(torch.rand(n, generator=generator, dtype=F64) < 0.02, 50.0, 1.0).double()
    if kind == "lognormal 2":
        return torch.exp(2 * torch.randn(n, generator=generator, dtype=F64))
    return torch.ones(n, dtype=F64)


def shrinking(n: int, share: float, weights: str = "", counts: Sequence[int] = SHRINKING) -> Draw:
    """Labels that depend on nothing; the original predicts class 1 for a tenth, the columns for fewer and fewer rows."""

    def draw(g: torch.Generator) -> Rows:
        m = TRAINING * n

        def part(size: int) -> tuple[Tensor, Tensor, Tensor]:
            y = (torch.rand(size, generator=g, dtype=F64) < share).double()
            order = torch.randn(size, generator=g).argsort().argsort()
            first = (torch.rand(size, generator=g, dtype=F64) < 0.1).double()
            columns = torch.stack([first, *((order < c * size / n).double() for c in counts)])
            return columns, y, weights_of(weights, size, g)

        return Rows(*part(n), *part(m))

    return draw


def coins(n: int, positive: int, columns: int = 20, weights: str = "") -> Draw:
    """Predictions on the rows of class 1 are coins; 2 of 1,000 others are predicted 1."""

    def draw(g: torch.Generator) -> Rows:
        def part(size: int, own: int) -> tuple[Tensor, Tensor, Tensor]:
            y = torch.zeros(size, dtype=F64)
            y[:own] = 1
            p = torch.where(y > 0, 0.5, 0.002).double()
            found = (torch.rand((1 + columns, size), generator=g, dtype=F64) < p).double()
            return found, y, weights_of(weights, size, g)

        return Rows(*part(n, positive), *part(TRAINING * n, TRAINING * positive))

    return draw


def noise_scores(
    n: int, positive: int, columns: int = 20, weights: str = "", heavy: tuple[int, float] = (0, 1.0)
) -> Draw:
    """Scores that depend on nothing, for areas under curves; the first rows of class 1 may be heavy."""

    def draw(g: torch.Generator) -> Rows:
        def part(size: int, own: int) -> tuple[Tensor, Tensor, Tensor]:
            y = torch.zeros(size, dtype=F64)
            y[:own] = 1
            w = weights_of(weights, size, g)
            w[: heavy[0]] *= heavy[1]
            return torch.randn((1 + columns, size), generator=g, dtype=F64), y, w

        return Rows(*part(n, positive), *part(TRAINING * n, TRAINING * positive))

    return draw


def noise_groups(groups: int, sick: int, columns: int = 20, rows: int = 10) -> Draw:
    """The same with labels and scores of groups."""

    def draw(g: torch.Generator) -> Rows:
        def part(size: int, own: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            group = torch.arange(size).repeat_interleave(rows)
            of_group = torch.randn((1 + columns, size), generator=g, dtype=F64)
            score = of_group[:, group] + 0.3 * torch.randn((1 + columns, size * rows), generator=g, dtype=F64)
            return score, (group < own).double(), torch.ones(size * rows, dtype=F64), group

        one, other = part(groups, sick), part(TRAINING * groups, TRAINING * sick)
        return Rows(*one[:3], *other[:3], group=(one[3], other[3]))

    return draw


def errors_of(kind: str, size: int, g: torch.Generator) -> Tensor:
    """Errors of labels of mean 0."""
    z = torch.randn(size, generator=g, dtype=F64)
    if kind == "lognormal":
        return z.exp() - math.exp(0.5)
    if kind == "lognormal 1.5":
        return (1.5 * z).exp() - math.exp(1.125)
    if kind == "lognormal, 1 of 50 larger by 50":
        return z.exp() - math.exp(0.5) + 50 * ((torch.rand(size, generator=g, dtype=F64) < 0.02).double() - 0.02)
    if kind.startswith("1 of "):
        share = 1 / int(kind.split()[2])
        return z + ((torch.rand(size, generator=g, dtype=F64) < share).double() - share) / share
    return z


def shifts(n: int, kind: str, columns: int = 20, size: float = 0.5, weights: str = "", group: int = 0) -> Draw:
    """Regressions that predict the mean too low, as much as the original predicts it too high, each on rows of its own.

    Where labels are rarely large, rows without one of these show a gain on nearly all rows.
    """

    def draw(g: torch.Generator) -> Rows:
        def part(rows: int) -> tuple[Tensor, ...]:
            code = torch.arange(rows)
            y = errors_of(kind, rows, g)
            if group:  # all rows of a group share the error
                code = torch.arange(rows) // group
                y = errors_of(kind, rows // group + 1, g)[code] + torch.randn(rows, generator=g, dtype=F64)
            own = (
                torch.rand((columns, rows), generator=g, dtype=F64) < 0.9
            )  # on the other rows a column is the original
            found = torch.where(own, -size, size).double()
            return torch.cat([torch.full((1, rows), size, dtype=F64), found]), y, weights_of(weights, rows, g), code

        one, other = part(n), part(TRAINING * n)
        return Rows(*one[:3], *other[:3], group=(one[3], other[3]) if group else None)

    return draw


def sure(n: int, sureness: float, columns: int = 10) -> Draw:
    """Log-loss of all but separable classes: the columns are surer than the original, and no better."""
    wrong = _rate(sureness)

    def draw(g: torch.Generator) -> Rows:
        def part(size: int) -> tuple[Tensor, Tensor, Tensor]:
            side = torch.where(torch.rand(size, generator=g) < 0.5, -1.0, 1.0).double()
            label = ((torch.rand(size, generator=g, dtype=F64) < wrong) ^ (side > 0)).double()
            own = (
                torch.rand((columns, size), generator=g, dtype=F64) < 0.9
            )  # on the other rows a column is the original
            scale = torch.cat([torch.ones((1, size)), torch.where(own, sureness, 1.0)]).double()
            return 3.0 * scale * side, label, torch.ones(size, dtype=F64)

        return Rows(*part(n), *part(TRAINING * n))

    return draw


@cache
def _rate(sureness: float) -> float:
    """The share of wrong labels at which margins of 3 and of 3 * sureness have the same log-loss."""
    softplus = math.log1p

    def loss(p: float, m: float) -> float:
        return (1 - p) * softplus(math.exp(-m)) + p * softplus(math.exp(m))

    low, high = 0.0, 0.5
    for _ in range(80):
        p = (low + high) / 2
        low, high = (p, high) if loss(p, 3 * sureness) < loss(p, 3.0) else (low, p)
    return low


# Power ------------------------------------------------------------------------------------------------------------------


def slack(n: int, kind: str, share: float, columns: int = 20) -> Draw:
    """A regression that misses a slope; the columns are on the way to it. `share` of the original's error is to be had."""

    def draw(g: torch.Generator) -> Rows:
        spread = float(errors_of(kind, 400_000, torch.Generator().manual_seed(1)).std())
        slope = spread * math.sqrt(share / (1 - share))

        def part(size: int) -> tuple[Tensor, Tensor, Tensor]:
            x, e = torch.randn(size, generator=g, dtype=F64), errors_of(kind, size, g)
            way = torch.cat([torch.zeros(1), torch.linspace(0.1, 1, columns)]).double()
            return way[:, None] * slope * x, slope * x + e, torch.ones(size, dtype=F64)

        return Rows(*part(n), *part(TRAINING * n))

    return draw


def boosted(n: int, share: float, columns: int = 20) -> Draw:
    """Leaves of a boosted regression: the columns fit them to the training rows; more slowly where leaves have few."""

    def draw(g: torch.Generator) -> Rows:
        leaves = 32
        truth = math.sqrt(share / (1 - share)) * torch.randn(leaves, generator=g, dtype=F64)

        def rows(size: int) -> tuple[Tensor, Tensor]:
            leaf = torch.randint(0, leaves, (size,), generator=g)
            return leaf, truth[leaf] + torch.randn(size, generator=g, dtype=F64)

        (leaf, y), (train, train_y) = rows(n), rows(TRAINING * n)
        counts = torch.bincount(train, minlength=leaves).double()
        mean = torch.zeros(leaves, dtype=F64).index_add(0, train, train_y) / counts.clamp_min(1)
        values = torch.stack([(1 - 0.9**t) * mean for t in range(columns + 1)])
        return Rows(
            values[:, leaf], y, torch.ones(n, dtype=F64), values[:, train], train_y, torch.ones(len(train), dtype=F64)
        )

    return draw


def logistic(n: int, slope: float, columns: int = 20) -> Draw:
    """A classifier that misses a slope, by log-loss."""

    def draw(g: torch.Generator) -> Rows:
        def part(size: int) -> tuple[Tensor, Tensor, Tensor]:
            x, z = torch.randn((2, size), generator=g, dtype=F64)
            y = (torch.rand(size, generator=g, dtype=F64) < torch.sigmoid(z + slope * x)).double()
            way = torch.cat([torch.zeros(1), torch.linspace(0.1, 1, columns)]).double()
            return z + way[:, None] * slope * x, y, torch.ones(size, dtype=F64)

        return Rows(*part(n), *part(TRAINING * n))

    return draw


def cells() -> Iterator[RareCell]:
    """Those without a true gain."""
    for name, n, share in itertools.product(("precisionByLabel", "weightedPrecision"), (500, 2000), (0.1, 0.4)):
        for least, counts in (("1 row", SHRINKING), ("30 rows", (n // 4, n // 8, 50, 40, 35, 30))):
            words = f"{name}, {n} rows, {share:.0%} of the class, predicted ever less, to {least}"
            yield RareCell(words, by_class(name), shrinking(n, share, counts=counts))
    counts = (400, 200, 100, 60, 40, 30, 20)
    yield RareCell(
        "precisionByLabel, 2000 rows, 2% weigh 50",
        by_class("precisionByLabel"),
        shrinking(2000, 0.4, "2% of 50", counts),
    )
    for name, k in itertools.product(("recallByLabel", "fMeasureByLabel", "precisionByLabel"), (3, 8, 15, 30, 60)):
        yield RareCell(f"{name}, 1000 rows, {k} of the class", by_class(name), coins(1000, k))
    recall = by_class("recallByLabel")
    yield RareCell(
        "recallByLabel, 1000 rows, 60 of the class, lognormal weights", recall, coins(1000, 60, 20, "lognormal 2")
    )
    for name in ("areaUnderROC", "areaUnderPR"):
        for k in (2, 10, 30, 40):
            yield RareCell(f"{name}, 600 rows, {k} of class 1", area(name), noise_scores(600, k))
        for k in (1, 3, 10):
            words = f"{name}, 600 rows, 40 of class 1, {k} of them weigh 40"
            yield RareCell(words, area(name), noise_scores(600, 40, heavy=(k, 40.0)))
        for groups, k in ((100, 2), (100, 10), (100, 30), (60, 30)):
            yield RareCell(f"{name}, {groups} groups, {k} of class 1", area(name), noise_groups(groups, k))
        words = f"{name}, 1000 rows, 200 of class 1, pareto weights"
        yield RareCell(words, area(name), noise_scores(1000, 200, 20, "pareto"))
    tails = (
        "normal",
        "lognormal",
        "lognormal 1.5",
        "lognormal, 1 of 50 larger by 50",
        "1 of 250",
        "1 of 100",
        "1 of 50",
    )
    for kind, n in itertools.product(tails, (320, 1000)):
        yield RareCell(f"squared, {n} rows, {kind}", squared, shifts(n, kind))
    for name, n in itertools.product(("rmse", "r2"), (320, 1000)):
        yield RareCell(f"{name}, {n} rows, 1 of 250", by_name(name), shifts(n, "1 of 250"))
    for n, weights in itertools.product((320, 1000), ("pareto", "2% of 50")):
        yield RareCell(
            f"squared, {n} rows, 1 of 100, {weights} weights", squared, shifts(n, "1 of 100", weights=weights)
        )
    for n, kind in itertools.product((100, 300), ("1 of 50", "lognormal")):
        yield RareCell(f"squared, {n} groups of 5, {kind}", squared, shifts(5 * n, kind, group=5))
    for n, times in itertools.product((300, 1000), (1.5, 3.0)):
        yield RareCell(f"log-loss, {n} rows, {times:g} times as sure", log_loss, sure(n, times))


def power_cells() -> Iterator[RareCell]:
    """Those with a gain that is found in half of the draws or so."""
    for n in (200, 800, 2400):
        rows, scale = f"{5 * n:,} rows", 200 / n
        yield RareCell(f"linear slack, {rows}", squared, slack(n, "normal", 0.12 * scale))
        null = shifts(n, "lognormal")
        yield RareCell(f"linear slack, lognormal errors, {rows}", squared, slack(n, "lognormal", 0.15 * scale), null)
        yield RareCell(f"boosted trees, {rows}", squared, boosted(n, 0.25 * scale**0.5))
        yield RareCell(f"log-loss, {rows}", log_loss, logistic(n, 0.65 * scale**0.5))
    kind = "lognormal, 1 of 50 larger by 50"
    yield RareCell(f"10% to be had, {kind}, 5,000 rows", squared, slack(1000, kind, 0.1), shifts(1000, kind))


def outcomes(cell: RareCell, draw: Draw, runs: int, seed: int) -> Tensor:
    """(runs, 3), see `outcome`."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{cell.name} {seed}".encode()))
    return torch.tensor([outcome(cell, draw(generator), i) for i in range(runs)], dtype=F64)


def share_accepted(cell: RareCell, runs: int, seed: int = 0) -> tuple[float, float]:
    """The share of draws that are accepted, and the share that a test of the sums accepts.

    Of a cell with a gain and long tails, the latter has the critical value by which it holds the level where there is no gain.
    """
    found = outcomes(cell, cell.draw, runs, seed)
    now, before, _ = found.mean(0).tolist()
    if cell.without_gain is not None:
        z = outcomes(cell, cell.without_gain, runs, seed)[:, 2]
        before = float((found[:, 2] > z.quantile(1 - LEVEL)).double().mean())
    return now, before


def rare(runs: int, again: int, only: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    """Print and return the share accepted in every cell, and the names of those out of bounds.

    Args:
        again: draws for the three cells without a gain in which most is accepted; their second share counts.
    """
    results, wrong = list[dict[str, Any]](), list[str]()
    print(f"share accepted in {runs:,} draws{'':50} today  by a test of the sums")

    def measure(cell: RareCell, draws: int, seed: int) -> dict[str, Any]:
        now, before = share_accepted(cell, draws, seed)
        print(f"{cell.name:75} {now:6.1%}  {before:6.1%}", flush=True)
        return {"name": cell.name, "draws": draws, "accepted": now, "before": before}

    without = [cell for cell in cells() if only in cell.name]
    shares = {cell.name: measure(cell, runs, 0) for cell in without}
    worst = sorted(without, key=lambda cell: -shares[cell.name]["accepted"])[:3]
    if again:
        print(f"the worst three, in {again:,} draws")
        shares |= {cell.name: measure(cell, again, 1) for cell in worst}
    wrong += [name for name, found in shares.items() if found["accepted"] > MOST]
    print("with a true gain")
    for cell in power_cells():
        if only in cell.name:
            found = measure(cell, runs, 0)
            shares[cell.name] = found
            least = LEAST_POWER if cell.without_gain is None else LEAST_POWER_IN_TAILS
            wrong += [cell.name] if found["accepted"] < least * found["before"] else []
    results += shares.values()
    return results, wrong
