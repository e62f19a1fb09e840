"""How long does a request take, with Spark and with a Scorer, and how many rows does each score in a second of CPU time?

Two pipelines over the same generated rows: a linear one (StringIndexer, OneHotEncoder, VectorAssembler, StandardScaler,
LogisticRegression) and one with boosted trees in its last place. A request is one row: a dict for the Scorer, for Spark
a DataFrame of this row, `transform` and `collect`, and for onnxruntime arrays of one row. These hold the
StringIndexer's numbers in place of text, which the exported file does not read. All are asked in one run; torch and
onnxruntime have one thread. The CPU time of a request is that of the thread that asks. Throughput: the scorer over one
Arrow table, onnxruntime over arrays, Spark over the same rows, cached in one partition, by the CPU time of the process,
and of Spark's tasks.

    SPARK_CONF_DIR=conf python benchmarks/serving.py --out serving.json

Exits with code 1 where the median request of a Scorer takes a millisecond of CPU time or more.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import torch
from common import exit_code, markdown, parse, parser, write
from pyspark.ml import Pipeline, classification, feature
from pyspark.sql import DataFrame, SparkSession, functions as F
from serving_costs import Clock

import sparkdiff

MOST = 1000.0
"""Microseconds of CPU time that the median request may take."""
NUMBERS = 12
LEVELS = 8
WARM = 0.1
"""The part of the requests that don't count, in which Java compiles and caches fill."""
OUTPUTS = ["probability", "prediction"]


def rows_of(spark: SparkSession, rows: int) -> DataFrame:
    """Numbers n0.., two columns of text, and a label."""
    numbers = [F.rand(j).alias(f"n{j}") for j in range(NUMBERS)]
    data = spark.range(rows).repartition(1).select(*numbers)
    words = [F.concat(F.lit("level "), F.floor(F.col(f"n{j}") * LEVELS).cast("string")).alias(f"s{j}") for j in (0, 1)]
    return data.select("*", *words, (F.col("n0") + F.col("n2") * F.col("n1") > 0.7).cast("double").alias("label"))


def pipelines(trees: int) -> dict[str, list[Any]]:
    texts, hot = ["s0", "s1"], ["h0", "h1"]
    front = [
        feature.StringIndexer(inputCols=texts, outputCols=["i0", "i1"], handleInvalid="keep"),
        feature.OneHotEncoder(inputCols=["i0", "i1"], outputCols=hot),
        feature.VectorAssembler(inputCols=[*hot, *(f"n{j}" for j in range(NUMBERS))], outputCol="features"),
    ]
    scaled = feature.StandardScaler(inputCol="features", outputCol="scaled", withMean=True)
    return {
        "scaler, logistic regression": [
            *front,
            scaled,
            classification.LogisticRegression(featuresCol="scaled", maxIter=5),
        ],
        f"{trees} boosted trees": [*front, classification.GBTClassifier(maxIter=trees, maxDepth=5, seed=1)],
    }


def asked(
    ask: Callable[[Any], Any], rows: Sequence[Any], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Microseconds of each request, without the first ones."""
    times = []
    for row in rows:
        begin = clock()
        ask(row)
        times.append(1e6 * (clock() - begin))
    return times[int(WARM * len(times)) :]


def quantiles(times: Sequence[float]) -> dict[str, float]:
    return {"p50": float(np.quantile(times, 0.5)), "p99": float(np.quantile(times, 0.99))}


def by_onnx(model: Any, data: DataFrame) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """The exported file in onnxruntime, as a function of arrays by column, and these arrays of all rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        described = sparkdiff.export(model, f"{folder}/model.onnx", outputCols=OUTPUTS, schema=data.schema)
        session = onnxruntime.InferenceSession(described.path, options, ["CPUExecutionProvider"])
    rows = model.stages[0].transform(data).select(*(c.name for c in described.inputs if c.kind == "number")).toPandas()
    arrays = {c.name: rows[c.name].to_numpy() for c in described.inputs if c.kind == "number"}
    nulls = {c.name: np.zeros(len(rows), dtype=bool) for c in described.inputs if c.kind == "flag"}
    return lambda columns: session.run(OUTPUTS, columns), {**arrays, **nulls}


def best(run: Callable[[Any], Any], rows: Any) -> float:
    """The least CPU time of the process of three turns, in seconds."""
    took = []
    for _ in range(3):
        begin = time.process_time()
        run(rows)
        took.append(time.process_time() - begin)
    return min(took)


def measured(clock: Clock, data: DataFrame, model: Any, given: Any) -> dict[str, Any]:
    scorer = sparkdiff.Scorer(model, schema=data.schema, outputCols=OUTPUTS)
    schema = data.drop("label").schema
    rows = [row.asDict() for row in data.drop("label").limit(1000).collect()]
    many = [rows[i % len(rows)] for i in range(given.requests)]

    def in_spark(row: Any) -> Any:
        return (
            model.transform(data.sparkSession.createDataFrame([tuple(row.values())], schema)).select(*OUTPUTS).collect()
        )

    run, arrays = by_onnx(model, data)
    single = [{name: column[i : i + 1] for name, column in arrays.items()} for i in range(min(1000, data.count()))]
    asks = [single[i % len(single)] for i in range(given.requests)]
    out: dict[str, Any] = {
        "scorer, wall": quantiles(asked(scorer.predict, many)),
        "scorer, CPU": quantiles(asked(scorer.predict, many, time.thread_time)),
        "onnxruntime, CPU": quantiles(asked(run, asks, time.thread_time)),
        "Spark, wall": quantiles(asked(in_spark, many[: given.sparkRequests])),
    }
    table = pa.Table.from_pandas(data.drop("label").toPandas())
    scorer.predict(table.slice(0, 1000))
    frame = model.transform(data).select(*OUTPUTS)
    seconds = [clock.seconds(frame) for _ in range(6)]
    took = {"scorer": best(scorer.predict, table), "onnxruntime": best(run, arrays), "Spark": min(seconds)}
    out["rows a second"] = {who: table.num_rows / spent for who, spent in took.items()}
    return out


def _cells(name: str, r: dict[str, Any]) -> list[str]:
    def both(what: str, unit: float) -> str:
        return f"{r[what]['p50'] / unit:,.2f} / {r[what]['p99'] / unit:,.2f}"

    ratio = r["Spark, wall"]["p50"] / r["scorer, wall"]["p50"]
    many = r["rows a second"]
    times = [both(what, 1e3) for what in ("scorer, CPU", "onnxruntime, CPU", "scorer, wall", "Spark, wall")]
    return [name, *times, f"{ratio:,.0f}", *(f"{many[who]:,.0f}" for who in ("scorer", "onnxruntime", "Spark"))]


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--requests", type=int, default=5000)
    p.add_argument("--sparkRequests", type=int, default=60)
    p.add_argument("--trees", type=int, default=100)
    given = parse(p, rows=300, requests=20, sparkRequests=3, trees=2)
    torch.set_num_threads(1)
    builder: Any = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.memory", "3g").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    data = rows_of(spark, given.rows).cache()
    data.count()
    few, clock = data.limit(5000).coalesce(1).cache(), Clock(spark)
    found = {
        name: measured(clock, data, Pipeline(stages=stages).fit(few), given)
        for name, stages in pipelines(given.trees).items()
    }
    spark.stop()
    times = ["scorer, CPU ms", "onnxruntime, CPU ms", "scorer, ms", "Spark, ms"]
    head = ["pipeline", *times, "ratio", "scorer, rows/s", "onnxruntime, rows/s", "Spark, rows/s"]
    print("Each request p50 / p99; the ratio is that of the medians of wall-clock time.\n")
    print(markdown(head, [_cells(name, r) for name, r in found.items()]))
    figures = {f"{name}, CPU of a request (µs)": r["scorer, CPU"]["p50"] for name, r in found.items()}
    write(given, found, figures)
    missed = [name for name, p50 in figures.items() if p50 >= MOST]
    print(f"\nless than {MOST:,.0f} µs of CPU time: {'missed by ' + ', '.join(missed) if missed else 'met'}")
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
