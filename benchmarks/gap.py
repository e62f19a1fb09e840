"""How much of the gap to the best rival does an improvement close, and does it ever lose?

Sets: bike sharing, digits (ten classes), diabetes, breast cancer and wine of scikit-learn's wheel, doctor visits (randhie)
of statsmodels'; and generated ones with a planted interaction, with drift and with groups, which are never pooled with the
real ones. Three originals of each: a linear model with the link of its label ("linear"), the same on principal components
("pca"), and boosted trees at Spark's defaults ("trees"; a random forest where there are more than two classes, which
Spark's boosted trees don't have). Of ten folds, 0 to 5 fit the original; an improvement and its rivals get 0 to 7, of which
the improvement holds out 6 and 7; 8 and 9 test. Under drift the folds are the order of time: 0 to 4 fit the original, the
others get 3 to 7. Groups of rows are in one fold.

Arms, --seconds of CPU each (of this process and its JVM, one thread): "improve" (`sparkdiff.Improver`, all its arms); "cv",
Spark's CrossValidator on the original's stages, over more and more settings until the time is spent; "deleted", the
pipeline without its PCA; "refit", the original's stages fitted anew; "optuna", LightGBM's settings by Optuna with early
stopping; "flaml", FLAML's AutoML. What stops by the clock is given CPU seconds for a clock, so that other work on the
machine is no handicap. The loss is the original's: half the Poisson deviance, log-loss or squared error (trees on counts:
squared).

Gap closed: (original - improved) / (original - best rival) on the test rows, between -1 and 1.2. Where the best rival gains
less than 1%, nothing is to be closed: there an accepted loss is counted. A loss is tested by row (by group, by a fiftieth of
the time): one-sided t-test of the paired differences, Bonferroni within a set, Holm over sets. Fails where a bound is missed
(`LEAST`) or a loss is significant. Each arm of a cell is kept in --cells as soon as it is done, so that a run that is stopped
goes on there.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/gap.py --cells gap.jsonl
"""

import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import growth
import numpy as np
import pandas as pd
from common import append_lines, exit_code, markdown, parse, parser, read_lines, write
from growth import Task, dealt, linear, spent
from pyspark.ml import Pipeline
from pyspark.ml.classification import GBTClassifier, LogisticRegression, RandomForestClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import PCA, StringIndexer, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.ml.tuning import CrossValidator
from pyspark.sql import DataFrame, SparkSession, functions as F
from scipy import stats
from scipy.special import xlogy

import sparkdiff
from sparkdiff.data.loading import start_session

ORIGINALS = ("linear", "pca", "trees")
OURS, SHARED = "improve", ("optuna", "flaml")
"""SHARED get the columns, and so know no original but its loss."""
RIVALS = ("refit", "deleted", "cv", *SHARED)
LEAST = {"real": 0.6, "generated": 0.8}
"""Of the median share of the gap that is closed."""
NOTHING, SPARED = 0.01, 0.005
"""A best rival that gains less leaves no gap; a loss on test rows that "never worse" spares, as a share."""
LEVEL, TIME_BLOCKS, ROWS, GROUPS = 0.05, 50, 4000, 250
RARE = 30
"""Rows of a level, below which it may be missing among those that fit."""
BY_THE_CLOCK = (
    "sparkdiff.improvement",
    "sparkdiff.tuning",
    "sparkdiff.growth.clock",
    "sparkdiff.training.training_run",
    "flaml",
)
"""Modules that stop by time."""


@dataclasses.dataclass(frozen=True)
class Set:
    """
    Attributes:
        task: see growth.py; its pipeline is the linear one, its rows have an `id`.
        real: whether it was measured, or generated.
        group, time: columns of what belongs together, and of the order.
    """

    task: Task
    real: bool
    group: str | None = None
    time: str | None = None

    def loss(self, kind: str) -> str:
        """The loss of an original of this kind."""
        return "squared" if kind == "trees" and self.task.loss == "poisson" else self.task.loss


# Sets -----------------------------------------------------------------------------------------------------------------


def real(name: str) -> Callable[[SparkSession, int], Set]:
    """A set of growth.py's; the digits without their PCA."""

    def found(spark: SparkSession, seed: int) -> Set:
        task = growth.TASKS[name](spark, seed)
        if name == "bikeshare":
            task = dataclasses.replace(task, rows=task.rows.withColumn("id", F.monotonically_increasing_id()))
        last = task.pipeline.getStages()[-1]
        return Set(dataclasses.replace(task, pipeline=linear(task.words, task.numbers, last)), True)

    return found


def wine(spark: SparkSession, seed: int) -> Set:
    from sklearn import datasets

    table = datasets.load_wine(as_frame=True).frame.rename(columns={"target": "label"})
    table.columns = [c.replace("/", "_") for c in table.columns]
    return measured(spark, seed, table, LogisticRegression(labelCol="label", regParam=0.01), "logLoss")


def randhie(spark: SparkSession, seed: int) -> Set:
    """Visits to a doctor in a year, of the RAND health insurance experiment."""
    from statsmodels.datasets import randhie

    table = randhie.load_pandas().data.rename(columns={"mdvis": "label"})
    last = GeneralizedLinearRegression(labelCol="label", family="poisson", link="log", regParam=0.001)
    return measured(spark, seed, table, last, "poisson")


def measured(spark: SparkSession, seed: int, table: pd.DataFrame, last: Any, loss: str) -> Set:
    """A table of numbers."""
    numbers = [c for c in table.columns if c != "label"]
    rows = dealt(spark.createDataFrame(table.astype(float).assign(id=range(len(table)))), ["id"], seed)
    return Set(Task(rows, linear([], numbers, last), "label", loss, numbers), True)


def interaction(spark: SparkSession, seed: int) -> Set:
    return Set(growth.generated(spark, seed, "interaction"), False)


def noise(seed: int, name: str) -> tuple[Any, pd.DataFrame]:
    """Numbers x, y and z, a category a, and where the rest is random."""
    random = np.random.default_rng([seed, *name.encode()])
    table = pd.DataFrame(random.normal(size=(ROWS, 3)), columns=["x", "y", "z"])
    table.insert(0, "id", range(ROWS))
    table["a"] = [f"a{v}" for v in random.integers(0, 6, ROWS)]
    return random, table


def drift(spark: SparkSession, seed: int) -> Set:
    """Slopes that turn in time, a category whose effects fade, and a bend that stays."""
    random, table = noise(seed, "drift")
    t = np.arange(ROWS) / ROWS
    level = random.normal(size=6)[table["a"].str[1:].astype(int)] * (1 - t)
    mean = np.cos(3 * t) * table["x"] + np.sin(3 * t) * table["y"] + 0.7 * np.abs(table["z"]) + level
    table["label"] = mean + 0.5 * random.normal(size=ROWS)
    table["day"], table["fold"] = t * 1000, np.arange(ROWS) * 10 // ROWS
    pipeline = linear(["a"], ["x", "y", "z"], LinearRegression(labelCol="label"))
    return Set(
        Task(spark.createDataFrame(table), pipeline, "label", "squared", ["x", "y", "z"], ["a"]), False, time="day"
    )


def groups(spark: SparkSession, seed: int) -> Set:
    """Rows of users, who share an error; a slope that depends on the category, and a bend."""
    random, table = noise(seed, "groups")
    user = random.integers(0, GROUPS, ROWS)
    table["y"] = 0.7 * random.normal(size=GROUPS)[user] + 0.7 * table["y"]
    slope = random.normal(size=6)[table["a"].str[1:].astype(int)]
    mean = slope * table["x"] + np.abs(table["y"]) + 0.5 * random.normal(size=GROUPS)[user]
    table["label"], table["user"] = mean + 0.5 * random.normal(size=ROWS), [f"u{u}" for u in user]
    pipeline = linear(["a"], ["x", "y", "z"], LinearRegression(labelCol="label"))
    rows = dealt(spark.createDataFrame(table), ["user"], seed)
    return Set(Task(rows, pipeline, "label", "squared", ["x", "y", "z"], ["a"]), False, group="user")


SETS: dict[str, Callable[[SparkSession, int], Set]] = {
    "bikeshare": real("bikeshare"),
    "digits": real("digits"),
    "randhie": randhie,
    "cancer": real("cancer"),
    "diabetes": real("diabetes"),
    "wine": wine,
    "interaction": interaction,
    "drift": drift,
    "groups": groups,
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a set: those that fit the original, those that the arms get, those that test; as tables too."""

    fit: DataFrame
    given: DataFrame
    test: DataFrame

    @staticmethod
    def of(s: Set) -> "Rows":
        rows = s.task.rows.withColumn("held", F.col("fold") >= 6)
        whole = rows.toPandas().sort_values("id")
        again = rows.sparkSession.createDataFrame(whole).coalesce(1)  # of which Spark makes nothing twice
        old, first = (5, 3) if s.time else (6, 0)
        wheres = (f"fold < {old}", f"fold >= {first} AND fold < 8", "fold >= 8")
        return Rows(*(again.where(w).drop("fold").cache() for w in wheres))


# Originals ------------------------------------------------------------------------------------------------------------


def original(s: Set, kind: str) -> Pipeline:
    """The original's pipeline, unfitted."""
    task = s.task
    if kind == "linear":
        return task.pipeline
    if kind == "pca":
        return projected(task)
    words = [f"{w}_index" for w in task.words]
    stages: list[Any] = (
        [StringIndexer(inputCols=[*task.words], outputCols=words, handleInvalid="keep")] if words else []
    )
    stages.append(VectorAssembler(inputCols=[*task.numbers, *words], outputCol="features"))
    return Pipeline(stages=[*stages, trees(task)])


def projected(task: Task) -> Pipeline:
    """The linear pipeline on principal components.

    Only words with a rare level keep a column for every level that was seen: these columns add up to 1, and where several
    words do so, the covariance is so singular that Spark's PCA fails (conf/pipelines.py).
    """
    last = task.pipeline.getStages()[-1]
    rare = [w for w in task.words if min(r["count"] for r in task.rows.groupBy(w).count().collect()) < RARE]
    often = [w for w in task.words if w not in rare]
    indexers = [
        StringIndexer(inputCols=words, outputCols=[f"{w}_index" for w in words], handleInvalid=invalid)
        for words, invalid in ((often, "error"), (rare, "keep"))
        if words
    ]
    *_, scaler = rest = [s for s in task.pipeline.getStages()[:-1] if not isinstance(s, StringIndexer)]
    k = min(10, max(2, len(task.numbers) // 2))
    components = PCA(inputCol=scaler.getOutputCol(), outputCol="components", k=k)
    return Pipeline(stages=[*indexers, *rest, components, last.copy().setFeaturesCol("components")])


def trees(task: Task) -> Any:
    """Spark's boosted trees, or its forest, at their defaults."""
    if task.loss != "logLoss":
        return GBTRegressor(labelCol=task.label, seed=0)
    return (GBTClassifier if classes_of(task) == 2 else RandomForestClassifier)(labelCol=task.label, seed=0)


def classes_of(task: Task) -> int:
    return task.rows.select(task.label).distinct().count()


# Losses ---------------------------------------------------------------------------------------------------------------


def losses(loss: str, label: Any, found: Any) -> Any:
    """The loss of each row; `found` are probabilities by class, or predictions."""
    if loss == "logLoss":
        return -np.log(np.clip(found[np.arange(len(label)), label.astype(int)], 1e-15, 1))
    if loss == "squared":
        return np.square(label - found)
    mean = np.clip(found, 1e-9, None)
    return xlogy(label, label / mean) - (label - mean)


def of_spark(task: Task, loss: str, model: Any, rows: DataFrame) -> Any:
    """The losses of Spark's own predictions, in the order of the ids."""
    what = vector_to_array("probability") if loss == "logLoss" else F.col("prediction")
    out = model.transform(rows).select("id", task.label, what.alias("found")).toPandas().sort_values("id")
    found = np.stack(out["found"].to_numpy()) if loss == "logLoss" else out["found"].to_numpy()
    return losses(loss, out[task.label].to_numpy(float), found)


def chance_of_loss(s: Set, rows: Rows, before: Any, after: Any) -> float:
    """The p-value that the second losses are no larger; of rows, groups, or blocks of time."""
    worse = after - before
    if not worse.any():
        return 1.0
    if s.time:
        worse = np.array([part.mean() for part in np.array_split(worse, TIME_BLOCKS)])
    elif s.group:
        named = rows.test.select("id", s.group).toPandas().sort_values("id")[s.group]
        worse = pd.Series(worse).groupby(named.to_numpy()).sum().to_numpy()
    return float(stats.ttest_1samp(worse, 0.0, alternative="greater").pvalue)


# Arms -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cpu_clock(spark: SparkSession) -> Iterator[None]:
    """Within this context, what stops by time has the CPU seconds of this process and its JVM for a clock."""

    def clock() -> float:
        return spent(spark)

    own = types.SimpleNamespace(**{**vars(time), "time": clock, "monotonic": clock, "perf_counter": clock})
    changed = [m for n, m in [*sys.modules.items()] if n.startswith(BY_THE_CLOCK) and getattr(m, "time", None) is time]
    for module in changed:
        module.time = own  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in changed:
            module.time = time  # type: ignore[attr-defined]


def improved(
    s: Set, rows: Rows, fitted: Any, seconds: float, seed: int, arms: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """`Improver` with these arms, by default all; a refusal keeps the original."""
    some = {"arms": [*arms]} if arms else {}
    split = {"timeCol": s.time} if s.time else {"validationIndicatorCol": "held"}
    group = {"groupCol": s.group} if s.group else {}
    with tempfile.TemporaryDirectory() as folder:
        improver = sparkdiff.Improver(
            fitted,
            labelCol=s.task.label,
            budget=f"{seconds:g}s",
            seed=seed,
            cacheDir=folder,
            entityCols=[*s.task.entities],
            baseline=False,
            **split,
            **group,
            **some,
        )
        given = rows.given.drop("held", "known") if s.time else rows.given.drop("known")
        try:
            found = improver.fit(given)
        except sparkdiff.InputError as e:
            return fitted, {"decision": "refused", "why": str(e), "table": []}
    keep = ("arm", "name", "value", "p", "accepted", "seconds")
    table = [{k: r[k] for k in keep} for r in found.summary.table]
    told = {"decision": found.summary.decision, "p": found.summary.p, "foundAt": found.summary.foundAt, "table": table}
    return found.pipelineModel, told


def settings_of(pipeline: Pipeline) -> list[dict[Any, Any]]:
    """Settings of the last stage, and of a PCA, that a user would try; the likely ones first."""
    last = pipeline.getStages()[-1]
    if hasattr(last, "maxDepth"):
        sizes = [(5, 20), (5, 50), (3, 50), (7, 20), (3, 100), (5, 100), (7, 50), (9, 20), (7, 100), (9, 50)]
        length = last.maxIter if hasattr(last, "maxIter") else last.numTrees
        return [{last.maxDepth: depth, length: count} for depth, count in sizes]
    mixes = (0.0, 0.5, 1.0) if hasattr(last, "elasticNetParam") else (None,)
    strengths = [{last.regParam: r} for r in (0.01, 0.1, 0.001, 1.0, 1e-4, 0.03, 0.3, 0.003, 3e-4, 0.0)]
    mixed = [g | ({} if m is None else {last.elasticNetParam: m}) for m in mixes for g in strengths]
    projections = [stage for stage in pipeline.getStages() if isinstance(stage, PCA)]
    if not projections:
        return mixed
    [projection] = projections
    least = projection.getK()
    return [g | {projection.k: k} for g in mixed for k in (least, max(2, least // 2))]


def evaluator(task: Task, loss: str) -> Any:
    if loss == "logLoss":
        return MulticlassClassificationEvaluator(labelCol=task.label, metricName="logLoss")
    return RegressionEvaluator(labelCol=task.label, metricName="mse")


def crossvalidated(s: Set, rows: Rows, kind: str, seconds: float, seed: int, spark: SparkSession) -> Any:
    """The best of 1, 2, 4, ... further settings by CrossValidator, until the seconds are spent."""
    pipeline, begun = original(s, kind), spent(spark)
    waiting, count, best, each = settings_of(pipeline), 1, (np.inf, None), 0.0
    judge = evaluator(s.task, s.loss(kind))
    while waiting and (left := seconds - (spent(spark) - begun)) > each:
        count = max(1, min(count, int(left / each) if each else 1))
        tried, waiting = waiting[:count], waiting[count:]
        before = spent(spark)
        found = CrossValidator(
            estimator=pipeline, estimatorParamMaps=tried, evaluator=judge, numFolds=3, seed=seed
        ).fit(rows.given)
        each, count = (spent(spark) - before) / len(tried), 2 * count
        if (value := float(np.nanmin(found.avgMetrics))) < best[0]:
            best = (value, found.bestModel)
    return best[1]


def table_of(s: Set, rows: DataFrame, levels: dict[str, Any] | None = None) -> tuple[pd.DataFrame, Any, dict[str, Any]]:
    """The columns that a library gets, categories as numbers, and the label."""
    table = rows.toPandas().sort_values("id")
    named = [*s.task.words, *s.task.entities]
    levels = levels or {w: sorted(table[w].astype(str).unique()) for w in named}
    out = table[[*s.task.numbers]].astype(float)
    for w in named:
        out[w] = pd.Categorical(table[w].astype(str), levels[w]).codes.astype(float)
    return out, table[s.task.label].to_numpy(float), levels


def optuna_found(s: Set, loss: str, table: pd.DataFrame, label: Any, seconds: float, seed: int) -> Callable[[Any], Any]:
    """LightGBM with early stopping, its settings by Optuna: growth.py's rival, with time in place of trials."""
    task = dataclasses.replace(s.task, loss=loss)
    begun = time.process_time()
    whole = table.assign(**{task.label: label})
    booster = growth.boosted(
        task, whole, [*table.columns], seed, 10**6, over=lambda: time.process_time() - begun > seconds
    )

    def predict(x: Any) -> Any:
        found = booster.predict(x)
        return np.stack([1 - found, found], 1) if loss == "logLoss" and found.ndim == 1 else found

    return predict


def flaml_found(
    _s: Set, loss: str, table: pd.DataFrame, label: Any, seconds: float, seed: int, spark: SparkSession
) -> Callable[[Any], Any]:
    import flaml

    def deviance(x: Any, y: Any, model: Any, *_: Any, **__: Any) -> tuple[float, dict[str, Any]]:
        found = float(losses("poisson", np.asarray(y, float), np.asarray(model.predict(x), float)).mean())
        return found, {"deviance": found}

    learner = flaml.AutoML()
    with cpu_clock(spark):
        learner.fit(
            X_train=table,
            y_train=label.astype(int) if loss == "logLoss" else label,
            time_budget=seconds,
            n_jobs=1,
            task="classification" if loss == "logLoss" else "regression",
            seed=seed,
            verbose=0,
            metric={"logLoss": "log_loss", "squared": "mse", "poisson": deviance}[loss],
            estimator_list=["lgbm", "xgboost", "rf", "extra_tree"],
            eval_method="auto",
        )
    return learner.predict_proba if loss == "logLoss" else learner.predict  # type: ignore[no-any-return]


# The run --------------------------------------------------------------------------------------------------------------


class Runner:
    """Runs the arms of cells; what several arms of a set share is made once."""

    def __init__(self, spark: SparkSession, seconds: float):
        self.spark, self.seconds = spark, seconds
        self.key: tuple[str, int] | None = None

    def take(self, name: str, seed: int) -> None:
        """Make the rows of a set."""
        if self.key != (name, seed):
            self.spark.catalog.clearCache()
            self.key, self.set = (name, seed), SETS[name](self.spark, seed)
            self.rows = Rows.of(self.set)
            self.fitted: dict[str, tuple[Any, Any]] = {}

    def start(self, kind: str) -> tuple[Any, Any]:
        """The fitted original, and its losses."""
        if kind not in self.fitted:
            fitted = original(self.set, kind).fit(self.rows.fit)
            self.fitted[kind] = fitted, of_spark(self.set.task, self.set.loss(kind), fitted, self.rows.test)
        return self.fitted[kind]

    def run(self, name: str, seed: int, kind: str, arm: str) -> dict[str, Any]:
        """One arm of a cell."""
        self.take(name, seed)
        before, told = spent(self.spark), dict[str, Any]()
        loss = self.set.loss(kind)
        if arm in SHARED:
            found = self._library(arm, loss, seed)
        else:
            fitted, base = self.start(kind)
            before = spent(self.spark)
            model, told = self._pipeline(arm, kind, fitted, seed)
            if model is None:
                return {}
            told |= {"original": float(base.mean())}
        cpu = spent(self.spark) - before
        if arm not in SHARED:
            found = of_spark(self.set.task, loss, model, self.rows.test)
        if arm == OURS:
            told["worse"] = chance_of_loss(self.set, self.rows, base, found)
        return {
            "set": name,
            "seed": seed,
            "kind": loss if arm in SHARED else kind,
            "arm": arm,
            "value": float(found.mean()),
            "cpu": cpu,
            "loss": loss,
            "real": self.set.real,
            "rows": len(found),
            **told,
        }

    def _library(self, arm: str, loss: str, seed: int) -> Any:
        table, label, levels = table_of(self.set, self.rows.given)
        if arm == "optuna":
            predict = optuna_found(self.set, loss, table, label, self.seconds, seed)
        else:
            predict = flaml_found(self.set, loss, table, label, self.seconds, seed, self.spark)
        test, truth, _ = table_of(self.set, self.rows.test, levels)
        return losses(loss, truth, np.asarray(predict(test), float))

    def _pipeline(self, arm: str, kind: str, fitted: Any, seed: int) -> tuple[Any, dict[str, Any]]:
        s, rows = self.set, self.rows
        if arm == OURS:
            with cpu_clock(self.spark):
                return improved(s, rows, fitted, self.seconds, seed)
        if arm == "cv":
            return crossvalidated(s, rows, kind, self.seconds, seed, self.spark), {}
        if arm == "deleted":
            return (original(s, "linear").fit(rows.given) if kind == "pca" else None), {}
        return original(s, kind).fit(rows.given), {}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A set, a seed and a kind of original, with the values of all arms that are done."""

    name: str
    seed: int
    kind: str
    ours: dict[str, Any]
    rivals: dict[str, float]

    @property
    def best(self) -> str:
        return min(self.rivals, key=lambda r: self.rivals[r])

    @property
    def gained(self) -> float:
        """The best rival's gain, as a share."""
        return 1 - self.rivals[self.best] / float(self.ours["original"])

    @property
    def closed(self) -> float:
        """The share of the gap that is closed."""
        before, after = float(self.ours["original"]), float(self.ours["value"])
        return float(np.clip((before - after) / (before - self.rivals[self.best]), -1, 1.2))

    @property
    def won(self) -> str:
        """What the improvement returned."""
        accepted = [r["name"] for r in self.ours["table"] if r["accepted"]]
        return str(accepted[0] if accepted else "the original")[:60].replace("|", "/")

    @property
    def lost(self) -> bool:
        """Whether a loss was accepted."""
        return bool(self.ours["value"] > (1 + SPARED) * self.ours["original"])


def cells_of(done: Sequence[dict[str, Any]]) -> list[Cell]:
    """Those that have an improvement and a rival."""
    out = []
    for own in (d for d in done if d["arm"] == OURS):
        same = [d for d in done if (d["set"], d["seed"]) == (own["set"], own["seed"]) and d["arm"] != OURS]
        rivals = {
            d["arm"]: d["value"] for d in same if d["kind"] == (own["loss"] if d["arm"] in SHARED else own["kind"])
        }
        if rivals:
            out.append(Cell(own["set"], own["seed"], own["kind"], own, {r: rivals[r] for r in RIVALS if r in rivals}))
    return out


def shown(cells: Sequence[Cell]) -> str:
    """A line per cell, with every rival's value."""
    lines = []
    for c in cells:
        gap = f"{c.closed:.0%}" if c.gained >= NOTHING else "no gap"
        rivals = [f"{c.rivals[r]:.4g}{'*' if r == c.best else ''}" if r in c.rivals else "" for r in RIVALS]
        lines.append(
            [
                f"{c.name}, {c.kind}, {c.seed}",
                c.ours["loss"],
                f"{c.ours['original']:.4g}",
                f"{c.ours['value']:.4g}",
                *rivals,
                gap,
                f"{c.ours['worse']:.2g}",
                c.won,
            ]
        )
    head = ["set, original, seed", "loss", "original", "improved", *RIVALS, "gap closed", "p of a loss", "what won"]
    return markdown(head, lines)


def holm(values: dict[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm 1979)."""
    out, largest = {}, 0.0
    for rank, name in enumerate(sorted(values, key=lambda n: values[n])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[name]))
        out[name] = largest
    return out


def summed(cells: Sequence[Cell]) -> tuple[list[str], list[str], dict[str, float]]:
    """What there is to say of real and of generated sets, the bounds that are missed, the figures."""
    told, missed, figures = [], [], dict[str, float]()
    for name, least in LEAST.items():
        own = [c for c in cells if c.ours["real"] == (name == "real")]
        gaps = [c.closed for c in own if c.gained >= NOTHING]
        if gaps:
            figures[f"gap closed, median, {name} sets"] = found = statistics.median(gaps)
            told.append(
                f"{name} sets: {found:.0%} of the gap closed in the median of {len(gaps)} cells, {least:.0%} wanted"
            )
            missed += [f"{name} sets, gap closed: {found:.0%}, {least:.0%} wanted"] if found < least else []
        none = [c for c in own if c.gained < NOTHING]
        lost = [c for c in none if c.lost]
        told.append(f"{name} sets: {len(none)} cells without a gap, {len(lost)} accepted losses in them")
        missed += [f"{c.name}, {c.kind}, {c.seed}: an accepted loss without a gap" for c in lost]
    pairs = [(n, [c.ours["worse"] for c in cells if c.name == n]) for n in dict.fromkeys(c.name for c in cells)]
    adjusted = holm({n: min(1.0, len(p) * min(p)) for n, p in pairs})
    told += [f"{n}: p of a loss, adjusted, {p:.3g}" for n, p in adjusted.items() if p < 1]
    missed += [f"{n}: a significant loss, p {p:.3g}" for n, p in adjusted.items() if p < LEVEL]
    return told, missed, figures


def wanted(given: Any) -> Iterator[tuple[str, int, str, str]]:
    """All arms of all cells; a set's kinds one after the other, so that its rows are made once."""
    for seed in range(given.seeds):
        for name in given.sets:
            for kind in given.originals:
                for arm in given.arms:
                    yield name, seed, kind, arm


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the arms of cells that are done")
    flags.add_argument("--sets", nargs="+", default=[*SETS], choices=[*SETS])
    flags.add_argument("--originals", nargs="+", default=[*ORIGINALS], choices=ORIGINALS)
    flags.add_argument("--arms", nargs="+", default=[OURS, *RIVALS], choices=[OURS, *RIVALS])
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of an arm")
    given = parse(flags, sets=["diabetes"], originals=["pca"], arms=[OURS, "refit", "deleted"], seeds=1, seconds=10.0)
    done = read_lines(given.cells)
    conf = {"spark.master": "local[1]", "spark.sql.shuffle.partitions": "1", "spark.ui.enabled": "false"}
    runner = Runner(start_session(conf, "sparkdiff.estimators.improver"), given.seconds)
    have = {(d["set"], d["seed"], d["kind"], d["arm"]) for d in done}
    for name, seed, kind, arm in wanted(given):
        runner.take(name, seed)
        key = (name, seed, runner.set.loss(kind) if arm in SHARED else kind, arm)
        if key in have or (arm == "deleted" and kind != "pca"):
            continue
        one = runner.run(name, seed, kind, arm)
        have.add(key)
        done.append(one)
        print(
            f"{name}, {kind}, seed {seed}, {arm}: {one['value']:.4g}, {one['cpu']:.0f} CPU s",
            file=sys.stderr,
            flush=True,
        )
        append_lines(given.cells, one)
    cells = [c for c in cells_of(done) if c.name in given.sets and c.kind in given.originals and c.seed < given.seeds]
    for title, own in (("Real", True), ("Generated", False)):
        if some := [c for c in cells if c.ours["real"] is own]:
            print(f"{title} sets (* the best rival)\n\n{shown(some)}\n")
    told, missed, figures = summed(cells)
    print("\n".join([*told, *([] if given.smoke else [f"missed: {m}" for m in missed])]))
    write(given, done, figures or {"cells": float(len(cells))})
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
