"""An old model, newer rows and a future that goes on drifting: does fine-tuning beat the old model, and what else would?

Bike sharing in time order: the original is fitted on the first third of the year's hours (January to April), tuned on the
second (May to August) and measured on the last. Rivals: the old model, the same pipeline refitted on the second third
only, and on the first two. Four originals: Poisson regressions with regParam 1e-6 (near its optimum) and 1 (strongly
regularised), where months, seasons and weather that a fit hasn't seen count as none, by half the mean Poisson deviance; and
boosted trees, 20 (the shipped pipeline) and 200, by the mean squared error. By Spark's own `transform`, and how much the
predictions move: the share of hours whose `more than 150 riders` flips against the old model. Prints a table and writes
JSON; nothing is tuned on these rows.

    SPARK_CONF_DIR=conf python benchmarks/drift.py --out drift.json
"""

import functools
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import CONFIG, exit_code, markdown, parse, parser, write
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GBTRegressionModel, GeneralizedLinearRegression
from pyspark.sql import DataFrame, functions as F

from sparkdiff import FineTuner
from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import function, load_data, start_session
from sparkdiff.options import Options

CATEGORIES = ["season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit"]
NUMBERS = ["temp", "atemp", "hum", "windspeed"]
BUSY = 150  # riders an hour, about the year's mean


def regression(regParam: float) -> Pipeline:
    index, onehot = [f"{c}_index" for c in CATEGORIES], [f"{c}_onehot" for c in CATEGORIES]
    return Pipeline(
        stages=[
            StringIndexer(inputCols=CATEGORIES, outputCols=index, handleInvalid="keep"),
            OneHotEncoder(inputCols=index, outputCols=onehot),
            VectorAssembler(inputCols=[*onehot, *NUMBERS], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            GeneralizedLinearRegression(featuresCol="scaled", labelCol="bikers", family="poisson", regParam=regParam),
        ]
    )


def boosted(trees: int) -> Pipeline:
    pipeline = function("pipelines:bikeshare_gbt", CONFIG.parent)(None)
    pipeline.getStages()[-1].setMaxIter(trees)
    return pipeline


ORIGINALS: dict[str, Callable[[], Pipeline]] = {
    "regParam 1e-6": functools.partial(regression, 1e-6),
    "regParam 1": functools.partial(regression, 1.0),
    "20 trees": functools.partial(boosted, 20),
    "200 trees": functools.partial(boosted, 200),
}


def mean_loss(model: PipelineModel, rows: DataFrame) -> float:
    """What the model was fitted for: half the mean Poisson deviance, or of trees the mean squared error."""
    y, mean = F.col("bikers"), F.col("prediction")
    loss = F.when(y > 0, y * F.log(y / mean)).otherwise(0.0) - (y - mean)
    if isinstance(model.stages[-1], GBTRegressionModel):
        loss = (y - mean) ** 2
    row = model.transform(rows).agg(F.avg(loss)).first()
    assert row is not None
    return float(row[0])


def flips(old: PipelineModel, new: PipelineModel, rows: DataFrame) -> float:
    """Share of the hours that one model calls busy and the other doesn't."""
    one, other = (
        m.transform(rows).select("when", (F.col("prediction") > BUSY).alias(n)) for m, n in ((old, "a"), (new, "b"))
    )
    row = one.join(other, "when").agg(F.avg((F.col("a") != F.col("b")).cast("double"))).first()
    assert row is not None
    return float(row[0])


def arms(original: str, thirds: list[DataFrame], folder: Path, seeds: int, epochs: int) -> list[dict[str, Any]]:
    if original.startswith("regParam"):
        thirds = [rows.withColumns({c: F.col(c).cast("string") for c in CATEGORIES}) for rows in thirds]
    first, second, last = thirds
    old = ORIGINALS[original]().fit(first)
    models: dict[str, tuple[PipelineModel, dict[str, Any]]] = {"old model": (old, {})}
    for seed in range(seeds):
        ways = {"fine-tuned, random split": {}, "fine-tuned, split by time": {"timeCol": "when"}}
        for name, way in ways.items():
            if seed and way:  # by time nothing but the order of rows depends on the seed
                continue
            tuned = FineTuner(pipeline=old, seed=seed, maxEpochs=epochs, cacheDir=str(folder), **way).fit(second)
            s = tuned.summary
            facts = {"decision": s.decision, "gain": s.gain, "p": s.p, "warnings": s.warnings}
            models[f"{name}, seed {seed}"] = tuned.pipelineModel, facts
    models["refitted on the second third"] = ORIGINALS[original]().fit(second), {}
    models["refitted on the first two thirds"] = ORIGINALS[original]().fit(first.unionByName(second)), {}
    out = []
    for arm, (m, facts) in models.items():
        found = {"second": mean_loss(m, second), "last": mean_loss(m, last), "flips": flips(old, m, last)}
        out.append({"original": original, "arm": arm, **found, **facts})
        print(f"{original}, {arm}: {found['last']:.2f} on the last third", file=sys.stderr, flush=True)
    return out


def table(results: list[dict[str, Any]]) -> str:
    cells = [
        [r["original"], r["arm"], r.get("decision", "–"), f"{r['second']:.2f}", f"{r['last']:.2f}", f"{r['flips']:.1%}"]
        for r in results
    ]
    return markdown(["original", "model", "decision", "second third", "last third", "flips on the last third"], cells)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--originals", nargs="+", default=list(ORIGINALS), choices=ORIGINALS, metavar="ORIGINAL")
    p.add_argument("--seeds", type=int, default=3, help="of the random split and the order of rows")
    p.add_argument("--epochs", type=int, default=Options().maxEpochs)
    given = parse(p, originals=["regParam 1", "20 trees"], seeds=1, epochs=1)
    config = load_config(CONFIG, [])
    spark = start_session(config.spark)
    spark.sparkContext.setLogLevel("ERROR")
    where = {k: v for k, v in config.data["train"].items() if k != "where"}
    hours = load_data(spark, where, config.folder, "train").withColumn(
        "when", F.expr("day * 24 + int(hr)").cast("double")
    )
    cuts = hours.approxQuantile("when", [1 / 3, 2 / 3], 0.0)
    bounds = [(-1.0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], float("inf"))]
    thirds = [hours.where((F.col("when") > low) & (F.col("when") <= high)).cache() for low, high in bounds]
    with tempfile.TemporaryDirectory() as folder:
        results = [
            r for original in given.originals for r in arms(original, thirds, Path(folder), given.seeds, given.epochs)
        ]
    print(", ".join(f"{t.count():,} hours" for t in thirds))
    print(table(results))
    figures = {}
    for original in given.originals:
        runs = [r for r in results if r["original"] == original]
        tuned = [r["last"] for r in runs if r["arm"].startswith("fine-tuned")]
        better = sum(t < runs[0]["last"] for t in tuned)
        figures[f"{original}, last third over the old model"] = statistics.fmean(tuned) / runs[0]["last"]
        print(f"{original}: {better} of {len(tuned)} fine-tuned models beat the old one on the last third")
    write(given, results, figures)
    return exit_code(given, ())


if __name__ == "__main__":
    sys.exit(main())
