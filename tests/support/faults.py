"""Trainings of several processes, and what can befall them: signals to real processes at random times.

Run by spark-submit, it lets the faults of the master happen one after the other: `faults.py FOLDER RUNS [FAULT...]`.
"""

import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sparkdiff.store import files

NUMBERS = [f"x{i}" for i in range(8)]
LASTING = {
    "numProcesses": 2,
    "maxEpochs": 12,
    "patience": 12,
    "batchSize": 64,
    "timeout": 12.0,
    "guard": 1.0,
    "rowsAreNew": True,
}
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
            [r["epoch"], r["candidate"], r["trainLoss"], r["validationMetric"]]
            for r in tuned.summary.records
            if r["epoch"]  # before training there is no loss of it
        ],
        "weights": [float(w) for w in weights],
    }


@dataclass
class Fault:
    """A signal to one process of a run's first attempt, `delay` seconds after its first checkpoint.

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

    def start(self) -> "Fault":
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def _run(self) -> None:
        attempt = self.folder / "attempt-1"
        until(lambda: (self.folder / "state.pt").exists(), 300)
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


def left(pids: list[int]) -> list[int]:
    """Those of the processes that are still there when all should long have ended."""
    with contextlib.suppress(TimeoutError):
        until(lambda: not alive(pids), 15)
    return alive(pids)


LOCAL = {
    "rank killed": ("rank", signal.SIGKILL),
    "torchrun killed": ("torchrun", signal.SIGKILL),
    "rank stalled": ("rank", signal.SIGSTOP),
}
CLUSTER = {
    "rank killed": ("rank", signal.SIGKILL),
    "torchrun killed": ("torchrun", signal.SIGKILL),
    "Spark's Python worker killed": ("worker", signal.SIGKILL),
    "executor killed": ("executor", signal.SIGKILL),
    "rank stalled": ("rank", signal.SIGSTOP),
}
REMOTE = {"rank killed": 0, "worker killed": 1, "executor killed": 3}
"""Of `remote_training.py`: how far above the process that trains the one is that is killed."""


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
    return Told(name, found == calm, attempts > 1, seconds, left(fault.others))


# The driver itself ----------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
JOB = [
    "--config",
    "conf/bikeshare.yaml",
    "fineTuner.numProcesses=2",
    "fineTuner.maxEpochs=20",
    "fineTuner.batchSize=32",
    "fineTuner.timeout=12",
]


def spark_home() -> str:
    spec = importlib.util.find_spec("pyspark")
    assert spec is not None
    assert spec.submodule_search_locations
    return spec.submodule_search_locations[0]


def submission(
    script: Path,
    *arguments: str,
    master: str = "local[2]",
    python: str = sys.executable,
    conf: dict[str, str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a job whose Python knows our package by --py-files only."""
    package = Path(tempfile.mkdtemp()) / "sparkdiff.zip"
    with zipfile.ZipFile(package, "w") as archive:
        for path in sorted(p for p in (ROOT / "sparkdiff").rglob("*") if p.is_file() and p.suffix != ".pyc"):
            archive.write(path, path.relative_to(ROOT))
    quick = "-XX:TieredStopAtLevel=1"  # short jobs: the JVM's second compiler takes more time than it gives back
    settings = {
        "spark.ui.enabled": "false",
        "spark.executor.memory": "1g",
        "spark.driver.memory": "2g",
        "spark.driver.extraJavaOptions": quick,
        "spark.executor.extraJavaOptions": quick,
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.shuffle.partitions": "2",
        **(conf or {}),
    }
    command = [str(Path(spark_home()) / "bin" / "spark-submit"), "--master", master, "--py-files", str(package)]
    command += [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SPARK_HOME")}
    environment = kept | {
        "PYSPARK_PYTHON": python,
        "PYSPARK_DRIVER_PYTHON": python,
        "SPARK_CONF_DIR": str(ROOT / "conf"),
        "SPARK_HOME": spark_home(),
    }
    return [*command, str(script), *arguments], environment


def submit(script: Path, *arguments: str, expect: int = 0, timeout: float = 600, **options: Any) -> str:
    """Run a job to its end; what it printed."""
    command, environment = submission(script, *arguments, **options)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def kill_driver(output: Path, caches: Path, calm: Path, delay: float) -> Told:
    """Kill a job's driver, JVM and Python, some time after the first checkpoint, and give the same command again."""
    arguments = [*JOB, f"output.path={output}", f"fineTuner.cacheDir={caches}"]
    command, environment = submission(ROOT / "jobs" / "finetune.py", *arguments)

    def start() -> subprocess.Popen[bytes]:
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, start_new_session=True, stdout=nowhere, stderr=nowhere
        )

    def first(pattern: str, job: subprocess.Popen[bytes]) -> Path:
        until(lambda: job.poll() is not None or any(caches.glob(pattern)), 300)
        return next(caches.glob(pattern))

    run = f"checkpoints/{output.name}-*"
    job = start()
    state = first(f"{run}/state.pt", job)
    time.sleep(delay)
    ranks = [json.loads(p.read_text()) for p in state.parent.glob("attempt-1/rank-*.json")]
    pids = [pid for r in ranks for pid in (r["pid"], *r["parents"])]
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    orphans = left(pids)
    reached = files.load(state)
    assert reached is not None
    assert not reached["ended"], "the fault came too late"
    began = time.monotonic()
    job = start()
    progress = first(f"{run}/attempt-2/progress.jsonl", job)
    until(lambda: progress.read_text().count("\n"), 10)
    line = json.loads(progress.read_text().splitlines()[0])
    assert job.wait(300) == 0
    same = (output / "history.csv").read_bytes() == (calm / "history.csv").read_bytes()
    resumed = (line["epoch"], line["step"]) > (reached["epoch"], reached["step"])
    return Told("driver killed, the command given again", same, resumed, time.monotonic() - began, orphans)


def in_this_session(folder: Path, runs: int, names: list[str]) -> list[Told]:
    """Faults of the session's master, all of them if none is named, so many times each."""
    from pyspark.sql import SparkSession

    from sparkdiff import FineTuner

    spark = SparkSession.builder.getOrCreate()
    pq.write_table(table(4000), folder / "rows.parquet")
    df = spark.read.parquet(f"file://{folder}/rows.parquet")
    model = pipeline(df)

    def fit(run_id: str) -> dict[str, Any]:
        tuner = FineTuner(
            pipeline=model,
            cacheDir=str(folder),
            checkpointDir=str(folder / "runs"),
            runId=run_id,
            loss=slow_poisson,
            metric="poisson",
            **LASTING,
        )
        return outcome(tuner.fit(df))

    calm = fit("calm")
    local = spark.sparkContext.master.startswith("local[")
    return [
        suffer(fit, calm, folder / "runs", name, *fault, delay=1.5 * random.random())
        for name, fault in (LOCAL if local else CLUSTER).items()
        if not names or name in names
        for _ in range(runs)
    ]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    told = in_this_session(where, int(sys.argv[2]), sys.argv[3:])
    (where / "told.json").write_text(json.dumps([asdict(t) for t in told]))
