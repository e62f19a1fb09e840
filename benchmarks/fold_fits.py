"""How much faster are the last stages of pipelines fitted for a fold than by Spark, and are they the same?

Rows of numbers and categories, made up, in two partitions that Spark has cached. Each round fits the same GBTRegressor (20 trees)
or LogisticRegression (of classes that a plane nearly separates, so that it takes a hundred steps) by Spark and by
`sparkdiff.tuning.in_process_fits`, in turns. The ratio is Spark's median seconds over ours; "differ" is the share of rows on
which the predictions or probabilities differ by more than 1e-6: for trees where two splits are equally good, and for 50,000 rows
because Spark draws some of them to choose the candidate thresholds.

    SPARK_CONF_DIR=conf python benchmarks/fold_fits.py
"""

import statistics
import sys
import time
from typing import Any

import numpy as np
from common import exit_code, markdown, parse, parser, write
from pyspark.ml.classification import LogisticRegression, LogisticRegressionModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import GBTRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.tuning import in_process_fits

SIZES = ((1_000, 10), (10_000, 30), (50_000, 60))
ROUNDS = 3
LEAST = 1.2
"""Bound of the smallest ratio."""
SAME = 1e-6


def rows_of(spark: SparkSession, n: int, d: int) -> DataFrame:
    """Cached rows; each fifth column is a category."""
    number, category = "x{}".format, "c{}".format
    numbers = [F.randn(j).alias(number(j)) for j in range(d) if j % 5]
    categories = [F.floor(F.rand(j) * 12).cast("double").alias(category(j)) for j in range(0, d, 5)]
    df = spark.range(n, numPartitions=2).select(*numbers, *categories)
    df = df.withColumn("label", F.sin("x1") + F.col("x2") * F.col("x3") + F.col("c0") % 3 + F.randn(99))
    made = VectorAssembler(inputCols=df.columns[:-1], outputCol="features").transform(df)
    positive = F.col("x1") + F.col("x2") > F.col("c0") / 6 + F.randn(98) / 20
    return made.select("features", "label", positive.cast("double").alias("positive")).cache()


def outputs(model: Any, df: DataFrame) -> Any:
    """Predictions, or probabilities of the second class."""
    if isinstance(model, LogisticRegressionModel):
        return np.array(model.transform(df).select(vector_to_array("probability")[1].alias("p")).toPandas()["p"])
    return np.array(model.transform(df).select("prediction").toPandas()["prediction"])


def main() -> int:
    given = parse(parser(__doc__))
    conf = {"spark.master": "local[2]", "spark.sql.shuffle.partitions": "2", "spark.ui.enabled": "false"}
    spark = SparkSession.builder.config(map=conf).getOrCreate()
    lines, ratios = list[list[str]](), dict[str, float]()
    sizes = SIZES[:1] if given.smoke else SIZES
    for estimator in (GBTRegressor(maxIter=20), LogisticRegression(labelCol="positive")):
        for n, d in sizes:
            df = rows_of(spark, n, d)
            df.count()
            seconds: list[tuple[float, float]] = []
            for _ in range(1 if given.smoke else ROUNDS):
                start = time.perf_counter()
                theirs = estimator.fit(df)
                middle = time.perf_counter()
                ours, _ = in_process_fits.fit(estimator, df)
                seconds.append((middle - start, time.perf_counter() - middle))
            apart = float((np.abs(outputs(theirs, df) - outputs(ours, df)) > SAME).mean())
            spark_s, ours_s = map(statistics.median, zip(*seconds, strict=True))
            kind = type(estimator).__name__
            ratios[f"{kind}, {n} rows"] = spark_s / ours_s
            figures = [f"{spark_s:.2f}", f"{ours_s:.2f}", f"{spark_s / ours_s:.1f}", f"{apart:.2%}"]
            lines.append([kind, f"{n:,}", str(d), *figures])
            df.unpersist()
    head = ["stage", "rows", "columns", "Spark, s", "sparkdiff, s", "ratio", "differ"]
    print(markdown(head, lines))
    write(given, [dict(zip(head, line, strict=True)) for line in lines], ratios)
    return exit_code(given, min(ratios.values()) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
