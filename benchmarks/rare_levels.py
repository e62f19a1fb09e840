"""Does fine-tuning harm rows with rare categories, which hardly any row of validation shows?

Two populations with a known mean: bike sharing (hours drawn with replacement, counts from a gamma-Poisson around the mean
that a regression on all hours predicts; one hour of 8,645 has the weather `heavy rain/snow`), and generated rows with two
columns of Zipf categories. From each, per seed: an original fitted on a small old sample, fine-tuned on a larger new one, and
measured on a large fresh one; with regParam 1e-6 there is little to gain but much to spoil, with regParam 1 much to gain.
Half the mean Poisson deviance by Spark's own `transform`; also on the rows whose rarest level has fewer than 5 tuning rows
(training and validation together), or 5 to 19. Prints a table, writes JSON, fails where a tuned model is worse than its
original by more than 0.5%.

    SPARK_CONF_DIR=conf python benchmarks/rare_levels.py --seeds 20 --out rare_levels.json
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import CONFIG, exit_code, markdown, parse, parser, write
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import SparkSession, functions as F

from sparkdiff import FineTuner
from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import load_data, start_session
from sparkdiff.options import Options

WORSE = 0.005
SHAPE = 5.0  # of the gamma factor: bike counts vary five times more than Poisson at their mean
ORIGINALS = {"regParam 1e-6": 1e-6, "regParam 1": 1.0}
BINS = {"rarest level in < 5 tuning rows": (0, 4), "in 5 to 19": (5, 19)}


@dataclasses.dataclass(frozen=True)
class Population:
    """Where rows come from: `draw(rows, random)` gives columns and the label `y`."""

    name: str
    categories: list[str]
    numbers: list[str]
    draw: Callable[[int, np.random.Generator], pd.DataFrame]


def pipeline(p: Population, regParam: float) -> Pipeline:
    index, onehot = [f"{c}_index" for c in p.categories], [f"{c}_onehot" for c in p.categories]
    return Pipeline(
        stages=[
            StringIndexer(inputCols=p.categories, outputCols=index, handleInvalid="keep"),
            OneHotEncoder(inputCols=index, outputCols=onehot),
            VectorAssembler(inputCols=[*onehot, *p.numbers], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            GeneralizedLinearRegression(featuresCol="scaled", labelCol="y", family="poisson", regParam=regParam),
        ]
    )


def counts(mean: np.ndarray[Any, Any], random: np.random.Generator) -> np.ndarray[Any, Any]:
    return random.poisson(mean * random.gamma(SHAPE, 1 / SHAPE, len(mean))).astype(np.float64)


def bike_sharing(spark: SparkSession) -> Population:
    config = load_config(CONFIG, [])
    where = {k: v for k, v in config.data["train"].items() if k != "where"}
    hours = load_data(spark, where, config.folder, "train").withColumn("y", F.col("bikers").cast("double"))
    categories, numbers = ["mnth", "hr", "weekday", "weathersit"], ["temp", "atemp", "hum", "windspeed"]
    hours = hours.select(*(F.col(c).cast("string") for c in categories), *numbers, "y")
    known = Population("bike sharing", categories, numbers, lambda _rows, _random: pd.DataFrame())
    rows = pipeline(known, 1e-6).fit(hours).transform(hours).select(*categories, *numbers, "prediction").toPandas()

    def draw(number: int, random: np.random.Generator) -> pd.DataFrame:
        out = rows.iloc[random.integers(0, len(rows), number)].reset_index(drop=True)
        return out.assign(y=counts(out.pop("prediction").to_numpy(), random))

    return dataclasses.replace(known, draw=draw)


def zipf() -> Population:
    """Levels of probability 1 / rank; the rarest of 400 has one row in 2,600."""
    made = np.random.default_rng(0)
    sizes = {"shop": 400, "product": 150}
    effects = {c: made.normal(0, 0.5, size) for c, size in sizes.items()}
    slope = made.normal(0, 0.3, 3)

    def draw(number: int, random: np.random.Generator) -> pd.DataFrame:
        x = random.normal(size=(number, 3))
        out, log = pd.DataFrame(x, columns=["a", "b", "c"]), 1.5 + x @ slope
        for c, size in sizes.items():
            share = 1 / np.arange(1, size + 1)
            level = random.choice(size, number, p=share / share.sum())
            out[c], log = [f"{c}{k}" for k in level], log + effects[c][level]
        return out.assign(y=counts(np.exp(log), random))

    return Population("Zipf categories", list(sizes), ["a", "b", "c"], draw)


def deviances(spark: SparkSession, model: PipelineModel, path: Path) -> dict[str, float]:
    """Half the mean Poisson deviance on a sample, over all rows and over those of each bin."""
    y, mean = F.col("y"), F.col("prediction")
    loss = F.when(y > 0, y * F.log(y / mean)).otherwise(0.0) - (y - mean)
    means = [F.avg(loss).alias("all")]
    means += [F.avg(F.when(F.col("rarest").between(low, high), loss)).alias(name) for name, (low, high) in BINS.items()]
    row = model.transform(spark.read.parquet(f"file://{path}")).agg(*means).first()
    assert row is not None
    return {k: v for k, v in row.asDict().items() if v is not None}


def measure(
    spark: SparkSession, p: Population, seed: int, folder: Path, sizes: Sequence[int], epochs: int
) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    old, new, fresh = (p.draw(n, random) for n in sizes)
    fresh["rarest"] = np.min([fresh[c].map(new[c].value_counts()).fillna(0) for c in p.categories], axis=0).astype(int)
    paths = {}
    for name, rows in (("old", old), ("new", new), ("fresh", fresh)):
        paths[name] = folder / f"{name}.parquet"
        rows.to_parquet(paths[name])
    out = []
    for original, regParam in ORIGINALS.items():
        start = time.perf_counter()
        model = pipeline(p, regParam).fit(spark.read.parquet(f"file://{paths['old']}"))
        tuned = FineTuner(pipeline=model, seed=seed, maxEpochs=epochs, cacheDir=str(folder / "cache")).fit(
            spark.read.parquet(f"file://{paths['new']}")
        )
        before = deviances(spark, model, paths["fresh"])
        kept = tuned.pipelineModel is model
        after = before if kept else deviances(spark, tuned.pipelineModel, paths["fresh"])
        out.append(
            {
                "population": p.name,
                "original": original,
                "seed": seed,
                "decision": tuned.summary.decision,
                "validationGain": tuned.summary.gain,
                "before": before,
                "after": after,
                "change": {k: after[k] / before[k] - 1 for k in before},
                "warnings": tuned.summary.warnings,
                "seconds": time.perf_counter() - start,
            }
        )
    return out


def table(results: list[dict[str, Any]]) -> str:
    head = ["population, original", "tuned", "change of the loss: median", "worst", *(f"worst: {b}" for b in BINS)]
    lines = []
    for key in dict.fromkeys((r["population"], r["original"]) for r in results):
        runs = [r for r in results if (r["population"], r["original"]) == key]
        change = [r["change"]["all"] for r in runs]
        cells = [", ".join(key), f"{sum(r['decision'] == 'tuned' for r in runs)} of {len(runs)}"]
        cells += [f"{np.median(change):+.2%}", f"{max(change):+.2%}"]
        for name in BINS:
            seen = [r["change"][name] for r in runs if name in r["change"]]
            cells.append(f"{max(seen):+.2%}" if seen else "–")
        lines.append(cells)
    return markdown(head, lines)


def worst(results: list[dict[str, Any]]) -> dict[str, float]:
    """The largest change of the loss of each population and original."""
    out: dict[str, float] = {}
    for r in results:
        name = f"{r['population']}, {r['original']}, worst change"
        out[name] = max(r["change"]["all"], out.get(name, -1.0))
    return out


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, default=20)
    flags.add_argument(
        "--sizes",
        type=int,
        nargs=3,
        default=[1_500, 5_000, 50_000],
        metavar=("OLD", "NEW", "FRESH"),
        help="rows to fit the original, to tune it, to measure both",
    )
    flags.add_argument("--epochs", type=int, default=Options().maxEpochs)
    given = parse(flags, seeds=1, sizes=[500, 1_000, 2_000], epochs=1)
    spark = start_session(load_config(CONFIG, []).spark)
    spark.sparkContext.setLogLevel("ERROR")
    results: list[dict[str, Any]] = []
    populations = [bike_sharing(spark), zipf()]
    for seed in range(given.seeds):
        for p in populations:
            with tempfile.TemporaryDirectory() as name:
                results += measure(spark, p, seed, Path(name), given.sizes, given.epochs)
            for r in results[-len(ORIGINALS) :]:
                print(
                    f"seed {seed}, {p.name}, {r['original']}: {r['decision']}, {r['change']['all']:+.2%}",
                    file=sys.stderr,
                )
        write(given, results, worst(results))
    print(table(results))
    broken = [r for r in results if r["change"]["all"] > WORSE]
    names = "; ".join(
        f"{r['population']}, {r['original']}, seed {r['seed']}: {r['change']['all']:+.2%}" for r in broken
    )
    print(f"\nNever worse than the original by more than {WORSE:.1%}: {names or 'kept'}")
    return exit_code(given, broken)


if __name__ == "__main__":
    sys.exit(main())
