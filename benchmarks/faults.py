"""Kills and stalls the processes of a training, each fault several times, and prints the outcomes as a table.

    python benchmarks/faults.py --runs 3 --write docs/reliability.md

The faults are those of tests/processes, where CI tests each of them once.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "processes")]

import faults  # noqa: E402

HEAD = """# Reliability

Two processes train. At a random moment after the first checkpoint, one process of the run receives a real signal: SIGKILL, or
SIGSTOP for *stalled* (with a timeout of 12 s). The training must continue by itself from its last checkpoint; after a killed
driver it must continue when the same command is given again. It must end with the weights and the history of an undisturbed
run, bit for bit, and leave no process behind.

`make faults` makes this table. `tests/processes` tests each fault once.

| where | fault | runs | identical result | resumed | processes left behind | seconds, median (largest) |
|---|---|---|---|---|---|---|
"""


def row(where: str, told: list[faults.Told]) -> str:
    seconds = [t.seconds for t in told]
    cells = [
        where, told[0].fault, str(len(told)), f"{sum(t.identical for t in told)} of {len(told)}",
        f"{sum(t.resumed for t in told)} of {len(told)}", str(sum(len(t.orphans) for t in told)),
        f"{statistics.median(seconds):.0f} ({max(seconds):.0f})",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def on(master: str, runs: int, folder: Path) -> list[list[faults.Told]]:
    """The faults of a master, each `runs` times, grouped by fault."""
    folder.mkdir()
    faults.submit(Path(faults.__file__), str(folder), str(runs), master=master, timeout=3600)
    told = [faults.Told(**t) for t in json.loads((folder / "told.json").read_text())]
    return [told[i : i + runs] for i in range(0, len(told), runs)]


def drivers(runs: int, folder: Path) -> list[faults.Told]:
    calm, caches = folder / "calm", folder / "caches"
    job = ROOT / "jobs" / "finetune.py"
    faults.submit(job, *faults.JOB, f"output.path={calm}", f"fineTuner.cacheDir={caches}")
    return [faults.kill_driver(folder / f"killed{i}", caches, calm, 1.5 * random.random()) for i in range(runs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = []
        for master in ("local[2]", "local-cluster[2,1,1024]"):
            rows += [row(f"`{master}`", told) for told in on(master, given.runs, Path(name) / master.partition("[")[0])]
        rows.append(row("`local[2]`", drivers(given.runs, Path(name))))
    text = HEAD + "".join(rows)
    print(text)
    if given.write:
        _, heading, rest = given.write.read_text().partition("\n## ")  # the part about full disks stays
        given.write.write_text(text + heading + rest)


if __name__ == "__main__":
    main()
