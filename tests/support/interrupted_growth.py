"""What test_growing.py runs in a process of its own, to kill it: growth in rounds on counts that bend.

    python -m tests.support.interrupted_growth FOLDER RUN_ID PROCESSES

leaves FOLDER/RUN_ID.json: all that a run which was interrupted must find again. Runs share rows, pipeline and caches.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import SparkSession

from sparkdiff import Grower

NUMBERS = ["a", "b", "c", "d"]


def table(rows: int) -> pa.Table:
    random = np.random.default_rng(3)
    a, b, c, d = x = random.normal(size=(4, rows))
    rate = np.exp(0.3 + np.abs(a) - 0.7 * np.abs(b) + 0.4 * c * d)
    return pa.table({**dict(zip(NUMBERS, x, strict=True)), "count": random.poisson(rate).astype(float)})


def pipeline(df: Any) -> PipelineModel:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    return Pipeline(stages=[assembler, GeneralizedLinearRegression(labelCol="count", family="poisson")]).fit(df)


def facts(grown: Any) -> dict[str, Any]:
    """Decision, rounds and weights of a GrowerModel, exactly, without times."""
    summary, uid = grown.summary, grown.originalModel.stages[-1].uid
    last = next(s for s in grown.pipelineModel.stages if s.uid == uid)
    units = [s for s in grown.pipelineModel.stages if hasattr(s, "layers")]
    return {
        "decision": summary.decision,
        "metrics": summary.metrics,
        "rounds": [{k: v for k, v in row.items() if k != "seconds"} for row in summary.rounds],
        "coefficients": [*map(float, last.coefficients), last.intercept],
        "units": [[*map(float, s.weights)] for s in units],
    }


def main(folder: Path, run: str, processes: int) -> None:
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    rows, model = folder / "rows.parquet", folder / "model"
    if not rows.exists():
        pq.write_table(table(3000), rows)
    df = spark.read.parquet(f"file://{rows}")
    if not model.exists():
        pipeline(df).write().save(f"file://{model}")
    grower = Grower(
        PipelineModel.load(f"file://{model}"),
        labelCol="count",
        parts=("units",),
        rounds=3,
        maxEpochs=2,
        recipe="fast",
        numProcesses=processes,
        cacheDir=f"{folder}/cache",
        checkpointDir=f"{folder}/runs",
        runId=run,
        rowsAreNew=True,
        numFolds=2,
    )
    (folder / f"{run}.json").write_text(json.dumps(facts(grower.fit(df))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
