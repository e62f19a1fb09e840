"""How much of the gap to LightGBM does an improvement close on real tables, is it better than a refit, and does it ever lose?

A cell is a table (evidence_tables.py; at most 20,000 rows), an original and a seed. Each table is split 60/20/20: by time or by
group where it has one, else by a hash with the seed. Originals, written as people write them, at Spark's defaults: "linear"
(Imputer, StringIndexer with handleInvalid="keep", OneHotEncoder, VectorAssembler, StandardScaler; LinearRegression,
GeneralizedLinearRegression with a log link for counts, LogisticRegression) and "trees" (without one-hot and scaler;
GBTRegressor, GBTClassifier, RandomForestClassifier for more than two classes; maxBins is raised only where a column has more
levels, as Spark's error message asks for). The original is fitted on the first 60%, with seed 2 on 80%; with seed 1 it is the
winner of Spark's CrossValidator over a small grid. All arms get the 80% as one table. The last 20% test each result once.

Arms: "ours" (`sparkdiff.Improver` with the fitted original and --budget), "refit" (the original's unfitted pipeline, with the
settings of seed 1's winner, fitted on the 80%), "lightgbm" (the ceiling: LightGBM, 20 trials of Optuna with early stopping on an
inner split, by time or group like the outer one, then fitted on all of the 80% with the best settings and number of trees; once
per table, seed and loss). An arm is a function in `ARMS`.

The loss of a row is squared error for regression, Poisson deviance for counts, log-loss for classes, with probabilities
clipped at 1e-6 in all arms alike. Trees on counts are the exception: Spark boosts them for squared errors only, and a few
predictions below zero would decide their deviance, so original and arms meet by squared error there. Standard errors are those
of the mean of paired differences between test rows, clustered by group, or by moment of time (a day, an hour).

Gap closed: (original - ours) / (original - LightGBM), mean loss of the same test rows. A gap below 3% of the original's loss, or
below two standard errors of the paired difference, is "no gap". "Better" and "worse" are cells in which another pipeline ships
and its mean test loss is lower or higher; worse beyond noise: the paired one-sided 95% bound of the worsening is above 0.5%.
Seconds are wall seconds of a warm session on two cores. --cells keeps a line for each arm of a cell as soon as it is done, and
a run that is stopped goes on there; --data keeps wheels, splits, fitted originals and the losses of all test rows.

    SPARK_CONF_DIR=conf python benchmarks/evidence.py run --tables ames --seeds 0 --budget 60s
    python benchmarks/evidence.py show
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import (
    ROOT,
    append_lines,
    exit_code,
    lightgbm_settings,
    markdown,
    parse,
    parser,
    read_lines,
    surroundings,
    write,
)
from evidence_tables import MADE_UP, ROW, TABLES, Split, Table, shares_before, write_whole
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression, RandomForestClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import Imputer, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.ml.tuning import CrossValidator
from pyspark.sql import DataFrame, SparkSession, functions as F
from scipy import stats
from scipy.special import xlogy

import sparkdiff
from sparkdiff.data.loading import start_session
from sparkdiff.machine import resources

ORIGINALS = ("linear", "trees")
TRIALS, ROUNDS, PATIENCE, INNER, FEW = 20, 1000, 30, 0.8, 2000
"""LightGBM: trials of Optuna, trees at most, trees without a gain that end a trial, share of rows that a trial is fitted on,
and rows below which one thread is faster than two (the trees are the same)."""
LEAST, CERTAIN = 0.03, 2.0
"""A gap is at least this share of the original's loss, and this many standard errors."""
SPARED, LEVEL = 0.005, 0.95
"""A cell is worse beyond noise if this one-sided bound of its relative worsening is above this share."""
LEAST_PROBABILITY, LEAST_MEAN = 1e-6, 1e-6
BROKEN = ("refused", "failed")
"""Decisions of an improvement that ended with an error, so that the original stands for it."""
VERDICTS = ("better", "kept", "worse", *BROKEN)


# Losses ---------------------------------------------------------------------------------------------------------------


def loss_of(table: Table, original: str) -> str:
    """Name of the loss that all arms of a cell are measured by."""
    if table.task in ("binary", "classes"):
        return "logLoss"
    return "poisson" if table.task == "counts" and original == "linear" else "squared"


def losses(loss: str, label: Any, found: Any) -> Any:
    """Loss of each row, from probabilities by class or from predictions."""
    if loss == "squared":
        return np.square(label - found)
    if loss == "poisson":
        mean = np.clip(found, LEAST_MEAN, None)
        return 2 * (xlogy(label, label / mean) - label + mean)
    missing = int(label.max()) + 1 - found.shape[1]  # classes that a pipeline has never seen
    found = np.pad(found, ((0, 0), (0, max(missing, 0))))
    return -np.log(np.clip(found[np.arange(len(label)), label.astype(int)], LEAST_PROBABILITY, 1))


def paired_difference(before: Any, after: Any, clusters: Any) -> dict[str, float]:
    """Mean of after - before over rows, and its standard error between clusters."""
    change = after - before
    _, cluster = np.unique(clusters, return_inverse=True)
    sums, n = np.bincount(cluster, change - change.mean()), int(cluster.max()) + 1
    variance = n / (n - 1) * np.square(sums).sum() / len(change) ** 2
    return {"difference": float(change.mean()), "se": float(np.sqrt(variance))}


# Originals ------------------------------------------------------------------------------------------------------------


def pipeline_of(split: Split, original: str, seed: int) -> Pipeline:
    """The original's pipeline, unfitted, at Spark's defaults."""
    numbers, words, stages = [*split.numbers], [*split.words], list[Any]()
    filled, index, hot = (
        [f"{c}_{end}" for c in own] for own, end in ((numbers, "filled"), (words, "index"), (words, "hot"))
    )
    if numbers:
        stages.append(Imputer(inputCols=numbers, outputCols=filled))
    if words:
        stages.append(StringIndexer(inputCols=words, outputCols=index, handleInvalid="keep"))
    if original == "trees":
        return Pipeline(stages=[*stages, assembler([*filled, *index], "features"), trees(split, seed)])
    if words:
        stages.append(OneHotEncoder(inputCols=index, outputCols=hot))
    stages.append(assembler([*filled, *hot], "assembled"))
    stages.append(StandardScaler(inputCol="assembled", outputCol="features"))
    return Pipeline(stages=[*stages, linear(split)])


def assembler(columns: list[str], out: str) -> VectorAssembler:
    return VectorAssembler(inputCols=columns, outputCol=out)


def linear(split: Split) -> Any:
    label = split.table.label
    if split.table.task == "counts":
        return GeneralizedLinearRegression(labelCol=label, family="poisson", link="log")
    return (LogisticRegression if split.classes else LinearRegression)(labelCol=label)


def trees(split: Split, seed: int) -> Any:
    """Boosted trees, or a forest for more than two classes, which Spark cannot boost."""
    kind = (RandomForestClassifier if split.classes > 2 else GBTClassifier) if split.classes else GBTRegressor
    last = kind(labelCol=split.table.label, seed=seed)
    return last.setMaxBins(max(last.getMaxBins(), split.levels + 1))


def grid(last: Any) -> list[dict[str, Any]]:
    """Settings of the last stage among which CrossValidator chooses."""
    if last.hasParam("maxDepth"):
        length, sizes = ("numTrees", (20, 60)) if last.hasParam("numTrees") else ("maxIter", (20, 50))
        return [{"maxDepth": depth, length: size} for depth in (3, 5, 7) for size in sizes]
    mixes = [{"elasticNetParam": m} for m in (0.0, 0.5)] if last.hasParam("elasticNetParam") else [{}]
    return [{"regParam": r, **mix} for r in (0.001, 0.01, 0.1) for mix in mixes]


def choose_settings(pipeline: Pipeline, rows: DataFrame, label: str, classes: int, seed: int) -> dict[str, Any]:
    """Choose settings of `grid` by Spark's CrossValidator: by log-loss for classes, else by its default, the RMSE."""
    last = pipeline.getStages()[-1]
    settings = grid(last)
    if classes:
        judge: Any = MulticlassClassificationEvaluator(labelCol=label, metricName="logLoss")
    else:
        judge = RegressionEvaluator(labelCol=label)
    maps = [{last.getParam(name): value for name, value in chosen.items()} for chosen in settings]
    found = CrossValidator(
        estimator=pipeline, estimatorParamMaps=maps, evaluator=judge, numFolds=3, seed=seed, parallelism=2
    ).fit(rows)
    return settings[int(np.nanargmin(found.avgMetrics))]


# Cells ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A table, a seed and an original: what the arms of a cell share."""

    spark: SparkSession
    split: Split
    original: str

    @property
    def table(self) -> Table:
        return self.split.table

    @property
    def seed(self) -> int:
        return self.split.seed

    @property
    def loss(self) -> str:
        return loss_of(self.table, self.original)

    def rows(self, part: str) -> DataFrame:
        return self.spark.read.parquet(str(self.split.folder / part))

    @functools.cached_property
    def test(self) -> pd.DataFrame:
        return self.split.read("test")

    @functools.cached_property
    def clusters(self) -> Any:
        """Number of the group of each test row, of its moment of time, or its own."""
        by = self.table.group or self.table.time or ROW
        return pd.factorize(self.test[by])[0]

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Settings of the last stage that differ from Spark's defaults: with seed 1 those of a CrossValidator's winner."""
        if self.seed != 1:
            return {}
        file = self.split.folder / f"{self.original}.settings.json"
        if not file.exists():
            pipeline = pipeline_of(self.split, self.original, self.seed)
            found = choose_settings(pipeline, self.rows("fit"), self.table.label, self.split.classes, self.seed)
            write_whole(file, json.dumps(found))
        return dict(json.loads(file.read_text()))

    def unfitted(self) -> Pipeline:
        pipeline = pipeline_of(self.split, self.original, self.seed)
        last = pipeline.getStages()[-1]
        for name, value in self.settings.items():
            last.set(last.getParam(name), value)
        return pipeline

    @functools.cached_property
    def fitted(self) -> PipelineModel:
        """The original, fitted and saved when it is first needed; always the saved one, so that a restart has the same."""
        folder = self.split.folder / self.original
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            self.unfitted().fit(self.rows("given" if self.seed == 2 else "fit")).save(str(part))
            part.rename(folder)
        return PipelineModel.load(str(folder))

    @functools.cached_property
    def before(self) -> Any:
        """Losses of the original on the test rows."""
        return self.measure_losses(self.fitted)

    def measure_losses(self, model: Any) -> Any:
        """Compute the losses of the test rows from the columns that Spark's own `transform` writes."""
        what = vector_to_array("probability") if self.loss == "logLoss" else F.col("prediction")
        out = model.transform(self.rows("test")).select(ROW, what.alias("found")).toPandas().sort_values(ROW)
        found = np.stack(out["found"].to_numpy()) if self.loss == "logLoss" else out["found"].to_numpy(float)
        return losses(self.loss, self.test[self.table.label].to_numpy(), found)

    def file(self, name: str) -> Path:
        """Where the losses of an arm on the test rows are kept."""
        return self.split.folder / "losses" / f"{name}.npy"


@dataclasses.dataclass
class Answer:
    """What an arm found: losses of the test rows, what it took, what else is known."""

    losses: Any
    seconds: float
    cpu: float
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


class Clock:
    """Wall and CPU seconds (of this process, its JVM and their children) since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), resources.cpu_seconds()

    def read(self) -> tuple[float, float]:
        return round(time.monotonic() - self.wall, 2), round(resources.cpu_seconds() - self.cpu, 2)


# Arms -----------------------------------------------------------------------------------------------------------------


def refit(case: Case, _budget: str) -> Answer:
    """Fit the original's pipeline anew."""
    pipeline, rows = case.unfitted(), case.rows("given")
    clock = Clock()
    model = pipeline.fit(rows)
    return Answer(case.measure_losses(model), *clock.read())


def improve(case: Case, budget: str) -> Answer:
    """Run `Improver` as a user does. If it refuses or fails, the original stands for it, and the reason is stored."""
    by = {"timeCol": case.table.time} if case.table.time else {"groupCol": case.table.group} if case.table.group else {}
    original, rows = case.fitted, case.rows("given")
    clock = Clock()
    try:
        found = sparkdiff.Improver(
            pipeline=original, labelCol=case.table.label, budget=budget, seed=case.seed, **by
        ).fit(rows)
    except Exception as e:  # a cell, not the run
        decision = "refused" if isinstance(e, sparkdiff.InputError) else "failed"
        more = {"decision": decision, "reason": f"{type(e).__name__}: {e}"[:2000], "shipped": None, "offers": []}
        return Answer(case.before, *clock.read(), more)
    taken = clock.read()
    summary, table = found.summary, found.summary.table
    offers = []
    for name, model in found.offers.items():
        row = table[summary.offers[name]] if name in summary.offers else {}
        after = case.measure_losses(model)
        offers.append(
            {
                "offer": name,
                **{k: row.get(k) for k in ("arm", "name", "serving", "compacted", "changed", "p")},
                "value": float(after.mean()),
                **paired_difference(case.before, after, case.clusters),
            }
        )
    kept = found.pipelineModel is original
    shipped = None if kept else next((o["name"] for o in offers if o["offer"] == "best"), "")
    columns = ("arm", "name", "value", "change", "p", "accepted", "serving", "seconds", "why")
    more = {
        "decision": summary.decision,
        "reason": summary.reason,
        "p": summary.p,
        "shipped": shipped,
        "offers": offers,
        "foundAt": summary.foundAt,
        "table": [{k: row.get(k) for k in columns} for row in table],
        "arms": [{k: a.get(k) for k in ("arm", "state", "why", "seconds")} for a in summary.arms],
        "spent": summary.budget,
        "warnings": [*summary.warnings],
    }
    return Answer(case.before if kept else case.measure_losses(found.pipelineModel), *taken, more)


def boost_with_lightgbm(case: Case, _budget: str) -> Answer:
    """Fit LightGBM to the columns that the original reads, strings as its own kind of categories."""
    import lightgbm
    import optuna

    split, label = case.split, case.table.label
    clock = Clock()
    given = split.read("given")
    levels = {w: sorted(given[w].dropna().unique()) for w in split.words}

    def features(rows: pd.DataFrame) -> pd.DataFrame:
        out = rows[[*split.numbers, *split.words]].copy()
        return out.assign(**{w: pd.Categorical(out[w], levels[w]) for w in split.words})

    keyed = given.assign(**{ROW: np.arange(len(given))})
    inner = shares_before(case.table, keyed, f"inner {case.seed}") < INNER
    x, y = features(given), given[label]
    several = {"objective": "multiclass", "num_class": split.classes}
    single = "binary" if split.classes else {"squared": "regression"}.get(case.loss, case.loss)
    fixed = {
        **(several if split.classes > 2 else {"objective": single}),
        "verbose": -1,
        "seed": case.seed,
        "num_threads": 1 if len(given) < FEW else 2,
        "deterministic": True,
        "force_row_wise": True,
    }
    best: list[Any] = []

    def trial(t: Any) -> float:
        chosen = lightgbm_settings(t)
        fit, check = (lightgbm.Dataset(x[w], y[w], params={"verbose": -1}) for w in (inner, ~inner))
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        booster = lightgbm.train({**fixed, **chosen}, fit, ROUNDS, valid_sets=[check], callbacks=[stop])
        [value] = booster.best_score["valid_0"].values()
        if not best or value < best[0]:
            best[:] = [value, chosen, booster.best_iteration]
        return float(value)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=case.seed))
    defaults = {"learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 20, "feature_fraction": 1.0}
    study.enqueue_trial({**defaults, "bagging_fraction": 1.0, "lambda_l2": 1e-3})
    study.optimize(trial, n_trials=TRIALS)
    _, chosen, rounds = best
    booster = lightgbm.train({**fixed, **chosen}, lightgbm.Dataset(x, y), rounds)
    taken = clock.read()
    found = np.asarray(booster.predict(features(case.test)))
    if split.classes == 2:
        found = np.stack([1 - found, found], 1)
    return Answer(losses(case.loss, case.test[label].to_numpy(), found), *taken, {"settings": chosen, "trees": rounds})


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to a pipeline, or to predictions, from the rows that all arms get.

    Attributes:
        run: gives an `Answer` for a case and a budget.
        budgeted: whether it stops by the budget, which is part of its cell's key then.
        shared: whether it knows no original but its loss, and so runs once per table, seed and loss.
    """

    run: Callable[[Case, str], Answer]
    budgeted: bool = False
    shared: bool = False


OURS, REFIT, CEILING = "ours", "refit", "lightgbm"
ARMS: Mapping[str, Arm] = {
    REFIT: Arm(refit),
    CEILING: Arm(boost_with_lightgbm, shared=True),
    OURS: Arm(improve, budgeted=True),
}


# The run --------------------------------------------------------------------------------------------------------------


Key = tuple[str, str, str, int, str, str | None]


def key_of(line: Mapping[str, Any]) -> Key:
    return line["table"], line["digest"], line["original"], line["seed"], line["arm"], line["budget"]


def name_of(arm: str, case: Case, budget: str) -> str:
    """Name of the file of an arm's losses; a shared arm has one for all originals with the same loss."""
    how = ARMS[arm]
    return "-".join([arm, case.loss if how.shared else case.original, *([budget] if how.budgeted else [])])


def run_arm(arm: str, case: Case, budget: str, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run one arm of a cell, and return its line. A shared arm that another original has run is read, not run again."""
    before = case.before  # fitted and measured before the clock of the arm starts
    file, how = case.file(name_of(arm, case, budget)), ARMS[arm]
    same = {
        "table": case.table.name,
        "digest": case.table.digest,
        "seed": case.seed,
        "arm": arm,
        "loss": case.loss,
        "budget": budget if how.budgeted else None,
    }
    twin = next((d for d in done if how.shared and same.items() <= d.items()), None)
    if twin and file.exists():
        answer = Answer(np.load(file), twin["seconds"], twin["cpu"], {**twin["more"], "sharedWith": twin["original"]})
    else:
        answer = how.run(case, budget)
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part.npy")
        np.save(part, answer.losses)
        os.replace(part, file)
    about = surroundings()
    return {
        **same,
        "task": case.table.task,
        "half": case.table.half,
        "original": case.original,
        "settings": case.settings,
        "rows": {"all": case.split.all_rows, "given": case.rows("given").count(), "test": len(case.test)},
        "clusters": int(case.clusters.max()) + 1,
        "before": float(before.mean()),
        "value": float(answer.losses.mean()),
        **paired_difference(before, answer.losses, case.clusters),
        "seconds": answer.seconds,
        "cpu": answer.cpu,
        "more": answer.more,
        **{k: about[k] for k in ("date", "commit", "machine", "versions")},
    }


def run(given: Any, tables: Sequence[Table], done: list[dict[str, Any]]) -> None:
    """Run the arms of all cells that are not done, and add their lines to `done` and to the file."""
    conf = {"spark.master": "local[2]", "spark.sql.shuffle.partitions": "2", "spark.ui.enabled": "false"}
    have, warm, spark = {key_of(line) for line in done}, False, None
    for seed, table, original in ((s, t, o) for s in given.seeds for t in tables for o in given.originals):
        wanted = [
            (arm, (table.name, table.digest, original, seed, arm, given.budget if ARMS[arm].budgeted else None))
            for arm in ARMS
            if arm in given.arms
        ]
        wanted = [(arm, key) for arm, key in wanted if key not in have]
        if not wanted:
            continue
        spark = spark or start_session(conf, "sparkdiff.estimators.improver")
        case = Case(spark, Split.of(table, seed, given.data), original)
        for arm, key in wanted:
            if arm == OURS and not warm and not given.smoke:
                warm_up(spark, given.data)
                warm = True
            line = run_arm(arm, case, given.budget, done)
            have.add(key)
            done.append(line)
            append_lines(given.cells, line)
            figures = f"{line['before']:.5g} -> {line['value']:.5g}, {line['seconds']:.0f} s"
            print(f"{table.name}, {original}, seed {seed}, {arm}: {figures}", file=sys.stderr, flush=True)


def warm_up(spark: SparkSession, data: Path) -> None:
    """Run a short improvement of the made-up table, so that no cell pays for imports and for Java's first compilations."""
    case = Case(spark, Split.of(MADE_UP, 0, data), "linear")
    improver = sparkdiff.Improver(pipeline=case.fitted, labelCol=MADE_UP.label, groupCol=MADE_UP.group, budget="10s")
    improver.fit(case.rows("given"))


# What was found -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    """The line of an improvement, with those of its rivals."""

    ours: Mapping[str, Any]
    rivals: Mapping[str, Mapping[str, Any]]

    @property
    def has_gap(self) -> bool | None:
        """True if LightGBM is better than the original by enough; None if it has not run."""
        if CEILING not in self.rivals:
            return None
        best = self.rivals[CEILING]
        return bool(-best["difference"] >= max(LEAST * best["before"], CERTAIN * best["se"]))

    @property
    def closed(self) -> float:
        """Share of the gap that is closed."""
        return float(self.ours["difference"] / self.rivals[CEILING]["difference"]) + 0.0  # no minus before a 0

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.ours["more"]["decision"] in BROKEN:
            return str(self.ours["more"]["decision"])
        if self.ours["more"]["shipped"] is None:
            return "kept"
        return "better" if self.ours["difference"] < 0 else "worse"

    @property
    def bound(self) -> float:
        """One-sided lower bound of the relative worsening."""
        quantile = float(stats.t.ppf(LEVEL, self.ours["clusters"] - 1))
        return float((self.ours["difference"] - quantile * self.ours["se"]) / self.ours["before"])

    @property
    def is_lost(self) -> bool:
        """True if it is worse beyond noise."""
        return self.bound > SPARED

    @property
    def overtime(self) -> float:
        """Seconds over those of the budget."""
        return float(self.ours["seconds"] / seconds_of(self.ours["budget"]))


def seconds_of(budget: str) -> float:
    """Seconds of a budget such as 60s or 5m."""
    if not re.fullmatch(r"\d+[smh]", budget):
        raise argparse.ArgumentTypeError(
            f"a budget is a number of seconds, minutes or hours, such as 60s or 5m; got {budget!r}"
        )
    return float(budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[budget[-1]]


def budget_text(budget: str) -> str:
    """The text of a budget, once it can be read."""
    seconds_of(budget)
    return budget


def cells_of(done: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """A cell for each improvement."""

    def place(line: Mapping[str, Any]) -> tuple[Any, ...]:
        return key_of(line)[:4]

    def rivals(own: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        same = (d for d in done if place(d) == place(own) and d["budget"] in (None, own["budget"]))
        return {d["arm"]: d for d in same if d["arm"] != OURS}

    return [Cell(own, rivals(own)) for own in done if own["arm"] == OURS]


def cell_table(cells: Sequence[Cell]) -> str:
    """A line for each cell."""
    lines = []
    for c in cells:
        values = [f"{c.rivals[a]['value']:.5g}" if a in c.rivals else "" for a in ARMS if a != OURS]
        gap = {True: "", False: "no gap", None: "no LightGBM"}[c.has_gap] or f"{c.closed:.0%}"
        shipped = (c.ours["more"]["shipped"] or "the original")[:50].replace("|", "/")
        lines.append(
            [
                f"{c.ours['table']}, {c.ours['original']}, {c.ours['seed']}",
                c.ours["loss"],
                f"{c.ours['before']:.5g}",
                f"{c.ours['value']:.5g}",
                *values,
                gap,
                f"{c.verdict}{', beyond noise' if c.is_lost else ''}",
                f"{c.ours['difference'] / c.ours['before']:+.1%}",
                f"{c.ours['se'] / c.ours['before']:.1%}",
                f"{c.ours['seconds']:.0f} of {seconds_of(c.ours['budget']):g}",
                f"{c.ours['cpu']:.0f}",
                shipped,
            ]
        )
    rivals = [a for a in ARMS if a != OURS]
    head = ["table, original, seed", "loss", "original", OURS, *rivals, "gap closed", "verdict", "change", "its error"]
    return markdown([*head, "seconds", "CPU seconds", "shipped"], lines)


def summarize(cells: Sequence[Cell]) -> tuple[list[str], dict[str, float]]:
    """Medians over the cells, in words and as figures."""
    sentences, figures = [], {"cells": float(len(cells))}
    with_gap = [c for c in cells if c.has_gap]
    without = [c for c in cells if c.has_gap is False]
    if with_gap:
        figures["gap closed, median"] = median = statistics.median(c.closed for c in with_gap)
        sentences.append(f"{len(with_gap)} cells with a gap: {median:.0%} of it closed in the median")
    for name, some in (("with a gap", with_gap), ("without a gap", without)):
        counts = {v: sum(c.verdict == v for c in some) for v in VERDICTS}
        told = [f"{n} {v}" for v, n in counts.items() if n or v not in BROKEN]
        sentences.append(f"{len(some)} cells {name}: {', '.join(told)}")
    refitted = [c for c in with_gap if REFIT in c.rivals]
    if refitted:
        better = sum(c.ours["value"] < c.rivals[REFIT]["value"] for c in refitted)
        sentences.append(f"{len(refitted)} cells with a gap and a refit: {better} better than the refit")
    if cells:
        figures["worse beyond noise"] = lost = float(sum(c.is_lost for c in cells))
        figures["seconds over budget, median"] = median = statistics.median(c.overtime for c in cells)
        sentences.append(f"{lost:g} of {len(cells)} cells are worse beyond noise")
        sentences.append(
            f"seconds over those of the budget: median {median:.2f}, largest {max(c.overtime for c in cells):.2f}"
        )
    if len(commits := sorted({str(c.ours["commit"]) for c in cells})) > 1:
        sentences.append(
            f"the cells are of {len(commits)} commits ({', '.join(commits)}): delete the lines of the older ones"
        )
    return sentences, figures


def choose_tables(given: Any) -> list[Table]:
    """Choose the tables to run: those of the half that are named, by default all."""
    if given.smoke:
        return [MADE_UP]
    half = {t.name: t for t in TABLES if t.half == given.half}
    if strangers := [name for name in given.tables or () if name not in half]:
        raise SystemExit(f"--half {given.half} has no table {', '.join(strangers)}: it has {', '.join(half)}")
    return [half[name] for name in given.tables or half]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparkdiff-evidence"


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("do", nargs="?", default="run", choices=("run", "show"))
    flags.add_argument("--half", default="b", choices=("b", "r"), help="tables for building (b) or for the report (r)")
    flags.add_argument("--tables", nargs="+", metavar="NAME", help="only these of the half")
    flags.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    flags.add_argument("--originals", nargs="+", default=[*ORIGINALS], choices=ORIGINALS)
    flags.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS])
    flags.add_argument("--budget", default="60s", type=budget_text, help="of each improvement, such as 60s or 5m")
    flags.add_argument("--cells", type=Path, metavar="FILE", default=ROOT / "benchmarks" / "cells" / "evidence.jsonl")
    flags.add_argument(
        "--data", type=Path, metavar="FOLDER", default=cache_folder(), help="wheels, splits and losses of rows"
    )
    given = parse(flags, seeds=[0], originals=["linear"], budget="10s")
    tables = choose_tables(given)
    with contextlib.ExitStack() as closing:
        if given.smoke:
            given.data = Path(closing.enter_context(tempfile.TemporaryDirectory()))
            given.cells = given.data / "cells.jsonl"
        given.data = given.data.resolve()
        done = read_lines(given.cells)
        if given.do == "run":
            run(given, tables, done)
    current = {(t.name, t.digest) for t in tables}
    asked = [c for c in cells_of(done) if (c.ours["table"], c.ours["digest"]) in current]
    asked = [c for c in asked if c.ours["original"] in given.originals and c.ours["seed"] in given.seeds]
    cells = [c for c in asked if c.ours["budget"] == given.budget]
    sentences, figures = summarize(cells)
    print("\n".join([f"Half {given.half}, budget {given.budget}\n", cell_table(cells), "", *sentences]))
    write(given, done, figures)
    return exit_code(given, [])


if __name__ == "__main__":
    sys.exit(main())
