"""When are several processes worth it, and what do fewer sums over them cost?

The same training (VectorAssembler, StandardScaler, LogisticRegression; one candidate) in one process, in several whose steps are
sums over them, and in several that step apart and meet now and then (`localSteps`), on rows of one cache, for small and large
batches. Prints wall seconds of an epoch (a long training less a short one, so that the start of the processes doesn't count)
against those of one process, the loss after the same number of epochs against its, and what `numProcesses="auto"` takes.

    SPARK_CONF_DIR=conf python benchmarks/processes.py --rows 200000 --batch 128 4096 --processes 2
"""

import sys
from pathlib import Path
from typing import Any

from common import exit_code, folder_of, markdown, parse, parser, write
from scale import made

SHORT, EPOCHS = 2, 12
"""Epochs of the short and of the long training, the latter at the smallest batch; larger ones take up to `MOST` times as many,
as their epochs are short."""
MOST = 10


def pipeline(folder: Path, rows: int, columns: int) -> tuple[Any, Any]:
    """A fitted pipeline, and the rows that tune it, in a session that this starts."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import StandardScaler, VectorAssembler
    from pyspark.sql import SparkSession

    conf = {"spark.ui.enabled": "false", "spark.log.level": "ERROR", "spark.sql.shuffle.partitions": "4"}
    spark = SparkSession.builder.master("local[2]").config("spark.driver.memory", "2g").config(map=conf).getOrCreate()
    df = spark.read.parquet(f"file://{made(folder, rows, columns)}")
    stages = [
        VectorAssembler(inputCols=[f"x{j}" for j in range(columns)], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="features"),
        LogisticRegression(regParam=1.0, maxIter=5),
    ]
    return Pipeline(stages=stages).fit(df.limit(50_000)), df


def trained(model: Any, df: Any, folder: Path, batch: int, epochs: int, **options: Any) -> Any:
    """The summary of a training of so many epochs."""
    import sparkdiff

    tuner = sparkdiff.FineTuner(
        model,
        recipe="fast",
        batchSize=batch,
        maxEpochs=epochs,
        patience=epochs,
        cacheDir=str(folder / "cache"),
        verbosity=0,
        **options,
    )
    return tuner.fit(df).summary


def measured(model: Any, df: Any, folder: Path, batch: int, epochs: int, **options: Any) -> dict[str, Any]:
    short, long = (trained(model, df, folder, batch, n, **options) for n in (SHORT, epochs))
    values = {row["epoch"]: row["validationMetric"] for row in long.records}
    return {
        **options,
        "batch": batch,
        "epoch": (long.timings["train"] - short.timings["train"]) / (epochs - SHORT),
        "loss": values[epochs],
        "start": values[0],
        "took": long.processes,
    }


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--columns", type=int, default=50)
    options.add_argument("--batch", type=int, nargs="+", default=[128, 4096])
    options.add_argument("--processes", type=int, nargs="+", default=[2])
    options.add_argument("--steps", type=int, nargs="+", default=[8, 64], help="localSteps")
    options.add_argument("--epochs", type=int, default=EPOCHS)
    options.add_argument("--folder", type=Path)
    given = parse(options, rows=2000, columns=4, batch=[128], steps=[4], epochs=4)

    folder = folder_of(given)
    model, df = pipeline(folder, given.rows, given.columns)
    results, table, figures = list[dict[str, Any]](), list[list[str]](), dict[str, float]()
    for batch in given.batch:
        arms: list[dict[str, Any]] = [{}]
        for n in given.processes:
            arms += [{"numProcesses": n}, *({"numProcesses": n, "localSteps": k} for k in given.steps)]
        epochs = given.epochs * min(MOST, batch // min(given.batch))
        found = [measured(model, df, folder, batch, epochs, **arm) for arm in [*arms, {"numProcesses": "auto"}]]
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
