"""How much memory does the driver's Python need to search over a large table?

Spark writes 1,000,000 rows of 200 columns (1.5 GiB of doubles); `sparkdiff.CrossValidator` then searches 12 `regParam` of a
LinearRegression (L2, then elastic net) and 4 of a LogisticRegression, in 3 folds each. The largest resident size of this process
while a search runs is sampled; the JVM, which in local mode is the executor too, is printed beside it. Fails above 2 GiB.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/search_memory.py --out search_memory.json
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import exit_code, folder_of, markdown, parse, parser, write
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession, functions as F
from sparse import Peak, session, status

import sparkdiff

GIB = 2**30
FOLDS = 3


def table(spark: SparkSession, rows: int, columns: int, folder: Path) -> DataFrame:
    path = f"file://{folder}/rows-{rows}-{columns}"
    drawn = spark.range(rows, numPartitions=16).select(*(F.randn(i).alias(f"x{i}") for i in range(columns)))
    signal = sum((F.col(f"x{i}") / (i + 1) for i in range(columns)), F.randn(columns))
    labelled = drawn.withColumn("number", signal).withColumn("sign", (F.col("number") > 0).cast("double"))
    assemble = VectorAssembler(inputCols=drawn.columns, outputCol="features")
    assemble.transform(labelled).select("features", "number", "sign").write.mode("overwrite").parquet(path)
    return spark.read.parquet(path)


def measure(rows: DataFrame, head: Any, judge: Any, settings: int) -> dict[str, Any]:
    grid = ParamGridBuilder().addGrid(head.regParam, np.logspace(-4, 0, settings).tolist()).build()
    search = sparkdiff.CrossValidator(estimator=head, estimatorParamMaps=grid, evaluator=judge, numFolds=FOLDS, seed=1)
    assert "are solved at once" in str(search.explain(rows))
    start = time.perf_counter()
    with Peak() as peak:
        search.fit(rows)
    name = f"{type(head).__name__}, elasticNetParam={head.getElasticNetParam():g}, {settings} settings x {FOLDS} folds"
    jvm = status("VmRSS", rows.sparkSession.sparkContext._jvm.java.lang.ProcessHandle.current().pid())  # type: ignore[union-attr]
    return {"search": name, "seconds": time.perf_counter() - start, "bytes": peak.bytes, "jvm": jvm}


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="of the table")
    p.add_argument("--columns", type=int, default=200, metavar="N", help="of the table")
    p.add_argument("--folder", type=Path, metavar="DIR", help="where the table is kept; deleted if not given")
    given = parse(p, rows=2_000, columns=5)
    spark = session()
    rows = table(spark, given.rows, given.columns, folder_of(given))
    number, sign = RegressionEvaluator(labelCol="number"), BinaryClassificationEvaluator(labelCol="sign")
    results = [
        measure(rows, LinearRegression(labelCol="number"), number, 12),
        measure(rows, LinearRegression(labelCol="number", elasticNetParam=0.5), number, 12),
        measure(rows, LogisticRegression(labelCol="sign"), sign, 4),
    ]
    spark.stop()
    cells = [[r["search"], f"{r['seconds']:.0f}", f"{r['bytes'] / GIB:.2f}", f"{r['jvm'] / GIB:.2f}"] for r in results]
    print(markdown(["search", "s", "Python, GiB", "JVM, GiB"], cells))
    write(given, results, {f"{r['search']}, GiB": r["bytes"] / GIB for r in results})
    return exit_code(given, any(r["bytes"] > 2 * GIB for r in results))


if __name__ == "__main__":
    sys.exit(main())
