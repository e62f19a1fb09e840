"""What does a row more cost, in time and in memory?

A fine-tuning through the public interface (VectorAssembler, StandardScaler, LogisticRegression; one candidate, batches of 4,096,
validation rows 10%), on more and more rows, each in a process of its own with a JVM of its own. Per phase: CPU seconds of the
whole tree of processes, wall seconds, and the largest memory of the tree: of the JVM, of all others, and the pages of mapped
files, which the system takes back when it needs them. An epoch of training must take the same time per row within 15%, and the
memory beside the rows that are in it must stay within 10%.

A cost model is fitted to these runs by least squares of relative errors: seconds of a phase = a + b * rows + c * rows * columns,
that of an epoch to the runs whose rows stay in memory. It is checked on runs that it was not fitted to, within 25%.

Beside them two other kinds of rows: `validation`, most of which are held out (85%), and `categories`, of a StringIndexer and a
OneHotEncoder for so many, in sparse rows; their number stands in the place of the columns.

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
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import append_lines, exit_code, folder_of, markdown, parse, parser, read_lines, write

NUMBERS, VALIDATION, CATEGORIES = "numbers", "validation", "categories"


class Size(NamedTuple):
    """Of a run, and the kind of its rows."""

    rows: int
    columns: int
    processes: int = 1
    kind: str = NUMBERS


FITTED = [
    Size(100_000, 50),
    Size(1_000_000, 50),
    Size(10_000_000, 50),
    Size(100_000, 10),
    Size(1_000_000, 10),
    Size(1_000_000, 200),
]
CHECKED = [Size(3_000_000, 30), Size(500_000, 120)]
SEVERAL = [Size(1_000_000, 50, 2), Size(10_000_000, 50, 2), Size(1_000_000, 50, 4)]
OTHERS = [
    Size(1_000_000, 100_000, 1, CATEGORIES),
    Size(10_000_000, 100_000, 1, CATEGORIES),
    Size(12_000_000, 10, 1, VALIDATION),
]
CITIES, NUMBER = 100, 5
"""Categories of a second column, and numbers, beside the many categories."""
EPOCHS, MOST, ROWS = 3, 30, 3_000_000
"""An epoch of few rows is short: there are more of them, until so many rows were trained on."""
TIME, MEMORY, MODEL = 0.15, 0.10, 0.25
"""Bounds: of the time of a row in an epoch, of the memory beside kept rows, of the cost model."""
HEAP, OPTIONS = "1g", "-Xms1g -XX:+AlwaysPreTouch"
"""Of the JVM, which takes its heap at once: when it does so does not depend on the rows alone."""
EVERY = 0.1
"""Seconds between two looks at the processes."""


# One run in a process of its own ----------------------------------------------------------------------------------------


class Used(NamedTuple):
    """What a process and those below it have used: CPU seconds, and bytes of memory now."""

    cpu: float
    java: int
    others: int
    mapped: int


def tree(root: int) -> Used:
    below, figures = defaultdict(list), {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
            if (folder / "exe").readlink().name == "java" and not name.endswith("(java"):
                continue  # a JVM that is about to start another program: its memory is the JVM's
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        except OSError:  # it has just ended
            continue
        fields = rest.split()
        below[int(fields[1])].append(int(folder.name))
        anon, shared, files = (1024 * int(status.get(f"Rss{n}", "0").split()[0]) for n in ("Anon", "Shmem", "File"))
        figures[int(folder.name)] = sum(map(int, fields[11:15])), name.endswith("(java"), anon + shared, files
    ticks = java = others = mapped = 0
    todo = [root]
    while todo:
        pid = todo.pop()
        spent, is_java, own, files = figures.get(pid, (0, False, 0, 0))
        ticks, mapped = ticks + spent, mapped + files
        java, others = (java + own, others) if is_java else (java, others + own)
        todo += below[pid]
    return Used(ticks / os.sysconf("SC_CLK_TCK"), java, others, mapped)


class Watch:
    """The memory of this process and those below it, all the time."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Used]] = []
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.end.wait(EVERY):
            self.seen.append((time.monotonic(), tree(os.getpid())))

    def between(self, first: "Moment", last: "Moment") -> dict[str, float]:
        own = [used for at, used in self.seen if first[0] <= at <= last[0]]
        own = own or [min(self.seen, key=lambda s: abs(s[0] - first[0]))[1]]
        peak = {name: max(getattr(used, name) for used in own) for name in ("java", "others", "mapped")}
        whole = max(used.java + used.others for used in own)
        return {"wall": last[0] - first[0], "cpu": last[1] - first[1], "bytes": whole, **peak}


Array = np.ndarray[Any, Any]
Moment = tuple[float, float]
"""The clock, and the CPU seconds of all processes."""


def now() -> Moment:
    return time.monotonic(), tree(os.getpid()).cpu


def made(folder: Path, rows: int, columns: int, kind: str = NUMBERS) -> Path:
    """Rows with a label that depends on all columns, as Parquet files of a million rows."""
    path = folder / f"rows-{rows}-{columns}{'-categories' if kind == CATEGORIES else ''}"
    if path.exists():
        return path
    random = np.random.default_rng(0)
    some = categories if kind == CATEGORIES else numbers
    slopes = random.normal(size=columns)
    part = path.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    for i, first in enumerate(range(0, rows, 1_000_000)):
        table, margin = some(min(1_000_000, rows - first), slopes, random)
        table["label"] = (random.random(len(margin)) < 1 / (1 + np.exp(-margin))).astype(float)
        pq.write_table(pa.table(table), part / f"part-{i:03}.parquet", row_group_size=100_000)
    part.rename(path)
    return path


def numbers(n: int, slopes: Array, random: np.random.Generator) -> tuple[dict[str, Any], Array]:
    """Columns and margins."""
    x = random.normal(size=(len(slopes), n))
    return {f"x{j}": row for j, row in enumerate(x)}, slopes / np.sqrt(len(slopes)) @ x + 0.5 * x[0] * x[1]


def categories(n: int, slopes: Array, random: np.random.Generator) -> tuple[dict[str, Any], Array]:
    """Columns and margins; the first hundredth of the categories has a fifth of the rows."""
    item, city = (len(slopes) * random.random(n) ** 3).astype(int), random.integers(CITIES, size=n)
    x = random.normal(size=(NUMBER, n))
    table = {f"x{j}": row for j, row in enumerate(x)} | {"item": item.astype(str), "city": city.astype(str)}
    return table, slopes[item] + x[0] + 0.02 * (city - CITIES / 2)


def fitted_pipeline(df: Any, columns: int, kind: str) -> Any:
    """The stages that know the categories have seen all rows, the others some."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler

    if kind != CATEGORIES:
        stages = [
            VectorAssembler(inputCols=[f"x{j}" for j in range(columns)], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="features"),
            LogisticRegression(regParam=0.1, maxIter=2),
        ]
        return Pipeline(stages=stages).fit(df.limit(50_000))
    names = ["item", "city"]
    indexed, coded = [f"{n}Index" for n in names], [f"{n}Code" for n in names]
    indexer = StringIndexer(inputCols=names, outputCols=indexed, handleInvalid="keep").fit(df)
    stages = [
        indexer,
        OneHotEncoder(inputCols=indexed, outputCols=coded),
        VectorAssembler(inputCols=[*coded, *(f"x{j}" for j in range(NUMBER))], outputCol="features"),
        LogisticRegression(regParam=0.01, maxIter=2),
    ]
    return Pipeline(stages=stages).fit(df.limit(50_000))


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


def one(folder: Path, size: Size) -> dict[str, Any]:
    """A fine-tuning of so many rows, phase by phase."""
    from pyspark.sql import SparkSession

    import sparkdiff
    from sparkdiff.machine import resources

    rows, columns, processes, kind = size
    path = made(folder, rows, columns, kind)
    conf = {
        "spark.ui.enabled": "false",
        "spark.driver.memory": HEAP,
        "spark.driver.extraJavaOptions": OPTIONS,
        "spark.log.level": "ERROR",
        "spark.local.dir": str(folder),
        "spark.sql.shuffle.partitions": "8",
    }
    spark = SparkSession.builder.master("local[2]").config(map=conf).getOrCreate()
    df = spark.read.parquet(f"file://{path}")
    model = fitted_pipeline(df, columns, kind)
    watch, marks, epochs = Watch(), marks_of_a_run(), max(EPOCHS, min(ROWS // rows, MOST))
    cache = folder / f"cache-{rows}-{columns}-{processes}"
    tuner = sparkdiff.FineTuner(
        model,
        recipe="fast",
        batchSize=4096,
        maxEpochs=epochs,
        patience=epochs,
        numProcesses=processes,
        validationFraction=0.85 if kind == VALIDATION else 0.1,
        cacheDir=str(cache),
        verbosity=0,
        callbacks=[marks],
    )
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
        "rows": rows,
        "columns": columns,
        "processes": processes,
        "kind": kind,
        "limit": resources.memory_bytes(),
        "heap": HEAP,
        "pieces": pieces(cache),
        "files": sum(file.stat().st_size for file in cache.rglob("*.parquet")),
        "phases": found,
        "decision": summary.decision,
        "stream": summary.stream,
    }


def pieces(cache: Path) -> int:
    """Bytes of the largest piece of each virtual shard of the training rows, decoded."""
    manifest = json.loads(next(cache.rglob("manifest.json")).read_text())
    row = 8 * sum(column["width"] for column in manifest["columns"])
    return row * sum(max(piece["rows"] for piece in shard) for shard in manifest["splits"]["train"])


# All of them ------------------------------------------------------------------------------------------------------------


def kept(run: dict[str, Any]) -> float:
    """Bytes of the rows that stay in memory, as `Cache.fits_in_memory` decides; 0 where they are read from files."""
    if run.get("kind") == CATEGORIES:
        return 4 * run["files"] if 4 * run["files"] < run["limit"] // 2 else 0
    size = 8 * run["rows"] * (run["columns"] + 2)
    return size if size < run["limit"] // 2 else 0


def held(run: dict[str, Any]) -> float:
    """Bytes of the rows of numbers that are in memory at a time: all that are kept, or a piece of each virtual shard, and the
    next one where the system doesn't hold it.
    """
    from sparkdiff.data.stream.decoded_rows import LARGE

    return kept(run) or run["pieces"] * (2 if 8 * run["rows"] * (run["columns"] + 4) > LARGE * run["limit"] else 1)


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


def run_all(given: argparse.Namespace, wanted: list[Size]) -> list[dict[str, Any]]:
    """The runs, those in --cells as they are there."""
    known = {}
    for run in (r for r in read_lines(given.cells) if "pieces" in r):  # before, it was not measured
        known[Size(run["rows"], run["columns"], run["processes"], run.get("kind", NUMBERS))] = run
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
        print(
            f"{key.rows:,} x {key.columns} {key.kind}, {key.processes} processes: {known[key]['phases']['whole']['cpu']:.0f} s",
            flush=True,
        )
        append_lines(given.cells, known[key])
        for used in folder.glob("cache-*"):
            subprocess.run(["rm", "-rf", str(used)], check=True)
    return [known[key] for key in wanted]


def report(runs: list[dict[str, Any]]) -> str:
    rows = []
    for r in runs:
        phases, n = r["phases"], r["rows"]
        kind = "" if r.get("kind", NUMBERS) == NUMBERS else f" {r['kind']}"
        rows.append(
            [
                f"{n:,} x {r['columns']:,}{kind}",
                str(r["processes"]),
                f"{phase(r, 'beside'):.1f}",
                f"{1e6 * phase(r, 'beside') / n:.2f}",
                f"{phase(r, 'epoch'):.2f}",
                f"{1e6 * phase(r, 'epoch') / n:.2f}",
                f"{phases['epoch']['wall']:.2f}",
                *(f"{phases['whole'][m] / 2**20:,.0f}" for m in ("bytes", "java", "others", "mapped")),
                f"{kept(r) / 2**20:,.0f}",
            ]
        )
    head = [
        "rows",
        "processes",
        "all but training, s",
        "us per row",
        "epoch, s",
        "us per row",
        "wall, s",
        "peak, MiB",
        "JVM",
        "others",
        "mapped files",
        "rows kept, MiB",
    ]
    return markdown(head, rows)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="where to write rows and caches; some 10 GB")
    options.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the runs that are done")
    options.add_argument("--one", nargs=4, metavar=("ROWS", "COLUMNS", "PROCESSES", "KIND"), help=argparse.SUPPRESS)
    options.add_argument(
        "--sizes",
        nargs="+",
        choices=list(groups := {"fitted": FITTED, "checked": CHECKED, "several": SEVERAL, "others": OTHERS}),
        default=list(groups),
    )
    given = parse(options)
    if given.one:
        *figures, kind = given.one
        print(json.dumps(one(given.folder, Size(*map(int, figures), kind))))
        return 0
    if given.smoke:
        groups = {"fitted": [Size(4000, 4), Size(8000, 4), Size(8000, 8)], "checked": [Size(6000, 6)], "several": []}
        groups["others"] = [Size(8000, 2000, 1, CATEGORIES), Size(8000, 4, 1, VALIDATION)]
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
        beside = [r["phases"]["train"]["bytes"] - held(r) for r in same]
        figures |= {"time": max(per_row) / min(per_row) - 1, "memory": max(beside) / min(beside) - 1}
        missed += [name for name, bound in (("time", TIME), ("memory", MEMORY)) if figures[name] > bound]
        print(
            f"\ntime of a row in an epoch: {figures['time']:+.0%} from least to most; "
            f"memory beside the rows in it {figures['memory']:+.0%}"
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
