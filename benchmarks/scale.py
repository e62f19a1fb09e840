"""What does a row more cost, in time and in memory?

A fine-tuning through the public interface (VectorAssembler, StandardScaler, LogisticRegression; one candidate, batches of 4,096,
validation rows 10%), on more and more rows, each in a process of its own with a JVM of its own. Per phase: CPU seconds of the
whole tree of processes, wall seconds, and the largest resident size of the tree, the JVM's included. An epoch of training must
take the same time per row within 15%, and the memory beside the rows that are kept must stay within 10%.

A cost model is fitted to these runs by least squares of relative errors: seconds of a phase = a + b * rows + c * rows * columns,
that of an epoch to the runs whose rows stay in memory. It is checked on runs that it was not fitted to, within 25%.

Limit the memory around it, as `docker run --memory=4g` does, to see that it holds; the limit that sparkdiff sees is printed.

    python benchmarks/scale.py --cells scale.jsonl --folder /tmp/scale

Not with this repository's conf, whose JVM starts quickly and never compiles well: it takes twice as long here.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import exit_code, folder_of, markdown, parse, parser, write

FITTED: list[tuple[int, int, int]] = [
    (100_000, 50, 1), (1_000_000, 50, 1), (10_000_000, 50, 1), (100_000, 10, 1), (1_000_000, 10, 1), (1_000_000, 200, 1),
]  # fmt: skip
CHECKED: list[tuple[int, int, int]] = [(3_000_000, 30, 1), (500_000, 120, 1)]
SEVERAL: list[tuple[int, int, int]] = [(1_000_000, 50, 2), (10_000_000, 50, 2), (1_000_000, 50, 4)]
"""(rows, columns, processes)."""
EPOCHS, MOST, ROWS = 3, 30, 3_000_000
"""An epoch of few rows is short: there are more of them, until so many rows were trained on."""
TIME, MEMORY, MODEL = 0.15, 0.10, 0.25
"""Bounds: of the time of a row in an epoch, of the memory beside kept rows, of the cost model."""
HEAP = "1g"
EVERY = 0.1
"""Seconds between two looks at the processes."""


# One run in a process of its own ----------------------------------------------------------------------------------------


def tree(root: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process and of those below it."""
    below, figures = defaultdict(list), {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        below[int(fields[1])].append(int(folder.name))
        figures[int(folder.name)] = sum(map(int, fields[11:15])), int(fields[21])
    ticks = pages = 0
    todo = [root]
    while todo:
        pid = todo.pop()
        spent, resident = figures.get(pid, (0, 0))
        ticks, pages = ticks + spent, pages + resident
        todo += below[pid]
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """The memory of this process and those below it, all the time."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.end.wait(EVERY):
            self.seen.append((time.monotonic(), tree(os.getpid())[1]))

    def between(self, first: "Moment", last: "Moment") -> dict[str, float]:
        own = [size for at, size in self.seen if first[0] <= at <= last[0]]
        own = own or [min(self.seen, key=lambda s: abs(s[0] - first[0]))[1]]
        return {"wall": last[0] - first[0], "cpu": last[1] - first[1], "bytes": max(own)}


Moment = tuple[float, float]
"""The clock, and the CPU seconds of all processes."""


def now() -> Moment:
    return time.monotonic(), tree(os.getpid())[0]


def made(folder: Path, rows: int, columns: int) -> Path:
    """Rows with a label that depends on all columns, as Parquet files of a million rows."""
    path = folder / f"rows-{rows}-{columns}"
    if path.exists():
        return path
    random = np.random.default_rng(0)
    slopes = random.normal(size=columns) / np.sqrt(columns)
    part = path.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    for i, first in enumerate(range(0, rows, 1_000_000)):
        n = min(1_000_000, rows - first)
        x = random.normal(size=(columns, n))
        y = (random.random(n) < 1 / (1 + np.exp(-(slopes @ x + 0.5 * x[0] * x[1])))).astype(float)
        table = {f"x{j}": x[j] for j in range(columns)} | {"label": y}
        pq.write_table(pa.table(table), part / f"part-{i:03}.parquet", row_group_size=100_000)
    part.rename(path)
    return path


def marks_of_a_run() -> Any:
    """A callback that notes when phases and epochs began and ended."""
    import sparkdiff

    class Marks(sparkdiff.Events):
        def __init__(self) -> None:
            self.phases: dict[str, list[Moment]] = {}
            self.epochs: list[Moment] = []

        def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
            if name not in self.phases or seconds is not None:
                self.phases.setdefault(name, []).append(now())

        def on_epoch(self, row: Any) -> None:
            if row["epoch"] == len(self.epochs):
                self.epochs.append(now())

    return Marks()


def one(folder: Path, rows: int, columns: int, processes: int) -> dict[str, Any]:
    """A fine-tuning of so many rows, phase by phase."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import StandardScaler, VectorAssembler
    from pyspark.sql import SparkSession

    import sparkdiff
    from sparkdiff.machine import memory

    path = made(folder, rows, columns)
    conf = {
        "spark.ui.enabled": "false", "spark.driver.memory": HEAP, "spark.log.level": "ERROR", "spark.local.dir": str(folder),
        "spark.sql.shuffle.partitions": "8",
    }  # fmt: skip
    spark = SparkSession.builder.master("local[2]").config(map=conf).getOrCreate()
    df = spark.read.parquet(path.as_uri())
    names = [f"x{j}" for j in range(columns)]
    stages = [
        VectorAssembler(inputCols=names, outputCol="assembled"), StandardScaler(inputCol="assembled", outputCol="features"),
        LogisticRegression(regParam=0.1, maxIter=2),
    ]  # fmt: skip
    model = Pipeline(stages=stages).fit(df.limit(50_000))
    watch, marks, epochs = Watch(), marks_of_a_run(), max(EPOCHS, min(ROWS // rows, MOST))
    tuner = sparkdiff.FineTuner(
        model, recipe="fast", batchSize=4096, maxEpochs=epochs, patience=epochs, validationFraction=0.1, numProcesses=processes,
        cacheDir=str(folder / f"cache-{rows}-{columns}-{processes}"), verbosity=0, callbacks=[marks],
    )  # fmt: skip
    time.sleep(2 * EVERY)
    summary = tuner.fit(df).summary
    time.sleep(2 * EVERY)
    watch.end.set()
    watch.thread.join()
    found = {name: watch.between(seen[0], seen[-1]) for name, seen in marks.phases.items()}
    # The first epoch reads the rows; the others are what an epoch takes.
    found["epoch"] = watch.between(marks.epochs[1], marks.epochs[-1])
    found["epoch"] |= {k: found["epoch"][k] / (len(marks.epochs) - 2) for k in ("wall", "cpu")}
    every = [moment for seen in marks.phases.values() for moment in seen]
    found["whole"] = watch.between(min(every), max(every))
    return {
        "rows": rows, "columns": columns, "processes": processes, "limit": memory.total(), "heap": HEAP,
        "phases": found, "decision": summary.decision, "stream": summary.stream,
    }  # fmt: skip


# All of them ------------------------------------------------------------------------------------------------------------


def kept(run: dict[str, Any]) -> float:
    """Bytes of the rows that stay in memory, as `Cache.fits_in_memory` decides."""
    size = 8 * run["rows"] * (run["columns"] + 2)
    return size if size < run["limit"] // 2 else 0


def term(run: dict[str, Any]) -> list[float]:
    return [1.0, run["rows"], run["rows"] * run["columns"]]


def phase(run: dict[str, Any], name: str) -> float:
    """CPU seconds; `beside` is all but the training, of which `epoch` is one epoch."""
    if name == "beside":
        return float(run["phases"]["whole"]["cpu"] - run["phases"]["train"]["cpu"])
    return float(run["phases"][name]["cpu"])


def fitted(runs: list[dict[str, Any]], name: str) -> np.ndarray[Any, Any]:
    """Coefficients of 1, rows and rows * columns that make the sum of squares of relative errors least; none is negative."""
    from scipy.optimize import nnls

    y = np.array([phase(r, name) for r in runs])
    x = np.array([term(r) for r in runs]) / y[:, None]
    scale = np.abs(x).max(0)
    return np.asarray(nnls(x / scale, np.ones(len(y)))[0] / scale)


def run_all(given: argparse.Namespace, wanted: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """The runs, those in --cells as they are there."""
    known = {}
    if given.cells and given.cells.exists():
        for line in given.cells.read_text().splitlines():
            run = json.loads(line)
            known[run["rows"], run["columns"], run["processes"]] = run
    folder = folder_of(given)
    folder.mkdir(parents=True, exist_ok=True)
    for key in wanted:
        if key in known:
            continue
        command = [sys.executable, __file__, "--one", *map(str, key), "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{key}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        known[key] = json.loads(done.stdout.splitlines()[-1])
        print(f"{key[0]:,} x {key[1]}, {key[2]} processes: {known[key]['phases']['whole']['cpu']:.0f} s", flush=True)
        if given.cells:
            with given.cells.open("a") as file:
                file.write(json.dumps(known[key]) + "\n")
        for used in folder.glob("cache-*"):
            subprocess.run(["rm", "-rf", str(used)], check=True)
    return [known[key] for key in wanted]


def report(runs: list[dict[str, Any]]) -> str:
    rows = []
    for r in runs:
        phases, n = r["phases"], r["rows"]
        rows.append([
            f"{n:,} x {r['columns']}", str(r["processes"]), f"{phase(r, 'beside'):.1f}",
            f"{1e6 * phase(r, 'beside') / n:.2f}", f"{phase(r, 'epoch'):.2f}", f"{1e6 * phase(r, 'epoch') / n:.2f}",
            f"{phases['epoch']['wall']:.2f}", f"{phases['whole']['bytes'] / 2**20:,.0f}", f"{kept(r) / 2**20:,.0f}",
        ])  # fmt: skip
    head = [
        "rows",
        "processes",
        "all but training, s",
        "us per row",
        "epoch, s",
        "us per row",
        "wall, s",
        "peak, MiB",
        "rows kept, MiB",
    ]
    return markdown(head, rows)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="where to write rows and caches; some 10 GB")
    options.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the runs that are done")
    options.add_argument("--one", nargs=3, type=int, metavar=("ROWS", "COLUMNS", "PROCESSES"), help=argparse.SUPPRESS)
    options.add_argument(
        "--sizes", nargs="+", choices=("fitted", "checked", "several"), default=["fitted", "checked", "several"]
    )
    given = parse(options)
    if given.one:
        print(json.dumps(one(given.folder, *given.one)))
        return 0
    groups = {"fitted": FITTED, "checked": CHECKED, "several": SEVERAL}
    if given.smoke:
        groups = {"fitted": [(4000, 4, 1), (8000, 4, 1), (8000, 8, 1)], "checked": [(6000, 6, 1)], "several": []}
    found = {name: run_all(given, groups[name]) for name in given.sizes}
    every = [run for runs in found.values() for run in runs]
    print(
        f"\nmemory that sparkdiff sees: {every[0]['limit'] / 2**30:.1f} GiB; heap of the JVM {HEAP}\n\n{report(every)}"
    )
    missed = list[str]()
    figures = {
        f"epoch of {r['rows']:,} x {r['columns']}, us per row": 1e6 * phase(r, "epoch") / r["rows"] for r in every
    }
    same = [r for r in found.get("fitted", []) if r["columns"] == 50]
    if same:
        per_row = [phase(r, "epoch") / r["rows"] for r in same]
        beside = [r["phases"]["train"]["bytes"] - kept(r) for r in same]
        figures |= {"time": max(per_row) / min(per_row) - 1, "memory": max(beside) / min(beside) - 1}
        missed += [name for name, bound in (("time", TIME), ("memory", MEMORY)) if figures[name] > bound]
        print(
            f"\ntime of a row in an epoch: {figures['time']:+.0%} from least to most; "
            f"memory beside kept rows {figures['memory']:+.0%}"
        )
    for name in ("beside", "epoch") if "fitted" in found else ():
        # Rows that don't fit into memory are read from files in each epoch, which is another cost.
        there = [r for r in found["fitted"] if name == "beside" or kept(r)]
        known = fitted(there, name)
        print(f"\n{name}: {known[0]:.2f} s + {1e6 * known[1]:.3f} us per row + {1e9 * known[2]:.2f} ns per number")
        for r in found.get("checked", []):
            told, real = float(known @ term(r)), phase(r, name)
            print(f"  {r['rows']:,} x {r['columns']}: {told:.1f} s told, {real:.1f} s measured, {told / real - 1:+.0%}")
            if abs(told / real - 1) > MODEL:
                missed.append(f"{name} of {r['rows']:,} x {r['columns']}")
    if missed:
        print(f"\nmissed: {', '.join(missed)}")
    write(given, every, figures)
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
