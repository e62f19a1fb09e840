"""What do trees cost across py4j, all nodes in one piece, next to walking them node by node and next to their fit?

A RandomForestRegressor of 100 trees of depth 5 on generated rows with a categorical feature: `read` and `rebuild` of
sparkdiff.jvm.trees against a rival that reads and builds every node by calls of its own, by turns; then 250, 500 and 1,000
full trees of depth 6, for the memory a node needs: Python's peak by tracemalloc while reading and writing, and what the model
holds on the JVM's heap. Each way has to bring back the very nodes. Wall clock, because both sides work; the ratios are of
neighbouring turns. Prints a table, writes JSON, and fails above the bounds.

    SPARK_CONF_DIR=conf python benchmarks/tree_io.py --out tree_io.json
"""

import dataclasses
import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from common import exit_code, markdown, parse, parser, write
from pyspark.ml.feature import VectorAssembler, VectorIndexer
from pyspark.ml.regression import RandomForestRegressor
from pyspark.ml.wrapper import JavaParams
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.jvm import trees as jvm_trees
from sparkdiff.jvm.nodes import Nodes

ROWS, FEATURES, TREES, DEPTH = 20_000, 12, 100, 5
MANY, MANY_DEPTH = (250, 500, 1000), 6
OVER_RIVAL, OVER_FIT, GROWTH = 0.5, 1.0, 1.3
"""Bounds: reading and writing over the rival's and over the fit; memory a node at 1,000 trees over that at 250."""


def rows(spark: SparkSession) -> DataFrame:
    """A label and features, the last one of 6 categories."""
    columns = [F.randn(i).alias(f"x{i}") for i in range(FEATURES - 1)]
    data = spark.range(ROWS).select(*columns, (F.col("id") % 6).cast("double").alias("c"))
    data = data.withColumn("label", F.col("x0") * F.col("x1") + F.when(F.col("c").isin(1.0, 4.0), 2.0).otherwise(0.0))
    data = VectorAssembler(inputCols=[*data.columns[:-1]], outputCol="raw").transform(data)
    index = VectorIndexer(inputCol="raw", outputCol="features", maxCategories=6).fit(data)
    return index.transform(data).select("label", "features").cache()


# The rival: node by node ------------------------------------------------------------------------------------------------


def read_by_node(stage: Any) -> Nodes:
    """Every node's fields by calls of their own, as one would write it."""

    def walk(node: Any, out: list[dict[str, Any]]) -> int:
        number = len(out)
        stats = node.impurityStats()
        record = {
            "prediction": node.prediction(),
            "impurity": node.impurity(),
            "rawCount": stats.rawCount(),
            "impurityStats": list(stats.stats()),
            "gain": -1.0,
            "leftChild": -1,
            "rightChild": -1,
            "split": {"featureIndex": -1, "leftCategoriesOrThreshold": [], "numCategories": -1},
        }
        out.append(record)
        if node.getClass().getSimpleName() == "InternalNode":
            split = node.split()
            categorical = split.getClass().getSimpleName() == "CategoricalSplit"
            record["split"] = {
                "featureIndex": split.featureIndex(),
                "leftCategoriesOrThreshold": list(split.leftCategories()) if categorical else [split.threshold()],
                "numCategories": split.numCategories() if categorical else -1,
            }
            record["gain"] = node.gain()
            record["leftChild"] = walk(node.leftChild(), out)
            record["rightChild"] = walk(node.rightChild(), out)
        return number

    trees: list[list[dict[str, Any]]] = []
    for tree in stage._java_obj.trees():
        trees.append([])
        walk(tree.rootNode(), trees[-1])
    return Nodes.of(trees)


def write_by_node(stage: Any, nodes: Nodes) -> Any:
    """Every node by its Scala constructor."""
    context = SparkSession.active().sparkContext
    jvm, gateway = context._jvm, context._gateway
    tree_package, classes = jvm.org.apache.spark.ml.tree, jvm.org.apache.spark.ml.regression
    variance = jvm.org.apache.spark.mllib.tree.impurity.VarianceCalculator

    def doubles(values: list[float]) -> Any:
        out = gateway.new_array(jvm.double, len(values))
        for i, value in enumerate(values):
            out[i] = value
        return out

    def build(tree: list[dict[str, Any]], number: int) -> Any:
        node = tree[number]
        stats = variance(doubles(node["impurityStats"]), node["rawCount"])
        if node["leftChild"] < 0:
            return tree_package.LeafNode(node["prediction"], node["impurity"], stats)
        left, right = build(tree, node["leftChild"]), build(tree, node["rightChild"])
        feature, categories = node["split"]["featureIndex"], node["split"]["numCategories"]
        values = node["split"]["leftCategoriesOrThreshold"]
        if categories < 0:
            split = tree_package.ContinuousSplit(feature, values[0])
        else:
            split = tree_package.CategoricalSplit(feature, doubles(values), categories)
        return tree_package.InternalNode(node["prediction"], node["impurity"], node["gain"], left, right, split, stats)

    java = stage._java_obj
    old = java.trees()
    new = gateway.new_array(classes.DecisionTreeRegressionModel, len(old))
    for i, (tree, records) in enumerate(zip(old, nodes.records(), strict=True)):
        new[i] = classes.DecisionTreeRegressionModel(tree.uid(), build(records, 0), tree.numFeatures())
    made = classes.RandomForestRegressionModel(java.uid(), new, java.numFeatures())
    return JavaParams._from_java(java.copyValues(made, jvm.org.apache.spark.ml.param.ParamMap.empty()))


# Many trees -------------------------------------------------------------------------------------------------------------


def full(trees: int, depth: int) -> Nodes:
    """Full trees with random thresholds on random features."""
    random = np.random.default_rng(0)
    size = 2 ** (depth + 1) - 1
    level = np.zeros(
        size, np.int32
    )  # in pre-order the left child of a node on level l follows it, the right one 2^(depth-l) on
    for j in range(size):
        if level[j] < depth:
            level[j + 1] = level[j + (1 << (depth - int(level[j])))] = level[j] + 1
    inner = level < depth
    number = np.arange(size)
    left = np.where(inner, number + 1, -1).astype(np.int32)
    right = np.where(inner, number + (1 << (depth - level)), -1).astype(np.int32)
    every = np.tile(inner, trees)
    n = trees * size
    return Nodes(
        offsets=np.arange(trees + 1) * size,
        prediction=random.normal(size=n),
        impurity=random.random(n),
        gain=np.where(every, random.random(n), -1.0),
        impurityStats=random.random((n, 3)),
        rawCount=random.integers(1, 99, n),
        leftChild=np.tile(left, trees),
        rightChild=np.tile(right, trees),
        featureIndex=np.where(every, random.integers(0, FEATURES - 1, n), -1).astype(np.int32),
        numCategories=np.full(n, -1, np.int32),
        values=random.normal(size=int(every.sum())),
        ends=np.cumsum(every),
    )


def stumps(data: DataFrame, trees: int) -> Any:
    """A fitted forest of as many trees, quickly."""
    return RandomForestRegressor(numTrees=trees, maxDepth=1, seed=0, maxBins=6).fit(data.limit(50))


def heap(spark: SparkSession) -> int:
    """Bytes that live objects hold on the JVM's heap."""
    gc.collect()  # py4j keeps a Java object as long as Python holds its wrapper
    runtime = spark.sparkContext._jvm.java.lang.Runtime.getRuntime()
    for _ in range(3):
        runtime.gc()
        time.sleep(0.2)
    return int(runtime.totalMemory() - runtime.freeMemory())


def many(spark: SparkSession, data: DataFrame, trees: int) -> dict[str, Any]:
    nodes, stage = full(trees, MANY_DEPTH), stumps(data, trees)
    start = time.perf_counter()
    model = jvm_trees.rebuild(stage, nodes)
    written = time.perf_counter()
    again = jvm_trees.read(model)
    read = time.perf_counter()
    same(nodes, again)
    held = heap(spark)
    del model
    held -= heap(spark)
    model, write_peak = traced(lambda: jvm_trees.rebuild(stage, nodes))
    _, read_peak = traced(lambda: jvm_trees.read(model))
    assert np.isfinite([row[0] for row in model.transform(data.limit(10)).select("prediction").collect()]).all()
    return {
        "trees": trees,
        "nodes": len(nodes),
        "writeSeconds": written - start,
        "readSeconds": read - written,
        "pythonBytesPerNode": {"read": read_peak / len(nodes), "write": write_peak / len(nodes)},
        "jvmBytesPerNode": held / len(nodes),
    }


def traced(run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run` gives, and Python's peak of memory in bytes."""
    tracemalloc.start()
    out, peak = run(), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return out, peak


def same(a: Nodes, b: Nodes) -> None:
    for field in dataclasses.fields(Nodes):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


def few(data: DataFrame, trees: int, turns: int) -> dict[str, Any]:
    """Both ways by turns, at so many trees of depth 5."""
    forest = RandomForestRegressor(numTrees=trees, maxDepth=DEPTH, seed=0)
    forest.fit(data.limit(100))  # the JVM's first fit is slower
    fit, model = seconds(lambda: forest.fit(data))
    times: dict[str, list[float]] = {"read": [], "write": [], "readByNode": [], "writeByNode": []}
    for turn in range(turns + 1):
        took: dict[str, float] = {}
        took["read"], nodes = seconds(lambda: jvm_trees.read(model))
        took["readByNode"], other = seconds(lambda: read_by_node(model))
        took["write"], new = seconds(lambda nodes=nodes: jvm_trees.rebuild(model, nodes))
        took["writeByNode"], theirs = seconds(lambda nodes=nodes: write_by_node(model, nodes))
        if turn:  # the first one warms up
            for name, value in took.items():
                times[name].append(value)
    assert (nodes.numCategories >= 0).any(), "no categorical split"
    same(nodes, other)
    same(nodes, jvm_trees.read(new))
    same(nodes, jvm_trees.read(theirs))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rival = [a + b for a, b in zip(times["readByNode"], times["writeByNode"], strict=True)]
    own = [a + b for a, b in zip(times["read"], times["write"], strict=True)]
    return {
        "trees": trees,
        "depth": DEPTH,
        "nodes": len(nodes),
        "fitSeconds": fit,
        "seconds": medians,
        "overRival": statistics.median(a / b for a, b in zip(own, rival, strict=True)),
        "overFit": statistics.median(own) / fit,
    }


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--turns", type=int, default=5)
    given = parse(p, turns=1)
    spark = SparkSession.builder.master("local[1]").config("spark.driver.memory", "2g").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    data = rows(spark)
    small = few(data, 5 if given.smoke else TREES, given.turns)
    large = [many(spark, data, trees) for trees in ((4, 8) if given.smoke else MANY)]
    spark.stop()
    print(f"{small['trees']} trees of depth {DEPTH}, {small['nodes']} nodes, fitted in {small['fitSeconds']:.2f} s\n")
    took = small["seconds"]
    ways = {"in one piece": ("read", "write"), "node by node": ("readByNode", "writeByNode")}
    cells = [[way, *(f"{took[phase]:.2f}" for phase in phases)] for way, phases in ways.items()]
    print(markdown(["", "read, s", "write, s"], cells))
    print(f"\nboth over the rival's {small['overRival']:.2f}, over the fit {small['overFit']:.2f}\n")
    head = [f"trees of depth {MANY_DEPTH}", "nodes", "read, s", "write, s"]
    head += ["Python, bytes a node: read", "write", "JVM, bytes a node"]
    cells = [
        [
            str(r["trees"]),
            str(r["nodes"]),
            f"{r['readSeconds']:.2f}",
            f"{r['writeSeconds']:.2f}",
            f"{r['pythonBytesPerNode']['read']:.0f}",
            f"{r['pythonBytesPerNode']['write']:.0f}",
            f"{r['jvmBytesPerNode']:.0f}",
        ]
        for r in large
    ]
    print(markdown(head, cells))
    growth = [
        large[-1]["pythonBytesPerNode"]["read"] / large[0]["pythonBytesPerNode"]["read"],
        large[-1]["pythonBytesPerNode"]["write"] / large[0]["pythonBytesPerNode"]["write"],
        large[-1]["jvmBytesPerNode"] / large[0]["jvmBytesPerNode"],
    ]
    figures = {
        "over node by node": small["overRival"],
        "over the fit": small["overFit"],
        "growth of memory": max(growth),
    }
    write(given, {"few": small, "many": large}, figures)
    return exit_code(given, small["overRival"] > OVER_RIVAL or small["overFit"] > OVER_FIT or max(growth) > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
