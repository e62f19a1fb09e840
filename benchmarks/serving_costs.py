"""What does a row cost in each class of MLlib's stages?

The figures of `sparkdiff/growth/cost_table.py`. Spark's own `transform` on generated, cached rows of one partition on local[1];
what counts is the CPU time of the tasks, as Spark reports it, less that of reading the same input columns. Each class has two
sizes, which give a fixed cost and a cost per entry (`costs` says what an entry is); of all turns the fastest counts. Both
are divided by how many times as slow as the table's this machine is, by the median of the classes that are in it.

    SPARK_CONF_DIR=conf python benchmarks/serving_costs.py --out serving_costs.json

Prints the table, beside the one that is kept, and as its lines in `costs`, and writes JSON.
"""

import contextlib
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import markdown, parse, parser, write
from pyspark.ml import classification, clustering, feature, regression
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.growth import cost_table
from sparkdiff.pipeline.nesting import flatten

WIDTHS = (8, 64)
WORDS = (5, 40)
VOCABULARY = 1000
LEVELS = 12
"""Values of an index."""
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
    """Numbers n0.., vectors v8 and v64, h (one-hot), indexes i0.., their vectors i8s and i64s, strings s0.., label (of two
    values), y, censor, and of 5 and of 40 words: text5.., words5.. and counts5.., vectors of counts.
    """
    data = spark.range(rows).repartition(1)
    numbers = [F.rand(j).alias(f"n{j}") for j in range(max(WIDTHS))]
    data = data.select("id", *numbers).withColumn("label", (F.col("n0") + F.col("n1") > 1).cast("double"))
    data = data.withColumn("y", F.col("n0") + 2 * F.col("n1") * F.col("n2")).withColumn("censor", F.lit(1.0))
    indexes = [F.floor(F.col(f"n{j}") * LEVELS).cast("double").alias(f"i{j}") for j in range(max(WIDTHS))]
    data = data.select("*", *indexes)
    data = data.select(
        "*", *[F.concat(F.lit("level "), F.col(f"i{j}").cast("string")).alias(f"s{j}") for j in range(8)]
    )
    for d in WIDTHS:
        for first, column in (("n", f"v{d}"), ("i", f"i{d}s")):
            inputs = [f"{first}{j}" for j in range(d)]
            data = feature.VectorAssembler(inputCols=inputs, outputCol=column).transform(data)
    for n in WORDS:
        words = [F.concat(F.lit("w"), F.floor(F.rand(100 + j) * VOCABULARY).cast("string")) for j in range(n)]
        data = data.withColumn(f"words{n}", F.array(*words)).withColumn(f"text{n}", F.concat_ws(" ", f"words{n}"))
        counts = feature.CountVectorizerModel.from_vocabulary(
            [f"w{j}" for j in range(VOCABULARY)], inputCol=f"words{n}", outputCol=f"counts{n}"
        )
        data = counts.transform(data)
    hot = feature.OneHotEncoder(inputCols=["i0"], outputCols=["h"], dropLast=False)
    return hot.fit(data.limit(FEW)).transform(data)


def cases(data: DataFrame) -> Iterator[Case]:
    """Two sizes of each class, one of those that have no size."""
    few = data.limit(FEW).coalesce(1).cache()
    for d in WIDTHS:
        yield from of_vectors(few, d)
        yield from of_linear(few, d)
        yield from of_trees(few, d)
        yield from of_clusters(few, d)
    for columns in (1, 8):
        yield from of_columns(few, columns)
    for points in (3, FEW):
        rising = few.limit(points).select("*", F.col("n0").alias("curve"))
        isotonic = regression.IsotonicRegression(featuresCol="n0", labelCol="curve", predictionCol="out")
        yield case(isotonic.fit(rising), "n0")
    yield from of_formula(few)
    for n in WORDS:
        yield from of_words(few, n)
    few.unpersist()


def case(stage: Any, *reads: str, makes: str = "out", entries: float | None = None) -> Case:
    """A case; its entries are those that `costs` reads from the stage."""
    return Case(stage, reads, makes, cost_table.entries_of(stage) if entries is None else entries)


def of_vectors(few: DataFrame, d: int) -> Iterator[Case]:
    """What reads a vector of `d` entries and writes another one."""
    v, numbers = f"v{d}", [f"n{j}" for j in range(d)]
    to: dict[str, Any] = {"inputCol": v, "outputCol": "out"}
    yield case(feature.VectorAssembler(inputCols=numbers, outputCol="out"), *numbers)
    yield case(feature.VectorSizeHint(inputCol=v, size=d, handleInvalid="error"), v, makes=v)
    yield case(feature.Interaction(inputCols=["h", v], outputCol="out"), "h", v, entries=d)
    yield case(feature.ElementwiseProduct(scalingVec=Vectors.dense([2.0] * d), **to), v)
    yield case(feature.Normalizer(**to), v, entries=d)
    yield case(feature.DCT(**to), v, entries=d)
    for stage in (
        feature.StandardScaler(withMean=True, **to),
        feature.MinMaxScaler(**to),
        feature.MaxAbsScaler(**to),
        feature.RobustScaler(withCentering=True, **to),
        feature.PCA(k=d // 2, **to),
        feature.IDF(**to),
    ):
        yield case(stage.fit(few), v)
    expansion = feature.PolynomialExpansion(degree=2, **to)
    yield case(expansion, v, entries=cost_table.entries_of(expansion, {v: d}))
    indexer = feature.VectorIndexer(inputCol=f"i{d}s", outputCol="out", maxCategories=LEVELS, handleInvalid="keep")
    yield case(indexer.fit(few), f"i{d}s")
    yield case(feature.VectorSlicer(indices=list(range(0, d, 2)), **to), v)
    on: dict[str, Any] = {"featuresCol": v, "outputCol": "out"}
    yield case(feature.VarianceThresholdSelector(varianceThreshold=1 / 12, **on).fit(few), v)
    categories: dict[str, Any] = {"featuresCol": f"i{d}s", "outputCol": "out", "labelCol": "label"}
    yield case(feature.ChiSqSelector(numTopFeatures=d // 2, **categories).fit(few), f"i{d}s")
    univariate = feature.UnivariateFeatureSelector(labelCol="label", **on)
    univariate = univariate.setFeatureType("continuous").setLabelType("categorical").setSelectionThreshold(d // 2)
    yield case(univariate.fit(few), v)
    projections = feature.BucketedRandomProjectionLSH(bucketLength=1.0, numHashTables=4, **to).fit(few)
    yield case(projections, v, entries=cost_table.entries_of(projections, {v: d}))


def of_linear(few: DataFrame, d: int) -> Iterator[Case]:
    """Predictors that multiply each of `d` features, and small networks."""
    v = f"v{d}"
    on: dict[str, Any] = {"featuresCol": v, "predictionCol": "out", "maxIter": 2}
    number, label = {**on, "labelCol": "y"}, {**on, "labelCol": "label"}
    for estimator in (
        regression.LinearRegression(**number),
        regression.GeneralizedLinearRegression(regParam=0.1, **number),
        regression.AFTSurvivalRegression(censorCol="censor", **number),
        regression.FMRegressor(**number),
        classification.LogisticRegression(**label),
        classification.LinearSVC(**label),
        classification.FMClassifier(**label),
        classification.NaiveBayes(featuresCol=v, predictionCol="out", labelCol="label"),
        classification.MultilayerPerceptronClassifier(
            layers=[d, d // 2, 2], maxIter=2, rawPredictionCol="out", featuresCol=v
        ),
    ):
        yield case(estimator.fit(few), v)


def of_trees(few: DataFrame, d: int) -> Iterator[Case]:
    """Trees on `d` features, few and shallow or many and deep."""
    v = f"v{d}"
    on: dict[str, Any] = {"featuresCol": v, "predictionCol": "out", "labelCol": "y"}
    for estimator in (
        regression.DecisionTreeRegressor(maxDepth=3 if d == 8 else 8, minInfoGain=0, **on),
        regression.RandomForestRegressor(numTrees=d, maxDepth=5, **on),
        regression.GBTRegressor(maxIter=d // 4, maxDepth=5, **on),
    ):
        yield case(estimator.fit(few), v)


def of_clusters(few: DataFrame, d: int) -> Iterator[Case]:
    """Clusters of `d` features."""
    v = f"v{d}"
    yield case(clustering.GaussianMixture(k=4, maxIter=2, featuresCol=v, probabilityCol="out").fit(few), v)
    for estimator in (clustering.KMeans, clustering.BisectingKMeans):
        yield case(estimator(k=8, maxIter=2, featuresCol=v, predictionCol="out").fit(few), v)


def of_columns(few: DataFrame, columns: int) -> Iterator[Case]:
    """What reads and writes so many columns, and one classifier per class."""
    indexes, strings, numbers = ([f"{first}{j}" for j in range(columns)] for first in "isn")
    outs = [f"out{j}" for j in range(columns)]
    makes = ",".join(outs)
    yield case(feature.OneHotEncoder(inputCols=indexes, outputCols=outs).fit(few), *indexes, makes=makes)
    indexer = feature.StringIndexer(inputCols=strings, outputCols=outs, handleInvalid="keep")
    yield case(indexer.fit(few), *strings, makes=makes)
    target = feature.TargetEncoder(inputCols=indexes, outputCols=outs, labelCol="y", targetType="continuous")
    yield case(target.fit(few), *indexes, makes=makes)
    splits = [[-1.0, *[k / 20 for k in range(1, 20)], 2.0]] * columns
    yield case(feature.Bucketizer(splitsArray=splits, inputCols=numbers, outputCols=outs), *numbers, makes=makes)
    binarizer = feature.Binarizer(thresholds=[0.5] * columns, inputCols=numbers, outputCols=outs)
    yield case(binarizer, *numbers, makes=makes)
    yield case(feature.Imputer(inputCols=numbers, outputCols=outs).fit(few), *numbers, makes=makes)
    yield case(feature.FeatureHasher(inputCols=strings, outputCol="out"), *strings)
    if columns == 1:
        labels = [f"level {j}" for j in range(LEVELS)]
        yield case(feature.IndexToString(inputCol="i0", outputCol="out", labels=labels), "i0")
    classes = few.withColumn("class", F.col("id") % (3 if columns == 1 else LEVELS))
    one = classification.LogisticRegression(featuresCol="v8", maxIter=2)
    rest = classification.OneVsRest(classifier=one, featuresCol="v8", labelCol="class", predictionCol="out")
    yield case(rest.fit(classes), "v8")


def of_formula(few: DataFrame) -> Iterator[Case]:
    """The stages inside an RFormulaModel that stand nowhere else."""
    formula = feature.RFormula(formula="label ~ n0 + n1", featuresCol="v8", labelCol="copy")
    inside = {type(stage).__name__: stage for _, stage in flatten(formula.fit(few.drop("v8")))}
    for name in ("VectorAttributeRewriter", "ColumnPruner"):
        yield case(inside[name], "v8", makes="v8")
    yield case(inside["FormulaLabel"], "label", makes="copy")


def of_words(few: DataFrame, n: int) -> Iterator[Case]:
    """What reads texts of `n` words, or the counts of words."""
    text, words, counts = f"text{n}", f"words{n}", f"counts{n}"
    yield case(feature.Tokenizer(inputCol=text, outputCol="out"), text, entries=n)
    yield case(feature.RegexTokenizer(inputCol=text, outputCol="out"), text, entries=n)
    to: dict[str, Any] = {"inputCol": words, "outputCol": "out"}
    yield case(feature.StopWordsRemover(**to), words, entries=n)
    yield case(feature.NGram(**to), words, entries=n)
    yield case(feature.HashingTF(**to), words, entries=n)
    yield case(feature.CountVectorizer(**to).fit(few), words, entries=n)
    vectors = feature.Word2Vec(minCount=0, maxIter=1, **to).fit(few)
    yield case(vectors, words, entries=cost_table.entries_of(vectors, {words: n}))
    hashes = feature.MinHashLSH(numHashTables=4, inputCol=counts, outputCol="out").fit(few)
    yield case(hashes, counts, entries=cost_table.entries_of(hashes, {counts: n}))
    topics = clustering.LDA(k=4, maxIter=2, featuresCol=counts, topicDistributionCol="out").fit(few)
    yield case(topics, counts, entries=cost_table.entries_of(topics, {counts: n}))


class Measurement(NamedTuple):
    """Microseconds of a row of a stage, and those by the table of the models inside it."""

    entries: float
    took: float
    inside: float


class Clock:
    """CPU seconds of the tasks of a query, with those of Spark's Python workers, which Spark doesn't count."""

    def __init__(self, spark: SparkSession):
        self.context, self.runs = spark.sparkContext, 0

    def seconds(self, data: DataFrame) -> float:
        self.runs += 1
        group = f"run-{self.runs}"
        self.context.setJobGroup(group, group)
        before = worker_seconds()
        data.write.format("noop").mode("overwrite").save()
        in_python = worker_seconds() - before
        tracker, store = self.context.statusTracker(), self.context._jsc.sc().statusStore()
        while not (stages := {s for j in tracker.getJobIdsForGroup(group) for s in tracker.getJobInfo(j).stageIds}):
            time.sleep(0.01)  # Spark hears of a job later than the job runs
        return in_python + sum(self._cpu_seconds(store, s) for s in stages)

    def _cpu_seconds(self, store: Any, stage: int) -> float:
        """Of a stage, once Spark has heard of its end."""
        while (last := store.lastStageAttempt(stage)).status().toString() not in ("COMPLETE", "SKIPPED"):
            time.sleep(0.01)
        return float(last.executorCpuTime()) / 1e9


def worker_seconds() -> float:
    """CPU seconds of the Python processes below this one, so far; 0 without /proc."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a process that has just ended
            name, _, rest = file.read_text().rpartition(")")
            fields, pid = rest.split(), int(file.parent.name)
            parents[pid] = int(fields[1])
            # Its own and those of its children that have ended, in user and in system mode.
            seconds[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if "python" in name else 0.0
    below, found = {os.getpid()}, set[int]()
    while below := {pid for pid, parent in parents.items() if parent in below}:
        found |= below
    return sum(seconds[pid] for pid in found)


def measured(case: Case, data: DataFrame, rows: int, turns: int, clock: Clock) -> float:
    """Microseconds of a row."""
    whole = case.stage.transform(data).select(*case.makes.split(","))
    read = data.select(*case.reads)
    times = [(clock.seconds(whole), clock.seconds(read)) for _ in range(WARM + turns)][WARM:]
    return 1e6 * (min(w for w, _ in times) - min(r for _, r in times)) / rows


def factor(measurements: Mapping[str, Sequence[Measurement]]) -> float:
    """How many times as long as by its table classes take here, the median of their larger sizes; 1 where none is in it."""
    known = [(name, max(of)) for name, of in measurements.items() if name in cost_table.COSTS]
    ratios = [
        m.took / (cost_table.of(name, m.entries) + m.inside) for name, m in known if cost_table.of(name, m.entries) > 0
    ]
    return statistics.median(ratios) if ratios else 1.0


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
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "3g")
        .config("spark.sql.codegen.maxFields", 300)
        .getOrCreate
    )
    spark = session()
    spark.sparkContext.setLogLevel("ERROR")
    data = rows_of(spark, given.rows).cache()
    data.count()
    clock, measurements = Clock(spark), dict[str, list[Measurement]]()
    for each in cases(data):
        if given.only is None or each.name in given.only:
            took = measured(each, data, given.rows, given.turns, clock)
            inside = cost_table.of_stage(each.stage) - cost_table.of(each.name, cost_table.entries_of(each.stage))
            measurements.setdefault(each.name, []).append(Measurement(each.entries, took, inside))
            print(f"{each.name}: {took:.2f} microseconds at {each.entries:g} entries", file=sys.stderr)
    spark.stop()
    slower = factor(measurements)
    found = {name: line([(m.entries, m.took / slower - m.inside) for m in of]) for name, of in measurements.items()}
    cells = []
    for name, (fixed, per_entry) in found.items():
        sizes = [f"{m.entries:g} → {m.took:.2f}" for m in sorted(measurements[name])]
        was = cost_table.COSTS.get(name)
        kept = "" if was is None else f"{was[0]:g} + {was[1]:g}"
        cells.append([name, sizes[0], sizes[-1] if len(sizes) > 1 else "", f"{fixed:.2f}", f"{per_entry:.4f}", kept])
    print(markdown(["class", "entries → µs", "entries → µs", "fixed", "per entry", "kept"], cells))
    print(f"{slower:.2f} times as slow as where the table was measured, by the median of its classes; divided by this:")
    for name, (fixed, per_entry) in found.items():
        print(f'    "{name}": ({fixed:.2g}, {per_entry:.2g}),')
    figures = {"times as slow": slower}
    for name, (fixed, per_entry) in found.items():
        figures |= {f"{name}, fixed": fixed, f"{name}, per entry": per_entry}
    write(
        given,
        {name: {"sizes": measurements[name], "fixed": f, "perEntry": e} for name, (f, e) in found.items()},
        figures,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
