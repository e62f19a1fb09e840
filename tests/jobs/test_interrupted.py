"""Ctrl-C during `sparkdiff finetune`: it ends cleanly and prints the command that goes on, which finds what a calm run finds."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.feature import PCA, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import SparkSession

from sparkdiff.errors import INTERRUPTED

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.nightly

LOSS = """
import time
from pathlib import Path

HERE = Path(__file__).parent


def squares(outputs, label, weight):
    with (HERE / "calls").open("a") as calls:
        calls.write(".")
    if (HERE / "slowly").exists():
        time.sleep(0.1)
    return (outputs["prediction"] - label) ** 2
"""
"""A loss that counts how often it is asked, and leaves time for Ctrl-C."""


def begin(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    """A process of a group of its own that hears Ctrl-C, also where this one was started to ignore it."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SPARK_CONF_DIR": str(ROOT / "conf"),
        "PYSPARK_PYTHON": sys.executable,
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def result(run: Path) -> tuple[Any, ...]:
    found = json.loads((run / "summary.json").read_text())
    return (
        found["decision"],
        found["metrics"],
        found["z"],
        found["p"],
        found["model"]["hash"],
        (run / "history.csv").read_text(),
    )


def prepare(spark: SparkSession, folder: Path) -> None:
    """Rows, a model that loses what the label depends on, and the loss."""
    random = np.random.default_rng(5)
    x = random.standard_normal((800, 4)) * [3.0, 2.0, 1.0, 0.5]
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["label"] = x @ [0.1, 0.2, 1.0, 4.0] + random.standard_normal(800)
    frame.to_parquet(folder / "rows.parquet")
    stages = [
        VectorAssembler(inputCols=list("abcd"), outputCol="x"),
        PCA(k=2, inputCol="x", outputCol="features"),
        LinearRegression(),
    ]
    rows = spark.read.parquet(f"file://{folder}/rows.parquet")
    Pipeline(stages=stages).fit(rows).save(str(folder / "model"))
    (folder / "mine.py").write_text(LOSS)


def test_the_printed_command_resumes_to_a_calm_runs_result(spark: SparkSession, tmp_path: Path) -> None:
    prepare(spark, tmp_path)
    words = [
        "finetune",
        "pipeline=model",
        "--data",
        "rows.parquet",
        "fineTuner.loss=mine:squares",
        "fineTuner.maxEpochs=40",
    ]
    words += ["fineTuner.timeout=10"]  # so that there is a checkpoint each second
    calls, slowly = tmp_path / "calls", tmp_path / "slowly"
    slowly.touch()
    process = begin(["sparkdiff", *words, "--output", "runs/broken"], tmp_path)
    until = time.monotonic() + 400
    while not list(tmp_path.rglob("state.pt")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs" / "broken").exists()
    slowly.unlink()
    lines = err.splitlines()
    command = shlex.split(lines[lines.index(next(line for line in lines if line.startswith("interrupted"))) + 1])
    assert command[:2] == ["sparkdiff", "finetune"]
    before = calls.stat().st_size
    again = begin(command, tmp_path)
    out, err = again.communicate(timeout=400)
    assert again.returncode == 0, out + err
    resumed = calls.stat().st_size - before
    calm = begin(["sparkdiff", *words, "--output", "runs/calm"], tmp_path)
    out, err = calm.communicate(timeout=400)
    assert calm.returncode == 0, out + err
    assert result(tmp_path / "runs" / "broken") == result(tmp_path / "runs" / "calm")
    assert resumed < calls.stat().st_size - before - resumed  # it did not begin anew
