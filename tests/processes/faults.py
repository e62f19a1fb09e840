"""Trainings of several processes, and what can befall them: signals to real processes at random times.

As a script: every fault several times, with a table in Markdown (`make faults`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

NUMBERS = [f"x{i}" for i in range(8)]
LASTING = {"numProcesses": 2, "maxEpochs": 12, "patience": 12, "batchSize": 64, "timeout": 12.0, "guard": 1.0}
"""Options of a training that lasts some seconds, long enough for a fault in the middle of it."""


def table(rows: int) -> pa.Table:
    """Counts whose rate depends on what a PCA of the widest columns passes over."""
    generator = np.random.default_rng(7)
    x = generator.normal(size=(rows, len(NUMBERS))) * np.linspace(3.0, 0.5, len(NUMBERS))
    rate = np.exp(0.5 + x @ np.linspace(0.02, 0.4, len(NUMBERS)))
    return pa.table(
        {name: x[:, i] for i, name in enumerate(NUMBERS)} | {"count": generator.poisson(rate).astype(float)}
    )


def pipeline(df: Any) -> Any:
    """Assembler, scaler, PCA to 3 of 8 dimensions, Poisson regression, fitted."""
    from pyspark.ml import Pipeline
    from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
    from pyspark.ml.regression import GeneralizedLinearRegression

    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=3),
            GeneralizedLinearRegression(featuresCol="components", labelCol="count", family="poisson"),
        ]
    ).fit(df)


def slow_poisson(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The Poisson loss of a step that takes a little while, so that there is time for a fault."""
    time.sleep(0.005)
    return outputs["prediction"] - label * torch.log(outputs["prediction"])


def outcome(tuned: Any) -> dict[str, Any]:
    """Decision, history and weights of a FineTunerModel, exactly."""
    scaler, pca, glr = tuned.pipelineModel.stages[1:]
    weights = [*scaler.std, *scaler.mean, *pca.pc.toArray().ravel(), *glr.coefficients, glr.intercept]
    return {
        "decision": tuned.summary.decision,
        "history": [
            [r["epoch"], r["candidate"], r["trainLoss"], r["validationMetric"]] for r in tuned.summary.records[2:]
        ],
        "weights": [float(w) for w in weights],
    }


@dataclass
class Fault:
    """A signal to one process of a run's first attempt, `delay` seconds after it has made its first progress.

    target: `rank` (the last one), `torchrun`, `worker` (Spark's Python worker) or `executor` (the JVM above it).
    """

    folder: Path
    target: str
    number: int
    delay: float
    pid: int = 0
    command: str = ""
    sent: float = 0.0
    others: list[int] = field(default_factory=list)

    def start(self) -> Fault:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def _run(self) -> None:
        attempt = self.folder / "attempt-1"
        until(lambda: (attempt / "progress.jsonl").exists(), 300)
        ranks = [json.loads(p.read_text()) for p in sorted(attempt.glob("rank-*.json"))]
        self.others = [pid for r in ranks for pid in (r["pid"], *r["parents"][:1])]
        self.pid = ancestor(ranks[-1], self.target)
        time.sleep(self.delay)
        with contextlib.suppress(OSError):
            self.command = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        os.kill(self.pid, self.number)
        self.sent = time.time()


def ancestor(rank: dict[str, Any], target: str) -> int:
    """The process above a rank: rank < torchrun < wrapper < Spark's worker < its daemon < executor."""
    torchrun, wrapper = rank["parents"]
    chain = {"rank": rank["pid"], "torchrun": torchrun}
    if target in ("worker", "executor"):
        chain["worker"] = parent(wrapper)
        chain["executor"] = parent(parent(chain["worker"]))
    return chain[target]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until(true: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.1)


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that are there and no zombies."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


LOCAL = {
    "rank killed": ("rank", signal.SIGKILL), "torchrun killed": ("torchrun", signal.SIGKILL),
    "rank stalled": ("rank", signal.SIGSTOP),
}  # fmt: skip
CLUSTER = {
    "rank killed": ("rank", signal.SIGKILL), "torchrun killed": ("torchrun", signal.SIGKILL),
    "Spark's Python worker killed": ("worker", signal.SIGKILL), "executor killed": ("executor", signal.SIGKILL),
    "rank stalled": ("rank", signal.SIGSTOP),
}  # fmt: skip


@dataclass
class Told:
    """What became of a training that a fault befell."""

    fault: str
    identical: bool
    resumed: bool
    seconds: float
    orphans: list[int]


def suffer(fit: Any, calm: dict[str, Any], folder: Path, name: str, target: str, number: int, delay: float) -> Told:
    """Run `fit(runId)` under a fault and compare with the calm run's outcome."""
    run_id = f"{name.replace(' ', '-').replace(chr(39), '')}-{random.randrange(10**6)}"
    fault = Fault(folder / run_id, target, number, delay).start()
    start = time.monotonic()
    found = fit(run_id)
    seconds = time.monotonic() - start
    fault.thread.join(10)
    attempts = len(list((folder / run_id).glob("attempt-*")))
    time.sleep(2)
    return Told(name, found == calm, attempts > 1, seconds, alive(fault.others))
