"""Does the guard keep its level on real pipelines, and see real gains there?

Bike sharing as a population: Spark fits a pipeline on a small sample of the hours, the package's own trainer tunes it there
with all default candidates, and after every epoch each candidate's loss on every other hour (the pool) is kept. With the
pool's mean taken off each column the true gain of all of them is exactly zero, on differences as they really occur. Then
validation samples are drawn from the pool, with replacement: rows, days of 20 rows, or weeks in the order of time; the guard
decides as it would in a run, and so often as it accepts it is wrong. In the same way every hour and every weekday is left
without a true loss, and the slices that the guard calls worse are counted. For power the columns stay as they are, in pipelines
regularised so far that tuning gains about so much. Prints a table, writes JSON, and fails beyond the bounds. The populations
take about three minutes of one core and a Spark session, or none where --populations holds them; the runs about ten.

    SPARK_CONF_DIR=conf python benchmarks/guard_real.py --runs 300 --out guard_real.json
"""

import dataclasses
import itertools
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from common import CONFIG, exit_code, parse, parser, write
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS, TIME_BLOCKS
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.units import Units

GROUP_ROWS = 20
WEEK = 7 * 24
TRAINING_ROWS = 1200
LEVEL = 0.025
FALSE = 20 / 300  # share accepted without a gain, at the most
NEAR = 0.008  # a pipeline whose gain is farther from the wanted one stands for another question
SLICED = (1000, 1700, 5000)  # rows: about 40, 70 and 200 an hour


@dataclasses.dataclass(frozen=True)
class Pipe:
    """A pipeline: the shipped one, with or without its PCA, regularised, and the sample of hours that it is fitted on."""

    name: str
    pca: bool
    regParam: float
    sample: int


PIPES = tuple(
    Pipe(f"{name}, sample {sample}", pca, regParam, sample)
    for name, pca, regParam in (("PCA(10)", True, 0.0), ("regParam 1", False, 1.0), ("convex optimum", False, 1e-6))
    for sample in (0, 1)
)
# What the samples' noise leaves to gain differs; these gain about so much, and are shifted by the rest.
GAINS = {
    gain: tuple(Pipe(f"regParam {r}, sample {sample}", False, r, sample) for sample, r in enumerate(pair))
    for gain, pair in {0.047: (0.016, 0.046), 0.025: (0.0107, 0.023)}.items()
}


@dataclasses.dataclass(frozen=True)
class Population:
    """The pool under one pipeline, in the order of time."""

    name: str
    original: Tensor  # (n,) loss of the original
    gains: Tensor  # (n, columns) loss of the original - loss after an epoch of a candidate
    hours: Tensor  # (n,) since the year began

    @property
    def best(self) -> float:
        """The largest true gain of any column, as a share of the original's loss."""
        return float(self.gains.mean(0).max() / self.original.mean())


@dataclasses.dataclass(frozen=True)
class Cell:
    """One question: how much is drawn, and which share of acceptances is allowed."""

    name: str
    unit: Literal["rows", "groups", "blocks"]
    size: int  # rows; groups for groups
    gain: float | None = None  # of the pipeline in GAINS, as it is; None: of all in PIPES, with the gain taken off
    least: float = 0.0
    most: float = FALSE
    slices: bool = (
        False  # not whether the guard accepts is counted, but whether an hour or a weekday keeps the original
    )
    times: int = 1  # so many times the runs

    def bounds(self, runs: int) -> tuple[int, int]:
        """Of so many runs; two standard errors of the simulation are allowed where the bound is the level itself."""
        error = 2 * (self.most * (1 - self.most) / runs) ** 0.5 if self.slices else 0.0
        return round(self.least * runs), round((self.most + error) * runs)


CELLS = (
    *(Cell(f"no gain, {n:,} rows", "rows", n) for n in (500, 1700, 5000)),
    *(Cell(f"no gain, {n} days of {GROUP_ROWS} rows", "groups", n) for n in (50, 250)),
    Cell("no gain, 20,000 rows in the order of time", "blocks", 20_000),
    *(Cell(f"a slice worse without a loss, {n:,} rows", "rows", n, most=LEVEL, slices=True, times=10) for n in SLICED),
    Cell("a gain of 4.7%, 1,700 rows", "rows", 1700, gain=0.047, least=0.85, most=1.0),
    Cell("a gain of 2.5%, 5,000 rows", "rows", 5000, gain=0.025, least=0.9, most=1.0),
)


# Populations ----------------------------------------------------------------------------------------------------------


def populations(pipes: Sequence[Pipe], epochs: int) -> Iterator[Population]:
    """Fit and tune each pipeline on its sample of hours. Starts Spark."""
    from pyspark.ml import Pipeline
    from pyspark.ml.feature import PCA
    from pyspark.sql import functions as F

    from sparkdiff.cli.config import load_config
    from sparkdiff.data.loading import function, load_data, start_session

    config = load_config(CONFIG, [])
    spark = start_session({**config.spark, "spark.master": "local[1]", "spark.ui.enabled": "false"})
    spark.sparkContext.setLogLevel("ERROR")
    hours = load_data(spark, {**config.data["train"], "where": "true"}, config.folder, "train")
    hours = hours.withColumn("hours", F.expr("24 * day + hr")).cache()
    whole = hours.count()
    for pipe in pipes:
        place, cut = F.pmod(F.xxhash64("hours", F.lit(pipe.sample)), F.lit(1 << 20)), TRAINING_ROWS * (1 << 20) // whole
        train, pool = hours.where(place < cut), hours.where(place >= cut)
        *stages, head = function(config.pipeline, config.folder)(train).getStages()
        if not pipe.pca:
            (gone,) = (s for s in stages if isinstance(s, PCA))
            stages.remove(gone)
            head.setFeaturesCol(gone.getInputCol())
        model = Pipeline(stages=[*stages, head.setRegParam(pipe.regParam)]).fit(train)
        with tempfile.TemporaryDirectory() as folder:
            yield tuned_on(model, train, pool, folder, epochs, pipe.name)
    spark.stop()


def tuned_on(model: Any, train: Any, pool: Any, folder: str, epochs: int, name: str) -> Population:
    """Tune with all default candidates, without early stopping, and look at the pool after every epoch.

    All that this file knows of the trainer is here: after every epoch it asks the candidates for their scores.
    """
    from pyspark.sql import functions as F

    from sparkdiff import FineTuner
    from sparkdiff.evaluation.paired_rows import read
    from sparkdiff.evaluation.split_batches import scalar
    from sparkdiff.training.candidates import Candidates
    from sparkdiff.training.parameters import load

    scores, found, columns = Candidates.scores, {}, []

    def watched(candidates: Any, data: Any, split: str, metric: Any) -> Any:
        out = scores(candidates, data, split, metric)
        network = candidates.network
        if not columns:
            found["before"] = read(network, network, data, split, metric, "rows").original
            found["hours"] = torch.cat([scalar(batch, "time") for batch, *_ in data.batches(split)])
        scored, parameters = out
        for k in range(len(scored)):
            tuned = network.clone()
            load(tuned, parameters(k))
            columns.append(read(tuned, tuned, data, split, metric, "rows").original)
        return out

    rows = train.withColumn("held", F.lit(False)).unionByName(pool.withColumn("held", F.lit(True)))
    tuner = FineTuner(
        pipeline=model,
        validationIndicatorCol="held",
        timeCol="hours",
        maxEpochs=epochs,
        patience=epochs,
        cacheDir=folder,
        stream="arrow",
        verbosity=0,
    )
    with mock.patch.object(Candidates, "scores", watched):
        tuner.fit(rows)
    before, hours = found["before"], found["hours"]
    order = hours.argsort(stable=True)
    gains = before[:, None] - torch.stack(columns, 1)
    gains = gains[:, gains.isfinite().all(0)]
    return Population(name, before[order], gains[order], hours[order])


# Runs -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Drawer:
    """Draws validation samples from a population; the gains are those of the population, shifted."""

    cell: Cell
    pool: Population

    def shifted(self) -> Tensor:
        """The gains (n, columns): of every column zero over all samples of the cell's kind, or the best one's as wanted."""
        gains = self.pool.gains
        if self.cell.gain is not None:
            off = self.pool.best - self.cell.gain
            if abs(off) > NEAR:
                raise ValueError(f"{self.pool.name} gains {self.pool.best:.1%}, too far from {self.cell.gain:.1%}")
            return gains - off * self.pool.original.mean()
        if self.cell.slices:
            member = self.member()
            return gains - member @ (torch.linalg.pinv(member) @ gains)
        if self.cell.unit != "groups":
            return gains - gains.mean(0)
        days, counts = self.days()
        means = (
            torch.zeros(len(counts), gains.shape[1], dtype=torch.float64).index_add_(0, days, gains) / counts[:, None]
        )
        return gains - means.mean(0)

    def member(self) -> Tensor:
        """(n, 31) which hour of the day and which day of the week a row is of: 1 or 0."""
        hour, weekday = self.pool.hours.long() % 24, self.pool.hours.long() // 24 % 7
        one_hot = torch.nn.functional.one_hot
        return torch.cat([one_hot(hour, 24), one_hot(weekday, 7)], 1).double()

    def days(self) -> tuple[Tensor, Tensor]:
        """(n,) which day each row is of, and (days,) its rows."""
        _, days, counts = (self.pool.hours // 24).unique(return_inverse=True, return_counts=True)
        return days, counts

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of the pool and the block of each, (rows,)."""
        n, size, blocks = len(self.pool.original), self.cell.size, MAX_BLOCKS
        if self.cell.unit == "rows":
            return torch.randint(n, (size,), generator=generator), torch.randint(blocks, (size,), generator=generator)
        if self.cell.unit == "groups":
            days, counts = self.days()
            first, chosen = counts.cumsum(0) - counts, torch.randint(len(counts), (size,), generator=generator)
            inside = (torch.rand((size, GROUP_ROWS), generator=generator) * counts[chosen, None]).long()
            rows = days.argsort(stable=True)[first[chosen, None] + inside]
            block = torch.randint(blocks, (size, 1), generator=generator).expand_as(rows)
            return rows.flatten(), block.flatten()
        starts = torch.randint(n, (-(-size // WEEK), 1), generator=generator)
        rows = ((starts + torch.arange(WEEK)) % n).flatten()[:size]  # weeks in the order of time, around the year's end
        return rows, torch.arange(size) * TIME_BLOCKS // size


def decide(cell: Cell, _pool: Population, gains: Tensor, rows: Tensor, block: Tensor, seed: int) -> guard.Verdict:
    """As a run would, on these rows."""
    sums = torch.zeros((MAX_BLOCKS, gains.shape[1]), dtype=torch.float64).index_add_(0, block, gains[rows])
    weights = torch.bincount(block, minlength=MAX_BLOCKS).double()
    if cell.unit != "blocks":
        return guard.decide(sums.T, weights, units=Units(cell.size, cell.unit), seed=seed)
    slowness = guard.correlation_time(gains[rows, int(sums.sum(0).argmax())])
    return guard.decide(
        sums.T,
        weights,
        units=Units(TIME_BLOCKS, "blocks"),
        blockRows=cell.size / TIME_BLOCKS,
        correlationTime=slowness,
        seed=seed,
    )


def worse(gains: Tensor, member: Tensor, rows: Tensor, block: Tensor, seed: int) -> bool:
    """Whether the best column is called worse on some slice, as slices.changes and acceptance.judge find it."""
    best = gains[rows, int(gains[rows].sum(0).argmax())]
    member = member[rows]
    sums = torch.zeros((MAX_BLOCKS, member.shape[1]), dtype=torch.float64).index_add_(0, block, member * best[:, None])
    tested = member.sum(0) >= guard.MIN_UNITS
    return bool((guard.worsening(sums.T[tested], level=LEVEL, seed=seed) < LEVEL).any())


def accepted(cell: Cell, pools: Sequence[Population], runs: int, seed: int = 0) -> int:
    """Of so many runs, dealt evenly to the populations; of a cell of slices, those that the slices keep from it."""
    count = 0
    for k, pool in enumerate(pools):
        drawer = Drawer(cell, pool)
        gains, member = drawer.shifted(), drawer.member()
        generator = torch.Generator().manual_seed(zlib.crc32(f"{cell.name} {pool.name} {seed}".encode()))
        for i in range(k, runs, len(pools)):
            rows, block = drawer.draw(generator)
            if cell.slices:
                count += worse(gains, member, rows, block, i)
            else:
                count += decide(cell, pool, gains, rows, block, i).accepted
    return count


def pools_of(cell: Cell, every: Sequence[Population]) -> list[Population]:
    wanted = [pipe.name for pipe in (PIPES if cell.gain is None else GAINS[cell.gain])]
    return [p for p in every if p.name in wanted]


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--runs", type=int, default=300)
    flags.add_argument("--epochs", type=int, default=120)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--populations", type=Path, help="file of the populations; written where it doesn't exist")
    given = parse(flags, runs=1, epochs=1)
    pipes, cells = [*PIPES, *itertools.chain(*GAINS.values())], CELLS
    if given.smoke:  # after one epoch nothing gains as the cells with a gain want it
        pipes, cells = [PIPES[0]], tuple(cell for cell in CELLS if cell.gain is None)
    torch.set_num_threads(1)
    if given.populations and given.populations.exists():
        every = [Population(**p) for p in torch.load(given.populations)]
    else:
        every = list(populations(pipes, given.epochs))
        if given.populations:
            torch.save([{f.name: getattr(p, f.name) for f in dataclasses.fields(p)} for p in every], given.populations)
    for p in every:
        print(f"{p.name:40} {len(p.original):,} rows, {p.gains.shape[1]} columns, best true gain {p.best:+.1%}")
    print(f"\n{'':44} accepted of runs       needed    CPU s")
    results, wrong = [], []
    for cell in cells:
        start, runs = time.process_time(), given.runs * cell.times
        count = accepted(cell, pools_of(cell, every), runs, given.seed)
        low, high = cell.bounds(runs)
        print(
            f"{cell.name:44} {count:8} {runs:7,}   {low:3} to {high:3}   {time.process_time() - start:5.0f}", flush=True
        )
        results.append(dataclasses.asdict(cell) | {"accepted": count, "runs": runs})
        if not low <= count <= high:
            wrong.append(cell.name)
    write(given, results, {r["name"]: r["accepted"] / r["runs"] for r in results})
    print("The guard keeps its bounds." if not wrong else f"Out of bounds: {wrong}")
    return exit_code(given, wrong)


if __name__ == "__main__":
    sys.exit(main())
