"""Memory stays where it is: peak RSS of the driver, its JVM and training at epoch 50 against epoch 5, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.nightly  # test_held_memory looks at what a stream holds, for each commit

RUN = """
import json, os, sys
from pathlib import Path
from pyspark.ml import Pipeline
from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import SparkSession, functions as F
from sparkdiff import Events, FineTuner

def peak(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(l for l in status if l.startswith("VmHWM")).split()[1])

def java():
    return next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()
                and (p / "comm").exists() and (p / "comm").read_text().strip() == "java" and descends(int(p.name)))

def descends(pid):
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False

seen = {}
class Watch(Events):
    def on_epoch(self, row):
        if row["epoch"] in (5, 50):
            seen[row["epoch"]] = {"driver": peak(os.getpid()), "jvm": peak(java())}

conf = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "4"}
spark = SparkSession.builder.master("local[2]").config(map=conf).getOrCreate()
d = 40
df = spark.range(12_000).select(*[F.randn(i).alias(f"x{i}") for i in range(d)], F.randn(99).alias("e"))
df = df.withColumn("label", sum(F.col(f"x{i}") * (i % 7) for i in range(d)) + F.col("e"))
df.write.mode("overwrite").parquet(sys.argv[1] + "/rows")
df = spark.read.parquet(sys.argv[1] + "/rows")
pipeline = Pipeline(stages=[
    VectorAssembler(inputCols=[f"x{i}" for i in range(d)], outputCol="a"),
    StandardScaler(inputCol="a", outputCol="s", withMean=True),
    PCA(k=10, inputCol="s", outputCol="p"), LinearRegression(featuresCol="p", maxIter=5, solver="normal"),
])
tuner = FineTuner(pipeline=pipeline.fit(df), maxEpochs=50, patience=50, batchSize=1024, stream=sys.argv[2],
                  cacheInMemory=sys.argv[3] == "memory", learningRate=1e-4, rowsAreNew=True, callbacks=[Watch()])
summary = tuner.fit(df).summary
print("SEEN " + json.dumps({"seen": seen, "stream": summary.stream, "epochs": int(summary.history.epoch.max())}))
"""


@pytest.mark.parametrize("where", ["files", "memory"])
def test_peak_memory_does_not_grow_with_the_epochs(where: str, tmp_path: Path) -> None:
    pytest.importorskip("petastorm") if where == "memory" else None
    backend = "petastorm" if where == "memory" else "arrow"
    script = tmp_path / "run.py"
    script.write_text(RUN)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), backend, where],
        # The resident memory of newer Arrows' own allocator wavers by more than is looked for here.
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": sys.executable,
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("SEEN ")).removeprefix("SEEN ")
    )
    assert found["epochs"] == 50
    assert found["stream"] == backend
    for process in ("driver", "jvm"):
        early, late = found["seen"]["5"][process], found["seen"]["50"][process]
        print(f"{where}, {process}: peak {early} KiB at epoch 5, {late} KiB at epoch 50")
        assert late <= 1.05 * early
