"""How fast is a store of many runs? Made of copies of rows as a fine-tuning adds them, then compacted, listed and asked.

SPARK_CONF_DIR=conf python benchmarks/run_store.py --runs 100000
"""

import datetime
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import exit_code, markdown, parse, parser, write

FILES = 100
"""So many of the runs are files of their own, as those since the last compaction."""


def run_of(number: int, noon: datetime.datetime) -> dict[str, Any]:
    """A row like that of a fine-tuning with four candidates of thirty epochs; each tenth model descends from the one before."""
    curves = [
        {"candidate": c, "epoch": e, "value": 1.0 / (e + c + 1 + number % 7)} for c in range(4) for e in range(30)
    ]
    tried = [
        {"kind": "candidate", "name": f"adam 0.00{c}", "value": 0.1 * c, "seconds": None, "outcome": ""}
        for c in range(4)
    ]
    return {
        "id": f"{number:032x}",
        "schemaVersion": 1,
        "finished": noon + datetime.timedelta(seconds=number),
        "verb": "finetune",
        "model": f"{number:064x}",
        "parent": f"{number - 1 if number % 10 else -number % 10**9:064x}",
        "data": f"{number % 50:064x}",
        "decision": "tuned",
        "kept": number % 3 == 0,
        "reason": "the best epoch's gain is larger than chance explains",
        "metric": "logLoss",
        "metricDirection": "smaller",
        "before": 0.5,
        "after": 0.4,
        "gain": (number % 1000) / 1000,
        "p": 0.001,
        "curves": curves,
        "tried": tried,
        "options": '{"maxEpochs": 30}',
        "evidence": "{}",
        "timings": {"train": 1.0},
        "seconds": 9.0,
        "coreSeconds": 12.0,
        "warnings": 0,
        "redacted": True,
        "stages": [],
        "tags": {"team": f"t{number % 20}"},
    }


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = f()
    return time.perf_counter() - start, found


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=100_000)
    given = parse(options, runs=300)
    from pyspark.sql import SparkSession

    from sparkdiff.history import run_store, run_table
    from sparkdiff.history.lineage import lineage

    noon = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old = [run_of(i, noon) for i in range(given.runs - FILES)]
        pq.write_table(pa.Table.from_pylist(old, run_table.SCHEMA), folder / "runs-old.parquet")
        one, _ = timed(lambda: [run_store.add(folder, run_of(given.runs - FILES + i, noon)) for i in range(FILES)])
        conf = {"spark.ui.enabled": "false", "spark.log.level": "ERROR", "spark.sql.shuffle.partitions": "4"}
        start, _ = timed(SparkSession.builder.master("local[2]").config(map=conf).getOrCreate)
        where = "gain > 0.25 and tags['team'] = 't7'"
        ask = lambda: run_table.list_runs(  # noqa: E731
            folder, run_store.select(name, where, compact_first=False)[1], "gain", 50, as_json=False
        )
        plain, _ = timed(lambda: run_table.list_runs(folder, None, "gain", 50, as_json=False))
        first, lines = timed(ask)
        again, _ = timed(ask)
        rows = None
        why, found = timed(lambda: lineage("m", f"{given.runs - 1:064x}", folder))
        packed, rows = timed(lambda: run_store.compact(folder))
        size = sum(f.stat().st_size for f in folder.iterdir())
    assert rows == given.runs and len(lines) > 1 and found.steps
    results = [
        ["add a run", one / FILES],
        ["`runs`, all", plain],
        ["start Spark", start],
        ["`runs --where`, the first question", first],
        ["`runs --where`, another", again],
        ["`why`", why],
        ["`--compact`", packed],
    ]
    print(f"{given.runs:,} runs, {size / 1e6:,.1f} MB")
    print(markdown(["", "seconds"], [[name, f"{seconds:.3g}"] for name, seconds in results]))
    write(given, results, {name: float(seconds) for name, seconds in results})
    return exit_code(given, [])


if __name__ == "__main__":
    sys.exit(main())
