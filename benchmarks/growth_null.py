"""How often does growth replace a pipeline that nothing beats?

Labels are drawn from the original's own predictive distribution: of a LogisticRegression from its probability, of a Poisson
regression from its mean, of a LinearRegression its prediction plus a resampled, centred residual. So whatever joins has gained by
chance. The original is fitted once, on other labels. Each draw has its own labels for the same 1,500 rows, its own split and a
fixed number of epochs; its round tries one of the six kinds of parts, in turn. One half of the rows explores, the other one
proves (--folds 5, as by default, takes three times as long). Counted is how often `Grower` doesn't keep the original.
Fails where more than 9 of 200 are. Each draw is kept in --cells as soon as it is decided, so that a run that is stopped goes on
there. About two hours of one core.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/growth_null.py --cells growth_null.jsonl
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import append_lines, exit_code, markdown, parse, parser, read_lines, write
from growth import linear, spent
from pyspark.ml import PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.functions import vector_to_array
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import SparkSession

import sparkdiff
from sparkdiff.data.loading import start_session
from sparkdiff.growth.growth_options import KINDS

ROWS, MOST = 1500, 9 / 200  # of the level of 2.5%, and nearly two standard errors of 200 draws
FAMILIES = ("logistic", "poisson", "squared")
BOOSTED = REGRESSION, CLASSES = "boosted", "boosted classes"
"""Pipelines that end in boosted trees, which improve_null.py has, too."""
WORDS, NUMBERS, ENTITY = ("few", "some", "many"), ("x", "y", "z"), "user"


def rows_of(rows: int) -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    """The columns without a label, and a number that labels of the fit follow."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"id": np.arange(rows)})
    for name in NUMBERS:
        table[name] = random.normal(size=rows)
    effect = 0.8 * table["x"].to_numpy() - 0.4 * table["y"].to_numpy()
    for name, size in zip((*WORDS, ENTITY), (4, 8, 30, 60), strict=True):
        values = random.integers(0, size, rows)
        table[name] = [f"{name}{v}" for v in values]
        effect = effect + (random.normal(size=size) * 0.3)[values] * (name != ENTITY)
    return table, effect


def last(family: str) -> Any:
    """The last stage, unfitted."""
    if family == "logistic":
        return LogisticRegression(labelCol="label", regParam=0.01)
    if family == "poisson":
        return GeneralizedLinearRegression(labelCol="label", family="poisson", link="log", regParam=0.01)
    if family in BOOSTED:
        return (GBTClassifier if family == CLASSES else GBTRegressor)(labelCol="label", maxIter=10, maxDepth=3, seed=0)
    return LinearRegression(labelCol="label", regParam=0.01)


class Original:
    """A fitted pipeline, and the labels that follow it."""

    def __init__(self, spark: SparkSession, family: str, rows: int):
        self.family = family
        self.table, effect = rows_of(rows)
        random = np.random.default_rng(1)
        label = {
            "logistic": lambda: random.random(rows) < 1 / (1 + np.exp(-effect)),
            "poisson": lambda: random.poisson(np.exp(0.5 + 0.5 * effect)),
            "squared": lambda: effect + random.standard_t(5, rows),
        }[{REGRESSION: "squared", CLASSES: "logistic"}.get(family, family)]().astype(float)
        first = spark.createDataFrame(self.table.assign(label=label)).coalesce(1)
        self.model: PipelineModel = linear(WORDS, NUMBERS, last(family)).fit(first)
        out = self.model.transform(first).orderBy("id")
        if family in ("logistic", CLASSES):
            found = out.select(vector_to_array("probability")[1].alias("mean")).toPandas()["mean"]
        else:
            found = out.select("prediction").toPandas()["prediction"]
        self.mean = found.to_numpy()
        self.residual = label - self.mean
        self.residual -= self.residual.mean()

    def labels(self, random: np.random.Generator) -> np.ndarray[Any, Any]:
        """One draw from the predictive distribution, a label per row."""
        if self.family in ("logistic", CLASSES):
            return (random.random(len(self.mean)) < self.mean).astype(float)
        if self.family == "poisson":
            return random.poisson(self.mean).astype(float)
        return self.mean + random.choice(self.residual, len(self.mean))


def draw(spark: SparkSession, original: Original, number: int, kind: str, rounds: int, folds: int) -> dict[str, Any]:
    """One growth on labels of its own."""
    table = original.table.assign(label=original.labels(np.random.default_rng([2, number])))
    before = spent(spark)
    with tempfile.TemporaryDirectory() as folder:
        data = spark.createDataFrame(table.drop(columns="id")).coalesce(1)
        grower = sparkdiff.Grower(
            original.model,
            labelCol="label",
            entityCols=[ENTITY],
            parts=[kind],
            rounds=rounds,
            seed=number,
            maxEpochs=3,
            patience=3,
            cacheDir=folder,
            numFolds=folds,
        )
        s = grower.fit(data).summary
    joined = [r["name"] for r in s.rounds if not r["why"]]
    return {
        "draw": number,
        "family": original.family,
        "parts": kind,
        "rounds": rounds,
        "grown": s.decision != "kept original",
        "p": s.p,
        "folds": folds,
        "joined": joined,
        "tried": len(s.rounds),
        "cpu": spent(spark) - before,
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """A line per family and kinds of parts, and one of all."""
    lines = []
    groups = dict.fromkeys((c["family"], c["parts"]) for c in found)
    for family, parts in (*groups, ("all", "")):
        own = [c for c in found if family == "all" or (c["family"], c["parts"]) == (family, parts)]
        grown, joined = sum(c["grown"] for c in own), sum(bool(c["joined"]) for c in own)
        cpu = sum(c["cpu"] for c in own) / len(own)
        lines.append([family, parts or "all", str(len(own)), str(joined), str(grown), f"{cpu:.1f}"])
    return markdown(["family", "parts", "draws", "a part joined", "grown", "CPU s per draw"], lines)


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the draws that are done")
    flags.add_argument("--draws", type=int, default=200)
    flags.add_argument("--rounds", type=int, default=1)
    flags.add_argument("--folds", type=int, default=2)
    given = parse(flags, draws=1, rounds=1)
    found = read_lines(given.cells)
    done = {c["draw"] for c in found}
    conf = {"spark.master": "local[1]", "spark.sql.shuffle.partitions": "1", "spark.ui.enabled": "false"}
    spark = start_session(conf, "sparkdiff.estimators.grower", 0)
    originals: dict[str, Original] = {}
    for number in range(given.draws):
        if number in done:
            continue
        family = FAMILIES[number % len(FAMILIES)]
        if family not in originals:
            originals[family] = Original(spark, family, ROWS)
        one = draw(
            spark, originals[family], number, [*KINDS][number // len(FAMILIES) % len(KINDS)], given.rounds, given.folds
        )
        found.append(one)
        print(f"draw {number}: {'grown' if one['grown'] else 'kept'}, p {one['p']:.3g}", file=sys.stderr, flush=True)
        append_lines(given.cells, one)
    found = [c for c in found if c["draw"] < given.draws]
    print(table(found))
    grown = sum(c["grown"] for c in found)
    missed = grown > MOST * len(found)
    if missed and not given.smoke:
        print(f"{grown} of {len(found)} grow, more than {MOST:.1%}")
    write(given, found, {"growth without a gain, grown": grown / len(found)})
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
