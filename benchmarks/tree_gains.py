"""What does fine-tuning gain on trees that MLlib fitted, and what else would have gained it?

Boosted trees and forests on bike sharing (riders per hour from 11 columns) and digits (odd or even), fitted by Spark with its
own loss on the training rows and fine-tuned under a loss of the owner's; beside them what a sceptic would try in their place:
twice the trees, a refit on train + validation, LightGBM with like settings and its `refit` on train + validation,
scikit-learn's HistGradientBoosting imported, and tuned. The seed changes the 60/20/20 hash split. Test rows decide
nothing. MLlib's models, those imported among them, are measured by Spark's `transform`, LightGBM by its own `predict`;
every loss by scikit-learn's metrics.

Every arm of every split is written to --out as soon as it is measured and isn't run again, so that the whole can be done in
pieces; fitted models and caches are kept in --folder. Prints markdown tables.

    SPARK_CONF_DIR=conf python benchmarks/tree_gains.py --seeds 5 --out tree_gains.json --folder runs/tree_gains
"""

import dataclasses
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import torch
from common import CONFIG, earlier, folder_of, markdown, parse, parser, write
from poster_table import HELD_OUT, Rows, rows_of, spread
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, RandomForestClassifier
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import RandomForestRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F
from sklearn import metrics
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from sparkdiff import FineTuner, from_sklearn
from sparkdiff.cli.config import Config, load_config
from sparkdiff.data.loading import function, load_data, start_session
from sparkdiff.options import Options

Build = Callable[[Config, int], Pipeline]
Array = np.ndarray[Any, Any]

ORIGINAL, TUNED = "original", "fine-tuned"
TWICE, REFIT = "twice the trees", "original refitted on train + validation"
OWN, LEAVES, DELETED = "MLlib's own lossType", "fine-tuned, leaves only", "PCA deleted, fitted on train"
LIGHT, LIGHT_REFIT = "LightGBM, same loss, like settings", "LightGBM, then its `refit` on train + validation"
HIST = "HistGradientBoosting, same loss, like settings, imported"
HIST_TUNED = "HistGradientBoosting imported, fine-tuned"
HIST_100 = "HistGradientBoosting, its own settings (100 trees), imported"


def hours(head: str) -> Build:
    """The shipped pipeline of bike sharing with so many trees: its own boosted ones, or a forest."""

    def build(config: Config, trees: int) -> Pipeline:
        *stages, gbt = function("pipelines:bikeshare_gbt", config.folder)(None).getStages()
        if head == "forest":
            shared = {"featuresCol": gbt.getFeaturesCol(), "labelCol": gbt.getLabelCol(), "seed": 0}
            return Pipeline(stages=[*stages, RandomForestRegressor(numTrees=trees, **shared)])
        return Pipeline(stages=[*stages, gbt.setMaxIter(trees).setLossType(head)])

    return build


def images(head: str) -> Build:
    """The shipped pipeline of odd digits with so many trees: boosted, a forest, or boosted behind ten principal components."""

    def build(config: Config, trees: int) -> Pipeline:
        (assembler, gbt) = function("pipelines:digits_gbt", config.folder)(None).getStages()
        last: Any = gbt.setMaxIter(trees)
        if head == "forest":
            last = RandomForestClassifier(
                featuresCol=gbt.getFeaturesCol(), labelCol=gbt.getLabelCol(), seed=0, numTrees=trees
            )
        if head != "behind PCA":
            return Pipeline(stages=[assembler, last])
        assert isinstance(assembler, VectorAssembler) and isinstance(last, GBTClassifier)
        between = [
            StandardScaler(inputCol=assembler.getOutputCol(), outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=10),
        ]
        return Pipeline(stages=[assembler, *between, last.setFeaturesCol("components")])

    return build


@dataclasses.dataclass(frozen=True)
class Case:
    """An original and the loss that its owner cares about; `rivals` are pipelines of more arms, fitted on train."""

    name: str
    build: Build
    trees: int
    loss: str
    label: str = "bikers"
    lossParams: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rivals: Mapping[str, Build] = dataclasses.field(default_factory=dict)
    freeze: tuple[str, ...] = ()

    @property
    def classes(self) -> bool:
        return self.loss == "logLoss"

    @property
    def boosted(self) -> bool:
        return "forest" not in self.name


SQUARED, ODD = hours("squared"), images("boosted")
CASES = (
    Case("hours, GBT 20, squared", SQUARED, 20, "squared"),
    Case("hours, GBT 20, absolute", SQUARED, 20, "absolute", rivals={OWN: hours("absolute")}),
    Case("hours, GBT 20, quantile 0.9", SQUARED, 20, "quantile", lossParams={"tau": 0.9}),
    Case("hours, GBT 200, squared", SQUARED, 200, "squared"),
    Case("hours, forest 50, squared", hours("forest"), 50, "squared"),
    Case("odd digits, GBT 20, log-loss", ODD, 20, "logLoss", "odd"),
    Case("odd digits, forest 50, log-loss", images("forest"), 50, "logLoss", "odd"),
    Case(
        "odd digits, PCA(10) and GBT 20, log-loss",
        images("behind PCA"),
        20,
        "logLoss",
        "odd",
        rivals={DELETED: ODD},
        freeze=("scaled", "components"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a case's rows, and the folder of its models: they are fitted once and shared by cases."""

    case: Case
    seed: int
    config: Config
    rows: Rows
    folder: Path
    epochs: int = Options().maxEpochs

    def fitted(self, build: Build, trees: int, *, learning: bool = False) -> PipelineModel:
        pipeline = build(self.config, trees)
        head = pipeline.getStages()[-1]
        facts = [type(s).__name__ for s in pipeline.getStages()[1:-1]]
        if head.hasParam("lossType") and head.getOrDefault("lossType") == "absolute":
            facts.append("absolute")
        name = "-".join([type(head).__name__, *facts, str(trees), "learning" if learning else "train", str(self.seed)])
        path = self.folder / "models" / name
        if not path.exists():
            model = pipeline.fit(self.rows.learning if learning else self.rows.train)
            model.write().overwrite().save(f"file://{path.with_name(f'.{name}')}")
            path.with_name(f".{name}").rename(path)
        return PipelineModel.load(f"file://{path}")

    def original(self) -> PipelineModel:
        return self.fitted(self.case.build, self.case.trees)

    def arrays(self, rows: DataFrame) -> tuple[Array, Array]:
        """The vectors that the original's trees read, (n, d), and the labels, (n,)."""
        model = self.original()
        before, column = PipelineModel(model.stages[:-1]), model.stages[-1].getFeaturesCol()
        found = before.transform(rows).select(vector_to_array(column).alias("x"), F.col(self.case.label).alias("y"))
        frame = found.toPandas()
        return np.stack(frame["x"].to_list()), frame["y"].to_numpy(dtype=float)

    def categories(self) -> list[int]:
        """The features that MLlib took for categories: those of StringIndexer, by the vector's attributes."""
        model = self.original()
        field = PipelineModel(model.stages[:-1]).transform(self.rows.test).schema[model.stages[-1].getFeaturesCol()]
        return [a["idx"] for a in field.metadata.get("ml_attr", {}).get("attrs", {}).get("nominal", [])]

    def measured(self, model: PipelineModel) -> dict[str, float]:
        """The losses of a plain model on the test rows."""
        outputs = model.transform(self.rows.test)
        shown = vector_to_array("probability")[1] if self.case.classes else F.col("prediction")
        found = outputs.select(shown.alias("p"), F.col(self.case.label).alias("y")).toPandas()
        return losses(self.case, found["y"].to_numpy(dtype=float), found["p"].to_numpy(dtype=float))


def losses(case: Case, y: Array, p: Array) -> dict[str, float]:
    """The case's loss and what else one wants to know of predictions (n,), of classes the probability of 1."""
    if case.loss == "squared":
        return {"loss": metrics.mean_squared_error(y, p)}
    if case.loss == "absolute":
        return {"loss": metrics.mean_absolute_error(y, p)}
    if case.loss == "quantile":
        tau = case.lossParams["tau"]
        return {"loss": metrics.mean_pinball_loss(y, p, alpha=tau), "coverage": float(np.mean(y <= p))}
    # Clipped as in Spark's evaluator: a forest's probabilities can be 0.
    return {"loss": metrics.log_loss(y, np.clip(p, 1e-15, 1 - 1e-15)), "accuracy": float(np.mean((p > 0.5) == y))}


def light(split: Split, *, refit: bool) -> dict[str, float]:
    """LightGBM on the rows that the trees read, with MLlib's depth, step size and smallest leaf; a forest for a forest."""
    case = split.case
    objective = {"squared": "l2", "absolute": "l1", "quantile": "quantile", "logLoss": "binary"}[case.loss]
    options: dict[str, Any] = {
        "objective": objective,
        "max_depth": 5,
        "num_leaves": 32,
        "learning_rate": 0.1,
        "min_data_in_leaf": 1,
        "seed": split.seed,
        "deterministic": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    if case.loss == "quantile":
        options["alpha"] = case.lossParams["tau"]
    if not case.boosted:  # the columns that MLlib's forests try: a third, for classes the square root
        x, _ = split.arrays(split.rows.test)
        share = x.shape[1] ** -0.5 if case.classes else 1 / 3
        options |= {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.632, "feature_fraction_bynode": share}
    x, y = split.arrays(split.rows.train)
    data = lightgbm.Dataset(x, y, categorical_feature=split.categories())
    booster = lightgbm.train(options, data, num_boost_round=case.trees)
    if refit:
        booster = booster.refit(*split.arrays(split.rows.learning))
    x, y = split.arrays(split.rows.test)
    return losses(case, y, booster.predict(x))


def hist(split: Split, *, like: bool) -> Any:
    """scikit-learn's HistGradientBoosting fitted on train; `like` MLlib's depth, number of trees and smallest leaf."""
    case = split.case
    options: dict[str, Any] = {"random_state": split.seed, "early_stopping": False}
    options["categorical_features"] = split.categories() or None
    if like:
        options |= {"max_iter": case.trees, "max_depth": 5, "max_leaf_nodes": None, "min_samples_leaf": 1}
    if case.classes:
        model: Any = HistGradientBoostingClassifier(**options)
    else:
        loss = {"squared": "squared_error", "absolute": "absolute_error"}.get(case.loss, case.loss)
        model = HistGradientBoostingRegressor(loss=loss, quantile=case.lossParams.get("tau"), **options)
    return model.fit(*split.arrays(split.rows.train))


def brought_home(split: Split, *, like: bool) -> PipelineModel:
    """The same behind the original's first stages, as plain MLlib stages that predict the same."""
    *before, head = split.original().stages
    model = hist(split, like=like)
    home = PipelineModel([*before, from_sklearn(model, featuresCol=head.getFeaturesCol(), missing="absent")])
    x, y = split.arrays(split.rows.test)
    there = losses(split.case, y, model.predict_proba(x)[:, 1] if split.case.classes else model.predict(x))
    assert all(abs(v - there[k]) <= 1e-6 * abs(there[k]) for k, v in split.measured(home).items()), there
    return home


def tune(split: Split, model: PipelineModel, **options: Any) -> dict[str, Any]:
    """The test losses of a fine-tuned model as it was saved, and how the decision came about."""
    case, start = split.case, time.perf_counter()
    tuner = FineTuner(
        pipeline=model,
        labelCol=case.label,
        loss=case.loss,
        lossParams=dict(case.lossParams),
        seed=split.seed,
        validationIndicatorCol=HELD_OUT,
        maxEpochs=split.epochs,
        cacheDir=str(split.folder / "cache"),
        **options,
    )
    tuned = tuner.fit(split.rows.learning)
    seconds = time.perf_counter() - start
    saved = split.folder / "tuned"
    tuned.pipelineModel.write().overwrite().save(f"file://{saved}")
    s = tuned.summary
    best = s.history.loc[s.history.groupby("candidate")["validationMetric"].idxmin()]
    return {
        **split.measured(PipelineModel.load(f"file://{saved}")),
        "decision": s.decision,
        "gain": s.gain,
        "z": s.z,
        "p": s.p,
        "seconds": seconds,
        "timings": s.timings,
        "validation": s.metrics["validation"],
        "compatibility": s.compatibility,
        "parity": s.parity,
        "warnings": s.warnings,
        "candidates": json.loads(best.to_json(orient="records")),
    }


def arms(case: Case) -> dict[str, Callable[[Split], dict[str, Any]]]:
    """What is measured of a case, by name."""
    out: dict[str, Callable[[Split], dict[str, Any]]] = {
        ORIGINAL: lambda s: s.measured(s.original()),
        TUNED: lambda s: tune(s, s.original()),
    }
    if case.freeze:
        out[LEAVES] = lambda s: tune(s, s.original(), freeze=case.freeze)
    out[TWICE] = lambda s: s.measured(s.fitted(case.build, 2 * case.trees))
    out[REFIT] = lambda s: s.measured(s.fitted(case.build, case.trees, learning=True))
    for name, build in case.rivals.items():
        out[name] = lambda s, build=build: s.measured(s.fitted(build, case.trees))  # type: ignore[misc]
    out[LIGHT] = lambda s: light(s, refit=False)
    out[LIGHT_REFIT] = lambda s: light(s, refit=True)
    out[HIST] = lambda s: s.measured(brought_home(s, like=True))
    # Its thresholds can be values of the data, and a PCA in torch differs from Spark's by a last bit: then rows go another way
    # and the run stops. A PCA that stays in Spark is the same for both.
    out[HIST_TUNED] = lambda s: tune(s, brought_home(s, like=True), reference=case.freeze)
    out[HIST_100] = lambda s: s.measured(brought_home(s, like=False))
    return out


def images_of(spark: SparkSession, config: Config, seed: int) -> Rows:
    tenth = f"pmod(xxhash64(id, {seed}), 10)"

    def load(where: str) -> DataFrame:
        rows = load_data(spark, {**config.data["train"], "where": where}, config.folder, "train")
        return rows.withColumn("odd", F.expr("label % 2"))

    learning = load(f"{tenth} < 8").withColumn(HELD_OUT, F.expr(f"{tenth} >= 6"))
    return Rows(load(f"{tenth} < 6"), learning, load(f"{tenth} >= 8"))


def rows_for(spark: SparkSession, configs: Mapping[str, Config], case: Case, seed: int) -> tuple[Config, Rows]:
    name, rows = ("bikeshare", rows_of) if case.label == "bikers" else ("digits", images_of)
    return configs[name], rows(spark, configs[name], seed)


def table(case: Case, results: list[dict[str, Any]]) -> str:
    """The mean test loss of each arm, its change against the original of the same split, and the decisions."""
    found = {(r["arm"], r["seed"]): r for r in results if r["case"] == case.name}
    extra = {"quantile": "coverage", "logLoss": "accuracy"}.get(case.loss)
    lines = []
    for arm in arms(case):
        runs = [r for (a, _), r in found.items() if a == arm]
        if not runs:
            continue
        values = [r["loss"] for r in runs]
        changes = [r["loss"] / found[ORIGINAL, r["seed"]]["loss"] - 1 for r in runs if (ORIGINAL, r["seed"]) in found]
        better = sum(c < 0 for c in changes)
        change = f"{statistics.fmean(changes):+.1%} ({min(changes):+.1%} to {max(changes):+.1%})" if changes else "–"
        cells = [arm, spread(values, 1 if case.loss == "squared" else 3), change, f"{better} of {len(changes)}"]
        cells += [f"{statistics.fmean(r[extra] for r in runs):.1%}"] if extra else []
        cells.append(f"{sum(r['decision'] == 'tuned' for r in runs)} of {len(runs)}" if "decision" in runs[0] else "–")
        lines.append(cells)
    head = ["", f"{case.loss}, mean ± sd", "against the original", "better", *([extra] if extra else []), "tuned"]
    return f"**{case.name}**\n\n{markdown(head, lines)}"


def changes(results: list[dict[str, Any]]) -> dict[str, float]:
    """Mean change of each case's test loss by fine-tuning."""
    found = {(r["case"], r["arm"], r["seed"]): r["loss"] for r in results}
    out: dict[str, list[float]] = {}
    for (case, arm, seed), loss in found.items():
        if arm == TUNED and (case, ORIGINAL, seed) in found:
            out.setdefault(f"{case}, change of the loss", []).append(loss / found[case, ORIGINAL, seed] - 1)
    return {name: statistics.fmean(values) for name, values in out.items()}


SHORT = {
    TUNED: "fine-tuned",
    LEAVES: "leaves only",
    TWICE: "twice the trees",
    REFIT: "refitted on train + validation",
    OWN: "own lossType",
    DELETED: "PCA deleted",
    LIGHT: "LightGBM",
    LIGHT_REFIT: "then its `refit`",
    HIST: "HistGB imported",
    HIST_TUNED: "then fine-tuned",
    HIST_100: "HistGB, 100 trees",
}


def overview(results: list[dict[str, Any]]) -> str:
    """All cases side by side: the original's mean loss, and each arm's mean change against it on the same splits."""
    found = {(r["case"], r["arm"], r["seed"]): r for r in results}
    cases = [c for c in CASES if any(r["case"] == c.name for r in results)]

    def cell(case: Case, arm: str) -> str:
        runs = [r for (c, a, _), r in found.items() if (c, a) == (case.name, arm)]
        both = [(r, found[case.name, ORIGINAL, r["seed"]]) for r in runs if (case.name, ORIGINAL, r["seed"]) in found]
        if not both:
            return "–"
        text = f"{statistics.fmean(r['loss'] / o['loss'] - 1 for r, o in both):+.1%}"
        return f"**{text}**" if arm == TUNED else text

    def kept(case: Case) -> str:
        runs = [r for (c, a, _), r in found.items() if (c, a) == (case.name, TUNED)]
        return f"{sum(r['decision'] == 'tuned' for r in runs)} of {len(runs)}" if runs else "–"

    lines = [
        [
            "original",
            *(
                spread(
                    [r["loss"] for (n, a, _), r in found.items() if (n, a) == (c.name, ORIGINAL)],
                    0 if c.loss == "squared" else 3,
                )
                for c in cases
            ),
        ]
    ]
    lines += [[name, *cells] for arm, name in SHORT.items() if set(cells := [cell(c, arm) for c in cases]) != {"–"}]
    lines.insert(2, ["tuned", *map(kept, cases)])
    return markdown(["", *(c.name for c in cases)], lines)


def candidates(results: list[dict[str, Any]]) -> str:
    """The best validation loss of every candidate against the original's: what recipes may be chosen by."""
    lines = []
    for r in results:
        for c in r.get("candidates", ()):
            before = r["validation"]["before"]
            change = f"{c['validationMetric'] / before - 1:+.2%}"
            lines.append([r["case"], r["arm"], str(r["seed"]), str(c["candidate"]), str(c["epoch"]), change])
    return markdown(["case", "arm", "seed", "candidate", "best epoch", "validation"], lines)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, default=5, help="splits to average over")
    p.add_argument("--cases", default="", help="only cases that match this regular expression")
    p.add_argument("--arms", default="", help="only arms that match this regular expression")
    p.add_argument("--candidates", action="store_true", help="print the validation loss of every candidate, too")
    p.add_argument("--epochs", type=int, default=Options().maxEpochs)
    p.add_argument("--folder", type=Path, help="where fitted models and caches are kept")
    given = parse(p, seeds=1, cases="PCA", epochs=1)
    folder = folder_of(given)
    results: list[dict[str, Any]] = earlier(given) or []
    done = {(r["case"], r["seed"], r["arm"]) for r in results}
    todo = [
        (seed, case, name, arm)
        for seed in range(given.seeds)
        for case in (dataclasses.replace(c, trees=2) if given.smoke else c for c in CASES)
        for name, arm in arms(case).items()
        if (case.name, seed, name) not in done and re.search(given.cases, case.name) and re.search(given.arms, name)
    ]
    if todo:
        configs = {name: load_config(CONFIG.with_name(f"{name}.yaml"), []) for name in ("bikeshare", "digits")}
        spark = start_session(configs["bikeshare"].spark)
        spark.sparkContext.setLogLevel("ERROR")
        # Without it the lineage of 400 boosted trees overflows the JVM's stack.
        spark.sparkContext.setCheckpointDir(f"file://{folder}/checkpoints")
        torch.set_num_threads(1)
    for seed, case, name, arm in todo:
        split = Split(case, seed, *rows_for(spark, configs, case, seed), folder, given.epochs)
        found = {"case": case.name, "seed": seed, "arm": name, **arm(split)}
        results.append(found)
        write(given, results, changes(results))
        print(f"seed {seed}, {case.name}, {name}: {found['loss']:.4g}", file=sys.stderr, flush=True)
    print(f"Mean change of the test loss against the original of the same split\n\n{overview(results)}\n")
    print("\n\n".join(table(case, results) for case in CASES if any(r["case"] == case.name for r in results)))
    if given.candidates:
        print(f"\n{candidates(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
