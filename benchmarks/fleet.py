"""A fleet of small pipelines and their runs, from which triage learns and by which benchmarks/triage.py judges it.

Sets: bike sharing and digits; wine, breast cancer and diabetes of scikit-learn's wheel; doctor visits, an election and affairs of
statsmodels'; generated ones: a linear one, noise, an interaction, Friedman's, two moons, drift and texts. A set has up to 1,600
rows with the first seed, and up to 40,000 with the second. Per set and seed the rows are divided into two halves, under drift by
time. Of each kind of pipeline (linear, PCA, trees, perceptron, naive Bayes, another loss than the one it was fitted on, ...) one
is fitted on the training rows of a half. Runs: "first" tunes it on the same half, "again" tunes what "first" returned on the
other half, and where that is another model, "new" tunes the fitted one there, too. "planted" is a pipeline whose Params were
made bad on purpose (`PLANTED`).

Each run is kept in the store of runs in --folder, with its cheap facts as a tag, as triage keeps them; beside it a line of
runs.jsonl says what the store does not: processor seconds at the end of each phase and of each epoch. A fleet that is stopped
goes on where it was; with --share, several processes make it together. 300 runs take about half an hour of one core.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/fleet.py --folder runs/fleet
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import append_lines, exit_code, folder_of, parse, parser, read_lines, write
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    GBTClassifier,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    NaiveBayes,
    RandomForestClassifier,
)
from pyspark.ml.feature import (
    IDF,
    PCA,
    HashingTF,
    MinMaxScaler,
    OneHotEncoder,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
)
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff.data.loading import start_session
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.history.pipeline_facts import FACTS, Samples, finite, measure_facts
from sparkdiff.machine import resources
from sparkdiff.options import Options

ROOT = Path(__file__).resolve().parents[1]
ROWS, FEW = (1600, 40_000), 400
"""Rows of a set at most, by seed; with fewer than FEW in a half, two fifths of them are held out, else a quarter."""
OPTIONS = {"stream": "arrow", "verbosity": 0, "labelCol": "label"}
CONF = {
    "spark.master": "local[1]",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "1",
    "spark.log.level": "ERROR",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
}
"""Of tables this small, Spark spends most of its time on compiling queries."""
KINDS = {
    "counts": ("poisson", "weak", "pca", "trees", "squared", "lasso", "ridge"),
    "real": ("linear", "weak", "pca", "trees", "absolute", "lasso", "ridge"),
    "classes": ("linear", "weak", "pca", "trees", "perceptron", "bayes", "lasso", "ridge"),
}
PLANTED = ("ridge",)
"""Kinds with a Param that was made bad on purpose: regParam 1."""


@dataclasses.dataclass(frozen=True)
class Table:
    """
    Attributes:
        rows: with the column `label`.
        kind: "counts", "real" or "classes".
        words: columns with categories; `text`: whether the column `text` is the only one.
        ordered: whether the rows are in the order of time.
    """

    rows: pd.DataFrame
    kind: str
    words: tuple[str, ...] = ()
    text: bool = False
    ordered: bool = False

    @property
    def numbers(self) -> list[str]:
        return [c for c in self.rows.columns if c not in (*self.words, "label", "text")]

    @property
    def classes(self) -> int:
        return int(self.rows["label"].nunique())


# Sets -----------------------------------------------------------------------------------------------------------------


def bikeshare(rows: int) -> Table:
    words = ("season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit")
    table = pd.read_csv(ROOT / "data" / "bikeshare.csv")
    table = table.sample(min(rows, len(table)), random_state=0)
    table = table[[*words, "temp", "atemp", "hum", "windspeed", "bikers"]].rename(columns={"bikers": "label"})
    return Table(table.astype(dict.fromkeys(words, str)), "counts", words)


def digits(rows: int) -> Table:
    table = pd.read_csv(ROOT / "data" / "digits.csv")
    table = table.sample(min(rows, len(table)), random_state=0)
    return Table(table.drop(columns="id").astype(float), "classes")


def of_sklearn(name: str, kind: str) -> Callable[[int], Table]:
    def found(_rows: int) -> Table:
        from sklearn import datasets

        table = getattr(datasets, f"load_{name}")(as_frame=True).frame.rename(columns={"target": "label"})
        return Table(table.rename(columns=lambda c: c.replace(" ", "_").replace("/", "_")).astype(float), kind)

    return found


def of_statsmodels(name: str, label: str, kind: str) -> Callable[[int], Table]:
    def found(rows: int) -> Table:
        import importlib

        table = (
            importlib.import_module(f"statsmodels.datasets.{name}").load_pandas().data.rename(columns={label: "label"})
        )
        table = table.sample(min(rows, len(table)), random_state=0).astype(float)
        return Table(table.loc[:, table.nunique() > 1], kind)

    return found


def affairs(rows: int) -> Table:
    found = of_statsmodels("fair", "affairs", "classes")(rows)
    return Table(found.rows.assign(label=(found.rows["label"] > 0).astype(float)), "classes")


def generated(name: str) -> Callable[[int], Table]:
    """Numbers x0 to x5 and a category; what the label is of them, the name says."""

    def found(rows: int) -> Table:
        random = np.random.default_rng([*name.encode()])
        x = random.normal(size=(rows, 6))
        words = [f"w{v}" for v in random.integers(0, 5, rows)]
        table = pd.DataFrame(x, columns=[f"x{i}" for i in range(6)]).assign(word=words)
        effect, t = random.normal(size=5)[[int(w[1]) for w in words]], np.arange(rows) / rows
        label = {
            "plain": x @ [1.0, -0.5, 0.3, 0.2, 0.0, 0.0] + effect + 0.7 * random.normal(size=rows),
            "noise": (random.random(rows) < 0.4).astype(float),
            "interaction": x[:, 0] + x[:, 1] * effect + 0.5 * random.normal(size=rows),
            "friedman": np.sin(np.pi * x[:, 0] * x[:, 1])
            + 2 * (x[:, 2] - 0.5) ** 2
            + x[:, 3]
            + random.normal(size=rows),
            "moons": (np.sin(2 * x[:, 0]) + 0.4 * random.normal(size=rows) > x[:, 1]).astype(float),
            "drift": np.cos(2 * t) * x[:, 0]
            + np.sin(2 * t) * x[:, 1]
            + effect * (1 - t)
            + 0.5 * random.normal(size=rows),
        }[name]
        kind = "classes" if name in ("noise", "moons") else "real"
        return Table(table.assign(label=label), kind, ("word",), ordered=name == "drift")

    return found


def texts(rows: int) -> Table:
    """Texts of 300 words, of which each class prefers some."""
    random = np.random.default_rng(7)
    label = random.integers(0, 3, rows)
    shares = random.dirichlet(np.full(300, 0.3), 3) * 0.25 + random.dirichlet(np.full(300, 0.3)) * 0.75
    texts = [" ".join(f"v{w}" for w in random.choice(300, 12, p=shares[y])) for y in label]
    return Table(pd.DataFrame({"text": texts, "label": label.astype(float)}), "classes", text=True)


SETS: dict[str, Callable[[int], Table]] = {
    "bikeshare": bikeshare,
    "digits": digits,
    "wine": of_sklearn("wine", "classes"),
    "cancer": of_sklearn("breast_cancer", "classes"),
    "diabetes": of_sklearn("diabetes", "real"),
    "visits": of_statsmodels("randhie", "mdvis", "counts"),
    "election": of_statsmodels("anes96", "vote", "classes"),
    "affairs": affairs,
    "texts": texts,
    **{name: generated(name) for name in ("plain", "noise", "interaction", "friedman", "moons", "drift")},
}


# Pipelines ------------------------------------------------------------------------------------------------------------


def features(table: Table, *, hot: bool = True) -> list[Any]:
    """Stages that end in the column `features`."""
    if table.text:
        return [
            Tokenizer(inputCol="text", outputCol="tokens"),
            HashingTF(inputCol="tokens", outputCol="counts", numFeatures=256),
            IDF(inputCol="counts", outputCol="features"),
        ]
    index = [f"{w}_index" for w in table.words]
    out: list[Any] = []
    if index:
        out.append(StringIndexer(inputCols=[*table.words], outputCols=index, handleInvalid="keep"))
    if index and hot:
        out.append(OneHotEncoder(inputCols=index, outputCols=[f"{w}_hot" for w in table.words]))
    assembled = [*(f"{w}_hot" if hot else f"{w}_index" for w in table.words), *table.numbers]
    return [*out, VectorAssembler(inputCols=assembled, outputCol="features")]


def head(table: Table, kind: str, column: str, width: int) -> Any:
    """The predictor of a kind of pipeline; `width` is the number of its features."""
    # Each kind has its own strength: two pipelines of one content would be one in the store.
    strength = {"weak": 1e-5, "absolute": 0.002, "lasso": 0.05, "ridge": 1.0}.get(kind, 0.003)
    mix = 0.5 if kind == "lasso" else 0.0
    common = {"featuresCol": column, "labelCol": "label"}
    if kind == "trees":
        if table.kind != "classes":
            return GBTRegressor(**common, maxIter=6, maxDepth=3, seed=0)
        if table.classes > 2:
            return RandomForestClassifier(**common, numTrees=6, maxDepth=4, seed=0)
        return GBTClassifier(**common, maxIter=6, maxDepth=3, seed=0)
    if kind == "perceptron":
        layers = [width, 6, table.classes]
        return MultilayerPerceptronClassifier(**common, layers=layers, maxIter=80, seed=0)
    if kind == "bayes":
        return NaiveBayes(**common)
    if table.kind == "classes":
        return LogisticRegression(**common, regParam=strength, elasticNetParam=mix)
    if table.kind == "counts" and kind not in ("squared", "lasso"):
        return GeneralizedLinearRegression(**common, family="poisson", link="log", regParam=strength, maxIter=15)
    return LinearRegression(**common, regParam=strength, elasticNetParam=mix)


class Fits:
    """Fits pipelines, and what comes before their predictors once for all kinds that share it. Holds the tables and the rows that
    facts are found on, each once for all cells, as triage does.
    """

    def __init__(self) -> None:
        self.known = dict[tuple[Any, ...], tuple[Any, DataFrame]]()
        self.tables = dict[tuple[Any, ...], tuple[DataFrame, DataFrame]]()
        self.samples = Samples()

    def halves(self, spark: SparkSession, folder: Path, cell: "Cell", table: Table) -> tuple[DataFrame, DataFrame]:
        key = (folder, cell.set, cell.seed)
        if key not in self.tables:
            self.tables[key] = halves(spark, folder, cell, table)
        return self.tables[key]

    def features(self, cell: "Cell", table: Table, train: DataFrame) -> tuple[Any, DataFrame]:
        """The fitted stages before the predictor and a PCA, and the training rows with the columns that they make."""
        hot, scaler = cell.kind != "trees", MinMaxScaler if cell.kind == "bayes" else StandardScaler
        key = (cell.set, cell.seed, hot, scaler)
        if key not in self.known:
            stages = features(table, hot=hot)
            if hot and not table.text:
                stages.append(scaler(inputCol="features", outputCol="scaled"))
            model = Pipeline(stages=stages).fit(train)
            self.known[key] = model, model.transform(train).cache()
        return self.known[key]

    def fitted(self, cell: "Cell", table: Table, train: DataFrame) -> Any:
        """The pipeline of this cell, fitted on these rows."""
        model, rows = self.features(cell, table, train)
        column = "scaled" if "scaled" in rows.columns else "features"
        stages = [*model.stages]
        if cell.kind == "pca":
            k = 30 if table.text else max(2, min(10, len(table.numbers) // 2))
            stages.append(PCA(inputCol=column, outputCol="components", k=k).fit(rows))
            rows, column = stages[-1].transform(rows), "components"
        width = rows.first()[column].size if cell.kind == "perceptron" else 0
        return PipelineModel(stages=[*stages, head(table, cell.kind, column, width).fit(rows)])


# Runs -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cell:
    """A pipeline of the fleet."""

    set: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.set} {self.kind} {self.seed}"


class Trace(sparkdiff.Events):
    """Processor seconds since a run began: at the end of each phase, and of each epoch."""

    def __init__(self) -> None:
        self.began, self.phases, self.epochs = resources.cpu_seconds(), dict[str, float](), dict[int, float]()
        self._own = 0.0

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        if seconds is not None:
            self.phases[name] = resources.cpu_seconds() - self.began

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        if not row["epoch"]:
            self._own, self.epochs[0] = time.process_time(), 0.0
        self.epochs[row["epoch"]] = time.process_time() - self._own  # the JVM is idle meanwhile


def cells() -> list[Cell]:
    """All cells, those of one seed before those of the next; the sets and kinds mixed, so that a part is like the whole."""
    known = {name: make(ROWS[0]).kind for name, make in SETS.items()}
    kinds = [(n, k) for n, kind in known.items() for k in KINDS[kind] if (n, k) != ("texts", "perceptron")]
    order = np.random.default_rng(0).permutation(len(kinds))
    return [Cell(*kinds[i], seed) for seed in range(len(ROWS)) for i in order]


def halves(spark: SparkSession, folder: Path, cell: Cell, table: Table) -> tuple[DataFrame, DataFrame]:
    """The rows of a set in two halves, in which `held` tells the rows held out."""
    path = folder / "rows" / f"{cell.set}-{cell.seed}.parquet"
    if not path.exists():
        random, count = np.random.default_rng(cell.seed), len(table.rows)
        half = np.arange(count) * 2 // count
        half = half if table.ordered else random.permutation(half)
        share = 0.4 if count < 2 * FEW else 0.25
        rank = np.empty(count)
        for h in (0, 1):
            rank[half == h] = random.permutation(int((half == h).sum())) / (half == h).sum()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        table.rows.assign(half=half, held=rank < share).reset_index(drop=True).to_parquet(beside, index=False)
        beside.rename(path)
    rows = spark.read.parquet(f"file://{path}")
    return rows.where("half = 0").drop("half"), rows.where("half = 1").drop("half")


def run(
    cell: Cell, step: str, model: Any, rows: DataFrame, folder: Path, samples: Samples
) -> tuple[Any, dict[str, Any]]:
    """Tune a model: what it became, and what the store does not say of it."""
    loss = {"loss": "absolute"} if cell.kind == "absolute" else {}
    given = {**OPTIONS, **loss, "validationIndicatorCol": "held"}
    before = resources.cpu_seconds()
    facts = finite(measure_facts(prepare(model, Options.of(given), rows), rows, samples)[0])
    spent = resources.cpu_seconds() - before
    tags = {"cell": cell.name, "set": cell.set, "kind": cell.kind, "step": step, FACTS: json.dumps(facts)}
    trace = Trace()
    tuner = sparkdiff.FineTuner(
        model, **given, callbacks=[trace], storeDir=str(folder / "store"), tags=tags, cacheDir=str(folder / "cache")
    )
    found = tuner.fit(rows)
    whole = resources.cpu_seconds() - trace.began
    summary = found.summary
    line = dataclasses.asdict(cell) | {
        "cell": cell.name,
        "step": step,
        "planted": cell.kind in PLANTED,
        "facts": facts,
        "factsSeconds": spent,
        "coreSeconds": whole,
        "phases": trace.phases,
        "epochs": trace.epochs,
        "tuned": summary.decision == "tuned",
        "gain": summary.gain,
        "z": summary.z,
        "p": summary.p,
    }
    return found.pipelineModel, line


def runs_of(cell: Cell, fits: Fits, spark: SparkSession, folder: Path, steps: int = 3) -> list[dict[str, Any]]:
    """The runs of a cell, so many at most; one that is refused is told by its reason."""
    table, lines = SETS[cell.set](ROWS[cell.seed % len(ROWS)]), list[dict[str, Any]]()
    one, other = fits.halves(spark, folder, cell, table)
    try:
        model = fits.fitted(cell, table, one.where("not held"))
        tuned, line = run(cell, "first", model, one, folder, fits.samples)
        lines.append(line)
        if steps == 1:
            return lines
        lines.append(run(cell, "again", tuned, other, folder, fits.samples)[1])
        if line["tuned"]:  # else it is the same model on the same rows
            lines.append(run(cell, "new", model, other, folder, fits.samples)[1])
    except Exception as e:  # a pipeline that Spark cannot fit, or a refusal: told, and no run
        lines.append({"cell": cell.name, "refused": f"{type(e).__name__}: {e}"[:500]})
    return lines


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="of the store and of runs.jsonl; a temporary one if not given")
    options.add_argument("--most", type=int, default=10**6, help="cells to run at most")
    options.add_argument(
        "--share", default="0/1", metavar="I/N", help="run the I-th of N shares of the cells, from 0 on"
    )
    given = parse(options, most=2)
    folder = folder_of(given)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.jsonl"
    done = {line["cell"] for line in read_lines(log)}
    spark = start_session(CONF, size=0)
    own, shares = map(int, given.share.split("/"))
    waiting = [c for c in cells()[own::shares] if c.name not in done][: given.most]
    fits = Fits()
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        if waiting:  # once for nothing: what Java compiles first would be counted as the first run's
            runs_of(dataclasses.replace(waiting[0], seed=9), fits, spark, folder / f"warm-{own}", steps=1)
        for cell in waiting:
            lines = runs_of(cell, fits, spark, folder)
            append_lines(log, *lines)
            for line in lines:
                told = (
                    line.get("refused")
                    or f"gain {line['gain']:+.2%}, tuned {line['tuned']}, {line['coreSeconds']:.1f} s"
                )
                print(f"{cell.name} {line.get('step', '')}: {told}", flush=True)
    found = read_lines(log)
    whole = [line for line in found if "refused" not in line]
    kept = sum(not line["tuned"] for line in whole) / max(1, len(whole))
    print(f"{len(whole)} runs, {kept:.0%} without gain, {sum(line['planted'] for line in whole)} planted")
    write(given, found, {"runs": float(len(whole)), "without gain": kept})
    return exit_code(given, [])


if __name__ == "__main__":
    sys.exit(main())
