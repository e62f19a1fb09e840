"""How fast is the stream next to indexing a tensor in memory?

Shuffled batches of a cache made with pyarrow, from both back ends, from memory and from files, against
`x.index_select(0, rows)` on tensors that are already there, in the same run. The ratio is that of the CPU time per row; prints a
table, writes JSON, and fails where a later epoch from memory costs more than twice the baseline.

    python benchmarks/stream.py --rows 64000 --features 30 500 --batch 128 --out stream.json
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import exit_code, markdown, parse, parser, write

from sparkdiff.data.stream import petastorm
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.manifest import FORMAT

VIRTUAL_SHARDS, PIECES, SCALARS = 8, 2, ("label", "weight")
BOUND = 2.0


def write_cache(folder: Path, rows: int, features: int) -> None:
    random = np.random.default_rng(0)
    n = rows // (VIRTUAL_SHARDS * PIECES)
    offsets = np.arange(0, n * features + 1, features, dtype=np.int32)
    shards: list[list[dict[str, Any]]] = [[] for _ in range(VIRTUAL_SHARDS)]
    (folder / "train").mkdir()
    for v in range(VIRTUAL_SHARDS):
        for i in range(PIECES):
            table = {"c0": pa.ListArray.from_arrays(offsets, random.normal(size=n * features))}
            table |= {name: random.normal(size=n) for name in SCALARS}
            path = f"train/shard-{v:03}-{i:03}.parquet"
            pq.write_table(pa.table(table), folder / path, use_dictionary=False)  # as Spark is told to
            data = (folder / path).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            shards[v].append({"path": path, "rows": n, "bytes": len(data), "sha256": sha256})
    columns = [{"name": "c0", "column": "features", "kind": "dense", "width": features}]
    columns += [{"name": name, "column": name, "kind": "scalar", "width": 1} for name in SCALARS]
    manifest = {"format": FORMAT, "fingerprint": "", "virtualShards": VIRTUAL_SHARDS, "columns": columns}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": {"train": shards}}))


def seconds(run: Callable[[], object]) -> float:
    """CPU time of all threads: on a shared machine the wall clock measures the neighbours."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(folder: Path, batch: int, repeats: int) -> dict[str, Any]:
    with Stream(folder, backend="arrow") as stream:
        rows = stream.rows("train")
        table = next(stream.batches("train", batchSize=rows))
    tensors = [x.clone() for x in table.values() if isinstance(x, torch.Tensor)]
    results: list[dict[str, Any]] = []

    def index() -> None:
        for part in torch.randperm(rows).chunk(-(-rows // batch)):
            for x in tensors:
                x.index_select(0, part)

    def epoch(stream: Stream, number: int) -> None:
        for _ in stream.batches("train", batchSize=batch, epoch=number):
            pass

    def compare(name: str, run: Callable[[int], None]) -> None:
        """The median over runs of (time / mean time of the baseline just before and after)."""
        near, times = [seconds(index)], []
        for number in range(repeats):
            times.append(seconds(lambda: run(number)))  # noqa: B023 - called at once
            near.append(seconds(index))
        ratio = statistics.median(2 * t / (a + b) for t, a, b in zip(times, near, near[1:], strict=False))
        results.append({"stream": name, "ratio": ratio, "rowsPerSecond": rows / min(times)})

    def compare_backend(backend: str) -> None:
        with Stream(folder, backend=backend) as stream:

            def load(number: int) -> None:
                stream.close()
                epoch(stream, number)

            compare(f"{backend}, memory, first epoch", load)
            compare(f"{backend}, memory, later", lambda number: epoch(stream, number))
        with Stream(folder, backend=backend, inMemory=False) as stream:
            compare(f"{backend}, files", lambda number: epoch(stream, number))

    index()
    compare("index_select", lambda _: index())
    refused = petastorm.refusal(folder, ())
    for backend in ("arrow",) if refused else ("arrow", "petastorm"):
        compare_backend(backend)
    shape = {"rows": rows, "features": tensors[0].shape[1], "batch": batch}
    return shape | {"petastorm": refused or "used", "results": results}


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=64_000)
    p.add_argument("--features", type=int, nargs="+", default=[30, 500])
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--repeats", type=int, default=9)
    given = parse(p, rows=1024, repeats=1)
    torch.set_num_threads(1)  # two that share a core wait for each other, and then that is what is measured
    reports = []
    for features in given.features:
        with tempfile.TemporaryDirectory() as folder:
            write_cache(Path(folder), given.rows, features)
            reports.append(measure(Path(folder), given.batch, given.repeats))
    print(f"{given.rows:,} rows in batches of {given.batch}; CPU time of a row against index_select's\n")
    rows = [(report["features"], r) for report in reports for r in report["results"]]
    cells = [[str(n), r["stream"], f"{r['ratio']:.2f}", f"{r['rowsPerSecond']:,.0f}"] for n, r in rows]
    print(markdown(["features", "stream", "ratio", "rows per CPU s"], cells))
    figures = {f"{n} features, {r['stream']}": r["ratio"] for n, r in rows}
    if reports[0]["petastorm"] != "used":
        print(f"\nPetastorm is left out: {reports[0]['petastorm']}")
    write(given, reports, figures)
    slow = [name for name, ratio in figures.items() if name.endswith("later") and ratio > BOUND]
    print(
        f"\nA later epoch from memory may cost {BOUND} times the baseline:", f"exceeded by {slow}" if slow else "kept"
    )
    return exit_code(given, slow)


if __name__ == "__main__":
    sys.exit(main())
