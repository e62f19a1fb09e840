"""What does a row cost in each class of MLlib's stages?

The figures of `sparkdiff/growth/costs.py`. Spark's own `transform` on generated, cached rows of one partition on local[1]; what
counts is the CPU time of the tasks, as Spark reports it, less that of reading the same input columns. Each class has two sizes,
which give a fixed cost and a cost per entry (`costs` says what an entry is); of all turns the fastest counts.

    SPARK_CONF_DIR=conf python benchmarks/serving_costs.py --out serving_costs.json

Prints the table, beside the one that is kept, and writes JSON.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

from common import markdown, parse, parser, write
from pyspark.ml import classification, clustering, feature, regression
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.growth import costs

WIDTHS = (8, 64)
ROWS = 50_000
FEW = 300
"""Rows that the stages are fitted on."""
WARM = 3
"""Turns that don't count, in which Java compiles what runs often."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A fitted stage, the columns that it reads, one that it makes, and the entries of a row."""

    stage: Any
    reads: tuple[str, ...]
    makes: str
    entries: float

    @property
    def name(self) -> str:
        return type(self.stage).__name__


def rows_of(spark: SparkSession, rows: int) -> DataFrame:
    """Numbers n0.., vectors v8 and v64, h (one-hot), indexes i0.., strings s0.., label (of two values) and y."""
    data = spark.range(rows).repartition(1)
    numbers = [F.rand(j).alias(f"n{j}") for j in range(max(WIDTHS))]
    data = data.select("id", *numbers).withColumn("label", (F.col("n0") + F.col("n1") > 1).cast("double"))
    data = data.withColumn("y", F.col("n0") + 2 * F.col("n1") * F.col("n2"))
    indexes = [F.floor(F.col(f"n{j}") * 12).cast("double").alias(f"i{j}") for j in range(8)]
    data = data.select("*", *indexes)
    data = data.select(
        "*", *[F.concat(F.lit("level "), F.col(f"i{j}").cast("string")).alias(f"s{j}") for j in range(8)]
    )
    for d in WIDTHS:
        data = feature.VectorAssembler(inputCols=[f"n{j}" for j in range(d)], outputCol=f"v{d}").transform(data)
    hot = feature.OneHotEncoder(inputCols=["i0"], outputCols=["h"], dropLast=False)
    return hot.fit(data.limit(FEW)).transform(data)


def cases(data: DataFrame) -> list[Case]:
    """Two or more sizes of each class."""
    few = data.limit(FEW).coalesce(1).cache()
    made: list[Case] = []

    def add(stage: Any, reads: tuple[str, ...], makes: str = "out", entries: float | None = None) -> None:
        made.append(Case(stage, reads, makes, costs.entries_of(stage) if entries is None else entries))

    for d in WIDTHS:
        v, numbers = f"v{d}", tuple(f"n{j}" for j in range(d))
        to = {"inputCol": v, "outputCol": "out"}
        add(feature.VectorAssembler(inputCols=list(numbers), outputCol="out"), numbers)
        hint = feature.VectorSizeHint(inputCol=v, size=d, handleInvalid="error")
        add(hint, (v,), v)
        add(feature.Interaction(inputCols=["h", v], outputCol="out"), ("h", v), entries=d)
        add(feature.ElementwiseProduct(scalingVec=Vectors.dense([2.0] * d), **to), (v,))
        add(feature.StandardScaler(withMean=True, **to).fit(few), (v,))
        add(feature.MinMaxScaler(**to).fit(few), (v,))
        add(feature.MaxAbsScaler(**to).fit(few), (v,))
        add(feature.RobustScaler(withCentering=True, **to).fit(few), (v,))
        add(feature.PCA(k=d // 2, **to).fit(few), (v,))
        on, label = {"featuresCol": v, "predictionCol": "out"}, {"labelCol": "label"}
        add(regression.LinearRegression(labelCol="y", maxIter=2, **on).fit(few), (v,))
        add(regression.GeneralizedLinearRegression(labelCol="y", maxIter=2, regParam=0.1, **on).fit(few), (v,))
        add(classification.LogisticRegression(maxIter=2, **label, **on).fit(few), (v,))
        add(clustering.GaussianMixture(k=4, maxIter=2, featuresCol=v, probabilityCol="out").fit(few), (v,))
        add(
            regression.DecisionTreeRegressor(labelCol="y", maxDepth=3 if d == 8 else 8, minInfoGain=0, **on).fit(few),
            (v,),
        )
        add(regression.RandomForestRegressor(labelCol="y", numTrees=d, maxDepth=5, **on).fit(few), (v,))
        add(regression.GBTRegressor(labelCol="y", maxIter=d // 4, maxDepth=5, **on).fit(few), (v,))
        layers = [d, d // 2, 2]
        units = classification.MultilayerPerceptronClassifier(
            layers=layers, maxIter=2, rawPredictionCol="out", featuresCol=v
        )
        add(units.fit(few), (v,))
    for columns in (1, 8):
        indexes, strings = [f"i{j}" for j in range(columns)], [f"s{j}" for j in range(columns)]
        outs = [f"out{j}" for j in range(columns)]
        add(feature.OneHotEncoder(inputCols=indexes, outputCols=outs).fit(few), tuple(indexes), ",".join(outs))
        add(
            feature.StringIndexer(inputCols=strings, outputCols=outs, handleInvalid="keep").fit(few),
            tuple(strings),
            ",".join(outs),
        )
        numbers = tuple(f"n{j}" for j in range(columns))
        splits = [[-1.0, *[k / 20 for k in range(1, 20)], 2.0]] * columns
        add(feature.Bucketizer(splitsArray=splits, inputCols=list(numbers), outputCols=outs), numbers, ",".join(outs))
    for points in (3, FEW):
        rising = few.limit(points).select("*", F.col("n0").alias("curve"))
        isotonic = regression.IsotonicRegression(featuresCol="n0", labelCol="curve", predictionCol="out")
        add(isotonic.fit(rising), ("n0",))
    few.unpersist()
    return made


class Clock:
    """CPU seconds of the tasks of a query."""

    def __init__(self, spark: SparkSession):
        self.context, self.runs = spark.sparkContext, 0

    def seconds(self, data: DataFrame) -> float:
        self.runs += 1
        group = f"run-{self.runs}"
        self.context.setJobGroup(group, group)
        data.write.format("noop").mode("overwrite").save()
        tracker, store = self.context.statusTracker(), self.context._jsc.sc().statusStore()
        while not (stages := {s for j in tracker.getJobIdsForGroup(group) for s in tracker.getJobInfo(j).stageIds}):
            time.sleep(0.01)  # Spark hears of a job later than the job runs
        return sum(self._cpu_seconds(store, s) for s in stages)

    def _cpu_seconds(self, store: Any, stage: int) -> float:
        """Of a stage, once Spark has heard of its end."""
        while (last := store.lastStageAttempt(stage)).status().toString() not in ("COMPLETE", "SKIPPED"):
            time.sleep(0.01)
        return float(last.executorCpuTime()) / 1e9


def measured(case: Case, data: DataFrame, rows: int, turns: int, clock: Clock) -> float:
    """Microseconds of a row."""
    whole = case.stage.transform(data).select(*case.makes.split(","))
    read = data.select(*case.reads)
    times = [(clock.seconds(whole), clock.seconds(read)) for _ in range(WARM + turns)][WARM:]
    return 1e6 * (min(w for w, _ in times) - min(r for _, r in times)) / rows


def line(sizes: list[tuple[float, float]]) -> tuple[float, float]:
    """(fixed, per entry) of (entries, microseconds) of two sizes; neither is negative."""
    (few, cheap), (many, dear) = min(sizes), max(sizes)
    each = max((dear - cheap) / (many - few), 0.0) if many > few else 0.0
    return max(cheap - few * each, 0.0), each


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=ROWS)
    p.add_argument("--turns", type=int, default=7)
    p.add_argument("--only", nargs="*", help="classes")
    given = parse(p, rows=1000, turns=1)
    session: Callable[[], SparkSession] = (
        SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "3g").config("spark.sql.codegen.maxFields", 300).getOrCreate
    )  # fmt: skip
    spark = session()
    spark.sparkContext.setLogLevel("ERROR")
    data = rows_of(spark, given.rows).cache()
    data.count()
    clock, sizes = Clock(spark), dict[str, list[tuple[float, float]]]()
    for case in cases(data):
        if given.only is None or case.name in given.only:
            took = measured(case, data, given.rows, given.turns, clock)
            sizes.setdefault(case.name, []).append((case.entries, took))
            print(f"{case.name}: {took:.2f} microseconds at {case.entries:g} entries", file=sys.stderr)
    spark.stop()
    found = {name: line(of) for name, of in sizes.items()}
    kept = [costs.COSTS.get(name, costs.DEFAULT) for name in found]
    cells = [
        [name, *(f"{a:g} → {b:.2f}" for a, b in sorted(sizes[name])), f"{fixed:.2f}", f"{each:.4f}", f"{was[0]:g} + {was[1]:g}"]
        for (name, (fixed, each)), was in zip(found.items(), kept, strict=True)
    ]  # fmt: skip
    print(markdown(["class", "entries → µs", "entries → µs", "fixed", "per entry", "kept"], cells))
    figures = {}
    for name, (fixed, each) in found.items():
        figures |= {f"{name}, fixed": fixed, f"{name}, per entry": each}
    write(given, {name: {"sizes": sizes[name], "fixed": f, "perEntry": e} for name, (f, e) in found.items()}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
