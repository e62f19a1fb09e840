"""Eight threads ask a saved scorer for a while, in a process without Spark; a test runs this.

    python -m tests.support.serving_load FOLDER SECONDS

Prints as JSON how many requests there were, how many answers were wrong, and by how many MiB the process grew meanwhile.
"""

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

import torch
from pyspark import SparkContext

from sparkdiff import Scorer

THREADS = 8
ROWS = 2310


def request(number: int) -> dict[str, object]:
    """A row, one of ROWS; unseen text is never the same, so that what remembers text would grow."""
    i = number % ROWS
    some = random.Random(i)
    kind = "abc"[i % 3] if i % 7 else f"unseen {number}"
    return {"kind": kind, "a": some.gauss(0, 1), "b": some.gauss(0, 9), "c": None if i % 11 == 0 else 7.0}


def resident() -> float:
    """MiB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    torch.set_num_threads(1)
    scorer, seconds = Scorer.load(sys.argv[1]), float(sys.argv[2])
    wished = [str(scorer.predict(request(i))) for i in range(ROWS)]
    wrong, asked = [0] * THREADS, [0] * THREADS

    def ask(thread: int) -> None:
        number, until = thread, time.monotonic() + seconds
        while time.monotonic() < until:
            wrong[thread] += str(scorer.predict(request(number))) != wished[number % ROWS]
            number += THREADS
            asked[thread] += 1

    def all_at_once() -> None:
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_at_once()  # memory that the first requests need stays
    before = resident()
    all_at_once()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    started = SparkContext._gateway is not None or SparkContext._active_spark_context is not None
    grown = resident() - before
    print(
        json.dumps(
            {"requests": sum(asked), "wrong": sum(wrong), "grown": grown, "children": len(children), "spark": started}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
