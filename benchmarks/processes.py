"""When are several processes worth it, and what do fewer sums over them cost?

The same training (VectorAssembler, StandardScaler, LogisticRegression; one candidate) in one process, in several whose steps are
sums over them, and in several that step apart and meet now and then (`localSteps`), on rows of one cache, for small and large
batches. Prints wall seconds of an epoch against those of one process, the loss after the same number of epochs against its,
and what `numProcesses="auto"` takes.

    SPARK_CONF_DIR=conf python benchmarks/processes.py --rows 200000 --batch 128 4096 --processes 2
"""

import sys
import time
from pathlib import Path
from typing import Any

from common import exit_code, folder_of, markdown, parse, parser, write
from scale import made

EPOCHS = 4


def clock() -> Any:
    """A callback that notes when each epoch ended."""
    import sparkdiff

    class Clock(sparkdiff.Events):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.values: list[float] = []

        def on_epoch(self, row: Any) -> None:
            if row["epoch"] == len(self.ends):
                self.ends.append(time.monotonic())
                self.values.append(row["validationMetric"])

    return Clock()


def trained(model: Any, df: Any, folder: Path, batch: int, epochs: int, **options: Any) -> dict[str, Any]:
    import sparkdiff

    seen = clock()
    tuner = sparkdiff.FineTuner(
        model, recipe="fast", batchSize=batch, maxEpochs=epochs, patience=epochs, cacheDir=str(folder / "cache"), verbosity=0,
        callbacks=[seen], **options,
    )  # fmt: skip
    summary = tuner.fit(df).summary
    # Rows of several processes come up to a second late: from the first epoch's end to the last one's.
    return {
        **options, "batch": batch, "epoch": (seen.ends[-1] - seen.ends[1]) / (epochs - 1), "loss": seen.values[-1],
        "start": seen.values[0], "took": summary.processes,
    }  # fmt: skip


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--columns", type=int, default=50)
    options.add_argument("--batch", type=int, nargs="+", default=[128, 4096])
    options.add_argument("--processes", type=int, nargs="+", default=[2])
    options.add_argument("--steps", type=int, nargs="+", default=[8, 64], help="localSteps")
    options.add_argument("--epochs", type=int, default=EPOCHS)
    options.add_argument("--folder", type=Path)
    given = parse(options, rows=2000, columns=4, batch=[128], steps=[4], epochs=3)

    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import StandardScaler, VectorAssembler
    from pyspark.sql import SparkSession

    conf = {"spark.ui.enabled": "false", "spark.log.level": "ERROR", "spark.sql.shuffle.partitions": "4"}
    spark = SparkSession.builder.master("local[2]").config(map=conf).getOrCreate()
    folder = folder_of(given)
    df = spark.read.parquet(made(folder, given.rows, given.columns).as_uri())
    stages = [
        VectorAssembler(inputCols=[f"x{j}" for j in range(given.columns)], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="features"), LogisticRegression(regParam=0.1, maxIter=2),
    ]  # fmt: skip
    model = Pipeline(stages=stages).fit(df.limit(50_000))
    results, table, figures = list[dict[str, Any]](), list[list[str]](), dict[str, float]()
    for batch in given.batch:
        arms: list[dict[str, Any]] = [{}]
        for n in given.processes:
            arms += [{"numProcesses": n}, *({"numProcesses": n, "localSteps": k} for k in given.steps)]
        found = [trained(model, df, folder, batch, given.epochs, **arm) for arm in [*arms, {"numProcesses": "auto"}]]
        one = found[0]
        for r in found:
            arm = ", ".join(f"{k}={r[k]}" for k in ("numProcesses", "localSteps") if k in r) or "one process"
            lost = (r["loss"] - one["loss"]) / (one["start"] - one["loss"])
            took = f"takes {r['took']['number']}: {r['took']['why']}" if r["took"] else ""
            table.append(
                [f"{batch:,}", arm, f"{r['epoch']:.2f}", f"{r['epoch'] / one['epoch']:.2f}", f"{lost:+.1%}", took]
            )
        results += found
        figures |= {f"{batch}: {t[1]}": float(t[3]) for t in table if t[0] == f"{batch:,}"}
    print(markdown(["batch", "", "epoch, s", "of one process", "gain lost", ""], table))
    write(given, results, figures)
    return exit_code(given, [])


if __name__ == "__main__":
    sys.exit(main())
