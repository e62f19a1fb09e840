"""A training on a cluster whose executors see none of the driver's folders, and the same one where they see the cache.

Run by spark-submit: `remote_training.py FOLDER URL [FAULT...]`; FOLDER is one that all see, URL a store. spark-submit
puts this folder on the path, and not the project's: `faults`, beside this script, is imported by its bare name.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from faults import LASTING, REMOTE, left, outcome, parent, pipeline, slow_poisson, table, until

from sparkdiff import FineTuner
from sparkdiff.jvm import stores


def killed(run: Path, above: int) -> tuple[threading.Thread, list[int]]:
    """Kill the last process, or one above it, after the first checkpoint; and the processes of the attempt."""
    pids: list[int] = []

    def work() -> None:
        until(lambda: (run / "state.pt").exists(), 300)
        ranks = [json.loads(p.read_text()) for p in sorted((run / "attempt-1").glob("rank-*.json"))]
        pids.extend(r["pid"] for r in ranks)
        target = ranks[-1]["pid"]
        for _ in range(above):
            target = parent(target)
        time.sleep(random.random())
        os.kill(target, signal.SIGKILL)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, pids


def trained(folder: Path, url: str, faults: list[str]) -> dict[str, Any]:
    """What became of the training with files that all see, in the store, and with each fault."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    pq.write_table(table(4000), folder / "rows.parquet")
    df = spark.read.parquet(f"file://{folder}/rows.parquet")
    model = pipeline(df)

    def fit(where: str, name: str) -> Any:
        tuner = FineTuner(
            pipeline=model,
            cacheDir=f"{where}/caches",
            checkpointDir=f"{where}/runs",
            runId=name,
            loss=slow_poisson,
            metric="poisson",
            **LASTING,
        )
        return outcome(tuner.fit(df))

    calm = fit(str(folder), "calm")
    told: dict[str, Any] = {"in the store": {"identical": fit(url, "calm") == calm}}
    for fault in faults:
        run = stores.working(f"{url}/runs/{fault.replace(' ', '-')}")
        thread, pids = killed(run, REMOTE[fault])
        found = fit(url, run.name)
        thread.join(10)
        attempts = len(list(run.glob("attempt-*")))
        told[fault] = {"identical": found == calm, "resumed": attempts > 1, "left": left(pids)}
    return told


if __name__ == "__main__":
    where = Path(sys.argv[1])
    (where / "told.json").write_text(json.dumps(trained(where, sys.argv[2], sys.argv[3:])))
