"""Are soft labels worth it? Fine-tuning on 2,000 rows that rules label, against the few true labels alone.

Per seed: generated rows of twenty numbers, two classes, and ten rules of known accuracy and coverage, independent given the
class. 50 training rows and 500 (then 100) validation rows have true labels, 2,000 rows have none. The rivals are fitted by
MLlib alone: a LogisticRegression on the 50, and one on weighted rows, a row per class, each with the regParam that has the
least log-loss on the same validation rows. Ours starts from the first, and trains on `sparkdiff.distill` of a LabelModel. In
a second arm the rules are worse than chance, which no label model can know without labels, and it gets none: there the guard
must keep the original. All are measured on 20,000 fresh rows. Prints a table, writes JSON, fails where ours doesn't beat the
50 alone in each seed, or takes what misleading rules say.

    SPARK_CONF_DIR=conf python benchmarks/soft_labels.py --seeds 5 --out soft_labels.json
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import CONFIG, exit_code, markdown, parse, parser, write
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import FineTuner, LabelModel, distill
from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import start_session

NUMBERS, RULES = 20, 10
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
ACCURACY = {"good": (0.6, 0.85), "misleading": (0.15, 0.4)}
COVERAGE = (0.3, 0.8)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows without labels, with labels that train, with labels that decide, and to measure on."""

    unlabelled: int
    labelled: int
    deciding: int
    fresh: int


def table(sizes: Sizes, kind: str, seed: int) -> pa.Table:
    """The rows: features, votes (null where a rule abstains), `label` (null where nobody knows), `held`, `fresh` and `truth`."""
    random = np.random.default_rng(seed)
    rows = sum(dataclasses.astuple(sizes))
    x = random.normal(size=(rows, NUMBERS))
    slopes = random.normal(0, 0.6, NUMBERS)
    truth = random.random(rows) < 1 / (1 + np.exp(-(x @ slopes)))
    accuracy, coverage = (random.uniform(*c, RULES) for c in (ACCURACY[kind], COVERAGE))
    right, votes = random.random((rows, RULES)) < accuracy, random.random((rows, RULES)) < coverage
    vote = np.where(right, truth[:, None], ~truth[:, None]).astype(int)
    number = np.arange(rows)
    known = (number >= sizes.unlabelled) & (number < rows - sizes.fresh)
    return pa.table(
        {
            **{f"x{j}": x[:, j] for j in range(NUMBERS)},
            **{f"v{j}": pa.array(vote[:, j], mask=~votes[:, j]) for j in range(RULES)},
            "label": pa.array(truth.astype(float), mask=~known),
            "truth": truth.astype(float),
            "held": known & (number >= sizes.unlabelled + sizes.labelled),
            "fresh": number >= rows - sizes.fresh,
        }
    )


def loss_of(model: Any, rows: DataFrame, label: str) -> tuple[float, float]:
    """Mean log-loss and accuracy, from what Spark predicts."""
    chance = vector_to_array("probability")[F.col(label).cast("int")]
    right = (F.col("prediction") == F.col(label)).cast("double")
    row = model.transform(rows).agg(F.avg(-F.log(F.greatest(chance, F.lit(1e-300)))), F.avg(right)).first()
    assert row is not None
    return float(row[0]), float(row[1])


def best_fit(rows: DataFrame, deciding: DataFrame, weightCol: str | None) -> PipelineModel:
    """MLlib's fit with the penalty that has the least log-loss on the rows that decide."""
    x = VectorAssembler(inputCols=[f"x{j}" for j in range(NUMBERS)], outputCol="features")
    ready, fits = x.transform(rows).cache(), []
    for regParam in PENALTIES:
        head = LogisticRegression(labelCol="label", regParam=regParam)
        model = PipelineModel([x, (head.setWeightCol(weightCol) if weightCol else head).fit(ready)])
        fits.append((loss_of(model, deciding, "label")[0], model))
    ready.unpersist()
    return min(fits, key=lambda f: f[0])[1]


def measure(spark: SparkSession, sizes: Sizes, kind: str, seed: int, folder: Path, epochs: int) -> dict[str, Any]:
    start = time.perf_counter()
    pq.write_table(table(sizes, kind, seed), folder / "rows.parquet")
    rows = spark.read.parquet(f"file://{folder}/rows.parquet")
    known, fresh, held = rows.where("NOT fresh"), rows.where("fresh").cache(), rows.where("held").cache()
    # From labels it would learn that rules are mostly wrong, and turn them round.
    learns = {"labelCol": "label"} if kind == "good" else {}
    labels = LabelModel({f"v{j}": f"v{j}" for j in range(RULES)}, **learns).fit(known)
    distill(labels, known, labelCol="label", outputCol="soft").write.parquet(f"file://{folder}/soft.parquet")
    soft = spark.read.parquet(f"file://{folder}/soft.parquet")
    few = best_fit(known.where("label IS NOT NULL AND NOT held"), held, None)
    each = (
        soft.where("NOT held").drop("label").select("*", F.posexplode(vector_to_array("soft")).alias("label", "chance"))
    )
    rival = best_fit(each, held, "chance")
    tuned = FineTuner(
        few, labelCol="soft", validationIndicatorCol="held", seed=seed, maxEpochs=epochs, cacheDir=str(folder / "cache")
    ).fit(soft)
    arms = {"labels alone": few, "MLlib, weighted rows": rival, "ours": tuned.pipelineModel}
    found = {name: loss_of(model, fresh, "truth") for name, model in arms.items()}
    spark.catalog.clearCache()
    agreement = labels.summary.agreement or {"labelModel": None, "majority": None}
    return {
        "seed": seed,
        "rules": kind,
        "deciding": sizes.deciding,
        "decision": tuned.summary.decision,
        "reason": tuned.summary.reason,
        "labelModel": agreement["labelModel"],
        "majority": agreement["majority"],
        "logLoss": {k: v[0] for k, v in found.items()},
        "accuracy": {k: v[1] for k, v in found.items()},
        "seconds": time.perf_counter() - start,
    }


def shown(results: list[dict[str, Any]]) -> str:
    names = list(results[0]["logLoss"])
    head = [
        "rules",
        "validation labels",
        "tuned",
        "better than labels alone",
        *(f"log-loss: {n}" for n in names),
        *(f"accuracy: {n}" for n in names),
    ]
    lines = []
    for key in dict.fromkeys((r["rules"], r["deciding"]) for r in results):
        runs = [r for r in results if (r["rules"], r["deciding"]) == key]
        tuned, better = (sum(c) for c in zip(*((r["decision"] == "tuned", beats(r)) for r in runs), strict=True))
        means = [f"{np.mean([r[what][n] for r in runs]):.3f}" for what in ("logLoss", "accuracy") for n in names]
        lines.append([key[0], str(key[1]), f"{tuned} of {len(runs)}", f"{better} of {len(runs)}", *means])
    return markdown(head, lines)


def beats(result: dict[str, Any]) -> bool:
    """Whether ours has the smaller log-loss on fresh rows."""
    return bool(result["logLoss"]["ours"] < result["logLoss"]["labels alone"])


def missed(results: list[dict[str, Any]], most: int) -> list[str]:
    """Where ours is not better, with the larger number of labels that decide, or where it took what misleads."""
    out = []
    for r in results:
        if r["rules"] == "good" and r["deciding"] == most and not beats(r):
            out.append(f"seed {r['seed']}: {r['logLoss']}")
        if r["rules"] == "misleading" and r["decision"] != "kept original":
            out.append(f"seed {r['seed']}, misleading: {r['reason']}")
    return out


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument(
        "--rows", type=int, nargs=3, default=[2_000, 50, 20_000], metavar=("UNLABELLED", "LABELLED", "FRESH")
    )
    flags.add_argument("--deciding", type=int, nargs="+", default=[500, 100], help="validation rows with labels")
    flags.add_argument("--epochs", type=int, default=120)
    given = parse(flags, seeds=1, rows=[200, 30, 200], deciding=[40], epochs=1)
    spark = start_session(load_config(CONFIG, []).spark)
    spark.sparkContext.setLogLevel("ERROR")
    unlabelled, labelled, fresh = given.rows
    results: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for kind, deciding in [*(("good", d) for d in given.deciding), ("misleading", max(given.deciding))]:
            with tempfile.TemporaryDirectory() as name:
                sizes = Sizes(unlabelled, labelled, deciding, fresh)
                results.append(measure(spark, sizes, kind, seed, Path(name), given.epochs))
            r = results[-1]
            print(
                f"seed {seed}, {kind}, {deciding}: {r['decision']}, {r['logLoss']}, {r['seconds']:.0f} s",
                file=sys.stderr,
            )
        figures = {
            f"{r['rules']}, {r['deciding']} validation labels, seed {r['seed']}, {n}": v
            for r in results
            for n, v in r["logLoss"].items()
        }
        write(given, results, figures)
    print(shown(results))
    broken = missed(results, max(given.deciding))
    print(f"\nBetter than the labels alone, and nothing misleading accepted: {'; '.join(broken) or 'kept'}")
    return exit_code(given, broken)


if __name__ == "__main__":
    sys.exit(main())
