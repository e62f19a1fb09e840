"""Kills and stalls the processes of a training, each fault several times, and prints the outcomes as a table.

    python benchmarks/faults.py --runs 3 --write docs/measured/reliability.md

The faults are those of `tests/support/faults.py`; CI tests each of them once.
"""

import dataclasses
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, exit_code, parse, parser, write

sys.path.insert(0, str(ROOT))

from tests.support import faults

HEAD = """# Measured: killed and stalled processes

Two processes train. At a random moment after the first checkpoint, one process of the run receives a real signal: SIGKILL,
or SIGSTOP for *stalled* (with a timeout of 12 s). The training must continue by itself from its last checkpoint, after a
killed driver when the same command is given again. It must end with the weights and the history of an undisturbed run, bit
for bit, and leave no process behind.

`make faults` writes this page. [reliability.md](../reliability.md) says how a run goes on.

| where | fault | runs | identical result | resumed | processes left behind | seconds, median (largest) |
|---|---|---|---|---|---|---|
"""


def row(where: str, told: list[faults.Told]) -> str:
    seconds = [t.seconds for t in told]
    cells = [
        where,
        told[0].fault,
        str(len(told)),
        f"{sum(t.identical for t in told)} of {len(told)}",
        f"{sum(t.resumed for t in told)} of {len(told)}",
        str(sum(len(t.orphans) for t in told)),
        f"{statistics.median(seconds):.0f} ({max(seconds):.0f})",
    ]
    return "| " + " | ".join(cells) + " |\n"


def on(master: str, runs: int, folder: Path, *names: str) -> list[list[faults.Told]]:
    """The faults of a master, or those named, each `runs` times, grouped by fault."""
    folder.mkdir()
    faults.submit(Path(faults.__file__), str(folder), str(runs), *names, master=master, timeout=3600)
    told = [faults.Told(**t) for t in json.loads((folder / "told.json").read_text())]
    return [told[i : i + runs] for i in range(0, len(told), runs)]


def drivers(runs: int, folder: Path) -> list[faults.Told]:
    calm, caches = folder / "calm", folder / "caches"
    job = ROOT / "jobs" / "finetune.py"
    faults.submit(job, *faults.JOB, f"output.path={calm}", f"fineTuner.cacheDir={caches}")
    return [faults.kill_driver(folder / f"killed{i}", caches, calm, 1.5 * random.random()) for i in range(runs)]


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--write", type=Path, metavar="PAGE", help="the page of docs that is written")
    given = parse(p, runs=1)
    found: list[tuple[str, list[faults.Told]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for master in ("local[2]", "local-cluster[2,1,1024]"):
            names = ["rank killed"] if given.smoke else []
            found += [(master, told) for told in on(master, given.runs, folder / master.partition("[")[0], *names)]
        found.append(("local[2]", drivers(given.runs, folder)))
    text = HEAD + "".join(row(f"`{where}`", told) for where, told in found)
    print(text)
    if given.write:
        given.write.write_text(text)
    wrong = sum(not t.identical or bool(t.orphans) for _, told in found for t in told)
    figures = {f"{where}, {told[0].fault}, s": statistics.median(t.seconds for t in told) for where, told in found}
    results = [{"where": where, **dataclasses.asdict(t)} for where, told in found for t in told]
    write(given, results, {**figures, "runs that ended otherwise": wrong})
    return exit_code(given, wrong)


if __name__ == "__main__":
    sys.exit(main())
