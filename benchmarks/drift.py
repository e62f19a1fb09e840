"""An old model, newer rows and a future that goes on drifting: does fine-tuning beat the old model, and what else would?

Bike sharing in time order: the original is fitted on the first third of the year's hours (January to April), tuned on the
second (May to August) and measured on the last. Rivals: the old model, the same pipeline refitted on the second third
only, and on the first two. Two originals: regParam 1e-6 (near its optimum) and 1 (strongly regularised); months, seasons and
weather that a fit hasn't seen count as none. Half the mean Poisson deviance by Spark's own `transform`, and how much the
predictions move: the share of hours whose `more than 150 riders` flips against the old model. Prints a table and writes
JSON; nothing is tuned on these rows.

    SPARK_CONF_DIR=conf python benchmarks/drift.py --out drift.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkdiff import FineTuner
from sparkdiff.run import load_config, load_data, start_session

CONFIG = Path(__file__).resolve().parent.parent / "conf" / "bikeshare.yaml"
CATEGORIES = ["season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit"]
NUMBERS = ["temp", "atemp", "hum", "windspeed"]
BUSY = 150  # riders an hour, about the year's mean
SEEDS = 3  # of the random split and the order of rows


def pipeline(regParam: float) -> Pipeline:
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


def deviance(model: PipelineModel, rows: DataFrame) -> float:
    """Half the mean Poisson deviance."""
    y, mean = F.col("bikers"), F.col("prediction")
    loss = F.when(y > 0, y * F.log(y / mean)).otherwise(0.0) - (y - mean)
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


def arms(regParam: float, thirds: list[DataFrame], folder: Path) -> list[dict[str, Any]]:
    first, second, last = thirds
    old = pipeline(regParam).fit(first)
    models: dict[str, tuple[PipelineModel, dict[str, Any]]] = {"old model": (old, {})}
    for seed in range(SEEDS):
        ways = {"fine-tuned, random split": {}, "fine-tuned, split by time": {"timeCol": "when"}}
        for name, options in ways.items():
            if seed and options:  # by time nothing but the order of rows depends on the seed
                continue
            tuned = FineTuner(pipeline=old, seed=seed, cacheDir=str(folder), **options).fit(second)
            s = tuned.summary
            facts = {"decision": s.decision, "gain": s.gain, "p": s.p, "warnings": s.warnings}
            models[f"{name}, seed {seed}"] = tuned.pipelineModel, facts
    models["refitted on the second third"] = pipeline(regParam).fit(second), {}
    models["refitted on the first two thirds"] = pipeline(regParam).fit(first.unionByName(second)), {}
    out = []
    for arm, (m, facts) in models.items():
        found = {"second": deviance(m, second), "last": deviance(m, last), "flips": flips(old, m, last)}
        out.append({"regParam": regParam, "arm": arm, **found, **facts})
        print(f"regParam {regParam:g}, {arm}: {found['last']:.2f} on the last third", file=sys.stderr, flush=True)
    return out


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| regParam | model | decision | second third | last third | flips on the last third |", "|---" * 6 + "|"]
    for r in results:
        cells = [f"{r['regParam']:g}", r["arm"], r.get("decision", "–")]
        cells += [f"{r['second']:.2f}", f"{r['last']:.2f}", f"{r['flips']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    given = parser.parse_args()
    config = load_config(CONFIG, [])
    spark = start_session(config.spark)
    spark.sparkContext.setLogLevel("ERROR")
    where = {k: v for k, v in config.data["train"].items() if k != "where"}
    hours = load_data(spark, where, config.folder, "train").withColumn(
        "when", F.expr("day * 24 + int(hr)").cast("double")
    )
    for c in CATEGORIES:
        hours = hours.withColumn(c, F.col(c).cast("string"))
    cuts = hours.approxQuantile("when", [1 / 3, 2 / 3], 0.0)
    bounds = [(-1.0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], float("inf"))]
    thirds = [hours.where((F.col("when") > low) & (F.col("when") <= high)).cache() for low, high in bounds]
    with tempfile.TemporaryDirectory() as folder:
        results = [r for regParam in (1e-6, 1.0) for r in arms(regParam, thirds, Path(folder))]
    print(", ".join(f"{t.count():,} hours" for t in thirds))
    print(table(results))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")
    for regParam in dict.fromkeys(r["regParam"] for r in results):
        runs = [r for r in results if r["regParam"] == regParam]
        tuned = [r["last"] for r in runs if r["arm"].startswith("fine-tuned")]
        better = sum(t < runs[0]["last"] for t in tuned)
        print(f"regParam {regParam:g}: {better} of {len(tuned)} fine-tuned models beat the old one on the last third")
    return 0


if __name__ == "__main__":
    sys.exit(main())
