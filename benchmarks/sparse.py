"""What does a wide sparse text pipeline cost in memory and time, and does tuning it help?

Tokenizer -> StopWordsRemover -> HashingTF(2^18) -> IDF -> LogisticRegression on documents drawn from a Zipf vocabulary, some of
whose words tell the label, and on a small real corpus: the docstrings of the installed packages, SciPy's against scikit-learn's.
Each training runs in a process of its own whose address space may grow by less than one dense batch would take; what it grows by
is compared with the cache and with vectors of the width. A loop written by hand (EmbeddingBag(sparse) and SparseAdam on the
finished products of counts and idf, with a validation pass an epoch) reads the same rows in the same process, and the two take
turns; prints ratios of CPU time, writes JSON, and fails above the bounds.

    python benchmarks/sparse.py --documents 200000 --out sparse.json
"""

import argparse
import dataclasses
import inspect
import json
import os
import pkgutil
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import exit_code, folder_of, parse, parser, write

WIDTH, VOCABULARY, WORDS, TELLING = 1 << 18, 200_000, 64, 0.2
CACHES, VECTORS = 1.5, 6
"""Bounds: growth over the started process, in uncompressed caches and in vectors of the width per candidate."""
SLOWER = {1024: 1.3, 128: 1.5}
"""Bounds: an epoch over one of the loop by hand, by batchSize."""
EPOCHS = 5
"""Epochs of which the median is taken."""
STOP = ("the", "of", "and", "to", "in", "is")


# Documents ------------------------------------------------------------------------------------------------------------


def invented(number: int, seed: int) -> pa.Table:
    """Documents of words that occur with frequency 1 / rank; a fifth of the words tell the label."""
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, VOCABULARY + 1) ** 1.05
    words = np.searchsorted(share.cumsum() / share.sum(), random.random(number * WORDS))
    telling = np.random.default_rng(0).normal(size=VOCABULARY) * (np.random.default_rng(1).random(VOCABULARY) < TELLING)
    margin = 0.4 * telling[words].reshape(number, WORDS).sum(1)
    label = (random.random(number) < 1 / (1 + np.exp(-margin))).astype(float)
    names = np.array([*STOP, *(f"w{i}" for i in range(len(STOP), VOCABULARY))])
    return pa.table({"text": [" ".join(row) for row in names[words].reshape(number, WORDS)], "label": label})


def real(packages: tuple[str, str]) -> pa.Table:
    """Paragraphs of the docstrings of two packages: of which of them is it?"""
    rows: dict[str, float] = {}
    for label, package in enumerate(packages):
        for found in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if "test" in found.name or ".externals" in found.name:
                continue
            try:
                module = import_module(found.name)
            except Exception:  # of what an optional package lacks
                continue
            for value in vars(module).values():
                if getattr(value, "__module__", "") == found.name and (text := inspect.getdoc(value)):
                    for part in text.split("\n\n"):
                        if len(part.split()) >= 8:
                            rows.setdefault(part, float(label))
    return pa.table({"text": list(rows), "label": list(rows.values())})


def pipeline(**head: Any) -> Any:
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import IDF, HashingTF, StopWordsRemover, Tokenizer

    return Pipeline(
        stages=[
            Tokenizer(inputCol="text", outputCol="all"),
            StopWordsRemover(inputCol="all", outputCol="words"),
            HashingTF(inputCol="words", outputCol="counts", numFeatures=WIDTH),
            IDF(inputCol="counts", outputCol="features"),
            LogisticRegression(**head),
        ]
    )


ORIGINALS: dict[str, dict[str, Any]] = {
    "underfitted": {"regParam": 1.0, "maxIter": 5},
    "overfitted": {"regParam": 0.0, "maxIter": 30},
}
"""The overfitted one sees a twentieth of the rows."""


def session() -> Any:
    from pyspark.sql import SparkSession

    conf = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "4",
        "spark.driver.memory": "4g",
        "spark.log.level": "ERROR",
    }
    return SparkSession.builder.master("local[2]").config(map=conf).getOrCreate()


def prepare(folder: Path, documents: int, packages: tuple[str, str]) -> None:
    """Write the rows and fit the originals."""
    spark = session()
    for corpus, table in (("invented", invented(documents, 2)), ("real", real(packages))):
        pq.write_table(table, folder / f"{corpus}.parquet")
        df = spark.read.parquet(f"file://{folder}/{corpus}.parquet")
        for name, head in ORIGINALS.items():
            rows = df.sample(0.05, 3) if name == "overfitted" else df
            model = pipeline(**head).fit(rows)
            model.write().overwrite().save(f"file://{folder}/{corpus}-{name}")
    spark.stop()


# One training in a process of its own -----------------------------------------------------------------------------------


def status(name: str, process: int | str = "self") -> int:
    """A figure of /proc/self/status, or of another process, in bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


class Peak:
    """The largest resident size while it runs, seen every 5 ms: VmHWM would count what was before."""

    def __enter__(self) -> "Peak":
        self.bytes, self.stop = status("VmRSS"), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.005):
            self.bytes = max(self.bytes, status("VmRSS"))

    def __exit__(self, *exception: Any) -> None:
        self.stop.set()
        self.thread.join()


def start(spark: Any) -> None:
    """Tune something tiny: what libraries load when they are first used belongs to the started process."""
    import torch

    import sparkdiff
    from sparkdiff.machine.resources import trim_memory

    rows = spark.range(400).selectExpr("'w' || id % 7 text", "cast(id % 2 as double) label")
    with tempfile.TemporaryDirectory() as folder:
        sparkdiff.FineTuner(pipeline=pipeline(maxIter=2).fit(rows), maxEpochs=1, cacheDir=folder, verbosity=0).fit(rows)
    weight = torch.zeros(1, requires_grad=True)
    torch.optim.LBFGS([weight]).step(lambda: (weight * weight).sum())  # imports torch's compiler
    trim_memory()


def one(folder: Path, corpus: str, original: str, recipe: str, batch: int, epochs: int, timed: bool) -> dict[str, Any]:
    """Tune an original with less address space than a dense batch would take; what it took, and what came of it."""
    import torch
    from pyspark.ml import PipelineModel

    import sparkdiff
    from sparkdiff.training.distributed import launch

    torch.set_num_threads(1)
    spark = session()
    df = spark.read.parquet(f"file://{folder}/{corpus}.parquet")
    model = PipelineModel.load(f"file://{folder}/{corpus}-{original}")
    tuner = sparkdiff.FineTuner(
        pipeline=model,
        maxEpochs=epochs,
        recipe=recipe,
        batchSize=batch,
        cacheDir=str(folder / f"cache-{corpus}-{original}"),
        verbosity=0,
    )
    start(spark)
    before, space, dense = status("VmRSS"), status("VmSize"), 8 * batch * WIDTH
    seen: list[Any] = []
    run = launch.run
    launch.run = lambda assignment, *given: seen.append(assignment) or run(assignment, *given)  # type: ignore[func-returns-value]
    resource.setrlimit(resource.RLIMIT_AS, (space + dense * 9 // 10, resource.RLIM_INFINITY))
    try:
        torch.empty(dense, dtype=torch.int8)
        raise AssertionError("a dense batch fits into the limit")
    except RuntimeError:
        pass
    with Peak() as peak:
        summary = tuner.fit(df).summary
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    spark.stop()
    [assignment] = seen
    cache = sum(pq.ParquetFile(path).read().nbytes for path in assignment.cache.rglob("*.parquet"))  # 12 bytes an entry
    candidates = int(summary.history.candidate.max()) + 1
    return {
        "corpus": corpus,
        "original": original,
        "recipe": recipe,
        "batchSize": batch,
        "candidates": candidates,
        "decision": summary.decision,
        "gain": summary.gain,
        "z": summary.z,
        "metrics": summary.metrics["validation"],
        "epochs": int(summary.history.epoch.max()),
        "timings": summary.timings,
        "cache": cache,
        "denseBatch": dense,
        "grown": peak.bytes - before,
        "allowed": int(CACHES * cache + VECTORS * candidates * 8 * WIDTH),
        "slower": against_a_loop_by_hand(assignment) if timed else None,
    }


def against_a_loop_by_hand(assignment: Any) -> float:
    """CPU time of an epoch of the first candidate over one of the loop by hand, which take turns; of medians."""
    import torch
    import torch.nn.functional as F

    from sparkdiff.data.stream.batches import Stream
    from sparkdiff.evaluation.split_batches import Data, rows_at_once
    from sparkdiff.stages.weighing import IDF
    from sparkdiff.training.loop import train
    from sparkdiff.training.preparation import resolve_objectives
    from sparkdiff.training.training_run import Training

    options = dataclasses.replace(assignment.options, maxEpochs=EPOCHS + 1, patience=EPOCHS + 1)
    start = dataclasses.replace(assignment.start, recipes=assignment.start.recipes[:1])
    one = dataclasses.replace(assignment, options=options, start=start)
    network, batch = assignment.network, options.batchSize
    [idf] = (network.module(i).idf.detach() for i in network.positions if isinstance(network.module(i), IDF))
    with Stream(assignment.cache, backend=assignment.backend, inMemory=True, seed=0) as stream:
        data = Data(stream, assignment.columns, rows=rows_at_once(network, stream))
        [name] = assignment.columns.values()
        rows = {split: next(stream.batches(split, batchSize=1 << 40)) for split in ("train", "validation")}
        x, y = {}, {}
        for split, table in rows.items():
            counts: Any = table[name]
            x[split], y[split] = counts.with_values(counts.values * idf[counts.indices]), table["label"]
        bag = torch.nn.EmbeddingBag(WIDTH, 1, mode="sum", sparse=True, include_last_offset=True, dtype=torch.float64)
        bag.weight.data.copy_(network.head.coefficientMatrix.detach().T)
        bias = network.head.interceptVector.detach().clone().requires_grad_()
        slow = torch.optim.SparseAdam(bag.parameters(), lr=1e-3), torch.optim.Adam([bias], lr=1e-3)

        def loss(part: Any, label: Any, reduction: str) -> Any:
            margin = bag(part.indices, part.offsets, per_sample_weights=part.values)[:, 0] + bias
            return F.binary_cross_entropy_with_logits(margin, label, reduction=reduction)

        def by_hand() -> None:
            for at in torch.randperm(len(y["train"])).split(batch):
                for optimizer in slow:
                    optimizer.zero_grad()
                loss(x["train"].take(at), y["train"][at], "mean").backward()
                for optimizer in slow:
                    optimizer.step()
            with torch.no_grad():
                for at in torch.arange(len(y["validation"])).split(8192):
                    loss(x["validation"].take(at), y["validation"][at], "sum")

        ours: list[float] = []
        theirs: list[float] = []
        mark = time.process_time()

        def on_step(training: Training) -> None:
            nonlocal mark
            if training.step == 0:
                ours.append(time.process_time() - mark)
                mark = time.process_time()
                by_hand()
                theirs.append(time.process_time() - mark)
                mark = time.process_time()

        objective, metric = resolve_objectives(options, network, assignment.label)
        train(one.training(), data, objective, metric, on_step)
    return statistics.median(ours[1:]) / statistics.median(theirs[1:])  # the first reads the files


# All of them ------------------------------------------------------------------------------------------------------------

TRIALS = (
    ("invented", "underfitted", "fast", 1024, True),
    ("invented", "underfitted", "fast", 128, True),
    ("invented", "underfitted", "default", 1024, False),
    ("invented", "overfitted", "default", 1024, False),
    ("real", "underfitted", "default", 128, False),
    ("real", "overfitted", "default", 128, False),
)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--documents", type=int, default=200_000)
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--folder", type=Path, help="keep rows, originals and caches here, and take them from here")
    p.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    a = parse(p, documents=2_000, epochs=1)
    folder = folder_of(a)
    if a.one:
        corpus, original, recipe, batch = a.one
        timed = (corpus, original, recipe, int(batch), True) in TRIALS
        print("FOUND " + json.dumps(one(folder, corpus, original, recipe, int(batch), a.epochs, timed)))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "real-overfitted").exists():
        prepare(folder, a.documents, ("scipy.linalg", "sklearn.tree") if a.smoke else ("scipy", "sklearn"))
    found = []
    for corpus, original, recipe, batch, _ in (TRIALS[0], TRIALS[-1]) if a.smoke else TRIALS:
        command = [sys.executable, __file__, "--folder", str(folder), "--epochs", str(a.epochs)]
        # A thread's arena of its own would take 64 MiB of address space, whatever lies in it.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [*command, "--one", corpus, original, recipe, str(batch)], env=environment, capture_output=True, text=True
        )
        line = next((x for x in done.stdout.splitlines() if x.startswith("FOUND ")), None)
        if line is None:
            raise SystemExit(done.stderr)
        t = json.loads(line.removeprefix("FOUND "))
        found.append(t)
        m = t["metrics"]
        print(
            f"{corpus:9}{original:12}{recipe:8} batch {batch:5}: grown {t['grown'] / 2**20:6.0f} MiB of "
            f"{t['allowed'] / 2**20:6.0f} allowed (cache {t['cache'] / 2**20:.0f}), "
            f"{m['before']:.4f} -> {m['after']:.4f} {t['decision']}"
            + (f", epoch {t['slower']:.2f} of a loop by hand" if t["slower"] else ""),
            flush=True,
        )
    figures = {}
    for t in found:
        name = f"{t['corpus']}, {t['original']}, {t['recipe']}, batch {t['batchSize']}"
        figures[f"{name}, memory over the bound"] = t["grown"] / t["allowed"]
        if t["slower"] is not None:
            figures[f"{name}, epoch over a loop by hand"] = t["slower"]
    write(a, {"width": WIDTH, "trials": found}, figures)
    wrong = [t for t in found if t["corpus"] == "invented" and t["grown"] > t["allowed"]]
    wrong += [t for t in found if t["slower"] is not None and t["slower"] > SLOWER[t["batchSize"]]]
    wrong += [t for t in found if t["metrics"]["after"] > t["metrics"]["before"]]
    if wrong:
        print(f"above the bounds: {[(t['corpus'], t['original'], t['recipe'], t['batchSize']) for t in wrong]}")
    return exit_code(a, wrong)


if __name__ == "__main__":
    sys.exit(main())
