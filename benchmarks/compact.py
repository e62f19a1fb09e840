"""What does folding stages save at transform?

Spark's own `transform` of fitted pipelines and of what `sparkdiff.compact` makes of them, turn by turn in one run, on generated,
cached rows of one partition on local[1]. What counts is the CPU time of the tasks, as Spark reports it; reading the rows and
writing them nowhere is part of both. The ratio is the median over the turns of original / compacted, with quartiles beside it.

    SPARK_CONF_DIR=conf python benchmarks/compact.py --out compact.json

Exits with code 1 where a pipeline in which something folds gains less than a tenth.
"""

import statistics
import sys
from typing import Any

from common import exit_code, markdown, parse, parser, write
from pyspark.ml import Pipeline, classification, feature, regression
from pyspark.sql import DataFrame, SparkSession, functions as F
from serving_costs import Clock

import sparkdiff

LEAST = 1.1
"""The ratio that folding must reach."""
NUMBERS = 40
WARM = 3
"""Turns that don't count, in which Java compiles what runs often."""


def rows_of(spark: SparkSession, rows: int) -> DataFrame:
    """Numbers n0.., an index of twelve categories, words, a label of two values and a count."""
    numbers = [F.rand(j).alias(f"n{j}") for j in range(NUMBERS)]
    data = spark.range(rows).repartition(1).select("id", *numbers)
    words = F.array(*(F.concat(F.lit("w"), (F.rand(100 + j) * 500).cast("int").cast("string")) for j in range(20)))
    return data.select(
        *(f"n{j}" for j in range(NUMBERS)),
        F.floor(F.col("n0") * 12).cast("double").alias("index"),
        words.alias("words"),
        (F.col("n0") + F.col("n1") > 1).cast("double").alias("label"),
        F.floor(F.col("n2") * 9).cast("double").alias("count"),
    )


def pipelines() -> dict[str, list[Any]]:
    """The stages of each, unfitted; in the last one nothing folds."""

    def numbers(out: str = "v") -> Any:
        return feature.VectorAssembler(inputCols=[f"n{j}" for j in range(NUMBERS)], outputCol=out)

    scaler = feature.StandardScaler(inputCol="v", outputCol="z", withMean=True)
    hot = feature.OneHotEncoder(inputCols=["index"], outputCols=["hot"])
    return {
        "scaler, linear regression": [
            numbers(),
            scaler,
            regression.LinearRegression(featuresCol="z", labelCol="count"),
        ],
        "scaler, PCA(10), Poisson": [
            numbers(),
            scaler,
            feature.PCA(inputCol="z", outputCol="p", k=10),
            regression.GeneralizedLinearRegression(featuresCol="p", labelCol="count", family="poisson", maxIter=3),
        ],
        "scaled numbers beside categories, logistic": [
            numbers(),
            scaler,
            hot,
            feature.VectorAssembler(inputCols=["z", "hot"], outputCol="all"),
            classification.LogisticRegression(featuresCol="all", maxIter=3),
        ],
        "HashingTF, IDF, logistic": [
            feature.HashingTF(inputCol="words", outputCol="tf"),
            feature.IDF(inputCol="tf", outputCol="idf"),
            classification.LogisticRegression(featuresCol="idf", maxIter=2),
        ],
        "scaler, network": [
            numbers(),
            scaler,
            classification.MultilayerPerceptronClassifier(featuresCol="z", layers=[NUMBERS, 8, 2], maxIter=2),
        ],
        "scaler, selector, 20 boosted trees": [
            numbers(),
            scaler,
            feature.VectorSlicer(inputCol="z", outputCol="s", indices=list(range(0, NUMBERS, 2))),
            regression.GBTRegressor(featuresCol="s", labelCol="count", maxIter=20),
        ],
        "linear regression alone": [numbers(), regression.LinearRegression(featuresCol="v", labelCol="count")],
    }


def measured(clock: Clock, data: DataFrame, original: Any, small: Any, kept: list[str], turns: int) -> dict[str, Any]:
    """CPU seconds of both, one after the other in each turn, which of them first by turns."""
    both = [model.transform(data).select(*kept) for model in (original, small)]
    times = []
    for turn in range(WARM + turns):
        order = (0, 1) if turn % 2 else (1, 0)
        took = {i: clock.seconds(both[i]) for i in order}
        times.append((took[0], took[1]))
    ratios = sorted(a / b for a, b in times[WARM:])
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "stages": [len(original.stages), len(small.stages)],
        "seconds": times[WARM:],
        "ratio": middle,
        "quartiles": [low, high],
    }


def _cells(name: str, r: dict[str, Any], rows: int) -> list[str]:
    before, after = (1e6 * statistics.median(s) / rows for s in zip(*r["seconds"], strict=True))
    low, high = r["quartiles"]
    stages = f"{r['stages'][0]} → {r['stages'][1]}"
    return [name, stages, f"{before:.2f}", f"{after:.2f}", f"{r['ratio']:.2f} ({low:.2f} to {high:.2f})"]


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--turns", type=int, default=11)
    given = parse(p, rows=1000, turns=1)
    builder: Any = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.memory", "3g").config("spark.sql.codegen.maxFields", 300).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    data = rows_of(spark, given.rows).cache()
    data.count()
    clock, found = Clock(spark), dict[str, dict[str, Any]]()
    for name, stages in pipelines().items():
        original = Pipeline(stages=stages).fit(data.limit(500))
        plan, small = sparkdiff.compact_plan(original), sparkdiff.compact(original)
        found[name] = measured(clock, data, original, small, list(plan.keepCols), given.turns)
        print(f"{name}: {found[name]['ratio']:.2f}", file=sys.stderr)
    spark.stop()
    cells = [_cells(name, r, given.rows) for name, r in found.items()]
    print(markdown(["pipeline", "stages", "original, µs a row", "compacted", "ratio (quartiles)"], cells))
    write(given, found, {f"{name}, ratio": r["ratio"] for name, r in found.items()})
    folds = {name: r["ratio"] for name, r in found.items() if r["stages"][0] > r["stages"][1]}
    missed = [name for name, ratio in folds.items() if ratio < LEAST]
    print(f"\nat least {LEAST} where something folds: {'missed by ' + ', '.join(missed) if missed else 'met'}")
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
