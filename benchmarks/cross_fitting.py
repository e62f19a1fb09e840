"""Does cross-fitting keep its level on small data, and what does it find there?

Without a gain: 300 samples of 1,800 rows in five folds. The labels are drawn from a logistic regression's own
predictive distribution, so that nothing beats it. In each fold the training is one step of gradient descent, or
several, or goes on until a validation part gains no more, by exact sums on tensors. Counted is how often the test by
out-of-fold rows accepts (evaluation/out_of_fold.py), and how often the same test that takes these rows for independent
would. In `refitted`, the original is Spark's: a ridge regression of the logistic kind that is fitted again in each fold
by Newton's steps, so weakly penalised that training has nothing to add. Fails where more than 13 of 300 are accepted.
About a minute of one core.

    python benchmarks/cross_fitting.py --runs 300 --out cross_fitting.json

With --digits: ten random splits of scikit-learn's digits (odd or even) hold out a fifth for the test. On the rest,
`FineTuner` with numFolds=5 and with a 20% split tune two unfitted pipelines: 20 boosted trees, and PCA before a
LogisticRegression. Counted is how often each accepts, and what that is worth on the test rows against the same pipeline
fitted on all of the rest. Every cell is written to --cells as soon as it is measured and isn't run again. About an
hour.

    SPARK_CONF_DIR=conf python benchmarks/cross_fitting.py --digits --cells cross_fitting.jsonl
"""

import math
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import CONFIG, append_lines, exit_code, parse, parser, read_lines, write
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff import FineTuner
from sparkdiff.evaluation import guard, out_of_fold
from sparkdiff.evaluation.out_of_fold import FoldSums
from sparkdiff.job import load_config
from sparkdiff.job.loading import function, load_data, start_session

FOLDS, ROWS = 5, 1800
MOST = 13 / 300  # of the level of 2.5%, and two standard errors of 300 runs
WORSE = 0.005  # share of the test metric that an accepted pipeline may lose


# Without a gain -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A training from a model that nothing beats."""

    name: str
    columns: int
    step: float = 1e-3
    epochs: int = 1
    chosen: bool = False  # whether a fifth of the training rows chooses the epoch, perhaps none
    refitted: bool = False
    folds: int = FOLDS


CELLS = [
    Cell("one small step, 2 parameters", 2),
    Cell("one small step, 10 parameters", 10),
    Cell("one small step, 60 parameters", 60),
    Cell("one small step, 300 parameters", 300),
    Cell("one small step, 60 parameters, 3 folds", 60, folds=3),
    Cell("one small step, 60 parameters, 2 folds", 60, folds=2),
    Cell("one small step, 60 parameters, 20 folds", 60, folds=20),
    Cell("ten steps, 60 parameters", 60, 0.2, 10),
    Cell("the epoch chosen, 10 parameters", 10, 0.1, 20, chosen=True),
    Cell("the epoch chosen, 60 parameters", 60, 0.1, 20, chosen=True),
    Cell("refitted, the epoch chosen, 10 parameters", 10, 0.1, 20, chosen=True, refitted=True),
]


def losses(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    z = x @ weights
    return torch.nn.functional.softplus(z) - y * z


def gradient(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return x.T @ (torch.sigmoid(x @ weights) - y) / len(y)


def newton(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """The optimum of the mean loss and a ridge penalty."""
    weights = x.new_zeros(x.shape[1])
    for _ in range(12):
        p = torch.sigmoid(x @ weights)
        curvature = (x.T * (p * (1 - p))) @ x / len(y) + ridge * torch.eye(x.shape[1], dtype=x.dtype)
        weights = weights - torch.linalg.solve(curvature, gradient(x, y, weights) + ridge * weights)
    return weights


def trained(cell: Cell, x: Tensor, y: Tensor, start: Tensor, chooses: Tensor) -> Tensor:
    """The weights after the cell's training on these rows; `chooses` tells which of them choose the epoch."""
    own = ~chooses if cell.chosen else torch.ones_like(chooses)
    weights = best = start
    least = float(losses(x[chooses], y[chooses], start).sum()) if cell.chosen else math.inf
    for _ in range(cell.epochs):
        weights = weights - 4 * cell.step * gradient(x[own], y[own], weights)
        now = float(losses(x[chooses], y[chooses], weights).sum()) if cell.chosen else -math.inf
        if now < least or not cell.chosen:
            best, least = weights, now
    return best


def sample(cell: Cell, seed: int) -> list[FoldSums]:
    """The sums of the folds of one sample, in blocks of one row."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, cell.columns, generator=random, dtype=torch.float64)
    x[:, 0] = 1
    truth = 0.7 * torch.randn(cell.columns, generator=random, dtype=torch.float64) / math.sqrt(cell.columns)
    y = (torch.rand(ROWS, generator=random, dtype=torch.float64) < torch.sigmoid(x @ truth)).double()
    fold = torch.arange(ROWS) % cell.folds
    out = []
    for k in range(cell.folds):
        outside = fold != k
        chooses = torch.rand(ROWS, generator=random, dtype=torch.float64)[outside] < 0.2
        rows, labels = x[outside], y[outside]
        start = newton(rows[~chooses], labels[~chooses], 1e-6) if cell.refitted else truth
        before = losses(x, y, start)
        gains, own = before - losses(x, y, trained(cell, rows, labels, start, chooses)), (~outside).double()
        out.append(FoldSums(gains * own, own, gains * outside.double()))
    return out


def simulate(cell: Cell, runs: int) -> dict[str, Any]:
    accepted, independent, found = 0, 0, 0.0
    for seed in range(runs):
        folds = sample(cell, seed)
        gains, weights = (torch.stack([getattr(f, name) for f in folds]).sum(0) for name in ("gains", "weights"))
        independent += guard.decide(gains[None], weights).accepted
        factor = out_of_fold.dependence(folds)
        accepted += guard.decide(gains[None], weights, dependence=factor).accepted
        found += factor / runs
    return {
        **asdict(cell), "runs": runs, "accepted": accepted / runs, "asIndependent": independent / runs, "dependence": found
    }  # fmt: skip


# Digits ---------------------------------------------------------------------------------------------------------------


def pipelines(folder: Path) -> dict[str, Pipeline]:
    """Two pipelines that tell odd digits, unfitted."""
    trees = function("pipelines:digits_gbt", folder)(None)
    assembler = trees.getStages()[0]
    assert isinstance(assembler, VectorAssembler)
    stages = [
        assembler,
        StandardScaler(inputCol=assembler.getOutputCol(), outputCol="scaled", withMean=True),
        PCA(inputCol="scaled", outputCol="components", k=10),
        LogisticRegression(featuresCol="components", labelCol="odd"),
    ]
    return {"boosted trees": trees, "PCA + LogisticRegression": Pipeline(stages=stages)}


def log_loss(model: Any, rows: DataFrame) -> float:
    p = vector_to_array(F.col("probability"))[F.col("odd").cast("int")]
    return float(model.transform(rows).agg(F.avg(-F.log(F.greatest(p, F.lit(1e-15))))).first()[0])


def measured(name: str, pipeline: Pipeline, split: int, images: DataFrame, arm: str) -> dict[str, Any]:
    """One cell: what an arm decides on the rows of a split, and what that is worth on its test rows."""
    part = F.pmod(F.xxhash64("id", F.lit(f"outer {split}")), F.lit(5))
    rows, test = images.where(part != 0), images.where(part == 0)
    folds = {"numFolds": FOLDS} if arm == "5 folds" else {"validationFraction": 0.2}
    found = FineTuner(pipeline=pipeline, seed=split, **folds).fit(rows)
    before = log_loss(found.originalModel if folds.get("numFolds") else pipeline.fit(rows), test)
    s = found.summary
    return {
        "pipeline": name, "split": split, "arm": arm, "accepted": s.decision == "tuned", "p": s.p, "z": s.z, "gain": s.gain,
        "interval": s.gainInterval, "epochs": [f["epochs"] for f in s.folds or ()], "reason": s.reason, "metric": s.metric,
        "before": before, "after": log_loss(found.pipelineModel, test), "own": log_loss(found.originalModel, test),
    }  # fmt: skip


def digits(splits: int, cells: Path | None, smoke: bool) -> Iterator[dict[str, Any]]:
    """All cells, those of an earlier run from the file."""
    done = {(c["pipeline"], c["split"], c["arm"]): c for c in read_lines(cells)}
    config = load_config(CONFIG.with_name("digits.yaml"), [])
    spark = start_session(config.spark)
    for split in range(splits):
        for name, pipeline in pipelines(config.folder).items():
            for arm in ("5 folds", "a 20% split"):
                if (cell := done.get((name, split, arm))) is None:
                    images = load_data(spark, {**config.data["train"], "where": "true"}, config.folder, "train")
                    images = images.withColumn("odd", (F.col("label") % 2).cast("double")).drop("label").cache()
                    cell = measured(name, pipeline, split, images.where("id < 600") if smoke else images, arm)
                    append_lines(cells, cell)
                print(
                    f"split {split}, {name}, {arm}: {'accepted' if cell['accepted'] else 'kept'}, p {cell['p']:.3g}, gain "
                    f"{cell['gain']:+.1%}; test {cell['before']:.4f} -> {cell['after']:.4f}",
                    flush=True,
                )  # fmt: skip
                yield cell
    spark.stop()


def table(found: list[dict[str, Any]]) -> list[str]:
    """A line per pipeline and arm, and what is amiss."""
    amiss = []
    print(
        "\n| pipeline | arm | accepted | mean change of the test loss where accepted | worst |\n|---|---|---|---|---|"
    )
    for key in dict.fromkeys((c["pipeline"], c["arm"]) for c in found):
        cells = [c for c in found if (c["pipeline"], c["arm"]) == key]
        changes = [c["after"] / c["before"] - 1 for c in cells if c["accepted"]]
        mean, worst = (f"{f(changes):+.1%}" if changes else "-" for f in (lambda x: sum(x) / len(x), max))
        print(f"| {key[0]} | {key[1]} | {len(changes)} of {len(cells)} | {mean} | {worst} |")
        if key[1] == "5 folds":
            amiss += [f"{key[0]}: accepted in {len(changes)} of {len(cells)} splits"] * (
                len(changes) < 0.9 * len(cells)
            )
            amiss += [f"{key[0]}: {x:+.1%} on the test" for x in changes if x > WORSE]
    return amiss


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--runs", type=int, default=300, help="samples of each cell without a gain")
    flags.add_argument("--digits", action="store_true", help="the splits of digits instead")
    flags.add_argument("--splits", type=int, default=10)
    flags.add_argument("--cells", type=Path, metavar="FILE", help="where the cells of digits are kept, as JSON lines")
    given = parse(flags, runs=4, splits=1)
    torch.set_num_threads(1)
    amiss: list[str] = []
    if given.digits:
        found = list(digits(given.splits, given.cells, given.smoke))
        amiss = table(found)
        write(given, found, {})
        return exit_code(given, amiss)
    found = []
    print("| no gain | accepted | as if independent | dependence |\n|---|---|---|---|")
    for cell in CELLS:
        found.append(one := simulate(cell, given.runs))
        print(
            f"| {cell.name} | {one['accepted']:.1%} | {one['asIndependent']:.1%} | {one['dependence']:.2f} |",
            flush=True,
        )
        if one["accepted"] > MOST:
            amiss.append(f"{cell.name}: {one['accepted']:.1%} accepted")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_utime:.0f} s of CPU")
    write(given, found, {f"cross-fitting, {c['name']}": c["accepted"] for c in found})
    return exit_code(given, amiss)


if __name__ == "__main__":
    sys.exit(main())
