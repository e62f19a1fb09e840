"""Is a DataFrame scored faster by torch than by MLlib?

Spark's own `transform` of fitted pipelines, and `sparkdiff.TorchTransformer` on the CPU, written nowhere, turn by turn in one run
on generated, cached rows of one partition on local[1]; once all columns, once the prediction alone. Beside them onnxruntime, in
one thread, runs the file that `sparkdiff.export` writes, on arrays that are in memory already: what is left where no Spark is
around. Seconds are of the clock; the ratio is the median over the turns of MLlib / torch, with quartiles beside it. No bound:
where MLlib is faster, `device="auto"` leaves the work to it.

    SPARK_CONF_DIR=conf python benchmarks/torch_transformer.py --out torch_transformer.json
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import exit_code, markdown, parse, parser, write
from pyspark.ml import Pipeline, classification, feature, regression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff

NUMBERS = 40
WARM = 2
"""Turns that don't count."""


def rows_of(spark: SparkSession, rows: int) -> DataFrame:
    """Numbers n0.., a label of two values and a count."""
    numbers = [F.rand(j).alias(f"n{j}") for j in range(NUMBERS)]
    data = spark.range(rows).repartition(1).select(*numbers)
    label, count = (F.col("n0") + F.col("n1") > 1).cast("double"), F.floor(F.col("n2") * 9).cast("double")
    return data.select("*", label.alias("label"), count.alias("count"))


def pipelines(trees: int) -> dict[str, list[Any]]:
    """The stages of each, unfitted."""
    numbers = feature.VectorAssembler(inputCols=[f"n{j}" for j in range(NUMBERS)], outputCol="v")
    scaler = feature.StandardScaler(inputCol="v", outputCol="z", withMean=True)
    labelled: dict[str, Any] = {"featuresCol": "v", "seed": 1}
    return {
        "linear regression": [numbers, regression.LinearRegression(featuresCol="v", labelCol="count")],
        "scaler, PCA(10), Poisson": [
            numbers,
            scaler,
            feature.PCA(inputCol="z", outputCol="p", k=10),
            regression.GeneralizedLinearRegression(featuresCol="p", labelCol="count", family="poisson", maxIter=3),
        ],
        "scaler, network of 64": [
            numbers,
            scaler,
            classification.MultilayerPerceptronClassifier(featuresCol="z", layers=[NUMBERS, 64, 2], maxIter=2, seed=1),
        ],
        f"{trees} boosted trees, depth 5": [
            numbers,
            regression.GBTRegressor(labelCol="count", maxIter=trees, maxDepth=5, **labelled),
        ],
        f"forest of {trees}, depth 8": [
            numbers,
            classification.RandomForestClassifier(numTrees=trees, maxDepth=8, **labelled),
        ],
        "factorization machine": [
            numbers,
            scaler,
            regression.FMRegressor(featuresCol="z", labelCol="count", maxIter=2, seed=1),
        ],
    }


def seconds(frame: DataFrame) -> float:
    start = time.perf_counter()
    frame.write.format("noop").mode("overwrite").save()
    return time.perf_counter() - start


def measured(frames: tuple[DataFrame, DataFrame], turns: int) -> dict[str, Any]:
    """Seconds of both in turns, which of them first by turns."""
    times = []
    for turn in range(WARM + turns):
        took = {i: seconds(frames[i]) for i in ((0, 1) if turn % 2 else (1, 0))}
        times.append((took[0], took[1]))
    ratios = sorted(a / b for a, b in times[WARM:])
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"seconds": times[WARM:], "ratio": middle, "quartiles": [low, high]}


def by_onnxruntime(model: Any, data: DataFrame, turns: int) -> float:
    """The median seconds of the exported file on all rows at once."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        described = sparkdiff.export(model, path, schema=data.schema, outputCols=["prediction"])
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    table = data.select(*(c.name for c in described.inputs)).toPandas()
    given = {c.name: table[c.name].to_numpy(np.float64) for c in described.inputs}
    took = []
    for _ in range(WARM + turns):
        start = time.perf_counter()
        session.run(["prediction"], given)
        took.append(time.perf_counter() - start)
    return statistics.median(took[WARM:])


def _cells(name: str, r: dict[str, Any], rows: int) -> list[str]:
    out = [name]
    for kind in ("all", "prediction"):
        mllib, torch = (1e6 * statistics.median(s) / rows for s in zip(*r[kind]["seconds"], strict=True))
        low, high = r[kind]["quartiles"]
        out += [f"{mllib:.2f}", f"{torch:.2f}", f"{r[kind]['ratio']:.2f} ({low:.2f} to {high:.2f})"]
    return [*out, f"{1e6 * r['onnxruntime'] / rows:.2f}"]


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--turns", type=int, default=7)
    p.add_argument("--trees", type=int, default=100)
    given = parse(p, rows=1000, turns=1, trees=3)
    builder: Any = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.memory", "3g").config("spark.sql.codegen.maxFields", 300).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    data = rows_of(spark, given.rows).cache()
    data.count()
    found = dict[str, dict[str, Any]]()
    for name, stages in pipelines(given.trees).items():
        model = Pipeline(stages=stages).fit(data.limit(1000))
        frames = model.transform(data), sparkdiff.TorchTransformer(model, device="cpu").transform(data)
        alone = frames[0].select("prediction"), frames[1].select("prediction")
        found[name] = {
            "all": measured(frames, given.turns),
            "prediction": measured(alone, given.turns),
            "onnxruntime": by_onnxruntime(model, data, given.turns),
        }
        print(f"{name}: {found[name]['all']['ratio']:.2f}", file=sys.stderr)
    spark.stop()
    head = [
        "pipeline",
        "MLlib, µs a row",
        "torch",
        "ratio (quartiles)",
        "prediction alone: MLlib",
        "torch",
        "ratio",
        "onnxruntime",
    ]
    print(markdown(head, [_cells(name, r, given.rows) for name, r in found.items()]))
    write(given, found, {f"{name}, ratio": r["all"]["ratio"] for name, r in found.items()})
    return exit_code(given, ())


if __name__ == "__main__":
    sys.exit(main())
