"""A saved model as production serves it: in a process of its own without torch, sparkdiff and libraries of trees."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SERVE = """
import json, sys

absent = ("torch", "sparkdiff", "petastorm", "sklearn", "lightgbm", "xgboost")
sys.modules.update(dict.fromkeys(absent))
for name in absent:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")

from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

rows, *models = sys.argv[1:]
settings = {"spark.ui.enabled": "false", "spark.sql.codegen.wholeStage": "false"}
spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
df = spark.read.parquet(rows)
out = [[r.prediction for r in PipelineModel.load(m).transform(df).orderBy("id").select("prediction").collect()] for m in models]
print("SERVED " + json.dumps(out))
"""


def predictions(models: Sequence[Path], rows: Path) -> list[list[float]]:
    """For each saved model its predictions on Parquet rows, in the order of their column `id`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *(f"file://{path}" for path in (rows, *models))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        cwd=rows.parent,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SERVED ")]
    found: list[list[float]] = json.loads(line.removeprefix("SERVED "))
    return found
