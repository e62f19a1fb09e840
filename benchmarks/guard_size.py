"""How often does the guard accept a change that gains nothing, and how often a true gain?

Simulated per-row loss differences of 4 candidates x 30 epochs whose true gain is exactly zero (or known), put before
three rules on the same data: the guard, plain z > 2 of the best column, and the rule that the guard replaced (the best
column's z against that of the best column under centred gaussian multipliers). Also how often the interval of the relative
gain, which the guard reports for the best column, misses the true one, on either side. Prints a table, writes JSON, and
fails where the guard or its interval exceeds a cell's bound. All cells take about twenty minutes of one core.

    python benchmarks/guard_size.py --runs 2000 --out guard_size.json

With --metrics the share accepted for each metric that is no mean over rows, tested by its rows' influence: rows are drawn from
a population in which the original and the columns, of other thresholds, scales and ties, have the same metric. Last the
expected calibration error, which is refused as a metric, of two calibrated models of which one predicts a constant. About
five minutes of one core.

    python benchmarks/guard_size.py --metrics --runs 200

With --rare the cells of `guard_rare.py`: few units that a metric counts, uneven weights, groups, rare large losses, and the share
of true gains that is accepted. The three cells without a gain in which most is accepted are drawn again, --again times.

    python benchmarks/guard_size.py --rare --runs 1000 --again 10000
"""

import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import guard_rare
import torch
from common import exit_code, parse, parser, write
from torch import Tensor

from sparkdiff.data import blocks
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.units import Units
from sparkdiff.objectives.losses import resolve as resolve_loss
from sparkdiff.objectives.metric import Metric, influence
from sparkdiff.objectives.metrics import BINARY, REGRESSION, resolve
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.linear import LinearRegression, LogisticRegression

CANDIDATES, EPOCHS = 4, 30
GROUP_ROWS, GROUP_CORRELATION = 20, 0.1
SLOW_SHARE, SLOW_CORRELATION = 0.1, 0.95  # of a time series: variance that is AR(1), and its coefficient
ORIGINAL_LOSS = 5.0  # mean loss of the original, in standard deviations of a row's difference of length 1
INTERVALS = 600  # runs of which the interval is looked at
MOST = 0.035  # share accepted without a gain; the promise is 4.5%, the rest is room for the error of 2,000 runs
MOST_OUTSIDE = 0.045  # share of intervals on one side of the truth


@dataclass(frozen=True)
class Cell:
    """One question: a process that makes the differences, and the share of acceptances that it allows."""

    name: str
    unit: Literal["rows", "groups", "blocks"]
    size: int  # rows; groups of 20 rows for groups
    rows: Literal["student", "exponential", "lognormal", "normal"] = "student"
    sign: int = 1  # -1: skewed to the left, rare large losses
    common: float = 0.0  # variance that all columns share, as a factor of its own
    epochCorrelation: float = 0.97  # of neighbouring epochs: how slowly the direction of the change rotates
    candidateCorrelation: float = 0.7
    factors: int = 12
    bad: float = 0.0  # > 0: the first candidate is 30 times noisier and worse by so many standard errors
    gain: float = 0.0  # true gain of all columns, in standard deviations of a row's difference
    least: float = 0.0
    most: float = MOST


CELLS = [
    *(Cell(f"{n:,} rows, Student t(3)", "rows", n) for n in (500, 1700, 5000)),
    *(Cell(f"{n:,} rows, exponential, rare losses", "rows", n, "exponential", -1, 0.5) for n in (500, 1700, 5000)),
    *(Cell(f"{n:,} rows, lognormal, rare losses", "rows", n, "lognormal", -1, 0.8) for n in (500, 1700, 5000)),
    Cell("500 rows, lognormal, nothing but rare losses", "rows", 500, "lognormal", -1, 0.98, most=0.045),
    *(Cell(f"{n} groups", "groups", n) for n in (50, 250)),
    Cell("20,000 rows of a time series", "blocks", 20_000, factors=8),
    Cell("5,000 rows, gain of 0.06 sd", "rows", 5000, gain=0.06, least=0.9, most=1.0),
]
# Where it might break: few groups, short series, columns alike or unlike, a candidate that went astray, rare losses.
HARDER_CELLS = [
    *(Cell(f"{n:,} rows, exponential, rare gains", "rows", n, "exponential", 1, 0.5) for n in (500, 1700, 5000)),
    Cell("30 groups", "groups", 30),
    *(Cell(f"{n} groups, exponential, rare losses", "groups", n, "exponential", -1, 0.5) for n in (50, 250)),
    *(Cell(f"{n:,} rows of a time series", "blocks", n, most=0.045) for n in (500, 1700, 5000)),
    Cell("500 rows, columns nearly the same", "rows", 500, epochCorrelation=0.9999, candidateCorrelation=0.999),
    Cell("50 groups, columns nearly the same", "groups", 50, epochCorrelation=0.9999, candidateCorrelation=0.999),
    Cell("500 rows, columns nearly independent", "rows", 500, "student", 1, 0, 0.5, 0.1, 60),
    Cell("50 groups, columns nearly independent", "groups", 50, "normal", 1, 0, 0.5, 0.1, 60),
    Cell("500 rows, a hopeless noisy candidate", "rows", 500, bad=10),
    Cell("50 groups, a hopeless noisy candidate", "groups", 50, bad=10),
    Cell("50 groups, a poor noisy candidate", "groups", 50, bad=1.7),
    Cell("1,700 rows, gain of 0.1 sd", "rows", 1700, gain=0.1, least=0.9, most=1.0),
    Cell(
        "5,000 rows, gain of 0.06 sd, rare losses", "rows", 5000, "lognormal", -1, 0.8, gain=0.06, least=0.9, most=1.0
    ),
    Cell("50 groups, gain of 0.2 sd", "groups", 50, gain=0.2, least=0.8, most=1.0),
]


def loadings(cell: Cell, generator: torch.Generator) -> Tensor:
    """(factors, columns): each column is a direction that rotates slowly with the epoch, longer from epoch to epoch."""

    def rotate(*shape: int) -> Tensor:
        steps = [torch.randn(shape, generator=generator)]
        for _ in range(EPOCHS - 1):
            step = torch.randn(shape, generator=generator)
            steps.append(cell.epochCorrelation * steps[-1] + math.sqrt(1 - cell.epochCorrelation**2) * step)
        return torch.stack(steps, -1)

    shared, own = cell.candidateCorrelation, 1 - cell.candidateCorrelation
    x = math.sqrt(shared) * rotate(cell.factors, 1) + math.sqrt(own) * rotate(cell.factors, CANDIDATES)
    x = x / x.norm(dim=0)
    if cell.common:
        first = torch.full((1, CANDIDATES, EPOCHS), math.sqrt(cell.common))
        x = torch.cat([first, math.sqrt(1 - cell.common) * x])
    return (x * torch.arange(1, EPOCHS + 1).sqrt()).reshape(len(x), -1)


def draw(cell: Cell, n: int, factors: int, generator: torch.Generator) -> Tensor:
    """(n, factors) independent rows of mean 0 and variance 1; all but the normal ones have heavy-tailed row scales."""
    z = torch.randn((n, factors), generator=generator)
    if cell.rows == "normal":
        return z
    if cell.rows == "student":
        return z / torch.randn((n, 3), generator=generator).norm(dim=1, keepdim=True)
    if cell.rows == "exponential":
        scale = torch.exp(0.5 * torch.randn((n, 1), generator=generator) - 0.25)
        return cell.sign * scale * (z.exponential_(generator=generator) - 1)
    return cell.sign * (z.exp() - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def slow(rows: int, factors: int, generator: torch.Generator) -> Tensor:
    """(rows, factors) an AR(1) series of variance 1 per factor, made piece by piece."""
    piece = math.gcd(rows, 50)
    lag = torch.arange(piece)[:, None] - torch.arange(piece)
    kernel = torch.where(lag >= 0, SLOW_CORRELATION ** lag.clamp(min=0), 0.0) * math.sqrt(1 - SLOW_CORRELATION**2)
    series = kernel @ torch.randn((rows // piece, piece, factors), generator=generator)
    state, fade = torch.randn(factors, generator=generator), SLOW_CORRELATION ** torch.arange(1, piece + 1)[:, None]
    for part in series:
        part += fade * state
        state = part[-1]
    return series.reshape(rows, factors)


@dataclass(frozen=True)
class Run:
    """What the trainer would know at the end of one simulated run."""

    gains: Tensor  # (columns, blocks)
    weights: Tensor  # (blocks,)
    original: Tensor  # (blocks,) loss of the original
    truth: Tensor  # (columns,) true gain over the original's true loss
    series: Tensor | None = None  # rows' differences of the best column in the order of time, for a time series


def simulate(cell: Cell, generator: torch.Generator) -> Run:
    directions = loadings(cell, generator)
    factors, series = len(directions), None
    if cell.unit == "blocks":
        x = math.sqrt(1 - SLOW_SHARE) * draw(cell, cell.size, factors, generator)
        x += math.sqrt(SLOW_SHARE) * slow(cell.size, factors, generator)
        sums = x.reshape(blocks.TIME_BLOCKS, -1, factors).sum(1)
        weights = torch.full((blocks.TIME_BLOCKS,), cell.size / blocks.TIME_BLOCKS)
        series = x @ directions[:, (sums.sum(0) @ directions).argmax()]
    else:
        x, rows = draw(cell, cell.size, factors, generator), 1
        if cell.unit == "groups":
            rows = GROUP_ROWS
            own = draw(cell, cell.size * rows, factors, generator).reshape(cell.size, rows, factors).sum(1)
            x = math.sqrt(1 - GROUP_CORRELATION) * own + rows * math.sqrt(GROUP_CORRELATION) * x
        block = torch.randint(0, blocks.MAX_BLOCKS, (cell.size,), generator=generator)
        sums = torch.zeros(blocks.MAX_BLOCKS, factors).index_add_(0, block, x)
        weights = torch.bincount(block, minlength=blocks.MAX_BLOCKS).double() * rows
        sums, weights = sums[weights > 0], weights[weights > 0]
    truth = cell.gain * directions.norm(dim=0)
    gains = directions.T @ sums.T + truth[:, None] * weights
    if cell.bad:
        noisy = 30 * gains[:EPOCHS]
        truth[:EPOCHS] = -cell.bad * noisy.norm(dim=1) / weights.sum()
        gains[:EPOCHS] = noisy + truth[:EPOCHS, None] * weights
    # Rows that cost the original much are rows with much to gain: its loss follows the last epoch's direction.
    original = ORIGINAL_LOSS * weights + sums @ directions[:, -1] / directions[:, -1].norm()
    return Run(gains, weights, original, truth / ORIGINAL_LOSS, series)


def simulations(cell: Cell, count: int, seed: int = 0) -> Iterator[Run]:
    """The same data for a cell and seed, whichever other cells run."""
    default = torch.get_default_dtype()
    generator = torch.Generator().manual_seed(zlib.crc32(f"{cell.name} {seed}".encode()))
    for _ in range(count):
        torch.set_default_dtype(torch.float64)
        try:
            run = simulate(cell, generator)
        finally:
            torch.set_default_dtype(default)
        yield run


def decide(cell: Cell, run: Run, number: int) -> guard.Verdict:
    """As the trainer would; the interval, which takes longer than the decision, in the first runs only."""
    original = run.original if number < INTERVALS else None
    if run.series is None:
        return guard.decide(run.gains, run.weights, original=original, units=Units(cell.size, cell.unit), seed=number)
    rows, slowness = cell.size / blocks.TIME_BLOCKS, guard.correlation_time(run.series)
    return guard.decide(
        run.gains,
        run.weights,
        original=original,
        units=Units(blocks.TIME_BLOCKS, "blocks"),
        blockRows=rows,
        correlationTime=slowness,
        seed=number,
    )


def misses(run: Run, verdict: guard.Verdict) -> tuple[bool, bool]:
    """Whether the true relative gain of the column that ships lies below the interval, and above it."""
    if verdict.interval is None:
        return False, False
    (low, high), true = verdict.interval, float(run.truth[verdict.best])
    return true < low, true > high


def plain_z(gains: Tensor, weights: Tensor) -> bool:
    mean = gains.sum(1) / weights.sum()
    best = int(mean.argmax())
    return bool(mean[best] * weights.sum() > 2 * (gains[best] - mean[best] * weights).norm())


def old_rule(gains: Tensor, weights: Tensor, seed: int, draws: int = 400) -> bool:
    mean = gains.sum(1) / weights.sum()
    residual = gains - mean[:, None] * weights
    error = residual.norm(dim=1)
    best = int(mean.argmax())
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn((draws, len(weights)), generator=generator, dtype=torch.float64)
    largest, column = (normal @ residual.T).max(1)
    hits = int((largest / error[column] >= mean[best] * weights.sum() / error[best]).sum())
    return bool(mean[best] > 0) and (1 + hits) / (1 + draws) < 0.025


def measure(cell: Cell, count: int, seed: int = 0) -> dict[str, float]:
    """Share accepted by each rule, and share of intervals that lie above or below the true gain."""
    accepted = {"guard": 0, "plain z > 2": 0, "old rule": 0, "interval above": 0, "interval below": 0}
    for i, run in enumerate(simulations(cell, count, seed)):
        verdict = decide(cell, run, i)
        above, below = misses(run, verdict)
        accepted["guard"] += verdict.accepted
        accepted["interval above"] += above
        accepted["interval below"] += below
        accepted["plain z > 2"] += plain_z(run.gains, run.weights)
        accepted["old rule"] += old_rule(run.gains, run.weights, i)
    return {rule: n / (min(count, INTERVALS) if "interval" in rule else count) for rule, n in accepted.items()}


def cells(runs: int, seed: int, only: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    """Prints and returns the shares of every cell; and the names of those out of bounds."""
    print(f"share accepted in {runs:,} runs{'':17}   guard  z > 2  old rule  interval above, below the truth  CPU s")
    results, wrong = [], []
    for cell in CELLS + HARDER_CELLS:
        if only not in cell.name:
            continue
        start = time.process_time()
        shares = measure(cell, runs, seed)
        seconds = time.process_time() - start
        print(f"{cell.name:42} {'  '.join(f'{100 * s:5.1f}%' for s in shares.values())}   {seconds:5.0f}", flush=True)
        results.append(asdict(cell) | {"shares": shares})
        outside = max(shares["interval above"], shares["interval below"])
        if not cell.least <= shares["guard"] <= cell.most or outside > MOST_OUTSIDE:
            wrong.append(cell.name)
    return results, wrong


# Metrics that are no mean over rows ------------------------------------------------------------------------------------

POPULATION = 50_000
SIZES = (500, 1700, 5000)
KINDS = ((1.0, 0.0, 0.0), (1.0, 0.7, 0.0), (0.7, -0.5, 0.0), (1.0, 0.2, 1.0))
"""Scale of the signal, shift, and width of the steps (0: none) of a column; its noise makes the metric the original's."""
COUNTED = (
    *("f1", "weightedPrecision", "weightedRecall", "weightedTruePositiveRate", "weightedFalsePositiveRate"),
    *("weightedFMeasure", "truePositiveRateByLabel", "falsePositiveRateByLabel", "precisionByLabel", "recallByLabel"),
    "fMeasureByLabel",
)
OF_METRICS = ("rmse", "r2", "var", *BINARY, *COUNTED)


def metric_of(name: str) -> Metric:
    """The metric of a linear regression's predictions, or of a logistic regression's margins."""
    zeros = torch.zeros(1, dtype=torch.float64)
    head: LinearRegression | LogisticRegression = LinearRegression(zeros, zeros[0], 1.0, True, None)
    if name not in REGRESSION:
        head = LogisticRegression(
            zeros[None],
            zeros,
            True,
            num_classes=2,
            thresholds=None,
            threshold=0.5,
            bounds={},
            shown=LogisticRegression.SHOWN,
            uid="head",
        )
    params = {"metricLabel": 1.0} if name.endswith("ByLabel") else {}
    label = LabelStats(0.5, 0.5, 0.0, 1.0, torch.tensor([1, 1]))
    outputs = ("rawPrediction", "probability", "prediction")
    return resolve(
        Options.of({"metric": name, "metricParams": params}),
        resolve_loss("auto", {}, head, outputs, label),
        head,
        outputs,
        label,
    )


def calibration_error(bins: int) -> Metric:
    """Mean over equal bins of |share of class 1 - mean probability|, by the bins' weight (Naeini et al. 2015)."""

    def value(p: Tensor, y: Tensor, w: Tensor) -> Tensor:
        gaps = w.new_zeros(bins).index_add(0, (p * bins).long().clamp_max(bins - 1), w * (y - p))
        return gaps.abs().sum() / w.sum()

    return Metric(f"expectedCalibrationError, {bins} bins", column=lambda x: x, value=value)


@dataclass(frozen=True)
class Population:
    """Rows to draw from: the label, and what the metric reads of the original (the first) and of the columns."""

    metric: Metric
    label: Tensor  # (n,); where `drawn` its probability of 1
    columns: Tensor  # (1 + C, n)
    drawn: bool = False

    def gains(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Block sums of the gains (C, B), of the weights (B,) and of the original's loss (B,), of rows drawn with replacement."""
        rows = torch.randint(0, len(self.label), (size,), generator=generator)
        block = torch.randint(0, blocks.MAX_BLOCKS, (size,), generator=generator)
        ones, label = torch.ones(size, dtype=torch.float64), self.label[rows]
        if self.drawn:
            label = (torch.rand(size, generator=generator, dtype=torch.float64) < label).double()
        psi = torch.stack([influence(self.metric, c, label, ones) for c in self.columns[:, rows]])
        sums = torch.zeros(len(psi), blocks.MAX_BLOCKS, dtype=torch.float64).index_add_(
            1, block, self.metric.sign * psi
        )
        return sums[0] - sums[1:], torch.bincount(block, minlength=blocks.MAX_BLOCKS).double(), sums[0]


def population(name: str, seed: int = 0) -> Population:
    """Columns of every kind, twice each, whose metric is the original's; kinds that no noise brings there are left out."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    draws = [torch.randn(POPULATION, generator=generator, dtype=torch.float64) for _ in range(4 + 2 * len(KINDS))]
    signal, shared, own, error, *noises = draws
    label, metric = signal + error, metric_of(name)
    if name not in REGRESSION:
        label = (label > 1).double()  # a sixth of class 1 or so
    ones = torch.ones_like(label)
    assert metric.column is not None
    assert metric.value is not None

    def value(x: Tensor) -> float:
        return float(metric.value(metric.column(x), label, ones))  # type: ignore[misc]

    original = signal + 0.6 * shared + 0.6 * own - 0.5
    goal, found = value(original), [original]
    for i, (scale, shift, step) in enumerate(KINDS * 2):

        def column(
            size: float, noise: Tensor = noises[i], scale: float = scale, shift: float = shift, step: float = step
        ) -> Tensor:
            x = scale * signal - 0.5 + shift + size * (shared + noise) / math.sqrt(2)
            return x if not step else (x / step).round() * step

        low, high = 0.0, 4.0
        if (value(column(low)) - goal) * (value(column(high)) - goal) > 0:
            continue
        rises = value(column(low)) < goal
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if (value(column(middle)) < goal) == rises else (low, middle)
        found.append(column(low))
    return Population(metric, label, torch.stack([metric.column(x) for x in found]))


def calibrated(bins: int, seed: int = 0) -> Population:
    """Two calibrated models: one knows each row's probability, the other its mean alone. Both have an error of 0."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(POPULATION, generator=generator, dtype=torch.float64)
    return Population(calibration_error(bins), p, torch.stack([p, torch.full_like(p, float(p.mean()))]), drawn=True)


def accepted(rows: Population, size: int, runs: int, seed: int = 0) -> float:
    """Share of samples of this size on which the guard accepts."""
    generator, count = torch.Generator().manual_seed(seed), 0
    for i in range(runs):
        gains, weights, _ = rows.gains(size, generator)
        count += guard.decide(gains, weights, units=Units(size), seed=i).accepted
    return count / runs


def metrics(runs: int, only: str = "") -> tuple[dict[str, dict[int, float]], list[str]]:
    """Prints and returns the share accepted of every metric without a gain, by size.

    Also returns the metrics whose share exceeds MOST by more than chance's error.
    """
    found: dict[str, dict[int, float]] = {}
    wrong: list[str] = []
    allowed = MOST + 2 * math.sqrt(MOST / runs)
    print(f"share accepted in {runs:,} runs{'':17} " + "".join(f"{n:>7,} rows" for n in SIZES))
    cells: list[tuple[Callable[[], Population], str, bool]] = [
        *((lambda name=name: population(name), name, True) for name in OF_METRICS),  # type: ignore[misc]
        *((lambda b=b: calibrated(b), f"expectedCalibrationError, {b} bins", False) for b in (15, 50, 100)),  # type: ignore[misc]
    ]
    for make, name, bound in cells:
        if only not in name:
            continue
        rows = make()
        shares = [accepted(rows, n, runs) for n in SIZES]
        columns = f"({len(rows.columns) - 1} columns)"
        print(f"{name:32} {columns:12} {'  '.join(f'{100 * s:9.1f}%' for s in shares)}", flush=True)
        found[name] = dict(zip(SIZES, shares, strict=True))
        if bound and max(shares) > allowed:
            wrong.append(name)
    return found, wrong


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--runs", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--cells", default="", help="only cells whose name contains this")
    p.add_argument("--metrics", action="store_true", help="the metrics that are no mean over rows instead")
    p.add_argument("--rare", action="store_true", help="few units and rare large losses instead")
    p.add_argument("--again", type=int, default=0, help="draws for the worst three cells of --rare")
    given = parse(p, runs=1)
    torch.set_num_threads(1)
    results: Any
    if given.rare:
        results, wrong = guard_rare.rare(given.runs, given.again, given.cells)
        figures = {r["name"]: r["accepted"] for r in results}
    elif given.metrics:
        results, wrong = metrics(given.runs, given.cells)
        figures = {f"{name}, {n:,} rows": share for name, shares in results.items() for n, share in shares.items()}
    else:
        results, wrong = cells(given.runs, given.seed, given.cells)
        figures = {r["name"]: r["shares"]["guard"] for r in results}
    write(given, results, figures)
    print("The guard keeps its bounds." if not wrong else f"Out of bounds: {wrong}")
    return exit_code(given, wrong)


if __name__ == "__main__":
    sys.exit(main())
