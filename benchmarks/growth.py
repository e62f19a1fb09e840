"""What does growth gain on rows that it never saw, part by part, and how do the rivals do?

Tasks: bike sharing from a Poisson GLR with regParam 0.001 (half deviance), digits odd or even and digits (log-loss) from
principal components and a logistic regression, four generated tables with one planted effect each (an interaction, a bend, a
category's effect, an entity's effect), two regressions and a classification of scikit-learn's. Per task and seed the rows are
divided: four fifths fit the pipeline and grow it, a fifth tests. Arms: the parts alone and all together (`sparkdiff.Grower`), and
beside them Spark's GBTRegressor or GBTClassifier with 100 trees and LightGBM with early stopping on the same columns.

Per cell: the metric on the test rows of Spark's own `transform` of the saved and loaded model, the CPU seconds of this process
and its JVM, and the seconds that a transform of the test rows takes. Each cell's result is kept in --cells, so that a run that is
stopped goes on there.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/growth.py --cells growth.jsonl --tasks bikeshare
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import CONFIG, markdown, parse, parser, write
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.feature import PCA, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F
from scipy.special import xlogy

import sparkdiff
from sparkdiff.job import load_config
from sparkdiff.job.loading import load_data, start_session

ROWS = 4000
"""Of a generated table."""
PLANTED = ("interaction", "bend", "category", "entity")


@dataclasses.dataclass(frozen=True)
class Task:
    """
    Attributes:
        rows: the table; `fold` (0 to 9) is a column of it.
        pipeline: unfitted, with a linear last stage.
        label: the label column.
        loss: "poisson", "logLoss" or "squared".
        entities: columns that name something with an effect of its own.
        parts: the kinds of parts that are also grown alone.
        numbers, words: the columns that the rivals get.
    """

    rows: DataFrame
    pipeline: Pipeline
    label: str
    loss: str
    numbers: Sequence[str]
    words: Sequence[str] = ()
    entities: Sequence[str] = ()
    parts: Sequence[str] = ()


# Tasks ----------------------------------------------------------------------------------------------------------------


def dealt(rows: DataFrame, key: Sequence[str], seed: int) -> DataFrame:
    return rows.withColumn("fold", F.pmod(F.xxhash64(*key, F.lit(seed)), F.lit(10)))


def linear(words: Sequence[str], numbers: Sequence[str], last: Any) -> Pipeline:
    """StringIndexer, OneHotEncoder, VectorAssembler, StandardScaler and the last stage."""
    stages: list[Any] = []
    if words:
        index = [f"{w}_index" for w in words]
        hot = [f"{w}_hot" for w in words]
        stages += [
            StringIndexer(inputCols=[*words], outputCols=index, handleInvalid="keep"),
            OneHotEncoder(inputCols=index, outputCols=hot),
        ]
    assembled = [*(f"{w}_hot" for w in words), *numbers]
    stages.append(VectorAssembler(inputCols=assembled, outputCol="assembled"))
    stages.append(StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True))
    return Pipeline(stages=[*stages, last.setFeaturesCol("scaled")])


def bikeshare(spark: SparkSession, seed: int) -> Task:
    given = load_config(CONFIG, [])
    rows = load_data(spark, {**given.data["train"], "where": "true"}, given.folder, "train")
    words = ["season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit"]
    numbers = ["temp", "atemp", "hum", "windspeed"]
    last = GeneralizedLinearRegression(labelCol="bikers", family="poisson", link="log", regParam=0.001)
    return Task(
        dealt(rows, ["day", "hr"], seed), linear(words, numbers, last), "bikers", "poisson", numbers, words,
        parts=("units", "crosses", "trees"),
    )  # fmt: skip


def digits(spark: SparkSession, seed: int, odd: bool = False) -> Task:
    given = load_config(CONFIG.with_name("digits.yaml"), [])
    rows = load_data(spark, {**given.data["train"], "where": "true"}, given.folder, "train")
    rows = rows.withColumn("odd", F.col("label") % 2)
    pixels = [c for c in rows.columns if c.startswith("p")]
    label = "odd" if odd else "label"
    stages = [
        VectorAssembler(inputCols=pixels, outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
        PCA(inputCol="scaled", outputCol="components", k=20),
        LogisticRegression(featuresCol="components", labelCol=label, regParam=0.01),
    ]
    return Task(dealt(rows, ["id"], seed), Pipeline(stages=stages), label, "logLoss", pixels)


def generated(spark: SparkSession, seed: int, planted: str) -> Task:
    """Numbers x and y, categories a and b, an index c of 12 values that the pipeline takes for a number, 60 users."""
    random = np.random.default_rng([seed, *planted.encode()])
    x, y = random.normal(size=(2, ROWS))
    a, b, c, user = (random.integers(0, k, ROWS) for k in (5, 4, 12, 60))
    effect = {
        "interaction": random.normal(size=(5, 4))[a, b] * 0.8,
        "bend": 1.5 * np.abs(y),
        "category": random.normal(size=12)[c],
        "entity": random.normal(size=60)[user],
    }[planted]
    label = x + effect + random.normal(size=ROWS) * 0.5
    table = pd.DataFrame({
        "id": np.arange(ROWS), "x": x, "y": y, "a": [f"a{v}" for v in a], "b": [f"b{v}" for v in b], "c": c.astype(float),
        "user": [f"u{v}" for v in user], "label": label, "known": x + effect,
    })  # fmt: skip
    rows = dealt(spark.createDataFrame(table), ["id"], seed)
    last = LinearRegression(labelCol="label")
    # The category's index is one-hot nowhere: to the pipeline it is a number.
    return Task(
        rows, linear(["a", "b"], ["x", "y", "c"], last), "label", "squared", ["x", "y", "c"], ["a", "b"], ["user"]
    )


def of_sklearn(spark: SparkSession, seed: int, name: str) -> Task:
    from sklearn import datasets

    if name == "diabetes":
        table = datasets.load_diabetes(as_frame=True).frame.rename(columns={"target": "label"})
    else:
        table = datasets.load_breast_cancer(as_frame=True).frame
        table = table.rename(columns=lambda c: c.replace(" ", "_"))
        if name == "cells":  # the area of the worst cells by the means
            keep = [c for c in table.columns if c.startswith("mean_")]
            table = table[[*keep, "worst_area"]].rename(columns={"worst_area": "label"})
        else:
            table = table.rename(columns={"target": "label"})
    table["label"] = table["label"].astype(float)
    table.insert(0, "id", range(len(table)))
    numbers = [c for c in table.columns if c not in ("id", "label")]
    last: Any = (
        LogisticRegression(labelCol="label", regParam=0.01)
        if name == "cancer"
        else LinearRegression(labelCol="label", regParam=0.01)
    )
    loss = "logLoss" if name == "cancer" else "squared"
    return Task(dealt(spark.createDataFrame(table), ["id"], seed), linear([], numbers, last), "label", loss, numbers)


TASKS: dict[str, Callable[[SparkSession, int], Task]] = {
    "bikeshare": bikeshare,
    "odd": lambda spark, seed: digits(spark, seed, odd=True),
    "digits": digits,
    **{
        f"planted {p}": (lambda spark, seed, p=p: generated(spark, seed, p))
        for p in ("interaction", "bend", "category", "entity")
    },
    **{
        name: (lambda spark, seed, name=name: of_sklearn(spark, seed, name)) for name in ("diabetes", "cells", "cancer")
    },
}


# Arms -----------------------------------------------------------------------------------------------------------------


def spent(spark: SparkSession) -> float:
    """CPU seconds of this process and of its JVM."""
    pid = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()  # type: ignore[union-attr]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / 100


def value(task: Task, model: Any, rows: DataFrame) -> float:
    """The mean loss of Spark's own predictions."""
    out = model.transform(rows)
    if task.loss == "logLoss":
        found = out.select(task.label, vector_to_array("probability").alias("p")).toPandas()
        p = np.stack(found["p"].to_numpy())[np.arange(len(found)), found[task.label].astype(int)]
        return float(-np.log(np.clip(p, 1e-15, 1)).mean())
    found = out.select(task.label, "prediction").toPandas().astype(float)
    y, mean = found[task.label].to_numpy(), found["prediction"].to_numpy()
    if task.loss == "squared":
        return float(np.square(y - mean).mean())
    mean = np.clip(mean, 1e-9, None)
    return float((xlogy(y, y / mean) - (y - mean)).mean())


def grow(
    task: Task, train: DataFrame, original: Any, arm: str, seed: int, more: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    parts = {} if arm == "all" else {"parts": [arm]}
    grower = sparkdiff.Grower(
        original, labelCol=task.label, seed=seed, entityCols=[*task.entities], **parts, **more
    )  # fmt: skip
    model = grower.fit(train)
    summary = model.summary
    joined = [r["name"] for r in summary.rounds if not r["why"]]
    return model.pipelineModel, {
        "decision": summary.decision, "joined": joined, "serving": summary.servingCost, "reason": summary.reason,
        "timings": summary.timings,
    }  # fmt: skip


def rival(task: Task, train: DataFrame, arm: str, seed: int) -> Any:
    """Boosted trees on the columns: Spark's, or LightGBM's with early stopping on a fifth of the training rows."""
    index = [StringIndexer(inputCol=w, outputCol=f"{w}_index", handleInvalid="keep") for w in task.words]
    columns = [*task.numbers, *(f"{w}_index" for w in task.words)]
    assemble = VectorAssembler(inputCols=columns, outputCol="features")
    if arm == "gbt":
        last: Any = (
            GBTClassifier(labelCol=task.label, maxIter=100, seed=seed)
            if task.loss == "logLoss"
            else GBTRegressor(labelCol=task.label, maxIter=100, seed=seed)
        )
        return Pipeline(stages=[*index, assemble, last]).fit(train)
    import lightgbm

    before = Pipeline(stages=[*index, assemble]).fit(train)
    table = before.transform(train).select(*columns, task.label).toPandas().astype(float)
    held = np.random.default_rng(seed).random(len(table)) < 0.2
    objective = {"poisson": "poisson", "squared": "regression", "logLoss": "binary"}[task.loss]
    classes = table[task.label].nunique() if task.loss == "logLoss" else 0
    params = {"objective": "multiclass" if classes > 2 else objective, "verbose": -1, "num_threads": 1, "seed": seed}
    params |= {"num_class": classes} if classes > 2 else {}
    fit, check = (lightgbm.Dataset(table.loc[w, columns], table.loc[w, task.label]) for w in (~held, held))
    stop = lightgbm.early_stopping(30, verbose=False)
    booster = lightgbm.train(params, fit, 1000, valid_sets=[check], callbacks=[stop])
    trees = sparkdiff.from_lightgbm(booster)
    return PipelineModel([*before.stages, *(trees.stages if isinstance(trees, PipelineModel) else [trees])])


def cell(spark: SparkSession, name: str, arm: str, seed: int, more: dict[str, Any]) -> dict[str, Any]:
    task = TASKS[name](spark, seed)
    train, test = (task.rows.where(c).drop("fold").cache() for c in ("fold < 8", "fold >= 8"))
    original = task.pipeline.fit(train)
    start, clock = spent(spark), time.perf_counter()
    if arm in ("gbt", "lightgbm"):
        if arm == "gbt" and task.rows.select(task.label).distinct().count() > 2 and task.loss == "logLoss":
            return {}  # GBTClassifier has two classes
        model, told = rival(task, train, arm, seed), {}
    else:
        model, told = grow(task, train, original, arm, seed, more)
    cpu, seconds = spent(spark) - start, time.perf_counter() - clock
    with tempfile.TemporaryDirectory() as folder:
        model.write().save(f"file://{folder}/model")
        model = (PipelineModel if isinstance(model, PipelineModel) else type(model)).load(f"file://{folder}/model")
        test.count()
        clock = time.perf_counter()
        found = value(task, model, test)
        took = time.perf_counter() - clock
    best = float(np.square(test.toPandas().eval("label - known")).mean()) if "known" in task.rows.columns else None
    out = {
        "task": name, "arm": arm, "seed": seed, "original": value(task, original, test), "value": found, "cpu": cpu,
        "seconds": seconds, "transform": took, "known": best, **told,
    }  # fmt: skip
    spark.catalog.clearCache()
    return out


# The run --------------------------------------------------------------------------------------------------------------


def table(cells: Sequence[dict[str, Any]]) -> str:
    head = [
        "task",
        "arm",
        "seeds",
        "original",
        "value",
        "change, median",
        "worst",
        "CPU s",
        "transform s",
        "joined first",
    ]
    rows = []
    for name, arm in dict.fromkeys((c["task"], c["arm"]) for c in cells):
        own = [c for c in cells if (c["task"], c["arm"]) == (name, arm)]
        change = [c["value"] / c["original"] - 1 for c in own]
        first = [c["joined"][0] for c in own if c.get("joined")]
        before, value, cpu, took = (
            statistics.median(c[k] for c in own) for k in ("original", "value", "cpu", "transform")
        )
        rows.append([
            name, arm, str(len(own)), f"{before:.4g}", f"{value:.4g}", f"{statistics.median(change):+.1%}", f"{max(change):+.1%}",
            f"{cpu:.0f}", f"{took:.2f}", max(set(first), key=first.count) if first else "",
        ])  # fmt: skip
    return markdown(head, rows)


def main() -> int:
    given = parser(__doc__)
    given.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the cells that are done")
    given.add_argument("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS])
    given.add_argument("--arms", nargs="+", help="default: all, the parts of the task alone, gbt, lightgbm")
    given.add_argument("--seeds", type=int, default=5)
    given.add_argument("--rounds", type=int, default=3)
    options = parse(given, tasks=["planted interaction"], arms=["crosses"], seeds=1, rounds=1)
    done: list[dict[str, Any]] = []
    if options.cells and options.cells.exists():
        done = [json.loads(line) for line in options.cells.read_text().splitlines()]
    spark = start_session({"spark.sql.shuffle.partitions": "4", "spark.ui.enabled": "false"}, "sparkdiff.grower")
    more: dict[str, Any] = {"rounds": options.rounds} | ({"maxEpochs": 2, "recipe": "fast"} if options.smoke else {})
    for seed in range(options.seeds):
        for name in options.tasks:
            alone = TASKS[name](spark, seed).parts
            for arm in options.arms or [*alone, "all", "gbt", "lightgbm"]:
                if any((c["task"], c["arm"], c["seed"]) == (name, arm, seed) for c in done):
                    continue
                found = cell(spark, name, arm, seed, more)
                if not found:
                    continue
                done.append(found)
                print(
                    f"{name}, {arm}, seed {seed}: {found['original']:.4g} -> {found['value']:.4g}",
                    file=sys.stderr,
                    flush=True,
                )
                if options.cells:
                    with options.cells.open("a") as file:
                        file.write(json.dumps(found) + "\n")
    wanted = [c for c in done if c["task"] in options.tasks]
    print(table(wanted))
    write(options, wanted, {f"{c['task']} {c['arm']} {c['seed']}": c["value"] for c in wanted})
    return 0


if __name__ == "__main__":
    sys.exit(main())
