"""How many trials, and how many seconds of CPU, does each sampler need? And how do Optuna and FLAML do on their own?

Two shipped tables: digits (pixels or ink above a threshold, scaler or none, principal components, softmax with elastic
net) and bike sharing (number of intervals of three numbers, principal components, generalised regression over link and
penalty). Per sampler and seed a `sparkdiff.Search`; a trial's goal is 95% of the way from the default settings to the best
validation value of any trial of any sampler on the same rows, which the seed divides. Prints the trial that reaches it, for
each seed.

`optuna` and `flaml` are what one would write without sparkdiff: Optuna's TPE and FLAML's CFO over the same space, rows and
metric, each trial a `Pipeline.fit` and an `evaluate` of Spark's own, until they have used the CPU seconds that `tpe` took.
`trees` compares Hyperband and successive halving over boosted trees with the whole grid. All CPU seconds are those of this
process and its JVM.

Each cell's result is kept in --cells, so that a run that is stopped goes on there. FLAML must be on the path (pip install flaml).

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/samplers.py --cells samplers.jsonl --out samplers.json
"""

import dataclasses
import itertools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from common import CONFIG, append_lines, exit_code, markdown, parse, parser, read_lines, write
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import (
    PCA,
    Binarizer,
    MinMaxScaler,
    OneHotEncoder,
    QuantileDiscretizer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import load_data, start_session
from sparkdiff.search.alternatives import outputs, places, with_choices
from sparkdiff.search.distributions import Choice, Integer, Uniform

OURS = ("tpe", "gp", "random", "recursiveRandom", "cmaes")
RIVALS = ("optuna", "flaml")
DEFAULT = "default"
"""No search: the settings as they are."""
TRIALS = {"random": 60, "recursiveRandom": 60, "cmaes": 60}
"""Of a search; of those that are not named here, 30."""
PRUNERS, BOOSTED = ("hyperband", "halving"), 15
"""What is compared with the grid of boosted trees, and the trials of each: of 18 settings beside the number of trees."""
WAY = 0.95
"""From the default to the best known."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A table with what is searched on it."""

    rows: DataFrame
    pipeline: Pipeline
    space: Mapping[Any, Any]
    evaluator: Any

    def search(self, seed: int, **options: Any) -> Any:
        return sparkdiff.Search(
            self.pipeline, space=self.space, evaluator=self.evaluator, seed=seed, guard=1.0, numFolds=0, **options
        ).fit(self.rows)


def table(spark: SparkSession, config: Path) -> DataFrame:
    given = load_config(config, [])
    return load_data(spark, {**given.data["train"], "where": "true"}, given.folder, "train").repartition(2).cache()


def digits(spark: SparkSession) -> Task:
    rows = table(spark, CONFIG.with_name("digits.yaml"))
    pixels = [c for c in rows.columns if c not in ("id", "label")]
    ink = Binarizer(inputCol="assembled", outputCol="ink", threshold=8.0)
    standard = StandardScaler(inputCol="ink", outputCol="scaled")
    pca = PCA(inputCol="scaled", outputCol="components", k=10)
    head = LogisticRegression(featuresCol="components", family="multinomial")
    stages = [
        VectorAssembler(inputCols=pixels, outputCol="assembled"),
        sparkdiff.alternatives(None, ink),
        sparkdiff.alternatives(standard, MinMaxScaler(inputCol="ink", outputCol="scaled"), None),
        pca,
        head,
    ]
    space = {
        ink.threshold: sparkdiff.uniform(0, 15),
        pca.k: sparkdiff.integer(2, 60),
        head.regParam: sparkdiff.loguniform(1e-6, 1e4),
        head.elasticNetParam: sparkdiff.uniform(0, 1),
        head.fitIntercept: sparkdiff.choice(True, False),
        head.standardization: sparkdiff.choice(True, False),
    }
    return Task(rows, Pipeline(stages=stages), space, MulticlassClassificationEvaluator(metricName="logLoss"))


def bikes(spark: SparkSession) -> Task:
    rows = table(spark, CONFIG)
    words, numbers = ["mnth", "hr", "weekday", "weathersit", "workingday"], ["temp", "hum", "windspeed"]
    cut = [QuantileDiscretizer(inputCol=c, outputCol=f"{c}_index", numBuckets=4) for c in numbers]
    index = StringIndexer(inputCols=words, outputCols=[f"{c}_index" for c in words], handleInvalid="keep")
    names = [f"{c}_index" for c in (*words, *numbers)]
    encode = OneHotEncoder(inputCols=names, outputCols=[f"{c}_hot" for c in names], handleInvalid="keep")
    assemble = VectorAssembler(inputCols=[f"{c}_hot" for c in names], outputCol="assembled")
    pca = PCA(inputCol="assembled", outputCol="components", k=10)
    head = GeneralizedLinearRegression(
        featuresCol="components", labelCol="bikers", family="poisson", link="log", maxIter=50
    )
    space = {
        **{stage.numBuckets: sparkdiff.integer(2, 50, log=True) for stage in cut},
        pca.k: sparkdiff.integer(2, 60),
        head.regParam: sparkdiff.loguniform(1e-6, 1e2),
        head.link: sparkdiff.choice("log", "identity", "sqrt"),
    }
    return Task(
        rows,
        Pipeline(stages=[*cut, index, encode, assemble, pca, head]),
        space,
        RegressionEvaluator(labelCol="bikers", metricName="rmse"),
    )


TASKS: dict[str, Callable[[SparkSession], Task]] = {"digits": digits, "bikes": bikes}


def spent(spark: SparkSession) -> float:
    """CPU seconds of this process and of its JVM."""
    pid = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()  # type: ignore[union-attr]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / 100


def default_value(task: Task, seed: int) -> float:
    """The validation metric of the settings that the pipeline has."""
    [param] = [p for p in task.space if p.name == "regParam"]
    stage = next(s for s in task.pipeline.getStages() if s.uid == param.parent)
    same = dataclasses.replace(task, space={param: [stage.getOrDefault(param)]})
    found = same.search(seed, sampler="grid").trials
    for place in places(task.pipeline):
        found = found[found[f"stage of {', '.join(outputs(place))}"] == place.names()[0]]
    return float(found.iloc[0][task.evaluator.getMetricName()])


def ours(task: Task, sampler: str, seed: int) -> dict[str, Any]:
    """Validation values in the order of the trials, the fresh value of the winner."""
    model = task.search(seed, sampler=sampler, numTrials=TRIALS.get(sampler, 30))
    return {
        "values": [float(v) for v in model.trials[task.evaluator.getMetricName()]],
        "fresh": model.summary.fresh["winner"],
    }


def naive(task: Task, spark: SparkSession, seed: int, budget: float, how: str) -> dict[str, Any]:
    """A search without sparkdiff: rows divided once, a fit and an evaluation of Spark's for each trial."""
    train, validation, fresh = (part.cache() for part in task.rows.randomSplit([0.6, 0.2, 0.2], seed))
    values, start, best = [], spent(spark), (math.inf, None)
    variants = plain_variants(task)

    def evaluate(given: Mapping[str, Any]) -> float:
        nonlocal best
        pipeline = variants[given.get("stage", 0)]
        params = {p: given[name_of(p)] for p in task.space}
        model = pipeline.fit(train, params)
        value = float(task.evaluator.evaluate(model.transform(validation)))
        values.append(value)
        if value < best[0]:
            best = (value, model)
        return value

    if how == "optuna":
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        while spent(spark) - start < budget:
            study.optimize(lambda trial: evaluate(suggested(trial, task, len(variants))), n_trials=1)
    else:
        cfo(evaluate, task, len(variants), seed, lambda: spent(spark) - start >= budget)
    after = float(task.evaluator.evaluate(best[1].transform(fresh))) if best[1] is not None else math.nan
    for part in (train, validation, fresh):
        part.unpersist()
    return {"values": values, "fresh": after}


def plain_variants(task: Task) -> list[Pipeline]:
    """A Pipeline for each combination of alternatives."""
    found = places(task.pipeline)
    choices = itertools.product(*(range(len(place.getStages())) for place in found))
    return [with_choices(task.pipeline, {p.uid: i for p, i in zip(found, choice, strict=True)}) for choice in choices]


def name_of(param: Any) -> str:
    return str(param.parent if param.name == "numBuckets" else param.name)


def suggested(trial: Any, task: Task, variants: int) -> dict[str, Any]:
    out: dict[str, Any] = {"stage": trial.suggest_int("stage", 0, variants - 1)}
    for param, values in task.space.items():
        name = name_of(param)
        if isinstance(values, Uniform):
            out[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
        elif isinstance(values, Integer):
            out[name] = trial.suggest_int(name, values.low, values.high, log=values.log)
        elif isinstance(values, Choice):
            out[name] = trial.suggest_categorical(name, values.values)
    return out


def cfo(
    evaluate: Callable[[Mapping[str, Any]], float], task: Task, variants: int, seed: int, over: Callable[[], bool]
) -> None:
    from flaml import tune

    def domain(values: Any) -> Any:
        if isinstance(values, Uniform):
            return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)
        if isinstance(values, Integer):
            return (tune.lograndint if values.log else tune.randint)(values.low, values.high + 1)
        return tune.choice([*values.values])

    def objective(given: Mapping[str, Any]) -> dict[str, float]:
        if over():
            raise StopIteration
        return {"loss": evaluate(given)}

    space = {"stage": tune.randint(0, variants)} | {name_of(p): domain(v) for p, v in task.space.items()}
    try:
        tune.run(
            objective,
            config=space,
            metric="loss",
            mode="min",
            num_samples=10_000,
            use_ray=False,
            verbose=0,
            search_alg=flaml_cfo(space, seed),
        )
    except StopIteration:
        return


def flaml_cfo(space: Mapping[str, Any], seed: int) -> Any:
    from flaml import CFO

    return CFO(metric="loss", mode="min", space=dict(space), seed=seed)


def trees(spark: SparkSession, seed: int, sampler: str, pruner: str | None) -> dict[str, Any]:
    """Boosted trees on bike sharing: the whole grid, or a search with a pruner."""
    rows = table(spark, CONFIG)
    words = ["mnth", "weathersit"]
    names = [
        "season",
        "mnth_index",
        "hr",
        "holiday",
        "weekday",
        "workingday",
        "weathersit_index",
        "temp",
        "hum",
        "windspeed",
    ]
    head = GBTRegressor(featuresCol="features", labelCol="bikers", seed=0)
    stages = [
        StringIndexer(inputCols=words, outputCols=[f"{c}_index" for c in words], handleInvalid="keep"),
        VectorAssembler(inputCols=names, outputCol="features"),
        head,
    ]
    space = {
        head.maxDepth: [2, 4, 6],
        head.maxIter: [20, 40, 80],
        head.stepSize: [0.03, 0.1, 0.3],
        head.subsamplingRate: [0.6, 1.0],
    }
    if pruner:
        head.setMaxIter(80)
        del space[head.maxIter]
    task = Task(rows, Pipeline(stages=stages), space, RegressionEvaluator(labelCol="bikers", metricName="rmse"))
    options = {"sampler": sampler} if pruner is None else {"sampler": sampler, "pruner": pruner, "resource": "maxIter"}
    model = task.search(seed, numTrials=BOOSTED, **options)
    return {"values": [float(v) for v in model.trials["rmse"]], "fresh": model.summary.fresh["winner"]}


# Cells ----------------------------------------------------------------------------------------------------------------


def cells(seeds: range, names: list[str]) -> Iterator[tuple[str, str, int]]:
    for seed in seeds:
        for name in names:
            yield from ((name, arm, seed) for arm in (DEFAULT, *OURS, *RIVALS))
        yield from (("trees", arm, seed) for arm in ("grid", *PRUNERS))


def measured(spark: SparkSession, name: str, arm: str, seed: int, budget: float) -> dict[str, Any]:
    start, clock = spent(spark), time.perf_counter()
    if name == "trees":
        found = trees(spark, seed, *(("grid", None) if arm == "grid" else ("random", arm)))
    else:
        task = TASKS[name](spark)
        if arm == DEFAULT:
            return {"name": name, "arm": arm, "seed": seed, "values": [default_value(task, seed)]}
        found = ours(task, arm, seed) if arm in OURS else naive(task, spark, seed, budget, arm)
    return {
        "name": name,
        "arm": arm,
        "seed": seed,
        **found,
        "cpu": spent(spark) - start,
        "seconds": time.perf_counter() - clock,
    }


def needed(values: list[float], goal: float) -> float:
    return next((i + 1 for i, v in enumerate(values) if v <= goal), math.inf)


def goals(mine: list[dict[str, Any]]) -> dict[int, tuple[float, float, float]]:
    """Of each seed, which also divides the rows, the default's value, the best known and the goal between them."""
    out = {}
    for own in (c for c in mine if c["arm"] == DEFAULT):
        found = [v for c in mine if c["seed"] == own["seed"] and c["arm"] in OURS for v in c["values"] if v == v]
        if found:
            [default], best = own["values"], min(found)
            out[own["seed"]] = default, best, default - WAY * (default - best)
    return out


def report(known: list[dict[str, Any]], names: list[str]) -> tuple[str, dict[str, float]]:
    """A table for each task, and the figures that bounds are for."""
    lines, figures = [], {}
    for name in names:
        mine = [c for c in known if c["name"] == name]
        if not (goal := goals(mine)):
            continue
        default, best, middle_goal = (statistics.median(values) for values in zip(*goal.values(), strict=True))
        lines.append(f"\n{name}: medians of default {default:.5g}, best known {best:.5g}, goal {middle_goal:.5g}\n")
        rows = []
        for arm in (*OURS, *RIVALS):
            own = [c for c in mine if c["arm"] == arm and c["seed"] in goal]
            if not own:
                continue
            each = sorted(needed(c["values"], goal[c["seed"]][2]) for c in own)
            trials = statistics.median(each)
            most = statistics.median(len(c["values"]) for c in own)
            shown = ", ".join(f"{n:g}" if n < math.inf else f"over {most:g}" for n in each)
            if arm in OURS:
                figures[f"{name}, {arm}, trials"] = trials
            rows.append(
                [
                    arm,
                    str(len(own)),
                    f"{most:g}",
                    "" if arm in RIVALS else shown,
                    f"{statistics.median(min(c['values'], default=math.nan) for c in own):.5g}",
                    f"{statistics.median(c['fresh'] for c in own):.5g}",
                    f"{statistics.median(c['cpu'] for c in own):.0f}",
                ]
            )
        lines.append(
            markdown(
                [
                    "sampler",
                    "seeds",
                    "trials",
                    "trials to the goal, each seed",
                    "best, validation",
                    "fresh rows",
                    "CPU s",
                ],
                rows,
            )
        )
    return "\n".join([*lines, *boosted_lines(known, figures)]), figures


def boosted_lines(known: list[dict[str, Any]], figures: dict[str, float]) -> list[str]:
    """A line for the grid of boosted trees and for each pruner, on the seeds that both have."""
    grids = {c["seed"]: c for c in known if c["name"] == "trees" and c["arm"] == "grid"}
    lines = []
    for arm in PRUNERS:
        own = [c for c in known if c["name"] == "trees" and c["arm"] == arm and c["seed"] in grids]
        if not own:
            continue
        share = statistics.median(c["cpu"] / grids[c["seed"]]["cpu"] for c in own)
        worse = statistics.median(c["fresh"] / grids[c["seed"]]["fresh"] for c in own)
        figures |= {f"{arm}, share of the grid's CPU": share, f"{arm}, rmse over the grid's": worse}
        cpu = statistics.median(c["cpu"] for c in own)
        lines.append(
            f"boosted trees, {arm}, {len(own)} seeds: {cpu:.0f} CPU s, {share:.2f} of the grid's, rmse on fresh rows {worse:.4f} "
            f"of the grid's; on validation rows {statistics.median(smallest(c) / smallest(grids[c['seed']]) for c in own):.4f}"
        )
    return lines


def smallest(cell: dict[str, Any]) -> float:
    return min(v for v in cell["values"] if v == v)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--first-seed", type=int, default=0)
    p.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    p.add_argument("--cells", type=Path, metavar="FILE", help="results so far, a line each")
    p.add_argument(
        "--arms", nargs="+", metavar="ARM", help="only these samplers, optuna, flaml, grid, hyperband, halving"
    )
    given = parse(p, seeds=1, arms=["random"], tasks=["digits"])
    warnings.simplefilter("ignore")
    spark = start_session({"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2"})
    spark.sparkContext.setLogLevel("ERROR")
    known = read_lines(given.cells)
    if given.smoke:
        TRIALS.update(dict.fromkeys(OURS, 3))
    done = {(c["name"], c["arm"], c["seed"]): c for c in known}
    for cell in cells(range(given.first_seed, given.first_seed + given.seeds), given.tasks):
        if cell in done or (given.arms and cell[1] not in (DEFAULT, *given.arms)):
            continue
        budget = done.get((cell[0], "tpe", cell[2]), {}).get("cpu", 60.0)
        found = measured(spark, *cell, budget)
        done[cell] = found
        known.append(found)
        print(f"{cell}: {len(found['values'])} trials", file=sys.stderr)
        append_lines(given.cells, found)
        spark.catalog.clearCache()
    text, figures = report(known, given.tasks)
    spark.stop()
    print(text)
    write(given, {"cells": known}, figures)
    missed = [
        *(figures.get(f"{n}, {a}, trials", 0) > 30 for n in given.tasks for a in ("tpe", "gp")),
        *(figures.get(f"{p}, share of the grid's CPU", 0) > 1 / 3 for p in PRUNERS),
        *(figures.get(f"{p}, rmse over the grid's", 0) > 1.01 for p in PRUNERS),
    ]
    return exit_code(given, any(missed))


if __name__ == "__main__":
    sys.exit(main())
