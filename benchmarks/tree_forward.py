"""How fast do rows go through an ensemble of trees, next to Hummingbird, scikit-learn and MLlib?

Random forests that scikit-learn fitted, their very trees in each arm; float64 and one thread; all arms take turns, round by
round, and what counts is CPU time (of MLlib its task's, as Spark reports it). Our Router and scikit-learn get all rows at
once, MLlib transforms a cached DataFrame on local[1]; what a forest without splits takes there is subtracted for "MLlib's
trees alone". Hummingbird may choose: its three implementations, float32 or float64, batches of 200, 1,000 or 5,000 rows; its
three best of a first round go on. hummingbird-ml 0.4.12 wants an older scikit-learn than ours, so it runs in a process of its
own, by an interpreter that has it:

    python -m venv /tmp/rival && /tmp/rival/bin/pip install hummingbird-ml "scikit-learn<1.6" "numpy<2" torch
    SPARK_CONF_DIR=conf python benchmarks/tree_forward.py --hummingbird /tmp/rival/bin/python --out tree_forward.json

Without --hummingbird that arm is left out, and said to be. Prints a table, writes JSON, and fails below the bounds.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import exit_code, markdown, parse, parser, write
from hummingbird_arm import BATCHES, FEATURES, ROWS, TIMES, forest
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import RandomForestRegressor
from pyspark.sql import SparkSession, functions

from sparkdiff.jvm import trees as jvm_trees
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.stages.routing import Router

SIZES = ((100, 5), (100, 8), (500, 5))
"""(trees, depth): the first one's bounds have to hold, the others' are goals."""
BOUNDS = {"Hummingbird": 1.0, "scikit-learn": 0.9, "MLlib": 2.5}
SPARK_COPIES = 10  # of the rows, so that MLlib's time is that of its trees
Arm = Callable[[], float]
"""Runs TIMES over all rows and returns its CPU seconds."""


def nodes_of(fitted: Any) -> Nodes:
    """The forest's nodes, whose trees scikit-learn keeps in pre-order as Spark does."""
    parts = [estimator.tree_ for estimator in fitted.estimators_]

    def of(name: str) -> Any:
        return np.concatenate([getattr(tree, name) for tree in parts])

    leaf = of("children_left") < 0
    prediction, rows = of("value").reshape(-1), of("n_node_samples").astype(np.float64)
    stats = np.stack([rows, rows * prediction, rows * (of("impurity") + prediction**2)], 1)
    return Nodes(
        offsets=np.cumsum([0, *(tree.node_count for tree in parts)]),
        prediction=prediction,
        impurity=of("impurity"),
        gain=np.where(leaf, -1.0, 0.0),
        impurityStats=stats,
        rawCount=rows.astype(np.int64),
        leftChild=of("children_left").astype(np.int32),
        rightChild=of("children_right").astype(np.int32),
        featureIndex=np.where(leaf, -1, of("feature")).astype(np.int32),
        numCategories=np.full(len(leaf), -1, np.int32),
        values=of("threshold")[~leaf],
        ends=np.cumsum(~leaf),
    )


def stump(trees: int) -> Nodes:
    """As many leaves."""
    one = np.ones(trees)
    none = np.full(trees, -1, np.int32)
    stats = np.ones((trees, 3))
    return Nodes(
        np.arange(trees + 1),
        one,
        one,
        -one,
        stats,
        one.astype(np.int64),
        none,
        none,
        none,
        none,
        np.zeros(0),
        np.zeros(trees, np.int64),
    )


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    for _ in range(TIMES):
        run()
    return time.process_time() - start


class MLlib:
    """transform on local[1], of one partition: the CPU time of its tasks, as Spark itself reports it."""

    def __init__(self, spark: SparkSession, x: Any):
        self.spark, self.context = spark, spark.sparkContext
        rows = spark.createDataFrame([(i, Vectors.dense(row)) for i, row in enumerate(x.tolist())], ["id", "features"])
        copies = spark.range(SPARK_COPIES).select()
        self.data = rows.crossJoin(copies).coalesce(1).cache()
        self.data.count()
        self.runs = 0

    def model(self, nodes: Nodes) -> Any:
        """A RandomForestRegressionModel of these trees."""
        few = [(0.0, Vectors.dense([0.0] * FEATURES)), (1.0, Vectors.dense([1.0] * FEATURES))]
        data = self.spark.createDataFrame(few, ["label", "features"])
        fitted = RandomForestRegressor(numTrees=nodes.trees, maxDepth=1, seed=0).fit(data)
        return jvm_trees.rebuild(fitted, nodes)

    def seconds(self, model: Any) -> float:
        self.runs += 1
        group = f"run-{self.runs}"
        self.context.setJobGroup(group, group)
        model.transform(self.data).agg(functions.sum("prediction")).collect()
        tracker, store = self.context.statusTracker(), self.context._jsc.sc().statusStore()
        stages = {s for job in tracker.getJobIdsForGroup(group) for s in tracker.getJobInfo(job).stageIds}
        done = [store.lastStageAttempt(s) for s in stages]
        return sum(stage.executorCpuTime() for stage in done) / 1e9


class Hummingbird:
    """Another interpreter that runs an implementation when told to."""

    def __init__(self, python: Path, trees: int, depth: int):
        script = Path(__file__).with_name("hummingbird_arm.py")
        command = [str(python), "-W", "ignore", str(script), str(trees), str(depth)]
        # glibc is told to keep freed memory: Hummingbird asks for some with every operation, and fresh pages would cost it more.
        keep = {
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            "MALLOC_TRIM_THRESHOLD_": str(2**32),
            "MALLOC_TOP_PAD_": str(2**28),
        }
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | keep
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"--hummingbird: its process ended with {self.process.wait()}, see above")
        return line

    def seconds(self, arm: int, rows: int = ROWS, times: int = TIMES) -> float:
        assert self.process.stdin
        print(arm, rows, times, file=self.process.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(trees: int, depth: int, rounds: int, python: Path | None, spark: SparkSession) -> dict[str, Any]:
    fitted, rows = forest(trees, depth)
    nodes, x = nodes_of(fitted), torch.from_numpy(rows)
    router, single = Router(nodes), rows.astype(np.float32)
    thresholds = torch.from_numpy(nodes.values)
    table = torch.from_numpy(nodes.prediction[nodes.leaf] / trees)
    expected = fitted.predict(single)
    assert np.abs(router.total(x, thresholds, table).numpy() - expected).max() < 1e-12 * np.abs(expected).max()

    mllib = MLlib(spark, rows)
    model, empty = mllib.model(nodes), mllib.model(stump(trees))
    told = model.transform(mllib.data.limit(1000)).select("id", "prediction").collect()
    assert max(abs(prediction - expected[i]) for i, prediction in told) < 1e-12 * np.abs(expected).max()

    arms: dict[str, Arm] = {
        "ours": lambda: seconds(lambda: router.total(x, thresholds, table)),
        "scikit-learn": lambda: seconds(lambda: fitted.predict(single)),
        "MLlib": lambda: mllib.seconds(model) * TIMES / SPARK_COPIES,
        "no trees": lambda: mllib.seconds(empty) * TIMES / SPARK_COPIES,
    }
    rival = Hummingbird(python, trees, depth) if python else None
    if rival:
        assert abs(rival.about["nodes"] / len(nodes) - 1) < 0.02, (rival.about["nodes"], len(nodes))
        assert np.abs(np.array(rival.about["predictions"]) - expected[:100]).max() < 0.05 * np.ptp(expected)
        first = {arm: rival.seconds(arm, max(BATCHES), 1) for arm in range(len(rival.about["arms"]))}
        for arm in sorted(first, key=lambda arm: first[arm])[:3]:
            arms["Hummingbird {} {} by {:,}".format(*rival.about["arms"][arm])] = lambda arm=arm: rival.seconds(arm)  # type: ignore[misc]

    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 3):  # the first three warm up: the JVM compiles what it runs often
        for name, arm in arms.items():
            took = arm()
            if turn >= 3:
                times[name].append(took)
    if rival:
        rival.close()
    mllib.data.unpersist()
    nothing = times.pop("no trees")
    times["MLlib's trees alone"] = [a - b for a, b in zip(times["MLlib"], nothing, strict=True)]
    ours = times["ours"]
    pairs = ROWS * trees * TIMES
    return {
        "trees": trees,
        "depth": depth,
        "nodes": len(nodes),
        "millionRowTreesPerSecond": {n: pairs / statistics.median(t) / 1e6 for n, t in times.items()},
        "ratios": {
            n: statistics.median(t / o for t, o in zip(taken, ours, strict=True))
            for n, taken in times.items()
            if n != "ours"
        },
        "seconds": times,
    }


def verdicts(result: dict[str, Any]) -> dict[str, float]:
    """Our speed over each rival's, of Hummingbird's arms over the best."""
    out: dict[str, float] = {}
    for name, ratio in result["ratios"].items():
        rival = name.split()[0]
        if rival in BOUNDS:
            out[rival] = min(ratio, out.get(rival, ratio))
    return out


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--hummingbird", type=Path, metavar="PYTHON", help="an interpreter that can import hummingbird")
    given = parse(p, rounds=1)
    sizes = ((5, 3),) if given.smoke else SIZES
    torch.set_num_threads(1)
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "2g")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    results = [measure(trees, depth, given.rounds, given.hummingbird, spark) for trees, depth in sizes]
    spark.stop()
    if not given.hummingbird:
        print("Hummingbird is left out: no --hummingbird PYTHON was given, and its bound is not checked.\n")
    cells = [
        [
            str(r["trees"]),
            str(r["depth"]),
            name,
            f"{speed:.0f}",
            f"{r['ratios'][name]:.2f}" if name != "ours" else "",
            str(BOUNDS.get(name.split()[0], "")),
        ]
        for r in results
        for name, speed in r["millionRowTreesPerSecond"].items()
    ]
    print(markdown(["trees", "depth", "arm", "million rows × trees a second", "ours over it", "bound"], cells))
    missed = [(r["trees"], r["depth"], n) for r in results for n, ratio in verdicts(r).items() if ratio < BOUNDS[n]]
    for trees, depth, name in missed:
        print(f"below the bound: {name}, {trees} trees of depth {depth}")
    figures = {
        f"{r['trees']} trees of depth {r['depth']}, ours over {n}": v for r in results for n, v in verdicts(r).items()
    }
    write(given, results, figures)
    return exit_code(given, any((trees, depth) == SIZES[0] for trees, depth, _ in missed))


if __name__ == "__main__":
    sys.exit(main())
